//! How slowly a peer may take what it is sent: some time for nothing, and from then on so many bytes in a second.
//!
//! It is judged from when the peer fell behind until it has caught up, over all that it took in between: who takes a
//! byte now and then is as slow as who takes none.

use std::time::{Duration, Instant};

/// A peer that is behind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    since: Instant,
    taken: u64,
}

impl Pace {
    pub fn begin(now: Instant) -> Self {
        Self { since: now, taken: 0 }
    }

    pub fn took(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_add(bytes as u64);
    }

    /// When it is too slow, unless it takes more until then.
    pub fn deadline(&self, grace: Duration) -> Instant {
        self.since + grace + Duration::from_millis(self.taken.saturating_mul(1000) / RATE_MIN)
    }
}

/// Bytes in a second: what a poor mobile line carries.
const RATE_MIN: u64 = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_at_the_rate_is_never_too_slow_and_who_trickles_is() {
        let (start, grace) = (Instant::now(), Duration::from_secs(30));
        let (mut steady, mut trickle) = (Pace::begin(start), Pace::begin(start));
        for second in 1..1000 {
            let now = start + Duration::from_secs(second);
            steady.took(8 * 1024);
            trickle.took(100);
            assert!(steady.deadline(grace) > now);
            assert_eq!(trickle.deadline(grace) > now, second <= 30, "{second}");
        }
        assert_eq!(Pace::begin(start).deadline(grace), start + grace);
    }
}
