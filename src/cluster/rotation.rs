//! Certificates are renewed while the cluster runs, a month before they end.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;

use super::pki::Pki;
use crate::apiserver::ApiServer;
use crate::config::{Config, Paths};
use crate::env::Env;

/// How long a renewal that failed (a full disk) is not tried again.
const RETRY: Duration = Duration::from_secs(3600);

/// Renews for as long as the cluster runs.
pub async fn run(paths: Paths, config: Config, env: Env, server: Arc<ApiServer>, mut pki: Arc<Pki>) {
    loop {
        let due = match pki.renewal() {
            Ok(due) => due,
            Err(error) => {
                return tracing::warn!(error = %format!("{error:#}"), "certificates are not renewed while this runs");
            }
        };
        if let Err(error) = wait_until(due).await {
            return tracing::warn!(error = %format!("{error:#}"), "certificates are not renewed while this runs");
        }
        match renew(&paths, &config, &env, &server) {
            Ok(renewed) => pki = Arc::new(renewed),
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), "cannot renew the certificates, trying again in an hour");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Renews what is due and serves it. The administrator's new certificate reaches kubeconfig with the next `mini start` or
/// `mini update-context`; the old one is good for another month.
fn renew(paths: &Paths, config: &Config, env: &Env, server: &ApiServer) -> Result<Pki> {
    let pki = Pki::ensure(&paths.pki(), config, env)?;
    server.replace_certificate(pki.server.as_bytes(), pki.server_key.as_bytes()).map_err(anyhow::Error::msg)?;
    tracing::info!("certificates renewed");
    Ok(pki)
}

/// Waits for a time of the wall clock, also when that is set or the machine sleeps meanwhile.
async fn wait_until(due: Timestamp) -> Result<()> {
    let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
    // A time that has passed fires at once; zero would disarm.
    let at = TimeSpec::new(due.as_second().max(1), 0);
    timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
    // SAFETY: the descriptor is owned by what it is registered in, and nobody else closes it.
    let readiness = unsafe { AsyncFd::register(timer.as_fd().try_clone_to_owned()?) }?;
    loop {
        let mut ready = readiness.readable().await?;
        match timer.wait() {
            Ok(()) => return Ok(()),
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_due_is_not_waited_for() {
        let now = Timestamp::now();
        wait_until(now - jiff::SignedDuration::from_hours(1)).await.expect("a timer");
        wait_until(now + jiff::SignedDuration::from_secs(1)).await.expect("a timer");
        assert!(Timestamp::now() >= now);
    }
}
