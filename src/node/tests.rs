//! The whole agent on a fake runtime, fake images, fake network and the in-memory API.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::image::{FakeImages, ImageConfig};
use super::network::FakeNetwork;
use super::runtime::FakeRuntime;
use super::{Machine, Node, Options};
use crate::api::{Gvr, meta};
use crate::client::fake::{FakeApi, Logged};
use crate::client::{Api as _, DeleteOptions};
use crate::env::Env;

const PODS: Gvr = Gvr::new("", "v1", "pods");
const EVENTS: Gvr = Gvr::new("", "v1", "events");

pub(super) struct World {
    api: Arc<FakeApi>,
    pub(super) runtime: Arc<FakeRuntime>,
    images: Arc<FakeImages>,
    pub(super) network: Arc<FakeNetwork>,
    pub(super) node: Arc<Node>,
    _dir: tempfile::TempDir,
}

fn options(dir: &std::path::Path) -> Options {
    Options {
        name: "mini".into(),
        internal_ips: vec!["192.168.49.2".parse().expect("ip")],
        external_ip: None,
        pod_cidr: "10.244.0.0/24".into(),
        cluster_domain: "cluster.local".into(),
        cluster_dns: "10.96.0.10".parse().expect("ip"),
        host_dns: Default::default(),
        pods: dir.join("pods"),
        pod_logs: dir.join("logs"),
        seccomp: dir.join("seccomp"),
        app_armor: super::app_armor::AppArmor::new(dir, true),
        machine: Machine { cpus: 2, memory: 1 << 32, ..Machine::default() },
        parts: Vec::new(),
        lease_duration: None,
    }
}

pub(super) async fn world() -> World {
    world_with(|_| {}).await
}

async fn world_with(change: impl FnOnce(&mut Options)) -> World {
    world_in(Env::real(), change).await
}

async fn world_in(env: Env, change: impl FnOnce(&mut Options)) -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let api = FakeApi::new(env.clone());
    let runtime = FakeRuntime::new(env.clone());
    let images = Arc::new(FakeImages::default());
    images.publish("busybox:1", ImageConfig::default());
    let network = Arc::new(FakeNetwork::default());
    let mut options = options(dir.path());
    change(&mut options);
    let node = Node::start(options, api.clone(), env, runtime.clone(), images.clone(), network.clone()).await;
    World { api, runtime, images, network, node: node.expect("a node"), _dir: dir }
}

impl World {
    /// The directory of pods and logs.
    pub(super) fn dir(&self) -> &std::path::Path {
        self._dir.path()
    }

    pub(super) fn create(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["nodeName"] = "mini".into();
        self.api.seed(
            &PODS,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "d"}, "spec": spec}),
        );
    }

    pub(super) fn pod(&self, name: &str) -> Option<Arc<Value>> {
        self.api.all(&PODS).into_iter().find(|pod| meta::name(pod) == name)
    }

    /// Waits for something to become true of a pod; every change of the API wakes it.
    async fn until(&self, what: &str, condition: impl Fn(&World) -> bool) {
        let patience = async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let pods: Vec<_> = self.api.all(&PODS);
        tokio::time::timeout(Duration::from_secs(30), patience)
            .await
            .unwrap_or_else(|_| panic!("never: {what}; {pods:#?} {:#?}", self.runtime.calls()));
    }

    pub(super) async fn until_phase(&self, name: &str, phase: &str) {
        self.until(phase, |w| w.pod(name).is_some_and(|pod| pod["status"]["phase"] == phase)).await;
    }

    pub(super) fn container_id(&self, name: &str, index: usize) -> String {
        let pod = self.pod(name).expect("the pod");
        let id = pod["status"]["containerStatuses"][index]["containerID"].as_str().expect("an id").to_owned();
        id.strip_prefix("mini://").expect("the scheme").to_owned()
    }

    /// What the pod's status has said of a container, one after the other: a reason, or that it runs.
    fn shown(&self, pod: &str, list: &str) -> Vec<String> {
        let of_pod = |logged: &Logged| logged.gvr == PODS && meta::name(&logged.object) == pod;
        let mut words: Vec<String> = Vec::new();
        for logged in self.api.log_since(0).iter().filter(|logged| of_pod(logged)) {
            let state = &logged.object["status"][list][0]["state"];
            let reason =
                [&state["waiting"]["reason"], &state["terminated"]["reason"]].into_iter().find_map(Value::as_str);
            let word = reason.or(state["running"].is_object().then_some("Running"));
            words.extend(word.map(str::to_owned));
        }
        words.dedup();
        words
    }

    fn events(&self, pod: &str) -> Vec<String> {
        let events = self.api.all(&EVENTS);
        let mut of_pod: Vec<_> = events.iter().filter(|e| e["involvedObject"]["name"] == pod).collect();
        of_pod.sort_by_key(|e| meta::resource_version(e).parse::<u64>().unwrap_or(0));
        of_pod
            .iter()
            .map(|e| format!("{} {}", e["reason"].as_str().unwrap_or(""), e["message"].as_str().unwrap_or("")))
            .collect()
    }
}

