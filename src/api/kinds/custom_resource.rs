//! Custom resources: the kinds that a CustomResourceDefinition makes, one for each version that it serves.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::jsonpath::JsonPath;
use crate::api::kind::{Column, Conversion, CustomResource, Gvr, Kind, Name, ScalePaths, Strategy, Subresource};
use crate::api::meta::{self, items, text};
use crate::api::printers::{self, name_column, since};
use crate::api::status::FieldError;
use crate::api::structural::{self, Structural};

/// All verbs, in the order in which discovery shows them of custom resources.
const VERBS: [&str; 8] = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

/// The kinds of a definition whose names are accepted, the version with the highest priority first. `since`: the revision from
/// which on objects were stored under these schemas.
pub fn kinds(definition: &Value, since: u64) -> Vec<Kind> {
    let spec = &definition["spec"];
    let storage = items(&spec["versions"]).iter().find(|version| version["storage"] == true);
    let storage = storage.map_or("", |version| text(&version["name"]));
    let served = items(&spec["versions"]).iter().filter(|version| version["served"] == true);
    served.map(|version| kind(definition, version, storage, since)).collect()
}

/// The kind in whose version objects are stored, served or not.
pub fn stored_kind(definition: &Value) -> Option<Kind> {
    let version = items(&definition["spec"]["versions"]).iter().find(|version| version["storage"] == true)?;
    Some(kind(definition, version, text(&version["name"]), 0))
}

fn owned(value: &Value) -> Name {
    Cow::Owned(text(value).to_owned())
}

fn kind(definition: &Value, version: &Value, storage: &str, since: u64) -> Kind {
    let spec = &definition["spec"];
    // What others use is what was accepted, not what is asked for.
    let names = &definition["status"]["acceptedNames"];
    let mut subresources = Vec::new();
    if version["subresources"]["status"].is_object() {
        subresources.push(Subresource::Status);
    }
    let scale = scale_paths(&version["subresources"]["scale"]);
    if scale.is_some() {
        subresources.push(Subresource::Scale);
    }
    let published = &version["schema"]["openAPIV3Schema"];
    let conversion = match text(&spec["conversion"]["strategy"]) {
        "Webhook" => Conversion::Webhook(spec["conversion"]["webhook"].clone()),
        _ => Conversion::None,
    };
    let custom = CustomResource {
        schema: Arc::new(Structural::root(published)),
        published: Arc::new(published.clone()),
        storage_version: storage.to_owned(),
        conversion,
        list_kind: text(&names["listKind"]).to_owned(),
        since,
        deprecation: deprecation(spec, version),
        terminating: meta::is_terminating(definition),
        scale,
    };
    Kind {
        gvr: Gvr {
            group: owned(&spec["group"]),
            version: owned(&version["name"]),
            resource: owned(&spec["names"]["plural"]),
        },
        kind: owned(&names["kind"]),
        singular: owned(&names["singular"]),
        short_names: items(&names["shortNames"]).iter().map(owned).collect(),
        categories: items(&names["categories"]).iter().map(owned).collect(),
        namespaced: spec["scope"] == "Namespaced",
        subresources: subresources.clone(),
        has_generation: true,
        verbs: VERBS.to_vec(),
        create_on_update: false,
        unconditional_update: false,
        lazy: false,
        strategy: Arc::new(Custom {
            custom,
            status_apart: subresources.contains(&Subresource::Status),
            columns: columns(&version["additionalPrinterColumns"]),
            fields: fields(&version["selectableFields"]),
        }),
    }
}

/// What a `Warning` says to those who use a deprecated version.
fn deprecation(spec: &Value, version: &Value) -> Option<String> {
    if version["deprecated"] != true {
        return None;
    }
    let default = || {
        let (group, name) = (text(&spec["group"]), text(&version["name"]));
        format!("{group}/{name} {} is deprecated", text(&spec["names"]["kind"]))
    };
    Some(version["deprecationWarning"].as_str().map_or_else(default, str::to_owned))
}

fn scale_paths(scale: &Value) -> Option<ScalePaths> {
    let spec = text(&scale["specReplicasPath"]);
    Some(ScalePaths {
        spec_replicas: spec.strip_prefix('.')?.split('.').map(str::to_owned).collect(),
        status_replicas: JsonPath::parse(text(&scale["statusReplicasPath"]))?,
        selector: scale["labelSelectorPath"].as_str().filter(|path| !path.is_empty()).and_then(JsonPath::parse),
    })
}

/// A printer column and where its values are.
struct Printed {
    column: Column,
    path: Option<JsonPath>,
}

