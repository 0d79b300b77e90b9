//! The way between feeds and single requests with real groups: what clients of a peer get whatever it answers, and what
//! is kept and shown of groups that wait.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// What clients of a peer got of a group: by feed, as a guest provider reads it (PROTOCOL.md §3), and one by one.
#[derive(Debug, Default)]
struct Got {
    expects: Option<u64>,
    members: BTreeSet<RecipientId>,
    messages: BTreeMap<RecipientId, BTreeSet<u64>>,
    welcomes: BTreeSet<RecipientId>,
    gaps: u64,
}

impl Got {
    fn item(&mut self, item: &DeliveryItem) {
        match item {
            DeliveryItem::Snapshot { next_sequence: Sequence(next), roster, .. } => {
                if self.expects.is_some_and(|expects| *next < expects) {
                    return;
                }
                if self.expects.is_none() && roster.is_empty() {
                    return;
                }
                if let Some(expects) = self.expects.filter(|expects| expects < next)
                    && !self.members.is_empty()
                {
                    // who was here is told that something is missing; who comes reads from there, too
                    self.gaps += 1;
                    for change in roster.iter() {
                        self.give(recipient_of(change), expects..*next);
                    }
                    for member in self.members.clone() {
                        self.give(member, expects..*next);
                    }
                }
                self.expects = Some(*next);
                self.members = roster.iter().map(recipient_of).collect();
                self.welcome(roster);
            }
            DeliveryItem::Feed { group_sequence: Sequence(at), roster, .. } => {
                if self.expects != Some(*at) {
                    // it is there already, or the peer has refused it
                    return;
                }
                self.expects = Some(at + 1);
                for member in self.members.clone() {
                    self.give(member, *at..at + 1);
                }
                for change in roster.iter() {
                    let one = recipient_of(change);
                    let fits = match change {
                        RosterChange::Add { .. } => self.members.insert(one),
                        RosterChange::Remove { .. } => self.members.remove(&one),
                        RosterChange::Update { .. } => self.members.contains(&one),
                    };
                    assert!(fits, "{change:?} contradicts {:?} at {at}", self.members);
                }
                self.welcome(roster);
            }
            DeliveryItem::Direct { .. } => panic!("hubs send no such item"),
        }
    }

    fn welcome(&mut self, roster: &[RosterChange]) {
        for change in roster {
            if let RosterChange::Add { recipient, welcome: Some(_), .. } = change {
                self.welcomes.insert(*recipient);
            }
        }
    }

    fn give(&mut self, to: RecipientId, sequences: std::ops::Range<u64>) {
        self.messages.entry(to).or_default().extend(sequences);
    }
}

/// Everything that the group has said, with what c's clients were told of its own roster: who came behind which
/// sequence, by token.
struct Said {
    messages: Vec<(u64, MlsMessage)>,
    clients: BTreeMap<RecipientId, (u64, QueueToken)>,
}

impl World {
    async fn said(
        &self,
        group: &GroupId,
        clients: BTreeMap<RecipientId, (u64, QueueToken)>,
    ) -> Said {
        let page = Page { items_max: 999, bytes_max: 1 << 24 };
        let feed = self.node.store.feed(group, Sequence(1), page).await.unwrap();
        let message = |entry: &FeedEntry| match decode(&entry.event) {
            Ok(QueueEvent::MlsMessage { message }) => Some((entry.sequence.0, message)),
            Ok(_) | Err(_) => None,
        };
        Said { messages: feed.iter().filter_map(message).collect(), clients }
    }

    /// Who c's clients are that came last, behind `added`.
    async fn came(
        &self,
        group: &GroupId,
        added: Sequence,
        clients: &mut BTreeMap<RecipientId, (u64, QueueToken)>,
    ) {
        let roster = self.node.group_roster_for(group, &domain("c")).await.unwrap().unwrap();
        for change in roster.adds {
            if let RosterChange::Add { recipient, client_queue_information: token, .. } = change {
                clients.entry(recipient).or_insert((added.0, token));
            }
        }
    }

