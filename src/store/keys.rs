//! The one mapping of records to keys and values, for every engine.
//!
//! **Keys**: a tag, ids as the first 16 bytes of their SHA-256, counters big-endian, so that a range read is in order.
//! Records that may be asked for by an id alone hold it in full: where two ids share a key the second is refused
//! ([`StoreError::Corrupt`], a condition that does not hold), never taken for the first.
//!
//! **Values**: a byte that names the encoding's version, then postcard, or the bytes themselves for what is opaque
//! here. A log record has its delivery part in front, with its length, so that a queue can read it alone; its encoding
//! has a version of its own ([`LOG_VERSION`]), and so has a group's head ([`GROUP_HEAD_VERSION`]).
//!
//! **Parts**: engines hold values of 4 KB at most. A record is stored as its length (4 bytes) and its first
//! [`CHUNK_BYTES`] under its key, the rest under [`part`] keys that are written and removed together with it.
//!
//! Here: keys and encodings. What a batch does to them is in [`plan`](super::plan), what reads do in
//! [`reader`](super::reader).

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    LeftBy, StoreError,
    links::Link,
    records::{
        ConsentHash, FeedEntry, GroupHead, InboxKey, LogRecord, OwnSequence, RefusedNonce, Replica,
        ReplicaMode, SetAside, TokenId,
    },
};
use crate::wire::ids::{
    ClientUri, Domain, Epoch, FeedId, GroupId, KeyPackageRef, RecipientId, Sequence, Timestamp,
    UserUri,
};

pub(super) type Key = Vec<u8>;

/// The encoding that is written today. Every one that was ever released must still be read.
pub(super) const VERSION: u8 = 1;

/// Of log records. 2: an entry names the provider of the client that sent it. 3: a record says which one it follows; what
/// has no link is of encoding 2.
pub(super) const LOG_VERSION: u8 = 3;
const UNLINKED_LOG_VERSION: u8 = 2;
/// Of replicas.
const REPLICA_VERSION: u8 = 2;

/// Of refused nonces. 2: the provider that it was refused to is in it.
const REFUSED_NONCE_VERSION: u8 = 2;

/// Of group heads. 2: a head says which key its hub signs with in the group. 3: and with which record its log ends.
pub(super) const GROUP_HEAD_VERSION: u8 = 3;

/// How much of a record one value holds.
pub(super) const CHUNK_BYTES: usize = 4_000;

/// Where the tags' bytes stand in every key; never given to anything else.
pub(super) mod tag {
    pub const COMMIT_SEQUENCE: u8 = 0x01;
    pub const NODE: u8 = 0x02;
    pub const GROUP_HEAD: u8 = 0x10;
    pub const LOG: u8 = 0x11;
    pub const SNAPSHOT: u8 = 0x12;
    pub const JOINER_INFO: u8 = 0x13;
    pub const GROUP_NOTICE: u8 = 0x14;
    pub const FOLLOWED: u8 = 0x15;
    pub const FOLLOWED_MEMBER: u8 = 0x16;
    pub const DEPARTURE: u8 = 0x17;
    pub const MOVES: u8 = 0x18;
    pub const REFUSED_NONCE: u8 = 0x19;
    pub const LEAVER: u8 = 0x1a;
    pub const INBOX: u8 = 0x20;
    pub const QUEUE_HEAD: u8 = 0x21;
    pub const OWN: u8 = 0x22;
    pub const SUBSCRIPTION: u8 = 0x23;
    pub const SUBSCRIPTION_INDEX: u8 = 0x24;
    pub const ACCOUNT: u8 = 0x30;
    pub const DEVICE: u8 = 0x31;
    pub const KEY_PACKAGE: u8 = 0x32;
    pub const KEY_PACKAGE_INDEX: u8 = 0x33;
    pub const TOKEN: u8 = 0x34;
    pub const CONSENT: u8 = 0x35;
    pub const QUEUE_INDEX: u8 = 0x36;
    pub const OUTBOUND: u8 = 0x40;
    pub const OUTBOUND_ROSTER: u8 = 0x41;
    pub const REPLICA: u8 = 0x42;
    pub const PART: u8 = 0xf0;
}

