//! `metav1.Time` and `metav1.MicroTime` in their canonical text.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// RFC 3339 in UTC, to the second, or with six digits of a fraction.
///
/// # Errors
/// What Go's `time.Parse` says.
pub(super) fn canonical(text: &str, micro: bool) -> Result<String, String> {
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let time =
        parse(text).ok_or_else(|| format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""))?;
    Ok(format(time, micro))
}

/// A time from RFC 3339; Go takes upper case `T` and `Z` only.
pub fn parse(text: &str) -> Option<Timestamp> {
    (text.len() >= 20 && text.as_bytes()[10] == b'T').then(|| text.parse().ok()).flatten()
}

/// The text of a time.
pub fn format(time: Timestamp, micro: bool) -> String {
    let zoned = time.to_zoned(TimeZone::UTC);
    zoned.strftime(if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(canonical("2020-01-02T03:04:05+02:00", false).as_deref(), Ok("2020-01-02T01:04:05Z"));
        assert_eq!(canonical("2020-01-02T03:04:05.9Z", false).as_deref(), Ok("2020-01-02T03:04:05Z"));
        assert_eq!(canonical("2020-01-02T03:04:05Z", true).as_deref(), Ok("2020-01-02T03:04:05.000000Z"));
        assert!(canonical("yesterday", false).unwrap_err().starts_with("parsing time \"yesterday\" as"));
    }
}
