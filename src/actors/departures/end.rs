//! How a move ends: the group is handed over, or goes on here.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{Went, condition_of, content::key_in_group};
use crate::{
    actors::{
        copies::Grown,
        group::{Reply, fill, record_bytes},
        hints::locked,
        moves::{chain_of, step},
        node::Node,
    },
    crypto,
    federation::CallError,
    group::keys::HubKey,
    migration::{
        proof::{sign_confirmation, unsigned_confirmation},
        source::{Phase, Told, confirm_pause_ms},
    },
    store::{
        Batch, StoreError, Write,
        records::{
            Arrival, Departure, FeedEntry, Followed, FollowedMember, GroupHead, GroupStatus, Left,
            LogRecord, Moves,
        },
    },
    wire::{
        codec::{List, encode},
        ds::{DsError, DsResponseBody},
        federation::EventType,
        ids::{Domain, GroupId, RequestId, Sequence},
        portability::{Chain, MigrationConfirmation, MigrationResponse},
        queueing::QueueEvent,
    },
};

impl Node {
    /// The target is the hub: the Commit goes out, the group's own clients follow from afar, and whoever asks is sent on.
    pub(super) async fn hand_over(
        &self,
        departure: &Departure,
        response: &MigrationResponse,
    ) -> Result<Went, StoreError> {
        let group = &departure.group;
        let Some(mut head) = self.frozen_head(group).await? else { return Ok(Went::Over) };
        let hub = self.hub();
        let broken = |error: &dyn std::fmt::Display| StoreError::Corrupt {
            what: format!("the move of {group}: {error}"),
        };
        let (parcel, state) = self.parcel_of(group).await.map_err(|error| broken(&error))?;
        let effects = parcel.effects().map_err(|error| broken(&error))?;
        let moved_at = state.next_sequence();
        let key = key_in_group(&hub, &head, state.scheme());
        let key = key.ok_or_else(|| broken(&"no key of its scheme"))?;
        let request = &response.migration_request;
        let confirmation = unsigned_confirmation(request, response.nonce, moved_at.next());
        let print = HubKey { key: key.clone(), since: departure.frozen_at }.print();
        let confirmation = sign_confirmation(&key, confirmation).map_err(|error| broken(&error))?;
        let now = self.clock.now();

        let mut batch = Batch::new().when(condition_of(&head));
        let mut owed = effects;
        let target = &departure.target;
        owed.outbound.retain(|it| it.peer != *target);
        fill(&mut batch, &mut head, &owed);
        let moved = head.append(LogRecord {
            feed: FeedEntry {
                sequence: moved_at,
                accepted_at: now,
                except: None,
                origin: None,
                handshake: true,
                event: encode(&QueueEvent::GroupMoved { confirmation: confirmation.clone() }),
            },
            change: Vec::new(),
            follows: None,
        });
        let head_bytes = head.log_bytes;
        let bytes: u64 = owed.records.iter().chain([&moved]).map(record_bytes).sum();
        batch.push(Write::Log { group: group.clone(), record: moved });
        let mut guests: Vec<Domain> = owed.outbound.iter().map(|it| it.peer.clone()).collect();
        guests.sort();
        guests.dedup();
        for guest in &guests {
            let (peer, group) = (guest.clone(), group.clone());
            batch.push(Write::Outbound { peer, group, until: moved_at });
        }
        // the target has all of it
        let (peer, of) = (target.clone(), group.clone());
        batch.push(Write::DropReplica { peer: peer.clone(), group: of.clone() });
        batch.push(Write::OutboundDone { peer: peer.clone(), group: of.clone() });
        batch.push(Write::TrimOutboundRoster { peer, group: of, until: Sequence(u64::MAX) });
        let mut members = 0;
        for (_, member) in state.members().filter(|(_, it)| it.config.domain == self.domain) {
            members += 1;
            let client = Some(member.client.clone());
            let member = FollowedMember { recipient: member.recipient, client, gone: false };
            batch.push(Write::FollowedMember { group: group.clone(), member });
        }
        let followed = Followed { hub: target.clone(), members };
        batch.push(Write::Followed { group: group.clone(), followed });
        let snapshots = [Some(head.snapshot), head.previous_snapshot];
        let of_move = [Some(Departure::PARCEL), Some(Departure::CONTENT)];
        for at in snapshots.into_iter().chain(of_move).flatten() {
            batch.push(Write::DropSnapshot { group: group.clone(), at });
        }
        for epoch in &head.joiner_infos {
            batch.push(Write::DropJoinerInfo { group: group.clone(), epoch: *epoch });
        }
        let moves = self.store.moves(group).await?.unwrap_or_default();
        let mut chain = chain_of(&moves)?.into_vec();
        chain.push(confirmation.clone());
        let chain = encode::<Chain>(&List::new(chain).map_err(|error| broken(&error))?);
        let request = departure.request.clone();
        let left = Left { request, at: now, guests: guests.clone(), key: print };
        let arrived = moves.arrived.map(|arrived| Arrival { here: false, ..arrived });
        let moves = Moves { chain, arrived, left: Some(left) };
        batch.push(Write::Moves { group: group.clone(), moves });
        batch.push(Write::Departure(Departure { phase: Phase::Gone, ..departure.clone() }));
        batch.push(Write::GroupHead(GroupHead {
            status: GroupStatus::Followed,
            next_sequence: moved_at.next(),
            epoch: state.epoch(),
            revision: head.revision + 1,
            snapshot: Sequence(0),
            previous_snapshot: None,
            joiner_infos: Vec::new(),
            last_accepted_at: now,
            log_bytes: head.log_bytes + bytes,
            wake_at: Some(now.plus_ms(self.groups.options.retention_ms)),
            hub_key: None,
            ..head
        }));
        let kept = head_bytes + bytes;
        step("source.before-gone").await;
        self.store.write(batch).await?;
        step("source.gone-durable").await;
        tracing::info!(%group, %target, "a group has moved to another provider");
        self.arrivals.gone(group);
        self.end_departure(departure, "moved");
        if let Some(place) = self.copies.place(target, self.hub_bounds()) {
            place.keep();
            let members = i64::try_from(members).unwrap_or(i64::MAX);
            self.copies.grew(target, Grown { bytes: 0_i64.saturating_add_unsigned(kept), members });
        }
        for (client, _, _) in &owed.inbox {
            self.hints.inbox(client);
        }
        self.hints.feed_grew(group);
        self.hints.notice(group);
        for guest in &guests {
            self.hints.outbound(guest, group, moved_at);
        }
        for waiter in self.take_waiters(group) {
            // who asked may be gone
            let _ = waiter.send(Ok(DsResponseBody::Moving(Box::new(confirmation.clone()))));
        }
        Ok(Went::On)
    }

