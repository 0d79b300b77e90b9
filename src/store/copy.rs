//! A store made anew in another engine, key by key.
//!
//! What is copied is bytes: no record is read, so none can be misread. The copy is made in a folder beside its place and
//! moved there when it has been read back whole, so that one that was broken off is never taken for a store.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    OpenError,
    engine::{Changes, Engine, Failure},
    fjall::{self, Fjall},
    folder::{engine_in, sync},
    keys,
    sled::{self, Sled},
    tee::piece,
};

/// What was copied, and read back to be the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    pub from: &'static str,
    pub to: &'static str,
    pub records: u64,
    /// Of keys and values.
    pub bytes: u64,
}

/// Why there is no copy. Where it was to be there is nothing then, and the store that was to be copied is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("there is no store in {}: give the folder that has `sled` or `fjall` in it", .0.display())]
    NoStore(PathBuf),
    #[error("{} is there already: give a place where nothing is", .0.display())]
    Exists(PathBuf),
    #[error("{} is inside of the folder that is to be copied: give a place beside it", .0.display())]
    Inside(PathBuf),
    #[error("a store is copied to \"sled\" or \"fjall\", not {0:?}")]
    UnknownEngine(String),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the store in {} cannot be read or written: {reason}", path.display())]
    Engine { path: PathBuf, reason: String },
    #[error(
        "the copy differs from what was copied at its record {0}: check the disk, and the memory of this machine"
    )]
    Differs(u64),
    #[error("cannot {what} {}: {error}", path.display())]
    Folder { what: &'static str, path: PathBuf, error: io::Error },
}

/// Copies the store in the folder `from`, which no process may have open, to `engine` (by default the one that it is not) in the
/// folder `to`, which must not be there. `told` hears after each piece how many records are copied. It blocks.
///
/// # Errors
/// [`CopyError`]
pub fn copy(
    from: &Path,
    to: &Path,
    engine: Option<&str>,
    mut told: impl FnMut(u64),
) -> Result<Copied, CopyError> {
    let source = engine_in(from).ok_or_else(|| CopyError::NoStore(from.to_owned()))?;
    let target = match engine {
        Some(sled::NAME) => sled::NAME,
        Some(fjall::NAME) => fjall::NAME,
        Some(other) => return Err(CopyError::UnknownEngine(other.to_owned())),
        None if source == sled::NAME => fjall::NAME,
        None => sled::NAME,
    };
    if to.exists() {
        return Err(CopyError::Exists(to.to_owned()));
    }
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |error| CopyError::Folder { what, path, error }
    };
    let unfinished = beside(to);
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(failed("remove", &unfinished))?;
    }
    let old = open(source, from)?;
    let copied = fill(&*old, source, from, &unfinished, target, &mut told);
    let copied = match copied {
        Ok((records, bytes)) => Copied { from: source, to: target, records, bytes },
        Err(error) => {
            // what is wrong is said; that something of it may be left is the smaller harm
            let _ = fs::remove_dir_all(&unfinished);
            return Err(error);
        }
    };
    fs::rename(&unfinished, to).map_err(failed("make", to))?;
    let above = to.parent().filter(|above| !above.as_os_str().is_empty());
    sync(above.unwrap_or(Path::new("."))).map_err(failed("sync", to))?;
    Ok(copied)
}

/// Copies all of `old` and reads it back.
fn fill(
    old: &dyn Engine,
    source: &'static str,
    from: &Path,
    to: &Path,
    target: &'static str,
    told: &mut impl FnMut(u64),
) -> Result<(u64, u64), CopyError> {
    let read = |Failure(reason)| CopyError::Engine { path: from.to_owned(), reason };
    let write = |Failure(reason)| CopyError::Engine { path: to.to_owned(), reason };
    let sequence = old.read(&keys::commit_sequence()).map_err(read)?;
    let sequence = keys::decode_commit_sequence(sequence.as_deref())
        .map_err(|error| CopyError::Engine { path: from.to_owned(), reason: error.to_string() })?;
    let (mut records, mut bytes) = (0, 0);
    {
        let new = open(target, to)?;
        let mut after = Vec::new();
        loop {
            let piece = piece(old, &after, PIECE_BYTES, PIECE_RECORDS).map_err(read)?;
            let Some((last, _)) = piece.last() else { break };
            after.clone_from(last);
            after.push(0);
            records += piece.len() as u64;
            bytes += piece.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum::<u64>();
            let changes: Changes =
                piece.into_iter().map(|(key, value)| (key, Some(value))).collect();
            new.apply(&changes).map_err(write)?;
            told(records);
        }
        new.sync(sequence).and_then(|()| new.close()).map_err(write)?;
    }
    tracing::debug!(source, target, records, "copied; it is read back");
    let new = open(target, to)?;
    let (mut after, mut seen) = (Vec::new(), 0);
    loop {
        let (before, now) = (
            piece(old, &after, PIECE_BYTES, PIECE_RECORDS).map_err(read)?,
            piece(&*new, &after, PIECE_BYTES, PIECE_RECORDS).map_err(write)?,
        );
        let same = before.iter().zip(&now).take_while(|(before, now)| before == now).count();
        if same < before.len().max(now.len()) {
            return Err(CopyError::Differs(seen + same as u64));
        }
        let Some((last, _)) = before.last() else { return Ok((records, bytes)) };
        seen += before.len() as u64;
        after.clone_from(last);
        after.push(0);
    }
}

