//! One group as its hub sees it: a synchronous state machine that knows no actor, disk or clock.
//!
//! [`GroupState::stage`] decides (and changes nothing), [`GroupState::merge`] applies what was decided and cannot
//! be refused, [`GroupState::load`] does again what `merge` did, from the log. Both go through one `apply`, so a
//! reloaded group equals the live one. DS §3, §4; PROTOCOL.md §2.
//!
//! Deliberately absent: federation, the order of a group's move (`migration`; what moves is in [`portability`]), anything secret.

mod commit;
mod complainants;
mod complaint;
#[cfg(fuzzing)]
pub mod fuzzing;
mod guests;
pub mod hub;
pub mod import;
pub mod keys;
mod lies;
mod memory;
pub mod mls;
pub mod portability;
#[expect(clippy::wildcard_enum_match_arm, reason = "openmls' kinds of proposal and content grow")]
mod propose;
pub mod record;
pub mod reject;
#[expect(clippy::wildcard_enum_match_arm, reason = "openmls' kinds of proposal and content grow")]
mod stage;
mod void;
mod whole;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use openmls::prelude::StagedCommit;

use crate::{
    crypto::{MlsCrypto, SigningKey},
    policy::{
        self,
        change::{Act, policy_of},
        leaf::trusted,
        roster::{Roster, RosterChange},
    },
    rate::GroupRates,
    store::records::{FeedEntry, GoneReason, InboxItem, KeyPrint, LogRecord, RequestKey},
    wire::{
        codec::encode,
        ds::{Accepted, DsMessage, DsResponseBody, DsSenderId, FanoutFilter, Info},
        extensions::{ClientQueueConfig, GroupPolicy, SignatureScheme},
        ids::{
            ClientUri, Domain, Epoch, GroupId, KeyPackageRef, LeafIndex, RecipientId, Sequence,
            Timestamp, UserKeyHash,
        },
        mls::MlsMessage,
        queueing::QueueEvent,
    },
};
pub use complaint::Heard;
pub use guests::Outbound;
use guests::{Before, Guests, guests_of};
pub use hub::Creation;
pub use keys::{HubKey, HubKeys, RetiredKey};
use lies::{Earlier, Lies};
use memory::{RecentHandshakes, RequestMemory};
use mls::{InfoParts, MlsProblem, Tree, from_record, to_record};
use record::{Change, CommitRecord, Joiner, Kind, Member, Pending, Snapshot};
pub use reject::Reject;

/// What holds for every group of a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// This provider: the hub of its groups.
    pub hub: Domain,
    /// Members that any group may have, whatever its policy says.
    pub members_max: usize,
    pub adds_per_commit_max: usize,
    /// Pending proposals of members per epoch; the hub's own are not counted.
    pub pending_max: usize,
    pub application_bytes_max: usize,
    pub handshake_bytes_max: usize,
    /// How far a request's timestamp may be from the hub's clock.
    pub window_ms: u64,
    /// How long requests that are no commits are remembered.
    pub remember_ms: u64,
    /// For how many epochs commits are remembered.
    pub remember_epochs: u64,
    /// Requests of either kind that are remembered at the most; beyond, whoever has most is forgotten its oldest.
    pub remember_max: usize,
    /// A member that sends nothing for this long is removed; none: never.
    pub inactive_after_ms: Option<u64>,
    /// A pending removal of the hub blocks everybody's application messages after this grace; none: only those
    /// of the clients that are to be removed.
    pub strict_after_ms: Option<u64>,
    /// A group whose every member is to be removed is deleted after this.
    pub delete_after_ms: u64,
    /// From the first complaint about a commit on complainants wait for others at the most so long, and cannot talk meanwhile.
    pub complaint_wait_ms: u64,
    /// Lifetime of a KeyPackage that may be added.
    pub key_package_lifetime_max_s: u64,
    /// MLS ciphersuites that a group may have.
    pub ciphersuites: Vec<u16>,
}

