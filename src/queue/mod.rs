//! The rules of the Queueing Service: whose queue a token opens, and what a client's queue delivers next.
//!
//! Pure: time, randomness and what the store holds are arguments. PROTOCOL.md §1 ("Where a client's messages
//! go") and §3; DS §6.

pub mod feed;
pub mod followed;
pub mod state;
pub mod token;

#[cfg(test)]
mod followed_tests;
#[cfg(test)]
mod followed_world;
#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod state_world;
// the same files: clippy knows tests by the line above
#[cfg(all(fuzzing, not(test)))]
mod followed_world;
#[cfg(all(fuzzing, not(test)))]
mod state_world;
