//! The controllers and the scheduler against the real API server over HTTPS, with a node that only pretends: every
//! write passes admission, defaults and validation.

use std::sync::Arc;

use axum::body::Body;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController,
    Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

use mini::apiserver::testing::{self, TestServer};
use mini::apiserver::{Aggregated, AggregatedApi, Options, User};
use mini::client::https::{Access, HttpsApi};
use mini::client::typed::{Meta, Typed, gvr};
use mini::client::{Api, Cache, Client, DeleteOptions, Factory, Key, ListOptions, Patch};
use mini::env::{Env, rfc3339};
use mini::{controllers, scheduler};

const NAMESPACE: &str = "shop";

struct Cluster {
    _server: TestServer,
    api: Arc<dyn Api>,
    client: Client,
    factory: Factory,
    controllers: controllers::Handle,
    scheduler: scheduler::Handle,
}

impl Cluster {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut Options)) -> Self {
        let env = Env::real();
        let server = testing::start_with(testing::store(&env).await, env.clone(), change).await;
        let access = Access {
            server: format!("https://{}", server.address),
            ca_pem: server.ca_pem.clone().into_bytes(),
            cert_pem: server.client_cert_pem.clone().into_bytes(),
            key_pem: server.client_key_pem.clone().into_bytes(),
            token: String::new(),
        };
        let api: Arc<dyn Api> = Arc::new(HttpsApi::new(&access, "test", true).expect("a client"));
        let options = controllers::Options {
            root_ca: "the authority".into(),
            kinds: server.server.served_kinds(),
            local_node: "node-1".into(),
            networking: mini::config::Config::new("mini").networking(),
            authority: Default::default(),
        };
        let controllers = controllers::start(|_| api.clone(), env.clone(), options);
        let scheduler = scheduler::start(api.clone(), env);
        let factory = Factory::new(api.clone());
        let client = Client::new(api.clone());
        let cluster = Self { _server: server, api, client, factory, controllers, scheduler };
        cluster.add_node("node-1").await;
        cluster.run_pods();
        cluster
    }

    async fn create<T: Typed>(&self, namespace: &str, object: Value) {
        self.api.create(&gvr::<T>(), namespace, "", "", object).await.unwrap_or_else(|error| panic!("{error}"));
    }

    async fn add_node(&self, name: &str) {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        self.create::<Node>("", node).await;
        let amounts = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
        let now = rfc3339(Env::real().now());
        let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now, "lastTransitionTime": now});
        let status = json!({"status": {"allocatable": amounts, "capacity": amounts, "conditions": [ready]}});
        self.client.patch_status::<Node>("", name, Patch::Strategic(status)).await.expect("patched");
    }

    /// Says of every pod that it runs, and lets every deleted one go.
    fn run_pods(&self) {
        let (client, mut changes) = (self.client.clone(), self.factory.cache::<Pod>().changes());
        tokio::spawn(async move {
            let mut address = 0;
            while let Some(change) = changes.recv().await {
                let Some(pod) = change.new else { continue };
                let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                let runs = phase.is_some_and(|phase| phase != "Pending");
                if bound && pod.is_terminating() {
                    let options = DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
                    let _ = client.delete::<Pod>(pod.namespace(), pod.name(), &options).await;
                } else if bound && !runs {
                    address += 1;
                    let ip = format!("10.244.0.{address}");
                    let ready =
                        json!({"type": "Ready", "status": "True", "lastTransitionTime": rfc3339(Env::real().now())});
                    let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [ready]}});
                    let _ = client.patch_status::<Pod>(pod.namespace(), pod.name(), Patch::Strategic(status)).await;
                }
            }
        });
    }

    /// Waits for the cache to show what is wanted; the test runner's patience is the limit.
    async fn until<T: Typed>(&self, want: impl Fn(&Cache<T>) -> bool) {
        let cache = self.factory.cache::<T>();
        cache.synced().await;
        let mut progress = cache.progress();
        while !want(&cache) {
            progress.changed().await.expect("the cache lives");
        }
    }

    async fn patch_deployment(&self, patch: Value) {
        self.client.patch::<Deployment>(NAMESPACE, "web", Patch::Strategic(patch)).await.expect("patched");
    }

    /// Waits until an event says this: events are written in the background.
    async fn until_told(&self, namespace: &str, reason: &str, says: impl Fn(&str) -> bool) {
        let fits =
            |event: &Event| event.reason.as_deref() == Some(reason) && event.message.as_deref().is_some_and(&says);
        self.until::<Event>(|cache| cache.in_namespace(namespace).iter().any(|event| fits(event))).await;
    }
}

