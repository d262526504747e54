//! One metric of an autoscaler: what it proposes, and what its status shows.

use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ResourceMetricStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as QuantityText;
use serde_json::Value;

use super::calculator::{Answer, Target, milli};
use super::usage::samples;
use crate::api::quantity::Quantity;
use crate::client::selector::go_text;

/// What a metric asks for.
pub(super) struct Proposal {
    pub replicas: i32,
    /// What events call the metric.
    pub name: String,
    pub status: MetricStatus,
}

/// Why a metric asks for nothing.
pub(super) struct Failure {
    pub reason: &'static str,
    /// For the condition and the metric's own event.
    pub message: String,
    /// For the event about all metrics.
    pub summary: String,
}

/// Pods as the resource metrics API measured them.
pub(super) type Measured = Result<Vec<Value>, String>;

/// Asks one metric. Custom and external metrics answer as in a cluster without an adapter for them.
pub(super) fn ask(
    metric: &MetricSpec,
    namespace: &str,
    target: &Target<'_>,
    measured: &Measured,
) -> Result<Proposal, Failure> {
    const NO_CUSTOM: &str =
        "unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered";
    let fail = |reason, message: String, what: &str| Failure {
        reason,
        summary: format!("failed to get {what}metric value: {message}"),
        message,
    };
    if let Some(source) = &metric.resource {
        let wanted = Wanted { resource: &source.name, container: None, target: &source.target };
        let answer = resource(&wanted, target, measured)
            .map_err(|message| fail("FailedGetResourceMetric", message, &format!("{} resource ", source.name)))?;
        let status = ResourceMetricStatus { name: source.name.clone(), current: current(&answer) };
        let status = MetricStatus { type_: metric.type_.clone(), resource: Some(status), ..Default::default() };
        return Ok(Proposal { replicas: answer.replicas, name: wanted.name("resource"), status });
    }
    if let Some(source) = &metric.container_resource {
        let wanted = Wanted { resource: &source.name, container: Some(&source.container), target: &source.target };
        let answer = resource(&wanted, target, measured).map_err(|message| {
            fail("FailedGetContainerResourceMetric", message, &format!("{} container ", source.container))
        })?;
        let status = ContainerResourceMetricStatus {
            name: source.name.clone(),
            container: source.container.clone(),
            current: current(&answer),
        };
        let status =
            MetricStatus { type_: metric.type_.clone(), container_resource: Some(status), ..Default::default() };
        return Ok(Proposal { replicas: answer.replicas, name: wanted.name("container resource"), status });
    }
    if let Some(source) = &metric.pods {
        let message = format!("unable to get metric {}: {NO_CUSTOM}", source.metric.name);
        return Err(fail("FailedGetPodsMetric", message, "pods "));
    }
    if let Some(source) = &metric.object {
        let (name, about) = (&source.metric.name, &source.described_object);
        let message = format!("unable to get metric {name}: {} on {namespace} {}/{NO_CUSTOM}", about.kind, about.name);
        let summary = match source.target.type_.as_str() {
            "AverageValue" => format!("failed to get {name} object metric: {message}"),
            _ => message.clone(),
        };
        let summary = format!("failed to get object metric value: {summary}");
        return Err(Failure { reason: "FailedGetObjectMetric", message, summary });
    }
    if let Some(source) = &metric.external {
        let name = &source.metric.name;
        let selector = source.metric.selector.as_ref().map_or_else(|| "nil".into(), go_text);
        let message = format!(
            "unable to get external metric {namespace}/{name}/{selector}: unable to fetch metrics from external metrics API: \
             the server could not find the requested resource (get {name}.external.metrics.k8s.io)"
        );
        let which = match source.target.average_value {
            Some(_) => format!("failed to get {name} external metric"),
            None => format!("failed to get external metric {name}"),
        };
        let summary = format!("failed to get {name} external metric value: {which}: {message}");
        return Err(Failure { reason: "FailedGetExternalMetric", message, summary });
    }
    let message = format!("unknown metric source type {:?}", metric.type_);
    Err(Failure { reason: "InvalidMetricSourceType", summary: message.clone(), message })
}

struct Wanted<'a> {
    resource: &'a str,
    container: Option<&'a str>,
    target: &'a MetricTarget,
}

impl Wanted<'_> {
    fn name(&self, source: &str) -> String {
        match self.target.average_value {
            Some(_) => format!("{} {source}", self.resource),
            None => format!("{} {source} utilization (percentage of request)", self.resource),
        }
    }
}

fn resource(wanted: &Wanted<'_>, target: &Target<'_>, measured: &Measured) -> Result<Answer, String> {
    let Wanted { resource, container, target: goal } = wanted;
    let samples = measured.as_ref().map_err(Clone::clone).and_then(|pods| samples(pods, resource, *container));
    let samples = samples.map_err(|error| format!("unable to get metrics for resource {resource}: {error}"));
    if let Some(value) = &goal.average_value {
        let answer = samples.and_then(|samples| target.by_value(samples, milli(&value.0), resource));
        return answer.map_err(|error| format!("failed to get {resource} usage: {error}"));
    }
    let Some(percent) = goal.average_utilization else {
        let what = "neither an average utilization target nor an average value (usage) target was set";
        return Err(format!("invalid resource metric source: {what}"));
    };
    let answer = samples.and_then(|samples| target.by_utilization(samples, percent, resource, *container));
    answer.map_err(|error| format!("failed to get {resource} utilization: {error}"))
}

fn current(answer: &Answer) -> MetricValueStatus {
    let average = Quantity::from_millis(answer.average).to_string();
    MetricValueStatus { average_utilization: answer.percent, average_value: Some(QuantityText(average)), value: None }
}
