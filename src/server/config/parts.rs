//! What the parts of a node make of a configuration: their own bounds, those that have a setting, the rest as built in.

use std::time::Duration;

use super::{Config, Limits};
use crate::{
    actors::{self, GroupOptions, MoveLimits, PeerLimits},
    federation::{FederationLimits, schedule::Backoff},
    http,
    rate::{GroupQuotas, OverloadSettings, Quota},
};

impl Config {
    /// The node's bounds: those that have a setting, the rest as built in.
    #[must_use]
    pub fn node_limits(&self) -> actors::Limits {
        actors::Limits {
            overload: OverloadSettings { delay_max: self.limits.delay_max },
            devices_per_user_max: self.registration.devices_per_user_max,
            subscriptions_max: self.queues.groups_per_client_max,
            own_entries_max: self.queues.notices_max,
            connection_offers_per_hour: self.queues.connection_offers_per_hour,
            relay_timeout_ms: ms(self.federation.relay_timeout),
            copies_per_hub_max: self.federation.copies_per_hub_max,
            copy_bytes_per_hub_max: self.federation.copy_bytes_per_hub_max.0,
            peers: self.peer_limits(),
            moves: self.move_limits(),
            queue_actors_max: self.queues.active_max,
            window_bytes_max: u32::try_from(self.queues.window_max.0).unwrap_or(u32::MAX),
            nonces_max: self.limits.nonces_max,
            queue_idle_ms: ms(self.queues.passivate_after),
            dequeue_wait_ms_max: u32::try_from(ms(self.limits.poll_max)).unwrap_or(u32::MAX),
            ..actors::Limits::default()
        }
    }

    fn move_limits(&self) -> MoveLimits {
        let migration = &self.migration;
        MoveLimits {
            accept: migration.accept,
            sources: (!migration.sources.is_empty()).then(|| migration.sources.clone()),
            groups_max: migration.groups_max,
            groups_per_source_max: migration.groups_per_source_max,
            departures_max: migration.departures_max,
            response_ms: ms(migration.response_lifetime),
            freeze_ms: ms(migration.freeze_timeout),
            forward_ms: ms(migration.forward_for),
            ..MoveLimits::default()
        }
    }

    fn peer_limits(&self) -> PeerLimits {
        let mut limits = PeerLimits::default();
        let federation = &self.federation;
        limits.actors_max = federation.peers_max;
        limits.outbox.batch_items_max = federation.batch_items_max;
        limits.outbox.batch_bytes_max = federation.batch_bytes_max.in_memory();
        limits.outbox.batches_max = federation.batches_in_flight;
        limits.schedule.backoff =
            Backoff { first_ms: ms(federation.backoff_min), max_ms: ms(federation.backoff_max) };
        limits.unreachable_after_ms = ms(federation.unreachable_after);
        limits
    }

    /// What is remembered of other providers.
    #[must_use]
    pub fn remembered_limits(&self) -> FederationLimits {
        let mut limits = FederationLimits::default();
        // each provider has two lists
        limits.keys.lists_max = 2 * self.federation.peers_cached_max;
        limits
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
        options.settings.complaint_wait_ms = ms(self.groups.complaint_wait);
        options.rates = GroupQuotas {
            group: quota(self.rates.group_per_second, self.rates.group_burst),
            member: quota(self.rates.member_per_second, self.rates.member_burst),
        };
        options.idle_ms = ms(self.groups.passivate_after);
        options.active_max = self.groups.active_max;
        options.retention_ms = ms(self.groups.retention_age);
        options.retention_bytes = self.groups.retention_bytes.0;
        options
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Config {
    /// The bounds of the client listener.
    #[must_use]
    pub fn client_limits(&self) -> http::Limits {
        http::Limits {
            requests_per_address: quota(self.rates.address_per_second, self.rates.address_burst),
            slow_after: self.log.slow_request,
            ..self.limits.http()
        }
    }

    /// The bounds of the federation listener.
    #[must_use]
    pub fn federation_limits(&self) -> http::FederationLimits {
        http::FederationLimits {
            shared: http::Limits {
                connections_max: self.federation.connections_max,
                requests_max: self.federation.requests_max,
                ..self.client_limits()
            },
            requests_per_peer_max: self.federation.requests_per_peer_max,
            requests_per_peer: quota(self.rates.peer_per_second, self.rates.peer_burst),
        }
    }
}

fn quota(per_second: u32, burst: u32) -> Quota {
    Quota { per_second, burst }
}

impl Limits {
    /// What listeners have in common, as they take it.
    fn http(&self) -> http::Limits {
        http::Limits {
            workers: self.workers,
            connections_max: self.connections_max,
            connections_per_address_max: self.connections_per_address_max,
            loopback_is_proxy: self.loopback_is_proxy,
            backlog: self.backlog,
            requests_max: self.requests_max,
            waiting_max: self.waiting_max,
            request_bytes_max: self.request_bytes_max.in_memory(),
            bodies_bytes_max: self.bodies_bytes_max.in_memory(),
            answers_bytes_max: self.answers_bytes_max.in_memory(),
            header_timeout: self.header_timeout,
            body_timeout: self.body_timeout,
            answer_timeout: self.answer_timeout,
            read_timeout: self.read_timeout,
            keep_alive: self.keep_alive,
            poll_max: self.poll_max,
            stream_open_timeout: self.stream_open_timeout,
            stream_ping: self.stream_ping,
            stream_stall: self.stream_stall,
            drain_timeout: self.drain_timeout,
            ..http::Limits::default()
        }
    }
}
