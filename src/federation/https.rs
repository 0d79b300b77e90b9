//! The way to other providers: HTTPS with what a stranger's server may do to us kept within bounds.
//!
//! TLS 1.3 only, certificates by the system's authorities and those that the operator adds, no redirects, no content coding,
//! no proxy; times and answer sizes are bounded, bodies are read piece by piece. A name is looked up here and its
//! addresses are judged before they are connected to (`address`), so nothing can change in between. Connections
//! are shared and kept by host, over HTTP/2 where the peer has it.
//!
//! Connections live on threads of their own: whoever calls may be busy or gone without harm to others on the same connection.
//! Deliberately absent: what is sent, and when to try again.

use std::{
    collections::HashMap,
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use headers::HeaderMap;
use reqwest::{
    Client, RequestBuilder, Response, StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
    header,
};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::AbortHandle,
};

use crate::{crypto, wire::ids::Domain};

use super::{
    CallError, Clock, HttpAnswer, Transport,
    address::is_global,
    discovery::{self, Discoveries, ServiceHost},
    flight::Flights,
    trace::{TRACEPARENT, TraceParent},
};

/// What an operator may decide.
pub struct HttpsOptions {
    /// In place of discovery. The certificate must be good for the host that is named here.
    pub overrides: HashMap<Domain, ServiceHost>,
    /// Certificates to trust beside the system's, each file's PEM.
    pub extra_roots: Vec<Vec<u8>>,
    /// Also connects to addresses that are not global unicast: for closed networks and one machine.
    pub allow_private_addresses: bool,
    pub connect_timeout: Duration,
    pub discovery_timeout: Duration,
    /// Domains whose Delivery Service is remembered.
    pub discoveries_max: usize,
    pub clock: Clock,
}

impl HttpsOptions {
    /// No overrides, the system's roots, global addresses only.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            overrides: HashMap::new(),
            extra_roots: Vec::new(),
            allow_private_addresses: false,
            connect_timeout: Duration::from_secs(5),
            discovery_timeout: Duration::from_secs(10),
            discoveries_max: 8192,
            clock,
        }
    }
}

/// Why there is no transport; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    #[error("an extra root is not a PEM certificate: {0}")]
    Root(String),
    #[error("no HTTPS client: {0}")]
    Client(String),
    #[error("no threads for connections to other providers: {0}")]
    Threads(io::Error),
}

/// [`Transport`] over the network.
pub struct Https {
    /// Only none while it is dropped.
    runtime: Option<Runtime>,
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    overrides: HashMap<Domain, ServiceHost>,
    allow_private_addresses: bool,
    discovery_timeout: Duration,
    clock: Clock,
    discoveries: Mutex<Discoveries>,
    asked: Flights<Domain, Result<ServiceHost, String>>,
}

/// Finds the addresses of a name; their port is 0 where the URL's is meant.
type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

impl Https {
    /// # Errors
    /// [`HttpsError`]
    pub fn new(options: HttpsOptions) -> Result<Self, HttpsError> {
        let lookup = |name: String| -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
            Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.collect()) })
        };
        Self::with_lookup(options, Arc::new(lookup))
    }

    fn with_lookup(options: HttpsOptions, lookup: Lookup) -> Result<Self, HttpsError> {
        // before there are threads, which nobody may end where async code runs
        let client = client(&options, lookup)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("mimid-s2s")
            .enable_all()
            .build()
            .map_err(HttpsError::Threads)?;
        let shared = Shared {
            client,
            overrides: options.overrides,
            allow_private_addresses: options.allow_private_addresses,
            discovery_timeout: options.discovery_timeout,
            clock: options.clock,
            discoveries: Mutex::new(Discoveries::new(options.discoveries_max)),
            asked: Flights::default(),
        };
        Ok(Self { runtime: Some(runtime), shared: Arc::new(shared) })
    }

    /// Runs `call` on the transport's own threads; gives up on it when the caller does.
    async fn run(
        &self,
        timeout: Duration,
        call: impl Future<Output = Result<HttpAnswer, CallError>> + Send + 'static,
    ) -> Result<HttpAnswer, CallError> {
        let stopped = || CallError::Unreachable("this node is stopping".to_owned());
        let handle: &Handle = self.runtime.as_ref().ok_or_else(stopped)?.handle();
        let task = handle.spawn(tokio::time::timeout(timeout, call));
        let _guard = AbortOnDrop(task.abort_handle());
        match task.await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_elapsed)) => Err(CallError::Timeout),
            Err(_ended) => Err(stopped()),
        }
    }
}

