//! What a hub's answer makes of a request: done, to be sent again, or refused.
//!
//! Here: merging what was accepted, catching up from `wrong_epoch` and `pending_proposals`, entering groups.
//! Not here: waiting and sending again ([`super::super::Client`]). PROTOCOL.md §2, "Answers".

use std::collections::BTreeSet;

use openmls::{group::StagedWelcome, prelude as mls, prelude::OpenMlsProvider};

use super::{
    CoreError, Event, GroupState, Kind, Member, Refusal,
    build::PAST_EPOCHS_MAX,
    enter::{expect_hub, join_config},
    epoch_of,
    identity::{KEY_PACKAGES_LOW, StoredKey, last_resort_setting},
    moving::HubAt,
    receive::{Followed, Way, protocol_message},
    records::{Built, Effect, GroupRecord, NewProposal, Operation, Pending},
    view::roster_of,
};
use crate::wire::{
    codec::{Raw, decode, encode},
    ds::{Accepted, DsError, DsResponse, DsResponseBody, Info},
    ids::{ClientUri, Epoch, GroupId, RequestId, Timestamp},
    mls::MlsMessage,
};

/// How often one request is built anew because others came first.
const REBUILDS_MAX: u32 = 20;

/// What is to be done with a request after its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// Accepted, and so it is in this client's state.
    Done(Accepted),
    /// A Welcome was taken up, or the request had been answered before ([`Member::take_answer`]).
    Entered,
    /// Ask [`Member::outbound`] for its message and send that, after as many milliseconds.
    Again { after_ms: u64 },
    /// It will not be accepted. Nothing of it is in this client's state.
    Refused(Refusal),
}

impl Member {
    /// Takes in the hub's answer to `request`. `now` is the clock that [`Member::outbound`] was given, and the
    /// offset that makes it the hub's is in the setting `clock_offset_ms` where a hub complained.
    ///
    /// # Errors
    /// [`CoreError::Mls`] where the hub's answer cannot be true, [`CoreError::Store`]
    pub fn settle(
        &self,
        request: RequestId,
        response: &DsResponse,
        now: Timestamp,
    ) -> Result<Settled, CoreError> {
        self.home.step(|| self.settle_here(request, response, now))
    }

    /// Inside a step.
    pub(super) fn settle_here(
        &self,
        request: RequestId,
        response: &DsResponse,
        now: Timestamp,
    ) -> Result<Settled, CoreError> {
        let Some((key, pending)) = self.find_pending(request)? else {
            return Ok(Settled::Entered);
        };
        match response.outcome.clone().into_result() {
            Ok(DsResponseBody::Accepted(accepted)) => self.accepted(&key, pending, accepted, now),
            Ok(DsResponseBody::Info(info)) => self.informed(&key, pending, &info),
            Ok(DsResponseBody::Moving(confirmation)) => {
                self.moving(&key, &pending, &confirmation, now)
            }
            Err(error) => self.refused(&key, pending, error, now),
        }
    }

