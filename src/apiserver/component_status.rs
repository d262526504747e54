//! ComponentStatuses: whether the storage and the parts of the control plane that were reported to the server work.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::registry::storage_failed;
use super::{ApiServer, codec};
use crate::api::{Kind, StatusResult};
use crate::storage::Entry;

/// What clients are warned of.
pub(crate) const DEPRECATED: &str = "v1 ComponentStatus is deprecated in v1.19+";

type Check = Box<dyn Fn() -> bool + Send>;

/// The parts, by their names.
#[derive(Default)]
pub(crate) struct Components(Mutex<BTreeMap<&'static str, Check>>);

impl ApiServer {
    /// Lets ComponentStatuses tell of a part of the control plane (`scheduler`) whether it runs.
    pub fn report_component(&self, name: &'static str, runs: impl Fn() -> bool + Send + 'static) {
        self.components.0.lock().expect("no panic under this lock").insert(name, Box::new(runs));
    }
}

/// All of them, and the revision at which they were asked.
pub(crate) async fn entries(server: &ApiServer, kind: &Kind) -> StatusResult<(Vec<Arc<Entry>>, u64)> {
    let storage = server.storage.revision().await;
    let mut results: Vec<(&str, Result<(), String>)> = {
        let components = server.components.0.lock().expect("no panic under this lock");
        let ask = |runs: &Check| if runs() { Ok(()) } else { Err("it does not run".to_owned()) };
        components.iter().map(|(name, runs)| (*name, ask(runs))).collect()
    };
    results.push(("etcd-0", storage.as_ref().map(|_| ()).map_err(ToString::to_string)));
    results.sort();
    let entry = |(name, result): (&str, Result<(), String>)| {
        let condition = match result {
            Ok(()) => json!({"type": "Healthy", "status": "True", "message": "ok"}),
            Err(error) => json!({"type": "Healthy", "status": "False", "error": error}),
        };
        let object = json!({
            "kind": kind.kind, "apiVersion": kind.gvr.api_version(), "metadata": {"name": name}, "conditions": [condition],
        });
        let body = codec::encode(kind, &object);
        Arc::new(Entry::new(Arc::from(name), 0, [body.before, body.after].concat().into()))
    };
    Ok((results.into_iter().map(entry).collect(), storage.map_err(storage_failed)?))
}
