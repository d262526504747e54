//! Versioned key-value storage: etcd's five calls and a watch. Knows no kinds.
//!
//! One revision counter for everything. Entries are encoded once: the stored bytes are what every reader and watcher gets.
//!
//! `state` holds what readers see, `engine` orders and publishes writes, `sled` is the durable log below it and `memory` is
//! the engine without a disk; `etcd` is a server of its own instead of both. All pass `contract`.

#[cfg(test)]
mod contract;
mod cursor;
mod engine;
mod etcd;
mod follow;
mod memory;
mod migrate;
mod record;
mod sled;
mod state;

pub use etcd::{EtcdOptions, claim_etcd, open_etcd};
pub use follow::{Follower, News, follow};
pub use memory::memory;
pub use migrate::{clear_etcd, into_etcd, into_sled};
pub use sled::open_sled;
pub use state::Limits;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;

/// A stored object at one revision.
#[derive(Debug)]
pub struct Entry {
    /// The key, such as `/apps/deployments/default/web`.
    pub key: Arc<str>,
    /// The revision of the last change of this key.
    pub revision: u64,
    /// The object as JSON, with its resourceVersion.
    pub json: Bytes,
    parsed: Mutex<Parsed>,
}

/// The parsed object takes ten times the memory of its JSON: it is kept only as long as watchers are likely to ask for it.
#[derive(Debug)]
enum Parsed {
    Never,
    Once(Option<Arc<Value>>),
}

impl Entry {
    /// An entry whose JSON is complete.
    pub fn new(key: Arc<str>, revision: u64, json: Bytes) -> Self {
        Self { key, revision, json, parsed: Mutex::new(Parsed::Never) }
    }
    /// The object; while its last change is news ([`Entry::is_news`]) it is parsed once and shared.
    pub fn value(&self) -> Arc<Value> {
        let parse = || Arc::new(serde_json::from_slice(&self.json).expect("only encoded JSON values are stored"));
        match &mut *self.parsed.lock().expect(UNPOISONED) {
            Parsed::Never => parse(),
            Parsed::Once(value) => value.get_or_insert_with(parse).clone(),
        }
    }
    /// Says whether watchers may still ask for this change.
    fn is_news(&self, is: bool) {
        *self.parsed.lock().expect(UNPOISONED) = if is { Parsed::Once(None) } else { Parsed::Never };
    }
}

const UNPOISONED: &str = "parsing does not panic";

/// JSON in two halves between which the decimal revision is written (into `metadata.resourceVersion`), so that
/// encoding happens outside the lock.
#[derive(Clone, Debug)]
pub struct Body {
    /// Up to and including the opening quote of the resourceVersion.
    pub before: Bytes,
    /// From the closing quote on.
    pub after: Bytes,
}

impl Body {
    /// The complete JSON at a revision.
    pub fn at(&self, revision: u64) -> Bytes {
        let digits = revision.to_string();
        let mut json = Vec::with_capacity(self.before.len() + digits.len() + self.after.len());
        json.extend_from_slice(&self.before);
        json.extend_from_slice(digits.as_bytes());
        json.extend_from_slice(&self.after);
        json.into()
    }
}

/// What a write expects of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key's entry has this revision.
    Revision(u64),
}

/// When a write must be on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before it is acknowledged and before anybody sees it.
    Now,
    /// With the next durable write or at shutdown (Events, Lease renewals).
    Lazy,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The expectation did not hold; the entry that is there instead, if any.
    #[error("the precondition failed")]
    Conflict(Option<Arc<Entry>>),
    /// The revision is older than what is kept.
    #[error("revision {asked} is compacted, the oldest kept is {oldest}")]
    Compacted {
        /// What was asked for.
        asked: u64,
        /// The oldest that can still be had.
        oldest: u64,
    },
    /// The revision has not been reached: it comes from another store, or from the future.
    #[error("revision {asked} is too large, the current one is {current}")]
    TooLarge {
        /// What was asked for.
        asked: u64,
        /// The newest there is.
        current: u64,
    },
    /// The disk or the database failed, or the storage is closed.
    #[error("storage failed: {0}")]
    Backend(String),
}

/// A part of the keys at one revision.
#[derive(Debug, Default)]
pub struct Listing {
    /// In the order of their keys.
    pub entries: Vec<Arc<Entry>>,
    /// The revision that the listing shows (the store's current one unless an older one was asked for).
    pub revision: u64,
    /// Whether there are more entries after the limit.
    pub more: bool,
    /// How many entries follow beyond the limit.
    pub remaining: usize,
}

/// A change of one key.
#[derive(Clone, Debug)]
pub struct Event {
    /// The revision of the change (for a delete: of the delete).
    pub revision: u64,
    /// The new entry; for a delete the last one, its JSON re-encoded with the delete's revision.
    pub entry: Arc<Entry>,
    /// The entry before the change; `None` for a create.
    pub previous: Option<Arc<Entry>>,
    /// Whether the key was deleted.
    pub deleted: bool,
}

/// The five calls and a watch.
#[async_trait]
pub trait Storage: Send + Sync + 'static {
    /// The entry of a key.
    async fn get(&self, key: &str) -> Result<Option<Arc<Entry>>, Error>;
    /// The entries whose keys begin with `prefix`, from the key after `after`, at most `limit` (0: all), as of
    /// `revision` (0: now).
    ///
    /// # Errors
    /// [`Error::Compacted`] when `revision` is no longer kept, [`Error::TooLarge`] when it has not been reached.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize, revision: u64) -> Result<Listing, Error>;
    /// How many keys begin with `prefix`.
    async fn count(&self, prefix: &str) -> Result<usize, Error>;
    /// Creates or replaces a key.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the expectation does not hold.
    async fn put(&self, key: &str, expect: Expect, body: Body, durability: Durability) -> Result<Arc<Entry>, Error>;
    /// Deletes a key that has `revision`. Returns the event's entry: the last object with the delete's revision.
    /// `body` is the last object, for that re-encoding.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the key does not exist or has another revision.
    async fn delete(&self, key: &str, revision: u64, body: Body) -> Result<Arc<Entry>, Error>;
    /// [`Storage::delete`] that need not be on disk before it is seen (expired Events).
    async fn delete_lazily(&self, key: &str, revision: u64, body: Body) -> Result<Arc<Entry>, Error> {
        self.delete(key, revision, body).await
    }
    /// The changes below `prefix` after `revision` (0: from now on), in order, each once.
    ///
    /// # Errors
    /// [`Error::Compacted`] when `revision` is no longer kept.
    async fn watch(&self, prefix: &str, revision: u64) -> Result<Box<dyn Watch>, Error>;
    /// The current revision.
    async fn revision(&self) -> Result<u64, Error>;
    /// Whether the store can do its work.
    ///
    /// # Errors
    /// When it cannot be read, or cannot be written since a write failed.
    async fn health(&self) -> Result<(), Error> {
        self.revision().await.map(drop)
    }
    /// Whether other processes write to the same store.
    fn is_shared(&self) -> bool {
        false
    }
    /// Makes everything durable and stops writing. Calls after it fail.
    async fn close(&self);
}

/// A cursor into the events.
#[async_trait]
pub trait Watch: Send {
    /// Waits until something happened below the prefix and returns all of it, at least one event.
    ///
    /// # Errors
    /// [`Error::Compacted`] when this reader was so slow that events were lost.
    async fn next(&mut self) -> Result<Vec<Event>, Error>;
    /// The revision up to which everything below the prefix has been returned (for bookmarks).
    fn seen(&self) -> u64;
}
