//! Hints: who is online and follows what, and how it is woken.
//!
//! A hint may be lost and may come too often: what it tells of is in the store, and whoever activates looks there
//! first. One call per accepted message; a thread of its own walks the followers, so a group's actor does not pay
//! for their number. Hints that wait are sets: they are bounded by the groups that are followed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use actix::{Message, Recipient};

use super::metrics::Metrics;
use crate::wire::{
    ids::{ClientUri, Domain, FeedId, GroupId, Sequence},
    queueing::FeedAck,
};

/// Wakes who is online.
pub struct Hints {
    shared: Arc<Shared>,
    /// Without a thread of their own hints are given on the caller's.
    has_thread: bool,
    metrics: Metrics,
    on_notice: OnceLock<WakeGroup>,
    on_outbound: OnceLock<WakePeer>,
}

type WakeGroup = Box<dyn Fn(&GroupId) + Send + Sync>;
type WakePeer = Box<dyn Fn(&Domain, &GroupId, Sequence) + Send + Sync>;

#[derive(Default)]
struct Shared {
    followers: Mutex<HashMap<GroupId, BTreeMap<u64, Arc<Wake>>>>,
    online: Mutex<HashMap<ClientUri, Arc<Wake>>>,
    grown: Mutex<Grown>,
    has_grown: Condvar,
}

#[derive(Default)]
struct Grown {
    groups: BTreeSet<GroupId>,
    closed: bool,
}

impl std::fmt::Debug for Hints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hints")
    }
}

impl Hints {
    #[must_use]
    pub fn new(metrics: Metrics, wants_thread: bool) -> Self {
        let shared = Arc::new(Shared::default());
        let walker = Arc::clone(&shared);
        let walk = || thread::Builder::new().name("hints".into()).spawn(move || walker.walk());
        Self {
            has_thread: wants_thread && walk().is_ok(),
            shared,
            metrics,
            on_notice: OnceLock::new(),
            on_outbound: OnceLock::new(),
        }
    }

    /// The group accepted something: one call per accepted message, whatever the group's size.
    pub fn feed_grew(&self, group: &GroupId) {
        if !locked(&self.shared.followers).contains_key(group) {
            return;
        }
        self.metrics.queue_hints.inc();
        if self.has_thread {
            locked(&self.shared.grown).groups.insert(group.clone());
            self.shared.has_grown.notify_one();
        } else {
            self.shared.wake_followers(group);
        }
    }

    /// Something was left for the client.
    pub fn inbox(&self, client: &ClientUri) {
        let wake = locked(&self.shared.online).get(client).cloned();
        if let Some(wake) = wake {
            self.metrics.queue_hints.inc();
            wake.tell(|told| told.inbox = true);
        }
    }

    /// Something was left for the group: calls what [`Self::on_notice`] was given.
    pub fn notice(&self, group: &GroupId) {
        if let Some(wake) = self.on_notice.get() {
            wake(group);
        }
    }

    /// Who wakes a group for what was left for it. Set once, by who owns the groups; later calls change nothing.
    pub fn on_notice(&self, wake: impl Fn(&GroupId) + Send + Sync + 'static) {
        let _ = self.on_notice.set(Box::new(wake));
    }

    /// Something of a hosted group is left for `peer`, up to `until`: calls what [`Self::on_outbound`] was given.
    pub fn outbound(&self, peer: &Domain, group: &GroupId, until: Sequence) {
        if let Some(wake) = self.on_outbound.get() {
            wake(peer, group, until);
        }
    }

    /// Who sends to peers. Set once, by who owns them; later calls change nothing.
    pub fn on_outbound(&self, wake: impl Fn(&Domain, &GroupId, Sequence) + Send + Sync + 'static) {
        let _ = self.on_outbound.set(Box::new(wake));
    }

    pub(super) fn go_online(&self, client: &ClientUri, wake: &Arc<Wake>) {
        locked(&self.shared.online).insert(client.clone(), Arc::clone(wake));
    }

    pub(super) fn go_offline(&self, client: &ClientUri, wake: &Arc<Wake>) {
        let mut online = locked(&self.shared.online);
        if online.get(client).is_some_and(|other| other.id == wake.id) {
            online.remove(client);
        }
    }

    pub(super) fn follow(&self, group: &GroupId, wake: &Arc<Wake>) {
        let mut followers = locked(&self.shared.followers);
        followers.entry(group.clone()).or_default().insert(wake.id, Arc::clone(wake));
    }

    pub(super) fn unfollow(&self, group: &GroupId, wake: &Arc<Wake>) {
        let mut followers = locked(&self.shared.followers);
        if let Some(of_group) = followers.get_mut(group) {
            of_group.remove(&wake.id);
            if of_group.is_empty() {
                followers.remove(group);
            }
        }
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        locked(&self.shared.grown).closed = true;
        self.shared.has_grown.notify_all();
    }
}

impl Shared {
    fn walk(&self) {
        loop {
            let mut grown = locked(&self.grown);
            while grown.groups.is_empty() {
                if grown.closed {
                    return;
                }
                grown = self.has_grown.wait(grown).unwrap_or_else(PoisonError::into_inner);
            }
            let groups = std::mem::take(&mut grown.groups);
            drop(grown);
            for group in groups {
                self.wake_followers(&group);
            }
        }
    }

    fn wake_followers(&self, group: &GroupId) {
        let followers: Vec<_> = match locked(&self.followers).get(group) {
            Some(followers) => followers.values().cloned().collect(),
            None => return,
        };
        for wake in followers {
            wake.tell(|told| {
                told.grown.insert(group.clone());
            });
        }
    }
}

/// One queue actor's ear: what it was told since it last listened, and at most one message on its way.
pub(super) struct Wake {
    pub id: u64,
    state: Mutex<WakeState>,
}

#[derive(Default)]
struct WakeState {
    told: Told,
    listener: Option<Recipient<Woken>>,
    is_told: bool,
}

/// What an actor was told. Every part is bounded: by its groups, by its feeds.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub grown: BTreeSet<GroupId>,
    pub inbox: bool,
    pub acks: BTreeMap<FeedId, Sequence>,
    /// Streams whose reader is gone.
    pub ended: Vec<u64>,
}

/// "Listen to your [`Wake`]."
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Woken;

impl Wake {
    pub fn new(id: u64) -> Arc<Self> {
        Arc::new(Self { id, state: Mutex::new(WakeState::default()) })
    }

    /// From now on there is somebody to tell.
    pub fn listen(&self, listener: Recipient<Woken>) {
        let mut state = locked(&self.state);
        listener.do_send(Woken);
        state.is_told = true;
        state.listener = Some(listener);
    }

    pub fn tell(&self, tell: impl FnOnce(&mut Told)) {
        let mut state = locked(&self.state);
        tell(&mut state.told);
        if let (false, Some(listener)) = (state.is_told, &state.listener) {
            listener.do_send(Woken);
            state.is_told = true;
        }
    }

    /// Cumulative: of several acknowledgements of one feed the highest stands. Beyond `feeds_max` feeds at once an
    /// acknowledgement is lost, which only repeats a delivery.
    pub fn acknowledge(&self, ack: FeedAck, feeds_max: usize) {
        self.tell(|told| {
            if told.acks.len() < feeds_max || told.acks.contains_key(&ack.feed) {
                let acked = told.acks.entry(ack.feed).or_default();
                *acked = (*acked).max(ack.sequence);
            }
        });
    }

    /// Everything that was told since the last time.
    pub fn told(&self) -> Told {
        let mut state = locked(&self.state);
        state.is_told = false;
        std::mem::take(&mut state.told)
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
