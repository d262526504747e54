//! JSON bodies: whatever a client sends is refused or becomes an object of the kind's form, and that form is stable.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mini::api::Gvk;
use mini::api::schema::{self, Strictness};

fuzz_target!(|body: &[u8]| {
    let Ok(mut parsed) = schema::parse_json(body, "Pod") else { return };
    let ty = schema::of(&Gvk { group: "".into(), version: "v1".into(), kind: "Pod".into() }).expect("the table has pods");
    if schema::decode_parsed(ty, &mut parsed, Strictness::Warn).is_err() {
        return;
    }
    let mut object = parsed.value;
    schema::apply_defaults(ty, &mut object);
    let mut again = object.clone();
    schema::decode(ty, &mut again, Strictness::Strict).expect("what was decoded can be decoded");
    assert_eq!(object, again);
});
