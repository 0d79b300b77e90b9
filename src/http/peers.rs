//! What operators see and do of other providers, on the ops listener: `GET /v1/peers` (JSON), `POST /v1/peers/requeue`.
//!
//! Domains and group ids are shown, which are the operator's to know; no contents, and nobody's name.

use std::collections::BTreeMap;

use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
    web,
};
use serde::{Deserialize, Serialize};

use crate::{
    actors::{Node, PeerState},
    federation::{PeerKeysState, keys::KeyList},
    wire::ids::{Domain, GroupId, Timestamp},
};

/// All other providers that this one has had to do with of late.
#[derive(Debug, Serialize, Deserialize)]
pub struct Peers {
    /// Whether this provider federates at all.
    pub federates: bool,
    /// Milliseconds since the Unix epoch, as all times here.
    pub now: Timestamp,
    pub peers: Vec<Peer>,
}

/// One provider.
#[derive(Debug, Serialize, Deserialize)]
pub struct Peer {
    pub domain: Domain,
    /// Whether the configuration lets the two speak.
    pub admitted: bool,
    /// None where nothing was ever to be sent to it by this process.
    pub outbox: Option<Outbox>,
    pub keys: Vec<Keys>,
}

/// What it is still to get, and how that goes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outbox {
    pub active: bool,
    /// closed: it is sent to; open: it is left alone for a while; half_open: one request probes it.
    pub circuit: String,
    pub items: u64,
    /// Of how many groups.
    pub groups: u64,
    /// Not everything was looked at yet: there may be more of both, and older ones.
    pub at_least: bool,
    pub oldest_at: Option<Timestamp>,
    pub next_attempt_at: Option<Timestamp>,
    /// It gets its messages one by one.
    pub direct: bool,
    pub items_delivered: u64,
    pub failures: BTreeMap<String, u64>,
    pub last_error: Option<String>,
    pub groups_set_aside: usize,
    /// Some of those.
    pub set_aside: Vec<SetAside>,
}

/// A group that it did not take.
#[derive(Debug, Serialize, Deserialize)]
pub struct SetAside {
    pub group: GroupId,
    pub since: Timestamp,
    pub item: u64,
    pub problem: String,
}

/// A list of its keys as it is known here.
#[derive(Debug, Serialize, Deserialize)]
pub struct Keys {
    /// verification or signature
    pub list: String,
    pub keys: Option<usize>,
    pub good_until: Option<Timestamp>,
    pub attempted_at: Timestamp,
    pub failure: Option<String>,
}

/// Which group is to be sent anew to whom.
#[derive(Debug, Serialize, Deserialize)]
pub struct Requeue {
    pub peer: Domain,
    pub group: GroupId,
}

impl Peers {
    pub fn of(node: &Node) -> Self {
        let mut peers: BTreeMap<Domain, (Option<Outbox>, Vec<Keys>)> = BTreeMap::new();
        for state in node.peer_states() {
            let (outbox, _) = peers.entry(state.peer.clone()).or_default();
            *outbox = Some(state.into());
        }
        for state in node.federation.iter().flat_map(|federation| federation.peers()) {
            let (_, keys) = peers.entry(state.domain.clone()).or_default();
            keys.push(state.into());
        }
        let peer = |(domain, (outbox, keys))| {
            let admitted = node.speaks_with(&domain);
            Peer { domain, admitted, outbox, keys }
        };
        Self {
            federates: node.federation.is_some(),
            now: node.clock.now(),
            peers: peers.into_iter().map(peer).collect(),
        }
    }
}

impl From<PeerState> for Outbox {
    fn from(state: PeerState) -> Self {
        let set_aside = state.set_aside.into_iter().map(|stuck| SetAside {
            group: stuck.group,
            since: stuck.set_aside.since,
            item: stuck.set_aside.item.0,
            problem: stuck.set_aside.problem,
        });
        let failures = state.failures.into_iter();
        Self {
            active: state.active,
            circuit: state.circuit.as_str().to_owned(),
            items: state.items,
            groups: state.groups,
            at_least: state.at_least,
            oldest_at: state.oldest_at,
            next_attempt_at: state.next_attempt_at,
            direct: state.direct,
            items_delivered: state.items_delivered,
            failures: failures.map(|(kind, count)| (kind.to_owned(), count)).collect(),
            last_error: state.problem,
            groups_set_aside: state.groups_set_aside,
            set_aside: set_aside.collect(),
        }
    }
}

impl From<PeerKeysState> for Keys {
    fn from(state: PeerKeysState) -> Self {
        let list = match state.list {
            KeyList::Verification => "verification",
            KeyList::Signature => "signature",
        };
        Self {
            list: list.to_owned(),
            keys: state.keys,
            good_until: state.good_until,
            attempted_at: state.attempted_at,
            failure: state.failure,
        }
    }
}

/// `GET /v1/peers`
pub fn show(node: &Node) -> HttpResponse {
    match serde_json::to_string(&Peers::of(node)) {
        Ok(json) => {
            HttpResponse::Ok().insert_header((header::CONTENT_TYPE, "application/json")).body(json)
        }
        Err(error) => {
            tracing::error!(%error, "the state of peers cannot be written as JSON");
            said(StatusCode::INTERNAL_SERVER_ERROR, "see the log\n".to_owned())
        }
    }
}

/// `POST /v1/peers/requeue`: its body is a [`Requeue`] as JSON.
pub async fn requeue(node: &Node, body: web::Bytes) -> HttpResponse {
    let Requeue { peer, group } = match serde_json::from_slice(&body) {
        Ok(requeue) => requeue,
        Err(error) => {
            let how = "the body is {\"peer\": \"b.example\", \"group\": \"mimi://…\"}";
            return said(StatusCode::BAD_REQUEST, format!("{how}: {error}\n"));
        }
    };
    if node.requeue(&peer, &group).await {
        tracing::info!(%peer, %group, "an operator has a group sent to a peer anew");
        return said(StatusCode::OK, format!("{group} goes to {peer} anew, from a snapshot\n"));
    }
    let why = if node.federation.is_none() {
        "this provider does not federate".to_owned()
    } else {
        format!("nothing of {group} was ever for {peer}, or it is on its way there now")
    };
    said(StatusCode::CONFLICT, format!("{why}\n"))
}

fn said(status: StatusCode, text: String) -> HttpResponse {
    HttpResponse::build(status)
        .insert_header((header::CONTENT_TYPE, "text/plain; charset=utf-8"))
        .body(text)
}
