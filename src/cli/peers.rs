//! `mimid peers`: the other providers as a provider that runs sees them, and a second chance for what one did not take.

use std::process::ExitCode;

use clap::Subcommand;

use super::{FAILED, ops::NodeAt};
use crate::{
    http::peers::{Keys, Outbox, Peer, Peers, Requeue},
    wire::ids::{Domain, GroupId, Timestamp},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    node: NodeAt,
    /// Print the JSON that the provider answers
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send a group to a provider anew, whatever it refused before
    Requeue {
        /// The provider's domain
        peer: Domain,
        /// The group's id
        group: GroupId,
    },
}

/// Asks, and says what came back.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let told = match &args.command {
        None => show(args),
        Some(Command::Requeue { peer, group }) => requeue(args, peer, group),
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

fn show(args: &Args) -> Result<String, String> {
    let json = args.node.get("/v1/peers")?;
    if args.json {
        return Ok(json);
    }
    let peers: Peers = serde_json::from_str(&json)
        .map_err(|error| format!("its answer is not of this version of mimid: {error}"))?;
    if !peers.federates {
        return Ok("this provider does not federate: federation.listen is not set".to_owned());
    }
    if peers.peers.is_empty() {
        return Ok("no other providers so far".to_owned());
    }
    let lines: Vec<String> =
        peers.peers.iter().flat_map(|peer| describe(peer, peers.now)).collect();
    Ok(lines.join("\n"))
}

fn requeue(args: &Args, peer: &Domain, group: &GroupId) -> Result<String, String> {
    let requeue = Requeue { peer: peer.clone(), group: group.clone() };
    let body = serde_json::to_vec(&requeue).map_err(|error| error.to_string())?;
    args.node.post("/v1/peers/requeue", "application/json", body)
}

/// A line for the provider, and one for each thing that there is to say of it.
fn describe(peer: &Peer, now: Timestamp) -> Vec<String> {
    let state = match &peer.outbox {
        _ if !peer.admitted => "not spoken with, by this provider's lists",
        None => "nothing to send",
        Some(outbox) => match outbox.circuit.as_str() {
            "open" => "out of reach, left alone for a while",
            "half_open" => "out of reach, being tried",
            _ if outbox.items > 0 && outbox.active => "being sent to",
            _ if outbox.items > 0 => "waits for its turn to be sent to",
            _ => "up to date",
        },
    };
    let mut lines = vec![format!("{:<32} {state}", peer.domain.as_str())];
    lines.extend(peer.outbox.iter().flat_map(|outbox| describe_outbox(outbox, now)));
    lines.extend(peer.keys.iter().map(|keys| describe_keys(keys, now)));
    lines
}

fn describe_outbox(outbox: &Outbox, now: Timestamp) -> Vec<String> {
    let bound = if outbox.at_least { "at least " } else { "" };
    let mut waiting =
        format!("  outbox     {bound}{} items of {} groups wait", outbox.items, outbox.groups);
    if let Some(oldest) = outbox.oldest_at {
        waiting.push_str(&format!(", the oldest for {}", ago(oldest, now)));
    }
    waiting.push_str(&format!("; {} delivered since start", outbox.items_delivered));
    if outbox.direct {
        waiting.push_str(", one by one (it takes no feeds now)");
    }
    let mut lines = vec![waiting];
    if let Some(next) = outbox.next_attempt_at {
        lines.push(format!("  next try   in {}", ago(now, next)));
    }
    if let Some(error) = &outbox.last_error {
        lines.push(format!("  last error {error}"));
    }
    if !outbox.failures.is_empty() {
        let failures: Vec<_> =
            outbox.failures.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        lines.push(format!("  failures   {}", failures.join(", ")));
    }
    for stuck in &outbox.set_aside {
        lines.push(format!(
            "  set aside  {} at item {}, for {}: {}",
            stuck.group,
            stuck.item,
            ago(stuck.since, now),
            stuck.problem
        ));
    }
    let unnamed = outbox.groups_set_aside.saturating_sub(outbox.set_aside.len());
    if unnamed > 0 {
        lines.push(format!("  set aside  and {unnamed} more groups"));
    }
    lines
}

fn describe_keys(keys: &Keys, now: Timestamp) -> String {
    let known = match (keys.keys, keys.good_until) {
        (Some(count), Some(until)) if until > now => {
            format!("{count} known, good for {}", ago(now, until))
        }
        _ => "none known".to_owned(),
    };
    let failure = keys.failure.as_ref().map_or_else(String::new, |failure| {
        format!("; asked {} ago: {failure}", ago(keys.attempted_at, now))
    });
    format!("  {:<10} keys: {known}{failure}", keys.list)
}

/// What lies between two times, in one unit.
fn ago(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.ms_since(from) / 1000;
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::http::peers::SetAside;

    #[test]
    fn a_peer_in_trouble_is_described_with_what_an_operator_needs() {
        let now = Timestamp(1_700_000_000_000);
        let before = |s: u64| Timestamp(now.0 - s * 1000);
        let domain = Domain::new("b.example").unwrap();
        let group = GroupId::of(&Domain::new("a.example").unwrap(), [7; 16]);
        let outbox = Outbox {
            active: true,
            circuit: "open".to_owned(),
            items: 12,
            groups: 3,
            at_least: true,
            oldest_at: Some(before(3 * 3600)),
            next_attempt_at: Some(now.plus_ms(90_000)),
            direct: false,
            items_delivered: 5,
            failures: BTreeMap::from([("unreachable".to_owned(), 9)]),
            last_error: Some("it cannot be reached: connection refused".to_owned()),
            groups_set_aside: 2,
            set_aside: vec![SetAside {
                group: group.clone(),
                since: before(300),
                item: 40,
                problem: "invalid_item".to_owned(),
            }],
        };
        let keys = Keys {
            list: "verification".to_owned(),
            keys: Some(2),
            good_until: Some(now.plus_ms(3_600_000)),
            attempted_at: before(30),
            failure: None,
        };
        let peer = Peer { domain, admitted: true, outbox: Some(outbox), keys: vec![keys] };
        let told = describe(&peer, now).join("\n");
        for part in [
            "b.example                        out of reach, left alone",
            "at least 12 items of 3 groups wait, the oldest for 3 h; 5 delivered",
            "next try   in 90 s",
            "last error it cannot be reached: connection refused",
            "unreachable 9",
            &format!("{group} at item 40, for 5 min: invalid_item"),
            "and 1 more groups",
            "verification keys: 2 known, good for 60 min",
        ] {
            assert!(told.contains(part), "{part}\n{told}");
        }
    }
}
