//! criterion benches: `cargo bench --bench provider`. A speed claim names its bench and gives before and after of one run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod decode;

use criterion::{criterion_group, criterion_main};

criterion_group!(wire, decode::largest_structs);
criterion_main!(wire);
