//! `mimid demo`: two providers of their own on loopback that federate, and real clients of both that use everything
//! they do, over TLS.
//!
//! The providers are processes of this same binary, each with a domain and a store of its own, killed and started
//! again in the middle; the clients are the client library with homes on disk. Whatever a client shows is compared
//! with what was said.

mod cast;
mod play;
mod stage;

use std::{io::IsTerminal, path::PathBuf, process::ExitCode, time::Instant};

use tokio::signal::unix::{SignalKind, signal};

use self::{
    play::Play,
    stage::{Folder, Provider, Tally},
};
use super::FAILED;

/// Options of the demo.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Users; the first three have two devices each
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(3..=50))]
    users: u32,
    /// Messages in each round of talk
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    messages: u32,
    /// Who talks when: the same seed gives the same talk
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep the providers' data and the clients' homes in this folder
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// The domains of the two providers.
const DOMAINS: [&str; 2] = ["a.example", "b.example"];

/// Plays it and says how it went.
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
    let started = Instant::now();
    let folder = match Folder::make(args.keep.as_deref()) {
        Ok(folder) => folder,
        Err(error) => return failed(&format!("no folder for the demo: {error}")),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.to_string()),
    };
    let mut tally = Tally::default();
    let play = async {
        let [a, b] = DOMAINS.map(|domain| Provider::prepare(&folder.path, domain));
        let mut providers = [a?, b?];
        providers[0].introduce(&providers[1])?;
        providers[1].introduce(&providers[0])?;
        for provider in &mut providers {
            provider.start().await?;
            println!(
                "A provider for {} runs: clients at {}, other providers at {} (TLS 1.3, sled).",
                provider.domain,
                provider.url(),
                provider.federation_url()
            );
        }
        Play::new(args, &folder.path, &mut tally, providers).all().await
    };
    // the providers end with what plays: they are processes of their own, and would outlive this one
    let played = runtime.block_on(async {
        tokio::select! {
            played = play => Some(played),
            () = told_to_stop() => None,
        }
    });
    let Some(played) = played else {
        folder.end(true);
        return failed("it was told to stop");
    };
    tally.print();
    match played {
        Ok(()) => {
            println!("\nEverything worked, in {:.1} s.", started.elapsed().as_secs_f64());
            folder.end(true);
            ExitCode::SUCCESS
        }
        Err(error) => {
            let logs = DOMAINS.map(|domain| folder.path.join(domain).join(stage::LOG));
            folder.end(false);
            let [a, b] = logs.map(|log| log.display().to_string());
            failed(&format!("{error}\nThe providers' logs are {a} and {b}"))
        }
    }
}

/// Ends with SIGTERM or SIGINT; never where they cannot be caught.
async fn told_to_stop() {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn failed(why: &str) -> ExitCode {
    eprintln!("mimid demo: {why}");
    ExitCode::from(FAILED)
}
