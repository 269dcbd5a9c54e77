//! What the API answers: a file for each resource, with its routes, its bodies and its handlers.
//!
//! A resource's file lists its routes with what they declare (`builder`); `router` assembles them
//! and puts the layers of `server`, `forward` and `request` around each, as it declares.

mod builder;
mod cluster;
mod cluster_events;
mod events;
mod hooks;
mod jobs;
mod join_tokens;
mod locks;
mod operations;
pub(crate) mod router;
mod runs;
mod tenants;
mod usage;
mod workflows;
