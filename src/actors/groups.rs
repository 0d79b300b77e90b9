//! All groups of the node: finding and activating their actors, admission, and the sweep that wakes those whose
//! time has come.

mod room;
mod wakes;

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix::prelude::*;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::Span;

use super::{
    accounts::deletions,
    active::{GroupLine, InUse},
    ages::Waiting,
    arbiters::{Duty, blocking},
    copies::is_copy,
    errors::{DAMAGED_RETRY_MS, internal, of_reject, of_store},
    group::{
        Asked, Complain, Depart, GroupActor, GuestRoster, Import, MakeRoom, Operate, Reply,
        RosterFor, Tick,
    },
    hints::locked,
    live::Live,
    moves::step,
    node::Node,
    stages::{Stage, Stages},
};
use crate::{
    crypto::{self, MlsCrypto},
    group::{Creation, Hub, HubKey, HubKeys, Reject, Request, Settings},
    rate::{Class, GroupQuotas, GroupRates},
    store::{
        Batch, Condition, StoreError, Write,
        records::{GroupHead, GroupStatus},
        unless_damaged,
    },
    wire::{
        ds::{
            CommitComplaint, ComplaintOutcome, ComplaintResponse, Detail, DsError, DsMessage,
            DsRequest, DsResponse, Outcome, ProtocolVersion,
        },
        ids::{ClientUri, Domain, GroupId, Timestamp},
    },
};

pub(super) use room::{Place, Work};
use room::{Room, own_max};
use wakes::Wakes;

/// Bounds and times of the node's groups.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupOptions {
    pub settings: Settings,
    pub rates: GroupQuotas,
    /// A group that is not asked for this long is passivated.
    pub idle_ms: u64,
    /// Log entries older than this go, acknowledged or not; a deleted group's feed, too.
    pub retention_ms: u64,
    /// A group's log beyond this goes, oldest first, acknowledged or not.
    pub retention_bytes: u64,
    /// Requests to all groups in hand; beyond: unavailable.
    pub requests_max: usize,
    /// Requests to one group in hand; beyond: rate_limited.
    pub requests_per_group_max: usize,
    /// How long a request may have to wait for its group, by what those before it took; beyond: rate_limited.
    pub group_wait_max: Duration,
    /// Requests of up to 16 KiB to groups up to this size are staged on their actor's own thread, larger ones and those to larger groups
    /// in the pool; but messages, which cost the same in any, always on the actor's.
    pub inline_members_max: usize,
    /// Groups in memory. Beyond, for each that comes others that nobody asks for right now go; there are never more than twice as
    /// many. Of all these a quarter of this number is for the node's own work, which waits where there is no room; for one more
    /// than the rest clients and peers are told `unavailable`.
    pub active_max: usize,
    /// What is computed at a time: stagings of large groups and requests, packing and judging of groups that move.
    pub pool_threads: usize,
}

impl GroupOptions {
    /// The defaults for `domain`.
    #[must_use]
    pub fn new(domain: Domain) -> Self {
        Self {
            settings: Settings::new(domain),
            rates: GroupQuotas::default(),
            idle_ms: 5 * 60 * 1000,
            retention_ms: 30 * 24 * 60 * 60 * 1000,
            retention_bytes: 256 * 1024 * 1024,
            requests_max: 4096,
            requests_per_group_max: 256,
            group_wait_max: Duration::from_millis(250),
            inline_members_max: 48,
            active_max: 20_000,
            pool_threads: 2,
        }
    }
}

/// The node's groups.
pub struct Groups {
    pub(super) options: Live<GroupOptions>,
    hub: Arc<Hub>,
    active: Mutex<InUse<GroupId, Active>>,
    room: Arc<Room>,
    wakes: Arc<Wakes>,
    admission: Arc<Semaphore>,
    /// Stagings of large groups.
    pub(super) cpu: Arc<Semaphore>,
    /// Where [`Node::turn_hub_keys`] stopped.
    pub(super) turning: Turning,
    /// Groups that could not be loaded, for a fault of ours that does not pass by itself, until when they are not tried again,
    /// and what is answered meanwhile.
    isolated: Mutex<HashMap<GroupId, (Timestamp, DsError)>>,
    /// Since when each active group's oldest pending proposal waits: what a group that nobody asks for has pending is in nobody's way.
    pub(super) waiting: Waiting<GroupId>,
}

