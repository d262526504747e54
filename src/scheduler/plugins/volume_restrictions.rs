//! VolumeRestrictions: a claim with the access mode ReadWriteOncePod is used by one pod.

use super::{Nodes, Plugin, PodInfo, Registered, Rejection};
use crate::client::cache::Key;
use crate::scheduler::happened::{self, Happened};
use crate::scheduler::node_info::NodeInfo;

pub const PLUGIN: Registered = Registered {
    name: "VolumeRestrictions",
    make,
    helped_by: happened::POD_GONE | happened::CLAIM,
    helped: |pod, happened, _| match happened {
        Happened::PodGone { pod: gone, .. } => pod.claims.iter().any(|claim| gone.claims.contains(claim)),
        Happened::Claim(claim) => pod.claims.contains(claim),
        _ => false,
    },
};

struct VolumeRestrictions<'a> {
    claims: Vec<&'a Key>,
    /// How often other pods use them.
    used: i64,
}

fn make<'a>(pod: &'a PodInfo, nodes: &'a Nodes) -> Option<Box<dyn Plugin<'a> + 'a>> {
    let exclusive = |claim: &&Key| {
        nodes.volumes.find(claim).is_some_and(|claim| {
            let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_ref());
            modes.is_some_and(|modes| modes.iter().any(|mode| mode == "ReadWriteOncePod"))
        })
    };
    let claims: Vec<&Key> = pod.claims.iter().filter(exclusive).collect();
    if claims.is_empty() {
        return None;
    }
    let mut plugin = VolumeRestrictions { claims, used: 0 };
    plugin.used = nodes.pods.iter().map(|placed| plugin.shared(&placed.pod)).sum();
    Some(Box::new(plugin))
}

impl VolumeRestrictions<'_> {
    fn shared(&self, other: &PodInfo) -> i64 {
        let shared = self.claims.iter().filter(|claim| other.claims.contains(claim)).count();
        i64::try_from(shared).unwrap_or(i64::MAX)
    }
}

impl<'a> Plugin<'a> for VolumeRestrictions<'a> {
    fn filter(&self, _pod: &PodInfo, _node: &NodeInfo) -> Result<(), Rejection> {
        if self.used == 0 {
            return Ok(());
        }
        Rejection::resolvable(
            "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
        )
    }
    fn moved(&mut self, _pod: &PodInfo, other: &'a PodInfo, _node: &'a NodeInfo, sign: i64) {
        self.used += sign * self.shared(other);
    }
}