    /// Time goes on until c is owed nothing, not even a copy of what its clients have.
    async fn all_is_well(&self) {
        self.net.with("c", |peer| peer.mood = Mood::Takes);
        while !self.node.store.outbound(&domain("c"), None, 1).await.unwrap().is_empty() {
            self.advance(30_000).await;
            tokio::task::yield_now().await;
        }
    }

    fn all_got(&self, group: &GroupId, said: &Said) -> Got {
        let mut got = Got::default();
        for item in items(self, "c", group) {
            got.item(&item);
        }
        let singles = self.net.with_quietly("c", |peer| peer.singles.clone());
        for (token, message) in singles {
            let of = said.clients.iter().find(|(_, (_, its))| *its == token);
            let recipient = *of.unwrap().0;
            let at = said.messages.iter().find(|(_, known)| *known == message);
            match at {
                Some((at, _)) => got.give(recipient, *at..at + 1),
                None => {
                    got.welcomes.insert(recipient);
                }
            }
        }
        got
    }
}

/// Every client of c got its Welcome and everything behind it, or was told that something is missing.
fn nothing_is_lost(said: &Said, got: &Got, what: &str) {
    for (recipient, (added, _)) in &said.clients {
        assert!(got.welcomes.contains(recipient), "{what}: {recipient:?} has no Welcome");
        let behind = said.messages.iter().map(|(at, _)| *at).filter(|at| at > added);
        let its = got.messages.get(recipient);
        for at in behind {
            let there = its.is_some_and(|its| its.contains(&at));
            assert!(there, "{what}: {recipient:?}, who came with {added}, lacks {at}: {got:?}");
        }
    }
}

fn quick(limits: &mut PeerLimits) {
    limits.direct.retry = Backoff { first_ms: 100, max_ms: 100 };
    limits.way.probe = Backoff { first_ms: 60_000, max_ms: 600_000 };
}

#[actix_rt::test]
async fn one_404_from_a_peer_that_takes_feeds_is_a_failure_like_others() {
    for restarts in [false, true] {
        let mut world = World::new(quick);
        let (bob, _, group, added) = two(&world).await;
        until_taken(&world, "c", &group, added).await;
        world.settled("c").await;
        if restarts {
            // the store knows that it has taken a feed
            world.restart().await;
        }
        world.net.with("c", |peer| peer.mood = Mood::NoFeeds);
        let said = bob.say(&world, &group, "during the deploy").await;
        world.until("c", |state| state.failures.get("status") >= Some(&1)).await;
        world.net.with("c", |peer| peer.mood = Mood::Takes);
        world.next_request("c").await;
        until_taken(&world, "c", &group, said).await;
        world
            .until("c", |state| !state.direct && state.items == 0 && state.problem.is_none())
            .await;
        assert!(world.net.with_quietly("c", |peer| peer.singles.is_empty()));
        let snapshots = items(&world, "c", &group);
        let snapshots = snapshots.iter().filter(|it| matches!(it, DeliveryItem::Snapshot { .. }));
        assert_eq!(snapshots.count(), 1, "the one that opened it");
    }
}

