//! What must hold of a Deployment at every step, and at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Endpoints, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;

use mini::api::meta;
use mini::client::Object;
use mini::client::fake::{FakeApi, Logged};
use mini::client::typed::gvr;
use mini::controllers::deployment::math::{max_surge, max_unavailable, replicas};

/// The truth as the API's history tells it, and what it must not become.
#[derive(Default)]
pub struct Invariants {
    pods: BTreeMap<String, Arc<Value>>,
    sets: BTreeMap<String, Arc<Value>>,
    deployment: Option<Deployment>,
    /// The largest size that each set (by uid) ever had.
    largest: BTreeMap<String, i64>,
    /// The most pods that any specification of the Deployment allowed.
    most: i64,
    /// The least number of available pods, while nothing but the controllers acts.
    floor: Option<i64>,
}

pub fn owner(object: &Value) -> Option<&str> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    let controllers: Vec<_> = owners.iter().filter(|owner| owner["controller"] == true).collect();
    assert!(controllers.len() < 2, "{} has two controllers", meta::name(object));
    controllers.first()?["uid"].as_str()
}

pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

pub fn is_finished(pod: &Value) -> bool {
    ["Succeeded", "Failed"].iter().any(|phase| pod["status"]["phase"] == *phase)
}

pub fn is_active(pod: &Value) -> bool {
    !meta::is_terminating(pod)
}

impl Invariants {
    /// Something else than the controllers takes pods away: availability is not theirs to keep until they have caught up.
    pub fn disturbed(&mut self) {
        self.floor = None;
    }

    /// One change of the truth.
    pub fn see(&mut self, change: &Logged) {
        let object = &change.object;
        let uid = meta::uid(object).to_owned();
        match (&*change.gvr.resource, change.deleted) {
            ("pods", true) => drop(self.pods.remove(&uid)),
            ("pods", false) => drop(self.pods.insert(uid, object.clone())),
            ("replicasets", true) => drop(self.sets.remove(&uid)),
            ("replicasets", false) => {
                let size = object["spec"]["replicas"].as_i64().unwrap_or(1);
                let largest = self.largest.entry(uid.clone()).or_default();
                *largest = size.max(*largest);
                if change.old.as_ref().is_some_and(|old| owner(old).is_none()) && owner(object).is_some() {
                    // Left behind by an orphaning delete and adopted with the size that it has.
                    self.most += size;
                }
                self.sets.insert(uid, object.clone());
            }
            ("deployments", deleted) => self.see_deployment(object, deleted),
            _ => return,
        }
        self.check_sets();
        self.check_deployment();
    }

    fn see_deployment(&mut self, object: &Value, deleted: bool) {
        let before = self.deployment.take();
        if deleted || meta::is_terminating(object) {
            self.most = 0;
            self.floor = None;
            return;
        }
        let deployment = Deployment::parse(object).expect("a deployment");
        let allowed = i64::from(replicas(&deployment)) + i64::from(max_surge(&deployment));
        if before.as_ref().is_none_or(|before| replicas(before) != replicas(&deployment)) {
            self.floor = None;
        }
        self.most = self.most.max(allowed);
        self.deployment = Some(deployment);
    }

    /// No set has more pods than it was ever asked for: a duplicate creation would show here.
    fn check_sets(&self) {
        for (uid, set) in &self.sets {
            let pods = self.pods.values().filter(|pod| owner(pod) == Some(uid) && is_active(pod)).count();
            let largest = self.largest.get(uid).copied().unwrap_or_default();
            assert!(
                i64::try_from(pods).expect("few") <= largest,
                "{} has {pods} pods, {largest} at most",
                meta::name(set)
            );
        }
    }

    /// No more pods than replicas and surge, and no fewer available than allowed.
    fn check_deployment(&mut self) {
        let Some(deployment) = &self.deployment else { return };
        let uid = deployment.metadata.uid.as_deref();
        let sets: BTreeSet<&String> =
            self.sets.iter().filter(|(_, set)| owner(set) == uid).map(|(uid, _)| uid).collect();
        let wanted: i64 = sets.iter().map(|uid| self.sets[*uid]["spec"]["replicas"].as_i64().unwrap_or(1)).sum();
        assert!(wanted <= self.most, "the sets want {wanted} pods, {} at most", self.most);
        let mine = self
            .pods
            .values()
            .filter(|pod| is_active(pod) && owner(pod).is_some_and(|uid| sets.contains(&uid.to_owned())));
        let ready = i64::try_from(mine.filter(|pod| is_ready(pod)).count()).expect("few");
        let is_rolling = !mini::controllers::deployment::math::is_recreate(deployment);
        match self.floor {
            Some(floor) => assert!(ready >= floor, "only {ready} pods are available, {floor} at least"),
            // All are there: from here on the controllers must keep enough of them.
            None if is_rolling && ready >= i64::from(replicas(deployment)) && self.caught_up(&sets) => {
                self.floor = Some(i64::from(replicas(deployment) - max_unavailable(deployment)));
            }
            None => {}
        }
    }

