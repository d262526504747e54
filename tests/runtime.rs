//! Real sandboxes and containers, through the shim. Runs when `MINI_TEST_NODE=1` (it needs user namespaces and
//! `/bin/busybox`); as root and as an ordinary user it does the same.
//!
//! Its own `main`: namespaces are entered before there is a thread, and the shim is this program re-executed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use mini::config::Paths;
use mini::node::image::{Image, ImageConfig};
use mini::node::namespaces::{self, Entered, IdMap};
use mini::node::runtime::{
    ContainerConfig, DnsConfig, ExecConfig, Exit, Mount, Runtime, RuntimeError, RuntimeEvent, SandboxConfig, Security,
    ShimRuntime, ShimSettings,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::UnboundedReceiver;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(code) = mini::node::entry() {
        return code;
    }
    if std::env::var_os("MINI_TEST_NODE").is_none() {
        println!("skipped: MINI_TEST_NODE is not set");
        return ExitCode::SUCCESS;
    }
    let home = tempfile::tempdir().expect("a temporary directory");
    let paths = Paths::new(home.path(), "test");
    let entered = match namespaces::enter(&paths) {
        Ok(entered) => entered,
        Err(error) => {
            println!("cannot enter: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("ids {:?}, warnings {:?}", entered.ids, entered.warnings);
    let filter = args.get(1).and_then(|a| a.to_str()).unwrap_or_default().to_owned();
    let threads =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let failed = threads.block_on(run_all(&paths, &entered, &filter));
    namespaces::end_holder(&paths);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

type Test = for<'a> fn(&'a Node) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

macro_rules! tests {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), (|node| Box::pin($name(node))) as Test)),*] };
}

const ALL: &[(&str, Test)] = tests![
    a_container_runs_and_its_output_is_logged,
    exit_codes_and_signals_are_reported,
    commands_run_inside,
    commands_run_on_a_terminal,
    what_cannot_run_says_why,
    users_and_capabilities_are_applied,
    volumes_and_files_are_mounted,
    attach_sees_output_and_gives_input,
    a_shared_pid_namespace_and_host_network,
    containers_survive_the_daemon,
    a_killed_shim_takes_its_containers_along,
    limits_are_enforced_where_possible,
    many_layers_and_whiteouts,
    measure,
];

async fn run_all(paths: &Paths, entered: &Entered, filter: &str) -> usize {
    let node = Node::open(paths, entered).await;
    println!("enforcement {:?}", node.runtime.enforcement());
    let mut failed = 0;
    for (name, test) in ALL.iter().filter(|(name, _)| name.contains(filter)) {
        let node = Node::open(paths, entered).await;
        let handle = tokio::spawn(async move { test(&node).await });
        let ok = handle.await.is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        failed += usize::from(!ok);
    }
    let node = Node::open(paths, entered).await;
    for left in node.runtime.list().await.expect("a list") {
        let _ = node.runtime.remove_sandbox(&left.config.uid).await;
    }
    node.runtime.close();
    failed
}

struct Node {
    runtime: Arc<ShimRuntime>,
    paths: Paths,
    entered: Entered,
    image: Image,
}

fn settings(paths: &Paths, entered: &Entered) -> ShimSettings {
    ShimSettings {
        pods: paths.pods(),
        node_netns: Some(entered.node_netns.clone()),
        ids: entered.ids,
        group: format!("mini-test-{}", std::process::id()),
        program: "/proc/self/exe".into(),
    }
}

impl Node {
    async fn open(paths: &Paths, entered: &Entered) -> Self {
        let runtime = ShimRuntime::open(settings(paths, entered)).await.expect("a runtime");
        let layer = paths.images().join("busybox");
        if !layer.exists() {
            busybox(&layer);
        }
        let config = ImageConfig { env: vec!["FROM=image".into()], ..ImageConfig::default() };
        let image = Image { id: "sha256:00".into(), layers: vec![layer], config, ..Image::default() };
        Self { runtime, paths: paths.clone(), entered: entered.clone(), image }
    }

