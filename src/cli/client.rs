//! `mimid client`: the client library on the command line. Its state is in a home folder of its own; several
//! commands may run in one home at the same time.
//!
//! Here: arguments in, lines out. What a command does is the library's.

mod account;
mod home;
mod membership;
mod names;
mod show;
mod talk;

use std::{
    fmt::Display,
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::Subcommand;
use serde_json::json;

use self::{
    account::{Devices, Register, devices, register_here, whoami},
    home::{home_dir, invalid, open},
    membership::{Policy, Proposal, change_policy, groups, members, propose, remove},
    names::{code_bytes, user_named},
    show::Out,
    talk::{receive, resume, send},
};
use super::FAILED;
use crate::{
    client::{Client, ClientError, core::SUITES},
    wire::ids::{Domain, GroupId},
};

/// A client of a provider, on the command line.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where this client's keys, groups and messages are kept
    #[arg(long, global = true, value_name = "DIR", env = "MIMID_HOME")]
    home: Option<PathBuf>,
    /// Print JSON, one value a line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make this home a client of a provider, or tell it where its provider is now
    Register(Register),
    /// This client, its user and its provider
    Whoami,
    /// Further devices of the user: let one in, or delete one
    Devices {
        #[command(subcommand)]
        what: Devices,
    },
    /// Create a group
    Create {
        /// What you call it; others may call it otherwise
        name: String,
        /// MLS ciphersuite: 1, 2 or 3
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=3))]
        suite: u16,
        /// The provider that hosts it, if not your own
        #[arg(long)]
        hub: Option<Domain>,
    },
    /// The groups that this client is in
    Groups {
        /// Those that it left and that were deleted, too
        #[arg(long)]
        all: bool,
    },
    /// Call a group something, in this home only
    Name { group: String, name: String },
    /// Who is in a group, and what the group's policy lets them do
    Members { group: String },
    /// Add users, or one's own other devices, to a group. A user of another provider is NAME@DOMAIN
    Add {
        group: String,
        /// Users who gave you their consent (`connect`)
        #[arg(required_unless_present = "own")]
        users: Vec<String>,
        /// All other devices of yours
        #[arg(long, conflicts_with = "users")]
        own: bool,
    },
    /// Remove users, or single devices, from a group
    Remove {
        group: String,
        /// A user, a device of your own by its name, or somebody's device: USER/DEVICE or its URI
        #[arg(required = true)]
        whom: Vec<String>,
    },
    /// Leave a group; it takes effect with the next change that somebody else makes
    Leave { group: String },
    /// Join a group from outside: as a further device, with a code, or where the group is open
    Join {
        /// The group's id: mimi://…/g/…
        group: GroupId,
        /// The provider that hosts it, if not the one in the id
        #[arg(long)]
        hub: Option<Domain>,
        /// A joining code
        #[arg(long)]
        code: Option<String>,
        /// What you call the group
        #[arg(long, default_value = "")]
        name: String,
        /// Ask to be added instead of entering at once
        #[arg(long, conflicts_with = "code")]
        ask: bool,
    },
    /// New keys for this device in a group; commits what is proposed
    Update {
        group: String,
        /// A new signature key, too
        #[arg(long)]
        rotate: bool,
    },
    /// Enter a group anew where this device lost track of it
    Resync { group: String },
    /// Move a group to another provider, which hosts it from then on; nobody in it has to do anything
    Migrate {
        group: String,
        /// The provider that is to host it
        #[arg(long, value_name = "DOMAIN")]
        to: Domain,
    },
    /// Send a message
    Send {
        group: String,
        #[arg(required = true)]
        text: Vec<String>,
    },
    /// Fetch and show what is new
    Receive {
        /// Stay, and show what comes as it comes
        #[arg(long, short)]
        follow: bool,
        /// Wait so long for something, in seconds
        #[arg(long, default_value_t = 0)]
        wait: u32,
    },
    /// Ask a user (NAME, or NAME@DOMAIN) to connect: you can add each other to groups once they accept
    Connect { user: String },
    /// Users who ask to connect
    Requests,
    /// Accept a user's request to connect
    Accept { user: String },
    /// Users that you are connected with
    Contacts,
    /// Take your consent back: the user cannot add you to groups any more
    Revoke { user: String },
    /// Show or change what a group's policy lets whom do
    Policy(Policy),
    /// Make a joining code for a group: who has it may join
    Code {
        group: String,
        /// How long it is good
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..=3650))]
        days: u64,
    },
    /// Propose a change for others to commit
    Propose {
        group: String,
        #[command(subcommand)]
        what: Proposal,
    },
    /// Receive no messages of a group, only its changes
    Mute { group: String },
    /// Receive messages of a muted group again
    Unmute { group: String },
    /// Give a group's hub a new address of this device's queue
    RefreshQueue { group: String },
    /// Delete a group for everyone in it
    DeleteGroup { group: String },
    /// Publish KeyPackages, by which others add this device to groups
    KeyPackages,
    /// Go on with requests that had no answer, list those that still have none, or drop one
    Resume {
        /// The beginning of the id of a request to give up; the provider may have done it all the same
        #[arg(long, value_name = "ID")]
        drop: Option<String>,
    },
    /// Delete the user with all its devices at the provider
    DeleteAccount {
        /// Yes, really
        #[arg(long, required = true)]
        yes: bool,
    },
}

