//! How long flushes and the waiting for them take, and how much shares one: as distributions, for Prometheus.

use prometheus::{Histogram, HistogramOpts};

/// What the writer's thread measures. Clones are the same.
#[derive(Debug, Clone)]
pub struct Histograms {
    /// From handing a group of batches to the engine until it is durable.
    pub flush_seconds: Histogram,
    /// Batches that share a flush.
    pub flush_batches: Histogram,
    /// Keys and values of a flush.
    pub flush_bytes: Histogram,
    /// From a batch's `write` until the writer's thread has handed it to the engine.
    pub wait_seconds: Histogram,
}

impl Histograms {
    #[must_use]
    pub fn all(&self) -> [&Histogram; 4] {
        [&self.flush_seconds, &self.flush_batches, &self.flush_bytes, &self.wait_seconds]
    }
}

impl Default for Histograms {
    fn default() -> Self {
        Self {
            flush_seconds: histogram(
                "mimid_store_flush_duration_seconds",
                "One flush: from handing its batches to the engine until they are durable",
                &SECONDS,
            ),
            flush_batches: histogram(
                "mimid_store_flush_batches",
                "Batches that share a flush",
                &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0],
            ),
            flush_bytes: histogram(
                "mimid_store_flush_bytes",
                "Bytes of the keys and values of a flush",
                &[1e3, 4e3, 16e3, 64e3, 256e3, 1e6, 4e6, 16e6],
            ),
            wait_seconds: histogram(
                "mimid_store_write_wait_seconds",
                "How long a batch waits for the flushes before it; snapshots, which go last, are not counted",
                &SECONDS,
            ),
        }
    }
}

const SECONDS: [f64; 13] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

fn histogram(name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    #[expect(clippy::expect_used, reason = "the names and buckets above are good ones")]
    Histogram::with_opts(options).expect("a good name, and buckets in order")
}
