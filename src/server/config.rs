//! The configuration: one TOML file and `MIMID_…` variables over built-in defaults.
//!
//! Every setting stands once in the table below: with its key, and through its type with how it is read and shown. A key that is not
//! in the table is refused, with the one that was probably meant. All problems are reported at once, each with its place.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::de::{DeTable, DeValue};

pub use super::setting::Bytes;
use super::setting::{Given, Setting, choice, nearest};
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
    pub store: Store,
    pub registration: Registration,
    pub groups: Groups,
    pub queues: Queues,
    pub limits: Limits,
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
}

choice! {
    /// What keeps the records.
    Engine {
        Sled = "sled",
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
    /// A group that nobody asks for leaves the memory.
    pub passivate_after: Duration,
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
}

/// Bounds of the client listener: `http::Limits`, as people write them.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    pub workers: usize,
    pub actor_threads: usize,
    pub connections_max: usize,
    pub backlog: u32,
    pub requests_max: usize,
    pub waiting_max: usize,
    pub requests_per_address_s: u32,
    pub request_bytes_max: Bytes,
    pub bodies_bytes_max: Bytes,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub answer_timeout: Duration,
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
            store: Store { engine: Engine::Sled, cache: Bytes(256 * 1024 * 1024) },
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
                passivate_after: Duration::from_millis(groups.idle_ms),
                retention_age: Duration::from_millis(groups.retention_ms),
                retention_bytes: Bytes(groups.retention_bytes),
            },
            queues: Queues {
                groups_per_client_max: node.subscriptions_max,
                notices_max: node.own_entries_max,
                connection_offers_per_hour: node.connection_offers_per_hour,
                passivate_after: Duration::from_millis(node.queue_idle_ms),
            },
            limits: Limits {
                workers: http.workers,
                actor_threads: 2,
                connections_max: http.connections_max,
                backlog: http.backlog,
                requests_max: http.requests_max,
                waiting_max: http.waiting_max,
                requests_per_address_s: http.requests_per_address_s,
                request_bytes_max: Bytes(http.request_bytes_max as u64),
                bodies_bytes_max: Bytes(http.bodies_bytes_max as u64),
                header_timeout: http.header_timeout,
                body_timeout: http.body_timeout,
                answer_timeout: http.answer_timeout,
                keep_alive: http.keep_alive,
                poll_max: http.poll_max,
                stream_open_timeout: http.stream_open_timeout,
                stream_ping: http.stream_ping,
                stream_stall: http.stream_stall,
                drain_timeout: http.drain_timeout,
            },
            log: Log { format: LogFormat::Human, level: "info".to_owned() },
        }
    }
}

impl Config {
    /// The node's bounds: those that have a setting, the rest as built in.
    #[must_use]
    pub fn node_limits(&self) -> actors::Limits {
        actors::Limits {
            devices_per_user_max: self.registration.devices_per_user_max,
            subscriptions_max: self.queues.groups_per_client_max,
            own_entries_max: self.queues.notices_max,
            connection_offers_per_hour: self.queues.connection_offers_per_hour,
            queue_idle_ms: ms(self.queues.passivate_after),
            dequeue_wait_ms_max: u32::try_from(ms(self.limits.poll_max)).unwrap_or(u32::MAX),
            ..actors::Limits::default()
        }
    }

