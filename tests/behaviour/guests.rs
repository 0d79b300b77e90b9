//! Groups whose members are at two providers: relay, replication and what each may say, with real MLS clients, two
//! nodes of one process and a network in memory.

use std::{sync::Arc, time::Duration};

use mimid::{
    client::core::{NewGroup, Operation},
    crypto,
    queue::token::TOKEN_BYTES,
    store::records::GroupStatus,
    wire::{
        client::{
            Complain, ConnectionRequestTo, DeleteDevice, Flag, PublishKeyPackages, QueueTokens,
        },
        codec::{List, Opaque},
        decode,
        ds::{
            CommitComplaint, ComplaintOutcome, ComplaintReason, ComplaintResponse, DsError,
            DsMessage, DsRequest, DsResponse,
        },
        encode,
        extensions::{KeyPackageClass, QueueToken},
        federation::EventType,
        ids::{Domain, Epoch, GroupId, KeyPackageRef, LeafIndex, RequestId, UserUri},
        key_packages::{
            ConnectionKeyPackageRequest, ConnectionKeyPackageResponse, ConnectionRequest,
            SealedOffer,
        },
        queueing::{DeliveryItem, DeliveryProblem, QueueEvent, QueueingServiceResponse},
    },
};

use super::{
    net::Net,
    world::{TestClient, World, clock_of_now},
};

/// Two providers that reach each other. Groups are made at `a`.
struct Pair {
    net: Arc<Net>,
    a: World,
    b: World,
}

impl Pair {
    fn new() -> Self {
        let (net, clock) = (Arc::new(Net::default()), clock_of_now());
        let a = World::in_net("a.example", &net, &clock);
        let b = World::in_net("b.example", &net, &clock);
        Self { net, a, b }
    }

    /// A group of alice at `a` and bob at `b`, in which each has what there is.
    async fn with_group(&self) -> (GroupId, TestClient, TestClient) {
        let alice = self.a.client("alice", "phone").await;
        let bob = self.b.client("bob", "phone").await;
        let group = alice.create(&self.a).await;
        self.add(&group, &alice, &bob).await;
        self.settle(&group, &alice, &[&bob]).await;
        (group, alice, bob)
    }

    /// `by`, who is at `a`, adds every client of `other`'s user, who is at `b`.
    async fn add(&self, group: &GroupId, by: &TestClient, other: &TestClient) {
        let key_packages = other.key_packages_through(&self.b, &self.a, by).await;
        by.act(&self.a, group, Operation::AddUsers { key_packages }).await.unwrap();
    }

    /// Brings everybody what there is.
    async fn settle(&self, group: &GroupId, alice: &TestClient, guests: &[&TestClient]) {
        self.a.replicate(&self.b, group).await;
        for guest in guests {
            guest.receive(&self.b).await;
        }
        alice.receive(&self.a).await;
        self.a.replicate(&self.b, group).await;
        for guest in guests {
            guest.receive(&self.b).await;
        }
    }

    fn end(self) {
        self.a.end();
        self.b.end();
    }
}

fn refused(response: DsResponse) -> DsError {
    response.outcome.into_result().unwrap_err()
}

#[actix::test]
async fn users_of_two_providers_talk_in_one_group() {
    let pair = Pair::new();
    let (group, alice, bob) = pair.with_group().await;
    alice.say(&pair.a, &group, "from the hub").await;
    bob.say(&pair.b, &group, "from the guest").await;
    pair.settle(&group, &alice, &[&bob]).await;
    assert_eq!(alice.texts(), ["from the guest"]);
    assert_eq!(bob.texts(), ["from the hub"]);
    // a further device of the guest joins by itself, and changes its key
    let tablet = pair.b.further(&bob, "tablet").await;
    let now = pair.b.now();
    let join = Operation::Join { code: None };
    let request = tablet.member.join(&group, &pair.a.domain, "", join, now).unwrap();
    tablet.drive(&pair.b, request).await.unwrap();
    pair.settle(&group, &alice, &[&bob, &tablet]).await;
    tablet.act(&pair.b, &group, Operation::UpdateClient { rotate_key: true }).await.unwrap();
    pair.settle(&group, &alice, &[&bob, &tablet]).await;
    tablet.say(&pair.b, &group, "me too").await;
    pair.settle(&group, &alice, &[&bob, &tablet]).await;
    assert_eq!(alice.texts(), ["from the guest", "me too"]);
    assert_eq!(bob.texts(), ["from the hub", "me too"]);
    // who sends gets no copy of it
    alice.say(&pair.a, &group, "all").await;
    pair.settle(&group, &alice, &[&bob, &tablet]).await;
    assert_eq!(tablet.texts(), ["all"]);
    pair.end();
}

