//! Kubernetes' `authorizer`: may the user of the request do something else?

use super::Args;
use crate::api::cel::eval::{Error, Evaluated, Machine};
use crate::api::cel::value::Value;

/// What a check asks.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// For `path()`: the path; else empty.
    pub path: String,
    /// The API group.
    pub group: String,
    /// The resource.
    pub resource: String,
    /// The subresource.
    pub subresource: String,
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The verb.
    pub verb: String,
    /// The service account as whom it is asked (namespace, name); none: the user of the request.
    pub account: Option<(String, String)>,
}

/// Who decides: whether it is allowed, and why (not).
pub trait Decide: Send + Sync {
    /// Decides one question.
    fn decide(&self, question: &Question) -> (bool, String);
}

/// The steps of `authorizer.group('').resource('pods').check('get').allowed()`.
#[derive(Clone)]
pub enum Authorization<'a> {
    /// `authorizer`, `serviceAccount(…)`.
    Authorizer(&'a dyn Decide, Question),
    /// `path(…)`.
    Path(&'a dyn Decide, Question),
    /// `group(…)`.
    Group(&'a dyn Decide, Question),
    /// `resource(…)` and what narrows it.
    Resource(&'a dyn Decide, Question),
    /// `check(…)`.
    Decision(bool, String),
}

impl std::fmt::Debug for Authorization<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.type_name())
    }
}

impl Authorization<'_> {
    /// The name of its type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Authorizer(..) => "kubernetes.authorization.Authorizer",
            Self::Path(..) => "kubernetes.authorization.PathCheck",
            Self::Group(..) => "kubernetes.authorization.GroupCheck",
            Self::Resource(..) => "kubernetes.authorization.ResourceCheck",
            Self::Decision(..) => "kubernetes.authorization.Decision",
        }
    }
}

/// A check costs what a request to an authorizer may cost (`library/cost.go`).
const CHECK_COST: u64 = 350_000;

pub(super) fn call<'a>(
    machine: &mut Machine<'a>,
    authorization: &Authorization<'a>,
    function: &str,
    args: &[Value<'a>],
) -> Evaluated<'a> {
    let args: Args<'a> = args.to_vec();
    let texts: Vec<&str> = args
        .iter()
        .map(|arg| match arg {
            Value::String(text) => Ok(&**text),
            _ => Err(Error::overload()),
        })
        .collect::<Result<_, _>>()?;
    let with = |question: &Question, set: &dyn Fn(&mut Question)| {
        let mut question = question.clone();
        set(&mut question);
        question
    };
    let made = match (authorization, function, &texts[..]) {
        (Authorization::Authorizer(decide, question), "path", [path]) => {
            Authorization::Path(*decide, with(question, &|q| q.path = (*path).to_owned()))
        }
        (Authorization::Authorizer(decide, question), "group", [group]) => {
            Authorization::Group(*decide, with(question, &|q| q.group = (*group).to_owned()))
        }
        (Authorization::Authorizer(decide, question), "serviceAccount", [namespace, name]) => {
            let account = Some(((*namespace).to_owned(), (*name).to_owned()));
            Authorization::Authorizer(*decide, with(question, &|q| q.account = account.clone()))
        }
        (Authorization::Group(decide, question), "resource", [resource]) => {
            Authorization::Resource(*decide, with(question, &|q| q.resource = (*resource).to_owned()))
        }
        (Authorization::Resource(decide, question), "subresource", [subresource]) => {
            Authorization::Resource(*decide, with(question, &|q| q.subresource = (*subresource).to_owned()))
        }
        (Authorization::Resource(decide, question), "namespace", [namespace]) => {
            Authorization::Resource(*decide, with(question, &|q| q.namespace = (*namespace).to_owned()))
        }
        (Authorization::Resource(decide, question), "name", [name]) => {
            Authorization::Resource(*decide, with(question, &|q| q.name = (*name).to_owned()))
        }
        // Selectors narrow what is listed; a decision without them is the stricter one.
        (Authorization::Resource(decide, question), "fieldSelector" | "labelSelector", [_]) => {
            Authorization::Resource(*decide, question.clone())
        }
        (Authorization::Resource(decide, question) | Authorization::Path(decide, question), "check", [verb]) => {
            machine.charge(CHECK_COST)?;
            let (allowed, reason) = decide.decide(&with(question, &|q| q.verb = (*verb).to_owned()));
            Authorization::Decision(allowed, reason)
        }
        (Authorization::Decision(allowed, _), "allowed", []) => return Ok(Value::Bool(*allowed)),
        (Authorization::Decision(_, reason), "reason", []) => return Ok(Value::text(reason.as_str())),
        (Authorization::Decision(..), "errored", []) => return Ok(Value::Bool(false)),
        (Authorization::Decision(..), "error", []) => return Ok(Value::text("")),
        _ => return Err(Error::overload()),
    };
    Ok(Value::Authorization(made))
}