fn columns(definitions: &Value) -> Vec<Printed> {
    if items(definitions).is_empty() {
        let column = Column { kind: Cow::Borrowed("date"), ..described("Age", AGE) };
        return vec![Printed { column, path: JsonPath::parse(".metadata.creationTimestamp") }];
    }
    let printed = |definition: &Value| {
        let path = text(&definition["jsonPath"]);
        let description = match text(&definition["description"]) {
            "" => format!("Custom resource definition column (in JSONPath format): {path}"),
            given => given.to_owned(),
        };
        let column = Column {
            name: owned(&definition["name"]),
            kind: owned(&definition["type"]),
            format: owned(&definition["format"]),
            description: description.into(),
            priority: u8::try_from(definition["priority"].as_i64().unwrap_or_default()).unwrap_or(u8::MAX),
        };
        Printed { column, path: JsonPath::parse(path) }
    };
    items(definitions).iter().map(printed).collect()
}

const AGE: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not \
    guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is \
    represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

fn described(name: &'static str, description: &'static str) -> Column {
    printers::column(name, "string", description)
}

fn fields(definitions: &Value) -> Vec<(String, JsonPath)> {
    let field = |definition: &Value| {
        let path = text(&definition["jsonPath"]);
        Some((path.trim_start_matches('.').to_owned(), JsonPath::parse(path)?))
    };
    items(definitions).iter().filter_map(field).collect()
}

struct Custom {
    custom: CustomResource,
    status_apart: bool,
    columns: Vec<Printed>,
    fields: Vec<(String, JsonPath)>,
}

impl Custom {
    fn check(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let schema = &self.custom.schema;
        let mut errors = structural::validate(schema, object, old);
        errors.extend(structural::validate_list_types(schema, object));
        errors.extend(self.check_scale(object));
        if schema.has_rules() {
            // Rules rely on what the schema says.
            const BLOCKING: [&str; 5] = [
                "FieldValueNotSupported",
                "FieldValueRequired",
                "FieldValueTooLong",
                "FieldValueTooMany",
                "FieldValueTypeInvalid",
            ];
            if errors.iter().any(|error| BLOCKING.contains(&error.reason)) {
                let why = "some validation rules were not checked because the object was invalid; correct the existing errors \
                    to complete validation";
                errors.push(FieldError::invalid("<nil>", &Value::Null, why));
            } else {
                errors.extend(structural::check_rules(schema, object, old));
            }
        }
        errors
    }

    /// Replicas are no less than 0 (`validateScaleSpec`, `validateScaleStatus`).
    fn check_scale(&self, object: &Value) -> Vec<FieldError> {
        let Some(scale) = &self.custom.scale else { return Vec::new() };
        let spec_path = format!(".{}", scale.spec_replicas.join("."));
        let mut spec = Some(object);
        for field in &scale.spec_replicas {
            spec = spec.and_then(|value| value.get(field));
        }
        let negative = |value: Option<&Value>, path: &str| {
            let value = value.filter(|value| value.as_i64().is_some_and(|number| number < 0))?;
            Some(FieldError::invalid(path, value, "should be a non-negative integer"))
        };
        negative(spec, &spec_path).into_iter().collect()
    }
}

impl Strategy for Custom {
    fn custom(&self) -> Option<&CustomResource> {
        Some(&self.custom)
    }

    fn default(&self, object: &mut Value) {
        structural::apply_defaults(&self.custom.schema, object);
    }

    fn changes_generation(&self, object: &Value, old: &Value) -> bool {
        let apart = |name: &str| name == "metadata" || self.status_apart && name == "status";
        let rest = |value: &Value| -> Vec<(String, Value)> {
            let members = value.as_object().into_iter().flatten().filter(|(name, _)| !apart(name));
            members.map(|(name, inner)| (name.clone(), inner.clone())).collect()
        };
        rest(object) != rest(old)
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        self.check(object, None)
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        self.check(object, Some(old))
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        self.check(object, Some(old))
    }

    fn columns(&self) -> Vec<Column> {
        let more = self.columns.iter().map(|printed| printed.column.clone());
        std::iter::once(name_column()).chain(more).collect()
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let more = self.columns.iter().map(|printed| cell(printed, object, now));
        std::iter::once(printers::name(object)).chain(more).collect()
    }

    fn field_value(&self, object: &Value, field: &str) -> Option<String> {
        let (_, path) = self.fields.iter().find(|(name, _)| name == field)?;
        Some(match path.first(object) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        })
    }

    fn knows_field(&self, field: &str) -> bool {
        self.fields.iter().any(|(name, _)| name == field)
    }

    fn selectable_fields(&self, _: &Value) -> Vec<(&'static str, String)> {
        // Unknown fields are refused in the words of kinds that have fields of their own.
        vec![("", String::new())]
    }
}

