//! Reading a configuration again while the node runs: all of what it says that can be taken, or nothing.
//!
//! First everything that can be wrong is looked at (the configuration, certificates, keys of TLS); then it is taken, by steps
//! that cannot fail. What happened is in the log, in two gauges as Prometheus has them for itself, and in a third one where
//! settings wait for a restart.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus::{IntGauge, Registry};
use tokio::sync::Notify;

use super::{
    config::{Adopted, Config, ConfigError},
    files,
    run::{client_files, federation_files, registration},
    telemetry,
};
use crate::{
    actors::Node,
    http::{Adjust, Certificates, Certified, FederationLimits},
    store::SharedStore,
};

/// How a node is told to read again.
#[derive(Debug, Default)]
pub struct Asked {
    /// Nothing: the same configuration again.
    next: Mutex<Option<Result<Config, ConfigError>>>,
    told: Notify,
}

impl Asked {
    pub fn ask(&self, next: Option<Result<Config, ConfigError>>) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = next;
        self.told.notify_one();
    }

    pub async fn asked(&self) {
        self.told.notified().await;
    }

    pub fn take(&self) -> Option<Result<Config, ConfigError>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A listener, as far as it can be changed.
pub struct Doors {
    pub name: &'static str,
    pub certificates: Arc<Certificates>,
    pub adjust: Adjust,
}

/// What a configuration that is read again goes to.
pub struct Reload {
    pub node: Node,
    pub store: SharedStore,
    pub client: Doors,
    pub federation: Option<Doors>,
    /// How many files the process may have open.
    pub files: u64,
    pub gauges: Gauges,
    /// How often something was changed; see [`CHANGES_MAX`].
    pub changes: usize,
}

/// What was before a change is not freed ([`crate::actors::live`]): it is some KiB each.
const CHANGES_MAX: usize = 1_000;

/// What operators see of it.
pub struct Gauges {
    successful: IntGauge,
    succeeded_at: IntGauge,
    waiting: IntGauge,
}

impl Gauges {
    /// # Errors
    /// Where `registry` has metrics of these names.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let gauges = Self {
            successful: gauge(
                "mimid_config_last_reload_successful",
                "1 while the configuration is the one that was read last, 0 where that could not be taken",
            )?,
            succeeded_at: gauge(
                "mimid_config_last_reload_success_timestamp_seconds",
                "When a configuration was taken last, at the start or since",
            )?,
            waiting: gauge(
                "mimid_config_waiting_for_restart",
                "Settings that are others in the configuration read last, and that only a start takes",
            )?,
        };
        gauges.succeeded(0);
        Ok(gauges)
    }

    fn succeeded(&self, waiting: usize) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.succeeded_at.set(i64::try_from(now).unwrap_or(i64::MAX));
        self.successful.set(1);
        self.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }
}

impl Reload {
    /// Takes what was read, or says why not and leaves all as it was.
    pub fn take(
        &mut self,
        config: &mut Config,
        data_dir: &Path,
        next: Option<Result<Config, ConfigError>>,
    ) {
        let adopted = match next {
            None => {
                let config = config.clone();
                Ok(Adopted { config, taken: Vec::new(), waiting: Vec::new() })
            }
            Some(Err(error)) => Err(error.to_string()),
            Some(Ok(mut next)) => {
                files::share(&mut next, self.files);
                config.adopt(&next)
            }
        };
        match adopted.and_then(|adopted| self.apply(adopted, data_dir)) {
            Ok(Adopted { config: new, taken, waiting }) => {
                *config = new;
                self.gauges.succeeded(waiting.len());
                if !taken.is_empty() {
                    tracing::info!(settings = taken.join(", "), "the configuration was read again");
                }
                if !waiting.is_empty() {
                    let settings = waiting.join(", ");
                    tracing::warn!(settings, "these settings have changed and wait for a restart");
                }
            }
            Err(error) => {
                self.gauges.successful.set(0);
                tracing::error!(
                    %error,
                    "the configuration cannot be read again: everything is as it was"
                );
            }
        }
    }

    fn apply(&mut self, adopted: Adopted, data_dir: &Path) -> Result<Adopted, String> {
        let config = &adopted.config;
        let files = client_files(config, data_dir);
        let mut certified = vec![self.client.read(files)?];
        if let Some(federation) = &self.federation {
            certified.push(federation.read(federation_files(config, data_dir))?);
        }
        let shared = config.client_limits();
        if !adopted.taken.is_empty() {
            self.changes += 1;
            if self.changes > CHANGES_MAX {
                return Err("it was changed too often since the start: restart mimid".to_owned());
            }
        }
        // the last that can fail, though the level was checked with all else
        telemetry::set_level(&config.log.level)?;
        self.node.replace_limits(
            config.node_limits(),
            config.group_options(),
            registration(&config.registration),
        );
        let (allow, deny) = config.federation.lists();
        self.node.speak_with(allow, deny);
        (self.client.adjust)(&FederationLimits { shared, ..FederationLimits::default() });
        if let Some(federation) = &self.federation {
            (federation.adjust)(&config.federation_limits());
        }
        self.store.keep_free(config.store.free_bytes_min.0);
        for (doors, certified) in
            [Some(&self.client), self.federation.as_ref()].into_iter().flatten().zip(certified)
        {
            let is_other = doors.certificates.take(certified);
            let is = if is_other { "was replaced" } else { "is the same as before" };
            tracing::info!(listener = doors.name, "the certificate {is}");
        }
        Ok(adopted)
    }
}

impl Doors {
    fn read(
        &self,
        files: Result<super::keys::TlsFiles, super::keys::KeysError>,
    ) -> Result<Certified, String> {
        let of = |error: &dyn std::fmt::Display| {
            format!("the certificate of the {} listener cannot be read again: {error}", self.name)
        };
        let files = files.map_err(|error| of(&error))?;
        Certified::new(&files.chain_pem, &files.key_pem).map_err(|error| of(&error))
    }
}
