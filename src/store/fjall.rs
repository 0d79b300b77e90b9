//! The other embedded engine: fjall 3, a log-structured merge tree.
//!
//! Its journal is what makes a batch durable: written by `apply`, synced by `sync`. What the tree in memory holds
//! of it goes to tables by fjall's own threads, which drop no journal before that. One keyspace, so that a batch is one record of one
//! journal. As beside sled there is a [`Mark`], since a journal whose end is damaged is cut off without an error.

use std::{
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ::fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

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
    let engine = Fjall::open(folder, cache_bytes)?;
    Ok(Arc::new(NodeStore::start(Box::new(engine), folder.to_owned())?))
}

/// The database of one folder.
pub(super) struct Fjall {
    keyspace: Keyspace,
    db: Database,
    mark: Mark,
    bytes_on_disk: AtomicU64,
    /// Released last.
    _place: Place,
}

impl Fjall {
    /// # Errors
    /// [`OpenError`]: in use, another engine's, cannot be read, or behind what it has answered for.
    pub fn open(folder: &Path, cache_bytes: u64) -> Result<Self, OpenError> {
        let failed = |what| move |error| OpenError::Folder { what, path: folder.to_owned(), error };
        let place = Place::take(folder, NAME)?;
        let path = folder.join(NAME);
        let refused = |reason| OpenError::Engine { path: path.clone(), reason };
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let db = Database::builder(&path)
                .cache_size(cache_bytes)
                .manual_journal_persist(true)
                .worker_threads(WORKERS)
                .open()?;
            let keyspace = db.keyspace(KEYSPACE, options)?;
            Ok::<_, ::fjall::Error>((db, keyspace))
        }));
        let (db, keyspace) = opened
            .map_err(|panic| refused(format!("a panic: {}", writer::text(&*panic))))?
            .map_err(|error| refused(error.to_string()))?;
        let stored = keyspace.get(keys::commit_sequence());
        let stored = stored
            .map_err(|error| StoreError::Unavailable(error.to_string()))
            .and_then(|value| keys::decode_commit_sequence(value.as_deref()))
            .map_err(|error| OpenError::Record { path: path.clone(), reason: error.to_string() })?;
        settle(&path).map_err(failed("set the permissions in"))?;
        let mark = Mark::open(folder, stored)?;
        sync(folder).map_err(failed("sync"))?;
        let bytes_on_disk = AtomicU64::new(db.disk_space().unwrap_or(0));
        tracing::info!(folder = %folder.display(), engine = NAME, sequence = stored, "the store is open");
        Ok(Self { keyspace, db, mark, bytes_on_disk, _place: place })
    }
}

impl From<::fjall::Error> for Failure {
    fn from(error: ::fjall::Error) -> Self {
        Self(format!("the database: {error}"))
    }
}

impl Engine for Fjall {
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        Ok(self.keyspace.get(key)?.map(|value| value.to_vec()))
    }

    fn scan(&self, from: &[u8], until: &[u8], visit: Visit<'_>) -> Result<(), Failure> {
        if from >= until {
            return Ok(());
        }
        for item in self.keyspace.range(from..until) {
            let (key, value) = item.into_inner()?;
            if let ControlFlow::Break(()) = visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn apply(&self, changes: &Changes) -> Result<(), Failure> {
        let mut batch = self.db.batch();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&self.keyspace, key.as_slice(), value.as_slice()),
                None => batch.remove(&self.keyspace, key.as_slice()),
            }
        }
        Ok(batch.commit()?)
    }

    fn sync(&self, sequence: u64) -> Result<(), Failure> {
        self.db.persist(PersistMode::SyncData)?;
        Ok(self.mark.set(sequence)?)
    }

    fn idle(&self) -> Result<(), Failure> {
        Ok(self.mark.sync()?)
    }

    fn close(&self) -> Result<(), Failure> {
        self.db.persist(PersistMode::SyncAll)?;
        Ok(self.mark.sync()?)
    }

    fn bytes_on_disk(&self) -> u64 {
        if let Ok(bytes) = self.db.disk_space() {
            self.bytes_on_disk.store(bytes, Ordering::Relaxed);
        }
        self.bytes_on_disk.load(Ordering::Relaxed)
    }
}

/// What is written is ciphertext for the most part: nothing to compress, and no library for it in the build.
fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES).manual_journal_persist(true)
}

pub(super) const NAME: &str = "fjall";
const KEYSPACE: &str = "mimid";
/// Threads that turn what is in memory into tables, and tables into larger ones.
const WORKERS: usize = 2;
/// What the tree keeps in memory before it becomes a table.
const MEMTABLE_BYTES: u64 = 32 << 20;
