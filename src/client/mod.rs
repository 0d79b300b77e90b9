//! The client library: what an application uses to take part in groups.
//!
//! [`core`] is one client's state without a network; [`http`] speaks with its provider; [`Client`] is both
//! together: it keeps what is wanted until it is answered, tries again safely, follows its queue, and resyncs
//! where it must. Deliberately absent: anything to show.

pub mod core;
pub mod http;

mod account;
mod connect;
mod groups;
mod queue;
mod requests;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use self::core::{CoreError, Member, Refusal};
use crate::wire::{
    ids::{GroupId, RequestId, Timestamp, UserUri},
    key_packages::KeyPackageStatus,
};
use http::{Caller, Http, HttpError};

pub use account::{Authorization, Registration};
pub use requests::Outcome;

/// Why something was not done. The texts say what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Core(#[from] CoreError),
    #[error(transparent)]
    Http(HttpError),
    #[error("the provider says no: {0}")]
    Refused(#[from] Refusal),
    /// The request is kept and is sent again by [`Client::resume`].
    #[error("no answer yet ({why}); the request is kept and goes on with the next command")]
    Unanswered { request: RequestId, why: String },
    #[error("{0} has not given you a consent token: connect with them first")]
    NotConnected(UserUri),
    #[error("no KeyPackage of {user} can be had: {status:?}")]
    NoKeyPackages { user: UserUri, status: KeyPackageStatus },
    #[error("{0} cannot be reached: no such user, or it has published no connection KeyPackages")]
    Unreachable(UserUri),
    #[error("there is no connection request from {0}")]
    NoRequest(UserUri),
    #[error("no group is called {0:?}; `groups` lists them")]
    NoSuchGroup(String),
    #[error("{name:?} could be any of {matches:?}: say more of it")]
    Ambiguous { name: String, matches: Vec<GroupId> },
    #[error("this client is not registered at a provider")]
    NotRegistered,
    #[error("{0}")]
    Invalid(String),
}

impl From<HttpError> for ClientError {
    fn from(error: HttpError) -> Self {
        if let HttpError::Refused(refused) = error {
            Self::Refused(Refusal(refused))
        } else {
            Self::Http(error)
        }
    }
}

/// Milliseconds since the Unix epoch, as this client's own clock has it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The operating system's clock.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    })
}

/// Where a client's provider is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    pub url: String,
    /// PEM; none: what the system trusts.
    pub certificate: Option<String>,
}

/// A client and the way to its provider. One value may be shared by many tasks; several processes may have the
/// same home open.
pub struct Client {
    /// Each lock is held for one step and never while waiting.
    member: Mutex<Member>,
    http: Http,
    clock: Clock,
    /// One operation at a time, so that answers come in the order of requests.
    operations: tokio::sync::Mutex<()>,
    attempts_max: u32,
}

/// Attempts at one call unless said otherwise: about half a minute.
const ATTEMPTS_MAX: u32 = 12;

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.http.base())
    }
}

impl Client {
    /// The client that lives in `member`'s home and was registered from there.
    ///
    /// # Errors
    /// [`ClientError::NotRegistered`], [`ClientError::Core`], [`ClientError::Http`]
    pub fn open(member: Member, clock: Clock) -> Result<Self, ClientError> {
        let server: Server = member.setting(SERVER)?.ok_or(ClientError::NotRegistered)?;
        if member.setting(REGISTERED)? != Some(true) {
            return Err(ClientError::NotRegistered);
        }
        Self::with_server(member, &server, clock)
    }

    fn with_server(member: Member, server: &Server, clock: Clock) -> Result<Self, ClientError> {
        let http = Http::new(&server.url, server.certificate.as_deref().map(str::as_bytes))?;
        let operations = tokio::sync::Mutex::new(());
        Ok(Self { member: Mutex::new(member), http, clock, operations, attempts_max: ATTEMPTS_MAX })
    }

    /// How often a call is tried before it is left for later: at least once.
    #[must_use]
    pub fn with_attempts(mut self, attempts_max: u32) -> Self {
        self.attempts_max = attempts_max.max(1);
        self
    }

    /// This client's state. Do not hold it while waiting for anything.
    pub fn member(&self) -> MutexGuard<'_, Member> {
        // a step that panicked was rolled back with its transaction
        self.member.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The provider's clock, as far as this client knows it.
    fn now(&self) -> Timestamp {
        let offset: i64 = self.member().setting(CLOCK_OFFSET).ok().flatten().unwrap_or_default();
        Timestamp((self.clock)().0.saturating_add_signed(offset))
    }

    /// Runs one call as this client.
    async fn as_caller<T>(
        &self,
        call: impl AsyncFnOnce(&Http, &Caller<'_>) -> Result<T, HttpError>,
    ) -> Result<T, HttpError> {
        let (client, key) = {
            let member = self.member();
            (member.client().clone(), member.identity().client_key.clone())
        };
        call(&self.http, &Caller { client: &client, key: &key, now: self.now() }).await
    }
}

const SERVER: &str = "server";
const REGISTERED: &str = "registered";
const CLOCK_OFFSET: &str = "clock_offset_ms";
