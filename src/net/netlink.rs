//! rtnetlink requests over one blocking socket per namespace: links, addresses, routes, rules.
//!
//! The kernel answers synchronously, so a batch of requests costs one `send` and one `recv` or two.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::Ipv4Net;
use netlink_packet_core::{
    DefaultNla, NLA_F_NESTED, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// The routing table that every namespace looks up last.
pub const TABLE_MAIN: u32 = 254;
/// The table of the kernel's own addresses.
pub const TABLE_LOCAL: u32 = 255;

/// The metric of routes that say "unreachable" where no better one is.
const LAST_RESORT: u32 = 4096;

/// A request and what to do when the kernel refuses it.
pub struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
    /// `errno` values that count as success (`EEXIST` of something that shall exist).
    tolerate: &'static [i32],
    /// Said in the error.
    what: String,
}

/// A socket in the network namespace of the thread that opened it.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// A link as a dump shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The interface index.
    pub index: u32,
    /// The interface name.
    pub name: String,
    /// `ifalias`; empty when there is none.
    pub alias: String,
}

/// A route to one IPv4 destination as a dump shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination.
    pub destination: Ipv4Net,
    /// The output interface's index; 0 when there is none.
    pub link: u32,
    /// The table.
    pub table: u32,
}

/// What a rule selects beside its priority and table.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// Packets that came in by this interface (`lo`: those of local sockets).
    pub iif: Option<String>,
    /// Packets to these addresses.
    pub to: Option<Ipv4Net>,
    /// An IP protocol with a range of destination ports.
    pub ports: Option<(IpProtocol, u16, u16)>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// Those of `socket`, `bind` and `connect`.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Errors then say in words what was wrong; older kernels do not know the option.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends all requests at once and waits for all answers; the first refusal is the error (later ones were tried too).
    ///
    /// # Errors
    /// The kernel's, with the request's description.
    pub fn apply(&mut self, requests: Vec<Request>) -> io::Result<()> {
        if requests.is_empty() {
            return Ok(());
        }
        let mut batch = Vec::with_capacity(requests.len() * 128);
        let first = self.sequence.wrapping_add(1);
        for request in &requests {
            self.encode(request.message.clone(), request.flags | NLM_F_ACK, &mut batch);
        }
        self.socket.send(&batch, 0)?;
        let mut result = Ok(());
        let mut pending = requests.len();
        while pending > 0 {
            self.receive(|header_sequence, payload| {
                let NetlinkPayload::Error(error) = payload else { return };
                let Some(request) = requests.get(header_sequence.wrapping_sub(first) as usize) else { return };
                pending -= 1;
                let code = -error.raw_code();
                if code != 0 && !request.tolerate.contains(&code) && result.is_ok() {
                    let cause = io::Error::from_raw_os_error(code);
                    result = Err(io::Error::new(cause.kind(), format!("{}: {cause}", request.what)));
                }
            })?;
        }
        result
    }

    /// The index of a link by name.
    ///
    /// # Errors
    /// `NotFound` (as ENODEV) when there is none.
    pub fn index(&mut self, name: &str) -> io::Result<u32> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let mut buffer = Vec::new();
        self.encode(RouteNetlinkMessage::GetLink(message), 0, &mut buffer);
        self.socket.send(&buffer, 0)?;
        let mut found = None;
        while found.is_none() {
            self.receive(|_, payload| match payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => found = Some(Ok(link.header.index)),
                NetlinkPayload::Error(error) => {
                    let cause = io::Error::from_raw_os_error(-error.raw_code());
                    found = Some(Err(io::Error::new(cause.kind(), format!("looking for the link {name}: {cause}"))));
                }
                _ => {}
            })?;
        }
        found.expect("the loop ends when it is set")
    }

    /// All links.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        self.dump("links", RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
            let RouteNetlinkMessage::NewLink(link) = message else { return };
            let mut row = Link { index: link.header.index, name: String::new(), alias: String::new() };
            for attribute in link.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => row.name = name,
                    LinkAttribute::IfAlias(alias) => row.alias = alias,
                    _ => {}
                }
            }
            links.push(row);
        })?;
        Ok(links)
    }

    /// All IPv4 routes of all tables.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn routes(&mut self) -> io::Result<Vec<Route>> {
        let mut routes = Vec::new();
        let mut filter = RouteMessage::default();
        filter.header.address_family = AddressFamily::Inet;
        self.dump("routes", RouteNetlinkMessage::GetRoute(filter), |message| {
            let RouteNetlinkMessage::NewRoute(route) = message else { return };
            let (mut address, mut link, mut table) = (Ipv4Addr::UNSPECIFIED, 0, u32::from(route.header.table));
            for attribute in route.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(ip)) => address = ip,
                    RouteAttribute::Oif(index) => link = index,
                    RouteAttribute::Table(id) => table = id,
                    _ => {}
                }
            }
            if let Ok(destination) = Ipv4Net::new(address, route.header.destination_prefix_length) {
                routes.push(Route { destination, link, table });
            }
        })?;
        Ok(routes)
    }

    /// The priorities of all IPv4 rules.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn rule_priorities(&mut self) -> io::Result<Vec<u32>> {
        let mut priorities = Vec::new();
        let mut filter = RuleMessage::default();
        filter.header.family = AddressFamily::Inet;
        self.dump("routing rules", RouteNetlinkMessage::GetRule(filter), |message| {
            let RouteNetlinkMessage::NewRule(rule) = message else { return };
            let priority = rule.attributes.iter().find_map(|a| match a {
                RuleAttribute::Priority(priority) => Some(*priority),
                _ => None,
            });
            priorities.push(priority.unwrap_or(0));
        })?;
        Ok(priorities)
    }

    fn dump(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        let mut buffer = Vec::new();
        self.encode(message, NLM_F_DUMP, &mut buffer);
        self.socket.send(&buffer, 0)?;
        let mut outcome = None;
        while outcome.is_none() {
            self.receive(|_, payload| match payload {
                NetlinkPayload::InnerMessage(message) => each(message),
                NetlinkPayload::Done(_) => outcome = Some(Ok(())),
                NetlinkPayload::Error(error) => {
                    let cause = io::Error::from_raw_os_error(-error.raw_code());
                    outcome = Some(Err(io::Error::new(cause.kind(), format!("listing {what}: {cause}"))));
                }
                _ => {}
            })?;
        }
        outcome.expect("the loop ends when it is set")
    }

    fn encode(&mut self, message: RouteNetlinkMessage, flags: u16, batch: &mut Vec<u8>) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut packet = NetlinkMessage::from(message);
        packet.header.flags = NLM_F_REQUEST | flags;
        packet.header.sequence_number = self.sequence;
        packet.finalize();
        let start = batch.len();
        batch.resize(start + packet.buffer_len().next_multiple_of(4), 0);
        packet.serialize(&mut batch[start..]);
    }

    /// One datagram of answers.
    fn receive(&self, mut each: impl FnMut(u32, NetlinkPayload<RouteNetlinkMessage>)) -> io::Result<()> {
        let (datagram, _) = self.socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while rest.len() >= 16 {
            let packet = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = (packet.header.length as usize).next_multiple_of(4);
            each(packet.header.sequence_number, packet.payload);
            rest = rest.get(length.max(16)..).unwrap_or_default();
        }
        Ok(())
    }
}

