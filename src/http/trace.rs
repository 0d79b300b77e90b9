//! The trace that a request belongs to: its id is in every log line that the request causes in this provider.
//!
//! A client's own `traceparent` is taken, or the `X-Request-Id` of a proxy before this provider (32 hex digits, as nginx makes them). One that another provider sent is not: what comes from outside gets an id of
//! this provider's, and one line of the log says which was sent (DESIGN: a trace tells nobody what another's client does).

use actix_web::{HttpRequest, http::header::HeaderName};
use tracing::Span;

use crate::{
    crypto,
    federation::trace::{TRACEPARENT, TraceId, TraceParent},
};

/// What a request is known by: in the log by its span, to who sent it by a header of the answer.
pub struct Trace {
    pub id: TraceId,
    pub span: Span,
}

/// The header of an answer that says the trace's id; of a request, that of a proxy which gives ids itself.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The trace of a request of one of this provider's clients.
pub fn of_client(request: &HttpRequest, endpoint: &'static str) -> Trace {
    let given = || {
        // what is no id is none: nobody writes into the log what they like
        TraceId::parse(request.headers().get(REQUEST_ID)?.to_str().ok()?)
    };
    let id = sent(request).map(|sent| sent.trace).or_else(given).unwrap_or_else(new);
    let span = tracing::info_span!("request", trace_id = %id, endpoint);
    Trace { id, span }
}

/// The trace of a request of another provider.
pub fn of_peer(request: &HttpRequest, endpoint: &'static str) -> Trace {
    let id = new();
    let span =
        tracing::info_span!("request", trace_id = %id, endpoint, peer = tracing::field::Empty);
    if let Some(sent) = sent(request) {
        span.in_scope(|| tracing::debug!(received_trace_id = %sent.trace, "a trace of another provider's goes on here"));
    }
    Trace { id, span }
}

fn sent(request: &HttpRequest) -> Option<TraceParent> {
    TraceParent::parse(request.headers().get(TRACEPARENT)?.to_str().ok()?)
}

fn new() -> TraceId {
    TraceId::new(crypto::random())
}
