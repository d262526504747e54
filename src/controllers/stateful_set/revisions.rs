//! The two revisions of a StatefulSet: the one that it has, and the one that it should get (`getStatefulSetRevisions`).

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};

use super::identity;
use crate::client::typed::Meta;
use crate::controllers::history;
use crate::controllers::plan::{Action, Plan};

/// The label on revisions that carries their hash.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";
/// Names of sets are cut to this length in names of their revisions.
const LONGEST_PREFIX: usize = 223;

/// What pods are, or become.
pub struct Revisions {
    /// The name of the current revision.
    pub current: String,
    /// The name of the update revision; the same when nothing is being rolled out.
    pub update: String,
    /// The template of the current revision.
    pub current_template: PodTemplateSpec,
    /// The template of the update revision.
    pub update_template: PodTemplateSpec,
    /// `status.collisionCount`.
    pub collisions: i32,
}

impl Revisions {
    /// What the set's status knows.
    pub fn known(set: &StatefulSet) -> Self {
        let status = set.status.clone().unwrap_or_default();
        let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
        Self {
            current: status.current_revision.unwrap_or_default(),
            update: status.update_revision.unwrap_or_default(),
            current_template: template.clone(),
            update_template: template,
            collisions: status.collision_count.unwrap_or_default(),
        }
    }

    /// Finds the revision that stores the set's template, renumbers it when it is an old one, or makes a new one.
    /// `revisions`: the set's own, the oldest first; `neighbours`: all of the namespace.
    pub fn find(
        set: &StatefulSet,
        revisions: &[Arc<ControllerRevision>],
        neighbours: &[Arc<ControllerRevision>],
        plan: &mut Plan,
    ) -> Self {
        let mut found = Self::known(set);
        let next = revisions.last().map_or(1, |last| last.revision + 1);
        let equal = revisions.iter().rev().find(|revision| history::stores(revision, &found.update_template));
        found.update = match equal {
            Some(equal) => {
                if revisions.last().is_some_and(|last| last.name() != equal.name()) {
                    plan.push(Action::update(&history::renumbered(equal, next)));
                }
                equal.name().to_owned()
            }
            None => {
                let patch = history::patch(&found.update_template);
                let prefix: String = set.name().chars().take(LONGEST_PREFIX).collect();
                let name = |count| format!("{prefix}-{}", history::hash(&patch, count));
                let (name, collisions) = history::free_name(neighbours, found.collisions, name);
                found.collisions = collisions;
                let hash = (HASH_LABEL, history::hash(&patch, collisions));
                let new = history::build(set, name.clone(), hash, &found.update_template, next);
                plan.push(Action::create(&new));
                name
            }
        };
        let current = revisions.iter().find(|revision| revision.name() == found.current);
        match current.and_then(|revision| history::template(revision)) {
            Some(template) => found.current_template = template,
            None => {
                found.current.clone_from(&found.update);
                found.current_template = found.update_template.clone();
            }
        }
        found
    }

    /// Deletes the oldest revisions beyond the limit that neither the set nor a pod of it uses (`truncateHistory`).
    pub fn truncate(
        &self,
        limit: Option<i32>,
        revisions: &[Arc<ControllerRevision>],
        pods: &[Arc<Pod>],
    ) -> Vec<Action> {
        let mut live: BTreeSet<&str> = pods.iter().map(|pod| identity::revision(pod)).collect();
        live.extend([&*self.current, &*self.update]);
        history::truncate(revisions, limit, |revision| live.contains(revision.name()), false)
    }
}