/// What the record under `key`, or the record that it is a part of, is, for people.
pub(super) fn kind(key: &[u8]) -> &'static str {
    match key.first() {
        Some(&tag::PART) => match record_of_part(key) {
            Some(of) if of.first() != Some(&tag::PART) => kind(of),
            Some(_) | None => "unknown",
        },
        Some(&tag::COMMIT_SEQUENCE) => "commit sequence",
        Some(&tag::NODE) => "node",
        Some(&tag::GROUP_HEAD) => "group head",
        Some(&tag::LOG) => "log record",
        Some(&tag::SNAPSHOT) => "snapshot",
        Some(&tag::JOINER_INFO) => "joiner info",
        Some(&tag::GROUP_NOTICE) => "group notice",
        Some(&tag::FOLLOWED) => "followed group",
        Some(&tag::FOLLOWED_MEMBER) => "followed member",
        Some(&tag::DEPARTURE) => "departure",
        Some(&tag::MOVES) => "moves",
        Some(&tag::REFUSED_NONCE) => "refused nonce",
        Some(&tag::LEAVER) => "leaver",
        Some(&tag::INBOX) => "inbox item",
        Some(&tag::QUEUE_HEAD) => "queue head",
        Some(&tag::OWN) => "own entry",
        Some(&tag::SUBSCRIPTION) => "subscription",
        Some(&tag::SUBSCRIPTION_INDEX) => "subscription index",
        Some(&tag::ACCOUNT) => "account",
        Some(&tag::DEVICE) => "device",
        Some(&tag::KEY_PACKAGE) => "key package",
        Some(&tag::KEY_PACKAGE_INDEX) => "key package index",
        Some(&tag::TOKEN) => "token",
        Some(&tag::CONSENT) => "consent",
        Some(&tag::QUEUE_INDEX) => "queue index",
        Some(&tag::OUTBOUND) => "outbound",
        Some(&tag::OUTBOUND_ROSTER) => "outbound roster",
        Some(&tag::REPLICA) => "replica",
        Some(_) | None => "unknown",
    }
}

/// Keys `from..until`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub from: Key,
    pub until: Key,
}

impl Range {
    /// All keys that begin with `prefix`. (Every prefix begins with a tag below 0xff.)
    fn of(prefix: Key) -> Self {
        let mut until = prefix.clone();
        while until.last() == Some(&0xff) {
            until.pop();
        }
        if let Some(last) = until.last_mut() {
            *last += 1;
        }
        Self { from: prefix, until }
    }

    /// The parts of the records in this range.
    pub fn parts(&self) -> Self {
        Self { from: part_prefix(&self.from), until: part_prefix(&self.until) }
    }
}

pub(super) fn hash(id: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&digest::digest(&digest::SHA256, id).as_ref()[..16]);
    short
}

pub(super) fn key(tag: u8, pieces: &[&[u8]]) -> Key {
    let mut key = Vec::with_capacity(64);
    key.push(tag);
    for piece in pieces {
        key.extend_from_slice(piece);
    }
    key
}

/// Counts what was made durable; in every group of changes.
pub(super) fn commit_sequence() -> Key {
    key(tag::COMMIT_SEQUENCE, &[])
}

pub(super) fn node(name: &str) -> Key {
    key(tag::NODE, &[&hash(name.as_bytes())])
}

pub(super) fn group_head(group: &GroupId) -> Key {
    key(tag::GROUP_HEAD, &[&hash(group.as_bytes())])
}

pub(super) fn group_heads() -> Range {
    Range::of(key(tag::GROUP_HEAD, &[]))
}

