//! What strangers and hubs may leave for one client alone: how much, and what it costs whoever else leaves something.

use futures_util::future::join_all;

use super::{Limits, queue_tests::message_of, testing::*};
use crate::{
    account::Registration,
    wire::{
        client::{ConnectionRequestTo, DeleteDevice},
        codec::{List, Opaque, decode, encode},
        ds::REQUEST_BYTES_MAX,
        extensions::QueueToken,
        ids::{ClientUri, Domain, GroupId, KeyPackageRef},
        key_packages::{ConnectionRequest, OFFERS_MAX, SealedOffer},
        queueing::{
            DeliverBatchRequest, DeliveryFailure, DeliveryItem, DeliveryProblem, QueueEvent,
            QueueingServiceRequest, QueueingServiceResponse,
        },
    },
};

/// An offer of about so many bytes; of each number another one.
fn offer(token: &QueueToken, number: usize, bytes: usize) -> SealedOffer {
    let mut content = vec![0; bytes];
    content[..8].copy_from_slice(&number.to_be_bytes());
    SealedOffer {
        client_queue_information: token.clone(),
        key_package_ref: KeyPackageRef(Opaque::new([1; 32]).unwrap()),
        kem_output: Opaque::new([2; 32]).unwrap(),
        ciphertext: Opaque::new(content).unwrap(),
    }
}

async fn leave(world: &World, by: &Person, offers: Vec<SealedOffer>) -> QueueingServiceResponse {
    let request = ConnectionRequest { offers: List::new(offers).unwrap() };
    let to = ConnectionRequestTo { recipient_domain: domain(), request };
    world.node.connection_request(&by.client, to).await.unwrap()
}

async fn leave_from(
    world: &World,
    peer: &Domain,
    offers: Vec<SealedOffer>,
) -> Vec<DeliveryFailure> {
    let items = offers.into_iter().enumerate().map(|(number, offer)| DeliveryItem::Direct {
        item_id: [u8::try_from(number).unwrap(); 16],
        client_queue_information: offer.client_queue_information.clone(),
        event: QueueEvent::ConnectionRequest { sender_domain: peer.clone(), offer },
    });
    let request = DeliverBatchRequest { items: List::new(items.collect::<Vec<_>>()).unwrap() };
    world.node.deliver_batch(peer, request).await.unwrap().failures.into_vec()
}

async fn token(world: &World, of: &Person) -> QueueToken {
    world.tokens(of, TokenClass::Connection, 1).await.remove(0)
}

/// How many things wait for `person`.
async fn waiting(world: &World, person: &Person) -> usize {
    world.node.store.inbox(&person.client, ALL).await.unwrap().items.len()
}

fn peer() -> Domain {
    Domain::new("b.example").unwrap()
}

