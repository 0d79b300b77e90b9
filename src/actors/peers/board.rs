//! What operators see of peers: states, and metrics with a bounded number of names.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use prometheus::{
    IntCounterVec, IntGaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::{
    actors::{clock::Clock, hints::locked},
    federation::{outbox::SetAside, schedule::CircuitState},
    wire::ids::{Domain, GroupId, Timestamp},
};

/// One peer, as an operator sees it. Counters are of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerState {
    pub peer: Domain,
    /// Whether something is being done about it: it has a place among those that are sent to.
    pub active: bool,
    /// Items that it is still to get, and of how many groups.
    pub items: u64,
    pub groups: u64,
    /// There may be more of them, and older ones: not everything that the store holds was looked at yet.
    pub at_least: bool,
    /// When the oldest of them was accepted.
    pub oldest_at: Option<Timestamp>,
    pub circuit: CircuitState,
    /// When it is tried next, where it has failed.
    pub next_attempt_at: Option<Timestamp>,
    /// It gets its messages one by one, for each of its clients.
    pub direct: bool,
    pub groups_set_aside: usize,
    /// Some of those.
    pub set_aside: Vec<StuckGroup>,
    /// The last failure since something succeeded.
    pub problem: Option<String>,
    pub items_delivered: u64,
    pub failures: BTreeMap<&'static str, u64>,
    /// Metrics have it under its own name.
    named: bool,
    /// What its actor knows of, which is everything where it says so.
    loaded: Waiting,
    /// What the store held in a round.
    stored: Option<(u64, Waiting)>,
}

/// What waits for a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::actors) struct Waiting {
    pub groups: u64,
    pub items: u64,
    pub oldest_at: Option<Timestamp>,
    pub is_all: bool,
}

/// A group that a peer did not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StuckGroup {
    pub group: GroupId,
    pub set_aside: SetAside,
}

impl PeerState {
    fn new(peer: Domain, named: bool) -> Self {
        Self {
            peer,
            named,
            active: false,
            items: 0,
            groups: 0,
            at_least: false,
            oldest_at: None,
            circuit: CircuitState::Closed,
            next_attempt_at: None,
            direct: false,
            groups_set_aside: 0,
            set_aside: Vec::new(),
            problem: None,
            items_delivered: 0,
            failures: BTreeMap::new(),
            loaded: Waiting::default(),
            stored: None,
        }
    }

    /// What the peer's actor knows of. Where that is all, it is newer than what was seen in the store.
    pub(in crate::actors) fn loaded(&mut self, loaded: Waiting) {
        self.loaded = loaded;
        if loaded.is_all {
            self.stored = None;
        }
        self.settle();
    }

    fn stored(&mut self, stored: Option<(u64, Waiting)>) {
        if self.active && self.loaded.is_all {
            return;
        }
        if !self.active {
            self.loaded = Waiting::default();
        }
        self.stored = stored;
        self.settle();
    }

    fn settle(&mut self) {
        let (loaded, stored) = (self.loaded, self.stored.map(|(_, stored)| stored));
        let of_store = stored.unwrap_or_default();
        self.items = loaded.items.max(of_store.items);
        self.groups = loaded.groups.max(of_store.groups);
        self.oldest_at = loaded.oldest_at.into_iter().chain(of_store.oldest_at).min();
        self.at_least = match (self.active, stored) {
            _ if loaded.is_all => false,
            (_, Some(stored)) => !stored.is_all,
            (active, None) => active,
        };
    }
}

/// The peers that this process has had to do with. Beyond its bound those go first that nothing is done about.
///
/// In metrics the first ones have names of their own and keep them, all others are one: a counter that went from one name to another
/// would look like something that has just happened.
pub(in crate::actors) struct Board {
    states: Mutex<States>,
    metrics_peers_max: usize,
}

#[derive(Default)]
struct States {
    peers: BTreeMap<Domain, PeerState>,
    /// So many of them are named.
    named: usize,
    /// What those without a name had counted that are gone: the counters of all others together go on.
    gone: Counted,
}

#[derive(Debug, Clone, Default)]
struct Counted {
    items_delivered: u64,
    failures: BTreeMap<&'static str, u64>,
}

