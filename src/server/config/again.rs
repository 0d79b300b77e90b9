//! What of a configuration a running node can take, and what waits for its next start.

use super::{Config, SETTINGS, check::check};

/// Settings that a node takes while it runs: all others are bound or made once, at the start.
const LIVE: &[&str] = &[
    "client.certificate",
    "client.key",
    "federation.certificate",
    "federation.key",
    "federation.allow",
    "federation.deny",
    "federation.relay_timeout",
    "federation.requests_max",
    "federation.requests_per_peer_max",
    "federation.copies_per_hub_max",
    "federation.copy_bytes_per_hub_max",
    "migration.accept",
    "migration.sources",
    "migration.groups_max",
    "migration.groups_per_source_max",
    "migration.response_lifetime",
    "migration.freeze_timeout",
    "migration.forward_for",
    "migration.answer_for",
    "store.free_bytes_min",
    "registration.mode",
    "registration.token_hashes",
    "registration.devices_per_user_max",
    "groups.passivate_after",
    "groups.active_max",
    "groups.retention_age",
    "groups.retention_bytes",
    "queues.groups_per_client_max",
    "queues.notices_max",
    "queues.connection_offers_per_hour",
    "queues.passivate_after",
    "queues.active_max",
    "queues.window_max",
    "limits.connections_per_address_max",
    "limits.loopback_is_proxy",
    "limits.requests_max",
    "limits.waiting_max",
    "limits.delay_max",
    "limits.request_bytes_max",
    "limits.bodies_bytes_max",
    "limits.answers_bytes_max",
    "limits.nonces_max",
    "limits.body_timeout",
    "limits.answer_timeout",
    "limits.read_timeout",
    "limits.poll_max",
    "limits.stream_open_timeout",
    "limits.stream_ping",
    "limits.stream_stall",
    "rates.address_per_second",
    "rates.address_burst",
    "rates.peer_per_second",
    "rates.peer_burst",
    "rates.group_per_second",
    "rates.group_burst",
    "rates.member_per_second",
    "rates.member_burst",
    "log.level",
    "log.slow_request",
];

/// What becomes of a configuration that a node reads while it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Adopted {
    /// What the node goes by from now on.
    pub config: Config,
    /// Settings that are others than before.
    pub taken: Vec<&'static str>,
    /// Settings that will be others when it is started again.
    pub waiting: Vec<&'static str>,
}

impl Config {
    /// What a node that runs with this configuration makes of `new`.
    ///
    /// # Errors
    /// Where what it can take of that does not go with what stays as it is.
    pub fn adopt(&self, new: &Self) -> Result<Adopted, String> {
        let mut adopted = Adopted { config: self.clone(), taken: Vec::new(), waiting: Vec::new() };
        for row in SETTINGS.iter().filter(|row| (row.show)(self) != (row.show)(new)) {
            if LIVE.contains(&row.key) {
                (row.copy)(&mut adopted.config, new);
                adopted.taken.push(row.key);
            } else {
                adopted.waiting.push(row.key);
            }
        }
        match check(&adopted.config).into_iter().next() {
            None => Ok(adopted),
            Some((key, problem)) => Err(format!(
                "{key}: {problem}; it goes with {}, which a start alone takes",
                adopted.waiting.join(", ")
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_can_be_taken_is_taken_and_the_rest_is_named() {
        for key in LIVE {
            assert!(SETTINGS.iter().any(|row| row.key == *key), "{key} is no setting");
        }
        let old = Config::default();
        let mut new = old.clone();
        new.rates.address_per_second = 7;
        new.limits.workers = 9;
        new.limits.poll_max = Duration::from_secs(3);
        new.ops.listen = ([127, 0, 0, 1], 1).into();
        let adopted = old.adopt(&new).unwrap();
        assert_eq!(adopted.taken, ["limits.poll_max", "rates.address_per_second"]);
        assert_eq!(adopted.waiting, ["ops.listen", "limits.workers"]);
        assert_eq!(adopted.config.limits.workers, old.limits.workers);
        assert_eq!(adopted.config.rates.address_per_second, 7);
        // what waits is told again, and what was taken is not
        let again = adopted.config.adopt(&new).unwrap();
        assert_eq!((again.taken, again.waiting), (vec![], adopted.waiting));
        // and back
        let back = adopted.config.adopt(&old).unwrap();
        assert_eq!((back.config, back.waiting), (old.clone(), vec![]));
    }

    #[test]
    fn the_example_says_what_a_running_node_takes() {
        let text = include_str!("../../../config/single.toml");
        let mut section = "";
        let mut marked = Vec::new();
        let mut is_live = false;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = name;
            }
            let setting = line.strip_prefix("#: ").unwrap_or(line);
            match setting.split_once(" = ") {
                Some((name, _)) if !setting.starts_with('#') => {
                    if setting.ends_with("# live") {
                        marked.push(format!("{section}.{name}"));
                    }
                }
                _ => is_live |= line.contains("# live"),
            }
        }
        assert!(is_live, "it says what the mark means");
        assert_eq!(marked, LIVE);
    }
}
