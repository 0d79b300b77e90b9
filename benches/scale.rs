//! What many groups cost a provider that runs: the start with a store full of idle ones, and the memory of active ones.
//!
//! The idle ones are written through the store's own trait: a head and a snapshot each, of the size that a group of two has.
//! `SCALE_GROUPS` says how many, a million otherwise. Memory is what the kernel counts as resident.

use std::time::{Duration, Instant};

use mimid::{
    store::{
        self, Batch, StoreConfig, Write,
        records::{GroupHead, GroupStatus},
    },
    wire::ids::{Domain, Epoch, GroupId, Sequence, Timestamp},
};
use tokio::runtime::Runtime;

use crate::{
    providers::{PATIENCE, Provider},
    served::Scene,
};

/// What a snapshot of a group of two takes.
const SNAPSHOT_BYTES: usize = 2_500;
/// Groups in one batch while the store is filled.
const FILL: usize = 500;

/// How long a provider with idle groups takes to start, and how large it is then.
pub fn start() {
    if !crate::is_asked_for("scale: start") {
        return;
    }
    let asked = std::env::var("SCALE_GROUPS").ok().and_then(|it| it.parse().ok());
    let groups = asked.unwrap_or(if crate::is_test() { 100 } else { 1_000_000 });
    println!("\nscale: start with idle groups");
    println!(
        "engine  groups     store on disk   start    resident   after a sweep: CPU   resident"
    );
    for engine in ["sled", "fjall"] {
        Runtime::new().unwrap().block_on(start_with(engine, groups));
    }
}

async fn start_with(engine: &str, groups: usize) {
    let folder = tempfile::tempdir().unwrap();
    let settings = format!("[store]\nengine = \"{engine}\"\n[log]\nlevel = \"warn\"");
    let provider = Provider::new("a.example", folder.path(), &settings);
    provider.configure(&[]);
    provider.start().await;
    provider.kill();
    fill(engine, &provider, groups).await;

    let began = Instant::now();
    provider.start().await;
    let took = began.elapsed();
    let at_start = resident(&provider);
    // the sweep that every start begins with has ended when nothing is computed any more
    let mut before = provider.cpu();
    let deadline = Instant::now() + PATIENCE * 5;
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = provider.cpu();
        if now - before < Duration::from_millis(100) {
            break;
        }
        assert!(Instant::now() < deadline, "it does not come to rest");
        before = now;
    }
    println!(
        "{engine:<6}  {groups:>9}  {:>9} MiB  {:>6.2} s  {:>5} MiB     {:>8.1} s  {:>5} MiB",
        on_disk(&provider) >> 20,
        took.as_secs_f64(),
        at_start >> 20,
        provider.cpu().as_secs_f64(),
        resident(&provider) >> 20,
    );
}

async fn fill(engine: &str, provider: &Provider, groups: usize) {
    let config =
        StoreConfig { engine: engine.to_owned(), folder: provider.store(), cache_bytes: 256 << 20 };
    let store = store::open(&config).unwrap();
    let domain = Domain::new("a.example").unwrap();
    let mut left = groups;
    while left > 0 {
        let mut batch = Batch::new();
        for _ in 0..left.min(FILL) {
            let group = GroupId::of(&domain, mimid::crypto::random());
            // nothing of it can be compressed, as of a real one
            let mut bytes = Vec::with_capacity(SNAPSHOT_BYTES);
            while bytes.len() < SNAPSHOT_BYTES {
                bytes.extend(mimid::crypto::random::<32>());
            }
            batch.push(Write::GroupHead(head(&group)));
            batch.push(Write::Snapshot { group, at: Sequence(1), bytes });
        }
        store.write(batch).await.unwrap();
        left -= left.min(FILL);
    }
    store.close().await.unwrap();
}

fn head(group: &GroupId) -> GroupHead {
    GroupHead {
        group: group.clone(),
        status: GroupStatus::Active,
        next_sequence: Sequence(2),
        first_sequence: Sequence(1),
        epoch: Epoch(1),
        revision: 1,
        snapshot: Sequence(1),
        previous_snapshot: None,
        created_at: Timestamp(0),
        last_accepted_at: Timestamp(0),
        log_bytes: 0,
        joiner_infos: Vec::new(),
        // in a hundred years
        wake_at: Some(Timestamp(4_900_000_000_000)),
        hub_key: None,
        last: None,
    }
}

/// The memory of groups of ten while they are in use, when they have left it, and when others have come and gone.
pub fn active() {
    if !crate::is_asked_for("scale: active") {
        return;
    }
    let groups = if crate::is_test() { 10 } else { 10_000 };
    println!("\nscale: active groups of ten");
    Runtime::new().unwrap().block_on(async {
        let after = if crate::is_test() { "2s" } else { "20s" };
        let scene = Scene::with(&format!("passivate_after = \"{after}\"\n")).await;
        let empty = resident(&scene.provider);
        for round in 1..=2 {
            scene.idle_groups(groups, 10).await;
            let active = resident(&scene.provider);
            let gone = loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if scene.provider.metric("mimid_group_actors").await == 0.0 {
                    break resident(&scene.provider);
                }
            };
            println!(
                "round {round}: before {} MiB, {groups} active {} MiB, all passive {} MiB",
                empty >> 20,
                active >> 20,
                gone >> 20
            );
        }
    });
}

fn resident(provider: &Provider) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", provider.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn on_disk(provider: &Provider) -> u64 {
    fn of(path: &std::path::Path) -> u64 {
        let Ok(entries) = std::fs::read_dir(path) else { return 0 };
        entries
            .flatten()
            .map(|entry| match entry.metadata() {
                Ok(it) if it.is_dir() => of(&entry.path()),
                Ok(it) => it.len(),
                Err(_) => 0,
            })
            .sum()
    }
    of(&provider.store())
}
