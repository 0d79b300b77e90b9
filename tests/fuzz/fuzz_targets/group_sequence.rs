//! Bytes as a sequence of what members, strangers, clocks and crashes do to a group: see `group::tests::fuzzed`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mimid::group::fuzzing::sequence(bytes));
