//! Fills the ring of events from one watch of etcd, and brings it up again when the connection was lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, EventType, GetOptions, WatchOptions, WatchResponse};
use tokio::sync::watch;

use super::super::state::{Limits, Shared, State};
use super::super::{Entry, Error, Event};
use super::{PAGE, failed, record, signed, unsigned};

/// How long to wait before a lost connection is tried again: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// etcd forgets the past when so many events are behind us that nobody here can ask for.
const COMPACT_AFTER: u64 = 10_000;

/// How far the events are, and whether more will come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Everything up to here is in the ring.
    pub revision: u64,
    /// Whether etcd is being watched.
    pub connected: bool,
}

/// Everything below the prefix, read page by page at one revision.
pub async fn load(client: &Client, prefix: &str, limits: Limits) -> Result<State, Error> {
    let (entries, revision) = read_all(client, prefix).await?;
    Ok(State::new(entries, revision, limits))
}

async fn read_all(client: &Client, prefix: &str) -> Result<(BTreeMap<Arc<str>, Arc<Entry>>, u64), Error> {
    let mut entries = BTreeMap::new();
    let mut revision = 0;
    let mut after: Option<Arc<str>> = None;
    loop {
        let (start, end) = record::range(prefix, "/", after.as_deref());
        let limit = i64::try_from(PAGE).expect("a small number");
        let options = GetOptions::new().with_range(end).with_limit(limit).with_revision(signed(revision));
        let mut page = client.kv_client().get(start, Some(options)).await.map_err(failed)?;
        if revision == 0 {
            revision = unsigned(page.header().map(etcd_client::ResponseHeader::revision));
        }
        let more = page.more();
        for pair in page.take_kvs() {
            let entry = Arc::new(record::entry(prefix, &pair)?);
            after = Some(entry.key.clone());
            entries.insert(entry.key.clone(), entry);
        }
        if !more {
            return Ok((entries, revision));
        }
    }
}

/// The task that follows etcd.
pub struct Follower {
    client: Client,
    prefix: String,
    limits: Limits,
    shared: Arc<Shared>,
    told: watch::Sender<Progress>,
    compacted: u64,
}

/// Why a watch ended.
enum Ended {
    /// The connection was lost.
    Lost(String),
    /// etcd has forgotten what comes next.
    Compacted,
}

impl Follower {
    pub fn new(
        client: Client,
        prefix: String,
        limits: Limits,
        shared: Arc<Shared>,
        told: watch::Sender<Progress>,
    ) -> Self {
        Self { client, prefix, limits, shared, told, compacted: 0 }
    }

    /// Follows until it is aborted.
    pub async fn run(mut self) {
        let mut delay = RETRY.0;
        loop {
            let before = self.told.borrow().revision;
            let ended = self.follow().await;
            self.told.send_modify(|progress| progress.connected = false);
            let result = match ended {
                Ended::Compacted => self.reload().await,
                Ended::Lost(error) => Err(error),
            };
            match result {
                Ok(()) => continue,
                Err(error) => tracing::warn!(%error, "etcd cannot be followed; trying again in {delay:?}"),
            }
            if self.told.borrow().revision > before {
                delay = RETRY.0;
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY.1);
        }
    }

    async fn follow(&mut self) -> Ended {
        let lost = |error: etcd_client::Error| Ended::Lost(error.to_string());
        let next = self.shared.read().revision() + 1;
        let options = WatchOptions::new().with_prefix().with_prev_key().with_start_revision(signed(next));
        let prefix = format!("{}/", self.prefix);
        let mut watch = self.client.watch_client().max_decoding_message_size(usize::MAX);
        let mut stream = match watch.watch(prefix, Some(options)).await {
            Ok(stream) => stream,
            Err(error) => return lost(error),
        };
        loop {
            let message = match stream.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return Ended::Lost("the watch has ended".to_owned()),
                Err(error) => return lost(error),
            };
            if message.compact_revision() > 0 {
                return Ended::Compacted;
            }
            if message.canceled() {
                return Ended::Lost(message.cancel_reason().to_owned());
            }
            self.told.send_modify(|progress| progress.connected = true);
            match self.events(&message) {
                Ok(events) => self.publish(events).await,
                // What we cannot read must not be skipped: nobody would know.
                Err(error) => return Ended::Lost(error.to_string()),
            }
        }
    }

    fn events(&self, message: &WatchResponse) -> Result<Vec<Event>, Error> {
        let mut latest: BTreeMap<Arc<str>, Option<Arc<Entry>>> = BTreeMap::new();
        let mut events = Vec::with_capacity(message.events().len());
        for event in message.events() {
            let Some(pair) = event.kv() else { continue };
            let deleted = event.event_type() == EventType::Delete;
            let known = event.prev_kv();
            let value = if deleted { known.map(|pair| pair.value()).unwrap_or_default() } else { pair.value() };
            let revision = unsigned(Some(pair.mod_revision()));
            let entry = Arc::new(record::entry_at(&self.prefix, pair.key(), value, revision)?);
            let key = entry.key.clone();
            let previous = match latest.get(&key) {
                Some(entry) => entry.clone(),
                None => self.shared.read().get(&key).cloned(),
            };
            latest.insert(key, (!deleted).then(|| entry.clone()));
            events.push(Event { revision, entry, previous, deleted });
        }
        Ok(events)
    }

    async fn publish(&mut self, events: Vec<Event>) {
        let Some(last) = events.last().map(|event| event.revision) else { return };
        let (wake, floor) = {
            let mut state = self.shared.write();
            (state.publish(events), state.floor())
        };
        wake.wake();
        self.told.send_modify(|progress| progress.revision = last);
        if floor >= self.compacted + COMPACT_AFTER {
            self.compacted = floor;
            // Another server may have done it already; then there is nothing to do.
            if let Err(error) = self.client.kv_client().compact(signed(floor), None).await {
                tracing::debug!(%error, floor, "etcd was not compacted");
            }
        }
    }

    /// Everything anew: the events in between are lost, which slow watchers are told.
    async fn reload(&mut self) -> Result<(), String> {
        let (entries, revision) = read_all(&self.client, &self.prefix).await.map_err(|error| error.to_string())?;
        let wake = self.shared.write().restart(entries, revision, self.limits);
        wake.wake();
        self.told.send_modify(|progress| progress.revision = revision);
        Ok(())
    }
}
