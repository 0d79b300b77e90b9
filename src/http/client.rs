//! The client listener: every endpoint of PROTOCOL.md §3, "A client and its own provider", but `/v1/complaint` and
//! `/v1/migration_request`.
//!
//! A request is read (limits, time), admitted (a permit), decoded, authenticated, given to the node, answered. What
//! it means is the node's business.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    dev::{Server, ServerHandle},
    http::{StatusCode, header},
    web,
};
use tls_codec::DeserializeBytes;
use tokio::sync::Semaphore;

use super::{
    addresses::Addresses,
    answer::{Answer, Refusal},
    body::{self, BodyBudget},
    drain::Drain,
    endpoint::{Endpoint, Form},
    limits::Limits,
    metrics::HttpMetrics,
    stream,
};
use crate::{
    actors::Node,
    wire::{
        client::{
            ClientMessage, ConnectionRequestTo, Consent, DeleteDevice, Dequeue, Dequeued,
            ProviderKeys, PublishKeyPackages, QueueTokens, Register,
        },
        codec::List,
        decode,
        ds::{Detail, DsError, DsMessage, DsRequest, DsResponse, Outcome, ProtocolVersion},
        encode,
        ids::ClientUri,
        key_packages::{ConnectionKeyPackageRequest, GroupKeyPackageRequest},
    },
};

/// The name of this listener in metrics and logs.
pub const LISTENER: &str = "client";

/// A bound client listener: `server` is to be polled (spawned), `handle` stops it.
pub struct ClientListener {
    pub address: SocketAddr,
    pub server: Server,
    pub handle: ServerHandle,
}

/// Binds the client listener. Must be called inside an actix `System`.
///
/// # Errors
/// Where the address cannot be bound.
pub fn client_listener(
    node: Node,
    listen: SocketAddr,
    tls: rustls::ServerConfig,
    limits: Limits,
    metrics: HttpMetrics,
    drain: Drain,
) -> io::Result<ClientListener> {
    let api = web::Data::new(ClientApi::new(node, limits, metrics, drain));
    let limits = &api.limits;
    let workers = limits.workers.max(1);
    let server = HttpServer::new({
        let api = api.clone();
        move || {
            let mut app = App::new().app_data(api.clone());
            for endpoint in Endpoint::POSTED {
                app = app.service(
                    web::resource(endpoint.path())
                        .route(web::post().to(move |request, payload, api| {
                            posted(endpoint, request, payload, api)
                        }))
                        .default_service(web::to(move |request, api| {
                            wrong_method(endpoint, "POST", request, api)
                        })),
                );
            }
            app.service(
                web::resource(Endpoint::Stream.path())
                    .route(web::get().to(stream::open))
                    .default_service(web::to(|request, api| {
                        wrong_method(Endpoint::Stream, "GET", request, api)
                    })),
            )
            .default_service(web::to(unknown_path))
        }
    })
    .workers(workers)
    .max_connections(limits.connections_max.div_ceil(workers))
    .backlog(limits.backlog)
    .client_request_timeout(limits.header_timeout)
    .client_disconnect_timeout(Duration::from_secs(5))
    .tls_handshake_timeout(limits.header_timeout)
    .keep_alive(limits.keep_alive)
    .tcp_nodelay(true)
    .shutdown_timeout(limits.drain_timeout.as_secs().max(1))
    .disable_signals()
    .bind_rustls_0_23(listen, tls)?;
    let address = server.addrs().first().copied().unwrap_or(listen);
    let server = server.run();
    Ok(ClientListener { address, handle: server.handle(), server })
}

/// What every handler of this listener shares.
pub(super) struct ClientApi {
    pub node: Node,
    pub limits: Limits,
    pub metrics: HttpMetrics,
    pub drain: Drain,
    /// Long polls and streams.
    pub waiting: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    bodies: BodyBudget,
    addresses: Addresses,
}

impl ClientApi {
    fn new(node: Node, limits: Limits, metrics: HttpMetrics, drain: Drain) -> Self {
        Self {
            waiting: Arc::new(Semaphore::new(limits.waiting_max)),
            requests: Arc::new(Semaphore::new(limits.requests_max)),
            bodies: BodyBudget::new(limits.bodies_bytes_max),
            addresses: Addresses::new(limits.requests_per_address_s),
            node,
            limits,
            metrics,
            drain,
        }
    }

    async fn handle(
        &self,
        endpoint: Endpoint,
        request: &HttpRequest,
        payload: web::Payload,
    ) -> Result<Answer, Refusal> {
        self.admit(request)?;
        let bytes_max = endpoint.body_bytes_max().min(self.limits.request_bytes_max);
        let body =
            body::read(request, payload, bytes_max, self.limits.body_timeout, &self.bodies).await?;
        let permits = if endpoint == Endpoint::Dequeue { &self.waiting } else { &self.requests };
        let _permit = permits.try_acquire().map_err(|_| busy())?;
        let message = client_message(&body.bytes)?;
        match tokio::time::timeout(
            self.limits.answer_timeout + self.waits_at_most(endpoint),
            self.dispatch(endpoint, message),
        )
        .await
        {
            Ok(answer) => answer,
            Err(_) => Err(Refusal::from(DsError::Unavailable {
                detail: Detail::truncated(
                    "no answer in time; whether the request took effect is unknown: retry with the same request_id",
                ),
                retry_after_ms: 1000,
            })),
        }
    }

