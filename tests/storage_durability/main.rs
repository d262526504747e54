//! Durability against the real kernel: acknowledged writes survive SIGKILL at any instant, and a full disk loses nothing.
//!
//! What is killed is this test binary itself, started again with `MINI_STORAGE_CHILD`. `MINI_DURABILITY_ROUNDS` says how often.

mod history;
mod https;
mod storage;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

const CHILD: &str = "MINI_STORAGE_CHILD";

/// How often the child is killed.
fn rounds() -> usize {
    std::env::var("MINI_DURABILITY_ROUNDS").map_or(5, |rounds| rounds.parse().expect("a number"))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// In the child: the folder of its store. The child ends with its parent.
fn as_child() -> Option<PathBuf> {
    let folder = std::env::var_os(CHILD)?;
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    // The test harness has begun a line.
    say("");
    Some(folder.into())
}

/// This test, started again as the child.
fn child(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["--exact", test, "--nocapture"]).env(CHILD, folder);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The parent may have stopped to listen.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// What a child says: its lines that are JSON.
struct Lines(BufReader<ChildStdout>);

impl Lines {
    fn of(child: &mut Child) -> Self {
        Self(BufReader::new(child.stdout.take().expect("piped")))
    }
}

impl Iterator for Lines {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("a text");
            // The last line may be cut.
            if !line.ends_with('\n') {
                return None;
            }
            if line.starts_with('{') {
                return Some(line);
            }
        }
    }
}

fn kill(child: &mut Child) {
    child.kill().expect("it was started");
    let status = child.wait().expect("it was started");
    assert_eq!(status.signal(), Some(9), "it ended before it was killed: {status}");
}
