//! Images that cost nothing: the binary itself under another command, handed to the image store as an OCI archive.
//!
//! Their names begin with `mini.local/`; nothing answers under a name that belongs to somebody else. Other images that come
//! along (`toolbox.tar`, see `images/`) are archives beside the binary or in `$MINI_HOME/images`.

mod archive;
mod echo;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use archive::{Layer, image};

/// The name of the echo image.
pub const ECHO: &str = "mini.local/echo:1.4";
/// The first argument that makes this binary the echo server.
const ECHO_COMMAND: &str = "echo-server";
/// The path of this binary, also when it has been replaced on disk.
const SELF: &str = "/proc/self/exe";

/// Runs as a built-in image's process when the command line says so.
pub fn entry() -> Option<ExitCode> {
    let command = std::env::args_os().nth(1)?;
    (command == ECHO_COMMAND).then(echo::run_echo)
}

/// The image [`ECHO`] as an OCI archive (a tar stream): what `mini image load` reads. Its layer is this binary.
///
/// # Errors
/// When the binary cannot be read.
pub fn echo_archive() -> io::Result<impl Read + Send> {
    echo_of(Path::new(SELF))
}

fn echo_of(binary: &Path) -> io::Result<impl Read + Send + use<>> {
    let layer = Layer::new().directory("bin/")?.file("bin/mini", binary)?;
    let config = json!({
        "Entrypoint": ["/bin/mini", ECHO_COMMAND],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "ExposedPorts": {format!("{}/tcp", echo::PORT): {}},
        "Labels": {
            "org.opencontainers.image.title": "echo",
            "org.opencontainers.image.description": "Answers a request with what it received",
            "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
        },
    });
    image(ECHO, &config, layer)
}

/// Image archives (`*.tar`) that were put beside the binary or into `$MINI_HOME/images`, to be loaded at start.
pub fn archives(home: &Path) -> Vec<PathBuf> {
    let beside = std::fs::read_link(SELF).ok().and_then(|exe| exe.parent().map(|dir| dir.join("images")));
    let mut found: Vec<_> = [Some(home.join("images")), beside]
        .into_iter()
        .flatten()
        .filter_map(|dir| std::fs::read_dir(dir).ok())
        .flat_map(|dir| dir.filter_map(Result::ok))
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "tar") && path.is_file())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;
    use sha2::{Digest, Sha256};

    use super::*;

    /// Checks an archive as a reader of the OCI image layout does: every descriptor has its blob.
    #[test]
    fn the_echo_image_is_a_complete_layout() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let binary = dir.path().join("binary");
        std::fs::write(&binary, vec![7; 100_001]).expect("writable");
        let read = || {
            let mut bytes = vec![];
            echo_of(&binary).expect("readable").read_to_end(&mut bytes).expect("complete");
            bytes
        };
        let bytes = read();
        assert!(bytes == read(), "the same binary gives the same archive");
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(&bytes[..]).entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            let mut content = vec![];
            entry.read_to_end(&mut content).expect("complete");
            files.insert(path, content);
        }
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().expect("a digest").strip_prefix("sha256:").expect("sha256");
            let content = &files[&format!("blobs/sha256/{digest}")];
            assert_eq!(descriptor["size"], content.len());
            let actual: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(actual, digest);
            content.clone()
        };
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("JSON");
        assert_eq!(json(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
        let index = json(&files["index.json"]);
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], ECHO);
        let manifest = json(&blob(&index["manifests"][0]));
        let config = json(&blob(&manifest["config"]));
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"], "an uncompressed layer");
        assert_eq!(config["config"]["Entrypoint"], json!(["/bin/mini", "echo-server"]));
        let mut layer = tar::Archive::new(&layer[..]);
        let entries = layer.entries().expect("a tar").map(|entry| {
            let entry = entry.expect("an entry");
            let header = entry.header();
            let path = entry.path().expect("a path").display().to_string();
            (path, header.mode().expect("a mode"), header.size().expect("a size"))
        });
        let expected = [("bin/".to_owned(), 0o755, 0), ("bin/mini".to_owned(), 0o755, 100_001)];
        assert_eq!(entries.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn archives_are_found_in_the_home() {
        let home = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(home.path().join("images")).expect("writable");
        for name in ["b.tar", "a.tar", "notes.txt"] {
            std::fs::write(home.path().join("images").join(name), "").expect("writable");
        }
        let found = archives(home.path());
        assert_eq!(found[..2], ["a.tar", "b.tar"].map(|name| home.path().join("images").join(name)));
    }
}
