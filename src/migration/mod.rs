//! The move of a group from one provider to another, as rules: who proves what to whom, and what each of the two may do
//! next. PROTOCOL.md §6; PO.
//!
//! `proof` signs and checks the structs, [`source`] and [`target`] are the two sides' durable states and what each input
//! makes of them, [`memory`] is what either need not know any more. Pure: time, keys and randomness are arguments. Three providers
//! that a group moves between, on and back, are explored together in `tests`, with every crash and every lost, late or doubled
//! message: at no time do two take commits, and from every state one of them will.
//!
//! Deliberately absent: what a group is made of (`group` exports and imports it), and doing any of it (`actors`).

pub mod memory;
pub mod proof;
pub mod source;
pub mod target;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
