//! gnostic's `openapi.v2.Document` in protobuf, from the JSON form of its parts (`OpenAPIv2.proto`).

use serde_json::Value;

/// A protobuf message in the making.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(u8::try_from(value & 0x7f).expect("seven bits") | 0x80);
            value >>= 7;
        }
        self.0.push(u8::try_from(value).expect("seven bits"));
    }
    fn bytes(&mut self, tag: u64, bytes: &[u8]) {
        self.varint(tag << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
    fn text(&mut self, tag: u64, value: &Value) {
        if let Some(text) = value.as_str() {
            self.bytes(tag, text.as_bytes());
        }
    }
    fn texts(&mut self, tag: u64, value: &Value) {
        value.as_array().into_iter().flatten().for_each(|text| self.text(tag, text));
    }
    fn flag(&mut self, tag: u64, value: &Value) {
        if value == true {
            self.varint(tag << 3);
            self.varint(1);
        }
    }
    fn message(&mut self, tag: u64, inner: &Message) {
        self.bytes(tag, &inner.0);
    }
    /// `Any { yaml }`: JSON is YAML.
    fn any(&mut self, tag: u64, value: &Value) {
        let mut any = Message::default();
        any.bytes(2, format!("{value}\n").as_bytes());
        self.message(tag, &any);
    }
    /// `vendor_extension`: all members that begin with `x-`.
    fn extensions(&mut self, tag: u64, value: &Value) {
        for (name, value) in value.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-")) {
            let mut named = Message::default();
            named.bytes(1, name.as_bytes());
            named.any(2, value);
            self.message(tag, &named);
        }
    }
}

/// `NamedX { name = 1, value = 2 }`.
fn named(name: &str, value: &Message) -> Message {
    let mut message = Message::default();
    message.bytes(1, name.as_bytes());
    message.message(2, value);
    message
}

/// The document.
pub(super) fn document(
    info: &Value,
    schemas: impl Iterator<Item = (String, Value)>,
    paths: impl Iterator<Item = (String, Value)>,
) -> Vec<u8> {
    let mut document = Message::default();
    document.bytes(1, b"2.0");
    let mut about = Message::default();
    about.text(1, &info["title"]);
    about.text(2, &info["version"]);
    document.message(2, &about);
    let mut all = Message::default();
    for (name, item) in paths {
        all.message(2, &named(&name, &path_item(&item)));
    }
    document.message(8, &all);
    let mut definitions = Message::default();
    for (name, value) in schemas {
        definitions.message(1, &named(&name, &schema(&value)));
    }
    document.message(9, &definitions);
    document.0
}

fn schema(value: &Value) -> Message {
    let mut message = Message::default();
    message.text(1, &value["$ref"]);
    message.text(2, &value["format"]);
    message.text(4, &value["description"]);
    if let Some(default) = value.get("default") {
        message.any(5, default);
    }
    message.texts(19, &value["required"]);
    if let Some(inner) = value.get("additionalProperties") {
        let mut item = Message::default();
        item.message(1, &schema(inner));
        message.message(21, &item);
    }
    if value["type"].is_string() {
        let mut kind = Message::default();
        kind.text(1, &value["type"]);
        message.message(22, &kind);
    }
    if let Some(inner) = value.get("items") {
        let mut items = Message::default();
        items.message(1, &schema(inner));
        message.message(23, &items);
    }
    if let Some(properties) = value["properties"].as_object() {
        let mut all = Message::default();
        for (name, property) in properties {
            all.message(1, &named(name, &schema(property)));
        }
        message.message(25, &all);
    }
    message.extensions(31, value);
    message
}

fn path_item(value: &Value) -> Message {
    let mut message = Message::default();
    for (tag, verb) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(operation) = value.get(verb) {
            message.message(tag, &self::operation(operation));
        }
    }
    for parameter in value["parameters"].as_array().into_iter().flatten() {
        message.message(9, &self::parameter(parameter));
    }
    message
}

fn operation(value: &Value) -> Message {
    let mut message = Message::default();
    message.texts(1, &value["tags"]);
    message.text(3, &value["description"]);
    message.text(5, &value["operationId"]);
    message.texts(6, &value["produces"]);
    message.texts(7, &value["consumes"]);
    for parameter in value["parameters"].as_array().into_iter().flatten() {
        message.message(8, &self::parameter(parameter));
    }
    let mut responses = Message::default();
    for (code, response) in value["responses"].as_object().into_iter().flatten() {
        let mut inner = Message::default();
        inner.text(1, &response["description"]);
        if let Some(answer) = response.get("schema") {
            let mut item = Message::default();
            item.message(1, &schema(answer));
            inner.message(2, &item);
        }
        let mut value = Message::default();
        value.message(1, &inner);
        responses.message(1, &named(code, &value));
    }
    message.message(9, &responses);
    message.texts(10, &value["schemes"]);
    message.extensions(13, value);
    message
}

/// `ParametersItem { parameter: Parameter { body_parameter | non_body_parameter } }`.
fn parameter(value: &Value) -> Message {
    let mut parameter = Message::default();
    if value["in"] == "body" {
        let mut body = Message::default();
        body.text(1, &value["description"]);
        body.text(2, &value["name"]);
        body.text(3, &value["in"]);
        body.flag(4, &value["required"]);
        body.message(5, &schema(&value["schema"]));
        parameter.message(1, &body);
    } else {
        // QueryParameterSubSchema has allow_empty_value at 5 and the type at 6, PathParameterSubSchema the type at 5.
        let path = value["in"] == "path";
        let mut inner = Message::default();
        inner.flag(1, &value["required"]);
        inner.text(2, &value["in"]);
        inner.text(3, &value["description"]);
        inner.text(4, &value["name"]);
        inner.text(if path { 5 } else { 6 }, &value["type"]);
        let mut non_body = Message::default();
        non_body.message(if path { 4 } else { 3 }, &inner);
        parameter.message(2, &non_body);
    }
    let mut item = Message::default();
    item.message(1, &parameter);
    item
}
