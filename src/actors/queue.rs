//! One actor per active queue: the only writer of its client's queue records. DESIGN "feeds"; PROTOCOL.md §3.
//!
//! Thin: [`QueueState`] decides; the actor reads what it asks for, writes what it says, serves one session (a stream
//! or a long poll) and is let go when nobody asks any more. It does one thing with the store at a time, so what it
//! delivers rests on what is durable. Everything it is sent is bounded: requests by permits, hints and
//! acknowledgements by sets ([`super::hints`]), deliveries by the window.

mod reported;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message,
    SpawnHandle, WrapFuture,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{
    Limits,
    ages::Waiting,
    arbiters::Duty,
    errors::{of_ack, of_store, rate_limited, unauthenticated, unavailable},
    hints::{Wake, Woken, locked},
    node::Node,
};
use crate::{
    queue::{
        feed::FeedView,
        state::{Next, Overflow, QueueLimits, QueueState, Taken, highest},
    },
    rate::Class,
    store::{
        Batch, Left, Page, StoreError,
        records::{GroupStatus, InboxItem, InboxKey, OwnEntry, QueueHead, Subscription},
    },
    wire::{
        client::{Dequeue, Dequeued},
        codec::List,
        ds::DsError,
        ids::{ClientUri, FeedId, GroupId, Sequence},
        queueing::{FeedAck, QueueEntry},
    },
};

pub use super::tokens::{BindError, TokenUse};
use reported::Reported;

/// The active queues.
pub struct Queues {
    pub(super) waiting: Waiting<ClientUri>,
    slots: Mutex<HashMap<ClientUri, Slot>>,
    next_id: AtomicU64,
}

#[derive(Clone)]
struct Slot {
    addr: Addr<QueueActor>,
    wake: Arc<Wake>,
    permits: Arc<Semaphore>,
    /// Each timer that the actor has set holds one.
    #[cfg(test)]
    timers: Arc<()>,
}

impl Queues {
    pub(super) fn new() -> Self {
        let slots = Mutex::new(HashMap::new());
        Self { waiting: Waiting::default(), slots, next_id: AtomicU64::new(1) }
    }

    fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// How many timers a client's actor has set.
    #[cfg(test)]
    pub(super) fn timers_of(&self, client: &ClientUri) -> usize {
        // its own, the slot's, and what is there besides
        locked(&self.slots).get(client).map_or(0, |slot| Arc::strong_count(&slot.timers) - 2)
    }

    fn forget(&self, client: &ClientUri, wake: &Arc<Wake>) {
        let mut slots = locked(&self.slots);
        if slots.get(client).is_some_and(|slot| slot.wake.id == wake.id) {
            slots.remove(client);
        }
    }
}

/// A client's entries as they come.
pub struct QueueStream {
    entries: mpsc::UnboundedReceiver<Vec<QueueEntry>>,
    wake: Arc<Wake>,
    session: u64,
    feeds_max: usize,
}

impl QueueStream {
    /// The next entries; `None` when the stream is over: the device is deleted, another session took over, the node
    /// drains or its store fails. May be dropped and called again without losing anything.
    pub async fn next(&mut self) -> Option<Vec<QueueEntry>> {
        self.entries.recv().await
    }

    /// Acknowledges. What was not delivered is not acknowledged by it; that is counted and otherwise ignored.
    pub fn ack(&self, ack: FeedAck) {
        self.wake.acknowledge(ack, self.feeds_max);
    }
}

impl Drop for QueueStream {
    fn drop(&mut self) {
        self.wake.tell(|told| told.ended.push(self.session));
    }
}

impl Node {
    /// Acknowledges, then gives what is unacknowledged from there on: at once where there is something, else as soon
    /// as there is, or nothing after `wait_ms`. Ends another session of the client. A lost answer is repeated by
    /// the same request.
    ///
    /// # Errors
    /// malformed (an acknowledgement of what was not delivered), rate_limited, unavailable.
    pub async fn dequeue(&self, from: &ClientUri, dequeue: Dequeue) -> Result<Dequeued, DsError> {
        let max = dequeue.max.clamp(1, self.limits.dequeue_entries_max);
        let wait_ms = dequeue.wait_ms.min(self.limits.dequeue_wait_ms_max);
        let acks = highest(dequeue.acks.into_vec());
        let entries = self
            .ask_queue(from, |answer, permit| {
                let acks = acks.clone();
                Request::Dequeue(Poll { acks, max: max as usize, wait_ms, answer, permit })
            })
            .await?;
        let entries = List::new(entries).map_err(|_| unavailable("too much to deliver at once"))?;
        Ok(Dequeued { entries })
    }

