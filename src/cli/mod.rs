//! The command line: one file per subcommand. Exit codes are for people and scripts: 0 done, 1 failed, 2 wrong usage or
//! configuration.

pub mod admin;
pub mod backup;
pub mod check_config;
pub mod client;
pub mod demo;
pub mod doctor;
pub mod keys;
pub mod load;
mod ops;
pub mod peers;
pub mod serve;
pub mod store;
mod supervisor;
pub mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A MIMI provider in one binary.
#[derive(Debug, Parser)]
#[command(name = "mimid", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a provider; without a configuration: on loopback, with a data folder and keys of its own
    Serve(serve::Args),
    /// Say what a configuration means, and what is wrong with it
    CheckConfig(check_config::Args),
    /// A client on the command line: register, create groups, chat
    Client(client::Args),
    /// Start a provider and let real clients use everything that it does
    Demo(demo::Args),
    /// Show the other providers that a provider deals with
    Peers(peers::Args),
    /// Say whether another provider can be spoken with, and what is in the way
    Doctor(doctor::Args),
    /// Operate a provider that runs
    Admin(admin::Args),
    /// The keys that other providers verify with: show them, or put new ones in their place
    Keys(keys::Args),
    /// Make a backup of a provider, which may run
    ///
    /// One file with everything that it keeps, as of one moment. It is for who may read the data folder.
    Backup(backup::Args),
    /// Make a data folder from a backup
    Restore(backup::RestoreArgs),
    /// Say whether a data folder or a backup is whole
    Verify(verify::Args),
    /// Move a provider's store to another engine
    Store(store::Args),
    /// Test providers with the load of many real clients
    Load(load::Args),
}

/// It did not work.
pub const FAILED: u8 = 1;
/// It was not asked for rightly.
pub const USAGE: u8 = 2;

/// Runs what the process was started for.
#[must_use]
pub fn main() -> ExitCode {
    // clap itself ends the process with 2 where the usage is wrong
    match Cli::parse().command {
        Command::Serve(args) => serve::run(&args),
        Command::CheckConfig(args) => check_config::run(&args),
        Command::Client(args) => client::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Peers(args) => peers::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Admin(args) => admin::run(&args),
        Command::Keys(args) => keys::run(&args),
        Command::Backup(args) => backup::run(&args),
        Command::Restore(args) => backup::restore(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Store(args) => store::run(&args),
        Command::Load(args) => load::run(&args),
    }
}
