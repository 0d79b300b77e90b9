//! What operators see of the traffic between providers. No label is a domain: those are unbounded here.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

use crate::wire::federation::S2SEndpoint;

use super::keys::KeyList;

/// Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct FederationMetrics {
    calls: IntCounterVec,
    call_seconds: HistogramVec,
    received: IntCounterVec,
    repeats: IntCounterVec,
    key_fetches: IntCounterVec,
    pub(super) replay_ids: IntGauge,
    pub(super) replay_answer_bytes: IntGauge,
}

impl FederationMetrics {
    /// # Errors
    /// Where `registry` already has metrics of these names.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let gauge = |name: &str, help: &str| {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let call_seconds = HistogramVec::new(
            HistogramOpts::new(
                "mimid_federation_call_seconds",
                "From a request to another provider to its whole answer, or to giving up",
            )
            .buckets(vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]),
            &["endpoint"],
        )?;
        registry.register(Box::new(call_seconds.clone()))?;
        Ok(Self {
            calls: counters(
                "mimid_federation_calls_total",
                "Requests to other providers, by endpoint and outcome: ok, or what failed",
                &["endpoint", "outcome"],
            )?,
            call_seconds,
            received: counters(
                "mimid_federation_received_total",
                "Messages of other providers, by endpoint and by what their check said: ok, or an error's name",
                &["endpoint", "outcome"],
            )?,
            repeats: counters(
                "mimid_federation_repeats_total",
                "Messages of other providers whose request id was seen within ten minutes",
                &["endpoint"],
            )?,
            key_fetches: counters(
                "mimid_federation_key_fetches_total",
                "Fetches of other providers' keys, by list and outcome",
                &["list", "outcome"],
            )?,
            replay_ids: gauge(
                "mimid_federation_remembered_requests",
                "Request ids of other providers that are remembered",
            )?,
            replay_answer_bytes: gauge(
                "mimid_federation_remembered_answer_bytes",
                "Bytes of answers that are kept for repeats of other providers",
            )?,
        })
    }

    pub(super) fn called(&self, endpoint: S2SEndpoint, outcome: &str, took: Duration) {
        let path = endpoint.path();
        self.calls.with_label_values(&[path, outcome]).inc();
        self.call_seconds.with_label_values(&[path]).observe(took.as_secs_f64());
    }

    pub(super) fn received(&self, endpoint: S2SEndpoint, outcome: &str, is_repeat: bool) {
        let path = endpoint.path();
        self.received.with_label_values(&[path, outcome]).inc();
        if is_repeat {
            self.repeats.with_label_values(&[path]).inc();
        }
    }

    pub(super) fn key_fetch(&self, list: KeyList, outcome: &str) {
        let list = match list {
            KeyList::Verification => "verification",
            KeyList::Signature => "signature",
        };
        self.key_fetches.with_label_values(&[list, outcome]).inc();
    }
}