    /// Opens a stream that begins with what is unacknowledged, and lets about `window` bytes be on their way. Ends
    /// another session of the client.
    ///
    /// # Errors
    /// rate_limited, unavailable.
    pub async fn open_stream(&self, from: &ClientUri, window: u32) -> Result<QueueStream, DsError> {
        let limits = &self.limits;
        let window = window.clamp(limits.window_bytes_min, limits.window_bytes_max) as usize;
        self.ask_queue(from, |answer, permit| Request::Stream { window, answer, permit }).await
    }

    /// Persists what is acknowledged and lets go of every queue; their sessions end.
    pub async fn drain_queues(&self) {
        let slots: Vec<Slot> = locked(&self.queues.slots).values().cloned().collect();
        let asked: Vec<_> = slots.iter().map(|slot| slot.addr.send(Drain)).collect();
        for left in asked {
            if let Ok(left) = left.await {
                // an actor that is gone has dropped its end
                let _ = left.await;
            }
        }
    }

    /// Ends the queue of a client that is no more, without a last write.
    pub(super) async fn close_queue(&self, client: &ClientUri) {
        let slot = locked(&self.queues.slots).get(client).cloned();
        if let Some(slot) = slot {
            let _ = slot.addr.send(Close).await;
        }
    }

    async fn ask_queue<T>(
        &self,
        client: &ClientUri,
        request: impl Fn(oneshot::Sender<Result<T, DsError>>, OwnedSemaphorePermit) -> Request,
    ) -> Result<T, DsError> {
        // an actor that is being let go takes nothing more: the next one does
        for _ in 0..3 {
            let slot = self.queue_slot(client)?;
            let permit = Arc::clone(&slot.permits).try_acquire_owned().map_err(|_| {
                rate_limited("too many requests of this client at a time", BUSY_RETRY_MS)
            })?;
            let (answer, answered) = oneshot::channel();
            if slot.addr.send(request(answer, permit)).await.is_err() {
                self.queues.forget(client, &slot.wake);
                continue;
            }
            if let Ok(answer) = answered.await {
                return answer;
            }
        }
        Err(unavailable("the queue cannot be loaded now; try again"))
    }

    fn queue_slot(&self, client: &ClientUri) -> Result<Slot, DsError> {
        let mut slots = locked(&self.queues.slots);
        if let Some(slot) = slots.get(client).filter(|slot| slot.addr.connected()) {
            return Ok(slot.clone());
        }
        if slots.len() >= self.limits.queue_actors_max {
            self.metrics.shed(Class::Relief, "permits");
            return Err(unavailable("too many clients are online; try again later"));
        }
        let wake = Wake::new(self.queues.next_id());
        let mut hasher = DefaultHasher::new();
        client.hash(&mut hasher);
        let (node, of, ear) = (self.clone(), client.clone(), Arc::clone(&wake));
        #[cfg(test)]
        let timers = Arc::new(());
        #[cfg(test)]
        let of_actor = Arc::clone(&timers);
        let addr = self.arbiters.start_actor_on(Duty::Deliver, hasher.finish(), move |_| {
            QueueActor::new(
                node,
                of,
                ear,
                #[cfg(test)]
                of_actor,
            )
        });
        let permits = Arc::new(Semaphore::new(self.limits.queue_requests_max));
        let slot = Slot {
            addr,
            wake,
            permits,
            #[cfg(test)]
            timers,
        };
        slots.insert(client.clone(), slot.clone());
        Ok(slot)
    }
}

