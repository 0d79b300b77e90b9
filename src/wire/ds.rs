//! Messages to the Delivery Service and its answers. PROTOCOL.md §2; DS §2.4, §2.5, §3, §4.

use serde::{Deserialize, Serialize};
use tls_codec::{DeserializeBytes, Error, Size, TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{List, Opaque, ShortOpaque, Text, encode};
use super::extensions::{ClientQueueConfig, JoinProof, PublicKey, Signature, UserKey};
use super::ids::{
    Domain, Epoch, GroupId, KeyPackageRef, LeafIndex, RequestId, Sequence, Timestamp, UserKeyHash,
};
use super::mls::{Credential, Extension, GroupInfo, KeyPackage, MlsMessage, RatchetTree};
use super::portability::{MigrationConfirmation, MigrationInit};

/// Largest handshake message, Welcome or other request, in bytes.
pub const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest application message, in bytes.
pub const APPLICATION_BYTES_MAX: usize = 256 * 1024;
/// Largest info answer, in bytes.
pub const INFO_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Handshake messages in one error, in bytes.
pub const MISSED_BYTES_MAX: usize = 1024 * 1024;

/// The version of this protocol. Unknown versions decode, so that the answer can say which ones are spoken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ProtocolVersion(pub u16);

impl ProtocolVersion {
    pub const MIMI10: Self = Self(1);
}

/// DS §2.4.
#[derive(
    Clone,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Serialize,
    Deserialize,
    TlsSize,
    TlsSerialize,
    TlsDeserializeBytes,
)]
#[repr(u8)]
pub enum DsSenderId {
    #[tls_codec(discriminant = 0)]
    LeafIndex(LeafIndex),
    #[tls_codec(discriminant = 1)]
    KeyPackageRef(KeyPackageRef),
    #[tls_codec(discriminant = 2)]
    UserKeyHash(UserKeyHash),
}

/// What ends replay, cross-hub and cross-group confusion: it is under the signature.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct DsContext {
    pub version: ProtocolVersion,
    pub hub_domain: Domain,
    pub group_id: GroupId,
    pub timestamp: Timestamp,
    pub request_id: RequestId,
}

/// A signed request to a hub. The signature is over [`DsMessageTbs`], label "DSMessageTBS".
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct DsMessage {
    pub sender_id: DsSenderId,
    pub request: DsRequest,
    pub signature: ShortOpaque,
    pub context: DsContext,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct DsMessageTbs {
    pub sender_id: DsSenderId,
    pub request: DsRequest,
    pub context: DsContext,
}

impl DsMessage {
    /// The bytes that [`DsMessage::signature`] is over.
    #[must_use]
    pub fn to_be_signed(&self) -> Vec<u8> {
        ds_message_tbs(&self.sender_id, &self.request, &self.context)
    }
}

/// The encoding of a [`DsMessageTbs`], without a copy of the request.
#[must_use]
pub fn ds_message_tbs(sender: &DsSenderId, request: &DsRequest, context: &DsContext) -> Vec<u8> {
    let mut bytes = super::codec::encode(sender);
    bytes.extend(super::codec::encode(request));
    bytes.extend(super::codec::encode(context));
    bytes
}

/// One request of each operation.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum DsRequest {
    #[tls_codec(discriminant = 0)]
    CreateGroup(Box<CreateGroup>),
    #[tls_codec(discriminant = 1)]
    DeleteGroup(DeleteGroup),
    #[tls_codec(discriminant = 2)]
    UpdateQueueInfo(UpdateQueueInfo),
    #[tls_codec(discriminant = 3)]
    WelcomeInfo(WelcomeInfo),
    #[tls_codec(discriminant = 4)]
    ExternalCommitInfo(ExternalCommitInfo),
    #[tls_codec(discriminant = 5)]
    AddUsers(Add),
    #[tls_codec(discriminant = 6)]
    RemoveUsers(GroupUpdate),
    #[tls_codec(discriminant = 7)]
    AddClients(Add),
    #[tls_codec(discriminant = 8)]
    RemoveClients(GroupUpdate),
    #[tls_codec(discriminant = 9)]
    UpdateClient(GroupUpdate),
    #[tls_codec(discriminant = 10)]
    ResyncClient(ResyncClient),
    #[tls_codec(discriminant = 11)]
    UpdateClientFanoutInfo(UpdateClientFanoutInfo),
    #[tls_codec(discriminant = 12)]
    SendMessage(SendMessage),
    #[tls_codec(discriminant = 13)]
    JoinGroup(JoinGroup),
    #[tls_codec(discriminant = 14)]
    Propose(Propose),
    #[tls_codec(discriminant = 15)]
    UpdateGroup(UpdateGroup),
    #[tls_codec(discriminant = 16)]
    StartMigration(Box<StartMigration>),
}

