//! mimid: a MIMI provider. It hosts MLS groups (Delivery Service), holds its users' clients' queues and
//! KeyPackages (Queueing Service) and speaks to its clients over HTTPS.
//!
//! Imports go downward only; `tests/behaviour/layers.rs` scans for it:
//!
//! ```text
//! wire        types and codec of PROTOCOL.md; no I/O, no clock
//! crypto      hashing, signatures, AEAD; the openmls crypto provider        wire
//! policy      what a change of a group may do: one piece for server and client  wire, crypto
//! group, queue, key_package, account
//!             the rules: pure, synchronous, time is an argument             wire, crypto, policy
//! store       trait, batch, keys; sled, memory                              wire, records of the rules
//! federation  signed messages between providers, their keys, the way there  the above
//! actors      groups, queues, admission: thin                               the above
//! http        client and ops listeners                                      wire, actor handles
//! server      composition root: config, clock, metrics, telemetry
//! client      the client library                                            wire, crypto, policy, migration
//! load        load for providers: workloads of real clients, runs, reports      wire, crypto, policy, client
//! cli         the subcommands                                               client, server, load
//! ```
#![forbid(unsafe_code)]

pub mod account;
pub mod actors;
pub mod cli;
pub mod client;
pub mod crypto;
pub mod federation;
pub mod group;
#[cfg(test)]
#[path = "../tests/support/growth.rs"]
mod growth;
pub mod http;
pub mod key_package;
pub mod load;
pub mod migration;
pub mod policy;
pub mod queue;
pub mod rate;
pub mod server;
#[cfg(test)]
mod simulation;
pub mod store;
pub mod wire;
