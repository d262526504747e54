//! VolumeZone: a volume with a zone or region label is used there.

use k8s_openapi::api::core::v1::PersistentVolume;

use super::{Nodes, Plugin, PodInfo, Registered, Rejection};
use crate::client::typed::Meta;
use crate::scheduler::happened::{self, Happened};
use crate::scheduler::node_info::NodeInfo;
use crate::scheduler::volumes::is_bound;

pub const PLUGIN: Registered = Registered {
    name: "VolumeZone",
    make,
    helped_by: happened::NODE | happened::CLAIM | happened::VOLUME | happened::CLASS,
    helped: |pod, happened, _| match happened {
        Happened::Claim(claim) => pod.claims.contains(claim),
        _ => true,
    },
};

/// The label, and its older name.
const LABELS: [[&str; 2]; 2] = [
    ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"],
    ["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"],
];

/// Labels of volumes: which one, and the values that it allows.
struct VolumeZone<'a>(Vec<([&'static str; 2], Vec<&'a str>)>);

fn make<'a>(pod: &'a PodInfo, nodes: &'a Nodes) -> Option<Box<dyn Plugin<'a> + 'a>> {
    let claims = pod.claims.iter().filter_map(|key| nodes.volumes.find(key)).filter(|claim| is_bound(claim));
    let volumes = claims.filter_map(|claim| nodes.volumes.volume_of(claim));
    let wanted: Vec<_> = volumes.flat_map(|volume| zones(volume)).collect();
    (!wanted.is_empty()).then(|| Box::new(VolumeZone(wanted)) as Box<dyn Plugin<'a>>)
}

fn zones(volume: &PersistentVolume) -> impl Iterator<Item = ([&'static str; 2], Vec<&str>)> {
    LABELS.into_iter().flat_map(move |names| {
        let values = names.into_iter().filter_map(|name| volume.labels().get(name));
        values.map(move |values| (names, values.split("__").collect()))
    })
}

impl Plugin<'_> for VolumeZone<'_> {
    fn filter(&self, _pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        // A node without any such label is not in a cloud, and volumes are everywhere.
        let anywhere = LABELS.iter().flatten().all(|name| node.label(name).is_none());
        let fits = |(names, values): &([&str; 2], Vec<&str>)| {
            let mut labels = names.iter().filter_map(|name| node.label(name));
            labels.any(|label| values.contains(&label.as_str()))
        };
        if anywhere || self.0.iter().all(fits) {
            return Ok(());
        }
        Rejection::hopeless("node(s) had no available volume zone")
    }
}
