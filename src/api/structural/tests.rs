//! Pruning, defaulting and validation as Kubernetes documents and has been recorded to do them.

use serde_json::{Value, json};

use super::*;

fn widget() -> Structural {
    Structural::new(&json!({"type": "object", "required": ["spec"], "properties": {"spec": {
    "type": "object", "required": ["size"], "properties": {
        "size": {"type": "string", "enum": ["small", "large"]},
        "replicas": {"type": "integer", "minimum": 0, "maximum": 10, "default": 1},
        "since": {"type": "string", "format": "date-time"},
        "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 8, "minLength": 2},
        "count": {"type": "integer", "nullable": true, "default": 3},
        "ratio": {"type": "number", "multipleOf": 0.5},
        "tags": {"type": "array", "maxItems": 2, "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
        "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"], "items": {
            "type": "object", "required": ["id"],
            "properties": {"id": {"type": "string"}, "n": {"type": "integer", "default": 7}}}},
        "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {"known": {"type": "object"}}},
        "opts": {"type": "object", "additionalProperties": {"type": "string"}},
        "port": {"x-kubernetes-int-or-string": true},
    }}}}))
}

fn told(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
}

use crate::api::status::FieldError;

#[test]
fn unspecified_fields_are_pruned() {
    let mut object = json!({"kind": "Widget", "apiVersion": "x/v1", "metadata": {"name": "w"}, "extra": 1, "spec": {
        "bogus": 1, "parts": [{"id": "a", "x": {"y": 1}}], "any": {"x": {"y": 1}, "known": {"z": 1}}, "opts": {"a": "b"}}});
    let found = prune(&widget(), &mut object);
    assert_eq!(found, ["extra", "spec.any.known.z", "spec.bogus", "spec.parts[0].x"]);
    let expected = json!({"kind": "Widget", "apiVersion": "x/v1", "metadata": {"name": "w"}, "spec": {
        "parts": [{"id": "a"}], "any": {"x": {"y": 1}, "known": {}}, "opts": {"a": "b"}}});
    assert_eq!(object, expected);
    assert!(is_pruned(&widget(), &expected, true) && !is_pruned(&widget(), &json!({"spec": {"x": 1}}), true));
}

#[test]
fn defaults_and_nulls() {
    // "Defaulting and Nullable" of the documentation: nulls of fields that are not nullable count as absent.
    let mut object = json!({"spec": {"replicas": null, "count": null, "name": null, "parts": [{"id": "a"}]}});
    drop_nulls(&widget(), &mut object);
    apply_defaults(&widget(), &mut object);
    assert_eq!(object, json!({"spec": {"replicas": 1, "count": null, "parts": [{"id": "a", "n": 7}]}}));
    let mut empty = json!({});
    apply_defaults(&widget(), &mut empty);
    assert_eq!(empty, json!({}), "defaults apply only where the object around them exists");
}

#[test]
fn messages_as_recorded() {
    let errors = |spec: Value| told(&validate(&widget(), &json!({"spec": spec}), None));
    assert_eq!(told(&validate(&widget(), &json!({}), None)), ["spec: Required value"]);
    assert_eq!(errors(json!({})), ["spec.size: Required value"]);
    assert_eq!(
        errors(json!({"size": "small", "replicas": 11, "ratio": 0.3, "name": "ABC"})),
        [
            "spec.name: Invalid value: \"ABC\": spec.name in body should match '^[a-z]+$'",
            "spec.ratio: Invalid value: 0.3: spec.ratio in body should be a multiple of 0.5",
            "spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10",
        ]
    );
    assert_eq!(
        errors(json!({"size": 5, "replicas": "a", "tags": "x", "opts": {"a": 1}, "port": true})),
        [
            "spec.opts.a: Invalid value: \"integer\": spec.opts.a in body must be of type string: \"integer\"",
            "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
            "spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\"",
            "spec.size: Invalid value: \"integer\": spec.size in body must be of type string: \"integer\"",
            "spec.size: Unsupported value: 5: supported values: \"small\", \"large\"",
            "spec.tags: Invalid value: \"string\": spec.tags in body must be of type array: \"string\"",
        ]
    );
    assert_eq!(
        errors(json!({"size": "small", "since": "yesterday"})),
        ["spec.since: Invalid value: \"yesterday\": spec.since in body must be of type date-time: \"yesterday\""]
    );
    assert_eq!(
        errors(json!({"size": "small", "name": "abcdefghijk", "tags": ["a", "b", "c"], "parts": [{"n": 1}]})),
        [
            "spec.name: Too long: may not be more than 8 bytes",
            "spec.parts[0].id: Required value",
            "spec.tags: Too many: 3: must have at most 2 items",
        ]
    );
}

#[test]
fn what_an_update_leaves_alone_is_right() {
    let old = json!({"spec": {"size": "huge", "parts": [{"id": "a", "n": "x"}, {"id": "b"}]}});
    let moved = json!({"spec": {"size": "huge", "replicas": 2, "parts": [{"id": "b"}, {"id": "a", "n": "x"}]}});
    assert_eq!(told(&validate(&widget(), &moved, Some(&old))), Vec::<String>::new());
    let worse = json!({"spec": {"size": "huger", "parts": []}});
    assert_eq!(told(&validate(&widget(), &worse, Some(&old))).len(), 1);
}

