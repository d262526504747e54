//! What names of the cluster mean: the Kubernetes DNS specification over a [`ServiceTable`]. Pure.

use std::net::Ipv4Addr;

use hickory_proto::rr::rdata::{A, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::Ipv4Net;

use crate::net::service_table::{NamedEndpoint, Protocol, Service, ServiceTable};

/// The TTL of every record, as CoreDNS' kubernetes plugin has it.
pub const TTL: u32 = 5;

/// What the resolver is responsible for.
#[derive(Clone, Debug)]
pub struct Zone {
    /// The cluster's domain, such as `cluster.local`.
    pub domain: String,
    /// The resolver's own address.
    pub dns_ip: Ipv4Addr,
    /// Addresses whose reverse names are never asked upstream.
    pub local: Vec<Ipv4Net>,
    /// Further names, such as the host gateway's.
    pub hosts: Vec<(String, Ipv4Addr)>,
}

/// What a name means.
#[derive(Debug, Default, PartialEq)]
pub struct Found {
    /// The answer section; empty: the name exists, but not with this type.
    pub answers: Vec<Record>,
    /// The additional section.
    pub additionals: Vec<Record>,
    /// The target of a CNAME at the end of the answers: to be resolved in turn.
    pub alias: Option<Name>,
}

/// The meaning of a question.
#[derive(Debug, PartialEq)]
pub enum Meaning {
    /// The name exists.
    Found(Found),
    /// `NXDOMAIN`, authoritatively.
    NoSuchName,
    /// Not ours.
    Elsewhere,
}

impl Zone {
    /// The apex as a name.
    pub fn apex(&self) -> Name {
        name(&self.domain).unwrap_or_else(Name::root)
    }

    /// The SOA record of negative answers.
    pub fn soa(&self) -> Record {
        let (apex, below) = (self.apex(), |prefix: &str| self.below(prefix).unwrap_or_else(Name::root));
        let data = SOA::new(below("ns.dns"), below("hostmaster"), 1, 7200, 1800, 86_400, TTL);
        Record::from_rdata(apex, TTL, RData::SOA(data))
    }

    /// What `question` means. Labels are compared without case; the answer has the question's spelling.
    pub fn lookup(&self, question: &Name, kind: RecordType, table: &ServiceTable) -> Meaning {
        let Some(labels) = labels(question) else { return Meaning::Elsewhere };
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let domain: Vec<&str> = self.domain.split('.').filter(|l| !l.is_empty()).collect();
        let full = labels.join(".");
        if let Some((_, ip)) = self.hosts.iter().find(|(host, _)| *host == full) {
            return Meaning::Found(answers(question, kind, [*ip]));
        }
        if let Some(inside) = labels.strip_suffix(domain.as_slice()) {
            return self.inside(question, inside, kind, table).map_or(Meaning::NoSuchName, Meaning::Found);
        }
        if let [d, c, b, a, "in-addr", "arpa"] = labels[..] {
            return self.reverse(question, kind, &[a, b, c, d].join("."), table);
        }
        Meaning::Elsewhere
    }

    /// A name of the zone; `None`: there is no such name.
    fn inside(&self, question: &Name, labels: &[&str], kind: RecordType, table: &ServiceTable) -> Option<Found> {
        let namespace = |ns: &str| table.namespaces.contains(ns).then(Found::default);
        match labels {
            [] => Some(self.at_apex(question, kind)),
            ["dns-version"] if kind == RecordType::TXT => {
                let data = RData::TXT(TXT::new(vec!["1.1.0".to_owned()]));
                Some(Found { answers: vec![Record::from_rdata(question.clone(), TTL, data)], ..Found::default() })
            }
            ["dns-version"] | ["dns"] | ["svc"] | ["pod"] => Some(Found::default()),
            ["ns", "dns"] => Some(answers(question, kind, [self.dns_ip])),
            [ns, "svc" | "pod"] => namespace(ns),
            [ip, ns, "pod"] => {
                let ip: Ipv4Addr = ip.replace('-', ".").parse().ok()?;
                namespace(ns).map(|_| answers(question, kind, [ip]))
            }
            [service, ns, "svc"] => self.service(question, find(table, ns, service)?, kind, table),
            [hostname, service, ns, "svc"] => {
                let service = find(table, ns, service)?;
                let endpoints = service.endpoints.iter().filter(|e| e.hostname.eq_ignore_ascii_case(hostname));
                let endpoints: Vec<&NamedEndpoint> = endpoints.collect();
                self.endpoints(question, service, &endpoints, kind, |_| true)
            }
            [port, protocol, service, ns, "svc"] => {
                self.service_port(question, find(table, ns, service)?, port, protocol, kind)
            }
            _ => None,
        }
    }

    fn at_apex(&self, question: &Name, kind: RecordType) -> Found {
        let mut found = Found::default();
        let server = self.below("ns.dns").unwrap_or_else(Name::root);
        match kind {
            RecordType::SOA => found.answers.push(self.soa()),
            RecordType::NS => {
                found.answers.push(Record::from_rdata(question.clone(), TTL, RData::NS(NS(server.clone()))));
                found.additionals.push(Record::from_rdata(server, TTL, RData::A(A(self.dns_ip))));
            }
            _ => {}
        }
        found
    }

    fn service(&self, question: &Name, service: &Service, kind: RecordType, _: &ServiceTable) -> Option<Found> {
        if let Some(target) = &service.external_name {
            return alias(question, target);
        }
        if service.is_headless() {
            let all: Vec<&NamedEndpoint> = service.endpoints.iter().collect();
            return self.endpoints(question, service, &all, kind, |_| true);
        }
        if kind != RecordType::SRV {
            return Some(answers(question, kind, service.cluster_ips.iter().copied()));
        }
        let target = self.service_name(service)?;
        let ports: Vec<u16> = service.ports.iter().map(|p| p.port).collect();
        Some(self.to_service(question, &target, service, &ports))
    }

    /// `_port._protocol` in front of a Service.
    fn service_port(
        &self,
        question: &Name,
        service: &Service,
        port: &str,
        protocol: &str,
        kind: RecordType,
    ) -> Option<Found> {
        let port = port.strip_prefix('_')?;
        let protocol = match protocol {
            "_tcp" => Protocol::Tcp,
            "_udp" => Protocol::Udp,
            _ => return None,
        };
        if let Some(target) = &service.external_name {
            return alias(question, target);
        }
        if service.is_headless() {
            let fits = |(name, p, _): &(String, Protocol, u16)| name.eq_ignore_ascii_case(port) && *p == protocol;
            let endpoints: Vec<&NamedEndpoint> =
                service.endpoints.iter().filter(|e| e.ports.iter().any(fits)).collect();
            return self.endpoints(question, service, &endpoints, kind, fits);
        }
        let fits = service.ports.iter().filter(|p| p.name.eq_ignore_ascii_case(port) && p.protocol == protocol);
        let ports: Vec<u16> = fits.map(|p| p.port).collect();
        if ports.is_empty() {
            return None;
        }
        if kind != RecordType::SRV {
            return Some(answers(question, kind, service.cluster_ips.iter().copied()));
        }
        let target = self.service_name(service)?;
        Some(self.to_service(question, &target, service, &ports))
    }

    fn to_service(&self, question: &Name, target: &Name, service: &Service, ports: &[u16]) -> Found {
        let mut found = Found::default();
        let weight = weight(ports.len());
        found.answers.extend(ports.iter().map(|port| srv(question, weight, *port, target)));
        found.additionals.extend(service.cluster_ips.iter().map(|ip| a(target, *ip)));
        found
    }

    /// The addresses (or, for SRV, ports) of a Service's endpoints; none at all is no such name (DNS specification 2.4.1).
    fn endpoints(
        &self,
        question: &Name,
        service: &Service,
        endpoints: &[&NamedEndpoint],
        kind: RecordType,
        fits: impl Fn(&(String, Protocol, u16)) -> bool,
    ) -> Option<Found> {
        if endpoints.is_empty() {
            return None;
        }
        if kind != RecordType::SRV {
            return Some(answers(question, kind, endpoints.iter().map(|e| e.ip)));
        }
        let mut found = Found::default();
        let weight = weight(endpoints.len());
        for endpoint in endpoints {
            let Some(target) = self.endpoint_name(&endpoint.hostname, service) else { continue };
            let ports = endpoint.ports.iter().filter(|port| fits(port));
            found.answers.extend(ports.map(|(_, _, port)| srv(question, weight, *port, &target)));
            found.additionals.push(a(&target, endpoint.ip));
        }
        Some(found)
    }

    fn reverse(&self, question: &Name, kind: RecordType, ip: &str, table: &ServiceTable) -> Meaning {
        let Ok(ip) = ip.parse::<Ipv4Addr>() else { return Meaning::Elsewhere };
        let service = |name| table.services.get(name);
        let mut targets: Vec<Name> = Vec::new();
        let cluster_ip = table.by_cluster_ip.get(&ip).and_then(service);
        targets.extend(cluster_ip.and_then(|service| self.service_name(service)));
        for service in table.by_endpoint.get(&ip).into_iter().flatten().filter_map(service) {
            let hostnames = service.endpoints.iter().filter(|e| e.ip == ip).map(|e| &e.hostname);
            targets.extend(hostnames.filter_map(|hostname| self.endpoint_name(hostname, service)));
        }
        if targets.is_empty() {
            let local = self.local.iter().any(|net| net.contains(&ip));
            return if local { Meaning::NoSuchName } else { Meaning::Elsewhere };
        }
        let mut found = Found::default();
        if kind == RecordType::PTR {
            let records = targets.into_iter().map(|t| Record::from_rdata(question.clone(), TTL, RData::PTR(PTR(t))));
            found.answers.extend(records);
        }
        Meaning::Found(found)
    }

    fn service_name(&self, service: &Service) -> Option<Name> {
        self.below(&format!("{}.{}.svc", service.name.1, service.name.0))
    }

    fn endpoint_name(&self, hostname: &str, service: &Service) -> Option<Name> {
        self.below(&format!("{hostname}.{}.{}.svc", service.name.1, service.name.0))
    }

    fn below(&self, prefix: &str) -> Option<Name> {
        name(&format!("{prefix}.{}", self.domain))
    }
}

fn find<'a>(table: &'a ServiceTable, namespace: &str, name: &str) -> Option<&'a Service> {
    table.services.get(&(namespace.to_owned(), name.to_owned())).map(|service| &**service)
}