/// Groups that are known to be isolated; of more, each request tries again.
const ISOLATED_MAX: usize = 4_096;

/// The last group that was woken for the hub's new key, where there were more of them.
#[derive(Debug, Default)]
pub(super) struct Turning(Mutex<Option<GroupId>>);

impl Turning {
    pub(super) fn take(&self) -> Option<GroupId> {
        locked(&self.0).take()
    }

    pub(super) fn put(&self, group: GroupId) {
        *locked(&self.0) = Some(group);
    }
}

struct Active {
    actor: Addr<GroupActor>,
    admission: Arc<Semaphore>,
    line: Arc<GroupLine>,
    /// Whether nobody but the node itself has asked for it.
    is_own: Arc<AtomicBool>,
    /// Each errand has one.
    errands: Arc<()>,
}

/// What somebody wants of a group's actor. As long as there is one the actor does not leave by itself; one that came for the
/// node's own work leaves behind the last of them.
struct Errand {
    actor: Addr<GroupActor>,
    admission: Arc<Semaphore>,
    line: Arc<GroupLine>,
    is_own: Arc<AtomicBool>,
    lasts: Option<Arc<()>>,
}

impl Active {
    fn errand(&self) -> Errand {
        Errand {
            actor: self.actor.clone(),
            admission: Arc::clone(&self.admission),
            line: Arc::clone(&self.line),
            is_own: Arc::clone(&self.is_own),
            lasts: Some(Arc::clone(&self.errands)),
        }
    }
}

impl Drop for Errand {
    fn drop(&mut self) {
        self.lasts = None;
        if self.is_own.load(Ordering::SeqCst) {
            self.actor.do_send(Depart);
        }
    }
}

impl std::fmt::Debug for Groups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Groups")
    }
}

impl Groups {
    #[must_use]
    pub fn new(options: GroupOptions, keys: Vec<HubKey>) -> Self {
        let settings = options.settings.clone();
        Self {
            hub: Arc::new(Hub {
                settings,
                crypto: MlsCrypto::default(),
                keys: HubKeys::new(keys),
                rates: GroupRates::new(options.rates),
            }),
            active: Mutex::new(InUse::new()),
            room: Arc::default(),
            wakes: Arc::default(),
            admission: Arc::new(Semaphore::new(options.requests_max)),
            cpu: Arc::new(Semaphore::new(options.pool_threads.max(1))),
            turning: Turning::default(),
            isolated: Mutex::default(),
            waiting: Waiting::default(),
            options: Live::new(options),
        }
    }

    /// Computes in the pool, in turn with all else there.
    ///
    /// # Errors
    /// internal, where `work` panicked.
    pub(super) async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, DsError> {
        let turn = Arc::clone(&self.cpu).acquire_owned().await.map_err(internal)?;
        let computed = blocking(move || {
            // for as long as it computes, also where nobody waits for it any more
            let _turn = turn;
            work()
        });
        computed.await.map_err(internal)
    }

    /// Lets go of `actor`, if it is still the group's.
    pub(super) fn forget(&self, group: &GroupId, actor: &Addr<GroupActor>) {
        let mut active = locked(&self.active);
        if active.peek(group).is_some_and(|known| known.actor == *actor) {
            active.remove(group);
        }
    }

    /// Lets go of `actor` where nobody wants anything of it, and, with `unwanted`, nobody but the node itself has. Whether it may
    /// leave now.
    pub(super) fn release(
        &self,
        group: &GroupId,
        actor: &Addr<GroupActor>,
        unwanted: bool,
    ) -> bool {
        let mut active = locked(&self.active);
        let Some(known) = active.peek(group).filter(|known| known.actor == *actor) else {
            return true;
        };
        // with the lock held there are only fewer
        let has_errands = Arc::strong_count(&known.errands) > 1;
        if has_errands || (unwanted && !known.is_own.load(Ordering::SeqCst)) {
            return false;
        }
        active.remove(group);
        true
    }

