//! Groups that come from another provider. PROTOCOL.md §6; what is done with a content is decided in
//! [`crate::migration::target`].
//!
//! Agreeing writes nothing: the response is this provider's own signature, and comes back with the content. A content is judged
//! whole, then one batch makes this provider the hub: the group's state, the feed that its own clients go on with, where each
//! guest goes on, and the answer by which a repeat is known. A refusal is written down, too, unless its nonce has long expired:
//! then that refuses it. A source has so many of them; beyond, nothing is said before there is room.

mod here;
mod owed;
mod put_off;
mod refusals;

use std::collections::{BTreeMap, HashSet};

use super::{
    copies::Grown,
    errors::{
        detail, internal, malformed, not_authorized, of_reject, of_store, rate_limited, too_large,
    },
    moves::{chain_of, step},
    node::Node,
    tokens::{BindError, TokenUse},
};
use crate::{
    crypto::{self, SigningKey},
    group::{
        Bind,
        hub::external_sender,
        portability::{Arrived, judge_arrival, scheme_of_suite},
    },
    migration::{
        memory::{is_refusal_forgotten, refused_until},
        proof::{
            AnswerKey, ProofError, check_content, check_response, hash_of_content,
            hash_of_response, respond,
        },
        target::{Came, Fit, Known, Verdict, judge_abort, judge_confirmation, judge_content},
    },
    queue::followed::{self, GoodTokens, Outcome, Room, Stored},
    store::{
        Batch, Condition, StoreError, Write,
        links::Link,
        records::{
            Arrival, FeedEntry, FollowedMember, GoneReason, GroupHead, GroupNotice, GroupStatus,
            InboxItem, InboxKey, LogRecord, Moves, RefusedNonce, Replica, ReplicaMode,
        },
    },
    wire::{
        client::VerificationKey,
        codec::{Raw, decode, encode},
        ds::{DsError, FanoutFilter},
        ids::{ClientUri, Domain, GroupId, RecipientId, Sequence},
        portability::{
            Chain, MigratedState, MigrationConfirmation, MigrationContent, MigrationRequest,
            MigrationResponse, TargetMigrationComplete,
        },
        queueing::DeliveryItem,
    },
};

pub use here::{Arrivals, arrival_here};
pub(super) use refusals::RefusedCounts;

/// A content that may come in, as far as can be told without the group's turn.
struct Good {
    arrived: Arrived,
    tail: Vec<DeliveryItem>,
    chain: Chain,
}

/// A group that has come and whose last hub has not confirmed that it knows, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ArrivalState {
    pub group: String,
    pub source: String,
    pub state: &'static str,
    pub age_ms: u64,
}

impl Node {
    /// Whether this provider would host the group that `request` names. It costs nothing before the content comes.
    ///
    /// # Errors
    /// not_authorized, where it would not; malformed.
    pub async fn migration_response(
        &self,
        request: MigrationRequest,
    ) -> Result<MigrationResponse, DsError> {
        let limits = &self.limits.moves;
        let (group, source) = (&request.group_id, &request.source_domain_name);
        if request.target_domain_name != self.domain {
            return Err(malformed("the request names another target"));
        }
        if *source == self.domain {
            return Err(not_authorized("the group is here already"));
        }
        self.takes_from(source)?;
        self.arrivals.load(&self.store, &self.domain).await.map_err(of_store)?;
        let room = self.arrivals.room(group, source, limits);
        room.map_err(|full| not_authorized(full.told(source)))?;
        if !self.arrivals.refusals.has_room(source, limits.refused_per_source_max) {
            let why = format!("too many moves from {source} were refused here lately");
            return Err(not_authorized(why));
        }
        let known = self.known_of(group, &[0; 32]).await.map_err(of_store)?;
        if known.taken {
            return Err(not_authorized("the group is here already, or was deleted here"));
        }
        let key = self.key_for(request.ciphersuite)?;
        let sender = Raw::of(&external_sender(&self.domain, &key));
        let expires_at = self.clock.now().plus_ms(limits.response_ms);
        respond(&key, request, crypto::random(), expires_at, sender).map_err(internal)
    }

