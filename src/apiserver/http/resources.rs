//! Requests for API resources: from `RequestInfo`, query and body to the registry's verbs, and back.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Response};
use serde_json::{Value, json};

use super::negotiate::{self, Accept, As};
use super::request::Query;
use super::responses::{self, Format};
use super::{Asked, read_body, stream};
use crate::api::kind::Subresource;
use crate::api::schema::{Parsed, Strictness};
use crate::api::status::FieldError;
use crate::api::validation::meta::path_segment_messages;
use crate::api::{Kind, Status, StatusResult, meta, schema};
use crate::apiserver::audit::Annotations;
use crate::apiserver::codec;
use crate::apiserver::registry::Context;
use crate::apiserver::registry::delete_options::DeleteOptions;
use crate::apiserver::registry::list::{Listed, Page};
use crate::apiserver::registry::patch::PatchBody;
use crate::apiserver::registry::update::Part;
use crate::apiserver::registry::watch::WatchOptions;
use crate::apiserver::selector::Selection;
use crate::apiserver::table::{self, Include};
use crate::apiserver::{ApiServer, component_status, subresources};
use crate::storage::Entry;

/// The answer to a request that is authenticated and authorised.
pub(super) async fn answer(server: &Arc<ApiServer>, asked: Asked) -> StatusResult<Response<Body>> {
    let info = &asked.info;
    let kind = server.kind(&info.group, &info.version, &info.resource).ok_or_else(no_resource)?;
    if kind.namespaced
        && info.namespace.is_empty()
        && !info.name.is_empty()
        && !["list", "watch", "deletecollection"].contains(&info.verb.as_str())
    {
        return Err(no_resource());
    }
    for segment in [&info.namespace, &info.name] {
        let problems = path_segment_messages(segment);
        if !segment.is_empty() && !problems.is_empty() {
            let why = format!("Name parameter invalid: {segment:?}: {}", problems.join(";"));
            return Err(Status::bad_request(why));
        }
    }
    let deprecation = kind.strategy.custom().and_then(|custom| custom.deprecation.clone());
    let mut response = dispatch(server, &kind, asked).await?;
    responses::add_warnings(&mut response, deprecation.as_slice());
    Ok(response)
}

async fn dispatch(server: &Arc<ApiServer>, kind: &Arc<Kind>, asked: Asked) -> StatusResult<Response<Body>> {
    let info = &asked.info;
    if info.subresource.is_empty() {
        return plain(server, kind, asked).await;
    }
    let sub = kind.subresources.iter().copied().find(|s| s.as_str() == info.subresource).ok_or_else(no_resource)?;
    match (sub, info.verb.as_str()) {
        (
            Subresource::Status | Subresource::EphemeralContainers | Subresource::Resize | Subresource::Approval,
            "get" | "update" | "patch",
        ) => plain(server, kind, asked).await,
        (Subresource::Finalize, "update") => plain(server, kind, asked).await,
        (Subresource::Scale, "get" | "update" | "patch") => scale(server, kind, asked).await,
        (
            Subresource::Status
            | Subresource::Scale
            | Subresource::EphemeralContainers
            | Subresource::Resize
            | Subresource::Approval
            | Subresource::Finalize,
            _,
        ) => Err(no_method()),
        _ => subresources::answer(server, kind, sub, asked).await,
    }
}

pub(crate) fn no_resource() -> Status {
    let mut status = Status::new(404, "NotFound", "the server could not find the requested resource");
    status.details = json!({});
    status
}

pub(crate) fn no_method() -> Status {
    let mut status =
        Status::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource");
    status.details = json!({});
    status
}

