//! Connections of a listener: who gets one, TLS, and then HTTP/1.1 or HTTP/2, whichever was agreed upon.
//!
//! actix-web's own server is the same but for the bounds: it has no place for those of an address, of a connection
//! ([`super::connection`]) and of HTTP/2 ([`super::h2`]), and lets 256 handshakes of a thread that never end hold up all others.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc};

use actix_http::{HttpService, Request, Response};
use actix_service::{IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, map_config};
use actix_web::{
    App, Error,
    body::{BodySize, BoxBody, MessageBody},
    dev::{AppConfig, Server, ServiceRequest, ServiceResponse, fn_factory, fn_service},
    middleware::{Next, from_fn},
    rt::net::TcpStream,
    web,
};
use tokio::{net::TcpSocket, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::{
    addresses::Gate,
    connection::{AtWork, Bounded, Bounds, State},
    front::{Adjust, Listener},
    h2::Http2,
    limits::{FederationLimits, Limits},
    linger::linger,
    metrics::HttpMetrics,
};
use crate::actors::{Clock, live::Live, pulse::Pulse};

/// What a listener is made of, beside its routes.
pub(super) struct Listening {
    /// Its name in metrics and logs.
    pub listener: &'static str,
    pub address: SocketAddr,
    pub tls: rustls::ServerConfig,
    pub limits: Arc<Live<Limits>>,
    pub metrics: HttpMetrics,
    pub clock: Arc<dyn Clock>,
    /// Where its workers join.
    pub pulse: Pulse,
}

impl Listening {
    /// Binds it. Must be called inside an actix `System`.
    ///
    /// # Errors
    /// Where the address cannot be bound.
    pub fn bind(
        self,
        adjust: impl Fn(&FederationLimits) + Send + Sync + 'static,
        routes: impl Fn(&mut web::ServiceConfig) + Send + Clone + 'static,
    ) -> io::Result<Listener> {
        let Self { listener, address, mut tls, limits, metrics, clock, pulse } = self;
        let socket = listen(address, limits.backlog)?;
        let address = socket.local_addr()?;
        tls.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let gate = Arc::new(Gate::new(&limits, clock));
        let doorkeeper = Arc::clone(&gate);
        let adjust: Adjust = Arc::new(move |limits: &FederationLimits| {
            doorkeeper.adjust(&limits.shared);
            adjust(limits);
        });
        let builder = Server::build();
        let drain = builder.graceful_shutdown_signal();
        let workers = limits.workers.max(1);
        let (backlog, drain_s) = (limits.backlog, limits.drain_timeout.as_secs().max(1));
        let per_worker = limits.connections_max.div_ceil(workers);
        metrics.may_connect(listener, per_worker.saturating_mul(workers));
        let serve = move || {
            let entrance = Entrance {
                listener,
                limits: limits.clone(),
                metrics: metrics.clone(),
                gate: Arc::clone(&gate),
                acceptor: acceptor.clone(),
            };
            let (routes, drain) = (routes.clone(), drain.clone());
            let limits = Arc::clone(&limits);
            let pulse = pulse.clone();
            fn_factory(move || {
                // this is the worker's thread
                actix_web::rt::spawn(worker_turns(&pulse, listener));
                let (entrance, drain) = (entrance.clone(), drain.clone());
                let limits = Arc::clone(&limits);
                let app = || {
                    let limits = Arc::clone(&limits);
                    let linger = from_fn(move |request, next| {
                        linger(limits.request_bytes_max, request, next)
                    });
                    let app = App::new().wrap(linger).wrap(from_fn(at_work));
                    let app = app.configure(routes.clone()).into_factory();
                    let app = app.map_err(|error: Error| Response::from(error));
                    map_config(app, |()| AppConfig::default())
                };
                let draining = drain.clone();
                let http1 = HttpService::build()
                    .graceful_shutdown_signal(move || {
                        let signal = draining.clone();
                        async move { signal.notified().await }
                    })
                    .keep_alive(entrance.limits.keep_alive)
                    .client_request_timeout(entrance.limits.header_timeout)
                    // how long a body that nobody reads is taken, without a bound in bytes: `linger` does that instead
                    .client_disconnect_timeout(std::time::Duration::ZERO)
                    .on_connect_ext(|io: &Bounded, shared| {
                        shared.insert(io.state());
                    })
                    .h1(app())
                    .new_service(());
                let http2 = app().new_service(());
                async move {
                    let (http1, http2) = (Rc::new(http1.await?), Rc::new(http2.await?));
                    Ok::<_, ()>(fn_service(move |socket: TcpStream| {
                        let (entrance, drain) = (entrance.clone(), drain.clone());
                        let (http1, http2) = (Rc::clone(&http1), Rc::clone(&http2));
                        async move {
                            let drain = async move { drain.notified().await };
                            entrance.connection(socket, &*http1, http2, drain).await;
                            Ok::<_, ()>(())
                        }
                    }))
                }
            })
        };
        let server = builder
            .workers(workers)
            .max_concurrent_connections(per_worker)
            .backlog(backlog)
            .shutdown_timeout(drain_s)
            .disable_signals()
            .listen(listener, socket, serve)?
            .run();
        Ok(Listener { address, handle: server.handle(), server, adjust })
    }
}

/// A worker of `listener` turns; to be run on its thread.
pub(super) fn worker_turns(pulse: &Pulse, listener: &str) -> impl Future<Output = ()> + 'static {
    pulse.of_replaceable(format!("worker of the {listener} listener"))
}

