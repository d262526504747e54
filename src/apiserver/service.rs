//! Cluster addresses and node ports of Services: taken when one is written, free again when it goes. The state is derived from
//! the Services themselves when the server starts.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::ApiServer;
use crate::api::status::FieldError;
use crate::api::{Kind, Status, StatusResult, meta};
use crate::env::Env;

/// Something that one Service has alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    /// A cluster address.
    Address(Ipv4Addr),
    /// A node port.
    Port(u16),
}

/// What is taken, and by which Service (`namespace/name`).
#[derive(Default)]
struct Taken {
    addresses: HashMap<Ipv4Addr, String>,
    ports: HashMap<u16, String>,
}

/// The allocators.
pub(crate) struct Allocations {
    cidr: Ipv4Net,
    ports: RangeInclusive<u16>,
    taken: Arc<Mutex<Taken>>,
}

/// What one write has taken, and what it will give back once it has succeeded.
#[derive(Default)]
pub(crate) struct Claim {
    owner: String,
    taken: Option<Arc<Mutex<Taken>>>,
    new: (Vec<Ipv4Addr>, Vec<u16>),
    old: (Vec<Ipv4Addr>, Vec<u16>),
}

impl Claim {
    /// The write succeeded.
    fn keep(&self) {
        self.give_back(&self.old);
    }
    /// The write failed (or was a dry run).
    fn release(&self) {
        self.give_back(&self.new);
    }
    fn give_back(&self, (addresses, ports): &(Vec<Ipv4Addr>, Vec<u16>)) {
        let Some(taken) = &self.taken else { return };
        let mut taken = taken.lock().expect("no panic under this lock");
        for address in addresses {
            if taken.addresses.get(address) == Some(&self.owner) {
                taken.addresses.remove(address);
            }
        }
        for port in ports {
            if taken.ports.get(port) == Some(&self.owner) {
                taken.ports.remove(port);
            }
        }
    }
}

impl Allocations {
    pub fn new(cidr: Ipv4Net, ports: RangeInclusive<u16>) -> Self {
        Self { cidr, ports, taken: Arc::default() }
    }

    /// Takes what a stored Service has.
    pub(super) fn learn(&self, service: &Value) {
        let owner = owner(service);
        let mut taken = self.taken.lock().expect("no panic under this lock");
        for address in addresses(service) {
            taken.addresses.insert(address, owner.clone());
        }
        for port in ports(service) {
            taken.ports.insert(port, owner.clone());
        }
    }

    /// Gives back what a Service had.
    fn forget(&self, service: &Value) {
        let claim = Claim { owner: owner(service), taken: Some(Arc::clone(&self.taken)), ..Claim::default() };
        claim.give_back(&(addresses(service), ports(service)));
    }

    /// Somebody else has it.
    fn give_to(&self, owner: String, resource: Resource) {
        let mut taken = self.taken.lock().expect("no panic under this lock");
        match resource {
            Resource::Address(address) => drop(taken.addresses.insert(address, owner)),
            Resource::Port(port) => drop(taken.ports.insert(port, owner)),
        }
    }

    /// A Service was written, perhaps by another server.
    pub(super) fn changed(&self, old: Option<&Value>, new: Option<&Value>) {
        if let Some(old) = old {
            let keeps: Vec<Resource> = new.map(resources).unwrap_or_default();
            let gone = |resource: &Resource| !keeps.contains(resource);
            let claim = Claim { owner: owner(old), taken: Some(Arc::clone(&self.taken)), ..Claim::default() };
            claim.give_back(&split(resources(old).into_iter().filter(gone)));
        }
        if let Some(new) = new {
            self.learn(new);
        }
    }

    /// Forgets everything and takes what the stored Services have. What is just being given away is in the reservations.
    pub(super) fn relearn(&self, services: impl Iterator<Item = Arc<Value>>) {
        *self.taken.lock().expect("no panic under this lock") = Taken::default();
        services.for_each(|service| self.learn(&service));
    }