pub(super) fn log_record(group: &GroupId, at: Sequence) -> Key {
    key(tag::LOG, &[&hash(group.as_bytes()), &at.0.to_be_bytes()])
}

/// The group's log from `from` to its end.
pub(super) fn log_from(group: &GroupId, from: Sequence) -> Range {
    Range { from: log_record(group, from), until: log(group).until }
}

pub(super) fn log(group: &GroupId) -> Range {
    Range::of(key(tag::LOG, &[&hash(group.as_bytes())]))
}

pub(super) fn snapshot(group: &GroupId, at: Sequence) -> Key {
    key(tag::SNAPSHOT, &[&hash(group.as_bytes()), &at.0.to_be_bytes()])
}

pub(super) fn snapshots(group: &GroupId) -> Range {
    Range::of(key(tag::SNAPSHOT, &[&hash(group.as_bytes())]))
}

pub(super) fn joiner_info(group: &GroupId, epoch: Epoch) -> Key {
    key(tag::JOINER_INFO, &[&hash(group.as_bytes()), &epoch.0.to_be_bytes()])
}

pub(super) fn joiner_infos(group: &GroupId) -> Range {
    Range::of(key(tag::JOINER_INFO, &[&hash(group.as_bytes())]))
}

pub(super) fn group_notice(group: &GroupId, notice: &[u8; 16]) -> Key {
    key(tag::GROUP_NOTICE, &[&hash(group.as_bytes()), notice])
}

pub(super) fn group_notices(group: &GroupId) -> Range {
    Range::of(key(tag::GROUP_NOTICE, &[&hash(group.as_bytes())]))
}

/// The notices of all groups.
pub(super) fn all_group_notices() -> Range {
    Range::of(key(tag::GROUP_NOTICE, &[]))
}

pub(super) fn followed(group: &GroupId) -> Key {
    key(tag::FOLLOWED, &[&hash(group.as_bytes())])
}

pub(super) fn followed_member(group: &GroupId, recipient: RecipientId) -> Key {
    key(tag::FOLLOWED_MEMBER, &[&hash(group.as_bytes()), &recipient.0.to_be_bytes()])
}

pub(super) fn followed_members(group: &GroupId) -> Range {
    Range::of(key(tag::FOLLOWED_MEMBER, &[&hash(group.as_bytes())]))
}

pub(super) fn departure(group: &GroupId) -> Key {
    key(tag::DEPARTURE, &[&hash(group.as_bytes())])
}

pub(super) fn departures() -> Range {
    Range::of(key(tag::DEPARTURE, &[]))
}

pub(super) fn moves(group: &GroupId) -> Key {
    key(tag::MOVES, &[&hash(group.as_bytes())])
}

pub(super) fn all_moves() -> Range {
    Range::of(key(tag::MOVES, &[]))
}

pub(super) fn refused_nonce(nonce: &[u8; 32]) -> Key {
    key(tag::REFUSED_NONCE, &[nonce])
}

pub(super) fn refused_nonces() -> Range {
    Range::of(key(tag::REFUSED_NONCE, &[]))
}

pub(super) fn leaver(group: &GroupId, recipient: RecipientId) -> Key {
    key(tag::LEAVER, &[&hash(group.as_bytes()), &recipient.0.to_be_bytes()])
}

pub(super) fn leavers(group: &GroupId) -> Range {
    Range::of(key(tag::LEAVER, &[&hash(group.as_bytes())]))
}

fn domain_hash(domain: &Domain) -> [u8; 16] {
    hash(domain.as_str().as_bytes())
}

pub(super) fn outbound(peer: &Domain, group: &GroupId) -> Key {
    key(tag::OUTBOUND, &[&domain_hash(peer), &hash(group.as_bytes())])
}

/// What is left for `peer`.
pub(super) fn outbound_of(peer: &Domain) -> Range {
    Range::of(key(tag::OUTBOUND, &[&domain_hash(peer)]))
}