#[actix_rt::test]
async fn a_peer_that_has_lost_its_feeds_gets_single_requests_and_then_the_feed_where_its_copy_stands()
 {
    for restarts in [false, true] {
        let mut world = World::new(quick);
        let (bob, _, group, added) = two(&world).await;
        let mut clients = BTreeMap::new();
        world.came(&group, added, &mut clients).await;
        until_taken(&world, "c", &group, added).await;
        world.settled("c").await;
        world.net.with("c", |peer| peer.mood = Mood::NoFeeds);
        for text in ["one", "two"] {
            bob.say(&world, &group, text).await;
        }
        while world.net.with_quietly("c", |peer| peer.singles.len()) < 2 {
            world.advance(10_000).await;
            tokio::task::yield_now().await;
        }
        let added = bob.add(&world, &group, &Client::new("c:dave/phone")).await;
        world.came(&group, added, &mut clients).await;
        bob.say(&world, &group, "three").await;
        while world.net.with_quietly("c", |peer| peer.singles.len()) < 6 {
            world.advance(10_000).await;
            tokio::task::yield_now().await;
        }
        assert!(world.state("c").unwrap().direct);
        let replica = || world.node.store.replica(&domain("c"), &group);
        while replica().await.unwrap().unwrap().mode != ReplicaMode::Direct {
            tokio::task::yield_now().await;
        }
        if restarts {
            world.restart().await;
        }
        world.all_is_well().await;
        world.until("c", |state| !state.direct && state.items == 0).await;
        let said = world.said(&group, clients).await;
        let got = world.all_got(&group, &said);
        nothing_is_lost(&said, &got, "back to feeds");
        assert_eq!(got.gaps, 0, "nobody has to enter the group anew");
        let last = said.messages.last().unwrap().0;
        assert_eq!(got.expects, Some(last + 1));
        let replica = world.node.store.replica(&domain("c"), &group).await.unwrap().unwrap();
        assert_eq!((replica.mode, replica.acknowledged.0), (ReplicaMode::Feed, last));
    }
}

#[actix_rt::test]
async fn a_peer_that_gets_feeds_at_last_has_its_copy_opened_behind_its_slowest_client() {
    let world = World::new(quick);
    world.net.with("c", |peer| peer.mood = Mood::NoFeeds);
    let (bob, _, group, added) = two(&world).await;
    let mut clients = BTreeMap::new();
    world.came(&group, added, &mut clients).await;
    bob.say(&world, &group, "one").await;
    while world.net.with_quietly("c", |peer| peer.singles.len()) < 2 {
        world.advance(100).await;
        tokio::task::yield_now().await;
    }
    let added = bob.add(&world, &group, &Client::new("c:dave/phone")).await;
    world.came(&group, added, &mut clients).await;
    let (_, slow) = clients.values().next().unwrap().clone();
    // whoever is first has a full queue from now on
    world.net.with("c", |peer| peer.full = Some(slow));
    for text in ["two", "three", "four"] {
        bob.say(&world, &group, text).await;
    }
    while world.net.with_quietly("c", |peer| peer.singles.len()) < 6 {
        world.advance(100).await;
        tokio::task::yield_now().await;
    }
    let remove = Operation::RemoveUsers { users: vec![Client::new("c:dave/phone").uri.user()] };
    bob.act(&world, &group, remove).await;
    world.all_is_well().await;
    let said = world.said(&group, clients).await;
    let got = world.all_got(&group, &said);
    let slow = said.clients.keys().next().unwrap();
    for (at, _) in said.messages.iter().filter(|(at, _)| *at > said.clients[slow].0) {
        assert!(got.messages[slow].contains(at), "{slow:?} lacks {at}: {got:?}");
    }
    assert_eq!(got.gaps, 0);
    assert_eq!(got.members.len(), 1);
}

struct BySingles {
    bob: Client,
    group: GroupId,
    clients: BTreeMap<RecipientId, (u64, QueueToken)>,
    last: Sequence,
}

/// c takes no feeds, and carol there has everything, up to `last`. It is time to try feeds, as soon as there is something.
async fn by_singles(world: &World) -> BySingles {
    world.net.with("c", |peer| peer.mood = Mood::NoFeeds);
    let (bob, _, group, added) = two(world).await;
    let mut clients = BTreeMap::new();
    world.came(&group, added, &mut clients).await;
    let last = bob.say(world, &group, "one").await;
    until_written(world, &group, last).await;
    world.clock.advance_ms(60_000);
    BySingles { bob, group, clients, last }
}