    /// Lets go of the group's actor, whatever it is at: the next request finds the group as it is stored now.
    pub(super) fn let_go(&self, group: &GroupId) {
        let mut active = locked(&self.active);
        if let Some(known) = active.remove(group) {
            known.actor.do_send(Depart);
        }
    }

    /// `group` cannot be loaded: it is not tried again before [`DAMAGED_RETRY_MS`] are over. Gives how many are isolated, and
    /// whether this one was not.
    pub(super) fn isolate(&self, group: &GroupId, error: DsError, now: Timestamp) -> (usize, bool) {
        let mut isolated = locked(&self.isolated);
        let is_new = !isolated.contains_key(group);
        if !is_new || isolated.len() < ISOLATED_MAX {
            isolated.insert(group.clone(), (now.plus_ms(DAMAGED_RETRY_MS), error));
        }
        (isolated.len(), is_new)
    }

    /// `group` has been loaded. Gives how many are isolated still, where it was one of them.
    pub(super) fn is_well(&self, group: &GroupId) -> Option<usize> {
        let mut isolated = locked(&self.isolated);
        isolated.remove(group).map(|_| isolated.len())
    }

    /// What is answered for a group that is not to be tried yet.
    fn isolation(&self, group: &GroupId, now: Timestamp) -> Option<DsError> {
        let isolated = locked(&self.isolated);
        isolated.get(group).filter(|(until, _)| now < *until).map(|(_, error)| error.clone())
    }

    fn is_active(&self, group: &GroupId) -> bool {
        let active = locked(&self.active);
        active.peek(group).is_some_and(|known| known.actor.connected())
    }

    /// The group's actor, where there is one that others have asked for.
    fn wanted(&self, group: &GroupId) -> Option<Errand> {
        let active = locked(&self.active);
        let known = active.peek(group).filter(|known| known.actor.connected())?;
        (!known.is_own.load(Ordering::SeqCst)).then(|| known.errand())
    }

    /// The group's actor, for this `work`: the only way in. Where there is no room others' work is refused, and the node's own
    /// waits; others may have to go for it.
    ///
    /// # Errors
    /// unavailable, for others' work.
    async fn activate(&self, node: &Node, group: &GroupId, work: Work) -> Result<Errand, DsError> {
        loop {
            if let Some(errand) = self.try_activate(node, group, work) {
                return Ok(errand);
            }
            if work == Work::Others {
                return Err(DsError::Unavailable {
                    detail: Detail::truncated("too many groups are in use at once; retry"),
                    retry_after_ms: 1000,
                });
            }
            // who does not go when it is asked is asked again
            let _ = tokio::time::timeout(ROOM_ASKED_EVERY, self.room.is_freed()).await;
        }
    }

    fn try_activate(&self, node: &Node, group: &GroupId, work: Work) -> Option<Errand> {
        let mut active = locked(&self.active);
        if let Some(known) = active.ask(group).filter(|known| known.actor.connected()) {
            if work == Work::Others {
                self.room.hand_over(&known.is_own);
            }
            return Some(known.errand());
        }
        let max = self.options.active_max;
        if self.room.is_tight(max) {
            for _ in 0..GO_AT_ONCE {
                if let Some(other) = active.next_to_go() {
                    other.actor.do_send(MakeRoom);
                }
            }
        }
        let place = self.room.take(work, max)?;
        let is_own = place.is_own();
        let (actor_node, hub, id) = (node.clone(), Arc::clone(&self.hub), group.clone());
        let actor = node.arbiters.start_actor_on(Duty::Decide, hash_of(group), move |_| {
            GroupActor::new(actor_node, hub, id, place)
        });
        let admission = Arc::new(Semaphore::new(self.options.requests_per_group_max));
        let (line, errands) = (Arc::default(), Arc::default());
        let new = Active { actor, admission, line, is_own, errands };
        let errand = new.errand();
        active.insert(group.clone(), new);
        Some(errand)
    }

