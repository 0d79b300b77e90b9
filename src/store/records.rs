//! The records that survive, as the rules see them. Each is stored behind a byte that names its encoding
//! version; golden files (tests/golden) prove that old data still reads.
//!
//! Here: plain data. How it is keyed and chunked is in `super::keys`.

use serde::{Deserialize, Serialize};

use super::links::Link;
use crate::wire::ids::{
    ClientUri, Domain, Epoch, FeedId, GroupId, KeyPackageRef, RecipientId, RequestId, Sequence,
    Timestamp,
};

/// Where a group stands. Rewritten with every accepted message, so it is small whatever the group's size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupHead {
    pub group: GroupId,
    pub status: GroupStatus,
    pub next_sequence: Sequence,
    /// The oldest sequence that the log still has.
    pub first_sequence: Sequence,
    pub epoch: Epoch,
    /// Goes up by one at every write of this head; fences a second owner.
    pub revision: u64,
    /// The newest snapshot and the one before it, each as the sequence of the last record that it holds.
    pub snapshot: Sequence,
    pub previous_snapshot: Option<Sequence>,
    pub created_at: Timestamp,
    pub last_accepted_at: Timestamp,
    /// Bytes of the log that is kept, for trimming by size.
    pub log_bytes: u64,
    /// Epochs whose information is kept for joiners who come late, in a record each.
    pub joiner_infos: Vec<Epoch>,
    /// When the group has work to do by itself (an inactive member, a proposal to make, a trim); none: never.
    pub wake_at: Option<Timestamp>,
    /// Of a group hosted here; none where that was not noted yet (heads of the first encoding).
    pub hub_key: Option<KeyStand>,
    /// The link of the log's last record; none where that has none (heads of encodings 1 and 2).
    pub last: Option<Link>,
}

/// The first 16 bytes of a public key's SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyPrint(pub [u8; 16]);

/// Which of its keys the hub signs with in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyStand {
    pub key: KeyPrint,
    /// Pending in its place.
    pub proposed: Option<KeyPrint>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupStatus {
    Active,
    /// Its id is never used again.
    Deleted,
    /// A copy of a feed that is hosted elsewhere ([`Followed`]): what clients of this provider get of it.
    Followed,
    /// On its way to another provider ([`Departure`]): it takes nothing.
    Migrating,
}

/// A group on its way to another provider, from the freeze until the target knows that the move is known here.
/// PROTOCOL.md §6. What was frozen is kept as a snapshot at [`Departure::PARCEL`], what is sent at [`Departure::CONTENT`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departure {
    pub group: GroupId,
    /// The request that asked for it.
    pub request: RequestKey,
    /// The TLS encoding of the target's `MigrationResponse`.
    pub response: Vec<u8>,
    pub target: Domain,
    pub frozen_at: Timestamp,
    pub phase: crate::migration::source::Phase,
}

impl Departure {
    /// Sequences that no group gets to.
    pub const PARCEL: Sequence = Sequence(u64::MAX - 1);
    pub const CONTENT: Sequence = Sequence(u64::MAX);
}

/// A group's moves, as far as this provider took part in them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Moves {
    /// The TLS encoding of a `Chain`: from the provider in the group's id to the one that hosts it (or to this one, where it
    /// hosts the group and has not got the last confirmation yet, to the one before).
    pub chain: Vec<u8>,
    /// How it came here the last time.
    pub arrived: Option<Arrival>,
    /// How it left the last time.
    pub left: Option<Left>,
}

/// A group came here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    pub nonce: [u8; 32],
    /// SHA-256 of its content.
    pub hash: [u8; 32],
    pub source: Domain,
    pub at: Timestamp,
    /// It counts against the quota: it is still here.
    pub here: bool,
    /// The epoch that it came in, and the first sequence that it was given here: what its source is to confirm.
    pub epoch: Epoch,
    pub next_sequence: Sequence,
    /// The key that the promise and the answer were signed with, where it is known.
    pub key: Option<KeyPrint>,
    /// Its source has said that it knows: from then on it never asks again. Before, the group does not move on.
    pub confirmed: bool,
}

/// A nonce of this provider's that no group comes in by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedNonce {
    /// Remembered so long.
    pub until: Timestamp,
    /// The provider that it was refused to; none in records of encoding 1.
    pub source: Option<Domain>,
}

