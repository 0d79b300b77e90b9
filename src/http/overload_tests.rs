//! A node that has more to do than it can, as its clients see it.

use std::{sync::Arc, time::Duration};

use prometheus::Registry;

use super::{DrainSwitch, Endpoint, HttpMetrics, Limits, client::ClientApi};
use crate::{
    actors::{GroupOptions, live::Live, testing::World},
    rate::{Class, OverloadSettings},
    wire::{
        client::{Consent, Dequeue},
        codec::List,
        ds::DsError,
        encode,
    },
};

fn api(world: &World) -> ClientApi {
    let metrics = HttpMetrics::register(&Registry::new()).unwrap();
    let limits = Arc::new(Live::new(Limits::default()));
    ClientApi::new(world.node.clone(), limits, metrics, DrainSwitch::new().1)
}

fn retry_after_ms(error: &DsError) -> Option<u64> {
    if let DsError::Unavailable { retry_after_ms, .. } = error {
        Some(*retry_after_ms)
    } else {
        None
    }
}

/// As an operator does it while the node runs.
fn set(world: &World, delay_max: Option<Duration>) {
    let overload = OverloadSettings { delay_max };
    let limits = crate::actors::Limits { overload, ..world.limits.clone() };
    let groups = GroupOptions::new(world.node.domain().clone());
    world.node.replace_limits(limits, groups, world.registration.clone());
}

#[actix_web::test]
async fn who_is_refused_for_want_of_time_is_so_before_a_signature_is_looked_at() {
    let world = World::new();
    let api = api(&world);
    let alice = world.register("alice").await;
    let consent = Consent { add: List::default(), revoke: List::default() };
    let mut forged = world.sign(&alice, "/v1/consent", &consent);
    forged.timestamp.0 += 1;
    let forged = encode(&forged);
    let ask = async || api.take(Endpoint::Consent, &forged).await.err().unwrap().error;
    let looked_at = || {
        let outcomes = &world.node.metrics().authentications;
        outcomes.with_label_values(&["unauthenticated"]).get()
    };
    assert!(matches!(ask().await, DsError::Unauthenticated { .. }));
    let before = looked_at();

    set(&world, Some(Duration::from_millis(50)));
    world.node.admission().press(Duration::from_millis(400));
    let mut refused = Vec::new();
    for _ in 0..50 {
        refused.extend(retry_after_ms(&ask().await));
    }
    // there is room for two, of which the second is kept for what is worth more
    assert_eq!((refused.len(), looked_at() - before), (49, 1), "{refused:?}");
    let (least, most) = (refused.iter().min().unwrap(), refused.iter().max().unwrap());
    assert!(*least >= 500 && most > least, "a hint, and not one for all: {refused:?}");
    let counted = &world.node.metrics().requests_shed;
    let counted = counted.with_label_values(&[Class::Account.name(), "delay"]).get();
    assert_eq!(counted, refused.len() as u64);

    let dequeue = Dequeue { acks: List::default(), max: 1, wait_ms: 0 };
    let sign = || encode(&world.sign(&alice, "/v1/dequeue", &dequeue));
    let first = api.take(Endpoint::Dequeue, &sign()).await;
    assert!(first.is_ok(), "what there is time for is for what frees memory");
    let message = sign();
    let second = api.take(Endpoint::Dequeue, &message).await;
    assert!(retry_after_ms(&second.err().unwrap().error).is_some(), "and no more than that");
    set(&world, None);
    assert!(api.take(Endpoint::Dequeue, &message).await.is_ok(), "nothing was done with it");
}

#[actix_web::test]
async fn what_a_request_is_worth_is_known_before_it_is_decoded() {
    let world = World::new();
    let api = api(&world);
    let alice = world.register("alice").await;
    // a sender, the number of an operation, and then nothing that could be decoded
    let cut_off = |operation: u8| {
        encode(&world.sign(&alice, "/v1/group_operation", &[0_u8, 0, 0, 0, 1, operation, 0xff]))
    };
    let take = async |bytes: &[u8]| api.take(Endpoint::GroupOperation, bytes).await.err().unwrap();
    let shed = |class: Class| {
        world.node.metrics().requests_shed.with_label_values(&[class.name(), "delay"]).get()
    };
    assert!(matches!(take(&cut_off(12)).await.error, DsError::Malformed { .. }));
    set(&world, Some(Duration::from_millis(50)));
    world.node.admission().press(Duration::from_millis(400));
    // what there is room for
    for _ in 0..2 {
        let _ = take(&cut_off(9)).await;
    }
    for (operation, class) in [(12, Class::Message), (9, Class::Commit), (16, Class::Commit)] {
        let before = shed(class);
        let refused = take(&cut_off(operation)).await.error;
        assert!(retry_after_ms(&refused).is_some(), "{operation}: {refused:?}");
        assert_eq!(shed(class) - before, 1, "{operation}");
    }
    let before = shed(Class::Message);
    assert!(retry_after_ms(&take(b"nothing").await.error).is_some());
    assert_eq!(shed(Class::Message) - before, 1, "the endpoint's own, where it says nothing");
}
