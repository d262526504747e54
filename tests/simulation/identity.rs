//! Certificate requests, bootstrap tokens and aggregated roles: who may have what, and for how long.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::rbac::v1::ClusterRole;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::{Value, json};

use mini::api::certificates::{CLIENT_SIGNER, KUBELET_CLIENT_SIGNER, not_after};
use mini::api::{Gvr, StatusResult, meta};
use mini::client::fake::{Admission, FakeApi, Logged};
use mini::client::typed::gvr;
use mini::client::{Api, DeleteOptions, Patch};
use mini::controllers::bootstrap_signer::signature;
use mini::controllers::csr_signing::Authority;
use mini::controllers::{self, Controller};
use mini::env::rfc3339;

use crate::story::{KindRow, Story};
use crate::world::{World, now};

/// Who may ask for a node's certificate.
const BOOTSTRAPPER: &str = "system:bootstrap:abcdef";
const FOREIGN_SIGNER: &str = "example.com/mine";
const TOKENS: &str = "kube-system";
const PUBLIC: &str = "kube-public";
const INFO: &str = "cluster-info";
const LABELS: [&str; 2] = ["to-admin", "to-view"];

/// The story, and the truth as the API's history tells it.
#[derive(Default)]
pub struct Identities {
    made: usize,
    time: Timestamp,
    requests: BTreeMap<String, Arc<Value>>,
    tokens: BTreeMap<String, Arc<Value>>,
    info: Option<Arc<Value>>,
    deleted_by_user: BTreeSet<String>,
    /// The earliest time at which each token was ever to end: the cleaner may not know yet that it got more.
    earliest: BTreeMap<String, Timestamp>,
}

impl Story for Identities {
    fn kinds(&self) -> Vec<KindRow> {
        vec![
            (gvr::<CertificateSigningRequest>(), "CertificateSigningRequest", false),
            (gvr::<Secret>(), "Secret", true),
            (gvr::<ConfigMap>(), "ConfigMap", true),
            (gvr::<ClusterRole>(), "ClusterRole", false),
        ]
    }

    fn controllers(&mut self, _world: &World) -> Vec<Arc<dyn Controller>> {
        let authority = Arc::new(papers().authority.clone());
        vec![
            Arc::new(controllers::csr_approving::CsrApprovingController),
            Arc::new(controllers::csr_signing::CsrSigningController { authority }),
            Arc::new(controllers::csr_cleaner::CsrCleanerController),
            Arc::new(controllers::token_cleaner::TokenCleanerController),
            Arc::new(controllers::bootstrap_signer::BootstrapSignerController),
            Arc::new(controllers::cluster_role_aggregation::ClusterRoleAggregationController),
        ]
    }

    fn admission(&self) -> Option<Admission> {
        Some(Arc::new(review))
    }

    fn stride(&self) -> SignedDuration {
        SignedDuration::from_mins(20)
    }

