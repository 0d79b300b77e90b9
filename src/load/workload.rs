//! The workload file: what `prepare` makes and `run` replays.
//!
//! A mark with the version, then records (length, checksum, postcard), at the end the index. Written as a stream, so that preparing needs
//! memory for the groups at work alone; read by the index, so that replaying holds the clients and one position per group and gets each
//! step when it is due. The file holds private keys of its (test) clients: only its owner reads it. It has its name only when it is whole.
//!
//! Order: header, accounts; of each group its record and then its steps; the index; where the index begins.

#[cfg(fuzzing)]
pub mod fuzzing;

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    LoadError,
    account::{Account, StoredAccount},
    crew::{Accounts, StoredCrew},
    plan::{Change, Op, Shape},
    request::Request,
};
use crate::{
    crypto,
    wire::{
        extensions::QueueToken,
        ids::{Domain, GroupId},
    },
};

/// One provider of a workload, and where it was found when the workload was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub domain: Domain,
    /// Its client listener.
    pub url: String,
    /// PEM of what vouches for it; none: what the system trusts.
    pub certificate: Option<String>,
}

/// What a workload is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub name: String,
    pub shape: Shape,
    pub targets: Vec<Target>,
    /// Unix time.
    pub made_at_ms: u64,
}

/// A group, before its steps.
#[derive(Serialize, Deserialize)]
pub(super) struct Group {
    pub id: GroupId,
    /// The target that hosts it.
    pub hub: u32,
    /// Accounts that are in it when the replay begins.
    pub members: Vec<u32>,
    /// The epoch of its first step.
    pub epoch: u64,
    /// How many steps follow. 0 where it has races: then it is made live.
    pub steps: u32,
    /// How many of the last ones are messages of the last epoch: they can be sent again and again.
    pub tail: u32,
    pub live: Option<Live>,
}

/// What a group with races is replayed from: who wins is not known before.
#[derive(Serialize, Deserialize)]
pub(super) struct Live {
    pub crew: StoredCrew,
    pub ops: Vec<Op>,
    /// Of those who come in, in the order in which they do.
    pub tokens: Vec<QueueToken>,
}

/// One operation, made ahead.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Step {
    /// What it must be sent in, and the one that it makes is the next.
    pub epoch: u64,
    /// How many of the requests, from the first, are over before anything else happens in the group.
    pub holds: u8,
    pub change: Change,
    pub requests: Vec<Request>,
}

#[derive(Serialize, Deserialize)]
struct Index {
    groups: Vec<u64>,
}

/// Whether a file begins as a workload does.
pub(crate) fn begins_as_a_workload(beginning: &[u8]) -> bool {
    beginning.starts_with(MARK)
}

/// Why a file is no workload.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("{0} is no workload of `mimid load prepare`")]
    Foreign(PathBuf),
    #[error(
        "{path} is a workload of version {found}, and this mimid reads version {VERSION}: prepare it anew"
    )]
    Version { path: PathBuf, found: u8 },
    #[error("{path} is damaged at byte {at} ({what}): prepare it anew")]
    Damaged { path: PathBuf, at: u64, what: String },
    #[error("{0} is there already: name another file, or delete it")]
    Exists(PathBuf),
}

/// Writes a workload.
pub(super) struct Writer {
    path: PathBuf,
    part: PathBuf,
    out: BufWriter<File>,
    at: u64,
    groups: Vec<Option<u64>>,
}

impl Writer {
    /// Takes the file's place, so that nothing is done for a workload that cannot be written.
    pub fn create(path: &Path) -> Result<Self, LoadError> {
        if path.exists() {
            return Err(FileError::Exists(path.to_owned()).into());
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let part = path.with_file_name(name);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)
            .map_err(|error| FileError::Io { path: part.clone(), error })?;
        let out = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { path: path.to_owned(), part, out, at: 0, groups: Vec::new() })
    }

    /// What stands before the groups.
    pub fn begin(&mut self, header: &Header, accounts: &[Account]) -> Result<(), LoadError> {
        self.groups = vec![None; header.shape.groups as usize];
        self.put(MARK)?;
        self.put(&[VERSION])?;
        self.put(&record(header)?)?;
        for account in accounts {
            self.put(&record(&account.stored()?)?)?;
        }
        Ok(())
    }

    /// Takes group `index`, as [`block`] made it.
    pub fn group(&mut self, index: u32, block: &[u8]) -> Result<(), LoadError> {
        self.groups[index as usize] = Some(self.at);
        self.put(block)
    }

    /// How many bytes it has, when the workload is whole.
    pub fn finish(mut self) -> Result<u64, LoadError> {
        let groups: Option<Vec<u64>> = self.groups.iter().copied().collect();
        let groups = groups.ok_or_else(|| LoadError::Mls("a group was left out".to_owned()))?;
        let at = self.at;
        self.put(&record(&Index { groups })?)?;
        self.put(&at.to_be_bytes())?;
        let io = |error| FileError::Io { path: self.part.clone(), error };
        self.out.flush().map_err(io)?;
        self.out.get_ref().sync_all().map_err(io)?;
        std::fs::rename(&self.part, &self.path).map_err(io)?;
        Ok(self.at)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), LoadError> {
        self.out
            .write_all(bytes)
            .map_err(|error| FileError::Io { path: self.part.clone(), error })?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // behind `finish` it has another name
        let _ = std::fs::remove_file(&self.part);
    }
}

