//! The seam to an embedded engine: ordered keys, atomic changes, an explicit sync.
//!
//! Here: what the [writer](super::writer) and the [reader](super::reader) need of an engine. Deliberately absent: records, conditions,
//! and any promise about who may see a change that is not synced yet (the writer's view answers that).

use std::{collections::BTreeMap, ops::ControlFlow};

/// Keys with their new values; `None` removes.
pub(super) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Sees one key and value of a scan; breaks to end it.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// An engine could not do what it was asked. After one from `apply` or `sync` the outcome is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Failure(pub String);

/// An ordered map of bytes that survives.
///
/// Only the writer's thread calls `ready`, `apply`, `sync`, `idle` and `close`. `apply` never runs at the same time as
/// `read` or `scan`. Any method may panic; the callers treat that as a [`Failure`].
pub(super) trait Engine: Send + Sync + 'static {
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure>;

    /// Visits `from..until` in the order of keys.
    fn scan(&self, from: &[u8], until: &[u8], visit: Visit<'_>) -> Result<(), Failure>;

    /// Makes all of `changes` visible, or none.
    fn apply(&self, changes: &Changes) -> Result<(), Failure>;

    /// Returns when everything that was applied survives a power loss. `sequence` numbers the last `apply`.
    fn sync(&self, sequence: u64) -> Result<(), Failure>;

    /// Something was queued. It is called on the caller's thread and must not block.
    fn queued(&self) {}

    /// The writer is about to take what waits. An engine for tests holds it here.
    fn ready(&self) -> Result<(), Failure> {
        Ok(())
    }

    /// Nothing was written for a while.
    fn idle(&self) -> Result<(), Failure> {
        Ok(())
    }

    /// Nothing is written from now on; everything that was applied is synced.
    fn close(&self) -> Result<(), Failure> {
        Ok(())
    }

    /// The store is dropped: `ready` must not hold the writer any longer.
    fn abandoned(&self) {}

    fn bytes_on_disk(&self) -> u64;
}
