//! `pods/proxy`, `services/proxy` and `nodes/proxy`: an HTTP request into the pod network or to a kubelet.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use http::{HeaderName, HeaderValue, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use super::connect;
use crate::api::selector::LabelSelector;
use crate::api::{Kind, Status, StatusResult};
use crate::apiserver::http::{Asked, responses};
use crate::apiserver::registry::list::Page;
use crate::apiserver::selector::Selection;
use crate::apiserver::{ApiServer, outbound};

/// Answers a proxied request.
pub(super) async fn answer(server: &Arc<ApiServer>, kind: &Kind, asked: Asked) -> StatusResult<Response<Body>> {
    let Asked { info, query: _, request, .. } = asked;
    if info.rest.is_empty() && ["get", "list"].contains(&info.verb.as_str()) {
        let mut response = responses::answer(301, HeaderValue::from_static("text/plain"), Body::empty());
        let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
        let location = format!("{}/{query}", request.uri().path());
        if let Ok(location) = HeaderValue::from_str(&location) {
            response.headers_mut().insert(http::header::LOCATION, location);
        }
        return Ok(response);
    }
    let (scheme, name, port) = split_name(&info.name)
        .ok_or_else(|| Status::bad_request(format!("invalid {} request {:?}", kind.singular, info.name)))?;
    let rest = if info.rest.is_empty() { "/" } else { &info.rest };
    let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
    let target = format!("{rest}{query}");
    if kind.gvr.resource == "nodes" {
        server.get_entry(kind, "", name).await?;
        let request = retarget(connect::redirect(request, "/", &[])?, &target)?;
        return Ok(server.options.nodes.call(name, request).await);
    }
    let (ip, port) = if kind.gvr.resource == "pods" {
        pod_address(server, kind, &info.namespace, name, port).await?
    } else {
        service_address(server, kind, &info.namespace, name, port).await?
    };
    let request = retarget(connect::redirect(request, "/", &[])?, &target)?;
    let unavailable =
        |why: String| Status::new(503, "ServiceUnavailable", format!("error trying to reach service: {why}"));
    let mut stream =
        server.options.dialer.dial(ip, port).await.map_err(|e| unavailable(format!("dial tcp {ip}:{port}: {e}")))?;
    if scheme == "https" {
        // As in Kubernetes anybody may answer: certificates of pods are known to nobody here.
        let trust = outbound::Trust { insecure: true, ..outbound::Trust::default() };
        stream = outbound::secure(stream, ip.to_string(), &trust).await.map_err(unavailable)?;
    }
    forward(stream, request, &format!("{ip}:{port}")).await.map_err(|e| unavailable(e.to_string()))
}

/// `[scheme:]name[:port]`.
fn split_name(text: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts[..] {
        [name] => Some(("", name, "")),
        [name, port] => Some(("", name, port)),
        [scheme @ ("" | "http" | "https"), name, port] => Some((scheme, name, port)),
        _ => None,
    }
}

fn retarget(mut request: Request<Body>, target: &str) -> StatusResult<Request<Body>> {
    *request.uri_mut() = target.parse().map_err(|e| Status::bad_request(format!("{e}")))?;
    Ok(request)
}

async fn pod_address(
    server: &ApiServer,
    kind: &Kind,
    namespace: &str,
    name: &str,
    port: &str,
) -> StatusResult<(IpAddr, u16)> {
    let pod = server.get_entry(kind, namespace, name).await?.value();
    let ports = || {
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        containers.flat_map(|c| c["ports"].as_array().into_iter().flatten())
    };
    let number = |p: &Value| p["containerPort"].as_u64().and_then(|n| u16::try_from(n).ok());
    let port = match port {
        "" => ports().next().and_then(number).unwrap_or(80),
        text => match text.parse() {
            Ok(port) => port,
            Err(_) => {
                let named = ports().find(|p| p["name"] == text).and_then(number);
                named.ok_or_else(|| Status::bad_request(format!("pod {name:?} has no port {text:?}")))?
            }
        },
    };
    let ip = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok());
    let ip = ip.ok_or_else(|| Status::bad_request(format!("address not allowed")))?;
    Ok((ip, port))
}

