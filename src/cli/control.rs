//! The daemon's control socket, from the command line's side: HTTP over a unix socket in the profile's run directory.

use std::io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound};
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use axum::body::Body;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::config::Paths;

/// The socket's name in the run directory.
pub const SOCKET: &str = "control.sock";

/// Sends one request to the daemon. `Ok(None)`: no daemon runs, or it ended before it answered: a process that is
/// being killed still has a socket that takes connections, and breaks them when it is gone.
///
/// # Errors
/// When the socket cannot be reached for another reason, or the request's own body fails.
pub async fn send(paths: &Paths, method: Method, path: &str, body: Body) -> Result<Option<Response<Incoming>>> {
    let Ok(run) = std::fs::File::open(paths.run()) else { return Ok(None) };
    // A socket's path may have 107 bytes at most, a home directory more: go through the open directory.
    let socket = format!("/proc/self/fd/{}/{SOCKET}", run.as_raw_fd());
    let stream = match tokio::net::UnixStream::connect(Path::new(&socket)).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset) => return Ok(None),
        Err(error) => return Err(error).context("connecting to the cluster's control socket"),
    };
    let Some((mut sender, connection)) = answered(hyper::client::conn::http1::handshake(TokioIo::new(stream)).await)?
    else {
        return Ok(None);
    };
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("Host", "mini").body(body)?;
    answered(sender.send_request(request).await)
}

/// The answer, or `None` when the other side went away without one.
fn answered<T>(result: hyper::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(response) => Ok(Some(response)),
        Err(error) if error.is_user() => Err(error).context("sending a request to the cluster's process"),
        Err(_) => Ok(None),
    }
}

/// [`send`], where a daemon must run and must not refuse. Returns the whole answer.
///
/// # Errors
/// When no daemon runs, or with the daemon's own message.
pub async fn call(paths: &Paths, profile: &str, method: Method, path: &str, body: Body) -> Result<Vec<u8>> {
    let Some(response) = send(paths, method, path, body).await? else {
        bail!("the cluster {profile:?} is not running; 'mini start -p {profile}' starts it");
    };
    let status = response.status();
    let bytes = response.into_body().collect().await?.to_bytes().to_vec();
    if !status.is_success() {
        bail!("{}", String::from_utf8_lossy(&bytes).trim_end());
    }
    Ok(bytes)
}

/// [`call`] with a JSON answer.
///
/// # Errors
/// As [`call`].
pub async fn json(paths: &Paths, profile: &str, method: Method, path: &str) -> Result<Value> {
    let bytes = call(paths, profile, method, path, Body::empty()).await?;
    serde_json::from_slice(&bytes).context("the cluster's answer is not JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daemon killed between `accept` and its answer, and one whose listen queue still takes connections.
    #[tokio::test]
    async fn a_daemon_that_ends_before_it_answers_does_not_run() {
        let home = tempfile::tempdir().expect("a directory");
        let paths = Paths::new(home.path(), "mini");
        std::fs::create_dir_all(paths.run()).expect("made");
        let listener = tokio::net::UnixListener::bind(paths.run().join(SOCKET)).expect("bound");
        let ask = || send(&paths, Method::GET, "/status", Body::empty());
        let (answer, ()) = tokio::join!(ask(), async {
            drop(listener.accept().await.expect("accepted"));
        });
        assert!(answer.expect("no error").is_none());
        // Never accepted: the connection waits in the queue and is reset when the listener goes.
        let (answer, ()) = tokio::join!(ask(), async {
            tokio::task::yield_now().await;
            drop(listener);
        });
        assert!(answer.expect("no error").is_none());
        assert!(ask().await.expect("no error").is_none());
    }
}