impl Drop for Https {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // the other way of ending one blocks, which no async code may
            runtime.shutdown_background();
        }
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Transport for Https {
    fn get<'a>(
        &'a self,
        peer: &'a Domain,
        path: &'static str,
        answer_bytes_max: usize,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<HttpAnswer, CallError>> {
        let (shared, peer) = (Arc::clone(&self.shared), peer.clone());
        Box::pin(
            self.run(
                timeout,
                async move { shared.call(&peer, path, None, answer_bytes_max).await },
            ),
        )
    }

    fn post<'a>(
        &'a self,
        peer: &'a Domain,
        path: &'static str,
        body: Vec<u8>,
        answer_bytes_max: usize,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<HttpAnswer, CallError>> {
        let trace = TraceParent::new(crypto::random(), crypto::random());
        // in the span of who asks, so that the line names its own trace beside this one
        tracing::debug!(%peer, endpoint = path, sent_trace_id = %trace.trace, "a request goes to another provider");
        let (shared, peer) = (Arc::clone(&self.shared), peer.clone());
        Box::pin(self.run(timeout, async move {
            shared.call(&peer, path, Some((body, trace)), answer_bytes_max).await
        }))
    }
}

impl Shared {
    async fn call(
        self: Arc<Self>,
        peer: &Domain,
        path: &'static str,
        body: Option<(Vec<u8>, TraceParent)>,
        answer_bytes_max: usize,
    ) -> Result<HttpAnswer, CallError> {
        let host = self.host_of(peer).await?;
        let url = format!("https://{}{path}", host.authority());
        let request = match body {
            None => self.client.get(url),
            Some((body, trace)) => self
                .client
                .post(url)
                .header(header::CONTENT_TYPE, OCTET_STREAM)
                .header(TRACEPARENT, trace.to_string())
                .body(body),
        };
        let answered = exchange(request, answer_bytes_max).await;
        if matches!(answered, Err(CallError::Unreachable(_))) {
            self.discoveries().doubt(peer, (self.clock)());
        }
        let Answered { status, headers, body } = answered?;
        Ok(HttpAnswer { status: status.as_u16(), retry_after_ms: retry_after_ms(&headers), body })
    }

    async fn host_of(self: &Arc<Self>, peer: &Domain) -> Result<ServiceHost, CallError> {
        if let Some(host) = self.overrides.get(peer) {
            return self.judge_address(host.clone());
        }
        let known = self.discoveries().of(peer, (self.clock)());
        let found = match known {
            Some(found) => found,
            None => {
                let (shared, domain) = (Arc::clone(self), peer.clone());
                let asking = self.asked.start(peer.clone(), async move {
                    let outcome = shared.discover(&domain).await;
                    let found = outcome.as_ref().map(|(host, _)| host.clone());
                    let found = found.map_err(Clone::clone);
                    shared.discoveries().learn(domain, outcome, (shared.clock)());
                    found
                });
                asking.landed().await.unwrap_or_else(|| Err("it was broken off".to_owned()))
            }
        };
        found.map_err(CallError::Discovery)
    }

    /// An address is not looked up, so nobody else judges it.
    fn judge_address(&self, host: ServiceHost) -> Result<ServiceHost, CallError> {
        match host.address() {
            Some(address) if !self.allow_private_addresses && !is_global(address) => {
                Err(CallError::Unreachable(Forbidden(address).to_string()))
            }
            Some(_) | None => Ok(host),
        }
    }

    async fn discover(&self, domain: &Domain) -> Result<(ServiceHost, u64), String> {
        // else the URL would mean an address, which is not looked up
        discovery::named(domain.as_str()).map_err(|_| format!("{domain} is not a name"))?;
        let request = self.client.get(format!("https://{domain}{}", discovery::PATH));
        let exchanged = exchange(request, discovery::ANSWER_BYTES_MAX);
        let answered = tokio::time::timeout(self.discovery_timeout, exchanged)
            .await
            .unwrap_or(Err(CallError::Timeout))
            .map_err(|error| format!("{}: {error}", discovery::PATH))?;
        if answered.status != StatusCode::OK {
            return Err(format!("{} answered {}", discovery::PATH, answered.status.as_u16()));
        }
        let host = ServiceHost::from_answer(&answered.body)
            .map_err(|error| format!("{}: {error}", discovery::PATH))?;
        Ok((host, discovery::lifetime_ms(&answered.headers)))
    }