    /// Takes addresses and ports for a new or changed Service and writes them into it.
    fn claim(&self, service: &mut Value, old: Option<&Value>, env: &Env) -> Result<Claim, FieldError> {
        let mut claim = Claim { owner: owner(service), taken: Some(Arc::clone(&self.taken)), ..Claim::default() };
        let result = self
            .claim_address(&mut claim, service, env)
            .and_then(|()| self.claim_ports(&mut claim, service, env))
            .and_then(|()| self.claim_health_check(&mut claim, service, env));
        if let Err(error) = result {
            claim.release();
            return Err(error);
        }
        if let Some(old) = old {
            let (now_addresses, now_ports) = (addresses(service), ports(service));
            claim.old.0 = addresses(old).into_iter().filter(|a| !now_addresses.contains(a)).collect();
            claim.old.1 = ports(old).into_iter().filter(|p| !now_ports.contains(p)).collect();
        }
        Ok(claim)
    }

    fn claim_address(&self, claim: &mut Claim, service: &mut Value, env: &Env) -> Result<(), FieldError> {
        if service["spec"]["type"] == "ExternalName" {
            return Ok(());
        }
        let asked = service["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
        if asked == "None" {
            return Ok(());
        }
        let mut taken = self.taken.lock().expect("no panic under this lock");
        let invalid = |why: String| {
            FieldError::invalid("spec.clusterIPs", &json!([asked]), &format!("failed to allocate IP {asked}: {why}"))
        };
        let address = if asked.is_empty() {
            self.free_address(&taken, env).ok_or_else(|| {
                FieldError::invalid("spec.clusterIPs", &json!([]), "failed to allocate an IP: range is full")
            })?
        } else {
            let address: Ipv4Addr = asked.parse().map_err(|_| invalid("not a valid IP address".into()))?;
            if !self.cidr.contains(&address) || address == self.cidr.network() || address == self.cidr.broadcast() {
                return Err(invalid(format!(
                    "the provided IP ({asked}) is not in the valid range. The range of valid IPs is {}",
                    self.cidr
                )));
            }
            match taken.addresses.get(&address) {
                Some(other) if *other != claim.owner => return Err(invalid("provided IP is already allocated".into())),
                Some(_) => return Ok(set_address(service, address)),
                None => address,
            }
        };
        taken.addresses.insert(address, claim.owner.clone());
        claim.new.0.push(address);
        set_address(service, address);
        Ok(())
    }

    /// A free address at random above the part that is kept for those who ask for one (KEP-3070), else below.
    fn free_address(&self, taken: &Taken, env: &Env) -> Option<Ipv4Addr> {
        let first = u32::from(self.cidr.network()) + 1;
        let count = u32::from(self.cidr.broadcast()).checked_sub(first)?;
        let reserved = if count < 16 { 0 } else { (count / 16).clamp(16, 256) };
        let upper = count - reserved;
        let free = |offset: u32| {
            let address = Ipv4Addr::from(first + offset);
            (!taken.addresses.contains_key(&address)).then_some(address)
        };
        let start = if upper > 0 { env.below(u64::from(upper)) as u32 } else { 0 };
        (0..upper).map(|i| reserved + (start + i) % upper).find_map(free).or_else(|| (0..reserved).find_map(free))
    }

    fn claim_ports(&self, claim: &mut Claim, service: &mut Value, env: &Env) -> Result<(), FieldError> {
        let balanced = service["spec"]["type"] == "LoadBalancer";
        let allocate = service["spec"]["type"] == "NodePort"
            || (balanced && service["spec"]["allocateLoadBalancerNodePorts"] != false);
        if !allocate && !balanced {
            return Ok(());
        }
        let owner = claim.owner.clone();
        let mut taken = self.taken.lock().expect("no panic under this lock");
        let asked: Vec<Option<u16>> =
            service["spec"]["ports"].as_array().into_iter().flatten().map(node_port).collect();
        // The ones that were asked for first, so that no random one gets in their way.
        for (i, port) in asked.iter().enumerate().filter_map(|(i, port)| port.map(|p| (i, p))) {
            let invalid = |why: String| FieldError::invalid(format!("spec.ports[{i}].nodePort"), &json!(port), &why);
            if !self.ports.contains(&port) {
                let (low, high) = (self.ports.start(), self.ports.end());
                return Err(invalid(format!(
                    "provided port is not in the valid range. The range of valid ports is {low}-{high}"
                )));
            }
            match taken.ports.get(&port) {
                Some(other) if *other != owner => return Err(invalid("provided port is already allocated".into())),
                Some(_) => {}
                None => {
                    taken.ports.insert(port, owner.clone());
                    claim.new.1.push(port);
                }
            }
        }
        if !allocate {
            return Ok(());
        }
        // Two ports of a Service with one number and different protocols share the node port.
        let mut shared: HashMap<i64, u16> = HashMap::new();
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            let number = port["port"].as_i64().unwrap_or_default();
            match node_port(port) {
                Some(asked) => {
                    shared.insert(number, asked);
                }
                None => {
                    let chosen = match shared.get(&number) {
                        Some(same) => *same,
                        None => self.free_port(&taken, env).ok_or_else(|| {
                            FieldError::invalid(
                                "spec.ports",
                                &json!([]),
                                "failed to allocate a nodePort: range is full",
                            )
                        })?,
                    };
                    if taken.ports.insert(chosen, owner.clone()).is_none() {
                        claim.new.1.push(chosen);
                    }
                    shared.insert(number, chosen);
                    port["nodePort"] = chosen.into();
                }
            }
        }
        Ok(())
    }