/// The cell of one object (`tableconvertor` of apiextensions-apiserver): null where there is no value of the column's type.
fn cell(printed: &Printed, object: &Value, now: Timestamp) -> Value {
    let Some(path) = &printed.path else { return Value::Null };
    let found = path.find(object);
    let Some(first) = found.first().filter(|value| !value.is_null()) else { return Value::Null };
    match printed.column.kind.as_ref() {
        "integer" => match first.as_i64() {
            Some(number) => number.into(),
            None => first.as_f64().map_or(Value::Null, |number| json!(number.trunc())),
        },
        "number" => first.as_f64().map_or(Value::Null, |number| json!(number)),
        "boolean" => first.as_bool().map_or(Value::Null, Value::from),
        "date" => match first.as_str().map(|time| (time, crate::api::schema::parse_time(time))) {
            Some((_, Some(_))) => since(first, now).into(),
            _ => "<invalid>".into(),
        },
        // Several values are shown as a list.
        "string" if found.len() > 1 => {
            let texts: Vec<String> = found.iter().map(|value| shown(value)).collect();
            format!("[{}]", texts.join(",")).into()
        }
        "string" => match first {
            Value::String(text) => text.as_str().into(),
            other => other.to_string().into(),
        },
        _ => Value::Null,
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), |text| format!("{text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Value {
        json!({"kind": "CustomResourceDefinition", "metadata": {"name": "widgets.x.example.com"}, "spec": {
            "group": "x.example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "selectableFields": [{"jsonPath": ".spec.size"}],
                    "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}},
                    "additionalPrinterColumns": [
                        {"name": "Size", "type": "string", "jsonPath": ".spec.size"},
                        {"name": "All", "type": "string", "jsonPath": ".spec.list[*].a"},
                        {"name": "N", "type": "integer", "jsonPath": ".spec.n"},
                        {"name": "When", "type": "date", "jsonPath": ".spec.when", "priority": 1}],
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
                {"name": "v1beta1", "served": true, "deprecated": true, "schema": {"openAPIV3Schema": {"type": "object"}}},
                {"name": "v1alpha1", "served": false, "schema": {"openAPIV3Schema": {"type": "object"}}}]},
            "status": {"acceptedNames": {"kind": "Widget", "listKind": "WidgetList", "singular": "widget", "plural": "widgets"}}})
    }

    #[test]
    fn each_served_version_is_a_kind() {
        let kinds = kinds(&definition(), 1);
        let versions: Vec<&str> = kinds.iter().map(|kind| kind.gvr.version.as_ref()).collect();
        assert_eq!(versions, ["v1", "v1beta1"]);
        assert_eq!(kinds[0].subresources, [Subresource::Status, Subresource::Scale]);
        let warning = kinds[1].strategy.custom().and_then(|custom| custom.deprecation.clone());
        assert_eq!(warning.as_deref(), Some("x.example.com/v1beta1 Widget is deprecated"));
        assert_eq!(kinds[1].strategy.columns()[1].name, "Age");
    }

    #[test]
    fn cells_are_of_their_columns_type() {
        let kind = &kinds(&definition(), 1)[0];
        let now: Timestamp = "2020-01-01T01:00:00Z".parse().expect("a time");
        let object = json!({"metadata": {"name": "w"}, "spec": {
            "size": "small", "list": [{"a": "x"}, {"a": 2}], "n": "many", "when": "2020-01-01T00:00:00Z"}});
        assert_eq!(
            kind.strategy.cells(&object, now),
            [json!("w"), json!("small"), json!("[\"x\",2]"), Value::Null, json!("60m")]
        );
        assert_eq!(kind.strategy.field_value(&object, "spec.size").as_deref(), Some("small"));
        assert!(kind.strategy.knows_field("spec.size") && !kind.strategy.knows_field("spec.n"));
    }

    #[test]
    fn generation_counts_all_but_metadata_and_status() {
        let kind = &kinds(&definition(), 1)[0];
        let old = json!({"metadata": {"name": "w"}, "spec": {"n": 1}, "status": {"n": 1}});
        let changed = |object: Value| kind.strategy.changes_generation(&object, &old);
        assert!(!changed(
            json!({"metadata": {"name": "w", "labels": {"a": "b"}}, "spec": {"n": 1}, "status": {"n": 2}})
        ));
        assert!(changed(json!({"metadata": {"name": "w"}, "spec": {"n": 2}, "status": {"n": 1}})));
        assert!(changed(json!({"metadata": {"name": "w"}, "spec": {"n": 1}, "other": 1, "status": {"n": 1}})));
    }
}
