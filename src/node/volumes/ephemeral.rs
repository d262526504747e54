//! Generic ephemeral volumes: claims that live as long as their pod (KEP-1698). Pure.

use k8s_openapi::api::core::v1 as core;
use serde_json::Value;

use crate::api::pod::controller_of;

/// The name of the claim that the ephemeral-volume controller makes for a volume.
pub fn claim_name(pod: &core::Pod, volume: &core::Volume) -> String {
    format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name)
}

/// Refuses a claim of that name that was made for somebody else.
///
/// # Errors
/// The kubelet's message (`ephemeral.VolumeIsForPod`).
pub fn check_owner(pod: &core::Pod, claim: Option<&Value>, name: &str) -> Result<(), String> {
    let Some(claim) = claim else { return Ok(()) };
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if controller_of(claim).is_some_and(|owner| owner["uid"] == uid) {
        return Ok(());
    }
    let (namespace, pod) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
    let namespace = namespace.unwrap_or_default();
    Err(format!(
        "PVC {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
        pod.unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_claim_of_its_own_is_a_pods() {
        let pod: core::Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}})).expect("a pod");
        let volume = core::Volume { name: "scratch".to_owned(), ..Default::default() };
        assert_eq!(claim_name(&pod, &volume), "p-scratch");
        let owned = |uid: &str| json!({"metadata": {"ownerReferences": [{"uid": uid, "controller": true}]}});
        assert_eq!(check_owner(&pod, Some(&owned("u")), "p-scratch"), Ok(()));
        assert_eq!(check_owner(&pod, None, "p-scratch"), Ok(()));
        assert_eq!(
            check_owner(&pod, Some(&owned("v")), "p-scratch"),
            Err("PVC d/p-scratch was not created for pod d/p (pod is not owner)".to_owned())
        );
    }
}
