//! One round of a StatefulSet: which pods and claims are made, put right or deleted now (`updateStatefulSet`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{RollingUpdateStatefulSetStrategy, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use super::claims::{self, Policy};
use super::identity;
use super::revisions::Revisions;
use super::status::{is_available, is_rolling, runs};
use crate::client::recorder::{EventType, reference};
use crate::client::typed::Meta;
use crate::controllers::deployment::math::resolve;
use crate::controllers::plan::{Action, Plan, Step};
use crate::controllers::pod_status::{is_finished, phase};

/// A parallel set makes at most this many pods in a round (`MaxBatchSize`).
const BURST: usize = 500;

/// What a round knows.
pub struct Round<'a> {
    set: &'a StatefulSet,
    revisions: &'a Revisions,
    /// The ordinals that should exist.
    wanted: Range<i64>,
    /// The pods that should exist and do.
    pods: BTreeMap<i64, &'a Arc<Pod>>,
    /// Pods that should go.
    condemned: BTreeMap<i64, &'a Arc<Pod>>,
    /// Ordinals whose names are somebody else's.
    strangers: BTreeSet<i64>,
    claims: BTreeMap<&'a str, &'a PersistentVolumeClaim>,
    min_ready: i32,
    now: Timestamp,
}

impl<'a> Round<'a> {
    /// A round with the set's own pods, and ordinals whose names others have.
    pub fn new(
        set: &'a StatefulSet,
        revisions: &'a Revisions,
        pods: &'a [Arc<Pod>],
        strangers: BTreeSet<i64>,
        claims: &'a [Arc<PersistentVolumeClaim>],
        now: Timestamp,
    ) -> Self {
        let wanted = identity::wanted(set);
        let numbered = pods.iter().filter_map(|pod| Some((identity::ordinal_in(set, pod.name())?, pod)));
        let (pods, condemned) = numbered.partition(|(ordinal, _)| wanted.contains(ordinal));
        let claims = claims.iter().map(|claim| (claim.name(), &**claim)).collect();
        let min_ready = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or_default();
        Self { set, revisions, wanted, pods, condemned, strangers, claims, min_ready, now }
    }

    /// Decides: first what is missing, then what is too much, then what is old.
    pub fn work(&self, plan: &mut Plan) {
        let parallel =
            self.set.spec.as_ref().and_then(|spec| spec.pod_management_policy.as_deref()) == Some("Parallel");
        if parallel {
            self.all_replicas(plan);
        } else if !self.replicas_in_order(plan) {
            return;
        }
        for (ordinal, pod) in self.condemned.iter().rev() {
            self.keep_owners(plan, *ordinal, pod, true);
        }
        if parallel {
            let going = self.condemned.values().filter(|pod| !pod.is_terminating());
            let deletes: Vec<_> = going.map(|pod| self.delete(pod)).collect();
            if !deletes.is_empty() {
                plan.steps.push(Step::All(deletes));
            }
        } else if !self.condemned.is_empty() {
            return self.one_condemned(plan);
        }
        if is_rolling(self.set) {
            let deletes: Vec<_> = self.outdated(parallel).into_iter().map(|pod| self.delete(pod)).collect();
            if !deletes.is_empty() {
                plan.steps.push(Step::All(deletes));
            }
        }
    }

    fn rolling(&self) -> Option<&RollingUpdateStatefulSetStrategy> {
        self.set.spec.as_ref()?.update_strategy.as_ref()?.rolling_update.as_ref()
    }

    fn is_available(&self, pod: &Pod) -> bool {
        is_available(pod, self.min_ready, self.now)
    }

    /// Whether a pod that ended is put away now. (Also one that ended well: its pod goes on for ever.)
    fn put_away(&self, plan: &mut Plan, pod: &Pod) -> bool {
        if is_finished(pod) && !pod.is_terminating() {
            plan.push(self.delete(pod));
        }
        is_finished(pod)
    }

    /// Each replica waits for the one before it. Returns whether all are there, available and as they should be.
    fn replicas_in_order(&self, plan: &mut Plan) -> bool {
        for ordinal in self.wanted.clone() {
            let Some(pod) = self.pods.get(&ordinal) else {
                self.create(plan, &[ordinal]);
                return false;
            };
            if self.put_away(plan, pod) {
                return false;
            }
            self.complete_claims(plan, ordinal, pod);
            if pod.is_terminating() || !runs(pod) || !self.is_available(pod) {
                return false;
            }
            self.keep(plan, ordinal, pod);
        }
        true
    }

    fn all_replicas(&self, plan: &mut Plan) {
        let missing = self.wanted.clone().filter(|ordinal| !self.pods.contains_key(ordinal));
        let missing: Vec<i64> = missing.take(BURST).collect();
        self.create(plan, &missing);
        for (ordinal, pod) in &self.pods {
            if !self.put_away(plan, pod) {
                self.complete_claims(plan, *ordinal, pod);
                self.keep(plan, *ordinal, pod);
            }
        }
    }

