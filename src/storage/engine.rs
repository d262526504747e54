//! Orders writes and publishes them: check, revision and queueing under one short lock; one committer thread makes whole
//! batches durable (group commit) and only then shows them to readers.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use async_trait::async_trait;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use super::cursor::{Cursor, closed};
use super::state::{Shared, State};
use super::{Body, Durability, Entry, Error, Event, Expect, Listing, Storage, Watch};

/// Writes in one batch at most.
const BATCH: usize = 512;
/// Writes that wait for the disk at most; more callers wait before they take a revision.
const QUEUE: usize = 4096;
/// Revisions that may be given to lazy writes before the disk must know: after a crash the counter goes on behind them.
const LEASE: u64 = 1024;

/// The changes of one batch by key: the entry to keep, or `None` to remove it.
pub(super) type Changes = BTreeMap<Arc<str>, Option<Arc<Entry>>>;

/// Makes batches durable. A failed commit may have reached the disk in part: the engine sends the true state of those keys
/// again with the next one.
pub(super) trait Disk: Send + 'static {
    /// Returns when the changes will survive a power loss, along with the promise that no revision above `ceiling` is in use.
    fn commit(&mut self, changes: &Changes, ceiling: u64) -> Result<(), String>;
}

/// A storage: what readers see, the order of writes, and (unless it lives in memory only) a committer.
pub(super) struct Engine {
    core: Arc<Core>,
    committer: Mutex<Option<JoinHandle<()>>>,
    finished: tokio::sync::watch::Receiver<bool>,
}

struct Core {
    shared: Arc<Shared>,
    order: Mutex<Order>,
    /// There is work for the committer.
    work: Condvar,
    /// A batch has been settled.
    settled: Notify,
    room: Arc<Semaphore>,
    durable: bool,
}

struct Order {
    /// The last revision that was given away.
    revision: u64,
    /// Lazy writes beyond this revision go to the disk first.
    ceiling: u64,
    /// Keys with a write that is not settled. Other writes of the key wait: nobody may build on what may still fail.
    pending: HashSet<Arc<str>>,
    queue: VecDeque<Queued>,
    /// Published but not on disk.
    lazy: Changes,
    /// Whether the last batch could not be made durable.
    failed: bool,
    /// Who wants to know what becomes of the next batch, even if there is nothing to write.
    asking: Vec<oneshot::Sender<Result<(), String>>>,
    closed: bool,
}

struct Queued {
    event: Event,
    durability: Durability,
    done: oneshot::Sender<Result<(), Error>>,
    _permit: OwnedSemaphorePermit,
}

/// What became of a write under the lock.
enum Admitted {
    Published(Arc<Entry>),
    Queued(Arc<Entry>, oneshot::Receiver<Result<(), Error>>),
    /// The key has an unsettled write.
    Busy,
}

#[derive(Clone, Copy)]
enum Operation {
    Put(Expect),
    Delete(u64),
}

impl Engine {
    /// A storage that starts with `state`; without a disk every write is visible at once.
    pub fn new(state: State, disk: Option<Box<dyn Disk>>) -> Result<Self, Error> {
        let revision = state.revision();
        let ceiling = if disk.is_some() { revision } else { u64::MAX };
        let order = Order {
            revision,
            ceiling,
            pending: HashSet::new(),
            queue: VecDeque::new(),
            lazy: Changes::new(),
            failed: false,
            asking: Vec::new(),
            closed: false,
        };
        let core = Arc::new(Core {
            shared: Arc::new(Shared::new(state)),
            order: Mutex::new(order),
            work: Condvar::new(),
            settled: Notify::new(),
            room: Arc::new(Semaphore::new(QUEUE)),
            durable: disk.is_some(),
        });
        let (finish, finished) = tokio::sync::watch::channel(disk.is_none());
        let committer = match disk {
            None => None,
            Some(disk) => {
                let core = core.clone();
                let work = move || {
                    core.commit_until_closed(disk);
                    finish.send_replace(true);
                };
                let builder = std::thread::Builder::new().name("storage".to_owned());
                Some(builder.spawn(work).map_err(|error| Error::Backend(format!("no thread: {error}")))?)
            }
        };
        Ok(Self { core, committer: Mutex::new(committer), finished })
    }