    /// `healthCheckNodePort`, where a load balancer has to know which nodes have an endpoint.
    fn claim_health_check(&self, claim: &mut Claim, service: &mut Value, env: &Env) -> Result<(), FieldError> {
        let spec = &service["spec"];
        if spec["type"] != "LoadBalancer" || spec["externalTrafficPolicy"] != "Local" {
            return Ok(());
        }
        let asked = spec["healthCheckNodePort"].as_u64().filter(|port| *port != 0);
        let invalid = |why: &str| {
            FieldError::invalid("spec.healthCheckNodePort", &service["spec"]["healthCheckNodePort"].clone(), why)
        };
        let mut taken = self.taken.lock().expect("no panic under this lock");
        let port = match asked.map(|port| u16::try_from(port).ok().filter(|port| self.ports.contains(port))) {
            Some(None) => {
                let (low, high) = (self.ports.start(), self.ports.end());
                let why = format!("provided port is not in the valid range. The range of valid ports is {low}-{high}");
                return Err(invalid(&why));
            }
            Some(Some(port)) => match taken.ports.get(&port) {
                Some(other) if *other != claim.owner => return Err(invalid("provided port is already allocated")),
                Some(_) => return Ok(()),
                None => port,
            },
            None => self.free_port(&taken, env).ok_or_else(|| invalid("range is full"))?,
        };
        taken.ports.insert(port, claim.owner.clone());
        claim.new.1.push(port);
        service["spec"]["healthCheckNodePort"] = port.into();
        Ok(())
    }

    fn free_port(&self, taken: &Taken, env: &Env) -> Option<u16> {
        let count = u32::from(self.ports.end() - self.ports.start()) + 1;
        let start = env.below(u64::from(count)) as u32;
        (0..count)
            .map(|i| self.ports.start() + ((start + i) % count) as u16)
            .find(|port| !taken.ports.contains_key(port))
    }
}

/// The n-th address of a network.
pub(crate) fn nth(net: Ipv4Net, n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(net.network()).saturating_add(n))
}

fn set_address(service: &mut Value, address: Ipv4Addr) {
    let spec = &mut service["spec"];
    spec["clusterIP"] = address.to_string().into();
    spec["clusterIPs"] = json!([address.to_string()]);
}

/// Everything that a Service has alone.
pub(super) fn resources(service: &Value) -> Vec<Resource> {
    join(&(addresses(service), ports(service)))
}

fn join((addresses, ports): &(Vec<Ipv4Addr>, Vec<u16>)) -> Vec<Resource> {
    addresses.iter().map(|a| Resource::Address(*a)).chain(ports.iter().map(|p| Resource::Port(*p))).collect()
}

fn split(resources: impl Iterator<Item = Resource>) -> (Vec<Ipv4Addr>, Vec<u16>) {
    let (mut addresses, mut ports) = (Vec::new(), Vec::new());
    for resource in resources {
        match resource {
            Resource::Address(address) => addresses.push(address),
            Resource::Port(port) => ports.push(port),
        }
    }
    (addresses, ports)
}

/// The name of a Service in what is taken.
pub(super) fn owner(service: &Value) -> String {
    format!("{}/{}", meta::namespace(service), meta::name(service))
}

fn addresses(service: &Value) -> Vec<Ipv4Addr> {
    if service["spec"]["type"] == "ExternalName" {
        return Vec::new();
    }
    service["spec"]["clusterIP"].as_str().and_then(|ip| ip.parse().ok()).into_iter().collect()
}

fn ports(service: &Value) -> Vec<u16> {
    let spec = &service["spec"];
    let mut ports: Vec<u16> = spec["ports"].as_array().into_iter().flatten().filter_map(node_port).collect();
    ports.extend(spec["healthCheckNodePort"].as_u64().and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0));
    ports
}

