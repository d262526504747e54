//! The string formats that are checked (`supportedVersionedFormats` of apiextensions-apiserver); others mean nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::Engine as _;

use crate::api::schema::parse_time;
use crate::api::validation::meta::{dns_label_messages, dns_subdomain_messages};

/// Whether `text` has the format; `None` when the format is not checked.
pub(super) fn matches(format: &str, text: &str) -> Option<bool> {
    // Dashes in names of formats do not count.
    let name: String = format.chars().filter(|c| *c != '-').collect();
    Some(match name.as_str() {
        "datetime" => parse_time(text).is_some(),
        "date" => text.parse::<jiff::civil::Date>().is_ok() && text.len() == 10,
        "duration" => is_duration(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(text),
        "mac" => is_mac(text),
        "uuid" => is_uuid(text, None),
        "uuid3" => is_uuid(text, Some(b'3')),
        "uuid4" => is_uuid(text, Some(b'4')),
        "uuid5" => is_uuid(text, Some(b'5')),
        "hostname" => is_hostname(text),
        "email" => is_email(text),
        "uri" => is_uri(text),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok() && !text.is_empty(),
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "hexcolor" => {
            let digits = text.strip_prefix('#').unwrap_or(text);
            [3, 6].contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit())
        }
        "rgbcolor" => is_rgb(text),
        "isbn" => is_isbn10(text) || is_isbn13(text),
        "isbn10" => is_isbn10(text),
        "isbn13" => is_isbn13(text),
        "creditcard" => is_credit_card(text),
        "ssn" => is_ssn(text),
        "k8sshortname" => dns_label_messages(text).is_empty(),
        "k8slongname" => dns_subdomain_messages(text).is_empty(),
        _ => return None,
    })
}

/// A duration as Go's `time.ParseDuration` or strfmt's words read it: `1h30m`, `2 days`.
fn is_duration(text: &str) -> bool {
    const GO: [&str; 7] = ["ns", "us", "µs", "ms", "s", "m", "h"];
    const WORDS: [&str; 25] = [
        "ns",
        "nano",
        "us",
        "µs",
        "micro",
        "ms",
        "milli",
        "s",
        "sec",
        "m",
        "min",
        "h",
        "hr",
        "hour",
        "d",
        "day",
        "w",
        "wk",
        "week",
        "second",
        "minute",
        "nanosecond",
        "microsecond",
        "millisecond",
        "seconds",
    ];
    let body = text.strip_prefix(['-', '+']).unwrap_or(text);
    if body == "0" {
        return true;
    }
    let mut rest = body;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        if digits == 0 || rest[..digits].parse::<f64>().is_err() {
            return false;
        }
        rest = rest[digits..].trim_start();
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == ' ').unwrap_or(rest.len());
        let name = rest[..unit].to_lowercase();
        let name = name.strip_suffix('s').filter(|singular| WORDS.contains(singular)).unwrap_or(&name);
        if !GO.contains(&name) && !WORDS.contains(&name) {
            return false;
        }
        rest = rest[unit..].trim_start();
        parts += 1;
    }
    parts > 0
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let plain = length == "0" || !length.starts_with('0');
    plain && length.bytes().all(|b| b.is_ascii_digit()) && length.parse::<u8>().is_ok_and(|n| n <= longest)
}

/// As Go's `net.ParseMAC`: 6, 8 or 20 octets with colons or dashes, or groups of four digits with dots.
fn is_mac(text: &str) -> bool {
    let hex = |part: &str, digits: usize| part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit());
    for separator in [':', '-'] {
        let parts: Vec<&str> = text.split(separator).collect();
        if [6, 8, 20].contains(&parts.len()) {
            return parts.iter().all(|part| hex(part, 2));
        }
    }
    let parts: Vec<&str> = text.split('.').collect();
    [3, 4, 10].contains(&parts.len()) && parts.iter().all(|part| hex(part, 4))
}

fn is_uuid(text: &str, version: Option<u8>) -> bool {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
    let dashes = text.len() - digits.len();
    let shaped = dashes == 0 || dashes == 4 && text.split('-').map(str::len).eq([8, 4, 4, 4, 12]) && text.len() == 36;
    digits.len() == 32
        && shaped
        && digits.iter().all(u8::is_ascii_hexdigit)
        && version.is_none_or(|version| digits[12] == version)
}

fn is_hostname(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_alphanumeric() || c == '-')
    };
    !text.is_empty() && text.len() <= 255 && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}

/// As Go's `mail.ParseAddress` for a bare address.
fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else { return false };
    let atom = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
    !local.is_empty()
        && local.chars().all(atom)
        && !local.starts_with('.')
        && !local.ends_with('.')
        && !local.contains("..")
        && is_hostname(domain)
}

/// As Go's `url.ParseRequestURI`: an absolute URI or an absolute path.
fn is_uri(text: &str) -> bool {
    if text.is_empty() || text.chars().any(|c| c.is_control() || c == ' ') {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let starts = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
    starts && !rest.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

fn is_rgb(text: &str) -> bool {
    let inner = text.strip_prefix("rgb(").and_then(|rest| rest.strip_suffix(')'));
    inner.is_some_and(|inner| {
        let parts: Vec<&str> = inner.split(',').map(str::trim).collect();
        parts.len() == 3 && parts.iter().all(|part| part.parse::<u8>().is_ok())
    })
}

/// The digits of a number that may have blanks and dashes.
fn digits(text: &str) -> Vec<u8> {
    text.bytes().filter(|b| *b != b' ' && *b != b'-').collect()
}

fn is_isbn10(text: &str) -> bool {
    let digits = digits(text);
    if digits.len() != 10 || !digits[..9].iter().all(u8::is_ascii_digit) {
        return false;
    }
    let last = match digits[9] {
        b'X' => 10,
        digit if digit.is_ascii_digit() => u32::from(digit - b'0'),
        _ => return false,
    };
    let sum: u32 = digits[..9].iter().zip(1..).map(|(digit, place)| place * u32::from(digit - b'0')).sum();
    (sum + 10 * last) % 11 == 0
}

fn is_isbn13(text: &str) -> bool {
    let digits = digits(text);
    if digits.len() != 13 || !digits.iter().all(u8::is_ascii_digit) {
        return false;
    }
    let weights = [1u32, 3].into_iter().cycle();
    let sum: u32 = digits.iter().zip(weights).map(|(digit, weight)| weight * u32::from(digit - b'0')).sum();
    sum % 10 == 0
}

/// A number of 12 to 19 digits that passes Luhn's check.
fn is_credit_card(text: &str) -> bool {
    let digits = digits(text);
    if !(12..=19).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return false;
    }
    let doubled = |(place, digit): (usize, &u8)| {
        let value = u32::from(digit - b'0');
        if place % 2 == 1 { value * 2 / 10 + value * 2 % 10 } else { value }
    };
    digits.iter().rev().enumerate().map(doubled).sum::<u32>() % 10 == 0
}

fn is_ssn(text: &str) -> bool {
    let parts: Vec<&str> = text.split(['-', ' ']).collect();
    let all_digits = |part: &&str| part.bytes().all(|b| b.is_ascii_digit());
    parts.iter().map(|part| part.len()).eq([3, 2, 4]) && parts.iter().all(all_digits)
}
