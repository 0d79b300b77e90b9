//! One actor per active group: it translates, persists and tells; the rules are in [`crate::group`].
//!
//! Requests are staged one after the other, each on the state that the one before left, while earlier writes
//! are still on their way to disk. **No answer leaves before what it rests on is durable**, refusals included. A
//! failed write has an unknown outcome: everyone who waits gets `unavailable`, the actor stops, and the next
//! request loads the group from the store. A panic in a rule costs this actor and nothing else.

mod complaints;
mod flights;
mod found;
mod freeze;
mod upkeep;

use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use actix::prelude::*;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::Span;

use super::errors::{damaged, internal, is_damage, of_reject, of_store};
use super::{
    active::InLine,
    arbiters::blocking,
    groups::{GroupOptions, Place},
    history,
    moves::migrating,
    node::Node,
    stages::{Stage, Stages},
};
use crate::{
    group::{Decision, Effects, GroupState, Hub, Outbound, Reject, Request, Staged},
    store::{
        Batch, Condition, Page, StoreError, Write,
        records::{GoneReason, GroupHead, GroupNotice, GroupStatus, InboxKey, OutboundRoster},
    },
    wire::{
        codec::List,
        ds::{DsError, DsRequest, DsResponseBody, REQUEST_BYTES_MAX},
        ids::{ClientUri, Domain, GroupId, Sequence, Timestamp},
        queueing::RosterChange,
    },
};
use complaints::Judge;
pub use complaints::{Asked, Complain};
use flights::{Flight, Waiter};
use found::bind_all;
use upkeep::wake_at;

/// Records that are read at a time.
pub(super) const PAGE: Page = Page { items_max: 512, bytes_max: 4 * 1024 * 1024 };

/// What a requester gets.
pub type Reply = Result<DsResponseBody, DsError>;

/// A request with the permits that let it in.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Operate {
    pub request: Box<Request>,
    pub reply: oneshot::Sender<Reply>,
    pub permits: [OwnedSemaphorePermit; 2],
    /// Its place among those that wait for this group.
    pub place: InLine,
    /// What the request's log lines stand in.
    pub span: Span,
    pub stages: Stages,
}

/// A guest's clients in the group, and where the group stands. PROTOCOL.md §3, "snapshot".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestRoster {
    /// The sequence that follows what the roster is of.
    pub next: Sequence,
    /// All of the guest's clients, as adds without Welcomes.
    pub adds: Vec<RosterChange>,
}

/// Asks for a guest's clients in the group.
#[derive(Message)]
#[rtype(result = "()")]
pub struct RosterFor {
    pub peer: Domain,
    pub reply: oneshot::Sender<Result<Option<GuestRoster>, DsError>>,
}

/// A hint that something is left for the group, or that its time has come.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Tick {
    /// Told when the group has done what there was to do (and it is durable).
    pub done: Option<oneshot::Sender<()>>,
    /// Where nobody waits for it: what keeps the actor here until it has begun.
    pub lasts: Option<Arc<()>>,
}

/// Others want the memory: a group that nobody asks for right now ends.
#[derive(Message)]
#[rtype(result = "()")]
pub struct MakeRoom;

/// What the node wanted of the group by itself is done: it goes, unless somebody else wants it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Depart;

/// A group that an operator brings in, already judged.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Import {
    pub creation: Box<crate::group::Creation>,
    pub reply: oneshot::Sender<Reply>,
}

pub struct GroupActor {
    node: Node,
    hub: Arc<Hub>,
    id: GroupId,
    loaded: Option<Loaded>,
    /// Why the group could not be loaded; then every request gets this.
    broken: Option<DsError>,
    flights: VecDeque<Flight>,
    next_flight: u64,
    /// None: nobody but the node itself has wanted anything of it.
    last_used: Option<Timestamp>,
    /// It goes when what it is at is done.
    departs: bool,
    /// In memory, as long as this actor lives.
    _place: Place,
    /// Set when the registry has let go of this actor: it ends when its mailbox is empty.
    leaving: bool,
    /// Requests that were taken up.
    turns: u64,
}

struct Loaded {
    state: Box<GroupState>,
    head: GroupHead,
    since_snapshot: SinceSnapshot,
}

/// Requests of one group that are taken up before others of its thread have their turn.
const TURNS_AT_ONCE: u64 = 16;

