//! What operators see of the node, for Prometheus. Names have the prefix `mimid_`; no label is unbounded.

use crate::rate::Class;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector,
};

/// The node's metrics. Cheap to clone; clones are one registry.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub registry: Registry,
    pub queue_actors: IntGauge,
    pub queue_activations: IntCounter,
    /// `reason`: idle, drain, deleted, failed.
    pub queue_passivations: IntCounterVec,
    pub queue_entries_delivered: IntCounter,
    pub queue_bytes_delivered: IntCounter,
    /// Delivered and unacknowledged, over all active queues. Deliberately not: what waits for clients that are away. A
    /// message is one log record whatever the group's size and touches no queue, so how much a queue that nobody has
    /// open holds is known only by comparing each of its cursors with its feed's head: a scan of every membership.
    pub queue_entries_unacknowledged: IntGauge,
    pub queue_feeds: IntGauge,
    pub queue_acks: IntCounter,
    pub queue_acks_refused: IntCounter,
    pub queue_gaps: IntCounter,
    /// `kind`: welcome, notice, request; inbox, inbox_hub.
    pub queue_overflows: IntCounterVec,
    pub queue_hints: IntCounter,
    /// `class`: group, connection; `kind`: single, last_resort, none.
    pub key_packages_claimed: IntCounterVec,
    pub key_packages_published: IntCounter,
    pub key_packages_low: IntCounter,
    pub group_actors: IntGauge,
    pub group_activations: IntCounter,
    pub groups_isolated: IntGauge,
    /// `reason`: idle, pressure, settled (it came for the node's own work), failed.
    pub group_passivations: IntCounterVec,
    pub group_accepted: IntCounter,
    pub group_commits: IntCounter,
    pub group_epoch_conflicts: IntCounter,
    /// Of the oldest proposal that a commit found pending.
    pub group_pending_seconds: Histogram,
    /// To groups hosted here. `outcome`: resync, wait, void, none, or a status' name.
    pub complaints: IntCounterVec,
    pub epochs_voided: IntCounter,
    /// `role`: source, target; `outcome`: moved, aborted, arrived, refused.
    pub migrations: IntCounterVec,
    pub departures_under_way: IntGauge,
    /// As the last sweep found them.
    pub groups_from_elsewhere: IntGauge,
    pub arrivals_unconfirmed: IntGauge,
    pub group_frozen_seconds: Histogram,
    pub groups_behind_hub_key: IntGauge,
    /// Of what hubs delivered. `outcome`: accepted or the problem's name.
    pub guest_items: IntCounterVec,
    /// Copies of groups that others host, and what their logs and rosters take.
    pub guest_copies: IntGauge,
    pub guest_copy_bytes: IntGauge,
    /// Items that a hub had no room for. `bound`: copies or bytes.
    pub guest_full: IntCounterVec,
    /// `operation`; `outcome`: ok or a status' name.
    pub relayed: IntCounterVec,
    /// `outcome`: ok or a status' name.
    pub authentications: IntCounterVec,
    /// `class`: a [`Class`]; `reason`: one of `SHED_REASONS`.
    pub requests_shed: IntCounterVec,
}

/// Why a request is not taken in: waits are too long, the group's own queue is, or there is no permit left.
const SHED_REASONS: [&str; 3] = ["delay", "group", "permits"];

impl Metrics {
    /// Has `collector` asked at every scrape. Without it a node runs on, and its log says which metrics it does not have.
    pub(super) fn collect(
        &self,
        what: &str,
        collector: Result<impl Collector + 'static, prometheus::Error>,
    ) {
        let registered = collector.and_then(|it| self.registry.register(Box::new(it)));
        if let Err(error) = registered {
            tracing::error!(%error, "there are no metrics of {what}");
        }
    }

    /// Metrics in a registry of their own.
    ///
    /// # Errors
    /// Where two metrics have one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let metric = IntCounter::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let metrics = Self {
            queue_actors: gauge("mimid_queue_actors", "Queues that are active now.")?,
            queue_activations: counter(
                "mimid_queue_activations_total",
                "Queues that were loaded from the store.",
            )?,
            queue_passivations: counters(
                "mimid_queue_passivations_total",
                "Queues that were let go, by reason.",
                &["reason"],
            )?,
            queue_entries_delivered: counter(
                "mimid_queue_entries_delivered_total",
                "Entries handed to clients, repeats included.",
            )?,
            queue_bytes_delivered: counter(
                "mimid_queue_delivered_bytes_total",
                "Bytes of the entries handed to clients, repeats included.",
            )?,
            queue_entries_unacknowledged: gauge(
                "mimid_queue_entries_unacknowledged",
                "Entries handed to clients that are active now and not acknowledged yet; what waits for clients that are away is not counted anywhere (ops/README.md).",
            )?,
            queue_feeds: gauge(
                "mimid_queue_feeds",
                "Feeds of active queues, each with a cursor: one for each membership, and each client's own.",
            )?,
            queue_acks: counter("mimid_queue_acks_total", "Acknowledgements taken.")?,
            queue_acks_refused: counter(
                "mimid_queue_acks_refused_total",
                "Acknowledgements of what was not delivered.",
            )?,
            queue_gaps: counter(
                "mimid_queue_gaps_total",
                "Gap entries delivered: a client fell off the end of a feed and must resync.",
            )?,
            queue_overflows: counters(
                "mimid_queue_overflows_total",
                "Entries that a full queue did not take, by kind.",
                &["kind"],
            )?,
            queue_hints: counter("mimid_queue_hints_total", "Wake hints given to active queues.")?,
            key_packages_claimed: counters(
                "mimid_key_packages_claimed_total",
                "KeyPackages asked for, by class and by what was handed out.",
                &["class", "kind"],
            )?,
            key_packages_published: counter(
                "mimid_key_packages_published_total",
                "KeyPackages taken from clients.",
            )?,
            key_packages_low: counter(
                "mimid_key_packages_low_total",
                "Notices to clients that their KeyPackages run out.",
            )?,
            group_actors: gauge("mimid_group_actors", "Groups that are active now.")?,
            groups_isolated: gauge(
                "mimid_groups_isolated",
                "Groups that cannot be loaded from what is stored, and are refused until that is restored.",
            )?,
            group_activations: counter(
                "mimid_group_activations_total",
                "Groups that were loaded from the store.",
            )?,
            group_passivations: counters(
                "mimid_group_passivations_total",
                "Groups that were let go, by reason.",
                &["reason"],
            )?,
            group_accepted: counter(
                "mimid_group_accepted_total",
                "Messages that groups accepted: commits, proposals, application messages and changes of queues.",
            )?,
            group_commits: counter("mimid_group_commits_total", "Commits that groups accepted.")?,
            group_epoch_conflicts: counter(
                "mimid_group_epoch_conflicts_total",
                "Requests that came for another epoch than the current one.",
            )?,

