//! `mimid load`: prepare a workload at live providers, replay it, and tell what came of it. Here: arguments in, lines out.

mod prepare;
mod report;
mod run;
mod targets;

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Subcommand;

use super::{FAILED, USAGE};
use crate::load::LoadError;

/// Load tests with real MLS clients.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Register clients at live providers, create groups there, and write a workload with what happens in them
    ///
    /// The providers should be there for tests: what is registered and created stays. config/load.toml shows the limits to set,
    /// ops/load.md tried scenarios.
    Prepare(prepare::Args),
    /// Replay a workload at the providers that it was prepared at, and measure
    ///
    /// Operations go to the groups by chance; in each group they keep their order. Ctrl-C ends it, and what was measured is kept.
    Run(Box<run::Args>),
    /// Say what a recorded run measured, or how two of them compare
    ///
    /// Latencies per operation, throughput, errors by code, and what the run cost each target by its own counters: CPU, memory, bytes
    /// and flushes. What would mislead a reader comes first; ops/load-report.md explains every number.
    Report(report::Args),
}

/// Runs a command and says how it went.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off"));
    // a second call in one process finds one that is there
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let done: Result<(), LoadError> = runtime.block_on(async {
        match &args.command {
            Command::Prepare(args) => prepare::run(args).await,
            Command::Run(args) => run::run(args).await,
            Command::Report(args) => report::run(args),
        }
    });
    // what was interrupted may still be at work on a thread, and nobody waits for what comes of it
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = failed(&error);
            if matches!(error, LoadError::Usage(_)) { ExitCode::from(USAGE) } else { code }
        }
    }
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("mimid load: {error}");
    ExitCode::from(FAILED)
}
