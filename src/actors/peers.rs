//! The peers that are sent to: finding and starting their actors, and what operators see and do. PROTOCOL.md §3.
//!
//! What a peer is owed is in the store, as markers beside the groups' logs; a hint only makes it quick. A peer whose
//! actor could not be started (too many are at work) is found by the next sweep.
//!
//! Deliberately absent: sending (`peer`), and the rules of who gets what when (`federation::{outbox, direct, schedule}`).

mod board;
mod waiting;

use std::{
    collections::{BTreeMap, HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::{Arc, Mutex},
};

use actix::{Addr, Recipient};
use tokio::sync::oneshot;

use super::{
    arbiters::Duty,
    hints::{Woken, locked},
    node::Node,
    peer::PeerActor,
};
use crate::{
    federation::{
        direct::DirectLimits,
        outbox::OutboxLimits,
        schedule::{Backoff, ScheduleLimits},
        way::{Way, WayLimits},
    },
    store::StoreError,
    wire::ids::{Domain, GroupId, Sequence},
};
pub(super) use board::{Board, PeerCollector, Waiting};
pub use board::{PeerState, StuckGroup};

/// Bounds and times of what is sent to peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerLimits {
    pub outbox: OutboxLimits,
    pub direct: DirectLimits,
    pub schedule: ScheduleLimits,
    /// Peers that are sent to at a time. Beyond, those that cannot be reached make room for those that wait.
    pub actors_max: usize,
    /// Groups of one peer that are looked at at a time; the others wait in the store for their turn.
    pub groups_max: usize,
    /// For one request, finding the peer included.
    pub request_timeout_ms: u64,
    /// What a peer has answered for is written down at latest this long after. Losing it repeats deliveries.
    pub persist_ms: u64,
    /// An actor that has nothing to send is let go after this.
    pub idle_ms: u64,
    /// A peer that takes nothing for this long while something waits: the removal of its clients from the groups
    /// concerned is proposed.
    pub unreachable_after_ms: u64,
    /// When a peer gets its messages one by one, and when it is asked whether it takes feeds by now.
    pub way: WayLimits,
    /// Groups that one sweep looks at in the store, to tell operators what waits and to keep roster rows bounded.
    pub look_groups_max: usize,
    /// Peers with metrics of their own, by name; the rest is counted together as `other`.
    pub metrics_peers_max: usize,
}

impl Default for PeerLimits {
    fn default() -> Self {
        const MINUTE_MS: u64 = 60 * 1000;
        const DAY_MS: u64 = 24 * 60 * MINUTE_MS;
        Self {
            outbox: OutboxLimits {
                batch_items_max: 1_000,
                batch_bytes_max: 1024 * 1024,
                batch_groups_max: 64,
                batches_max: 4,
                retry: Backoff { first_ms: 1_000, max_ms: 5 * MINUTE_MS },
                stalls_max: 8,
                set_aside_retry_ms: 60 * MINUTE_MS,
            },
            direct: DirectLimits {
                requests_max: 16,
                retry: Backoff { first_ms: 5_000, max_ms: 15 * MINUTE_MS },
            },
            schedule: ScheduleLimits {
                backoff: Backoff { first_ms: 500, max_ms: 5 * MINUTE_MS },
                retry_after_ms_max: 60 * MINUTE_MS,
                failures_to_open: 3,
            },
            actors_max: 1_000,
            groups_max: 10_000,
            request_timeout_ms: 30_000,
            persist_ms: 1_000,
            idle_ms: 30_000,
            unreachable_after_ms: 30 * DAY_MS,
            way: WayLimits {
                not_found_max: 5,
                not_found_ms: 10 * MINUTE_MS,
                probe: Backoff { first_ms: 2 * MINUTE_MS, max_ms: DAY_MS },
            },
            look_groups_max: 8_192,
            metrics_peers_max: 100,
        }
    }
}

/// The peers that are sent to.
pub struct Peers {
    slots: Mutex<Slots>,
    /// The ways of peers that get single requests and have no actor now: when they are asked for feeds again. Beyond the
    /// bound they begin anew.
    ways: Mutex<HashMap<Domain, Way>>,
    look: waiting::Look,
    pub(super) board: Arc<Board>,
    pub(super) limits: PeerLimits,
}

