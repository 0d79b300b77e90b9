//! `mimid client`: the client library on the command line. Its state is in a home folder of its own; several
//! commands may run in one home at the same time.
//!
//! Here: arguments in, lines out. What a command does is the library's.

mod home;
mod names;
mod show;

use std::{
    fmt::Display,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use self::{
    home::{
        DATABASE, home_dir, invalid, make_private, open, read_authorization, read_text,
        write_secret,
    },
    names::{client_named, code_bytes, own_device, pair, role_named, user_named},
    show::{Out, asks, describe, event_group, operation_words, policy_json},
};
use super::FAILED;
use crate::{
    client::{
        Client, ClientError, Registration, Server,
        core::{
            Answer, Content, CoreError, Event, GroupState, GroupView, Home, NewProposal, Operation,
            PolicyChange, Right, SUITES,
        },
        http::HttpError,
        system_clock,
    },
    server::Endpoints,
    wire::{
        extensions::JoinPolicy,
        ids::{ClientUri, Domain, GroupId, RequestId, UserUri},
    },
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

#[derive(Debug, clap::Args)]
struct Register {
    /// mimi://<domain>/u/<name>, or only the name where the provider's domain is known
    user: String,
    /// What to call this device
    #[arg(long, default_value = "cli")]
    device: String,
    /// The provider's address, e.g. https://127.0.0.1:8443
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The certificate to trust (PEM), where the system does not
    #[arg(long, alias = "certificate", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// endpoints.json of a provider on this machine, in place of --server and --ca
    #[arg(long, value_name = "FILE", conflicts_with_all = ["server", "ca"])]
    endpoints: Option<PathBuf>,
    /// What the operator gave you, where the provider asks for it
    #[arg(long, default_value = "")]
    token: String,
    /// A further device of a user: the file that `devices authorize` wrote on another one
    #[arg(long, value_name = "FILE", conflicts_with = "from_home")]
    authorization: Option<PathBuf>,
    /// A further device of the user whose device lives in this home folder
    #[arg(long, value_name = "DIR")]
    from_home: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Devices {
    /// Devices of this user as its groups know them
    List,
    /// Write the file that a further device registers with. It is the user's key: move it safely, delete it after use
    Authorize {
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Delete a device at the provider; its groups remove it
    Delete { device: String },
}

#[derive(Debug, clap::Args)]
struct Policy {
    group: String,
    /// Who may join without being added
    #[arg(long)]
    join: Option<Join>,
    /// Give a user a role: bob=moderator
    #[arg(long, value_name = "USER=ROLE")]
    role: Vec<String>,
    /// The least role for a right (add, remove, update, delete, migrate, send): send=moderator
    #[arg(long, value_name = "RIGHT=ROLE")]
    may: Vec<String>,
    #[arg(long, value_name = "N")]
    members_max: Option<u32>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Join {
    Closed,
    OwnClients,
    Code,
    Open,
}

#[derive(Debug, Subcommand)]
enum Proposal {
    /// New keys for this device
    Update,
    /// That this device leaves
    Leave,
    /// That a client is removed
    Remove { client: ClientUri },
    /// That a user is added
    Add { user: String },
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
        Command::Policy(policy) => {
            policy.join.is_none()
                && policy.role.is_empty()
                && policy.may.is_empty()
                && policy.members_max.is_none()
        }
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

/// The message is kept before anything else is done: a provider that is down does not lose it.
async fn send(client: &Client, group: &str, text: &str, out: &Out) -> Result<(), ClientError> {
    let content = Content::text(text).encode();
    let operation = Operation::Send { content };
    let begun = client.find_group(group).and_then(|view| client.begin(&view.id, operation.clone()));
    let outcome = match begun {
        Ok(request) => client.finish(request).await?,
        Err(_) => {
            // it may be a group that this client has just been added to
            catch_up(client).await?;
            let group = client.find_group(group)?.id;
            client.operate(&group, operation).await?
        }
    };
    out.done(&outcome, "sent");
    Ok(())
}

async fn resume(client: &Client, drop: Option<&str>, out: &Out) -> Result<(), ClientError> {
    if let Some(id) = drop {
        let pending = client.member().pending()?;
        let fits = |request: &RequestId| !id.is_empty() && hex::encode(request.0).starts_with(id);
        let mut found = pending.iter().filter(|(request, ..)| fits(request));
        let (Some((request, ..)), None) = (found.next(), found.next()) else {
            return Err(invalid(format!("not one request has an id that begins with {id:?}")));
        };
        let dropped = Answer::GivenUp("the request was dropped by `resume --drop`".to_owned());
        client.member().give_up_for_another(*request, dropped)?;
        let id = hex::encode(request.0);
        out.say(json!({ "dropped": id }), format!("request {id} is given up"));
        return Ok(());
    }
    let resumed = client.resume().await;
    let mut was_refused = false;
    if let Ok(refused) = &resumed {
        was_refused = !refused.is_empty();
        for (operation, why) in refused {
            let what = operation_words(operation);
            out.say(
                json!({ "refused": what, "why": why.to_string() }),
                format!("{what} was refused: {why}"),
            );
        }
    }
    let left = client.member().pending()?;
    for (request, group, operation) in &left {
        let (id, what) = (hex::encode(request.0), operation_words(operation));
        let line = format!("{}  {what} in {group}", id.get(..8).unwrap_or(&id));
        out.say(json!({ "request": id, "group": group, "what": what }), line);
    }
    let mut line = format!("{} requests have no answer", left.len());
    if left.is_empty() && resumed.is_ok() {
        out.say(json!({ "unanswered": 0 }), line);
        return if was_refused { Err(invalid("not everything was accepted")) } else { Ok(()) };
    }
    if out.json {
        out.say(json!({ "unanswered": left.len() }), "");
    }
    if let Err(error) = resumed {
        line = format!("{line}: {error}");
    }
    Err(invalid(line))
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

async fn register_here(args: &Register, home: &Path, out: &Out) -> Result<(), ClientError> {
    let authorization = match (&args.authorization, &args.from_home) {
        (Some(file), _) => Some(read_authorization(file)?),
        (None, Some(from)) => Some(open(from)?.authorize_device()?),
        (None, None) => None,
    };
    let (server, domain) = match (&args.server, endpoints_file(args), &authorization) {
        (Some(url), ..) => {
            let certificate = args.ca.as_deref().map(read_text).transpose()?;
            (Server { url: url.clone(), certificate }, None)
        }
        (None, Some(file), _) if args.endpoints.is_some() || authorization.is_none() => {
            if !file.exists() {
                return Err(invalid(format!(
                    "{}: there is no such file; a provider writes it when it serves and removes it when it stops: \
                     is it running?",
                    file.display()
                )));
            }
            let endpoints: Endpoints = serde_json::from_str(&read_text(&file)?)
                .map_err(|error| invalid(format!("{}: {error}", file.display())))?;
            let certificate = endpoints.certificate.as_deref().map(read_text).transpose()?;
            (Server { url: endpoints.client, certificate }, Some(endpoints.domain))
        }
        (None, _, Some(authorization)) => (authorization.server.clone(), None),
        (None, _, None) => {
            return Err(invalid(
                "which provider? Say --server URL (and --ca FILE), or --endpoints FILE of one on this machine",
            ));
        }
    };
    let domain = domain.or_else(|| authorization.as_ref().map(|it| it.user.domain()));
    let user = if args.user.contains("://") {
        UserUri::new(&args.user)
    } else {
        let domain = domain.ok_or_else(|| {
            invalid(format!("say the whole of the user: mimi://<domain>/u/{}", args.user))
        })?;
        UserUri::of(&domain, &args.user)
    }
    .map_err(|error| invalid(error.to_string()))?;
    let client = ClientUri::of(&user, &args.device).map_err(|error| invalid(error.to_string()))?;
    let registration = Registration {
        client: client.clone(),
        server,
        token: args.token.as_bytes().to_vec(),
        authorization,
    };
    make_private(home)?;
    let database = home.join(DATABASE);
    let was_there = database.exists();
    let was_registered = was_there && open(home).is_ok();
    let registered = Client::register(Home::open(&database)?, registration, system_clock()).await;
    let registered = match registered {
        Ok(registered) => registered,
        Err(error) => {
            let nothing_sent = matches!(error, ClientError::Http(HttpError::Untrusted { .. }));
            let knows_nothing = matches!(error, ClientError::Refused(_)) || nothing_sent;
            if knows_nothing && !was_there {
                // the provider knows nothing of these keys: the next try begins from nothing
                for suffix in ["", "-wal", "-shm"] {
                    let _ = std::fs::remove_file(home.join(format!("{DATABASE}{suffix}")));
                }
            }
            if !database.exists() || matches!(error, ClientError::Invalid(_)) {
                return Err(error);
            }
            return Err(invalid(format!(
                "{error}; {} keeps the keys of this try: register again there, or delete it, or use another \
                 --home",
                home.display()
            )));
        }
    };
    let groups = registered.member().groups()?.len();
    let line = if was_registered {
        format!("{client} goes to its provider's new address from now on")
    } else if groups > 0 {
        format!("registered {client}; it joined {groups} groups of its user")
    } else {
        format!("registered {client}")
    };
    out.say(json!({ "client": client, "groups": groups }), line);
    Ok(())
}

fn endpoints_file(args: &Register) -> Option<PathBuf> {
    let default = PathBuf::from("mimid-data/endpoints.json");
    args.endpoints.clone().or_else(|| default.exists().then_some(default))
}

fn whoami(client: &Client, out: &Out) {
    let member = client.member();
    let uri = member.client();
    out.say(
        json!({ "client": uri, "user": uri.user(), "device": uri.device() }),
        format!("{} on device {}", uri.user(), uri.device()),
    );
}

async fn devices(client: &Client, what: &Devices, out: &Out) -> Result<(), ClientError> {
    match what {
        Devices::List => {
            let member = client.member();
            let user = member.client().user();
            let mut devices = vec![member.client().clone()];
            for group in member.groups()? {
                devices.extend(
                    group.members.into_iter().filter(|it| it.user == user).map(|it| it.client),
                );
            }
            devices.sort();
            devices.dedup();
            for device in devices {
                let here = if &device == member.client() { "  (this one)" } else { "" };
                out.say(json!({ "client": device }), format!("{device}{here}"));
            }
        }
        Devices::Authorize { file } => {
            let authorization = client.authorize_device()?;
            let text = serde_json::to_string(&authorization)
                .map_err(|error| invalid(error.to_string()))?;
            write_secret(file, text.as_bytes())?;
            out.say(
                json!({ "file": file }),
                format!(
                    "{0} holds your user key. On the new device:\n  mimid client register {1} --device NAME --authorization {0}\nthen delete the file",
                    file.display(),
                    authorization.user
                ),
            );
        }
        Devices::Delete { device } => {
            let uri = own_device(client, device)?;
            client.delete_device(&uri).await?;
            out.say(
                json!({ "deleted": uri }),
                format!("{uri} is deleted; its groups remove it with their next change"),
            );
        }
    }
    Ok(())
}

fn groups(client: &Client, all: bool, out: &Out) -> Result<(), ClientError> {
    let own = client.member().client().domain();
    let groups = client.member().groups()?;
    let shown: Vec<&GroupView> = groups
        .iter()
        .filter(|it| all || !matches!(it.state, GroupState::Left | GroupState::Deleted))
        .collect();
    if shown.is_empty() && !out.json {
        out.say(Value::Null, "no groups yet: create one, or connect with somebody");
    }
    for group in shown {
        let tail = group.id.as_str().rsplit('/').next().unwrap_or_default();
        let line = format!(
            "{:<16} {:<10} {:>3} clients  epoch {:<4} {}{}{}",
            if group.name.is_empty() { "-" } else { &group.name },
            tail.get(..8).unwrap_or(tail),
            group.members.len(),
            group.epoch.map_or_else(|| "-".to_owned(), |epoch| epoch.to_string()),
            group.state.word(),
            if group.muted { ", muted" } else { "" },
            if group.hub == own { String::new() } else { format!(", at {}", group.hub) },
        );
        out.say(json!(group), line);
    }
    Ok(())
}

fn members(group: &GroupView, own: &Domain, out: &Out) {
    if out.json {
        let mut value = json!(group);
        if let Some(policy) = &group.policy {
            value["policy"] = policy_json(policy);
        }
        out.say(value, "");
        return;
    }
    for member in &group.members {
        let role = format!("{:?}", member.role).to_lowercase();
        out.say(Value::Null, format!("{:<44} {role}", member.client));
    }
    if group.pending > 0 {
        let line = format!("{} proposals wait for a commit (`update` makes one)", group.pending);
        out.say(Value::Null, line);
    }
    if group.hub != *own {
        out.say(Value::Null, format!("hosted by {}", group.hub));
    }
}

async fn remove(
    client: &Client,
    group: &str,
    whom: &[String],
    out: &Out,
) -> Result<(), ClientError> {
    let view = client.find_group(group)?;
    let me = client.member().client().user();
    let here = client.member().client().clone();
    let is_another = |device: &ClientUri| {
        if *device != here {
            return Ok(());
        }
        Err(invalid(
            "a device does not remove itself: `leave` the group, or remove it from another device",
        ))
    };
    let (mut users, mut devices, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for name in whom {
        if let Some(device) = client_named(client, name)? {
            is_another(&device)?;
            if !view.members.iter().any(|it| it.client == device) {
                return Err(CoreError::NotAMember(device.to_string()).into());
            }
            let which = if device.user() == me { &mut devices } else { &mut others };
            which.push(device);
            continue;
        }
        let own = own_device(client, name)?;
        if view.members.iter().any(|it| it.client == own) {
            is_another(&own)?;
            devices.push(own);
        } else {
            let user = user_named(client, name)?;
            if user == me {
                return Err(invalid(
                    "you do not remove yourself: `leave` the group, with each device",
                ));
            }
            if !view.members.iter().any(|it| it.user == user) {
                return Err(CoreError::NotAMember(user.to_string()).into());
            }
            users.push(user);
        }
    }
    if !users.is_empty() {
        out.done(&client.remove_users(&view.id, users).await?, "removed");
    }
    if !devices.is_empty() {
        out.done(&client.remove_clients(&view.id, devices).await?, "removed");
    }
    if !others.is_empty() {
        out.done(&client.remove_others_clients(&view.id, others).await?, "removed");
    }
    Ok(())
}

async fn change_policy(client: &Client, args: &Policy, out: &Out) -> Result<(), ClientError> {
    let group = client.find_group(&args.group)?;
    let mut changes = Vec::new();
    if let Some(join) = args.join {
        changes.push(PolicyChange::Join(match join {
            Join::Closed => JoinPolicy::Closed,
            Join::OwnClients => JoinPolicy::OwnClients,
            Join::Code => JoinPolicy::Code,
            Join::Open => JoinPolicy::Open,
        }));
    }
    for given in &args.role {
        let (user, role) = pair(given)?;
        changes
            .push(PolicyChange::Role { user: user_named(client, user)?, role: role_named(role)? });
    }
    for given in &args.may {
        let (right, role) = pair(given)?;
        let what = match right {
            "add" => Right::Add,
            "remove" => Right::Remove,
            "update" => Right::Update,
            "delete" => Right::Delete,
            "migrate" => Right::Migrate,
            "send" => Right::Send,
            other => {
                return Err(invalid(format!(
                    "{other:?} is no right; they are add, remove, update, delete, migrate, send"
                )));
            }
        };
        changes.push(PolicyChange::May { what, role: role_named(role)? });
    }
    changes.extend(args.members_max.map(PolicyChange::MembersMax));
    if !changes.is_empty() {
        out.done(&client.change_policy(&group.id, changes).await?, "the policy is changed");
        return Ok(());
    }
    let policy = group.policy.ok_or_else(|| CoreError::NotActive(group.id, group.state))?;
    let value = policy_json(&policy);
    let line = serde_json::to_string_pretty(&value).unwrap_or_default();
    out.say(value, line);
    Ok(())
}

async fn propose(
    client: &Client,
    group: &str,
    what: &Proposal,
    out: &Out,
) -> Result<(), ClientError> {
    let group = client.find_group(group)?.id;
    let proposals = match what {
        Proposal::Update => vec![NewProposal::Update],
        Proposal::Leave => vec![NewProposal::Leave],
        Proposal::Remove { client } => vec![NewProposal::Remove(client.clone())],
        Proposal::Add { user } => client
            .group_key_packages(&group, &user_named(client, user)?)
            .await?
            .into_iter()
            .map(|(_, key_package)| NewProposal::Add(key_package))
            .collect(),
    };
    let outcome = client.operate(&group, Operation::Propose { proposals }).await?;
    out.done(&outcome, "proposed: it takes effect with the next commit");
    Ok(())
}

async fn receive(client: &Client, follow: bool, wait: u32, out: &Out) -> Result<(), ClientError> {
    let shown: u64 = client.member().setting(SHOWN)?.unwrap_or_default();
    let show = |number: u64, event: &Event| {
        let group = event_group(event).and_then(|id| client.member().group(id).ok());
        let line = if let Event::ConnectionRequested { from } = event
            && !asks(client, from)
        {
            format!("{from} asked to connect")
        } else {
            describe(event, group.as_ref(), &|user| client.short_name(user))
        };
        let mut value = json!(event);
        value["number"] = json!(number);
        if let Value::Object(fields) = &mut value {
            // what it shows is in `text`; the rest is for programs that read MIMI content
            if let Some(content) = fields.remove("content").as_ref().and_then(Value::as_array) {
                let bytes: Vec<u8> = content
                    .iter()
                    .filter_map(|byte| byte.as_u64().and_then(|byte| u8::try_from(byte).ok()))
                    .collect();
                fields.insert("content".to_owned(), json!(hex::encode(bytes)));
            }
        }
        out.say(value, line);
        let _ = client.member().set(SHOWN, &number);
        true
    };
    if follow {
        return client.follow(shown, show).await;
    }
    let received = client.receive(wait.saturating_mul(1000)).await;
    let events = client.member().events(shown, usize::MAX)?;
    if events.is_empty() && !out.json {
        out.say(Value::Null, "nothing new");
    }
    for (number, event) in &events {
        show(*number, event);
    }
    if let Some((last, _)) = events.last() {
        client.member().forget_events(last.saturating_sub(EVENTS_KEPT))?;
    }
    received.map(|_| ())
}

/// Events that are kept after they were shown.
const EVENTS_KEPT: u64 = 10_000;
/// The number of the last event that was shown.
const SHOWN: &str = "shown";