impl DsRequest {
    /// What [`Self::name`] is of the request in an encoded [`DsMessage`], without decoding that: it may still be none. None
    /// where it does not begin as one.
    #[must_use]
    pub fn name_in(message: &[u8]) -> Option<&'static str> {
        let (_sender, rest) = DsSenderId::tls_deserialize_bytes(message).ok()?;
        Self::NAMES.get(usize::from(*rest.first()?)).copied()
    }

    /// Every name that [`Self::name`] gives, in the order of the wire's numbers.
    pub const NAMES: [&'static str; 17] = [
        "create-group",
        "delete-group",
        "update-queue-info",
        "welcome-info",
        "external-commit-info",
        "add-users",
        "remove-users",
        "add-clients",
        "remove-clients",
        "update-client",
        "resync-client",
        "update-client-fanout-info",
        "send-message",
        "join-group",
        "propose",
        "update-group",
        "start-migration",
    ];

    /// The operation's name as it stands in event types, metrics and logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::CreateGroup(_) => "create-group",
            Self::DeleteGroup(_) => "delete-group",
            Self::UpdateQueueInfo(_) => "update-queue-info",
            Self::WelcomeInfo(_) => "welcome-info",
            Self::ExternalCommitInfo(_) => "external-commit-info",
            Self::AddUsers(_) => "add-users",
            Self::RemoveUsers(_) => "remove-users",
            Self::AddClients(_) => "add-clients",
            Self::RemoveClients(_) => "remove-clients",
            Self::UpdateClient(_) => "update-client",
            Self::ResyncClient(_) => "resync-client",
            Self::UpdateClientFanoutInfo(_) => "update-client-fanout-info",
            Self::SendMessage(_) => "send-message",
            Self::JoinGroup(_) => "join-group",
            Self::Propose(_) => "propose",
            Self::UpdateGroup(_) => "update-group",
            Self::StartMigration(_) => "start-migration",
        }
    }
}

/// What turns the hub's own state into the new epoch's GroupInfo. The extensions are `external_pub` alone.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct PartialGroupInfo {
    pub group_info_extensions: List<Extension, 1024>,
    /// MLS's GroupInfo signature.
    pub signature: Signature,
}

/// A commit with what belongs to it. `welcome` is there exactly when the commit adds somebody.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct GroupUpdate {
    pub commit: MlsMessage,
    pub group_info: PartialGroupInfo,
    pub welcome: Option<MlsMessage>,
}

/// DS §3.1.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct CreateGroup {
    pub group_id: GroupId,
    pub key_package: KeyPackage,
    pub client_queue_config: ClientQueueConfig,
    pub group_info: GroupInfo,
    pub ratchet_tree: RatchetTree,
}

/// DS §3.2.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct DeleteGroup {
    pub group_id: GroupId,
    pub update: GroupUpdate,
}

/// DS §3.3.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct UpdateQueueInfo {
    pub group_id: GroupId,
    pub client_queue_config: ClientQueueConfig,
}

/// DS §3.4. `sender` is the key that signs.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct WelcomeInfo {
    pub group_id: GroupId,
    pub sender: PublicKey,
    pub epoch: Epoch,
}

/// DS §3.5. `sender` is the joiner's future leaf key, over which (with `credential`) `user_key` is signed.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ExternalCommitInfo {
    pub group_id: GroupId,
    pub sender: PublicKey,
    pub credential: Credential,
    pub user_key: Option<UserKey>,
    pub join_proof: Option<JoinProof>,
}

/// DS §4, §4.2.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Add {
    pub commit: MlsMessage,
    pub welcome: MlsMessage,
    pub group_info: PartialGroupInfo,
}

/// DS §4.5.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ResyncClient {
    pub group_id: GroupId,
    pub sender: PublicKey,
    pub update: GroupUpdate,
    pub client_queue_config: ClientQueueConfig,
}

/// DS §4.6.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct UpdateClientFanoutInfo {
    pub group_id: GroupId,
    pub sender: PublicKey,
    pub client_queue_config: ClientQueueConfig,
    pub filter: FanoutFilter,
}

/// A muted client still receives what it needs to stay in the group.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    Debug,
    Serialize,
    Deserialize,
    TlsSize,
    TlsSerialize,
    TlsDeserializeBytes,
)]
#[repr(u8)]
pub enum FanoutFilter {
    All = 0,
    HandshakeOnly = 1,
}

