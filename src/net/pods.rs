//! Routed veth pods: one `/32` each, the gateway 169.254.1.1, no bridge.
//!
//! The kernel is the only record: a pod's link carries the pod's uid as `ifalias`, its route carries the address, so a new
//! daemon finds what the last one left. The pair is created with its far end already in the pod's namespace: moving a
//! device between namespaces costs an RCU grace period.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use ipnet::Ipv4Net;
use netlink_packet_route::address::AddressScope;

use super::namespace_thread::{NamespaceThread, open_namespace, visit};
use super::netlink::{self, InetSetting, Netlink, Request, TABLE_LOCAL, TABLE_MAIN};
use super::tun::{GATEWAY, MTU, TABLE_PODS, sysctl};

/// The group of links that are about to be deleted.
const LEAVING: u32 = 0x6d69;
/// The interface inside a pod.
const POD_LINK: &str = "eth0";

const UNPOISONED: &str = "no panic while this is held";

/// The pods of one node.
pub struct Pods {
    node: NamespaceThread,
    /// Deletes links: that waits for the kernel's readers (some 30 ms), and must not hold up an attach.
    reaper: NamespaceThread,
    /// Links that the reaper deletes next, all in one wait.
    leaving: Arc<Mutex<Vec<String>>>,
    home: Arc<OwnedFd>,
    routes: PodRoutes,
    allocator: Mutex<Allocator>,
}

/// What the routes of a pod are made of.
#[derive(Clone, Copy, Debug)]
pub struct PodRoutes {
    /// The node's address, from which it reaches the pod.
    pub node_ip: Ipv4Addr,
    /// Addresses of load balancers: loopback addresses that are not the pod's own.
    pub load_balancer_cidr: Ipv4Net,
}

/// Which addresses are whose.
#[derive(Debug)]
struct Allocator {
    cidr: Ipv4Net,
    by_pod: BTreeMap<String, Ipv4Addr>,
    used: HashSet<Ipv4Addr>,
    /// Where the search goes on: an address that was just freed is not given out again at once.
    next: u32,
}

impl Pods {
    /// Takes over the node's namespace with the pods that are attached in it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn recover(home: OwnedFd, node: NamespaceThread, routes: PodRoutes, cidr: Ipv4Net) -> io::Result<Self> {
        let reaper = NamespaceThread::start("net-reaper", home.try_clone()?)?;
        let present = node.run_blocking(|| -> io::Result<Vec<(String, Ipv4Addr)>> {
            let mut netlink = Netlink::open()?;
            let pods: HashMap<u32, String> =
                netlink.links()?.into_iter().filter(|l| is_pod_link(l)).map(|l| (l.index, l.alias)).collect();
            let known = netlink.routes()?.into_iter().filter(|r| r.table == TABLE_PODS);
            Ok(known.filter_map(|r| Some((pods.get(&r.link)?.clone(), r.destination.addr()))).collect())
        })??;
        let mut allocator = Allocator::new(cidr);
        present.into_iter().for_each(|(pod, ip)| allocator.reserve(pod, ip));
        Ok(Self {
            node,
            reaper,
            leaving: Arc::default(),
            home: Arc::new(home),
            routes,
            allocator: Mutex::new(allocator),
        })
    }

    /// Gives the pod's namespace its interface and address, or finds both there; the network works when this returns.
    ///
    /// # Errors
    /// When the addresses are used up, or the kernel's.
    pub async fn attach(&self, uid: &str, namespace: &Path) -> io::Result<Ipv4Addr> {
        let namespace = open_namespace(namespace)?;
        let (ip, fresh) = self.allocator().allocate(uid).ok_or_else(|| {
            io::Error::new(io::ErrorKind::AddrNotAvailable, "no free address is left in the node's pod CIDR")
        })?;
        let (home, routes, pod) = (self.home.clone(), self.routes, uid.to_owned());
        let result = self.node.run(move || connect_pod(&home, &namespace, &pod, ip, routes)).await;
        match result.and_then(|inner| inner) {
            Ok(()) => Ok(ip),
            Err(error) => {
                if fresh {
                    self.allocator().release(uid);
                }
                Err(error)
            }
        }
    }

    /// Takes the pod's interface away and frees its address; a pod that is not there is fine. Returns the address.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn detach(&self, uid: &str) -> io::Result<Option<Ipv4Addr>> {
        let Some(ip) = self.address(uid) else { return Ok(None) };
        let name = link_name(uid);
        self.node
            .run(move || Netlink::open()?.apply(vec![Request::delete_route(TABLE_PODS, Ipv4Net::from(ip))]))
            .await??;
        let leaving = self.leaving.clone();
        leaving.lock().expect(UNPOISONED).push(name);
        self.reaper.run(move || reap(&leaving)).await??;
        self.allocator().release(uid);
        Ok(Some(ip))
    }

    /// The address of an attached pod.
    pub fn address(&self, uid: &str) -> Option<Ipv4Addr> {
        self.allocator().by_pod.get(uid).copied()
    }

    /// All attached pods: uid and address.
    pub fn list(&self) -> Vec<(String, Ipv4Addr)> {
        self.allocator().by_pod.iter().map(|(uid, ip)| (uid.clone(), *ip)).collect()
    }

    fn allocator(&self) -> MutexGuard<'_, Allocator> {
        self.allocator.lock().expect(UNPOISONED)
    }
}

/// Runs on the reaper's thread. Whoever comes first deletes for all who wait.
fn reap(leaving: &Mutex<Vec<String>>) -> io::Result<()> {
    let names = std::mem::take(&mut *leaving.lock().expect(UNPOISONED));
    if names.is_empty() {
        return Ok(());
    }
    let mut requests: Vec<Request> = names.iter().map(|name| Request::set_group(name, LEAVING)).collect();
    requests.push(Request::delete_group(LEAVING));
    Netlink::open()?.apply(requests)
}

