//! Which FlowSchema, priority level and flow a request belongs to: pure, from the objects.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::Counts;
use crate::api::meta::{self, items, number, text};
use crate::apiserver::User;
use crate::apiserver::http::request::RequestInfo;

/// A FlowSchema that can match requests.
pub(crate) struct Schema {
    pub name: String,
    pub uid: String,
    pub level: String,
    pub level_uid: String,
    /// Whether its priority level limits nothing.
    pub exempt: bool,
    pub counts: Arc<Counts>,
    precedence: i64,
    distinguisher: Distinguisher,
    rules: Vec<Value>,
}

enum Distinguisher {
    Nothing,
    User,
    Namespace,
}

/// What a priority level allows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Limits {
    /// Its part of the server.
    pub shares: u32,
    /// How much of its part others may have while it is idle, in percent.
    pub lendable: u32,
    /// How much more than its part it may have, in percent; `None`: no limit.
    pub borrowing: Option<u32>,
    /// How many requests may wait altogether and in one flow; `None`: none waits.
    pub queues: Option<(usize, usize)>,
}

/// All schemas in the order in which they are asked, and the levels that limit something.
#[derive(Default)]
pub(crate) struct Compiled {
    pub schemas: Vec<Arc<Schema>>,
    pub levels: BTreeMap<String, Limits>,
}

/// Whether a priority level limits nothing.
fn is_exempt(level: &Value) -> bool {
    text(&level["spec"]["type"]) == "Exempt"
}

impl Compiled {
    /// Of the objects as they are stored. Schemas whose level does not exist match nothing. `counts` are kept from before.
    pub fn new(schemas: &[Arc<Value>], levels: &[Arc<Value>], before: &Self) -> Self {
        let by_name: BTreeMap<&str, &Value> = levels.iter().map(|level| (meta::name(level), &**level)).collect();
        let kept: BTreeMap<&str, &Arc<Schema>> = before.schemas.iter().map(|s| (s.name.as_str(), s)).collect();
        let mut compiled: Vec<Arc<Schema>> = schemas
            .iter()
            .filter_map(|schema| {
                let level = by_name.get(text(&schema["spec"]["priorityLevelConfiguration"]["name"]))?;
                let counts = kept.get(meta::name(schema)).map_or_else(Arc::default, |s| Arc::clone(&s.counts));
                Some(Arc::new(Schema::new(schema, level, counts)))
            })
            .collect();
        compiled.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        let limited = levels.iter().filter(|level| !is_exempt(level));
        let levels = limited.map(|level| (meta::name(level).to_owned(), limits(level))).collect();
        Self { schemas: compiled, levels }
    }

    /// The first schema that matches, and what tells its flows apart; `None` when there is none.
    pub fn classify(&self, user: &User, info: &RequestInfo) -> Option<(&Arc<Schema>, String)> {
        let schema = self.schemas.iter().find(|schema| schema.rules.iter().any(|rule| matches(rule, user, info)))?;
        let flow = match schema.distinguisher {
            Distinguisher::Nothing => String::new(),
            Distinguisher::User => user.name.clone(),
            Distinguisher::Namespace => info.namespace.clone(),
        };
        Some((schema, flow))
    }
}

fn limits(level: &Value) -> Limits {
    let limited = &level["spec"]["limited"];
    let of = |value: &Value| u32::try_from(number(value)).unwrap_or(0);
    let queuing = &limited["limitResponse"]["queuing"];
    let size = |field: &str| usize::try_from(number(&queuing[field])).unwrap_or(0);
    Limits {
        shares: of(&limited["nominalConcurrencyShares"]),
        lendable: of(&limited["lendablePercent"]).min(100),
        borrowing: limited["borrowingLimitPercent"].as_u64().map(|percent| u32::try_from(percent).unwrap_or(u32::MAX)),
        queues: queuing.is_object().then(|| {
            let length = size("queueLengthLimit");
            (size("queues").saturating_mul(length), size("handSize").saturating_mul(length))
        }),
    }
}

impl Schema {
    fn new(schema: &Value, level: &Value, counts: Arc<Counts>) -> Self {
        let spec = &schema["spec"];
        Self {
            name: meta::name(schema).to_owned(),
            uid: meta::uid(schema).to_owned(),
            level: meta::name(level).to_owned(),
            level_uid: meta::uid(level).to_owned(),
            exempt: is_exempt(level),
            counts,
            precedence: number(&spec["matchingPrecedence"]),
            distinguisher: match text(&spec["distinguisherMethod"]["type"]) {
                "ByUser" => Distinguisher::User,
                "ByNamespace" => Distinguisher::Namespace,
                _ => Distinguisher::Nothing,
            },
            rules: items(&spec["rules"]).to_vec(),
        }
    }
}

/// Whether a rule has the user among its subjects and the request among what it is about.
fn matches(rule: &Value, user: &User, info: &RequestInfo) -> bool {
    let about = if info.is_resource {
        items(&rule["resourceRules"]).iter().any(|rule| is_about_resource(rule, info))
    } else {
        items(&rule["nonResourceRules"]).iter().any(|rule| is_about_path(rule, info))
    };
    about && items(&rule["subjects"]).iter().any(|subject| is_subject(subject, user))
}

fn has(list: &Value, wanted: &str) -> bool {
    items(list).iter().any(|item| matches!(text(item), "*") || text(item) == wanted)
}

fn is_subject(subject: &Value, user: &User) -> bool {
    let name = |kind: &str| text(&subject[kind]["name"]);
    match text(&subject["kind"]) {
        "User" => matches!(name("user"), "*") || name("user") == user.name,
        "Group" => matches!(name("group"), "*") || user.is_in(name("group")),
        "ServiceAccount" => {
            let rest = user.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
            rest.is_some_and(|(namespace, account)| {
                namespace == text(&subject["serviceAccount"]["namespace"])
                    && (name("serviceAccount") == "*" || name("serviceAccount") == account)
            })
        }
        _ => false,
    }
}

fn is_about_resource(rule: &Value, info: &RequestInfo) -> bool {
    let resource = match info.subresource.as_str() {
        "" => info.resource.clone(),
        sub => format!("{}/{sub}", info.resource),
    };
    let place = match info.namespace.as_str() {
        "" => rule["clusterScope"] == true,
        namespace => has(&rule["namespaces"], namespace),
    };
    place
        && has(&rule["verbs"], &info.verb)
        && has(&rule["apiGroups"], &info.group)
        && has(&rule["resources"], &resource)
}

fn is_about_path(rule: &Value, info: &RequestInfo) -> bool {
    let path = info.path.trim_end_matches('/');
    let is_below = |url: &str| match url.strip_suffix("/*") {
        Some(prefix) => path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/')),
        None => url == "*" || url.trim_end_matches('/') == path,
    };
    has(&rule["verbs"], &info.verb) && items(&rule["nonResourceURLs"]).iter().any(|url| is_below(text(url)))
}
