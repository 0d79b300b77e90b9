//! The copy of a feed that is hosted elsewhere: what a guest provider does with what the hub sends of one group.
//! PROTOCOL.md §3, "Between providers".
//!
//! Pure. An item takes effect once and in the hub's order, or not at all: what is there already is accepted and changes
//! nothing, what would leave something out is refused with the sequence that is expected. What came is kept as a
//! hosted group's log is, so that queues read both alike; who gets it are subscriptions, opened and closed through the
//! clients' inboxes. A token that is not good fails no item: its recipient is kept without a client, and the hub is
//! told with every answer until it has removed it.
//!
//! What nobody here can read is not kept: while no member has a live queue the copy is a head that moves on. Whoever
//! comes then begins behind it, and is told that something is missing unless it really begins there.
//!
//! Deliberately absent: who may speak for which group (the caller asks [`is_hub`] and checks what proves a move: a chain
//! that it has not taken out is refused), and which tokens are good.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use openmls::{
    framing::ContentType,
    prelude::{MlsMessageBodyIn, ProtocolMessage},
};
use tls_codec::Size;

use crate::{
    store::{
        Batch, Condition, Write,
        records::{
            FeedEntry, Followed, FollowedMember, GroupHead, GroupStatus, InboxItem, InboxKey, LEAP,
            LogRecord,
        },
    },
    wire::{
        codec::encode,
        ds::FanoutFilter,
        extensions::QueueToken,
        ids::{ClientUri, Domain, Epoch, GroupId, RecipientId, Sequence, Timestamp},
        mls::MlsMessage,
        queueing::{DeliveryFailure, DeliveryItem, DeliveryProblem, QueueEvent, RosterChange},
    },
};

/// Bounds and times of the copies of feeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyLimits {
    /// Roster changes of one item; beyond: invalid_item.
    pub changes_max: usize,
    /// A log is looked at when its newest entry is so old, and a deleted group's dropped.
    pub retention_ms: u64,
    /// A log of so many entries, or of so many bytes, is looked at after `trim_delay_ms`.
    pub records_due: u64,
    pub bytes_due: u64,
    pub trim_delay_ms: u64,
}

/// A followed group as the store has it.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    pub head: Option<GroupHead>,
    /// All of the group's members here where [`needs_members`] says so, else at least those that are gone.
    pub members: Vec<FollowedMember>,
    /// Members with a live queue that are not among `members`.
    pub other_readers: usize,
    /// Who was known to host the group.
    pub hub: Option<Domain>,
    /// Clients whose inboxes hold as much as they may: nothing more is left there by a snapshot.
    pub full: HashSet<ClientUri>,
}

/// What the hub may still have kept here. Beyond: queue_full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Whether a copy that is not there yet may be opened.
    pub opens: bool,
    pub bytes: u64,
}

/// The clients that tokens lead to. One that is not here is not good.
pub type GoodTokens = HashMap<QueueToken, ClientUri>;

/// What items did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// To be written before anything is answered; empty where nothing changed.
    pub batch: Batch,
    pub failures: Vec<DeliveryFailure>,
    /// Tokens that the batch rests on: what binds them belongs into it.
    pub tokens: BTreeSet<QueueToken>,
    /// Whose inbox has something new.
    pub clients: BTreeSet<ClientUri>,
    /// The group's head behind the batch.
    pub head: Option<GroupHead>,
    /// Members behind the batch whose queues are gone.
    pub gone: Vec<FollowedMember>,
    /// Members behind the batch, as far as they were given.
    pub members: Vec<FollowedMember>,
    /// Members behind the batch with a live queue.
    pub readers: usize,
    /// How many more members the batch leaves the copy with.
    pub members_added: i64,
    /// Whom the copy counts for behind the batch, where that was written.
    pub hub: Option<Domain>,
}

/// Whether `peer` may say what happens in `group`: the hub that is `known` here, or where there is none the provider that
/// created it. `own` is this provider's domain.
#[must_use]
pub fn is_hub(peer: &Domain, group: &GroupId, known: Option<&Domain>, own: &Domain) -> bool {
    peer != own && known.map_or_else(|| group.domain() == *peer, |known| known == peer)
}

