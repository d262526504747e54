//! The numbers of a rollout: surge, unavailability, proportions (`deployment/util`).

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::client::typed::Meta;

/// How many pods the Deployment wanted when the set was last touched.
pub const DESIRED_ANNOTATION: &str = "deployment.kubernetes.io/desired-replicas";
/// How many pods the Deployment allowed at most when the set was last touched.
pub const MAX_ANNOTATION: &str = "deployment.kubernetes.io/max-replicas";

/// Whether the strategy is `Recreate`.
pub fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// `spec.replicas`.
pub fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// `spec.replicas` of a set.
pub fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// The sum of `spec.replicas`.
pub fn total_size<'a>(sets: impl IntoIterator<Item = &'a Arc<ReplicaSet>>) -> i32 {
    sets.into_iter().map(|set| size(set)).sum()
}

/// `status.availableReplicas` of a set.
pub fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or_default()
}

/// An absolute number, or a percentage of `total` rounded up or down. Nonsense counts as 0.
pub fn resolve(value: Option<&IntOrString>, total: i32, up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => {
            let percent = text.strip_suffix('%').and_then(|text| text.parse::<i64>().ok()).unwrap_or_default();
            let hundredths = percent.saturating_mul(total.into());
            let whole = if up { hundredths.saturating_add(99).div_euclid(100) } else { hundredths.div_euclid(100) };
            whole.try_into().unwrap_or(i32::MAX)
        }
    }
}

/// `maxSurge` and `maxUnavailable` as numbers: surge rounds up, unavailable down, and both cannot be 0 (`ResolveFenceposts`).
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let total = replicas(deployment);
    let surge = resolve(rolling.and_then(|rolling| rolling.max_surge.as_ref()), total, true);
    let unavailable = resolve(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), total, false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// How many pods there may be beyond the wanted number.
pub fn max_surge(deployment: &Deployment) -> i32 {
    if is_recreate(deployment) { 0 } else { fenceposts(deployment).0 }
}

/// How many of the wanted pods may be missing.
pub fn max_unavailable(deployment: &Deployment) -> i32 {
    if is_recreate(deployment) || replicas(deployment) == 0 {
        return 0;
    }
    fenceposts(deployment).1.min(replicas(deployment))
}

/// How large the new set may be now (`NewRSNewReplicas`).
pub fn new_size(deployment: &Deployment, all: i32, new: i32) -> i32 {
    let wanted = replicas(deployment);
    if is_recreate(deployment) {
        return wanted;
    }
    let most = wanted.saturating_add(max_surge(deployment));
    if all >= most { new } else { new + (most - all).min(wanted - new) }
}

/// A number that an annotation carries.
pub fn annotated(set: &ReplicaSet, name: &str) -> Option<i32> {
    set.annotation(name)?.parse().ok()
}

/// By how much a set takes part in a change by `to_add` of which `added` is dealt out (`GetReplicaSetProportion`).
pub fn proportion(set: &ReplicaSet, deployment: &Deployment, to_add: i32, added: i32) -> i32 {
    if size(set) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(set, deployment);
    let allowed = to_add - added;
    if to_add > 0 { fraction.min(allowed) } else { fraction.max(allowed) }
}

fn fraction(set: &ReplicaSet, deployment: &Deployment) -> i32 {
    if replicas(deployment) == 0 {
        return -size(set);
    }
    let most = replicas(deployment).saturating_add(max_surge(deployment));
    let before = annotated(set, MAX_ANNOTATION).filter(|number| *number > 0);
    let before = before.or_else(|| deployment.status.as_ref()?.replicas).filter(|number| *number > 0);
    let Some(before) = before else { return 0 };
    let share = f64::from(size(set)) * f64::from(most) / f64::from(before);
    #[expect(clippy::cast_possible_truncation, reason = "the share is between 0 and some thousands")]
    let share = share.round() as i32;
    share - size(set)
}

/// Whether the new set is all there is and all that is wanted (`IsSaturated`).
pub fn is_saturated(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let wanted = replicas(deployment);
    size(set) == wanted && annotated(set, DESIRED_ANNOTATION) == Some(wanted) && available(set) == wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use serde_json::{Value, json};

    fn check(replicas: i32, surge: Value, unavailable: Value, expected: (i32, i32)) {
        let strategy =
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}});
        let spec = json!({"replicas": replicas, "strategy": strategy, "selector": {}, "template": {}});
        let deployment = Deployment::parse(&json!({"spec": spec})).expect("a deployment");
        assert_eq!((max_surge(&deployment), max_unavailable(&deployment)), expected, "{replicas}");
    }

    #[test]
    fn surge_rounds_up_and_unavailable_down() {
        check(10, json!("25%"), json!("25%"), (3, 2));
        check(4, json!("25%"), json!("25%"), (1, 1));
        check(1, json!("25%"), json!("25%"), (1, 0));
        check(1, json!(0), json!("25%"), (0, 1));
        check(3, json!(0), json!(5), (0, 3));
        check(0, json!(1), json!(1), (1, 0));
    }
}
