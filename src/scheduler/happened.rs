//! What happens in a cluster that may help a pod which fits nowhere.

use k8s_openapi::api::core::v1::Node;

use super::node_info::NodeInfo;
use super::pod_info::PodInfo;
use crate::client::cache::Key;

/// Something that happened. Plugins say which of these may end a rejection of theirs, and look closer at each.
#[derive(Clone, Copy, Debug)]
pub enum Happened<'a> {
    /// A node came.
    NodeAdded(&'a NodeInfo),
    /// A node's allocatable, labels, taints or `unschedulable` changed.
    NodeChanged {
        /// The node before.
        old: &'a Node,
        /// And now.
        new: &'a NodeInfo,
    },
    /// A node went.
    NodeGone(&'a Node),
    /// A pod got a node.
    PodPlaced(&'a PodInfo),
    /// A pod with a node changed its labels, or requests less.
    PodChanged {
        /// The pod before.
        old: &'a PodInfo,
        /// And now.
        new: &'a PodInfo,
        /// Its node.
        node: &'a str,
    },
    /// A pod with a node went.
    PodGone {
        /// The pod.
        pod: &'a PodInfo,
        /// The node that it was on.
        node: &'a str,
    },
    /// The pod itself changed its labels, tolerations or requests; the pod before.
    Itself(&'a PodInfo),
    /// A claim came or changed.
    Claim(&'a Key),
    /// A volume came or changed.
    Volume,
    /// A storage class came or changed.
    Class,
    /// A namespace has other labels.
    Namespace,
}

impl Happened<'_> {
    /// One bit for each kind of event.
    pub const fn bit(&self) -> u16 {
        match self {
            Self::NodeAdded(_) => NODE_ADDED,
            Self::NodeChanged { .. } => NODE_CHANGED,
            Self::NodeGone(_) => NODE_GONE,
            Self::PodPlaced(_) => POD_PLACED,
            Self::PodChanged { .. } => POD_CHANGED,
            Self::PodGone { .. } => POD_GONE,
            Self::Itself(_) => ITSELF,
            Self::Claim(_) => CLAIM,
            Self::Volume => VOLUME,
            Self::Class => CLASS,
            Self::Namespace => NAMESPACE,
        }
    }
    /// The node that came or changed.
    pub fn node(&self) -> Option<&NodeInfo> {
        match self {
            Self::NodeAdded(node) | Self::NodeChanged { new: node, .. } => Some(node),
            _ => None,
        }
    }
}

/// [`Happened::NodeAdded`], and so on.
pub const NODE_ADDED: u16 = 1;
/// See [`Happened`].
pub const NODE_CHANGED: u16 = 1 << 1;
/// See [`Happened`].
pub const NODE_GONE: u16 = 1 << 2;
/// See [`Happened`].
pub const POD_PLACED: u16 = 1 << 3;
/// See [`Happened`].
pub const POD_CHANGED: u16 = 1 << 4;
/// See [`Happened`].
pub const POD_GONE: u16 = 1 << 5;
/// See [`Happened`].
pub const ITSELF: u16 = 1 << 6;
/// See [`Happened`].
pub const CLAIM: u16 = 1 << 7;
/// See [`Happened`].
pub const VOLUME: u16 = 1 << 8;
/// See [`Happened`].
pub const CLASS: u16 = 1 << 9;
/// See [`Happened`].
pub const NAMESPACE: u16 = 1 << 10;
/// A node came or changed.
pub const NODE: u16 = NODE_ADDED | NODE_CHANGED;
/// How many kinds of events there are.
pub const KINDS: usize = 11;