    fn discoveries(&self) -> MutexGuard<'_, Discoveries> {
        self.discoveries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

async fn exchange(request: RequestBuilder, bytes_max: usize) -> Result<Answered, CallError> {
    let response = request.send().await.map_err(failed)?;
    if response.headers().contains_key(header::CONTENT_ENCODING) {
        return Err(CallError::BadAnswer("it has a content coding".to_owned()));
    }
    let (status, headers) = (response.status(), response.headers().clone());
    Ok(Answered { status, headers, body: collect(response, bytes_max).await? })
}

async fn collect(mut response: Response, bytes_max: usize) -> Result<Vec<u8>, CallError> {
    let declared = response.content_length().unwrap_or(0);
    let Some(declared) = usize::try_from(declared).ok().filter(|len| *len <= bytes_max) else {
        return Err(CallError::TooLarge);
    };
    // what is declared is only taken on trust in small
    let mut body = Vec::with_capacity(declared.min(READ_AHEAD_BYTES));
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > bytes_max {
            return Err(CallError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Whole seconds; a date is as good as no hint.
pub(super) fn retry_after_ms(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    Some(text.parse::<u32>().ok().map(u64::from)? * 1000)
}

fn failed(error: reqwest::Error) -> CallError {
    if error.is_timeout() && !error.is_connect() {
        return CallError::Timeout;
    }
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    CallError::Unreachable(text)
}

fn client(options: &HttpsOptions, lookup: Lookup) -> Result<Client, HttpsError> {
    // an error says that the process has a provider already, which will do
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut roots = Vec::new();
    for pem in &options.extra_roots {
        let found = reqwest::Certificate::from_pem_bundle(pem)
            .map_err(|error| HttpsError::Root(error.to_string()))?;
        if found.is_empty() {
            return Err(HttpsError::Root("no certificate is in it".to_owned()));
        }
        roots.extend(found);
    }
    Client::builder()
        .tls_backend_rustls()
        .tls_version_min(reqwest::tls::Version::TLS_1_3)
        .tls_certs_merge(roots)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .user_agent(concat!("mimid/", env!("CARGO_PKG_VERSION")))
        .dns_resolver(Arc::new(Judging {
            lookup,
            allow_private_addresses: options.allow_private_addresses,
        }))
        .connect_timeout(options.connect_timeout)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .pool_idle_timeout(IDLE)
        .http2_keep_alive_interval(ALIVE_EVERY)
        .http2_keep_alive_timeout(ALIVE_WITHIN)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .build()
        .map_err(|error| HttpsError::Client(told(&error)))
}

fn told(error: &reqwest::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Looks names up and gives only the addresses that may be connected to.
struct Judging {
    lookup: Lookup,
    allow_private_addresses: bool,
}

impl Resolve for Judging {
    fn resolve(&self, name: Name) -> Resolving {
        let found = (self.lookup)(name.as_str().to_owned());
        let allow_private_addresses = self.allow_private_addresses;
        Box::pin(async move {
            let found = found.await?;
            let refused = found.iter().map(SocketAddr::ip).find(|address| !is_global(*address));
            let allowed: Vec<SocketAddr> = found
                .into_iter()
                .filter(|address| allow_private_addresses || is_global(address.ip()))
                .collect();
            match refused {
                Some(address) if allowed.is_empty() => Err(Forbidden(address).into()),
                Some(_) | None => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

/// An address that no other provider may be at.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not a global unicast address, and allow_private_addresses is not set")]
struct Forbidden(IpAddr);

const OCTET_STREAM: &str = "application/octet-stream";
/// Threads that connections live on.
const THREADS: usize = 2;
/// Connections to one host that are kept without a request on them.
const IDLE_PER_HOST: usize = 2;
const IDLE: Duration = Duration::from_secs(60);
/// A connection with requests on it is asked for a sign of life.
const ALIVE_EVERY: Duration = Duration::from_secs(15);
const ALIVE_WITHIN: Duration = Duration::from_secs(10);
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// Memory that a declared length gets before its bytes are there.
const READ_AHEAD_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests;
