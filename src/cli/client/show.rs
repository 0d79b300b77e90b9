//! What `mimid client` prints: lines for people, or JSON.

use std::{fmt::Display, io::Write};

use serde_json::{Value, json};

use crate::{
    client::{
        Client, Outcome,
        core::{Event, GroupView, Operation},
    },
    wire::{
        extensions::GroupPolicy,
        ids::{ClientUri, GroupId, UserUri},
    },
};

/// Where lines go: for people, or JSON.
pub(super) struct Out {
    pub json: bool,
}

impl Out {
    /// Prints `value` or `line`. A reader that has gone away ends nothing half-done: everything is stored.
    pub fn say(&self, value: Value, line: impl Display) {
        let mut out = std::io::stdout().lock();
        let written = if self.json { writeln!(out, "{value}") } else { writeln!(out, "{line}") };
        let _ = written.and_then(|()| out.flush());
    }

    pub fn done(&self, outcome: &Outcome, line: impl Display) {
        match outcome {
            Outcome::Accepted(accepted) => self.say(
                json!({
                    "done": true,
                    "sequence": accepted.group_sequence,
                    "epoch": accepted.epoch,
                }),
                line,
            ),
            Outcome::AlreadySo => {
                self.say(json!({ "done": true, "already": true }), "it is so already");
            }
        }
    }
}

/// The group that an event is of.
pub(super) fn event_group(event: &Event) -> Option<&GroupId> {
    match event {
        Event::Message { group, .. }
        | Event::Joined { group, .. }
        | Event::Changed { group, .. }
        | Event::Proposed { group, .. }
        | Event::Moved { group, .. }
        | Event::Removed { group }
        | Event::Deleted { group }
        | Event::NotKnown { group, .. }
        | Event::Lost { group, .. }
        | Event::Unusable { group, .. }
        | Event::WentBack { group, .. }
        | Event::BadGroupInfo { group, .. }
        | Event::GaveUp { group }
        | Event::Unreadable { group, .. } => Some(group),
        Event::ConnectionRequested { .. }
        | Event::Connected { .. }
        | Event::KeyPackagesLow { .. }
        | Event::Misbehaviour { .. } => None,
    }
}

/// An event as a line for people, with users as `called` has them.
pub(super) fn describe(
    event: &Event,
    group: Option<&GroupView>,
    called: &dyn Fn(&UserUri) -> String,
) -> String {
    let name = group.map_or_else(String::new, |group| {
        let tail = group.id.as_str().rsplit('/').next().unwrap_or_default();
        if group.name.is_empty() {
            format!("[{}] ", tail.get(..8).unwrap_or(tail))
        } else {
            format!("[{}] ", group.name)
        }
    });
    let short = |client: &ClientUri| format!("{}/{}", called(&client.user()), client.device());
    let names = |clients: &[ClientUri]| clients.iter().map(short).collect::<Vec<_>>().join(", ");
    match event {
        Event::Message { sender, text, content, .. } => match text {
            Some(text) => format!("{name}{}: {}", short(sender), printable(text)),
            None => format!(
                "{name}{} sent something without text ({} bytes)",
                short(sender),
                content.len()
            ),
        },
        Event::Joined { epoch, group: id } => {
            let hint = match group {
                Some(group) if group.name.is_empty() => {
                    let tail = id.as_str().rsplit('/').next().unwrap_or_default();
                    let tail = tail.get(..8).unwrap_or(tail);
                    format!("; give it a name: mimid client name {tail} NAME")
                }
                Some(_) | None => String::new(),
            };
            format!("{name}you are in (epoch {epoch}){hint}")
        }
        Event::Changed { by, added, removed, policy, epoch, .. } => {
            let by = by.as_ref().map_or_else(|| "somebody".to_owned(), short);
            let mut parts = Vec::new();
            if !added.is_empty() {
                parts.push(format!("{} came in", names(added)));
            }
            if !removed.is_empty() {
                parts.push(format!("{} went out", names(removed)));
            }
            if *policy {
                parts.push("the policy changed".to_owned());
            }
            if parts.is_empty() {
                parts.push("keys were renewed".to_owned());
            }
            format!("{name}{} (by {by}, epoch {epoch})", parts.join(", "))
        }
        Event::Proposed { by, what, .. } => {
            let by = by.as_ref().map_or_else(|| "from outside".to_owned(), short);
            format!("{name}proposed ({by}): {what}")
        }
        Event::Moved { to, .. } => format!("{name}moved to {to}"),
        Event::Removed { .. } => format!("{name}you are not a member any more"),
        Event::Deleted { .. } => format!("{name}the group is deleted"),
        Event::NotKnown { hub, .. } => format!(
            "{name}not known at {hub} any more; if it has moved, what is still to come says where to: \
             else resync, or leave"
        ),
        Event::Lost { why, .. } => format!("{name}lost track ({why}); entering anew"),
        Event::Unusable { by, why, .. } => {
            let by = by.as_ref().map_or_else(|| "somebody from outside".to_owned(), short);
            format!(
                "{name}a commit by {by} could not be used ({why}); it is reported, and you come in again by yourself"
            )
        }
        Event::WentBack { epoch, .. } => {
            format!("{name}the hub took that commit back: the group goes on in epoch {epoch}")
        }
        Event::BadGroupInfo { by, .. } => {
            let by = by.as_ref().map_or_else(|| "somebody from outside".to_owned(), short);
            format!(
                "{name}nobody could have come in from outside behind a commit by {by}; it is reported and made good"
            )
        }
        Event::GaveUp { .. } => format!(
            "{name}commits could not be used again and again: you are out of step for an hour, or until `mimid client resync`; \
             ask who is in the group"
        ),
        Event::Unreadable { why, .. } => format!("{name}something could not be read: {why}"),
        Event::ConnectionRequested { from } => {
            format!("{from} asks to connect: mimid client accept {}", called(from))
        }
        Event::Connected { user } => format!("connected with {user}"),
        Event::KeyPackagesLow { left } => {
            format!("{left} KeyPackages were left; new ones are published")
        }
        Event::Misbehaviour { what } => format!("warning: {what}"),
    }
}

