//! States of a group that this client has left behind itself: what its queue still holds from before is read with them.
//!
//! An answer of the hub can bring a client further than its queue: it came in anew by a commit of its own, or made so many
//! commits that the keys of what is still on its way would go. The state from before is kept until the queue has
//! passed that commit. It follows what the queue brings, and says nothing of it but what messages say: who came and who
//! went is known already. Not here: when a client comes in anew ([`super::settle`]). PROTOCOL.md §3.

use openmls::prelude as mls;
use serde::{Deserialize, Serialize};

use super::{
    CoreError, GroupState, Kind, Member,
    build::PAST_EPOCHS_MAX,
    epoch_of,
    home::LiftedGroup,
    receive::{Unacceptable, Way, protocol_message},
    records::{GroupRecord, Noted, Places, Proofs},
};
use crate::wire::{
    codec::decode,
    ds::DsRequest,
    ids::{Epoch, GroupId, Sequence, Timestamp},
    mls::MlsMessage,
    queueing::QueueEntry,
};

/// So many are kept of one group. Beyond that the oldest goes, and a message that only it could read is shown as one that
/// cannot be read.
pub(super) const STATES_MAX: usize = 4;
/// No state is kept for longer: a provider keeps no more of a feed either, unless its operator says so.
pub(super) const KEPT_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// A state that was left; the state itself is beside it in the home, under the group and `until`.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Behind {
    /// Where in the group's log the commit stands that this client went on by: what is in front of it is read with this state.
    until: Sequence,
    left_at: Timestamp,
    proofs: Proofs,
    places: Places,
}

impl Member {
    /// Keeps the state that the home holds of `id` beside, for what is in front of `until`; the home holds it still. The record
    /// is the caller's to put.
    pub(super) fn keep_behind(
        &self,
        id: &GroupId,
        record: &mut GroupRecord,
        until: Sequence,
        now: Timestamp,
    ) -> Result<(), CoreError> {
        let state = self.home.lift(id)?;
        self.home.drop_in(id, &state)?;
        self.home.put(Kind::Behind, &key(id, until), &state)?;
        record.behind.retain(|it| it.until != until);
        let (proofs, places) = (record.proofs.clone(), record.places.clone());
        record.behind.push(Behind { until, left_at: now, proofs, places });
        while record.behind.len() > STATES_MAX {
            let oldest = record.behind.remove(0);
            self.home.remove(Kind::Behind, &key(id, oldest.until))?;
        }
        Ok(())
    }

    /// A commit of this client's own is about to be merged: where the keys of what may still be on its way would go with that,
    /// the state in front of it is kept.
    pub(super) fn keep_what_would_go(
        &self,
        id: &GroupId,
        record: &mut GroupRecord,
        group: &mls::MlsGroup,
        until: Sequence,
        now: Timestamp,
    ) -> Result<(), CoreError> {
        let Some(read) = record.read_epoch else { return Ok(()) };
        let epoch = epoch_of(group);
        if epoch.0 < read.0.saturating_add(PAST_EPOCHS_MAX as u64) {
            return Ok(());
        }
        self.keep_behind(id, record, until, now)?;
        record.read_epoch = Some(Epoch(epoch.0.saturating_add(1)));
        Ok(())
    }

    /// Lets go of the states that the queue has passed by coming to `sequence`, and of those that were kept for too long. Whether
    /// the record has changed: it is the caller's to put.
    pub(super) fn pass_behind(
        &self,
        id: &GroupId,
        record: &mut GroupRecord,
        sequence: Sequence,
        now: Timestamp,
    ) -> Result<bool, CoreError> {
        let is_over = |it: &Behind| it.until <= sequence || now.ms_since(it.left_at) > KEPT_MS;
        let (over, kept) = std::mem::take(&mut record.behind).into_iter().partition(is_over);
        let over: Vec<Behind> = over;
        record.behind = kept;
        for it in &over {
            self.home.remove(Kind::Behind, &key(id, it.until))?;
        }
        Ok(!over.is_empty())
    }

    /// Takes in a message that is in front of where this client went on without its queue; false where it is not, or no state
    /// from there is kept.
    pub(super) fn read_behind(
        &self,
        entry: &QueueEntry,
        id: &GroupId,
        record: &mut GroupRecord,
        message: &MlsMessage,
    ) -> Result<bool, CoreError> {
        let in_front = |it: &&mut Behind| entry.sequence < it.until;
        let Some(behind) = record.behind.iter_mut().find(in_front) else { return Ok(false) };
        let key = key(id, behind.until);
        let Some(state) = self.home.find::<LiftedGroup>(Kind::Behind, &key)? else {
            return Ok(false);
        };
        let present = self.home.lift(id)?;
        self.home.drop_in(id, &state)?;
        let noted = Noted { proofs: &mut behind.proofs, places: &mut behind.places };
        self.read_quietly(entry, id, message, noted)?;
        self.home.put(Kind::Behind, &key, &self.home.lift(id)?)?;
        self.home.drop_in(id, &present)?;
        self.put_record(id, record)?;
        Ok(true)
    }

