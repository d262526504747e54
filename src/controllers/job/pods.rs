//! Pods of a Job as they are made, chosen for removal and released.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use serde_json::json;

use super::indexes::{FAILURES, IGNORED_FAILURES, INDEX, failures_after, index_of, sorted};
use super::{Pods, TRACKING_FINALIZER};
use crate::client::Patch;
use crate::client::cache::Key;
use crate::client::typed::{Meta, gvr};
use crate::controllers::plan::Action;
use crate::controllers::pod_control;

/// The environment variable with a pod's index.
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// A generated name leaves room for five letters (`MaxGeneratedNameLength`).
const LONGEST_PREFIX: usize = 58;

/// A new pod; with an index in an Indexed Job, where it may replace a failed one.
pub fn new(job: &Job, spec: &JobSpec, index: Option<i32>, replaced: Option<&Arc<Pod>>) -> Pod {
    let mut pod = pod_control::from_template(job, &spec.template);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|known| known == TRACKING_FINALIZER) {
        finalizers.push(TRACKING_FINALIZER.into());
    }
    let Some(index) = index else { return pod };
    pod.metadata.generate_name = Some(generated_prefix(job.name(), index));
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.into(), index.to_string());
    if spec.backoff_limit_per_index.is_some() {
        let (counted, ignored) = failures_after(spec, replaced);
        annotations.insert(FAILURES.into(), counted.to_string());
        if ignored > 0 {
            annotations.insert(IGNORED_FAILURES.into(), ignored.to_string());
        }
    }
    pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
    if let Some(pod_spec) = &mut pod.spec {
        pod_spec.hostname = Some(format!("{}-{index}", job.name()));
        let init = pod_spec.init_containers.iter_mut().flatten();
        init.chain(&mut pod_spec.containers).for_each(add_index_variable);
    }
    pod
}

fn generated_prefix(job: &str, index: i32) -> String {
    let suffix = format!("-{index}-");
    let room = LONGEST_PREFIX.saturating_sub(suffix.len()).min(job.len());
    format!("{}{suffix}", &job[..room])
}

fn add_index_variable(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    if env.iter().any(|variable| variable.name == INDEX_VARIABLE) {
        return;
    }
    let field_ref = ObjectFieldSelector { field_path: format!("metadata.labels['{INDEX}']"), api_version: None };
    let source = EnvVarSource { field_ref: Some(field_ref), ..Default::default() };
    env.push(EnvVar { name: INDEX_VARIABLE.into(), value: None, value_from: Some(source) });
}

/// The pods to remove when at least `surplus` are too many: the least useful ones, and of an Indexed Job first what has
/// no valid index or shares one (`activePodsForRemoval`).
pub fn for_removal(spec: &JobSpec, active: &Pods, surplus: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    let (mut chosen, mut left) = (Vec::new(), active.to_vec());
    if is_indexed(spec) {
        let completions = spec.completions.unwrap_or_default();
        let (valid, invalid): (Vec<_>, Vec<_>) =
            sorted(active).into_iter().partition(|pod| index_of(pod).is_some_and(|index| index < completions));
        chosen = invalid;
        left = Vec::new();
        for same in valid.chunk_by(|a, b| index_of(a) == index_of(b)) {
            let mut same = same.to_vec();
            pod_control::rank(&mut same, &[], now);
            left.extend(same.pop());
            chosen.extend(same);
        }
    }
    if chosen.len() < surplus {
        pod_control::rank(&mut left, &[], now);
        left.truncate(surplus - chosen.len());
        chosen.extend(left);
    }
    chosen
}

/// Whether pods have indexes.
pub fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// Takes the tracking finalizer from a pod.
pub fn release(pod: &Arc<Pod>) -> Action {
    let patch = json!({"metadata": {"uid": pod.uid(), "$deleteFromPrimitiveList/finalizers": [TRACKING_FINALIZER]}});
    Action::patch(gvr::<Pod>(), Key::of(&**pod), "", Patch::Strategic(patch)).tolerate(&["NotFound"])
}
