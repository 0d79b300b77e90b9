//! What the listeners count. Labels are bounded: an unknown path is one name.

use std::time::Duration;

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use super::endpoint::Endpoint;
use crate::actors::stages::Stage;

/// Counters of all listeners. Cheap to clone.
#[derive(Clone)]
pub struct HttpMetrics {
    requests: IntCounterVec,
    seconds: HistogramVec,
    stage_seconds: HistogramVec,
    slow: IntCounterVec,
    in_flight: IntGaugeVec,
    ds_requests: IntCounterVec,
    ds_seconds: HistogramVec,
    connections: IntGaugeVec,
    connections_max: IntGaugeVec,
    pub(super) connection_cuts: IntCounterVec,
    pub(super) streams: IntGauge,
    pub(super) stream_entries: IntCounter,
    pub(super) stream_closes: IntCounterVec,
}

impl HttpMetrics {
    /// # Errors
    /// Where `registry` already has metrics of these names.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let buckets = vec![
            0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
            30.0, 60.0,
        ];
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new("mimid_http_requests_total", "Answered requests by HTTP status"),
                &["listener", "endpoint", "status"],
            )?,
            seconds: HistogramVec::new(
                HistogramOpts::new(
                    "mimid_http_request_seconds",
                    "From a request's head to its answer; of /v1/dequeue the waiting for entries is a part",
                )
                .buckets(buckets),
                &["listener", "endpoint"],
            )?,
            stage_seconds: HistogramVec::new(
                HistogramOpts::new(
                    "mimid_request_stage_seconds",
                    "Where the time of a request goes; the stages that it was in add up to the whole",
                )
                .buckets(vec![
                    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
                    5.0,
                ]),
                &["endpoint", "stage"],
            )?,
            slow: IntCounterVec::new(
                Opts::new(
                    "mimid_http_requests_slow_total",
                    "Requests that this provider had in hand for longer than log.slow_request; the log says where the time went",
                ),
                &["listener", "endpoint"],
            )?,
            in_flight: IntGaugeVec::new(
                Opts::new("mimid_http_requests_in_flight", "Requests that are not answered yet"),
                &["listener"],
            )?,
            ds_requests: IntCounterVec::new(
                Opts::new("mimid_ds_requests_total", "Delivery Service requests by DSStatus"),
                &["operation", "status"],
            )?,
            ds_seconds: HistogramVec::new(
                HistogramOpts::new(
                    "mimid_ds_request_seconds",
                    "From the head of a Delivery Service request to its answer, of those whose sender was known",
                )
                .buckets(vec![
                    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
                ]),
                &["operation"],
            )?,
            connections: IntGaugeVec::new(
                Opts::new("mimid_http_connections_open", "Connections that are open"),
                &["listener"],
            )?,
            connections_max: IntGaugeVec::new(
                Opts::new(
                    "mimid_http_connections_max",
                    "Connections that may be open; more wait until one of them ends",
                ),
                &["listener"],
            )?,
            connection_cuts: IntCounterVec::new(
                Opts::new(
                    "mimid_http_connections_cut_total",
                    "Connections, and streams of HTTP/2, that were ended because they broke a bound, by which",
                ),
                &["listener", "reason"],
            )?,
            streams: IntGauge::new("mimid_streams_open", "Streams that are open")?,
            stream_entries: IntCounter::new(
                "mimid_stream_entries_total",
                "Queue entries sent through streams",
            )?,
            stream_closes: IntCounterVec::new(
                Opts::new("mimid_stream_closes_total", "Streams that ended, by reason"),
                &["reason"],
            )?,
        };
        // there before the first event: a rate from nothing to one would not be seen
        for reason in super::stream::REASONS {
            metrics.stream_closes.with_label_values(&[reason]);
        }
        for reason in ["tls", "handshake", "slow_reader"] {
            metrics.connection_cuts.with_label_values(&["client", reason]);
        }
        metrics.slow.with_label_values(&["client", Endpoint::GroupOperation.path()]);
        metrics.ds_requests.with_label_values(&["resync-client", "ok"]);
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.seconds.clone()))?;
        registry.register(Box::new(metrics.stage_seconds.clone()))?;
        registry.register(Box::new(metrics.slow.clone()))?;
        registry.register(Box::new(metrics.in_flight.clone()))?;
        registry.register(Box::new(metrics.ds_requests.clone()))?;
        registry.register(Box::new(metrics.ds_seconds.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.connections_max.clone()))?;
        registry.register(Box::new(metrics.connection_cuts.clone()))?;
        registry.register(Box::new(metrics.streams.clone()))?;
        registry.register(Box::new(metrics.stream_entries.clone()))?;
        registry.register(Box::new(metrics.stream_closes.clone()))?;
        Ok(metrics)
    }

    /// Counts a request as in flight until the guard is dropped, also when its handler is.
    pub(super) fn begin(&self, listener: &'static str) -> InFlight {
        InFlight::of(&self.in_flight, listener)
    }

    /// Counts a connection as open until the guard is dropped.
    pub(super) fn connected(&self, listener: &'static str) -> InFlight {
        InFlight::of(&self.connections, listener)
    }

    /// A listener lets so many connections be open.
    pub(super) fn may_connect(&self, listener: &'static str, connections: usize) {
        let connections = i64::try_from(connections).unwrap_or(i64::MAX);
        self.connections_max.with_label_values(&[listener]).set(connections);
    }

    pub(super) fn answered(
        &self,
        listener: &'static str,
        path: &'static str,
        status: u16,
        took: Duration,
    ) {
        self.requests.with_label_values(&[listener, path, &status.to_string()]).inc();
        self.seconds.with_label_values(&[listener, path]).observe(took.as_secs_f64());
    }

    pub(super) fn spent(&self, path: &'static str, stage: Stage, time: Duration) {
        let seconds = self.stage_seconds.with_label_values(&[path, stage.name()]);
        seconds.observe(time.as_secs_f64());
    }

    /// A request to a group took so long, all in all.
    pub(super) fn ds_took(&self, operation: &'static str, took: Duration) {
        self.ds_seconds.with_label_values(&[operation]).observe(took.as_secs_f64());
    }

    pub(super) fn slow(&self, listener: &'static str, path: &'static str) {
        self.slow.with_label_values(&[listener, path]).inc();
    }

    pub(super) fn ds_answered(&self, operation: &'static str, status: &'static str) {
        self.ds_requests.with_label_values(&[operation, status]).inc();
    }
}

pub(super) struct InFlight(IntGauge);

impl InFlight {
    fn of(gauges: &IntGaugeVec, listener: &'static str) -> Self {
        let gauge = gauges.with_label_values(&[listener]);
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
