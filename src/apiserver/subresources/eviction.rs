//! `pods/eviction`: a delete that asks the disruption budgets first (`pkg/registry/core/pod/storage/eviction.go`).

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::kinds::gvr;
use crate::api::selector::LabelSelector;
use crate::api::{Kind, Status, StatusResult, meta};
use crate::apiserver::ApiServer;
use crate::apiserver::registry::delete_options::DeleteOptions;
use crate::apiserver::registry::update::Part;
use crate::apiserver::registry::{Context, list::Page};
use crate::apiserver::selector::Selection;
use crate::env::rfc3339;

/// A budget with more announced evictions than this hears of no more (`MaxDisruptedPodSize`).
const MOST_DISRUPTED: usize = 2000;
/// How often an eviction that lost against another change begins anew.
const ATTEMPTS: usize = 20;
/// Seconds after which a client may ask again when the budget's status is not up to date.
const RETRY_AFTER: i64 = 10;

pub(super) async fn create(
    server: &ApiServer,
    context: &Context<'_>,
    kind: &Arc<Kind>,
    namespace: &str,
    name: &str,
    eviction: &Value,
) -> StatusResult<Value> {
    let sent = meta::name(eviction);
    if !sent.is_empty() && sent != name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let options = DeleteOptions::of_body(eviction["deleteOptions"].clone())?;
    // It may be asked for in the request and in the body.
    let mut dry = Context::new(context.user);
    dry.dry_run = true;
    dry.notes = context.notes.clone();
    let context = if options.is_dry_run() { &dry } else { context };
    let eviction = Eviction { server, context, kind, namespace, name, options };
    for _ in 0..ATTEMPTS {
        if eviction.is_done().await? {
            return Ok(super::success());
        }
    }
    Err(Status::modified(&kind.gvr, name))
}

/// One eviction of one pod.
struct Eviction<'a> {
    server: &'a ApiServer,
    context: &'a Context<'a>,
    kind: &'a Arc<Kind>,
    namespace: &'a str,
    name: &'a str,
    options: DeleteOptions,
}

/// What a budget says about a pod.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// It may go while it stays as it is: it is not healthy, and nothing is lost with it.
    UnhealthyMayGo,
    /// It may go when the budget can pay for it.
    Costs,
}

impl Eviction<'_> {
    /// Evicts the pod; `false` when it has changed meanwhile, so that its budget must be asked again.
    async fn is_done(&self) -> StatusResult<bool> {
        let entry = self.server.get_entry(self.kind, self.namespace, self.name).await?;
        let pod = entry.value();
        check_preconditions(&pod, &self.options)?;
        // What is decided of this state of the pod must not happen to a later one.
        let as_it_is = DeleteOptions { resource_version: Some(entry.revision.to_string()), ..self.options.clone() };
        if is_past_care(&pod) {
            if is_ended(&pod) || meta::is_terminating(&pod) {
                return self.delete(&self.options).await.map(|()| true);
            }
            return match self.delete(&as_it_is).await {
                Err(status) if status.is_conflict() && self.options.resource_version.is_none() => Ok(false),
                result => result.map(|()| true),
            };
        }
        if let Some((kind, budget)) = self.budget(&pod).await? {
            let name = meta::name(&budget).to_owned();
            if verdict(&pod, &budget) == Verdict::UnhealthyMayGo {
                return match self.delete(&as_it_is).await {
                    Err(status) if status.is_conflict() && self.options.resource_version.is_none() => Err(busy(&name)),
                    result => result.map(|()| true),
                };
            }
            let now = rfc3339(self.server.env.now());
            let pay = |budget: &Value| spend(budget, self.name, &now);
            self.server.change(self.context, &kind, self.namespace, &name, Part::Status, pay).await?;
        }
        self.delete(&self.options).await.map(|()| true)
    }

    /// The budget that covers the pod.
    async fn budget(&self, pod: &Value) -> StatusResult<Option<(Arc<Kind>, Arc<Value>)>> {
        let kind = self.server.known_kind("policy", "v1", &gvr::POD_DISRUPTION_BUDGETS.resource)?;
        let budgets = self.server.list(&kind, self.namespace, &Selection::default(), &Page::default()).await?;
        let covers = |budget: &Arc<Value>| {
            let selector = LabelSelector::from_label_selector(&budget["spec"]["selector"]);
            !budget["spec"]["selector"].is_null() && selector.is_ok_and(|selector| selector.matches_object(pod))
        };
        let mut covering = budgets.entries.iter().map(|entry| entry.value()).filter(covers);
        match (covering.next(), covering.next()) {
            (None, _) => Ok(None),
            (Some(budget), None) => Ok(Some((kind, budget))),
            _ => Err(Status::new(
                500,
                "",
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            )),
        }
    }

    /// Writes the condition that tells why, and deletes the pod.
    async fn delete(&self, options: &DeleteOptions) -> StatusResult<()> {
        let mut options = options.clone();
        if !self.context.dry_run {
            let now = rfc3339(self.server.env.now());
            let mark = |pod: &Value| {
                check_preconditions(pod, &options)?;
                Ok(with_condition(pod, &now))
            };
            let marked =
                self.server.change(self.context, self.kind, self.namespace, self.name, Part::Status, mark).await?;
            if options.resource_version.is_some() {
                options.resource_version = Some(marked.revision.to_string());
            }
        }
        self.server.delete(self.context, self.kind, self.namespace, self.name, &options).await.map(drop)
    }
}

