//! Getting requests answered: sent until there is an answer, built anew where the answer asks for it.
//!
//! A request is kept before it is sent, so neither a lost answer nor the end of the process loses or doubles it.
//! PROTOCOL.md §2, "Answers".

use std::{sync::PoisonError, time::Duration};

use tls_codec::DeserializeBytes;
use tokio::time::Instant;

use super::{
    CLOCK_OFFSET, Client, ClientError,
    core::{Answer, CoreError, Operation, Outbound, Settled},
    http::HttpError,
};
use crate::{
    crypto,
    wire::{
        ds::{Accepted, DsError, DsRequest, DsResponse, Outcome as Answered},
        encode,
        ids::{GroupId, RequestId},
    },
};

/// Rounds of building one request anew.
const ROUNDS_MAX: u32 = 40;
const BACKOFF_MIN_MS: u64 = 100;
const BACKOFF_MAX_MS: u64 = 5_000;
/// How long one request may hold up something else.
const IN_PASSING: Duration = Duration::from_secs(2);
/// How long all of them together may.
const ALL_IN_PASSING: Duration = Duration::from_secs(3);
/// With less time than this none is begun: what is refused for want of time would be given up at once, and so all that are left be asked
/// for in one burst.
const LEAST_IN_PASSING: Duration = Duration::from_millis(500);
/// How long one that stayed unanswered, or that there was no time for, is left alone then.
const AGAIN_IN_PASSING: Duration = Duration::from_secs(20);
/// An attempt at a call has at least this long.
const ATTEMPT_MIN: Duration = Duration::from_secs(8);

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Accepted(Accepted),
    /// The group was found as was wanted.
    AlreadySo,
}

/// Who is to be told what comes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Who asks for it is this call.
    Own,
    /// It is gone on with in passing: what comes of it is kept for who asked.
    Others,
}

impl Client {
    /// Does `operation` in `group` and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError::Refused`]: nothing of it took effect. [`ClientError::Unanswered`]: [`Client::resume`] goes on
    /// with it. [`ClientError::GivenUp`], [`ClientError::AnswerForgotten`] where another task or process of this home
    /// went on with it meanwhile.
    pub async fn operate(
        &self,
        group: &GroupId,
        operation: Operation,
    ) -> Result<Outcome, ClientError> {
        let request = self.member().begin(group, operation)?;
        self.drive(request).await
    }

    /// As [`Self::operate`], for a request that is not to be lost where the provider is out of reach: it is kept
    /// first. [`Self::finish`] sends it; nothing else does so in the meantime.
    ///
    /// # Errors
    /// [`ClientError::Core`]
    pub fn begin(&self, group: &GroupId, operation: Operation) -> Result<RequestId, ClientError> {
        let request = self.member().begin(group, operation)?;
        self.not_in_passing(request);
        Ok(request)
    }

    /// Takes in what is in the queue and then gets `request` answered.
    ///
    /// # Errors
    /// As [`Self::operate`].
    pub async fn finish(&self, request: RequestId) -> Result<Outcome, ClientError> {
        if let Err(error) = self.receive(0).await {
            if !error.passes() {
                return Err(error);
            }
            return self.unless_answered(request, error.to_string());
        }
        self.drive(request).await
    }

    /// Goes on with every request that has not been answered; gives those that were refused or had to be given up,
    /// with the reason.
    ///
    /// # Errors
    /// [`ClientError::Unanswered`], [`ClientError::Http`]: the first that still has no answer. All were tried.
    pub async fn resume(&self) -> Result<Vec<(Operation, ClientError)>, ClientError> {
        let mut refused = Vec::new();
        let mut unanswered = None;
        let until = self.until();
        let pending = self.member().pending()?;
        for (request, group, operation) in pending {
            let turn = self.turns.of(&group).await;
            let driven = self.drive_locked(request, Whose::Others, until).await;
            drop(turn);
            match driven {
                Ok(_) => {}
                Err(error @ (ClientError::Unanswered { .. } | ClientError::Http(_))) => {
                    unanswered.get_or_insert(error);
                }
                Err(error) => {
                    tracing::warn!(%error, "a request was refused or given up");
                    refused.push((operation, error));
                }
            }
        }
        unanswered.map_or(Ok(refused), Err)
    }