/// The object itself or its status.
async fn plain(server: &Arc<ApiServer>, kind: &Arc<Kind>, asked: Asked) -> StatusResult<Response<Body>> {
    let Asked { info, query, user, format, request, notes } = asked;
    let verb = info.verb.as_str();
    let has_protobuf = schema::of(&kind.gvk()).is_some();
    let accept = match verb {
        "watch" => negotiate::accept_stream(request.headers(), has_protobuf)?,
        _ => negotiate::accept(request.headers(), has_protobuf)?,
    };
    let format = Format { encoding: accept.encoding, ..format };
    if !kind.verbs.contains(&verb)
        || (verb == "create" && !info.name.is_empty())
        || (info.name.is_empty() && ["update", "patch"].contains(&verb))
    {
        return Err(no_method());
    }
    let part = match info.subresource.as_str() {
        "" => Part::Main,
        "status" => Part::Status,
        "finalize" => Part::Special(Subresource::Finalize),
        "resize" => Part::Special(Subresource::Resize),
        "approval" => Part::Special(Subresource::Approval),
        _ => Part::Special(Subresource::EphemeralContainers),
    };
    let (namespace, name) = (info.namespace.as_str(), info.name.as_str());
    let namespace = if kind.namespaced { namespace } else { "" };
    let shape = Shape { accept, format, include: Include::parse(query.text("includeObject")) };
    if verb == "create" && kind.namespaced && namespace.is_empty() {
        return Err(no_method());
    }
    if kind.gvr == crate::api::kinds::gvr::COMPONENT_STATUSES {
        let (entries, revision) = component_status::entries(server, kind).await?;
        let mut response = if verb == "list" {
            shape.list(server, kind, Listed { entries, revision, token: String::new(), remaining: None })
        } else {
            let named = entries.iter().find(|entry| meta::name(&entry.value()) == name);
            shape.object(server, kind, 200, named.ok_or_else(|| Status::not_found(&kind.gvr, name))?)
        };
        responses::add_warnings(&mut response, &[component_status::DEPRECATED.to_owned()]);
        return Ok(response);
    }
    match verb {
        "get" => {
            let at = query.text("resourceVersion");
            server.not_from_the_future(at).await?;
            let entry = server.get_entry(kind, namespace, name).await?;
            Ok(shape.object(server, kind, 200, &entry))
        }
        "list" => {
            let selection = selection(kind, &query)?;
            let page = page(&query)?;
            let listed = server.list(kind, namespace, &selection, &page).await?;
            Ok(shape.list(server, kind, listed))
        }
        "watch" => watch(server, kind, &info, &query, &shape).await,
        "create" => {
            let context = context(&user, &query, &notes, request.headers(), "POST")?;
            let object = body(request, &kind.kind).await?;
            if kind.verbs == ["create"] {
                let object = object.value;
                let answer = subresources::create_virtual(server, &context, kind, namespace, object).await?;
                return Ok(responses::object(201, format, &answer));
            }
            let entry = server.create(&context, kind, namespace, object).await?;
            Ok(warned(shape.object(server, kind, 201, &entry), &context))
        }
        "update" => {
            let context = context(&user, &query, &notes, request.headers(), "PUT")?;
            let object = body(request, &kind.kind).await?;
            let changed = server.replace(&context, kind, namespace, name, part, object).await?;
            let code = if changed.created { 201 } else { 200 };
            Ok(warned(shape.object(server, kind, code, &changed.entry), &context))
        }
        "patch" => {
            let mut context = context(&user, &query, &notes, request.headers(), "PATCH")?;
            if is_apply(request.headers()) {
                let (config, force) = apply_body(request, &query, context.strictness).await?;
                context.applying = true;
                let changed = server.apply(&context, kind, namespace, name, part, &config, force).await?;
                let code = if changed.created { 201 } else { 200 };
                return Ok(warned(shape.object(server, kind, code, &changed.entry), &context));
            }
            let patch = patch_body(request, &query).await?;
            let entry = server.patch(&context, kind, namespace, name, part, &patch).await?;
            Ok(warned(shape.object(server, kind, 200, &entry), &context))
        }
        "delete" => {
            let mut context = context(&user, &query, &notes, request.headers(), "DELETE")?;
            let options = delete_options(request, &query, &mut context).await?;
            let deleted = server.delete(&context, kind, namespace, name, &options).await?;
            let accepted = !deleted.gone && (options.orphan == Some(false));
            let code = if accepted { 202 } else { 200 };
            if deleted.gone && !returns_deleted(kind) {
                return Ok(responses::object(code, format, &success(kind, &deleted.entry.value())));
            }
            Ok(shape.object(server, kind, code, &deleted.entry))
        }
        "deletecollection" => {
            let mut context = context(&user, &query, &notes, request.headers(), "DELETE")?;
            let selection = selection(kind, &query)?;
            let page = page(&query)?;
            // A resourceVersion in the query says which list is meant.
            let options = delete_options(request, &query.without("resourceVersion"), &mut context).await?;
            let deleted = server.delete_collection(&context, kind, namespace, &selection, &page, &options).await?;
            Ok(shape.list(server, kind, deleted))
        }
        _ => Err(no_method()),
    }
}

