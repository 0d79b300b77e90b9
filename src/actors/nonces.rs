//! The nonces of clients' messages: within the time in which a timestamp is accepted none is taken twice. PROTOCOL.md §3.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{hints::locked, limits::Limits};
use crate::wire::ids::{ClientUri, Timestamp};

/// The nonces of late: within the window in which a timestamp is accepted none comes twice.
pub struct Nonces {
    seen: Mutex<Seen>,
    window_ms: u64,
    per_client_max: usize,
    max: AtomicUsize,
}

/// How often all nonces are looked through at the most.
const SWEPT_EVERY_MS: u64 = 5_000;

#[derive(Default)]
struct Seen {
    clients: HashMap<ClientUri, ClientNonces>,
    count: usize,
    swept_at: Timestamp,
}

/// Of one client: in the order in which they came, and to be looked for.
#[derive(Default)]
struct ClientNonces {
    nonces: VecDeque<([u8; 16], Timestamp)>,
    known: HashSet<[u8; 16]>,
}

impl ClientNonces {
    fn keep(&mut self, is_good: impl Fn(Timestamp) -> bool) {
        let Self { nonces, known } = self;
        nonces.retain(|(nonce, timestamp)| {
            let stays = is_good(*timestamp);
            if !stays {
                known.remove(nonce);
            }
            stays
        });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NonceProblem {
    Repeated,
    TooMany,
}

impl Nonces {
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            seen: Mutex::new(Seen::default()),
            window_ms: limits.clock_skew_ms,
            per_client_max: limits.nonces_per_client_max,
            max: AtomicUsize::new(limits.nonces_max),
        }
    }

    /// From now on so many are remembered in all.
    pub fn resize(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Remembers the nonce of a message that is authentic otherwise, until its timestamp alone refuses it.
    pub(super) fn insert(
        &self,
        client: &ClientUri,
        nonce: [u8; 16],
        timestamp: Timestamp,
        now: Timestamp,
    ) -> Result<(), NonceProblem> {
        let mut seen = locked(&self.seen);
        let Seen { clients, count, swept_at } = &mut *seen;
        let is_old = |timestamp: Timestamp| timestamp.plus_ms(self.window_ms) < now;
        // full of what is still good, another look a moment later finds nothing that may go
        let max = self.max.load(Ordering::Relaxed);
        let is_full = *count >= max && now.ms_since(*swept_at) > SWEPT_EVERY_MS;
        if is_full || now.ms_since(*swept_at) > self.window_ms {
            *swept_at = now;
            clients.retain(|_, of| {
                of.keep(|timestamp| !is_old(timestamp));
                !of.nonces.is_empty()
            });
            *count = clients.values().map(|of| of.nonces.len()).sum();
        }
        let ClientNonces { nonces, known } = clients.entry(client.clone()).or_default();
        while let Some((old, _)) = nonces.front().filter(|(_, timestamp)| is_old(*timestamp)) {
            known.remove(old);
            nonces.pop_front();
            *count -= 1;
        }
        if known.contains(&nonce) {
            return Err(NonceProblem::Repeated);
        }
        if nonces.len() >= self.per_client_max || *count >= max {
            return Err(NonceProblem::TooMany);
        }
        nonces.push_back((nonce, timestamp));
        known.insert(nonce);
        *count += 1;
        Ok(())
    }
}
