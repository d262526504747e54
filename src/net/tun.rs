//! The TUN device of the engine in the node's network namespace, and the routing rules that lead packets into it.
//!
//! All traffic of pods goes to the engine, except to the node's own address; what the engine writes, and what local
//! sockets of the namespace (probes, port-forward, second legs of NodePorts) send to pods, is routed by the kernel:
//!
//! ```text
//!  10  iif mini0                        -> local addresses
//!  11  iif mini0                        -> pods (one /32 per pod, a route to each other node, the rest is unreachable)
//!  12  iif node<n>                      -> other nodes (on the first node: what passes through; see `links`)
//!  20  to node_ip, NodePort range       -> engine
//!  22  to node_ip, ports 61000-65534    -> engine (replies to connections that it masqueraded)
//!  24  to node_ip, the API's port       -> engine (on the first node)
//!  26  to addresses of load balancers   -> engine (they are loopback addresses; see below)
//!  27  iif lo                           -> local addresses
//!  28  to 127.0.0.0/8                   -> engine, which refuses: a pod has no business on the node's loopback
//!  30                                   -> local addresses
//!  40  iif lo                           -> pods
//!  45                                   -> pods (only while there is no engine: at least pods reach each other)
//!  50                                   -> engine (default route by mini0)
//! ```
//!
//! Load balancers have loopback addresses, because those are the only ones that an ordinary user may listen on at the host. In the
//! cluster they are routed like any other (`route_localnet`).

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use ipnet::Ipv4Net;
use netlink_packet_route::IpProtocol;
use netlink_packet_route::address::AddressScope;

use super::netlink::{InetSetting, Netlink, Request, Selector, TABLE_LOCAL};

/// The name of the TUN device.
pub const DEVICE: &str = "mini0";
/// The gateway that every pod sees (answered by ARP on every veth).
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The MTU of every link. As on loopback it is the largest there is: nothing is ever fragmented inside the cluster, and
/// egress is terminated by the engine.
pub const MTU: u32 = 65535;
/// The table with the pods' routes.
pub const TABLE_PODS: u32 = 78;
/// The table with the route into the engine.
const TABLE_ENGINE: u32 = 77;
/// The rule for the API server at the node's address.
const API_RULE: u32 = 24;
/// The rule of a node without an engine.
const DIRECT_RULE: u32 = 45;
/// Ports of the node's address that the kernel never picks (its ephemeral range ends at 60999) and the engine uses.
/// (A routing rule cannot name port 65535.)
pub const MASQUERADE_PORTS: std::ops::RangeInclusive<u16> = 61000..=65534;
/// The range of NodePorts (`--service-node-port-range`).
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

/// Every loopback address.
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

const TUNSETIFF: u64 = 0x4004_54ca;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUN_F_CSUM: u64 = 0x01;
const TUN_F_TSO4: u64 = 0x02;
const TUN_F_USO4: u64 = 0x20;
const TUN_F_USO6: u64 = 0x40;

/// The addresses of the node that the kernel has to know.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// The node's `InternalIP`.
    pub node_ip: Ipv4Addr,
    /// Pod addresses of the node.
    pub pod_cidr: Ipv4Net,
    /// Pod addresses of all nodes.
    pub cluster_cidr: Ipv4Net,
    /// Addresses of all nodes.
    pub node_cidr: Ipv4Net,
    /// Addresses of load balancers.
    pub load_balancer_cidr: Ipv4Net,
    /// The address by which connections from the host are seen in the cluster, when they keep their source.
    pub host_seen_as: Option<Ipv4Addr>,
    /// The port under which the API server is reached at the node's address, when it is.
    pub api_port: Option<u16>,
}

/// Opens the engine's TUN device in the calling thread's network namespace.
///
/// # Errors
/// With the missing thing said in words: no device file, no permission, no such kernel feature.
pub fn open() -> io::Result<OwnedFd> {
    let device = make(DEVICE)?;
    // UDP segmentation came with Linux 6.2; without any offload everything still works, segment by segment.
    if !offload(&device, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_USO4 | TUN_F_USO6)
        && !offload(&device, TUN_F_CSUM | TUN_F_TSO4)
    {
        tracing::warn!("the TUN device has no segmentation offload: throughput of services will be lower");
    }
    Ok(device)
}

/// Opens a TUN device for a link to another machine. Its packets are not larger than every kernel at the other end takes.
///
/// # Errors
/// As [`open`].
pub fn open_link(name: &str) -> io::Result<OwnedFd> {
    let device = make(name)?;
    if !offload(&device, TUN_F_CSUM | TUN_F_TSO4) {
        tracing::warn!("the TUN device has no segmentation offload: throughput between machines will be lower");
    }
    Ok(device)
}

fn make(name: &str) -> io::Result<OwnedFd> {
    let file = fs::File::options().read(true).write(true).open("/dev/net/tun").map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "the kernel module tun is not loaded (modprobe tun)",
            io::ErrorKind::PermissionDenied => "the user may not open it (chmod 0666 /dev/net/tun)",
            _ => "it cannot be opened",
        };
        io::Error::new(error.kind(), format!("/dev/net/tun: {hint}: {error}"))
    })?;
    // SAFETY: an all-zero ifreq is a valid value of that plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &raw mut request) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(io::Error::new(error.kind(), format!("creating the TUN device {name}: {error}")));
    }
    let owned: OwnedFd = file.into();
    nonblocking(&owned)?;
    Ok(owned)
}

