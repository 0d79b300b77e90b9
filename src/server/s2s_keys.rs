//! The keys that sign for other providers, in `keys/s2s.json` of the data folder, and their rotation. PROTOCOL.md §4.
//!
//! The file holds the present key, the next one until it begins, and the last one until nothing that it signed can be fresh
//! any longer. A rotation only writes the file; a node that runs reads it again when it has changed
//! ([`S2sKeyFile::refresh`]). Since a next key begins later than any peer's copy of the list lasts, no message is lost to one.

use std::{fs, os::unix::fs::MetadataExt, path::Path, path::PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::keys::{KeysError, damaged, keys_folder, read_or_make, write_secret};
use crate::{
    crypto::SigningKey,
    federation::{
        Federation, ProviderKey,
        message::FRESH_MS,
        own_keys::{PUBLISHED_FOR_MS, signing_at},
    },
    wire::{extensions::SignatureScheme, ids::Timestamp},
};

/// The file, and which state of it was read last.
#[derive(Debug)]
pub struct S2sKeyFile {
    path: PathBuf,
    read: Option<Stamp>,
}

/// Differs between two states of a file that is only ever replaced.
pub(super) type Stamp = (u64, i64, i64, u64);

impl S2sKeyFile {
    /// Reads the keys of `data_dir`; makes one at the first start.
    ///
    /// # Errors
    /// [`KeysError`]
    pub fn open(data_dir: &Path, now: Timestamp) -> Result<(Self, Vec<ProviderKey>), KeysError> {
        let path = keys_folder(data_dir)?.join(FILE);
        // before it is read, so that no change is missed
        let there = stamp(&path);
        // a clock that is set right after the first start must not put the key into the future
        let file: File = read_or_make(&path, || {
            Ok(File { keys: vec![Record::generate(Timestamp(now.0.saturating_sub(DAY_MS)))?] })
        })?;
        let keys = file.into_keys(&path)?;
        let read = there.or_else(|| stamp(&path));
        Ok((Self { path, read }, keys))
    }

    /// The keys, if the file has changed since it was read last.
    ///
    /// # Errors
    /// [`KeysError`]: the keys that were read before go on.
    pub fn changed(&mut self) -> Result<Option<Vec<ProviderKey>>, KeysError> {
        let now_there = stamp(&self.path);
        if now_there.is_none() || now_there == self.read {
            return Ok(None);
        }
        let keys = read(&self.path)?;
        self.read = now_there;
        Ok(Some(keys))
    }

    /// Has `federation` sign with what the file holds now. To be called every minute and when the operator asks for it;
    /// what goes wrong is in the log, and the keys stay as they are.
    pub fn refresh(&mut self, federation: &Federation) {
        match self.changed() {
            Ok(None) => {}
            Ok(Some(keys)) => {
                tracing::info!(keys = keys.len(), "the s2s keys were read again");
                federation.replace_keys(keys);
            }
            Err(error) => tracing::error!(%error, "the s2s keys cannot be read again"),
        }
    }
}

/// The s2s keys of `data_dir`; none where none were made yet.
///
/// # Errors
/// [`KeysError`]
pub fn list(data_dir: &Path) -> Result<Vec<ProviderKey>, KeysError> {
    let path = data_dir.join("keys").join(FILE);
    if path.exists() { read(&path) } else { Ok(Vec::new()) }
}

/// What a rotation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    pub signs_from: Timestamp,
    /// When the key that signed until then is listed no more.
    pub last_until: Timestamp,
}

/// How urgent a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// The next key begins when every peer knows it, and the last one ends when nothing that it signed is fresh.
    Orderly,
    /// The next key begins now and the others are dropped: for a key that somebody else may have. What is on its way is
    /// refused by peers, who read the keys again, and sent anew.
    AtOnce,
}

