//! What the store takes: an accepted message's batch (one log record and its group's head), durable before it is
//! answered, by how many groups write at the same time. They share flushes; that is the point. Each engine that has files.

use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput};
use mimid::{
    store::{
        self, Batch, Condition, Page, SharedStore, StoreConfig, Write,
        links::Link,
        records::{FeedEntry, GroupHead, GroupStatus, LogRecord},
    },
    wire::ids::{Domain, Epoch, GroupId, RecipientId, Sequence, Timestamp},
};

/// About what a message of ordinary length takes.
const EVENT_BYTES: usize = 400;

/// What a log's hash chain costs: the link of one message, and a page of a feed with links and without.
pub fn links(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut group = c.benchmark_group("log links");
    for bytes in [EVENT_BYTES, 4_000, 64_000] {
        let record = message(Sequence(7), bytes);
        group.bench_with_input(BenchmarkId::new("of a message", bytes), &record, |b, record| {
            b.iter(|| Link::START.to(&record.feed, &record.change));
        });
    }
    for linked in [false, true] {
        let store = store::memory::Disk::new().open().unwrap();
        let mut head = runtime.block_on(create(&store));
        let mut batch = Batch::new();
        for at in 1..=PAGE as u64 {
            let record = message(Sequence(at), EVENT_BYTES);
            let record = if linked { head.append(record) } else { record };
            batch.push(Write::Log { group: head.group.clone(), record });
        }
        runtime.block_on(store.write(batch.and(Write::GroupHead(head.clone())))).unwrap();
        let page = Page { items_max: PAGE, bytes_max: usize::MAX };
        let name = BenchmarkId::new("feed page of 64", if linked { "linked" } else { "unlinked" });
        group.bench_function(name, |b| {
            b.iter(|| runtime.block_on(store.feed(&head.group, Sequence(0), page)).unwrap());
        });
        let name = BenchmarkId::new("log page of 64", if linked { "linked" } else { "unlinked" });
        group.bench_function(name, |b| {
            b.iter(|| runtime.block_on(store.log(&head.group, Sequence(0), page)).unwrap());
        });
    }
    group.finish();
}

const PAGE: usize = 64;

fn message(sequence: Sequence, event_bytes: usize) -> LogRecord {
    let feed = FeedEntry {
        sequence,
        accepted_at: Timestamp(0),
        except: Some(RecipientId(1)),
        origin: None,
        handshake: false,
        event: vec![7; event_bytes],
    };
    LogRecord { feed, change: vec![7; 60], follows: None }
}

/// The engines with files, and the sizes of writers; each engine's turn is whole, as a node's is.
pub fn batches(c: &mut Criterion) {
    for engine in ["sled", "fjall"] {
        batches_of(c, engine);
    }
}

fn batches_of(c: &mut Criterion, engine: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = store::open(&StoreConfig {
        engine: engine.to_owned(),
        folder: folder.path().join("store"),
        cache_bytes: 64 * 1024 * 1024,
    })
    .unwrap();
    let mut group = c.benchmark_group(format!("store batches, {engine}"));
    group.throughput(Throughput::Elements(1));
    for writers in [1u64, 16, 128] {
        group.bench_with_input(BenchmarkId::new("writers", writers), &writers, |b, &writers| {
            b.iter_custom(|iterations| {
                let heads: Vec<GroupHead> =
                    (0..writers).map(|_| runtime.block_on(create(&store))).collect();
                let started = Instant::now();
                runtime.block_on(async {
                    let mut tasks = Vec::new();
                    for (index, head) in (0..writers).zip(heads) {
                        let share = iterations / writers + u64::from(index < iterations % writers);
                        tasks.push(tokio::spawn(append(store.clone(), head, share)));
                    }
                    for task in tasks {
                        task.await.unwrap();
                    }
                });
                started.elapsed()
            });
        });
    }
    group.finish();
    let stats = store.stats();
    if stats.flushes > 0 {
        println!(
            "{engine}: {:.1} batches a flush over all",
            stats.batches as f64 / stats.flushes as f64
        );
    }
    runtime.block_on(store.close()).unwrap();
}

async fn create(store: &SharedStore) -> GroupHead {
    let group = GroupId::of(&Domain::new("a.example").unwrap(), mimid::crypto::random());
    let head = GroupHead {
        group: group.clone(),
        status: GroupStatus::Active,
        next_sequence: Sequence(1),
        first_sequence: Sequence(1),
        epoch: Epoch(0),
        revision: 1,
        snapshot: Sequence(0),
        previous_snapshot: None,
        created_at: Timestamp(0),
        last_accepted_at: Timestamp(0),
        log_bytes: 0,
        joiner_infos: Vec::new(),
        wake_at: None,
        hub_key: None,
        last: None,
    };
    let batch =
        Batch::new().when(Condition::GroupUnknown(group)).and(Write::GroupHead(head.clone()));
    store.write(batch).await.unwrap();
    head
}

/// Writes `count` messages, each when the one before is durable.
async fn append(store: SharedStore, mut head: GroupHead, count: u64) {
    for _ in 0..count {
        let at = Condition::GroupAt {
            group: head.group.clone(),
            next_sequence: head.next_sequence,
            revision: head.revision,
        };
        let record = message(head.next_sequence, EVENT_BYTES);
        let record = head.append(record);
        head.next_sequence = head.next_sequence.next();
        head.revision += 1;
        let batch = Batch::new()
            .when(at)
            .and(Write::Log { group: head.group.clone(), record })
            .and(Write::GroupHead(head.clone()));
        store.write(batch).await.unwrap();
    }
}
