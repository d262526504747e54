//! IPv4 packets as the TUN hands them over: parsing, address translation with incremental checksums, and replies that
//! the engine makes itself.

use std::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket,
};

use crate::net::service_table::Protocol;

/// The length of `struct virtio_net_hdr`.
pub const VNET_HEADER: usize = 10;
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_UDP_L4: u8 = 5;

/// `struct virtio_net_hdr`, which precedes every packet on the TUN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    flags: u8,
    gso_type: u8,
    header_length: u16,
    /// The payload of each segment.
    pub gso_size: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl VnetHeader {
    /// Reads the header; `None` when it is cut off.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; VNET_HEADER] = bytes.first_chunk()?;
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Some(Self {
            flags: bytes[0],
            gso_type: bytes[1],
            header_length: word(2),
            gso_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        })
    }
    /// The header as bytes.
    pub fn emit(&self) -> [u8; VNET_HEADER] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        let words = [self.header_length, self.gso_size, self.checksum_start, self.checksum_offset];
        for (at, word) in words.into_iter().enumerate() {
            bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
    /// Whether the transport checksum is only the uninverted sum of the pseudo header.
    pub fn needs_checksum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }
    /// Whether the payload is several datagrams of `gso_size` bytes.
    pub fn is_udp_segments(&self) -> bool {
        self.gso_type == GSO_UDP_L4 && self.gso_size > 0
    }
    /// For a TCP packet over `header` bytes of IPv4 and TCP header: the kernel computes the checksum, and cuts segments of
    /// `segment` bytes when it is given.
    pub fn tcp(ip_header: usize, tcp_header: usize, segment: Option<u16>) -> Self {
        Self {
            flags: NEEDS_CSUM,
            gso_type: if segment.is_some() { GSO_TCPV4 } else { 0 },
            header_length: (ip_header + tcp_header) as u16,
            gso_size: segment.unwrap_or(0),
            checksum_start: ip_header as u16,
            checksum_offset: 16,
        }
    }
}

/// Protocol, source and destination of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The protocol.
    pub protocol: Protocol,
    /// The source.
    pub source: (Ipv4Addr, u16),
    /// The destination.
    pub destination: (Ipv4Addr, u16),
}

impl Tuple {
    /// The tuple of an answer.
    pub fn reversed(self) -> Self {
        Self { protocol: self.protocol, source: self.destination, destination: self.source }
    }
}

/// The flags of a TCP segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags {
    /// SYN without ACK: the first packet of a connection.
    pub opens: bool,
    /// Neither SYN nor RST: the connection was opened earlier.
    pub in_midst: bool,
    /// FIN.
    pub fin: bool,
    /// RST.
    pub rst: bool,
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// TCP or UDP with ports; the flags are empty for UDP. The second number is where the transport header starts.
    Transport(Tuple, TcpFlags, usize),
    /// ICMP, from the start of its header.
    Icmp {
        /// The source.
        source: Ipv4Addr,
        /// The destination.
        destination: Ipv4Addr,
        /// Where the ICMP header starts.
        start: usize,
    },
    /// Another protocol.
    Other {
        /// The source.
        source: Ipv4Addr,
        /// The destination.
        destination: Ipv4Addr,
    },
}

/// Parses an IPv4 packet; `None` for what is malformed, a fragment, or not IPv4.
pub fn parse(packet: &[u8]) -> Option<Parsed> {
    let ip = Ipv4Packet::new_checked(packet).ok()?;
    if ip.version() != 4 || ip.more_frags() || ip.frag_offset() != 0 || ip.header_len() < 20 {
        return None;
    }
    let (source, destination) = (ip.src_addr(), ip.dst_addr());
    let start = usize::from(ip.header_len());
    let payload = ip.payload();
    match ip.next_header() {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(payload).ok()?;
            let in_midst = !tcp.syn() && !tcp.rst();
            let flags = TcpFlags { opens: tcp.syn() && !tcp.ack(), in_midst, fin: tcp.fin(), rst: tcp.rst() };
            let (source, destination) = ((source, tcp.src_port()), (destination, tcp.dst_port()));
            Some(Parsed::Transport(Tuple { protocol: Protocol::Tcp, source, destination }, flags, start))
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(payload).ok()?;
            let (source, destination) = ((source, udp.src_port()), (destination, udp.dst_port()));
            let tuple = Tuple { protocol: Protocol::Udp, source, destination };
            Some(Parsed::Transport(tuple, TcpFlags::default(), start))
        }
        IpProtocol::Icmp if payload.len() >= 8 => Some(Parsed::Icmp { source, destination, start }),
        _ => Some(Parsed::Other { source, destination }),
    }
}

