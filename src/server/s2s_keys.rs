//! The keys that sign for other providers, in `keys/s2s.json` of the data folder, and their rotation. PROTOCOL.md §4.
//!
//! The file holds the present key, the next one until it begins, and the last one until nothing that it signed can be fresh
//! any longer. A rotation only writes the file; a node that runs reads it again when it has changed
//! (`S2sKeyFile::refresh`). Since a next key begins later than any peer's copy of the list lasts, no message is lost to one.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{
    key_file::{self, KeyFile, KeyRecord, KeySet, read},
    keys::{KeysError, damaged, keys_folder, write_secret},
};
use crate::{
    federation::{
        Federation, ProviderKey,
        message::FRESH_MS,
        own_keys::{PUBLISHED_FOR_MS, signing_at},
    },
    wire::{extensions::SignatureScheme, ids::Timestamp},
};

pub type S2sKeyFile = KeyFile<S2sKeys>;

impl S2sKeyFile {
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
    key_file::list::<S2sKeys>(data_dir)
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
    let path = keys_folder(data_dir)?.join(S2sKeys::FILE);
    let mut keys = read::<S2sKeys>(&path)?;
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
    let mut records: Vec<KeyRecord> = keys.iter().map(KeyRecord::of).collect();
    records.push(KeyRecord::generate(SCHEME, signs_from)?);
    write_secret(&path, &S2sKeys { keys: records })?;
    Ok(Rotated { signs_from, last_until })
}

/// Whether `key` is the one of `keys` that signs at `now`.
#[must_use]
pub fn is_signing(keys: &[ProviderKey], key: &ProviderKey, now: Timestamp) -> bool {
    signing_at(keys, now).is_some_and(|signing| signing.key.public() == key.key.public())
}

/// What the file holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S2sKeys {
    keys: Vec<KeyRecord>,
}

impl KeySet for S2sKeys {
    const FILE: &str = "s2s.json";
    type Keys = Vec<ProviderKey>;

    fn make(now: Timestamp) -> Result<Self, KeysError> {
        // a clock that is set right after the first start must not put the key into the future
        let since = Timestamp(now.0.saturating_sub(DAY_MS));
        Ok(Self { keys: vec![KeyRecord::generate(SCHEME, since)?] })
    }

    fn into_keys(self, path: &Path) -> Result<Vec<ProviderKey>, KeysError> {
        if self.keys.is_empty() {
            return Err(damaged(path, "no key"));
        }
        self.keys.iter().map(|record| record.to_key(path)).collect()
    }
}

const SCHEME: SignatureScheme = SignatureScheme::ED25519;
const DAY_MS: u64 = 24 * 3600 * 1000;
/// How long a node that runs may take to publish a next key.
const PICK_UP_MS: u64 = 10 * 60 * 1000;

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

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
        let path = folder.path().join("keys").join(S2sKeys::FILE);
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
        let path = folder.path().join("keys").join(S2sKeys::FILE);
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
