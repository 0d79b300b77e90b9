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

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;

use super::{
    copies::{Grown, HubBounds, KnownRoster},
    deliver::Sender,
    errors::{of_store, too_large},
    group::PAGE,
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

type Items = Vec<(u32, DeliveryItem)>;

/// Tokens of one group's items that lead to clients, each with what binds it.
pub(super) type Bound = HashMap<QueueToken, (ClientUri, TokenUse)>;

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
        self.copies.load(&self.store, &self.domain).await?;
        let turn = self.copies.turn(group);
        let _turn = turn.lock().await;
        let followed = self.store.followed(group).await?;
        let members_before = followed.as_ref().map_or(0, |followed| followed.members);
        let hub = followed.map(|followed| followed.hub);
        let items = match self.who_speaks(from, group, hub.as_ref(), items).await? {
            Speaker::Hub(items) => items,
            // it came here with all that its last hub had
            Speaker::LastHub => return Ok(Vec::new()),
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

    /// Whether `from` may say what happens in `group`: its hub, as far as it is known here, or one that the chain of a
    /// snapshot leads to. What is proven is taken out of the items.
    async fn who_speaks<'a>(
        &self,
        from: &Domain,
        group: &GroupId,
        hub: Option<&Domain>,
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
        if followed::is_hub(from, group, hub, &self.domain) {
            return Ok(if chain.is_some() {
                unchained()
            } else {
                Speaker::Hub(Cow::Borrowed(items))
            });
        }
        let head = self.store.group_head(group).await?;
        if head.is_some_and(|head| head.status != GroupStatus::Followed) {
            let moves = self.store.moves(group).await?;
            let last = moves.and_then(|moves| moves.arrived);
            let is_last = last.is_some_and(|arrived| arrived.here && arrived.source == *from);
            return Ok(if is_last { Speaker::LastHub } else { Speaker::Other });
        }
        let Some(chain) = chain.filter(|_| *from != self.domain) else { return Ok(Speaker::Other) };
        // from the hub that is known here, or from the provider that created the group
        let begin = hub.cloned().unwrap_or_else(|| group.domain());
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

    /// Whether anybody here can read the copy of `group`.
    pub(super) async fn has_readers(&self, group: &GroupId) -> Result<bool, StoreError> {
        let mut after = None;
        loop {
            let page = self.store.followed_members(group, after, MEMBERS_PAGE).await?;
            if page.iter().any(followed::is_reader) {
                return Ok(true);
            }
            match page.last() {
                Some(last) if page.len() == MEMBERS_PAGE => after = Some(last.recipient),
                Some(_) | None => return Ok(false),
            }
        }
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
                known = Some((head.revision, known_roster(members)));
                batch.push(Write::GroupHead(head));
            }
            for (key, _) in notices {
                batch.push(Write::GroupNoticeTaken { group: group.clone(), key });
            }
            match self.store.write(batch).await {
                Ok(()) => {
                    if let Some((revision, roster)) = known {
                        self.tell_hub_of_gone(group, &roster.gone);
                        self.copies.remember(group, revision, roster);
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
        let timeout = Duration::from_millis(self.limits.relay_timeout_ms);
        let (node, of) = (self.clone(), group.clone());
        let gone = RecipientsGone { group_id: group.clone(), recipients };
        let turns = Arc::clone(&self.copies.telling);
        actix_rt::spawn(async move {
            let Ok(_turn) = turns.acquire_owned().await else { return };
            let Ok(hub) = node.hub_of_copy(&of).await else { return };
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

    /// Lets go of what nobody needs of a copy: of its log where `due`, or where its hub has no room and each of its copies
    /// may keep `share`; of all of it, its head too, where nobody here reads it and it is old. A hub that sends something
    /// of it later is asked for a snapshot, as with any group that was never here. Whether there was anything to do.
    pub(super) async fn settle_copy(
        &self,
        head: GroupHead,
        due: bool,
        share: Option<u64>,
    ) -> Result<bool, StoreError> {
        self.copies.load(&self.store, &self.domain).await?;
        let retention_ms = self.groups.options.retention_ms;
        let is_quiet = self.clock.now().ms_since(head.last_accepted_at) >= retention_ms;
        let is_over = is_quiet
            && (head.status == GroupStatus::Deleted || !self.has_readers(&head.group).await?);
        if is_over {
            self.drop_copy(head).await?;
            return Ok(true);
        }
        let is_large = share.is_some_and(|share| head.log_bytes > share);
        if head.status == GroupStatus::Followed && (due || is_large) {
            self.trim_copy(head, share).await?;
            return Ok(true);
        }
        Ok(false)
    }

    async fn drop_copy(&self, head: GroupHead) -> Result<(), StoreError> {
        let rest = head.clone();
        let (group, log_bytes) = (head.group, head.log_bytes);
        if log_bytes == 0
            && group.domain() == self.domain
            && head.first_sequence >= head.next_sequence
        {
            return Ok(());
        }
        let followed = self.store.followed(&group).await?;
        let members = followed.as_ref().map_or(0, |followed| followed.members);
        let hub = followed.map_or_else(|| group.domain(), |followed| followed.hub);
        tracing::info!(%group, "dropping the copy of a group that nobody here is in any more");
        // whoever comes in meanwhile changes the head
        let batch = Batch::new()
            .when(Condition::GroupAt {
                group: group.clone(),
                next_sequence: head.next_sequence,
                revision: head.revision,
            })
            .and(Write::DropGroup(group.clone()))
            .and(Write::DropFollowed(group.clone()))
            // an id that was given here is not given again, wherever its group has gone
            .and(if group.domain() == self.domain {
                let (revision, first_sequence) = (head.revision + 1, head.next_sequence);
                let (log_bytes, wake_at) = (0, None);
                let group = group.clone();
                Write::GroupHead(GroupHead {
                    group,
                    revision,
                    first_sequence,
                    log_bytes,
                    wake_at,
                    ..rest
                })
            } else {
                Write::DropGroupHead(group.clone())
            });
        match self.store.write(batch).await {
            Ok(()) => {
                let members = 0_i64.saturating_sub_unsigned(members);
                let bytes = 0_i64.saturating_sub_unsigned(log_bytes);
                self.copies.dropped(&hub, &group, Grown { bytes, members });
                Ok(())
            }
            Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Drops what every member here has acknowledged, what is too old, what is too much.
    async fn trim_copy(&self, head: GroupHead, share: Option<u64>) -> Result<(), StoreError> {
        let group = head.group.clone();
        let limits = self.copy_limits();
        let members = self.copy_members(&group).await?;
        let hub = self.hub_of_copy(&group).await?;
        // what is planned stays true while messages come: only this makes a log shorter
        let (until, bytes) = self.plan_copy(&head, &members, share).await?;
        let turn = self.copies.turn(&group);
        let _turn = turn.lock().await;
        let head = self.store.group_head(&group).await?;
        let Some(head) = head.filter(|head| head.status == GroupStatus::Followed) else {
            return Ok(());
        };
        let mut batch = Batch::new().when(Condition::GroupAt {
            group: group.clone(),
            next_sequence: head.next_sequence,
            revision: head.revision,
        });
        if until > head.first_sequence {
            let from = head.first_sequence;
            batch.push(Write::TrimLog { group: group.clone(), from, until });
        }
        let (revision, log_bytes) = (head.revision, head.log_bytes);
        let until = until.max(head.first_sequence);
        let settled = followed::trimmed(head, until, bytes, &limits, self.clock.now());
        let bytes = grown(log_bytes, settled.log_bytes);
        batch.push(Write::GroupHead(settled));
        match self.store.write(batch).await {
            Ok(()) => {
                self.copies.grew(&hub, Grown { bytes, members: 0 });
                if let Some(roster) = self.copies.roster_of(&group, revision) {
                    self.copies.remember(&group, revision + 1, roster);
                }
                Ok(())
            }
            // it was changed from elsewhere: the next sweep looks again
            Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Who hosts a group that is followed here.
    pub(super) async fn hub_of_copy(&self, group: &GroupId) -> Result<Domain, StoreError> {
        let followed = self.store.followed(group).await?;
        Ok(followed.map_or_else(|| group.domain(), |followed| followed.hub))
    }

    /// Up to where those guests have a group's feed that still get what was accepted while it was hosted here.
    async fn slowest_guest_left(&self, group: &GroupId) -> Result<Sequence, StoreError> {
        let mut slowest = Sequence(u64::MAX);
        let left = self.store.moves(group).await?.and_then(|moves| moves.left);
        for guest in left.map(|left| left.guests).unwrap_or_default() {
            if self.store.outbound_at(&guest, group).await?.is_some() {
                let replica = self.store.replica(&guest, group).await?;
                slowest = slowest.min(replica.map_or(Sequence(0), |it| it.acknowledged));
            }
        }
        Ok(slowest)
    }

    /// Up to where a copy's log may go, and how much that is.
    async fn plan_copy(
        &self,
        head: &GroupHead,
        members: &[FollowedMember],
        share: Option<u64>,
    ) -> Result<(Sequence, u64), StoreError> {
        let readers: Vec<_> = members
            .iter()
            .filter(|member| followed::is_reader(member))
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
        let slowest = slowest.min(self.slowest_guest_left(&head.group).await?);
        let (options, now) = (&self.groups.options, self.clock.now());
        let bytes_max = options.retention_bytes.min(share.unwrap_or(u64::MAX));
        let (mut until, mut bytes) = (head.first_sequence, 0);
        while until < head.next_sequence {
            let page = self.store.feed(&head.group, until, PAGE).await?;
            if page.is_empty() {
                // what came while nobody read it was not kept
                return Ok((head.next_sequence, bytes));
            }
            for entry in &page {
                let acknowledged = entry.sequence <= slowest;
                let old = now.ms_since(entry.accepted_at) > options.retention_ms;
                let much = head.log_bytes.saturating_sub(bytes) > bytes_max;
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

fn known_roster(mut members: Vec<FollowedMember>) -> KnownRoster {
    let readers = members.iter().filter(|member| followed::is_reader(member)).count();
    members.retain(|member| member.gone);
    KnownRoster { gone: members, readers }
}

/// How much more `after` is than `before`.
fn grown(before: u64, after: u64) -> i64 {
    0_i64.saturating_add_unsigned(after).saturating_sub_unsigned(before)
}

/// What a peer is to a group that it speaks for.
enum Speaker<'a> {
    Hub(Cow<'a, [(u32, DeliveryItem)]>),
    /// The group came here from it.
    LastHub,
    /// Its proof cannot be checked now.
    Unproven,
    Other,
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
/// Members that one message to the hub names.
const GONE_TOLD_MAX: usize = 500;
const TELL_TRIES: u32 = 3;
const TELL_AGAIN_MS: u64 = 5_000;