/// Gives a packet that [`parse`] found to be `from` (with its transport header at `start`) the addresses and ports of `to`.
pub fn translate(packet: &mut [u8], vnet: &VnetHeader, from: &Tuple, to: &Tuple, start: usize) {
    let mut addresses = Delta::default();
    addresses.address(from.source.0, to.source.0).address(from.destination.0, to.destination.0);
    let mut ports = Delta::default();
    ports.word(from.source.1, to.source.1).word(from.destination.1, to.destination.1);
    let mut ip = Ipv4Packet::new_unchecked(&mut *packet);
    ip.set_src_addr(to.source.0);
    ip.set_dst_addr(to.destination.0);
    let checksum = addresses.applied_to_complement(ip.checksum());
    ip.set_checksum(checksum);
    let change = |checksum: u16| {
        if vnet.needs_checksum() {
            addresses.applied_to_sum(checksum)
        } else {
            addresses.plus(ports).applied_to_complement(checksum)
        }
    };
    let transport = &mut packet[start..];
    match from.protocol {
        Protocol::Tcp => {
            let mut tcp = TcpPacket::new_unchecked(transport);
            tcp.set_src_port(to.source.1);
            tcp.set_dst_port(to.destination.1);
            let checksum = change(tcp.checksum());
            tcp.set_checksum(checksum);
        }
        Protocol::Udp => {
            let mut udp = UdpPacket::new_unchecked(transport);
            udp.set_src_port(to.source.1);
            udp.set_dst_port(to.destination.1);
            // 0 means that there is none.
            if udp.checksum() != 0 || vnet.needs_checksum() {
                let checksum = change(udp.checksum());
                udp.set_checksum(if checksum == 0 && !vnet.needs_checksum() { 0xffff } else { checksum });
            }
        }
    }
}

/// The change of a ones' complement sum (RFC 1624).
#[derive(Clone, Copy, Debug, Default)]
struct Delta(u32);

impl Delta {
    fn word(&mut self, from: u16, to: u16) -> &mut Self {
        self.0 += u32::from(!from) + u32::from(to);
        self
    }
    fn address(&mut self, from: Ipv4Addr, to: Ipv4Addr) -> &mut Self {
        let (from, to) = (u32::from(from), u32::from(to));
        self.word((from >> 16) as u16, (to >> 16) as u16).word(from as u16, to as u16)
    }
    fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
    fn applied_to_sum(self, sum: u16) -> u16 {
        fold(self.0 + u32::from(sum))
    }
    fn applied_to_complement(self, checksum: u16) -> u16 {
        !self.applied_to_sum(!checksum)
    }
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Rewrites the packet quoted in an ICMP error: `quoted` is the tuple that the quoting host saw, `original` the one that
/// the receiver sent. Also the addresses of the error itself. False when the error is not well-formed.
pub fn translate_icmp_error(packet: &mut [u8], start: usize, source: Ipv4Addr, original: &Tuple) -> bool {
    let Some((quoted, ip_start, transport)) = quoted_tuple(packet, start) else { return false };
    let inner = &mut packet[ip_start..];
    let mut delta = Delta::default();
    delta.address(quoted.source.0, original.source.0).address(quoted.destination.0, original.destination.0);
    let mut ip = Ipv4Packet::new_unchecked(&mut *inner);
    ip.set_src_addr(original.source.0);
    ip.set_dst_addr(original.destination.0);
    let checksum = delta.applied_to_complement(ip.checksum());
    ip.set_checksum(checksum);
    let ports = &mut inner[transport..transport + 4];
    ports[..2].copy_from_slice(&original.source.1.to_be_bytes());
    ports[2..].copy_from_slice(&original.destination.1.to_be_bytes());
    let icmp = &mut packet[start..];
    icmp[2..4].fill(0);
    let checksum = !smoltcp_sum(icmp);
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut outer = Ipv4Packet::new_unchecked(packet);
    outer.set_src_addr(source);
    outer.set_dst_addr(original.source.0);
    outer.fill_checksum();
    true
}

fn smoltcp_sum(data: &[u8]) -> u16 {
    let sum = data.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)])));
    sum.fold(0, |sum, word| u32::from(fold(sum + word))) as u16
}

