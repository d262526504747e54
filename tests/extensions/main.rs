//! Extending the API: custom resources, webhooks, policies and aggregated API servers, against real HTTPS servers on loopback.

mod aggregation;
mod conversion;
mod custom_resources;
mod policies;
mod webhooks;
mod world;