/// Whether `member` has a live queue: then what comes is kept for it.
#[must_use]
pub fn is_reader(member: &FollowedMember) -> bool {
    member.client.is_some() && !member.gone
}

/// Whether what `item` does depends on who is in the group.
#[must_use]
pub fn needs_members(item: &DeliveryItem) -> bool {
    match item {
        DeliveryItem::Feed { event, roster, .. } => {
            // the end and a move concern everybody
            !roster.is_empty()
                || matches!(event, QueueEvent::GroupDeleted | QueueEvent::GroupMoved { .. })
        }
        DeliveryItem::Snapshot { .. } => true,
        DeliveryItem::Direct { .. } => false,
    }
}

/// Whether nothing can come of `item` where the group stands at `head`: it lies behind that, or the group has ended.
#[must_use]
pub fn is_past(item: &DeliveryItem, head: Option<&GroupHead>) -> bool {
    let Some(head) = head else { return false };
    let ended = head.status == GroupStatus::Deleted;
    match item {
        DeliveryItem::Feed { group_sequence: at, .. }
        | DeliveryItem::Snapshot { next_sequence: at, .. } => ended || *at < head.next_sequence,
        DeliveryItem::Direct { .. } => false,
    }
}

/// Whether everything that `item` says is in front of `next`.
#[must_use]
pub fn is_before(item: &DeliveryItem, next: Sequence) -> bool {
    match item {
        DeliveryItem::Feed { group_sequence, .. } => *group_sequence < next,
        DeliveryItem::Snapshot { next_sequence, .. } => *next_sequence <= next,
        DeliveryItem::Direct { .. } => false,
    }
}

/// Whether clients here would lack some of the feed, were `items` the next that came of it.
#[must_use]
pub fn leave_a_hole(items: &[DeliveryItem], head: &GroupHead, members: &[FollowedMember]) -> bool {
    let begins = items.first().and_then(|item| match item {
        DeliveryItem::Feed { group_sequence: at, .. }
        | DeliveryItem::Snapshot { next_sequence: at, .. } => Some(*at),
        DeliveryItem::Direct { .. } => None,
    });
    begins.is_some_and(|at| at > head.next_sequence) && members.iter().any(is_reader)
}

/// The tokens that `item` brings.
pub fn tokens_of(item: &DeliveryItem) -> impl Iterator<Item = &QueueToken> {
    let roster: &[RosterChange] = match item {
        DeliveryItem::Feed { roster, .. } | DeliveryItem::Snapshot { roster, .. } => roster,
        DeliveryItem::Direct { .. } => &[],
    };
    tokens_in(roster)
}

fn tokens_in(roster: &[RosterChange]) -> impl Iterator<Item = &QueueToken> {
    roster.iter().filter_map(|change| match change {
        RosterChange::Add { client_queue_information, .. }
        | RosterChange::Update { client_queue_information, .. } => Some(client_queue_information),
        RosterChange::Remove { .. } => None,
    })
}

/// Applies `items` of one group, in order, each with its index in the batch that it came in.
#[must_use]
pub fn follow(
    hub: &Domain,
    group: &GroupId,
    stored: Stored,
    items: &[(u32, DeliveryItem)],
    tokens: &GoodTokens,
    (limits, room): (&CopyLimits, Room),
    now: Timestamp,
) -> Outcome {
    let readers = stored.members.iter().filter(|member| is_reader(member)).count();
    let mut copy = Copy {
        hub,
        group,
        tokens,
        limits,
        room,
        now,
        before: stored.head.clone(),
        head: stored.head,
        clients: stored.members.iter().filter_map(|member| member.client.clone()).collect(),
        full: stored.full,
        readers: stored.other_readers + readers,
        members: stored.members.into_iter().map(|member| (member.recipient, member)).collect(),
        writes: Vec::new(),
        roster_changed: stored.hub.is_some_and(|known| known != *hub),
        rows: None,
        moved_to: None,
        out: Outcome::default(),
    };
    let mut last_accepted = None;
    for (index, item) in items {
        match copy.apply(item) {
            Ok(()) => last_accepted = Some(*index),
            Err(problem) => {
                let next_sequence = copy.next();
                let recipient = RecipientId(0);
                let failure = DeliveryFailure { item: *index, problem, recipient, next_sequence };
                copy.out.failures.push(failure);
            }
        }
    }
    copy.finish(last_accepted)
}