pub(super) fn open(engine: &'static str, folder: &Path) -> Result<Box<dyn Engine>, OpenError> {
    Ok(match engine {
        fjall::NAME => Box::new(Fjall::open(folder, CACHE_BYTES)?),
        _ => Box::new(Sled::open(folder, CACHE_BYTES)?),
    })
}

/// Where a copy is until it is whole.
pub(super) fn beside(to: &Path) -> PathBuf {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(".unfinished");
    to.with_file_name(name)
}

const CACHE_BYTES: u64 = 64 << 20;
/// Either engine takes so much in one change.
pub(super) const PIECE_BYTES: usize = 1 << 20;
pub(super) const PIECE_RECORDS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Batch, SharedStore, StoreConfig, Write, open as open_store};

    fn opened(folder: &Path, engine: &str) -> SharedStore {
        let config = StoreConfig {
            engine: engine.to_owned(),
            folder: folder.to_owned(),
            cache_bytes: 16 << 20,
        };
        open_store(&config).unwrap()
    }

    /// Many small records and some of many kilobytes.
    async fn filled(folder: &Path, engine: &str) {
        let store = opened(folder, engine);
        for at in 0..40u8 {
            let group = crate::wire::ids::GroupId::of(
                &crate::wire::ids::Domain::new("a.example").unwrap(),
                [at; 16],
            );
            let bytes = vec![at; usize::from(at) * 4_000];
            let snapshot = Write::Snapshot { group, at: crate::wire::ids::Sequence(1), bytes };
            let node = Write::Node { name: "n", bytes: vec![at] };
            store.write(Batch::low_priority().and(snapshot).and(node)).await.unwrap();
        }
        store.close().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_copy_has_every_record_there_and_back_and_is_a_store() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        filled(&place("old"), "sled").await;
        let mut pieces = 0;
        let there = copy(&place("old"), &place("new"), None, |_| pieces += 1).unwrap();
        assert_eq!((there.from, there.to), ("sled", "fjall"));
        assert!(there.records > 40 && there.bytes > 3_000_000 && pieces > 2, "{there:?}");
        let back = copy(&place("new"), &place("back"), Some("sled"), |_| {}).unwrap();
        assert_eq!((back.records, back.bytes), (there.records, there.bytes));
        for (name, engine) in [("new", "fjall"), ("back", "sled"), ("old", "sled")] {
            let store = opened(&place(name), engine);
            assert_eq!(store.node("n").await, Ok(Some(vec![39])), "{name}");
            let node = Write::Node { name: "m", bytes: vec![1] };
            store.write(Batch::new().and(node)).await.unwrap();
            store.close().await.unwrap();
            // its mark came with it: it opens again behind what was written since
            drop(store);
            assert_eq!(opened(&place(name), engine).node("m").await, Ok(Some(vec![1])), "{name}");
        }
        assert!(!place("new.unfinished").exists());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_cannot_be_copied_is_said_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let nothing = copy(&place("none"), &place("new"), None, |_| {}).unwrap_err();
        assert!(matches!(nothing, CopyError::NoStore(_)), "{nothing}");
        filled(&place("old"), "sled").await;
        let open = opened(&place("old"), "sled");
        let in_use = copy(&place("old"), &place("new"), None, |_| {}).unwrap_err();
        assert!(matches!(in_use, CopyError::Open(OpenError::InUse { .. })), "{in_use}");
        drop(open);
        let other = copy(&place("old"), &place("new"), Some("redb"), |_| {}).unwrap_err();
        assert!(matches!(other, CopyError::UnknownEngine(_)), "{other}");
        let exists = copy(&place("old"), folder.path(), None, |_| {}).unwrap_err();
        assert!(matches!(exists, CopyError::Exists(_)), "{exists}");
        assert!(!place("new").exists() && !place("new.unfinished").exists());
        // one that was broken off is made anew
        fs::create_dir_all(place("new.unfinished").join("fjall")).unwrap();
        copy(&place("old"), &place("new"), None, |_| {}).unwrap();
        assert!(!place("new.unfinished").exists());
        // and neither engine opens the other's
        let config =
            StoreConfig { engine: "sled".into(), folder: place("new"), cache_bytes: 1 << 20 };
        let error = open_store(&config).err().unwrap();
        assert!(matches!(error, OpenError::OtherEngine { found: "fjall", wanted: "sled", .. }));
        assert!(error.to_string().contains("mimid store copy"), "{error}");
    }
}
