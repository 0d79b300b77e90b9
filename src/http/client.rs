//! The client listener: every endpoint of PROTOCOL.md §3, "A client and its own provider".
//!
//! A request is read (limits, time), admitted (a permit), decoded, authenticated, given to the node, answered. What
//! it means is the node's business.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use actix_web::{HttpRequest, HttpResponse, http::StatusCode, web};
use tls_codec::DeserializeBytes;

use super::{
    answer::{Answer, Refusal},
    drain::Drain,
    endpoint::Endpoint,
    front::{Front, Listener, NO_SUCH_ENDPOINT, busy},
    limits::Limits,
    listen::Listening,
    metrics::HttpMetrics,
    permits::Permits,
    stream, trace,
    well_known::{self, DsDomain},
};
use crate::{
    actors::{
        Node, Ticket,
        groups::class_of,
        live::Live,
        stages::{Stage, Stages},
    },
    rate::Class,
    wire::{
        client::{
            ClientMessage, Complain, ConnectionRequestTo, Consent, DeleteDevice, Dequeue, Dequeued,
            ProviderKeys, PublishKeyPackages, QueueTokens, Register,
        },
        codec::List,
        decode,
        ds::{Detail, DsError, DsMessage, DsRequest, DsResponse, Outcome, ProtocolVersion},
        encode,
        ids::ClientUri,
        key_packages::{ConnectionKeyPackageRequest, GroupKeyPackageRequest},
        portability::MigrationRequest,
    },
};

/// The name of this listener in metrics and logs.
pub const LISTENER: &str = "client";

/// Binds the client listener. Must be called inside an actix `System`. `ds_domain` is where other providers find this one.
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
    ds_domain: Option<DsDomain>,
) -> io::Result<Listener> {
    let limits = Arc::new(Live::new(limits));
    let listening = Listening {
        listener: LISTENER,
        address: listen,
        tls,
        limits: Arc::clone(&limits),
        metrics: metrics.clone(),
        clock: Arc::clone(&node.clock),
        pulse: node.pulse().clone(),
    };
    let api = web::Data::new(ClientApi::new(node, limits, metrics, drain));
    let adjusted = api.clone();
    listening.bind(
        move |limits| adjusted.adjust(&limits.shared),
        move |routes| {
            routes.app_data(api.clone());
            for endpoint in Endpoint::POSTED {
                routes.service(
                    web::resource(endpoint.path())
                        .route(web::post().to(move |request, payload, api| {
                            posted(endpoint, request, payload, api)
                        }))
                        .default_service(web::to(move |request, api| {
                            wrong_method(endpoint, "POST", request, api)
                        })),
                );
            }
            routes.service(
                web::resource(Endpoint::Stream.path())
                    .route(web::get().to(stream::open))
                    .default_service(web::to(|request, api| {
                        wrong_method(Endpoint::Stream, "GET", request, api)
                    })),
            );
            if let Some(said) = &ds_domain {
                well_known::routes(routes, LISTENER, said, &api.front.metrics);
            }
            routes.default_service(web::to(unknown_path));
        },
    )
}

/// What every handler of this listener shares.
pub(super) struct ClientApi {
    pub node: Node,
    pub front: Front,
    pub drain: Drain,
    /// Long polls and streams.
    pub waiting: Permits,
}

impl ClientApi {
    pub(super) fn new(
        node: Node,
        limits: Arc<Live<Limits>>,
        metrics: HttpMetrics,
        drain: Drain,
    ) -> Self {
        Self {
            waiting: Permits::new(limits.waiting_max),
            front: Front::new(LISTENER, limits, metrics, Arc::clone(&node.clock)),
            node,
            drain,
        }
    }

    /// From now on these bounds hold.
    fn adjust(&self, limits: &Limits) {
        self.waiting.resize(limits.waiting_max);
        self.front.adjust(limits);
    }

    async fn handle(
        &self,
        endpoint: Endpoint,
        request: &HttpRequest,
        payload: web::Payload,
    ) -> Result<Answer, Refusal> {
        self.front.admit(request)?;
        let body = self.front.body(request, payload, endpoint.body_bytes_max()).await?;
        self.take(endpoint, &body.bytes).await
    }

    /// What is done with a request once its body is here.
    pub(super) async fn take(&self, endpoint: Endpoint, bytes: &[u8]) -> Result<Answer, Refusal> {
        let polls = endpoint == Endpoint::Dequeue;
        let place =
            if polls { self.waiting.try_acquire().map_err(|_| busy()) } else { self.front.place() };
        let _place =
            place.inspect_err(|_| self.node.metrics().shed(endpoint.class(), "permits"))?;
        Stages::current().enter(Stage::Decode);
        // before anything is done with it: what is refused for want of time is to take as little of it as can be
        let ticket = self.node.admit(class_in(endpoint, bytes))?;
        let message = client_message(bytes)?;
        let longer = if polls { self.front.limits.poll_max } else { Duration::ZERO };
        self.front.in_time(longer, self.dispatch(endpoint, message, ticket)).await
    }