/// The group's head with its log cut to begin at `first`, and when it is to be looked at next.
#[must_use]
pub fn trimmed(
    head: GroupHead,
    first: Sequence,
    bytes: u64,
    limits: &CopyLimits,
    now: Timestamp,
) -> GroupHead {
    let mut head = GroupHead {
        first_sequence: first,
        log_bytes: head.log_bytes.saturating_sub(bytes),
        revision: head.revision + 1,
        wake_at: None,
        ..head
    };
    head.wake_at = wake_at(&head, limits, now);
    head
}

/// What an entry's keeping costs, as it is counted against the bounds of logs.
#[must_use]
pub fn entry_bytes(entry: &FeedEntry) -> u64 {
    (entry.event.len() + ENTRY_BYTES) as u64
}

/// What a member's keeping costs, as it is counted against what a hub may have kept here.
pub const MEMBER_BYTES: u64 = 256;

struct Copy<'a> {
    hub: &'a Domain,
    group: &'a GroupId,
    tokens: &'a GoodTokens,
    limits: &'a CopyLimits,
    room: Room,
    now: Timestamp,
    before: Option<GroupHead>,
    head: Option<GroupHead>,
    members: BTreeMap<RecipientId, FollowedMember>,
    /// Of the members.
    clients: HashSet<ClientUri>,
    /// See [`Stored::full`].
    full: HashSet<ClientUri>,
    /// Members with a live queue, known by name or not.
    readers: usize,
    writes: Vec<Write>,
    /// The record of who follows and whom is to be written.
    roster_changed: bool,
    /// Where the rows of the last snapshot end that is in this batch.
    rows: Option<(Sequence, u32)>,
    /// The hub has said that the group is hosted elsewhere from here on.
    moved_to: Option<Domain>,
    out: Outcome,
}

/// Where the inbox rows of one change stand.
struct Place {
    sequence: Sequence,
    index: u32,
}

/// An event as it is kept.
struct Kept {
    event: Vec<u8>,
    handshake: bool,
    epoch: Option<Epoch>,
    ends: bool,
    /// The epoch that the group is in again.
    back_to: Option<Epoch>,
}

