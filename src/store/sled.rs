//! The embedded engine: sled 0.34.7, used in the one way in which it loses nothing that was answered.
//!
//! As shipped its `flush` does not reach the disk on a power loss, values above 8 KB may go to files that are never
//! synced, and a database that has lost everything opens as an empty one without an error. So here: one tree, one
//! batch at a time, `flush` and then `fdatasync` of its file, no value above 4 KB ([`keys`]), no flusher of its own,
//! and a [`Mark`] beside the database that tells how far it must reach.
//!
//! The store's folder (0700) holds `lock`, held while a process has the store open; `mark`; and `sled/`, the database.
//!
//! [`keys`]: super::keys

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read},
    ops::ControlFlow,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use aws_lc_rs::digest;

use super::{
    OpenError, StoreError,
    engine::{Changes, Engine, Failure, Visit},
    keys,
    reader::NodeStore,
    writer,
};

/// Opens the store in `folder`, or makes a new one.
pub(super) fn open(folder: &Path, cache_bytes: u64) -> Result<Arc<NodeStore>, OpenError> {
    let engine = Sled::open(folder, cache_bytes)?;
    Ok(Arc::new(NodeStore::start(Box::new(engine), folder.to_owned())?))
}

/// The database of one folder.
pub(super) struct Sled {
    db: ::sled::Db,
    /// The database's file, opened anew: sled does not sync it so that it survives a power loss.
    file: File,
    mark: Mark,
    bytes_on_disk: AtomicU64,
    /// Released last.
    _lock: File,
}

impl Sled {
    /// # Errors
    /// [`OpenError`]: in use, cannot be read, or behind what it has answered for.
    pub fn open(folder: &Path, cache_bytes: u64) -> Result<Self, OpenError> {
        let failed = |what| move |error| OpenError::Folder { what, path: folder.to_owned(), error };
        make_folder(folder).map_err(failed("make the folder"))?;
        let lock = lock(folder)?;
        let path = folder.join("sled");
        let db = database(&path, cache_bytes)?;
        let file = File::open(path.join("db")).map_err(failed("open the database in"))?;
        let stored = db.get(keys::commit_sequence());
        let stored = stored
            .map_err(|error| StoreError::Unavailable(error.to_string()))
            .and_then(|value| keys::decode_commit_sequence(value.as_deref()))
            .map_err(|error| OpenError::Record { path: path.clone(), reason: error.to_string() })?;
        restrict(&path).map_err(failed("set the permissions in"))?;
        let mark = Mark::open(folder, stored)?;
        // what is new in the folders must survive as well: the files, and the names by which they are found
        file.sync_all()
            .and_then(|()| sync(&path.join("conf")))
            .and_then(|()| sync(&path.join("blobs")))
            .and_then(|()| sync(&path))
            .and_then(|()| sync(folder))
            .map_err(failed("sync"))?;
        let bytes_on_disk = AtomicU64::new(db.size_on_disk().unwrap_or(0));
        tracing::info!(folder = %folder.display(), sequence = stored, "the store is open");
        Ok(Self { db, file, mark, bytes_on_disk, _lock: lock })
    }
}

impl From<::sled::Error> for Failure {
    fn from(error: ::sled::Error) -> Self {
        Self(format!("the database: {error}"))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self(format!("the disk: {error}"))
    }
}

impl Engine for Sled {
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        Ok(self.db.get(key)?.map(|value| value.to_vec()))
    }

    fn scan(&self, from: &[u8], until: &[u8], visit: Visit<'_>) -> Result<(), Failure> {
        if from >= until {
            return Ok(());
        }
        for item in self.db.range(from..until) {
            let (key, value) = item?;
            if let ControlFlow::Break(()) = visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn apply(&self, changes: &Changes) -> Result<(), Failure> {
        let mut batch = ::sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key.as_slice(), value.as_slice()),
                None => batch.remove(key.as_slice()),
            }
        }
        Ok(self.db.apply_batch(batch)?)
    }

    fn sync(&self, sequence: u64) -> Result<(), Failure> {
        self.db.flush()?;
        self.file.sync_data()?;
        Ok(self.mark.set(sequence)?)
    }

    fn idle(&self) -> Result<(), Failure> {
        Ok(self.mark.sync()?)
    }

    fn close(&self) -> Result<(), Failure> {
        self.db.flush()?;
        self.file.sync_data()?;
        Ok(self.mark.sync()?)
    }

    fn bytes_on_disk(&self) -> u64 {
        if let Ok(bytes) = self.db.size_on_disk() {
            self.bytes_on_disk.store(bytes, Ordering::Relaxed);
        }
        self.bytes_on_disk.load(Ordering::Relaxed)
    }
}

