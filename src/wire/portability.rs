//! The structs of a group's move from one provider to another. PROTOCOL.md §6; PO.
//!
//! Each signed struct gives the bytes that its signature is over: the struct without the signature, its additions behind
//! what PO has. Who signs and what is checked is in `migration`.

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{List, Opaque, encode};
use super::ds::{Accepted, DsSenderId, FanoutFilter, INFO_BYTES_MAX, Info};
use super::extensions::{ClientQueueConfig, Signature};
use super::ids::{
    Domain, Epoch, GroupId, KeyPackageRef, LeafIndex, RecipientId, RequestId, Sequence, Timestamp,
};
use super::mls::{ExternalSender, GroupInfo, MlsMessage, RatchetTree};
use super::queueing::DeliveryItem;

/// Largest exported group, in bytes.
pub const GROUP_STATE_BYTES_MAX: usize = INFO_BYTES_MAX;
/// Largest [`MigrationContent`].
pub const CONTENT_BYTES_MAX: usize = GROUP_STATE_BYTES_MAX + 4_096;

/// The confirmations of a group's moves, oldest first: from the provider in its id to the one that hosts it.
pub type Chain = List<MigrationConfirmation, CHAIN_BYTES_MAX>;
/// Largest [`Chain`], in bytes: some hundred moves away from home.
pub const CHAIN_BYTES_MAX: usize = 65_536;

/// A client asks the provider that a group is to move to.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct MigrationRequest {
    pub source_domain_name: Domain,
    pub target_domain_name: Domain,
    pub group_id: GroupId,
    /// The epoch that the Commit is made in.
    pub epoch: Epoch,
    /// Of the group: it says which of its keys the target answers with.
    pub ciphersuite: u16,
}

/// The target agrees to host the group, once, until `expires_at`. Signed by `target_sender`'s key.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct MigrationResponse {
    pub migration_request: MigrationRequest,
    pub nonce: [u8; 32],
    pub signature: Signature,
    pub expires_at: Timestamp,
    /// What the Commit puts into the place of the source's external sender.
    pub target_sender: ExternalSender,
}

#[derive(TlsSize, TlsSerialize)]
struct MigrationResponseTbs {
    migration_request: MigrationRequest,
    nonce: [u8; 32],
    expires_at: Timestamp,
    target_sender: ExternalSender,
}

impl MigrationResponse {
    pub const LABEL: &'static str = "MigrationResponseTBS";

    /// The bytes that [`Self::signature`] is over.
    #[must_use]
    pub fn to_be_signed(&self) -> Vec<u8> {
        encode(&MigrationResponseTbs {
            migration_request: self.migration_request.clone(),
            nonce: self.nonce,
            expires_at: self.expires_at,
            target_sender: self.target_sender.clone(),
        })
    }
}

/// Signed by the initiator's leaf key.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct MigrationInit {
    pub migration_response: MigrationResponse,
    pub signature: Signature,
}

impl MigrationInit {
    pub const LABEL: &'static str = "MigrationInitTBS";

    /// The bytes that [`Self::signature`] is over.
    #[must_use]
    pub fn to_be_signed(&self) -> Vec<u8> {
        encode(&self.migration_response)
    }
}

/// The `authenticated_data` of the Commit that moves a group.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct MigrationCommitAad {
    pub target_ds_domain: Domain,
}

/// The whole group, from the source to the target. Signed by the source's key in the group before the Commit.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct MigrationContent {
    pub migration_response: MigrationResponse,
    /// An encoded [`MigratedState`].
    pub group_state: Opaque<GROUP_STATE_BYTES_MAX>,
    pub signature: Signature,
}

impl MigrationContent {
    pub const LABEL: &'static str = "MigrationContentTBS";

    /// The bytes that a content's signature is over.
    #[must_use]
    pub fn to_be_signed(response: &MigrationResponse, group_state: &[u8]) -> Vec<u8> {
        let mut bytes = encode(response);
        super::codec::append_vector(&mut bytes, group_state);
        bytes
    }
}

