//! `mimid backup` and `mimid restore`: everything that a provider keeps in one file, and back.
//!
//! A running provider reads its own store and hands it over, for it holds the store's lock; a stopped one's is read from its
//! folder. Keys and certificates are read from the folder in either case, by who may read them.

use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    FAILED,
    store::{Engine, STORE},
    verify,
};
use crate::{
    server::{Config, Endpoints, endpoints},
    store::{
        OpenError, Piece,
        ahead::{self, Leapt},
        backup::{self, BackupError, Beside, Header, Reader, Trailer, Writer},
        make_folder,
        verify::Summary,
    },
    wire::ids::Timestamp,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The backup that is made: a file of a name that is free
    to: PathBuf,
    /// The provider's data folder
    #[arg(long, value_name = "DIR", env = "MIMID_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// The provider's configuration, which names its data folder
    #[arg(long, value_name = "FILE", env = "MIMID_CONFIG")]
    config: Option<PathBuf>,
    /// Leave keys and certificates out: the backup is no provider without them, and less of a secret
    #[arg(long)]
    without_keys: bool,
}

#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// A backup, made by `mimid backup`
    from: PathBuf,
    /// The data folder that is made: it must be new or empty
    to: PathBuf,
    /// The engine of the store; without it the one that the backup is of
    #[arg(long, value_enum)]
    engine: Option<Engine>,
    /// The provider has taken nothing since the backup was made: it was stopped then, and has not been started since
    ///
    /// Clients go on as if nothing had happened. Where it is not so, what they have got since is silently mixed up with what
    /// comes: without this flag each of them enters its groups anew.
    #[arg(long)]
    nothing_since: bool,
    /// Groups that were about to move when the backup was made have not moved: the provider that they were to go to was asked
    #[arg(long)]
    not_moved: bool,
}

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub(super) enum Said {
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error("{0}")]
    Text(String),
    #[error("cannot {what} {}: {error}", path.display())]
    File { what: &'static str, path: PathBuf, error: io::Error },
}

/// Makes a backup, and says what is in it.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    said(make(args))
}

/// Restores one, and says what to do next.
#[must_use]
pub fn restore(args: &RestoreArgs) -> ExitCode {
    said(bring_back(args))
}

fn said(told: Result<String, Said>) -> ExitCode {
    match told {
        Ok(told) => {
            println!("{told}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("mimid: {error}");
            ExitCode::from(FAILED)
        }
    }
}

fn make(args: &Args) -> Result<String, Said> {
    let folder = match (&args.data_dir, &args.config) {
        (Some(folder), _) => folder.clone(),
        (None, None) => Config::default().data_dir,
        (None, Some(file)) => {
            let config = Config::load(Some(file), std::iter::empty());
            config.map_err(|error| Said::Text(error.to_string()))?.data_dir
        }
    };
    let to = &args.to;
    if to.exists() {
        return Err(BackupError::Exists(to.clone()).into());
    }
    let store = folder.join(STORE);
    let header = |live, domain, engine: &str| Header {
        version: backup::VERSION,
        made_by: env!("CARGO_PKG_VERSION").to_owned(),
        domain,
        engine: engine.to_owned(),
        taken_at_ms: now_ms(),
        live,
        keys: !args.without_keys,
    };
    let engine = backup::engine_of(&store);
    let stopped = engine.map(|engine| -> Result<_, BackupError> {
        let domain = fs::read_to_string(folder.join(DOMAIN)).unwrap_or_default();
        let mut writer = Writer::create(to, &header(false, domain.trim().to_owned(), engine))?;
        let sequence = backup::read_stopped(&store, &mut writer)?;
        Ok((writer, sequence))
    });
    let (mut writer, sequence) = match stopped {
        Some(Ok(read)) => read,
        // it runs: then it is asked
        Some(Err(BackupError::Open(OpenError::InUse { .. }))) | None => {
            let endpoints = Endpoints::read(&folder).map_err(|error| match engine {
                None => BackupError::NoStore(folder.clone()).into(),
                Some(_) => Said::Text(format!(
                    "a process has the store in {} open, and {} cannot be read ({error}): is it a provider that \
                     is starting? Try again",
                    folder.display(),
                    endpoints::FILE
                )),
            })?;
            let header = header(true, endpoints.domain.to_string(), engine.unwrap_or("sled"));
            let mut writer = Writer::create(to, &header)?;
            let sequence = ask(&folder, &endpoints, &mut writer)?;
            (writer, sequence)
        }
        Some(Err(error)) => return Err(error.into()),
    };
    add_files(&folder, Path::new(""), !args.without_keys, &mut writer)?;
    let trailer = writer.finish(sequence)?;
    let secret = if args.without_keys {
        "without keys and certificates: keep those in another place, a provider cannot come back without them"
    } else {
        "its keys are in it: keep it as secret as them"
    };
    Ok(format!(
        "{}: {} records ({} bytes) and {} files, as of write {}; {secret}\n\
         check it with `mimid verify {}`",
        to.display(),
        trailer.records,
        trailer.bytes,
        trailer.files,
        trailer.sequence,
        to.display()
    ))
}

/// Has the running provider hand its store over. Gives the flush that it is of.
fn ask(folder: &Path, endpoints: &Endpoints, writer: &mut Writer) -> Result<u64, Said> {
    // an error says that the process has a provider already, which will do
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let path = folder.join(endpoints::BACKUP_KEY_FILE);
    let key =
        fs::read_to_string(&path).map_err(|error| Said::File { what: "read", path, error })?;
    let failed = |error: reqwest::Error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        Said::Text(format!("the provider: {error}{}", cause.unwrap_or_default()))
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Said::Text(format!("no runtime: {error}")))?;
    let shows = Shows::new();
    runtime.block_on(async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .read_timeout(Duration::from_secs(120))
            .build()
            .map_err(failed)?;
        let request = client.get(format!("{}/v1/backup", endpoints.ops)).bearer_auth(key.trim());
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        if !status.is_success() {
            let why = response.text().await.map_err(failed)?;
            return Err(Said::Text(format!("{} ({status})", why.trim_end())));
        }
        let mut came = Vec::new();
        let mut records = 0;
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            came.extend_from_slice(&chunk);
            while let Some(piece) = backup::take_frame(&mut came)? {
                match piece {
                    Piece::Records(piece) => {
                        records += piece.len();
                        writer.records(&piece)?;
                        shows.show(records);
                    }
                    Piece::End { sequence } => return Ok(sequence),
                }
            }
        }
        Err(BackupError::Ended("what it sent has no end").into())
    })
}