#[actix::test]
async fn providers_bring_each_other_what_they_owe_by_themselves() {
    let (net, clock) = (Arc::new(Net::default()), clock_of_now());
    let a = World::that_delivers("a.example", &net, &clock);
    let b = World::that_delivers("b.example", &net, &clock);
    let alice = a.client("alice", "phone").await;
    let bob = b.client("bob", "phone").await;
    let group = alice.create(&a).await;
    let key_packages = bob.key_packages_through(&b, &a, &alice).await;
    alice.act(&a, &group, Operation::AddUsers { key_packages }).await.unwrap();
    bob.wait(&b).await;
    bob.say(&b, &group, "hello").await;
    alice.receive(&a).await;
    assert_eq!(alice.texts(), ["hello"]);
    alice.say(&a, &group, "hello bob").await;
    while bob.texts().is_empty() {
        bob.wait(&b).await;
    }
    assert_eq!(bob.texts(), ["hello bob"]);
    a.end();
    b.end();
}

#[actix::test]
async fn items_that_come_twice_late_or_in_another_order_change_nothing() {
    let pair = Pair::new();
    let (group, alice, bob) = pair.with_group().await;
    let known = pair.a.owed(&pair.b.domain, &group).await.len();
    for text in ["one", "two", "three", "four"] {
        alice.say(&pair.a, &group, text).await;
    }
    let items = pair.a.owed(&pair.b.domain, &group).await;
    let backwards: Vec<DeliveryItem> = items[known..].iter().rev().cloned().collect();
    let failures = pair.a.send(&pair.b.domain, backwards).await;
    let problems: Vec<DeliveryProblem> = failures.iter().map(|failure| failure.problem).collect();
    assert_eq!(problems, [DeliveryProblem::Gap; 3], "only the last was the next one");
    for batch in [items.clone(), items.clone(), vec![items[known + 1].clone()]] {
        assert!(pair.a.send(&pair.b.domain, batch).await.is_empty());
    }
    bob.receive(&pair.b).await;
    assert_eq!(bob.texts(), ["one", "two", "three", "four"]);
    pair.end();
}

#[actix::test]
async fn guest_that_is_removed_is_told_so_by_its_own_provider_and_can_come_back() {
    let pair = Pair::new();
    let (group, alice, bob) = pair.with_group().await;
    let remove = Operation::RemoveUsers { users: vec![bob.uri.user()] };
    alice.act(&pair.a, &group, remove).await.unwrap();
    alice.say(&pair.a, &group, "without bob").await;
    pair.settle(&group, &alice, &[&bob]).await;
    assert!(bob.act(&pair.b, &group, Operation::UpdateQueueInfo).await.is_err());
    bob.stock_up(&pair.b, 2).await;
    pair.add(&group, &alice, &bob).await;
    alice.say(&pair.a, &group, "back again").await;
    pair.settle(&group, &alice, &[&bob]).await;
    assert_eq!(bob.texts(), ["back again"]);
    pair.end();
}

#[actix::test]
async fn client_that_is_gone_is_removed_by_the_hub_when_it_learns_of_it() {
    let pair = Pair::new();
    let (group, alice, bob) = pair.with_group().await;
    let delete = DeleteDevice { client: bob.uri.clone() };
    pair.b.node.delete_device(&bob.uri, delete).await.unwrap();
    pair.b.node.wake_noticed_groups().await.unwrap();
    alice.say(&pair.a, &group, "are you there?").await;
    pair.a.replicate(&pair.b, &group).await;
    alice.receive(&pair.a).await;
    // the hub has proposed what everybody has to commit
    alice.act(&pair.a, &group, Operation::UpdateClient { rotate_key: false }).await.unwrap();
    let rows = pair.a.owed(&pair.b.domain, &group).await;
    let Some(DeliveryItem::Feed { roster, .. }) = rows.last() else { panic!("{rows:?}") };
    assert_eq!(roster.len(), 1, "the removal");
    pair.a.replicate(&pair.b, &group).await;
    assert_eq!(pair.b.store.followed(&group).await.unwrap().unwrap().members, 0);
    pair.end();
}

