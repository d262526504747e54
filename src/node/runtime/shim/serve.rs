//! The shim's event loop: requests, container output, ends of processes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{SockFlag, accept4};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use super::ById;
use super::launch::{Launched, Launcher, Refusal};
use super::log::Line;
use super::payload::Payload;
use super::protocol::{EXITS, ExitRecord, Failure, LAUNCH, Reply, Request, receive, send};
use crate::node::namespaces::start_time;
use crate::node::runtime::cgroups::Group;
use crate::node::runtime::shims::{STARTED, StartedRecord, write_json};
use crate::node::runtime::{ContainerConfig, Exit};
use crate::telemetry::log_file::LogFile;

/// How much output an attached client may be behind before it loses some.
const BEHIND: usize = 1 << 20;

/// The state of a shim.
pub struct Server {
    launcher: Launcher,
    listener: OwnedFd,
    signals: SignalFd,
    connections: Vec<Connection>,
    containers: ById<Container>,
    exits: Vec<ExitRecord>,
    stopping: bool,
    next_connection: u64,
}

struct Connection {
    number: u64,
    socket: OwnedFd,
    role: Role,
}

enum Role {
    Idle,
    Exec { pid: i32 },
    Attached { id: String, to: [Option<Outlet>; 2] },
    Subscriber,
    AwaitsRemoval { id: String },
    AwaitsStop,
    Closed,
}

/// A pipe to an attached client: never blocks the container.
struct Outlet {
    pipe: OwnedFd,
    pending: Vec<u8>,
}

struct Container {
    pid: i32,
    running: bool,
    tty: bool,
    stdin_once: bool,
    stdin: Option<OwnedFd>,
    /// stdout (or the terminal) and stderr.
    streams: [Option<Stream>; 2],
    log: LogFile,
    group: Group,
    payload: Payload,
    oom_kills: u64,
}

struct Stream {
    fd: OwnedFd,
    line: Line,
}

/// What woke the loop.
#[derive(Clone)]
enum Source {
    Listener,
    Signals,
    Connection(u64),
    Stream(String, usize),
    Outlet(u64, usize),
}

impl Server {
    /// Ready to serve.
    pub fn new(launcher: Launcher, listener: OwnedFd) -> io::Result<Self> {
        let mut wanted = SigSet::empty();
        wanted.add(Signal::SIGCHLD);
        wanted.add(Signal::SIGTERM);
        wanted.thread_block()?;
        let signals = SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        nonblocking(listener.as_fd())?;
        Ok(Self {
            launcher,
            listener,
            signals,
            connections: Vec::new(),
            containers: ById::new(),
            exits: Vec::new(),
            stopping: false,
            next_connection: 0,
        })
    }

