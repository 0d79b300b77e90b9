//! Groups that leave for another provider. PROTOCOL.md §6; what may be done next is in [`crate::migration::source`].
//!
//! A group's actor freezes it (one write), and is gone then; from there on a task per group drives the move by what is
//! written down, from the freeze to the target's acknowledgement of the confirmation. A process that ends anywhere in
//! between begins again where the record stands. The group itself is not touched before the target has taken it.

mod content;
mod end;
mod gauges;
mod turns;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus::core::Collector;
use tokio::sync::{Notify, oneshot};

use super::{
    arbiters::Duty,
    clock::Clock,
    errors::{not_authorized, of_store},
    group::Reply,
    hints::locked,
    moves::{MoveLimits, chain_of, migrating, step},
    node::Node,
};
use crate::{
    crypto,
    federation::CallError,
    group::portability::scheme_of_suite,
    migration::{
        proof::{check_complete, hash_of_response, hub_of_sender},
        source::{Heard, Next, Phase, Terms},
    },
    store::{
        Batch, Condition, StoreError, Write,
        records::{Departure, GroupHead, RequestKey},
    },
    wire::{
        client::VerificationKey,
        codec::{decode, encode},
        ds::{DsError, DsResponseBody},
        federation::EventType,
        ids::{Domain, GroupId, RequestId, Timestamp},
        portability::{MigrationResponse, TargetMigrationComplete},
    },
};

use gauges::name_of;
use turns::{Turn, Turns};

/// Groups of this node that are on their way elsewhere.
#[derive(Debug)]
pub struct Departures {
    running: Running,
    turns: Turns,
}

type Running = Arc<Mutex<HashMap<GroupId, Arc<Run>>>>;

/// One group's move while this process runs.
#[derive(Debug)]
struct Run {
    /// The last one that it was driven for: a group may come back and leave again before the target of its first move has
    /// the confirmation.
    request: Mutex<RequestKey>,
    waiters: Mutex<Vec<oneshot::Sender<Reply>>>,
    /// An operator wants it ended.
    abort: AtomicBool,
    nudge: Notify,
    /// It was driven once more since it was looked at last: the group may have been frozen anew.
    again: AtomicBool,
    /// How long it has waited for its turn: that is nothing that its target could do something about.
    waited_ms: AtomicU64,
    /// Where it stood when it was looked at last, and since when it is frozen.
    stands: Mutex<Option<(&'static str, Timestamp)>>,
}

/// A move as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DepartureState {
    pub group: String,
    pub target: String,
    pub state: &'static str,
    pub age_ms: u64,
}

impl Departures {
    #[must_use]
    pub fn new(limits: &MoveLimits) -> Self {
        Self { running: Running::default(), turns: Turns::new(limits.departures_max) }
    }

    /// What is collected of them.
    ///
    /// # Errors
    /// Where a name is not one of Prometheus'.
    pub(super) fn collector(
        &self,
        clock: Arc<dyn Clock>,
    ) -> Result<impl Collector + use<>, prometheus::Error> {
        gauges::collector(Arc::clone(&self.running), clock)
    }

    fn of(&self, group: &GroupId) -> Option<Arc<Run>> {
        locked(&self.running).get(group).cloned()
    }

    /// For how long a group has been on its way; 0 where that has not been looked at yet.
    pub(super) fn frozen_ms(&self, group: &GroupId, now: Timestamp) -> u64 {
        let stands = self.of(group).and_then(|run| *locked(&run.stands));
        stands.map_or(0, |(_, since)| now.ms_since(since))
    }

    fn end(&self, group: &GroupId) {
        // who waits without an answer asks again
        locked(&self.running).remove(group);
    }

    /// Ends `run`, unless somebody wants it driven once more.
    fn end_if_over(&self, group: &GroupId, run: &Run) -> bool {
        let mut running = locked(&self.running);
        let is_over = !run.again.load(Ordering::Relaxed);
        if is_over {
            running.remove(group);
        }
        is_over
    }
}

