//! The Delivery Service's rules, driven by real MLS clients: the client library's core (`scenario`) and openmls itself
//! where somebody does what no client of ours would (`rogue`). Every refusal is seen to change nothing, and after every
//! step the group that is loaded from its log equals the live one: the fixture checks both.

mod authentication;
mod creation;
mod guests;
mod hub_keys;
mod hub_removals;
mod leaves;
mod lies;
mod memberships;
mod operations;
mod outsiders;
mod pending;
mod portability;
mod properties;
mod records;
mod refused;
mod restored;
mod rogue;
mod scenario;
