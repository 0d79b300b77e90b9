//! Which proposals may be pending together: the hub keeps the set jointly committable, and a client keeps its
//! own copy by the same rules, so that both always hold the same. PROTOCOL.md §2, "Pending proposals".

use std::collections::BTreeSet;

use super::change::{Act, Author, What};
use crate::wire::ids::LeafIndex;

/// Why a proposal cannot join those that are pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PendingProblem {
    #[error("a proposal of yours for this target is pending already; wait for the next commit")]
    Duplicate,
    #[error("an Add of this client is pending already")]
    AddedAlready,
    #[error("this leaf is on its way out already")]
    LeavingAlready,
    #[error("another GroupContextExtensions proposal is pending; wait for the next commit")]
    ContextPending,
    #[error("every member would be on its way out and no one left to commit")]
    NoOneLeft,
    #[error(
        "the most proposals that may be pending are, or the most bytes of them; commit them first"
    )]
    Full,
}

/// Where `new` would stand among `pending`: the indices of those that it displaces, ascending.
///
/// # Errors
/// [`PendingProblem`]
pub fn place(
    pending: &[&Act],
    new: &Act,
    leaves: usize,
    members_pending_max: usize,
) -> Result<Vec<usize>, PendingProblem> {
    let leaving =
        |leaf: LeafIndex| pending.iter().any(|act| matches!(act.what, What::Leave(l) if l == leaf));
    let removing = |leaf: LeafIndex| {
        pending.iter().any(|act| matches!(act.what, What::Remove(l) if l == leaf))
    };
    if pending.iter().any(|act| act.author == new.author && same_target(&act.what, &new.what)) {
        return Err(PendingProblem::Duplicate);
    }
    let mut displaced = Vec::new();
    match &new.what {
        What::Add(identity) => {
            let twice = pending.iter().any(
                |act| matches!(&act.what, What::Add(other) if other.client == identity.client),
            );
            if twice {
                return Err(PendingProblem::AddedAlready);
            }
        }
        What::Update(leaf) => {
            if leaving(*leaf) || removing(*leaf) {
                return Err(PendingProblem::LeavingAlready);
            }
        }
        What::Remove(leaf) | What::Leave(leaf) => {
            // the hub's own Remove blocks what it must for as long as it stands: a member's takes nothing of that away
            let hubs = pending
                .iter()
                .any(|act| act.author == Author::Hub && act.what == What::Remove(*leaf));
            if leaving(*leaf) || (hubs && matches!(new.what, What::Remove(_))) {
                return Err(PendingProblem::LeavingAlready);
            }
            displaced = pending
                .iter()
                .enumerate()
                .filter(
                    |(_, act)| matches!(act.what, What::Update(l) | What::Remove(l) if l == *leaf),
                )
                .map(|(index, _)| index)
                .collect();
            let mut out: BTreeSet<LeafIndex> = pending.iter().filter_map(|a| goes(a)).collect();
            out.insert(*leaf);
            if out.len() >= leaves && new.author != Author::Hub {
                return Err(PendingProblem::NoOneLeft);
            }
        }
        What::Policy(_) | What::HubKey => {
            let other =
                pending.iter().any(|act| matches!(act.what, What::Policy(_) | What::HubKey));
            if other {
                return Err(PendingProblem::ContextPending);
            }
        }
        What::Join(_) | What::Resync(_) => {}
    }
    let members = pending.iter().filter(|act| act.author != Author::Hub).count();
    if new.author != Author::Hub && members - displaced.len().min(members) >= members_pending_max {
        return Err(PendingProblem::Full);
    }
    Ok(displaced)
}

/// The leaf that an act takes out of the group.
#[must_use]
pub fn goes(act: &Act) -> Option<LeafIndex> {
    match act.what {
        What::Remove(leaf) | What::Leave(leaf) => Some(leaf),
        What::Add(_)
        | What::Join(_)
        | What::Resync(_)
        | What::Update(_)
        | What::Policy(_)
        | What::HubKey => None,
    }
}

fn same_target(a: &What, b: &What) -> bool {
    let leaf = |what: &What| match what {
        What::Remove(leaf) | What::Leave(leaf) | What::Update(leaf) => Some(*leaf),
        What::Add(_) | What::Join(_) | What::Resync(_) | What::Policy(_) | What::HubKey => None,
    };
    match (a, b) {
        (What::Add(a), What::Add(b)) => a.client == b.client,
        // leaving displaces one's own Update: only like stands against like
        (What::Update(a), What::Update(b)) | (What::Leave(a), What::Leave(b)) => a == b,
        (What::Remove(_), What::Remove(_)) => leaf(a) == leaf(b),
        _ => false,
    }
}

/// Which of `pending` a commit of `committer` must cover by reference: all but its own Update (its path replaces
/// it) and an Update of a leaf that the commit removes. An external commit (no committer) must cover the
/// SelfRemoves, and voids the rest.
#[must_use]
pub fn must_cover(act: &Act, committer: Option<LeafIndex>, removed: &[LeafIndex]) -> bool {
    match (committer, &act.what) {
        (None, What::Leave(_)) => true,
        (None, _) => false,
        (Some(committer), What::Update(leaf)) => *leaf != committer && !removed.contains(leaf),
        (Some(_), _) => true,
    }
}
