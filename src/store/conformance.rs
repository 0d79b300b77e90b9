//! What every engine must do, run for each of them: the contract in [`super`], verb by verb.
//!
//! A [`Place`] is where a store can be opened again and again: a [`Disk`] in memory, or a folder with sled or fjall. All are
//! behind [`Faults`], so that a test can hold writes, let single flushes go, and break them, on a disk too.

mod golden;
mod model;
pub(super) mod samples;

use std::{path::Path, sync::Arc};

use proptest::prelude::ProptestConfig;

use super::{
    Answer, Batch, Condition, Left, LeftBy, Page, SharedStore, StoreError, Write,
    engine::Engine,
    faults::{Fault, Faults, Faulty},
    fjall::Fjall,
    memory::Disk,
    reader::NodeStore,
    records::*,
    sled::Sled,
    writer::QUEUE_BATCHES_MAX,
};
use crate::wire::ids::*;
use samples::*;

/// Where stores are opened.
enum Place {
    Memory(Disk),
    Folder { engine: FileEngine, folder: tempfile::TempDir, faults: Faults },
}

/// An engine with files.
#[derive(Clone, Copy)]
enum FileEngine {
    Sled,
    Fjall,
}

impl FileEngine {
    fn open(self, folder: &Path) -> Box<dyn Engine> {
        match self {
            Self::Sled => Box::new(Sled::open(folder, 16 << 20).unwrap()),
            Self::Fjall => Box::new(Fjall::open(folder, 16 << 20).unwrap()),
        }
    }

    fn open_faulty(self, folder: &Path, faults: &Faults) -> Box<dyn Engine> {
        let faults = faults.clone();
        match self {
            Self::Sled => Box::new(Faulty::new(Sled::open(folder, 16 << 20).unwrap(), faults)),
            Self::Fjall => Box::new(Faulty::new(Fjall::open(folder, 16 << 20).unwrap(), faults)),
        }
    }
}

impl Place {
    fn memory() -> Self {
        Self::Memory(Disk::new())
    }

    fn on_disk(engine: FileEngine) -> Self {
        Self::Folder { engine, folder: tempfile::tempdir().unwrap(), faults: Faults::new() }
    }

    fn open(&self) -> SharedStore {
        match self {
            Self::Memory(disk) => disk.open().unwrap(),
            Self::Folder { engine, folder, faults } => {
                faults.reset();
                let engine = engine.open_faulty(folder.path(), faults);
                Arc::new(NodeStore::start(engine, folder.path().to_owned()).unwrap())
            }
        }
    }

