//! The keys that other providers publish, as this one knows them: fetched when they are needed, kept as long as their
//! provider says and within bounds. PROTOCOL.md §4, both key endpoints; TR 5.1, 5.5.
//!
//! A flood of forged senders costs little: a list of a domain is fetched at most once a minute, concurrent fetches of one
//! are one, and only so many are under way at once; strangers and providers that are known, or
//! that this one has dealings with, do not take each other's share. Where nobody is there to answer the next fetch comes
//! sooner, and each time less so, up to the minute: who is being started is found at once, who stays away costs no more. Beyond the bounds the domain that is longest unused is
//! forgotten, those without keys first.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use tokio::sync::Semaphore;

use crate::wire::{
    client::{VerificationKey, VerificationKeyResponse},
    decode,
    ds::ProtocolVersion,
    federation::S2SEndpoint,
    ids::{Domain, Timestamp},
};

use super::{
    CallError, Clock, Transport, flight::Flight, flight::Flights, message::PURPOSE_S2S,
    metrics::FederationMetrics,
};

/// Which of the two lists of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyList {
    /// `/verification_key`: what signs between providers, and authentication service roots.
    Verification,
    /// `/signature_key`: what stands in `external_senders`.
    Signature,
}

impl KeyList {
    fn endpoint(self) -> S2SEndpoint {
        match self {
            Self::Verification => S2SEndpoint::VerificationKey,
            Self::Signature => S2SEndpoint::SignatureKey,
        }
    }
}

/// How much is kept of others' keys, and how eagerly they are fetched.
#[derive(Debug, Clone, Copy)]
pub struct KeyLimits {
    /// Lists of keys, known and failed.
    pub lists_max: usize,
    pub bytes_max: usize,
    pub lifetime_min_ms: u64,
    pub lifetime_max_ms: u64,
    /// Between two fetches of one list.
    pub fetch_every_ms: u64,
    /// The same after the first that found nobody there; it doubles with each that does so, up to `fetch_every_ms`.
    pub unreached_first_ms: u64,
    /// Under way at once: of strangers, and as many of providers with known keys and acquaintances.
    pub fetches_max: usize,
    pub fetch_timeout: Duration,
}

impl Default for KeyLimits {
    fn default() -> Self {
        Self {
            lists_max: 8192,
            bytes_max: 32 * 1024 * 1024,
            lifetime_min_ms: 60 * 1000,
            lifetime_max_ms: 24 * 3600 * 1000,
            fetch_every_ms: 60 * 1000,
            unreached_first_ms: 1000,
            fetches_max: 64,
            fetch_timeout: Duration::from_secs(10),
        }
    }
}

/// What a provider published.
#[derive(Debug)]
pub struct KnownKeys {
    pub response: VerificationKeyResponse,
    pub fetched_at: Timestamp,
    /// Not to be used later.
    pub good_until: Timestamp,
    bytes: usize,
}

impl KnownKeys {
    /// Those that may sign between providers.
    pub fn s2s(&self) -> impl Iterator<Item = &VerificationKey> {
        self.response.keys.iter().filter(|key| key.purpose.as_slice() == PURPOSE_S2S)
    }
}

/// Keys anew, or why there is no looking now.
#[derive(Debug)]
pub enum Newer {
    Keys(Arc<KnownKeys>),
    Failed(CallError),
    /// They were fetched a moment ago.
    Later {
        retry_after_ms: u64,
    },
}

/// What is known of one list of one provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerKeysState {
    pub domain: Domain,
    pub list: KeyList,
    /// None where no fetch succeeded yet or what it gave is over.
    pub keys: Option<usize>,
    pub good_until: Option<Timestamp>,
    pub attempted_at: Timestamp,
    /// Of the last attempt.
    pub failure: Option<String>,
}

/// Clones are the same cache.
#[derive(Clone)]
pub struct KeyCache(Arc<Shared>);

struct Shared {
    transport: Arc<dyn Transport>,
    clock: Clock,
    limits: KeyLimits,
    metrics: FederationMetrics,
    known: Mutex<Known>,
    flights: Flights<Key, Result<Arc<KnownKeys>, CallError>>,
    strangers: Arc<Semaphore>,
    acquainted: Arc<Semaphore>,
    /// Providers that are no strangers although their keys may not be known.
    acquaintances: RwLock<HashSet<Domain>>,
}