fn complete(replicas: i32, image: &'static str) -> impl Fn(&Cache<Deployment>) -> bool {
    move |cache| {
        let Some(deployment) = cache.get(&Key::new(NAMESPACE, "web")) else { return false };
        let status = deployment.status.clone().unwrap_or_default();
        let spec = deployment.spec.as_ref().expect("a spec");
        let used = spec.template.spec.as_ref().and_then(|spec| spec.containers[0].image.clone());
        status.observed_generation == deployment.metadata.generation
            && used.as_deref() == Some(image)
            && [status.replicas, status.updated_replicas, status.available_replicas] == [Some(replicas); 3]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_lives_its_life() {
    let cluster = Cluster::start().await;
    cluster
        .create::<Namespace>("", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}))
        .await;
    cluster.until::<ServiceAccount>(|cache| cache.get(&Key::new(NAMESPACE, "default")).is_some()).await;
    cluster.until::<ConfigMap>(|cache| cache.get(&Key::new(NAMESPACE, "kube-root-ca.crt")).is_some()).await;

    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
    cluster.create::<Deployment>(NAMESPACE, deployment).await;
    cluster.until(complete(3, "i:1")).await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    cluster.create::<Service>(NAMESPACE, service).await;
    let sliced = |count: usize| {
        move |cache: &Cache<EndpointSlice>| {
            let slices = cache.in_namespace(NAMESPACE);
            slices.iter().map(|slice| slice.endpoints.len()).sum::<usize>() == count
        }
    };
    cluster.until(sliced(3)).await;
    cluster
        .until::<Endpoints>(|cache| {
            let endpoints = cache.get(&Key::new(NAMESPACE, "web"));
            let subsets = endpoints.and_then(|endpoints| endpoints.subsets.clone()).unwrap_or_default();
            subsets.iter().filter_map(|subset| subset.addresses.as_ref()).map(Vec::len).sum::<usize>() == 3
        })
        .await;

    cluster
        .patch_deployment(json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i:2"}]}}}}))
        .await;
    cluster.until(complete(3, "i:2")).await;
    cluster.patch_deployment(json!({"spec": {"replicas": 5}})).await;
    cluster.until(complete(5, "i:2")).await;
    cluster.until(sliced(5)).await;
    cluster.until::<ReplicaSet>(|cache| cache.in_namespace(NAMESPACE).len() == 2).await;

    // Deleted in the background: sets and pods follow.
    cluster.client.delete::<Deployment>(NAMESPACE, "web", &DeleteOptions::default()).await.expect("deleted");
    cluster.until::<ReplicaSet>(|cache| cache.in_namespace(NAMESPACE).is_empty()).await;
    cluster.until::<Pod>(|cache| cache.in_namespace(NAMESPACE).is_empty()).await;
    cluster.until(sliced(0)).await;
    cluster
        .until_told(NAMESPACE, "ScalingReplicaSet", |message| {
            message.starts_with("Scaled up replica set web-") && message.ends_with("from 0 to 3")
        })
        .await;
    cluster.until_told(NAMESPACE, "ScalingReplicaSet", |message| message.ends_with("from 3 to 5")).await;
    cluster.until_told(NAMESPACE, "SuccessfulCreate", |message| message.starts_with("Created pod: web-")).await;

    // The namespace goes with all that is left in it.
    cluster.client.delete::<Namespace>("", NAMESPACE, &DeleteOptions::default()).await.expect("deleted");
    cluster.until::<Namespace>(|cache| cache.get(&Key::new("", NAMESPACE)).is_none()).await;
    let left: Vec<Service> = cluster.client.list(NAMESPACE, &ListOptions::default()).await.expect("a list");
    assert!(left.is_empty());
    cluster.scheduler.stop().await;
    cluster.controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_in_the_foreground_wait_and_orphans_stay() {
    let cluster = Cluster::start().await;
    cluster.until::<ServiceAccount>(|cache| cache.get(&Key::new("default", "default")).is_some()).await;
    for name in ["waits", "leaves"] {
        let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
        cluster.create::<ReplicaSet>("default", set).await;
    }
    let ready = |name: &'static str| {
        move |cache: &Cache<ReplicaSet>| {
            let set = cache.get(&Key::new("default", name));
            set.is_some_and(|set| set.status.as_ref().and_then(|status| status.ready_replicas) == Some(2))
        }
    };
    cluster.until(ready("waits")).await;
    cluster.until(ready("leaves")).await;
    let policy = |policy| DeleteOptions { propagation_policy: Some(policy), ..Default::default() };
    cluster.client.delete::<ReplicaSet>("default", "waits", &policy("Foreground")).await.expect("deleted");
    cluster.client.delete::<ReplicaSet>("default", "leaves", &policy("Orphan")).await.expect("deleted");
    cluster.until::<ReplicaSet>(|cache| cache.in_namespace("default").is_empty()).await;
    let pods = |cache: &Cache<Pod>, name: &str| {
        cache.select("default", |pod| pod.labels().get("app").map(String::as_str) == Some(name))
    };
    cluster.until::<Pod>(|cache| pods(cache, "waits").is_empty()).await;
    cluster.until::<Pod>(|cache| pods(cache, "leaves").iter().all(|pod| pod.owners().is_empty())).await;
    assert_eq!(pods(&cluster.factory.cache::<Pod>(), "leaves").len(), 2);
    cluster.scheduler.stop().await;
    cluster.controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_get_directories_and_give_them_back() {
    let cluster = Cluster::start().await;
    cluster.until::<ServiceAccount>(|cache| cache.get(&Key::new("default", "default")).is_some()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let directories = Arc::new(controllers::host_directories::HostDirectories::new(folder.path()));
    let (enabled, is_enabled) = tokio::sync::watch::channel(false);
    let provisioner = controllers::provisioner::start(cluster.api.clone(), Env::real(), is_enabled, directories);
    for (name, mode) in [("at-once", "Immediate"), ("later", "WaitForFirstConsumer")] {
        let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
            "provisioner": "k8s.io/minikube-hostpath", "volumeBindingMode": mode, "reclaimPolicy": "Delete",
            "allowVolumeExpansion": mode == "Immediate"});
        cluster.create::<StorageClass>("", class).await;
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"storageClassName": name, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        cluster.create::<PersistentVolumeClaim>("default", claim).await;
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "containers": [{"name": "c", "image": "i:1"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": name}}]}});
        cluster.create::<Pod>("default", pod).await;
    }
    enabled.send_replace(true);
    let phase = |name: &'static str| {
        move |cache: &Cache<PersistentVolumeClaim>| {
            let claim = cache.get(&Key::new("default", name));
            claim.is_some_and(|claim| claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound"))
        }
    };
    for (bound, name) in ["at-once", "later"].into_iter().enumerate() {
        cluster.until(phase(name)).await;
        let directories = std::fs::read_dir(folder.path().join("default")).expect("the namespace has volumes").count();
        assert!(directories > bound, "a directory for each bound claim");
        cluster
            .until::<Pod>(move |cache| {
                let pod = cache.get(&Key::new("default", name));
                pod.is_some_and(|pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running"))
            })
            .await;
    }
    grow(&cluster).await;
    // Deleted before its claim, a volume stays until the claim is gone, and its directory goes with it.
    cluster.until::<PersistentVolume>(|cache| cache.list().len() == 2).await;
    let volumes = cluster.factory.cache::<PersistentVolume>().list();
    let first = volumes.first().expect("there are two").name().to_owned();
    cluster.client.delete::<PersistentVolume>("", &first, &DeleteOptions::default()).await.expect("deleted");
    for name in ["at-once", "later"] {
        let now = DeleteOptions::default();
        cluster.client.delete::<PersistentVolumeClaim>("default", name, &now).await.expect("deleted");
        let kept = cluster.api.get(&gvr::<PersistentVolumeClaim>(), "default", name).await.expect("a pod uses it");
        assert_eq!(kept["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
        assert!(kept["metadata"]["deletionTimestamp"].is_string());
        cluster.client.delete::<Pod>("default", name, &now).await.expect("deleted");
    }
    cluster.until::<PersistentVolumeClaim>(|cache| cache.is_empty()).await;
    cluster.until::<PersistentVolume>(|cache| cache.is_empty()).await;
    assert!(!folder.path().join("default").exists());
    provisioner.stop().await;
    cluster.scheduler.stop().await;
    cluster.controllers.stop().await;
}

/// Claims grow where their class allows it, and not beyond the disk.
async fn grow(cluster: &Cluster) {
    let ask = |name: &'static str, size: &'static str| {
        let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}});
        let api = cluster.api.clone();
        async move { api.patch(&gvr::<PersistentVolumeClaim>(), "default", name, "", Patch::Merge(patch)).await }
    };
    let refused = ask("later", "2Gi").await.expect_err("the class does not allow it");
    assert_eq!(
        refused.message,
        "persistentvolumeclaims \"later\" is forbidden: only dynamically provisioned pvc can be resized and the \
         storageclass that provisions the pvc must support resize"
    );
    ask("at-once", "2Gi").await.expect("the class allows it");
    let status = |cache: &Cache<PersistentVolumeClaim>| {
        cache.get(&Key::new("default", "at-once")).and_then(|claim| claim.status.clone()).unwrap_or_default()
    };
    let has = move |cache: &Cache<PersistentVolumeClaim>, size: &str| {
        status(cache).capacity.is_some_and(|capacity| capacity.get("storage").is_some_and(|q| q.0 == size))
    };
    cluster.until::<PersistentVolumeClaim>(move |cache| has(cache, "2Gi")).await;
    ask("at-once", "4Ei").await.expect("it is asked for");
    let told = move |cache: &Cache<PersistentVolumeClaim>| {
        let conditions = status(cache).conditions.unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == "ControllerResizeError")
    };
    cluster.until::<PersistentVolumeClaim>(told).await;
    ask("at-once", "3Gi").await.expect("less may be asked for, but not less than there is");
    cluster.until::<PersistentVolumeClaim>(move |cache| has(cache, "3Gi") && !told(cache)).await;
}

fn pod_template(app: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"restartPolicy": "Always",
        "containers": [{"name": "c", "image": "i:1", "resources": {"requests": {"cpu": "100m"}}}]}})
}