#[tokio::test]
async fn a_pod_runs_and_is_deleted() {
    let w = world().await;
    w.create("web", json!({"containers": [{"name": "c", "image": "busybox:1"}]}));
    w.until_phase("web", "Running").await;
    let pod = w.pod("web").expect("the pod");
    let status = &pod["status"];
    assert_eq!(status["podIP"], "10.244.0.1");
    assert_eq!(status["hostIP"], "192.168.49.2");
    assert_eq!(status["containerStatuses"][0]["image"], "docker.io/library/busybox:1");
    w.until("ready", |w| {
        let pod = w.pod("web").expect("the pod");
        let conditions = pod["status"]["conditions"].as_array().expect("conditions");
        conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    })
    .await;
    w.until("events", |w| w.events("web").len() >= 4).await;
    let events = w.events("web");
    assert_eq!(events[0], "Pulling Pulling image \"busybox:1\"");
    assert!(events[1].starts_with("Pulled Successfully pulled image \"busybox:1\" in "), "{}", events[1]);
    assert!(events[1].ends_with("including waiting). Image size: 1048576 bytes."), "{}", events[1]);
    assert_eq!(events[2..4], ["Created Container created", "Started Container started"]);
    let options = DeleteOptions { grace_period_seconds: Some(30), ..DeleteOptions::default() };
    w.api.delete(&PODS, "d", "web", &options).await.expect("deleted");
    w.until("gone", |w| w.pod("web").is_none()).await;
    w.until("detached", |w| w.network.attached() == 0).await;
    assert!(w.events("web").contains(&"Killing Stopping container c".to_owned()));
    w.until("forgotten", |w| w.node.pods().is_empty()).await;
}

#[tokio::test]
async fn a_status_that_says_nothing_new_is_not_written() {
    let w = world().await;
    w.create("web", json!({"containers": [{"name": "c", "image": "busybox:1"}]}));
    w.until_phase("web", "Running").await;
    w.until("settled", |w| w.events("web").len() >= 4).await;
    let before = w.api.revision();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let changes: Vec<_> = w.api.log_since(before).into_iter().filter(|l| l.gvr == PODS).collect();
    assert!(changes.is_empty(), "{changes:?}");
}

#[tokio::test]
async fn a_failed_container_restarts_at_once_and_then_backs_off() {
    let w = world().await;
    w.create("crash", json!({"containers": [{"name": "c", "image": "busybox:1"}]}));
    w.until_phase("crash", "Running").await;
    let first = w.container_id("crash", 0);
    w.runtime.finish(&first, 1);
    let restarted = |w: &World| {
        let pod = w.pod("crash").expect("the pod");
        let c = &pod["status"]["containerStatuses"][0];
        c["restartCount"] == 1 && c["state"]["running"].is_object()
    };
    w.until("restarted", restarted).await;
    let second = w.container_id("crash", 0);
    assert_ne!(first, second);
    w.runtime.finish(&second, 2);
    w.until("waiting", |w| {
        let pod = w.pod("crash").expect("the pod");
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    })
    .await;
    let pod = w.pod("crash").expect("the pod");
    let c = &pod["status"]["containerStatuses"][0];
    let uid = meta::uid(&pod);
    assert_eq!(
        c["state"]["waiting"]["message"],
        format!("back-off 10s restarting failed container=c pod=crash_d({uid})")
    );
    assert_eq!(c["lastState"]["terminated"]["exitCode"], 2);
    assert_eq!(pod["status"]["phase"], "Running");
    let event = format!("BackOff Back-off restarting failed container c in pod crash_d({uid})");
    w.until("the event", |w| w.events("crash").contains(&event)).await;
    let shown = ["ContainerCreating", "Running", "Error", "Running", "Error", "CrashLoopBackOff"];
    assert_eq!(w.shown("crash", "containerStatuses"), shown);
}

