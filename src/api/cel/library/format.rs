//! Kubernetes' named formats: `format.dns1123Label().validate(name)`.

use super::{Answer, tenth};
use crate::api::cel::eval::Machine;
use crate::api::cel::value::Value;
use crate::api::validation::meta::{
    dns_label_messages, dns_subdomain_messages, dns1035_label_messages, label_value_messages, qualified_name_messages,
};

/// The names that `format.named` knows; each is a function of its own too.
pub(in crate::api::cel) const NAMES: [&str; 14] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
    "cidr",
];

pub(super) fn call<'a>(machine: &mut Machine<'a>, function: &str, _: bool, args: &[Value<'a>]) -> Answer<'a> {
    match (function, args) {
        ("format.named", [Value::String(name)]) => {
            let known = NAMES.into_iter().find(|known| **known == **name);
            Some(Ok(Value::optional(known.map(Value::Format))))
        }
        ("validate", [Value::Format(format), Value::String(text)]) => {
            if let Err(error) = machine.charge(tenth(text.len() as u64)) {
                return Some(Err(error));
            }
            let messages = validate(format, text);
            let list = || Value::list(messages.into_iter().map(Value::text).collect());
            Some(Ok(Value::optional((!validate(format, text).is_empty()).then(list))))
        }
        (name, []) => {
            let name = name.strip_prefix("format.")?;
            NAMES.into_iter().find(|known| *known == name).map(|format| Ok(Value::Format(format)))
        }
        _ => None,
    }
}

/// What is wrong with a text.
fn validate(format: &str, text: &str) -> Vec<String> {
    // A prefix may end with a dash, which the rest of the name follows.
    let prefix = |text: &str| text.strip_suffix('-').map_or_else(|| text.to_owned(), |rest| format!("{rest}a"));
    let checked = |format: &str, message: &str| match crate::api::structural::has_format(format, text) {
        Some(false) => vec![message.to_owned()],
        _ => Vec::new(),
    };
    match format {
        "dns1123Label" => dns_label_messages(text),
        "dns1123Subdomain" => dns_subdomain_messages(text),
        "dns1035Label" => dns1035_label_messages(text),
        "qualifiedName" => qualified_name_messages(text),
        "dns1123LabelPrefix" => dns_label_messages(&prefix(text)),
        "dns1123SubdomainPrefix" => dns_subdomain_messages(&prefix(text)),
        "dns1035LabelPrefix" => dns1035_label_messages(&prefix(text)),
        "labelValue" => label_value_messages(text),
        "uri" => checked("uri", "invalid URI"),
        "uuid" => checked("uuid", "does not match the UUID format"),
        "byte" => checked("byte", "invalid base64"),
        "date" => checked("date", "invalid date"),
        "datetime" => checked("date-time", "invalid datetime"),
        _ => checked("cidr", "invalid CIDR"),
    }
}
