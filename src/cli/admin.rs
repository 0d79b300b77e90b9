//! `mimid admin`: what an operator asks of a provider that runs, through its ops listener.

use std::{path::PathBuf, process::ExitCode};

use clap::Subcommand;

use super::{FAILED, ops::NodeAt};
use crate::http;

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
    /// Show groups that are on their way to or from another provider, or end a move from here
    ///
    /// frozen: nothing was sent yet. sent: only the target's signed word ends it. confirming: the group has moved.
    /// unconfirmed: the group has come, and its last host has not confirmed yet that it knows.
    Migrations(Migrations),
}

#[derive(Debug, clap::Args)]
struct Migrations {
    /// Keep this group: at once where nothing was sent, else its target is asked to refuse it
    #[arg(long, value_name = "GROUP")]
    abort: Option<String>,
    /// What the node says, as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    node: NodeAt,
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
    let told = match &args.command {
        Command::ImportGroup(import) => import_group(import),
        Command::Migrations(asked) => migrations(asked),
    };
    match told {
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

fn migrations(asked: &Migrations) -> Result<String, String> {
    if let Some(group) = &asked.abort {
        let body = group.as_bytes().to_vec();
        return asked.node.post("/v1/migrations/abort", "text/plain", body);
    }
    let told = asked.node.get("/v1/migrations")?;
    if asked.json {
        return Ok(told);
    }
    let told: http::migrations::Migrations =
        serde_json::from_str(&told).map_err(|error| format!("the node's answer: {error}"))?;
    Ok(show_migrations(&told))
}

/// A line for each move: the group, to or from whom, where it stands, for how long.
fn show_migrations(told: &http::migrations::Migrations) -> String {
    if told.departures.is_empty() && told.arrivals.is_empty() {
        return "no group is on its way to or from another provider".to_owned();
    }
    let line = |group: &str, way: &str, peer: &str, state: &str, age_ms: u64| {
        format!("{group}  {way} {peer}  {state}  since {} s", age_ms / 1000)
    };
    let leave =
        told.departures.iter().map(|it| line(&it.group, "to", &it.target, &it.state, it.age_ms));
    let come =
        told.arrivals.iter().map(|it| line(&it.group, "from", &it.source, &it.state, it.age_ms));
    leave.chain(come).collect::<Vec<_>>().join("\n")
}

fn import_group(import: &ImportGroup) -> Result<String, String> {
    let file = &import.file;
    let body = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    import.node.post("/v1/import_group", "application/octet-stream", body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_are_shown_with_their_way_their_peer_their_state_and_their_age() {
        let told = r#"{"departures":[{"group":"g@a","target":"b","state":"sent","age_ms":5999}],
            "arrivals":[{"group":"h@c","source":"c","state":"unconfirmed","age_ms":60000}]}"#;
        let shown = show_migrations(&serde_json::from_str(told).unwrap());
        assert_eq!(shown, "g@a  to b  sent  since 5 s\nh@c  from c  unconfirmed  since 60 s");
        let none =
            show_migrations(&serde_json::from_str(r#"{"departures":[],"arrivals":[]}"#).unwrap());
        assert_eq!(none, "no group is on its way to or from another provider");
    }
}
