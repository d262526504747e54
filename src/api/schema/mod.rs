//! The one schema of all built-in types: decoding, strictness, defaults, and what patches, OpenAPI and protobuf need.

#[cfg(test)]
pub(crate) mod arbitrary;
mod decode;
mod defaults;
mod json;
mod root;
mod table;
mod time;
mod yaml;

pub use decode::{Strictness, decode, decode_custom, decode_parsed};
pub use defaults::apply_defaults;
pub(crate) use json::parse as parse_any_json;
pub use json::{Parsed, parse_json, summarize};
pub use root::Root;
pub use table::{Descriptions, Field, Kind, ListType, Markers, Shape, Type, TypeId, fingerprint, of};
pub use time::{format as format_time, parse as parse_time};
pub use yaml::parse_yaml;
