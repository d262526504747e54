//! The link between a worker's network namespace and the first node's, and the routes in both. On one machine it is a veth
//! pair, between machines a TUN device at each end (see `carrier`).
//!
//! The first node is the hub: a worker has one route for all other nodes, the hub has two for each worker (its address, its
//! pods), in two tables. What comes from a worker and goes to another passes through by table [`TABLE_NODES`] alone; what goes
//! to the hub's own pods meets the hub's engine, as at every node. Each end asks for the other's hardware address by the
//! other's `InternalIP`, which lies on its `lo`.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};

use ipnet::Ipv4Net;

use super::namespace_thread::visit;
use super::netlink::{self, InetSetting, Netlink, Request, Selector};
use super::tun::{self, Addresses, MTU, TABLE_PODS};

/// The hub's table of other nodes.
const TABLE_NODES: u32 = 79;
/// The rule for what comes by a link.
const TRANSIT_RULE: u32 = 12;
/// The worker's end.
const TO_HUB: &str = "hub";

const SETTINGS: [(InetSetting, u32); 3] =
    [(InetSetting::Forwarding, 1), (InetSetting::ReversePathFilter, 0), (InetSetting::SendRedirects, 0)];

/// An end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The worker's.
    Worker,
    /// The first node's.
    Hub,
}

/// A worker's link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    worker_ip: Ipv4Addr,
    hub_ip: Ipv4Addr,
    pods: Ipv4Net,
    /// What a worker reaches by the hub: all nodes and their pods.
    beyond: [Ipv4Net; 2],
}

impl Link {
    /// The link of another node, as the first node with these addresses has it.
    ///
    /// # Errors
    /// As [`Link::new`].
    pub fn of_peer(hub: &Addresses, worker_ip: Ipv4Addr, pods: Ipv4Net) -> io::Result<Self> {
        Self::new(&Addresses { node_ip: worker_ip, pod_cidr: pods, ..hub.clone() })
    }

