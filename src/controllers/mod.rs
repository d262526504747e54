//! Controllers: each watches objects and writes objects. `reconcile` is a pure decision; [`runner`] does the I/O.

pub mod admission_policy_status;
pub mod bootstrap_signer;
pub mod bootstrap_tokens;
pub mod caches;
pub mod cluster_role_aggregation;
pub mod cron_job;
pub mod csr_approving;
pub mod csr_cleaner;
pub mod csr_signing;
pub mod daemon_set;
pub mod deployment;
pub mod disruption;
pub mod endpoint_slice;
pub mod endpoint_slice_mirroring;
pub mod endpoints;
pub mod ephemeral_volume;
pub mod garbage_collector;
pub mod history;
pub mod horizontal_pod_autoscaler;
pub mod host_directories;
pub mod job;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod ownership;
pub mod persistent_volume;
pub mod plan;
pub mod pod_control;
pub mod pod_gc;
pub mod pod_status;
pub mod provisioner;
pub mod replica_set;
pub mod replicas;
pub mod replication_controller;
pub mod root_ca;
pub mod runner;
pub mod service_account;
pub mod service_backends;
pub mod stateful_set;
pub mod taint_eviction;
pub mod token_cleaner;
pub mod ttl_after_finished;
pub mod volume_protection;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::Kind;
use crate::client::cache::Key;
use crate::client::{Api, Cache, Factory, Object};
use crate::config::Networking;
use crate::env::Env;
use caches::{Caches, Graph};
use plan::Plan;

/// One controller.
pub trait Controller: Send + Sync + 'static {
    /// Its name, as in `kube-controller-manager --controllers`.
    fn name(&self) -> &'static str;
    /// The service account in `kube-system` as which it acts.
    fn account(&self) -> &'static str;
    /// The component that its events name.
    fn component(&self) -> &'static str {
        self.account()
    }
    /// Subscribes to what may concern its keys.
    fn watch(&self, caches: &Caches, enqueue: &Enqueue);
    /// Asks the API what no cache holds, just before a reconcile that needs it.
    fn ask<'a>(&'a self, _api: &'a dyn Api, _caches: &'a Caches, _key: &'a Key) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
    /// Decides what a key needs. Pure: what the caches hold and the time are all it knows.
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan;
}

/// All controllers.
pub const ALL: &[fn(&Options) -> Arc<dyn Controller>] = &[
    |_| Arc::new(deployment::DeploymentController),
    |_| Arc::new(replica_set::ReplicaSetController),
    |_| Arc::new(stateful_set::StatefulSetController),
    |_| Arc::new(daemon_set::DaemonSetController::default()),
    |_| Arc::new(replication_controller::ReplicationControllerController),
    |_| Arc::new(disruption::DisruptionController),
    |_| Arc::new(disruption::StaleConditionController),
    |_| Arc::new(job::JobController::default()),
    |_| Arc::new(job::OrphanController),
    |_| Arc::new(cron_job::CronJobController::default()),
    |_| Arc::new(ttl_after_finished::TtlAfterFinishedController),
    |_| Arc::new(horizontal_pod_autoscaler::HorizontalPodAutoscalerController::default()),
    |_| Arc::new(endpoints::EndpointsController),
    |_| Arc::new(endpoint_slice::EndpointSliceController),
    |_| Arc::new(endpoint_slice_mirroring::EndpointSliceMirroringController),
    |_| Arc::new(namespace::NamespaceController),
    |_| Arc::new(service_account::ServiceAccountController),
    |options| Arc::new(root_ca::RootCaController { certificate: options.root_ca.clone() }),
    |_| Arc::new(garbage_collector::GarbageCollector),
    |options| Arc::new(node_lifecycle::NodeLifecycleController::new(options.local_node.clone())),
    |options| Arc::new(node_ipam::NodeIpamController { networking: options.networking.clone() }),
    |_| Arc::new(csr_approving::CsrApprovingController),
    |options| Arc::new(csr_signing::CsrSigningController { authority: options.authority.clone() }),
    |_| Arc::new(csr_cleaner::CsrCleanerController),
    |_| Arc::new(token_cleaner::TokenCleanerController),
    |_| Arc::new(bootstrap_signer::BootstrapSignerController),
    |_| Arc::new(taint_eviction::TaintEvictionController::default()),
    |_| Arc::new(pod_gc::PodGcController),
    |_| Arc::new(persistent_volume::PersistentVolumeController),
    |_| Arc::new(volume_protection::VolumeProtectionController),
    |_| Arc::new(ephemeral_volume::EphemeralVolumeController),
    |_| Arc::new(cluster_role_aggregation::ClusterRoleAggregationController),
    |options| Arc::new(admission_policy_status::AdmissionPolicyStatusController { kinds: options.kinds.clone() }),
];

