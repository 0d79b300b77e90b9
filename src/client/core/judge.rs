//! Judging what others propose and commit, by the rules that the hub judges it by: what a proposal takes its place among, and what a
//! commit may do. Nothing is merged and nothing said here ([`super::receive`]). PROTOCOL.md §2, "Pending proposals", "Policy".

use openmls::{prelude as mls, prelude::OpenMlsProvider};

use super::{
    CoreError, Member,
    build::references,
    moving::{HubAt, judge_hub, judge_proposed_hub},
    receive::{Unacceptable, Way},
    records::{GroupRecord, Noted, Pending, Places, Proofs},
    view::{policy_of, roster_of},
};
use crate::{
    policy::{
        self,
        change::{self, Act, Author, CommitChange, What},
        pending,
        roster::Roster,
    },
    wire::{
        codec::{decode, encode},
        extensions::JoinProof,
        ids::{GroupId, LeafIndex, Sequence},
    },
};

impl Member {
    /// Judges a proposal and lets it take its place; none where it was there, or is displaced itself.
    pub(super) fn hold_proposal(
        &self,
        id: &GroupId,
        group: &mut mls::MlsGroup,
        proposal: mls::QueuedProposal,
        aad: &[u8],
        way: Way,
        noted: &mut Noted<'_>,
    ) -> Result<Option<Act>, Unacceptable> {
        let reference = proposal.proposal_reference_ref().as_slice().to_vec();
        if let Way::Queue(at) = way {
            note_place(noted.places, group, &reference, at);
        }
        if references(group).contains(&reference) {
            return Ok(None);
        }
        let (roster, before) = (roster_of(group)?, policy_of(group)?);
        let mut act = self.act(&proposal, group, &roster, noted.proofs)?;
        let mut shown = None;
        if let Author::Newcomer { proof } = &mut act.author {
            *proof = decode::<JoinProof>(aad).ok();
            shown = proof.as_ref().map(encode);
        }
        policy::judge(&before, &roster, id, None, std::slice::from_ref(&act))?;
        judge_proposed_hub(proposal.proposal(), &HubAt::of(group)?.domain)?;
        // what this client has proposed and has no answer to displaces nothing yet: the hub may never have heard of it, and where
        // it stands, if anywhere, the answer says
        let unanswered = match self.in_flight(id)? {
            Some((_, Pending { built: Some(built), .. })) => built.effect.proposed(),
            Some(_) | None => Vec::new(),
        };
        if !self.make_place(group, &act, &reference, &roster, noted, &unanswered)? {
            return Ok(None);
        }
        let provider = self.home.provider();
        group.store_pending_proposal(provider.storage(), proposal).map_err(CoreError::from)?;
        noted.proofs.extend(shown.map(|proof| (reference, proof)));
        Ok(Some(act))
    }

    /// What `act` displaces at the hub is displaced here; false where it is itself displaced by what stands, or came later and was
    /// heard of first. Nothing is decided about what is `unanswered`.
    fn make_place(
        &self,
        group: &mut mls::MlsGroup,
        act: &Act,
        reference: &[u8],
        roster: &Roster,
        noted: &Noted<'_>,
        unanswered: &[Vec<u8>],
    ) -> Result<bool, Unacceptable> {
        let at = noted.place_of(reference);
        let (mut standing, mut acts, mut later) = (Vec::new(), Vec::new(), Vec::new());
        for it in group.pending_proposals() {
            let other = it.proposal_reference_ref().as_slice();
            if other == reference || unanswered.iter().any(|own| own == other) {
                continue;
            }
            let other_act = self.act(it, group, roster, noted.proofs)?;
            if at.zip(noted.place_of(other)).is_some_and(|(at, other)| other > at) {
                later.push(other_act);
            } else {
                standing.push(it.clone());
                acts.push(other_act);
            }
        }
        let displaces_it = |later: &Act| {
            let displaced = pending::place(&[act], later, roster.len(), usize::MAX);
            displaced.is_ok_and(|displaced| !displaced.is_empty())
        };
        if later.iter().any(displaces_it) {
            return Ok(false);
        }
        let refs: Vec<&Act> = acts.iter().collect();
        let displaced = match pending::place(&refs, act, roster.len(), usize::MAX) {
            Ok(displaced) => displaced,
            Err(pending::PendingProblem::LeavingAlready) => return Ok(false),
            Err(_) => Vec::new(),
        };
        let provider = self.home.provider();
        for index in displaced {
            if let Some(old) = standing.get(index) {
                group
                    .remove_pending_proposal(provider.storage(), old.proposal_reference_ref())
                    .map_err(CoreError::mls)?;
            }
        }
        Ok(true)
    }

