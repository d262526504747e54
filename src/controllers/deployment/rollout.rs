//! The steps of a rollout: new set, scaling up and down within the limits, clean-up.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;

use super::math::{self, available, is_saturated, new_size, proportion, replicas, size, total_size};
use super::progress::{self, PROGRESSING, TIMED_OUT, condition};
use super::replica_sets::{self, REVISION_ANNOTATION, age, annotate_new, annotate_sizes, revision};
use crate::client::recorder::{EventType, reference};
use crate::client::typed::Meta;
use crate::controllers::plan::{Action, Plan};
use crate::controllers::pod_status::is_finished;

/// A reconcile in the making: what it knows and what it has decided.
pub struct Rollout<'a> {
    deployment: &'a Deployment,
    /// The status with conditions as they change during this reconcile.
    status: DeploymentStatus,
    /// `deployment.kubernetes.io/revision` as it should be.
    revision: Option<i64>,
    now: Timestamp,
    /// The claimed sets, as decided so far.
    sets: Vec<Arc<ReplicaSet>>,
    /// Every set of the namespace: names that are taken.
    neighbours: &'a [Arc<ReplicaSet>],
    new: Option<Arc<ReplicaSet>>,
    old: Vec<Arc<ReplicaSet>>,
    /// Annotations or `minReadySeconds` of the new set differ from what is stored, and no change of its size has written that yet.
    is_new_changed: bool,
    /// The plan so far.
    pub plan: Plan,
}

impl<'a> Rollout<'a> {
    /// Begins with the claimed sets.
    pub fn new(
        deployment: &'a Deployment,
        sets: Vec<Arc<ReplicaSet>>,
        neighbours: &'a [Arc<ReplicaSet>],
        now: Timestamp,
    ) -> Self {
        let status = deployment.status.clone().unwrap_or_default();
        let plan = Plan::default();
        let old = Vec::new();
        Self { deployment, status, revision: None, now, sets, neighbours, new: None, old, is_new_changed: false, plan }
    }

    /// Tells the pause in the condition `Progressing`, so that its deadline does not run (`checkPausedConditions`).
    pub fn check_paused(&mut self) {
        if progress::deadline(self.deployment).is_none() {
            return;
        }
        let reason = progress::find(&self.status, PROGRESSING).and_then(|condition| condition.reason.clone());
        let paused = self.deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or_default();
        let (reason, message) = match reason.as_deref() {
            Some(TIMED_OUT) => return,
            Some("DeploymentPaused") if !paused => ("DeploymentResumed", "Deployment is resumed"),
            Some("DeploymentPaused") => return,
            _ if paused => ("DeploymentPaused", "Deployment is paused"),
            _ => return,
        };
        progress::set(&mut self.status, condition(PROGRESSING, "Unknown", reason, message.into(), self.now));
    }

    /// Whether the wanted number has changed since the sets were sized (`isScalingEvent`). Several sets of a Recreate Deployment
    /// (adopted ones) cannot be sized, only rolled: in Kubernetes such a Deployment stays as it is for ever.
    pub fn is_scaling(&self) -> bool {
        let wanted = replicas(self.deployment);
        let active: Vec<_> = self.sets.iter().filter(|set| size(set) > 0).collect();
        let resized = |set: &&Arc<ReplicaSet>| {
            math::annotated(set, math::DESIRED_ANNOTATION).is_some_and(|desired| desired != wanted)
        };
        active.iter().copied().any(|set| resized(&set)) && !(math::is_recreate(self.deployment) && active.len() > 1)
    }

