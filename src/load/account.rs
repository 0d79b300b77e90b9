//! A client of a workload: its keys, and what others are told of it. PROTOCOL.md §1.

use openmls::prelude as mls;
use openmls_memory_storage::MemoryStorage;
use serde::{Deserialize, Serialize};

use super::LoadError;
use crate::{
    client::core::{SUITES, capabilities, unknown},
    crypto::{self, CryptoError, MlsProvider, SigningKey},
    wire::{
        client::Register,
        codec::{Opaque, Raw, Secret, Text, encode},
        extensions::{
            CLIENT_QUEUE_CONFIG, ClientQueueConfig, KeyPackageClass, KeyPackageQueue, USER_KEY,
            UserKey, UserKeyTbs,
        },
        ids::{ClientUri, Timestamp, UserKeyHash},
    },
};

/// Where one driver's MLS state is.
pub(super) type Provider = MlsProvider<MemoryStorage>;

/// A registered client. Its key is the key of all its leaves, too.
#[derive(Debug)]
pub struct Account {
    pub client: ClientUri,
    pub key: SigningKey,
    user_seed: [u8; 32],
}

/// An [`Account`] in a workload file. These are secrets of a test's clients.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredAccount {
    client: ClientUri,
    seed: [u8; 32],
    user_seed: [u8; 32],
}

impl Account {
    pub(super) fn generate(client: ClientUri) -> Result<Self, LoadError> {
        let stored = StoredAccount { client, seed: crypto::random(), user_seed: crypto::random() };
        stored.open()
    }

    pub(super) fn stored(&self) -> Result<StoredAccount, LoadError> {
        let seed = self.key.to_bytes().as_slice().try_into();
        let seed = seed.map_err(|_| LoadError::Mls("a key is no Ed25519 key".to_owned()))?;
        Ok(StoredAccount { client: self.client.clone(), seed, user_seed: self.user_seed })
    }

    /// What vouches for the client's leaves, and signs where it comes in from outside.
    pub(super) fn user_key(&self) -> Result<SigningKey, CryptoError> {
        SigningKey::from_seed(self.user_seed)
    }

    pub(super) fn user_key_hash(&self) -> Result<UserKeyHash, LoadError> {
        let key = self.user_key()?;
        Ok(crypto::user_key_hash(key.scheme(), key.public()))
    }

    pub(super) fn credential(&self) -> mls::Credential {
        mls::BasicCredential::new(self.client.as_str().as_bytes().to_vec()).into()
    }

    pub(super) fn credential_with_key(&self) -> mls::CredentialWithKey {
        mls::CredentialWithKey {
            credential: self.credential(),
            signature_key: self.key.public().as_slice().into(),
        }
    }

    pub(super) fn vouch(&self) -> Result<UserKey, LoadError> {
        let user_key = self.user_key()?;
        let (scheme, user_public_key) = (user_key.scheme(), user_key.public().clone());
        let tbs = UserKeyTbs {
            scheme,
            user_public_key: user_public_key.clone(),
            leaf_key: self.key.public().clone(),
            credential: Raw::of(&self.credential()),
        };
        let signature = user_key.sign_with_label("UserKeyTBS", &encode(&tbs))?;
        Ok(UserKey { scheme, user_public_key, signature })
    }

    pub(super) fn leaf_extensions(&self) -> Result<mls::Extensions<mls::LeafNode>, LoadError> {
        let user_key = encode(&self.vouch()?);
        mls::Extensions::single(unknown(USER_KEY, user_key)).map_err(LoadError::mls)
    }

    /// A KeyPackage whose private keys are in `provider`.
    pub(super) fn key_package(
        &self,
        provider: &Provider,
        config: ClientQueueConfig,
        now: Timestamp,
    ) -> Result<mls::KeyPackage, LoadError> {
        let queue = KeyPackageQueue { class: KeyPackageClass::Group, config };
        let seconds = now.0 / 1000;
        let bundle = mls::KeyPackage::builder()
            .key_package_lifetime(mls::Lifetime::init(
                seconds.saturating_sub(3600),
                seconds + LIFETIME_DAYS * 86_400,
            ))
            .leaf_node_capabilities(capabilities())
            .leaf_node_extensions(self.leaf_extensions()?)
            .key_package_extensions(
                mls::Extensions::single(unknown(CLIENT_QUEUE_CONFIG, encode(&queue)))
                    .map_err(LoadError::mls)?,
            )
            .build(SUITES[0], provider, &self.key, self.credential_with_key())
            .map_err(LoadError::mls)?;
        Ok(bundle.into_key_package())
    }

    pub(super) fn register(&self, token: &[u8]) -> Result<Register, LoadError> {
        let long = |_| LoadError::Usage("a registration token has 255 bytes at most".to_owned());
        Ok(Register {
            user: self.client.user(),
            device: Text::truncated(self.client.device()),
            credential: Raw::of(&self.credential()),
            user_key: self.vouch()?,
            scheme: self.key.scheme(),
            client_key: self.key.public().clone(),
            token: Secret::new(token).map_err(long)?,
            csr: Opaque::default(),
        })
    }
}

impl StoredAccount {
    pub(super) fn open(self) -> Result<Account, LoadError> {
        let key = SigningKey::from_seed(self.seed)?;
        Ok(Account { client: self.client, key, user_seed: self.user_seed })
    }
}

/// Below the hundred days that a hub takes.
const LIFETIME_DAYS: u64 = 84;