    fn takes_from(&self, source: &Domain) -> Result<(), DsError> {
        let limits = &self.limits.moves;
        let on_list = |sources: &Vec<crate::federation::DomainPattern>| {
            sources.iter().any(|pattern| pattern.matches(source))
        };
        if !limits.accept || !limits.sources.as_ref().is_none_or(on_list) {
            return Err(not_authorized(format!("this provider takes no groups from {source}")));
        }
        if !self.speaks_with(source) {
            return Err(not_authorized(format!("this provider does not federate with {source}")));
        }
        Ok(())
    }

    fn key_for(&self, ciphersuite: u16) -> Result<SigningKey, DsError> {
        let hub = self.hub();
        let is_taken = hub.settings.ciphersuites.contains(&ciphersuite);
        let scheme = scheme_of_suite(ciphersuite).filter(|_| is_taken);
        let key = scheme.and_then(|scheme| hub.key(scheme));
        key.ok_or_else(|| not_authorized("this provider hosts no groups of that ciphersuite"))
    }

    async fn known_of(&self, group: &GroupId, nonce: &[u8; 32]) -> Result<Known, StoreError> {
        let head = self.store.group_head(group).await?;
        let moves = self.store.moves(group).await?;
        let arrived = moves.and_then(|moves| moves.arrived);
        let arrived = arrived.filter(|arrived| arrived.nonce == *nonce);
        Ok(Known {
            taken: head.is_some_and(|head| head.status != GroupStatus::Followed),
            arrived: arrived.map(|arrived| arrived.hash),
            refused: self.store.refused_nonce(nonce).await?.is_some(),
        })
    }

    /// This provider's own word on a move, whose signature is good.
    fn own_response(
        &self,
        from: &Domain,
        response: &MigrationResponse,
    ) -> Result<AnswerKey, DsError> {
        let request = &response.migration_request;
        if request.source_domain_name != *from {
            return Err(not_authorized("the group is said to be hosted by another provider"));
        }
        if request.target_domain_name != self.domain {
            return Err(malformed("the response is of another target"));
        }
        let scheme = scheme_of_suite(request.ciphersuite);
        let scheme = scheme.ok_or_else(|| malformed("the ciphersuite is not known"))?;
        let signed_by = check_response(scheme, response).map_err(malformed)?;
        let key = self.hub().keys.answer_key(scheme, signed_by.as_slice(), self.clock.now());
        key.ok_or_else(|| {
            not_authorized("the response is not signed by a key that this provider answers with")
        })
    }

    /// Takes a group, or says for good that it does not. Repeated, it says the same.
    ///
    /// # Errors
    /// What says nothing of the nonce: not_authorized and malformed for what is not this provider's to judge; unavailable.
    pub async fn take_content(
        &self,
        from: &Domain,
        content: MigrationContent,
    ) -> Result<TargetMigrationComplete, DsError> {
        let response = content.migration_response.clone();
        let key = self.own_response(from, &response)?;
        let group = &response.migration_request.group_id;
        step("target.content-received").await;
        let turn = self.copies.turn(group);
        let _turn = turn.lock().await;
        let hash = hash_of_content(&content);
        let known = self.known_of(group, &response.nonce).await.map_err(of_store)?;
        let now = self.clock.now();
        let settled = judge_content(&known, response.expires_at, now, key.takes());
        self.arrivals.load(&self.store, &self.domain).await.map_err(of_store)?;
        let (good, place) = match settled {
            Verdict::Take => match self.arrivals.place(group, from, &self.limits.moves) {
                Ok(place) => (self.judge(from, content).await?, Some(place)),
                Err(full) => (Err(full.told(from)), None),
            },
            Verdict::Taken { .. } | Verdict::Refuse => (Err("it may not come in".to_owned()), None),
        };
        let (good, fits) = match good {
            Ok(good) => (Some(good), true),
            Err(why) => {
                if settled == Verdict::Take {
                    tracing::warn!(%group, source = %from, %why, "a group that was to come here is refused");
                }
                (None, false)
            }
        };
        match (judge_content(&known, response.expires_at, now, fits), good) {
            (Verdict::Taken { hash }, _) => key.complete(hash, false).map_err(internal),
            (Verdict::Take, Some(good)) => {
                self.settle_in(from, &response, hash, good).await?;
                if let Some(place) = place {
                    place.keep();
                }
                step("target.durable").await;
                key.complete(hash, false).map_err(internal)
            }
            (Verdict::Take | Verdict::Refuse, _) => self.refuse(&key, &response, known).await,
        }
    }

