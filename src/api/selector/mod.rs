//! Label and field selectors, with Kubernetes' grammar and messages.

mod field;
mod label;

pub use field::{FieldSelector, FieldTerm};
pub use label::{LabelSelector, Operator, Requirement};