/// Everything beside the store.
fn add_files(folder: &Path, within: &Path, keys: bool, writer: &mut Writer) -> Result<(), Said> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| Said::File { what: "read", path, error }
    };
    let here = folder.join(within);
    let mut entries = fs::read_dir(&here)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(failed(&here))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (file, path) = (entry.file_name(), entry.path());
        let name = within.join(&file);
        let is_top = within.as_os_str().is_empty();
        // what is made anew at each start, and what was being written when it was looked at
        let is_passing = file == endpoints::FILE
            || file == endpoints::BACKUP_KEY_FILE
            || path.extension().is_some_and(|it| it == "new" || it == "unfinished");
        let is_wanted = keys || (is_top && file == DOMAIN);
        if is_passing || !is_wanted || (is_top && file == STORE) {
            continue;
        }
        // a certificate may be a link to where it is renewed: what it leads to is kept
        let kind = fs::metadata(&path).map_err(failed(&path))?;
        if kind.is_dir() {
            add_files(folder, &name, keys, writer)?;
        } else if kind.is_file() {
            if kind.len() > FILE_BYTES_MAX {
                return Err(Said::Text(format!(
                    "{} is too large to be a key or a certificate: it does not belong into the data folder",
                    path.display()
                )));
            }
            let bytes = fs::read(&path).map_err(failed(&path))?;
            let mode = kind.permissions().mode() & 0o777;
            writer.beside(&Beside { name, mode, bytes })?;
        }
    }
    Ok(())
}