    /// The bounds of groups: those that have a setting, the rest as built in.
    #[must_use]
    pub fn group_options(&self) -> GroupOptions {
        let mut options = GroupOptions::new(self.domain.clone());
        options.settings.members_max = self.groups.members_max;
        options.settings.adds_per_commit_max = self.groups.adds_per_commit_max;
        options.settings.pending_max = self.groups.pending_max;
        options.settings.application_bytes_max = self.groups.application_bytes_max.in_memory();
        options.settings.handshake_bytes_max = self.groups.handshake_bytes_max.in_memory();
        options.settings.ciphersuites.clone_from(&self.groups.ciphersuites);
        options.settings.inactive_after_ms = self.groups.inactive_after.map(ms);
        options.settings.strict_after_ms = self.groups.strict_after.map(ms);
        options.settings.delete_after_ms = ms(self.groups.delete_after);
        options.idle_ms = ms(self.groups.passivate_after);
        options.retention_ms = ms(self.groups.retention_age);
        options.retention_bytes = self.groups.retention_bytes.0;
        options
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Limits {
    /// The same bounds as the listener takes them.
    #[must_use]
    pub fn http(&self) -> http::Limits {
        http::Limits {
            workers: self.workers,
            connections_max: self.connections_max,
            backlog: self.backlog,
            requests_max: self.requests_max,
            waiting_max: self.waiting_max,
            requests_per_address_s: self.requests_per_address_s,
            request_bytes_max: self.request_bytes_max.in_memory(),
            bodies_bytes_max: self.bodies_bytes_max.in_memory(),
            header_timeout: self.header_timeout,
            body_timeout: self.body_timeout,
            answer_timeout: self.answer_timeout,
            keep_alive: self.keep_alive,
            poll_max: self.poll_max,
            stream_open_timeout: self.stream_open_timeout,
            stream_ping: self.stream_ping,
            stream_stall: self.stream_stall,
            drain_timeout: self.drain_timeout,
        }
    }
}

/// One row of the table.
struct Row {
    key: &'static str,
    set: fn(&mut Config, Given<'_>) -> Result<(), String>,
    show: fn(&Config) -> String,
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
            },)*
            $($(Row {
                key: concat!(stringify!($section), ".", stringify!($name)),
                set: |config, given| {
                    config.$section.$name = Setting::read(given)?;
                    Ok(())
                },
                show: |config| config.$section.$name.show(),
            },)*)*
        ];
    };
}

settings! {
    [domain, data_dir]
    client: [listen, certificate, key]
    ops: [listen]
    store: [engine, cache]
    registration: [mode, token_hashes, devices_per_user_max]
    groups: [
        members_max, adds_per_commit_max, pending_max, application_bytes_max, handshake_bytes_max, ciphersuites,
        inactive_after, strict_after, delete_after, passivate_after, retention_age, retention_bytes,
    ]
    queues: [groups_per_client_max, notices_max, connection_offers_per_hour, passivate_after]
    limits: [
        workers, actor_threads, connections_max, backlog, requests_max, waiting_max, requests_per_address_s, request_bytes_max,
        bodies_bytes_max, header_timeout, body_timeout, answer_timeout, keep_alive, poll_max,
        stream_open_timeout, stream_ping, stream_stall, drain_timeout,
    ]
    log: [format, level]
}

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Line { file: PathBuf, line: usize },
    File(PathBuf),
    Variable(String),
    Default,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    pub message: String,
}

/// All that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    pub problems: Vec<Problem>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{}:{line}", file.display()),
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Default => f.write_str("configuration"),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { place, message }) in self.problems.iter().enumerate() {
            let line_end = if index == 0 { "" } else { "\n" };
            write!(f, "{line_end}{place}: {message}")?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads `file`, where there is one, and then `variables` over it: all of the environment, of which those that
    /// begin with `MIMID_` are settings (`MIMID_CLIENT__LISTEN` is `client.listen`).
    ///
    /// # Errors
    /// Everything that is wrong, each with its place and with what is allowed.
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut loading = Loading::default();
        if let Some(file) = file {
            match std::fs::read_to_string(file) {
                Ok(text) => loading.file(file, &text),
                Err(error) => loading
                    .problem(Place::File(file.to_owned()), format!("cannot be read: {error}")),
            }
        }
        let mut variables: Vec<_> = variables.into_iter().collect();
        variables.sort();
        for (name, value) in &variables {
            loading.variable(name, value);
        }
        loading.finish()
    }

    /// Every setting with its value, as a TOML file.
    #[must_use]
    pub fn show(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for row in SETTINGS {
            let (in_section, name) = row.key.split_once('.').unwrap_or(("", row.key));
            if in_section != section {
                section = in_section;
                text.push_str(&format!("\n[{section}]\n"));
            }
            text.push_str(&format!("{name} = {}\n", (row.show)(self)));
        }
        text
    }
}

#[derive(Default)]
struct Loading {
    config: Config,
    /// Where each key was given last.
    places: HashMap<&'static str, Place>,
    problems: Vec<Problem>,
}

impl Loading {
    fn problem(&mut self, place: Place, message: String) {
        self.problems.push(Problem { place, message });
    }

