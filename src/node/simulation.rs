//! Seeded lives of pods against the pure decision: random specs, exits, failures, delays, deletions. No I/O.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::pod_state::{Ended, PodState, Role, Run, Stage, StopStage, Stopping};
use super::resize::{self, Change};
use super::status;
use super::sync_pod::{self, Action};
use crate::env::Env;

/// Something that will be reported to the worker.
#[derive(Debug)]
enum Later {
    Volumes(bool),
    Sandbox(bool),
    Started(String, Start),
    HookDone(String),
    Exit(String, i32),
    /// A newer object: another image, or other resources.
    Edit(String, bool),
    Resized(bool),
    SandboxGone,
    VolumesGone(bool),
    ObjectGone,
}

#[derive(Debug, PartialEq)]
enum Start {
    Up,
    NoImage,
    NoConfig,
    CannotRun,
}

struct World {
    env: Env,
    state: PodState,
    later: Vec<(Timestamp, Later)>,
    finished: bool,
    deleted: bool,
    starts: usize,
    policy: &'static str,
}

fn spec(env: &Env) -> (Value, &'static str) {
    let policy = ["Always", "OnFailure", "Never"][env.below(3) as usize];
    let container = |name: String| {
        let mut c = json!({"name": name, "image": "first"});
        if env.below(3) == 0 {
            c["lifecycle"] = json!({"preStop": {"exec": {"command": ["x"]}}});
        }
        if env.below(3) == 0 {
            c["resizePolicy"] = json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
        }
        c
    };
    let mut init = Vec::new();
    for n in 0..env.below(3) {
        let mut c = container(format!("i{n}"));
        if env.below(2) == 0 {
            c["restartPolicy"] = "Always".into();
        }
        init.push(c);
    }
    let regular: Vec<Value> = (0..1 + env.below(2)).map(|n| container(format!("c{n}"))).collect();
    let mut spec = json!({"restartPolicy": policy, "containers": regular, "initContainers": init,
        "terminationGracePeriodSeconds": env.below(40)});
    if env.below(5) == 0 {
        spec["activeDeadlineSeconds"] = (60 + env.below(600)).into();
    }
    (spec, policy)
}

impl World {
    fn new(seed: u64) -> Self {
        let env = Env::simulated(seed, Timestamp::from_second(1_700_000_000).expect("in range"));
        let (spec, policy) = spec(&env);
        let pod = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": spec});
        let state = PodState::new(serde_json::from_value(pod).expect("a pod"), env.now());
        let mut world = Self { env, state, later: Vec::new(), finished: false, deleted: false, starts: 0, policy };
        for (role, container) in world.state.specs() {
            if role != Role::Init && world.env.below(2) == 0 {
                let image = world.env.below(2) == 0;
                world.soon(300_000, Later::Edit(container.name, image));
            }
        }
        world
    }

    fn soon(&mut self, most: u64, what: Later) {
        let wait = SignedDuration::from_millis(i64::try_from(self.env.below(most)).expect("small"));
        self.later.push((self.env.now() + wait, what));
    }

    fn run_of(&mut self, name: &str) -> &mut Run {
        &mut self.state.containers.get_mut(name).expect("a container of the pod").run
    }