#[derive(Default)]
struct Slots {
    active: BTreeMap<Domain, Slot>,
    next_id: u64,
    /// Somebody waits for a place.
    crowded: bool,
    draining: bool,
    /// Where the next sweep for peers that wait begins.
    after: Option<Domain>,
}

#[derive(Clone)]
struct Slot {
    addr: Addr<PeerActor>,
    ear: Arc<Ear>,
}

impl Peers {
    pub(super) fn new(limits: PeerLimits) -> Self {
        let board = Arc::new(Board::new(limits.metrics_peers_max));
        let (slots, ways) = (Mutex::new(Slots::default()), Mutex::new(HashMap::new()));
        Self { slots, ways, look: waiting::Look::new(), board, limits }
    }

    /// The way of a peer whose actor begins.
    pub(super) fn way_of(&self, peer: &Domain) -> Way {
        locked(&self.ways).remove(peer).unwrap_or_else(|| Way::new(self.limits.way))
    }

    /// Keeps the way of a peer whose actor ends.
    pub(super) fn keep_way(&self, peer: &Domain, mut way: Way) {
        let mut ways = locked(&self.ways);
        if way.is_direct() && ways.len() < WAYS_MAX {
            // what is on its way now is answered in vain
            way.probe(false);
            ways.insert(peer.clone(), way);
        }
    }

    /// Whether peers wait for a place: who cannot send now shall leave.
    pub(super) fn is_crowded(&self) -> bool {
        locked(&self.slots).crowded
    }

    /// Lets go of an actor, unless it was told something meanwhile.
    pub(super) fn leave(&self, peer: &Domain, ear: &Arc<Ear>) -> bool {
        let mut slots = locked(&self.slots);
        if ear.was_told() {
            return false;
        }
        if slots.active.get(peer).is_some_and(|slot| slot.ear.id == ear.id) {
            slots.active.remove(peer);
        }
        true
    }

    /// Lets go of an actor that has ended.
    pub(super) fn forget(&self, peer: &Domain, ear: &Arc<Ear>) {
        let mut slots = locked(&self.slots);
        if slots.active.get(peer).is_some_and(|slot| slot.ear.id == ear.id) {
            slots.active.remove(peer);
        }
    }

    /// Tells the peer's actor something, starting it where need be.
    fn tell(&self, node: &Node, peer: &Domain, tell: impl FnOnce(&mut Told)) -> Heard {
        let Some(federation) = node.federation.clone() else { return Heard::Nobody };
        // the whole under the lock: an actor leaves only where it was told nothing
        let mut slots = locked(&self.slots);
        if slots.draining {
            return Heard::Nobody;
        }
        if let Some(slot) = slots.active.get(peer).filter(|slot| slot.addr.connected()) {
            slot.ear.tell(tell);
            return Heard::Active;
        }
        if slots.active.len() >= self.limits.actors_max && !slots.active.contains_key(peer) {
            slots.crowded = true;
            return Heard::Nobody;
        }
        slots.next_id += 1;
        let ear = Arc::new(Ear::new(slots.next_id, self.limits.groups_max));
        ear.tell(tell);
        let mut hasher = DefaultHasher::new();
        peer.hash(&mut hasher);
        let (node_of, of, its) = (node.clone(), peer.clone(), Arc::clone(&ear));
        let addr = node.arbiters.start_actor_on(Duty::Deliver, hasher.finish(), move |_| {
            PeerActor::new(node_of, federation, of, its)
        });
        slots.active.insert(peer.clone(), Slot { addr, ear });
        Heard::Started
    }
}

/// Who heard what a peer's actor was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Active,
    Started,
    /// There is no place for it now, or this provider does not federate.
    Nobody,
}

impl Node {
    /// Something of a group is left for a peer, up to `until`. A hint: lost, the next sweep finds it.
    pub fn wake_peer(&self, peer: &Domain, group: &GroupId, until: Sequence) {
        self.peers.tell(self, peer, |told| told.grew(group, until));
    }

