//! The Queueing Service: what a hub hands to it and what a client gets from it. PROTOCOL.md §3; DS §6.

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{List, Opaque};
use super::ds::{CommitComplaint, FanoutFilter, REQUEST_BYTES_MAX};
use super::extensions::QueueToken;
use super::ids::{Domain, Epoch, FeedId, GroupId, RecipientId, Sequence, Timestamp};
use super::key_packages::SealedOffer;
use super::mls::MlsMessage;
use super::portability::MigrationConfirmation;

/// Items in one [`DeliverBatchRequest`].
pub const BATCH_ITEMS_MAX: usize = 1_000;
/// Changes of the roster in one [`DeliveryItem`]: more clients than one provider has in a group.
pub const ROSTER_CHANGES_MAX: usize = 65_536;
pub type RosterChanges = List<RosterChange, REQUEST_BYTES_MAX, ROSTER_CHANGES_MAX>;

/// DS §6.1: one message for one client.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct QueueingServiceRequest {
    pub client_queue_information: QueueToken,
    pub message: MlsMessage,
}

/// DS §6.1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum QueueingServiceResponse {
    Ok = 0,
    InvalidClientQueueInformation = 1,
    QueueFull = 2,
    Blocked = 3,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum DeliveryItem {
    #[tls_codec(discriminant = 0)]
    Feed {
        group_id: GroupId,
        group_sequence: Sequence,
        accepted_at: Timestamp,
        except: Option<RecipientId>,
        event: QueueEvent,
        roster: RosterChanges,
    },
    #[tls_codec(discriminant = 1)]
    Direct { item_id: [u8; 16], client_queue_information: QueueToken, event: QueueEvent },
    #[tls_codec(discriminant = 2)]
    Snapshot {
        group_id: GroupId,
        next_sequence: Sequence,
        chain: List<MigrationConfirmation, 65536>,
        roster: RosterChanges,
    },
}

/// `recipient` first on the wire would follow the action; the action is the enum's discriminant.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum RosterChange {
    #[tls_codec(discriminant = 0)]
    Add {
        recipient: RecipientId,
        client_queue_information: QueueToken,
        filter: FanoutFilter,
        welcome: Option<MlsMessage>,
    },
    #[tls_codec(discriminant = 1)]
    Remove { recipient: RecipientId },
    #[tls_codec(discriminant = 2)]
    Update { recipient: RecipientId, client_queue_information: QueueToken, filter: FanoutFilter },
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct DeliverBatchRequest {
    pub items: List<DeliveryItem, REQUEST_BYTES_MAX, BATCH_ITEMS_MAX>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum DeliveryProblem {
    UnknownFeed = 0,
    Gap = 1,
    WrongHub = 2,
    InvalidItem = 3,
    InvalidClientQueueInformation = 4,
    QueueFull = 5,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct DeliveryFailure {
    /// Index into the batch.
    pub item: u32,
    pub problem: DeliveryProblem,
    pub recipient: RecipientId,
    pub next_sequence: Sequence,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct DeliverBatchResponse {
    pub failures: List<DeliveryFailure, REQUEST_BYTES_MAX>,
}

/// A guest tells a group's hub of clients of its own whose queues are gone, before the hub's next delivery would
/// (whose answer says so again, until they are removed).
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct RecipientsGone {
    pub group_id: GroupId,
    pub recipients: List<RecipientId, 8192>,
}

/// What a queue entry says.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum QueueEvent {
    #[tls_codec(discriminant = 0)]
    MlsMessage { message: MlsMessage },
    #[tls_codec(discriminant = 1)]
    Welcome { hub_domain: Domain, welcome: MlsMessage },
    #[tls_codec(discriminant = 2)]
    ConnectionRequest { sender_domain: Domain, offer: SealedOffer },
    #[tls_codec(discriminant = 3)]
    GroupDeleted,
    #[tls_codec(discriminant = 4)]
    GroupMoved { confirmation: MigrationConfirmation },
    #[tls_codec(discriminant = 5)]
    Removed,
    /// Older entries expired: resync. `next_available` is the first sequence that is still there.
    #[tls_codec(discriminant = 6)]
    Gap { next_available: Sequence },
    #[tls_codec(discriminant = 7)]
    KeyPackagesLow { left: u32 },
    #[tls_codec(discriminant = 8)]
    RosterOnly,
    /// The commit at `group_sequence` is void, and with it `epoch`, which it began: the group is in the epoch before again.
    #[tls_codec(discriminant = 9)]
    EpochVoid {
        epoch: Epoch,
        group_sequence: Sequence,
        complaints: List<CommitComplaint, REQUEST_BYTES_MAX>,
    },
}

/// One entry of a client's queue. `previous` names the sequence that the client got before in this feed.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct QueueEntry {
    pub feed: FeedId,
    /// The hub's group_sequence; in feed 0 the Queueing Service's own.
    pub sequence: Sequence,
    pub previous: Sequence,
    pub accepted_at: Timestamp,
    /// Empty in feed 0, except for Welcomes.
    pub group_id: Opaque<255>,
    pub event: QueueEvent,
}

/// Cumulative: everything of `feed` up to and including `sequence` was received and is safe.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct FeedAck {
    pub feed: FeedId,
    pub sequence: Sequence,
}
