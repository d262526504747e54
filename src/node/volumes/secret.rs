//! `secret` volumes. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use serde_json::Value;

use super::atomic_writer::Payload;
use super::config_map::select;
use crate::node::environment::data;

/// The files of a Secret (`None`: it does not exist) under `items`.
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
        Some(object) => data(object, "secrets"),
        None if optional => BTreeMap::new(),
        None => return Err(format!("secret {name:?} not found")),
    };
    select(all, items, mode, optional, "secret")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_decoded() {
        let object = json!({"data": {"password": "aHVudGVyMg=="}});
        assert_eq!(payload(Some(&object), "s", None, 0o600, false).expect("files")["password"].data, b"hunter2");
        assert_eq!(payload(None, "s", None, 0o600, false).expect_err("missing"), "secret \"s\" not found");
    }
}
