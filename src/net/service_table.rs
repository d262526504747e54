//! Services and EndpointSlices as the proxy and DNS need them: pure, and rebuilt per Service when something changes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde_json::Value;

use crate::api::meta;

/// A transport protocol that is proxied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// From `spec.ports[].protocol`; SCTP is not proxied.
    fn parse(value: &Value) -> Option<Self> {
        match value.as_str().unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            _ => None,
        }
    }
    /// As `spec.ports[].protocol` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// Namespace and name.
pub type ObjectName = (String, String);

/// One address and port that serves a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// The pod's (or another) address.
    pub ip: Ipv4Addr,
    /// The target port.
    pub port: u16,
}

/// One port of a Service with the backends that are chosen from.
#[derive(Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The Service.
    pub service: ObjectName,
    /// `spec.ports[].name`; empty for a single port.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// `spec.ports[].port`.
    pub port: u16,
    /// `spec.ports[].nodePort`.
    pub node_port: Option<u16>,
    /// `sessionAffinity: ClientIP` with its timeout.
    pub affinity: Option<Duration>,
    /// Sorted. The ready ones; when there are none, those that still serve while they terminate.
    pub backends: Vec<Backend>,
    /// Those for traffic from outside (`externalTrafficPolicy`).
    pub external_backends: Vec<Backend>,
    /// Those of the whole cluster (or of the part of it that `trafficDistribution` prefers).
    pub cluster_backends: Vec<Backend>,
    /// `externalTrafficPolicy: Local`: what comes from outside keeps its source address.
    pub external_is_local: bool,
    /// `loadBalancerSourceRanges`: who may come by the load balancer; empty: everybody.
    pub source_ranges: Vec<Ipv4Net>,
    /// Everything that may still get packets of existing connections: terminating pods too.
    pub known: BTreeSet<Backend>,
}

impl ServicePort {
    /// Whether a client may come by the load balancer.
    pub fn admits(&self, client: Ipv4Addr) -> bool {
        self.source_ranges.is_empty() || self.source_ranges.iter().any(|range| range.contains(&client))
    }
}

/// A port of a Service at an address outside the cluster's range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The port.
    pub port: Arc<ServicePort>,
    /// Whether the address is the load balancer's.
    pub balanced: bool,
}

/// What a load balancer asks a node for (`healthCheckNodePort`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port of the node.
    pub port: u16,
    /// How many endpoints of the Service are ready on this node.
    pub local_endpoints: usize,
}

/// `spec.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceType {
    /// Also headless ones.
    ClusterIp,
    /// `NodePort`.
    NodePort,
    /// `LoadBalancer`.
    LoadBalancer,
    /// `ExternalName`.
    ExternalName,
}

/// A Service with its endpoints.
#[derive(Debug)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.uid`.
    pub uid: String,
    /// The object.
    pub object: Arc<Value>,
    /// `spec.type`.
    pub kind: ServiceType,
    /// `spec.clusterIPs` that are IPv4; empty when headless.
    pub cluster_ips: Vec<Ipv4Addr>,
    /// `spec.externalName`.
    pub external_name: Option<String>,
    /// The ports.
    pub ports: Vec<Arc<ServicePort>>,
    /// Endpoints that are ready, for DNS.
    pub endpoints: Vec<NamedEndpoint>,
    /// `type: LoadBalancer` with `externalTrafficPolicy: Local`.
    pub health_check: Option<HealthCheck>,
}

impl Service {
    /// `clusterIP: None`.
    pub fn is_headless(&self) -> bool {
        self.kind != ServiceType::ExternalName && self.cluster_ips.is_empty()
    }
}

/// A ready endpoint as DNS names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedEndpoint {
    /// The address.
    pub ip: Ipv4Addr,
    /// `hostname`, or the address with dashes.
    pub hostname: String,
    /// Port name, protocol and number of each port.
    pub ports: Vec<(String, Protocol, u16)>,
}

/// What the engine, DNS and the host's listeners look things up in. A snapshot.
#[derive(Debug, Default)]
pub struct ServiceTable {
    /// By cluster address, port and protocol.
    pub by_address: HashMap<(Ipv4Addr, u16, Protocol), Arc<ServicePort>>,
    /// By external address (`externalIPs`, the load balancer's), port and protocol.
    pub by_external_address: HashMap<(Ipv4Addr, u16, Protocol), External>,
    /// By NodePort.
    pub by_node_port: HashMap<(u16, Protocol), Arc<ServicePort>>,
    /// All addresses of Services, also for ports that no Service has.
    pub addresses: HashSet<Ipv4Addr>,
    /// All Services.
    pub services: BTreeMap<ObjectName, Arc<Service>>,
    /// Cluster addresses to Services, for PTR records.
    pub by_cluster_ip: HashMap<Ipv4Addr, ObjectName>,
    /// Endpoint addresses to the Services that name them, for PTR records.
    pub by_endpoint: HashMap<Ipv4Addr, Vec<ObjectName>>,
    /// All namespaces.
    pub namespaces: BTreeSet<String>,
}

