//! What survives: one trait of domain verbs over an atomic, durable, conditional [`Batch`].
//!
//! Here: the trait, the batch and its conditions. The records are in [`records`], how they become keys and
//! values in `keys`, the engines in `sled`, `fjall` and [`memory`]. Deliberately absent: any rule of the protocol.
//!
//! **Contract of every backend** (the conformance suite checks it):
//! - A batch is applied whole or not at all, and it is durable (power loss included) before `write` answers `Ok`.
//! - Its conditions are checked against everything that was applied before it; where one does not hold nothing
//!   is applied and the answer is [`StoreError::Conflict`]. Conditions fence: of two writers that believe that they
//!   own one group, the second to write loses.
//! - Batches of one lane (see [`Batch::low_priority`]) are applied in the order in which `write` was called (not polled).
//! - A read sees every batch that was answered before it started, and nothing that is not durable: one that meets
//!   what is being written waits for it.
//! - [`StoreError::Unavailable`] from `write` means that the outcome is unknown; from then on every write is refused
//!   with [`StoreError::ReadOnly`] until the process starts anew. Where it was a read of the disk that failed, for a
//!   condition, nothing was applied and the store goes on.
//! - **Overflow**: what waits to be written is bounded (`writer` has the numbers). Where the bound is reached `write`
//!   answers [`StoreError::Busy`] and promises that nothing was applied. Batches that the same caller queued behind
//!   it may still be applied unless their conditions fence them.
//!
//! From the top down: `reader` answers reads, `writer` is the one thread that writes (`spread`: large snapshots; `tee`: a
//! copy while it writes, [`backup`]: what is made of that), `plan` and `stage` are what a batch means in keys, `damage` knows which records cannot be read,
//! `links` chains the records of a log,
//! `reserve` keeps room on the disk, `keys` maps records to keys and values, `engine` is the seam
//! to `sled`, `fjall` (`folder`: what both have around a database) and [`memory`], [`faults`] breaks an engine on purpose.

pub mod ahead;
pub mod backup;
pub mod copy;
mod damage;
mod engine;
pub mod faults;
mod fjall;
mod folder;
#[cfg(fuzzing)]
pub mod fuzzing;
mod histograms;
mod keys;
pub mod links;
pub mod memory;
mod plan;
mod reader;
pub mod records;
mod reserve;
mod sled;
mod spread;
mod stage;
mod tee;
pub mod verify;
pub(crate) mod writer;

#[cfg(test)]
mod ahead_tests;
#[cfg(test)]
mod backup_tests;
#[cfg(test)]
mod conformance;

use std::{
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

pub use tee::{Piece, Record};
use tokio::sync::mpsc;

use crate::wire::ids::{
    ClientUri, Domain, Epoch, GroupId, KeyPackageRef, RecipientId, Sequence, UserUri,
};
pub use damage::DamagedByKind;
pub use folder::make_folder;
pub use histograms::Histograms;
use records::{
    Account, ConsentHash, Departure, Device, FeedEntry, Followed, FollowedMember, GroupHead,
    GroupNotice, InboxItem, InboxKey, Leaver, LogRecord, Moves, OutboundRoster, OwnEntry,
    OwnSequence, QueueHead, RefusedNonce, Replica, StoredKeyPackage, Subscription, TokenId,
    TokenRecord,
};

/// A handle on the node's store, shared by all actors.
pub type SharedStore = Arc<dyn Store>;

/// The answer of a store, later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A condition of the batch did not hold; nothing was applied. `condition` is its index.
    #[error("condition {condition} of the batch does not hold")]
    Conflict { condition: usize },
    /// The outcome of a write is unknown, or a read failed.
    #[error("the store failed: {0}")]
    Unavailable(String),
    /// An earlier write failed: the node answers reads only.
    #[error("the store is read-only since an earlier failure: {0}")]
    ReadOnly(String),
    /// The disk has less room than is kept free. Nothing was applied; the caller may try again when there is room.
    #[error("the store has no room: {0}")]
    Full(String),
    /// Too much waits to be written already. Nothing was applied; the caller may try again later.
    #[error("the store is busy: too much waits to be written")]
    Busy,
    /// A record is not what was written. `what` names it for the operator. Only what it belongs to is concerned: reads over
    /// what belongs to many pass over it, and what was said of it in the log is not repeated.
    #[error("a stored record cannot be read: {what}")]
    Corrupt { what: String },
}

