//! The ConfigMap `kube-root-ca.crt` of every namespace (`pkg/controller/certificates/rootcacertpublisher`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::caches::Caches;
use super::namespace::is_active;
use super::plan::{Action, Plan};
use super::{Controller, Enqueue};
use crate::client::cache::Key;
use crate::client::typed::Meta;

const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the \
     internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.",
);

/// The controller; its keys are namespaces.
pub struct RootCaController {
    /// The certificate authority in PEM.
    pub certificate: String,
}

impl Controller for RootCaController {
    fn name(&self) -> &'static str {
        "root-ca-certificate-publisher"
    }
    fn account(&self) -> &'static str {
        "root-ca-cert-publisher"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        enqueue.on_change(&caches.namespaces);
        let add = enqueue.clone();
        caches.config_maps.subscribe(move |change| {
            if change.object().name() == NAME {
                add.add(Key::new("", change.object().namespace()));
            }
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, _now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        if !caches.namespaces.get(key).is_some_and(|namespace| is_active(&namespace)) {
            return plan;
        }
        let data = BTreeMap::from([("ca.crt".to_owned(), self.certificate.clone())]);
        match caches.config_maps.get(&Key::new(&*key.name, NAME)) {
            None => {
                let metadata = ObjectMeta {
                    name: Some(NAME.into()),
                    namespace: Some(key.name.clone()),
                    annotations: Some(BTreeMap::from([(DESCRIPTION.0.into(), DESCRIPTION.1.into())])),
                    ..Default::default()
                };
                let map = ConfigMap { metadata, data: Some(data), ..Default::default() };
                plan.push(Action::create(&map).tolerate(&["AlreadyExists"]));
            }
            Some(map) if map.data.as_ref() != Some(&data) || map.annotation(DESCRIPTION.0) != Some(DESCRIPTION.1) => {
                let mut map = (*map).clone();
                map.data = Some(data);
                let annotations = map.metadata.annotations.get_or_insert_default();
                annotations.insert(DESCRIPTION.0.into(), DESCRIPTION.1.into());
                plan.push(Action::update(&map));
            }
            Some(_) => {}
        }
        plan
    }
}