/// DS §4.7.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct SendMessage {
    pub application_message: MlsMessage,
}

/// DS §2.2: join by external commit as a new client.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct JoinGroup {
    pub group_id: GroupId,
    pub update: GroupUpdate,
    pub client_queue_config: ClientQueueConfig,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Propose {
    /// At least one.
    pub proposals: List<MlsMessage, REQUEST_BYTES_MAX>,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct UpdateGroup {
    pub update: GroupUpdate,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct StartMigration {
    pub init: MigrationInit,
    pub update: GroupUpdate,
}

/// What the hub says of a request that it accepted.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    Serialize,
    Deserialize,
    TlsSize,
    TlsSerialize,
    TlsDeserializeBytes,
)]
pub struct Accepted {
    pub group_sequence: Sequence,
    pub accepted_at: Timestamp,
    pub epoch: Epoch,
}

/// What a joiner needs: of the epoch asked for.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Info {
    pub group_info: GroupInfo,
    pub ratchet_tree: RatchetTree,
    pub pending: List<MlsMessage, INFO_BYTES_MAX>,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum DsResponseBody {
    #[tls_codec(discriminant = 0)]
    Accepted(Accepted),
    #[tls_codec(discriminant = 1)]
    Info(Box<Info>),
    #[tls_codec(discriminant = 2)]
    Moving(Box<MigrationConfirmation>),
}

/// For people: what is wrong and what to do.
pub type Detail = Text<1024>;

/// Everything that is not `ok`. The discriminants are `DSStatus`; each error carries its facts.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum DsError {
    #[tls_codec(discriminant = 1)]
    Malformed { detail: Detail },
    #[tls_codec(discriminant = 2)]
    UnsupportedVersion { detail: Detail, versions: List<ProtocolVersion, 64> },
    #[tls_codec(discriminant = 3)]
    Unauthenticated { detail: Detail },
    #[tls_codec(discriminant = 4)]
    NotAuthorized { detail: Detail },
    #[tls_codec(discriminant = 5)]
    GroupNotFound { detail: Detail },
    #[tls_codec(discriminant = 6)]
    InvalidGroupId { detail: Detail },
    #[tls_codec(discriminant = 7)]
    InvalidKeyPackage { detail: Detail, index: u32 },
    #[tls_codec(discriminant = 8)]
    InvalidGroupInfo { detail: Detail },
    #[tls_codec(discriminant = 9)]
    WrongEpoch { detail: Detail, current_epoch: Epoch, missed: List<MlsMessage, MISSED_BYTES_MAX> },
    #[tls_codec(discriminant = 10)]
    InvalidCommit { detail: Detail },
    #[tls_codec(discriminant = 11)]
    InvalidProposal { detail: Detail, refs: List<Opaque<255>, 65536> },
    #[tls_codec(discriminant = 12)]
    PendingProposals { detail: Detail, pending: List<MlsMessage, REQUEST_BYTES_MAX> },
    #[tls_codec(discriminant = 13)]
    InvalidMessage { detail: Detail },
    #[tls_codec(discriminant = 14)]
    GroupMoved { detail: Detail, chain: List<MigrationConfirmation, 65536> },
    #[tls_codec(discriminant = 15)]
    GroupMigrating { detail: Detail, retry_after_ms: u64 },
    #[tls_codec(discriminant = 16)]
    TooLarge { detail: Detail, limit: u64 },
    #[tls_codec(discriminant = 17)]
    RateLimited { detail: Detail, retry_after_ms: u64 },
    #[tls_codec(discriminant = 18)]
    Unavailable { detail: Detail, retry_after_ms: u64 },
    #[tls_codec(discriminant = 19)]
    Internal { detail: Detail, reference: Text<64> },
    #[tls_codec(discriminant = 20)]
    StaleRequest { detail: Detail, server_time: Timestamp },
}

