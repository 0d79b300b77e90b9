//! The trace that a request belongs to: its id is in every log line that the request causes in this provider.
//!
//! A client's own `traceparent` is taken. One that another provider sent is not: what comes from outside gets an id of
//! this provider's, and one line of the log says which was sent (DESIGN: a trace tells nobody what another's client does).

use actix_web::HttpRequest;
use tracing::Span;

use crate::{
    crypto,
    federation::trace::{TRACEPARENT, TraceId, TraceParent},
};

/// The span of a request of one of this provider's clients.
pub fn of_client(request: &HttpRequest, endpoint: &'static str) -> Span {
    let trace_id = sent(request).map_or_else(new, |sent| sent.trace);
    tracing::info_span!("request", %trace_id, endpoint)
}

/// The span of a request of another provider.
pub fn of_peer(request: &HttpRequest, endpoint: &'static str) -> Span {
    let span =
        tracing::info_span!("request", trace_id = %new(), endpoint, peer = tracing::field::Empty);
    if let Some(sent) = sent(request) {
        span.in_scope(|| tracing::debug!(received_trace_id = %sent.trace, "a trace of another provider's goes on here"));
    }
    span
}

fn sent(request: &HttpRequest) -> Option<TraceParent> {
    TraceParent::parse(request.headers().get(TRACEPARENT)?.to_str().ok()?)
}

fn new() -> TraceId {
    TraceId::new(crypto::random())
}
