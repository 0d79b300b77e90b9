//! What bounds a listener. Everything that a stranger can open, send or keep waiting is counted here.

use std::time::Duration;

use crate::rate::Quota;

/// The bounds of a listener. `Default` is what a provider of some thousand clients wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Threads that serve HTTP.
    pub workers: usize,
    /// Open connections, all workers together. More wait in the backlog.
    pub connections_max: usize,
    /// Open connections of one address; one more is closed.
    pub connections_per_address_max: usize,
    /// Whether what comes from loopback is a proxy that stands for many, and no address that is counted.
    pub loopback_is_proxy: bool,
    /// Connections that the operating system keeps while none is accepted.
    pub backlog: u32,
    /// Requests that are being worked on; one more is answered `unavailable`.
    pub requests_max: usize,
    /// Long polls and streams together; one more is answered `unavailable`.
    pub waiting_max: usize,
    /// Requests of one address; one more is `rate_limited`.
    pub requests_per_address: Quota,
    /// The largest body of any request. Endpoints with small requests have smaller limits of their own.
    pub request_bytes_max: usize,
    /// Memory for request bodies above `SMALL_BODY_BYTES`, all requests together. Small ones have as much again.
    pub bodies_bytes_max: usize,
    /// Memory for answers above `SMALL_BODY_BYTES` that are not sent yet; one more is `unavailable` instead.
    pub answers_bytes_max: usize,
    /// From the connection's (or the last answer's) end to a complete TLS handshake or request head.
    pub header_timeout: Duration,
    /// From the request head to the last byte of its body.
    pub body_timeout: Duration,
    /// From the last byte of the body to the answer; a long poll's waiting comes on top.
    pub answer_timeout: Duration,
    /// How long a peer may read nothing of what it is sent; after that it is to read at a least rate.
    pub read_timeout: Duration,
    /// How long a connection may be idle between requests.
    pub keep_alive: Duration,
    /// The longest that a long poll waits, whatever it asks for.
    pub poll_max: Duration,
    /// From a stream's start to its first frame.
    pub stream_open_timeout: Duration,
    /// Between two pings on a stream. It is closed when two stay unanswered.
    pub stream_ping: Duration,
    /// How long a client may leave a frame unread before its stream is cut.
    pub stream_stall: Duration,
    /// A request that this provider has had in hand for so long is in the log, with where the time went; none: never.
    pub slow_after: Option<Duration>,
    /// How long requests in flight may take to end when the node stops.
    pub drain_timeout: Duration,
}

/// The bounds of the federation listener.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FederationLimits {
    /// What it has as every listener.
    pub shared: Limits,
    /// Requests of one provider that are being worked on; one more is answered `unavailable`. 0: as many as in all.
    pub requests_per_peer_max: usize,
    /// Requests of one provider; one more is `rate_limited`.
    pub requests_per_peer: Quota,
}

/// Bodies up to this size are not counted with the large ones.
pub const SMALL_BODY_BYTES: usize = 64 * 1024;

impl Default for Limits {
    fn default() -> Self {
        Self {
            workers: 2,
            connections_max: 10_000,
            connections_per_address_max: 1000,
            loopback_is_proxy: true,
            backlog: 1024,
            requests_max: 512,
            waiting_max: 10_000,
            requests_per_address: Quota { per_second: 200, burst: 1000 },
            request_bytes_max: 4 * 1024 * 1024 + 128 * 1024,
            bodies_bytes_max: 256 * 1024 * 1024,
            answers_bytes_max: 256 * 1024 * 1024,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            answer_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(75),
            poll_max: Duration::from_secs(60),
            stream_open_timeout: Duration::from_secs(5),
            stream_ping: Duration::from_secs(30),
            stream_stall: Duration::from_secs(60),
            slow_after: Some(Duration::from_secs(1)),
            drain_timeout: Duration::from_secs(20),
        }
    }
}