/// Requests that bring more, together with what is pending, are staged in the pool however few members the group has: a lone
/// member can add a thousand in one commit, which takes longer than a large group's. What members of small groups send has a few
/// KiB; some twenty Adds fit.
const INLINE_BYTES_MAX: usize = 16 * 1024;

/// A group that was asked for so lately is in use.
const RIGHT_NOW_MS: u64 = 1000;

/// Behind what an actor tells itself meanwhile, and between looks whether that is done.
const DEPARTS_AFTER: Duration = Duration::from_millis(5);

#[derive(Default, Clone, Copy)]
struct SinceSnapshot {
    records: u64,
    bytes: usize,
    /// Of whole records, messages included.
    log_bytes: u64,
    snapshot_bytes: usize,
    /// A snapshot is being written.
    writing: bool,
}

impl GroupActor {
    #[must_use]
    pub(super) fn new(node: Node, hub: Arc<Hub>, id: GroupId, place: Place) -> Self {
        Self {
            node,
            hub,
            id,
            loaded: None,
            broken: None,
            flights: VecDeque::new(),
            next_flight: 0,
            last_used: None,
            departs: false,
            _place: place,
            leaving: false,
            turns: 0,
        }
    }

    fn options(&self) -> &GroupOptions {
        &self.node.groups.options
    }

    /// Ends the actor after a failure: whoever waits is told, the next request loads the group anew.
    fn fail(&mut self, error: &StoreError, ctx: &mut Context<Self>) {
        tracing::error!(group = %self.id, %error, "the group's actor stops; the next request reloads it");
        self.node.metrics.group_passivations.with_label_values(&["failed"]).inc();
        for flight in std::mem::take(&mut self.flights) {
            for waiter in flight.waiters {
                waiter(Err(error));
            }
        }
        self.loaded = None;
        self.leave(ctx);
    }

    fn leave(&mut self, ctx: &mut Context<Self>) {
        self.leaving = true;
        self.node.groups.waiting.note(&self.id, None);
        self.node.groups.forget(&self.id, &ctx.address());
        ctx.stop();
    }

    /// The batch of what a merge left, with the group's head as it is then.
    fn batch(&mut self, effects: &Effects, at: Timestamp) -> Option<Batch> {
        let loaded = self.loaded.as_mut()?;
        let mut batch = Batch::new().when(Condition::GroupAt {
            group: self.id.clone(),
            next_sequence: loaded.head.next_sequence,
            revision: loaded.head.revision,
        });
        fill(&mut batch, &mut loaded.head, effects);
        let since = &mut loaded.since_snapshot;
        for record in &effects.records {
            since.records += 1;
            since.bytes += record.change.len();
            since.log_bytes += record_bytes(record);
            loaded.head.log_bytes += record_bytes(record);
        }
        let head = &mut loaded.head;
        head.next_sequence = loaded.state.next_sequence();
        head.epoch = loaded.state.epoch();
        head.revision += 1;
        head.last_accepted_at = at;
        head.hub_key = loaded.state.key_stand();
        if loaded.state.is_deleted() {
            head.status = GroupStatus::Deleted;
            head.wake_at = Some(at.plus_ms(self.node.groups.options.retention_ms));
        } else if effects.committed || effects.voided {
            head.wake_at = wake_at(&self.node.groups.options, &loaded.state, head);
        }
        batch.push(Write::GroupHead(head.clone()));
        self.node.groups.waiting.note(&self.id, loaded.state.pending_since());
        Some(batch)
    }

