//! The listener for other providers: the endpoints of PROTOCOL.md §4's table (TR §5), and where this provider is
//! to be found.
//!
//! A request is counted by its address, read, opened (decoded, its sender authenticated: `federation`), counted by its
//! sender, given a place among the sender's and among all, and given to the node. Opening may have to wait for the keys
//! of whoever the message says it is from; where it waits, and with whom, is in [`super::lobby`].

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use tls_codec::DeserializeBytes;

use super::{
    answer::{Answer, OCTET_STREAM, Refusal},
    body::{self, BodyBudget},
    endpoint::Form,
    front::{Front, Listener, NO_SUCH_ENDPOINT, rate_limited},
    limits::{FederationLimits, Limits},
    listen::Listening,
    lobby::{Doors, Places},
    metrics::HttpMetrics,
    trace,
    well_known::{self, DsDomain},
};
use crate::{
    actors::{
        Node, Ticket,
        live::Live,
        stages::{Stage, Stages},
    },
    federation::{Federation, Opened},
    rate::{Class, Limiter},
    wire::{
        client::VerificationKeyResponse,
        ds::{DsError, ProtocolVersion},
        encode,
        federation::{EventType, MESSAGE_BYTES_MAX, S2SEndpoint},
        ids::Domain,
        portability::CONTENT_BYTES_MAX,
    },
};

/// The name of this listener in metrics and logs.
const LISTENER: &str = "federation";

/// The endpoints that take a signed message.
pub(super) const SIGNED: [S2SEndpoint; 10] = [
    S2SEndpoint::GroupOperation,
    S2SEndpoint::WelcomeInformation,
    S2SEndpoint::ExternalCommitInformation,
    S2SEndpoint::ConnectionRequest,
    S2SEndpoint::DeliverMessage,
    S2SEndpoint::ConnectionKeyPackages,
    S2SEndpoint::GroupKeyPackages,
    S2SEndpoint::MigrationRequest,
    S2SEndpoint::MigrationContent,
    S2SEndpoint::Complaint,
];
/// Those that anybody may read.
const KEYS: [S2SEndpoint; 2] = [S2SEndpoint::SignatureKey, S2SEndpoint::VerificationKey];

/// Binds the federation listener. Must be called inside an actix `System`.
///
/// # Errors
/// Where the address cannot be bound.
pub fn federation_listener(
    node: Node,
    federation: Arc<Federation>,
    listen: SocketAddr,
    tls: rustls::ServerConfig,
    limits: FederationLimits,
    metrics: HttpMetrics,
    ds_domain: DsDomain,
) -> io::Result<Listener> {
    let shared = Arc::new(Live::new(limits.shared.clone()));
    let listening = Listening {
        listener: LISTENER,
        address: listen,
        tls,
        limits: Arc::clone(&shared),
        metrics: metrics.clone(),
        clock: Arc::clone(&node.clock),
        pulse: node.pulse().clone(),
    };
    let api = web::Data::new(FederationApi::new(node, federation, shared, &limits, metrics));
    let adjusted = api.clone();
    listening.bind(
        move |limits| adjusted.adjust(limits),
        move |routes| {
            routes.app_data(api.clone());
            for endpoint in SIGNED {
                let take = move |request, payload, api| taken(endpoint, request, payload, api);
                let mut resource =
                    web::resource(endpoint.path()).route(web::post().to(take)).default_service(
                        web::to(move |request, api| wrong_method(endpoint, request, api)),
                    );
                // TR lists them as GET with a body
                if methods(endpoint) == GET_AND_POST {
                    resource = resource.route(web::get().to(take));
                }
                routes.service(resource);
            }
            for endpoint in KEYS {
                routes.service(
                    web::resource(endpoint.path())
                        .route(web::get().to(move |request, api| keys(endpoint, request, api)))
                        .default_service(web::to(move |request, api| {
                            wrong_method(endpoint, request, api)
                        })),
                );
            }
            well_known::routes(routes, LISTENER, &ds_domain, &api.front.metrics);
            routes.default_service(web::to(unknown_path));
        },
    )
}

pub(super) struct FederationApi {
    node: Node,
    federation: Arc<Federation>,
    front: Front,
    /// What each provider asked for of late, and what is being worked on for it.
    rates: Limiter<Domain>,
    places: Places,
    /// Where messages are until it is known whose they are.
    doors: Doors,
    /// Memory for whole groups.
    contents: BodyBudget,
}

