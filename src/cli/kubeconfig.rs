//! The user's kubeconfig: adds and removes the entries of a profile and leaves everything else as it is.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::client::https::Access;

/// The file that is written: the first of `$KUBECONFIG`, else `.kube/config` in the home directory.
///
/// # Errors
/// When there is no home directory.
pub fn default_path() -> Result<PathBuf> {
    if let Some(list) = std::env::var_os("KUBECONFIG")
        && let Some(first) = std::env::split_paths(&list).find(|p| !p.as_os_str().is_empty())
    {
        return Ok(first);
    }
    let home =
        std::env::var_os("HOME").filter(|h| !h.is_empty()).context("HOME is not set, and neither is KUBECONFIG")?;
    Ok(Path::new(&home).join(".kube/config"))
}

/// Adds cluster, user and context `name`, and makes it the current context when `switch` is set.
///
/// # Errors
/// When the file is locked by another program, is not a kubeconfig, or cannot be written.
pub fn merge(path: &Path, name: &str, access: &Access, switch: bool) -> Result<()> {
    edit(path, |config| {
        let cluster = json!({
            "server": access.server,
            "certificate-authority-data": STANDARD.encode(&access.ca_pem),
        });
        let user = json!({
            "client-certificate-data": STANDARD.encode(&access.cert_pem),
            "client-key-data": STANDARD.encode(&access.key_pem),
        });
        put(config, "clusters", name, "cluster", cluster)?;
        put(config, "users", name, "user", user)?;
        put(config, "contexts", name, "context", json!({"cluster": name, "user": name, "namespace": "default"}))?;
        if switch {
            config["current-context"] = name.into();
        }
        Ok(())
    })
}

/// Removes cluster, user and context `name`.
///
/// # Errors
/// As [`merge`].
pub fn remove(path: &Path, name: &str) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    edit(path, |config| {
        for list in ["clusters", "users", "contexts"] {
            if let Some(entries) = config[list].as_array_mut() {
                entries.retain(|entry| entry["name"] != name);
            }
        }
        if config["current-context"] == name {
            config["current-context"] = "".into();
        }
        Ok(())
    })
}

/// Whether a context of that name exists.
pub fn has_context(path: &Path, name: &str) -> bool {
    let text = fs::read_to_string(path).unwrap_or_default();
    parse(&text).is_ok_and(|c| c["contexts"].as_array().is_some_and(|all| all.iter().any(|e| e["name"] == name)))
}

fn parse(text: &str) -> Result<Value> {
    if text.trim().is_empty() {
        return Ok(
            json!({"apiVersion": "v1", "kind": "Config", "clusters": [], "contexts": [], "current-context": "", "preferences": {}, "users": []}),
        );
    }
    let value: Value = serde_saphyr::from_str(text).context("it is not YAML")?;
    if !value.is_object() || value["kind"] != "Config" {
        bail!("it is not a kubeconfig (kind: Config)");
    }
    Ok(value)
}

fn put(config: &mut Value, list: &str, name: &str, field: &str, value: Value) -> Result<()> {
    if config[list].is_null() {
        config[list] = json!([]);
    }
    let entries = config[list].as_array_mut().with_context(|| format!("{list} is not a list"))?;
    match entries.iter_mut().find(|entry| entry["name"] == name) {
        // What the user chose for the context (its namespace) stays.
        Some(entry) if field == "context" && entry[field].is_object() => {
            entry[field]["cluster"] = value["cluster"].clone();
            entry[field]["user"] = value["user"].clone();
        }
        Some(entry) => entry[field] = value,
        None => entries.push(json!({"name": name, field: value})),
    }
    Ok(())
}

/// Reads, changes and writes under the lock file that client-go uses (`config.lock`).
fn edit(path: &Path, change: impl FnOnce(&mut Value) -> Result<()>) -> Result<()> {
    // A kubeconfig is often a link to a file kept elsewhere: the file is changed, the link stays.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let _lock = Lock::take(&path)?;
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let mut config = parse(&text).with_context(|| format!("{} was left alone", path.display()))?;
    change(&mut config).with_context(|| format!("{} was left alone", path.display()))?;
    let text = serde_saphyr::to_string(&config).context("writing YAML")?;
    let temporary = path.with_extension(format!("mini-{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().with_context(|| format!("writing {}", path.display())).inspect_err(|_| drop(fs::remove_file(&temporary)))
}

struct Lock(PathBuf);

impl Lock {
    fn take(path: &Path) -> Result<Self> {
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let name = PathBuf::from(name);
        match fs::OpenOptions::new().write(true).create_new(true).open(&name) {
            Ok(_) => Ok(Self(name)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
                "{} is locked by another program; when none is running, remove {}",
                path.display(),
                name.display()
            ),
            Err(error) => Err(error).with_context(|| format!("locking {}", path.display())),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(server: &str) -> Access {
        Access {
            server: server.into(),
            ca_pem: b"ca".to_vec(),
            cert_pem: b"cert".to_vec(),
            key_pem: b"key".to_vec(),
            token: String::new(),
        }
    }

    #[test]
    fn other_entries_survive_a_merge_and_a_removal() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sub/config");
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        let other = "apiVersion: v1\nkind: Config\ncurrent-context: work\nclusters:\n- name: work\n  cluster: {server: \"https://a\"}\n\
            contexts:\n- name: work\n  context: {cluster: work, user: work}\nusers:\n- name: work\n  user: {token: \"0123\"}\n";
        fs::write(&path, other).expect("written");
        merge(&path, "mini", &access("https://127.0.0.1:1"), true).expect("merged");
        assert!(has_context(&path, "mini"));
        merge(&path, "mini", &access("https://127.0.0.1:2"), true).expect("merged again");
        let merged = parse(&fs::read_to_string(&path).expect("read")).expect("YAML");
        assert_eq!(merged["clusters"].as_array().map(Vec::len), Some(2));
        assert_eq!(merged["users"][0]["user"]["token"], "0123");
        assert_eq!(merged["clusters"][1]["cluster"]["server"], "https://127.0.0.1:2");
        remove(&path, "mini").expect("removed");
        let left = parse(&fs::read_to_string(&path).expect("read")).expect("YAML");
        assert_eq!(left["contexts"], parse(other).expect("YAML")["contexts"]);
        assert!(!dir.path().join("sub/config.lock").exists());
    }

    #[test]
    fn a_locked_or_foreign_file_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config");
        fs::write(&path, "just text").expect("written");
        merge(&path, "mini", &access("https://127.0.0.1:1"), true).expect_err("not a kubeconfig");
        assert_eq!(fs::read_to_string(&path).expect("read"), "just text");
        fs::write(dir.path().join("config.lock"), "").expect("written");
        let error = merge(&path, "mini", &access("https://127.0.0.1:1"), true).expect_err("locked");
        assert!(error.to_string().contains("is locked"), "{error}");
    }
}