    fn operate(&mut self, operate: Operate, ctx: &mut Context<Self>) {
        let Operate { request, reply, permits, place, span, stages } = operate;
        stages.enter(Stage::Stage);
        place.taken_up();
        let now = self.node.clock.now();
        self.last_used = Some(now);
        if let Some(error) = &self.broken {
            let error = match (&request.message.request, error) {
                (DsRequest::CreateGroup(_), DsError::GroupNotFound { .. }) => of_reject(
                    Reject::InvalidGroupId("the group id was used before; choose another"),
                ),
                (DsRequest::StartMigration(_), DsError::GroupMigrating { .. })
                | (DsRequest::StartMigration(_), DsError::GroupMoved { .. }) => {
                    let key = GroupState::key_of(&request.message);
                    let (node, id, error) = (self.node.clone(), self.id.clone(), error.clone());
                    // this actor does not stay for it
                    actix_rt::spawn(async move {
                        let _ = reply.send(node.answer_departed(&id, &key, error).await);
                        drop(permits);
                    });
                    return;
                }
                (_, DsError::GroupMigrating { .. }) => {
                    migrating(self.node.departures.frozen_ms(&self.id, now))
                }
                (_, error) => error.clone(),
            };
            let _ = reply.send(Err(error));
            return;
        }
        if self.loaded.as_ref().is_some_and(|loaded| loaded.state.has_late_adds(now)) {
            // what nobody can commit must not stand in the way; unanswered, a request goes to the next actor
            Stages::none().within(|| self.hub_acts(&[], Box::new(|_| ()), ctx));
            if self.leaving {
                return;
            }
        }
        let Some(loaded) = self.loaded.as_mut() else {
            self.create_or_refuse(*request, reply, permits, now, ctx);
            return;
        };
        // of a message one leaf is looked at, whatever the size
        let is_small = matches!(request.message.request, DsRequest::SendMessage(_))
            || (loaded.state.member_count() <= self.node.groups.options.inline_members_max
                && loaded.state.bytes_to_judge(&request) <= INLINE_BYTES_MAX);
        if is_small {
            let decided = catch_unwind(AssertUnwindSafe(|| loaded.state.stage(&request, now)));
            self.decided(decided.ok(), *request, reply, permits, now, ctx);
            return;
        }
        // the staging of much, or of a large group, costs milliseconds: it runs in the pool while this actor waits
        let Some(loaded) = self.loaded.take() else { return };
        let pool = Arc::clone(&self.node.groups.cpu);
        let staging = span.clone();
        stages.enter(Stage::Queue);
        let turn = stages.clone();
        let work = async move {
            let _permit = pool.acquire_owned().await;
            turn.enter(Stage::Stage);
            blocking(move || {
                let stage = || loaded.state.stage(&request, now);
                let decided = catch_unwind(AssertUnwindSafe(|| staging.in_scope(stage)));
                (loaded, decided.ok(), request)
            })
            .await
        };
        let staged = work.into_actor(self).map(move |result, actor: &mut Self, ctx| match result {
            Ok((loaded, decided, request)) => {
                actor.loaded = Some(loaded);
                let go_on = || actor.decided(decided, *request, reply, permits, now, ctx);
                span.in_scope(|| stages.within(go_on));
            }
            Err(_) => {
                let _ = reply.send(Err(internal("the group's worker ended")));
                actor.fail(&StoreError::Unavailable("worker ended".into()), ctx);
            }
        });
        ctx.wait(staged);
    }

    fn decided(
        &mut self,
        decided: Option<Result<Decision, Reject>>,
        request: Request,
        reply: oneshot::Sender<Reply>,
        permits: [OwnedSemaphorePermit; 2],
        now: Timestamp,
        ctx: &mut Context<Self>,
    ) {
        let operation = request.message.request.name();
        match (decided, takes_more(&self.node)) {
            (None, _) => {
                let error = internal("a rule panicked");
                tracing::error!(group = %self.id, operation, ?error, "a rule panicked on a request");
                let _ = reply.send(Err(error));
                self.fail(&StoreError::Unavailable("a rule panicked".into()), ctx);
            }
            (Some(Err(reject)), _) => {
                if matches!(reject, Reject::WrongEpoch { .. }) {
                    self.node.metrics.group_epoch_conflicts.inc();
                }
                if let Some(loaded) = self.loaded.as_mut() {
                    loaded.state.note_refusal(&reject, &request.message.sender_id);
                }
                self.answer(Err(of_reject(reject)), reply, permits);
            }
            (Some(Ok(Decision::Answer(body))), _) => self.answer(Ok(body), reply, permits),
            (Some(Ok(Decision::History(epoch, since))), _) => {
                let (node, hub, id) = (self.node.clone(), Arc::clone(&self.hub), self.id.clone());
                Stages::current().enter(Stage::Work);
                // a read of what is durable: it waits for no write, and nobody waits for it
                let read = async move {
                    let _turn = Arc::clone(&node.groups.cpu).acquire_owned().await;
                    let answer = history::joiner_info_of(&node, &hub, &id, (epoch, since)).await;
                    let _ = reply.send(answer.map(|info| DsResponseBody::Info(Box::new(info))));
                    drop(permits);
                };
                ctx.spawn(read.into_actor(self));
            }
            (Some(Ok(Decision::Move(_) | Decision::Write(_))), Err(error)) => {
                self.answer(Err(of_store(error)), reply, permits);
            }
            (Some(Ok(Decision::Move(staged))), _) => {
                self.freeze(*staged, request, reply, permits, now, ctx);
            }
            (Some(Ok(Decision::Write(staged))), _) if staged.binds.is_empty() => {
                self.accept(*staged, Vec::new(), Vec::new(), reply, permits, now, ctx);
            }
            (Some(Ok(Decision::Write(staged))), _) => {
                let (node, id, stages) = (self.node.clone(), self.id.clone(), Stages::current());
                let bind = async move {
                    let bound = bind_all(&node, &id, &staged).await;
                    (staged, bound)
                };
                let bound =
                    bind.into_actor(self).map(move |(staged, bound), actor: &mut Self, ctx| {
                        match bound {
                            Ok((conditions, writes)) => stages.within(|| {
                                actor.accept(*staged, conditions, writes, reply, permits, now, ctx);
                            }),
                            Err(error) => {
                                stages.within(|| actor.answer(Err(error), reply, permits));
                            }
                        }
                    });
                // nothing else may be staged before this is merged
                ctx.wait(bound);
            }
        }
    }

