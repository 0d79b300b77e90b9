//! Whose turn it is: the operations of one group follow each other, those of different groups do not wait.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

use crate::wire::ids::GroupId;

/// The groups that something is done in or waits to be done in; no others are remembered.
#[derive(Debug, Default)]
pub(super) struct Turns {
    groups: Mutex<HashMap<GroupId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Turns {
    /// Waits until nothing else is done in `group`; nothing is before the guard is dropped.
    pub(super) async fn of(&self, group: &GroupId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
            groups.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(groups.entry(group.clone()).or_default())
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ids::Domain;

    fn group(n: u8) -> GroupId {
        GroupId::of(&Domain::new("a.example").unwrap(), [n; 16])
    }

    #[tokio::test]
    async fn turns_of_one_group_follow_each_other_and_those_of_others_do_not_wait() {
        let turns = Turns::default();
        let (one, two) = (group(1), group(2));
        let first = turns.of(&one).await;
        let other = turns.of(&two).await;
        let mut second = std::pin::pin!(turns.of(&one));
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        drop(first);
        let second = second.await;
        drop((second, other));
        let last = turns.of(&group(3)).await;
        assert_eq!(turns.groups.lock().unwrap().len(), 1, "only what is in use is remembered");
        drop(last);
    }
}