    /// Authenticates a request that was let in, and hands the body to the one method of the node that it is for. Signatures are
    /// what costs: who is refused because the group has no time is so before them.
    async fn dispatch(
        &self,
        endpoint: Endpoint,
        message: ClientMessage,
        ticket: Ticket,
    ) -> Result<Answer, Refusal> {
        let (node, stages) = (&self.node, Stages::current());
        // one that does not decode is told so once it is known whose it is
        let operation = endpoint.takes_ds_message().then(|| body_of::<DsMessage>(&message));
        if let Some(Ok(operation)) = &operation {
            node.may_ask_group(operation)?;
        }
        stages.enter(Stage::Authenticate);
        if endpoint == Endpoint::Register {
            stages.enter(Stage::Work);
            let register: Register = body_of(&message)?;
            return Answer::client(encode(&node.register(&message, register).await?));
        }
        let from = node.authenticate(&message, endpoint.path()).await?;
        if let Some(operation) = operation {
            let operation = operation?;
            stages.enter(Stage::Work);
            stages.name_operation(operation.request.name());
            // what is another provider's to answer takes no time here
            let _ticket = (operation.context.hub_domain == *node.domain()).then_some(ticket);
            return self.group_operation(endpoint, &from, operation).await;
        }
        // what follows waits for entries or for other providers, or is over at once
        drop(ticket);
        stages.enter(Stage::Decode);
        let answer = match endpoint {
            Endpoint::KeyPackages => {
                let body: PublishKeyPackages = body_of(&message)?;
                stages.enter(Stage::Work);
                encode(&node.publish_key_packages(&from, body).await?)
            }
            Endpoint::QueueTokens => {
                let body: QueueTokens = body_of(&message)?;
                stages.enter(Stage::Work);
                encode(&node.queue_tokens(&from, body).await?)
            }
            Endpoint::Dequeue => {
                let body: Dequeue = body_of(&message)?;
                stages.enter(Stage::Wait);
                encode(&self.dequeue(&from, body).await?)
            }
            Endpoint::ConnectionKeyPackages => {
                let body: ConnectionKeyPackageRequest = body_of(&message)?;
                stages.enter(Stage::Work);
                encode(&node.connection_key_packages(&from, body).await?)
            }
            Endpoint::GroupKeyPackages => {
                let body: GroupKeyPackageRequest = body_of(&message)?;
                stages.enter(Stage::Work);
                encode(&node.group_key_packages(&from, body).await?)
            }
            Endpoint::ConnectionRequest => {
                let body: ConnectionRequestTo = body_of(&message)?;
                stages.enter(Stage::Work);
                encode(&node.connection_request(&from, body).await?)
            }
            Endpoint::ProviderKeys => {
                let ProviderKeys { domain } = body_of(&message)?;
                stages.enter(Stage::Work);
                encode(&node.provider_keys(&domain).await?)
            }
            Endpoint::DeleteDevice => {
                let body: DeleteDevice = body_of(&message)?;
                stages.enter(Stage::Work);
                node.delete_device(&from, body).await?;
                Vec::new()
            }
            Endpoint::DeleteAccount => {
                require_empty(&message)?;
                stages.enter(Stage::Work);
                node.delete_account(&from).await?;
                Vec::new()
            }
            Endpoint::Consent => {
                let body: Consent = body_of(&message)?;
                stages.enter(Stage::Work);
                node.consent(&from, body).await?;
                Vec::new()
            }
            Endpoint::Complaint => {
                let body: Complain = body_of(&message)?;
                stages.enter(Stage::Work);
                encode(&node.complain(&from, body).await?)
            }
            Endpoint::MigrationRequest => {
                let body: MigrationRequest = body_of(&message)?;
                stages.enter(Stage::Work);
                encode(&node.request_migration(body).await?)
            }
            Endpoint::GroupOperation
            | Endpoint::WelcomeInformation
            | Endpoint::ExternalCommitInformation
            | Endpoint::Register
            | Endpoint::Stream
            | Endpoint::Unknown => {
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
        self.front.metrics.ds_answered(operation, answer.status);
        Ok(answer)
    }

    /// The long poll. It ends early, with what there is, when the node stops.
    async fn dequeue(&self, from: &ClientUri, mut body: Dequeue) -> Result<Dequeued, DsError> {
        let poll_max_ms = u32::try_from(self.front.limits.poll_max.as_millis()).unwrap_or(u32::MAX);
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
    api.node.probe_worker();
    let trace = trace::of_client(&request, endpoint.path());
    let handle = api.handle(endpoint, &request, payload);
    api.front.serve(endpoint.path(), endpoint.form(), trace, handle).await
}

async fn wrong_method(
    endpoint: Endpoint,
    allowed: &'static str,
    request: HttpRequest,
    api: web::Data<ClientApi>,
) -> HttpResponse {
    api.front.wrong_method(endpoint.path(), endpoint.form(), allowed, &request)
}

async fn unknown_path(api: web::Data<ClientApi>) -> HttpResponse {
    api.front.not_found(NO_SUCH_ENDPOINT)
}

/// What a request is worth; read, not decoded.
fn class_in(endpoint: Endpoint, bytes: &[u8]) -> Class {
    let operation = endpoint
        .takes_ds_message()
        .then(|| ClientMessage::body_in(bytes).and_then(DsRequest::name_in))
        .flatten();
    operation.map_or_else(|| endpoint.class(), class_of)
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
