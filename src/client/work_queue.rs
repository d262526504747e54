//! A queue of keys: each at most once, never to two workers at a time, with delayed adds and backoff per key.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// client-go's `DefaultControllerRateLimiter`: 5 ms doubled per failure up to 1000 s.
const FIRST_BACKOFF: Duration = Duration::from_millis(5);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1000);

struct State<K> {
    ready: VecDeque<K>,
    /// Everything in `ready`, and what was added while it was being processed.
    dirty: HashSet<K>,
    processing: HashSet<K>,
    /// Deadline -> key; the number keeps equal deadlines apart.
    delayed: BTreeMap<(Instant, u64), K>,
    deadline_of: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    counter: u64,
    closed: bool,
}

/// A work queue. Cloning shares it.
pub struct WorkQueue<K> {
    state: Arc<Mutex<State<K>>>,
    wake: Arc<Notify>,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone(), wake: self.wake.clone() }
    }
}

impl<K: Clone + Eq + Hash> Default for WorkQueue<K> {
    fn default() -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            processing: HashSet::new(),
            delayed: BTreeMap::new(),
            deadline_of: HashMap::new(),
            failures: HashMap::new(),
            counter: 0,
            closed: false,
        };
        Self { state: Arc::new(Mutex::new(state)), wake: Arc::new(Notify::new()) }
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn add(&mut self, key: K) -> bool {
        if self.closed || !self.dirty.insert(key.clone()) || self.processing.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }
    /// Moves what is due; returns the next deadline.
    fn release(&mut self, now: Instant) -> Option<Instant> {
        while let Some((&(deadline, n), _)) = self.delayed.first_key_value() {
            if deadline > now {
                return Some(deadline);
            }
            let key = self.delayed.remove(&(deadline, n)).expect("it was just seen");
            self.deadline_of.remove(&key);
            self.add(key);
        }
        None
    }
}

impl<K: Clone + Eq + Hash> WorkQueue<K> {
    fn state(&self) -> std::sync::MutexGuard<'_, State<K>> {
        self.state.lock().expect("no panic while the queue is held")
    }
    /// Adds a key; while it waits or until its worker is done, it is there only once.
    pub fn add(&self, key: K) {
        if self.state().add(key) {
            self.wake.notify_one();
        }
    }
    /// Adds a key after a delay; of several delays of one key the shortest counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let deadline = Instant::now() + delay;
        let mut state = self.state();
        if let Some(&known) = state.deadline_of.get(&key) {
            if known.0 <= deadline {
                return;
            }
            state.delayed.remove(&known);
        }
        state.counter += 1;
        let at = (deadline, state.counter);
        state.delayed.insert(at, key.clone());
        state.deadline_of.insert(key, at);
        drop(state);
        self.wake.notify_one();
    }
    /// Adds a key that has failed, later each time. Returns the delay.
    pub fn add_failed(&self, key: K) -> Duration {
        let delay = {
            let mut state = self.state();
            let failures = state.failures.entry(key.clone()).or_default();
            let delay = FIRST_BACKOFF.saturating_mul(1u32 << (*failures).min(20)).min(LONGEST_BACKOFF);
            *failures = failures.saturating_add(1);
            delay
        };
        self.add_after(key, delay);
        delay
    }
    /// Forgets the failures of a key.
    pub fn forget(&self, key: &K) {
        self.state().failures.remove(key);
    }
    /// How often in a row a key has failed.
    pub fn failures(&self, key: &K) -> u32 {
        self.state().failures.get(key).copied().unwrap_or_default()
    }
    /// The next key, now held by the caller until [`WorkQueue::done`]; `None` when the queue is closed.
    pub async fn next(&self) -> Option<K> {
        loop {
            let deadline = {
                let mut state = self.state();
                let deadline = state.release(Instant::now());
                if state.closed {
                    drop(state);
                    self.wake.notify_one(); // the next worker wants to know as well
                    return None;
                }
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone());
                    if !state.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return Some(key);
                }
                deadline
            };
            match deadline {
                None => self.wake.notified().await,
                Some(deadline) => tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep_until(deadline) => {}
                },
            }
        }
    }
    /// Gives a key back; if it was added meanwhile, it is queued again.
    pub fn done(&self, key: &K) {
        let mut state = self.state();
        state.processing.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.wake.notify_one();
        }
    }
    /// Ends [`WorkQueue::next`] everywhere.
    pub fn close(&self) {
        self.state().closed = true;
        self.wake.notify_one();
    }
    /// How many keys are ready.
    pub fn len(&self) -> usize {
        self.state().ready.len()
    }
    /// Whether no key is ready.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_are_deduplicated_held_delayed_and_backed_off() {
        let queue = WorkQueue::default();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, Some("a"));
        queue.add("a");
        assert!(queue.is_empty(), "a key in work is not handed out");
        queue.done(&"a");
        assert_eq!(queue.next().await, Some("a"));
        queue.done(&"a");

        queue.add_after("late", Duration::from_secs(3600));
        queue.add_after("late", Duration::from_millis(20));
        queue.add_after("late", Duration::from_secs(1800));
        queue.add_after("early", Duration::from_millis(1));
        assert_eq!(queue.next().await, Some("early"));
        assert_eq!(queue.next().await, Some("late"));
        queue.done(&"late");
        let delays: Vec<_> = (0..3).map(|_| queue.add_failed("bad").as_millis()).collect();
        assert_eq!(delays, [5, 10, 20]);
        queue.forget(&"bad");
        assert_eq!(queue.failures(&"bad"), 0);
        queue.close();
        assert_eq!(queue.next().await, None);
    }
}