fn healthy(name: &'static str, allowed: i32) -> impl Fn(&Cache<PodDisruptionBudget>) -> bool {
    move |cache| {
        let status = cache.get(&Key::new("default", name)).and_then(|budget| budget.status.clone());
        status.is_some_and(|status| status.current_healthy == 3 && status.disruptions_allowed == allowed)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_refuses_evictions_until_the_controller_has_replaced_the_pod() {
    let cluster = Cluster::start().await;
    cluster.until::<ServiceAccount>(|cache| cache.get(&Key::new("default", "default")).is_some()).await;
    let controller = json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "web"},
        "spec": {"replicas": 3, "template": pod_template("web")}});
    cluster.create::<ReplicationController>("default", controller).await;
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    cluster.create::<PodDisruptionBudget>("default", budget).await;
    let pods = cluster.factory.cache::<Pod>();
    let names = || pods.in_namespace("default").iter().map(|pod| pod.name().to_owned()).collect::<Vec<_>>();
    let evict = async |name: String| {
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        cluster.api.create(&gvr::<Pod>(), "default", &name, "eviction", eviction).await
    };
    for _ in 0..2 {
        cluster.until(healthy("web", 1)).await;
        let all = names();
        evict(all[0].clone()).await.expect("one pod may go");
        let refused = evict(all[1].clone()).await.expect_err("no second one");
        assert_eq!((refused.code, refused.reason.as_str()), (429, "TooManyRequests"));
        assert_eq!(refused.message, "Cannot evict pod as it would violate the pod's disruption budget.");
        assert_eq!(refused.details["causes"][0]["reason"], "DisruptionBudget");
        cluster.until::<Pod>(|cache| cache.get(&Key::new("default", &*all[0])).is_none()).await;
    }
    cluster
        .until::<ReplicationController>(|cache| {
            let status = cache.get(&Key::new("default", "web")).and_then(|controller| controller.status.clone());
            status.is_some_and(|status| status.ready_replicas == Some(3))
        })
        .await;
    cluster.scheduler.stop().await;
    cluster.controllers.stop().await;
}