impl Copy<'_> {
    fn next(&self) -> Sequence {
        self.head.as_ref().map_or(Sequence(0), |head| head.next_sequence)
    }

    fn apply(&mut self, item: &DeliveryItem) -> Result<(), DeliveryProblem> {
        if self.moved_to.is_some() {
            return Err(DeliveryProblem::WrongHub);
        }
        match item {
            DeliveryItem::Feed { group_sequence, accepted_at, except, event, roster, .. } => {
                self.feed(*group_sequence, *accepted_at, *except, event, roster)
            }
            DeliveryItem::Snapshot { next_sequence, chain, roster, .. } => {
                if chain.is_empty() {
                    self.snapshot(*next_sequence, roster)
                } else {
                    Err(DeliveryProblem::WrongHub)
                }
            }
            DeliveryItem::Direct { .. } => Err(DeliveryProblem::InvalidItem),
        }
    }

    fn feed(
        &mut self,
        sequence: Sequence,
        accepted_at: Timestamp,
        except: Option<RecipientId>,
        event: &QueueEvent,
        roster: &[RosterChange],
    ) -> Result<(), DeliveryProblem> {
        let Some(head) = &self.head else { return Err(DeliveryProblem::UnknownFeed) };
        if sequence < head.next_sequence {
            return Ok(());
        }
        if sequence > head.next_sequence && head.status != GroupStatus::Deleted {
            return Err(DeliveryProblem::Gap);
        }
        if head.status == GroupStatus::Deleted || sequence >= Sequence::END {
            return Err(DeliveryProblem::InvalidItem);
        }
        let given = event;
        let kept = self.keep(given).ok_or(DeliveryProblem::InvalidItem)?;
        self.check_changes(roster)?;
        // a hub whose clock runs ahead must not keep its entries from ever getting old
        let accepted_at = accepted_at.min(self.now.plus_ms(SKEW_MS));
        let Kept { event, handshake, epoch, ends, back_to } = kept;
        let entry = FeedEntry { sequence, accepted_at, except, origin: None, handshake, event };
        let bytes = if self.readers > 0 { entry_bytes(&entry) } else { 0 };
        self.take_room(bytes, roster)?;
        self.append(entry);
        if let (Some(head), Some(epoch)) = (&mut self.head, epoch) {
            head.epoch = head.epoch.max(epoch);
        }
        if let (Some(head), Some(epoch)) = (&mut self.head, back_to) {
            head.epoch = epoch;
        }
        if ends {
            self.end(sequence);
            return Ok(());
        }
        if let QueueEvent::GroupMoved { confirmation } = given {
            self.moved_to = Some(confirmation.domain_name.clone());
            self.roster_changed = true;
        }
        let mut place = Place { sequence, index: 0 };
        // who is replaced by a change leaves before the one that takes its place comes
        for change in roster {
            if let RosterChange::Remove { recipient } = change {
                self.remove(*recipient, sequence, true, &mut place);
            }
        }
        for change in roster {
            if let RosterChange::Update { recipient, client_queue_information, filter } = change {
                // who resyncs begins behind its own commit
                let begins = handshake && except == Some(*recipient);
                self.update(*recipient, client_queue_information, *filter, begins, &mut place);
            }
        }
        let from = sequence.next();
        for change in roster {
            self.add(change, from, &mut place);
        }
        Ok(())
    }

    /// What of `event` is kept; none for one that no hub may send in a feed.
    fn keep(&self, event: &QueueEvent) -> Option<Kept> {
        let mut back_to = None;
        let (handshake, epoch, ends, bytes) = match event {
            QueueEvent::MlsMessage { message } => {
                let (handshake, epoch) = self.message(message)?;
                (handshake, Some(epoch), false, encode(event))
            }
            QueueEvent::GroupDeleted => (true, None, true, encode(event)),
            QueueEvent::RosterOnly => (false, None, false, Vec::new()),
            QueueEvent::GroupMoved { confirmation } => {
                let next = self.next().next();
                let is_its = confirmation.group_id == *self.group
                    && confirmation.source_domain == *self.hub
                    && confirmation.domain_name != *self.hub
                    && confirmation.next_sequence == next;
                if !is_its {
                    return None;
                }
                (true, None, false, encode(event))
            }
            QueueEvent::EpochVoid { epoch, group_sequence, complaints } => {
                let is_its = *group_sequence < self.next()
                    && complaints
                        .iter()
                        .all(|one| one.group_id == *self.group && one.epoch.next() == *epoch);
                back_to = Some(Epoch(epoch.0.checked_sub(1)?));
                if !is_its {
                    return None;
                }
                (true, None, false, encode(event))
            }
            QueueEvent::Welcome { .. }
            | QueueEvent::ConnectionRequest { .. }
            | QueueEvent::Removed
            | QueueEvent::Gap { .. }
            | QueueEvent::KeyPackagesLow { .. } => return None,
        };
        Some(Kept { event: bytes, handshake, epoch, ends, back_to })
    }

    /// Whether `message` is a handshake message, and its epoch; none where it is not one of this group.
    fn message(&self, message: &MlsMessage) -> Option<(bool, Epoch)> {
        let message = message.parse().ok()?.try_into_protocol_message().ok()?;
        if message.group_id().as_slice() != self.group.as_bytes() {
            return None;
        }
        let is_application = message.content_type() == ContentType::Application;
        match message {
            ProtocolMessage::PublicMessage(_) if is_application => None,
            ProtocolMessage::PublicMessage(_) | ProtocolMessage::PrivateMessage(_) => {
                Some((!is_application, Epoch(message.epoch().as_u64())))
            }
        }
    }

    /// Whether all of `roster` can be applied, before any of it is.
    fn check_changes(&self, roster: &[RosterChange]) -> Result<(), DeliveryProblem> {
        if roster.len() > self.limits.changes_max {
            return Err(DeliveryProblem::InvalidItem);
        }
        let mut seen = HashSet::new();
        for change in roster {
            let (recipient, is_new, welcome) = match change {
                RosterChange::Add { recipient, welcome, .. } => (recipient, true, welcome.as_ref()),
                RosterChange::Update { recipient, .. } | RosterChange::Remove { recipient } => {
                    (recipient, false, None)
                }
            };
            let fits = self.members.contains_key(recipient) != is_new && seen.insert(*recipient);
            if !fits || !welcome.is_none_or(is_welcome_of_one) {
                return Err(DeliveryProblem::InvalidItem);
            }
        }
        Ok(())
    }

    fn snapshot(&mut self, next: Sequence, roster: &[RosterChange]) -> Result<(), DeliveryProblem> {
        if self.head.as_ref().is_some_and(|head| next < head.next_sequence) {
            return Ok(());
        }
        let is_over = self.head.as_ref().is_some_and(|head| head.status == GroupStatus::Deleted);
        if is_over && next == self.next() {
            return Ok(());
        }
        if is_over || next == Sequence(0) || next >= Sequence::END {
            return Err(DeliveryProblem::InvalidItem);
        }
        let named = self.check_snapshot(roster)?;
        if self.head.is_none() && roster.is_empty() {
            // nobody here is concerned, so there is nothing to follow
            return Ok(());
        }
        if self.head.is_none() && !self.room.opens {
            return Err(DeliveryProblem::QueueFull);
        }
        let leaves = self.readers > 0 || !roster.is_empty();
        self.take_room(if leaves { GAP_BYTES } else { 0 }, roster)?;
        let opens = self.head.is_none();
        let head = self.head.get_or_insert_with(|| new_head(self.group, next, self.now));
        let (missing, last) = (head.next_sequence, Sequence(next.0 - 1));
        // who was here before lacks what lies between
        let lacks = missing < next && self.readers > 0;
        // where each has its Welcome they begin here; else there was something before, and one that entered by itself
        // knows whether it lacks any of it
        let was_before = next > Sequence(1) && !roster.iter().all(has_welcome);
        let comes = tokens_in(roster).any(|token| self.tokens.contains_key(token));
        let hole = lacks || (missing < next && was_before && comes);
        if hole {
            let event = encode(&QueueEvent::Gap { next_available: next });
            self.keep_entry(FeedEntry {
                sequence: missing,
                accepted_at: self.now,
                except: None,
                origin: None,
                handshake: true,
                event,
            });
        }
        let is_ahead = missing < next;
        self.go_on_at(next);
        let revision = self.before.as_ref().map_or(0, |head| head.revision);
        // rows that an earlier snapshot left at the same sequence stay in front of these
        let index = SNAPSHOT_ROWS | (u32::try_from(revision & 0x7FFF).unwrap_or(0) << 16);
        // so do those of one that came with it
        let index = self.rows.filter(|(at, _)| *at == last).map_or(index, |(_, index)| index);
        let mut place = Place { sequence: last, index };
        let left: Vec<RecipientId> =
            self.members.keys().filter(|known| !named.contains(known)).copied().collect();
        for recipient in left {
            self.remove(recipient, last, true, &mut place);
        }
        let from = match (hole, opens && was_before) {
            (true, _) => missing,
            // in front of a log that begins at `next`
            (false, true) => last,
            (false, false) => next,
        };
        for change in roster {
            match change {
                RosterChange::Add { recipient, client_queue_information, filter, .. }
                    if self.members.contains_key(recipient) =>
                {
                    let ahead = is_ahead.then_some(from);
                    self.confirm(*recipient, client_queue_information, *filter, ahead, &mut place);
                }
                RosterChange::Add { .. } => self.add(change, from, &mut place),
                RosterChange::Remove { .. } | RosterChange::Update { .. } => {}
            }
        }
        self.rows = Some((last, place.index));
        Ok(())
    }

    fn check_snapshot(
        &self,
        roster: &[RosterChange],
    ) -> Result<HashSet<RecipientId>, DeliveryProblem> {
        let mut named = HashSet::new();
        for change in roster {
            match change {
                RosterChange::Add { recipient, welcome, .. }
                    if welcome.as_ref().is_none_or(is_welcome_of_one)
                        && named.insert(*recipient) => {}
                RosterChange::Add { .. }
                | RosterChange::Remove { .. }
                | RosterChange::Update { .. } => return Err(DeliveryProblem::InvalidItem),
            }
        }
        if named.len() > self.limits.changes_max {
            return Err(DeliveryProblem::InvalidItem);
        }
        Ok(named)
    }

    /// Counts what an item leaves here: `bytes` in the log, its newcomers, and their Welcomes.
    fn take_room(&mut self, bytes: u64, roster: &[RosterChange]) -> Result<(), DeliveryProblem> {
        let is_new = |change: &&RosterChange| matches!(change, RosterChange::Add { recipient, .. } if !self.members.contains_key(recipient));
        let newcomers = roster.iter().filter(is_new).count() as u64;
        let welcomes: usize = roster.iter().map(welcome_bytes).sum();
        let bytes = bytes + newcomers * MEMBER_BYTES + welcomes as u64;
        // what leaves nothing behind is taken however full it is
        if bytes > self.room.bytes {
            return Err(DeliveryProblem::QueueFull);
        }
        self.room.bytes -= bytes;
        Ok(())
    }

    /// Keeps an entry, where there is anybody to read it.
    fn append(&mut self, entry: FeedEntry) {
        let next = entry.sequence.next();
        if self.readers > 0 {
            self.keep_entry(entry);
        }
        self.go_on_at(next);
    }

    fn keep_entry(&mut self, entry: FeedEntry) {
        let Some(head) = &mut self.head else { return };
        head.log_bytes += entry_bytes(&entry);
        let record = LogRecord { feed: entry, change: Vec::new(), follows: None };
        let record = head.append(record);
        self.writes.push(Write::Log { group: self.group.clone(), record });
    }

    fn go_on_at(&mut self, next: Sequence) {
        let Some(head) = &mut self.head else { return };
        head.next_sequence = next;
        if head.log_bytes == 0 {
            head.first_sequence = next;
        }
    }

    /// The group is deleted: whoever is still in it gets to know.
    fn end(&mut self, last: Sequence) {
        let mut place = Place { sequence: last, index: 0 };
        let left: Vec<RecipientId> = self.members.keys().copied().collect();
        for recipient in left {
            self.remove(recipient, last, false, &mut place);
        }
        if let Some(head) = &mut self.head {
            head.status = GroupStatus::Deleted;
        }
    }

    fn remove(&mut self, recipient: RecipientId, last: Sequence, removed: bool, place: &mut Place) {
        let Some(member) = self.members.remove(&recipient) else { return };
        self.roster_changed = true;
        self.readers -= usize::from(is_reader(&member));
        self.out.members_added -= 1;
        self.writes.push(Write::DropFollowedMember { group: self.group.clone(), recipient });
        if let Some(client) = member.client {
            let group = self.group.clone();
            self.clients.remove(&client);
            self.leave(client, InboxItem::Close { group, recipient, last, removed }, place);
        }
    }

    fn add(&mut self, change: &RosterChange, from: Sequence, place: &mut Place) {
        let RosterChange::Add { recipient, client_queue_information: token, filter, welcome } =
            change
        else {
            return;
        };
        // a client is in a group once
        let client =
            self.tokens.get(token).filter(|client| !self.clients.contains(client)).cloned();
        if let Some(client) = &client {
            let event = welcome.as_ref().map(|welcome| {
                let (hub_domain, welcome) = (self.hub.clone(), welcome.clone());
                encode(&QueueEvent::Welcome { hub_domain, welcome })
            });
            self.out.tokens.insert(token.clone());
            self.open(client.clone(), *recipient, from, *filter, event, place);
        }
        let gone = client.is_none();
        self.put(FollowedMember { recipient: *recipient, client, gone });
    }

    fn update(
        &mut self,
        recipient: RecipientId,
        token: &QueueToken,
        filter: FanoutFilter,
        begins: bool,
        place: &mut Place,
    ) {
        let Some(member) = self.members.get(&recipient).cloned() else { return };
        let from = place.sequence.next();
        let good = self.tokens.get(token).cloned();
        let client = match (&member.client, good) {
            (Some(known), Some(client)) if *known == client && !member.gone => {
                self.set_filter(client.clone(), recipient, from, filter, place);
                client
            }
            // it has a queue at last; unless it begins here it would lack what came before and not know it
            (None, Some(client)) if begins && !self.clients.contains(&client) => {
                self.open(client.clone(), recipient, from, filter, None, place);
                client
            }
            (None | Some(_), None | Some(_)) => {
                self.put(FollowedMember { gone: true, ..member });
                return;
            }
        };
        self.out.tokens.insert(token.clone());
        if member.client.is_none() {
            self.put(FollowedMember { recipient, client: Some(client), gone: false });
        }
    }

    /// A snapshot names a member that is known. Its token needs to be good only where none was. `ahead` is where a queue
    /// that opens now begins, where the snapshot says anything new.
    fn confirm(
        &mut self,
        recipient: RecipientId,
        token: &QueueToken,
        filter: FanoutFilter,
        ahead: Option<Sequence>,
        place: &mut Place,
    ) {
        let Some(member) = self.members.get(&recipient).cloned() else { return };
        let Some(from) = ahead else { return };
        match (&member.client, self.tokens.get(token).cloned()) {
            (None, Some(client)) if !self.clients.contains(&client) => {
                self.out.tokens.insert(token.clone());
                self.open(client.clone(), recipient, from, filter, None, place);
                self.put(FollowedMember { recipient, client: Some(client), gone: false });
            }
            (Some(known), _) if !member.gone && self.full.contains(known) => {
                self.put(FollowedMember { gone: true, ..member });
            }
            (Some(known), good) if !member.gone => {
                if good.as_ref() == Some(known) {
                    self.out.tokens.insert(token.clone());
                }
                let from = place.sequence.next();
                self.set_filter(known.clone(), recipient, from, filter, place);
            }
            (None | Some(_), None | Some(_)) => {}
        }
    }

    fn put(&mut self, member: FollowedMember) {
        self.roster_changed = true;
        let group = self.group.clone();
        self.clients.extend(member.client.clone());
        self.writes.push(Write::FollowedMember { group, member: member.clone() });
        self.readers += usize::from(is_reader(&member));
        match self.members.insert(member.recipient, member) {
            Some(before) => self.readers -= usize::from(is_reader(&before)),
            None => self.out.members_added += 1,
        }
    }

    fn open(
        &mut self,
        client: ClientUri,
        recipient: RecipientId,
        from: Sequence,
        filter: FanoutFilter,
        event: Option<Vec<u8>>,
        place: &mut Place,
    ) {
        let handshake_only = filter == FanoutFilter::HandshakeOnly;
        let group = self.group.clone();
        let item = InboxItem::Open { group, recipient, from, handshake_only, event };
        self.leave(client, item, place);
    }

    fn set_filter(
        &mut self,
        client: ClientUri,
        recipient: RecipientId,
        from: Sequence,
        filter: FanoutFilter,
        place: &mut Place,
    ) {
        let handshake_only = filter == FanoutFilter::HandshakeOnly;
        let group = self.group.clone();
        self.leave(client, InboxItem::Filter { group, recipient, from, handshake_only }, place);
    }

    fn leave(&mut self, client: ClientUri, item: InboxItem, place: &mut Place) {
        let (group, sequence, index) = (self.group.clone(), place.sequence, place.index);
        place.index += 1;
        let key = InboxKey::Group { group, sequence, index };
        self.out.clients.insert(client.clone());
        self.writes.push(Write::Inbox { client, key, item });
    }

    fn finish(mut self, last_accepted: Option<u32>) -> Outcome {
        let next_sequence = self.next();
        self.out.gone = self.members.values().filter(|member| member.gone).cloned().collect();
        self.out.readers = self.readers;
        if let Some(item) = last_accepted {
            let problem = DeliveryProblem::InvalidClientQueueInformation;
            let told = self.out.gone.iter().take(GONE_MAX);
            let failures = told.map(|member| {
                let recipient = member.recipient;
                DeliveryFailure { item, problem, recipient, next_sequence }
            });
            self.out.failures.extend(failures);
        }
        if self.head != self.before || !self.writes.is_empty() {
            self.seal();
        }
        self.out.head = self.head;
        self.out.members = self.members.into_values().collect();
        self.out
    }

    /// Everything that changed as one batch, with the head as the last word.
    fn seal(&mut self) {
        let Some(head) = &mut self.head else { return };
        let group = self.group.clone();
        let condition = match &self.before {
            Some(before) => Condition::GroupAt {
                group: group.clone(),
                next_sequence: before.next_sequence,
                revision: before.revision,
            },
            None => Condition::GroupUnknown(group.clone()),
        };
        head.revision += 1;
        head.last_accepted_at = self.now;
        head.wake_at = wake_at(head, self.limits, self.now);
        let mut batch = Batch::new().when(condition).and(Write::GroupHead(head.clone()));
        batch.writes.append(&mut self.writes);
        if head.status == GroupStatus::Deleted {
            self.out.hub = Some(group.domain());
            batch.push(Write::DropFollowed(group));
        } else if self.roster_changed {
            let hub = self.moved_to.as_ref().unwrap_or(self.hub).clone();
            self.out.hub = Some(hub.clone());
            let followed = Followed { hub, members: self.members.len() as u64 };
            batch.push(Write::Followed { group, followed });
        }
        self.out.batch = batch;
    }
}

