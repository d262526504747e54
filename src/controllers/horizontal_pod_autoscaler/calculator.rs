//! How many replicas measurements ask for (`replica_calculator.go`). Pods that are not ready count as idle when there
//! would be more replicas; pods without measurements count against any change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::usage::{Sample, Samples};
use crate::api::quantity::Quantity;
use crate::client::typed::Meta;
use crate::controllers::pod_status::phase;

/// A pod that started within this time is measured only while it is ready.
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_mins(5);
/// A pod whose last change of readiness came so soon after its start has never been ready.
const INITIAL_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// How far usage may be from its target before anything changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tolerance {
    pub up: f64,
    pub down: f64,
}

impl Tolerance {
    fn holds(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// The pods behind a target, and how many replicas it has.
pub(super) struct Target<'a> {
    pub replicas: i32,
    pub pods: &'a [Arc<Pod>],
    pub tolerance: Tolerance,
    pub now: Timestamp,
}

/// What is asked for, and what was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Answer {
    pub replicas: i32,
    /// The average over the pods, in thousandths.
    pub average: i64,
    /// The same as a percentage of the requests.
    pub percent: Option<i32>,
}

struct Usage {
    ratio: f64,
    average: i64,
    percent: Option<i32>,
}

impl Target<'_> {
    /// For a percentage of what the containers (or one of each pod) request (`GetResourceReplicas`).
    ///
    /// # Errors
    /// A text when it cannot be told.
    pub fn by_utilization(
        &self,
        samples: Samples,
        percent: i32,
        resource: &str,
        container: Option<&str>,
    ) -> Result<Answer, String> {
        let requests = self.pods.iter().map(|pod| Ok((pod.name(), request(pod, resource, container)?)));
        let requests: Result<BTreeMap<&str, i64>, String> = requests.collect();
        let usage = |samples: &Samples| {
            let requests = requests.as_ref().map_err(Clone::clone)?;
            let known = samples.iter().filter_map(|(pod, sample)| Some((sample.value, *requests.get(pod.as_str())?)));
            let (mut used, mut wanted, mut count) = (0_i64, 0_i64, 0_i64);
            for (value, request) in known {
                (used, wanted, count) = (used.saturating_add(value), wanted.saturating_add(request), count + 1);
            }
            if wanted == 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let now = i32::try_from(used.saturating_mul(100) / wanted).unwrap_or(i32::MAX);
            Ok(Usage { ratio: f64::from(now) / f64::from(percent), average: used / count, percent: Some(now) })
        };
        let full = i64::from(percent.max(100));
        let when_missing = |pod: &Pod| {
            let requests = requests.as_ref().ok();
            let request = requests.and_then(|requests| requests.get(pod.name()).copied()).unwrap_or_default();
            request.saturating_mul(full) / 100
        };
        self.replicas(samples, resource, usage, when_missing)
    }

    /// For an average value in thousandths (`GetRawResourceReplicas`).
    ///
    /// # Errors
    /// A text when it cannot be told.
    pub fn by_value(&self, samples: Samples, target: i64, resource: &str) -> Result<Answer, String> {
        let usage = |samples: &Samples| {
            let sum = samples.values().fold(0_i64, |sum, sample| sum.saturating_add(sample.value));
            let average = sum / i64::try_from(samples.len()).unwrap_or(1).max(1);
            Ok(Usage { ratio: average as f64 / target as f64, average, percent: None })
        };
        self.replicas(samples, resource, usage, |_| target)
    }

    fn replicas(
        &self,
        mut samples: Samples,
        resource: &str,
        usage: impl Fn(&Samples) -> Result<Usage, String>,
        when_missing: impl Fn(&Pod) -> i64,
    ) -> Result<Answer, String> {
        if self.pods.is_empty() {
            return Err("no pods returned by selector while calculating replica count".into());
        }
        let groups = self.group(&samples, resource);
        samples.retain(|pod, _| !groups.ignored.contains(pod) && !groups.unready.contains(pod));
        if samples.is_empty() {
            return Err("did not receive metrics for targeted pods (pods might be unready)".into());
        }
        let measured = usage(&samples)?;
        let answer = |replicas| Answer { replicas, average: measured.average, percent: measured.percent };
        let unready_matter = !groups.unready.is_empty() && measured.ratio > 1.0;
        if !unready_matter && groups.missing.is_empty() {
            let wanted = measured.ratio * f64::from(groups.ready);
            return Ok(answer(if self.tolerance.holds(measured.ratio) { self.replicas } else { ceil(wanted) }));
        }
        let imagined = |value| Sample { value, at: self.now, window: SignedDuration::ZERO };
        for pod in &groups.missing {
            if measured.ratio < 1.0 {
                samples.insert(pod.name().to_owned(), imagined(when_missing(pod)));
            } else if measured.ratio > 1.0 {
                samples.insert(pod.name().to_owned(), imagined(0));
            }
        }
        if unready_matter {
            samples.extend(groups.unready.iter().map(|pod| (pod.clone(), imagined(0))));
        }
        let cautious = usage(&samples)?.ratio;
        let turned = (measured.ratio < 1.0 && cautious > 1.0) || (measured.ratio > 1.0 && cautious < 1.0);
        if self.tolerance.holds(cautious) || turned {
            return Ok(answer(self.replicas));
        }
        let wanted = ceil(cautious * f64::from(u32::try_from(samples.len()).unwrap_or(u32::MAX)));
        let turned = (cautious < 1.0 && wanted > self.replicas) || (cautious > 1.0 && wanted < self.replicas);
        Ok(answer(if turned { self.replicas } else { wanted }))
    }

    fn group(&self, samples: &Samples, resource: &str) -> Groups {
        let mut groups = Groups::default();
        for pod in self.pods {
            let name = pod.name().to_owned();
            if pod.is_terminating() || phase(pod) == "Failed" {
                groups.ignored.insert(name);
            } else if phase(pod) == "Pending" {
                groups.unready.insert(name);
            } else {
                match samples.get(&name) {
                    None => groups.missing.push(pod.clone()),
                    Some(sample) if resource == "cpu" && self.is_starting(pod, sample) => {
                        groups.unready.insert(name);
                    }
                    Some(_) => groups.ready += 1,
                }
            }
        }
        groups
    }

    /// Whether what the pod uses now tells nothing of what it will use.
    fn is_starting(&self, pod: &Pod, sample: &Sample) -> bool {
        let status = pod.status.as_ref();
        let ready = status.and_then(|status| status.conditions.iter().flatten().find(|c| c.type_ == "Ready"));
        let started = status.and_then(|status| status.start_time.as_ref());
        let (Some(ready), Some(started)) = (ready, started) else { return true };
        let is_unready = ready.status == "False";
        let changed = ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        if started.0 + CPU_INITIALIZATION > self.now {
            is_unready || sample.at < changed + sample.window
        } else {
            is_unready && started.0 + INITIAL_READINESS > changed
        }
    }
}