/// The `scale` subresource.
async fn scale(server: &Arc<ApiServer>, kind: &Arc<Kind>, asked: Asked) -> StatusResult<Response<Body>> {
    let Asked { info, query, user, format, request, notes } = asked;
    let (namespace, name) = (info.namespace.as_str(), info.name.as_str());
    let method = request.method().clone();
    let mut context = context(&user, &query, &notes, request.headers(), method.as_str())?;
    let scale = match info.verb.as_str() {
        "get" => server.get_scale(kind, namespace, name).await?,
        "update" => {
            let scale = body(request, "Scale").await?.value;
            server.replace_scale(&context, kind, namespace, name, scale).await?
        }
        _ if is_apply(request.headers()) => {
            let (config, force) = apply_body(request, &query, context.strictness).await?;
            context.applying = true;
            server.apply_scale(&context, kind, namespace, name, &config, force).await?
        }
        _ => {
            let patch = patch_body(request, &query).await?;
            server.patch_scale(&context, kind, namespace, name, &patch).await?
        }
    };
    Ok(responses::object(200, format, &scale))
}

async fn watch(
    server: &Arc<ApiServer>,
    kind: &Arc<Kind>,
    info: &super::request::RequestInfo,
    query: &Query,
    shape: &Shape,
) -> StatusResult<Response<Body>> {
    let fields = match (query.text("fieldSelector"), info.name.as_str()) {
        ("", name) if !name.is_empty() => format!("metadata.name={name}"),
        (text, _) => text.to_owned(),
    };
    let selection = Selection::parse(kind, query.text("labelSelector"), &fields)?;
    let seconds = query.integer("timeoutSeconds")?.filter(|s| *s > 0);
    // As --min-request-timeout: between half an hour and an hour, spread so that clients do not come back together.
    let timeout = seconds.map_or_else(
        || Duration::from_secs(1800 + server.env.below(1800)),
        |s| Duration::from_secs(s.unsigned_abs().min(86_400)),
    );
    let options = WatchOptions {
        selection,
        resource_version: query.text("resourceVersion").to_owned(),
        version_match: query.text("resourceVersionMatch").to_owned(),
        bookmarks: query.flag("allowWatchBookmarks"),
        initial_events: query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents")),
        timeout,
    };
    let namespace = if kind.namespaced { info.namespace.as_str() } else { "" };
    let changes = server.watch(kind, namespace, options).await?;
    Ok(stream::answer(server, kind, info, changes, shape.accept, shape.include))
}

/// How objects are shown to this client.
struct Shape {
    accept: Accept,
    format: Format,
    include: Include,
}

impl Shape {
    fn object(&self, server: &ApiServer, kind: &Kind, code: u16, entry: &Arc<Entry>) -> Response<Body> {
        match table::shaped(kind, self.accept.shape, entry, self.include, server.env.now(), true) {
            None => responses::json_bytes(code, self.format, entry.json.clone()),
            Some(object) => responses::object(code, self.format, &object),
        }
    }

    fn list(&self, server: &ApiServer, kind: &Kind, listed: Listed) -> Response<Body> {
        let mut metadata = json!({"resourceVersion": listed.revision.to_string()});
        if !listed.token.is_empty() {
            metadata["continue"] = listed.token.as_str().into();
        }
        if let Some(remaining) = listed.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        match self.accept.shape {
            As::Object if kind.strategy.custom().is_some() => {
                // Go writes a list of custom resources from a map, which keeps what is empty.
                if metadata["continue"].is_null() {
                    metadata["continue"] = "".into();
                }
                responses::json_bytes(200, self.format, list_bytes(kind, &listed.entries, &metadata))
            }
            As::Object => responses::json_bytes(200, self.format, list_bytes(kind, &listed.entries, &metadata)),
            As::Table { beta } => {
                let table = table::table(kind, &listed.entries, metadata, beta, self.include, server.env.now(), true);
                responses::object(200, self.format, &table)
            }
            As::PartialObjectMetadata { beta } | As::PartialObjectMetadataList { beta } => {
                let version = if beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" };
                let items: Vec<Value> = listed.entries.iter().map(|e| table::partial(&e.value(), beta)).collect();
                let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": version, "metadata": metadata, "items": items});
                responses::object(200, self.format, &list)
            }
        }
    }
}