impl DsError {
    /// The status' name in metrics, logs and documents.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "malformed",
            Self::UnsupportedVersion { .. } => "unsupported_version",
            Self::Unauthenticated { .. } => "unauthenticated",
            Self::NotAuthorized { .. } => "not_authorized",
            Self::GroupNotFound { .. } => "group_not_found",
            Self::InvalidGroupId { .. } => "invalid_group_id",
            Self::InvalidKeyPackage { .. } => "invalid_key_package",
            Self::InvalidGroupInfo { .. } => "invalid_group_info",
            Self::WrongEpoch { .. } => "wrong_epoch",
            Self::InvalidCommit { .. } => "invalid_commit",
            Self::InvalidProposal { .. } => "invalid_proposal",
            Self::PendingProposals { .. } => "pending_proposals",
            Self::InvalidMessage { .. } => "invalid_message",
            Self::GroupMoved { .. } => "group_moved",
            Self::GroupMigrating { .. } => "group_migrating",
            Self::TooLarge { .. } => "too_large",
            Self::RateLimited { .. } => "rate_limited",
            Self::Unavailable { .. } => "unavailable",
            Self::Internal { .. } => "internal",
            Self::StaleRequest { .. } => "stale_request",
        }
    }

    /// For people: what is wrong and what to do.
    #[must_use]
    pub fn detail(&self) -> &str {
        match self {
            Self::Malformed { detail }
            | Self::UnsupportedVersion { detail, .. }
            | Self::Unauthenticated { detail }
            | Self::NotAuthorized { detail }
            | Self::GroupNotFound { detail }
            | Self::InvalidGroupId { detail }
            | Self::InvalidKeyPackage { detail, .. }
            | Self::InvalidGroupInfo { detail }
            | Self::WrongEpoch { detail, .. }
            | Self::InvalidCommit { detail }
            | Self::InvalidProposal { detail, .. }
            | Self::PendingProposals { detail, .. }
            | Self::InvalidMessage { detail }
            | Self::GroupMoved { detail, .. }
            | Self::GroupMigrating { detail, .. }
            | Self::TooLarge { detail, .. }
            | Self::RateLimited { detail, .. }
            | Self::Unavailable { detail, .. }
            | Self::Internal { detail, .. }
            | Self::StaleRequest { detail, .. } => detail.as_str(),
        }
    }
}

impl std::fmt::Display for DsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name(), self.detail())
    }
}

impl std::error::Error for DsError {}

/// `DSStatus status; select (status) { case ok: T; default: DSError }`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome<T> {
    Ok(T),
    Err(DsError),
}

impl<T> From<Result<T, DsError>> for Outcome<T> {
    fn from(result: Result<T, DsError>) -> Self {
        match result {
            Ok(value) => Self::Ok(value),
            Err(error) => Self::Err(error),
        }
    }
}

impl<T> Outcome<T> {
    /// # Errors
    /// The [`DsError`] that the outcome is.
    pub fn into_result(self) -> Result<T, DsError> {
        match self {
            Self::Ok(value) => Ok(value),
            Self::Err(error) => Err(error),
        }
    }
}

impl<T: Size> Size for Outcome<T> {
    fn tls_serialized_len(&self) -> usize {
        match self {
            Self::Ok(value) => 1 + value.tls_serialized_len(),
            Self::Err(error) => error.tls_serialized_len(),
        }
    }
}

impl<T: tls_codec::Serialize> tls_codec::Serialize for Outcome<T> {
    fn tls_serialize<W: std::io::Write>(&self, writer: &mut W) -> Result<usize, Error> {
        match self {
            Self::Ok(value) => {
                writer.write_all(&[0])?;
                Ok(1 + value.tls_serialize(writer)?)
            }
            Self::Err(error) => error.tls_serialize(writer),
        }
    }
}

impl<T: DeserializeBytes> DeserializeBytes for Outcome<T> {
    fn tls_deserialize_bytes(bytes: &[u8]) -> Result<(Self, &[u8]), Error> {
        if let Some((0, rest)) = bytes.split_first().map(|(first, rest)| (*first, rest)) {
            let (value, rest) = T::tls_deserialize_bytes(rest)?;
            Ok((Self::Ok(value), rest))
        } else {
            let (error, rest) = DsError::tls_deserialize_bytes(bytes)?;
            Ok((Self::Err(error), rest))
        }
    }
}

/// The answer to a [`DsMessage`].
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct DsResponse {
    pub version: ProtocolVersion,
    pub outcome: Outcome<DsResponseBody>,
}

/// A member's report of a commit that is not what it says: by the leaf key that it has in `epoch`, before the commit, label
/// "CommitComplaintTBS". PROTOCOL.md §2, "When a committer lies".
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct CommitComplaint {
    pub group_id: GroupId,
    /// The epoch that the commit was sent in.
    pub epoch: Epoch,
    /// The complainant's leaf in that epoch.
    pub leaf_index: LeafIndex,
    /// SHA-256 of the commit's MLSMessage, as it stands in the feed.
    pub commit_hash: Opaque<32, 32>,
    pub reason: Grounds,
    pub signature: Signature,
}