/// The address of one of a Service's endpoints that are ready.
pub(in crate::apiserver) async fn endpoint(
    server: &ApiServer,
    namespace: &str,
    name: &str,
    port: u16,
) -> StatusResult<(IpAddr, u16)> {
    let services = server.known_kind("", "v1", "services")?;
    let found = service_address(server, &services, namespace, name, &port.to_string()).await;
    found.map_err(|status| match status.code {
        404 => Status::new(404, "NotFound", format!("service {name:?} not found")),
        _ => status,
    })
}

async fn service_address(
    server: &ApiServer,
    kind: &Kind,
    namespace: &str,
    name: &str,
    port: &str,
) -> StatusResult<(IpAddr, u16)> {
    let service = server.get_entry(kind, namespace, name).await?.value();
    let unavailable = |why: String| Status::new(503, "ServiceUnavailable", why);
    let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let chosen = match port {
        "" if ports.len() == 1 => ports.first(),
        "" => ports.iter().find(|p| p["name"].as_str().unwrap_or_default().is_empty()),
        text => ports
            .iter()
            .find(|p| p["name"] == text || p["port"].as_u64().map(|n| n.to_string()).as_deref() == Some(text)),
    };
    let none = || unavailable(format!("no endpoints available for service {name:?}"));
    let chosen = chosen.ok_or_else(|| unavailable(format!("no service port {port:?} found for service {name:?}")))?;
    let port_name = chosen["name"].as_str().unwrap_or_default();
    let slices = server.kind("discovery.k8s.io", "v1", "endpointslices").ok_or_else(none)?;
    let selector = format!("kubernetes.io/service-name={name}");
    LabelSelector::parse(&selector).map_err(Status::bad_request)?;
    let selection = Selection::parse(&slices, &selector, "")?;
    let listed = server.list(&slices, namespace, &selection, &Page::default()).await?;
    let mut backends = Vec::new();
    for slice in listed.entries.iter().map(|e| e.value()) {
        let port = slice["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|p| p["name"].as_str().unwrap_or_default() == port_name);
        let Some(port) = port.and_then(|p| p["port"].as_u64()).and_then(|p| u16::try_from(p).ok()) else { continue };
        for endpoint in
            slice["endpoints"].as_array().into_iter().flatten().filter(|e| e["conditions"]["ready"] != false)
        {
            let addresses = endpoint["addresses"].as_array().into_iter().flatten();
            backends.extend(addresses.filter_map(|a| a.as_str()?.parse::<IpAddr>().ok()).map(|ip| (ip, port)));
        }
    }
    if backends.is_empty() {
        return Err(none());
    }
    let index = server.env.below(backends.len() as u64) as usize;
    Ok(backends[index])
}

/// One request over a fresh connection; an upgrade connects both sides.
///
/// # Errors
/// When the other side does not speak HTTP/1.1, or ends without an answer.
pub async fn forward<S>(stream: S, mut request: Request<Body>, host: &str) -> Result<Response<Body>, hyper::Error>
where
    S: crate::apiserver::Stream + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a proxied connection ended with an error");
        }
    });
    let upgrading = request.headers().contains_key(http::header::UPGRADE);
    let client = upgrading.then(|| hyper::upgrade::on(&mut request));
    drop_hop_headers(request.headers_mut(), upgrading);
    *request.version_mut() = http::Version::HTTP_11;
    if let Ok(host) = HeaderValue::from_str(host) {
        request.headers_mut().entry(http::header::HOST).or_insert(host);
    }
    let mut response = sender.send_request(request).await?;
    if response.status() == http::StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = client
    {
        let backend = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let (Ok(client), Ok(backend)) = (client.await, backend.await) {
                let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(backend)).await;
            }
        });
    } else {
        drop_hop_headers(response.headers_mut(), false);
    }
    Ok(response.map(Body::new))
}

fn drop_hop_headers(headers: &mut http::HeaderMap, upgrading: bool) {
    const HOP: [&str; 7] = [
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
    ];
    for name in HOP {
        headers.remove(HeaderName::from_static(name));
    }
    if !upgrading {
        headers.remove(http::header::CONNECTION);
        headers.remove(http::header::UPGRADE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_scheme_and_port() {
        assert_eq!(split_name("web"), Some(("", "web", "")));
        assert_eq!(split_name("web:http"), Some(("", "web", "http")));
        assert_eq!(split_name("http:web:80"), Some(("http", "web", "80")));
        assert_eq!(split_name("ftp:web:80"), None);
    }
}
