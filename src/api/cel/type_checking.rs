//! What a ValidatingAdmissionPolicy's expressions ask of the kinds that it matches and those do not have
//! (`k8s.io/apiserver/pkg/admission/plugin/policy/validating/typechecking.go`). The API server evaluates without these types.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::admission::{policy_env, with_variables};
use super::types::{self, Object, Type, escape};
use super::{Env, compile};
use crate::api::Kind;
use crate::api::meta::{items, text};
use crate::api::schema::{self, Shape, TypeId};

/// `maxTypesToCheck`.
const MOST: usize = 10;

/// The `expressionWarnings` of a policy's `spec`, where these kinds are served.
pub fn warnings(spec: &Value, served: &[Arc<Kind>]) -> Vec<Value> {
    let params = &spec["paramKind"];
    let is_param =
        |kind: &&Arc<Kind>| kind.kind == text(&params["kind"]) && kind.gvr.api_version() == text(&params["apiVersion"]);
    let params = served.iter().find(is_param).and_then(|kind| of_kind(kind));
    let checked: Vec<(String, Env)> = matched(spec, served)
        .into_iter()
        .filter_map(|kind| {
            let name = format!("{}/{}, Kind={}", kind.gvr.group, kind.gvr.version, kind.kind);
            Some((name, env(spec, of_kind(kind)?, params.clone())))
        })
        .collect();
    let warning = |expression: &Value| {
        let wrong = |(kind, env): &(String, Env)| {
            let issues = compile(env, text(expression)).err()?;
            Some(format!("{kind}: {issues}\n"))
        };
        checked.iter().filter_map(wrong).collect::<Vec<String>>().join("\n")
    };
    let mut warnings = Vec::new();
    for (index, validation) in items(&spec["validations"]).iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            if text(&validation[field]).is_empty() {
                continue;
            }
            let warning = warning(&validation[field]);
            if !warning.is_empty() {
                warnings.push(json!({"fieldRef": format!("spec.validations[{index}].{field}"), "warning": warning}));
            }
        }
    }
    warnings
}

/// The kinds that a policy names without wildcards, by group, version and kind.
fn matched<'k>(spec: &Value, served: &'k [Arc<Kind>]) -> Vec<&'k Arc<Kind>> {
    let mut found: Vec<&Arc<Kind>> = Vec::new();
    for rule in items(&spec["matchConstraints"]["resourceRules"]) {
        let names = |field: &str, value: &str| items(&rule[field]).iter().any(|name| name == value);
        let wild = |field: &str| items(&rule[field]).iter().any(|name| text(name).contains('*'));
        if wild("apiGroups") || wild("apiVersions") {
            continue;
        }
        let meant = served.iter().filter(|kind| {
            let gvr = &kind.gvr;
            names("apiGroups", &gvr.group) && names("apiVersions", &gvr.version) && names("resources", &gvr.resource)
        });
        found.extend(meant);
    }
    found.sort_by(|a, b| {
        let key = |kind: &Kind| (kind.gvr.group.to_string(), kind.gvr.version.to_string(), kind.kind.to_string());
        key(a).cmp(&key(b))
    });
    found.dedup_by(|a, b| Arc::ptr_eq(a, b));
    found.truncate(MOST);
    found
}

/// What expressions may use where objects are of this type.
fn env(spec: &Value, object: Type, params: Option<Type>) -> Env {
    let mut env = policy_env(params.is_some()).with("object", object.clone()).with("oldObject", object);
    if let Some(params) = params {
        env = env.with("params", params);
    }
    let mut known = BTreeMap::new();
    for variable in items(&spec["variables"]) {
        let program = compile(&with_variables(&env, &known), text(&variable["expression"]));
        known.insert(text(&variable["name"]).to_owned(), program.map_or(Type::Dyn, |program| program.ty));
    }
    with_variables(&env, &known)
}

/// The type of a kind's objects; `None` where nothing is known of it.
fn of_kind(kind: &Kind) -> Option<Type> {
    let Some(custom) = kind.strategy.custom() else {
        let ty = schema::of(&kind.gvk())?;
        return Some(of_type(ty, &kind.kind, &mut Vec::new()));
    };
    let Type::Object(object) = types::declared(&custom.schema, true)? else { return None };
    let mut fields = object.fields.clone();
    let metadata = TypeId::of_definition("apimachinery.pkg.apis.meta.v1.ObjectMeta")?;
    fields.insert("metadata".to_owned(), of_type(metadata, "ObjectMeta", &mut Vec::new()));
    Some(Type::Object(Arc::new(Object { name: kind.kind.to_string(), fields })))
}

