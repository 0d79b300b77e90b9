//! KeyPackages and consent between users of any provider. PROTOCOL.md §5; TR §5.8, §5.9.

use tls_codec::{TlsDeserializeBytes, TlsSerialize, TlsSize};

use super::codec::{List, Opaque, Secret};
use super::ds::REQUEST_BYTES_MAX;
use super::extensions::{PublicKey, QueueToken, Signature, UserKey};
use super::ids::{ClientUri, Domain, GroupId, KeyPackageRef, UserUri};
use super::mls::{Credential, KeyPackage, RequiredCapabilities};

/// 32 random bytes; the provider keeps their hash.
pub type ConsentToken = Secret<32>;

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ConnectionKeyPackageRequest {
    pub target_user: UserUri,
    /// Its domain is the sender's.
    pub requester: UserUri,
}

/// At most one KeyPackage per client; empty for a user that does not exist.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ConnectionKeyPackageResponse {
    pub key_packages: List<KeyPackage, REQUEST_BYTES_MAX>,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct GroupKeyPackageRequest {
    pub target_user: UserUri,
    pub consent_token: ConsentToken,
    /// MLS CipherSuites, the preferred first.
    pub ciphersuites: List<u16, 64>,
    pub required: Option<RequiredCapabilities>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
#[repr(u8)]
pub enum KeyPackageStatus {
    Ok = 0,
    /// Also: there is no such user.
    NoConsent = 1,
    Incompatible = 2,
    NoneLeft = 3,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ClientKeyPackage {
    pub client: ClientUri,
    pub status: KeyPackageStatus,
    pub key_package: Option<KeyPackage>,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct GroupKeyPackageResponse {
    pub status: KeyPackageStatus,
    pub clients: List<ClientKeyPackage, REQUEST_BYTES_MAX>,
}

/// A [`ConnectionOffer`] sealed to one connection KeyPackage's `init_key`.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct SealedOffer {
    pub client_queue_information: QueueToken,
    pub key_package_ref: KeyPackageRef,
    pub kem_output: Opaque<2048>,
    pub ciphertext: Opaque<65536>,
}

/// Offers in one [`ConnectionRequest`]: a user has no more clients.
pub const OFFERS_MAX: usize = 1_000;

/// One sealed offer per client of the user.
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ConnectionRequest {
    pub offers: List<SealedOffer, REQUEST_BYTES_MAX, OFFERS_MAX>,
}

/// Sealed by EncryptWithLabel(init_key, "MimiConnectionOffer", key_package_ref, ConnectionOffer); signed by
/// `leaf_key` over [`ConnectionOfferTbs`], label "ConnectionOfferTBS".
#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ConnectionOffer {
    pub sender_user: UserUri,
    pub recipient_user: UserUri,
    pub group_id: GroupId,
    pub hub_domain: Domain,
    /// The private half of a joining code of that group: 32 bytes, an Ed25519 seed.
    pub join_code: Secret<32, 32>,
    pub consent_token: ConsentToken,
    pub credential: Credential,
    pub user_key: UserKey,
    pub leaf_key: PublicKey,
    pub signature: Signature,
}

#[derive(Clone, PartialEq, Eq, Debug, TlsSize, TlsSerialize, TlsDeserializeBytes)]
pub struct ConnectionOfferTbs {
    pub sender_user: UserUri,
    pub recipient_user: UserUri,
    pub group_id: GroupId,
    pub hub_domain: Domain,
    pub join_code: Secret<32, 32>,
    pub consent_token: ConsentToken,
    pub credential: Credential,
    pub user_key: UserKey,
    pub leaf_key: PublicKey,
}
