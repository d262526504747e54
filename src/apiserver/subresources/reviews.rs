//! Questions that are answered and not stored: access, rules, tokens, who am I.

use serde_json::{Value, json};

use crate::api::status::FieldError;
use crate::api::{Kind, Status, StatusResult};
use crate::apiserver::authz::Attributes;
use crate::apiserver::authz::rbac::Rule;
use crate::apiserver::registry::Context;
use crate::apiserver::{ApiServer, User};
use crate::env::rfc3339;

pub(super) async fn create(
    server: &ApiServer,
    context: &Context<'_>,
    kind: &Kind,
    namespace: &str,
    mut review: Value,
) -> StatusResult<Value> {
    review["metadata"] = match &review["metadata"] {
        Value::Object(map) => Value::Object(map.clone()),
        _ => json!({}),
    };
    let spec = review["spec"].clone();
    review["status"] = match &*kind.gvr.resource {
        "selfsubjectaccessreviews" => access(server, kind, context.user, &spec).await?,
        "subjectaccessreviews" => access(server, kind, &user(&spec), &spec).await?,
        "localsubjectaccessreviews" => {
            if spec["resourceAttributes"]["namespace"].as_str().unwrap_or_default() != namespace {
                let detail = format!("must match metadata.namespace");
                let error = FieldError::invalid(
                    "spec.resourceAttributes.namespace",
                    &spec["resourceAttributes"]["namespace"],
                    &detail,
                );
                return Err(Status::invalid(&kind.gvr.group, &kind.kind, "", &[error]));
            }
            access(server, kind, &user(&spec), &spec).await?
        }
        "selfsubjectrulesreviews" => rules(server, context.user, spec["namespace"].as_str().unwrap_or_default())?,
        "tokenreviews" => token(server, &spec).await,
        "selfsubjectreviews" => {
            review["metadata"]["creationTimestamp"] = rfc3339(server.env.now()).into();
            json!({"userInfo": user_info(context.user)})
        }
        _ => return Err(crate::apiserver::http::no_resource()),
    };
    Ok(review)
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

fn user(spec: &Value) -> User {
    let texts =
        |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let extra = spec["extra"].as_object().into_iter().flatten();
    User {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: texts(&spec["groups"]),
        extra: extra.map(|(k, v)| (k.clone(), texts(v))).collect(),
    }
}

async fn access(server: &ApiServer, kind: &Kind, user: &User, spec: &Value) -> StatusResult<Value> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let mut errors = Vec::new();
    if resource.is_object() && path.is_object() {
        let detail = "cannot be specified in combination with resourceAttributes";
        errors.push(FieldError::invalid("spec.nonResourceAttributes", path, detail));
    }
    if !resource.is_object() && !path.is_object() {
        errors.push(FieldError::invalid(
            "spec.resourceAttributes",
            path,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ));
    }
    if kind.gvr.resource != "selfsubjectaccessreviews" && user.name.is_empty() && user.groups.is_empty() {
        errors.push(FieldError::invalid("spec.user", &json!(""), "at least one of user or group must be specified"));
    }
    if !errors.is_empty() {
        return Err(Status::invalid(&kind.gvr.group, &kind.kind, "", &errors));
    }
    let text = |value: &'_ Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let fields = selector(&resource["fieldSelector"]);
    let decision = if resource.is_object() {
        let [verb, group, name, sub, namespace, object] =
            ["verb", "group", "resource", "subresource", "namespace", "name"].map(|field| text(resource, field));
        let attributes = Attributes {
            verb: &verb,
            group: &group,
            resource: &name,
            subresource: &sub,
            namespace: &namespace,
            name: &object,
            fields: &fields,
            path: "",
        };
        server.decide(user, &attributes).await?
    } else {
        let (verb, path) = (text(path, "verb"), text(path, "path"));
        let attributes = Attributes { verb: &verb, path: &path, ..Attributes::default() };
        server.decide(user, &attributes).await?
    };
    let mut status = json!({"allowed": decision.is_ok()});
    let (Ok(reason) | Err(reason)) = decision;
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    Ok(status)
}

/// A `fieldSelector` of resourceAttributes (KEP-4601) as a request has it. What says nothing definite is left out, so that
/// less is allowed.
fn selector(attributes: &Value) -> String {
    if let Some(raw) = attributes["rawSelector"].as_str() {
        return raw.to_owned();
    }
    let requirements = attributes["requirements"].as_array().into_iter().flatten();
    let told = requirements.filter_map(|wanted| match (wanted["operator"].as_str()?, &wanted["values"]) {
        ("In", values) if values.as_array()?.len() == 1 => {
            Some(format!("{}={}", wanted["key"].as_str()?, values[0].as_str()?))
        }
        _ => None,
    });
    told.collect::<Vec<_>>().join(",")
}

fn rules(server: &ApiServer, user: &User, namespace: &str) -> StatusResult<Value> {
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let mut rules = server.rbac.rules(user, namespace);
    if user.is_master() {
        let everything = |urls: &[&str], resources: &[&str]| {
            let texts = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
            let groups = texts(resources);
            Rule { verbs: texts(&["*"]), groups, resources: texts(resources), names: Vec::new(), urls: texts(urls) }
        };
        rules.push(everything(&[], &["*"]));
        rules.push(everything(&["*"], &[]));
    }
    let mut resource_rules = Vec::new();
    let mut path_rules = Vec::new();
    for rule in rules {
        if rule.urls.is_empty() {
            let mut value = json!({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources});
            if !rule.names.is_empty() {
                value["resourceNames"] = json!(rule.names);
            }
            resource_rules.push(value);
        } else {
            path_rules.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.urls}));
        }
    }
    Ok(json!({"resourceRules": resource_rules, "nonResourceRules": path_rules, "incomplete": false}))
}

async fn token(server: &ApiServer, spec: &Value) -> Value {
    let audiences: Vec<String> =
        spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let token = spec["token"].as_str().unwrap_or_default();
    if let Some((_, user)) = server.options.static_tokens.iter().find(|(known, _)| known == token && !token.is_empty())
    {
        return json!({"authenticated": true, "user": user_info(user)});
    }
    match server.tokens.review(server, token, &audiences).await {
        Ok(review) => json!({"authenticated": true, "user": user_info(&review.user), "audiences": review.audiences}),
        Err(why) => json!({"user": {}, "error": format!("[{why}]")}),
    }
}