    fn faults(&self) -> &Faults {
        match self {
            Self::Memory(disk) => disk.faults(),
            Self::Folder { faults, .. } => faults,
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
                every_engine::$name(Place::on_disk(FileEngine::Sled)).await;
            })*
        }
        mod on_fjall {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() {
                every_engine::$name(Place::on_disk(FileEngine::Fjall)).await;
            })*
        }
    };
}

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
                store.group_notices(&group("g"), None, 10).await,
                Ok(vec![([1; 16], gone("bob"))])
            );
            assert_eq!(
                store.inbox(&alice, ALL).await.map(|left| left.items),
                Ok(vec![(inbox_key("g", 1, 0), inbox_item(1))])
            );
            assert_eq!(store.queue_head(&alice).await, Ok(Some(queue_head(1))));
            assert_eq!(own, Ok(vec![own_entry(1)]));
            assert_eq!(store.subscriptions(&alice).await, Ok(vec![subscription(1)]));
            let (g, seven) = (group("g"), RecipientId(7));
            let found = store.subscription_to(&alice, &g, seven).await;
            assert_eq!(found, Ok(Some(subscription(1))));
            assert_eq!(store.subscription_to(&alice, &g, RecipientId(8)).await, Ok(None));
            assert_eq!(store.subscription_to(&alice, &group("h"), seven).await, Ok(None));
            assert_eq!(store.subscription_to(&bob, &g, seven).await, Ok(None));
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
            assert_eq!(store.inbox(&bob, ALL).await, Ok(Left::default()));
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
            batch.push(Write::Subscription { client: alice.clone(), subscription: as_recipient(n) });
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
            drop_of(FeedId(2), |feed| Write::DropSubscription {
                client: client(), feed, group: group("g"), recipient: RecipientId(2),
            }),
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
        let keys: Vec<_> = store.group_notices(&group("g"), None, 9).await.unwrap();
        assert_eq!(keys, [([1; 16], gone("x")), ([3; 16], gone("x"))]);
        let behind = store.group_notices(&group("g"), Some(&[1; 16]), 9).await;
        assert_eq!(behind, Ok(vec![([3; 16], gone("x"))]));
        let keys = store.inbox(&alice, ALL).await.unwrap().items;
        assert_eq!(keys.len(), 2);
        assert_eq!(keys[1].0, inbox_key("g", 3, 0));
        let subscriptions = store.subscriptions(&alice).await.unwrap();
        assert_eq!(subscriptions, [as_recipient(1), as_recipient(3)]);
        for at in 1..=3 {
            let found = store.subscription_to(&alice, &group("g"), RecipientId(at)).await;
            assert_eq!(found, Ok((at != 2).then(|| as_recipient(at))));
        }
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
            let found = store.subscription_to(&client, &group("g"), RecipientId(7)).await;
            assert_eq!(found.unwrap().is_some(), there == 1);
            assert_eq!(store.inbox(&client, ALL).await.unwrap().items.len(), there);
            assert_eq!(store.key_packages(&client, 9).await.unwrap().len(), there);
            let held = Condition::KeyPackageHeld { client, key_package: reference(1) };
            let held = store.write(Batch::new().when(held)).await;
            assert_eq!(held.is_ok(), there == 1);
            assert_eq!(sequences(&store, name, 0, ALL).await.len(), 3 * there);
            let snapshot = store.snapshot(&group(name), Sequence(1)).await.unwrap();
            assert_eq!(snapshot.is_some(), there == 1);
            let info = store.joiner_info(&group(name), Epoch(1)).await.unwrap();
            assert_eq!(info.is_some(), there == 1);
            assert_eq!(store.group_notices(&group(name), None, 9).await.unwrap().len(), there);
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

    async fn what_peers_are_owed_is_listed_by_peer_and_dropped_where_nothing_came_since(place: Place) {
        let store = place.open();
        let mut batch = Batch::new();
        for peer in ["b", "c"] {
            for (name, until) in [("g", 5), ("h", 6), ("i", 7)] {
                let (peer, group, until) = (domain(peer), group(name), Sequence(until));
                batch.push(Write::Outbound { peer, group, until });
            }
            for at in 1..=4 {
                batch.push(Write::OutboundRoster {
                    peer: domain(peer), group: group("g"), row: roster_row(at, 5_000),
                });
            }
            let replica = replica(3);
            batch.push(Write::Replica { peer: domain(peer), group: group("g"), replica });
        }
        store.write(batch).await.unwrap();
        let mut peers = store.outbound_peers(None, 9).await.unwrap();
        let first = store.outbound_peers(None, 1).await.unwrap();
        assert_eq!(first, peers[..1]);
        assert_eq!(store.outbound_peers(Some(&first[0]), 9).await.unwrap(), peers[1..]);
        let replicated = store.replica_peers(None, 9).await.unwrap();
        assert_eq!(replicated, peers);
        assert_eq!(store.replica_peers(Some(&peers[0]), 9).await.unwrap(), peers[1..]);
        peers.sort();
        assert_eq!(peers, [domain("b"), domain("c")]);
        let owed = store.outbound(&domain("b"), None, 9).await.unwrap();
        assert_eq!(owed.len(), 3);
        assert_eq!(store.outbound(&domain("b"), Some(&owed[0].0), 1).await.unwrap(), owed[1..2]);
        assert_eq!(store.outbound(&domain("d"), None, 9).await.unwrap(), []);
        let done = |until| {
            let (peer, group) = (domain("b"), group("h"));
            let at = Condition::OutboundAt { peer: peer.clone(), group: group.clone(), until };
            Batch::new().when(at).and(Write::OutboundDone { peer, group })
        };
        let newer = Err(StoreError::Conflict { condition: 0 });
        assert_eq!(store.write(done(Sequence(5))).await, newer);
        assert_eq!(store.outbound_at(&domain("b"), &group("h")).await, Ok(Some(Sequence(6))));
        assert_eq!(store.write(done(Sequence(6))).await, Ok(()));
        assert_eq!(store.write(done(Sequence(6))).await, newer, "it is not there any more");
        assert_eq!(store.outbound_at(&domain("b"), &group("h")).await, Ok(None));
        assert_eq!(store.outbound_at(&domain("c"), &group("h")).await, Ok(Some(Sequence(6))));
        let trim = Write::TrimOutboundRoster {
            peer: domain("b"), group: group("g"), until: Sequence(2),
        };
        let drop_replica = Write::DropReplica { peer: domain("b"), group: group("g") };
        store.write(Batch::new().and(trim).and(drop_replica)).await.unwrap();
        for (peer, from) in [("b", 3), ("c", 1)] {
            let rows = store.outbound_roster(&domain(peer), &group("g"), Sequence(0), ALL).await;
            let rows: Vec<_> = rows.unwrap().iter().map(|row| row.sequence.0).collect();
            assert_eq!(rows, (from..=4).collect::<Vec<_>>());
            let there = store.replica(&domain(peer), &group("g")).await.unwrap();
            assert_eq!(there, (peer == "c").then(|| replica(3)));
            assert_eq!(store.replicas(&domain(peer), 9).await, Ok(there.into_iter().collect()));
        }
        let rows = store.outbound_roster(&domain("b"), &group("g"), Sequence(4), ALL).await;
        assert_eq!(rows, Ok(vec![roster_row(4, 5_000)]));
    }

    async fn a_followed_group_has_its_members_in_order(place: Place) {
        let store = place.open();
        let followed = Followed { hub: domain("b"), members: 3 };
        let mut batch = Batch::new();
        for name in ["g", "h"] {
            batch.push(Write::Followed { group: group(name), followed: followed.clone() });
            for at in [3, 300, 70_000] {
                let member = followed_member(at);
                batch.push(Write::FollowedMember { group: group(name), member });
            }
        }
        store.write(batch).await.unwrap();
        let members = store.followed_members(&group("g"), None, 9).await.unwrap();
        assert_eq!(members, [followed_member(3), followed_member(300), followed_member(70_000)]);
        let next = store.followed_members(&group("g"), Some(RecipientId(3)), 1).await;
        assert_eq!(next, Ok(vec![followed_member(300)]));
        let recipient = RecipientId(300);
        let drop = Write::DropFollowedMember { group: group("g"), recipient };
        store.write(Batch::new().and(drop)).await.unwrap();
        assert_eq!(store.followed_member(&group("g"), recipient).await, Ok(None));
        assert_eq!(store.followed(&group("g")).await, Ok(Some(followed.clone())));
        store.write(Batch::new().and(Write::DropFollowed(group("g")))).await.unwrap();
        assert_eq!(store.followed(&group("g")).await, Ok(None));
        assert_eq!(store.followed_members(&group("g"), None, 9).await, Ok(vec![]));
        assert_eq!(store.followed(&group("h")).await, Ok(Some(followed)));
        assert_eq!(store.followed_members(&group("h"), None, 9).await.unwrap().len(), 3);
        let there = Batch::new().and(Write::GroupHead(head("g", 4, 1)));
        store.write(there.and(Write::GroupHead(head("h", 4, 1)))).await.unwrap();
        store.write(Batch::new().and(Write::DropGroupHead(group("g")))).await.unwrap();
        assert_eq!(store.group_head(&group("g")).await, Ok(None));
        let unknown = |name| Batch::new().when(Condition::GroupUnknown(group(name)));
        assert_eq!(store.write(unknown("g")).await, Ok(()), "as if it had never been there");
        let there = Err(StoreError::Conflict { condition: 0 });
        assert_eq!(store.write(unknown("h")).await, there);
    }

    async fn who_has_left_a_group_is_known_until_its_subscription_goes(place: Place) {
        let store = place.open();
        let leaver = |at: u64, name| Leaver {
            recipient: RecipientId(at), client: client(name), last: Sequence(at + 1),
        };
        let close = |name, to, at: u64| Write::Inbox {
            client: client(name),
            key: inbox_key(to, at, 0),
            item: InboxItem::Close {
                group: group(to), recipient: RecipientId(at), last: Sequence(at + 1), removed: true,
            },
        };
        let mut batch = Batch::new();
        for at in [3, 300, 70_000] {
            batch.push(close("alice", "g", at));
            batch.push(Write::InboxTaken { client: client("alice"), key: inbox_key("g", at, 0) });
        }
        batch.push(close("bob", "g", 4));
        batch.push(close("alice", "h", 3));
        store.write(batch).await.unwrap();
        let all = [leaver(3, "alice"), leaver(4, "bob"), leaver(300, "alice")];
        assert_eq!(store.leavers(&group("g"), None, 3).await.unwrap(), all);
        let next = store.leavers(&group("g"), Some(RecipientId(300)), 9).await;
        assert_eq!(next.unwrap(), [leaver(70_000, "alice")]);
        assert_eq!(store.leavers(&group("g"), None, 0).await, Ok(vec![]));
        let (feed, recipient) = (FeedId(9), RecipientId(3));
        let over = Write::DropSubscription {
            client: client("alice"), feed, group: group("g"), recipient,
        };
        let drop = Write::DropLeaver { group: group("g"), recipient: RecipientId(4) };
        store.write(Batch::new().and(over).and(drop)).await.unwrap();
        let left = [leaver(300, "alice"), leaver(70_000, "alice")];
        assert_eq!(store.leavers(&group("g"), None, 9).await.unwrap(), left);
        store.write(Batch::new().and(Write::DropGroup(group("g")))).await.unwrap();
        assert_eq!(store.leavers(&group("g"), None, 9).await, Ok(vec![]));
        assert_eq!(store.leavers(&group("h"), None, 9).await.unwrap(), [leaver(3, "alice")]);
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
        let inbox = store.inbox(&alice, ALL).await.unwrap().items;
        let of_g: Vec<_> = inbox.iter()
            .filter(|(key, _)| matches!(key, InboxKey::Group { group: of, .. } if *of == group("g")))
            .map(|(key, _)| key.clone())
            .collect();
        assert_eq!(of_g, [inbox_key("g", 2, 0), inbox_key("g", 2, 1), inbox_key("g", 300, 0)]);
        assert_eq!(inbox.len(), 5);
        assert_eq!(inbox.last().unwrap(), &(InboxKey::Item([1; 16]), inbox_item(5)));
        for (items_max, bytes_max) in [(2, usize::MAX), (5, usize::MAX), (9, 1), (9, 200)] {
            let left = store.inbox(&alice, Page { items_max, bytes_max }).await.unwrap();
            assert_eq!(left.items, inbox[..left.items.len()]);
            assert_eq!(left.more, left.items.len() < 5, "{items_max}, {bytes_max}");
            match bytes_max {
                1 => assert_eq!(left.items.len(), 1),
                200 => assert!((2..5).contains(&left.items.len()), "{}", left.items.len()),
                _ => assert_eq!(left.items.len(), items_max),
            }
        }
    }

    async fn own_entries_are_counted_by_their_bytes_and_no_further_than_to_a_bound(place: Place) {
        let store = place.open();
        let alice = client("alice");
        assert_eq!(store.own_bytes(&alice, OwnSequence(1), 0).await, Ok(Some(0)));
        let mut batch = Batch::new();
        for at in 1..=3 {
            batch.push(Write::Own { client: alice.clone(), entry: own_entry(at) });
        }
        let large = OwnEntry { event: vec![7; 100_000], ..own_entry(4) };
        batch.push(Write::Own { client: alice.clone(), entry: large });
        batch.push(Write::Own { client: client("bob"), entry: own_entry(1) });
        store.write(batch).await.unwrap();
        let from = async |at, most| store.own_bytes(&alice, OwnSequence(at), most).await.unwrap();
        let last = from(4, usize::MAX).await.unwrap();
        assert!((100_000..101_000).contains(&last), "{last}");
        assert_eq!(from(5, 0).await, Some(0));
        let all = from(1, usize::MAX).await.unwrap();
        assert!((last + 3 * 100..last + 3_000).contains(&all), "{all}");
        assert_eq!((from(1, all).await, from(1, all - 1).await), (Some(all), None));
    }

    async fn inbox_is_counted_by_who_left_what_and_no_further_than_to_a_bound(place: Place) {
        let store = place.open();
        let alice = client("alice");
        let from = |name, id| InboxKey::From { provider: domain(name), id: [id; 16] };
        let most = |items_max, bytes_max| Page { items_max, bytes_max };
        assert_eq!(store.inbox_use(&alice, most(1, 0)).await, Ok(Some(vec![])));
        // one is larger than what stands under one key
        let large = InboxItem::Event { group: Some(group("g")), event: vec![7; 100_000] };
        for (key, item) in [
            (inbox_key("g", 1, 0), inbox_item(1)), (inbox_key("g", 2, 0), large),
            (inbox_key("h", 1, 0), inbox_item(1)), (InboxKey::Item([1; 16]), inbox_item(1)),
            (InboxKey::Item([2; 16]), inbox_item(1)), (from("x", 1), inbox_item(1)),
            (from("y", 1), inbox_item(1)), (from("x", 2), inbox_item(1)), (from("x", 2), inbox_item(1)),
        ] {
            assert!(key == from("x", 2) || !store.is_left(&alice, &key).await.unwrap());
            store.write(Batch::new().and(Write::Inbox { client: alice.clone(), key: key.clone(), item }))
                .await.unwrap();
            assert!(store.is_left(&alice, &key).await.unwrap());
        }
        // another's
        let key = inbox_key("g", 1, 0);
        store.write(Batch::new().and(Write::Inbox { client: client("bob"), key, item: inbox_item(1) }))
            .await.unwrap();
        let uses = store.inbox_use(&alice, most(9, 1 << 20)).await.unwrap().unwrap();
        let of = |by: LeftBy| uses.iter().find(|it| it.by == by).unwrap();
        let (g, h) = (of(LeftBy::Group(group("g"))), of(LeftBy::Group(group("h"))));
        let [x, y] = ["x", "y"].map(|name| of(LeftBy::Provider(domain(name))).items);
        assert_eq!((uses.len(), g.items, h.items), (5, 2, 1));
        assert_eq!((of(LeftBy::Other).items, x, y), (2, 2, 1));
        assert!(g.bytes > 100_000 + h.bytes - 100 && h.bytes < 200, "{uses:?}");
        let bytes: usize = uses.iter().map(|it| it.bytes).sum();
        assert_eq!(store.inbox_use(&alice, most(9, bytes)).await, Ok(Some(uses.clone())));
        assert_eq!(store.inbox_use(&alice, most(9, bytes - 1)).await, Ok(None));
        assert_eq!(store.inbox_use(&alice, most(8, bytes)).await, Ok(None));
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
                (Place::Folder { .. }, Fault::Lost) => assert!(found == [2] || found == [3]),
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
        assert_eq!(store.stats().read_failures, 2);
        store.write(Batch::new().and(Write::Node { name: "n", bytes: vec![2] })).await.unwrap();
    }

    async fn a_read_error_below_a_large_snapshot_refuses_it_and_nothing_else(place: Place) {
        let store = place.open();
        let faults = place.faults();
        let (at, bytes) = (Sequence(1), noise(1, 600 << 10));
        let large = || {
            store.write(
                Batch::low_priority()
                    .when(Condition::GroupUnknown(group("other")))
                    .and(Write::Snapshot { group: group("g"), at, bytes: bytes.clone() })
                    .and(Write::Node { name: "snapshot", bytes: vec![] }),
            )
        };
        let small = |n| store.write(Batch::new().and(log_write("g", record(n, 10, 10))));
        let is_refused = |answer| matches!(answer, Err(StoreError::Unavailable(_)));
        for (n, panics) in [(1, false), (4, true)] {
            let break_reads = |broken| {
                if panics { faults.panic_in_reads(broken) } else { faults.fail_reads(broken) }
            };
            // as it begins
            faults.hold();
            break_reads(true);
            let (low, beside) = (large(), small(n));
            faults.step(1);
            assert!(is_refused(low.await), "{panics}");
            assert!(is_refused(beside.await), "{panics}");
            break_reads(false);
            faults.step(1);
            small(n).await.unwrap();
            // when most of it has gone ahead
            let (low, beside) = (large(), small(n + 1));
            faults.step(1);
            beside.await.unwrap();
            break_reads(true);
            faults.release();
            assert!(is_refused(low.await), "{panics}");
            break_reads(false);
            store.writable().unwrap();
            small(n + 2).await.unwrap();
            assert_eq!(store.snapshot(&group("g"), at).await, Ok(None));
            assert_eq!(store.node("snapshot").await, Ok(None));
        }
        large().await.unwrap();
        assert!(store.snapshot(&group("g"), at).await.unwrap().unwrap() == bytes);
        assert_eq!(sequences(&store, "g", 0, ALL).await, [1, 2, 3, 4, 5, 6]);
        store.close().await.unwrap();
        drop(store);
        assert!(place.open().snapshot(&group("g"), at).await.unwrap().unwrap() == bytes);
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
            times: None,
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

    async fn a_large_snapshot_may_come_with_any_other_write(place: Place) {
        let store = place.open();
        let (g, bytes) = (|| group("g"), noise(1, 600_000));
        let snapshot = |at| Write::Snapshot { group: g(), at: Sequence(at), bytes: bytes.clone() };
        let low = |writes: Vec<Write>| {
            store.write(Batch { writes, ..Batch::low_priority() })
        };
        let found = async |at| store.snapshot(&g(), Sequence(at)).await.unwrap();
        // behind the drop of all that the group had
        low(vec![Write::DropGroup(g()), snapshot(1)]).await.unwrap();
        assert!(found(1).await.unwrap() == bytes);
        // beside what makes room
        let drop_first = Write::DropSnapshot { group: g(), at: Sequence(1) };
        let (from, until) = (Sequence(0), Sequence(9));
        low(vec![snapshot(2), drop_first, Write::TrimLog { group: g(), from, until }])
            .await
            .unwrap();
        assert!(found(1).await.is_none() && found(2).await.unwrap() == bytes);
        // over itself, and before its own drop
        low(vec![snapshot(3), Write::Snapshot { group: g(), at: Sequence(3), bytes: vec![1] }])
            .await
            .unwrap();
        assert_eq!(found(3).await.unwrap(), [1]);
        low(vec![snapshot(4), Write::DropGroup(g())]).await.unwrap();
        drop(store);
        assert_eq!(keys_left(&place), 1, "only the commit sequence");
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

    async fn a_read_never_sees_half_of_a_change(place: Place) {
        let store = place.open();
        let writer = {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for round in 0..150_u64 {
                    let size = 1 + (round as usize * 7_919) % 30_000;
                    let bytes = noise(round, size);
                    let (group, epoch) = (group("g"), Epoch(1));
                    let batch = Batch::new()
                        .and(Write::JoinerInfo { group, epoch, bytes })
                        .and(Write::Node { name: "round", bytes: round.to_be_bytes().to_vec() });
                    store.write(batch).await.unwrap();
                }
            })
        };
        let mut seen = 0;
        while seen < 149 {
            let Some(before) = store.node("round").await.unwrap() else { continue };
            let before = u64::from_be_bytes(before.try_into().unwrap());
            let bytes = store.joiner_info(&group("g"), Epoch(1)).await.unwrap().unwrap();
            // it is whole, of a round not older than what was seen before it
            let whole = (before..150)
                .find(|round| bytes.len() == 1 + (*round as usize * 7_919) % 30_000);
            assert!(bytes == noise(whole.unwrap(), bytes.len()));
            assert!(before >= seen);
            seen = before;
        }
        writer.await.unwrap();
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
        Place::Folder { engine, folder, .. } => {
            let engine = engine.open(folder.path());
            engine.scan(&[], &[0xff], &mut counting).unwrap();
        }
    }
    count
}