/// One EndpointSlice, parsed.
#[derive(Debug, Default)]
struct Slice {
    ports: Vec<(String, Protocol, u16)>,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug)]
struct Endpoint {
    ips: Vec<Ipv4Addr>,
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    hostname: Option<String>,
    /// `hints.forNodes` and `hints.forZones`.
    for_nodes: Vec<String>,
    for_zones: Vec<String>,
}

/// Where this node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Location {
    node: String,
    /// `topology.kubernetes.io/zone` of the node.
    zone: Option<String>,
}

/// The objects that a [`ServiceTable`] is made from.
#[derive(Debug)]
pub struct Objects {
    here: Location,
    services: BTreeMap<ObjectName, Arc<Value>>,
    /// By Service, then by slice name.
    slices: HashMap<ObjectName, BTreeMap<String, Slice>>,
    /// Which Service a slice belongs to.
    owners: HashMap<ObjectName, ObjectName>,
    namespaces: BTreeSet<String>,
    built: BTreeMap<ObjectName, Arc<Service>>,
    stale: BTreeSet<ObjectName>,
}

impl Objects {
    /// Nothing yet; `node` decides what is local.
    pub fn new(node: &str) -> Self {
        Self {
            here: Location { node: node.to_owned(), zone: None },
            services: BTreeMap::new(),
            slices: HashMap::new(),
            owners: HashMap::new(),
            namespaces: BTreeSet::new(),
            built: BTreeMap::new(),
            stale: BTreeSet::new(),
        }
    }

    /// The node is in this zone now; whether it was not before.
    pub fn set_zone(&mut self, zone: Option<&str>) -> bool {
        let moved = self.here.zone.as_deref() != zone;
        if moved {
            self.here.zone = zone.map(str::to_owned);
            self.stale.extend(self.services.keys().cloned());
        }
        moved
    }
    /// A Service appeared or changed.
    pub fn apply_service(&mut self, object: Arc<Value>) {
        let name = object_name(&object);
        self.stale.insert(name.clone());
        self.services.insert(name, object);
    }
    /// A Service went.
    pub fn delete_service(&mut self, name: &ObjectName) {
        self.services.remove(name);
        self.stale.insert(name.clone());
    }
    /// An EndpointSlice appeared or changed.
    pub fn apply_slice(&mut self, object: &Value) {
        let name = object_name(object);
        self.delete_slice(&name);
        let Some(service) = meta::label(object, "kubernetes.io/service-name") else { return };
        if object["addressType"].as_str() != Some("IPv4") {
            return;
        }
        let service = (name.0.clone(), service.to_owned());
        self.slices.entry(service.clone()).or_default().insert(name.1.clone(), Slice::parse(object, &self.here.node));
        self.owners.insert(name, service.clone());
        self.stale.insert(service);
    }
    /// An EndpointSlice went.
    pub fn delete_slice(&mut self, name: &ObjectName) {
        let Some(service) = self.owners.remove(name) else { return };
        if let Some(slices) = self.slices.get_mut(&service) {
            slices.remove(&name.1);
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        self.stale.insert(service);
    }
    /// A namespace appeared.
    pub fn apply_namespace(&mut self, name: &str) {
        self.namespaces.insert(name.to_owned());
    }
    /// A namespace went.
    pub fn delete_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }
    /// The names of all Services, for a relist.
    pub fn service_names(&self) -> Vec<ObjectName> {
        self.services.keys().cloned().collect()
    }
    /// The names of all EndpointSlices, for a relist.
    pub fn slice_names(&self) -> Vec<ObjectName> {
        self.owners.keys().cloned().collect()
    }
    /// The names of all namespaces, for a relist.
    pub fn namespace_names(&self) -> Vec<String> {
        self.namespaces.iter().cloned().collect()
    }