impl StoreError {
    /// What names a damaged record both in the log and to whoever is refused for it.
    #[must_use]
    pub fn reference(&self) -> String {
        hex::encode(&crate::crypto::sha256(self.to_string().as_bytes())[..8])
    }
}

/// For who looks through what belongs to many: what rests on a damaged record, which the log has named, is left out.
///
/// # Errors
/// Every other [`StoreError`].
pub fn unless_damaged<T: Default>(one: Result<T, StoreError>) -> Result<T, StoreError> {
    match one {
        Err(StoreError::Corrupt { .. }) => Ok(T::default()),
        one => one,
    }
}

/// How much a range read may return: it ends at whichever is reached first, but returns at least one item
/// where there is one.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    pub items_max: usize,
    pub bytes_max: usize,
}

/// A page of what waits in an inbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Left {
    pub items: Vec<(InboxKey, InboxItem)>,
    /// Whether there is something behind these.
    pub more: bool,
}

/// Who has left something in an inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeftBy {
    Group(GroupId),
    /// A provider or its users, for the client alone.
    Provider(Domain),
    /// Whatever else may; also providers, before what each had left was told apart.
    Other,
}

/// What of an inbox one of those has left there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxUse {
    pub by: LeftBy,
    pub items: usize,
    /// Of the items as they are stored.
    pub bytes: usize,
}

/// What must hold for a batch to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// No group of this id was ever here.
    GroupUnknown(GroupId),
    /// The group's head is here with this `next_sequence` and this `revision`.
    GroupAt {
        group: GroupId,
        next_sequence: Sequence,
        revision: u64,
    },
    AccountAbsent(UserUri),
    DeviceAbsent(ClientUri),
    /// The account is here with this `revision` (it goes up by one at each change).
    AccountAt {
        user: UserUri,
        revision: u64,
    },
    /// The client holds this KeyPackage: it was published and neither claimed nor removed.
    KeyPackageHeld {
        client: ClientUri,
        key_package: KeyPackageRef,
    },
    /// The client's queue head has this `revision`; 0 where there is none.
    QueueAt {
        client: ClientUri,
        revision: u64,
    },
    /// The token record has this `revision`; 0 where there is none.
    TokenAt {
        token: TokenId,
        revision: u64,
    },
    /// What is left for `peer` of the group goes up to `until` and no further.
    OutboundAt {
        peer: Domain,
        group: GroupId,
        until: Sequence,
    },
}

/// One change of one record.
#[derive(Debug, Clone)]
pub enum Write {
    /// The group's head: always the last word on where its log, snapshots and feed stand.
    GroupHead(GroupHead),
    /// Appends to the group's log. There is one record per accepted message, whatever the group's size.
    Log {
        group: GroupId,
        record: LogRecord,
    },
    /// A whole snapshot of the group's state, chunked by the backend. Low priority: see [`Batch::low_priority`].
    Snapshot {
        group: GroupId,
        at: Sequence,
        bytes: Vec<u8>,
    },
    DropSnapshot {
        group: GroupId,
        at: Sequence,
    },
    /// GroupInfo and tree of one epoch, for joiners who come later than every snapshot that holds it.
    JoinerInfo {
        group: GroupId,
        epoch: Epoch,
        bytes: Vec<u8>,
    },
    DropJoinerInfo {
        group: GroupId,
        epoch: Epoch,
    },
    /// Drops the log in `from..until`.
    TrimLog {
        group: GroupId,
        from: Sequence,
        until: Sequence,
    },
    /// Drops everything of a group but its head (its notices too).
    DropGroup(GroupId),
    /// Drops the head: the group was never here. Only of copies, with the rest of them; a hosted group's id stays used.
    DropGroupHead(GroupId),
    /// Leaves something for a group; its actor takes it from there with [`Store::group_notices`].
    GroupNotice {
        group: GroupId,
        key: [u8; 16],
        notice: GroupNotice,
    },
    GroupNoticeTaken {
        group: GroupId,
        key: [u8; 16],
    },

