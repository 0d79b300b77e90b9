//! A backup: one file with everything that a store holds, as of one flush, and with the files beside the store.
//!
//! ```text
//! magic (8), then parts: kind (1), length (4), what it holds, SHA-256 (32) of the sum before and all of this part
//! ```
//!
//! The first part is the [`Header`], the last the [`Trailer`], behind which there is nothing. Between them are records (of any
//! engine: keys and values; where a key comes twice the later one holds, and one without a value is gone) and files. The sums are a
//! chain: a part that is changed, left out or moved is noticed, and a file that was broken off has no trailer.
//!
//! Here: writing and reading such files, and a store made from one. What a store that goes back in time owes to others is in
//! [`super::ahead`], whether it is whole in [`super::verify`].

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Component, Path, PathBuf},
};

use aws_lc_rs::digest;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use super::{
    OpenError, Piece, Record, StoreError,
    copy::{PIECE_BYTES, PIECE_RECORDS, beside, open},
    engine::{Changes, Failure},
    fjall,
    folder::{engine_in, sync},
    keys, sled,
    tee::piece,
};

/// What a backup is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Of this format.
    pub version: u32,
    /// The mimid that made it.
    pub made_by: String,
    pub domain: String,
    /// The engine that the store was in; it can be restored into any.
    pub engine: String,
    /// When it was begun, in milliseconds since the Unix epoch.
    pub taken_at_ms: u64,
    /// The provider ran meanwhile.
    pub live: bool,
    /// Keys and certificates are in it: it is as secret as they are.
    pub keys: bool,
}

/// What a backup holds, as far as its end says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trailer {
    /// The flush that it is the state of.
    pub sequence: u64,
    /// Records as they were written to it, those included that a later one stands for.
    pub records: u64,
    /// Of their keys and values.
    pub bytes: u64,
    pub files: u64,
}

/// A file beside the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// Relative to the data folder.
    pub name: PathBuf,
    pub mode: u32,
    #[serde(skip)]
    pub bytes: Vec<u8>,
}

/// Why a backup cannot be made, read or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{} is there already: give a name that is free", .0.display())]
    Exists(PathBuf),
    #[error("{} is no backup of mimid", .0.display())]
    NotOne(PathBuf),
    #[error("{} is a backup of format {version}, which this mimid does not know: use a newer one", path.display())]
    Newer { path: PathBuf, version: u32 },
    #[error("{} is damaged at its part {part}: {what}. Use another backup", path.display())]
    Damaged { path: PathBuf, part: u64, what: &'static str },
    #[error("{} was broken off at its part {part}: it is not whole. Use another backup", path.display())]
    Torn { path: PathBuf, part: u64 },
    #[error("the provider ended the backup before it was whole ({0}); its log says why")]
    Ended(&'static str),
    #[error("there is no store in {}: give the data folder of a provider", .0.display())]
    NoStore(PathBuf),
    #[error("a store is restored into \"sled\" or \"fjall\", not {0:?}")]
    UnknownEngine(String),
    #[error("{} holds something already: restore into a folder that is new or empty", .0.display())]
    NotEmpty(PathBuf),
    #[error(
        "what was restored reads back otherwise than it was written: check the disk, and the memory of this machine"
    )]
    Differs,
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the store in {} cannot be read or written: {reason}", path.display())]
    Engine { path: PathBuf, reason: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot {what} {}: {error}", path.display())]
    File { what: &'static str, path: PathBuf, error: io::Error },
}

const MAGIC: &[u8; 8] = b"mimidbk\n";
/// Of the format that is written.
pub const VERSION: u32 = 1;
/// Of one part. What is written is far smaller, save for a file beside the store.
const PART_BYTES_MAX: usize = 64 << 20;

const HEADER: u8 = 1;
const RECORDS: u8 = 2;
const FILE: u8 = 3;
const TRAILER: u8 = 4;

/// A backup that is being written, under another name until it is whole.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    unfinished: PathBuf,
    file: BufWriter<File>,
    sum: [u8; 32],
    trailer: Trailer,
    is_done: bool,
}

