//! `/containerLogs`: files in CRI format, filtered and followed. Following waits for inotify and for the container's end.

use std::io::{self, BufRead as _, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use axum::body::Body;
use bytes::Bytes;
use http::{Response, header};
use jiff::{SignedDuration, Timestamp};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

use super::query::Query;
use super::{Target, refusal};
use crate::api::Status;
use crate::node::pod_state::{ContainerState, PodState};

/// What of a log is wanted (`PodLogOptions`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogOptions {
    /// Go on until the container ends.
    pub follow: bool,
    /// The instance before.
    pub previous: bool,
    /// Nothing older.
    pub since: Option<Timestamp>,
    /// Each line with its time.
    pub timestamps: bool,
    /// Only so many of the last lines.
    pub tail: Option<u64>,
    /// Only so many bytes.
    pub limit: Option<u64>,
    /// `Stdout` or `Stderr`; `None`: both.
    pub stream: Option<&'static str>,
}

impl LogOptions {
    /// From the query.
    ///
    /// # Errors
    /// In the words of the API's validation.
    pub fn parse(query: &Query, now: Timestamp) -> Result<Self, String> {
        let number = |name: &str| -> Result<Option<i64>, String> {
            query
                .get(name)
                .filter(|text| !text.is_empty())
                .map(|text| text.parse().map_err(|_| format!("{name}: Invalid value: {text:?}: must be an integer")))
                .transpose()
        };
        let tail = match number("tailLines")? {
            Some(n) if n < 0 => {
                return Err(format!("tailLines: Invalid value: {n}: must be greater than or equal to 0"));
            }
            n => n.and_then(|n| u64::try_from(n).ok()),
        };
        let limit = match number("limitBytes")? {
            Some(n) if n < 1 => return Err(format!("limitBytes: Invalid value: {n}: must be greater than 0")),
            n => n.and_then(|n| u64::try_from(n).ok()),
        };
        let seconds = number("sinceSeconds")?;
        let time = query.get("sinceTime").filter(|t| !t.is_empty());
        let since = match (seconds, time) {
            (Some(_), Some(_)) => return Err("at most one of `sinceTime` or `sinceSeconds` may be specified".into()),
            (Some(n), None) if n < 1 => {
                return Err(format!("sinceSeconds: Invalid value: {n}: must be greater than 0"));
            }
            (Some(n), None) => Some(now.saturating_sub(SignedDuration::from_secs(n)).unwrap_or(Timestamp::MIN)),
            (None, Some(t)) => Some(t.parse().map_err(|_| format!("sinceTime: Invalid value: {t:?}"))?),
            (None, None) => None,
        };
        let stream = match query.get("stream") {
            None | Some("" | "All") => None,
            Some("Stdout") => Some("stdout"),
            Some("Stderr") => Some("stderr"),
            Some(other) => {
                return Err(format!(
                    "stream: Unsupported value: {other:?}: supported values: \"All\", \"Stderr\", \"Stdout\""
                ));
            }
        };
        Ok(Self {
            follow: query.flag("follow"),
            previous: query.flag("previous"),
            timestamps: query.flag("timestamps"),
            since,
            tail,
            limit,
            stream,
        })
    }
}

/// Which instance's log is meant: its number (`validateContainerLogStatus` of the kubelet).
///
/// # Errors
/// The kubelet's message.
pub fn attempt(pod: &str, name: &str, container: &ContainerState, previous: bool) -> Result<i32, String> {
    let waiting = |reason: &str| match reason {
        "ErrImagePull" => format!("container {name:?} in pod {pod:?} is waiting to start: image can't be pulled"),
        "ImagePullBackOff" => {
            format!("container {name:?} in pod {pod:?} is waiting to start: trying and failing to pull image")
        }
        other => format!("container {name:?} in pod {pod:?} is waiting to start: {other}"),
    };
    if previous {
        let crashed = container.latest_end().is_some() && container.waiting.is_some();
        let before = container.last.as_ref().map(|_| container.restarts - 1);
        let found = if crashed { Some(container.restarts) } else { before };
        return found.ok_or_else(|| format!("previous terminated container {name:?} in pod {pod:?} not found"));
    }
    if container.alive() || container.latest_end().is_some() {
        return Ok(container.restarts);
    }
    Err(waiting(container.waiting.as_ref().map_or("ContainerCreating", |(reason, _)| reason.as_str())))
}

