//! Every bound of the node, with its default. What happens at each is said with it.

use super::{moves::MoveLimits, peers::PeerLimits};
use crate::rate::OverloadSettings;

/// Plain numbers; the configuration overrides them by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How long what is taken up may have waited; beyond: unavailable, by worth.
    pub overload: OverloadSettings,

    /// How far a message's timestamp may be from our clock; beyond: stale_request.
    pub clock_skew_ms: u64,
    /// Nonces remembered of one client within the window of [`Self::clock_skew_ms`]; beyond, and beyond what a user may have of
    /// [`Self::nonces_max`] (see [`super::nonces`]): rate_limited.
    pub nonces_per_client_max: usize,
    /// Nonces remembered in all; beyond: rate_limited.
    pub nonces_max: usize,

    /// Devices of one user at a time; beyond: not_authorized.
    pub devices_per_user_max: usize,
    /// Consent tokens of one user; beyond: too_large.
    pub consents_per_user_max: usize,

    /// KeyPackages in one request; beyond: too_large.
    pub key_packages_per_request_max: usize,
    /// KeyPackages of class group that one client may have waiting (last-resort ones aside); beyond: too_large.
    pub group_key_packages_max: usize,
    /// KeyPackages of class connection that one client may have waiting; beyond: too_large.
    pub connection_key_packages_max: usize,
    /// Longest lifetime of a KeyPackage, in seconds; beyond: invalid_key_package.
    pub key_package_lifetime_max_s: u64,
    /// So many group KeyPackages left: the client is told (key_packages_low).
    pub key_packages_low_at: u32,
    /// KeyPackages that one user may fetch in an hour; beyond: rate_limited.
    pub key_package_fetches_per_hour: u32,
    /// KeyPackage fetches of all users of another provider together in an hour; beyond: rate_limited.
    pub key_package_fetches_per_peer_per_hour: u32,
    /// KeyPackage fetches that one user may be the target of in an hour, of group KeyPackages those with the user's consent; one
    /// user may make a tenth of them, another provider half (at least one); beyond: rate_limited.
    pub key_package_targets_per_hour: u32,

    /// In an hour: connection offers that the clients of one user may leave for those of another, that all users of
    /// another provider may leave for one user, and requests of one user to another provider; beyond: rate_limited. An offer
    /// counts once more for each 8 KiB of it.
    pub connection_offers_per_hour: u32,

    /// Tokens in one request (the wire's count is a byte); beyond: too_large.
    pub tokens_per_request_max: u8,
    /// Groups that one last-resort token may be bound to; beyond it is refused.
    pub last_resort_bindings_max: usize,

    /// Entries that a client's own feed may hold unacknowledged before requests and notices for it are refused
    /// (queue_full) or dropped. Connection requests get nine tenths of it: strangers leave room for notices.
    pub own_entries_max: usize,
    /// The same for Welcomes: beyond, a group's feed begins with `gap` in place of its Welcome.
    pub own_welcomes_max: usize,
    /// Bytes that may be left for one client (by other providers: Welcomes, changes of its groups; by anybody: what is for it
    /// alone) before it reads them; the items of groups are bounded by [`Self::own_welcomes_max`]. Beyond, other providers'
    /// groups are told that the client's queue is gone, and who leaves something for it alone is told queue_full. For
    /// these it counts also what the client has taken and not acknowledged.
    pub inbox_bytes_max: usize,
    /// The same of what one other provider may leave for one client, its groups and single messages together, so that none uses
    /// up what others are to have. What users of this provider leave for one client alone has one such share.
    pub inbox_bytes_per_hub_max: usize,
    pub inbox_items_per_hub_max: usize,
    /// Groups that one client may be in; beyond, the group is told that the client's queue is gone.
    pub subscriptions_max: usize,
    /// Queue actors at a time; beyond: unavailable.
    pub queue_actors_max: usize,
    /// How long another provider may take to answer what a client asks of it; beyond: unavailable.
    pub relay_timeout_ms: u64,
    /// Requests of clients that wait for one other provider at a time; beyond: unavailable.
    pub relays_per_peer_max: usize,
    /// Requests that one queue actor has in hand; beyond: rate_limited.
    pub queue_requests_max: usize,
    /// A queue actor without a client this long is passivated.
    pub queue_idle_ms: u64,
    /// Acknowledgements are persisted at latest this long after they came.
    pub ack_persist_ms: u64,
    /// Unacknowledged bytes of a stream: what a client asks for is cut to this.
    pub window_bytes_max: u32,
    /// The least window of a stream: what a client asks for is raised to this.
    pub window_bytes_min: u32,
    /// Entries in one answer of a long poll: what a client asks for is cut to this.
    pub dequeue_entries_max: u32,
    /// Bytes in one answer of a long poll; one entry is always given.
    pub dequeue_bytes_max: usize,
    /// Longest wait of a long poll: what a client asks for is cut to this.
    pub dequeue_wait_ms_max: u32,

    /// Copies of groups that one hub may have here, and what their logs and rosters may take together; beyond: queue_full.
    pub copies_per_hub_max: usize,
    pub copy_bytes_per_hub_max: u64,

    /// Of what is sent to other providers.
    pub peers: PeerLimits,
    /// Groups that come and go.
    pub moves: MoveLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            overload: OverloadSettings::default(),
            clock_skew_ms: 5 * 60 * 1000,
            nonces_per_client_max: 20_000,
            nonces_max: 2_000_000,
            devices_per_user_max: 32,
            consents_per_user_max: 10_000,
            key_packages_per_request_max: 200,
            group_key_packages_max: 500,
            connection_key_packages_max: 100,
            key_package_lifetime_max_s: 100 * 24 * 3600,
            key_packages_low_at: 10,
            key_package_fetches_per_hour: 2_000,
            key_package_fetches_per_peer_per_hour: 50_000,
            key_package_targets_per_hour: 500,
            connection_offers_per_hour: 100,
            tokens_per_request_max: 200,
            last_resort_bindings_max: 16,
            own_entries_max: 1_000,
            own_welcomes_max: 5_000,
            inbox_bytes_max: 16 << 20,
            inbox_bytes_per_hub_max: 4 << 20,
            inbox_items_per_hub_max: 1_250,
            subscriptions_max: 10_000,
            queue_actors_max: 200_000,
            relay_timeout_ms: 15_000,
            relays_per_peer_max: 128,
            queue_requests_max: 16,
            queue_idle_ms: 60_000,
            ack_persist_ms: 5_000,
            window_bytes_max: 8 * 1024 * 1024,
            window_bytes_min: 64 * 1024,
            dequeue_entries_max: 1_000,
            dequeue_bytes_max: 4 * 1024 * 1024,
            dequeue_wait_ms_max: 55_000,
            copies_per_hub_max: 20_000,
            copy_bytes_per_hub_max: 16 * 1024 * 1024 * 1024,
            peers: PeerLimits::default(),
            moves: MoveLimits::default(),
        }
    }
}