    /// The source wants to keep the group: refused for good, unless it is here already.
    ///
    /// # Errors
    /// As [`Node::take_content`].
    pub async fn take_abort(
        &self,
        from: &Domain,
        response: MigrationResponse,
    ) -> Result<TargetMigrationComplete, DsError> {
        let key = self.own_response(from, &response)?;
        let group = &response.migration_request.group_id;
        step("target.abort-received").await;
        let turn = self.copies.turn(group);
        let _turn = turn.lock().await;
        let known = self.known_of(group, &response.nonce).await.map_err(of_store)?;
        match judge_abort(&known) {
            Verdict::Taken { hash } => key.complete(hash, false).map_err(internal),
            Verdict::Take | Verdict::Refuse => self.refuse(&key, &response, known).await,
        }
    }

    async fn refuse(
        &self,
        key: &AnswerKey,
        response: &MigrationResponse,
        known: Known,
    ) -> Result<TargetMigrationComplete, DsError> {
        let (nonce, until) = (response.nonce, refused_until(response.expires_at));
        // by itself an expired one is never taken
        if !known.refused && !is_refusal_forgotten(until, self.clock.now()) {
            let source = &response.migration_request.source_domain_name;
            if !self.arrivals.refusals.take(source, self.limits.moves.refused_per_source_max) {
                // nothing is said that would be forgotten: the room comes with time, or this nonce's time is over
                let why =
                    "too many of your moves were refused here lately; this one has no answer yet";
                return Err(rate_limited(why, REFUSED_FULL_RETRY_MS));
            }
            let refused = RefusedNonce { until, source: Some(source.clone()) };
            let refused = Batch::new().and(Write::RefusedNonce { nonce, refused });
            step("target.before-refusal").await;
            self.store.write(refused).await.map_err(of_store)?;
            step("target.refused").await;
            self.metrics.migrations.with_label_values(&["target", "refused"]).inc();
        }
        key.complete(hash_of_response(response), true).map_err(internal)
    }

    /// Judges a content as far as that needs nothing but itself and others' keys: `Ok(Err(why))` is for good.
    async fn judge(
        &self,
        from: &Domain,
        content: MigrationContent,
    ) -> Result<Result<Good, String>, DsError> {
        if let Err(error) = self.takes_from(from) {
            return Ok(Err(error.to_string()));
        }
        let response = content.migration_response.clone();
        let request = &response.migration_request;
        let scheme = scheme_of_suite(request.ciphersuite);
        let scheme = scheme.ok_or_else(|| malformed("the ciphersuite is not known"))?;
        let is_by = |key: &VerificationKey| {
            let public_key = key.public_key.as_slice();
            key.scheme == scheme && check_content(scheme, [public_key], &content).is_ok()
        };
        if !self.has_sender_key(from, is_by).await? {
            return Ok(Err(ProofError::Signature("MigrationContent").to_string()));
        }
        let (hub, now) = (self.hub(), self.clock.now());
        let judged = {
            let response = response.clone();
            self.groups.compute(move || {
                let moved: MigratedState =
                    decode(content.group_state.as_slice()).map_err(|error| error.to_string())?;
                let arrived = judge_arrival(&hub, &response, &moved, now);
                let arrived = arrived.map_err(|reject| reject.to_string())?;
                let MigratedState { tail, chain, .. } = moved;
                Ok::<_, String>(Good { arrived, tail: tail.into_vec(), chain })
            })
        };
        let good = match judged.await? {
            Ok(good) => good,
            Err(why) => return Ok(Err(why)),
        };
        // of a time when the source was its hub: what a hub orders goes on where the last one's ended
        let known = self.store.group_head(&request.group_id).await.map_err(of_store)?;
        let next = good.arrived.state.next_sequence();
        if known.is_some_and(|head| head.next_sequence >= next) {
            return Ok(Err("it ends before what is known of it here".to_owned()));
        }
        let creator = request.group_id.domain();
        if !self.proves(&request.group_id, &creator, from, &good.chain).await? {
            return Ok(Err(format!("its moves do not lead from {creator} to {from}")));
        }
        Ok(Ok(good))
    }

