//! `mimid store`: a provider's store while the provider is stopped.

use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Subcommand, ValueEnum};

use super::FAILED;
use crate::{
    server::endpoints,
    store::{
        copy::{self, CopyError},
        make_folder,
    },
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a copy of a provider's data folder with its store in another engine, and read it back
    ///
    /// The provider must be stopped; its folder stays as it is. Everything in it comes along, keys too.
    Copy(Copy),
}

#[derive(Debug, clap::Args)]
struct Copy {
    /// The data folder of the provider
    from: PathBuf,
    /// Where the copy is made: nothing may be there yet
    to: PathBuf,
    /// The engine of the copy; without it the one that the store is not in
    #[arg(long, value_enum)]
    engine: Option<Engine>,
}

#[derive(Debug, Clone, std::marker::Copy, ValueEnum)]
pub(super) enum Engine {
    Sled,
    Fjall,
}

impl Engine {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sled => "sled",
            Self::Fjall => "fjall",
        }
    }
}

/// Copies, and says what to do with the copy.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let Command::Copy(asked) = &args.command;
    match copy(asked) {
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

fn copy(asked: &Copy) -> Result<String, CopyError> {
    let Copy { from, to, engine } = asked;
    if to.exists() {
        return Err(CopyError::Exists(to.clone()));
    }
    let failed = |error| CopyError::Folder { what: "make", path: to.clone(), error };
    // else the copy would be copied, too, without end
    let whole = |path: &Path| std::path::absolute(path).map_err(failed);
    if whole(to)?.starts_with(whole(from)?) {
        return Err(CopyError::Inside(to.clone()));
    }
    make_folder(to).map_err(failed)?;
    let shows = io::stderr().is_terminal();
    let told = |records| {
        if shows {
            // a line for who waits; nobody misses it where it cannot be shown
            let _ = write!(io::stderr(), "\r{records} records");
        }
    };
    let engine = engine.map(Engine::name);
    let copied = copy::copy(&from.join(STORE), &to.join(STORE), engine, told).and_then(|copied| {
        copy_files(from, to)?;
        Ok(copied)
    });
    if shows {
        let _ = write!(io::stderr(), "\r");
    }
    let copied = copied.inspect_err(|_| {
        // made by this command a moment ago; the error says what was wrong
        let _ = fs::remove_dir_all(to);
    })?;
    Ok(format!(
        "copied {} records ({} bytes) from {} to {}, and read them all back: they are the same\n\
         start the provider with data_dir = {:?} and, under [store], engine = {:?}; never start it with the old folder again",
        copied.records, copied.bytes, copied.from, copied.to, to, copied.to
    ))
}

/// Everything beside the store: keys, certificate.
fn copy_files(from: &Path, to: &Path) -> Result<(), CopyError> {
    let failed = |error| CopyError::Folder { what: "copy", path: from.to_owned(), error };
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // a certificate may be a link to where it is renewed: what it leads to is copied
        let (name, kind) = (entry.file_name(), fs::metadata(entry.path()).map_err(failed)?);
        // the provider says anew where it listens
        if name == STORE || name == endpoints::FILE || name == endpoints::BACKUP_KEY_FILE {
            continue;
        }
        let copy = to.join(&name);
        if kind.is_dir() {
            make_folder(&copy).map_err(failed)?;
            copy_files(&entry.path(), &copy)?;
        } else if kind.is_file() {
            // with its permissions
            fs::copy(entry.path(), &copy).map_err(failed)?;
            fs::File::open(&copy).and_then(|file| file.sync_all()).map_err(failed)?;
        }
    }
    fs::File::open(to).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// The store's folder in a data folder.
pub(super) const STORE: &str = "store";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_inside_of_what_is_copied_is_refused_and_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().to_owned(), folder.path().join("copy"));
        let refused = copy(&Copy { from, to: to.clone(), engine: None }).unwrap_err();
        assert!(matches!(refused, CopyError::Inside(_)), "{refused}");
        assert!(!to.exists());
    }
}
