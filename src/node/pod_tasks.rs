//! The I/O of a pod's worker: volumes, sandbox, status, deletion. Each function runs in a task of its own.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use serde_json::{Map, Value, json};

use super::context::Context;
use super::downward::Facts;
use super::network::{Attachment, HostPort};
use super::objects::Changed;
use super::pod_state::Ended;
use super::runtime::{RuntimeError, SandboxConfig};
use super::volumes::ownership::Ownership;
use super::volumes::projected::TokenKey;
use super::volumes::{self, MountError, Mounted, Sources};
use super::{host_files, security};
use crate::api::{Gvr, Status};
use crate::client::{DeleteOptions, Patch};

const PODS: Gvr = Gvr::new("", "v1", "pods");
const RUNTIME_CLASSES: Gvr = Gvr::new("node.k8s.io", "v1", "runtimeclasses");

/// Tokens of a pod's volumes.
#[derive(Clone, Debug, Default)]
pub struct TokenCache {
    tokens: BTreeMap<TokenKey, Token>,
}

#[derive(Clone, Debug)]
struct Token {
    token: String,
    /// When it was asked for; where the clock is set back behind this, it counts no more.
    from: Timestamp,
    /// When it is renewed.
    renew: Timestamp,
}

impl Token {
    fn renew_at(&self, now: Timestamp) -> Timestamp {
        if now < self.from { now } else { self.renew }
    }
}

impl TokenCache {
    /// When the first token is to be renewed.
    pub fn renew_at(&self, now: Timestamp) -> Option<Timestamp> {
        self.tokens.values().map(|token| token.renew_at(now)).min()
    }
    /// Tries again in a minute what could not be renewed.
    pub fn postpone(&mut self, now: Timestamp) {
        let later = now.saturating_add(SignedDuration::from_secs(60)).unwrap_or(Timestamp::MAX);
        for token in self.tokens.values_mut() {
            token.renew = token.renew_at(now).max(later);
            token.from = token.from.min(now);
        }
    }
}

/// Sets up all volumes, or brings those that come from objects up to date (`again`).
///
/// # Errors
/// What is missing, for events.
pub async fn mount(
    context: Arc<Context>,
    pod: core::Pod,
    facts: Facts,
    tokens: TokenCache,
    changed: Changed,
    again: bool,
) -> Result<(Mounted, TokenCache), Vec<MountError>> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let mut objects: BTreeMap<(String, String), Arc<Value>> = BTreeMap::new();
    for (resource, name) in volumes::references(&pod) {
        let Some(object) = context.objects.get(resource, &namespace, &name, &uid, &changed).await else { continue };
        let volume = object["spec"]["volumeName"].as_str().unwrap_or_default().to_owned();
        if resource == "persistentvolumeclaims"
            && !volume.is_empty()
            && let Some(found) = context.objects.get("persistentvolumes", "", &volume, &uid, &changed).await
        {
            objects.insert(("persistentvolumes".into(), volume), found);
        }
        objects.insert((resource.into(), name), object);
    }
    let (tokens, failed) = renew(&context, &pod, tokens).await;
    let now = context.env.now();
    let pod_dir = context.options.pods.join(&uid);
    let ownership = pod.spec.as_ref().map(Ownership::of).unwrap_or_default();
    // Blocking file work; the closure owns all it needs.
    let done = tokio::task::spawn_blocking(move || {
        let lookup = |resource: &str, name: &str| objects.get(&(resource.to_owned(), name.to_owned())).cloned();
        let token = |key: &TokenKey| tokens.tokens.get(key).map(|known| known.token.clone());
        let sources = Sources { pod: &pod, facts: &facts, lookup: &lookup, token: &token };
        let mut mounted = Mounted::new();
        let mut errors = Vec::new();
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            let dir = volumes::directory(&pod_dir, volume);
            let result = volumes::plan(volume, &sources).and_then(|task| {
                volumes::set_up(&dir, &task, &ownership, again, now).map_err(|message| MountError {
                    volume: volume.name.clone(),
                    message,
                    awaits_object: false,
                })
            });
            match result {
                Ok(path) => drop(mounted.insert(volume.name.clone(), path)),
                Err(mut error) => {
                    if let (false, Some(why)) = (error.awaits_object, &failed)
                        && error.message.contains("failed to fetch token")
                    {
                        error.message = format!("failed to fetch token: {why}");
                    }
                    errors.push(error);
                }
            }
        }
        if errors.is_empty() { Ok((mounted, tokens)) } else { Err(errors) }
    });
    done.await.unwrap_or_else(|panic| {
        Err(vec![MountError { volume: String::new(), message: panic.to_string(), awaits_object: false }])
    })
}