    fn accepted(
        &self,
        key: &[u8],
        mut pending: Pending,
        accepted: Accepted,
        now: Timestamp,
    ) -> Result<Settled, CoreError> {
        let mut record = self.record(&pending.group)?;
        let Some(built) = pending.built.take() else {
            // a commit that followed it came before the answer: what it was built for is over, and it counts
            if matches!(pending.operation, Operation::Send { .. } | Operation::Propose { .. }) {
                self.home.remove(Kind::Pending, key)?;
                return Ok(Settled::Done(accepted));
            }
            return Err(CoreError::Invalid("accepted is no answer to what was asked"));
        };
        match built.effect {
            Effect::Nothing => {}
            Effect::Proposed { references }
                if accepted.epoch < epoch_of(&self.load(&pending.group)?) =>
            {
                // the answer is to the first try; a commit has covered that since, and of these the hub has not heard
                self.take_back_proposals(&pending.group, &references)?;
            }
            Effect::Proposed { references } => {
                let at = accepted.group_sequence;
                self.place_own(&pending.group, &references, at, &mut record)?;
            }
            Effect::Merge { leaf_key } => {
                let mut group = self.load(&pending.group)?;
                let before = HubAt::of(&group)?;
                let at = accepted.group_sequence;
                self.keep_what_would_go(&pending.group, &mut record, &group, at, now)?;
                group.merge_pending_commit(&self.home.provider()).map_err(CoreError::mls)?;
                if let Some(leaf_key) = leaf_key {
                    record.leaf_key = leaf_key;
                }
                record.noted().clear();
                self.follow_hub(&pending.group, &mut record, before, &group)?;
            }
            Effect::Enter { state, leaf_key } => {
                let resyncs = pending.operation == Operation::Resync;
                let mut before = BTreeSet::new();
                if resyncs {
                    before = self.clients_in(&pending.group)?;
                    // what the queue still holds from before is read with it
                    let at = accepted.group_sequence;
                    self.keep_behind(&pending.group, &mut record, at, now)?;
                    self.has_ended(&pending.group)?;
                }
                self.home.drop_in(&pending.group, &state)?;
                record.leaf_key = leaf_key;
                let group = self.load(&pending.group)?;
                self.find_hub(&pending.group, &mut record, &group)?;
                record.state = GroupState::Active;
                self.home.remove(Kind::Doubt, pending.group.as_bytes())?;
                let epoch = epoch_of(&group);
                record.entered_at = Some(accepted.group_sequence);
                record.entered_epoch = Some(epoch);
                record.read_epoch = Some(epoch);
                record.noted().clear();
                self.push(&Event::Joined { group: pending.group.clone(), epoch })?;
                if resyncs {
                    let now = self.clients_in(&pending.group)?;
                    self.came_and_went(&pending.group, epoch, &before, &now)?;
                }
            }
            Effect::Queue { config, filter } => {
                record.queue = Some(config);
                record.filter = filter.unwrap_or(record.filter);
            }
            Effect::Delete => {
                record.state = GroupState::Deleted;
                self.forget_behind(&pending.group, &mut record)?;
                self.home.lift(&pending.group)?;
                self.push(&Event::Deleted { group: pending.group.clone() })?;
            }
        }
        if pending.operation == Operation::CreateGroup {
            record.state = GroupState::Active;
            record.entered_at = Some(accepted.group_sequence);
            record.read_epoch = Some(accepted.epoch);
        }
        if pending.operation == Operation::AskToJoin {
            record.hub = pending.hub(&record).clone();
        }
        self.put_record(&pending.group, &record)?;
        self.home.remove(Kind::Pending, key)?;
        Ok(Settled::Done(accepted))
    }

    /// Everybody's clients in a group, as this state has it.
    fn clients_in(&self, id: &GroupId) -> Result<BTreeSet<ClientUri>, CoreError> {
        let group = self.load(id)?;
        Ok(roster_of(&group)?.iter().map(|(_, it)| it.client.clone()).collect())
    }

    /// Says who came and who went while this client could not follow. Where the hub went back to a backup it is the only word on
    /// whom it has let in again.
    fn came_and_went(
        &self,
        group: &GroupId,
        epoch: Epoch,
        before: &BTreeSet<ClientUri>,
        now: &BTreeSet<ClientUri>,
    ) -> Result<(), CoreError> {
        let added: Vec<_> = now.difference(before).cloned().collect();
        let removed: Vec<_> = before.difference(now).cloned().collect();
        if added.is_empty() && removed.is_empty() {
            return Ok(());
        }
        let group = group.clone();
        self.push(&Event::Changed { group, epoch, by: None, added, removed, policy: false })
    }

