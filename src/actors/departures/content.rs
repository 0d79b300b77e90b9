//! What is sent of a group: made once, from what was frozen, and what its target has not got of the feed.

use std::sync::Arc;

use tls_codec::Size;

use crate::{
    actors::{
        errors::{internal, of_reject, of_store, too_large},
        history,
        node::Node,
        peer,
    },
    crypto::SigningKey,
    group::{GroupState, Hub, Reject, portability::Parcel},
    migration::proof::{hash_of_content, sign_content},
    store::{
        StoreError,
        records::{Departure, GroupHead, GroupStatus},
    },
    wire::{
        codec::{List, decode, encode},
        ds::DsError,
        extensions::SignatureScheme,
        ids::{Domain, GroupId, Sequence},
        portability::{CHAIN_BYTES_MAX, Chain, MigrationResponse},
        queueing::{DeliveryItem, RosterChange},
    },
};

impl Node {
    /// The encoded content, and its hash.
    pub(super) async fn make_content(
        &self,
        departure: &Departure,
        response: MigrationResponse,
        head: &GroupHead,
    ) -> Result<(Vec<u8>, [u8; 32]), DsError> {
        let group = &departure.group;
        let hub = self.hub();
        let (parcel, state) = self.parcel_of(group).await?;
        let mut infos = Vec::new();
        let tail = {
            // both may load the group as it was
            let _turn = Arc::clone(&self.groups.cpu).acquire_owned().await.map_err(internal)?;
            for (epoch, since) in state.joiner_epochs() {
                if epoch < state.epoch() {
                    infos.push(history::joiner_info(self, &hub, head, (epoch, since)).await?);
                }
            }
            self.tail_for(&departure.target, &parcel, head).await?
        };
        let chain = self.chain_to_here(group).await.map_err(of_store)?;
        // this move's own link must fit in behind those before it
        if chain.tls_serialized_len() + LINK_BYTES_MAX > CHAIN_BYTES_MAX {
            let why = "the group has moved too often since it was at home; move it home first";
            return Err(too_large(why, CHAIN_BYTES_MAX));
        }
        let key = key_in_group(&hub, head, state.scheme());
        let key = key.ok_or_else(|| internal("there is no key of the group's scheme"))?;
        let made = self.groups.compute(move || {
            let moved = state.export(&parcel, infos, tail, chain).map_err(of_reject)?;
            let content = sign_content(&key, response, encode(&moved)).map_err(internal)?;
            let hash = hash_of_content(&content);
            Ok((encode(&content), hash))
        });
        made.await?
    }

    /// What was frozen, and the group behind the Commit.
    pub(super) async fn parcel_of(&self, group: &GroupId) -> Result<(Parcel, GroupState), DsError> {
        let bytes = self.store.snapshot(group, Departure::PARCEL).await.map_err(of_store)?;
        let bytes = bytes.ok_or_else(|| internal("what was frozen is gone"))?;
        let (hub, group) = (self.hub(), group.clone());
        let loaded = self.groups.compute(move || {
            let parcel = Parcel::from_bytes(&bytes)?;
            let state = parcel.state(&hub, &group)?;
            Ok::<_, Reject>((parcel, state))
        });
        loaded.await?.map_err(of_reject)
    }

    /// The head of a group that is still frozen here.
    pub(super) async fn frozen_head(
        &self,
        group: &GroupId,
    ) -> Result<Option<GroupHead>, StoreError> {
        let head = self.store.group_head(group).await?;
        Ok(head.filter(|head| head.status == GroupStatus::Migrating))
    }

    /// What the target has not got of the feed, where clients of its are in the group: up to the Commit.
    pub(super) async fn tail_for(
        &self,
        target: &Domain,
        parcel: &Parcel,
        head: &GroupHead,
    ) -> Result<Vec<DeliveryItem>, DsError> {
        let effects = parcel.effects().map_err(of_reject)?;
        let owed = effects.outbound.iter().find(|owed| owed.peer == *target);
        let (Some(owed), Some(record)) = (owed, parcel.records.first()) else {
            return Ok(Vec::new());
        };
        let changes: Vec<RosterChange> = owed.changes.clone();
        let commit = record.feed.sequence;
        let roster = List::new(changes).map_err(internal)?;
        if owed.opens {
            return Ok(vec![DeliveryItem::Snapshot {
                group_id: head.group.clone(),
                next_sequence: commit.next(),
                chain: Chain::default(),
                roster,
            }]);
        }
        let last = Sequence(commit.0 - 1);
        let before = peer::owed_before(self, target, &head.group, last).await.map_err(of_store)?;
        let mut tail = match before {
            Some(items) => items,
            None => vec![self.roster_item(target, head, last).await?],
        };
        tail.push(DeliveryItem::Feed {
            group_id: head.group.clone(),
            group_sequence: commit,
            accepted_at: record.feed.accepted_at,
            except: record.feed.except.filter(|_| record.feed.origin.as_ref() == Some(target)),
            event: decode(&record.feed.event).map_err(internal)?,
            roster,
        });
        Ok(tail)
    }

    /// The target's clients as they are before the Commit, for a copy that the log does not reach any more.
    pub(super) async fn roster_item(
        &self,
        target: &Domain,
        head: &GroupHead,
        last: Sequence,
    ) -> Result<DeliveryItem, DsError> {
        let hub = self.hub();
        let found = history::load_frozen(self, &hub, head).await?;
        let adds = found.state.roster_for(target);
        let group = &head.group;
        let replica = self.store.replica(target, group).await.map_err(of_store)?;
        let from = replica.map_or(Sequence(1), |replica| replica.acknowledged.next());
        let rows = (from, last.next());
        let adds = peer::with_welcomes(self, target, group, rows, adds).await;
        Ok(DeliveryItem::Snapshot {
            group_id: group.clone(),
            next_sequence: last.next(),
            chain: Chain::default(),
            roster: List::new(adds.map_err(of_store)?).map_err(internal)?,
        })
    }
}

/// The hub's key in the group before the Commit that moves it.
pub(super) fn key_in_group(
    hub: &Hub,
    head: &GroupHead,
    scheme: SignatureScheme,
) -> Option<SigningKey> {
    match head.hub_key {
        Some(stand) => hub.key_of_print(stand.key),
        None => hub.key(scheme),
    }
}

/// Largest link of a chain: two domains, a group id, a nonce, a signature and two numbers.
const LINK_BYTES_MAX: usize = 2 * 256 + 256 + 32 + 260 + 16;
