//! Bytes as a sequence of what a hub, honest or not, sends of a group to a guest: see `queue::fuzzing`. What following it
//! allocates goes with what came.
#![no_main]

use mimid_fuzz::{Limit, within};

/// Each item is checked, parsed, encoded for the log and told to inboxes.
const FOLLOWING: Limit = Limit { per_byte: 256, fixed: 64 * 1024, calls_per_byte: 8 };

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mimid::queue::fuzzing::copy_sequence(bytes, &|len, work| within(FOLLOWING, len, work));
});
