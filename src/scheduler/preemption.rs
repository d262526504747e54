//! DefaultPreemption: when a pod fits nowhere, pods of lower priority may have to go. Pure.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use super::cycle::Cycle;
use super::diagnosis::{Diagnosis, histogram};
use super::node_info::NodeInfo;
use super::pod_info::PodInfo;

/// What preemption can do for a pod.
#[derive(Debug)]
pub enum Preemption {
    /// Nothing now; a nomination that the pod has stays. Why.
    Keep(String),
    /// Nothing at all; a nomination ends. Why.
    Hopeless(String),
    /// Room can be made.
    Victims {
        /// On this node.
        node: String,
        /// By deleting these, the most important first.
        victims: Vec<Arc<PodInfo>>,
        /// Pods of lower priority for whom room was made there lose their nomination.
        demoted: Vec<Arc<PodInfo>>,
    },
}

/// So many candidates are looked at: a tenth of the nodes (`minCandidateNodesPercentage`), at least 100
/// (`minCandidateNodesAbsolute`).
const CANDIDATES: usize = 100;
const CANDIDATES_PERCENT: usize = 10;

const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

/// A node where room can be made.
struct Candidate<'a> {
    node: &'a NodeInfo,
    /// The most important first.
    victims: Vec<&'a Arc<PodInfo>>,
    /// How many of them break a budget.
    violations: usize,
}

/// Looks for pods whose going makes room for the cycle's pod.
pub(super) fn find<'a>(cycle: &mut Cycle<'a>, diagnosis: &Diagnosis<'a>) -> Preemption {
    if let Some(why) = is_not_eligible(cycle, diagnosis) {
        return Preemption::Keep(why.to_owned());
    }
    let resolvable = diagnosis.verdicts().iter().filter(|verdict| verdict.rejection.resolvable);
    let potential: Vec<&'a NodeInfo> = resolvable.map(|verdict| verdict.node).collect();
    let enough = (potential.len() * CANDIDATES_PERCENT / 100).max(CANDIDATES);
    let mut candidates: Vec<Candidate<'a>> = Vec::new();
    let mut reasons: HashMap<Cow<'static, str>, usize> = HashMap::new();
    let mut tried = 0;
    for node in &potential {
        if candidates.len() >= enough && candidates.iter().any(|candidate| candidate.violations == 0) {
            break;
        }
        tried += 1;
        match victims_on(cycle, node) {
            Ok(candidate) => candidates.push(candidate),
            Err(why) => why.into_iter().for_each(|why| *reasons.entry(why).or_default() += 1),
        }
    }
    let Some(best) = candidates.into_iter().min_by_key(rank) else {
        let others = (NOT_HELPFUL, diagnosis.nodes() - tried);
        let said = reasons.iter().map(|(why, count)| (&**why, *count)).chain([others]);
        return Preemption::Hopeless(histogram(diagnosis.nodes(), said));
    };
    let lower = |other: &&Arc<PodInfo>| other.priority() < cycle.pod.priority();
    Preemption::Victims {
        node: best.node.name.clone(),
        victims: best.victims.into_iter().cloned().collect(),
        demoted: cycle.nodes.nominated_on(&best.node.name).filter(lower).cloned().collect(),
    }
}

/// `PodEligibleToPreemptOthers`.
fn is_not_eligible(cycle: &Cycle<'_>, diagnosis: &Diagnosis<'_>) -> Option<&'static str> {
    let pod = cycle.pod;
    if pod.spec().and_then(|spec| spec.preemption_policy.as_deref()) == Some("Never") {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = cycle.nodes.get(cycle.nodes.nomination(&pod.uid))?;
    let verdict = diagnosis.verdicts().iter().find(|verdict| verdict.node.name == nominated.name);
    if verdict.is_none_or(|verdict| !verdict.rejection.resolvable) {
        return None; // no pod's going helps there any more
    }
    let goes = |other: &Arc<PodInfo>| other.priority() < pod.priority() && is_being_preempted(other);
    nominated.pods.iter().any(goes).then_some("not eligible due to a terminating pod on the nominated node.")
}

fn is_being_preempted(pod: &PodInfo) -> bool {
    let conditions = pod.pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let target = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget");
    pod.pod.metadata.deletion_timestamp.is_some()
        && target
            .is_some_and(|target| target.status == "True" && target.reason.as_deref() == Some("PreemptionByScheduler"))
}

/// The fewest and least important pods whose going makes room on a node (`SelectVictimsOnNode`).
///
/// # Errors
/// Why no room can be made.
fn victims_on<'a>(cycle: &mut Cycle<'a>, node: &'a NodeInfo) -> Result<Candidate<'a>, Vec<Cow<'static, str>>> {
    let priority = cycle.pod.priority();
    let mut potential: Vec<&'a Arc<PodInfo>> = node.pods.iter().filter(|pod| pod.priority() < priority).collect();
    if potential.is_empty() {
        return Err(vec![NO_VICTIMS.into()]);
    }
    potential.sort_by_key(|pod| importance(pod));
    let mut trial = node.clone();
    let mut gone = potential.clone();
    for pod in &potential {
        trial.remove(&pod.uid);
        cycle.moved(pod, node, -1);
    }
    let result = match cycle.fits(node, Some(&trial)) {
        Err((_, rejection)) => Err(rejection.reasons),
        Ok(()) => {
            let (violating, others) = cycle.nodes.budgets.split(potential.iter().map(|pod| (*pod).clone()).collect());
            let violating_count = violating.len();
            let mut violations = 0;
            // Those whose budget breaks are reprieved first, and the most important first of all.
            for (at, pod) in violating.into_iter().chain(others).enumerate() {
                let pod = *potential.iter().find(|known| known.uid == pod.uid).expect("it is one of them");
                trial.add(pod.clone());
                cycle.moved(pod, node, 1);
                if cycle.fits(node, Some(&trial)).is_ok() {
                    gone.retain(|other| other.uid != pod.uid);
                } else {
                    trial.remove(&pod.uid);
                    cycle.moved(pod, node, -1);
                    violations += usize::from(at < violating_count);
                }
            }
            match gone.is_empty() {
                true => Err(vec![format!("expected at least one victim pod on node {:?}", node.name).into()]),
                false => Ok(Candidate { node, victims: gone.clone(), violations }),
            }
        }
    };
    gone.iter().for_each(|pod| cycle.moved(pod, node, 1));
    result
}

/// The most important first: by priority, then who has run longest (`MoreImportantPod`).
fn importance(pod: &PodInfo) -> (Reverse<i32>, jiff::Timestamp, &str) {
    (Reverse(pod.priority()), pod.started(), &pod.uid)
}

/// The best candidate has the lowest rank (`pickOneNodeForPreemption`): it breaks the fewest budgets, its most important
/// victim is least important, the sum of priorities is lowest, there are fewest victims, and its most important ones have
/// run shortest.
fn rank(candidate: &Candidate<'_>) -> (usize, i32, i64, usize, Reverse<jiff::Timestamp>) {
    let victims = &candidate.victims;
    let highest = victims.iter().map(|pod| pod.priority()).max().unwrap_or(i32::MIN);
    // All summands are positive, so that fewer pods of a negative priority are better than more.
    let sum = victims.iter().map(|pod| i64::from(pod.priority()) + i64::from(i32::MAX) + 1).sum();
    let earliest = victims.iter().filter(|pod| pod.priority() == highest).map(|pod| pod.started()).min();
    (candidate.violations, highest, sum, victims.len(), Reverse(earliest.unwrap_or(jiff::Timestamp::MIN)))
}