    fn file(&mut self, file: &Path, text: &str) {
        let at = |offset: usize| Place::Line {
            file: file.to_owned(),
            line: text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count()
                + 1,
        };
        let table = match DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            Err(error) => {
                let place = at(error.span().map_or(0, |span| span.start));
                return self.problem(place, format!("not TOML: {}", error.message()));
            }
        };
        for (name, value) in &table {
            let place = at(name.span().start);
            let (name, value) = (name.get_ref().as_ref(), value.get_ref());
            match value.as_table().filter(|_| is_section(name)) {
                Some(section) => {
                    for (inner, value) in section {
                        let key = format!("{name}.{}", inner.get_ref());
                        self.set(&key, Given::Toml(value.get_ref()), at(inner.span().start));
                    }
                }
                None => self.set(name, Given::Toml(value), place),
            }
        }
    }

    fn variable(&mut self, name: &str, value: &str) {
        let Some(rest) = name.strip_prefix("MIMID_") else { return };
        if NOT_SETTINGS.contains(&name) {
            return;
        }
        let place = Place::Variable(name.to_owned());
        if name == REGISTRATION_TOKEN {
            let hash = hex::encode(crate::crypto::sha256(value.as_bytes()));
            return self.config.registration.token_hashes.push(hash);
        }
        let rest = rest.to_lowercase();
        let row = SETTINGS.iter().find(|row| rest == row.key.replacen('.', "__", 1));
        match row {
            Some(row) => self.set(row.key, Given::Text(value), place),
            None => {
                let names: Vec<_> = SETTINGS.iter().map(|row| variable_of(row.key)).collect();
                let near = nearest(name, names.iter().map(String::as_str)).map_or_else(
                    || "see `mimid check-config` for all settings".to_owned(),
                    |near| format!("did you mean {near}?"),
                );
                self.problem(place, format!("there is no such setting; {near}"));
            }
        }
    }

    fn set(&mut self, key: &str, given: Given<'_>, place: Place) {
        let Some(row) = SETTINGS.iter().find(|row| row.key == key) else {
            return self.unknown(key, given, place);
        };
        match (row.set)(&mut self.config, given) {
            Ok(()) => {
                self.places.insert(row.key, place);
            }
            Err(allowed) => self.problem(place, format!("{key}: {allowed}")),
        }
    }

    fn unknown(&mut self, key: &str, given: Given<'_>, place: Place) {
        if let Given::Toml(DeValue::Table(_)) = given {
            let near = nearest(key, sections())
                .map_or_else(String::new, |near| format!("; did you mean [{near}]?"));
            return self.problem(place, format!("there is no section [{key}]{near}"));
        }
        if is_section(key) {
            return self.problem(place, format!("{key} is a section: write [{key}]"));
        }
        // the same name in another section is the likeliest mistake, then a misspelling in this one
        let name = key.rsplit('.').next().unwrap_or(key);
        let elsewhere =
            SETTINGS.iter().map(|row| row.key).find(|known| known.rsplit('.').next() == Some(name));
        let near = elsewhere.or_else(|| nearest(key, SETTINGS.iter().map(|row| row.key)));
        let near = near.map_or_else(String::new, |near| format!("; did you mean {near:?}?"));
        self.problem(place, format!("there is no setting {key:?}{near}"));
    }

    /// What single values cannot show: ranges, and settings that belong together.
    fn finish(mut self) -> Result<Config, ConfigError> {
        for (key, message) in check(&self.config) {
            let place = self.places.get(key).cloned().unwrap_or(Place::Default);
            self.problem(place, format!("{key}: {message}"));
        }
        if self.problems.is_empty() {
            Ok(self.config)
        } else {
            Err(ConfigError { problems: self.problems })
        }
    }
}

