//! Start and stop of a node, in its own threads: used by `mimid serve` and, in one process, by whoever embeds a provider.
//!
//! Stopping is a drain: readiness turns, long polls answer, streams close, requests in flight end (up to a deadline),
//! queues and peers persist what was acknowledged, the store closes. Nothing that was answered is lost if it is killed instead.

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
    certificate_metrics::CertificateMetrics,
    config::{self, Config, ConfigError, Engine, RegistrationMode},
    endpoints::{self, Endpoints},
    files,
    keys::{self, KeysError, NodeKeys, TlsFiles},
    outside::Outside,
    process_metrics::ProcessMetrics,
    reload::{Asked, Doors, Gauges, Reload},
    sender_keys::{SenderKeyFile, Senders},
    store_metrics::StoreMetrics,
    watch::Watch,
};
use crate::{
    account::Registration,
    actors::{
        Clock, Metrics, Node, NodeParts, arbiters::ArbiterPool, clock::SystemClock,
        hub_keys::KeysInUse,
    },
    federation::https::HttpsError,
    group::keys::done_with,
    http::{self, Certificates, DrainSwitch, DsDomain, HttpMetrics, Listener, TlsError},
    store::{self, OpenError, SharedStore, StoreConfig},
    wire::ids::{Domain, Timestamp},
};

/// How often the node looks for groups that have something to do by themselves.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// How often it looks for peers that something waits for.
const PEERS_EVERY: Duration = Duration::from_secs(30);
/// How often it looks whether keys and roots have changed, and how often while a root is not there yet.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const LOOK_OFTEN: Duration = Duration::from_secs(1);
/// Groups that are woken at a time to propose the hub's new key.
const TURNED_AT_ONCE: usize = 256;
const HTTPS: u16 = 443;

