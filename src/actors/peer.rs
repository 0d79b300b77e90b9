//! One actor per peer that something is left for: it reads what the peer is owed, sends it, and writes down what the peer
//! has answered for. PROTOCOL.md §3, "Between providers".
//!
//! Thin: whose turn it is and what an answer means is decided in `federation::outbox` (feeds) and `federation::direct` (a peer
//! that takes single messages only), when the peer may be spoken to in `federation::schedule`. Everything here can be lost:
//! markers and logs are in the store, and what was not written down as taken is sent again.

mod direct;
pub(super) mod items;
mod persist;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use actix::prelude::*;
use tokio::sync::oneshot;

use super::{
    hints::Woken,
    node::Node,
    peers::{Ear, PeerLimits, StuckGroup, Waiting},
};
use crate::{
    crypto,
    federation::{
        CallError, Federation,
        direct::Direct,
        outbox::{BatchId, Need, Outbox, Plan, Reading, Turn, Turned, Verdict},
        schedule::{Circuit, Failure, Permission},
        way::Way,
    },
    queue::state::recipient_gone,
    store::{
        Batch, StoreError,
        records::{Replica, ReplicaMode},
    },
    wire::{
        codec::{List, decode, encode},
        federation::EventType,
        ids::{Domain, GroupId, RecipientId, RequestId, Sequence, Timestamp},
        queueing::{DeliverBatchRequest, DeliverBatchResponse, DeliveryItem, RosterChange},
    },
};
use items::{ReadTurn, Stood, read_turn, standing_of};
pub(super) use items::{owed_before, with_welcomes};

pub(super) struct PeerActor {
    node: Node,
    federation: Arc<Federation>,
    peer: Domain,
    ear: Arc<Ear>,
    circuit: Circuit,
    outbox: Outbox,
    direct: Direct,
    way: Way,
    /// The store was asked whether the peer has taken feeds before.
    way_asked: bool,
    /// A group whose clients have everything and whose copy has not, if there is one: feeds can be tried with it.
    lagging: Option<(GroupId, Sequence)>,
    /// Of groups whose copy is to be opened: clients that rows may remove which are still to be sent.
    leaving_clients: BTreeMap<GroupId, Vec<RosterChange>>,
    /// Batches that were sent and are not answered: a repeat is the same bytes under the same id.
    kept: BTreeMap<BatchId, Kept>,
    repeat: VecDeque<BatchId>,
    /// Batches that are read or on their way, and single requests.
    sending: usize,
    /// Groups that are to be read in, with what is left of them.
    wanted: BTreeMap<GroupId, Sequence>,
    /// Where the scan for groups goes on; none: everything that was left is here.
    scan: Option<Option<GroupId>>,
    /// Something was left that there was no room to note: the store is to be looked through once more.
    rescan: bool,
    /// Everything that the store holds for the peer was looked at, and what came since was told.
    knows_all: bool,
    /// The next groups are read in from the store, and not those that were told of.
    scans_next: bool,
    loading: bool,
    persisting: bool,
    persist_armed: bool,
    /// It is to be written down as soon as nothing is read in.
    persist_due: bool,
    timer: Option<(Timestamp, SpawnHandle)>,
    idle_timer: Option<SpawnHandle>,
    /// When the peer took something the last time.
    taken_at: Timestamp,
    /// Nothing has succeeded since the last failure.
    failing: bool,
    /// Groups whose clients of this peer were proposed for removal because it cannot be reached.
    given_up: BTreeSet<GroupId>,
    /// Recipients that were reported as gone.
    gone: HashSet<(GroupId, RecipientId)>,
    gone_since: Timestamp,
    /// Groups that clients of this peer left by what was sent: perhaps all of them.
    left: BTreeSet<GroupId>,
    draining: Vec<oneshot::Sender<()>>,
    published_at: Timestamp,
    leaving: bool,
}

struct Kept {
    request_id: RequestId,
    body: Vec<u8>,
}

/// A group as it was read in.
enum LoadedGroup {
    Feed(Stood),
    Direct(direct::LoadedDirect),
}

/// What is done about a request that failed.
enum Trouble {
    /// There is no such event at the peer.
    NotFound,
    /// The request is larger than the peer takes.
    TooLarge,
    /// Something in the request is not for this peer, now or ever.
    Refused { for_good: bool },
    /// The peer takes nothing now.
    Later(Failure),
}

