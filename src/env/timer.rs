//! Waits for an instant of the machine's clock, which can be set, and goes on while the machine sleeps.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use jiff::Timestamp;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Returns at this instant, or when the clock is set.
///
/// # Errors
/// When there is no descriptor left.
pub async fn sleep_until(at: Timestamp) -> io::Result<()> {
    let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
    // The beginning of time would switch it off.
    let seconds = at.as_second().max(1);
    let at = Expiration::OneShot(TimeSpec::new(seconds, i64::from(at.subsec_nanosecond().max(0))));
    timer.set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET)?;
    // SAFETY: the descriptor is borrowed for as long as it is watched, and stays the same one until then.
    let watched = unsafe { AsyncFd::<BorrowedFd<'_>>::register_with_interest(timer.as_fd(), Interest::READABLE) }?;
    watched.readable().await.map(drop)
}
