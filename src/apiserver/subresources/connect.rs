//! `pods/log`, `exec`, `attach`, `portforward`: passed on to the pod's node, upgrades included.

use std::sync::Arc;

use axum::body::Body;
use http::{Request, Response, Uri};
use serde_json::Value;

use super::scheduled_pod;
use crate::api::kind::Subresource;
use crate::api::{Kind, Status, StatusResult, meta};
use crate::apiserver::ApiServer;
use crate::apiserver::http::request::Query;
use crate::apiserver::http::{Asked, no_method, responses};

/// The annotation that names the container that is meant when none is named.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// GET of `pods/log`.
pub(super) async fn log(server: &Arc<ApiServer>, kind: &Kind, asked: Asked) -> StatusResult<Response<Body>> {
    let Asked { info, query, request, .. } = asked;
    if info.verb != "get" {
        return Err(no_method());
    }
    check_log_options(&info.name, &query)?;
    let pod = server.get_entry(kind, &info.namespace, &info.name).await?.value();
    let container = container(&pod, query.text("container"), true)?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        // The pod has no node yet: there is nothing to read, which is no error.
        return Ok(responses::text(204, Body::empty()));
    }
    let mut pairs = Vec::new();
    for key in ["follow", "previous", "timestamps", "insecureSkipTLSVerifyBackend"] {
        if query.flag(key) && key != "insecureSkipTLSVerifyBackend" {
            pairs.push((key, "true".to_owned()));
        }
    }
    for key in ["tailLines", "limitBytes", "sinceSeconds", "sinceTime", "stream"] {
        if let Some(value) = query.get(key).filter(|v| !v.is_empty()) {
            pairs.push((key, value.to_owned()));
        }
    }
    let path = format!("/containerLogs/{}/{}/{container}", info.namespace, info.name);
    let request = redirect(request, &path, &pairs)?;
    Ok(server.options.nodes.call(node, request).await)
}

fn check_log_options(name: &str, query: &Query) -> StatusResult<()> {
    use crate::api::status::FieldError;
    let mut errors = Vec::new();
    for (field, lowest) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
        if let Some(value) = query.integer(field)?
            && value < lowest
        {
            let detail = if lowest == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            errors.push(FieldError::invalid(field, &value.into(), detail));
        }
    }
    if query.get("sinceSeconds").is_some() && query.get("sinceTime").is_some() {
        errors.push(FieldError::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("", "PodLogOptions", name, &errors)) }
}

/// `pods/exec`, `attach` and `portforward`.
pub(super) async fn stream(
    server: &Arc<ApiServer>,
    kind: &Kind,
    sub: Subresource,
    asked: Asked,
) -> StatusResult<Response<Body>> {
    let Asked { info, query, request, .. } = asked;
    let (pod, node) = scheduled_pod(server, kind, &info.namespace, &info.name).await?;
    let place = format!("{}/{}", info.namespace, info.name);
    let (path, pairs) = if sub == Subresource::PortForward {
        (format!("/portForward/{place}"), query.all("ports").map(|p| ("port", p.to_owned())).collect())
    } else {
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        if ["Succeeded", "Failed"].contains(&phase) {
            let verb = if sub == Subresource::Exec { "exec into" } else { "attach to" };
            return Err(Status::bad_request(format!(
                "cannot {verb} a container in a completed pod; current phase is {phase}"
            )));
        }
        let container = container(&pod, query.text("container"), false)?;
        let mut pairs = Vec::new();
        for (from, to) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
            if query.flag(from) {
                pairs.push((to, "1".to_owned()));
            }
        }
        if pairs.iter().all(|(key, _)| *key == "tty") {
            return Err(Status::bad_request("you must specify at least one of stdin, stdout, stderr"));
        }
        if sub == Subresource::Exec {
            let command: Vec<_> = query.all("command").map(|c| ("command", c.to_owned())).collect();
            if command.is_empty() {
                return Err(Status::bad_request("you must specify at least one command for the container"));
            }
            pairs.extend(command);
        }
        let verb = if sub == Subresource::Exec { "exec" } else { "attach" };
        (format!("/{verb}/{place}/{container}"), pairs)
    };
    let request = redirect(request, &path, &pairs)?;
    Ok(server.options.nodes.call(&node, request).await)
}

/// The container that is meant. For logs an init or ephemeral container will do as well.
fn container(pod: &Value, asked: &str, logs: bool) -> StatusResult<String> {
    let names = |list: &str| -> Vec<String> {
        let all = pod["spec"][list].as_array().into_iter().flatten();
        all.filter_map(|c| c["name"].as_str()).map(str::to_owned).collect()
    };
    let (main, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let pod_name = meta::name(pod);
    if !asked.is_empty() {
        if [&main, &init, &ephemeral].iter().any(|list| list.iter().any(|n| n == asked)) {
            return Ok(asked.to_owned());
        }
        return Err(Status::bad_request(format!("container {asked} is not valid for pod {pod_name}")));
    }
    if let [only] = main.as_slice() {
        return Ok(only.clone());
    }
    if let Some(default) = meta::annotation(pod, DEFAULT_CONTAINER).filter(|d| main.iter().any(|n| n == d)) {
        return Ok(default.to_owned());
    }
    if !logs && let Some(first) = main.first() {
        return Ok(first.clone());
    }
    let mut message =
        format!("a container name must be specified for pod {pod_name}, choose one of: [{}]", main.join(" "));
    if !init.is_empty() {
        message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
    }
    Err(Status::bad_request(message))
}

/// The same request at another path; credentials stay here.
pub(super) fn redirect(request: Request<Body>, path: &str, pairs: &[(&str, String)]) -> StatusResult<Request<Body>> {
    let mut target = encode(path, true);
    for (i, (key, value)) in pairs.iter().enumerate() {
        target.push(if i == 0 { '?' } else { '&' });
        target.push_str(key);
        target.push('=');
        target.push_str(&encode(value, false));
    }
    let uri: Uri = target.parse().map_err(|e| Status::bad_request(format!("{e}")))?;
    let (mut parts, body) = request.into_parts();
    parts.uri = uri;
    parts.headers.remove(http::header::AUTHORIZATION);
    let stale: Vec<_> = parts.headers.keys().filter(|k| k.as_str().starts_with("impersonate-")).cloned().collect();
    for name in stale {
        parts.headers.remove(name);
    }
    Ok(Request::from_parts(parts, body))
}

/// Percent-encodes what is not unreserved.
pub(super) fn encode(text: &str, keep_slashes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            b'/' if keep_slashes => out.push('/'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_container_must_be_named_when_there_are_several() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}, {"name": "d"}]}});
        let error = container(&pod, "", true).expect_err("ambiguous");
        assert_eq!(error.message, "a container name must be specified for pod p, choose one of: [c d]");
        assert_eq!(container(&pod, "d", true).as_deref(), Ok("d"));
        assert_eq!(container(&pod, "", false).as_deref(), Ok("c"));
        assert!(container(&pod, "x", true).is_err());
    }
}
