//! Patches of all four kinds: the input is a JSON array of an object and a patch of it.
#![no_main]

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use mini::api::Gvk;
use mini::api::patch;
use mini::api::schema::{self, Strictness};
use serde_json::Value;

fuzz_target!(|input: &[u8]| {
    let Ok([object, change]) = serde_json::from_slice::<[Value; 2]>(input) else { return };
    let mut plain = object.clone();
    let _ = patch::json(&mut plain, &change);
    let mut merged = object.clone();
    if patch::merge(&mut merged, &change).is_ok() {
        let once = merged.clone();
        patch::merge(&mut merged, &change).expect("it was possible before");
        assert_eq!(once, merged, "a merge patch twice is the same as once");
    }
    let ty = schema::of(&Gvk { group: "".into(), version: "v1".into(), kind: "Pod".into() }).expect("the table has pods");
    let mut pod = object.clone();
    if schema::decode(ty, &mut pod, Strictness::Ignore).is_err() {
        return;
    }
    let _ = patch::strategic(ty, &mut pod.clone(), &change);
    let writer = patch::Writer {
        manager: "fuzz",
        api_version: "v1",
        subresource: "",
        now: Timestamp::UNIX_EPOCH,
    };
    let mut config = change;
    if schema::decode(ty, &mut config, Strictness::Ignore).is_ok() {
        let _ = patch::apply(ty, Some(&pod), &config, &writer, true);
    }
});
