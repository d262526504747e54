//! The rolling update of a DaemonSet: old pods go within `maxUnavailable`, or new ones come within `maxSurge`
//! (`rollingUpdate`).

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::Pod;

use super::nodes::{Verdict, verdict};
use super::{Changes, View};
use crate::client::typed::Meta;
use crate::controllers::deployment::math::resolve;

/// The strategy is `RollingUpdate`.
pub fn is_rolling(set: &DaemonSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("RollingUpdate")
}

fn parameters(set: &DaemonSet) -> Option<&RollingUpdateDaemonSet> {
    set.spec.as_ref()?.update_strategy.as_ref()?.rolling_update.as_ref().filter(|_| is_rolling(set))
}

fn max_surge(set: &DaemonSet, nodes: i32) -> i32 {
    resolve(parameters(set).and_then(|rolling| rolling.max_surge.as_ref()), nodes, true)
}

fn max_unavailable(set: &DaemonSet, nodes: i32) -> i32 {
    resolve(parameters(set).and_then(|rolling| rolling.max_unavailable.as_ref()), nodes, true)
}

/// Whether a node may have an old and a new pod at the same time.
pub fn allows_surge(set: &DaemonSet) -> bool {
    max_surge(set, 1) > 0
}

/// The pods of a node that stay: at most one of the current revision and one that is older.
struct Pair<'a> {
    new: Option<&'a Arc<Pod>>,
    old: Option<&'a Arc<Pod>>,
}

/// `None` when there are more: the nodes are put in order first.
fn pair<'a>(view: &View, pods: &'a [Arc<Pod>]) -> Option<Pair<'a>> {
    let mut pair = Pair { new: None, old: None };
    for pod in pods.iter().filter(|pod| !pod.is_terminating()) {
        let place = if view.is_updated(pod) { &mut pair.new } else { &mut pair.old };
        if place.replace(pod).is_some() {
            return None;
        }
    }
    Some(pair)
}

/// The next step of the update.
pub fn update(view: &View) -> Changes {
    let wanted: Vec<&str> =
        view.nodes.iter().filter(|node| verdict(view.set, node) == Verdict::Run).map(|node| node.name()).collect();
    let count = i32::try_from(wanted.len()).unwrap_or(i32::MAX);
    let (surge, mut unavailable) = (max_surge(view.set, count), max_unavailable(view.set, count));
    if surge == 0 && unavailable == 0 {
        unavailable = 1;
    }
    let size = |number: i32| usize::try_from(number).unwrap_or_default();
    let empty = wanted.iter().filter(|name| !view.pods.contains_key(**name)).count();
    match surge {
        0 => delete_old(view, empty, size(unavailable)),
        _ => surge_new(view, wanted.len(), size(surge)),
    }
}

/// Without a surge: old pods that are not available go at once, others as long as enough are available. `empty`: wanted
/// nodes without any pod.
fn delete_old(view: &View, empty: usize, max_unavailable: usize) -> Changes {
    let mut unavailable = empty;
    let (mut delete, mut candidates) = (Vec::new(), Vec::new());
    for pods in view.pods.values() {
        match pair(view, pods) {
            Some(Pair { new: Some(new), old: None }) => unavailable += usize::from(!view.is_available(new)),
            Some(Pair { new: None, old: Some(old) }) if view.is_available(old) => candidates.push(old.clone()),
            Some(Pair { new: None, old: Some(old) }) => {
                unavailable += 1;
                delete.push(old.clone());
            }
            _ => unavailable += 1,
        }
    }
    delete.extend(candidates.into_iter().take(max_unavailable.saturating_sub(unavailable)));
    Changes { create: Vec::new(), delete }
}

/// With a surge: new pods come beside the old ones, which go when the new ones are available.
fn surge_new(view: &View, desired: usize, max_surge: usize) -> Changes {
    let mut changes = Changes::default();
    let (mut surging, mut available) = (0, 0);
    let (mut candidates, mut leaving) = (Vec::new(), Vec::new());
    for (name, pods) in &view.pods {
        let Some(pair) = pair(view, pods) else {
            surging += 1;
            continue;
        };
        available += usize::from(pair.old.or(pair.new).is_some_and(|pod| view.is_available(pod)));
        let Some(old) = pair.old else { continue };
        let runs = view.node(name).is_some_and(|node| verdict(view.set, node) == Verdict::Run);
        match pair.new {
            Some(new) if view.is_available(new) => changes.delete.push(old.clone()),
            Some(_) => surging += 1,
            None if view.is_available(old) && runs => candidates.push(name.clone()),
            None if view.is_available(old) => leaving.push(old.clone()),
            None if runs => changes.create.push(name.clone()),
            None => changes.delete.push(old.clone()),
        }
    }
    // Where no pod should be any more one goes only when there are enough elsewhere.
    changes.delete.extend(leaving.into_iter().take(available.saturating_sub(desired)));
    changes.create.extend(candidates.into_iter().take(max_surge.saturating_sub(surging)));
    changes
}
