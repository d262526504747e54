//! The store, archives and pulls together, against a registry of a few lines.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::store::{ImageStore, digest_of};
use super::{Credential, ImageError, Images};
use crate::node::namespaces::IdMap;

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *data).expect("in memory");
    }
    builder.into_inner().expect("in memory")
}

/// Layers (uncompressed) and the configuration that belongs to them.
struct Content {
    layers: Vec<Vec<u8>>,
    config: Vec<u8>,
}

fn content(layers: &[&[(&str, &[u8])]]) -> Content {
    let layers: Vec<Vec<u8>> = layers.iter().map(|files| tar(files)).collect();
    let ids: Vec<String> = layers.iter().map(|l| digest_of(l)).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["A=b"], "User": "web"}, "rootfs": {"type": "layers", "diff_ids": ids},
    });
    Content { layers, config: config.to_string().into_bytes() }
}

fn docker_archive(content: &Content, tag: &str) -> Vec<u8> {
    let names: Vec<String> = (0..content.layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": [tag], "Layers": names}]).to_string();
    let mut files: Vec<(&str, &[u8])> =
        names.iter().map(String::as_str).zip(content.layers.iter().map(Vec::as_slice)).collect();
    files.push(("config.json", &content.config));
    files.push(("manifest.json", manifest.as_bytes()));
    tar(&files)
}

fn store(root: &Path, mirrors: &[String]) -> ImageStore {
    ImageStore::open(root, mirrors, IdMap::Single).expect("a store")
}

/// What the registry has: bodies by path; and how often a blob is cut off in the middle.
#[derive(Default)]
struct Shelf {
    bodies: Mutex<BTreeMap<String, Vec<u8>>>,
    cuts: AtomicUsize,
    ranges: AtomicUsize,
    password: bool,
}

impl Shelf {
    fn put(&self, path: String, body: &[u8]) {
        self.bodies.lock().expect("held").insert(path, body.to_vec());
    }

    fn image(&self, repository: &str, tag: &str, content: &Content) -> String {
        let mut layers = Vec::new();
        for layer in &content.layers {
            let blob = zstd::encode_all(layer.as_slice(), 1).expect("in memory");
            self.put(format!("/v2/{repository}/blobs/{}", digest_of(&blob)), &blob);
            layers.push(json!({"mediaType": "x", "digest": digest_of(&blob), "size": blob.len()}));
        }
        let id = digest_of(&content.config);
        self.put(format!("/v2/{repository}/blobs/{id}"), &content.config);
        let config = json!({"digest": id, "size": content.config.len()});
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
        let digest = digest_of(manifest.as_bytes());
        for target in [tag, &digest] {
            self.put(format!("/v2/{repository}/manifests/{target}"), manifest.as_bytes());
        }
        digest
    }

    /// Serves until the test ends.
    async fn serve(self: &Arc<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let shelf = Arc::clone(self);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                let mut buffer = [0; 4096];
                while !request.ends_with(b"\r\n\r\n") {
                    let n = stream.read(&mut buffer).await.unwrap_or(0);
                    if n == 0 {
                        break;
                    }
                    request.extend_from_slice(&buffer[..n]);
                }
                let answer = shelf.answer(&String::from_utf8_lossy(&request));
                let _ = stream.write_all(&answer).await;
            }
        });
        format!("http://{address}")
    }

    fn answer(&self, request: &str) -> Vec<u8> {
        let path = request.split(' ').nth(1).unwrap_or_default();
        let head = |status: &str, length: usize, more: &str| {
            format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n").into_bytes()
        };
        if self.password && !request.to_ascii_lowercase().contains("authorization: basic dtpw") {
            return head("401 Unauthorized", 0, "WWW-Authenticate: Basic realm=\"r\"\r\n");
        }
        let Some(body) = self.bodies.lock().expect("held").get(path).cloned() else {
            return head("404 Not Found", 0, "");
        };
        let from =
            request.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        let from = from.and_then(|r| r.trim_end_matches('-').parse::<usize>().ok()).unwrap_or(0);
        let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
        self.ranges.fetch_add(usize::from(from > 0), Ordering::SeqCst);
        let rest = &body[from..];
        let cut = path.contains("/blobs/")
            && rest.len() > 1000
            && self.cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        let sent = if cut { &rest[..rest.len() / 2] } else { rest };
        [head(status, rest.len(), ""), sent.to_vec()].concat()
    }
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[tokio::test]
async fn a_transfer_that_breaks_off_goes_on() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let shelf = Arc::new(Shelf { cuts: AtomicUsize::new(2), ..Shelf::default() });
    let data = noise(100_000);
    let digest = shelf.image("library/app", "1", &content(&[&[("data", &data)]]));
    let store = store(directory.path(), &[shelf.serve().await]);
    let image = store.pull("app:1", &[]).await.expect("pulled");
    assert_eq!(image.repo_tags, ["docker.io/library/app:1"]);
    assert_eq!(image.repo_digests, [format!("docker.io/library/app@{digest}")]);
    assert_eq!((image.config.cmd.as_slice(), image.config.user.as_str()), (&["sh".to_owned()][..], "web"));
    assert_eq!(std::fs::read(image.layers[0].join("data")).expect("unpacked"), data);
    assert_eq!(shelf.ranges.load(Ordering::SeqCst), 2, "it went on where it was");
    assert_eq!(store.resolve("docker.io/app:1").await.expect("valid").map(|i| i.id), Some(image.id));
    let by_digest = store.pull(&format!("app@{digest}"), &[]).await.expect("pulled");
    assert_eq!(by_digest.repo_tags, ["docker.io/library/app:1"]);
}

