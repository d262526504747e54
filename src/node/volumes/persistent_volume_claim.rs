//! `persistentVolumeClaim` volumes: the claim's volume, which is a directory of this machine. Pure.

use std::path::PathBuf;

use serde_json::Value;

const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// The provisioner whose directories are made for their claims.
const PROVISIONER: &str = "k8s.io/minikube-hostpath";

/// What a claim resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The directory or file.
    pub path: PathBuf,
    /// The type of its `hostPath`, as in [`super::host_path`]; `Directory` for `local` volumes.
    pub kind: String,
    /// Whether its files may be given to the pod's `fsGroup`: not those of a path of the machine that somebody wrote down.
    pub managed: bool,
}

/// The name of the volume that a claim is bound to.
///
/// # Errors
/// The kubelet's message when it is missing or not bound.
pub fn volume_name(claim: Option<&Value>, name: &str) -> Result<String, String> {
    let claim = claim.ok_or_else(|| format!("persistentvolumeclaim {name:?} not found"))?;
    let volume = claim["spec"]["volumeName"].as_str().unwrap_or_default();
    if claim["status"]["phase"] != "Bound" || volume.is_empty() {
        return Err(format!("PVC {}/{name} is not bound", crate::api::meta::namespace(claim)));
    }
    if crate::api::meta::is_terminating(claim) {
        tracing::debug!(name, "the claim is being deleted, but pods use it");
    }
    Ok(volume.to_owned())
}

/// Where a volume lies.
///
/// # Errors
/// When it is missing or of a type that this node cannot mount.
pub fn resolve(volume: Option<&Value>, name: &str) -> Result<Claimed, String> {
    let volume = volume.ok_or_else(|| format!("persistentvolume {name:?} not found"))?;
    let spec = &volume["spec"];
    let kind = if spec["local"].is_object() { "local" } else { "hostPath" };
    if spec["mountOptions"].as_array().is_some_and(|options| !options.is_empty()) {
        return Err(format!("Mount options are not supported for volume type {kind:?} on this node"));
    }
    if spec["volumeMode"] == "Block" {
        return Err(format!(
            "persistentvolume {name:?} has volumeMode Block: raw block devices are not supported on this node"
        ));
    }
    if let Some(path) = spec["hostPath"]["path"].as_str() {
        let kind = spec["hostPath"]["type"].as_str().unwrap_or_default().to_owned();
        let managed = crate::api::meta::annotation(volume, PROVISIONED_BY) == Some(PROVISIONER);
        return Ok(Claimed { path: path.into(), kind, managed });
    }
    if let Some(path) = spec["local"]["path"].as_str() {
        return Ok(Claimed { path: path.into(), kind: "Directory".to_owned(), managed: true });
    }
    Err(format!("persistentvolume {name:?} has no volume plugin on this node (hostPath and local are supported)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_bound_claims_resolve() {
        assert!(volume_name(None, "c").expect_err("missing").contains("not found"));
        let pending = json!({"metadata": {"namespace": "d"}, "status": {"phase": "Pending"}});
        assert_eq!(volume_name(Some(&pending), "c").expect_err("pending"), "PVC d/c is not bound");
        let bound = json!({"spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}});
        assert_eq!(volume_name(Some(&bound), "c").as_deref(), Ok("pv"));
        let volume = json!({"spec": {"hostPath": {"path": "/x"}}});
        assert_eq!(resolve(Some(&volume), "pv").expect("known").path, PathBuf::from("/x"));
        assert!(!resolve(Some(&volume), "pv").expect("known").managed);
        let mut ours = volume.clone();
        ours["metadata"] = json!({"annotations": {PROVISIONED_BY: PROVISIONER}});
        assert!(resolve(Some(&ours), "pv").expect("known").managed);
        assert!(resolve(Some(&json!({"spec": {"nfs": {}}})), "pv").is_err());
        let with = |more: Value| {
            let mut volume = volume.clone();
            volume["spec"].as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
            resolve(Some(&volume), "pv").expect_err("refused")
        };
        let refused = "Mount options are not supported for volume type \"hostPath\" on this node";
        assert_eq!(with(json!({"mountOptions": ["ro"]})), refused);
        assert!(with(json!({"volumeMode": "Block"})).contains("volumeMode Block"));
    }
}
