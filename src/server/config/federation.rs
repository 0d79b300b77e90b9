//! What there is to say about other providers: where they are, whom to speak with, how patient to be.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use super::Bytes;
use crate::{
    actors,
    federation::{DomainPattern, discovery::ServiceHost},
    wire::ids::Domain,
};

/// Federation, which is off where nothing is listened on.
#[derive(Debug, Clone, PartialEq)]
pub struct Federation {
    /// None: this provider speaks with no other, and hosts its own users alone.
    pub listen: Option<SocketAddr>,
    /// PEM files, good for `domain_name`. None: those of the client listener.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// What `/.well-known/mimi/ds-domain` says. None: the domain, and the port that is listened on.
    pub domain_name: Option<ServiceHost>,
    /// For how long others may remember it.
    pub domain_name_cached: Duration,
    /// Where providers are that have no `/.well-known/mimi/ds-domain`, or that are not asked for it.
    pub overrides: BTreeMap<Domain, ServiceHost>,
    /// PEM files of authorities, or of single certificates, that are trusted beside the public ones.
    pub roots: Vec<PathBuf>,
    /// Empty: all that are not denied.
    pub allow: Vec<DomainPattern>,
    pub deny: Vec<DomainPattern>,
    /// Whether another provider may be at an address that is not of the public network.
    pub allow_private_addresses: bool,
    pub connect_timeout: Duration,
    /// How long a client waits for another provider's answer before it is told `unavailable`.
    pub relay_timeout: Duration,
    pub connections_max: usize,
    /// Requests of others at work at the same time, in all and of one.
    pub requests_max: usize,
    pub requests_per_peer_max: usize,
    /// Providers that are sent to at the same time.
    pub peers_max: usize,
    /// Providers whose address and keys are remembered.
    pub peers_cached_max: usize,
    pub batch_items_max: usize,
    pub batch_bytes_max: Bytes,
    pub batches_in_flight: usize,
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// Clients of a provider that has not been reached for so long are removed from groups here.
    pub unreachable_after: Duration,
    /// Copies of groups that one other provider may have here, and what is kept of all of them.
    pub copies_per_hub_max: usize,
    pub copy_bytes_per_hub_max: Bytes,
}

/// Groups that come from other providers, and that go to them.
#[derive(Debug, Clone, PartialEq)]
pub struct Migration {
    pub accept: bool,
    /// Empty: from all that this provider speaks with.
    pub sources: Vec<DomainPattern>,
    /// Groups from elsewhere that may be here.
    pub groups_max: usize,
    /// Of these, from one provider.
    pub groups_per_source_max: usize,
    /// Groups on their way elsewhere that are worked on at once.
    pub departures_max: usize,
    /// For how long this provider's word is good that it takes a group.
    pub response_lifetime: Duration,
    /// A group whose next provider cannot be reached goes on here after this.
    pub freeze_timeout: Duration,
    /// For how long it is told where a group has gone.
    pub forward_for: Duration,
    /// For how long a retired key answers for what it has promised.
    pub answer_for: Duration,
}

impl Default for Migration {
    fn default() -> Self {
        let moves = actors::MoveLimits::default();
        Self {
            accept: moves.accept,
            sources: Vec::new(),
            groups_max: moves.groups_max,
            groups_per_source_max: moves.groups_per_source_max,
            departures_max: moves.departures_max,
            response_lifetime: Duration::from_millis(moves.response_ms),
            freeze_timeout: Duration::from_millis(moves.freeze_ms),
            forward_for: Duration::from_millis(moves.forward_ms),
            answer_for: Duration::from_secs(365 * 24 * 3600),
        }
    }
}

/// What one may ask for in a second, and at once after a rest. 0 in a second: no limit.
#[derive(Debug, Clone, PartialEq)]
pub struct Rates {
    /// Requests from one address.
    pub address_per_second: u32,
    pub address_burst: u32,
    /// Requests of one provider.
    pub peer_per_second: u32,
    pub peer_burst: u32,
    /// Requests to one group, and of one member to it.
    pub group_per_second: u32,
    pub group_burst: u32,
    pub member_per_second: u32,
    pub member_burst: u32,
}

impl Federation {
    /// With whom this provider speaks, as [`crate::federation::Federation`] takes it: `allow` and `deny`.
    pub fn lists(&self) -> (Option<Vec<DomainPattern>>, Vec<DomainPattern>) {
        ((!self.allow.is_empty()).then(|| self.allow.clone()), self.deny.clone())
    }
}

impl Default for Federation {
    fn default() -> Self {
        let node = actors::Limits::default();
        let peers = node.peers;
        let (outbox, backoff) = (&peers.outbox, peers.schedule.backoff);
        Self {
            listen: None,
            certificate: None,
            key: None,
            domain_name: None,
            domain_name_cached: Duration::from_secs(3600),
            overrides: BTreeMap::new(),
            roots: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            allow_private_addresses: false,
            connect_timeout: Duration::from_secs(5),
            relay_timeout: Duration::from_secs(15),
            connections_max: 1000,
            requests_max: 256,
            requests_per_peer_max: 64,
            peers_max: peers.actors_max,
            peers_cached_max: 4096,
            batch_items_max: outbox.batch_items_max,
            batch_bytes_max: Bytes(outbox.batch_bytes_max as u64),
            batches_in_flight: outbox.batches_max,
            backoff_min: Duration::from_millis(backoff.first_ms),
            backoff_max: Duration::from_millis(backoff.max_ms),
            unreachable_after: Duration::from_millis(peers.unreachable_after_ms),
            copies_per_hub_max: node.copies_per_hub_max,
            copy_bytes_per_hub_max: Bytes(node.copy_bytes_per_hub_max),
        }
    }
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            address_per_second: 200,
            address_burst: 1000,
            peer_per_second: 500,
            peer_burst: 5000,
            group_per_second: 500,
            group_burst: 5000,
            member_per_second: 100,
            member_burst: 1000,
        }
    }
}
