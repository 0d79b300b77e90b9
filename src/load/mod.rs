//! `mimid load`: workloads of real MLS clients, prepared at live providers and replayed at them.
//!
//! [`plan`] says what happens (pure, from a seed), [`crew`] makes the messages of one group, [`prepare`] registers the clients, creates
//! the groups and writes a [`workload`]; replaying reads it step by step. What a run measured comes together in a [`recorder`] and is kept as
//! a [`result`], and a [`report`] says it. Deliberately absent: anything of a server.

pub mod account;
mod alarm;
pub mod crew;
pub mod drain;
pub mod lanes;
pub mod latencies;
mod ledger;
pub mod lines;
mod machine;
pub mod pace;
pub mod plan;
pub mod prepare;
pub mod progress;
pub mod race;
pub mod recorder;
pub mod report;
pub mod request;
pub mod result;
pub mod run;
mod scrape;
mod script;
mod send;
mod view;
pub mod workload;

use crate::{
    client::{core::CoreError, http::HttpError},
    crypto::CryptoError,
    wire::{DecodeError, ds::DsError},
};

/// Why a workload was not made or replayed. The texts say what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It was not asked for rightly, whatever is at the other side.
    #[error("{0}")]
    Usage(String),
    /// What is there, here or at a provider, does not let it.
    #[error("{0}")]
    Unfit(String),
    #[error(transparent)]
    File(#[from] workload::FileError),
    #[error(transparent)]
    Result(#[from] result::ReadError),
    #[error("the run ended before its time: {0}")]
    Broke(String),
    #[error("cannot write the report to {to}: {error}")]
    Report { to: String, error: std::io::Error },
    #[error(
        "no connection to {url} ({why}): is that a provider's client listener, and does it run?"
    )]
    Unreachable { url: String, why: String },
    #[error(
        "what answers at {url} is not trusted ({why}): name its certificate with --ca FILE, or its endpoints.json with --endpoints FILE"
    )]
    Untrusted { url: String, why: String },
    #[error("{url} refuses to {what}: {error}{}", hint(error))]
    Refused { url: String, what: String, error: Box<DsError> },
    #[error("{url}, {what}: {error}")]
    Answer { url: String, what: String, error: HttpError },
    #[error("MLS: {0}")]
    Mls(String),
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    #[error(transparent)]
    Core(#[from] CoreError),
    #[error(transparent)]
    Wire(#[from] DecodeError),
    #[error("interrupted")]
    Interrupted,
}

impl LoadError {
    pub(crate) fn mls(error: impl std::fmt::Display) -> Self {
        Self::Mls(error.to_string())
    }

    /// Why `what` did not work at `url`.
    pub(crate) fn of(error: HttpError, url: &str, what: &str) -> Self {
        let (url, what) = (url.to_owned(), what.to_owned());
        match error {
            HttpError::Refused(error) => Self::Refused { url, what, error: Box::new(error) },
            HttpError::Unreachable { why, .. } => Self::Unreachable { url, why },
            HttpError::Untrusted { why, .. } => Self::Untrusted { url, why },
            error @ (HttpError::Certificate(_)
            | HttpError::ClockOff(_)
            | HttpError::Answer(_)
            | HttpError::Status(_)
            | HttpError::TooLarge
            | HttpError::RequestTooLarge
            | HttpError::Signing(_)
            | HttpError::StreamEnded(_)) => Self::Answer { url, what, error },
        }
    }
}

/// Limits are there against what a load test does.
fn hint(error: &DsError) -> &'static str {
    if matches!(
        error,
        DsError::RateLimited { .. }
            | DsError::TooLarge { .. }
            | DsError::NotAuthorized { .. }
            | DsError::Unavailable { .. }
    ) {
        return ". A provider's limits and registration are not made for a load test: config/load.toml shows what to set at one that is to be \
                tested, and where registration asks for a token --token gives it";
    }
    ""
}
