//! Start and stop of a node, in its own threads: used by `mimid serve` and, in one process, by whoever embeds a provider.
//!
//! Stopping is a drain: readiness turns, long polls answer, streams close, requests in flight end (up to a deadline),
//! queues persist what was acknowledged, the store closes. Nothing that was answered is lost if it is killed instead.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use prometheus::{IntGaugeVec, Opts};
use tokio::sync::{oneshot, watch};

use super::{
    config::{self, Config, Engine, RegistrationMode},
    endpoints::Endpoints,
    keys::{self, KeysError, NodeKeys, TlsFiles},
    store_metrics::StoreMetrics,
};
use crate::{
    account::Registration,
    actors::{Clock, Metrics, Node, NodeParts, arbiters::ArbiterPool, clock::SystemClock},
    http::{self, DrainSwitch, HttpMetrics, Listener, TlsError},
    store::{self, OpenError, SharedStore, StoreConfig},
};

/// How often the node looks for groups that have something to do by themselves.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// Why a node does not start; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the data folder {path} cannot be used: {source}", path = path.display())]
    DataDir { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("TLS of the client listener: {0}")]
    Tls(#[from] TlsError),
    #[error("{0}")]
    Store(#[from] OpenError),
    #[error(
        "{key} = {address} is taken by another process: choose another, or port 0 for any free one"
    )]
    Taken { key: &'static str, address: SocketAddr },
    #[error("{key} = {address} cannot be bound: {source}")]
    Bind { key: &'static str, address: SocketAddr, source: io::Error },
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("no thread can be started: {0}")]
    Thread(io::Error),
    #[error("the node ended before it was up; the log says why")]
    Died,
}

/// Why a node did not stop as it should.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StopError {
    #[error("the store did not close: {0}")]
    Store(String),
    #[error("a listener ended by itself: {0}")]
    Listener(String),
    #[error("the node's thread panicked; the log says where")]
    Panicked,
}

/// A node that runs. Dropping it stops it, without waiting.
#[derive(Debug)]
pub struct Running {
    endpoints: Endpoints,
    stop: Option<oneshot::Sender<()>>,
    ended: watch::Receiver<bool>,
    thread: JoinHandle<Result<(), StopError>>,
}

impl Running {
    /// Where it listens, ports as it got them.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Returns when the node has ended by itself: a listener failed.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // an error means that its sender, and so the node, is gone
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Drains and waits until the node is gone: its ports and its store are free then. Blocks the thread.
    ///
    /// # Errors
    /// `StopError`, with what was lost of the drain.
    pub fn stop(mut self) -> Result<(), StopError> {
        if let Some(stop) = self.stop.take() {
            // an error means that it has ended already
            let _ = stop.send(());
        }
        self.thread.join().map_err(|_| StopError::Panicked)?
    }
}

/// Starts a node by the machine's clock. Returns when it is bound and `endpoints.json` is written; blocks until then.
///
/// # Errors
/// [`StartError`]
pub fn start(config: Config) -> Result<Running, StartError> {
    start_at(config, Arc::new(SystemClock))
}

/// [`start`], by another clock.
///
/// # Errors
/// [`StartError`]
pub fn start_at(config: Config, clock: Arc<dyn Clock>) -> Result<Running, StartError> {
    let (stop, stopped) = oneshot::channel();
    let (tell_end, ended) = watch::channel(false);
    let (tell_up, up) = mpsc::channel();
    let thread = thread::Builder::new()
        .name("mimid-node".to_owned())
        .spawn(move || {
            actix_rt::System::new().block_on(async move {
                let _end = EndGuard(tell_end);
                match Composed::new(config, clock) {
                    Ok(node) => {
                        let up = tell_up.send(Ok(node.endpoints.clone()));
                        node.run(stopped, up.is_ok()).await
                    }
                    Err(error) => {
                        // the caller is waiting on the other end
                        let _ = tell_up.send(Err(error));
                        Ok(())
                    }
                }
            })
        })
        .map_err(StartError::Thread)?;
    let endpoints = up.recv().map_err(|_| StartError::Died)??;
    Ok(Running { endpoints, stop: Some(stop), ended, thread })
}