/// Whether a user's request to connect still waits for this user's word.
pub(super) fn asks(client: &Client, user: &UserUri) -> bool {
    client.member().requests().is_ok_and(|all| all.iter().any(|request| request.from == *user))
}

/// What a request is to do, for people.
pub(super) fn operation_words(operation: &Operation) -> &'static str {
    match operation {
        Operation::CreateGroup => "creating the group",
        Operation::DeleteGroup => "deleting the group",
        Operation::AddUsers { .. } => "adding users",
        Operation::AddClients { .. } => "adding devices",
        Operation::RemoveUsers { .. } => "removing users",
        Operation::RemoveClients { .. } => "removing devices",
        Operation::UpdateClient { .. } => "renewing keys",
        Operation::UpdateGroup { .. } => "changing the policy",
        Operation::Migrate { .. } => "moving the group",
        Operation::Propose { .. } => "proposing",
        Operation::Send { .. } => "a message",
        Operation::UpdateQueueInfo => "a new queue address",
        Operation::UpdateFanoutInfo { .. } => "muting or unmuting",
        Operation::Resync => "entering anew",
        Operation::Join { .. } => "joining",
        Operation::AskToJoin => "asking to be added",
        Operation::Welcome { .. } => "taking up an invitation",
    }
}

/// Text of others must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c })
        .collect()
}

/// A policy for people and programs.
pub(super) fn policy_json(policy: &GroupPolicy) -> Value {
    let roles: serde_json::Map<String, Value> = policy
        .roles
        .iter()
        .map(|entry| (hex::encode(entry.user_key_hash.0.as_slice()), json!(entry.role)))
        .collect();
    let codes: Vec<Value> = policy
        .codes
        .iter()
        .map(|code| {
            json!({ "public": hex::encode(code.public_key.as_slice()), "expires_at": code.expires_at })
        })
        .collect();
    json!({
        "may_add": policy.may_add,
        "may_remove": policy.may_remove,
        "may_update": policy.may_update,
        "may_delete": policy.may_delete,
        "may_migrate": policy.may_migrate,
        "may_send": policy.may_send,
        "join": policy.join,
        "members_max": policy.members_max,
        "roles_by_user_key_hash": roles,
        "codes": codes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ids::Domain;

    #[test]
    fn move_of_a_group_is_a_line_for_people_and_an_event_for_programs() {
        let domain = |name: &str| Domain::new(name).unwrap();
        let group = GroupId::of(&domain("a.example"), [1; 16]);
        let (from, to) = (domain("a.example"), domain("b.example"));
        let event = Event::Moved { group: group.clone(), from, to };
        let called = |user: &UserUri| user.name().to_owned();
        assert_eq!(describe(&event, None, &called), "moved to b.example");
        assert_eq!(event_group(&event), Some(&group));
        let value = json!(event);
        assert_eq!(
            value,
            json!({ "event": "moved", "group": group, "from": "a.example", "to": "b.example" })
        );
    }
}