#[tokio::test]
async fn what_is_wrong_is_refused_in_containerds_words() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let shelf = Arc::new(Shelf::default());
    let good = content(&[&[("a", b"1")]]);
    let digest = shelf.image("library/bad", "1", &good);
    let mut wrong = content(&[&[("b", b"2")]]);
    wrong.config = good.config.clone(); // its diff ids are those of other layers
    shelf.image("library/lies", "1", &wrong);
    let blob = digest_of(&zstd::encode_all(good.layers[0].as_slice(), 1).expect("in memory"));
    let size = zstd::encode_all(good.layers[0].as_slice(), 1).expect("in memory").len();
    shelf.put(format!("/v2/library/bad/blobs/{blob}"), &vec![7; size]);
    let store = store(directory.path(), &[shelf.serve().await]);
    let error = |result: Result<super::Image, ImageError>| result.expect_err("wrong").to_string();
    assert_eq!(
        error(store.pull("none:1", &[]).await),
        "failed to pull and unpack image \"docker.io/library/none:1\": failed to resolve reference \
         \"docker.io/library/none:1\": docker.io/library/none:1: not found"
    );
    assert!(error(store.pull("bad:1", &[]).await).contains(&format!("expected {blob}: failed precondition")));
    assert!(error(store.pull("lies:1", &[]).await).contains("wrong diff id digest"));
    let other = format!("sha256:{}", "0".repeat(64));
    shelf.put(format!("/v2/library/bad/manifests/{other}"), b"{}");
    assert!(error(store.pull(&format!("bad@{other}"), &[]).await).contains("expected sha256:000"));
    assert!(matches!(store.pull("UPPER", &[]).await, Err(ImageError::InvalidName { .. })));
    assert_eq!(store.list().await.expect("a list"), []);
    assert!(store.resolve(&format!("bad@{digest}")).await.expect("valid").is_none());
    assert_eq!(std::fs::read_dir(directory.path().join("tmp")).expect("there").count(), 0, "nothing is left");
}

