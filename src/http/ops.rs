//! The operator's listener: plain HTTP, on loopback unless told otherwise. A status page, `/livez`, `/readyz`, `/metrics`,
//! `POST /v1/deliver_message`, the Queueing Service's own request as DS §6.1 has it, from this provider's hub, and
//! `POST /v1/import_group`, a whole group (`mimid admin import-group`), and what is in [`super::peers`],
//! [`super::migrations`] and [`super::backup`].
//!
//! Whoever reaches this listener is trusted with what it shows and takes; it shows no content and no names.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    http::{StatusCode, header},
    web,
};
use prometheus::{Registry, TextEncoder};

use super::{
    answer::{Answer, OCTET_STREAM, Refusal},
    backup::Backups,
    body::{self, BodyBudget},
    drain::Drain,
    endpoint::Form,
    front::Listener,
    listen::worker_turns,
    migrations, peers, status,
};
use crate::{
    actors::Node,
    wire::{
        decode,
        ds::{Detail, DsError, INFO_BYTES_MAX, REQUEST_BYTES_MAX},
        encode,
        import::GroupImport,
        queueing::QueueingServiceRequest,
    },
};

struct Ops {
    node: Node,
    registry: Registry,
    drain: Drain,
    bodies: BodyBudget,
    imports: BodyBudget,
    backups: Backups,
}

/// Binds the ops listener. Must be called inside an actix `System`.
///
/// `backup_key` is what who asks for a backup must show.
///
/// # Errors
/// Where the address cannot be bound.
pub fn ops_listener(
    node: Node,
    listen: SocketAddr,
    registry: Registry,
    drain: Drain,
    backup_key: &str,
) -> io::Result<Listener> {
    let backups = Backups::new(backup_key, listen.ip(), &registry).map_err(io::Error::other)?;
    let bodies = BodyBudget::new(2 * REQUEST_BYTES_MAX);
    let imports = BodyBudget::new(INFO_BYTES_MAX);
    let ops = web::Data::new(Ops { node, registry, drain, bodies, imports, backups });
    let pulse = ops.node.pulse().clone();
    let server = HttpServer::new(move || {
        // this is the worker's thread
        actix_web::rt::spawn(worker_turns(&pulse, "ops"));
        App::new()
            .app_data(ops.clone())
            .configure(status::routes)
            .route("/livez", status::shown().to(livez))
            .route("/readyz", status::shown().to(readyz))
            .route("/metrics", status::shown().to(metrics))
            .route("/v1/deliver_message", web::post().to(deliver_message))
            .route("/v1/import_group", web::post().to(import_group))
            .route("/v1/backup", web::get().to(backup))
            .route("/v1/peers", web::get().to(async |ops: web::Data<Ops>| peers::show(&ops.node)))
            .route(
                "/v1/peers/requeue",
                web::post().to(async |ops: web::Data<Ops>, body: web::Bytes| {
                    peers::requeue(&ops.node, body).await
                }),
            )
            .route(
                "/v1/migrations",
                web::get().to(async |ops: web::Data<Ops>| migrations::show(&ops.node).await),
            )
            .route(
                "/v1/migrations/abort",
                web::post().to(async |ops: web::Data<Ops>, body: web::Bytes| {
                    migrations::abort(&ops.node, &body).await
                }),
            )
            .default_service(web::to(|| async {
                text(
                    StatusCode::NOT_FOUND,
                    "there is / (a status page), /livez, /readyz, /metrics, /v1/peers and /v1/migrations\n".to_owned(),
                )
            }))
    })
    .workers(1)
    .max_connections(CONNECTIONS_MAX)
    .client_request_timeout(Duration::from_secs(5))
    .keep_alive(Duration::from_secs(30))
    .tcp_nodelay(true)
    .shutdown_timeout(1)
    .disable_signals()
    .bind(listen)?;
    let address = server.addrs().first().copied().unwrap_or(listen);
    let server = server.run();
    // nothing of it is configured
    Ok(Listener { address, handle: server.handle(), server, adjust: Arc::new(|_| ()) })
}

/// The process answers.
async fn livez() -> HttpResponse {
    text(StatusCode::OK, "alive\n".to_owned())
}

/// Clients can be sent here; where not, the body says why.
async fn readyz(ops: web::Data<Ops>) -> HttpResponse {
    let mut reasons = Vec::new();
    if ops.drain.is_draining() {
        reasons.push("the node is stopping".to_owned());
    }
    if let Err(reason) = ops.node.store.writable() {
        reasons.push(format!("the store takes no writes: {reason}"));
    } else if let Err(reason) = ops.node.store.room() {
        reasons.push(format!("the store takes nothing new: {reason}"));
    }
    if reasons.is_empty() {
        return text(StatusCode::OK, "ready\n".to_owned());
    }
    text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", reasons.join("; ")))
}

/// Everything in the store, for who has the key of the data folder.
async fn backup(request: HttpRequest, ops: web::Data<Ops>) -> HttpResponse {
    ops.backups.serve(&request, &ops.node)
}

/// Prometheus' text format, version 0.0.4.
async fn metrics(ops: web::Data<Ops>) -> HttpResponse {
    match TextEncoder::new().encode_to_string(&ops.registry.gather()) {
        Ok(body) => HttpResponse::Ok()
            .insert_header((header::CONTENT_TYPE, prometheus::TEXT_FORMAT))
            .body(body),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be encoded");
            text(StatusCode::INTERNAL_SERVER_ERROR, "see the log\n".to_owned())
        }
    }
}

