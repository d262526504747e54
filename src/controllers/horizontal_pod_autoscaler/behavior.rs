//! How fast an autoscaler may change its mind (`horizontal.go`): what it recommended and did before, stabilisation
//! windows, and scaling policies.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// `--horizontal-pod-autoscaler-downscale-stabilization`.
const DOWNSCALE_STABILIZATION: i64 = 300;

/// A reason and a message.
pub(super) type Because = (&'static str, &'static str);

const WITHIN: Because = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_MANY: Because = ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: Because = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const UP_LIMIT: Because =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: Because =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const MATCHES: Because = ("ReadyForNewScale", "recommended size matches current size");
const UP_STABILIZED: Because = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const DOWN_STABILIZED: Because = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);

/// What one autoscaler recommended and did. It is lost with the process, as in Kubernetes.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    recommendations: Vec<(Timestamp, i32)>,
    up: Vec<(Timestamp, i32)>,
    down: Vec<(Timestamp, i32)>,
}

/// The sizes that a change is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub lowest: i32,
    pub highest: i32,
    pub current: i32,
    pub wanted: i32,
}

/// The size that may be had, and why (conditions `AbleToScale` and `ScalingLimited`).
#[derive(Debug, PartialEq)]
pub(super) struct Allowed {
    pub replicas: i32,
    pub able: Because,
    pub limited: bool,
    pub limit: Because,
}

impl Memory {
    /// The first recommendation is what was there.
    pub fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommendations.is_empty() {
            self.recommendations.push((now, current));
        }
    }

    /// Remembers a change of the size.
    pub fn scaled(&mut self, behavior: Option<&HorizontalPodAutoscalerBehavior>, from: i32, to: i32, now: Timestamp) {
        let Some(behavior) = behavior else { return };
        let (events, rules) =
            if to > from { (&mut self.up, &behavior.scale_up) } else { (&mut self.down, &behavior.scale_down) };
        let periods =
            rules.iter().flat_map(|rules| rules.policies.iter().flatten()).map(|policy| policy.period_seconds);
        let longest = periods.max().unwrap_or_default();
        events.retain(|(at, _)| *at >= before(now, longest.into()));
        events.push((now, (to - from).abs()));
    }

    /// Forgets the last change: it did not come about.
    pub fn not_scaled(&mut self, behavior: Option<&HorizontalPodAutoscalerBehavior>, from: i32, to: i32) {
        if behavior.is_some() {
            if to > from {
                self.up.pop()
            } else {
                self.down.pop()
            };
        }
    }

    /// What may be had of what is wanted.
    pub fn allow(
        &mut self,
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
        sizes: Sizes,
        now: Timestamp,
    ) -> Allowed {
        let (stable, able, (replicas, limit)) = match behavior {
            None => {
                let stable = self.stabilized(0, DOWNSCALE_STABILIZATION, Sizes { current: i32::MAX, ..sizes }, now);
                (stable, DOWN_STABILIZED, within(Sizes { wanted: stable, ..sizes }))
            }
            Some(behavior) => {
                let window = |rules: &Option<HPAScalingRules>, default| {
                    rules.as_ref().and_then(|rules| rules.stabilization_window_seconds).map_or(default, i64::from)
                };
                let up = window(&behavior.scale_up, 0);
                let down = window(&behavior.scale_down, DOWNSCALE_STABILIZATION);
                let stable = self.stabilized(up, down, sizes, now);
                let able = if sizes.wanted >= sizes.current { UP_STABILIZED } else { DOWN_STABILIZED };
                (stable, able, self.at_rate(behavior, Sizes { wanted: stable, ..sizes }, now))
            }
        };
        let able = if stable == sizes.wanted { MATCHES } else { able };
        Allowed { replicas, able, limited: replicas != stable, limit }
    }

    /// The current size, as far as the recommendations of the windows allow it.
    fn stabilized(&mut self, up: i64, down: i64, sizes: Sizes, now: Timestamp) -> i32 {
        let within = |window| {
            let recent = self.recommendations.iter().filter(move |(at, _)| *at > before(now, window));
            recent.map(|(_, recommended)| *recommended)
        };
        let lowest = within(up).fold(sizes.wanted, i32::min);
        let highest = within(down).fold(sizes.wanted, i32::max);
        let stable = sizes.current.max(lowest).min(highest);
        let longest = up.max(down);
        self.recommendations.retain(|(at, _)| *at >= before(now, longest));
        self.recommendations.push((now, sizes.wanted));
        stable
    }

    fn at_rate(&self, behavior: &HorizontalPodAutoscalerBehavior, sizes: Sizes, now: Timestamp) -> (i32, Because) {
        let Sizes { lowest, highest, current, wanted } = sizes;
        if wanted > current {
            let limit = self.limit(behavior.scale_up.as_ref(), current, true, now).max(current);
            let (most, because) = if highest > limit { (limit, UP_LIMIT) } else { (highest, TOO_MANY) };
            if wanted > most {
                return (most, because);
            }
        } else if wanted < current {
            let limit = self.limit(behavior.scale_down.as_ref(), current, false, now).min(current);
            let (least, because) = if lowest < limit { (limit, DOWN_LIMIT) } else { (lowest, TOO_FEW) };
            if wanted < least {
                return (least, because);
            }
        }
        (wanted, WITHIN)
    }

    /// How far the policies let the size go up or down now.
    fn limit(&self, rules: Option<&HPAScalingRules>, current: i32, up: bool, now: Timestamp) -> i32 {
        let select = rules.and_then(|rules| rules.select_policy.as_deref()).unwrap_or("Max");
        if select == "Disabled" {
            return current;
        }
        let changed = |events: &[(Timestamp, i32)], period: i32| -> i32 {
            let recent = events.iter().filter(|(at, _)| *at > before(now, period.into()));
            recent.fold(0, |sum, (_, change)| sum.saturating_add(*change))
        };
        let proposals = rules.iter().flat_map(|rules| rules.policies.iter().flatten()).map(|policy| {
            let period = policy.period_seconds;
            let start = current.saturating_sub(changed(&self.up, period)).saturating_add(changed(&self.down, period));
            let part = f64::from(policy.value) / 100.0;
            match (policy.type_.as_str(), up) {
                ("Pods", true) => start.saturating_add(policy.value),
                ("Pods", false) => start.saturating_sub(policy.value),
                (_, true) => (f64::from(start) * (1.0 + part)).ceil() as i32,
                (_, false) => (f64::from(start) * (1.0 - part)) as i32,
            }
        });
        // The greatest change upwards is the largest number, downwards the smallest.
        let found = if (select == "Min") == up { proposals.min() } else { proposals.max() };
        found.unwrap_or(current)
    }
}

/// Without a behavior: between the bounds, and not more than double (or four) at once.
fn within(sizes: Sizes) -> (i32, Because) {
    let Sizes { lowest, highest, current, wanted } = sizes;
    let limit = current.saturating_mul(2).max(4);
    let (most, because) = if highest > limit { (limit, UP_LIMIT) } else { (highest, TOO_MANY) };
    match wanted {
        wanted if wanted < lowest => (lowest, TOO_FEW),
        wanted if wanted > most => (most, because),
        wanted => (wanted, WITHIN),
    }
}

fn before(now: Timestamp, seconds: i64) -> Timestamp {
    now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN)
}
