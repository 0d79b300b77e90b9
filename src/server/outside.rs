//! The way out to other providers, from the configuration: what signs, whom to trust, where they are.
//!
//! Trust can change while the node runs: files of `federation.roots` are read again when they change, and one that is not
//! there yet is waited for. So two providers can be started that trust each other's self-signed certificates.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use futures_util::future::BoxFuture;

use super::{config::Config, keys::KeysError, run::StartError, s2s_keys::S2sKeyFile};
use crate::{
    actors::Clock,
    federation::{
        CallError, Federation, FederationMetrics, FederationParts, HttpAnswer, ProviderKey,
        Transport,
        https::{Https, HttpsError, HttpsOptions},
    },
    wire::ids::Domain,
};

/// A node's dealings with other providers, and what of it can be read again.
pub struct Outside {
    pub federation: Arc<Federation>,
    way: Arc<Way>,
    keys: Mutex<S2sKeyFile>,
}

impl Outside {
    pub fn new(
        config: &Config,
        data_dir: &Path,
        external_senders: Vec<ProviderKey>,
        clock: &Arc<dyn Clock>,
        metrics: &prometheus::Registry,
    ) -> Result<Self, StartError> {
        let (file, signing) = S2sKeyFile::open(data_dir, clock.now())?;
        let ticking = Arc::clone(clock);
        let ticking: crate::federation::Clock = Arc::new(move || ticking.now());
        let way = Arc::new(Way::new(config, Arc::clone(&ticking))?);
        let (allow, deny) = config.federation.lists();
        let federation = Federation::new(FederationParts {
            domain: config.domain.clone(),
            signing,
            external_senders,
            transport: Arc::clone(&way) as Arc<dyn Transport>,
            allow,
            deny,
            limits: config.remembered_limits(),
            metrics: FederationMetrics::register(metrics)?,
            clock: ticking,
        });
        Ok(Self { federation: Arc::new(federation), way, keys: Mutex::new(file) })
    }

    /// Reads again what has changed: keys that sign, and roots. What cannot be used is in the log, and what was before
    /// goes on. To be called every minute, and when the operator asks for it.
    pub fn refresh(&self) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).refresh(&self.federation);
        self.way.refresh();
    }

    /// Whether a file of `federation.roots` is not there yet: then it is worth looking often.
    pub fn waits_for_roots(&self) -> bool {
        self.way.roots().iter().any(|root| root.stamp.is_none())
    }
}

/// The HTTPS client, made anew when its roots change.
struct Way {
    https: RwLock<Arc<Https>>,
    options: Box<dyn Fn() -> HttpsOptions + Send + Sync>,
    roots: Mutex<Vec<Root>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Root {
    path: PathBuf,
    /// The file that was read; none where there was none.
    stamp: Option<Stamp>,
}

/// Differs between two states of a file.
type Stamp = (u64, i64, i64, u64);

impl Way {
    fn new(config: &Config, clock: crate::federation::Clock) -> Result<Self, StartError> {
        let federation = config.federation.clone();
        let options = Box::new(move || HttpsOptions {
            overrides: federation.overrides.clone().into_iter().collect(),
            allow_private_addresses: federation.allow_private_addresses,
            connect_timeout: federation.connect_timeout,
            discoveries_max: federation.peers_cached_max,
            ..HttpsOptions::new(Arc::clone(&clock))
        });
        let paths = &config.federation.roots;
        let found: Vec<(Root, Option<Vec<u8>>)> =
            paths.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
        for (root, _) in found.iter().filter(|(root, _)| root.stamp.is_none()) {
            let path = root.path.display();
            tracing::warn!(%path, "a file of federation.roots is not there; it is read when it comes");
        }
        let (roots, pems): (Vec<Root>, Vec<Option<Vec<u8>>>) = found.into_iter().unzip();
        let https = https(&options, pems)?;
        Ok(Self { https: RwLock::new(Arc::new(https)), options, roots: Mutex::new(roots) })
    }

    fn roots(&self) -> Vec<Root> {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refresh(&self) {
        let before = self.roots();
        if before.iter().all(|root| stamp(&root.path) == root.stamp) {
            return;
        }
        match self.read_again(&before) {
            Ok(()) => tracing::info!("federation.roots were read again"),
            Err(error) => tracing::error!(%error, "federation.roots cannot be read again"),
        }
    }

    fn read_again(&self, before: &[Root]) -> Result<(), StartError> {
        let found: Vec<_> = before.iter().map(|root| read(&root.path)).collect::<Result<_, _>>()?;
        let (roots, pems): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        let made = https(&self.options, pems)?;
        // calls under way keep the old one until they end
        *self.https.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(made);
        *self.roots.lock().unwrap_or_else(PoisonError::into_inner) = roots;
        Ok(())
    }

    fn now(&self) -> Arc<Https> {
        Arc::clone(&self.https.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Transport for Way {
    fn get<'a>(
        &'a self,
        peer: &'a Domain,
        path: &'static str,
        answer_bytes_max: usize,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<HttpAnswer, CallError>> {
        let https = self.now();
        Box::pin(async move { https.get(peer, path, answer_bytes_max, timeout).await })
    }

    fn post<'a>(
        &'a self,
        peer: &'a Domain,
        path: &'static str,
        body: Vec<u8>,
        answer_bytes_max: usize,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<HttpAnswer, CallError>> {
        let https = self.now();
        Box::pin(async move { https.post(peer, path, body, answer_bytes_max, timeout).await })
    }
}

fn https(
    options: &dyn Fn() -> HttpsOptions,
    pems: Vec<Option<Vec<u8>>>,
) -> Result<Https, HttpsError> {
    let extra_roots = pems.into_iter().flatten().collect();
    Https::new(HttpsOptions { extra_roots, ..options() })
}

/// A root as it is now.
fn read(path: &Path) -> Result<(Root, Option<Vec<u8>>), StartError> {
    let root = |stamp| Root { path: path.to_owned(), stamp };
    // stamped first: what is written in between is seen as a change
    let Some(stamp) = stamp(path) else { return Ok((root(None), None)) };
    let pem = fs::read(path).map_err(|source| KeysError::File { path: path.to_owned(), source })?;
    Ok((root(Some(stamp)), Some(pem)))
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    Some((file.ino(), file.mtime(), file.mtime_nsec(), file.size()))
}
