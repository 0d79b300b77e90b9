//! The client library.
//!
//! [`core`] is one client's state without a network.

pub mod core;