    fn begin(&mut self, world: &World) {
        self.time = world.env.now();
        let info = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": INFO, "namespace": PUBLIC},
            "data": {"kubeconfig": "the first"}});
        world.api.seed(&gvr::<ConfigMap>(), info);
        for (name, label) in [("admin", LABELS[0]), ("view", LABELS[1])] {
            let selector = json!({"matchLabels": {label: "true"}});
            let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name},
                "aggregationRule": {"clusterRoleSelectors": [selector]}, "rules": []});
            world.api.seed(&gvr::<ClusterRole>(), role);
        }
    }

    fn time_passed(&mut self, world: &World) {
        self.time = world.env.now();
    }

    fn user_acts(&mut self, world: &World) {
        match world.env.below(100) {
            0..20 => self.ask(world),
            20..35 => self.decide(world),
            35..50 => self.create_token(world),
            50..60 => self.change_token(world),
            60..65 => {
                let patch = Patch::Merge(json!({"data": {"kubeconfig": format!("version {}", world.env.below(9))}}));
                now(world.api.patch(&gvr::<ConfigMap>(), PUBLIC, INFO, "", patch)).expect("it is there");
            }
            _ => change_roles(world),
        }
    }

    fn see(&mut self, change: &Logged) {
        let (object, uid) = (&change.object, meta::uid(&change.object).to_owned());
        match &*change.gvr.resource {
            "certificatesigningrequests" => {
                if change.deleted {
                    self.check_removal(object);
                    self.requests.remove(&uid);
                } else {
                    check_request(change.old.as_deref(), object);
                    self.requests.insert(uid, object.clone());
                }
            }
            "secrets" if change.deleted => {
                let is_over = self.earliest.get(&uid).is_some_and(|at| *at <= self.time);
                assert!(is_over || self.deleted_by_user.contains(&uid), "{object} is deleted, and still holds");
                self.tokens.remove(&uid);
            }
            "secrets" => {
                if let Some(at) = expiration(object) {
                    let earliest = self.earliest.entry(uid.clone()).or_insert(at);
                    *earliest = at.min(*earliest);
                }
                self.tokens.insert(uid, object.clone());
            }
            "configmaps" => self.info = Some(object.clone()),
            _ => {}
        }
    }

    fn at_rest(&mut self, api: &FakeApi) {
        for request in self.requests.values() {
            let waits = has(request, "Approved") && request["spec"]["signerName"] == FOREIGN_SIGNER;
            assert!(waits, "{request} is not dealt with");
        }
        let info = self.info.as_ref().expect("it stays");
        let content = info["data"]["kubeconfig"].as_str().expect("a text");
        let mut wanted = BTreeMap::from([("kubeconfig".to_owned(), content.to_owned())]);
        for token in self.tokens.values() {
            assert!(expiration(token).is_none(), "{token} stays");
            let (id, secret) = (data(token, "token-id"), data(token, "token-secret"));
            if data(token, "usage-bootstrap-signing") == "true" {
                wanted.insert(format!("jws-kubeconfig-{id}"), signature(content, &id, &secret));
            }
        }
        assert_eq!(info["data"], json!(wanted));
        check_roles(&api.all(&gvr::<ClusterRole>()));
    }
}

