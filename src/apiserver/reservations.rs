//! Addresses and ports of Services where several API servers share a store: each is a key there while a Service has it, so
//! that no two servers give it away; and what other servers give away is learnt from the Services themselves.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::ApiServer;
use super::following::{Following, Told};
use super::registry::{kind_prefix, storage_failed};
use super::service::{Resource, owner, resources};
use crate::api::StatusResult;
use crate::storage::{Body, Durability, Entry, Error, Expect, Listing, News};

/// What the keys begin with: no API group is called like this, groups have a dot.
const PREFIX: &str = "/mini/reservations/";
/// How long a Service may take from its reservations to being stored; what is older and has no Service is left over.
const IN_FLIGHT: Duration = Duration::from_secs(60);

fn key(resource: Resource) -> String {
    match resource {
        Resource::Address(address) => format!("{PREFIX}addresses/{address}"),
        Resource::Port(port) => format!("{PREFIX}ports/{port}"),
    }
}

impl ApiServer {
    /// Reserves what a Service is about to take. Returns who has something of it already; nothing is reserved then.
    pub(super) async fn reserve(&self, owner: &str, wanted: &[Resource]) -> StatusResult<Option<(Resource, String)>> {
        for (i, resource) in wanted.iter().enumerate() {
            let text = json!({"owner": owner, "at": self.env.now()}).to_string();
            let before = format!("{},\"metadata\":{{\"resourceVersion\":\"", text.trim_end_matches('}'));
            let body = Body { before: before.into(), after: "\"}}".into() };
            match self.storage.put(&key(*resource), Expect::Absent, body, Durability::Now).await {
                Ok(_) => {}
                Err(Error::Conflict(Some(there))) if there.value()["owner"] == owner => {}
                Err(Error::Conflict(there)) => {
                    self.unreserve(owner, &wanted[..i]).await;
                    let other = there.map(|there| there.value()["owner"].as_str().unwrap_or_default().to_owned());
                    return Ok(Some((*resource, other.unwrap_or_default())));
                }
                Err(error) => {
                    self.unreserve(owner, &wanted[..i]).await;
                    return Err(storage_failed(error));
                }
            }
        }
        Ok(None)
    }

    /// Gives back what was reserved for a Service.
    pub(super) async fn unreserve(&self, owner: &str, given: &[Resource]) {
        for resource in given {
            let there = self.storage.get(&key(*resource)).await;
            let Ok(Some(entry)) = there else { continue };
            if entry.value()["owner"] == owner {
                self.drop_reservation(&entry).await;
            }
        }
    }

    async fn drop_reservation(&self, entry: &Entry) {
        let body = Body { before: "{\"metadata\":{\"resourceVersion\":\"".into(), after: "\"}}".into() };
        match self.storage.delete(&entry.key, entry.revision, body).await {
            Ok(_) | Err(Error::Conflict(_)) => {}
            // It is found to be left over when a server starts.
            Err(error) => tracing::warn!(%error, key = %entry.key, "a reservation was not removed"),
        }
    }

    /// Makes the reservations fit the stored Services: a server may have ended between the two.
    async fn repair_reservations(&self, services: &Listing) -> StatusResult<()> {
        for entry in &services.entries {
            let service = entry.value();
            self.reserve(&owner(&service), &resources(&service)).await?;
        }
        let now = self.env.now();
        for entry in self.storage.list(PREFIX, None, 0, 0).await.map_err(storage_failed)?.entries {
            let reservation = entry.value();
            let has = |service: &Arc<Entry>| {
                let service = service.value();
                reservation["owner"] == owner(&service)
                    && resources(&service).into_iter().any(|r| *key(r) == *entry.key)
            };
            let at = reservation["at"].as_str().and_then(|at| at.parse::<jiff::Timestamp>().ok());
            let age = at.map_or(IN_FLIGHT, |at| now.duration_since(at).try_into().unwrap_or_default());
            if age >= IN_FLIGHT && !services.entries.iter().any(has) {
                self.drop_reservation(&entry).await;
            }
        }
        Ok(())
    }
}

/// Learns what stored Services have; with a shared store, goes on learning it from what other servers write.
pub(super) async fn start(server: &Arc<ApiServer>) -> StatusResult<()> {
    let Some(kind) = server.kind("", "v1", "services") else { return Ok(()) };
    let prefix = kind_prefix(&kind, "");
    if !server.storage.is_shared() {
        let listing = server.storage.list(&prefix, None, 0, 0).await.map_err(storage_failed)?;
        listing.entries.iter().for_each(|entry| server.allocations.learn(&entry.value()));
        return Ok(());
    }
    let mut following = Following::new(server, "the addresses and ports that other servers gave away");
    let listing = following.add((), &prefix).await?;
    listing.entries.iter().for_each(|entry| server.allocations.learn(&entry.value()));
    server.repair_reservations(&listing).await?;
    tokio::spawn(run(following));
    Ok(())
}

async fn run(mut following: Following) {
    while let Some(Told { server, news, .. }) = following.next().await {
        match news {
            News::Changes(events) => {
                for event in events {
                    let now = (!event.deleted).then(|| event.entry.value());
                    server.allocations.changed(event.previous.map(|entry| entry.value()).as_deref(), now.as_deref());
                }
            }
            News::Everything(listing) => {
                server.allocations.relearn(listing.entries.iter().map(|entry| entry.value()));
            }
        }
    }
}
