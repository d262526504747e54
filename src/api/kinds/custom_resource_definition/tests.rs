//! Definitions as Kubernetes accepts and refuses them.

use serde_json::{Value, json};

use super::*;
use crate::api::schema::{Strictness, decode};

fn definition(schema: Value, more: Value) -> Value {
    let mut version = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
    for (name, value) in more.as_object().into_iter().flatten() {
        version[name] = value.clone();
    }
    let mut object = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.x.example.com"}, "spec": {"group": "x.example.com", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"}, "versions": [version]}});
    prepare(&mut object);
    object
}

fn prepare(object: &mut Value) {
    let kind = kind();
    let crate::api::schema::Root::Table(ty) = kind.schema().expect("a built-in kind") else {
        unreachable!("definitions are built in")
    };
    decode(ty, object, Strictness::Strict).expect("it decodes");
    kind.strategy.default(object);
    kind.strategy.prepare_for_create(object);
}

fn errors(object: &Value) -> Vec<String> {
    let errors = kind().strategy.validate(object);
    errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
}

#[test]
fn a_new_definition_has_the_defaults_of_kubernetes() {
    let object = definition(json!({"type": "object"}), json!({}));
    assert_eq!(errors(&object), Vec::<String>::new());
    assert_eq!(
        object["spec"]["names"],
        json!({"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"})
    );
    assert_eq!(object["spec"]["conversion"], json!({"strategy": "None"}));
    assert_eq!(
        object["status"],
        json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": ["v1"]})
    );
}

#[test]
fn refusals_as_recorded() {
    const ROOT: &str = "spec.validation.openAPIV3Schema";
    let of = |schema: Value| errors(&definition(schema, json!({})));
    assert_eq!(
        of(json!({"type": "object", "properties": {"spec": {"properties": {"a": {"type": "string"}}},
            "b": {"type": "integer", "anyOf": [{"type": "integer"}]}}})),
        [
            format!("{ROOT}.properties[b].anyOf[0].type: Forbidden: must be empty to be structural"),
            format!("{ROOT}.properties[spec].type: Required value: must not be empty for specified object fields"),
        ]
    );
    assert_eq!(
        of(json!({"type": "object", "properties": {"a": {"type": "integer", "default": "abc"}}})),
        [format!(
            "{ROOT}.properties[a].default: Invalid value: \"string\":  in body must be of type integer: \"string\""
        )]
    );
    assert_eq!(
        of(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"metadata": {
            "type": "object", "properties": {"name": {"type": "string"}, "labels": {"type": "object"}}}}})),
        [format!(
            "{ROOT}.properties[metadata]: Forbidden: must not specify anything other than name and generateName, \
            but metadata is implicitly specified"
        )]
    );
    assert_eq!(
        errors(&definition(
            json!({"type": "object"}),
            json!({"additionalPrinterColumns": [
            {"name": "A", "type": "foo", "jsonPath": "spec"}]})
        )),
        [
            "spec.additionalPrinterColumns[0].type: Invalid value: \"foo\": must be one of \
             boolean,date,integer,number,string",
            "spec.additionalPrinterColumns[0].JSONPath: Invalid value: \"spec\": must be a simple json path starting with .",
        ]
    );
}

#[test]
fn versions_that_differ_have_paths_of_their_own() {
    let mut object = definition(json!({"type": "object"}), json!({}));
    object["spec"]["versions"] = json!([
        {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}},
        {"name": "v2", "served": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"a": {}}}}},
    ]);
    prepare(&mut object);
    assert_eq!(
        errors(&object),
        [
            "spec.versions[1].schema.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified \
          object fields"
        ]
    );
    object["spec"]["versions"][0]["storage"] = false.into();
    assert!(errors(&object).iter().any(|e| e.ends_with("must have exactly one version marked as storage version")));
}