    async fn sandbox(&self, name: &str, change: impl FnOnce(&mut SandboxConfig)) -> Pod<'_> {
        let mut config = SandboxConfig {
            uid: format!("uid-{name}"),
            name: name.into(),
            namespace: "default".into(),
            hostname: name.into(),
            dns: DnsConfig { servers: vec!["10.96.0.10".into()], ..DnsConfig::default() },
            log_dir: self.paths.pod_logs().join(name),
            ..SandboxConfig::default()
        };
        change(&mut config);
        let events = self.runtime.subscribe();
        let uid = config.uid.clone();
        let logs = config.log_dir.clone();
        self.runtime.create_sandbox(config).await.expect("a sandbox");
        Pod { node: self, uid, logs, events, count: 0 }
    }
}

fn busybox(layer: &Path) {
    for directory in ["bin", "etc", "tmp", "root", "proc", "dev"] {
        std::fs::create_dir_all(layer.join(directory)).expect("made");
    }
    std::fs::copy("/bin/busybox", layer.join("bin/busybox")).expect("copied");
    for applet in [
        "sh", "echo", "cat", "sleep", "id", "ls", "true", "env", "hostname", "ps", "dd", "mount", "stat", "tty", "ip",
        "chown", "touch", "kill", "wget", "stty",
    ] {
        std::os::unix::fs::symlink("busybox", layer.join("bin").join(applet)).expect("linked");
    }
    std::fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:101:102::/srv:/bin/sh\n")
        .expect("written");
    std::fs::write(layer.join("etc/group"), "root:x:0:\nweb:x:102:\n").expect("written");
    std::fs::write(layer.join("etc/deleted"), "").expect("written");
}

struct Pod<'a> {
    node: &'a Node,
    uid: String,
    logs: PathBuf,
    events: UnboundedReceiver<RuntimeEvent>,
    count: u64,
}

impl Pod<'_> {
    async fn try_start(
        &mut self,
        script: &[&str],
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Result<String, RuntimeError> {
        self.count += 1;
        static IDS: AtomicU64 = AtomicU64::new(1);
        let id = format!("{:064x}", IDS.fetch_add(1, Ordering::Relaxed));
        let mut config = ContainerConfig {
            id: id.clone(),
            pod_uid: self.uid.clone(),
            name: format!("c{}", self.count),
            image: self.node.image.clone(),
            command: script.iter().map(|s| (*s).to_owned()).collect(),
            ..ContainerConfig::default()
        };
        change(&mut config);
        self.node.runtime.start_container(config).await?;
        Ok(id)
    }

    async fn start(&mut self, script: &str, change: impl FnOnce(&mut ContainerConfig)) -> String {
        self.try_start(&["sh", "-c", script], change).await.expect("started")
    }

    async fn exit(&mut self, wanted: &str) -> Exit {
        loop {
            match self.events.recv().await.expect("events go on") {
                RuntimeEvent::Exited { id, exit, .. } if id == wanted => return exit,
                _ => {}
            }
        }
    }

    /// Runs a script to its end and gives its output.
    async fn output(&mut self, script: &str, change: impl FnOnce(&mut ContainerConfig)) -> String {
        let id = self.start(script, change).await;
        self.exit(&id).await;
        self.log()
    }

    /// What the last container logged.
    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.logs.join(format!("c{}/0.log", self.count))).expect("a log");
        text.lines().map(|l| l.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n").collect()
    }

    async fn exec(&self, id: &str, script: &str) -> (String, i32) {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let mut run =
            self.node.runtime.exec(id, ExecConfig { command, ..ExecConfig::default() }).await.expect("a command");
        let (mut out, mut err) = (String::new(), String::new());
        run.stdout.take().expect("stdout").read_to_string(&mut out).await.expect("text");
        run.stderr.take().expect("stderr").read_to_string(&mut err).await.expect("text");
        (out + &err, run.control.wait().await.expect("an end").code)
    }

    async fn remove(self) {
        self.node.runtime.remove_sandbox(&self.uid).await.expect("removed");
        assert!(!self.node.paths.pods().join(&self.uid).exists(), "a directory is left");
    }
}

