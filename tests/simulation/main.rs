//! A seeded simulation of the controllers and the scheduler: the real decisions, an API in memory, a fake node, lagging
//! caches, relists, crashes in mid-plan, refused writes and conflicts. Every seed replays exactly.
//!
//! `MINI_SIMULATION_SEEDS=20000 cargo test --test simulation` tries more seeds of each story than the usual 500, and
//! `MINI_SIMULATION_FROM` begins elsewhere. Seeds that ever failed are in `tests/simulation-seeds.txt` and always run.

mod autoscaling;
mod budgets;
mod daemon_sets;
mod deployments;
mod disk;
mod identity;
mod invariants;
mod jobs;
mod node;
mod nodes;
mod ownership;
mod placement;
mod policies;
mod scheduling;
mod services;
mod stateful_sets;
mod storage;
mod story;
mod world;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use mini::config::Networking;
use mini::controllers::{ALL, Options};
use story::Story;
use world::World;

/// What happens to a cluster in one seed.
const STEPS: usize = 250;
/// Seeds of each story, beside those that are known.
const SEEDS: u64 = 500;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn run(seed: u64, story: Box<dyn Story>) {
    let mut world = World::new(seed, story);
    for _ in 0..STEPS {
        world.step();
    }
    world.settle();
}

/// Runs known and fresh seeds of a story.
fn try_seeds(name: &str, story: fn() -> Box<dyn Story>) {
    let known = include_str!("../simulation-seeds.txt");
    let of_story = |line: &&str| line.split_whitespace().nth(1) == Some(name);
    let known = known.lines().filter(|line| !line.starts_with('#')).filter(of_story);
    let known =
        known.filter_map(|line| line.split_whitespace().next()).map(|seed| seed.parse().expect("a seed is a number"));
    let from = number("MINI_SIMULATION_FROM", 1);
    let fresh = from..from + number("MINI_SIMULATION_SEEDS", SEEDS);
    let failed: Vec<u64> =
        known.chain(fresh).filter(|seed| catch_unwind(AssertUnwindSafe(|| run(*seed, story()))).is_err()).collect();
    assert!(failed.is_empty(), "these seeds of {name} failed; add them to tests/simulation-seeds.txt: {failed:?}");
}

/// The list of stories, and a test for each.
macro_rules! stories {
    ($($name:ident: $story:ty,)*) => {
        const STORIES: &[fn() -> Box<dyn Story>] = &[$(|| Box::<$story>::default(),)*];

        mod invariants_hold_and_all_comes_to_rest {
            $(#[test]
            fn $name() {
                super::try_seeds(stringify!($name), || Box::<$story>::default());
            })*
        }
    };
}

stories! {
    deployments: crate::deployments::Rollouts,
    stateful_sets: crate::stateful_sets::Ordinals,
    daemon_sets: crate::daemon_sets::Daemons,
    jobs: crate::jobs::Batch,
    nodes: crate::nodes::Machines,
    placement: crate::placement::Places,
    storage: crate::storage::Volumes,
    ownership: crate::ownership::Owners,
    identity: crate::identity::Identities,
    services: crate::services::Backends,
    autoscaling: crate::autoscaling::Loads,
    policies: crate::policies::Policies,
}

/// There is none that could not be simulated.
#[test]
fn every_controller_plays_a_part() {
    let worlds: Vec<World> = STORIES.iter().map(|story| World::new(1, story())).collect();
    let seen: BTreeSet<&str> = worlds.iter().flat_map(World::controllers).collect();
    let options = Options {
        root_ca: String::new(),
        kinds: tokio::sync::watch::channel(Arc::default()).1,
        local_node: String::new(),
        networking: networking(),
        authority: Arc::default(),
    };
    let missing: Vec<&str> = ALL.iter().map(|make| make(&options).name()).filter(|name| !seen.contains(name)).collect();
    assert!(missing.is_empty(), "no story has these controllers: {missing:?}");
}

/// The addresses of a simulated cluster.
fn networking() -> Networking {
    let range = |text: &str| text.parse().expect("a range");
    Networking {
        cluster_domain: "cluster.local".into(),
        service_cidr: range("10.96.0.0/12"),
        cluster_cidr: range("10.244.0.0/16"),
        node_cidr: range("192.168.49.0/24"),
    }
}
