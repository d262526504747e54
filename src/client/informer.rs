//! Keeps a [`Cache`] equal to what the API has: list, watch, open again at the end, list again after 410.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::Value;

use super::typed::Object;
use super::{Api, Cache, ListOptions, WatchEvent, pause};
use crate::api::{Gvr, Status};

/// The waits after consecutive errors begin here and double (client-go's reflector: 800 ms to 30 s; ours is next door).
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Runs until it is dropped. `namespace` is empty for all; `options` may carry selectors.
pub async fn run<T: Object>(api: Arc<dyn Api>, gvr: Gvr, namespace: String, options: ListOptions, cache: Cache<T>) {
    let mut wait = FIRST_WAIT;
    // Where the next watch starts; empty: list first.
    let mut version = String::new();
    loop {
        match step(&*api, &gvr, &namespace, &options, &cache, &mut version).await {
            Ok(true) => wait = FIRST_WAIT,
            // An idle watch may end by its timeout; one that ends at once must not be opened in a tight loop.
            Ok(false) => {
                wait = FIRST_WAIT;
                tokio::time::sleep(FIRST_WAIT).await;
            }
            Err(status) if status.code == 410 => version.clear(),
            Err(status) => {
                tracing::warn!(resource = ?gvr, error = %status, "list and watch failed, trying again in {wait:?}");
                pause(&*api, wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }
    }
}

/// One list (when needed) and one watch until it ends. Returns whether the watch said anything.
async fn step<T: Object>(
    api: &dyn Api,
    gvr: &Gvr,
    namespace: &str,
    options: &ListOptions,
    cache: &Cache<T>,
    version: &mut String,
) -> Result<bool, Status> {
    if version.is_empty() {
        let list = api.list(gvr, namespace, options).await?;
        let objects = list.items.iter().filter_map(|item| parse(gvr, item)).collect();
        cache.replace(objects, list.resource_version.parse().unwrap_or_default());
        *version = list.resource_version;
    }
    let from = ListOptions { resource_version: version.clone(), bookmarks: true, ..options.clone() };
    let mut events = api.watch(gvr, namespace, &from).await?;
    let mut news = false;
    while let Some(event) = events.next().await {
        news = true;
        match event? {
            WatchEvent::Added(value) | WatchEvent::Modified(value) => {
                *version = crate::api::meta::resource_version(&value).to_owned();
                if let Some(object) = parse::<T>(gvr, &value) {
                    cache.put(object);
                }
            }
            WatchEvent::Deleted(value) => {
                *version = crate::api::meta::resource_version(&value).to_owned();
                if let Some(object) = parse::<T>(gvr, &value) {
                    cache.remove(&object);
                }
            }
            WatchEvent::Bookmark(at) => {
                cache.saw(at.parse().unwrap_or_default());
                *version = at;
            }
        }
    }
    Ok(news)
}

fn parse<T: Object>(gvr: &Gvr, value: &Value) -> Option<Arc<T>> {
    match T::parse(value) {
        Ok(object) => Some(Arc::new(object)),
        Err(error) => {
            tracing::warn!(resource = ?gvr, name = crate::api::meta::name(value), %error, "an object that does not have its kind's shape is ignored");
            None
        }
    }
}