    fn informed(
        &self,
        key: &[u8],
        mut pending: Pending,
        info: &Info,
    ) -> Result<Settled, CoreError> {
        if let Operation::Welcome { welcome, last_resort, .. } = &pending.operation {
            let (welcome, last_resort) = (welcome.clone(), *last_resort);
            let entered =
                self.home.attempt(|| self.enter_by_welcome(&pending.group, &welcome, info));
            self.home.remove(Kind::Pending, key)?;
            return match entered {
                Ok(()) => {
                    if last_resort {
                        // the token of a last-resort KeyPackage serves many groups: replace it here
                        self.keep(&pending.group, Operation::UpdateQueueInfo)?;
                        // and before it has served as many as it may: then nobody could add this client by it any more
                        let suite = info.group_info.parse()?.ciphersuite();
                        let published = last_resort_setting(suite);
                        self.home.put(Kind::Setting, published.as_bytes(), &false)?;
                        self.home.put(Kind::Setting, KEY_PACKAGES_LOW.as_bytes(), &true)?;
                    }
                    Ok(Settled::Entered)
                }
                Err(error) => {
                    let why = error.to_string();
                    let mut record = self.record(&pending.group)?;
                    record.state = GroupState::Left;
                    self.put_record(&pending.group, &record)?;
                    self.push(&Event::Unreadable { group: pending.group, why })?;
                    Ok(Settled::Entered)
                }
            };
        }
        // an external commit is signed with the group's scheme, which shows only now
        if !matches!(pending.operation, Operation::Resync) {
            let mut record = self.record(&pending.group)?;
            let suite = info.group_info.parse()?.ciphersuite();
            let leaf_key = self.identity.leaf_key(suite)?;
            if record.leaf_key.open()?.public() != leaf_key.public() {
                record.leaf_key = StoredKey::of(leaf_key);
                self.put_record(&pending.group, &record)?;
                // the hub was asked for another key: ask again
                return Ok(Settled::Again { after_ms: 0 });
            }
        }
        pending.info = Some(encode(info));
        self.home.put(Kind::Pending, key, &pending)?;
        Ok(Settled::Again { after_ms: 0 })
    }

    fn enter_by_welcome(&self, id: &GroupId, welcome: &[u8], info: &Info) -> Result<(), CoreError> {
        let provider = self.home.provider();
        let message: mls::MlsMessageIn = decode(welcome)?;
        let mls::MlsMessageBodyIn::Welcome(welcome) = message.extract() else {
            return Err(CoreError::Invalid("the Welcome is none"));
        };
        let group = StagedWelcome::build_from_welcome(&provider, &join_config(), welcome)
            .map_err(CoreError::mls)?
            .with_ratchet_tree(info.ratchet_tree.parse()?)
            .replace_old_group()
            .skip_lifetime_validation()
            .build()
            .map_err(CoreError::mls)?
            .into_group(&provider)
            .map_err(CoreError::mls)?;
        if group.group_id().as_slice() != id.as_bytes() {
            return Err(CoreError::Invalid("the Welcome is to another group"));
        }
        self.check_everyone(&group)?;
        let mut record = self.record(id)?;
        expect_hub(group.extensions(), &record.hub)?;
        let own = group.own_leaf_node().ok_or(CoreError::Invalid("the Welcome adds no leaf"))?;
        let leaf_key = self
            .identity
            .leaf_key_of(own.signature_key().as_slice())
            .ok_or(CoreError::Invalid("the leaf's key is none of this client's"))?;
        record.leaf_key = StoredKey::of(leaf_key);
        let epoch = epoch_of(&group);
        record.state = GroupState::Active;
        // it is of the membership before this one
        self.home.remove(Kind::Doubt, id.as_bytes())?;
        record.entered_epoch = Some(epoch);
        record.read_epoch = Some(epoch);
        record.noted().clear();
        self.put_record(id, &record)?;
        drop(group);
        self.push(&Event::Joined { group: id.clone(), epoch })?;
        for message in info.pending.iter() {
            self.catch_up(id, message)?;
        }
        Ok(())
    }