impl Writer {
    /// Begins a backup that will be `path`, for the owner alone.
    ///
    /// # Errors
    /// [`BackupError::Exists`], [`BackupError::File`]
    pub fn create(path: &Path, header: &Header) -> Result<Self, BackupError> {
        if path.exists() {
            return Err(BackupError::Exists(path.to_owned()));
        }
        let unfinished = beside(path);
        // what an earlier one has left, which may be another name of the backup that it made
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &unfinished)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)
            .map_err(failed("make", &unfinished))?;
        let trailer = Trailer { sequence: 0, records: 0, bytes: 0, files: 0 };
        let mut writer = Self {
            path: path.to_owned(),
            unfinished,
            file: BufWriter::new(file),
            sum: first_sum(),
            trailer,
            is_done: false,
        };
        writer.file.write_all(MAGIC).map_err(failed("write", &writer.unfinished))?;
        writer.part(HEADER, &json(header))?;
        Ok(writer)
    }

    /// # Errors
    /// [`BackupError::File`]
    pub fn records(&mut self, records: &[Record]) -> Result<(), BackupError> {
        self.trailer.records += records.len() as u64;
        for (key, value) in records {
            self.trailer.bytes += (key.len() + value.as_ref().map_or(0, Vec::len)) as u64;
        }
        self.part(RECORDS, &encode_records(records))
    }

    /// # Errors
    /// [`BackupError::File`]
    pub fn beside(&mut self, file: &Beside) -> Result<(), BackupError> {
        self.trailer.files += 1;
        let mut bytes = json(file);
        let head = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
        bytes.splice(0..0, head);
        bytes.extend_from_slice(&file.bytes);
        self.part(FILE, &bytes)
    }

    /// Ends it: from here on it is there, under its name and durable.
    ///
    /// # Errors
    /// [`BackupError::File`]
    pub fn finish(mut self, sequence: u64) -> Result<Trailer, BackupError> {
        self.trailer.sequence = sequence;
        let trailer = self.trailer.clone();
        self.part(TRAILER, &json(&trailer))?;
        let (path, unfinished) = (self.path.clone(), self.unfinished.clone());
        self.file.flush().map_err(failed("write", &unfinished))?;
        self.file.get_ref().sync_all().map_err(failed("sync", &unfinished))?;
        put_in_place(&unfinished, &path, &WAYS).map_err(failed("make", &path))?;
        self.is_done = true;
        sync(above(&path)).map_err(failed("sync", &path))?;
        Ok(trailer)
    }

    fn part(&mut self, kind: u8, bytes: &[u8]) -> Result<(), BackupError> {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
        self.sum = next_sum(&self.sum, kind, len, bytes);
        let file = &mut self.file;
        file.write_all(&[kind])
            .and_then(|()| file.write_all(&len))
            .and_then(|()| file.write_all(bytes))
            .and_then(|()| file.write_all(&self.sum))
            .map_err(failed("write", &self.unfinished))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.is_done {
            // what is wrong is said elsewhere; what is left is never taken for a backup
            let _ = fs::remove_file(&self.unfinished);
        }
    }
}

/// A way to give the first file the second name, not over what another has made meanwhile.
type Way = fn(&Path, &Path) -> io::Result<()>;

/// Not every file system can do each.
const WAYS: [Way; 3] = [linked, renamed, renamed_over_own];

fn put_in_place(unfinished: &Path, path: &Path, ways: &[Way]) -> io::Result<()> {
    let mut failed = io::Error::from(io::ErrorKind::Unsupported);
    for way in ways {
        match way(unfinished, path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn linked(unfinished: &Path, path: &Path) -> io::Result<()> {
    fs::hard_link(unfinished, path)?;
    // it is whole under its name; the other name, where it stays, is written over by the next backup
    let _ = fs::remove_file(unfinished);
    Ok(())
}

fn renamed(unfinished: &Path, path: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, unfinished, CWD, path, RenameFlags::NOREPLACE)?)
}

/// The name is taken by an empty file first. A process that ends in between leaves that: it is no backup, and says so.
fn renamed_over_own(unfinished: &Path, path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    fs::rename(unfinished, path).inspect_err(|_| {
        // what is wrong is said; this holds nothing
        let _ = fs::remove_file(path);
    })
}

/// A part of a backup.
#[derive(Debug)]
pub enum Part {
    Records(Vec<Record>),
    File(Beside),
    End(Trailer),
}

/// A backup that is being read.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    sum: [u8; 32],
    part: u64,
    seen: Trailer,
    pub header: Header,
}