    /// The table as of now; only what changed is computed again.
    pub fn snapshot(&mut self) -> ServiceTable {
        for name in std::mem::take(&mut self.stale) {
            match self.services.get(&name) {
                None => drop(self.built.remove(&name)),
                Some(object) => {
                    let service = build(&name, object, self.slices.get(&name), &self.here);
                    self.built.insert(name, Arc::new(service));
                }
            }
        }
        let mut table = ServiceTable {
            services: self.built.clone(),
            namespaces: self.namespaces.clone(),
            ..ServiceTable::default()
        };
        for (name, service) in &self.built {
            for ip in &service.cluster_ips {
                table.by_cluster_ip.insert(*ip, name.clone());
            }
            let external_ips = external_addresses(service);
            table.addresses.extend(service.cluster_ips.iter().chain(external_ips.iter().map(|(ip, _)| ip)));
            for port in &service.ports {
                for ip in &service.cluster_ips {
                    table.by_address.insert((*ip, port.port, port.protocol), port.clone());
                }
                for (ip, balanced) in &external_ips {
                    let external = External { port: port.clone(), balanced: *balanced };
                    table.by_external_address.insert((*ip, port.port, port.protocol), external);
                }
                if let Some(node_port) = port.node_port {
                    table.by_node_port.insert((node_port, port.protocol), port.clone());
                }
            }
            for endpoint in &service.endpoints {
                table.by_endpoint.entry(endpoint.ip).or_default().push(name.clone());
            }
        }
        table
    }
}

/// `metadata.namespace` and `metadata.name`.
pub fn object_name(object: &Value) -> ObjectName {
    (meta::namespace(object).to_owned(), meta::name(object).to_owned())
}

/// The addresses of a Service outside the cluster's range, and whether each is the load balancer's. One whose traffic has to
/// pass a proxy (`ipMode: Proxy`) is not ours to answer.
fn external_addresses(service: &Service) -> Vec<(Ipv4Addr, bool)> {
    let (spec, status) = (&service.object["spec"], &service.object["status"]);
    let mut addresses: Vec<_> = ipv4_list(&spec["externalIPs"]).into_iter().map(|ip| (ip, false)).collect();
    if service.kind == ServiceType::LoadBalancer {
        let ingress = status["loadBalancer"]["ingress"].as_array().into_iter().flatten();
        let ours = ingress.filter(|entry| entry["ipMode"].as_str() != Some("Proxy"));
        addresses.extend(ours.filter_map(|entry| Some((entry["ip"].as_str()?.parse().ok()?, true))));
    }
    addresses
}

fn build(name: &ObjectName, object: &Arc<Value>, slices: Option<&BTreeMap<String, Slice>>, here: &Location) -> Service {
    let spec = &object["spec"];
    let kind = match spec["type"].as_str() {
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        _ => ServiceType::ClusterIp,
    };
    let mut cluster_ips = ipv4_list(&spec["clusterIPs"]);
    if cluster_ips.is_empty() {
        cluster_ips.extend(spec["clusterIP"].as_str().and_then(|ip| ip.parse::<Ipv4Addr>().ok()));
    }
    if kind == ServiceType::ExternalName {
        cluster_ips.clear();
    }
    let slices = || slices.into_iter().flat_map(BTreeMap::values);
    let ports = spec["ports"].as_array().into_iter().flatten();
    let ports = ports.filter_map(|port| service_port(name, spec, port, slices(), here)).map(Arc::new).collect();
    let mut endpoints: BTreeMap<(Ipv4Addr, String), Vec<(String, Protocol, u16)>> = BTreeMap::new();
    for slice in slices() {
        for endpoint in slice.endpoints.iter().filter(|e| e.ready) {
            for ip in &endpoint.ips {
                let hostname = endpoint.hostname.clone().unwrap_or_else(|| ip.to_string().replace('.', "-"));
                let ports = endpoints.entry((*ip, hostname)).or_default();
                ports.extend(slice.ports.iter().filter(|p| !ports.contains(p)).cloned().collect::<Vec<_>>());
            }
        }
    }
    let endpoints =
        endpoints.into_iter().map(|((ip, hostname), ports)| NamedEndpoint { ip, hostname, ports }).collect();
    let external_name = spec["externalName"].as_str().filter(|_| kind == ServiceType::ExternalName).map(str::to_owned);
    let local = slices().flat_map(|slice| &slice.endpoints).filter(|e| e.local && e.ready).flat_map(|e| &e.ips);
    let local_endpoints = local.collect::<BTreeSet<_>>().len();
    let port = spec["healthCheckNodePort"].as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
    let health_check = port.map(|port| HealthCheck { port, local_endpoints });
    Service {
        name: name.clone(),
        uid: meta::uid(object).to_owned(),
        object: object.clone(),
        kind,
        cluster_ips,
        external_name,
        ports,
        endpoints,
        health_check,
    }
}

