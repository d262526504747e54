//! ImageLocality: nodes that have the pod's images are liked better, the more the larger the images are.

use super::{MOST, Nodes, Plugin, PodInfo, Registered};
use crate::scheduler::node_info::NodeInfo;

pub const PLUGIN: Registered = Registered { name: "ImageLocality", make, helped_by: 0, helped: |_, _, _| false };

const MEGABYTE: i64 = 1024 * 1024;
/// Below this sum images do not matter, and beyond 1000 MB per container more does not matter more.
const LEAST: i64 = 23 * MEGABYTE;
const MOST_PER_CONTAINER: i64 = 1000 * MEGABYTE;

struct ImageLocality {
    /// The images, each with the share of nodes that have it.
    images: Vec<(String, f64)>,
    /// The sum from which more does not matter.
    most: i64,
}

#[expect(clippy::cast_precision_loss, reason = "numbers of nodes are small")]
fn make<'a>(pod: &'a PodInfo, nodes: &'a Nodes) -> Option<Box<dyn Plugin<'a> + 'a>> {
    let spec = pod.spec()?;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let containers = containers.map(|container| container.image.as_deref());
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref());
    let volumes = volumes.map(|image| image.reference.as_deref());
    let names: Vec<String> = containers.chain(volumes).map(|name| normalized(name.unwrap_or_default())).collect();
    let count = i64::try_from(names.len().max(1)).unwrap_or(i64::MAX);
    // An image that is on few nodes counts less, so that pods do not crowd there.
    let share = |name: String| {
        let share = nodes.nodes_with(&name) as f64 / nodes.len().max(1) as f64;
        (share > 0.0).then_some((name, share))
    };
    let images: Vec<_> = names.into_iter().filter_map(share).collect();
    (!images.is_empty())
        .then(|| Box::new(ImageLocality { images, most: MOST_PER_CONTAINER.saturating_mul(count) }) as Box<dyn Plugin>)
}

/// A name as nodes report it: with a tag.
fn normalized(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

impl Plugin<'_> for ImageLocality {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "sizes of images in bytes")]
    fn score(&self, _pod: &PodInfo, node: &NodeInfo) -> i64 {
        let here = self.images.iter().filter_map(|(image, share)| Some(*node.images.get(image)? as f64 * share));
        let sum: i64 = here.map(|size| size as i64).sum();
        (sum.clamp(LEAST, self.most) - LEAST) * MOST / (self.most - LEAST)
    }
    fn weight(&self) -> i64 {
        1
    }
}
