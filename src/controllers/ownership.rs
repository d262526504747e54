//! Adoption and release of objects by their controller (`ControllerRefManager` of kube-controller-manager).

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use serde_json::json;

use super::plan::Action;
use crate::client::Patch;
use crate::client::cache::Key;
use crate::client::selector;
use crate::client::typed::{Meta, Typed, gvr};

/// The reference with which a controller marks what it owns.
pub fn controller_reference<T: Typed>(owner: &T) -> OwnerReference {
    OwnerReference {
        api_version: T::API_VERSION.into(),
        kind: T::KIND.into(),
        name: owner.name().into(),
        uid: owner.uid().into(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Of `candidates` those that `owner` controls and selects; orphans that it selects are adopted and what it no longer
/// selects is released by the returned actions.
pub fn claim<O: Typed, T: Typed>(
    owner: &O,
    wanted: Option<&LabelSelector>,
    candidates: impl IntoIterator<Item = Arc<T>>,
) -> (Vec<Arc<T>>, Vec<Action>) {
    claim_with(owner, |object: &T| selector::matches(wanted, object.labels()), candidates, None)
}

/// [`claim`] for owners that select by more than labels.
pub fn claim_if<O: Typed, T: Typed>(
    owner: &O,
    selects: impl Fn(&T) -> bool,
    candidates: impl IntoIterator<Item = Arc<T>>,
) -> (Vec<Arc<T>>, Vec<Action>) {
    claim_with(owner, selects, candidates, None)
}

/// [`claim`] for an owner whose objects carry a finalizer of its own: it comes with the adoption and goes with the release.
pub fn claim_tracked<O: Typed, T: Typed>(
    owner: &O,
    wanted: Option<&LabelSelector>,
    candidates: impl IntoIterator<Item = Arc<T>>,
    finalizer: &str,
) -> (Vec<Arc<T>>, Vec<Action>) {
    claim_with(owner, |object: &T| selector::matches(wanted, object.labels()), candidates, Some(finalizer))
}

fn claim_with<O: Typed, T: Typed>(
    owner: &O,
    selects: impl Fn(&T) -> bool,
    candidates: impl IntoIterator<Item = Arc<T>>,
    finalizer: Option<&str>,
) -> (Vec<Arc<T>>, Vec<Action>) {
    let (mut claimed, mut actions) = (Vec::new(), Vec::new());
    for object in candidates {
        let controller = object.controller();
        if controller.is_some_and(|reference| reference.uid != owner.uid()) {
            continue;
        }
        let selected = selects(&object);
        match controller {
            Some(_) if selected => claimed.push(object),
            Some(_) if owner.is_terminating() => {}
            Some(_) => actions.push(release(owner, &*object, finalizer)),
            None if selected && !owner.is_terminating() && !object.is_terminating() => {
                actions.push(adopt(owner, &*object, finalizer));
                claimed.push(object);
            }
            None => {}
        }
    }
    (claimed, actions)
}

fn adopt<O: Typed, T: Typed>(owner: &O, object: &T, finalizer: Option<&str>) -> Action {
    let mut patch = json!({"metadata": {"ownerReferences": [controller_reference(owner)], "uid": object.uid()}});
    if let Some(finalizer) = finalizer {
        patch["metadata"]["finalizers"] = json!([finalizer]);
    }
    Action::patch(gvr::<T>(), Key::of(object), "", Patch::Strategic(patch))
}

fn release<O: Typed, T: Typed>(owner: &O, object: &T, finalizer: Option<&str>) -> Action {
    let reference = json!([{"$patch": "delete", "uid": owner.uid()}]);
    let mut patch = json!({"metadata": {"ownerReferences": reference, "uid": object.uid()}});
    if let Some(finalizer) = finalizer {
        patch["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
    }
    // NotFound: it is gone. Invalid: it lost its owner already, or has another uid.
    Action::patch(gvr::<T>(), Key::of(object), "", Patch::Strategic(patch)).tolerate(&["NotFound", "Invalid"])
}