/// Pods that ended, wait or are going are evicted without asking (`canIgnorePDB`).
fn is_past_care(pod: &Value) -> bool {
    is_ended(pod) || pod["status"]["phase"] == "Pending" || meta::is_terminating(pod)
}

fn is_ended(pod: &Value) -> bool {
    ["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or_default())
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn verdict(pod: &Value, budget: &Value) -> Verdict {
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    let (healthy, desired) = (number("currentHealthy"), number("desiredHealthy"));
    let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
    if !is_ready(pod) && (always || (healthy >= desired && desired > 0)) {
        Verdict::UnhealthyMayGo
    } else {
        Verdict::Costs
    }
}

/// The budget with one disruption less (`checkAndDecrement`).
fn spend(budget: &Value, pod: &str, now: &str) -> StatusResult<Value> {
    let (status, name) = (&budget["status"], meta::name(budget));
    let number = |field: &str| status[field].as_i64().unwrap_or(0);
    let forbidden = |why: &str| {
        let gvr = crate::api::Gvr::new("policy", "v1", "poddisruptionbudget");
        Err(Status::forbidden(&gvr, name, why))
    };
    if number("observedGeneration") < meta::generation(budget) {
        return Err(busy(name));
    }
    if number("disruptionsAllowed") < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    if status["disruptedPods"].as_object().is_some_and(|pods| pods.len() > MOST_DISRUPTED) {
        return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if number("disruptionsAllowed") == 0 {
        let why = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number("desiredHealthy"),
            number("currentHealthy")
        );
        return Err(too_many(&why, None));
    }
    let left = number("disruptionsAllowed") - 1;
    let mut budget = budget.clone();
    budget["status"]["disruptionsAllowed"] = left.into();
    budget["status"]["disruptedPods"][pod] = now.into();
    if left == 0 {
        let condition = json!({"type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
            "observedGeneration": number("observedGeneration"), "lastTransitionTime": now});
        put_condition(&mut budget["status"], condition);
    }
    Ok(budget)
}

/// Puts a condition in the place of the one with its type, or at the end.
fn put_condition(status: &mut Value, condition: Value) {
    match status["conditions"].as_array_mut() {
        Some(all) => match all.iter_mut().find(|known| known["type"] == condition["type"]) {
            Some(known) => *known = condition,
            None => all.push(condition),
        },
        None => status["conditions"] = json!([condition]),
    }
}

fn with_condition(pod: &Value, now: &str) -> Value {
    let mut pod = pod.clone();
    let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": now});
    let known = pod["status"]["conditions"].as_array().into_iter().flatten();
    let mut known = known.filter(|known| known["type"] == "DisruptionTarget");
    if !known.any(|known| known["status"] == "True" && known["reason"] == condition["reason"]) {
        put_condition(&mut pod["status"], condition);
    }
    pod
}

fn check_preconditions(pod: &Value, options: &DeleteOptions) -> StatusResult<()> {
    let kind = crate::api::Gvr::new("", "v1", "Pod");
    let conflict = |why: String| Err(Status::conflict(&kind, meta::name(pod), &why));
    let (uid, version) = (meta::uid(pod), meta::resource_version(pod));
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != uid) {
        return conflict(format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). \
             The object might have been deleted and then recreated"
        ));
    }
    if let Some(wanted) = options.resource_version.as_deref().filter(|wanted| *wanted != version) {
        return conflict(format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({version}). \
             The object might have been modified"
        ));
    }
    Ok(())
}

