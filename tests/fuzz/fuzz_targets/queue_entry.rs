//! Arbitrary bytes as what a client gets out of its queue: refused, or encoded again as they came.
#![no_main]

use mimid::wire::queueing::QueueEntry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(value) = mimid::wire::decode::<QueueEntry>(bytes) {
        assert_eq!(mimid::wire::encode(&value), bytes);
    }
});
