//! The hub's keys, in `keys/external-senders.json` of the data folder, and their rotation. PROTOCOL.md §2, "The hub's key
//! rotates"; §6, "Keys that are retired".
//!
//! The file holds, for each scheme, the key that new groups have and older ones until no group has them any more. A rotation
//! adds a key and lets go of none: only the old key can sign what puts the new one into its place. A node that runs reads
//! the file again when it has changed, and retires old keys that are in no group
//! ([`crate::group::keys::done_with`]). Of a retired key the public part stays for good, its private part until nobody is
//! owed an answer by it. Whoever changes the file holds a lock beside it.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::{
    key_file::{self, KeyFile, KeyRecord, KeySet, read, signing_key},
    keys::{KeysError, SCHEMES, damaged, keys_folder, write_secret},
};
use crate::{
    federation::ProviderKey,
    group::{HubKey, RetiredKey},
    store::records::KeyPrint,
    wire::{codec::Opaque, extensions::SignatureScheme, ids::Timestamp},
};

pub type SenderKeyFile = KeyFile<SenderKeys>;

/// The hub's keys of each scheme.
#[derive(Debug, Clone, Default)]
pub struct Senders {
    /// Those that groups have, the newest first.
    pub held: Vec<ProviderKey>,
    /// Those that no group has any more, in the order in which they were retired.
    pub retired: Vec<RetiredKey>,
}

impl SenderKeyFile {
    /// Retires old keys, which answer for their promises until `answers_until`; gives what is there then. The newest of a
    /// scheme stays whatever is asked for.
    ///
    /// # Errors
    /// [`KeysError`]: all of them stay.
    pub fn retire(
        &mut self,
        old: &[KeyPrint],
        now: Timestamp,
        answers_until: Timestamp,
    ) -> Result<Senders, KeysError> {
        self.change(|keys| {
            let stays = |key: &ProviderKey| {
                is_newest(&keys.held, key) || !old.contains(&hub_key(key).print())
            };
            let (held, gone): (Vec<_>, Vec<_>) = keys.held.iter().cloned().partition(stays);
            let retires = !gone.is_empty();
            let gone = gone.iter().map(|key| RetiredKey::new(hub_key(key), now, answers_until));
            keys.retired.extend(gone);
            keys.held = held;
            retires
        })
    }

    /// Erases the private part of retired keys that owe nobody an answer at `now`; gives what is there then.
    ///
    /// # Errors
    /// [`KeysError`]: they stay.
    pub fn erase(&mut self, now: Timestamp) -> Result<Senders, KeysError> {
        self.change(|keys| {
            let over = keys.retired.iter_mut().filter(|key| key.is_over(now));
            over.map(RetiredKey::erase).count() > 0
        })
    }

    fn change(&mut self, change: impl FnOnce(&mut Senders) -> bool) -> Result<Senders, KeysError> {
        let _lock = lock(&self.path)?;
        let mut keys = read::<SenderKeys>(&self.path)?;
        if change(&mut keys) {
            self.replace(&SenderKeys::of(&keys))?;
        }
        Ok(keys)
    }
}

/// The hub's keys in `data_dir`; none where none were made yet.
///
/// # Errors
/// [`KeysError`]
pub fn list(data_dir: &Path) -> Result<Senders, KeysError> {
    key_file::list::<SenderKeys>(data_dir)
}

/// Makes a next key of every scheme: new groups have it from now on.
///
/// # Errors
/// [`KeysError`]; [`KeysError::TooMany`] where [`KEYS_PER_SCHEME_MAX`] are in groups, [`KeysError::TooManyRetired`] where
/// [`KNOWN_PER_SCHEME_MAX`] are there with those that are retired.
pub fn rotate(data_dir: &Path, now: Timestamp) -> Result<(), KeysError> {
    let path = keys_folder(data_dir)?.join(SenderKeys::FILE);
    let _lock = lock(&path)?;
    let mut keys = read::<SenderKeys>(&path)?;
    for scheme in SCHEMES {
        let same = || keys.held.iter().filter(|key| key.key.scheme() == scheme);
        let retired = keys.retired.iter().filter(|key| key.scheme() == scheme).count();
        if same().count() >= KEYS_PER_SCHEME_MAX {
            return Err(KeysError::TooMany { count: same().count() });
        }
        if same().count() + retired >= KNOWN_PER_SCHEME_MAX {
            return Err(KeysError::TooManyRetired { count: retired });
        }
        // later than the one before, whatever has become of the clock
        let last = same().map(|key| key.not_before.plus_ms(1)).max();
        let since = last.unwrap_or(now).max(now);
        keys.held.push(KeyRecord::generate(scheme, since)?.to_key(&path)?);
    }
    write_secret(&path, &SenderKeys::of(&keys))
}

