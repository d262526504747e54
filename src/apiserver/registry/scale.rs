//! The `scale` subresource: `autoscaling/v1` Scale over `spec.replicas`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Context;
use super::patch::PatchBody;
use super::update::Part;
use crate::api::kind::{Gvk, ScalePaths, Subresource};
use crate::api::schema;
use crate::api::selector::LabelSelector;
use crate::api::status::FieldError;
use crate::api::{Kind, Status, StatusResult, meta};
use crate::apiserver::ApiServer;

/// The version of Scales.
pub(crate) const SCALE_VERSION: &str = "autoscaling/v1";
/// Managers of a Scale are told apart from those of the object.
pub(super) const PART: Part = Part::Special(Subresource::Scale);

/// The Scale of an object.
pub(crate) fn scale_of(kind: &Kind, object: &Value) -> StatusResult<Value> {
    match kind.strategy.custom().and_then(|custom| custom.scale.as_ref()) {
        Some(paths) => custom_scale(kind, paths, object),
        None => Ok(built_in_scale(object)),
    }
}

/// The Scale of a custom resource (`scaleFromCustomResource`).
fn custom_scale(kind: &Kind, paths: &ScalePaths, object: &Value) -> StatusResult<Value> {
    let mut scale = json!({"kind": "Scale", "apiVersion": SCALE_VERSION, "metadata": {}, "spec": {}, "status": {}});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        scale["metadata"][field] = object["metadata"][field].clone();
    }
    let mut wanted = Some(object);
    for field in &paths.spec_replicas {
        wanted = wanted.and_then(|value| value.get(field));
    }
    let Some(wanted) = wanted.and_then(Value::as_i64) else {
        let path = format!(".{}", paths.spec_replicas.join("."));
        let name = meta::name(object);
        let why = format!("the spec replicas field {path:?} does not exist in {} {name:?}", kind.kind);
        return Err(Status::internal(why));
    };
    if wanted != 0 {
        scale["spec"]["replicas"] = wanted.into();
    }
    let there = paths.status_replicas.first(object).and_then(Value::as_i64).unwrap_or(0);
    scale["status"]["replicas"] = there.into();
    if let Some(selector) = paths.selector.as_ref().and_then(|path| path.first(object)?.as_str()) {
        scale["status"]["selector"] = selector.into();
    }
    Ok(scale)
}

/// Writes the replicas that a Scale wants into an object, if it may want them.
pub(super) fn set_scale(kind: &Kind, object: &mut Value, scale: &Value) -> StatusResult<()> {
    check(kind, meta::name(object), scale)?;
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    let default = ["spec".to_owned(), "replicas".to_owned()];
    let custom = kind.strategy.custom().and_then(|custom| custom.scale.as_ref());
    let path = custom.map_or(&default[..], |paths| &paths.spec_replicas);
    let mut place = object;
    for field in path {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[field.as_str()];
    }
    *place = replicas.into();
    Ok(())
}

