//! What a reconcile decides: writes in order, what to tell about them, and when to look again.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::Value;

use crate::api::{Gvr, Status, meta};
use crate::client::cache::Key;
use crate::client::recorder::EventType;
use crate::client::typed::{Meta, Typed, gvr, to_value};
use crate::client::{DeleteOptions, Patch};

/// The decision of one reconcile. It leaves nothing to decide to the runner.
#[derive(Default)]
pub struct Plan {
    /// Carried out in order; the first failure ends the plan and the key is tried again later.
    pub steps: Vec<Step>,
    /// What to do when a step failed (a condition that tells of it), as far as that still works.
    pub on_failure: Option<Box<dyn FnOnce(&Status) -> Vec<Action> + Send>>,
    /// Look at the key again after this time, whatever happens until then.
    pub requeue_after: Option<Duration>,
}

/// A part of a plan.
#[derive(Clone, Debug)]
pub enum Step {
    /// One after the other.
    One(Action),
    /// At once.
    All(Vec<Action>),
    /// In batches of 1, 2, 4, … so that a refusal that holds for all is not heard a thousand times.
    SlowStart(Vec<Action>),
}

/// A write and the event that tells of it.
#[derive(Clone, Debug)]
pub struct Action {
    /// The write.
    pub write: Write,
    /// The events about it.
    pub told: Option<Told>,
    /// Reasons of failures that are as good as success (`NotFound` for a delete).
    pub tolerate: &'static [&'static str],
}

/// A write, or a look at the API that guards the writes after it.
#[derive(Clone, Debug)]
pub enum Write {
    /// Nothing; only the event.
    Nothing,
    /// Creates an object.
    Create { gvr: Gvr, namespace: String, object: Value },
    /// Replaces an object or a subresource of it.
    Update { gvr: Gvr, key: Key, subresource: &'static str, object: Value },
    /// Patches an object or a subresource of it.
    Patch { gvr: Gvr, key: Key, subresource: &'static str, patch: Patch },
    /// Deletes an object.
    Delete { gvr: Gvr, key: Key, options: DeleteOptions },
    /// Deletes everything of a kind in a namespace, whether a cache knows it or not.
    DeleteAll { gvr: Gvr, namespace: String },
    /// Fails (the plan ends) when the kind has objects in the namespace.
    ExpectNone { gvr: Gvr, namespace: String },
    /// Fails (the plan ends) when the SubjectAccessReview is answered with no.
    ExpectAllowed { review: Value },
    /// Fails (the plan ends) when the object exists with this uid; empty: with any.
    ExpectAbsent { gvr: Gvr, key: Key, uid: String },
    /// Fails (the plan ends) when an object of the kind in the namespace uses what has this name.
    ExpectUnused { gvr: Gvr, namespace: String, name: String, uses: fn(&Value, &str) -> bool },
}

/// An event's type, reason and message. `{name}` in the message is the written object's name, `{error}` the failure.
pub type Words = (EventType, &'static str, String);

/// Events about a write.
#[derive(Clone, Debug)]
pub struct Told {
    /// The object that the events are about.
    pub regarding: ObjectReference,
    /// When the write succeeded.
    pub success: Option<Words>,
    /// When it failed.
    pub failure: Option<Words>,
}

impl Plan {
    /// Adds an action.
    pub fn push(&mut self, action: Action) {
        self.steps.push(Step::One(action));
    }
    /// Whether there is nothing to do now.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
    /// Looks again after `delay`, or sooner if that was already wanted.
    pub fn requeue(&mut self, delay: Duration) {
        self.requeue_after = Some(self.requeue_after.map_or(delay, |known| known.min(delay)));
    }
    /// All actions in order.
    pub fn actions(&self) -> impl Iterator<Item = &Action> {
        self.steps.iter().flat_map(|step| match step {
            Step::One(action) => std::slice::from_ref(action),
            Step::All(actions) | Step::SlowStart(actions) => actions,
        })
    }
}

impl Action {
    fn new(write: Write) -> Self {
        Self { write, told: None, tolerate: &[] }
    }
    /// Creates a typed object in the namespace that its metadata names.
    pub fn create<T: Typed>(object: &T) -> Self {
        Self::new(Write::Create { gvr: gvr::<T>(), namespace: object.namespace().into(), object: to_value(object) })
    }
    /// Replaces a typed object.
    pub fn update<T: Typed>(object: &T) -> Self {
        let object_value = to_value(object);
        Self::new(Write::Update { gvr: gvr::<T>(), key: Key::of(object), subresource: "", object: object_value })
    }
    /// Replaces the status of a typed object.
    pub fn update_status<T: Typed>(object: &T) -> Self {
        let object_value = to_value(object);
        Self::new(Write::Update { gvr: gvr::<T>(), key: Key::of(object), subresource: "status", object: object_value })
    }
    /// Patches an object.
    pub fn patch(gvr: Gvr, key: Key, subresource: &'static str, patch: Patch) -> Self {
        Self::new(Write::Patch { gvr, key, subresource, patch })
    }
    /// Deletes a typed object if it is still this one; one that is gone is fine.
    pub fn delete<T: Typed>(object: &T) -> Self {
        let uid = Some(object.uid().to_owned()).filter(|uid| !uid.is_empty());
        Self::delete_with::<T>(Key::of(object), DeleteOptions { uid, ..Default::default() })
    }
    /// Deletes an object of a typed kind; one that is gone is fine.
    pub fn delete_with<T: Typed>(key: Key, options: DeleteOptions) -> Self {
        Self::new(Write::Delete { gvr: gvr::<T>(), key, options }).tolerate(&["NotFound"])
    }
    /// Any write.
    pub fn write(write: Write) -> Self {
        Self::new(write)
    }
    /// Only an event.
    pub fn event(regarding: ObjectReference, type_: EventType, reason: &'static str, message: String) -> Self {
        Self::new(Write::Nothing).tell(regarding, Some((type_, reason, message)), None)
    }
    /// Adds the events.
    pub fn tell(mut self, regarding: ObjectReference, success: Option<Words>, failure: Option<Words>) -> Self {
        self.told = Some(Told { regarding, success, failure });
        self
    }
    /// Takes failures with these reasons for success.
    pub fn tolerate(mut self, reasons: &'static [&'static str]) -> Self {
        self.tolerate = reasons;
        self
    }
}

/// Something that was written, for the hold rule.
#[derive(Clone, Debug)]
pub struct Written {
    /// The resource.
    pub gvr: Gvr,
    /// The object.
    pub key: Key,
    /// Its uid.
    pub uid: String,
    /// Its resourceVersion after the write.
    pub revision: u64,
    /// Whether the write was a delete.
    pub deleted: bool,
}

impl Written {
    /// What the API's answer says.
    pub fn of(gvr: &Gvr, answer: &Value, deleted: bool) -> Self {
        Self {
            gvr: gvr.clone(),
            key: Key::new(meta::namespace(answer), meta::name(answer)),
            uid: meta::uid(answer).into(),
            revision: meta::resource_version(answer).parse().unwrap_or_default(),
            deleted,
        }
    }
    /// Whether a cache of that resource shows the write.
    pub fn is_seen_by(&self, cache: &dyn crate::client::cache::Seen) -> bool {
        cache.seen() >= self.revision && (!self.deleted || cache.is_leaving(&self.key, &self.uid))
    }
    /// Whether what was written is gone or going again. What came and went between two lists of an informer no event tells of:
    /// its key has to be looked at once more.
    pub fn is_undone_in(&self, cache: &dyn crate::client::cache::Seen) -> bool {
        !self.deleted && cache.is_leaving(&self.key, &self.uid)
    }
}
