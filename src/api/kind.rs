//! The registry entry of a kind: names, scope, subresources, columns and the strategy that the generic path calls.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::jsonpath::JsonPath;
use super::schema::{self, Root};
use super::status::FieldError;
use super::structural::Structural;

/// A string that built-in kinds have at compile time and custom resources do not.
pub type Name = Cow<'static, str>;

/// Group, version and resource (`apps`, `v1`, `deployments`).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gvr {
    /// The API group; empty for the core group.
    pub group: Name,
    /// The version within the group.
    pub version: Name,
    /// The plural resource name.
    pub resource: Name,
}

impl Gvr {
    /// A built-in resource.
    pub const fn new(group: &'static str, version: &'static str, resource: &'static str) -> Self {
        Self { group: Cow::Borrowed(group), version: Cow::Borrowed(version), resource: Cow::Borrowed(resource) }
    }
    /// `deployments.apps`, or `pods` in the core group, as error messages have it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.resource.to_string() } else { format!("{}.{}", self.resource, self.group) }
    }
    /// `apps/v1`, or `v1` in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }
}

impl fmt::Debug for Gvr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.api_version(), self.resource)
    }
}

/// Group, version and kind (`apps`, `v1`, `Deployment`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gvk {
    /// The API group; empty for the core group.
    pub group: Name,
    /// The version within the group.
    pub version: Name,
    /// The kind.
    pub kind: Name,
}

/// Subresources that the generic path knows beside the object itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// `status`: only `.status` (and metadata without spec) changes.
    Status,
    /// `scale`: `autoscaling/v1` Scale over `.spec.replicas`.
    Scale,
    /// `pods/binding` and `bindings`.
    Binding,
    /// `pods/eviction`.
    Eviction,
    /// `pods/ephemeralcontainers`.
    EphemeralContainers,
    /// `pods/resize`.
    Resize,
    /// `serviceaccounts/token`.
    Token,
    /// `namespaces/finalize`.
    Finalize,
    /// `certificatesigningrequests/approval`: only `.status.conditions` change.
    Approval,
    /// `pods/log`.
    Log,
    /// `pods/exec`.
    Exec,
    /// `pods/attach`.
    Attach,
    /// `pods/portforward`.
    PortForward,
    /// `pods/proxy`, `services/proxy`, `nodes/proxy`.
    Proxy,
}

impl Subresource {
    /// The path segment.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Resize => "resize",
            Self::Token => "token",
            Self::Finalize => "finalize",
            Self::Approval => "approval",
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
            Self::Proxy => "proxy",
        }
    }
}

/// A column of `meta.k8s.io/v1` Table.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// The header, such as `Up-to-date` (kubectl prints it in upper case).
    pub name: Name,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: Name,
    /// `name` for the name column, else empty (or `date`).
    pub format: Name,
    /// What it shows.
    pub description: Name,
    /// 0: always shown; 1: only with `-o wide`.
    pub priority: u8,
}

/// Where a scalable kind has what a Scale shows.
#[derive(Clone, Debug)]
pub struct ScalePaths {
    /// The wanted replicas, below `spec`: names of fields.
    pub spec_replicas: Vec<String>,
    /// The replicas there are.
    pub status_replicas: JsonPath,
    /// The label selector as a string; none: the kind tells none.
    pub selector: Option<JsonPath>,
}

/// How objects of other versions become this one's.
#[derive(Clone, Debug, PartialEq)]
pub enum Conversion {
    /// Only `apiVersion` differs.
    None,
    /// A webhook does it: `spec.conversion.webhook` of the CustomResourceDefinition.
    Webhook(Value),
}

/// What is particular about a kind that a CustomResourceDefinition makes.
#[derive(Clone, Debug)]
pub struct CustomResource {
    /// The schema of this version.
    pub schema: Arc<Structural>,
    /// The same as it is published.
    pub published: Arc<Value>,
    /// The version that objects are stored in.
    pub storage_version: String,
    /// How objects of other versions become this one's.
    pub conversion: Conversion,
    /// `listKind`.
    pub list_kind: String,
    /// Objects with a later revision were stored under this very schema and need no second look.
    pub since: u64,
    /// What is said to whoever uses a deprecated version.
    pub deprecation: Option<String>,
    /// Whether the definition is going: nothing new is created.
    pub terminating: bool,
    /// Where replicas are.
    pub scale: Option<ScalePaths>,
}

