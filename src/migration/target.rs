//! The provider that a group comes to. Agreeing costs it nothing: what it signed comes back with the content.

use super::proof::follow_chain;
use crate::wire::{
    codec::List,
    ids::{Domain, Epoch, Sequence, Timestamp},
    portability::{Chain, MigrationConfirmation},
};

/// What this provider has written down about a group and a nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Known {
    /// The group is hosted here, is on its way elsewhere, or was deleted: it cannot come in.
    pub taken: bool,
    /// The group came in by this nonce, by the content with this hash, whatever became of it since.
    pub arrived: Option<[u8; 32]>,
    /// The nonce was refused.
    pub refused: bool,
}

/// What is done with a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is written down, and then this provider is the hub.
    Take,
    /// It was taken before: the same answer.
    Taken { hash: [u8; 32] },
    /// Never: written down first, where the nonce has not expired by itself.
    Refuse,
}

/// Judges a content for a nonce of this provider's that ends at `expires_at`. `fits`: whether everything in it is good and
/// may come here.
#[must_use]
pub fn judge_content(known: &Known, expires_at: Timestamp, now: Timestamp, fits: bool) -> Verdict {
    match known.arrived {
        Some(hash) => Verdict::Taken { hash },
        None if known.refused || known.taken || now >= expires_at || !fits => Verdict::Refuse,
        None => Verdict::Take,
    }
}

/// Judges the source's wish to end it.
#[must_use]
pub fn judge_abort(known: &Known) -> Verdict {
    match known.arrived {
        Some(hash) => Verdict::Taken { hash },
        None => Verdict::Refuse,
    }
}

/// How a group came here the last time, as far as that is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Came {
    pub nonce: [u8; 32],
    pub source: Domain,
    /// The epoch that it came in, and the first sequence that it was given here.
    pub epoch: Epoch,
    pub next_sequence: Sequence,
    pub confirmed: bool,
}

/// What is done with a source's word that a group has moved here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// The group did not come here by that move, or that is forgotten: as is only what was confirmed.
    Unknown,
    /// It was taken before: the same answer.
    Known,
    /// Where it is signed by its source it is written down, with these moves of the group's up to here.
    Take { chain: Chain },
    /// It is not what was done. With such a link nobody would follow the chain any more, nor the group's next move.
    Misfit,
}

/// Judges a confirmation that `own` got, by how the group came and the moves before that one. Its signature is checked apart.
#[must_use]
pub fn judge_confirmation(
    own: &Domain,
    came: Option<&Came>,
    chain: &Chain,
    confirmation: &MigrationConfirmation,
) -> Fit {
    let by_it = |came: &&Came| {
        came.nonce == confirmation.nonce && came.source == confirmation.source_domain
    };
    let Some(came) = came.filter(by_it) else { return Fit::Unknown };
    if came.confirmed {
        return Fit::Known;
    }
    let is_it = confirmation.domain_name == *own
        && confirmation.epoch == came.epoch
        && confirmation.next_sequence == came.next_sequence;
    if !is_it {
        return Fit::Misfit;
    }
    let group = &confirmation.group_id;
    // a group that is at home needs no proof of where it was
    if group.domain() == *own {
        return Fit::Take { chain: chain.clone() };
    }
    let links = chain.iter().chain([confirmation]).cloned().collect();
    let leads_here = |chain: &Chain| follow_chain(group, &group.domain(), own, chain).is_ok();
    match List::new(links) {
        Ok(chain) if leads_here(&chain) => Fit::Take { chain },
        Ok(_) | Err(_) => Fit::Misfit,
    }
}
