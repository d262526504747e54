//! The Node object: what this node is, has and how it fares. The object is computed purely; `mod.rs` writes it.
//!
//! A node in the control plane's own process sends no heartbeat: nobody could notice its absence, and an idle mini writes
//! nothing. Nodes of other processes renew a Lease in `kube-node-lease` ([`super::Options::lease_duration`]), which the node
//! lifecycle controller reads.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};

use super::runtime::Enforcement;
use crate::env::rfc3339;

/// What the machine has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    /// CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Size of the file system with the pods in bytes.
    pub storage: u64,
    /// `machineID`
    pub machine_id: String,
    /// `bootID`
    pub boot_id: String,
    /// `kernelVersion`
    pub kernel: String,
    /// `osImage`
    pub os_image: String,
}

impl Machine {
    /// Asks the machine. What cannot be read is empty or 0.
    pub fn probe(pods: &std::path::Path) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let memory = read("/proc/meminfo")
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
            .unwrap_or(0)
            * 1024;
        let release = read("/etc/os-release");
        let pretty = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
        let existing = pods.ancestors().find(|p| p.exists()).unwrap_or(std::path::Path::new("/"));
        let storage = nix::sys::statvfs::statvfs(existing).map_or(0, |s| s.blocks() * s.fragment_size());
        Self {
            cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            memory,
            storage,
            machine_id: read("/etc/machine-id"),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            kernel: read("/proc/sys/kernel/osrelease"),
            os_image: pretty.trim_matches('"').to_owned(),
        }
    }
}

/// What goes into the Node object.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    /// `metadata.name`
    pub name: &'a str,
    /// `InternalIP`s.
    pub internal_ips: &'a [IpAddr],
    /// `ExternalIP`.
    pub external_ip: Option<IpAddr>,
    /// `spec.podCIDR`
    pub pod_cidr: &'a str,
    /// What the machine has, with the profile's `--cpus` and `--memory` applied.
    pub machine: &'a Machine,
    /// Which limits are enforced.
    pub enforcement: &'a Enforcement,
    /// Images: names and size.
    pub images: &'a [(Vec<String>, u64)],
    /// Whether AppArmor profiles can be enforced.
    pub app_armor: bool,
    /// Whether the node takes pods.
    pub ready: bool,
}

const ARCH: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// A new Node without status.
pub fn object(node: &Node<'_>) -> Value {
    let labels = json!({
        "beta.kubernetes.io/arch": ARCH, "beta.kubernetes.io/os": "linux",
        "kubernetes.io/arch": ARCH, "kubernetes.io/os": "linux", "kubernetes.io/hostname": node.name,
    });
    let mut object = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node.name, "labels": labels,
            "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}},
        "spec": {}});
    if !node.pod_cidr.is_empty() {
        object["spec"] = json!({"podCIDR": node.pod_cidr, "podCIDRs": [node.pod_cidr]});
    }
    object
}

/// The status; transition times of `old` stay where nothing changed.
pub fn status(node: &Node<'_>, old: &Value, now: Timestamp) -> Value {
    let machine = node.machine;
    let capacity = json!({
        "cpu": machine.cpus.to_string(),
        "memory": format!("{}Ki", machine.memory / 1024),
        "ephemeral-storage": format!("{}Ki", machine.storage / 1024),
        "hugepages-1Gi": "0", "hugepages-2Mi": "0", "pods": "110",
    });
    let mut allocatable = capacity.clone();
    // The kubelet keeps 10 % of the disk back (its default eviction threshold).
    allocatable["ephemeral-storage"] = (machine.storage / 10 * 9).to_string().into();
    let mut addresses: Vec<Value> =
        node.internal_ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()})).collect();
    addresses.extend(node.external_ip.map(|ip| json!({"type": "ExternalIP", "address": ip.to_string()})));
    addresses.push(json!({"type": "Hostname", "address": node.name}));
    let images: Vec<Value> =
        node.images.iter().take(50).map(|(names, size)| json!({"names": names, "sizeBytes": size})).collect();
    json!({
        "capacity": capacity,
        "allocatable": allocatable,
        "conditions": conditions(node, old, now),
        "addresses": addresses,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "nodeInfo": {
            "machineID": machine.machine_id, "systemUUID": machine.machine_id, "bootID": machine.boot_id,
            "kernelVersion": machine.kernel, "osImage": machine.os_image,
            "containerRuntimeVersion": concat!("mini://", env!("CARGO_PKG_VERSION")),
            "kubeletVersion": crate::config::KUBERNETES_VERSION, "kubeProxyVersion": "",
            "operatingSystem": "linux", "architecture": ARCH,
        },
        "images": images,
        "features": {"supplementalGroupsPolicy": true},
        "runtimeHandlers": [{"name": "", "features": {"recursiveReadOnlyMounts": false, "userNamespaces": false}}],
    })
}

