//! PodDisruptionBudgets, as far as preemption asks: whose budget a victim would break.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use super::pod_info::PodInfo;
use super::selector::Selector;
use crate::client::cache::{Change, Key};
use crate::client::typed::Meta;

#[derive(Clone, Debug)]
struct Budget {
    selector: Selector,
    allowed: i32,
    /// Pods that the eviction subresource has counted already.
    disrupted: BTreeSet<String>,
}

/// All budgets.
#[derive(Clone, Debug, Default)]
pub struct Budgets {
    budgets: BTreeMap<Key, Budget>,
}

impl Budgets {
    /// A budget has changed.
    pub fn apply(&mut self, change: &Change<PodDisruptionBudget>) {
        let key = Key::of(&**change.object());
        let Some(budget) = &change.new else { return drop(self.budgets.remove(&key)) };
        let status = budget.status.as_ref();
        let disrupted = status.and_then(|status| status.disrupted_pods.as_ref());
        let known = Budget {
            selector: Selector::of(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref())),
            allowed: status.map_or(0, |status| status.disruptions_allowed),
            disrupted: disrupted.map(|pods| pods.keys().cloned().collect()).unwrap_or_default(),
        };
        self.budgets.insert(key, known);
    }

    /// Splits pods, in their order, into those whose going breaks a budget and the others (`filterPodsWithPDBViolation`).
    pub fn split(&self, pods: Vec<Arc<PodInfo>>) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
        let mut left: BTreeMap<&Key, i32> = BTreeMap::new();
        pods.into_iter().partition(|pod| {
            let mut breaks = false;
            // A pod without labels, and a budget that selects everything, have nothing to do with each other.
            let concerned = self.budgets.iter().filter(|(key, budget)| {
                key.namespace == pod.key.namespace
                    && !pod.pod.labels().is_empty()
                    && !budget.selector.is_everything()
                    && budget.selector.matches(pod.labels())
                    && !budget.disrupted.contains(&pod.key.name)
            });
            for (key, budget) in concerned {
                let left = left.entry(key).or_insert(budget.allowed);
                *left -= 1;
                breaks |= *left < 0;
            }
            breaks
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Object;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    #[test]
    fn a_budget_is_broken_by_the_first_pod_too_many() {
        let mut budgets = Budgets::default();
        let budget = json!({"metadata": {"name": "b", "namespace": "a"}, "spec": {"selector": {"matchLabels": {"app": "db"}}},
            "status": {"disruptionsAllowed": 1, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0,
                "disruptedPods": {"d": "2026-01-02T03:04:05Z"}}});
        let budget = PodDisruptionBudget::parse(&budget).expect("a budget");
        budgets.apply(&Change { old: None, new: Some(Arc::new(budget)) });
        let pod = |namespace: &str, name: &str, app: &str| {
            let pod = json!({"metadata": {"name": name, "namespace": namespace, "labels": {"app": app}}, "spec": {"containers": []}});
            Arc::new(PodInfo::new(Arc::new(Pod::parse(&pod).expect("a pod"))))
        };
        let pods = vec![
            pod("a", "d", "db"),
            pod("a", "p", "db"),
            pod("a", "q", "db"),
            pod("a", "r", "web"),
            pod("b", "s", "db"),
        ];
        let (breaking, others) = budgets.split(pods);
        let names = |pods: &[Arc<PodInfo>]| pods.iter().map(|pod| pod.key.name.clone()).collect::<String>();
        assert_eq!((names(&breaking), names(&others)), ("q".into(), "dprs".into()));
    }
}