/// Answers with the log.
pub fn answer(log_dir: &Path, target: Target, options: LogOptions) -> Response<Body> {
    let name = target.spec.name.clone();
    let container = target.pod.container(&name).clone();
    let attempt = match attempt(target.pod.name(), &name, &container, options.previous) {
        Ok(attempt) => attempt,
        Err(text) => return refusal(&Status::bad_request(text)),
    };
    let path = log_dir.join(&name).join(format!("{attempt}.log"));
    let follow = options.follow && container.alive() && !options.previous;
    let instance = Instance { name, id: container.id, view: target.view };
    let (sender, receiver) = mpsc::channel::<Bytes>(16);
    tokio::spawn(async move {
        if let Err(error) = send(path, options, follow.then_some(instance), sender).await {
            tracing::debug!(%error, "a log could not be read");
        }
    });
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|bytes| (Ok::<_, io::Error>(bytes), receiver))
    });
    Response::builder()
        .header(header::CONTENT_TYPE, "text/plain")
        .body(Body::from_stream(stream))
        .expect("these headers are valid")
}

/// The instance of a container whose log is followed.
struct Instance {
    name: String,
    id: String,
    view: watch::Receiver<std::sync::Arc<PodState>>,
}

impl Instance {
    /// Waits until the instance has ended.
    async fn ended(&mut self) {
        let (name, id) = (&self.name, &self.id);
        let over = |pod: &std::sync::Arc<PodState>| {
            let container = pod.container(name);
            container.id != *id || !container.alive()
        };
        // An error: the pod is gone, and its containers with it.
        let _ = self.view.wait_for(over).await;
    }
}

async fn send(
    path: PathBuf,
    options: LogOptions,
    follow: Option<Instance>,
    sender: mpsc::Sender<Bytes>,
) -> io::Result<()> {
    // The watch begins before the first read, so that nothing falls between.
    let mut watcher = match &follow {
        Some(_) => Some(Watcher::new(&path)?),
        None => None,
    };
    let mut reader = {
        let (path, options) = (path.clone(), options.clone());
        tokio::task::spawn_blocking(move || Reader::open(&path, options)).await.map_err(io::Error::other)??
    };
    let Some(mut instance) = follow else {
        return drain(reader, sender).await.map(drop);
    };
    loop {
        match drain(reader, sender.clone()).await? {
            Some(again) => reader = again,
            None => return Ok(()),
        }
        let watcher = watcher.as_mut().expect("it follows");
        tokio::select! {
            changed = watcher.changed() => changed?,
            () = instance.ended() => {
                drain(reader, sender).await?;
                return Ok(());
            }
            () = sender.closed() => return Ok(()),
        }
    }
}

/// Sends everything that is there; `None` when the client went or the limit is reached.
async fn drain(mut reader: Reader, sender: mpsc::Sender<Bytes>) -> io::Result<Option<Reader>> {
    let task = tokio::task::spawn_blocking(move || {
        loop {
            let (bytes, more) = reader.chunk()?;
            if !bytes.is_empty() && sender.blocking_send(bytes.into()).is_err() {
                return Ok(None);
            }
            if reader.exhausted() {
                return Ok(None);
            }
            if !more {
                return Ok(Some(reader));
            }
        }
    });
    task.await.map_err(io::Error::other)?
}

/// `nix` gives its descriptor only as a borrowed one.
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Tells when a file grows.
struct Watcher {
    inotify: AsyncFd<Descriptor>,
}

impl Watcher {
    fn new(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let what = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVE_SELF;
        inotify.add_watch(path, what)?;
        // SAFETY: `Descriptor` owns the inotify descriptor, always names the same one and closes it only when dropped.
        let inotify = unsafe { AsyncFd::register(Descriptor(inotify))? };
        Ok(Self { inotify })
    }