impl Reader {
    /// # Errors
    /// [`BackupError::NotOne`], [`BackupError::Newer`], [`BackupError::Damaged`], [`BackupError::Torn`]
    pub fn open(path: &Path) -> Result<Self, BackupError> {
        let file = File::open(path).map_err(failed("open", path))?;
        let mut file = BufReader::new(file);
        let mut magic = [0; 8];
        let is_one = file.read_exact(&mut magic).is_ok() && magic == *MAGIC;
        if !is_one {
            return Err(BackupError::NotOne(path.to_owned()));
        }
        let header = Header {
            version: 0,
            made_by: String::new(),
            domain: String::new(),
            engine: String::new(),
            taken_at_ms: 0,
            live: false,
            keys: false,
        };
        let seen = Trailer { sequence: 0, records: 0, bytes: 0, files: 0 };
        let path = path.to_owned();
        let mut reader = Self { path, file, sum: first_sum(), part: 0, seen, header };
        let (kind, bytes) = reader.part()?;
        if kind != HEADER {
            return Err(reader.damaged("it does not begin with its header"));
        }
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let version = serde_json::from_slice::<Version>(&bytes).map(|it| it.version);
        match version {
            Ok(VERSION) => {}
            Ok(version) => return Err(BackupError::Newer { path: reader.path, version }),
            Err(_) => return Err(reader.damaged("its header cannot be read")),
        }
        reader.header = serde_json::from_slice(&bytes)
            .map_err(|_| reader.damaged("its header cannot be read"))?;
        Ok(reader)
    }

    /// The next part; behind [`Part::End`] there is nothing.
    ///
    /// # Errors
    /// [`BackupError::Damaged`], [`BackupError::Torn`]
    pub fn next_part(&mut self) -> Result<Part, BackupError> {
        let (kind, bytes) = self.part()?;
        match kind {
            RECORDS => {
                let records = decode_records(&bytes)
                    .ok_or_else(|| self.damaged("its records cannot be read"))?;
                self.seen.records += records.len() as u64;
                for (key, value) in &records {
                    self.seen.bytes += (key.len() + value.as_ref().map_or(0, Vec::len)) as u64;
                }
                Ok(Part::Records(records))
            }
            FILE => {
                self.seen.files += 1;
                let file = decode_file(&bytes)
                    .ok_or_else(|| self.damaged("a file in it cannot be read"))?;
                Ok(Part::File(file))
            }
            TRAILER => {
                let trailer: Trailer = serde_json::from_slice(&bytes)
                    .map_err(|_| self.damaged("its end cannot be read"))?;
                let counted = Trailer { sequence: trailer.sequence, ..self.seen.clone() };
                if counted != trailer {
                    return Err(self.damaged("it holds other than its end says"));
                }
                let mut more = [0];
                match self.file.read(&mut more) {
                    Ok(0) => Ok(Part::End(trailer)),
                    Ok(_) => Err(self.damaged("something follows its end")),
                    Err(error) => Err(failed("read", &self.path)(error)),
                }
            }
            _ => Err(self.damaged("a part of an unknown kind")),
        }
    }

    /// Reads all of it, and changes nothing.
    ///
    /// # Errors
    /// As [`Self::next_part`].
    pub fn check(mut self) -> Result<Trailer, BackupError> {
        loop {
            if let Part::End(trailer) = self.next_part()? {
                return Ok(trailer);
            }
        }
    }

    fn part(&mut self) -> Result<(u8, Vec<u8>), BackupError> {
        self.part += 1;
        let mut head = [0; 5];
        self.read(&mut head)?;
        let [kind, len @ ..] = head;
        let bytes_len = u32::from_be_bytes(len) as usize;
        if bytes_len > PART_BYTES_MAX {
            return Err(self.damaged("a part that is longer than any"));
        }
        let mut bytes = vec![0; bytes_len];
        self.read(&mut bytes)?;
        let mut sum = [0; 32];
        self.read(&mut sum)?;
        self.sum = next_sum(&self.sum, kind, len, &bytes);
        if sum == self.sum { Ok((kind, bytes)) } else { Err(self.damaged("its sum is not right")) }
    }

    fn read(&mut self, into: &mut [u8]) -> Result<(), BackupError> {
        self.file.read_exact(into).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                return BackupError::Torn { path: self.path.clone(), part: self.part };
            }
            failed("read", &self.path)(error)
        })
    }

    fn damaged(&self, what: &'static str) -> BackupError {
        BackupError::Damaged { path: self.path.clone(), part: self.part, what }
    }
}

