//! What clients did and saw of a store that dies now and then, and whether that is linearizable.
//!
//! Every write names the state that it replaces, and states are named by their revisions. So the states of a key form a
//! chain, and an operation is in order if it may have happened between its begin and its end: it sees no state that is
//! older than what an operation knew that had ended before it began.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use async_trait::async_trait;
use mini::env::Env;
use serde::{Deserialize, Serialize};

/// How many clients there are at a time.
pub const CLIENTS: usize = 32;
/// How many keys they share: fewer than there are clients, so that they get in each other's way.
const KEYS: usize = 16;

/// What a client wants of a key. `expect` is the revision that it must have, 0 when it must not exist.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Action {
    Read,
    Put { expect: u64, tag: String },
    Delete { expect: u64 },
}

/// What it was told. A delete may be told without its revision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Outcome {
    Found {
        revision: u64,
        tag: String,
    },
    Absent,
    Written {
        revision: u64,
    },
    Deleted {
        revision: Option<u64>,
    },
    /// The key is not as it was expected.
    Refused,
}

/// The begin or the end of an operation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Note {
    Begin { operation: u64, key: String, action: Action },
    End { operation: u64, outcome: Outcome },
}

/// What the clients talk to.
#[async_trait]
pub trait Store: Send + Sync {
    /// Does it. `None` when nobody knows what became of it.
    async fn perform(&self, key: &str, action: &Action) -> Option<Outcome>;
}

/// A client.
pub struct Client<S, N> {
    /// Whom it asks.
    pub store: S,
    /// Whom it tells.
    pub note: N,
    /// How many clients there are before it.
    pub number: usize,
}

impl<S: Store, N: Fn(Note)> Client<S, N> {
    /// Reads a key and replaces or deletes what it has read, for as long as it is answered.
    pub async fn work(self) {
        let (run, number) = (Env::real().suffix(8), self.number);
        for turn in 0.. {
            let key = format!("key-{}", (number * 7 + turn * 13) % KEYS);
            let Some(seen) = self.perform(turn * 2, &key, Action::Read).await else { return };
            let expect = if let Outcome::Found { revision, .. } = seen { revision } else { 0 };
            let action = match turn % 5 {
                4 if expect > 0 => Action::Delete { expect },
                _ => Action::Put { expect, tag: format!("{run}-{number}-{turn}") },
            };
            if self.perform(turn * 2 + 1, &key, action).await.is_none() {
                return;
            }
        }
    }

    async fn perform(&self, turn: usize, key: &str, action: Action) -> Option<Outcome> {
        // No two clients share one.
        let operation = (turn * CLIENTS + self.number) as u64;
        (self.note)(Note::Begin { operation, key: key.to_owned(), action: action.clone() });
        let outcome = self.store.perform(key, &action).await?;
        (self.note)(Note::End { operation, outcome: outcome.clone() });
        Some(outcome)
    }
}

/// An operation that has begun, and what was known then.
struct Open {
    key: String,
    action: Action,
    newest: u64,
    gone: u64,
    highest: u64,
}

/// What is known of a key by operations that have ended, and what those intend that have begun.
#[derive(Default)]
struct Register {
    /// The newest state that somebody knows.
    newest: u64,
    /// The newest state that somebody knows to be gone.
    gone: u64,
    /// The states that acknowledged writes replaced or deleted.
    replaced: HashSet<u64>,
    /// The states that somebody wanted to delete.
    removals: BTreeSet<u64>,
    /// What somebody wanted to write.
    tags: HashSet<String>,
}

/// See the top of this file.
#[derive(Default)]
pub struct History {
    keys: BTreeMap<String, Register>,
    open: HashMap<u64, Open>,
    /// Key and tag of every state, by revision.
    states: HashMap<u64, (String, String)>,
    /// The revisions that acknowledged writes have got.
    given: HashSet<u64>,
    highest: u64,
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

impl History {
    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.given.len()
    }

    /// Takes what happened next.
    ///
    /// # Errors
    /// When no order explains it.
    pub fn note(&mut self, note: Note) -> Result<(), String> {
        match note {
            Note::Begin { operation, key, action } => {
                let register = self.keys.entry(key.clone()).or_default();
                match &action {
                    Action::Read => {}
                    Action::Put { tag, .. } => drop(register.tags.insert(tag.clone())),
                    Action::Delete { expect } => drop(register.removals.insert(*expect)),
                }
                let (newest, gone, highest) = (register.newest, register.gone, self.highest);
                self.open.insert(operation, Open { key, action, newest, gone, highest });
                Ok(())
            }
            Note::End { operation, outcome } => {
                let open = self.open.remove(&operation).ok_or("an end without a begin")?;
                self.end(&open, &outcome).map_err(|why| format!("{}: {:?}: {outcome:?}: {why}", open.key, open.action))
            }
        }
    }

