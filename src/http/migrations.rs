//! What operators see and do of groups that move, on the ops listener: `GET /v1/migrations` (JSON), `POST
//! /v1/migrations/abort` with a group id as the body.

use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
};
use serde::{Deserialize, Serialize};

use crate::{actors::Node, wire::ids::GroupId};

/// Moves of groups from and to this provider that are not over.
#[derive(Debug, Serialize, Deserialize)]
pub struct Migrations {
    /// Groups that are on their way to another provider.
    pub departures: Vec<Departure>,
    /// Groups that have come, and are hosted here.
    pub arrivals: Vec<Arrival>,
}

/// One of them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Departure {
    pub group: String,
    pub target: String,
    /// frozen: nothing was sent, and the group can be kept by this provider alone; sent: only the target's word ends it;
    /// confirming: the group is there, which the target is still to be told.
    pub state: String,
    /// Since the group was frozen.
    pub age_ms: u64,
}

/// One that has come.
#[derive(Debug, Serialize, Deserialize)]
pub struct Arrival {
    pub group: String,
    pub source: String,
    /// unconfirmed: the group works here; its last host has not yet confirmed that it knows, and until then it moves no further.
    pub state: String,
    /// Since it came.
    pub age_ms: u64,
}

pub(super) async fn show(node: &Node) -> HttpResponse {
    let (departures, arrivals) = match (node.departures().await, node.unsettled_arrivals().await) {
        (Ok(departures), Ok(arrivals)) => (departures, arrivals),
        (Err(error), _) | (_, Err(error)) => {
            return text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"));
        }
    };
    let departures = departures.into_iter().map(|it| Departure {
        group: it.group,
        target: it.target,
        state: it.state.to_owned(),
        age_ms: it.age_ms,
    });
    let arrivals = arrivals.into_iter().map(|it| Arrival {
        group: it.group,
        source: it.source,
        state: it.state.to_owned(),
        age_ms: it.age_ms,
    });
    let told = Migrations { departures: departures.collect(), arrivals: arrivals.collect() };
    match serde_json::to_string(&told) {
        Ok(json) => {
            HttpResponse::Ok().insert_header((header::CONTENT_TYPE, "application/json")).body(json)
        }
        Err(error) => {
            tracing::error!(%error, "the groups that move cannot be shown");
            text(StatusCode::INTERNAL_SERVER_ERROR, "see the log\n".to_owned())
        }
    }
}

pub(super) async fn abort(node: &Node, body: &[u8]) -> HttpResponse {
    let group = std::str::from_utf8(body).ok().map(str::trim).and_then(|id| GroupId::new(id).ok());
    let Some(group) = group else {
        return text(StatusCode::BAD_REQUEST, "the body is a group id\n".to_owned());
    };
    match node.abort_departure(&group).await {
        Ok(true) => {
            let told =
                "the group stays if nothing was sent; else its target is asked to refuse it\n";
            text(StatusCode::OK, told.to_owned())
        }
        Ok(false) => {
            text(StatusCode::NOT_FOUND, format!("{group} is not on its way to another provider\n"))
        }
        Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

fn text(status: StatusCode, body: String) -> HttpResponse {
    HttpResponse::build(status)
        .insert_header((header::CONTENT_TYPE, "text/plain; charset=utf-8"))
        .body(body)
}
