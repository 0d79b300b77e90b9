//! Arbitrary bytes as what a peer delivers: refused, or encoded again as they came.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mimid_fuzz::round_trip::<mimid::wire::queueing::DeliverBatchRequest>(bytes);
});
