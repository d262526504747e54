//! Carries packets between two machines: what the kernel sends into this end's TUN device goes over a connection that is
//! authenticated and encrypted already, and comes out of the device at the other end.
//!
//! Each packet is preceded by its length (32 bits, big-endian) and its `virtio_net_hdr`: segments that the kernel has not
//! cut yet cross as one. A packet that does not belong to the other end is dropped, as is one that the kernel does not take.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};

use super::engine::packet::VNET_HEADER;
use super::links::{End, Link};

/// The largest packet with its header.
const LARGEST: usize = VNET_HEADER + (1 << 16);
/// What is collected before it is sent, in bytes: as long as the device has more.
const BATCH: usize = 256 << 10;
const LENGTH: usize = 4;

/// Carries until the connection ends.
///
/// # Errors
/// Those of the connection and of the device; a connection that speaks another protocol.
pub async fn carry(
    device: OwnedFd,
    link: &Link,
    end: End,
    connection: impl AsyncRead + AsyncWrite + Send,
) -> io::Result<()> {
    // SAFETY: the descriptor is owned by what it is registered in, and nobody else closes it.
    let device = unsafe { AsyncFd::register(device) }?;
    let (reading, writing) = tokio::io::split(connection);
    tokio::select! {
        result = outgoing(&device, writing) => result,
        result = incoming(&device, link, end, reading) => result,
    }
}

async fn outgoing(device: &AsyncFd<OwnedFd>, mut connection: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut batch = Vec::with_capacity(BATCH + LARGEST);
    loop {
        let mut ready = device.readable().await?;
        batch.clear();
        while batch.len() < BATCH {
            let at = batch.len();
            batch.resize(at + LENGTH + LARGEST, 0);
            let read = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref().as_raw_fd(), &mut batch[at + LENGTH..])?));
            let length = match read {
                Ok(Ok(length)) => length,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => 0,
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {
                    batch.truncate(at);
                    break;
                }
            };
            if length <= VNET_HEADER {
                batch.truncate(at);
                continue;
            }
            let prefix = u32::try_from(length).map_err(io::Error::other)?.to_be_bytes();
            batch[at..at + LENGTH].copy_from_slice(&prefix);
            batch.truncate(at + LENGTH + length);
        }
        connection.write_all(&batch).await?;
        connection.flush().await?;
    }
}

async fn incoming(
    device: &AsyncFd<OwnedFd>,
    link: &Link,
    end: End,
    connection: impl AsyncRead + Unpin,
) -> io::Result<()> {
    let mut connection = BufReader::with_capacity(BATCH, connection);
    let mut framed = Vec::with_capacity(LARGEST);
    loop {
        let length = match connection.read_u32().await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            length => usize::try_from(length?).map_err(io::Error::other)?,
        };
        if !(VNET_HEADER + 1..=LARGEST).contains(&length) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a packet of {length} bytes")));
        }
        framed.resize(length, 0);
        connection.read_exact(&mut framed).await?;
        match addresses(&framed[VNET_HEADER..]) {
            Some((source, destination)) if link.admits(end, source, destination) => {
                if let Err(error) = nix::unistd::write(device.get_ref(), &framed) {
                    tracing::debug!(%error, length, "the kernel did not take a packet");
                }
            }
            other => tracing::debug!(?other, "a packet that does not belong here was dropped"),
        }
    }
}

/// Source and destination of an IPv4 packet.
fn addresses(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    (header[0] >> 4 == 4).then(|| (address(12), address(16)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;
    use crate::net::tun::Addresses;

    fn link() -> Link {
        let addresses = Addresses {
            node_ip: "192.168.49.5".parse().expect("an address"),
            pod_cidr: "10.244.3.0/24".parse().expect("a network"),
            cluster_cidr: "10.244.0.0/16".parse().expect("a network"),
            node_cidr: "192.168.49.0/24".parse().expect("a network"),
            load_balancer_cidr: "127.78.0.0/24".parse().expect("a network"),
            host_seen_as: None,
            api_port: None,
        };
        Link::new(&addresses).expect("a worker")
    }

    /// A packet with its header: nothing but addresses.
    fn packet(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let mut framed = vec![0; VNET_HEADER + 20];
        framed[VNET_HEADER] = 0x45;
        framed[VNET_HEADER + 12..VNET_HEADER + 16].copy_from_slice(&source);
        framed[VNET_HEADER + 16..].copy_from_slice(&destination);
        framed
    }

    /// A device is a descriptor that gives and takes one packet at a time.
    fn device() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC)
            .expect("a pair of sockets")
    }

    async fn receive(kernel: &AsyncFd<OwnedFd>) -> Vec<u8> {
        let mut buffer = vec![0; LARGEST];
        loop {
            let mut ready = kernel.readable().await.expect("watched");
            let read = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref().as_raw_fd(), &mut buffer)?));
            if let Ok(length) = read {
                buffer.truncate(length.expect("read"));
                return buffer;
            }
        }
    }

    #[tokio::test]
    async fn packets_cross_and_strangers_do_not() {
        let ((hub_device, hub_kernel), (worker_device, worker_kernel)) = (device(), device());
        let (here, there) = tokio::io::duplex(1 << 20);
        let link = link();
        let (of_hub, of_worker) = (link.clone(), link);
        tokio::spawn(async move { carry(hub_device, &of_hub, End::Hub, here).await });
        tokio::spawn(async move { carry(worker_device, &of_worker, End::Worker, there).await });
        // SAFETY: the descriptor is owned by what it is registered in, and nobody else closes it.
        let hub_kernel = unsafe { AsyncFd::register(hub_kernel) }.expect("watched");
        let send = |fd: &OwnedFd, packet: &[u8]| nix::unistd::write(fd.as_fd(), packet).expect("written");
        send(&worker_kernel, &packet([10, 244, 4, 4], [10, 244, 0, 2]));
        send(&worker_kernel, &packet([10, 244, 3, 4], [10, 244, 0, 2]));
        assert_eq!(receive(&hub_kernel).await, packet([10, 244, 3, 4], [10, 244, 0, 2]), "the spoofed one was dropped");
        // SAFETY: as above.
        let worker_kernel = unsafe { AsyncFd::register(worker_kernel) }.expect("watched");
        send(hub_kernel.get_ref(), &packet([192, 168, 49, 2], [10, 244, 3, 9]));
        assert_eq!(receive(&worker_kernel).await, packet([192, 168, 49, 2], [10, 244, 3, 9]));
    }

    #[tokio::test]
    async fn another_protocol_ends_the_link() {
        let ((device, _kernel), (here, mut there)) = (device(), tokio::io::duplex(1 << 10));
        there.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("written");
        let error = carry(device, &link(), End::Hub, here).await.expect_err("no packet");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