    /// The link of the worker with these addresses.
    ///
    /// # Errors
    /// When its address is not one of the cluster's nodes.
    pub fn new(addresses: &Addresses) -> io::Result<Self> {
        let link = Self {
            worker_ip: addresses.node_ip,
            hub_ip: Ipv4Addr::from(u32::from(addresses.node_cidr.network()) + 2),
            pods: addresses.pod_cidr,
            beyond: [addresses.cluster_cidr, addresses.node_cidr],
        };
        if link.worker_ip == link.hub_ip || !addresses.node_cidr.contains(&link.worker_ip) {
            let text = format!("{} is no address of a worker in {}", link.worker_ip, addresses.node_cidr);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(link)
    }

    /// Makes the link, or finds it and sets it up again. To be called on a thread of the worker's namespace (`home`).
    ///
    /// # Errors
    /// The kernel's.
    pub fn connect(&self, home: &OwnedFd, hub: &OwnedFd) -> io::Result<()> {
        let name = name(self.worker_ip);
        let mut here = Netlink::open()?;
        let mut there = visit(home, hub, Netlink::open)??;
        if here.index(TO_HUB).is_err() {
            // The other end of one that is half gone, or of a namespace that this worker had before.
            there.apply(vec![Request::delete_link(&name)])?;
            there.apply(vec![Request::add_veth(&name, MTU, TO_HUB, home.as_fd())])?;
        }
        self.route_to_hub(&mut here)?;
        self.route_to_worker(&mut there)?;
        visit(home, hub, || netlink::settle(&name))??;
        netlink::settle(TO_HUB)
    }

    /// Opens this machine's end of the link to a node of another one: what the kernel sends there is read from it. To be
    /// called on a thread of this node's namespace.
    ///
    /// # Errors
    /// The kernel's; when there is such a link already.
    pub fn open(&self, end: End) -> io::Result<OwnedFd> {
        let mut netlink = Netlink::open()?;
        match end {
            End::Worker => {
                let device = tun::open_link(TO_HUB)?;
                let index = netlink.index(TO_HUB)?;
                netlink.apply(vec![Request::set_mtu(index, MTU)])?;
                self.route_to_hub(&mut netlink)?;
                Ok(device)
            }
            End::Hub => {
                let name = name(self.worker_ip);
                let device = tun::open_link(&name)?;
                let index = netlink.index(&name)?;
                netlink.apply(vec![Request::set_mtu(index, MTU)])?;
                self.route_to_worker(&mut netlink)?;
                Ok(device)
            }
        }
    }

    /// Whether a packet may come out of this end.
    pub fn admits(&self, end: End, source: Ipv4Addr, destination: Ipv4Addr) -> bool {
        let of_worker = |ip: Ipv4Addr| ip == self.worker_ip || self.pods.contains(&ip);
        // `host.minikube.internal`, the address before the first node's, is each machine's own.
        let is_host = |ip: Ipv4Addr| u32::from(ip) + 1 == u32::from(self.hub_ip);
        let inside = |ip: Ipv4Addr| self.beyond.iter().any(|range| range.contains(&ip));
        let beyond = |ip: Ipv4Addr| inside(ip) && !of_worker(ip) && !is_host(ip);
        match end {
            End::Worker => beyond(source) && of_worker(destination),
            End::Hub => of_worker(source) && beyond(destination),
        }
    }

    fn route_to_hub(&self, netlink: &mut Netlink) -> io::Result<()> {
        let index = netlink.index(TO_HUB)?;
        let mut requests = vec![
            Request::set_inet(index, &SETTINGS),
            Request::link_up(index),
            Request::add_route(TABLE_PODS, self.hub_ip.into(), index, None, Some(self.worker_ip)),
        ];
        requests.extend(
            self.beyond
                .map(|range| Request::add_route(TABLE_PODS, range, index, Some(self.hub_ip), Some(self.worker_ip))),
        );
        netlink.apply(requests)
    }

    fn route_to_worker(&self, netlink: &mut Netlink) -> io::Result<()> {
        let name = name(self.worker_ip);
        let index = netlink.index(&name)?;
        let mut requests = vec![Request::set_inet(index, &SETTINGS), Request::link_up(index)];
        for table in [TABLE_PODS, TABLE_NODES] {
            requests.push(Request::add_route(table, self.worker_ip.into(), index, None, Some(self.hub_ip)));
            requests.push(Request::add_route(table, self.pods, index, Some(self.worker_ip), Some(self.hub_ip)));
        }
        let from_worker = Selector { iif: Some(name.clone()), ..Selector::default() };
        requests.push(Request::delete_rule_of(TRANSIT_RULE, &name));
        requests.push(Request::add_rule(TRANSIT_RULE, &from_worker, TABLE_NODES));
        netlink.apply(requests)
    }
}

/// The name of the hub's end: the last number of the worker's address tells workers apart.
fn name(worker_ip: Ipv4Addr) -> String {
    format!("node{}", worker_ip.octets()[3])
}

/// Takes what the hub knows of a worker away. To be called on a thread of the hub's namespace.
///
/// # Errors
/// The kernel's.
pub fn disconnect(worker_ip: Ipv4Addr) -> io::Result<()> {
    let name = name(worker_ip);
    Netlink::open()?.apply(vec![Request::delete_rule_of(TRANSIT_RULE, &name), Request::delete_link(&name)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(node_ip: &str) -> Addresses {
        Addresses {
            node_ip: node_ip.parse().expect("an address"),
            pod_cidr: "10.244.3.0/24".parse().expect("a network"),
            cluster_cidr: "10.244.0.0/16".parse().expect("a network"),
            node_cidr: "192.168.49.0/24".parse().expect("a network"),
            load_balancer_cidr: "127.78.0.0/24".parse().expect("a network"),
            host_seen_as: None,
            api_port: None,
        }
    }

    #[test]
    fn a_worker_is_told_apart_by_its_address() {
        let link = Link::new(&addresses("192.168.49.5")).expect("a worker");
        assert_eq!((name(link.worker_ip).as_str(), link.hub_ip), ("node5", Ipv4Addr::new(192, 168, 49, 2)));
        assert!(Link::new(&addresses("192.168.49.2")).is_err(), "the hub itself");
        assert!(Link::new(&addresses("192.168.50.5")).is_err(), "another range");
    }

    #[test]
    fn only_what_belongs_to_the_other_end_comes_out_of_a_link() {
        let link = Link::new(&addresses("192.168.49.5")).expect("a worker");
        let admits = |end, from: &str, to: &str| {
            link.admits(end, from.parse().expect("an address"), to.parse().expect("an address"))
        };
        assert!(admits(End::Hub, "10.244.3.7", "10.244.0.2"), "to a pod of the first node");
        assert!(admits(End::Hub, "192.168.49.5", "10.244.9.2"), "from the node itself, to a third");
        assert!(!admits(End::Hub, "10.244.4.7", "10.244.0.2"), "another node's pod");
        assert!(!admits(End::Hub, "10.244.3.7", "10.96.0.1"), "a Service: its own engine has to deal with that");
        assert!(!admits(End::Hub, "10.244.3.7", "192.168.49.1"), "the first node's machine");
        assert!(!admits(End::Hub, "10.244.3.7", "127.0.0.1") && !admits(End::Hub, "10.244.3.7", "203.0.113.1"));
        assert!(!admits(End::Hub, "10.244.3.7", "10.244.3.8"), "no detour");
        assert!(admits(End::Worker, "10.244.0.2", "10.244.3.7") && admits(End::Worker, "192.168.49.2", "192.168.49.5"));
        assert!(!admits(End::Worker, "10.244.3.8", "10.244.3.7") && !admits(End::Worker, "10.244.0.2", "203.0.113.1"));
    }
}
