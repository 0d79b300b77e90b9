//! Bytes as a sequence of what members, strangers, clocks and crashes do to a group: see `group::tests::fuzzed`.
#![no_main]

use mimid_fuzz::{Limit, within};

/// Of what the hub does with one request, for each byte of that and of the group it is for: its tree is copied where a commit
/// is staged and written where one is merged. Measured: 18 bytes, and 640 allocations in all, at the most.
const REQUEST: Limit = Limit { per_byte: 32, fixed: 64 * 1024, calls_per_byte: 1 };

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mimid::group::fuzzing::sequence(bytes, |len, work| within(REQUEST, len, work));
});
