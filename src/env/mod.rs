//! The only source of time, randomness and ids, so that a simulation can replay a seed.

mod timer;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::sync::watch;

/// Letters that Kubernetes uses for generated name suffixes (`k8s.io/apimachinery/pkg/util/rand`):
/// no vowels and no look-alikes, so that no words appear.
const SAFE_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Clock, randomness and ids. Cloning shares the source.
#[derive(Clone)]
pub struct Env {
    inner: Arc<Inner>,
}

struct Inner {
    rng: Mutex<StdRng>,
    /// `None`: the machine's clock; `Some`: a clock that only [`Env::advance`] moves.
    simulated: Option<watch::Sender<Timestamp>>,
}

impl Env {
    /// The real clock and the operating system's entropy.
    pub fn real() -> Self {
        Self { inner: Arc::new(Inner { rng: Mutex::new(rand::make_rng()), simulated: None }) }
    }

    /// A clock that stands at `start` until it is advanced, and randomness from `seed`.
    pub fn simulated(seed: u64, start: Timestamp) -> Self {
        let rng = Mutex::new(StdRng::seed_from_u64(seed));
        Self { inner: Arc::new(Inner { rng, simulated: Some(watch::Sender::new(start)) }) }
    }

    /// The current time.
    pub fn now(&self) -> Timestamp {
        match &self.inner.simulated {
            None => Timestamp::now(),
            Some(time) => *time.borrow(),
        }
    }

    /// Moves a simulated clock, also back; on a real one it does nothing.
    pub fn advance(&self, by: SignedDuration) {
        if let Some(time) = &self.inner.simulated {
            time.send_modify(|time| *time = time.saturating_add(by).expect("a duration saturates"));
        }
    }

    /// Returns when the clock says `at`, or has been set: whoever waits looks at it again. Time that the machine sleeps counts.
    pub async fn sleep_until(&self, at: Timestamp) {
        let Some(time) = &self.inner.simulated else {
            if let Err(error) = timer::sleep_until(at).await {
                tracing::warn!(%error, "a wait does not see when the clock is set");
                let wait = Duration::try_from(at.duration_since(self.now())).unwrap_or_default();
                // A deadline centuries away is none.
                tokio::time::sleep(wait.min(Duration::from_secs(1 << 30))).await;
            }
            return;
        };
        let mut time = time.subscribe();
        if *time.borrow_and_update() < at {
            // It cannot end while this is borrowed.
            let _ = time.changed().await;
        }
    }

    /// A random (version 4) UUID as Kubernetes writes `metadata.uid`.
    pub fn uid(&self) -> String {
        let bytes = self.bytes::<16>();
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }

    /// The random suffix of a generated name: `length` safe letters (`generateName` uses 5).
    pub fn suffix(&self, length: usize) -> String {
        let mut rng = self.rng();
        (0..length).map(|_| SAFE_LETTERS[rng.random_range(0..SAFE_LETTERS.len())] as char).collect()
    }

    /// A number below `bound` (which must not be 0).
    pub fn below(&self, bound: u64) -> u64 {
        self.rng().random_range(0..bound)
    }

    /// `N` random bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.rng().fill(&mut bytes[..]);
        bytes
    }

    fn rng(&self) -> std::sync::MutexGuard<'_, StdRng> {
        self.inner.rng.lock().expect("no panic while randomness is drawn")
    }
}

/// RFC 3339 with whole seconds, as `metav1.Time` is written.
pub fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// RFC 3339 with microseconds, as `metav1.MicroTime` is written.
pub fn rfc3339_micro(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_ids_and_time_stands_until_advanced() {
        let start: Timestamp = "2026-01-02T03:04:05Z".parse().expect("a valid time");
        let (a, b) = (Env::simulated(7, start), Env::simulated(7, start));
        assert_eq!((a.uid(), a.suffix(5)), (b.uid(), b.suffix(5)));
        a.advance(SignedDuration::from_millis(1500));
        assert_eq!(rfc3339(a.now()), "2026-01-02T03:04:06Z");
        assert_eq!(rfc3339_micro(a.now()), "2026-01-02T03:04:06.500000Z");
        assert_eq!(rfc3339(b.now()), "2026-01-02T03:04:05Z");
    }

    #[tokio::test]
    async fn who_waits_for_an_instant_is_woken_by_it_and_when_the_clock_is_set() {
        let env = Env::real();
        for wait in [-5, 0, 20] {
            let at = env.now() + SignedDuration::from_millis(wait);
            env.sleep_until(at).await;
            assert!(env.now() >= at);
        }
        let start: Timestamp = "2026-01-02T03:04:05Z".parse().expect("a valid time");
        for by in [7200, -7200, 1] {
            let env = Env::simulated(7, start);
            env.sleep_until(start).await;
            let at = start + SignedDuration::from_hours(1);
            let mut waits = std::pin::pin!(env.sleep_until(at));
            tokio::select! {
                biased;
                () = &mut waits => panic!("woken by nothing"),
                () = std::future::ready(()) => env.advance(SignedDuration::from_secs(by)),
            }
            waits.await;
        }
    }
}