    async fn write(&self, key: &str, op: Operation, body: &Body, durability: Durability) -> Result<Arc<Entry>, Error> {
        let key: Arc<str> = key.into();
        loop {
            let permit = if self.core.durable {
                Some(self.core.room.clone().acquire_owned().await.map_err(|_| closed())?)
            } else {
                None
            };
            // Created before the look at the queue, so that no settling is missed.
            let settled = self.core.settled.notified();
            match self.core.admit(&key, op, body, durability, permit)? {
                Admitted::Published(entry) => return Ok(entry),
                Admitted::Queued(entry, done) => return done.await.unwrap_or_else(|_| Err(closed())).map(|()| entry),
                Admitted::Busy => settled.await,
            }
        }
    }
}

impl Core {
    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().expect("no panic while the order is held")
    }

    /// The short lock: precondition, revision, queue.
    fn admit(
        &self,
        key: &Arc<str>,
        op: Operation,
        body: &Body,
        durability: Durability,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Admitted, Error> {
        let mut order = self.order();
        if order.closed {
            return Err(closed());
        }
        if order.pending.contains(key) {
            return Ok(Admitted::Busy);
        }
        let previous = self.shared.read().get(key).cloned();
        let holds = match (op, &previous) {
            (Operation::Put(Expect::Absent), None) => true,
            (Operation::Put(Expect::Revision(expected)) | Operation::Delete(expected), Some(entry)) => {
                entry.revision == expected
            }
            _ => false,
        };
        if !holds {
            return Err(Error::Conflict(previous));
        }
        order.revision += 1;
        let revision = order.revision;
        let key = previous.as_ref().map_or(key, |entry| &entry.key).clone();
        let entry = Arc::new(Entry::new(key, revision, body.at(revision)));
        let event = Event { revision, entry: entry.clone(), previous, deleted: matches!(op, Operation::Delete(_)) };
        match permit {
            // A lazy write may overtake nothing: events appear in the order of their revisions.
            Some(permit) if durability == Durability::Now || !order.pending.is_empty() || revision > order.ceiling => {
                let (done, wait) = oneshot::channel();
                order.pending.insert(entry.key.clone());
                order.queue.push_back(Queued { event, durability, done, _permit: permit });
                self.work.notify_one();
                Ok(Admitted::Queued(entry, wait))
            }
            permit => {
                if permit.is_some() {
                    order.lazy.insert(entry.key.clone(), (!event.deleted).then(|| entry.clone()));
                }
                let wake = self.shared.write().publish(vec![event]);
                drop(order);
                wake.wake();
                Ok(Admitted::Published(entry))
            }
        }
    }

    /// The committer: batch after batch until the storage is closed and everything is on disk.
    fn commit_until_closed(&self, mut disk: Box<dyn Disk>) {
        loop {
            let mut order = self.order();
            while order.queue.is_empty() && order.asking.is_empty() && !order.closed {
                order = self.work.wait(order).expect("no panic while the order is held");
            }
            let size = order.queue.len().min(BATCH);
            let batch: Vec<_> = order.queue.drain(..size).collect();
            let last = order.closed && order.queue.is_empty();
            let ceiling = if last { order.revision } else { order.revision + LEASE };
            let (lazy, asking) = (std::mem::take(&mut order.lazy), std::mem::take(&mut order.asking));
            drop(order);

            let mut changes = lazy.clone();
            for Queued { event, .. } in &batch {
                changes.insert(event.entry.key.clone(), (!event.deleted).then(|| event.entry.clone()));
            }
            let result = disk.commit(&changes, ceiling);
            if let Err(error) = &result {
                tracing::error!(%error, writes = batch.len(), "a batch of writes could not be made durable");
            }
            self.settle(batch, lazy, ceiling, result.clone());
            for asking in asking {
                // Whoever asked may have gone.
                let _ = asking.send(result.clone());
            }
            if last {
                return;
            }
        }
    }

    fn settle(&self, batch: Vec<Queued>, lazy: Changes, ceiling: u64, result: Result<(), String>) {
        let mut order = self.order();
        order.failed = result.is_err();
        let mut visible = Vec::with_capacity(batch.len());
        let mut answers = Vec::with_capacity(batch.len());
        if result.is_ok() {
            order.ceiling = ceiling;
        } else {
            for (key, change) in lazy {
                order.lazy.entry(key).or_insert(change);
            }
        }
        for Queued { event, durability, done, _permit } in batch {
            order.pending.remove(&event.entry.key);
            let answer = match &result {
                Ok(()) => Ok(()),
                // Lazy writes do not need the disk (but the revision of a write that failed in its place is not theirs to use).
                Err(_) if durability == Durability::Lazy && event.revision <= order.ceiling => {
                    order.lazy.insert(event.entry.key.clone(), (!event.deleted).then(|| event.entry.clone()));
                    Ok(())
                }
                Err(error) => {
                    // It may have reached the disk nevertheless: the next batch puts the old state back.
                    order.lazy.entry(event.entry.key.clone()).or_insert(event.previous.clone());
                    Err(Error::Backend(error.clone()))
                }
            };
            if answer.is_ok() {
                visible.push(event);
            }
            answers.push((done, answer));
        }
        let wake = self.shared.write().publish(visible);
        drop(order);
        wake.wake();
        for (done, answer) in answers {
            // The caller may have gone; the write stands.
            let _ = done.send(answer);
        }
        self.settled.notify_waiters();
    }

    fn close(&self) {
        self.order().closed = true;
        self.work.notify_one();
        // Those who wait for room or for a key look again and find it closed.
        self.room.close();
        self.settled.notify_waiters();
    }
}