struct QueueActor {
    node: Node,
    client: ClientUri,
    wake: Arc<Wake>,
    /// None until it is loaded.
    state: Option<QueueState>,
    session: Option<Session>,
    requests: VecDeque<Request>,
    /// Acknowledgements of a stream that wait for their turn; bounded as in [`Wake::acknowledge`].
    acks: BTreeMap<FeedId, Sequence>,
    /// A read of a feed that waits until what was left for the client is taken.
    read: Option<(FeedId, FeedView)>,
    followed: BTreeSet<GroupId>,
    /// Something is being read or written.
    working: bool,
    look_into_inbox: bool,
    persist_now: bool,
    persist_timer: bool,
    idle_timer: Option<SpawnHandle>,
    /// Ends the wait of the last long poll.
    wait_timer: Option<SpawnHandle>,
    /// Feeds that could not be read, until they are tried again together.
    passed_over: BTreeSet<FeedId>,
    #[cfg(test)]
    timers: Arc<()>,
    leaving: Option<Leaving>,
    reported: Reported,
}

struct Leaving {
    reason: &'static str,
    tell: Vec<oneshot::Sender<()>>,
}

enum Session {
    Stream {
        id: u64,
        entries: mpsc::UnboundedSender<Vec<QueueEntry>>,
    },
    Poll {
        id: u64,
        poll: Poll,
        collected: Vec<QueueEntry>,
        over: bool,
        /// Why a feed was passed over, where the store could not be read: it is no answer that there is nothing.
        failed: Option<StoreError>,
    },
}

struct Poll {
    acks: Vec<FeedAck>,
    max: usize,
    wait_ms: u32,
    answer: oneshot::Sender<Result<Vec<QueueEntry>, DsError>>,
    permit: OwnedSemaphorePermit,
}

/// What a client asks of its queue; the permit is given back with the answer.
#[derive(Message)]
#[rtype(result = "()")]
enum Request {
    Dequeue(Poll),
    Stream {
        window: usize,
        answer: oneshot::Sender<Result<QueueStream, DsError>>,
        permit: OwnedSemaphorePermit,
    },
}

#[derive(Message)]
#[rtype(result = "oneshot::Receiver<()>")]
struct Drain;

#[derive(Message)]
#[rtype(result = "()")]
struct Close;

/// What the store answered.
enum Done {
    Loaded(Box<(QueueHead, Vec<Subscription>)>),
    /// The device is not there, or not any more.
    NoDevice,
    Inbox(Left),
    Taken(Taken),
    Persisted,
    Own(Vec<OwnEntry>),
    Feed {
        feed: FeedId,
        view: FeedView,
        inbox: Left,
    },
    /// This one feed cannot be read.
    NoFeed(FeedId, StoreError),
    Ends {
        poll: Option<Poll>,
        acks: Vec<FeedAck>,
        ends: Vec<(FeedId, Sequence)>,
    },
}

impl Actor for QueueActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let (node, client) = (self.node.clone(), self.client.clone());
        node.metrics.queue_actors.inc();
        node.metrics.queue_activations.inc();
        self.run(ctx, async move {
            match node.store.device(&client).await? {
                Some(device) if device.deleted_at.is_none() => {}
                _ => return Ok(Done::NoDevice),
            }
            let head = node.store.queue_head(&client).await?.unwrap_or_default();
            let subscriptions = node.store.subscriptions(&client).await?;
            Ok(Done::Loaded(Box::new((head, subscriptions))))
        });
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.reported.set(Reported::default(), &self.client, &self.node);
        let metrics = &self.node.metrics;
        metrics.queue_actors.dec();
        let reason = self.leaving.as_ref().map_or("failed", |leaving| leaving.reason);
        metrics.queue_passivations.with_label_values(&[reason]).inc();
        self.let_go();
    }
}

impl QueueActor {
    fn new(node: Node, client: ClientUri, wake: Arc<Wake>, #[cfg(test)] timers: Arc<()>) -> Self {
        Self {
            node,
            client,
            wake,
            state: None,
            session: None,
            requests: VecDeque::new(),
            acks: BTreeMap::new(),
            read: None,
            followed: BTreeSet::new(),
            working: false,
            look_into_inbox: true,
            persist_now: false,
            persist_timer: false,
            idle_timer: None,
            wait_timer: None,
            passed_over: BTreeSet::new(),
            #[cfg(test)]
            timers,
            leaving: None,
            reported: Reported::default(),
        }
    }

