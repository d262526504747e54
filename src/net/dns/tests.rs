//! Expectations: the Kubernetes DNS specification 1.1.0 and CoreDNS' kubernetes plugin.

use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::zone::{Zone, name};
use super::{Answer, Transport, answer};
use crate::net::service_table::{Objects, ServiceTable};

fn zone() -> Zone {
    Zone {
        domain: "cluster.local".to_owned(),
        dns_ip: Ipv4Addr::new(10, 96, 0, 10),
        local: vec!["10.96.0.0/16".parse().expect("a network"), "10.244.0.0/24".parse().expect("a network")],
        hosts: vec![("host.minikube.internal".to_owned(), Ipv4Addr::new(192, 168, 49, 1))],
    }
}

fn table() -> ServiceTable {
    let mut objects = Objects::new("mini");
    objects.apply_namespace("default");
    objects.apply_namespace("empty");
    let mut service = |name: &str, spec: Value| {
        let metadata = json!({"namespace": "default", "name": name});
        objects.apply_service(Arc::new(json!({"metadata": metadata, "spec": spec})));
    };
    service("web", json!({"clusterIP": "10.96.1.1", "ports": [{"name": "http", "port": 80}]}));
    service("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}));
    service("none", json!({"clusterIP": "None", "ports": [{"port": 1}]}));
    service("out", json!({"type": "ExternalName", "externalName": "example.org"}));
    service("in", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}));
    service("loop", json!({"type": "ExternalName", "externalName": "loop.default.svc.cluster.local"}));
    let endpoints: Vec<Value> = (2..5)
        .map(|n| json!({"addresses": [format!("10.244.0.{n}")], "hostname": if n < 4 { json!(format!("db-{n}")) } else { Value::Null },
            "conditions": {"ready": true}}))
        .chain([json!({"addresses": ["10.244.0.9"], "conditions": {"ready": false}})])
        .collect();
    objects.apply_slice(&json!({"metadata": {"namespace": "default", "name": "db-1",
        "labels": {"kubernetes.io/service-name": "db"}}, "addressType": "IPv4",
        "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}], "endpoints": endpoints}));
    objects.snapshot()
}

fn query(text: &str, kind: RecordType) -> Message {
    let mut message = Message::new(6, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text).expect("a name"), kind));
    message
}

fn ask_with(message: &Message, transport: Transport) -> Answer {
    answer(&message.to_vec().expect("a message"), transport, &zone(), &table())
}

fn ask(text: &str, kind: RecordType) -> Message {
    match ask_with(&query(text, kind), Transport::Udp) {
        Answer::Now(bytes) => Message::from_vec(&bytes).expect("a well-formed answer"),
        other => panic!("{text}: expected an answer, got {other:?}"),
    }
}

/// The code, and the data of the answer section, sorted.
fn data(text: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let message = ask(text, kind);
    assert!(message.metadata.authoritative && message.metadata.recursion_available, "{text}");
    assert_eq!(message.answers.is_empty(), message.authorities.len() == 1, "{text}: an SOA if and only if negative");
    let mut data: Vec<String> = message.answers.iter().map(|r| r.data.to_string()).collect();
    data.sort();
    (message.metadata.response_code, data)
}

const OK: ResponseCode = ResponseCode::NoError;
const NX: ResponseCode = ResponseCode::NXDomain;

#[test]
fn services_have_their_cluster_address() {
    assert_eq!(data("web.default.svc.cluster.local", RecordType::A), (OK, vec!["10.96.1.1".to_owned()]));
    assert_eq!(data("WEB.Default.svc.cluster.LOCAL", RecordType::A), (OK, vec!["10.96.1.1".to_owned()]));
    assert_eq!(data("web.default.svc.cluster.local", RecordType::AAAA), (OK, vec![]));
    assert_eq!(data("web.default.svc.cluster.local", RecordType::MX), (OK, vec![]));
    let srv = (OK, vec!["0 100 80 web.default.svc.cluster.local.".to_owned()]);
    assert_eq!(data("_http._tcp.web.default.svc.cluster.local", RecordType::SRV), srv);
    assert_eq!(data("web.default.svc.cluster.local", RecordType::SRV), srv);
    assert_eq!(data("_x._tcp.web.default.svc.cluster.local", RecordType::SRV), (NX, vec![]));
    assert_eq!(data("_http._udp.web.default.svc.cluster.local", RecordType::SRV), (NX, vec![]));
    assert_eq!(
        data("1.1.96.10.in-addr.arpa", RecordType::PTR),
        (OK, vec!["web.default.svc.cluster.local.".to_owned()])
    );
}