    /// Goes on with what has not been answered on the way to something else: shortly, and without an error where
    /// it stays unanswered. However many get no answer, they hold up who calls this for no longer than
    /// [`ALL_IN_PASSING`] and one attempt; those that there is no time for come later.
    pub(super) async fn resume_in_passing(&self) -> Result<(), ClientError> {
        self.look_in_passing().await?;
        self.complain_in_passing().await?;
        let mut pending = self.member().pending()?;
        // another group comes first each time, so that those that get no answer are not always in the others' way;
        // within a group what was asked for first comes first
        let chance: [u8; 8] = crypto::random();
        pending.sort_by_cached_key(|(_, group, _)| {
            crypto::sha256(&[chance.as_slice(), group.as_str().as_bytes()].concat())
        });
        let all_until = Instant::now() + ALL_IN_PASSING;
        for (request, group, _) in pending {
            if self.is_not_yet(request) {
                continue;
            }
            if Instant::now() + LEAST_IN_PASSING >= all_until {
                self.not_in_passing(request);
                continue;
            }
            let until = all_until.min(Instant::now() + IN_PASSING);
            // who has the turn for longer gets it answered, or says that it is not
            let Ok(turn) = tokio::time::timeout_at(until, self.turns.of(&group)).await else {
                self.not_in_passing(request);
                continue;
            };
            let driven = self.drive_locked(request, Whose::Others, until).await;
            drop(turn);
            match driven {
                Ok(_) => {}
                Err(error @ (ClientError::Unanswered { .. } | ClientError::Http(_))) => {
                    tracing::debug!(%error, ?request, "a request stays for later");
                    self.not_in_passing(request);
                }
                Err(error @ ClientError::Core(CoreError::Store(_))) => return Err(error),
                Err(error) => tracing::warn!(%error, "a request was given up"),
            }
        }
        Ok(())
    }

    fn not_in_passing(&self, request: RequestId) {
        let mut not_before = self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        not_before.insert(request, Instant::now() + AGAIN_IN_PASSING);
    }

    fn is_not_yet(&self, request: RequestId) -> bool {
        let mut not_before = self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        not_before.retain(|_, at| *at > now);
        not_before.contains_key(&request)
    }

    pub(super) async fn drive(&self, request: RequestId) -> Result<Outcome, ClientError> {
        let pending = self.member().pending()?;
        let Some((_, group, _)) = pending.into_iter().find(|(it, ..)| *it == request) else {
            return self.answered(request);
        };
        let _turn = self.turns.of(&group).await;
        let until = self.until();
        match self.drive_locked(request, Whose::Own, until).await {
            Err(ClientError::Unanswered { why, .. }) => self.unless_answered(request, why),
            driven => driven,
        }
    }

    /// What came of a request that is pending no more, though this call has not seen its answer.
    fn answered(&self, request: RequestId) -> Result<Outcome, ClientError> {
        match self.member().take_answer(request)? {
            Some(Answer::Accepted(accepted)) => Ok(Outcome::Accepted(accepted)),
            Some(Answer::AlreadySo) => Ok(Outcome::AlreadySo),
            Some(Answer::Refused(refusal)) => Err(refusal.into()),
            Some(Answer::GivenUp(why)) => Err(ClientError::GivenUp(why)),
            None => Err(ClientError::AnswerForgotten(request)),
        }
    }

    /// Says that there is no answer, if nobody else in this home was given it meanwhile.
    fn unless_answered(&self, request: RequestId, why: String) -> Result<Outcome, ClientError> {
        let pending = self.member().pending()?;
        if pending.iter().any(|(it, ..)| *it == request) {
            return Err(ClientError::Unanswered { request, why });
        }
        self.answered(request)
    }

    /// Ends a request without an answer; `why` is told to who asked for it, where that is not this call.
    fn give_up(&self, request: RequestId, whose: Whose, why: Answer) -> Result<(), CoreError> {
        match whose {
            Whose::Own => self.member().give_up(request),
            Whose::Others => self.member().give_up_for_another(request, why),
        }
    }