    /// Takes in a message with a state that is not this client's word on the group any more: reads what it can read, and follows
    /// as far as it can.
    pub(super) fn read_quietly(
        &self,
        entry: &QueueEntry,
        id: &GroupId,
        message: &MlsMessage,
        noted: Noted<'_>,
    ) -> Result<(), CoreError> {
        let Some(protocol) = protocol_message(message) else { return Ok(()) };
        let mut group = self.load(id)?;
        let (theirs, ours) = (protocol.epoch().as_u64(), group.epoch().as_u64());
        if !protocol.is_handshake_message() {
            // what is of an epoch that this state never saw begin nobody here has keys for
            if theirs <= ours {
                self.read_message(entry, id, message)?;
            }
            return Ok(());
        }
        if theirs != ours {
            return Ok(());
        }
        match self
            .home
            .attempt(|| self.follow_quietly(id, &mut group, protocol, entry.sequence, noted))
        {
            Ok(()) => Ok(()),
            Err(Unacceptable::Core(CoreError::Store(error))) => Err(CoreError::Store(error)),
            Err(problem) => {
                tracing::debug!(%id, %problem, "a state that was left does not follow");
                Ok(())
            }
        }
    }

    fn follow_quietly(
        &self,
        id: &GroupId,
        group: &mut mls::MlsGroup,
        message: mls::ProtocolMessage,
        at: Sequence,
        mut noted: Noted<'_>,
    ) -> Result<(), Unacceptable> {
        let provider = self.home.provider();
        let (processed, _) = self
            .read_handshake(group, message)
            .map_err(|error| Unacceptable::Mls(error.to_string()))?;
        let sender = processed.sender().clone();
        let aad = processed.aad().to_vec();
        match processed.into_content() {
            mls::ProcessedMessageContent::ProposalMessage(proposal)
            | mls::ProcessedMessageContent::ExternalJoinProposalMessage(proposal) => {
                self.hold_proposal(id, group, *proposal, &aad, Way::Queue(at), &mut noted)?;
            }
            mls::ProcessedMessageContent::StagedCommitMessage(staged) => {
                self.judge_commit(id, group, &staged, &sender, &aad, noted.proofs)?;
                // behind one that removes this client there is nothing to read, and its keys are for what is in front of it
                if !staged.self_removed() {
                    group
                        .merge_staged_commit(&provider, *staged)
                        .map_err(|error| Unacceptable::Mls(error.to_string()))?;
                    noted.clear();
                }
            }
            mls::ProcessedMessageContent::ApplicationMessage(_)
            | mls::ProcessedMessageContent::OwnPendingCommit
            | mls::ProcessedMessageContent::OwnPrivateMessage => {}
        }
        Ok(())
    }

    /// Whether a message may stand behind the commit of a resync that is on its way: then it is the new state's.
    pub(super) fn is_behind_resync(
        &self,
        id: &GroupId,
        message: &MlsMessage,
    ) -> Result<bool, CoreError> {
        let Some((_, pending)) = self.in_flight(id)? else { return Ok(false) };
        let Some(built) = &pending.built else { return Ok(false) };
        let DsRequest::ResyncClient(resync) = decode(&built.request)? else { return Ok(false) };
        let (ours, theirs) = (protocol_message(&resync.update.commit), protocol_message(message));
        Ok(matches!((ours, theirs), (Some(ours), Some(theirs)) if ours.epoch() < theirs.epoch()))
    }

    /// This client is out of the group: nothing is read in it any more.
    pub(super) fn forget_behind(
        &self,
        id: &GroupId,
        record: &mut GroupRecord,
    ) -> Result<(), CoreError> {
        for it in std::mem::take(&mut record.behind) {
            self.home.remove(Kind::Behind, &key(id, it.until))?;
        }
        Ok(())
    }

    /// The hub says that this client, which had lost track, is not in the group any more. That is so once the queue has brought
    /// what is in front of it, or holds nothing ([`Member::settle_doubts`]).
    pub(super) fn end_behind_queue(&self, id: &GroupId) -> Result<(), CoreError> {
        let mut ending: Vec<GroupId> = self.home.find(Kind::Setting, ENDING)?.unwrap_or_default();
        if !ending.contains(id) {
            ending.push(id.clone());
            self.home.put(Kind::Setting, ENDING, &ending)?;
        }
        Ok(())
    }

    pub(super) fn is_ending(&self, id: &GroupId) -> Result<bool, CoreError> {
        let ending: Option<Vec<GroupId>> = self.home.find(Kind::Setting, ENDING)?;
        Ok(ending.is_some_and(|ending| ending.contains(id)))
    }

    /// `id` is over, or this client has come in anew.
    pub(super) fn has_ended(&self, id: &GroupId) -> Result<(), CoreError> {
        let Some(mut ending) = self.home.find::<Vec<GroupId>>(Kind::Setting, ENDING)? else {
            return Ok(());
        };
        ending.retain(|other| other != id);
        if ending.is_empty() {
            return self.home.remove(Kind::Setting, ENDING);
        }
        self.home.put(Kind::Setting, ENDING, &ending)
    }

    /// Everything that the queue holds has come: groups that the hub said this client is not in are over. Gives how many.
    pub(super) fn settle_endings(&self) -> Result<usize, CoreError> {
        let ending: Vec<GroupId> = self.home.find(Kind::Setting, ENDING)?.unwrap_or_default();
        for id in &ending {
            let record = self.home.find::<GroupRecord>(Kind::Group, id.as_bytes())?;
            if let Some(record) = record.filter(|it| it.state == GroupState::Lost) {
                self.leave(id, record)?;
            }
            self.has_ended(id)?;
        }
        Ok(ending.len())
    }
}

/// Groups that the hub says this client is not in, and whose end has not come by the queue.
pub(super) const ENDING: &[u8] = b"ending_groups";

fn key(id: &GroupId, until: Sequence) -> Vec<u8> {
    [id.as_bytes(), &[0], &until.0.to_be_bytes()].concat()
}
