//! The paths of a kind: its operations with their parameters, as clients look for them.

use serde_json::{Map, Value, json};

use super::custom;
use super::schemas::Dialect;
use crate::api::kind::{Gvk, Kind, Subresource};
use crate::api::schema::{self, TypeId};

const READ: [&str; 4] =
    ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/cbor"];
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
const CUSTOM_PATCHES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

/// What a subresource carries, where it is not the kind itself.
fn subresource_kind(sub: Subresource) -> Option<Gvk> {
    let (group, version, kind) = match sub {
        Subresource::Scale => ("autoscaling", "v1", "Scale"),
        Subresource::Binding => ("", "v1", "Binding"),
        Subresource::Eviction => ("policy", "v1", "Eviction"),
        Subresource::Token => ("authentication.k8s.io", "v1", "TokenRequest"),
        _ => return None,
    };
    Some(Gvk { group: group.into(), version: version.into(), kind: kind.into() })
}

/// The types that the kind's operations name.
pub(super) fn types(kind: &Kind) -> impl Iterator<Item = TypeId> {
    let gvk = kind.gvk();
    let list = Gvk { kind: format!("{}List", kind.kind).into(), ..gvk.clone() };
    let subresources = kind.subresources.iter().filter_map(|s| subresource_kind(*s)).collect::<Vec<_>>();
    let always = ["DeleteOptions", "Status"].map(|k| Gvk { group: "".into(), version: "v1".into(), kind: k.into() });
    let custom = kind.strategy.custom().is_some();
    let metadata = ["ObjectMeta", "ListMeta"].map(|name| format!("apimachinery.pkg.apis.meta.v1.{name}"));
    let metadata = metadata.into_iter().filter_map(|name| TypeId::of_definition(&name)).filter(move |_| custom);
    let own = [gvk, list].into_iter().filter(move |_| !custom);
    own.chain(subresources).chain(always).filter_map(|gvk| schema::of(&gvk)).chain(metadata)
}