#[tokio::test]
async fn credentials_are_tried_in_order() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let shelf = Arc::new(Shelf { password: true, ..Shelf::default() });
    shelf.image("library/private", "latest", &content(&[&[("a", b"1")]]));
    let store = store(directory.path(), &[shelf.serve().await]);
    let error = store.pull("private", &[]).await.expect_err("no credentials").to_string();
    assert!(error.contains("pull access denied, repository does not exist or may require authorization"), "{error}");
    let credential =
        |user: &str| Credential { username: user.to_owned(), password: "p".to_owned(), ..Credential::default() };
    store.pull("private", &[credential("other"), credential("u")]).await.expect("the second fits");
}

#[tokio::test]
async fn archives_come_in_and_go_out() {
    let (first, second) = (tempfile::tempdir().expect("temporary"), tempfile::tempdir().expect("temporary"));
    let one = store(first.path(), &[]);
    let content = content(&[&[("base", b"1")], &[("top", b"2")]]);
    let archive = docker_archive(&content, "me/app:v1");
    for packed in [archive.clone(), zstd::encode_all(archive.as_slice(), 1).expect("in memory")] {
        let images = one.load(packed.as_slice()).await.expect("loaded");
        assert_eq!((images.len(), images[0].id.as_str()), (1, digest_of(&content.config).as_str()));
        assert_eq!(images[0].repo_tags, ["docker.io/me/app:v1"]);
        assert_eq!(images[0].layers.len(), 2);
    }
    one.tag("me/app:v1", "other").await.expect("tagged");
    let mut saved = Vec::new();
    one.save("other").await.expect("saved").read_to_end(&mut saved).await.expect("read");
    let two = store(second.path(), &[]);
    let loaded = two.load(saved.as_slice()).await.expect("loaded again");
    assert_eq!(loaded[0].id, digest_of(&content.config));
    assert!(loaded[0].layers[1].join("top").exists());

    one.remove("me/app:v1").await.expect("removed");
    assert!(one.resolve("other").await.expect("valid").is_some(), "the other name keeps it");
    assert!(matches!(one.remove("me/app:v1").await, Err(ImageError::NotFound(_))));

    let count = one.list().await.expect("a list").len();
    for broken in [&archive[..archive.len() / 2], b"not an archive".as_slice(), &tar(&[("x", b"y")])] {
        assert!(one.load(broken).await.is_err());
    }
    assert_eq!(one.list().await.expect("a list").len(), count, "nothing changed");
}

#[tokio::test]
async fn layers_are_shared_guarded_and_repaired() {
    let directory = tempfile::tempdir().expect("temporary");
    let images = store(directory.path(), &[]);
    let base: &[(&str, &[u8])] = &[("base", b"1")];
    let load = |top: &'static [u8], tag: &'static str| docker_archive(&content(&[base, &[("top", top)]]), tag);
    let a = images.load(load(b"a", "a").as_slice()).await.expect("loaded").remove(0);
    let b = images.load(load(b"b", "b").as_slice()).await.expect("loaded").remove(0);
    assert_eq!(a.layers[0], b.layers[0]);
    let used: BTreeSet<_> = [a.layers[1].clone()].into();
    images.guard(move || used.clone()).expect("guarded");
    images.remove("a").await.expect("removed");
    assert!(a.layers[1].exists(), "a container runs on it");
    assert!(b.layers[0].exists(), "the other image has it");
    images.guard(BTreeSet::new).expect("guarded");
    assert!(!a.layers[1].exists(), "nobody has it any more");

    std::fs::remove_dir_all(&b.layers[1]).expect("damaged");
    let found = images.resolve("b").await.expect("valid").expect("repaired");
    assert!(found.layers[1].join("top").exists());
    drop(images);
    let again = store(directory.path(), &[]);
    assert_eq!(again.list().await.expect("a list"), [found], "it outlives the daemon");
    std::fs::write(directory.path().join("images.json"), b"{broken").expect("damaged");
    assert!(matches!(ImageStore::open(directory.path(), &[], IdMap::Single), Err(ImageError::Corrupt(_))));
}
