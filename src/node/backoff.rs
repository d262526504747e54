//! Exponential backoff as the kubelet counts it (`client-go/util/flowcontrol/backoff.go`): pure, no timers.

use jiff::{SignedDuration, Timestamp};

/// The first wait after a failure.
pub const INITIAL: SignedDuration = SignedDuration::from_secs(10);
/// The longest wait (`MaxContainerBackOff`).
pub const MAX: SignedDuration = SignedDuration::from_secs(300);

/// The backoff of one container's restarts or of one image's pulls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    delay: SignedDuration,
    updated: Option<Timestamp>,
}

/// Whether a wait that ends `at` is over, also when the clock was set back meanwhile: none is longer than twice [`MAX`].
pub fn is_over(at: Timestamp, now: Timestamp) -> bool {
    now >= at || quiet(now, at)
}

impl Backoff {
    /// The current wait; zero before the first attempt was counted.
    pub fn delay(&self) -> SignedDuration {
        self.delay
    }

    /// Counts an attempt at `now`: the wait after the next failure is twice as long. Twice [`MAX`] of quiet before it
    /// starts over.
    pub fn next(&mut self, now: Timestamp) {
        self.delay = match self.updated {
            Some(updated) if !quiet(updated, now) => (self.delay * 2).min(MAX),
            _ => INITIAL,
        };
        self.updated = Some(now);
    }

    /// When another attempt is allowed after something failed at `failed`.
    pub fn ready_at(&self, failed: Timestamp) -> Timestamp {
        match self.updated {
            Some(updated) if !quiet(updated, failed) => failed.saturating_add(self.delay).unwrap_or(Timestamp::MAX),
            _ => failed,
        }
    }
}

fn quiet(since: Timestamp, now: Timestamp) -> bool {
    now.duration_since(since) > MAX * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).expect("in range")
    }

    #[test]
    fn doubles_from_ten_seconds_to_five_minutes_and_forgets_after_ten() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.ready_at(at(0)), at(0), "the first restart is immediate");
        let mut waits = Vec::new();
        for _ in 0..7 {
            backoff.next(at(0));
            waits.push(backoff.delay().as_secs());
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.ready_at(at(5)), at(305));
        assert_eq!(backoff.ready_at(at(700)), at(700), "it ran for more than ten minutes");
        backoff.next(at(700));
        assert_eq!(backoff.delay().as_secs(), 10);
    }

    #[test]
    fn a_clock_that_was_set_back_holds_nobody_for_hours() {
        assert!(is_over(at(10), at(10)) && !is_over(at(10), at(9)));
        assert!(!is_over(at(600), at(0)) && is_over(at(3600), at(0)));
    }
}
