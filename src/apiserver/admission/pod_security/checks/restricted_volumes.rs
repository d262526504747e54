//! Volumes are of kinds that cannot reach the node; what else is needed comes as a PersistentVolume.

use std::collections::BTreeSet;

use super::{Check, Forbidden, Level, Pod, Revision, host_path_volumes, plural, quoted};
use crate::api::meta::{items, text};

pub(super) const CHECK: Check = Check {
    id: "restrictedVolumes",
    level: Level::Restricted,
    revisions: &[Revision { since: 0, overrides: Some(host_path_volumes::CHECK.id), forbids }],
};

const ALLOWED: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

const RESTRICTED: [&str; 21] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "nfs",
    "iscsi",
    "glusterfs",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "fc",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "storageos",
];

fn forbids(pod: &Pod<'_>) -> Option<Forbidden> {
    let volumes = items(&pod.spec["volumes"]).iter();
    let bad: Vec<_> = volumes.filter(|v| !ALLOWED.iter().any(|source| v[*source].is_object())).collect();
    let source = |volume: &serde_json::Value| RESTRICTED.into_iter().find(|s| volume[*s].is_object());
    let types: BTreeSet<&str> = bad.iter().map(|v| source(v).unwrap_or("unknown")).collect();
    (!bad.is_empty()).then(|| Forbidden {
        reason: "restricted volume types",
        detail: format!(
            "{} {} {} {} {}",
            plural(bad.len(), "volume", "volumes"),
            quoted(bad.iter().map(|v| text(&v["name"]))),
            plural(bad.len(), "uses", "use"),
            plural(types.len(), "restricted volume type", "restricted volume types"),
            quoted(types),
        ),
    })
}