/// When a copy's log is to be looked at.
fn wake_at(head: &GroupHead, limits: &CopyLimits, now: Timestamp) -> Option<Timestamp> {
    if head.first_sequence >= head.next_sequence || head.log_bytes == 0 {
        return None;
    }
    let old = head.last_accepted_at.plus_ms(limits.retention_ms);
    let records = (head.next_sequence.0 - head.first_sequence.0) % LEAP;
    let is_due = records >= limits.records_due || head.log_bytes >= limits.bytes_due;
    if !is_due || head.status == GroupStatus::Deleted {
        return Some(old);
    }
    let soon = now.plus_ms(limits.trim_delay_ms);
    Some(head.wake_at.map_or(soon, |at| at.min(soon)).min(old))
}

fn new_head(group: &GroupId, next: Sequence, now: Timestamp) -> GroupHead {
    GroupHead {
        group: group.clone(),
        status: GroupStatus::Followed,
        next_sequence: next,
        first_sequence: next,
        epoch: Epoch(0),
        revision: 0,
        snapshot: Sequence(0),
        previous_snapshot: None,
        created_at: now,
        last_accepted_at: now,
        log_bytes: 0,
        joiner_infos: Vec::new(),
        wake_at: None,
        hub_key: None,
        last: None,
    }
}

