//! The revisions of a DaemonSet (`constructHistory`, `cleanupHistory`).

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::client::Patch;
use crate::client::cache::Key;
use crate::client::typed::{Meta, gvr};
use crate::controllers::deployment::replica_sets::template_hash;
use crate::controllers::history::{self, REVISION_LABEL};
use crate::controllers::plan::{Action, Plan};

/// What a set's pods are, or become.
pub struct Revisions {
    /// The hash of pods that are up to date.
    pub hash: String,
    /// `status.collisionCount`; `None` while there was none.
    pub collisions: Option<i32>,
    /// Revisions of other templates, the oldest first.
    old: Vec<Arc<ControllerRevision>>,
}

/// The hash in a revision's label; one that an earlier version made without it is known by its name.
fn hash_of(revision: &ControllerRevision) -> String {
    revision.labels().get(REVISION_LABEL).cloned().unwrap_or_else(|| revision.name().to_owned())
}

impl Revisions {
    /// Finds the revision that stores the set's template and keeps it the newest, or makes a new one. `revisions` and
    /// `pods`: the set's own; `neighbours`: all revisions of the namespace.
    pub fn find(
        set: &DaemonSet,
        revisions: &[Arc<ControllerRevision>],
        neighbours: &[Arc<ControllerRevision>],
        pods: &[Arc<Pod>],
        plan: &mut Plan,
    ) -> Self {
        let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
        for revision in revisions.iter().filter(|revision| !revision.labels().contains_key(REVISION_LABEL)) {
            let patch = json!({"metadata": {"labels": {REVISION_LABEL: revision.name()}}});
            plan.push(Action::patch(gvr::<ControllerRevision>(), Key::of(&**revision), "", Patch::Merge(patch)));
        }
        let mut collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let stored = revisions.iter().cloned().partition(|revision| history::stores(revision, &template));
        let (mut current, mut old): (Vec<_>, Vec<_>) = stored;
        history::sort(&mut current);
        history::sort(&mut old);
        let number = old.last().map_or(1, |last| last.revision + 1);
        let hash = match current.pop() {
            Some(newest) => {
                keep_only(&newest, &current, pods, plan);
                if newest.revision < number {
                    plan.push(Action::update(&history::renumbered(&newest, number)));
                }
                hash_of(&newest)
            }
            None => {
                let hash_with = |count: i32| template_hash(&template, (count > 0).then_some(count));
                let name = |count| format!("{}-{}", set.name(), hash_with(count));
                let (name, count) = history::free_name(neighbours, collisions.unwrap_or_default(), name);
                collisions = (count > 0).then_some(count).or(collisions);
                let hash = hash_with(count);
                let new = history::build(set, name, (REVISION_LABEL, hash.clone()), &template, number);
                plan.push(Action::create(&new));
                hash
            }
        };
        Self { hash, collisions, old }
    }

    /// Deletes the oldest revisions beyond the limit that no pod is made of.
    pub fn clean_up(&self, set: &DaemonSet, pods: &[Arc<Pod>]) -> Vec<Action> {
        let live: BTreeSet<&String> = pods.iter().filter_map(|pod| pod.labels().get(REVISION_LABEL)).collect();
        let limit = set.spec.as_ref().and_then(|spec| spec.revision_history_limit);
        history::truncate(&self.old, limit, |revision| live.contains(&hash_of(revision)), true)
    }
}

/// Of several revisions of one template the newest stays; pods of the others become pods of it (`dedupCurHistories`).
fn keep_only(newest: &ControllerRevision, others: &[Arc<ControllerRevision>], pods: &[Arc<Pod>], plan: &mut Plan) {
    if others.is_empty() {
        return;
    }
    let hash = hash_of(newest);
    let gone: BTreeSet<String> = others.iter().map(|revision| hash_of(revision)).collect();
    for pod in pods.iter().filter(|pod| pod.labels().get(REVISION_LABEL).is_some_and(|hash| gone.contains(hash))) {
        let patch = Patch::Merge(json!({"metadata": {"labels": {REVISION_LABEL: hash}}}));
        plan.push(Action::patch(gvr::<Pod>(), Key::of(&**pod), "", patch).tolerate(&["NotFound"]));
    }
    others.iter().for_each(|revision| plan.push(Action::delete(&**revision)));
}
