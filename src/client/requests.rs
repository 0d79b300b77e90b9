//! Getting requests answered: sent until there is an answer, built anew where the answer asks for it.
//!
//! A request is kept before it is sent, so neither a lost answer nor the end of the process loses or doubles it.
//! PROTOCOL.md §2, "Answers".

use std::time::Duration;

use rand::Rng;
use tls_codec::DeserializeBytes;

use super::{
    CLOCK_OFFSET, Client, ClientError,
    core::{CoreError, Operation, Outbound, Refusal, Settled},
    http::HttpError,
};
use crate::wire::{
    ds::{Accepted, DsError, DsRequest, DsResponse},
    encode,
    ids::{GroupId, RequestId},
};

/// Rounds of building one request anew.
const ROUNDS_MAX: u32 = 40;
const BACKOFF_MIN_MS: u64 = 100;
const BACKOFF_MAX_MS: u64 = 5_000;

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Accepted(Accepted),
    /// The group was found as was wanted, or another process saw the answer.
    AlreadySo,
}

impl Client {
    /// Does `operation` in `group` and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError::Refused`]: nothing of it took effect. [`ClientError::Unanswered`]: [`Client::resume`] goes on
    /// with it.
    pub async fn operate(
        &self,
        group: &GroupId,
        operation: Operation,
    ) -> Result<Outcome, ClientError> {
        let request = self.member().begin(group, operation)?;
        self.drive(request).await
    }

    /// Goes on with every request that has not been answered; gives those that were refused.
    ///
    /// # Errors
    /// [`ClientError::Unanswered`] where the provider is still out of reach.
    pub async fn resume(&self) -> Result<Vec<(Operation, Refusal)>, ClientError> {
        let _one_at_a_time = self.operations.lock().await;
        self.resume_locked().await
    }

    pub(super) async fn resume_locked(&self) -> Result<Vec<(Operation, Refusal)>, ClientError> {
        let mut refused = Vec::new();
        let pending = self.member().pending()?;
        for (request, _, operation) in pending {
            match self.drive_locked(request).await {
                Ok(_) => {}
                Err(ClientError::Refused(refusal)) => {
                    tracing::warn!(%refusal, "a request was refused");
                    refused.push((operation, refusal));
                }
                Err(error @ (ClientError::Unanswered { .. } | ClientError::Http(_))) => {
                    return Err(error);
                }
                Err(error) => tracing::warn!(%error, "a request was given up"),
            }
        }
        Ok(refused)
    }

    pub(super) async fn drive(&self, request: RequestId) -> Result<Outcome, ClientError> {
        let _one_at_a_time = self.operations.lock().await;
        self.drive_locked(request).await
    }

    async fn drive_locked(&self, request: RequestId) -> Result<Outcome, ClientError> {
        for _ in 0..ROUNDS_MAX {
            let now = self.now();
            let outbound = self.member().outbound(request, now);
            let outbound = match outbound {
                Ok(outbound) => outbound,
                Err(CoreError::NoToken { class, last_resort }) => {
                    self.mint(class, last_resort).await?;
                    continue;
                }
                Err(CoreError::Busy(other)) => {
                    // what was asked for first is answered first, whatever comes of it
                    match Box::pin(self.drive_locked(other)).await {
                        Err(error @ ClientError::Unanswered { .. }) => return Err(error),
                        Ok(_) | Err(_) => continue,
                    }
                }
                Err(CoreError::MustCommitFirst(group)) => {
                    let update = Operation::UpdateClient { rotate_key: false };
                    let commit = self.member().begin(&group, update)?;
                    Box::pin(self.drive_locked(commit)).await?;
                    continue;
                }
                Err(CoreError::NothingToDo(_)) => {
                    self.member().give_up(request)?;
                    return Ok(Outcome::AlreadySo);
                }
                Err(CoreError::Answered) => return Ok(Outcome::AlreadySo),
                Err(error @ CoreError::Store(_)) => return Err(error.into()),
                Err(error) => {
                    self.member().give_up(request)?;
                    return Err(error.into());
                }
            };
            let response = self.send(&outbound).await?;
            let settled = self.member().settle(request, &response, now)?;
            match settled {
                Settled::Done(accepted) => return Ok(Outcome::Accepted(accepted)),
                Settled::Entered => return Ok(Outcome::AlreadySo),
                Settled::Refused(refusal) => return Err(refusal.into()),
                Settled::Again { after_ms: 0 } => {}
                Settled::Again { after_ms } => {
                    pause(after_ms).await;
                    if let Err(error) = self.pull(0).await {
                        tracing::debug!(%error, "the queue could not be read in between");
                    }
                }
            }
        }
        Err(ClientError::Unanswered { request, why: "the group does not come to rest".to_owned() })
    }

