//! The ServiceAccount `default` of every namespace (`pkg/controller/serviceaccount`).

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::caches::Caches;
use super::namespace::is_active;
use super::plan::{Action, Plan};
use super::{Controller, Enqueue};
use crate::client::cache::Key;
use crate::client::typed::Meta;

const NAME: &str = "default";

/// The controller; its keys are namespaces.
pub struct ServiceAccountController;

impl Controller for ServiceAccountController {
    fn name(&self) -> &'static str {
        "serviceaccount"
    }
    fn account(&self) -> &'static str {
        "service-account-controller"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        enqueue.on_change(&caches.namespaces);
        let add = enqueue.clone();
        caches.service_accounts.subscribe(move |change| {
            if change.new.is_none() && change.object().name() == NAME {
                add.add(Key::new("", change.object().namespace()));
            }
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, _now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let namespace = caches.namespaces.get(key).filter(|namespace| is_active(namespace));
        if namespace.is_some() && caches.service_accounts.get(&Key::new(&*key.name, NAME)).is_none() {
            let metadata =
                ObjectMeta { name: Some(NAME.into()), namespace: Some(key.name.clone()), ..Default::default() };
            let account = ServiceAccount { metadata, ..Default::default() };
            plan.push(Action::create(&account).tolerate(&["AlreadyExists"]));
        }
        plan
    }
}