#[tokio::test]
async fn containers_that_are_started_again_show_how_they_ended() {
    let w = world().await;
    w.create("done", json!({"containers": [{"name": "c", "image": "busybox:1"}]}));
    w.until_phase("done", "Running").await;
    w.runtime.finish(&w.container_id("done", 0), 0);
    let restarts = |w: &World, pod: &str, list: &str| {
        let c = w.pod(pod).expect("the pod")["status"][list][0].clone();
        c["state"]["running"].is_object() && c["restartCount"] == 1
    };
    w.until("restarted", |w| restarts(w, "done", "containerStatuses")).await;
    assert_eq!(w.shown("done", "containerStatuses"), ["ContainerCreating", "Running", "Completed", "Running"]);

    let image = "busybox:1";
    w.create(
        "init",
        json!({"restartPolicy": "OnFailure", "initContainers": [{"name": "i", "image": image}],
            "containers": [{"name": "c", "image": image}]}),
    );
    let list = "initContainerStatuses";
    let id = |w: &World| w.pod("init").and_then(|pod| Some(pod["status"][list][0]["containerID"].as_str()?.to_owned()));
    w.until("the init container runs", |w| id(w).is_some()).await;
    w.runtime.finish(id(&w).expect("it runs").trim_start_matches("mini://"), 1);
    w.until("restarted", |w| restarts(w, "init", list)).await;
    assert_eq!(w.shown("init", list), ["PodInitializing", "Running", "Error", "Running"]);
}

#[tokio::test]
async fn a_job_completes_and_its_sandbox_goes() {
    let w = world().await;
    w.create("job", json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "busybox:1"}]}));
    w.until_phase("job", "Running").await;
    w.runtime.finish(&w.container_id("job", 0), 0);
    w.until_phase("job", "Succeeded").await;
    w.until("detached", |w| w.network.attached() == 0).await;
    let pod = w.pod("job").expect("the pod");
    let terminated = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&terminated["exitCode"], &terminated["reason"]), (&json!(0), &json!("Completed")));
    assert_eq!(pod["status"]["podIP"], "10.244.0.1", "a completed pod keeps showing its address");
    let options = DeleteOptions { grace_period_seconds: Some(30), ..DeleteOptions::default() };
    w.api.delete(&PODS, "d", "job", &options).await.expect("deleted");
    w.until("gone", |w| w.pod("job").is_none()).await;
    w.until("its records gone", |w| w.runtime.calls().iter().any(|c| c.starts_with("remove "))).await;
}