/// A list out of the stored bytes; items of built-in kinds leave out kind and apiVersion.
fn list_bytes(kind: &Kind, entries: &[Arc<Entry>], metadata: &Value) -> Bytes {
    let prefix = codec::item_prefix(kind);
    let keeps_type = kind.strategy.custom().is_some();
    let size: usize = entries.iter().map(|e| e.json.len() + 1).sum();
    let mut out = Vec::with_capacity(size + 200);
    let head = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        kind.list_kind(),
        kind.gvr.api_version()
    );
    out.extend_from_slice(head.as_bytes());
    for (i, entry) in entries.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        match entry.json.strip_prefix(prefix.as_bytes()) {
            Some(rest) if !keeps_type => {
                out.push(b'{');
                out.extend_from_slice(rest);
            }
            _ => out.extend_from_slice(&entry.json),
        }
    }
    out.extend_from_slice(b"]}");
    out.into()
}

/// The kinds whose delete answers with the object (`ReturnDeletedObject`).
fn returns_deleted(kind: &Kind) -> bool {
    const KINDS: [&str; 7] = [
        "pods",
        "serviceaccounts",
        "persistentvolumeclaims",
        "persistentvolumes",
        "resourcequotas",
        "podtemplates",
        "volumeattachments",
    ];
    KINDS.contains(&kind.gvr.resource.as_ref())
}

fn success(kind: &Kind, object: &Value) -> Value {
    let mut details = json!({"name": meta::name(object), "kind": kind.gvr.resource, "uid": meta::uid(object)});
    if !kind.gvr.group.is_empty() {
        details["group"] = kind.gvr.group.as_ref().into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

fn warned(mut response: Response<Body>, context: &Context<'_>) -> Response<Body> {
    responses::add_warnings(&mut response, &context.take_warnings());
    response
}

fn selection(kind: &Kind, query: &Query) -> StatusResult<Selection> {
    Selection::parse(kind, query.text("labelSelector"), query.text("fieldSelector"))
}

fn page(query: &Query) -> StatusResult<Page> {
    let limit = query.integer("limit")?.unwrap_or(0);
    Ok(Page {
        limit: usize::try_from(limit).unwrap_or(0),
        token: query.text("continue").to_owned(),
        resource_version: query.text("resourceVersion").to_owned(),
        version_match: query.text("resourceVersionMatch").to_owned(),
    })
}

/// What a write's query says: dry run, field validation, manager.
pub(crate) fn context<'a>(
    user: &'a crate::apiserver::User,
    query: &Query,
    notes: &Annotations,
    headers: &HeaderMap,
    method: &str,
) -> StatusResult<Context<'a>> {
    let options = match method {
        "POST" => "CreateOptions",
        "PUT" => "UpdateOptions",
        "PATCH" => "PatchOptions",
        _ => "DeleteOptions",
    };
    let invalid = |errors: &[FieldError]| Status::invalid("meta.k8s.io", options, "", errors);
    let dry: Vec<&str> = query.all("dryRun").filter(|v| !v.is_empty()).collect();
    if dry.iter().any(|v| *v != "All") {
        return Err(invalid(&[FieldError::not_supported("dryRun", &json!(dry), &["All"])]));
    }
    let manager = match query.get("fieldManager").filter(|m| !m.is_empty()) {
        Some(manager) => {
            if manager.len() > 128 {
                return Err(invalid(&[FieldError::too_long("fieldManager", 128)]));
            }
            if let Some(bad) = manager.chars().find(|c| c.is_control()) {
                let detail = format!("should only contain printable characters: found {bad:?}");
                return Err(invalid(&[FieldError::invalid("fieldManager", &json!(manager), &detail)]));
            }
            manager.to_owned()
        }
        None => {
            let agent = headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("unknown");
            agent.split('/').next().unwrap_or_default().chars().take(128).collect()
        }
    };
    let strictness = codec::strictness(query.text("fieldValidation")).map_err(|value| {
        invalid(&[FieldError::not_supported("fieldValidation", &json!(value), &["Ignore", "Strict", "Warn"])])
    })?;
    let mut context = Context::new(user);
    context.dry_run = !dry.is_empty();
    context.strictness = strictness;
    context.manager = manager;
    context.notes = notes.clone();
    Ok(context)
}

