//! Records that cannot be read: each is said once, and counted by kind, while everything else goes on.
//!
//! Here: what was found since the store was opened. What it belongs to is refused by whoever asked for it; nothing is
//! repaired here, and a record that is restored is seen as such by the next read.
//!
//! **Bound.** [`KNOWN_MAX`] records are told apart; of more, none is said any more nor counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use super::{
    StoreError,
    keys::{self, Key},
    writer::locked,
};

/// Damaged records that are told apart.
const KNOWN_MAX: usize = 4_096;

/// How many records of a kind were found that cannot be read.
pub type DamagedByKind = BTreeMap<&'static str, u64>;

#[derive(Default)]
pub(super) struct Damages(Mutex<BTreeSet<Key>>);

impl Damages {
    /// Names the record under `key` in an error that says that it cannot be read, and says it where it is new.
    pub fn named(&self, key: &[u8], error: StoreError) -> StoreError {
        let StoreError::Corrupt { what } = error else { return error };
        let kind = keys::kind(key);
        let named = StoreError::Corrupt { what: format!("{kind} {}: {what}", hex::encode(key)) };
        let is_new = {
            let mut known = locked(&self.0);
            known.len() < KNOWN_MAX && known.insert(key.to_vec())
        };
        if is_new {
            tracing::error!(
                kind,
                key = hex::encode(key),
                reference = named.reference(),
                what,
                "a stored record is damaged: what it belongs to is refused, everything else goes on; restore it from a backup"
            );
        }
        named
    }

    pub fn by_kind(&self) -> DamagedByKind {
        let mut kinds = DamagedByKind::new();
        for key in locked(&self.0).iter() {
            *kinds.entry(keys::kind(key)).or_default() += 1;
        }
        kinds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        store::{
            Batch, Write,
            memory::Disk,
            records::{GroupHead, GroupStatus},
        },
        wire::ids::{Domain, Epoch, GroupId, Sequence, Timestamp},
    };

    fn head(group: &GroupId) -> GroupHead {
        GroupHead {
            group: group.clone(),
            status: GroupStatus::Active,
            next_sequence: Sequence(1),
            first_sequence: Sequence(1),
            epoch: Epoch(0),
            revision: 1,
            snapshot: Sequence(0),
            previous_snapshot: None,
            created_at: Timestamp(0),
            last_accepted_at: Timestamp(0),
            log_bytes: 0,
            joiner_infos: Vec::new(),
            wake_at: None,
            hub_key: None,
            last: None,
        }
    }

    #[tokio::test]
    async fn damaged_record_is_named_and_counted_once_and_the_others_are_read() {
        let disk = Disk::new();
        let store = disk.open().unwrap();
        let domain = Domain::new("a.example").unwrap();
        let groups: Vec<GroupId> = (0..6).map(|n| GroupId::of(&domain, [n; 16])).collect();
        for group in &groups {
            store.write(Batch::new().and(Write::GroupHead(head(group)))).await.unwrap();
        }
        let in_order = store.group_heads(None, 9).await.unwrap();
        // one in the middle and the last, which a page could end at
        let damaged = [in_order[2].group.clone(), in_order[5].group.clone()];
        disk.tamper(|map| {
            map.insert(keys::group_head(&damaged[0]), [0, 0, 0, 1, 99].into());
            map.insert(keys::group_head(&damaged[1]), [7].into());
        });
        let store = disk.open().unwrap();
        assert!(store.damaged().is_empty());
        let error = store.group_head(&damaged[0]).await.unwrap_err();
        let again = store.group_head(&damaged[0]).await.unwrap_err();
        let key = hex::encode(keys::group_head(&damaged[0]));
        assert!(error.to_string().contains(&format!("group head {key}")), "{error}");
        assert_eq!(error.reference(), again.reference());
        assert_eq!(store.damaged(), DamagedByKind::from([("group head", 1)]));

        // page by page, of one and of all
        for items_max in [1, 2, 9] {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let page = store.group_heads(after.as_ref(), items_max).await.unwrap();
                let Some(last) = page.last() else { break };
                after = Some(last.group.clone());
                seen.extend(page);
            }
            let whole = in_order.iter().filter(|head| !damaged.contains(&head.group));
            assert!(seen.iter().eq(whole), "{items_max}");
        }
        assert_eq!(store.damaged(), DamagedByKind::from([("group head", 2)]));
        let write = Batch::new().and(Write::GroupHead(head(&in_order[0].group)));
        store.write(write).await.unwrap();
    }
}