async fn a_container_runs_and_its_output_is_logged(node: &Node) {
    let mut pod = node.sandbox("logs", |_| ()).await;
    let id = pod
        .start("echo out; echo err >&2; echo $FROM $POD; hostname; cat /etc/resolv.conf /etc/hostname", |c| {
            c.env = vec![("POD".into(), "pod".into())];
        })
        .await;
    assert_eq!(pod.exit(&id).await.code, 0);
    let raw = std::fs::read_to_string(pod.logs.join("c1/0.log")).expect("a log");
    assert!(raw.contains(" stdout F out\n") && raw.contains(" stderr F err\n"), "{raw}");
    assert!(raw.contains(" stdout F image pod\n") && raw.contains(" stdout F logs\n"), "{raw}");
    assert!(raw.contains("nameserver 10.96.0.10"), "{raw}");
    let list = node.runtime.list().await.expect("a list");
    let status = list.iter().find(|s| s.config.uid == pod.uid).expect("listed");
    assert!(status.containers[0].exit.is_some() && status.sandbox.is_some());
    let shim = status.sandbox.as_ref().expect("alive").pid;
    pod.remove().await;
    assert!(!Path::new(&format!("/proc/{shim}/root")).exists(), "the shim is left");
}

async fn exit_codes_and_signals_are_reported(node: &Node) {
    let mut pod = node.sandbox("exits", |_| ()).await;
    let id = pod.start("exit 7", |_| ()).await;
    assert_eq!(pod.exit(&id).await.code, 7);
    let id = pod.start("trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done", |_| ()).await;
    pod.exec(&id, "true").await;
    node.runtime.signal(&id, libc::SIGTERM).await.expect("sent");
    assert_eq!(pod.exit(&id).await.code, 3);
    assert_eq!(pod.log(), "bye\n");
    let id = pod.start("sleep 1000", |_| ()).await;
    node.runtime.signal(&id, libc::SIGKILL).await.expect("sent");
    let exit = pod.exit(&id).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));
    node.runtime.signal(&id, libc::SIGKILL).await.expect("an ended container is no error");
    let id = pod.start("sleep 1000", |_| ()).await;
    node.runtime.remove_container(&id).await.expect("removed while it runs");
    assert!(pod.exec_error(&id).await.contains("not found"));
    pod.remove().await;
}

impl Pod<'_> {
    async fn exec_error(&self, id: &str) -> String {
        let command = vec!["true".to_owned()];
        match self.node.runtime.exec(id, ExecConfig { command, ..ExecConfig::default() }).await {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }
}

async fn commands_run_inside(node: &Node) {
    let mut pod = node.sandbox("exec", |_| ()).await;
    let id = pod.start("sleep 1000", |c| c.env = vec![("A".into(), "b".into())]).await;
    assert_eq!(pod.exec(&id, "echo $A; echo e >&2; exit 5").await, ("b\ne\n".to_owned(), 5));
    let (text, _) = pod.exec(&id, "cat /proc/1/comm; hostname").await;
    assert_eq!(text, "sleep\nexec\n");
    let (status, _) = pod.exec(&id, "cat /proc/self/status").await;
    assert!(status.contains("Seccomp:\t2"), "exec'd processes have the filter: {status}");
    let (fds, _) = pod.exec(&id, "ls /proc/self/fd").await;
    assert_eq!(fds, "0\n1\n2\n3\n", "nothing of ours is open but what ls opens");
    let (fds, _) = pod.exec(&id, "ls /proc/1/fd").await;
    assert_eq!(fds, "0\n1\n2\n");
    let command = ["cat".to_owned()].to_vec();
    let config = ExecConfig { command, stdin: true, ..ExecConfig::default() };
    let mut run = node.runtime.exec(&id, config).await.expect("a command");
    let mut stdin = run.stdin.take().expect("stdin");
    stdin.write_all(b"through").await.expect("written");
    drop(stdin);
    let mut text = String::new();
    run.stdout.take().expect("stdout").read_to_string(&mut text).await.expect("text");
    assert_eq!((text.as_str(), run.control.wait().await.expect("an end").code), ("through", 0));
    // Dropping the handle ends the command.
    let command = ["sleep", "12345"].map(str::to_owned).to_vec();
    drop(node.runtime.exec(&id, ExecConfig { command, ..ExecConfig::default() }).await.expect("a command"));
    let gone = async { while pod.exec(&id, "ps").await.0.contains("12345") {} };
    tokio::time::timeout(std::time::Duration::from_secs(5), gone).await.expect("it ends");
    let error = node.runtime.exec(&id, ExecConfig { command: vec!["nope".into()], ..ExecConfig::default() }).await;
    let error = error.err().expect("no such command").to_string();
    assert!(error.contains("exec: \"nope\": executable file not found in $PATH: unknown"), "{error}");
    let state = node.paths.pods().join(&pod.uid).join("sandbox/state").join(&id);
    let left: Vec<_> = std::fs::read_dir(state).expect("there").flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().starts_with("tenant-")), "{left:?}");
    pod.remove().await;
}