/// Says that the node is gone, however it went.
struct EndGuard(watch::Sender<bool>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// Everything of a node, bound and not yet serving.
struct Composed {
    data_dir: PathBuf,
    endpoints: Endpoints,
    node: Node,
    store: SharedStore,
    threads: crate::actors::arbiters::ArbiterThreads,
    client: Listener,
    ops: Listener,
    drain: DrainSwitch,
    drain_timeout: Duration,
}

impl Composed {
    fn new(config: Config, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        let data_dir = data_folder(&config.data_dir)?;
        // first of all: it holds the lock of the folder, and keys and certificate are written there
        let store = store::open(&StoreConfig {
            engine: match config.store.engine {
                Engine::Sled => "sled".to_owned(),
                Engine::Memory => "memory".to_owned(),
            },
            folder: data_dir.join("store"),
            cache_bytes: config.store.cache.0,
        })?;
        let keys = NodeKeys::open(&data_dir, clock.now())?;
        let tls_files = tls_files(&config, &data_dir)?;
        let tls = http::server_tls(&tls_files.chain_pem, &tls_files.key_pem)?;
        let metrics = Metrics::new()?;
        let http_metrics = HttpMetrics::register(&metrics.registry)?;
        register_process_metrics(&metrics.registry, &store)?;
        let (arbiters, threads) =
            ArbiterPool::start(config.limits.actor_threads).map_err(StartError::Thread)?;
        let registry = metrics.registry.clone();
        let node = Node::new(NodeParts {
            domain: config.domain.clone(),
            store: Arc::clone(&store),
            clock,
            limits: config.node_limits(),
            groups: config.group_options(),
            registration: registration(&config.registration),
            token_keys: keys.token_keys,
            external_senders: keys.external_senders,
            metrics,
            arbiters,
            federation: None,
        });
        let (drain, draining) = DrainSwitch::new();
        let (client_address, ops_address) = (config.client.listen, config.ops.listen);
        let client = http::client_listener(
            node.clone(),
            client_address,
            tls,
            config.client_limits(),
            http_metrics,
            draining.clone(),
            None,
        )
        .map_err(|error| bind_error("client.listen", client_address, error))?;
        let ops = http::ops_listener(node.clone(), ops_address, registry, draining)
            .map_err(|error| bind_error("ops.listen", ops_address, error))?;
        let endpoints = Endpoints::new(
            client.address,
            ops.address,
            config.domain.clone(),
            tls_files.self_signed,
        );
        endpoints
            .write(&data_dir)
            .map_err(|source| StartError::DataDir { path: data_dir.clone(), source })?;
        let drain_timeout = config.limits.drain_timeout;
        Ok(Self { data_dir, endpoints, node, store, threads, client, ops, drain, drain_timeout })
    }

    /// Serves until told to stop, or until a listener fails.
    async fn run(self, stop: oneshot::Receiver<()>, wanted: bool) -> Result<(), StopError> {
        let Self { data_dir, endpoints, node, store, threads, client, ops, drain, drain_timeout } =
            self;
        tracing::info!(domain = %endpoints.domain, client = endpoints.client, ops = endpoints.ops, "serving");
        let sweeper = actix_rt::spawn(sweep(node.clone()));
        let mut client_task = actix_rt::spawn(client.server);
        let mut ops_task = actix_rt::spawn(ops.server);
        let failed = if wanted {
            tokio::select! {
                // its sender sends, or is dropped with the `Running`
                _ = stop => None,
                ended = &mut client_task => Some(format!("client: {ended:?}")),
                ended = &mut ops_task => Some(format!("ops: {ended:?}")),
            }
        } else {
            None
        };
        tracing::info!("stopping: no new requests are taken, those in flight end");
        drain.drain();
        let graceful = client.handle.stop(true);
        if tokio::time::timeout(drain_timeout + Duration::from_secs(5), graceful).await.is_err() {
            tracing::warn!(
                "requests were still in flight at the deadline; their clients will retry"
            );
        }
        sweeper.abort();
        node.drain_queues().await;
        let closed = store.close().await;
        ops.handle.stop(false).await;
        threads.stop_and_join();
        if let Err(error) = Endpoints::remove(&data_dir) {
            tracing::warn!(%error, "endpoints.json was not removed");
        }
        closed.map_err(|error| StopError::Store(error.to_string()))?;
        tracing::info!("stopped");
        failed.map_or(Ok(()), |what| Err(StopError::Listener(what)))
    }
}

/// Does what was left to do: deletions that were begun, what waits for groups, groups whose time has come.
async fn sweep(node: Node) {
    let mut often = tokio::time::interval(SWEEP_EVERY);
    loop {
        often.tick().await;
        if let Err(error) = node.finish_deletions().await {
            tracing::warn!(%error, "deletions that were begun cannot be finished now");
        }
        if let Err(error) = node.wake_noticed_groups().await {
            tracing::warn!(%error, "what was left for groups cannot be read now");
        }
        match node.sweep_groups().await {
            Ok(0) => {}
            Ok(woken) => tracing::info!(woken, "groups had something to do by themselves"),
            Err(error) => tracing::warn!(%error, "the groups cannot be swept now"),
        }
    }
}

fn data_folder(path: &Path) -> Result<PathBuf, StartError> {
    let failed = |source| StartError::DataDir { path: path.to_owned(), source };
    std::fs::create_dir_all(path).map_err(failed)?;
    // absolute, so that what endpoints.json says holds wherever it is read
    path.canonicalize().map_err(failed)
}

fn tls_files(config: &Config, data_dir: &Path) -> Result<TlsFiles, KeysError> {
    match (&config.client.certificate, &config.client.key) {
        (Some(certificate), Some(key)) => keys::operators_tls(certificate, key),
        (None | Some(_), None | Some(_)) => keys::self_signed_tls(data_dir, &config.domain),
    }
}

fn registration(config: &config::Registration) -> Registration {
    match config.mode {
        RegistrationMode::Open => Registration::Open,
        RegistrationMode::Closed => Registration::Closed,
        RegistrationMode::Token => Registration::Token(
            config.token_hashes.iter().filter_map(|hash| config::token_hash(hash)).collect(),
        ),
    }
}

fn register_process_metrics(
    registry: &prometheus::Registry,
    store: &SharedStore,
) -> Result<(), prometheus::Error> {
    registry.register(Box::new(StoreMetrics::new(Arc::clone(store))?))?;
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
    let build = IntGaugeVec::new(
        Opts::new("mimid_build_info", "1, with what this process was built from"),
        &["version"],
    )?;
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    registry.register(Box::new(build))
}

fn bind_error(key: &'static str, address: SocketAddr, source: io::Error) -> StartError {
    if source.kind() == io::ErrorKind::AddrInUse {
        StartError::Taken { key, address }
    } else {
        StartError::Bind { key, address, source }
    }
}
