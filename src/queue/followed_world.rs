//! A guest's store, as far as one group is concerned, and what a hub sends: for the tests beside this and for the fuzz target
//! `copy_sequence`.

#![allow(clippy::wildcard_enum_match_arm, reason = "a test names what it expects")]
#![cfg_attr(fuzzing, allow(dead_code, reason = "the tests use all of it"))]

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::OnceLock,
};

use super::{
    feed::FeedView,
    followed::*,
    state::{Next, QueueLimits, QueueState},
};
use crate::{
    store::{
        Condition, Write,
        links::Links,
        records::{
            FeedEntry, Followed, FollowedMember, GroupHead, GroupStatus, InboxItem, InboxKey,
            QueueHead,
        },
    },
    wire::{
        codec::{List, Opaque, append_vector, decode},
        ds::{CommitComplaint, ComplaintReason, FanoutFilter},
        extensions::QueueToken,
        ids::{ClientUri, Domain, Epoch, GroupId, LeafIndex, RecipientId, Sequence, Timestamp},
        mls::MlsMessage,
        queueing::{DeliveryFailure, DeliveryItem, QueueEntry, QueueEvent, RosterChange},
    },
};

pub(super) const NOW: Timestamp = Timestamp(1_700_000_000_000);
pub(super) const LIMITS: CopyLimits = CopyLimits {
    changes_max: 100,
    retention_ms: 1_000_000,
    records_due: 50,
    bytes_due: 1 << 20,
    trim_delay_ms: 1_000,
};

/// More reads than anybody needs in a test.
const READS_MAX: usize = 10_000;

pub(super) const ROOMY: Room = Room { opens: true, bytes: 1 << 30 };

pub(super) fn hub() -> Domain {
    Domain::new("hub.example").unwrap()
}

pub(super) fn group() -> GroupId {
    GroupId::of(&hub(), [7; 16])
}

pub(super) fn client(number: u8) -> ClientUri {
    ClientUri::new(format!("mimi://guest.example/d/user{number}/phone")).unwrap()
}

/// Good tokens are of clients 1 to 100.
pub(super) fn token(number: u8) -> QueueToken {
    Opaque::new([number; 8]).unwrap()
}

pub(super) fn tokens() -> &'static GoodTokens {
    static TOKENS: OnceLock<GoodTokens> = OnceLock::new();
    TOKENS.get_or_init(|| (1..=100).map(|number| (token(number), client(number))).collect())
}

pub(super) fn framed(wire_format: u8, content_type: u8, of: &GroupId) -> MlsMessage {
    let mut bytes = vec![0, 1, 0, wire_format];
    append_vector(&mut bytes, of.as_bytes());
    bytes.extend(5u64.to_be_bytes());
    if wire_format == 2 {
        bytes.push(content_type);
        for part in [&b""[..], b"sender", b"content"] {
            append_vector(&mut bytes, part);
        }
    } else {
        bytes.extend([1, 0, 0, 0, 0]); // leaf 0
        append_vector(&mut bytes, b"");
        bytes.push(content_type);
        match content_type {
            1 => append_vector(&mut bytes, b"hello"),
            _ => bytes.extend([0, 3, 0, 0, 0, 1]), // remove leaf 1
        }
        append_vector(&mut bytes, &[9; 64]);
        append_vector(&mut bytes, &[9; 32]);
    }
    MlsMessage::new(bytes).unwrap()
}

pub(super) fn welcome(secrets: usize) -> MlsMessage {
    let mut bytes = vec![0, 1, 0, 3, 0, 1];
    let mut all = Vec::new();
    for number in 0..secrets {
        append_vector(&mut all, &[u8::try_from(number).unwrap(); 32]);
        append_vector(&mut all, &[1; 32]);
        append_vector(&mut all, &[2; 40]);
    }
    append_vector(&mut bytes, &all);
    append_vector(&mut bytes, &[3; 50]);
    MlsMessage::new(bytes).unwrap()
}

pub(super) fn add(recipient: u64, of: u8) -> RosterChange {
    RosterChange::Add {
        recipient: RecipientId(recipient),
        client_queue_information: token(of),
        filter: FanoutFilter::All,
        welcome: None,
    }
}