async fn commands_run_on_a_terminal(node: &Node) {
    let mut pod = node.sandbox("tty", |_| ()).await;
    let id = pod.start("sleep 1000", |_| ()).await;
    let command = ["sh".to_owned()].to_vec();
    let mut run = node.runtime.exec(&id, ExecConfig { command, tty: true, stdin: true }).await.expect("a shell");
    run.control.resize(101, 33);
    let mut stdin = run.stdin.take().expect("stdin");
    stdin.write_all(b"stty size; tty; exit 4\n").await.expect("written");
    let mut text = String::new();
    run.stdout.take().expect("stdout").read_to_string(&mut text).await.expect("text");
    assert!(text.contains("33 101") && text.contains("/dev/pts/0"), "{text}");
    assert_eq!(run.control.wait().await.expect("an end").code, 4);
    let id = pod.start("tty; stty size; read x; echo got $x", |c| (c.tty, c.stdin) = (true, true)).await;
    let mut attached = node.runtime.attach(&id, true).await.expect("attached");
    attached.stdin.take().expect("stdin").write_all(b"line\n").await.expect("written");
    assert_eq!(pod.exit(&id).await.code, 0);
    assert!(pod.log().contains("/dev/pts/0") && pod.log().contains("got line"), "{}", pod.log());
    pod.remove().await;
}

async fn what_cannot_run_says_why(node: &Node) {
    let mut pod = node.sandbox("wrong", |_| ()).await;
    let error = pod.try_start(&["nope"], |_| ()).await.expect_err("no such file").to_string();
    assert_eq!(
        error,
        "failed to create containerd task: failed to create shim task: OCI runtime create failed: unable to start \
         container process: error during container init: exec: \"nope\": executable file not found in $PATH: unknown"
    );
    let error = pod.try_start(&["/etc/passwd"], |_| ()).await.expect_err("no program").to_string();
    assert!(error.contains("exec: \"/etc/passwd\": permission denied"), "{error}");
    let error = pod.try_start(&["/none"], |_| ()).await.expect_err("no program").to_string();
    assert!(error.contains("exec: \"/none\": stat /none: no such file or directory"), "{error}");
    let error = pod.try_start(&[], |_| ()).await.expect_err("nothing to run").to_string();
    assert!(error.contains("no command specified"), "{error}");
    let error = pod
        .try_start(&["true"], |c| {
            c.security.add_capabilities = vec!["NONSENSE".into()];
        })
        .await
        .expect_err("no such capability")
        .to_string();
    assert!(error.contains("NONSENSE"), "{error}");
    let error = pod
        .try_start(&["true"], |c| {
            c.mounts = vec![Mount { source: "/none/x".into(), destination: "/x".into(), ..Mount::default() }];
        })
        .await
        .expect_err("no such source")
        .to_string();
    assert!(error.contains("no such file or directory"), "{error}");
    let id = pod.start("true", |_| ()).await;
    assert_eq!(pod.exit(&id).await.code, 0);
    pod.remove().await;
}

