//! What a group does about members' complaints of a commit. PROTOCOL.md §2, "When a committer lies".
//!
//! Deliberately absent: what is kept of commits and complaints (`super::lies`), taking an epoch back (`super::void`).

use crate::{
    crypto::verify_with_label,
    rate::Asker,
    store::records::GoneReason,
    wire::{
        codec::{decode, encode},
        ds::{CommitComplaint, ComplaintOutcome, ComplaintResponse, DsSenderId},
        ids::{Domain, LeafIndex, Timestamp, UserKeyHash},
    },
};

use super::{
    GroupState, Reject, Staged, Step,
    complainants::{Count, Said},
    lies::Charge,
    record::{Change, Kind},
};

/// What [`GroupState::stage_complaint`] decided.
#[derive(Debug)]
pub enum Heard {
    /// Nothing changes: this is the answer.
    Answer(ComplaintResponse),
    /// To be merged and written; then [`GroupState::wants_back`], and the answer is [`GroupState::complaint_answer`].
    Write(Box<Staged>),
}

/// After so long a complainant who waits asks again.
const ASK_AGAIN_MS: u64 = 2_000;

impl GroupState {
    /// Judges a complaint that comes through `relay`, at `now`. It may be repeated: it is counted once.
    ///
    /// # Errors
    /// The [`Reject`] of a complaint that is not its complainant's. Nothing has changed then.
    pub fn stage_complaint(
        &self,
        complaint: &CommitComplaint,
        relay: &Domain,
        now: Timestamp,
    ) -> Result<Heard, Reject> {
        if self.deleted {
            return Err(Reject::NotFound);
        }
        if complaint.group_id != self.id {
            return Err(Reject::Unauthenticated("the complaint is about another group"));
        }
        let (epoch, hash) = (complaint.epoch, complaint.commit_hash.as_slice());
        let Some(index) = self.lies.find(epoch, hash) else {
            return Ok(Heard::Answer(self.complaint_answer(complaint, now)));
        };
        let Some(by) = self.lies.leaf_in(index, complaint.leaf_index, &self.roster) else {
            return Ok(Heard::Answer(answer(ComplaintOutcome::None)));
        };
        if by.client.domain() != *relay {
            return Err(Reject::Unauthenticated("the complaint comes through another provider"));
        }
        let (content, signature) = (complaint.to_be_signed(), complaint.signature.as_slice());
        verify_with_label(self.tree.scheme(), &by.key, CommitComplaint::LABEL, &content, signature)
            .map_err(|_| {
                Reject::Unauthenticated(
                    "the complaint's signature is not by that leaf's key in that epoch",
                )
            })?;
        // by user: a leaf's index may be another's by now
        let asker = Asker::Member(DsSenderId::UserKeyHash(by.user.clone()));
        let counted = self.hub.rates.check(&self.id, asker, now);
        counted.map_err(|too_many| Reject::RateLimited(too_many.retry_after_ms()))?;
        let Some(charge) = self.lies.charge(index, &complaint.reason) else {
            return Ok(Heard::Answer(self.complaint_answer(complaint, now)));
        };
        // it is held against who committed before, whom the complainant must have known
        let was_there = charge.index == index
            || self
                .lies
                .leaf_in(charge.index, complaint.leaf_index, &self.roster)
                .is_some_and(|before| before.user == by.user);
        let case = self.lies.cases.get(charge.index);
        let case = case.filter(|case| was_there && case.may_complain(&by.user, &self.roster));
        let Some(case) = case else {
            // what cannot be held against that one leaves the complainant with a commit that it cannot use
            let outcome = if charge.index == index {
                ComplaintOutcome::None
            } else {
                ComplaintOutcome::Resync
            };
            return Ok(Heard::Answer(answer(outcome)));
        };
        if case.is_settled || case.has_complaint(&by.user, charge.of_info) {
            return Ok(Heard::Answer(self.complaint_answer(complaint, now)));
        }
        let kind = Kind::Complaint { user: by.user, complaint: encode(complaint) };
        Ok(Heard::Write(Box::new(Staged {
            at: now,
            steps: vec![Step::quiet(Change { request: None, sender: None, kind })],
            binds: Vec::new(),
            renew_hub_proposals: true,
            answered: false,
        })))
    }

