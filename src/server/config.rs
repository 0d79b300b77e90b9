//! The configuration: one TOML file and `MIMID_…` variables over built-in defaults.
//!
//! Every setting stands once in the table below: with its key, and through its type with how it is read and shown. How a
//! file is read, with its places and suggestions, is in `load`; what values may be in `check`; what the parts of a node
//! make of them in `parts`.

mod again;
mod check;
mod federation;
mod load;
mod parts;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

pub use again::Adopted;
pub use federation::{Federation, Migration, Rates};
pub use load::{ConfigError, Place, Problem, token_hash};

pub use super::setting::Bytes;
use super::setting::{Given, Setting, choice};
use crate::{
    actors::{self, GroupOptions},
    http,
    wire::ids::Domain,
};

/// All that can be configured. `Default` is what a provider without a configuration runs with.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The provider's domain: the one in its users' URIs.
    pub domain: Domain,
    /// Everything that the node keeps: store, keys, certificate.
    pub data_dir: PathBuf,
    pub client: Client,
    pub ops: Ops,
    pub federation: Federation,
    pub migration: Migration,
    pub store: Store,
    pub registration: Registration,
    pub groups: Groups,
    pub queues: Queues,
    pub limits: Limits,
    pub rates: Rates,
    pub log: Log,
}

/// The listener for this provider's clients.
#[derive(Debug, Clone, PartialEq)]
pub struct Client {
    pub listen: SocketAddr,
    /// PEM files, the server's own certificate first. None: self-signed, made in the data folder.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// The operator's listener.
#[derive(Debug, Clone, PartialEq)]
pub struct Ops {
    pub listen: SocketAddr,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Store {
    pub engine: Engine,
    pub cache: Bytes,
    pub free_bytes_min: Bytes,
}

choice! {
    /// What keeps the records.
    Engine {
        Sled = "sled",
        Fjall = "fjall",
        /// Forgets everything when the process ends.
        Memory = "memory",
    }
}

/// Who may register.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    pub mode: RegistrationMode,
    /// SHA-256 of each token, in hex.
    pub token_hashes: Vec<String>,
    pub devices_per_user_max: usize,
}

choice! {
    /// Who may become a user of this provider. Further devices of a user need that user's key, always.
    RegistrationMode {
        Open = "open",
        /// Whoever has a token.
        Token = "token",
        Closed = "closed",
    }
}

/// What a group may be, and what is kept of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Groups {
    pub members_max: usize,
    pub adds_per_commit_max: usize,
    /// Members' proposals that wait for one commit.
    pub pending_max: usize,
    /// The largest application message, and the largest handshake message.
    pub application_bytes_max: Bytes,
    pub handshake_bytes_max: Bytes,
    /// MLS ciphersuites by their numbers.
    pub ciphersuites: Vec<u16>,
    /// Whoever sends nothing for so long is removed.
    pub inactive_after: Option<Duration>,
    /// A removal of the hub that waits for so long blocks everybody's messages; none: only those of who is to go.
    pub strict_after: Option<Duration>,
    /// A group that everybody is to be removed from is deleted after this.
    pub delete_after: Duration,
    /// Who complains of a commit waits for others for so long; with enough of them the group goes back behind it.
    pub complaint_wait: Duration,
    /// A group that nobody asks for leaves the memory.
    pub passivate_after: Duration,
    /// Groups in memory; beyond, those that nobody asks for right now leave it.
    pub active_max: usize,
    /// Of a group's log, what is older or more than this goes, read or not.
    pub retention_age: Duration,
    pub retention_bytes: Bytes,
}

/// What waits for one client.
#[derive(Debug, Clone, PartialEq)]
pub struct Queues {
    pub groups_per_client_max: usize,
    /// Unread requests and notices; Welcomes and groups' messages are not counted.
    pub notices_max: usize,
    /// Connection offers of one user to another, all their devices together.
    pub connection_offers_per_hour: u32,
    pub passivate_after: Duration,
    /// Clients whose queues are in memory; one more is `unavailable`.
    pub active_max: usize,
    /// What a stream may have on its way, unacknowledged.
    pub window_max: Bytes,
}

