//! What every engine must do, run for each of them: the contract in [`super`], verb by verb.
//!
//! A [`Place`] is where a store can be opened again and again: a [`Disk`] in memory, or a folder with sled. Both are
//! behind [`Faults`], so that a test can hold writes, let single flushes go, and break them, on sled too.

use std::sync::Arc;

use proptest::prelude::*;

use super::{
    Answer, Batch, Condition, Page, SharedStore, StoreError, Write,
    engine::Engine,
    faults::{Fault, Faults, Faulty},
    memory::Disk,
    reader::NodeStore,
    records::*,
    sled::Sled,
    writer::QUEUE_BATCHES_MAX,
};
use crate::wire::{codec::Opaque, ids::*};

/// Where stores are opened.
enum Place {
    Memory(Disk),
    Sled { folder: tempfile::TempDir, faults: Faults },
}

impl Place {
    fn memory() -> Self {
        Self::Memory(Disk::new())
    }

    fn sled() -> Self {
        Self::Sled { folder: tempfile::tempdir().unwrap(), faults: Faults::new() }
    }

    fn open(&self) -> SharedStore {
        match self {
            Self::Memory(disk) => disk.open().unwrap(),
            Self::Sled { folder, faults } => {
                faults.reset();
                let engine = Sled::open(folder.path(), 16 << 20).unwrap();
                let engine = Faulty::new(engine, faults.clone());
                Arc::new(NodeStore::start(Box::new(engine), folder.path().to_owned()).unwrap())
            }
        }
    }

    fn faults(&self) -> &Faults {
        match self {
            Self::Memory(disk) => disk.faults(),
            Self::Sled { faults, .. } => faults,
        }
    }
}

