//! The Delivery Service's rules, driven by real MLS clients: the client library's core (`scenario`) and openmls itself
//! where somebody does what no client of ours would (`rogue`). Every refusal is seen to change nothing, and after every
//! step the group that is loaded from its log equals the live one: the fixture checks both.

#[cfg(test)]
mod authentication;
#[cfg(test)]
mod creation;
#[cfg(test)]
#[path = "../../../tests/support/crooked.rs"]
pub(crate) mod crooked;
#[cfg(fuzzing)]
pub(super) mod fuzzed;
#[cfg(test)]
mod guests;
#[cfg(test)]
mod hub_keys;
#[cfg(test)]
mod hub_removals;
#[cfg(test)]
mod leaves;
#[cfg(test)]
mod lies;
#[cfg(test)]
mod memberships;
#[cfg(test)]
mod operations;
#[cfg(test)]
mod outsiders;
#[cfg(test)]
mod pending;
#[cfg(test)]
mod portability;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod records;
#[cfg(test)]
mod refused;
#[cfg(test)]
mod restored;
#[cfg(test)]
mod rogue;
mod scenario;
mod steps;
#[cfg(test)]
mod untagged;
#[cfg(test)]
mod unusable;