impl States {
    fn forget(&mut self, peer: &Domain) {
        let Some(state) = self.peers.remove(peer) else { return };
        if state.named {
            self.named -= 1;
            return;
        }
        self.gone.items_delivered += state.items_delivered;
        for (kind, count) in state.failures {
            *self.gone.failures.entry(kind).or_default() += count;
        }
    }
}

impl Board {
    pub(super) fn new(metrics_peers_max: usize) -> Self {
        Self { states: Mutex::default(), metrics_peers_max }
    }

    pub(in crate::actors) fn update(&self, peer: &Domain, update: impl FnOnce(&mut PeerState)) {
        let mut states = locked(&self.states);
        if !states.peers.contains_key(peer) {
            if states.peers.len() >= PEERS_MAX {
                let idle = states.peers.values().filter(|state| !state.active);
                let idle = idle.min_by_key(|state| state.named).map(|it| it.peer.clone());
                match idle {
                    Some(idle) => states.forget(&idle),
                    None => return,
                }
            }
            let named = states.named < self.metrics_peers_max;
            states.named += usize::from(named);
            states.peers.insert(peer.clone(), PeerState::new(peer.clone(), named));
        }
        if let Some(state) = states.peers.get_mut(peer) {
            update(state);
        }
    }

    /// A round of the store saw what waits for `peer`, all of it or some.
    pub(super) fn waits(&self, peer: &Domain, round: u64, waiting: &Waiting) {
        self.update(peer, |state| match state.stored {
            // what the round before saw whole is shown until this one has seen as much
            Some((before, seen)) if before < round && !waiting.is_all => {
                let groups = seen.groups.max(waiting.groups);
                let items = seen.items.max(waiting.items);
                let oldest_at = seen.oldest_at.into_iter().chain(waiting.oldest_at).min();
                let is_all = waiting.is_all;
                state.stored(Some((before, Waiting { groups, items, oldest_at, is_all })));
            }
            _ => state.stored(Some((round, *waiting))),
        });
    }

    /// A round is over: nothing waits for those that it did not come by.
    pub(super) fn round_ends(&self, round: u64) {
        let mut states = locked(&self.states);
        for state in states.peers.values_mut() {
            let came_by = state.stored.is_some_and(|(of, _)| of == round);
            if !came_by {
                state.stored(None);
            }
        }
    }

    pub(super) fn states(&self) -> Vec<PeerState> {
        locked(&self.states).peers.values().cloned().collect()
    }

    fn gone(&self) -> Counted {
        locked(&self.states).gone.clone()
    }
}

/// Makes metrics of the board when they are asked for.
pub(in crate::actors) struct PeerCollector {
    board: Arc<Board>,
    clock: Arc<dyn Clock>,
    vectors: Vectors,
    /// Who collects has the vectors alone.
    collecting: Mutex<()>,
}

struct Vectors {
    items: IntGaugeVec,
    groups: IntGaugeVec,
    oldest: IntGaugeVec,
    behind: IntGaugeVec,
    set_aside: IntGaugeVec,
    circuit: IntGaugeVec,
    delivered: IntCounterVec,
    failures: IntCounterVec,
}

impl PeerCollector {
    /// # Errors
    /// Where a name is not one of Prometheus'.
    pub(in crate::actors) fn new(
        board: Arc<Board>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["peer"]);
        let counter =
            |name: &str, help: &str, by: &[&str]| IntCounterVec::new(Opts::new(name, help), by);
        let vectors = Vectors {
            items: gauge(
                "mimid_peer_outbox_items",
                "Items that a peer is still to get. Of many groups a lower bound, until all were looked at.",
            )?,
            groups: gauge(
                "mimid_peer_outbox_groups",
                "Groups that a peer is still to get something of; a lower bound as the items are.",
            )?,
            oldest: gauge(
                "mimid_peer_oldest_undelivered_seconds",
                "Age of the oldest item that a peer is still to get; 0 where there is none.",
            )?,
            behind: gauge(
                "mimid_peer_behind_seconds",
                "Age of the oldest item that a peer which is sent to is still to get; 0 where there is none, or the peer is left alone for a while.",
            )?,
            set_aside: gauge(
                "mimid_peer_groups_set_aside",
                "Groups that a peer did not take and gets nothing of for now.",
            )?,
            circuit: gauge(
                "mimid_peer_circuit",
                "0: the peer is sent to; 1: one request probes whether it is back; 2: it is left alone for a while. \
                 Of several peers together: the highest.",
            )?,
            delivered: counter(
                "mimid_peer_delivered_items_total",
                "Items that a peer has taken.",
                &["peer"],
            )?,
            failures: counter(
                "mimid_peer_failures_total",
                "Requests to a peer that failed, and groups that it did not take, by kind.",
                &["peer", "kind"],
            )?,
        };
        Ok(Self { board, clock, vectors, collecting: Mutex::new(()) })
    }
}