fn service_port<'a>(
    service: &ObjectName,
    spec: &Value,
    port: &Value,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    here: &Location,
) -> Option<ServicePort> {
    let protocol = Protocol::parse(&port["protocol"])?;
    let name = port["name"].as_str().unwrap_or_default().to_owned();
    let all = slices.flat_map(|slice| {
        let target = slice.ports.iter().find(|(n, p, _)| *n == name && *p == protocol).map(|p| p.2);
        let endpoints = slice.endpoints.iter().flat_map(|e| e.ips.iter().map(move |ip| (e, *ip)));
        endpoints.filter_map(move |(e, ip)| Some((e, Backend { ip, port: target? })))
    });
    let all: Vec<(&Endpoint, Backend)> = all.collect();
    let nearest = nearest(&all, here);
    let choose = |ready: &dyn Fn(&Endpoint) -> bool, last_resort: &dyn Fn(&Endpoint) -> bool| {
        let of = |wanted: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<Backend> {
            all.iter().filter(|(e, _)| wanted(e)).map(|(_, b)| *b).collect()
        };
        let mut backends = of(&|e| e.ready && ready(e));
        if backends.is_empty() {
            // KEP-1669: rather a pod that is going than none.
            backends = of(&|e| e.serving && e.terminating && last_resort(e));
        }
        backends.into_iter().collect::<Vec<_>>()
    };
    let cluster_backends = choose(&nearest, &|_| true);
    let local_backends = choose(&|e| e.local, &|e| e.local);
    let affinity = (spec["sessionAffinity"].as_str() == Some("ClientIP")).then(|| {
        let seconds = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_u64().unwrap_or(10_800);
        Duration::from_secs(seconds.clamp(1, 86_400))
    });
    let by_policy = |is_local: bool| if is_local { &local_backends } else { &cluster_backends }.clone();
    let external_is_local = spec["externalTrafficPolicy"].as_str() == Some("Local");
    let ranges = spec["loadBalancerSourceRanges"].as_array().into_iter().flatten();
    Some(ServicePort {
        service: service.clone(),
        protocol,
        port: u16::try_from(port["port"].as_u64()?).ok()?,
        node_port: port["nodePort"].as_u64().and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0),
        affinity,
        backends: by_policy(spec["internalTrafficPolicy"].as_str() == Some("Local")),
        external_backends: by_policy(external_is_local),
        external_is_local,
        source_ranges: ranges.filter_map(|range| range.as_str()?.trim().parse().ok()).collect(),
        known: all.iter().map(|(_, b)| *b).collect(),
        cluster_backends,
        name,
    })
}

/// Which endpoints `trafficDistribution` prefers here: those that are meant for this node, else those for its zone, if every ready
/// endpoint says for whom it is meant; else all (`topologyModeFromHints` of kube-proxy).
fn nearest(all: &[(&Endpoint, Backend)], here: &Location) -> impl Fn(&Endpoint) -> bool {
    let ready = || all.iter().map(|(e, _)| *e).filter(|e| e.ready);
    let prefers = |hints: fn(&Endpoint) -> &[String], wanted: Option<&str>| {
        let wanted = wanted.filter(|wanted| ready().any(|e| hints(e).iter().any(|hint| hint == wanted)))?;
        ready().all(|e| !hints(e).is_empty()).then(|| (hints, wanted.to_owned()))
    };
    let chosen =
        prefers(|e| &e.for_nodes, Some(&here.node)).or_else(|| prefers(|e| &e.for_zones, here.zone.as_deref()));
    move |endpoint| chosen.as_ref().is_none_or(|(hints, wanted)| hints(endpoint).iter().any(|hint| hint == wanted))
}