impl Node {
    /// Drives a group's move that is written down; `waiter` gets the initiator's answer. Called twice it is driven once.
    pub(super) fn drive_departure(
        &self,
        group: &GroupId,
        request: &RequestKey,
        waiter: Option<oneshot::Sender<Reply>>,
    ) {
        let run = {
            let mut running = locked(&self.departures.running);
            if let Some(run) = running.get(group) {
                locked(&run.waiters).extend(waiter);
                run.again.store(true, Ordering::Relaxed);
                let before = std::mem::replace(&mut *locked(&run.request), request.clone());
                if before != *request {
                    run.nudge.notify_one();
                }
                return;
            }
            let run = Arc::new(Run {
                request: Mutex::new(request.clone()),
                waiters: Mutex::new(waiter.into_iter().collect()),
                abort: AtomicBool::new(false),
                nudge: Notify::new(),
                again: AtomicBool::new(false),
                waited_ms: AtomicU64::new(0),
                stands: Mutex::new(None),
            });
            running.insert(group.clone(), Arc::clone(&run));
            run
        };
        let (node, group) = (self.clone(), group.clone());
        self.arbiters.spawn_on(Duty::Decide, super::groups::hash_of(&group), async move {
            node.metrics.departures_under_way.inc();
            node.depart(&group, &run).await;
            node.metrics.departures_under_way.dec();
        });
    }