const EEXIST: &[i32] = &[libc::EEXIST];
const ABSENT: &[i32] = &[libc::ENODEV, libc::ESRCH, libc::ENOENT, libc::EADDRNOTAVAIL];

impl Request {
    fn new(message: RouteNetlinkMessage, flags: u16, what: String) -> Self {
        Self { message, flags, tolerate: &[], what }
    }

    fn tolerating(self, tolerate: &'static [i32]) -> Self {
        Self { tolerate, ..self }
    }

    /// A veth pair: `name` (with an `ifalias`) here, `peer` in the namespace `peer_namespace`.
    pub fn add_veth(name: &str, mtu: u32, peer: &str, peer_namespace: BorrowedFd<'_>) -> Self {
        let mut far = LinkMessage::default();
        far.attributes = vec![
            LinkAttribute::IfName(peer.to_owned()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::NetNsFd(peer_namespace.as_raw_fd()),
        ];
        let mut near = LinkMessage::default();
        near.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
            ]),
        ];
        let what = format!("creating the veth pair {name}");
        Self::new(RouteNetlinkMessage::NewLink(near), NLM_F_CREATE | NLM_F_EXCL, what)
    }

    /// Brings a link up.
    pub fn link_up(index: u32) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        Self::new(RouteNetlinkMessage::SetLink(message), 0, format!("bringing link {index} up"))
    }

    /// Sets a link's `ifalias`, by name (a create does not take it).
    pub fn set_alias(name: &str, alias: &str) -> Self {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::IfAlias(alias.to_owned())];
        Self::new(RouteNetlinkMessage::SetLink(message), 0, format!("naming the pod of link {name}"))
    }

    /// Sets a link's MTU.
    pub fn set_mtu(index: u32, mtu: u32) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::Mtu(mtu)];
        Self::new(RouteNetlinkMessage::SetLink(message), 0, format!("setting the MTU of link {index}"))
    }

    /// Deletes a link (and, of a veth, its peer); one that is gone is fine.
    pub fn delete_link(name: &str) -> Self {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        Self::new(RouteNetlinkMessage::DelLink(message), 0, format!("deleting link {name}")).tolerating(ABSENT)
    }

    /// Sets IPv4 settings of a link (`net.ipv4.conf.<link>.*`): works where /proc/sys is read-only, as in a container.
    pub fn set_inet(index: u32, settings: &[(InetSetting, u32)]) -> Self {
        const IFLA_AF_SPEC: u16 = 26;
        const IFLA_INET_CONF: u16 = 1;
        let nested = |kind: u16, inside: Vec<u8>| attribute(kind | NLA_F_NESTED, &inside);
        let values = settings.iter().flat_map(|(setting, value)| attribute(*setting as u16, &value.to_ne_bytes()));
        let inet = nested(libc::AF_INET as u16, nested(IFLA_INET_CONF, values.collect()));
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::Other(DefaultNla::new(IFLA_AF_SPEC | NLA_F_NESTED, inet))];
        Self::new(RouteNetlinkMessage::SetLink(message), 0, format!("setting {settings:?} of link {index}"))
    }

    /// Puts a link into a group; one that is gone is fine.
    pub fn set_group(name: &str, group: u32) -> Self {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Group(group)];
        Self::new(RouteNetlinkMessage::SetLink(message), 0, format!("grouping link {name}")).tolerating(ABSENT)
    }

    /// Deletes all links of a group at once; an empty group is fine.
    pub fn delete_group(group: u32) -> Self {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::Group(group)];
        Self::new(RouteNetlinkMessage::DelLink(message), 0, format!("deleting links of group {group}"))
            .tolerating(ABSENT)
    }

    /// Gives a link an address without a prefix route.
    pub fn add_address(index: u32, address: Ipv4Addr, scope: AddressScope) -> Self {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = 32;
        message.header.index = index;
        message.header.scope = scope;
        message.attributes =
            vec![AddressAttribute::Local(IpAddr::V4(address)), AddressAttribute::Address(IpAddr::V4(address))];
        let what = format!("adding the address {address}");
        Self::new(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE, what).tolerating(EEXIST)
    }

    /// A route to `destination` by link `index`, directly or through `gateway`, replacing the one that is there.
    pub fn add_route(
        table: u32,
        destination: Ipv4Net,
        index: u32,
        gateway: Option<Ipv4Addr>,
        source: Option<Ipv4Addr>,
    ) -> Self {
        let mut message = route(table, destination);
        message.header.scope = if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Oif(index));
        message.attributes.extend(gateway.map(|ip| RouteAttribute::Gateway(RouteAddress::Inet(ip))));
        message.attributes.extend(source.map(|ip| RouteAttribute::PrefSource(RouteAddress::Inet(ip))));
        let what = format!("adding the route to {destination}");
        Self::new(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE, what)
    }

    /// Answers packets to `destination` with "host unreachable" where no longer prefix matches.
    pub fn add_unreachable(table: u32, destination: Ipv4Net) -> Self {
        let mut message = route(table, destination);
        message.header.kind = RouteType::Unreachable;
        let what = format!("adding the unreachable route to {destination}");
        Self::new(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE, what)
    }

    /// As [`Request::add_unreachable`], beside (and behind) a route to the same destination.
    pub fn add_last_resort(table: u32, destination: Ipv4Net) -> Self {
        let mut request = Self::add_unreachable(table, destination);
        if let RouteNetlinkMessage::NewRoute(message) = &mut request.message {
            message.attributes.push(RouteAttribute::Priority(LAST_RESORT));
        }
        request
    }

    /// Deletes the route to `destination`; one that is gone is fine.
    pub fn delete_route(table: u32, destination: Ipv4Net) -> Self {
        let what = format!("deleting the route to {destination}");
        let mut message = route(table, destination);
        message.header.protocol = RouteProtocol::Unspec;
        message.header.scope = RouteScope::NoWhere;
        Self::new(RouteNetlinkMessage::DelRoute(message), 0, what).tolerating(ABSENT)
    }

    /// A rule that sends what `selector` selects to `table`.
    pub fn add_rule(priority: u32, selector: &Selector, table: u32) -> Self {
        let what = format!("adding the routing rule {priority}");
        Self::new(RouteNetlinkMessage::NewRule(rule(priority, selector, table)), NLM_F_CREATE | NLM_F_EXCL, what)
            .tolerating(EEXIST)
    }

    /// Deletes the rule with `priority` for packets that came in by a link; one that is gone is fine.
    pub fn delete_rule_of(priority: u32, link: &str) -> Self {
        let mut request = Self::delete_rule(priority);
        if let RouteNetlinkMessage::DelRule(message) = &mut request.message {
            message.attributes.push(RuleAttribute::Iifname(link.to_owned()));
        }
        request
    }

    /// Deletes the rule with `priority`; one that is gone is fine.
    pub fn delete_rule(priority: u32) -> Self {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.attributes.push(RuleAttribute::Priority(priority));
        Self::new(RouteNetlinkMessage::DelRule(message), 0, format!("deleting the routing rule {priority}"))
            .tolerating(ABSENT)
    }
}

