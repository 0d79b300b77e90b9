//! The guest side of federation at work: what hubs deliver for clients of this provider. PROTOCOL.md §3, "Between
//! providers"; the rules are in [`crate::queue::followed`].
//!
//! One batch of the store per group and request, groups beside each other, so that they share flushes; nothing is
//! answered before it is durable. A copy has no actor: whoever changes it holds its turn ([`Copies`]), and the store
//! fences it as it fences a hosted group. Its queues read it as any other feed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::{
    deliver::Sender,
    errors::{of_store, too_large},
    group::PAGE,
    hints::locked,
    node::Node,
    tokens::{BindError, TokenUse},
};
use crate::{
    crypto,
    queue::{
        followed::{self, CopyLimits, GoodTokens, Outcome, Stored},
        token,
    },
    store::{
        Batch, Condition, StoreError, Write,
        records::{FollowedMember, GroupHead, GroupNotice, GroupStatus},
    },
    wire::{
        codec::{List, encode},
        ds::DsError,
        extensions::QueueToken,
        federation::EventType,
        ids::{ClientUri, Domain, GroupId, RecipientId, RequestId, Sequence},
        queueing::{
            DeliverBatchRequest, DeliverBatchResponse, DeliveryFailure, DeliveryItem,
            DeliveryProblem, QueueEvent, QueueingServiceResponse, RecipientsGone,
        },
    },
};

/// Who changes a copy now, and what need not be read for every message.
#[derive(Debug)]
pub struct Copies {
    turns: Mutex<HashMap<GroupId, Weak<tokio::sync::Mutex<()>>>>,
    gone: Mutex<HashMap<GroupId, Gone>>,
    /// Hubs that are told of clients that are gone, at a time.
    telling: Arc<Semaphore>,
}

impl Default for Copies {
    fn default() -> Self {
        let (turns, gone) = (Mutex::default(), Mutex::default());
        Self { turns, gone, telling: Arc::new(Semaphore::new(TELLING_MAX)) }
    }
}

/// Members whose queues are gone, as of one revision of the group's head.
#[derive(Debug, Clone)]
struct Gone {
    revision: u64,
    members: Vec<FollowedMember>,
}

impl Copies {
    fn turn(&self, group: &GroupId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = locked(&self.turns);
        if let Some(turn) = turns.get(group).and_then(Weak::upgrade) {
            return turn;
        }
        if turns.len() >= TURNS_MAX {
            turns.retain(|_, turn| turn.strong_count() > 0);
        }
        let turn = Arc::new(tokio::sync::Mutex::new(()));
        turns.insert(group.clone(), Arc::downgrade(&turn));
        turn
    }

    fn gone_of(&self, group: &GroupId, revision: u64) -> Option<Vec<FollowedMember>> {
        let gone = locked(&self.gone);
        gone.get(group).filter(|gone| gone.revision == revision).map(|gone| gone.members.clone())
    }

    /// Beyond [`GONE_GROUPS_MAX`] groups everything is forgotten, and read again as it is needed.
    fn remember(&self, group: &GroupId, revision: u64, members: Vec<FollowedMember>) {
        let mut gone = locked(&self.gone);
        if gone.len() >= GONE_GROUPS_MAX && !gone.contains_key(group) {
            gone.clear();
        }
        gone.insert(group.clone(), Gone { revision, members });
    }
}

type Items = Vec<(u32, DeliveryItem)>;

/// Tokens of one group's items that lead to clients, each with what binds it.
type Bound = HashMap<QueueToken, (ClientUri, TokenUse)>;