    fn refused(
        &self,
        key: &[u8],
        mut pending: Pending,
        error: DsError,
        now: Timestamp,
    ) -> Result<Settled, CoreError> {
        if let DsError::RateLimited { retry_after_ms, .. }
        | DsError::Unavailable { retry_after_ms, .. }
        | DsError::GroupMigrating { retry_after_ms, .. } = &error
        {
            return Ok(Settled::Again { after_ms: (*retry_after_ms).max(1) });
        }
        if let DsError::GroupMoved { chain, .. } = &error {
            return self.redirected(key, pending, chain, now);
        }
        let may_rebuild = pending.rebuilt < REBUILDS_MAX;
        if let DsError::StaleRequest { server_time, .. } = &error {
            let offset = i64::try_from(i128::from(server_time.0) - i128::from(now.0));
            let offset: i64 = offset.unwrap_or(0);
            let known: i64 = self.home.find(Kind::Setting, b"clock_offset_ms")?.unwrap_or_default();
            if offset.unsigned_abs() > CLOCK_STEP_MS && may_rebuild {
                pending.rebuilt += 1;
                self.home.put(Kind::Setting, b"clock_offset_ms", &(known + offset))?;
                self.home.put(Kind::Pending, key, &pending)?;
                return Ok(Settled::Again { after_ms: 0 });
            }
        }
        if let DsError::WrongEpoch { missed, .. } = &error
            && may_rebuild
        {
            return self.rebuild(key, pending, missed);
        }
        if let DsError::PendingProposals { pending: missed, .. } = &error
            && may_rebuild
        {
            // who comes in from outside has no state to hold them in: it asks anew what the group is
            if !pending.operation.comes_from_outside() {
                self.hold_only(&pending.group, missed)?;
            }
            return self.rebuild(key, pending, missed);
        }
        let group = pending.group.clone();
        let was_resync = pending.operation == Operation::Resync;
        let leaves = matches!(&pending.operation, Operation::Propose { proposals }
            if proposals.contains(&NewProposal::Leave));
        let asked = pending.hub(&self.record(&group)?).clone();
        self.abandon(key, pending)?;
        if let DsError::GroupNotFound { .. } = &error {
            let record = self.record(&group)?;
            match record.state {
                GroupState::Active | GroupState::Lost if leaves => self.leave(&group, record)?,
                // it may have moved so long ago that nobody is sent on any more: what is still in the queue, or a
                // resync, says more. A group that was deleted says so by its feed
                GroupState::Active | GroupState::Lost => {
                    self.push(&Event::NotKnown { group: group.clone(), hub: asked })?;
                }
                GroupState::Joining | GroupState::Left | GroupState::Deleted => {}
            }
        }
        if was_resync
            && matches!(error, DsError::NotAuthorized { .. } | DsError::Unauthenticated { .. })
        {
            // the hub does not know this leaf any more: the client was removed while it could not follow
            if self.record(&group)?.state == GroupState::Lost {
                self.end_behind_queue(&group)?;
            }
        }
        Ok(Settled::Refused(Refusal(error)))
    }

    /// Takes in what the hub says was missed, and lets the request be built on that.
    fn rebuild(
        &self,
        key: &[u8],
        mut pending: Pending,
        missed: &[MlsMessage],
    ) -> Result<Settled, CoreError> {
        pending.info = None;
        if let Some(built) = pending.built.take() {
            self.take_back(&pending.group, &built)?;
        }
        let record = self.record(&pending.group)?;
        let mut after_ms = 0;
        let mut is_held = false;
        if record.state == GroupState::Active && !pending.operation.comes_from_outside() {
            // where it was sent on it is not known: from here on its own state says who to ask
            is_held = pending.redirect.take().is_some();
        }
        self.home.put(Kind::Pending, key, &pending)?;
        if record.state == GroupState::Active && pending.operation != Operation::Resync {
            let mut followed = false;
            for message in missed {
                is_held = !self.may_go_on(&pending.group, &record, message)?;
                if !is_held {
                    let step = self.catch_up(&pending.group, message)?;
                    followed |= step == Followed::Yes;
                    is_held = step == Followed::Held;
                }
                if is_held {
                    break;
                }
            }
            if !followed {
                // what is missing comes through the queue
                after_ms = 250;
            }
        }
        if !is_held {
            // who waits for the queue does not try in vain
            pending.rebuilt += 1;
            self.home.put(Kind::Pending, key, &pending)?;
        }
        Ok(Settled::Again { after_ms })
    }

    /// Whether a message of the group can be followed before it comes by the feed. A commit cannot where the keys of
    /// messages that are still in the queue would go with it: then the queue comes first.
    fn may_go_on(
        &self,
        id: &GroupId,
        record: &GroupRecord,
        message: &MlsMessage,
    ) -> Result<bool, CoreError> {
        let Some(read) = record.read_epoch else { return Ok(true) };
        let is_commit = protocol_message(message)
            .is_some_and(|message| message.content_type() == mls::ContentType::Commit);
        if !is_commit {
            return Ok(true);
        }
        let epoch = epoch_of(&self.load(id)?);
        Ok(epoch.0 < read.0.saturating_add(PAST_EPOCHS_MAX as u64))
    }

