//! A real etcd as the store, for clusters that outgrow one machine: reads and writes are etcd's own calls, watches are served
//! from the same ring of events as with sled, which one watch of etcd fills ([`follow`]).
//!
//! Several servers may share an etcd: whoever writes, all of them see it, and a read sees every write that was acknowledged
//! before it anywhere.

mod follow;
mod options;
mod record;
#[cfg(test)]
pub(super) mod server;

use std::sync::Arc;

use async_trait::async_trait;
use etcd_client::{Client, Compare, CompareOp, DeleteOptions, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse};
use tokio::task::JoinHandle;

use super::cursor::{Cursor, closed};
use super::state::{Limits, Shared};
use super::{Body, Durability, Entry, Error, Expect, Listing, Storage, Watch};
use follow::Progress;
pub use options::EtcdOptions;

/// Entries that are fetched in one call when everything is read.
const PAGE: usize = 500;

/// The store: a connection, and the events that came over it.
struct Etcd {
    client: Client,
    /// What all keys of this cluster begin with.
    prefix: String,
    shared: Arc<Shared>,
    progress: tokio::sync::watch::Receiver<Progress>,
    /// The oldest revision whose events were ever kept here; etcd itself may remember more.
    opened_at: u64,
    follower: JoinHandle<()>,
}

/// Connects to an etcd and reads what is there.
///
/// # Errors
/// When no endpoint answers, the certificates do not fit, or what is stored was not written by mini.
pub async fn open_etcd(options: &EtcdOptions, limits: Limits) -> Result<Arc<dyn Storage>, Error> {
    let client = options.connect().await?;
    let prefix = options.prefix();
    let state = follow::load(&client, &prefix, limits).await?;
    let opened_at = state.revision();
    let shared = Arc::new(Shared::new(state));
    let (told, progress) = tokio::sync::watch::channel(Progress { revision: opened_at, connected: true });
    let follower = follow::Follower::new(client.clone(), prefix.clone(), limits, shared.clone(), told);
    let follower = tokio::spawn(follower.run());
    Ok(Arc::new(Etcd { client, prefix, shared, progress, opened_at, follower }))
}

/// Removes everything below the prefix, and who owned it.
pub(super) async fn clear(options: &EtcdOptions) -> Result<(), Error> {
    let (client, prefix) = (options.connect().await?, options.prefix());
    let (start, end) = record::range(&prefix, "", None);
    let all = DeleteOptions::new().with_range(end);
    client.kv_client().delete(start, Some(all)).await.map_err(failed)?;
    client.kv_client().delete(prefix, None).await.map_err(failed)?;
    Ok(())
}

/// Writes down that the cluster below the prefix is `owner`'s: two control planes on one etcd would undo each other's work.
///
/// # Errors
/// When it is somebody else's, or etcd cannot be reached.
pub async fn claim_etcd(options: &EtcdOptions, owner: &str) -> Result<(), Error> {
    let (client, prefix) = (options.connect().await?, options.prefix());
    let transaction = Txn::new()
        .when([Compare::mod_revision(prefix.as_str(), CompareOp::Equal, 0)])
        .and_then([TxnOp::put(prefix.as_str(), owner, None)])
        .or_else([TxnOp::get(prefix.as_str(), None)]);
    let answer = client.kv_client().txn(transaction).await.map_err(failed)?;
    let present = answer.op_responses().into_iter().find_map(|response| match response {
        TxnOpResponse::Get(mut found) => found.take_kvs().pop(),
        _ => None,
    });
    match present {
        Some(other) if !answer.succeeded() && other.value() != owner.as_bytes() => Err(Error::Backend(format!(
            "the cluster below {prefix} in this etcd belongs to {}; another --datastore-prefix makes another cluster, and if \
             its owner is gone for good, 'etcdctl del {prefix}' frees it",
            String::from_utf8_lossy(other.value())
        ))),
        _ => Ok(()),
    }
}

