//! `StorageObjectInUseProtection`: new claims and volumes get the finalizer that keeps them while they are used.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin};
use crate::api::meta::{CLAIM_PROTECTION, VOLUME_PROTECTION};
use crate::api::{StatusResult, meta};
use crate::apiserver::ApiServer;

pub(super) struct StorageObjectInUseProtection;

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation == Operation::Create
            && (attributes.is("", "persistentvolumeclaims") || attributes.is("", "persistentvolumes"))
    }

    async fn admit(
        &self,
        _: &ApiServer,
        attributes: &Attributes<'_>,
        object: &mut Value,
        _: Option<&Value>,
    ) -> StatusResult<()> {
        let is_claim = attributes.is("", "persistentvolumeclaims");
        protect(object, if is_claim { CLAIM_PROTECTION } else { VOLUME_PROTECTION });
        Ok(())
    }
}

fn protect(object: &mut Value, finalizer: &str) {
    if meta::items(&object["metadata"]["finalizers"]).iter().any(|known| known == finalizer) {
        return;
    }
    match object["metadata"]["finalizers"].as_array_mut() {
        Some(finalizers) => finalizers.push(finalizer.into()),
        None => object["metadata"]["finalizers"] = json!([finalizer]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_finalizer_comes_once_and_last() {
        let mut claim = json!({"metadata": {"name": "c"}});
        for _ in 0..2 {
            protect(&mut claim, CLAIM_PROTECTION);
            assert_eq!(claim["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
        }
        let mut volume = json!({"metadata": {"finalizers": ["example.com/mine"]}});
        protect(&mut volume, VOLUME_PROTECTION);
        assert_eq!(volume["metadata"]["finalizers"], json!(["example.com/mine", "kubernetes.io/pv-protection"]));
    }
}
