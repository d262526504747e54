//! Roles, ClusterRoles and their bindings.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::defaulting::{each, ensure_object, set_text};
use super::{cluster_scoped, gvr, namespaced};
use crate::api::kind::{Column, Kind, Strategy};
use crate::api::meta::{items, text};
use crate::api::printers::{CREATED, age, age_column, column, name, name_column, wide_column};
use crate::api::status::FieldError;
use crate::api::validation::meta::path_segment_messages;
use crate::api::validation::{Errors, invalid_all, required};

const GROUP: &str = "rbac.authorization.k8s.io";

/// The four kinds.
pub fn kinds() -> [Kind; 4] {
    [
        cluster_scoped(gvr::CLUSTER_ROLE_BINDINGS, "ClusterRoleBinding", Arc::new(Binding { namespaced: false })),
        cluster_scoped(gvr::CLUSTER_ROLES, "ClusterRole", Arc::new(Role { namespaced: false })),
        namespaced(gvr::ROLE_BINDINGS, "RoleBinding", Arc::new(Binding { namespaced: true })),
        namespaced(gvr::ROLES, "Role", Arc::new(Role { namespaced: true })),
    ]
    .map(|kind| Kind { create_on_update: true, ..kind })
}

struct Role {
    namespaced: bool,
}

impl Strategy for Role {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        for (index, rule) in items(&object["rules"]).iter().enumerate() {
            policy_rule(&mut errors, rule, &format!("rules[{index}]"), self.namespaced);
        }
        let aggregation = &object["aggregationRule"];
        if !self.namespaced && aggregation.is_object() {
            let selectors = items(&aggregation["clusterRoleSelectors"]);
            if selectors.is_empty() {
                let detail = "at least one clusterRoleSelector required if aggregationRule is non-nil";
                errors.push(FieldError::required("aggregationRule.clusterRoleSelectors", detail));
            }
            for (index, selector) in selectors.iter().enumerate() {
                let path = format!("aggregationRule.clusterRoleSelectors[{index}]");
                crate::api::validation::selector::label_selector(&mut errors, selector, &path);
            }
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![name_column(), column("Created At", "date", CREATED)]
    }

    fn cells(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        vec![name(object), object["metadata"]["creationTimestamp"].clone()]
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        path_segment_messages(name)
    }
}

fn policy_rule(errors: &mut Errors, rule: &Value, path: &str, namespaced: bool) {
    let has = |field: &str| !items(&rule[field]).is_empty();
    if !has("verbs") {
        errors.push(FieldError::required(format!("{path}.verbs"), "verbs must contain at least one value"));
    }
    if has("nonResourceURLs") {
        let path = format!("{path}.nonResourceURLs");
        let mut refuse = |detail| errors.push(FieldError::invalid(&path, &rule["nonResourceURLs"], detail));
        if namespaced {
            refuse("namespaced rules cannot apply to non-resource URLs");
        }
        if has("apiGroups") || has("resources") || has("resourceNames") {
            refuse("rules cannot apply to both regular resources and non-resource URLs");
        }
        return;
    }
    if !has("apiGroups") {
        let detail = "resource rules must supply at least one api group";
        errors.push(FieldError::required(format!("{path}.apiGroups"), detail));
    }
    if !has("resources") {
        let detail = "resource rules must supply at least one resource";
        errors.push(FieldError::required(format!("{path}.resources"), detail));
    }
}

struct Binding {
    namespaced: bool,
}

impl Strategy for Binding {
    fn default(&self, object: &mut Value) {
        if let Some(role) = ensure_object(object, "roleRef") {
            set_text(role, "apiGroup", GROUP);
        }
        for subject in each(object, "subjects") {
            if matches!(text(&subject["kind"]), "User" | "Group") {
                set_text(subject, "apiGroup", GROUP);
            }
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (role, mut errors) = (&object["roleRef"], Errors::new());
        let unset = Value::from("");
        let given = |value: &'_ Value| if value.is_null() { unset.clone() } else { value.clone() };
        if text(&role["apiGroup"]) != GROUP {
            errors.push(FieldError::not_supported("roleRef.apiGroup", &given(&role["apiGroup"]), &[GROUP]));
        }
        let kinds: &[&str] = if self.namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
        if !kinds.contains(&text(&role["kind"])) {
            errors.push(FieldError::not_supported("roleRef.kind", &given(&role["kind"]), kinds));
        }
        required(&mut errors, "roleRef.name", &role["name"]);
        invalid_all(&mut errors, "roleRef.name", &role["name"], path_segment_messages(text(&role["name"])));
        for (index, subject) in items(&object["subjects"]).iter().enumerate() {
            self::subject(&mut errors, subject, &format!("subjects[{index}]"));
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        if object["roleRef"] != old["roleRef"] {
            errors.push(FieldError::invalid("roleRef", &object["roleRef"], "cannot change roleRef"));
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        let (role, users, groups, accounts) = if self.namespaced {
            (
                "RoleRef can reference a Role in the current namespace or a ClusterRole in the global namespace. If \
                    the \
                 RoleRef cannot be resolved, the Authorizer must return an error. This field is immutable.",
                "Users in the roleBinding",
                "Groups in the roleBinding",
                "ServiceAccounts in the roleBinding",
            )
        } else {
            (
                "RoleRef can only reference a ClusterRole in the global namespace. If the RoleRef cannot be \
                    resolved, the \
                 Authorizer must return an error. This field is immutable.",
                "Users in the clusterRoleBinding",
                "Groups in the clusterRoleBinding",
                "ServiceAccounts in the clusterRoleBinding",
            )
        };
        vec![
            name_column(),
            column("Role", "string", role),
            age_column(),
            wide_column("Users", "string", users),
            wide_column("Groups", "string", groups),
            wide_column("ServiceAccounts", "string", accounts),
        ]
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let role = &object["roleRef"];
        let subjects = |kind: &str| {
            let of_kind = items(&object["subjects"]).iter().filter(|s| text(&s["kind"]) == kind);
            let name = |s: &Value| match kind {
                "ServiceAccount" => format!("{}/{}", text(&s["namespace"]), text(&s["name"])),
                _ => text(&s["name"]).to_owned(),
            };
            of_kind.map(name).collect::<Vec<_>>().join(", ")
        };
        vec![
            name(object),
            format!("{}/{}", text(&role["kind"]), text(&role["name"])).into(),
            age(object, now),
            subjects("User").into(),
            subjects("Group").into(),
            subjects("ServiceAccount").into(),
        ]
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        path_segment_messages(name)
    }
}

fn subject(errors: &mut Errors, subject: &Value, path: &str) {
    required(errors, &format!("{path}.name"), &subject["name"]);
    let group = text(&subject["apiGroup"]);
    match text(&subject["kind"]) {
        "ServiceAccount" => {
            if !text(&subject["name"]).is_empty() {
                let messages = crate::api::meta::validate_subdomain(text(&subject["name"]));
                invalid_all(errors, &format!("{path}.name"), &subject["name"], messages);
            }
            if !group.is_empty() {
                errors.push(FieldError::not_supported(format!("{path}.apiGroup"), &group.into(), &[""]));
            }
            required(errors, &format!("{path}.namespace"), &subject["namespace"]);
        }
        "User" | "Group" if group == GROUP => {}
        "User" | "Group" => {
            errors.push(FieldError::not_supported(format!("{path}.apiGroup"), &group.into(), &[GROUP]));
        }
        kind => {
            let kinds = ["ServiceAccount", "User", "Group"];
            errors.push(FieldError::not_supported(format!("{path}.kind"), &kind.into(), &kinds));
        }
    }
}