/// How many flushes may go by until the mark itself is synced.
const MARK_EVERY: u64 = 256;

/// How far the database must reach: the sequence of the last flush, in a file of its own.
///
/// It is written after each flush, so it never is ahead of what is durable, and synced only at every
/// [`MARK_EVERY`]th, when nothing was written for a second, and at the end: the way of a commit has one sync, not two.
/// **What it detects**: a database that lost anything that was answered, after whatever ended the process alone
/// (the file is in the kernel then); after a power loss, one that lost what had been answered up to the mark's
/// last sync, or later where the kernel has written it since. What a power loss takes from the last 255 flushes of a busy
/// second alone may go unseen.
///
/// Two slots of one sector each are written in turn, so that one is whole even where the other was being written.
struct Mark {
    file: File,
    unsynced: AtomicBool,
}

/// A slot: this, the sequence, the first 8 bytes of the SHA-256 of both.
const MARK_MAGIC: &[u8; 8] = b"mimidmk1";
const MARK_SLOT_BYTES: usize = 512;

impl Mark {
    /// Checks that a database that ends at `stored` reaches the mark in `folder`; makes the mark where there is none.
    fn open(folder: &Path, stored: u64) -> Result<Self, OpenError> {
        let path = folder.join("mark");
        let failed = |error| OpenError::Folder { what: "open", path: path.clone(), error };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let mut slots = Vec::new();
        file.read_to_end(&mut slots).map_err(failed)?;
        let marked = slots.chunks(MARK_SLOT_BYTES).filter_map(Self::slot).max();
        match marked {
            Some(marked) if marked > stored => {
                return Err(OpenError::Behind {
                    folder: folder.to_owned(),
                    mark: path,
                    database: stored,
                    marked,
                });
            }
            None if !slots.is_empty() => return Err(OpenError::MarkDamaged { path }),
            Some(_) | None => {}
        }
        let mark = Self { file, unsynced: AtomicBool::new(false) };
        mark.write(stored).and_then(|()| mark.file.sync_all()).map_err(failed)?;
        Ok(mark)
    }

    fn slot(bytes: &[u8]) -> Option<u64> {
        let body = bytes.get(..16)?;
        let sequence = body.strip_prefix(MARK_MAGIC)?.try_into().ok()?;
        (bytes.get(16..24)? == &digest::digest(&digest::SHA256, body).as_ref()[..8])
            .then(|| u64::from_be_bytes(sequence))
    }

