//! `configMap` volumes. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use serde_json::Value;

use super::atomic_writer::{File, Payload};
use crate::node::environment::data;

/// The files of a ConfigMap (`None`: it does not exist) under `items`.
///
/// # Errors
/// The kubelet's message after `MountVolume.SetUp failed for volume "x" : `.
pub fn payload(
    object: Option<&Value>,
    name: &str,
    items: Option<&[core::KeyToPath]>,
    mode: u32,
    optional: bool,
) -> Result<Payload, String> {
    let all = match object {
        Some(object) => data(object, "configmaps"),
        None if optional => BTreeMap::new(),
        None => return Err(format!("configmap {name:?} not found")),
    };
    select(all, items, mode, optional, "config")
}

/// The files that `items` chooses (all, when there is none).
pub fn select(
    mut all: BTreeMap<String, Vec<u8>>,
    items: Option<&[core::KeyToPath]>,
    mode: u32,
    optional: bool,
    kind: &str,
) -> Result<Payload, String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(all.into_iter().map(|(key, data)| (key, File { data, mode })).collect());
    };
    let mut files = Payload::new();
    for item in items {
        match all.get_mut(&item.key) {
            Some(data) => {
                let mode = item.mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(mode);
                files.insert(item.path.clone(), File { data: data.clone(), mode });
            }
            None if optional => {}
            None => return Err(format!("references non-existent {kind} key: {}", item.key)),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn items_modes_and_messages() {
        let object = json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "AP8="}});
        let all = payload(Some(&object), "m", None, 0o644, false).expect("files");
        assert_eq!(all["c"], File { data: vec![0, 255], mode: 0o644 });
        let item = |key: &str| core::KeyToPath { key: key.into(), mode: Some(0o400), path: "x/y".into() };
        let one = payload(Some(&object), "m", Some(&[item("a")]), 0o644, false).expect("files");
        assert_eq!(one.keys().collect::<Vec<_>>(), ["x/y"]);
        assert_eq!(one["x/y"].mode, 0o400);
        let missing = payload(Some(&object), "m", Some(&[item("z")]), 0o644, false).expect_err("missing");
        assert_eq!(missing, "references non-existent config key: z");
        assert_eq!(payload(None, "m", None, 0o644, false).expect_err("missing"), "configmap \"m\" not found");
        assert!(payload(None, "m", None, 0o644, true).expect("optional").is_empty());
    }
}