    /// Calls `then` after `delay`. actix looks at all timers whenever the actor wakes up, so there is one of each kind at most,
    /// however often a client comes.
    fn later(
        &self,
        delay: Duration,
        ctx: &mut Context<Self>,
        then: impl FnOnce(&mut Self, &mut Context<Self>) + 'static,
    ) -> SpawnHandle {
        #[cfg(test)]
        let is_set = Arc::clone(&self.timers);
        ctx.run_later(delay, move |actor, ctx| {
            #[cfg(test)]
            drop(is_set);
            then(actor, ctx);
        })
    }

    /// Does one thing with the store. Nothing else is done with it until that is done.
    fn run(
        &mut self,
        ctx: &mut Context<Self>,
        work: impl Future<Output = Result<Done, StoreError>> + 'static,
    ) {
        self.working = true;
        ctx.spawn(work.into_actor(self).map(|done, actor, ctx| {
            actor.working = false;
            match done {
                Ok(done) => actor.done(done, ctx),
                Err(error) => {
                    tracing::warn!(client = %actor.client, %error, "a queue is let go");
                    actor.refuse_all(&of_store(error));
                    actor.stop("failed", ctx);
                }
            }
        }));
    }

    /// Goes on with whatever is to be done next.
    fn work(&mut self, ctx: &mut Context<Self>) {
        self.report();
        while !self.working {
            let Some(state) = &mut self.state else { return };
            let (store, client) = (Arc::clone(&self.node.store), self.client.clone());
            if self.look_into_inbox {
                self.look_into_inbox = false;
                return self.run(ctx, async move {
                    Ok(Done::Inbox(store.inbox(&client, INBOX_PAGE).await?))
                });
            }
            if let Some((feed, view)) = self.read.take() {
                let entries = state.fed(feed, view, self.node.clock.now());
                self.deliver(entries);
                continue;
            }
            if !self.acks.is_empty() {
                let acks = std::mem::take(&mut self.acks).into_iter();
                let acks: Vec<_> =
                    acks.map(|(feed, sequence)| FeedAck { feed, sequence }).collect();
                let ends = state.unknown_ends(&acks);
                if ends.is_empty() {
                    self.acknowledge_each(&acks, ctx);
                    continue;
                }
                return self.learn_ends(ends, None, acks, ctx);
            }
            if self.leaving.is_some() || (self.persist_now && state.has_unpersisted_acks()) {
                self.persist_now = false;
                if self.node.store.writable().is_err() {
                    // what cannot last now is told again by who acknowledged, in a session behind the restart
                    if self.leaving.is_none() {
                        self.persist_later(ctx);
                        continue;
                    }
                } else if let Some(batch) = state.persist() {
                    return self.write(batch, Done::Persisted, ctx);
                }
                match &self.leaving {
                    // somebody asked while the last write was on its way
                    Some(leaving) if leaving.reason == IDLE && !self.requests.is_empty() => {
                        self.leaving = None;
                    }
                    Some(_) => {
                        self.let_go();
                        return ctx.stop();
                    }
                    None => {}
                }
            }
            if let Some(request) = self.requests.pop_front() {
                self.begin(request, ctx);
                continue;
            }
            let Some(session) = &mut self.session else { return self.be_idle(ctx) };
            match (state.next(), session) {
                (Next::ReadOwn { from }, _) => {
                    return self.run(ctx, async move {
                        let page = Page { items_max: OWN_PAGE, bytes_max: PAGE_BYTES };
                        Ok(Done::Own(store.own(&client, from, page).await?))
                    });
                }
                (Next::ReadFeed { feed, group, from }, _) => {
                    return self.run(ctx, async move {
                        let view = match read_feed(&store, &group, from).await {
                            Ok(view) => view,
                            Err(error) => return Ok(Done::NoFeed(feed, error)),
                        };
                        // behind the read: an end of the membership stands there with the entry that ends it
                        let inbox = store.inbox(&client, INBOX_PAGE).await?;
                        Ok(Done::Feed { feed, view, inbox })
                    });
                }
                (Next::Full, Session::Poll { .. }) => self.end_session(),
                (Next::Idle, Session::Poll { collected, over, .. })
                    if *over || !collected.is_empty() =>
                {
                    self.end_session();
                }
                (Next::Full | Next::Idle, Session::Stream { .. } | Session::Poll { .. }) => return,
            }
        }
    }