#[tokio::test]
async fn a_missing_config_map_holds_the_pod_until_it_appears() {
    let w = world().await;
    w.create(
        "conf",
        json!({"containers": [{"name": "c", "image": "busybox:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "configMap": {"name": "m"}}]}),
    );
    let message = "FailedMount MountVolume.SetUp failed for volume \"v\" : configmap \"m\" not found".to_owned();
    w.until("the event", |w| w.events("conf").contains(&message)).await;
    let gvr = Gvr::new("", "v1", "configmaps");
    w.api.seed(&gvr, json!({"metadata": {"name": "m", "namespace": "d"}, "data": {"k": "1"}}));
    w.until_phase("conf", "Running").await;
    let uid = meta::uid(&w.pod("conf").expect("the pod")).to_owned();
    let file = w._dir.path().join("pods").join(uid).join("volumes/kubernetes.io~configmap/v/k");
    assert_eq!(std::fs::read_to_string(&file).expect("the key"), "1");
    let mut object = w.api.all(&gvr)[0].as_ref().clone();
    object["data"]["k"] = "2".into();
    w.api.update(&gvr, "d", "m", "", object).await.expect("updated");
    w.until("the update", |_| std::fs::read_to_string(&file).is_ok_and(|text| text == "2")).await;
}

#[tokio::test]
async fn a_pod_with_a_runtime_that_does_not_exist_does_not_run_in_another() {
    let world = world().await;
    let class = |name: &str, handler: &str| {
        let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": handler});
        world.api.seed(&Gvr::new("node.k8s.io", "v1", "runtimeclasses"), class);
    };
    class("isolated", "kata");
    class("usual", "runc");
    let spec = |class: &str| json!({"runtimeClassName": class, "containers": [{"name": "c", "image": "busybox:1"}]});
    world.create("refused", spec("isolated"));
    world.create("runs", spec("usual"));
    world.until_phase("runs", "Running").await;
    let why = "Failed to create pod sandbox: failed to get sandbox runtime: no runtime for \"kata\" is configured";
    world.until("refused", |world| world.events("refused").iter().any(|event| event.contains(why))).await;
    assert_eq!(world.pod("refused").expect("it is kept")["status"]["phase"], "Pending");
}

#[tokio::test]
async fn an_image_that_is_not_there_is_err_image_pull_and_then_back_off() {
    let w = world().await;
    w.create("bad", json!({"containers": [{"name": "c", "image": "nothing:1"}]}));
    let reason = |w: &World| {
        let pod = w.pod("bad").expect("the pod");
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].clone()
    };
    w.until("ErrImagePull", |w| reason(w) == "ErrImagePull").await;
    w.until("ImagePullBackOff", |w| reason(w) == "ImagePullBackOff").await;
    w.until("the event", |w| w.events("bad").contains(&"BackOff Back-off pulling image \"nothing:1\"".to_owned()))
        .await;
    assert_eq!(w.images.pulls().len(), 1);
    w.create("worse", json!({"containers": [{"name": "c", "image": "NOT VALID"}]}));
    w.until("InvalidImageName", |w| {
        let pod = w.pod("worse").expect("the pod");
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "InvalidImageName"
    })
    .await;
}

#[tokio::test]
async fn a_new_daemon_finds_what_runs() {
    let w = world().await;
    w.create("web", json!({"containers": [{"name": "c", "image": "busybox:1"}]}));
    w.create("gone", json!({"containers": [{"name": "c", "image": "busybox:1"}]}));
    w.until_phase("web", "Running").await;
    w.until_phase("gone", "Running").await;
    let id = w.container_id("web", 0);
    // The old daemon dies: its tasks end without a word.
    w.node.abandon();
    let again = options(w._dir.path());
    w.api.delete(&PODS, "d", "gone", &DeleteOptions { grace_period_seconds: Some(0), ..Default::default() }).await.ok();
    let starts = || w.runtime.calls().iter().filter(|c| c.starts_with("start ")).count();
    let before = starts();
    let env = Env::real();
    let node = Node::start(again, w.api.clone(), env, w.runtime.clone(), w.images.clone(), w.network.clone()).await;
    let node = node.expect("a node");
    w.until("one pod", |w| w.network.attached() == 1).await;
    assert_eq!((starts(), w.container_id("web", 0)), (before, id.clone()), "nothing was started again");
    w.runtime.finish(&id, 1);
    w.until("restarted", |w| {
        w.pod("web").is_some_and(|pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1)
    })
    .await;
    node.stop(Duration::from_secs(10)).await;
    let calls = w.runtime.calls();
    assert_eq!(calls.iter().filter(|c| c.starts_with("signal web/c 15")).count(), 1, "{calls:?}");
    assert!(
        w.pod("web")
            .is_some_and(|pod| { pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 143 })
    );
    let api_node = w.api.all(&Gvr::new("", "v1", "nodes"))[0].clone();
    let conditions = api_node["status"]["conditions"].as_array().expect("conditions");
    assert!(conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "False"));
}

#[tokio::test]
async fn probes_make_ready_and_restart() {
    let w = world().await;
    let healthy = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let answer = healthy.clone();
    w.runtime.answer_exec(Box::new(move |_, _| {
        if answer.load(std::sync::atomic::Ordering::SeqCst) { (0, vec![]) } else { (1, b"sick".to_vec()) }
    }));
    let probe = json!({"exec": {"command": ["check"]}, "periodSeconds": 1, "failureThreshold": 1});
    let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "busybox:1",
        "livenessProbe": probe, "readinessProbe": probe}]});
    w.create("p", spec);
    w.until("ready", |w| w.pod("p").is_some_and(|pod| pod["status"]["containerStatuses"][0]["ready"] == true)).await;
    healthy.store(false, std::sync::atomic::Ordering::SeqCst);
    w.until("restarted", |w| w.pod("p").is_some_and(|pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1))
        .await;
    let events = w.events("p");
    assert!(events.contains(&"Unhealthy Liveness probe failed: sick".to_owned()), "{events:?}");
    assert!(events.contains(&"Killing Container c failed liveness probe, will be restarted".to_owned()), "{events:?}");
}

