//! The guest side of federation at work: what hubs deliver for clients of this provider. PROTOCOL.md §3, "Between
//! providers"; the rules are in [`crate::queue::followed`].
//!
//! One batch of the store per group and request, groups beside each other, so that they share flushes; nothing is
//! answered before it is durable. A copy has no actor: whoever changes it holds its turn ([`super::copies`]), and the
//! store fences it as it fences a hosted group. Its queues read it as any other feed.
//!
//! What a hub may have kept here is bounded, in copies and in bytes. Beyond, its items are refused (queue_full) and it
//! tries again; the next sweep cuts its copies to what leaves room. Heads of copies that nobody here is in go when they
//! are old: a hub that comes back to one opens it anew.

mod inbox;
mod speaks;
mod sweep;

use std::collections::{BTreeMap, HashMap};

use futures_util::future::join_all;

use super::{
    copies::{Grown, HubBounds, KnownRoster},
    deliver::{Admitted, Sender},
    errors::{is_damage, of_store},
    node::Node,
    tokens::{BindError, TokenUse},
};
use crate::{
    crypto,
    queue::{
        followed::{self, CopyLimits, GoodTokens, Outcome, Room, Stored},
        token::{self, TokenProblem},
    },
    store::{
        Condition, StoreError, Write,
        records::{FollowedMember, GroupHead},
    },
    wire::{
        codec::List,
        ds::DsError,
        extensions::QueueToken,
        ids::{ClientUri, Domain, GroupId, RecipientId, Sequence},
        queueing::{
            DeliverBatchRequest, DeliverBatchResponse, DeliveryFailure, DeliveryItem,
            DeliveryProblem, QueueEvent, QueueingServiceResponse,
        },
    },
};
pub(super) use inbox::{Amount, Sort};
use speaks::Speaker;

type Items = Vec<(u32, DeliveryItem)>;

/// What a batch has for one client alone.
struct Direct {
    index: u32,
    item_id: [u8; 16],
    token: QueueToken,
    event: QueueEvent,
}

/// Tokens of one group's items that lead to clients, each with what binds it.
pub(super) type Bound = HashMap<QueueToken, (ClientUri, TokenUse)>;