impl Vectors {
    fn gauges(&self) -> [&IntGaugeVec; 6] {
        let Self { items, groups, oldest, behind, set_aside, circuit, .. } = self;
        [items, groups, oldest, behind, set_aside, circuit]
    }

    fn counters(&self) -> [&IntCounterVec; 2] {
        [&self.delivered, &self.failures]
    }

    fn each(&self) -> impl Iterator<Item = &dyn Collector> {
        let gauges = self.gauges().into_iter().map(|it| -> &dyn Collector { it });
        gauges.chain(self.counters().into_iter().map(|it| -> &dyn Collector { it }))
    }

    fn add(&self, label: &str, state: &PeerState, now: Timestamp) {
        let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let raise = |vector: &IntGaugeVec, value: i64| {
            let gauge = vector.with_label_values(&[label]);
            gauge.set(gauge.get().max(value));
        };
        self.items.with_label_values(&[label]).add(whole(state.items));
        self.groups.with_label_values(&[label]).add(whole(state.groups));
        self.set_aside.with_label_values(&[label]).add(whole(state.groups_set_aside as u64));
        let oldest = whole(state.oldest_at.map_or(0, |at| now.ms_since(at) / 1000));
        raise(&self.oldest, oldest);
        let is_sent_to = state.circuit == CircuitState::Closed;
        raise(&self.behind, if is_sent_to { oldest } else { 0 });
        raise(
            &self.circuit,
            match state.circuit {
                CircuitState::Closed => 0,
                CircuitState::HalfOpen => 1,
                CircuitState::Open => 2,
            },
        );
        self.count(label, state.items_delivered, &state.failures);
    }

    fn count(&self, label: &str, delivered: u64, failures: &BTreeMap<&'static str, u64>) {
        self.delivered.with_label_values(&[label]).inc_by(delivered);
        for (kind, count) in failures {
            self.failures.with_label_values(&[label, kind]).inc_by(*count);
        }
    }
}

impl Collector for PeerCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.vectors.each().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let now = self.clock.now();
        let _alone = locked(&self.collecting);
        let vectors = &self.vectors;
        vectors.gauges().into_iter().for_each(IntGaugeVec::reset);
        vectors.counters().into_iter().for_each(IntCounterVec::reset);
        for state in &self.board.states() {
            vectors.add(if state.named { state.peer.as_str() } else { OTHER }, state, now);
        }
        let Counted { items_delivered, failures } = self.board.gone();
        if items_delivered > 0 || !failures.is_empty() {
            vectors.count(OTHER, items_delivered, &failures);
        }
        vectors.each().flat_map(Collector::collect).collect()
    }
}

