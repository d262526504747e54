//! The audit log: who did what, as far as the policy wants to know, as `audit.k8s.io/v1` Events in a file.
//!
//! `policy` decides, `event` says it, `log` writes the lines, `rotation` says when a log is full.

mod annotations;
mod event;
mod log;
mod policy;
mod rotation;

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;

use super::http::read_body;
use super::http::request::RequestInfo;
use super::{ApiServer, User};
use crate::api::StatusResult;
use crate::config::AuditRotation;
use crate::env::Env;
use event::Record;
use policy::{Decision, Level, Policy, Stage};

pub(crate) use annotations::Annotations;
pub use policy::read_policy;

/// What the audit log is kept by.
#[derive(Clone, Debug)]
pub struct Options {
    /// The policy, as [`read_policy`] returns it.
    pub policy: serde_json::Value,
    /// The file that lines are added to.
    pub log_path: PathBuf,
    /// When it is put aside, and what is kept of those before it.
    pub rotation: AuditRotation,
}

/// The audit log of a server.
pub(crate) struct Audit {
    policy: Policy,
    log: log::Log,
}

/// Why there can be no audit log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The policy is invalid.
    #[error("the audit policy: {0}")]
    Policy(String),
    /// The file cannot be opened.
    #[error("the audit log {path}: {source}")]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Audit {
    /// Opens the log.
    ///
    /// # Errors
    /// When the policy is invalid or the file cannot be written.
    pub fn new(options: &Options, env: &Env) -> Result<Self, Error> {
        let policy = Policy::new(&options.policy).map_err(Error::Policy)?;
        let path = options.log_path.clone();
        let log = log::Log::open(&path, options.rotation.clone(), env.clone())
            .map_err(|source| Error::Log { path, source })?;
        Ok(Self { policy, log })
    }

    /// Waits until everything is written.
    pub async fn flush(&self) {
        self.log.flush().await;
    }
}

impl ApiServer {
    /// Waits until everything so far is in the audit log.
    pub async fn flush_audit(&self) {
        if let Some(audit) = &self.audit {
            audit.flush().await;
        }
    }
}

/// The record of one request.
pub(crate) struct Audited {
    server: Arc<ApiServer>,
    decision: Decision,
    record: Record,
}

/// Who asks, and as whom.
pub(crate) struct Asker<'a> {
    /// Who proved who they are.
    pub user: &'a User,
    /// As whom the request is made, if it is another.
    pub impersonated: Option<&'a User>,
}

/// Begins the record of a request, if the policy wants one. Its body is read when it is to be told.
///
/// # Errors
/// 413 when the body is too large.
pub(crate) async fn begin(
    server: &Arc<ApiServer>,
    asker: Asker<'_>,
    info: &RequestInfo,
    request: Request<Body>,
) -> StatusResult<(Request<Body>, Option<Audited>)> {
    let Some(audit) = &server.audit else { return Ok((request, None)) };
    let decision = audit.policy.decide(asker.user, info);
    if decision.level == Level::None {
        return Ok((request, None));
    }
    let mut record = Record::new(&server.env, decision.level, &asker, info, &request);
    let request = match decision.level >= Level::Request && takes_object(info) {
        true => {
            let (parts, body) = request.into_parts();
            let bytes = read_body(body).await?;
            record.request_object(&parts.headers, &bytes, decision.omit_managed_fields);
            Request::from_parts(parts, Body::from(bytes))
        }
        false => request,
    };
    let audited = Audited { server: Arc::clone(server), decision, record };
    audited.tell(Stage::RequestReceived);
    Ok((request, Some(audited)))
}

/// Whether the body of such a request is an object, and not what is sent through it.
fn takes_object(info: &RequestInfo) -> bool {
    let writes = ["create", "update", "patch", "delete", "deletecollection"].contains(&info.verb.as_str());
    info.is_resource && writes && !super::metrics::is_long_running(info)
}

impl Audited {
    fn tell(&self, stage: Stage) {
        if let Some(audit) = self.server.audit.as_ref().filter(|_| !self.decision.omits(stage)) {
            audit.log.write(self.record.at(stage, &self.server.env));
        }
    }

    /// Tells of the answer: at once when it is ready as a whole, else when it begins and when it ends.
    pub async fn finish(mut self, response: Response<Body>, long: bool, notes: &Annotations) -> Response<Body> {
        self.record.annotated(&notes.all());
        self.record.answered(response.status().as_u16());
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            self.tell(Stage::ResponseStarted);
            self.tell(Stage::ResponseComplete);
            return response;
        }
        let is_whole = response.body().size_hint().exact().is_some();
        if long && !is_whole {
            self.tell(Stage::ResponseStarted);
            let (parts, body) = response.into_parts();
            let mut ending = Ending(Some(self));
            let body = body.into_data_stream().map(move |frame| {
                let _ = &mut ending;
                frame
            });
            return Response::from_parts(parts, Body::from_stream(body));
        }
        let failed = response.status().is_client_error() || response.status().is_server_error();
        let response = match is_whole && (failed || self.decision.level >= Level::RequestResponse) {
            true => {
                let (parts, body) = response.into_parts();
                let bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_else(|_| Bytes::new());
                let tell_object = self.decision.level >= Level::RequestResponse;
                self.record.response_object(&parts.headers, &bytes, tell_object, self.decision.omit_managed_fields);
                Response::from_parts(parts, Body::from(bytes))
            }
            false => response,
        };
        self.tell(Stage::ResponseComplete);
        response
    }
}

/// Tells of the end of an answer that lasted.
struct Ending(Option<Audited>);

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(audited) = self.0.take() {
            audited.tell(Stage::ResponseComplete);
        }
    }
}
