//! What waits for peers in the store, whether somebody looks after it now or not: how much and how old, for operators, and
//! the upkeep of roster rows whose log is gone.
//!
//! A round goes through every marker, so many at each sweep, and goes on where it was; what is shown of a peer that a
//! round is in the midst of is a lower bound.

use std::sync::Mutex;

use super::board::Waiting;
use crate::{
    actors::{
        group::encode_changes,
        hints::locked,
        node::Node,
        peer::items::{changes_of, fed, is_dropped},
    },
    federation::roster::{Row, draw_together},
    store::{
        Batch, Condition, Page, StoreError, Write,
        records::{GroupHead, LEAP, OutboundRoster},
    },
    wire::ids::{Domain, GroupId, Sequence},
};

/// Where the round is. Taken out while somebody goes on with it.
pub(super) struct Look(Mutex<Option<Place>>);

#[derive(Default)]
struct Place {
    round: u64,
    /// The last peer that is through.
    after: Option<Domain>,
    current: Option<Current>,
}

struct Current {
    peer: Domain,
    after: Option<GroupId>,
    waiting: Waiting,
}

impl Look {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Some(Place::default())))
    }
}

impl Node {
    /// Goes on with the round through what waits, by a bounded number of groups.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(super) async fn look_at_what_waits(&self) -> Result<(), StoreError> {
        let taken = locked(&self.peers.look.0).take();
        // who has it goes on
        let Some(mut place) = taken else { return Ok(()) };
        let outcome = self.go_round(&mut place).await;
        *locked(&self.peers.look.0) = Some(place);
        outcome
    }

    async fn go_round(&self, place: &mut Place) -> Result<(), StoreError> {
        let board = &self.peers.board;
        let mut left = self.peers.limits.look_groups_max.max(1);
        while left > 0 {
            let Some(Current { peer, after, mut waiting }) = place.current.take() else {
                let peers = self.store.outbound_peers(place.after.as_ref(), 1).await?;
                let Some(peer) = peers.into_iter().next() else {
                    board.round_ends(place.round);
                    *place = Place { round: place.round + 1, ..Place::default() };
                    return Ok(());
                };
                let waiting = Waiting::default();
                place.current = Some(Current { peer, after: None, waiting });
                continue;
            };
            let page = left.min(PAGE);
            let groups = self.store.outbound(&peer, after.as_ref(), page).await?;
            for (group, until) in &groups {
                match self.look_at_group(&peer, group, *until, &mut waiting).await {
                    Ok(()) => {}
                    Err(StoreError::Corrupt { what }) => {
                        tracing::error!(%peer, %group, what, "it cannot be told how much waits");
                    }
                    Err(error) => return Err(error),
                }
            }
            left = left.saturating_sub(groups.len().max(1));
            waiting.is_all = groups.len() < page;
            board.waits(&peer, place.round, &waiting);
            if waiting.is_all {
                place.after = Some(peer);
            } else {
                let after = groups.last().map(|(group, _)| group.clone());
                place.current = Some(Current { peer, after, waiting });
            }
        }
        Ok(())
    }

    async fn look_at_group(
        &self,
        peer: &Domain,
        group: &GroupId,
        until: Sequence,
        waiting: &mut Waiting,
    ) -> Result<(), StoreError> {
        let replica = self.store.replica(peer, group).await?;
        let (fed, taken) = match &replica {
            Some(replica) => (Some(fed(replica)), replica.acknowledged),
            None => {
                let rows = self.store.outbound_roster(peer, group, Sequence(0), ONE).await?;
                let first = rows.first().map_or(until, |row| row.sequence);
                (None, Sequence(first.0.saturating_sub(1)))
            }
        };
        if taken < until {
            waiting.groups += 1;
            waiting.items += (until.0 - taken.0) % LEAP;
            let oldest = self.store.feed(group, taken.next(), ONE).await?;
            let at = oldest.first().map(|entry| entry.accepted_at);
            waiting.oldest_at = waiting.oldest_at.into_iter().chain(at).min();
        }
        let Some(head) = self.store.group_head(group).await? else { return Ok(()) };
        let from = fed.map_or(Sequence(0), Sequence::next);
        if head.first_sequence > from {
            self.bound_rows(peer, group, until, from, &head).await?;
        }
        Ok(())
    }

    /// Draws rows together whose log is gone, a bounded number at a time: what is left of them is one row and at most
    /// [`WELCOMES_BYTES_MAX`] of Welcomes. Of a group that is gone whole nothing is left. Nothing is written where the peer has
    /// been sent it all meanwhile.
    async fn bound_rows(
        &self,
        peer: &Domain,
        group: &GroupId,
        until: Sequence,
        from: Sequence,
        head: &GroupHead,
    ) -> Result<(), StoreError> {
        let rows = self.store.outbound_roster(peer, group, from, ROWS_PAGE).await?;
        let gone: Vec<OutboundRoster> =
            rows.into_iter().take_while(|row| row.sequence < head.first_sequence).collect();
        let Some(last) = gone.last().map(|row| row.sequence) else { return Ok(()) };
        let trim =
            Write::TrimOutboundRoster { peer: peer.clone(), group: group.clone(), until: last };
        let at = Condition::OutboundAt { peer: peer.clone(), group: group.clone(), until };
        let mut batch = Batch::new().when(at).and(trim);
        if !is_dropped(head) {
            // a row that cannot be read is as good as gone: the snapshot says what it said
            let rows = gone.iter().filter_map(|row| {
                let changes = changes_of(row).ok()?.into_vec();
                Some(Row { sequence: row.sequence, opens: row.opens, changes })
            });
            let rows: Vec<Row> = rows.collect();
            let Some(drawn) = draw_together(&rows, WELCOMES_BYTES_MAX) else { return Ok(()) };
            if drawn.opens || !drawn.changes.is_empty() {
                let Row { sequence, opens, changes } = drawn;
                let row = OutboundRoster { sequence, opens, changes: encode_changes(&changes) };
                let (peer, group) = (peer.clone(), group.clone());
                batch.push(Write::OutboundRoster { peer, group, row });
            }
        }
        match self.store.write(batch).await {
            Ok(()) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

const PAGE: usize = 256;
const ONE: Page = Page { items_max: 1, bytes_max: 1 };
/// So many bytes that two rows always are in it.
const ROWS_PAGE: Page = Page { items_max: 64, bytes_max: 16 * 1024 * 1024 };
/// Welcomes that are kept of a group for one peer although its log is gone; beyond, the oldest go.
const WELCOMES_BYTES_MAX: usize = 1024 * 1024;