/// Lets go of the retired key with this print: it proves and answers nothing any more.
///
/// # Errors
/// [`KeysError`]; [`KeysError::NotRetired`] where there is no such key, or groups have it.
pub fn forget(data_dir: &Path, print: KeyPrint) -> Result<(), KeysError> {
    let path = keys_folder(data_dir)?.join(SenderKeys::FILE);
    let _lock = lock(&path)?;
    let mut keys = read::<SenderKeys>(&path)?;
    let before = keys.retired.len();
    keys.retired.retain(|key| key.print() != print);
    if keys.retired.len() == before {
        return Err(KeysError::NotRetired { print: hex::encode(print.0) });
    }
    write_secret(&path, &SenderKeys::of(&keys))
}

/// Whether new groups have `key` of `keys`.
#[must_use]
pub fn is_newest(keys: &[ProviderKey], key: &ProviderKey) -> bool {
    let same = keys.iter().filter(|other| other.key.scheme() == key.key.scheme());
    same.map(|other| other.not_before).max() == Some(key.not_before)
}

fn hub_key(key: &ProviderKey) -> HubKey {
    HubKey { key: key.key.clone(), since: key.not_before }
}

/// What the file holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SenderKeys {
    keys: Vec<KeyRecord>,
    /// Absent in files of builds that kept none, and while there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    retired: Vec<RetiredRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetiredRecord {
    scheme: u16,
    public: String,
    not_before: u64,
    retired_at: u64,
    /// Absent where it has been erased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answers: Option<Answers>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answers {
    private: String,
    until: u64,
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.private.zeroize();
    }
}

impl RetiredRecord {
    fn of(key: &RetiredKey) -> Self {
        let answers = key.answers().map(|(key, until)| Answers {
            private: hex::encode(&**key.to_bytes()),
            until: until.0,
        });
        Self {
            scheme: key.scheme().0,
            public: hex::encode(key.public().as_slice()),
            not_before: key.since().0,
            retired_at: key.retired_at().0,
            answers,
        }
    }

    fn to_key(&self, path: &Path) -> Result<RetiredKey, KeysError> {
        let public = hex::decode(&self.public).ok().and_then(|bytes| Opaque::new(bytes).ok());
        let public = public.ok_or_else(|| damaged(path, "a retired key is not hex"))?;
        let (since, at) = (Timestamp(self.not_before), Timestamp(self.retired_at));
        let Some(Answers { private, until }) = &self.answers else {
            return Ok(RetiredKey::erased(SignatureScheme(self.scheme), public, since, at));
        };
        let key = signing_key(self.scheme, private, path)?;
        if *key.public() != public {
            return Err(damaged(path, "the parts of a retired key are not of one key"));
        }
        Ok(RetiredKey::new(HubKey { key, since }, at, Timestamp(*until)))
    }
}

impl SenderKeys {
    fn of(keys: &Senders) -> Self {
        Self {
            keys: keys.held.iter().map(KeyRecord::of).collect(),
            retired: keys.retired.iter().map(RetiredRecord::of).collect(),
        }
    }
}

impl KeySet for SenderKeys {
    const FILE: &str = "external-senders.json";
    type Keys = Senders;

    fn make(now: Timestamp) -> Result<Self, KeysError> {
        let keys = SCHEMES.into_iter().map(|scheme| KeyRecord::generate(scheme, now));
        Ok(Self { keys: keys.collect::<Result<_, _>>()?, retired: Vec::new() })
    }

    fn into_keys(self, path: &Path) -> Result<Senders, KeysError> {
        let held = self.keys.iter().map(|record| record.to_key(path));
        let mut held = held.collect::<Result<Vec<_>, _>>()?;
        let has = |scheme| held.iter().any(|key| key.key.scheme() == scheme);
        if let Some(missing) = SCHEMES.into_iter().find(|scheme| !has(*scheme)) {
            return Err(damaged(path, &format!("no key of scheme 0x{:04x}", missing.0)));
        }
        // who takes the first that fits takes the one for new groups
        held.sort_by_key(|key| std::cmp::Reverse(key.not_before));
        let retired = self.retired.iter().map(|record| record.to_key(path));
        Ok(Senders { held, retired: retired.collect::<Result<_, _>>()? })
    }
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

/// Keys of one scheme in groups. One that leaks must be replaceable while another is still on its way out.
pub const KEYS_PER_SCHEME_MAX: usize = 8;
/// The same with those that are retired: 64 rotations, and a list that every peer takes.
pub const KNOWN_PER_SCHEME_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    const YEAR: u64 = 365 * 24 * 3600 * 1000;

