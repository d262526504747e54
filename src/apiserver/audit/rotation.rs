//! When an audit log is put aside, under which name, and what is kept of those before it: as the flags
//! `--audit-log-maxsize`, `--audit-log-maxbackup` and `--audit-log-maxage` of kube-apiserver say (lumberjack).

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

use crate::config::AuditRotation;

/// The size that 0 stands for, in MiB.
const DEFAULT_SIZE: u64 = 100;
/// A time as it looks in a name; `0` stands for any digit.
const FORM: &str = "0000-00-00T00-00-00.000";

/// Whether a log of `size` bytes is put aside before `more` are added.
pub(super) fn is_due(rotation: &AuditRotation, size: u64, more: u64) -> bool {
    let megabytes = if rotation.max_size == 0 { DEFAULT_SIZE } else { rotation.max_size };
    size > 0 && size.saturating_add(more) > megabytes.saturating_mul(1 << 20)
}

/// Where a log goes that is put aside: `audit-2026-01-02T03-04-05.678.log` beside `audit.log`.
pub(super) fn aside(path: &Path, now: Timestamp) -> PathBuf {
    let (before, after) = around(path);
    path.with_file_name(format!("{before}{}{after}", stamp(now)))
}

/// Which of the files beside the log are logs that were put aside and are not to be kept.
pub(super) fn surplus(path: &Path, beside: &[String], rotation: &AuditRotation, now: Timestamp) -> Vec<PathBuf> {
    let (before, after) = around(path);
    let time = |name: &str| {
        let time = name.strip_prefix(&*before)?.strip_suffix(&*after)?;
        let fits = |(is, form): (u8, u8)| if form == b'0' { is.is_ascii_digit() } else { is == form };
        (time.len() == FORM.len() && time.bytes().zip(FORM.bytes()).all(fits)).then(|| time.to_owned())
    };
    let mut old: Vec<(String, &String)> = beside.iter().filter_map(|name| Some((time(name)?, name))).collect();
    // The form sorts as the time does. The newest come first.
    old.sort_by(|a, b| b.cmp(a));
    let day = SignedDuration::from_hours(24 * i64::from(rotation.max_age));
    let oldest = (rotation.max_age > 0).then(|| stamp(now.saturating_sub(day).unwrap_or(Timestamp::MIN)));
    let is_surplus = |place: usize, time: &str| {
        (rotation.max_backup > 0 && place >= rotation.max_backup)
            || oldest.as_deref().is_some_and(|oldest| time < oldest)
    };
    let surplus = old.iter().enumerate().filter(|(place, (time, _))| is_surplus(*place, time));
    surplus.map(|(_, (_, name))| path.with_file_name(name)).collect()
}

/// What the names of logs that were put aside begin and end with.
fn around(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let after = match text(path.extension()) {
        extension if extension.is_empty() => extension,
        extension => format!(".{extension}"),
    };
    (format!("{}-", text(path.file_stem())), after)
}

fn stamp(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H-%M-%S%.3f").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotation(max_size: u64, max_backup: usize, max_age: u32) -> AuditRotation {
        AuditRotation { max_size, max_backup, max_age }
    }

    #[test]
    fn a_full_log_is_put_aside_but_never_an_empty_one() {
        let mib = 1 << 20;
        assert!(!is_due(&rotation(1, 0, 0), mib - 10, 10));
        assert!(is_due(&rotation(1, 0, 0), mib - 10, 11));
        assert!(!is_due(&rotation(1, 0, 0), 0, 2 * mib));
        assert!(!is_due(&rotation(0, 0, 0), 99 * mib, 1));
        assert!(is_due(&rotation(0, 0, 0), 100 * mib, 1));
    }

    #[test]
    fn names_are_those_of_lumberjack() {
        let now = "2026-01-02T03:04:05.678Z".parse().expect("a time");
        assert_eq!(aside(Path::new("/l/audit.log"), now), Path::new("/l/audit-2026-01-02T03-04-05.678.log"));
        assert_eq!(aside(Path::new("/l/audit"), now), Path::new("/l/audit-2026-01-02T03-04-05.678"));
    }

    #[test]
    fn the_newest_are_kept() {
        let names = [
            "audit.log",
            "audit-2026-01-01T00-00-00.000.log",
            "audit-2026-01-03T00-00-00.000.log",
            "audit-2026-01-02T00-00-00.000.log",
            "audit-2025-01-02T00-00-00.log",
            "audit-2024-01-02T00-00-00.000.txt",
            "other-2024-01-02T00-00-00.000.log",
        ];
        let names = names.map(str::to_owned);
        let now = "2026-01-03T12:00:00Z".parse().expect("a time");
        let check = |rotation: &AuditRotation, expected: &[&str]| {
            let expected: Vec<PathBuf> =
                expected.iter().map(|day| format!("/l/audit-2026-01-{day}T00-00-00.000.log").into()).collect();
            assert_eq!(surplus(Path::new("/l/audit.log"), &names, rotation, now), expected);
        };
        check(&rotation(1, 0, 0), &[]);
        check(&rotation(1, 2, 0), &["01"]);
        check(&rotation(1, 1, 0), &["02", "01"]);
        check(&rotation(1, 0, 2), &["01"]);
        check(&rotation(1, 0, 1), &["02", "01"]);
        check(&rotation(1, 5, u32::MAX), &[]);
    }
}