    async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.inotify.readable().await?;
            match guard.try_io(|fd| fd.get_ref().0.read_events().map_err(io::Error::from)) {
                Ok(result) => return result.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

/// Reads whole lines from where it stands.
struct Reader {
    file: io::BufReader<std::fs::File>,
    options: LogOptions,
    partial: Vec<u8>,
    left: Option<u64>,
}

/// How much is sent at once.
const CHUNK: usize = 64 << 10;
/// A longer line is passed on in parts (the runtime splits at 16 KiB).
const MOST_LINE: u64 = 1 << 20;

impl Reader {
    fn open(path: &Path, options: LogOptions) -> io::Result<Self> {
        let mut file = std::fs::File::open(path)?;
        if let Some(lines) = options.tail {
            let start = tail_start(&mut file, lines, &options)?;
            file.seek(SeekFrom::Start(start))?;
        }
        let left = options.limit;
        Ok(Self { file: io::BufReader::new(file), options, partial: Vec::new(), left })
    }

    fn exhausted(&self) -> bool {
        self.left == Some(0)
    }

    /// The next lines as the client sees them, and whether there may be more.
    fn chunk(&mut self) -> io::Result<(Vec<u8>, bool)> {
        let mut out = Vec::new();
        while out.len() < CHUNK {
            let n = (&mut self.file).take(MOST_LINE).read_until(b'\n', &mut self.partial)?;
            if n == 0 || !self.partial.ends_with(b"\n") {
                // The rest of the line is not written yet (or never will be).
                self.cut(&mut out);
                return Ok((out, false));
            }
            let line = std::mem::take(&mut self.partial);
            render(&line, &self.options, &mut out);
        }
        self.cut(&mut out);
        Ok((out, true))
    }

    fn cut(&mut self, out: &mut Vec<u8>) {
        if let Some(left) = &mut self.left {
            out.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= out.len() as u64;
        }
    }
}

/// One line in CRI format as its parts: time, stream, whether it is whole, text.
fn parse(line: &[u8]) -> Option<(&[u8], &[u8], bool, &[u8])> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (time, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    let text = parts.next()?;
    Some((time, stream, tag.first() == Some(&b'F'), text.strip_suffix(b"\n").unwrap_or(text)))
}

fn wanted(time: &[u8], stream: &[u8], options: &LogOptions) -> bool {
    if options.stream.is_some_and(|s| s.as_bytes() != stream) {
        return false;
    }
    match options.since {
        None => true,
        Some(since) => {
            std::str::from_utf8(time).ok().and_then(|t| t.parse::<Timestamp>().ok()).is_none_or(|t| t >= since)
        }
    }
}

fn render(line: &[u8], options: &LogOptions, out: &mut Vec<u8>) {
    let Some((time, stream, whole, text)) = parse(line) else { return };
    if !wanted(time, stream, options) {
        return;
    }
    if options.timestamps {
        out.extend_from_slice(time);
        out.push(b' ');
    }
    out.extend_from_slice(text);
    if whole {
        out.push(b'\n');
    }
}

/// Where the last `lines` lines that are wanted begin. Parts of a line that was split count as one line.
fn tail_start(file: &mut std::fs::File, lines: u64, options: &LogOptions) -> io::Result<u64> {
    const BLOCK: u64 = 64 << 10;
    let end = file.metadata()?.len();
    if lines == 0 {
        return Ok(end);
    }
    let mut found = 0;
    let mut start = end;
    // Bytes after the last newline seen so far, which belong to the line that is being looked for.
    let mut rest: Vec<u8> = Vec::new();
    let mut at = end;
    while at > 0 {
        let size = BLOCK.min(at);
        at -= size;
        file.seek(SeekFrom::Start(at))?;
        let mut block = vec![0; usize::try_from(size).unwrap_or(0)];
        file.read_exact(&mut block)?;
        block.extend_from_slice(&rest);
        let mut until = block.len();
        while let Some(newline) = block[..until.saturating_sub(1)].iter().rposition(|b| *b == b'\n') {
            if counts(&block[newline + 1..until], options) {
                if found == lines {
                    return Ok(start);
                }
                found += 1;
            }
            start = at + newline as u64 + 1;
            until = newline + 1;
        }
        rest = block[..until].to_vec();
        if rest.len() as u64 > MOST_LINE {
            break;
        }
    }
    // The first line of the file.
    if found == lines && counts(&rest, options) { Ok(start) } else { Ok(at) }
}

/// Whether the bytes are the end of a line that is wanted.
fn counts(line: &[u8], options: &LogOptions) -> bool {
    parse(line).is_some_and(|(time, stream, whole, _)| whole && wanted(time, stream, options))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::pod_state::Run;
    use crate::node::runtime::Exit;

    fn text(options: LogOptions) -> String {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("0.log");
        let log = "2026-01-01T00:00:01.000000000Z stdout F one\n\
                   2026-01-01T00:00:02.000000000Z stderr F two\n\
                   2026-01-01T00:00:03.000000000Z stdout P thr\n\
                   2026-01-01T00:00:03.000000000Z stdout F ee\n\
                   2026-01-01T00:00:04.000000000Z stdout F four\n";
        std::fs::write(&path, log).expect("written");
        let (bytes, more) = Reader::open(&path, options).expect("opened").chunk().expect("read");
        assert!(!more);
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn options() {
        let tail = |n| LogOptions { tail: Some(n), ..LogOptions::default() };
        assert_eq!(text(LogOptions::default()), "one\ntwo\nthree\nfour\n");
        assert_eq!(text(tail(0)), "");
        assert_eq!(text(tail(1)), "four\n");
        assert_eq!(text(tail(2)), "three\nfour\n");
        assert_eq!(text(tail(4)), "one\ntwo\nthree\nfour\n");
        assert_eq!(text(tail(9)), "one\ntwo\nthree\nfour\n");
        assert_eq!(text(LogOptions { limit: Some(5), ..LogOptions::default() }), "one\nt");
        assert_eq!(text(LogOptions { stream: Some("stderr"), ..LogOptions::default() }), "two\n");
        let since = "2026-01-01T00:00:04Z".parse().ok();
        let stamped = text(LogOptions { since, timestamps: true, ..LogOptions::default() });
        assert_eq!(stamped, "2026-01-01T00:00:04.000000000Z four\n");
    }

    #[test]
    fn queries_are_validated() {
        let parse = |query: &str| LogOptions::parse(&Query::parse(query), Timestamp::UNIX_EPOCH);
        assert!(parse("tailLines=-1").is_err());
        assert!(parse("limitBytes=0").is_err());
        assert!(parse("sinceSeconds=5&sinceTime=2026-01-01T00:00:00Z").is_err());
        assert!(parse("stream=x").is_err());
        assert_eq!(parse("follow=true&tailLines=3").map(|o| (o.follow, o.tail)), Ok((true, Some(3))));
    }

    #[test]
    fn instances_and_words() {
        let mut container = ContainerState::default();
        let exit = Exit { code: 1, signal: None, oom_killed: false, finished_at: Timestamp::UNIX_EPOCH };
        let ask = |c: &ContainerState, previous| attempt("p", "c", c, previous);
        assert_eq!(
            ask(&container, false).expect_err("waits"),
            "container \"c\" in pod \"p\" is waiting to start: ContainerCreating"
        );
        container.waiting = Some(("ImagePullBackOff".into(), String::new()));
        assert!(ask(&container, false).expect_err("waits").ends_with("trying and failing to pull image"));
        assert_eq!(
            ask(&container, true).expect_err("none"),
            "previous terminated container \"c\" in pod \"p\" not found"
        );
        container.waiting = None;
        container.run = Run::Running { started_at: Timestamp::UNIX_EPOCH, hooked: true };
        assert_eq!(ask(&container, false), Ok(0));
        container.run = Run::Ended(crate::node::adopt::ended("", Timestamp::UNIX_EPOCH, &exit));
        container.make_room();
        container.run = Run::Starting;
        assert_eq!(ask(&container, false), Ok(0), "the one that ended, until the next one is there");
        assert!(ask(&container, true).is_err());
        container.created();
        container.run = Run::Running { started_at: Timestamp::UNIX_EPOCH, hooked: true };
        assert_eq!((ask(&container, false), ask(&container, true)), (Ok(1), Ok(0)));
    }
}