    /// Whether clients here lack some of the feed that the source does not owe them: who hosted the group before the source is
    /// still sending it.
    async fn is_fed_by_another(
        &self,
        from: &Domain,
        group: &GroupId,
        head: Option<&GroupHead>,
        members: &[FollowedMember],
        tail: &[DeliveryItem],
    ) -> Result<bool, DsError> {
        let lacks = head.is_some_and(|head| followed::leave_a_hole(tail, head, members));
        Ok(lacks && self.hub_of_copy(group).await.map_err(of_store)? != *from)
    }

    /// One batch, and this provider is the hub.
    async fn settle_in(
        &self,
        from: &Domain,
        response: &MigrationResponse,
        hash: [u8; 32],
        good: Good,
    ) -> Result<(), DsError> {
        let group = &response.migration_request.group_id;
        let Good { arrived, tail, chain } = good;
        let Arrived { state, infos, binds } = arrived;
        let now = self.clock.now();
        let next = state.next_sequence();
        let head = self.store.group_head(group).await.map_err(of_store)?;
        let known = self.copy_members(group).await.map_err(of_store)?;
        let (was_copy, known_count) = (head.is_some(), known.len() as u64);
        let copied_bytes = head.as_ref().map_or(0, |head| head.log_bytes);
        if self.is_fed_by_another(from, group, head.as_ref(), &known, &tail).await? {
            let (put_off, wait_ms) = (&self.arrivals.put_off, self.limits.moves.feed_wait_ms);
            let expires_at = response.expires_at;
            let again = put_off.again_ms(group, response.nonce, now, expires_at, wait_ms);
            if let Some(retry_after_ms) = again {
                let detail = detail("the group's feed still comes here from an earlier hub");
                return Err(DsError::Unavailable { detail, retry_after_ms });
            }
        }
        let items: Vec<(u32, DeliveryItem)> = (0..).zip(tail).collect();
        let (tokens, mut used) = self.tokens_of_tail(from, group, &items).await?;
        let hub = Some(from.clone());
        let stored = Stored {
            head: head.clone(),
            members: known,
            other_readers: 0,
            hub,
            full: HashSet::new(),
        };
        let room = Room { opens: true, bytes: u64::MAX };
        let limits = self.copy_limits();
        let outcome = followed::follow(from, group, stored, &items, &tokens, (&limits, room), now);
        let Outcome { batch: copied, tokens: named, members, head: copied_head, .. } = outcome;
        // a tail that does not fit what is here says only what own clients have missed
        let copy = copied_head.or_else(|| head.clone());

        let mut batch = Batch::low_priority().when(match &head {
            Some(head) => Condition::GroupAt {
                group: group.clone(),
                next_sequence: head.next_sequence,
                revision: head.revision,
            },
            None => Condition::GroupUnknown(group.clone()),
        });
        for token in &named {
            if let Some(used) = used.remove(token) {
                batch.conditions.extend(used.conditions);
                batch.writes.extend(used.writes);
            }
        }
        batch.writes.extend(copied.writes.into_iter().filter(|write| {
            !matches!(
                write,
                Write::GroupHead(_)
                    | Write::Followed { .. }
                    | Write::FollowedMember { .. }
                    | Write::DropFollowedMember { .. }
                    | Write::DropFollowed(_)
            )
        }));
        batch.push(Write::DropFollowed(group.clone()));
        let mut clients: Vec<ClientUri> = Vec::new();
        let mut place =
            Place { batch: &mut batch, clients: &mut clients, group, at: next, index: 0 };
        self.seat_own_clients(&state, &binds, &members, &mut place).await?;

        let copied_to = copy.as_ref().map_or(next, |copy| copy.next_sequence);
        let moved_at = Sequence(next.0 - 1);
        let first_sequence = copy.as_ref().map_or(next, |copy| copy.first_sequence);
        let mut log_bytes = copy.as_ref().map_or(0, |copy| copy.log_bytes);
        let mut last = copy.as_ref().and_then(|copy| copy.last);
        if copied_to <= moved_at && copy.is_some() {
            // what its own clients have of the feed has no hole where the source said that the group has moved
            let whole = copied_to == moved_at;
            let event = match whole {
                true => Vec::new(),
                false => encode(&crate::wire::queueing::QueueEvent::Gap { next_available: next }),
            };
            for sequence in copied_to.0..=moved_at.0 {
                let sequence = Sequence(sequence);
                let is_last = sequence == moved_at;
                let feed = FeedEntry {
                    sequence,
                    accepted_at: now,
                    except: None,
                    origin: None,
                    handshake: is_last && !whole,
                    event: if is_last { event.clone() } else { Vec::new() },
                };
                log_bytes += followed::entry_bytes(&feed);
                let record = LogRecord { feed, change: Vec::new(), follows: None };
                let record = Link::append(&mut last, record);
                batch.push(Write::Log { group: group.clone(), record });
                if sequence.0 - copied_to.0 > HOLE_MAX {
                    return Err(too_large("the feed has too large a hole", HOLE_MAX as usize));
                }
            }
        }
        // what the tail brings is in this batch, not in the store
        let kept_to = head.as_ref().map_or(Sequence(0), |head| head.next_sequence);
        let owed = self.owed_of_before(group, state.guests(), kept_to).await;
        let owed = owed.map_err(of_store)?;
        for sequence in owed.holes {
            let feed = FeedEntry {
                sequence,
                accepted_at: now,
                except: None,
                origin: None,
                handshake: false,
                event: Vec::new(),
            };
            log_bytes += followed::entry_bytes(&feed);
            // in the midst of what is linked already
            let follows = Some(Link::BESIDE);
            let record = LogRecord { feed, change: Vec::new(), follows };
            batch.push(Write::Log { group: group.clone(), record });
        }
        let snapshot = state.snapshot().map_err(of_reject)?;
        batch.push(Write::Snapshot { group: group.clone(), at: moved_at, bytes: snapshot });
        let joiner_infos = infos.iter().map(|(epoch, _)| *epoch).collect();
        for (epoch, bytes) in infos {
            batch.push(Write::JoinerInfo { group: group.clone(), epoch, bytes });
        }
        for guest in state.guests().filter(|guest| !owed.guests.contains(*guest)) {
            let replica = Replica {
                acknowledged: moved_at,
                acknowledged_at: now,
                mode: ReplicaMode::Feed,
                copy: None,
                set_aside: None,
            };
            batch.push(Write::Replica { peer: guest.clone(), group: group.clone(), replica });
        }
        let revision = head.as_ref().map_or(1, |head| head.revision + 1);
        let head = GroupHead {
            group: group.clone(),
            status: GroupStatus::Active,
            next_sequence: next,
            first_sequence,
            epoch: state.epoch(),
            revision,
            snapshot: moved_at,
            previous_snapshot: None,
            created_at: now,
            last_accepted_at: now,
            log_bytes,
            joiner_infos,
            wake_at: Some(now),
            hub_key: state.key_stand(),
            last,
        };
        batch.push(Write::GroupHead(head));
        let arrival = Arrival {
            nonce: response.nonce,
            hash,
            source: from.clone(),
            at: now,
            here: true,
            epoch: state.epoch(),
            next_sequence: next,
            key: state.key_stand().map(|stand| stand.key),
            confirmed: false,
        };
        // a group that comes home needs no proof of where it was
        let chain = if group.domain() == self.domain { Vec::new() } else { encode(&chain) };
        let moves = Moves { chain, arrived: Some(arrival), left: None };
        batch.push(Write::Moves { group: group.clone(), moves });
        // a group that comes back: who had it from here could let it go only with the confirmation in hand
        batch.push(Write::DropDeparture(group.clone()));
        step("target.before-durable").await;
        self.store.write(batch).await.map_err(of_store)?;
        if was_copy {
            let bytes = 0_i64.saturating_sub_unsigned(copied_bytes);
            let members = 0_i64.saturating_sub_unsigned(known_count);
            self.copies.dropped(from, group, Grown { bytes, members });
        }
        self.metrics.migrations.with_label_values(&["target", "arrived"]).inc();
        tracing::info!(%group, source = %from, members = state.member_count(), "a group has come from another provider");
        self.groups.let_go(group);
        self.departure_is_over(group);
        let own = state.members().filter(|(_, member)| member.config.domain == self.domain);
        clients.extend(own.map(|(_, member)| member.client.clone()));
        for client in &clients {
            self.hints.inbox(client);
        }
        self.hints.feed_grew(group);
        self.hints.notice(group);
        Ok(())
    }