    /// Proposals of this client's own that the hub accepted `at` take their place among the others.
    pub(super) fn place_own(
        &self,
        id: &GroupId,
        own: &[Vec<u8>],
        at: Sequence,
        record: &mut GroupRecord,
    ) -> Result<(), CoreError> {
        let mut group = self.load(id)?;
        let roster = roster_of(&group)?;
        let noted = record.noted();
        for reference in own {
            note_place(noted.places, &group, reference, at);
        }
        for reference in own {
            let found = group
                .pending_proposals()
                .find(|it| it.proposal_reference_ref().as_slice() == reference)
                .cloned();
            let Some(proposal) = found else { continue };
            let placed = self
                .act(&proposal, &group, &roster, noted.proofs)
                .and_then(|act| self.make_place(&mut group, &act, reference, &roster, &noted, &[]));
            match placed {
                Ok(true) => {}
                // another one came behind it and was heard of first
                Ok(false) => group
                    .remove_pending_proposal(
                        self.home.provider().storage(),
                        proposal.proposal_reference_ref(),
                    )
                    .map_err(CoreError::mls)?,
                Err(Unacceptable::Core(error)) => return Err(error),
                Err(problem) => return Err(CoreError::mls(problem)),
            }
        }
        Ok(())
    }

    fn act(
        &self,
        proposal: &mls::QueuedProposal,
        group: &mls::MlsGroup,
        roster: &Roster,
        proofs: &Proofs,
    ) -> Result<Act, Unacceptable> {
        let before = policy_of(group)?;
        let mut act =
            change::of_proposal(proposal, roster, group.public_group().group_context(), &before)?;
        if let Author::Newcomer { proof } = &mut act.author {
            *proof = proof_of(proofs, proposal.proposal_reference_ref().as_slice());
        }
        Ok(act)
    }

    /// Judges a commit as the hub does: what it does, and who was in the group in front of it.
    pub(super) fn judge_commit(
        &self,
        id: &GroupId,
        group: &mls::MlsGroup,
        staged: &mls::StagedCommit,
        sender: &mls::Sender,
        aad: &[u8],
        proofs: &Proofs,
    ) -> Result<(CommitChange, Roster), Unacceptable> {
        let (roster, before) = (roster_of(group)?, policy_of(group)?);
        let proof = decode::<JoinProof>(aad).ok();
        let mut what = change::of_commit(
            staged,
            sender,
            proof,
            &roster,
            group.public_group().group_context(),
            &before,
        )?;
        fill_in_proofs(&mut what, staged, proofs);
        roster.check(&what.for_check())?;
        policy::judge(&before, &roster, id, committer_in(sender), &what.acts)?;
        judge_hub(staged, sender, aad, &HubAt::of(group)?.domain)?;
        Ok((what, roster))
    }
}

/// The leaf that a commit is of; none: it comes from outside.
pub(super) fn committer_in(sender: &mls::Sender) -> Option<LeafIndex> {
    match sender {
        mls::Sender::Member(leaf) => Some(LeafIndex(leaf.u32())),
        mls::Sender::External(_)
        | mls::Sender::NewMemberProposal
        | mls::Sender::NewMemberCommit => None,
    }
}

/// Where a proposal stands is kept for as long as it, or what may have displaced it, is pending.
fn note_place(places: &mut Places, group: &mls::MlsGroup, reference: &[u8], at: Sequence) {
    let pending = references(group);
    places.retain(|(known, _)| known != reference && pending.contains(known));
    places.push((reference.to_vec(), at));
}

fn proof_of(proofs: &Proofs, reference: &[u8]) -> Option<JoinProof> {
    let (_, proof) = proofs.iter().find(|(known, _)| known == reference)?;
    decode(proof).ok()
}

/// The proofs of newcomers whose proposals a commit covers stand in those proposals, not in the commit.
fn fill_in_proofs(what: &mut CommitChange, staged: &mls::StagedCommit, known: &Proofs) {
    let mut proofs = staged
        .queued_proposals()
        .filter(|it| *it.sender() == mls::Sender::NewMemberProposal)
        .map(|it| proof_of(known, it.proposal_reference_ref().as_slice()));
    for act in &mut what.acts {
        if let (Author::Newcomer { proof }, What::Add(_)) = (&mut act.author, &act.what) {
            *proof = proofs.next().flatten();
        }
    }
}
