//! One look at one autoscaler (`reconcileAutoscaler`).

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HPAScalingRules, HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus,
    MetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::behavior::{Allowed, Memory, Sizes};
use super::calculator::{Target, Tolerance};
use super::metric::{self, Measured};
use crate::api::quantity::Quantity;
use crate::client::recorder::EventType;
use crate::client::typed::Meta;
use crate::controllers::plan::Words;

/// `--horizontal-pod-autoscaler-tolerance`.
const TOLERANCE: f64 = 0.1;

/// The Scale of the target.
#[derive(Clone, Debug)]
pub(super) struct Scale {
    /// `spec.replicas`.
    pub replicas: i32,
    /// The pods' labels; empty: the target does not tell.
    pub selector: String,
}

/// What a round sees beside the autoscaler.
pub(super) struct View<'a> {
    pub scale: &'a Result<Scale, String>,
    pub measured: &'a Measured,
    /// The pods that the target's selector matches; an error when it is no selector.
    pub pods: &'a Result<Vec<Arc<Pod>>, String>,
    /// All autoscalers that select one of the pods, this one too.
    pub rivals: &'a [String],
    pub now: Timestamp,
}

/// What a round decides.
pub(super) struct Round {
    pub status: HorizontalPodAutoscalerStatus,
    pub told: Vec<Words>,
    pub rescale: Option<Rescale>,
}

/// A new size for the target.
#[derive(Debug, PartialEq)]
pub(super) struct Rescale {
    pub from: i32,
    pub to: i32,
    pub reason: String,
}

impl Rescale {
    /// `New size: 3; reason: cpu resource utilization (percentage of request) above target`.
    pub fn words(&self) -> String {
        format!("New size: {}; reason: {}", self.to, self.reason)
    }
}

/// What the metrics ask for together.
struct Wanted {
    replicas: i32,
    name: String,
}

pub(super) fn decide(hpa: &HorizontalPodAutoscaler, view: &View<'_>, memory: &mut Memory) -> Round {
    let mut round = Round { status: hpa.status.clone().unwrap_or_default(), told: Vec::new(), rescale: None };
    let Some(spec) = &hpa.spec else { return round };
    let scale = match view.scale {
        Ok(scale) => scale,
        Err(error) => {
            round.warn("FailedGetScale", error.clone());
            let message = format!("the HPA controller was unable to get the target's current scale: {error}");
            round.condition("AbleToScale", false, ("FailedGetScale", &message), view.now);
            return round;
        }
    };
    let message = "the HPA controller was able to get the target's current scale";
    round.condition("AbleToScale", true, ("SucceededGetScale", message), view.now);
    let (current, lowest, highest) = (scale.replicas, spec.min_replicas.unwrap_or(1), spec.max_replicas);
    memory.begin(current, view.now);
    let mut shown = Vec::new();
    if current == 0 && lowest != 0 {
        let message = "scaling is disabled since the replica count of the target is zero";
        round.condition("ScalingActive", false, ("ScalingDisabled", message), view.now);
    } else if current > highest {
        round.rescale(current, highest, "Current number of replicas above Spec.MaxReplicas");
    } else if current < lowest {
        round.rescale(current, lowest, "Current number of replicas below Spec.MinReplicas");
    } else {
        let wanted = round.ask_metrics(hpa, scale, view, &mut shown);
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(error) => {
                round.warn("FailedComputeMetricsReplicas", error);
                round.show(current, None, shown);
                return round;
            }
        };
        let sizes = Sizes { lowest, highest, current, wanted: wanted.replicas.max(0) };
        let Allowed { replicas, able, limited, limit } = memory.allow(spec.behavior.as_ref(), sizes, view.now);
        round.condition("AbleToScale", true, able, view.now);
        round.condition("ScalingLimited", limited, limit, view.now);
        let reason = match sizes.wanted.cmp(&current) {
            std::cmp::Ordering::Greater => format!("{} above target", wanted.name),
            std::cmp::Ordering::Less => "All metrics below target".into(),
            std::cmp::Ordering::Equal => String::new(),
        };
        if replicas != current {
            round.rescale(current, replicas, &reason);
        }
    }
    let desired = round.rescale.as_ref().map_or(current, |rescale| rescale.to);
    round.show(current, Some(desired), shown);
    if round.rescale.is_some() {
        let message = format!("the HPA controller was able to update the target scale to {desired}");
        round.condition("AbleToScale", true, ("SucceededRescale", &message), view.now);
        round.status.last_scale_time = Some(Time(view.now));
    }
    round
}

/// What the status says when the size could not be written; `before` is the status as it was.
pub(super) fn not_rescaled(
    before: &HorizontalPodAutoscalerStatus,
    mut after: HorizontalPodAutoscalerStatus,
    error: &str,
    now: Timestamp,
) -> HorizontalPodAutoscalerStatus {
    let message = format!("the HPA controller was unable to update the target scale: {error}");
    set_condition(&mut after, "AbleToScale", false, ("FailedUpdateScale", &message), now);
    after.desired_replicas = before.desired_replicas;
    after.last_scale_time.clone_from(&before.last_scale_time);
    after.current_metrics.clone_from(&before.current_metrics);
    after
}

