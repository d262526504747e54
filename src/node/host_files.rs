//! A pod's host name, `/etc/hosts` and `/etc/resolv.conf`. Pure.

use std::fmt::Write as _;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::runtime::DnsConfig;

/// Host name and domain (`GeneratePodHostNameAndDomain`): the name is cut to 63 bytes.
pub fn hostname(pod: &core::Pod, cluster_domain: &str) -> (String, String) {
    let spec = pod.spec.as_ref();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(name) = spec.and_then(|s| s.hostname_override.as_deref()).filter(|n| !n.is_empty()) {
        return (name.to_owned(), String::new());
    }
    let host = spec.and_then(|s| s.hostname.as_deref()).filter(|h| !h.is_empty()).unwrap_or(name);
    let host: String = host.chars().take(63).collect();
    let host = host.trim_end_matches(['-', '.']).to_owned();
    let domain = spec
        .and_then(|s| s.subdomain.as_deref())
        .filter(|d| !d.is_empty())
        .map(|d| format!("{d}.{namespace}.svc.{cluster_domain}"))
        .unwrap_or_default();
    let as_fqdn = spec.and_then(|s| s.set_hostname_as_fqdn) == Some(true);
    if as_fqdn && !domain.is_empty() {
        return (format!("{host}.{domain}"), domain);
    }
    (host, domain)
}

/// The content of `/etc/hosts` (`managedHostsFileContent`).
pub fn hosts(ips: &[IpAddr], host: &str, domain: &str, aliases: &[core::HostAlias]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        // Writing to a String cannot fail.
        let _ = match domain {
            "" => writeln!(text, "{ip}\t{host}"),
            _ if host.ends_with(domain) => writeln!(text, "{ip}\t{host}"),
            _ => writeln!(text, "{ip}\t{host}.{domain}\t{host}"),
        };
    }
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let _ = writeln!(
                text,
                "{}\t{}",
                alias.ip,
                alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
            );
        }
    }
    text
}

/// `/etc/resolv.conf` of a pod (`GetPodDNS`). `host` is the machine's own configuration.
pub fn dns(pod: &core::Pod, cluster_dns: IpAddr, cluster_domain: &str, host: &DnsConfig) -> DnsConfig {
    let spec = pod.spec.as_ref();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let host_network = spec.and_then(|s| s.host_network) == Some(true);
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let mut config = match policy {
        "None" => DnsConfig::default(),
        "Default" => host.clone(),
        "ClusterFirst" if host_network => host.clone(),
        _ => {
            let cluster = [
                format!("{namespace}.svc.{cluster_domain}"),
                format!("svc.{cluster_domain}"),
                cluster_domain.to_owned(),
            ];
            let searches = cluster.into_iter().chain(host.searches.iter().cloned()).collect();
            DnsConfig { servers: vec![cluster_dns.to_string()], searches, options: vec!["ndots:5".to_owned()] }
        }
    };
    if let Some(own) = spec.and_then(|s| s.dns_config.as_ref()) {
        append(&mut config.servers, own.nameservers.iter().flatten().cloned());
        append(&mut config.searches, own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            config.options.retain(|o| o != name && !o.starts_with(&format!("{name}:")));
            config.options.push(option.value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}:{value}")));
        }
    }
    // glibc's limits, which the kubelet applies as well.
    config.servers.truncate(3);
    config.searches.truncate(32);
    config
}

fn append(list: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

/// Reads the text of a `resolv.conf`.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            Some("search") => config.searches = words.map(|w| w.trim_end_matches('.').to_owned()).collect(),
            Some("domain") if config.searches.is_empty() => config.searches.extend(words.next().map(str::to_owned)),
            Some("options") => config.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    config.searches.retain(|s| !s.is_empty());
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> core::Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "d"}, "spec": spec})).expect("a pod")
    }

    fn host() -> DnsConfig {
        parse_resolv_conf("# x\nnameserver 10.1.1.1\nsearch lan.\noptions edns0 ndots:2\n")
    }

    #[test]
    fn host_names() {
        let name = |spec| hostname(&pod(spec), "cluster.local");
        assert_eq!(name(json!({"containers": []})), ("web-0".into(), String::new()));
        let spec = json!({"containers": [], "hostname": "h", "subdomain": "s"});
        assert_eq!(name(spec), ("h".into(), "s.d.svc.cluster.local".into()));
    }

    #[test]
    fn hosts_file() {
        let alias = core::HostAlias { ip: "1.2.3.4".into(), hostnames: Some(vec!["a".into(), "b".into()]) };
        let text = hosts(&["10.244.0.5".parse().expect("ip")], "h", "s.d.svc.cluster.local", &[alias]);
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("\n10.244.0.5\th.s.d.svc.cluster.local\th\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
    }

    #[test]
    fn dns_policies() {
        let dns = |spec| super::dns(&pod(spec), "10.96.0.10".parse().expect("ip"), "cluster.local", &host());
        let first = dns(json!({"containers": []}));
        assert_eq!(first.servers, ["10.96.0.10"]);
        assert_eq!(first.searches, ["d.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan"]);
        assert_eq!(first.options, ["ndots:5"]);
        assert_eq!(dns(json!({"containers": [], "dnsPolicy": "Default"})), host());
        assert_eq!(dns(json!({"containers": [], "hostNetwork": true})), host());
        let none = dns(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"],
            "searches": ["x"], "options": [{"name": "ndots", "value": "1"}, {"name": "edns0"}]}}));
        assert_eq!((none.servers, none.options), (vec!["9.9.9.9".into()], vec!["ndots:1".into(), "edns0".into()]));
        let own = dns(json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}}));
        assert_eq!(own.options, ["ndots:2"]);
    }
}
