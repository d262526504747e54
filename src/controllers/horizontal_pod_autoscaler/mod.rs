//! HorizontalPodAutoscalers: sizes a target after its pods' metrics (`pkg/controller/podautoscaler`). Metrics are no
//! objects that could be watched: each autoscaler looks every 15 seconds, for as long as it exists.

mod behavior;
mod calculator;
mod metric;
mod round;
#[cfg(test)]
mod tests;
mod usage;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::caches::Caches;
use super::plan::{Action, Plan, Write};
use super::{Controller, Enqueue};
use crate::api::Gvr;
use crate::api::meta::text;
use crate::api::selector::LabelSelector;
use crate::client::cache::Key;
use crate::client::recorder::{EventType, reference};
use crate::client::typed::Meta;
use crate::client::{Api, ListOptions};
use behavior::Memory;
use metric::Measured;
use round::{Rescale, Round, Scale, View, decide, not_rescaled};

/// `--horizontal-pod-autoscaler-sync-period`.
const PERIOD: Duration = Duration::from_secs(15);

/// Pods at the resource metrics API.
const POD_METRICS: Gvr = Gvr::new("metrics.k8s.io", "v1beta1", "pods");

const UNPOISONED: &str = "no panic while autoscalers are held";

/// The controller.
#[derive(Default)]
pub struct HorizontalPodAutoscalerController {
    known: Arc<Mutex<HashMap<Key, Known>>>,
}

/// What is known of one autoscaler beside the object.
#[derive(Default)]
struct Known {
    memory: Memory,
    /// The selector of its target.
    selector: Option<LabelSelector>,
    /// What the API said, for the next reconcile.
    answers: Option<Answers>,
}

struct Answers {
    /// The target's Scale and where it is, or why there is none.
    target: Result<(Gvr, Arc<Value>), String>,
    measured: Measured,
}

impl Controller for HorizontalPodAutoscalerController {
    fn name(&self) -> &'static str {
        "horizontalpodautoscaling"
    }
    fn account(&self) -> &'static str {
        "horizontal-pod-autoscaler"
    }

    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        let add = enqueue.clone();
        caches.horizontal_pod_autoscalers.subscribe(move |change| {
            let spec =
                |object: &Option<Arc<HorizontalPodAutoscaler>>| object.as_ref().map(|object| object.spec.clone());
            if spec(&change.old) != spec(&change.new) {
                add.add(Key::of(&**change.object()));
            }
        });
    }

    fn ask<'a>(&'a self, api: &'a dyn Api, caches: &'a Caches, key: &'a Key) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let Some(hpa) = caches.horizontal_pod_autoscalers.get(key) else { return };
            let target = scale(api, caches, &hpa).await;
            let selector = target.as_ref().map_or("", |(_, scale)| text(&scale["status"]["selector"]));
            let measured = if selector.is_empty() || !wants_resources(&hpa) {
                Ok(Vec::new())
            } else {
                measure(api, &key.namespace, selector).await
            };
            let mut known = self.known.lock().expect(UNPOISONED);
            known.entry(key.clone()).or_default().answers = Some(Answers { target, measured });
        })
    }

    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        let mut known = self.known.lock().expect(UNPOISONED);
        let Some(hpa) = caches.horizontal_pod_autoscalers.get(key) else {
            known.remove(key);
            return Plan::default();
        };
        let mine = known.entry(key.clone()).or_default();
        let Some(answers) = mine.answers.take() else { return Plan::default() };
        let scale = answers.target.as_ref().map(|(_, object)| Scale {
            replicas: object["spec"]["replicas"].as_i64().and_then(|count| count.try_into().ok()).unwrap_or_default(),
            selector: text(&object["status"]["selector"]).to_owned(),
        });
        let scale = scale.map_err(Clone::clone);
        let selector = LabelSelector::parse(scale.as_ref().map_or("", |scale| &scale.selector));
        mine.selector = selector.as_ref().ok().filter(|selector| !selector.is_everything()).cloned();
        let pods = selector.map(|selector| caches.pods.select(&key.namespace, |pod| selects(&selector, pod)));
        let rivals = rivals(&known, caches, key, pods.as_deref().unwrap_or_default());
        let view = View { scale: &scale, measured: &answers.measured, pods: &pods, rivals: &rivals, now };
        let memory = &mut known.get_mut(key).expect("it was just there").memory;
        let round = decide(&hpa, &view, memory);
        if let Some(Rescale { from, to, .. }) = round.rescale {
            memory.scaled(behavior_of(&hpa), from, to, now);
        }
        drop(known);
        self.plan(&hpa, answers.target.ok(), round, now)
    }
}

fn behavior_of(
    hpa: &HorizontalPodAutoscaler,
) -> Option<&k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior> {
    hpa.spec.as_ref().and_then(|spec| spec.behavior.as_ref())
}

