//! How what the layers below refuse becomes what the protocol says.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use super::hints::locked;
use crate::{
    account::Refusal,
    crypto,
    group::Reject,
    key_package::publish::{KeyPackageProblem, TooMany},
    queue::{state::AckProblem, token::TokenProblem},
    store::StoreError,
    wire::{
        codec::{List, Opaque, Text},
        ds::{Detail, DsError, ProtocolVersion},
    },
};

pub(crate) fn detail(text: impl std::fmt::Display) -> Detail {
    Detail::truncated(&text.to_string())
}

/// What failed inside is for the log; the requester may try again.
pub(crate) fn of_store(error: StoreError) -> DsError {
    match error {
        StoreError::Conflict { .. } => unavailable("somebody else changed the same; try again"),
        StoreError::Busy => unavailable("the store is busy; try again"),
        StoreError::Unavailable(reason) => {
            if SAID.is_due() {
                tracing::error!(%reason, "the store failed; requests that meet it are refused");
            }
            unavailable("the store is out of reach; try again")
        }
        StoreError::Full(reason) => {
            tracing::debug!(%reason, "refused a write: the disk is nearly full");
            no_room()
        }
        // the log, /readyz and a metric have said it
        StoreError::ReadOnly(reason) => {
            tracing::debug!(%reason, "refused a write: the store is read-only");
            unavailable("the provider takes no changes now; try again later")
        }
        // it is in the log once, by the same reference
        StoreError::Corrupt { .. } => {
            let reference = error.reference();
            tracing::debug!(%error, %reference, "refused for a damaged record");
            damaged(&reference)
        }
    }
}

/// What concerns every request is not logged for each of them.
struct Seldom(Mutex<Option<Instant>>);

static SAID: Seldom = Seldom(Mutex::new(None));

