//! How many groups come and go: what is worked on at once, what may be here, and what operators are told. PROTOCOL.md §6.

use std::sync::Arc;

use mimid::{
    actors::{Limits, Node},
    client::core::{Event, GroupState, NewProposal, Operation, PolicyChange},
    wire::{ds::DsError, extensions::Role, federation::EventType, ids::GroupId},
};

use super::{
    net::{Door, Fate, Net},
    portability::{
        Two, comes_true, is_in, migrate, promise, provider_with, until, until_none_departs, view,
    },
    world::{TestClient, World, clock_of_now},
};

/// a.example, with bounds of its own, and two targets; alice of a.example has groups there.
struct Three {
    net: Arc<Net>,
    a: World,
    b: World,
    c: World,
    alice: TestClient,
}

impl Three {
    async fn with(change: impl FnOnce(&mut Limits)) -> Self {
        let (net, clock) = (Arc::new(Net::default()), clock_of_now());
        let a = provider_with("a.example", &net, &clock, |limits, _| change(limits));
        let b = provider_with("b.example", &net, &clock, |_, _| ());
        let c = provider_with("c.example", &net, &clock, |_, _| ());
        let alice = a.client("alice", "phone").await;
        Self { net, a, b, c, alice }
    }

    /// What is sent of groups to c.example waits for the door.
    fn close_c(&self) -> Door {
        let (door, c) = (Door::default(), self.c.domain.clone());
        let behind = door.clone();
        self.net.carry(move |letter| match letter.event {
            EventType::MigrationContent if letter.to == c => Fate::Behind(behind.clone()),
            _ => Fate::Arrives,
        });
        door
    }

    /// A new group of alice's that is on its way to `to`, or there: where nothing stops it that may be over between two looks.
    async fn leaves_for(&self, to: &World) -> GroupId {
        let group = self.alice.create(&self.a).await;
        let response = promise(&self.a, &self.alice, &group, &to.domain).await.unwrap();
        let request = self.alice.member.begin(&group, migrate(&response)).unwrap();
        let message = self.alice.member.outbound(request, self.a.now()).unwrap().message;
        let (node, uri) = (self.a.node.clone(), self.alice.uri.clone());
        actix_rt::spawn(async move { node.group_operation(&uri, message).await });
        let is_away =
            async || is_leaving(&self.a.node, &group, "").await || hosts(to, &group).await;
        comes_true("it is on its way", is_away).await;
        group
    }

    fn end(self) {
        self.a.end();
        self.b.end();
        self.c.end();
    }
}

/// Whether the group is on its way, and stands there (`""`: wherever).
async fn is_leaving(node: &Node, group: &GroupId, state: &str) -> bool {
    let departures = node.departures().await.unwrap();
    let group = group.to_string();
    departures.iter().any(|it| it.group == group && (state.is_empty() || it.state == state))
}

async fn hosts(world: &World, group: &GroupId) -> bool {
    use mimid::store::records::GroupStatus;
    let head = world.store.group_head(group).await.unwrap();
    head.is_some_and(|head| head.status == GroupStatus::Active)
}

fn gauge(node: &Node, name: &str, state: &str) -> i64 {
    let families = node.metrics().registry.gather();
    let family = families.iter().find(|family| family.name() == name).unwrap();
    let is_it = |metric: &&prometheus::proto::Metric| {
        metric.get_label().iter().all(|label| label.value() == state)
    };
    let metric = family.get_metric().iter().find(is_it).unwrap();
    metric.get_gauge().get_value() as i64
}

fn not_authorized(refused: Result<impl std::fmt::Debug, DsError>) -> String {
    match refused.unwrap_err() {
        DsError::NotAuthorized { detail } => detail.to_string(),
        other => panic!("{other:?}"),
    }
}

#[actix::test]
async fn group_that_waits_for_its_turn_to_leave_is_not_given_up_for_that() {
    let three = Three::with(|limits| limits.moves.departures_max = 1).await;
    let (door, node) = (three.close_c(), &three.a.node);
    let first = three.leaves_for(&three.c).await;
    comes_true("the first is sent", async || is_leaving(node, &first, "sent").await).await;
    let second = three.leaves_for(&three.b).await;
    let of_them = |state| gauge(node, "mimid_migrations_leaving", state);
    // what is written down is driven a moment later
    let stand = || (of_them("sent"), of_them("frozen"), of_them("confirming"));
    comes_true("one is sent, one waits", async || stand() == (1, 1, 0)).await;
    // it counts as waiting before anybody has looked at it
    let oldest_s = || gauge(node, "mimid_migrations_leaving_oldest_seconds", "frozen");
    three.a.clock.advance_ms(1_000);
    comes_true("it was looked at", async || oldest_s() == 1).await;
    // longer than a target may be out of reach
    let wait_ms = 2 * Limits::default().moves.freeze_ms;
    three.a.clock.advance_ms(wait_ms);
    assert_eq!(oldest_s(), 1 + i64::try_from(wait_ms / 1000).unwrap());
    assert!(is_leaving(node, &second, "frozen").await);
    door.open();
    until_none_departs(node).await;
    assert_eq!((hosts(&three.c, &first).await, hosts(&three.a, &first).await), (true, false));
    assert_eq!((hosts(&three.b, &second).await, hosts(&three.a, &second).await), (true, false));
    assert_eq!(oldest_s(), 0);
    three.end();
}

