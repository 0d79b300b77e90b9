//! Work that many wait for and that is done once: whoever asks for a key that is in flight waits for the same outcome.
//!
//! The work goes on when nobody waits any longer, so that a requester who hangs up cannot undo it.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{FutureExt as _, future::Shared};
use tokio::sync::oneshot;

type Running<K, V> = Arc<Mutex<HashMap<K, Shared<oneshot::Receiver<V>>>>>;

pub(super) struct Flights<K, V>(Running<K, V>);

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, V> Flights<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The flight for `key`, if there is one.
    pub fn running(&self, key: &K) -> Option<Flight<V>> {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(key).cloned().map(Flight)
    }

    /// Starts `work` on the runtime that the caller is in, unless there is a flight for `key` already: then `work` is dropped.
    pub fn start(&self, key: K, work: impl Future<Output = V> + Send + 'static) -> Flight<V> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = running.get(&key) {
            return Flight(flight.clone());
        }
        let (tell, told) = oneshot::channel();
        let told = told.shared();
        running.insert(key.clone(), told.clone());
        let over = Over { running: Arc::clone(&self.0), key };
        tokio::spawn(async move {
            let outcome = work.await;
            drop(over);
            // nobody need wait for it
            let _ = tell.send(outcome);
        });
        Flight(told)
    }
}

/// Those who wait are woken in order: a `watch` of tokio would wake them in an order of chance.
pub(super) struct Flight<V>(Shared<oneshot::Receiver<V>>);

impl<V: Clone> Flight<V> {
    /// The outcome; none where the work was broken off, with its runtime or by a panic.
    pub async fn landed(self) -> Option<V> {
        self.0.await.ok()
    }
}

/// Takes a flight out however it ends.
struct Over<K: Eq + Hash, V> {
    running: Running<K, V>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Over<K, V> {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_is_done_once_for_all_who_wait_and_for_nobody() {
        let flights: Flights<u8, u8> = Flights::default();
        let (go, gone) = oneshot::channel();
        let first = flights.start(1, async { gone.await.unwrap() });
        let second = flights.start(1, async { panic!("a second execution") });
        let third = flights.running(&1).unwrap();
        drop(first);
        go.send(7).unwrap();
        assert_eq!((second.landed().await, third.landed().await), (Some(7), Some(7)));
        assert!(flights.running(&1).is_none());
        assert_eq!(flights.start(1, async { 8 }).landed().await, Some(8));
    }

    #[tokio::test]
    async fn work_that_panics_ends_its_flight() {
        let flights: Flights<u8, u8> = Flights::default();
        let broken = flights.start(1, async { panic!("by the test") });
        assert_eq!(broken.landed().await, None);
        assert_eq!(flights.start(1, async { 8 }).landed().await, Some(8));
    }
}