#[actix::test]
async fn guest_that_lacks_a_commit_comes_back_by_a_resync_through_its_provider() {
    let pair = Pair::new();
    let (group, alice, bob) = pair.with_group().await;
    // the hub's outbox was cut, and a snapshot takes the place of what was in it
    alice.act(&pair.a, &group, Operation::UpdateClient { rotate_key: false }).await.unwrap();
    alice.say(&pair.a, &group, "lost").await;
    let now = pair.a.node.group_roster_for(&group, &pair.b.domain).await.unwrap().unwrap();
    let snapshot = DeliveryItem::Snapshot {
        group_id: group.clone(),
        next_sequence: now.next,
        chain: List::default(),
        roster: List::new(now.adds).unwrap(),
    };
    assert!(pair.a.send(&pair.b.domain, vec![snapshot]).await.is_empty());
    bob.receive(&pair.b).await;
    pair.settle(&group, &alice, &[&bob]).await;
    alice.say(&pair.a, &group, "found").await;
    bob.say(&pair.b, &group, "here").await;
    pair.settle(&group, &alice, &[&bob]).await;
    assert_eq!(bob.texts(), ["found"]);
    assert_eq!(alice.texts(), ["here"]);
    pair.end();
}

#[actix::test]
async fn group_may_be_made_at_the_hub_of_another_provider() {
    let pair = Pair::new();
    let bob = pair.b.client("bob", "phone").await;
    let alice = pair.a.client("alice", "phone").await;
    let new = NewGroup { name: "far".into(), ..NewGroup::default() };
    let (group, request) = bob.member.create_group(&pair.a.hub(), &new, pair.b.now()).unwrap();
    bob.drive(&pair.b, request).await.unwrap();
    let key_packages = alice.key_packages_through(&pair.a, &pair.b, &bob).await;
    bob.act(&pair.b, &group, Operation::AddUsers { key_packages }).await.unwrap();
    pair.settle(&group, &alice, &[&bob]).await;
    alice.say(&pair.a, &group, "welcome here").await;
    pair.settle(&group, &alice, &[&bob]).await;
    assert_eq!(bob.texts(), ["welcome here"]);
    // none of it is hosted where its creator is
    let head = pair.b.head(&group).await;
    assert_eq!(head.status, GroupStatus::Followed);
    pair.end();
}

#[actix::test]
async fn hub_and_guest_go_on_after_both_were_killed() {
    let pair = Pair::new();
    let (group, alice, bob) = pair.with_group().await;
    alice.say(&pair.a, &group, "before").await;
    pair.a.replicate(&pair.b, &group).await;
    alice.say(&pair.a, &group, "not brought yet").await;
    let Pair { net, a, b } = pair;
    let (a, b) = (a.crash(), b.crash());
    let pair = Pair { net, a, b };
    bob.receive(&pair.b).await;
    assert_eq!(bob.texts(), ["before"]);
    bob.say(&pair.b, &group, "after").await;
    pair.settle(&group, &alice, &[&bob]).await;
    assert_eq!(bob.texts(), ["before", "not brought yet"]);
    assert_eq!(alice.texts(), ["after"]);
    pair.end();
}

#[actix::test]
async fn hub_out_of_reach_is_unavailable_and_a_lost_answer_is_accepted_once() {
    let pair = Pair::new();
    let (group, alice, bob) = pair.with_group().await;
    pair.net.cut(&pair.a.domain);
    let content = mimid::client::core::Content::text("once").encode();
    let request = bob.member.begin(&group, Operation::Send { content }).unwrap();
    let outbound = bob.member.outbound(request, pair.b.now()).unwrap();
    let error = refused(pair.b.node.group_operation(&bob.uri, outbound.message.clone()).await);
    let DsError::Unavailable { retry_after_ms, .. } = error else { panic!("{error:?}") };
    assert!(retry_after_ms > 0);
    pair.net.mend(&pair.a.domain);
    pair.net.lose_answers(1);
    let error = refused(pair.b.node.group_operation(&bob.uri, outbound.message).await);
    assert_eq!(error.name(), "unavailable");
    bob.drive(&pair.b, request).await.unwrap();
    pair.settle(&group, &alice, &[&bob]).await;
    assert_eq!(alice.texts(), ["once"]);
    pair.end();
}