impl Node {
    /// Takes a batch of `from`. What it had before is accepted and stored once, so a lost answer is repeated by the
    /// same request; a problem of one group or recipient is in the answer and stops no other.
    ///
    /// # Errors
    /// unavailable, where some of it may have been taken.
    pub async fn deliver_batch(
        &self,
        from: &Domain,
        request: DeliverBatchRequest,
    ) -> Result<DeliverBatchResponse, DsError> {
        let items = request.items.into_vec();
        let count = items.len();
        let mut groups: BTreeMap<GroupId, Items> = BTreeMap::new();
        let (mut direct, mut too_many) = (Vec::new(), Vec::new());
        for (index, item) in items.into_iter().enumerate() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            match item {
                DeliveryItem::Direct { item_id, client_queue_information, event } => {
                    direct.push(Direct { index, item_id, token: client_queue_information, event });
                }
                // before anything waits with it: in memory it is many times as large as it came
                DeliveryItem::Feed { ref roster, .. }
                | DeliveryItem::Snapshot { ref roster, .. }
                    if roster.len() > CHANGES_MAX =>
                {
                    too_many.push(DeliveryFailure {
                        item: index,
                        problem: DeliveryProblem::InvalidItem,
                        recipient: RecipientId(0),
                        next_sequence: Sequence(0),
                    });
                }
                DeliveryItem::Feed { ref group_id, .. }
                | DeliveryItem::Snapshot { ref group_id, .. } => {
                    groups.entry(group_id.clone()).or_default().push((index, item));
                }
            }
        }
        let of_groups = groups.iter().map(|(group, items)| self.follow(from, group, items));
        let (of_groups, of_direct) =
            futures_util::future::join(join_all(of_groups), self.take_direct(from, direct)).await;
        let mut failures = too_many;
        for (found, items) in of_groups.into_iter().zip(groups.values()) {
            match found.map_err(of_store) {
                // it comes again until what is damaged is restored, and no other group waits with it
                Err(error) if is_damage(&error) => {
                    failures.extend(items.iter().map(|(item, _)| later(*item, Sequence(0))));
                }
                found => failures.extend(found?),
            }
        }
        failures.extend(of_direct?);
        self.count_items(count, &failures);
        failures.sort_by_key(|failure| failure.item);
        let failures = List::new(failures).map_err(super::errors::internal)?;
        Ok(DeliverBatchResponse { failures })
    }

    fn count_items(&self, count: usize, failures: &[DeliveryFailure]) {
        let mut refused = 0;
        for failure in failures {
            let outcome = match failure.problem {
                DeliveryProblem::UnknownFeed => "unknown_feed",
                DeliveryProblem::Gap => "gap",
                DeliveryProblem::WrongHub => "wrong_hub",
                DeliveryProblem::InvalidItem => "invalid_item",
                DeliveryProblem::QueueFull => "queue_full",
                // a problem of a recipient: the item stands
                DeliveryProblem::InvalidClientQueueInformation if failure.recipient.0 > 0 => {
                    continue;
                }
                DeliveryProblem::InvalidClientQueueInformation => "invalid_token",
            };
            refused += 1;
            self.metrics.guest_items.with_label_values(&[outcome]).inc();
        }
        let accepted = count.saturating_sub(refused) as u64;
        self.metrics.guest_items.with_label_values(&["accepted"]).inc_by(accepted);
    }

    /// Applies what `from` says of `group`, in order.
    async fn follow(
        &self,
        from: &Domain,
        group: &GroupId,
        items: &[(u32, DeliveryItem)],
    ) -> Result<Vec<DeliveryFailure>, StoreError> {
        self.copies.load(&self.store, &self.domain).await?;
        let turn = self.copies.turn(group);
        let _turn = turn.lock().await;
        let followed = self.store.followed(group).await?;
        let members_before = followed.as_ref().map_or(0, |followed| followed.members);
        let hub = followed.map(|followed| followed.hub);
        let items = match self
            .who_speaks(from, group, (hub.as_ref(), members_before), items)
            .await?
        {
            Speaker::Hub(items) => items,
            // it came here with all that its last hub had; what that may say of it since comes when it has gone back there
            Speaker::LastHub(next) => {
                let since = items.iter().filter(|(_, item)| !followed::is_before(item, next));
                return Ok(since.map(|(item, _)| wrong_hub(*item, next)).collect());
            }
            Speaker::Unproven => {
                let next = self.store.group_head(group).await?.map(|head| head.next_sequence);
                let next = next.unwrap_or(Sequence(0));
                return Ok(items.iter().map(|(item, _)| later(*item, next)).collect());
            }
            Speaker::Other => {
                tracing::warn!(%group, peer = %from, "a peer that is not the group's hub speaks for it");
                let next = self.store.group_head(group).await?.map(|head| head.next_sequence);
                let next = next.unwrap_or(Sequence(0));
                return Ok(items.iter().map(|(item, _)| wrong_hub(*item, next)).collect());
            }
        };
        let items: &[(u32, DeliveryItem)] = &items;
        let limits = self.copy_limits();
        for _ in 0..CONFLICTS_MAX {
            let head = self.store.group_head(group).await?;
            let needs_members = items.iter().any(|(_, item)| followed::needs_members(item));
            // all members of a large group are much to have in memory: not of many groups at once
            let _large = match needs_members {
                true => self.copies.large.acquire().await.ok(),
                false => None,
            };
            let (members, other_readers) = if needs_members {
                (self.copy_members(group).await?, 0)
            } else {
                let roster = self.roster_of_copy(group, head.as_ref()).await?;
                (roster.gone, roster.readers)
            };
            let mut bound = self.bind_roster(from, group, head.as_ref(), items).await?;
            let tokens: GoodTokens =
                bound.iter().map(|(token, (client, _))| (token.clone(), client.clone())).collect();
            let now = self.clock.now();
            let bounds = self.hub_bounds();
            let (is_new, log_bytes) =
                (head.is_none(), head.as_ref().map_or(0, |head| head.log_bytes));
            let place = if is_new { self.copies.place(from, bounds) } else { None };
            let room = Room { opens: place.is_some(), bytes: self.copies.bytes_left(from, bounds) };
            let full = self.full_of(from, &members, head.as_ref(), items).await?;
            let stored = Stored { head, members, other_readers, hub: hub.clone(), full };
            let outcome =
                followed::follow(from, group, stored, items, &tokens, (&limits, room), now);
            let Outcome {
                mut batch,
                failures,
                tokens,
                clients,
                head,
                gone,
                readers,
                members_added,
                members: _,
                hub: counts_for,
            } = outcome;
            let full = failures.iter().filter(|it| it.problem == DeliveryProblem::QueueFull);
            self.note_full(from, full.count(), is_new && !room.opens);
            if batch.writes.is_empty() {
                return Ok(failures);
            }
            for token in &tokens {
                if let Some((_, used)) = bound.remove(token) {
                    batch.conditions.extend(used.conditions);
                    batch.writes.extend(used.writes);
                }
            }
            let had = hub.clone().filter(|_| !is_new).unwrap_or_else(|| from.clone());
            let has = counts_for.unwrap_or_else(|| had.clone());
            match self.store.write(batch).await {
                Ok(()) => {
                    self.copies.moved(&had, &has, log_bytes, members_before);
                    if let Some(head) = head {
                        let bytes = grown(log_bytes, head.log_bytes);
                        self.copies.grew(&has, Grown { bytes, members: members_added });
                        self.copies.remember(group, head.revision, KnownRoster { gone, readers });
                    }
                    if let Some(place) = place {
                        place.keep();
                    }
                    clients.iter().for_each(|client| self.hints.inbox(client));
                    self.hints.feed_grew(group);
                    return Ok(failures);
                }
                // a token or an account changed meanwhile
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Conflict { condition: 0 })
    }

    /// Says once between two sweeps that a hub is at its bound, and counts what it is refused.
    fn note_full(&self, hub: &Domain, items: usize, copies: bool) {
        if items == 0 {
            return;
        }
        let bound = if copies { "copies" } else { "bytes" };
        self.metrics.guest_full.with_label_values(&[bound]).inc_by(items as u64);
        let is_first =
            if copies { self.copies.lacks_copies(hub) } else { self.copies.lacks_bytes(hub) };
        if is_first {
            let HubBounds { copies_max, bytes_max } = self.hub_bounds();
            tracing::warn!(%hub, bound, copies_max, bytes_max, "a hub has kept here what it may; it is told to wait");
        }
    }

    /// Finds whose queues the tokens of those items open that can change something where the group stands at `head`. A
    /// token that is not good is not in it.
    pub(super) async fn bind_roster(
        &self,
        hub: &Domain,
        group: &GroupId,
        head: Option<&GroupHead>,
        items: &[(u32, DeliveryItem)],
    ) -> Result<Bound, StoreError> {
        let mut bound = Bound::new();
        let items = items.iter().filter(|(_, item)| !followed::is_past(item, head));
        for token in items.flat_map(|(_, item)| followed::tokens_of(item)) {
            if bound.contains_key(token) {
                continue;
            }
            match self.bind_follower(token, hub, group).await {
                Ok(used) => {
                    bound.insert(token.clone(), used);
                }
                Err(BindError::Token(problem)) => {
                    tracing::info!(%group, %hub, %problem, "a hub names a queue that is not there");
                }
                Err(BindError::Store(error)) => return Err(error),
            }
        }
        Ok(bound)
    }

    async fn bind_follower(
        &self,
        token: &QueueToken,
        hub: &Domain,
        group: &GroupId,
    ) -> Result<(ClientUri, TokenUse), BindError> {
        let opened = self.open_token(token).await?;
        let record = opened.record.as_ref();
        let groups_max = self.limits.last_resort_bindings_max;
        let bound = token::bind(&opened.token, record, &opened.client, hub, group, groups_max)?;
        if !self.has_room_for(&opened.client, hub).await? {
            return Err(BindError::Token(TokenProblem::Backlog));
        }
        let (id, revision) = (opened.token.id, token::revision(record));
        let write = bound.map(|record| Write::Token { token: id, record });
        let conditions = vec![Condition::TokenAt { token: id, revision }, opened.while_there];
        Ok((opened.client, TokenUse { conditions, writes: write.into_iter().collect() }))
    }

    /// What comes for clients alone: which of it is not taken.
    async fn take_direct(
        &self,
        from: &Domain,
        items: Vec<Direct>,
    ) -> Result<Vec<DeliveryFailure>, DsError> {
        let by = Sender::Peer(from.clone());
        let mut failures = Vec::new();
        let mut fails = |item, problem| {
            let (recipient, next_sequence) = (RecipientId(0), Sequence(0));
            failures.push(DeliveryFailure { item, problem, recipient, next_sequence });
        };
        let mut admitted = Admitted::default();
        let mut of_client: HashMap<ClientUri, Vec<u32>> = HashMap::new();
        for Direct { index, item_id, token, event } in items {
            // who sends it is said by the connection that it came through, not by itself
            let QueueEvent::ConnectionRequest { offer, .. } = event else {
                fails(index, DeliveryProblem::InvalidItem);
                continue;
            };
            if offer.client_queue_information != token {
                fails(index, DeliveryProblem::InvalidItem);
                continue;
            }
            let id = direct_id(from, &item_id);
            match self.admit_offer(&by, offer, Some(id), &mut admitted).await {
                Ok(Ok(client)) => of_client.entry(client).or_default().push(index),
                Ok(Err(answer)) => problem_of(answer).into_iter().for_each(|it| fails(index, it)),
                Err(DsError::RateLimited { .. }) => fails(index, DeliveryProblem::QueueFull),
                // of this recipient alone
                Err(error) if is_damage(&error) => fails(index, DeliveryProblem::QueueFull),
                Err(error) => return Err(error),
            }
        }
        for (client, answers) in self.leave_offers(&by, admitted).await {
            let indexes = of_client.remove(&client).unwrap_or_default();
            match answers {
                Ok(answers) => {
                    for (index, answer) in indexes.into_iter().zip(answers) {
                        problem_of(answer).into_iter().for_each(|it| fails(index, it));
                    }
                }
                Err(error) => {
                    // of this recipient alone, whose token or account may have changed meanwhile: its items come again
                    let is_conflict = matches!(error, StoreError::Conflict { .. });
                    let error = of_store(error);
                    if !is_conflict && !is_damage(&error) {
                        return Err(error);
                    }
                    indexes.into_iter().for_each(|it| fails(it, DeliveryProblem::QueueFull));
                }
            }
        }
        Ok(failures)
    }

    pub(super) async fn copy_members(
        &self,
        group: &GroupId,
    ) -> Result<Vec<FollowedMember>, StoreError> {
        let mut members: Vec<FollowedMember> = Vec::new();
        loop {
            let after = members.last().map(|member| member.recipient);
            let page = self.store.followed_members(group, after, MEMBERS_PAGE).await?;
            let is_last = page.len() < MEMBERS_PAGE;
            members.extend(page);
            if is_last {
                return Ok(members);
            }
        }
    }

    async fn roster_of_copy(
        &self,
        group: &GroupId,
        head: Option<&GroupHead>,
    ) -> Result<KnownRoster, StoreError> {
        let Some(head) = head else { return Ok(KnownRoster::default()) };
        if let Some(roster) = self.copies.roster_of(group, head.revision) {
            return Ok(roster);
        }
        let roster = known_roster(self.copy_members(group).await?);
        self.copies.remember(group, head.revision, roster.clone());
        Ok(roster)
    }

    pub(super) fn hub_bounds(&self) -> HubBounds {
        HubBounds {
            copies_max: self.limits.copies_per_hub_max,
            bytes_max: self.limits.copy_bytes_per_hub_max,
        }
    }

    pub(super) fn copy_limits(&self) -> CopyLimits {
        CopyLimits {
            changes_max: CHANGES_MAX,
            retention_ms: self.groups.options.retention_ms,
            records_due: RECORDS_DUE,
            bytes_due: BYTES_DUE,
            trim_delay_ms: TRIM_DELAY_MS,
        }
    }
}

