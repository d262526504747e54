//! The webhooks and policies that are registered, compiled once and kept up to date with the storage.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use serde_json::Value;

use super::super::following::{Following, Seen, Told};
use super::super::{ApiServer, outbound};
use crate::api::StatusResult;
use crate::api::cel::admission::{self, Policy};
use crate::api::cel::ast::Expr;
use crate::api::meta::{self, items, text};
use crate::api::selector::LabelSelector;
use crate::storage::{Entry, Listing, News};

/// What the keys of all registrations begin with.
const PREFIX: &str = "/admissionregistration.k8s.io/";

/// The objects that a registration means, beside its rules.
pub(super) struct Selectors {
    namespace: LabelSelector,
    object: LabelSelector,
}

impl Selectors {
    fn of(value: &Value) -> Self {
        // What is stored has been validated; an empty selector means everything.
        let selector = |field: &str| LabelSelector::from_label_selector(&value[field]).unwrap_or_default();
        let selector = |field: &str| if value[field].is_null() { LabelSelector::default() } else { selector(field) };
        Self { namespace: selector("namespaceSelector"), object: selector("objectSelector") }
    }
    /// Whether the object, as it is or was, is meant.
    pub fn object(&self, object: &Value, old: Option<&Value>) -> bool {
        self.object.is_everything()
            || object.is_object() && self.object.matches_object(object)
            || old.is_some_and(|old| self.object.matches_object(old))
    }
    /// Whether a namespace is meant.
    pub fn namespace(&self, namespace: &Value) -> bool {
        self.namespace.is_everything() || self.namespace.matches_object(namespace)
    }
    /// Whether the namespace matters.
    pub fn asks_namespace(&self) -> bool {
        !self.namespace.is_everything()
    }
}

/// One webhook.
pub(super) struct Hook {
    /// Its name.
    pub name: String,
    /// The configuration that it is in, for audit annotations.
    pub configuration: String,
    /// Where it is.
    pub target: Result<outbound::Target, String>,
    /// `rules`.
    pub rules: Vec<Value>,
    /// Which objects.
    pub selectors: Selectors,
    /// Whether a call that fails refuses the request.
    pub fail: bool,
    /// Whether other versions of a resource that the rules name are meant too.
    pub equivalent: bool,
    /// Whether it may be called for a dry run.
    pub dry_runs: bool,
    /// How long a call may take.
    pub timeout: Duration,
    /// Whether it speaks AdmissionReview v1.
    pub speaks_v1: bool,
    /// `matchConditions`.
    pub conditions: Vec<(String, Expr)>,
    /// `reinvocationPolicy: IfNeeded`.
    pub reinvoke: bool,
}

/// A policy.
pub(super) struct Registered {
    /// Its name.
    pub name: String,
    /// `spec`.
    pub spec: Value,
    /// Its expressions.
    pub policy: Policy,
    /// Which objects.
    pub selectors: Selectors,
}

/// A binding of a policy.
pub(super) struct Binding {
    /// Its name.
    pub name: String,
    /// The policy.
    pub policy: String,
    /// `spec`.
    pub spec: Value,
    /// Which objects.
    pub selectors: Selectors,
}

/// What is registered now, each in the order of names.
#[derive(Default)]
pub(super) struct Snapshot {
    pub mutating: Vec<Arc<Hook>>,
    pub validating: Vec<Arc<Hook>>,
    pub policies: Vec<Arc<Registered>>,
    pub bindings: Vec<Arc<Binding>>,
}

/// What one object registers.
#[derive(Clone)]
enum Made {
    Mutating(Vec<Arc<Hook>>),
    Validating(Vec<Arc<Hook>>),
    Policy(Arc<Registered>),
    Binding(Arc<Binding>),
}

/// All registrations.
#[derive(Default)]
pub(crate) struct Registrations {
    made: RwLock<BTreeMap<String, Made>>,
    snapshot: RwLock<Arc<Snapshot>>,
    pub seen: Seen,
}

const UNPOISONED: &str = "no panic under this lock";