    fn set(&self, sequence: u64) -> io::Result<()> {
        self.write(sequence)?;
        if sequence.is_multiple_of(MARK_EVERY) {
            self.file.sync_data()?;
            self.unsynced.store(false, Ordering::Relaxed);
        } else {
            self.unsynced.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn write(&self, sequence: u64) -> io::Result<()> {
        let mut slot = [0; MARK_SLOT_BYTES];
        slot[..8].copy_from_slice(MARK_MAGIC);
        slot[8..16].copy_from_slice(&sequence.to_be_bytes());
        let sum = digest::digest(&digest::SHA256, &slot[..16]);
        slot[16..24].copy_from_slice(&sum.as_ref()[..8]);
        self.file.write_all_at(&slot, (sequence % 2) * MARK_SLOT_BYTES as u64)
    }

    fn sync(&self) -> io::Result<()> {
        if self.unsynced.swap(false, Ordering::Relaxed) {
            self.file.sync_data()?;
        }
        Ok(())
    }
}

/// Makes `folder` and those above it, and makes their names survive.
fn make_folder(folder: &Path) -> io::Result<()> {
    let above = folder.parent().filter(|above| !above.as_os_str().is_empty());
    if let Some(above) = above.filter(|above| !above.exists()) {
        make_folder(above)?;
    }
    if !folder.exists() {
        DirBuilder::new().mode(0o700).create(folder)?;
        sync(above.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// Takes the folder for this process.
fn lock(folder: &Path) -> Result<File, OpenError> {
    let path = folder.join("lock");
    let failed = |error| OpenError::Folder { what: "lock", path: path.clone(), error };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: folder.to_owned() }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Opens sled's part. It may panic on what it does not understand.
fn database(path: &Path, cache_bytes: u64) -> Result<::sled::Db, OpenError> {
    let config = ::sled::Config::new().path(path).cache_capacity(cache_bytes).flush_every_ms(None);
    let refused = |reason| OpenError::Engine { path: path.to_owned(), reason };
    let mut tries = 0;
    loop {
        let opened = catch_unwind(AssertUnwindSafe(|| config.open()))
            .map_err(|panic| refused(format!("a panic: {}", writer::text(&*panic))))?;
        match opened {
            Ok(db) => return Ok(db),
            // this process has the folder's own lock, so it is sled's threads of a store that this process
            // had open before and that are about to end
            Err(::sled::Error::Io(error))
                if error.to_string().contains("could not acquire lock") && tries < 500 =>
            {
                tries += 1;
                thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(refused(error.to_string())),
        }
    }
}

/// Lets nobody but the owner read what sled has made.
fn restrict(folder: &Path) -> io::Result<()> {
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                fs::set_permissions(entry.path(), Permissions::from_mode(0o600))?;
            }
        }
    }
    Ok(())
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Batch, SharedStore, Write};

    fn open_in(folder: &Path) -> Result<SharedStore, OpenError> {
        Ok(open(folder, 16 << 20)?)
    }

    async fn fill(folder: &Path, writes: u64) {
        let store = open_in(folder).unwrap();
        for n in 0..writes {
            let bytes = n.to_be_bytes().to_vec();
            store.write(Batch::new().and(Write::Node { name: "n", bytes })).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_second_process_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = open_in(folder.path()).unwrap();
        let error = open_in(folder.path()).err().unwrap();
        assert!(matches!(error, OpenError::InUse { .. }));
        assert!(error.to_string().contains("in use by another process"));
        drop(first);
        drop(open_in(folder.path()).unwrap());
    }

    #[tokio::test]
    async fn a_database_that_lost_what_it_answered_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (database, kept) = (folder.path().join("sled"), folder.path().join("kept"));
        fill(folder.path(), 3).await;
        // an older state of the database, as after a loss: it opens without an error by itself
        fs::create_dir(&kept).unwrap();
        for name in ["db", "conf"] {
            fs::copy(database.join(name), kept.join(name)).unwrap();
        }
        fill(folder.path(), 1).await;
        for name in ["db", "conf"] {
            fs::copy(kept.join(name), database.join(name)).unwrap();
        }
        let error = open_in(folder.path()).err().unwrap();
        assert!(matches!(error, OpenError::Behind { database: 3, marked: 4, .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("Restore") && text.contains("mark and start again"), "{text}");

        // one that lost everything
        fs::remove_dir_all(&database).unwrap();
        let error = open_in(folder.path()).err().unwrap();
        assert!(matches!(error, OpenError::Behind { database: 0, marked: 4, .. }), "{error}");

        // the operator does as told
        fs::remove_file(folder.path().join("mark")).unwrap();
        let store = open_in(folder.path()).unwrap();
        assert_eq!(store.node("n").await, Ok(None));
    }

    #[tokio::test]
    async fn a_mark_that_cannot_be_read_is_refused_but_one_slot_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        fill(folder.path(), 5).await;
        let mut bytes = fs::read(&mark).unwrap();
        // the slot of 4 was being overwritten when the power went
        bytes[20] ^= 1;
        fs::write(&mark, &bytes).unwrap();
        drop(open_in(folder.path()).unwrap());
        fs::write(&mark, b"something else").unwrap();
        let error = open_in(folder.path()).err().unwrap();
        assert!(matches!(error, OpenError::MarkDamaged { .. }), "{error}");
    }

    #[tokio::test]
    async fn what_is_made_is_for_the_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("deep/store");
        fill(&store, 1).await;
        drop(open_in(&store).unwrap());
        let mut folders = vec![folder.path().join("deep")];
        let mut files = 0;
        while let Some(folder) = folders.pop() {
            assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files += 1;
                    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
                    // sled writes a snapshot of its own into its folder when it is dropped
                    let sleds = path.file_name().unwrap().to_string_lossy().starts_with("snap");
                    assert!(mode == 0o600 || sleds, "{} {mode:o}", path.display());
                }
            }
        }
        assert!(files >= 4);
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_made_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = open_in(&file.join("store")).err().unwrap();
        assert!(matches!(error, OpenError::Folder { .. }), "{error}");
        assert!(error.to_string().contains("Check that the folder"));
    }
}