async fn users_and_capabilities_are_applied(node: &Node) {
    let mut pod = node.sandbox("users", |_| ()).await;
    let status = "id -u; id -g; grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; env | grep HOME; touch /tmp/x && stat -c %u /tmp/x";
    let status = status
        .replace("grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status", "cat /proc/self/status")
        .replace("| grep HOME", "");
    let text = pod.output(&status, |_| ()).await;
    assert!(
        text.starts_with("0\n0\n") && text.contains("CapEff:\t00000000a80425fb") && text.contains("HOME=/root"),
        "{text}"
    );
    assert!(text.contains("Seccomp:\t2") && text.contains("NoNewPrivs:\t0"), "{text}");
    let text = pod.output(&status, |c| c.security.run_as_user = Some(1000)).await;
    assert!(text.starts_with("1000\n0\n") && text.contains("CapEff:\t0000000000000000"), "{text}");
    let text = pod
        .output("id -u; id -g; cat /proc/self/status", |c| {
            c.image.config.user = "web".into();
            c.security =
                Security { drop_capabilities: vec!["ALL".into()], no_new_privileges: true, ..Security::default() };
        })
        .await;
    assert!(text.starts_with("101\n102\n") && text.contains("CapBnd:\t0000000000000000"), "{text}");
    assert!(text.contains("NoNewPrivs:\t1"), "{text}");
    let text = pod
        .output("exec 2>&1; touch /x; echo $?; mount -t tmpfs x /tmp; echo $?", |c| c.security.read_only_rootfs = true)
        .await;
    assert!(text.contains("Read-only") && text.contains("permission denied"), "{text}");
    let text = pod.output("mount -t tmpfs x /tmp && echo mounted", |c| c.security.privileged = true).await;
    assert_eq!(text, "mounted\n");
    let text = pod.output("touch /tmp/f && chown 33:33 /tmp/f && echo chowned", |_| ()).await;
    assert_eq!(text, "chowned\n");
    if node.entered.ids != IdMap::Single {
        let text = pod.output("id", |c| c.security.supplemental_groups = vec![7, 8]).await;
        assert!(text.contains("7") && text.contains("8"), "{text}");
    }
    pod.remove().await;
}

async fn volumes_and_files_are_mounted(node: &Node) {
    let mut pod =
        node.sandbox("mounts", |c| c.sysctls = BTreeMap::from([("net.ipv4.ip_forward".into(), "1".into())])).await;
    let volume = node.paths.volumes().join("v");
    std::fs::create_dir_all(&volume).expect("made");
    let hosts = node.paths.volumes().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 me\n").expect("written");
    let text = pod.output("exec 2>&1; cat /etc/hosts; echo x > /data/f; echo y > /ro/f; cat /data/f; echo done > /dev/termination-log; cat /proc/sys/net/ipv4/ip_forward; ls /dev/shm; ls -d /new/work", |c| {
        c.working_dir = Some("/new/work".into());
        c.termination_message_path = Some("/dev/termination-log".into());
        let mount = |s: &PathBuf, d: &str, read_only| Mount { source: s.clone(), destination: d.into(), read_only, ..Mount::default() };
        c.mounts = vec![mount(&hosts, "/etc/hosts", false), mount(&volume, "/data", false), mount(&volume, "/ro", true)];
    }).await;
    assert!(
        text.starts_with("127.0.0.1 me\n") && text.contains("Read-only file system") && text.contains("x\n1\n"),
        "{text}"
    );
    assert!(text.ends_with("/new/work\n"), "{text}");
    let list = node.runtime.list().await.expect("a list");
    let status = &list.iter().find(|s| s.config.uid == pod.uid).expect("listed").containers[0];
    let message = status.message_path.as_ref().expect("a message file");
    assert_eq!(std::fs::read_to_string(message).expect("a message"), "done\n");
    pod.remove().await;
}