/// The kind's paths.
pub(super) fn of(kind: &Kind, dialect: Dialect) -> Vec<(String, Value)> {
    let gvr = &kind.gvr;
    let root = if gvr.group.is_empty() { "/api" } else { "/apis" };
    let base = format!("{root}/{}", gvr.api_version());
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{base}{scope}/{}", gvr.resource);
    let has = |verb: &str| kind.verbs.contains(&verb);
    let gvk = kind.gvk();
    let patches: &[&str] = if kind.strategy.custom().is_some() { &CUSTOM_PATCHES } else { &PATCHES };
    let operation = |action: &str, name: String, gvk: &Gvk, parameters: Vec<Value>| Operation {
        dialect,
        kind,
        action: action.to_owned(),
        id: name,
        gvk: gvk.clone(),
        parameters,
    };
    let namespaced = if kind.namespaced { "Namespaced" } else { "" };
    let mut paths = Vec::new();

    let mut item = Map::new();
    if has("list") {
        let list = operation("list", format!("list{namespaced}"), &gvk, list_parameters());
        item.insert("get".into(), list.answering(&kind.list_kind()).build(None));
    }
    if has("create") {
        let create = operation("post", format!("create{namespaced}"), &gvk, write_parameters());
        item.insert("post".into(), create.answering(&kind.kind).build(Some(&READ)));
    }
    if has("deletecollection") {
        let delete = operation("deletecollection", format!("deleteCollection{namespaced}"), &gvk, list_parameters());
        item.insert("delete".into(), delete.answering("Status").build(None));
    }
    let common = |named: bool| {
        let mut common = vec![query("pretty", "string", "If 'true', then the output is pretty printed.")];
        if kind.namespaced {
            common.insert(0, path_parameter("namespace", "object name and auth scope, such as for teams and projects"));
        }
        if named {
            common.insert(0, path_parameter("name", &format!("name of the {}", kind.kind)));
        }
        dialect_parameters(common, dialect)
    };
    if !item.is_empty() {
        item.insert("parameters".into(), common(false));
        paths.push((collection.clone(), Value::Object(item)));
    }
    if kind.namespaced && has("list") {
        let list = operation("list", "list".into(), &gvk, list_parameters());
        let get = list.answering(&kind.list_kind()).for_all_namespaces().build(None);
        paths.push((format!("{base}/{}", gvr.resource), json!({"get": get})));
    }

    let mut item = Map::new();
    if has("get") {
        let get = operation("get", format!("read{namespaced}"), &gvk, Vec::new());
        item.insert("get".into(), get.answering(&kind.kind).build(None));
    }
    if has("update") {
        let put = operation("put", format!("replace{namespaced}"), &gvk, write_parameters());
        item.insert("put".into(), put.answering(&kind.kind).build(Some(&READ)));
    }
    if has("patch") {
        let patch = operation("patch", format!("patch{namespaced}"), &gvk, patch_parameters());
        item.insert("patch".into(), patch.answering(&kind.kind).build(Some(patches)));
    }
    if has("delete") {
        let delete = operation("delete", format!("delete{namespaced}"), &gvk, delete_parameters());
        item.insert("delete".into(), delete.answering("Status").build(Some(&READ[..1])));
    }
    if !item.is_empty() {
        item.insert("parameters".into(), common(true));
        paths.push((format!("{collection}/{{name}}"), Value::Object(item)));
    }

    for sub in &kind.subresources {
        let carried = subresource_kind(*sub);
        let gvk = carried.clone().unwrap_or_else(|| gvk.clone());
        let suffix = format!("{}{}", sub.as_str()[..1].to_uppercase(), &sub.as_str()[1..]);
        let operation = |action: &str, verb: &str, parameters| {
            let mut made = operation(action, format!("{verb}{namespaced}"), &gvk, parameters);
            made.id = format!("{}{}{suffix}", made.id, kind.kind);
            made.answering(&gvk.kind)
        };
        let mut item = Map::new();
        match sub {
            Subresource::Status
            | Subresource::Scale
            | Subresource::EphemeralContainers
            | Subresource::Resize
            | Subresource::Approval => {
                item.insert("get".into(), operation("get", "read", Vec::new()).build(None));
                item.insert("put".into(), operation("put", "replace", write_parameters()).build(Some(&READ)));
                item.insert("patch".into(), operation("patch", "patch", patch_parameters()).build(Some(patches)));
            }
            Subresource::Finalize => {
                item.insert("put".into(), operation("put", "replace", write_parameters()).build(Some(&READ)));
            }
            Subresource::Binding | Subresource::Eviction | Subresource::Token => {
                item.insert("post".into(), operation("post", "create", write_parameters()).build(Some(&READ)));
            }
            Subresource::Log => {
                item.insert("get".into(), operation("get", "read", Vec::new()).plain());
            }
            Subresource::Exec | Subresource::Attach | Subresource::PortForward | Subresource::Proxy => {
                item.insert("get".into(), operation("connect", "connectGet", Vec::new()).plain());
                item.insert("post".into(), operation("connect", "connectPost", Vec::new()).plain());
            }
        }
        item.insert("parameters".into(), common(true));
        paths.push((format!("{collection}/{{name}}/{}", sub.as_str()), Value::Object(item)));
    }
    paths
}

/// One operation in the making.
struct Operation<'a> {
    dialect: Dialect,
    kind: &'a Kind,
    action: String,
    id: String,
    gvk: Gvk,
    parameters: Vec<Value>,
}

/// An operation that knows what it answers.
struct Answering<'a> {
    operation: Operation<'a>,
    answer: String,
    for_all: bool,
}

impl<'a> Operation<'a> {
    fn answering(self, kind: &str) -> Answering<'a> {
        Answering { operation: self, answer: kind.to_owned(), for_all: false }
    }
}