impl Round {
    fn warn(&mut self, reason: &'static str, message: String) {
        self.told.push((EventType::Warning, reason, message));
    }

    fn condition(&mut self, kind: &str, is: bool, because: (&str, &str), now: Timestamp) {
        set_condition(&mut self.status, kind, is, because, now);
    }

    fn rescale(&mut self, from: i32, to: i32, reason: &str) {
        self.rescale = Some(Rescale { from, to, reason: reason.into() });
    }

    /// `setStatus`.
    fn show(&mut self, current: i32, desired: Option<i32>, shown: Vec<MetricStatus>) {
        self.status.current_replicas = Some(current).filter(|current| *current != 0);
        self.status.desired_replicas = desired.unwrap_or(self.status.desired_replicas);
        self.status.current_metrics = Some(shown).filter(|shown| !shown.is_empty());
        self.status.observed_generation = None;
    }

    /// `computeReplicasForMetrics`: the largest proposal; when some metrics fail, nothing may shrink.
    fn ask_metrics(
        &mut self,
        hpa: &HorizontalPodAutoscaler,
        scale: &Scale,
        view: &View<'_>,
        shown: &mut Vec<MetricStatus>,
    ) -> Result<Wanted, String> {
        let pods = self.pods(scale, view)?;
        let spec = hpa.spec.clone().unwrap_or_default();
        let behavior = spec.behavior.unwrap_or_default();
        let tolerance = |rules: &Option<HPAScalingRules>| {
            let given = rules.as_ref().and_then(|rules| rules.tolerance.as_ref());
            given.and_then(|given| given.0.parse::<Quantity>().ok()).map_or(TOLERANCE, |given| given.as_f64())
        };
        let tolerance = Tolerance { up: tolerance(&behavior.scale_up), down: tolerance(&behavior.scale_down) };
        let target = Target { replicas: scale.replicas, pods, tolerance, now: view.now };
        let metrics = spec.metrics.unwrap_or_default();
        let (mut wanted, mut failures) = (Wanted { replicas: 0, name: String::new() }, Vec::new());
        for metric in &metrics {
            match metric::ask(metric, hpa.namespace(), &target, view.measured) {
                Ok(proposal) => {
                    shown.push(proposal.status);
                    if wanted.name.is_empty() || proposal.replicas > wanted.replicas {
                        wanted = Wanted { replicas: proposal.replicas, name: proposal.name };
                    }
                }
                Err(failure) => {
                    // As in Kubernetes: an entry without a type.
                    shown.push(MetricStatus::default());
                    self.warn(failure.reason, failure.message.clone());
                    failures.push(failure);
                }
            }
        }
        if let Some(first) = failures.first()
            && (failures.len() == metrics.len() || wanted.replicas < scale.replicas)
        {
            let message = format!("the HPA was unable to compute the replica count: {}", first.message);
            self.condition("ScalingActive", false, (first.reason, &message), view.now);
            let (bad, all) = (failures.len(), metrics.len());
            return Err(format!("invalid metrics ({bad} invalid out of {all}), first error is: {}", first.summary));
        }
        let message = format!("the HPA was able to successfully calculate a replica count from {}", wanted.name);
        self.condition("ScalingActive", true, ("ValidMetricFound", &message), view.now);
        Ok(wanted)
    }

    /// The pods that are measured (`validateAndParseSelector`).
    fn pods<'a>(&mut self, scale: &Scale, view: &View<'a>) -> Result<&'a [Arc<Pod>], String> {
        let selector = &scale.selector;
        let (event, reason, message, error) = if selector.is_empty() {
            let message = "the HPA target's scale is missing a selector".to_owned();
            ("SelectorRequired", "InvalidSelector", message, "selector is required".to_owned())
        } else {
            match view.pods {
                Err(error) => {
                    let error =
                        format!("couldn't convert selector into a corresponding internal selector object: {error}");
                    ("InvalidSelector", "InvalidSelector", error.clone(), error)
                }
                Ok(_) if view.rivals.len() > 1 => {
                    let rivals = view.rivals.join(" ");
                    let error = format!("pods by selector {selector} are controlled by multiple HPAs: [{rivals}]");
                    ("AmbiguousSelector", "AmbiguousSelector", error.clone(), error)
                }
                Ok(pods) => return Ok(pods),
            }
        };
        self.warn(event, error.clone());
        self.condition("ScalingActive", false, (reason, &message), view.now);
        Err(error)
    }
}

fn set_condition(
    status: &mut HorizontalPodAutoscalerStatus,
    kind: &str,
    is: bool,
    (reason, message): (&str, &str),
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let position = conditions.iter().position(|condition| condition.type_ == kind).unwrap_or_else(|| {
        conditions.push(HorizontalPodAutoscalerCondition { type_: kind.into(), ..Default::default() });
        conditions.len() - 1
    });
    let condition = &mut conditions[position];
    let is = if is { "True" } else { "False" };
    if condition.status != is {
        condition.last_transition_time = Some(Time(now));
    }
    condition.status = is.into();
    condition.reason = Some(reason.into());
    condition.message = Some(message.into());
}
