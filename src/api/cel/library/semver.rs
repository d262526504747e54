//! Semantic versions.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Answer, tenth};
use crate::api::cel::eval::{Error, Machine};
use crate::api::cel::value::Value;

/// A version (semver.org 2.0.0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    numbers: [u64; 3],
    pre: Vec<String>,
}

impl Version {
    /// Reads `1.2.3-rc.1+build`; `normalize` also takes `v1.2` and leading zeros.
    pub fn parse(text: &str, normalize: bool) -> Option<Self> {
        let text = if normalize { text.strip_prefix('v').unwrap_or(text) } else { text };
        let (text, build) = text.split_once('+').map_or((text, None), |(version, build)| (version, Some(build)));
        let (core, pre) = text.split_once('-').map_or((text, None), |(core, pre)| (core, Some(pre)));
        let identifier = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if build.is_some_and(|build| !build.split('.').all(identifier)) {
            return None;
        }
        let parts: Vec<&str> = core.split('.').collect();
        if parts.len() != 3 && !(normalize && (1..3).contains(&parts.len())) {
            return None;
        }
        let mut numbers = [0; 3];
        for (slot, part) in numbers.iter_mut().zip(&parts) {
            let plain = normalize || *part == "0" || !part.starts_with('0');
            *slot = part.parse().ok().filter(|_| plain && part.bytes().all(|b| b.is_ascii_digit()))?;
        }
        let pre: Vec<String> = pre.map(|pre| pre.split('.').map(str::to_owned).collect()).unwrap_or_default();
        pre.iter().all(|part| identifier(part)).then_some(Self { numbers, pre })
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let identifiers = |a: &String, b: &String| match (a.parse::<u64>(), b.parse::<u64>()) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            (Ok(_), Err(_)) => Ordering::Less,
            (Err(_), Ok(_)) => Ordering::Greater,
            _ => a.cmp(b),
        };
        let pre = || match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            // A release comes after its candidates.
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            _ => {
                let first = self.pre.iter().zip(&other.pre).map(|(a, b)| identifiers(a, b)).find(|order| order.is_ne());
                first.unwrap_or(self.pre.len().cmp(&other.pre.len()))
            }
        };
        self.numbers.cmp(&other.numbers).then_with(pre)
    }
}

pub(super) fn call<'a>(machine: &mut Machine<'a>, function: &str, method: bool, args: &[Value<'a>]) -> Answer<'a> {
    if let ("semver" | "isSemver", false, [Value::String(text), rest @ ..]) = (function, method, args) {
        let normalize = match rest {
            [] => false,
            [Value::Bool(normalize)] => *normalize,
            _ => return None,
        };
        if let Err(error) = machine.charge(tenth(text.len() as u64)) {
            return Some(Err(error));
        }
        return Some(match (function, Version::parse(text, normalize)) {
            ("isSemver", version) => Ok(Value::Bool(version.is_some())),
            (_, Some(version)) => Ok(Value::Semver(Arc::new(version))),
            (_, None) => Err(Error::new(format!("invalid semantic version {:?}", &**text))),
        });
    }
    let [Value::Semver(version), rest @ ..] = args else { return None };
    let number = |index: usize| Value::Int(i64::try_from(version.numbers[index]).unwrap_or(i64::MAX));
    Some(Ok(match (function, rest) {
        ("major", []) => number(0),
        ("minor", []) => number(1),
        ("patch", []) => number(2),
        ("compareTo", [Value::Semver(other)]) => Value::Int(version.cmp(other) as i64),
        ("isGreaterThan", [Value::Semver(other)]) => Value::Bool(version > other),
        ("isLessThan", [Value::Semver(other)]) => Value::Bool(version < other),
        _ => return None,
    }))
}
