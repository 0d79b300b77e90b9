//! All that a listener may ask for. The methods are in the services' own files, as `impl Node` blocks.

use std::{ops::Deref, sync::Arc};

use super::{
    arbiters::ArbiterPool,
    arrivals::Arrivals,
    clock::{Clock, Started},
    copies::Copies,
    deliver::Offers,
    departures::Departures,
    groups::{GroupOptions, Groups},
    hints::Hints,
    hub_keys::of_providers,
    key_packages::Fetches,
    limits::Limits,
    live::Live,
    metrics::Metrics,
    nonces::Nonces,
    overload::{Admission, AdmissionCollector},
    peers::{PeerCollector, Peers},
    pulse::Pulse,
    queue::Queues,
    relay::Relays,
    turns::Turns,
};
use crate::{
    account::Registration,
    federation::{DomainPattern, Federation},
    queue::token::TokenKeys,
    rate::OverloadSettings,
    store::SharedStore,
    wire::ids::{ClientUri, Domain, UserUri},
};

pub use crate::federation::ProviderKey;

/// One provider's node. Clones are the same node.
#[derive(Clone)]
pub struct Node(Arc<NodeInner>);

/// What a node is made of.
pub struct NodeParts {
    pub domain: Domain,
    pub store: SharedStore,
    pub clock: Arc<dyn Clock>,
    pub limits: Limits,
    pub groups: GroupOptions,
    pub registration: Registration,
    /// Boxes of queue tokens: the first makes new ones, all open.
    pub token_keys: TokenKeys,
    /// The hub's keys, of which one of each scheme is in every group's `external_senders`; the newest is in new groups.
    pub external_senders: Vec<ProviderKey>,
    pub metrics: Metrics,
    pub arbiters: ArbiterPool,
    /// None: this provider does not speak with others.
    pub federation: Option<Arc<Federation>>,
}

pub struct NodeInner {
    pub(crate) domain: Domain,
    pub(crate) store: SharedStore,
    pub(crate) clock: Arc<dyn Clock>,
    /// What was signed before this is refused: its nonce may have been seen by the process before.
    pub(crate) started: Started,
    pub(crate) limits: Live<Limits>,
    pub(crate) groups: Groups,
    pub(crate) registration: Live<Registration>,
    pub(crate) token_keys: TokenKeys,
    pub(crate) metrics: Metrics,
    pub(crate) arbiters: ArbiterPool,
    pub(crate) hints: Hints,
    pub(crate) queues: Queues,
    pub(crate) nonces: Nonces,
    pub(crate) fetches: Fetches,
    pub(crate) offers: Offers,
    /// Who leaves something for a client alone.
    pub(super) leaving: Turns<ClientUri>,
    /// Who changes what a user consents to.
    pub(super) consenting: Turns<UserUri>,
    pub(crate) federation: Option<Arc<Federation>>,
    pub(super) admission: Admission,
    pub(super) copies: Copies,
    pub(crate) relays: Relays,
    pub(crate) info_relays: Relays,
    pub(crate) peers: Peers,
    pub(crate) departures: Departures,
    pub(crate) arrivals: Arrivals,
}

