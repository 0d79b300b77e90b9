//! A group and its records from arbitrary bytes, for the fuzz targets (`cfg(fuzzing)`): nothing else builds this.

pub use super::tests::fuzzed::sequence;
use super::{
    mls::{Tree, from_record, to_record},
    portability::Parcel,
    record::{Change, Pending, PendingRecord, Snapshot},
};

/// Decodes `record` as the `which`-th kind.
///
/// # Panics
/// Where what decodes is not the same once it is written and read again.
pub fn record(which: u8, record: &[u8]) {
    match which {
        0 => {
            let Ok(snapshot) = from_record::<Snapshot>(record) else { return };
            let again = to_record(&snapshot).expect("it was decoded");
            assert_eq!(from_record::<Snapshot>(&again).ok(), Some(snapshot));
        }
        1 => {
            let Ok(change) = from_record::<Change>(record) else { return };
            let again = to_record(&change).expect("it was decoded");
            let change: Change = from_record(&again).expect("it was encoded");
            assert_eq!(to_record(&change).ok(), Some(again));
        }
        2 => {
            if let Ok(parcel) = Parcel::from_bytes(record) {
                let _ = parcel.effects();
            }
        }
        3 => {
            let _ = Tree::load(record);
        }
        4 => {
            if let Ok(pending) = from_record::<PendingRecord>(record) {
                let _ = Pending::from_record(pending);
            }
        }
        _ => {}
    }
}