    /// The highest ordinal goes first, and only when everything below is well; but what is itself unwell may go, and
    /// what has ended, which will never be well (Kubernetes would wait for it for ever).
    fn one_condemned(&self, plan: &mut Plan) {
        let is_unavailable = |pod: &Pod| !self.is_available(pod) || pod.is_terminating();
        let first_unavailable = self.condemned.values().find(|pod| is_unavailable(pod)).map(|pod| pod.uid());
        let Some(pod) = self.condemned.values().next_back().filter(|pod| !pod.is_terminating()) else { return };
        let may_go = is_finished(pod) || (runs(pod) && self.is_available(pod));
        if may_go || first_unavailable == Some(pod.uid()) {
            plan.push(self.delete(pod));
        }
    }

    /// Pods of an old revision that are deleted now.
    fn outdated(&self, parallel: bool) -> Vec<&'a Arc<Pod>> {
        let partition: i64 = self.rolling().and_then(|rolling| rolling.partition).unwrap_or_default().into();
        let from = self.wanted.start + partition;
        match self.rolling().and_then(|rolling| rolling.max_unavailable.as_ref()) {
            None => self.outdated_one_by_one(from).into_iter().collect(),
            Some(most) => {
                let replicas = i32::try_from(self.wanted.end - self.wanted.start).unwrap_or(i32::MAX);
                let most = resolve(Some(most), replicas, false).max(1);
                self.outdated_within(from, usize::try_from(most).unwrap_or(1), parallel)
            }
        }
    }

    fn is_outdated(&self, pod: &Pod) -> bool {
        identity::revision(pod) != self.revisions.update && !pod.is_terminating()
    }

    /// The last pod that is old, unless one behind it is not available yet.
    fn outdated_one_by_one(&self, from: i64) -> Option<&'a Arc<Pod>> {
        for ordinal in (from..self.wanted.end).rev() {
            let pod = *self.pods.get(&ordinal)?;
            if self.is_outdated(pod) {
                return Some(pod);
            }
            if !self.is_available(pod) || pod.is_terminating() {
                return None;
            }
        }
        None
    }

    /// As many old pods as may be unavailable beside those that are. In a parallel set those that are unavailable already
    /// go first and cost nothing: they may never become available (kubernetes/kubernetes#137666).
    fn outdated_within(&self, from: i64, most: usize, parallel: bool) -> Vec<&'a Arc<Pod>> {
        let is_well = |pod: &Pod| self.is_available(pod) && !pod.is_terminating();
        let well = self.pods.values().filter(|pod| is_well(pod)).count();
        let wanted = usize::try_from(self.wanted.end - self.wanted.start).unwrap_or_default();
        let room = most.saturating_sub(wanted.saturating_sub(well));
        let old = || self.pods.range(from..).rev().map(|(_, pod)| *pod).filter(|pod| self.is_outdated(pod));
        if !parallel {
            return old().take(room).collect();
        }
        let unwell = old().filter(|pod| !self.is_available(pod));
        unwell.chain(old().filter(|pod| self.is_available(pod)).take(room)).collect()
    }

    /// Whether a pod with this ordinal is made of the current revision (`newVersionedStatefulSetPod`).
    fn is_current(&self, ordinal: i64) -> bool {
        let below = match self.rolling() {
            Some(rolling) => rolling.partition.unwrap_or_default(),
            None if is_rolling(self.set) => {
                self.set.status.as_ref().and_then(|status| status.current_replicas).unwrap_or_default()
            }
            None => 0,
        };
        ordinal < self.wanted.start + i64::from(below)
    }

    fn create(&self, plan: &mut Plan, ordinals: &[i64]) {
        let (mut claims, mut pods) = (Vec::new(), Vec::new());
        for ordinal in ordinals.iter().filter(|ordinal| !self.strangers.contains(ordinal)) {
            let (template, revision) = match self.is_current(*ordinal) {
                true => (&self.revisions.current_template, &self.revisions.current),
                false => (&self.revisions.update_template, &self.revisions.update),
            };
            let pod = identity::new_pod(self.set, template, revision, *ordinal);
            if self.must_wait_for_claims(plan, *ordinal, &pod) {
                continue;
            }
            claims.extend(self.missing_claims(*ordinal, pod.name()));
            pods.push(Action::create(&pod).tolerate(&["AlreadyExists"]).tell(
                reference(self.set),
                Some((EventType::Normal, "SuccessfulCreate", self.about("create", pod.name(), "successful"))),
                Some((EventType::Warning, "FailedCreate", self.about("create", pod.name(), "failed error: {error}"))),
            ));
        }
        if !claims.is_empty() {
            plan.steps.push(Step::All(claims));
        }
        if !pods.is_empty() {
            plan.steps.push(Step::SlowStart(pods));
        }
    }

    fn about(&self, verb: &str, pod: &str, result: &str) -> String {
        format!("{verb} Pod {pod} in StatefulSet {} {result}", self.set.name())
    }

    fn delete(&self, pod: &Pod) -> Action {
        Action::delete(pod).tell(
            reference(self.set),
            Some((EventType::Normal, "SuccessfulDelete", self.about("delete", pod.name(), "successful"))),
            Some((EventType::Warning, "FailedDelete", self.about("delete", pod.name(), "failed error: {error}"))),
        )
    }

    /// Whether a claim of an earlier pod, or one that is being deleted, has to go first.
    fn must_wait_for_claims(&self, plan: &mut Plan, ordinal: i64, pod: &Pod) -> bool {
        let with_pod = Policy::of(self.set).with_pod;
        let names: Vec<String> = identity::claim_names(self.set, ordinal).collect();
        let known = || names.iter().filter_map(|name| self.claims.get(&**name));
        if with_pod && known().any(|claim| claims::is_stale(claim, pod)) {
            return true;
        }
        let going = known().find(|claim| claim.is_terminating());
        if let Some(claim) = going {
            let why = format!("failed error: pvc {} is being deleted", claim.name());
            let message = self.about("create", pod.name(), &why);
            plan.push(Action::event(reference(self.set), EventType::Warning, "FailedCreate", message));
        }
        going.is_some()
    }

    fn missing_claims(&self, ordinal: i64, pod: &str) -> Vec<Action> {
        let missing = identity::claims(self.set, ordinal).into_iter();
        let missing = missing.filter(|claim| !self.claims.contains_key(claim.name()));
        missing
            .map(|mut claim| {
                claim.metadata.owner_references = claims::first_owners(self.set);
                let (name, set) = (claim.name(), self.set.name());
                let success = format!("create Claim {name} Pod {pod} in StatefulSet {set} success");
                let failure = format!("create Claim {name} for Pod {pod} in StatefulSet {set} failed error: {{error}}");
                Action::create(&claim).tolerate(&["AlreadyExists"]).tell(
                    reference(self.set),
                    Some((EventType::Normal, "SuccessfulCreate", success)),
                    Some((EventType::Warning, "FailedCreate", failure)),
                )
            })
            .collect()
    }

    /// A pod that cannot start yet may lack a claim.
    fn complete_claims(&self, plan: &mut Plan, ordinal: i64, pod: &Pod) {
        if phase(pod) == "Pending" && !pod.is_terminating() {
            self.missing_claims(ordinal, pod.name()).into_iter().for_each(|action| plan.push(action));
            self.keep_owners(plan, ordinal, pod, false);
        }
    }

    /// Puts labels and volumes of a pod right, and the owners of its claims.
    fn keep(&self, plan: &mut Plan, ordinal: i64, pod: &Pod) {
        if pod.is_terminating() {
            return;
        }
        let (identity, storage) = (identity::has_identity(pod), identity::has_storage(self.set, pod, ordinal));
        if !identity || !storage {
            let mut wanted = pod.clone();
            if !identity {
                identity::set_identity(&mut wanted, ordinal);
            }
            if !storage {
                identity::set_storage(self.set, &mut wanted, ordinal);
                self.missing_claims(ordinal, pod.name()).into_iter().for_each(|action| plan.push(action));
            }
            plan.push(Action::update(&wanted).tell(
                reference(self.set),
                Some((EventType::Normal, "SuccessfulUpdate", self.about("update", pod.name(), "successful"))),
                Some((EventType::Warning, "FailedUpdate", self.about("update", pod.name(), "failed error: {error}"))),
            ));
        }
        self.keep_owners(plan, ordinal, pod, false);
    }

    fn keep_owners(&self, plan: &mut Plan, ordinal: i64, pod: &Pod, scaled_away: bool) {
        for name in identity::claim_names(self.set, ordinal) {
            let Some(claim) = self.claims.get(&*name) else { continue };
            let Some(correction) = claims::correction(claim, self.set, pod, scaled_away) else { continue };
            let mut wanted = (*claim).clone();
            wanted.metadata.owner_references = Some(correction.owners).filter(|owners| !owners.is_empty());
            let mut action = Action::update(&wanted).tolerate(&["NotFound"]);
            if correction.is_conflict {
                let message = format!(
                    "PersistentVolumeClaim {name} has a conflicting OwnerReference that acts as a manging controller, the \
                     retention policy is ignored for this claim"
                );
                let told = (EventType::Warning, "ConflictingController", message);
                action = action.tell(reference(self.set), Some(told), None);
            }
            plan.push(action);
        }
    }
}