/// An add with its Welcome.
pub(super) fn invite(recipient: u64, of: u8) -> RosterChange {
    RosterChange::Add {
        recipient: RecipientId(recipient),
        client_queue_information: token(of),
        filter: FanoutFilter::All,
        welcome: Some(welcome(1)),
    }
}

pub(super) fn update(recipient: u64, of: u8) -> RosterChange {
    RosterChange::Update {
        recipient: RecipientId(recipient),
        client_queue_information: token(of),
        filter: FanoutFilter::HandshakeOnly,
    }
}

pub(super) fn remove(recipient: u64) -> RosterChange {
    RosterChange::Remove { recipient: RecipientId(recipient) }
}

pub(super) fn item(sequence: u64, event: QueueEvent, roster: Vec<RosterChange>) -> DeliveryItem {
    DeliveryItem::Feed {
        group_id: group(),
        group_sequence: Sequence(sequence),
        accepted_at: Timestamp(sequence),
        except: None,
        event,
        roster: List::new(roster).unwrap(),
    }
}

pub(super) fn said(sequence: u64) -> DeliveryItem {
    let message = framed(2, 1, &group());
    item(sequence, QueueEvent::MlsMessage { message }, Vec::new())
}

pub(super) fn void(epoch: u64, commit: u64, of: &GroupId, complained: u64) -> QueueEvent {
    let complaint = CommitComplaint {
        group_id: of.clone(),
        epoch: Epoch(complained),
        leaf_index: LeafIndex(1),
        commit_hash: Opaque::new([1; 32]).unwrap(),
        reason: ComplaintReason::Path.into(),
        signature: Opaque::new([2; 64]).unwrap(),
    };
    let complaints = List::new(vec![complaint]).unwrap();
    QueueEvent::EpochVoid { epoch: Epoch(epoch), group_sequence: Sequence(commit), complaints }
}

pub(super) fn quiet(sequence: u64, roster: Vec<RosterChange>) -> DeliveryItem {
    item(sequence, QueueEvent::RosterOnly, roster)
}

pub(super) fn snapshot(next: u64, roster: Vec<RosterChange>) -> DeliveryItem {
    DeliveryItem::Snapshot {
        group_id: group(),
        next_sequence: Sequence(next),
        chain: List::default(),
        roster: List::new(roster).unwrap(),
    }
}

/// A guest's store, as far as one group is concerned.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Guest {
    pub(super) head: Option<GroupHead>,
    pub(super) followed: Option<Followed>,
    pub(super) members: BTreeMap<RecipientId, FollowedMember>,
    pub(super) log: BTreeMap<Sequence, FeedEntry>,
    pub(super) inbox: BTreeMap<(ClientUri, InboxKey), InboxItem>,
    /// Where the log's hash chain is.
    pub(super) links: Links,
}

impl Guest {
    pub(super) fn take(&mut self, items: Vec<DeliveryItem>) -> Vec<DeliveryFailure> {
        self.take_at(items, NOW)
    }

    pub(super) fn take_at(
        &mut self,
        items: Vec<DeliveryItem>,
        now: Timestamp,
    ) -> Vec<DeliveryFailure> {
        self.take_within(ROOMY, items, now)
    }