    /// Starts the actors of peers that something is left for, as many as there is place for, and lets those that are
    /// at work look at the clock. Gives the number of those that were told. To be called at start and now and then.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn sweep_peers(&self) -> Result<usize, StoreError> {
        if self.federation.is_none() {
            return Ok(0);
        }
        let begin = {
            let slots = locked(&self.peers.slots);
            slots.active.values().for_each(|slot| slot.ear.tell(|told| told.look = true));
            slots.after.clone()
        };
        let (mut after, mut wrapped) = (begin.clone(), begin.is_none());
        let (mut told, mut waiting) = (0, false);
        'sweep: loop {
            let peers = self.store.outbound_peers(after.as_ref(), PEERS_PAGE).await?;
            let Some(last) = peers.last() else {
                if wrapped {
                    break 'sweep;
                }
                (after, wrapped) = (None, true);
                continue;
            };
            after = Some(last.clone());
            for peer in peers {
                if wrapped && begin.as_ref().is_some_and(|begin| peer > *begin) {
                    break 'sweep;
                }
                let heard = self.peers.tell(self, &peer, |told| told.look = true);
                told += usize::from(heard != Heard::Nobody);
                waiting |= heard == Heard::Nobody;
                if heard == Heard::Started {
                    // who comes next begins the next sweep, so that everybody has a turn
                    locked(&self.peers.slots).after = Some(peer);
                }
            }
        }
        // until the next sweep finds nobody waiting, those who cannot send make room
        locked(&self.peers.slots).crowded = waiting;
        self.look_at_what_waits().await?;
        Ok(told)
    }

    /// Sends a group to a peer anew, beginning with a snapshot, whatever the peer had answered before. `false` where
    /// nothing of the group was ever for that peer, or the group is on its way to it at this moment.
    pub async fn requeue(&self, peer: &Domain, group: &GroupId) -> bool {
        let (tell, answer) = oneshot::channel();
        let group = group.clone();
        let heard = self.peers.tell(self, peer, move |told| told.requeue.push((group, tell)));
        heard != Heard::Nobody && answer.await.unwrap_or(false)
    }

    /// What was sent to peers since this process started and what waits, by name.
    #[must_use]
    pub fn peer_states(&self) -> Vec<PeerState> {
        self.peers.board.states()
    }

    /// Writes down what peers have answered for, and sends nothing more.
    pub async fn drain_peers(&self) {
        let slots: Vec<Slot> = {
            let mut slots = locked(&self.peers.slots);
            slots.draining = true;
            slots.active.values().cloned().collect()
        };
        for slot in slots {
            let (tell, drained) = oneshot::channel();
            slot.ear.tell(|told| told.drain.push(tell));
            // an actor that is gone has dropped its end
            drop(slot);
            let _ = drained.await;
        }
    }
}

/// One actor's ear: what it was told since it last listened, and at most one message on its way.
pub(super) struct Ear {
    id: u64,
    groups_max: usize,
    state: Mutex<EarState>,
}

#[derive(Default)]
struct EarState {
    told: Told,
    listener: Option<Recipient<Woken>>,
    is_told: bool,
}

/// What an actor was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Groups that have grown; beyond the bound it is looked up in the store.
    pub grown: BTreeMap<GroupId, Sequence>,
    pub rescan: bool,
    /// The clock may have moved.
    pub look: bool,
    pub requeue: Vec<(GroupId, oneshot::Sender<bool>)>,
    pub drain: Vec<oneshot::Sender<()>>,
}

impl Told {
    fn grew(&mut self, group: &GroupId, until: Sequence) {
        let known = self.grown.entry(group.clone()).or_default();
        *known = (*known).max(until);
    }
}

impl Ear {
    fn new(id: u64, groups_max: usize) -> Self {
        Self { id, groups_max, state: Mutex::new(EarState::default()) }
    }

    /// From now on there is somebody to tell.
    pub(super) fn listen(&self, listener: Recipient<Woken>) {
        let mut state = locked(&self.state);
        listener.do_send(Woken);
        state.is_told = true;
        state.listener = Some(listener);
    }

    fn tell(&self, tell: impl FnOnce(&mut Told)) {
        let mut state = locked(&self.state);
        tell(&mut state.told);
        if state.told.grown.len() > self.groups_max {
            state.told.grown.clear();
            state.told.rescan = true;
        }
        let EarState { listener, is_told, .. } = &mut *state;
        if let (false, Some(listener)) = (*is_told, listener) {
            listener.do_send(Woken);
            *is_told = true;
        }
    }

    fn was_told(&self) -> bool {
        locked(&self.state).is_told
    }

    /// Everything that was told since the last time.
    pub(super) fn told(&self) -> Told {
        let mut state = locked(&self.state);
        state.is_told = false;
        std::mem::take(&mut state.told)
    }
}

const PEERS_PAGE: usize = 256;
const WAYS_MAX: usize = 10_000;
