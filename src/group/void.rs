//! Going back one epoch. PROTOCOL.md §2, "When a committer lies".
//!
//! The record of it holds the group as it was before the commit: whoever replays the log meets the same group, wherever it
//! begins. Sequences, recipients' numbers, what was accepted and what is known of liars go on; a member's queue is where it
//! last said so.
//!
//! Deliberately absent: whether a quorum wants it (`super::complaint`), and finding the group as it was (`actors::history`).

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    crypto::sha256,
    wire::{
        codec::{List, decode},
        ds::CommitComplaint,
        ids::{LeafIndex, Sequence, Timestamp},
        queueing::QueueEvent,
    },
};

use super::{
    GroupState, Reject, Staged, Step,
    guests::guests_of,
    record::{Change, Kind, Member},
};

/// A group that is larger does not go back: the log would grow by all of it.
const STATE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Complaints that go out with the event, as its evidence.
const EVIDENCE_MAX: usize = 256;

impl GroupState {
    /// The sequence of the commit that a quorum wants to be void, where the group may go back behind it at `now`.
    #[must_use]
    pub fn back_to(&self, now: Timestamp) -> Option<Sequence> {
        let last = self.lies.cases.back().filter(|_| self.wants_back(now))?;
        Some(last.sequence)
    }

    /// Makes the last commit void. `past` is the group as it was right before it. None: the group goes on, and
    /// [`GroupState::stage_forward`] says what becomes of the liar.
    ///
    /// # Errors
    /// [`Reject::Broken`]
    pub fn stage_void(&self, mut past: Self, now: Timestamp) -> Result<Option<Staged>, Reject> {
        let Some(last) = self.lies.cases.back().filter(|_| self.wants_back(now)) else {
            return Ok(None);
        };
        let keys = self.hub.keys.all();
        // a key that the hub has let go of since could remove nobody there
        let is_it = past.epoch() == last.epoch
            && past.next_sequence == last.sequence
            && past.signing_key(&keys).is_some();
        if !is_it {
            return Ok(None);
        }
        // what goes on needs no second place
        past.remembered = Default::default();
        past.lies = Default::default();
        let before = past.snapshot()?;
        if before.len() > STATE_BYTES_MAX {
            return Ok(None);
        }
        let mut complaints: Vec<CommitComplaint> =
            last.evidence().filter_map(|bytes| decode(bytes).ok()).take(EVIDENCE_MAX).collect();
        complaints.sort_by_key(|complaint| complaint.leaf_index);
        let complaints =
            List::new(complaints).map_err(|error| Reject::Broken(error.to_string()))?;
        let (epoch, group_sequence) = (last.epoch.next(), last.sequence);
        let kind = Kind::EpochVoid { before };
        let mut void = Step::quiet(Change { request: None, sender: None, kind });
        void.event = Some(QueueEvent::EpochVoid { epoch, group_sequence, complaints });
        void.handshake = true;
        let mut steps = vec![void];
        // a newcomer is out with its commit
        let liar = past.roster.leaf_of(&last.committer);
        steps.extend(past.liar_steps(liar.as_slice()));
        let (binds, renew_hub_proposals) = (Vec::new(), true);
        Ok(Some(Staged { at: now, steps, binds, renew_hub_proposals, answered: false }))
    }

    /// What becomes of liars where the group does not go back although a quorum would have it.
    #[must_use]
    pub fn stage_forward(&self, now: Timestamp) -> Option<Staged> {
        let last = self.lies.cases.back().filter(|_| self.wants_back(now))?;
        let liar = self.roster.leaf_of(&last.committer);
        let steps = self.liar_steps(liar.as_slice());
        let (binds, renew_hub_proposals) = (Vec::new(), true);
        let staged = Staged { at: now, steps, binds, renew_hub_proposals, answered: false };
        (!staged.steps.is_empty()).then_some(staged)
    }

    /// Whom the last commit brought in: they leave with it.
    pub(super) fn brought_in(&self) -> Vec<(LeafIndex, Member)> {
        let added = self.lies.cases.back().map(|last| last.added.as_slice()).unwrap_or_default();
        added
            .iter()
            .filter_map(|leaf| self.members.get(leaf).map(|member| (*leaf, member.clone())))
            .collect()
    }

    pub(super) fn apply_void(&mut self, before: &[u8]) -> Result<(), Reject> {
        let past = Self::load(Arc::clone(&self.hub), self.id.clone(), before)?;
        let case = self
            .lies
            .go_back()
            .filter(|case| case.epoch == past.epoch())
            .ok_or_else(|| Reject::Broken("the epoch that is void is not the last".into()))?;
        let is_it = |message: &[u8]| sha256(message) == case.hash;
        self.recent.go_back(case.epoch, is_it);

        let now: BTreeMap<LeafIndex, Member> = std::mem::take(&mut self.members);
        self.members = past.members;
        for (leaf, member) in &mut self.members {
            let Some(known) = now.get(leaf) else {
                return Err(Reject::Broken("a commit that removed somebody is made void".into()));
            };
            // only the committer's user has asked for anything since
            *member = Member { since: member.since, ..known.clone() };
        }
        self.guests = guests_of(&self.hub, self.members.values());
        self.tree = past.tree;
        self.roster = past.roster;
        self.lies.sort_out(&self.roster);
        self.policy = past.policy;
        self.info = past.info;
        self.pending = past.pending;
        self.blockers.clear();
        // who has come meanwhile is no pending joiner any more
        let joiners = std::mem::take(&mut self.joiners);
        self.joiners = past.joiners;
        self.joiners.retain(|reference, _| joiners.contains_key(reference));
        self.joining = self.joiners.iter().map(|(r, joiner)| (joiner.leaf, r.clone())).collect();
        let members = &self.members;
        self.going.retain(|leaf, _| members.contains_key(leaf));
        Ok(())
    }
}
