//! Label and field selectors and JSONPath: what is accepted prints as something that means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mini::api::jsonpath::JsonPath;
use mini::api::selector::{FieldSelector, LabelSelector};
use serde_json::json;

fuzz_target!(|text: &str| {
    if let Ok(selector) = LabelSelector::parse(text) {
        let printed = selector.to_string();
        let again = LabelSelector::parse(&printed).expect("what was printed can be parsed");
        assert_eq!(printed, again.to_string());
    }
    if let Ok(selector) = FieldSelector::parse(text) {
        let _ = selector.matches(|field| Some(field.to_owned()));
    }
    if let Some(path) = JsonPath::parse(text) {
        let _ = path.find(&json!({"a": [{"b": 1}, {"b": "x", "c": null}], "d": {"e": true}}));
    }
});