/// Runs a command and says how it went.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        // a certificate that is not trusted is said once, in the error
        .unwrap_or_else(|_| {
            tracing_subscriber::EnvFilter::new("warn,rustls_platform_verifier=off")
        });
    // a second call in one process finds one that is there
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(args.json, &error),
    };
    match runtime.block_on(execute(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(args.json, &error),
    }
}

fn failed(json: bool, error: &dyn Display) -> ExitCode {
    if json {
        let _ = writeln!(std::io::stdout(), "{}", json!({ "error": error.to_string() }));
    } else {
        eprintln!("mimid: {error}");
    }
    ExitCode::from(FAILED)
}

async fn execute(args: &Args) -> Result<(), ClientError> {
    let out = Out { json: args.json };
    let home = home_dir(args.home.as_deref())?;
    if let Command::Register(register) = &args.command {
        return register_here(register, &home, &out).await;
    }
    let shows_only = shows_only(&args.command);
    let patience = if shows_only {
        PATIENCE_TO_SHOW
    } else if matches!(args.command, Command::Migrate { .. }) {
        PATIENCE_TO_MOVE
    } else {
        PATIENCE
    };
    let client = open(&home)?.with_patience(patience);
    if let Command::Receive { follow, wait } = &args.command {
        return receive(&client, *follow, *wait, &out).await;
    }
    if let Command::Resume { drop } = &args.command {
        return resume(&client, drop.as_deref(), &out).await;
    }
    if let Command::Send { group, text } = &args.command {
        return send(&client, group, &text.join(" "), &out).await;
    }
    let of_the_account = matches!(
        args.command,
        Command::Whoami | Command::Devices { .. } | Command::DeleteAccount { .. }
    );
    if !of_the_account {
        // what others did meanwhile is taken in first: the command is meant for the groups as they are
        match catch_up(&client).await {
            Ok(()) => {}
            Err(error) if shows_only => {
                eprintln!("mimid: this is what is known here; {error}");
            }
            Err(error) => return Err(error),
        }
    }
    command(&client, &args.command, &out).await
}

async fn catch_up(client: &Client) -> Result<(), ClientError> {
    client.receive(0).await?;
    client.join_groups_of_user().await?;
    Ok(())
}

/// How long a command tries to reach the provider. A request that was kept is not lost after that.
const PATIENCE: Duration = Duration::from_secs(10);
const PATIENCE_TO_SHOW: Duration = Duration::from_secs(2);
/// The hub answers when the other provider has the group.
const PATIENCE_TO_MOVE: Duration = Duration::from_secs(60);

/// Whether a command only shows what this home knows.
fn shows_only(command: &Command) -> bool {
    match command {
        Command::Groups { .. }
        | Command::Members { .. }
        | Command::Requests
        | Command::Contacts
        | Command::Name { .. } => true,
        Command::Policy(policy) => !policy.changes(),
        Command::Register(_)
        | Command::Whoami
        | Command::Devices { .. }
        | Command::Create { .. }
        | Command::Add { .. }
        | Command::Remove { .. }
        | Command::Leave { .. }
        | Command::Join { .. }
        | Command::Update { .. }
        | Command::Resync { .. }
        | Command::Migrate { .. }
        | Command::Send { .. }
        | Command::Receive { .. }
        | Command::Connect { .. }
        | Command::Accept { .. }
        | Command::Revoke { .. }
        | Command::Code { .. }
        | Command::Propose { .. }
        | Command::Mute { .. }
        | Command::Unmute { .. }
        | Command::RefreshQueue { .. }
        | Command::DeleteGroup { .. }
        | Command::KeyPackages
        | Command::Resume { .. }
        | Command::DeleteAccount { .. } => false,
    }
}