#[test]
fn headless_services_have_their_ready_endpoints() {
    let ips = |n: &[u8]| n.iter().map(|n| format!("10.244.0.{n}")).collect::<Vec<_>>();
    assert_eq!(data("db.default.svc.cluster.local", RecordType::A), (OK, ips(&[2, 3, 4])));
    assert_eq!(data("db-3.db.default.svc.cluster.local", RecordType::A), (OK, ips(&[3])));
    assert_eq!(data("10-244-0-4.db.default.svc.cluster.local", RecordType::A), (OK, ips(&[4])));
    assert_eq!(data("db-9.db.default.svc.cluster.local", RecordType::A), (NX, vec![]));
    assert_eq!(data("none.default.svc.cluster.local", RecordType::A), (NX, vec![]));
    let srv = |host: &str| format!("0 33 5432 {host}.db.default.svc.cluster.local.");
    let all = vec![srv("10-244-0-4"), srv("db-2"), srv("db-3")];
    assert_eq!(data("_sql._tcp.db.default.svc.cluster.local", RecordType::SRV), (OK, all));
    assert_eq!(ask("_sql._tcp.db.default.svc.cluster.local", RecordType::SRV).additionals.len(), 3);
    let ptr = (OK, vec!["db-2.db.default.svc.cluster.local.".to_owned()]);
    assert_eq!(data("2.0.244.10.in-addr.arpa", RecordType::PTR), ptr);
    assert_eq!(data("77.0.244.10.in-addr.arpa", RecordType::PTR), (NX, vec![]));
}

#[test]
fn names_that_exist_without_the_type_are_told_from_names_that_do_not() {
    for (name, code) in [
        ("cluster.local", OK),
        ("svc.cluster.local", OK),
        ("default.svc.cluster.local", OK),
        ("empty.svc.cluster.local", OK),
        ("nowhere.svc.cluster.local", NX),
        ("web.nowhere.svc.cluster.local", NX),
        ("nothing.default.svc.cluster.local", NX),
        ("web.default.svc.cluster.local.default.svc.cluster.local", NX),
        ("example.org.svc.cluster.local", NX),
        ("example.org.cluster.local", NX),
    ] {
        assert_eq!(data(name, RecordType::A), (code, vec![]), "{name}");
    }
    let soa = ask("nothing.default.svc.cluster.local", RecordType::A).authorities[0].clone();
    assert_eq!(soa.ttl, 5);
    let expected = "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5";
    assert_eq!((soa.name.to_string(), soa.data.to_string()), ("cluster.local.".to_owned(), expected.to_owned()));
}

#[test]
fn pods_have_names_of_their_address() {
    assert_eq!(data("10-244-0-7.default.pod.cluster.local", RecordType::A), (OK, vec!["10.244.0.7".to_owned()]));
    assert_eq!(data("10-244-0-7.nowhere.pod.cluster.local", RecordType::A), (NX, vec![]));
    assert_eq!(data("10-244-0-777.default.pod.cluster.local", RecordType::A), (NX, vec![]));
    assert_eq!(data("dns-version.cluster.local", RecordType::TXT), (OK, vec!["1.1.0".to_owned()]));
    assert_eq!(data("cluster.local", RecordType::NS), (OK, vec!["ns.dns.cluster.local.".to_owned()]));
    assert_eq!(data("ns.dns.cluster.local", RecordType::A), (OK, vec!["10.96.0.10".to_owned()]));
    assert_eq!(data("host.minikube.internal", RecordType::A), (OK, vec!["192.168.49.1".to_owned()]));
}

