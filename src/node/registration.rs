//! A node that joins a cluster: makes its Node object and waits until the control plane has given it pod addresses.

use futures_util::StreamExt as _;
use ipnet::Ipv4Net;
use serde_json::Value;

use super::node_status;
use super::runtime::Enforcement;
use crate::api::kinds::gvr::NODES;
use crate::api::{Status, StatusResult};
use crate::client::{Api, ListOptions, WatchEvent};

/// Makes the Node `name`, unless it is there, and returns its `spec.podCIDR` once it has one (the node IPAM controller gives
/// it).
///
/// # Errors
/// The API server's.
pub async fn register(api: &dyn Api, name: &str) -> StatusResult<Ipv4Net> {
    let object = node_status::object(&node_status::Node {
        name,
        internal_ips: &[],
        external_ip: None,
        pod_cidr: "",
        machine: &super::Machine::default(),
        enforcement: &Enforcement::default(),
        images: &[],
        app_armor: false,
        ready: false,
    });
    match api.create(&NODES, "", "", "", object).await {
        Err(error) if !error.is_already_exists() => return Err(error),
        _ => {}
    }
    let only = ListOptions { field_selector: format!("metadata.name={name}"), ..ListOptions::default() };
    let mut events = api.watch(&NODES, "", &only).await?;
    while let Some(event) = events.next().await {
        match event? {
            WatchEvent::Added(node) | WatchEvent::Modified(node) => {
                if let Some(cidr) = pod_cidr(&node) {
                    return cidr
                        .parse()
                        .map_err(|_| Status::internal(format!("the node's podCIDR {cidr:?} is no network")));
                }
            }
            WatchEvent::Deleted(_) => return Err(Status::not_found(&NODES, name)),
            WatchEvent::Bookmark(_) => {}
        }
    }
    Err(Status::new(503, "ServiceUnavailable", "the watch of the node ended"))
}

fn pod_cidr(node: &Value) -> Option<&str> {
    node["spec"]["podCIDR"].as_str().filter(|cidr| !cidr.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Patch;
    use crate::client::fake::FakeApi;
    use crate::env::Env;
    use serde_json::json;

    #[tokio::test]
    async fn a_node_waits_for_its_addresses_and_keeps_them() {
        let api = FakeApi::new(Env::real());
        let give = async {
            let found = api.watch(&NODES, "", &ListOptions::default()).await.expect("watched").next().await;
            assert!(matches!(found, Some(Ok(WatchEvent::Added(node))) if node["metadata"]["name"] == "n"));
            let spec = json!({"spec": {"podCIDR": "10.244.7.0/24"}});
            api.patch(&NODES, "", "n", "", Patch::Merge(spec)).await.expect("patched");
        };
        let (registered, ()) = tokio::join!(register(&*api, "n"), give);
        assert_eq!(registered.expect("registered").to_string(), "10.244.7.0/24");
        assert_eq!(register(&*api, "n").await.expect("found").to_string(), "10.244.7.0/24");
    }
}
