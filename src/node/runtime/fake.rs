//! A runtime that runs nothing: for tests of the node agent and for the simulation.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::{
    Attachment, ContainerConfig, ContainerState, ContainerStatus, Enforcement, ExecConfig, ExecExit, Execution, Exit,
    PodUsage, ProcessControl, Resources, Runtime, RuntimeError, RuntimeEvent, Sandbox, SandboxConfig, SandboxStatus,
    Started, Usage,
};
use crate::env::Env;

/// What a fake exec answers: exit code and standard output.
pub type ExecAnswer = Box<dyn Fn(&str, &[String]) -> (i32, Vec<u8>) + Send + Sync>;

/// Containers run until [`FakeRuntime::finish`] (or a signal) ends them.
pub struct FakeRuntime {
    env: Env,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<String, SandboxStatus>,
    subscribers: Vec<mpsc::UnboundedSender<RuntimeEvent>>,
    next_pid: i32,
    /// Containers of these names ignore SIGTERM.
    stubborn: Vec<String>,
    refuse: BTreeMap<String, String>,
    calls: Vec<String>,
    configs: BTreeMap<String, ContainerConfig>,
    answer: Option<ExecAnswer>,
}

impl FakeRuntime {
    /// With that clock.
    pub fn new(env: Env) -> Arc<Self> {
        Arc::new(Self { env, state: Mutex::new(State { next_pid: 1000, ..State::default() }) })
    }

    /// Ends a container as its process would.
    pub fn finish(&self, id: &str, code: i32) {
        self.end(id, code, None);
    }

    /// Makes `exec` answer.
    pub fn answer_exec(&self, answer: ExecAnswer) {
        self.lock().answer = Some(answer);
    }

    /// Makes containers of that name fail to start (or to be resized) with that message, until `None`.
    pub fn refuse(&self, name: &str, message: Option<&str>) {
        match message {
            Some(message) => self.lock().refuse.insert(name.to_owned(), message.to_owned()),
            None => self.lock().refuse.remove(name),
        };
    }

    /// Makes containers of that name ignore SIGTERM.
    pub fn ignore_term(&self, name: &str) {
        self.lock().stubborn.push(name.to_owned());
    }

    /// What was asked, in order: `sandbox web`, `start web/app`, `signal web/app 15`, `stop web`, …
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// What a container was started with.
    pub fn config(&self, id: &str) -> Option<ContainerConfig> {
        self.lock().configs.get(id).cloned()
    }

    /// Loses a sandbox as if its shim had been killed.
    pub fn lose_sandbox(&self, uid: &str) {
        let ids: Vec<String> = self.running(uid);
        for id in ids {
            self.end(&id, 137, Some(9));
        }
        let mut state = self.lock();
        if let Some(status) = state.sandboxes.get_mut(uid) {
            status.sandbox = None;
        }
        state.send(RuntimeEvent::SandboxLost { pod_uid: uid.to_owned() });
    }

    fn running(&self, uid: &str) -> Vec<String> {
        let state = self.lock();
        let containers = state.sandboxes.get(uid).map(|s| s.containers.as_slice()).unwrap_or_default();
        containers.iter().filter(|c| c.exit.is_none()).map(|c| c.id.clone()).collect()
    }

    fn end(&self, id: &str, code: i32, signal: Option<i32>) {
        let exit = Exit { code, signal, oom_killed: false, finished_at: self.env.now() };
        let mut state = self.lock();
        let Some(container) = state.container(id) else { return };
        if container.exit.is_some() {
            return;
        }
        container.state = ContainerState::Exited;
        container.pid = None;
        container.exit = Some(exit.clone());
        let pod_uid = container.pod_uid.clone();
        state.send(RuntimeEvent::Exited { pod_uid, id: id.to_owned(), exit });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the fake runtime is held")
    }
}

impl State {
    fn container(&mut self, id: &str) -> Option<&mut ContainerStatus> {
        self.sandboxes.values_mut().flat_map(|s| &mut s.containers).find(|c| c.id == id)
    }

