//! Kubernetes API objects as values: kinds, schema, defaults, validation, selectors, patches. No I/O.

pub mod app_armor;
pub mod cel;
pub mod certificates;
pub mod cron;
pub mod flow_control;
pub mod index_intervals;
pub mod int_or_string;
pub mod jsonpath;
pub mod kind;
pub mod kinds;
pub mod meta;
pub mod openapi;
pub mod patch;
pub mod pod;
pub mod printers;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod schema;
pub mod selector;
pub mod status;
pub mod structural;
pub mod validation;
pub mod webhook_client;

pub use kind::{Gvk, Gvr, Kind};
pub use status::{Status, StatusResult};
