//! The hash chain of a log: whatever stands in the place of what was written, whole as it may be, the group is set aside until
//! it is put back, nobody gets a wrong answer, and every other group goes on.

use mimid::{
    actors::GroupOptions,
    client::core::{Content, Operation},
    crypto::sha256,
    store::{
        Batch, Page, SharedStore, Write,
        links::Link,
        records::{FeedEntry, GroupHead, LogRecord},
    },
    wire::{
        client::Dequeue,
        codec::List,
        ds::DsError,
        ids::{FeedId, GroupId, RequestId, Sequence},
    },
};

use super::{
    net::Net,
    world::{TestClient, World, clock_of_now},
};

const ALL: Page = Page { items_max: usize::MAX, bytes_max: usize::MAX };

async fn log(store: &SharedStore, group: &GroupId) -> Vec<LogRecord> {
    store.log(group, Sequence(0), ALL).await.unwrap()
}

async fn put(store: &SharedStore, group: &GroupId, records: &[LogRecord]) {
    let mut batch = Batch::new();
    for record in records {
        batch.push(Write::Log { group: group.clone(), record: record.clone() });
    }
    store.write(batch).await.unwrap();
}

/// `record` with what another holds, in its own place.
fn holding(record: &LogRecord, other: &LogRecord) -> LogRecord {
    let FeedEntry { sequence, .. } = record.feed;
    let feed = FeedEntry { sequence, ..other.feed.clone() };
    LogRecord { feed, change: other.change.clone(), follows: record.follows }
}

/// What is done to a log that ends with four messages, `last` of them the newest.
async fn damage(how: &str, store: &SharedStore, group: &GroupId, log: &[LogRecord]) {
    let at = log.len() - 4;
    match how {
        "two messages change places" => {
            let swapped = [holding(&log[at], &log[at + 1]), holding(&log[at + 1], &log[at])];
            put(store, group, &swapped).await;
        }
        "an older message stands for a newer" => {
            put(store, group, &[holding(&log[at + 2], &log[at])]).await;
        }
        "a message of an earlier mimid stands there" => {
            put(store, group, &[LogRecord { follows: None, ..log[at + 2].clone() }]).await;
        }
        "the last is lost" => {
            let from = log[at + 3].feed.sequence;
            let until = from.next();
            let trim = Write::TrimLog { group: group.clone(), from, until };
            store.write(Batch::new().and(trim)).await.unwrap();
        }
        "the log of another life, whole, under the head of this" => {
            // as if the messages had come the other way round then
            let mut last = Some(log[at].follows.unwrap());
            let order = [1, 0, 3, 2].map(|other| holding(&log[at + other], &log[at + other]));
            let mut life = Vec::new();
            for (own, other) in log[at..].iter().zip(order) {
                life.push(Link::append(&mut last, holding(own, &other)));
            }
            put(store, group, &life).await;
        }
        _ => panic!("{how}"),
    }
}

const DAMAGES: [&str; 5] = [
    "two messages change places",
    "an older message stands for a newer",
    "a message of an earlier mimid stands there",
    "the last is lost",
    "the log of another life, whole, under the head of this",
];

/// Says something once; what the provider answers.
async fn try_to_say(
    client: &TestClient,
    world: &World,
    group: &GroupId,
) -> (RequestId, Result<(), DsError>) {
    let operation = Operation::Send { content: Content::text("more").encode() };
    let request = client.member.begin(group, operation).unwrap();
    let outbound = client.member.outbound(request, world.now()).unwrap();
    let response = world.node.group_operation(&client.uri, outbound.message).await;
    (request, response.outcome.into_result().map(drop))
}

/// How much of its group comes out of a client's queue, or why nothing does.
async fn dequeued(client: &TestClient, world: &World) -> Result<usize, DsError> {
    let dequeue = Dequeue { acks: List::default(), max: 100, wait_ms: 0 };
    let answer = world.node.dequeue(&client.uri, dequeue).await?;
    Ok(answer.entries.iter().filter(|entry| entry.feed != FeedId(0)).count())
}