#[actix::test]
async fn provider_that_is_not_spoken_with_is_not_asked_and_not_answered() {
    let (net, clock) = (Arc::new(Net::default()), clock_of_now());
    let a = World::in_net("a.example", &net, &clock);
    let b = World::in_net_without("b.example", &net, &clock, &["a.example"]);
    let (alice, bob) = (a.client("alice", "phone").await, b.client("bob", "phone").await);
    let ask = |by: &TestClient, of: &TestClient| ConnectionKeyPackageRequest {
        target_user: of.uri.user(),
        requester: by.uri.user(),
    };
    let denied = b.node.connection_key_packages(&bob.uri, ask(&bob, &alice)).await;
    assert_eq!(denied.unwrap_err().name(), "not_authorized");
    let denied = a.node.connection_key_packages(&alice.uri, ask(&alice, &bob)).await;
    assert_eq!(denied.unwrap_err().name(), "not_authorized", "as that provider says");
    assert_eq!(b.node.provider_keys(&a.domain).await.unwrap_err().name(), "not_authorized");
    let (a_domain, far) = (a.domain.clone(), Domain::new("far.example").unwrap());
    assert_eq!(a.node.provider_keys(&far).await.unwrap_err().name(), "unavailable");
    let keys = a.node.provider_keys(&a_domain).await.unwrap();
    assert_eq!((keys.verification.keys.len(), keys.signature.keys.len()), (1, 1));
    a.end();
    b.end();
}

#[actix::test]
async fn complaint_reaches_the_hub_through_the_clients_own_provider() {
    let pair = Pair::new();
    let (group, alice, bob) = pair.with_group().await;
    let complaint = |group: &GroupId| CommitComplaint {
        group_id: group.clone(),
        epoch: Epoch(0),
        leaf_index: LeafIndex(1),
        commit_hash: Opaque::new([7; 32]).unwrap(),
        reason: ComplaintReason::Path.into(),
        signature: Opaque::new([7; 64]).unwrap(),
    };
    let complain = async |by: &World, client: &TestClient, hub: &World, group: &GroupId| {
        let hub_domain = hub.domain.clone();
        let complain = Complain { hub_domain, complaint: complaint(group) };
        by.node.complain(&client.uri, complain).await
    };
    let none = ComplaintResponse { outcome: ComplaintOutcome::None, wait_ms: 0 };
    // of a commit that nobody made there is nothing known, there or here
    assert_eq!(complain(&pair.b, &bob, &pair.a, &group).await, Ok(none));
    assert_eq!(complain(&pair.a, &alice, &pair.a, &group).await, Ok(none));
    let none = pair.a.node.metrics().complaints.with_label_values(&["none"]);
    assert_eq!(none.get(), 2, "counted where the group is");
    let other = GroupId::of(&pair.a.domain, [9; 16]);
    let unknown = complain(&pair.b, &bob, &pair.a, &other).await.unwrap_err();
    assert_eq!(unknown.name(), "group_not_found");
    // a copy is not the group
    let elsewhere = complain(&pair.b, &bob, &pair.b, &group).await.unwrap_err();
    assert_eq!(elsewhere.name(), "group_not_found");
    pair.net.cut(&pair.a.domain);
    let away = complain(&pair.b, &bob, &pair.a, &group).await.unwrap_err();
    assert_eq!(away.name(), "unavailable");
    pair.end();
}

