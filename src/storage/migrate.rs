//! Moves everything from one store into another that is empty.

use std::path::Path;
use std::sync::Arc;

use futures_util::stream::{StreamExt, TryStreamExt, iter};
use serde_json::Value;

use super::etcd::{self, EtcdOptions};
use super::{Body, Durability, Entry, Error, Expect, Limits, Listing, Storage, open_etcd, sled};

/// Writes that are on their way to etcd at the same time.
const PARALLEL: usize = 32;

/// Copies everything into an etcd that holds nothing of a cluster. The objects get new revisions, because etcd counts by itself:
/// clients that watch begin anew. Returns how many objects there are.
///
/// # Errors
/// When the etcd is not empty or cannot be written. What was written until then stays there.
pub async fn into_etcd(from: &dyn Storage, options: &EtcdOptions) -> Result<usize, Error> {
    let to = open_etcd(options, Limits::default()).await?;
    let present = to.count("").await?;
    if present > 0 {
        return Err(Error::Backend(format!("the etcd has {present} objects below {} already", options.prefix())));
    }
    let listing = from.list("", None, 0, 0).await?;
    let writes = listing.entries.iter().map(|entry| {
        let to = to.clone();
        async move { to.put(&entry.key, Expect::Absent, Body::of(entry)?, Durability::Now).await }
    });
    iter(writes).buffer_unordered(PARALLEL).try_for_each(|_| async { Ok(()) }).await?;
    let result = check(&listing, to.count("").await?);
    to.close().await;
    result
}

/// Copies everything into a new database directory. Revisions stay what they were.
///
/// # Errors
/// When the directory is a database already or cannot be written.
pub async fn into_sled(from: &dyn Storage, dir: &Path) -> Result<usize, Error> {
    let listing = from.list("", None, 0, 0).await?;
    let (dir, entries) = (dir.to_owned(), listing.entries.clone());
    let import = tokio::task::spawn_blocking(move || sled::import(&dir, entries, listing.revision)).await;
    let written = import.map_err(|error| Error::Backend(error.to_string()))??;
    check(&listing, written)
}

/// Removes everything of a cluster from an etcd.
///
/// # Errors
/// When it cannot be reached.
pub async fn clear_etcd(options: &EtcdOptions) -> Result<(), Error> {
    etcd::clear(options).await
}

fn check(listing: &Listing, written: usize) -> Result<usize, Error> {
    let expected = listing.entries.len();
    if written == expected {
        Ok(written)
    } else {
        Err(Error::Backend(format!("{expected} objects were copied, {written} arrived: somebody else writes there")))
    }
}

impl Body {
    /// The halves of an entry's JSON around its resourceVersion.
    ///
    /// # Errors
    /// When the entry has none.
    fn of(entry: &Arc<Entry>) -> Result<Self, Error> {
        let needle = format!("\"resourceVersion\":\"{}\"", entry.revision).into_bytes();
        let (json, length) = (&entry.json, needle.len());
        // The same text may stand elsewhere, in an object that refers to this one: the right place is where a change of it
        // changes `metadata.resourceVersion`.
        for at in json.windows(length).enumerate().filter(|(_, part)| *part == needle).map(|(at, _)| at) {
            let end = at + length - 1;
            let begin = end - entry.revision.to_string().len();
            let body = Self { before: json.slice(..begin), after: json.slice(end..) };
            let other: Value = serde_json::from_slice(&body.at(0)).unwrap_or_default();
            if other["metadata"]["resourceVersion"] == "0" {
                return Ok(body);
            }
        }
        Err(Error::Backend(format!("the object {} does not say its resourceVersion", entry.key)))
    }
}

#[cfg(test)]
mod tests {
    use super::etcd::server::Server;
    use super::*;
    use crate::storage::{memory, open_sled};

    /// An object that also names its own revision where it does not count.
    fn body(number: usize) -> Body {
        let before = format!(
            "{{\"involvedObject\":{{\"resourceVersion\":\"{}\"}},\"metadata\":{{\"name\":\"{number}\",\"resourceVersion\":\"",
            number + 2
        );
        Body { before: before.into(), after: "\"},\"x\":1}".into() }
    }

    async fn filled() -> Arc<dyn Storage> {
        let storage = memory(Limits::default());
        for number in 0..1200 {
            let key = format!("/core/configmaps/default/{number}");
            storage.put(&key, Expect::Absent, body(number), Durability::Now).await.expect("free");
        }
        storage
    }

    #[tokio::test]
    async fn the_revision_is_found_where_it_counts() {
        let entry = filled().await.get("/core/configmaps/default/7").await.expect("open").expect("there");
        let halves = Body::of(&entry).expect("it has one");
        assert_eq!(halves.at(entry.revision), entry.json);
        assert_eq!((halves.before, halves.after), (body(7).before, body(7).after));
        let without = Arc::new(Entry::new("/a".into(), 3, "{\"metadata\":{}}".into()));
        assert!(Body::of(&without).is_err());
    }

    #[tokio::test]
    async fn a_new_database_gets_everything_at_the_same_revisions() {
        let (from, dir) = (filled().await, tempfile::tempdir().expect("a directory"));
        assert_eq!(into_sled(&*from, dir.path()).await.expect("copied"), 1200);
        assert!(into_sled(&*from, dir.path()).await.is_err(), "it is a database already");
        let to = open_sled(dir.path(), Limits::default()).expect("it opens");
        assert_eq!(to.revision().await.expect("open"), from.revision().await.expect("open"));
        let (old, new) = (from.list("", None, 0, 0).await.expect("now"), to.list("", None, 0, 0).await.expect("now"));
        assert!(old.entries.iter().map(|e| (&e.key, &e.json)).eq(new.entries.iter().map(|e| (&e.key, &e.json))));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn to_etcd_and_back_nothing_is_lost() {
        let Some(server) = Server::start() else { return };
        let (from, options) = (filled().await, server.options("/moved"));
        assert_eq!(into_etcd(&*from, &options).await.expect("copied"), 1200);
        let twice = into_etcd(&*from, &options).await.expect_err("it is not empty");
        assert!(twice.to_string().contains("has 1200 objects below /moved already"), "{twice}");
        let etcd = open_etcd(&options, Limits::default()).await.expect("it opens");
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(into_sled(&*etcd, dir.path()).await.expect("copied"), 1200);
        let back = open_sled(dir.path(), Limits::default()).expect("it opens");
        let names = async |storage: &Arc<dyn Storage>| -> Vec<_> {
            let listing = storage.list("", None, 0, 0).await.expect("now");
            listing.entries.iter().map(|entry| (entry.key.clone(), entry.value()["metadata"]["name"].clone())).collect()
        };
        assert_eq!(names(&back).await, names(&from).await);
        assert_eq!(back.revision().await.expect("open"), etcd.revision().await.expect("open"));
        clear_etcd(&options).await.expect("cleared");
        assert_eq!(etcd.count("").await.expect("open"), 0);
    }
}
