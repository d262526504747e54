//! Follows Services, EndpointSlices, Namespaces and the own Node, and publishes a new [`ServiceTable`] after every change.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::engine::EngineHandle;
use super::service_table::{ObjectName, Objects, ServiceTable};
use crate::client::cache::Change;
use crate::client::factory::Factory;
use crate::client::typed::{Meta, Typed};

/// Runs until it is dropped.
pub async fn follow(
    informers: Factory,
    node: String,
    table: watch::Sender<Arc<ServiceTable>>,
    engine: Option<EngineHandle>,
) {
    let services = informers.cache::<Service>();
    let slices = informers.cache::<EndpointSlice>();
    let namespaces = informers.cache::<Namespace>();
    let (mut service, mut slice, mut namespace) = (services.changes(), slices.changes(), namespaces.changes());
    // Where the node is only makes a difference to what is preferred: it is not waited for.
    let mut nodes = informers.cache::<Node>().changes();
    let mut objects = Objects::new(&node);
    // Half a table would refuse what exists: the engine waits for the first whole one.
    tokio::join!(services.synced(), slices.synced(), namespaces.synced());
    loop {
        // One table for everything that has come so far.
        while let Ok(change) = service.try_recv() {
            apply_service(&mut objects, &change);
        }
        while let Ok(change) = slice.try_recv() {
            apply_slice(&mut objects, &change);
        }
        while let Ok(change) = namespace.try_recv() {
            apply_namespace(&mut objects, &change);
        }
        while let Ok(change) = nodes.try_recv() {
            apply_node(&mut objects, &change, &node);
        }
        let snapshot = Arc::new(objects.snapshot());
        if let Some(engine) = &engine {
            engine.set_table(snapshot.clone());
        }
        table.send_replace(snapshot);
        tokio::select! {
            Some(change) = service.recv() => apply_service(&mut objects, &change),
            Some(change) = slice.recv() => apply_slice(&mut objects, &change),
            Some(change) = namespace.recv() => apply_namespace(&mut objects, &change),
            Some(()) = moved(&mut nodes, &mut objects, &node) => {}
            else => return,
        }
    }
}

fn apply_service(objects: &mut Objects, change: &Change<Service>) {
    match &change.new {
        Some(service) => objects.apply_service(Arc::new(value(&**service))),
        None => objects.delete_service(&name(&**change.object())),
    }
}

fn apply_slice(objects: &mut Objects, change: &Change<EndpointSlice>) {
    match &change.new {
        Some(slice) => objects.apply_slice(&value(&**slice)),
        None => objects.delete_slice(&name(&**change.object())),
    }
}

fn apply_namespace(objects: &mut Objects, change: &Change<Namespace>) {
    match &change.new {
        Some(namespace) => objects.apply_namespace(namespace.name()),
        None => objects.delete_namespace(change.object().name()),
    }
}

/// The node's zone, when it is this node; whether it is another than before.
fn apply_node(objects: &mut Objects, change: &Change<Node>, name: &str) -> bool {
    let Some(node) = change.new.as_ref().filter(|node| node.name() == name) else { return false };
    objects.set_zone(node.labels().get("topology.kubernetes.io/zone").map(String::as_str))
}

/// Waits until the node is in another zone: its heartbeats are no reason for a new table.
async fn moved(changes: &mut mpsc::UnboundedReceiver<Change<Node>>, objects: &mut Objects, node: &str) -> Option<()> {
    while !apply_node(objects, &changes.recv().await?, node) {}
    Some(())
}

fn name<T: Typed>(object: &T) -> ObjectName {
    (object.namespace().to_owned(), object.name().to_owned())
}

/// The object as JSON again.
pub(super) fn value<T: Typed>(object: &T) -> Value {
    serde_json::to_value(object).expect("an object that came as JSON goes as JSON")
}