/// The clock is set by hours, by hand or because the machine has slept.
#[tokio::test]
async fn a_clock_that_jumps_renews_tokens_ends_waits_and_leaves_what_runs_alone() {
    let env = Env::simulated(1, "2026-01-02T03:04:05Z".parse().expect("a time"));
    let hours = |hours| env.advance(jiff::SignedDuration::from_hours(hours));
    let w = world_in(env.clone(), |_| {}).await;
    let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}});
    w.create(
        "web",
        json!({"serviceAccountName": "default", "volumes": [{"name": "t", "projected": {"sources": [token]}}], "containers": [
            {"name": "c", "image": "busybox:1", "volumeMounts": [{"name": "t", "mountPath": "/t"}]}]}),
    );
    w.until_phase("web", "Running").await;
    let before = w.pod("web").expect("the pod");
    let file = w.dir().join("pods").join(meta::uid(&before)).join("volumes/kubernetes.io~projected/t/token");
    let token = || std::fs::read_to_string(&file).expect("a token");
    // One that has expired, and one that is not valid yet.
    for jump in [5, -10] {
        let old = token();
        hours(jump);
        w.until("another token", |_| token() != old).await;
    }

    let crash = |w: &World| w.pod("crash").expect("the pod")["status"]["containerStatuses"][0].clone();
    w.create("crash", json!({"containers": [{"name": "c", "image": "busybox:1"}]}));
    for (restarts, jump) in [(0, 0), (1, 5), (2, -5), (3, 0)] {
        w.until("it runs", |w| {
            let c = crash(w);
            c["restartCount"] == restarts && c["state"]["running"].is_object()
        })
        .await;
        w.runtime.finish(&w.container_id("crash", 0), 1);
        if restarts > 0 {
            w.until("it waits", |w| crash(w)["state"]["waiting"]["reason"] == "CrashLoopBackOff").await;
        }
        hours(jump);
    }
    let after = w.pod("web").expect("it is still there");
    assert_eq!(after["status"]["containerStatuses"], before["status"]["containerStatuses"], "the same container");
    assert_eq!((&after["status"]["phase"], &after["metadata"]["uid"]), (&json!("Running"), &before["metadata"]["uid"]));
}