#[test]
fn lists_have_no_element_twice() {
    let errors = |spec: Value| told(&validate_list_types(&widget(), &json!({"spec": spec})));
    assert_eq!(errors(json!({"tags": ["a", "b", "a", "a"]})), ["spec.tags[2]: Duplicate value: \"a\""]);
    assert_eq!(
        errors(json!({"parts": [{"id": "a", "n": 1}, {"id": "a", "n": 2}]})),
        ["spec.parts[1]: Duplicate value: {\"id\":\"a\"}"]
    );
}

#[test]
fn combinations() {
    let schema = Structural::new(&json!({"type": "object", "properties": {
        "a": {"type": "integer", "oneOf": [{"minimum": 5}, {"maximum": 3}, {"minimum": 10}]},
        "b": {"type": "integer", "anyOf": [{"minimum": 5}], "not": {"enum": [7]}}}}));
    let errors = |value: Value| told(&validate(&schema, &value, None));
    assert_eq!(errors(json!({"a": 6, "b": 5})), Vec::<String>::new());
    assert_eq!(
        errors(json!({"a": 11, "b": 7})),
        [
            "<nil>: Invalid value: \"\": \"a\" must validate one and only one schema (oneOf). Found 2 valid alternatives",
            "<nil>: Invalid value: \"\": \"b\" must not validate the schema (not)",
        ]
    );
    let none = errors(json!({"b": 1}));
    assert_eq!(none[0], "<nil>: Invalid value: \"\": \"b\" must validate at least one schema (anyOf)");
    assert_eq!(none[1], "b: Invalid value: 1: b in body should be greater than or equal to 5");
}

#[test]
fn formats_of_strfmt() {
    for (format, right, wrong) in [
        ("date", "2020-01-31", "2020-02-31"),
        ("duration", "1h30m", "1x"),
        ("duration", "2 days", ""),
        ("ipv4", "1.2.3.4", "1.2.3"),
        ("ipv6", "::1", "1.2.3.4"),
        ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
        ("mac", "01:23:45:67:89:ab", "01:23"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
        ("hostname", "a.example.com", "-a"),
        ("email", "a@b.c", "a"),
        ("uri", "https://x/y", "x"),
        ("byte", "YQ==", "Y"),
        ("isbn10", "0-306-40615-2", "0-306-40615-3"),
        ("isbn13", "978-0-306-40615-7", "978-0-306-40615-8"),
        ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
        ("k8s-short-name", "a-b", "A"),
    ] {
        assert_eq!(formats::matches(format, right), Some(true), "{format} {right}");
        assert_eq!(formats::matches(format, wrong), Some(false), "{format} {wrong}");
    }
    assert_eq!(formats::matches("int32", "x"), None);
}

#[test]
fn rules_of_the_documentation() {
    let schema = Structural::root(&json!({"type": "object", "properties": {"spec": {
        "type": "object",
        "x-kubernetes-validations": [
            {"rule": "self.minReplicas <= self.replicas", "message": "replicas should be greater than or equal to minReplicas."},
            {"rule": "self.replicas <= 10", "messageExpression": "'%d is too many'.format([self.replicas])", "fieldPath": ".replicas",
                "reason": "FieldValueForbidden"},
            {"rule": "self.replicas >= oldSelf.replicas", "message": "only up"},
        ],
        "properties": {"minReplicas": {"type": "integer"}, "replicas": {"type": "integer"},
            "name": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]},
            "port": {"x-kubernetes-int-or-string": true, "x-kubernetes-validations": [{"rule": "self > 3"}]}}}}}));
    let errors = |spec: Value, old: Option<Value>| {
        let old = old.map(|spec| json!({"spec": spec}));
        told(&check_rules(&schema, &json!({"spec": spec}), old.as_ref()))
    };
    assert_eq!(errors(json!({"minReplicas": 1, "replicas": 2, "name": "a"}), None), Vec::<String>::new());
    assert_eq!(
        errors(json!({"minReplicas": 3, "replicas": 2}), None),
        ["spec: Invalid value: \"object\": replicas should be greater than or equal to minReplicas."]
    );
    assert_eq!(errors(json!({"minReplicas": 1, "replicas": 20}), None), ["spec.replicas: Forbidden: 20 is too many"]);
    assert_eq!(
        errors(
            json!({"minReplicas": 1, "replicas": 2, "name": "b"}),
            Some(json!({"minReplicas": 1, "replicas": 3, "name": "a"}))
        ),
        [
            "spec: Invalid value: \"object\": only up",
            "spec.name: Invalid value: \"string\": failed rule: self == oldSelf"
        ]
    );
    let broken = json!({"minReplicas": 3, "replicas": 2});
    assert_eq!(errors(broken.clone(), Some(broken)), Vec::<String>::new(), "what is left alone is not refused");
    assert_eq!(
        errors(json!({"minReplicas": 1, "replicas": 2, "port": "x"}), None),
        [
            "spec.port: Invalid value: \"string\": 'no such overload': call arguments did not match a supported operator, function \
          or macro signature for rule: self > 3"
        ]
    );
    assert_eq!(
        errors(json!({"minReplicas": 1}), None)[0],
        "spec: Invalid value: \"object\": no such key: replicas evaluating rule: replicas should be greater than or equal to \
         minReplicas."
    );
}
