//! What clients stamp ahead of this provider's clock.
//!
//! Nonces end with the process, so what was stamped before it began is refused: the process before may have taken it. That one may also
//! have taken what was stamped for a moment that is still to come. How far is written down before such a message is taken,
//! a little further than is needed, so that it is written once a second at most; and it cannot be far (`clock_ahead_ms`).

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, OnceCell};

use crate::{
    store::{Batch, SharedStore, StoreError, Write},
    wire::ids::Timestamp,
};

#[derive(Default)]
pub(crate) struct Stamps {
    /// Up to here processes before this one may have taken something.
    before: OnceCell<AtomicU64>,
    /// Up to here it is written down that this one may.
    noted: AtomicU64,
    turn: Mutex<()>,
}

impl Stamps {
    /// Up to where something may have been taken before this process. It is no later than the least `most` that it was asked
    /// with, so that a clock that was set back keeps nobody out.
    ///
    /// # Errors
    /// [`StoreError`]: then the next call tries again.
    pub async fn before(
        &self,
        store: &SharedStore,
        most: Timestamp,
    ) -> Result<Timestamp, StoreError> {
        let read = async || {
            let bytes = store.node(RECORD).await?.unwrap_or_default();
            let stamp = bytes.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
            Ok::<_, StoreError>(AtomicU64::new(stamp))
        };
        let before = self.before.get_or_try_init(read).await?;
        Ok(Timestamp(before.fetch_min(most.0, Ordering::Relaxed).min(most.0)))
    }

    /// Something stamped `sent` is to be taken, ahead of the clock: that this may be lasts when it returns.
    ///
    /// # Errors
    /// [`StoreError`]: it is not to be taken.
    pub async fn note(&self, store: &SharedStore, sent: Timestamp) -> Result<(), StoreError> {
        if sent.0 <= self.noted.load(Ordering::Acquire) {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        if sent.0 <= self.noted.load(Ordering::Acquire) {
            return Ok(());
        }
        let until = sent.plus_ms(ROUNDED_UP_MS);
        let bytes = until.0.to_be_bytes().to_vec();
        store.write(Batch::new().and(Write::Node { name: RECORD, bytes })).await?;
        self.noted.store(until.0, Ordering::Release);
        Ok(())
    }
}

const RECORD: &str = "stamped-ahead";
const ROUNDED_UP_MS: u64 = 1_000;
