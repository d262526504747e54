//! The images of the tutorial's pages: built once, kept in a cache, offered by a registry with real pulls.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use serde_json::Value;

use super::blob::{self, Blob};
use super::oci;
use super::packages::{Apt, Package};
use super::pages::ALL;
use super::recipe::{Image, Layer};
use super::{Protection, Registry};
use crate::world::World;

/// Where images are kept between runs; who may not write there needs somebody who has built them.
fn cache() -> PathBuf {
    std::env::var_os("MINI_TEST_CACHE").map_or_else(|| "/var/cache/mini-tests".into(), PathBuf::from)
}

/// A registry with all images of the pages, under the pages' names.
pub fn registry(world: &World) -> Registry {
    let cache = cache();
    let stale = |image: &&Image| !is_offered(&cache, image);
    if ALL.iter().any(|image| stale(&image)) {
        fs::create_dir_all(&cache).expect("MINI_TEST_CACHE can be written: tests/run sees to it");
        let lock = File::create(cache.join("lock")).expect("the cache can be written");
        lock.lock().expect("others finish");
        let images: Vec<&Image> = ALL.iter().filter(stale).collect();
        let start = Instant::now();
        let layers = build(&cache, &images);
        offer(world, &cache, &images, &layers);
        println!("{} images built and offered in {:?}", images.len(), start.elapsed());
    }
    Registry::serve(world, "pages", &cache.join("registry"), &Protection { read_only: true, ..Protection::default() })
}

/// The file that says which recipe a name was last built by.
fn mark(cache: &Path, name: &str) -> PathBuf {
    cache.join("offered").join(name.replace('/', "_"))
}

fn is_offered(cache: &Path, image: &Image) -> bool {
    image.names.iter().all(|name| fs::read_to_string(mark(cache, name)).is_ok_and(|key| key == image.key()))
}

/// The layers of `images` by their keys; those that are not in the cache are packed.
fn build(cache: &Path, images: &[&Image]) -> BTreeMap<String, Blob> {
    let directory = cache.join("layers");
    fs::create_dir_all(&directory).expect("the cache can be written");
    let layers: BTreeMap<String, &'static Layer> =
        images.iter().flat_map(|image| image.top.stack()).map(|layer| (layer.key(), layer)).collect();
    let kept = |key: &str| -> Option<Blob> {
        let text = fs::read(directory.join(format!("{key}.json"))).ok()?;
        Blob::from_json(&serde_json::from_slice::<Value>(&text).ok()?)
    };
    let mut blobs: BTreeMap<String, Blob> = layers.keys().filter_map(|k| Some((k.clone(), kept(k)?))).collect();
    let missing: Vec<(&String, &'static Layer)> =
        layers.iter().filter(|(key, _)| !blobs.contains_key(*key)).map(|(key, layer)| (key, *layer)).collect();
    if missing.is_empty() {
        return blobs;
    }
    let files = fetch(&cache.join("apt"), &missing);
    let work = Mutex::new(missing.into_iter().zip(files));
    let done = Mutex::new(Vec::new());
    let next = || work.lock().expect("nobody panicked").next();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(((key, layer), packages)) = next() {
                    let path = directory.join(format!("{key}.tar.zst"));
                    let blob = blob::pack(layer, &packages, &path).expect("packages can be read");
                    println!("layer {}: {} packages, {} bytes", layer.name, packages.len(), blob.size);
                    fs::write(directory.join(format!("{key}.json")), blob.to_json().to_string()).expect("written");
                    done.lock().expect("nobody panicked").push((key.clone(), blob));
                }
            });
        }
    });
    fs::remove_dir_all(cache.join("apt")).expect("the cache is ours");
    blobs.extend(done.into_inner().expect("nobody panicked"));
    blobs
}

/// The package files of each layer.
fn fetch(apt: &Path, layers: &[(&String, &'static Layer)]) -> Vec<Vec<PathBuf>> {
    let apt = Apt::new(apt);
    let mut known: BTreeMap<String, Vec<Package>> = BTreeMap::new();
    for (_, layer) in layers {
        let mut below = Vec::new();
        for layer in layer.stack() {
            let closure = known.entry(layer.key()).or_insert_with(|| {
                if layer.packages.is_empty() {
                    return Vec::new();
                }
                let without: Vec<&str> = layer.stack().iter().flat_map(|l| l.without).copied().collect();
                apt.closure(layer.packages, &below, &without)
            });
            below.extend(closure.iter().cloned());
        }
    }
    let own = |key: &String| known[key].clone();
    apt.fetch(&layers.iter().flat_map(|(key, _)| own(key)).collect::<Vec<_>>());
    layers.iter().map(|(key, _)| apt.fetch(&own(key))).collect()
}

/// Pushes images into the cache's registry, as anybody would.
fn offer(world: &World, cache: &Path, images: &[&Image], layers: &BTreeMap<String, Blob>) {
    let registry = Registry::serve(world, "filling", &cache.join("registry"), &Protection::default());
    fs::create_dir_all(cache.join("offered")).expect("the cache can be written");
    let layout = world.home().join("layout");
    for image in images {
        let stack = image.top.stack();
        let blobs: Vec<Blob> = stack.iter().map(|layer| layers[&layer.key()].clone()).collect();
        let documents = oci::documents(image.names[0], &image.config(), &blobs);
        let directory = layout.join("blobs/sha256");
        fs::create_dir_all(&directory).expect("the home is ours");
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
        fs::write(layout.join("index.json"), &documents.index).expect("written");
        for (digest, bytes) in [&documents.config, &documents.manifest] {
            fs::write(directory.join(digest), bytes).expect("written");
        }
        for (layer, blob) in stack.iter().zip(&blobs) {
            let packed = cache.join("layers").join(format!("{}.tar.zst", layer.key()));
            std::os::unix::fs::symlink(packed, directory.join(&blob.digest)).expect("a link to the layer");
        }
        for name in image.names {
            world.ok(&format!(
                "skopeo copy -q --insecure-policy --dest-tls-verify=false oci:{} docker://{}/{name}",
                layout.display(),
                registry.address
            ));
            fs::write(mark(cache, name), image.key()).expect("written");
        }
        fs::remove_dir_all(&layout).expect("it is ours");
    }
}

#[test]
fn every_image_of_the_pages_is_offered() {
    let world = World::new();
    let registry = registry(&world);
    for name in ALL.iter().flat_map(|image| image.names) {
        let (repository, tag) = name.rsplit_once(':').expect("names have tags");
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", registry.address);
        let status = "curl -s -o /dev/null -w '%{http_code}' -H 'Accept: application/vnd.oci.image.manifest.v1+json'";
        assert_eq!(world.ok(&format!("{status} {url}")), "200", "{name}");
    }
}