impl PeerActor {
    pub(super) fn new(
        node: Node,
        federation: Arc<Federation>,
        peer: Domain,
        ear: Arc<Ear>,
    ) -> Self {
        let limits = &node.peers.limits;
        Self {
            circuit: Circuit::new(limits.schedule),
            outbox: Outbox::new(limits.outbox),
            direct: Direct::new(limits.direct),
            way: node.peers.way_of(&peer),
            way_asked: false,
            lagging: None,
            leaving_clients: BTreeMap::new(),
            kept: BTreeMap::new(),
            repeat: VecDeque::new(),
            sending: 0,
            wanted: BTreeMap::new(),
            scan: Some(None),
            rescan: false,
            scans_next: false,
            knows_all: false,
            loading: false,
            persisting: false,
            persist_armed: false,
            persist_due: false,
            timer: None,
            idle_timer: None,
            taken_at: Timestamp(0),
            failing: false,
            given_up: BTreeSet::new(),
            gone: HashSet::new(),
            gone_since: Timestamp(0),
            left: BTreeSet::new(),
            draining: Vec::new(),
            published_at: Timestamp(0),
            leaving: false,
            node,
            federation,
            peer,
            ear,
        }
    }

    fn limits(&self) -> &PeerLimits {
        &self.node.peers.limits
    }

    fn now(&self) -> Timestamp {
        self.node.clock.now()
    }

    fn is_direct(&self) -> bool {
        self.way.is_direct()
    }

    fn is_draining(&self) -> bool {
        !self.draining.is_empty()
    }

    /// Does everything that can be done now.
    fn work(&mut self, ctx: &mut Context<Self>) {
        if self.leaving {
            return;
        }
        if self.persist_due {
            self.persist(ctx);
        }
        self.load(ctx);
        self.send(ctx);
        self.persist_later(ctx);
        self.arm(ctx);
        self.publish(false);
        self.rest(ctx);
    }

    fn room(&self) -> usize {
        let most = self.limits().groups_max;
        let here = self.outbox.len() + self.direct.len();
        // those that are set aside are in the others' way only where they are as many again
        let at_work = here - self.outbox.set_aside_count();
        most.saturating_sub(at_work).min((2 * most).saturating_sub(here))
    }