    fn act(&mut self, action: Action) {
        let now = self.env.now();
        match action {
            Action::MountVolumes => {
                assert!(matches!(self.state.volumes, Stage::Missing | Stage::Failed(_)));
                self.state.volumes = Stage::Busy;
                let good = self.env.below(4) > 0;
                self.soon(500, Later::Volumes(good));
            }
            Action::CreateSandbox { .. } => {
                assert_eq!(self.state.volumes, Stage::Ready);
                assert!(!self.state.containers.values().any(|c| c.alive()), "containers outlived their sandbox");
                self.state.sandbox = Stage::Busy;
                self.state.had_sandbox = true;
                let good = self.env.below(4) > 0;
                self.soon(500, Later::Sandbox(good));
            }
            Action::ReplaceSandbox => self.state.sandbox = Stage::Missing,
            Action::Start(name) => self.start(&name),
            Action::ShowPullBackOff(name) => {
                self.state.containers.get_mut(&name).expect("there").pull_shown_until = None;
            }
            Action::TellBackOff(name) => self.state.containers.get_mut(&name).expect("there").backoff_told = true,
            Action::Stop { name, deadline, .. } => {
                let hooked = self.state.specs().iter().any(|(_, c)| c.name == name && c.lifecycle.is_some());
                let Run::Running { started_at, .. } = *self.run_of(&name) else { panic!("{name} does not run") };
                let stage = if hooked { StopStage::Hook } else { StopStage::Term };
                *self.run_of(&name) = Run::Stopping(Stopping { started_at, deadline, stage, hook_done: !hooked });
                if hooked {
                    self.soon(60_000, Later::HookDone(name));
                } else if self.env.below(2) == 0 {
                    self.soon(20_000, Later::Exit(name, 143));
                }
            }
            Action::Replace { name, deadline, message } => {
                let container = self.state.containers.get_mut(&name).expect("there");
                assert!(!container.again, "{name} is replaced twice");
                container.again = true;
                self.act(Action::Stop { name, deadline, message });
            }
            Action::Resize => {
                assert!(!self.state.resize.busy, "two resizes at once");
                self.state.resize.busy = true;
                let good = self.env.below(3) > 0;
                self.soon(100, Later::Resized(good));
            }
            Action::Hasten(name, at) => {
                if let Run::Stopping(s) = self.run_of(&name) {
                    s.deadline = at;
                }
            }
            Action::Term(name, at) => {
                if let Run::Stopping(s) = self.run_of(&name) {
                    assert_eq!(s.stage, StopStage::Hook);
                    (s.stage, s.deadline) = (StopStage::Term, at);
                }
                if self.env.below(2) == 0 {
                    self.soon(20_000, Later::Exit(name, 0));
                }
            }
            Action::Kill(name) => {
                if let Run::Stopping(s) = self.run_of(&name) {
                    assert!(s.stage == StopStage::Term && now >= s.deadline, "killed before its time");
                    s.stage = StopStage::Kill;
                }
                self.soon(50, Later::Exit(name, 137));
            }
            Action::CancelStart(name) => *self.run_of(&name) = Run::Absent,
            Action::RemoveSandbox => {
                assert!(!self.state.containers.values().any(|c| c.alive()), "a container was not stopped in order");
                self.state.sandbox = Stage::Removing;
                self.soon(100, Later::SandboxGone);
            }
            Action::RemoveVolumes => {
                self.state.volumes = Stage::Removing;
                let gone = self.state.pod.metadata.deletion_timestamp.is_some();
                self.soon(100, Later::VolumesGone(gone));
            }
            Action::Fail(reason, message) => self.state.failed = Some((reason, message)),
            Action::Delete => {
                assert!(self.state.pod.metadata.deletion_timestamp.is_some());
                assert!(self.state.volumes == Stage::Removed && self.state.cleaned, "deleted before its traces were");
                self.state.delete_sent = true;
                self.deleted = true;
                self.soon(50, Later::ObjectGone);
            }
            Action::Finish => self.finished = true,
        }
    }

    fn start(&mut self, name: &str) {
        let now = self.env.now();
        let (role, spec) = self.state.specs().into_iter().find(|(_, c)| c.name == name).expect("a container");
        let container = self.state.containers.get_mut(name).expect("there");
        assert!(matches!(container.run, Run::Absent | Run::Ended(_)), "{name} was started twice");
        if role == Role::Regular && !container.again {
            if let Run::Ended(ended) = &container.run {
                assert_ne!(self.policy, "Never", "restarted under Never");
                assert!(self.policy != "OnFailure" || ended.exit_code != 0, "a success was restarted");
            }
        }
        container.again = false;
        (container.given, container.asked_image) = (Some(spec.resources.unwrap_or_default()), spec.image);
        if let Some(ended) = container.ended() {
            assert!(now >= container.crash_loop.ready_at(ended.finished_at), "the backoff was not kept");
            container.crash_loop.next(now);
            container.make_room();
        }
        container.run = Run::Starting;
        container.backoff_told = false;
        self.starts += 1;
        let result = match self.env.below(8) {
            0 => Start::NoImage,
            1 => Start::NoConfig,
            2 => Start::CannotRun,
            _ => Start::Up,
        };
        self.soon(3000, Later::Started(name.to_owned(), result));
    }