    /// Whether `group` has more in hand than it can do in time: asked before anything costly is done for a request.
    fn has_time(&self, group: &GroupId) -> Result<(), DsError> {
        let active = locked(&self.active);
        let line = active.peek(group).map(|known| Arc::clone(&known.line));
        drop(active);
        let too_long = line.and_then(|line| line.is_too_long(self.options.group_wait_max));
        too_long.map_or(Ok(()), |wait| Err(group_is_busy(wait)))
    }

    fn admit(&self, group: &Errand) -> Result<[OwnedSemaphorePermit; 2], DsError> {
        let node_wide =
            Arc::clone(&self.admission).try_acquire_owned().map_err(|_| DsError::Unavailable {
                detail: Detail::truncated("this provider has too many requests in hand"),
                retry_after_ms: 500,
            })?;
        let own =
            Arc::clone(&group.admission).try_acquire_owned().map_err(|_| DsError::RateLimited {
                detail: Detail::truncated("this group has too many requests in hand"),
                retry_after_ms: 250,
            })?;
        Ok([node_wide, own])
    }
}

/// The hint is until those that wait are through, and not the same for all that are refused.
fn group_is_busy(wait: Duration) -> DsError {
    let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).clamp(100, GROUP_RETRY_MS_MAX);
    DsError::RateLimited {
        detail: Detail::truncated("this group has more requests in hand than it can answer soon"),
        retry_after_ms: ms + u64::from_be_bytes(crypto::random()) % ms,
    }
}

const GROUP_RETRY_MS_MAX: u64 = 10_000;

/// How many may go for one that comes: more than one, for some are in use.
const GO_AT_ONCE: usize = 4;

/// How often the node's own work looks whether there is room now.
const ROOM_ASKED_EVERY: Duration = Duration::from_millis(100);

impl Node {
    /// Answers a [`DsMessage`] of a client of this provider: here, or through the hub that it is addressed to.
    pub async fn group_operation(&self, from: &ClientUri, message: DsMessage) -> DsResponse {
        if message.context.hub_domain == self.domain {
            self.hosted_operation(from.domain(), message).await
        } else {
            self.relay(from, message).await
        }
    }

    /// Answers a [`DsMessage`] to a group hosted here that came through `relay`: this provider for its own clients, or
    /// the authenticated peer.
    pub async fn hosted_operation(&self, relay: Domain, message: DsMessage) -> DsResponse {
        let moves = matches!(message.request, DsRequest::StartMigration(_));
        if moves {
            // also for right before the freeze: until that is written nothing has changed
            step("source.start-received").await;
        }
        let outcome = Outcome::from(self.operate(Request { message, relay }).await);
        if moves {
            step("source.start-answering").await;
        }
        DsResponse { version: ProtocolVersion::MIMI10, outcome }
    }

    /// Whether a request to the group of `message` is worth a check of its signatures: not where the group, hosted here, has
    /// more in hand than it can do in time.
    ///
    /// # Errors
    /// rate_limited: nothing was done for it.
    pub fn may_ask_group(&self, message: &DsMessage) -> Result<(), DsError> {
        if message.context.hub_domain != self.domain {
            return Ok(());
        }
        self.groups
            .has_time(&message.context.group_id)
            .inspect_err(|_| self.metrics.shed(class_of(message.request.name()), "group"))
    }