    /// Counts a request against the address that it comes from.
    pub fn admit(&self, request: &HttpRequest) -> Result<(), DsError> {
        // a socket without a peer has just been closed
        let Some(peer) = request.peer_addr() else { return Ok(()) };
        self.addresses.admit(peer, Instant::now()).map_err(|wait| DsError::RateLimited {
            detail: Detail::truncated("too many requests from this address"),
            retry_after_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        })
    }

    fn waits_at_most(&self, endpoint: Endpoint) -> Duration {
        if endpoint == Endpoint::Dequeue { self.limits.poll_max } else { Duration::ZERO }
    }

    /// Authenticates, and hands the body to the one method of the node that it is for.
    async fn dispatch(
        &self,
        endpoint: Endpoint,
        message: ClientMessage,
    ) -> Result<Answer, Refusal> {
        let node = &self.node;
        if endpoint == Endpoint::Register {
            let register: Register = body_of(&message)?;
            return Answer::client(encode(&node.register(&message, register).await?));
        }
        let from = node.authenticate(&message, endpoint.path()).await?;
        let answer = match endpoint {
            Endpoint::GroupOperation
            | Endpoint::WelcomeInformation
            | Endpoint::ExternalCommitInformation => {
                return self.group_operation(endpoint, &from, body_of(&message)?).await;
            }
            Endpoint::KeyPackages => {
                let body: PublishKeyPackages = body_of(&message)?;
                encode(&node.publish_key_packages(&from, body).await?)
            }
            Endpoint::QueueTokens => {
                let body: QueueTokens = body_of(&message)?;
                encode(&node.queue_tokens(&from, body).await?)
            }
            Endpoint::Dequeue => encode(&self.dequeue(&from, body_of(&message)?).await?),
            Endpoint::ConnectionKeyPackages => {
                let body: ConnectionKeyPackageRequest = body_of(&message)?;
                encode(&node.connection_key_packages(&from, body).await?)
            }
            Endpoint::GroupKeyPackages => {
                let body: GroupKeyPackageRequest = body_of(&message)?;
                encode(&node.group_key_packages(&from, body).await?)
            }
            Endpoint::ConnectionRequest => {
                let body: ConnectionRequestTo = body_of(&message)?;
                encode(&node.connection_request(&from, body).await?)
            }
            Endpoint::ProviderKeys => {
                let ProviderKeys { domain } = body_of(&message)?;
                encode(&node.provider_keys(&domain).await?)
            }
            Endpoint::DeleteDevice => {
                let body: DeleteDevice = body_of(&message)?;
                node.delete_device(&from, body).await?;
                Vec::new()
            }
            Endpoint::DeleteAccount => {
                require_empty(&message)?;
                node.delete_account(&from).await?;
                Vec::new()
            }
            Endpoint::Consent => {
                let body: Consent = body_of(&message)?;
                node.consent(&from, body).await?;
                Vec::new()
            }
            Endpoint::Register | Endpoint::Stream | Endpoint::Unknown => {
                return Err(Refusal::http(StatusCode::NOT_FOUND, NO_SUCH_ENDPOINT));
            }
        };
        Answer::client(answer)
    }

    async fn group_operation(
        &self,
        endpoint: Endpoint,
        from: &ClientUri,
        message: DsMessage,
    ) -> Result<Answer, Refusal> {
        let operation = message.request.name();
        let response = if belongs_to(&message.request) == endpoint {
            self.node.group_operation(from, message).await
        } else {
            DsResponse {
                version: ProtocolVersion::MIMI10,
                outcome: Outcome::Err(DsError::Malformed {
                    detail: Detail::truncated(&format!(
                        "{operation} goes to {}",
                        belongs_to(&message.request).path()
                    )),
                }),
            }
        };
        let answer = Answer::ds(&response);
        self.metrics.ds_answered(operation, answer.status);
        Ok(answer)
    }

    /// The long poll. It ends early, with what there is, when the node stops.
    async fn dequeue(&self, from: &ClientUri, mut body: Dequeue) -> Result<Dequeued, DsError> {
        let poll_max_ms = u32::try_from(self.limits.poll_max.as_millis()).unwrap_or(u32::MAX);
        body.wait_ms = if self.drain.is_draining() { 0 } else { body.wait_ms.min(poll_max_ms) };
        tokio::select! {
            biased;
            dequeued = self.node.dequeue(from, body) => dequeued,
            () = self.drain.started() => Ok(Dequeued { entries: List::default() }),
        }
    }
}

