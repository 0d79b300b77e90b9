//! Bytes as a sequence of what members, strangers, clocks and crashes do to a group: see `group::tests::fuzzed`.
#![no_main]

use mimid_fuzz::{Limit, within};

/// Of the whole of it, real clients and the replay of the log at each of 24 steps at the most included.
const SEQUENCE: Limit = Limit { per_byte: 1 << 20, fixed: 64 << 20, calls_per_byte: 1 << 14 };

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    within(SEQUENCE, bytes.len(), || mimid::group::fuzzing::sequence(bytes));
});