/// A group and its steps as they stand in the file.
pub(super) fn block(group: &Group, steps: &[Step]) -> Result<Vec<u8>, LoadError> {
    let mut bytes = record(group)?;
    for step in steps {
        bytes.extend(record(step)?);
    }
    Ok(bytes)
}

fn record<T: Serialize>(value: &T) -> Result<Vec<u8>, LoadError> {
    let body = postcard::to_stdvec(value).map_err(|error| LoadError::Mls(error.to_string()))?;
    if body.len() > RECORD_BYTES_MAX {
        return Err(LoadError::Usage(format!(
            "a record of {} bytes is too large for a workload: fewer drivers or members",
            body.len()
        )));
    }
    let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
    bytes.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(&crypto::sha256(&body)[..CHECKSUM_BYTES]);
    bytes.extend(body);
    Ok(bytes)
}

/// A workload that is open.
pub struct Workload {
    path: PathBuf,
    file: File,
    pub header: Header,
    pub accounts: Accounts,
    groups: Vec<u64>,
    /// Where the records end.
    end: u64,
}

impl Workload {
    /// Reads header, accounts and index, and looks at all the rest: what is damaged is told before anything is sent.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let Beginning { file, size, end, header, mut at } = Beginning::read(path)?;
        let damaged = |at, what: &str| FileError::Damaged {
            path: path.to_owned(),
            at,
            what: what.to_owned(),
        };
        let reader = Reader { path, file: &file, end: size - 8 };
        Reader { end, ..reader }.check_all()?;
        let mut accounts = Vec::new();
        for _ in 0..header.shape.users {
            let (account, next): (StoredAccount, u64) = reader.record(at)?;
            accounts.push(account.open()?);
            at = next;
        }
        let (index, _): (Index, u64) = reader.record(end)?;
        let fits = index.groups.len() == header.shape.groups as usize
            && header.targets.len() == header.shape.targets as usize
            && index.groups.iter().all(|group| (at..end).contains(group));
        if !fits {
            return Err(damaged(end, "its index is of another workload").into());
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            header,
            accounts: Arc::new(accounts),
            groups: index.groups,
            end,
        })
    }

    /// Where a workload's providers were when it was made; the rest is not looked at.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn targets(path: &Path) -> Result<Vec<Target>, LoadError> {
        Ok(Beginning::read(path)?.header.targets)
    }

    /// Group `index`, and where its first step is.
    pub(super) fn group(&self, index: usize) -> Result<(Group, u64), LoadError> {
        let at = self.groups[index];
        let (group, next): (Group, u64) = self.reader().record(at)?;
        let users = self.header.shape.users;
        let known = group.hub < self.header.shape.targets
            && group.members.iter().all(|account| *account < users);
        if !known {
            return Err(self.damaged(at, "a group of clients that are not there").into());
        }
        Ok((group, next))
    }

    /// The step at a position, and the position of the one that follows.
    pub(super) fn step(&self, at: u64) -> Result<(Step, u64), LoadError> {
        let (step, next): (Step, u64) = self.reader().record(at)?;
        let users = self.header.shape.users;
        let moves = match step.change {
            Change::In(account) | Change::Out(account) => account < users,
            Change::Nobody => true,
        };
        let known = moves && step.requests.iter().all(|request| request.account < users);
        if !known || step.requests.is_empty() || step.requests.len() > 255 {
            return Err(self.damaged(at, "a step of clients that are not there").into());
        }
        Ok((step, next))
    }

    fn reader(&self) -> Reader<'_> {
        Reader { path: &self.path, file: &self.file, end: self.end }
    }

    fn damaged(&self, at: u64, what: &str) -> FileError {
        FileError::Damaged { path: self.path.clone(), at, what: what.to_owned() }
    }
}