/// Requests the tokens that are missing or due; also returns why one could not be had.
async fn renew(context: &Context, pod: &core::Pod, mut cache: TokenCache) -> (TokenCache, Option<Status>) {
    let wanted = volumes::tokens(pod);
    cache.tokens.retain(|key, _| wanted.contains(key));
    let mut failed = None;
    for key in wanted {
        let now = context.env.now();
        if cache.tokens.get(&key).is_some_and(|token| token.renew_at(now) > now) {
            continue;
        }
        match request_token(context, pod, &key).await {
            Ok((token, expires)) => {
                // Like the kubelet: at 80 % of its life, at the latest after a day.
                let life = expires.duration_since(now);
                let renew = (life / 10 * 8).min(SignedDuration::from_hours(24)).max(SignedDuration::from_secs(10));
                let renew = now.saturating_add(renew).unwrap_or(Timestamp::MAX);
                cache.tokens.insert(key, Token { token, from: now, renew });
            }
            Err(error) => failed = Some(error),
        }
    }
    (cache, failed)
}

async fn request_token(context: &Context, pod: &core::Pod, key: &TokenKey) -> Result<(String, Timestamp), Status> {
    let m = &pod.metadata;
    let namespace = m.namespace.as_deref().unwrap_or_default();
    let audiences: Vec<&str> = if key.audience.is_empty() { vec![] } else { vec![&key.audience] };
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "metadata": {"namespace": namespace, "name": key.account},
        "spec": {
            "audiences": audiences, "expirationSeconds": key.seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": m.name, "uid": m.uid},
        },
    });
    let gvr = Gvr::new("", "v1", "serviceaccounts");
    let answer = context.api.create(&gvr, namespace, &key.account, "token", request).await?;
    let token = answer["status"]["token"].as_str().unwrap_or_default();
    let expires = answer["status"]["expirationTimestamp"].as_str().and_then(|t| t.parse().ok());
    match expires {
        Some(expires) if !token.is_empty() => Ok((token.to_owned(), expires)),
        _ => Err(Status::internal("the token request was answered without a token")),
    }
}

/// The handlers of RuntimeClasses that exist here: the one that containerd has everywhere, and its own name. Both are libcontainer.
const HANDLERS: [&str; 2] = ["runc", "youki"];

/// A pod that asks for another runtime does not run in this one.
async fn check_runtime_class(context: &Context, spec: &core::PodSpec) -> Result<(), String> {
    let Some(name) = spec.runtime_class_name.as_deref().filter(|name| !name.is_empty()) else { return Ok(()) };
    let class = context.api.get(&RUNTIME_CLASSES, "", name).await.map_err(|error| error.message)?;
    let handler = class["handler"].as_str().unwrap_or_default();
    match HANDLERS.contains(&handler) {
        true => Ok(()),
        false => Err(format!("failed to get sandbox runtime: no runtime for {handler:?} is configured")),
    }
}