    /// Splits the sets into the new one, if it exists, and the old ones; keeps revisions in order.
    pub fn find_sets(&mut self) {
        self.new = replica_sets::find_new(self.deployment, &self.sets);
        let uid = self.new.as_ref().map(|set| set.uid().to_owned());
        self.old = self.sets.iter().filter(|set| Some(set.uid()) != uid.as_deref()).cloned().collect();
        self.old.sort_by_key(|set| age(set));
        let Some(new) = self.new.clone() else { return };
        let next = self.next_revision();
        let mut wanted = (*new).clone();
        annotate_new(self.deployment, &mut wanted, next, true);
        let min_ready = self.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        let spec = wanted.spec.get_or_insert_default();
        if spec.min_ready_seconds.unwrap_or_default() != min_ready.unwrap_or_default() {
            spec.min_ready_seconds = min_ready;
        }
        self.revision = Some(revision(&wanted));
        if wanted != *new {
            self.is_new_changed = true;
            self.replace(wanted);
        }
        if progress::deadline(self.deployment).is_some() && progress::find(&self.status, PROGRESSING).is_none() {
            let message = format!("Found new replica set {:?}", new.name());
            let found = condition(PROGRESSING, "True", "FoundNewReplicaSet", message, self.now);
            progress::set(&mut self.status, found);
        }
    }

    fn next_revision(&self) -> i64 {
        self.old.iter().map(|set| revision(set)).max().unwrap_or_default() + 1
    }

    /// Puts a changed set in the place of the one that was known.
    fn replace(&mut self, set: ReplicaSet) {
        let set = Arc::new(set);
        let same = |known: &&mut Arc<ReplicaSet>| known.name() == set.name();
        for known in self.old.iter_mut().chain(&mut self.new).chain(&mut self.sets).filter(same) {
            *known = set.clone();
        }
    }

    /// Creates the new set if there is none. Returns whether the rollout can go on.
    fn ensure_new(&mut self) -> bool {
        if self.new.is_some() {
            return true;
        }
        let mut set = replica_sets::build(self.deployment);
        if self.neighbours.iter().any(|known| known.name() == set.name()) {
            // The name is taken by a set with another template: the next reconcile hashes with another count.
            let count = self.status.collision_count.unwrap_or_default();
            self.status.collision_count = Some(count + 1);
            return false;
        }
        let count = new_size(self.deployment, total_size(&self.old), 0);
        set.spec.get_or_insert_default().replicas = Some(count);
        let next = self.next_revision();
        annotate_new(self.deployment, &mut set, next, false);
        self.revision = Some(next);
        let scaled = format!("Scaled up replica set {} from 0 to {count}", set.name());
        let success = (count > 0).then_some((EventType::Normal, "ScalingReplicaSet", scaled));
        let failed = format!("Failed to create new replica set {:?}: {{error}}", set.name());
        let failure = (EventType::Warning, "ReplicaSetCreateError", failed);
        self.plan.push(Action::create(&set).tell(reference(self.deployment), success, Some(failure)));
        self.tell_failed_create(set.name());
        if progress::deadline(self.deployment).is_some() {
            let message = format!("Created new replica set {:?}", set.name());
            let created = condition(PROGRESSING, "True", "NewReplicaSetCreated", message, self.now);
            progress::set(&mut self.status, created);
        }
        let set = Arc::new(set);
        self.sets.push(set.clone());
        self.new = Some(set);
        true
    }

    fn tell_failed_create(&mut self, name: &str) {
        let (deployment, name, now) = (self.deployment.clone(), name.to_owned(), self.now);
        self.plan.on_failure = Some(Box::new(move |error| {
            if error.is_already_exists() || progress::deadline(&deployment).is_none() {
                return Vec::new();
            }
            let before = deployment.status.clone().unwrap_or_default();
            let mut status = before.clone();
            let message = format!("Failed to create new replica set {name:?}: {}", error.message);
            progress::set(&mut status, condition(PROGRESSING, "False", "ReplicaSetCreateError", message, now));
            if status == before {
                return Vec::new();
            }
            vec![Action::update_status(&Deployment { status: Some(status), ..deployment })]
        }));
    }

