//! What the status of a CustomResourceDefinition should say: accepted names and conditions (the naming, establishing and API
//! approval controllers of apiextensions-apiserver). Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::kinds::custom_resource_definition::{APPROVAL, CLEANUP, is_protected};
use crate::api::meta::{self, items, text};
use crate::env::rfc3339;

/// A condition of a definition.
fn condition<'a>(definition: &'a Value, kind: &str) -> Option<&'a Value> {
    items(&definition["status"]["conditions"]).iter().find(|condition| condition["type"] == kind)
}

/// Whether the definition is served.
pub(super) fn is_established(definition: &Value) -> bool {
    condition(definition, "Established").is_some_and(|condition| condition["status"] == "True")
}

/// Whether the definition is going and its objects have to go first.
pub(super) fn waits_for_objects(definition: &Value) -> bool {
    meta::is_terminating(definition) && meta::finalizers(definition).any(|finalizer| finalizer == CLEANUP)
}

/// The names that others have taken in the group.
#[derive(Default)]
struct Taken {
    resources: BTreeSet<String>,
    kinds: BTreeSet<String>,
}

fn taken(definition: &Value, all: &[&Value]) -> Taken {
    let mut taken = Taken::default();
    let others = all.iter().filter(|other| {
        meta::name(other) != meta::name(definition) && other["spec"]["group"] == definition["spec"]["group"]
    });
    for other in others {
        let names = &other["status"]["acceptedNames"];
        let resources = [&names["plural"], &names["singular"]].into_iter().chain(items(&names["shortNames"]));
        taken.resources.extend(resources.map(|name| text(name).to_owned()).filter(|name| !name.is_empty()));
        let kinds = [&names["kind"], &names["listKind"]];
        taken.kinds.extend(kinds.into_iter().map(|name| text(name).to_owned()).filter(|name| !name.is_empty()));
    }
    taken
}

/// The status of a definition among all.
pub(super) fn of(definition: &Value, all: &[&Value], now: Timestamp) -> Value {
    let mut status = definition["status"].clone();
    let (names, refused) = accepted_names(definition, &taken(definition, all));
    if status["acceptedNames"] != names {
        status["acceptedNames"] = names;
    }
    let accepted = refused.is_none();
    set(
        &mut status,
        now,
        "NamesAccepted",
        match refused {
            None => ("True", "NoConflicts", "no conflicts found".to_owned()),
            Some((reason, message)) => ("False", reason, message),
        },
    );
    // Once established, a definition stays so.
    if !is_established(definition) {
        set(
            &mut status,
            now,
            "Established",
            match accepted {
                true => ("True", "InitialNamesAccepted", "the initial names have been accepted".to_owned()),
                false => ("False", "NotAccepted", "not all names are accepted".to_owned()),
            },
        );
    }
    if is_protected(text(&definition["spec"]["group"])) {
        set(&mut status, now, "KubernetesAPIApprovalPolicyConformant", approval(definition));
    }
    status
}