/// What is left for all peers.
pub(super) fn all_outbound() -> Range {
    Range::of(key(tag::OUTBOUND, &[]))
}

pub(super) fn outbound_roster_row(peer: &Domain, group: &GroupId, at: Sequence) -> Key {
    key(tag::OUTBOUND_ROSTER, &[&domain_hash(peer), &hash(group.as_bytes()), &at.0.to_be_bytes()])
}

/// The roster rows of a group at a peer.
pub(super) fn outbound_roster(peer: &Domain, group: &GroupId) -> Range {
    Range::of(key(tag::OUTBOUND_ROSTER, &[&domain_hash(peer), &hash(group.as_bytes())]))
}

pub(super) fn replica(peer: &Domain, group: &GroupId) -> Key {
    key(tag::REPLICA, &[&domain_hash(peer), &hash(group.as_bytes())])
}

/// The replicas at `peer`.
pub(super) fn replicas_of(peer: &Domain) -> Range {
    Range::of(key(tag::REPLICA, &[&domain_hash(peer)]))
}

/// The replicas at all peers.
pub(super) fn all_replicas() -> Range {
    Range::of(key(tag::REPLICA, &[]))
}

/// What a record of a group at a peer is known by; a domain holds no space.
pub(super) fn of_peer(peer: &Domain, group: &GroupId) -> String {
    format!("{peer} {group}")
}

/// The peer and the group in what [`of_peer`] made.
pub(super) fn peer_and_group(owner: &str) -> Result<(Domain, GroupId), StoreError> {
    owner
        .split_once(' ')
        .and_then(|(peer, group)| Some((Domain::new(peer).ok()?, GroupId::new(group).ok()?)))
        .ok_or_else(|| corrupt("a record of a group at a peer that names neither"))
}

fn client_hash(client: &ClientUri) -> [u8; 16] {
    hash(client.as_str().as_bytes())
}

pub(super) fn inbox_item(client: &ClientUri, item: &InboxKey) -> Key {
    match item {
        InboxKey::Group { group, sequence, index } => key(
            tag::INBOX,
            &[
                &client_hash(client),
                &[0],
                &hash(group.as_bytes()),
                &sequence.0.to_be_bytes(),
                &index.to_be_bytes(),
            ],
        ),
        InboxKey::Item(id) => key(tag::INBOX, &[&client_hash(client), &[1], id]),
        InboxKey::From { provider, id } => {
            let provider = hash(provider.as_str().as_bytes());
            key(tag::INBOX, &[&client_hash(client), &[2], &provider, id])
        }
    }
}

pub(super) fn inbox(client: &ClientUri) -> Range {
    Range::of(key(tag::INBOX, &[&client_hash(client)]))
}

/// What the keys of all that a group has left in one inbox begin with; of what each provider has left there, another, and of
/// what something else has.
pub(super) fn inbox_owner(key: &[u8]) -> &[u8] {
    const KIND: usize = 1 + 16;
    let end = match key.get(KIND) {
        Some(0 | 2) => KIND + 1 + 16,
        Some(_) | None => KIND + 1,
    };
    key.get(..end).unwrap_or(key)
}

/// Who has left an inbox item there, by the first part of its record.
pub(super) fn left_by(first: &[u8]) -> Result<LeftBy, StoreError> {
    let what = "inbox item";
    // the key stands in front, and is shorter than the first part
    match postcard::take_from_bytes::<InboxKey>(versioned(what, first)?) {
        Ok((InboxKey::Group { group, .. }, _)) => Ok(LeftBy::Group(group)),
        Ok((InboxKey::From { provider, .. }, _)) => Ok(LeftBy::Provider(provider)),
        Ok((InboxKey::Item(_), _)) => Ok(LeftBy::Other),
        Err(error) => Err(corrupt(format!("{what}: {error}"))),
    }
}

