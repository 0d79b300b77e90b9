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

    let set = |delay_max| {
        let overload = OverloadSettings { delay_max };
        let limits = crate::actors::Limits { overload, ..world.limits.clone() };
        let groups = GroupOptions::new(world.node.domain().clone());
        world.node.replace_limits(limits, groups, world.registration.clone());
    };
    set(Some(Duration::from_millis(50)));
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
    set(None);
    assert!(api.take(Endpoint::Dequeue, &message).await.is_ok(), "nothing was done with it");
}
