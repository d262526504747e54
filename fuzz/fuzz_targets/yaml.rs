//! YAML bodies.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mini::api::Gvk;
use mini::api::schema::{self, Strictness};

fuzz_target!(|body: &[u8]| {
    let Ok(mut parsed) = schema::parse_yaml(body, "ConfigMap") else { return };
    let ty = schema::of(&Gvk { group: "".into(), version: "v1".into(), kind: "ConfigMap".into() }).expect("the table has ConfigMaps");
    let _ = schema::decode_parsed(ty, &mut parsed, Strictness::Warn);
});
