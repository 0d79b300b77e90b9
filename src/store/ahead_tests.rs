//! A store that leaps ahead: every counter past what may have been given since, and nothing that was kept is lost.

use std::path::Path;

use super::{
    Batch, SharedStore, StoreConfig, Write,
    ahead::{Leapt, about_to_leave, leap},
    conformance::samples::*,
    open,
    records::{Device, GroupStatus, LEAP, OwnEntry, OwnSequence, QueueHead, Replica, ReplicaMode},
};
use crate::{
    group::{
        mls::from_record,
        record::{Change, Kind},
    },
    migration::source::Phase,
    queue::state::own_backlog,
    wire::{
        decode,
        ids::{FeedId, Sequence, Timestamp},
        queueing::QueueEvent,
    },
};

fn opened(folder: &Path, engine: &str) -> SharedStore {
    let (engine, folder) = (engine.to_owned(), folder.to_owned());
    open(&StoreConfig { engine, folder, cache_bytes: 16 << 20 }).unwrap()
}

async fn filled(folder: &Path, engine: &str) {
    let store = opened(folder, engine);
    let (alice, peer) = (client("alice"), domain("b"));
    let mut batch = Batch::new();
    for (name, status) in [
        ("active", GroupStatus::Active),
        ("deleted", GroupStatus::Deleted),
        ("copy", GroupStatus::Followed),
        ("leaving", GroupStatus::Migrating),
        ("sent", GroupStatus::Migrating),
    ] {
        let head = super::records::GroupHead { status, ..head(name, 10, 3) };
        batch.push(Write::GroupHead(head));
        batch.push(log_write(name, record(9, 10, 10)));
        let replica = Replica { copy: None, mode: ReplicaMode::Feed, ..replica(7) };
        batch.push(Write::Replica { peer: peer.clone(), group: group(name), replica });
    }
    batch.push(Write::Departure(departure("leaving", Phase::Frozen)));
    batch.push(Write::Departure(departure("sent", Phase::Sent { hash: [1; 32] })));
    for (name, deleted_at) in [("alice", None), ("gone", Some(Timestamp(5)))] {
        let device = Device { deleted_at, ..device(name.len() as u8) };
        batch.push(Write::Device { client: client(name), device });
    }
    let head = QueueHead {
        next_own: OwnSequence(6),
        acknowledged_own: OwnSequence(3),
        next_feed: FeedId(4),
        ..queue_head(1)
    };
    batch.push(Write::QueueHead { client: alice.clone(), head });
    for at in [4, 5] {
        batch.push(Write::Own { client: alice.clone(), entry: own_entry(at) });
    }
    for name in 0..3 {
        let key_package = key_package(name, u64::from(name) + 1);
        batch.push(Write::KeyPackage { client: alice.clone(), key_package });
    }
    store.write(batch).await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_counter_leaps_past_what_may_have_been_given_and_what_was_kept_stays() {
    for engine in ["sled", "fjall"] {
        let folder = tempfile::tempdir().unwrap();
        filled(folder.path(), engine).await;
        let leaving = about_to_leave(folder.path()).unwrap();
        assert_eq!(leaving, [(group("leaving"), "b.example".to_owned())]);
        let leapt = leap(folder.path(), Timestamp(1_000), Timestamp(1_499)).unwrap();
        assert_eq!(leapt, Leapt { groups: 1, clients: 1, key_packages: 2, guests: 1 });
        let by = 500 * LEAP;

        let store = opened(folder.path(), engine);
        let head = store.group_head(&group("active")).await.unwrap().unwrap();
        assert_eq!((head.next_sequence, head.revision), (Sequence(10 + by + 1), 4));
        let log = store.log(&group("active"), Sequence(10), ALL).await.unwrap();
        assert_eq!((log.len(), log[0].feed.sequence), (1, Sequence(10 + by)));
        let change: Change = from_record(&log[0].change).unwrap();
        assert!(matches!(change.kind, Kind::Restored) && log[0].feed.event.is_empty());
        let owed = store.outbound_at(&domain("b"), &group("active")).await.unwrap();
        assert_eq!(owed, Some(Sequence(10 + by)), "its guest gets to know");
        for name in ["deleted", "copy", "leaving", "sent"] {
            let head = store.group_head(&group(name)).await.unwrap().unwrap();
            assert_eq!((head.next_sequence, head.revision), (Sequence(10), 3), "{name}");
            assert_eq!(store.outbound_at(&domain("b"), &group(name)).await.unwrap(), None);
        }

        let alice = client("alice");
        let head = store.queue_head(&alice).await.unwrap().unwrap();
        assert_eq!(head.next_own, OwnSequence(6 + by + 2));
        assert_eq!(head.acknowledged_own, OwnSequence(3));
        assert_eq!(head.next_feed, FeedId(4 + by));
        assert_eq!(own_backlog(&head), 4, "what lies in the leap counts for nothing");
        let own = store.own(&alice, OwnSequence(4), ALL).await.unwrap();
        assert_eq!(own[..2], [own_entry(4), own_entry(5)]);
        let event = |entry: &OwnEntry| decode::<QueueEvent>(&entry.event).unwrap();
        let gap = QueueEvent::Gap { next_available: Sequence(6 + by + 1) };
        assert_eq!((own[2].sequence, event(&own[2])), (OwnSequence(6 + by), gap));
        assert_eq!(event(&own[3]), QueueEvent::KeyPackagesLow { left: 0 });
        let stock = store.key_packages(&alice, 10).await.unwrap();
        assert_eq!(stock, [key_package(0, 1)], "one of last resort may be handed out again");
        assert_eq!(store.queue_head(&client("gone")).await.unwrap(), None);
        store.close().await.unwrap();
        drop(store);

        // gone back to a second time from the same backup: nothing is given that the first time may have given
        let again = tempfile::tempdir().unwrap();
        filled(again.path(), engine).await;
        leap(again.path(), Timestamp(1_000), Timestamp(1_501)).unwrap();
        let store = opened(again.path(), engine);
        let later = store.group_head(&group("active")).await.unwrap().unwrap();
        assert!(later.next_sequence.0 > 10 + by + LEAP);
    }
}