    /// Sends an answer that changes nothing, when what it rests on is durable.
    fn answer(
        &mut self,
        answer: Reply,
        reply: oneshot::Sender<Reply>,
        permits: [OwnedSemaphorePermit; 2],
    ) {
        let stages = Stages::current();
        if !self.flights.is_empty() {
            stages.enter(Stage::Flush);
        }
        self.when_durable(Box::new(move |outcome| {
            stages.enter(Stage::Answer);
            let _ = reply.send(outcome.map_err(|error| of_store(error.clone())).and(answer));
            drop(permits);
        }));
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one accepted request, everything that it comes with"
    )]
    fn accept(
        &mut self,
        staged: Staged,
        conditions: Vec<Condition>,
        writes: Vec<Write>,
        reply: oneshot::Sender<Reply>,
        permits: [OwnedSemaphorePermit; 2],
        now: Timestamp,
        ctx: &mut Context<Self>,
    ) {
        let Some(loaded) = self.loaded.as_mut() else { return };
        let pending_since = loaded.state.pending_since();
        let merged = catch_unwind(AssertUnwindSafe(|| loaded.state.merge(staged)));
        let effects = match merged {
            Ok(Ok(effects)) => effects,
            Ok(Err(reject)) => {
                tracing::error!(group = %self.id, %reject, "a merge failed");
                let _ = reply.send(Err(of_reject(reject)));
                self.fail(&StoreError::Unavailable("a merge failed".into()), ctx);
                return;
            }
            Err(_) => {
                let _ = reply.send(Err(internal("a merge panicked")));
                self.fail(&StoreError::Unavailable("a merge panicked".into()), ctx);
                return;
            }
        };
        if let (true, Some(since)) = (effects.committed, pending_since) {
            let waited_ms = now.ms_since(since);
            self.node.metrics.group_pending_seconds.observe(waited_ms as f64 / 1000.0);
        }
        let accepted = effects.accepted;
        let tell = self.tell(&effects);
        let Some(mut batch) = self.batch(&effects, now) else { return };
        let noticed = writes.iter().any(|write| matches!(write, Write::GroupNotice { .. }));
        batch.conditions.extend(conditions);
        batch.writes.extend(writes);
        let address = ctx.address();
        let waiter: Waiter = Box::new(move |outcome| {
            let answer = match (outcome, accepted) {
                (Ok(()), Some(accepted)) => {
                    tell();
                    if noticed {
                        address.do_send(Tick { done: None, lasts: None });
                    }
                    Ok(DsResponseBody::Accepted(accepted))
                }
                (Ok(()), None) => Err(internal("an accepted request without answer")),
                (Err(error), _) => Err(of_store(error.clone())),
            };
            let _ = reply.send(answer);
            drop(permits);
        });
        self.write(batch, waiter, ctx);
        self.snapshot_if_due(ctx);
    }

    /// Whom a notice is about. A peer speaks for its own clients only.
    fn gone(&self, notice: &GroupNotice) -> Option<(ClientUri, GoneReason)> {
        match notice {
            GroupNotice::ClientGone { client, reason } => Some((client.clone(), *reason)),
            GroupNotice::RecipientGone { peer, recipient, reason } => {
                let state = &self.loaded.as_ref()?.state;
                state.client_of(peer, *recipient).map(|client| (client.clone(), *reason))
            }
        }
    }

    /// Hints for queues that are online and for peers: they can be lost.
    fn tell(&self, effects: &Effects) -> impl FnOnce() + 'static {
        let (node, id) = (self.node.clone(), self.id.clone());
        let clients: Vec<ClientUri> =
            effects.inbox.iter().map(|(client, _, _)| client.clone()).collect();
        let count = effects.records.len() as u64;
        let (committed, voided) = (effects.committed, effects.voided);
        let ended = self.loaded.as_ref().is_some_and(|loaded| loaded.state.is_deleted());
        let mut peers: BTreeMap<Domain, Sequence> = BTreeMap::new();
        for owed in &effects.outbound {
            peers.insert(owed.peer.clone(), owed.sequence);
        }
        move || {
            node.metrics.group_accepted.inc_by(count);
            if committed {
                node.metrics.group_commits.inc();
            }
            if voided {
                tracing::warn!(group = %id, "members could not process a commit: its epoch is void");
                node.metrics.epochs_voided.inc();
            }
            if ended {
                node.arrivals.gone(&id);
            }
            for client in &clients {
                node.hints.inbox(client);
            }
            node.hints.feed_grew(&id);
            for (peer, until) in &peers {
                node.hints.outbound(peer, &id, *until);
            }
        }
    }
}

