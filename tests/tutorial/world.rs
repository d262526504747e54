//! A private home directory with clusters in it, and a shell that runs the tutorial's commands there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Where the pages' commands find manifests.
const EXAMPLES: [&str; 2] =
    ["https://k8s.io/examples/", "https://raw.githubusercontent.com/kubernetes/website/main/content/en/examples/"];

/// A home directory, a kubeconfig and the clusters that a test starts.
pub struct World {
    home: TempDir,
    bin: PathBuf,
    kubectl: Option<PathBuf>,
    start: Instant,
}

/// What a command said.
pub struct Said {
    /// The exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl World {
    /// A new home. The binary under test is `$MINI_BIN`.
    pub fn new() -> Self {
        let bin = std::env::var_os("MINI_BIN").expect("MINI_BIN names the binary under test: tests/run sets it");
        let home = tempfile::Builder::new().prefix("mini-test-").tempdir().expect("a temporary directory");
        Self { home, bin: bin.into(), kubectl: None, start: Instant::now() }
    }

    /// Uses another kubectl than the one on the PATH.
    pub fn with_kubectl(mut self, path: &str) -> Self {
        self.kubectl = Some(path.into());
        self
    }

    /// The home directory.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The state directory of a profile.
    pub fn profile(&self, name: &str) -> PathBuf {
        self.home().join(".mini/profiles").join(name)
    }

    /// A shell command with `mini` and `kubectl` on its PATH, in the home directory. The addresses of the pages' manifests
    /// stand for the copies in `examples/`.
    pub fn command(&self, command: &str) -> Command {
        let command = EXAMPLES.iter().fold(command.to_owned(), |text, address| text.replace(address, "examples/"));
        let tools = self.home().join("tools");
        if !tools.exists() {
            std::fs::create_dir(&tools).expect("a directory for links");
            crate::examples::write(&self.home().join("examples"));
            std::os::unix::fs::symlink(&self.bin, tools.join("mini")).expect("a link to mini");
            if let Some(kubectl) = &self.kubectl {
                std::os::unix::fs::symlink(kubectl, tools.join("kubectl")).expect("a link to kubectl");
            }
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = Command::new("bash");
        shell.args(["-c", &command]).current_dir(self.home());
        shell.env("HOME", self.home()).env("PATH", format!("{}:{path}", tools.display()));
        shell.env_remove("KUBECONFIG").env_remove("MINI_HOME").env_remove("MINI_PROFILE").env("NO_COLOR", "1");
        for proxy in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            shell.env_remove(proxy);
        }
        shell.stdin(Stdio::null());
        shell
    }

    /// Runs a command and says what it said.
    pub fn run(&self, command: &str) -> Said {
        let Output { status, stdout, stderr } = self.command(command).output().expect("bash runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let said = Said { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) };
        println!("{:.1} s $ {command}\n{}{}", self.start.elapsed().as_secs_f32(), said.out, said.err);
        said
    }

    /// Runs a command that must succeed; returns its standard output.
    #[track_caller]
    pub fn ok(&self, command: &str) -> String {
        let said = self.run(command);
        if said.code != 0 {
            self.explain();
            panic!("{command:?} exited with {}:\n{}{}", said.code, said.out, said.err);
        }
        said.out
    }

    /// Runs a command that must fail; returns what it said.
    #[track_caller]
    pub fn fails(&self, command: &str) -> Said {
        let said = self.run(command);
        assert_ne!(said.code, 0, "{command:?} succeeded:\n{}{}", said.out, said.err);
        said
    }

    /// Runs a command that prints a table; returns its rows by header.
    #[track_caller]
    pub fn table(&self, command: &str) -> Vec<BTreeMap<String, String>> {
        parse_table(&self.ok(command))
    }

    /// Writes a file into the home directory.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.home().join(name), text).expect("the home is ours");
    }

    /// Kills the daemon of the profile `mini` without a warning.
    pub fn kill_daemon(&self) {
        self.ok("kill -KILL $(cut -d' ' -f1 .mini/profiles/mini/run/pid)");
    }

    /// The process of the machine that holds a pod of the namespace `default`.
    fn shim(&self, pod: &str) -> String {
        let uid = self.ok(&format!("kubectl get {pod} -o jsonpath='{{.metadata.uid}}'"));
        self.ok(&format!("pgrep -f 'node-shim .*/pods/{uid}/'")).trim().to_owned()
    }