/// One test for each engine.
macro_rules! for_every_engine {
    ($($(#[$doc:meta])* async fn $name:ident($place:ident: Place) $body:block)*) => {
        mod every_engine {
            use super::*;
            $($(#[$doc])* pub(super) async fn $name($place: Place) $body)*
        }
        mod in_memory {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() { every_engine::$name(Place::memory()).await; })*
        }
        mod on_sled {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() {
                every_engine::$name(Place::sled()).await;
            })*
        }
    };
}

fn group(name: &str) -> GroupId {
    GroupId::new(format!("mimi://a.example/g/{name:0>22}")).unwrap()
}

fn client(name: &str) -> ClientUri {
    ClientUri::new(format!("mimi://a.example/d/{name}/phone")).unwrap()
}

fn user(name: &str) -> UserUri {
    UserUri::new(format!("mimi://a.example/u/{name}")).unwrap()
}

fn head(name: &str, next: u64, revision: u64) -> GroupHead {
    GroupHead {
        group: group(name),
        status: GroupStatus::Active,
        next_sequence: Sequence(next),
        first_sequence: Sequence(1),
        epoch: Epoch(next),
        revision,
        snapshot: Sequence(0),
        previous_snapshot: None,
        created_at: Timestamp(1),
        last_accepted_at: Timestamp(2),
        log_bytes: 3,
        wake_at: None,
    }
}

fn record(at: u64, event: usize, change: usize) -> LogRecord {
    LogRecord {
        feed: FeedEntry {
            sequence: Sequence(at),
            accepted_at: Timestamp(at * 10),
            except: Some(RecipientId(at)),
            handshake: at.is_multiple_of(2),
            event: noise(at, event),
        },
        change: noise(at + 1, change),
    }
}

/// `len` bytes that differ from place to place, so that parts in the wrong order are seen.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

fn own_entry(at: u64) -> OwnEntry {
    OwnEntry {
        sequence: OwnSequence(at),
        accepted_at: Timestamp(at),
        group: at.is_multiple_of(2).then(|| group("g")),
        opens: Some(FeedId(at)),
        event: noise(at, 100),
    }
}

fn subscription(feed: u64) -> Subscription {
    Subscription {
        feed: FeedId(feed),
        group: group("g"),
        recipient: RecipientId(7),
        from: Sequence(3),
        last: Some(Sequence(9)),
        removed: true,
        filters: vec![(Sequence(3), false), (Sequence(5), true)],
        acknowledged: Sequence(2),
        previous: Sequence(1),
    }
}

fn key_package(name: u8, published_at: u64) -> StoredKeyPackage {
    StoredKeyPackage {
        reference: reference(name),
        connection: false,
        last_resort: name == 0,
        ciphersuite: 1,
        not_after_s: 99,
        published_at: Timestamp(published_at),
        bytes: noise(u64::from(name), 300),
    }
}

fn reference(name: u8) -> KeyPackageRef {
    KeyPackageRef(Opaque::new(vec![name; 32]).unwrap())
}

fn account(revision: u64) -> Account {
    Account {
        revision,
        user_key_scheme: 0x0807,
        user_key: vec![5; 32],
        created_at: Timestamp(1),
        deleted_at: None,
        devices: vec![client("alice")],
    }
}

fn device(queue: u8) -> Device {
    Device {
        key_scheme: 0x0807,
        key: vec![6; 32],
        credential: vec![0, 1, 2],
        queue: [queue; 16],
        created_at: Timestamp(4),
        deleted_at: Some(Timestamp(5)),
    }
}

fn token_record(revision: u64) -> TokenRecord {
    TokenRecord {
        revision,
        client: client("alice"),
        revoked: false,
        bound_to: vec![(Domain::new("b.example").unwrap(), group("g"))],
    }
}

fn gone(name: &str) -> GroupNotice {
    GroupNotice::ClientGone { client: client(name), reason: GoneReason::DeviceDeleted }
}

fn inbox_key(group_name: &str, sequence: u64, index: u32) -> InboxKey {
    InboxKey::Group { group: group(group_name), sequence: Sequence(sequence), index }
}

fn inbox_item(at: u64) -> InboxItem {
    InboxItem::Event { group: None, event: noise(at, 20) }
}

fn queue_head(revision: u64) -> QueueHead {
    QueueHead {
        revision,
        next_own: OwnSequence(4),
        acknowledged_own: OwnSequence(3),
        next_feed: FeedId(2),
    }
}

fn log_write(name: &str, record: LogRecord) -> Write {
    Write::Log { group: group(name), record }
}

fn drop_of<T>(key: T, write: impl FnOnce(T) -> Write) -> Batch {
    Batch::new().and(write(key))
}

const ALL: Page = Page { items_max: usize::MAX, bytes_max: usize::MAX };

async fn sequences(store: &SharedStore, name: &str, from: u64, page: Page) -> Vec<u64> {
    let log = store.log(&group(name), Sequence(from), page).await.unwrap();
    let feed = store.feed(&group(name), Sequence(from), page).await.unwrap();
    // the same page of both need not be equally long, since a feed has fewer bytes
    assert!(feed.iter().zip(&log).all(|(feed, log)| *feed == log.feed));
    log.iter().map(|record| record.feed.sequence.0).collect()
}

/// Polls once: whether the answer is there already.
async fn is_there<T>(answer: &mut Answer<'_, T>) -> bool {
    std::future::poll_fn(|context| std::task::Poll::Ready(answer.as_mut().poll(context).is_ready()))
        .await
}

for_every_engine! {
    async fn every_record_reads_back_and_survives_reopening(place: Place) {
        let (alice, bob) = (client("alice"), client("bob"));
        let mut store = place.open();
        assert_eq!(store.group_head(&group("g")).await, Ok(None));
        assert_eq!(store.queue_head(&alice).await, Ok(None));
        assert_eq!(store.node("created").await, Ok(None));
        let batch = Batch::new()
            .when(Condition::GroupUnknown(group("g")))
            .and(Write::GroupHead(head("g", 2, 1)))
            .and(log_write("g", record(1, 50, 60)))
            .and(Write::Snapshot { group: group("g"), at: Sequence(1), bytes: noise(1, 10_000) })
            .and(Write::JoinerInfo { group: group("g"), epoch: Epoch(3), bytes: noise(2, 5_000) })
            .and(Write::GroupNotice { group: group("g"), key: [1; 16], notice: gone("bob") })
            .and(Write::Inbox {
                client: alice.clone(),
                key: inbox_key("g", 1, 0),
                item: inbox_item(1),
            })
            .and(Write::QueueHead { client: alice.clone(), head: queue_head(1) })
            .and(Write::Own { client: alice.clone(), entry: own_entry(1) })
            .and(Write::Subscription { client: alice.clone(), subscription: subscription(1) })
            .and(Write::Account { user: user("alice"), account: account(1) })
            .and(Write::Device { client: alice.clone(), device: device(9) })
            .and(Write::KeyPackage { client: alice.clone(), key_package: key_package(1, 5) })
            .and(Write::Token { token: TokenId([3; 16]), record: token_record(1) })
            .and(Write::Consent { user: user("alice"), token: ConsentHash([4; 32]) })
            .and(Write::Node { name: "created", bytes: vec![1, 2, 3] });
        let writes = batch.writes.len() as u64;
        store.write(batch).await.unwrap();
        let stats = store.stats();
        assert_eq!((stats.batches, stats.flushes, stats.writes), (1, 1, writes));
        assert!(stats.bytes_written > 15_000);
        assert_eq!(stats.batches_waiting, 0);

        for _ in 0..2 {
            let own = store.own(&alice, OwnSequence(0), ALL).await;
            assert_eq!(store.group_head(&group("g")).await, Ok(Some(head("g", 2, 1))));
            assert_eq!(store.group_heads(None, 10).await, Ok(vec![head("g", 2, 1)]));
            assert_eq!(store.log(&group("g"), Sequence(0), ALL).await, Ok(vec![record(1, 50, 60)]));
            assert_eq!(
                store.feed(&group("g"), Sequence(1), ALL).await,
                Ok(vec![record(1, 50, 60).feed])
            );
            assert_eq!(store.snapshot(&group("g"), Sequence(1)).await, Ok(Some(noise(1, 10_000))));
            assert_eq!(store.snapshot(&group("g"), Sequence(2)).await, Ok(None));
            assert_eq!(store.joiner_info(&group("g"), Epoch(3)).await, Ok(Some(noise(2, 5_000))));
            assert_eq!(
                store.group_notices(&group("g"), 10).await,
                Ok(vec![([1; 16], gone("bob"))])
            );
            assert_eq!(
                store.inbox(&alice, 10).await,
                Ok(vec![(inbox_key("g", 1, 0), inbox_item(1))])
            );
            assert_eq!(store.queue_head(&alice).await, Ok(Some(queue_head(1))));
            assert_eq!(own, Ok(vec![own_entry(1)]));
            assert_eq!(store.subscriptions(&alice).await, Ok(vec![subscription(1)]));
            assert_eq!(store.account(&user("alice")).await, Ok(Some(account(1))));
            assert_eq!(store.device(&alice).await, Ok(Some(device(9))));
            assert_eq!(store.client_of_queue(&[9; 16]).await, Ok(Some(alice.clone())));
            assert_eq!(store.client_of_queue(&[8; 16]).await, Ok(None));
            assert_eq!(store.key_packages(&alice, 10).await, Ok(vec![key_package(1, 5)]));
            assert_eq!(store.token(&TokenId([3; 16])).await, Ok(Some(token_record(1))));
            assert_eq!(store.has_consent(&user("alice"), &ConsentHash([4; 32])).await, Ok(true));
            assert_eq!(store.has_consent(&user("alice"), &ConsentHash([5; 32])).await, Ok(false));
            assert_eq!(store.consent_count(&user("alice"), 10).await, Ok(1));
            assert_eq!(store.node("created").await, Ok(Some(vec![1, 2, 3])));
            // and nobody else's
            assert_eq!(store.inbox(&bob, 10).await, Ok(vec![]));
            assert_eq!(store.subscriptions(&bob).await, Ok(vec![]));
            assert_eq!(store.account(&user("bob")).await, Ok(None));
            assert_eq!(store.consent_count(&user("bob"), 10).await, Ok(0));
            store.close().await.unwrap();
            drop(store);
            store = place.open();
        }
    }

    async fn every_drop_removes_its_record_and_no_other(place: Place) {
        let alice = client("alice");
        let store = place.open();
        let mut batch = Batch::new();
        for at in 1..=3_u8 {
            let n = u64::from(at);
            batch.push(Write::Snapshot {
                group: group("g"), at: Sequence(n), bytes: noise(n, 9_000),
            });
            batch.push(Write::JoinerInfo {
                group: group("g"), epoch: Epoch(n), bytes: noise(n, 9_000),
            });
            batch.push(Write::GroupNotice { group: group("g"), key: [at; 16], notice: gone("x") });
            batch.push(Write::Inbox {
                client: alice.clone(), key: inbox_key("g", n, 0), item: inbox_item(n),
            });
            batch.push(Write::Own { client: alice.clone(), entry: own_entry(n) });
            batch.push(Write::Subscription { client: alice.clone(), subscription: subscription(n) });
            batch.push(Write::KeyPackage { client: alice.clone(), key_package: key_package(at, n) });
            batch.push(Write::Consent { user: user("alice"), token: ConsentHash([at; 32]) });
        }
        store.write(batch).await.unwrap();
        let client = || alice.clone();
        for batch in [
            drop_of(Sequence(2), |at| Write::DropSnapshot { group: group("g"), at }),
            drop_of(Epoch(2), |epoch| Write::DropJoinerInfo { group: group("g"), epoch }),
            drop_of([2; 16], |key| Write::GroupNoticeTaken { group: group("g"), key }),
            drop_of(inbox_key("g", 2, 0), |key| Write::InboxTaken { client: client(), key }),
            drop_of(FeedId(2), |feed| Write::DropSubscription { client: client(), feed }),
            drop_of(reference(2), |key_package| {
                Write::DropKeyPackage { client: client(), key_package }
            }),
            drop_of(ConsentHash([2; 32]), |token| {
                Write::DropConsent { user: user("alice"), token }
            }),
            // what is not there can be dropped
            drop_of(reference(77), |key_package| {
                Write::DropKeyPackage { client: client(), key_package }
            }),
            drop_of(Sequence(77), |at| Write::DropSnapshot { group: group("g"), at }),
        ] {
            store.write(batch).await.unwrap();
        }
        for at in 1..=3 {
            let there = at != 2;
            let snapshot = store.snapshot(&group("g"), Sequence(at)).await.unwrap();
            assert_eq!(snapshot, there.then(|| noise(at, 9_000)));
            let info = store.joiner_info(&group("g"), Epoch(at)).await.unwrap();
            assert_eq!(info, there.then(|| noise(at, 9_000)));
        }
        let keys: Vec<_> = store.group_notices(&group("g"), 9).await.unwrap();
        assert_eq!(keys, [([1; 16], gone("x")), ([3; 16], gone("x"))]);
        let keys = store.inbox(&alice, 9).await.unwrap();
        assert_eq!(keys.len(), 2);
        assert_eq!(keys[1].0, inbox_key("g", 3, 0));
        let subscriptions = store.subscriptions(&alice).await.unwrap();
        assert_eq!(subscriptions, [subscription(1), subscription(3)]);
        let packages = store.key_packages(&alice, 9).await.unwrap();
        assert_eq!(packages, [key_package(1, 1), key_package(3, 3)]);
        assert_eq!(store.consent_count(&user("alice"), 9).await, Ok(2));
        assert_eq!(store.consent_count(&user("alice"), 1).await, Ok(1));

        store.write(drop_of(OwnSequence(2), |until| Write::TrimOwn { client: client(), until }))
            .await.unwrap();
        assert_eq!(store.own(&alice, OwnSequence(0), ALL).await, Ok(vec![own_entry(3)]));
        let all = Write::TrimOwn { client: client(), until: OwnSequence(u64::MAX) };
        store.write(Batch::new().and(all)).await.unwrap();
        assert_eq!(store.own(&alice, OwnSequence(0), ALL).await, Ok(vec![]));
    }

    async fn dropping_a_queue_or_a_group_spares_the_others(place: Place) {
        let store = place.open();
        let mut batch = Batch::new();
        for name in ["alice", "bob"] {
            let client = client(name);
            batch.push(Write::QueueHead { client: client.clone(), head: queue_head(1) });
            batch.push(Write::Own { client: client.clone(), entry: own_entry(1) });
            batch.push(Write::Subscription { client: client.clone(), subscription: subscription(1) });
            batch.push(Write::Inbox {
                client: client.clone(), key: InboxKey::Item([1; 16]), item: inbox_item(1),
            });
            batch.push(Write::KeyPackage { client: client.clone(), key_package: key_package(1, 1) });
            batch.push(Write::Device { client, device: device(name.len() as u8) });
            batch.push(Write::GroupHead(head(name, 4, 1)));
            for at in 1..4 {
                batch.push(log_write(name, record(at, 6_000, 6_000)));
            }
            batch.push(Write::Snapshot {
                group: group(name), at: Sequence(1), bytes: noise(1, 9_000),
            });
            batch.push(Write::JoinerInfo {
                group: group(name), epoch: Epoch(1), bytes: noise(1, 9_000),
            });
            batch.push(Write::GroupNotice { group: group(name), key: [1; 16], notice: gone("x") });
        }
        store.write(batch).await.unwrap();
        store
            .write(
                Batch::new()
                    .and(Write::DropQueue(client("alice")))
                    .and(Write::DropGroup(group("alice"))),
            )
            .await
            .unwrap();
        for (name, there) in [("alice", 0), ("bob", 1)] {
            let client = client(name);
            assert_eq!(store.queue_head(&client).await.unwrap().is_some(), there == 1);
            assert_eq!(store.own(&client, OwnSequence(0), ALL).await.unwrap().len(), there);
            assert_eq!(store.subscriptions(&client).await.unwrap().len(), there);
            assert_eq!(store.inbox(&client, 9).await.unwrap().len(), there);
            assert_eq!(store.key_packages(&client, 9).await.unwrap().len(), there);
            let held = Condition::KeyPackageHeld { client, key_package: reference(1) };
            let held = store.write(Batch::new().when(held)).await;
            assert_eq!(held.is_ok(), there == 1);
            assert_eq!(sequences(&store, name, 0, ALL).await.len(), 3 * there);
            let snapshot = store.snapshot(&group(name), Sequence(1)).await.unwrap();
            assert_eq!(snapshot.is_some(), there == 1);
            let info = store.joiner_info(&group(name), Epoch(1)).await.unwrap();
            assert_eq!(info.is_some(), there == 1);
            assert_eq!(store.group_notices(&group(name), 9).await.unwrap().len(), there);
        }
        assert!(store.device(&client("alice")).await.unwrap().is_some());
        assert!(store.group_head(&group("alice")).await.unwrap().is_some());
    }

    async fn a_batch_whose_condition_fails_changes_nothing(place: Place) {
        let store = place.open();
        let (alice, bob) = (client("alice"), client("bob"));
        store
            .write(
                Batch::new()
                    .and(Write::GroupHead(head("g", 5, 7)))
                    .and(Write::Account { user: user("alice"), account: account(3) })
                    .and(Write::Device { client: alice.clone(), device: device(1) })
                    .and(Write::KeyPackage { client: alice.clone(), key_package: key_package(1, 1) })
                    .and(Write::QueueHead { client: alice.clone(), head: queue_head(4) })
                    .and(Write::Token { token: TokenId([1; 16]), record: token_record(2) }),
            )
            .await
            .unwrap();
        let at = |name: &str, next, revision| Condition::GroupAt {
            group: group(name), next_sequence: Sequence(next), revision,
        };
        let held = |client: &ClientUri, name| Condition::KeyPackageHeld {
            client: client.clone(), key_package: reference(name),
        };
        let queue = |client: &ClientUri, revision| Condition::QueueAt {
            client: client.clone(), revision,
        };
        let token = |id, revision| Condition::TokenAt { token: TokenId([id; 16]), revision };
        let account_at = |name, revision| Condition::AccountAt { user: user(name), revision };
        let hold = [
            Condition::GroupUnknown(group("other")), at("g", 5, 7),
            Condition::AccountAbsent(user("bob")), Condition::DeviceAbsent(bob.clone()),
            account_at("alice", 3), held(&alice, 1), queue(&alice, 4), queue(&bob, 0),
            token(1, 2), token(2, 0),
        ];
        let fail = [
            Condition::GroupUnknown(group("g")), at("g", 5, 6), at("g", 4, 7), at("other", 5, 7),
            Condition::AccountAbsent(user("alice")), Condition::DeviceAbsent(alice.clone()),
            account_at("alice", 2), account_at("bob", 3), account_at("bob", 0), held(&alice, 2),
            held(&bob, 1), queue(&alice, 0), queue(&alice, 5), queue(&bob, 1), token(1, 0),
            token(1, 3), token(2, 1),
        ];
        let all = Batch { conditions: hold.to_vec(), ..Batch::new() };
        store.write(all.and(Write::Node { name: "held", bytes: vec![] })).await.unwrap();
        assert!(store.node("held").await.unwrap().is_some());
        for failing in fail {
            let batch = Batch { conditions: hold.to_vec(), ..Batch::new() }
                .when(failing.clone())
                .and(log_write("g", record(1, 5_000, 1)))
                .and(Write::Node { name: "failed", bytes: vec![] });
            let expected = Err(StoreError::Conflict { condition: hold.len() });
            assert_eq!(store.write(batch).await, expected, "{failing:?}");
            assert_eq!(store.node("failed").await, Ok(None));
            assert_eq!(sequences(&store, "g", 0, ALL).await, [0; 0]);
        }
        assert_eq!(store.writable(), Ok(()));
    }

    async fn conditions_see_the_batches_before_them_in_the_same_flush(place: Place) {
        let store = place.open();
        place.faults().hold();
        let create = || {
            Batch::new()
                .when(Condition::GroupUnknown(group("g")))
                .and(Write::GroupHead(head("g", 1, 1)))
        };
        let accept = |owner: usize| {
            let at =
                Condition::GroupAt { group: group("g"), next_sequence: Sequence(1), revision: 1 };
            Batch::new()
                .when(at)
                .and(log_write("g", record(1, owner, 0)))
                .and(Write::GroupHead(head("g", 2, 2)))
        };
        let answers = [create(), create(), accept(10), accept(20)].map(|batch| store.write(batch));
        // a KeyPackage that is published, claimed and claimed again
        let alice = client("alice");
        let publish = Write::KeyPackage { client: alice.clone(), key_package: key_package(1, 1) };
        let published = store.write(Batch::new().and(publish));
        let claim = || {
            let (client, key_package) = (alice.clone(), reference(1));
            Batch::new()
                .when(Condition::KeyPackageHeld { client, key_package })
                .and(Write::DropKeyPackage { client: alice.clone(), key_package: reference(1) })
        };
        let claims = [store.write(claim()), store.write(claim())];
        // a log that is written and trimmed, and a queue that is filled and dropped
        let other = [
            Batch::new().and(log_write("h", record(1, 9_000, 1))),
            Batch::new().and(log_write("h", record(2, 9_000, 1))),
            Batch::new().and(Write::TrimLog {
                group: group("h"), from: Sequence(0), until: Sequence(2),
            }),
        ]
        .map(|batch| store.write(batch));
        place.faults().release();
        let mut results = Vec::new();
        for answer in answers.into_iter().chain([published]).chain(claims).chain(other) {
            results.push(answer.await);
        }
        let conflict = Err(StoreError::Conflict { condition: 0 });
        let expected = [
            Ok(()), conflict.clone(), Ok(()), conflict.clone(), Ok(()), Ok(()), conflict, Ok(()),
            Ok(()), Ok(()),
        ];
        assert_eq!(results, expected);
        assert_eq!(store.stats().flushes, 1);
        assert_eq!(store.stats().batches, 7);
        let log = store.log(&group("g"), Sequence(0), ALL).await.unwrap();
        assert_eq!(log, [record(1, 10, 0)]);
        assert_eq!(store.key_packages(&alice, 9).await, Ok(vec![]));
        assert_eq!(sequences(&store, "h", 0, ALL).await, [2]);
    }

    async fn batches_are_applied_in_the_order_of_the_calls(place: Place) {
        let store = place.open();
        place.faults().hold();
        let mut answers: Vec<_> = (0..50_u8)
            .map(|n| {
                let node = Write::Node { name: "last", bytes: vec![n] };
                let own = Write::Own { client: client("alice"), entry: own_entry(u64::from(n)) };
                store.write(Batch::new().and(node).and(own))
            })
            .collect();
        assert_eq!(store.stats().batches_waiting, 50);
        place.faults().release();
        // polled in another order than called
        answers.reverse();
        for answer in answers {
            answer.await.unwrap();
        }
        assert_eq!(store.node("last").await, Ok(Some(vec![49])));
        let own = store.own(&client("alice"), OwnSequence(0), ALL).await.unwrap();
        assert_eq!(own, (0..50).map(own_entry).collect::<Vec<_>>());
    }

    async fn an_answer_that_nobody_polls_is_written_all_the_same(place: Place) {
        let store = place.open();
        drop(store.write(Batch::new().and(Write::Node { name: "alone", bytes: vec![1] })));
        store.write(Batch::new().and(Write::Node { name: "second", bytes: vec![2] })).await.unwrap();
        assert_eq!(store.node("alone").await, Ok(Some(vec![1])));
    }

    async fn many_writers_share_one_flush(place: Place) {
        let store = place.open();
        place.faults().hold();
        let tasks: Vec<_> = (0..64_u64)
            .map(|n| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    let name = format!("g{n}");
                    let batch = Batch::new()
                        .when(Condition::GroupUnknown(group(&name)))
                        .and(Write::GroupHead(head(&name, n, 1)));
                    store.write(batch).await
                })
            })
            .collect();
        place.faults().until_queued(64).await;
        place.faults().release();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        let stats = store.stats();
        assert_eq!((stats.batches, stats.flushes), (64, 1));
        assert_eq!(store.group_heads(None, 100).await.unwrap().len(), 64);
    }

    async fn pages_end_at_items_or_bytes_and_have_at_least_one(place: Place) {
        let store = place.open();
        let mut batch = Batch::new();
        for at in 1..=20 {
            batch.push(log_write("g", record(at, 1_000, 9_000)));
            batch.push(Write::Own { client: client("alice"), entry: own_entry(at) });
        }
        // a neighbour in the range of keys
        batch.push(log_write("h", record(1, 1, 1)));
        store.write(batch).await.unwrap();
        let page = |items_max, bytes_max| Page { items_max, bytes_max };
        let max = usize::MAX;
        assert_eq!(sequences(&store, "g", 0, ALL).await, (1..=20).collect::<Vec<_>>());
        assert_eq!(sequences(&store, "g", 18, ALL).await, [18, 19, 20]);
        assert_eq!(sequences(&store, "g", 21, ALL).await, [0; 0]);
        assert_eq!(sequences(&store, "g", 3, page(2, max)).await, [3, 4]);
        assert_eq!(sequences(&store, "g", 3, page(0, max)).await, [3]);
        assert_eq!(sequences(&store, "g", 3, page(max, 0)).await, [3]);
        assert_eq!(sequences(&store, "g", 3, page(max, 31_000)).await, [3, 4, 5]);
        // the same bytes hold more of a feed, which is without the changes
        let feed = store.feed(&group("g"), Sequence(3), page(max, 11_000)).await.unwrap();
        assert_eq!(feed.len(), 10);
        let own = store.own(&client("alice"), OwnSequence(2), page(3, max)).await.unwrap();
        assert_eq!(own, [own_entry(2), own_entry(3), own_entry(4)]);
        let own = store.own(&client("alice"), OwnSequence(2), page(max, 1)).await.unwrap();
        assert_eq!(own, [own_entry(2)]);
    }

    async fn lists_go_on_behind_the_last_item(place: Place) {
        let store = place.open();
        let mut batch = Batch::new();
        for n in 0..7 {
            batch.push(Write::GroupHead(head(&format!("g{n}"), n, 1)));
            for key in 0..3_u8 {
                let group = group(&format!("g{n}"));
                batch.push(Write::GroupNotice { group, key: [key; 16], notice: gone("x") });
            }
        }
        store.write(batch).await.unwrap();
        let mut heads = Vec::new();
        let mut after = None;
        loop {
            let page = store.group_heads(after.as_ref(), 3).await.unwrap();
            let Some(last) = page.last() else { break };
            assert!(page.len() <= 3);
            after = Some(last.group.clone());
            heads.extend(page.into_iter().map(|head| head.group));
        }
        let mut groups = Vec::new();
        let mut after = None;
        loop {
            let page = store.groups_with_notices(after.as_ref(), 3).await.unwrap();
            let Some(last) = page.last() else { break };
            assert!(page.len() <= 3);
            after = Some(last.clone());
            groups.extend(page);
        }
        assert_eq!(groups, heads);
        heads.sort();
        assert_eq!(heads, (0..7).map(|n| group(&format!("g{n}"))).collect::<Vec<_>>());
        assert_eq!(store.group_heads(None, 0).await, Ok(vec![]));
        assert_eq!(store.groups_with_notices(None, 0).await, Ok(vec![]));
    }

    async fn an_inbox_is_in_order_within_each_group_and_holds_an_id_once(place: Place) {
        let store = place.open();
        let alice = client("alice");
        let keys = [
            inbox_key("g", 2, 1), inbox_key("g", 300, 0), inbox_key("h", 1, 0),
            inbox_key("g", 2, 0), InboxKey::Item([1; 16]), InboxKey::Item([1; 16]),
        ];
        for (at, key) in (0..).zip(keys) {
            let item = inbox_item(at);
            store.write(Batch::new().and(Write::Inbox { client: alice.clone(), key, item }))
                .await.unwrap();
        }
        let inbox = store.inbox(&alice, 100).await.unwrap();
        let of_g: Vec<_> = inbox.iter()
            .filter(|(key, _)| matches!(key, InboxKey::Group { group: of, .. } if *of == group("g")))
            .map(|(key, _)| key.clone())
            .collect();
        assert_eq!(of_g, [inbox_key("g", 2, 0), inbox_key("g", 2, 1), inbox_key("g", 300, 0)]);
        assert_eq!(inbox.len(), 5);
        assert_eq!(inbox.last().unwrap(), &(InboxKey::Item([1; 16]), inbox_item(5)));
        assert_eq!(store.inbox(&alice, 2).await.unwrap(), inbox[..2]);
    }

    async fn key_packages_come_oldest_first_and_once(place: Place) {
        let store = place.open();
        let alice = client("alice");
        for (name, published_at) in [(1, 50), (2, 40), (3, 60), (2, 70)] {
            let key_package = key_package(name, published_at);
            store.write(Batch::new().and(Write::KeyPackage { client: alice.clone(), key_package }))
                .await.unwrap();
        }
        let expected = [key_package(1, 50), key_package(3, 60), key_package(2, 70)];
        assert_eq!(store.key_packages(&alice, 9).await.unwrap(), expected);
        assert_eq!(store.key_packages(&alice, 2).await.unwrap(), expected[..2]);
        assert_eq!(store.key_packages(&alice, 0).await.unwrap(), []);
    }

    async fn values_of_any_size_keep_every_byte_and_leave_nothing_behind(place: Place) {
        let store = place.open();
        let sizes = [0, 1, 3_998, 3_999, 4_000, 4_001, 7_999, 8_000, 8_001, 65_536, 300_000];
        for (at, size) in (1..).zip(sizes) {
            store.write(Batch::new().and(log_write("g", record(at, size, 17)))).await.unwrap();
            store.write(Batch::new().and(log_write("g", record(at + 100, 17, size)))).await.unwrap();
        }
        let snapshot = noise(3, 3 << 20);
        let at = Sequence(1);
        let write = Write::Snapshot { group: group("g"), at, bytes: snapshot.clone() };
        store.write(Batch::low_priority().and(write)).await.unwrap();
        drop(store);
        let store = place.open();
        for (at, size) in (1..).zip(sizes) {
            for record in [record(at, size, 17), record(at + 100, 17, size)] {
                let one = Page { items_max: 1, bytes_max: 0 };
                let log = store.log(&group("g"), record.feed.sequence, one).await.unwrap();
                assert!(log[0] == record, "{size}");
                let feed = store.feed(&group("g"), record.feed.sequence, one).await.unwrap();
                assert!(feed[0] == record.feed, "{size}");
            }
        }
        assert!(store.snapshot(&group("g"), at).await.unwrap().unwrap() == snapshot);

        // a record that grows and shrinks in place; then everything goes
        for size in [20_000, 10, 9_000, 0] {
            let bytes = noise(4, size);
            let write = Write::Snapshot { group: group("g"), at, bytes: bytes.clone() };
            store.write(Batch::low_priority().and(write)).await.unwrap();
            assert!(store.snapshot(&group("g"), at).await.unwrap().unwrap() == bytes);
        }
        store.write(Batch::new().and(Write::DropGroup(group("g")))).await.unwrap();
        drop(store);
        assert_eq!(keys_left(&place), 1, "only the commit sequence");
    }

    async fn a_trim_drops_exactly_its_range(place: Place) {
        let store = place.open();
        let mut batch = Batch::new();
        for at in 1..=9 {
            batch.push(log_write("g", record(at, 5_000, 5_000)));
        }
        batch.push(log_write("h", record(4, 1, 1)));
        store.write(batch).await.unwrap();
        let trim = |from, until| {
            let (from, until) = (Sequence(from), Sequence(until));
            store.write(Batch::new().and(Write::TrimLog { group: group("g"), from, until }))
        };
        trim(3, 6).await.unwrap();
        assert_eq!(sequences(&store, "g", 0, ALL).await, [1, 2, 6, 7, 8, 9]);
        trim(0, 3).await.unwrap();
        trim(7, 7).await.unwrap();
        trim(9, 2).await.unwrap();
        trim(9, u64::MAX).await.unwrap();
        assert_eq!(sequences(&store, "g", 0, ALL).await, [6, 7, 8]);
        assert_eq!(sequences(&store, "h", 0, ALL).await, [4]);
    }

    async fn what_was_answered_survives_a_drop_without_close(place: Place) {
        let mut store = place.open();
        for round in 0..5_u64 {
            for at in 1..=10 {
                let at = round * 10 + at;
                let batch = Batch::new()
                    .and(log_write("g", record(at, 100, 5_000)))
                    .and(Write::GroupHead(head("g", at + 1, at)));
                store.write(batch).await.unwrap();
            }
            drop(store);
            store = place.open();
            let next = (round + 1) * 10 + 1;
            let found = store.group_head(&group("g")).await.unwrap();
            assert_eq!(found, Some(head("g", next, next - 1)));
            assert_eq!(sequences(&store, "g", 0, ALL).await, (1..next).collect::<Vec<_>>());
        }
    }

    async fn what_was_queued_is_written_before_a_close_and_nothing_after_it(place: Place) {
        let store = place.open();
        place.faults().hold();
        let first = store.write(Batch::new().and(Write::Node { name: "first", bytes: vec![1] }));
        let closed = store.close();
        let late = store.write(Batch::new().and(Write::Node { name: "late", bytes: vec![2] }));
        assert!(matches!(late.await, Err(StoreError::ReadOnly(_))));
        place.faults().release();
        first.await.unwrap();
        closed.await.unwrap();
        assert!(store.writable().is_err());
        store.close().await.unwrap();
        assert_eq!(store.node("first").await, Ok(Some(vec![1])));
        drop(store);
        let store = place.open();
        assert_eq!(store.node("first").await, Ok(Some(vec![1])));
        assert_eq!(store.node("late").await, Ok(None));
    }

    async fn a_failing_flush_makes_the_store_read_only(place: Place) {
        for fault in [Fault::Refused, Fault::Lost, Fault::Kept, Fault::Panic] {
            let name = "node";
            let write = |n: u8| Batch::new().and(Write::Node { name, bytes: vec![n] });
            let store = place.open();
            store.write(write(1).and(log_write("g", record(1, 1, 1)))).await.unwrap();
            let faults = place.faults();
            faults.hold();
            faults.fail_flush(2, fault);
            let fine = store.write(write(2));
            faults.step(1);
            fine.await.unwrap();
            // two in the flush that fails, the second of them a refusal that rests on the first
            let unknown = store.write(write(3));
            let refused = store.write(write(4).when(Condition::GroupAt {
                group: group("g"), next_sequence: Sequence(1), revision: 1,
            }));
            faults.step(1);
            assert!(matches!(unknown.await, Err(StoreError::Unavailable(_))), "{fault:?}");
            assert!(matches!(refused.await, Err(StoreError::Unavailable(_))));
            faults.release();
            for _ in 0..2 {
                let later = store.write(write(5)).await;
                assert!(matches!(later, Err(StoreError::ReadOnly(_))), "{later:?}");
            }
            assert!(store.writable().is_err());
            assert!(matches!(store.close().await, Err(StoreError::ReadOnly(_))));
            // what is certain can be read, what is not cannot
            assert_eq!(sequences(&store, "g", 0, ALL).await, [1]);
            assert!(matches!(store.node(name).await, Err(StoreError::Unavailable(_))));
            assert_eq!(store.stats().batches, 2);
            drop(store);
            let found = place.open().node(name).await.unwrap().unwrap();
            match (&place, fault) {
                (_, Fault::Refused | Fault::Panic) => assert_eq!(found, [2]),
                (_, Fault::Kept) => assert_eq!(found, [3]),
                (Place::Memory(_), Fault::Lost) => assert_eq!(found, [2]),
                // sled writes what it holds when it is dropped
                (Place::Sled { .. }, Fault::Lost) => assert!(found == [2] || found == [3]),
            }
        }
    }

    async fn a_read_error_is_told_and_does_not_stop_writes(place: Place) {
        let store = place.open();
        store.write(Batch::new().and(Write::Node { name: "n", bytes: vec![1] })).await.unwrap();
        place.faults().fail_reads(true);
        assert!(matches!(store.node("n").await, Err(StoreError::Unavailable(_))));
        let feed = store.feed(&group("g"), Sequence(0), ALL).await;
        assert!(matches!(feed, Err(StoreError::Unavailable(_))));
        place.faults().fail_reads(false);
        assert_eq!(store.node("n").await, Ok(Some(vec![1])));
        store.write(Batch::new().and(Write::Node { name: "n", bytes: vec![2] })).await.unwrap();
    }

    async fn nothing_is_seen_before_it_is_durable(place: Place) {
        let store = place.open();
        place.faults().hold();
        let mut written = store.write(Batch::new().and(Write::GroupHead(head("g", 1, 1))));
        assert_eq!(store.group_head(&group("g")).await, Ok(None));
        assert!(!is_there(&mut written).await);
        place.faults().fail_flush(1, Fault::Kept);
        place.faults().release();
        assert!(matches!(written.await, Err(StoreError::Unavailable(_))));
        assert!(matches!(store.group_head(&group("g")).await, Err(StoreError::Unavailable(_))));
        assert!(matches!(store.group_heads(None, 9).await, Err(StoreError::Unavailable(_))));
        assert_eq!(store.group_head(&group("h")).await, Ok(None));
    }

    async fn a_large_snapshot_does_not_stand_before_commits(place: Place) {
        let store = place.open();
        place.faults().hold();
        let snapshot = noise(1, 3 << 20);
        let at = Sequence(1);
        let low = store.write(
            Batch::low_priority()
                .when(Condition::GroupUnknown(group("other")))
                .and(Write::Snapshot { group: group("g"), at, bytes: snapshot.clone() })
                .and(Write::Node { name: "snapshot", bytes: vec![] }),
        );
        let mut flushes = 0;
        loop {
            let seen = store.snapshot(&group("g"), at).await.unwrap().is_some();
            assert_eq!(store.node("snapshot").await.unwrap().is_some(), seen, "all or nothing");
            if seen {
                break;
            }
            assert!(flushes < 100);
            let before = store.stats().bytes_written;
            let commit = store.write(Batch::new().and(log_write("g", record(flushes, 10, 10))));
            place.faults().step(1);
            commit.await.unwrap();
            flushes += 1;
            // about 256 KiB at a time
            assert!(store.stats().bytes_written - before < 300 << 10);
        }
        low.await.unwrap();
        assert!(flushes >= 12, "{flushes}");
        assert!(store.snapshot(&group("g"), at).await.unwrap().unwrap() == snapshot);
    }

    async fn the_low_lane_goes_on_while_the_normal_one_is_never_empty(place: Place) {
        let store = place.open();
        place.faults().hold();
        let small: Vec<_> = (0..8)
            .map(|n| {
                let (group, at) = (group("g"), Sequence(n));
                store.write(
                    Batch::low_priority()
                        .and(Write::Snapshot { group, at, bytes: noise(n, 100_000) }),
                )
            })
            .collect();
        // each flush takes two of 100 kB, and all of the commits
        for flush in 0..4 {
            let commit = store.write(Batch::new().and(log_write("g", record(flush, 10, 10))));
            place.faults().step(1);
            commit.await.unwrap();
        }
        for answer in small {
            answer.await.unwrap();
        }
        assert_eq!(store.stats().flushes, 4);
        let log = sequences(&store, "g", 0, ALL).await;
        assert_eq!(log, [0, 1, 2, 3]);
    }

    async fn a_snapshot_under_way_survives_what_happens_to_its_group(place: Place) {
        let store = place.open();
        let bytes = noise(1, 2 << 20);
        let (g, at) = (group("g"), Sequence(1));
        let snapshot = |condition: Option<Condition>| Batch {
            conditions: condition.into_iter().collect(),
            writes: vec![Write::Snapshot { group: g.clone(), at, bytes: bytes.clone() }],
            low_priority: true,
        };
        let flush = async |batch: Batch| {
            let answer = store.write(batch);
            place.faults().step(1);
            answer.await.unwrap();
        };
        let commit = || Batch::new().and(Write::Node { name: "n", bytes: vec![] });

        // the group is dropped half-way, and the snapshot asks for nothing: it is written whole
        place.faults().hold();
        let low = store.write(snapshot(None));
        flush(commit()).await;
        flush(commit()).await;
        flush(Batch::new().and(Write::DropGroup(g.clone()))).await;
        place.faults().release();
        low.await.unwrap();
        assert!(store.snapshot(&g, at).await.unwrap().unwrap() == bytes);
        store.write(Batch::new().and(Write::DropGroup(g.clone()))).await.unwrap();

        // the group moves on half-way, and the snapshot is fenced: it leaves nothing
        place.faults().hold();
        let low = store.write(snapshot(Some(Condition::GroupUnknown(g.clone()))));
        flush(commit()).await;
        flush(commit()).await;
        flush(Batch::new().and(Write::GroupHead(head("g", 1, 1)))).await;
        place.faults().release();
        assert_eq!(low.await, Err(StoreError::Conflict { condition: 0 }));
        assert_eq!(store.snapshot(&g, at).await, Ok(None));
        drop(store);
        assert_eq!(keys_left(&place), 3, "sequence, node, head");

        // the process ends half-way: what it leaves is taken away by the next snapshot
        let store = place.open();
        place.faults().hold();
        drop(store.write(snapshot(None)));
        let commit = store.write(commit());
        place.faults().step(1);
        commit.await.unwrap();
        drop(store);
        assert!(keys_left(&place) > 3);
        let store = place.open();
        assert_eq!(store.snapshot(&g, at).await, Ok(None));
        let at = Sequence(2);
        let write = Write::Snapshot { group: g.clone(), at, bytes: bytes.clone() };
        store.write(Batch::low_priority().and(write)).await.unwrap();
        assert!(store.snapshot(&g, at).await.unwrap().unwrap() == bytes);
        store.write(Batch::new().and(Write::DropSnapshot { group: g.clone(), at })).await.unwrap();
        drop(store);
        assert_eq!(keys_left(&place), 3);
    }

    async fn too_much_that_waits_is_refused_and_not_applied(place: Place) {
        let store = place.open();
        place.faults().hold();
        let write = |at: u64| {
            let entry = OwnEntry { event: vec![], group: None, ..own_entry(at) };
            store.write(Batch::new().and(Write::Own { client: client("alice"), entry }))
        };
        let max = QUEUE_BATCHES_MAX as u64;
        let answers: Vec<_> = (0..max).map(write).collect();
        assert_eq!(write(max).await, Err(StoreError::Busy));
        assert_eq!(store.writable(), Ok(()));
        // the other lane has room of its own
        let low = store.write(Batch::low_priority().and(Write::Node { name: "n", bytes: vec![] }));
        place.faults().release();
        for answer in answers {
            answer.await.unwrap();
        }
        low.await.unwrap();
        write(max + 1).await.unwrap();
        let own = store.own(&client("alice"), OwnSequence(max - 1), ALL).await.unwrap();
        let found: Vec<_> = own.iter().map(|entry| entry.sequence.0).collect();
        assert_eq!(found, [max - 1, max + 1]);
        // bounded flushes, shared by very many
        let flushes = store.stats().flushes;
        assert!((max / 8_000..100).contains(&flushes), "{flushes}");
    }

    async fn a_queue_keeps_its_client(place: Place) {
        let store = place.open();
        let write = |name| Write::Device { client: client(name), device: device(1) };
        store.write(Batch::new().and(write("alice"))).await.unwrap();
        let other = Batch::new().and(write("bob")).and(Write::Node { name: "n", bytes: vec![] });
        assert!(matches!(store.write(other).await, Err(StoreError::Corrupt { .. })));
        assert_eq!(store.client_of_queue(&[1; 16]).await, Ok(Some(client("alice"))));
        assert_eq!(store.device(&client("bob")).await, Ok(None));
        assert_eq!(store.node("n").await, Ok(None));
        store.write(Batch::new().and(write("alice"))).await.unwrap();
    }

    async fn any_sequence_of_batches_is_what_the_model_says(place: Place) {
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            // one place for all cases, so that they meet what earlier ones left
            cases: if matches!(place, Place::Memory(_)) { 64 } else { 12 },
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let place = &place;
        let handle = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| {
            runner
                .run(&proptest::collection::vec(model::step(), 1..40), |steps| {
                    handle.block_on(model::check(place, &steps));
                    Ok(())
                })
                .unwrap();
        });
    }
}