/// The first request of `client` to come in by external commit, and the one with the commit itself.
async fn joining(pair: &Pair, client: &TestClient, group: &GroupId) -> [DsMessage; 2] {
    let join = Operation::Join { code: None };
    let request = client.member.join(group, &pair.a.domain, "", join, pair.b.now()).unwrap();
    let mut messages = Vec::new();
    while messages.len() < 2 {
        let outbound = match client.member.outbound(request, pair.b.now()) {
            Ok(outbound) => outbound,
            Err(mimid::client::core::CoreError::NoToken { class, last_resort }) => {
                client.tokens(&pair.b, class, last_resort).await;
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        messages.push(outbound.message.clone());
        if messages.len() == 1 {
            let info = pair.b.node.group_operation(&client.uri, outbound.message).await;
            client.member.settle(request, &info, pair.b.now()).unwrap();
        }
    }
    messages.try_into().unwrap()
}

#[actix::test]
async fn relay_vouches_for_the_leaf_and_the_queue_of_its_own_client() {
    let pair = Pair::new();
    let (group, alice, bob) = pair.with_group().await;
    let tablet = pair.b.further(&bob, "tablet").await;
    let carol = pair.b.client("carol", "phone").await;
    let [info, join] = joining(&pair, &tablet, &group).await;
    assert!(matches!(join.request, DsRequest::JoinGroup(_)));
    for message in [&info, &join] {
        for other in [&carol, &bob] {
            let error = refused(pair.b.node.group_operation(&other.uri, message.clone()).await);
            assert_eq!(error.name(), "unauthenticated", "in another's name: {error}");
        }
    }
    // somebody else's queue, one of another provider, and none at all
    let queue_of = async |client: &TestClient, world: &World| -> QueueToken {
        let (class, last_resort) = (KeyPackageClass::Group, Flag::No);
        let request = QueueTokens { class, last_resort, count: 1, revoke: List::default() };
        world.node.queue_tokens(&client.uri, request).await.unwrap().tokens[0].clone()
    };
    let foreign = queue_of(&carol, &pair.b).await;
    let far = queue_of(&alice, &pair.a).await;
    let none = Opaque::new([1; TOKEN_BYTES]).unwrap();
    for (domain, queue_token) in
        [(&pair.b.domain, foreign), (&pair.a.domain, far), (&pair.b.domain, none)]
    {
        let mut message = join.clone();
        if let DsRequest::JoinGroup(join) = &mut message.request {
            join.client_queue_config.domain = domain.clone();
            join.client_queue_config.queue_token = queue_token;
        }
        let error = refused(pair.b.node.group_operation(&tablet.uri, message).await);
        assert_eq!(error.name(), "not_authorized", "{error}");
    }
    // as it was it is good
    let answer = pair.b.node.group_operation(&tablet.uri, join).await;
    assert!(answer.outcome.into_result().is_ok());
    pair.end();
}

#[actix::test]
async fn user_key_that_is_not_the_accounts_comes_into_no_group_elsewhere() {
    let pair = Pair::new();
    let (group, _, bob) = pair.with_group().await;
    // it has the device's name and key, but another user's key vouches for its leaf
    let mut identity = bob.member.identity().clone();
    identity.user_key =
        crypto::SigningKey::generate(mimid::wire::extensions::SignatureScheme::ED25519).unwrap();
    let member =
        mimid::client::core::Member::new(mimid::client::core::Home::in_memory().unwrap(), identity)
            .unwrap();
    let impostor = TestClient { member, uri: bob.uri.clone() };
    let join = Operation::Join { code: None };
    let request = impostor.member.join(&group, &pair.a.domain, "", join, pair.b.now()).unwrap();
    let ask = impostor.member.outbound(request, pair.b.now()).unwrap();
    let error = refused(pair.b.node.group_operation(&bob.uri, ask.message).await);
    assert_eq!(error.name(), "unauthenticated", "{error}");
    pair.end();
}

#[actix::test]
async fn request_of_a_client_comes_through_its_own_provider_or_not_at_all() {
    let pair = Pair::new();
    let (group, alice, bob) = pair.with_group().await;
    let content = mimid::client::core::Content::text("hello").encode();
    let request = alice.member.begin(&group, Operation::Send { content }).unwrap();
    let message = alice.member.outbound(request, pair.a.now()).unwrap().message;
    // what b saw of alice's it cannot send, nor can bob through it
    let federation = pair.b.federation.as_ref().unwrap();
    let event = EventType::of(&message.request);
    let id = RequestId(crypto::random());
    let (to, timeout) = (&pair.a.domain, Duration::from_secs(5));
    let answer = federation.request(to, event, id, encode(&message), timeout).await.unwrap();
    assert_eq!(refused(decode(&answer).unwrap()).name(), "unauthenticated");
    let error = refused(pair.b.node.group_operation(&bob.uri, message.clone()).await);
    assert_eq!(error.name(), "unauthenticated");
    // nor is it something else than it is
    let other = EventType::DeliveryService("update-client");
    let id = RequestId(crypto::random());
    let answer = federation.request(to, other, id, encode(&message), timeout).await.unwrap();
    assert_eq!(refused(decode(&answer).unwrap()).name(), "malformed");
    alice.drive(&pair.a, request).await.unwrap();
    pair.settle(&group, &alice, &[&bob]).await;
    assert_eq!(bob.texts(), ["hello"]);
    pair.end();
}

#[actix::test]
async fn key_packages_of_users_elsewhere_are_handed_out_once_also_where_the_answer_is_lost() {
    let pair = Pair::new();
    let alice = pair.a.client("alice", "phone").await;
    let bob = pair.b.client("bob", "phone").await;
    bob.tokens(&pair.b, KeyPackageClass::Connection, false).await;
    let suite = mimid::client::core::SUITES[0];
    let made = bob
        .member
        .key_packages(KeyPackageClass::Connection, suite, false, 3, pair.b.now())
        .unwrap();
    let publish = PublishKeyPackages { key_packages: List::new(made).unwrap() };
    pair.b.node.publish_key_packages(&bob.uri, publish).await.unwrap();
    let ask = |requester: &UserUri| ConnectionKeyPackageRequest {
        target_user: bob.uri.user(),
        requester: requester.clone(),
    };
    let fetch = async || {
        let asked = ask(&alice.uri.user());
        pair.a
            .node
            .connection_key_packages(&alice.uri, asked)
            .await
            .unwrap()
            .key_packages
            .into_vec()
    };
    let first = fetch().await;
    assert_eq!(first.len(), 1);
    pair.net.lose_answers(1);
    let second = fetch().await;
    assert_ne!(second, first);
    let third = fetch().await;
    assert_eq!(third.len(), 1, "the one whose answer was lost was handed out once");
    assert!(fetch().await.is_empty());
    // the requester is the sender's user, at home and between providers
    let error = pair.a.node.connection_key_packages(&alice.uri, ask(&bob.uri.user())).await;
    assert_eq!(error.unwrap_err().name(), "not_authorized");
    let federation = pair.a.federation.as_ref().unwrap();
    let event = EventType::ConnectionKeyPackages;
    let send = async |requester: &UserUri, id: u8| {
        let (to, timeout) = (&pair.b.domain, Duration::from_secs(5));
        let body = encode(&ask(requester));
        federation.request(to, event, RequestId([id; 16]), body, timeout).await
    };
    assert!(send(&bob.uri.user(), 1).await.is_err());
    let empty: ConnectionKeyPackageResponse =
        decode(&send(&alice.uri.user(), 2).await.unwrap()).unwrap();
    assert!(empty.key_packages.is_empty());
    let nobody = pair.a.node.connection_key_packages(
        &alice.uri,
        ConnectionKeyPackageRequest {
            target_user: UserUri::of(&pair.b.domain, "nobody").unwrap(),
            requester: alice.uri.user(),
        },
    );
    assert!(nobody.await.unwrap().key_packages.is_empty());
    pair.end();
}

#[actix::test]
async fn connection_request_reaches_a_user_elsewhere_once() {
    let pair = Pair::new();
    let alice = pair.a.client("alice", "phone").await;
    let bob = pair.b.client("bob", "phone").await;
    let (class, last_resort) = (KeyPackageClass::Connection, Flag::No);
    let request = QueueTokens { class, last_resort, count: 1, revoke: List::default() };
    let token = pair.b.node.queue_tokens(&bob.uri, request).await.unwrap().tokens[0].clone();
    let offer = SealedOffer {
        client_queue_information: token,
        key_package_ref: KeyPackageRef(Opaque::new([1; 32]).unwrap()),
        kem_output: Opaque::new([2; 32]).unwrap(),
        ciphertext: Opaque::new([3; 64]).unwrap(),
    };
    let request = ConnectionRequest { offers: List::new(vec![offer.clone()]).unwrap() };
    let to = ConnectionRequestTo { recipient_domain: pair.b.domain.clone(), request };
    for _ in 0..2 {
        let answer = pair.a.node.connection_request(&alice.uri, to.clone()).await;
        assert_eq!(answer, Ok(QueueingServiceResponse::Ok));
    }
    let dequeue = mimid::wire::client::Dequeue { acks: List::default(), max: 9, wait_ms: 0 };
    let entries = pair.b.node.dequeue(&bob.uri, dequeue).await.unwrap().entries;
    let sender_domain = pair.a.domain.clone();
    let expected = QueueEvent::ConnectionRequest { sender_domain, offer };
    assert_eq!(entries.iter().map(|entry| entry.event.clone()).collect::<Vec<_>>(), [expected]);
    pair.net.cut(&pair.b.domain);
    let request = ConnectionRequest::clone(&to.request);
    let cut = ConnectionRequestTo { recipient_domain: pair.b.domain.clone(), request };
    let error = pair.a.node.connection_request(&alice.uri, cut).await.unwrap_err();
    assert_eq!(error.name(), "unavailable");
    pair.end();
}
