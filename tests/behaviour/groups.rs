//! Groups as actors: what is answered is durable, what is not durable is not answered, and a group comes back from
//! the store as it was.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use mimid::{
    actors::arbiters::Duty,
    client::core::{Content, CoreError, Event, NewProposal, Operation},
    store::faults::Fault,
    wire::{
        client::{Complain, DeleteDevice},
        codec::Opaque,
        ds::{
            CommitComplaint, ComplaintOutcome, ComplaintReason, ComplaintResponse, DsError,
            DsResponseBody, Outcome,
        },
        extensions::Signature,
        ids::{Epoch, GroupId, LeafIndex},
    },
};

use crate::{
    providers::{PATIENCE, eventually},
    world::{TestClient, World},
};

/// Runs one test inside an actix `System`.
fn run(test: impl Future<Output = ()>) {
    actix_rt::System::new().block_on(test);
}

/// alice and bob in one group.
async fn two(world: &World) -> (TestClient, TestClient, GroupId) {
    let alice = world.client("alice", "phone").await;
    let bob = world.client("bob", "laptop").await;
    let group = alice.create(world).await;
    alice.add(world, &group, &bob).await;
    bob.receive(world).await;
    (alice, bob, group)
}

#[test]
fn a_message_reaches_everybody_but_its_sender_once() {
    run(async {
        let world = World::new();
        let (alice, bob, group) = two(&world).await;
        alice.say(&world, &group, "hello").await;
        bob.receive(&world).await;
        bob.say(&world, &group, "hello yourself").await;
        alice.receive(&world).await;
        bob.receive(&world).await;
        assert_eq!(bob.texts(), ["hello"]);
        assert_eq!(alice.texts(), ["hello yourself"]);
        world.end();
    });
}

#[test]
fn a_group_survives_a_crash_between_any_two_steps() {
    run(async {
        let mut world = World::new();
        let (alice, bob, group) = two(&world).await;
        for round in 0..4 {
            world = world.crash();
            alice.say(&world, &group, &format!("before {round}")).await;
            world = world.crash();
            let update = Operation::UpdateClient { rotate_key: round % 2 == 0 };
            alice.act(&world, &group, update).await.unwrap();
            world = world.crash();
            bob.receive(&world).await;
            bob.say(&world, &group, &format!("after {round}")).await;
            world = world.crash();
            alice.receive(&world).await;
        }
        assert_eq!(bob.texts(), ["before 0", "before 1", "before 2", "before 3"]);
        assert_eq!(alice.texts(), ["after 0", "after 1", "after 2", "after 3"]);
        world.end();
    });
}

#[test]
fn a_retry_of_what_was_accepted_is_answered_alike_after_a_crash_and_delivered_once() {
    run(async {
        let mut world = World::new();
        let (alice, bob, group) = two(&world).await;
        let content = mimid::client::core::Content::text("once").encode();
        let request = alice.member.begin(&group, Operation::Send { content }).unwrap();
        let mut answers = Vec::new();
        for _ in 0..3 {
            // the answer is lost each time: the client knows of none
            let outbound = alice.member.outbound(request, world.now()).unwrap();
            let response = world.node.group_operation(&alice.uri, outbound.message).await;
            answers.push(response.outcome);
            world = world.crash();
        }
        assert!(matches!(&answers[0], Outcome::Ok(DsResponseBody::Accepted(_))), "{answers:?}");
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        alice.drive(&world, request).await.unwrap();
        bob.receive(&world).await;
        assert_eq!(bob.texts(), ["once"]);
        world.end();
    });
}

