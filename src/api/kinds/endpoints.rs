//! Endpoints and EndpointSlices.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{each, set, set_text};
use super::pod::update::same;
use super::{gvr, names, namespaced};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::{items, number, text};
use crate::api::printers::{age, age_column, column, name, name_column, or_none};
use crate::api::status::FieldError;
use crate::api::validation::meta::{dns_label_messages, dns_subdomain_messages};
use crate::api::validation::{Errors, immutable, invalid_all, net, one_of};

/// How many endpoints or ports a cell lists.
const SHOWN: usize = 3;

/// The kind `Endpoints`.
pub fn endpoints_kind() -> Kind {
    Kind {
        short_names: names(&["ep"]),
        create_on_update: true,
        ..namespaced(gvr::ENDPOINTS, "Endpoints", Arc::new(Endpoints))
    }
}

/// The kind `EndpointSlice`.
pub fn endpoint_slice_kind() -> Kind {
    Kind { has_generation: true, ..namespaced(gvr::ENDPOINT_SLICES, "EndpointSlice", Arc::new(EndpointSlices)) }
}

/// The first few with commas, and how many there are more.
fn some_of(list: &[String]) -> String {
    let shown = list[..list.len().min(SHOWN)].join(",");
    if list.len() > SHOWN { format!("{shown} + {} more...", list.len() - SHOWN) } else { shown }
}

struct Endpoints;

impl Strategy for Endpoints {
    fn default(&self, object: &mut Value) {
        for subset in each(object, "subsets") {
            each(subset, "ports").for_each(|port| set_text(port, "protocol", "TCP"));
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        for (index, subset) in items(&object["subsets"]).iter().enumerate() {
            let path = format!("subsets[{index}]");
            if items(&subset["addresses"]).is_empty() && items(&subset["notReadyAddresses"]).is_empty() {
                errors.push(FieldError::required(&path, "must specify `addresses` or `notReadyAddresses`"));
            }
            for list in ["addresses", "notReadyAddresses"] {
                for (index, address) in items(&subset[list]).iter().enumerate() {
                    let path = format!("{path}.{list}[{index}]");
                    if !text(&address["hostname"]).is_empty() {
                        let messages = dns_label_messages(text(&address["hostname"]));
                        invalid_all(&mut errors, &format!("{path}.hostname"), &address["hostname"], messages);
                    }
                    net::non_special_ip(&mut errors, &format!("{path}.ip"), &address["ip"]);
                }
            }
            let ports = items(&subset["ports"]);
            for (index, port) in ports.iter().enumerate() {
                let path = format!("{path}.ports[{index}]");
                let name = text(&port["name"]);
                if !name.is_empty() {
                    invalid_all(&mut errors, &format!("{path}.name"), &port["name"], dns_label_messages(name));
                } else if ports.len() > 1 {
                    errors.push(FieldError::required(format!("{path}.name"), ""));
                }
                net::port_number(&mut errors, &format!("{path}.port"), &number(&port["port"]).into());
                let protocols = ["SCTP", "TCP", "UDP"];
                one_of(&mut errors, &format!("{path}.protocol"), &port["protocol"], &protocols);
            }
        }
        errors
    }

    fn warnings(&self, _object: &Value) -> Vec<String> {
        vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned()]
    }

    fn columns(&self) -> Vec<Column> {
        const ENDPOINTS: &str = "The set of all endpoints is the union of all subsets. Addresses are placed into \
            subsets \
            according to the IPs they share. A single address with multiple ports, some of which are ready and some of \
            which are not (because they come from different containers) will result in the address being displayed in \
            different subsets for the different ports. No address will appear in both Addresses and NotReadyAddresses in \
            the same subset. Sets of addresses and ports that comprise a service.";
        vec![name_column(), column("Endpoints", "string", ENDPOINTS), age_column()]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let mut list = Vec::new();
        for subset in items(&object["subsets"]) {
            let addresses = || items(&subset["addresses"]).iter().map(|a| text(&a["ip"]));
            if items(&subset["ports"]).is_empty() {
                list.extend(addresses().map(str::to_owned));
            }
            for port in items(&subset["ports"]) {
                list.extend(addresses().map(|ip| join_host_port(ip, number(&port["port"]))));
            }
        }
        vec![name(object), or_none(&some_of(&list)).into(), age(object, now)]
    }
}

/// `10.0.0.1:80`, `[fd00::1]:80`.
fn join_host_port(host: &str, port: i64) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

struct EndpointSlices;

impl Strategy for EndpointSlices {
    fn default(&self, object: &mut Value) {
        for port in each(object, "ports") {
            set(port, "name", "");
            set(port, "protocol", "TCP");
        }
        each(object, "endpoints").for_each(|endpoint| set(endpoint, "conditions", json!({})));
    }

