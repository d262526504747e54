//! TaintToleration: taints keep pods away that do not tolerate them, or make their nodes less liked.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::{Plugin, PodInfo, Registered, Rejection, normalize};
use crate::client::placement;
use crate::scheduler::happened::{self, Happened};
use crate::scheduler::node_info::{NodeInfo, taints};

pub const PLUGIN: Registered = Registered {
    name: "TaintToleration",
    make: |_, _| Some(Box::new(TaintToleration)),
    helped_by: happened::NODE | happened::ITSELF,
    helped: |pod, happened, _| match happened {
        Happened::Itself(before) => tolerations(before) != tolerations(pod),
        Happened::NodeChanged { old, new } => !lets_in(pod, taints(old)) && lets_in(pod, new.taints()),
        happened => happened.node().is_some_and(|node| lets_in(pod, node.taints())),
    },
};

struct TaintToleration;

fn tolerations(pod: &PodInfo) -> &[Toleration] {
    pod.spec().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default()
}

/// Whether a toleration of the pod covers a taint.
pub fn tolerates(pod: &PodInfo, taint: &Taint) -> bool {
    tolerations(pod).iter().any(|toleration| placement::tolerates(toleration, taint))
}

/// Whether no `NoSchedule` or `NoExecute` taint keeps the pod away.
pub fn lets_in(pod: &PodInfo, taints: &[Taint]) -> bool {
    let mut hard = taints.iter().filter(|taint| matches!(&*taint.effect, "NoSchedule" | "NoExecute"));
    hard.all(|taint| tolerates(pod, taint))
}

impl Plugin<'_> for TaintToleration {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if lets_in(pod, node.taints()) {
            return Ok(());
        }
        Rejection::hopeless("node(s) had untolerated taint(s)")
    }
    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let soft = node.taints().iter().filter(|taint| taint.effect == "PreferNoSchedule");
        i64::try_from(soft.filter(|taint| !tolerates(pod, taint)).count()).unwrap_or(i64::MAX)
    }
    fn normalize(&self, scores: &mut [i64]) {
        normalize(scores, true);
    }
    fn weight(&self) -> i64 {
        3
    }
}