    /// Reads in groups: those that it was told of, and what the store has, as many as there is room for.
    fn load(&mut self, ctx: &mut Context<Self>) {
        if self.rescan && self.scan.is_none() {
            (self.rescan, self.scan) = (false, Some(None));
        }
        let room = self.room().min(LOAD_PAGE);
        // where a group stands is not read while it is written
        let waits = self.persisting || self.persist_due;
        if self.loading || waits || self.is_draining() || room == 0 {
            return;
        }
        let (node, peer) = (self.node.clone(), self.peer.clone());
        let mut groups: Vec<(GroupId, Sequence)> = Vec::new();
        // turn by turn, so that neither those that grow keep the others waiting nor the other way round
        let scans = self.scan.is_some() && (self.wanted.is_empty() || self.scans_next);
        self.scans_next = !scans;
        while !scans
            && groups.len() < room
            && let Some(wanted) = self.wanted.pop_first()
        {
            groups.push(wanted);
        }
        let scan = match (&self.scan, groups.is_empty()) {
            (Some(after), true) => Some(after.clone()),
            (None, true) => return,
            (_, false) => None,
        };
        let direct = self.is_direct();
        let known: BTreeMap<GroupId, Sequence> = groups
            .iter()
            .filter_map(|(group, _)| Some((group.clone(), self.direct.known(group)?)))
            .collect();
        self.loading = true;
        let (asked, takes_feeds) = (self.way_asked, self.way.takes_feeds());
        let read = async move {
            let took_feeds = takes_feeds || (!asked && has_taken_feeds(&node, &peer).await?);
            let mut last = None;
            if let Some(after) = &scan {
                groups = node.store.outbound(&peer, after.as_ref(), room).await?;
                last = groups.last().map(|(group, _)| group.clone());
            }
            let mut loaded = Vec::with_capacity(groups.len());
            for (group, until) in groups {
                let one = if direct {
                    let known = known.get(&group).copied();
                    let loaded = direct::load(&node, &peer, &group, until, known, took_feeds).await;
                    loaded.map(LoadedGroup::Direct)
                } else {
                    let standing = standing_of(&node, &peer, &group, until).await;
                    standing.map(LoadedGroup::Feed)
                };
                match one {
                    Ok(one) => loaded.push((group, until, one)),
                    // one group's record is not in the others' way
                    Err(StoreError::Corrupt { what }) => {
                        tracing::error!(%peer, %group, what, "nothing of the group is sent to the peer");
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok::<_, StoreError>((scan.map(|_| last), loaded, took_feeds))
        };
        let done = read.into_actor(self).map(|read, actor: &mut Self, ctx| {
            actor.loading = false;
            match read {
                Ok((scan, loaded, took_feeds)) => {
                    actor.way_asked = true;
                    if took_feeds {
                        actor.way.took_feeds();
                    }
                    match scan {
                        // a scan goes on behind its last group until there is none
                        Some(Some(last)) => actor.scan = Some(Some(last)),
                        Some(None) => (actor.scan, actor.knows_all) = (None, true),
                        None => {}
                    }
                    actor.loaded(loaded);
                    actor.work(ctx);
                }
                Err(error) => actor.fail(&error, ctx),
            }
        });
        ctx.spawn(done);
    }

    /// A group is to be read in up to `until`, or further where that is known already.
    fn want(&mut self, group: GroupId, until: Sequence) {
        let wanted = self.wanted.entry(group).or_insert(until);
        *wanted = until.max(*wanted);
    }

    fn loaded(&mut self, loaded: Vec<(GroupId, Sequence, LoadedGroup)>) {
        let now = self.now();
        for (group, until, one) in loaded {
            match (one, self.is_direct()) {
                (LoadedGroup::Feed(Stood { standing, mode, .. }), false) => {
                    self.taken_at = self.taken_at.max(standing.acknowledged_at);
                    let got_singles = mode == ReplicaMode::Direct && standing.set_aside.is_none();
                    if got_singles && self.way.got_singles(now, random()) {
                        // it did not take feeds when it was tried the last time
                        self.want(group, until);
                        self.go_direct();
                        continue;
                    }
                    self.outbox.load(group, standing, now);
                }
                (LoadedGroup::Direct(loaded), true) => {
                    if self.outbox.grow(&group, until, now) {
                        // feeds are tried with it: by single requests its rows would be gone before they are sent
                        continue;
                    }
                    match loaded.apply(&mut self.direct, &group, now) {
                        direct::Applied::Here => {}
                        direct::Applied::Lags => {
                            self.lagging.get_or_insert((group, until));
                        }
                        direct::Applied::LetGo => self.want(group, until),
                    }
                }
                // the way has changed meanwhile
                (LoadedGroup::Feed(_), true) | (LoadedGroup::Direct(_), false) => {
                    self.want(group, until);
                }
            }
        }
    }

    fn send(&mut self, ctx: &mut Context<Self>) {
        while !self.is_draining() {
            let now = self.now();
            let groups_max = match self.circuit.permission(now) {
                Permission::Free => usize::MAX,
                // of one group, so that one that the peer chokes on has others behind it
                Permission::Probe => 1,
                Permission::NotBefore(_) | Permission::Probing => return,
            };
            if let Some(batch) = self.repeat.pop_front() {
                self.circuit.sent(now);
                self.sending += 1;
                self.post(batch, ctx);
                continue;
            }
            self.probe_feeds(now, ctx);
            if let Some(job) = self.direct.next(now) {
                self.circuit.sent(now);
                self.sending += 1;
                self.send_one(job, ctx);
                continue;
            }
            let Some(plan) = self.outbox.plan(groups_max, now) else { return };
            self.circuit.sent(now);
            self.sending += 1;
            self.read(plan, ctx);
        }
    }

    fn read(&mut self, plan: Plan, ctx: &mut Context<Self>) {
        let (node, peer, batch) = (self.node.clone(), self.peer.clone(), plan.batch);
        let leaving = |turn: &Turn| match turn.need {
            Need::Opening => self.leaving_clients.get(&turn.group).cloned().unwrap_or_default(),
            Need::Items | Need::Snapshot => Vec::new(),
        };
        let turns: Vec<_> = plan.turns.into_iter().map(|turn| (leaving(&turn), turn)).collect();
        let read = async move {
            let mut readings = Vec::with_capacity(turns.len());
            for (leaving, turn) in turns {
                let ReadTurn { reading, removes } = read_turn(&node, &peer, &turn, &leaving).await;
                readings.push((turn.group, reading, removes));
            }
            (batch, readings)
        };
        let done = read.into_actor(self).map(|(batch, readings), actor: &mut Self, ctx| {
            actor.fill(batch, readings, ctx);
        });
        ctx.spawn(done);
    }

    fn fill(
        &mut self,
        batch: BatchId,
        readings: Vec<(GroupId, Reading, bool)>,
        ctx: &mut Context<Self>,
    ) {
        let leave = readings.iter().filter(|(_, _, removes)| *removes);
        let leave: Vec<GroupId> = leave.map(|(group, _, _)| group.clone()).collect();
        self.left.extend(leave);
        let readings = readings.into_iter().map(|(group, reading, _)| (group, reading)).collect();
        let now = self.now();
        let items = self.outbox.fill(batch, readings, now, random());
        let Some(request) = items.and_then(request_of) else {
            self.outbox.release(batch);
            self.circuit.not_sent();
            // there was nothing to try feeds with
            self.probe_failed(true);
            self.sending -= 1;
            return self.work(ctx);
        };
        let kept = Kept { request_id: RequestId(crypto::random()), body: encode(&request) };
        self.kept.insert(batch, kept);
        self.post(batch, ctx);
    }

    fn post(&mut self, batch: BatchId, ctx: &mut Context<Self>) {
        let Some(kept) = self.kept.get(&batch) else {
            self.circuit.not_sent();
            self.sending -= 1;
            return;
        };
        let (federation, peer) = (Arc::clone(&self.federation), self.peer.clone());
        let (request_id, body) = (kept.request_id, kept.body.clone());
        let (timeout, sent_at) = (self.timeout(), self.now());
        let request = async move {
            let event = EventType::DeliverBatch;
            federation.request(&peer, event, request_id, body, timeout).await
        };
        let done = request.into_actor(self).map(move |answer, actor: &mut Self, ctx| {
            actor.sending -= 1;
            let answer = answer.and_then(|bytes| {
                decode::<DeliverBatchResponse>(&bytes)
                    .map_err(|error| CallError::BadAnswer(error.to_string()))
            });
            match answer {
                Ok(response) => actor.answered(batch, &response, ctx),
                Err(error) => actor.troubled(batch, &error, sent_at),
            }
            actor.work(ctx);
        });
        ctx.spawn(done);
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.limits().request_timeout_ms)
    }

    fn answered(
        &mut self,
        batch: BatchId,
        response: &DeliverBatchResponse,
        ctx: &mut Context<Self>,
    ) {
        let now = self.now();
        self.succeeded();
        if self.way.feeds_answered() {
            self.go_feed(now);
        }
        if self.kept.remove(&batch).is_none() {
            // it was handed over to the other way meanwhile
            return;
        }
        let verdicts = self.outbox.answered(batch, response, now, random());
        let mut delivered = 0;
        for Verdict { group, taken, gone, turn } in verdicts {
            delivered += taken as u64;
            if taken > 0 {
                self.taken_at = now;
                self.given_up.remove(&group);
                self.leaving_clients.remove(&group);
            }
            match turn {
                Turned::On | Turned::Stalled => {}
                Turned::Repair => self.count("repair"),
                Turned::SetAside => {
                    self.count("set_aside");
                    let aside = self.outbox.set_aside_of(&group);
                    let (item, problem) =
                        aside.map(|it| (it.item, it.problem.clone())).unwrap_or_default();
                    tracing::warn!(peer = %self.peer, %group, %item, problem, "the peer does not take a group: it is set aside");
                }
            }
            self.report_gone(&group, gone, ctx);
        }
        self.node.peers.board.update(&self.peer, |state| state.items_delivered += delivered);
    }

    fn succeeded(&mut self) {
        self.circuit.succeeded();
        self.failing = false;
        self.node.peers.board.update(&self.peer, |state| state.problem = None);
    }

    fn troubled(&mut self, batch: BatchId, error: &CallError, sent_at: Timestamp) {
        let now = self.now();
        self.note(error);
        let trouble = match trouble_of(error) {
            // it was handed over to the other way meanwhile
            Trouble::NotFound if !self.kept.contains_key(&batch) => {
                self.circuit.succeeded();
                return;
            }
            Trouble::NotFound => match self.feeds_not_found(sent_at) {
                true => Trouble::Later(Failure::Refused),
                false => return,
            },
            other @ (Trouble::TooLarge | Trouble::Refused { .. } | Trouble::Later(_)) => {
                self.way.feeds_failed();
                other
            }
        };
        let for_good = !matches!(trouble, Trouble::Later(_));
        if self.kept.contains_key(&batch) && self.probe_failed(for_good) {
            match trouble {
                Trouble::Later(failure) => self.failed(failure, sent_at),
                Trouble::NotFound | Trouble::TooLarge | Trouble::Refused { .. } => {
                    self.failed(Failure::Refused, sent_at);
                }
            }
            return;
        }
        match trouble {
            Trouble::NotFound => {}
            Trouble::TooLarge => {
                self.kept.remove(&batch);
                self.circuit.succeeded();
                self.outbox.too_large(batch, now);
            }
            Trouble::Refused { .. } => {
                self.kept.remove(&batch);
                // the peer says it of a whole message, and says it of every one where it is another that answers at its
                // place: no group is set aside for what is over in minutes
                self.outbox.refused(batch, &error.to_string(), false, now, random());
                // a peer that refuses everything is not to be asked without a pause
                self.failed(Failure::Refused, sent_at);
            }
            Trouble::Later(failure) => {
                self.failed(failure, sent_at);
                if self.kept.contains_key(&batch) {
                    self.repeat.push_back(batch);
                }
                if matches!(self.circuit.permission(now), Permission::Probe) || self.is_cut_off() {
                    // what a dead peer does not take is not kept in memory, and the probe is one of another group
                    for batch in std::mem::take(&mut self.repeat) {
                        self.kept.remove(&batch);
                        self.outbox.release(batch);
                    }
                }
            }
        }
    }

    fn is_cut_off(&self) -> bool {
        self.circuit.state() != crate::federation::schedule::CircuitState::Closed
    }

    fn failed(&mut self, failure: Failure, sent_at: Timestamp) {
        let was_cut_off = self.is_cut_off();
        self.failing = true;
        self.circuit.failed(failure, sent_at, self.now(), random());
        if self.sending == 0 {
            // whatever a clock said in between, no probe is out
            self.circuit.not_sent();
        }
        if self.is_cut_off() && !was_cut_off {
            tracing::warn!(peer = %self.peer, "the peer cannot be reached: it is left alone and probed now and then");
        }
    }

    /// For the operator.
    fn note(&self, error: &CallError) {
        tracing::debug!(peer = %self.peer, %error, "a request to a peer failed");
        self.node.peers.board.update(&self.peer, |state| state.problem = Some(error.to_string()));
        self.count(error.kind());
    }

    fn count(&self, kind: &'static str) {
        self.node.peers.board.update(&self.peer, |state| {
            *state.failures.entry(kind).or_default() += 1;
        });
    }

    /// Leaves word for the group that these recipients are to be removed: each once an hour.
    fn report_gone(
        &mut self,
        group: &GroupId,
        mut recipients: Vec<RecipientId>,
        ctx: &mut Context<Self>,
    ) {
        recipients.retain(|recipient| !self.gone.contains(&(group.clone(), *recipient)));
        if recipients.is_empty() {
            return;
        }
        if self.gone.len() + recipients.len() > GONE_MAX {
            // reported twice does no harm
            self.gone.clear();
        }
        let mut batch = Batch::new();
        for recipient in recipients {
            self.gone.insert((group.clone(), recipient));
            batch.push(recipient_gone(&self.peer, group, recipient));
        }
        let (node, group) = (self.node.clone(), group.clone());
        let written = self.node.store.write(batch);
        let tell = async move {
            match written.await {
                Ok(()) => node.hints.notice(&group),
                Err(error) => tracing::warn!(%group, %error, "that clients are gone is not noted"),
            }
        };
        ctx.spawn(tell.into_actor(self));
    }

    /// The store fails: nothing can be sent or written down. The next sweep starts anew.
    fn fail(&mut self, error: &StoreError, ctx: &mut Context<Self>) {
        tracing::error!(peer = %self.peer, %error, "sending to the peer stops until the store works");
        self.leaving = true;
        self.node.peers.forget(&self.peer, &self.ear);
        ctx.stop();
    }

    /// Wakes up when the next thing can be done.
    fn arm(&mut self, ctx: &mut Context<Self>) {
        let now = self.now();
        let free_at = match self.circuit.permission(now) {
            Permission::Free | Permission::Probe => now,
            Permission::NotBefore(at) => at,
            Permission::Probing => return,
        };
        let ready = self.outbox.has_ready(now) || !self.repeat.is_empty();
        let due = [self.outbox.due_at(), self.direct.due_at(), self.probe_due()];
        let due = due.into_iter().flatten().min();
        let ready = ready || (!self.direct.is_empty() && free_at > now);
        let due = if ready { Some(now) } else { due };
        let Some(at) = due.map(|due| due.max(free_at)).filter(|at| *at > now) else { return };
        if self.timer.as_ref().is_some_and(|(armed, _)| *armed <= at && *armed > now) {
            return;
        }
        if let Some((_, timer)) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        let delay = Duration::from_millis(at.ms_since(now).clamp(1, TIMER_MS_MAX));
        let timer = ctx.run_later(delay, |actor, ctx| {
            actor.timer = None;
            actor.work(ctx);
        });
        self.timer = Some((at, timer));
    }

    /// Puts what operators see on the board: at once where it is cheap, else once a second.
    fn publish(&mut self, anyway: bool) {
        let now = self.now();
        let small = self.outbox.len() + self.direct.len() <= PUBLISH_GROUPS_MAX;
        if !small && !anyway && now.ms_since(self.published_at) < PUBLISH_MS {
            return;
        }
        self.published_at = now;
        let waits = self.scan.is_some() || self.rescan || !self.wanted.is_empty();
        let mut loaded = Waiting {
            items: self.outbox.depth() + self.direct.depth(),
            is_all: self.knows_all && !(waits && self.room() == 0),
            ..Waiting::default()
        };
        for at in self.outbox.waiting().map(|(_, at)| at).chain(self.direct.waiting()) {
            loaded.groups += 1;
            loaded.oldest_at = loaded.oldest_at.into_iter().chain([at]).min();
        }
        let stuck = self.outbox.set_aside().take(STUCK_MAX).map(|(group, set_aside)| StuckGroup {
            group: group.clone(),
            set_aside: set_aside.clone(),
        });
        let stuck: Vec<StuckGroup> = stuck.collect();
        let next_attempt_at = match self.circuit.permission(now) {
            Permission::NotBefore(at) => Some(at),
            Permission::Free | Permission::Probe | Permission::Probing => None,
        };
        let active = !self.leaving;
        self.node.peers.board.update(&self.peer, |state| {
            state.active = active;
            state.loaded(loaded);
            state.circuit = self.circuit.state();
            state.next_attempt_at = next_attempt_at;
            state.direct = self.is_direct();
            state.groups_set_aside = self.outbox.set_aside_count();
            state.set_aside = stuck;
        });
    }

    /// Leaves where there is nothing to do, or nothing that can be done while others wait for a place.
    fn rest(&mut self, ctx: &mut Context<Self>) {
        let busy = self.loading || self.persisting || self.sending > 0 || self.is_draining();
        let here = !self.outbox.is_empty() || !self.direct.is_empty() || !self.wanted.is_empty();
        let has_work = here || self.scan.is_some() || self.rescan;
        if !busy && has_work && self.is_cut_off() && self.node.peers.is_crowded() {
            let unwritten = self.outbox.has_unpersisted() || !self.direct.unpersisted(1).is_empty();
            if unwritten {
                return self.persist(ctx);
            }
            return self.leave(ctx);
        }
        if !busy && !has_work && self.node.peers.is_crowded() {
            return self.leave(ctx);
        }
        if busy || has_work {
            if let Some(timer) = self.idle_timer.take() {
                ctx.cancel_future(timer);
            }
        } else if self.idle_timer.is_none() {
            let delay = Duration::from_millis(self.limits().idle_ms);
            self.idle_timer = Some(ctx.run_later(delay, |actor, ctx| {
                actor.idle_timer = None;
                actor.leave(ctx);
            }));
        }
    }

    fn leave(&mut self, ctx: &mut Context<Self>) {
        if self.node.peers.leave(&self.peer, &self.ear) {
            self.leaving = true;
            ctx.stop();
        }
    }

    /// Proposes the removal of the peer's clients where it has taken nothing for too long.
    fn give_up(&mut self, ctx: &mut Context<Self>) {
        let after_ms = self.limits().unreachable_after_ms;
        let now = self.now();
        if now.ms_since(self.gone_since) >= GONE_KEPT_MS {
            (self.gone_since, self.gone) = (now, HashSet::new());
        }
        let old = |at: Timestamp| now.ms_since(at) >= after_ms;
        let is_dead = self.failing && !self.loading && old(self.taken_at);
        let feeds = self.outbox.waiting().filter(|(_, at)| is_dead && old(*at));
        let single = self.direct.waiting_groups().filter(|(_, at)| is_dead && old(*at));
        // what a peer that is well does not take for so long, its clients there do not get either
        let aside = self.outbox.set_aside().filter(|(_, aside)| old(aside.since));
        let groups: Vec<GroupId> = feeds
            .map(|(group, _)| group)
            .chain(single.map(|(group, _)| group))
            .chain(aside.map(|(group, _)| group))
            .filter(|group| !self.given_up.contains(*group))
            .take(GIVE_UP_PAGE)
            .cloned()
            .collect();
        for group in groups {
            self.given_up.insert(group.clone());
            let (node, peer, of) = (self.node.clone(), self.peer.clone(), group.clone());
            let ask = async move { node.group_roster_for(&of, &peer).await };
            let done = ask.into_actor(self).map(move |roster, actor: &mut Self, ctx| match roster {
                Ok(Some(roster)) => {
                    tracing::warn!(peer = %actor.peer, %group, "the peer takes nothing of the group for too long: its clients are to be removed");
                    let recipients = roster.adds.iter().map(recipient_of).collect();
                    actor.report_gone(&group, recipients, ctx);
                }
                Ok(None) => {}
                Err(_) => {
                    actor.given_up.remove(&group);
                }
            });
            ctx.spawn(done);
        }
    }

    fn requeue(&mut self, group: GroupId, reply: oneshot::Sender<bool>, ctx: &mut Context<Self>) {
        self.circuit.hasten(self.now());
        if self.outbox.contains(&group) || self.is_direct() {
            let _ = reply.send(self.outbox.requeue(&group));
            return;
        }
        let (node, peer, of) = (self.node.clone(), self.peer.clone(), group.clone());
        let read = async move {
            let replica = node.store.replica(&peer, &of).await?;
            let until = match node.store.outbound_at(&peer, &of).await? {
                Some(until) => Some(until),
                None => replica.map(|replica| replica.acknowledged),
            };
            let Some(until) = until else { return Ok(None) };
            Ok::<_, StoreError>(Some(standing_of(&node, &peer, &of, until).await?.standing))
        };
        let done = read.into_actor(self).map(move |read, actor: &mut Self, ctx| {
            let known = matches!(read, Ok(Some(_))) && !actor.is_direct();
            if let (Ok(Some(mut standing)), true) = (read, known) {
                standing.needs_snapshot = true;
                let now = actor.now();
                actor.outbox.load(group.clone(), standing, now);
                actor.outbox.requeue(&group);
            }
            let _ = reply.send(known);
            actor.work(ctx);
        });
        ctx.spawn(done);
    }
}

impl Actor for PeerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.ear.listen(ctx.address().recipient());
        ctx.run_interval(Duration::from_millis(LOOK_MS), |actor, ctx| {
            actor.give_up(ctx);
            actor.publish(true);
        });
    }

