//! `metav1.DeleteOptions`: what a delete says in its body or, without one, in its query.

use serde_json::{Value, json};

use crate::api::kind::Gvk;
use crate::api::schema::{self, Strictness};
use crate::api::status::FieldError;
use crate::api::{Status, StatusResult};
use crate::apiserver::http::request::Query;

const KIND: &str = "DeleteOptions";
const POLICIES: [&str; 4] = ["Foreground", "Background", "Orphan", "nil"];

/// How an object is deleted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DeleteOptions {
    /// Seconds.
    pub grace: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<String>,
    pub orphan: Option<bool>,
    /// Stages that are only tried; valid is `All`.
    pub dry_run: Vec<String>,
}

impl DeleteOptions {
    /// Of a body, or of an eviction's `deleteOptions`; null says nothing.
    ///
    /// # Errors
    /// 400 for what is no DeleteOptions or has fields of a wrong type, 422 for what does not hold together.
    pub fn of_body(mut value: Value) -> StatusResult<Self> {
        if value.is_null() {
            return Ok(Self::default());
        }
        if !value.is_object() || value["kind"].as_str().is_some_and(|kind| !["", KIND].contains(&kind)) {
            return Err(Status::bad_request("decoded object cannot be converted to DeleteOptions"));
        }
        let gvk = Gvk { group: "".into(), version: "v1".into(), kind: KIND.into() };
        let ty = schema::of(&gvk).expect("DeleteOptions belong to every group and version");
        schema::decode(ty, &mut value, Strictness::Ignore)?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let options = Self {
            grace: value["gracePeriodSeconds"].as_i64(),
            uid: text(&value["preconditions"]["uid"]),
            resource_version: text(&value["preconditions"]["resourceVersion"]),
            propagation: text(&value["propagationPolicy"]),
            orphan: value["orphanDependents"].as_bool(),
            dry_run: value["dryRun"].as_array().into_iter().flatten().filter_map(text).collect(),
        };
        options.validate().map(|()| options)
    }

    /// Of a query (`Convert_url_Values_To_v1_DeleteOptions`).
    ///
    /// # Errors
    /// As above.
    pub fn of_query(query: &Query) -> StatusResult<Self> {
        let text = |key: &str| query.get(key).filter(|value| !value.is_empty()).map(str::to_owned);
        let options = Self {
            grace: query.integer("gracePeriodSeconds")?,
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            propagation: query.get("propagationPolicy").map(str::to_owned),
            orphan: query.get("orphanDependents").map(|_| query.flag("orphanDependents")),
            dry_run: query.all("dryRun").filter(|stage| !stage.is_empty()).map(str::to_owned).collect(),
        };
        options.validate().map(|()| options)
    }

    /// Checks the combination (`ValidateDeleteOptions`).
    ///
    /// # Errors
    /// 422.
    pub fn validate(&self) -> StatusResult<()> {
        let mut errors = Vec::new();
        if let (Some(_), Some(policy)) = (self.orphan, &self.propagation) {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid("propagationPolicy", &json!(policy), why));
        }
        if let Some(policy) = &self.propagation
            && !POLICIES[..3].contains(&policy.as_str())
        {
            errors.push(FieldError::not_supported("propagationPolicy", &json!(policy), &POLICIES));
        }
        if self.dry_run.iter().any(|stage| stage != "All") {
            errors.push(FieldError::not_supported("dryRun", &json!(self.dry_run), &["All"]));
        }
        if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", KIND, "", &errors)) }
    }

    /// Whether nothing is to be written.
    pub fn is_dry_run(&self) -> bool {
        !self.dry_run.is_empty()
    }

    pub(super) fn foreground(&self) -> bool {
        self.propagation.as_deref() == Some("Foreground")
    }

    /// `Some(true)` to orphan, `Some(false)` not to; `None`: the kind's default (not to).
    pub(super) fn orphans(&self) -> Option<bool> {
        self.orphan.or_else(|| self.propagation.as_deref().map(|policy| policy == "Orphan"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_and_query_say_the_same() {
        let body = json!({"kind": "DeleteOptions", "apiVersion": "apps/v1", "gracePeriodSeconds": 5, "dryRun": ["All"],
            "propagationPolicy": "Orphan", "preconditions": {"uid": "u", "resourceVersion": "7"}});
        let of_body = DeleteOptions::of_body(body).expect("valid");
        let query = "gracePeriodSeconds=5&dryRun=All&propagationPolicy=Orphan&uid=u&resourceVersion=7";
        assert_eq!(DeleteOptions::of_query(&Query::new(query)), Ok(of_body.clone()));
        assert!(of_body.is_dry_run());
        assert_eq!(DeleteOptions::of_body(Value::Null), DeleteOptions::of_query(&Query::default()));
    }

    #[test]
    fn what_is_no_delete_options_is_refused() {
        let code = |body: Value| DeleteOptions::of_body(body).map_err(|status| status.code);
        assert_eq!(code(json!([])), Err(400));
        assert_eq!(code(json!({"kind": "Pod"})), Err(400));
        assert_eq!(code(json!({"gracePeriodSeconds": "x"})), Err(400));
        assert_eq!(code(json!({"dryRun": "All"})), Err(400));
        assert_eq!(code(json!({"dryRun": ["All", "Some"]})), Err(422));
        assert_eq!(code(json!({"propagationPolicy": "Later"})), Err(422));
        assert_eq!(code(json!({"propagationPolicy": "Orphan", "orphanDependents": true})), Err(422));
        let wrong = DeleteOptions::of_body(json!({"dryRun": ["Some"]})).expect_err("unknown");
        assert_eq!(
            wrong.message,
            "DeleteOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"Some\"]: supported values: \"All\""
        );
    }
}