impl Seldom {
    fn is_due(&self) -> bool {
        let mut last = locked(&self.0);
        let is_due = last.is_none_or(|last| last.elapsed() >= SELDOM);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}

const SELDOM: Duration = Duration::from_secs(10);

pub(crate) fn unavailable(text: &str) -> DsError {
    DsError::Unavailable { detail: detail(text), retry_after_ms: RETRY_AFTER_MS }
}

pub(crate) fn no_room() -> DsError {
    DsError::Unavailable {
        detail: detail(
            "this provider's disk is nearly full: it takes nothing new until there is room; try again later",
        ),
        retry_after_ms: NO_ROOM_RETRY_MS,
    }
}

/// Who asks need do nothing but try again: it goes on when the operator has restored what is damaged.
pub(crate) fn damaged(reference: &str) -> DsError {
    DsError::Unavailable {
        detail: detail(format_args!(
            "a stored record of this provider is damaged; its operator has to restore it (reference {reference})"
        )),
        retry_after_ms: DAMAGED_RETRY_MS,
    }
}

/// Whether `error` is a fault of what is stored, which does not pass by itself.
pub(crate) fn is_damage(error: &DsError) -> bool {
    if let DsError::Unavailable { retry_after_ms, .. } = error {
        return *retry_after_ms == DAMAGED_RETRY_MS;
    }
    matches!(error, DsError::Internal { .. })
}

pub(crate) fn rate_limited(text: &str, retry_after_ms: u64) -> DsError {
    DsError::RateLimited { detail: detail(text), retry_after_ms }
}

pub(crate) fn unauthenticated(text: &str) -> DsError {
    DsError::Unauthenticated { detail: detail(text) }
}

pub(crate) fn not_authorized(text: impl std::fmt::Display) -> DsError {
    DsError::NotAuthorized { detail: detail(text) }
}

pub(crate) fn malformed(text: impl std::fmt::Display) -> DsError {
    DsError::Malformed { detail: detail(text) }
}

/// A fault of ours. The requester gets a reference to find `reason` in the log by.
pub(crate) fn internal(reason: impl std::fmt::Display) -> DsError {
    let reference = hex::encode(crypto::random::<8>());
    tracing::error!(%reference, %reason, "internal error");
    DsError::Internal {
        detail: detail("a fault of this provider"),
        reference: Text::truncated(&reference),
    }
}

pub(crate) fn of_ack(problem: AckProblem) -> DsError {
    match problem {
        AckProblem::Beyond { .. } | AckProblem::UnknownFeed(_) => malformed(problem),
    }
}

pub(crate) fn of_registration(refusal: &Refusal) -> DsError {
    match refusal {
        Refusal::BadName | Refusal::Scheme(_) | Refusal::Credential(_) => malformed(refusal),
        Refusal::OtherClient(_) | Refusal::UserKey => unauthenticated(&refusal.to_string()),
        Refusal::ForeignUser(_)
        | Refusal::Closed
        | Refusal::Token
        | Refusal::AnotherUserKey
        | Refusal::UserGone
        | Refusal::DeviceGone
        | Refusal::DeviceTaken
        | Refusal::TooManyDevices(_) => not_authorized(refusal),
    }
}

pub(crate) fn of_key_package(index: usize, problem: &KeyPackageProblem) -> DsError {
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    DsError::InvalidKeyPackage { detail: detail(problem), index }
}

pub(crate) fn of_too_many(problem: TooMany) -> DsError {
    DsError::TooLarge { detail: detail(problem), limit: problem.limit as u64 }
}

pub(crate) fn too_large(text: &str, limit: usize) -> DsError {
    DsError::TooLarge { detail: detail(text), limit: limit as u64 }
}

pub(crate) fn of_token(problem: TokenProblem) -> DsError {
    not_authorized(problem)
}

/// The one place where a group's refusal becomes a status.
pub(crate) fn of_reject(reject: Reject) -> DsError {
    let detail = Detail::truncated(&reject.to_string());
    match reject {
        Reject::Malformed(_) => DsError::Malformed { detail },
        Reject::UnsupportedVersion => DsError::UnsupportedVersion {
            detail,
            versions: List::new(vec![ProtocolVersion::MIMI10]).unwrap_or_default(),
        },
        Reject::Unauthenticated(_) => DsError::Unauthenticated { detail },
        Reject::NotAuthorized(_) => DsError::NotAuthorized { detail },
        Reject::NotFound => DsError::GroupNotFound { detail },
        Reject::InvalidGroupId(_) => DsError::InvalidGroupId { detail },
        Reject::InvalidKeyPackage { index, .. } => DsError::InvalidKeyPackage { detail, index },
        Reject::InvalidGroupInfo(_) => DsError::InvalidGroupInfo { detail },
        Reject::WrongEpoch { current, missed } => DsError::WrongEpoch {
            detail,
            current_epoch: current,
            missed: List::new(missed).unwrap_or_default(),
        },
        Reject::InvalidCommit(_) => DsError::InvalidCommit { detail },
        Reject::InvalidProposal { refs, .. } => {
            let refs = refs.into_iter().filter_map(|r| Opaque::new(r).ok()).collect();
            DsError::InvalidProposal { detail, refs: List::new(refs).unwrap_or_default() }
        }
        Reject::Pending { pending, .. } => {
            DsError::PendingProposals { detail, pending: List::new(pending).unwrap_or_default() }
        }
        Reject::InvalidMessage(_) => DsError::InvalidMessage { detail },
        Reject::TooLarge { limit, .. } | Reject::TooMany { limit, .. } => {
            DsError::TooLarge { detail, limit: limit as u64 }
        }
        Reject::Stale { now } => DsError::StaleRequest { detail, server_time: now },
        Reject::RateLimited(retry_after_ms) => DsError::RateLimited { detail, retry_after_ms },
        Reject::Blocking => DsError::RateLimited { detail, retry_after_ms: 5_000 },
        Reject::BadInfo => DsError::Unavailable { detail, retry_after_ms: 5_000 },
        Reject::Broken(why) => internal(why),
    }
}

const RETRY_AFTER_MS: u64 = 1_000;
const NO_ROOM_RETRY_MS: u64 = 5_000;
/// How often what rests on a damaged record is looked at again.
pub(crate) const DAMAGED_RETRY_MS: u64 = 30_000;