#[test]
fn list_types() {
    const PATH: &str = "spec.validation.openAPIV3Schema.properties[l]";
    let of = |list: Value| errors(&definition(json!({"type": "object", "properties": {"l": list}}), json!({})));
    let element = json!({"type": "object", "properties": {"id": {"type": "string"}}});
    assert_eq!(
        of(
            json!({"type": "array", "items": element, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"]})
        ),
        [format!(
            "{PATH}.items.properties[id].default: Required value: this property is in x-kubernetes-list-map-keys, so \
            it must have a default or be a required property"
        )]
    );
    assert_eq!(
        of(json!({"type": "array", "items": element, "x-kubernetes-list-type": "set"})),
        [format!(
            "{PATH}.items.x-kubernetes-map-type: Invalid value: null: must be atomic as item of a list with \
            x-kubernetes-list-type=set"
        )]
    );
    assert_eq!(
        of(json!({"type": "string", "x-kubernetes-list-type": "set"})),
        [format!("{PATH}.type: Invalid value: \"string\": must be array if x-kubernetes-list-type is specified")]
    );
}

#[test]
fn selectable_fields_lead_to_scalars() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "color": {"type": "string"}, "list": {"type": "array", "items": {"type": "string"}}}}}});
    let of = |paths: Value| errors(&definition(schema.clone(), json!({"selectableFields": paths})));
    assert_eq!(of(json!([{"jsonPath": ".spec.color"}])), Vec::<String>::new());
    assert_eq!(
        of(json!([{"jsonPath": ".spec.list"}, {"jsonPath": ".spec.size"}])),
        [
            "spec.selectableFields[0].jsonPath: Invalid value: \".spec.list\": must point to a field of type string, boolean \
             or integer. Enum string fields and strings with formats are allowed.",
            "spec.selectableFields[1].jsonPath: Invalid value: \".spec.size\": is an invalid path: does not refer to a valid \
             field",
        ]
    );
}

#[test]
fn updates() {
    let mut old = definition(json!({"type": "object"}), json!({}));
    old["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
    let mut new = old.clone();
    new["spec"]["scope"] = "Cluster".into();
    new["status"]["storedVersions"] = json!(["v1", "v0"]);
    let found = kind().strategy.validate_update(&new, &old);
    let found: Vec<String> = found.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
    assert_eq!(found[0], "spec.scope: Invalid value: \"Cluster\": field is immutable");
    assert!(found[1].starts_with("status.storedVersions[1]: Invalid value: \"v0\": missing from spec.versions;"));
}

#[test]
fn rules_are_compiled_and_paid_for() {
    const PATH: &str = "spec.validation.openAPIV3Schema.properties[spec]";
    let of = |spec: Value| errors(&definition(json!({"type": "object", "properties": {"spec": spec}}), json!({})));
    let object = |rule: &str| {
        json!({"type": "object", "x-kubernetes-validations": [{"rule": rule}], "properties": {
            "a": {"type": "integer"}, "l": {"type": "array", "items": {"type": "string"}}}})
    };
    assert_eq!(of(object("self.a > 1")), Vec::<String>::new());
    let found = of(object("self.b > 1"));
    assert!(found[0].starts_with(&format!("{PATH}.x-kubernetes-validations[0].rule: Invalid value: ")), "{found:?}");
    assert!(
        found[0].ends_with("compilation failed: ERROR: <input>:1:5: undefined field 'b'\n | self.b > 1\n | ....^"),
        "{found:?}"
    );
    assert!(of(object("self.a"))[0].ends_with("cel expression must evaluate to a bool"));
    assert_eq!(
        of(object("self.l.all(x, self.l.all(y, x == y))"))[0],
        format!(
            "{PATH}.x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget by factor of more than \
            100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are \
            declared)"
        )
    );
    let list = json!({"type": "array", "items": {"type": "object", "x-kubernetes-validations": [{"rule": "self == oldSelf"}],
        "properties": {"a": {"type": "integer"}}}, "maxItems": 10});
    assert!(
        of(list)[0]
            .ends_with(&format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {PATH}"))
    );
}