    fn done(&mut self, done: Done, ctx: &mut Context<Self>) {
        match done {
            Done::Loaded(loaded) => self.loaded(*loaded, ctx),
            Done::NoDevice => {
                self.refuse_all(&unauthenticated("this device is not registered here"));
                return self.stop("deleted", ctx);
            }
            Done::Inbox(left) => self.take(left, ctx),
            Done::Taken(taken) => self.taken(taken),
            Done::Persisted => self.follow(),
            Done::Own(entries) => {
                let Some(state) = &mut self.state else { return };
                if entries.is_empty() {
                    // what the head says to be there is not
                    let what = format!("the own feed of {}", self.client);
                    self.refuse_all(&of_store(StoreError::Corrupt { what }));
                    return self.stop("failed", ctx);
                }
                // none where the first of them is too large for what is on its way
                let entries = state.fed_own(entries);
                self.deliver(entries);
            }
            Done::Feed { feed, view, inbox } => {
                if self.is_held_up(feed, &inbox) {
                    self.pass_over(feed, ctx);
                } else {
                    self.read = Some((feed, view));
                    self.take(inbox, ctx);
                }
            }
            Done::NoFeed(feed, error) => {
                tracing::debug!(client = %self.client, %feed, %error, "a feed is passed over");
                if let (Some(Session::Poll { failed, .. }), StoreError::Unavailable(_)) =
                    (&mut self.session, &error)
                {
                    *failed = Some(error);
                }
                self.pass_over(feed, ctx);
            }
            Done::Ends { poll, acks, ends } => {
                let Some(state) = &mut self.state else { return };
                for (feed, next) in ends {
                    state.learn_end(feed, next);
                }
                match poll {
                    Some(poll) => self.begin_poll(poll, ctx),
                    None => self.acknowledge_each(&acks, ctx),
                }
            }
        }
        self.work(ctx);
    }

    fn loaded(
        &mut self,
        (head, subscriptions): (QueueHead, Vec<Subscription>),
        ctx: &mut Context<Self>,
    ) {
        let limits = queue_limits(&self.node.limits);
        self.state = Some(QueueState::load(self.client.clone(), head, subscriptions, limits));
        self.follow();
        self.node.hints.go_online(&self.client, &self.wake);
        self.wake.listen(ctx.address().recipient());
    }

    /// Follows the groups that the client is in, and no others.
    fn follow(&mut self) {
        let Some(state) = &self.state else { return };
        let hints = &self.node.hints;
        let mut before = std::mem::take(&mut self.followed);
        for group in state.groups() {
            if !before.remove(group) {
                hints.follow(group, &self.wake);
            }
            self.followed.insert(group.clone());
        }
        before.iter().for_each(|group| hints.unfollow(group, &self.wake));
    }

    fn take(&mut self, left: Left, ctx: &mut Context<Self>) {
        let Some(state) = &mut self.state else { return };
        // where nothing can be written it stays where it is
        if left.items.is_empty() || self.node.store.writable().is_err() {
            return;
        }
        self.look_into_inbox |= left.more;
        // an operator may have changed them since the queue was loaded
        state.set_limits(queue_limits(&self.node.limits));
        let mut taken = state.take(left.items, self.node.clock.now());
        let batch = std::mem::take(&mut taken.batch);
        self.write(batch, Done::Taken(taken), ctx);
    }

    /// Whether what was read of `feed` may not be delivered: something of its group is left that cannot be taken now, and that
    /// may be the end of the membership.
    fn is_held_up(&self, feed: FeedId, inbox: &Left) -> bool {
        let Some(group) = self.state.as_ref().and_then(|state| state.group_of(feed)) else {
            return false;
        };
        let concerns = |(key, _): &(InboxKey, InboxItem)| match key {
            InboxKey::Group { group: of, .. } => of == group,
            InboxKey::Item(_) | InboxKey::From { .. } => false,
        };
        (inbox.more || inbox.items.iter().any(concerns)) && self.node.store.writable().is_err()
    }