    fn print(key: &ProviderKey) -> KeyPrint {
        hub_key(key).print()
    }

    fn prints(keys: &[ProviderKey]) -> Vec<KeyPrint> {
        keys.iter().map(print).collect()
    }

    fn retired(keys: &Senders) -> Vec<(KeyPrint, Timestamp, Option<Timestamp>)> {
        let until = |key: &RetiredKey| key.answers().map(|(_, until)| until);
        keys.retired.iter().map(|key| (key.print(), key.retired_at(), until(key))).collect()
    }

    /// A file in which the first keys are retired, and those.
    fn with_retired(folder: &Path) -> (SenderKeyFile, Vec<ProviderKey>) {
        let (mut file, first) = SenderKeyFile::open(folder, NOW).unwrap();
        rotate(folder, NOW.plus_ms(1)).unwrap();
        file.retire(&prints(&first.held), NOW.plus_ms(9), NOW.plus_ms(YEAR)).unwrap();
        (file, first.held)
    }

    #[test]
    fn a_rotation_adds_a_key_of_each_scheme_and_lets_go_of_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(list(folder.path()).unwrap().held.is_empty());
        assert!(matches!(rotate(folder.path(), NOW), Err(KeysError::NeverMade { .. })));
        let (mut file, first) = SenderKeyFile::open(folder.path(), NOW).unwrap();
        assert!(file.changed().unwrap().is_none());
        // even with a clock that has gone back
        rotate(folder.path(), Timestamp(NOW.0 - 5000)).unwrap();
        let keys = file.changed().unwrap().expect("a running node sees it");
        assert!(file.changed().unwrap().is_none(), "once");
        let (first, keys) = (first.held, keys.held);
        assert_eq!(keys.len(), 4);
        assert_eq!(prints(&first), prints(&keys[2..]), "the new ones come first");
        for key in &keys {
            assert_eq!(is_newest(&keys, key), !prints(&first).contains(&print(key)));
        }
        assert_eq!(prints(&keys), prints(&list(folder.path()).unwrap().held));
        let path = folder.path().join("keys").join(SenderKeys::FILE);
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn old_keys_retire_and_the_newest_never() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, first) = SenderKeyFile::open(folder.path(), NOW).unwrap();
        rotate(folder.path(), NOW.plus_ms(1)).unwrap();
        let keys = file.changed().unwrap().unwrap().held;
        let (at, until) = (NOW.plus_ms(9), NOW.plus_ms(YEAR));
        let kept = file.retire(&prints(&keys), at, until).unwrap();
        assert_eq!(prints(&kept.held), prints(&keys[..2]));
        let gone: Vec<_> =
            prints(&keys[2..]).into_iter().map(|print| (print, at, Some(until))).collect();
        assert_eq!(retired(&kept), gone);
        assert!(!prints(&kept.held).contains(&print(&first.held[0])));
        assert!(file.changed().unwrap().is_none(), "what it wrote itself it knows");
        let there = list(folder.path()).unwrap();
        assert_eq!(prints(&kept.held), prints(&there.held));
        assert_eq!(retired(&there), gone);
        for (key, before) in there.retired.iter().zip(&keys[2..]) {
            assert_eq!(key.answers().unwrap().0.to_bytes(), before.key.to_bytes());
            assert_eq!(key.since(), before.not_before);
        }
        let path = folder.path().join("keys").join(SenderKeys::FILE);
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn of_a_retired_key_the_public_part_stays_when_its_time_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, first) = with_retired(folder.path());
        let path = folder.path().join("keys").join(SenderKeys::FILE);
        let private = hex::encode(&**first[0].key.to_bytes());
        let early = file.erase(Timestamp(NOW.0 + YEAR - 1)).unwrap();
        assert!(early.retired.iter().all(|key| key.answers().is_some()));
        assert!(fs::read_to_string(&path).unwrap().contains(&private));
        let left = file.erase(NOW.plus_ms(YEAR)).unwrap();
        let erased = |key: &ProviderKey| (print(key), NOW.plus_ms(9), None);
        assert_eq!(retired(&left), first.iter().map(erased).collect::<Vec<_>>());
        assert_eq!(retired(&list(folder.path()).unwrap()), retired(&left));
        assert!(!fs::read_to_string(&path).unwrap().contains(&private));
        assert_eq!(left.retired[0].public(), first[0].key.public());
    }

    #[test]
    fn a_file_of_before_there_were_retired_keys_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, first) = SenderKeyFile::open(folder.path(), NOW).unwrap();
        let private = |at: usize| hex::encode(&**first.held[at].key.to_bytes());
        let old = format!(
            r#"{{"keys":[{{"scheme":2055,"private":"{}","not_before":5}},{{"scheme":1027,"private":"{}","not_before":5}}]}}"#,
            private(0),
            private(1)
        );
        fs::write(folder.path().join("keys").join(SenderKeys::FILE), old).unwrap();
        let keys = file.changed().unwrap().unwrap();
        assert_eq!(prints(&keys.held), prints(&first.held));
        assert!(keys.retired.is_empty());
        rotate(folder.path(), NOW).unwrap();
        assert_eq!(list(folder.path()).unwrap().held.len(), 4);
    }

    #[test]
    fn retired_keys_are_forgotten_by_hand_alone_and_bound_the_rotations() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, first) = with_retired(folder.path());
        let held = list(folder.path()).unwrap().held;
        for key in [print(&held[0]), KeyPrint([1; 16])] {
            assert!(matches!(forget(folder.path(), key), Err(KeysError::NotRetired { .. })));
        }
        let mut at = NOW.plus_ms(10);
        for _ in 2..KNOWN_PER_SCHEME_MAX {
            at = at.plus_ms(1);
            let old = prints(&list(folder.path()).unwrap().held);
            rotate(folder.path(), at).unwrap();
            file.retire(&old, at, at).unwrap();
        }
        let before = list(folder.path()).unwrap();
        assert_eq!(before.retired.len(), 2 * (KNOWN_PER_SCHEME_MAX - 1));
        let full = rotate(folder.path(), at.plus_ms(1)).unwrap_err();
        assert!(matches!(full, KeysError::TooManyRetired { .. }), "{full}");
        assert!(full.to_string().contains("mimid keys forget"), "{full}");
        assert_eq!(retired(&list(folder.path()).unwrap()), retired(&before));
        for key in &first {
            forget(folder.path(), print(key)).unwrap();
        }
        let after = list(folder.path()).unwrap();
        assert_eq!(retired(&after), retired(&before)[2..]);
        assert!(file.changed().unwrap().is_some(), "a node that runs hears of it");
        rotate(folder.path(), at.plus_ms(1)).unwrap();
    }

    #[test]
    fn the_parts_of_a_retired_key_are_of_one_key() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, first) = with_retired(folder.path());
        let path = folder.path().join("keys").join(SenderKeys::FILE);
        let text = fs::read_to_string(&path).unwrap();
        let public = hex::encode(first[0].key.public().as_slice());
        for other in ["ab".repeat(32), "nothex".to_owned()] {
            fs::write(&path, text.replace(&public, &other)).unwrap();
            assert!(matches!(file.changed(), Err(KeysError::Damaged { .. })), "{other}");
        }
    }

    #[test]
    fn a_rotation_that_came_just_before_a_retirement_is_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, first) = SenderKeyFile::open(folder.path(), NOW).unwrap();
        rotate(folder.path(), NOW.plus_ms(1)).unwrap();
        rotate(folder.path(), NOW.plus_ms(2)).unwrap();
        assert_eq!(file.retire(&prints(&first.held), NOW, NOW).unwrap().held.len(), 4);
    }

    #[test]
    fn there_is_a_most_of_keys() {
        let folder = tempfile::tempdir().unwrap();
        SenderKeyFile::open(folder.path(), NOW).unwrap();
        for _ in 1..KEYS_PER_SCHEME_MAX {
            rotate(folder.path(), NOW).unwrap();
        }
        let before = prints(&list(folder.path()).unwrap().held);
        assert!(matches!(rotate(folder.path(), NOW), Err(KeysError::TooMany { .. })));
        assert_eq!(prints(&list(folder.path()).unwrap().held), before);
    }

    #[test]
    fn a_damaged_file_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, first) = SenderKeyFile::open(folder.path(), NOW).unwrap();
        let path = folder.path().join("keys").join(SenderKeys::FILE);
        for damage in ["", "{}", r#"{"keys":[]}"#] {
            fs::write(&path, damage).unwrap();
            assert!(matches!(file.changed(), Err(KeysError::Damaged { .. })), "{damage}");
            assert!(rotate(folder.path(), NOW).is_err());
            assert!(file.retire(&prints(&first.held), NOW, NOW).is_err());
            assert_eq!(fs::read_to_string(&path).unwrap(), damage);
        }
    }
}