    /// A group hosted elsewhere; its head and log are written as a hosted group's.
    Followed {
        group: GroupId,
        followed: Followed,
    },
    /// Drops the record and all of the group's members here; head and log stay.
    DropFollowed(GroupId),
    FollowedMember {
        group: GroupId,
        member: FollowedMember,
    },
    DropFollowedMember {
        group: GroupId,
        recipient: RecipientId,
    },

    /// A group on its way to another provider.
    Departure(Departure),
    DropDeparture(GroupId),
    /// A group's moves; they stay when the group is dropped.
    Moves {
        group: GroupId,
        moves: Moves,
    },
    DropMoves(GroupId),
    /// A nonce of this provider's that no group comes in by, for as long as it might.
    RefusedNonce {
        nonce: [u8; 32],
        refused: RefusedNonce,
    },
    DropRefusedNonce([u8; 32]),

    /// There is something of a hosted group for `peer`, up to `until`: written with what it is about.
    Outbound {
        peer: Domain,
        group: GroupId,
        until: Sequence,
    },
    /// `peer` has it all; see [`Condition::OutboundAt`].
    OutboundDone {
        peer: Domain,
        group: GroupId,
    },
    OutboundRoster {
        peer: Domain,
        group: GroupId,
        row: OutboundRoster,
    },
    /// Drops roster rows up to and including `until`.
    TrimOutboundRoster {
        peer: Domain,
        group: GroupId,
        until: Sequence,
    },
    Replica {
        peer: Domain,
        group: GroupId,
        replica: Replica,
    },
    DropReplica {
        peer: Domain,
        group: GroupId,
    },

    /// Leaves something for a client's queue; its owner takes it from there with [`Store::inbox`]. With the end of a membership
    /// its [`Leaver`] is written, which goes with the subscription.
    Inbox {
        client: ClientUri,
        key: InboxKey,
        item: InboxItem,
    },
    InboxTaken {
        client: ClientUri,
        key: InboxKey,
    },
    QueueHead {
        client: ClientUri,
        head: QueueHead,
    },
    /// Appends to the client's own feed (feed 0).
    Own {
        client: ClientUri,
        entry: OwnEntry,
    },
    /// Drops the client's own feed up to and including `until`.
    TrimOwn {
        client: ClientUri,
        until: OwnSequence,
    },
    Subscription {
        client: ClientUri,
        subscription: Subscription,
    },
    /// As what [`Write::Subscription`] wrote: one membership has one feed.
    DropSubscription {
        client: ClientUri,
        feed: crate::wire::ids::FeedId,
        group: GroupId,
        recipient: RecipientId,
    },
    /// It is owed nothing any more, or has no subscription that would say so.
    DropLeaver {
        group: GroupId,
        recipient: RecipientId,
    },
    /// Drops everything of a client's queue, KeyPackages and inbox.
    DropQueue(ClientUri),

    Account {
        user: UserUri,
        account: Account,
    },
    Device {
        client: ClientUri,
        device: Device,
    },
    KeyPackage {
        client: ClientUri,
        key_package: StoredKeyPackage,
    },
    DropKeyPackage {
        client: ClientUri,
        key_package: KeyPackageRef,
    },
    Token {
        token: TokenId,
        record: TokenRecord,
    },
    Consent {
        user: UserUri,
        token: ConsentHash,
    },
    DropConsent {
        user: UserUri,
        token: ConsentHash,
    },
    /// A small named record of the node itself (keys' generations, the creation time); see `server`.
    Node {
        name: &'static str,
        bytes: Vec<u8>,
    },
}

/// Changes that become visible and durable together.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub conditions: Vec<Condition>,
    pub writes: Vec<Write>,
    /// Snapshots go in a lane of their own, so that a large group never stands before everyone's commits: behind what
    /// waits in the normal lane, in order among themselves, a large one over several flushes (visible all at once).
    pub low_priority: bool,
    /// Where the writer says when this one was where; for whoever wants to know where the time goes.
    pub times: Option<Arc<WriteTimes>>,
}

/// When a batch was where on its way to the disk. Complete before the batch is answered.
#[derive(Debug, Default)]
pub struct WriteTimes {
    applied: OnceLock<Instant>,
    durable: OnceLock<Instant>,
}

impl WriteTimes {
    /// When the writer had taken it and handed it to the engine.
    #[must_use]
    pub fn applied(&self) -> Option<Instant> {
        self.applied.get().copied()
    }

