//! The hub's keys at work: what others are told of them, and that groups take the newest one's, a few at a time. The rules
//! are in [`crate::group::keys`].

use std::collections::BTreeSet;

use super::node::{Node, ProviderKey};
use crate::{
    federation::{message::PURPOSE_EXTERNAL_SENDER, own_keys::published},
    group::{HubKey, RetiredKey},
    store::{
        StoreError,
        records::{GroupStatus, KeyPrint},
    },
    wire::{client::VerificationKeyResponse, ids::Timestamp},
};

/// Where the groups hosted here stand with the hub's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysInUse {
    /// The keys that are in groups; none where that is not known of every group yet.
    pub keys: Option<BTreeSet<KeyPrint>>,
    /// Groups that have an old key.
    pub behind: usize,
    /// Groups that were woken to propose the new one.
    pub woken: usize,
}

impl Node {
    /// From now on the hub's keys are these. Groups that are active take the newest at their next change.
    pub fn replace_external_senders(&self, mut keys: Vec<ProviderKey>) {
        keys.sort_by_key(|key| std::cmp::Reverse(key.not_before));
        self.hub().keys.replace(of_providers(&keys));
        if let Some(federation) = &self.federation {
            federation.replace_external_senders(keys);
        }
    }

    /// From now on these keys are retired: to be told before [`Node::replace_external_senders`] is, so that none is missing
    /// in between.
    pub fn replace_retired_senders(&self, keys: Vec<RetiredKey>) {
        self.hub().keys.replace_retired(keys.clone());
        if let Some(federation) = &self.federation {
            federation.replace_retired_senders(keys);
        }
    }

    /// What new groups may have of the hub's keys, the newest first.
    #[must_use]
    pub fn external_senders(&self) -> VerificationKeyResponse {
        let mut keys: Vec<ProviderKey> = self
            .hub()
            .keys
            .all()
            .iter()
            .map(|HubKey { key, since }| ProviderKey {
                key: key.clone(),
                not_before: *since,
                not_after: Timestamp(u64::MAX),
            })
            .collect();
        keys.sort_by_key(|key| std::cmp::Reverse(key.not_before));
        published(&self.domain, &keys, PURPOSE_EXTERNAL_SENDER, self.clock.now())
    }

    /// Looks through the groups hosted here and wakes at most `groups_max` of those that have an old key and have not
    /// proposed the new one yet, or of which the key is not known. The next call goes on where this one stopped, so that
    /// some that cannot propose now (another GroupContextExtensions is pending) do not keep others waiting.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn turn_hub_keys(&self, groups_max: usize) -> Result<KeysInUse, StoreError> {
        let newest = self.hub().keys.newest();
        let held: BTreeSet<KeyPrint> = self.hub().keys.all().iter().map(HubKey::print).collect();
        let stopped_at = self.groups.turning.take();
        let mut skips = stopped_at.is_some();
        let (mut keys, mut unknown, mut behind, mut woken) = (BTreeSet::new(), 0, 0, 0);
        let mut after = None;
        loop {
            let heads = self.store.group_heads(after.as_ref(), 512).await?;
            let Some(last) = heads.last() else { break };
            after = Some(last.group.clone());
            let hosted = [GroupStatus::Active, GroupStatus::Migrating];
            for head in heads.iter().filter(|head| hosted.contains(&head.status)) {
                let due = match head.hub_key {
                    None => {
                        unknown += 1;
                        true
                    }
                    Some(stand) => {
                        keys.insert(stand.key);
                        // not less in use for not being committed yet: the commit may come when it is the only one told
                        keys.extend(stand.proposed);
                        let old = !newest.contains(&stand.key);
                        behind += usize::from(old);
                        // a key that is not held can sign nothing: there is no use in waking the group
                        let proposed = stand.proposed.is_some_and(|key| newest.contains(&key));
                        old && !proposed && held.contains(&stand.key)
                    }
                };
                let due = due && head.status == GroupStatus::Active;
                if due && !skips && woken < groups_max {
                    woken += 1;
                    self.settle_group(&head.group).await;
                    if woken == groups_max {
                        self.groups.turning.put(head.group.clone());
                    }
                }
                skips = skips && stopped_at.as_ref() != Some(&head.group);
            }
            tokio::task::yield_now().await;
        }
        self.keys_of_moves(&mut keys).await?;
        self.metrics.groups_behind_hub_key.set(i64::try_from(behind).unwrap_or(i64::MAX));
        // a group or a move that cannot be read may have any key, and may be restored
        let damaged = self.store.damaged();
        let unread = ["group head", "moves"].iter().any(|kind| damaged.contains_key(kind));
        let keys = (unknown == 0 && !unread).then_some(keys);
        Ok(KeysInUse { keys, behind, woken })
    }
}

impl Node {
    /// Keys that signed where groups have gone, for as long as that is remembered (as long as it is told, or its target is still
    /// to be handed the proof), and that groups have come, until that is known.
    async fn keys_of_moves(&self, keys: &mut BTreeSet<KeyPrint>) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let page = self.store.all_moves(after.as_ref(), 256).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for (_, moves) in page {
                keys.extend(moves.left.map(|left| left.key));
                // its source may still ask for the answer
                let unknown = moves.arrived.filter(|arrived| !arrived.confirmed);
                keys.extend(unknown.and_then(|arrived| arrived.key));
            }
        }
    }
}

pub(super) fn of_providers(keys: &[ProviderKey]) -> Vec<HubKey> {
    keys.iter().map(|key| HubKey { key: key.key.clone(), since: key.not_before }).collect()
}
