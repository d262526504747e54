//! House rules as a test: layers, first lines, clocks, unwraps. What fails here tells a newcomer how this code is written.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What each layer may import (beside itself). See `src/lib.rs`.
const LAYERS: &[(&str, &[&str])] = &[
    ("env", &[]),
    ("config", &[]),
    ("telemetry", &[]),
    ("api", &["env", "config", "telemetry"]),
    ("storage", &["env", "telemetry"]),
    ("apiserver", &["env", "config", "telemetry", "api", "storage"]),
    ("client", &["env", "config", "telemetry", "api"]),
    ("controllers", &["env", "config", "telemetry", "api", "client"]),
    ("scheduler", &["env", "config", "telemetry", "api", "client"]),
    ("node", &["env", "config", "telemetry", "api", "client"]),
    ("net", &["env", "config", "telemetry", "api", "client"]),
    ("addons", &["env", "config", "telemetry", "api", "client"]),
    ("builtin_images", &[]),
];

/// The composition root, the command line and the library's front page see everything.
const ON_TOP: &[&str] = &["cluster", "cli", "lib", "main"];

/// Files and folders that may ask a clock or draw randomness by themselves, and why.
const CLOCKS: &[(&str, &str)] = &[
    ("src/env/", "it is the source"),
    ("src/client/work_queue.rs", "deadlines of the runtime's timer; what the clock says goes through env"),
    ("src/apiserver/http/", "how long a request took"),
    ("src/apiserver/registry/expiry.rs", "deadlines of the runtime's timer"),
    ("src/apiserver/registry/watch.rs", "the deadline that a client asked for"),
    ("src/cli/", "how long a person waits, and benchmarks"),
    ("src/cluster/", "how long a start takes"),
    ("src/net/engine/", "the clock that smoltcp is polled with"),
    ("src/net/dns/forward.rs", "ids of forwarded queries, which must not be guessed"),
    ("src/net/host_ports.rs", "how long a client keeps its endpoint, on real sockets"),
    ("src/telemetry/", "when a line of a log was written"),
    ("src/node/container_start.rs", "how long a pull took, for the event's message"),
    ("src/node/runtime/", "shims are processes of their own; their records carry the machine's time"),
    ("src/node/server/port_forward.rs", "how long half a pair of streams has waited"),
];

/// Files with a periodic timer, and who asks for the period.
const PERIODIC: &[(&str, &str)] = &[
    ("src/node/node.rs", "the node's lease, which others take for its heartbeat"),
    ("src/node/probes/", "periodSeconds of a probe"),
    ("src/controllers/horizontal_pod_autoscaler/", "metrics cannot be watched; only while an autoscaler exists"),
];

fn is_listed(list: &[(&str, &str)], path: &Path) -> bool {
    list.iter().any(|(known, _)| path.to_str().is_some_and(|path| path.starts_with(known)))
}

/// A source file of ours.
struct Source {
    path: PathBuf,
    text: String,
    /// The text without comments and without its tests.
    code: String,
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the tests run in the package's folder") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("sources are readable");
                let code = if is_test(&path) { String::new() } else { without_tests_and_comments(&text) };
                found.push(Source { path, text, code });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Files that are compiled for tests only.
fn is_test(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let folder = path.components().any(|part| part.as_os_str() == "tests");
    folder
        || ["tests", "testing", "simulation", "contract"].contains(&stem)
        || stem.ends_with("_tests")
        || stem.ends_with("_test")
}

/// Modules of tests stand at the end of their file.
fn without_tests_and_comments(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let bare = line.trim();
        if bare.starts_with("#[cfg(") && bare.contains("test") {
            let module =
                lines.peek().is_some_and(|next| next.trim_start().contains("mod ") && next.trim_end().ends_with('{'));
            if module {
                break;
            }
        }
        if !bare.starts_with("//") {
            code.push_str(line);
            code.push('\n');
        }
    }
    code
}