#[actix::test]
async fn what_waits_for_a_client_is_not_read_for_who_leaves_more() {
    let limits = Limits { connection_offers_per_hour: 10_000, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let token = token(&world, &alice).await;
    let faults = world.disk.faults();
    let mut cost = Vec::new();
    for number in 0..40 {
        let before = faults.looked_at();
        let answer = leave(&world, &bob, vec![offer(&token, number, 60_000)]).await;
        assert_eq!(answer, QueueingServiceResponse::Ok);
        let after = faults.looked_at();
        cost.push((after.0 - before.0, after.1 - before.1));
    }
    assert_eq!(waiting(&world, &alice).await, 40);
    assert_eq!(cost[39], cost[1], "as much as the second: {cost:?}");
}

#[actix::test]
async fn offers_of_one_request_to_one_client_are_one_write() {
    let limits = Limits { connection_offers_per_hour: 10_000, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let (to_alice, to_bob) = (token(&world, &alice).await, token(&world, &bob).await);
    let faults = world.disk.faults();
    let (queued, (_, scans)) = (faults.queued(), faults.looked_at());
    let offers = || {
        let to = |number| if number % 2 == 0 { &to_alice } else { &to_bob };
        (0..100).map(|number| offer(to(number), number, 100)).collect::<Vec<_>>()
    };
    assert_eq!(leave(&world, &bob, offers()).await, QueueingServiceResponse::Ok);
    assert_eq!(faults.queued() - queued, 2, "one for each");
    assert!(faults.looked_at().1 - scans < 10, "nor is each counted anew");
    assert_eq!(leave_from(&world, &peer(), offers()).await, []);
    assert_eq!(faults.queued() - queued, 4);
    assert_eq!((waiting(&world, &alice).await, waiting(&world, &bob).await), (100, 100));
    // a request whose answer was lost
    assert_eq!(leave(&world, &bob, offers()).await, QueueingServiceResponse::Ok);
    assert_eq!(leave_from(&world, &peer(), offers()).await, []);
    assert_eq!(faults.queued() - queued, 4, "there is nothing to be written");
    assert_eq!((waiting(&world, &alice).await, waiting(&world, &bob).await), (100, 100));
}

#[actix::test]
async fn those_who_leave_something_at_a_time_leave_no_more_than_fits() {
    let limits = Limits { inbox_bytes_max: 40_000, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    let token = token(&world, &alice).await;
    let bob = world.register("bob").await;
    // each 12 KB at a time, of several requests and providers
    let offers =
        |by: usize| (0..12).map(|number| offer(&token, 100 * by + number, 1_000)).collect();
    let requests = join_all((0..4).map(|by| leave(&world, &bob, offers(by))));
    let peers = ["b", "c", "d"].map(|name| Domain::new(format!("{name}.example")).unwrap());
    let batches = join_all(peers.iter().map(|peer| leave_from(&world, peer, offers(9))));
    // all of them look before the first write is done
    let (faults, queued) = (world.disk.faults(), world.disk.faults().queued());
    faults.hold();
    let release = async {
        faults.until_queued(queued + 1).await;
        faults.release();
    };
    let (answers, failures, ()) = futures_util::future::join3(requests, batches, release).await;
    let left = waiting(&world, &alice).await;
    assert!((30..=40).contains(&left), "{left} offers of more than 1 KB");
    assert!(answers.contains(&QueueingServiceResponse::QueueFull) || !failures[2].is_empty());
    assert_eq!(overflows(&world, "inbox"), 84 - left as u64);
}

fn overflows(world: &World, kind: &str) -> u64 {
    world.node.metrics.queue_overflows.with_label_values(&[kind]).get()
}

/// Single messages (DS §6.1) of a provider, by one token.
struct Hub<'a> {
    world: &'a World,
    domain: Domain,
    token: QueueToken,
}

impl<'a> Hub<'a> {
    async fn new(world: &'a World, name: &str, to: &Person) -> Self {
        let domain = Domain::new(name).unwrap();
        let token = world.tokens(to, TokenClass::Group, 1).await.remove(0);
        Self { world, domain, token }
    }

    async fn send(&self, number: u8, bytes: usize) -> QueueingServiceResponse {
        let group = GroupId::of(&self.domain, [1; 16]);
        let request = QueueingServiceRequest {
            client_queue_information: self.token.clone(),
            message: message_of(&group, &vec![number; bytes]),
        };
        self.world.node.queueing_service_request(request, &self.domain).await.unwrap()
    }

    async fn may_add(&self, client: &ClientUri) -> bool {
        self.world.node.has_room_for(client, &self.domain).await.unwrap()
    }
}

#[actix::test]
async fn single_messages_of_one_provider_are_its_share_and_leave_the_rest_to_others() {
    let limits =
        Limits { inbox_bytes_max: 150_000, inbox_bytes_per_hub_max: 50_000, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let [b, c] = ["b.example", "c.example"].map(|name| Hub::new(&world, name, &alice));
    let (b, c) = (b.await, c.await);
    for number in 0..4 {
        assert_eq!(b.send(number, 15_000).await, QueueingServiceResponse::Ok);
    }
    assert_eq!(b.send(4, 15_000).await, QueueingServiceResponse::QueueFull, "more than 50 KB");
    assert_eq!(b.send(3, 15_000).await, QueueingServiceResponse::Ok, "a repeat");
    assert_eq!(overflows(&world, "inbox_hub"), 1);
    assert!(!b.may_add(&alice.client).await, "nor by its groups");
    // strangers of this provider have a share together
    let offers = token(&world, &alice).await;
    for number in 0..6 {
        let answer = leave(&world, &bob, vec![offer(&offers, number, 9_000)]).await;
        assert_eq!(answer, QueueingServiceResponse::Ok);
    }
    let answer = leave(&world, &bob, vec![offer(&offers, 6, 9_000)]).await;
    assert_eq!(answer, QueueingServiceResponse::QueueFull);
    // for whom else there is room
    assert!(c.may_add(&alice.client).await);
    assert_eq!(c.send(0, 15_000).await, QueueingServiceResponse::Ok);
    assert_eq!(overflows(&world, "inbox"), 0);
    // up to what a client is left in all
    assert_eq!(c.send(1, 25_000).await, QueueingServiceResponse::Ok);
    assert_eq!(c.send(2, 15_000).await, QueueingServiceResponse::QueueFull);
    assert_eq!((overflows(&world, "inbox"), c.may_add(&alice.client).await), (1, false));
    // who reads makes room for all
    let entries = world.dequeue(&alice, &[], 0).await;
    assert_eq!(entries.len(), 4 + 6 + 2);
    world.dequeue(&alice, &[(0, 12)], 0).await;
    world.node.drain_queues().await;
    assert_eq!(b.send(4, 15_000).await, QueueingServiceResponse::Ok);
    assert!(c.may_add(&alice.client).await);
}

#[actix::test]
async fn strangers_of_a_provider_leave_half_of_its_share_to_its_groups() {
    let limits = Limits {
        inbox_bytes_max: 200_000,
        inbox_bytes_per_hub_max: 50_000,
        connection_offers_per_hour: 1_000,
        ..Limits::default()
    };
    let world = World::with(limits, Registration::Open);
    let alice = world.register("alice").await;
    let hub = Hub::new(&world, peer().as_str(), &alice).await;
    let c = Hub::new(&world, "c.example", &alice).await;
    // what others have left does not count
    assert_eq!(c.send(0, 40_000).await, QueueingServiceResponse::Ok);
    let offers = token(&world, &alice).await;
    let many = (0..9).map(|number| offer(&offers, number, 9_000)).collect();
    let refused = leave_from(&world, &peer(), many).await;
    let refused: Vec<_> = refused.into_iter().map(|it| (it.item, it.problem)).collect();
    let full = [3, 4, 5, 6, 7, 8].map(|item| (item, DeliveryProblem::QueueFull));
    assert_eq!(refused, full, "25 KB, and one that began below them");
    assert!(hub.may_add(&alice.client).await);
    assert_eq!(hub.send(1, 15_000).await, QueueingServiceResponse::Ok);
    assert_eq!(hub.send(2, 15_000).await, QueueingServiceResponse::Ok);
    assert_eq!(hub.send(3, 15_000).await, QueueingServiceResponse::QueueFull);
}

#[actix::test]
async fn offers_without_number_are_none() {
    let tiny = || SealedOffer {
        client_queue_information: Opaque::new([1]).unwrap(),
        key_package_ref: KeyPackageRef(Opaque::new([1]).unwrap()),
        kem_output: Opaque::new([]).unwrap(),
        ciphertext: Opaque::new([]).unwrap(),
    };
    let of = |count| vec![tiny(); count];
    assert!(
        ConnectionRequest { offers: List::new(of(OFFERS_MAX)).unwrap() }.offers.len() == OFFERS_MAX
    );
    assert!(List::<_, REQUEST_BYTES_MAX, OFFERS_MAX>::new(of(OFFERS_MAX + 1)).is_err());
    let sent: List<SealedOffer, REQUEST_BYTES_MAX> = List::new(of(OFFERS_MAX + 1)).unwrap();
    let error = decode::<ConnectionRequest>(&encode(&sent)).unwrap_err();
    assert!(error.to_string().contains("more than the 1000 elements"), "{error}");
}

#[actix::test]
async fn large_things_that_wait_are_taken_a_few_at_a_time() {
    let world = World::new();
    let phone = world.register("alice").await;
    let laptop = Person::new("alice", "laptop", Some(&phone.user_key));
    world.try_register(&laptop).await.unwrap();
    let faults = world.disk.faults();
    for device in [&phone, &laptop] {
        let hub = Hub::new(&world, "b.example", device).await;
        for number in 0..4 {
            assert_eq!(hub.send(number, 700_000).await, QueueingServiceResponse::Ok);
        }
    }
    let before = faults.queued();
    let entries = world.dequeue(&phone, &[], 0).await;
    assert_eq!(entries.len(), 4);
    assert_eq!(faults.queued() - before, 4, "each in a write of its own");
    world.node.drain_queues().await;
    let before = faults.queued();
    let delete = DeleteDevice { client: laptop.client.clone() };
    world.node.delete_device(&phone.client, delete).await.unwrap();
    assert_eq!(faults.queued() - before, 1 + 4, "and so is what is dropped");
    assert_eq!(waiting(&world, &laptop).await, 0);
}

#[actix::test]
async fn bytes_of_offers_wait_for_who_takes_and_acknowledges_what_is_there() {
    let limits = Limits { inbox_bytes_max: 100_000, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let token = token(&world, &alice).await;
    let large = |number| vec![offer(&token, number, 30_000)];
    for number in 0..4 {
        let answer = leave(&world, &bob, large(number)).await;
        assert_eq!(answer, QueueingServiceResponse::Ok, "as long as there is room one more fits");
    }
    assert_eq!(leave(&world, &bob, large(4)).await, QueueingServiceResponse::QueueFull);
    assert_eq!(leave(&world, &bob, large(3)).await, QueueingServiceResponse::Ok, "a repeat");
    // taken is not read: what is neither here nor there would be without a bound
    assert_eq!(world.dequeue(&alice, &[], 0).await.len(), 4);
    assert_eq!(waiting(&world, &alice).await, 0);
    assert_eq!(leave(&world, &bob, large(4)).await, QueueingServiceResponse::QueueFull);
    world.dequeue(&alice, &[(0, 4)], 0).await;
    world.node.drain_queues().await;
    assert_eq!(leave(&world, &bob, large(4)).await, QueueingServiceResponse::Ok);
}

#[actix::test]
async fn large_offer_counts_as_several_in_its_hour() {
    let limits = Limits { connection_offers_per_hour: 10, ..Limits::default() };
    let world = World::with(limits, Registration::Open);
    let (alice, bob) = (world.register("alice").await, world.register("bob").await);
    let token = token(&world, &alice).await;
    let problems =
        leave_from(&world, &peer(), (0..12).map(|number| offer(&token, number, 60_000)).collect())
            .await;
    let problems: Vec<_> = problems.iter().map(|failure| failure.problem).collect();
    assert_eq!(problems, [DeliveryProblem::QueueFull; 10]);
    // small ones count as one
    for number in 0..10 {
        let answer = leave(&world, &bob, vec![offer(&token, number, 2_000)]).await;
        assert_eq!(answer, QueueingServiceResponse::Ok);
    }
    assert_eq!(waiting(&world, &alice).await, 12);
}
