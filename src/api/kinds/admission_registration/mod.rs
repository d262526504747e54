//! The kinds of `admissionregistration.k8s.io`: webhooks and policies that are asked about requests.

mod policies;
pub mod rules;
mod webhooks;

use crate::api::kind::Kind;

/// All kinds of the group.
pub fn kinds() -> Vec<Kind> {
    let [mutating, validating] = webhooks::kinds();
    let [policy, binding] = policies::kinds();
    vec![mutating, policy, binding, validating]
}