/// The numbers of `IPV4_DEVCONF_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InetSetting {
    /// `forwarding`.
    Forwarding = 1,
    /// `send_redirects`.
    SendRedirects = 6,
    /// `rp_filter`.
    ReversePathFilter = 8,
    /// `accept_local`.
    AcceptLocal = 23,
    /// `route_localnet`.
    RouteLocalnet = 26,
}

/// One netlink attribute, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn route(table: u32, destination: Ipv4Net) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = u8::try_from(table).unwrap_or(0);
    message.header.protocol = RouteProtocol::Static;
    message.attributes.push(RouteAttribute::Table(table));
    if destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(destination.network())));
    }
    message
}

fn rule(priority: u32, selector: &Selector, table: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![RuleAttribute::Priority(priority), RuleAttribute::Table(table)];
    message.attributes.extend(selector.iif.clone().map(RuleAttribute::Iifname));
    if let Some(to) = selector.to {
        message.header.dst_len = to.prefix_len();
        message.attributes.push(RuleAttribute::Destination(IpAddr::V4(to.network())));
    }
    if let Some((protocol, start, end)) = selector.ports {
        message.attributes.push(RuleAttribute::IpProtocol(protocol));
        message.attributes.push(RuleAttribute::DestinationPortRange(RulePortRange { start, end }));
    }
    message
}

/// Waits until the kernel has activated a link that just got its carrier: what is sent before is lost, and a lost SYN
/// costs a second. (`ETHTOOL_GLINK` runs the pending link event of that device first.)
///
/// # Errors
/// Those of the request.
pub fn settle(name: &str) -> io::Result<()> {
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const ETHTOOL_GLINK: u32 = 0xa;
    const SIOCETHTOOL: u64 = 0x8946;
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut value = Value { command: ETHTOOL_GLINK, data: 0 };
    // SAFETY: an all-zero ifreq is a valid value of that plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: SIOCETHTOOL reads an ifreq whose data points at an ethtool_value, and both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