#[tokio::test]
async fn a_crash_keeps_exactly_what_was_flushed() {
    let disk = Disk::new();
    let store = disk.open().unwrap();
    let write = |n: u8| store.write(Batch::new().and(Write::Node { name: "n", bytes: vec![n] }));
    write(1).await.unwrap();
    disk.faults().hold();
    let lost = write(2);
    disk.crash();
    disk.faults().release();
    assert!(matches!(lost.await, Err(StoreError::Unavailable(_))));
    // the disk cannot even be read: no batch can be judged
    assert!(matches!(write(3).await, Err(StoreError::Unavailable(_))));
    let anew = disk.open().unwrap();
    assert_eq!(anew.node("n").await, Ok(Some(vec![1])));
    anew.write(Batch::new().and(Write::Node { name: "n", bytes: vec![4] })).await.unwrap();
    // the old store, dropped late, does no harm
    drop(store);
    assert_eq!(anew.node("n").await, Ok(Some(vec![4])));
    anew.write(Batch::new().and(Write::Node { name: "n", bytes: vec![5] })).await.unwrap();
}

#[tokio::test]
async fn a_record_that_is_not_what_was_written_is_told_apart() {
    let disk = Disk::new();
    let store = disk.open().unwrap();
    let log = |at| log_write("g", record(at, 9_000, 9_000));
    store
        .write(Batch::new().and(log(1)).and(log(2)).and(Write::GroupHead(head("g", 3, 1))))
        .await
        .unwrap();
    drop(store);
    let heads = super::keys::group_heads();
    let other = super::keys::group_head(&group("other"));
    disk.tamper(|map| {
        // the last part of the first record is lost
        let parts: Vec<_> = map.keys().filter(|key| key[0] == 0xf0).cloned().collect();
        map.remove(&parts[parts.len() / 2 - 1]).unwrap();
        // two groups whose ids would share a key
        let head = map.range(heads.from.clone()..heads.until.clone()).next().unwrap().1.clone();
        map.insert(other, head);
    });
    let store = disk.open().unwrap();
    let one = Page { items_max: 1, bytes_max: usize::MAX };
    let corrupt = |result: Result<(), StoreError>| {
        assert!(matches!(result, Err(StoreError::Corrupt { .. })), "{result:?}");
    };
    corrupt(store.log(&group("g"), Sequence(1), one).await.map(drop));
    corrupt(store.log(&group("g"), Sequence(1), ALL).await.map(drop));
    // the delivery part is in the parts that are left
    assert_eq!(
        store.feed(&group("g"), Sequence(1), ALL).await,
        Ok(vec![record(1, 9_000, 0).feed, record(2, 9_000, 0).feed])
    );
    assert!(store.log(&group("g"), Sequence(2), one).await.unwrap() == [record(2, 9_000, 9_000)]);
    corrupt(store.group_head(&group("other")).await.map(drop));
    corrupt(store.write(Batch::new().and(Write::GroupHead(head("other", 1, 1)))).await);
    for condition in [
        Condition::GroupUnknown(group("other")),
        Condition::GroupAt { group: group("other"), next_sequence: Sequence(3), revision: 1 },
    ] {
        let batch = Batch::new().when(condition).and(Write::GroupHead(head("other", 1, 1)));
        assert_eq!(store.write(batch).await, Err(StoreError::Conflict { condition: 0 }));
    }
    assert_eq!(store.writable(), Ok(()));
    // what cannot be read can be dropped
    store.write(Batch::new().and(Write::DropGroup(group("g")))).await.unwrap();
    assert_eq!(sequences(&store, "g", 0, ALL).await, [0; 0]);
}

