//! Writes core/v1 Events as client-go does: repeated ones are counted, similar ones combined, floods dropped.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::{Value, json};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::typed::{Meta, Typed};
use super::{Api, Patch};
use crate::api::{Gvr, meta};
use crate::env::{Env, rfc3339, rfc3339_micro};

/// Events of one object with the same reason beyond this number within [`SIMILAR_FOR`] are combined.
const SIMILAR: usize = 10;
const SIMILAR_FOR: SignedDuration = SignedDuration::from_mins(10);
/// One object may have this many events at once, and another one every five minutes (client-go's `EventSourceObjectSpamFilter`).
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;
/// What waits to be written at most; what comes then is dropped (client-go's `maxQueuedEvents`).
const MOST_QUEUED: usize = 1000;
/// Forgets the oldest correlations beyond this number (client-go's LRU size).
const MOST_KEPT: usize = 4096;

/// `Normal` or `Warning`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Information.
    Normal,
    /// Something may need attention.
    Warning,
}

impl EventType {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Something to tell about an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// What it is about.
    pub regarding: ObjectReference,
    /// `Normal` or `Warning`.
    pub type_: EventType,
    /// A word in CamelCase.
    pub reason: String,
    /// The text for people.
    pub message: String,
    /// For recorders of the newer kind (`events.k8s.io`): what was being done, such as `Binding`. Empty: the older form.
    pub action: String,
    /// `metadata.annotations` of the event.
    pub annotations: Vec<(String, String)>,
}

enum Order {
    Note(Box<Note>, Timestamp),
    Flush(oneshot::Sender<()>),
}

/// Tells events in the background, in order, without ever blocking or failing the teller. Cloning shares it.
#[derive(Clone)]
pub struct Recorder {
    orders: mpsc::Sender<Order>,
    dropped: Arc<AtomicU64>,
    env: Env,
}

/// A reference to a typed object, as events have it.
pub fn reference<T: Typed>(object: &T) -> ObjectReference {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    ObjectReference {
        api_version: text(T::API_VERSION),
        kind: text(T::KIND),
        namespace: text(object.namespace()),
        name: text(object.name()),
        uid: text(object.uid()),
        resource_version: object.metadata().resource_version.clone(),
        field_path: None,
    }
}

impl Recorder {
    /// A recorder for `component` (such as `replicaset-controller`, `kubelet`) on `host` (empty for none). Inside a tokio runtime.
    pub fn new(api: Arc<dyn Api>, env: Env, component: &str, host: &str) -> Self {
        let (orders, receiver) = mpsc::channel(MOST_QUEUED);
        let writer = Writer {
            api,
            component: component.into(),
            host: host.into(),
            known: HashMap::new(),
            similar: HashMap::new(),
            buckets: HashMap::new(),
            written: 0,
        };
        tokio::spawn(writer.run(receiver));
        Self { orders, dropped: Arc::default(), env }
    }
    /// Tells an event about an object.
    pub fn event<T: Typed>(&self, object: &T, type_: EventType, reason: &str, message: impl Into<String>) {
        self.about(reference(object), type_, reason, message);
    }
    /// Tells an event about a reference (whose `fieldPath` may name a container: `spec.containers{web}`).
    pub fn about(&self, regarding: ObjectReference, type_: EventType, reason: &str, message: impl Into<String>) {
        let (reason, message) = (reason.to_owned(), message.into());
        self.note(Note { regarding, type_, reason, message, action: String::new(), annotations: Vec::new() });
    }
    /// Tells a whole note.
    pub fn note(&self, note: Note) {
        // The receiver goes only with the runtime.
        if let Err(TrySendError::Full(_)) = self.orders.try_send(Order::Note(Box::new(note), self.env.now())) {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::error!(dropped, "unable to record event: too many queued events, dropped event");
        }
    }
    /// Waits until everything told so far is written.
    pub async fn flush(&self) {
        let (sender, receiver) = oneshot::channel();
        if self.orders.send(Order::Flush(sender)).await.is_ok() {
            let _ = receiver.await;
        }
    }
}

/// What makes two notes the same event.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Identity {
    object: (String, String, String, String, String),
    type_: EventType,
    reason: String,
    message: String,
}

struct Known {
    namespace: String,
    name: String,
    count: i64,
    first: Timestamp,
    last: Timestamp,
}

struct Writer {
    api: Arc<dyn Api>,
    component: String,
    host: String,
    known: HashMap<Identity, Known>,
    /// (object, type, reason) -> the different messages lately, and when the last one came.
    similar: HashMap<Identity, (BTreeSet<String>, Timestamp)>,
    /// uid -> tokens and when they were counted.
    buckets: HashMap<String, (f64, Timestamp)>,
    /// Keeps the names of events of the same instant apart.
    written: u32,
}