    fn stopped(&mut self, _: &mut Context<Self>) {
        self.leaving = true;
        self.node.peers.forget(&self.peer, &self.ear);
        self.node.peers.keep_way(&self.peer, self.way.clone());
        self.publish(true);
        if self.node.peers.is_crowded() {
            // the place is somebody else's now
            let node = self.node.clone();
            actix_rt::spawn(async move {
                if let Err(error) = node.sweep_peers().await {
                    tracing::warn!(%error, "peers that wait cannot be found now");
                }
            });
        }
    }
}

impl Handler<Woken> for PeerActor {
    type Result = ();

    fn handle(&mut self, _: Woken, ctx: &mut Context<Self>) {
        let told = self.ear.told();
        let now = self.now();
        for (group, until) in told.grown {
            if !self.outbox.grow(&group, until, now) {
                if self.room() > self.wanted.len() || self.direct.known(&group).is_some() {
                    self.want(group, until);
                } else {
                    // it is in the store, and has its turn when there is room
                    (self.rescan, self.knows_all) = (true, false);
                }
            }
        }
        self.knows_all &= !told.rescan;
        // a write whose answer was lost has left a marker without a hint: whoever looks after the peer finds it
        self.rescan |= told.rescan || told.look;
        if told.look {
            self.give_up(ctx);
        }
        self.draining.extend(told.drain);
        for (group, reply) in told.requeue {
            self.requeue(group, reply, ctx);
        }
        self.work(ctx);
    }
}