    /// Whether the controllers have seen and done all that was asked for lately.
    fn caught_up(&self, sets: &BTreeSet<&String>) -> bool {
        let observed = |generation: Option<i64>, status: Option<i64>| generation.is_some() && generation == status;
        let deployment = self.deployment.as_ref().expect("it is asked about one");
        let status = deployment.status.as_ref().and_then(|status| status.observed_generation);
        let available = sets.iter().filter_map(|uid| self.sets[*uid]["status"]["availableReplicas"].as_i64());
        available.sum::<i64>() >= i64::from(replicas(deployment))
            && observed(deployment.metadata.generation, status)
            && sets.iter().map(|uid| &self.sets[*uid]).all(|set| {
                let (spec, status) = (&set["spec"], &set["status"]);
                observed(set["metadata"]["generation"].as_i64(), status["observedGeneration"].as_i64())
                    && spec["replicas"].as_i64() == status["replicas"].as_i64()
            })
    }

    /// After everything has settled.
    pub fn at_rest(&self, api: &FakeApi) {
        let uids: BTreeSet<String> = [gvr::<Pod>(), gvr::<ReplicaSet>(), gvr::<Deployment>()]
            .iter()
            .flat_map(|gvr| api.all(gvr))
            .map(|object| meta::uid(&object).to_owned())
            .collect();
        for object in [gvr::<Pod>(), gvr::<ReplicaSet>()].iter().flat_map(|gvr| api.all(gvr)) {
            let lost = owner(&object).filter(|owner| !uids.contains(*owner));
            assert!(lost.is_none(), "{} outlives its owner", meta::name(&object));
            assert!(!meta::is_terminating(&object), "{} does not go", meta::name(&object));
        }
        for set in api.all(&gvr::<ReplicaSet>()) {
            let pods = self.pods.values().filter(|pod| owner(pod) == Some(meta::uid(&set))).count();
            assert_eq!(set["spec"]["replicas"], pods, "{}", meta::name(&set));
            assert_eq!(set["status"]["replicas"], pods, "{}", meta::name(&set));
        }
        self.check_rollout(api);
        check_endpoints(api);
    }

    fn check_rollout(&self, api: &FakeApi) {
        let Some(deployment) = api.all(&gvr::<Deployment>()).first().cloned() else { return };
        if deployment["spec"]["paused"] == true {
            return;
        }
        let sets = api.all(&gvr::<ReplicaSet>());
        let image = |object: &Value| object["spec"]["template"]["spec"]["containers"][0]["image"].clone();
        let mine = sets.iter().filter(|set| owner(set) == Some(meta::uid(&deployment)));
        for set in mine.filter(|set| image(set) != image(&deployment)) {
            assert_eq!(set["spec"]["replicas"], 0, "{} is old", meta::name(set));
        }
        let wanted = &deployment["spec"]["replicas"];
        let status = |field: &str| deployment["status"][field].as_i64().unwrap_or_default();
        for field in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
            assert_eq!(*wanted, status(field), "{field} of {deployment}");
        }
        assert_eq!(deployment["status"]["observedGeneration"], deployment["metadata"]["generation"]);
        let limit = deployment["spec"]["revisionHistoryLimit"].as_u64().expect("it is set");
        let old =
            sets.iter().filter(|set| owner(set) == Some(meta::uid(&deployment)) && image(set) != image(&deployment));
        assert!(old.count() as u64 <= limit, "the history is cleaned up");
    }
}

/// Both kinds of endpoints show the pods that are ready, each once.
fn check_endpoints(api: &FakeApi) {
    let pods = api.all(&gvr::<Pod>());
    let mut ready: Vec<&str> = pods.iter().filter(|pod| is_ready(pod)).map(|pod| meta::uid(pod)).collect();
    ready.sort_unstable();
    let endpoints = api.all(&gvr::<Endpoints>());
    let subsets = endpoints.iter().flat_map(|object| object["subsets"].as_array().into_iter().flatten());
    let addresses = subsets.flat_map(|subset| subset["addresses"].as_array().into_iter().flatten());
    let slices = api.all(&gvr::<EndpointSlice>());
    let sliced = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    let sliced = sliced.filter(|endpoint| endpoint["conditions"]["ready"] == true);
    let uids = |backends: &mut dyn Iterator<Item = &Value>| {
        let mut uids: Vec<String> =
            backends.map(|backend| backend["targetRef"]["uid"].as_str().expect("a pod").to_owned()).collect();
        uids.sort_unstable();
        uids
    };
    assert_eq!(uids(&mut addresses.into_iter()), ready, "Endpoints");
    assert_eq!(uids(&mut sliced.into_iter()), ready, "EndpointSlices");
}