    fn prepare_for_update(&self, object: &mut Value, old: &Value) {
        // There is no spec: the generation counts changes of everything but metadata, and of the labels.
        let labels = |slice: &Value| slice["metadata"]["labels"].clone();
        let changed = ["addressType", "endpoints", "ports"].iter().any(|field| !same(&object[*field], &old[*field]))
            || !same(&labels(object), &labels(old));
        let generation = crate::api::meta::generation(old) + i64::from(changed);
        crate::api::meta::metadata_mut(object).insert("generation".into(), generation.into());
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let kind = &object["addressType"];
        one_of(&mut errors, "addressType", kind, &["FQDN", "IPv4", "IPv6"]);
        let endpoints = items(&object["endpoints"]);
        if endpoints.len() > 1000 {
            errors.push(FieldError::too_many("endpoints", endpoints.len(), 1000));
            return errors;
        }
        for (index, endpoint) in endpoints.iter().enumerate() {
            self::endpoint(&mut errors, endpoint, text(kind), &format!("endpoints[{index}]"));
        }
        slice_ports(&mut errors, &object["ports"]);
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        immutable(&mut errors, "addressType", &object["addressType"], &old["addressType"]);
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "AddressType",
                "string",
                "addressType specifies the type of address carried by this EndpointSlice. All addresses in this \
                    slice must be the same type. This field is immutable after creation. The following address \
                    types are currently supported: * IPv4: Represents an IPv4 Address. * IPv6: Represents an IPv6 \
                    Address. * FQDN: Represents a Fully Qualified Domain Name.",
            ),
            column(
                "Ports",
                "string",
                "ports specifies the list of network ports exposed by each endpoint in this slice. Each port must \
                    have a unique name. Each slice may include a maximum of 100 ports. Services always have at \
                    least 1 port, so EndpointSlices generated by the EndpointSlice controller will likewise always \
                    have at least 1 port. EndpointSlices used for other purposes may have an empty ports list.",
            ),
            column(
                "Endpoints",
                "string",
                "endpoints is a list of unique endpoints in this slice. Each slice may include a maximum of 1000 \
                    endpoints.",
            ),
            age_column(),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let port = |port: &Value| match (port["port"].as_i64(), port["name"].as_str()) {
            (Some(number), _) => number.to_string(),
            (None, Some(name)) => name.to_owned(),
            (None, None) => "*".to_owned(),
        };
        let unset = |list: Vec<String>| if list.is_empty() { "<unset>".to_owned() } else { some_of(&list) };
        let addresses = items(&object["endpoints"]).iter().flat_map(|e| items(&e["addresses"]));
        vec![
            name(object),
            text(&object["addressType"]).into(),
            unset(items(&object["ports"]).iter().map(port).collect()).into(),
            unset(addresses.map(|a| text(a).to_owned()).collect()).into(),
            age(object, now),
        ]
    }
}

fn endpoint(errors: &mut Errors, endpoint: &Value, kind: &str, path: &str) {
    let addresses = items(&endpoint["addresses"]);
    if addresses.is_empty() {
        errors.push(FieldError::required(format!("{path}.addresses"), "must contain at least 1 address"));
    } else if addresses.len() > 100 {
        errors.push(FieldError::too_many(format!("{path}.addresses"), addresses.len(), 100));
    }
    for (index, address) in addresses.iter().enumerate() {
        let path = format!("{path}.addresses[{index}]");
        match kind {
            "IPv4" if text(address).parse::<std::net::Ipv4Addr>().is_err() => {
                errors.push(FieldError::invalid(path, address, "must be a valid IPv4 address"));
            }
            "IPv6" if text(address).parse::<std::net::Ipv6Addr>().is_err() => {
                errors.push(FieldError::invalid(path, address, "must be a valid IPv6 address"));
            }
            "IPv4" | "IPv6" => net::non_special_ip(errors, &path, address),
            "FQDN" => invalid_all(errors, &path, address, dns_subdomain_messages(text(address).trim_end_matches('.'))),
            _ => {}
        }
    }
    let hostname = &endpoint["hostname"];
    if !hostname.is_null() {
        invalid_all(errors, &format!("{path}.hostname"), hostname, dns_label_messages(text(hostname)));
    }
    let node = &endpoint["nodeName"];
    if !node.is_null() {
        invalid_all(errors, &format!("{path}.nodeName"), node, dns_subdomain_messages(text(node)));
    }
}

fn slice_ports(errors: &mut Errors, ports: &Value) {
    let ports = items(ports);
    if ports.len() > 20_000 {
        return errors.push(FieldError::too_many("ports", ports.len(), 20_000));
    }
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("ports[{index}]");
        let name = text(&port["name"]);
        if !name.is_empty() {
            invalid_all(errors, &format!("{path}.name"), &port["name"], dns_label_messages(name));
        }
        if !names.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &port["name"]));
        }
        one_of(errors, &format!("{path}.protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
        if !port["port"].is_null() {
            net::port_number(errors, &format!("{path}.port"), &port["port"]);
        }
    }
}