/// The pod of the tutorial on AppArmor, on a node whose kernel has none, and then on one that loads the profile.
#[tokio::test]
async fn a_pod_waits_for_its_app_armor_profile() {
    use super::app_armor::testing::{fake_kernel, revisions};
    let hello = json!({"containers": [{"name": "hello", "image": "busybox:1", "securityContext":
        {"appArmorProfile": {"type": "Localhost", "localhostProfile": "k8s-apparmor-example-allow-write"}}}]});
    let w = world().await;
    w.create("hello-apparmor", hello.clone());
    let blocked = |w: &World, name: &str| w.pod(name).is_some_and(|pod| pod["status"]["reason"] == "AppArmor");
    w.until("blocked", |w| blocked(w, "hello-apparmor")).await;
    let status = w.pod("hello-apparmor").expect("the pod")["status"].clone();
    assert_eq!(status["phase"], "Pending");
    assert_eq!(status["message"], "Pod Cannot enforce AppArmor: AppArmor is not enabled on the host");
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "Blocked");

    let kernel = tempfile::tempdir().expect("a directory");
    fake_kernel(kernel.path(), "docker-default (enforce)\n");
    let w = world_with(|options| options.app_armor = super::app_armor::AppArmor::new(kernel.path(), true)).await;
    let mut news = revisions(kernel.path());
    w.create("hello-apparmor-2", hello);
    w.until("blocked", |w| blocked(w, "hello-apparmor-2")).await;
    let status = w.pod("hello-apparmor-2").expect("the pod")["status"].clone();
    let message = "Cannot enforce AppArmor: profile \"k8s-apparmor-example-allow-write\" is not loaded";
    assert_eq!(status["message"], format!("Pod {message}"));
    w.until("told", |w| !w.events("hello-apparmor-2").is_empty()).await;
    assert_eq!(w.events("hello-apparmor-2"), [format!("AppArmor {message}")]);
    fake_kernel(kernel.path(), "k8s-apparmor-example-allow-write (enforce)\n");
    std::io::Write::write_all(&mut news, b"2\n").expect("the kernel tells");
    w.until_phase("hello-apparmor-2", "Running").await;
    assert_eq!(w.pod("hello-apparmor-2").expect("the pod")["status"].get("reason"), None);
    let id = w.container_id("hello-apparmor-2", 0);
    let config = w.runtime.config(&id).expect("it was started");
    assert_eq!(config.security.app_armor.as_deref(), Some("k8s-apparmor-example-allow-write"));
}

#[tokio::test]
async fn a_running_pod_is_resized_by_the_kernel_by_a_restart_or_not_at_all() {
    use crate::client::Patch;
    let world = world().await;
    let resources =
        |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory}});
    let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    world.create(
        "p",
        json!({"containers": [
        {"name": "c", "image": "busybox:1", "resizePolicy": policy, "resources": resources("100m", "64Mi")}]}),
    );
    world.until_phase("p", "Running").await;
    let ask = async |generation: i64, cpu: &str, memory: &str| {
        let mut pod = (*world.pod("p").expect("the pod")).clone();
        let container = &mut pod["spec"]["containers"][0];
        container["resources"] = resources(cpu, memory);
        let patch = json!({"metadata": {"generation": generation}, "spec": {"containers": pod["spec"]["containers"]}});
        world.api.patch(&PODS, "d", "p", "", Patch::Merge(patch)).await.expect("a patch");
    };
    let status = |field: &str| world.pod("p").expect("the pod")["status"]["containerStatuses"][0][field].clone();
    let condition = |kind: &str| {
        let pod = world.pod("p").expect("the pod");
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|c| c["type"] == kind)
    };
    let first = world.container_id("p", 0);
    ask(2, "250m", "64Mi").await;
    world.until("more CPU", |_| status("resources")["requests"]["cpu"] == "250m").await;
    assert_eq!(world.runtime.config(&first).expect("it runs").resources.cpu_request_milli, Some(250));
    assert_eq!((status("restartCount"), status("allocatedResources")["cpu"].clone()), (json!(0), json!("250m")));
    world.until("done", |_| condition("PodResizeInProgress").is_none()).await;
    let events = world.events("p");
    let started = events.iter().position(|e| e.starts_with("ResizeStarted Pod resize started: {")).expect("it began");
    let completed = events.iter().position(|e| e.starts_with("ResizeCompleted Pod resize completed: {"));
    assert!(completed.is_some_and(|at| at > started), "{events:#?}");

    ask(3, "250m", "32Mi").await;
    world
        .until("a restart", |_| status("restartCount") == 1 && status("resources")["limits"]["memory"] == "32Mi")
        .await;
    let killed = "Killing Container c resize requires restart".to_owned();
    world.until("the event", |w| w.events("p").contains(&killed)).await;

    ask(4, "3", "32Mi").await;
    world.until("too much", |_| condition("PodResizePending").is_some()).await;
    let pending = condition("PodResizePending").expect("it waits");
    assert_eq!(pending["reason"], "Infeasible");
    assert_eq!(pending["message"], "Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000");
    assert_eq!(pending["observedGeneration"], 4);
    assert_eq!(status("allocatedResources")["cpu"], "250m");

    // Room that another pod leaves.
    world.create(
        "q",
        json!({"containers": [{"name": "c", "image": "busybox:1", "resources": {"requests": {"cpu": "1"}}}]}),
    );
    world.until_phase("q", "Running").await;
    ask(5, "1500m", "32Mi").await;
    world.until("no room", |_| condition("PodResizePending").is_some_and(|c| c["reason"] == "Deferred")).await;
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    world.api.delete(&PODS, "d", "q", &now).await.expect("deleted");
    world.until("room", |_| status("resources")["requests"]["cpu"] == "1500m").await;
    assert!(condition("PodResizePending").is_none());

    world.runtime.refuse("c", Some("cannot decrease memory limits: x"));
    ask(6, "1", "32Mi").await;
    world.until("an error", |_| condition("PodResizeInProgress").is_some_and(|c| c["reason"] == "Error")).await;
    assert_eq!(condition("PodResizeInProgress").expect("it goes on")["message"], "cannot decrease memory limits: x");
    assert_eq!(
        (status("resources")["requests"]["cpu"].clone(), status("allocatedResources")["cpu"].clone()),
        (json!("1500m"), json!("1"))
    );
}