    /// Goes on with every move that the process before had begun.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn resume_departures(&self) -> Result<usize, StoreError> {
        let (mut count, mut after) = (0, None);
        loop {
            let page = self.store.departures(after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(count) };
            after = Some(last.group.clone());
            for departure in page {
                self.drive_departure(&departure.group, &departure.request, None);
                count += 1;
            }
        }
    }

    /// The answer to a start_migration of a group that is frozen or gone: the first one's again, else `otherwise`.
    pub(super) async fn answer_departed(
        &self,
        group: &GroupId,
        request: &RequestKey,
        otherwise: DsError,
    ) -> Reply {
        let Some(run) = self.departures.of(group).filter(|run| *locked(&run.request) == *request)
        else {
            return self.moving_of(group, request).await?.ok_or(otherwise);
        };
        // whoever waits is told when the group leaves; if that was before it waited, it is written down
        let (tell, told) = oneshot::channel();
        {
            let mut waiters = locked(&run.waiters);
            waiters.retain(|waiter| !waiter.is_closed());
            waiters.push(tell);
        }
        if let Some(moving) = self.moving_of(group, request).await? {
            return Ok(moving);
        }
        let patience = Duration::from_millis(self.limits.moves.answer_wait_ms);
        match tokio::time::timeout(patience, told).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => {
                Err(migrating(self.departures.frozen_ms(group, self.clock.now())))
            }
        }
    }

    /// The answer to the start_migration by which a group has left; none where it was another.
    async fn moving_of(
        &self,
        group: &GroupId,
        request: &RequestKey,
    ) -> Result<Option<DsResponseBody>, DsError> {
        let Some(moves) = self.store.moves(group).await.map_err(of_store)? else { return Ok(None) };
        let is_it = moves.left.as_ref().is_some_and(|left| left.request == *request);
        let chain = chain_of(&moves).map_err(of_store)?;
        let last = chain.iter().next_back().filter(|_| is_it);
        Ok(last.map(|last| DsResponseBody::Moving(Box::new(last.clone()))))
    }

    /// A group came back: what drove its last move from here has nothing left to do, and shall not sleep on it.
    pub(super) fn departure_is_over(&self, group: &GroupId) {
        if let Some(run) = self.departures.of(group) {
            run.nudge.notify_one();
        }
    }

    /// Moves from here that are not over.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn departures(&self) -> Result<Vec<DepartureState>, StoreError> {
        let now = self.clock.now();
        let (mut states, mut after) = (Vec::new(), None);
        loop {
            let page = self.store.departures(after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(states) };
            after = Some(last.group.clone());
            states.extend(page.into_iter().map(|departure| DepartureState {
                state: name_of(&departure.phase),
                group: departure.group.to_string(),
                target: departure.target.to_string(),
                age_ms: now.ms_since(departure.frozen_at),
            }));
        }
    }

    /// An operator wants a move ended: at once where nothing was sent, else the target is asked to refuse it. `false` where
    /// the group is not on its way: one that has moved is not any more, although its target is still to be told.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn abort_departure(&self, group: &GroupId) -> Result<bool, StoreError> {
        let departure = self.store.departure(group).await?;
        let Some(run) = self.departures.of(group) else { return Ok(false) };
        if departure.is_none_or(|departure| departure.phase == Phase::Gone) {
            return Ok(false);
        }
        run.abort.store(true, Ordering::Relaxed);
        run.nudge.notify_one();
        Ok(true)
    }

    async fn depart(&self, group: &GroupId, run: &Run) {
        step("source.frozen").await;
        let mut tries = 0_u32;
        let mut turn = None;
        loop {
            run.again.store(false, Ordering::Relaxed);
            let went = self.depart_on(group, run, tries, &mut turn).await;
            if !matches!(went, Ok(Went::On | Went::Turned)) {
                // others need not wait for as long as this one does
                turn = None;
            }
            match went {
                Ok(Went::On) => tries = 0,
                Ok(Went::Turned) => {}
                Ok(Went::Over) => {
                    if self.departures.end_if_over(group, run) {
                        return;
                    }
                }
                Ok(Went::Wait { at_least_ms }) => {
                    tries = tries.saturating_add(1);
                    let random = u64::from_be_bytes(crypto::random());
                    let ms = self.limits.moves.retry.delay_ms(tries, random).max(at_least_ms);
                    let pause = tokio::time::sleep(Duration::from_millis(ms));
                    tokio::select! { biased; () = run.nudge.notified() => {}, () = pause => {} }
                }
                // somebody else has changed the group, or the store is out of reach: what is written down decides
                Err(error) => {
                    tracing::warn!(%group, %error, "a group's move waits for the store");
                    tries = tries.saturating_add(1);
                    if let StoreError::ReadOnly(_) | StoreError::Unavailable(_) = error {
                        self.departures.end(group);
                        return;
                    }
                    let random = u64::from_be_bytes(crypto::random());
                    let ms = self.limits.moves.retry.delay_ms(tries, random);
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                }
            }
        }
    }

    /// One step of a move, by what is written down.
    async fn depart_on(
        &self,
        group: &GroupId,
        run: &Run,
        tries: u32,
        turn: &mut Option<Turn>,
    ) -> Result<Went, StoreError> {
        let Some(departure) = self.store.departure(group).await? else { return Ok(Went::Over) };
        let settled = self.is_settled(group).await?;
        // from here on what passes is waited for, and nothing else is read
        let now = self.clock.now();
        *locked(&run.stands) = Some((name_of(&departure.phase), departure.frozen_at));
        let response: MigrationResponse = decode(&departure.response)
            .map_err(|error| StoreError::Corrupt { what: format!("departure: {error}") })?;
        let terms = Terms {
            response: hash_of_response(&response),
            expires_at: response.expires_at,
            frozen_at: departure.frozen_at.plus_ms(run.waited_ms.load(Ordering::Relaxed)),
            freeze_ms: self.limits.moves.freeze_ms,
            settled,
        };
        let aborted = run.abort.load(Ordering::Relaxed);
        if aborted && departure.phase.may_thaw() {
            return self.thaw(&departure, not_authorized("an operator ended the move")).await;
        }
        let next = departure.phase.next(&terms, now);
        // whoever refuses the content as a request is asked for its word in another way
        let asks = aborted || asks_to_refuse(tries);
        let holds_content = next == Next::Prepare || next == Next::Send && !asks;
        if holds_content && turn.is_none() {
            let until = departure.phase.may_thaw().then_some(response.expires_at);
            *turn = self.in_turn(&departure.target, run, until, now).await;
            return Ok(Went::Turned);
        }
        match next {
            Next::Thaw => {
                // no reason to try again at once: each try stops the group for as long
                let why = if terms.settled {
                    "the target could not be reached in time; the group stays here"
                } else {
                    "the provider that the group came from last has not confirmed yet that it knows; the group stays here, and \
                     can move on when it has"
                };
                self.thaw(&departure, not_authorized(why)).await
            }
            Next::Wait => {
                tracing::info!(%group, "a group's last hub has not confirmed its move yet");
                Ok(Went::Wait { at_least_ms: 0 })
            }
            Next::Prepare => self.prepare(&departure, response).await,
            Next::Send => self.send_group(&departure, &terms, &response, asks).await,
            Next::Confirm => {
                *turn = None;
                // both were of a move that is done: the next one, should there be one soon, is another
                run.abort.store(false, Ordering::Relaxed);
                run.waited_ms.store(0, Ordering::Relaxed);
                self.confirm(&departure).await
            }
        }
    }

    /// Whether whoever the group came here from has confirmed that it knows.
    async fn is_settled(&self, group: &GroupId) -> Result<bool, StoreError> {
        let last = self.store.moves(group).await?.and_then(|moves| moves.arrived);
        Ok(last.is_none_or(|last| !last.here || last.confirmed))
    }

    /// Waits for the group's turn, or until something else is to be done about it. It has waited since `since`.
    async fn in_turn(
        &self,
        target: &Domain,
        run: &Run,
        until: Option<Timestamp>,
        since: Timestamp,
    ) -> Option<Turn> {
        let too_late = async {
            match until {
                Some(until) => {
                    tokio::time::sleep(Duration::from_millis(until.ms_since(since))).await;
                }
                None => std::future::pending().await,
            }
        };
        let turn = tokio::select! {
            biased;
            turn = self.departures.turns.take(target) => Some(turn),
            () = run.nudge.notified() => None,
            () = too_late => None,
        };
        run.waited_ms.fetch_add(self.clock.now().ms_since(since), Ordering::Relaxed);
        turn
    }

    /// Makes sure that the target's key is the target's, and writes down what will be sent.
    async fn prepare(
        &self,
        departure: &Departure,
        response: MigrationResponse,
    ) -> Result<Went, StoreError> {
        let (group, target) = (&departure.group, &departure.target);
        let scheme = scheme_of_suite(response.migration_request.ciphersuite);
        let key = hub_of_sender(&response.target_sender).ok().map(|(key, _)| key);
        let is_it = |it: &VerificationKey| {
            let key = key.as_ref().map(|key| key.as_slice());
            Some(it.scheme) == scheme && Some(it.public_key.as_slice()) == key
        };
        let is_theirs = match self.has_sender_key(target, is_it).await {
            Ok(is_theirs) => is_theirs,
            // the group does not stand still for so long
            Err(error @ DsError::RateLimited { retry_after_ms, .. }) => {
                let seconds = retry_after_ms.div_ceil(1000);
                let why = not_authorized(format!("{error}: try again in {seconds} s"));
                return self.thaw(departure, why).await;
            }
            Err(_) => return Ok(Went::Wait { at_least_ms: 0 }),
        };
        if !is_theirs {
            let why = not_authorized(format!("{target} does not publish the key in its response"));
            return self.thaw(departure, why).await;
        }
        match self.ask_again(target, &response).await {
            Ok(()) => {}
            Err(CallError::Status {
                error: Some(error @ DsError::NotAuthorized { .. }), ..
            }) => {
                let why = not_authorized(format!("{target} does not take the group: {error}"));
                return self.thaw(departure, why).await;
            }
            Err(error) => {
                tracing::info!(%group, %target, %error, "the target of a group's move is not there");
                return Ok(Went::Wait { at_least_ms: error.retry_after_ms().unwrap_or(0) });
            }
        }
        let Some(head) = self.frozen_head(group).await? else { return Ok(Went::Over) };
        let content = match self.make_content(departure, response, &head).await {
            Ok(content) => content,
            Err(error @ (DsError::TooLarge { .. } | DsError::Internal { .. })) => {
                return self.thaw(departure, error).await;
            }
            Err(_) => return Ok(Went::Wait { at_least_ms: 0 }),
        };
        let Some(phase) = departure.phase.sending(content.1) else { return Ok(Went::On) };
        let departure = Departure { phase, ..departure.clone() };
        let mut batch = Batch::low_priority().when(condition_of(&head));
        let (group, at) = (group.clone(), Departure::CONTENT);
        batch.push(Write::Snapshot { group, at, bytes: content.0 });
        batch.push(Write::Departure(departure));
        step("source.before-sent").await;
        self.store.write(batch).await?;
        step("source.sent-durable").await;
        Ok(Went::On)
    }

    /// Whether the target is there and still wants the group: keys that are known from before say nothing of that, and
    /// from the first content on this side cannot take the group back. It costs the target nothing.
    async fn ask_again(
        &self,
        target: &Domain,
        response: &MigrationResponse,
    ) -> Result<(), CallError> {
        let Some(federation) = self.federation.clone() else {
            return Err(CallError::Unreachable("this provider does not federate".to_owned()));
        };
        let (event, body) = (EventType::MigrationRequest, encode(&response.migration_request));
        let timeout = Duration::from_millis(self.limits.relay_timeout_ms);
        step("source.before-asked").await;
        federation.request(target, event, RequestId(crypto::random()), body, timeout).await?;
        step("source.asked").await;
        Ok(())
    }

    /// Sends the content, or asks the target to refuse it, and does what its word means.
    async fn send_group(
        &self,
        departure: &Departure,
        terms: &Terms,
        response: &MigrationResponse,
        asks_to_refuse: bool,
    ) -> Result<Went, StoreError> {
        let (group, target) = (&departure.group, &departure.target);
        let Some(federation) = self.federation.clone() else {
            return Ok(Went::Wait { at_least_ms: 0 });
        };
        let (event, body) = if asks_to_refuse {
            (EventType::MigrationAbort, encode(response))
        } else {
            let content = self.store.snapshot(group, Departure::CONTENT).await?;
            let what = || StoreError::Corrupt { what: format!("the content of {group} is gone") };
            (EventType::MigrationContent, content.ok_or_else(what)?)
        };
        let (id, timeout) = (RequestId(crypto::random()), self.limits.moves.content_timeout_ms);
        let timeout = Duration::from_millis(timeout);
        let [before, answered] = match asks_to_refuse {
            true => ["source.before-abort", "source.abort-answered"],
            false => ["source.before-send", "source.answered"],
        };
        step(before).await;
        let answer = federation.request(target, event, id, body, timeout).await;
        if answer.is_ok() {
            step(answered).await;
        }
        let answer = answer.and_then(|bytes| {
            decode::<TargetMigrationComplete>(&bytes)
                .map_err(|error| CallError::BadAnswer(error.to_string()))
        });
        let complete = match answer {
            Ok(complete) => complete,
            Err(error) => {
                tracing::warn!(%group, %target, %error, "the target of a group's move has not answered");
                let at_least_ms = error.retry_after_ms().unwrap_or(0);
                return Ok(Went::Wait { at_least_ms });
            }
        };
        let suspicious_ms = SUSPICIOUS_MS.min(self.limits.moves.retry.max_ms);
        let scheme = scheme_of_suite(response.migration_request.ciphersuite);
        let key = hub_of_sender(&response.target_sender).ok();
        let is_signed = scheme.zip(key).is_some_and(|(scheme, (key, _))| {
            check_complete(scheme, key.as_slice(), &complete).is_ok()
        });
        if !is_signed {
            tracing::error!(%group, %target, "the target's answer is not signed by its key in the group");
            return Ok(Went::Wait { at_least_ms: suspicious_ms });
        }
        let hash = complete.migration_content_hash.as_slice();
        match departure.phase.heard(terms, hash, complete.refused == 1) {
            Heard::Gone => self.hand_over(departure, response).await,
            Heard::Thaw => {
                let why = not_authorized(format!("{target} has refused the group; it stays here"));
                self.thaw(departure, why).await
            }
            Heard::Nothing => {
                tracing::error!(%group, %target, "the target's answer is about something else");
                Ok(Went::Wait { at_least_ms: suspicious_ms })
            }
        }
    }
}

