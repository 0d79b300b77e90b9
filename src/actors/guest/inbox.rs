//! What providers may leave in the inboxes of this provider's clients: for their groups, and for one client alone. A client that is
//! away long must not be left more than it can ever read, and none may use up what others are to have: each has a share. What
//! users of this provider leave for one of it alone has one together.

use std::collections::HashSet;

use crate::{
    actors::{deliver::Sender, node::Node},
    queue::{followed, state::own_backlog},
    store::{
        InboxUse, LeftBy, Page, StoreError,
        records::{FollowedMember, GroupHead, GroupStatus, OwnSequence, QueueHead},
    },
    wire::{
        ids::{ClientUri, Domain, GroupId},
        queueing::DeliveryItem,
    },
};

/// Items and their bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::actors) struct Amount {
    pub items: usize,
    pub bytes: usize,
}

impl Amount {
    pub fn and(self, other: Self) -> Self {
        Self { items: self.items + other.items, bytes: self.bytes.saturating_add(other.bytes) }
    }

    fn less(self, other: Self) -> Self {
        Self {
            items: self.items.saturating_sub(other.items),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }

    fn has_some(self) -> bool {
        self.items > 0 && self.bytes > 0
    }

    fn half(self) -> Self {
        Self { items: self.items / 2, bytes: self.bytes / 2 }
    }

    fn fits(self, share: Self) -> bool {
        self.items < share.items && self.bytes <= share.bytes
    }
}

impl From<&InboxUse> for Amount {
    fn from(used: &InboxUse) -> Self {
        Self { items: used.items, bytes: used.bytes }
    }
}

/// What is left for one client alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::actors) enum Sort {
    /// By strangers, who leave room for what others are to tell, and for the groups that their provider hosts.
    Offer,
    Message,
}

/// What may still be left for one client alone: of all that leave something, and of who leaves it now.
#[derive(Debug, Clone, Copy)]
pub(in crate::actors) struct Room {
    all: Amount,
    share: Amount,
}

impl Room {
    /// Takes the place of one thing of so many bytes. As long as there is any room one more fits.
    ///
    /// # Errors
    /// The name of the bound that was reached.
    pub fn take(&mut self, bytes: usize) -> Result<(), &'static str> {
        if self.all.items == 0 {
            return Err("request");
        }
        if self.all.bytes == 0 {
            return Err("inbox");
        }
        if !self.share.has_some() {
            return Err("inbox_hub");
        }
        let one = Amount { items: 1, bytes };
        (self.all, self.share) = (self.all.less(one), self.share.less(one));
        Ok(())
    }
}

impl Node {
    /// Whether `hub` may leave something for `client` in a group of its: what is there is within the bounds of all, and what
    /// this one has left within its own.
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
            Some(uses) => {
                let share = self.share();
                let used = self.share_of(hub, &uses, Amount::default(), share).await?;
                (used.fits(share), "inbox_hub")
            }
            None => (false, "inbox"),
        };
        if !has_room {
            self.metrics.queue_overflows.with_label_values(&[kind]).inc();
        }
        Ok(has_room)
    }

    /// What `by` may leave of `sort` for `client` alone, and where its queue stands. `more` is what is to be left.
    pub(in crate::actors) async fn room_for(
        &self,
        client: &ClientUri,
        by: &Sender,
        sort: Sort,
        more: Amount,
    ) -> Result<(Room, QueueHead), StoreError> {
        let (bytes_max, entries_max) = (self.limits.inbox_bytes_max, self.limits.own_entries_max);
        let items_max = match sort {
            Sort::Offer => entries_max - entries_max / 10,
            Sort::Message => entries_max,
        };
        let most = Page { items_max, bytes_max: usize::MAX };
        // before the head: what the queue takes meanwhile counts twice, not never
        let uses = self.store.inbox_use(client, most).await?;
        let head = self.store.queue_head(client).await?.unwrap_or_default();
        let none = Amount::default();
        let Some(uses) = uses else { return Ok((Room { all: none, share: none }, head)) };
        let waiting = uses.iter().map(Amount::from).fold(none, Amount::and);
        let unread = OwnSequence(head.acknowledged_own.0.saturating_add(1));
        let own = self.store.own_bytes(client, unread, bytes_max).await?.unwrap_or(bytes_max);
        let own = Amount { items: own_backlog(&head), bytes: own };
        let all = Amount { items: items_max, bytes: bytes_max }.less(waiting).less(own);
        let (share, used) = match (by, sort) {
            (Sender::Peer(peer), Sort::Offer) => {
                let share = self.share().half();
                (share, self.share_of(peer, &uses, more, share).await?)
            }
            (Sender::Peer(peer), Sort::Message) => {
                (self.share(), self.share_of(peer, &uses, more, self.share()).await?)
            }
            // not what this provider's groups have left
            (Sender::User(_), _) => (self.share(), left_by(&self.domain, &uses)),
        };
        Ok((Room { all, share: share.less(used) }, head))
    }

    /// What one provider may have left for one client.
    fn share(&self) -> Amount {
        Amount {
            items: self.limits.inbox_items_per_hub_max,
            bytes: self.limits.inbox_bytes_per_hub_max,
        }
    }

    /// What of `uses` counts for `hub`: what it has left for the client alone, and what the groups that it hosts have. Where
    /// all of it, with `more`, is within `share` all of it does: whoever left it, nothing need be looked up. Nor is
    /// anything once the share is used up.
    async fn share_of(
        &self,
        hub: &Domain,
        uses: &[InboxUse],
        more: Amount,
        share: Amount,
    ) -> Result<Amount, StoreError> {
        let all = uses.iter().map(Amount::from).fold(Amount::default(), Amount::and);
        if all.and(more).fits(share) {
            return Ok(all);
        }
        let mut used = left_by(hub, uses);
        let mut of_groups: Vec<_> = uses
            .iter()
            .filter_map(|it| match &it.by {
                LeftBy::Group(group) => Some((group, Amount::from(it))),
                LeftBy::Provider(_) | LeftBy::Other => None,
            })
            .collect();
        of_groups.sort_unstable_by_key(|(_, amount)| std::cmp::Reverse(amount.bytes));
        for (group, amount) in of_groups {
            if !used.fits(share) {
                break;
            }
            if self.host_of(group).await? == *hub {
                used = used.and(amount);
            }
        }
        Ok(used)
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

/// What `provider` or its users have left for the client alone.
fn left_by(provider: &Domain, uses: &[InboxUse]) -> Amount {
    let own = uses.iter().filter(|it| matches!(&it.by, LeftBy::Provider(by) if by == provider));
    own.map(Amount::from).fold(Amount::default(), Amount::and)
}
