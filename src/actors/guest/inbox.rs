//! What hubs may leave in the inboxes of this provider's clients. A client that is away long must not be left more than it can
//! ever read, and no hub may use up what others are to have: each has a share.

use std::collections::HashSet;

use crate::{
    actors::node::Node,
    queue::followed,
    store::{
        InboxUse, Page, StoreError,
        records::{FollowedMember, GroupHead, GroupStatus},
    },
    wire::{
        ids::{ClientUri, Domain, GroupId},
        queueing::DeliveryItem,
    },
};

impl Node {
    /// Whether `hub` may leave something for `client`: what is there is within the bounds of all hubs, and what the
    /// groups of this one have left within its own.
    pub(in crate::actors) async fn has_room_for(
        &self,
        client: &ClientUri,
        hub: &Domain,
    ) -> Result<bool, StoreError> {
        let most = Page {
            items_max: self.limits.own_welcomes_max,
            bytes_max: self.limits.inbox_bytes_max,
        };
        let (has_room, kind) = match self.store.inbox_use(client, most).await? {
            Some(uses) => (self.has_share(hub, uses).await?, "inbox_hub"),
            None => (false, "inbox"),
        };
        if !has_room {
            self.metrics.queue_overflows.with_label_values(&[kind]).inc();
        }
        Ok(has_room)
    }

    async fn has_share(&self, hub: &Domain, mut uses: Vec<InboxUse>) -> Result<bool, StoreError> {
        let limits = &self.limits;
        let fits = |(items, bytes): (usize, usize)| {
            items < limits.inbox_items_per_hub_max && bytes <= limits.inbox_bytes_per_hub_max
        };
        let add = |(items, bytes), it: &InboxUse| (items + it.items, bytes + it.bytes);
        if fits(uses.iter().fold((0, 0), add)) {
            // whoever left it: nothing need be looked up
            return Ok(true);
        }
        uses.sort_unstable_by_key(|it| std::cmp::Reverse(it.bytes));
        let mut of_hub = (0, 0);
        for used in &uses {
            // what came for the client alone is bounded where it comes in
            let Some(group) = &used.group else { continue };
            if self.host_of(group).await? != *hub {
                continue;
            }
            of_hub = add(of_hub, used);
            if !fits(of_hub) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Who hosts a group, this provider among others.
    async fn host_of(&self, group: &GroupId) -> Result<Domain, StoreError> {
        if let Some(followed) = self.store.followed(group).await? {
            return Ok(followed.hub);
        }
        let is_own = match self.store.group_head(group).await?.map(|head| head.status) {
            Some(GroupStatus::Active | GroupStatus::Migrating) => true,
            Some(GroupStatus::Followed | GroupStatus::Deleted) | None => false,
        };
        Ok(if is_own { self.domain.clone() } else { group.domain() })
    }

    /// Those of `members` whom a snapshot of `hub` among `items` may leave nothing more. Where none of these can change
    /// anything nobody is looked at.
    pub(super) async fn full_of(
        &self,
        hub: &Domain,
        members: &[FollowedMember],
        head: Option<&GroupHead>,
        items: &[(u32, DeliveryItem)],
    ) -> Result<HashSet<ClientUri>, StoreError> {
        let mut full = HashSet::new();
        let leaves = |item: &DeliveryItem| {
            matches!(item, DeliveryItem::Snapshot { .. }) && !followed::is_past(item, head)
        };
        if !items.iter().any(|(_, item)| leaves(item)) {
            return Ok(full);
        }
        for client in
            members.iter().filter(|it| followed::is_reader(it)).filter_map(|it| it.client.as_ref())
        {
            if !self.has_room_for(client, hub).await? {
                full.insert(client.clone());
            }
        }
        Ok(full)
    }
}
