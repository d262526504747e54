//! Protobuf bodies.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let _ = mini::api::protobuf::decode(body);
    // Most inputs would end at the magic number.
    let mut whole = b"k8s\0".to_vec();
    whole.extend_from_slice(body);
    let _ = mini::api::protobuf::decode(&whole);
});
