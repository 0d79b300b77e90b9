//! Who a client is: its URI, its user's key, its own keys, and what it tells others of itself in leaves and
//! KeyPackages. PROTOCOL.md §1 ("Extensions", "Users inside a group").

use openmls::prelude as mls;
use openmls_traits::OpenMlsProvider;
use serde::{Deserialize, Serialize};

use super::{
    CoreError,
    home::{Home, Kind, bytes},
};
use crate::{
    crypto::{self, SigningKey},
    policy,
    wire::{
        codec::{Raw, encode},
        extensions::{
            CLIENT_QUEUE_CONFIG, ClientQueueConfig, GROUP_POLICY, KeyPackageClass, KeyPackageQueue,
            PublicKey, SignatureScheme, USER_KEY, UserKey, UserKeyTbs,
        },
        ids::{ClientUri, Timestamp, UserKeyHash},
        mls::Credential,
    },
};

/// How long a KeyPackage is valid: below the hundred days that a hub takes.
const KEY_PACKAGE_DAYS: u64 = 84;
const DAY_SECONDS: u64 = 86_400;
/// How old the stock of KeyPackages may be before a new one is published: none is to become too old to be handed out before that.
const STOCK_AGE_MAX_MS: u64 = KEY_PACKAGE_DAYS / 2 * DAY_SECONDS * 1000;
/// Before an old stock is renewed that could not be: nothing else is to wait for that again and again.
const STOCK_RETRY_MS: u64 = 60 * 60 * 1000;

/// A client's long-lived secrets.
#[derive(Clone)]
pub struct Identity {
    pub client: ClientUri,
    /// Vouches for all leaves of all devices of the user.
    pub user_key: SigningKey,
    /// What the client signs with towards its own provider.
    pub client_key: SigningKey,
    /// What its leaves sign with unless a group's leaf has been given another key, one per scheme.
    leaf_keys: Vec<SigningKey>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.client)
    }
}

impl Identity {
    /// The first device of a user: everything is new.
    ///
    /// # Errors
    /// [`CoreError::Crypto`]
    pub fn generate(client: ClientUri) -> Result<Self, CoreError> {
        Self::with_user_key(client, SigningKey::generate(SignatureScheme::ED25519)?)
    }

    /// A further device of the user whose key is `user_key`.
    ///
    /// # Errors
    /// [`CoreError::Crypto`]
    pub fn with_user_key(client: ClientUri, user_key: SigningKey) -> Result<Self, CoreError> {
        Ok(Self {
            client,
            user_key,
            client_key: SigningKey::generate(SignatureScheme::ED25519)?,
            leaf_keys: vec![
                SigningKey::generate(SignatureScheme::ED25519)?,
                SigningKey::generate(SignatureScheme::ECDSA_SECP256R1_SHA256)?,
            ],
        })
    }

    #[must_use]
    pub fn user_key_hash(&self) -> UserKeyHash {
        crypto::user_key_hash(self.user_key.scheme(), self.user_key.public())
    }

    /// The `basic` credential: the client's URI.
    #[must_use]
    pub fn credential(&self) -> mls::Credential {
        mls::BasicCredential::new(self.client.as_str().as_bytes().to_vec()).into()
    }

    /// The user key's word for `leaf_key` as a key of this client.
    ///
    /// # Errors
    /// [`CoreError::Crypto`]
    pub fn vouch(&self, leaf_key: &PublicKey) -> Result<UserKey, CoreError> {
        let (scheme, user_public_key) = (self.user_key.scheme(), self.user_key.public().clone());
        let credential: Credential = Raw::of(&self.credential());
        let tbs = UserKeyTbs {
            scheme,
            user_public_key: user_public_key.clone(),
            leaf_key: leaf_key.clone(),
            credential,
        };
        let signature = self.user_key.sign_with_label("UserKeyTBS", &encode(&tbs))?;
        Ok(UserKey { scheme, user_public_key, signature })
    }

    /// What this client's leaves in groups of `suite` sign with, until one rotates it.
    ///
    /// # Errors
    /// [`CoreError::UnsupportedSuite`]
    pub fn leaf_key(&self, suite: mls::Ciphersuite) -> Result<&SigningKey, CoreError> {
        let scheme = policy::leaf::scheme_of(suite);
        self.leaf_keys
            .iter()
            .find(|key| key.scheme() == scheme)
            .ok_or(CoreError::UnsupportedSuite(suite))
    }

    /// The private half of a leaf key of ours.
    pub(super) fn leaf_key_of(&self, public: &[u8]) -> Option<&SigningKey> {
        self.leaf_keys.iter().find(|key| key.public().as_slice() == public)
    }

    pub(super) fn credential_with_key(&self, key: &SigningKey) -> mls::CredentialWithKey {
        mls::CredentialWithKey {
            credential: self.credential(),
            signature_key: key.public().as_slice().into(),
        }
    }

    pub(super) fn leaf_extensions(
        &self,
        key: &SigningKey,
    ) -> Result<mls::Extensions<mls::LeafNode>, CoreError> {
        let user_key = encode(&self.vouch(key.public())?);
        mls::Extensions::single(unknown(USER_KEY, user_key)).map_err(CoreError::mls)
    }