pub(super) fn queue_head(client: &ClientUri) -> Key {
    key(tag::QUEUE_HEAD, &[&client_hash(client)])
}

pub(super) fn own_entry(client: &ClientUri, at: OwnSequence) -> Key {
    key(tag::OWN, &[&client_hash(client), &at.0.to_be_bytes()])
}

pub(super) fn own(client: &ClientUri) -> Range {
    Range::of(key(tag::OWN, &[&client_hash(client)]))
}

/// The client's own feed from `from` to its end.
pub(super) fn own_from(client: &ClientUri, from: OwnSequence) -> Range {
    Range { from: own_entry(client, from), until: own(client).until }
}

pub(super) fn subscription(client: &ClientUri, feed: FeedId) -> Key {
    key(tag::SUBSCRIPTION, &[&client_hash(client), &feed.0.to_be_bytes()])
}

pub(super) fn subscriptions(client: &ClientUri) -> Range {
    Range::of(key(tag::SUBSCRIPTION, &[&client_hash(client)]))
}

/// Holds the feed of the membership.
pub(super) fn subscription_index(
    client: &ClientUri,
    group: &GroupId,
    recipient: RecipientId,
) -> Key {
    let pieces: [&[u8]; 3] =
        [&client_hash(client), &hash(group.as_bytes()), &recipient.0.to_be_bytes()];
    key(tag::SUBSCRIPTION_INDEX, &pieces)
}

pub(super) fn subscription_indices(client: &ClientUri) -> Range {
    Range::of(key(tag::SUBSCRIPTION_INDEX, &[&client_hash(client)]))
}

pub(super) fn account(user: &UserUri) -> Key {
    key(tag::ACCOUNT, &[&hash(user.as_str().as_bytes())])
}

pub(super) fn device(client: &ClientUri) -> Key {
    key(tag::DEVICE, &[&client_hash(client)])
}

/// Holds the client whose queue this is.
pub(super) fn queue_index(queue: &[u8; 16]) -> Key {
    key(tag::QUEUE_INDEX, &[queue])
}

/// Ordered by the time of publication.
pub(super) fn key_package(
    client: &ClientUri,
    published_at: Timestamp,
    reference: &KeyPackageRef,
) -> Key {
    key(
        tag::KEY_PACKAGE,
        &[&client_hash(client), &published_at.0.to_be_bytes(), &hash(reference.0.as_slice())],
    )
}

/// Holds the key of the KeyPackage.
pub(super) fn key_package_index(client: &ClientUri, reference: &KeyPackageRef) -> Key {
    key(tag::KEY_PACKAGE_INDEX, &[&client_hash(client), &hash(reference.0.as_slice())])
}

pub(super) fn key_packages(client: &ClientUri) -> Range {
    Range::of(key(tag::KEY_PACKAGE, &[&client_hash(client)]))
}

pub(super) fn key_package_indices(client: &ClientUri) -> Range {
    Range::of(key(tag::KEY_PACKAGE_INDEX, &[&client_hash(client)]))
}

pub(super) fn token(token: &TokenId) -> Key {
    key(tag::TOKEN, &[&token.0])
}

pub(super) fn consent(user: &UserUri, token: &ConsentHash) -> Key {
    key(tag::CONSENT, &[&hash(user.as_str().as_bytes()), &token.0])
}

pub(super) fn consents(user: &UserUri) -> Range {
    Range::of(key(tag::CONSENT, &[&hash(user.as_str().as_bytes())]))
}

fn part_prefix(of: &[u8]) -> Key {
    key(tag::PART, &[of])
}

/// Part `index` (1, 2, …) of the record under `of`.
pub(super) fn part(of: &[u8], index: u32) -> Key {
    key(tag::PART, &[of, &index.to_be_bytes()])
}

/// All parts of the record under `of`, whether it is there or not.
pub(super) fn parts(of: &[u8]) -> Range {
    Range::of(part_prefix(of))
}