/// The tuple of the packet quoted in an ICMP error whose header starts at `start`, where that packet starts, and where in
/// it the transport header starts. `None` when the message is not an error or too short.
pub fn quoted_tuple(packet: &[u8], start: usize) -> Option<(Tuple, usize, usize)> {
    let icmp = packet.get(start..)?;
    // Unreachable, source quench, redirect, time exceeded, parameter problem.
    if !matches!(icmp.first()?, 3 | 4 | 5 | 11 | 12) {
        return None;
    }
    let inner = icmp.get(8..)?;
    if inner.len() < 20 || inner[0] >> 4 != 4 {
        return None;
    }
    let header = usize::from(inner[0] & 15) * 4;
    let ports = inner.get(header..header + 4).filter(|_| header >= 20)?;
    let protocol = match inner[9] {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    let ip = Ipv4Packet::new_unchecked(inner);
    let source = (ip.src_addr(), u16::from_be_bytes([ports[0], ports[1]]));
    let destination = (ip.dst_addr(), u16::from_be_bytes([ports[2], ports[3]]));
    Some((Tuple { protocol, source, destination }, start + 8, header))
}

/// `Destination Unreachable` codes that the engine sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// No such host.
    Host = 1,
    /// Nobody listens.
    Port = 3,
    /// Not allowed.
    Prohibited = 13,
}

/// The ICMP error that answers `packet`, from the packet's destination; `None` when it must not be answered (an ICMP
/// error, RFC 1122 3.2.2).
pub fn unreachable(packet: &[u8], code: Unreachable) -> Option<Vec<u8>> {
    let ip = Ipv4Packet::new_checked(packet).ok()?;
    let quote = &packet[..packet.len().min(usize::from(ip.header_len()) + 64)];
    if ip.next_header() == IpProtocol::Icmp && !matches!(ip.payload().first(), Some(8)) {
        return None;
    }
    let header = Ipv4Repr {
        src_addr: ip.dst_addr(),
        dst_addr: ip.src_addr(),
        next_header: IpProtocol::Icmp,
        payload_len: 8 + quote.len(),
        hop_limit: 64,
    };
    let mut reply = vec![0; 28 + quote.len()];
    header.emit(&mut Ipv4Packet::new_unchecked(&mut reply[..]), &ChecksumCapabilities::default());
    reply[20] = 3;
    reply[21] = code as u8;
    reply[28..].copy_from_slice(quote);
    let checksum = !smoltcp_sum(&reply[20..]);
    reply[22..24].copy_from_slice(&checksum.to_be_bytes());
    Some(reply)
}

/// The answer to an echo request to any address that the engine owns.
pub fn echo_reply(packet: &[u8], start: usize) -> Option<Vec<u8>> {
    if packet.get(start..start + 2)? != [8, 0] {
        return None;
    }
    let mut reply = packet.to_vec();
    let (source, destination) = {
        let ip = Ipv4Packet::new_unchecked(packet);
        (ip.src_addr(), ip.dst_addr())
    };
    let mut ip = Ipv4Packet::new_unchecked(&mut reply[..]);
    ip.set_src_addr(destination);
    ip.set_dst_addr(source);
    ip.set_hop_limit(64);
    ip.fill_checksum();
    let icmp = &mut reply[start..];
    icmp[0] = 0;
    icmp[2..4].fill(0);
    let checksum = !smoltcp_sum(icmp);
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
    Some(reply)
}