/// A group left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Whose retry gets the confirmation again.
    pub request: RequestKey,
    pub at: Timestamp,
    /// Providers that still get what was accepted here.
    pub guests: Vec<Domain>,
    /// The key that signed the confirmation.
    pub key: KeyPrint,
}

/// One accepted message: what is delivered and what replay needs, in one record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    pub feed: FeedEntry,
    /// What the message did to the group's state, encoded by `group` (opaque here).
    pub change: Vec<u8>,
    /// The link of the record before it in this log; none in records of encodings 1 and 2. It is set where the record is
    /// appended ([`GroupHead::append`]); in what is on its way elsewhere there is none.
    #[serde(skip)]
    pub follows: Option<Link>,
}

/// The part of a log record that queues read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedEntry {
    pub sequence: Sequence,
    pub accepted_at: Timestamp,
    /// The sending client: it gets no copy.
    pub except: Option<RecipientId>,
    /// The provider of `except`: nobody else is told which of its clients sent it. None in records of encoding 1.
    pub origin: Option<Domain>,
    /// Whether a `handshake_only` subscription receives it.
    pub handshake: bool,
    /// The TLS encoding of the `QueueEvent`; empty where nobody is to receive anything (roster_only).
    pub event: Vec<u8>,
}

/// Orders what is left for a client: by group and sequence, so that what one group leaves stays in order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum InboxKey {
    /// Left by a group at one of its sequences; `index` counts within that.
    Group { group: GroupId, sequence: Sequence, index: u32 },
    /// Left by anything else; left twice under one id it is there once.
    Item([u8; 16]),
    /// The same of a provider, or of its users, for the client alone: what each has left stands together.
    From { provider: Domain, id: [u8; 16] },
}

/// What is left for a client's queue until its owner takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum InboxItem {
    /// The client is in the group from `from` on. `event` is the encoded `QueueEvent` of its Welcome, if it has one.
    Open {
        group: GroupId,
        recipient: RecipientId,
        from: Sequence,
        handshake_only: bool,
        event: Option<Vec<u8>>,
    },
    /// The filter changed, from `from` on.
    Filter { group: GroupId, recipient: RecipientId, from: Sequence, handshake_only: bool },
    /// `last` is the last sequence that the client receives; `removed` whether a `removed` entry follows it.
    Close { group: GroupId, recipient: RecipientId, last: Sequence, removed: bool },
    /// An encoded `QueueEvent` for the client alone.
    Event { group: Option<GroupId>, event: Vec<u8> },
}

/// What is left for a group until its actor takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupNotice {
    /// The client is to be removed: its device or its whole account was deleted, or its queue is gone.
    ClientGone { client: ClientUri, reason: GoneReason },
    /// The same of a client of another provider, which names it by the number that it knows it under. It counts only
    /// where that number is one of `peer`'s clients.
    RecipientGone { peer: Domain, recipient: RecipientId, reason: GoneReason },
}

/// Why the hub starts a removal by itself. DS §2.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GoneReason {
    DeviceDeleted,
    AccountDeleted,
    QueueGone,
    Inactive,
    /// A quorum of the group says that a commit of its was no good. PROTOCOL.md §2, "When a committer lies".
    Lied,
}

/// A group hosted elsewhere that clients of this provider are in. Where its feed stands is in a [`GroupHead`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// Who may send its feed.
    pub hub: Domain,
    /// Clients of this provider that are in it now.
    pub members: u64,
}

/// A client of this provider in a group hosted elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowedMember {
    pub recipient: RecipientId,
    /// None where the hub's token for it was not good.
    pub client: Option<ClientUri>,
    /// Its queue is gone: the hub is told with every answer, until it has removed it.
    pub gone: bool,
}

/// What changes for a guest provider's clients at one sequence of a hosted group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboundRoster {
    pub sequence: Sequence,
    /// The provider had no client in the group before: this opens its copy of the feed.
    pub opens: bool,
    /// The TLS encoding of a `List<RosterChange>`.
    pub changes: Vec<u8>,
}

/// Where a guest provider's copy of a hosted group stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// The last sequence that the guest has answered for: in mode direct, for all of its clients.
    pub acknowledged: Sequence,
    pub acknowledged_at: Timestamp,
    pub mode: ReplicaMode,
    /// In mode direct: up to where the guest's own copy of the feed has everything, where it may have one. Its feed
    /// goes on there when it is sent again.
    pub copy: Option<Sequence>,
    pub set_aside: Option<SetAside>,
}

