//! Kinds that are only questions: they are created, answered and never stored.

use std::sync::Arc;

use serde_json::Value;

use super::plain::Plain;
use super::{cluster_scoped, gvr, namespaced};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::text;
use crate::api::status::FieldError;
use crate::api::validation::Errors;

/// The reviews of authentication and authorization.
pub fn kinds() -> Vec<Kind> {
    let review = || Arc::new(AccessReview);
    let kinds = [
        cluster_scoped(gvr::SELF_SUBJECT_REVIEWS, "SelfSubjectReview", Arc::new(Plain)),
        cluster_scoped(gvr::TOKEN_REVIEWS, "TokenReview", Arc::new(TokenReview)),
        namespaced(gvr::LOCAL_SUBJECT_ACCESS_REVIEWS, "LocalSubjectAccessReview", review()),
        cluster_scoped(gvr::SELF_SUBJECT_ACCESS_REVIEWS, "SelfSubjectAccessReview", Arc::new(SelfAccessReview)),
        cluster_scoped(gvr::SELF_SUBJECT_RULES_REVIEWS, "SelfSubjectRulesReview", Arc::new(Plain)),
        cluster_scoped(gvr::SUBJECT_ACCESS_REVIEWS, "SubjectAccessReview", review()),
    ];
    kinds.into_iter().map(|kind| Kind { verbs: vec!["create"], ..kind }).collect()
}

/// `Binding`, which places a pod.
pub fn binding_kind() -> Kind {
    Kind { verbs: vec!["create"], ..namespaced(gvr::BINDINGS, "Binding", Arc::new(Plain)) }
}

struct TokenReview;
struct AccessReview;
struct SelfAccessReview;

impl Strategy for TokenReview {
    fn columns(&self) -> Vec<Column> {
        Plain.columns()
    }
    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        Plain.cells(object, now)
    }
}

impl Strategy for AccessReview {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (&object["spec"], Errors::new());
        attributes(&mut errors, spec);
        if text(&spec["user"]).is_empty() && spec["groups"].as_array().is_none_or(Vec::is_empty) {
            errors.push(FieldError::invalid(
                "spec.user",
                &"".into(),
                "at least one of user or group must be specified",
            ));
        }
        errors
    }
    fn columns(&self) -> Vec<Column> {
        Plain.columns()
    }
    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        Plain.cells(object, now)
    }
}

impl Strategy for SelfAccessReview {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        attributes(&mut errors, &object["spec"]);
        errors
    }
    fn columns(&self) -> Vec<Column> {
        Plain.columns()
    }
    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        Plain.cells(object, now)
    }
}

fn attributes(errors: &mut Errors, spec: &Value) {
    match (spec["resourceAttributes"].is_object(), spec["nonResourceAttributes"].is_object()) {
        (true, true) => errors.push(FieldError::invalid(
            "spec.nonResourceAttributes",
            &spec["nonResourceAttributes"],
            "cannot be specified in combination with resourceAttributes",
        )),
        (false, false) => errors.push(FieldError::invalid(
            "spec.resourceAttributes",
            &spec["nonResourceAttributes"],
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
}
