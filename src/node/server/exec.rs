//! `/exec` and `/attach`.

use std::sync::Arc;

use axum::body::Body;
use http::{Request, Response, StatusCode};
use serde_json::{Value, json};

use super::query::Query;
use super::streams::{self, Process, Wanted};
use super::{Target, plain};
use crate::api::Status;
use crate::node::context::Context;
use crate::node::runtime::ExecConfig;

/// Runs a command in a running container.
pub fn exec(context: Arc<Context>, target: &Target, query: &Query, request: Request<Body>) -> Response<Body> {
    let id = match running(target) {
        Ok(id) => id,
        Err(response) => return *response,
    };
    let wanted = Wanted::from(query);
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        return plain(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr");
    }
    let command = query.all("command");
    streams::upgrade(request, wanted, move |mut session| async move {
        let config = ExecConfig { command, tty: wanted.tty, stdin: wanted.stdin };
        let status = match context.runtime.exec(&id, config).await {
            Ok(execution) => {
                let process = Process {
                    stdin: execution.stdin,
                    stdout: execution.stdout,
                    stderr: execution.stderr,
                    control: execution.control,
                };
                match streams::pump(&mut session, process).await {
                    Ok(0) => success(),
                    Ok(code) => exit_status(code),
                    Err(None) => return,
                    Err(Some(why)) => internal(&why),
                }
            }
            Err(error) => internal(&error.to_string()),
        };
        session.output.finish(&status).await;
    })
}

/// Joins the streams of a container's first process.
pub fn attach(context: Arc<Context>, target: &Target, query: &Query, request: Request<Body>) -> Response<Body> {
    let id = match running(target) {
        Ok(id) => id,
        Err(response) => return *response,
    };
    // Whether there is a terminal is the container's decision.
    let tty = target.spec.tty == Some(true);
    let asked = Wanted::from(query);
    let wanted = Wanted { tty, stderr: asked.stderr && !tty, ..asked };
    let stdin = wanted.stdin && target.spec.stdin == Some(true);
    streams::upgrade(request, wanted, move |mut session| async move {
        let status = match context.runtime.attach(&id, stdin).await {
            Ok(a) => {
                let process = Process { stdin: a.stdin, stdout: a.stdout, stderr: a.stderr, control: a.control };
                match streams::pump(&mut session, process).await {
                    Ok(_) => success(),
                    Err(None) => return,
                    Err(Some(why)) => internal(&why),
                }
            }
            Err(error) => internal(&error.to_string()),
        };
        session.output.finish(&status).await;
    })
}

fn running(target: &Target) -> Result<String, Box<Response<Body>>> {
    let container = target.pod.container(&target.spec.name);
    if container.alive() {
        return Ok(container.id.trim_start_matches(crate::node::adopt::SCHEME).to_owned());
    }
    let text = format!("container not found (\"{}\")", target.spec.name);
    Err(Box::new(plain(StatusCode::NOT_FOUND, &text)))
}

fn success() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

/// The `Status` of a command that ended with another exit code than 0 (`remotecommand.NonZeroExitCodeReason`).
fn exit_status(code: i32) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn internal(why: &str) -> Value {
    let mut status = Status::internal(format!("error executing command in container: {why}")).to_object();
    status["metadata"] = json!({});
    status
}
