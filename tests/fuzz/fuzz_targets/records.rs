//! Arbitrary bytes as what lies on a disk: records of the store and of a client, and what members put into messages. The
//! first byte says which. Refused, or the same once they are written and read again.
#![no_main]

use mimid::client::core::fuzzing::content;
use mimid_fuzz::{Limit, Room, holding, within};

/// Content that another member made; all else was written here.
const FROM_STRANGERS: u8 = 100;

/// CBOR that is first read as what it is: an item of one byte is a value of 32, in a list that grows by being copied (four
/// times its size in all); each of the parts is then one of some 120 bytes for five or more.
const CBOR: Limit = Limit { per_byte: 256, fixed: 64 * 1024, calls_per_byte: 4 };

/// serde takes up to 1 MiB in advance for a list of a length that a record claims: each of a list of lists does.
const DISK: Limit = Limit { per_byte: 1 << 20, fixed: 8 << 20, calls_per_byte: 16 };

/// So deep do lists go that are read at once.
const AT_ONCE: Room = Room { per_byte: 256, fixed: 34 << 20 };

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    if *which == FROM_STRANGERS {
        if let Some(is_the_same) = within(CBOR, bytes.len(), || content(bytes)) {
            is_the_same();
        }
        return;
    }
    let read = || match which {
        0..100 => mimid::store::fuzzing::record(*which, bytes),
        100..200 => mimid::client::core::fuzzing::record(which - 100, bytes),
        200..240 => mimid::group::fuzzing::record(which - 200, bytes),
        240.. => mimid::load::workload::fuzzing::record(which - 240, bytes),
    };
    within(DISK, bytes.len(), || holding(AT_ONCE, bytes.len(), read));
});
