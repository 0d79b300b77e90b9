//! `mimid admin`: what an operator asks of a provider that runs, through its ops listener.

use std::{path::PathBuf, process::ExitCode};

use clap::Subcommand;

use super::{FAILED, ops::NodeAt};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring in a whole group from a file
    ///
    /// The file is a GroupImport (PROTOCOL.md): the group's GroupInfo and tree, and the queue of each member, all of
    /// them clients of this provider. Everything is checked but the lifetimes of leaves.
    ImportGroup(ImportGroup),
}

#[derive(Debug, clap::Args)]
struct ImportGroup {
    file: PathBuf,
    #[command(flatten)]
    node: NodeAt,
}

/// Asks, and says what came back.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let Command::ImportGroup(import) = &args.command;
    match import_group(import) {
        Ok(told) => {
            println!("{told}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("mimid: {why}");
            ExitCode::from(FAILED)
        }
    }
}

fn import_group(import: &ImportGroup) -> Result<String, String> {
    let file = &import.file;
    let body = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    import.node.post("/v1/import_group", "application/octet-stream", body)
}
