//! `exec` probes, and running a command in a container for its output.

use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use super::Outcome;
use crate::node::runtime::{ExecConfig, Runtime};

/// More output than this is cut off (`maxReadLength` of the kubelet).
const MOST_OUTPUT: u64 = 10 << 10;

/// Runs the command; exit code 0 is success.
pub async fn probe(runtime: &dyn Runtime, id: &str, command: &[String], timeout: Duration) -> Outcome {
    match tokio::time::timeout(timeout, capture(runtime, id, command)).await {
        Ok(Ok((0, _))) => Outcome::Success,
        Ok(Ok((_, output))) => Outcome::Failure(output),
        Ok(Err(error)) => Outcome::Unknown(error),
        Err(_) => {
            let command = command.join(" ");
            Outcome::Failure(format!("command timed out: {command:?} timed out after {}s", timeout.as_secs()))
        }
    }
}

/// Runs a command to its end; returns its exit code and what it wrote (both streams).
///
/// # Errors
/// When it could not be run.
pub async fn capture(runtime: &dyn Runtime, id: &str, command: &[String]) -> Result<(i32, String), String> {
    let config = ExecConfig { command: command.to_vec(), tty: false, stdin: false };
    let mut execution = runtime.exec(id, config).await.map_err(|e| e.to_string())?;
    let (stdout, stderr) = (execution.stdout.take(), execution.stderr.take());
    let read = |reader: Option<crate::node::runtime::Reader>| async move {
        let mut bytes = Vec::new();
        if let Some(mut reader) = reader {
            // A broken pipe ends the output like its end does.
            let _ = (&mut reader).take(MOST_OUTPUT).read_to_end(&mut bytes).await;
            let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
        }
        bytes
    };
    let (out, err, exit) = futures_util::join!(read(stdout), read(stderr), execution.control.wait());
    let exit = exit.map_err(|e| e.to_string())?;
    let mut text = String::from_utf8_lossy(&out).into_owned();
    text.push_str(&String::from_utf8_lossy(&err));
    Ok((exit.code, text))
}