    /// Does what it takes until `until`; beyond that it waits for nothing, and tries once.
    async fn drive_locked(
        &self,
        request: RequestId,
        whose: Whose,
        until: Instant,
    ) -> Result<Outcome, ClientError> {
        let mut busy = 0;
        for _ in 0..ROUNDS_MAX {
            let now = self.now();
            let outbound = self.member().outbound(request, now);
            let outbound = match outbound {
                Ok(outbound) => outbound,
                Err(CoreError::NoToken { class, last_resort }) => {
                    self.mint(class, last_resort, until).await?;
                    continue;
                }
                Err(CoreError::Busy(other)) => {
                    // what was asked for first is answered first, whatever comes of it
                    match Box::pin(self.drive_locked(other, Whose::Others, until)).await {
                        Err(ClientError::Unanswered { why, .. }) => {
                            return Err(ClientError::Unanswered { request, why });
                        }
                        Err(error @ ClientError::Http(_)) => return Err(error),
                        Ok(_) | Err(_) => continue,
                    }
                }
                Err(CoreError::MustCommitFirst(group)) => {
                    let update = Operation::UpdateClient { rotate_key: false };
                    let commit = self.member().begin(&group, update)?;
                    match Box::pin(self.drive_locked(commit, Whose::Own, until)).await {
                        Ok(_) => {}
                        Err(ClientError::Unanswered { why, .. }) => {
                            return Err(ClientError::Unanswered { request, why });
                        }
                        Err(error @ ClientError::Http(_)) => return Err(error),
                        Err(error) => {
                            // it would meet the same again and again
                            self.give_up(request, whose, Answer::GivenUp(error.to_string()))?;
                            return Err(error);
                        }
                    }
                    continue;
                }
                Err(CoreError::BeingRemoved(group)) => {
                    // one that was only silent for long comes back by this; whoever was deleted is refused
                    let resync = self.member().begin(&group, Operation::Resync)?;
                    match Box::pin(self.drive_locked(resync, Whose::Own, until)).await {
                        Ok(_) => {}
                        Err(ClientError::Unanswered { why, .. }) => {
                            return Err(ClientError::Unanswered { request, why });
                        }
                        Err(error @ ClientError::Http(_)) => return Err(error),
                        Err(_) => {
                            let error = CoreError::BeingRemoved(group);
                            self.give_up(request, whose, Answer::GivenUp(error.to_string()))?;
                            return Err(error.into());
                        }
                    }
                    continue;
                }
                Err(CoreError::NothingToDo(_)) => {
                    self.give_up(request, whose, Answer::AlreadySo)?;
                    return Ok(Outcome::AlreadySo);
                }
                Err(error @ CoreError::InDoubt(_)) => {
                    return Err(ClientError::Unanswered { request, why: error.to_string() });
                }
                Err(CoreError::Answered) => return self.answered_to(request, whose),
                Err(error @ CoreError::Store(_)) => return Err(error.into()),
                Err(error) => {
                    self.give_up(request, whose, Answer::GivenUp(error.to_string()))?;
                    return Err(error.into());
                }
            };
            let response = self.send(&outbound, until).await?;
            let settled = match whose {
                Whose::Own => self.member().settle(request, &response, now),
                Whose::Others => self.member().settle_for_another(request, &response, now),
            };
            let settled = match settled {
                Ok(settled) => settled,
                Err(error @ CoreError::Chain { .. }) => {
                    // whoever is asked again says the same again
                    self.give_up(request, whose, Answer::GivenUp(error.to_string()))?;
                    return Err(error.into());
                }
                Err(error) => return Err(error.into()),
            };
            match settled {
                Settled::Done(accepted) => return Ok(Outcome::Accepted(accepted)),
                Settled::Entered => return self.answered_to(request, whose),
                Settled::Refused(refusal) => return Err(refusal.into()),
                Settled::Again { after_ms: 0 } => {}
                Settled::Again { after_ms } => {
                    let is_overloaded =
                        matches!(&response.outcome, Answered::Err(DsError::Unavailable { .. }));
                    let is_limited =
                        matches!(&response.outcome, Answered::Err(DsError::RateLimited { .. }));
                    let is_busy = is_overloaded || is_limited;
                    // what is asked for was not enough where it is asked for again
                    busy = if is_busy { busy + 1 } else { 0 };
                    let after_ms = if is_busy { after_ms.max(backoff_ms(busy)) } else { after_ms };
                    if !pause(after_ms, until).await {
                        let why = response
                            .outcome
                            .into_result()
                            .err()
                            .map_or_else(|| "others came first".to_owned(), |it| it.to_string());
                        return Err(ClientError::Unanswered { request, why });
                    }
                    // who has too much to do is not asked for more
                    if !is_overloaded && let Err(error) = self.pull_until(0, until).await {
                        tracing::debug!(%error, "the queue could not be read in between");
                    }
                }
            }
        }
        Err(ClientError::Unanswered { request, why: "the group does not come to rest".to_owned() })
    }

