//! `mimid load`: what a run against providers has measured ([`result`]), how it comes together ([`recorder`]), and what can be read
//! out of it.
//!
//! Times are arguments: a run says when something was due and how long it took, and nothing here looks at a clock.

pub mod latencies;
pub mod recorder;
pub mod result;