fn bring_back(args: &RestoreArgs) -> Result<String, Said> {
    let RestoreArgs { from, to, engine, .. } = args;
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |error| Said::File { what, path, error }
    };
    if to.exists() && fs::read_dir(to).map_err(failed("read", to))?.next().is_some() {
        return Err(BackupError::NotEmpty(to.clone()).into());
    }
    let header = Reader::open(from)?.header;
    let engine = engine.map_or_else(|| header.engine.clone(), |engine| engine.name().to_owned());
    let unfinished = beside(to);
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(failed("remove", &unfinished))?;
    }
    make_folder(&unfinished).map_err(failed("make", &unfinished))?;
    let restored = fill(from, &unfinished, &engine).and_then(|trailer| {
        let (leapt, summary) = settle(args, &header, &unfinished.join(STORE))?;
        Ok((trailer, leapt, summary))
    });
    let (trailer, leapt, summary) = restored.inspect_err(|_| {
        // made by this command a moment ago; the error says what was wrong
        let _ = fs::remove_dir_all(&unfinished);
    })?;
    if to.exists() {
        // empty, or this fails
        fs::remove_dir(to).map_err(failed("replace", to))?;
    }
    fs::rename(&unfinished, to).map_err(failed("make", to))?;
    let above = to.parent().filter(|above| !above.as_os_str().is_empty());
    let above = above.unwrap_or(Path::new("."));
    fs::File::open(above).and_then(|it| it.sync_all()).map_err(failed("sync", above))?;
    let mut told = format!(
        "restored {} as of write {}, {} s ago: {} files, and a store that reads back as it was written\n",
        header.domain,
        trailer.sequence,
        now_ms().saturating_sub(header.taken_at_ms) / 1000,
        trailer.files
    );
    told.push_str(&verify::shown(&summary, None));
    told.push('\n');
    if let Some(leapt) = leapt {
        told.push_str(&format!(
            "what was taken since then is lost: {} groups and {} clients go on behind a gap, in which clients enter their groups \
             anew; {} KeyPackages may have been handed out since and are gone; {} feeds of other providers get a snapshot\n",
            leapt.groups, leapt.clients, leapt.key_packages, leapt.guests
        ));
    }
    if !header.keys {
        told.push_str("the backup has no keys: put keys/ and the certificate into the folder before it is started\n");
    }
    told.push_str(&format!(
        "start the provider with data_dir = {to:?} and, under [store], engine = {engine:?}; never start it with the \
         old folder again",
    ));
    Ok(told)
}

/// What makes a store that went back fit to be started, and whether it is whole. Problems are shown as they are found.
fn settle(
    args: &RestoreArgs,
    header: &Header,
    store: &Path,
) -> Result<(Option<Leapt>, Summary), Said> {
    let leaving = ahead::about_to_leave(store)?;
    if !leaving.is_empty() && !args.not_moved {
        let each = leaving.iter().map(|(group, target)| format!("\n  {group} to {target}"));
        return Err(Said::Text(format!(
            "groups were about to move when the backup was made:{}\nIf one has moved since, this provider must not host it \
             again. Ask those providers whether the groups are there. Where none is: restore with --not-moved. Where one is: \
             there is no way to restore this backup; use one from before or behind that move",
            each.collect::<String>()
        )));
    }
    let leapt = if args.nothing_since {
        None
    } else {
        if now_ms() < header.taken_at_ms {
            return Err(Said::Text(
                "this machine's clock is before the time of the backup: set it first".to_owned(),
            ));
        }
        Some(ahead::leap(store, Timestamp(header.taken_at_ms), Timestamp(now_ms()))?)
    };
    let summary = verify::verify(store, &mut |problem| {
        eprintln!("{}: {}: {}\n    {}", problem.of, problem.record, problem.wrong, problem.remedy);
    })?;
    Ok((leapt, summary))
}

fn fill(from: &Path, to: &Path, engine: &str) -> Result<Trailer, Said> {
    let trailer = backup::write_store(from, &to.join(STORE), engine, |file| {
        let path = to.join(&file.name);
        let written = || -> io::Result<()> {
            if let Some(above) = path.parent() {
                make_folder(above)?;
            }
            let mut made = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(file.mode & 0o777)
                .open(&path)?;
            made.write_all(&file.bytes)?;
            made.sync_all()
        };
        written().map_err(|error| BackupError::File { what: "write", path: path.clone(), error })
    })?;
    sync_all(to).map_err(|error| Said::File { what: "sync", path: to.to_owned(), error })?;
    Ok(trailer)
}

/// The names in `folder` and in those in it.
fn sync_all(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_all(&entry.path())?;
        }
    }
    fs::File::open(folder)?.sync_all()
}

/// Shows how far it is, to who waits.
struct Shows(bool);

impl Shows {
    fn new() -> Self {
        Self(io::stderr().is_terminal())
    }

    fn show(&self, records: usize) {
        if self.0 {
            // nobody misses it where it cannot be shown
            let _ = write!(io::stderr(), "\r{records} records");
        }
    }
}

impl Drop for Shows {
    fn drop(&mut self) {
        if self.0 {
            let _ = write!(io::stderr(), "\r");
        }
    }
}

fn beside(to: &Path) -> PathBuf {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(".unfinished");
    to.with_file_name(name)
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Says whose the data folder is.
const DOMAIN: &str = "domain";
const FILE_BYTES_MAX: u64 = 16 << 20;