/// The body as an untyped object.
pub(crate) async fn body(request: http::Request<Body>, kind: &str) -> StatusResult<Parsed> {
    let encoding = negotiate::content_type(request.headers())?;
    let bytes = read_body(request.into_body()).await?;
    codec::parse(&bytes, encoding, kind)
}

/// Whether it is an apply patch.
fn is_apply(headers: &HeaderMap) -> bool {
    let content_type = headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    content_type.split(';').next().unwrap_or_default().trim() == "application/apply-patch+yaml"
}

/// The configuration of an apply, and whether conflicts are overridden.
async fn apply_body(
    request: http::Request<Body>,
    query: &Query,
    strictness: Strictness,
) -> StatusResult<(Value, bool)> {
    if query.text("fieldManager").is_empty() {
        let error = FieldError::required("fieldManager", "is required for apply patch");
        let mut status = Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]);
        if let Some(details) = status.details.as_object_mut() {
            details.remove("name");
        }
        return Err(status);
    }
    let bytes = read_body(request.into_body()).await?;
    let parsed = crate::api::schema::parse_yaml(&bytes, "")
        .map_err(|_| Status::bad_request("error decoding YAML: the body is not valid YAML"))?;
    if strictness == Strictness::Strict && !parsed.duplicates.is_empty() {
        return Err(Status::bad_request(format!("error strict decoding YAML: {}", parsed.duplicates.join(", "))));
    }
    Ok((parsed.value, query.flag("force")))
}

async fn patch_body(request: http::Request<Body>, query: &Query) -> StatusResult<PatchBody> {
    let content_type =
        request.headers().get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let content_type = content_type.split(';').next().unwrap_or_default().trim().to_owned();
    let wrap: fn(Value) -> PatchBody = match content_type.as_str() {
        "application/json-patch+json" => PatchBody::Json,
        "application/merge-patch+json" => PatchBody::Merge,
        "application/strategic-merge-patch+json" => PatchBody::Strategic,
        _ => {
            let mut status = Status::new(415, "UnsupportedMediaType", "415: Unsupported Media Type");
            status.details = json!({});
            return Err(status);
        }
    };
    if query.get("force").is_some() {
        let error = FieldError::forbidden("force", "may not be specified for non-apply patch");
        return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]));
    }
    let bytes = read_body(request.into_body()).await?;
    let is_merge = content_type == "application/merge-patch+json";
    let parsed = schema::parse_any_json(&bytes).map_err(|why| match is_merge {
        true => Status::new(500, "", "Invalid JSON Patch"),
        false => Status::bad_request(why),
    })?;
    let value = parsed.value;
    if is_merge && !value.is_object() {
        let sent = String::from_utf8_lossy(&bytes);
        let why = format!("couldn't get version/kind; json parse error: {}", not_a_struct(&value));
        return Err(Status::invalid("", "", "", &[FieldError::invalid("patch", &json!(sent), &why)]));
    }
    Ok(wrap(value))
}

/// What Go says when it wants kind and version of something that is no object.
pub(crate) fn not_a_struct(value: &Value) -> String {
    let what = match value {
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        _ => "array",
    };
    format!(
        "json: cannot unmarshal {what} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; \
         Kind string \"json:\\\"kind,omitempty\\\"\" }}"
    )
}

/// The options of a delete: a body hides the query, but for `dryRun`, which is never forgotten.
async fn delete_options(
    request: http::Request<Body>,
    query: &Query,
    context: &mut Context<'_>,
) -> StatusResult<DeleteOptions> {
    let encoding = negotiate::content_type(request.headers())?;
    let bytes = read_body(request.into_body()).await?;
    let options = if bytes.is_empty() {
        DeleteOptions::of_query(query)?
    } else {
        DeleteOptions::of_body(codec::parse(&bytes, encoding, "DeleteOptions")?.value)?
    };
    context.dry_run |= options.is_dry_run();
    Ok(options)
}