impl Slice {
    fn parse(object: &Value, node: &str) -> Self {
        let ports = object["ports"].as_array().into_iter().flatten();
        let ports = ports.filter_map(|port| {
            let number = u16::try_from(port["port"].as_u64()?).ok()?;
            Some((port["name"].as_str().unwrap_or_default().to_owned(), Protocol::parse(&port["protocol"])?, number))
        });
        let endpoints = object["endpoints"].as_array().into_iter().flatten().map(|endpoint| {
            let condition = |name: &str| endpoint["conditions"][name].as_bool();
            let ready = condition("ready").unwrap_or(true);
            Endpoint {
                ips: ipv4_list(&endpoint["addresses"]),
                ready,
                serving: condition("serving").unwrap_or(ready),
                terminating: condition("terminating").unwrap_or(false),
                local: endpoint["nodeName"].as_str() == Some(node),
                for_nodes: names(&endpoint["hints"]["forNodes"]),
                for_zones: names(&endpoint["hints"]["forZones"]),
                hostname: endpoint["hostname"].as_str().filter(|h| !h.is_empty()).map(str::to_owned),
            }
        });
        Self { ports: ports.collect(), endpoints: endpoints.collect() }
    }
}

/// The names in a list of hints.
fn names(hints: &Value) -> Vec<String> {
    hints.as_array().into_iter().flatten().filter_map(|hint| Some(hint["name"].as_str()?.to_owned())).collect()
}