    /// Sets a size and the sizes' annotations; writes and tells only what changes. Returns whether the size changed.
    fn resize(&mut self, set: &Arc<ReplicaSet>, count: i32) -> bool {
        let before = size(set);
        let mut wanted = (**set).clone();
        wanted.spec.get_or_insert_default().replicas = Some(count);
        annotate_sizes(self.deployment, &mut wanted);
        if wanted == **set {
            return false;
        }
        let way = if count > before { "up" } else { "down" };
        let message = format!("Scaled {way} replica set {} from {before} to {count}", set.name());
        let told = (count != before).then_some((EventType::Normal, "ScalingReplicaSet", message));
        self.plan.push(Action::update(&wanted).tell(reference(self.deployment), told, None));
        if self.new.as_ref().is_some_and(|new| new.name() == wanted.name()) {
            self.is_new_changed = false;
        }
        self.replace(wanted);
        count != before
    }

    /// Strategy RollingUpdate.
    pub fn rolling(&mut self) {
        self.find_sets();
        let existed = self.new.is_some();
        if !self.ensure_new() || !existed {
            return;
        }
        let new = self.new.clone().expect("it was just ensured");
        let wanted = replicas(self.deployment);
        let all = total_size(&self.old) + size(&new);
        let target = if size(&new) > wanted { wanted } else { new_size(self.deployment, all, size(&new)) };
        if target != size(&new) && self.resize(&new, target) {
            return;
        }
        if !self.shrink_old() && progress::is_complete(self.deployment, &self.status) {
            self.cleanup();
        }
    }

    /// Scales old sets down as far as availability allows (`reconcileOldReplicaSets`). Returns whether it did.
    fn shrink_old(&mut self) -> bool {
        let new = self.new.clone().expect("old sets shrink in favour of a new one");
        if total_size(&self.old) == 0 {
            return false;
        }
        let least = replicas(self.deployment) - math::max_unavailable(self.deployment);
        let unavailable = size(&new) - available(&new);
        let most = total_size(&self.old) + size(&new) - least - unavailable;
        if most <= 0 {
            return false;
        }
        let mut changed = false;
        // First what is broken anyway.
        let mut down = 0;
        for set in self.old.clone() {
            let broken = (size(&set) - available(&set)).max(0);
            let count = broken.min(most - down);
            if count > 0 {
                down += count;
                changed |= self.resize(&set, size(&set) - count);
            }
        }
        // Then what works, as long as enough is available.
        // A set that has just been scaled down still counts the pods that are about to go: the simulation found
        // rollouts that went below the floor because of them.
        let staying = |set: &ReplicaSet| available(set).min(size(set));
        let mut spare = self.old.iter().map(|set| staying(set)).sum::<i32>() + staying(&new) - least;
        for set in self.old.clone() {
            let count = size(&set).min(spare);
            if count > 0 {
                spare -= count;
                changed |= self.resize(&set, size(&set) - count);
            }
        }
        changed
    }

    /// Strategy Recreate: first all old pods go, then the new ones come.
    pub fn recreate(&mut self, pods: &[Arc<Pod>]) {
        self.find_sets();
        let mut scaled = false;
        for set in self.old.clone() {
            if size(&set) > 0 {
                scaled |= self.resize(&set, 0);
            }
        }
        if scaled || self.old_pods_run(pods) {
            return;
        }
        let existed = self.new.is_some();
        if !self.ensure_new() || !existed {
            return;
        }
        let new = self.new.clone().expect("it was just ensured");
        if size(&new) != replicas(self.deployment) {
            self.resize(&new, replicas(self.deployment));
        } else if progress::is_complete(self.deployment, &self.status) {
            self.cleanup();
        }
    }

    fn old_pods_run(&self, pods: &[Arc<Pod>]) -> bool {
        let of_old = |pod: &Pod| {
            let owner = pod.controller().map(|owner| owner.uid.as_str());
            self.old.iter().any(|set| Some(set.uid()) == owner)
        };
        let counted = self.old.iter().filter_map(|set| set.status.as_ref()).any(|status| status.replicas > 0);
        counted || pods.iter().any(|pod| of_old(pod) && !is_finished(pod))
    }