/// Everything in the store in the folder `store`, which no process may have open, goes to `to`. Gives the flush that it is of.
///
/// # Errors
/// [`BackupError::NoStore`], [`BackupError::Open`] (in use), [`BackupError::Engine`], [`BackupError::File`]
pub fn read_stopped(store: &Path, to: &mut Writer) -> Result<u64, BackupError> {
    let engine = engine_in(store).ok_or_else(|| BackupError::NoStore(store.to_owned()))?;
    let engine = open(engine, store)?;
    let broken = engine_failed(store);
    let sequence = engine.read(&keys::commit_sequence()).map_err(&broken)?;
    let mut after = Vec::new();
    loop {
        let found = piece(&*engine, &after, PIECE_BYTES, PIECE_RECORDS).map_err(&broken)?;
        let Some((last, _)) = found.last() else { break };
        after.clone_from(last);
        after.push(0);
        let records: Vec<_> = found.into_iter().map(|(key, value)| (key, Some(value))).collect();
        to.records(&records)?;
    }
    Ok(keys::decode_commit_sequence(sequence.as_deref())?)
}

/// The engine of the store in the folder `store`.
#[must_use]
pub fn engine_of(store: &Path) -> Option<&'static str> {
    engine_in(store)
}

/// The engine that is meant, by default the one that a backup is of.
fn engine_named(name: &str) -> Result<&'static str, BackupError> {
    match name {
        sled::NAME => Ok(sled::NAME),
        fjall::NAME => Ok(fjall::NAME),
        other => Err(BackupError::UnknownEngine(other.to_owned())),
    }
}

/// Makes the store in the folder `store`, which must not be there, from the backup `from`, and reads it back; `file` gets each file
/// of it. The backup is checked whole before anything is made.
///
/// # Errors
/// [`BackupError`]; what is left in `store` then is no store that was answered for, and is to be removed.
pub fn write_store(
    from: &Path,
    store: &Path,
    engine: &str,
    mut file: impl FnMut(Beside) -> Result<(), BackupError>,
) -> Result<Trailer, BackupError> {
    let engine = engine_named(engine)?;
    Reader::open(from)?.check()?;
    let mut reader = Reader::open(from)?;
    let broken = engine_failed(store);
    let mut expected = Sum::default();
    let trailer = {
        let new = open(engine, store)?;
        loop {
            match reader.next_part()? {
                Part::Records(records) => {
                    let mut changes = Changes::new();
                    changes.extend(records);
                    for (key, value) in &changes {
                        if let Some(old) = new.read(key).map_err(&broken)? {
                            expected.turn(key, &old, false);
                        }
                        if let Some(value) = value {
                            expected.turn(key, value, true);
                        }
                    }
                    new.apply(&changes).map_err(&broken)?;
                }
                Part::File(beside) => file(beside)?,
                Part::End(trailer) => {
                    new.sync(trailer.sequence).and_then(|()| new.close()).map_err(&broken)?;
                    break trailer;
                }
            }
        }
    };
    let new = open(engine, store)?;
    let (mut found, mut after) = (Sum::default(), Vec::new());
    loop {
        let records = piece(&*new, &after, PIECE_BYTES, PIECE_RECORDS).map_err(&broken)?;
        let Some((last, _)) = records.last() else { break };
        after.clone_from(last);
        after.push(0);
        records.iter().for_each(|(key, value)| found.turn(key, value, true));
    }
    if found == expected { Ok(trailer) } else { Err(BackupError::Differs) }
}

/// Tells two sets of records apart, in whatever order they come.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    records: u64,
    xor: [u8; 32],
}

impl Sum {
    fn turn(&mut self, key: &[u8], value: &[u8], comes: bool) {
        self.records = if comes { self.records + 1 } else { self.records.saturating_sub(1) };
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&(key.len() as u64).to_be_bytes());
        context.update(key);
        context.update(value);
        for (sum, byte) in self.xor.iter_mut().zip(context.finish().as_ref()) {
            *sum ^= byte;
        }
    }
}

/// What a piece of a copy is on the way from a running provider to who makes a backup of it.
#[must_use]
pub fn frame(piece: &Piece) -> Vec<u8> {
    let (kind, bytes) = match piece {
        Piece::Records(records) => (RECORDS, encode_records(records)),
        Piece::End { sequence } => (TRAILER, sequence.to_be_bytes().to_vec()),
    };
    let mut frame = vec![kind];
    frame.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(&bytes);
    frame
}