/// How many keys the engine of a closed store holds.
fn keys_left(place: &Place) -> usize {
    let mut count = 0;
    let mut counting = |_: &[u8], _: &[u8]| {
        count += 1;
        std::ops::ControlFlow::Continue(())
    };
    match place {
        Place::Memory(disk) => disk.tamper(|map| {
            for (key, value) in map {
                let _ = counting(key, value);
            }
        }),
        Place::Sled { folder, .. } => {
            let engine = Sled::open(folder.path(), 16 << 20).unwrap();
            engine.scan(&[], &[0xff], &mut counting).unwrap();
        }
    }
    count
}

/// The store as plain maps, and random batches for both.
mod model {
    use std::{
        collections::BTreeMap,
        sync::atomic::{AtomicU64, Ordering},
    };

    use super::*;

    /// What happens to a store.
    #[derive(Debug, Clone)]
    pub(super) enum Step {
        /// Batches that wait together, so that they share a flush.
        Together(Vec<Change>),
        /// One batch in the low-priority lane.
        Low(Change),
        Reopen,
    }

    #[derive(Debug, Clone)]
    pub(super) struct Change {
        /// A group that must be at this revision.
        condition: Option<(u8, u64)>,
        ops: Vec<Op>,
    }

    #[derive(Debug, Clone)]
    enum Op {
        Head { group: u8, revision: u64 },
        Log { group: u8, at: u64, size: usize },
        Trim { group: u8, from: u64, until: u64 },
        Snapshot { group: u8, at: u64, size: usize },
        DropSnapshot { group: u8, at: u64 },
        DropGroup { group: u8 },
        Own { client: u8, at: u64 },
        TrimOwn { client: u8, until: u64 },
        Inbox { client: u8, at: u64 },
        InboxTaken { client: u8, at: u64 },
        KeyPackage { client: u8, name: u8, published_at: u64 },
        DropKeyPackage { client: u8, name: u8 },
        DropQueue { client: u8 },
    }

