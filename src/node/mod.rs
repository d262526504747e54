//! The node agent: pods, their sandboxes and containers, images, volumes, probes.
//!
//! [`Node`] watches the pods that are bound to it and keeps a worker for each (`pod_worker`). The worker's decisions are
//! pure (`sync_pod`, `status`, `adopt`); its I/O is in `pod_tasks` and `container_start`. `server` answers the kubelet API.
//!
//! There are no resync timers and, on a node that is the whole cluster, no heartbeats (see `node_status`): timers exist for
//! deadlines (grace periods, backoffs, tokens, active deadlines) and for probes, which are periodic by their nature.

mod admission;
mod adopt;
pub mod app_armor;
mod backoff;
mod container_start;
mod context;
pub mod doctor;
mod downward;
mod environment;
mod host_files;
pub mod image;
mod lifecycle;
pub mod namespaces;
pub mod network;
#[expect(clippy::module_inception, reason = "the Node object of the node agent")]
mod node;
mod node_status;
mod objects;
pub mod parts;
mod pod_state;
mod pod_tasks;
mod pod_worker;
mod probes;
mod quantity;
mod registration;
mod resize;
pub mod root_dir;
pub mod runtime;
mod security;
mod server;
#[cfg(test)]
mod simulation;
mod status;
mod sync_pod;
#[cfg(test)]
mod tests;
mod volumes;

use std::ffi::OsString;
use std::process::ExitCode;

pub use context::Options;
pub use network::PodNetwork;
pub use node::Node;
pub use node_status::Machine;
pub use registration::register;
pub use volumes::tear_down as tear_down_volumes;

/// Runs as a pod's shim or as the holder of the node's namespaces when the command line says so. To be asked before
/// anything else: both are single-threaded.
pub fn entry() -> Option<ExitCode> {
    let args: Vec<OsString> = std::env::args_os().collect();
    match args.get(1)?.to_str()? {
        runtime::shim::SHIM => Some(runtime::shim::shim_main(&args[2..])),
        namespaces::HOLDER => Some(namespaces::holder_main(&args[2..])),
        _ => None,
    }
}