    /// Lets go of proposals that are not among those that the hub says are pending: it displaced them by ones that this
    /// client came to know in another order.
    fn hold_only(&self, id: &GroupId, pending: &[MlsMessage]) -> Result<(), CoreError> {
        let provider = self.home.provider();
        let mut group = self.load(id)?;
        let mut held: Vec<Vec<u8>> = Vec::new();
        for message in pending {
            let message: MlsMessage = Raw::new(message.as_slice())?;
            let Some(protocol) = protocol_message(&message) else { return Ok(()) };
            if protocol.epoch() != group.epoch() {
                return Ok(());
            }
            let Ok((processed, _)) = self.read_handshake(&mut group, protocol) else {
                return Ok(());
            };
            match processed.into_content() {
                mls::ProcessedMessageContent::ProposalMessage(proposal)
                | mls::ProcessedMessageContent::ExternalJoinProposalMessage(proposal) => {
                    held.push(proposal.proposal_reference_ref().as_slice().to_vec());
                }
                mls::ProcessedMessageContent::ApplicationMessage(_)
                | mls::ProcessedMessageContent::StagedCommitMessage(_)
                | mls::ProcessedMessageContent::OwnPendingCommit
                | mls::ProcessedMessageContent::OwnPrivateMessage => return Ok(()),
            }
        }
        let displaced: Vec<mls::QueuedProposal> = group
            .pending_proposals()
            .filter(|it| !held.iter().any(|held| held == it.proposal_reference_ref().as_slice()))
            .cloned()
            .collect();
        for proposal in displaced {
            group
                .remove_pending_proposal(provider.storage(), proposal.proposal_reference_ref())
                .map_err(CoreError::mls)?;
        }
        Ok(())
    }

    /// Removes a request that will not be accepted, and what it left in the group's state.
    pub(super) fn abandon(&self, key: &[u8], mut pending: Pending) -> Result<(), CoreError> {
        if let Some(built) = pending.built.take() {
            self.take_back(&pending.group, &built)?;
        }
        self.home.remove(Kind::Pending, key)?;
        let mut record: GroupRecord = self.record(&pending.group)?;
        let other_way = record.state == GroupState::Joining && self.entering(&pending.group)?;
        if record.state == GroupState::Joining
            && pending.operation != Operation::AskToJoin
            && !other_way
        {
            record.state = GroupState::Left;
            self.home.lift(&pending.group)?;
            self.put_record(&pending.group, &record)?;
        }
        Ok(())
    }

    pub(super) fn take_back(&self, id: &GroupId, built: &Built) -> Result<(), CoreError> {
        let provider = self.home.provider();
        match &built.effect {
            Effect::Merge { .. } | Effect::Delete => {
                self.load(id)?.clear_pending_commit(provider.storage())?;
            }
            Effect::Proposed { references } => self.take_back_proposals(id, references)?,
            Effect::Nothing | Effect::Enter { .. } | Effect::Queue { .. } => {}
        }
        Ok(())
    }

    fn take_back_proposals(&self, id: &GroupId, own: &[Vec<u8>]) -> Result<(), CoreError> {
        let provider = self.home.provider();
        let mut group = self.load(id)?;
        let mine: Vec<mls::QueuedProposal> = group
            .pending_proposals()
            .filter(|it| own.iter().any(|own| own == it.proposal_reference_ref().as_slice()))
            .cloned()
            .collect();
        for proposal in mine {
            group
                .remove_pending_proposal(provider.storage(), proposal.proposal_reference_ref())
                .map_err(CoreError::mls)?;
        }
        Ok(())
    }

    /// Takes in one handshake message that the hub showed in an answer.
    fn catch_up(&self, id: &GroupId, message: &MlsMessage) -> Result<Followed, CoreError> {
        let message: MlsMessage = Raw::new(message.as_slice())?;
        self.follow(id, &message, Way::Answer)
    }
}

/// A clock is corrected only where it is off by more than this.
const CLOCK_STEP_MS: u64 = 1_000;
