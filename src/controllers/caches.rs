//! The informer caches that controllers read: typed ones, and the metadata of every kind for owners and namespaces.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, RwLock};

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Secret,
    Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::storage::v1::StorageClass;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::{Gvr, Kind};
use crate::client::cache::{Cache, Seen};
use crate::client::typed::{PartialObject, gvr};
use crate::client::{Factory, ListOptions, informer};

macro_rules! caches {
    ($($(#[$doc:meta])* $field:ident: $kind:ty,)*) => {
        /// Caches of the kinds that controllers read. Cloning shares them.
        #[derive(Clone, Default)]
        pub struct Caches {
            $($(#[$doc])* pub $field: Cache<$kind>,)*
            /// The metadata of all kinds.
            pub graph: Graph,
        }

        impl Caches {
            /// The shared caches of `factory`, and the metadata caches.
            pub fn new(factory: &Factory, graph: Graph) -> Self {
                Self { $($field: factory.cache::<$kind>(),)* graph }
            }
            /// Waits until every cache has had its first list.
            pub async fn synced(&self) {
                $(self.$field.synced().await;)*
                // A custom resource whose conversion fails must not hold up everything.
                for node in self.graph.kinds().iter().filter(|node| !node.custom) {
                    node.cache.synced().await;
                }
            }
            /// The caches that show writes of a resource: the typed one and the metadata.
            pub fn showing(&self, resource: &Gvr) -> Vec<Arc<dyn Seen>> {
                let mut found: Vec<Arc<dyn Seen>> = Vec::new();
                $(if *resource == gvr::<$kind>() {
                    found.push(Arc::new(self.$field.clone()));
                })*
                if let Some(node) = self.graph.of(resource) {
                    found.push(Arc::new(node.cache.clone()));
                }
                found
            }
            /// Replaces what the caches of a resource hold (simulations; informers do it otherwise).
            pub fn relist(&self, resource: &Gvr, objects: &[Arc<serde_json::Value>], revision: u64) {
                $(if *resource == gvr::<$kind>() {
                    relist(&self.$field, objects, revision);
                })*
                if let Some(node) = self.graph.of(resource) {
                    relist(&node.cache, objects, revision);
                }
            }
            /// Puts an object, or what is left of it, into the caches of its resource (simulations; informers do it otherwise).
            pub fn apply(&self, resource: &Gvr, object: &serde_json::Value, deleted: bool) {
                $(if *resource == gvr::<$kind>() {
                    apply(&self.$field, object, deleted);
                })*
                if let Some(node) = self.graph.of(resource) {
                    apply(&node.cache, object, deleted);
                }
            }
        }
    };
}

caches! {
    /// Namespaces.
    namespaces: Namespace,
    /// Pods.
    pods: Pod,
    /// Nodes.
    nodes: Node,
    /// Node leases (and others).
    leases: Lease,
    /// Services.
    services: Service,
    /// Endpoints.
    endpoints: Endpoints,
    /// EndpointSlices.
    endpoint_slices: EndpointSlice,
    /// Deployments.
    deployments: Deployment,
    /// ReplicaSets.
    replica_sets: ReplicaSet,
    /// StatefulSets.
    stateful_sets: StatefulSet,
    /// DaemonSets.
    daemon_sets: DaemonSet,
    /// ControllerRevisions.
    controller_revisions: ControllerRevision,
    /// ReplicationControllers.
    replication_controllers: ReplicationController,
    /// CronJobs.
    cron_jobs: CronJob,
    /// Jobs.
    jobs: Job,
    /// HorizontalPodAutoscalers.
    horizontal_pod_autoscalers: HorizontalPodAutoscaler,
    /// PodDisruptionBudgets.
    budgets: PodDisruptionBudget,
    /// ServiceAccounts.
    service_accounts: ServiceAccount,
    /// ConfigMaps.
    config_maps: ConfigMap,
    /// Secrets.
    secrets: Secret,
    /// CertificateSigningRequests.
    certificate_signing_requests: CertificateSigningRequest,
    /// PersistentVolumes.
    volumes: PersistentVolume,
    /// PersistentVolumeClaims.
    claims: PersistentVolumeClaim,
    /// StorageClasses.
    storage_classes: StorageClass,
    /// ClusterRoles.
    cluster_roles: ClusterRole,
    /// ValidatingAdmissionPolicies.
    admission_policies: ValidatingAdmissionPolicy,
}

fn apply<T: crate::client::Object>(cache: &Cache<T>, object: &serde_json::Value, deleted: bool) {
    let parsed = T::parse(object).expect("objects of a simulation have their kind's shape");
    if deleted { cache.remove(&parsed) } else { cache.put(Arc::new(parsed)) }
}

fn relist<T: crate::client::Object>(cache: &Cache<T>, objects: &[Arc<serde_json::Value>], revision: u64) {
    let parse = |object: &Arc<serde_json::Value>| {
        Arc::new(T::parse(object).expect("objects of a simulation have their kind's shape"))
    };
    cache.replace(objects.iter().map(parse).collect(), revision);
}

/// One kind in the [`Graph`].
pub struct GraphKind {
    /// The resource.
    pub gvr: Gvr,
    /// The kind's name.
    pub kind: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Whether a CustomResourceDefinition makes it.
    pub custom: bool,
    /// The metadata of its objects.
    pub cache: Cache<PartialObject>,
}

type OnKind = Box<dyn Fn(&Arc<GraphKind>) + Send + Sync>;

#[derive(Default)]
struct GraphState {
    kinds: RwLock<Arc<Vec<Arc<GraphKind>>>>,
    handlers: Mutex<Vec<OnKind>>,
}

/// The metadata of all objects that can own or be owned, kind by kind. Kinds come and go; cloning shares them.
#[derive(Clone, Default)]
pub struct Graph(Arc<GraphState>);

const UNPOISONED: &str = "no panic while the graph is held";

impl Graph {
    /// Of these kinds.
    pub fn new(kinds: Vec<GraphKind>) -> Self {
        let graph = Self::default();
        *graph.0.kinds.write().expect(UNPOISONED) = Arc::new(kinds.into_iter().map(Arc::new).collect());
        graph
    }
    /// The kinds as they are now.
    pub fn kinds(&self) -> Arc<Vec<Arc<GraphKind>>> {
        self.0.kinds.read().expect(UNPOISONED).clone()
    }
    /// Calls `handler` for every kind, and for each that comes later.
    pub fn on_kind(&self, handler: impl Fn(&Arc<GraphKind>) + Send + Sync + 'static) {
        let mut handlers = self.0.handlers.lock().expect(UNPOISONED);
        self.kinds().iter().for_each(&handler);
        handlers.push(Box::new(handler));
    }
    /// Keeps the graph equal to what is served, with an informer for each kind, until it is dropped.
    pub async fn follow(self, api: Arc<dyn crate::client::Api>, mut served: watch::Receiver<Arc<Vec<Arc<Kind>>>>) {
        let mut informers: HashMap<Gvr, AbortOnDrop> = HashMap::new();
        loop {
            let now = served.borrow_and_update().clone();
            for gone in self.refresh(&now) {
                informers.remove(&gone.gvr);
            }
            for kind in self.kinds().iter() {
                let (gvr, cache) = (kind.gvr.clone(), kind.cache.clone());
                informers.entry(gvr.clone()).or_insert_with(|| {
                    let run = informer::run(api.clone(), gvr, String::new(), ListOptions::default(), cache);
                    AbortOnDrop(tokio::spawn(run))
                });
            }
            if served.changed().await.is_err() {
                // Nothing changes any more; the informers go on.
                std::future::pending::<()>().await;
            }
        }
    }
    /// Takes the kinds that are served now; returns those that went.
    pub fn refresh(&self, served: &[Arc<Kind>]) -> Vec<Arc<GraphKind>> {
        let (come, gone) = self.difference(&listed(served));
        self.change(&come, &gone);
        gone
    }
    /// The kinds to add and those to drop.
    fn difference(&self, wanted: &[Arc<Kind>]) -> (Vec<Arc<GraphKind>>, Vec<Arc<GraphKind>>) {
        let have = self.kinds();
        let same = |node: &GraphKind, kind: &Kind| {
            node.gvr == kind.gvr && node.kind == kind.kind && node.namespaced == kind.namespaced
        };
        let new = wanted.iter().filter(|kind| !have.iter().any(|node| same(node, kind)));
        let come = new.map(|kind| {
            Arc::new(GraphKind {
                gvr: kind.gvr.clone(),
                kind: kind.kind.to_string(),
                namespaced: kind.namespaced,
                custom: kind.strategy.custom().is_some(),
                cache: Cache::default(),
            })
        });
        let gone = have.iter().filter(|node| !wanted.iter().any(|kind| same(node, kind))).cloned();
        (come.collect(), gone.collect())
    }
    /// Adds and drops kinds. Whoever waits for the cache of one that went waits no longer.
    fn change(&self, come: &[Arc<GraphKind>], gone: &[Arc<GraphKind>]) {
        if come.is_empty() && gone.is_empty() {
            return;
        }
        let handlers = self.0.handlers.lock().expect(UNPOISONED);
        let stay = |node: &&Arc<GraphKind>| !gone.iter().any(|other| Arc::ptr_eq(node, other));
        let kinds = self.kinds().iter().filter(stay).chain(come).cloned().collect();
        *self.0.kinds.write().expect(UNPOISONED) = Arc::new(kinds);
        for kind in gone {
            kind.cache.replace(Vec::new(), u64::MAX);
        }
        for kind in come {
            handlers.iter().for_each(|handler| handler(kind));
        }
    }
    /// The kind of a resource.
    pub fn of(&self, resource: &Gvr) -> Option<Arc<GraphKind>> {
        self.kinds().iter().find(|node| node.gvr == *resource).cloned()
    }
    /// The kind with this name in this group, whatever the version.
    pub fn named(&self, api_version: &str, kind: &str) -> Option<Arc<GraphKind>> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        self.kinds().iter().find(|node| node.kind == kind && node.gvr.group == group).cloned()
    }
}

/// The kinds that can be listed, watched and deleted, each in one version. Events own nothing and are owned by nothing.
fn listed(served: &[Arc<Kind>]) -> Vec<Arc<Kind>> {
    let mut found: Vec<Arc<Kind>> = Vec::new();
    for kind in served {
        let real = ["list", "watch", "delete"].iter().all(|verb| kind.verbs.contains(verb));
        let known = |other: &Arc<Kind>| other.gvr.group == kind.gvr.group && other.gvr.resource == kind.gvr.resource;
        if real && kind.gvr.resource != "events" && !found.iter().any(known) {
            found.push(kind.clone());
        }
    }
    found
}

/// A task that ends with its handle.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
