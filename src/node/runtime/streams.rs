//! The streams of exec and attach: pipes and terminals that shims hand over, read and written without a copy.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::channel::{Channel, set_nonblocking};
use super::shim::protocol::{Reply, Request};
use super::shim::set_window;
use super::{Attachment, ExecConfig, ExecExit, Execution, ProcessControl, Reader, RuntimeError, Writer};

/// A pipe or terminal.
#[derive(Clone)]
pub struct AsyncFile {
    fd: Arc<AsyncFd<OwnedFd>>,
}

impl AsyncFile {
    /// Takes a descriptor over.
    ///
    /// # Errors
    /// When it cannot be polled (a regular file).
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        // SAFETY: an `OwnedFd` stays the same open descriptor for its whole life.
        Ok(Self { fd: Arc::new(unsafe { AsyncFd::register(fd) }?) })
    }
}

impl AsyncRead for AsyncFile {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            let unfilled = buf.initialize_unfilled();
            match guard.try_io(|fd| Ok(nix::unistd::read(fd.as_raw_fd(), unfilled)?)) {
                Ok(Ok(length)) => {
                    buf.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // A terminal whose other side is closed
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for AsyncFile {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // end-of-file is the descriptor's end: drop it
    }
}

/// Runs a command over its own connection.
pub async fn exec(channel: Channel, id: &str, config: ExecConfig) -> Result<Execution, RuntimeError> {
    let failed = |error: io::Error| RuntimeError::Exec(error.to_string());
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|e| failed(e.into()));
    let request = Request::Exec { id: id.to_owned(), argv: config.command, tty: config.tty };
    if config.tty {
        let (_, mut fds) = channel.ask(&request, &[]).await?;
        let terminal = fds.pop().ok_or_else(|| RuntimeError::Exec("no terminal came".to_owned()))?;
        let window = terminal.try_clone().map_err(failed)?;
        let terminal = AsyncFile::new(terminal).map_err(failed)?;
        return Ok(Execution {
            stdin: config.stdin.then(|| Box::new(terminal.clone()) as Writer),
            stdout: Some(Box::new(terminal)),
            stderr: None,
            control: Box::new(Control { channel, terminal: Some(window), exec: true }),
        });
    }
    let ((out_read, out_write), (err_read, err_write)) = (pipe()?, pipe()?);
    let (input, stdin) = if config.stdin {
        let (read, write) = pipe()?;
        (read, Some(AsyncFile::new(write).map_err(failed)?))
    } else {
        (OwnedFd::from(File::open("/dev/null").map_err(failed)?), None)
    };
    let fds = [input.as_raw_fd(), out_write.as_raw_fd(), err_write.as_raw_fd()];
    channel.ask(&request, &fds).await?;
    Ok(Execution {
        stdin: stdin.map(|s| Box::new(s) as Writer),
        stdout: Some(Box::new(AsyncFile::new(out_read).map_err(failed)?)),
        stderr: Some(Box::new(AsyncFile::new(err_read).map_err(failed)?)),
        control: Box::new(Control { channel, terminal: None, exec: true }),
    })
}

/// Joins a container's streams over their own connection.
pub async fn attach(channel: Channel, id: &str, stdin: bool) -> Result<Attachment, RuntimeError> {
    let failed = |error: io::Error| RuntimeError::Exec(error.to_string());
    let (reply, fds) = channel.ask(&Request::Attach { id: id.to_owned(), stdin }, &[]).await?;
    let Reply::Attached { outputs, .. } = reply else {
        return Err(RuntimeError::Exec("the shim answered something else".to_owned()));
    };
    let mut fds = fds.into_iter();
    let mut outputs = fds.by_ref().take(outputs).map(|fd| AsyncFile::new(fd).map(|f| Box::new(f) as Reader));
    let stdout = outputs.next().transpose().map_err(failed)?;
    let stderr = outputs.next().transpose().map_err(failed)?;
    drop(outputs);
    let stdin = fds.next().map(AsyncFile::new).transpose().map_err(failed)?;
    Ok(Attachment {
        stdin: stdin.map(|s| Box::new(s) as Writer),
        stdout,
        stderr,
        control: Box::new(Control { channel, terminal: None, exec: false }),
    })
}

struct Control {
    channel: Channel,
    /// The terminal of an exec; that of an attachment stays with the shim.
    terminal: Option<OwnedFd>,
    exec: bool,
}

#[async_trait]
impl ProcessControl for Control {
    fn resize(&self, width: u16, height: u16) {
        match &self.terminal {
            Some(terminal) => drop(set_window(terminal.as_fd(), width, height)),
            None if !self.exec => self.channel.try_send(&Request::Resize { width, height }),
            None => {}
        }
    }

    async fn signal(&self, signal: i32) -> Result<(), RuntimeError> {
        if !self.exec {
            return Ok(());
        }
        let sent = self.channel.send(&Request::SignalExec { signal }, &[]).await;
        sent.map_err(|e| RuntimeError::Io("shim".to_owned(), e))
    }

    async fn wait(&mut self) -> Result<ExecExit, RuntimeError> {
        loop {
            match self.channel.receive().await {
                Ok(Some((Reply::Ended { code }, _))) => return Ok(ExecExit { code }),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(ExecExit { code: 137 }), // the shim was killed, and everything in it
                Err(error) => return Err(RuntimeError::Io("shim".to_owned(), error)),
            }
        }
    }
}