#[actix::test]
async fn operator_ends_the_move_of_a_group_that_waits_for_its_turn() {
    let three = Three::with(|limits| limits.moves.departures_max = 1).await;
    let (door, node) = (three.close_c(), &three.a.node);
    let first = three.leaves_for(&three.c).await;
    comes_true("the first is sent", async || is_leaving(node, &first, "sent").await).await;
    let second = three.leaves_for(&three.b).await;
    let ends = async || node.abort_departure(&second).await.unwrap();
    comes_true("it is ended", ends).await;
    comes_true("it stays", async || hosts(&three.a, &second).await).await;
    assert!(is_leaving(node, &first, "sent").await);
    door.open();
    until_none_departs(node).await;
    assert!(!hosts(&three.b, &second).await);
    three.end();
}

#[actix::test]
async fn target_that_does_not_answer_leaves_turns_for_groups_that_go_elsewhere() {
    let three = Three::with(|limits| limits.moves.departures_max = 4).await;
    let (door, node) = (three.close_c(), &three.a.node);
    let mut to_c = Vec::new();
    for _ in 0..5 {
        to_c.push(three.leaves_for(&three.c).await);
    }
    let sent = async || {
        let mut sent = 0;
        for group in &to_c {
            sent += usize::from(is_leaving(node, group, "sent").await);
        }
        sent
    };
    comes_true("one of them is sent", async || sent().await == 1).await;
    let to_b = three.leaves_for(&three.b).await;
    comes_true("it is there", async || hosts(&three.b, &to_b).await).await;
    assert_eq!(sent().await, 1);
    door.open();
    until_none_departs(node).await;
    for group in &to_c {
        assert!(hosts(&three.c, group).await);
    }
    three.end();
}

#[actix::test]
async fn group_that_comes_home_needs_no_place_among_those_from_elsewhere() {
    let Three { net, a, b, c, alice } = Three::with(|limits| limits.moves.groups_max = 0).await;
    let group = alice.create(&a).await;
    let there = promise(&a, &alice, &group, &b.domain).await.unwrap();
    alice.act(&a, &group, migrate(&there)).await.unwrap();
    until_none_departs(&a.node).await;
    until(&alice, &a, |alice| view(alice, &group).hub == b.domain).await;
    let home = promise(&a, &alice, &group, &a.domain).await.unwrap();
    alice.act(&a, &group, migrate(&home)).await.unwrap();
    until_none_departs(&b.node).await;
    assert!(hosts(&a, &group).await);
    // another's does
    let bob = b.client("bob", "phone").await;
    let other = bob.create(&b).await;
    let is_full = "this provider takes no more groups from elsewhere now";
    assert_eq!(not_authorized(promise(&b, &bob, &other, &a.domain).await), is_full);
    Three { net, a, b, c, alice }.end();
}

#[actix::test]
async fn groups_that_have_left_or_were_deleted_make_room_for_others_before_any_sweep() {
    let Two { net, clock, a, mut b, group, alice, bob } =
        Two::with(|limits, _| limits.moves.groups_max = 1).await;
    let second = alice.create(&a).await;
    let third = alice.create(&a).await;
    let response = promise(&a, &alice, &group, &b.domain).await.unwrap();
    alice.act(&a, &group, migrate(&response)).await.unwrap();
    until_none_departs(&a.node).await;
    let is_full = "this provider takes no more groups from elsewhere now";
    assert_eq!(not_authorized(promise(&a, &alice, &second, &b.domain).await), is_full);
    // whatever process it is
    b = b.crash();
    assert_eq!(not_authorized(promise(&a, &alice, &second, &b.domain).await), is_full);
    // one leaves
    until(&alice, &a, |alice| view(alice, &group).hub == b.domain).await;
    let home = promise(&a, &alice, &group, &a.domain).await.unwrap();
    alice.act(&a, &group, migrate(&home)).await.unwrap();
    until_none_departs(&b.node).await;
    let response = promise(&a, &alice, &second, &b.domain).await.unwrap();
    alice.act(&a, &second, migrate(&response)).await.unwrap();
    until_none_departs(&a.node).await;
    assert_eq!(not_authorized(promise(&a, &alice, &third, &b.domain).await), is_full);
    // one is deleted
    until(&alice, &a, |alice| view(alice, &second).hub == b.domain).await;
    alice.act(&a, &second, Operation::DeleteGroup).await.unwrap();
    promise(&a, &alice, &third, &b.domain).await.unwrap();
    b = b.crash();
    let response = promise(&a, &alice, &third, &b.domain).await.unwrap();
    alice.act(&a, &third, migrate(&response)).await.unwrap();
    until_none_departs(&a.node).await;
    // a sweep finds the same, deleted groups and those that went home not among them, neither here nor there
    assert_eq!(b.node.sweep_moves().await.unwrap(), 1);
    assert_eq!(a.node.sweep_moves().await.unwrap(), 0);
    Two { net, clock, a, b, group, alice, bob }.end();
}