impl Cluster {
    /// Ends the next pod of an application that runs.
    async fn end_a_pod(&self, app: &'static str, phase: &'static str) {
        let running = |cache: &Cache<Pod>| {
            let runs = |pod: &Pod| pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"));
            let mine = |pod: &Pod| pod.labels().get("app").map(String::as_str) == Some(app);
            cache.select("default", |pod| mine(pod) && runs(pod) && !pod.is_terminating()).first().cloned()
        };
        self.until::<Pod>(|cache| running(cache).is_some()).await;
        let pod = running(&self.factory.cache::<Pod>()).expect("it was just seen");
        let code = i32::from(phase == "Failed");
        let state = json!({"terminated": {"exitCode": code, "reason": "Done"}});
        let container =
            json!({"name": "c", "state": state, "ready": false, "restartCount": 0, "image": "i:1", "imageID": ""});
        let patch = Patch::Strategic(json!({"status": {"phase": phase, "containerStatuses": [container]}}));
        self.client.patch_status::<Pod>("default", pod.name(), patch).await.expect("patched");
        // Seen by the cache before the next one is looked for.
        let name = pod.name().to_owned();
        self.until::<Pod>(move |cache| {
            let pod = cache.get(&Key::new("default", &*name));
            pod.is_none_or(|pod| pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some(phase)))
        })
        .await;
    }
}