fn conditions(node: &Node<'_>, old: &Value, now: Timestamp) -> Vec<Value> {
    let e = node.enforcement;
    let enforced = e.memory && e.cpu && e.pids;
    let why = e.reason.clone().unwrap_or_else(|| "cgroups enforce CPU, memory and process limits".to_owned());
    let wanted = [
        ("MemoryPressure", false, "KubeletHasSufficientMemory", "kubelet has sufficient memory available".to_owned()),
        ("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure".to_owned()),
        ("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available".to_owned()),
        ("CgroupLimitsEnforced", enforced, if enforced { "CgroupsAvailable" } else { "CgroupsNotDelegated" }, why),
        match node.ready {
            true => {
                let armor = if node.app_armor { ". AppArmor enabled" } else { "" };
                ("Ready", true, "KubeletReady", format!("kubelet is posting ready status{armor}"))
            }
            false => ("Ready", false, "KubeletNotReady", "node is shutting down".to_owned()),
        },
    ];
    let before = |kind: &str| old["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == kind);
    wanted
        .into_iter()
        .map(|(kind, holds, reason, message)| {
            let status = if holds { "True" } else { "False" };
            let transition = match before(kind) {
                Some(c) if c["status"] == status && c["lastTransitionTime"].is_string() => {
                    c["lastTransitionTime"].clone()
                }
                _ => rfc3339(now).into(),
            };
            let heartbeat = rfc3339(now);
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": heartbeat, "lastTransitionTime": transition})
        })
        .collect()
}

/// Whether a controller has said that it has not heard of this node.
pub fn is_doubted(node: &core::Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.status == "Unknown")
}

/// Whether two statuses say the same but for heartbeats.
pub fn same(a: &Value, b: &Value) -> bool {
    let strip = |status: &Value| {
        let mut status = status.clone();
        for condition in status["conditions"].as_array_mut().into_iter().flatten() {
            if let Some(condition) = condition.as_object_mut() {
                condition.remove("lastHeartbeatTime");
            }
        }
        status
    };
    strip(a) == strip(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_has_kubernetes_words_and_stable_transitions() {
        let machine = Machine { cpus: 2, memory: 4 << 30, storage: 100 << 30, ..Machine::default() };
        let node = Node {
            name: "mini",
            internal_ips: &["192.168.49.2".parse().expect("ip")],
            external_ip: None,
            pod_cidr: "10.244.0.0/24",
            machine: &machine,
            enforcement: &Enforcement::default(),
            images: &[],
            app_armor: false,
            ready: true,
        };
        assert_eq!(object(&node)["metadata"]["labels"]["kubernetes.io/hostname"], "mini");
        let at = |s: i64| Timestamp::from_second(s).expect("in range");
        let first = status(&node, &Value::Null, at(1_700_000_000));
        let second = status(&node, &first, at(1_700_000_100));
        assert!(same(&first, &second));
        let ready = second["conditions"].as_array().expect("a list").last().expect("Ready").clone();
        assert_eq!(
            (&ready["reason"], &ready["message"]),
            (&json!("KubeletReady"), &json!("kubelet is posting ready status"))
        );
        assert_eq!(second["capacity"]["pods"], "110");
        let armed = status(&Node { app_armor: true, ..node.clone() }, &first, at(1_700_000_000));
        let message = &armed["conditions"].as_array().expect("a list").last().expect("Ready")["message"];
        assert_eq!(message, "kubelet is posting ready status. AppArmor enabled");
        let judged = |status: Value| serde_json::from_value::<core::Node>(json!({"status": status})).expect("a Node");
        let mut lost = first.clone();
        lost["conditions"][3]["status"] = "Unknown".into();
        assert!(!is_doubted(&judged(first.clone())) && is_doubted(&judged(lost)));
        let unready = status(&Node { ready: false, ..node }, &first, at(1_700_000_200));
        assert!(!same(&first, &unready));
    }
}
