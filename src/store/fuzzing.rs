//! The records of the store from arbitrary bytes, for the fuzz targets (`cfg(fuzzing)`): nothing else builds this.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};

use super::{
    backup, keys,
    records::{
        Account, Departure, Device, Followed, FollowedMember, GroupNotice, InboxItem, InboxKey,
        Moves, OutboundRoster, OwnEntry, QueueHead, StoredKeyPackage, Subscription, TokenRecord,
    },
};

/// Decodes `record` as the `which`-th kind. What decodes is the same once it is written and read again.
///
/// # Panics
/// Where it is not.
pub fn record(which: u8, record: &[u8]) {
    match which {
        0 => {
            let Ok(head) = keys::any_group_head(record) else { return };
            let again = keys::encode_group_head(&head).expect("it was decoded");
            assert_eq!(keys::decode_group_head(&head.group, &again).ok(), Some(head));
        }
        1 => {
            let _ = keys::decode_feed(record);
            let Ok(log) = keys::decode_log(record.to_vec()) else { return };
            let again = keys::encode_log(&log).expect("it was decoded");
            assert_eq!(keys::decode_log(again).ok(), Some(log));
        }
        2 => {
            let Ok((owner, replica)) = keys::decode_replica(record) else { return };
            let _ = keys::peer_and_group(&owner);
            let again = keys::encode_replica(&owner, &replica).expect("it was decoded");
            assert_eq!(keys::decode_replica(&again).ok(), Some((owner, replica)));
        }
        3 => {
            let Ok((nonce, refused)) = keys::decode_refused(record) else { return };
            let again = keys::encode_refused(&nonce, &refused).expect("it was decoded");
            assert_eq!(keys::decode_refused(&again).ok(), Some((nonce, refused)));
        }
        4 => same::<(String, GroupNotice)>(record),
        5 => same::<(InboxKey, InboxItem)>(record),
        6 => same::<(String, Followed)>(record),
        7 => same::<(String, FollowedMember)>(record),
        8 => same::<(String, OutboundRoster)>(record),
        9 => same::<Departure>(record),
        10 => same::<(String, Moves)>(record),
        11 => same::<(String, QueueHead)>(record),
        12 => same::<(String, OwnEntry)>(record),
        13 => same::<(String, Subscription)>(record),
        14 => same::<(String, Account)>(record),
        15 => same::<(String, Device)>(record),
        16 => same::<StoredKeyPackage>(record),
        17 => same::<TokenRecord>(record),
        18 => {
            let _ = keys::owner(record);
            let _ = keys::left_by(record);
            let _ = keys::inbox_owner(record);
            let _ = keys::record_of_part(record);
            let _ = keys::decode_commit_sequence(Some(record));
            let _ = keys::head_value(record);
            if let Ok((len, first)) = keys::split_head(record) {
                let _ = (keys::part_count(len), first.len());
            }
        }
        19 => {
            let mut came = record.to_vec();
            let Ok(Some(piece)) = backup::take_frame(&mut came) else { return };
            assert_eq!(backup::frame(&piece), record[..record.len() - came.len()]);
        }
        20 => {
            let Some(file) = backup::decode_file(record) else { return };
            assert!(file.name.is_relative() && record.ends_with(&file.bytes));
        }
        _ => {}
    }
}

fn same<T: Serialize + DeserializeOwned + PartialEq + Debug>(record: &[u8]) {
    let Ok(value) = keys::decode::<T>("a record", record) else { return };
    let again = keys::encode(&value).expect("it was decoded");
    assert_eq!(keys::decode::<T>("a record", &again).ok(), Some(value));
}