/// How a step went.
enum Went {
    /// What is written down has changed: on with it.
    On,
    /// It has its turn, or something else is to be done before it: what is written down decides.
    Turned,
    Over,
    Wait {
        at_least_ms: u64,
    },
}

fn condition_of(head: &GroupHead) -> Condition {
    Condition::GroupAt {
        group: head.group.clone(),
        next_sequence: head.next_sequence,
        revision: head.revision,
    }
}

/// Whether the target, which has given no word so often, is asked to refuse the content instead of being sent it.
pub(super) fn asks_to_refuse(tries: u32) -> bool {
    tries > CONTENT_TRIES && tries.is_multiple_of(2)
}

/// When a departure is written down.
pub(super) fn departure_of(
    group: &GroupId,
    request: RequestKey,
    response: &MigrationResponse,
    now: Timestamp,
) -> Departure {
    Departure {
        group: group.clone(),
        request,
        response: encode(response),
        target: response.migration_request.target_domain_name.clone(),
        frozen_at: now,
        phase: Phase::Frozen,
    }
}

const PAGE: usize = 256;
/// So often a content is sent before the target is also asked to refuse it.
const CONTENT_TRIES: u32 = 6;
/// A target whose word cannot be true is asked again after this at the earliest, or as late as any.
const SUSPICIOUS_MS: u64 = 10_000;