fn offload(device: &OwnedFd, flags: u64) -> bool {
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    unsafe { libc::ioctl(device.as_raw_fd(), TUNSETOFFLOAD as _, flags) == 0 }
}

fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd.as_raw_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Sets up what does not depend on the TUN: loopback, the node's addresses, forwarding, the routes of pods. Runs in the
/// node's namespace, and may run again.
///
/// # Errors
/// The kernel's.
pub fn prepare_node(netlink: &mut Netlink, addresses: &Addresses) -> io::Result<()> {
    let loopback = 1;
    let seen_as = addresses.host_seen_as;
    let mut requests = vec![
        Request::link_up(loopback),
        Request::add_address(loopback, addresses.node_ip, AddressScope::Universe),
        Request::add_address(loopback, GATEWAY, AddressScope::Link),
    ];
    requests.extend(seen_as.map(|ip| Request::add_address(loopback, ip, AddressScope::Link)));
    requests.extend([
        Request::add_unreachable(TABLE_PODS, addresses.pod_cidr),
        Request::add_last_resort(TABLE_PODS, addresses.cluster_cidr),
        Request::add_last_resort(TABLE_PODS, addresses.node_cidr),
    ]);
    netlink.apply(requests)?;
    // Links have settings of their own (see `Request::set_inet`), but these are combined with them.
    for (path, value) in [("net/ipv4/conf/all/rp_filter", "0"), ("net/ipv4/conf/all/send_redirects", "0")] {
        if let Err(error) = sysctl(path, value) {
            tracing::warn!(%error, "Services may not work");
        }
    }
    // For pods with hostNetwork; a node without IPv6 has no such file.
    let _ = sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    let _ = sysctl("net/ipv4/ip_unprivileged_port_start", "0");
    install_rules(netlink, addresses)
}

/// Lets the kernel route between pods, for want of an engine.
///
/// # Errors
/// The kernel's.
pub fn route_pods_directly(netlink: &mut Netlink) -> io::Result<()> {
    netlink.apply(vec![Request::add_rule(DIRECT_RULE, &Selector::default(), TABLE_PODS)])
}

/// Leads packets into the TUN device that was just opened.
///
/// # Errors
/// The kernel's.
pub fn attach_tun(netlink: &mut Netlink, addresses: &Addresses) -> io::Result<()> {
    let index = netlink.index(DEVICE)?;
    let default = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
    netlink.apply(vec![
        Request::set_inet(
            index,
            &[
                (InetSetting::Forwarding, 1),
                (InetSetting::ReversePathFilter, 0),
                (InetSetting::SendRedirects, 0),
                // The engine hands the node's own packets back translated, still under the node's address.
                (InetSetting::AcceptLocal, 1),
                (InetSetting::RouteLocalnet, 1),
            ],
        ),
        Request::set_mtu(index, MTU),
        Request::link_up(index),
        Request::add_route(TABLE_ENGINE, default, index, None, Some(addresses.node_ip)),
        Request::delete_rule(DIRECT_RULE),
    ])
}

fn install_rules(netlink: &mut Netlink, addresses: &Addresses) -> io::Result<()> {
    let node_ip = addresses.node_ip;
    // An earlier daemon may have had another port.
    netlink.apply(vec![Request::delete_rule(API_RULE)])?;
    let from_engine = Selector { iif: Some(DEVICE.to_owned()), ..Selector::default() };
    let local = Selector { iif: Some("lo".to_owned()), ..Selector::default() };
    let to_net = |net| Selector { to: Some(net), ..Selector::default() };
    let to_node = |protocol, ports: &std::ops::RangeInclusive<u16>| Selector {
        to: Some(node_ip.into()),
        ports: Some((protocol, *ports.start(), *ports.end())),
        ..Selector::default()
    };
    let api = addresses.api_port.map(|port| (API_RULE, to_node(IpProtocol::Tcp, &(port..=port)), TABLE_ENGINE));
    let rules = [
        (10, from_engine.clone(), TABLE_LOCAL),
        (11, from_engine, TABLE_PODS),
        (20, to_node(IpProtocol::Tcp, &NODE_PORTS), TABLE_ENGINE),
        (21, to_node(IpProtocol::Udp, &NODE_PORTS), TABLE_ENGINE),
        (22, to_node(IpProtocol::Tcp, &MASQUERADE_PORTS), TABLE_ENGINE),
        (23, to_node(IpProtocol::Udp, &MASQUERADE_PORTS), TABLE_ENGINE),
        (26, to_net(addresses.load_balancer_cidr), TABLE_ENGINE),
        (27, local.clone(), TABLE_LOCAL),
        (28, to_net(LOOPBACK), TABLE_ENGINE),
        (30, Selector::default(), TABLE_LOCAL),
        (40, local, TABLE_PODS),
        (50, Selector::default(), TABLE_ENGINE),
    ];
    let present = netlink.rule_priorities()?;
    let mut requests: Vec<Request> = rules
        .iter()
        .chain(&api)
        .filter(|(priority, ..)| !present.contains(priority))
        .map(|(priority, selector, table)| Request::add_rule(*priority, selector, *table))
        .collect();
    if present.contains(&0) {
        requests.push(Request::delete_rule(0));
    }
    netlink.apply(requests)
}

/// Writes a sysctl of the calling thread's namespace.
pub(super) fn sysctl(path: &str, value: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/{path}"), value)
        .map_err(|error| io::Error::new(error.kind(), format!("setting {path} to {value}: {error}")))
}
