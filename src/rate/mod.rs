//! How much one key may ask for: a bucket for each, in bounded memory. Pure: the time is told. PROTOCOL.md §2, checks 1
//! and 5.
//!
//! The arithmetic (GCRA) is `governor`'s; what is ours is the time, the bound on keys, and that a limit can be absent.

mod group;
mod line;
mod overload;

pub use group::{Asker, GroupQuotas, GroupRates};
pub use line::Line;
pub use overload::{Class, LANES_MAX, Lane, Overload, OverloadSettings, Shed, Stage};

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use governor::{
    RateLimiter,
    clock::{Clock, FakeRelativeClock},
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::StateStore,
};

use crate::wire::ids::Timestamp;

/// So much, and how much of it at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quota {
    /// 0: no limit.
    pub per_second: u32,
    /// What may come at once after a rest; at least one second's worth is taken.
    pub burst: u32,
}

impl Quota {
    fn into_governor(self) -> Option<governor::Quota> {
        let per_second = NonZeroU32::new(self.per_second)?;
        let burst = NonZeroU32::new(self.burst).map_or(per_second, |burst| burst.max(per_second));
        Some(governor::Quota::per_second(per_second).allow_burst(burst))
    }
}

/// One too many. It can be tried again after this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany(pub Duration);

impl TooMany {
    /// Whole milliseconds, rounded up.
    #[must_use]
    pub fn retry_after_ms(self) -> u64 {
        u64::try_from(self.0.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }
}

/// The buckets of all keys that were seen of late.
pub struct Limiter<K: Hash + Eq + Clone> {
    quota: Mutex<Quota>,
    keys_max: usize,
    kept: RwLock<Option<Mutex<Kept<K>>>>,
}

struct Kept<K: Hash + Eq + Clone> {
    limiter: RateLimiter<Option<K>, Buckets<K>, FakeRelativeClock, NoOpMiddleware<Nanos>>,
    buckets: Buckets<K>,
    keys_max: usize,
    /// What `limiter` goes by: it only goes forward, also where the machine's clock is set back.
    clock: FakeRelativeClock,
    told: Option<Timestamp>,
    swept: Nanos,
}

/// When each key's bucket is full again. The key "none" is all those that found no place of their own.
struct Buckets<K>(Arc<Mutex<HashMap<Option<K>, Nanos>>>);

impl<K: Hash + Eq + Clone> Limiter<K> {
    /// Beyond `keys_max` keys that have not rested, new ones share one bucket.
    #[must_use]
    pub fn new(quota: Quota, keys_max: usize) -> Self {
        let kept = RwLock::new(Kept::new(quota, keys_max));
        Self { quota: Mutex::new(quota), keys_max, kept }
    }

    /// From now on a key may ask for so much. Where that is another quota than before all begin anew: what they have used up of
    /// the one says nothing about the other.
    pub fn replace(&self, quota: Quota) {
        let before = std::mem::replace(
            &mut *self.quota.lock().unwrap_or_else(PoisonError::into_inner),
            quota,
        );
        if before != quota {
            let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
            *kept = Kept::new(quota, self.keys_max);
        }
    }

    /// Counts one request of `key` at `now`.
    ///
    /// # Errors
    /// Where it is one too many: it is not counted then.
    pub fn check(&self, key: &K, now: Timestamp) -> Result<(), TooMany> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = &*kept else { return Ok(()) };
        kept.lock().unwrap_or_else(PoisonError::into_inner).check(key, now)
    }

    #[cfg(test)]
    fn keys(&self) -> usize {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = &*kept else { return 0 };
        kept.lock().unwrap_or_else(PoisonError::into_inner).buckets.lock().len()
    }
}

impl<K: Hash + Eq + Clone> Kept<K> {
    fn new(quota: Quota, keys_max: usize) -> Option<Mutex<Self>> {
        quota.into_governor().map(|quota| {
            let clock = FakeRelativeClock::default();
            let buckets = Buckets(Arc::default());
            let limiter = RateLimiter::new(quota, buckets.clone(), clock.clone());
            let swept = clock.now();
            Mutex::new(Self { limiter, buckets, keys_max, clock, told: None, swept })
        })
    }

    fn check(&mut self, key: &K, now: Timestamp) -> Result<(), TooMany> {
        let passed_ms = now.ms_since(self.told.unwrap_or(now)).min(JUMP_MS_MAX);
        self.told = Some(now);
        self.clock.advance(Duration::from_millis(passed_ms));
        let key = self.place(key);
        self.limiter
            .check_key(&key)
            .map_err(|not_until| TooMany(not_until.wait_time_from(self.clock.now())))
    }

