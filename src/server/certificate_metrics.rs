//! When the listeners' certificates end, as Prometheus asks for it: read at each scrape.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus::{
    GaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::http::Certificates;

/// Exports the end of each listener's own certificate, in seconds since 1970.
pub struct CertificateMetrics {
    not_after: GaugeVec,
    listeners: Vec<(&'static str, Arc<Certificates>)>,
}

impl CertificateMetrics {
    /// # Errors
    /// None for the name below.
    pub fn new(
        listeners: Vec<(&'static str, Arc<Certificates>)>,
    ) -> Result<Self, prometheus::Error> {
        let opts = Opts::new(
            "mimid_certificate_not_after_timestamp_seconds",
            "When a listener's certificate ends, in seconds since 1970.",
        );
        Ok(Self { not_after: GaugeVec::new(opts, &["listener"])?, listeners })
    }
}

impl Collector for CertificateMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.not_after.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        for (listener, certificates) in &self.listeners {
            // one that cannot be understood counts as one that has ended: somebody should look
            let end = certificates.not_after().unwrap_or(SystemTime::UNIX_EPOCH);
            let seconds = end.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            self.not_after.with_label_values(&[listener]).set(seconds);
        }
        self.not_after.collect()
    }
}
