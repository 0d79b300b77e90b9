//! What mimid puts into MLS: the user key of a leaf, the queue of a KeyPackage, the policy of a group.
//! PROTOCOL.md §1 ("Extensions", "Users inside a group") and §2 ("Policy").

use serde::{Deserialize, Serialize};
use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{List, Opaque};
use super::ids::{Domain, GroupId, Timestamp, UserKeyHash};
use super::mls::Credential;

/// Extension type of [`UserKey`], in every leaf.
pub const USER_KEY: u16 = 0xF1A1;
/// Extension type of [`KeyPackageQueue`], in every KeyPackage.
pub const CLIENT_QUEUE_CONFIG: u16 = 0xF1A2;
/// Extension type of [`GroupPolicy`], in every group's GroupContext.
pub const GROUP_POLICY: u16 = 0xF1A3;

/// Longest public key, in bytes: an uncompressed P-521 point fits.
pub const PUBLIC_KEY_MAX: usize = 256;
/// Longest signature, in bytes.
pub const SIGNATURE_MAX: usize = 255;

pub type PublicKey = Opaque<PUBLIC_KEY_MAX, 1>;
pub type Signature = Opaque<SIGNATURE_MAX>;
/// `opaque queue_token<V>`: opaque to everybody but the provider that minted it.
pub type QueueToken = Opaque<255, 1>;

/// A TLS SignatureScheme (IANA registry). Unknown ones decode and verify nothing.
#[derive(
    Clone,
    Copy,
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
#[serde(transparent)]
pub struct SignatureScheme(pub u16);

impl SignatureScheme {
    pub const ED25519: Self = Self(0x0807);
    pub const ECDSA_SECP256R1_SHA256: Self = Self(0x0403);
    pub const ECDSA_SECP384R1_SHA384: Self = Self(0x0503);
}

/// Extension 0xF1A1: which user a leaf belongs to.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct UserKey {
    pub scheme: SignatureScheme,
    pub user_public_key: PublicKey,
    /// By the user key over [`UserKeyTbs`], label "UserKeyTBS".
    pub signature: Signature,
}

/// What a user key signs to vouch for a leaf.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct UserKeyTbs {
    pub scheme: SignatureScheme,
    pub user_public_key: PublicKey,
    pub leaf_key: PublicKey,
    pub credential: Credential,
}

/// What `user_key_hash` is the SHA-256 of.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct UserKeyHashInput {
    pub scheme: SignatureScheme,
    pub user_public_key: PublicKey,
}

/// Where a client's messages go.
#[derive(
    Clone,
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
pub struct ClientQueueConfig {
    pub domain: Domain,
    pub queue_token: QueueToken,
}

#[derive(
    Clone,
    Copy,
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
pub enum KeyPackageClass {
    Group = 0,
    Connection = 1,
}

/// Extension 0xF1A2: the value of client_queue_config.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct KeyPackageQueue {
    pub class: KeyPackageClass,
    pub config: ClientQueueConfig,
}

#[derive(
    Clone,
    Copy,
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
pub enum Role {
    Banned = 0,
    /// Whoever the policy does not list.
    Member = 1,
    Moderator = 2,
    Admin = 3,
}

/// Who may join without being added; each includes those before it.
#[derive(
    Clone,
    Copy,
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
pub enum JoinPolicy {
    Closed = 0,
    OwnClients = 1,
    Code = 2,
    Open = 3,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct RoleEntry {
    pub user_key_hash: UserKeyHash,
    pub role: Role,
}

/// The public half of a joining code.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct JoinCode {
    pub scheme: SignatureScheme,
    pub public_key: PublicKey,
    pub expires_at: Timestamp,
}

/// Extension 0xF1A3: who may do what in a group.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct GroupPolicy {
    /// Sorted by hash, each once.
    pub roles: List<RoleEntry, { 512 * 1024 }>,
    pub may_add: Role,
    pub may_remove: Role,
    pub may_update: Role,
    pub may_delete: Role,
    pub may_migrate: Role,
    pub may_send: Role,
    pub join: JoinPolicy,
    pub codes: List<JoinCode, { 64 * 1024 }>,
    /// MLS CredentialTypes that a leaf may have.
    pub credential_types: List<u16, 64>,
    pub members_max: u32,
}

/// Proof that a joiner holds a joining code: by the code's key over [`JoinProofTbs`], label "JoinProofTBS".
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct JoinProof {
    pub public_key: PublicKey,
    pub signature: Signature,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct JoinProofTbs {
    pub group_id: GroupId,
    pub user_key_hash: UserKeyHash,
    pub leaf_key: PublicKey,
}