fn welcome_bytes(change: &RosterChange) -> usize {
    match change {
        RosterChange::Add { welcome: Some(welcome), .. } => welcome.tls_serialized_len(),
        RosterChange::Add { welcome: None, .. }
        | RosterChange::Update { .. }
        | RosterChange::Remove { .. } => 0,
    }
}

fn has_welcome(change: &RosterChange) -> bool {
    matches!(change, RosterChange::Add { welcome: Some(_), .. })
}

/// A Welcome travels with only its own joiner's secrets.
fn is_welcome_of_one(message: &MlsMessage) -> bool {
    match message.parse().map(openmls::prelude::MlsMessageIn::extract) {
        Ok(MlsMessageBodyIn::Welcome(welcome)) => welcome.secrets().len() == 1,
        Ok(_) | Err(_) => false,
    }
}

/// What an entry takes beside its event.
const ENTRY_BYTES: usize = 64;
/// What the entry of a gap takes.
const GAP_BYTES: u64 = 128;
/// How far a hub's clock may be ahead.
const SKEW_MS: u64 = 5 * 60 * 1000;
/// Recipients that one answer reports of a group; the others follow when these are removed.
const GONE_MAX: usize = 1_000;
/// Inbox rows of snapshots stand behind those of feed items.
const SNAPSHOT_ROWS: u32 = 1 << 31;
