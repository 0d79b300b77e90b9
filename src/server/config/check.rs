//! What the values of a configuration may be: ranges, and settings that belong together.

use std::time::Duration;

use super::{
    Bytes, Config, RegistrationMode, Setting,
    load::{REGISTRATION_TOKEN, token_hash},
};
use crate::{actors::GroupOptions, server::telemetry, wire::queueing::BATCH_ITEMS_MAX};

/// Which of its values a configuration cannot run with, and what is allowed.
pub(super) fn check(config: &Config) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    let Config {
        client,
        federation,
        migration,
        registration,
        limits,
        rates,
        store,
        log,
        groups,
        queues,
        ..
    } = config;
    if client.certificate.is_some() != client.key.is_some() {
        let key = if client.key.is_some() { "client.key" } else { "client.certificate" };
        wrong.push((
            key,
            "client.certificate and client.key are given together or not at all".into(),
        ));
    }
    if federation.certificate.is_some() != federation.key.is_some() {
        let key =
            if federation.key.is_some() { "federation.key" } else { "federation.certificate" };
        wrong.push((
            key,
            "federation.certificate and federation.key are given together or not at all".into(),
        ));
    }
    if federation.domain_name.as_ref().is_some_and(|host| host.address().is_some()) {
        wrong.push((
            "federation.domain_name",
            "others take no address there: give a name that a certificate can be for".into(),
        ));
    }
    let self_signed = client.certificate.is_none() && federation.certificate.is_none();
    let names = [config.domain.as_str(), "localhost"];
    let says = federation.domain_name.as_ref().map(|host| host.authority());
    if let Some(host) = says.as_deref().and_then(|says| says.split(':').next())
        && self_signed
        && !names.contains(&host)
    {
        wrong.push((
            "federation.domain_name",
            format!(
                "the certificate that mimid makes is for {} alone: give one for {host} in federation.certificate",
                config.domain
            ),
        ));
    }
    if federation.overrides.contains_key(&config.domain) {
        wrong.push((
            "federation.overrides",
            format!(
                "{} is this provider itself; say where others find it in federation.domain_name",
                config.domain
            ),
        ));
    }
    if federation.backoff_min > federation.backoff_max {
        wrong.push(("federation.backoff_min", "it is more than federation.backoff_max".into()));
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
    if let Err(error) = telemetry::filter(&log.level) {
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
    count("groups.active_max", groups.active_max, 16, 10_000_000);
    count("queues.active_max", queues.active_max, 1, 10_000_000);
    count("limits.nonces_max", limits.nonces_max, 1000, 1_000_000_000);
    count("queues.notices_max", queues.notices_max, 10, 100_000);
    let offers = queues.connection_offers_per_hour as usize;
    count("queues.connection_offers_per_hour", offers, 1, 1_000_000);
    count("limits.workers", limits.workers, 1, 1024);
    count("limits.actor_threads", limits.actor_threads, 1, 1024);
    count("limits.connections_max", limits.connections_max, 1, 1_000_000);
    let per_address = limits.connections_per_address_max;
    count("limits.connections_per_address_max", per_address, 1, 1_000_000);
    count("limits.requests_max", limits.requests_max, 1, 100_000);
    count("limits.waiting_max", limits.waiting_max, 1, 1_000_000);
    for (key, rate) in [
        ("rates.address_per_second", rates.address_per_second),
        ("rates.address_burst", rates.address_burst),
        ("rates.peer_per_second", rates.peer_per_second),
        ("rates.peer_burst", rates.peer_burst),
        ("rates.group_per_second", rates.group_per_second),
        ("rates.group_burst", rates.group_burst),
        ("rates.member_per_second", rates.member_per_second),
        ("rates.member_burst", rates.member_burst),
    ] {
        count(key, rate as usize, 0, 1_000_000);
    }
    count("federation.connections_max", federation.connections_max, 1, 1_000_000);
    count("federation.requests_max", federation.requests_max, 1, 100_000);
    count("federation.requests_per_peer_max", federation.requests_per_peer_max, 1, 100_000);
    count("federation.peers_max", federation.peers_max, 1, 1_000_000);
    count("federation.peers_cached_max", federation.peers_cached_max, 1, 1_000_000);
    count("federation.batch_items_max", federation.batch_items_max, 1, BATCH_ITEMS_MAX);
    count("federation.copies_per_hub_max", federation.copies_per_hub_max, 1, 100_000_000);
    count("federation.batches_in_flight", federation.batches_in_flight, 1, 64);
    count("migration.groups_max", migration.groups_max, 0, 10_000_000);
    count("migration.groups_per_source_max", migration.groups_per_source_max, 0, 10_000_000);
    count("migration.departures_max", migration.departures_max, 1, 1024);
    count("limits.backlog", limits.backlog as usize, 1, 65_535);
    let mut size = |key, value: Bytes, min: u64, max: u64| {
        if !(min..=max).contains(&value.0) {
            let (value, min, max) = (value.show(), Bytes(min).show(), Bytes(max).show());
            wrong.push((key, format!("{value} is not from {min} to {max}")));
        }
    };
    size("limits.request_bytes_max", limits.request_bytes_max, 16 << 10, 64 << 20);
    size("limits.bodies_bytes_max", limits.bodies_bytes_max, 8 << 20, 1 << 40);
    size("queues.window_max", queues.window_max, 64 << 10, 64 << 20);
    // one answer of the largest size
    size("limits.answers_bytes_max", limits.answers_bytes_max, 65 << 20, 1 << 40);
    // as large as the protocol has them at the most
    let application_max = crate::wire::ds::APPLICATION_BYTES_MAX as u64;
    size("groups.application_bytes_max", groups.application_bytes_max, 1 << 10, application_max);
    let handshake_max = crate::wire::ds::REQUEST_BYTES_MAX as u64;
    size("groups.handshake_bytes_max", groups.handshake_bytes_max, 16 << 10, handshake_max);
    // a batch travels in one request, with what is around it
    size("federation.batch_bytes_max", federation.batch_bytes_max, 16 << 10, handshake_max);
    // one copy of the largest group, and a log beside it
    size("federation.copy_bytes_per_hub_max", federation.copy_bytes_per_hub_max, 64 << 20, 1 << 50);
    size("store.cache", store.cache, 1 << 20, 1 << 40);
    size("store.free_bytes_min", store.free_bytes_min, 0, 1 << 50);
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
    time("groups.complaint_wait", groups.complaint_wait, 1_000, 120);
    time("groups.passivate_after", groups.passivate_after, 10, years);
    time("groups.retention_age", groups.retention_age, 3_600_000, years);
    time("queues.passivate_after", queues.passivate_after, 10, years);
    let day = 24 * 3600;
    time("federation.domain_name_cached", federation.domain_name_cached, 0, 30 * day);
    time("federation.connect_timeout", federation.connect_timeout, 10, 300);
    time("federation.relay_timeout", federation.relay_timeout, 100, 300);
    time("federation.backoff_min", federation.backoff_min, 10, 3600);
    time("federation.backoff_max", federation.backoff_max, 10, day);
    time("federation.unreachable_after", federation.unreachable_after, 60_000, years);
    time("migration.response_lifetime", migration.response_lifetime, 10_000, 3600);
    time("migration.freeze_timeout", migration.freeze_timeout, 1_000, 3600);
    time("migration.forward_for", migration.forward_for, 60_000, years);
    time("migration.answer_for", migration.answer_for, 3_600_000, years);
    if let Some(delay) = limits.delay_max {
        time("limits.delay_max", delay, 5, 60);
    }
    time("limits.header_timeout", limits.header_timeout, 10, 300);
    time("limits.body_timeout", limits.body_timeout, 10, 3600);
    time("limits.answer_timeout", limits.answer_timeout, 10, 3600);
    time("limits.read_timeout", limits.read_timeout, 10, 3600);
    time("limits.keep_alive", limits.keep_alive, 1000, 3600);
    time("limits.poll_max", limits.poll_max, 0, 600);
    time("limits.stream_open_timeout", limits.stream_open_timeout, 10, 300);
    time("limits.stream_ping", limits.stream_ping, 10, 600);
    time("limits.stream_stall", limits.stream_stall, 10, 3600);
    if let Some(after) = log.slow_request {
        time("log.slow_request", after, 0, 3600);
    }
    time("limits.drain_timeout", limits.drain_timeout, 1000, 600);
    wrong
}