    /// Own clients' queues: who is known goes on, who is not begins here, who has none that is good is to be removed.
    async fn seat_own_clients(
        &self,
        state: &crate::group::GroupState,
        binds: &[Bind],
        known: &[FollowedMember],
        place: &mut Place<'_>,
    ) -> Result<(), DsError> {
        let known: BTreeMap<RecipientId, &FollowedMember> =
            known.iter().map(|member| (member.recipient, member)).collect();
        let mut numbers: BTreeMap<&ClientUri, (RecipientId, FanoutFilter)> = BTreeMap::new();
        for (_, member) in state.members() {
            numbers.insert(&member.client, (member.recipient, member.filter));
        }
        let mut seated = std::collections::BTreeSet::new();
        for bind in binds {
            let Some((recipient, filter)) = numbers.get(&bind.client).copied() else { continue };
            seated.insert(recipient);
            let is_known = known.get(&recipient);
            if is_known.is_some_and(|it| it.client.as_ref() == Some(&bind.client) && !it.gone) {
                continue;
            }
            let (config, client) = (&bind.config, &bind.client);
            let own = &self.domain;
            match self.bind_token(config, client, &bind.user, own, place.group).await {
                Ok(TokenUse { conditions, writes }) if is_known.is_none() => {
                    place.batch.conditions.extend(conditions);
                    place.batch.writes.extend(writes);
                    let handshake_only = filter == FanoutFilter::HandshakeOnly;
                    let (group, from) = (place.group.clone(), place.at);
                    let event = None;
                    let open = InboxItem::Open { group, recipient, from, handshake_only, event };
                    place.leave(client, open);
                }
                Ok(_) | Err(BindError::Token(_)) => {
                    let reason = GoneReason::QueueGone;
                    let notice = GroupNotice::ClientGone { client: client.clone(), reason };
                    let (group, key) = (place.group.clone(), crypto::random());
                    place.batch.push(Write::GroupNotice { group, key, notice });
                }
                Err(BindError::Store(error)) => return Err(of_store(error)),
            }
        }
        for (recipient, member) in known {
            if let (false, Some(client)) = (seated.contains(&recipient), &member.client) {
                let (group, last) = (place.group.clone(), Sequence(place.at.0 - 1));
                let close = InboxItem::Close { group, recipient, last, removed: true };
                place.leave(client, close);
            }
        }
        Ok(())
    }

