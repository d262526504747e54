//! Images for the tests, offered under the tutorial's names by a registry on loopback: small ones made from Debian's
//! busybox on the spot (here), and those of the pages, made from Debian packages (`shelf`, `pages`).

mod blob;
mod oci;
mod packages;
mod pages;
mod recipe;
pub mod shelf;

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::world::World;
use blob::{Blob, Counting};

/// A registry of the tests' own: Debian's docker-registry on a port of 127.0.0.1.
pub struct Registry {
    process: Child,
    /// `127.0.0.1:port`.
    pub address: String,
}

/// What protects a registry.
#[derive(Default)]
pub struct Protection<'a> {
    /// Certificate and key files.
    pub tls: Option<(&'a Path, &'a Path)>,
    /// An htpasswd file.
    pub htpasswd: Option<&'a Path>,
    /// Nothing can be pushed.
    pub read_only: bool,
}

impl Registry {
    /// Starts an empty one in a directory of the world's home and waits until it listens.
    pub fn start(world: &World, name: &str, protection: &Protection<'_>) -> Self {
        Self::serve(world, name, &world.home().join(name), protection)
    }

    /// Starts one with what is in `storage` and waits until it listens. `name` is that of its files in the home.
    pub fn serve(world: &World, name: &str, storage: &Path, protection: &Protection<'_>) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let address = format!("127.0.0.1:{port}");
        let mut config = json!({
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {
                "filesystem": {"rootdirectory": storage}, "delete": {"enabled": true},
                "maintenance": {"readonly": {"enabled": protection.read_only}},
            },
            "http": {"addr": address},
        });
        if let Some((cert, key)) = protection.tls {
            config["http"]["tls"] = json!({"certificate": cert, "key": key});
        }
        if let Some(path) = protection.htpasswd {
            config["auth"] = json!({"htpasswd": {"realm": "tests", "path": path}});
        }
        let file = world.home().join(format!("{name}.yml"));
        std::fs::write(&file, config.to_string()).expect("a configuration");
        let log = std::fs::File::create(world.home().join(format!("{name}.log"))).expect("a log");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("docker-registry is installed: tests/run does it");
        // curl retries by itself until the port answers; any answer will do.
        world.ok(&format!("curl -ks -o /dev/null --retry 50 --retry-connrefused --retry-delay 0 --retry-max-time 30 {}://{address}/v2/", if protection.tls.is_some() { "https" } else { "http" }));
        Self { process, address }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// A file of an image.
pub struct File<'a> {
    /// Its path without the leading slash.
    pub path: &'a str,
    /// What is in it.
    pub content: Vec<u8>,
    /// Its mode.
    pub mode: u32,
}

/// An OCI archive with busybox, links for its applets, and `files`; `cmd` is what it runs.
pub fn busybox(name: &str, files: Vec<File<'_>>, cmd: &[&str], env: &[&str]) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8], mode: u32| {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_mtime(0);
        layer.append_data(&mut header, path, content).expect("memory takes it");
    };
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed: tests/run does it");
    add("bin/busybox", &busybox, 0o755);
    add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", 0o644);
    add("bin/bash", b"#!/bin/sh\nexec /bin/sh \"$@\"\n", 0o755);
    add("etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644);
    for file in files {
        add(file.path, &file.content, file.mode);
    }
    for directory in ["tmp/", "root/", "proc/", "dev/", "sys/"] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(if directory == "tmp/" { 0o1777 } else { 0o755 });
        layer.append_data(&mut header, directory, std::io::empty()).expect("memory takes it");
    }
    for applet in [
        "sh", "ash", "ls", "cat", "echo", "env", "sleep", "wget", "nc", "httpd", "hostname", "id", "touch", "mkdir",
        "rm", "grep", "ps", "kill", "nslookup", "true", "false", "date", "head", "tail", "seq", "mount", "df", "stat",
        "readlink", "chmod", "chown", "trap", "test", "yes", "dd", "wc", "sort", "ip", "ping", "printf", "tr", "cut",
        "awk", "sed", "vi", "tar", "printenv",
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("memory takes it");
    }
    let layer = layer.into_inner().expect("memory takes it");
    let mut plain = Counting::new(std::io::sink());
    plain.write_all(&layer).expect("nothing is kept");
    let mut gzip = flate2::write::GzEncoder::new(Counting::new(Vec::new()), flate2::Compression::fast());
    gzip.write_all(&layer).expect("memory takes it");
    let (compressed, digest, size) = gzip.finish().expect("memory takes it").finish();
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip".to_owned();
    let blob = Blob { digest, diff_id: plain.finish().1, size, media_type };
    let all_env: Vec<&str> = [recipe::PATH].iter().chain(env).copied().collect();
    let documents = oci::documents(name, &json!({"Cmd": cmd, "Env": all_env}), std::slice::from_ref(&blob));
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, content).expect("memory takes it");
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    add("index.json", &documents.index);
    for (digest, blob) in [&documents.config, &documents.manifest, &(blob.digest, compressed)] {
        add(&format!("blobs/sha256/{digest}"), blob);
    }
    archive.into_inner().expect("memory takes it")
}

/// Writes an archive and copies it into a registry with skopeo. `options` are skopeo's.
pub fn push(world: &World, archive: &[u8], registry: &Registry, name: &str, options: &str) {
    let file = world.home().join(format!("{}.tar", name.replace(['/', ':'], "-")));
    std::fs::write(&file, archive).expect("an archive");
    // Unpacked first: skopeo insists on the owners of an archive, which only root can give.
    let directory = file.with_extension("oci");
    world.ok(&format!(
        "mkdir {directory} && tar -xf {file} --no-same-owner -C {directory} && \
         skopeo copy --insecure-policy --dest-tls-verify=false {options} oci:{directory} docker://{address}/{name}",
        directory = directory.display(),
        file = file.display(),
        address = registry.address
    ));
}

/// The tutorial's kubernetes-bootcamp: it says its pod's name and its version.
pub fn bootcamp(name: &str, version: u32) -> Vec<u8> {
    let page = format!(
        "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\nHello Kubernetes bootcamp! | Running on: %s | v={version}\\n' \"$(hostname)\"\n"
    );
    let config = b"E404:/www/cgi-bin/index.cgi\n".to_vec();
    // httpd answers / with cgi-bin/index.cgi when there is no index.html.
    busybox(
        name,
        vec![
            File { path: "www/cgi-bin/index.cgi", content: page.into_bytes(), mode: 0o755 },
            File { path: "etc/httpd.conf", content: config, mode: 0o644 },
            File {
                path: "bin/serve",
                content: b"#!/bin/sh\necho 'Kubernetes Bootcamp App Started At:' $(date) '| Running On: ' $(hostname)\ntrap 'sleep 1; exit 0' TERM\nhttpd -f -v -p 8080 -h /www &\nwait\n".to_vec(),
                mode: 0o755,
            },
        ],
        &["/bin/serve"],
        &["NPM_CONFIG_LOGLEVEL=info", "NODE_VERSION=6.3.1"],
    )
}