/// Which of its values a configuration cannot run with, and what is allowed.
fn check(config: &Config) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    let Config { client, registration, limits, store, log, groups, queues, .. } = config;
    if client.certificate.is_some() != client.key.is_some() {
        let key = if client.key.is_some() { "client.key" } else { "client.certificate" };
        wrong.push((
            key,
            "client.certificate and client.key are given together or not at all".into(),
        ));
    }
    let hashes = &registration.token_hashes;
    if registration.mode == RegistrationMode::Token && hashes.is_empty() {
        wrong.push((
            "registration.mode",
            format!(
                "\"token\" needs at least one token: a SHA-256 in registration.token_hashes, or a token in {REGISTRATION_TOKEN}"
            ),
        ));
    }
    if let Some(bad) = hashes.iter().find(|hash| token_hash(hash).is_none()) {
        wrong.push((
            "registration.token_hashes",
            format!("{bad:?} is not a SHA-256 in hex (64 digits); make one with `printf %s TOKEN | sha256sum`"),
        ));
    }
    if let Err(error) = super::telemetry::filter(&log.level) {
        wrong.push(("log.level", error));
    }
    let known = GroupOptions::new(config.domain.clone()).settings.ciphersuites;
    if groups.ciphersuites.is_empty() || !groups.ciphersuites.iter().all(|n| known.contains(n)) {
        let given = &groups.ciphersuites;
        wrong.push(("groups.ciphersuites", format!("{given:?} is not one or more of {known:?}")));
    }
    let mut count = |key, value: usize, min: usize, max: usize| {
        if !(min..=max).contains(&value) {
            wrong.push((key, format!("{value} is not from {min} to {max}")));
        }
    };
    count("registration.devices_per_user_max", registration.devices_per_user_max, 1, 1000);
    count("groups.members_max", groups.members_max, 1, 100_000);
    count("groups.adds_per_commit_max", groups.adds_per_commit_max, 1, 10_000);
    count("groups.pending_max", groups.pending_max, 1, 10_000);
    count("queues.groups_per_client_max", queues.groups_per_client_max, 1, 100_000);
    count("queues.notices_max", queues.notices_max, 10, 100_000);
    let offers = queues.connection_offers_per_hour as usize;
    count("queues.connection_offers_per_hour", offers, 1, 1_000_000);
    count("limits.workers", limits.workers, 1, 1024);
    count("limits.actor_threads", limits.actor_threads, 1, 1024);
    count("limits.connections_max", limits.connections_max, 1, 1_000_000);
    count("limits.requests_max", limits.requests_max, 1, 100_000);
    count("limits.waiting_max", limits.waiting_max, 1, 1_000_000);
    count("limits.requests_per_address_s", limits.requests_per_address_s as usize, 1, 1_000_000);
    count("limits.backlog", limits.backlog as usize, 1, 65_535);
    let mut size = |key, value: Bytes, min: u64, max: u64| {
        if !(min..=max).contains(&value.0) {
            let (value, min, max) = (value.show(), Bytes(min).show(), Bytes(max).show());
            wrong.push((key, format!("{value} is not from {min} to {max}")));
        }
    };
    size("limits.request_bytes_max", limits.request_bytes_max, 16 << 10, 64 << 20);
    size("limits.bodies_bytes_max", limits.bodies_bytes_max, 8 << 20, 1 << 40);
    // as large as the protocol has them at the most
    let application_max = crate::wire::ds::APPLICATION_BYTES_MAX as u64;
    size("groups.application_bytes_max", groups.application_bytes_max, 1 << 10, application_max);
    let handshake_max = crate::wire::ds::REQUEST_BYTES_MAX as u64;
    size("groups.handshake_bytes_max", groups.handshake_bytes_max, 16 << 10, handshake_max);
    size("store.cache", store.cache, 1 << 20, 1 << 40);
    size("groups.retention_bytes", groups.retention_bytes, 1 << 20, 1 << 40);
    let mut time = |key, value: Duration, min_ms: u64, max_s: u64| {
        let (min, max) = (Duration::from_millis(min_ms), Duration::from_secs(max_s));
        if !(min..=max).contains(&value) {
            wrong.push((
                key,
                format!("{} is not from {} to {}", value.show(), min.show(), max.show()),
            ));
        }
    };
    let years = 10 * 365 * 24 * 3600;
    if let Some(after) = groups.inactive_after {
        time("groups.inactive_after", after, 3_600_000, years);
    }
    if let Some(after) = groups.strict_after {
        time("groups.strict_after", after, 0, years);
    }
    time("groups.delete_after", groups.delete_after, 3_600_000, years);
    time("groups.passivate_after", groups.passivate_after, 10, years);
    time("groups.retention_age", groups.retention_age, 3_600_000, years);
    time("queues.passivate_after", queues.passivate_after, 10, years);
    time("limits.header_timeout", limits.header_timeout, 10, 300);
    time("limits.body_timeout", limits.body_timeout, 10, 3600);
    time("limits.answer_timeout", limits.answer_timeout, 10, 3600);
    time("limits.keep_alive", limits.keep_alive, 1000, 3600);
    time("limits.poll_max", limits.poll_max, 0, 600);
    time("limits.stream_open_timeout", limits.stream_open_timeout, 10, 300);
    time("limits.stream_ping", limits.stream_ping, 10, 600);
    time("limits.stream_stall", limits.stream_stall, 10, 3600);
    time("limits.drain_timeout", limits.drain_timeout, 1000, 600);
    wrong
}