/// What is particular about a kind. Every method has the meaning of the registry strategies of kube-apiserver; the
/// generic path does everything else (decoding, schema defaults, metadata, patches, storage, watch).
pub trait Strategy: Send + Sync {
    /// Defaults that the schema table does not express (`SetDefaults_*`). Runs on every decode of a request, and
    /// again after mutating admission. Must be idempotent.
    fn default(&self, _object: &mut Value) {}
    /// Before a create: drop what a client may not set (the generic path has already dropped `.status` where the
    /// kind has a status subresource, and set `metadata.generation` to 1 where [`Kind::has_generation`]).
    fn prepare_for_create(&self, _object: &mut Value) {}
    /// Whether a create keeps the client's `.status` (Nodes register themselves with theirs).
    fn keeps_status_on_create(&self) -> bool {
        false
    }
    /// Whether a delete that says nothing about dependents leaves them behind (`DefaultGarbageCollectionPolicy`: what is
    /// older than the garbage collector does).
    fn orphans_by_default(&self) -> bool {
        false
    }
    /// Before an update of the object itself (the generic path has already put the old `.status` back).
    fn prepare_for_update(&self, _object: &mut Value, _old: &Value) {}
    /// When a delete marks the object (its finalizers are what it waits for).
    fn prepare_for_delete(&self, _object: &mut Value, _now: jiff::Timestamp) {}
    /// Validates a new object (metadata is validated by the generic path).
    fn validate(&self, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }
    /// Validates an update: immutable fields and transitions, and then usually [`Strategy::validate`].
    fn validate_update(&self, object: &Value, _old: &Value) -> Vec<FieldError> {
        self.validate(object)
    }
    /// Validates an update of the status subresource.
    fn validate_status_update(&self, _object: &Value, _old: &Value) -> Vec<FieldError> {
        Vec::new()
    }
    /// Validates a change through a subresource with rules of its own (`pods/ephemeralcontainers`).
    fn validate_special_update(&self, _subresource: Subresource, _object: &Value, _old: &Value) -> Vec<FieldError> {
        Vec::new()
    }
    /// Texts for `Warning` headers of a create or update.
    fn warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }
    /// The columns of the kind's table; the default is Name and Age.
    fn columns(&self) -> Vec<Column>;
    /// The cells of one object, in the order of the columns. `now` is for ages.
    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value>;
    /// The conditions of the object's table row (pods that ended are `Completed`).
    fn row_conditions(&self, _object: &Value) -> Vec<Value> {
        Vec::new()
    }
    /// Field selectors beside `metadata.name` and `metadata.namespace`, with the object's value of each.
    fn selectable_fields(&self, _object: &Value) -> Vec<(&'static str, String)> {
        Vec::new()
    }
    /// Whether [`Strategy::selectable_fields`] knows the label (so that an unknown one can be refused).
    fn knows_field(&self, _field: &str) -> bool {
        false
    }
    /// The value of a field of a field selector, when the kind knows the field.
    fn field_value(&self, object: &Value, field: &str) -> Option<String> {
        self.selectable_fields(object).into_iter().find(|(known, _)| *known == field).map(|(_, value)| value)
    }
    /// Whether an update from `old` is one that `metadata.generation` counts.
    fn changes_generation(&self, object: &Value, old: &Value) -> bool {
        object["spec"] != old["spec"]
    }
    /// What makes it a custom resource.
    fn custom(&self) -> Option<&CustomResource> {
        None
    }
    /// The resource whose storage this kind shares when it is another version of the same objects
    /// (`events.k8s.io` Events are stored as core Events).
    fn stored_as(&self) -> Option<Gvr> {
        None
    }
    /// Turns a decoded object of this version into the stored version. Only with [`Strategy::stored_as`].
    fn to_stored(&self, _object: &mut Value) {}
    /// Turns a stored object into this version. Only with [`Strategy::stored_as`].
    fn from_stored(&self, _object: &mut Value) {}
    /// Validates `metadata.name`; returns the messages. The default is an RFC 1123 subdomain.
    fn validate_name(&self, name: &str) -> Vec<String> {
        super::meta::validate_subdomain(name)
    }
}

/// One kind of object: what discovery, routes, tables and the generic path need to know.
#[derive(Clone)]
pub struct Kind {
    /// Group, version, resource.
    pub gvr: Gvr,
    /// The kind, such as `Deployment`.
    pub kind: Name,
    /// The singular name, lower case.
    pub singular: Name,
    /// Short names such as `deploy`.
    pub short_names: Vec<Name>,
    /// Categories such as `all`.
    pub categories: Vec<Name>,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Subresources that are served.
    pub subresources: Vec<Subresource>,
    /// Whether `metadata.generation` counts changes of the spec.
    pub has_generation: bool,
    /// Verbs of the resource itself; the usual eight unless the kind is virtual (reviews: only `create`).
    pub verbs: Vec<&'static str>,
    /// Whether a PUT of a name that is not there creates it (Lease, Endpoints, EndpointSlice, Event, Node… do; Pod does not).
    pub create_on_update: bool,
    /// Whether a PUT without a resourceVersion overwrites (`AllowUnconditionalUpdate`).
    pub unconditional_update: bool,
    /// Whether objects may be kept in memory and reach the disk lazily (Event, Lease renewals).
    pub lazy: bool,
    /// The particulars.
    pub strategy: Arc<dyn Strategy>,
}

/// All verbs of an ordinary resource, in discovery's order.
pub const ALL_VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Kind {
    /// Group, version, kind.
    pub fn gvk(&self) -> Gvk {
        Gvk { group: self.gvr.group.clone(), version: self.gvr.version.clone(), kind: self.kind.clone() }
    }
    /// The schema of its objects; none for kinds that have no object of their own.
    pub fn schema(&self) -> Option<Root<'_>> {
        match self.strategy.custom() {
            Some(custom) => Some(Root::Custom(&custom.schema, self.has(Subresource::Status))),
            None => schema::of(&self.gvk()).map(Root::Table),
        }
    }
    /// The kind of its lists.
    pub fn list_kind(&self) -> String {
        self.strategy.custom().map_or_else(|| format!("{}List", self.kind), |custom| custom.list_kind.clone())
    }
    /// Whether `sub` is served.
    pub fn has(&self, sub: Subresource) -> bool {
        self.subresources.contains(&sub)
    }
}