/// How a guest provider gets a group. PROTOCOL.md §3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaMode {
    /// Its feed, once.
    Feed,
    /// Single requests per client, as DS §6.1 has them.
    Direct,
}

/// Why nothing of a group is sent to a guest until a snapshot passes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAside {
    pub since: Timestamp,
    /// What the guest did not take.
    pub item: Sequence,
    pub problem: String,
}

/// The sequence of a client's own feed (feed 0).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct OwnSequence(pub u64);

/// A store that goes back to a backup lets its counters leap by multiples of this ([`super::ahead`]). Nothing that is counted by the
/// difference of two numbers is as many: what lies in a leap counts for nothing.
pub const LEAP: u64 = 1 << 20;

/// Where a client's queue stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueueHead {
    pub revision: u64,
    pub next_own: OwnSequence,
    /// Acknowledged in feed 0, cumulatively.
    pub acknowledged_own: OwnSequence,
    pub next_feed: FeedId,
    /// Ids of items that were taken lately, with the time: left again within a day they are not taken again.
    pub recent: Vec<(Timestamp, [u8; 16])>,
}

/// An entry of a client's own feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnEntry {
    pub sequence: OwnSequence,
    pub accepted_at: Timestamp,
    /// Set for Welcomes.
    pub group: Option<GroupId>,
    /// The feed that may not be delivered before this entry (its Welcome).
    pub opens: Option<FeedId>,
    pub event: Vec<u8>,
}

/// One membership of a client in a group: an interval of the group's feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    pub feed: FeedId,
    pub group: GroupId,
    pub recipient: RecipientId,
    pub from: Sequence,
    /// The last sequence that is delivered, once the membership has ended; `removed` as in [`InboxItem::Close`].
    pub last: Option<Sequence>,
    pub removed: bool,
    /// Filters with the sequence that each holds from; the first holds from `from`.
    pub filters: Vec<(Sequence, bool)>,
    /// Acknowledged, cumulatively; `from - 1` at first.
    pub acknowledged: Sequence,
    /// The sequence that this client got before `acknowledged` moved on: what `previous` of its next entry names.
    pub previous: Sequence,
}

/// A client of this provider whose membership has ended and that may not have acknowledged all that it was owed of it. What it
/// lacks stays in the group's log as if it were still there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaver {
    pub recipient: RecipientId,
    pub client: ClientUri,
    /// The last sequence that it is owed.
    pub last: Sequence,
}

/// A user of this provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub revision: u64,
    pub user_key_scheme: u16,
    pub user_key: Vec<u8>,
    pub created_at: Timestamp,
    /// Deleted accounts stay as a tombstone: their name is not given to anyone else.
    pub deleted_at: Option<Timestamp>,
    /// In the order of registration, deleted ones left out.
    pub devices: Vec<ClientUri>,
}

/// A client of this provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub key_scheme: u16,
    pub key: Vec<u8>,
    /// The TLS encoding of its MLS Credential.
    pub credential: Vec<u8>,
    pub queue: [u8; 16],
    pub created_at: Timestamp,
    pub deleted_at: Option<Timestamp>,
}

/// A KeyPackage that waits to be handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredKeyPackage {
    pub reference: KeyPackageRef,
    pub connection: bool,
    pub last_resort: bool,
    pub ciphersuite: u16,
    /// Seconds since the Unix epoch, as in the KeyPackage's lifetime.
    pub not_after_s: u64,
    pub published_at: Timestamp,
    /// The TLS encoding of the KeyPackage.
    pub bytes: Vec<u8>,
}

/// The id inside a queue token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub [u8; 16]);

/// What became of a queue token since it was minted. A token that nobody used has no record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    pub revision: u64,
    pub client: ClientUri,
    pub revoked: bool,
    /// (hub, group) pairs that the token is bound to: one, or several for a last-resort token.
    pub bound_to: Vec<(Domain, GroupId)>,
}

/// SHA-256 of a consent token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConsentHash(pub [u8; 32]);

/// Who sent what was accepted: remembered so that a retry is answered and not repeated.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestKey {
    /// The TLS encoding of the `DSSenderID`.
    pub sender: Vec<u8>,
    pub request_id: RequestId,
}