    /// Under which key to count: its own, where there is room.
    fn place(&mut self, key: &K) -> Option<K> {
        let own = Some(key.clone());
        let at = self.clock.now();
        let mut buckets = self.buckets.lock();
        let is_full = buckets.len() >= self.keys_max && !buckets.contains_key(&own);
        let since_sweep = Duration::from(at.saturating_sub(self.swept));
        if since_sweep >= if is_full { SWEEP_EVERY_FULL } else { SWEEP_EVERY } {
            self.swept = at;
            // a bucket that is full again says no more than none
            buckets.retain(|_, full_at| *full_at > at);
        }
        if buckets.len() < self.keys_max || buckets.contains_key(&own) { own } else { None }
    }
}

impl<K> Buckets<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<Option<K>, Nanos>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Clone for Buckets<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Hash + Eq + Clone> StateStore for Buckets<K> {
    type Key = Option<K>;

    fn measure_and_replace<T, F, E>(&self, key: &Option<K>, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut buckets = self.lock();
        let (outcome, full_at) = measure(buckets.get(key).copied())?;
        buckets.insert(key.clone(), full_at);
        Ok(outcome)
    }
}

impl<K: Hash + Eq + Clone> fmt::Debug for Limiter<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        f.write_str(if kept.is_some() { "Limiter" } else { "Limiter(none)" })
    }
}

/// A clock that is set forward fills no more than this.
const JUMP_MS_MAX: u64 = 24 * 60 * 60 * 1000;
/// How often keys that have rested are forgotten, and how often where there is no room.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
const SWEEP_EVERY_FULL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Timestamp = Timestamp(1_700_000_000_000);

    fn limiter(per_second: u32, burst: u32) -> Limiter<u32> {
        Limiter::new(Quota { per_second, burst }, 100)
    }

    #[test]
    fn a_key_that_asks_too_much_waits_and_others_do_not() {
        let limiter = limiter(2, 10);
        for _ in 0..10 {
            limiter.check(&1, T0).unwrap();
        }
        let wait = limiter.check(&1, T0).unwrap_err();
        assert_eq!(wait.retry_after_ms(), 500);
        limiter.check(&2, T0).unwrap();
        limiter.check(&1, T0.plus_ms(499)).unwrap_err();
        limiter.check(&1, T0.plus_ms(500)).unwrap();
        limiter.check(&1, T0.plus_ms(500)).unwrap_err();
        let rested = T0.plus_ms(60_000);
        for _ in 0..10 {
            limiter.check(&1, rested).unwrap();
        }
        limiter.check(&1, rested).unwrap_err();
    }

    #[test]
    fn without_a_rate_nothing_is_counted_and_a_burst_is_a_second_at_least() {
        let none = limiter(0, 5);
        for _ in 0..1000 {
            none.check(&1, T0).unwrap();
        }
        assert_eq!(none.keys(), 0);
        let limiter = limiter(3, 0);
        for _ in 0..3 {
            limiter.check(&1, T0).unwrap();
        }
        limiter.check(&1, T0).unwrap_err();
    }

    #[test]
    fn another_quota_begins_anew_and_the_same_one_does_not() {
        let limiter = limiter(1, 2);
        let check = |n| (0..n).map(|_| limiter.check(&1, T0).is_ok()).collect::<Vec<_>>();
        assert_eq!(check(3), [true, true, false]);
        limiter.replace(Quota { per_second: 1, burst: 2 });
        assert_eq!(check(1), [false]);
        limiter.replace(Quota { per_second: 3, burst: 3 });
        assert_eq!(check(4), [true, true, true, false]);
        limiter.replace(Quota::default());
        assert_eq!(check(4), [true; 4]);
        limiter.replace(Quota { per_second: 1, burst: 1 });
        assert_eq!(check(2), [true, false]);
    }

    #[test]
    fn a_clock_that_is_set_back_or_far_forward_locks_nobody_out() {
        let limiter = limiter(1, 1);
        limiter.check(&1, T0).unwrap();
        let back = Timestamp(T0.0 - 3_600_000);
        limiter.check(&1, back).unwrap_err();
        limiter.check(&1, back.plus_ms(1000)).unwrap();
        limiter.check(&1, Timestamp(u64::MAX)).unwrap();
        limiter.check(&1, T0).unwrap_err();
        limiter.check(&1, T0.plus_ms(1000)).unwrap();
    }

    #[test]
    fn memory_is_bounded_strangers_then_share_and_who_rested_is_forgotten() {
        let limiter = limiter(1, 2);
        for key in 0..100 {
            limiter.check(&key, T0).unwrap();
        }
        limiter.check(&1000, T0).unwrap();
        limiter.check(&1001, T0).unwrap();
        limiter.check(&1002, T0).unwrap_err();
        limiter.check(&7, T0).unwrap();
        assert_eq!(limiter.keys(), 101);
        let rested = T0.plus_ms(2000);
        limiter.check(&1002, rested).unwrap();
        assert_eq!(limiter.keys(), 1, "all others have rested");
        limiter.check(&5, rested.plus_ms(60_000)).unwrap();
        assert_eq!(limiter.keys(), 1, "also while there is room");
    }
}
