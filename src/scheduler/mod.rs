//! The scheduler: finds a node for every pod that has none. [`world`] takes events in and gives attempts out; it asks
//! [`queue`] who is next, [`cycle`] and its [`plugins`] where that pod goes, and [`preemption`] who has to make room.
//! [`runner`] and [`binder`] do the I/O.

pub mod binder;
mod budgets;
pub mod cycle;
#[cfg(test)]
mod cycle_tests;
mod diagnosis;
pub mod happened;
pub mod node_info;
pub mod nodes;
pub mod plugins;
pub mod pod_index;
pub mod pod_info;
pub mod preemption;
#[cfg(test)]
mod preemption_tests;
pub mod queue;
pub mod resources;
pub mod runner;
#[cfg(test)]
mod runner_tests;
pub mod selector;
pub mod volumes;
pub mod workloads;
pub mod world;

pub use runner::{Handle, start};

/// The scheduler that pods ask for when they name none.
pub const DEFAULT_SCHEDULER: &str = "default-scheduler";
/// The user as whom the scheduler acts.
pub const USER: &str = "system:kube-scheduler";
