//! Empties and finalizes namespaces that are being deleted (`pkg/controller/namespace`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::caches::{Caches, GraphKind};
use super::plan::{Action, Plan, Step, Write};
use super::{Controller, Enqueue};
use crate::api::Gvr;
use crate::client::DeleteOptions;
use crate::client::cache::Key;
use crate::client::typed::{Meta, gvr, to_value};

/// The finalizer that this controller stands for.
const FINALIZER: &str = "kubernetes";
const EVENTS: Gvr = Gvr::new("", "v1", "events");

/// Whether things may be created in the namespace.
pub fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    !namespace.is_terminating() && phase != Some("Terminating")
}

/// The controller.
pub struct NamespaceController;

impl Controller for NamespaceController {
    fn name(&self) -> &'static str {
        "namespace"
    }
    fn account(&self) -> &'static str {
        "namespace-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        enqueue.on_change(&caches.namespaces);
        let (namespaces, add) = (caches.namespaces.clone(), enqueue.clone());
        caches.graph.on_kind(move |node| {
            let (namespaces, add) = (namespaces.clone(), add.clone());
            node.cache.subscribe(move |change| {
                let key = Key::new("", change.object().namespace());
                if namespaces.get(&key).is_some_and(|namespace| namespace.is_terminating()) {
                    add.add(key);
                }
            });
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        match caches.namespaces.get(key) {
            Some(namespace) if namespace.is_terminating() => {
                let kinds = caches.graph.kinds();
                let kinds: Vec<&GraphKind> = kinds.iter().map(|node| &**node).filter(|node| node.namespaced).collect();
                reconcile(&namespace, &kinds, now)
            }
            _ => Plan::default(),
        }
    }
}

fn finalizers(namespace: &Namespace) -> &[String] {
    namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_deref()).unwrap_or_default()
}

/// The decision for a namespace that is being deleted. `kinds` are all kinds that live in namespaces.
fn reconcile(namespace: &Namespace, kinds: &[&GraphKind], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if !finalizers(namespace).iter().any(|finalizer| finalizer == FINALIZER) {
        return plan;
    }
    let name = namespace.name();
    let mut remaining: BTreeMap<String, usize> = BTreeMap::new();
    let mut holding: BTreeMap<String, usize> = BTreeMap::new();
    let mut deletes = Vec::new();
    for node in kinds {
        for object in node.cache.in_namespace(name) {
            *remaining.entry(group_resource(&node.gvr)).or_default() += 1;
            for finalizer in object.metadata.finalizers.iter().flatten() {
                *holding.entry(finalizer.clone()).or_default() += 1;
            }
            if !object.is_terminating() {
                let options = DeleteOptions {
                    uid: object.metadata.uid.clone(),
                    propagation_policy: Some("Background"),
                    ..Default::default()
                };
                let write = Write::Delete { gvr: node.gvr.clone(), key: Key::of(&*object), options };
                deletes.push(Action::write(write).tolerate(&["NotFound", "MethodNotAllowed"]));
            }
        }
    }
    if !deletes.is_empty() {
        plan.steps.push(Step::All(deletes));
    }
    if remaining.is_empty() {
        // The caches see nothing more; the API has the last word.
        plan.push(Action::write(Write::DeleteAll { gvr: EVENTS, namespace: name.into() }));
        let checks = kinds.iter().map(|node| Write::ExpectNone { gvr: node.gvr.clone(), namespace: name.into() });
        plan.steps.push(Step::All(checks.map(Action::write).collect()));
    }
    let mut updated = namespace.clone();
    set_conditions(&mut updated, &remaining, &holding, now);
    if !remaining.is_empty() {
        if updated != *namespace {
            plan.push(Action::update_status(&updated));
        }
        return plan;
    }
    let mut finalized = namespace.clone();
    let spec = finalized.spec.get_or_insert_default();
    spec.finalizers.get_or_insert_default().retain(|finalizer| finalizer != FINALIZER);
    let object = to_value(&finalized);
    let write = Write::Update { gvr: gvr::<Namespace>(), key: Key::of(namespace), subresource: "finalize", object };
    plan.push(Action::write(write).tolerate(&["NotFound"]));
    plan
}

/// `pods`, `deployments.apps`.
fn group_resource(gvr: &Gvr) -> String {
    format!("{}.{}", gvr.resource, gvr.group)
}

fn set_conditions(
    namespace: &mut Namespace,
    remaining: &BTreeMap<String, usize>,
    holding: &BTreeMap<String, usize>,
    now: Timestamp,
) {
    let list = |map: &BTreeMap<String, usize>, say: fn(&str, usize) -> String| {
        map.iter().map(|(what, count)| say(what, *count)).collect::<Vec<_>>().join(", ")
    };
    let left = list(remaining, |what, count| format!("{what} has {count} resource instances"));
    let held = list(holding, |what, count| format!("{what} in {count} resource instances"));
    let mut wanted = vec![
        (
            "NamespaceDeletionDiscoveryFailure",
            false,
            "ResourcesDiscovered",
            "All resources successfully discovered".into(),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".into(),
        ),
        (
            "NamespaceDeletionContentFailure",
            false,
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization".to_owned(),
        ),
    ];
    wanted.push(if remaining.is_empty() {
        ("NamespaceContentRemaining", false, "ContentRemoved", "All content successfully removed".into())
    } else {
        ("NamespaceContentRemaining", true, "SomeResourcesRemain", format!("Some resources are remaining: {left}"))
    });
    wanted.push(if holding.is_empty() {
        (
            "NamespaceFinalizersRemaining",
            false,
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished".into(),
        )
    } else {
        let message = format!("Some content in the namespace has finalizers remaining: {held}");
        ("NamespaceFinalizersRemaining", true, "SomeFinalizersRemain", message)
    });
    let status = namespace.status.get_or_insert_default();
    status.phase = Some("Terminating".into());
    let conditions = status.conditions.get_or_insert_default();
    for (type_, is, reason, message) in wanted {
        let word = if is { "True" } else { "False" };
        let new = NamespaceCondition {
            type_: type_.into(),
            status: word.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        };
        match conditions.iter_mut().find(|known| known.type_ == type_) {
            None => conditions.push(new),
            Some(known) if known.status != new.status => *known = new,
            Some(known) => {
                known.reason = new.reason;
                known.message = new.message;
            }
        }
    }
}