#[actix::test]
async fn one_source_brings_no_more_groups_than_its_share() {
    let two = Two::with(|limits, _| limits.moves.groups_per_source_max = 1).await;
    let second = two.alice.create(&two.a).await;
    // agreed to while there was room
    let early = promise(&two.a, &two.alice, &second, &two.b.domain).await.unwrap();
    two.migrate(&two.b).await.unwrap();
    until_none_departs(&two.a.node).await;
    let refused = promise(&two.a, &two.alice, &second, &two.b.domain).await;
    let told = "this provider has as many groups from a.example as it takes";
    assert_eq!(not_authorized(refused), told);
    let answer = two.alice.act(&two.a, &second, migrate(&early)).await.unwrap_err();
    assert!(answer.contains(told), "{answer}");
    assert!(hosts(&two.a, &second).await);
    // another has its own
    let c = provider_with("c.example", &two.net, &two.clock, |_, _| ());
    let carol = c.client("carol", "phone").await;
    let theirs = carol.create(&c).await;
    let response = promise(&c, &carol, &theirs, &two.b.domain).await.unwrap();
    carol.act(&c, &theirs, migrate(&response)).await.unwrap();
    assert!(hosts(&two.b, &theirs).await);
    c.end();
    two.end();
}

#[actix::test]
async fn operator_sees_a_group_that_has_come_until_its_last_hub_has_confirmed() {
    let two = Two::new().await;
    let door = Door::default();
    let behind = door.clone();
    two.net.carry(move |letter| match letter.event {
        EventType::MigrationConfirmation => Fate::Behind(behind.clone()),
        _ => Fate::Arrives,
    });
    assert_eq!(two.b.node.unsettled_arrivals().await.unwrap(), []);
    two.migrate(&two.b).await.unwrap();
    two.clock.advance_ms(5_000);
    let come = two.b.node.unsettled_arrivals().await.unwrap();
    let [arrival] = come.as_slice() else { panic!("{come:?}") };
    assert_eq!((&arrival.group, arrival.source.as_str()), (&two.group.to_string(), "a.example"));
    assert_eq!(arrival.state, "unconfirmed");
    assert!(arrival.age_ms >= 5_000, "{}", arrival.age_ms);
    door.open();
    until_none_departs(&two.a.node).await;
    assert_eq!(two.b.node.unsettled_arrivals().await.unwrap(), []);
    two.end();
}

/// Between c.example and what is left for it of the group's time at a.example lies the group's time at b.example.
#[actix::test]
async fn guest_that_was_away_while_the_group_went_and_came_home_gets_all_of_it_once() {
    away_over_there_and_back(true).await;
}

/// The same, and a.example has not kept what was said elsewhere.
#[actix::test]
async fn guest_that_was_away_gets_all_of_it_once_where_nobody_at_home_read_it() {
    away_over_there_and_back(false).await;
}

