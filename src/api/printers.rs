//! What the columns of several kinds share: names, ages, durations (`k8s.io/kubernetes/pkg/printers/internalversion`).

use std::borrow::Cow;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::kind::Column;
use super::meta;
use super::selector::LabelSelector;

/// The description of a name column.
pub const NAME: &str = "Name must be unique within a namespace. Is required when creating resources, although some \
    resources may allow a client to request the generation of an appropriate name automatically. Name is primarily \
    intended for creation idempotence and configuration definition. Cannot be updated. More info: \
    https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
/// The description of an age column.
pub const CREATED: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. \
    It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. \
    It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// The column `Name`.
pub fn name_column() -> Column {
    Column { format: Cow::Borrowed("name"), ..column("Name", "string", NAME) }
}
/// The column `Age`.
pub fn age_column() -> Column {
    column("Age", "string", CREATED)
}
/// A column that is always shown.
pub fn column(name: &'static str, kind: &'static str, description: &'static str) -> Column {
    Column {
        name: Cow::Borrowed(name),
        kind: Cow::Borrowed(kind),
        format: Cow::Borrowed(""),
        description: Cow::Borrowed(description),
        priority: 0,
    }
}
/// A column of `-o wide`.
pub fn wide_column(name: &'static str, kind: &'static str, description: &'static str) -> Column {
    Column { priority: 1, ..column(name, kind, description) }
}

/// The text, or `<none>` when it is empty.
pub fn or_none(text: &str) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text.to_owned() }
}

/// Texts with commas between them, or `<none>`.
pub fn joined<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    or_none(&texts.collect::<Vec<_>>().join(","))
}

/// A label selector object as its string, `<none>` when it selects everything or nothing.
pub fn selector(selector: &Value) -> String {
    match LabelSelector::from_label_selector(selector) {
        Ok(selector) => or_none(&selector.to_string()),
        Err(_) => "<error>".to_owned(),
    }
}

/// The cell of the name column.
pub fn name(object: &Value) -> Value {
    meta::name(object).into()
}
/// The cell of the age column.
pub fn age(object: &Value, now: Timestamp) -> Value {
    since(&object["metadata"]["creationTimestamp"], now).into()
}

/// The time that has passed since a timestamp of an object, or `<unknown>`.
pub fn since(time: &Value, now: Timestamp) -> String {
    match time.as_str().and_then(|text| text.parse::<Timestamp>().ok()) {
        Some(time) => human_duration(now.duration_since(time)),
        None => "<unknown>".to_owned(),
    }
}

/// A duration as kubectl shows it (`duration.HumanDuration`): `5s`, `3m12s`, `4h`, `2d3h`, `18d`, `2y`.
pub fn human_duration(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let with = |large: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{small_unit}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => with(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => with(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => with(hours / 24, "d", hours % 24, "h"),
        _ if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        _ if hours < 24 * 365 * 8 => with(hours / 24 / 365, "y", (hours / 24) % 365, "d"),
        _ => format!("{}y", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_kubernetes() {
        // duration_test.go of apimachinery.
        for (seconds, text) in [
            (0, "0s"),
            (-3, "<invalid>"),
            (-1, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (600, "10m"),
            (10799, "179m"),
            (10800, "3h"),
            (12600, "3h30m"),
            (28800, "8h"),
            (172799, "47h"),
            (172800, "2d"),
            (176400, "2d1h"),
            (691200, "8d"),
            (63072000, "2y"),
            (63072000 + 86400, "2y1d"),
            (252288000, "8y"),
        ] {
            assert_eq!(human_duration(SignedDuration::from_secs(seconds)), text, "{seconds}");
        }
    }
}
