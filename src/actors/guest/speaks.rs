//! Who may say what happens in a group that is not hosted here.

use std::borrow::Cow;

use crate::{
    actors::node::Node,
    queue::followed,
    store::{
        StoreError,
        records::{GroupHead, GroupStatus},
    },
    wire::{
        codec::List,
        ids::{Domain, GroupId, Sequence},
        queueing::DeliveryItem,
    },
};

/// What a peer is to a group that it speaks for.
pub(super) enum Speaker<'a> {
    Hub(Cow<'a, [(u32, DeliveryItem)]>),
    /// The group is hosted here and came from it, with all that it had: what is before this sequence.
    LastHub(Sequence),
    /// Its proof cannot be checked now.
    Unproven,
    Other,
}

impl Node {
    /// Whether `from` may say what happens in `group`: its hub, as far as it is known here, or one that the chain of a
    /// snapshot leads to. What is proven is taken out of the items.
    ///
    /// `members` of this provider's clients are in it. Where nobody is, no hub had to tell where the group went from the
    /// one that is known here, and a chain begins anew with the group's coming home: then a snapshot that brings
    /// somebody in is judged as where nothing is known, by who created the group.
    pub(super) async fn who_speaks<'a>(
        &self,
        from: &Domain,
        group: &GroupId,
        (hub, members): (Option<&Domain>, u64),
        items: &'a [(u32, DeliveryItem)],
    ) -> Result<Speaker<'a>, StoreError> {
        let chain_in = |item: &DeliveryItem| match item {
            DeliveryItem::Snapshot { chain, .. } if !chain.is_empty() => Some(chain.clone()),
            DeliveryItem::Snapshot { .. }
            | DeliveryItem::Feed { .. }
            | DeliveryItem::Direct { .. } => None,
        };
        let chain = items.iter().find_map(|(_, item)| chain_in(item));
        let unchained = || {
            let without = items.iter().map(|(index, item)| match item {
                DeliveryItem::Snapshot { group_id, next_sequence, roster, .. } => {
                    let (group_id, roster) = (group_id.clone(), roster.clone());
                    let (next_sequence, chain) = (*next_sequence, List::default());
                    (*index, DeliveryItem::Snapshot { group_id, next_sequence, chain, roster })
                }
                DeliveryItem::Feed { .. } | DeliveryItem::Direct { .. } => (*index, item.clone()),
            });
            Speaker::Hub(Cow::Owned(without.collect()))
        };
        let head = self.store.group_head(group).await?;
        let is_hosted =
            |head: &GroupHead| matches!(head.status, GroupStatus::Active | GroupStatus::Migrating);
        // not even who created it
        if let Some(head) = head.as_ref().filter(|head| is_hosted(head)) {
            let moves = self.store.moves(group).await?;
            let last = moves.and_then(|moves| moves.arrived);
            let is_last = last.is_some_and(|arrived| arrived.here && arrived.source == *from);
            let last_hub = Speaker::LastHub(head.next_sequence);
            return Ok(if is_last { last_hub } else { Speaker::Other });
        }
        if followed::is_hub(from, group, hub, &self.domain) {
            return Ok(if chain.is_some() {
                unchained()
            } else {
                Speaker::Hub(Cow::Borrowed(items))
            });
        }
        if head.as_ref().is_some_and(|head| head.status == GroupStatus::Deleted) {
            return Ok(Speaker::Other);
        }
        let begins_anew = members == 0 && opens_behind(items, head.as_ref());
        if begins_anew && followed::is_hub(from, group, None, &self.domain) {
            tracing::info!(%group, hub = %from, "a group that nobody here was in any more is at home again");
            return Ok(unchained());
        }
        let Some(chain) = chain.filter(|_| *from != self.domain) else { return Ok(Speaker::Other) };
        // from the hub that is known here, or from the provider that created the group
        let leads_on = |from: &Domain| chain.iter().any(|link| link.source_domain == *from);
        let known = hub.filter(|hub| !begins_anew || leads_on(hub));
        let begin = known.cloned().unwrap_or_else(|| group.domain());
        let links = chain.into_vec().into_iter().skip_while(|link| link.source_domain != begin);
        let Ok(links) = List::new(links.collect()) else { return Ok(Speaker::Other) };
        match self.proves(group, &begin, from, &links).await {
            Ok(true) => {
                tracing::info!(%group, hub = %from, "a group's moves prove that it is hosted there now");
                Ok(unchained())
            }
            Ok(false) => Ok(Speaker::Other),
            // of this group alone: others of the same batch wait for nothing
            Err(error) => {
                tracing::info!(%group, peer = %from, %error, "a group's moves cannot be proven now; its hub is told to wait");
                Ok(Speaker::Unproven)
            }
        }
    }
}

/// Whether what comes first brings somebody in, behind all that was here: no older hub's word that comes again does.
fn opens_behind(items: &[(u32, DeliveryItem)], head: Option<&GroupHead>) -> bool {
    let Some((_, DeliveryItem::Snapshot { next_sequence, roster, .. })) = items.first() else {
        return false;
    };
    !roster.is_empty() && head.is_none_or(|head| *next_sequence > head.next_sequence)
}
