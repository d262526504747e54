//! Packets out of the engine, each behind its `virtio_net_hdr`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::packet::{VNET_HEADER, VnetHeader};

/// The writing half of the TUN device.
#[derive(Clone, Debug)]
pub struct TunWriter {
    fd: Arc<OwnedFd>,
}

impl TunWriter {
    /// Writes to `fd`.
    pub fn new(fd: Arc<OwnedFd>) -> Self {
        Self { fd }
    }

    /// Writes a packet with its header in front (`VNET_HEADER` bytes). A packet that the kernel does not take is lost, as
    /// on any wire.
    pub fn write(&self, framed: &[u8]) {
        if let Err(error) = nix::unistd::write(&*self.fd, framed) {
            tracing::debug!(%error, length = framed.len(), "the kernel did not take a packet");
        }
    }

    /// Writes a packet that is complete with its checksums.
    pub fn send(&self, packet: &[u8]) {
        let header = VnetHeader::default().emit();
        let parts = [io::IoSlice::new(&header), io::IoSlice::new(packet)];
        if let Err(error) = nix::sys::uio::writev(&*self.fd, &parts) {
            tracing::debug!(%error, length = packet.len(), "the kernel did not take a packet");
        }
    }

    /// Lets `epoll` tell of packets under the number `token`.
    ///
    /// # Errors
    /// Those of `epoll_ctl`.
    pub fn watch(&self, epoll: &Epoll, token: u64) -> io::Result<()> {
        Ok(epoll.add(&*self.fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
    }

    /// Reads one packet with its header into `buffer`; `None` when there is none for now.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match nix::unistd::read(self.fd.as_raw_fd(), buffer) {
            Ok(length) if length > VNET_HEADER => Ok(Some(length)),
            Ok(_) => Ok(None),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
