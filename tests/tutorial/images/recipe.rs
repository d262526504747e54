//! What an image is made of: layers of Debian packages and files of our own. Nothing here does I/O.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An image under the names that the tutorial's pages use.
pub struct Image {
    /// Repository and tag, without the registry's host: every registry is mirrored by the tests'.
    pub names: &'static [&'static str],
    /// Its topmost layer.
    pub top: &'static Layer,
    /// What it runs.
    pub entrypoint: &'static [&'static str],
    /// Arguments for it.
    pub cmd: &'static [&'static str],
    /// Environment variables beside PATH.
    pub env: &'static [&'static str],
    /// The working directory.
    pub directory: &'static str,
}

/// A layer: packages with what they depend on, and files.
pub struct Layer {
    /// For messages.
    pub name: &'static str,
    /// The layer below.
    pub on: Option<&'static Layer>,
    /// Debian packages; dependencies come along.
    pub packages: &'static [&'static str],
    /// Dependencies that it does without.
    pub without: &'static [&'static str],
    /// Beginnings of paths of packages that are left out.
    pub omit: &'static [&'static str],
    /// Our own files; they take the place of a package's.
    pub entries: &'static [Entry],
}

/// A file, directory or link.
pub struct Entry {
    /// Its path without the leading slash.
    pub path: &'static str,
    /// What it is.
    pub what: What,
    /// Its mode.
    pub mode: u32,
    /// Its user and group.
    pub owner: u64,
}

/// What an entry is.
pub enum What {
    /// A file with this content.
    File(&'static str),
    /// A directory.
    Directory,
    /// A symbolic link.
    Link(&'static str),
}

/// A file of root's.
pub const fn file(path: &'static str, text: &'static str) -> Entry {
    Entry { path, what: What::File(text), mode: 0o644, owner: 0 }
}

/// A program.
pub const fn script(path: &'static str, text: &'static str) -> Entry {
    Entry { path, what: What::File(text), mode: 0o755, owner: 0 }
}

/// A directory of a user's.
pub const fn directory(path: &'static str, owner: u64) -> Entry {
    Entry { path, what: What::Directory, mode: 0o755, owner }
}

/// A symbolic link.
pub const fn link(path: &'static str, target: &'static str) -> Entry {
    Entry { path, what: What::Link(target), mode: 0o777, owner: 0 }
}

impl Entry {
    /// The same, but a user's.
    pub const fn of(self, owner: u64) -> Self {
        let Self { path, what, mode, .. } = self;
        Self { path, what, mode, owner }
    }
}

/// Beginnings of paths that no image has: documentation, and what only an installed system uses.
const NEVER: &[&str] = &[
    "etc/cron",
    "etc/default/",
    "etc/init.d/",
    "etc/logrotate.d/",
    "etc/systemd/",
    "lib/systemd/",
    "lib/udev/",
    "usr/lib/systemd/",
    "usr/lib/x86_64-linux-gnu/gconv/",
    "usr/share/apport/",
    "usr/share/bash-completion/",
    "usr/share/bug/",
    "usr/share/doc",
    "usr/share/info/",
    "usr/share/initramfs-tools/",
    "usr/share/lintian/",
    "usr/share/locale/",
    "usr/share/man/",
    "usr/share/maven-repo/",
    "usr/share/vim/",
];

impl Layer {
    /// The layers below and this one, the lowest first.
    pub fn stack(&'static self) -> Vec<&'static Layer> {
        let mut stack = self.on.map(Layer::stack).unwrap_or_default();
        stack.push(self);
        stack
    }

    /// Whether a package's file is left out.
    pub fn leaves_out(&self, path: &str) -> bool {
        NEVER.iter().chain(self.omit).any(|prefix| path.starts_with(prefix))
            || self.entries.iter().any(|entry| entry.path == path)
    }

    /// A digest of all that decides what it contains, except the versions of the packages.
    pub fn key(&self) -> String {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update(text.len().to_le_bytes());
            hash.update(text);
        };
        add("layer 1");
        add(&self.on.map(Layer::key).unwrap_or_default());
        for list in [NEVER, self.packages, self.without, self.omit] {
            add(&list.join("\n"));
        }
        for Entry { path, what, mode, owner } in self.entries {
            let (kind, text) = match what {
                What::File(text) => ("file", *text),
                What::Directory => ("directory", ""),
                What::Link(target) => ("link", *target),
            };
            add(&format!("{path} {kind} {mode:o} {owner}"));
            add(text);
        }
        hex(&hash.finalize())
    }
}

impl Image {
    /// A digest of all that decides what it is.
    pub fn key(&self) -> String {
        let text = json!([self.names, self.top.key(), self.entrypoint, self.cmd, self.env, self.directory]).to_string();
        hex(&Sha256::digest(text))
    }

    /// The `config` of its configuration.
    pub fn config(&self) -> Value {
        let env: Vec<&str> = [PATH].iter().chain(self.env).copied().collect();
        json!({"Entrypoint": self.entrypoint, "Cmd": self.cmd, "Env": env, "WorkingDir": self.directory})
    }
}

/// The PATH of every image.
pub const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