const EVENTS: Gvr = Gvr::new("", "v1", "events");

impl Writer {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        while let Some(order) = orders.recv().await {
            match order {
                Order::Note(note, time) => self.write(*note, time).await,
                Order::Flush(done) => drop(done.send(())),
            }
        }
    }

    async fn write(&mut self, mut note: Note, time: Timestamp) {
        let identity = self.combine(&mut note, time);
        if !self.admit(&note, time) {
            return;
        }
        if let Some(known) = self.known.get_mut(&identity) {
            known.count += 1;
            known.last = time;
            let patch = repeat_patch(known, &note);
            let (namespace, name) = (known.namespace.clone(), known.name.clone());
            match self
                .send(|api| {
                    let patch = Patch::Strategic(patch.clone());
                    let (namespace, name) = (namespace.clone(), name.clone());
                    Box::pin(async move { api.patch(&EVENTS, &namespace, &name, "", patch).await.map(drop) })
                })
                .await
            {
                Some(status) if status.is_not_found() => {} // expired: it is created anew below
                _ => return,
            }
        }
        let first = self.known.get(&identity).map_or(time, |known| known.first);
        let count = self.known.get(&identity).map_or(1, |known| known.count);
        self.written = self.written.wrapping_add(1);
        let event = self.event(&note, first, time, count);
        let (namespace, name) = (meta::namespace(&event).to_owned(), meta::name(&event).to_owned());
        if self.known.len() >= MOST_KEPT {
            self.forget_oldest();
        }
        self.known.insert(identity, Known { namespace: namespace.clone(), name, count, first, last: time });
        let failed = self
            .send(|api| {
                let (namespace, event) = (namespace.clone(), event.clone());
                Box::pin(async move { api.create(&EVENTS, &namespace, "", "", event).await.map(drop) })
            })
            .await;
        if let Some(status) = failed {
            // A namespace that is being deleted takes no more events: nothing to worry about.
            tracing::debug!(error = %status, reason = %note.reason, message = %note.message, "an event could not be written");
        }
    }

    /// Sends with a few tries against passing trouble; returns the failure.
    async fn send<F>(&self, call: F) -> Option<crate::api::Status>
    where
        F: Fn(Arc<dyn Api>) -> std::pin::Pin<Box<dyn Future<Output = crate::api::StatusResult<()>> + Send>>,
    {
        let mut wait = Duration::from_millis(250);
        loop {
            match call(self.api.clone()).await {
                Ok(()) => return None,
                Err(status) if status.code < 500 || wait > Duration::from_secs(4) => return Some(status),
                Err(_) => tokio::time::sleep(wait).await,
            }
            wait *= 2;
        }
    }

    /// The identity under which the note is counted; many similar notes become one.
    fn combine(&mut self, note: &mut Note, time: Timestamp) -> Identity {
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        let object = &note.regarding;
        let object = (
            part(&object.kind),
            part(&object.namespace),
            part(&object.name),
            part(&object.uid),
            part(&object.field_path),
        );
        let mut identity = Identity { object, type_: note.type_, reason: note.reason.clone(), message: String::new() };
        if self.similar.len() >= MOST_KEPT {
            self.similar.retain(|_, (_, last)| time.duration_since(*last) < SIMILAR_FOR);
        }
        let (messages, last) = self.similar.entry(identity.clone()).or_insert_with(|| (BTreeSet::new(), time));
        if time.duration_since(*last) > SIMILAR_FOR {
            messages.clear();
        }
        *last = time;
        if messages.len() < SIMILAR {
            messages.insert(note.message.clone());
        }
        if messages.len() >= SIMILAR {
            note.message = format!("(combined from similar events): {}", note.message);
        } else {
            identity.message = note.message.clone();
        }
        identity
    }

    fn admit(&mut self, note: &Note, time: Timestamp) -> bool {
        if self.buckets.len() >= MOST_KEPT {
            let full = |then: &Timestamp| time.duration_since(*then).as_secs_f64() / REFILL_SECONDS >= BURST;
            self.buckets.retain(|_, (_, then)| !full(then));
        }
        let uid = note.regarding.uid.clone().or_else(|| note.regarding.name.clone()).unwrap_or_default();
        let (tokens, then) = self.buckets.entry(uid).or_insert((BURST, time));
        *tokens = (*tokens + time.duration_since(*then).as_secs_f64() / REFILL_SECONDS).min(BURST);
        *then = time;
        let admitted = *tokens >= 1.0;
        if admitted {
            *tokens -= 1.0;
        }
        admitted
    }

    fn forget_oldest(&mut self) {
        let mut times: Vec<Timestamp> = self.known.values().map(|known| known.last).collect();
        let (_, middle, _) = times.select_nth_unstable(MOST_KEPT / 2);
        let middle = *middle;
        self.known.retain(|_, known| known.last > middle);
    }

    fn event(&self, note: &Note, first: Timestamp, last: Timestamp, count: i64) -> Value {
        let subject = note.regarding.name.as_deref().unwrap_or_default();
        let namespace = note.regarding.namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
        let name = format!("{subject}.{:x}", last.as_nanosecond() + i128::from(self.written));
        let mut event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": note.regarding,
            "reason": note.reason, "message": note.message, "type": note.type_.as_str(),
            "reportingComponent": self.component, "reportingInstance": self.host,
        });
        if note.action.is_empty() {
            event["source"] = if self.host.is_empty() {
                json!({"component": self.component})
            } else {
                json!({"component": self.component, "host": self.host})
            };
            event["firstTimestamp"] = rfc3339(first).into();
            event["lastTimestamp"] = rfc3339(last).into();
            event["count"] = count.into();
        } else {
            event["source"] = json!({});
            event["eventTime"] = rfc3339_micro(first).into();
            event["action"] = note.action.as_str().into();
            event["reportingInstance"] = format!("{}-{}", self.component, self.host).trim_end_matches('-').into();
        }
        for (key, value) in &note.annotations {
            event["metadata"]["annotations"][key] = value.as_str().into();
        }
        event
    }
}