    pub(super) fn take_waiters(&self, group: &GroupId) -> Vec<oneshot::Sender<Reply>> {
        let run = self.departures.of(group);
        run.map(|run| std::mem::take(&mut *locked(&run.waiters))).unwrap_or_default()
    }

    pub(super) fn end_departure(&self, departure: &Departure, outcome: &str) {
        let frozen_ms = self.clock.now().ms_since(departure.frozen_at);
        self.metrics.group_frozen_seconds.observe(frozen_ms as f64 / 1000.0);
        self.metrics.migrations.with_label_values(&["source", outcome]).inc();
        self.groups.let_go(&departure.group);
    }

    /// The group goes on here, as it was.
    pub(super) async fn thaw(
        &self,
        departure: &Departure,
        why: DsError,
    ) -> Result<Went, StoreError> {
        let group = &departure.group;
        let Some(head) = self.frozen_head(group).await? else { return Ok(Went::Over) };
        let now = self.clock.now();
        let mut batch = Batch::new().when(condition_of(&head));
        batch.push(Write::DropDeparture(group.clone()));
        for at in [Departure::PARCEL, Departure::CONTENT] {
            batch.push(Write::DropSnapshot { group: group.clone(), at });
        }
        batch.push(Write::GroupHead(GroupHead {
            status: GroupStatus::Active,
            revision: head.revision + 1,
            wake_at: Some(now),
            ..head
        }));
        step("source.before-thaw").await;
        self.store.write(batch).await?;
        step("source.thawed").await;
        tracing::info!(%group, target = %departure.target, %why, "a group stays that was to move");
        self.end_departure(departure, "aborted");
        // what was left for it meanwhile
        self.hints.notice(group);
        for waiter in self.take_waiters(group) {
            let _ = waiter.send(Err(why.clone()));
        }
        Ok(Went::Over)
    }

    /// Hands the target the confirmation that proves its place to others, and without which it cannot let the group move on.
    pub(super) async fn confirm(&self, departure: &Departure) -> Result<Went, StoreError> {
        let (group, target) = (&departure.group, &departure.target);
        let moves = self.store.moves(group).await?;
        let chain = moves.as_ref().map(chain_of).transpose()?.unwrap_or_default();
        let is_it = |it: &&MigrationConfirmation| it.domain_name == *target;
        let left = moves.and_then(|moves| moves.left);
        let Some((left, confirmation)) = left.zip(chain.iter().next_back().filter(is_it)) else {
            return self.confirmed(departure).await;
        };
        let Some(federation) = self.federation.clone() else {
            return Ok(Went::Wait { at_least_ms: 0 });
        };
        let event = EventType::MigrationConfirmation;
        let (id, body) = (RequestId(crypto::random()), encode(confirmation));
        let timeout = Duration::from_millis(self.limits.relay_timeout_ms);
        step("source.before-confirm").await;
        let answer = federation.request(target, event, id, body, timeout).await;
        let told = match &answer {
            Ok(_) => Told::Knows,
            Err(CallError::Status { error: Some(DsError::GroupNotFound { .. }), .. }) => {
                Told::Forgot
            }
            Err(_) => Told::Nothing,
        };
        if told.is_enough() {
            step("source.confirmed").await;
            return self.confirmed(departure).await;
        }
        let asked_ms = answer.err().and_then(|error| {
            tracing::info!(%group, %target, %error, "the target does not know yet that its place is confirmed");
            error.retry_after_ms()
        });
        let pause_ms = confirm_pause_ms(left.at, self.clock.now());
        Ok(Went::Wait { at_least_ms: pause_ms.max(asked_ms.unwrap_or(0)) })
    }

    /// This move is over. A group that has come back meanwhile, and perhaps is to leave again, is about another one.
    async fn confirmed(&self, departure: &Departure) -> Result<Went, StoreError> {
        let group = &departure.group;
        // who comes back does so in its turn
        let turn = self.copies.turn(group);
        let _turn = turn.lock().await;
        if self.store.departure(group).await?.as_ref() == Some(departure) {
            self.store.write(Batch::new().and(Write::DropDeparture(group.clone()))).await?;
            step("source.over").await;
        }
        Ok(Went::Over)
    }
}