async fn deliver_message(
    request: HttpRequest,
    payload: web::Payload,
    ops: web::Data<Ops>,
) -> HttpResponse {
    let started = Instant::now();
    let body = match body::read(
        &request,
        payload,
        REQUEST_BYTES_MAX + 4096,
        Duration::from_secs(30),
        &ops.bodies,
    )
    .await
    {
        Ok(body) => body,
        Err(refusal) => return Answer::refused(Form::ClientResponse, refusal).into_response(),
    };
    let decoded: QueueingServiceRequest = match decode(&body.bytes) {
        Ok(decoded) => decoded,
        Err(error) => {
            let detail = Detail::truncated(&error.to_string());
            let refusal = Refusal::from(DsError::Malformed { detail });
            return Answer::refused(Form::ClientResponse, refusal).into_response();
        }
    };
    let from = ops.node.domain().clone();
    let answer = ops.node.queueing_service_request(decoded, &from).await;
    tracing::debug!(
        listener = "ops",
        endpoint = "/v1/deliver_message",
        ?answer,
        took_ms = started.elapsed().as_secs_f64() * 1000.0,
        "request"
    );
    match answer {
        Ok(answer) => HttpResponse::Ok()
            .insert_header((header::CONTENT_TYPE, OCTET_STREAM))
            .body(encode(&answer)),
        Err(error) => Answer::refused(Form::ClientResponse, error.into()).into_response(),
    }
}

/// The body is a GroupImport; what comes back is for people, and for scripts by its status.
async fn import_group(
    request: HttpRequest,
    payload: web::Payload,
    ops: web::Data<Ops>,
) -> HttpResponse {
    match take_group(&request, payload, &ops).await {
        Ok(told) => text(StatusCode::OK, told),
        Err(refusal) => text(refusal.http, format!("{}\n", refusal.error)),
    }
}

async fn take_group(
    request: &HttpRequest,
    payload: web::Payload,
    ops: &Ops,
) -> Result<String, Refusal> {
    let body = body::read(request, payload, INFO_BYTES_MAX, IMPORT_TIMEOUT, &ops.imports).await?;
    // tens of milliseconds for a large group, which /livez shall not wait for
    let decoded = web::block(move || decode::<GroupImport>(&body.bytes)).await;
    let malformed = |why: String| DsError::Malformed { detail: Detail::truncated(&why) };
    let import = decoded
        .map_err(|error| malformed(error.to_string()))?
        .map_err(|error| malformed(error.to_string()))?;
    let imported = ops.node.bring_in(import).await?;
    Ok(format!(
        "{} is here: {} members, epoch {}\n",
        imported.group, imported.members, imported.epoch
    ))
}

pub(super) fn text(status: StatusCode, body: String) -> HttpResponse {
    HttpResponse::build(status)
        .insert_header((header::CONTENT_TYPE, "text/plain; charset=utf-8"))
        .body(body)
}

const CONNECTIONS_MAX: usize = 64;
const IMPORT_TIMEOUT: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use actix_web::{body::to_bytes, rt::task::spawn_blocking};

    use super::*;
    use crate::{
        account::Registration,
        actors::{
            GroupOptions, Limits, Metrics, NodeParts, arbiters::ArbiterPool, clock::SystemClock,
        },
        crypto::BoxKey,
        http::DrainSwitch,
        queue::token::TokenKeys,
        store::{Batch, Write, faults::Fault, memory::Disk},
        wire::ids::Domain,
    };

    #[actix_web::test]
    async fn a_read_only_store_and_a_drain_are_not_ready_and_say_why() {
        let disk = Disk::new();
        let store = disk.open().unwrap();
        let (arbiters, threads) = ArbiterPool::start(1).unwrap();
        let domain = Domain::new("a.example").unwrap();
        let metrics = Metrics::new().unwrap();
        let registry = metrics.registry.clone();
        let node = Node::new(NodeParts {
            groups: GroupOptions::new(domain.clone()),
            domain,
            store: store.clone(),
            clock: std::sync::Arc::new(SystemClock),
            limits: Limits::default(),
            registration: Registration::Closed,
            token_keys: TokenKeys::new(vec![(1, BoxKey::generate().unwrap())]).unwrap(),
            external_senders: Vec::new(),
            metrics,
            arbiters,
            federation: None,
        });
        let (switch, drain) = DrainSwitch::new();
        let (bodies, imports) = (BodyBudget::new(0), BodyBudget::new(0));
        let backups = Backups::new("key", [127, 0, 0, 1].into(), &registry).unwrap();
        let ops = web::Data::new(Ops { node, registry, drain, bodies, imports, backups });
        let ready = async || {
            let response = readyz(ops.clone()).await;
            let status = response.status().as_u16();
            let body = to_bytes(response.into_body()).await.unwrap();
            (status, String::from_utf8(body.to_vec()).unwrap())
        };
        assert_eq!(ready().await, (200, "ready\n".to_owned()));

        disk.faults().fail_flush(1, Fault::Lost);
        let write = Batch::new().and(Write::Node { name: "n", bytes: vec![1] });
        assert!(store.write(write).await.is_err());
        let (status, reason) = ready().await;
        assert_eq!(status, 503);
        assert!(reason.starts_with("not ready: the store takes no writes: "), "{reason}");

        switch.drain();
        assert!(ready().await.1.contains("the node is stopping; the store"));
        spawn_blocking(move || threads.stop_and_join()).await.unwrap();
    }
}
