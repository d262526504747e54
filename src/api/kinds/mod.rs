//! All built-in kinds: one file per kind, and [`all`].

use std::borrow::Cow;
use std::sync::Arc;

use super::kind::{ALL_VERBS, Gvr, Kind, Strategy};

pub mod admission_registration;
pub mod api_service;
pub mod certificate_signing_request;
mod component_status;
mod config_map;
mod controller_revision;
mod created_at;
mod cron_job;
mod csi_driver;
mod csi_node;
mod csi_storage_capacity;
pub mod custom_resource;
pub mod custom_resource_definition;
mod daemon_set;
mod defaulting;
mod deployment;
mod device_class;
mod devices;
mod endpoints;
mod event;
mod flow_schema;
pub mod gvr;
mod horizontal_pod_autoscaler;
#[cfg(test)]
mod hostile_test;
mod ingress;
pub mod ingress_class;
mod ip_address;
pub mod job;
mod lease;
mod limit_range;
mod namespace;
mod network_policy;
mod node;
mod persistent_volume;
mod persistent_volume_claim;
pub(crate) mod plain;
pub mod pod;
mod pod_disruption_budget;
mod pod_template;
pub mod priority_class;
mod priority_level_configuration;
mod rbac;
#[cfg(test)]
mod recordings_test;
mod replica_set;
mod replication_controller;
mod resource_claim;
mod resource_quota;
mod resource_slice;
mod review;
mod runtime_class;
mod secret;
pub mod service;
mod service_account;
mod service_cidr;
mod stateful_set;
pub mod storage_class;
mod volume_attachment;
mod volume_attributes_class;
mod workload;

/// Every built-in kind, in discovery's order.
pub fn all() -> Vec<Arc<Kind>> {
    let mut kinds = vec![
        review::binding_kind(),
        component_status::kind(),
        config_map::kind(),
        endpoints::endpoints_kind(),
        event::core_kind(),
        limit_range::kind(),
        namespace::kind(),
        node::kind(),
        persistent_volume_claim::kind(),
        persistent_volume::kind(),
        pod::kind(),
        resource_quota::kind(),
        pod_template::kind(),
        replication_controller::kind(),
        secret::kind(),
        service_account::kind(),
        service::kind(),
        controller_revision::kind(),
        daemon_set::kind(),
        deployment::kind(),
        replica_set::kind(),
        stateful_set::kind(),
    ];
    kinds.extend(review::kinds());
    kinds.extend(horizontal_pod_autoscaler::kinds());
    kinds.extend([cron_job::kind(), job::kind()]);
    kinds.push(certificate_signing_request::kind());
    kinds.extend([lease::kind(), endpoints::endpoint_slice_kind(), event::events_kind()]);
    kinds.extend([flow_schema::kind(), priority_level_configuration::kind()]);
    kinds.extend([
        ingress_class::kind(),
        ingress::kind(),
        ip_address::kind(),
        network_policy::kind(),
        service_cidr::kind(),
        runtime_class::kind(),
    ]);
    kinds.push(pod_disruption_budget::kind());
    kinds.extend(rbac::kinds());
    kinds.push(device_class::kind());
    kinds.extend(resource_claim::kinds());
    kinds.extend([resource_slice::kind(), priority_class::kind()]);
    kinds.extend([
        csi_driver::kind(),
        csi_node::kind(),
        csi_storage_capacity::kind(),
        storage_class::kind(),
        volume_attachment::kind(),
        volume_attributes_class::kind(),
    ]);
    kinds.extend([api_service::kind(), custom_resource_definition::kind()]);
    kinds.extend(admission_registration::kinds());
    kinds.into_iter().map(Arc::new).collect()
}

/// A namespaced kind with the usual verbs and nothing special.
fn namespaced(gvr: Gvr, kind: &'static str, strategy: Arc<dyn Strategy>) -> Kind {
    Kind {
        gvr,
        kind: Cow::Borrowed(kind),
        singular: Cow::Owned(kind.to_lowercase()),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced: true,
        subresources: Vec::new(),
        has_generation: false,
        verbs: ALL_VERBS.to_vec(),
        create_on_update: false,
        unconditional_update: true,
        lazy: false,
        strategy,
    }
}

/// A cluster-scoped kind with the usual verbs and nothing special.
fn cluster_scoped(gvr: Gvr, kind: &'static str, strategy: Arc<dyn Strategy>) -> Kind {
    Kind { namespaced: false, ..namespaced(gvr, kind, strategy) }
}

fn names(names: &[&'static str]) -> Vec<Cow<'static, str>> {
    names.iter().map(|name| Cow::Borrowed(*name)).collect()
}
