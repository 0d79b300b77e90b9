//! The listeners: HTTPS for a provider's own clients and for other providers, plain HTTP on loopback for its operator.
//!
//! Here: reading a request within its limits, what it is called, and how an answer becomes HTTP. PROTOCOL.md §3
//! ("A client and its own provider") and §4. Deliberately absent: every rule (that is `actors::Node`'s), files and
//! configuration (`server`). A limit and a timeout stand before everything that a stranger can make us do.

mod addresses;
mod answer;
mod backup;
mod body;
mod client;
mod connection;
#[cfg(test)]
pub(crate) mod doors;
mod drain;
mod endpoint;
mod federation;
mod frames;
mod front;
#[cfg(fuzzing)]
pub mod fuzzing;
mod h2;
mod limits;
mod linger;
mod listen;
mod lobby;
mod metrics;
pub mod migrations;
mod ops;
#[cfg(test)]
mod overload_tests;
mod pace;
pub mod peers;
mod permits;
mod slow;
mod status;
mod stream;
mod tls;
mod trace;
mod well_known;

pub use client::client_listener;
pub use drain::{Drain, DrainSwitch};
pub use endpoint::Endpoint;
pub use federation::federation_listener;
pub use front::{Adjust, Listener};
pub use limits::{FederationLimits, Limits};
pub use metrics::HttpMetrics;
pub use ops::ops_listener;
pub use tls::{Certificates, Certified, TlsError, replaceable_tls, server_tls};
pub use well_known::{DS_DOMAIN, DsDomain};