/// Bounds of the client listener: `http::Limits`, as people write them.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    pub workers: usize,
    pub actor_threads: usize,
    pub connections_max: usize,
    pub connections_per_address_max: usize,
    pub loopback_is_proxy: bool,
    pub backlog: u32,
    pub requests_max: usize,
    pub waiting_max: usize,
    /// A wait that stands above this is overload: what is worth least is refused. None: never.
    pub delay_max: Option<Duration>,
    pub request_bytes_max: Bytes,
    pub bodies_bytes_max: Bytes,
    pub answers_bytes_max: Bytes,
    /// Requests of all clients whose repetition is known as one; beyond, all are `rate_limited`.
    pub nonces_max: usize,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub answer_timeout: Duration,
    pub read_timeout: Duration,
    pub keep_alive: Duration,
    pub poll_max: Duration,
    pub stream_open_timeout: Duration,
    pub stream_ping: Duration,
    pub stream_stall: Duration,
    pub drain_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    pub format: LogFormat,
    /// A level, or directives as tracing's EnvFilter takes them.
    pub level: String,
    /// A request that takes so long is said, with where the time went.
    pub slow_request: Option<Duration>,
}

choice! {
    LogFormat {
        Human = "human",
        Json = "json",
    }
}

impl Default for Config {
    fn default() -> Self {
        let http = http::Limits::default();
        let loopback = std::net::Ipv4Addr::LOCALHOST;
        #[expect(clippy::expect_used, reason = "the text is a domain")]
        let domain = Domain::new("localhost").expect("a domain");
        let (node, groups) = (actors::Limits::default(), GroupOptions::new(domain.clone()));
        Self {
            domain,
            data_dir: PathBuf::from("mimid-data"),
            client: Client {
                listen: SocketAddr::from((loopback, 8443)),
                certificate: None,
                key: None,
            },
            ops: Ops { listen: SocketAddr::from((loopback, 9443)) },
            federation: Federation::default(),
            migration: Migration::default(),
            store: Store {
                engine: Engine::Sled,
                cache: Bytes(96 * 1024 * 1024),
                free_bytes_min: Bytes(128 * 1024 * 1024),
            },
            registration: Registration {
                mode: RegistrationMode::Open,
                token_hashes: Vec::new(),
                devices_per_user_max: node.devices_per_user_max,
            },
            groups: Groups {
                members_max: groups.settings.members_max,
                adds_per_commit_max: groups.settings.adds_per_commit_max,
                pending_max: groups.settings.pending_max,
                application_bytes_max: Bytes(groups.settings.application_bytes_max as u64),
                handshake_bytes_max: Bytes(groups.settings.handshake_bytes_max as u64),
                ciphersuites: groups.settings.ciphersuites.clone(),
                inactive_after: groups.settings.inactive_after_ms.map(Duration::from_millis),
                strict_after: groups.settings.strict_after_ms.map(Duration::from_millis),
                delete_after: Duration::from_millis(groups.settings.delete_after_ms),
                complaint_wait: Duration::from_millis(groups.settings.complaint_wait_ms),
                passivate_after: Duration::from_millis(groups.idle_ms),
                active_max: groups.active_max,
                retention_age: Duration::from_millis(groups.retention_ms),
                retention_bytes: Bytes(groups.retention_bytes),
            },
            queues: Queues {
                groups_per_client_max: node.subscriptions_max,
                notices_max: node.own_entries_max,
                connection_offers_per_hour: node.connection_offers_per_hour,
                passivate_after: Duration::from_millis(node.queue_idle_ms),
                active_max: node.queue_actors_max,
                window_max: Bytes(u64::from(node.window_bytes_max)),
            },
            limits: Limits {
                workers: http.workers,
                actor_threads: 2,
                connections_max: http.connections_max,
                connections_per_address_max: http.connections_per_address_max,
                loopback_is_proxy: http.loopback_is_proxy,
                backlog: http.backlog,
                requests_max: http.requests_max,
                waiting_max: http.waiting_max,
                delay_max: node.overload.delay_max,
                request_bytes_max: Bytes(http.request_bytes_max as u64),
                bodies_bytes_max: Bytes(http.bodies_bytes_max as u64),
                answers_bytes_max: Bytes(http.answers_bytes_max as u64),
                nonces_max: node.nonces_max,
                header_timeout: http.header_timeout,
                body_timeout: http.body_timeout,
                answer_timeout: http.answer_timeout,
                read_timeout: http.read_timeout,
                keep_alive: http.keep_alive,
                poll_max: http.poll_max,
                stream_open_timeout: http.stream_open_timeout,
                stream_ping: http.stream_ping,
                stream_stall: http.stream_stall,
                drain_timeout: http.drain_timeout,
            },
            rates: Rates::default(),
            log: Log {
                format: LogFormat::Human,
                level: "info".to_owned(),
                slow_request: http.slow_after,
            },
        }
    }
}

