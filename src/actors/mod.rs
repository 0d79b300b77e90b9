//! The node at work: actors that translate, persist and notify around the rules of the layers below.
//!
//! Here: [`node::Node`], all that a listener may ask for; one actor per active queue; the services of accounts
//! and KeyPackages. Deliberately absent: rules (they are pure, below) and HTTP (above).

pub mod accounts;
mod acquaintances;
mod active;
mod ages;
pub mod arbiters;
mod arrivals;
pub mod backup;
pub mod clock;
mod copies;
pub mod deliver;
mod departures;
mod errors;
mod federated;
pub mod group;
pub mod groups;
mod guest;
pub mod hints;
mod history;
pub mod hub_keys;
pub mod import;
pub mod key_packages;
pub mod limits;
pub mod live;
pub mod metrics;
mod moves;
pub mod node;
pub mod nonces;
pub mod overload;
mod peer;
pub mod peers;
pub mod pulse;
pub mod queue;
mod relay;
pub mod stages;
pub mod tokens;
mod turns;

pub use arrivals::ArrivalState;
pub use clock::Clock;
pub use departures::DepartureState;
pub use groups::GroupOptions;
pub use limits::Limits;
pub use metrics::Metrics;
pub use moves::MoveLimits;
pub use node::{Node, NodeParts, ProviderKey};
pub use overload::{Admission, Ticket};
pub use peers::{PeerLimits, PeerState};
pub use queue::QueueStream;

#[cfg(test)]
mod account_tests;
#[cfg(test)]
mod deliver_tests;
#[cfg(test)]
mod guest_tests;
#[cfg(test)]
mod key_package_tests;
#[cfg(test)]
mod queue_tests;
#[cfg(test)]
pub(crate) mod testing;