#[actix::test]
async fn what_stands_for_another_record_sets_its_group_aside_until_it_is_put_back() {
    let mut world = World::new();
    let alice = world.client("alice", "phone").await;
    let bob = world.client("bob", "phone").await;
    let carol = world.client("carol", "phone").await;
    let group = alice.create(&world).await;
    alice.add(&world, &group, &bob).await;
    bob.receive(&world).await;
    let other = carol.create(&world).await;
    for text in ["one", "two", "three", "four"] {
        alice.say(&world, &group, text).await;
    }
    let whole = log(&world.store, &group).await;
    for how in DAMAGES {
        damage(how, &world.store, &group, &whole).await;
        world = world.crash();
        assert!(world.store.damaged().is_empty(), "{how}");
        let (request, said) = try_to_say(&alice, &world, &group).await;
        let Err(DsError::Unavailable { detail, .. }) = &said else { panic!("{how}: {said:?}") };
        assert!(detail.as_str().contains("damaged"), "{how}: {detail:?}");
        assert_eq!(world.store.damaged().get("log record"), Some(&1), "{how}");
        // who was not there meanwhile is given nothing in a wrong order, and nothing twice
        if how.contains("message") {
            let found = dequeued(&bob, &world).await;
            assert!(!matches!(found, Ok(1..)), "{how}: {found:?}");
        }
        // nobody else is concerned
        carol.say(&world, &other, how).await;
        put(&world.store, &group, &whole).await;
        world = world.crash();
        alice.drive(&world, request).await.unwrap();
        let now = log(&world.store, &group).await;
        assert_eq!(now[..whole.len()], whole, "{how}");
        let trim = Write::TrimLog {
            group: group.clone(),
            from: now[whole.len()].feed.sequence,
            until: Sequence::END,
        };
        // as it was before that message, with the head of then
        let head = world.head(&group).await;
        let back = GroupHead {
            next_sequence: now[whole.len()].feed.sequence,
            last: now[whole.len()].follows,
            revision: head.revision + 1,
            ..head
        };
        world.store.write(Batch::new().and(trim).and(Write::GroupHead(back))).await.unwrap();
        world = world.crash();
    }
    bob.receive(&world).await;
    assert_eq!(bob.texts(), ["one", "two", "three", "four"]);
    world.end();
}

/// A group of both, four messages in it, and all of that with its guest.
async fn group_with_a_copy(
    (a, alice): (&World, &TestClient),
    (b, bob): (&World, &TestClient),
) -> GroupId {
    let group = alice.create(a).await;
    let key_packages = bob.key_packages_through(b, a, alice).await;
    alice.act(a, &group, Operation::AddUsers { key_packages }).await.unwrap();
    a.replicate(b, &group).await;
    bob.receive(b).await;
    for text in ["one", "two", "three", "four"] {
        alice.say(a, &group, text).await;
    }
    a.replicate(b, &group).await;
    group
}

#[actix::test]
async fn guests_get_nothing_of_a_copy_whose_records_have_changed_places() {
    let (net, clock) = (std::sync::Arc::new(Net::default()), clock_of_now());
    let a = World::in_net("a.example", &net, &clock);
    let b = World::in_net("b.example", &net, &clock);
    let alice = a.client("alice", "phone").await;
    let bob = b.client("bob", "phone").await;
    let group = group_with_a_copy((&a, &alice), (&b, &bob)).await;
    let whole = log(&b.store, &group).await;
    assert!(whole.iter().all(|record| record.follows.is_some()));
    for how in &DAMAGES[..3] {
        damage(how, &b.store, &group, &whole).await;
        let found = dequeued(&bob, &b).await;
        assert!(!matches!(found, Ok(1..)), "{how}: {found:?}");
        assert_eq!(b.store.damaged().keys().copied().collect::<Vec<_>>(), ["log record"]);
        put(&b.store, &group, &whole).await;
    }
    // the copy itself goes on behind what it had
    bob.receive(&b).await;
    alice.say(&a, &group, "five").await;
    a.replicate(&b, &group).await;
    bob.receive(&b).await;
    assert_eq!(bob.texts(), ["one", "two", "three", "four", "five"]);
    log(&b.store, &group).await;
    a.end();
    b.end();
}

#[actix::test]
async fn a_sweep_passes_over_a_damaged_copy_and_does_what_the_others_need() {
    let (net, clock) = (std::sync::Arc::new(Net::default()), clock_of_now());
    let a = World::in_net("a.example", &net, &clock);
    let b = World::in_net("b.example", &net, &clock);
    let alice = a.client("alice", "phone").await;
    let bob = b.client("bob", "phone").await;
    let mut groups = Vec::new();
    for _ in 0..2 {
        groups.push(group_with_a_copy((&a, &alice), (&b, &bob)).await);
    }
    // the one that the sweep comes to first
    groups.sort_by_key(|group| sha256(group.as_bytes()));
    let [damaged, other] = groups.as_slice() else { panic!("{groups:?}") };
    let whole = log(&b.store, damaged).await;
    damage(DAMAGES[0], &b.store, damaged, &whole).await;
    // all of both is old
    let options = GroupOptions::new(b.domain.clone());
    clock.advance_ms(options.retention_ms + 1);
    assert_eq!(b.node.sweep_groups().await, Ok(1));
    let cut = |head: &GroupHead| head.first_sequence == head.next_sequence;
    assert!(cut(&b.head(other).await));
    assert!(!cut(&b.head(damaged).await));
    // and comes to it when it is whole again
    put(&b.store, damaged, &whole).await;
    assert_eq!(b.node.sweep_groups().await, Ok(1));
    assert!(cut(&b.head(damaged).await));
    a.end();
    b.end();
}
