//! How long a node waits for the next pod after pods of a set have failed there (`flowcontrol.Backoff`).

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::DaemonSet;

use crate::client::typed::Meta;

/// The first delay.
const FIRST: SignedDuration = SignedDuration::from_secs(1);
/// The longest delay; after twice this time without a failure all is forgotten.
const LONGEST: SignedDuration = SignedDuration::from_secs(15 * 60);

/// Failures by set, generation and node.
#[derive(Default)]
pub struct Backoff {
    places: HashMap<String, (Timestamp, SignedDuration)>,
}

/// The place of a node in a [`Backoff`]: a changed set begins anew.
pub fn place(set: &DaemonSet, node: &str) -> String {
    let generation = set.status.as_ref().and_then(|status| status.observed_generation).unwrap_or_default();
    format!("{}/{generation}/{node}", set.uid())
}

fn is_forgotten(last: Timestamp, now: Timestamp) -> bool {
    now.duration_since(last) > LONGEST * 2
}

impl Backoff {
    /// Until when a failed pod stays; `None`: it may be replaced now.
    pub fn until(&self, place: &str, now: Timestamp) -> Option<Timestamp> {
        let (last, delay) = self.places.get(place).filter(|(last, _)| !is_forgotten(*last, now))?;
        last.saturating_add(*delay).ok().filter(|until| *until > now)
    }
    /// A failed pod is being replaced.
    pub fn failed(&mut self, place: &str, now: Timestamp) {
        self.places.retain(|_, (last, _)| !is_forgotten(*last, now));
        let delay = self.places.get(place).map_or(FIRST, |(_, delay)| (*delay * 2).min(LONGEST));
        self.places.insert(place.to_owned(), (now, delay));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_until_they_are_forgotten() {
        let mut backoff = Backoff::default();
        let mut now: Timestamp = "2026-01-02T03:04:05Z".parse().expect("a time");
        let mut delays = Vec::new();
        for _ in 0..12 {
            assert_eq!(backoff.until("here", now), None);
            backoff.failed("here", now);
            let until = backoff.until("here", now).expect("it just failed");
            delays.push(until.duration_since(now).as_secs());
            now = until;
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]);
        assert_eq!(backoff.until("there", now), None);
        now += SignedDuration::from_mins(31);
        backoff.failed("here", now);
        assert_eq!(backoff.until("here", now), Some(now + FIRST));
    }
}