fn request_of(items: Vec<DeliveryItem>) -> Option<DeliverBatchRequest> {
    Some(DeliverBatchRequest { items: List::new(items).ok()? })
}

/// Whom a change of the roster is about.
pub(super) fn recipient_of(change: &RosterChange) -> RecipientId {
    match change {
        RosterChange::Add { recipient, .. }
        | RosterChange::Remove { recipient }
        | RosterChange::Update { recipient, .. } => *recipient,
    }
}

/// Which failures say that the peer is away, which that it is busy, and which that it is this request.
fn trouble_of(error: &CallError) -> Trouble {
    match error {
        CallError::Refused { .. } | CallError::Signing(_) => Trouble::Later(Failure::Refused),
        CallError::Discovery(_)
        | CallError::Unreachable(_)
        | CallError::Timeout
        // its answer is, and not what it was sent
        | CallError::TooLarge
        | CallError::BadAnswer(_) => Trouble::Later(Failure::Transport),
        CallError::Status { http, error: said, .. } => match http {
            404 => Trouble::NotFound,
            413 => Trouble::TooLarge,
            429 | 503 => Trouble::Later(Failure::Busy { retry_after_ms: error.retry_after_ms() }),
            // without a word of the protocol it is something in front of the peer that says so
            400 | 422 => Trouble::Refused { for_good: said.is_some() },
            500 => Trouble::Refused { for_good: false },
            408 | 502 | 504..=599 => Trouble::Later(Failure::Transport),
            _ => Trouble::Later(Failure::Refused),
        },
    }
}