/// Creates the sandbox and attaches its network.
///
/// # Errors
/// The message of `FailedCreatePodSandBox`.
pub async fn create_sandbox(context: Arc<Context>, pod: core::Pod) -> Result<Vec<IpAddr>, String> {
    let spec = pod.spec.clone().unwrap_or_default();
    check_runtime_class(&context, &spec).await?;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let (hostname, _) = host_files::hostname(&pod, &context.options.cluster_domain);
    let options = &context.options;
    let sysctls = spec.security_context.as_ref().and_then(|s| s.sysctls.clone()).unwrap_or_default();
    let config = SandboxConfig {
        uid: uid.clone(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        hostname,
        dns: host_files::dns(&pod, options.cluster_dns, &options.cluster_domain, &options.host_dns),
        host_network: spec.host_network == Some(true),
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        share_pid: spec.share_process_namespace == Some(true),
        sysctls: sysctls.into_iter().map(|s| (s.name, s.value)).collect(),
        log_dir: context.log_dir(&pod),
        resources: security::pod_resources(&spec),
    };
    let sandbox = context.runtime.create_sandbox(config).await.map_err(|e| match e {
        RuntimeError::Sandbox(why) => why,
        other => other.to_string(),
    })?;
    if spec.host_network == Some(true) {
        return Ok(options.internal_ips.clone());
    }
    let attached = context.network.attach(&attachment(&pod, sandbox.netns)).await;
    match attached {
        Ok(ips) => Ok(ips),
        Err(error) => {
            if let Err(error) = context.runtime.remove_sandbox(&uid).await {
                tracing::warn!(%error, uid, "a sandbox without a network could not be removed");
            }
            Err(format!("failed to setup network for sandbox \"{uid}\": {error}"))
        }
    }
}

/// Attaches the network of a sandbox that an earlier daemon made.
///
/// # Errors
/// When there is no such sandbox or the network fails.
pub async fn attach(context: Arc<Context>, pod: core::Pod) -> Result<Vec<IpAddr>, String> {
    if pod.spec.as_ref().and_then(|s| s.host_network) == Some(true) {
        return Ok(context.options.internal_ips.clone());
    }
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let list = context.runtime.list().await.map_err(|e| e.to_string())?;
    let found = list.into_iter().find(|s| s.config.uid == uid).and_then(|s| s.sandbox);
    let sandbox = found.ok_or("the sandbox ended")?;
    context.network.attach(&attachment(&pod, sandbox.netns)).await.map_err(|e| e.to_string())
}

fn attachment(pod: &core::Pod, netns: PathBuf) -> Attachment {
    let ports = super::pod_state::specs(&pod.spec.clone().unwrap_or_default());
    let ports = ports.iter().flat_map(|(_, c)| c.ports.iter().flatten());
    let host_ports = ports.filter_map(|p| {
        let host_port = p.host_port.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)?;
        Some(HostPort {
            host_port,
            container_port: u16::try_from(p.container_port).ok()?,
            protocol: p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            host_ip: p.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
        })
    });
    let m = &pod.metadata;
    Attachment {
        uid: m.uid.clone().unwrap_or_default(),
        pod: format!("{}/{}", m.namespace.as_deref().unwrap_or_default(), m.name.as_deref().unwrap_or_default()),
        netns,
        host_ports: host_ports.collect(),
    }
}

/// Stops the sandbox; the records of its containers stay.
pub async fn stop_sandbox(context: Arc<Context>, pod: core::Pod) {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    detach(&context, uid).await;
    if let Err(error) = context.runtime.stop_sandbox(uid).await {
        tracing::warn!(%error, uid, "a sandbox could not be stopped");
    }
}

/// Removes the sandbox with all its containers.
pub async fn remove_sandbox(context: Arc<Context>, pod: core::Pod) {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    detach(&context, uid).await;
    if let Err(error) = context.runtime.remove_sandbox(uid).await {
        tracing::warn!(%error, uid, "a sandbox could not be removed");
    }
}

async fn detach(context: &Context, uid: &str) {
    if let Err(error) = context.network.detach(uid).await {
        tracing::warn!(%error, uid, "a pod's network could not be detached");
    }
}