/// Takes the first frame off what has come, where it is there whole.
///
/// # Errors
/// [`BackupError::Ended`] where it is none.
pub fn take_frame(came: &mut Vec<u8>) -> Result<Option<Piece>, BackupError> {
    let bad = || BackupError::Ended("it sent what is no part of a backup");
    let Some((head, rest)) = came.split_first_chunk::<5>() else { return Ok(None) };
    let [kind, len @ ..] = head;
    let len = u32::from_be_bytes(*len) as usize;
    if len > PART_BYTES_MAX {
        return Err(bad());
    }
    let Some(bytes) = rest.get(..len) else { return Ok(None) };
    let piece = match *kind {
        RECORDS => Piece::Records(decode_records(bytes).ok_or_else(bad)?),
        TRAILER => {
            let sequence = u64::from_be_bytes(bytes.try_into().map_err(|_| bad())?);
            Piece::End { sequence }
        }
        _ => return Err(bad()),
    };
    came.drain(..5 + len);
    Ok(Some(piece))
}

/// key length (2), key, value length (4; all ones: gone), value.
fn encode_records(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        bytes.extend_from_slice(&u16::try_from(key.len()).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend_from_slice(key);
        let len = value.as_ref().map(|value| u32::try_from(value.len()).unwrap_or(GONE));
        bytes.extend_from_slice(&len.unwrap_or(GONE).to_be_bytes());
        bytes.extend_from_slice(value.as_deref().unwrap_or_default());
    }
    bytes
}

const GONE: u32 = u32::MAX;

fn decode_records(mut bytes: &[u8]) -> Option<Vec<Record>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let (len, rest) = bytes.split_first_chunk::<2>()?;
        let (key, rest) = rest.split_at_checked(u16::from_be_bytes(*len).into())?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (value, rest) = match u32::from_be_bytes(*len) {
            GONE => (None, rest),
            len => {
                let (value, rest) = rest.split_at_checked(len as usize)?;
                (Some(value.to_vec()), rest)
            }
        };
        records.push((key.to_vec(), value));
        bytes = rest;
    }
    Some(records)
}

pub(super) fn decode_file(bytes: &[u8]) -> Option<Beside> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (head, bytes) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    let mut file: Beside = serde_json::from_slice(head).ok()?;
    // a file of a backup stays within the folder that it is restored into
    let is_within = file.name.components().all(|part| matches!(part, Component::Normal(_)));
    file.bytes = bytes.to_vec();
    (is_within && file.name.components().next().is_some()).then_some(file)
}

fn first_sum() -> [u8; 32] {
    crate::crypto::sha256(MAGIC)
}

fn next_sum(before: &[u8; 32], kind: u8, len: [u8; 4], bytes: &[u8]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(before);
    context.update(&[kind]);
    context.update(&len);
    context.update(bytes);
    let mut sum = [0; 32];
    sum.copy_from_slice(context.finish().as_ref());
    sum
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    // numbers, flags and names: nothing that JSON cannot hold
    serde_json::to_vec(value).unwrap_or_default()
}

fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> BackupError {
    let path = path.to_owned();
    move |error| BackupError::File { what, path: path.clone(), error }
}

pub(super) fn engine_failed(path: &Path) -> impl Fn(Failure) -> BackupError {
    let path = path.to_owned();
    move |Failure(reason)| BackupError::Engine { path: path.clone(), reason }
}

fn above(path: &Path) -> &Path {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    above.unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cannot(_: &Path, _: &Path) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::PermissionDenied))
    }

    #[test]
    fn finished_backup_gets_its_name_whatever_the_file_system_can_do() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("b.unfinished"), folder.path().join("b"));
        for ways in [&WAYS[..], &[cannot, renamed], &[cannot, cannot, renamed_over_own]] {
            fs::write(&from, "whole").unwrap();
            put_in_place(&from, &to, ways).unwrap();
            assert_eq!(fs::read(&to).unwrap(), b"whole");
            assert!(!from.exists());
            // and never over another's
            fs::write(&from, "another").unwrap();
            let error = put_in_place(&from, &to, ways).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{}", ways.len());
            assert_eq!(fs::read(&to).unwrap(), b"whole");
            fs::remove_file(&to).unwrap();
        }
        let error = put_in_place(&from, &to, &[cannot, cannot]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        fs::remove_file(&from).unwrap();
        // nothing is left of a name that was taken in vain
        assert!(put_in_place(&from, &to, &WAYS).is_err());
        assert!(!to.exists());
    }
}
