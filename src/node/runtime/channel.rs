//! The daemon's side of a connection to a shim.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::RuntimeError;
use super::shim::protocol::{self, Reply, Request};

/// One connection.
pub struct Channel {
    socket: AsyncFd<OwnedFd>,
}

impl Channel {
    /// Connects to the shim of a sandbox.
    ///
    /// # Errors
    /// When no shim listens there.
    pub fn connect(directory: &Path) -> io::Result<Self> {
        let socket = protocol::connect_to(directory)?;
        set_nonblocking(&socket)?;
        // SAFETY: an `OwnedFd` stays the same open descriptor for its whole life.
        Ok(Self { socket: unsafe { AsyncFd::register(socket) }? })
    }

    /// Sends a request with descriptors.
    ///
    /// # Errors
    /// When the shim is gone.
    pub async fn send(&self, request: &Request, fds: &[RawFd]) -> io::Result<()> {
        self.socket.async_io(Interest::WRITABLE, |socket| protocol::send(socket.as_fd(), request, fds)).await
    }

    /// Sends a request that may be lost when the shim is busy.
    pub fn try_send(&self, request: &Request) {
        let _ = protocol::send(self.socket.as_fd(), request, &[]);
    }

    /// The next packet; `None` when the shim closed the connection.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        self.socket.async_io(Interest::READABLE, |socket| protocol::receive(socket.as_fd())).await
    }

    /// Sends a request and waits for its answer; a refusal is an error.
    ///
    /// # Errors
    /// The shim's refusal, or `Io` when it is gone.
    pub async fn ask(&self, request: &Request, fds: &[RawFd]) -> Result<(Reply, Vec<OwnedFd>), RuntimeError> {
        let gone = |error: io::Error| match error.raw_os_error() {
            Some(libc::E2BIG) => RuntimeError::Invalid("argument list too long".to_owned()),
            _ => RuntimeError::Io("shim".to_owned(), error),
        };
        self.send(request, fds).await.map_err(gone)?;
        match self.receive().await.map_err(gone)? {
            Some((Reply::Failed { kind, message }, _)) => Err(kind.error(message)),
            Some(answer) => Ok(answer),
            None => Err(gone(io::Error::from(io::ErrorKind::UnexpectedEof))),
        }
    }
}

/// Makes reads and writes return `WouldBlock`.
///
/// # Errors
/// When the descriptor is not open.
pub fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(fd.as_raw_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