impl Settings {
    /// The defaults of PROTOCOL.md for `hub`.
    #[must_use]
    pub fn new(hub: Domain) -> Self {
        const DAY_MS: u64 = 24 * 60 * 60 * 1000;
        Self {
            hub,
            members_max: 10_000,
            adds_per_commit_max: 1000,
            pending_max: 128,
            application_bytes_max: crate::wire::ds::APPLICATION_BYTES_MAX,
            handshake_bytes_max: crate::wire::ds::REQUEST_BYTES_MAX,
            window_ms: 5 * 60 * 1000,
            remember_ms: DAY_MS,
            remember_epochs: 128,
            remember_max: 16_384,
            inactive_after_ms: Some(90 * DAY_MS),
            strict_after_ms: Some(60 * 1000),
            delete_after_ms: 30 * DAY_MS,
            complaint_wait_ms: 30 * 1000,
            key_package_lifetime_max_s: 100 * 24 * 60 * 60,
            ciphersuites: vec![1, 2, 3],
        }
    }
}

/// What every group of a hub shares.
#[derive(Debug)]
pub struct Hub {
    pub settings: Settings,
    pub crypto: MlsCrypto,
    /// The hub's external-sender keys.
    pub keys: HubKeys,
    pub rates: GroupRates,
}

impl Hub {
    /// The key that new groups of `scheme` have.
    #[must_use]
    pub fn key(&self, scheme: SignatureScheme) -> Option<SigningKey> {
        keys::newest(&self.keys.all(), scheme).map(|key| key.key.clone())
    }

    /// The key with this print, if it is (still) one of the hub's.
    #[must_use]
    pub fn key_of_print(&self, print: KeyPrint) -> Option<SigningKey> {
        let all = self.keys.all();
        all.iter().find(|key| key.print() == print).map(|key| key.key.clone())
    }
}

/// A request as it comes to a group: relayed by the provider `relay` (this one for its own clients).
#[derive(Debug, Clone)]
pub struct Request {
    pub message: DsMessage,
    pub relay: Domain,
}

/// What [`GroupState::stage`] decided.
#[derive(Debug)]
pub enum Decision {
    /// Nothing changes: this is the answer.
    Answer(DsResponseBody),
    /// The information of an epoch that is gone, and that the commit at this sequence began: whoever has the log makes it
    /// (`joiner_info`).
    History(Epoch, Sequence),
    /// To be bound ([`Staged::binds`]), merged, written and then answered.
    Write(Box<Staged>),
    /// The Commit that moves the group. It is not merged here: the group is to be frozen ([`GroupState::pack`]).
    Move(Box<Staged>),
}

/// A change that was decided and not yet made. It is good for the state that it was staged on and no other.
#[derive(Debug)]
pub struct Staged {
    at: Timestamp,
    steps: Vec<Step>,
    /// Queues that this provider's own clients bring in: their tokens are bound in the same write.
    pub binds: Vec<Bind>,
    /// Removals that the hub proposes again behind the last step.
    renew_hub_proposals: bool,
    answered: bool,
}

/// A client's queue that is to be bound to this group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    pub client: ClientUri,
    /// The user key in its leaf: it must be the one of its account, or another could stand in under its name.
    pub user: UserKeyHash,
    pub config: ClientQueueConfig,
    /// Index of the KeyPackage in the commit, for the error; none where the client itself gave the config.
    pub key_package: Option<u32>,
    /// The Add was pending and is covered by reference: where its token has gone bad since, the commit stands all the
    /// same (no commit could be accepted otherwise), and the hub proposes the client's removal.
    pub pending: bool,
}

#[derive(Debug)]
struct Step {
    change: Change,
    event: Option<QueueEvent>,
    handshake: bool,
    except: Option<RecipientId>,
    commit: Option<StagedCommit>,
    pending: Option<Pending>,
    welcomes: BTreeMap<KeyPackageRef, MlsMessage>,
}