#[test]
fn nothing_is_answered_before_it_is_durable_refusals_included() {
    run(async {
        let world = World::new();
        let (alice, bob, group) = two(&world).await;
        let update = Operation::UpdateClient { rotate_key: false };
        let winner = alice.member.begin(&group, update.clone()).unwrap();
        let loser = bob.member.begin(&group, update).unwrap();
        world.clock.advance_ms(1);
        let winning = alice.member.outbound(winner, world.now()).unwrap().message;
        let losing = bob.member.outbound(loser, world.now()).unwrap().message;

        world.disk.faults().hold();
        let (node, uri) = (world.node.clone(), alice.uri.clone());
        let first = actix_rt::spawn(async move { node.group_operation(&uri, winning).await });
        world.disk.faults().until_queued(1).await;
        let (node, uri) = (world.node.clone(), bob.uri.clone());
        let second = actix_rt::spawn(async move { node.group_operation(&uri, losing).await });
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!first.is_finished() && !second.is_finished(), "both rest on a write in flight");
        world.disk.faults().release();
        assert!(matches!(first.await.unwrap().outcome, Outcome::Ok(_)));
        let second = second.await.unwrap().outcome;
        let Outcome::Err(DsError::WrongEpoch { missed, .. }) = &second else {
            panic!("{second:?}");
        };
        assert_eq!(missed.len(), 1, "the commit that won is in the answer");
        world.end();
    });
}

#[test]
fn a_failed_write_is_unavailable_and_the_group_goes_on_from_what_was_durable() {
    run(async {
        let mut world = World::new();
        let (alice, bob, group) = two(&world).await;
        for fault in [Fault::Lost, Fault::Kept, Fault::Refused] {
            let content = mimid::client::core::Content::text("again").encode();
            let request = alice.member.begin(&group, Operation::Send { content }).unwrap();
            // what was acknowledged is on the disk: no flush but this request's
            world.node.drain_queues().await;
            world.disk.faults().fail_flush(1, fault);
            let outbound = alice.member.outbound(request, world.now()).unwrap();
            let response = world.node.group_operation(&alice.uri, outbound.message).await;
            assert!(
                matches!(&response.outcome, Outcome::Err(DsError::Unavailable { .. })),
                "{fault:?}: {response:?}"
            );
            world = world.crash();
            alice.drive(&world, request).await.unwrap();
        }
        bob.receive(&world).await;
        assert_eq!(bob.texts(), ["again", "again", "again"]);
        world.end();
    });
}

#[test]
fn a_joiner_who_comes_many_snapshots_late_gets_the_tree_of_its_epoch() {
    run(async {
        let mut world = World::new();
        let (alice, bob, group) = two(&world).await;
        let carol = world.client("carol", "phone").await;
        alice.add(&world, &group, &carol).await;
        // enough commits for the snapshot that carol's epoch is in to be replaced twice
        for round in 0..60 {
            let update = Operation::UpdateClient { rotate_key: false };
            alice.act(&world, &group, update).await.unwrap();
            if round % 20 == 0 {
                world = world.crash();
            }
        }
        let head = world.head(&group).await;
        assert!(head.previous_snapshot.is_some(), "{head:?}");
        carol.receive(&world).await;
        carol.say(&world, &group, "late").await;
        bob.receive(&world).await;
        alice.receive(&world).await;
        assert_eq!(bob.texts(), ["late"]);
        assert_eq!(alice.texts(), ["late"]);
        world.end();
    });
}

#[test]
fn an_idle_group_is_passivated_and_comes_back() {
    run(async {
        let world = World::with(|options| options.idle_ms = 20);
        let (alice, bob, group) = two(&world).await;
        let active = || world.node.metrics().group_actors.get();
        world.clock.advance_ms(1_000);
        eventually("the group is let go", async || active() == 0).await;
        alice.say(&world, &group, "awake").await;
        assert!(world.node.metrics().group_activations.get() >= 1);
        bob.receive(&world).await;
        assert_eq!(bob.texts(), ["awake"]);
        world.end();
    });
}