impl Identities {
    /// Somebody asks for a certificate: a node, somebody who says so, or somebody else.
    fn ask(&mut self, world: &World) {
        self.made += 1;
        let user = [BOOTSTRAPPER, "system:node:n", "mallory"][world.pick(3)];
        let (signer, request) = match world.env.below(4) {
            0 => (FOREIGN_SIGNER, &papers().client),
            1 => (CLIENT_SIGNER, &papers().client),
            _ => (KUBELET_CLIENT_SIGNER, &papers().node),
        };
        let usages =
            if world.chance(85) { json!(["digital signature", "client auth"]) } else { json!(["server auth"]) };
        let mut spec =
            json!({"request": STANDARD.encode(request), "signerName": signer, "username": user, "usages": usages});
        if world.chance(60) {
            spec["expirationSeconds"] = (600 + world.env.below(7200)).into();
        }
        world.say(|| format!("{user} asks {signer}"));
        let request = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"name": format!("csr-{}", self.made)}, "spec": spec});
        now(world.api.create(&gvr::<CertificateSigningRequest>(), "", "", "", request)).expect("created");
    }

    /// `kubectl certificate approve` or `deny`.
    fn decide(&self, world: &World) {
        let open: Vec<_> =
            self.requests.values().filter(|request| !has(request, "Approved") && !has(request, "Denied")).collect();
        let Some(request) = open.get(world.pick(open.len())) else { return };
        let type_ = if world.chance(50) { "Approved" } else { "Denied" };
        world.say(|| format!("user: {} is {type_}", meta::name(request)));
        let mut decided = (***request).clone();
        let condition = json!({"type": type_, "status": "True", "lastUpdateTime": rfc3339(world.env.now())});
        let mut conditions = meta::items(&decided["status"]["conditions"]).to_vec();
        conditions.push(condition);
        decided["status"]["conditions"] = json!(conditions);
        let name = meta::name(request);
        now(world.api.update(&gvr::<CertificateSigningRequest>(), "", name, "approval", decided)).expect("it is there");
    }

    fn create_token(&mut self, world: &World) {
        self.made += 1;
        let id = format!("t{:05}", self.made);
        let mut fields = json!({"token-id": id, "token-secret": format!("secret{:010}", self.made)});
        if world.chance(70) {
            fields["usage-bootstrap-signing"] = "true".into();
        }
        if world.chance(70) {
            let lasts = SignedDuration::from_mins(i64::try_from(world.env.below(120)).expect("it fits"));
            fields["expiration"] = rfc3339(world.env.now() + lasts).into();
        }
        let encoded: BTreeMap<&String, String> = fields
            .as_object()
            .expect("fields")
            .iter()
            .map(|(field, value)| (field, STANDARD.encode(value.as_str().expect("a text"))))
            .collect();
        world.say(|| format!("user creates the token {fields}"));
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
            "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": TOKENS}, "data": encoded});
        now(world.api.create(&gvr::<Secret>(), TOKENS, "", "", secret)).expect("created");
    }

    /// A token goes, or gets more time.
    fn change_token(&mut self, world: &World) {
        let tokens: Vec<_> = self.tokens.values().collect();
        let Some(token) = tokens.get(world.pick(tokens.len())) else { return };
        let name = meta::name(token);
        if world.chance(50) {
            world.say(|| format!("user deletes {name}"));
            self.deleted_by_user.insert(meta::uid(token).to_owned());
            now(world.api.delete(&gvr::<Secret>(), TOKENS, name, &DeleteOptions::default())).expect("it is there");
            return;
        }
        world.say(|| format!("user gives {name} another hour"));
        let until = STANDARD.encode(rfc3339(world.env.now() + SignedDuration::from_hours(1)));
        let patch = Patch::Merge(json!({"data": {"expiration": until}}));
        now(world.api.patch(&gvr::<Secret>(), TOKENS, name, "", patch)).expect("it is there");
    }

    /// Requests are kept for an hour after a decision, for a day without one, and for as long as their certificate holds.
    fn check_removal(&self, request: &Value) {
        let conditions = meta::items(&request["status"]["conditions"]);
        let time = |value: &Value| value.as_str().map(|text| text.parse::<Timestamp>().expect("a time"));
        let decided = conditions.iter().filter_map(|condition| time(&condition["lastUpdateTime"]));
        let decided = decided.map(|at| at + SignedDuration::from_hours(1)).min();
        let expired = certificate(request).and_then(|pem| not_after(&pem));
        let created = time(&request["metadata"]["creationTimestamp"]).expect("it has one");
        let pending = conditions.is_empty().then(|| created + SignedDuration::from_hours(24));
        let due = [decided, expired, pending].into_iter().flatten().min();
        assert!(due.is_some_and(|due| due <= self.time), "{request} is removed, due at {due:?}");
    }
}

/// One change of a request: approved only when it may be, signed only when it is approved, and then left alone.
fn check_request(old: Option<&Value>, request: &Value) {
    let spec = &request["spec"];
    assert!(!(has(request, "Approved") && has(request, "Denied")), "{request}");
    let automatic = meta::items(&request["status"]["conditions"]).iter().any(|c| c["reason"] == "AutoApproved");
    if automatic {
        let may = may_have_node_certificates(spec["username"].as_str().unwrap_or_default());
        let usual = spec["usages"] == json!(["digital signature", "client auth"]);
        assert!(may && usual && spec["signerName"] == KUBELET_CLIENT_SIGNER, "{request} is approved");
    }
    let (before, after) = (old.and_then(certificate), certificate(request));
    assert!(before.is_none() || before == after, "{request} gets another certificate");
    let may_be_signed = has(request, "Approved") && !has(request, "Failed") && spec["signerName"] != FOREIGN_SIGNER;
    assert!(after.is_none() || may_be_signed, "{request} gets a certificate");
}