/// One row of the table.
struct Row {
    key: &'static str,
    set: fn(&mut Config, Given<'_>) -> Result<(), String>,
    show: fn(&Config) -> String,
    copy: fn(&mut Config, &Config),
}

macro_rules! settings {
    ([$($top:ident),*] $($section:ident: [$($name:ident),* $(,)?])*) => {
        const SETTINGS: &[Row] = &[
            $(Row {
                key: stringify!($top),
                set: |config, given| {
                    config.$top = Setting::read(given)?;
                    Ok(())
                },
                show: |config| config.$top.show(),
                copy: |to, from| to.$top.clone_from(&from.$top),
            },)*
            $($(Row {
                key: concat!(stringify!($section), ".", stringify!($name)),
                set: |config, given| {
                    config.$section.$name = Setting::read(given)?;
                    Ok(())
                },
                show: |config| config.$section.$name.show(),
                copy: |to, from| to.$section.$name.clone_from(&from.$section.$name),
            },)*)*
        ];
    };
}

settings! {
    [domain, data_dir]
    client: [listen, certificate, key]
    ops: [listen]
    federation: [
        listen, certificate, key, domain_name, domain_name_cached, overrides, roots, allow, deny, allow_private_addresses,
        connect_timeout, relay_timeout, connections_max, requests_max, requests_per_peer_max, peers_max, peers_cached_max,
        batch_items_max, batch_bytes_max, batches_in_flight, backoff_min, backoff_max, unreachable_after,
        copies_per_hub_max, copy_bytes_per_hub_max,
    ]
    migration: [
        accept, sources, groups_max, groups_per_source_max, departures_max, response_lifetime, freeze_timeout, forward_for,
        answer_for,
    ]
    store: [engine, cache, free_bytes_min]
    registration: [mode, token_hashes, devices_per_user_max]
    groups: [
        members_max, adds_per_commit_max, pending_max, application_bytes_max, handshake_bytes_max, ciphersuites,
        inactive_after, strict_after, delete_after, complaint_wait, passivate_after, active_max, retention_age, retention_bytes,
    ]
    queues: [groups_per_client_max, notices_max, connection_offers_per_hour, passivate_after, active_max, window_max]
    limits: [
        workers, actor_threads, connections_max, connections_per_address_max, loopback_is_proxy, backlog, requests_max, waiting_max, delay_max, request_bytes_max, bodies_bytes_max,
        answers_bytes_max, nonces_max, header_timeout, body_timeout, answer_timeout, read_timeout, keep_alive, poll_max,
        stream_open_timeout, stream_ping, stream_stall, drain_timeout,
    ]
    rates: [
        address_per_second, address_burst, peer_per_second, peer_burst, group_per_second, group_burst, member_per_second,
        member_burst,
    ]
    log: [format, level, slow_request]
}
