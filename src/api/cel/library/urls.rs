//! URLs.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Uri;

use super::{Answer, tenth};
use crate::api::cel::eval::{Error, Machine};
use crate::api::cel::value::{Key, Map, Value};

/// An absolute URL or an absolute path, without a fragment.
fn parse(text: &str) -> Option<Uri> {
    let absolute = text.starts_with('/') || text.split_once("://").is_some_and(|(_, rest)| !rest.is_empty());
    if !absolute || text.contains('#') {
        return None;
    }
    text.parse::<Uri>().ok().filter(|uri| uri.scheme().is_some() || uri.authority().is_none())
}

/// `%41` to `A`.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let hex = |place: usize| {
            bytes.get(place).and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok())
        };
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(high * 16 + low);
                at += 3;
            }
            (b'+', ..) => {
                out.push(b' ');
                at += 1;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub(super) fn call<'a>(machine: &mut Machine<'a>, function: &str, method: bool, args: &[Value<'a>]) -> Answer<'a> {
    if let ("url" | "isURL", false, [Value::String(text)]) = (function, method, args) {
        if let Err(error) = machine.charge(tenth(text.len() as u64)) {
            return Some(Err(error));
        }
        return Some(match (function, parse(text)) {
            ("isURL", parsed) => Ok(Value::Bool(parsed.is_some())),
            (_, Some(url)) => Ok(Value::Url(Arc::new(url))),
            (_, None) => {
                Err(Error::new(format!("URL parse error during conversion from string: invalid URL {:?}", &**text)))
            }
        });
    }
    let [Value::Url(url)] = args else { return None };
    let host = url.host().unwrap_or_default();
    Some(Ok(match function {
        "getScheme" => Value::text(url.scheme_str().unwrap_or_default()),
        "getHost" => {
            let authority = url.authority().map_or("", http::uri::Authority::as_str);
            Value::text(authority.rsplit('@').next().unwrap_or_default())
        }
        "getHostname" => Value::text(host.trim_start_matches('[').trim_end_matches(']')),
        "getPort" => Value::text(url.port().map(|port| port.as_str().to_owned()).unwrap_or_default()),
        "getEscapedPath" => Value::text(if url.path() == "/" && url.scheme().is_some() { "" } else { url.path() }),
        "getQuery" => {
            let mut query: BTreeMap<Key, Vec<Value<'a>>> = BTreeMap::new();
            for pair in url.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                let name = Key::String(unescape(name).into());
                query.entry(name).or_default().push(Value::text(unescape(value)));
            }
            let query = query.into_iter().map(|(name, values)| (name, Value::list(values))).collect();
            Value::Map(Map::Made(Arc::new(query)))
        }
        _ => return None,
    }))
}