impl FederationApi {
    pub(super) fn new(
        node: Node,
        federation: Arc<Federation>,
        shared: Arc<Live<Limits>>,
        limits: &FederationLimits,
        metrics: HttpMetrics,
    ) -> Self {
        let places = places_of(limits);
        Self {
            rates: Limiter::new(limits.requests_per_peer, PEERS_COUNTED_MAX),
            places: Places::new(places),
            doors: Doors::new(shared.requests_max, places),
            contents: BodyBudget::new(2 * CONTENT_BYTES_MAX),
            front: Front::new(LISTENER, shared, metrics, Arc::clone(&node.clock)),
            node,
            federation,
        }
    }

    /// From now on these bounds hold.
    fn adjust(&self, limits: &FederationLimits) {
        let places = places_of(limits);
        self.rates.replace(limits.requests_per_peer);
        self.places.resize(places);
        self.doors.resize(limits.shared.requests_max, places);
        self.front.adjust(&limits.shared);
    }

    async fn handle(
        &self,
        endpoint: S2SEndpoint,
        request: &HttpRequest,
        payload: web::Payload,
    ) -> Result<Answer, Refusal> {
        self.front.admit(request)?;
        let bytes_max = body_bytes_max(endpoint);
        let body = if endpoint == S2SEndpoint::MigrationContent {
            // strangers that send large bodies there are in each other's way alone
            body::read(request, payload, bytes_max, CONTENT_TIMEOUT, &self.contents).await?
        } else {
            self.front.body(request, payload, bytes_max).await?
        };
        self.take(endpoint, &body.bytes).await
    }

    /// What is done with a request once its body is here.
    pub(super) async fn take(
        &self,
        endpoint: S2SEndpoint,
        bytes: &[u8],
    ) -> Result<Answer, Refusal> {
        self.front.in_time(Duration::ZERO, self.execute(endpoint, bytes)).await
    }

    /// Authenticates a message, within the bounds of whoever it says that it is from.
    async fn open(&self, endpoint: S2SEndpoint, bytes: &[u8]) -> Result<Opened, DsError> {
        let sender = sender_of(bytes);
        let sender = sender.as_ref().map(|sender| (sender, self.federation.familiarity(sender)));
        let _waits = self.doors.enter(sender)?;
        self.federation.open(endpoint, bytes).await
    }

    /// Opens a message where there is time for it: its signature is what costs.
    async fn let_in(
        &self,
        endpoint: S2SEndpoint,
        bytes: &[u8],
    ) -> Result<(Opened, Ticket), DsError> {
        let ticket = self.node.admit(Class::Peer)?;
        Ok((self.open(endpoint, bytes).await?, ticket))
    }

    async fn execute(&self, endpoint: S2SEndpoint, bytes: &[u8]) -> Result<Answer, Refusal> {
        let stages = Stages::current();
        stages.enter(Stage::Authenticate);
        let opened = match self.let_in(endpoint, bytes).await {
            Ok(opened) => opened,
            // said to the provider that sends, and not by the group to its client: a relay must tell them apart
            Err(error) => return Ok(Answer::refused(Form::ClientResponse, error.into())),
        };
        let (opened, ticket) = opened;
        tracing::Span::current().record("peer", opened.sender.as_str());
        self.rates
            .check(&opened.sender, self.node.clock.now())
            .map_err(|wait| rate_limited("too many requests of this provider", wait))?;
        let places = self
            .places
            .take(&opened.sender)
            .and_then(|place| Ok((place, self.front.place_of_its_own()?, ticket)));
        let places = places.inspect_err(|_| self.node.metrics().shed(Class::Peer, "permits"))?;
        let event = opened.event;
        stages.enter(Stage::Work);
        if let EventType::DeliveryService(operation) = event {
            stages.name_operation(operation);
        }
        let answer = match self.node.federated_in(opened, places).await {
            Ok(bytes) => Answer::ok(bytes),
            Err(error) => Answer::refused(form(endpoint), error.into()),
        };
        if let EventType::DeliveryService(operation) = event {
            self.front.metrics.ds_answered(operation, answer.status);
        }
        Ok(answer)
    }
}