    /// Serves until it is told to stop.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            for source in self.wait()? {
                match source {
                    Source::Listener => self.accept(),
                    Source::Signals => self.reap(),
                    Source::Connection(number) => self.answer(number),
                    Source::Stream(id, which) => self.read_stream(&id, which),
                    Source::Outlet(number, which) => self.flush(number, which),
                }
            }
            self.connections.retain(|c| !matches!(c.role, Role::Closed));
            if self.stopping && self.containers.values().all(|c| !c.running) {
                return self.end();
            }
        }
    }

    fn wait(&self) -> io::Result<Vec<Source>> {
        let input = PollFlags::POLLIN;
        let mut fds = vec![PollFd::new(self.listener.as_fd(), input), PollFd::new(self.signals.as_fd(), input)];
        let mut sources = vec![Source::Listener, Source::Signals];
        for connection in &self.connections {
            fds.push(PollFd::new(connection.socket.as_fd(), input));
            sources.push(Source::Connection(connection.number));
            if let Role::Attached { to, .. } = &connection.role {
                for (which, outlet) in to.iter().enumerate() {
                    if let Some(outlet) = outlet.as_ref().filter(|o| !o.pending.is_empty()) {
                        fds.push(PollFd::new(outlet.pipe.as_fd(), PollFlags::POLLOUT));
                        sources.push(Source::Outlet(connection.number, which));
                    }
                }
            }
        }
        for (id, container) in &self.containers {
            for (which, stream) in container.streams.iter().enumerate() {
                if let Some(stream) = stream {
                    fds.push(PollFd::new(stream.fd.as_fd(), input));
                    sources.push(Source::Stream(id.clone(), which));
                }
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let woken = fds.iter().zip(sources).filter(|(fd, _)| fd.any().unwrap_or(false));
        Ok(woken.map(|(_, source)| source).collect())
    }

    fn accept(&mut self) {
        while let Ok(socket) = accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            self.next_connection += 1;
            // SAFETY: the kernel has just made it for us.
            let socket = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(socket) };
            self.connections.push(Connection { number: self.next_connection, socket, role: Role::Idle });
        }
    }

    fn position(&self, number: u64) -> Option<usize> {
        self.connections.iter().position(|c| c.number == number)
    }

    fn answer(&mut self, number: u64) {
        let Some(at) = self.position(number) else { return };
        match receive::<Request>(self.connections[at].socket.as_fd()) {
            Ok(Some((request, fds))) => {
                if let Err((kind, message)) = self.handle(at, request, fds) {
                    self.reply(at, &Reply::Failed { kind, message }, &[]);
                }
            }
            Ok(None) => self.hang_up(at),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let message = format!("bad request: {error}");
                self.reply(at, &Reply::Failed { kind: Failure::Invalid, message }, &[]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.hang_up(at),
        }
    }

    /// The other side closed: whoever runs a command over the connection does not want it any more.
    fn hang_up(&mut self, at: usize) {
        if let Role::Exec { pid } = self.connections[at].role {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        self.connections[at].role = Role::Closed;
    }

    fn reply(&mut self, at: usize, reply: &Reply, fds: &[RawFd]) {
        if send(self.connections[at].socket.as_fd(), reply, fds).is_err() {
            self.hang_up(at);
        }
    }

    fn handle(&mut self, at: usize, request: Request, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        match request {
            Request::Start { id } => self.start(at, &id),
            Request::Exec { id, argv, tty } => self.exec(at, &id, argv, tty, fds),
            Request::Attach { id, stdin } => self.attach(at, &id, stdin),
            Request::Resize { width, height } => {
                self.resize(at, width, height);
                Ok(())
            }
            Request::SignalExec { signal } => {
                if let Role::Exec { pid } = self.connections[at].role {
                    send_signal(pid, signal)?;
                }
                Ok(())
            }
            Request::Signal { id, signal } => {
                let container = self.container(&id)?;
                if container.running {
                    send_signal(container.pid, signal)?;
                }
                self.reply(at, &Reply::Done, &[]);
                Ok(())
            }
            Request::Remove { id } => {
                match self.containers.get(&id) {
                    Some(container) if container.running => {
                        container.group.kill();
                        let _ = kill(Pid::from_raw(container.pid), Signal::SIGKILL);
                        self.connections[at].role = Role::AwaitsRemoval { id };
                    }
                    _ => self.remove(at, &id),
                }
                Ok(())
            }
            Request::Stop => {
                self.connections[at].role = Role::AwaitsStop;
                self.stop();
                Ok(())
            }
            Request::Subscribe => {
                for record in self.exits.clone() {
                    self.reply(at, &Reply::Exited(record), &[]);
                }
                self.reply(at, &Reply::Done, &[]);
                self.connections[at].role = Role::Subscriber;
                Ok(())
            }
        }
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, Refusal> {
        self.containers.get_mut(id).ok_or_else(|| (Failure::NotFound, format!("container \"{id}\"")))
    }

    fn start(&mut self, at: usize, id: &str) -> Result<(), Refusal> {
        let refuse = |message: String| (Failure::Create, message);
        if self.stopping {
            return Err(refuse("the sandbox is stopping".to_owned()));
        }
        let directory = self.launcher.directory.join("containers").join(id);
        let bytes = std::fs::read(directory.join(LAUNCH)).map_err(|e| refuse(format!("{LAUNCH}: {e}")))?;
        let config: ContainerConfig = serde_json::from_slice(&bytes).map_err(|e| refuse(format!("{LAUNCH}: {e}")))?;
        let target = match &config.pid_namespace_of {
            None => None,
            Some(target) => match self.containers.get(target).filter(|c| c.running) {
                Some(container) => Some(container.pid),
                None => return Err(refuse(format!("the target container {target:?} does not run"))),
            },
        };
        let log_dir = &self.launcher.config.sandbox.log_dir;
        let log = LogFile::open(&log_dir.join(&config.name).join(format!("{}.log", config.attempt)))
            .map_err(|e| refuse(format!("log file: {e}")))?;
        let Launched { pid, started_at, stdin, stdout, stderr, terminal, group, payload } =
            self.launcher.start(&config, target)?;
        let stream = |fd: Option<OwnedFd>| {
            fd.map(|fd| {
                let _ = nonblocking(fd.as_fd());
                Stream { fd, line: Line::default() }
            })
        };
        let tty = terminal.is_some();
        let stdin = match &terminal {
            Some(terminal) if config.stdin => terminal.try_clone().ok(),
            _ => stdin,
        };
        let container = Container {
            pid,
            running: true,
            tty,
            stdin_once: config.stdin_once,
            stdin,
            streams: [stream(terminal.or(stdout)), stream(stderr)],
            log,
            oom_kills: group.oom_kills(),
            group,
            payload,
        };
        self.containers.insert(id.to_owned(), container);
        let record = StartedRecord { pid, ticks: start_time(pid).unwrap_or(0), started_at };
        write_json(&directory.join(STARTED), &record).map_err(|e| refuse(format!("{STARTED}: {e}")))?;
        self.reply(at, &Reply::Started { pid, started_at }, &[]);
        Ok(())
    }

    fn exec(&mut self, at: usize, id: &str, argv: Vec<String>, tty: bool, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        let container = self.container(id)?;
        if !container.running {
            return Err((Failure::NotRunning, id.to_owned()));
        }
        let (payload, group) = (container.payload.clone(), container.group.clone());
        let streams = match (tty, <[OwnedFd; 3]>::try_from(fds)) {
            (true, _) => None,
            (false, Ok(streams)) => Some(streams),
            (false, Err(_)) => return Err((Failure::Invalid, "three streams are needed".to_owned())),
        };
        let (pid, terminal) = self.launcher.exec(id, &payload, &group, argv, streams)?;
        self.connections[at].role = Role::Exec { pid };
        let fds: Vec<RawFd> = terminal.iter().map(AsRawFd::as_raw_fd).collect();
        self.reply(at, &Reply::Running { pid }, &fds);
        Ok(())
    }

    fn attach(&mut self, at: usize, id: &str, stdin: bool) -> Result<(), Refusal> {
        let failed = |e: nix::Error| (Failure::Invalid, format!("pipe: {e}"));
        let container = self.container(id)?;
        if !container.running {
            return Err((Failure::NotRunning, id.to_owned()));
        }
        let (mut ours, mut theirs) = ([None, None], Vec::new());
        for (which, stream) in container.streams.iter().enumerate() {
            if stream.is_some() {
                let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(failed)?;
                let _ = nonblocking(write.as_fd());
                ours[which] = Some(Outlet { pipe: write, pending: Vec::new() });
                theirs.push(read);
            }
        }
        let outputs = theirs.len();
        if stdin {
            let once = container.stdin_once && !container.tty;
            let input =
                if once { container.stdin.take() } else { container.stdin.as_ref().and_then(|s| s.try_clone().ok()) };
            theirs.extend(input);
        }
        let pid = container.pid;
        self.connections[at].role = Role::Attached { id: id.to_owned(), to: ours };
        let fds: Vec<RawFd> = theirs.iter().map(AsRawFd::as_raw_fd).collect();
        self.reply(at, &Reply::Attached { pid, outputs }, &fds);
        Ok(())
    }

    fn resize(&mut self, at: usize, width: u16, height: u16) {
        let Role::Attached { id, .. } = &self.connections[at].role else { return };
        let Some(container) = self.containers.get(id).filter(|c| c.tty) else { return };
        if let Some(terminal) = &container.streams[0] {
            let _ = set_window(terminal.fd.as_fd(), width, height);
        }
    }

    fn read_stream(&mut self, id: &str, which: usize) {
        let mut buffer = [0; 32 << 10];
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(stream) = &mut container.streams[which] else { return };
        let read = nix::unistd::read(stream.fd.as_raw_fd(), &mut buffer);
        match read {
            Ok(length) if length > 0 => self.output(id, which, &buffer[..length]),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
            Ok(_) | Err(_) => self.close_stream(id, which), // a terminal ends with EIO
        }
    }

    fn output(&mut self, id: &str, which: usize, bytes: &[u8]) {
        let now = Timestamp::now();
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(stream) = &mut container.streams[which] else { return };
        let mut entries = Vec::with_capacity(bytes.len() + 128);
        stream.line.push(name(which), now, bytes, &mut entries);
        container.log.write(&entries, now);
        for connection in &mut self.connections {
            if let Role::Attached { id: attached, to } = &mut connection.role
                && attached == id
                && let Some(outlet) = &mut to[which]
                && outlet.pending.len() + bytes.len() <= BEHIND
            {
                outlet.pending.extend_from_slice(bytes);
                outlet.flush();
            }
        }
    }

    fn close_stream(&mut self, id: &str, which: usize) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(mut stream) = container.streams[which].take() else { return };
        let (now, mut entries) = (Timestamp::now(), Vec::new());
        stream.line.finish(name(which), now, &mut entries);
        container.log.write(&entries, now);
    }

    fn flush(&mut self, number: u64, which: usize) {
        let Some(at) = self.position(number) else { return };
        if let Role::Attached { to, .. } = &mut self.connections[at].role
            && let Some(outlet) = &mut to[which]
        {
            outlet.flush();
        }
    }

    fn reap(&mut self) {
        let mut terminated = false;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            terminated |= signal.ssi_signo == libc::SIGTERM as u32;
        }
        if terminated {
            self.stop();
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => self.ended(pid.as_raw(), code, None),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    self.ended(pid.as_raw(), 128 + signal as i32, Some(signal as i32));
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    fn ended(&mut self, pid: i32, code: i32, signal: Option<i32>) {
        let running = self.containers.iter().find(|(_, c)| c.running && c.pid == pid).map(|(id, _)| id.clone());
        if let Some(id) = running {
            return self.container_ended(&id, code, signal);
        }
        let exec = self.connections.iter().position(|c| matches!(c.role, Role::Exec { pid: p } if p == pid));
        if let Some(at) = exec {
            self.connections[at].role = Role::Idle;
            self.reply(at, &Reply::Ended { code }, &[]);
        }
    }

    fn container_ended(&mut self, id: &str, code: i32, signal: Option<i32>) {
        // What it wrote last is still in the pipes.
        for which in [0, 1] {
            self.drain(id, which);
            self.close_stream(id, which);
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        container.running = false;
        container.stdin = None;
        let oom_killed = code == 137 && container.group.oom_kills() > container.oom_kills;
        container.group.kill(); // without a pid namespace of its own it may have left children
        let exit = Exit { code, signal, oom_killed, finished_at: Timestamp::now() };
        let record = ExitRecord { id: id.to_owned(), exit };
        let _ = self.append(&record);
        self.exits.push(record.clone());
        for at in 0..self.connections.len() {
            match &self.connections[at].role {
                Role::Subscriber => self.reply(at, &Reply::Exited(record.clone()), &[]),
                Role::Attached { id: attached, .. } if attached == id => {
                    self.reply(at, &Reply::Ended { code }, &[]);
                    if let Role::Attached { to, .. } = &mut self.connections[at].role {
                        // A client that is behind gets the rest before its pipes close.
                        to.iter_mut().for_each(|o| {
                            if o.as_ref().is_some_and(|o| o.pending.is_empty()) {
                                *o = None;
                            }
                        });
                    }
                }
                Role::AwaitsRemoval { id: waited } if waited == id => self.remove(at, id),
                _ => {}
            }
        }
    }

    fn drain(&mut self, id: &str, which: usize) {
        let mut buffer = [0; 32 << 10];
        // At most what a pipe holds: a child that was left behind may go on writing.
        for _ in 0..64 {
            let stream = self.containers.get(id).and_then(|c| c.streams[which].as_ref());
            let Some(stream) = stream else { return };
            match nix::unistd::read(stream.fd.as_raw_fd(), &mut buffer) {
                Ok(length) if length > 0 => self.output(id, which, &buffer[..length]),
                _ => return,
            }
        }
    }

    fn append(&self, record: &ExitRecord) -> io::Result<()> {
        let path = self.launcher.directory.join(EXITS);
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        file.write_all(&line)
    }

    fn remove(&mut self, at: usize, id: &str) {
        self.containers.remove(id);
        self.exits.retain(|record| record.id != id);
        self.launcher.remove(id);
        self.connections[at].role = Role::Idle;
        self.reply(at, &Reply::Done, &[]);
    }

    fn stop(&mut self) {
        self.stopping = true;
        for container in self.containers.values().filter(|c| c.running) {
            container.group.kill();
            let _ = kill(Pid::from_raw(container.pid), Signal::SIGKILL);
        }
    }

    /// Everything is reaped: the pause process and strays go, then the answer, then we.
    fn end(mut self) -> io::Result<()> {
        // The mounts go with the namespace, the files with the sandbox's directory.
        for container in self.containers.values() {
            container.group.remove();
        }
        let own = std::process::id();
        let mut children = String::new();
        if let Ok(mut file) = File::open(format!("/proc/self/task/{own}/children")) {
            let _ = file.read_to_string(&mut children);
        }
        for pid in children.split_whitespace().filter_map(|p| p.parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            let _ = waitpid(Pid::from_raw(pid), None);
        }
        for at in 0..self.connections.len() {
            if matches!(self.connections[at].role, Role::AwaitsStop) {
                self.reply(at, &Reply::Done, &[]);
            }
        }
        Ok(())
    }
}

impl Outlet {
    fn flush(&mut self) {
        while !self.pending.is_empty() {
            match nix::unistd::write(&self.pipe, &self.pending) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(nix::Error::EAGAIN) => return,
                Err(_) => self.pending.clear(), // nobody reads any more
            }
        }
    }
}

fn name(which: usize) -> &'static str {
    if which == 0 { "stdout" } else { "stderr" }
}

fn send_signal(pid: i32, signal: i32) -> Result<(), Refusal> {
    let signal = Signal::try_from(signal).map_err(|_| (Failure::Invalid, format!("invalid signal {signal}")))?;
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
        Err(error) => Err((Failure::Invalid, format!("kill: {error}"))),
    }
}

/// Sets the size of a terminal.
pub fn set_window(terminal: BorrowedFd<'_>, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads one winsize.
    if unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

fn nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: fcntl with integers on a descriptor that is open.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    // SAFETY: as above.
    if flags < 0 || unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