impl Node {
    #[must_use]
    pub fn new(parts: NodeParts) -> Self {
        let hints = Hints::new(parts.metrics.clone(), !parts.arbiters.is_inline());
        let keys = of_providers(&parts.external_senders);
        let node = Self(Arc::new(NodeInner {
            groups: Groups::new(parts.groups, keys),
            started: Started::at(parts.clock.now()),
            nonces: Nonces::new(&parts.limits),
            fetches: Fetches::new(&parts.limits),
            offers: Offers::new(&parts.limits),
            leaving: Turns::default(),
            consenting: Turns::default(),
            queues: Queues::new(),
            federation: parts.federation,
            admission: Admission::new(
                overload(&parts.limits, &parts.arbiters),
                parts.arbiters.threads(),
            ),
            copies: Copies::default(),
            relays: Relays::default(),
            info_relays: Relays::default(),
            peers: Peers::new(parts.limits.peers.clone()),
            departures: Departures::new(&parts.limits.moves),
            arrivals: Arrivals::default(),
            hints,
            domain: parts.domain,
            store: parts.store,
            clock: parts.clock,
            limits: Live::new(parts.limits),
            registration: Live::new(parts.registration),
            token_keys: parts.token_keys,
            metrics: parts.metrics,
            arbiters: parts.arbiters,
        }));
        let weak = Arc::downgrade(&node.0);
        node.hints.on_notice(move |group| {
            if let Some(inner) = weak.upgrade() {
                Self(inner).wake_group(group);
            }
        });
        let weak = Arc::downgrade(&node.0);
        node.hints.on_outbound(move |peer, group, until| {
            if let Some(inner) = weak.upgrade() {
                Self(inner).wake_peer(peer, group, until);
            }
        });
        let collector = PeerCollector::new(Arc::clone(&node.peers.board), Arc::clone(&node.clock));
        node.metrics.collect("peers", collector);
        let collector = AdmissionCollector::new(node.admission.clone());
        node.metrics.collect("admission", collector);
        let collector = node.departures.collector(Arc::clone(&node.clock));
        node.metrics.collect("groups that leave", collector);
        let collector = node.groups.waiting.collector(
            (
                "mimid_groups_with_pending_proposals",
                "Active groups in which a proposal waits for a commit.",
            ),
            (
                "mimid_group_pending_oldest_seconds",
                "How long the oldest proposal of them all has waited; 0 where none waits.",
            ),
            Arc::clone(&node.clock),
        );
        node.metrics.collect("pending proposals", collector);
        let collector = node.queues.waiting.collector(
            (
                "mimid_queues_with_unacknowledged",
                "Active queues of which something was handed out and not acknowledged.",
            ),
            (
                "mimid_queue_oldest_unacknowledged_seconds",
                "How long ago the oldest entry that was handed out and not acknowledged was accepted; 0 where there is none.",
            ),
            Arc::clone(&node.clock),
        );
        node.metrics.collect("what is not acknowledged", collector);
        node
    }

    /// From now on these bounds hold, as far as they are looked at while the node runs: those of a group's rules
    /// ([`GroupOptions::settings`]), of peers ([`Limits::peers`]) and what is made once are as the node began.
    pub fn replace_limits(&self, limits: Limits, groups: GroupOptions, registration: Registration) {
        self.nonces.resize(limits.nonces_max);
        self.offers.set_max(limits.connection_offers_per_hour);
        self.hub().rates.replace(groups.rates);
        self.admission.set(overload(&limits, &self.arbiters));
        self.limits.replace(limits);
        self.groups.options.replace(groups);
        self.registration.replace(registration);
    }

    /// From now on these lists say with which other providers this one speaks; `allow`, where it is none: with all.
    pub fn speak_with(&self, allow: Option<Vec<DomainPattern>>, deny: Vec<DomainPattern>) {
        if let Some(federation) = &self.federation {
            federation.speak_with(allow, deny);
        }
    }

    /// Whether clients of `peer` may be in groups hosted here.
    #[must_use]
    pub fn speaks_with(&self, peer: &Domain) -> bool {
        let admits = |federation: &Arc<Federation>| federation.admits(peer);
        *peer == self.domain || self.federation.as_ref().is_some_and(admits)
    }

    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.0.domain
    }

    /// The store's counters.
    #[must_use]
    pub fn store_stats(&self) -> crate::store::StoreStats {
        self.0.store.stats()
    }

    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Who is let in while there is more to do than can be done.
    /// Which of the node's threads turn; a thread that serves it beside its own joins here.
    #[must_use]
    pub fn pulse(&self) -> &Pulse {
        self.arbiters.pulse()
    }

    #[must_use]
    pub fn admission(&self) -> &Admission {
        &self.0.admission
    }

    #[must_use]
    pub fn hints(&self) -> &Hints {
        &self.0.hints
    }
}

/// Where all runs on one thread by a told time nothing waits.
fn overload(limits: &Limits, arbiters: &ArbiterPool) -> OverloadSettings {
    if arbiters.is_inline() { OverloadSettings { delay_max: None } } else { limits.overload }
}

impl Deref for Node {
    type Target = NodeInner;
    fn deref(&self) -> &NodeInner {
        &self.0
    }
}
