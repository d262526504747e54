//! Watches: from a version on, or with what exists first; objects that move into or out of the selector come and go.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt as _};

use super::list::{Page, parse_version};
use super::{kind_prefix, storage_failed};
use crate::api::{Kind, Status, StatusResult};
use crate::apiserver::selector::Selection;
use crate::apiserver::{ApiServer, codec};
use crate::storage::{Entry, Event, Watch};

/// How often a watcher gets bookmarks at most (kube-apiserver: about every minute).
const BOOKMARKS: Duration = Duration::from_secs(60);

/// How a watch begins and what it shows.
pub(crate) struct WatchOptions {
    pub selection: Selection,
    pub resource_version: String,
    pub version_match: String,
    pub bookmarks: bool,
    pub initial_events: Option<bool>,
    pub timeout: Duration,
}

/// What a watcher gets.
pub(crate) enum Change {
    Added(Arc<Entry>),
    Modified(Arc<Entry>),
    Deleted(Arc<Entry>),
    Bookmark { revision: u64, initial_events_end: bool },
    Failed(Status),
}

/// Changes that happened together.
pub(crate) type Changes = BoxStream<'static, Vec<Change>>;

/// What a watcher wants to see.
struct View {
    server: Arc<ApiServer>,
    kind: Arc<Kind>,
    selection: Selection,
}

struct Follow {
    view: View,
    watch: Box<dyn Watch>,
    bookmarks: bool,
    /// When the watcher last learnt of a version.
    told: tokio::time::Instant,
    deadline: tokio::time::Instant,
    /// Wakes when kinds come, go or change.
    kinds: tokio::sync::watch::Receiver<crate::apiserver::Served>,
    closing: tokio::sync::watch::Receiver<bool>,
}

impl ApiServer {
    /// The changes of a kind's objects (in a namespace, or in all when it is empty). Ends at the timeout and when the server closes.
    pub(crate) async fn watch(
        self: &Arc<Self>,
        kind: &Arc<Kind>,
        namespace: &str,
        options: WatchOptions,
    ) -> StatusResult<Changes> {
        validate(&options)?;
        let prefix = kind_prefix(kind, namespace);
        let version = parse_version(&options.resource_version)?;
        let (first, from) = self.beginning(kind, namespace, &options, version).await?;
        let watch = match self.storage.watch(&prefix, from).await {
            Ok(watch) => watch,
            // What has been asked for rightly fails with an event, not with an answer.
            Err(error) => return Ok(stream::iter([vec![Change::Failed(storage_failed(error))]]).boxed()),
        };
        let follow = Follow {
            view: View { server: Arc::clone(self), kind: Arc::clone(kind), selection: options.selection },
            watch,
            bookmarks: options.bookmarks,
            told: tokio::time::Instant::now(),
            deadline: tokio::time::Instant::now() + options.timeout,
            kinds: self.kinds.subscribe(),
            closing: self.closing.subscribe(),
        };
        let rest = stream::unfold(Some(follow), |follow| async { follow?.next().await });
        let first = stream::iter((!first.is_empty()).then_some(first));
        Ok(first.chain(rest).boxed())
    }

    /// What a watch shows first, and the revision after which it goes on.
    async fn beginning(
        &self,
        kind: &Arc<Kind>,
        namespace: &str,
        options: &WatchOptions,
        version: u64,
    ) -> StatusResult<(Vec<Change>, u64)> {
        // Without sendInitialEvents the old rule holds: no version or 0 means that what exists comes first.
        let initial = options.initial_events.unwrap_or(version == 0);
        if !initial {
            let from = if version == 0 { self.storage.revision().await.map_err(storage_failed)? } else { version };
            return Ok((Vec::new(), from));
        }
        let listed = self.list(kind, namespace, &options.selection, &Page::default()).await?;
        if version > listed.revision {
            return Err(super::list::too_large(version, listed.revision));
        }
        let mut changes: Vec<_> = listed.entries.into_iter().map(Change::Added).collect();
        if options.initial_events == Some(true) && options.bookmarks {
            changes.push(Change::Bookmark { revision: listed.revision, initial_events_end: true });
        }
        Ok((changes, listed.revision))
    }

