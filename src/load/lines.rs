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
    targets: Vec<Vec<Line>>,
    next: AtomicUsize,
}

struct Line {
    http: Http,
    room: Semaphore,
}

/// A place on a connection, as long as this is held.
pub(super) struct Turn<'a> {
    http: &'a Http,
    /// None would be of a connection that is closed, and none is.
    _place: Option<SemaphorePermit<'a>>,
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
                .map_err(|error| LoadError::of(error, &target.url, "connect"))
        };
        let targets = targets.iter().map(of).collect::<Result<_, _>>()?;
        Ok(Self { targets, next: AtomicUsize::new(0) })
    }

    /// The connections of one target, in turn.
    #[must_use]
    pub fn to(&self, target: usize) -> &Http {
        &self.line(target).http
    }

    /// A place on one of a target's connections, in turn; waits until one of them has room for a request. What is sent without one waits in the
    /// connection itself, where nobody sees that it does.
    pub(super) async fn turn(&self, target: usize) -> Turn<'_> {
        let Line { http, room } = self.line(target);
        Turn { http, _place: room.acquire().await.ok() }
    }

    /// How many requests may be on their way at a time.
    pub(super) fn room(&self) -> usize {
        self.targets.iter().map(Vec::len).sum::<usize>() * REQUESTS_PER_CONNECTION
    }

    fn line(&self, target: usize) -> &Line {
        let all = &self.targets[target];
        &all[self.next.fetch_add(1, Ordering::Relaxed) % all.len()]
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