fn ipv4_list(value: &Value) -> Vec<Ipv4Addr> {
    value.as_array().into_iter().flatten().filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

/// Which of `backends` (not empty) serves a connection: rendezvous hashing of the client's address and port. It spreads
/// like chance, needs no state, and gives a daemon that was restarted the same answer for the connections it finds.
pub fn choose(backends: &[Backend], client: Ipv4Addr, client_port: u16, service_port: u16) -> Option<Backend> {
    let client = u64::from(u32::from(client)) << 32 | u64::from(client_port) << 16 | u64::from(service_port);
    backends.iter().copied().max_by_key(|b| mix(client ^ mix(u64::from(u32::from(b.ip)) << 16 | u64::from(b.port))))
}

/// SplitMix64's finalizer.
fn mix(value: u64) -> u64 {
    let value = (value.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn service(name: &str, spec: Value) -> Arc<Value> {
        Arc::new(
            json!({"metadata": {"namespace": "default", "name": name, "uid": format!("uid-{name}")}, "spec": spec}),
        )
    }

    pub(crate) fn slice(name: &str, service: &str, ports: Value, endpoints: Value) -> Value {
        json!({"metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints})
    }

    fn ready(ip: &str, ready: bool, serving: bool, terminating: bool) -> Value {
        json!({"addresses": [ip], "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
    }

    fn web() -> Arc<Value> {
        service(
            "web",
            json!({"type": "NodePort", "clusterIP": "10.96.1.2", "clusterIPs": ["10.96.1.2"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}]}),
        )
    }

    fn port_of(table: &ServiceTable) -> &ServicePort {
        &table.by_address[&(Ipv4Addr::new(10, 96, 1, 2), 80, Protocol::Tcp)]
    }

    #[test]
    fn ready_endpoints_serve_and_terminating_ones_only_as_a_last_resort() {
        let mut objects = Objects::new("mini");
        objects.apply_service(web());
        let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
        let going = ready("10.244.0.3", false, true, true);
        objects.apply_slice(&slice("a", "web", ports.clone(), json!([ready("10.244.0.2", true, true, false), going])));
        let ip = |n| Backend { ip: Ipv4Addr::new(10, 244, 0, n), port: 8080 };
        let table = objects.snapshot();
        assert_eq!(port_of(&table).backends, [ip(2)]);
        assert_eq!(port_of(&table).known, BTreeSet::from([ip(2), ip(3)]));
        assert_eq!(table.by_node_port[&(30080, Protocol::Tcp)].backends, [ip(2)]);
        objects.apply_slice(&slice("a", "web", ports, json!([ready("10.244.0.3", false, true, true)])));
        assert_eq!(port_of(&objects.snapshot()).backends, [ip(3)]);
        objects.delete_slice(&("default".into(), "a".into()));
        assert_eq!(port_of(&objects.snapshot()).backends, []);
        objects.delete_service(&("default".into(), "web".into()));
        assert!(objects.snapshot().by_address.is_empty());
    }

    #[test]
    fn policies_choose_by_node() {
        let mut objects = Objects::new("mini");
        let mut web = (*web()).clone();
        web["spec"]["type"] = "LoadBalancer".into();
        web["spec"]["externalTrafficPolicy"] = "Local".into();
        web["spec"]["healthCheckNodePort"] = 31_000.into();
        web["spec"]["loadBalancerSourceRanges"] = json!(["10.0.0.0/8 "]);
        web["status"] = json!({"loadBalancer": {"ingress": [{"ip": "127.78.0.1", "ipMode": "VIP"}, {"ip": "127.78.0.2", "ipMode": "Proxy"}]}});
        objects.apply_service(Arc::new(web));
        let at = |node: &str, ip: &str| json!({"addresses": [ip], "nodeName": node});
        let nowhere = json!({"addresses": ["10.244.0.4"]});
        let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
        let endpoints = json!([at("mini", "10.244.0.2"), at("other", "10.244.1.3"), nowhere]);
        objects.apply_slice(&slice("a", "web", ports, endpoints));
        let table = objects.snapshot();
        let ips = |backends: &[Backend]| backends.iter().map(|b| b.ip.to_string()).collect::<Vec<_>>();
        let port = port_of(&table);
        assert_eq!(ips(&port.backends), ["10.244.0.2", "10.244.0.4", "10.244.1.3"]);
        assert_eq!(ips(&port.external_backends), ["10.244.0.2"]);
        assert!(port.admits(Ipv4Addr::new(10, 1, 1, 1)) && !port.admits(Ipv4Addr::new(192, 168, 49, 1)));
        let external: Vec<_> = table.by_external_address.keys().map(|(ip, ..)| ip.to_string()).collect();
        assert_eq!(external, ["127.78.0.1"], "not the one behind a proxy");
        let service = &table.services[&("default".to_owned(), "web".to_owned())];
        assert_eq!(service.health_check, Some(HealthCheck { port: 31_000, local_endpoints: 1 }));
    }

    #[test]
    fn hints_prefer_what_is_near() {
        let mut objects = Objects::new("mini");
        objects.apply_service(web());
        let hinted = |ip: &str, hints: Value| json!({"addresses": [ip], "hints": hints});
        let named = |name: &str| json!([{"name": name}]);
        let near = json!({"forNodes": named("mini"), "forZones": named("a")});
        let same_zone = json!({"forNodes": named("other"), "forZones": named("a")});
        let far = json!({"forNodes": named("third"), "forZones": named("b")});
        let mut count = |endpoints: Value, zone: Option<&str>| {
            let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
            objects.apply_slice(&slice("a", "web", ports, endpoints));
            objects.set_zone(zone);
            port_of(&objects.snapshot()).backends.len()
        };
        let all =
            json!([hinted("10.0.0.1", near), hinted("10.0.0.2", same_zone.clone()), hinted("10.0.0.3", far.clone())]);
        assert_eq!(count(all, Some("a")), 1, "the node's own");
        let rest = json!([hinted("10.0.0.2", same_zone), hinted("10.0.0.3", far.clone())]);
        assert_eq!(count(rest.clone(), Some("a")), 1, "the zone's");
        assert_eq!(count(rest.clone(), Some("c")), 2, "none is near");
        assert_eq!(count(rest, None), 2);
        let unhinted = json!([{"addresses": ["10.0.0.1"]}, hinted("10.0.0.3", far)]);
        assert_eq!(count(unhinted, Some("b")), 2, "one says nothing");
    }

    #[test]
    fn rubbish_is_ignored() {
        let mut objects = Objects::new("mini");
        objects.apply_service(service("web", json!({"ports": "x", "clusterIPs": [7, "::1", "999.1.1.1"]})));
        objects.apply_service(service("two", json!({"clusterIP": "10.96.0.3", "ports": [{"port": 70000}, {}, 3]})));
        objects.apply_slice(&slice("a", "web", json!({}), json!([{"addresses": null}, 7])));
        let table = objects.snapshot();
        assert!(table.by_address.is_empty());
        assert_eq!(table.addresses.len(), 1);
    }

    #[test]
    fn the_choice_spreads_and_is_stable() {
        let backends: Vec<Backend> = (2..6).map(|n| Backend { ip: Ipv4Addr::new(10, 244, 0, n), port: 80 }).collect();
        let client = Ipv4Addr::new(10, 244, 0, 77);
        let mut count = HashMap::new();
        for port in 40_000..41_000 {
            *count.entry(choose(&backends, client, port, 80).expect("there are backends")).or_insert(0) += 1;
        }
        assert_eq!(count.len(), 4);
        assert!(count.values().all(|n| (150..350).contains(n)), "{count:?}");
        let kept = choose(&backends, client, 40_000, 80).expect("there are backends");
        let fewer: Vec<Backend> = backends.iter().copied().filter(|b| *b == kept || b.ip.octets()[3] == 2).collect();
        assert_eq!(choose(&fewer, client, 40_000, 80), Some(kept));
        assert_eq!(choose(&[], client, 1, 80), None);
    }
}
