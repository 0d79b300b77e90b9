//! `mimid load prepare`

use std::path::PathBuf;

use super::{run::stop, targets::Targets};
use crate::load::{
    LoadError,
    plan::{Mix, Shape},
    prepare::{Prepare, prepare},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The workload to write; it holds the clients' private keys
    file: PathBuf,
    #[command(flatten)]
    targets: Targets,
    /// Groups, created at the targets in turn
    #[arg(long, default_value_t = 100)]
    groups: u32,
    /// Members of each group
    #[arg(long, default_value_t = 10)]
    members: u32,
    /// Registered clients, one a user, at the targets in turn; else so many that each is in about ten groups
    #[arg(long)]
    users: Option<u32>,
    /// What happens in the groups, by weight
    #[arg(long, default_value = "messages=90,updates=4,adds=2,removes=2,joins=2")]
    mix: Mix,
    /// Operations made ahead for each group; a run that is longer goes on with the messages of the last epoch
    #[arg(long, default_value_t = 20)]
    steps: u32,
    /// Of a message's text
    #[arg(long, default_value_t = 200, value_name = "BYTES")]
    message_bytes: u32,
    /// Members of each group with a real MLS state, who make what all say
    #[arg(long, default_value_t = 2)]
    drivers: u32,
    /// Members that commit at the same time in one race; each is a driver
    #[arg(long, default_value_t = 2)]
    racers: u32,
    /// Who loses a race tries again until all have had their turn
    #[arg(long)]
    losers_retry: bool,
    /// The same seed and options give the same plan
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What the operator gave out, where registration asks for it
    #[arg(long, default_value = "")]
    token: String,
    /// Members that are added in one commit. Those of a group's first commit have all further ones in their queues; a hub takes 1000
    /// unless its configuration says otherwise
    #[arg(long, default_value_t = 1000, value_name = "N")]
    adds_per_commit: usize,
    /// Groups at work at the same time; else four for each processor
    #[arg(long)]
    jobs: Option<usize>,
    /// What results call it; else the file's name
    #[arg(long)]
    name: Option<String>,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

pub(super) async fn run(args: &Args) -> Result<(), LoadError> {
    let targets = args.targets.named()?;
    let of_targets = u32::try_from(targets.len()).unwrap_or(u32::MAX);
    // room for those who come in, and the same number at each target
    let more = (args.members / 2).saturating_add(2);
    let least = args.members.saturating_add(more).max(of_targets);
    let users = args.users.unwrap_or_else(|| {
        let about = u64::from(args.groups) * u64::from(args.members) / 10;
        u32::try_from(about).unwrap_or(u32::MAX).max(least)
    });
    let races = args.mix.races > 0;
    let shape = Shape {
        seed: args.seed,
        groups: args.groups,
        members: args.members,
        drivers: args.drivers.max(if races { args.racers } else { 0 }).min(args.members),
        racers: if races { args.racers } else { 0 },
        losers_retry: args.losers_retry,
        mix: args.mix,
        steps: args.steps,
        message_bytes: args.message_bytes,
        users,
        targets: of_targets,
    };
    let stem = args.file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let options = Prepare {
        name: args.name.clone().unwrap_or(stem),
        shape,
        targets,
        token: args.token.as_bytes().to_vec(),
        file: args.file.clone(),
        adds_per_commit: args.adds_per_commit,
        jobs: args.jobs.unwrap_or(processors * 4),
        is_quiet: args.quiet,
    };
    let said = options.shape.to_string();
    let stop = stop();
    // dropped, it leaves no part of a file behind
    let done = tokio::select! {
        done = prepare(options) => done?,
        () = stop => return Err(LoadError::Interrupted),
    };
    println!("{said}");
    let mut live = String::new();
    if done.live > 0 {
        live =
            format!("; {} of the groups have races and are made when they are replayed", done.live);
    }
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let mebibytes = done.bytes as f64 / f64::from(1 << 20);
    println!(
        "{}: {} steps, {mebibytes:.1} MiB; clients {:.1} s, groups {:.1} s{live}",
        args.file.display(),
        done.steps,
        done.registering.as_secs_f64(),
        done.grouping.as_secs_f64(),
    );
    Ok(())
}
