//! The wire: every struct of PROTOCOL.md §1 to §5, and the codec.
//!
//! Here: types and their encoding. Deliberately absent: I/O, a clock, keys, rules. MLS's own structs are kept
//! as the bytes that came in ([`codec::Raw`]).

pub mod client;
pub mod codec;
pub mod ds;
pub mod extensions;
pub mod federation;
pub mod ids;
pub mod import;
pub mod key_packages;
pub mod mls;
pub mod portability;
pub mod queueing;

pub use codec::{DecodeError, decode, encode};