    /// When its flush was done.
    #[must_use]
    pub fn durable(&self) -> Option<Instant> {
        self.durable.get().copied()
    }
}

impl Batch {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A batch for the low-priority lane.
    #[must_use]
    pub fn low_priority() -> Self {
        Self { low_priority: true, ..Self::default() }
    }

    #[must_use]
    pub fn when(mut self, condition: Condition) -> Self {
        self.conditions.push(condition);
        self
    }

    #[must_use]
    pub fn and(mut self, write: Write) -> Self {
        self.writes.push(write);
        self
    }

    pub fn push(&mut self, write: Write) {
        self.writes.push(write);
    }
}

/// The store of one node.
pub trait Store: Send + Sync + 'static {
    /// Queues `batch` behind all earlier ones **at the call**; the answer comes when it is durable.
    fn write(&self, batch: Batch) -> Answer<'static, ()>;

    fn group_head(&self, group: &GroupId) -> Answer<'_, Option<GroupHead>>;
    /// Heads of all groups in key order, behind `after`.
    fn group_heads(&self, after: Option<&GroupId>, items_max: usize) -> Answer<'_, Vec<GroupHead>>;
    /// Log records from `from` on, with what replay needs.
    fn log(&self, group: &GroupId, from: Sequence, page: Page) -> Answer<'_, Vec<LogRecord>>;
    /// The same records as a queue sees them.
    fn feed(&self, group: &GroupId, from: Sequence, page: Page) -> Answer<'_, Vec<FeedEntry>>;
    fn snapshot(&self, group: &GroupId, at: Sequence) -> Answer<'_, Option<Vec<u8>>>;
    fn joiner_info(&self, group: &GroupId, epoch: Epoch) -> Answer<'_, Option<Vec<u8>>>;

    /// What is left for `group`, in key order behind `after`.
    fn group_notices(
        &self,
        group: &GroupId,
        after: Option<&[u8; 16]>,
        items_max: usize,
    ) -> Answer<'_, Vec<([u8; 16], GroupNotice)>>;
    /// Groups that something is left for, in key order behind `after`: read once at start.
    fn groups_with_notices(
        &self,
        after: Option<&GroupId>,
        items_max: usize,
    ) -> Answer<'_, Vec<GroupId>>;

    fn followed(&self, group: &GroupId) -> Answer<'_, Option<Followed>>;
    fn followed_member(
        &self,
        group: &GroupId,
        recipient: RecipientId,
    ) -> Answer<'_, Option<FollowedMember>>;
    /// Clients of this provider in a followed group by their number, behind `after`.
    fn followed_members(
        &self,
        group: &GroupId,
        after: Option<RecipientId>,
        items_max: usize,
    ) -> Answer<'_, Vec<FollowedMember>>;

    fn departure(&self, group: &GroupId) -> Answer<'_, Option<Departure>>;
    /// Groups that are on their way to another provider, in key order behind `after`.
    fn departures(&self, after: Option<&GroupId>, items_max: usize) -> Answer<'_, Vec<Departure>>;
    fn moves(&self, group: &GroupId) -> Answer<'_, Option<Moves>>;
    /// Groups that have moved, in key order behind `after`, with their moves.
    fn all_moves(
        &self,
        after: Option<&GroupId>,
        items_max: usize,
    ) -> Answer<'_, Vec<(GroupId, Moves)>>;
    /// A nonce that was refused, for as long as that is remembered.
    fn refused_nonce(&self, nonce: &[u8; 32]) -> Answer<'_, Option<RefusedNonce>>;
    /// Nonces that are refused, in order behind `after`.
    fn refused_nonces(
        &self,
        after: Option<&[u8; 32]>,
        items_max: usize,
    ) -> Answer<'_, Vec<([u8; 32], RefusedNonce)>>;

    /// Peers that something is left for, in key order behind `after`.
    fn outbound_peers(&self, after: Option<&Domain>, items_max: usize) -> Answer<'_, Vec<Domain>>;
    /// Groups that something is left of for `peer`, in key order behind `after`, each with its last sequence.
    fn outbound(
        &self,
        peer: &Domain,
        after: Option<&GroupId>,
        items_max: usize,
    ) -> Answer<'_, Vec<(GroupId, Sequence)>>;
    fn outbound_at(&self, peer: &Domain, group: &GroupId) -> Answer<'_, Option<Sequence>>;
    /// Roster rows from `from` on, in order.
    fn outbound_roster(
        &self,
        peer: &Domain,
        group: &GroupId,
        from: Sequence,
        page: Page,
    ) -> Answer<'_, Vec<OutboundRoster>>;
    fn replica(&self, peer: &Domain, group: &GroupId) -> Answer<'_, Option<Replica>>;
    /// Peers with a [`Replica`] of any group, in key order behind `after`.
    fn replica_peers(&self, after: Option<&Domain>, items_max: usize) -> Answer<'_, Vec<Domain>>;
    /// The first of a peer's replicas, in no order that means anything.
    fn replicas(&self, peer: &Domain, items_max: usize) -> Answer<'_, Vec<Replica>>;

    /// The first that waits there, in key order.
    fn inbox(&self, client: &ClientUri, page: Page) -> Answer<'_, Left>;
    /// How much waits there, by who left it; none where that is `items_max` items or more, or more than `bytes_max` bytes.
    /// It looks no further than to there, and at sizes alone.
    fn inbox_use(&self, client: &ClientUri, most: Page) -> Answer<'_, Option<Vec<InboxUse>>>;
    /// Whether something waits there under `key`.
    fn is_left(&self, client: &ClientUri, key: &InboxKey) -> Answer<'_, bool>;
    fn queue_head(&self, client: &ClientUri) -> Answer<'_, Option<QueueHead>>;
    fn own(&self, client: &ClientUri, from: OwnSequence, page: Page) -> Answer<'_, Vec<OwnEntry>>;
    /// Bytes of the client's own entries from `from` on, as they are stored; none where they are more than `bytes_max`. It
    /// looks no further than to there, and at sizes alone.
    fn own_bytes(
        &self,
        client: &ClientUri,
        from: OwnSequence,
        bytes_max: usize,
    ) -> Answer<'_, Option<usize>>;
    fn subscriptions(&self, client: &ClientUri) -> Answer<'_, Vec<Subscription>>;
    /// The membership of `client` as `recipient` of `group`, however many others it has. What was written before there
    /// was an index is found once it is written again.
    fn subscription_to(
        &self,
        client: &ClientUri,
        group: &GroupId,
        recipient: RecipientId,
    ) -> Answer<'_, Option<Subscription>>;
    /// Who has left `group` and may still have to read of it, by recipient behind `after`.
    fn leavers(
        &self,
        group: &GroupId,
        after: Option<RecipientId>,
        items_max: usize,
    ) -> Answer<'_, Vec<Leaver>>;

    fn account(&self, user: &UserUri) -> Answer<'_, Option<Account>>;
    fn device(&self, client: &ClientUri) -> Answer<'_, Option<Device>>;
    /// Whose queue this is: of every device that was ever written, deleted ones included.
    fn client_of_queue(&self, queue: &[u8; 16]) -> Answer<'_, Option<ClientUri>>;
    /// All KeyPackages of a client, oldest first, at most `items_max`.
    fn key_packages(
        &self,
        client: &ClientUri,
        items_max: usize,
    ) -> Answer<'_, Vec<StoredKeyPackage>>;
    fn token(&self, token: &TokenId) -> Answer<'_, Option<TokenRecord>>;
    fn has_consent(&self, user: &UserUri, token: &ConsentHash) -> Answer<'_, bool>;
    fn consent_count(&self, user: &UserUri, items_max: usize) -> Answer<'_, usize>;
    fn node(&self, name: &'static str) -> Answer<'_, Option<Vec<u8>>>;

    /// Begins a copy of everything as of one flush, and writes go on. What comes is to be taken without long pauses: where far
    /// too much has changed meanwhile, and where the store fails, it ends without [`Piece::End`].
    ///
    /// # Errors
    /// [`StoreError::Busy`]: another copy is being made. [`StoreError::ReadOnly`]
    fn copy(&self) -> Result<mpsc::Receiver<Piece>, StoreError>;

    /// What an operator sees: counters since the process started.
    fn stats(&self) -> StoreStats;
    /// The same as distributions; clones of those that are counted in.
    fn histograms(&self) -> Histograms;
    /// Records that were found since the start and cannot be read. Each is in the log once.
    fn damaged(&self) -> DamagedByKind;
    /// How long what was written last had waited for its turn, beyond the flush that was under way; nothing where nothing waits. Cheap.
    fn queue_delay(&self) -> Duration;
    /// Grows with each flush, and each other turn of the writer. `None` where nothing waits for it, and where it has ended.
    fn turn(&self) -> Option<u64>;
    /// Whether writes are taken; the reason where they are not.
    fn writable(&self) -> Result<(), String>;
    /// Whether what grows is taken, as far as that is up to the disk's room; the reason where it is not.
    fn room(&self) -> Result<(), String>;
    /// From now on, what grows is refused where less than `bytes_min` are free on the disk; see `reserve`. 0: never.
    fn keep_free(&self, bytes_min: u64);
    /// Waits for what is queued, makes it durable and stops. Later writes are refused.
    fn close(&self) -> Answer<'static, ()>;
}

