//! When a node was last heard of, by our own clock: the clocks of other machines may be wrong.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;

use super::ready;
use crate::client::typed::Meta;

/// `--node-monitor-grace-period` (50 s since 1.32).
pub const GRACE: SignedDuration = SignedDuration::from_secs(50);
/// `--node-startup-grace-period`: for a node that has never reported.
pub const STARTUP_GRACE: SignedDuration = SignedDuration::from_secs(60);
/// Who looks so much later than was planned has slept, and so has everything else on this machine.
const SLEPT: SignedDuration = SignedDuration::from_secs(10);

/// What a node says of the time: it matters only whether it says something new.
type Beat = (Option<Timestamp>, Option<Timestamp>);

struct Heard {
    beat: Beat,
    at: Timestamp,
    is_lost: bool,
}

/// What was heard of all nodes.
#[derive(Default)]
pub struct Health {
    nodes: HashMap<String, Heard>,
}

/// What is known of a node now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Silence {
    /// The node counts as lost from then on, unless it is heard of again.
    pub at: Timestamp,
    /// Whether it is seen for the first time.
    pub is_new: bool,
}

fn beat(node: &Node, lease: Option<&Lease>) -> Beat {
    let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref().map(|time| time.0));
    let reported = ready(node).and_then(|condition| condition.last_heartbeat_time.as_ref().map(|time| time.0));
    (renewed, reported)
}

impl Health {
    /// Takes a look at a node.
    pub fn look(&mut self, node: &Node, lease: Option<&Lease>, now: Timestamp) -> Silence {
        let beat = beat(node, lease);
        // A node that has never reported counts from its creation, which our own clock has written.
        let reports = ready(node).is_some();
        let created = node.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let first = if reports { now } else { created.unwrap_or(now) };
        let is_new = !self.nodes.contains_key(node.name());
        let heard = self.nodes.entry(node.name().to_owned()).or_insert(Heard { beat, at: first, is_lost: false });
        let grace = if reports { GRACE } else { STARTUP_GRACE };
        let silent_at = |at: Timestamp| at.saturating_add(grace).expect("a duration saturates");
        let slept = !is_new && !heard.is_lost && now.duration_since(silent_at(heard.at)) > SLEPT;
        if heard.beat != beat || slept {
            *heard = Heard { beat, at: now, is_lost: false };
        }
        let at = silent_at(heard.at);
        heard.is_lost = now >= at;
        Silence { at, is_new }
    }
    /// A node is gone.
    pub fn forget(&mut self, node: &str) {
        self.nodes.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use crate::env::rfc3339;
    use serde_json::{Value, json};

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().expect("a time")
    }

    fn node(conditions: Value) -> Node {
        let created = rfc3339(now());
        let node =
            json!({"metadata": {"name": "n", "creationTimestamp": created}, "status": {"conditions": conditions}});
        Node::parse(&node).expect("a node")
    }

    fn lease(renewed: &str) -> Lease {
        let renewed = format!("{renewed}.000000Z");
        Lease::parse(&json!({"metadata": {"name": "n"}, "spec": {"renewTime": renewed}})).expect("a lease")
    }

    fn after(seconds: i64) -> Timestamp {
        now() + SignedDuration::from_secs(seconds)
    }

    #[test]
    fn a_clock_that_is_wrong_changes_nothing() {
        let node = node(json!([{"type": "Ready", "status": "True"}]));
        let mut health = Health::default();
        // A day late, and a day early: what counts is when it was heard here.
        for (at, renewed) in [(0, "2026-01-01T03:04:05"), (30, "2026-01-03T03:04:05"), (60, "2026-01-01T03:04:25")] {
            let silence = health.look(&node, Some(&lease(renewed)), after(at));
            assert_eq!(silence, Silence { at: after(at + 50), is_new: at == 0 });
        }
        let last = lease("2026-01-01T03:04:25");
        assert_eq!(health.look(&node, Some(&last), after(110)).at, after(110), "it is silent now");
        assert_eq!(health.look(&node, Some(&last), after(900)).at, after(110), "and stays so");
        let again = lease("2026-01-01T03:20:00");
        assert_eq!(health.look(&node, Some(&again), after(901)).at, after(951));
    }

    #[test]
    fn who_has_slept_gives_everybody_their_time_anew() {
        let node = node(json!([{"type": "Ready", "status": "True"}]));
        let mut health = Health::default();
        health.look(&node, None, now());
        assert_eq!(health.look(&node, None, after(4000)).at, after(4050));
    }

    #[test]
    fn a_node_that_never_reports_has_a_minute_from_its_creation() {
        let mut health = Health::default();
        assert_eq!(health.look(&node(json!([])), None, after(20)).at, after(60));
        assert_eq!(health.look(&node(json!([])), None, after(60)).at, after(60));
    }
}