    /// Ends all watches (the server is about to close).
    pub fn end_watches(&self) {
        self.closing.send_replace(true);
    }
}

fn validate(options: &WatchOptions) -> StatusResult<()> {
    use crate::api::status::FieldError;
    let forbidden = |field: &str, why: &str| {
        Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[FieldError::forbidden(field, why)]))
    };
    match (options.initial_events, options.version_match.as_str()) {
        (None, "") => Ok(()),
        (None, _) => forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        (Some(_), "NotOlderThan") => Ok(()),
        (Some(_), "") => {
            forbidden("resourceVersionMatch", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
        }
        (Some(_), other) => {
            let error = FieldError::not_supported("resourceVersionMatch", &other.into(), &["NotOlderThan"]);
            Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[error]))
        }
    }
}

impl Follow {
    /// The next changes, and the state that goes on from there.
    async fn next(mut self) -> Option<(Vec<Change>, Option<Self>)> {
        loop {
            let events = tokio::select! {
                events = self.watch.next() => events,
                () = tokio::time::sleep_until(self.deadline) => {
                    let bookmark = Change::Bookmark { revision: self.watch.seen(), initial_events_end: false };
                    return self.bookmarks.then(|| (vec![bookmark], None));
                }
                _ = self.kinds.changed() => {
                    // What is no longer served, or served by another schema, is watched anew.
                    if self.view.is_served() {
                        continue;
                    }
                    return None;
                }
                () = crate::apiserver::closed(&mut self.closing) => return None,
            };
            match events {
                Ok(events) => {
                    let mut changes = Vec::with_capacity(events.len());
                    for event in events {
                        match self.view.change(event).await {
                            Ok(change) => changes.extend(change),
                            Err(status) => {
                                changes.push(Change::Failed(status));
                                return Some((changes, None));
                            }
                        }
                    }
                    if !changes.is_empty() {
                        self.told = tokio::time::Instant::now();
                        return Some((changes, Some(self)));
                    }
                    // Nothing of it was for this watcher: it learns at times how far it has come.
                    if self.bookmarks && self.told.elapsed() >= BOOKMARKS {
                        self.told = tokio::time::Instant::now();
                        let bookmark = Change::Bookmark { revision: self.watch.seen(), initial_events_end: false };
                        return Some((vec![bookmark], Some(self)));
                    }
                }
                Err(error) => return Some((vec![Change::Failed(storage_failed(error))], None)),
            }
        }
    }
}

impl View {
    /// Whether the kind is still the one that this watch began with.
    fn is_served(&self) -> bool {
        let gvr = &self.kind.gvr;
        let now = self.server.kind(&gvr.group, &gvr.version, &gvr.resource);
        now.is_some_and(|kind| Arc::ptr_eq(&kind, &self.kind))
    }

    /// What an event means to this watcher: decided from the object before and after it.
    async fn change(&self, event: Event) -> StatusResult<Option<Change>> {
        let shown = |entry: Arc<Entry>| self.server.in_version(&self.kind, entry);
        if self.selection.is_everything() {
            let entry = shown(event.entry).await?;
            return Ok(Some(match (event.deleted, &event.previous) {
                (true, _) => Change::Deleted(entry),
                (false, None) => Change::Added(entry),
                (false, Some(_)) => Change::Modified(entry),
            }));
        }
        let matches = |entry: &Arc<Entry>| self.selection.matches(&self.kind, &entry.value());
        let previous = match event.previous {
            Some(previous) => Some(shown(previous).await?).filter(matches),
            None => None,
        };
        let entry = shown(event.entry).await?;
        Ok(match (previous, !event.deleted && matches(&entry)) {
            (None, false) => None,
            (None, true) => Some(Change::Added(entry)),
            (Some(_), true) => Some(Change::Modified(entry)),
            (Some(_), false) if event.deleted => Some(Change::Deleted(entry)),
            (Some(previous), false) => {
                // The object as the watcher knew it, at the version at which it left.
                let json = codec::encode(&self.kind, &previous.value()).at(event.revision);
                Some(Change::Deleted(Arc::new(Entry::new(Arc::clone(&previous.key), event.revision, json))))
            }
        })
    }
}
