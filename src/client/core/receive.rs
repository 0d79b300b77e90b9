//! What the queue delivers, and what it makes of this client's state.
//!
//! Here: order and gaps of feeds, Welcomes, commits, proposals, application messages, notices. Every leaf that
//! comes in and every commit is judged by the policy, as the hub judges it ([`crate::policy`]). Not here: fetching
//! and acknowledging. PROTOCOL.md §3, "The client's queue".

use std::collections::BTreeSet;

use openmls::{group::StagedWelcome, prelude as mls};

use super::{
    Answer, Content, CoreError, Event, GroupState, Kind, Member, NewProposal,
    behind::ENDING,
    complain::accusation_in,
    enter::join_config,
    epoch_of,
    identity::StoredKey,
    judge::committer_in,
    look,
    moving::{BadMove, HubAt},
    records::{Contact, Effect, FeedRecord, GroupRecord, KeptWelcome, Operation, Pending},
    view::roster_of,
};
use crate::{
    policy::{
        self, Denied,
        change::{Act, Author, ChangeProblem, What},
        keys::check_path,
        roster::Roster,
    },
    wire::{
        codec::Raw,
        ds::ComplaintReason,
        ids::{ClientUri, Domain, Epoch, FeedId, GroupId, LeafIndex, Sequence, Timestamp},
        mls::MlsMessage,
        queueing::{QueueEntry, QueueEvent},
    },
};

/// What became of a queue entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// It is in this client's state and may be acknowledged.
    Taken,
    /// It was there before.
    Duplicate,
    /// It rests on the answer to a request that is on its way: settle that, then handle it again.
    Wait,
}

/// Whether a handshake message moved the group's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Followed {
    Yes,
    /// Nothing that was not there before.
    No,
    /// It belongs behind a request that has not been answered.
    Wait,
    /// The group went where this state cannot follow.
    Lost,
    /// It ends this client's membership: its keys go with it, so what the queue holds in front of it is read first.
    Held,
}

/// How a handshake message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The queue brought it, from where it stands in the hub's log.
    Queue(Sequence),
    /// A hub showed it, ahead of the queue.
    Answer,
}

/// What a Welcome shows before it is taken up.
pub(super) struct Seen {
    pub key_package: mls::KeyPackage,
    pub group: GroupId,
    pub epoch: Epoch,
    pub hub: HubAt,
}