/// A type of the table. A type within itself may be anything there.
fn of_type(ty: TypeId, name: &str, within: &mut Vec<TypeId>) -> Type {
    if within.contains(&ty) {
        return Type::Dyn;
    }
    within.push(ty);
    let mut fields = BTreeMap::new();
    for field in &ty.get().fields {
        let one = of_value(field.kind, &format!("{name}.{}", field.name), within);
        let whole = match field.shape {
            Shape::One => one,
            Shape::List => Type::list(one),
            Shape::Map => Type::map(one),
        };
        fields.insert(escape(field.name), whole);
    }
    if ty.get().is_kind() {
        fields.insert("kind".to_owned(), Type::String);
        fields.insert("apiVersion".to_owned(), Type::String);
    }
    within.pop();
    Type::Object(Arc::new(Object { name: name.to_owned(), fields }))
}

fn of_value(kind: schema::Kind, name: &str, within: &mut Vec<TypeId>) -> Type {
    match kind {
        schema::Kind::String => Type::String,
        schema::Kind::Bool => Type::Bool,
        schema::Kind::Int32 | schema::Kind::Int64 => Type::Int,
        schema::Kind::Double => Type::Double,
        schema::Kind::Bytes => Type::Bytes,
        schema::Kind::Time | schema::Kind::MicroTime => Type::Timestamp,
        schema::Kind::Strings => Type::list(Type::String),
        schema::Kind::Type(ty) => of_type(ty, name, within),
        // A string or a number, or anything.
        _ => Type::Dyn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kinds;

    fn told(resources: &[&str], validation: Value, more: Value) -> Vec<Value> {
        let rule = json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": resources, "operations": ["*"]});
        let mut spec = json!({"matchConstraints": {"resourceRules": [rule]}, "validations": [validation]});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        warnings(&spec, &kinds::all())
    }

    #[test]
    fn what_a_kind_does_not_have_is_told() {
        // The example of the page "Validating Admission Policy".
        let found = told(&["deployments"], json!({"expression": "object.replicas > 1"}), json!({}));
        assert_eq!(
            found,
            [json!({"fieldRef": "spec.validations[0].expression",
                "warning": "apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'replicas'\n | object.replicas > 1\n | ......^\n"})]
        );
        let both = told(&["replicasets", "deployments"], json!({"expression": "object.x == 1"}), json!({}));
        let text = both[0]["warning"].as_str().expect("a text");
        assert!(
            text.starts_with("apps/v1, Kind=Deployment: ") && text.contains("\n\napps/v1, Kind=ReplicaSet: "),
            "{text}"
        );
        let message = json!({"expression": "true", "messageExpression": "'n: ' + object.spec.replicas"});
        let found = told(&["deployments"], message, json!({}));
        assert_eq!(found[0]["fieldRef"], "spec.validations[0].messageExpression");
        let text = found[0]["warning"].as_str().expect("a text");
        assert!(text.contains("found no matching overload for '_+_' applied to '(string, int)'"), "{text}");
    }

    #[test]
    fn what_it_has_is_not() {
        let good = "object.spec.template.spec.containers.all(c, c.resources.limits['cpu'] == '1' && c.image.startsWith('a')) \
            && object.metadata.labels['a'] == oldObject.metadata.name && object.metadata.creationTimestamp < timestamp('2026-01-01T00:00:00Z') \
            && object.spec.strategy.rollingUpdate.maxSurge == 1 && object.spec.template.spec.containers[0].env.size() < variables.n";
        let variables = json!({"variables": [{"name": "n", "expression": "object.spec.replicas"}]});
        assert_eq!(told(&["deployments"], json!({"expression": good}), variables.clone()), [json!(null); 0]);
        let wrong = json!({"expression": "variables.n.startsWith('a')"});
        assert_eq!(told(&["deployments"], wrong.clone(), variables.clone()).len(), 1, "variables have their types");
        for resources in [&["*"][..], &["deployments/scale"], &["nothing"]] {
            assert_eq!(told(resources, wrong.clone(), variables.clone()), [json!(null); 0], "{resources:?}");
        }
        let param = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}});
        let limit = |field: &str| json!({"expression": format!("object.spec.replicas < int(params.{field}['max'])")});
        assert_eq!(told(&["deployments"], limit("data"), param.clone()), [json!(null); 0]);
        assert_eq!(told(&["deployments"], limit("dta"), param).len(), 1);
    }
}