/// Whether the store knows of a feed that the peer has taken.
async fn has_taken_feeds(node: &Node, peer: &Domain) -> Result<bool, StoreError> {
    let replicas = node.store.replicas(peer, REPLICAS_LOOK).await?;
    let took = |replica: &Replica| {
        items::fed(replica) > Sequence(0)
            && match replica.mode {
                ReplicaMode::Feed => true,
                ReplicaMode::Direct => replica.copy.is_some(),
            }
    };
    Ok(replicas.iter().any(took))
}

fn random() -> u64 {
    u64::from_be_bytes(crypto::random())
}

const LOAD_PAGE: usize = 64;
/// Replicas by which it is told whether a peer has ever taken a feed.
const REPLICAS_LOOK: usize = 256;
/// Longest sleep: the clock may have moved meanwhile.
const TIMER_MS_MAX: u64 = 60_000;
const LOOK_MS: u64 = 60_000;
const GIVE_UP_PAGE: usize = 64;
/// Recipients that are remembered as reported.
const GONE_MAX: usize = 10_000;
/// A recipient that is still reported after this is passed on again.
const GONE_KEPT_MS: u64 = 60 * 60 * 1000;
const PUBLISH_GROUPS_MAX: usize = 256;
const PUBLISH_MS: u64 = 1_000;
/// Groups that are shown as set aside.
const STUCK_MAX: usize = 100;

#[cfg(test)]
#[path = "peer_tests.rs"]
mod tests;
