//! Numbers from many measurements, and how they are written.

use std::time::Duration;

/// Durations of one kind of thing.
#[derive(Default)]
pub(super) struct Samples(Vec<Duration>);

impl Samples {
    pub fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The smallest sample that at least `percent` of all do not exceed (nearest rank); zero when there is none.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }

    /// Median and tail.
    pub fn text(&self) -> String {
        let [p50, p99] = [50, 99].map(|percent| duration(self.percentile(percent)));
        format!("p50 {p50}, p99 {p99}")
    }
}

/// `0.42 ms`, `35 ms` or `1.24 s`.
pub(super) fn duration(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1e3;
    match millis {
        _ if millis >= 1000.0 => format!("{:.2} s", millis / 1e3),
        _ if millis >= 10.0 => format!("{millis:.0} ms"),
        _ => format!("{millis:.2} ms"),
    }
}

/// `12,345/s`.
pub(super) fn rate(count: usize, elapsed: Duration) -> String {
    let rate = (count as f64 / elapsed.as_secs_f64().max(1e-9)).round() as u64;
    let digits = rate.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text + "/s"
}

/// `12.3 MB` (decimal, as disks and the promises are counted).
pub(super) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile(50), Duration::ZERO);
        (1..=200).rev().for_each(|n| samples.push(Duration::from_millis(n)));
        assert_eq!([1, 50, 99, 100].map(|p| samples.percentile(p).as_millis()), [2, 100, 198, 200]);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(rate(1_234_567, Duration::from_secs(1)), "1,234,567/s");
        assert_eq!(rate(250, Duration::from_millis(500)), "500/s");
        assert_eq!(duration(Duration::from_micros(420)), "0.42 ms");
        assert_eq!((bytes(1_500), bytes(24_960_000)), ("1.5 kB".into(), "25.0 MB".into()));
    }
}
