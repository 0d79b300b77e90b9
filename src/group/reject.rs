//! Why a group refuses a request, with the facts that a client needs. It becomes a `DSStatus` once, in `actors`.

use crate::policy::{Denied, change::ChangeProblem, leaf::LeafProblem, pending::PendingProblem};
use crate::wire::{
    ids::{Epoch, Timestamp},
    mls::MlsMessage,
};

use super::mls::MlsProblem;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    #[error("{0}")]
    Malformed(String),
    #[error("this hub speaks version 1 (mimi10) only")]
    UnsupportedVersion,
    #[error("{0}")]
    Unauthenticated(&'static str),
    #[error("{0}")]
    NotAuthorized(String),
    #[error("there is no such group here; check the group id and the hub")]
    NotFound,
    #[error("{0}")]
    InvalidGroupId(&'static str),
    #[error("KeyPackage {index}: {why}; fetch a new one")]
    InvalidKeyPackage { index: u32, why: String },
    #[error("{0}")]
    InvalidGroupInfo(String),
    /// `missed` holds the handshake messages since the sender's epoch; empty where they are too many.
    #[error(
        "the group is in epoch {current}: process what you missed and send it anew under the same request id"
    )]
    WrongEpoch { current: Epoch, missed: Vec<MlsMessage> },
    #[error("{0}")]
    InvalidCommit(String),
    #[error("{why}")]
    InvalidProposal { why: String, refs: Vec<Vec<u8>> },
    /// `commit`: it is a commit that does not cover them.
    #[error("{why}; process the pending proposals and commit them by reference")]
    Pending { why: &'static str, pending: Vec<MlsMessage>, commit: bool },
    #[error("{0}")]
    InvalidMessage(String),
    #[error("{what} is larger than the {limit} bytes that this hub takes")]
    TooLarge { what: &'static str, limit: usize },
    #[error("more than {limit} {what} in one request")]
    TooMany { what: &'static str, limit: usize },
    #[error(
        "the request's timestamp is outside the hub's window, or a later one overtook it; sign it anew"
    )]
    Stale { now: Timestamp },
    /// The milliseconds after which it can be tried again.
    #[error("too many requests of this member, or to this group; wait")]
    RateLimited(u64),
    /// [`crate::group::Heard`]
    #[error(
        "members say that nobody can come in by this epoch's GroupInfo; try again after the next commit"
    )]
    BadInfo,
    #[error("proposals of yours made commits fail in this epoch; wait for the next one")]
    Blocking,
    /// A broken invariant of ours: the actor stops and the group is loaded anew.
    #[error("the group's state is inconsistent: {0}")]
    Broken(String),
}

impl From<Denied> for Reject {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::BadPolicy(why) => {
                Self::InvalidCommit(format!("the policy is not well-formed: {why}"))
            }
            Denied::NoSuchLeaf(_) | Denied::NotItself => Self::InvalidCommit(denied.to_string()),
            Denied::Banned
            | Denied::Role { .. }
            | Denied::Rank(_)
            | Denied::GivesRole
            | Denied::Threshold
            | Denied::NoAdminLeft
            | Denied::Closed
            | Denied::NotAMember
            | Denied::BadJoinProof
            | Denied::AddsBanned
            | Denied::TooManyMembers { .. }
            | Denied::NotTheHubs => Self::NotAuthorized(denied.to_string()),
        }
    }
}

impl From<ChangeProblem> for Reject {
    fn from(problem: ChangeProblem) -> Self {
        match problem {
            ChangeProblem::Refused(..) => {
                Self::InvalidProposal { why: problem.to_string(), refs: Vec::new() }
            }
            ChangeProblem::Leaf(_)
            | ChangeProblem::Key(_)
            | ChangeProblem::BadResync
            | ChangeProblem::Context(_)
            | ChangeProblem::Sender => Self::InvalidCommit(problem.to_string()),
        }
    }
}

impl From<LeafProblem> for Reject {
    fn from(problem: LeafProblem) -> Self {
        Self::InvalidCommit(problem.to_string())
    }
}

impl From<PendingProblem> for Reject {
    fn from(problem: PendingProblem) -> Self {
        Self::InvalidProposal { why: problem.to_string(), refs: Vec::new() }
    }
}

impl From<MlsProblem> for Reject {
    fn from(problem: MlsProblem) -> Self {
        match problem {
            MlsProblem::Invalid(why) => Self::InvalidCommit(why),
            MlsProblem::NotPending => Self::InvalidCommit(problem.to_string()),
            MlsProblem::GroupInfo | MlsProblem::GroupInfoExtensions => {
                Self::InvalidGroupInfo(problem.to_string())
            }
            MlsProblem::Record => Self::Broken(problem.to_string()),
        }
    }
}
