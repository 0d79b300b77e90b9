//! Arbitrary bytes as KeyPackages, offers, extensions, answers and moving groups: the first byte says which. Refused, or encoded
//! again as they came; MLS structs among them parse on their own.
#![no_main]

use mimid::wire::{
    self,
    client::{Complain, Dequeue, PublishKeyPackages, Register},
    ds::{ComplaintResponse, DsResponse},
    extensions::{GroupPolicy, KeyPackageQueue, UserKey},
    key_packages::{
        ConnectionKeyPackageResponse, ConnectionOffer, ConnectionRequest, GroupKeyPackageRequest,
        GroupKeyPackageResponse,
    },
    portability::{MigratedState, MigrationContent},
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which {
        0 => {
            if let Ok(value) = wire::decode::<PublishKeyPackages>(bytes) {
                assert!(value.key_packages.iter().all(|one| one.parse().is_ok()));
                assert_eq!(wire::encode(&value), bytes);
            }
        }
        1 => round_trip::<ConnectionKeyPackageResponse>(bytes),
        2 => round_trip::<GroupKeyPackageRequest>(bytes),
        3 => round_trip::<GroupKeyPackageResponse>(bytes),
        4 => round_trip::<ConnectionRequest>(bytes),
        5 => round_trip::<ConnectionOffer>(bytes),
        6 => round_trip::<Register>(bytes),
        7 => round_trip::<GroupPolicy>(bytes),
        8 => round_trip::<UserKey>(bytes),
        9 => round_trip::<KeyPackageQueue>(bytes),
        10 => round_trip::<DsResponse>(bytes),
        11 => round_trip::<Dequeue>(bytes),
        12 => {
            if let Ok(value) = wire::decode::<MigratedState>(bytes) {
                assert!(value.commit.parse().is_ok() && value.group_info.parse().is_ok());
                assert!(value.ratchet_tree.parse().is_ok());
                assert_eq!(wire::encode(&value), bytes);
            }
        }
        13 => {
            if let Ok(value) = wire::decode::<MigrationContent>(bytes) {
                assert!(value.migration_response.target_sender.parse().is_ok());
                let _ = wire::decode::<MigratedState>(value.group_state.as_slice());
                assert_eq!(wire::encode(&value), bytes);
            }
        }
        14 => round_trip::<Complain>(bytes),
        15 => round_trip::<ComplaintResponse>(bytes),
        _ => {}
    }
});

fn round_trip<T: tls_codec::DeserializeBytes + tls_codec::Serialize>(bytes: &[u8]) {
    if let Ok(value) = wire::decode::<T>(bytes) {
        assert_eq!(wire::encode(&value), bytes);
    }
}
