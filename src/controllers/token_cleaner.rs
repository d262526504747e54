//! Removes bootstrap tokens that have expired (`pkg/controller/bootstrap/tokencleaner.go`).

use std::time::Duration;

use jiff::Timestamp;

use super::bootstrap_tokens::{expiration, is_token};
use super::caches::Caches;
use super::plan::{Action, Plan};
use super::{Controller, Enqueue};
use crate::client::cache::Key;

/// The controller.
pub struct TokenCleanerController;

impl Controller for TokenCleanerController {
    fn name(&self) -> &'static str {
        "token-cleaner-controller"
    }
    fn account(&self) -> &'static str {
        "token-cleaner"
    }
    fn watch(&self, caches: &Caches, enqueue: &Enqueue) {
        let add = enqueue.clone();
        caches.secrets.subscribe(move |change| {
            if let Some(secret) = change.new.as_ref().filter(|secret| is_token(secret)) {
                add.add(Key::of(&**secret));
            }
        });
    }
    fn reconcile(&self, caches: &Caches, key: &Key, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let Some(secret) = caches.secrets.get(key).filter(|secret| is_token(secret)) else { return plan };
        match expiration(&secret) {
            Some(at) if at <= now => plan.push(Action::delete(&*secret)),
            Some(at) => plan.requeue(Duration::try_from(at.duration_since(now)).unwrap_or_default()),
            None => {}
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn a_token_goes_when_its_time_has_come() {
        let caches = Caches::default();
        // 2026-01-01T00:01:00Z in base64.
        let secret = json!({"metadata": {"namespace": "kube-system", "name": "bootstrap-token-abcdef", "uid": "u"},
            "type": "bootstrap.kubernetes.io/token", "data": {"expiration": "MjAyNi0wMS0wMVQwMDowMTowMFo="}});
        caches.secrets.put(Arc::new(serde_json::from_value(secret).expect("a Secret")));
        let key = Key::new("kube-system", "bootstrap-token-abcdef");
        let at = |time: &str| TokenCleanerController.reconcile(&caches, &key, time.parse().expect("a time"));
        assert_eq!(at("2026-01-01T00:00:00Z").requeue_after, Some(Duration::from_secs(60)));
        assert_eq!(at("2026-01-01T00:01:00Z").actions().count(), 1);
    }
}