/// A file that is a workload of this version.
struct Beginning {
    file: File,
    size: u64,
    /// Where the index begins.
    end: u64,
    header: Header,
    /// Where the first account is.
    at: u64,
}

impl Beginning {
    fn read(path: &Path) -> Result<Self, LoadError> {
        let io = |error| FileError::Io { path: path.to_owned(), error };
        let mut file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut mark = [0; MARK.len() + 1];
        let read = file.read(&mut mark).map_err(io)?;
        if read != mark.len() || &mark[..MARK.len()] != MARK {
            return Err(FileError::Foreign(path.to_owned()).into());
        }
        let found = mark[MARK.len()];
        if found != VERSION {
            return Err(FileError::Version { path: path.to_owned(), found }.into());
        }
        let mut end = [0; 8];
        file.seek(SeekFrom::Start(size.saturating_sub(8))).map_err(io)?;
        file.read_exact(&mut end).map_err(io)?;
        let end = u64::from_be_bytes(end);
        let damaged = |at, what: &str| FileError::Damaged {
            path: path.to_owned(),
            at,
            what: what.to_owned(),
        };
        if end >= size {
            return Err(damaged(size, "its end is missing").into());
        }
        let reader = Reader { path, file: &file, end: size - 8 };
        let (header, at): (Header, u64) = reader.record(mark.len() as u64)?;
        header.shape.check().map_err(|what| damaged(at, &what))?;
        Ok(Self { file, size, end, header, at })
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    path: &'a Path,
    file: &'a File,
    end: u64,
}

impl Reader<'_> {
    /// Whether every record up to the end is what was written, and one follows the other.
    fn check_all(&self) -> Result<(), LoadError> {
        let io = |error| FileError::Io { path: self.path.to_owned(), error };
        let mut at = MARK.len() as u64 + 1;
        let mut input = BufReader::with_capacity(1 << 20, self.file);
        input.seek(SeekFrom::Start(at)).map_err(io)?;
        let mut body = Vec::new();
        while at < self.end {
            let damaged = |what: &str| {
                let (path, what) = (self.path.to_owned(), what.to_owned());
                FileError::Damaged { path, at, what }
            };
            let mut head = [0; HEAD_BYTES];
            input.read_exact(&mut head).map_err(io)?;
            let (length, checksum) = head.split_at(4);
            let length = length.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
            let next = at + (HEAD_BYTES + length) as u64;
            if length > RECORD_BYTES_MAX || next > self.end {
                return Err(damaged("a length that cannot be").into());
            }
            body.resize(length, 0);
            input.read_exact(&mut body).map_err(io)?;
            if crypto::sha256(&body)[..CHECKSUM_BYTES] != *checksum {
                return Err(damaged("a checksum that does not fit").into());
            }
            at = next;
        }
        Ok(())
    }

    fn record<T: DeserializeOwned>(&self, at: u64) -> Result<(T, u64), LoadError> {
        let damaged = |what: &str| FileError::Damaged {
            path: self.path.to_owned(),
            at,
            what: what.to_owned(),
        };
        // most records are read whole with the first look
        let mut first = [0; FIRST_BYTES];
        let there = usize::try_from(self.end.saturating_sub(at)).unwrap_or(FIRST_BYTES);
        let there = there.min(FIRST_BYTES);
        let io = |error| FileError::Io { path: self.path.to_owned(), error };
        self.file.read_exact_at(&mut first[..there], at).map_err(io)?;
        let head = first[..there].get(..HEAD_BYTES).ok_or_else(|| damaged("it is cut off"))?;
        let (length, checksum) = head.split_at(4);
        let length = length.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
        let next = at + (HEAD_BYTES + length) as u64;
        if length > RECORD_BYTES_MAX || next > self.end {
            return Err(damaged("a length that cannot be").into());
        }
        let mut long;
        let body = match first[..there].get(HEAD_BYTES..HEAD_BYTES + length) {
            Some(body) => body,
            None => {
                long = vec![0; length];
                self.file.read_exact_at(&mut long, at + HEAD_BYTES as u64).map_err(io)?;
                &long
            }
        };
        if crypto::sha256(body)[..CHECKSUM_BYTES] != *checksum {
            return Err(damaged("a checksum that does not fit").into());
        }
        let value = postcard::from_bytes(body).map_err(|error| damaged(&error.to_string()))?;
        Ok((value, next))
    }
}

