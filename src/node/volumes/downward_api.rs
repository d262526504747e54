//! `downwardAPI` volumes. Pure.

use k8s_openapi::api::core::v1 as core;

use super::atomic_writer::{File, Payload};
use crate::node::downward::{self, Facts};

/// The files of the items.
///
/// # Errors
/// A field or resource that does not exist.
pub fn payload(
    pod: &core::Pod,
    facts: &Facts,
    items: Option<&[core::DownwardAPIVolumeFile]>,
    mode: u32,
) -> Result<Payload, String> {
    let mut files = Payload::new();
    for item in items.into_iter().flatten() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => downward::field(pod, facts, &field.field_path)?,
            (None, Some(resource)) => downward::resource(pod, facts, "", resource)?,
            (None, None) => continue,
        };
        let mode = item.mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(mode);
        files.insert(item.path.clone(), File { data: text.into_bytes(), mode });
    }
    Ok(files)
}
