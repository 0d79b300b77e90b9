//! What a client says to its own provider. PROTOCOL.md §3, "A client and its own provider".

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{List, Opaque, Secret, Text, read_vector};
use super::ds::{CommitComplaint, Outcome, ProtocolVersion, REQUEST_BYTES_MAX};
use super::extensions::{
    KeyPackageClass, PublicKey, QueueToken, Signature, SignatureScheme, UserKey,
};
use super::ids::{ClientUri, Domain, Timestamp, UserUri};
use super::key_packages::ConnectionRequest;
use super::mls::{Credential, KeyPackage};
use super::queueing::{FeedAck, QueueEntry};

/// Every body of the client listener. Signed by the client's registered key over [`ClientMessageTbs`],
/// label "ClientMessageTBS".
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ClientMessage {
    pub version: ProtocolVersion,
    pub client: ClientUri,
    /// The path: "/v1/dequeue".
    pub endpoint: Text<64>,
    pub timestamp: Timestamp,
    pub nonce: [u8; 16],
    pub body: Opaque<{ REQUEST_BYTES_MAX + 65536 }>,
    pub signature: Signature,
}

impl ClientMessage {
    /// The body of an encoded one, without decoding that: it may still be none. None where it does not begin as one.
    #[must_use]
    pub fn body_in(message: &[u8]) -> Option<&[u8]> {
        let rest = message.get(VERSION_BYTES..)?;
        let (_client, rest) = read_vector(rest, 0, message.len()).ok()?;
        let (_endpoint, rest) = read_vector(rest, 0, message.len()).ok()?;
        let rest = rest.get(TIMESTAMP_BYTES + NONCE_BYTES..)?;
        read_vector(rest, 0, message.len()).ok().map(|(body, _signature)| body)
    }
}

const VERSION_BYTES: usize = 2;
const TIMESTAMP_BYTES: usize = 8;
const NONCE_BYTES: usize = 16;

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ClientMessageTbs {
    pub version: ProtocolVersion,
    pub client: ClientUri,
    pub endpoint: Text<64>,
    pub timestamp: Timestamp,
    pub nonce: [u8; 16],
    pub body: Opaque<{ REQUEST_BYTES_MAX + 65536 }>,
}

/// Answers that are not DSResponses.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ClientResponse {
    pub outcome: Outcome<Opaque<{ 64 * 1024 * 1024 }>>,
}

/// `/v1/register`: self-signed by `client_key`. A further device's `user_key` is by the user key on record.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Register {
    pub user: UserUri,
    pub device: Text<255>,
    pub credential: Credential,
    /// Over `client_key` as leaf key and `credential`.
    pub user_key: UserKey,
    pub scheme: SignatureScheme,
    pub client_key: PublicKey,
    /// What the operator gave out where registration asks for it; else empty.
    pub token: Secret<255>,
    pub csr: Opaque<16384>,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Registered {
    pub client: ClientUri,
    pub credential: Credential,
    pub chain: Opaque<65536>,
}

/// `/v1/key_packages`: class and last_resort as marked in each; the leaf is this client's.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct PublishKeyPackages {
    pub key_packages: List<KeyPackage, REQUEST_BYTES_MAX>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct KeyPackagesLeft {
    pub group_left: u32,
    pub connection_left: u32,
}

/// A bool on the wire: 0 or 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum Flag {
    No = 0,
    Yes = 1,
}

/// `/v1/queue_tokens`
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct QueueTokens {
    pub class: KeyPackageClass,
    pub last_resort: Flag,
    pub count: u8,
    pub revoke: List<QueueToken, 65536>,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct MintedTokens {
    pub tokens: List<QueueToken, 131_072>,
}

/// `/v1/dequeue`: acknowledges, then waits up to `wait_ms` for at most `max` entries.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Dequeue {
    pub acks: List<FeedAck, REQUEST_BYTES_MAX>,
    pub max: u32,
    pub wait_ms: u32,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Dequeued {
    pub entries: List<QueueEntry, { 32 * 1024 * 1024 }>,
}

/// `/v1/stream`: the body of the first frame up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct OpenStream {
    /// Bytes that may be on their way and unacknowledged.
    pub window: u32,
}

/// `/v1/provider_keys`
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ProviderKeys {
    pub domain: Domain,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ProviderKeysAnswer {
    pub verification: VerificationKeyResponse,
    pub signature: VerificationKeyResponse,
}

/// One key of a provider. `purpose` is `s2s`, `external-sender` or `as-root`. PROTOCOL.md §4.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct VerificationKey {
    pub scheme: SignatureScheme,
    pub public_key: Opaque<16384>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub purpose: Opaque<64>,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct VerificationKeyResponse {
    pub version: ProtocolVersion,
    pub domain: Domain,
    pub keys: List<VerificationKey, { 256 * 1024 }>,
    pub cache_until: Timestamp,
}

/// `/v1/connection_request`. The request itself names no provider, so that its relays do not learn whom it is for; the
/// client's own provider must know where it goes.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ConnectionRequestTo {
    pub recipient_domain: Domain,
    pub request: ConnectionRequest,
}

/// `/v1/complaint`: answered with a [`super::ds::ComplaintResponse`].
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Complain {
    pub hub_domain: Domain,
    pub complaint: CommitComplaint,
}

/// `/v1/devices/delete`
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct DeleteDevice {
    pub client: ClientUri,
}

/// `/v1/consent`: SHA-256 hashes of consent tokens.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct Consent {
    pub add: List<Opaque<32, 32>, 65536>,
    pub revoke: List<Opaque<32, 32>, 65536>,
}
