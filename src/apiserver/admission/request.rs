//! A request as webhooks and policies see it: `AdmissionRequest`, and the variables of their expressions.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::super::authz;
use super::super::registry::{self, storage_failed};
use super::super::{ApiServer, User};
use super::{Attributes, Operation};
use crate::api::cel::ast::Expr;
use crate::api::cel::library::authorizer::{Authorization, Decide, Question};
use crate::api::cel::{Error, Machine, PER_CALL_LIMIT, Value as CelValue};
use crate::api::kind::Subresource;
use crate::api::kinds::admission_registration::rules::Asked;
use crate::api::{Kind, StatusResult, meta};

/// What is asked about.
pub(super) struct Request<'a> {
    /// What admission knows of it.
    pub attributes: &'a Attributes<'a>,
}

impl<'a> Request<'a> {
    /// Of an admission's attributes.
    pub fn new(attributes: &'a Attributes<'a>) -> Self {
        Self { attributes }
    }

    /// Registrations are never asked about themselves: nobody could repair them.
    pub fn is_exempt(&self) -> bool {
        let gvr = &self.attributes.kind.gvr;
        gvr.group == "admissionregistration.k8s.io"
    }

    pub fn operation(&self) -> &'static str {
        match self.attributes.operation {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }

    fn subresource(&self) -> &'static str {
        self.attributes.subresource.map_or("", Subresource::as_str)
    }

    /// Whether its objects are Scales, whatever kind has them.
    pub fn is_scale(&self) -> bool {
        self.attributes.subresource == Some(Subresource::Scale)
    }

    /// What rules are matched against, as if it were a request for `kind`.
    pub fn asked<'k>(&'k self, kind: &'k Kind) -> Asked<'k> {
        Asked {
            operation: self.operation(),
            group: &kind.gvr.group,
            version: &kind.gvr.version,
            resource: &kind.gvr.resource,
            subresource: self.subresource(),
            namespaced: kind.namespaced,
            name: &self.attributes.name,
        }
    }

    /// The namespace that selectors look at: the one that the object is in, or the object when it is one; none for other objects.
    pub async fn namespace(
        &self,
        server: &ApiServer,
        object: &Value,
        old: Option<&Value>,
    ) -> StatusResult<Option<Arc<Value>>> {
        let kind = self.attributes.kind;
        if kind.gvr.group.is_empty() && kind.gvr.resource == "namespaces" {
            let shown = if object.is_object() { Some(object) } else { old };
            return Ok(shown.cloned().map(Arc::new));
        }
        if self.attributes.namespace.is_empty() {
            return Ok(None);
        }
        let key = registry::key("", "namespaces", "", self.attributes.namespace);
        let entry = server.storage.get(&key).await.map_err(storage_failed)?;
        Ok(entry.map(|entry| entry.value()))
    }

    /// `AdmissionReview.request` but for the objects. `shown`: the version in which the objects are shown.
    pub fn described(&self, server: &ApiServer, shown: &Kind) -> Value {
        let attributes = self.attributes;
        let kind = attributes.kind;
        let gvk = |kind: &Kind| match self.is_scale() {
            true => json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}),
            false => json!({"group": kind.gvr.group, "version": kind.gvr.version, "kind": kind.kind}),
        };
        let gvr =
            |kind: &Kind| json!({"group": kind.gvr.group, "version": kind.gvr.version, "resource": kind.gvr.resource});
        let mut request = json!({
            "uid": server.env.uid(), "kind": gvk(shown), "resource": gvr(shown),
            "requestKind": gvk(kind), "requestResource": gvr(kind),
            "operation": self.operation(), "userInfo": user_info(attributes.user),
            "dryRun": attributes.context.dry_run, "options": self.options(),
        });
        for (field, value) in [
            ("name", attributes.name.as_str()),
            ("namespace", attributes.namespace),
            ("subResource", self.subresource()),
            ("requestSubResource", self.subresource()),
        ] {
            if !value.is_empty() {
                request[field] = value.into();
            }
        }
        request
    }

    fn options(&self) -> Value {
        let context = self.attributes.context;
        let kind = match self.attributes.operation {
            Operation::Create => "CreateOptions",
            Operation::Update => "UpdateOptions",
            Operation::Delete => "DeleteOptions",
            Operation::Connect => return Value::Null,
        };
        let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if context.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        if !context.manager.is_empty() && kind != "DeleteOptions" {
            options["fieldManager"] = context.manager.as_str().into();
        }
        options
    }

    /// Whether all conditions hold: one that is false decides, else one that fails.
    ///
    /// # Errors
    /// Why a condition cannot be decided.
    pub fn conditions_hold(
        &self,
        server: &ApiServer,
        conditions: &[(String, Expr)],
        object: &Value,
        old: Option<&Value>,
        params: Option<&Value>,
        namespace: Option<&Value>,
    ) -> Result<bool, String> {
        let described = self.described(server, self.attributes.kind);
        let decider = Decider { server, user: self.attributes.user };
        let seen = Seen { request: &described, object, old, params, namespace, decider: &decider };
        let mut machine = seen.machine(self, PER_CALL_LIMIT * 4);
        let mut failure = None;
        for (name, condition) in conditions {
            match machine.run(condition) {
                Ok(CelValue::Bool(true)) => {}
                Ok(CelValue::Bool(false)) => return Ok(false),
                Ok(_) => failure = failure.or(Some(format!("matchCondition {name:?} did not evaluate to a bool"))),
                Err(error) => {
                    failure =
                        failure.or(Some(format!("expression of matchCondition {name:?} resulted in error: {error}")))
                }
            }
        }
        failure.map_or(Ok(true), Err)
    }
}