type Key = (Domain, KeyList);

#[derive(Default)]
struct Known {
    lists: HashMap<Key, Entry>,
    bytes: usize,
}

struct Entry {
    keys: Option<Arc<KnownKeys>>,
    attempted_at: Timestamp,
    used_at: Timestamp,
    failure: Option<CallError>,
    /// Fetches in a row that found nobody there.
    unreached: u32,
}

impl KeyCache {
    #[must_use]
    pub fn new(
        transport: Arc<dyn Transport>,
        clock: Clock,
        limits: KeyLimits,
        metrics: FederationMetrics,
    ) -> Self {
        let fetches = || Arc::new(Semaphore::new(limits.fetches_max));
        Self(Arc::new(Shared {
            transport,
            clock,
            limits,
            metrics,
            known: Mutex::default(),
            flights: Flights::default(),
            strangers: fetches(),
            acquainted: fetches(),
            acquaintances: RwLock::default(),
        }))
    }

    /// Puts others into the place of those who are no strangers. The caller bounds them.
    pub fn acquaint(&self, peers: HashSet<Domain>) {
        *self.0.acquaintances.write().unwrap_or_else(PoisonError::into_inner) = peers;
    }

    #[must_use]
    pub fn is_acquainted(&self, domain: &Domain) -> bool {
        self.0.acquaintances.read().unwrap_or_else(PoisonError::into_inner).contains(domain)
    }

    /// The keys of `domain`, fetched where they are not known. In the last quarter of their time they are fetched again
    /// beside, so that a peer that is down for a while does no harm.
    ///
    /// # Errors
    /// Of the fetch; for as long as [`KeyCache::retry_after_ms`] says after one that failed, its error again.
    pub async fn get(&self, domain: &Domain, list: KeyList) -> Result<Arc<KnownKeys>, CallError> {
        let flight = {
            let now = (self.0.clock)();
            let mut known = self.known();
            let entry = known.lists.get_mut(&(domain.clone(), list));
            let may_fetch = entry.as_ref().is_none_or(|entry| self.wait_ms(entry, now) == 0);
            let (keys, failure) = entry.map_or((None, None), |entry| {
                entry.used_at = now;
                (entry.keys.clone(), entry.failure.clone())
            });
            match keys.filter(|keys| now <= keys.good_until) {
                Some(keys) => {
                    if may_fetch && is_nearly_over(&keys, now) {
                        // its outcome is the next one's to see
                        let _ = self.depart(&mut known, domain, list, now);
                    }
                    return Ok(keys);
                }
                None => match self.0.flights.running(&(domain.clone(), list)) {
                    Some(flight) => flight,
                    None if may_fetch => self.depart(&mut known, domain, list, now)?,
                    None => return Err(failure.unwrap_or_else(over_and_limited)),
                },
            }
        };
        flight.landed().await.unwrap_or_else(broken_off)
    }

    /// Whether a list is at hand: then [`KeyCache::get`] waits for nobody.
    #[must_use]
    pub fn are_known(&self, domain: &Domain, list: KeyList) -> bool {
        let (now, known) = ((self.0.clock)(), self.known());
        let entry = known.lists.get(&(domain.clone(), list));
        entry.and_then(|entry| entry.keys.as_ref()).is_some_and(|keys| now <= keys.good_until)
    }

    /// How long until a list may be fetched again; none where no fetch of it was tried.
    #[must_use]
    pub fn retry_after_ms(&self, domain: &Domain, list: KeyList) -> Option<u64> {
        let (now, known) = ((self.0.clock)(), self.known());
        known.lists.get(&(domain.clone(), list)).map(|entry| self.wait_ms(entry, now))
    }