fn listen(address: SocketAddr, backlog: u32) -> io::Result<std::net::TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // as every server does, so that one that starts again has its port
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)?.into_std()
}

/// Where connections come in.
#[derive(Clone)]
struct Entrance {
    listener: &'static str,
    limits: Arc<Live<Limits>>,
    metrics: HttpMetrics,
    gate: Arc<Gate>,
    acceptor: TlsAcceptor,
}

impl Entrance {
    async fn connection<H, S, B>(
        &self,
        socket: TcpStream,
        http1: &H,
        http2: Rc<S>,
        drain: impl Future<Output = ()>,
    ) where
        H: Service<(Bounded, Option<SocketAddr>)>,
        S: Service<Request> + 'static,
        S::Response: Into<Response<B>>,
        S::Error: Into<Response<BoxBody>>,
        B: MessageBody + 'static,
    {
        let bounds = Bounds {
            listener: self.listener,
            idle_max: self.limits.keep_alive + self.limits.header_timeout,
            read_grace: self.limits.read_timeout,
            cuts: self.metrics.connection_cuts.clone(),
        };
        // a socket without a peer has just been closed
        let Ok(peer) = socket.peer_addr() else { return };
        let _place = match self.gate.enter(peer) {
            Ok(place) => place,
            Err(reason) => return bounds.cut(reason),
        };
        let _open = self.metrics.connected(self.listener);
        // a socket that refuses is about to end
        let _ = socket.set_nodelay(true);
        let preface_max = self.limits.header_timeout;
        let tls = match timeout(preface_max, self.acceptor.accept(socket)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                tracing::debug!(listener = self.listener, %error, "a TLS handshake failed");
                return bounds.cut("tls");
            }
            Err(_) => return bounds.cut("handshake"),
        };
        let is_http2 = tls.get_ref().1.alpn_protocol() == Some(H2);
        let io = Bounded::new(tls, bounds.clone());
        if is_http2 {
            Http2 { bounds, preface_max }.serve(io, http2, Some(peer), drain).await;
        } else if http1.call((io, Some(peer))).await.is_err() {
            tracing::trace!(listener = self.listener, "a connection broke off");
        }
    }
}

/// A middleware: says to an HTTP/1 connection that a request is at work on it, to the end of the answer.
async fn at_work<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse, Error> {
    let state = request.conn_data::<Rc<State>>().cloned();
    let at_work = state.map(|state| state.enter());
    let response = next.call(request).await?;
    Ok(response.map_body(|_, body| BoxBody::new(Worked { body: body.boxed(), _at_work: at_work })))
}

/// The body of an answer.
struct Worked {
    body: BoxBody,
    _at_work: Option<AtWork>,
}

impl MessageBody for Worked {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<web::Bytes, Self::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_next(cx)
    }
}

const H2: &[u8] = b"h2";