/// Why a node does not start; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the data folder {path} cannot be used: {source}", path = path.display())]
    DataDir { path: PathBuf, source: io::Error },
    #[error(
        "the data folder {path} is that of {was}, whose users and groups bear its name: domain = {was:?} serves it; \
         {is} needs a data folder of its own",
        path = path.display()
    )]
    OtherDomain { path: PathBuf, was: String, is: Domain },
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("TLS of the {listener} listener: {source}")]
    Tls { listener: &'static str, source: TlsError },
    #[error("federation: {0}")]
    Https(#[from] HttpsError),
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
    reload: Arc<Asked>,
    ended: watch::Receiver<bool>,
    watch: Watch,
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

    /// To look whether all of its threads go on.
    #[must_use]
    pub fn watch(&self) -> Watch {
        self.watch.clone()
    }

    /// Reads certificates, keys and roots again. What cannot be used is in the log, and what was before goes on.
    pub fn reload(&self) {
        self.reload.ask(None);
    }

    /// The same with a configuration that was read again, or with why that could not be: then nothing changes. Of it is taken
    /// what a running node can take; the log names what waits for a restart.
    pub fn reload_with(&self, config: Result<Config, ConfigError>) {
        self.reload.ask(Some(config));
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
    let reload = Arc::new(Asked::default());
    let reloading = Arc::clone(&reload);
    let thread = thread::Builder::new()
        .name("mimid-node".to_owned())
        .spawn(move || {
            actix_rt::System::new().block_on(async move {
                let _end = EndGuard(tell_end);
                match Composed::new(config, clock) {
                    Ok(node) => {
                        let pulse = node.node.pulse().clone();
                        actix_rt::spawn(pulse.of("the node's own".to_owned()));
                        let watch = Watch::new(pulse, Arc::downgrade(&node.store));
                        let up = tell_up.send(Ok((node.endpoints.clone(), watch)));
                        node.run(stopped, reloading, up.is_ok()).await
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
    let (endpoints, watch) = up.recv().map_err(|_| StartError::Died)??;
    Ok(Running { endpoints, stop: Some(stop), reload, ended, watch, thread })
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
    /// None where this provider does not federate.
    federation: Option<Listener>,
    again: Again,
    drain: DrainSwitch,
    drain_timeout: Duration,
    /// How many the process may have open.
    files: u64,
}

/// What is read again while the node runs.
struct Again {
    config: Config,
    data_dir: PathBuf,
    reload: Reload,
    outside: Option<Outside>,
    node: Node,
    senders: SenderKeyFile,
    /// When the groups' hub keys are looked at next, where there are old ones.
    look_at: Timestamp,
    clock: Arc<dyn Clock>,
}

impl Composed {
    fn new(mut config: Config, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        let data_dir = data_folder(&config.data_dir)?;
        let files = files::raise();
        files::share(&mut config, files);
        // first of all: it holds the lock of the folder, and keys and certificate are written there
        let store = store::open(&StoreConfig {
            engine: match config.store.engine {
                Engine::Sled => "sled".to_owned(),
                Engine::Fjall => "fjall".to_owned(),
                Engine::Memory => "memory".to_owned(),
            },
            folder: data_dir.join("store"),
            cache_bytes: config.store.cache.0,
        })?;
        if config.store.engine != Engine::Memory {
            store.keep_free(config.store.free_bytes_min.0);
            keep_domain(&data_dir, &config.domain)?;
        }
        let keys = NodeKeys::open(&data_dir, clock.now())?;
        let tls_files = client_files(&config, &data_dir)?;
        let client_certificates = certificates("client", &tls_files)?;
        let metrics = Metrics::new()?;
        let http_metrics = HttpMetrics::register(&metrics.registry)?;
        register_process_metrics(&metrics.registry, &store)?;
        let registry = metrics.registry.clone();
        let gauges = Gauges::register(&registry)?;
        let outside = match config.federation.listen {
            Some(listen) => {
                let senders = keys.external_senders.held.clone();
                let outside = Outside::new(&config, &data_dir, senders, &clock, &registry)?;
                let files = federation_files(&config, &data_dir)?;
                Some((listen, outside, certificates("federation", &files)?))
            }
            None => None,
        };
        let mut listeners = vec![("client", Arc::clone(&client_certificates))];
        if let Some((_, _, certificates)) = &outside {
            listeners.push(("federation", Arc::clone(certificates)));
        }
        registry.register(Box::new(CertificateMetrics::new(listeners)?))?;
        let (arbiters, threads) =
            ArbiterPool::start(config.limits.actor_threads).map_err(StartError::Thread)?;
        let node = Node::new(NodeParts {
            domain: config.domain.clone(),
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            limits: config.node_limits(),
            groups: config.group_options(),
            registration: registration(&config.registration),
            token_keys: keys.token_keys,
            external_senders: keys.external_senders.held,
            metrics,
            arbiters,
            federation: outside.as_ref().map(|(_, outside, _)| Arc::clone(&outside.federation)),
        });
        node.replace_retired_senders(keys.external_senders.retired);
        let (drain, draining) = DrainSwitch::new();
        let ds_domain = DsDomain::new(config.federation.domain_name_cached);
        let federation = match &outside {
            Some((listen, outside, certificates)) => {
                let listener = http::federation_listener(
                    node.clone(),
                    Arc::clone(&outside.federation),
                    *listen,
                    tls("federation", certificates)?,
                    config.federation_limits(),
                    http_metrics.clone(),
                    ds_domain.clone(),
                )
                .map_err(|error| bind_error("federation.listen", *listen, error))?;
                ds_domain.tell(domain_name(&config, listener.address));
                Some(listener)
            }
            None => None,
        };
        let (client_address, ops_address) = (config.client.listen, config.ops.listen);
        let client = http::client_listener(
            node.clone(),
            client_address,
            tls("client", &client_certificates)?,
            config.client_limits(),
            http_metrics,
            draining.clone(),
            federation.is_some().then_some(ds_domain),
        )
        .map_err(|error| bind_error("client.listen", client_address, error))?;
        let backup_key = endpoints::write_backup_key(&data_dir)
            .map_err(|source| StartError::DataDir { path: data_dir.clone(), source })?;
        let ops = http::ops_listener(node.clone(), ops_address, registry, draining, &backup_key)
            .map_err(|error| bind_error("ops.listen", ops_address, error))?;
        let endpoints = Endpoints::new(
            client.address,
            ops.address,
            federation.as_ref().map(|listener| listener.address),
            config.domain.clone(),
            tls_files.self_signed,
        );
        endpoints
            .write(&data_dir)
            .map_err(|source| StartError::DataDir { path: data_dir.clone(), source })?;
        let drain_timeout = config.limits.drain_timeout;
        let doors = |name, listener: &Listener, certificates: &Arc<Certificates>| Doors {
            name,
            certificates: Arc::clone(certificates),
            adjust: Arc::clone(&listener.adjust),
        };
        let reload = Reload {
            node: node.clone(),
            store: Arc::clone(&store),
            client: doors("client", &client, &client_certificates),
            federation: outside
                .as_ref()
                .zip(federation.as_ref())
                .map(|((_, _, own), listener)| doors("federation", listener, own)),
            files,
            gauges,
            changes: 0,
        };
        let again = Again {
            data_dir: data_dir.clone(),
            reload,
            outside: outside.map(|(_, outside, _)| outside),
            node: node.clone(),
            senders: keys.sender_file,
            look_at: Timestamp(0),
            clock,
            config,
        };
        Ok(Self {
            data_dir,
            endpoints,
            node,
            store,
            threads,
            client,
            ops,
            federation,
            again,
            drain,
            drain_timeout,
            files,
        })
    }

    /// Serves until told to stop, or until a listener fails.
    async fn run(
        self,
        stop: oneshot::Receiver<()>,
        reload: Arc<Asked>,
        wanted: bool,
    ) -> Result<(), StopError> {
        let Self { data_dir, endpoints, node, store, threads, client, ops, .. } = self;
        if let Err(error) = node.load_arrivals().await {
            tracing::warn!(%error, "groups that came from elsewhere cannot be counted yet");
        }
        tracing::info!(
            domain = %endpoints.domain,
            files = self.files,
            connections = self.again.config.limits.connections_max,
            client = endpoints.client,
            ops = endpoints.ops,
            federation = endpoints.federation.as_deref().unwrap_or("off"),
            "serving"
        );
        let background = [
            actix_rt::spawn(sweep(node.clone())),
            actix_rt::spawn(look_after_peers(node.clone())),
            actix_rt::spawn(self.again.run(reload)),
        ];
        let mut client_task = actix_rt::spawn(client.server);
        let mut ops_task = actix_rt::spawn(ops.server);
        let (federation_handle, federation_server) =
            self.federation.map(|listener| (listener.handle, listener.server)).unzip();
        // one that is not there never ends
        let mut federation_task = actix_rt::spawn(async {
            match federation_server {
                Some(server) => server.await,
                None => std::future::pending().await,
            }
        });
        let failed = if wanted {
            tokio::select! {
                // its sender sends, or is dropped with the `Running`
                _ = stop => None,
                ended = &mut client_task => Some(format!("client: {ended:?}")),
                ended = &mut ops_task => Some(format!("ops: {ended:?}")),
                ended = &mut federation_task => Some(format!("federation: {ended:?}")),
            }
        } else {
            None
        };
        tracing::info!("stopping: no new requests are taken, those in flight end");
        self.drain.drain();
        let graceful = async {
            let federation = async {
                if let Some(handle) = &federation_handle {
                    handle.stop(true).await;
                }
            };
            tokio::join!(client.handle.stop(true), federation);
        };
        let deadline = self.drain_timeout + Duration::from_secs(5);
        if tokio::time::timeout(deadline, graceful).await.is_err() {
            tracing::warn!(
                "requests were still in flight at the deadline; their clients will retry"
            );
        }
        federation_task.abort();
        for task in background {
            task.abort();
        }
        node.drain_queues().await;
        node.drain_peers().await;
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

impl Again {
    /// Looks every minute, more often while a root is waited for, and when told to.
    async fn run(mut self, told: Arc<Asked>) {
        loop {
            self.hub_keys().await;
            let waits = self.outside.as_ref().is_some_and(Outside::waits_for_roots);
            let pause = if waits { LOOK_OFTEN } else { LOOK_EVERY };
            tokio::select! {
                () = told.asked() => {
                    self.reload.take(&mut self.config, &self.data_dir, told.take());
                }
                () = tokio::time::sleep(pause) => {}
            }
            if let Some(outside) = &self.outside {
                outside.refresh();
                outside.federation.sweep();
            }
        }
    }

    /// Takes what `mimid keys` has made, has groups propose it, and retires what no group has any more.
    async fn hub_keys(&mut self) {
        match self.senders.changed() {
            Ok(None) => {}
            Ok(Some(keys)) => {
                tracing::info!(keys = keys.held.len(), "the hub's keys were read again");
                self.take_senders(keys);
                self.look_at = Timestamp(0);
            }
            Err(error) => {
                tracing::error!(%error, "the hub's keys cannot be read again");
                return;
            }
        }
        let (hub, now) = (self.node.hub(), self.clock.now());
        if hub.keys.retired().iter().any(|key| key.is_over(now)) {
            match self.senders.erase(now) {
                Ok(keys) => self.take_senders(keys),
                Err(error) => tracing::error!(%error, "retired keys cannot be erased"),
            }
        }
        if !hub.keys.has_old() || now < self.look_at {
            return;
        }
        let turned = match self.node.turn_hub_keys(TURNED_AT_ONCE).await {
            Ok(turned) => turned,
            Err(error) => {
                tracing::warn!(%error, "the groups' hub keys cannot be looked at now");
                return;
            }
        };
        if turned.woken == 0 {
            // only commits of members change anything now; a look costs a read of every group's head
            self.look_at = now.plus_ms(u64::try_from(SWEEP_EVERY.as_millis()).unwrap_or(u64::MAX));
        } else {
            let KeysInUse { behind, woken, .. } = turned;
            tracing::info!(behind, woken, "groups propose the hub's new key");
        }
        let Some(in_use) = turned.keys else { return };
        let old = done_with(&hub.keys.all(), &in_use, now);
        if old.is_empty() {
            return;
        }
        let answer_ms = u64::try_from(self.config.migration.answer_for.as_millis());
        let answers_until = now.plus_ms(answer_ms.unwrap_or(u64::MAX));
        match self.senders.retire(&old, now, answers_until) {
            Ok(keys) => {
                tracing::info!(
                    retired = old.len(),
                    kept = keys.held.len(),
                    "no group has these keys of the hub any more"
                );
                self.take_senders(keys);
            }
            Err(error) => tracing::error!(%error, "the hub's old keys cannot be retired"),
        }
    }

    fn take_senders(&self, keys: Senders) {
        self.node.replace_retired_senders(keys.retired);
        self.node.replace_external_senders(keys.held);
    }
}

/// Starts what was left for peers by the process before, and gives those that found no place another chance.
pub(crate) async fn look_after_peers(node: Node) {
    let mut often = tokio::time::interval(PEERS_EVERY);
    loop {
        often.tick().await;
        if let Err(error) = node.sweep_peers().await {
            tracing::warn!(%error, "what is left for other providers cannot be read now");
        }
    }
}

/// Does what was left to do: deletions that were begun, what waits for groups, groups whose time has come.
pub(crate) async fn sweep(node: Node) {
    let mut often = tokio::time::interval(SWEEP_EVERY);
    loop {
        often.tick().await;
        // before anything that takes long: without it nobody's messages are told from strangers'
        if let Err(error) = node.acquaint().await {
            tracing::warn!(%error, "the providers that this one deals with cannot be read now");
        }
        if let Err(error) = node.finish_deletions().await {
            tracing::warn!(%error, "deletions that were begun cannot be finished now");
        }
        if let Err(error) = node.sweep_moves().await {
            tracing::warn!(%error, "what is kept of groups that have moved cannot be looked through now");
        }
        if let Err(error) = node.resume_departures().await {
            tracing::warn!(%error, "groups that are on their way elsewhere cannot be read now");
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
    // whatever the umask; one that is there stays as its operator made it
    store::make_folder(path).map_err(failed)?;
    // absolute, so that what endpoints.json says holds wherever it is read
    path.canonicalize().map_err(failed)
}

/// The first start says whose the folder is. Under another name its users would be nobody's, and its certificate, which
/// clients trust, would be made anew.
fn keep_domain(data_dir: &Path, domain: &Domain) -> Result<(), StartError> {
    let path = data_dir.join("domain");
    let failed = |source| StartError::DataDir { path: data_dir.to_owned(), source };
    match std::fs::read_to_string(&path) {
        Ok(was) if was.trim() == domain.as_str() => Ok(()),
        Ok(was) => Err(StartError::OtherDomain {
            path: data_dir.to_owned(),
            was: was.trim().to_owned(),
            is: domain.clone(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            keys::write_atomically(&path, format!("{domain}\n").as_bytes(), 0o644).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

pub(super) fn client_files(config: &Config, data_dir: &Path) -> Result<TlsFiles, KeysError> {
    match (&config.client.certificate, &config.client.key) {
        (Some(certificate), Some(key)) => keys::operators_tls(certificate, key),
        (None | Some(_), None | Some(_)) => keys::self_signed_tls(data_dir, &config.domain),
    }
}

pub(super) fn federation_files(config: &Config, data_dir: &Path) -> Result<TlsFiles, KeysError> {
    match (&config.federation.certificate, &config.federation.key) {
        (Some(certificate), Some(key)) => keys::operators_tls(certificate, key),
        (None | Some(_), None | Some(_)) => client_files(config, data_dir),
    }
}

fn certificates(listener: &'static str, files: &TlsFiles) -> Result<Arc<Certificates>, StartError> {
    let made = Certificates::new(&files.chain_pem, &files.key_pem);
    made.map(Arc::new).map_err(|source| StartError::Tls { listener, source })
}

fn tls(
    listener: &'static str,
    certificates: &Arc<Certificates>,
) -> Result<rustls::ServerConfig, StartError> {
    http::replaceable_tls(Arc::clone(certificates))
        .map_err(|source| StartError::Tls { listener, source })
}

/// What other providers are told to connect to.
fn domain_name(config: &Config, bound: SocketAddr) -> String {
    match &config.federation.domain_name {
        Some(host) => host.to_string(),
        None if bound.port() == HTTPS => config.domain.to_string(),
        None => format!("{}:{}", config.domain, bound.port()),
    }
}

pub(super) fn registration(config: &config::Registration) -> Registration {
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
    registry.register(Box::new(ProcessMetrics::new()))?;
    let build = IntGaugeVec::new(
        Opts::new("mimid_build_info", "1, with what this process was built from"),
        &["version", "commit"],
    )?;
    // who builds says which one it is: a build that asked git itself would have to run it
    let commit = option_env!("MIMID_COMMIT").unwrap_or("unknown");
    build.with_label_values(&[env!("CARGO_PKG_VERSION"), commit]).set(1);
    registry.register(Box::new(build))
}

fn bind_error(key: &'static str, address: SocketAddr, source: io::Error) -> StartError {
    if source.kind() == io::ErrorKind::AddrInUse {
        StartError::Taken { key, address }
    } else {
        StartError::Bind { key, address, source }
    }
}