async fn until_written(world: &World, group: &GroupId, sequence: Sequence) {
    let there = |replica: Option<Replica>| {
        replica.is_some_and(|it| it.mode == ReplicaMode::Direct && it.acknowledged >= sequence)
    };
    while !there(world.node.store.replica(&domain("c"), group).await.unwrap()) {
        world.advance(100).await;
        tokio::task::yield_now().await;
    }
}

#[actix_rt::test]
async fn a_proxy_that_calls_single_messages_bad_for_a_while_loses_none() {
    let world = World::new(|limits| {
        quick(limits);
        limits.way.probe = Backoff { first_ms: 86_400_000, max_ms: 86_400_000 };
    });
    let BySingles { bob, group, clients, .. } = by_singles(&world).await;
    let asked = world.net.with("c", |peer| {
        peer.mood = Mood::Says(400, None);
        peer.singles_asked
    });
    bob.say(&world, &group, "two").await;
    while world.net.with_quietly("c", |peer| peer.singles_asked) == asked {
        world.advance(500).await;
        tokio::task::yield_now().await;
    }
    world.net.with("c", |peer| peer.mood = Mood::NoFeeds);
    let last = bob.say(&world, &group, "three").await;
    until_written(&world, &group, last).await;
    let said = world.said(&group, clients).await;
    nothing_is_lost(&said, &world.all_got(&group, &said), "it called them bad");
}

#[actix_rt::test]
async fn a_group_that_feeds_are_tried_with_goes_one_way_at_a_time() {
    for is_given_up in [true, false] {
        let world = World::new(|limits| {
            quick(limits);
            limits.way.probe = Backoff { first_ms: 60_000, max_ms: 60_000 };
        });
        let BySingles { bob, group, mut clients, .. } = by_singles(&world).await;
        let before = world.net.with("c", |peer| {
            peer.mood = Mood::LosesAnswers;
            peer.singles.len()
        });
        bob.say(&world, &group, "two").await;
        // the copy is opened there, and nobody here knows
        while items(&world, "c", &group).is_empty() {
            world.advance(100).await;
            tokio::task::yield_now().await;
        }
        let added = bob.add(&world, &group, &Client::new("c:dave/phone")).await;
        world.came(&group, added, &mut clients).await;
        let mut last = bob.say(&world, &group, "three").await;
        if is_given_up {
            until_written(&world, &group, last).await;
            world.clock.advance_ms(60_000);
            world.net.with("c", |peer| peer.mood = Mood::Takes);
            last = bob.say(&world, &group, "four").await;
        }
        world.all_is_well().await;
        world.until("c", |state| !state.direct && state.items == 0).await;
        let said = world.said(&group, clients).await;
        let got = world.all_got(&group, &said);
        nothing_is_lost(&said, &got, "an answer was lost");
        assert_eq!((got.expects, got.members.len()), (Some(last.0 + 1), 2), "{got:?}");
        let singles = world.net.with_quietly("c", |peer| peer.singles.len());
        assert_eq!(singles > before, is_given_up);
        assert!(is_given_up || got.gaps == 0, "{got:?}");
    }
}

#[actix_rt::test]
async fn a_group_that_feeds_are_tried_with_in_vain_goes_on_by_single_requests() {
    let world = World::new(|limits| {
        quick(limits);
        limits.way.probe = Backoff { first_ms: 60_000, max_ms: 60_000 };
    });
    let BySingles { bob, group, clients, last } = by_singles(&world).await;
    let before = world.net.with("c", |peer| {
        // the one that opens the copy
        peer.mood = Mood::ChokesOn(group.clone(), last.0);
        peer.singles.len()
    });
    let asked = world.requests("c");
    bob.say(&world, &group, "two").await;
    while world.net.with_quietly("c", |peer| peer.singles.len()) == before {
        world.advance(100).await;
        tokio::task::yield_now().await;
    }
    assert!(world.requests("c") > asked && world.state("c").unwrap().direct);
    // with what comes next it is tried again
    world.net.with("c", |peer| peer.mood = Mood::Takes);
    world.clock.advance_ms(60_000);
    bob.say(&world, &group, "three").await;
    world.all_is_well().await;
    world.until("c", |state| !state.direct && state.items == 0).await;
    let said = world.said(&group, clients).await;
    let got = world.all_got(&group, &said);
    nothing_is_lost(&said, &got, "a probe was refused");
    assert_eq!(got.gaps, 0);
}