    fn end(&mut self, open: &Open, outcome: &Outcome) -> Result<(), String> {
        match (&open.action, outcome) {
            (Action::Read, Outcome::Found { revision, tag }) => {
                self.may_be_current(open, *revision)?;
                self.state(open, *revision, tag)
            }
            (Action::Read, Outcome::Absent) => self.may_be_absent(open),
            (Action::Put { expect: 0, tag }, Outcome::Written { revision }) => {
                self.may_be_absent(open)?;
                self.give(open, *revision)?;
                self.state(open, *revision, tag)
            }
            (Action::Put { expect, tag }, Outcome::Written { revision }) => {
                self.replace(open, *expect)?;
                self.give(open, *revision)?;
                self.state(open, *revision, tag)
            }
            (Action::Delete { expect }, Outcome::Deleted { revision }) => {
                self.replace(open, *expect)?;
                let register = self.register(open);
                register.gone = register.gone.max(*expect);
                revision.map_or(Ok(()), |revision| self.give(open, revision))
            }
            (Action::Put { .. } | Action::Delete { .. }, Outcome::Refused) => Ok(()),
            _ => Err("this is no answer".to_owned()),
        }
    }

    fn register(&mut self, open: &Open) -> &mut Register {
        self.keys.get_mut(&open.key).expect("its begin made it")
    }

    fn may_be_current(&self, open: &Open, revision: u64) -> Result<(), String> {
        let (newest, gone) = (open.newest, open.gone);
        ensure(revision >= newest, || format!("it is older than {newest}, which was known"))?;
        ensure(revision > gone, || format!("{gone} was known to be gone"))
    }

    /// Somebody must have deleted what was known, or what came after it.
    fn may_be_absent(&mut self, open: &Open) -> Result<(), String> {
        let register = self.register(open);
        let deleted = open.gone >= open.newest || register.removals.range(open.newest..).next().is_some();
        register.gone = register.gone.max(open.newest);
        ensure(deleted, || format!("nobody deleted {}, which was known", open.newest))
    }

    /// A state is replaced only once, and only while it is there.
    fn replace(&mut self, open: &Open, expect: u64) -> Result<(), String> {
        self.may_be_current(open, expect)?;
        ensure(self.register(open).replaced.insert(expect), || format!("{expect} was replaced before"))
    }

    /// A write gets a revision that nobody had, above all that were known when it began.
    fn give(&mut self, open: &Open, revision: u64) -> Result<(), String> {
        let highest = open.highest;
        ensure(revision > highest, || format!("{highest} was given away before"))?;
        self.highest = self.highest.max(revision);
        ensure(self.given.insert(revision), || format!("{revision} was given to another write"))
    }

    /// A state has one key and one content for ever.
    fn state(&mut self, open: &Open, revision: u64, tag: &str) -> Result<(), String> {
        let register = self.register(open);
        register.newest = register.newest.max(revision);
        ensure(register.tags.contains(tag), || format!("nobody wrote {tag}"))?;
        let state = (open.key.clone(), tag.to_owned());
        let known = self.states.entry(revision).or_insert_with(|| state.clone());
        ensure(*known == state, || format!("{revision} is {known:?}"))
    }