    /// The other feeds go on; this one is tried again in a while, with the others of which the same is so by then.
    fn pass_over(&mut self, feed: FeedId, ctx: &mut Context<Self>) {
        let Some(state) = &mut self.state else { return };
        state.pass_over(feed);
        if self.passed_over.is_empty() {
            self.later(FEED_RETRY, ctx, |actor, ctx| {
                let feeds = std::mem::take(&mut actor.passed_over);
                if let Some(state) = &mut actor.state {
                    feeds.into_iter().for_each(|feed| state.again(feed));
                    actor.work(ctx);
                }
            });
        }
        self.passed_over.insert(feed);
    }

    fn taken(&mut self, taken: Taken) {
        for overflow in taken.overflows {
            let kind = match overflow {
                Overflow::Welcome => "welcome",
                Overflow::Event => "event",
                Overflow::Subscription => "subscription",
            };
            self.node.metrics.queue_overflows.with_label_values(&[kind]).inc();
        }
        taken.notify.iter().for_each(|group| self.node.hints.notice(group));
        if !taken.joined.is_empty() {
            self.follow();
        }
    }

    fn write(&mut self, batch: Batch, done: Done, ctx: &mut Context<Self>) {
        let written = self.node.store.write(batch);
        self.run(ctx, async move {
            written.await?;
            Ok(done)
        });
    }

    fn begin(&mut self, request: Request, ctx: &mut Context<Self>) {
        let Some(state) = &mut self.state else { return };
        if let Some(timer) = self.idle_timer.take() {
            ctx.cancel_future(timer);
        }
        match request {
            Request::Dequeue(poll) => {
                let ends = state.unknown_ends(&poll.acks);
                if ends.is_empty() {
                    self.begin_poll(poll, ctx);
                } else {
                    self.learn_ends(ends, Some(poll), Vec::new(), ctx);
                }
            }
            Request::Stream { window, answer, permit } => {
                self.end_session();
                let Some(state) = &mut self.state else { return };
                state.rewind(window, usize::MAX);
                let (sender, entries) = mpsc::unbounded_channel();
                let id = self.node.queues.next_id();
                self.session = Some(Session::Stream { id, entries: sender });
                let stream = QueueStream {
                    entries,
                    wake: Arc::clone(&self.wake),
                    session: id,
                    feeds_max: self.node.limits.subscriptions_max + 1,
                };
                drop(permit);
                // who asked may be gone: the stream that comes back says so by its drop
                let _ = answer.send(Ok(stream));
            }
        }
    }

    /// Reads how far feeds go, to judge acknowledgements of what an earlier activation delivered. They are in the order of
    /// feeds, one of each.
    fn learn_ends(
        &mut self,
        feeds: Vec<(FeedId, GroupId)>,
        mut poll: Option<Poll>,
        mut acks: Vec<FeedAck>,
        ctx: &mut Context<Self>,
    ) {
        let store = Arc::clone(&self.node.store);
        self.run(ctx, async move {
            let mut ends = Vec::with_capacity(feeds.len());
            for (feed, group) in feeds {
                let head = store.group_head(&group).await?;
                if let Some(head) = head.as_ref().filter(|it| it.status == GroupStatus::Followed) {
                    // a copy that went back to a backup is behind what its clients have got of it: they get it again
                    let acks = poll.as_mut().map_or(&mut acks, |poll| &mut poll.acks);
                    let last = Sequence(head.next_sequence.0.saturating_sub(1));
                    if let Ok(at) = acks.binary_search_by_key(&feed, |ack| ack.feed) {
                        acks[at].sequence = acks[at].sequence.min(last);
                    }
                }
                // a feed that is gone went at least as far as the membership
                ends.push((feed, head.map_or(Sequence(u64::MAX), |head| head.next_sequence)));
            }
            Ok(Done::Ends { poll, acks, ends })
        });
    }

    fn begin_poll(&mut self, poll: Poll, ctx: &mut Context<Self>) {
        let Some(state) = &mut self.state else { return };
        match state.acknowledge(&poll.acks) {
            Ok(_) => self.acknowledged(poll.acks.len(), ctx),
            Err(problem) => {
                self.node.metrics.queue_acks_refused.inc();
                let _ = poll.answer.send(Err(of_ack(problem)));
                return;
            }
        }
        self.end_session();
        let Some(state) = &mut self.state else { return };
        state.rewind(self.node.limits.dequeue_bytes_max, poll.max);
        // what was left meanwhile is part of the answer
        self.look_into_inbox = true;
        let id = self.node.queues.next_id();
        let over = poll.wait_ms == 0;
        if let Some(timer) = self.wait_timer.take() {
            ctx.cancel_future(timer);
        }
        if !over {
            let wait = Duration::from_millis(u64::from(poll.wait_ms));
            self.wait_timer = Some(self.later(wait, ctx, move |actor, ctx| {
                actor.wait_timer = None;
                actor.end_wait(id, ctx);
            }));
        }
        let (collected, failed) = (Vec::new(), None);
        self.session = Some(Session::Poll { id, poll, collected, over, failed });
    }

