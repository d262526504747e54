//! Seats: requests of a level start while it has seats, then they wait by flow, and the flows take turns.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;

use super::classify::{Limits, Schema};

/// Why a request does not get a seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// All seats are taken and the level has no queues.
    ConcurrencyLimit,
    /// Too many wait already.
    QueueFull,
    /// It has waited for too long.
    TimeOut,
}

impl Rejected {
    pub const ALL: [Self; 3] = [Self::ConcurrencyLimit, Self::QueueFull, Self::TimeOut];

    /// As metrics have it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::ConcurrencyLimit => "concurrency-limit",
            Self::QueueFull => "queue-full",
            Self::TimeOut => "time-out",
        }
    }
}

/// All levels that limit something.
pub(crate) struct Levels {
    seats: u32,
    state: Mutex<BTreeMap<String, Level>>,
}

#[derive(Default)]
struct Level {
    /// The seats that are its own.
    nominal: u32,
    /// Those of them that others never get.
    reserved: u32,
    /// The most it may have.
    most: u32,
    /// How many may wait altogether and in one flow.
    queues: Option<(usize, usize)>,
    taken: u32,
    /// Who waits, by flow.
    flows: HashMap<Flow, VecDeque<oneshot::Sender<Seat>>>,
    /// The flows in which somebody waits, in the order of their turns.
    turns: VecDeque<Flow>,
    waiting: usize,
}

/// A FlowSchema and what tells its flows apart.
type Flow = (String, String);

/// A seat that is taken. It is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    of: Option<(Arc<Levels>, String)>,
}

impl std::fmt::Debug for Levels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Levels").field("seats", &self.seats).finish_non_exhaustive()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some((levels, level)) = self.of.take() {
            levels.release(&level);
        }
    }
}

impl Levels {
    /// `seats`: how many requests may be answered at a time altogether.
    pub fn new(seats: u32) -> Self {
        Self { seats, state: Mutex::default() }
    }

    /// Divides the seats among the levels by their shares.
    pub fn configure(self: &Arc<Self>, limits: &BTreeMap<String, Limits>) {
        let all: u64 = limits.values().map(|limits| u64::from(limits.shares)).sum();
        let mut state = self.state.lock().expect("no panic under this lock");
        for (name, limits) in limits {
            let level = state.entry(name.clone()).or_default();
            let part = (u64::from(self.seats) * u64::from(limits.shares)).div_ceil(all.max(1));
            level.nominal = u32::try_from(part).unwrap_or(self.seats);
            level.reserved = level.nominal - level.nominal * limits.lendable / 100;
            let more = limits.borrowing.map(|percent| level.nominal.saturating_mul(percent) / 100);
            level.most = more.map_or(self.seats, |more| level.nominal.saturating_add(more));
            level.queues = limits.queues;
        }
        // A level that is gone lets its requests end; those that wait may start.
        for (_, level) in state.iter_mut().filter(|(name, _)| !limits.contains_key(*name)) {
            (level.nominal, level.reserved, level.most, level.queues) = (self.seats, 0, self.seats, None);
        }
        let names: Vec<String> = state.keys().cloned().collect();
        names.iter().for_each(|name| self.start_waiting(&mut state, name));
        state.retain(|name, level| limits.contains_key(name) || level.taken > 0);
    }

    /// The seats of each level.
    pub fn nominal(&self) -> Vec<(String, u32)> {
        let state = self.state.lock().expect("no panic under this lock");
        state.iter().map(|(name, level)| (name.clone(), level.nominal)).collect()
    }

    /// Takes a seat for a request of a flow, and waits for it if need be.
    pub async fn take(
        levels: &Arc<Self>,
        schema: &Arc<Schema>,
        distinguisher: String,
        patience: Duration,
    ) -> Result<Seat, Rejected> {
        let receiver = {
            let mut state = levels.state.lock().expect("no panic under this lock");
            let may_start = levels.may_start(&state, &schema.level);
            let Some(level) = state.get_mut(&schema.level) else { return Ok(Seat { of: None }) };
            if may_start && level.turns.is_empty() {
                level.taken += 1;
                return Ok(Seat { of: Some((Arc::clone(levels), schema.level.clone())) });
            }
            level.enqueue((schema.name.clone(), distinguisher))?
        };
        let _waiting = Waiting::new(schema);
        match tokio::time::timeout(patience, receiver).await {
            Ok(Ok(seat)) => Ok(seat),
            // The seat may have come at the same time; it is dropped with the receiver and so given back.
            _ => Err(Rejected::TimeOut),
        }
    }

