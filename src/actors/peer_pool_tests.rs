//! What the stagings of large groups and requests stand in the way of.

use tokio::time::timeout;

use super::*;
use crate::{
    account::Registration,
    actors::{
        GroupOptions,
        stages::{Spent, Stage, Stages},
    },
};

/// So long is waited for what would never come.
const PATIENCE: Duration = Duration::from_secs(180);

#[actix_rt::test]
async fn message_to_a_large_group_is_answered_while_the_pool_is_full_and_its_commits_wait() {
    let world = World::new(|_| ());
    let (bob, carol, group, _) = two(&world).await;
    let carols = carol.create(&world).await;
    // every group is a large one
    let options = GroupOptions { inline_members_max: 0, ..GroupOptions::new(domain("a")) };
    let all = u32::try_from(options.pool_threads).unwrap();
    world.node.replace_limits(world.limits.clone(), options, Registration::Open);
    let full = world.node.groups.cpu.acquire_many(all).await.unwrap();
    let before = world.node.store.group_head(&group).await.unwrap().unwrap().next_sequence;
    let said = timeout(PATIENCE, bob.say(&world, &group, "hello")).await;
    assert_eq!(said.expect("it needs nothing of the pool"), before);

    let update = bob.act(&world, &group, Operation::UpdateClient { rotate_key: false });
    let mut update = std::pin::pin!(update);
    assert!(futures_util::poll!(&mut update).is_pending());
    timeout(PATIENCE, carol.say(&world, &carols, "in another one")).await.unwrap();
    assert!(futures_util::poll!(&mut update).is_pending(), "a commit is staged in the pool");
    drop(full);
    assert_eq!(timeout(PATIENCE, update).await.unwrap(), before.next());
}

#[actix_rt::test]
async fn a_commit_with_many_adds_in_a_small_group_is_staged_in_the_pool() {
    let world = World::new(|_| ());
    let (bob, _, group, _) = two(&world).await;
    let all = u32::try_from(world.node.groups.options.pool_threads).unwrap();
    let full = world.node.groups.cpu.acquire_many(all).await.unwrap();
    let update = bob.act(&world, &group, Operation::UpdateClient { rotate_key: false });
    let before = timeout(PATIENCE, update).await.expect("it needs nothing of the pool");

    let key_packages = (0..48).map(|index| {
        let newcomer = Client::new(&format!("c:new{index}/phone"));
        newcomer.stock_up();
        let class = KeyPackageClass::Group;
        let made = newcomer.member.key_packages(class, SUITES[0], false, 1, SystemClock.now());
        made.unwrap()[0].as_slice().to_vec()
    });
    let adds = Operation::AddUsers { key_packages: key_packages.collect() };
    let stages = Stages::begin();
    let mut adds = std::pin::pin!(stages.clone().scope(bob.act(&world, &group, adds)));
    // taken up, and waiting again
    let waits = || {
        let (before, now) = (stages.spent(), stages.spent());
        let waited = |spent: &Spent| spent.in_stage(Stage::Queue);
        before.in_stage(Stage::Stage).is_some() && waited(&now) > waited(&before)
    };
    while !waits() {
        assert_eq!(stages.spent().in_stage(Stage::Write), None, "it is staged in the pool");
        assert!(futures_util::poll!(&mut adds).is_pending(), "it is staged in the pool");
        tokio::task::yield_now().await;
    }
    drop(full);
    assert_eq!(timeout(PATIENCE, adds).await.unwrap(), before.next());
}
