//! What the resource metrics API tells about pods.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::api::meta::{items, name, text};
use crate::api::quantity::Quantity;

/// One measurement of one pod.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// In thousandths of the resource's unit.
    pub value: i64,
    pub at: Timestamp,
    pub window: SignedDuration,
}

/// Measurements by pod name.
pub(super) type Samples = BTreeMap<String, Sample>;

/// A resource of pods (or of one container of each) out of `PodMetrics`.
///
/// # Errors
/// When nothing was measured, or a pod lacks the container.
pub(super) fn samples(pods: &[Value], resource: &str, container: Option<&str>) -> Result<Samples, String> {
    if pods.is_empty() {
        return Err("no metrics returned from resource metrics API".into());
    }
    let mut samples = Samples::new();
    for pod in pods {
        let containers = items(&pod["containers"]);
        let value = match container {
            None => {
                let values: Option<Vec<i64>> = containers.iter().map(|c| milli(&c["usage"][resource])).collect();
                values.filter(|values| !values.is_empty()).map(|values| values.into_iter().fold(0, i64::saturating_add))
            }
            Some(wanted) => {
                let found = containers.iter().find(|container| name_of(container) == wanted).ok_or_else(|| {
                    let (namespace, pod) = (text(&pod["metadata"]["namespace"]), name(pod));
                    format!(
                        "failed to get container metrics: container {wanted} not present in metrics for pod {namespace}/{pod}"
                    )
                })?;
                milli(&found["usage"][resource])
            }
        };
        if let Some(value) = value {
            let at = text(&pod["timestamp"]).parse().unwrap_or(Timestamp::UNIX_EPOCH);
            let window = text(&pod["window"]).parse().unwrap_or_default();
            samples.insert(name(pod).to_owned(), Sample { value, at, window });
        }
    }
    Ok(samples)
}

fn name_of(container: &Value) -> &str {
    text(&container["name"])
}

fn milli(value: &Value) -> Option<i64> {
    Quantity::from_value(value).ok().map(|quantity| quantity.milli_value())
}
