//! The composition root: from a configuration to a running node, and back to nothing.
//!
//! Here: configuration, the node's keys and certificate, telemetry, start and stop. Deliberately absent: anything
//! that happens per request.

mod certificate_metrics;
pub mod config;
pub mod endpoints;
mod files;
#[cfg(fuzzing)]
pub mod fuzzing;
mod key_file;
pub mod keys;
mod outside;
mod process_metrics;
mod reload;
pub(crate) mod run;
pub mod s2s_keys;
pub mod sender_keys;
mod setting;
mod store_metrics;
pub mod telemetry;
mod watch;

pub use config::{Config, ConfigError};
pub use endpoints::Endpoints;
pub use run::{Running, StartError, start, start_at};
pub use watch::Watch;