#[derive(Default)]
struct Groups {
    ready: i32,
    unready: BTreeSet<String>,
    missing: Vec<Arc<Pod>>,
    ignored: BTreeSet<String>,
}

/// What the pod (or one container of it) requests, in thousandths.
fn request(pod: &Pod, resource: &str, container: Option<&str>) -> Result<i64, String> {
    let spec = pod.spec.as_ref();
    let whole = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get(resource));
    if let (Some(whole), None) = (whole, container) {
        return Ok(milli(&whole.0));
    }
    let sidecars = spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let containers = spec.into_iter().flat_map(|spec| &spec.containers).chain(sidecars);
    let asked = |container: &Container| {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        requests.and_then(|requests| requests.get(resource)).map(|quantity| milli(&quantity.0))
    };
    let mut sum = 0_i64;
    for one in containers.filter(|one| container.is_none_or(|wanted| wanted == one.name)) {
        let missing = || format!("missing request for {resource} in container {} of Pod {}", one.name, pod.name());
        sum = sum.saturating_add(asked(one).ok_or_else(missing)?);
    }
    Ok(sum)
}

/// Thousandths of a quantity in writing.
pub(super) fn milli(quantity: &str) -> i64 {
    quantity.parse::<Quantity>().map(|quantity| quantity.milli_value()).unwrap_or_default()
}

/// Rounds up; what is too large for a number of replicas becomes the largest.
fn ceil(number: f64) -> i32 {
    number.ceil() as i32
}
