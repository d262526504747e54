//! Follows everything below a prefix for as long as the store lives: first all of it, then its changes, and all of it again
//! when changes were lost.

use std::sync::Arc;

use super::{Error, Event, Listing, Storage, Watch};

/// What a [`Follower`] has to tell.
pub enum News {
    /// What has changed, in order.
    Changes(Vec<Event>),
    /// What there is now: changes before it were lost.
    Everything(Listing),
}

impl News {
    /// The revision up to which it tells.
    pub fn revision(&self) -> u64 {
        match self {
            Self::Changes(events) => events.last().expect("there is at least one").revision,
            Self::Everything(listing) => listing.revision,
        }
    }
}

/// See [`follow`].
pub struct Follower {
    storage: Arc<dyn Storage>,
    prefix: String,
    watch: Box<dyn Watch>,
}

/// Begins to follow `prefix`. Returns what is there now as well.
///
/// # Errors
/// When the storage fails.
pub async fn follow(storage: &Arc<dyn Storage>, prefix: &str) -> Result<(Follower, Listing), Error> {
    let (watch, listing) = begin(storage, prefix).await?;
    Ok((Follower { storage: Arc::clone(storage), prefix: prefix.to_owned(), watch }, listing))
}

async fn begin(storage: &Arc<dyn Storage>, prefix: &str) -> Result<(Box<dyn Watch>, Listing), Error> {
    loop {
        let listing = storage.list(prefix, None, 0, 0).await?;
        match storage.watch(prefix, listing.revision).await {
            Ok(watch) => return Ok((watch, listing)),
            // So much was written since the list.
            Err(Error::Compacted { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}

impl Follower {
    /// The revision up to which everything has been told.
    pub fn seen(&self) -> u64 {
        self.watch.seen()
    }

    /// Waits for the next news.
    ///
    /// # Errors
    /// When the storage fails or is closed: there will be no more.
    pub async fn next(&mut self) -> Result<News, Error> {
        match self.watch.next().await {
            Ok(events) => Ok(News::Changes(events)),
            Err(Error::Compacted { .. }) => {
                let (watch, listing) = begin(&self.storage, &self.prefix).await?;
                self.watch = watch;
                Ok(News::Everything(listing))
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Body, Durability, Expect, Limits, memory};

    #[tokio::test]
    async fn who_was_too_slow_gets_everything() {
        let storage = memory(Limits { events: 4, bytes: 1 << 20 });
        let body = || Body { before: "\"".into(), after: "\"".into() };
        let put = async |key: &str| {
            storage.put(key, Expect::Absent, body(), Durability::Now).await.expect("the key is free");
        };
        put("/a/0").await;
        let (mut follower, listing) = follow(&storage, "/a/").await.expect("open");
        assert_eq!(listing.entries.len(), 1);
        put("/a/1").await;
        assert!(matches!(follower.next().await, Ok(News::Changes(events)) if events.len() == 1));
        for number in 2..9 {
            put(&format!("/a/{number}")).await;
        }
        assert!(matches!(follower.next().await, Ok(News::Everything(listing)) if listing.entries.len() == 9));
        put("/a/9").await;
        assert!(matches!(follower.next().await, Ok(News::Changes(events)) if events.len() == 1));
        storage.close().await;
        assert!(follower.next().await.is_err());
    }
}
