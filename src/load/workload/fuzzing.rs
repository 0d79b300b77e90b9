//! A workload's records from arbitrary bytes, for the fuzz targets (`cfg(fuzzing)`): nothing else builds this.

use serde::{Serialize, de::DeserializeOwned};

use super::{Group, Header, Index, Step, StoredAccount};

/// Decodes `record` as the `which`-th kind. What decodes is the same once it is written and read again.
///
/// # Panics
/// Where it is not.
pub fn record(which: u8, record: &[u8]) {
    match which {
        0 => same::<Header>(record),
        1 => same::<Index>(record),
        2 => same::<Group>(record),
        3 => same::<Step>(record),
        4 => {
            same::<StoredAccount>(record);
            let _ = postcard::from_bytes::<StoredAccount>(record).map(StoredAccount::open);
        }
        _ => {}
    }
}

fn same<T: Serialize + DeserializeOwned>(record: &[u8]) {
    let Ok(value) = postcard::from_bytes::<T>(record) else { return };
    let again = postcard::to_stdvec(&value).expect("it was decoded");
    let value: T = postcard::from_bytes(&again).expect("it was encoded");
    assert_eq!(postcard::to_stdvec(&value).ok(), Some(again));
}