/// Removes the volumes, and when the pod is `gone` also its records, its directory and its logs.
pub async fn remove_volumes(context: Arc<Context>, pod: core::Pod, gone: bool) {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if uid.is_empty() {
        return;
    }
    if gone {
        // A pod that had completed before still has its records.
        if let Err(error) = context.runtime.remove_sandbox(uid).await {
            tracing::warn!(%error, uid, "a sandbox could not be removed");
        }
    }
    let dir = context.options.pods.join(uid);
    let logs = context.log_dir(&pod);
    let done = tokio::task::spawn_blocking(move || {
        volumes::tear_down(&dir)?;
        if gone {
            let absent = |e: std::io::Error| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) };
            std::fs::remove_dir_all(&dir).or_else(absent)?;
            std::fs::remove_dir_all(&logs).or_else(absent)?;
        }
        Ok::<_, std::io::Error>(())
    });
    match done.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, uid, "a pod's directory could not be removed"),
        Err(panic) => tracing::error!(%panic, uid, "a pod's directory could not be removed"),
    }
}

/// Deletes the object for good. Returns whether it is gone.
pub async fn delete(context: Arc<Context>, pod: core::Pod) -> bool {
    let m = &pod.metadata;
    let (namespace, name) = (m.namespace.as_deref().unwrap_or_default(), m.name.as_deref().unwrap_or_default());
    let options = DeleteOptions { grace_period_seconds: Some(0), uid: m.uid.clone(), ..DeleteOptions::default() };
    let finalizers = m.finalizers.as_ref().is_some_and(|f| !f.is_empty());
    match context.api.delete(&PODS, namespace, name, &options).await {
        // With finalizers the object stays until they are gone; the watch tells.
        Ok(_) if finalizers => std::future::pending().await,
        Ok(_) => true,
        Err(error) if error.is_not_found() || error.is_conflict() => true,
        Err(error) => {
            tracing::warn!(%error, namespace, name, "a pod could not be deleted, trying again");
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            false
        }
    }
}

/// How long a process that has only just begun gets to say that it wants the stop signal.
const HANDLER_WAITS: [u64; 7] = [10, 20, 40, 80, 160, 320, 640];

/// Sends a signal. The kernel drops those that a namespace's first process has no handler for, so a stop signal that
/// came before the process could set one up is sent again once it has.
pub async fn signal(context: Arc<Context>, id: String, signal: i32) {
    let catches = if signal == libc::SIGKILL { None } else { pid(&context, &id).await.map(|pid| (pid, signal)) };
    let early = catches.is_some_and(|(pid, signal)| catches_signal(pid, signal) == Some(false));
    if let Err(error) = context.runtime.signal(&id, signal).await {
        tracing::warn!(%error, id, signal, "a container could not be signalled");
        return;
    }
    let Some((pid, signal)) = catches.filter(|_| early) else { return };
    for wait in HANDLER_WAITS {
        tokio::time::sleep(std::time::Duration::from_millis(wait)).await;
        match catches_signal(pid, signal) {
            Some(false) => {}
            None => return,
            Some(true) => {
                if let Err(error) = context.runtime.signal(&id, signal).await {
                    tracing::debug!(%error, id, signal, "a container ended before it was signalled again");
                }
                return;
            }
        }
    }
}

async fn pid(context: &Context, id: &str) -> Option<i32> {
    let list = context.runtime.list().await.ok()?;
    list.into_iter().flat_map(|s| s.containers).find(|c| c.id == id)?.pid
}

/// Whether a process has a handler for a signal (`SigCgt` of proc(5)); `None` when it is gone.
fn catches_signal(pid: i32, signal: i32) -> Option<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    Some(mask & (1 << (signal - 1).clamp(0, 63)) != 0)
}