    /// The store has died and is there again, at a revision and with these states. What had begun has happened or never will.
    ///
    /// # Errors
    /// When something is lost, or there that nobody wrote.
    pub fn restarted(&mut self, revision: u64, found: &BTreeMap<String, (u64, String)>) -> Result<(), String> {
        ensure(revision >= self.highest, || format!("{revision} comes after {}", self.highest))?;
        self.open.clear();
        let keys: BTreeSet<String> = self.keys.keys().chain(found.keys()).cloned().collect();
        for key in keys {
            let outcome = found.get(&key).map_or(Outcome::Absent, |(revision, tag)| {
                let (revision, tag) = (*revision, tag.clone());
                Outcome::Found { revision, tag }
            });
            self.note(Note::Begin { operation: 0, key: key.clone(), action: Action::Read })?;
            self.note(Note::End { operation: 0, outcome })?;
            let register = self.keys.get_mut(&key).expect("its begin made it");
            register.removals.clear();
            register.tags.retain(|tag| found.get(&key).is_some_and(|(_, found)| found == tag));
        }
        self.highest = revision;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One operation after the other, until one is refused.
    fn check(history: &mut History, operations: &[(&str, Action, Outcome)]) -> Result<(), String> {
        for (key, action, outcome) in operations {
            history.note(Note::Begin { operation: 1, key: (*key).to_owned(), action: action.clone() })?;
            history.note(Note::End { operation: 1, outcome: outcome.clone() })?;
        }
        Ok(())
    }

    fn put(key: &'static str, expect: u64, tag: &str, revision: u64) -> (&'static str, Action, Outcome) {
        (key, Action::Put { expect, tag: tag.to_owned() }, Outcome::Written { revision })
    }

    fn found(key: &'static str, revision: u64, tag: &str) -> (&'static str, Action, Outcome) {
        (key, Action::Read, Outcome::Found { revision, tag: tag.to_owned() })
    }

    fn delete(key: &'static str, expect: u64, revision: u64) -> (&'static str, Action, Outcome) {
        (key, Action::Delete { expect }, Outcome::Deleted { revision: Some(revision) })
    }

    const ABSENT: (&str, Action, Outcome) = ("k", Action::Read, Outcome::Absent);

    #[test]
    fn what_is_in_order_passes() {
        let mut history = History::default();
        let operations =
            [ABSENT, put("k", 0, "a", 1), found("k", 1, "a"), put("k", 1, "b", 2), delete("k", 2, 3), ABSENT];
        check(&mut history, &operations).expect("in order");
        check(&mut history, &[put("k", 0, "c", 4), found("k", 4, "c")]).expect("in order");
        assert_eq!(history.acknowledged(), 4);
    }

    #[test]
    fn what_is_not_is_refused() {
        let refused = [
            // A write is lost.
            vec![put("k", 0, "a", 1), ABSENT],
            vec![put("k", 0, "a", 1), put("k", 1, "b", 2), found("k", 1, "a")],
            vec![put("k", 0, "a", 1), put("k", 1, "b", 2), put("k", 1, "c", 3)],
            vec![put("k", 0, "a", 1), put("k", 0, "b", 2)],
            // What was deleted is back.
            vec![put("k", 0, "a", 1), delete("k", 1, 2), found("k", 1, "a")],
            // A revision is used twice.
            vec![put("k", 0, "a", 1), put("l", 0, "b", 1)],
            vec![put("k", 0, "a", 1), delete("k", 1, 1)],
            // Something is there that nobody wrote.
            vec![put("k", 0, "a", 1), found("k", 2, "b")],
            vec![put("k", 0, "a", 1), put("l", 0, "b", 2), found("k", 2, "b")],
        ];
        for operations in refused {
            let (last, first) = operations.split_last().expect("there are some");
            let mut history = History::default();
            check(&mut history, first).expect("in order so far");
            check(&mut history, std::slice::from_ref(last)).expect_err(&format!("{operations:?}"));
        }
    }

    #[test]
    fn what_overlaps_may_happen_in_any_order() {
        let mut history = History::default();
        check(&mut history, &[put("k", 0, "a", 1)]).expect("in order");
        let begin = |operation, action| Note::Begin { operation, key: "k".to_owned(), action };
        history.note(begin(7, Action::Read)).expect("a begin");
        check(&mut history, &[put("k", 1, "b", 2)]).expect("in order");
        let old = Outcome::Found { revision: 1, tag: "a".to_owned() };
        history.note(Note::End { operation: 7, outcome: old }).expect("it was there when the read began");
        history.note(begin(8, Action::Delete { expect: 2 })).expect("a begin");
        check(&mut history, &[ABSENT]).expect("somebody is deleting it");
        check(&mut history, &[found("k", 2, "b")]).expect_err("it was gone");
    }

    #[test]
    fn a_restart_may_keep_what_had_begun_and_nothing_else() {
        let unacknowledged = |history: &mut History| {
            check(history, &[put("k", 0, "a", 1)]).expect("in order");
            let action = Action::Put { expect: 1, tag: "b".to_owned() };
            history.note(Note::Begin { operation: 7, key: "k".to_owned(), action }).expect("a begin");
        };
        let state = |revision, tag: &str| BTreeMap::from([("k".to_owned(), (revision, tag.to_owned()))]);
        for (revision, found, fine) in [
            (2, state(2, "b"), true),
            (1, state(1, "a"), true),
            (9, state(1, "a"), true),
            (0, state(1, "a"), false),
            (2, state(2, "c"), false),
            (2, BTreeMap::new(), false),
        ] {
            let mut history = History::default();
            unacknowledged(&mut history);
            assert_eq!(history.restarted(revision, &found).is_ok(), fine, "{revision} {found:?}");
        }
        let mut history = History::default();
        unacknowledged(&mut history);
        history.restarted(1, &state(1, "a")).expect("it never happened");
        check(&mut history, &[found("k", 2, "b")]).expect_err("it cannot happen any more");
    }
}
