//! Guests that are still owed something of a time when this provider hosted a group that comes back to it.
//!
//! Such a guest goes on where it stands: it gets what is left for it, up to the group_moved by which the group went, from
//! here, what came after that from who hosted it then, and what comes from now on from here again. So each waits for the
//! other by `wrong_hub`, and nothing is lost or doubled. PROTOCOL.md §6.

use std::collections::BTreeSet;

use super::HOLE_MAX;
use crate::{
    actors::{group::PAGE, node::Node, peer::items::fed},
    store::StoreError,
    wire::ids::{Domain, GroupId, Sequence},
};

/// Who is owed something of before.
#[derive(Debug, Default)]
pub(super) struct Owed {
    pub guests: BTreeSet<Domain>,
    /// What the log lacks between what is owed and where the copy ends: it was not kept here while nobody here read it. For
    /// these guests the log goes on behind that only where it has no hole.
    pub holes: Vec<Sequence>,
}

impl Node {
    /// Who of `guests` is owed something of the group, whose copy ends before `next` as it is stored.
    pub(super) async fn owed_of_before(
        &self,
        group: &GroupId,
        guests: impl Iterator<Item = &Domain>,
        next: Sequence,
    ) -> Result<Owed, StoreError> {
        let (mut owed, mut behind) = (Owed::default(), next);
        for guest in guests {
            let Some(until) = self.store.outbound_at(guest, group).await? else { continue };
            let replica = self.store.replica(guest, group).await?;
            if replica.is_none_or(|replica| fed(&replica) < until) {
                owed.guests.insert(guest.clone());
                behind = behind.min(until.next());
            }
        }
        let mut expected = behind;
        while expected < next {
            let page = self.store.feed(group, expected, PAGE).await?;
            // what there is, and the end
            let there = page.iter().map(|entry| entry.sequence.min(next));
            let end = page.is_empty().then_some(next);
            for sequence in there.chain(end) {
                if sequence.0 - expected.0 > HOLE_MAX - owed.holes.len() as u64 {
                    return Ok(Owed { holes: Vec::new(), ..owed });
                }
                owed.holes.extend((expected.0..sequence.0).map(Sequence));
                expected = sequence.next();
            }
        }
        Ok(owed)
    }
}