/// The target's word, signed by `target_sender`'s key: it is the hub from now on, or (`refused` is 1) never takes this
/// nonce.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct TargetMigrationComplete {
    /// SHA-256 of the [`MigrationContent`] that was taken; of a refusal, of the [`MigrationResponse`].
    pub migration_content_hash: Opaque<32, 32>,
    pub signature: Signature,
    pub refused: u8,
}

#[derive(TlsSize, TlsSerialize)]
struct TargetMigrationCompleteTbs {
    migration_content_hash: Opaque<32, 32>,
    refused: u8,
}

impl TargetMigrationComplete {
    pub const LABEL: &'static str = "TargetMigrationCompleteTBS";

    /// The bytes that [`Self::signature`] is over.
    #[must_use]
    pub fn to_be_signed(&self) -> Vec<u8> {
        encode(&TargetMigrationCompleteTbs {
            migration_content_hash: self.migration_content_hash.clone(),
            refused: self.refused,
        })
    }
}

/// The source's word that the group has moved, signed by its key in the group before the Commit.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct MigrationConfirmation {
    /// The target.
    pub domain_name: Domain,
    pub nonce: [u8; 32],
    pub group_id: GroupId,
    pub signature: Signature,
    pub source_domain: Domain,
    /// The first epoch at the target.
    pub epoch: Epoch,
    /// The first sequence that the target gives.
    pub next_sequence: Sequence,
}

#[derive(TlsSize, TlsSerialize)]
struct MigrationConfirmationTbs {
    domain_name: Domain,
    nonce: [u8; 32],
    group_id: GroupId,
    source_domain: Domain,
    epoch: Epoch,
    next_sequence: Sequence,
}

impl MigrationConfirmation {
    pub const LABEL: &'static str = "MigrationConfirmationTBS";

    /// The bytes that [`Self::signature`] is over.
    #[must_use]
    pub fn to_be_signed(&self) -> Vec<u8> {
        encode(&MigrationConfirmationTbs {
            domain_name: self.domain_name.clone(),
            nonce: self.nonce,
            group_id: self.group_id.clone(),
            source_domain: self.source_domain.clone(),
            epoch: self.epoch,
            next_sequence: self.next_sequence,
        })
    }
}

/// What a hub keeps of a member beside its leaf.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct MemberState {
    pub leaf_index: LeafIndex,
    pub recipient: RecipientId,
    pub config: ClientQueueConfig,
    pub filter: FanoutFilter,
    pub queue_timestamp: Timestamp,
    pub last_active: Timestamp,
    /// The sequence that made it a member.
    pub since: Sequence,
}

/// Who was added and has not been heard of.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct JoinerState {
    pub key_package_ref: KeyPackageRef,
    pub leaf_index: LeafIndex,
    /// The epoch in which it was added.
    pub epoch: Epoch,
    /// The end of its KeyPackage's lifetime.
    pub not_after: Timestamp,
}

/// What was accepted of late, so that a retry is not done twice.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct AcceptedState {
    pub sender_id: DsSenderId,
    pub request_id: RequestId,
    pub accepted: Accepted,
    /// 1 for commits, which are remembered by epochs.
    pub commit: u8,
}

/// A group as it is behind the Commit that moves it: `group_state`, PROTOCOL.md §6.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct MigratedState {
    pub init: MigrationInit,
    pub commit: MlsMessage,
    pub group_info: GroupInfo,
    pub ratchet_tree: RatchetTree,
    /// The first sequence that the target gives.
    pub next_sequence: Sequence,
    pub next_recipient: RecipientId,
    pub members: List<MemberState, GROUP_STATE_BYTES_MAX>,
    pub joiners: List<JoinerState, GROUP_STATE_BYTES_MAX>,
    /// Of each epoch before this one that a joiner waits in.
    pub joiner_infos: List<Info, GROUP_STATE_BYTES_MAX>,
    pub accepted: List<AcceptedState, GROUP_STATE_BYTES_MAX>,
    /// What the target, where it is a guest of the group, has not got of the feed yet; up to the Commit.
    pub tail: List<DeliveryItem, GROUP_STATE_BYTES_MAX>,
    /// The moves before this one.
    pub chain: Chain,
}