    pub(super) fn key_package(
        &self,
        home: &Home,
        suite: mls::Ciphersuite,
        queue: KeyPackageQueue,
        last_resort: bool,
        now: Timestamp,
    ) -> Result<mls::KeyPackage, CoreError> {
        let key = self.leaf_key(suite)?;
        let seconds = now.0 / 1000;
        let mut builder = mls::KeyPackage::builder()
            .key_package_lifetime(mls::Lifetime::init(
                seconds.saturating_sub(3600),
                seconds + KEY_PACKAGE_DAYS * DAY_SECONDS,
            ))
            .leaf_node_capabilities(capabilities())
            .leaf_node_extensions(self.leaf_extensions(key)?)
            .key_package_extensions(
                mls::Extensions::single(unknown(CLIENT_QUEUE_CONFIG, encode(&queue)))
                    .map_err(CoreError::mls)?,
            );
        if last_resort {
            builder = builder.mark_as_last_resort();
        }
        let bundle = builder
            .build(suite, &home.provider(), key, self.credential_with_key(key))
            .map_err(CoreError::mls)?;
        Ok(bundle.into_key_package())
    }

    pub(super) fn store(&self, home: &Home) -> Result<(), CoreError> {
        let stored = StoredIdentity {
            client: self.client.clone(),
            user_key: StoredKey::of(&self.user_key),
            client_key: StoredKey::of(&self.client_key),
            leaf_keys: self.leaf_keys.iter().map(StoredKey::of).collect(),
        };
        home.put(Kind::Identity, b"", &stored)
    }

    pub(super) fn load(home: &Home) -> Result<Self, CoreError> {
        let stored: StoredIdentity =
            home.find(Kind::Identity, b"")?.ok_or(CoreError::NoIdentity)?;
        Ok(Self {
            client: stored.client,
            user_key: stored.user_key.open()?,
            client_key: stored.client_key.open()?,
            leaf_keys: stored.leaf_keys.iter().map(StoredKey::open).collect::<Result<_, _>>()?,
        })
    }
}

/// What every client of ours can do.
pub(crate) fn capabilities() -> mls::Capabilities {
    let extensions = [
        mls::ExtensionType::Unknown(USER_KEY),
        mls::ExtensionType::Unknown(CLIENT_QUEUE_CONFIG),
        mls::ExtensionType::Unknown(GROUP_POLICY),
        mls::ExtensionType::LastResort,
    ];
    mls::Capabilities::new(
        None,
        Some(&SUITES),
        Some(&extensions),
        Some(&[mls::ProposalType::SelfRemove]),
        Some(&[mls::CredentialType::Basic]),
    )
}

/// The ciphersuites that clients of ours speak, the preferred first.
pub const SUITES: [mls::Ciphersuite; 3] = [
    mls::Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
    mls::Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256,
    mls::Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519,
];

pub(crate) fn unknown(kind: u16, value: Vec<u8>) -> mls::Extension {
    mls::Extension::Unknown(kind, mls::UnknownExtension(value))
}

/// The client_queue_config of a KeyPackage.
pub(super) fn queue_of(class: KeyPackageClass, config: ClientQueueConfig) -> KeyPackageQueue {
    KeyPackageQueue { class, config }
}

/// A private key at rest.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct StoredKey {
    scheme: u16,
    #[serde(with = "bytes")]
    private: Vec<u8>,
}

impl StoredKey {
    pub(super) fn of(key: &SigningKey) -> Self {
        Self { scheme: key.scheme().0, private: key.to_bytes().to_vec() }
    }

    pub(super) fn open(&self) -> Result<SigningKey, CoreError> {
        Ok(SigningKey::from_bytes(SignatureScheme(self.scheme), &self.private)?)
    }
}

impl Drop for StoredKey {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.private);
    }
}

#[derive(Serialize, Deserialize)]
struct StoredIdentity {
    client: ClientUri,
    user_key: StoredKey,
    client_key: StoredKey,
    leaf_keys: Vec<StoredKey>,
}

/// The KeyPackageRef of a KeyPackage.
pub(super) fn key_package_ref(
    home: &Home,
    key_package: &mls::KeyPackage,
) -> Result<Vec<u8>, CoreError> {
    Ok(key_package.hash_ref(home.provider().crypto()).map_err(CoreError::mls)?.as_slice().to_vec())
}

/// Of [`Member::setting`](super::Member::setting): KeyPackages are to be published, for few are left or one must be replaced.
pub(in crate::client) const KEY_PACKAGES_LOW: &str = "key_packages_low";
/// When a whole stock was published last: a [`Timestamp`].
const STOCKED_AT: &str = "key_packages_stocked_at";
/// When a new stock was begun by itself last: a [`Timestamp`].
const RENEWED_AT: &str = "key_packages_renewed_at";

impl super::Member {
    /// Whether all KeyPackages are to be made anew, the last resorts too: those that are published end before long, or who made them
    /// did not note when.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub(in crate::client) fn is_stock_old(&self, now: Timestamp) -> Result<bool, CoreError> {
        let stocked: Option<Timestamp> = self.setting(STOCKED_AT)?;
        Ok(stocked.is_none_or(|at| now.0.saturating_sub(at.0) >= STOCK_AGE_MAX_MS))
    }

    /// Whether an old stock is to be renewed now, which is noted as a try.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub(in crate::client) fn may_renew_stock(&self, now: Timestamp) -> Result<bool, CoreError> {
        if !self.is_stock_old(now)? {
            return Ok(false);
        }
        let tried: Option<Timestamp> = self.setting(RENEWED_AT)?;
        if tried.is_some_and(|at| now.0.abs_diff(at.0) < STOCK_RETRY_MS) {
            return Ok(false);
        }
        self.set(RENEWED_AT, &now)?;
        Ok(true)
    }

    /// # Errors
    /// [`CoreError::Store`]
    pub(in crate::client) fn stocked(&self, now: Timestamp) -> Result<(), CoreError> {
        self.set(STOCKED_AT, &now)
    }
}

/// Of [`Member::setting`](super::Member::setting): whether a last-resort KeyPackage of this suite is published that no group
/// has used yet.
pub(in crate::client) fn last_resort_setting(suite: mls::Ciphersuite) -> String {
    format!("last_resort_{:#06x}", suite as u16)
}