/// All peers without a name of their own.
const OTHER: &str = "other";
const PEERS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::clock::ManualClock;

    #[test]
    fn the_number_of_names_in_metrics_is_bounded() {
        let board = Arc::new(Board::new(2));
        for (name, items) in [("c", 1), ("a", 2), ("d", 4), ("b", 8)] {
            board.update(&Domain::new(format!("{name}.example")).unwrap(), |state| {
                state.items = items;
                state.items_delivered = items;
                state.oldest_at = Some(Timestamp(1_000 * items));
                if name == "d" {
                    state.circuit = CircuitState::Open;
                }
                *state.failures.entry("timeout").or_default() += 1;
            });
        }
        let clock = Arc::new(ManualClock::at(Timestamp(9_000)));
        let collector = PeerCollector::new(board, clock).unwrap();
        let seen = || -> Vec<(String, String, i64)> {
            let mut seen = Vec::new();
            for family in collector.collect() {
                for metric in family.get_metric() {
                    let label = metric.get_label().iter().find(|label| label.name() == "peer");
                    let value = match metric.get_gauge().get_value() {
                        0.0 => metric.get_counter().get_value(),
                        value => value,
                    };
                    let label = label.unwrap().value().to_owned();
                    seen.push((family.name().to_owned(), label, value as i64));
                }
            }
            seen
        };
        let mut first = seen();
        let of = |name: &str| -> Vec<(&str, i64)> {
            let of = first.iter().filter(|(family, _, _)| family == name);
            let mut of: Vec<_> = of.map(|(_, peer, value)| (peer.as_str(), *value)).collect();
            of.sort_unstable();
            of
        };
        assert_eq!(
            of("mimid_peer_outbox_items"),
            [("a.example", 2), ("c.example", 1), ("other", 12)]
        );
        assert_eq!(
            of("mimid_peer_oldest_undelivered_seconds"),
            [("a.example", 7), ("c.example", 8), ("other", 5)]
        );
        // one that is dead hides no other that is behind
        assert_eq!(
            of("mimid_peer_behind_seconds"),
            [("a.example", 7), ("c.example", 8), ("other", 1)]
        );
        assert_eq!(of("mimid_peer_circuit").last(), Some(&("other", 2)));
        assert_eq!(of("mimid_peer_failures_total").last(), Some(&("other", 2)));
        let mut again = seen();
        again.sort();
        first.sort();
        assert_eq!(again, first, "asking again counts nothing twice");
    }

    #[test]
    fn no_counter_goes_from_one_name_to_another_and_none_goes_back() {
        let board = Arc::new(Board::new(2));
        let counts = |name: &str| {
            board.update(&Domain::new(name).unwrap(), |state| {
                state.items_delivered += 1;
                state.active = name.starts_with('b');
            });
        };
        let clock = Arc::new(ManualClock::at(Timestamp(9_000)));
        let collector = PeerCollector::new(Arc::clone(&board), clock).unwrap();
        let delivered = || -> BTreeMap<String, u64> {
            let families = collector.collect();
            let of = families.iter().find(|it| it.name() == "mimid_peer_delivered_items_total");
            let of = of.unwrap().get_metric().iter();
            of.map(|it| (it.get_label()[0].value().to_owned(), it.get_counter().get_value() as u64))
                .collect()
        };
        let is = |of: [(&str, u64); 3]| of.map(|(name, count)| (name.to_owned(), count)).into();
        for name in ["b.example", "c.example", "d.example", "a.example"] {
            counts(name);
        }
        assert_eq!(delivered(), is([("b.example", 1), ("c.example", 1), ("other", 2)]));
        // all places are taken: those go that have no name, and what they counted stays
        for more in 4..PEERS_MAX + 3 {
            counts(&format!("x{more}.example"));
        }
        let others = (PEERS_MAX + 3 - 2) as u64;
        assert_eq!(board.states().len(), PEERS_MAX);
        assert_eq!(delivered(), is([("b.example", 1), ("c.example", 1), ("other", others)]));
    }

    #[test]
    fn what_an_actor_knows_counts_for_more_than_what_was_seen_before() {
        let (board, peer) = (Board::new(2), Domain::new("b.example").unwrap());
        let shown = || {
            let state = board.states().remove(0);
            (state.groups, state.items, state.at_least)
        };
        let waiting = |groups, is_all| {
            let oldest_at = Some(Timestamp(groups));
            Waiting { groups, items: 2 * groups, oldest_at, is_all }
        };
        board.waits(&peer, 0, &waiting(3, false));
        assert_eq!(shown(), (3, 6, true));
        board.waits(&peer, 0, &waiting(9, true));
        assert_eq!(shown(), (9, 18, false));
        // the next round begins with less, and does not forget the rest meanwhile
        board.waits(&peer, 1, &waiting(2, false));
        assert_eq!(shown(), (9, 18, true));
        board.waits(&peer, 1, &waiting(4, true));
        assert_eq!(shown(), (4, 8, false));
        board.update(&peer, |state| {
            state.active = true;
            state.loaded(waiting(5, false));
        });
        assert_eq!(shown(), (5, 10, false));
        board.update(&peer, |state| state.loaded(waiting(1, true)));
        board.waits(&peer, 2, &waiting(7, true));
        assert_eq!(shown(), (1, 2, false), "it knows better");
        board.update(&peer, |state| state.active = false);
        board.round_ends(3);
        assert_eq!(shown(), (0, 0, false));
    }
}
