//! What the listeners for clients and for other providers have in common: a request is counted, read within its limits
//! and put into its trace; its answer is counted, logged and made HTTP.

use std::{
    future::Future,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::{
    HttpRequest, HttpResponse,
    dev::{Server, ServerHandle},
    http::{
        StatusCode,
        header::{self, HeaderValue},
    },
    web,
};
use tokio::sync::{OwnedSemaphorePermit, SemaphorePermit};
use tracing::Instrument;

use super::{
    addresses::Addresses,
    answer::{Answer, Refusal},
    body::{self, Body, BodyBudget},
    endpoint::Form,
    limits::{FederationLimits, Limits},
    metrics::HttpMetrics,
    permits::Permits,
    slow::{Answered, SlowLog, millis},
    trace::{REQUEST_ID, Trace},
};
use crate::{
    actors::{
        Clock,
        live::Live,
        stages::{Stage, Stages},
    },
    rate::TooMany,
    wire::ds::{Detail, DsError},
};

/// A bound listener: `server` is to be polled (spawned), `handle` stops it.
pub struct Listener {
    pub address: SocketAddr,
    pub server: Server,
    pub handle: ServerHandle,
    /// Has it go by other bounds from now on, as far as that can be while it runs: what is bound or made once stays.
    pub adjust: Adjust,
}

/// What a listener does with other bounds; of the client listener the shared ones count.
pub type Adjust = Arc<dyn Fn(&FederationLimits) + Send + Sync>;

/// The bounds of a listener, and what it counts.
pub(super) struct Front {
    /// Its name in metrics and logs.
    pub listener: &'static str,
    pub limits: Arc<Live<Limits>>,
    pub metrics: HttpMetrics,
    clock: Arc<dyn Clock>,
    requests: Permits,
    bodies: BodyBudget,
    answers: BodyBudget,
    addresses: Addresses,
    slow: SlowLog,
}

impl Front {
    pub fn new(
        listener: &'static str,
        limits: Arc<Live<Limits>>,
        metrics: HttpMetrics,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            requests: Permits::new(limits.requests_max),
            bodies: BodyBudget::new(limits.bodies_bytes_max),
            answers: BodyBudget::new(limits.answers_bytes_max),
            addresses: Addresses::new(limits.requests_per_address, limits.loopback_is_proxy),
            slow: SlowLog::new(),
            listener,
            limits,
            metrics,
            clock,
        }
    }

    /// From now on these bounds hold.
    pub fn adjust(&self, limits: &Limits) {
        self.requests.resize(limits.requests_max);
        self.bodies.resize(limits.bodies_bytes_max);
        self.answers.resize(limits.answers_bytes_max);
        self.addresses.adjust(limits);
        self.limits.replace(limits.clone());
    }

    /// Counts a request against the address that it comes from.
    pub fn admit(&self, request: &HttpRequest) -> Result<(), DsError> {
        // a socket without a peer has just been closed
        let Some(peer) = request.peer_addr() else { return Ok(()) };
        self.addresses
            .admit(peer, self.clock.now())
            .map_err(|wait| rate_limited("too many requests from this address", wait))
    }

    /// Reads a request's body, of at most `bytes_max` and what the listener takes.
    pub async fn body(
        &self,
        request: &HttpRequest,
        payload: web::Payload,
        bytes_max: usize,
    ) -> Result<Body, Refusal> {
        let bytes_max = bytes_max.min(self.limits.request_bytes_max);
        body::read(request, payload, bytes_max, self.limits.body_timeout, &self.bodies).await
    }

    /// A place among the requests that are being worked on.
    pub fn place(&self) -> Result<SemaphorePermit<'_>, DsError> {
        self.requests.try_acquire().map_err(|_| busy())
    }

    /// The same for what goes on when its request is gone.
    pub fn place_of_its_own(&self) -> Result<OwnedSemaphorePermit, DsError> {
        self.requests.try_acquire_owned().map_err(|_| busy())
    }

    /// Waits for `work` as long as an answer may take, and `longer`.
    pub async fn in_time<T>(
        &self,
        longer: Duration,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        match tokio::time::timeout(self.limits.answer_timeout + longer, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Refusal::from(DsError::Unavailable {
                detail: Detail::truncated(
                    "no answer in time; whether the request took effect is unknown: retry with the same request_id",
                ),
                retry_after_ms: 1000,
            })),
        }
    }

    /// Lets `handle` answer the request that `trace` is about.
    pub async fn serve(
        &self,
        path: &'static str,
        form: Form,
        trace: Trace,
        handle: impl Future<Output = Result<Answer, Refusal>>,
    ) -> HttpResponse {
        let answered = async {
            let started = Instant::now();
            let _in_flight = self.metrics.begin(self.listener);
            let outcome = handle.await;
            Stages::current().enter(Stage::Answer);
            let answer = outcome.unwrap_or_else(|refusal| Answer::refused(form, refusal));
            let answer = match answer.within(&self.answers) {
                Ok(answer) => answer,
                Err(refusal) => Answer::refused(form, refusal),
            };
            let mut response = self.finish(path, started, answer);
            if let Ok(id) = HeaderValue::from_str(&trace.id.to_string()) {
                response.headers_mut().insert(REQUEST_ID, id);
            }
            response
        };
        Stages::begin().scope(answered).instrument(trace.span).await
    }

    /// Counts the answer, says so in the log, and makes it HTTP.
    pub fn finish(&self, path: &'static str, started: Instant, answer: Answer) -> HttpResponse {
        let answered = Answered {
            listener: self.listener,
            endpoint: path,
            status: answer.status,
            http: answer.http.as_u16(),
            bytes: answer.bytes.len(),
            took: started.elapsed(),
            spent: Stages::current().spent(),
        };
        self.metrics.answered(self.listener, path, answered.http, answered.took);
        for (stage, time) in answered.spent.stages() {
            self.metrics.spent(path, stage, time);
        }
        if let Some(operation) = answered.spent.operation {
            self.metrics.ds_took(operation, answered.took);
        }
        tracing::debug!(
            listener = self.listener,
            endpoint = path,
            status = answered.status,
            http = answered.http,
            took_ms = millis(answered.took),
            bytes = answered.bytes,
            "request"
        );
        if self.limits.slow_after.is_some_and(|slow| answered.in_hand() >= slow) {
            self.metrics.slow(self.listener, path);
            self.slow.say(&answered);
        }
        answer.into_response()
    }

    /// The answer to a method that a path is not called with.
    pub fn wrong_method(
        &self,
        path: &'static str,
        form: Form,
        allowed: &'static str,
        request: &HttpRequest,
    ) -> HttpResponse {
        let refusal = Refusal::http(
            StatusCode::METHOD_NOT_ALLOWED,
            &format!("{path} is called with {allowed}, not {}", request.method()),
        );
        let mut response = self.finish(path, Instant::now(), Answer::refused(form, refusal));
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
        response
    }

    /// The answer to a path that there is not, all such paths under one name.
    pub fn not_found(&self, detail: &str) -> HttpResponse {
        let refusal = Refusal::http(StatusCode::NOT_FOUND, detail);
        let answer = Answer::refused(Form::ClientResponse, refusal);
        self.finish(OTHER_PATH, Instant::now(), answer)
    }
}

pub(super) fn busy() -> DsError {
    DsError::Unavailable {
        detail: Detail::truncated("too many requests at once; retry"),
        retry_after_ms: 1000,
    }
}

pub(super) fn rate_limited(what: &str, wait: TooMany) -> DsError {
    DsError::RateLimited {
        detail: Detail::truncated(what),
        retry_after_ms: wait.retry_after_ms().max(1),
    }
}

pub(super) const NO_SUCH_ENDPOINT: &str = "there is no such endpoint";
/// One name for every path that we do not know, so that strangers cannot make metrics grow.
pub(super) const OTHER_PATH: &str = "other";