    fn happen(&mut self, what: Later) {
        let now = self.env.now();
        let later = |ms: i64| now + SignedDuration::from_millis(ms);
        match what {
            Later::Volumes(good) if self.state.volumes == Stage::Busy => {
                self.state.volumes = if good { Stage::Ready } else { Stage::Failed(later(500)) };
            }
            Later::Sandbox(good) if self.state.sandbox == Stage::Busy => {
                self.state.sandbox = if good { Stage::Ready } else { Stage::Failed(later(1000)) };
            }
            Later::Started(name, result) if *self.run_of(&name) == Run::Starting => {
                let container = self.state.containers.get_mut(&name).expect("there");
                match result {
                    Start::Up => {
                        container.created();
                        container.run = Run::Running { started_at: now, hooked: true };
                        let code = if self.env.below(2) == 0 { 0 } else { 1 };
                        self.soon(400_000, Later::Exit(name, code));
                    }
                    Start::NoImage | Start::NoConfig => {
                        container.run = Run::Absent;
                        container.pull.next(now);
                        container.retry_at = Some(container.pull.ready_at(now));
                        container.pull_shown_until = (result == Start::NoImage).then(|| later(3000));
                    }
                    Start::CannotRun => {
                        container.created();
                        container.run = Run::Ended(ended(128, now));
                    }
                }
            }
            Later::HookDone(name) => {
                if let Run::Stopping(s) = self.run_of(&name) {
                    s.hook_done = true;
                }
            }
            Later::Exit(name, code) if self.state.container(&name).alive() => {
                let container = self.state.containers.get_mut(&name).expect("there");
                container.run = Run::Ended(ended(code, now));
                container.kill = None;
            }
            Later::Edit(name, image) => {
                let containers = self
                    .state
                    .pod
                    .spec
                    .iter_mut()
                    .flat_map(|spec| spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()));
                for container in containers.filter(|container| container.name == name) {
                    if image {
                        container.image = Some("another".to_owned());
                    } else {
                        let resources = json!({"requests": {"cpu": "1"}});
                        container.resources = Some(serde_json::from_value(resources).expect("resources"));
                    }
                }
            }
            Later::Resized(good) => {
                self.state.resize.busy = false;
                self.state.resize.retry_at = (!good).then(|| later(10_000));
                for (role, spec) in self.state.specs().into_iter().filter(|_| good) {
                    let container = self.state.containers.get_mut(&spec.name).expect("there");
                    let running = matches!(container.run, Run::Running { .. });
                    if running && resize::change(role, &spec, container.given.as_ref()) == Change::Kernel {
                        container.given = Some(spec.resources.unwrap_or_default());
                    }
                }
            }
            Later::SandboxGone => self.state.sandbox = Stage::Removed,
            Later::VolumesGone(cleaned) => {
                self.state.volumes = Stage::Removed;
                self.state.cleaned |= cleaned;
            }
            Later::ObjectGone => self.state.removed_at = Some(now),
            _ => {}
        }
    }

    /// Acts until nothing is left to do now; returns the next deadline.
    fn settle(&mut self) -> Option<Timestamp> {
        for _ in 0..100 {
            let plan = sync_pod::decide(&self.state, self.env.now());
            if plan.actions.is_empty() || self.finished {
                return plan.wake_at;
            }
            for action in plan.actions {
                self.act(action);
            }
        }
        panic!("the pod does not settle: {:#?}", self.state);
    }

    fn step(&mut self) -> bool {
        let deadline = self.settle();
        let status = status::generate(&self.state, &[], self.env.now());
        self.state.pod.status = Some(status);
        let next = self.later.iter().map(|(at, _)| *at).min();
        let Some(at) = [deadline, next].into_iter().flatten().min() else { return false };
        self.env.advance(at.duration_since(self.env.now()).max(SignedDuration::ZERO));
        let now = self.env.now();
        let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.later).into_iter().partition(|(at, _)| *at <= now);
        self.later = rest;
        due.into_iter().for_each(|(_, what)| self.happen(what));
        true
    }
}

fn ended(code: i32, now: Timestamp) -> Ended {
    Ended {
        exit_code: code,
        reason: "Error".into(),
        message: String::new(),
        started_at: now,
        finished_at: now,
        container_id: String::new(),
    }
}

#[test]
fn every_life_ends_in_order() {
    for seed in 0..2000 {
        let mut w = World::new(seed);
        let when = 5 + w.env.below(120);
        for step in 0..5000 {
            if step == when {
                // Deleted at some point of its life.
                let grace = i64::try_from(w.env.below(40)).expect("small");
                let end = w.env.now() + SignedDuration::from_secs(grace);
                w.state.pod.metadata.deletion_timestamp = Some(end.into());
                w.state.pod.metadata.deletion_grace_period_seconds = Some(grace);
            }
            if w.finished {
                break;
            }
            let moved = w.step();
            assert!(moved || step < when || w.finished, "seed {seed}: stuck {:#?}", w.state);
            if !moved && step < when {
                let complete = sync_pod::is_complete(&w.state) || w.state.failed.is_some();
                let running = w.state.containers.values().any(|c| c.alive());
                assert!(complete || running, "seed {seed}: idle although there is work {:#?}", w.state);
                for (role, spec) in w.state.specs() {
                    let container = w.state.container(&spec.name);
                    let current = resize::change(role, &spec, container.given.as_ref()) == Change::None
                        && (container.asked_image == spec.image || role == Role::Init);
                    assert!(current || !container.alive(), "seed {seed}: {} runs as it was {:#?}", spec.name, w.state);
                }
            }
        }
        assert!(w.finished && w.deleted, "seed {seed}: not finished {:#?}", w.state);
        assert!(w.starts < 1000, "seed {seed}: {} starts", w.starts);
    }
}