/// The key of the record that the key `part` is a part of.
pub(super) fn record_of_part(part: &[u8]) -> Option<&[u8]> {
    part.get(1..part.len().checked_sub(4)?)
}

pub(super) fn is_snapshot(key: &[u8]) -> bool {
    key.first() == Some(&tag::SNAPSHOT)
}

/// The parts of all snapshots of the group that `snapshot` (a key) belongs to.
pub(super) fn snapshot_parts_of_group(snapshot: &[u8]) -> Range {
    Range::of(part_prefix(&snapshot[..snapshot.len().saturating_sub(8)]))
}

/// What is stored under a record's own key: its length and its first chunk.
pub(super) fn head_value(record: &[u8]) -> Result<Vec<u8>, StoreError> {
    let len = u32::try_from(record.len())
        .map_err(|_| corrupt("a record of more than 4 GB cannot be written"))?;
    let first = &record[..record.len().min(CHUNK_BYTES)];
    let mut value = Vec::with_capacity(4 + first.len());
    value.extend_from_slice(&len.to_be_bytes());
    value.extend_from_slice(first);
    Ok(value)
}

/// The chunks of a record behind its first, for its parts 1, 2, ….
pub(super) fn further_chunks(record: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    (1..).zip(record.chunks(CHUNK_BYTES).skip(1))
}

/// How many parts a record of `len` bytes has.
pub(super) fn part_count(len: usize) -> u32 {
    u32::try_from(len.div_ceil(CHUNK_BYTES).saturating_sub(1)).unwrap_or(u32::MAX)
}

/// Splits what is stored under a record's own key into the record's length and its first chunk.
pub(super) fn split_head(value: &[u8]) -> Result<(usize, &[u8]), StoreError> {
    let (len, first) =
        value.split_first_chunk::<4>().ok_or_else(|| corrupt("a record without its length"))?;
    let len = u32::from_be_bytes(*len) as usize;
    if first.len() == len.min(CHUNK_BYTES) {
        Ok((len, first))
    } else {
        Err(corrupt("a record whose first part is not as long as it says"))
    }
}

pub(super) fn corrupt(what: impl Into<String>) -> StoreError {
    StoreError::Corrupt { what: what.into() }
}

pub(super) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, StoreError> {
    postcard::to_extend(value, vec![VERSION])
        .map_err(|error| corrupt(format!("a record that cannot be encoded: {error}")))
}

/// `what` names the record for the operator.
pub(super) fn decode<T: DeserializeOwned>(what: &str, record: &[u8]) -> Result<T, StoreError> {
    plain(what, versioned(what, record)?)
}

fn plain<T: DeserializeOwned>(what: &str, body: &[u8]) -> Result<T, StoreError> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(corrupt(format!("{what}: more than is read"))),
        Err(error) => Err(corrupt(format!("{what}: {error}"))),
    }
}

/// The bytes behind the version of a record that is opaque here.
pub(super) fn versioned<'a>(what: &str, record: &'a [u8]) -> Result<&'a [u8], StoreError> {
    match record.split_first() {
        Some((&VERSION, body)) => Ok(body),
        Some((version, _)) => Err(unknown_encoding(what, *version)),
        None => Err(corrupt(format!("{what}: empty"))),
    }
}

fn unknown_encoding(what: &str, version: u8) -> StoreError {
    corrupt(format!(
        "{what}: encoding {version} is not known here; was it written by a newer mimid?"
    ))
}

/// A record behind the id in full that its key holds in short.
pub(super) fn decode_owned<T: DeserializeOwned>(
    what: &str,
    id: &str,
    record: &[u8],
) -> Result<T, StoreError> {
    let (found, value): (String, T) = decode(what, record)?;
    if found == id {
        Ok(value)
    } else {
        Err(corrupt(format!("{what}: {found} is where {id} was looked for")))
    }
}

