//! Who is in which group, and what its policy says: shown and changed.

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{
    home::invalid,
    names::{client_named, own_device, pair, role_named, user_named},
    show::{Out, policy_json},
};
use crate::{
    client::{
        Client, ClientError,
        core::{CoreError, GroupState, GroupView, NewProposal, Operation, PolicyChange, Right},
    },
    wire::{
        extensions::JoinPolicy,
        ids::{ClientUri, Domain},
    },
};

#[derive(Debug, clap::Args)]
pub(super) struct Policy {
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
pub(super) enum Join {
    Closed,
    OwnClients,
    Code,
    Open,
}

#[derive(Debug, Subcommand)]
pub(super) enum Proposal {
    /// New keys for this device
    Update,
    /// That this device leaves
    Leave,
    /// That a client is removed
    Remove { client: ClientUri },
    /// That a user is added
    Add { user: String },
}

pub(super) fn groups(client: &Client, all: bool, out: &Out) -> Result<(), ClientError> {
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

pub(super) fn members(group: &GroupView, own: &Domain, out: &Out) {
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

pub(super) async fn remove(
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

impl Policy {
    /// Whether it asks for anything but to see it.
    pub(super) fn changes(&self) -> bool {
        self.join.is_some()
            || !self.role.is_empty()
            || !self.may.is_empty()
            || self.members_max.is_some()
    }
}

pub(super) async fn change_policy(
    client: &Client,
    args: &Policy,
    out: &Out,
) -> Result<(), ClientError> {
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

pub(super) async fn propose(
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