fn built_in_scale(object: &Value) -> Value {
    let mut metadata = json!({"name": meta::name(object), "namespace": meta::namespace(object)});
    for field in ["uid", "resourceVersion", "creationTimestamp"] {
        metadata[field] = object["metadata"][field].clone();
    }
    let selector = &object["spec"]["selector"];
    // A ReplicationController has a plain map.
    let plain = selector.as_object().filter(|map| map.values().all(Value::is_string));
    let selector = match plain {
        Some(map) => Ok(LabelSelector::from_map(map)),
        None => LabelSelector::from_label_selector(selector),
    };
    let mut status = json!({"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)});
    if let Ok(selector) = selector {
        status["selector"] = selector.to_string().into();
    }
    let mut spec = json!({});
    if let Some(replicas) = object["spec"]["replicas"].as_i64().filter(|n| *n != 0) {
        spec["replicas"] = replicas.into();
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

impl ApiServer {
    /// The Scale of a stored object.
    pub(crate) async fn get_scale(&self, kind: &Kind, namespace: &str, name: &str) -> StatusResult<Value> {
        scale_of(kind, &self.get_entry(kind, namespace, name).await?.value())
    }

    /// PUT or PATCH of a Scale: `make` turns the current one into the wanted one.
    pub(crate) async fn change_scale(
        &self,
        context: &Context<'_>,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
        make: impl Fn(Value) -> StatusResult<Value> + Send + Sync,
    ) -> StatusResult<Value> {
        let entry = self
            .change(context, kind, namespace, name, PART, |old| {
                let wanted = make(scale_of(kind, old)?)?;
                let mut object = old.clone();
                set_scale(kind, &mut object, &wanted)?;
                if let Some(version) = wanted["metadata"]["resourceVersion"].as_str() {
                    object["metadata"]["resourceVersion"] = version.into();
                }
                Ok(object)
            })
            .await?;
        scale_of(kind, &entry.value())
    }

    /// PUT of a Scale.
    pub(crate) async fn replace_scale(
        &self,
        context: &Context<'_>,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
        mut scale: Value,
    ) -> StatusResult<Value> {
        if !scale.is_object() {
            let why = crate::apiserver::http::resources::not_a_struct(&scale);
            return Err(Status::bad_request(format!("couldn't get version/kind; json parse error: {why}")));
        }
        check(kind, name, &scale)?;
        let gvk = Gvk { group: "autoscaling".into(), version: "v1".into(), kind: "Scale".into() };
        if let Some(ty) = schema::of(&gvk) {
            context.warn(schema::decode(ty, &mut scale, context.strictness)?);
        }
        self.change_scale(context, kind, namespace, name, |current| {
            let mut wanted = scale.clone();
            if meta::resource_version(&wanted).is_empty() {
                wanted["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"].clone();
            }
            Ok(wanted)
        })
        .await
    }

    /// PATCH of a Scale with an apply patch: the replicas of the object are applied.
    pub(crate) async fn apply_scale(
        &self,
        context: &Context<'_>,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
        scale: &Value,
        force: bool,
    ) -> StatusResult<Value> {
        let sent = scale["apiVersion"].as_str().unwrap_or_default();
        if sent != SCALE_VERSION {
            let why = format!(
                "Incorrect version specified in apply patch. Specified patch version: {sent}, expected: {SCALE_VERSION}"
            );
            return Err(Status::bad_request(why));
        }
        check(kind, name, scale)?;
        let mut config =
            json!({"kind": kind.kind, "apiVersion": kind.gvr.api_version(), "metadata": {"name": name}, "spec": {}});
        if let Some(replicas) = scale["spec"]["replicas"].as_i64() {
            config["spec"]["replicas"] = replicas.into();
        }
        if let Some(version) = scale["metadata"]["resourceVersion"].as_str() {
            config["metadata"]["resourceVersion"] = version.into();
        }
        let changed = self.apply(context, kind, namespace, name, PART, &config, force).await?;
        scale_of(kind, &changed.entry.value())
    }

    /// PATCH of a Scale.
    pub(crate) async fn patch_scale(
        &self,
        context: &Context<'_>,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
        patch: &PatchBody,
    ) -> StatusResult<Value> {
        // A Scale has no lists: the strategic patch is a merge patch.
        let patch = match patch {
            PatchBody::Strategic(value) => PatchBody::Merge(value.clone()),
            other => other.clone(),
        };
        self.change_scale(context, kind, namespace, name, |current| patch.apply(kind, &current)).await
    }
}

fn check(kind: &Kind, name: &str, scale: &Value) -> StatusResult<()> {
    let group_kind = scale["kind"].as_str().unwrap_or("Scale");
    if group_kind != "Scale" {
        let version = scale["apiVersion"].as_str().unwrap_or_default();
        return Err(Status::bad_request(format!(
            "expected input object type to be Scale, but got {version}, Kind={group_kind}"
        )));
    }
    let sent = meta::name(scale);
    if !sent.is_empty() && sent != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({sent}) does not match the name on the URL ({name})"
        )));
    }
    let replicas = &scale["spec"]["replicas"];
    if replicas.as_i64().is_some_and(|n| n < 0) {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(Status::invalid("autoscaling", "Scale", name, &[error]));
    }
    if !replicas.is_null() && replicas.as_i64().and_then(|n| i32::try_from(n).ok()).is_none() {
        return Err(Status::bad_request(format!("{}: spec.replicas must be a whole number of 32 bits", kind.kind)));
    }
    Ok(())
}
