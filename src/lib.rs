//! `mini`: a whole Kubernetes cluster in one static binary.
//!
//! Layers, from the bottom (`tests/tidy.rs` fails when one is crossed):
//! `env`, `config`, `telemetry` <- `api` <- `client` <- {`controllers`, `scheduler`, `node`, `net`, `addons`};
//! `storage` knows no kinds; `apiserver` imports `api` and `storage`; `cluster` is the one composition root;
//! `cli` talks to users. See ARCHITECTURE.md.

pub mod addons;
pub mod api;
pub mod apiserver;
pub mod builtin_images;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
pub mod controllers;
pub mod env;
pub mod net;
pub mod node;
pub mod scheduler;
pub mod storage;
pub mod telemetry;
