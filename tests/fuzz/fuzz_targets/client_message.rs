//! Arbitrary bytes as what a client says to its provider: refused, or encoded again as they came.
#![no_main]

use mimid::wire::client::ClientMessage;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(value) = mimid::wire::decode::<ClientMessage>(bytes) {
        assert_eq!(mimid::wire::encode(&value), bytes);
    }
});