fn node_port(port: &Value) -> Option<u16> {
    port["nodePort"].as_u64().and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0)
}

fn is_service(kind: &Kind) -> bool {
    kind.gvr.group.is_empty() && kind.gvr.resource == "services"
}

/// What an update leaves out and keeps, and what its new type no longer has (`patchAllocatedValues`, `dropTypeDependentFields`).
pub(crate) fn carry_over(kind: &Kind, service: &mut Value, old: &Value) {
    if !is_service(kind) || !service["spec"].is_object() {
        return;
    }
    let text = |service: &Value, field: &str| service["spec"][field].as_str().unwrap_or_default().to_owned();
    let has_address = |service: &Value| text(service, "type") != "ExternalName";
    let has_ports = |service: &Value| ["NodePort", "LoadBalancer"].contains(&text(service, "type").as_str());
    if has_address(old) && has_address(service) {
        if text(service, "clusterIP").is_empty() {
            service["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
            service["spec"]["clusterIPs"] = old["spec"]["clusterIPs"].clone();
        } else if service["spec"]["clusterIPs"].as_array().is_none_or(Vec::is_empty) {
            service["spec"]["clusterIPs"] = json!([text(service, "clusterIP")]);
        }
    }
    let same_port = |a: &Value, b: &Value| a["port"] == b["port"] && a["protocol"] == b["protocol"];
    let old_ports = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
    if has_ports(old) && has_ports(service) {
        let used: Vec<u16> = ports(service);
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten().filter(|p| node_port(p).is_none()) {
            let kept = old_ports.iter().find(|o| same_port(port, o)).and_then(node_port);
            if let Some(kept) = kept.filter(|kept| !used.contains(kept)) {
                port["nodePort"] = kept.into();
            }
        }
    }
    if has_ports(old) && !has_ports(service) {
        for port in service["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if old_ports.iter().any(|o| same_port(port, o) && node_port(o) == node_port(port))
                && let Some(map) = port.as_object_mut()
            {
                map.remove("nodePort");
            }
        }
    }
    let Some(spec) = service["spec"].as_object_mut() else { return };
    if text(old, "type") != "ExternalName" && spec.get("type").is_some_and(|t| t == "ExternalName") {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            if spec.get(field) == old["spec"].get(field) {
                spec.remove(field);
            }
        }
    }
    if has_ports(old) && !spec.get("type").is_some_and(|t| t == "NodePort" || t == "LoadBalancer") {
        for field in ["externalTrafficPolicy", "healthCheckNodePort"] {
            if spec.get(field) == old["spec"].get(field) {
                spec.remove(field);
            }
        }
    }
    if text(old, "type") == "LoadBalancer" && !spec.get("type").is_some_and(|t| t == "LoadBalancer") {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if spec.get(field) == old["spec"].get(field) {
                spec.remove(field);
            }
        }
    }
}

impl ApiServer {
    /// Takes what a new or changed object needs; only Services need something.
    pub(crate) async fn allocate(&self, kind: &Kind, object: &mut Value, old: Option<&Value>) -> StatusResult<Claim> {
        if !is_service(kind) {
            return Ok(Claim::default());
        }
        loop {
            let mut wanted = object.clone();
            let claim = self
                .allocations
                .claim(&mut wanted, old, &self.env)
                .map_err(|error| Status::invalid("", "Service", meta::name(object), &[error]))?;
            let other = if self.storage.is_shared() {
                match self.reserve(&claim.owner, &join(&claim.new)).await {
                    Ok(other) => other,
                    Err(status) => {
                        claim.release();
                        return Err(status);
                    }
                }
            } else {
                None
            };
            match other {
                None => {
                    *object = wanted;
                    return Ok(claim);
                }
                // Another server was faster: one choice less.
                Some((resource, owner)) => {
                    claim.release();
                    self.allocations.give_to(owner, resource);
                }
            }
        }
    }

    /// The write of what was claimed succeeded.
    pub(crate) async fn keep(&self, claim: Claim) {
        claim.keep();
        if self.storage.is_shared() {
            self.unreserve(&claim.owner, &join(&claim.old)).await;
        }
    }

    /// The write of what was claimed failed (or was a dry run).
    pub(crate) async fn release(&self, claim: Claim) {
        if self.storage.is_shared() {
            self.unreserve(&claim.owner, &join(&claim.new)).await;
        }
        claim.release();
    }

