//! What can be found broken: by kind, so that a fault is known to be found by what it breaks, and in words for people.

use std::fmt;

/// What must be so and is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Invariant {
    /// One epoch of a group has one commit, and all who are in it are in the same.
    OneCommit,
    /// All who have a place of a group's feed have the same there.
    OneLog,
    /// What a client is handed follows on what it was handed before.
    NoGap,
    NothingBehindRemoval,
    OneHub,
    /// What was answered is there: a client is known to its provider, a text is shown to all who are owed it.
    NothingLost,
    /// What is shown was said, there, and by that sender; and is shown once.
    SaidOnce,
    /// Who is deleted is in no group, and nobody is in a group that is deleted.
    DeletedIsGone,
    /// Nobody is held to have lied but who may have.
    BlamesLiars,
    /// No client complains of its provider.
    NoComplaint,
    /// What is owed comes in bounded time.
    InTime,
    /// Who does not answer is not tried too often, and what waits is bounded.
    Bounded,
    /// When faults are over everything comes to rest, and all can speak and are heard.
    ComesToRest,
    /// No part of the simulation panics, or goes on for ever.
    Ends,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    pub of: Invariant,
    pub what: String,
}

impl Invariant {
    pub fn broken(self, what: impl Into<String>) -> Violation {
        Violation { of: self, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{:?}: {}", self.of, self.what)
    }
}