    fn end_wait(&mut self, waited: u64, ctx: &mut Context<Self>) {
        if let Some(Session::Poll { id, over, .. }) = &mut self.session
            && *id == waited
        {
            *over = true;
            self.work(ctx);
        }
    }

    fn deliver(&mut self, entries: Vec<QueueEntry>) {
        self.report();
        if entries.is_empty() {
            return;
        }
        let metrics = &self.node.metrics;
        metrics.queue_entries_delivered.inc_by(entries.len() as u64);
        let bytes = entries.iter().map(|entry| tls_codec::Size::tls_serialized_len(entry) as u64);
        metrics.queue_bytes_delivered.inc_by(bytes.sum());
        let gaps = entries
            .iter()
            .filter(|entry| matches!(entry.event, crate::wire::queueing::QueueEvent::Gap { .. }));
        metrics.queue_gaps.inc_by(gaps.count() as u64);
        let is_read = match &mut self.session {
            // the window bounds what the channel holds
            Some(Session::Stream { entries: stream, .. }) => stream.send(entries).is_ok(),
            Some(Session::Poll { collected, .. }) => {
                collected.extend(entries);
                true
            }
            None => true,
        };
        if !is_read {
            self.end_session();
        }
    }

    /// A poll gets what there is, or why nothing can be read; a stream ends.
    fn end_session(&mut self) {
        if let Some(Session::Poll { poll, collected, failed, .. }) = self.session.take() {
            drop(poll.permit);
            let answer = match failed {
                Some(error) if collected.is_empty() => Err(of_store(error)),
                Some(_) | None => Ok(collected),
            };
            let _ = poll.answer.send(answer);
        }
    }

    fn acknowledge_each(&mut self, acks: &[FeedAck], ctx: &mut Context<Self>) {
        let Some(state) = &mut self.state else { return };
        let (mut taken, mut refused) = (0, 0);
        for ack in acks {
            match state.acknowledge(std::slice::from_ref(ack)) {
                Ok(_) => taken += 1,
                Err(problem) => {
                    tracing::debug!(client = %self.client, %problem, "an acknowledgement is ignored");
                    refused += 1;
                }
            }
        }
        self.node.metrics.queue_acks_refused.inc_by(refused);
        self.acknowledged(taken, ctx);
    }

    fn acknowledged(&mut self, acks: usize, ctx: &mut Context<Self>) {
        self.node.metrics.queue_acks.inc_by(acks as u64);
        self.report();
        self.persist_later(ctx);
    }

    fn persist_later(&mut self, ctx: &mut Context<Self>) {
        let unpersisted = self.state.as_ref().is_some_and(QueueState::has_unpersisted_acks);
        if unpersisted && !self.persist_timer {
            self.persist_timer = true;
            let delay = Duration::from_millis(self.node.limits.ack_persist_ms);
            self.later(delay, ctx, |actor, ctx| {
                actor.persist_timer = false;
                actor.persist_now = true;
                actor.work(ctx);
            });
        }
    }

    fn report(&mut self) {
        self.reported.set(Reported::of(self.state.as_ref()), &self.client, &self.node);
    }

    fn be_idle(&mut self, ctx: &mut Context<Self>) {
        if self.idle_timer.is_none() {
            let delay = Duration::from_millis(self.node.limits.queue_idle_ms);
            self.idle_timer = Some(self.later(delay, ctx, |actor, ctx| {
                actor.idle_timer = None;
                if actor.session.is_none() && actor.requests.is_empty() && !actor.working {
                    actor.leave(IDLE, None, ctx);
                }
            }));
        }
    }