/// `authenticationv1.UserInfo`.
fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        let extra: Map<String, Value> = user.extra.iter().map(|(key, values)| (key.clone(), json!(values))).collect();
        info["extra"] = extra.into();
    }
    info
}

/// What expressions look at.
pub(super) struct Seen<'s> {
    pub request: &'s Value,
    pub object: &'s Value,
    pub old: Option<&'s Value>,
    pub params: Option<&'s Value>,
    pub namespace: Option<&'s Value>,
    pub decider: &'s Decider<'s>,
}

impl<'s> Seen<'s> {
    /// A machine with all variables.
    pub fn machine(&self, request: &Request<'_>, budget: u64) -> Machine<'s> {
        let json = |value: Option<&'s Value>| value.map_or(CelValue::Null, |value| CelValue::json(value, None));
        let asked = request.asked(request.attributes.kind);
        let question = Question {
            group: asked.group.to_owned(),
            resource: asked.resource.to_owned(),
            subresource: asked.subresource.to_owned(),
            namespace: request.attributes.namespace.to_owned(),
            name: request.attributes.name.clone(),
            ..Question::default()
        };
        let decide: &'s dyn Decide = self.decider;
        let globals = vec![
            ("object", json(Some(self.object))),
            ("oldObject", json(self.old)),
            ("request", json(Some(self.request))),
            ("params", json(self.params)),
            ("namespaceObject", json(self.namespace)),
            ("authorizer", CelValue::Authorization(Authorization::Authorizer(decide, Question::default()))),
            (
                crate::api::cel::admission::REQUEST_RESOURCE,
                CelValue::Authorization(Authorization::Resource(decide, question)),
            ),
        ];
        Machine::new(globals, budget)
    }
}

/// Decides questions of expressions as the server does.
pub(super) struct Decider<'s> {
    pub server: &'s ApiServer,
    pub user: &'s User,
}

impl Decide for Decider<'_> {
    fn decide(&self, question: &Question) -> (bool, String) {
        let account = question.account.as_ref().map(|(namespace, name)| {
            let user = format!("system:serviceaccount:{namespace}:{name}");
            let group = format!("system:serviceaccounts:{namespace}");
            User::new(&user, &["system:serviceaccounts", &group, "system:authenticated"])
        });
        let user = account.as_ref().unwrap_or(self.user);
        let attributes = authz::Attributes {
            verb: &question.verb,
            group: &question.group,
            resource: &question.resource,
            subresource: &question.subresource,
            namespace: &question.namespace,
            name: &question.name,
            path: &question.path,
            ..Default::default()
        };
        match self.server.authorize_at_once(user, &attributes) {
            Ok(()) => (true, String::new()),
            Err(status) => (false, status.message),
        }
    }
}

/// The name of an object, which a create may not have yet.
pub(super) fn name_of<'o>(attributes: &'o Attributes<'_>, object: &'o Value) -> &'o str {
    if attributes.name.is_empty() { meta::name(object) } else { &attributes.name }
}

/// A failure of an expression in words.
pub(super) fn failed(source: &str, error: &Error) -> String {
    format!("expression '{source}' resulted in error: {error}")
}
