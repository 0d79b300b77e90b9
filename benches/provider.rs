//! criterion benches: `cargo bench --bench provider`. A speed claim names its bench and gives before and after of one run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod decode;
mod group;
#[path = "../tests/support/linked.rs"]
mod linked;
mod moving;
mod overload;
#[path = "../tests/support/providers.rs"]
mod providers;
#[path = "../tests/support/proxy.rs"]
mod proxy;
mod replication;
mod scale;
mod served;
mod store;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "../tests/support/unsynced.rs"]
mod unsynced;
mod writing;

use criterion::{Criterion, criterion_group};

criterion_group!(wire, decode::largest_structs);
criterion_group!(
    groups,
    group::update_commit,
    group::overhead,
    group::openmls_cost,
    group::adds,
    group::send_message
);
criterion_group!(stores, store::batches, store::links);
criterion_group!(providers, replication::messages, moving::pauses);

fn main() {
    wire();
    groups();
    stores();
    providers();
    served::accept();
    served::deliver();
    served::storm();
    overload::curves();
    scale::start();
    scale::active();
    Criterion::default().configure_from_args().final_summary();
}

/// Whether this is `cargo test`: everything runs, once and small. As criterion tells: only `cargo bench` says `--bench`.
fn is_test() -> bool {
    let is_said = |word: &str| std::env::args().any(|argument| argument == word);
    is_said("--test") || !is_said("--bench")
}

/// Whether what the command line names, if it names anything, is part of `name`: for what takes its own turns, as criterion
/// does for the rest.
fn is_asked_for(name: &str) -> bool {
    let mut words = std::env::args().skip(1).filter(|word| !word.starts_with('-')).peekable();
    words.peek().is_none() || words.any(|word| name.contains(&word))
}