    /// Persists and goes.
    fn leave(
        &mut self,
        reason: &'static str,
        tell: Option<oneshot::Sender<()>>,
        ctx: &mut Context<Self>,
    ) {
        self.end_session();
        let leaving = self.leaving.get_or_insert(Leaving { reason, tell: Vec::new() });
        leaving.tell.extend(tell);
        self.work(ctx);
    }

    fn stop(&mut self, reason: &'static str, ctx: &mut Context<Self>) {
        self.end_session();
        self.leaving.get_or_insert(Leaving { reason, tell: Vec::new() }).reason = reason;
        self.let_go();
        ctx.stop();
    }

    fn refuse_all(&mut self, error: &DsError) {
        if let Some(Session::Poll { poll, .. }) = self.session.take() {
            let _ = poll.answer.send(Err(error.clone()));
        }
        for request in self.requests.drain(..) {
            match request {
                Request::Dequeue(poll) => {
                    let _ = poll.answer.send(Err(error.clone()));
                }
                Request::Stream { answer, .. } => {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }

    fn let_go(&mut self) {
        let hints = &self.node.hints;
        hints.go_offline(&self.client, &self.wake);
        std::mem::take(&mut self.followed)
            .iter()
            .for_each(|group| hints.unfollow(group, &self.wake));
        self.node.queues.forget(&self.client, &self.wake);
    }
}

impl Handler<Request> for QueueActor {
    type Result = ();

    fn handle(&mut self, request: Request, ctx: &mut Context<Self>) {
        self.requests.push_back(request);
        self.work(ctx);
    }
}

impl Handler<Woken> for QueueActor {
    type Result = ();

    fn handle(&mut self, _: Woken, ctx: &mut Context<Self>) {
        let told = self.wake.told();
        let Some(state) = &mut self.state else { return };
        told.grown.iter().for_each(|group| state.grown(group));
        self.look_into_inbox |= told.inbox;
        if let Some(Session::Stream { id, .. }) = &self.session
            && told.ended.contains(id)
        {
            self.end_session();
        }
        for (feed, sequence) in told.acks {
            let acked = self.acks.entry(feed).or_default();
            *acked = (*acked).max(sequence);
        }
        self.work(ctx);
    }
}

impl Handler<Drain> for QueueActor {
    type Result = actix::MessageResult<Drain>;

    fn handle(&mut self, _: Drain, ctx: &mut Context<Self>) -> Self::Result {
        let (tell, left) = oneshot::channel();
        self.leave("drain", Some(tell), ctx);
        actix::MessageResult(left)
    }
}

impl Handler<Close> for QueueActor {
    type Result = ();

    fn handle(&mut self, _: Close, ctx: &mut Context<Self>) {
        self.stop("deleted", ctx);
    }
}

async fn read_feed(
    store: &crate::store::SharedStore,
    group: &GroupId,
    from: Sequence,
) -> Result<FeedView, StoreError> {
    let Some(head) = store.group_head(group).await? else {
        let none = Sequence(0);
        let (deleted, gone) = (false, true);
        return Ok(FeedView { first: none, next: none, deleted, gone, entries: Vec::new() });
    };
    let page = Page { items_max: FEED_PAGE, bytes_max: PAGE_BYTES };
    let from = from.max(head.first_sequence);
    let entries =
        if from < head.next_sequence { store.feed(group, from, page).await? } else { Vec::new() };
    Ok(FeedView {
        first: head.first_sequence,
        next: head.next_sequence,
        deleted: head.status == GroupStatus::Deleted,
        gone: false,
        entries,
    })
}

fn queue_limits(limits: &Limits) -> QueueLimits {
    QueueLimits {
        own_entries_max: limits.own_entries_max,
        own_welcomes_max: limits.own_welcomes_max,
        subscriptions_max: limits.subscriptions_max,
    }
}

const IDLE: &str = "idle";
const INBOX_PAGE: Page = Page { items_max: 256, bytes_max: PAGE_BYTES };
const OWN_PAGE: usize = 64;
const FEED_PAGE: usize = 64;
const PAGE_BYTES: usize = 512 * 1024;
const BUSY_RETRY_MS: u64 = 500;
/// How long a feed that cannot be read is left alone, unless its group grows or a session begins.
const FEED_RETRY: Duration = Duration::from_secs(30);