fn places_of(limits: &FederationLimits) -> usize {
    let places = limits.requests_per_peer_max;
    if places == 0 { usize::MAX } else { places }
}

async fn taken(
    endpoint: S2SEndpoint,
    request: HttpRequest,
    payload: web::Payload,
    api: web::Data<FederationApi>,
) -> HttpResponse {
    api.node.probe_worker();
    let trace = trace::of_peer(&request, endpoint.path());
    let handle = api.handle(endpoint, &request, payload);
    api.front.serve(endpoint.path(), form(endpoint), trace, handle).await
}

/// This provider's own keys. They are not secret, and whoever asks has no key of ours to check a signature with.
async fn keys(
    endpoint: S2SEndpoint,
    request: HttpRequest,
    api: web::Data<FederationApi>,
) -> HttpResponse {
    let started = Instant::now();
    if let Err(error) = api.front.admit(&request) {
        let answer = Answer::refused(Form::ClientResponse, error.into());
        return api.front.finish(endpoint.path(), started, answer);
    }
    let keys: VerificationKeyResponse = if endpoint == S2SEndpoint::SignatureKey {
        api.federation.signature_keys()
    } else {
        api.federation.verification_keys()
    };
    let fresh_s = keys.cache_until.ms_since(api.node.clock.now()) / 1000;
    api.front.metrics.answered(LISTENER, endpoint.path(), 200, started.elapsed());
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, OCTET_STREAM))
        .insert_header((header::CACHE_CONTROL, format!("max-age={fresh_s}")))
        .body(encode(&keys))
}

async fn wrong_method(
    endpoint: S2SEndpoint,
    request: HttpRequest,
    api: web::Data<FederationApi>,
) -> HttpResponse {
    api.front.wrong_method(endpoint.path(), form(endpoint), methods(endpoint), &request)
}

async fn unknown_path(api: web::Data<FederationApi>) -> HttpResponse {
    api.front.not_found(NO_SUCH_ENDPOINT)
}

/// Who a message says that it is from; none where it does not begin as one.
fn sender_of(bytes: &[u8]) -> Option<Domain> {
    let (_version, rest) = ProtocolVersion::tls_deserialize_bytes(bytes).ok()?;
    Domain::tls_deserialize_bytes(rest).ok().map(|(sender, _)| sender)
}

fn methods(endpoint: S2SEndpoint) -> &'static str {
    match endpoint {
        S2SEndpoint::SignatureKey | S2SEndpoint::VerificationKey => "GET",
        S2SEndpoint::WelcomeInformation | S2SEndpoint::ExternalCommitInformation => GET_AND_POST,
        S2SEndpoint::GroupOperation
        | S2SEndpoint::ConnectionRequest
        | S2SEndpoint::DeliverMessage
        | S2SEndpoint::ConnectionKeyPackages
        | S2SEndpoint::GroupKeyPackages
        | S2SEndpoint::MigrationRequest
        | S2SEndpoint::MigrationContent
        | S2SEndpoint::Complaint => "POST",
    }
}

pub(super) fn form(endpoint: S2SEndpoint) -> Form {
    if endpoint.answers_ds_response() { Form::DsResponse } else { Form::ClientResponse }
}

/// The largest body, in bytes; the listener's own limit may be lower.
fn body_bytes_max(endpoint: S2SEndpoint) -> usize {
    match endpoint {
        S2SEndpoint::GroupOperation
        | S2SEndpoint::ConnectionRequest
        | S2SEndpoint::DeliverMessage => MESSAGE_BYTES_MAX,
        S2SEndpoint::ExternalCommitInformation | S2SEndpoint::GroupKeyPackages => 256 * KIB,
        S2SEndpoint::WelcomeInformation
        | S2SEndpoint::ConnectionKeyPackages
        | S2SEndpoint::MigrationRequest
        | S2SEndpoint::Complaint => 16 * KIB,
        // a whole group
        S2SEndpoint::MigrationContent => CONTENT_BYTES_MAX + 8 * KIB,
        S2SEndpoint::SignatureKey | S2SEndpoint::VerificationKey => 0,
    }
}

const GET_AND_POST: &str = "GET, POST";
const KIB: usize = 1024;
const CONTENT_TIMEOUT: Duration = Duration::from_secs(120);
/// Providers whose requests are counted; beyond, new ones share one count.
const PEERS_COUNTED_MAX: usize = 50_000;
