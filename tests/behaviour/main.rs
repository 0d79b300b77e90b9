//! What mimid promises, by behaviour: one binary, because linking it is the slow part.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::wildcard_enum_match_arm, clippy::while_let_loop)]
#![allow(clippy::field_reassign_with_default)]

mod backups;
mod cli;
mod client;
#[path = "../support/crooked.rs"]
mod crooked;
mod damage;
mod documents;
mod faults;
mod federation;
mod groups;
mod growth;
mod guests;
#[path = "../support/hostile.rs"]
mod hostile;
mod hostile_clients;
mod hostile_peer;
mod http;
mod hub_keys;
mod import;
mod impostors;
mod kills;
mod large_group;
mod layers;
#[path = "../support/liar.rs"]
mod liar;
mod lies;
mod links;
mod load;
mod load_report;
mod monitoring;
mod move_bounds;
mod moves;
mod moving;
#[path = "../support/not_run.rs"]
mod not_run;
mod portability;
mod power;
#[path = "../support/providers.rs"]
mod providers;
#[path = "../support/proxy.rs"]
mod proxy;
mod reload;
mod samples;
mod secrets;
mod serve;
mod stages;
mod supervised;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/unsynced.rs"]
mod unsynced;
mod vectors;
mod wire;

#[path = "../support/net.rs"]
mod net;
#[path = "../support/world.rs"]
mod world;