#[test]
fn a_deleted_device_is_proposed_for_removal_even_if_the_provider_dies_in_between() {
    run(async {
        let mut world = World::new();
        let (alice, bob, group) = two(&world).await;
        let tablet = world.further(&bob, "tablet").await;
        let join = tablet
            .member
            .join(&group, &crate::world::domain(), "g", Operation::Join { code: None }, world.now())
            .unwrap();
        tablet.drive(&world, join).await.unwrap();
        alice.receive(&world).await;

        let delete = DeleteDevice { client: tablet.uri.clone() };
        world.node.delete_device(&bob.uri, delete).await.unwrap();
        world = world.crash();
        world.node.wake_noticed_groups().await.unwrap();
        assert_eq!(world.node.wake_noticed_groups().await.unwrap(), 0, "each is taken once");

        // a commit that does not cover the hub's removal is refused, and the client library then covers it
        alice.act(&world, &group, Operation::UpdateClient { rotate_key: false }).await.unwrap();
        let view = alice.member.group(&group).unwrap();
        assert_eq!(view.members.len(), 2, "{view:?}");
        alice.say(&world, &group, "without it").await;
        bob.receive(&world).await;
        assert_eq!(bob.texts(), ["without it"]);
        world.end();
    });
}

/// Looks, without a pause, how many groups are in memory.
struct Watch {
    enough: Arc<AtomicBool>,
    most: JoinHandle<i64>,
}

impl Watch {
    fn over(world: &World) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let (told, active) = (Arc::clone(&enough), world.node.metrics().group_actors.clone());
        let most = thread::spawn(move || {
            let mut most = 0;
            while !told.load(Ordering::SeqCst) {
                most = most.max(active.get());
                thread::yield_now();
            }
            most.max(active.get())
        });
        Self { enough, most }
    }

    fn most(self) -> i64 {
        self.enough.store(true, Ordering::SeqCst);
        self.most.join().unwrap()
    }
}

const ACTIVE_MAX: usize = 16;

/// Groups of `client`, which is alone in each.
async fn many(world: &World, client: &TestClient, count: usize) -> Vec<GroupId> {
    let mut groups = Vec::new();
    for _ in 0..count {
        // those before it are not in use any more
        world.clock.advance_ms(1_001);
        groups.push(client.create(world).await);
    }
    world.clock.advance_ms(1_001);
    groups
}

#[test]
fn a_deleted_device_is_removed_from_hundreds_of_groups_a_few_at_a_time() {
    run(async {
        let mut world = World::with(|options| options.active_max = ACTIVE_MAX);
        let bob = world.client("bob", "phone").await;
        let tablet = world.further(&bob, "tablet").await;
        let groups = many(&world, &tablet, 300).await;
        world = world.crash();
        let last = world.head(&groups[0]).await.next_sequence;
        let watch = Watch::over(&world);
        let delete = DeleteDevice { client: tablet.uri.clone() };
        world.node.delete_device(&bob.uri, delete).await.unwrap();
        for group in &groups {
            eventually("the device is proposed for removal", async || {
                world.head(group).await.next_sequence != last
            })
            .await;
        }
        assert_eq!(world.node.wake_noticed_groups().await.unwrap(), 0, "all has been taken");
        // nobody asked for them: they do not stay
        eventually("no group stays in memory", async || {
            world.node.metrics().group_actors.get() == 0
        })
        .await;
        let most = watch.most();
        assert!(most <= i64::try_from(ACTIVE_MAX / 4).unwrap(), "{most} groups in memory");
        world.end();
    });
}

#[test]
fn the_nodes_own_work_goes_on_where_others_have_all_the_room_that_they_may_have() {
    run(async {
        let mut world = World::with(|options| options.active_max = ACTIVE_MAX);
        let bob = world.client("bob", "phone").await;
        let tablet = world.further(&bob, "tablet").await;
        let groups = many(&world, &tablet, 40).await;
        world = world.crash();
        let watch = Watch::over(&world);
        // no time passes: all of them are in use
        let busy = ACTIVE_MAX * 2 - ACTIVE_MAX / 4;
        for group in &groups[..busy] {
            tablet.say(&world, group, "here").await;
        }
        let content = Content::text("one more").encode();
        let request = tablet.member.begin(&groups[busy], Operation::Send { content }).unwrap();
        let message = tablet.member.outbound(request, world.now()).unwrap().message;
        let refused = world.node.group_operation(&tablet.uri, message).await.outcome;
        assert!(
            matches!(refused, Outcome::Err(DsError::Unavailable { retry_after_ms: 1.., .. })),
            "{refused:?}"
        );
        let delete = DeleteDevice { client: tablet.uri.clone() };
        world.node.delete_device(&bob.uri, delete).await.unwrap();
        for (index, group) in groups.iter().enumerate() {
            let said = u64::from(index < busy);
            eventually("the device is proposed for removal", async || {
                world.head(group).await.next_sequence.0 >= 3 + said
            })
            .await;
        }
        let most = watch.most();
        assert!(most <= i64::try_from(ACTIVE_MAX * 2).unwrap(), "{most} groups in memory");
        world.end();
    });
}