/// Counters since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Batches that were applied and answered.
    pub batches: u64,
    /// Flushes: each makes one or many batches durable.
    pub flushes: u64,
    /// Time from handing a group of batches to the engine until they were durable.
    pub flush_us_total: u64,
    /// The [`Write`]s in those batches.
    pub writes: u64,
    /// Keys and values handed to the engine.
    pub bytes_written: u64,
    /// Reads that the engine could not do; those of damaged records are not among them.
    pub read_failures: u64,
    pub bytes_on_disk: u64,
    /// Free on the disk, where some of it is to be kept free.
    pub disk_free_bytes: Option<u64>,
    /// Batches that wait or are being written.
    pub batches_waiting: u64,
}

/// Where a node's store is.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// `sled`, `fjall`, or `memory`, which forgets everything when the process ends.
    pub engine: String,
    /// A folder of the store's own, made (0700) where it is missing. Not used by `memory`.
    pub folder: PathBuf,
    /// What the engine may keep in memory of what is on disk.
    pub cache_bytes: u64,
}

/// Why a store cannot be opened, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "there is no store engine {0:?}: use \"sled\" or \"fjall\", or \"memory\" for a node that forgets everything"
    )]
    UnknownEngine(String),
    #[error("cannot {what} {}: {error}. Check that the folder exists on a disk with free space and \
             belongs to the user that mimid runs as", path.display())]
    Folder { what: &'static str, path: PathBuf, error: std::io::Error },
    #[error("the store in {} is in use by another process: stop it first, or give this one a data \
             folder of its own", path.display())]
    InUse { path: PathBuf },
    #[error("the store in {} is one of the engine {found}, not {wanted}: set store.engine to \"{found}\", or make a copy \
             for {wanted} with `mimid store copy`", path.display())]
    OtherEngine { path: PathBuf, found: &'static str, wanted: &'static str },
    #[error("the database in {} cannot be opened: {reason}. If this stays so, restore the folder from a backup; \
             nothing in it was changed", path.display())]
    Engine { path: PathBuf, reason: String },
    #[error("the database in {folder} has lost what it had answered for: it ends at write {database}, but write \
             {marked} had been made durable. Restore {folder} from a backup that is whole, or, to go on \
             without what is lost, remove {mark} and start again", folder = folder.display(), mark = mark.display())]
    Behind { folder: PathBuf, mark: PathBuf, database: u64, marked: u64 },
    #[error("{} cannot be read, so it is not known whether the database beside it is whole. Restore the folder from \
             a backup, or, if you know that it is whole, remove this file and start again", path.display())]
    MarkDamaged { path: PathBuf },
    #[error("the record of the last write in {} cannot be read: {reason}. Was it written by a newer mimid?",
            path.display())]
    Record { path: PathBuf, reason: String },
}

/// Opens the store that `config` names, or makes a new one. It blocks while the database recovers.
///
/// # Errors
/// [`OpenError`], whose text tells an operator what to do.
pub fn open(config: &StoreConfig) -> Result<SharedStore, OpenError> {
    match config.engine.as_str() {
        sled::NAME => Ok(sled::open(&config.folder, config.cache_bytes)?),
        fjall::NAME => Ok(fjall::open(&config.folder, config.cache_bytes)?),
        "memory" => memory::Disk::new().open(),
        _ => Err(OpenError::UnknownEngine(config.engine.clone())),
    }
}