#[tokio::test]
async fn an_encoding_of_the_future_is_refused_with_a_hint() {
    let disk = Disk::new();
    let store = disk.open().unwrap();
    store.write(Batch::new().and(Write::GroupHead(head("g", 3, 1)))).await.unwrap();
    drop(store);
    disk.tamper(|map| {
        let value = map.get_mut(&super::keys::group_head(&group("g"))).unwrap();
        let mut changed = value.to_vec();
        changed[4] = 9;
        *value = changed.into();
    });
    let found = disk.open().unwrap().group_head(&group("g")).await;
    let Err(StoreError::Corrupt { what }) = found else { panic!("{found:?}") };
    assert!(what.contains("encoding 9") && what.contains("newer mimid"), "{what}");
}

#[test]
fn an_unknown_engine_is_refused_with_the_names_of_those_there_are() {
    let config = |engine: &str, folder: &std::path::Path| super::StoreConfig {
        engine: engine.to_owned(),
        folder: folder.to_owned(),
        cache_bytes: 1 << 20,
    };
    let folder = tempfile::tempdir().unwrap();
    let error = super::open(&config("sledd", folder.path())).err().unwrap().to_string();
    assert!(error.contains("sledd") && error.contains("\"sled\"") && error.contains("memory"));
    drop(super::open(&config("memory", folder.path())).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    drop(super::open(&config("sled", &folder.path().join("a/b"))).unwrap());
    assert!(folder.path().join("a/b/mark").exists());
}