fn certificate(request: &Value) -> Option<Vec<u8>> {
    Some(STANDARD.decode(request["status"]["certificate"].as_str()?).expect("base64"))
}

fn has(request: &Value, type_: &str) -> bool {
    meta::items(&request["status"]["conditions"]).iter().any(|condition| condition["type"] == type_)
}

fn data(secret: &Value, field: &str) -> String {
    let bytes = STANDARD.decode(secret["data"][field].as_str().unwrap_or_default()).expect("base64");
    String::from_utf8(bytes).expect("a text")
}

fn expiration(secret: &Value) -> Option<Timestamp> {
    let text = data(secret, "expiration");
    (!text.is_empty()).then(|| text.parse().expect("a time"))
}

fn may_have_node_certificates(user: &str) -> bool {
    user == BOOTSTRAPPER || user.starts_with("system:node:")
}

/// Answers reviews as the authorizer does.
fn review(_: &FakeApi, gvr: &Gvr, object: &mut Value) -> StatusResult<()> {
    if &*gvr.resource == "subjectaccessreviews" {
        let may = may_have_node_certificates(object["spec"]["user"].as_str().unwrap_or_default());
        object["status"] = json!({"allowed": may});
    }
    Ok(())
}

fn change_roles(world: &World) {
    let name = format!("part-{}", world.env.below(4));
    let rules: Vec<Value> = (0..world.env.below(3))
        .map(|_| json!({"apiGroups": [""], "resources": [format!("r{}", world.env.below(4))], "verbs": ["get"]}))
        .collect();
    let mut labels = json!({});
    for label in LABELS {
        labels[label] = if world.chance(50) { "true".into() } else { Value::Null };
    }
    world.say(|| format!("user changes {name}: {labels} {rules:?}"));
    let roles = gvr::<ClusterRole>();
    let changed = json!({"metadata": {"labels": labels}, "rules": rules});
    if now(world.api.patch(&roles, "", &name, "", Patch::Merge(changed.clone()))).is_ok() {
        if world.chance(15) {
            now(world.api.delete(&roles, "", &name, &DeleteOptions::default())).expect("it is there");
        }
        return;
    }
    let mut role = changed;
    role["apiVersion"] = "rbac.authorization.k8s.io/v1".into();
    role["kind"] = "ClusterRole".into();
    role["metadata"]["name"] = name.into();
    now(world.api.create(&roles, "", "", "", role)).expect("created");
}

/// A role that aggregates has all rules of those that it selects, and no others.
fn check_roles(roles: &[Arc<Value>]) {
    for role in roles.iter().filter(|role| !role["aggregationRule"].is_null()) {
        let label = if meta::name(role) == "admin" { LABELS[0] } else { LABELS[1] };
        let parts = roles.iter().filter(|part| meta::label(part, label) == Some("true"));
        let texts = |rules: &Value| meta::items(rules).iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let wanted: BTreeSet<String> = parts.flat_map(|part| texts(&part["rules"])).collect();
        assert_eq!(texts(&role["rules"]), wanted, "{role}");
    }
}

/// An authority, and requests of a node and of somebody: keys take their time, so all seeds share them.
struct Papers {
    authority: Authority,
    node: String,
    client: String,
}

fn papers() -> &'static Papers {
    static PAPERS: OnceLock<Papers> = OnceLock::new();
    PAPERS.get_or_init(|| {
        let key = KeyPair::generate().expect("a key");
        let cert = CertificateParams::default().self_signed(&key).expect("a certificate").pem();
        Papers {
            authority: Authority { cert, key: key.serialize_pem() },
            node: request("system:nodes", "system:node:n"),
            client: request("people", "alice"),
        }
    })
}

fn request(group: &str, name: &str) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, group);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().expect("a key");
    params.serialize_request(&key).expect("a request").pem().expect("PEM")
}
