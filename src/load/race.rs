//! A group that is made live: its members are real clients at replay, too, and whichever commit of a race the hub takes, they go on from it.
//!
//! This costs the generator what it costs clients: making a commit and taking one in are milliseconds in a group of some ten, and more in
//! larger ones. So such groups do one thing at a time, on threads for that, and what it takes is in the result as [`MLS_WORK`]. Making is in
//! no request's latency, for a provider has no part in it: those count from when there was something to send, and what was before is
//! [`STAGING`]. What an operation waited before that, for its group or for a place on a connection, is in its latency.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;

use super::{
    LoadError,
    crew::{Crew, Staged},
    lines::now,
    plan::Op,
    recorder::Recorder,
    send::{One, Sender, Verdict},
};
use crate::{
    crypto,
    wire::{extensions::QueueToken, ids::RequestId},
};

/// From when a race was due until a racer's commit was accepted, those before it and all making included.
pub const RACE_SETTLED: &str = "race_settled";
/// What making and taking in commits took the generator, for each round.
pub const MLS_WORK: &str = "mls_work";
/// How long an operation that is made live was made before it could be sent: for each round of a race. The first one's has what reading its
/// group's states took.
pub const STAGING: &str = "staging";

/// Something to be done live.
pub(super) struct Round {
    pub crew: Crew,
    pub hub: usize,
    pub op: Op,
    pub token: Option<QueueToken>,
    pub due: Duration,
    /// What reading its crew took, if this is the first of it.
    pub opening: Duration,
    /// Whether who loses a race tries again.
    pub losers_retry: bool,
}

/// Does it; the crew comes back, and whether the group can go on.
pub(super) async fn play(
    sender: Arc<Sender>,
    recorder: Recorder,
    round: Round,
) -> Result<Crew, LoadError> {
    let Round { mut crew, hub, mut op, mut token, due, mut opening, losers_retry } = round;
    let mut fruitless = 0;
    let mut begins = true;
    loop {
        let making = sender.began.elapsed();
        let staged;
        (crew, staged) = {
            let (op, token, recorder) = (op.clone(), token.take(), recorder.clone());
            let began = sender.began.elapsed();
            let sender = Arc::clone(&sender);
            busy(move || {
                let mut token = token;
                let mut tokens =
                    |_| token.take().ok_or_else(|| LoadError::Mls("no token is left".to_owned()));
                let staged = crew.stage(&op, &mut tokens, now())?;
                recorder.observed(MLS_WORK, began, sender.began.elapsed().saturating_sub(began));
                Ok((crew, staged))
            })
            .await?
        };
        let made = sender.began.elapsed();
        let staging = std::mem::take(&mut opening) + made.saturating_sub(making);
        recorder.observed(STAGING, making, staging);
        let first = Sent {
            hub,
            // a new attempt is a request of its own
            due: if begins { due + staging } else { made },
            readers: crew.readers(|account| sender.ledger.reads(account)),
            begins,
        };
        let sent = staged.iter().enumerate().map(|(at, one)| {
            let how = Sent { begins: begins && at == 0, ..first };
            send(&sender, &recorder, &crew, one, how)
        });
        let verdicts = join_all(sent).await;
        begins = false;
        let winner = verdicts.iter().position(|verdict| *verdict == Verdict::Accepted);
        let is_race = matches!(op, Op::Race { .. });
        if is_race && winner.is_some() {
            let took = sender.began.elapsed().saturating_sub(due);
            recorder.observed(RACE_SETTLED, due, took);
        }
        let is_lost = winner.is_none()
            && verdicts.iter().any(|it| !matches!(it, Verdict::Unknown | Verdict::Accepted));
        let wins = winner.and_then(|winner| staged.into_iter().nth(winner));
        {
            let recorder = recorder.clone();
            let began = sender.began.elapsed();
            let sender = Arc::clone(&sender);
            crew = busy(move || {
                match &wins {
                    Some(wins) => crew.merge(wins)?,
                    None => crew.forget()?,
                }
                recorder.observed(MLS_WORK, began, sender.began.elapsed().saturating_sub(began));
                Ok(crew)
            })
            .await?;
        }
        if is_lost {
            // somebody else has changed the group, or the hub takes nothing of this crew: it cannot go on
            return Err(LoadError::Mls("the group is not as its clients know it".to_owned()));
        }
        let Op::Race { drivers } = &mut op else { return Ok(crew) };
        match winner {
            Some(winner) => drop(drivers.remove(winner)),
            None => fruitless += 1,
        }
        if !losers_retry || drivers.is_empty() || fruitless == FRUITLESS_MAX {
            return Ok(crew);
        }
    }
}

/// How what was made is sent.
#[derive(Clone, Copy)]
struct Sent {
    hub: usize,
    due: Duration,
    readers: u32,
    begins: bool,
}

async fn send(
    sender: &Arc<Sender>,
    recorder: &Recorder,
    crew: &Crew,
    staged: &Staged,
    how: Sent,
) -> Verdict {
    let Sent { hub, mut due, readers, begins } = how;
    let mut verdict = Verdict::Accepted;
    for (at, request) in staged.requests.iter().enumerate() {
        let id = RequestId(crypto::random());
        let begins = begins && at == 0;
        let one = One { request, hub, group: crew.id(), id, due, readers, begins };
        let came = sender.send(recorder, one).await;
        // what follows the commit changes nothing about it
        if at < usize::from(staged.holds).max(1) {
            verdict = came;
        }
        if came != Verdict::Accepted {
            break;
        }
        // what follows is asked for by who got this answer
        due = sender.began.elapsed();
    }
    verdict
}

async fn busy<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, LoadError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(LoadError::Interrupted))
}

/// Rounds of a race that nobody won.
const FRUITLESS_MAX: u32 = 3;