    /// Kills a pod's shim without a warning. `pod` is `pod/NAME`.
    pub fn kill_shim(&self, pod: &str) {
        self.ok(&format!("kill -KILL {}", self.shim(pod)));
    }

    /// Kills the first process of a pod's only container, which nobody inside could do.
    pub fn kill_container(&self, pod: &str) {
        let pid = self.ok(&format!("pgrep -P {}", self.shim(pod)));
        let pid = pid.trim();
        // An ordinary user may end processes of the users that are his inside of the namespace only.
        self.ok(&format!(
            "kill -KILL {pid} 2>/dev/null || nsenter --preserve-credentials -U -t {pid} kill -KILL {pid}"
        ));
    }

    /// Waits until `command` prints something that contains `wanted`, once for each line that `watch` prints: the
    /// test wakes by an event of the cluster, not by a clock. Fails after two minutes.
    #[track_caller]
    pub fn until(&self, watch: &str, command: &str, wanted: &str) -> String {
        use std::io::BufRead;
        let mut child =
            self.command(&format!("exec timeout 120 {watch}")).stdout(Stdio::piped()).spawn().expect("bash runs");
        let lines = std::io::BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut found = None;
        for _line in lines {
            let said = self.run(command);
            if said.out.contains(wanted) {
                found = Some(said.out);
                break;
            }
        }
        child.kill().ok();
        child.wait().expect("it was started");
        found.unwrap_or_else(|| {
            self.explain();
            panic!("{command:?} never printed {wanted:?}")
        })
    }

    /// Repeats a command until it prints something that contains `wanted`: for what no event of the cluster tells, such as that a
    /// node's proxy has taken over a change. Fails after a minute.
    #[track_caller]
    pub fn eventually(&self, command: &str, wanted: &str) -> String {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let said = self.run(command);
            if said.out.contains(wanted) {
                return said.out;
            }
            if Instant::now() > end {
                self.explain();
                panic!("{command:?} never printed {wanted:?} but {}{}", said.out, said.err);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Prints what helps to understand a failure.
    pub fn explain(&self) {
        for command in [
            "kubectl get pods,deployments,replicasets,services,endpointslices -A -o wide",
            "kubectl get events -A --sort-by=.lastTimestamp | tail -40",
            "for p in .mini/profiles/*; do tail -40 $p/logs/daemon.log; done",
        ] {
            self.run(command);
        }
    }
}

impl Drop for World {
    /// Whatever a failed test left running is stopped.
    fn drop(&mut self) {
        let said = self.run("mini delete --all --purge");
        if said.code != 0 {
            println!("cleaning up failed: {}", said.err);
        }
    }
}

/// Splits a table of kubectl at its headers' columns.
pub fn parse_table(text: &str) -> Vec<BTreeMap<String, String>> {
    let mut lines = text.lines();
    let Some(header) = lines.next() else { return Vec::new() };
    let mut starts = Vec::new();
    let bytes = header.as_bytes();
    for (i, byte) in bytes.iter().enumerate() {
        if *byte != b' ' && (i == 0 || bytes[i - 1] == b' ' && (i < 2 || bytes[i - 2] == b' ')) {
            starts.push(i);
        }
    }
    let names: Vec<&str> = header.split("  ").map(str::trim).filter(|n| !n.is_empty()).collect();
    let cell = |line: &str, i: usize| -> String {
        let chars: Vec<char> = line.chars().collect();
        let end = starts.get(i + 1).copied().unwrap_or(chars.len()).min(chars.len());
        chars.get(starts[i].min(end)..end).unwrap_or_default().iter().collect::<String>().trim().to_owned()
    };
    lines
        .filter(|line| !line.trim().is_empty())
        .map(|line| names.iter().enumerate().map(|(i, n)| ((*n).to_owned(), cell(line, i))).collect())
        .collect()
}

/// Asserts that a text has the shape of a pattern in which `*` stands for anything within a line.
#[track_caller]
pub fn like(text: &str, pattern: &str) {
    let mut rest = text.trim_end();
    let parts: Vec<&str> = pattern.trim_end().split('*').collect();
    for (i, part) in parts.iter().enumerate() {
        let position = if i == 0 { rest.starts_with(part).then_some(0) } else { rest.find(part) };
        let Some(position) = position else { panic!("this text:\n{text}\nis not like:\n{pattern}\n(at {part:?})") };
        rest = &rest[position + part.len()..];
    }
    assert!(rest.is_empty() || pattern.trim_end().ends_with('*'), "this text:\n{text}\nhas more than:\n{pattern}");
}