impl Actor for GroupActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        // admission is the permits; the mailbox must not refuse what they let in
        ctx.set_mailbox_capacity(usize::MAX);
        self.node.metrics.group_actors.inc();
        let (node, hub, id) = (self.node.clone(), Arc::clone(&self.hub), self.id.clone());
        let load = async move { history::load(&node, &hub, &id).await };
        let loaded = load.into_actor(self).map(|loaded, actor: &mut Self, ctx| {
            match loaded {
                Ok(Some(found)) => {
                    actor.node.metrics.group_activations.inc();
                    if let Some(left) = actor.node.groups.is_well(&actor.id) {
                        tracing::info!(group = %actor.id, "the group can be loaded again");
                        actor.node.metrics.groups_isolated.set(gauge(left));
                    }
                    let history::Found { state, head, records, change_bytes, snapshot_bytes } =
                        found;
                    let bytes = change_bytes;
                    let since_snapshot =
                        SinceSnapshot { records, bytes, snapshot_bytes, ..Default::default() };
                    let now = actor.node.clock.now();
                    if state.wants_key() || state.has_liars(now) {
                        ctx.notify(Tick { done: None, lasts: None });
                    }
                    if state.back_to(now).is_some() {
                        ctx.notify(Judge { ask: None });
                    }
                    actor.node.groups.waiting.note(&actor.id, state.pending_since());
                    actor.loaded = Some(Loaded { state: Box::new(state), head, since_snapshot });
                }
                Ok(None) => {}
                Err(error) => {
                    let has_left = matches!(
                        error,
                        DsError::GroupMigrating { .. } | DsError::GroupMoved { .. }
                    );
                    // a record is damaged, or what was read makes no group
                    let error = if let DsError::Internal { reference, .. } = &error {
                        damaged(reference.as_str())
                    } else {
                        error
                    };
                    if is_damage(&error) {
                        let now = actor.node.clock.now();
                        let (all, is_new) =
                            actor.node.groups.isolate(&actor.id, error.clone(), now);
                        actor.node.metrics.groups_isolated.set(gauge(all));
                        if is_new {
                            tracing::error!(group = %actor.id, %error, "the group is isolated: it cannot be loaded, and its requests are refused");
                        }
                    } else if !has_left {
                        tracing::debug!(group = %actor.id, %error, "the group cannot be loaded");
                    }
                    actor.broken = Some(error);
                    actor.node.groups.forget(&actor.id, &ctx.address());
                    // answers what is in the mailbox, and ends
                    ctx.run_later(Duration::from_millis(100), |actor, ctx| actor.leave(ctx));
                }
            }
        });
        ctx.wait(loaded);
        let check = Duration::from_millis(self.options().idle_ms.clamp(20, 60_000));
        ctx.run_interval(check, Self::passivate_if_idle);
    }

    fn stopped(&mut self, _: &mut Context<Self>) {
        self.node.metrics.group_actors.dec();
    }
}

impl Handler<Operate> for GroupActor {
    type Result = ();
    fn handle(&mut self, operate: Operate, ctx: &mut Context<Self>) {
        self.turns += 1;
        if self.turns.is_multiple_of(TURNS_AT_ONCE) {
            // a group with many requests lets the others of its thread have theirs
            ctx.wait(tokio::task::yield_now().into_actor(self));
        }
        let (span, stages) = (operate.span.clone(), operate.stages.clone());
        span.in_scope(|| stages.within(|| self.operate(operate, ctx)));
    }
}

