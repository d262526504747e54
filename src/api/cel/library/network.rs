//! IP addresses and CIDR ranges.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Answer, tenth};
use crate::api::cel::eval::{Error, Machine};
use crate::api::cel::value::Value;

/// An address without zone and without the IPv6 form of IPv4.
fn parse_ip(text: &str) -> Result<IpAddr, Error> {
    let wrong = |why: &str| Error::new(format!("IP Address {text:?} parse error during conversion from string: {why}"));
    let address: IpAddr = text.parse().map_err(|_| wrong("unable to parse IP"))?;
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(Error::new(format!("IPv4-mapped IPv6 address {text:?} is not allowed")))
        }
        _ => Ok(address),
    }
}

fn parse_cidr(text: &str) -> Result<IpNet, Error> {
    let wrong = || Error::new(format!("network address parse error during conversion from string: {text:?}"));
    let network: IpNet = text.parse().map_err(|_| wrong())?;
    parse_ip(&network.addr().to_string()).map(|_| network)
}

pub(super) fn call<'a>(machine: &mut Machine<'a>, function: &str, method: bool, args: &[Value<'a>]) -> Answer<'a> {
    if let (false, [Value::String(text)]) = (method, args) {
        if !["ip", "isIP", "ip.isCanonical", "cidr", "isCIDR"].contains(&function) {
            return None;
        }
        if let Err(error) = machine.charge(tenth(text.len() as u64)) {
            return Some(Err(error));
        }
        return Some(match function {
            "ip" => parse_ip(text).map(Value::Ip),
            "isIP" => Ok(Value::Bool(parse_ip(text).is_ok())),
            "ip.isCanonical" => parse_ip(text).map(|address| Value::Bool(address.to_string() == **text)),
            "cidr" => parse_cidr(text).map(Value::Cidr),
            _ => Ok(Value::Bool(parse_cidr(text).is_ok())),
        });
    }
    match args {
        [Value::Ip(address)] => of_ip(function, *address),
        [Value::Cidr(network), rest @ ..] => of_cidr(function, network, rest),
        _ => None,
    }
}

fn of_ip<'a>(function: &str, address: IpAddr) -> Answer<'a> {
    let link_local_unicast = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    };
    let link_local_multicast = match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    Some(Ok(match function {
        "family" => Value::Int(if address.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Value::Bool(address.is_unspecified()),
        "isLoopback" => Value::Bool(address.is_loopback()),
        "isLinkLocalMulticast" => Value::Bool(link_local_multicast),
        "isLinkLocalUnicast" => Value::Bool(link_local_unicast),
        "isGlobalUnicast" => Value::Bool(
            !address.is_unspecified()
                && !address.is_loopback()
                && !address.is_multicast()
                && !link_local_unicast
                && !is_broadcast,
        ),
        "string" => Value::text(address.to_string()),
        _ => return None,
    }))
}

fn of_cidr<'a>(function: &str, network: &IpNet, args: &[Value<'a>]) -> Answer<'a> {
    let address = |value: &Value<'a>| match value {
        Value::Ip(address) => Some(Ok(*address)),
        Value::String(text) => Some(parse_ip(text)),
        _ => None,
    };
    let other = |value: &Value<'a>| match value {
        Value::Cidr(network) => Some(Ok(*network)),
        Value::String(text) => Some(parse_cidr(text)),
        _ => None,
    };
    Some(match (function, args) {
        ("containsIP", [value]) => address(value)?.map(|address| Value::Bool(network.contains(&address))),
        ("containsCIDR", [value]) => other(value)?
            .map(|other| Value::Bool(network.trunc().contains(&other) && other.prefix_len() >= network.prefix_len())),
        ("ip", []) => Ok(Value::Ip(network.addr())),
        ("masked", []) => Ok(Value::Cidr(network.trunc())),
        ("prefixLength", []) => Ok(Value::Int(i64::from(network.prefix_len()))),
        _ => return None,
    })
}
