//! An etcd of the tests' own: Debian's `etcd-server`, on loopback, in a directory that goes with it.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use super::EtcdOptions;

/// A running etcd.
pub struct Server {
    process: Child,
    /// Where it answers.
    pub endpoint: String,
    _dir: tempfile::TempDir,
}

impl Server {
    /// Starts one and waits until it says that it serves; `None` (and a line that says so) where none is installed.
    pub fn start() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let port = || TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let (endpoint, peer) = (format!("http://127.0.0.1:{}", port()), format!("http://127.0.0.1:{}", port()));
        let mut command = Command::new("etcd");
        command.args(["--name=test", "--logger=zap", "--log-outputs=stderr"]).arg("--data-dir").arg(dir.path());
        command.args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("test={peer}")]).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut process = match command.spawn() {
            Ok(process) => process,
            Err(error) => {
                println!("skipped: no etcd here ({error}); tests/run installs it");
                return None;
            }
        };
        let mut log = BufReader::new(process.stderr.take().expect("it is piped")).lines().map_while(Result::ok);
        assert!(log.any(|line| line.contains("serving client traffic")), "etcd does not start");
        // Somebody must go on reading, or etcd blocks.
        std::thread::spawn(move || log.for_each(drop));
        Some(Self { process, endpoint, _dir: dir })
    }

    /// How to reach it, with keys of a cluster of its own.
    pub fn options(&self, prefix: &str) -> EtcdOptions {
        EtcdOptions { endpoints: vec![self.endpoint.clone()], prefix: prefix.to_owned(), ..EtcdOptions::default() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