/// Peers that say 404, lose answers, die, and come back, hubs that are killed, clients whose queues are full, groups
/// that go on: a fixed number of such lives, each with a seed of its own.
#[actix_rt::test]
async fn whatever_a_peer_answers_its_clients_get_everything_or_are_told_of_a_gap() {
    for seed in 0..LIVES {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
        let mut pick = move |of: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % of
        };
        let mut world = World::new(|limits| {
            quick(limits);
            limits.outbox.batch_items_max = 2;
            limits.way.not_found_max = 2;
            limits.way.not_found_ms = 2_000;
            limits.way.probe = Backoff { first_ms: 1_000, max_ms: 20_000 };
        });
        if pick(2) == 0 {
            // it never took a feed when this begins
            world.net.with("c", |peer| peer.mood = Mood::NoFeeds);
        }
        let (bob, _, group, added) = two(&world).await;
        let mut clients = BTreeMap::new();
        world.came(&group, added, &mut clients).await;
        let mut names = 0;
        for _ in 0..STEPS {
            match pick(12) {
                0 if names < 3 => {
                    names += 1;
                    let other = Client::new(&format!("c:dave{names}/phone"));
                    let added = bob.add(&world, &group, &other).await;
                    world.came(&group, added, &mut clients).await;
                }
                0..=2 => {
                    bob.say(&world, &group, "and so on").await;
                }
                3 | 4 => world.net.with("c", |peer| peer.mood = Mood::NoFeeds),
                5 => world.net.with("c", |peer| peer.mood = Mood::Says(404, None)),
                6 => world.net.with("c", |peer| peer.mood = Mood::LosesAnswers),
                7 => world.net.with("c", |peer| peer.mood = Mood::Dead),
                8 => world
                    .net
                    .with("c", |peer| peer.says.push_back(QueueingServiceResponse::QueueFull)),
                9 if pick(2) == 0 => world.restart().await,
                _ => world.net.with("c", |peer| peer.mood = Mood::Takes),
            }
            for _ in 0..pick(8) {
                world.advance(700).await;
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
            }
        }
        world.all_is_well().await;
        let said = world.said(&group, clients).await;
        let got = world.all_got(&group, &said);
        nothing_is_lost(&said, &got, &format!("life {seed}"));
    }
}

const LIVES: u64 = 32;
const STEPS: usize = 30;

#[actix_rt::test]
async fn a_peer_that_was_away_while_a_group_was_deleted_and_forgotten_learns_of_its_end() {
    let world = World::new(|_| ());
    let (bob, _, group, added) = two(&world).await;
    until_taken(&world, "c", &group, added).await;
    world.settled("c").await;
    world.net.with("c", |peer| peer.mood = Mood::Dead);
    bob.act(&world, &group, Operation::DeleteGroup).await;
    world.until("c", |state| state.problem.is_some()).await;
    let head = || async { world.node.store.group_head(&group).await.unwrap().unwrap() };
    while head().await.log_bytes > 0 {
        world.clock.advance_ms(24 * 60 * 60 * 1000);
        world.node.sweep_groups().await.unwrap();
    }
    let next = head().await.next_sequence;
    // a batch that was read before is sent as it is: the next process has none
    let mut world = world;
    world.net.with("c", |peer| (peer.mood, peer.items) = (Mood::Takes, Vec::new()));
    world.restart().await;
    while items(&world, "c", &group).is_empty() {
        world.advance(1_000).await;
        tokio::task::yield_now().await;
    }
    let last = items(&world, "c", &group).pop().unwrap();
    let DeliveryItem::Snapshot { next_sequence, roster, .. } = &last else { panic!("{last:?}") };
    assert_eq!((*next_sequence, roster.len()), (next, 0));
    world.settled("c").await;
    let replica = world.node.store.replica(&domain("c"), &group).await.unwrap();
    assert_eq!(replica, None, "nothing needs to be known of it any more");
    let rows = world.node.store.outbound_roster(&domain("c"), &group, Sequence(0), ALL).await;
    assert_eq!(rows, Ok(vec![]));
}

