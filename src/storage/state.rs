//! What readers see: the entries of now, and a ring of the last events for watchers and for lists of the past.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use tokio::sync::watch;

use super::{Entry, Error, Event, Listing};

/// How much of the past is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Events at most.
    pub events: usize,
    /// Bytes of JSON in those events at most (one event is always kept).
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { events: 32_768, bytes: 16 << 20 }
    }
}

/// The watchers of one prefix. They share one wake-up, and the knowledge whether anything happened to them at all.
#[derive(Debug)]
pub(super) struct Group {
    /// The revision of the last event below the prefix (or what was the oldest kept one when the group began).
    last: AtomicU64,
    /// The youngest event below the prefix that is no longer in the ring.
    lost: AtomicU64,
    /// Sent after the state has changed (or was closed).
    pub changed: watch::Sender<()>,
}

impl Group {
    /// No event below the prefix is younger than this. Only meaningful while the state is locked.
    pub fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }
    /// Who has not seen the events up to this revision has missed something. Only meaningful while the state is locked.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Entries and events at one revision.
#[derive(Debug)]
pub(super) struct State {
    entries: BTreeMap<Arc<str>, Arc<Entry>>,
    ring: VecDeque<Event>,
    ring_bytes: usize,
    limits: Limits,
    revision: u64,
    /// Every event after this revision is in the ring.
    floor: u64,
    groups: BTreeMap<Arc<str>, Weak<Group>>,
    /// Whether the storage was closed: watches end.
    pub closed: bool,
}

/// The state behind its lock, which is never held over I/O or an await.
#[derive(Debug)]
pub(super) struct Shared(RwLock<State>);

impl Shared {
    pub fn new(state: State) -> Self {
        Self(RwLock::new(state))
    }
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().expect("no panic while the state is held")
    }
    pub fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().expect("no panic while the state is held")
    }
}

/// The groups to wake when the lock of the state has been released.
#[must_use]
#[derive(Default)]
pub(super) struct Wake(Vec<Arc<Group>>);

impl Wake {
    pub fn wake(self) {
        for group in self.0 {
            group.changed.send_replace(());
        }
    }
}

