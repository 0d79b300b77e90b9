//! Arbitrary bytes as a message between providers: refused, or encoded again as they came; and judged without a panic.
#![no_main]

use mimid::{
    federation::message,
    wire::{
        federation::{S2SEndpoint, S2SMessage},
        ids::{Domain, Timestamp},
    },
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some(value) = mimid_fuzz::round_trip::<S2SMessage>(bytes) else { return };
    let own: Domain = value.recipient_domain;
    if let Ok(message) = message::read(bytes, S2SEndpoint::DeliverMessage, &own, Timestamp(0)) {
        assert!(!message.is_signed_by(&[]));
    }
});
