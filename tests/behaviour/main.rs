//! What mimid promises, by behaviour: one binary, because linking it is the slow part.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cli;
mod client;
mod groups;
mod http;
mod import;
mod large_group;
mod layers;
mod samples;
#[path = "../support/mod.rs"]
mod support;
mod vectors;
mod wire;

#[path = "../support/world.rs"]
mod world;
