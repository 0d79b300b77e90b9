//! The embedded engine: sled 0.34.7, used in the one way in which it loses nothing that was answered.
//!
//! As shipped its `flush` does not reach the disk on a power loss, values above 8 KB may go to files that are never
//! synced, and a database that has lost everything opens as an empty one without an error. So here: one tree, one
//! batch at a time, `flush` and then `fdatasync` of its file, no value above 4 KB ([`keys`]), no flusher of its own,
//! and a [`Mark`] beside the database (`sled/`) that tells how far it must reach. And one more: a write that fails behind a flush
//! that waits for it already does not always wake it ([`Flushing`]).
//!
//! [`keys`]: super::keys

use std::{
    fs::File,
    io,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    OpenError, StoreError,
    engine::{Changes, Engine, Failure, Visit},
    folder::{Mark, Place, settle, sync},
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
    flushing: Arc<Flushing>,
    watch: Option<thread::JoinHandle<()>>,
    db: ::sled::Db,
    /// The database's file, opened anew: sled does not sync it so that it survives a power loss.
    file: File,
    mark: Mark,
    bytes_on_disk: AtomicU64,
    /// Released last.
    _place: Place,
}

impl Sled {
    /// # Errors
    /// [`OpenError`]: in use, cannot be read, or behind what it has answered for.
    pub fn open(folder: &Path, cache_bytes: u64) -> Result<Self, OpenError> {
        let failed = |what| move |error| OpenError::Folder { what, path: folder.to_owned(), error };
        let place = Place::take(folder, NAME)?;
        let path = folder.join(NAME);
        let db = database(&path, cache_bytes)?;
        let file = File::open(path.join("db")).map_err(failed("open the database in"))?;
        let stored = db.get(keys::commit_sequence());
        let stored = stored
            .map_err(|error| StoreError::Unavailable(error.to_string()))
            .and_then(|value| keys::decode_commit_sequence(value.as_deref()))
            .map_err(|error| OpenError::Record { path: path.clone(), reason: error.to_string() })?;
        settle(&path).map_err(failed("set the permissions in"))?;
        let mark = Mark::open(folder, stored)?;
        // what is new must survive as well: the file, the folder's name and the mark's
        file.sync_all().and_then(|()| sync(folder)).map_err(failed("sync"))?;
        let bytes_on_disk = AtomicU64::new(db.size_on_disk().unwrap_or(0));
        tracing::info!(folder = %folder.display(), engine = NAME, sequence = stored, "the store is open");
        let flushing = Arc::new(Flushing::default());
        let watch = Flushing::watched(&flushing, &db).map_err(failed("start a thread for"))?;
        Ok(Self { flushing, watch: Some(watch), db, file, mark, bytes_on_disk, _place: place })
    }

    /// Until all that was applied is in the file, or a write has failed.
    fn flush(&self) -> Result<(), Failure> {
        let _under_way = self.flushing.begin();
        self.db.flush()?;
        Ok(())
    }
}

impl Drop for Sled {
    fn drop(&mut self) {
        self.flushing.end();
        // it has the database open, too
        if let Some(watch) = self.watch.take() {
            let _ = watch.join();
        }
    }
}

/// Since when a flush is under way, for a thread that looks after it. Where the last who writes into one of sled's buffers has it written
/// and that fails, sled notes the error and wakes nobody (0.34.7, `exit_reservation`): a flush that waits for the buffer
/// already waits for ever. Another one finds the error, and wakes the first.
#[derive(Default)]
struct Flushing {
    state: Mutex<FlushState>,
    has_ended: Condvar,
}

#[derive(Default)]
struct FlushState {
    began: Option<Instant>,
    has_ended: bool,
}

/// How long a flush may take before another one follows it: then twice as long, and so on, up to the second.
const FLUSH_PATIENCE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

impl Flushing {
    fn watched(this: &Arc<Self>, db: &::sled::Db) -> io::Result<thread::JoinHandle<()>> {
        let (watched, db) = (Arc::clone(this), db.clone());
        thread::Builder::new().name("sled-watch".to_owned()).spawn(move || watched.watch(&db))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, FlushState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A flush is under way for as long as what this gives is kept.
    fn begin(&self) -> impl Drop {
        struct UnderWay<'a>(&'a Flushing);
        impl Drop for UnderWay<'_> {
            fn drop(&mut self) {
                self.0.state().began = None;
            }
        }
        self.state().began = Some(Instant::now());
        UnderWay(self)
    }

    fn end(&self) {
        self.state().has_ended = true;
        self.has_ended.notify_all();
    }

    fn watch(&self, db: &::sled::Db) {
        let [first, most] = FLUSH_PATIENCE;
        let (mut of, mut patience) = (None, first);
        let mut state = self.state();
        while !state.has_ended {
            if state.began != of {
                (of, patience) = (state.began, first);
            }
            if of.is_some_and(|began| began.elapsed() >= patience) {
                patience = (patience * 2).min(patience + most);
                let db = db.clone();
                // it waits as the first one does, and ends with it
                let follows = move || drop(db.flush());
                let started = thread::Builder::new().name("sled-flush".to_owned()).spawn(follows);
                tracing::warn!(
                    started = started.is_ok(),
                    "a flush takes long: another one follows it"
                );
            }
            let waited = self.has_ended.wait_timeout(state, first);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
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
        self.flush()?;
        self.file.sync_data()?;
        Ok(self.mark.set(sequence)?)
    }

    fn idle(&self) -> Result<(), Failure> {
        Ok(self.mark.sync()?)
    }

    fn close(&self) -> Result<(), Failure> {
        self.flush()?;
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

pub(super) const NAME: &str = "sled";

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

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

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
