//! How the server follows the store for as long as both live: the one loop under everything that is kept up to date with objects.

use std::sync::{Arc, Weak};

use futures_util::future::select_all;
use tokio::sync::watch;

use super::ApiServer;
use super::registry::storage_failed;
use crate::api::StatusResult;
use crate::storage::{Follower, Listing, News, Storage, follow};

/// Follows one prefix or several; `T` tells them apart. It does not keep the server alive.
pub(crate) struct Following<T = ()> {
    server: Weak<ApiServer>,
    storage: Arc<dyn Storage>,
    /// What ends with it, for the log.
    what: &'static str,
    followers: Vec<(T, Follower)>,
    closing: watch::Receiver<bool>,
}

/// News of one prefix.
pub(crate) struct Told<T = ()> {
    pub server: Arc<ApiServer>,
    pub of: T,
    pub news: News,
}

impl<T: Copy> Following<T> {
    /// Follows nothing yet. `what` is kept up to date by it, says the log when the storage fails.
    pub fn new(server: &Arc<ApiServer>, what: &'static str) -> Self {
        let (storage, closing) = (Arc::clone(&server.storage), server.closing.subscribe());
        Self { server: Arc::downgrade(server), storage, what, followers: Vec::new(), closing }
    }

    /// Follows a prefix as well. Returns what is there now.
    ///
    /// # Errors
    /// When the storage fails.
    pub async fn add(&mut self, of: T, prefix: &str) -> StatusResult<Listing> {
        let (follower, listing) = follow(&self.storage, prefix).await.map_err(storage_failed)?;
        self.followers.push((of, follower));
        Ok(listing)
    }

    /// The server, unless it has gone.
    pub fn server(&self) -> Option<Arc<ApiServer>> {
        self.server.upgrade()
    }

    /// The revision up to which everything has been told.
    pub fn seen(&self) -> u64 {
        self.followers.iter().map(|(_, follower)| follower.seen()).min().unwrap_or_default()
    }

    /// Waits for news; `None` when the server closes or goes, or its storage has failed: there will be no more.
    pub async fn next(&mut self) -> Option<Told<T>> {
        let next = self.followers.iter_mut().map(|(of, follower)| Box::pin(async { (*of, follower.next().await) }));
        let ((of, news), at, _) = tokio::select! {
            told = select_all(next) => told,
            () = super::closed(&mut self.closing) => return None,
        };
        // Who was heard is asked last: nobody who talks all the time drowns the others.
        self.followers[at..].rotate_left(1);
        match news {
            Ok(news) => Some(Told { server: self.server()?, of, news }),
            Err(error) => {
                tracing::error!(%error, "{}: not kept up to date any more", self.what);
                None
            }
        }
    }
}

/// Up to which revision something is known.
pub(crate) struct Seen(watch::Sender<u64>);

impl Default for Seen {
    /// Nobody follows, and nobody has to wait.
    fn default() -> Self {
        Self(watch::Sender::new(u64::MAX))
    }
}

impl Seen {
    /// Everything up to a revision is known.
    pub fn reach(&self, revision: u64) {
        self.0.send_replace(revision);
    }

    /// Nobody follows any more.
    pub fn end(&self) {
        self.reach(u64::MAX);
    }

    /// Waits until what was written up to a revision is known, so that a writer's next request is judged by what it wrote.
    pub async fn wait_for(&self, revision: u64) {
        // The sender is here, so it cannot be gone.
        let _ = self.0.subscribe().wait_for(|seen| *seen >= revision).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::apiserver::testing;
    use crate::env::Env;
    use crate::storage::{Body, Durability, Expect, Limits, memory};

    async fn put(storage: &Arc<dyn Storage>, key: &str) {
        let body = Body { before: "\"".into(), after: "\"".into() };
        storage.put(key, Expect::Absent, body, Durability::Now).await.expect("the key is free");
    }

    #[tokio::test]
    async fn prefixes_take_turns_until_the_server_goes() {
        let storage = memory(Limits::default());
        let world = testing::start(Arc::clone(&storage), Env::real()).await;
        let mut following = Following::new(&world.server, "the test");
        for of in ["/x/a/", "/x/b/"] {
            assert!(following.add(of, of).await.expect("open").entries.is_empty());
        }
        let mut next = async || {
            let told = following.next().await?;
            let News::Changes(events) = told.news else { panic!("nothing was lost") };
            Some((told.of, events.len()))
        };
        for key in ["/x/a/1", "/x/b/1"] {
            put(&storage, key).await;
        }
        assert_eq!(next().await, Some(("/x/a/", 1)));
        put(&storage, "/x/a/2").await;
        assert_eq!(next().await, Some(("/x/b/", 1)), "it was not heard yet");
        assert_eq!(next().await, Some(("/x/a/", 1)));
        world.server.closing.send_replace(true);
        assert_eq!(next().await, None);
    }

    #[tokio::test]
    async fn a_failed_storage_ends_it() {
        let storage = memory(Limits::default());
        let world = testing::start(Arc::clone(&storage), Env::real()).await;
        let mut following = Following::new(&world.server, "the test");
        following.add((), "/x/").await.expect("open");
        storage.close().await;
        assert!(following.next().await.is_none());
    }

    #[tokio::test]
    async fn nobody_waits_for_who_does_not_follow() {
        let seen = Seen::default();
        seen.wait_for(7).await;
        seen.reach(6);
        assert_eq!(seen.wait_for(7).now_or_never(), None);
        seen.reach(7);
        seen.wait_for(7).await;
        seen.end();
        seen.wait_for(8).await;
    }
}