#[tokio::test]
async fn another_image_replaces_a_running_container() {
    use crate::client::Patch;
    let world = world().await;
    world.images.publish("busybox:2", ImageConfig::default());
    world.create("p", json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "busybox:1"}]}));
    world.until_phase("p", "Running").await;
    let patch = json!({"spec": {"containers": [{"name": "c", "image": "busybox:2"}]}});
    world.api.patch(&PODS, "d", "p", "", Patch::Merge(patch)).await.expect("a patch");
    let restarts = |w: &World| w.pod("p").expect("the pod")["status"]["containerStatuses"][0]["restartCount"].clone();
    world.until("a restart", |w| restarts(w) == 1).await;
    let events = world.events("p");
    assert!(events.contains(&"Killing Container c definition changed, will be restarted".to_owned()), "{events:#?}");
    world.until_phase("p", "Running").await;
}

#[tokio::test]
async fn parts_of_the_process_are_shown_as_mirror_pods() {
    use super::parts::Part;
    const PART: Part = Part {
        name: "etcd",
        namespace: "kube-system",
        labels: &[("component", "etcd")],
        priority_class: "system-node-critical",
        modules: &["mini::storage"],
    };
    let world = world_with(|options| options.parts.push(PART)).await;
    world.until_phase("etcd-mini", "Running").await;
    let pod = world.pod("etcd-mini").expect("the pod");
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!((status["ready"].clone(), status["restartCount"].clone()), (json!(true), json!(0)));
    assert_eq!(pod["status"]["podIP"], "192.168.49.2");
    assert!(world.runtime.calls().is_empty(), "there is nothing to run");

    // Who deletes it gets another one.
    let uid = meta::uid(&pod).to_owned();
    world.api.delete(&PODS, "kube-system", "etcd-mini", &DeleteOptions::default()).await.expect("deleted");
    world.until("another", |w| w.pod("etcd-mini").is_some_and(|pod| meta::uid(&pod) != uid)).await;
    world.until_phase("etcd-mini", "Running").await;

    // A mirror pod of nothing goes.
    let stray = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x-mini", "namespace": "kube-system",
        "annotations": {"kubernetes.io/config.mirror": "1"}}, "spec": {"nodeName": "mini", "containers": [{"name": "x"}]}});
    world.api.seed(&PODS, stray);
    world.until("it goes", |w| w.pod("x-mini").is_none()).await;

    world.node.hide_part(PART).await;
    assert!(world.pod("etcd-mini").is_none());
    world.node.show_part(PART);
    world.until_phase("etcd-mini", "Running").await;
    world.node.stop(Duration::from_secs(5)).await;
    let pod = world.pod("etcd-mini").expect("it stays when the node stops");
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
}
