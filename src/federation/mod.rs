//! Between providers: messages signed for one another, each other's keys, and the way there. PROTOCOL.md §4; TR.
//!
//! [`Federation`] is what the rest of a node sees: [`Federation::request`] goes out, [`Federation::open`] judges what came in.
//! `message`, `replay`, `discovery`, `address`, `own_keys` are pure; `https` is the one file that knows HTTP. Deliberately
//! absent: what the bodies mean (`actors`), and listening (`http`).

pub mod address;
mod call;
pub mod direct;
pub mod discovery;
mod flight;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod https;
pub mod keys;
pub mod message;
mod metrics;
pub mod outbox;
pub mod own_keys;
mod pattern;
pub mod replay;
pub mod roster;
pub mod schedule;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod way;

use std::{
    collections::HashSet,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use keys::{KeyCache, KeyList, Newer};
use message::{MessageError, Outgoing, PURPOSE_EXTERNAL_SENDER, PURPOSE_S2S, Unverified};
use replay::{Judged, Replays};
use tokio::sync::Notify;

use crate::{
    crypto,
    group::RetiredKey,
    wire::{
        client::VerificationKeyResponse,
        decode,
        ds::{Detail, DsError, DsMessage, DsResponse, INFO_BYTES_MAX, REQUEST_BYTES_MAX},
        federation::{EventType, MESSAGE_BYTES_MAX, S2SEndpoint, S2SPayload},
        ids::{Domain, RequestId, Timestamp},
    },
};

pub use call::{CallError, HttpAnswer, Transport};
pub use keys::{KeyLimits, PeerKeysState};
pub use metrics::FederationMetrics;
pub use own_keys::ProviderKey;
pub use pattern::DomainPattern;
pub use replay::ReplayLimits;

/// What time it is.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What is remembered and fetched at most.
#[derive(Debug, Clone, Copy)]
pub struct FederationLimits {
    pub keys: KeyLimits,
    pub replays: ReplayLimits,
    /// How long a repeat waits for the answer of an execution that is under way.
    pub execution_wait: Duration,
}

impl Default for FederationLimits {
    fn default() -> Self {
        Self {
            keys: KeyLimits::default(),
            replays: ReplayLimits::default(),
            execution_wait: Duration::from_secs(10),
        }
    }
}

/// What a [`Federation`] is made of.
pub struct FederationParts {
    /// This provider.
    pub domain: Domain,
    /// Keys that sign between providers: past, present and next ones.
    pub signing: Vec<ProviderKey>,
    /// Keys of this provider as a hub, in groups' `external_senders`.
    pub external_senders: Vec<ProviderKey>,
    pub transport: Arc<dyn Transport>,
    /// None: all that are not denied.
    pub allow: Option<Vec<DomainPattern>>,
    /// Stands over `allow`.
    pub deny: Vec<DomainPattern>,
    pub limits: FederationLimits,
    pub metrics: FederationMetrics,
    pub clock: Clock,
}

/// One provider's dealings with all others. Shared as `Arc<Federation>`.
pub struct Federation {
    domain: Domain,
    own: RwLock<OwnKeys>,
    transport: Arc<dyn Transport>,
    lists: RwLock<Lists>,
    keys: KeyCache,
    replays: Arc<Mutex<Replays>>,
    /// Rung when an execution ends.
    ended: Arc<Notify>,
    execution_wait: Duration,
    metrics: FederationMetrics,
    clock: Clock,
}

/// With whom this provider speaks.
struct Lists {
    allow: Option<Vec<DomainPattern>>,
    deny: Vec<DomainPattern>,
}

struct OwnKeys {
    signing: Vec<ProviderKey>,
    external_senders: Vec<ProviderKey>,
    retired_senders: Vec<RetiredKey>,
}

/// What there is of a list beyond what is known of it.
#[derive(Debug)]
pub enum Anew {
    Keys(VerificationKeyResponse),
    /// Nothing: it is what there is.
    Known,
    /// It was fetched a moment ago, but there may be more by now.
    Later {
        retry_after_ms: u64,
    },
    Failed(CallError),
}

impl Federation {
    #[must_use]
    pub fn new(parts: FederationParts) -> Self {
        let FederationParts { domain, signing, external_senders, transport, allow, deny, .. } =
            parts;
        let FederationLimits { keys, replays, execution_wait } = parts.limits;
        let (clock, metrics) = (parts.clock, parts.metrics);
        let keys = KeyCache::new(Arc::clone(&transport), Arc::clone(&clock), keys, metrics.clone());
        let replays = Arc::new(Mutex::new(Replays::new(replays, clock())));
        let own = RwLock::new(OwnKeys { signing, external_senders, retired_senders: Vec::new() });
        Self {
            domain,
            own,
            transport,
            lists: RwLock::new(Lists { allow, deny }),
            keys,
            replays,
            ended: Arc::default(),
            execution_wait,
            metrics,
            clock,
        }
    }

    /// This provider.
    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Whether this provider speaks with `peer` at all. Never with itself.
    #[must_use]
    pub fn admits(&self, peer: &Domain) -> bool {
        let on = |list: &[DomainPattern]| list.iter().any(|pattern| pattern.matches(peer));
        let Lists { allow, deny } = &*self.lists.read().unwrap_or_else(PoisonError::into_inner);
        *peer != self.domain && !on(deny) && allow.as_ref().is_none_or(|allow| on(allow))
    }

    /// From now on these lists say with whom this provider speaks. What is under way is ended as it began.
    pub fn speak_with(&self, allow: Option<Vec<DomainPattern>>, deny: Vec<DomainPattern>) {
        *self.lists.write().unwrap_or_else(PoisonError::into_inner) = Lists { allow, deny };
    }

    /// What a message that says it is of `peer` has to wait for.
    #[must_use]
    pub fn familiarity(&self, peer: &Domain) -> Familiarity {
        if self.keys.are_known(peer, KeyList::Verification) {
            Familiarity::Known
        } else if self.keys.is_acquainted(peer) {
            Familiarity::Acquainted
        } else {
            Familiarity::Stranger
        }
    }

    /// Names the providers that this one has dealings with, in place of those named before: they are no strangers.
    pub fn acquaint(&self, peers: HashSet<Domain>) {
        self.keys.acquaint(peers);
    }

    /// Signs `body` as `event` for `peer`, posts it to the event's endpoint and gives the body of the answer. A repeat of
    /// one logical request takes the same `request_id` and is signed anew.
    ///
    /// Where the endpoint answers with DSResponses, those that hold an error are answers too, whatever their HTTP status.
    ///
    /// # Errors
    /// [`CallError`]; but for [`CallError::Refused`] and [`CallError::Signing`] the peer may have executed the request.
    pub async fn request(
        &self,
        peer: &Domain,
        event: EventType,
        request_id: RequestId,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, CallError> {
        if !self.admits(peer) {
            return Err(CallError::Refused { domain: peer.clone() });
        }
        let endpoint = event.endpoint();
        let began = Instant::now();
        let outgoing = Outgoing { sender: &self.domain, recipient: peer, event, request_id, body };
        let outcome = match self.seal(outgoing) {
            Ok(message) => {
                let bytes_max = answer_bytes_max(endpoint);
                let answer =
                    self.transport.post(peer, endpoint.path(), message, bytes_max, timeout).await;
                answer.and_then(|answer| answer_body(endpoint, answer))
            }
            Err(error) => Err(error),
        };
        let kind = outcome.as_ref().map_or_else(CallError::kind, |_| "ok");
        self.metrics.called(endpoint, kind, began.elapsed());
        outcome
    }

    fn seal(&self, outgoing: Outgoing<'_>) -> Result<Vec<u8>, CallError> {
        let now = (self.clock)();
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        match own_keys::signing_at(&own.signing, now) {
            Some(key) => message::seal(outgoing, &key.key, now),
            None => Err(CallError::Signing(
                "no s2s key of this provider is in force; `mimid keys list` shows them".to_owned(),
            )),
        }
    }

    /// Judges what came to `endpoint`: whole, for this provider, of a sender that is admitted, fresh, and signed by one of
    /// the sender's keys, which are fetched where they are not known. At most [`MESSAGE_BYTES_MAX`] bytes.
    ///
    /// Of a request that may not be executed twice this is the only [`Opened`] until it is dropped; a repeat waits so long, and
    /// then finds [`Federation::answer_of`] what was [`Federation::remember`]ed.
    ///
    /// # Errors
    /// malformed, unsupported_version, not_authorized, unauthenticated, stale_request; unavailable and rate_limited where the
    /// sender's keys cannot be had now.
    pub async fn open(&self, endpoint: S2SEndpoint, bytes: &[u8]) -> Result<Opened, DsError> {
        match self.judge(endpoint, bytes).await {
            Ok(opened) => {
                self.metrics.received(endpoint, "ok", opened.is_repeat);
                Ok(opened)
            }
            Err(error) => {
                tracing::debug!(endpoint = endpoint.path(), %error, "a message of another provider is refused");
                let error = DsError::from(error);
                self.metrics.received(endpoint, error.name(), false);
                Err(error)
            }
        }
    }

    async fn judge(&self, endpoint: S2SEndpoint, bytes: &[u8]) -> Result<Opened, MessageError> {
        let message = message::read(bytes, endpoint, &self.domain, (self.clock)())?;
        if !self.admits(&message.sender) {
            return Err(MessageError::NotAdmitted(message.sender));
        }
        self.verify(&message).await?;
        let Unverified { sender, event, payload, .. } = message;
        let S2SPayload { timestamp, request_id, body } = payload;
        let body = body.into_vec();
        let hash = if replay::is_once(event) { crypto::sha256(&body) } else { [0; 32] };
        let request =
            replay::Request { sender: &sender, event, id: request_id, signed_at: timestamp, hash };
        let judging = tokio::time::timeout(self.execution_wait, self.judge_repeat(request));
        let judged = judging.await.unwrap_or(Err(MessageError::Executing))?;
        let (is_repeat, once) = match judged {
            Judged::Free { is_repeat } => (is_repeat, Once::Free),
            Judged::Answered(answer) => (true, Once::Answered(answer)),
            Judged::Execute { is_repeat } => {
                let execution = Execution {
                    replays: Arc::clone(&self.replays),
                    ended: Arc::clone(&self.ended),
                    sender: sender.clone(),
                    id: request_id,
                };
                (is_repeat, Once::Execute(execution))
            }
        };
        Ok(Opened { sender, event, request_id, body, is_repeat, once })
    }

    /// What is to be done with a request, once no other of its id is being executed.
    async fn judge_repeat(&self, request: replay::Request<'_>) -> Result<Judged, MessageError> {
        loop {
            // before it is judged, so that no end is missed
            let mut ended = pin!(self.ended.notified());
            ended.as_mut().enable();
            let judged = self.replays().judge(request, (self.clock)());
            match judged {
                Err(MessageError::Executing) => ended.await,
                judged => return judged,
            }
        }
    }

    async fn verify(&self, message: &Unverified) -> Result<(), MessageError> {
        let sender = &message.sender;
        let no_keys = |error: &CallError| MessageError::NoKeys {
            domain: sender.clone(),
            why: error.kind().to_owned(),
            retry_after_ms: self
                .keys
                .retry_after_ms(sender, KeyList::Verification)
                .map_or(RETRY_KEYS_MS, |ms| ms.max(1)),
        };
        let keys = self.keys.get(sender, KeyList::Verification).await;
        let keys = keys.map_err(|error| no_keys(&error))?;
        if message.is_signed_by(keys.s2s()) {
            return Ok(());
        }
        match self.keys.newer(sender, KeyList::Verification, &keys).await {
            Newer::Keys(newer) if message.is_signed_by(newer.s2s()) => Ok(()),
            Newer::Keys(_) => Err(MessageError::Signature(sender.clone())),
            Newer::Failed(error) => Err(no_keys(&error)),
            // a key that is younger than what is known of them would have signed later
            Newer::Later { .. } if message.payload.timestamp <= keys.fetched_at => {
                Err(MessageError::Signature(sender.clone()))
            }
            Newer::Later { retry_after_ms } => {
                Err(MessageError::KeysTooOld { domain: sender.clone(), retry_after_ms })
            }
        }
    }

    /// What `peer` publishes at `/verification_key`, as it may be used now. This provider's own for its own domain.
    ///
    /// # Errors
    /// [`CallError`]
    pub async fn keys_of(&self, peer: &Domain) -> Result<VerificationKeyResponse, CallError> {
        if *peer == self.domain {
            return Ok(self.verification_keys());
        }
        self.list_of(peer, KeyList::Verification).await
    }

    /// What `peer` publishes at `/signature_key`: its keys for `external_senders`.
    ///
    /// # Errors
    /// [`CallError`]
    pub async fn external_senders_of(
        &self,
        peer: &Domain,
    ) -> Result<VerificationKeyResponse, CallError> {
        if *peer == self.domain {
            return Ok(self.signature_keys());
        }
        self.list_of(peer, KeyList::Signature).await
    }

    /// The same, fetched anew where `known` did not help, unless it is not of before `asked_at`.
    pub async fn newer_external_senders_of(
        &self,
        peer: &Domain,
        known: &VerificationKeyResponse,
        asked_at: Timestamp,
    ) -> Anew {
        if *peer == self.domain || !self.admits(peer) {
            return Anew::Known;
        }
        let keys = match self.keys.get(peer, KeyList::Signature).await {
            Ok(keys) => keys,
            Err(error) => return Anew::Failed(error),
        };
        if keys.response != *known {
            return Anew::Keys(keys.response.clone());
        }
        if keys.fetched_at >= asked_at {
            return Anew::Known;
        }
        match self.keys.newer(peer, KeyList::Signature, &keys).await {
            Newer::Keys(newer) => Anew::Keys(newer.response.clone()),
            Newer::Failed(error) => Anew::Failed(error),
            Newer::Later { retry_after_ms } => Anew::Later { retry_after_ms },
        }
    }

    async fn list_of(
        &self,
        peer: &Domain,
        list: KeyList,
    ) -> Result<VerificationKeyResponse, CallError> {
        if !self.admits(peer) {
            return Err(CallError::Refused { domain: peer.clone() });
        }
        Ok(self.keys.get(peer, list).await?.response.clone())
    }

    /// What this provider publishes at `/verification_key`.
    #[must_use]
    pub fn verification_keys(&self) -> VerificationKeyResponse {
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        own_keys::published(&self.domain, &own.signing, PURPOSE_S2S, (self.clock)())
    }

    /// What this provider publishes at `/signature_key`.
    #[must_use]
    pub fn signature_keys(&self) -> VerificationKeyResponse {
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        let senders = &own.external_senders;
        let (now, purpose) = ((self.clock)(), PURPOSE_EXTERNAL_SENDER);
        let response = own_keys::published(&self.domain, senders, purpose, now);
        own_keys::with_retired(response, &own.retired_senders, purpose)
    }

    /// Puts other s2s keys into the place of those that sign and are published.
    pub fn replace_keys(&self, signing: Vec<ProviderKey>) {
        self.own.write().unwrap_or_else(PoisonError::into_inner).signing = signing;
    }

    /// Puts other keys into the place of those that are published for `external_senders`.
    pub fn replace_external_senders(&self, keys: Vec<ProviderKey>) {
        self.own.write().unwrap_or_else(PoisonError::into_inner).external_senders = keys;
    }

    /// Puts other keys into the place of those that are published for what they signed before.
    pub fn replace_retired_senders(&self, keys: Vec<RetiredKey>) {
        self.own.write().unwrap_or_else(PoisonError::into_inner).retired_senders = keys;
    }

    /// The answer that a repeat gets; none for what is to be executed.
    #[must_use]
    pub fn answer_of(&self, opened: &Opened) -> Option<Vec<u8>> {
        match &opened.once {
            Once::Answered(answer) => Some(answer.to_vec()),
            Once::Free | Once::Execute(_) => None,
        }
    }

    /// Keeps `answer` for repeats of a request that may not be executed twice; of others, nothing. Errors are not kept:
    /// a repeat of what failed is executed.
    pub fn remember(&self, opened: &Opened, answer: &[u8]) {
        match &opened.once {
            Once::Execute(execution) => execution.finish(answer),
            Once::Free | Once::Answered(_) => {}
        }
    }

    /// What is known of others' keys.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerKeysState> {
        self.keys.states()
    }

    /// Forgets what is over, and brings the gauges up to date: to be called every minute or so.
    pub fn sweep(&self) {
        let (ids, bytes) = {
            let mut replays = self.replays();
            replays.expire_all((self.clock)());
            replays.held()
        };
        self.metrics.replay_ids.set(i64::try_from(ids).unwrap_or(i64::MAX));
        self.metrics.replay_answer_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    fn replays(&self) -> MutexGuard<'_, Replays> {
        self.replays.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How well a provider is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Familiarity {
    /// Its keys are at hand: its messages can be judged without asking it anything first.
    Known,
    /// This provider has dealings with it, and its keys are still to be fetched.
    Acquainted,
    Stranger,
}

/// A message of another provider that is what it says.
#[derive(Debug)]
pub struct Opened {
    pub sender: Domain,
    pub event: EventType,
    pub request_id: RequestId,
    pub body: Vec<u8>,
    /// The sender used this id within ten minutes.
    pub is_repeat: bool,
    once: Once,
}

/// Whether a request may be executed more than once, and was.
#[derive(Debug)]
enum Once {
    Free,
    /// Now, by who holds this.
    Execute(Execution),
    Answered(Arc<[u8]>),
}

impl Opened {
    /// One that nobody signed: for rules that are checked without a network.
    #[cfg(test)]
    #[must_use]
    pub fn unsigned(
        sender: Domain,
        event: EventType,
        request_id: RequestId,
        body: Vec<u8>,
    ) -> Self {
        Self { sender, event, request_id, body, is_repeat: false, once: Once::Free }
    }

    /// The DSMessage that the body is.
    ///
    /// # Errors
    /// malformed, also where the event is another request's.
    pub fn ds_message(&self) -> Result<DsMessage, DsError> {
        let malformed = |text: &str| DsError::Malformed { detail: Detail::truncated(text) };
        let message: DsMessage =
            decode(&self.body).map_err(|error| malformed(&error.to_string()))?;
        let of_body = EventType::of(&message.request);
        if of_body == self.event {
            return Ok(message);
        }
        let (said, is) = (self.event.name(), of_body.name());
        Err(malformed(&format!("the event says {said}, and the request is {is}")))
    }
}

/// Ends with the request: what was not answered by then failed.
#[derive(Debug)]
struct Execution {
    replays: Arc<Mutex<Replays>>,
    ended: Arc<Notify>,
    sender: Domain,
    id: RequestId,
}

impl Execution {
    fn finish(&self, answer: &[u8]) {
        self.replays().finish(&self.sender, self.id, answer);
    }

    fn replays(&self) -> MutexGuard<'_, Replays> {
        self.replays.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        self.replays().abandon(&self.sender, self.id);
        self.ended.notify_waiters();
    }
}

/// The body of an answer, or the error that it is.
fn answer_body(endpoint: S2SEndpoint, answer: HttpAnswer) -> Result<Vec<u8>, CallError> {
    // a ClientResponse that is an error begins with its status, a DSResponse with a version: they cannot be mistaken
    let is_answer = answer.status == 200
        || (endpoint.answers_ds_response() && decode::<DsResponse>(&answer.body).is_ok());
    if is_answer { Ok(answer.body) } else { Err(answer.into_error()) }
}

/// The most that an answer may take.
fn answer_bytes_max(endpoint: S2SEndpoint) -> usize {
    match endpoint {
        S2SEndpoint::WelcomeInformation | S2SEndpoint::ExternalCommitInformation => {
            INFO_BYTES_MAX + 65_536
        }
        // errors carry the messages that their sender missed, or those that are pending
        S2SEndpoint::GroupOperation => REQUEST_BYTES_MAX + 65_536,
        S2SEndpoint::DeliverMessage
        | S2SEndpoint::ConnectionKeyPackages
        | S2SEndpoint::GroupKeyPackages
        | S2SEndpoint::MigrationRequest
        | S2SEndpoint::MigrationContent => MESSAGE_BYTES_MAX,
        S2SEndpoint::SignatureKey
        | S2SEndpoint::VerificationKey
        | S2SEndpoint::ConnectionRequest
        | S2SEndpoint::Complaint => 65_536,
    }
}

/// When a sender may come again whose keys are not even asked for now.
const RETRY_KEYS_MS: u64 = 60_000;
