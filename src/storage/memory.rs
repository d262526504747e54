//! The storage that forgets: for tests and simulations.

use std::sync::Arc;

use super::Storage;
use super::engine::Engine;
use super::state::{Limits, State};

/// An empty storage in memory. Its first write has revision 2, as etcd's has.
pub fn memory(limits: Limits) -> Arc<dyn Storage> {
    let state = State::new(Default::default(), 1, limits);
    Arc::new(Engine::new(state, None).expect("only the committer's thread can be missing, and there is none"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Body, Durability, Expect};

    #[tokio::test]
    async fn an_object_is_parsed_once_while_it_is_news() {
        let storage = memory(Limits { events: 2, bytes: 1 << 20 });
        let put = async |key: &str| {
            let body = Body { before: "{\"at\":\"".into(), after: "\"}".into() };
            storage.put(key, Expect::Absent, body, Durability::Now).await.expect("the key is free")
        };
        let entry = put("/a").await;
        let value = entry.value();
        assert!(Arc::ptr_eq(&value, &entry.value()) && value["at"] == entry.revision.to_string());
        put("/b").await;
        put("/c").await;
        assert_eq!(entry.value(), value);
        drop(value);
        assert_eq!(Arc::strong_count(&entry.value()), 1, "nobody keeps it any more");
    }
}