const MARK: &[u8] = b"mimid workload ";
const VERSION: u8 = 2;
const CHECKSUM_BYTES: usize = 8;
const HEAD_BYTES: usize = 4 + CHECKSUM_BYTES;
const FIRST_BYTES: usize = 4096;
/// Of one record: a live group with all its drivers' states is the largest.
const RECORD_BYTES_MAX: usize = 256 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        load::request::{Kind, Signer},
        wire::ids::ClientUri,
    };

    fn header() -> Header {
        let shape = Shape {
            seed: 1,
            groups: 2,
            members: 2,
            drivers: 1,
            racers: 0,
            losers_retry: false,
            mix: "messages=1".parse().unwrap(),
            steps: 1,
            message_bytes: 10,
            users: 3,
            targets: 1,
        };
        let domain = Domain::new("a.example").unwrap();
        let target = Target { domain, url: "https://127.0.0.1:1".to_owned(), certificate: None };
        Header { name: "test".to_owned(), shape, targets: vec![target], made_at_ms: 5 }
    }

    fn write(path: &Path) {
        let accounts: Vec<Account> = (0..3)
            .map(|it| ClientUri::new(format!("mimi://a.example/d/u{it}/load")).unwrap())
            .map(|client| Account::generate(client).unwrap())
            .collect();
        let mut writer = Writer::create(path).unwrap();
        writer.begin(&header(), &accounts).unwrap();
        for index in [1, 0] {
            let group = Group {
                id: GroupId::of(&header().targets[0].domain, [u8::try_from(index).unwrap(); 16]),
                hub: 0,
                members: vec![0, 2],
                epoch: 1,
                steps: 2,
                tail: 2,
                live: None,
            };
            let step = |bytes: usize| Step {
                epoch: 1,
                holds: 0,
                change: Change::Nobody,
                requests: vec![Request {
                    kind: Kind::Message,
                    account: 2,
                    signer: Signer::Leaf,
                    sender: vec![1],
                    body: vec![7; bytes],
                }],
            };
            writer.group(index, &block(&group, &[step(10), step(10_000)]).unwrap()).unwrap();
        }
        writer.finish().unwrap();
    }

    fn read_all(path: &Path) -> Result<usize, LoadError> {
        let workload = Workload::open(path)?;
        let mut bytes = 0;
        for index in 0..2 {
            let (group, mut at) = workload.group(index)?;
            for _ in 0..group.steps {
                let (step, next) = workload.step(at)?;
                bytes += step.requests[0].body.len();
                at = next;
            }
        }
        Ok(bytes)
    }

    #[test]
    fn a_workload_is_read_as_it_was_written_and_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        write(&path);
        let workload = Workload::open(&path).unwrap();
        assert_eq!(workload.header, header());
        assert_eq!(workload.accounts[2].client.as_str(), "mimi://a.example/d/u2/load");
        assert_eq!(read_all(&path).unwrap(), 2 * 10_010);
        let group = workload.group(1).unwrap().0;
        assert_eq!(group.id, GroupId::of(&header().targets[0].domain, [1; 16]));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!folder.path().join("w.part").exists());
        let again = Writer::create(&path).err().unwrap().to_string();
        assert!(again.contains("there already"), "{again}");
    }

    #[test]
    fn any_byte_that_is_changed_and_any_end_that_is_missing_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        write(&path);
        let whole = std::fs::read(&path).unwrap();
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read_all(&path)
        };
        assert!(read(&whole).is_ok());
        let open = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Workload::open(&path).map(|_| ())
        };
        assert!(open(&whole).is_ok());
        // the last eight bytes alone have no checksum: they lead to the index or to what is none
        for at in (0..whole.len()).step_by(61).chain(whole.len() - 8..whole.len()) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x41;
            // before anything is done with it, also in what is read last
            assert!(open(&bytes).is_err(), "byte {at}");
        }
        for length in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
            assert!(open(&whole[..length]).is_err(), "{length} bytes");
        }
        let mut version = whole.clone();
        version[MARK.len()] = 9;
        assert!(read(&version).unwrap_err().to_string().contains("version 9"));
        let foreign = read(b"{\"a\": 1}").unwrap_err().to_string();
        assert!(foreign.contains("no workload"), "{foreign}");
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        assert!(read(&damaged).unwrap_err().to_string().contains("prepare it anew"));
    }
}