async fn posted(
    endpoint: Endpoint,
    request: HttpRequest,
    payload: web::Payload,
    api: web::Data<ClientApi>,
) -> HttpResponse {
    let started = Instant::now();
    let _in_flight = api.metrics.begin(LISTENER);
    let outcome = api.handle(endpoint, &request, payload).await;
    let answer = outcome.unwrap_or_else(|refusal| Answer::refused(endpoint.form(), refusal));
    finish(&api, endpoint, started, answer)
}

async fn wrong_method(
    endpoint: Endpoint,
    allowed: &'static str,
    request: HttpRequest,
    api: web::Data<ClientApi>,
) -> HttpResponse {
    let refusal = Refusal::http(
        StatusCode::METHOD_NOT_ALLOWED,
        &format!("{} is called with {allowed}, not {}", endpoint.path(), request.method()),
    );
    let answer = Answer::refused(endpoint.form(), refusal);
    let mut response = finish(&api, endpoint, Instant::now(), answer);
    response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allowed));
    response
}

async fn unknown_path(request: HttpRequest, api: web::Data<ClientApi>) -> HttpResponse {
    let detail = match request.path() {
        "/v1/complaint" | "/v1/migration_request" => {
            "this provider does not serve this endpoint yet"
        }
        _ => NO_SUCH_ENDPOINT,
    };
    let refusal = Refusal::http(StatusCode::NOT_FOUND, detail);
    let answer = Answer::refused(Form::ClientResponse, refusal);
    finish(&api, Endpoint::Unknown, Instant::now(), answer)
}

/// Counts the answer, says so in the log, and makes it HTTP.
pub(super) fn finish(
    api: &ClientApi,
    endpoint: Endpoint,
    started: Instant,
    answer: Answer,
) -> HttpResponse {
    let (took, http) = (started.elapsed(), answer.http.as_u16());
    api.metrics.answered(LISTENER, endpoint, http, took);
    tracing::debug!(
        listener = LISTENER,
        endpoint = endpoint.path(),
        status = answer.status,
        http,
        took_ms = took.as_secs_f64() * 1000.0,
        bytes = answer.bytes.len(),
        "request"
    );
    answer.into_response()
}

/// Decodes a ClientMessage of a version that we speak.
pub(super) fn client_message(bytes: &[u8]) -> Result<ClientMessage, DsError> {
    // the version comes first, so that one we do not know is told apart from garbage
    if let Ok((version, _)) = ProtocolVersion::tls_deserialize_bytes(bytes)
        && version != ProtocolVersion::MIMI10
    {
        return Err(DsError::UnsupportedVersion {
            detail: Detail::truncated("this provider speaks MIMI 1.0 (version 1)"),
            versions: List::new(vec![ProtocolVersion::MIMI10]).unwrap_or_default(),
        });
    }
    decode(bytes).map_err(malformed)
}

/// Decodes the body of a message.
pub(super) fn body_of<T: DeserializeBytes>(message: &ClientMessage) -> Result<T, DsError> {
    decode(message.body.as_slice()).map_err(malformed)
}

pub(super) fn busy() -> DsError {
    DsError::Unavailable {
        detail: Detail::truncated("too many requests at once; retry"),
        retry_after_ms: 1000,
    }
}

fn require_empty(message: &ClientMessage) -> Result<(), DsError> {
    if message.body.as_slice().is_empty() {
        return Ok(());
    }
    Err(DsError::Malformed { detail: Detail::truncated("this endpoint's body is empty") })
}

fn malformed(error: impl std::fmt::Display) -> DsError {
    DsError::Malformed { detail: Detail::truncated(&error.to_string()) }
}

/// The endpoint that a Delivery Service request belongs to (TR §5.2, §5.3, §5.4).
fn belongs_to(request: &DsRequest) -> Endpoint {
    match request {
        DsRequest::WelcomeInfo(_) => Endpoint::WelcomeInformation,
        DsRequest::ExternalCommitInfo(_) => Endpoint::ExternalCommitInformation,
        DsRequest::CreateGroup(_)
        | DsRequest::DeleteGroup(_)
        | DsRequest::UpdateQueueInfo(_)
        | DsRequest::AddUsers(_)
        | DsRequest::RemoveUsers(_)
        | DsRequest::AddClients(_)
        | DsRequest::RemoveClients(_)
        | DsRequest::UpdateClient(_)
        | DsRequest::ResyncClient(_)
        | DsRequest::UpdateClientFanoutInfo(_)
        | DsRequest::SendMessage(_)
        | DsRequest::JoinGroup(_)
        | DsRequest::Propose(_)
        | DsRequest::UpdateGroup(_)
        | DsRequest::StartMigration(_) => Endpoint::GroupOperation,
    }
}

const NO_SUCH_ENDPOINT: &str = "there is no such endpoint";
