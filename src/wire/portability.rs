//! The structs of a group's move that other messages carry. PROTOCOL.md §6; PO.

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::extensions::Signature;
use super::ids::{Domain, Epoch, GroupId, Sequence, Timestamp};
use super::mls::ExternalSender;

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct MigrationRequest {
    pub source_domain_name: Domain,
    pub target_domain_name: Domain,
    pub group_id: GroupId,
    pub epoch: Epoch,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct MigrationResponse {
    pub migration_request: MigrationRequest,
    pub nonce: [u8; 32],
    pub signature: Signature,
    pub expires_at: Timestamp,
    pub target_sender: ExternalSender,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct MigrationInit {
    pub migration_response: MigrationResponse,
    pub signature: Signature,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct MigrationConfirmation {
    /// The target.
    pub domain_name: Domain,
    pub nonce: [u8; 32],
    pub group_id: GroupId,
    pub signature: Signature,
    pub source_domain: Domain,
    pub epoch: Epoch,
    pub next_sequence: Sequence,
}
