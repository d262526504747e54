//! StatefulSets.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::defaulting::{each, ensure_object, set, set_text};
use super::deployment::{not_more_than_100_percent, positive_int_or_percent};
use super::persistent_volume_claim::{default_spec, validate_spec};
use super::pod::defaults::pod_template;
use super::pod::update::same;
use super::pod::{validation, warnings};
use super::workload::{amount, collision_count, replica_counts, wide_cells, wide_columns};
use super::{gvr, names, namespaced};
use crate::api::kind::{Column, Kind, Strategy, Subresource};
use crate::api::meta::{items, number, text};
use crate::api::printers::{age, age_column, column, name, name_column};
use crate::api::selector::LabelSelector;
use crate::api::status::FieldError;
use crate::api::validation::meta::dns_label_messages;
use crate::api::validation::selector::label_selector;
use crate::api::validation::{Errors, invalid_all, non_negative};

/// The kind.
pub fn kind() -> Kind {
    Kind {
        short_names: names(&["sts"]),
        categories: names(&["all"]),
        subresources: vec![Subresource::Scale, Subresource::Status],
        has_generation: true,
        ..namespaced(gvr::STATEFUL_SETS, "StatefulSet", Arc::new(StatefulSets))
    }
}

/// Fields of the spec that an update may change.
const MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

struct StatefulSets;

