//! What tests and benches share: groups of any size, and real clients that use them.
#![allow(dead_code, reason = "each binary uses a part of it")]

pub mod hosted;
pub mod synth;