impl Handler<RosterFor> for GroupActor {
    type Result = ();
    fn handle(&mut self, ask: RosterFor, _: &mut Context<Self>) {
        let RosterFor { peer, reply } = ask;
        self.last_used = Some(self.node.clock.now());
        let answer = match (&self.loaded, &self.broken) {
            (_, Some(error)) => Err(error.clone()),
            (Some(loaded), None) => {
                let state = &loaded.state;
                Ok(Some(GuestRoster { next: state.next_sequence(), adds: state.roster_for(&peer) }))
            }
            (None, None) => Ok(None),
        };
        self.when_durable(Box::new(move |outcome| {
            let _ = reply.send(outcome.map_err(|error| of_store(error.clone())).and(answer));
        }));
    }
}

impl Handler<Tick> for GroupActor {
    type Result = ();
    fn handle(&mut self, tick: Tick, ctx: &mut Context<Self>) {
        self.tick(tick, ctx);
    }
}

impl Handler<MakeRoom> for GroupActor {
    type Result = ();
    fn handle(&mut self, _: MakeRoom, ctx: &mut Context<Self>) {
        self.passivate_if_unused(RIGHT_NOW_MS, "pressure", ctx);
    }
}

impl Handler<Depart> for GroupActor {
    type Result = ();
    fn handle(&mut self, _: Depart, ctx: &mut Context<Self>) {
        if !std::mem::replace(&mut self.departs, true) {
            ctx.run_later(DEPARTS_AFTER, Self::depart);
        }
    }
}

impl Handler<Import> for GroupActor {
    type Result = ();
    fn handle(&mut self, import: Import, ctx: &mut Context<Self>) {
        self.last_used = Some(self.node.clock.now());
        if self.loaded.is_some() {
            let taken = Reject::InvalidGroupId("a group of this id is here already");
            let _ = import.reply.send(Err(of_reject(taken)));
            return;
        }
        let now = self.node.clock.now();
        self.found(*import.creation, import.reply, None, now, ctx);
    }
}

/// Whether the store takes what a merge leaves. It is asked before each: a merge whose write is refused costs the group its
/// actor, and all that are on their way their answers.
fn takes_more(node: &Node) -> Result<(), StoreError> {
    node.store.room().map_err(StoreError::Full)?;
    node.store.writable().map_err(StoreError::ReadOnly)
}

/// Log records, which `head` then ends with, inbox rows and what guests are owed of what a merge left.
pub(super) fn fill(batch: &mut Batch, head: &mut GroupHead, effects: &Effects) {
    for record in &effects.records {
        let record = head.append(record.clone());
        batch.push(Write::Log { group: head.group.clone(), record });
    }
    let group = &head.group;
    for (index, (client, sequence, item)) in effects.inbox.iter().enumerate() {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let key = InboxKey::Group { group: group.clone(), sequence: *sequence, index };
        batch.push(Write::Inbox { client: client.clone(), key, item: item.clone() });
    }
    let mut owed: BTreeMap<&Domain, Sequence> = BTreeMap::new();
    for Outbound { peer, sequence, opens, changes } in &effects.outbound {
        owed.insert(peer, *sequence);
        if !changes.is_empty() {
            let row = OutboundRoster {
                sequence: *sequence,
                opens: *opens,
                changes: encode_changes(changes),
            };
            batch.push(Write::OutboundRoster { peer: peer.clone(), group: group.clone(), row });
        }
    }
    for (peer, until) in owed {
        batch.push(Write::Outbound { peer: peer.clone(), group: group.clone(), until });
    }
}

/// What a guest's clients in one group change by, on the wire.
pub(super) fn encode_changes(changes: &[RosterChange]) -> Vec<u8> {
    // what would not fit was refused when it was staged; where it does not all the same (an import of a group with very
    // many guests), the peer is sent a snapshot in its place
    let list = List::<RosterChange, REQUEST_BYTES_MAX>::new(changes.to_vec());
    list.map(|list| crate::wire::encode(&list)).unwrap_or_else(|error| {
        tracing::error!(%error, "a guest's changes do not fit: it gets a snapshot");
        Vec::new()
    })
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(super) fn record_bytes(record: &crate::store::records::LogRecord) -> u64 {
    (record.feed.event.len() + record.change.len() + 64) as u64
}