async fn command(client: &Client, command: &Command, out: &Out) -> Result<(), ClientError> {
    match command {
        Command::Register(_)
        | Command::Receive { .. }
        | Command::Resume { .. }
        | Command::Send { .. } => {}
        Command::Whoami => whoami(client, out),
        Command::Devices { what } => devices(client, what, out).await?,
        Command::Create { name, suite, hub } => {
            let suite = SUITES[usize::from(suite - 1)];
            let hub = hub.clone().unwrap_or_else(|| client.member().client().domain());
            let group = client.create_group_at(&hub, name, suite, None).await?;
            out.say(json!({ "group": group, "name": name }), format!("created {name}: {group}"));
        }
        Command::Groups { all } => groups(client, *all, out)?,
        Command::Name { group, name } => {
            let group = client.find_group(group)?.id;
            client.member().name_group(&group, name)?;
            out.say(json!({ "group": group, "name": name }), format!("{group} is called {name}"));
        }
        Command::Members { group } => {
            let own = client.member().client().domain();
            members(&client.find_group(group)?, &own, out);
        }
        Command::Add { group, users, own } => {
            let group = client.find_group(group)?.id;
            let outcome = if *own {
                client.add_own_clients(&group, &[]).await?
            } else {
                let users = users
                    .iter()
                    .map(|user| user_named(client, user))
                    .collect::<Result<Vec<_>, _>>()?;
                client.add_users(&group, &users).await?
            };
            out.done(&outcome, "added");
        }
        Command::Remove { group, whom } => remove(client, group, whom, out).await?,
        Command::Leave { group } => {
            let group = client.find_group(group)?.id;
            let outcome = client.leave(&group).await?;
            out.done(
                &outcome,
                "leaving: it takes effect with the next change that another member makes",
            );
        }
        Command::Join { group, hub, code, name, ask } => {
            let hub = hub.clone().unwrap_or_else(|| group.domain());
            let outcome = if *ask {
                client.ask_to_join(group, &hub, name).await?
            } else {
                let code = code.as_deref().map(code_bytes).transpose()?;
                client.join(group, &hub, name, code).await?
            };
            out.done(&outcome, if *ask { "asked to be added" } else { "joined" });
        }
        Command::Update { group, rotate } => {
            let group = client.find_group(group)?.id;
            out.done(&client.update(&group, *rotate).await?, "updated");
        }
        Command::Resync { group } => {
            let group = client.find_group(group)?.id;
            out.done(&client.resync(&group).await?, "entered anew");
        }
        Command::Migrate { group, to } => {
            let group = client.find_group(group)?.id;
            out.done(&client.migrate(&group, to).await?, format!("moved to {to}"));
        }
        Command::Connect { user } => {
            let user = user_named(client, user)?;
            let group = client.connect(&user).await?;
            out.say(
                json!({ "asked": user, "group": group }),
                format!("asked {user}; you are connected once they accept"),
            );
        }
        Command::Requests => {
            let requests = client.member().requests()?;
            if requests.is_empty() {
                out.say(json!({ "requests": [] }), "nobody asks to connect");
            }
            for request in requests {
                let line =
                    format!("{}  (accept {})", request.from, client.short_name(&request.from));
                out.say(json!({ "from": request.from, "group": request.group }), line);
            }
        }
        Command::Accept { user } => {
            let user = user_named(client, user)?;
            let group = client.accept(&user).await?;
            let line = format!(
                "connected with {user}; your group of two is called {}",
                client.short_name(&user)
            );
            out.say(json!({ "connected": user, "group": group }), line);
        }
        Command::Contacts => {
            for (user, contact) in client.member().contacts()? {
                let connected = contact.their_token.is_some();
                let line = format!("{user}  {}", if connected { "connected" } else { "asked" });
                out.say(json!({ "user": user, "connected": connected }), line);
            }
        }
        Command::Revoke { user } => {
            let user = user_named(client, user)?;
            if client.member().contact(&user)?.our_token.is_none() {
                return Err(invalid(format!(
                    "{user} has no consent of yours: nothing was revoked"
                )));
            }
            client.revoke(&user).await?;
            out.say(json!({ "revoked": user }), format!("{user} has your consent no more"));
        }
        Command::Policy(policy) => change_policy(client, policy, out).await?,
        Command::Code { group, days } => {
            let view = client.find_group(group)?;
            let code = hex::encode(client.add_code(&view.id, *days).await?);
            let line = format!(
                "who has this code may join within {days} days:\n  mimid client join {} --hub {} --code {code}",
                view.id, view.hub
            );
            out.say(json!({ "group": view.id, "hub": view.hub, "code": code }), line);
        }
        Command::Propose { group, what } => propose(client, group, what, out).await?,
        Command::Mute { group } => {
            let group = client.find_group(group)?.id;
            out.done(&client.mute(&group, true).await?, "muted");
        }
        Command::Unmute { group } => {
            let group = client.find_group(group)?.id;
            out.done(&client.mute(&group, false).await?, "messages come again");
        }
        Command::RefreshQueue { group } => {
            let group = client.find_group(group)?.id;
            out.done(&client.update_queue_info(&group).await?, "the hub has a new address");
        }
        Command::DeleteGroup { group } => {
            let group = client.find_group(group)?.id;
            out.done(&client.delete_group(&group).await?, "deleted");
        }
        Command::KeyPackages => {
            let left = client.stock_up().await?;
            out.say(
                json!({ "group": left.group_left, "connection": left.connection_left }),
                format!(
                    "the provider has {} for groups and {} for connecting",
                    left.group_left, left.connection_left
                ),
            );
        }
        Command::DeleteAccount { .. } => {
            client.delete_account().await?;
            out.say(json!({ "deleted": true }), "the user is deleted at the provider");
        }
    }
    Ok(())
}
