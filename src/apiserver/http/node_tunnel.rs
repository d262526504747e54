//! `/node/tunnel` and `/node/link`: a node of another process opens a connection by which the API server then reaches its
//! kubelet API, and one that carries packets of pods. Both work through address translation and need no listener at the node.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};

use super::{Asked, responses};
use crate::api::Status;
use crate::apiserver::{ApiServer, authn};

/// What a node opens a connection for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Its kubelet API: HTTP/2 with the node as the server.
    Kubelet,
    /// Packets between the pods of two machines.
    Packets,
}

impl Purpose {
    /// The one that is asked for by a path.
    pub(super) fn of(path: &str) -> Option<Self> {
        [Self::Kubelet, Self::Packets].into_iter().find(|purpose| purpose.path() == path)
    }

    /// Where nodes ask for it.
    pub fn path(self) -> &'static str {
        match self {
            Self::Kubelet => "/node/tunnel",
            Self::Packets => "/node/link",
        }
    }

    /// What the connection is upgraded to.
    pub fn protocol(self) -> &'static str {
        match self {
            Self::Kubelet => "mini-node-tunnel",
            Self::Packets => "mini-node-link",
        }
    }
}

/// Answers a request that has been authorised.
pub(super) fn answer(server: &Arc<ApiServer>, purpose: Purpose, mut asked: Asked) -> Response<Body> {
    let Some(node) = authn::node_name(&asked.user).map(str::to_owned) else {
        let why = format!("{:?} is not a node", asked.user.name);
        return responses::status(asked.format, &Status::new(403, "Forbidden", why));
    };
    let wanted = asked.request.headers().get(header::UPGRADE);
    if wanted.is_none_or(|protocol| protocol != purpose.protocol()) {
        let why = format!("an upgrade to {} is required", purpose.protocol());
        return responses::status(asked.format, &Status::bad_request(why));
    }
    let connection = hyper::upgrade::on(&mut asked.request);
    let nodes = Arc::clone(&server.options.nodes);
    tokio::spawn(async move {
        match connection.await {
            Ok(connection) => nodes.accept(&node, purpose, connection).await,
            Err(error) => tracing::debug!(%error, node, "a node's connection was not upgraded"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(purpose.protocol()));
    response
}
