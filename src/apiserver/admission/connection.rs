//! CONNECT: webhooks and policies are asked about connections (exec, attach, port-forward, proxy) and see their options
//! (`ConnectResource` of kube-apiserver). No plugin of ours concerns itself with them.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::request::Request;
use super::webhooks::{self, Calls};
use super::{Attributes, Operation, validating_admission_policy};
use crate::api::kind::Subresource;
use crate::api::kinds::plain::Plain;
use crate::api::{Kind, Status, StatusResult};
use crate::apiserver::audit::Annotations;
use crate::apiserver::http::request::{Query, RequestInfo, percent_decode};
use crate::apiserver::registry::Context;
use crate::apiserver::{ApiServer, User, discovery};

/// Asks about a connection to a part of an object.
///
/// # Errors
/// What a webhook or a policy says against it.
pub(crate) async fn connect(
    server: &ApiServer,
    kind: &Kind,
    sub: Subresource,
    user: &User,
    info: &RequestInfo,
    query: &Query,
    notes: &Annotations,
) -> StatusResult<()> {
    let mut context = Context::new(user);
    context.notes = notes.clone();
    // What is shown is the connection's options, which are a kind of their own.
    let shown =
        Kind { kind: discovery::subresource(kind, sub).1.to_owned().into(), strategy: Arc::new(Plain), ..kind.clone() };
    let attributes = Attributes {
        user,
        context: &context,
        operation: Operation::Connect,
        kind: &shown,
        namespace: &info.namespace,
        name: info.name.clone(),
        subresource: Some(sub),
    };
    let options = options(&shown.kind, sub, query, &info.rest);
    let request = Request::new(&attributes);
    let (mut made, mut calls) = (options.clone(), Calls::default());
    webhooks::mutate(server, &request, &mut made, None, &mut calls).await?;
    if calls.changed {
        return Err(Status::internal("mutating webhooks may refuse a connection, but not change its options"));
    }
    validating_admission_policy::validate(server, &request, &options, None).await?;
    webhooks::validate(server, &request, &options, None).await
}

/// The options of a connection as an object (`v1.PodExecOptions` and its siblings). `rest`: what follows in the path.
fn options(kind: &str, sub: Subresource, query: &Query, rest: &str) -> Value {
    let mut options = Map::new();
    options.insert("kind".into(), kind.into());
    options.insert("apiVersion".into(), "v1".into());
    match sub {
        Subresource::Exec | Subresource::Attach => {
            for stream in ["stdin", "stdout", "stderr", "tty"].into_iter().filter(|stream| query.flag(stream)) {
                options.insert(stream.into(), true.into());
            }
            if !query.text("container").is_empty() {
                options.insert("container".into(), query.text("container").into());
            }
            if sub == Subresource::Exec {
                options.insert("command".into(), query.all("command").collect());
            }
        }
        Subresource::PortForward => {
            let ports: Vec<Value> = query
                .all("ports")
                .flat_map(|ports| ports.split(','))
                .filter_map(|port| port.parse::<u16>().ok())
                .map(Value::from)
                .collect();
            if !ports.is_empty() {
                options.insert("ports".into(), ports.into());
            }
        }
        _ => {
            if !rest.is_empty() {
                options.insert("path".into(), percent_decode(rest).into());
            }
        }
    }
    options.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_are_those_of_the_api_reference() {
        let check = |kind: &str, sub, query: &str, rest: &str, mut expected: Value| {
            (expected["kind"], expected["apiVersion"]) = (kind.into(), "v1".into());
            assert_eq!(options(kind, sub, &Query::new(query), rest), expected);
        };
        let exec = "command=sh&command=-c&stdin=true&stdout=1&tty=false&container=c";
        check(
            "PodExecOptions",
            Subresource::Exec,
            exec,
            "",
            json!({"stdin": true, "stdout": true, "container": "c", "command": ["sh", "-c"]}),
        );
        check("PodAttachOptions", Subresource::Attach, "stderr=true", "", json!({"stderr": true}));
        check(
            "PodPortForwardOptions",
            Subresource::PortForward,
            "ports=80,443&ports=x",
            "",
            json!({"ports": [80, 443]}),
        );
        check("ServiceProxyOptions", Subresource::Proxy, "a=b", "/x%20y", json!({"path": "/x y"}));
        check("NodeProxyOptions", Subresource::Proxy, "", "", json!({}));
    }
}