    fn send(&mut self, event: RuntimeEvent) {
        self.subscribers.retain(|s| s.send(event.clone()).is_ok());
    }

    fn called(&mut self, verb: &str, id: &str, rest: &str) {
        let pods = self.sandboxes.values();
        let name = pods.flat_map(|s| s.containers.iter().map(move |c| (s, c))).find(|(_, c)| c.id == id);
        let name = name.map_or_else(|| id.to_owned(), |(s, c)| format!("{}/{}", s.config.name, c.name));
        self.calls.push(format!("{verb} {name}{rest}"));
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn create_sandbox(&self, config: SandboxConfig) -> Result<Sandbox, RuntimeError> {
        let created_at = self.env.now();
        let mut state = self.lock();
        state.calls.push(format!("sandbox {}", config.name));
        if state.sandboxes.get(&config.uid).is_some_and(|s| s.sandbox.is_some()) {
            return Err(RuntimeError::Sandbox(format!("pod {} already has a sandbox", config.uid)));
        }
        state.next_pid += 1;
        let pid = state.next_pid;
        let sandbox = Sandbox { uid: config.uid.clone(), pid, netns: format!("/proc/{pid}/ns/net").into(), created_at };
        let entry = state.sandboxes.entry(config.uid.clone());
        let status =
            entry.or_insert_with(|| SandboxStatus { config: config.clone(), sandbox: None, containers: Vec::new() });
        status.config = config;
        status.sandbox = Some(sandbox.clone());
        Ok(sandbox)
    }

    async fn start_container(&self, config: ContainerConfig) -> Result<Started, RuntimeError> {
        let started_at = self.env.now();
        let mut state = self.lock();
        if let Some(message) = state.refuse.get(&config.name) {
            return Err(RuntimeError::Start(message.clone()));
        }
        state.next_pid += 1;
        let pid = state.next_pid;
        let sandbox = state.sandboxes.get_mut(&config.pod_uid);
        let status = sandbox.filter(|s| s.sandbox.is_some()).ok_or(RuntimeError::NotFound(config.pod_uid.clone()))?;
        let log_path = status.config.log_dir.join(format!("{}/{}.log", config.name, config.attempt));
        let kept = config.clone();
        status.containers.push(ContainerStatus {
            id: config.id.clone(),
            pod_uid: config.pod_uid,
            name: config.name,
            attempt: config.attempt,
            image: config.image.repo_tags.first().cloned().unwrap_or_else(|| config.image.id.clone()),
            image_id: config.image.image_id(),
            state: ContainerState::Running,
            pid: Some(pid),
            started_at,
            exit: None,
            log_path,
            message_path: None,
        });
        state.called("start", &kept.id, "");
        state.configs.insert(kept.id.clone(), kept);
        Ok(Started { pid, started_at })
    }

    async fn signal(&self, id: &str, signal: i32) -> Result<(), RuntimeError> {
        let ends = {
            let mut state = self.lock();
            state.called("signal", id, &format!(" {signal}"));
            let name = state.container(id).ok_or_else(|| RuntimeError::NotFound(id.to_owned()))?.name.clone();
            signal == libc::SIGKILL || (signal == libc::SIGTERM && !state.stubborn.contains(&name))
        };
        if ends {
            self.end(id, 128 + signal, Some(signal));
        }
        Ok(())
    }

    async fn exec(&self, id: &str, config: ExecConfig) -> Result<Execution, RuntimeError> {
        let mut state = self.lock();
        state.called("exec", id, &format!(" {}", config.command.join(" ")));
        let container = state.container(id).ok_or_else(|| RuntimeError::NotFound(id.to_owned()))?;
        if container.exit.is_some() {
            return Err(RuntimeError::NotRunning(id.to_owned()));
        }
        let name = container.name.clone();
        let (code, output) = state.answer.as_ref().map_or((0, Vec::new()), |answer| answer(&name, &config.command));
        Ok(Execution {
            stdin: config.stdin.then(|| Box::new(tokio::io::sink()) as super::Writer),
            stdout: Some(Box::new(std::io::Cursor::new(output))),
            stderr: (!config.tty).then(|| Box::new(tokio::io::empty()) as super::Reader),
            control: Box::new(Ended(code)),
        })
    }

    async fn attach(&self, id: &str, _stdin: bool) -> Result<Attachment, RuntimeError> {
        let mut state = self.lock();
        state.called("attach", id, "");
        state.container(id).ok_or_else(|| RuntimeError::NotFound(id.to_owned()))?;
        Ok(Attachment { stdin: None, stdout: None, stderr: None, control: Box::new(Ended(0)) })
    }

    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        self.end(id, 137, Some(9));
        let mut state = self.lock();
        state.called("remove", id, "");
        state.sandboxes.values_mut().for_each(|s| s.containers.retain(|c| c.id != id));
        Ok(())
    }