/// A SHA-256 from its hex digits.
#[must_use]
pub fn token_hash(hex_digits: &str) -> Option<[u8; 32]> {
    hex::decode(hex_digits).ok()?.try_into().ok()
}

fn sections() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().filter_map(|row| row.key.split_once('.').map(|(section, _)| section))
}

fn is_section(name: &str) -> bool {
    sections().any(|section| section == name)
}

fn variable_of(key: &str) -> String {
    format!("MIMID_{}", key.replacen('.', "__", 1).to_uppercase())
}

/// A registration token itself, for who would rather not write its hash into a file.
const REGISTRATION_TOKEN: &str = "MIMID_REGISTRATION_TOKEN";

/// Variables of the command line that are no settings of the provider.
const NOT_SETTINGS: [&str; 2] = ["MIMID_CONFIG", "MIMID_HOME"];

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mimid.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(
            Some(&file),
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        )
    }

    fn problems(text: &str, variables: &[(&str, &str)]) -> Vec<(String, String)> {
        load(text, variables)
            .unwrap_err()
            .problems
            .into_iter()
            .map(|problem| {
                let place = match problem.place {
                    Place::Line { line, .. } => format!("line {line}"),
                    Place::Variable(name) => name,
                    place @ (Place::File(_) | Place::Default) => place.to_string(),
                };
                (place, problem.message)
            })
            .collect()
    }

    #[test]
    fn what_is_shown_reads_as_the_same_configuration() {
        let config = Config::default();
        assert_eq!(load(&config.show(), &[]).unwrap(), config);
        let mut other = config;
        other.domain = Domain::new("a.example").unwrap();
        other.client.certificate = Some("a \"quoted\" \\ path".into());
        other.client.key = Some("key.pem".into());
        other.limits.poll_max = Duration::from_millis(1500);
        other.registration.token_hashes = vec!["ab".repeat(32)];
        assert_eq!(load(&other.show(), &[]).unwrap(), other);
    }

    #[test]
    fn the_example_is_the_default_and_shows_every_setting() {
        let text = include_str!("../../config/single.toml");
        assert_eq!(load(text, &[]).unwrap(), Config::default());
        let uncommented: String = text
            .lines()
            .filter_map(|line| {
                line.strip_prefix("#: ").or((!line.starts_with('#')).then_some(line))
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let all = load(&uncommented, &[]).unwrap();
        assert_eq!(all, Config::default(), "what is commented out says the default too");
        let mut section = String::new();
        let mut keys = Vec::new();
        for line in uncommented.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = format!("{name}.");
            } else if let Some((name, _)) = line.split_once(" = ") {
                keys.push(format!("{section}{name}"));
            }
        }
        assert_eq!(keys, SETTINGS.iter().map(|row| row.key).collect::<Vec<_>>());
    }

    #[test]
    fn variables_stand_over_the_file() {
        let config = load(
            "domain = \"a.example\"\n[client]\nlisten = \"127.0.0.1:1\"\n",
            &[
                ("MIMID_CLIENT__LISTEN", "127.0.0.1:2"),
                ("MIMID_LIMITS__POLL_MAX", "5s"),
                ("OTHER", "x"),
            ],
        )
        .unwrap();
        assert_eq!(config.domain.as_str(), "a.example");
        assert_eq!(config.client.listen.port(), 2);
        assert_eq!(config.limits.poll_max, Duration::from_secs(5));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_a_suggestion() {
        let found = problems(
            "domian = \"a.example\"\n\n[client]\nlisen = \"127.0.0.1:1\"\n[opps]\nlisten = \"127.0.0.1:1\"\n",
            &[("MIMID_CLIENT__LISEN", "x")],
        );
        let expected = [
            ("MIMID_CLIENT__LISEN", "did you mean MIMID_CLIENT__LISTEN?"),
            ("line 1", "did you mean \"domain\"?"),
            ("line 4", "did you mean \"client.listen\"?"),
            ("line 5", "did you mean [ops]?"),
        ];
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (place, hint) in expected {
            let problem = found.iter().find(|(at, _)| at == place);
            assert!(problem.is_some_and(|(_, message)| message.contains(hint)), "{found:?}");
        }
    }

    #[test]
    fn all_problems_are_told_at_once_each_with_what_is_allowed() {
        let found = problems(
            "domain = \"UPPER.example\"\n[store]\nengine = \"slet\"\ncache = 5\n[limits]\nworkers = 0\nbody_timeout = \"1w\"\n",
            &[],
        );
        let message = |line: &str| {
            found
                .iter()
                .find(|(place, _)| place == line)
                .map(|(_, message)| message.as_str())
                .unwrap()
        };
        assert!(message("line 1").contains("lower case"));
        assert!(message("line 3").contains("one of sled, memory; did you mean \"sled\"?"));
        assert!(message("line 4").contains("\"64MiB\""));
        assert!(message("line 6").contains("from 1 to 1024"));
        assert!(message("line 7").contains("\"30s\""));
    }

    #[test]
    fn what_a_group_may_be_reaches_the_groups_and_is_bounded() {
        let text = "[groups]\npending_max = 7\napplication_bytes_max = \"2KiB\"\nhandshake_bytes_max = \"32KiB\"\n\
            ciphersuites = [3, 1]\nstrict_after = \"never\"\ndelete_after = \"2h\"\n\
            [queues]\nconnection_offers_per_hour = 9\n";
        let config = load(text, &[("MIMID_GROUPS__CIPHERSUITES", "2, 3")]).unwrap();
        let settings = config.group_options().settings;
        assert_eq!((settings.pending_max, settings.application_bytes_max), (7, 2048));
        assert_eq!((settings.handshake_bytes_max, settings.ciphersuites), (32 * 1024, vec![2, 3]));
        assert_eq!((settings.strict_after_ms, settings.delete_after_ms), (None, 7_200_000));
        assert_eq!(config.node_limits().connection_offers_per_hour, 9);

        let text = "[groups]\nciphersuites = [1, 9]\napplication_bytes_max = \"1GiB\"\ndelete_after = \"1s\"\n";
        let found = problems(text, &[("MIMID_GROUPS__PENDING_MAX", "0")]);
        let places: Vec<_> = found.iter().map(|(place, _)| place.as_str()).collect();
        for place in ["line 2", "line 3", "line 4", "MIMID_GROUPS__PENDING_MAX"] {
            assert!(places.contains(&place), "{found:?}");
        }
        assert!(problems("[groups]\nciphersuites = [\"x\"]\n", &[])[0].1.contains("numbers"));
    }

    #[test]
    fn what_belongs_together_is_checked_together() {
        let found = problems("[client]\nkey = \"k.pem\"\n[registration]\nmode = \"token\"\n", &[]);
        assert!(found.iter().any(|(place, text)| place == "line 2" && text.contains("together")));
        assert!(
            found
                .iter()
                .any(|(place, text)| place == "line 4" && text.contains("at least one token"))
        );
        let config =
            load("[registration]\nmode = \"token\"\n", &[(REGISTRATION_TOKEN, "abc")]).unwrap();
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(config.registration.token_hashes, [hash]);
        let found = problems("[registration]\ntoken_hashes = [\"abc\"]\n", &[]);
        assert!(found[0].1.contains("64 digits"));
    }

    #[test]
    fn a_file_that_is_not_there_or_not_toml_is_said_so() {
        let missing = Config::load(Some(Path::new("/nonexistent/mimid.toml")), []).unwrap_err();
        assert!(missing.to_string().starts_with("/nonexistent/mimid.toml: cannot be read"));
        let found = problems("domain = \"a.example\"\n[client\n", &[]);
        assert_eq!(found[0].0, "line 2");
        assert!(found[0].1.starts_with("not TOML"));
    }
}