#[async_trait]
impl Storage for Engine {
    async fn get(&self, key: &str) -> Result<Option<Arc<Entry>>, Error> {
        Ok(open(&self.core.shared.read())?.get(key).cloned())
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize, revision: u64) -> Result<Listing, Error> {
        open(&self.core.shared.read())?.list(prefix, after, limit, revision)
    }

    async fn count(&self, prefix: &str) -> Result<usize, Error> {
        Ok(open(&self.core.shared.read())?.count(prefix))
    }

    async fn put(&self, key: &str, expect: Expect, body: Body, durability: Durability) -> Result<Arc<Entry>, Error> {
        self.write(key, Operation::Put(expect), &body, durability).await
    }

    async fn delete(&self, key: &str, revision: u64, body: Body) -> Result<Arc<Entry>, Error> {
        self.write(key, Operation::Delete(revision), &body, Durability::Now).await
    }

    async fn delete_lazily(&self, key: &str, revision: u64, body: Body) -> Result<Arc<Entry>, Error> {
        self.write(key, Operation::Delete(revision), &body, Durability::Lazy).await
    }

    async fn watch(&self, prefix: &str, revision: u64) -> Result<Box<dyn Watch>, Error> {
        Ok(Box::new(Cursor::open(&self.core.shared, prefix, revision)?))
    }

    async fn revision(&self) -> Result<u64, Error> {
        Ok(open(&self.core.shared.read())?.revision())
    }

    async fn health(&self) -> Result<(), Error> {
        let answer = {
            let mut order = self.core.order();
            if order.closed {
                return Err(closed());
            }
            // A disk that took the last batch is believed: nobody can keep it busy by asking.
            if !order.failed {
                return Ok(());
            }
            let (asking, answer) = oneshot::channel();
            order.asking.push(asking);
            answer
        };
        self.core.work.notify_one();
        answer.await.map_err(|_| closed())?.map_err(Error::Backend)
    }

    async fn close(&self) {
        self.core.close();
        let mut finished = self.finished.clone();
        // An error means that the thread is gone, which is what is waited for.
        let _ = finished.wait_for(|finished| *finished).await;
        let wake = self.core.shared.write().close();
        wake.wake();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.core.close();
        if let Some(thread) = self.committer.get_mut().ok().and_then(Option::take) {
            // Its panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

fn open(state: &State) -> Result<&State, Error> {
    if state.closed { Err(closed()) } else { Ok(state) }
}