impl State {
    /// A state at `revision` without a past.
    pub fn new(entries: BTreeMap<Arc<str>, Arc<Entry>>, revision: u64, limits: Limits) -> Self {
        Self {
            entries,
            ring: VecDeque::new(),
            ring_bytes: 0,
            limits,
            revision,
            floor: revision,
            groups: BTreeMap::new(),
            closed: false,
        }
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Every event after this revision is kept.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    pub fn get(&self, key: &str) -> Option<&Arc<Entry>> {
        self.entries.get(key)
    }

    pub fn count(&self, prefix: &str) -> usize {
        self.below(prefix, None).count()
    }

    /// Entries of now below `prefix`, after `after`.
    fn below<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> impl Iterator<Item = &'a Arc<Entry>> {
        self.entries
            .range::<str, _>((start(prefix, after), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(_, entry)| entry)
    }

    /// See [`super::Storage::list`].
    pub fn list(&self, prefix: &str, after: Option<&str>, limit: usize, revision: u64) -> Result<Listing, Error> {
        if revision > self.revision {
            return Err(Error::TooLarge { asked: revision, current: self.revision });
        }
        let limit = if limit == 0 { usize::MAX } else { limit };
        if revision == 0 || revision == self.revision {
            return Ok(page(self.below(prefix, after), limit, self.revision));
        }
        self.check(revision)?;
        // Going back in time: the oldest event of a key after `revision` says what the key was at `revision`.
        let mut past: BTreeMap<&str, Option<&Arc<Entry>>> = BTreeMap::new();
        for event in self.since(revision).rev().filter(|event| event.entry.key.starts_with(prefix)) {
            past.insert(&event.entry.key, event.previous.as_ref());
        }
        let (start, mut merged) = (start(prefix, after), BTreeMap::new());
        for entry in self.below(prefix, after) {
            merged.insert(&*entry.key, entry);
        }
        for (key, entry) in past.range::<str, _>((start, Bound::Unbounded)) {
            match entry {
                Some(entry) => merged.insert(key, entry),
                None => merged.remove(key),
            };
        }
        Ok(page(merged.into_values(), limit, revision))
    }

    /// Fails when not everything after `revision` is kept.
    fn check(&self, revision: u64) -> Result<(), Error> {
        if revision < self.floor {
            return Err(Error::Compacted { asked: revision, oldest: self.floor });
        }
        Ok(())
    }

    fn since(&self, revision: u64) -> impl DoubleEndedIterator<Item = &Event> {
        self.ring.range(self.ring.partition_point(|event| event.revision <= revision)..)
    }

    /// The events below the prefix of a group after `revision`. However far the ring has moved on: what was not there
    /// cannot have been missed.
    pub fn events(&self, group: &Group, prefix: &str, revision: u64) -> Result<Vec<Event>, Error> {
        if revision < group.lost() {
            return Err(Error::Compacted { asked: revision, oldest: self.floor });
        }
        if revision >= group.last() {
            return Ok(Vec::new());
        }
        Ok(self.since(revision).filter(|event| event.entry.key.starts_with(prefix)).cloned().collect())
    }

    /// Joins the watchers of `prefix` who have seen everything up to `revision`.
    pub fn join(&mut self, prefix: &str, revision: u64) -> Result<Arc<Group>, Error> {
        self.check(revision)?;
        if let Some(group) = self.groups.get(prefix).and_then(Weak::upgrade) {
            return Ok(group);
        }
        let last = self.ring.iter().rev().find(|event| event.entry.key.starts_with(prefix));
        let group = Arc::new(Group {
            last: AtomicU64::new(last.map_or(self.floor, |event| event.revision)),
            lost: AtomicU64::new(self.floor),
            changed: watch::Sender::new(()),
        });
        self.groups.insert(prefix.into(), Arc::downgrade(&group));
        Ok(group)
    }

    /// Makes changes visible, in the order of their revisions. Dropped watchers are forgotten on the way.
    pub fn publish(&mut self, events: Vec<Event>) -> Wake {
        let mut wake = Wake::default();
        let mut groups = Vec::with_capacity(self.groups.len());
        self.groups.retain(|prefix, group| {
            let Some(group) = group.upgrade() else { return false };
            groups.push((prefix.clone(), group));
            true
        });
        for (prefix, group) in &groups {
            if let Some(event) = events.iter().rev().find(|event| event.entry.key.starts_with(&**prefix)) {
                group.last.store(event.revision, Ordering::Relaxed);
                wake.0.push(group.clone());
            }
        }
        for event in events {
            // Equal ones are one foreign transaction of etcd on several keys.
            debug_assert!(event.revision >= self.revision, "revisions are published in order");
            self.revision = event.revision;
            if event.deleted {
                self.entries.remove(&event.entry.key);
            } else {
                self.entries.insert(event.entry.key.clone(), event.entry.clone());
            }
            event.entry.is_news(true);
            self.ring_bytes += event.entry.json.len();
            self.ring.push_back(event);
        }
        while self.ring.len() > self.limits.events || (self.ring_bytes > self.limits.bytes && self.ring.len() > 1) {
            let oldest = self.ring.pop_front().expect("the ring is not empty");
            oldest.entry.is_news(false);
            self.ring_bytes -= oldest.entry.json.len();
            self.floor = oldest.revision;
            for (_, group) in groups.iter().filter(|(prefix, _)| oldest.entry.key.starts_with(&**prefix)) {
                group.lost.store(oldest.revision, Ordering::Relaxed);
            }
        }
        wake
    }

    /// Begins anew at another state, without a past: whoever has not seen `revision` has missed something.
    pub fn restart(&mut self, entries: BTreeMap<Arc<str>, Arc<Entry>>, revision: u64, limits: Limits) -> Wake {
        let groups = std::mem::take(&mut self.groups);
        *self = Self { groups, closed: self.closed, ..Self::new(entries, revision, limits) };
        let groups: Vec<_> = self.groups.values().filter_map(Weak::upgrade).collect();
        for group in &groups {
            group.last.store(revision, Ordering::Relaxed);
            group.lost.store(revision, Ordering::Relaxed);
        }
        Wake(groups)
    }

    /// Ends all watches.
    pub fn close(&mut self) -> Wake {
        self.closed = true;
        Wake(self.groups.values().filter_map(Weak::upgrade).collect())
    }
}

fn start<'a>(prefix: &'a str, after: Option<&'a str>) -> Bound<&'a str> {
    match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    }
}

fn page<'a>(mut entries: impl Iterator<Item = &'a Arc<Entry>>, limit: usize, revision: u64) -> Listing {
    let page: Vec<_> = entries.by_ref().take(limit).cloned().collect();
    let remaining = entries.count();
    Listing { entries: page, revision, more: remaining > 0, remaining }
}