impl Answering<'_> {
    fn for_all_namespaces(mut self) -> Self {
        self.for_all = true;
        self
    }

    fn id(&self) -> String {
        let Operation { kind, id, .. } = &self.operation;
        let group = kind.gvr.group.split('.').next().unwrap_or_default();
        let group = if group.is_empty() { "core" } else { group };
        let upper = |text: &str| format!("{}{}", text[..1].to_uppercase(), &text[1..]);
        let verb_end = id.find(char::is_uppercase).unwrap_or(id.len());
        let verb_end = if id.starts_with("deleteCollection") { "deleteCollection".len() } else { verb_end };
        let (verb, rest) = id.split_at(verb_end);
        let rest = if rest.contains(kind.kind.as_ref()) { rest.to_owned() } else { format!("{rest}{}", kind.kind) };
        let all = if self.for_all { "ForAllNamespaces" } else { "" };
        format!("{verb}{}{}{rest}{all}", upper(group), upper(&kind.gvr.version))
    }

    /// The operation without schemas: streams and texts.
    fn plain(self) -> Value {
        let schema = json!({"type": "string"});
        let responses = match self.operation.dialect {
            Dialect::V2 => {
                json!({"200": {"description": "OK", "schema": schema}, "401": {"description": "Unauthorized"}})
            }
            Dialect::V3 => json!({"200": {"description": "OK", "content": {"*/*": {"schema": schema}}},
                "401": {"description": "Unauthorized"}}),
        };
        self.assemble(None, responses)
    }

    /// The operation; `consumes` are the media types of its body.
    fn build(self, consumes: Option<&[&str]>) -> Value {
        let dialect = self.operation.dialect;
        let gvk = Gvk { kind: self.answer.clone().into(), ..self.operation.gvk.clone() };
        let built_in = || schema::of(&gvk).map(|ty| dialect.reference(ty.get().definition));
        let schema = custom::reference(self.operation.kind, &self.answer, dialect).or_else(built_in);
        let schema = schema.unwrap_or_else(|| json!({"type": "object"}));
        let mut responses = Map::new();
        let mut codes = vec![("200", "OK")];
        match self.operation.action.as_str() {
            "post" => codes.extend([("201", "Created"), ("202", "Accepted")]),
            "put" | "patch" => codes.push(("201", "Created")),
            "delete" => codes.push(("202", "Accepted")),
            _ => {}
        }
        for (code, text) in codes {
            let response = match dialect {
                Dialect::V2 => json!({"description": text, "schema": schema}),
                Dialect::V3 => {
                    let content: Map<String, Value> =
                        READ.iter().map(|m| ((*m).to_owned(), json!({"schema": schema}))).collect();
                    json!({"description": text, "content": content})
                }
            };
            responses.insert(code.to_owned(), response);
        }
        responses.insert("401".into(), json!({"description": "Unauthorized"}));
        let body = match self.operation.action.as_str() {
            "patch" => {
                json!({"description": "Patch is provided to give a concrete name and type to the Kubernetes PATCH \
                request body.", "type": "object"})
            }
            "delete" => schema::of(&Gvk { kind: "DeleteOptions".into(), ..gvk })
                .map_or(Value::Null, |ty| dialect.reference(ty.get().definition)),
            _ => schema,
        };
        self.assemble(consumes.map(|media| (media, body)), responses.into())
    }

    fn assemble(self, body: Option<(&[&str], Value)>, responses: Value) -> Value {
        let id = self.id();
        let Operation { dialect, kind, action, gvk, parameters, .. } = self.operation;
        let group = kind.gvr.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core").to_owned();
        let mut operation = Map::new();
        operation.insert("description".into(), describe(&action, &kind.kind).into());
        operation.insert("operationId".into(), id.into());
        operation.insert("tags".into(), json!([format!("{group}_{}", kind.gvr.version)]));
        operation.insert("x-kubernetes-action".into(), action.into());
        let gvk = json!({"group": gvk.group, "kind": gvk.kind, "version": gvk.version});
        operation.insert("x-kubernetes-group-version-kind".into(), gvk);
        operation.insert("responses".into(), responses);
        let mut parameters = dialect_parameters(parameters, dialect);
        match dialect {
            Dialect::V2 => {
                operation.insert("produces".into(), json!(&READ[..3]));
                let consumes = body.as_ref().map_or(json!(["*/*"]), |(media, _)| json!(media));
                operation.insert("consumes".into(), consumes);
                operation.insert("schemes".into(), json!(["https"]));
                if let Some((_, schema)) = body {
                    let body = json!({"in": "body", "name": "body", "required": true, "schema": schema});
                    parameters.as_array_mut().expect("parameters are a list").insert(0, body);
                }
            }
            Dialect::V3 => {
                if let Some((media, schema)) = body {
                    let content: Map<String, Value> =
                        media.iter().map(|m| ((*m).to_owned(), json!({"schema": schema}))).collect();
                    operation.insert("requestBody".into(), json!({"content": content, "required": true}));
                }
            }
        }
        if parameters.as_array().is_some_and(|p| !p.is_empty()) {
            operation.insert("parameters".into(), parameters);
        }
        Value::Object(operation)
    }
}

