//! What the store counts, as Prometheus asks for it: read at each scrape.

use prometheus::{
    Counter, Gauge, GaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::store::{SharedStore, StoreStats};

/// Exports [`StoreStats`].
pub struct StoreMetrics {
    store: SharedStore,
    descs: Vec<Desc>,
}

type Read = fn(&StoreStats) -> f64;

const COUNTERS: [(&str, &str, Read); 6] = [
    ("mimid_store_batches_total", "Batches that were made durable", |stats| stats.batches as f64),
    ("mimid_store_flushes_total", "Flushes; many batches share one", |stats| stats.flushes as f64),
    ("mimid_store_flush_seconds_total", "Time spent flushing", |stats| {
        stats.flush_us_total as f64 / 1e6
    }),
    ("mimid_store_writes_total", "Records written", |stats| stats.writes as f64),
    (
        "mimid_store_read_failures_total",
        "Reads that the engine could not do; what they were for is refused",
        |stats| stats.read_failures as f64,
    ),
    ("mimid_store_written_bytes_total", "Bytes given to the engine", |stats| {
        stats.bytes_written as f64
    }),
];
const ON_DISK: (&str, &str) = ("mimid_store_disk_bytes", "Size of the store's files");
const WRITABLE: (&str, &str) =
    ("mimid_store_writable", "1 while writes are taken, 0 once the store is read-only");
const FREE: (&str, &str) = (
    "mimid_store_disk_free_bytes",
    "Free on the store's disk, where some of it is to be kept free",
);
const ROOM: (&str, &str) =
    ("mimid_store_room", "1 while what is new is taken, 0 where the disk is nearly full");
const WAITING: (&str, &str) =
    ("mimid_store_batches_waiting", "Batches that wait for a flush, or are in one");
const DAMAGED: (&str, &str) = (
    "mimid_store_damaged_records",
    "Stored records that were found since the start and cannot be read, by kind",
);

impl StoreMetrics {
    /// # Errors
    /// None for the names above.
    pub fn new(store: SharedStore) -> Result<Self, prometheus::Error> {
        let mut descs = Vec::new();
        for (name, help, _) in COUNTERS {
            descs.extend(Counter::new(name, help)?.desc().into_iter().cloned());
        }
        for (name, help) in [ON_DISK, WRITABLE, FREE, ROOM, WAITING] {
            descs.extend(Gauge::new(name, help)?.desc().into_iter().cloned());
        }
        descs.extend(damaged()?.desc().into_iter().cloned());
        for histogram in store.histograms().all() {
            descs.extend(histogram.desc().into_iter().cloned());
        }
        Ok(Self { store, descs })
    }

    fn read(&self) -> Result<Vec<MetricFamily>, prometheus::Error> {
        let stats = self.store.stats();
        let mut families = Vec::new();
        for (name, help, read) in COUNTERS {
            let counter = Counter::new(name, help)?;
            counter.inc_by(read(&stats));
            families.extend(counter.collect());
        }
        let writable = if self.store.writable().is_ok() { 1.0 } else { 0.0 };
        let room = if self.store.room().is_ok() { 1.0 } else { 0.0 };
        let gauges = [
            (ON_DISK, Some(stats.bytes_on_disk as f64)),
            (WRITABLE, Some(writable)),
            (FREE, stats.disk_free_bytes.map(|bytes| bytes as f64)),
            (ROOM, Some(room)),
            (WAITING, Some(stats.batches_waiting as f64)),
        ];
        for ((name, help), value) in gauges {
            let Some(value) = value else { continue };
            let gauge = Gauge::new(name, help)?;
            gauge.set(value);
            families.extend(gauge.collect());
        }
        let damaged = damaged()?;
        // there from the start, so that an alert has something to compare with
        damaged.with_label_values(&["log record"]).set(0.0);
        for (kind, records) in self.store.damaged() {
            damaged.with_label_values(&[kind]).set(records as f64);
        }
        families.extend(damaged.collect());
        for histogram in self.store.histograms().all() {
            families.extend(histogram.collect());
        }
        Ok(families)
    }
}

fn damaged() -> Result<GaugeVec, prometheus::Error> {
    let (name, help) = DAMAGED;
    GaugeVec::new(Opts::new(name, help), &["kind"])
}

impl Collector for StoreMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read().unwrap_or_default()
    }
}