    /// The keys of `domain` as they are now, where `than` did not help.
    pub async fn newer(&self, domain: &Domain, list: KeyList, than: &KnownKeys) -> Newer {
        let flight = {
            let now = (self.0.clock)();
            let mut known = self.known();
            let key = (domain.clone(), list);
            let entry = known.lists.get(&key);
            if let Some(keys) = entry.and_then(|entry| entry.keys.as_ref())
                && keys.fetched_at > than.fetched_at
            {
                return Newer::Keys(Arc::clone(keys));
            }
            let retry_after_ms = entry.map_or(0, |entry| self.wait_ms(entry, now));
            match self.0.flights.running(&key) {
                Some(flight) => flight,
                None if retry_after_ms > 0 => return Newer::Later { retry_after_ms },
                None => match self.depart(&mut known, domain, list, now) {
                    Ok(flight) => flight,
                    Err(error) => return Newer::Failed(error),
                },
            }
        };
        match flight.landed().await.unwrap_or_else(broken_off) {
            Ok(keys) => Newer::Keys(keys),
            Err(error) => Newer::Failed(error),
        }
    }

    /// What is known, by domain.
    #[must_use]
    pub fn states(&self) -> Vec<PeerKeysState> {
        let now = (self.0.clock)();
        let mut states: Vec<PeerKeysState> = self
            .known()
            .lists
            .iter()
            .map(|((domain, list), entry)| {
                let keys = entry.keys.as_ref().filter(|keys| now <= keys.good_until);
                PeerKeysState {
                    domain: domain.clone(),
                    list: *list,
                    keys: keys.map(|keys| keys.response.keys.len()),
                    good_until: keys.map(|keys| keys.good_until),
                    attempted_at: entry.attempted_at,
                    failure: entry.failure.as_ref().map(ToString::to_string),
                }
            })
            .collect();
        states.sort_by(|a, b| (&a.domain, a.list).cmp(&(&b.domain, b.list)));
        states
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long until `entry` may be fetched again.
    fn wait_ms(&self, entry: &Entry, now: Timestamp) -> u64 {
        if entry.attempted_at > now {
            // the clock was set back
            return 0;
        }
        let KeyLimits { fetch_every_ms, unreached_first_ms, .. } = self.0.limits;
        let every_ms = match entry.unreached {
            0 => fetch_every_ms,
            times => {
                let doublings = times.saturating_sub(1).min(MAX_DOUBLINGS);
                unreached_first_ms.saturating_mul(1 << doublings).min(fetch_every_ms)
            }
        };
        every_ms.saturating_sub(now.ms_since(entry.attempted_at))
    }

    /// Takes note of the attempt, then starts it.
    fn depart(
        &self,
        known: &mut Known,
        domain: &Domain,
        list: KeyList,
        now: Timestamp,
    ) -> Result<Flight<Result<Arc<KnownKeys>, CallError>>, CallError> {
        let key = (domain.clone(), list);
        let is_known = known.lists.get(&key).is_some_and(|entry| entry.keys.is_some());
        let share = if is_known || self.is_acquainted(domain) {
            &self.0.acquainted
        } else {
            &self.0.strangers
        };
        let Ok(permit) = Arc::clone(share).try_acquire_owned() else {
            self.0.metrics.key_fetch(list, "busy");
            return Err(CallError::Unreachable("too many keys are being fetched".to_owned()));
        };
        match known.lists.get_mut(&key) {
            Some(entry) => entry.attempted_at = now,
            None => {
                known.make_room(self.0.limits.lists_max);
                let entry = Entry {
                    keys: None,
                    attempted_at: now,
                    used_at: now,
                    failure: None,
                    unreached: 0,
                };
                known.lists.insert(key.clone(), entry);
            }
        }
        let cache = self.clone();
        Ok(self.0.flights.start(key.clone(), async move {
            let _permit = permit;
            cache.fetch(key).await
        }))
    }

    async fn fetch(&self, key: Key) -> Result<Arc<KnownKeys>, CallError> {
        let (domain, list) = &key;
        let Shared { transport, limits, metrics, clock, .. } = &*self.0;
        let path = list.endpoint().path();
        let answer = transport.get(domain, path, LIST_BYTES_MAX, limits.fetch_timeout).await;
        let now = clock();
        let judged = answer.and_then(|answer| match answer.status {
            200 => judge(&answer.body, domain, now, limits),
            _ => Err(answer.into_error()),
        });
        metrics.key_fetch(*list, judged.as_ref().map_or_else(CallError::kind, |_| "ok"));
        let mut known = self.known();
        match judged {
            Ok(keys) => {
                let keys = Arc::new(keys);
                known.learn(key, Arc::clone(&keys), limits.bytes_max);
                Ok(keys)
            }
            Err(error) => {
                tracing::debug!(peer = %domain, path, %error, "keys cannot be fetched");
                if let Some(entry) = known.lists.get_mut(&key) {
                    // who answers, late or badly, is there, and is not to be asked more often
                    let is_there = !matches!(error, CallError::Unreachable(_));
                    entry.unreached = if is_there { 0 } else { entry.unreached.saturating_add(1) };
                    // from when that was found: finding it may take longer than the wait
                    entry.attempted_at = entry.attempted_at.max(now);
                    entry.failure = Some(error.clone());
                }
                Err(error)
            }
        }
    }
}

impl Known {
    fn learn(&mut self, key: Key, keys: Arc<KnownKeys>, bytes_max: usize) {
        // gone where it had to make room meanwhile
        let Some(entry) = self.lists.get_mut(&key) else { return };
        self.bytes += keys.bytes;
        let before = entry.keys.replace(keys);
        (entry.failure, entry.unreached) = (None, 0);
        self.bytes -= before.map_or(0, |keys| keys.bytes);
        while self.bytes > bytes_max {
            let others =
                self.lists.iter().filter(|(other, entry)| **other != key && entry.keys.is_some());
            let Some(oldest) = others.min_by_key(|(_, entry)| entry.used_at) else { break };
            let oldest = oldest.0.clone();
            self.forget(&oldest);
        }
    }