    /// Gives back what an object that went had.
    pub(crate) async fn released(&self, kind: &Kind, object: &Value) {
        if !is_service(kind) {
            return;
        }
        if self.storage.is_shared() {
            self.unreserve(&owner(object), &resources(object)).await;
        }
        self.allocations.forget(object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocations() -> (Allocations, Env) {
        let env = Env::simulated(1, "2026-01-01T00:00:00Z".parse().expect("a time"));
        (Allocations::new("10.96.0.0/24".parse().expect("a network"), 30000..=30001), env)
    }

    fn service(name: &str, spec: Value) -> Value {
        json!({"metadata": {"namespace": "default", "name": name}, "spec": spec})
    }

    #[test]
    fn an_address_is_taken_once_and_free_again_after_the_end() {
        let (allocations, env) = allocations();
        let mut a = service("a", json!({"type": "ClusterIP", "clusterIP": "10.96.0.9"}));
        allocations.claim(&mut a, None, &env).expect("free").keep();
        let mut b = service("b", json!({"type": "ClusterIP", "clusterIP": "10.96.0.9"}));
        let error = allocations.claim(&mut b, None, &env).err().expect("taken");
        assert!(error.message.ends_with("failed to allocate IP 10.96.0.9: provided IP is already allocated"));
        allocations.forget(&a);
        allocations.claim(&mut b, None, &env).expect("free again").keep();
        let mut c = service("c", json!({"type": "ClusterIP"}));
        allocations.claim(&mut c, None, &env).expect("free").release();
        assert_eq!(c["spec"]["clusterIPs"], json!([c["spec"]["clusterIP"]]));
    }

    #[test]
    fn node_ports_run_out_and_are_given_back_when_the_type_changes() {
        let (allocations, env) = allocations();
        let ports = json!([{"port": 80, "protocol": "TCP"}, {"port": 80, "protocol": "UDP"}, {"port": 81}]);
        let mut a = service("a", json!({"type": "NodePort", "clusterIP": "None", "ports": ports}));
        allocations.claim(&mut a, None, &env).expect("two ports").keep();
        let got = |i: usize| a["spec"]["ports"][i]["nodePort"].as_u64();
        assert_eq!(got(0), got(1));
        assert_ne!(got(0), got(2));
        let mut b = service("b", json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 1}]}));
        assert!(allocations.claim(&mut b.clone(), None, &env).is_err());
        let mut plain = service("a", json!({"type": "ClusterIP", "clusterIP": "None", "ports": [{"port": 80}]}));
        allocations.claim(&mut plain, Some(&a), &env).expect("nothing to take").keep();
        assert!(allocations.claim(&mut b, None, &env).is_ok());
    }

    #[test]
    fn a_load_balancer_with_the_local_policy_has_a_port_for_its_health_check() {
        let (allocations, env) = allocations();
        let local = |more: Value| {
            let mut spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "externalTrafficPolicy": "Local",
                "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]});
            spec.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
            spec
        };
        let mut a = service("a", local(json!({})));
        allocations.claim(&mut a, None, &env).expect("a port").keep();
        let port = a["spec"]["healthCheckNodePort"].as_u64().expect("a port");
        assert!((30000..=30001).contains(&port));
        assert_eq!(a["spec"]["ports"][0].get("nodePort"), None);
        let taken = json!({"healthCheckNodePort": port, "clusterIP": "10.96.0.8"});
        let error = allocations.claim(&mut service("b", local(taken)), None, &env).err().expect("taken");
        assert_eq!(error.field, "spec.healthCheckNodePort");
        let outside = json!({"healthCheckNodePort": 80, "clusterIP": "10.96.0.8"});
        let error = allocations.claim(&mut service("b", local(outside)), None, &env).err().expect("not in the range");
        assert!(error.message.contains("The range of valid ports is 30000-30001"), "{}", error.message);
        allocations.claim(&mut a.clone(), Some(&a), &env).expect("its own").keep();
        let mut cluster = a.clone();
        cluster["spec"]["externalTrafficPolicy"] = "Cluster".into();
        cluster["spec"]["healthCheckNodePort"] = 0.into();
        allocations.claim(&mut cluster, Some(&a), &env).expect("nothing to take").keep();
        let asked = json!({"healthCheckNodePort": port, "clusterIP": "10.96.0.8"});
        allocations.claim(&mut service("b", local(asked)), None, &env).expect("free again").keep();
    }
}
