//! What large groups' stagings stand in the way of.

use tokio::time::timeout;

use super::*;
use crate::{account::Registration, actors::GroupOptions};

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