/// What a merge leaves to be written and told.
#[derive(Debug, Default)]
pub struct Effects {
    pub records: Vec<LogRecord>,
    /// For this provider's own clients, in order: (client, sequence that it is left at, item).
    pub inbox: Vec<(ClientUri, Sequence, InboxItem)>,
    /// For guest providers, in order: one of each guest for every record.
    pub outbound: Vec<Outbound>,
    pub accepted: Option<Accepted>,
    pub deleted: bool,
    /// A commit went through: the epoch changed.
    pub committed: bool,
    /// The group went back one epoch.
    pub voided: bool,
}

/// One group.
pub struct GroupState {
    hub: Arc<Hub>,
    id: GroupId,
    tree: Tree,
    roster: Roster,
    policy: GroupPolicy,
    info: InfoParts,
    members: BTreeMap<LeafIndex, Member>,
    /// Of the members; not part of what is stored.
    guests: Guests,
    pending: Vec<Pending>,
    joiners: BTreeMap<KeyPackageRef, Joiner>,
    /// The same by leaf.
    joining: BTreeMap<LeafIndex, KeyPackageRef>,
    remembered: RequestMemory,
    going: BTreeMap<LeafIndex, (GoneReason, Timestamp)>,
    next_sequence: Sequence,
    next_recipient: RecipientId,
    created_at: Timestamp,
    deleted: bool,
    /// Members that must resync before anything else of them is taken: see [`Kind::Restored`].
    behind: BTreeSet<LeafIndex>,
    /// A cache for `wrong_epoch`; not part of what is stored.
    recent: RecentHandshakes,
    /// Whose commits failed for somebody's pending proposals in this epoch; forgotten with the process.
    blockers: BTreeMap<LeafIndex, BTreeSet<DsSenderId>>,
    /// Nobody becomes inactive before this.
    inactive_not_before: Timestamp,
    lies: Lies,
}

impl std::fmt::Debug for GroupState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GroupState({}, epoch {}, {} members)", self.id, self.epoch(), self.members.len())
    }
}