/// Writes a next key beside the present one.
///
/// # Errors
/// [`KeysError`]; [`KeysError::Rotating`] where a next key is there already and there is no hurry.
pub fn rotate(data_dir: &Path, urgency: Urgency, now: Timestamp) -> Result<Rotated, KeysError> {
    let path = keys_folder(data_dir)?.join(FILE);
    let mut keys = read(&path)?;
    let (signs_from, last_until) = match urgency {
        Urgency::Orderly => {
            if let Some(next) = keys.iter().find(|key| key.not_before > now) {
                return Err(KeysError::Rotating { signs_from: next.not_before });
            }
            let signs_from = now.plus_ms(PUBLISHED_FOR_MS + PICK_UP_MS);
            (signs_from, signs_from.plus_ms(2 * FRESH_MS))
        }
        Urgency::AtOnce => (now, now),
    };
    match urgency {
        Urgency::Orderly => {
            keys.retain(|key| key.not_after >= now);
            for key in &mut keys {
                key.not_after = key.not_after.min(last_until);
            }
        }
        Urgency::AtOnce => keys.clear(),
    }
    let mut records: Vec<Record> = keys.iter().map(Record::of).collect();
    records.push(Record::generate(signs_from)?);
    write_secret(&path, &File { keys: records })?;
    Ok(Rotated { signs_from, last_until })
}

/// Whether `key` is the one of `keys` that signs at `now`.
#[must_use]
pub fn is_signing(keys: &[ProviderKey], key: &ProviderKey, now: Timestamp) -> bool {
    signing_at(keys, now).is_some_and(|signing| signing.key.public() == key.key.public())
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    keys: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// The TLS registry's number.
    scheme: u16,
    private: String,
    not_before: u64,
    /// Absent while nothing is to follow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_after: Option<u64>,
}

impl Drop for Record {
    fn drop(&mut self) {
        self.private.zeroize();
    }
}

impl Record {
    fn generate(not_before: Timestamp) -> Result<Self, KeysError> {
        let key = SigningKey::generate(SignatureScheme::ED25519)?;
        Ok(Self::of(&ProviderKey { key, not_before, not_after: Timestamp(u64::MAX) }))
    }

    fn of(key: &ProviderKey) -> Self {
        Self {
            scheme: key.key.scheme().0,
            private: hex::encode(&**key.key.to_bytes()),
            not_before: key.not_before.0,
            not_after: (key.not_after.0 != u64::MAX).then_some(key.not_after.0),
        }
    }
}

impl File {
    fn into_keys(self, path: &Path) -> Result<Vec<ProviderKey>, KeysError> {
        if self.keys.is_empty() {
            return Err(damaged(path, "no key"));
        }
        let key = |record: &Record| {
            let mut bytes =
                hex::decode(&record.private).map_err(|_| damaged(path, "a key is not hex"))?;
            let key = SigningKey::from_bytes(SignatureScheme(record.scheme), &bytes);
            bytes.zeroize();
            Ok(ProviderKey {
                key: key.map_err(|_| damaged(path, "a key is not one of its scheme"))?,
                not_before: Timestamp(record.not_before),
                not_after: Timestamp(record.not_after.unwrap_or(u64::MAX)),
            })
        };
        self.keys.iter().map(key).collect()
    }
}

fn read(path: &Path) -> Result<Vec<ProviderKey>, KeysError> {
    let missing = || Err(KeysError::NeverMade { path: path.to_owned() });
    read_or_make::<File>(path, missing)?.into_keys(path)
}

pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}