/// The user as whom the informers list and watch.
pub const INFORMER_USER: &str = "system:kube-controller-manager";

/// What the controllers are told from outside.
#[derive(Clone)]
pub struct Options {
    /// The certificate authority of the API server in PEM, for `kube-root-ca.crt`.
    pub root_ca: String,
    /// All kinds that the API serves, as they come and go (for garbage collection and namespace deletion).
    pub kinds: watch::Receiver<Arc<Vec<Arc<Kind>>>>,
    /// The node that runs in this process; empty: none.
    pub local_node: String,
    /// The addresses that nodes get.
    pub networking: Networking,
    /// Who signs certificates.
    pub authority: Arc<csr_signing::Authority>,
}

/// Running controllers.
pub struct Handle {
    stop: CancellationToken,
    tasks: TaskTracker,
    factory: Factory,
    informers: JoinSet<()>,
}

impl Handle {
    /// Tells whether controllers run, also after this handle is gone.
    pub fn running(&self) -> impl Fn() -> bool + Send + 'static {
        let tasks = self.tasks.clone();
        move || !tasks.is_empty()
    }

    /// Lets the plans in work finish, then stops the informers.
    pub async fn stop(mut self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.factory.stop();
        self.informers.shutdown().await;
    }
}

/// Starts all controllers. `api_for_user` gives the API as a user such as
/// `system:serviceaccount:kube-system:deployment-controller`. Inside a tokio runtime.
pub fn start(api_for_user: impl Fn(&str) -> Arc<dyn Api>, env: Env, options: Options) -> Handle {
    let reader = api_for_user(INFORMER_USER);
    let factory = Factory::new(reader.clone());
    let graph = Graph::default();
    graph.refresh(&options.kinds.borrow().clone());
    let mut informers = JoinSet::new();
    informers.spawn(graph.clone().follow(reader, options.kinds.clone()));
    let caches = Caches::new(&factory, graph);
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    for make in ALL {
        let controller = make(&options);
        let user = format!("system:serviceaccount:kube-system:{}", controller.account());
        let context =
            runner::Context { caches: caches.clone(), env: env.clone(), stop: stop.clone(), tasks: tasks.clone() };
        runner::spawn(controller, api_for_user(&user), context);
    }
    Handle { stop, tasks, factory, informers }
}

type Add = Arc<dyn Fn(Key) + Send + Sync>;
type AddAfter = Arc<dyn Fn(Key, Duration) + Send + Sync>;

/// Where [`Controller::watch`] puts keys.
#[derive(Clone)]
pub struct Enqueue {
    add: Add,
    add_after: AddAfter,
}

impl Enqueue {
    /// From the two ways to add.
    pub fn new(
        add: impl Fn(Key) + Send + Sync + 'static,
        add_after: impl Fn(Key, Duration) + Send + Sync + 'static,
    ) -> Self {
        Self { add: Arc::new(add), add_after: Arc::new(add_after) }
    }
    /// Adds a key.
    pub fn add(&self, key: Key) {
        (self.add)(key);
    }
    /// Adds a key after a delay: changes within it are handled together.
    pub fn add_after(&self, key: Key, delay: Duration) {
        (self.add_after)(key, delay);
    }
    /// Adds the key of every object that changes.
    pub fn on_change<T: Object>(&self, cache: &Cache<T>) {
        let enqueue = self.clone();
        cache.subscribe(move |change| enqueue.add(Key::of(&**change.object())));
    }
}