fn describe(action: &str, kind: &str) -> String {
    match action {
        "get" => format!("read the specified {kind}"),
        "list" => format!("list or watch objects of kind {kind}"),
        "post" => format!("create a {kind}"),
        "put" => format!("replace the specified {kind}"),
        "patch" => format!("partially update the specified {kind}"),
        "delete" => format!("delete a {kind}"),
        "deletecollection" => format!("delete collection of {kind}"),
        _ => format!("connect requests to {kind}"),
    }
}

fn query(name: &str, kind: &str, text: &str) -> Value {
    json!({"name": name, "in": "query", "type": kind, "uniqueItems": true, "description": text})
}

fn path_parameter(name: &str, text: &str) -> Value {
    json!({"name": name, "in": "path", "type": "string", "required": true, "uniqueItems": true, "description": text})
}

/// In v3 the type is a schema.
fn dialect_parameters(parameters: Vec<Value>, dialect: Dialect) -> Value {
    if dialect == Dialect::V2 {
        return parameters.into();
    }
    let convert = |mut parameter: Value| {
        let kind = parameter["type"].take();
        if let Some(map) = parameter.as_object_mut() {
            map.remove("type");
            map.remove("uniqueItems");
            map.insert("schema".into(), json!({"type": kind, "uniqueItems": true}));
        }
        parameter
    };
    parameters.into_iter().map(convert).collect()
}

fn write_parameters() -> Vec<Value> {
    vec![
        query(
            "dryRun",
            "string",
            "When present, indicates that modifications should not be persisted. An invalid or \
            unrecognized dryRun directive will result in an error response and no further processing of the request. \
            Valid values are: - All: all dry run stages will be processed",
        ),
        query(
            "fieldManager",
            "string",
            "fieldManager is a name associated with the actor or entity that is making these \
            changes. The value must be less than or 128 characters long, and only contain printable characters.",
        ),
        query(
            "fieldValidation",
            "string",
            "fieldValidation instructs the server on how to handle objects in the request \
            (POST/PUT/PATCH) containing unknown or duplicate fields. Valid values are: Ignore, Warn and Strict.",
        ),
    ]
}

fn patch_parameters() -> Vec<Value> {
    let mut parameters = write_parameters();
    parameters.push(query(
        "force",
        "boolean",
        "Force is going to \"force\" Apply requests. It means user will re-acquire \
        conflicting fields owned by other people. Force flag must be unset for non-apply patch requests.",
    ));
    parameters
}

fn delete_parameters() -> Vec<Value> {
    vec![
        query("dryRun", "string", "When present, indicates that modifications should not be persisted."),
        query("gracePeriodSeconds", "integer", "The duration in seconds before the object should be deleted."),
        query(
            "propagationPolicy",
            "string",
            "Whether and how garbage collection will be performed: Orphan, Background or \
            Foreground.",
        ),
    ]
}

fn list_parameters() -> Vec<Value> {
    vec![
        query("allowWatchBookmarks", "boolean", "allowWatchBookmarks requests watch events with type \"BOOKMARK\"."),
        query("continue", "string", "The continue option should be set when retrieving more results from the server."),
        query("fieldSelector", "string", "A selector to restrict the list of returned objects by their fields."),
        query("labelSelector", "string", "A selector to restrict the list of returned objects by their labels."),
        query("limit", "integer", "limit is a maximum number of responses to return for a list call."),
        query(
            "resourceVersion",
            "string",
            "resourceVersion sets a constraint on what resource versions a request may be \
            served from.",
        ),
        query(
            "resourceVersionMatch",
            "string",
            "resourceVersionMatch determines how resourceVersion is applied to list \
            calls.",
        ),
        query(
            "sendInitialEvents",
            "boolean",
            "sendInitialEvents begins the watch with synthetic events of the state of \
            the collection.",
        ),
        query("timeoutSeconds", "integer", "Timeout for the list/watch call."),
        query(
            "watch",
            "boolean",
            "Watch for changes to the described resources and return them as a stream of add, \
            update, and remove notifications.",
        ),
    ]
}
