//! A file of keys in `keys/` of the data folder, which is only ever replaced as a whole and read again when it has changed.
//! What is in one: [`super::s2s_keys`] and [`super::sender_keys`].

use std::{
    fmt, fs,
    marker::PhantomData,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroize;

use super::keys::{KeysError, damaged, keys_folder, read_or_make, write_secret};
use crate::{
    crypto::SigningKey,
    federation::ProviderKey,
    wire::{extensions::SignatureScheme, ids::Timestamp},
};

/// What such a file holds.
pub trait KeySet: Serialize + DeserializeOwned {
    const FILE: &str;
    /// What it is to whoever uses it.
    type Keys: Default;

    /// The first keys of a provider.
    ///
    /// # Errors
    /// [`KeysError`]
    fn make(now: Timestamp) -> Result<Self, KeysError>;

    /// # Errors
    /// [`KeysError::Damaged`], with `path`.
    fn into_keys(self, path: &Path) -> Result<Self::Keys, KeysError>;
}

/// One file, and which state of it was read last.
pub struct KeyFile<S> {
    pub(super) path: PathBuf,
    read: Option<Stamp>,
    holds: PhantomData<fn() -> S>,
}

impl<S> fmt::Debug for KeyFile<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Differs between two states of a file that is only ever replaced.
type Stamp = (u64, i64, i64, u64);

impl<S: KeySet> KeyFile<S> {
    /// Reads the keys of `data_dir`; makes them at the first start.
    ///
    /// # Errors
    /// [`KeysError`]
    pub fn open(data_dir: &Path, now: Timestamp) -> Result<(Self, S::Keys), KeysError> {
        let path = keys_folder(data_dir)?.join(S::FILE);
        // before it is read, so that no change is missed
        let there = stamp(&path);
        let keys = read_or_make(&path, || S::make(now))?.into_keys(&path)?;
        let read = there.or_else(|| stamp(&path));
        Ok((Self { path, read, holds: PhantomData }, keys))
    }

    /// The keys, if the file has changed since it was read last.
    ///
    /// # Errors
    /// [`KeysError`]: the keys that were read before go on.
    pub fn changed(&mut self) -> Result<Option<S::Keys>, KeysError> {
        let now_there = stamp(&self.path);
        if now_there.is_none() || now_there == self.read {
            return Ok(None);
        }
        let keys = read::<S>(&self.path)?;
        self.read = now_there;
        Ok(Some(keys))
    }

    /// Replaces what the file holds; that is known then.
    pub(super) fn replace(&mut self, set: &S) -> Result<(), KeysError> {
        write_secret(&self.path, set)?;
        self.read = stamp(&self.path);
        Ok(())
    }
}

/// The keys of `data_dir`; none where none were made yet.
pub(super) fn list<S: KeySet>(data_dir: &Path) -> Result<S::Keys, KeysError> {
    let path = data_dir.join("keys").join(S::FILE);
    if path.exists() { read::<S>(&path) } else { Ok(S::Keys::default()) }
}

/// The keys in a file that is there.
pub(super) fn read<S: KeySet>(path: &Path) -> Result<S::Keys, KeysError> {
    let missing = || Err(KeysError::NeverMade { path: path.to_owned() });
    read_or_make::<S>(path, missing)?.into_keys(path)
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}

/// A key that signs, as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyRecord {
    /// The TLS registry's number.
    scheme: u16,
    private: String,
    not_before: u64,
    /// Absent while nothing is to follow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_after: Option<u64>,
}

impl Drop for KeyRecord {
    fn drop(&mut self) {
        self.private.zeroize();
    }
}

impl KeyRecord {
    pub(super) fn generate(scheme: SignatureScheme, since: Timestamp) -> Result<Self, KeysError> {
        let (key, not_after) = (SigningKey::generate(scheme)?, Timestamp(u64::MAX));
        Ok(Self::of(&ProviderKey { key, not_before: since, not_after }))
    }

    pub(super) fn of(key: &ProviderKey) -> Self {
        Self {
            scheme: key.key.scheme().0,
            private: hex::encode(&**key.key.to_bytes()),
            not_before: key.not_before.0,
            not_after: (key.not_after.0 != u64::MAX).then_some(key.not_after.0),
        }
    }

    pub(super) fn to_key(&self, path: &Path) -> Result<ProviderKey, KeysError> {
        Ok(ProviderKey {
            key: signing_key(self.scheme, &self.private, path)?,
            not_before: Timestamp(self.not_before),
            not_after: Timestamp(self.not_after.unwrap_or(u64::MAX)),
        })
    }
}

/// The key whose private part is written as `private`.
pub(super) fn signing_key(
    scheme: u16,
    private: &str,
    path: &Path,
) -> Result<SigningKey, KeysError> {
    let mut bytes = hex::decode(private).map_err(|_| damaged(path, "a key is not hex"))?;
    let key = SigningKey::from_bytes(SignatureScheme(scheme), &bytes);
    bytes.zeroize();
    key.map_err(|_| damaged(path, "a key is not one of its scheme"))
}