    async fn send(&self, outbound: &Outbound) -> Result<DsResponse, ClientError> {
        let request = &outbound.message.request;
        let endpoint = if matches!(request, DsRequest::WelcomeInfo(_)) {
            "/v1/welcome_information"
        } else if matches!(request, DsRequest::ExternalCommitInfo(_)) {
            "/v1/external_commit_information"
        } else {
            "/v1/group_operation"
        };
        let body = encode(&outbound.message);
        self.patiently(async || {
            let body = body.clone();
            self.as_caller(async |http, caller| http.ds(caller, endpoint, body).await).await
        })
        .await
        .map_err(|error| {
            let passes = matches!(&error, ClientError::Http(error) if error.passes().is_some());
            if passes {
                ClientError::Unanswered { request: outbound.request, why: error.to_string() }
            } else {
                error
            }
        })
    }

    /// Calls an endpoint until it answers; what is called must be harmless to repeat.
    pub(super) async fn call<T: DeserializeBytes>(
        &self,
        endpoint: &str,
        body: Vec<u8>,
    ) -> Result<T, ClientError> {
        self.patiently(async || {
            let body = body.clone();
            self.as_caller(async |http, caller| http.call(caller, endpoint, body, 0).await).await
        })
        .await
    }

    /// As [`Self::call`], where there is nothing to answer.
    pub(super) async fn tell(&self, endpoint: &str, body: Vec<u8>) -> Result<(), ClientError> {
        self.patiently(async || {
            let body = body.clone();
            self.as_caller(async |http, caller| http.tell(caller, endpoint, body).await).await
        })
        .await
    }

    /// Tries `call` until it neither fails in passing nor complains of this client's clock.
    pub(super) async fn patiently<T>(
        &self,
        call: impl AsyncFn() -> Result<T, HttpError>,
    ) -> Result<T, ClientError> {
        let mut attempt = 0;
        let mut clock_corrected = false;
        loop {
            let error = match call().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            attempt += 1;
            if let HttpError::Refused(DsError::StaleRequest { server_time, .. }) = &error
                && !clock_corrected
            {
                clock_corrected = true;
                let offset = i128::from(server_time.0) - i128::from((self.clock)().0);
                let offset = i64::try_from(offset).unwrap_or_default();
                self.member().set(CLOCK_OFFSET, &offset)?;
                continue;
            }
            match error.passes() {
                Some(after_ms) if attempt < self.attempts_max => {
                    let backoff = BACKOFF_MIN_MS << attempt.min(8);
                    pause(after_ms.max(backoff.min(BACKOFF_MAX_MS))).await;
                }
                Some(_) | None => return Err(error.into()),
            }
        }
    }
}

/// Waits at least `ms` and at most half as much again, so that many clients do not come back at once. What a
/// provider may ask for is bounded, too.
async fn pause(ms: u64) {
    let ms = ms.min(60_000);
    let ms = rand::rng().random_range(ms..=ms + ms / 2);
    tokio::time::sleep(Duration::from_millis(ms)).await;
}