impl Strategy for StatefulSets {
    fn default(&self, object: &mut Value) {
        let Some(spec) = ensure_object(object, "spec") else { return };
        set_text(spec, "podManagementPolicy", "OrderedReady");
        if let Some(strategy) = ensure_object(spec, "updateStrategy") {
            if text(&strategy["type"]).is_empty() {
                set_text(strategy, "type", "RollingUpdate");
                set(strategy, "rollingUpdate", json!({}));
            }
            if strategy["type"] == "RollingUpdate" && strategy["rollingUpdate"].is_object() {
                set(&mut strategy["rollingUpdate"], "partition", 0);
            }
        }
        if let Some(policy) = ensure_object(spec, "persistentVolumeClaimRetentionPolicy") {
            set_text(policy, "whenDeleted", "Retain");
            set_text(policy, "whenScaled", "Retain");
        }
        set(spec, "replicas", 1);
        set(spec, "revisionHistoryLimit", 10);
        if let Some(template) = ensure_object(spec, "template") {
            pod_template(template);
        }
        for claim in each(spec, "volumeClaimTemplates") {
            set_text(claim, "kind", "PersistentVolumeClaim");
            set_text(claim, "apiVersion", "v1");
            if let Some(spec) = ensure_object(claim, "spec") {
                default_spec(spec);
            }
            if let Some(status) = ensure_object(claim, "status") {
                set_text(status, "phase", "Pending");
            }
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        set(object, "status", json!({"replicas": 0, "availableReplicas": 0}));
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let (spec, mut errors) = (&object["spec"], Errors::new());
        let policy = &spec["podManagementPolicy"];
        if !["OrderedReady", "Parallel"].contains(&text(policy)) {
            let detail = "must be 'OrderedReady' or 'Parallel'";
            errors.push(FieldError::invalid("spec.podManagementPolicy", policy, detail));
        }
        update_strategy(&mut errors, &spec["updateStrategy"], "spec.updateStrategy");
        for field in ["whenDeleted", "whenScaled"] {
            let policy = &spec["persistentVolumeClaimRetentionPolicy"][field];
            if !["Retain", "Delete"].contains(&text(policy)) {
                let path = format!("spec.persistentVolumeClaimRetentionPolicy.{field}");
                errors.push(FieldError::not_supported(path, policy, &["Retain", "Delete"]));
            }
        }
        claim_templates(&mut errors, &spec["volumeClaimTemplates"], "spec.volumeClaimTemplates");
        non_negative(&mut errors, "spec.replicas", &spec["replicas"]);
        non_negative(&mut errors, "spec.minReadySeconds", &spec["minReadySeconds"]);
        non_negative(&mut errors, "spec.ordinals.start", &spec["ordinals"]["start"]);
        let service = &spec["serviceName"];
        if !text(service).is_empty() {
            invalid_all(&mut errors, "spec.serviceName", service, dns_label_messages(text(service)));
        }
        selector_and_template(&mut errors, spec);
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        let mut munged = object["spec"].clone();
        for field in MUTABLE {
            match (munged.as_object_mut(), old["spec"].get(field)) {
                (Some(map), Some(value)) => drop(map.insert(field.into(), value.clone())),
                (Some(map), None) => drop(map.remove(field)),
                (None, _) => {}
            }
        }
        if !same(&munged, &old["spec"]) {
            let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                'minReadySeconds' are forbidden";
            errors.push(FieldError::forbidden("spec", detail));
        }
        errors
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::new();
        let parts = ["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
        replica_counts(&mut errors, &object["status"], &parts, "status.readyReplicas");
        collision_count(&mut errors, &object["status"], &old["status"]);
        errors
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let spec = &object["spec"];
        let mut texts = warnings::pod_spec(&spec["template"]["spec"], "spec.template.spec");
        if number(&spec["revisionHistoryLimit"]) < 0 {
            let text = "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is \
                recommended";
            texts.push(text.to_owned());
        }
        texts
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns =
            vec![name_column(), column("Ready", "string", "Number of the pod with ready state"), age_column()];
        columns.extend(wide_columns("").into_iter().take(2));
        columns
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let ready = format!("{}/{}", number(&status["readyReplicas"]), number(&spec["replicas"]));
        let mut cells = vec![name(object), ready.into(), age(object, now)];
        cells.extend(wide_cells(spec).into_iter().take(2));
        cells
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        dns_label_messages(name)
    }
}

fn update_strategy(errors: &mut Errors, strategy: &Value, path: &str) {
    let rolling = &strategy["rollingUpdate"];
    let internal = json!({"Partition": number(&rolling["partition"]), "MaxUnavailable": rolling["maxUnavailable"]});
    match text(&strategy["type"]) {
        "OnDelete" if !rolling.is_null() => {
            let detail = "only allowed for updateStrategy 'RollingUpdate'";
            errors.push(FieldError::invalid(format!("{path}.rollingUpdate"), &internal, detail));
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            let (partition, unavailable) = (&rolling["partition"], &rolling["maxUnavailable"]);
            non_negative(errors, &format!("{path}.rollingUpdate.partition"), partition);
            if !unavailable.is_null() {
                let path = format!("{path}.rollingUpdate.maxUnavailable");
                positive_int_or_percent(errors, unavailable, &path);
                if amount(unavailable) == 0 {
                    errors.push(FieldError::invalid(&path, unavailable, "cannot be 0"));
                }
                not_more_than_100_percent(errors, unavailable, &path);
            }
        }
        kind => {
            let rolling = if rolling.is_null() { Value::Null } else { internal };
            let value = json!({"Type": kind, "RollingUpdate": rolling});
            errors.push(FieldError::invalid(path, &value, "must be 'RollingUpdate' or 'OnDelete'"));
        }
    }
}

fn claim_templates(errors: &mut Errors, templates: &Value, path: &str) {
    for (index, template) in items(templates).iter().enumerate() {
        validate_spec(errors, &template["spec"], &format!("{path}[{index}].spec"));
    }
}

fn selector_and_template(errors: &mut Errors, spec: &Value) {
    let (selector, template) = (&spec["selector"], &spec["template"]);
    if !selector.is_object() {
        errors.push(FieldError::required("spec.selector", ""));
    } else {
        label_selector(errors, selector, "spec.selector");
        if selector["matchLabels"].as_object().is_none_or(|labels| labels.is_empty())
            && items(&selector["matchExpressions"]).is_empty()
        {
            let detail = "empty selector is invalid for statefulset";
            errors.push(FieldError::invalid("spec.selector", selector, detail));
        }
    }
    match LabelSelector::from_label_selector(selector) {
        Err(_) => errors.push(FieldError::invalid("spec.selector", selector, "")),
        Ok(selector) => {
            if !selector.is_everything() && !selector.matches_object(template) {
                let detail = "`selector` does not match template `labels`";
                let labels = &template["metadata"]["labels"];
                errors.push(FieldError::invalid("spec.template.metadata.labels", labels, detail));
            }
            let template = with_claims(template, &spec["volumeClaimTemplates"]);
            validation::pod_template(errors, &template, "spec.template");
        }
    }
    let policy = &template["spec"]["restartPolicy"];
    if text(policy) != "Always" {
        errors.push(FieldError::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
    if !template["spec"]["activeDeadlineSeconds"].is_null() {
        let detail = "activeDeadlineSeconds in StatefulSet is not Supported";
        errors.push(FieldError::forbidden("spec.template.spec.activeDeadlineSeconds", detail));
    }
}

/// The template with the volumes that its pods will have: a claim's takes the place of one with the same name.
fn with_claims(template: &Value, claims: &Value) -> Value {
    let mut volumes = items(&template["spec"]["volumes"]).to_vec();
    for claim in items(claims) {
        let name = &claim["metadata"]["name"];
        let volume = json!({"name": name, "persistentVolumeClaim": {"claimName": "of-the-pod"}});
        match volumes.iter_mut().find(|known| known["name"] == *name) {
            Some(known) => *known = volume,
            None => volumes.push(volume),
        }
    }
    let mut template = template.clone();
    if template["spec"].is_object() {
        template["spec"]["volumes"] = volumes.into();
    }
    template
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_with(change: impl FnOnce(&mut Value)) -> Value {
        let mut set = json!({"metadata": {"name": "web", "namespace": "a"}, "spec": {
            "serviceName": "nginx", "selector": {"matchLabels": {"app": "nginx"}},
            "template": {"metadata": {"labels": {"app": "nginx"}}, "spec": {"containers": [
                {"name": "nginx", "image": "nginx", "terminationMessagePolicy": "File", "imagePullPolicy": "Always",
                    "volumeMounts": [{"name": "www", "mountPath": "/www"}]}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "www"}, "spec": {"accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}}}}]}});
        change(&mut set);
        StatefulSets.default(&mut set);
        set
    }

    fn messages(errors: Vec<FieldError>) -> Vec<String> {
        errors.into_iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn mounts_of_claim_templates_are_volumes() {
        assert_eq!(messages(StatefulSets.validate(&set_with(|_| {}))), Vec::<String>::new());
        let without = set_with(|set| set["spec"]["volumeClaimTemplates"] = json!([]));
        let path = "spec.template.spec.containers[0].volumeMounts[0].name";
        assert_eq!(messages(StatefulSets.validate(&without)), [format!("{path}: Not found: \"www\"")]);
    }

    #[test]
    fn an_explicit_strategy_without_parameters_stays_so() {
        let set = set_with(|set| set["spec"]["updateStrategy"] = json!({"type": "RollingUpdate"}));
        assert_eq!(set["spec"]["updateStrategy"], json!({"type": "RollingUpdate"}));
        let set = set_with(|_| {});
        assert_eq!(set["spec"]["updateStrategy"], json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}));
        let retain = json!({"whenDeleted": "Retain", "whenScaled": "Retain"});
        assert_eq!(set["spec"]["persistentVolumeClaimRetentionPolicy"], retain);
    }

    #[test]
    fn some_fields_never_change() {
        let old = set_with(|_| {});
        let free = set_with(|set| {
            set["spec"]["replicas"] = 9.into();
            set["spec"]["ordinals"] = json!({"start": 4});
            set["spec"]["revisionHistoryLimit"] = 1.into();
            set["spec"]["minReadySeconds"] = 5.into();
            set["spec"]["persistentVolumeClaimRetentionPolicy"] = json!({"whenScaled": "Delete"});
        });
        assert_eq!(messages(StatefulSets.validate_update(&free, &old)), Vec::<String>::new());
        let bound = set_with(|set| set["spec"]["serviceName"] = "other".into());
        let expected = "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', \
            'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
            'minReadySeconds' are forbidden";
        assert_eq!(messages(StatefulSets.validate_update(&bound, &old)), [expected]);
    }

    #[test]
    fn nonsense_is_refused_in_kubernetes_words() {
        let set = set_with(|set| {
            set["spec"]["podManagementPolicy"] = "X".into();
            set["spec"]["updateStrategy"] = json!({"type": "OnDelete", "rollingUpdate": {"partition": 2}});
            set["spec"]["persistentVolumeClaimRetentionPolicy"] = json!({"whenScaled": "Keep"});
            set["spec"]["ordinals"] = json!({"start": -1});
            set["spec"]["serviceName"] = "a.b".into();
        });
        let found = messages(StatefulSets.validate(&set));
        assert_eq!(
            found[..4],
            [
                "spec.podManagementPolicy: Invalid value: \"X\": must be 'OrderedReady' or 'Parallel'",
                "spec.updateStrategy.rollingUpdate: Invalid value: {\"MaxUnavailable\":null,\"Partition\":2}: only \
                    allowed for updateStrategy 'RollingUpdate'",
                "spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: \"Keep\": supported values: \
                    \"Retain\", \"Delete\"",
                "spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0",
            ]
        );
        assert!(found[4].starts_with("spec.serviceName: Invalid value: \"a.b\": a lowercase RFC 1123 label"));
        let unavailable = |value: Value| {
            let set =
                set_with(|set| set["spec"]["updateStrategy"] = json!({"rollingUpdate": {"maxUnavailable": value}}));
            messages(StatefulSets.validate(&set))
        };
        assert_eq!(unavailable("50%".into()), Vec::<String>::new());
        let path = "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value";
        assert_eq!(unavailable(0.into()), [format!("{path}: 0: cannot be 0")]);
        assert_eq!(unavailable("101%".into()), [format!("{path}: \"101%\": must not be greater than 100%")]);
    }

    #[test]
    fn names_are_labels() {
        assert!(StatefulSets.validate_name("web").is_empty());
        assert!(!StatefulSets.validate_name("a.b").is_empty());
    }
}