/// As [`decode_owned`]; a head has its id in itself.
pub(super) fn decode_group_head(group: &GroupId, record: &[u8]) -> Result<GroupHead, StoreError> {
    let head = any_group_head(record)?;
    if head.group == *group {
        Ok(head)
    } else {
        Err(corrupt(format!("group head: {} is where {group} was looked for", head.group)))
    }
}

pub(super) fn any_group_head(record: &[u8]) -> Result<GroupHead, StoreError> {
    match record.split_first() {
        Some((&GROUP_HEAD_VERSION, body)) => plain("group head", body),
        // earlier encodings lack what is last now: none
        Some((2, body)) => plain("group head", &[body, &[0]].concat()),
        Some((&VERSION, body)) => plain("group head", &[body, &[0, 0]].concat()),
        Some((version, _)) => Err(unknown_encoding("group head", *version)),
        None => Err(corrupt("group head: empty")),
    }
}

pub(super) fn encode_group_head(head: &GroupHead) -> Result<Vec<u8>, StoreError> {
    postcard::to_extend(head, vec![GROUP_HEAD_VERSION])
        .map_err(|error| corrupt(format!("a record that cannot be encoded: {error}")))
}

pub(super) fn encode_refused(
    nonce: &[u8; 32],
    refused: &RefusedNonce,
) -> Result<Vec<u8>, StoreError> {
    postcard::to_extend(&(nonce, refused), vec![REFUSED_NONCE_VERSION])
        .map_err(|error| corrupt(format!("a refused nonce that cannot be encoded: {error}")))
}

pub(super) fn decode_refused(record: &[u8]) -> Result<([u8; 32], RefusedNonce), StoreError> {
    const WHAT: &str = "refused nonce";
    if let Some((&REFUSED_NONCE_VERSION, body)) = record.split_first() {
        return plain(WHAT, body);
    }
    let (nonce, until) = decode(WHAT, record)?;
    Ok((nonce, RefusedNonce { until, source: None }))
}

/// What a replica's record holds of it behind its owner, in encoding 1: nothing is known of a copy then.
#[derive(Deserialize)]
struct Replica1 {
    acknowledged: Sequence,
    acknowledged_at: Timestamp,
    mode: ReplicaMode,
    set_aside: Option<SetAside>,
}

pub(super) fn encode_replica(owner: &str, replica: &Replica) -> Result<Vec<u8>, StoreError> {
    postcard::to_extend(&(owner, replica), vec![REPLICA_VERSION])
        .map_err(|error| corrupt(format!("a replica that cannot be encoded: {error}")))
}

/// A replica with what it is of ([`of_peer`]).
pub(super) fn decode_replica(record: &[u8]) -> Result<(String, Replica), StoreError> {
    const WHAT: &str = "replica";
    if let Some((&REPLICA_VERSION, body)) = record.split_first() {
        return plain(WHAT, body);
    }
    let (owner, old): (String, Replica1) = decode(WHAT, record)?;
    let Replica1 { acknowledged, acknowledged_at, mode, set_aside } = old;
    Ok((owner, Replica { acknowledged, acknowledged_at, mode, copy: None, set_aside }))
}

/// The id that a record which holds one begins with.
pub(super) fn owner(record: &[u8]) -> Result<&str, StoreError> {
    let body = match record.split_first() {
        // the id stands first in every encoding of every such record
        Some((1..=GROUP_HEAD_VERSION, body)) => body,
        Some(_) | None => versioned("owner", record)?,
    };
    postcard::take_from_bytes::<&str>(body)
        .map(|(owner, _)| owner)
        .map_err(|error| corrupt(format!("a record's owner: {error}")))
}

