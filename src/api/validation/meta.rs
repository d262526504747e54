//! Names, labels and annotations (`k8s.io/apimachinery/pkg/util/validation` and `api/validation`).

use serde_json::Value;

use super::{Errors, invalid_all};
use crate::api::meta::text;
use crate::api::status::FieldError;

/// The limit of all annotations of an object together (`TotalAnnotationSizeLimitB`).
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

const QUALIFIED_NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start \
    and end \
    with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const QUALIFIED_SHAPE: &str = "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must \
    start \
    and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. \
    'example.com/MyName')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
    '.', \
    and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
    validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const DNS_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
    must \
    start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS_1035_LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start \
    with an \
    alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
    validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must \
    consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. \
    '*.example.com', regex used for validation is \
    '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// Starts and ends with `edge`, and between them `inner`; not empty.
fn has_shape(text: &str, edge: impl Fn(u8) -> bool, inner: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|b| edge(*b)) && bytes.last().is_some_and(|b| edge(*b)) && bytes.iter().all(|b| inner(*b))
}

fn is_name_part(text: &str) -> bool {
    has_shape(text, |b| b.is_ascii_alphanumeric(), |b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn is_dns_label(text: &str) -> bool {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    has_shape(text, edge, |b| edge(b) || b == b'-')
}

/// Messages against a label key, annotation key, resource name and the like (`IsQualifiedName`).
pub fn qualified_name_messages(name: &str) -> Vec<String> {
    let mut messages = Vec::new();
    let parts: Vec<&str> = name.split('/').collect();
    let part = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                messages.push("prefix part must be non-empty".to_owned());
            } else {
                messages.extend(dns_subdomain_messages(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => return vec![QUALIFIED_SHAPE.to_owned()],
    };
    if part.is_empty() {
        messages.push("name part must be non-empty".to_owned());
    } else if part.len() > 63 {
        messages.push(format!("name part {}", too_long(63)));
    }
    if !is_name_part(part) {
        messages.push(QUALIFIED_NAME.to_owned());
    }
    messages
}

/// Messages against a label value (`IsValidLabelValue`).
pub fn label_value_messages(value: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if value.len() > 63 {
        messages.push(too_long(63));
    }
    if !value.is_empty() && !is_name_part(value) {
        messages.push(LABEL_VALUE.to_owned());
    }
    messages
}

/// Messages against an RFC 1123 label (`IsDNS1123Label`): names of containers, volumes, namespaces.
pub fn dns_label_messages(name: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if name.len() > 63 {
        messages.push(too_long(63));
    }
    if !is_dns_label(name) {
        messages.push(DNS_LABEL.to_owned());
    }
    messages
}

/// Messages against an RFC 1035 label (`IsDNS1035Label`): names of services.
pub fn dns1035_label_messages(name: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if name.len() > 63 {
        messages.push(too_long(63));
    }
    if !is_dns_label(name) || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        messages.push(DNS_1035_LABEL.to_owned());
    }
    messages
}

/// Messages against an RFC 1123 subdomain (`IsDNS1123Subdomain`): most names.
pub fn dns_subdomain_messages(name: &str) -> Vec<String> {
    crate::api::meta::validate_subdomain(name)
}

/// Messages against a subdomain whose first label is `*` (`IsWildcardDNS1123Subdomain`): hosts of Ingresses.
pub fn wildcard_subdomain_messages(name: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if name.len() > 253 {
        messages.push(too_long(253));
    }
    if !name.strip_prefix("*.").is_some_and(|rest| rest.split('.').all(is_dns_label)) {
        messages.push(WILDCARD.to_owned());
    }
    messages
}

/// `acme.io/foo` (`IsDomainPrefixedPath`).
pub fn domain_prefixed_path(errors: &mut Errors, value: &Value, path: &str) {
    let given = text(value);
    if given.is_empty() {
        return errors.push(FieldError::required(path, ""));
    }
    let Some((host, rest)) = given.split_once('/').filter(|(host, rest)| !host.is_empty() && !rest.is_empty()) else {
        let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        return errors.push(FieldError::invalid(path, value, detail));
    };
    invalid_all(errors, path, &host.into(), dns_subdomain_messages(host));
    if !rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b)) {
        let detail = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
        errors.push(FieldError::invalid(path, &rest.into(), detail));
    }
}

/// Messages against a name that is one path segment (`path.IsValidPathSegmentName`): RBAC objects.
pub fn path_segment_messages(name: &str) -> Vec<String> {
    if name == "." || name == ".." {
        return vec![format!("may not be '{name}'")];
    }
    ["/", "%"].iter().filter(|c| name.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// Labels of an object or template (`ValidateLabels`).
pub fn labels(labels: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        errors.extend(label_name(key, path));
        // Also a bad value is reported at the map itself.
        let messages = label_value_messages(value.as_str().unwrap_or_default());
        errors.extend(messages.iter().map(|m| FieldError::invalid(path, value, m)));
    }
    errors
}

/// One label key (`ValidateLabelName`).
pub fn label_name(key: &str, path: &str) -> Vec<FieldError> {
    qualified_name_messages(key).iter().map(|m| FieldError::invalid(path, &key.into(), m)).collect()
}

/// Annotations (`ValidateAnnotations`): keys in lower case are qualified names, and the whole is not too large.
pub fn annotations(annotations: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        let messages = qualified_name_messages(&key.to_lowercase());
        errors.extend(messages.iter().map(|m| FieldError::invalid(path, &key.as_str().into(), m)));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_LIMIT {
        errors.push(FieldError::too_long(path, ANNOTATIONS_LIMIT));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qualified_names() {
        for name in ["a", "a/b", "example.com/My_name.1", "1"] {
            assert_eq!(qualified_name_messages(name), Vec::<String>::new(), "{name}");
        }
        assert_eq!(qualified_name_messages("/b"), ["prefix part must be non-empty"]);
        assert_eq!(qualified_name_messages("a/b/c"), [QUALIFIED_SHAPE]);
        assert_eq!(qualified_name_messages("")[0], "name part must be non-empty");
        assert_eq!(qualified_name_messages(&"a".repeat(64)), ["name part must be no more than 63 bytes"]);
    }

    #[test]
    fn labels_of_dns() {
        assert!(dns_label_messages("9-a").is_empty() && dns1035_label_messages("a-9").is_empty());
        assert_eq!(dns1035_label_messages("9-a"), [DNS_1035_LABEL]);
        assert_eq!(dns_label_messages("A"), [DNS_LABEL]);
        assert_eq!(dns_label_messages(""), [DNS_LABEL]);
    }
}
