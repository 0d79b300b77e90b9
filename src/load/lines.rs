//! The connections to the targets: several HTTP/2 connections to each, since one takes 128 requests at a time.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tls_codec::DeserializeBytes;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use super::{LoadError, account::Account, workload::Target};
use crate::{
    client::{
        http::{Caller, Http, HttpError},
        system_clock,
    },
    wire::{
        ds::{DsResponse, DsResponseBody},
        ids::Timestamp,
    },
};

/// Connections to all targets.
pub struct Lines {
    targets: Vec<Bundle>,
    next: AtomicUsize,
}

/// Those to one target.
struct Bundle {
    lines: Vec<Line>,
    /// Of all of them together.
    room: Semaphore,
}

struct Line {
    http: Http,
    room: Semaphore,
}

/// A place on a connection, as long as this is held.
pub(super) struct Turn<'a> {
    http: &'a Http,
    // none would be of a connection that is closed, and none is; in this order, so that there is a place for whoever is let in
    _place: Option<SemaphorePermit<'a>>,
    _entry: Option<SemaphorePermit<'a>>,
}

impl Lines {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// A certificate that is none.
    pub fn new(targets: &[Target], connections: usize) -> Result<Self, LoadError> {
        let of = |target: &Target| {
            let certificate = target.certificate.as_deref().map(str::as_bytes);
            (0..connections.max(1))
                .map(|_| {
                    let http = Http::new(&target.url, certificate)?;
                    Ok(Line { http, room: Semaphore::new(REQUESTS_PER_CONNECTION) })
                })
                .collect::<Result<Vec<_>, _>>()
                .map(|lines| {
                    let room = Semaphore::new(lines.len() * REQUESTS_PER_CONNECTION);
                    Bundle { lines, room }
                })
                .map_err(|error| LoadError::of(error, &target.url, "connect"))
        };
        let targets = targets.iter().map(of).collect::<Result<_, _>>()?;
        Ok(Self { targets, next: AtomicUsize::new(0) })
    }

    /// The connections of one target, in turn.
    #[must_use]
    pub fn to(&self, target: usize) -> &Http {
        let lines = &self.targets[target].lines;
        &lines[self.next.fetch_add(1, Ordering::Relaxed) % lines.len()].http
    }

    /// A place on one of a target's connections, in turn; waits until any of them has room for a request. What is sent without one waits in the
    /// connection itself, where nobody sees that it does.
    pub(super) async fn turn(&self, target: usize) -> Turn<'_> {
        let Bundle { lines, room } = &self.targets[target];
        let entry = room.acquire().await.ok();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut in_turn = (0..lines.len()).map(|at| &lines[first.wrapping_add(at) % lines.len()]);
        let place = in_turn.find_map(|line| Some((line, line.room.try_acquire().ok()?)));
        // whoever was let in finds room; if not, it waits for one
        let (Line { http, .. }, place) = match place {
            Some((line, place)) => (line, Some(place)),
            None => {
                let line = &lines[first % lines.len()];
                (line, line.room.acquire().await.ok())
            }
        };
        Turn { http, _place: place, _entry: entry }
    }

    /// How many requests may be on their way at a time.
    pub(super) fn room(&self) -> usize {
        let lines = self.targets.iter().map(|it| it.lines.len());
        lines.sum::<usize>() * REQUESTS_PER_CONNECTION
    }

    /// The target of an account.
    #[must_use]
    pub fn target_of(&self, account: u32) -> usize {
        account as usize % self.targets.len()
    }

    /// Sends a DSMessage of `account`, once.
    ///
    /// # Errors
    /// [`HttpError`]; what the hub refuses is [`HttpError::Refused`].
    pub async fn ds(
        &self,
        account: &Account,
        target: usize,
        endpoint: &str,
        body: Vec<u8>,
    ) -> Result<DsResponseBody, HttpError> {
        let answer: DsResponse = self.to(target).ds(&caller(account), endpoint, body).await?;
        Ok(answer.outcome.into_result()?)
    }

    /// Calls an endpoint as `account`, once.
    ///
    /// # Errors
    /// [`HttpError`]
    pub async fn call<T: DeserializeBytes>(
        &self,
        account: &Account,
        target: usize,
        endpoint: &str,
        body: Vec<u8>,
    ) -> Result<T, HttpError> {
        self.to(target).call(&caller(account), endpoint, body, 0).await
    }
}

impl Turn<'_> {
    /// As [`Lines::ds`], in this place.
    ///
    /// # Errors
    /// The same.
    pub async fn ds(
        &self,
        account: &Account,
        endpoint: &str,
        body: Vec<u8>,
    ) -> Result<DsResponseBody, HttpError> {
        let answer: DsResponse = self.http.ds(&caller(account), endpoint, body).await?;
        Ok(answer.outcome.into_result()?)
    }
}

/// Who calls, now.
#[must_use]
pub fn caller(account: &Account) -> Caller<'_> {
    Caller { client: &account.client, key: &account.key, now: now() }
}

#[must_use]
pub(super) fn now() -> Timestamp {
    system_clock()()
}

/// Tries again what fails in passing, and does what a refusal asks to wait; no attempt begins after [`PATIENCE`].
pub(super) async fn patiently<T>(
    attempt: impl AsyncFn() -> Result<T, HttpError>,
) -> Result<T, HttpError> {
    let until = Instant::now() + PATIENCE;
    let mut pause = PAUSE_MIN;
    loop {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let Some(after_ms) = error.passes() else { return Err(error) };
        let at = Instant::now() + pause.max(Duration::from_millis(after_ms.min(60_000)));
        if at > until {
            return Err(error);
        }
        tokio::time::sleep_until(at).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// As many as a provider takes of one connection (HTTP/2 streams).
const REQUESTS_PER_CONNECTION: usize = 128;
/// How long something of preparing is tried.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::wire::ids::Domain;

    #[test]
    fn who_has_a_place_on_one_connection_does_not_wait_for_another_that_is_stuck() {
        let domain = Domain::new("a.example").unwrap();
        let url = "https://127.0.0.1:1".to_owned();
        let lines = Lines::new(&[Target { domain, url, certificate: None }], 2).unwrap();
        let of = |turn: &Turn<'_>| std::ptr::from_ref(turn.http);
        let take = || lines.turn(0).now_or_never();
        let mut all: Vec<Turn<'_>> = std::iter::from_fn(take).collect();
        assert_eq!(all.len(), 2 * REQUESTS_PER_CONNECTION);
        // one answers all of its requests, the other none
        let stuck = of(&all[0]);
        all.retain(|turn| of(turn) == stuck);
        assert_eq!(all.len(), REQUESTS_PER_CONNECTION);
        let again: Vec<Turn<'_>> = std::iter::from_fn(take).collect();
        assert_eq!(again.len(), REQUESTS_PER_CONNECTION);
        assert!(again.iter().all(|turn| of(turn) != stuck));
        drop(all);
        assert!(take().is_some_and(|turn| of(&turn) == stuck));
    }
}
