//! One request to another provider: how it travels ([`Transport`]) and how it can fail ([`CallError`]).
//!
//! Deliberately absent: signing (`message`), when to try again (`schedule`), and HTTP itself (`https`). PROTOCOL.md §4.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::wire::{client::ClientResponse, decode, ds::DsError, ids::Domain};

/// How requests reach another provider.
///
/// An implementation authenticates `peer` (its answer is `peer`'s or none), takes at most `answer_bytes_max` bytes, and is
/// done within `timeout`, finding the peer included. A request may have been executed although the call failed.
pub trait Transport: Send + Sync {
    /// # Errors
    /// [`CallError`] where there is no HTTP answer, or one beyond its bounds.
    fn get<'a>(
        &'a self,
        peer: &'a Domain,
        path: &'static str,
        answer_bytes_max: usize,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<HttpAnswer, CallError>>;

    /// # Errors
    /// As [`Transport::get`].
    fn post<'a>(
        &'a self,
        peer: &'a Domain,
        path: &'static str,
        body: Vec<u8>,
        answer_bytes_max: usize,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<HttpAnswer, CallError>>;
}

/// What a peer answered, whatever its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAnswer {
    pub status: u16,
    /// From its `Retry-After`.
    pub retry_after_ms: Option<u64>,
    pub body: Vec<u8>,
}

impl HttpAnswer {
    /// The error that an answer other than 200 stands for. PROTOCOL.md §4: it carries a ClientResponse.
    pub(super) fn into_error(self) -> CallError {
        let said = decode::<ClientResponse>(&self.body).ok();
        let error = said.and_then(|response| response.outcome.into_result().err());
        CallError::Status { http: self.status, retry_after_ms: self.retry_after_ms, error }
    }
}

/// Why there is no answer from a peer, or not the one hoped for. Its texts are for operators.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// By this provider's own lists.
    #[error("this provider does not speak with {domain}")]
    Refused { domain: Domain },
    #[error("the request cannot be signed: {0}")]
    Signing(String),
    #[error("its Delivery Service cannot be found: {0}")]
    Discovery(String),
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    #[error("there was no whole answer in time")]
    Timeout,
    /// `error` is what it said of itself, where it did.
    #[error("it answered {http}{}", said(error.as_ref()))]
    Status { http: u16, retry_after_ms: Option<u64>, error: Option<DsError> },
    /// Its answer. What it says of a request that is too large is a `Status`.
    #[error("its answer has more bytes than allowed")]
    TooLarge,
    #[error("its answer cannot be used: {0}")]
    BadAnswer(String),
}

impl CallError {
    /// For metrics and logs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "refused",
            Self::Signing(_) => "signing",
            Self::Discovery(_) => "discovery",
            Self::Unreachable(_) => "unreachable",
            Self::Timeout => "timeout",
            Self::Status { .. } => "status",
            Self::TooLarge => "too_large",
            Self::BadAnswer(_) => "bad_answer",
        }
    }

    /// How long the peer asks to wait before it is asked again.
    #[must_use]
    pub fn retry_after_ms(&self) -> Option<u64> {
        let Self::Status { retry_after_ms, error, .. } = self else { return None };
        // the error counts milliseconds, the header seconds
        match error {
            Some(
                DsError::RateLimited { retry_after_ms, .. }
                | DsError::Unavailable { retry_after_ms, .. }
                | DsError::GroupMigrating { retry_after_ms, .. },
            ) => Some(*retry_after_ms),
            _ => *retry_after_ms,
        }
    }

    /// HTTP's 404: the peer has no such endpoint or event.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { http: 404, .. })
    }
}

fn said(error: Option<&DsError>) -> String {
    error.map_or_else(String::new, |error| format!(" ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{
        ds::{Detail, Outcome},
        encode,
    };

    #[test]
    fn what_a_peer_said_of_its_error_is_kept() {
        let error =
            DsError::RateLimited { detail: Detail::truncated("slow"), retry_after_ms: 1500 };
        let body = encode(&ClientResponse { outcome: Outcome::Err(error.clone()) });
        let answer = HttpAnswer { status: 429, retry_after_ms: Some(2000), body };
        let call = answer.into_error();
        assert_eq!(call.retry_after_ms(), Some(1500), "the exact one");
        assert!(call.to_string().contains("429") && call.to_string().contains("slow"), "{call}");
        assert_eq!(
            call,
            CallError::Status { http: 429, retry_after_ms: Some(2000), error: Some(error) }
        );
    }

    #[test]
    fn a_page_of_a_proxy_is_an_error_without_words() {
        let body = b"<html>no</html>".to_vec();
        let call = HttpAnswer { status: 404, retry_after_ms: Some(7000), body }.into_error();
        assert_eq!(call.retry_after_ms(), Some(7000));
        assert!(call.is_not_found());
        assert!(matches!(call, CallError::Status { error: None, .. }));
    }
}