fn job(name: &'static str, want: impl Fn(&Job) -> bool) -> impl Fn(&Cache<Job>) -> bool {
    move |cache| cache.get(&Key::new("default", name)).is_some_and(|job| want(&job))
}

fn conditions(job: &Job) -> Vec<String> {
    let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|condition| condition.status == "True").map(|condition| condition.type_.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_count_their_pods_and_end() {
    let cluster = Cluster::start().await;
    cluster.until::<ServiceAccount>(|cache| cache.get(&Key::new("default", "default")).is_some()).await;
    let create = async |name: &'static str, mut spec: Value| {
        spec["template"] = pod_template(name);
        spec["template"]["spec"]["restartPolicy"] = "Never".into();
        let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec});
        cluster.create::<Job>("default", job).await;
    };
    create("indexed", json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed", "suspend": true})).await;
    cluster.until(job("indexed", |job| conditions(job) == ["Suspended"])).await;
    let resume = Patch::Merge(json!({"spec": {"suspend": false}}));
    cluster.client.patch::<Job>("default", "indexed", resume).await.expect("patched");
    for phase in ["Failed", "Succeeded", "Succeeded", "Succeeded"] {
        cluster.end_a_pod("indexed", phase).await;
    }
    cluster.until(job("indexed", |job| conditions(job) == ["SuccessCriteriaMet", "Complete"])).await;
    let done = cluster.factory.cache::<Job>().get(&Key::new("default", "indexed")).expect("it is there");
    let status = done.status.clone().unwrap_or_default();
    assert_eq!((status.succeeded, status.failed), (Some(3), Some(1)));
    assert_eq!(status.completed_indexes.as_deref(), Some("0-2"));
    let pods = cluster.factory.cache::<Pod>().select("default", |pod| pod.metadata.finalizers.is_some());
    assert!(pods.is_empty(), "finished pods are let go");

    create("fails", json!({"backoffLimit": 0, "ttlSecondsAfterFinished": 0})).await;
    cluster.end_a_pod("fails", "Failed").await;
    cluster.until::<Job>(|cache| cache.get(&Key::new("default", "fails")).is_none()).await;
    cluster
        .until::<Pod>(|cache| !cache.list().iter().any(|pod| pod.labels().get("app").is_some_and(|app| app == "fails")))
        .await;
    let failed = "Job has reached the specified backoff limit";
    cluster.until_told("default", "BackoffLimitExceeded", |message| message == failed).await;
    cluster.until_told("default", "Completed", |message| message == "Job completed").await;
    cluster.scheduler.stop().await;
    cluster.controllers.stop().await;
}