    /// As [`Self::answered`]; what others asked for is left to them.
    fn answered_to(&self, request: RequestId, whose: Whose) -> Result<Outcome, ClientError> {
        match whose {
            Whose::Own => self.answered(request),
            Whose::Others => Ok(Outcome::AlreadySo),
        }
    }

    async fn send(&self, outbound: &Outbound, until: Instant) -> Result<DsResponse, ClientError> {
        let request = &outbound.message.request;
        let endpoint = if matches!(request, DsRequest::WelcomeInfo(_)) {
            "/v1/welcome_information"
        } else if matches!(request, DsRequest::ExternalCommitInfo(_)) {
            "/v1/external_commit_information"
        } else {
            "/v1/group_operation"
        };
        let body = encode(&outbound.message);
        self.patiently_until(until, async || {
            let body = body.clone();
            let answer = self.as_caller(async |http, caller| http.ds(caller, endpoint, body).await);
            // what is on its way when the time is over is asked for again later, under the same id
            self.attempt(until, Duration::ZERO, answer).await
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
        self.call_within(self.patience, endpoint, body).await
    }

    /// As [`Self::call`], and no longer than `patience`.
    pub(super) async fn call_within<T: DeserializeBytes>(
        &self,
        patience: Duration,
        endpoint: &str,
        body: Vec<u8>,
    ) -> Result<T, ClientError> {
        self.patiently_until(Instant::now() + patience, async || {
            let body = body.clone();
            self.as_caller(async |http, caller| http.call(caller, endpoint, body, 0).await).await
        })
        .await
    }

    /// As [`Self::call`], and no longer than `until`; a provider that is silent neither.
    pub(super) async fn call_until<T: DeserializeBytes>(
        &self,
        until: Instant,
        endpoint: &str,
        body: Vec<u8>,
    ) -> Result<T, ClientError> {
        self.patiently_until(until, async || {
            let body = body.clone();
            let answer =
                self.as_caller(async |http, caller| http.call(caller, endpoint, body, 0).await);
            self.attempt(until, Duration::ZERO, answer).await
        })
        .await
    }

    /// When this client's patience ends for what begins now.
    pub(super) fn until(&self) -> Instant {
        Instant::now() + self.patience
    }

    /// One attempt at a call that asks to wait for `wait`: it has until `until`, and a little in any case.
    pub(super) async fn attempt<T>(
        &self,
        until: Instant,
        wait: Duration,
        answer: impl Future<Output = Result<T, HttpError>>,
    ) -> Result<T, HttpError> {
        let ends = until.max(Instant::now() + ATTEMPT_MIN) + wait;
        tokio::time::timeout_at(ends, answer)
            .await
            .unwrap_or_else(|_| Err(self.http.no_answer_in_time()))
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
        self.patiently_until(self.until(), call).await
    }

    /// As [`Self::patiently`]; no attempt begins after `until`, but for the first.
    pub(super) async fn patiently_until<T>(
        &self,
        until: Instant,
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
            let Some(after_ms) = error.passes() else { return Err(error.into()) };
            if !pause(after_ms.max(backoff_ms(attempt)), until).await {
                return Err(error.into());
            }
        }
    }
}

/// The least pause behind the `attempt`-th failure in a row.
fn backoff_ms(attempt: u32) -> u64 {
    (BACKOFF_MIN_MS << attempt.min(8)).min(BACKOFF_MAX_MS)
}

/// Waits at least `ms` and at most half as much again, so that many clients do not come back at once; says `false`
/// at once where that is longer than `until`.
async fn pause(ms: u64, until: Instant) -> bool {
    let ms = spread_ms(ms);
    let at = Instant::now() + Duration::from_millis(ms);
    if at > until {
        return false;
    }
    tokio::time::sleep_until(at).await;
    true
}

/// `ms` and up to half as much again, an hour at the most.
pub(super) fn spread_ms(ms: u64) -> u64 {
    let ms = ms.min(3_600_000);
    ms + u64::from_be_bytes(crypto::random()) % (ms / 2 + 1)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::{
        client::{
            Server,
            core::{Home, Hub, Identity, Member, NewGroup},
            http::simulated,
            system_clock,
        },
        crypto::SigningKey,
        wire::{
            client::ClientResponse,
            codec::Opaque,
            ds::{Detail, ProtocolVersion},
            extensions::{KeyPackageClass, SignatureScheme},
            ids::{ClientUri, Domain},
        },
    };

    /// What a provider that answers everything with `refusal` was asked by a client that wants to create a group, and when.
    async fn asked_of(refusal: DsError) -> Vec<(String, Instant)> {
        let asked: Arc<Mutex<Vec<(String, Instant)>>> = Arc::default();
        let seen = Arc::clone(&asked);
        simulated::connect(Arc::new(move |_, endpoint, _| {
            seen.lock().unwrap().push((endpoint.to_owned(), Instant::now()));
            let outcome = Answered::Err(refusal.clone());
            let response = DsResponse { version: ProtocolVersion::MIMI10, outcome };
            let bytes = match endpoint {
                "/v1/group_operation" => encode(&response),
                _ => encode(&ClientResponse { outcome: Answered::Err(refusal.clone()) }),
            };
            Box::pin(async move { Ok((503, bytes)) })
        }));
        let uri = ClientUri::new("mimi://a.example/d/alice/phone".to_owned()).unwrap();
        let identity = Identity::generate(uri).unwrap();
        let member = Member::new(Home::in_memory().unwrap(), identity).unwrap();
        let tokens = [Opaque::new(crypto::random::<32>()).unwrap()];
        member.store_tokens(KeyPackageClass::Group, false, &tokens).unwrap();
        let key = SigningKey::generate(SignatureScheme::ED25519).unwrap();
        let domain = Domain::new("a.example").unwrap();
        let hub = Hub { domain, external_sender: key.public().clone() };
        let new = NewGroup { name: "test".to_owned(), ..NewGroup::default() };
        let (_, request) = member.create_group(&hub, &new, system_clock()()).unwrap();
        let server = Server { url: "sim://a.example".to_owned(), certificate: None };
        let client = Client::with_server(member, &server, system_clock()).unwrap();
        let client = client.with_patience(Duration::from_secs(60));
        let outcome = client.drive(request).await;
        assert!(matches!(outcome, Err(ClientError::Unanswered { .. })), "{outcome:?}");
        let asked = asked.lock().unwrap();
        asked.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_without_time_is_asked_later_each_time_and_for_nothing_else() {
        let detail = Detail::truncated("no time");
        let refusal = DsError::Unavailable { detail, retry_after_ms: 700 };
        let (one, other) = (asked_of(refusal.clone()).await, asked_of(refusal).await);
        assert!(one.iter().all(|(endpoint, _)| endpoint == "/v1/group_operation"), "{one:?}");
        let gaps = |asked: &[(String, Instant)]| -> Vec<Duration> {
            asked.windows(2).map(|pair| pair[1].1 - pair[0].1).collect()
        };
        let (one, other) = (gaps(&one), gaps(&other));
        assert!((6..25).contains(&one.len()), "{one:?}");
        assert!(one.iter().all(|gap| *gap >= Duration::from_millis(700)), "{one:?}");
        let last = one.last().unwrap();
        assert!(*last >= Duration::from_millis(BACKOFF_MAX_MS), "it has not helped: {one:?}");
        // one gap of each, in milliseconds, is the same once in a while
        assert_ne!(one, other, "two clients do not come back together");
    }
}