    /// A level may use its own seats at any time, and those of others that they lend and do not use.
    fn may_start(&self, state: &BTreeMap<String, Level>, name: &str) -> bool {
        let Some(level) = state.get(name) else { return true };
        if level.taken < level.nominal {
            return true;
        }
        let others =
            state.iter().filter(|(other, _)| *other != name).map(|(_, l)| l.taken.max(l.reserved)).sum::<u32>();
        level.taken < level.most && others + level.taken < self.seats
    }

    fn release(self: &Arc<Self>, name: &str) {
        let mut state = self.state.lock().expect("no panic under this lock");
        if let Some(level) = state.get_mut(name) {
            level.taken = level.taken.saturating_sub(1);
        }
        self.start_waiting(&mut state, name);
        // Others may borrow what is free now.
        let others: Vec<String> =
            state.iter().filter(|(other, l)| *other != name && l.waiting > 0).map(|(other, _)| other.clone()).collect();
        others.iter().for_each(|other| self.start_waiting(&mut state, other));
    }

    /// Gives seats to those who wait, a flow after the other.
    fn start_waiting(self: &Arc<Self>, state: &mut BTreeMap<String, Level>, name: &str) {
        while state.get(name).is_some_and(|level| !level.turns.is_empty()) && self.may_start(state, name) {
            let Some(level) = state.get_mut(name) else { return };
            let Some(waiter) = level.next() else { return };
            let seat = Seat { of: Some((Arc::clone(self), name.to_owned())) };
            match waiter.send(seat) {
                Ok(()) => level.taken += 1,
                // It is gone. Its seat was never counted.
                Err(mut seat) => seat.of = None,
            }
        }
    }
}

impl Level {
    /// Makes a request wait in its flow.
    fn enqueue(&mut self, flow: Flow) -> Result<oneshot::Receiver<Seat>, Rejected> {
        let Some((most, most_of_flow)) = self.queues else { return Err(Rejected::ConcurrencyLimit) };
        let in_flow = self.flows.get(&flow).map_or(0, VecDeque::len);
        if self.waiting >= most || in_flow >= most_of_flow {
            self.forget_the_gone();
        }
        let in_flow = self.flows.get(&flow).map_or(0, VecDeque::len);
        if self.waiting >= most || in_flow >= most_of_flow {
            return Err(Rejected::QueueFull);
        }
        let (sender, receiver) = oneshot::channel();
        if in_flow == 0 {
            self.turns.push_back(flow.clone());
        }
        self.flows.entry(flow).or_default().push_back(sender);
        self.waiting += 1;
        Ok(receiver)
    }

    /// The first of the flow whose turn it is; the flow goes to the end.
    fn next(&mut self) -> Option<oneshot::Sender<Seat>> {
        let flow = self.turns.pop_front()?;
        let queue = self.flows.get_mut(&flow)?;
        let waiter = queue.pop_front();
        if queue.is_empty() {
            self.flows.remove(&flow);
        } else {
            self.turns.push_back(flow);
        }
        self.waiting -= usize::from(waiter.is_some());
        waiter
    }

    /// Those who waited for too long are not counted.
    fn forget_the_gone(&mut self) {
        for queue in self.flows.values_mut() {
            queue.retain(|waiter| !waiter.is_closed());
        }
        self.flows.retain(|_, queue| !queue.is_empty());
        let flows = &self.flows;
        self.turns.retain(|flow| flows.contains_key(flow));
        self.waiting = self.flows.values().map(VecDeque::len).sum();
    }
}

/// Counts a request that waits.
struct Waiting<'a>(&'a Schema);

impl<'a> Waiting<'a> {
    fn new(schema: &'a Schema) -> Self {
        schema.counts.waiting.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Self(schema)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.counts.waiting.subtract();
    }
}