async fn attach_sees_output_and_gives_input(node: &Node) {
    let mut pod = node.sandbox("attach", |_| ()).await;
    let id = pod.start("cat; echo end", |c| (c.stdin, c.stdin_once) = (true, true)).await;
    let mut attached = node.runtime.attach(&id, true).await.expect("attached");
    let mut stdin = attached.stdin.take().expect("stdin");
    stdin.write_all(b"hello\n").await.expect("written");
    drop(stdin);
    let mut text = String::new();
    attached.stdout.take().expect("stdout").read_to_string(&mut text).await.expect("text");
    assert_eq!(text, "hello\nend\n");
    assert_eq!(attached.control.wait().await.expect("an end").code, 0);
    assert_eq!(pod.exit(&id).await.code, 0);
    pod.remove().await;
}

async fn a_shared_pid_namespace_and_host_network(node: &Node) {
    let mut pod = node.sandbox("shared", |c| c.share_pid = true).await;
    let id = pod.start("sleep 777", |_| ()).await;
    let text = pod.output("cat /proc/1/comm; ps", |_| ()).await;
    assert!(text.starts_with("pause\n") && text.contains("sleep 777"), "{text}");
    node.runtime.remove_container(&id).await.expect("removed");
    pod.remove().await;
    let mut pod = node.sandbox("hostnet", |c| c.host_network = true).await;
    let text = pod.output("ls -l /proc/self/ns/net", |_| ()).await;
    let own = std::fs::read_link(&node.entered.node_netns).expect("a namespace");
    assert!(text.contains(&*own.to_string_lossy()), "{text} {own:?}");
    pod.remove().await;
    let mut pod = node.sandbox("hostpid", |c| c.host_pid = true).await;
    let text = pod.output("ls -l /proc/self/ns/pid", |_| ()).await;
    let own = std::fs::read_link("/proc/self/ns/pid").expect("a namespace");
    assert!(text.contains(&*own.to_string_lossy()), "{text} {own:?}");
    pod.remove().await;
}

async fn containers_survive_the_daemon(node: &Node) {
    let mut pod = node.sandbox("survive", |_| ()).await;
    let runs = pod.start("echo before; sleep 1000", |_| ()).await;
    let ended = pod.start("exit 9", |_| ()).await;
    pod.exit(&ended).await;
    // A second daemon on the same directory sees what the first one did.
    let second = Node::open(&node.paths, &node.entered).await;
    let list = second.runtime.list().await.expect("a list");
    let status = list.iter().find(|s| s.config.uid == pod.uid).expect("found again");
    assert_eq!(status.containers.len(), 2);
    let find = |id: &str| status.containers.iter().find(|c| c.id == id).expect("listed").clone();
    assert_eq!(find(&ended).exit.map(|e| e.code), Some(9));
    assert!(find(&runs).exit.is_none() && find(&runs).pid.is_some());
    let mut events = second.runtime.subscribe();
    let run = second.runtime.exec(&runs, ExecConfig { command: vec!["true".into()], ..ExecConfig::default() });
    assert_eq!(run.await.expect("a command").control.wait().await.expect("an end").code, 0);
    second.runtime.signal(&runs, libc::SIGKILL).await.expect("sent");
    assert!(matches!(events.recv().await, Some(RuntimeEvent::Exited { exit: Exit { code: 137, .. }, .. })));
    pod.exit(&runs).await;
    pod.remove().await;
}

