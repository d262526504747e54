//! The storage that forgets: for tests and simulations.

use std::sync::Arc;

use super::Storage;
use super::engine::Engine;
use super::state::{Limits, State};

/// An empty storage in memory. Its first write has revision 2, as etcd's has.
pub fn memory(limits: Limits) -> Arc<dyn Storage> {
    let state = State::new(Default::default(), 1, limits);
    Arc::new(Engine::new(state, None).expect("only the committer's thread can be missing, and there is none"))
}