async fn away_over_there_and_back(alice_stays: bool) {
    let Three { net, mut a, mut b, mut c, alice } = Three::with(|_| ()).await;
    let bob = b.client("bob", "phone").await;
    let carol = c.client("carol", "phone").await;
    let dave = c.client("dave", "phone").await;
    let group = alice.create(&a).await;
    for (client, world) in [(&bob, &b), (&carol, &c)] {
        let key_packages = client.key_packages_through(world, &a, &alice).await;
        alice.act(&a, &group, Operation::AddUsers { key_packages }).await.unwrap();
        until(client, world, |client| is_in(client, &group)).await;
    }
    let role = PolicyChange::Role { user: bob.uri.user(), role: Role::Admin };
    alice.act(&a, &group, Operation::UpdateGroup { changes: vec![role] }).await.unwrap();
    alice.say(&a, &group, "before").await;
    until(&carol, &c, |carol| carol.texts().contains(&"before".to_owned())).await;
    let of_dave = dave.key_packages_through(&c, &a, &alice).await;
    net.cut(&c.domain);
    alice.say(&a, &group, "at home").await;
    alice.act(&a, &group, Operation::AddUsers { key_packages: of_dave }).await.unwrap();
    let there = promise(&a, &alice, &group, &b.domain).await.unwrap();
    alice.act(&a, &group, migrate(&there)).await.unwrap();
    until_none_departs(&a.node).await;
    until(&bob, &b, |bob| view(bob, &group).hub == b.domain).await;
    if !alice_stays {
        bob.act(&b, &group, Operation::RemoveUsers { users: vec![alice.uri.user()] })
            .await
            .unwrap();
        until(&alice, &a, |alice| view(alice, &group).state == GroupState::Left).await;
    }
    bob.say(&b, &group, "away").await;
    bob.say(&b, &group, "still away").await;
    let back = promise(&b, &bob, &group, &a.domain).await.unwrap();
    bob.act(&b, &group, migrate(&back)).await.unwrap();
    until_none_departs(&b.node).await;
    // what is written down says what is owed, though nobody says anything more
    (a, b, c) = (a.crash(), b.crash(), c.crash());
    net.mend(&c.domain);
    // who is told to wait for another's part tries again when its time has come
    let clock = std::sync::Arc::clone(&a.clock);
    let time = actix_rt::spawn(async move {
        loop {
            clock.advance_ms(100);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    a.node.sweep_peers().await.unwrap();
    b.node.sweep_peers().await.unwrap();
    until(&bob, &b, |bob| view(bob, &group).hub == a.domain).await;
    until(&carol, &c, |carol| view(carol, &group).epoch == view(&bob, &group).epoch).await;
    until(&dave, &c, |dave| is_in(dave, &group)).await;
    bob.say(&b, &group, "home again").await;
    let all = ["before", "at home", "away", "still away", "home again"];
    for (client, expected) in [(&carol, &all[..]), (&dave, &all[2..])] {
        until(client, &c, |client| client.texts().contains(&all[4].to_owned())).await;
        assert_eq!(client.texts(), expected, "{}", client.uri);
        let events = client.member.events(0, 10_000).unwrap();
        let bad = |event: &Event| {
            matches!(
                event,
                Event::Lost { .. } | Event::Misbehaviour { .. } | Event::Unreadable { .. }
            )
        };
        assert!(!events.iter().any(|(_, event)| bad(event)), "{}: {events:?}", client.uri);
    }
    time.abort();
    Three { net, a, b, c, alice }.end();
}

/// Where it is told no longer where a group has gone.
#[actix::test]
async fn client_that_asks_where_the_group_is_forgotten_keeps_what_it_has() {
    let three = Three::with(|limits| limits.moves.forward_ms = 1_000).await;
    let (a, b, alice) = (&three.a, &three.b, &three.alice);
    let bob = b.client("bob", "phone").await;
    let mut groups = Vec::new();
    for _ in 0..2 {
        let group = alice.create(a).await;
        let key_packages = bob.key_packages_through(b, a, alice).await;
        alice.act(a, &group, Operation::AddUsers { key_packages }).await.unwrap();
        until(&bob, b, |bob| is_in(bob, &group)).await;
        groups.push(group);
    }
    for group in &groups {
        let response = promise(a, alice, group, &three.c.domain).await.unwrap();
        alice.act(a, group, migrate(&response)).await.unwrap();
        until_none_departs(&a.node).await;
    }
    a.clock.advance_ms(1_001);
    let (kept, left) = (&groups[1], &groups[0]);
    // bob has not read of it
    let content = mimid::client::core::Content::text("where is it?").encode();
    let refused = bob.act(b, kept, Operation::Send { content }).await.unwrap_err();
    assert!(refused.contains("there is no group"), "{refused}");
    let leave = Operation::Propose { proposals: vec![NewProposal::Leave] };
    bob.act(b, left, leave).await.unwrap_err();
    let events = bob.member.events(0, 10_000).unwrap();
    let told = |event: Event| events.iter().any(|(_, it)| *it == event);
    assert!(told(Event::NotKnown { group: kept.clone(), hub: a.domain.clone() }), "{events:?}");
    assert!(told(Event::Removed { group: left.clone() }), "{events:?}");
    assert!(!events.iter().any(|(_, event)| matches!(event, Event::Deleted { .. })), "{events:?}");
    assert_eq!(
        (view(&bob, kept).state, view(&bob, left).state),
        (GroupState::Active, GroupState::Left)
    );
    // his queue says where it is
    until(&bob, b, |bob| view(bob, kept).hub == three.c.domain).await;
    bob.say(b, kept, "there it is").await;
    until(alice, a, |alice| alice.texts().contains(&"there it is".to_owned())).await;
    three.end();
}
