//! A clock that rings when it is told to: tokio's own goes by whole milliseconds and rings up to two of them late, which would be in every
//! latency of an open loop.

use std::{future::Future, pin::Pin, time::Duration};

use tokio::time::{Instant, sleep_until};

/// One time to wait for.
pub(super) struct Alarm {
    at: Option<Instant>,
    ring: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Alarm {
    #[must_use]
    pub fn new() -> Self {
        Self { at: None, ring: Box::pin(std::future::pending()) }
    }

    /// From here on it rings `at`; where that is what it does already nothing is begun anew.
    pub fn set(&mut self, at: Instant) {
        if self.at != Some(at) {
            self.at = Some(at);
            self.ring = Box::pin(ring(at));
        }
    }

    /// Dropping the future loses nothing. Behind the ring another time is to be set.
    pub async fn rings(&mut self) {
        (&mut self.ring).await;
        self.at = None;
        self.ring = Box::pin(std::future::pending());
    }
}

/// The last of it is the system's to sleep, on a thread of its own: it does so to some 50 µs.
async fn ring(at: Instant) {
    if let Some(before) = at.checked_sub(COARSE) {
        sleep_until(before).await;
    }
    let left = at.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        // a thread that could not be had is no reason to wait longer
        let _ = tokio::task::spawn_blocking(move || std::thread::sleep(left.max(FINE))).await;
    }
}

const COARSE: Duration = Duration::from_millis(3);
/// So that a high rate is not a wake-up for each that is due.
const FINE: Duration = Duration::from_micros(200);

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn it_rings_not_before_its_time_and_for_the_time_that_was_set_last() {
        let mut alarm = Alarm::new();
        assert!(alarm.rings().now_or_never().is_none(), "nothing is set");
        let began = Instant::now();
        alarm.set(began + Duration::from_secs(3600));
        assert!(alarm.rings().now_or_never().is_none());
        let at = began + Duration::from_millis(5);
        alarm.set(at);
        alarm.rings().await;
        assert!(Instant::now() >= at);
        // what is past rings at once
        alarm.set(began);
        alarm.rings().await;
    }
}
