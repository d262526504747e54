//! Structured logs: one line per event, on standard error or into the profile's log file; and, for parts of the process that are shown
//! as pods, once more into a log of their own.

pub mod log_file;

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use jiff::Timestamp;
use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;

use log_file::LogFile;

/// Where standard error goes, when that is a file.
static WHOLE: OnceLock<Mutex<LogFile>> = OnceLock::new();

/// Starts logging to standard error. `MINI_LOG` (for example `debug` or `mini::net=trace`) overrides `default_filter`.
/// `log` is the file to which standard error goes, if it does; that is kept small.
///
/// # Errors
/// Those of opening the file.
pub fn init(default_filter: &str, log: Option<&Path>) -> io::Result<()> {
    if let Some(path) = log {
        // A second call keeps the first file, as it keeps the first subscriber.
        let _ = WHOLE.set(Mutex::new(LogFile::of_stderr(path)?));
    }
    let filter = tracing_subscriber::EnvFilter::try_from_env("MINI_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default_filter));
    let whole = tracing_subscriber::fmt::layer().with_writer(|| Whole).with_ansi(false);
    let by_part = tracing_subscriber::fmt::layer().with_writer(ByPart).with_ansi(false).without_time();
    let subscriber = tracing_subscriber::registry().with(filter).with(whole).with(by_part);
    // A second call (tests in one process) keeps the first subscriber.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

/// Writes whole events.
struct Whole;

impl Write for Whole {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        match WHOLE.get() {
            Some(log) => log.lock().unwrap_or_else(PoisonError::into_inner).write(event, Timestamp::now()),
            None => io::stderr().write_all(event)?,
        }
        Ok(event.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A log of a part of the process.
struct PartLog {
    name: String,
    modules: &'static [&'static str],
    file: Arc<Mutex<LogFile>>,
}

static PARTS: RwLock<Vec<PartLog>> = RwLock::new(Vec::new());

/// From now on what `modules` (and those below them) log is written to `path` as well, in CRI format.
///
/// # Errors
/// Those of opening the file.
pub fn open_part(name: &str, modules: &'static [&'static str], path: &Path) -> io::Result<()> {
    let file = Arc::new(Mutex::new(LogFile::open(path)?));
    let part = PartLog { name: name.to_owned(), modules, file };
    let mut parts = PARTS.write().unwrap_or_else(PoisonError::into_inner);
    parts.retain(|known| known.name != name);
    parts.push(part);
    Ok(())
}

/// Ends the log of a part.
pub fn close_part(name: &str) {
    PARTS.write().unwrap_or_else(PoisonError::into_inner).retain(|known| known.name != name);
}

/// Writes a line into the log of a part.
///
/// # Errors
/// Those of the file.
pub fn write_part(name: &str, line: &str) -> io::Result<()> {
    let parts = PARTS.read().unwrap_or_else(PoisonError::into_inner);
    match parts.iter().find(|part| part.name == name) {
        Some(part) => PartWriter(Some(part.file.clone())).write_all(line.as_bytes()),
        None => Ok(()),
    }
}

/// The log whose module is nearest to a target.
fn nearest<'a>(parts: &'a [PartLog], target: &str) -> Option<&'a PartLog> {
    let length = |part: &PartLog| {
        let below = |module: &&&str| {
            target.strip_prefix(**module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        part.modules.iter().filter(below).map(|module| module.len()).max()
    };
    parts.iter().filter_map(|part| Some((length(part)?, part))).max_by_key(|(length, _)| *length).map(|(_, part)| part)
}

struct ByPart;

/// Writes events of one part.
struct PartWriter(Option<Arc<Mutex<LogFile>>>);

impl<'a> MakeWriter<'a> for ByPart {
    type Writer = PartWriter;

    fn make_writer(&'a self) -> PartWriter {
        PartWriter(None)
    }
    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> PartWriter {
        let parts = PARTS.read().unwrap_or_else(PoisonError::into_inner);
        PartWriter(nearest(&parts, metadata.target()).map(|part| part.file.clone()))
    }
}

impl Write for PartWriter {
    /// Takes a whole event.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        if let Some(file) = &self.0 {
            let at = Timestamp::now();
            let now = at.strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string();
            let mut text = Vec::with_capacity(event.len() + 64);
            for line in event.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                text.extend_from_slice(format!("{now} stderr F ").as_bytes());
                text.extend_from_slice(line);
                text.push(b'\n');
            }
            file.lock().unwrap_or_else(PoisonError::into_inner).write(&text, at);
        }
        Ok(event.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_go_to_the_nearest_part() {
        let directory = tempfile::tempdir().expect("a directory");
        let part = |name: &str, modules: &'static [&'static str]| {
            let file = LogFile::open(&directory.path().join(name)).expect("a file");
            PartLog { name: name.to_owned(), modules, file: Arc::new(Mutex::new(file)) }
        };
        let parts = [part("kube-proxy", &["mini::net"]), part("coredns", &["mini::net::dns"])];
        let name = |target| nearest(&parts, target).map(|part| part.name.as_str());
        assert_eq!(name("mini::net::engine"), Some("kube-proxy"));
        assert_eq!(name("mini::net::dns::server"), Some("coredns"));
        assert_eq!(name("mini::network"), None);
        let mut writer = PartWriter(Some(parts[0].file.clone()));
        writer.write_all(b" INFO mini::net: one\n  two\n").expect("written");
        let text = std::fs::read_to_string(directory.path().join("kube-proxy")).expect("a file");
        let lines: Vec<&str> = text.lines().map(|line| line.split_once(' ').expect("a time").1).collect();
        assert_eq!(lines, ["stderr F  INFO mini::net: one", "stderr F   two"]);
    }
}
