//! The client library: what an application uses to take part in groups.
//!
//! [`core`] is one client's state without a network; [`http`] speaks with its provider; [`Client`] is both
//! together: it keeps what is wanted until it is answered, tries again safely, follows its queue, and resyncs
//! where it must. Deliberately absent: anything to show.

pub mod core;
pub mod http;

mod account;
mod complain;
mod connect;
mod groups;
mod queue;
mod requests;
mod turns;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use self::{
    core::{CoreError, Member, Refusal},
    turns::Turns,
};
use crate::wire::{
    ids::{Domain, GroupId, RequestId, Timestamp, UserUri},
    key_packages::KeyPackageStatus,
};
use http::{Caller, Http, HttpError};

pub use account::{Authorization, Registration};
pub(crate) use groups::hub_key;
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
    #[error("no answer yet ({why}); the request is kept: `resume` goes on with it or drops it")]
    Unanswered { request: RequestId, why: String },
    /// Another task or process of this home went on with the request, and gave it up.
    #[error("{0}")]
    GivenUp(String),
    #[error(
        "the request was answered in between, and what came of it is not known here any more: look whether it is so"
    )]
    AnswerForgotten(RequestId),
    #[error("{0} has not given you consent: `connect` with them first")]
    NotConnected(UserUri),
    #[error("{user} cannot be added: {}", no_key_package(*status))]
    NoKeyPackages { user: UserUri, status: KeyPackageStatus },
    /// A consent token is for one user: it is not said where others listen.
    #[error("{from} offers a group that has others in it than you two: no consent was given")]
    NotOfTwo { from: UserUri, group: GroupId },
    #[error("{0} cannot be reached: no such user, or it has published no connection KeyPackages")]
    Unreachable(UserUri),
    #[error(
        "{target} does not take the group ({why}); nothing has changed: ask who runs it, or name another provider"
    )]
    NotTaken { target: Domain, why: String },
    #[error(
        "{group} is changed by others all the time and was not moved; try again when it is quieter"
    )]
    NotMoved { group: GroupId },
    #[error("there is no connection request from {0}")]
    NoRequest(UserUri),
    #[error("no group is called {0:?}; `groups` lists them")]
    NoSuchGroup(String),
    #[error(
        "{name:?} could be any of these groups; say the first digits of its id instead: {}",
        listed(matches)
    )]
    Ambiguous { name: String, matches: Vec<GroupId> },
    #[error("this client is not registered at a provider yet: `register` goes on with it")]
    NotRegistered,
    #[error("{0}")]
    Invalid(String),
}

fn no_key_package(status: KeyPackageStatus) -> &'static str {
    match status {
        KeyPackageStatus::NoConsent => {
            "they have not given you consent, or took it back: `connect` with them first"
        }
        KeyPackageStatus::Incompatible => "none of their devices can be in a group like this",
        KeyPackageStatus::NoneLeft | KeyPackageStatus::Ok => {
            "their devices have no KeyPackage left until they are online again"
        }
    }
}

fn listed(groups: &[GroupId]) -> String {
    // as `groups` shows them
    let digits = |id: &GroupId| {
        let tail = id.as_str().rsplit('/').next().unwrap_or_default();
        format!("{} ({id})", tail.get(..8).unwrap_or(tail))
    };
    groups.iter().map(digits).collect::<Vec<_>>().join(", ")
}

impl ClientError {
    /// Whether it may go well later as it is: the provider is out of reach or asks to wait.
    #[must_use]
    pub fn passes(&self) -> bool {
        match self {
            Self::Unanswered { .. } => true,
            Self::Http(error) => error.passes().is_some(),
            Self::Refused(Refusal(error)) => http::retry_after_ms(error).is_some(),
            Self::Core(_)
            | Self::GivenUp(_)
            | Self::AnswerForgotten(_)
            | Self::NotConnected(_)
            | Self::NoKeyPackages { .. }
            | Self::NotOfTwo { .. }
            | Self::Unreachable(_)
            | Self::NotTaken { .. }
            | Self::NotMoved { .. }
            | Self::NoRequest(_)
            | Self::NoSuchGroup(_)
            | Self::Ambiguous { .. }
            | Self::NotRegistered
            | Self::Invalid(_) => false,
        }
    }
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
    /// One operation of a group at a time, so that its answers come in the order of its requests. A hub that is out
    /// of reach holds up its own groups and no others.
    turns: Turns,
    patience: Duration,
    /// Requests that are not gone on with in passing before then: somebody waits for them, or they had no answer
    /// a moment ago.
    not_before: Mutex<HashMap<RequestId, tokio::time::Instant>>,
}

/// How long an answer is tried for unless said otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

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
        Ok(Self {
            member: Mutex::new(member),
            http,
            clock,
            turns: Turns::default(),
            patience: PATIENCE,
            not_before: Mutex::default(),
        })
    }

    /// How long a call, or a request with all that it takes, is tried before it is left for later. It is tried
    /// once in any case.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Ends it, as the end of its process does.
    #[cfg(test)]
    pub(crate) fn into_home(self) -> core::Home {
        self.member.into_inner().unwrap_or_else(PoisonError::into_inner).into_home()
    }

    /// This client's state. Do not hold it while waiting for anything.
    pub fn member(&self) -> MutexGuard<'_, Member> {
        // a step that panicked was rolled back with its transaction
        self.member.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A user as people of this client's provider write it: `bob`, and `bob@b.example` where it is another's.
    #[must_use]
    pub fn short_name(&self, user: &UserUri) -> String {
        let domain = user.domain();
        if domain == self.member().client().domain() {
            return user.name().to_owned();
        }
        format!("{}@{domain}", user.name())
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