async fn a_killed_shim_takes_its_containers_along(node: &Node) {
    let mut pod = node.sandbox("lost", |_| ()).await;
    // As entry points do that begin as root: the kernel then forgets that the process ends with its parent.
    let id = pod.start("exec busybox su -s /bin/sh web -c 'exec sleep 1000'", |_| ()).await;
    let list = node.runtime.list().await.expect("a list");
    let status = list.iter().find(|s| s.config.uid == pod.uid).expect("listed");
    let (shim, pid) = (status.sandbox.as_ref().expect("alive").pid, status.containers[0].pid.expect("runs"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).expect("killed");
    assert_eq!(pod.exit(&id).await.code, 137);
    assert_eq!(pod.events.recv().await, Some(RuntimeEvent::SandboxLost { pod_uid: pod.uid.clone() }));
    let gone = async {
        while namespaces::start_time(pid).is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(5), gone).await.expect("the container ends");
    let config = status.config.clone();
    node.runtime.create_sandbox(config).await.expect("a new sandbox");
    let id = pod.start("exit 0", |_| ()).await;
    assert_eq!(pod.exit(&id).await.code, 0);
    pod.remove().await;
}

async fn limits_are_enforced_where_possible(node: &Node) {
    let enforced = node.runtime.enforcement();
    let mut pod = node.sandbox("limits", |_| ()).await;
    if enforced.memory {
        let id = pod
            .start("dd if=/dev/zero of=/dev/null bs=200M count=3", |c| {
                c.resources.memory_limit = Some(32 << 20);
            })
            .await;
        let exit = pod.exit(&id).await;
        assert!(exit.oom_killed, "{exit:?} {}", pod.log());
    }
    let id = pod.start("x=0; while [ $x -lt 200000 ]; do x=$((x+1)); done; echo busy; sleep 1000", |_| ()).await;
    let mut attached = node.runtime.attach(&id, false).await.expect("attached");
    let mut byte = [0; 1];
    let _ = attached.stdout.as_mut().expect("stdout").read(&mut byte).await;
    let usage = node.runtime.usage(&pod.uid).await.expect("usage");
    assert!(usage.pod.memory_working_set > 0 && usage.pod.cpu_nanoseconds > 0, "{usage:?}");
    assert_eq!(usage.containers.len(), 1);
    pod.remove().await;
}

async fn many_layers_and_whiteouts(node: &Node) {
    let mut pod = node.sandbox("layers", |_| ()).await;
    let mut layers = node.image.layers.clone();
    for n in 0..100 {
        let layer = node.paths.images().join(format!("layer-{n}"));
        std::fs::create_dir_all(layer.join("l")).expect("made");
        std::fs::write(layer.join("l").join(n.to_string()), "").expect("written");
        layers.push(layer);
    }
    let top = layers.last().expect("some").join("etc");
    std::fs::create_dir_all(&top).expect("made");
    nix::sys::stat::mknod(&top.join("deleted"), nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::empty(), 0)
        .expect("a whiteout");
    let text = pod.output("ls /l | busybox wc -l; ls /etc", |c| c.image.layers = layers).await;
    assert!(text.starts_with("100\n") && !text.contains("deleted"), "{text}");
    pod.remove().await;
}

/// Prints what it takes; asserts nothing.
async fn measure(node: &Node) {
    let mut pod = node.sandbox("memory", |_| ()).await;
    let id = pod.start("sleep 1000", |_| ()).await;
    pod.exec(&id, "true").await;
    let list = node.runtime.list().await.expect("a list");
    let shim = list.iter().find_map(|s| s.sandbox.as_ref().filter(|b| b.uid == pod.uid)).expect("listed").pid;
    let rollup = std::fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap_or_default();
    let wanted = ["Rss:", "Pss:", "Private_Clean:", "Private_Dirty:"];
    println!("  shim: {:?}", rollup.lines().filter(|l| wanted.iter().any(|w| l.starts_with(w))).collect::<Vec<_>>());
    let fds = std::fs::read_dir(format!("/proc/{shim}/fd")).map(Iterator::count);
    println!("  shim: {fds:?} descriptors");
    pod.remove().await;
    let (mut sandboxes, mut starts, mut execs, mut removals) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for n in 0..20 {
        let begin = Instant::now();
        let mut pod = node.sandbox(&format!("m{n}"), |_| ()).await;
        sandboxes.push(begin.elapsed());
        let begin = Instant::now();
        let id = pod.start("sleep 1000", |_| ()).await;
        starts.push(begin.elapsed());
        let begin = Instant::now();
        pod.exec(&id, "true").await;
        execs.push(begin.elapsed());
        let begin = Instant::now();
        pod.remove().await;
        removals.push(begin.elapsed());
    }
    for (name, mut times) in [("sandbox", sandboxes), ("start", starts), ("exec", execs), ("remove", removals)] {
        times.sort();
        println!("  {name}: p50 {:?}, max {:?}", times[times.len() / 2], times[times.len() - 1]);
    }
}