    pub(super) fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => proptest::collection::vec(change(), 1..6).prop_map(Step::Together),
            2 => change().prop_map(Step::Low),
            1 => Just(Step::Reopen),
        ]
    }

    fn change() -> impl Strategy<Value = Change> {
        let condition = proptest::option::weighted(0.3, (0..2_u8, 0..4_u64));
        (condition, proptest::collection::vec(op(), 0..8))
            .prop_map(|(condition, ops)| Change { condition, ops })
    }

    fn op() -> impl Strategy<Value = Op> {
        let size = || {
            prop_oneof![
                4 => prop::sample::select(vec![0, 100, 4_100, 9_000]),
                1 => 0..20_000_usize,
            ]
        };
        let large = prop_oneof![8 => size(), 1 => Just(600_000_usize)];
        let (one, at) = (|| 0..2_u8, || 0..8_u64);
        prop_oneof![
            3 => (one(), 0..4_u64).prop_map(|(group, revision)| Op::Head { group, revision }),
            6 => (one(), at(), size()).prop_map(|(group, at, size)| Op::Log { group, at, size }),
            2 => (one(), at(), at()).prop_map(|(group, from, until)| Op::Trim { group, from, until }),
            3 => (one(), at(), large)
                .prop_map(|(group, at, size)| Op::Snapshot { group, at, size }),
            2 => (one(), at()).prop_map(|(group, at)| Op::DropSnapshot { group, at }),
            1 => one().prop_map(|group| Op::DropGroup { group }),
            3 => (one(), at()).prop_map(|(client, at)| Op::Own { client, at }),
            1 => (one(), at()).prop_map(|(client, until)| Op::TrimOwn { client, until }),
            3 => (one(), at()).prop_map(|(client, at)| Op::Inbox { client, at }),
            2 => (one(), at()).prop_map(|(client, at)| Op::InboxTaken { client, at }),
            3 => (one(), 0..4_u8, at()).prop_map(|(client, name, published_at)| {
                Op::KeyPackage { client, name, published_at }
            }),
            2 => (one(), 0..4_u8).prop_map(|(client, name)| Op::DropKeyPackage { client, name }),
            1 => one().prop_map(|client| Op::DropQueue { client }),
        ]
    }

    /// What a store must hold.
    #[derive(Debug, Default)]
    struct Model {
        heads: BTreeMap<u8, u64>,
        log: BTreeMap<(u8, u64), LogRecord>,
        snapshots: BTreeMap<(u8, u64), Vec<u8>>,
        own: BTreeMap<(u8, u64), OwnEntry>,
        inbox: BTreeMap<(u8, u64), InboxItem>,
        key_packages: BTreeMap<(u8, u8), u64>,
    }

    /// Names of their own for each case, since all share one place.
    #[derive(Clone, Copy)]
    struct Names(u64);

    impl Names {
        fn new() -> Self {
            static CASES: AtomicU64 = AtomicU64::new(0);
            Self(CASES.fetch_add(1, Ordering::Relaxed))
        }

        fn group(self, group: u8) -> String {
            format!("{}-{group}", self.0)
        }

        fn client(self, client: u8) -> ClientUri {
            super::client(&format!("c{}-{client}", self.0))
        }
    }

    pub(super) async fn check(place: &Place, steps: &[Step]) {
        let names = Names::new();
        let mut model = Model::default();
        let mut store = place.open();
        for step in steps {
            match step {
                Step::Together(changes) => {
                    place.faults().hold();
                    let answers: Vec<_> = changes
                        .iter()
                        .map(|change| store.write(change.batch(names, false)))
                        .collect();
                    place.faults().release();
                    for (change, answer) in changes.iter().zip(answers) {
                        assert_eq!(answer.await, model.apply(change));
                    }
                }
                Step::Low(change) => {
                    let answer = store.write(change.batch(names, true)).await;
                    assert_eq!(answer, model.apply(change));
                }
                Step::Reopen => {
                    drop(store);
                    store = place.open();
                }
            }
            model.compare(&store, names).await;
        }
    }

    impl Change {
        fn batch(&self, names: Names, low_priority: bool) -> Batch {
            let conditions = self.condition.iter().map(|(of, revision)| Condition::GroupAt {
                group: group(&names.group(*of)),
                next_sequence: Sequence(1),
                revision: *revision,
            });
            let writes = self.ops.iter().map(|op| op.write(names));
            Batch { conditions: conditions.collect(), writes: writes.collect(), low_priority }
        }
    }

    impl Op {
        fn write(&self, names: Names) -> Write {
            let group_of = |of: u8| group(&names.group(of));
            match *self {
                Op::Head { group, revision } => {
                    Write::GroupHead(head(&names.group(group), 1, revision))
                }
                Op::Log { group, at, size } => {
                    Write::Log { group: group_of(group), record: record(at, size / 2, size) }
                }
                Op::Trim { group, from, until } => Write::TrimLog {
                    group: group_of(group),
                    from: Sequence(from),
                    until: Sequence(until),
                },
                Op::Snapshot { group, at, size } => Write::Snapshot {
                    group: group_of(group),
                    at: Sequence(at),
                    bytes: noise(at, size),
                },
                Op::DropSnapshot { group, at } => {
                    Write::DropSnapshot { group: group_of(group), at: Sequence(at) }
                }
                Op::DropGroup { group } => Write::DropGroup(group_of(group)),
                Op::Own { client, at } => {
                    Write::Own { client: names.client(client), entry: own_entry(at) }
                }
                Op::TrimOwn { client, until } => {
                    Write::TrimOwn { client: names.client(client), until: OwnSequence(until) }
                }
                Op::Inbox { client, at } => Write::Inbox {
                    client: names.client(client),
                    key: inbox_key("g", at, 0),
                    item: inbox_item(at),
                },
                Op::InboxTaken { client, at } => {
                    Write::InboxTaken { client: names.client(client), key: inbox_key("g", at, 0) }
                }
                Op::KeyPackage { client, name, published_at } => Write::KeyPackage {
                    client: names.client(client),
                    key_package: key_package(name, published_at),
                },
                Op::DropKeyPackage { client, name } => Write::DropKeyPackage {
                    client: names.client(client),
                    key_package: reference(name),
                },
                Op::DropQueue { client } => Write::DropQueue(names.client(client)),
            }
        }
    }

    impl Model {
        fn apply(&mut self, change: &Change) -> Result<(), StoreError> {
            if let Some((group, revision)) = change.condition
                && self.heads.get(&group) != Some(&revision)
            {
                return Err(StoreError::Conflict { condition: 0 });
            }
            for op in &change.ops {
                self.run(op);
            }
            Ok(())
        }

        fn run(&mut self, op: &Op) {
            match *op {
                Op::Head { group, revision } => drop(self.heads.insert(group, revision)),
                Op::Log { group, at, size } => {
                    self.log.insert((group, at), record(at, size / 2, size));
                }
                Op::Trim { group, from, until } => {
                    self.log.retain(|(of, at), _| *of != group || !(from..until).contains(at));
                }
                Op::Snapshot { group, at, size } => {
                    self.snapshots.insert((group, at), noise(at, size));
                }
                Op::DropSnapshot { group, at } => drop(self.snapshots.remove(&(group, at))),
                Op::DropGroup { group } => {
                    self.log.retain(|(of, _), _| *of != group);
                    self.snapshots.retain(|(of, _), _| *of != group);
                }
                Op::Own { client, at } => drop(self.own.insert((client, at), own_entry(at))),
                Op::TrimOwn { client, until } => {
                    self.own.retain(|(of, at), _| *of != client || *at > until);
                }
                Op::Inbox { client, at } => drop(self.inbox.insert((client, at), inbox_item(at))),
                Op::InboxTaken { client, at } => drop(self.inbox.remove(&(client, at))),
                Op::KeyPackage { client, name, published_at } => {
                    self.key_packages.insert((client, name), published_at);
                }
                Op::DropKeyPackage { client, name } => {
                    self.key_packages.remove(&(client, name));
                }
                Op::DropQueue { client } => {
                    self.own.retain(|(of, _), _| *of != client);
                    self.inbox.retain(|(of, _), _| *of != client);
                    self.key_packages.retain(|(of, _), _| *of != client);
                }
            }
        }

        async fn compare(&self, store: &SharedStore, names: Names) {
            for one in 0..2 {
                let (name, client) = (names.group(one), names.client(one));
                let id = group(&name);
                let revision = self.heads.get(&one);
                let expected = revision.map(|revision| head(&name, 1, *revision));
                assert_eq!(store.group_head(&id).await.unwrap(), expected);
                let log = of(&self.log, one);
                let feed: Vec<_> = log.iter().map(|record| record.feed.clone()).collect();
                assert!(store.log(&id, Sequence(0), ALL).await.unwrap() == log);
                assert!(store.feed(&id, Sequence(0), ALL).await.unwrap() == feed);
                for at in 0..8 {
                    let found = store.snapshot(&id, Sequence(at)).await.unwrap();
                    assert!(found.as_ref() == self.snapshots.get(&(one, at)), "snapshot {at}");
                }
                let own = store.own(&client, OwnSequence(0), ALL).await.unwrap();
                assert_eq!(own, of(&self.own, one));
                let inbox = store.inbox(&client, 100).await.unwrap();
                let inbox: Vec<_> = inbox.into_iter().map(|(_, item)| item).collect();
                assert_eq!(inbox, of(&self.inbox, one));
                let mut found: Vec<_> = store
                    .key_packages(&client, 100)
                    .await
                    .unwrap()
                    .into_iter()
                    .map(|found| (found.published_at.0, found))
                    .collect();
                assert!(found.is_sorted_by_key(|(at, _)| *at));
                found.sort_by_key(|(at, found)| (*at, found.bytes.clone()));
                let mut expected: Vec<_> = self
                    .key_packages
                    .iter()
                    .filter(|((of, _), _)| *of == one)
                    .map(|((_, name), at)| (*at, key_package(*name, *at)))
                    .collect();
                expected.sort_by_key(|(at, found)| (*at, found.bytes.clone()));
                assert_eq!(found, expected);
            }
        }
    }

    fn of<V: Clone>(map: &BTreeMap<(u8, u64), V>, one: u8) -> Vec<V> {
        map.range((one, 0)..=(one, u64::MAX)).map(|(_, value)| value.clone()).collect()
    }
}
