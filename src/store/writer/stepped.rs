//! The writer without its thread: whoever simulates time does what that does, step by step.

use super::{Applied, Engine, Failure, Shared, Writer, locked};
use crate::store::Batch;
use std::sync::Arc;

/// Changes batches as they come.
pub(crate) type Tamper = Box<dyn Fn(Batch) -> Batch + Send + Sync>;

/// A store's writer, between two of its steps.
pub(crate) struct Stepper {
    /// None once it has failed.
    writer: Option<Writer>,
    applied: Option<Applied>,
}

pub(in crate::store) fn start(engine: Box<dyn Engine>, sequence: u64) -> (Arc<Shared>, Stepper) {
    let writer = Writer::new(engine, sequence);
    (Arc::clone(&writer.shared), Stepper { writer: Some(writer), applied: None })
}

impl Stepper {
    /// Whether something waits to be written.
    pub(crate) fn has_work(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| {
            let lanes = locked(&writer.shared.lanes);
            let queued = !lanes.normal.jobs.is_empty() || !lanes.low.jobs.is_empty();
            queued || !writer.normal.is_empty() || !writer.low.is_empty() || writer.spread.is_some()
        })
    }

    /// Makes what waits visible.
    pub(crate) fn apply(&mut self) {
        let taken = self.writer.as_mut().map(Writer::take);
        match taken {
            Some(Ok(applied)) => self.applied = applied,
            Some(Err(failure)) => self.fail(&failure),
            None => {}
        }
    }

    /// Makes it durable. Nobody knows yet.
    pub(crate) fn sync(&mut self) {
        let Some(applied) = self.applied.take() else { return };
        let synced = self.writer.as_mut().map(|writer| writer.sync(&applied));
        if let Some(Err(failure)) = synced {
            self.fail(&failure);
        }
    }

    /// Tells those who wait.
    pub(crate) fn answer(&mut self) {
        if let Some(writer) = &mut self.writer {
            writer.answer();
        }
    }

    /// From now on every batch is what `tamper` makes of it.
    pub(crate) fn tamper(&self, tamper: Tamper) {
        if let Some(writer) = &self.writer {
            assert!(writer.shared.tamper.set(tamper).is_ok(), "it is tampered with already");
        }
    }

    fn fail(&mut self, Failure(reason): &Failure) {
        if let Some(writer) = self.writer.take() {
            writer.fail(reason);
        }
    }
}