#[test]
fn complaints_about_many_groups_bring_no_more_into_memory_than_may_be_there_and_keep_none() {
    run(async {
        let mut world = World::with(|options| options.active_max = ACTIVE_MAX);
        let alice = world.client("alice", "phone").await;
        let stranger = world.client("mallory", "phone").await;
        let groups = many(&world, &alice, 100).await;
        world = world.crash();
        let watch = Watch::over(&world);
        let complain = |group: &GroupId| Complain {
            hub_domain: world.domain.clone(),
            complaint: CommitComplaint {
                group_id: group.clone(),
                epoch: Epoch(7),
                leaf_index: LeafIndex(7),
                commit_hash: Opaque::new([7; 32]).unwrap(),
                reason: ComplaintReason::Path.into(),
                signature: Signature::default(),
            },
        };
        let all = groups.iter().map(|group| world.node.complain(&stranger.uri, complain(group)));
        for answer in futures_util::future::join_all(all).await {
            let is_heard = matches!(
                &answer,
                Ok(ComplaintResponse { outcome: ComplaintOutcome::None, .. })
                    | Err(DsError::Unavailable { retry_after_ms: 1.., .. })
            );
            assert!(is_heard, "{answer:?}");
        }
        let most = watch.most();
        assert!(most <= i64::try_from(ACTIVE_MAX * 7 / 4).unwrap(), "{most} groups in memory");
        // no time has passed: who asks for another group finds room, once those that were complained of have gone
        for group in &groups {
            let content = Content::text("still here").encode();
            let request = alice.member.begin(group, Operation::Send { content }).unwrap();
            eventually("there is room beside the complaints", async || {
                alice.drive(&world, request).await.is_ok()
            })
            .await;
            world.clock.advance_ms(1_001);
        }
        world.end();
    });
}

#[test]
fn a_member_that_is_inactive_for_the_configured_time_is_removed() {
    run(async {
        let world = World::with(|options| options.settings.inactive_after_ms = Some(60_000));
        let (alice, bob, group) = two(&world).await;
        bob.say(&world, &group, "here").await;
        world.clock.advance_ms(59_000);
        alice.receive(&world).await;
        alice.say(&world, &group, "here too").await;
        assert_eq!(world.node.sweep_groups().await.unwrap(), 0);
        world.clock.advance_ms(2_000);
        assert_eq!(world.node.sweep_groups().await.unwrap(), 1);
        alice.receive(&world).await;
        alice.act(&world, &group, Operation::UpdateClient { rotate_key: false }).await.unwrap();
        assert_eq!(alice.member.group(&group).unwrap().members.len(), 1);
        world.end();
    });
}

#[test]
fn a_member_that_is_to_be_removed_for_its_silence_comes_back_by_a_resync() {
    run(async {
        let world = World::with(|options| options.settings.inactive_after_ms = Some(60_000));
        let (alice, bob, group) = two(&world).await;
        bob.say(&world, &group, "here").await;
        world.clock.advance_ms(59_000);
        alice.receive(&world).await;
        alice.say(&world, &group, "here too").await;
        world.clock.advance_ms(2_000);
        assert_eq!(world.node.sweep_groups().await.unwrap(), 1);
        bob.receive(&world).await;
        let content = Content::text("still here").encode();
        let request = bob.member.begin(&group, Operation::Send { content }).unwrap();
        // it cannot commit its own removal, and must before it speaks
        let refused = bob.member.outbound(request, world.now()).unwrap_err();
        assert!(matches!(refused, CoreError::BeingRemoved(_)), "{refused}");
        bob.member.give_up(request).unwrap();
        bob.act(&world, &group, Operation::Resync).await.unwrap();
        bob.say(&world, &group, "still here").await;
        alice.receive(&world).await;
        assert_eq!(alice.texts(), ["here", "still here"]);
        assert_eq!(alice.member.group(&group).unwrap().members.len(), 2);
        world.end();
    });
}