    async fn stop_sandbox(&self, uid: &str) -> Result<(), RuntimeError> {
        self.lock().calls.push(format!("stop {uid}"));
        for id in self.running(uid) {
            self.end(&id, 137, Some(9));
        }
        if let Some(status) = self.lock().sandboxes.get_mut(uid) {
            status.sandbox = None;
        }
        Ok(())
    }

    async fn remove_sandbox(&self, uid: &str) -> Result<(), RuntimeError> {
        self.stop_sandbox(uid).await?;
        let mut state = self.lock();
        state.calls.push(format!("remove {uid}"));
        state.sandboxes.remove(uid);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.lock().sandboxes.values().cloned().collect())
    }

    fn subscribe(&self) -> mpsc::UnboundedReceiver<RuntimeEvent> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.lock().subscribers.push(sender);
        receiver
    }

    async fn resize(
        &self,
        uid: &str,
        _pod: &Resources,
        containers: &[(String, String, Resources)],
    ) -> Result<(), RuntimeError> {
        let mut state = self.lock();
        state.sandboxes.get(uid).ok_or_else(|| RuntimeError::NotFound(uid.to_owned()))?;
        for (id, name, resources) in containers {
            state.called("resize", id, "");
            if let Some(message) = state.refuse.get(name) {
                return Err(RuntimeError::Invalid(message.clone()));
            }
            if let Some(config) = state.configs.get_mut(id) {
                config.resources = resources.clone();
            }
        }
        Ok(())
    }

    async fn usage(&self, uid: &str) -> Result<PodUsage, RuntimeError> {
        let state = self.lock();
        let status = state.sandboxes.get(uid).ok_or_else(|| RuntimeError::NotFound(uid.to_owned()))?;
        let running = status.containers.iter().filter(|c| c.exit.is_none());
        let containers = running.map(|c| (c.name.clone(), Usage::default())).collect();
        Ok(PodUsage { at: self.env.now(), pod: Usage::default(), containers })
    }

    fn enforcement(&self) -> Enforcement {
        Enforcement { memory: true, cpu: true, pids: true, reason: None }
    }
}

/// A process that already ended.
struct Ended(i32);

#[async_trait]
impl ProcessControl for Ended {
    fn resize(&self, _width: u16, _height: u16) {}

    async fn signal(&self, _signal: i32) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn wait(&mut self) -> Result<ExecExit, RuntimeError> {
        Ok(ExecExit { code: self.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_container_ends_once_and_says_so() {
        let env = Env::simulated(1, jiff::Timestamp::UNIX_EPOCH);
        let runtime = FakeRuntime::new(env);
        let mut events = runtime.subscribe();
        let config = SandboxConfig { uid: "u".into(), name: "web".into(), ..SandboxConfig::default() };
        runtime.create_sandbox(config).await.expect("a new pod");
        let container =
            ContainerConfig { id: "c".into(), pod_uid: "u".into(), name: "app".into(), ..Default::default() };
        runtime.start_container(container).await.expect("a sandbox that runs");
        runtime.signal("c", libc::SIGTERM).await.expect("a container that exists");
        runtime.finish("c", 0);
        assert!(matches!(events.try_recv(), Ok(RuntimeEvent::Exited { exit: Exit { code: 143, .. }, .. })));
        assert!(events.try_recv().is_err());
    }
}
