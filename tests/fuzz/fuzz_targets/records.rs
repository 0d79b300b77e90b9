//! Arbitrary bytes as what lies on a disk: records of the store and of a client, and what members put into messages. The
//! first byte says which. Refused, or the same once they are written and read again.
#![no_main]

use mimid_fuzz::{DECODING, Limit, within};

/// Content that another member made; all else was written here.
const FROM_STRANGERS: u8 = 100;

/// serde takes up to 1 MiB in advance for a list of a length that a record claims.
const DISK: Limit = Limit { per_byte: 1 << 20, fixed: 8 << 20, calls_per_byte: 16 };

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let limit = if *which == FROM_STRANGERS { DECODING } else { DISK };
    within(limit, bytes.len(), || match which {
        0..100 => mimid::store::fuzzing::record(*which, bytes),
        100..200 => mimid::client::core::fuzzing::record(which - 100, bytes),
        _ => mimid::group::fuzzing::record(which - 200, bytes),
    });
});