    fn make_room(&mut self, lists_max: usize) {
        while self.lists.len() >= lists_max.max(1) {
            let oldest = self
                .lists
                .iter()
                .min_by_key(|(_, entry)| (entry.keys.is_some(), entry.used_at))
                .map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            self.forget(&oldest);
        }
    }

    fn forget(&mut self, key: &Key) {
        let keys = self.lists.remove(key).and_then(|entry| entry.keys);
        self.bytes -= keys.map_or(0, |keys| keys.bytes);
    }
}

/// What `domain` answered, if it is about `domain` and within its bounds.
fn judge(
    body: &[u8],
    domain: &Domain,
    now: Timestamp,
    limits: &KeyLimits,
) -> Result<KnownKeys, CallError> {
    let bad = |what: String| CallError::BadAnswer(what);
    let response: VerificationKeyResponse = decode(body).map_err(|error| bad(error.to_string()))?;
    if response.version != ProtocolVersion::MIMI10 {
        return Err(bad(format!("keys in version {}", response.version.0)));
    }
    if response.domain != *domain {
        return Err(bad(format!("the keys are those of {}", response.domain)));
    }
    let lifetime = response.cache_until.ms_since(now);
    let lifetime = lifetime.clamp(limits.lifetime_min_ms, limits.lifetime_max_ms);
    let known = KnownKeys {
        response,
        fetched_at: now,
        good_until: now.plus_ms(lifetime),
        bytes: body.len(),
    };
    // each message of that provider may be checked with all of them
    match known.s2s().count() {
        0..=S2S_KEYS_MAX => Ok(known),
        many => Err(bad(format!("{many} s2s keys, more than {S2S_KEYS_MAX}"))),
    }
}

fn is_nearly_over(keys: &KnownKeys, now: Timestamp) -> bool {
    keys.good_until.ms_since(now) < keys.good_until.ms_since(keys.fetched_at) / 4
}

fn over_and_limited() -> CallError {
    CallError::Unreachable("its keys were fetched a moment ago, and are over".to_owned())
}

fn broken_off<T>() -> Result<T, CallError> {
    Err(CallError::Unreachable("the fetch of its keys was broken off".to_owned()))
}

/// What a list may take: VerificationKeyResponse's own bound and what is around it.
const LIST_BYTES_MAX: usize = 256 * 1024 + 512;
const S2S_KEYS_MAX: usize = 16;
/// Past any wait that is configured.
const MAX_DOUBLINGS: u32 = 16;
