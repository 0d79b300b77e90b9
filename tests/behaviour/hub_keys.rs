//! The hub's key rotates through a node: a few groups at a time, whatever ends the process in between, and the old key is
//! needed until the last group has let go of it.

use std::collections::BTreeSet;

use mimid::{
    actors::hub_keys::KeysInUse,
    client::core::{Event, Operation},
    store::{Batch, Write, records::GroupHead},
    wire::{client::DeleteDevice, ids::GroupId},
};

use crate::world::{TestClient, World};

/// Runs one test inside an actix `System`.
fn run(test: impl Future<Output = ()>) {
    actix_rt::System::new().block_on(test);
}

fn update() -> Operation {
    Operation::UpdateClient { rotate_key: false }
}

/// alice and bob in `count` groups.
async fn groups(world: &World, count: usize) -> (TestClient, TestClient, Vec<GroupId>) {
    let alice = world.client("alice", "phone").await;
    let bob = world.client("bob", "laptop").await;
    let mut groups = Vec::new();
    for _ in 0..count {
        bob.stock_up(world, 1).await;
        let group = alice.create(world).await;
        alice.add(world, &group, &bob).await;
        groups.push(group);
    }
    bob.receive(world).await;
    (alice, bob, groups)
}

fn no_misbehaviour(client: &TestClient) {
    let events = client.member.events(0, usize::MAX >> 1).unwrap();
    let wrong = |(_, event): &&(u64, Event)| {
        matches!(event, Event::Misbehaviour { .. } | Event::Lost { .. })
    };
    assert_eq!(events.iter().find(wrong), None);
}

#[test]
fn groups_take_the_new_key_a_few_at_a_time_across_crashes_and_then_the_old_one_can_go() {
    run(async {
        let mut world = World::new();
        let (alice, bob, groups) = groups(&world, 5).await;
        world.rotate_hub_key();
        let [new, old] = world.hub_keys()[..] else { panic!("two keys") };
        let fresh = alice.create(&world).await;
        assert_eq!(world.head(&fresh).await.hub_key.unwrap().key, new);
        // nobody asks for these groups: it takes a look at them
        world = world.crash();
        for (woken, crashes) in [(2, true), (2, false), (1, true), (0, false)] {
            let turned = world.node.turn_hub_keys(2).await.unwrap();
            let keys = Some(BTreeSet::from([old, new]));
            assert_eq!(turned, KeysInUse { keys, behind: 5, woken });
            if crashes {
                world = world.crash();
            }
        }
        for group in &groups {
            let stand = world.head(group).await.hub_key.unwrap();
            assert_eq!((stand.key, stand.proposed), (old, Some(new)));
        }
        bob.receive(&world).await;
        alice.receive(&world).await;
        for (at, group) in groups.iter().enumerate() {
            let committer = if at % 2 == 0 { &alice } else { &bob };
            committer.act(&world, group, update()).await.unwrap();
            world = world.crash();
            let stand = world.head(group).await.hub_key.unwrap();
            assert_eq!((stand.key, stand.proposed), (new, None));
        }
        let turned = world.node.turn_hub_keys(2).await.unwrap();
        let keys = Some(BTreeSet::from([new]));
        assert_eq!(turned, KeysInUse { keys, behind: 0, woken: 0 });

        // what the hub does now it does with the new one alone
        world.retire_hub_keys(world.now());
        world = world.crash();
        alice.receive(&world).await;
        bob.receive(&world).await;
        let device = DeleteDevice { client: bob.uri.clone() };
        world.node.delete_device(&bob.uri, device).await.unwrap();
        for group in &groups {
            world.node.settle_group(group).await;
        }
        alice.receive(&world).await;
        for group in &groups {
            alice.act(&world, group, update()).await.unwrap();
            assert_eq!(alice.member.group(group).unwrap().members.len(), 1);
        }
        no_misbehaviour(&alice);
        no_misbehaviour(&bob);
        world.end();
    });
}

#[test]
fn a_group_that_is_active_takes_it_when_it_changes_and_one_that_is_loaded_at_once() {
    run(async {
        let mut world = World::new();
        let (alice, bob, groups) = groups(&world, 2).await;
        world.rotate_hub_key();
        let new = world.hub_keys()[0];
        let proposed = async |world: &World, group: &GroupId| {
            world.head(group).await.hub_key.unwrap().proposed
        };
        alice.say(&world, &groups[0], "nothing changes by this").await;
        assert_eq!(proposed(&world, &groups[0]).await, None);
        alice.act(&world, &groups[0], update()).await.unwrap();
        assert_eq!(proposed(&world, &groups[0]).await, Some(new), "in the commit's own write");
        world = world.crash();
        alice.say(&world, &groups[1], "it is loaded for this").await;
        // behind the message, before whatever comes next
        world.node.settle_group(&groups[1]).await;
        assert_eq!(proposed(&world, &groups[1]).await, Some(new));
        bob.receive(&world).await;
        let texts: BTreeSet<String> = bob.texts().into_iter().collect();
        assert_eq!(
            texts,
            ["nothing changes by this", "it is loaded for this"].map(String::from).into()
        );
        no_misbehaviour(&bob);
        world.end();
    });
}

#[test]
fn a_group_whose_key_was_never_noted_is_looked_at_before_any_key_goes() {
    run(async {
        let mut world = World::new();
        let (alice, bob, groups) = groups(&world, 1).await;
        world = world.crash();
        // as an earlier build left it
        let head = world.head(&groups[0]).await;
        let earlier = GroupHead { hub_key: None, revision: head.revision + 1, ..head };
        world.store.write(Batch::new().and(Write::GroupHead(earlier))).await.unwrap();
        world.rotate_hub_key();
        let [new, old] = world.hub_keys()[..] else { panic!("two keys") };
        let turned = world.node.turn_hub_keys(9).await.unwrap();
        assert_eq!(turned, KeysInUse { keys: None, behind: 0, woken: 1 });
        let turned = world.node.turn_hub_keys(9).await.unwrap();
        // the one that is proposed may not go either, were there a third by now
        assert_eq!(turned, KeysInUse { keys: Some([old, new].into()), behind: 1, woken: 0 });
        bob.receive(&world).await;
        bob.act(&world, &groups[0], update()).await.unwrap();
        assert_eq!(world.head(&groups[0]).await.hub_key.unwrap().key, new);
        alice.receive(&world).await;
        no_misbehaviour(&alice);
        world.end();
    });
}
