//! Bytes as a sequence of what groups, a client, clocks and crashes do to a queue and its tokens: see `queue::fuzzing`.
#![no_main]

use mimid_fuzz::{Limit, within};

/// Of the whole of it, the world around the queue included: what is kept is looked through at every step.
const SEQUENCE: Limit = Limit { per_byte: 1 << 14, fixed: 1 << 20, calls_per_byte: 64 };

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    within(SEQUENCE, bytes.len(), || mimid::queue::fuzzing::queue_sequence(bytes));
});