#[test]
fn external_names_are_aliases() {
    assert_eq!(data("out.default.svc.cluster.local", RecordType::CNAME), (OK, vec!["example.org.".to_owned()]));
    let inside = vec!["10.96.1.1".to_owned(), "web.default.svc.cluster.local.".to_owned()];
    assert_eq!(data("in.default.svc.cluster.local", RecordType::A), (OK, inside));
    assert_eq!(ask("loop.default.svc.cluster.local", RecordType::A).metadata.response_code, ResponseCode::ServFail);
    let Answer::Chase(chase) = ask_with(&query("out.default.svc.cluster.local", RecordType::A), Transport::Udp) else {
        panic!("the target is elsewhere");
    };
    let upstream = Message::from_vec(&chase.upstream().expect("a question")).expect("a message");
    assert_eq!(upstream.queries[0].name().to_string(), "example.org.");
    let Answer::Now(bytes) = chase.complete(None) else { panic!("a failure is an answer") };
    assert_eq!(Message::from_vec(&bytes).expect("a message").metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn other_names_are_asked_elsewhere() {
    for text in ["example.org", "web", "web.default", "local", "8.8.8.8.in-addr.arpa", "xcluster.local"] {
        assert!(matches!(ask_with(&query(text, RecordType::A), Transport::Udp), Answer::Forward), "{text}");
    }
}

#[test]
fn what_is_no_plain_query_is_refused() {
    let code = |message: &Message| match ask_with(message, Transport::Udp) {
        Answer::Now(bytes) => Message::from_vec(&bytes).expect("a message").metadata.response_code,
        other => panic!("expected an answer, got {other:?}"),
    };
    let mut message = query("web.default.svc.cluster.local", RecordType::A);
    message.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&message), ResponseCode::Refused);
    assert_eq!(code(&query("cluster.local", RecordType::AXFR)), ResponseCode::Refused);
    let mut message = query("web.default.svc.cluster.local", RecordType::A);
    message.metadata.op_code = OpCode::Update;
    assert_eq!(code(&message), ResponseCode::NotImp);
    let mut message = query("web.default.svc.cluster.local", RecordType::A);
    message.metadata.message_type = MessageType::Response;
    assert!(matches!(ask_with(&message, Transport::Udp), Answer::Silence));
    let mut message = query("web.default.svc.cluster.local", RecordType::A);
    message.set_edns({
        let mut edns = Edns::new();
        edns.set_version(1);
        edns
    });
    // 16: BADVERS in an OPT record, BADSIG in a TSIG record.
    assert_eq!(u16::from(code(&message)), 16);
}

#[test]
fn long_answers_are_cut_for_udp() {
    let mut objects = Objects::new("mini");
    objects.apply_service(Arc::new(json!({"metadata": {"namespace": "a", "name": "many"},
        "spec": {"clusterIP": "None", "ports": [{"port": 80}]}})));
    let endpoints: Vec<Value> = (1..=100).map(|n| json!({"addresses": [format!("10.244.1.{n}")]})).collect();
    objects.apply_slice(
        &json!({"metadata": {"namespace": "a", "name": "x", "labels": {"kubernetes.io/service-name": "many"}},
        "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": endpoints}),
    );
    let table = objects.snapshot();
    let ask = |message: &Message, transport| {
        let Answer::Now(bytes) = answer(&message.to_vec().expect("a message"), transport, &zone(), &table) else {
            panic!("expected an answer");
        };
        (bytes.len(), Message::from_vec(&bytes).expect("a message"))
    };
    let mut message = query("many.a.svc.cluster.local", RecordType::A);
    let (length, cut) = ask(&message, Transport::Udp);
    assert!(length <= 512 && cut.metadata.truncation);
    let (_, whole) = ask(&message, Transport::Tcp);
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (100, false));
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    message.set_edns(edns);
    assert_eq!(ask(&message, Transport::Udp).1.answers.len(), 100);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), fix: bool) {
        if fix && bytes.len() > 12 {
            bytes[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
        let _ = answer(&bytes, Transport::Udp, &zone(), &table());
        let _ = super::failure(&bytes, Transport::Tcp);
        let _ = super::fit(&bytes, bytes.clone(), Transport::Udp);
    }

    #[test]
    fn no_name_makes_it_panic(text in "([a-z0-9_*-]{1,20}\\.){0,8}(svc|pod|cluster|in-addr)\\.(cluster\\.local|arpa)", kind in 0u16..300) {
        if let Some(name) = name(&text) {
            let mut message = Message::new(6, MessageType::Query, OpCode::Query);
            message.add_query(Query::query(name, RecordType::from(kind)));
            let _ = answer(&message.to_vec().expect("a message"), Transport::Udp, &zone(), &table());
        }
    }
}