#[test]
fn a_pending_add_whose_key_package_expires_does_not_stop_the_group() {
    run(async {
        let mut world = World::new();
        let (alice, bob, group) = two(&world).await;
        let carol = world.client("carol", "phone").await;
        let add = carol.key_packages(&world, &alice).await.remove(0);
        let proposals = vec![NewProposal::Add(add)];
        alice.act(&world, &group, Operation::Propose { proposals }).await.unwrap();
        bob.receive(&world).await;
        world = world.crash();
        assert_eq!(bob.member.group(&group).unwrap().pending, 1);
        const DAY_MS: u64 = 86_400_000;
        world.clock.advance_ms(85 * DAY_MS);
        let update = Operation::UpdateClient { rotate_key: false };
        bob.act(&world, &group, update).await.unwrap();
        // the log has it that the Add is void: what was accepted behind it comes back
        world = world.crash();
        bob.say(&world, &group, "without carol").await;
        alice.receive(&world).await;
        alice.say(&world, &group, "so be it").await;
        bob.receive(&world).await;
        assert_eq!(alice.texts(), ["without carol"]);
        assert_eq!(bob.texts(), ["so be it"]);
        assert_eq!(alice.member.group(&group).unwrap().members.len(), 2);
        world.end();
    });
}

#[test]
fn who_was_removed_while_away_gets_what_was_said_before_that_however_the_log_is_cut() {
    run(async {
        let mut world = World::new();
        let (alice, bob, group) = two(&world).await;
        let carol = world.client("carol", "phone").await;
        alice.add(&world, &group, &carol).await;
        carol.receive(&world).await;
        alice.say(&world, &group, "before").await;
        let users = vec![carol.uri.user()];
        alice.act(&world, &group, Operation::RemoveUsers { users }).await.unwrap();
        world.node.drain_queues().await;
        let mine = world.store.subscriptions(&carol.uri).await.unwrap();
        let lacks = mine.iter().find(|mine| mine.group == group).unwrap().acknowledged.next();
        // a snapshot after the other, while everybody else reads everything
        let rotates = async |world: &World| {
            let before = world.head(&group).await.snapshot;
            for _ in 0..2_000 {
                alice
                    .act(world, &group, Operation::UpdateClient { rotate_key: false })
                    .await
                    .unwrap();
                alice.receive(world).await;
                bob.receive(world).await;
                bob.receive(world).await;
                world.node.drain_queues().await;
                let head = world.head(&group).await;
                if head.snapshot > before {
                    return head;
                }
            }
            panic!("no snapshot was taken");
        };
        for _ in 0..3 {
            let head = rotates(&world).await;
            assert!(head.first_sequence <= lacks, "what carol lacks is there: {head:?}");
        }
        world = world.crash();
        carol.receive(&world).await;
        assert_eq!(carol.texts(), ["before"]);
        let events = carol.member.events(0, 1000).unwrap();
        let says = |is: fn(&Event) -> bool| events.iter().any(|(_, event)| is(event));
        assert!(!says(|event| matches!(event, Event::Lost { .. })), "{events:?}");
        assert!(says(|event| matches!(event, Event::Removed { .. })), "{events:?}");
        // and with her acknowledgement nobody needs it any more
        carol.receive(&world).await;
        world.node.drain_queues().await;
        assert_eq!(world.store.leavers(&group, None, 9).await, Ok(Vec::new()));
        assert!(rotates(&world).await.first_sequence > lacks);
        world.end();
    });
}

