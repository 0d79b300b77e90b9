//! What an engine with files has around its database: a folder for the owner alone, a lock, and the [`Mark`].
//!
//! The store's folder (0700) holds `lock`, held while a process has the store open; `mark`; and one folder by the engine's
//! name, its database.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use aws_lc_rs::digest;

use super::OpenError;

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
pub(super) struct Mark {
    file: File,
    unsynced: AtomicBool,
}

/// A slot: this, the sequence, the first 8 bytes of the SHA-256 of both.
const MARK_MAGIC: &[u8; 8] = b"mimidmk1";
const MARK_SLOT_BYTES: usize = 512;

impl Mark {
    /// Checks that a database that ends at `stored` reaches the mark in `folder`; makes the mark where there is none.
    pub fn open(folder: &Path, stored: u64) -> Result<Self, OpenError> {
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

    pub fn set(&self, sequence: u64) -> io::Result<()> {
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

    pub fn sync(&self) -> io::Result<()> {
        if self.unsynced.swap(false, Ordering::Relaxed) {
            self.file.sync_data()?;
        }
        Ok(())
    }
}

/// Makes `folder` and those above it that are not there, for their owner alone, and makes their names survive a power cut: what
/// is synced within a folder whose own name is lost is lost with it.
///
/// # Errors
/// Of the file system; also where something else has the name.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    let above = folder.parent().filter(|above| !above.as_os_str().is_empty());
    if let Some(above) = above.filter(|above| !above.exists()) {
        make_folder(above)?;
    }
    if !folder.is_dir() {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
            made => made?,
        }
        sync(above.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// A store's folder that this process has taken: for as long as this is held.
pub(super) struct Place {
    _lock: File,
}

impl Place {
    /// Takes `folder` for a database of `engine`; makes the folder where it is missing.
    ///
    /// # Errors
    /// [`OpenError::InUse`], [`OpenError::OtherEngine`]: nothing has changed then. [`OpenError::Folder`].
    pub fn take(folder: &Path, engine: &'static str) -> Result<Self, OpenError> {
        let failed = |error| OpenError::Folder { what: "make", path: folder.to_owned(), error };
        make_folder(folder).map_err(failed)?;
        let place = Self { _lock: lock(folder)? };
        match engine_in(folder) {
            Some(found) if found != engine => {
                let path = folder.to_owned();
                Err(OpenError::OtherEngine { path, found, wanted: engine })
            }
            Some(_) | None => Ok(place),
        }
    }
}

/// The engine that has a database in `folder`.
pub(super) fn engine_in(folder: &Path) -> Option<&'static str> {
    FILE_ENGINES.into_iter().find(|engine| folder.join(engine).exists())
}

/// The engines whose database is a folder by their name.
const FILE_ENGINES: [&str; 2] = [super::sled::NAME, super::fjall::NAME];

/// Taken for as long as the file is held.
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

/// Lets nobody but the owner read what the engine has made in `folder`, and makes the names there survive: engines do not all.
pub(super) fn settle(folder: &Path) -> io::Result<()> {
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
        sync(&folder)?;
    }
    Ok(())
}

pub(super) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