/// The names that are accepted now, and why others are not.
fn accepted_names(definition: &Value, taken: &Taken) -> (Value, Option<(&'static str, String)>) {
    let wanted = &definition["spec"]["names"];
    let mut names = definition["status"]["acceptedNames"].clone();
    if !names.is_object() {
        names = json!({"plural": "", "kind": ""});
    }
    let mut refused = None;
    let checks = [
        ("plural", "PluralConflict", &taken.resources),
        ("singular", "SingularConflict", &taken.resources),
        ("kind", "KindConflict", &taken.kinds),
        ("listKind", "ListKindConflict", &taken.kinds),
    ];
    for (field, reason, used) in checks {
        let name = text(&wanted[field]);
        if names[field] != name && used.contains(name) {
            refused = Some((reason, format!("{name:?} is already in use")));
        } else if !name.is_empty() {
            names[field] = name.into();
        }
    }
    let had: Vec<&str> = items(&definition["status"]["acceptedNames"]["shortNames"]).iter().map(text).collect();
    let in_use = items(&wanted["shortNames"]).iter().map(text);
    let in_use: Vec<String> = in_use
        .filter(|name| !had.contains(name) && taken.resources.contains(*name))
        .map(|name| format!("{name:?} is already in use"))
        .collect();
    let mut set_list = |field: &str| match items(&wanted[field]) {
        [] => drop(names.as_object_mut().map(|map| map.remove(field))),
        list => names[field] = list.into(),
    };
    if in_use.is_empty() {
        set_list("shortNames");
    } else {
        let message = if in_use.len() == 1 { in_use.concat() } else { format!("[{}]", in_use.join(", ")) };
        refused = Some(("ShortNamesConflict", message));
    }
    set_list("categories");
    (names, refused)
}

/// Whether a group of Kubernetes' own may be used (`apihelpers.GetAPIApprovalState`).
fn approval(definition: &Value) -> (&'static str, &'static str, String) {
    match meta::annotation(definition, APPROVAL) {
        None => {
            let message = format!(
                "protected groups must have approval annotation {APPROVAL:?}, see \
                https://github.com/kubernetes/enhancements/pull/1111"
            );
            ("False", "MissingAnnotation", message)
        }
        Some(value) if value.starts_with("unapproved") => {
            ("False", "UnapprovedAnnotation", format!("not approved: {value:?}"))
        }
        Some(value) => ("True", "ApprovedAnnotation", format!("approved in {value}")),
    }
}

/// Sets a condition; its transition time changes with its status.
pub(super) fn set(
    status: &mut Value,
    now: Timestamp,
    kind: &str,
    (word, reason, message): (&'static str, &'static str, String),
) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let conditions = status["conditions"].as_array_mut().expect("it was just made an array");
    let new =
        json!({"type": kind, "status": word, "reason": reason, "message": message, "lastTransitionTime": rfc3339(now)});
    match conditions.iter_mut().find(|known| known["type"] == kind) {
        None => conditions.push(new),
        Some(known) if known["status"] != word => *known = new,
        Some(known) => {
            known["reason"] = reason.into();
            known["message"] = message.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(name: &str, kind: &str, short: &[&str]) -> Value {
        json!({"metadata": {"name": format!("{name}.x.example.com")}, "spec": {"group": "x.example.com", "names": {
            "plural": name, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"), "shortNames": short}},
            "status": {"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": ["v1"]}})
    }

    fn now() -> Timestamp {
        "2020-01-01T00:00:00Z".parse().expect("a time")
    }

    #[test]
    fn names_are_accepted_and_the_definition_is_established() {
        let widgets = definition("widgets", "Widget", &["wd"]);
        let status = of(&widgets, &[&widgets], now());
        assert_eq!(
            status["acceptedNames"],
            json!({"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList", "shortNames": ["wd"]})
        );
        let conditions = |status: &Value| -> Vec<String> {
            let say = |c: &Value| {
                format!("{}={} {}: {}", text(&c["type"]), text(&c["status"]), text(&c["reason"]), text(&c["message"]))
            };
            items(&status["conditions"]).iter().map(say).collect()
        };
        assert_eq!(
            conditions(&status),
            [
                "NamesAccepted=True NoConflicts: no conflicts found",
                "Established=True InitialNamesAccepted: the initial names have been accepted",
            ]
        );
        let mut settled = widgets.clone();
        settled["status"] = status.clone();
        assert_eq!(of(&settled, &[&settled], now()), status, "nothing is left to do");

        let other = definition("gadgets", "Widget", &["wd", "gd"]);
        let status = of(&other, &[&settled, &other], now());
        assert_eq!(status["acceptedNames"]["plural"], "gadgets");
        assert_eq!(status["acceptedNames"]["kind"], "");
        assert_eq!(
            conditions(&status),
            [
                "NamesAccepted=False ShortNamesConflict: \"wd\" is already in use",
                "Established=False NotAccepted: not all names are accepted",
            ]
        );
    }
}
