//! The hub's keys, in `keys/external-senders.json` of the data folder, and their rotation. PROTOCOL.md §2, "The hub's key
//! rotates".
//!
//! The file holds, for each scheme, the key that new groups have and older ones until no group has them any more. A rotation
//! adds a key and lets go of none: only the old key can sign what puts the new one into its place. A node that runs reads
//! the file again when it has changed, and takes old keys out of it when they are in no group
//! ([`crate::group::keys::done_with`]). Whoever changes the file holds a lock beside it.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::{
    keys::{KeysError, SCHEMES, damaged, keys_folder, read_or_make, write_secret},
    s2s_keys::{Stamp, stamp},
};
use crate::{
    crypto::SigningKey,
    federation::ProviderKey,
    group::HubKey,
    store::records::KeyPrint,
    wire::{extensions::SignatureScheme, ids::Timestamp},
};

/// The file, and which state of it was read last.
#[derive(Debug)]
pub struct SenderKeyFile {
    path: PathBuf,
    read: Option<Stamp>,
}

impl SenderKeyFile {
    /// Reads the keys of `data_dir`, the newest first; makes one of each scheme at the first start.
    ///
    /// # Errors
    /// [`KeysError`]
    pub fn open(data_dir: &Path, now: Timestamp) -> Result<(Self, Vec<ProviderKey>), KeysError> {
        let path = keys_folder(data_dir)?.join(FILE);
        // before it is read, so that no change is missed
        let there = stamp(&path);
        let file: Keys = read_or_make(&path, || {
            let keys = SCHEMES.into_iter().map(|scheme| Record::generate(scheme, now));
            Ok(Keys { keys: keys.collect::<Result<_, _>>()? })
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

    /// Takes old keys out of the file; gives those that stay. The newest of a scheme stays whatever is asked for.
    ///
    /// # Errors
    /// [`KeysError`]: all of them stay.
    pub fn retire(&mut self, old: &[KeyPrint]) -> Result<Vec<ProviderKey>, KeysError> {
        let _lock = lock(&self.path)?;
        let keys = read(&self.path)?;
        let stays = |key: &&ProviderKey| is_newest(&keys, key) || !old.contains(&print(key));
        let kept: Vec<ProviderKey> = keys.iter().filter(stays).cloned().collect();
        if kept.len() < keys.len() {
            write(&self.path, &kept)?;
        }
        self.read = stamp(&self.path);
        Ok(kept)
    }
}

/// The hub's keys in `data_dir`, the newest first; none where none were made yet.
///
/// # Errors
/// [`KeysError`]
pub fn list(data_dir: &Path) -> Result<Vec<ProviderKey>, KeysError> {
    let path = data_dir.join("keys").join(FILE);
    if path.exists() { read(&path) } else { Ok(Vec::new()) }
}

/// Makes a next key of every scheme: new groups have it from now on.
///
/// # Errors
/// [`KeysError`]; [`KeysError::TooMany`] where [`KEYS_PER_SCHEME_MAX`] are there.
pub fn rotate(data_dir: &Path, now: Timestamp) -> Result<(), KeysError> {
    let path = keys_folder(data_dir)?.join(FILE);
    let _lock = lock(&path)?;
    let mut keys = read(&path)?;
    for scheme in SCHEMES {
        let same = || keys.iter().filter(|key| key.key.scheme() == scheme);
        if same().count() >= KEYS_PER_SCHEME_MAX {
            return Err(KeysError::TooMany { count: same().count() });
        }
        // later than the one before, whatever has become of the clock
        let last = same().map(|key| key.not_before.plus_ms(1)).max();
        keys.push(Record::generate(scheme, last.unwrap_or(now).max(now))?.to_key(&path)?);
    }
    write(&path, &keys)
}

/// Whether new groups have `key` of `keys`.
#[must_use]
pub fn is_newest(keys: &[ProviderKey], key: &ProviderKey) -> bool {
    let same = keys.iter().filter(|other| other.key.scheme() == key.key.scheme());
    same.map(|other| other.not_before).max() == Some(key.not_before)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    keys: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// The TLS registry's number.
    scheme: u16,
    private: String,
    not_before: u64,
}

impl Drop for Record {
    fn drop(&mut self) {
        self.private.zeroize();
    }
}

impl Record {
    fn generate(scheme: SignatureScheme, since: Timestamp) -> Result<Self, KeysError> {
        let (key, not_after) = (SigningKey::generate(scheme)?, Timestamp(u64::MAX));
        Ok(Self::of(&ProviderKey { key, not_before: since, not_after }))
    }

    fn of(key: &ProviderKey) -> Self {
        Self {
            scheme: key.key.scheme().0,
            private: hex::encode(&**key.key.to_bytes()),
            not_before: key.not_before.0,
        }
    }

    fn to_key(&self, path: &Path) -> Result<ProviderKey, KeysError> {
        let mut bytes =
            hex::decode(&self.private).map_err(|_| damaged(path, "a key is not hex"))?;
        let key = SigningKey::from_bytes(SignatureScheme(self.scheme), &bytes);
        bytes.zeroize();
        let key = key.map_err(|_| damaged(path, "a key is not one of its scheme"))?;
        // when the last group has let go of it is known to nobody before
        let (not_before, not_after) = (Timestamp(self.not_before), Timestamp(u64::MAX));
        Ok(ProviderKey { key, not_before, not_after })
    }
}

impl Keys {
    fn into_keys(self, path: &Path) -> Result<Vec<ProviderKey>, KeysError> {
        let mut keys =
            self.keys.iter().map(|record| record.to_key(path)).collect::<Result<Vec<_>, _>>()?;
        let has = |scheme| keys.iter().any(|key| key.key.scheme() == scheme);
        if let Some(missing) = SCHEMES.into_iter().find(|scheme| !has(*scheme)) {
            return Err(damaged(path, &format!("no key of scheme 0x{:04x}", missing.0)));
        }
        // who takes the first that fits takes the one for new groups
        keys.sort_by_key(|key| std::cmp::Reverse(key.not_before));
        Ok(keys)
    }
}

fn read(path: &Path) -> Result<Vec<ProviderKey>, KeysError> {
    let missing = || Err(KeysError::NeverMade { path: path.to_owned() });
    read_or_make::<Keys>(path, missing)?.into_keys(path)
}

fn write(path: &Path, keys: &[ProviderKey]) -> Result<(), KeysError> {
    write_secret(path, &Keys { keys: keys.iter().map(Record::of).collect() })
}

fn print(key: &ProviderKey) -> KeyPrint {
    HubKey { key: key.key.clone(), since: key.not_before }.print()
}

/// Held until it is dropped, by one process at a time; the system lets go of it when that one ends.
fn lock(path: &Path) -> Result<File, KeysError> {
    let path = path.with_extension("lock");
    let open = || {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(|source| KeysError::File { path: path.clone(), source })
}

/// Keys of one scheme. One that leaks must be replaceable while another is still on its way out.
pub const KEYS_PER_SCHEME_MAX: usize = 8;
const FILE: &str = "external-senders.json";

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn prints(keys: &[ProviderKey]) -> Vec<KeyPrint> {
        keys.iter().map(print).collect()
    }

    #[test]
    fn a_rotation_adds_a_key_of_each_scheme_and_lets_go_of_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(list(folder.path()).unwrap().is_empty());
        assert!(matches!(rotate(folder.path(), NOW), Err(KeysError::NeverMade { .. })));
        let (mut file, first) = SenderKeyFile::open(folder.path(), NOW).unwrap();
        assert!(file.changed().unwrap().is_none());
        // even with a clock that has gone back
        rotate(folder.path(), Timestamp(NOW.0 - 5000)).unwrap();
        let keys = file.changed().unwrap().expect("a running node sees it");
        assert!(file.changed().unwrap().is_none(), "once");
        assert_eq!(keys.len(), 4);
        assert_eq!(prints(&first), prints(&keys[2..]), "the new ones come first");
        for key in &keys {
            assert_eq!(is_newest(&keys, key), !prints(&first).contains(&print(key)));
        }
        assert_eq!(prints(&keys), prints(&list(folder.path()).unwrap()));
        let path = folder.path().join("keys").join(FILE);
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn old_keys_retire_and_the_newest_never() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, first) = SenderKeyFile::open(folder.path(), NOW).unwrap();
        rotate(folder.path(), NOW.plus_ms(1)).unwrap();
        let keys = file.changed().unwrap().unwrap();
        let kept = file.retire(&prints(&keys)).unwrap();
        assert_eq!(prints(&kept), prints(&keys[..2]));
        assert!(!prints(&kept).contains(&print(&first[0])));
        assert!(file.changed().unwrap().is_none(), "what it wrote itself it knows");
        assert_eq!(prints(&kept), prints(&list(folder.path()).unwrap()));
    }

    #[test]
    fn a_rotation_that_came_just_before_a_retirement_is_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, first) = SenderKeyFile::open(folder.path(), NOW).unwrap();
        rotate(folder.path(), NOW.plus_ms(1)).unwrap();
        rotate(folder.path(), NOW.plus_ms(2)).unwrap();
        assert_eq!(file.retire(&prints(&first)).unwrap().len(), 4);
    }

    #[test]
    fn there_is_a_most_of_keys() {
        let folder = tempfile::tempdir().unwrap();
        SenderKeyFile::open(folder.path(), NOW).unwrap();
        for _ in 1..KEYS_PER_SCHEME_MAX {
            rotate(folder.path(), NOW).unwrap();
        }
        let before = prints(&list(folder.path()).unwrap());
        assert!(matches!(rotate(folder.path(), NOW), Err(KeysError::TooMany { .. })));
        assert_eq!(prints(&list(folder.path()).unwrap()), before);
    }

    #[test]
    fn a_damaged_file_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, first) = SenderKeyFile::open(folder.path(), NOW).unwrap();
        let path = folder.path().join("keys").join(FILE);
        for damage in ["", "{}", r#"{"keys":[]}"#] {
            fs::write(&path, damage).unwrap();
            assert!(matches!(file.changed(), Err(KeysError::Damaged { .. })), "{damage}");
            assert!(rotate(folder.path(), NOW).is_err());
            assert!(file.retire(&prints(&first)).is_err());
            assert_eq!(fs::read_to_string(&path).unwrap(), damage);
        }
    }
}
