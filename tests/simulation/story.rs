//! What a simulated cluster runs: its controllers, what a user does, and what must hold.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use mini::api::Gvr;
use mini::client::fake::{Admission, FakeApi, Logged};
use mini::controllers::Controller;

use crate::world::World;

/// A resource, its kind, and whether it is namespaced.
pub type KindRow = (Gvr, &'static str, bool);

/// The story of one seed.
pub trait Story {
    /// The kinds that play a part.
    fn kinds(&self) -> Vec<KindRow>;
    /// The controllers that act (a new process gets new ones).
    fn controllers(&mut self, world: &World) -> Vec<Arc<dyn Controller>>;
    /// What is there at the beginning.
    fn begin(&mut self, world: &World);
    /// A user does something.
    fn user_acts(&mut self, world: &World);
    /// What the server makes of new objects, or why it refuses them.
    fn admission(&self) -> Option<Admission> {
        None
    }
    /// Whether pods also fail for good.
    fn pods_fail(&self) -> bool {
        false
    }
    /// Whether somebody who plays no part makes volumes and binds claims to them.
    fn claims_get_volumes(&self) -> bool {
        true
    }
    /// The status with which the containers of a running pod come to their end; `None`: they run on.
    fn ends(&mut self, _world: &World, _pod: &Value) -> Option<Value> {
        None
    }
    /// Whether nothing happens on a node any more.
    fn is_silent(&self, _node: &str) -> bool {
        false
    }
    /// Somebody else than the controllers takes a pod, or its readiness, away.
    fn disturbed(&mut self, _pod: &Value) {}
    /// How far the clock goes at most in one step.
    fn stride(&self) -> SignedDuration {
        SignedDuration::from_secs(5)
    }
    /// When somebody who plays no part (a node with its heartbeats) has to do something again.
    fn next_deadline(&self) -> Option<Timestamp> {
        None
    }
    /// The clock went on.
    fn time_passed(&mut self, _world: &World) {}
    /// What a user does last, before everything has to come to rest.
    fn settles(&mut self, _world: &World) {}
    /// For how long deadlines are waited for while everything comes to rest.
    fn patience(&self) -> SignedDuration {
        SignedDuration::MAX
    }
    /// One change of the truth: nothing that must hold may be broken by it.
    fn see(&mut self, change: &Logged);
    /// After everything has settled.
    fn at_rest(&mut self, api: &FakeApi);
}
