//! Events live for an hour after their last change. One timer stands on the earliest deadline.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Context, kind_prefix};
use crate::api::{Kind, StatusResult, meta};
use crate::apiserver::following::{Following, Told};
use crate::apiserver::{ApiServer, User};
use crate::storage::{Entry, Event, Listing, News};

/// kube-apiserver's `--event-ttl`.
const TTL: Duration = Duration::from_secs(3600);

/// When which event ends. Deadlines only grow, so that a queue is enough; a key's later deadline is in `latest`.
#[derive(Default)]
struct Deadlines {
    queue: VecDeque<(Instant, String, u64)>,
    latest: HashMap<String, u64>,
}

impl Deadlines {
    /// Those of stored events; what is older than an hour is due at once.
    fn of(listing: &Listing, wall: Timestamp) -> Self {
        let now = Instant::now();
        let deadline = |entry: &Entry| now + TTL.saturating_sub(age(&entry.value(), wall));
        let mut known: Vec<_> =
            listing.entries.iter().map(|entry| (deadline(entry), &*entry.key, entry.revision)).collect();
        known.sort();
        let mut deadlines = Self::default();
        for (at, key, revision) in known {
            deadlines.add(at, key, revision);
        }
        deadlines
    }
    fn follow(&mut self, events: &[Event]) {
        let at = Instant::now() + TTL;
        for event in events {
            if event.deleted {
                self.forget(&event.entry.key);
            } else {
                self.add(at, &event.entry.key, event.revision);
            }
        }
    }
    fn add(&mut self, at: Instant, key: &str, revision: u64) {
        self.latest.insert(key.to_owned(), revision);
        self.queue.push_back((at, key.to_owned(), revision));
    }
    fn forget(&mut self, key: &str) {
        self.latest.remove(key);
    }
    /// The first deadline that still counts.
    fn first(&mut self) -> Option<Instant> {
        while let Some((at, key, revision)) = self.queue.front() {
            if self.latest.get(key) == Some(revision) {
                return Some(*at);
            }
            self.queue.pop_front();
        }
        None
    }
    /// The keys whose time has come.
    fn due(&mut self, now: Instant) -> Vec<String> {
        let mut keys = Vec::new();
        while self.first().is_some_and(|at| at <= now) {
            if let Some((_, key, _)) = self.queue.pop_front() {
                self.latest.remove(&key);
                keys.push(key);
            }
        }
        keys
    }
}

/// Begins to follow the events.
pub(crate) async fn follow(server: &Arc<ApiServer>) -> StatusResult<()> {
    let Some(kind) = server.kind("", "v1", "events") else { return Ok(()) };
    let mut following = Following::new(server, "the end of events");
    let deadlines = Deadlines::of(&following.add((), &kind_prefix(&kind, "")).await?, server.env.now());
    tokio::spawn(run(kind, deadlines, following));
    Ok(())
}

async fn run(kind: Arc<Kind>, mut deadlines: Deadlines, mut following: Following) {
    loop {
        let first = deadlines.first();
        let timer = async {
            match first {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            told = following.next() => match told {
                Some(Told { news: News::Changes(events), .. }) => deadlines.follow(&events),
                Some(Told { server, news: News::Everything(listing), .. }) => {
                    deadlines = Deadlines::of(&listing, server.env.now());
                }
                None => return,
            },
            () = timer => {
                let Some(server) = following.server() else { return };
                for key in deadlines.due(Instant::now()) {
                    expire(&server, &kind, &key).await;
                }
            }
        }
    }
}

async fn expire(server: &ApiServer, kind: &Arc<Kind>, key: &str) {
    let Ok(Some(entry)) = server.storage.get(key).await else { return };
    let object = entry.value();
    let user = User::master("system:apiserver");
    let context = Context::new(&user);
    let (namespace, name) = (meta::namespace(&object), meta::name(&object));
    if let Err(status) = server.delete(&context, kind, namespace, name, &Default::default()).await
        && !status.is_not_found()
    {
        tracing::warn!(%status, key, "cannot remove an event whose time is over");
    }
}

fn age(event: &serde_json::Value, now: Timestamp) -> Duration {
    let times = [
        &event["lastTimestamp"],
        &event["series"]["lastObservedTime"],
        &event["eventTime"],
        &event["metadata"]["creationTimestamp"],
    ];
    let last = times.iter().filter_map(|t| t.as_str()?.parse::<Timestamp>().ok()).max();
    last.map_or(Duration::ZERO, |last| Duration::from_secs(now.duration_since(last).as_secs().max(0).unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_happened_again_lives_longer() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut deadlines = Deadlines::default();
        deadlines.add(at(10), "a", 1);
        deadlines.add(at(11), "b", 2);
        deadlines.add(at(12), "a", 3);
        assert_eq!(deadlines.first(), Some(at(11)));
        assert_eq!(deadlines.due(at(11)), ["b"]);
        deadlines.forget("a");
        assert_eq!((deadlines.first(), deadlines.due(at(99))), (None, Vec::new()));
    }

    #[test]
    fn the_age_counts_from_the_last_sight() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().expect("a time");
        let event = serde_json::json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "lastTimestamp": "2026-01-01T00:59:00Z", "eventTime": null,
        });
        assert_eq!(age(&event, now), Duration::from_secs(60));
    }
}