    /// Groups that came here and whose move is not over: their last hub is still to confirm that it knows.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn unsettled_arrivals(&self) -> Result<Vec<ArrivalState>, StoreError> {
        let now = self.clock.now();
        let (mut states, mut after) = (Vec::new(), None);
        loop {
            let page = self.store.all_moves(after.as_ref(), PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(states) };
            after = Some(last.clone());
            for (group, moves) in page {
                if moves.arrived.as_ref().is_none_or(|arrived| arrived.confirmed) {
                    continue;
                }
                states.extend(arrival_here(&self.store, &group, moves).await?.map(|arrived| {
                    ArrivalState {
                        group: group.to_string(),
                        source: arrived.source.to_string(),
                        state: "unconfirmed",
                        age_ms: now.ms_since(arrived.at),
                    }
                }));
            }
        }
    }

    async fn tokens_of_tail(
        &self,
        from: &Domain,
        group: &GroupId,
        items: &[(u32, DeliveryItem)],
    ) -> Result<
        (GoodTokens, std::collections::HashMap<crate::wire::extensions::QueueToken, TokenUse>),
        DsError,
    > {
        let bound = self.bind_roster(from, group, None, items).await.map_err(of_store)?;
        let tokens = bound.iter().map(|(token, (client, _))| (token.clone(), client.clone()));
        let tokens: GoodTokens = tokens.collect();
        let used = bound.into_iter().map(|(token, (_, used))| (token, used)).collect();
        Ok((tokens, used))
    }

    /// The source confirms that the group is here: others take this provider's word with it.
    ///
    /// # Errors
    /// group_not_found, not_authorized, malformed; unavailable.
    pub async fn take_confirmation(
        &self,
        from: &Domain,
        confirmation: MigrationConfirmation,
    ) -> Result<(), DsError> {
        if confirmation.source_domain != *from || confirmation.domain_name != self.domain {
            return Err(not_authorized("a source confirms its own moves, to their target"));
        }
        let group = &confirmation.group_id;
        step("target.confirmation-received").await;
        let turn = self.copies.turn(group);
        let _turn = turn.lock().await;
        let moves = self.store.moves(group).await.map_err(of_store)?.unwrap_or_default();
        let came = moves.arrived.as_ref().map(came_by);
        let chain = chain_of(&moves).map_err(of_store)?;
        let chain = match judge_confirmation(&self.domain, came.as_ref(), &chain, &confirmation) {
            Fit::Take { chain } => chain,
            Fit::Known => return Ok(()),
            Fit::Unknown => {
                let detail = detail("the group did not come here by that move");
                return Err(DsError::GroupNotFound { detail });
            }
            Fit::Misfit => {
                return Err(not_authorized("the confirmation is of another move than there was"));
            }
        };
        if !self.is_confirmed(&confirmation).await? {
            return Err(not_authorized("the confirmation is not signed by a key of its source"));
        }
        let chain = if chain.is_empty() { Vec::new() } else { encode(&chain) };
        let arrived = moves.arrived.map(|arrived| Arrival { confirmed: true, ..arrived });
        let moves = Moves { chain, arrived, left: moves.left };
        let batch = Batch::new().and(Write::Moves { group: group.clone(), moves });
        step("target.before-confirmed").await;
        self.store.write(batch).await.map_err(of_store)?;
        step("target.confirmed").await;
        Ok(())
    }
}

fn came_by(arrival: &Arrival) -> Came {
    Came {
        nonce: arrival.nonce,
        source: arrival.source.clone(),
        epoch: arrival.epoch,
        next_sequence: arrival.next_sequence,
        confirmed: arrival.confirmed,
    }
}

/// Where rows for own clients go.
struct Place<'a> {
    batch: &'a mut Batch,
    clients: &'a mut Vec<ClientUri>,
    group: &'a GroupId,
    at: Sequence,
    index: u32,
}

impl Place<'_> {
    fn leave(&mut self, client: &ClientUri, item: InboxItem) {
        let (group, sequence) = (self.group.clone(), Sequence(self.at.0 - 1));
        let key = InboxKey::Group { group, sequence, index: ROWS | self.index };
        self.index += 1;
        self.clients.push(client.clone());
        self.batch.push(Write::Inbox { client: client.clone(), key, item });
    }
}

const REFUSED_FULL_RETRY_MS: u64 = 60 * 1000;
const PAGE: usize = 256;
/// Rows of a move stand behind those of the feed's items.
const ROWS: u32 = 0b11 << 30;
/// Sequences that may be missing of a copy's feed.
const HOLE_MAX: u64 = 100_000;