/// version, length of the delivery part (4 bytes), the link (16 bytes, from encoding 3 on), delivery part, change.
pub(super) fn encode_log(record: &LogRecord) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![UNLINKED_LOG_VERSION, 0, 0, 0, 0];
    if let Some(Link(follows)) = record.follows {
        bytes[0] = LOG_VERSION;
        bytes.extend_from_slice(&follows);
    }
    let head_bytes = bytes.len();
    bytes = postcard::to_extend(&record.feed, bytes)
        .map_err(|error| corrupt(format!("a log record that cannot be encoded: {error}")))?;
    let len = u32::try_from(bytes.len() - head_bytes)
        .map_err(|_| corrupt("a log record of more than 4 GB cannot be written"))?;
    bytes[1..5].copy_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(&record.change);
    Ok(bytes)
}

/// What stands in front of a log record's delivery part.
struct LogHead {
    version: u8,
    follows: Option<Link>,
    /// Where the delivery part is.
    feed: std::ops::Range<usize>,
}

fn log_head(record: &[u8]) -> Result<LogHead, StoreError> {
    let cut_off = || corrupt("log record: cut off");
    let (version, body) = match record.split_first() {
        Some((version @ 1..=LOG_VERSION, body)) => (*version, body),
        Some((version, _)) => return Err(unknown_encoding("log record", *version)),
        None => return Err(corrupt("log record: empty")),
    };
    let (len, body) = body.split_first_chunk::<4>().ok_or_else(cut_off)?;
    let (follows, from) = match version {
        1..=UNLINKED_LOG_VERSION => (None, 5),
        _ => (Some(Link(*body.first_chunk::<16>().ok_or_else(cut_off)?)), 5 + 16),
    };
    let until = usize::saturating_add(from, u32::from_be_bytes(*len) as usize);
    Ok(LogHead { version, follows, feed: from..until })
}

/// How many bytes of a log record, from its beginning, hold its delivery part.
pub(super) fn feed_bytes(record: &[u8]) -> Result<usize, StoreError> {
    Ok(log_head(record)?.feed.end)
}

/// Which link a log record follows, by its beginning.
pub(super) fn follows(record: &[u8]) -> Result<Option<Link>, StoreError> {
    Ok(log_head(record)?.follows)
}

/// A feed entry of encoding 1.
#[derive(Deserialize)]
struct FeedEntry1 {
    sequence: Sequence,
    accepted_at: Timestamp,
    except: Option<RecipientId>,
    handshake: bool,
    event: Vec<u8>,
}

/// `record` may end behind its delivery part.
pub(super) fn decode_feed(record: &[u8]) -> Result<FeedEntry, StoreError> {
    let LogHead { version, feed, .. } = log_head(record)?;
    let body = record.get(feed).ok_or_else(|| corrupt("log record: cut off"))?;
    if version > 1 {
        return plain("log record", body);
    }
    let FeedEntry1 { sequence, accepted_at, except, handshake, event } = plain("log record", body)?;
    Ok(FeedEntry { sequence, accepted_at, except, origin: None, handshake, event })
}

pub(super) fn decode_log(mut record: Vec<u8>) -> Result<LogRecord, StoreError> {
    let LogHead { follows, feed: at, .. } = log_head(&record)?;
    let feed = decode_feed(&record)?;
    record.drain(..at.end);
    Ok(LogRecord { feed, change: record, follows })
}

/// What an index holds: the key that it points to.
pub(super) fn index_record(key: &[u8]) -> Vec<u8> {
    let mut record = vec![VERSION];
    record.extend_from_slice(key);
    record
}

pub(super) fn encode_commit_sequence(sequence: u64) -> Vec<u8> {
    let mut value = vec![VERSION];
    value.extend_from_slice(&sequence.to_be_bytes());
    value
}

pub(super) fn decode_commit_sequence(value: Option<&[u8]>) -> Result<u64, StoreError> {
    let Some(value) = value else { return Ok(0) };
    let body = versioned("commit sequence", value)?;
    let body = body.try_into().map_err(|_| corrupt("commit sequence: not 8 bytes"))?;
    Ok(u64::from_be_bytes(body))
}