impl HorizontalPodAutoscalerController {
    fn plan(
        &self,
        hpa: &Arc<HorizontalPodAutoscaler>,
        target: Option<(Gvr, Arc<Value>)>,
        round: Round,
        now: Timestamp,
    ) -> Plan {
        let mut plan = Plan::default();
        plan.requeue(PERIOD);
        let about = reference(&**hpa);
        if let (Some(rescale), Some((gvr, scale))) = (round.rescale, target) {
            let mut object = (*scale).clone();
            object["spec"]["replicas"] = rescale.to.into();
            let name = text(&scale["metadata"]["name"]);
            let key = Key::new(hpa.namespace(), name);
            let words = rescale.words();
            plan.push(Action::write(Write::Update { gvr, key, subresource: "scale", object }).tell(
                about.clone(),
                Some((EventType::Normal, "SuccessfulRescale", words.clone())),
                Some((EventType::Warning, "FailedRescale", format!("{words}; error: {{error}}"))),
            ));
            let (known, hpa, after) = (self.known.clone(), hpa.clone(), round.status.clone());
            plan.on_failure = Some(Box::new(move |error| {
                let mut known = known.lock().expect(UNPOISONED);
                if let Some(mine) = known.get_mut(&Key::of(&*hpa)) {
                    mine.memory.not_scaled(behavior_of(&hpa), rescale.from, rescale.to);
                }
                let before = hpa.status.clone().unwrap_or_default();
                let status = not_rescaled(&before, after, &error.message, now);
                update(&hpa, status).into_iter().collect()
            }));
        }
        update(hpa, round.status).into_iter().for_each(|action| plan.push(action));
        for (type_, reason, message) in round.told {
            plan.push(Action::event(about.clone(), type_, reason, message));
        }
        plan
    }
}

/// Writes a status that is another one. Should it come too late, the next round tells anew.
fn update(hpa: &HorizontalPodAutoscaler, status: HorizontalPodAutoscalerStatus) -> Option<Action> {
    let mut before = hpa.status.clone().unwrap_or_default();
    before.current_replicas = before.current_replicas.filter(|count| *count != 0);
    before.current_metrics = before.current_metrics.filter(|metrics| !metrics.is_empty());
    let updated = HorizontalPodAutoscaler { status: Some(status.clone()), ..hpa.clone() };
    (before != status).then(|| Action::update_status(&updated).tolerate(&["Conflict", "NotFound"]))
}

fn wants_resources(hpa: &HorizontalPodAutoscaler) -> bool {
    let metrics = hpa.spec.iter().flat_map(|spec| spec.metrics.iter().flatten());
    metrics.into_iter().any(|metric| metric.resource.is_some() || metric.container_resource.is_some())
}

async fn scale(api: &dyn Api, caches: &Caches, hpa: &HorizontalPodAutoscaler) -> Result<(Gvr, Arc<Value>), String> {
    let target = hpa.spec.as_ref().map(|spec| spec.scale_target_ref.clone()).unwrap_or_default();
    let api_version = target.api_version.unwrap_or_default();
    if api_version.matches('/').count() > 1 {
        return Err(format!("unexpected GroupVersion string: {api_version}"));
    }
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let found = caches.graph.named(&api_version, &target.kind).map(|kind| kind.gvr.clone());
    let gvr = found.ok_or_else(|| format!("no matches for kind {:?} in group {group:?}", target.kind))?;
    let scale = api.get_scale(&gvr, hpa.namespace(), &target.name).await.map_err(|status| status.message)?;
    Ok((gvr, scale))
}

async fn measure(api: &dyn Api, namespace: &str, selector: &str) -> Measured {
    let options = ListOptions { label_selector: selector.to_owned(), ..Default::default() };
    match api.list(&POD_METRICS, namespace, &options).await {
        Ok(list) => Ok(list.items.iter().map(|item| (**item).clone()).collect()),
        Err(status) => {
            // What client-go adds to an answer that does not say what it is about.
            let about = if status.details.is_null() { " (get pods.metrics.k8s.io)" } else { "" };
            Err(format!("unable to fetch metrics from resource metrics API: {}{about}", status.message))
        }
    }
}

fn selects(selector: &LabelSelector, pod: &Pod) -> bool {
    selector.holds(|label| pod.labels().get(label).map(String::as_str))
}

/// All autoscalers whose targets select one of the pods.
fn rivals(known: &HashMap<Key, Known>, caches: &Caches, key: &Key, pods: &[Arc<Pod>]) -> Vec<String> {
    let mut rivals: Vec<String> = known
        .iter()
        .filter(|(other, _)| other.namespace == key.namespace && caches.horizontal_pod_autoscalers.get(other).is_some())
        .filter(|(_, known)| known.selector.iter().any(|selector| pods.iter().any(|pod| selects(selector, pod))))
        .map(|(other, _)| other.to_string())
        .collect();
    rivals.sort();
    rivals
}