fn repeat_patch(known: &Known, note: &Note) -> Value {
    if note.action.is_empty() {
        json!({"count": known.count, "lastTimestamp": rfc3339(known.last), "message": note.message})
    } else {
        json!({"series": {"count": known.count, "lastObservedTime": rfc3339_micro(known.last)}})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::fake::FakeApi;
    use crate::client::{Client, ListOptions};
    use k8s_openapi::api::core::v1::{Event, Pod};

    #[tokio::test]
    async fn repeated_events_are_counted_and_floods_combined() {
        let env = Env::simulated(1, "2026-01-02T03:04:05Z".parse().expect("a time"));
        let api = FakeApi::new(env.clone());
        let recorder = Recorder::new(api.clone(), env.clone(), "kubelet", "node-1");
        let mut pod = Pod::default();
        pod.metadata.name = Some("web".into());
        pod.metadata.namespace = Some("a".into());
        recorder.event(&pod, EventType::Warning, "BackOff", "Back-off restarting failed container");
        env.advance(SignedDuration::from_secs(7));
        recorder.event(&pod, EventType::Warning, "BackOff", "Back-off restarting failed container");
        recorder.flush().await;
        let client = Client::new(api.clone());
        let events: Vec<Event> = client.list("a", &ListOptions::default()).await.expect("a list");
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].count, Some(2));
        assert_eq!(events[0].source.as_ref().and_then(|s| s.host.as_deref()), Some("node-1"));
        let seconds = |time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
            time.as_ref().map(|time| time.0.as_second()).expect("a time")
        };
        assert_eq!(seconds(&events[0].last_timestamp) - seconds(&events[0].first_timestamp), 7);

        for n in 0..30 {
            env.advance(SignedDuration::from_secs(1));
            recorder.event(&pod, EventType::Normal, "Flood", format!("number {n}"));
        }
        recorder.flush().await;
        let events: Vec<Event> = client.list("a", &ListOptions::default()).await.expect("a list");
        let flood: Vec<_> = events.iter().filter(|event| event.reason.as_deref() == Some("Flood")).collect();
        assert_eq!(flood.len(), 10, "nine of their own and one that combines the rest");
        let combined = flood.iter().find(|event| event.message.as_deref().unwrap_or("").starts_with("(combined"));
        assert!(
            combined.is_some_and(|event| event.count.is_some_and(|count| (2..=14).contains(&count))),
            "the burst ends at 25"
        );
    }

    #[tokio::test]
    async fn more_than_can_wait_is_dropped() {
        let env = Env::simulated(1, "2026-01-02T03:04:05Z".parse().expect("a time"));
        let api = FakeApi::new(env.clone());
        let recorder = Recorder::new(api.clone(), env, "kubelet", "node-1");
        // Nothing is written before somebody waits.
        for n in 0..MOST_QUEUED + 7 {
            let mut pod = Pod::default();
            pod.metadata.name = Some(format!("web-{n}"));
            pod.metadata.namespace = Some("a".into());
            recorder.event(&pod, EventType::Normal, "Scheduled", "");
        }
        assert_eq!(recorder.dropped.load(Ordering::Relaxed), 7);
        recorder.flush().await;
        let events: Vec<Event> = Client::new(api).list("a", &ListOptions::default()).await.expect("a list");
        assert_eq!(events.len(), MOST_QUEUED);
    }
}