fn known_roster(mut members: Vec<FollowedMember>) -> KnownRoster {
    let readers = members.iter().filter(|member| followed::is_reader(member)).count();
    members.retain(|member| member.gone);
    KnownRoster { gone: members, readers }
}

/// Under what an item of `from` for one client alone is there once.
fn direct_id(from: &Domain, item_id: &[u8; 16]) -> [u8; 16] {
    let named = [from.as_str().as_bytes(), item_id].concat();
    let mut id = [0; 16];
    id.copy_from_slice(&crypto::sha256(&named)[..16]);
    id
}

fn problem_of(answer: QueueingServiceResponse) -> Option<DeliveryProblem> {
    match answer {
        QueueingServiceResponse::Ok | QueueingServiceResponse::Blocked => None,
        QueueingServiceResponse::QueueFull => Some(DeliveryProblem::QueueFull),
        QueueingServiceResponse::InvalidClientQueueInformation => {
            Some(DeliveryProblem::InvalidClientQueueInformation)
        }
    }
}

/// How much more `after` is than `before`.
fn grown(before: u64, after: u64) -> i64 {
    0_i64.saturating_add_unsigned(after).saturating_sub_unsigned(before)
}

fn wrong_hub(item: u32, next_sequence: Sequence) -> DeliveryFailure {
    let recipient = RecipientId(0);
    DeliveryFailure { item, problem: DeliveryProblem::WrongHub, recipient, next_sequence }
}

/// To be sent again when its hub has waited.
fn later(item: u32, next_sequence: Sequence) -> DeliveryFailure {
    let recipient = RecipientId(0);
    DeliveryFailure { item, problem: DeliveryProblem::QueueFull, recipient, next_sequence }
}

/// Roster changes in one item: more members than a group may have.
const CHANGES_MAX: usize = 20_000;
const CONFLICTS_MAX: usize = 8;
const MEMBERS_PAGE: usize = 1_000;
/// A copy's log is looked at when it has grown to this.
const RECORDS_DUE: u64 = 1_024;
const BYTES_DUE: u64 = 16 * 1024 * 1024;
const TRIM_DELAY_MS: u64 = 60_000;
