//! The same peers with real groups behind them: whose Welcome is where, repairs, peers without feeds, and peers that are
//! gone for good. Every client is of another provider; what its queue tokens are is that provider's affair.

use super::*;
use crate::{
    client::core::{
        Content, CoreError, Home, Hub, Identity, Member, NewGroup, Operation, SUITES, Settled,
    },
    store::{Page, Write},
    wire::{extensions::KeyPackageClass, ids::ClientUri},
};

#[cfg(test)]
#[path = "peer_way_tests.rs"]
mod ways;

#[cfg(test)]
#[path = "peer_complaint_tests.rs"]
mod complaints;

#[cfg(test)]
#[path = "peer_pool_tests.rs"]
mod pool;

struct Client {
    member: Member,
    uri: ClientUri,
}

impl Client {
    fn new(uri: &str) -> Self {
        let (provider, name) = uri.split_once(':').unwrap();
        let uri = ClientUri::new(format!("mimi://{provider}.example/d/{name}")).unwrap();
        let identity = Identity::generate(uri.clone()).unwrap();
        let member = Member::new(Home::in_memory().unwrap(), identity).unwrap();
        Self { member, uri }
    }

    fn stock_up(&self) {
        let tokens: Vec<QueueToken> =
            (0..4).map(|_| Opaque::new(crypto::random::<64>().to_vec()).unwrap()).collect();
        self.member.store_tokens(KeyPackageClass::Group, false, &tokens).unwrap();
    }

    async fn act(&self, world: &World, group: &GroupId, operation: Operation) -> Sequence {
        let request = self.member.begin(group, operation).unwrap();
        self.drive(world, request).await
    }