#[test]
fn a_group_answers_while_nothing_can_be_delivered_and_it_is_delivered_then() {
    run(async {
        let world = World::new();
        let (alice, bob, group) = two(&world).await;
        bob.receive(&world).await;
        let mut held = Vec::new();
        for thread in 0..world.arbiters.threads() as u64 {
            let (tell, told) = mpsc::channel();
            let (go_on, hold) = mpsc::channel::<()>();
            // nothing else runs there, as where each of thousands of clients wants its turn
            let stands_still = async move {
                tell.send(()).unwrap();
                let _ = hold.recv();
            };
            assert!(world.arbiters.spawn_on(Duty::Deliver, thread, stands_still));
            told.recv_timeout(PATIENCE).unwrap();
            held.push(go_on);
        }
        let mut received = Box::pin(bob.receive(&world));
        assert!(futures_util::poll!(&mut received).is_pending());
        let says = async |text| {
            let said = tokio::time::timeout(PATIENCE, alice.say(&world, &group, text)).await;
            said.expect("a group answers, whoever it is delivered to")
        };
        says("one").await;
        says("two").await;
        assert!(futures_util::poll!(&mut received).is_pending(), "nobody could deliver it");
        drop(held);
        tokio::time::timeout(PATIENCE, received).await.unwrap();
        bob.receive(&world).await;
        assert_eq!(bob.texts(), ["one", "two"]);
        world.end();
    });
}

#[test]
fn a_deleted_group_is_gone_and_its_id_stays_taken() {
    run(async {
        let mut world = World::new();
        let (alice, bob, group) = two(&world).await;
        alice.act(&world, &group, Operation::DeleteGroup).await.unwrap();
        bob.receive(&world).await;
        let events = bob.member.events(0, 1000).unwrap();
        assert!(
            events.iter().any(|(_, event)| matches!(event, Event::Deleted { .. })),
            "{events:?}"
        );
        world = world.crash();
        world.clock.advance_ms(31 * 24 * 60 * 60 * 1000);
        assert_eq!(world.node.sweep_groups().await.unwrap(), 1, "its log is dropped");
        let head = world.head(&group).await;
        assert_eq!(head.log_bytes, 0);
        assert_eq!(world.node.sweep_groups().await.unwrap(), 0);
        world.end();
    });
}

#[test]
fn a_quiet_groups_log_goes_when_it_is_old_and_the_group_goes_on() {
    run(async {
        let world = World::with(|options| options.settings.inactive_after_ms = None);
        let (alice, bob, group) = two(&world).await;
        alice.say(&world, &group, "kept for a while").await;
        bob.receive(&world).await;
        alice.receive(&world).await;
        world.clock.advance_ms(31 * 24 * 60 * 60 * 1000);
        // a sweep takes a snapshot of what is there, a later one needs nothing before it
        let mut head = world.head(&group).await;
        for _ in 0..1_000 {
            if head.first_sequence == head.next_sequence {
                break;
            }
            world.node.sweep_groups().await.unwrap();
            head = world.head(&group).await;
        }
        assert_eq!(head.first_sequence, head.next_sequence, "{head:?}");
        assert_eq!(world.node.sweep_groups().await.unwrap(), 0);
        let world = world.crash();
        alice.say(&world, &group, "still here").await;
        bob.receive(&world).await;
        assert_eq!(bob.texts(), ["kept for a while", "still here"]);
        world.end();
    });
}

#[test]
fn a_message_costs_one_log_record_and_one_head_whatever_the_groups_size() {
    run(async {
        let world = World::new();
        let (alice, _bob, group) = two(&world).await;
        let cost = async |alice: &TestClient| {
            // what was acknowledged before is no part of it
            world.node.drain_queues().await;
            let before = world.node.store_stats();
            alice.say(&world, &group, "counted").await;
            let after = world.node.store_stats();
            (after.batches - before.batches, after.writes - before.writes)
        };
        let at_two = cost(&alice).await;
        for name in ["carol", "dave", "erin", "frank"] {
            let other = world.client(name, "phone").await;
            alice.add(&world, &group, &other).await;
        }
        assert_eq!(cost(&alice).await, at_two);
        world.end();
    });
}