/// Pods that all use the same.
struct Metrics(std::sync::Mutex<&'static str>);

#[async_trait::async_trait]
impl AggregatedApi for Metrics {
    fn resources(&self) -> Vec<Value> {
        vec![
            json!({"name": "pods", "singularName": "", "namespaced": true, "kind": "PodMetrics", "verbs": ["get", "list"]}),
        ]
    }
    async fn handle(&self, _: &User, request: http::Request<Body>) -> http::Response<Body> {
        assert!(request.uri().query().is_some_and(|query| query.contains("labelSelector=app%3Dweb")));
        let cpu = *self.0.lock().expect("no panic");
        let item = json!({"metadata": {"name": "web-0", "namespace": "default"}, "timestamp": "2026-01-02T03:04:05Z", "window": "10s",
            "containers": [{"name": "c", "usage": {"cpu": cpu}}]});
        let list =
            json!({"kind": "PodMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": [item]});
        http::Response::new(Body::from(list.to_string()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_autoscaler_follows_the_metrics_of_its_pods() {
    let metrics = Arc::new(Metrics(std::sync::Mutex::new("300m")));
    let aggregated = Aggregated::default();
    let cluster = Cluster::start_with({
        let aggregated = aggregated.clone();
        |options| options.aggregated = aggregated
    })
    .await;
    cluster.until::<ServiceAccount>(|cache| cache.get(&Key::new("default", "default")).is_some()).await;
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"},
        "spec": {"replicas": 1, "serviceName": "web", "selector": {"matchLabels": {"app": "web"}}, "template": pod_template("web")}});
    cluster.create::<StatefulSet>("default", set).await;
    cluster
        .until::<StatefulSet>(|cache| {
            let set = cache.get(&Key::new("default", "web"));
            set.is_some_and(|set| set.status.as_ref().and_then(|status| status.ready_replicas) == Some(1))
        })
        .await;
    let hpa = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"}, "spec": {
        "maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web"},
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "100m"}}}]}});
    cluster.create::<HorizontalPodAutoscaler>("default", hpa).await;
    let condition = |kind: &'static str, status: &'static str, reason: &'static str| {
        move |cache: &Cache<HorizontalPodAutoscaler>| {
            let Some(hpa) = cache.get(&Key::new("default", "web")) else { return false };
            let conditions = hpa.status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.into_iter().any(|c| c.type_ == kind && c.status == status && c.reason.as_deref() == Some(reason))
        }
    };
    cluster.until(condition("ScalingActive", "False", "FailedGetResourceMetric")).await;
    aggregated.enable("metrics.k8s.io", "v1beta1", metrics);
    // A change of the specification is looked at without waiting for the period. The pod has been started just now.
    let patch = Patch::Merge(json!({"spec": {"maxReplicas": 2, "metrics": [
        {"type": "ContainerResource", "containerResource": {"name": "memory", "container": "c", "target": {"type": "AverageValue", "averageValue": "1"}}},
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "100m"}}}]}}));
    cluster.client.patch::<HorizontalPodAutoscaler>("default", "web", patch).await.expect("patched");
    cluster.until(condition("ScalingActive", "False", "FailedGetContainerResourceMetric")).await;
    let patch = Patch::Merge(json!({"spec": {"minReplicas": 2}}));
    cluster.client.patch::<HorizontalPodAutoscaler>("default", "web", patch).await.expect("patched");
    cluster.until(condition("AbleToScale", "True", "SucceededRescale")).await;
    cluster
        .until::<StatefulSet>(|cache| {
            let set = cache.get(&Key::new("default", "web"));
            set.is_some_and(|set| set.spec.as_ref().and_then(|spec| spec.replicas) == Some(2))
        })
        .await;
    let size = "New size: 2; reason: Current number of replicas below Spec.MinReplicas";
    cluster.until_told("default", "SuccessfulRescale", |message| message == size).await;
    cluster.scheduler.stop().await;
    cluster.controllers.stop().await;
}

fn stateful_set(replicas: i32, image: &str, when_deleted: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"}, "spec": {
        "serviceName": "nginx", "replicas": replicas, "selector": {"matchLabels": {"app": "nginx"}},
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": when_deleted},
        "template": {"metadata": {"labels": {"app": "nginx"}}, "spec": {"containers": [
            {"name": "c", "image": image, "volumeMounts": [{"name": "www", "mountPath": "/www"}]}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "www"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "storageClassName": "standard", "resources": {"requests": {"storage": "1Gi"}}}}]}})
}

