//! `mimid verify`: whether a data folder, or a backup, is whole.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::Serialize;

use super::{FAILED, backup::Said, store::STORE};
pub(super) use crate::store::verify::verify;
use crate::store::{
    OpenError,
    backup::{self, BackupError, Header, Reader, Trailer},
    make_folder,
    verify::{Problem, Summary},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A data folder of a provider that is stopped, or a backup
    what: PathBuf,
    /// What was found, as JSON: an object for each problem on a line of its own, the summary on the last
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Told<'a> {
    whole: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<OfBackup<'a>>,
    #[serde(flatten)]
    summary: &'a Summary,
}

#[derive(Serialize)]
struct OfBackup<'a> {
    #[serde(flatten)]
    header: &'a Header,
    files: u64,
}

/// Looks, and says what is wrong. 0: nothing.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let mut told = |problem: Problem| {
        if args.json {
            println!("{}", json(&problem));
        } else {
            let Problem { of, record, wrong, remedy } = problem;
            println!("{of}: {record}: {wrong}\n    {remedy}");
        }
    };
    match look(&args.what, &mut told) {
        Ok((summary, of)) => {
            let whole = summary.problems == 0;
            if args.json {
                let backup =
                    of.as_ref().map(|(header, trailer)| OfBackup { header, files: trailer.files });
                println!("{}", json(&Told { whole, backup, summary: &summary }));
            } else {
                println!("{}", shown(&summary, of.as_ref()));
            }
            if whole { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
        }
        Err(error) => {
            if args.json {
                println!("{}", serde_json::json!({ "whole": false, "error": error.to_string() }));
            }
            eprintln!("mimid: {error}");
            ExitCode::from(FAILED)
        }
    }
}

type Looked = (Summary, Option<(Header, Trailer)>);

fn look(what: &Path, told: &mut dyn FnMut(Problem)) -> Result<Looked, Said> {
    if what.is_dir() {
        let store = what.join(STORE);
        let looked = verify(&store, told).map_err(|error| {
            if matches!(error, BackupError::NoStore(_)) {
                return BackupError::NoStore(what.to_owned()).into();
            }
            if matches!(error, BackupError::Open(OpenError::InUse { .. })) {
                return Said::Text(format!(
                    "the provider of {} runs: make a backup (`mimid backup`) and verify that, or stop it first",
                    what.display()
                ));
            }
            Said::from(error)
        })?;
        return Ok((looked, None));
    }
    // the order of a backup is not that of its keys: it is looked at as the store that it makes
    let header = Reader::open(what)?.header;
    let scratch = Scratch::beside(what)?;
    let store = scratch.0.join(STORE);
    let trailer = backup::write_store(what, &store, &header.engine, |_| Ok(()))?;
    let looked = verify(&store, told)?;
    Ok((looked, Some((header, trailer))))
}

/// A folder for a moment, for the owner alone.
struct Scratch(PathBuf);

impl Scratch {
    fn beside(path: &Path) -> Result<Self, Said> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".verified");
        let folder = path.with_file_name(name);
        let failed = |error: io::Error| Said::File { what: "make", path: folder.clone(), error };
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(failed)?;
        }
        make_folder(&folder).map_err(failed)?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // for the owner alone; the next look removes it
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The summary, for people.
pub(super) fn shown(summary: &Summary, of: Option<&(Header, Trailer)>) -> String {
    let mut told = String::new();
    if let Some((header, trailer)) = of {
        let how = if header.live { "while it ran" } else { "while it was stopped" };
        let keys = if header.keys { "with its keys" } else { "without keys" };
        told.push_str(&format!(
            "a backup of {}, taken {how}, {keys} ({} files)\n",
            header.domain, trailer.files
        ));
    }
    let records: u64 = summary.records.values().sum();
    let counts = ["group", "log record", "followed group", "account", "device", "subscription"];
    let counts = counts.map(|kind| {
        let count = summary.records.get(kind).copied().unwrap_or_default();
        format!("{count} {kind}{}", if count == 1 { "" } else { "s" })
    });
    told.push_str(&format!(
        "as of write {}: {records} records, of them {}; {} leftovers of writes that were broken off\n",
        summary.sequence,
        counts.join(", "),
        summary.leftovers
    ));
    for (chain, logs) in &summary.chains {
        let what = match *chain {
            "whole" => "whole",
            "begun" => "whole since this store was first used by a mimid that has one",
            "none" => "not begun yet: they were written by an earlier mimid",
            _ => "broken",
        };
        told.push_str(&format!("hash chains of logs: {logs} {what}\n"));
    }
    told.push_str(&match summary.problems {
        0 => "it is whole".to_owned(),
        1 => "1 problem".to_owned(),
        problems => format!("{problems} problems"),
    });
    told
}

fn json<T: Serialize>(value: &T) -> String {
    // names, texts and numbers: nothing that JSON cannot hold
    serde_json::to_string(value).unwrap_or_default()
}
