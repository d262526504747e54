//! What the daemon and a shim say to each other: one JSON document a packet on a `SOCK_SEQPACKET` socket,
//! with file descriptors beside it. One request a connection; `Exec`, `Attach` and `Subscribe` keep theirs open.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use jiff::Timestamp;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect,
    listen, recvmsg, sendmsg, socket,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::node::runtime::{Exit, RuntimeError};

/// The largest packet; what is larger travels in a file.
pub const MAX_PACKET: usize = 128 << 10;
/// The socket in a sandbox's directory.
pub const SOCKET: &str = "shim.sock";
/// One line of JSON ([`ExitRecord`]) for each container that ended, in a sandbox's directory.
pub const EXITS: &str = "exits";
/// The container's configuration in its directory.
pub const LAUNCH: &str = "launch.json";

/// What the daemon asks.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Create and start the container whose `launch.json` was written. Answer: `Started`.
    Start { id: String },
    /// Run a command; stdin, stdout and stderr come along unless `tty`. Answers: `Running` (with the terminal), `Ended`.
    Exec { id: String, argv: Vec<String>, tty: bool },
    /// Answers: `Attached`, `Ended`.
    Attach { id: String, stdin: bool },
    /// On the connection of an attachment.
    Resize { width: u16, height: u16 },
    /// On the connection of an exec: to its process.
    SignalExec { signal: i32 },
    /// To a container's first process. Answer: `Done`.
    Signal { id: String, signal: i32 },
    /// Answer: `Done` when it is gone.
    Remove { id: String },
    /// End everything, then yourself. Answer: `Done` when everything is reaped.
    Stop,
    /// Answers: `Exited` for each container that ended or ends.
    Subscribe,
}

/// What a shim answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    Started {
        pid: i32,
        started_at: Timestamp,
    },
    Running {
        pid: i32,
    },
    /// `outputs` descriptors to read from come along, then one to write to when there is one.
    Attached {
        pid: i32,
        outputs: usize,
    },
    Ended {
        code: i32,
    },
    Exited(ExitRecord),
    Done,
    Failed {
        kind: Failure,
        message: String,
    },
}

/// Which error a failure becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    NotFound,
    NotRunning,
    Create,
    Start,
    Exec,
    Invalid,
}

impl Failure {
    /// The error that the caller of the runtime sees.
    pub fn error(self, message: String) -> RuntimeError {
        match self {
            Self::NotFound => RuntimeError::NotFound(message),
            Self::NotRunning => RuntimeError::NotRunning(message),
            Self::Create => RuntimeError::Create(message),
            Self::Start => RuntimeError::Start(message),
            Self::Exec => RuntimeError::Exec(message),
            Self::Invalid => RuntimeError::Invalid(message),
        }
    }
}

/// A container that ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The container's id.
    pub id: String,
    /// How it ended.
    pub exit: Exit,
}

/// Sends one packet.
///
/// # Errors
/// When the other side is gone, or the packet is too large.
pub fn send(socket: BorrowedFd<'_>, message: &impl Serialize, fds: &[RawFd]) -> io::Result<()> {
    let packet = serde_json::to_vec(message)?;
    if packet.len() > MAX_PACKET {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(&packet)], control, flags, None)?;
    Ok(())
}

/// Receives one packet; `None` at end-of-file. Descriptors are close-on-exec.
///
/// # Errors
/// `WouldBlock` on a non-blocking socket; `InvalidData` when the packet is not what it should be.
pub fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut packet = vec![0; MAX_PACKET];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let (length, fds) = {
        let mut iov = [IoSliceMut::new(&mut packet)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
        let mut fds = Vec::new();
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel has just made these descriptors for us; nobody else knows them.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (received.bytes, fds)
    };
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&packet[..length])?, fds)))
}

/// Connects to the shim of the sandbox in `directory`, however long its path is.
///
/// # Errors
/// When no shim listens there.
pub fn connect_to(directory: &Path) -> io::Result<OwnedFd> {
    let directory = open_directory(directory)?;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(fd.as_raw_fd(), &address(&directory)?)?;
    Ok(fd)
}

/// Listens in `directory`, replacing what is there.
///
/// # Errors
/// When the directory cannot be written.
pub fn listen_in(directory: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(directory.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let directory = open_directory(directory)?;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    bind(fd.as_raw_fd(), &address(&directory)?)?;
    listen(&fd, Backlog::new(64).expect("64 is a valid backlog"))?;
    Ok(fd)
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(std::fs::File::open(path)?.into())
}

/// The socket's path through the open directory: socket paths hold 107 bytes only.
fn address(directory: &OwnedFd) -> io::Result<UnixAddr> {
    Ok(UnixAddr::new(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()).as_str())?)
}