impl Registrations {
    /// What is registered.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read().expect(UNPOISONED))
    }

    fn replace(&self, listing: &Listing) {
        self.made.write().expect(UNPOISONED).clear();
        self.apply(listing.entries.iter().map(|entry| (&**entry, false)));
        self.seen.reach(listing.revision);
    }

    fn apply<'a>(&self, entries: impl Iterator<Item = (&'a Entry, bool)>) {
        let mut made = self.made.write().expect(UNPOISONED);
        for (entry, deleted) in entries {
            match (deleted, read(&entry.value())) {
                (false, Some(new)) => drop(made.insert(entry.key.to_string(), new)),
                _ => drop(made.remove(&*entry.key)),
            }
        }
        let mut snapshot = Snapshot::default();
        // The keys are in the order of kinds and names.
        for made in made.values().cloned() {
            match made {
                Made::Mutating(hooks) => snapshot.mutating.extend(hooks),
                Made::Validating(hooks) => snapshot.validating.extend(hooks),
                Made::Policy(policy) => snapshot.policies.push(policy),
                Made::Binding(binding) => snapshot.bindings.push(binding),
            }
        }
        *self.snapshot.write().expect(UNPOISONED) = Arc::new(snapshot);
    }
}

fn read(object: &Value) -> Option<Made> {
    let name = meta::name(object).to_owned();
    let spec = object["spec"].clone();
    Some(match text(&object["kind"]) {
        "MutatingWebhookConfiguration" => Made::Mutating(hooks(object)),
        "ValidatingWebhookConfiguration" => Made::Validating(hooks(object)),
        "ValidatingAdmissionPolicy" => {
            let policy = admission::policy(&mut Vec::new(), &spec);
            let selectors = Selectors::of(&spec["matchConstraints"]);
            Made::Policy(Arc::new(Registered { name, spec, policy, selectors }))
        }
        "ValidatingAdmissionPolicyBinding" => {
            let selectors = Selectors::of(&spec["matchResources"]);
            let policy = text(&spec["policyName"]).to_owned();
            Made::Binding(Arc::new(Binding { name, policy, spec, selectors }))
        }
        _ => return None,
    })
}

fn hooks(configuration: &Value) -> Vec<Arc<Hook>> {
    let env = admission::conditions_env();
    let hook = |hook: &Value| {
        Arc::new(Hook {
            name: text(&hook["name"]).to_owned(),
            configuration: meta::name(configuration).to_owned(),
            target: outbound::Target::of(&hook["clientConfig"]),
            rules: items(&hook["rules"]).to_vec(),
            selectors: Selectors::of(hook),
            fail: hook["failurePolicy"] != "Ignore",
            equivalent: hook["matchPolicy"] != "Exact",
            dry_runs: ["None", "NoneOnDryRun"].contains(&text(&hook["sideEffects"])),
            timeout: Duration::from_secs(hook["timeoutSeconds"].as_u64().unwrap_or(10).clamp(1, 30)),
            speaks_v1: items(&hook["admissionReviewVersions"]).iter().any(|version| version == "v1"),
            conditions: admission::conditions(&mut Vec::new(), &env, &hook["matchConditions"], ""),
            reinvoke: hook["reinvocationPolicy"] == "IfNeeded",
        })
    };
    items(&configuration["webhooks"]).iter().map(hook).collect()
}

/// Reads the registrations and begins to follow them.
pub(crate) async fn follow(server: &Arc<ApiServer>) -> StatusResult<()> {
    let mut following = Following::new(server, "webhooks and policies");
    server.registrations.replace(&following.add((), PREFIX).await?);
    tokio::spawn(run(following));
    Ok(())
}

async fn run(mut following: Following) {
    while let Some(Told { server, news, .. }) = following.next().await {
        let registrations = &server.registrations;
        match &news {
            News::Changes(events) => registrations.apply(events.iter().map(|event| (&*event.entry, event.deleted))),
            News::Everything(listing) => registrations.replace(listing),
        }
        registrations.seen.reach(news.revision());
    }
    if let Some(server) = following.server() {
        server.registrations.seen.end();
    }
}