/// The set has rolled out: so many pods of this image, all ready.
fn rolled_out(replicas: i32, image: &'static str) -> impl Fn(&Cache<StatefulSet>) -> bool {
    move |cache| {
        let Some(set) = cache.get(&Key::new("default", "web")) else { return false };
        let (status, spec) = (set.status.clone().unwrap_or_default(), set.spec.clone().expect("a spec"));
        let used = spec.template.spec.as_ref().and_then(|spec| spec.containers[0].image.clone());
        let updated = [Some(status.replicas), status.ready_replicas, status.updated_replicas] == [Some(replicas); 3];
        used.as_deref() == Some(image)
            && updated
            && status.observed_generation == set.metadata.generation
            && status.current_revision == status.update_revision
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_lives_its_life() {
    let cluster = Cluster::start().await;
    cluster.until::<ServiceAccount>(|cache| cache.get(&Key::new("default", "default")).is_some()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let directories = Arc::new(controllers::host_directories::HostDirectories::new(folder.path()));
    let (_enabled, is_enabled) = tokio::sync::watch::channel(true);
    let provisioner = controllers::provisioner::start(cluster.api.clone(), Env::real(), is_enabled, directories);
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "standard"},
        "provisioner": "k8s.io/minikube-hostpath"});
    cluster.create::<StorageClass>("", class).await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "nginx"},
        "spec": {"clusterIP": "None", "selector": {"app": "nginx"}, "ports": [{"port": 80, "name": "web"}]}});
    cluster.create::<Service>("default", service).await;

    cluster.create::<StatefulSet>("default", stateful_set(2, "i:1", "Retain")).await;
    cluster.until(rolled_out(2, "i:1")).await;
    cluster
        .until::<EndpointSlice>(|cache| {
            let slices = cache.in_namespace("default");
            let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter());
            let mut names: Vec<_> = endpoints.filter_map(|endpoint| endpoint.hostname.clone()).collect();
            names.sort();
            names == ["web-0", "web-1"]
        })
        .await;
    for expected in [
        "create Claim www-web-0 Pod web-0 in StatefulSet web success",
        "create Pod web-1 in StatefulSet web successful",
    ] {
        cluster.until_told("default", "SuccessfulCreate", |message| message == expected).await;
    }

    let scale = Patch::Merge(json!({"spec": {"replicas": 3}}));
    cluster.api.patch(&gvr::<StatefulSet>(), "default", "web", "scale", scale).await.expect("scaled");
    cluster.until(rolled_out(3, "i:1")).await;
    let image =
        Patch::Json(json!([{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "i:2"}]));
    cluster.client.patch::<StatefulSet>("default", "web", image).await.expect("patched");
    cluster.until(rolled_out(3, "i:2")).await;

    // `kubectl rollout undo` sends the data of the old revision as a strategic patch.
    let revisions: Vec<ControllerRevision> =
        cluster.client.list("default", &ListOptions::default()).await.expect("a list");
    assert_eq!(revisions.len(), 2);
    let first = revisions.iter().find(|revision| revision.revision == 1).expect("the first revision");
    let data = first.data.clone().expect("it stores a template").0;
    cluster.client.patch::<StatefulSet>("default", "web", Patch::Strategic(data)).await.expect("undone");
    cluster.until(rolled_out(3, "i:1")).await;
    cluster
        .until::<ControllerRevision>(|cache| {
            let mut numbers: Vec<i64> =
                cache.in_namespace("default").iter().map(|revision| revision.revision).collect();
            numbers.sort_unstable();
            numbers == [2, 3]
        })
        .await;

    // Left behind and taken up again: web-1 is the same pod as before.
    let uid = |cache: &Cache<Pod>, name: &str| cache.get(&Key::new("default", name)).map(|pod| pod.uid().to_owned());
    let orphan = DeleteOptions { propagation_policy: Some("Orphan"), ..Default::default() };
    cluster.client.delete::<StatefulSet>("default", "web", &orphan).await.expect("deleted");
    cluster.until::<StatefulSet>(|cache| cache.is_empty()).await;
    cluster.client.delete::<Pod>("default", "web-0", &DeleteOptions::default()).await.expect("deleted");
    cluster.until::<Pod>(|cache| cache.len() == 2 && cache.list().iter().all(|pod| pod.owners().is_empty())).await;
    let before = uid(&cluster.factory.cache::<Pod>(), "web-1");
    cluster.create::<StatefulSet>("default", stateful_set(2, "i:1", "Delete")).await;
    cluster.until(rolled_out(2, "i:1")).await;
    cluster.until::<Pod>(|cache| cache.len() == 2).await;
    assert_eq!(uid(&cluster.factory.cache::<Pod>(), "web-1"), before);

    // All claims were kept so far; now they go with the set, also that of the pod that was scaled away.
    let owners = |cache: &Cache<PersistentVolumeClaim>| {
        cache.list().iter().filter(|claim| claim.controller().is_some_and(|owner| owner.kind == "StatefulSet")).count()
    };
    cluster.until::<PersistentVolumeClaim>(|cache| owners(cache) == 3).await;
    cluster.client.delete::<StatefulSet>("default", "web", &DeleteOptions::default()).await.expect("deleted");
    cluster.until::<Pod>(|cache| cache.is_empty()).await;
    cluster.until::<PersistentVolumeClaim>(|cache| cache.is_empty()).await;
    cluster.until::<PersistentVolume>(|cache| cache.is_empty()).await;
    cluster.until::<ControllerRevision>(|cache| cache.is_empty()).await;
    provisioner.stop().await;
    cluster.scheduler.stop().await;
    cluster.controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_run_where_they_should() {
    let cluster = Cluster::start().await;
    cluster.until::<ServiceAccount>(|cache| cache.get(&Key::new("default", "default")).is_some()).await;
    cluster.add_node("node-2").await;
    let set = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"}, "spec": {
        "selector": {"matchLabels": {"app": "agent"}},
        "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
    cluster.create::<DaemonSet>("default", set).await;
    let counts = |desired: i32, updated: i32| {
        move |cache: &Cache<DaemonSet>| {
            let Some(set) = cache.get(&Key::new("default", "agent")) else { return false };
            let status = set.status.clone().unwrap_or_default();
            let numbers = [status.desired_number_scheduled, status.current_number_scheduled, status.number_ready];
            numbers == [desired; 3]
                && status.updated_number_scheduled == Some(updated)
                && status.number_unavailable.is_none()
                && status.observed_generation == set.metadata.generation
        }
    };
    let nodes = |cache: &Cache<Pod>| {
        let on = |pod: &Arc<Pod>| pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        let mut names: Vec<String> = cache.list().iter().map(on).collect();
        names.sort();
        names
    };
    cluster.until(counts(2, 2)).await;
    assert_eq!(nodes(&cluster.factory.cache::<Pod>()), ["node-1", "node-2"]);

    let patch = |patch: Value| Patch::Strategic(patch);
    let image = patch(json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i:2"}]}}}}));
    let changed = cluster.client.patch::<DaemonSet>("default", "agent", image).await.expect("patched");
    assert_eq!(changed.annotation("deprecated.daemonset.template.generation"), Some("2"));
    cluster.until(counts(2, 2)).await;
    let images = |cache: &Cache<Pod>| {
        let image = |pod: &Arc<Pod>| pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone());
        cache.list().iter().all(|pod| image(pod).as_deref() == Some("i:2"))
    };
    cluster.until::<Pod>(|cache| cache.len() == 2 && images(cache)).await;

    // A node that daemons do not tolerate loses its pod and gets one again.
    let taint = patch(json!({"spec": {"taints": [{"key": "broken", "effect": "NoExecute"}]}}));
    cluster.client.patch::<Node>("", "node-2", taint).await.expect("tainted");
    cluster.until::<Pod>(|cache| nodes(cache) == ["node-1"]).await;
    cluster.until(counts(1, 1)).await;
    cluster.client.patch::<Node>("", "node-2", Patch::Merge(json!({"spec": {"taints": null}}))).await.expect("patched");
    cluster.until::<Pod>(|cache| nodes(cache) == ["node-1", "node-2"]).await;
    cluster.until(counts(2, 2)).await;

    cluster.client.delete::<DaemonSet>("default", "agent", &DeleteOptions::default()).await.expect("deleted");
    cluster.until::<Pod>(|cache| cache.is_empty()).await;
    cluster.until::<ControllerRevision>(|cache| cache.is_empty()).await;
    cluster.until_told("default", "SuccessfulDelete", |message| message.starts_with("Deleted pod: agent-")).await;
    cluster.scheduler.stop().await;
    cluster.controllers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_told_what_its_kinds_do_not_have() {
    let cluster = Cluster::start().await;
    // The example of the page "Validating Admission Policy".
    let policy = |expression: &str| {
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": "deploy-replica-policy"}, "spec": {"matchConstraints": {"resourceRules": [{"apiGroups": ["apps"],
                "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]}]},
                "validations": [{"expression": expression}]}})
    };
    cluster.create::<ValidatingAdmissionPolicy>("", policy("object.replicas > 1")).await;
    let status = |cache: &Cache<ValidatingAdmissionPolicy>| {
        let policy = cache.get(&Key::new("", "deploy-replica-policy"))?;
        let status = policy.status.clone()?;
        Some((status.observed_generation?, status.type_checking?.expression_warnings.unwrap_or_default()))
    };
    let told = move |cache: &Cache<ValidatingAdmissionPolicy>| {
        status(cache).is_some_and(|(generation, warnings)| {
            generation == 1
                && warnings.len() == 1
                && warnings[0]
                    .warning
                    .contains("apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'replicas'")
        })
    };
    cluster.until(told).await;
    let mended = Patch::Merge(json!({"spec": policy("object.spec.replicas > 1")["spec"]}));
    cluster.client.patch::<ValidatingAdmissionPolicy>("", "deploy-replica-policy", mended).await.expect("patched");
    cluster.until(move |cache| status(cache) == Some((2, Vec::new()))).await;
}