    pub(super) fn take_within(
        &mut self,
        room: Room,
        items: Vec<DeliveryItem>,
        now: Timestamp,
    ) -> Vec<DeliveryFailure> {
        let stored = self.stored(&items);
        let before = self.members.len();
        let items: Vec<_> = (0..).zip(items).collect();
        let outcome = follow(&hub(), &group(), stored, &items, tokens(), (&LIMITS, room), now);
        for condition in outcome.batch.conditions {
            let head = self.head.as_ref().map(|head| (head.next_sequence, head.revision));
            match condition {
                Condition::GroupUnknown(_) => assert_eq!(head, None),
                Condition::GroupAt { next_sequence, revision, .. } => {
                    assert_eq!(head, Some((next_sequence, revision)));
                }
                other => panic!("{other:?}"),
            }
        }
        for write in outcome.batch.writes {
            match write {
                Write::GroupHead(head) => self.head = Some(head),
                Write::Log { record, .. } => {
                    assert!(record.change.is_empty(), "a copy has no state");
                    let follows = record.follows;
                    let followed = self.links.follow(follows, &record.feed, &record.change);
                    followed.expect("each follows the one before it");
                    assert!(self.log.insert(record.feed.sequence, record.feed).is_none());
                }
                Write::Followed { followed, .. } => self.followed = Some(followed),
                Write::DropFollowed(_) => {
                    self.followed = None;
                    self.members.clear();
                }
                Write::FollowedMember { member, .. } => {
                    self.members.insert(member.recipient, member);
                }
                Write::DropFollowedMember { recipient, .. } => {
                    self.members.remove(&recipient);
                }
                Write::Inbox { client, key, item } => {
                    assert!(
                        self.inbox.insert((client, key), item).is_none(),
                        "a row is overwritten"
                    );
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(outcome.head, self.head);
        assert_eq!(outcome.readers, self.readers());
        let added = i64::try_from(self.members.len()).unwrap() - i64::try_from(before).unwrap();
        assert_eq!(outcome.members_added, added);
        if let Some(head) = &self.head {
            assert_eq!(head.log_bytes, self.log.values().map(entry_bytes).sum::<u64>());
            self.links.may_end(head.last).expect("the log ends with what its head names");
        }
        outcome.failures
    }

    /// What the rules are given of it for `items`.
    pub(super) fn stored(&self, items: &[DeliveryItem]) -> Stored {
        let all = items.iter().any(needs_members);
        let members = self.members.values().filter(|member| all || member.gone).cloned().collect();
        let other_readers = if all { 0 } else { self.readers() };
        Stored {
            head: self.head.clone(),
            members,
            other_readers,
            hub: Some(hub()),
            full: HashSet::new(),
        }
    }

    pub(super) fn readers(&self) -> usize {
        self.members.values().filter(|member| is_reader(member)).count()
    }

    pub(super) fn kept(&self) -> Vec<u64> {
        self.log.keys().map(|sequence| sequence.0).collect()
    }

    pub(super) fn next(&self) -> u64 {
        self.head.as_ref().map_or(0, |head| head.next_sequence.0)
    }

    pub(super) fn is_in(&self) -> BTreeMap<u64, ClientUri> {
        let with_client = |member: &FollowedMember| {
            member.client.clone().map(|client| (member.recipient.0, client))
        };
        self.members.values().filter_map(with_client).collect()
    }

    /// Everything that `client`'s queue gives it.
    pub(super) fn read(&self, client: &ClientUri) -> Vec<QueueEntry> {
        let limits = QueueLimits { own_entries_max: 9, own_welcomes_max: 9, subscriptions_max: 99 };
        let mut queue = QueueState::load(client.clone(), QueueHead::default(), Vec::new(), limits);
        let mine = self.inbox.iter().filter(|((of, _), _)| of == client);
        queue.take(mine.map(|((_, key), item)| (key.clone(), item.clone())).collect(), NOW);
        queue.rewind(1 << 30, 1 << 20);
        let mut entries = Vec::new();
        for _ in 0..READS_MAX {
            match queue.next() {
                Next::ReadFeed { feed, from, .. } => {
                    let head = self.head.as_ref().unwrap();
                    let first = head.first_sequence;
                    let view = FeedView {
                        first,
                        next: head.next_sequence,
                        deleted: head.status == GroupStatus::Deleted,
                        gone: false,
                        entries: self.log.range(from.max(first)..).map(|e| e.1.clone()).collect(),
                    };
                    entries.extend(queue.fed(feed, view, NOW));
                }
                Next::ReadOwn { .. } => {
                    // Welcomes: what is in them does not matter here
                    return self.read_without_welcome(client);
                }
                Next::Full | Next::Idle => return entries,
            }
        }
        panic!("{client} reads the same again and again");
    }

    pub(super) fn read_without_welcome(&self, client: &ClientUri) -> Vec<QueueEntry> {
        let mut without = self.clone();
        for item in without.inbox.values_mut() {
            if let InboxItem::Open { event, .. } = item {
                *event = None;
            }
        }
        without.read(client)
    }
}

/// What a hub has: its items from the one that opens the guest's copy on, and who is in the group behind each.
#[derive(Debug, Clone)]
pub(super) struct Hub {
    pub(super) opening: DeliveryItem,
    pub(super) items: Vec<DeliveryItem>,
    pub(super) rosters: Vec<BTreeMap<u64, ClientUri>>,
}

impl Hub {
    /// A hub behind these steps: of each, whether somebody is added, and which of those who are there is removed.
    pub(super) fn of(steps: impl IntoIterator<Item = (bool, Option<usize>)>) -> Self {
        let mut roster = BTreeMap::from([(1, client(1))]);
        let (mut number, mut items, mut rosters) = (1_u8, Vec::new(), vec![roster.clone()]);
        for (sequence, (adds, removes)) in (5..).zip(steps) {
            let mut changes = Vec::new();
            if let Some(gone) = removes.and_then(|at| roster.keys().nth(at).copied()) {
                roster.remove(&gone);
                changes.push(remove(gone));
            }
            // the hub goes on with a guest only while it has somebody there
            if adds || roster.is_empty() {
                number += 1;
                roster.insert(u64::from(number), client(number));
                changes.push(add(u64::from(number), number));
            }
            let message = framed(if changes.is_empty() { 2 } else { 1 }, 2, &group());
            items.push(item(sequence, QueueEvent::MlsMessage { message }, changes));
            rosters.push(roster.clone());
        }
        Self { opening: snapshot(5, vec![invite(1, 1)]), items, rosters }
    }

    pub(super) fn last(&self) -> u64 {
        4 + self.items.len() as u64
    }

    pub(super) fn at(&self, sequence: u64) -> &DeliveryItem {
        &self.items[usize::try_from(sequence - 5).unwrap()]
    }

    pub(super) fn behind(&self, sequence: u64) -> &BTreeMap<u64, ClientUri> {
        &self.rosters[usize::try_from(sequence - 4).unwrap()]
    }
}

/// The guest has the beginning of the hub's log, the members of that point, and each of them got what is theirs.
pub(super) fn check(guest: &Guest, hub: &Hub) {
    let last = guest.next() - 1;
    let sequences: Vec<u64> = guest.log.keys().map(|sequence| sequence.0).collect();
    assert_eq!(sequences, (5..=last).collect::<Vec<_>>());
    for (sequence, entry) in &guest.log {
        let DeliveryItem::Feed { event, accepted_at, .. } = hub.at(sequence.0) else {
            unreachable!()
        };
        assert_eq!(&decode::<QueueEvent>(&entry.event).unwrap(), event);
        assert_eq!(entry.accepted_at, *accepted_at);
    }
    assert_eq!(&guest.is_in(), hub.behind(last));
    let count = guest.followed.as_ref().map(|followed| followed.members);
    assert_eq!(count, Some(guest.members.len() as u64));
    for number in 1..=50_u8 {
        let got: Vec<u64> = guest
            .read(&client(number))
            .iter()
            .filter(|entry| entry.event != QueueEvent::Removed)
            .map(|entry| entry.sequence.0)
            .collect();
        let number = u64::from(number);
        let mut due: Vec<u64> =
            (5..=last).filter(|at| hub.behind(at - 1).contains_key(&number)).collect();
        due.sort_unstable();
        assert_eq!(got, due, "what client {} got", number);
    }
}

/// Of the `holes` that snapshots left everybody was told who was there, and everybody has what is behind the last.
pub(super) fn is_told(guest: &Guest, hub: &Hub, holes: &BTreeSet<u64>) {
    let last = guest.next() - 1;
    assert_eq!(&guest.is_in(), hub.behind(last));
    for (number, client) in hub.behind(last) {
        let entries = guest.read(client);
        let mut previous = 0;
        let mut missing = holes.clone();
        for entry in &entries {
            assert_eq!(entry.previous.0, previous);
            previous = entry.sequence.0;
            match &entry.event {
                QueueEvent::Gap { next_available } => missing.retain(|at| *at >= next_available.0),
                _ => {
                    missing.remove(&entry.sequence.0);
                }
            }
        }
        // only of what lies in front of its own beginning nobody tells a client
        let since = (5..=last).find(|at| hub.behind(*at).contains_key(number)).unwrap_or(5);
        missing.retain(|at| *at > since);
        assert!(missing.is_empty(), "client {} was not told of {:?}", number, missing);
    }
}
