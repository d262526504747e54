//! A seeded simulation of the controllers and the scheduler: the real decisions, an API in memory, a fake node, lagging
//! caches, relists, crashes in mid-plan, refused writes and conflicts. Every seed replays exactly.
//!
//! `MINI_SIMULATION_SEEDS=20000 cargo test --test simulation` tries more seeds than the usual 200, and
//! `MINI_SIMULATION_FROM` begins elsewhere. Seeds that ever failed are in `tests/simulation-seeds.txt` and always run.

mod daemon_sets;
mod deployments;
mod invariants;
mod stateful_sets;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What happens to a cluster in one seed.
const STEPS: usize = 250;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn run(seed: u64, story: Box<dyn world::Story>) {
    let mut world = world::World::new(seed, story);
    for _ in 0..STEPS {
        world.step();
    }
    world.settle();
}

/// Runs known and fresh seeds of a story.
fn try_seeds(name: &str, story: impl Fn() -> Box<dyn world::Story>) {
    let known = include_str!("../simulation-seeds.txt");
    let of_story = |line: &&str| line.split_whitespace().nth(1) == Some(name);
    let known = known.lines().filter(|line| !line.starts_with('#')).filter(of_story);
    let known =
        known.filter_map(|line| line.split_whitespace().next()).map(|seed| seed.parse().expect("a seed is a number"));
    let from = number("MINI_SIMULATION_FROM", 1);
    let fresh = from..from + number("MINI_SIMULATION_SEEDS", 200);
    let failed: Vec<u64> =
        known.chain(fresh).filter(|seed| catch_unwind(AssertUnwindSafe(|| run(*seed, story()))).is_err()).collect();
    assert!(failed.is_empty(), "these seeds of {name} failed; add them to tests/simulation-seeds.txt: {failed:?}");
}

#[test]
fn deployments_keep_the_invariants_and_converge() {
    try_seeds("deployments", || Box::new(deployments::Rollouts::default()));
}

#[test]
fn stateful_sets_keep_the_invariants_and_converge() {
    try_seeds("stateful_sets", || Box::new(stateful_sets::Ordinals::default()));
}

#[test]
fn daemon_sets_keep_the_invariants_and_converge() {
    try_seeds("daemon_sets", || Box::new(daemon_sets::Daemons::default()));
}