/// A fully qualified name; `None` when it is not a possible one.
pub fn name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text.trim_end_matches('.')).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// Lower-case labels; `None` when one is not text or has a dot inside.
fn labels(name: &Name) -> Option<Vec<String>> {
    let label = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).ok()?.to_ascii_lowercase();
        (!text.contains('.')).then_some(text)
    };
    name.iter().map(label).collect()
}

fn answers(question: &Name, kind: RecordType, ips: impl IntoIterator<Item = Ipv4Addr>) -> Found {
    let mut found = Found::default();
    if matches!(kind, RecordType::A | RecordType::ANY) {
        let mut seen = std::collections::BTreeSet::new();
        found.answers.extend(ips.into_iter().filter(|ip| seen.insert(*ip)).map(|ip| a(question, ip)));
    }
    found
}

fn a(owner: &Name, ip: Ipv4Addr) -> Record {
    Record::from_rdata(owner.clone(), TTL, RData::A(A(ip)))
}

fn srv(owner: &Name, weight: u16, port: u16, target: &Name) -> Record {
    Record::from_rdata(owner.clone(), TTL, RData::SRV(SRV::new(0, weight, port, target.clone())))
}

/// CoreDNS shares 100 among the records.
fn weight(count: usize) -> u16 {
    (100 / count.clamp(1, 100)) as u16
}

fn alias(question: &Name, target: &str) -> Option<Found> {
    let target = name(target)?;
    let record = Record::from_rdata(question.clone(), TTL, RData::CNAME(CNAME(target.clone())));
    Some(Found { answers: vec![record], alias: Some(target), ..Found::default() })
}