impl GroupState {
    #[must_use]
    pub fn id(&self) -> &GroupId {
        &self.id
    }

    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.tree.epoch()
    }

    /// The signature scheme of its leaves, and of its hub's key.
    #[must_use]
    pub fn scheme(&self) -> SignatureScheme {
        self.tree.scheme()
    }

    #[must_use]
    pub fn next_sequence(&self) -> Sequence {
        self.next_sequence
    }

    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.deleted
    }

    #[must_use]
    pub fn policy(&self) -> &GroupPolicy {
        &self.policy
    }

    #[must_use]
    pub fn member_count(&self) -> usize {
        self.members.len()
    }

    /// What [`Self::stage`] may have to look at for `request`: what it brings, and what is pending.
    #[must_use]
    pub fn bytes_to_judge(&self, request: &Request) -> usize {
        let pending = self.pending.iter().map(|pending| pending.message.as_slice().len());
        tls_codec::Size::tls_serialized_len(&request.message.request) + pending.sum::<usize>()
    }

    /// Members by leaf, with what the hub keeps of each.
    pub fn members(&self) -> impl Iterator<Item = (LeafIndex, &Member)> {
        self.members.iter().map(|(leaf, member)| (*leaf, member))
    }

    /// The proposals that the next commit of a member must cover.
    pub fn pending_messages(&self) -> impl Iterator<Item = &MlsMessage> {
        self.pending.iter().map(|pending| &pending.message)
    }

    /// Since when the oldest of them is pending.
    #[must_use]
    pub fn pending_since(&self) -> Option<Timestamp> {
        self.pending.iter().map(|pending| pending.record.since).min()
    }

    /// Epochs that pending joiners may still ask for, each with the sequence of the commit that began it: an epoch of
    /// the same number may have been void before.
    #[must_use]
    pub fn joiner_epochs(&self) -> BTreeMap<Epoch, Sequence> {
        let since = |leaf| self.members.get(leaf).map_or(Sequence(0), |member| member.since);
        self.joiners.values().map(|joiner| (joiner.epoch, since(&joiner.leaf))).collect()
    }

    /// GroupInfo and tree of the current epoch, with the proposals that are pending in it.
    ///
    /// # Errors
    /// [`Reject::Broken`]
    pub fn info(&self) -> Result<Info, Reject> {
        let pending = self.pending_messages().cloned().collect();
        Ok(Info {
            group_info: self.tree.group_info(&self.info).map_err(broken)?,
            ratchet_tree: self.tree.export(),
            pending: crate::wire::codec::List::new(pending)
                .map_err(|error| Reject::Broken(error.to_string()))?,
        })
    }

    /// Applies what was staged on this very state.
    ///
    /// # Errors
    /// [`Reject::Broken`] where `staged` is not of this state: the actor stops and loads the group anew.
    pub fn merge(&mut self, staged: Staged) -> Result<Effects, Reject> {
        let mut effects = Effects::default();
        let mut dissolved = Vec::new();
        let first = self.next_sequence;
        for step in staged.steps {
            self.merge_step(step, staged.at, &mut dissolved, &mut effects)?;
        }
        if staged.renew_hub_proposals {
            for step in self.liar_steps(&self.liars(staged.at)) {
                self.merge_step(step, staged.at, &mut dissolved, &mut effects)?;
            }
            for step in self.hub_proposals(staged.at) {
                self.merge_step(step, staged.at, &mut dissolved, &mut effects)?;
            }
        }
        if staged.answered {
            effects.accepted = Some(Accepted {
                group_sequence: first,
                accepted_at: staged.at,
                epoch: self.epoch(),
            });
        }
        Ok(effects)
    }

    /// Remembers whose proposals made a commit fail; when they did so to two senders, they wait for the next epoch.
    /// One sender alone cannot silence anybody.
    pub fn note_refusal(&mut self, reject: &Reject, sender: &DsSenderId) {
        if matches!(reject, Reject::Pending { commit: true, .. }) {
            let authors = self.pending.iter().filter_map(|pending| pending.record.by);
            for leaf in authors.collect::<BTreeSet<LeafIndex>>() {
                self.blockers.entry(leaf).or_default().insert(sender.clone());
            }
        }
    }

    fn merge_step(
        &mut self,
        step: Step,
        at: Timestamp,
        dissolved: &mut Vec<Member>,
        effects: &mut Effects,
    ) -> Result<(), Reject> {
        let sequence = self.next_sequence;
        let Step { change, event, handshake, except, commit, pending, welcomes } = step;
        let before = self.before(&change);
        let origin = except.and_then(|_| self.origin_of(&change));
        let event = event.map(|event| encode(&event)).unwrap_or_default();
        let record = LogRecord {
            feed: FeedEntry { sequence, accepted_at: at, except, origin, handshake, event },
            change: to_record(&change).map_err(broken)?,
            follows: None,
        };
        self.apply(&record, change.clone(), commit, pending)?;
        let outbound = &mut effects.outbound;
        self.owe_guests(&change, &before, sequence, &welcomes, dissolved, outbound);
        self.leave_for_clients(&change, before, sequence, &welcomes, &mut effects.inbox);
        effects.committed |= matches!(change.kind, Kind::Commit(_));
        effects.voided |= matches!(change.kind, Kind::EpochVoid { .. });
        effects.deleted |= self.deleted;
        effects.records.push(record);
        Ok(())
    }

    /// The one place where the state changes: for a live merge and for replay alike.
    fn apply(
        &mut self,
        record: &LogRecord,
        change: Change,
        commit: Option<StagedCommit>,
        pending: Option<Pending>,
    ) -> Result<(), Reject> {
        let (sequence, at) = (record.feed.sequence, record.feed.accepted_at);
        let leaps = matches!(change.kind, Kind::Restored) && sequence > self.next_sequence;
        if sequence != self.next_sequence && !leaps {
            return Err(Reject::Broken(format!(
                "record {sequence} where {} is next",
                self.next_sequence
            )));
        }
        self.next_sequence = sequence.next();
        let is_commit = matches!(change.kind, Kind::Commit(_));
        let epoch_before = self.epoch();
        let earlier = match &change.kind {
            Kind::Commit(commit) => Some(Earlier::of(&self.roster, &self.info, commit)),
            Kind::Created
            | Kind::Message
            | Kind::Queue { .. }
            | Kind::Proposal(_)
            | Kind::Going { .. }
            | Kind::Deleted
            | Kind::Voided { .. }
            | Kind::Complaint { .. }
            | Kind::EpochVoid { .. }
            | Kind::Restored => None,
        };
        match change.kind {
            Kind::Created | Kind::Message => {}
            Kind::Queue { leaf, config, filter, timestamp } => {
                if let Some(member) = self.members.get_mut(&leaf) {
                    member.config = config;
                    member.filter = filter;
                    member.queue_timestamp = timestamp;
                }
            }
            Kind::Proposal(stored) => {
                let pending = match pending {
                    Some(pending) => pending,
                    None => Pending::from_record(stored).map_err(broken)?,
                };
                self.add_pending(pending);
            }
            Kind::Commit(stored) => {
                self.apply_commit(&stored, commit, sequence, at)?;
                if let Some(earlier) = earlier {
                    let (event, at) = (&record.feed.event, (epoch_before, sequence, at));
                    self.lies.committed(&stored, event, earlier, &self.roster, at);
                }
            }
            Kind::Going { leaf, reason } => {
                if reason == GoneReason::Lied
                    && let Some(liar) = self.roster.get(leaf)
                {
                    self.lies.settle(&liar.client);
                }
                self.going.entry(leaf).or_insert((reason, at)).0 = reason;
            }
            Kind::Deleted => {
                self.deleted = true;
                self.joiners.clear();
                self.joining.clear();
            }
            Kind::Voided { references } => {
                for reference in &references {
                    self.drop_pending(|pending| pending.reference() == reference);
                }
            }
            Kind::Complaint { user, complaint } => self.apply_complaint(&user, complaint, at),
            Kind::EpochVoid { before } => self.apply_void(&before)?,
            Kind::Restored => {
                self.behind = self.members.keys().copied().collect();
                // as with sequences: there were never so many members as that
                self.next_recipient = self.next_recipient.max(RecipientId(sequence.0));
            }
        }
        if record.feed.handshake && !record.feed.event.is_empty() {
            self.recent.push(epoch_before, &record.feed.event);
        }
        if let Some(leaf) = change.sender {
            self.end_joiner(leaf);
            if let Some(member) = self.members.get_mut(&leaf) {
                member.last_active = member.last_active.max(at);
            }
        }
        if let Some(request) = change.request {
            let by = change.sender.and_then(|leaf| self.roster.get(leaf));
            self.lies.went_on(by.map(|identity| &identity.user));
            let accepted =
                Accepted { group_sequence: sequence, accepted_at: at, epoch: self.epoch() };
            self.remembered.insert(request, accepted, is_commit);
        }
        self.remembered.forget(at, self.epoch(), &self.hub.settings);
        Ok(())
    }

    fn apply_commit(
        &mut self,
        stored: &CommitRecord,
        commit: Option<StagedCommit>,
        sequence: Sequence,
        at: Timestamp,
    ) -> Result<(), Reject> {
        let staged = match commit {
            Some(staged) => staged,
            None => from_record(&stored.staged).map_err(broken)?,
        };
        self.tree.merge(staged).map_err(broken)?;
        self.info = stored.info_parts().map_err(broken)?;
        self.pending.clear();
        self.blockers.clear();

        let mut change = RosterChange { removed: stored.removed.clone(), ..Default::default() };
        for leaf in &stored.renewed {
            change.updated.push((*leaf, identity_at(&self.tree, *leaf)?));
        }
        for added in &stored.added {
            change.added.push((added.leaf, identity_at(&self.tree, added.leaf)?));
        }
        if let Some(joined) = &stored.joined {
            change.added.push((joined.leaf, identity_at(&self.tree, joined.leaf)?));
        }

        let resynced = stored.joined.as_ref().and_then(|joined| joined.replaces);
        let mut kept = None;
        for leaf in &stored.removed {
            let member = self.exit(*leaf);
            self.behind.remove(leaf);
            let going = self.going.remove(leaf);
            self.end_joiner(*leaf);
            if resynced == Some(*leaf) {
                kept = member.map(|member| (member, going));
            }
        }
        for added in &stored.added {
            let identity = identity_at(&self.tree, added.leaf)?;
            if identity.client != added.client {
                return Err(Reject::Broken(format!("leaf {} is another client's", added.leaf)));
            }
            let member = self.new_member(identity.client, added.config.clone(), at, sequence);
            self.enter(added.leaf, member);
            let joiner = Joiner {
                leaf: added.leaf,
                epoch: self.epoch(),
                key: identity.signature_key,
                not_after: added.not_after,
            };
            self.joiners.insert(added.reference.clone(), joiner);
            self.joining.insert(added.leaf, added.reference.clone());
        }
        if let Some(joined) = &stored.joined {
            let mut member = match kept {
                Some((member, going)) => {
                    // a resync voids an inactivity removal; a deleted client cannot resync at all
                    if let Some(going) = going.filter(|(why, _)| *why != GoneReason::Inactive) {
                        self.going.insert(joined.leaf, going);
                    }
                    member
                }
                None => {
                    let client = identity_at(&self.tree, joined.leaf)?.client;
                    self.new_member(client, joined.config.clone(), at, sequence)
                }
            };
            member.config = joined.config.clone();
            member.queue_timestamp = member.queue_timestamp.max(joined.timestamp);
            member.last_active = at;
            self.enter(joined.leaf, member);
            if let Some(before) = resynced.filter(|before| *before != joined.leaf) {
                let name = |leaf| encode(&DsSenderId::LeafIndex(leaf));
                self.remembered.renamed(&name(before), &name(joined.leaf));
            }
        }
        self.roster.apply(change);
        self.forget_late_joiners(at);
        if stored.policy_changed {
            self.policy = policy_of(self.tree.context().extensions())
                .map_err(|error| Reject::Broken(error.to_string()))?;
        }
        if self.roster.len() != self.members.len() {
            return Err(Reject::Broken("roster and members differ".into()));
        }
        Ok(())
    }

    fn end_joiner(&mut self, leaf: LeafIndex) {
        if let Some(reference) = self.joining.remove(&leaf) {
            self.joiners.remove(&reference);
        }
    }

    /// Whoever has not come within its KeyPackage's lifetime does not come any more.
    fn forget_late_joiners(&mut self, at: Timestamp) {
        let late: Vec<LeafIndex> = self
            .joiners
            .values()
            .filter(|joiner| joiner.not_after < at)
            .map(|joiner| joiner.leaf)
            .collect();
        for leaf in late {
            self.end_joiner(leaf);
        }
    }

    fn new_member(
        &mut self,
        client: ClientUri,
        config: ClientQueueConfig,
        at: Timestamp,
        since: Sequence,
    ) -> Member {
        let recipient = self.next_recipient;
        self.next_recipient = recipient.next();
        Member {
            recipient,
            client,
            config,
            filter: FanoutFilter::All,
            queue_timestamp: Timestamp(0),
            last_active: at,
            since,
        }
    }

    fn add_pending(&mut self, new: Pending) {
        let acts: Vec<&Act> = self.pending.iter().map(|pending| &pending.act).collect();
        let leaves = self.roster.len();
        let displaced =
            policy::pending::place(&acts, &new.act, leaves, usize::MAX).unwrap_or_default();
        for index in displaced.into_iter().rev() {
            let old = self.pending.remove(index);
            self.tree.remove_pending(&old.queued);
        }
        self.tree.add_pending(new.queued.clone());
        self.pending.push(new);
    }

    fn drop_pending(&mut self, which: impl Fn(&Pending) -> bool) {
        for gone in self.pending.extract_if(.., |pending| which(pending)) {
            self.tree.remove_pending(&gone.queued);
        }
    }

    /// What this provider's own clients find in their inbox behind the change.
    fn leave_for_clients(
        &self,
        change: &Change,
        before: Before,
        sequence: Sequence,
        welcomes: &BTreeMap<KeyPackageRef, MlsMessage>,
        inbox: &mut Vec<(ClientUri, Sequence, InboxItem)>,
    ) {
        let own = |member: &Member| member.config.domain == self.hub.settings.hub;
        let mut put = |member: &Member, item: InboxItem| {
            if own(member) {
                inbox.push((member.client.clone(), sequence, item));
            }
        };
        let open = |member: &Member, event: Option<QueueEvent>| InboxItem::Open {
            group: self.id.clone(),
            recipient: member.recipient,
            from: sequence.next(),
            handshake_only: member.filter == FanoutFilter::HandshakeOnly,
            event: event.map(|event| encode(&event)),
        };
        match &change.kind {
            Kind::Created => {
                for member in self.members.values() {
                    put(member, open(member, None));
                }
            }
            Kind::Queue { leaf, filter, .. } => {
                if let Some(member) = self.members.get(leaf) {
                    let item = InboxItem::Filter {
                        group: self.id.clone(),
                        recipient: member.recipient,
                        from: sequence.next(),
                        handshake_only: *filter == FanoutFilter::HandshakeOnly,
                    };
                    put(member, item);
                }
            }
            Kind::Commit(commit) => {
                let resynced = commit.joined.as_ref().and_then(|joined| joined.replaces);
                for (leaf, member) in &before.removed {
                    if resynced != Some(*leaf) {
                        // who is removed by the group's end also gets to know of it
                        let ends = commit.dissolves;
                        let item = InboxItem::Close {
                            group: self.id.clone(),
                            recipient: member.recipient,
                            last: if ends { sequence.next() } else { sequence },
                            removed: !ends,
                        };
                        put(member, item);
                    }
                }
                for added in &commit.added {
                    if let Some(member) = self.members.get(&added.leaf) {
                        let event =
                            welcomes.get(&added.reference).map(|welcome| QueueEvent::Welcome {
                                hub_domain: self.hub.settings.hub.clone(),
                                welcome: welcome.clone(),
                            });
                        put(member, open(member, event));
                    }
                }
                if let Some(joined) = commit.joined.as_ref().filter(|j| j.replaces.is_none())
                    && let Some(member) = self.members.get(&joined.leaf)
                {
                    put(member, open(member, None));
                }
            }
            Kind::EpochVoid { .. } => {
                for (_, member) in &before.removed {
                    let item = InboxItem::Close {
                        group: self.id.clone(),
                        recipient: member.recipient,
                        last: sequence,
                        removed: true,
                    };
                    put(member, item);
                }
            }
            Kind::Deleted => {
                for member in self.members.values() {
                    let item = InboxItem::Close {
                        group: self.id.clone(),
                        recipient: member.recipient,
                        last: sequence,
                        removed: false,
                    };
                    put(member, item);
                }
            }
            Kind::Message
            | Kind::Proposal(_)
            | Kind::Going { .. }
            | Kind::Voided { .. }
            | Kind::Complaint { .. }
            | Kind::Restored => {}
        }
    }

    /// Everything of the group at its last sequence. O(members).
    ///
    /// # Errors
    /// [`Reject::Broken`]
    pub fn snapshot(&self) -> Result<Vec<u8>, Reject> {
        self.to_snapshot()?.to_bytes().map_err(broken)
    }

    /// The stored view of the state: what a reloaded group has in common with the live one.
    ///
    /// # Errors
    /// [`Reject::Broken`]
    pub fn to_snapshot(&self) -> Result<Snapshot, Reject> {
        Ok(Snapshot {
            tree: self.tree.snapshot().map_err(broken)?,
            partial: encode(&self.info.partial),
            signer: self.info.signer,
            members: self.members.iter().map(|(l, m)| (*l, m.clone())).collect(),
            pending: self.pending.iter().map(|pending| pending.record.clone()).collect(),
            joiners: self.joiners.iter().map(|(r, j)| (r.clone(), j.clone())).collect(),
            remembered: self.remembered.to_list(),
            going: self.going.iter().map(|(l, (why, at))| (*l, *why, *at)).collect(),
            next_sequence: self.next_sequence,
            next_recipient: self.next_recipient,
            created_at: self.created_at,
            deleted: self.deleted,
            lies: self.lies.clone(),
            behind: self.behind.iter().copied().collect(),
        })
    }

    /// The group as of a snapshot. [`GroupState::replay`] brings it up to date.
    ///
    /// # Errors
    /// [`Reject::Broken`] where the snapshot is not one.
    pub fn load(hub: Arc<Hub>, id: GroupId, snapshot: &[u8]) -> Result<Self, Reject> {
        let stored = Snapshot::from_bytes(snapshot).map_err(broken)?;
        let mut tree = Tree::load(&stored.tree).map_err(broken)?;
        let bad = |error: &dyn std::fmt::Display| Reject::Broken(error.to_string());
        let mut leaves = Vec::new();
        for (leaf, node) in tree.leaves() {
            leaves.push((leaf, trusted(node).map_err(|error| bad(&error))?));
        }
        let roster = Roster::of(leaves).map_err(|error| bad(&error))?;
        let policy = policy_of(tree.context().extensions()).map_err(|error| bad(&error))?;
        let partial = crate::wire::codec::decode(&stored.partial).map_err(|error| bad(&error))?;
        let mut pending = Vec::new();
        for record in stored.pending {
            let proposal = Pending::from_record(record).map_err(broken)?;
            tree.add_pending(proposal.queued.clone());
            pending.push(proposal);
        }
        let mut lies = stored.lies;
        lies.sort_out(&roster);
        let recent = RecentHandshakes::from_epoch(tree.epoch(), pending.is_empty());
        Ok(Self {
            id,
            roster,
            policy,
            info: InfoParts { partial, signer: stored.signer },
            guests: guests_of(&hub, stored.members.iter().map(|(_, member)| member)),
            members: stored.members.into_iter().collect(),
            pending,
            joining: stored.joiners.iter().map(|(r, j)| (j.leaf, r.clone())).collect(),
            joiners: stored.joiners.into_iter().collect(),
            remembered: RequestMemory::of(stored.remembered),
            going: stored.going.into_iter().map(|(l, why, at)| (l, (why, at))).collect(),
            next_sequence: stored.next_sequence,
            next_recipient: stored.next_recipient,
            created_at: stored.created_at,
            deleted: stored.deleted,
            behind: stored.behind.into_iter().collect(),
            recent,
            blockers: BTreeMap::new(),
            inactive_not_before: Timestamp(0),
            lies,
            tree,
            hub,
        })
    }

    /// Applies one record of the log, without repeating any check. Records come in order, without a gap.
    ///
    /// # Errors
    /// [`Reject::Broken`]
    pub fn replay(&mut self, record: &LogRecord) -> Result<(), Reject> {
        let change: Change = from_record(&record.change).map_err(broken)?;
        self.apply(record, change, None, None)
    }

    fn request_key(message: &DsMessage) -> RequestKey {
        RequestKey { sender: encode(&message.sender_id), request_id: message.context.request_id }
    }
}

fn identity_at(tree: &Tree, leaf: LeafIndex) -> Result<policy::LeafIdentity, Reject> {
    let node = tree.leaf(leaf).ok_or_else(|| Reject::Broken(format!("leaf {leaf} is blank")))?;
    trusted(node).map_err(|problem| Reject::Broken(problem.to_string()))
}

pub(crate) fn broken(problem: MlsProblem) -> Reject {
    Reject::Broken(problem.to_string())
}

#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "tests name the case that they are about")]
pub(crate) mod tests;
// the same file: clippy knows tests by the line above
#[cfg(all(fuzzing, not(test)))]
mod tests;
