//! Ports and addresses.

use std::net::IpAddr;

use serde_json::Value;

use super::{Errors, invalid_all};
use crate::api::status::FieldError;

/// The message against something that is no IP address.
pub const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
/// The message against something that is no range of addresses.
pub const NOT_A_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
/// The message against a port number out of range.
pub const NOT_A_PORT: &str = "must be between 1 and 65535, inclusive";

/// A port number from 1 to 65535.
pub fn port_number(errors: &mut Errors, path: &str, value: &Value) {
    if !value.as_i64().is_some_and(|port| (1..=65535).contains(&port)) {
        errors.push(FieldError::invalid(path, value, NOT_A_PORT));
    }
}

/// A number or the name of a port (`ValidatePortNumOrName`).
pub fn port_number_or_name(errors: &mut Errors, path: &str, value: &Value) {
    match value.as_str() {
        Some(name) => invalid_all(errors, path, value, port_name_messages(name)),
        None if value.is_null() => errors.push(FieldError::invalid(path, &0.into(), NOT_A_PORT)),
        None => port_number(errors, path, value),
    }
}

/// Messages against the name of a port (`IsValidPortName`).
pub fn port_name_messages(name: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if name.len() > 15 {
        messages.push("must be no more than 15 bytes");
    }
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        messages.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        messages.push("must contain at least one letter or number (a-z, 0-9)");
    }
    if name.contains("--") {
        messages.push("must not contain consecutive hyphens");
    }
    if name.starts_with('-') || name.ends_with('-') {
        messages.push("must not begin or end with a hyphen");
    }
    messages.into_iter().map(str::to_owned).collect()
}

/// An IP address, or an error.
pub fn ip(errors: &mut Errors, path: &str, value: &Value) -> Option<IpAddr> {
    let address = value.as_str().and_then(|text| text.parse().ok());
    if address.is_none() {
        errors.push(FieldError::invalid(path, value, NOT_AN_IP));
    }
    address
}

/// An address that can be somebody else's: not unspecified, loopback, link-local (`ValidateNonSpecialIP`).
pub fn non_special_ip(errors: &mut Errors, path: &str, value: &Value) {
    let Some(address) = ip(errors, path, value) else { return };
    let (local_unicast, local_multicast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    let mut refuse = |detail: &str| errors.push(FieldError::invalid(path, value, detail));
    if address.is_unspecified() {
        refuse(&format!("may not be unspecified ({address})"));
    }
    if address.is_loopback() {
        refuse("may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if local_unicast {
        refuse("may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if local_multicast {
        refuse("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// The message against an address or a range that is written otherwise than it should be.
pub fn canonical_message(canonical: &impl std::fmt::Display) -> String {
    format!("must be in canonical form (\"{canonical}\")")
}

/// Whether the text is an address with a prefix length.
pub fn is_cidr(text: &str) -> bool {
    text.parse::<ipnet::IpNet>().is_ok()
}
