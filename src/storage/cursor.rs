//! A watch: a position in the ring of events. It costs nothing while nothing happens below its prefix.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch::Receiver;

use super::state::{Group, Shared};
use super::{Error, Event, Watch};

/// See [`Watch`].
pub(super) struct Cursor {
    shared: Arc<Shared>,
    prefix: Box<str>,
    group: Arc<Group>,
    changed: Receiver<()>,
    /// Everything below the prefix up to this revision has been returned.
    position: u64,
}

impl Cursor {
    /// A cursor behind `revision` (0: the current one).
    pub fn open(shared: &Arc<Shared>, prefix: &str, revision: u64) -> Result<Self, Error> {
        let (group, position) = {
            let mut state = shared.write();
            if state.closed {
                return Err(closed());
            }
            let position = if revision == 0 { state.revision() } else { revision };
            (state.join(prefix, position)?, position)
        };
        let changed = group.changed.subscribe();
        Ok(Self { shared: shared.clone(), prefix: prefix.into(), group, changed, position })
    }

    /// What there is to return now.
    fn take(&mut self) -> Result<Vec<Event>, Error> {
        let state = self.shared.read();
        if state.closed {
            return Err(closed());
        }
        let events = state.events(&self.group, &self.prefix, self.position)?;
        self.position = self.position.max(state.revision());
        Ok(events)
    }
}

#[async_trait]
impl Watch for Cursor {
    async fn next(&mut self) -> Result<Vec<Event>, Error> {
        loop {
            // Marked before the state is read: a change after the reading wakes.
            self.changed.borrow_and_update();
            let events = self.take()?;
            if !events.is_empty() {
                return Ok(events);
            }
            self.changed.changed().await.expect("the cursor's own group holds the sender");
        }
    }

    fn seen(&self) -> u64 {
        let state = self.shared.read();
        if self.group.last() > self.position { self.position } else { self.position.max(state.revision()) }
    }
}

/// The answer after [`super::Storage::close`].
pub(super) fn closed() -> Error {
    Error::Backend("the storage is closed".to_owned())
}
