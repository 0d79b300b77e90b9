//! The nonces of clients' messages: within the time in which a timestamp is accepted none is taken twice. PROTOCOL.md §3.
//!
//! One that is still good is never let go for another: what it was of could be sent again. So when there are many, it is new
//! ones that are refused, of those first who have many. A user, with all devices, may have an eighth of what is free, which is a
//! twelfth of all where there is nobody else; a quarter of all is for users who have few.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{hints::locked, limits::Limits};
use crate::wire::ids::{ClientUri, Timestamp, UserUri};

/// The nonces of late: within the window in which a timestamp is accepted none comes twice.
pub struct Nonces {
    seen: Mutex<Seen>,
    window_ms: u64,
    per_client_max: usize,
    max: AtomicUsize,
}

/// How often all nonces are looked through at the most.
const SWEPT_EVERY_MS: u64 = 5_000;
/// Of what is free, one user may have one part in so many.
const SHARES: usize = 8;
/// Of all, one part in so many is for those who have few.
const RESERVES: usize = 4;
/// So many are few: enough for a client that reads, and says something now and then.
const FEW: usize = 16;

#[derive(Default)]
struct Seen {
    clients: HashMap<ClientUri, ClientNonces>,
    users: HashMap<UserUri, usize>,
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
        let is_old = |timestamp: Timestamp| timestamp.plus_ms(self.window_ms) < now;
        if now.ms_since(seen.swept_at) > self.window_ms {
            seen.sweep(now, is_old);
        }
        let user = client.user();
        let mut held = seen.held_by(client, &user, is_old);
        if seen.clients.get(client).is_some_and(|of| of.known.contains(&nonce)) {
            return Err(NonceProblem::Repeated);
        }
        let max = self.max.load(Ordering::Relaxed);
        let is_beyond = |held: Held, count| held.by_user >= share_of(count, max);
        // of what is still good another look a moment later finds nothing that may go
        if is_beyond(held, seen.count) && now.ms_since(seen.swept_at) > SWEPT_EVERY_MS {
            seen.sweep(now, is_old);
            held = seen.held_by(client, &user, is_old);
        }
        if held.by_client >= self.per_client_max || is_beyond(held, seen.count) {
            return Err(NonceProblem::TooMany);
        }
        *seen.users.entry(user).or_default() += 1;
        let ClientNonces { nonces, known } = seen.clients.entry(client.clone()).or_default();
        nonces.push_back((nonce, timestamp));
        known.insert(nonce);
        seen.count += 1;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        locked(&self.seen).count
    }
}

impl Seen {
    fn sweep(&mut self, now: Timestamp, is_old: impl Fn(Timestamp) -> bool) {
        self.swept_at = now;
        self.clients.retain(|_, of| {
            of.keep(|timestamp| !is_old(timestamp));
            !of.nonces.is_empty()
        });
        self.users.clear();
        self.count = 0;
        for (client, of) in &self.clients {
            *self.users.entry(client.user()).or_default() += of.nonces.len();
            self.count += of.nonces.len();
        }
    }

    /// How many there are, without the old ones of `client` that came first.
    fn held_by(
        &mut self,
        client: &ClientUri,
        user: &UserUri,
        is_old: impl Fn(Timestamp) -> bool,
    ) -> Held {
        let mut by_user = self.users.get(user).copied().unwrap_or_default();
        let Some(ClientNonces { nonces, known }) = self.clients.get_mut(client) else {
            return Held { by_client: 0, by_user };
        };
        let before = nonces.len();
        while let Some((old, _)) = nonces.front().filter(|(_, timestamp)| is_old(*timestamp)) {
            known.remove(old);
            nonces.pop_front();
        }
        let gone = before - nonces.len();
        if let Some(of_user) = self.users.get_mut(user) {
            *of_user -= gone;
            by_user = *of_user;
        }
        self.count -= gone;
        Held { by_client: nonces.len(), by_user }
    }
}

#[derive(Clone, Copy)]
struct Held {
    by_client: usize,
    by_user: usize,
}

/// How many one user may have where there are `count` of `max`: one, as long as there is room for one.
fn share_of(count: usize, max: usize) -> usize {
    let free = max.saturating_sub(count);
    let of_all = free.saturating_sub(max / RESERVES) / SHARES;
    let of_reserve = (free / SHARES).min(FEW);
    of_all.max(of_reserve).max(free.min(1))
}