    async fn operate(&self, request: Request) -> Reply {
        if request.message.context.hub_domain != self.domain {
            // not something that passes: a client need not try again
            return Err(DsError::NotAuthorized {
                detail: Detail::truncated(&format!(
                    "{} is another hub; this one serves groups of {} only",
                    request.message.context.hub_domain, self.domain
                )),
            });
        }
        let group = request.message.context.group_id.clone();
        if request.relay != self.domain {
            // of its own clients' it was asked before
            self.may_ask_group(&request.message)?;
        }
        self.may_host(&request.message).await?;
        if let Some(error) = self.groups.isolation(&group, self.clock.now()) {
            return Err(error);
        }
        let stages = Stages::current();
        let mut tries = 0;
        loop {
            let active = self.groups.activate(self, &group, Work::Others).await;
            let active = active.inspect_err(|_| {
                self.metrics.shed(class_of(request.message.request.name()), "permits");
            })?;
            let permits = self.groups.admit(&active).inspect_err(|error| {
                let own = matches!(error, DsError::RateLimited { .. });
                let reason = if own { "group" } else { "permits" };
                self.metrics.shed(class_of(request.message.request.name()), reason);
            })?;
            let (reply, answer) = oneshot::channel();
            stages.enter(Stage::Queue);
            active.actor.do_send(Operate {
                request: Box::new(request.clone()),
                reply,
                permits,
                place: active.line.enter(),
                span: Span::current(),
                stages: stages.clone(),
            });
            if let Ok(answer) = answer.await {
                return answer;
            }
            // the actor was passivated with the request in its mailbox, or has failed: a new one has the answer
            self.groups.forget(&group, &active.actor);
            tries += 1;
            if tries == 3 {
                return Err(of_store(StoreError::Unavailable("the group's actor ended".into())));
            }
        }
    }

    /// Answers a complaint of a client of this provider: here, or through the hub that it names. It may be repeated.
    ///
    /// # Errors
    /// The [`DsError`] why it was not heard, or is not its complainant's.
    pub async fn complain(
        &self,
        from: &ClientUri,
        complain: crate::wire::client::Complain,
    ) -> Result<ComplaintResponse, DsError> {
        if complain.hub_domain == self.domain {
            self.hosted_complaint(from.domain(), complain.complaint).await
        } else {
            self.relay_complaint(&complain.hub_domain, &complain.complaint).await
        }
    }

    /// Answers a complaint about a commit in a group hosted here that came through `relay`.
    ///
    /// # Errors
    /// As [`Node::complain`].
    pub async fn hosted_complaint(
        &self,
        relay: Domain,
        complaint: CommitComplaint,
    ) -> Result<ComplaintResponse, DsError> {
        let answer = self.hear(relay, complaint).await;
        let outcome = match &answer {
            Ok(answer) => match answer.outcome {
                ComplaintOutcome::Resync => "resync",
                ComplaintOutcome::Wait => "wait",
                ComplaintOutcome::Void => "void",
                ComplaintOutcome::None => "none",
            },
            Err(error) => error.name(),
        };
        self.metrics.complaints.with_label_values(&[outcome]).inc();
        answer
    }

    async fn hear(
        &self,
        relay: Domain,
        complaint: CommitComplaint,
    ) -> Result<ComplaintResponse, DsError> {
        let group = complaint.group_id.clone();
        if let Some(error) = self.groups.isolation(&group, self.clock.now()) {
            return Err(error);
        }
        if !self.groups.is_active(&group) {
            // strangers must not start actors for groups that never were here
            let head = self.store.group_head(&group).await.map_err(of_store)?;
            head.ok_or_else(|| of_reject(Reject::NotFound))?;
        }
        for _ in 0..3 {
            let active = self.groups.activate(self, &group, Work::Others).await?;
            let permits = self.groups.admit(&active)?;
            let (reply, answer) = oneshot::channel();
            let ask = Box::new(Asked { complaint: complaint.clone(), reply, permits });
            let (relay, span) = (relay.clone(), Span::current());
            active.actor.do_send(Complain { ask, relay, span });
            if let Ok(answer) = answer.await {
                return answer;
            }
            self.groups.forget(&group, &active.actor);
        }
        Err(of_store(StoreError::Unavailable("the group's actor ended".into())))
    }

