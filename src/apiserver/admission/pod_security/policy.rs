//! Levels, versions and the policy of a namespace, as its labels say it (`k8s.io/pod-security-admission/api`).

use std::fmt;

use serde_json::Value;

use crate::api::status::FieldError;

/// What the labels of a namespace and the keys of audit annotations begin with.
pub(crate) const PREFIX: &str = "pod-security.kubernetes.io/";

/// A Pod Security Standard, the least strict first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Everything goes.
    Privileged,
    /// Known privilege escalations do not.
    Baseline,
    /// The hardening that is good practice today is required.
    Restricted,
}

impl Level {
    /// Reads `privileged`, `baseline` or `restricted`.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "privileged" => Ok(Self::Privileged),
            "baseline" => Ok(Self::Baseline),
            "restricted" => Ok(Self::Restricted),
            _ => Err("must be one of privileged, baseline, restricted"),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        })
    }
}

/// Of which Kubernetes release the standard is taken; the latest is newer than all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// `v1.<minor>`.
    Minor(u64),
    /// `latest`.
    Latest,
}

impl Version {
    /// Reads `latest` or `v1.x`, without leading zeros.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const WRONG: &str = "must be \"latest\" or \"v1.x\"";
        if text == "latest" {
            return Ok(Self::Latest);
        }
        let minor = text.strip_prefix("v1.").ok_or(WRONG)?;
        let is_plain = minor.bytes().all(|b| b.is_ascii_digit()) && (minor == "0" || !minor.starts_with('0'));
        minor.parse().ok().filter(|_| is_plain).map(Self::Minor).ok_or(WRONG)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Minor(minor) => write!(f, "v1.{minor}"),
            Self::Latest => f.write_str("latest"),
        }
    }
}

/// A standard of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LevelVersion {
    /// The standard.
    pub level: Level,
    /// The release.
    pub version: Version,
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.level, self.version)
    }
}

/// What a namespace enforces, records and warns about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Pods that break it are refused.
    pub enforce: LevelVersion,
    /// What breaks it is recorded.
    pub audit: LevelVersion,
    /// Who breaks it is told.
    pub warn: LevelVersion,
}

impl Policy {
    /// Everything goes, silently.
    pub const PRIVILEGED: Self = {
        let all = LevelVersion { level: Level::Privileged, version: Version::Latest };
        Self { enforce: all, audit: all, warn: all }
    };

    /// The three modes with their names.
    pub fn modes(&self) -> [(&'static str, LevelVersion); 3] {
        [("enforce", self.enforce), ("audit", self.audit), ("warn", self.warn)]
    }

    /// Whether every mode is privileged.
    pub fn is_fully_privileged(&self) -> bool {
        self.modes().iter().all(|(_, mode)| mode.level == Level::Privileged)
    }

    /// Whether two policies mean the same: versions of privileged modes say nothing.
    pub fn is_equivalent(&self, other: &Self) -> bool {
        self.modes()
            .iter()
            .zip(other.modes())
            .all(|((_, a), (_, b))| a.level == b.level && (a.level == Level::Privileged || a.version == b.version))
    }

    /// The policy that the labels of a namespace say, and what is wrong with them. A level that cannot be read enforces `restricted`,
    /// but neither audits nor warns; a version that cannot be read is the latest.
    pub fn of(labels: &Value, defaults: Self) -> (Self, Vec<FieldError>) {
        let mut policy = defaults;
        let mut errors = Vec::new();
        let modes = [
            ("enforce", Level::Restricted, &mut policy.enforce),
            ("audit", Level::Privileged, &mut policy.audit),
            ("warn", Level::Privileged, &mut policy.warn),
        ];
        for (mode, fallback, target) in modes {
            let mut refuse = |label: &str, value: &str, why: &str| {
                errors.push(FieldError::invalid(format!("metadata.labels[{label}]"), &value.into(), why));
            };
            let label = format!("{PREFIX}{mode}");
            if let Some(text) = labels[&label].as_str() {
                target.level = Level::parse(text).unwrap_or_else(|why| {
                    refuse(&label, text, why);
                    fallback
                });
            }
            let label = format!("{PREFIX}{mode}-version");
            if let Some(text) = labels[&label].as_str() {
                target.version = Version::parse(text).unwrap_or_else(|why| {
                    refuse(&label, text, why);
                    Version::Latest
                });
            }
        }
        (policy, errors)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_are_latest_or_of_the_first_major() {
        assert_eq!(Version::parse("latest"), Ok(Version::Latest));
        assert_eq!(Version::parse("v1.0"), Ok(Version::Minor(0)));
        assert_eq!(Version::parse("v1.35"), Ok(Version::Minor(35)));
        for wrong in ["", "v1", "v1.", "1.2", "v2.0", "v1.01", "v1.+1", "v1.2.3", "Latest", "v1.99999999999999999999"] {
            assert_eq!(Version::parse(wrong), Err("must be \"latest\" or \"v1.x\""), "{wrong}");
        }
        assert!(Version::Latest > Version::Minor(999));
    }

    #[test]
    fn labels_override_the_defaults_one_by_one() {
        let labels = json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn-version": "v1.22", "a": "b"});
        let (policy, errors) = Policy::of(&labels, Policy::PRIVILEGED);
        assert!(errors.is_empty());
        assert_eq!(policy.enforce.to_string(), "baseline:latest");
        assert_eq!(policy.audit.to_string(), "privileged:latest");
        assert_eq!(policy.warn.to_string(), "privileged:v1.22");
        assert_eq!(Policy::of(&Value::Null, policy), (policy, Vec::new()));
        assert!(!policy.is_equivalent(&Policy::PRIVILEGED));
        let (warns, _) = Policy::of(&json!({"pod-security.kubernetes.io/warn-version": "v1.22"}), Policy::PRIVILEGED);
        assert!(warns.is_equivalent(&Policy::PRIVILEGED) && warns != Policy::PRIVILEGED);
    }

    #[test]
    fn wrong_labels_enforce_the_strictest_and_say_why() {
        let labels = json!({
            "pod-security.kubernetes.io/enforce": "strict", "pod-security.kubernetes.io/enforce-version": "1.20",
            "pod-security.kubernetes.io/warn": "Baseline",
        });
        let (policy, errors) = Policy::of(&labels, Policy::PRIVILEGED);
        assert_eq!(policy.enforce.to_string(), "restricted:latest");
        assert_eq!(policy.warn.level, Level::Privileged);
        let texts: Vec<String> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        assert_eq!(
            texts,
            [
                "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted",
                "metadata.labels[pod-security.kubernetes.io/enforce-version]: Invalid value: \"1.20\": must be \"latest\" or \"v1.x\"",
                "metadata.labels[pod-security.kubernetes.io/warn]: Invalid value: \"Baseline\": must be one of privileged, baseline, restricted",
            ]
        );
    }
}