const ALL: Page = Page { items_max: 999, bytes_max: 1 << 24 };

#[actix_rt::test]
async fn rows_of_a_group_whose_log_is_gone_are_bounded_and_the_welcomes_are_kept() {
    for is_open in [true, false] {
        let world = World::new(|_| ());
        if !is_open {
            world.net.with("c", |peer| peer.mood = Mood::Dead);
        }
        let (bob, _, group, added) = two(&world).await;
        if is_open {
            until_taken(&world, "c", &group, added).await;
            world.settled("c").await;
            world.net.with("c", |peer| peer.mood = Mood::Dead);
        }
        let mut gone = 0;
        for round in 0..4 {
            let dave = Client::new(&format!("c:dave{round}/phone"));
            bob.add(&world, &group, &dave).await;
            if round < 2 {
                let remove = Operation::RemoveUsers { users: vec![dave.uri.user()] };
                gone = bob.act(&world, &group, remove).await.0;
            }
        }
        let said = bob.say(&world, &group, "hello").await;
        let rows = || async {
            let store = &world.node.store;
            let rows = store.outbound_roster(&domain("c"), &group, Sequence(0), ALL).await.unwrap();
            rows.into_iter().map(|row| (row.sequence.0, row.opens)).collect::<Vec<_>>()
        };
        // nothing that was read before is kept to be sent again
        while world.state("c").is_none_or(|state| state.circuit != CircuitState::Open) {
            world.advance(500).await;
            tokio::task::yield_now().await;
        }
        let before = rows().await;
        assert_eq!(rows().await, before, "the log is there");
        // all but the last two adds and the message are gone
        let mut head = world.node.store.group_head(&group).await.unwrap().unwrap();
        head.first_sequence = Sequence(gone + 2);
        let (from, until) = (Sequence(1), head.first_sequence);
        let trim = Write::TrimLog { group: group.clone(), from, until };
        world.node.store.write(Batch::new().and(trim).and(Write::GroupHead(head))).await.unwrap();
        world.advance(1).await;
        let after = rows().await;
        let first = if is_open { (gone + 1, false) } else { (added.0, true) };
        assert_eq!(after, [first, (gone + 2, false)]);
        world.advance(1).await;
        assert_eq!(rows().await, after);
        world.net.with("c", |peer| (peer.mood, peer.items) = (Mood::Takes, Vec::new()));
        while world.net.with_quietly("c", |peer| peer.expects.get(&group) != Some(&said.next().0)) {
            world.advance(500).await;
            tokio::task::yield_now().await;
        }
        let taken = items(&world, "c", &group);
        let places: Vec<u64> = taken.iter().map(|item| place(item).1).collect();
        // where it was never opened it is, and then told that something is missing
        assert_eq!(places, if is_open { vec![said.0] } else { vec![added.0, said.0] });
        assert!(taken.iter().all(|item| matches!(item, DeliveryItem::Snapshot { .. })));
        assert_eq!(welcomes(&taken[0]), 2, "of those that have not got theirs");
        world.settled("c").await;
        assert_eq!(rows_of(&world, &group).await, 0);
    }
}

async fn rows_of(world: &World, group: &GroupId) -> usize {
    let store = &world.node.store;
    store.outbound_roster(&domain("c"), group, Sequence(0), ALL).await.unwrap().len()
}