    /// `peer`'s clients in a group hosted here and where the group stands, once that is durable; none where there is
    /// no such group. Once there is room for it.
    ///
    /// # Errors
    /// unavailable, or internal where the group cannot be loaded.
    pub async fn group_roster_for(
        &self,
        group: &GroupId,
        peer: &Domain,
    ) -> Result<Option<GuestRoster>, DsError> {
        self.group_roster(group, peer, Work::Own).await
    }

    /// As [`Node::group_roster_for`], for others' work or the node's own.
    pub(super) async fn group_roster(
        &self,
        group: &GroupId,
        peer: &Domain,
        work: Work,
    ) -> Result<Option<GuestRoster>, DsError> {
        if let Some(error) = self.groups.isolation(group, self.clock.now()) {
            return Err(error);
        }
        for _ in 0..3 {
            let active = self.groups.activate(self, group, work).await?;
            let (reply, answer) = oneshot::channel();
            active.actor.do_send(RosterFor { peer: peer.clone(), reply });
            if let Ok(answer) = answer.await {
                return answer;
            }
            self.groups.forget(group, &active.actor);
        }
        Err(of_store(StoreError::Unavailable("the group's actor ended".into())))
    }

    /// Whether `message` may be about a group hosted here: one that this provider creates or created, or one that came.
    async fn may_host(&self, message: &DsMessage) -> Result<(), DsError> {
        let group = &message.context.group_id;
        let creates = matches!(message.request, DsRequest::CreateGroup(_));
        if creates || group.domain() == self.domain || self.groups.is_active(group) {
            return Ok(());
        }
        // strangers must not start actors for groups that never were here
        match self.store.group_head(group).await.map_err(of_store)? {
            Some(_) => Ok(()),
            None => Err(of_reject(Reject::NotFound)),
        }
    }

    /// Wakes a group that something was left for, hosted here or not. A hint: lost, the next start finds it.
    pub fn wake_group(&self, group: &GroupId) {
        if let Some(mut active) = self.groups.wanted(group) {
            let lasts = active.lasts.take();
            active.actor.do_send(Tick { done: None, lasts });
            return;
        }
        let at_once_max = own_max(self.groups.options.active_max).min(wakes::AT_ONCE_MAX);
        let Some(mut waker) = self.groups.wakes.add(group, at_once_max) else { return };
        let node = self.clone();
        self.arbiters.spawn_on(Duty::Decide, hash_of(group), async move {
            while let Some(group) = waker.next() {
                if let Err(error) = node.take_notices_of(&group).await {
                    tracing::warn!(%group, %error, "what is left for a group cannot be taken now");
                }
            }
        });
    }

    /// Takes what is left for a group, hosted here or elsewhere. What is on its way keeps it for where it ends.
    async fn take_notices_of(&self, group: &GroupId) -> Result<(), StoreError> {
        let head = self.store.group_head(group).await?;
        match head.map(|head| head.status) {
            Some(GroupStatus::Active | GroupStatus::Deleted) => self.settle_group(group).await,
            Some(GroupStatus::Migrating) => {}
            Some(GroupStatus::Followed) | None => self.take_copy_notices(group).await?,
        }
        Ok(())
    }

    /// Wakes a group, once there is room for it, and waits until it has done what there was to do.
    pub async fn settle_group(&self, group: &GroupId) {
        if self.groups.isolation(group, self.clock.now()).is_some() {
            return;
        }
        let Ok(active) = self.groups.activate(self, group, Work::Own).await else { return };
        let (done, settled) = oneshot::channel();
        active.actor.do_send(Tick { done: Some(done), lasts: None });
        // an error means that the actor ended: then there is nothing to wait for
        let _ = settled.await;
    }