    /// Brings the sets to a changed number, or a paused Deployment's (`scale`).
    pub fn scale(&mut self) {
        let wanted = replicas(self.deployment);
        let active: Vec<_> = self.old.iter().chain(&self.new).filter(|set| size(set) > 0).cloned().collect();
        let only = match active.as_slice() {
            [] => self.new.clone().or_else(|| self.old.last().cloned()),
            [one] => Some(one.clone()),
            _ => None,
        };
        if let Some(only) = only {
            if size(&only) != wanted || math::annotated(&only, math::DESIRED_ANNOTATION) != Some(wanted) {
                self.resize(&only, wanted);
            }
            return;
        }
        if self.new.as_ref().is_some_and(|new| is_saturated(self.deployment, new)) {
            for set in self.old.clone().into_iter().filter(|set| size(set) > 0) {
                self.resize(&set, 0);
            }
            return;
        }
        if !math::is_recreate(self.deployment) {
            self.scale_in_proportion(active);
        }
    }

    fn scale_in_proportion(&mut self, mut active: Vec<Arc<ReplicaSet>>) {
        let wanted = replicas(self.deployment);
        let most = if wanted > 0 { wanted.saturating_add(math::max_surge(self.deployment)) } else { 0 };
        let to_add = most - total_size(&active);
        // The largest first; of equal ones the newer when growing, the older when shrinking.
        active.sort_by(|a, b| {
            let by_age = age(a).cmp(&age(b));
            size(b).cmp(&size(a)).then(if to_add > 0 { by_age.reverse() } else { by_age })
        });
        let mut added = 0;
        let mut sizes = Vec::new();
        for set in &active {
            let part = proportion(set, self.deployment, to_add, added);
            added += part;
            sizes.push(size(set) + part);
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (set, count) in active.iter().zip(sizes) {
            self.resize(set, count);
        }
    }

    /// Deletes the oldest empty sets beyond `revisionHistoryLimit` (`cleanupDeployment`).
    pub fn cleanup(&mut self) {
        let limit = self.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
        if limit == i32::MAX {
            return;
        }
        let mut alive: Vec<_> = self.old.iter().filter(|set| !set.is_terminating()).cloned().collect();
        let surplus = alive.len().saturating_sub(usize::try_from(limit).unwrap_or_default());
        alive.sort_by_key(|set| (revision(set), age(set)));
        for set in alive.into_iter().take(surplus) {
            let status = set.status.clone().unwrap_or_default();
            let settled = set.metadata.generation <= status.observed_generation;
            if status.replicas == 0 && size(&set) == 0 && settled {
                self.plan.push(Action::delete(&*set));
            }
        }
    }

    /// Counts, `Progressing` and the rest of the status, and the plan is done.
    pub fn finish(mut self) -> Plan {
        let mut status = self.calculate();
        let old = self.status.clone();
        let all: Vec<_> = self.old.iter().chain(&self.new).cloned().collect();
        progress::roll(self.deployment, &old, &mut status, &all, self.new.as_deref(), self.now);
        if let Some(delay) = progress::next_check(self.deployment, &status, self.now) {
            self.plan.requeue(delay);
        }
        self.write_status(status);
        self.plan
    }

    /// Counts only: scaling or paused (`syncDeploymentStatus`).
    pub fn finish_status_only(mut self) -> Plan {
        let status = self.calculate();
        self.write_status(status);
        self.plan
    }

    fn calculate(&self) -> DeploymentStatus {
        let all: Vec<_> = self.old.iter().chain(&self.new).cloned().collect();
        progress::calculate(self.deployment, &self.status, &all, self.new.as_deref(), self.now)
    }

    fn write_status(&mut self, status: DeploymentStatus) {
        if let Some(new) = self.new.as_ref().filter(|_| self.is_new_changed) {
            self.plan.push(Action::update(&**new));
        }
        let mut updated = self.deployment.clone();
        if let Some(revision) = self.revision {
            let annotations = updated.metadata.annotations.get_or_insert_default();
            annotations.insert(REVISION_ANNOTATION.into(), revision.to_string());
        }
        updated.status = Some(status);
        if updated != *self.deployment {
            self.plan.push(Action::update_status(&updated));
        }
    }
}