/// The reset that answers a TCP segment (RFC 9293 3.5.2); `None` for a segment that is itself a reset.
pub fn reset(packet: &[u8]) -> Option<Vec<u8>> {
    let ip = Ipv4Packet::new_checked(packet).ok()?;
    let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
    if tcp.rst() {
        return None;
    }
    let (sequence, acknowledged) = if tcp.ack() {
        (tcp.ack_number(), None)
    } else {
        (TcpSeqNumber(0), Some(tcp.seq_number() + tcp.segment_len()))
    };
    let repr = TcpRepr {
        src_port: tcp.dst_port(),
        dst_port: tcp.src_port(),
        control: TcpControl::Rst,
        seq_number: sequence,
        ack_number: acknowledged,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let (source, destination) = (ip.dst_addr(), ip.src_addr());
    let header = Ipv4Repr {
        src_addr: source,
        dst_addr: destination,
        next_header: IpProtocol::Tcp,
        payload_len: repr.buffer_len(),
        hop_limit: 64,
    };
    let capabilities = ChecksumCapabilities::default();
    let mut reply = vec![0; 20 + repr.buffer_len()];
    header.emit(&mut Ipv4Packet::new_unchecked(&mut reply[..]), &capabilities);
    let (source, destination) = (IpAddress::Ipv4(source), IpAddress::Ipv4(destination));
    repr.emit(&mut TcpPacket::new_unchecked(&mut reply[20..]), &source, &destination, &capabilities);
    Some(reply)
}

/// Completes a TCP packet for the TUN: IPv4 checksum, and the uninverted sum of the pseudo header where the kernel puts
/// the checksum of the segment. `None` when it is not TCP.
pub fn offload_tcp(packet: &mut [u8]) -> Option<VnetHeader> {
    let mut ip = Ipv4Packet::new_checked(&mut *packet).ok()?;
    if ip.next_header() != IpProtocol::Tcp {
        return None;
    }
    ip.fill_checksum();
    let header = usize::from(ip.header_len());
    let mut sum = Delta::default();
    let (source, destination) = (u32::from(ip.src_addr()), u32::from(ip.dst_addr()));
    let length = packet.len() - header;
    for word in [source >> 16, source & 0xffff, destination >> 16, destination & 0xffff, 6, length as u32] {
        sum.0 += word;
    }
    let checksum = sum.applied_to_sum(0);
    let mut tcp = TcpPacket::new_checked(&mut packet[header..]).ok()?;
    tcp.set_checksum(checksum);
    Some(VnetHeader::tcp(header, usize::from(tcp.header_len()), None))
}

/// A UDP datagram; `None` when the payload does not fit one.
pub fn datagram(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(28 + payload.len()).ok()?;
    let mut packet = vec![0; usize::from(length)];
    let header = Ipv4Repr {
        src_addr: source.0,
        dst_addr: destination.0,
        next_header: IpProtocol::Udp,
        payload_len: 8 + payload.len(),
        hop_limit: 64,
    };
    header.emit(&mut Ipv4Packet::new_unchecked(&mut packet[..]), &ChecksumCapabilities::default());
    packet[28..].copy_from_slice(payload);
    let mut udp = UdpPacket::new_unchecked(&mut packet[20..]);
    udp.set_src_port(source.1);
    udp.set_dst_port(destination.1);
    udp.set_len(length - 20);
    udp.fill_checksum(&IpAddress::Ipv4(source.0), &IpAddress::Ipv4(destination.0));
    Some(packet)
}

/// An ICMP message in a packet; its checksum is computed. `None` when it does not fit.
pub fn icmp(source: Ipv4Addr, destination: Ipv4Addr, message: &mut [u8]) -> Option<Vec<u8>> {
    u16::try_from(20 + message.len()).ok()?;
    message.get_mut(2..4)?.fill(0);
    let checksum = !smoltcp_sum(message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let header = Ipv4Repr {
        src_addr: source,
        dst_addr: destination,
        next_header: IpProtocol::Icmp,
        payload_len: message.len(),
        hop_limit: 64,
    };
    let mut packet = vec![0; 20 + message.len()];
    header.emit(&mut Ipv4Packet::new_unchecked(&mut packet[..]), &ChecksumCapabilities::default());
    packet[20..].copy_from_slice(message);
    Some(packet)
}

/// The payload of a UDP packet whose transport header is at `start`.
pub fn udp_payload(packet: &[u8], start: usize) -> &[u8] {
    let transport = &packet[start..];
    let length = usize::from(UdpPacket::new_unchecked(transport).len()).clamp(8, transport.len());
    // A train of segments has no honest length; the packet's is right.
    &transport[8..if length == 8 { transport.len() } else { length }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 244, 0, 9), 40_000);
    const VIP: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 96, 3, 4), 80);
    const POD: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 244, 0, 200), 8080);

    fn udp(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
        datagram(source, destination, payload).expect("a small payload")
    }

    fn is_valid(packet: &[u8]) -> bool {
        let ip = Ipv4Packet::new_checked(packet).expect("a packet");
        let (source, destination) = (IpAddress::Ipv4(ip.src_addr()), IpAddress::Ipv4(ip.dst_addr()));
        ip.verify_checksum()
            && match ip.next_header() {
                IpProtocol::Udp => {
                    UdpPacket::new_checked(ip.payload()).expect("UDP").verify_checksum(&source, &destination)
                }
                IpProtocol::Tcp => {
                    TcpPacket::new_checked(ip.payload()).expect("TCP").verify_checksum(&source, &destination)
                }
                _ => smoltcp_sum(ip.payload()) == 0xffff,
            }
    }

    #[test]
    fn a_translated_packet_equals_one_made_for_the_other_addresses() {
        let mut packet = udp(CLIENT, VIP, b"hello");
        let from = Tuple { protocol: Protocol::Udp, source: CLIENT, destination: VIP };
        let to = Tuple { destination: POD, ..from };
        assert_eq!(parse(&packet), Some(Parsed::Transport(from, TcpFlags::default(), 20)));
        translate(&mut packet, &VnetHeader::default(), &from, &to, 20);
        assert_eq!(packet, udp(CLIENT, POD, b"hello"));
    }

    #[test]
    fn a_partial_checksum_takes_the_addresses_and_leaves_the_ports() {
        let pseudo = |destination: Ipv4Addr, length: u16| {
            let mut bytes = CLIENT.0.octets().to_vec();
            bytes.extend(destination.octets());
            bytes.extend([0, 17, (length >> 8) as u8, length as u8]);
            smoltcp_sum(&bytes)
        };
        let mut packet = udp(CLIENT, VIP, b"hello");
        packet[26..28].copy_from_slice(&pseudo(VIP.0, 13).to_be_bytes());
        let from = Tuple { protocol: Protocol::Udp, source: CLIENT, destination: VIP };
        let vnet = VnetHeader { flags: NEEDS_CSUM, ..VnetHeader::default() };
        translate(&mut packet, &vnet, &from, &Tuple { destination: POD, ..from }, 20);
        assert_eq!(packet[26..28], pseudo(POD.0, 13).to_be_bytes());
    }

    #[test]
    fn replies_are_well_formed() {
        let packet = udp(CLIENT, VIP, b"x");
        let error = unreachable(&packet, Unreachable::Port).expect("UDP may be answered");
        assert!(is_valid(&error));
        assert_eq!(unreachable(&error, Unreachable::Port), None);
        let (tuple, ..) = quoted_tuple(&error, 20).expect("the error quotes the datagram");
        assert_eq!(tuple, Tuple { protocol: Protocol::Udp, source: CLIENT, destination: VIP });
    }

    #[test]
    fn an_icmp_error_of_a_backend_is_told_as_the_services() {
        let mut error = unreachable(&udp(CLIENT, POD, b"x"), Unreachable::Port).expect("UDP may be answered");
        let original = Tuple { protocol: Protocol::Udp, source: CLIENT, destination: VIP };
        assert!(translate_icmp_error(&mut error, 20, VIP.0, &original));
        assert!(is_valid(&error));
        assert_eq!(quoted_tuple(&error, 20).expect("still an error").0, original);
        assert_eq!(Ipv4Packet::new_unchecked(&error[..]).src_addr(), VIP.0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), fix: bool) {
            if fix && bytes.len() >= 20 {
                bytes[0] = 0x45;
                let length = (bytes.len() as u16).to_be_bytes();
                bytes[2..4].copy_from_slice(&length);
                bytes[6..8].fill(0);
                bytes[9] = [6, 17, 1][usize::from(bytes[9] % 3)];
            }
            if let Some(Parsed::Transport(tuple, _, start)) = parse(&bytes) {
                translate(&mut bytes.clone(), &VnetHeader::default(), &tuple, &tuple.reversed(), start);
                let _ = udp_payload(&bytes, start);
            }
            if let Some(Parsed::Icmp { start, .. }) = parse(&bytes) {
                let tuple = Tuple { protocol: Protocol::Tcp, source: CLIENT, destination: VIP };
                translate_icmp_error(&mut bytes.clone(), start, VIP.0, &tuple);
                let _ = echo_reply(&bytes, start);
            }
            let _ = (reset(&bytes), unreachable(&bytes, Unreachable::Host), quoted_tuple(&bytes, 20));
        }

        #[test]
        fn a_translation_keeps_checksums_right(payload in proptest::collection::vec(any::<u8>(), 0..64),
                                               a: u32, b: u32, p: u16, q: u16) {
            let mut packet = udp(CLIENT, VIP, &payload);
            let from = Tuple { protocol: Protocol::Udp, source: CLIENT, destination: VIP };
            let to = Tuple { source: (a.into(), p), destination: (b.into(), q), ..from };
            translate(&mut packet, &VnetHeader::default(), &from, &to, 20);
            prop_assert!(is_valid(&packet));
        }
    }
}