    /// Wakes every group whose time has come, and drops what is left of groups deleted long ago.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn sweep_groups(&self) -> Result<usize, StoreError> {
        let mut woken = 0;
        self.copies.load(&self.store, &self.domain).await?;
        let (copies, bytes) = self.copies.totals();
        self.metrics.guest_copies.set(i64::try_from(copies).unwrap_or(i64::MAX));
        self.metrics.guest_copy_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        let shares = self.copies.shares(self.hub_bounds());
        let mut after: Option<GroupId> = None;
        loop {
            let heads = self.store.group_heads(after.as_ref(), 512).await?;
            let Some(last) = heads.last() else { return Ok(woken) };
            after = Some(last.group.clone());
            let now = self.clock.now();
            for head in heads {
                let is_due = head.wake_at.is_some_and(|at| at <= now);
                if is_copy(&head, &self.domain) {
                    // seldom: only while some hub has no room
                    let share = match shares.is_empty() {
                        true => None,
                        false => {
                            let hub = self.hub_of_copy(&head.group).await.map(Some);
                            unless_damaged(hub)?.and_then(|hub| shares.get(&hub).copied())
                        }
                    };
                    let settled = self.settle_copy(head, is_due, share).await;
                    woken += usize::from(unless_damaged(settled)?);
                } else if is_due {
                    woken += 1;
                    unless_damaged(self.wake(head, now).await)?;
                }
            }
            tokio::task::yield_now().await;
        }
    }

    async fn wake(&self, head: GroupHead, now: Timestamp) -> Result<(), StoreError> {
        match head.status {
            GroupStatus::Active => self.settle_group(&head.group).await,
            // of another provider, whose copies are settled
            GroupStatus::Followed => {}
            // what is written down of its move says what is to be done
            GroupStatus::Migrating => {}
            GroupStatus::Deleted => {
                tracing::info!(group = %head.group, %now, "dropping what is left of a deleted group");
                let condition = Condition::GroupAt {
                    group: head.group.clone(),
                    next_sequence: head.next_sequence,
                    revision: head.revision,
                };
                let first_sequence = head.next_sequence;
                let revision = head.revision + 1;
                let dropped =
                    GroupHead { wake_at: None, log_bytes: 0, first_sequence, revision, ..head };
                let batch = Batch::new()
                    .when(condition)
                    .and(Write::DropGroup(dropped.group.clone()))
                    .and(Write::GroupHead(dropped));
                match self.store.write(batch).await {
                    Ok(()) | Err(StoreError::Conflict { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Wakes every group that something was left for before this process started.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn wake_noticed_groups(&self) -> Result<usize, StoreError> {
        let mut woken = 0;
        let mut after: Option<GroupId> = None;
        loop {
            let groups = self.store.groups_with_notices(after.as_ref(), 512).await?;
            let Some(last) = groups.last() else { return Ok(woken) };
            after = Some(last.clone());
            // one name is the node's own (see `finish_deletions`)
            for group in groups.iter().filter(|group| **group != deletions()) {
                unless_damaged(self.take_notices_of(group).await)?;
                woken += 1;
            }
        }
    }

    /// Brings in a group that was judged ([`crate::group::import`]).
    ///
    /// # Errors
    /// The [`DsError`] why it cannot be here.
    pub async fn import_group(&self, creation: Creation) -> Reply {
        let group = creation.state.id().clone();
        let active = self.groups.activate(self, &group, Work::Others).await?;
        let (reply, answer) = oneshot::channel();
        active.actor.do_send(Import { creation: Box::new(creation), reply });
        answer
            .await
            .unwrap_or_else(|_| Err(of_store(StoreError::Unavailable("actor ended".into()))))
    }

    /// What every group of this node shares.
    #[must_use]
    pub fn hub(&self) -> Arc<Hub> {
        Arc::clone(&self.groups.hub)
    }
}

/// What a request to a group is worth where not all can be served, by its [`DsRequest::name`].
#[must_use]
pub fn class_of(operation: &str) -> Class {
    if OF_MESSAGES.contains(&operation) { Class::Message } else { Class::Commit }
}

/// All others are changes that others wait for, and what somebody needs who is half-way in.
const OF_MESSAGES: [&str; 5] =
    ["create-group", "update-queue-info", "update-client-fanout-info", "send-message", "propose"];

pub(super) fn hash_of(group: &GroupId) -> u64 {
    let mut hasher = DefaultHasher::new();
    group.hash(&mut hasher);
    hasher.finish()
}
