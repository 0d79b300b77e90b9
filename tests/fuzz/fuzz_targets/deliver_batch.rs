//! Arbitrary bytes as what a peer delivers: refused, or encoded again as they came.
#![no_main]

use mimid::wire::queueing::DeliverBatchRequest;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(value) = mimid::wire::decode::<DeliverBatchRequest>(bytes) {
        assert_eq!(mimid::wire::encode(&value), bytes);
    }
});