    /// What a complainant whose complaint is counted (or changes nothing) is to do.
    #[must_use]
    pub fn complaint_answer(
        &self,
        complaint: &CommitComplaint,
        now: Timestamp,
    ) -> ComplaintResponse {
        let (epoch, hash) = (complaint.epoch, complaint.commit_hash.as_slice());
        let Some(index) = self.lies.find(epoch, hash) else {
            let is_void = self.lies.is_void(epoch, hash);
            return answer(if is_void { ComplaintOutcome::Void } else { ComplaintOutcome::None });
        };
        let last = self.lies.cases.len().wrapping_sub(1);
        let is_of_last = Charge { index: last, of_info: false };
        let waits = self.lies.charge(index, &complaint.reason) == Some(is_of_last);
        match self.back_until(now) {
            // who could process the commit waits for nothing
            Some(until) if waits => ComplaintResponse {
                outcome: ComplaintOutcome::Wait,
                wait_ms: u32::try_from(until.ms_since(now).min(ASK_AGAIN_MS)).unwrap_or(u32::MAX),
            },
            _ => answer(ComplaintOutcome::Resync),
        }
    }

    /// Until when the group may yet go back behind its last commit; none: it does not.
    fn back_until(&self, now: Timestamp) -> Option<Timestamp> {
        let wait_ms = self.hub.settings.complaint_wait_ms;
        let until = self.lies.back_until(self.epoch(), wait_ms).filter(|until| now < *until)?;
        (!self.deleted).then_some(until)
    }

    /// Whether a quorum says that the last commit could not be processed while the group may still go back behind it.
    #[must_use]
    pub fn wants_back(&self, now: Timestamp) -> bool {
        self.back_until(now).is_some()
            && self.lies.cases.back().is_some_and(|it| it.is_lie(Count::OfCommit))
    }

    /// Whether a quorum says that nobody can come in by the GroupInfo of this epoch: then who does so all the same bricks
    /// the group for everybody. The next commit of a member brings another.
    pub(super) fn info_is_bad(&self) -> bool {
        self.lies
            .cases
            .back()
            .is_some_and(|last| last.epoch.next() == self.epoch() && last.is_lie(Count::OfInfo))
    }

    /// Leaves that a quorum calls liars and that nothing has been done about.
    pub(super) fn liars(&self, now: Timestamp) -> Vec<LeafIndex> {
        let last = self.lies.cases.len().wrapping_sub(1);
        let goes_back = self.wants_back(now);
        let mut liars: Vec<LeafIndex> = self
            .lies
            .cases
            .iter()
            .enumerate()
            .filter(|(index, case)| {
                let waits = goes_back && *index == last;
                !case.is_settled && !waits && case.is_lie(Count::All)
            })
            .filter_map(|(_, case)| {
                let leaf = self.roster.leaf_of(&case.committer)?;
                let identity = self.roster.get(leaf).filter(|it| it.user == case.user);
                identity.map(|_| leaf)
            })
            .collect();
        liars.sort_unstable();
        liars.dedup();
        liars
    }

    /// Whether [`GroupState::stage_hub`] would have somebody removed for what members complained of.
    #[must_use]
    pub fn has_liars(&self, now: Timestamp) -> bool {
        !self.deleted && !self.liar_steps(&self.liars(now)).is_empty()
    }

    /// The steps that take `liars` out. Whoever is being removed already, whatever for, stays so.
    pub(super) fn liar_steps(&self, liars: &[LeafIndex]) -> Vec<Step> {
        let is_new = |leaf: &&LeafIndex| {
            self.going.get(leaf).is_none_or(|(reason, _)| *reason == GoneReason::Inactive)
        };
        let step = |leaf: &LeafIndex| {
            let kind = Kind::Going { leaf: *leaf, reason: GoneReason::Lied };
            Step::quiet(Change { request: None, sender: None, kind })
        };
        liars.iter().filter(is_new).map(step).collect()
    }

    pub(super) fn apply_complaint(&mut self, user: &UserKeyHash, bytes: Vec<u8>, at: Timestamp) {
        // an earlier build wrote down any reason, also one that says more by now
        let Ok(complaint) = decode::<CommitComplaint>(&bytes) else { return };
        let hash = complaint.commit_hash.as_slice();
        let charge = self.lies.find(complaint.epoch, hash);
        let charge = charge.and_then(|index| self.lies.charge(index, &complaint.reason));
        if let Some(Charge { index, of_info }) = charge {
            let said = Said { of_info, complaint: bytes };
            self.lies.complained(index, user, said, &self.roster, at);
        }
    }
}

fn answer(outcome: ComplaintOutcome) -> ComplaintResponse {
    ComplaintResponse { outcome, wait_ms: 0 }
}