/// The refusal while the budget's status is older than its spec, or the pod changes under the eviction.
fn busy(budget: &str) -> Status {
    too_many(&format!("The disruption budget {budget} is still being processed by the server."), Some(RETRY_AFTER))
}

fn too_many(why: &str, seconds: Option<i64>) -> Status {
    let mut status =
        Status::new(429, "TooManyRequests", "Cannot evict pod as it would violate the pod's disruption budget.");
    status.details = json!({"causes": [{"reason": "DisruptionBudget", "message": why}]});
    if let Some(seconds) = seconds {
        status.details["retryAfterSeconds"] = seconds.into();
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn budget(status: Value) -> Value {
        json!({"metadata": {"name": "pdb", "generation": 1}, "spec": {}, "status": status})
    }

    #[test]
    fn a_spent_budget_answers_429_with_the_budget_as_cause() {
        let status =
            json!({"disruptionsAllowed": 1, "desiredHealthy": 1, "currentHealthy": 2, "observedGeneration": 1});
        let spent = spend(&budget(status), "p", NOW).expect("one left");
        assert_eq!(spent["status"]["disruptedPods"], json!({"p": NOW}));
        assert_eq!(spent["status"]["conditions"][0]["reason"], "InsufficientPods");
        let refused = spend(&spent, "q", NOW).expect_err("none left");
        assert_eq!((refused.code, refused.reason.as_str()), (429, "TooManyRequests"));
        assert_eq!(
            refused.details,
            json!({"causes": [{"reason": "DisruptionBudget",
                "message": "The disruption budget pdb needs 1 healthy pods and has 2 currently"}]})
        );
    }

    #[test]
    fn a_budget_whose_status_is_old_is_asked_again_later() {
        let refused = spend(&budget(json!({"disruptionsAllowed": 5})), "p", NOW).expect_err("not observed");
        assert_eq!(refused.details["retryAfterSeconds"], 10);
        let refused = spend(&budget(json!({"disruptionsAllowed": -1, "observedGeneration": 1})), "p", NOW);
        assert_eq!(
            refused.expect_err("negative").message,
            "poddisruptionbudget.policy \"pdb\" is forbidden: pdb disruptions allowed is negative"
        );
    }

    #[test]
    fn unhealthy_pods_go_as_the_policy_says() {
        let pod = |ready: &str| json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let with = |policy: Value, healthy: i64, desired: i64| {
            let mut budget = budget(json!({"currentHealthy": healthy, "desiredHealthy": desired}));
            budget["spec"]["unhealthyPodEvictionPolicy"] = policy;
            budget
        };
        let check = |ready: &str, budget: Value, expected: Verdict| assert_eq!(verdict(&pod(ready), &budget), expected);
        check("True", with("AlwaysAllow".into(), 3, 2), Verdict::Costs);
        check("False", with("AlwaysAllow".into(), 0, 2), Verdict::UnhealthyMayGo);
        check("False", with(Value::Null, 1, 2), Verdict::Costs);
        check("False", with("IfHealthyBudget".into(), 2, 2), Verdict::UnhealthyMayGo);
        check("False", with("IfHealthyBudget".into(), 0, 0), Verdict::Costs);
    }
}