/// Why a commit is not merged.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unacceptable {
    #[error("it ends this client's membership")]
    Ends,
    #[error(transparent)]
    Core(#[from] CoreError),
    #[error("{0}")]
    Change(#[from] ChangeProblem),
    #[error("{0}")]
    Denied(#[from] Denied),
    #[error("{0}")]
    Leaf(#[from] policy::LeafProblem),
    #[error("{0}")]
    Move(#[from] BadMove),
    #[error("MLS: {0}")]
    Mls(String),
    /// By openmls, with what a complaint would say of it, where there is anything to complain of.
    #[error("MLS: {1}")]
    Refused(Option<ComplaintReason>, String),
}

impl Member {
    /// Takes in one entry of the queue. Entries of one feed come in order; an entry that was handled before
    /// changes nothing.
    ///
    /// # Errors
    /// [`CoreError::Store`]: nothing has changed, and the entry can be handled again. What a sender made up is no
    /// error here but an [`Event`].
    pub fn handle(&self, entry: &QueueEntry, now: Timestamp) -> Result<Handled, CoreError> {
        self.home.step(|| self.take_entry(entry, now))
    }

    /// As [`Member::handle`], for many entries in one transaction: all of them are taken in, or none. Behind an
    /// entry that waits the rest of its feed waits, too.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn handle_all(
        &self,
        entries: &[QueueEntry],
        now: Timestamp,
    ) -> Result<Vec<Handled>, CoreError> {
        self.home.step(|| {
            let mut waiting = BTreeSet::new();
            entries
                .iter()
                .map(|entry| {
                    if waiting.contains(&entry.feed) {
                        return Ok(Handled::Wait);
                    }
                    let handled = self.take_entry(entry, now)?;
                    if handled == Handled::Wait {
                        waiting.insert(entry.feed);
                    }
                    Ok(handled)
                })
                .collect()
        })
    }

    fn take_entry(&self, entry: &QueueEntry, now: Timestamp) -> Result<Handled, CoreError> {
        let key = entry.feed.0.to_be_bytes();
        let mut feed: FeedRecord = self.home.find(Kind::Feed, &key)?.unwrap_or_default();
        if feed.last >= entry.sequence {
            // the provider does not have the acknowledgement any more, or not yet: it is given again
            if feed.acknowledged >= entry.sequence {
                feed.acknowledged = Sequence(entry.sequence.0.saturating_sub(1));
                self.home.put(Kind::Feed, &key, &feed)?;
            }
            return Ok(Handled::Duplicate);
        }
        let group = GroupId::from_bytes(entry.group_id.as_slice()).ok();
        let taken = self
            .home
            .attempt(|| self.take_event(entry, feed.group.as_ref().or(group.as_ref()), now));
        match taken {
            Ok(Handled::Wait) => return Ok(Handled::Wait),
            Ok(Handled::Taken | Handled::Duplicate) => {}
            Err(error @ (CoreError::Store(_) | CoreError::Stored(_))) => return Err(error),
            // one entry that cannot be true must not stop those behind it
            Err(error) => self.push(&Event::Misbehaviour {
                what: format!("entry {} of feed {}: {error}", entry.sequence, entry.feed),
            })?,
        }
        if feed.last != entry.previous {
            self.push(&Event::Misbehaviour {
                what: format!(
                    "the provider says that entry {} follows {} in feed {}, and this client last got {}",
                    entry.sequence, entry.previous, entry.feed, feed.last
                ),
            })?;
        }
        feed.last = entry.sequence;
        if entry.feed != FeedId(0) {
            feed.group = feed.group.or(group);
        }
        self.home.put(Kind::Feed, &key, &feed)?;
        Ok(Handled::Taken)
    }

    fn take_event(
        &self,
        entry: &QueueEntry,
        group: Option<&GroupId>,
        now: Timestamp,
    ) -> Result<Handled, CoreError> {
        match (&entry.event, group) {
            (QueueEvent::Welcome { hub_domain, welcome }, Some(group)) => {
                self.welcomed(group, hub_domain, welcome, now)
            }
            (QueueEvent::ConnectionRequest { sender_domain, offer }, _) => {
                self.offered(sender_domain, offer, now)?;
                Ok(Handled::Taken)
            }
            (QueueEvent::KeyPackagesLow { left }, _) => {
                self.push(&Event::KeyPackagesLow { left: *left })?;
                Ok(Handled::Taken)
            }
            (QueueEvent::Gap { .. }, _) if entry.feed == FeedId(0) => {
                self.provider_went_back()?;
                Ok(Handled::Taken)
            }
            (event, Some(group)) if entry.feed != FeedId(0) => {
                self.take_group_event(entry, event, group, now)
            }
            _ => Ok(Handled::Taken),
        }
    }

    fn take_group_event(
        &self,
        entry: &QueueEntry,
        event: &QueueEvent,
        id: &GroupId,
        now: Timestamp,
    ) -> Result<Handled, CoreError> {
        let Some(mut record) = self.home.find::<GroupRecord>(Kind::Group, id.as_bytes())? else {
            return Ok(Handled::Taken);
        };
        let before = record.past_feed.is_some_and(|past| entry.feed <= past);
        if before || record.feed.is_some_and(|current| entry.feed < current) {
            // of a membership before this one
            return Ok(Handled::Taken);
        }
        if record.state == GroupState::Joining && self.entering(id)? {
            return Ok(Handled::Wait);
        }
        if record.feed != Some(entry.feed) {
            match membership_of(&record, event) {
                Membership::Earlier => {
                    // or of this one, where nothing had come of it before this client came in anew
                    if let QueueEvent::MlsMessage { message } = event {
                        self.read_behind(entry, id, &mut record, message)?;
                    }
                    return Ok(Handled::Taken);
                }
                Membership::Unsaid => {}
                Membership::This => {
                    record.feed = Some(entry.feed);
                    self.put_record(id, &record)?;
                }
            }
        }
        if self.pass_behind(id, &mut record, entry.sequence, now)? {
            self.put_record(id, &record)?;
        }
        if let QueueEvent::MlsMessage { message } = event
            && self.read_behind(entry, id, &mut record, message)?
        {
            return Ok(Handled::Taken);
        }
        if let QueueEvent::MlsMessage { message } = event
            && let Some(message) = protocol_message(message)
            && let came = Epoch(message.epoch().as_u64())
            && record.read_epoch.is_none_or(|read| read < came)
        {
            record.read_epoch = Some(came);
            self.put_record(id, &record)?;
        }
        match event {
            QueueEvent::MlsMessage { message } => match record.state {
                GroupState::Active => {
                    if is_handshake(message) {
                        Ok(match self.follow(id, message, Way::Queue(entry.sequence))? {
                            Followed::Wait => Handled::Wait,
                            Followed::Yes | Followed::No | Followed::Lost | Followed::Held => {
                                Handled::Taken
                            }
                        })
                    } else {
                        self.read_message(entry, id, message)
                    }
                }
                // what is of the epoch that this client stays in, and was sent before the commit that it cannot use
                GroupState::Lost if self.doubt_of(id)?.is_some() => {
                    if is_handshake(message) {
                        self.follow(id, message, Way::Queue(entry.sequence))?;
                    } else if is_of_epoch_until(message, epoch_of(&self.load(id)?)) {
                        return self.read_message(entry, id, message);
                    }
                    Ok(Handled::Taken)
                }
                // it comes in anew; what is in front of that, and this state has keys for, is read
                GroupState::Lost => {
                    if self.is_behind_resync(id, message)? {
                        return Ok(Handled::Wait);
                    }
                    self.read_quietly(entry, id, message, record.noted())?;
                    self.put_record(id, &record)?;
                    Ok(Handled::Taken)
                }
                GroupState::Joining | GroupState::Left | GroupState::Deleted => Ok(Handled::Taken),
            },
            QueueEvent::GroupDeleted => {
                if record.state != GroupState::Deleted {
                    record.state = GroupState::Deleted;
                    self.forget_behind(id, &mut record)?;
                    self.has_ended(id)?;
                    self.put_record(id, &record)?;
                    self.home.lift(id)?;
                    self.push(&Event::Deleted { group: id.clone() })?;
                }
                Ok(Handled::Taken)
            }
            QueueEvent::Removed => {
                if matches!(record.state, GroupState::Active | GroupState::Lost) {
                    self.leave(id, record)?;
                }
                Ok(Handled::Taken)
            }
            QueueEvent::Gap { next_available } => {
                let lacks = record.entered_at.is_none_or(|at| at.next() < *next_available);
                if record.state == GroupState::Active && lacks {
                    self.lose(id, format!("entries before {next_available} have expired"))?;
                }
                Ok(Handled::Taken)
            }
            QueueEvent::EpochVoid { epoch, .. } => {
                // who has come in behind it knows no other
                let came_behind = record.entered_at.is_some_and(|at| entry.sequence <= at);
                if came_behind || self.goes_on_before(id, *epoch)? {
                    return Ok(Handled::Taken);
                }
                if record.state == GroupState::Active && epoch_of(&self.load(id)?) >= *epoch {
                    self.lose(id, format!("the hub took epoch {epoch} back"))?;
                }
                Ok(Handled::Taken)
            }
            QueueEvent::GroupMoved { confirmation } => {
                if record.state == GroupState::Active {
                    self.moved_notice(id, &record, confirmation)?;
                }
                Ok(Handled::Taken)
            }
            QueueEvent::RosterOnly
            | QueueEvent::Welcome { .. }
            | QueueEvent::ConnectionRequest { .. }
            | QueueEvent::KeyPackagesLow { .. } => Ok(Handled::Taken),
        }
    }

    /// What was left for this client alone is missing: its provider has gone back to a backup. What it knows of this client's groups
    /// may be older than what this client knows. A group's own feed says so where it has one; what comes before that is as
    /// good as ever. For the others see [`Member::settle_doubts`].
    fn provider_went_back(&self) -> Result<(), CoreError> {
        let mut doubted: Vec<GroupId> = Vec::new();
        for (key, record) in self.home.list::<GroupRecord>(Kind::Group, &[], usize::MAX)? {
            if let (GroupState::Active, Ok(id)) = (record.state, GroupId::from_bytes(&key)) {
                doubted.push(id);
            }
        }
        self.home.put(Kind::Setting, DOUBTED, &doubted)
    }

    /// Everything that the queue holds has come: a group that its feed has said nothing of since the provider went back may not be
    /// known there any more, or not with this client. It is entered anew. One that the hub said this client is not in is over.
    /// Gives how many those are.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn settle_doubts(&self) -> Result<usize, CoreError> {
        let known = |name| self.home.find::<serde::de::IgnoredAny>(Kind::Setting, name);
        if known(DOUBTED)?.is_none() && known(ENDING)?.is_none() {
            return Ok(0);
        }
        self.home.step(|| {
            let ended = self.settle_endings()?;
            let doubted: Vec<GroupId> = self.home.find(Kind::Setting, DOUBTED)?.unwrap_or_default();
            for id in &doubted {
                if self.record(id)?.state == GroupState::Active {
                    let why = "this client's provider went back to an earlier state".to_owned();
                    self.lose(id, why)?;
                }
            }
            if !doubted.is_empty() {
                self.home.remove(Kind::Setting, DOUBTED)?;
            }
            Ok(ended + doubted.len())
        })
    }

    /// Whether a request that would make this client a member is unanswered.
    pub(super) fn entering(&self, id: &GroupId) -> Result<bool, CoreError> {
        Ok(self.pending()?.iter().any(|(_, group, operation)| {
            group == id
                && matches!(
                    operation,
                    Operation::CreateGroup | Operation::Join { .. } | Operation::Welcome { .. }
                )
        }))
    }

    fn welcomed(
        &self,
        id: &GroupId,
        hub: &Domain,
        welcome: &MlsMessage,
        now: Timestamp,
    ) -> Result<Handled, CoreError> {
        let found = self.peek(welcome);
        let (key_package, epoch) = match found {
            Ok(seen) if seen.group == *id => (seen.key_package, seen.epoch),
            Ok(_) => {
                let why = "the Welcome is to another group than its entry says".to_owned();
                self.push(&Event::Unreadable { group: id.clone(), why })?;
                return Ok(Handled::Taken);
            }
            Err(CoreError::Store(error)) => return Err(CoreError::Store(error)),
            Err(error) => {
                let why = format!("a Welcome: {error}");
                self.push(&Event::Unreadable { group: id.clone(), why })?;
                return Ok(Handled::Taken);
            }
        };
        if let Some(mut record) = self.home.find::<GroupRecord>(Kind::Group, id.as_bytes())?
            && matches!(record.state, GroupState::Active | GroupState::Lost)
        {
            let ours = self.load(id).map(|group| epoch_of(&group)).unwrap_or_default();
            if epoch > ours {
                // this client was removed and added again, and has not come to that in the group's feed
                let (hub, welcome) = (hub.clone(), welcome.as_slice().to_vec());
                record.welcome = Some(KeptWelcome { hub, welcome, came_at: now });
                self.put_record(id, &record)?;
            } else if record.entered_epoch.is_none_or(|entered| epoch >= entered) {
                self.push(&Event::Misbehaviour {
                    what: format!("a Welcome came to {id}, which this client is in"),
                })?;
            }
            // else it is of a membership that was over before this one began, and lay in the queue
            return Ok(Handled::Taken);
        }
        for (request, group, operation) in self.pending()? {
            // who asked to be let in and now is added needs no other way
            if group == *id
                && matches!(operation, Operation::Join { .. } | Operation::AskToJoin)
                && let Some((key, pending)) = self.find_pending(request)?
            {
                let asked = pending.asked;
                self.abandon(&key, pending)?;
                if asked {
                    self.keep_answer(request, Answer::AlreadySo)?;
                }
            }
        }
        self.expect_group(id, hub, "", now)?;
        let mut record = self.record(id)?;
        let signer = key_package.leaf_node().signature_key().as_slice();
        let leaf_key = self
            .identity
            .leaf_key_of(signer)
            .ok_or(CoreError::Invalid("the KeyPackage's key is none of this client's"))?;
        record.leaf_key = StoredKey::of(leaf_key);
        self.put_record(id, &record)?;
        let key_package_ref =
            key_package.hash_ref(self.home.crypto()).map_err(CoreError::mls)?.as_slice().to_vec();
        let last_resort = key_package.last_resort();
        let welcome = welcome.as_slice().to_vec();
        self.keep(id, Operation::Welcome { welcome, key_package_ref, epoch, last_resort })?;
        Ok(Handled::Taken)
    }

    /// Which KeyPackage, group and epoch a Welcome is for, and of which hub; the KeyPackage stays.
    pub(super) fn peek(&self, welcome: &MlsMessage) -> Result<Seen, CoreError> {
        struct Peeked(Box<Result<Seen, CoreError>>);
        impl From<CoreError> for Peeked {
            fn from(error: CoreError) -> Self {
                Self(Box::new(Err(error)))
            }
        }
        // looking into a Welcome uses its KeyPackage up, so what is seen is handed out as an error
        let looked: Result<(), Peeked> = self.home.attempt(|| {
            let mls::MlsMessageBodyIn::Welcome(welcome) =
                welcome.parse().map_err(CoreError::from)?.extract()
            else {
                return Err(CoreError::Invalid("it is no Welcome").into());
            };
            let provider = self.home.provider();
            let joining = StagedWelcome::build_from_welcome(&provider, &join_config(), welcome)
                .map_err(CoreError::mls)?;
            let seen = joining.processed_welcome();
            let info = seen.unverified_group_info();
            let group = GroupId::from_bytes(info.group_id().as_slice()).map_err(CoreError::mls)?;
            let key_package = seen
                .own_key_package()
                .ok_or(CoreError::Invalid("it is for no KeyPackage of this client"))?;
            Err(Peeked(Box::new(Ok(Seen {
                key_package: key_package.clone(),
                group,
                epoch: Epoch(info.epoch().as_u64()),
                hub: HubAt::in_group_info(info)?,
            }))))
        });
        match looked {
            Err(Peeked(seen)) => *seen,
            Ok(()) => Err(CoreError::Invalid("nothing was seen")),
        }
    }

    pub(super) fn read_message(
        &self,
        entry: &QueueEntry,
        id: &GroupId,
        message: &MlsMessage,
    ) -> Result<Handled, CoreError> {
        let mut group = self.load(id)?;
        let Some(protocol) = protocol_message(message) else {
            return self.unreadable(id, "a message that is no MLS message of the group");
        };
        if Epoch(protocol.epoch().as_u64()) > epoch_of(&group) {
            if self.in_flight(id)?.is_some() {
                return Ok(Handled::Wait);
            }
            self.lose(id, "a message is of an epoch that this client never saw begin".to_owned())?;
            return Ok(Handled::Taken);
        }
        let provider = self.home.provider();
        let processed = self
            .home
            .attempt(|| group.process_message(&provider, protocol).map_err(CoreError::mls));
        let (sender, bytes) = match processed {
            Ok(processed) => {
                let sender = policy::leaf::client_of(processed.credential());
                match (sender, processed.into_content()) {
                    (Ok(sender), mls::ProcessedMessageContent::ApplicationMessage(message)) => {
                        (sender, message.into_bytes())
                    }
                    _ => return self.unreadable(id, "a message that is no application message"),
                }
            }
            Err(CoreError::Store(error)) => return Err(CoreError::Store(error)),
            Err(error) => return self.unreadable(id, &error.to_string()),
        };
        let content = Content::decode(&bytes);
        let token = content.as_ref().ok().and_then(Content::as_consent_token).map(<[u8]>::to_vec);
        if let Some(token) = token {
            self.connected(&sender, id, token)?;
            return Ok(Handled::Taken);
        }
        let text = content.as_ref().ok().and_then(Content::as_text).map(str::to_owned);
        self.push(&Event::Message {
            group: id.clone(),
            sender,
            sent_at: entry.accepted_at,
            text,
            content: bytes,
        })?;
        Ok(Handled::Taken)
    }

    fn connected(&self, sender: &ClientUri, id: &GroupId, token: Vec<u8>) -> Result<(), CoreError> {
        let user = sender.user();
        let key = user.as_str().as_bytes();
        let mut contact: Contact = self.home.find(Kind::Contact, key)?.unwrap_or_default();
        contact.their_token = Some(token);
        contact.group.get_or_insert_with(|| id.clone());
        self.home.put(Kind::Contact, key, &contact)?;
        if user != self.identity.client.user() {
            self.push(&Event::Connected { user })?;
        }
        Ok(())
    }

    fn unreadable(&self, id: &GroupId, why: &str) -> Result<Handled, CoreError> {
        self.push(&Event::Unreadable { group: id.clone(), why: why.to_owned() })?;
        Ok(Handled::Taken)
    }

    /// Takes in a proposal or a commit of the group's current epoch.
    pub(super) fn follow(
        &self,
        id: &GroupId,
        message: &MlsMessage,
        way: Way,
    ) -> Result<Followed, CoreError> {
        let mut group = self.load(id)?;
        let Some(protocol) = protocol_message(message) else {
            return Ok(Followed::No);
        };
        let (theirs, ours) = (protocol.epoch().as_u64(), group.epoch().as_u64());
        if theirs < ours {
            return Ok(Followed::No);
        }
        let is_commit = protocol.content_type() == mls::ContentType::Commit;
        if (is_commit || theirs > ours) && self.doubt_of(id)?.is_some() {
            // of an epoch that this client does not come to
            return Ok(Followed::Lost);
        }
        let in_flight = self.in_flight(id)?;
        if theirs > ours {
            if in_flight.is_some() {
                return Ok(Followed::Wait);
            }
            self.lose(id, format!("epoch {theirs} came and epoch {ours} is the last known"))?;
            return Ok(Followed::Lost);
        }
        if is_commit {
            // one commit per epoch: what this client sent for it cannot be accepted any more. Its proposals can have been, and
            // then the commit covers them
            if let Some((key, mut pending)) = in_flight
                && !pending.proposes()
            {
                self.overtaken(&key, &mut pending)?;
                group = self.load(id)?;
            }
        }
        match self.home.attempt(|| self.process(id, &mut group, message, protocol, way)) {
            Ok(followed) => {
                if is_commit
                    && followed == Followed::Yes
                    && let Some((key, mut pending)) = self.in_flight(id)?
                {
                    self.overtaken(&key, &mut pending)?;
                }
                Ok(followed)
            }
            Err(Unacceptable::Ends) => Ok(Followed::Held),
            Err(Unacceptable::Core(CoreError::Store(error))) => Err(CoreError::Store(error)),
            Err(problem) if is_commit => {
                let reason = match &problem {
                    Unacceptable::Refused(reason, _) => *reason,
                    // the hub has judged the same
                    Unacceptable::Ends
                    | Unacceptable::Core(_)
                    | Unacceptable::Change(_)
                    | Unacceptable::Denied(_)
                    | Unacceptable::Leaf(_)
                    | Unacceptable::Move(_)
                    | Unacceptable::Mls(_) => None,
                };
                // what was taken back is not in the database, but was done to `group`
                self.doubt(id, &self.load(id)?, message, reason, problem.to_string())?;
                Ok(Followed::Lost)
            }
            Err(problem) => {
                self.push(&Event::Misbehaviour {
                    what: format!("a proposal in {id} is not acceptable: {problem}"),
                })?;
                Ok(Followed::No)
            }
        }
    }

    /// A request that another commit came before: it is built anew under the same id.
    fn overtaken(&self, key: &[u8], pending: &mut Pending) -> Result<(), CoreError> {
        let rests_on_epoch = pending.built.as_ref().is_some_and(|built| {
            !matches!(built.effect, Effect::Enter { .. } | Effect::Queue { .. })
        });
        if rests_on_epoch && let Some(built) = pending.built.take() {
            self.take_back(&pending.group, &built)?;
            // where it was sent on: what is made anew goes to the hub that the group names then
            pending.redirect = None;
            self.home.put(Kind::Pending, key, pending)?;
        }
        Ok(())
    }

    fn process(
        &self,
        id: &GroupId,
        group: &mut mls::MlsGroup,
        message: &MlsMessage,
        protocol: mls::ProtocolMessage,
        way: Way,
    ) -> Result<Followed, Unacceptable> {
        let provider = self.home.provider();
        let (processed, is_tagged) = self.read_handshake(group, protocol).map_err(|error| {
            if let mls::ProcessMessageError::StorageError(error) = error {
                return CoreError::from(error).into();
            }
            Unacceptable::Refused(accusation_in(&error), error.to_string())
        })?;
        let sender = processed.sender().clone();
        let aad = processed.aad().to_vec();
        match processed.into_content() {
            mls::ProcessedMessageContent::ProposalMessage(proposal)
            | mls::ProcessedMessageContent::ExternalJoinProposalMessage(proposal) => {
                let followed = self.take_proposal(id, group, *proposal, &aad, way)?;
                if followed == Followed::Yes && !is_tagged {
                    self.warn_of_tag(id, group, &sender)?;
                }
                Ok(followed)
            }
            mls::ProcessedMessageContent::StagedCommitMessage(staged) => {
                if way == Way::Answer && staged.self_removed() {
                    return Err(Unacceptable::Ends);
                }
                self.take_commit(id, group, *staged, &sender, &aad, message)
            }
            mls::ProcessedMessageContent::OwnPendingCommit => {
                let before = HubAt::of(group)?;
                group
                    .merge_pending_commit(&provider)
                    .map_err(|error| Unacceptable::Mls(error.to_string()))?;
                let mut record = self.record(id)?;
                self.follow_hub(id, &mut record, before, group)?;
                self.put_record(id, &record)?;
                Ok(Followed::Yes)
            }
            mls::ProcessedMessageContent::ApplicationMessage(_)
            | mls::ProcessedMessageContent::OwnPrivateMessage => Ok(Followed::No),
        }
    }

    fn take_proposal(
        &self,
        id: &GroupId,
        group: &mut mls::MlsGroup,
        proposal: mls::QueuedProposal,
        aad: &[u8],
        way: Way,
    ) -> Result<Followed, Unacceptable> {
        let mut record = self.record(id)?;
        let roster = roster_of(group)?;
        let held = self.hold_proposal(id, group, proposal, aad, way, &mut record.noted())?;
        self.put_record(id, &record)?;
        let Some(act) = held else { return Ok(Followed::No) };
        self.push(&Event::Proposed {
            group: id.clone(),
            by: author(&act, &roster),
            what: describe(&act, &roster),
        })?;
        Ok(Followed::Yes)
    }

    fn take_commit(
        &self,
        id: &GroupId,
        group: &mut mls::MlsGroup,
        staged: mls::StagedCommit,
        sender: &mls::Sender,
        aad: &[u8],
        message: &MlsMessage,
    ) -> Result<Followed, Unacceptable> {
        let mut record = self.record(id)?;
        check_path(group.ciphersuite(), message).map_err(ChangeProblem::Key)?;
        let (what, roster) = self.judge_commit(id, group, &staged, sender, aad, &record.proofs)?;
        let hub = HubAt::of(group)?;
        let removed: Vec<ClientUri> = what
            .removed
            .iter()
            .filter_map(|leaf| roster.get(*leaf).map(|it| it.client.clone()))
            .collect();
        let by = match (committer_in(sender), &what.joined) {
            (Some(leaf), _) => roster.get(leaf).map(|it| it.client.clone()),
            (None, Some(joined)) => Some(joined.client.clone()),
            (None, None) => {
                what.resynced.and_then(|leaf| roster.get(leaf)).map(|it| it.client.clone())
            }
        };
        let added = what.added.iter().chain(&what.joined).map(|it| it.client.clone()).collect();
        let out = staged.self_removed();
        group
            .merge_staged_commit(&self.home.provider(), staged)
            .map_err(|error| Unacceptable::Mls(error.to_string()))?;
        record.noted().clear();
        if out {
            self.leave(id, record)?;
        } else {
            let user_of = |it: &ClientUri| {
                let joined = what.joined.as_ref().map(|joined| &joined.user);
                joined.or_else(|| Some(&roster.get(roster.leaf_of(it)?)?.user))
            };
            let commit = look::Followed {
                roster: &roster,
                removed: &what.removed,
                message,
                by: by.as_ref(),
                by_user: by.as_ref().and_then(user_of),
            };
            self.behind_commit(id, group, &commit)?;
            self.push(&Event::Changed {
                group: id.clone(),
                epoch: epoch_of(group),
                by,
                added,
                removed,
                policy: what.policy.is_some(),
            })?;
            self.follow_hub(id, &mut record, hub, group)?;
            self.put_record(id, &record)?;
        }
        Ok(Followed::Yes)
    }

    /// This client is not a member any more.
    pub(super) fn leave(&self, id: &GroupId, mut record: GroupRecord) -> Result<(), CoreError> {
        record.state = GroupState::Left;
        let kept = record.welcome.take();
        self.forget_behind(id, &mut record)?;
        self.has_ended(id)?;
        self.put_record(id, &record)?;
        for (request, group, operation) in self.pending()? {
            if group == *id
                && let Some((key, pending)) = self.find_pending(request)?
            {
                self.home.remove(Kind::Pending, &key)?;
                if !pending.asked {
                    continue;
                }
                let wanted = matches!(&operation, Operation::Propose { proposals }
                    if proposals.contains(&NewProposal::Leave));
                let answer = if wanted {
                    Answer::AlreadySo
                } else {
                    Answer::GivenUp(CoreError::NotActive(group, GroupState::Left).to_string())
                };
                self.keep_answer(request, answer)?;
            }
        }
        self.home.lift(id)?;
        self.push(&Event::Removed { group: id.clone() })?;
        if let Some(kept) = kept {
            self.welcomed(id, &kept.hub, &Raw::new(kept.welcome)?, kept.came_at)?;
        }
        Ok(())
    }

    /// This state cannot follow the group any more: a resync is begun.
    pub(super) fn lose(&self, id: &GroupId, why: String) -> Result<(), CoreError> {
        let mut record = self.record(id)?;
        record.state = GroupState::Lost;
        self.put_record(id, &record)?;
        let doubted: Option<Vec<GroupId>> = self.home.find(Kind::Setting, DOUBTED)?;
        if let Some(mut doubted) = doubted.filter(|doubted| doubted.contains(id)) {
            doubted.retain(|other| other != id);
            self.home.put(Kind::Setting, DOUBTED, &doubted)?;
        }
        self.push(&Event::Lost { group: id.clone(), why })?;
        self.keep_resync(id)
    }
}

/// Groups that the provider may know less of than this client, since it went back to a backup.
const DOUBTED: &[u8] = b"doubted_groups";

/// Of which membership an event on a feed is that nothing of this one has come on.
enum Membership {
    /// One before the one that the record is of: it says nothing any more.
    Earlier,
    /// It does not say. It counts, and its feed is not this membership's for that.
    Unsaid,
    /// The one that the record is of, and so is its feed.
    This,
}

/// Of which membership `event` is, as far as its feed does not say so: nothing of the one that `record` is of has come on it. What
/// was in the queue when this client entered the group anew comes only then, and may begin with anything: only what this
/// membership alone can have makes the feed its own, for by its own feed's end it is over.
fn membership_of(record: &GroupRecord, event: &QueueEvent) -> Membership {
    let Some(entered) = record.entered_epoch else { return Membership::This };
    if !matches!(record.state, GroupState::Active | GroupState::Lost) {
        return Membership::This;
    }
    let by_epoch = |epoch: Epoch| {
        if epoch < entered { Membership::Earlier } else { Membership::This }
    };
    match event {
        QueueEvent::MlsMessage { message } => protocol_message(message)
            .map_or(Membership::Unsaid, |message| by_epoch(Epoch(message.epoch().as_u64()))),
        // it stands behind the commit that began this epoch. A membership that is over ended in front of the commit that
        // this one came in by
        QueueEvent::GroupMoved { confirmation } => by_epoch(confirmation.epoch),
        // the commit that ends a membership comes before its end, on the same feed; where the feed has a gap there,
        // a resync is on its way and says whether this client is in the group
        QueueEvent::Removed => Membership::Earlier,
        QueueEvent::GroupDeleted => Membership::This,
        QueueEvent::Gap { .. }
        | QueueEvent::EpochVoid { .. }
        | QueueEvent::RosterOnly
        | QueueEvent::Welcome { .. }
        | QueueEvent::ConnectionRequest { .. }
        | QueueEvent::KeyPackagesLow { .. } => Membership::Unsaid,
    }
}

fn author(act: &Act, roster: &Roster) -> Option<ClientUri> {
    match &act.author {
        Author::Leaf(leaf) => roster.get(*leaf).map(|it| it.client.clone()),
        Author::Newcomer { .. } | Author::Hub => None,
    }
}

fn describe(act: &Act, roster: &Roster) -> String {
    let client = |leaf: &LeafIndex| {
        roster.get(*leaf).map_or_else(|| format!("leaf {leaf}"), |it| it.client.to_string())
    };
    match &act.what {
        What::Add(it) => format!("add {}", it.client),
        What::Join(it) => format!("join of {}", it.client),
        What::Resync(it) => format!("resync of {}", it.client),
        What::Remove(leaf) => format!("remove {}", client(leaf)),
        What::Leave(leaf) => format!("{} leaves", client(leaf)),
        What::Update(leaf) => format!("new keys of {}", client(leaf)),
        What::Policy(_) => "a new policy".to_owned(),
        What::HubKey => "a new key of the hub".to_owned(),
    }
}

pub(super) fn protocol_message(message: &MlsMessage) -> Option<mls::ProtocolMessage> {
    message.parse().ok()?.try_into_protocol_message().ok()
}

fn is_of_epoch_until(message: &MlsMessage, epoch: Epoch) -> bool {
    protocol_message(message).is_some_and(|message| message.epoch().as_u64() <= epoch.0)
}

fn is_handshake(message: &MlsMessage) -> bool {
    protocol_message(message).is_some_and(|message| message.is_handshake_message())
}