/// The merge patch from what was written to what is now: only fields that changed, null for those that went.
pub fn status_patch(old: Option<&core::PodStatus>, new: &core::PodStatus, uid: &str) -> Value {
    let object = |status: &core::PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let new = object(new);
    let old = old.map(object).unwrap_or_default();
    let mut status = Map::new();
    for (key, value) in &new {
        if old.get(key) != Some(value) {
            status.insert(key.clone(), value.clone());
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        status.insert(key.clone(), Value::Null);
    }
    json!({"metadata": {"uid": uid}, "status": status})
}

/// Writes a status. Returns whether it is done (also when the pod is gone).
pub async fn write_status(context: Arc<Context>, pod: core::Pod, patch: Value) -> bool {
    let m = &pod.metadata;
    let (namespace, name) = (m.namespace.as_deref().unwrap_or_default(), m.name.as_deref().unwrap_or_default());
    match context.api.patch(&PODS, namespace, name, "status", Patch::Merge(patch)).await {
        Ok(_) => true,
        // Gone, or another pod of that name.
        Err(error) if error.is_not_found() || error.code == 422 || error.is_conflict() => {
            tracing::debug!(%error, namespace, name, "a status was not written");
            true
        }
        Err(error) => {
            tracing::warn!(%error, namespace, name, "a status could not be written, trying again");
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            false
        }
    }
}

/// The most that is read of a termination message, and of a log in its place (kubelet constants).
const MOST_MESSAGE: u64 = 4096;
const MOST_LOG: u64 = 2048;
const MOST_LOG_LINES: usize = 80;

/// Adds the termination message to how a container ended.
pub async fn termination_message(
    context: Arc<Context>,
    spec: core::Container,
    id: String,
    log: PathBuf,
    mut ended: Ended,
) -> Ended {
    let path = match context.runtime.list().await {
        Ok(list) => list.into_iter().flat_map(|s| s.containers).find(|c| c.id == id).and_then(|c| c.message_path),
        Err(error) => {
            tracing::warn!(%error, id, "a container could not be looked up");
            None
        }
    };
    let fallback = spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError") && ended.exit_code != 0;
    let read = tokio::task::spawn_blocking(move || {
        let mut message = String::new();
        if let Some(path) = path {
            message = read_tail(&path, MOST_MESSAGE).unwrap_or_default();
        }
        if message.is_empty() && fallback {
            message = log_tail(&read_tail(&log, MOST_LOG * 4).unwrap_or_default());
        }
        message
    });
    ended.message = read.await.unwrap_or_default();
    ended
}

/// The last bytes of an ordinary file; a container may have put anything at its path.
fn read_tail(path: &Path, most: u64) -> std::io::Result<String> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(String::new());
    }
    file.seek(std::io::SeekFrom::Start(metadata.len().saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The texts of the last lines in CRI format.
fn log_tail(cri: &str) -> String {
    let lines: Vec<&str> = cri.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let start = lines.len().saturating_sub(MOST_LOG_LINES);
    let mut text = lines[start..].join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    let most = usize::try_from(MOST_LOG).unwrap_or(usize::MAX);
    let mut cut = text.len().saturating_sub(most);
    while !text.is_char_boundary(cut) {
        cut += 1;
    }
    text.split_off(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_hold_only_what_changed() {
        let old = core::PodStatus { phase: Some("Pending".into()), reason: Some("x".into()), ..Default::default() };
        let new = core::PodStatus { phase: Some("Running".into()), ..Default::default() };
        let patch = status_patch(Some(&old), &new, "u");
        assert_eq!(patch, json!({"metadata": {"uid": "u"}, "status": {"phase": "Running", "reason": null}}));
    }

    #[test]
    fn handlers_are_seen() {
        let own = i32::try_from(std::process::id()).expect("a pid");
        // The Rust runtime handles SIGSEGV for stack overflows; nobody handles SIGKILL.
        assert_eq!(catches_signal(own, libc::SIGSEGV), Some(true));
        assert_eq!(catches_signal(own, libc::SIGKILL), Some(false));
        assert_eq!(catches_signal(i32::MAX, libc::SIGTERM), None);
    }

    #[test]
    fn the_log_stands_in_for_a_message() {
        let cri = "2026-01-01T00:00:00.0Z stdout F one\n2026-01-01T00:00:00.0Z stderr F two words\n";
        assert_eq!(log_tail(cri), "one\ntwo words\n");
    }
}
