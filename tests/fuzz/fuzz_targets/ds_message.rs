//! Arbitrary bytes as requests to a hub: refused, or encoded again as they came.
#![no_main]

use mimid::wire::ds::DsMessage;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(value) = mimid::wire::decode::<DsMessage>(bytes) {
        assert_eq!(mimid::wire::encode(&value), bytes);
    }
});