/// The layer of a file: the first folder or file below `src`.
fn layer(path: &Path) -> String {
    let first = path.components().nth(1).expect("the path begins with src");
    Path::new(first.as_os_str()).file_stem().expect("it has a name").to_string_lossy().into_owned()
}

/// The layers that a text names as `crate::<layer>`, also in groups: `use crate::{api, env}`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        match rest.strip_prefix('{') {
            None => drop(found.insert(word(rest))),
            Some(group) => {
                let mut depth = 0;
                for part in group.split_inclusive([',', '{', '}']) {
                    if depth == 0 {
                        found.insert(word(part.trim_start()));
                    }
                    match part.chars().last() {
                        Some('{') => depth += 1,
                        Some('}') if depth == 0 => break,
                        Some('}') => depth -= 1,
                        _ => {}
                    }
                }
            }
        }
    }
    found.remove("");
    found
}

fn report(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}\n  {}", broken.join("\n  "));
}

#[test]
fn no_layer_is_crossed() {
    let known: BTreeSet<&str> = LAYERS.iter().map(|(name, _)| *name).chain(ON_TOP.iter().copied()).collect();
    let mut broken = Vec::new();
    for source in sources() {
        let own = layer(&source.path);
        if ON_TOP.contains(&own.as_str()) {
            continue;
        }
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == own) else {
            broken.push(format!("{}: the layer {own} is not in the table of tests/tidy.rs", source.path.display()));
            continue;
        };
        for import in imports(&source.code) {
            if known.contains(import.as_str()) && import != own && !allowed.contains(&import.as_str()) {
                broken.push(format!("{}: {own} must not import {import}", source.path.display()));
            }
        }
    }
    report("Layers (src/lib.rs) are crossed:", &broken);
}

#[test]
fn every_file_says_its_job_in_the_first_line() {
    let broken: Vec<String> = sources()
        .iter()
        .filter(|source| !source.text.starts_with("//! "))
        .map(|source| source.path.display().to_string())
        .collect();
    report("The first line of a file is `//! ` and its job:", &broken);
}

/// Lines of code that contain one of the words.
fn lines_with(words: &[&str], is_allowed: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| !is_allowed(&source.path)) {
        for line in source.code.lines().filter(|line| words.iter().any(|word| line.contains(word))) {
            found.push(format!("{}: {}", source.path.display(), line.trim()));
        }
    }
    found
}

#[test]
fn unwraps_say_why_they_hold() {
    let broken = lines_with(&[".unwrap()"], |_| false);
    report("Instead of `.unwrap()`: handle it, or `.expect(\"why this holds\")`:", &broken);
}

#[test]
fn time_and_randomness_come_from_env() {
    let words = ["Instant::now(", "SystemTime::now(", "Timestamp::now(", "Zoned::now(", "rand::", "Uuid::new_v4("];
    let broken = lines_with(&words, |path| is_listed(CLOCKS, path));
    report("Clocks and randomness are `env::Env`'s, so that simulations replay (exceptions: CLOCKS):", &broken);
}

#[test]
fn nothing_happens_because_time_has_passed() {
    let broken = lines_with(&["time::interval", "interval_at("], |path| is_listed(PERIODIC, path));
    report(
        "No periodic timers: wait for an event, or for a deadline that somebody set (exceptions: PERIODIC):",
        &broken,
    );
}

#[test]
fn exceptions_are_about_files_that_exist() {
    let broken: Vec<String> = CLOCKS
        .iter()
        .chain(PERIODIC)
        .filter(|(path, why)| !Path::new(path).exists() || why.is_empty())
        .map(|(path, _)| (*path).to_owned())
        .collect();
    report("Exceptions name files and say why:", &broken);
}

#[test]
fn imports_are_read_as_rust_reads_them() {
    let names = |code: &str| imports(code).into_iter().collect::<Vec<_>>();
    assert_eq!(names("use crate::api::{Gvr, Status};"), ["api"]);
    assert_eq!(names("use crate::{api::{Gvr, kind}, client, env::Env};"), ["api", "client", "env"]);
    assert_eq!(names("let x = crate::node::start(); mycrate::net::x()"), ["node"]);
}