impl Etcd {
    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.shared.read().closed { Err(closed()) } else { Ok(()) }
    }

    fn entry(&self, pair: &KeyValue) -> Result<Arc<Entry>, Error> {
        record::entry(&self.prefix, pair).map(Arc::new)
    }

    /// Does `then` if the key was last changed at `expected` (0: does not exist). Returns the revision of the change, or what
    /// is there instead.
    async fn write(&self, key: &str, expected: u64, then: TxnOp) -> Result<u64, Error> {
        self.check_open()?;
        let key = self.full(key);
        let transaction = Txn::new()
            .when([Compare::mod_revision(key.clone(), CompareOp::Equal, signed(expected))])
            .and_then([then])
            .or_else([TxnOp::get(key, None)]);
        let answer = self.client.kv_client().txn(transaction).await.map_err(failed)?;
        if !answer.succeeded() {
            let there = answer.op_responses().into_iter().find_map(|response| match response {
                TxnOpResponse::Get(mut found) => found.take_kvs().pop(),
                _ => None,
            });
            return Err(Error::Conflict(there.map(|pair| self.entry(&pair)).transpose()?));
        }
        let revision = unsigned(answer.header().map(etcd_client::ResponseHeader::revision));
        self.shown(revision).await;
        Ok(revision)
    }

    /// Waits until watchers here have been shown `revision`. While the connection is lost nobody waits: the write stands.
    async fn shown(&self, revision: u64) {
        let mut progress = self.progress.clone();
        // An error means that the store was closed meanwhile.
        let _ = progress.wait_for(|progress| progress.revision >= revision || !progress.connected).await;
    }

    /// How etcd's refusal of a revision reads here.
    async fn at_revision(&self, error: etcd_client::Error, asked: u64) -> Error {
        let text = error.to_string();
        if text.contains("required revision has been compacted") {
            return Error::Compacted { asked, oldest: self.shared.read().floor() };
        }
        if text.contains("required revision is a future revision")
            && let Ok(current) = self.revision().await
        {
            return Error::TooLarge { asked, current };
        }
        failed(error)
    }
}

#[async_trait]
impl Storage for Etcd {
    async fn get(&self, key: &str) -> Result<Option<Arc<Entry>>, Error> {
        self.check_open()?;
        let mut found = self.client.kv_client().get(self.full(key), None).await.map_err(failed)?;
        found.take_kvs().pop().map(|pair| self.entry(&pair)).transpose()
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize, revision: u64) -> Result<Listing, Error> {
        self.check_open()?;
        let floor = self.shared.read().floor();
        if revision != 0 && revision < floor && floor > self.opened_at {
            return Err(Error::Compacted { asked: revision, oldest: floor });
        }
        let (start, end) = record::range(&self.prefix, prefix, after);
        let mut options = GetOptions::new().with_range(end).with_revision(signed(revision));
        options = options.with_limit(i64::try_from(limit).unwrap_or(i64::MAX));
        let mut found = match self.client.kv_client().get(start, Some(options)).await {
            Ok(found) => found,
            Err(error) => return Err(self.at_revision(error, revision).await),
        };
        let current = unsigned(found.header().map(etcd_client::ResponseHeader::revision));
        let total = usize::try_from(found.count()).unwrap_or_default();
        let entries = found.take_kvs().iter().map(|pair| self.entry(pair)).collect::<Result<Vec<_>, _>>()?;
        let remaining = total.saturating_sub(entries.len());
        let revision = if revision == 0 { current } else { revision };
        Ok(Listing { revision, more: remaining > 0, remaining, entries })
    }

    async fn count(&self, prefix: &str) -> Result<usize, Error> {
        self.check_open()?;
        let (start, end) = record::range(&self.prefix, prefix, None);
        let options = GetOptions::new().with_range(end).with_count_only();
        let found = self.client.kv_client().get(start, Some(options)).await.map_err(failed)?;
        Ok(usize::try_from(found.count()).unwrap_or_default())
    }

    async fn put(&self, key: &str, expect: Expect, body: Body, _: Durability) -> Result<Arc<Entry>, Error> {
        let expected = match expect {
            Expect::Absent => 0,
            Expect::Revision(revision) => revision,
        };
        let then = TxnOp::put(self.full(key), record::encode(&body), None);
        let revision = self.write(key, expected, then).await?;
        Ok(Arc::new(Entry::new(key.into(), revision, body.at(revision))))
    }

    async fn delete(&self, key: &str, revision: u64, body: Body) -> Result<Arc<Entry>, Error> {
        // etcd would take 0 for "does not exist", and delete nothing successfully.
        if revision == 0 {
            return Err(Error::Conflict(self.get(key).await?));
        }
        let gone = self.write(key, revision, TxnOp::delete(self.full(key), None)).await?;
        Ok(Arc::new(Entry::new(key.into(), gone, body.at(gone))))
    }

    async fn watch(&self, prefix: &str, revision: u64) -> Result<Box<dyn Watch>, Error> {
        self.check_open()?;
        let revision = if revision == 0 { self.revision().await? } else { revision };
        Ok(Box::new(Cursor::open(&self.shared, prefix, revision)?))
    }

    async fn revision(&self) -> Result<u64, Error> {
        self.check_open()?;
        let options = GetOptions::new().with_count_only();
        let found = self.client.kv_client().get(self.prefix.as_str(), Some(options)).await.map_err(failed)?;
        Ok(unsigned(found.header().map(etcd_client::ResponseHeader::revision)))
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn close(&self) {
        let wake = self.shared.write().close();
        self.follower.abort();
        wake.wake();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// etcd's numbers are signed.
fn signed(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn unsigned(revision: Option<i64>) -> u64 {
    revision.and_then(|revision| u64::try_from(revision).ok()).unwrap_or_default()
}

fn failed(error: etcd_client::Error) -> Error {
    Error::Backend(format!("etcd: {error}"))
}

#[cfg(test)]
mod tests;