/// Runs on the node's namespace thread. Every step may find its work done.
fn connect_pod(home: &OwnedFd, namespace: &OwnedFd, uid: &str, ip: Ipv4Addr, routes: PodRoutes) -> io::Result<()> {
    let name = link_name(uid);
    let mut node = Netlink::open()?;
    let mut pod = visit(home, namespace, enter_pod)??;
    if pod.index(POD_LINK).is_err() {
        // A link of that name belongs to an earlier sandbox of the same pod.
        if node.index(&name).is_ok() {
            node.apply(vec![Request::delete_link(&name)])?;
        }
        node.apply(vec![Request::add_veth(&name, MTU, POD_LINK, namespace.as_fd()), Request::set_alias(&name, uid)])?;
    }
    let index = pod.index(POD_LINK)?;
    let default = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
    pod.apply(vec![
        Request::link_up(1),
        Request::add_address(index, ip, AddressScope::Universe),
        Request::set_inet(index, &[(InetSetting::RouteLocalnet, 1)]),
        Request::link_up(index),
        Request::add_route(TABLE_MAIN, Ipv4Net::from(GATEWAY), index, None, None),
        Request::add_route(TABLE_MAIN, default, index, Some(GATEWAY), None),
        // More special than the kernel's own 127.0.0.0/8 in the table that is asked first.
        Request::add_route(TABLE_LOCAL, routes.load_balancer_cidr, index, Some(GATEWAY), Some(ip)),
    ])?;
    let index = node.index(&name)?;
    node.apply(vec![
        // Strict reverse path: a pod cannot send under another's address. Redirects would teach it ways past the engine.
        Request::set_inet(
            index,
            &[
                (InetSetting::Forwarding, 1),
                (InetSetting::ReversePathFilter, 1),
                (InetSetting::SendRedirects, 0),
                (InetSetting::RouteLocalnet, 1),
            ],
        ),
        Request::link_up(index),
        Request::add_route(TABLE_PODS, Ipv4Net::from(ip), index, None, Some(routes.node_ip)),
    ])?;
    netlink::settle(&name)
}

/// Runs inside the pod's namespace, before its interface is there. The socket stays in that namespace.
fn enter_pod() -> io::Result<Netlink> {
    // The cluster is IPv4; without this the interface would send router solicitations. A kernel without IPv6 has no such file.
    let _ = sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    // As containerd does: a container that is not root may listen on port 80.
    let _ = sysctl("net/ipv4/ip_unprivileged_port_start", "0");
    Netlink::open()
}

fn is_pod_link(link: &netlink::Link) -> bool {
    !link.alias.is_empty() && link.name == link_name(&link.alias)
}

/// `veth` and eleven hexadecimal digits of the uid's FNV-1a hash: interface names have at most 15 bytes.
fn link_name(uid: &str) -> String {
    let hash = uid
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("veth{:011x}", hash >> 20)
}

impl Allocator {
    fn new(cidr: Ipv4Net) -> Self {
        // The first address names the network; the second is a gateway by custom, and people expect no pod there.
        let next = u32::from(cidr.network()).saturating_add(2);
        Self { cidr, by_pod: BTreeMap::new(), used: HashSet::new(), next }
    }

    fn reserve(&mut self, pod: String, ip: Ipv4Addr) {
        self.used.insert(ip);
        self.by_pod.insert(pod, ip);
        self.next = self.next.max(u32::from(ip).saturating_add(1));
    }

    /// The pod's address, and whether it is new.
    fn allocate(&mut self, pod: &str) -> Option<(Ipv4Addr, bool)> {
        if let Some(ip) = self.by_pod.get(pod) {
            return Some((*ip, false));
        }
        let first = u32::from(self.cidr.network()).saturating_add(2);
        let last = u32::from(self.cidr.broadcast()).saturating_sub(1);
        let start = if (first..=last).contains(&self.next) { self.next } else { first };
        let ip = (start..=last).chain(first..start).map(Ipv4Addr::from).find(|ip| !self.used.contains(ip))?;
        self.reserve(pod.to_owned(), ip);
        self.next = u32::from(ip).saturating_add(1);
        Some((ip, true))
    }

    fn release(&mut self, pod: &str) {
        if let Some(ip) = self.by_pod.remove(pod) {
            self.used.remove(&ip);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unique_stable_and_not_reused_at_once() {
        let mut allocator = Allocator::new("10.244.0.0/29".parse().expect("a valid network"));
        let all: Vec<Ipv4Addr> = (0..5).map(|n| allocator.allocate(&n.to_string()).expect("room for five").0).collect();
        assert_eq!(all, (2..=6).map(|n| Ipv4Addr::new(10, 244, 0, n)).collect::<Vec<_>>());
        assert_eq!(allocator.allocate("6"), None);
        assert_eq!(allocator.allocate("0"), Some((Ipv4Addr::new(10, 244, 0, 2), false)));
        allocator.release("0");
        allocator.release("3");
        assert_eq!(allocator.allocate("7"), Some((Ipv4Addr::new(10, 244, 0, 2), true)));
        assert_eq!(allocator.allocate("8"), Some((Ipv4Addr::new(10, 244, 0, 5), true)));
    }

    #[test]
    fn link_names_fit_the_kernel() {
        let name = link_name("4b6b1c2e-0000-4000-8000-000000000000");
        assert_eq!(name.len(), 15);
        assert_ne!(name, link_name("4b6b1c2e-0000-4000-8000-000000000001"));
    }
}