            group_pending_seconds: {
                let options = HistogramOpts::new(
                    "mimid_group_pending_seconds",
                    "How long the oldest proposal that was pending had waited when a commit came.",
                );
                let buckets = vec![
                    0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0, 604800.0,
                ];
                let metric = Histogram::with_opts(options.buckets(buckets))?;
                registry.register(Box::new(metric.clone()))?;
                metric
            },
            complaints: counters(
                "mimid_complaints_total",
                "Complaints of members about commits in groups hosted here, by what they were answered.",
                &["outcome"],
            )?,
            epochs_voided: counter(
                "mimid_epochs_voided_total",
                "Epochs that were taken back because most users could not process their commit.",
            )?,
            migrations: counters(
                "mimid_migrations_total",
                "Moves of groups that have ended here, by this provider's role and how they ended.",
                &["role", "outcome"],
            )?,
            departures_under_way: gauge(
                "mimid_migrations_under_way",
                "Groups that are on their way to another provider.",
            )?,
            groups_from_elsewhere: gauge(
                "mimid_groups_from_elsewhere",
                "Groups hosted here that came from another provider, as the last sweep found them.",
            )?,
            arrivals_unconfirmed: gauge(
                "mimid_migrations_unconfirmed",
                "Groups that came here and whose last host has not confirmed that it knows, as the last sweep found them.",
            )?,
            group_frozen_seconds: {
                let options = HistogramOpts::new(
                    "mimid_group_frozen_seconds",
                    "How long groups took nothing because they were on their way to another provider.",
                );
                let buckets = vec![0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0];
                let metric = Histogram::with_opts(options.buckets(buckets))?;
                registry.register(Box::new(metric.clone()))?;
                metric
            },
            groups_behind_hub_key: gauge(
                "mimid_group_hub_keys_old",
                "Groups hosted here whose hub signs with a key that has been replaced, when they were looked at last.",
            )?,
            guest_items: counters(
                "mimid_guest_items_total",
                "Items that other providers delivered for clients here, by what became of them.",
                &["outcome"],
            )?,
            guest_copies: gauge(
                "mimid_guest_copies",
                "Copies of groups that other providers host, as the last sweep found them.",
            )?,
            guest_copy_bytes: gauge(
                "mimid_guest_copy_bytes",
                "What the logs and rosters of copies take, as the last sweep found them.",
            )?,
            guest_full: counters(
                "mimid_guest_full_total",
                "Items that were refused because their hub has kept here what it may, by the bound.",
                &["bound"],
            )?,
            relayed: counters(
                "mimid_relayed_total",
                "Requests of clients here that were brought to another provider, by operation and answer.",
                &["operation", "outcome"],
            )?,
            authentications: counters(
                "mimid_client_authentications_total",
                "Client messages checked, by outcome.",
                &["outcome"],
            )?,
            requests_shed: counters(
                "mimid_requests_shed_total",
                "Requests that were not taken in because there was too much to do, by what they were worth and by the bound.",
                &["class", "reason"],
            )?,
            registry,
        };
        metrics.begin_at_zero();
        Ok(metrics)
    }

    /// Counts a request that was not taken in.
    pub fn shed(&self, class: Class, reason: &'static str) {
        self.requests_shed.with_label_values(&[class.name(), reason]).inc();
    }

    /// Counters are there before the first event: a rate from nothing to one would not be seen.
    fn begin_at_zero(&self) {
        let known: [(&IntCounterVec, &[&str]); 7] = [
            (&self.queue_passivations, &["idle", "drain", "deleted", "failed"]),
            (&self.queue_overflows, &["welcome", "notice", "request", "inbox", "inbox_hub"]),
            (&self.group_passivations, &["idle", "pressure", "settled", "failed"]),
            (&self.guest_items, &["accepted"]),
            (&self.guest_full, &["copies", "bytes"]),
            (&self.authentications, &["ok"]),
            (&self.complaints, &["resync", "wait", "void", "none"]),
        ];
        for (counters, labels) in known {
            for label in labels {
                counters.with_label_values(&[label]);
            }
        }
        for class in Class::ALL {
            for reason in SHED_REASONS {
                self.requests_shed.with_label_values(&[class.name(), reason]);
            }
        }
        for class in ["group", "connection"] {
            for kind in ["single", "last_resort", "none"] {
                self.key_packages_claimed.with_label_values(&[class, kind]);
            }
        }
        for role_outcome in [
            ["source", "moved"],
            ["source", "aborted"],
            ["target", "arrived"],
            ["target", "refused"],
        ] {
            self.migrations.with_label_values(&role_outcome);
        }
    }
}