/// What a [`CommitComplaint`]'s signature is over.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct CommitComplaintTbs {
    pub group_id: GroupId,
    pub epoch: Epoch,
    pub leaf_index: LeafIndex,
    pub commit_hash: Opaque<32, 32>,
    pub reason: Grounds,
}

impl CommitComplaint {
    /// The label of its signature.
    pub const LABEL: &'static str = "CommitComplaintTBS";

    /// What the signature is over.
    #[must_use]
    pub fn to_be_signed(&self) -> Vec<u8> {
        encode(&CommitComplaintTbs {
            group_id: self.group_id.clone(),
            epoch: self.epoch,
            leaf_index: self.leaf_index,
            commit_hash: self.commit_hash.clone(),
            reason: self.reason.clone(),
        })
    }
}

/// The public key of an epoch that `external_pub` holds (RFC 9420 §12.4.3.2): the longest is an uncompressed point on P-521.
pub type ExternalPub = Opaque<133, 1>;

/// The reason of a complaint as it is written, with what belongs to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grounds {
    code: u8,
    /// There exactly where `code` is [`Self::OUTSIDE`].
    external_pub: Option<ExternalPub>,
}

impl Grounds {
    /// A commit from outside cannot be processed; the key says whose doing that is.
    const OUTSIDE: u8 = 4;

    /// Of a commit from outside that cannot be processed, with the key of the epoch that it was sent in.
    #[must_use]
    pub fn outside(external_pub: ExternalPub) -> Self {
        Self { code: Self::OUTSIDE, external_pub: Some(external_pub) }
    }

    /// A reason that is not known is [`ComplaintReason::Other`], and so is that of a commit from outside.
    #[must_use]
    pub fn reason(&self) -> ComplaintReason {
        ComplaintReason::of(self.code)
    }

    /// The number that stands for the reason.
    #[must_use]
    pub fn code(&self) -> u8 {
        self.code
    }

    /// The key of the epoch that a commit from outside was sent in, as its complainant has it.
    #[must_use]
    pub fn external_pub(&self) -> Option<&[u8]> {
        self.external_pub.as_ref().map(Opaque::as_slice)
    }
}

impl From<ComplaintReason> for Grounds {
    fn from(reason: ComplaintReason) -> Self {
        Self { code: reason as u8, external_pub: None }
    }
}

impl Size for Grounds {
    fn tls_serialized_len(&self) -> usize {
        1 + self.external_pub.as_ref().map_or(0, Size::tls_serialized_len)
    }
}

impl tls_codec::Serialize for Grounds {
    fn tls_serialize<W: std::io::Write>(&self, writer: &mut W) -> Result<usize, Error> {
        let written = self.code.tls_serialize(writer)?;
        Ok(match &self.external_pub {
            Some(external_pub) => written + external_pub.tls_serialize(writer)?,
            None => written,
        })
    }
}

impl DeserializeBytes for Grounds {
    fn tls_deserialize_bytes(bytes: &[u8]) -> Result<(Self, &[u8]), Error> {
        let (code, rest) = u8::tls_deserialize_bytes(bytes)?;
        if code != Self::OUTSIDE {
            return Ok((Self { code, external_pub: None }, rest));
        }
        let (external_pub, rest) = ExternalPub::tls_deserialize_bytes(rest)?;
        Ok((Self::outside(external_pub), rest))
    }
}

/// What is wrong with a commit of a member.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum ComplaintReason {
    Other = 0,
    ConfirmationTag = 1,
    /// A path secret that does not fit, or cannot be decrypted.
    Path = 2,
    /// The commit is good, and the GroupInfo that came with it cannot be used by who comes in from outside.
    ExternalPub = 3,
}

impl ComplaintReason {
    #[must_use]
    pub fn of(code: u8) -> Self {
        match code {
            1 => Self::ConfirmationTag,
            2 => Self::Path,
            3 => Self::ExternalPub,
            _ => Self::Other,
        }
    }
}

/// What becomes of a [`CommitComplaint`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum ComplaintOutcome {
    /// Go forward now: resync into the newest epoch.
    Resync = 0,
    /// The hub may yet go back: repeat the same complaint after `wait_ms`.
    Wait = 1,
    /// The epoch is void: go on in the one before. The feed says so, too.
    Void = 2,
    /// The hub knows nothing of it, or it is not to be believed: nothing was counted.
    None = 3,
}

/// The answer to a complaint. A repeat changes nothing and gets what holds then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ComplaintResponse {
    pub outcome: ComplaintOutcome,
    /// 0 but for `wait`.
    pub wait_ms: u32,
}