impl Node {
    /// Takes a batch of `from`. What it had before is accepted and stored once, so a lost answer is repeated by the
    /// same request; a problem of one group or recipient is in the answer and stops no other.
    ///
    /// # Errors
    /// too_large; unavailable, where some of it may have been taken.
    pub async fn deliver_batch(
        &self,
        from: &Domain,
        request: DeliverBatchRequest,
    ) -> Result<DeliverBatchResponse, DsError> {
        let items = request.items.into_vec();
        if items.len() > ITEMS_MAX {
            return Err(too_large("too many items in one batch", ITEMS_MAX));
        }
        let count = items.len();
        let mut groups: HashMap<GroupId, Items> = HashMap::new();
        let (mut direct, mut too_many) = (Vec::new(), Vec::new());
        for (index, item) in items.into_iter().enumerate() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            match item {
                DeliveryItem::Direct { item_id, client_queue_information, event } => {
                    direct.push(self.take_direct(
                        from,
                        index,
                        item_id,
                        client_queue_information,
                        event,
                    ));
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
            futures_util::future::join(join_all(of_groups), join_all(direct)).await;
        let mut failures = too_many;
        for found in of_groups {
            failures.extend(found.map_err(of_store)?);
        }
        for found in of_direct {
            failures.extend(found?);
        }
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
        if !followed::is_hub(from, group, &self.domain) {
            tracing::warn!(%group, peer = %from, "a peer that is not the group's hub speaks for it");
            return Ok(items.iter().map(|(item, _)| wrong_hub(*item)).collect());
        }
        let has_chain = |item: &DeliveryItem| matches!(item, DeliveryItem::Snapshot { chain, .. } if !chain.is_empty());
        if items.iter().any(|(_, item)| has_chain(item)) {
            tracing::warn!(%group, peer = %from, "a snapshot of a group that has moved; moves are not followed");
        }
        let turn = self.copies.turn(group);
        let _turn = turn.lock().await;
        let limits = self.copy_limits();
        for _ in 0..CONFLICTS_MAX {
            let head = self.store.group_head(group).await?;
            let members = if items.iter().any(|(_, item)| followed::needs_members(item)) {
                self.copy_members(group).await?
            } else {
                self.gone_of_copy(group, head.as_ref()).await?
            };
            let mut bound = self.bind_roster(from, group, items).await?;
            let tokens: GoodTokens =
                bound.iter().map(|(token, (client, _))| (token.clone(), client.clone())).collect();
            let now = self.clock.now();
            let stored = Stored { head, members };
            let outcome = followed::follow(from, group, stored, items, &tokens, &limits, now);
            let Outcome { mut batch, failures, tokens, clients, head, gone } = outcome;
            if batch.writes.is_empty() {
                return Ok(failures);
            }
            for token in &tokens {
                if let Some((_, used)) = bound.remove(token) {
                    batch.conditions.extend(used.conditions);
                    batch.writes.extend(used.writes);
                }
            }
            match self.store.write(batch).await {
                Ok(()) => {
                    if let Some(head) = head {
                        self.copies.remember(group, head.revision, gone);
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

    /// Finds whose queues the items' tokens open. A token that is not good is not in it.
    async fn bind_roster(
        &self,
        hub: &Domain,
        group: &GroupId,
        items: &[(u32, DeliveryItem)],
    ) -> Result<Bound, StoreError> {
        let mut bound = Bound::new();
        for token in items.iter().flat_map(|(_, item)| followed::tokens_of(item)) {
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
        let (id, revision) = (opened.token.id, token::revision(record));
        let write = bound.map(|record| Write::Token { token: id, record });
        let conditions = vec![Condition::TokenAt { token: id, revision }, opened.while_there];
        Ok((opened.client, TokenUse { conditions, writes: write.into_iter().collect() }))
    }

    /// What comes for one client alone.
    async fn take_direct(
        &self,
        from: &Domain,
        item: u32,
        item_id: [u8; 16],
        token: QueueToken,
        event: QueueEvent,
    ) -> Result<Option<DeliveryFailure>, DsError> {
        let fails = |problem| {
            let (recipient, next_sequence) = (RecipientId(0), Sequence(0));
            Ok(Some(DeliveryFailure { item, problem, recipient, next_sequence }))
        };
        // who sends it is said by the connection that it came through, not by itself
        let QueueEvent::ConnectionRequest { offer, .. } = event else {
            return fails(DeliveryProblem::InvalidItem);
        };
        if offer.client_queue_information != token {
            return fails(DeliveryProblem::InvalidItem);
        }
        let mut named = from.as_str().as_bytes().to_vec();
        named.extend(item_id);
        let mut id = [0; 16];
        id.copy_from_slice(&crypto::sha256(&named)[..16]);
        match self.take_offer(&Sender::Peer(from.clone()), offer, Some(id)).await {
            Ok(QueueingServiceResponse::Ok | QueueingServiceResponse::Blocked) => Ok(None),
            Ok(QueueingServiceResponse::QueueFull) | Err(DsError::RateLimited { .. }) => {
                fails(DeliveryProblem::QueueFull)
            }
            Ok(QueueingServiceResponse::InvalidClientQueueInformation) => {
                fails(DeliveryProblem::InvalidClientQueueInformation)
            }
            Err(error) => Err(error),
        }
    }

    async fn copy_members(&self, group: &GroupId) -> Result<Vec<FollowedMember>, StoreError> {
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

    async fn gone_of_copy(
        &self,
        group: &GroupId,
        head: Option<&GroupHead>,
    ) -> Result<Vec<FollowedMember>, StoreError> {
        let Some(head) = head else { return Ok(Vec::new()) };
        if let Some(gone) = self.copies.gone_of(group, head.revision) {
            return Ok(gone);
        }
        let mut members = self.copy_members(group).await?;
        members.retain(|member| member.gone);
        self.copies.remember(group, head.revision, members.clone());
        Ok(members)
    }

    fn copy_limits(&self) -> CopyLimits {
        CopyLimits {
            changes_max: CHANGES_MAX,
            retention_ms: self.groups.options.retention_ms,
            records_due: RECORDS_DUE,
            bytes_due: BYTES_DUE,
            trim_delay_ms: TRIM_DELAY_MS,
        }
    }

    /// Takes what is left for a group that is not hosted here: clients whose queues are gone. Its hub is told at once,
    /// and where that does not reach it, by the answer to its next delivery.
    pub(super) async fn take_copy_notices(&self, group: &GroupId) -> Result<(), StoreError> {
        let turn = self.copies.turn(group);
        let _turn = turn.lock().await;
        loop {
            let notices = self.store.group_notices(group, NOTICES_PAGE).await?;
            if notices.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new();
            let head = self.store.group_head(group).await?;
            let head = head.filter(|head| head.status == GroupStatus::Followed);
            let mut known = None;
            if let Some(head) = head {
                let mut members = self.copy_members(group).await?;
                for member in &mut members {
                    let is_named = |notice: &GroupNotice| match notice {
                        GroupNotice::ClientGone { client, .. } => {
                            member.client.as_ref() == Some(client)
                        }
                        // of groups that are hosted here
                        GroupNotice::RecipientGone { .. } => false,
                    };
                    if !member.gone && notices.iter().any(|(_, notice)| is_named(notice)) {
                        member.gone = true;
                        let (group, member) = (group.clone(), member.clone());
                        batch.push(Write::FollowedMember { group, member });
                    }
                }
                batch = batch.when(Condition::GroupAt {
                    group: group.clone(),
                    next_sequence: head.next_sequence,
                    revision: head.revision,
                });
                let head = GroupHead { revision: head.revision + 1, ..head };
                members.retain(|member| member.gone);
                known = Some((head.revision, members));
                batch.push(Write::GroupHead(head));
            }
            for (key, _) in notices {
                batch.push(Write::GroupNoticeTaken { group: group.clone(), key });
            }
            match self.store.write(batch).await {
                Ok(()) => {
                    if let Some((revision, members)) = known {
                        self.tell_hub_of_gone(group, &members);
                        self.copies.remember(group, revision, members);
                    }
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Tells a group's hub that these members' queues are gone, a few times: what does not arrive is said again with
    /// the answer to the next delivery.
    fn tell_hub_of_gone(&self, group: &GroupId, members: &[FollowedMember]) {
        let Some(federation) = self.federation.clone() else { return };
        let recipients = members.iter().map(|member| member.recipient).take(GONE_TOLD_MAX);
        let Ok(recipients) = List::new(recipients.collect()) else { return };
        let (hub, timeout) = (group.domain(), Duration::from_millis(self.limits.relay_timeout_ms));
        let gone = RecipientsGone { group_id: group.clone(), recipients };
        let turns = Arc::clone(&self.copies.telling);
        actix_rt::spawn(async move {
            let Ok(_turn) = turns.acquire_owned().await else { return };
            let (id, body) = (RequestId(crypto::random()), encode(&gone));
            for left in (0..TELL_TRIES).rev() {
                let event = EventType::RecipientsGone;
                let Err(error) = federation.request(&hub, event, id, body.clone(), timeout).await
                else {
                    return;
                };
                tracing::info!(group = %gone.group_id, %hub, %error, left, "the hub is not told that clients are gone");
                let wait = error.retry_after_ms().unwrap_or(TELL_AGAIN_MS).min(TELL_AGAIN_MS);
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
        });
    }

    /// Lets go of what nobody needs of a copy's log: what every member here has acknowledged, what is too old, what is
    /// too much; all of it where nobody is a member any more and it is old. Its head stays, so that what comes late is
    /// known to be there already.
    pub(super) async fn settle_copy(&self, head: GroupHead) -> Result<(), StoreError> {
        let group = head.group.clone();
        let limits = self.copy_limits();
        let members = self.copy_members(&group).await?;
        // what is planned stays true while messages come: only this makes a log shorter
        let plan = self.plan_copy(&head, &members).await?;
        let turn = self.copies.turn(&group);
        let _turn = turn.lock().await;
        let head = self.store.group_head(&group).await?;
        let Some(head) = head.filter(|head| head.status == GroupStatus::Followed) else {
            return Ok(());
        };
        let now = self.clock.now();
        let mut batch = Batch::new().when(Condition::GroupAt {
            group: group.clone(),
            next_sequence: head.next_sequence,
            revision: head.revision,
        });
        let is_quiet = now.ms_since(head.last_accepted_at) >= limits.retention_ms;
        let is_over = is_quiet && self.store.followed(&group).await?.is_none_or(|f| f.members == 0);
        let (revision, next) = (head.revision, head.next_sequence);
        let settled = if is_over {
            tracing::info!(%group, "dropping the copy of a group that nobody here is in any more");
            batch.push(Write::DropGroup(group.clone()));
            batch.push(Write::DropFollowed(group.clone()));
            let bytes = head.log_bytes;
            followed::trimmed(head, next, bytes, &limits, now)
        } else {
            let (until, bytes) = plan;
            if until > head.first_sequence {
                let from = head.first_sequence;
                batch.push(Write::TrimLog { group: group.clone(), from, until });
            }
            let until = until.max(head.first_sequence);
            followed::trimmed(head, until, bytes, &limits, now)
        };
        batch.push(Write::GroupHead(settled));
        match self.store.write(batch).await {
            Ok(()) => {
                if let Some(gone) = self.copies.gone_of(&group, revision) {
                    self.copies.remember(&group, revision + 1, gone);
                }
                Ok(())
            }
            // it was changed from elsewhere: the next sweep looks again
            Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Up to where a copy's log may go, and how much that is.
    async fn plan_copy(
        &self,
        head: &GroupHead,
        members: &[FollowedMember],
    ) -> Result<(Sequence, u64), StoreError> {
        let readers: Vec<_> = members
            .iter()
            .filter_map(|member| {
                let client = member.client.clone()?;
                Some((client, member.recipient, head.first_sequence))
            })
            .collect();
        // who has left may still have to read how
        let slowest = if readers.is_empty() {
            Sequence(0)
        } else {
            self.slowest_cursor(&head.group, &readers, head.first_sequence).await?
        };
        let (options, now) = (&self.groups.options, self.clock.now());
        let (mut until, mut bytes) = (head.first_sequence, 0);
        while until < head.next_sequence {
            let page = self.store.feed(&head.group, until, PAGE).await?;
            if page.is_empty() {
                break;
            }
            for entry in &page {
                let acknowledged = entry.sequence <= slowest;
                let old = now.ms_since(entry.accepted_at) > options.retention_ms;
                let much = head.log_bytes.saturating_sub(bytes) > options.retention_bytes;
                if entry.sequence >= head.next_sequence || !(acknowledged || old || much) {
                    return Ok((until, bytes));
                }
                until = entry.sequence.next();
                bytes += followed::entry_bytes(entry);
            }
        }
        Ok((until, bytes))
    }
}

fn wrong_hub(item: u32) -> DeliveryFailure {
    let (recipient, next_sequence) = (RecipientId(0), Sequence(0));
    DeliveryFailure { item, problem: DeliveryProblem::WrongHub, recipient, next_sequence }
}

/// Items in one batch.
const ITEMS_MAX: usize = 1_000;
/// Roster changes in one item: more members than a group may have.
const CHANGES_MAX: usize = 20_000;
const CONFLICTS_MAX: usize = 8;
const MEMBERS_PAGE: usize = 1_000;
const NOTICES_PAGE: usize = 256;
/// A copy's log is looked at when it has grown to this.
const RECORDS_DUE: u64 = 1_024;
const BYTES_DUE: u64 = 16 * 1024 * 1024;
const TRIM_DELAY_MS: u64 = 60_000;
/// Groups whose turns are kept before those that nobody holds are let go.
const TURNS_MAX: usize = 16_384;
/// Groups whose gone members are remembered.
const GONE_GROUPS_MAX: usize = 100_000;
/// Members that one message to the hub names.
const GONE_TOLD_MAX: usize = 500;
const TELLING_MAX: usize = 16;
const TELL_TRIES: u32 = 3;
const TELL_AGAIN_MS: u64 = 5_000;