    async fn drive(&self, world: &World, request: RequestId) -> Sequence {
        for _ in 0..9 {
            let now = world.clock.now();
            let message = match self.member.outbound(request, now) {
                Ok(outbound) => outbound.message,
                Err(CoreError::NoToken { .. }) => {
                    self.stock_up();
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let answer = world.node.hosted_operation(self.uri.domain(), message).await;
            match self.member.settle(request, &answer, now).unwrap() {
                Settled::Done(accepted) => return accepted.group_sequence,
                Settled::Again { .. } => {}
                Settled::Entered => return Sequence(0),
                Settled::Refused(refusal) => panic!("{refusal}"),
            }
        }
        panic!("not answered");
    }

    async fn create(&self, world: &World) -> GroupId {
        let key = SigningKey::from_seed([3; 32]).unwrap();
        let hub = Hub { domain: domain("a"), external_sender: key.public().clone() };
        let new = NewGroup { name: "test".into(), ..NewGroup::default() };
        let (group, request) = self.member.create_group(&hub, &new, world.clock.now()).unwrap();
        self.drive(world, request).await;
        group
    }

    async fn add(&self, world: &World, group: &GroupId, other: &Self) -> Sequence {
        other.stock_up();
        let class = KeyPackageClass::Group;
        // MLS looks at the machine's clock, which the world's is ahead of by as much as was waited for
        let now = SystemClock.now();
        let made = other.member.key_packages(class, SUITES[0], false, 1, now);
        let key_packages = made.unwrap().into_iter().map(|made| made.as_slice().to_vec()).collect();
        self.act(world, group, Operation::AddUsers { key_packages }).await
    }

    async fn say(&self, world: &World, group: &GroupId, text: &str) -> Sequence {
        self.act(world, group, Operation::Send { content: Content::text(text).encode() }).await
    }
}

/// bob of b has a group that carol of c is added to, with sequence 2 at the earliest.
async fn two(world: &World) -> (Client, Client, GroupId, Sequence) {
    let (bob, carol) = (Client::new("b:bob/phone"), Client::new("c:carol/phone"));
    let group = bob.create(world).await;
    let added = bob.add(world, &group, &carol).await;
    (bob, carol, group, added)
}

/// The items of `group` that `name` has taken.
fn items(world: &World, name: &str, group: &GroupId) -> Vec<DeliveryItem> {
    world.net.with_quietly(name, |peer| {
        let of_group = peer.items.iter().filter(|item| place(item).0 == *group);
        of_group.cloned().collect()
    })
}

async fn until_taken(world: &World, name: &str, group: &GroupId, sequence: Sequence) {
    let there = |peer: &Peer| {
        let places = peer.items.iter().map(place);
        places.into_iter().any(|(of, at)| of == *group && at >= sequence.0)
    };
    world.net.until(name, there).await;
}

fn welcomes(item: &DeliveryItem) -> usize {
    let (DeliveryItem::Feed { roster, .. } | DeliveryItem::Snapshot { roster, .. }) = item else {
        panic!("hubs send no other")
    };
    let with =
        |change: &&RosterChange| matches!(change, RosterChange::Add { welcome: Some(_), .. });
    roster.iter().filter(with).count()
}

#[actix_rt::test]
async fn a_copy_opens_with_its_clients_and_their_welcomes_and_nobody_learns_of_others() {
    let world = World::new(|_| ());
    let (bob, _, group, added) = two(&world).await;
    let said = bob.say(&world, &group, "hello").await;
    for name in ["b", "c"] {
        until_taken(&world, name, &group, said).await;
    }
    let (of_b, of_c) = (items(&world, "b", &group), items(&world, "c", &group));
    assert!(matches!(of_b[0], DeliveryItem::Snapshot { .. }));
    assert_eq!(of_b.iter().map(welcomes).sum::<usize>(), 0);
    assert!(
        matches!(of_c[0], DeliveryItem::Snapshot { next_sequence, .. } if next_sequence == added.next())
    );
    assert_eq!((welcomes(&of_c[0]), of_c.len()), (1, 2));
    let except = |items: &[DeliveryItem]| match items.last() {
        Some(DeliveryItem::Feed { except, .. }) => *except,
        other => panic!("{other:?}"),
    };
    assert!(except(&of_b).is_some(), "its own client gets no copy");
    assert_eq!(except(&of_c), None, "which of another's clients sent it is not c's affair");
}

#[actix_rt::test]
async fn what_a_group_says_while_a_peer_has_no_client_in_it_is_not_sent_there() {
    for reachable in [true, false] {
        let world = World::new(|_| ());
        let (bob, carol, group, added) = two(&world).await;
        until_taken(&world, "c", &group, added).await;
        world.settled("c").await;
        if !reachable {
            world.net.with("c", |peer| peer.mood = Mood::Dead);
        }
        let remove = Operation::RemoveUsers { users: vec![carol.uri.user()] };
        let removed = bob.act(&world, &group, remove).await;
        if reachable {
            until_taken(&world, "c", &group, removed).await;
            world.settled("c").await;
            let replica = world.node.store.replica(&domain("c"), &group).await.unwrap();
            assert_eq!(replica, None, "nothing needs to be known of it any more");
        }
        for text in ["among", "ourselves"] {
            bob.say(&world, &group, text).await;
        }
        let again = bob.add(&world, &group, &Client::new("c:dave/phone")).await;
        let said = bob.say(&world, &group, "welcome").await;
        world.net.with("c", |peer| peer.mood = Mood::Takes);
        while world.net.with_quietly("c", |peer| peer.expects.get(&group) != Some(&said.next().0)) {
            world.advance(500).await;
            tokio::task::yield_now().await;
        }
        let taken = items(&world, "c", &group);
        let places: Vec<u64> = taken.iter().map(|item| place(item).1).collect();
        assert_eq!(places, [added.0, removed.0, again.0, said.0]);
        assert!(matches!(taken[2], DeliveryItem::Snapshot { .. }) && welcomes(&taken[2]) == 1);
    }
}

#[actix_rt::test]
async fn a_peer_that_has_lost_a_copy_gets_a_snapshot() {
    let world = World::new(|_| ());
    let (bob, _, group, added) = two(&world).await;
    until_taken(&world, "c", &group, added).await;
    world.settled("c").await;
    world.net.with("c", |peer| peer.expects.clear());
    let said = bob.say(&world, &group, "one").await;
    world.net.until("c", |peer| peer.expects.get(&group) == Some(&said.next().0)).await;
    let last = items(&world, "c", &group).pop().unwrap();
    assert!(matches!(last, DeliveryItem::Snapshot { .. }) && welcomes(&last) == 0);
    let said = bob.say(&world, &group, "two").await;
    world.net.until("c", |peer| peer.expects.get(&group) == Some(&said.next().0)).await;
    world.until("c", |state| state.failures.get("repair") == Some(&1)).await;
}

#[actix_rt::test]
async fn what_is_set_aside_passes_by_a_snapshot_when_the_operator_says_so() {
    let world = World::new(|_| ());
    let bob = Client::new("b:bob/phone");
    let carol = Client::new("c:carol/phone");
    let group = bob.create(&world).await;
    world.net.with("c", |peer| peer.mood = Mood::Refuses(group.clone(), 2));
    let added = bob.add(&world, &group, &carol).await;
    assert_eq!(added, Sequence(2));
    world.until("c", |state| state.groups_set_aside == 1).await;
    let said = bob.say(&world, &group, "hello").await;
    world.until("c", |state| state.items == 2).await;
    assert!(!world.node.requeue(&domain("c"), &self::group(9)).await, "there is no such group");
    world.net.with("c", |peer| peer.mood = Mood::Takes);
    assert!(world.node.requeue(&domain("c"), &group).await);
    world.net.until("c", |peer| peer.expects.get(&group) == Some(&said.next().0)).await;
    let last = items(&world, "c", &group).pop().unwrap();
    assert!(
        matches!(last, DeliveryItem::Snapshot { next_sequence, .. } if next_sequence == said.next())
    );
    assert_eq!(welcomes(&last), 1, "the Welcome that was never taken is in it");
    world.until("c", |state| state.groups_set_aside == 0 && state.items == 0).await;
}

#[actix_rt::test]
async fn a_log_that_is_trimmed_past_a_peer_is_made_up_for_by_a_snapshot() {
    let world = World::new(|_| ());
    let (bob, _, group, added) = two(&world).await;
    until_taken(&world, "c", &group, added).await;
    world.settled("c").await;
    world.net.with("c", |peer| peer.mood = Mood::Dead);
    for text in ["one", "two", "three"] {
        bob.say(&world, &group, text).await;
    }
    world.until("c", |state| state.items == 3 && state.problem.is_some()).await;
    let mut head = world.node.store.group_head(&group).await.unwrap().unwrap();
    head.first_sequence = added.next().next();
    let trim =
        Write::TrimLog { group: group.clone(), from: Sequence(1), until: head.first_sequence };
    let next = head.next_sequence;
    world.node.store.write(Batch::new().and(trim).and(Write::GroupHead(head))).await.unwrap();
    world.net.with("c", |peer| (peer.mood, peer.items) = (Mood::Takes, Vec::new()));
    world.next_request("c").await;
    while world.net.with_quietly("c", |peer| peer.expects.get(&group) != Some(&next.0)) {
        world.advance(500).await;
        tokio::task::yield_now().await;
    }
    // the first batch may have been read before the trim: it is the same bytes, and was taken whole
    let taken = items(&world, "c", &group);
    let snapshots =
        taken.iter().filter(|item| matches!(item, DeliveryItem::Snapshot { .. })).count();
    assert!(snapshots == 1 || taken.len() == 3, "{taken:?}");
}

#[actix_rt::test]
async fn a_peer_without_feeds_gets_single_messages_until_it_has_them() {
    let world = World::new(|limits| {
        limits.way.probe = Backoff { first_ms: 60_000, max_ms: 60_000 };
        limits.direct.retry = Backoff { first_ms: 100, max_ms: 100 };
    });
    world.net.with("c", |peer| {
        peer.mood = Mood::NoFeeds;
        peer.says = [QueueingServiceResponse::QueueFull].into();
    });
    let (bob, carol, group, _) = two(&world).await;
    for text in ["one", "two", "three"] {
        bob.say(&world, &group, text).await;
    }
    // the clock stands still but for the one pause: when it reaches the next try of feeds, what is on its way is repeated
    world.until("c", |state| state.failures.get("queue_full") == Some(&1)).await;
    world.advance(100).await;
    world.net.until("c", |peer| peer.singles.len() == 4).await;
    let singles = world.net.with("c", |peer| std::mem::take(&mut peer.singles));
    assert!(singles.iter().all(|(token, _)| *token == singles[0].0));
    let messages: Vec<MlsMessage> = singles.into_iter().map(|(_, message)| message).collect();
    let page = Page { items_max: 99, bytes_max: 1 << 20 };
    let feed = world.node.store.feed(&group, Sequence(3), page).await.unwrap();
    let message = |event| match event {
        Ok(QueueEvent::MlsMessage { message }) => Some(message),
        Ok(_) | Err(_) => None,
    };
    let feed: Vec<MlsMessage> =
        feed.iter().filter_map(|entry| message(decode(&entry.event))).collect();
    assert_eq!(messages[1..], feed, "its Welcome, then what follows it, each once");
    world.settled("c").await;
    let replica = world.node.store.replica(&domain("c"), &group).await.unwrap().unwrap();
    assert_eq!(replica.mode, ReplicaMode::Direct);
    // a queue that is gone is reported, and the hub proposes the removal
    world.net.with("c", |peer| {
        peer.says = [QueueingServiceResponse::InvalidClientQueueInformation].into();
    });
    let said = bob.say(&world, &group, "four").await;
    loop {
        let head = world.node.store.group_head(&group).await.unwrap().unwrap();
        if head.next_sequence > said.next() {
            break;
        }
        tokio::task::yield_now().await;
    }
    drop(carol);
    // by now it has feeds: the group changes back with a snapshot
    world.net.with("c", |peer| peer.mood = Mood::Takes);
    world.advance(60_000).await;
    let other = bob.create(&world).await;
    bob.add(&world, &other, &Client::new("c:dave/phone")).await;
    while world.net.with_quietly("c", |peer| peer.items.is_empty()) {
        world.advance(10_000).await;
        tokio::task::yield_now().await;
    }
    let first = world.net.with_quietly("c", |peer| peer.items[0].clone());
    assert!(matches!(first, DeliveryItem::Snapshot { .. }));
    world.until("c", |state| !state.direct).await;
}

#[actix_rt::test]
async fn what_is_said_while_a_group_without_feeds_is_let_go_is_sent_at_once() {
    let world = World::new(|_| ());
    world.net.with("c", |peer| peer.mood = Mood::NoFeeds);
    let (bob, _carol, group, _) = two(&world).await;
    for said in 0..200 {
        // the Welcome, and what was said so far; no sweep looks after what is forgotten
        world.net.until("c", |peer| peer.singles.len() == said + 1).await;
        world.settled("c").await;
        bob.say(&world, &group, "and this").await;
    }
}

#[actix_rt::test]
async fn a_peer_that_serves_nothing_at_all_is_not_taken_for_one_without_feeds() {
    let world = World::new(|_| ());
    world.net.with("c", |peer| peer.mood = Mood::Says(404, None));
    let (bob, _, group, _) = two(&world).await;
    bob.say(&world, &group, "one").await;
    // until it has answered both ways twice, the single request last
    let is_back = |peer: &mut Peer| {
        let is = peer.requests.len() >= 2 && peer.singles_asked == peer.requests.len();
        if is {
            peer.mood = Mood::Takes;
        }
        is
    };
    while !world.net.with("c", is_back) {
        world.advance(500).await;
        tokio::task::yield_now().await;
    }
    while world.net.with_quietly("c", |peer| peer.items.is_empty()) {
        world.advance(500).await;
        tokio::task::yield_now().await;
    }
    assert!(world.net.with_quietly("c", |peer| peer.singles.is_empty()));
}

#[actix_rt::test]
async fn clients_of_a_peer_that_is_gone_for_good_are_proposed_for_removal_once() {
    const DAY_MS: u64 = 24 * 60 * 60 * 1000;
    let world = World::new(|limits| limits.unreachable_after_ms = DAY_MS);
    let (bob, _, group, added) = two(&world).await;
    until_taken(&world, "c", &group, added).await;
    world.settled("c").await;
    world.net.with("c", |peer| peer.mood = Mood::Dead);
    let said = bob.say(&world, &group, "anybody there?").await;
    world.until("c", |state| state.problem.is_some()).await;
    world.advance(DAY_MS - 1_000).await;
    let next =
        || async { world.node.store.group_head(&group).await.unwrap().unwrap().next_sequence };
    assert_eq!(next().await, said.next(), "it may come back");
    while next().await == said.next() {
        world.advance(500).await;
        tokio::task::yield_now().await;
    }
    world.node.settle_group(&group).await;
    let proposed = next().await;
    for _ in 0..20 {
        world.advance(DAY_MS).await;
        tokio::task::yield_now().await;
    }
    world.node.settle_group(&group).await;
    assert_eq!(next().await, proposed);
}