const FILE: &str = "s2s.json";
const DAY_MS: u64 = 24 * 3600 * 1000;
/// How long a node that runs may take to publish a next key.
const PICK_UP_MS: u64 = 10 * 60 * 1000;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn publics(keys: &[ProviderKey]) -> Vec<Vec<u8>> {
        keys.iter().map(|key| key.key.public().as_slice().to_vec()).collect()
    }

    #[test]
    fn the_key_is_made_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        assert!(list(folder.path()).unwrap().is_empty());
        let (_, first) = S2sKeyFile::open(folder.path(), NOW).unwrap();
        let (_, again) = S2sKeyFile::open(folder.path(), NOW.plus_ms(1)).unwrap();
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].key.scheme(), SignatureScheme::ED25519);
        assert_eq!(publics(&first), publics(&again));
        assert_eq!(publics(&first), publics(&list(folder.path()).unwrap()));
        assert!(is_signing(&first, &first[0], NOW) && first[0].not_after.0 == u64::MAX);
        let path = folder.path().join("keys").join(FILE);
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_orderly_rotation_always_leaves_a_key_that_every_peer_knows() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, before) = S2sKeyFile::open(folder.path(), NOW).unwrap();
        assert!(file.changed().unwrap().is_none());
        let rotated = rotate(folder.path(), Urgency::Orderly, NOW).unwrap();
        let keys = file.changed().unwrap().expect("a running node sees it");
        assert!(file.changed().unwrap().is_none(), "once");
        assert_eq!(publics(&keys)[0], publics(&before)[0]);
        assert_eq!(keys.len(), 2);
        assert!(rotated.signs_from.ms_since(NOW) > PUBLISHED_FOR_MS);
        let just_before = Timestamp(rotated.signs_from.0 - 1);
        assert!(is_signing(&keys, &keys[0], just_before));
        assert!(is_signing(&keys, &keys[1], rotated.signs_from));
        // what the last key signed at its very end is fresh for five minutes by a clock that is five minutes late
        assert_eq!(keys[0].not_after, rotated.signs_from.plus_ms(2 * FRESH_MS));
        assert_eq!(keys[0].not_after, rotated.last_until);
        assert_eq!(keys[1].not_after.0, u64::MAX);

        let again = rotate(folder.path(), Urgency::Orderly, NOW).unwrap_err();
        assert!(
            matches!(again, KeysError::Rotating { signs_from } if signs_from == rotated.signs_from)
        );
        let later = rotated.last_until.plus_ms(1);
        rotate(folder.path(), Urgency::Orderly, later).unwrap();
        let keys = list(folder.path()).unwrap();
        assert_eq!(keys.len(), 2, "the one that ended is gone");
        assert!(!publics(&keys).contains(&publics(&before)[0]));
    }

    #[test]
    fn a_key_that_others_may_have_is_gone_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let (_, before) = S2sKeyFile::open(folder.path(), NOW).unwrap();
        rotate(folder.path(), Urgency::Orderly, NOW).unwrap();
        rotate(folder.path(), Urgency::AtOnce, NOW).unwrap();
        let keys = list(folder.path()).unwrap();
        assert_eq!(keys.len(), 1);
        assert!(is_signing(&keys, &keys[0], NOW));
        assert!(!publics(&keys).contains(&publics(&before)[0]));
    }

    #[test]
    fn a_damaged_file_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, _) = S2sKeyFile::open(folder.path(), NOW).unwrap();
        let path = folder.path().join("keys").join(FILE);
        for damage in
            ["", "{}", r#"{"keys":[]}"#, r#"{"keys":[{"scheme":7,"private":"00","not_before":0}]}"#]
        {
            fs::write(&path, damage).unwrap();
            assert!(matches!(file.changed(), Err(KeysError::Damaged { .. })), "{damage}");
            assert!(rotate(folder.path(), Urgency::Orderly, NOW).is_err());
            assert!(rotate(folder.path(), Urgency::AtOnce, NOW).is_err());
            assert_eq!(fs::read_to_string(&path).unwrap(), damage);
        }
        let empty = tempfile::tempdir().unwrap();
        let nothing = rotate(empty.path(), Urgency::Orderly, NOW).unwrap_err();
        assert!(matches!(nothing, KeysError::NeverMade { .. }), "{nothing}");
    }
}
