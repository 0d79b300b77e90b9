//! A snapshot that is too large for one flush.
//!
//! Its parts go ahead over several flushes: nobody sees them, since a record is found by its own key, which is
//! written last, together with the rest of the batch. What a process that ends in between leaves behind
//! is removed when the next large snapshot of the group begins, or with the group.

use super::{
    StoreError,
    engine::{Changes, Engine, Failure},
    keys::{self, Key},
    plan::{Plan, Step},
    stage::{Source, Stage},
    writer::{Job, LOW_BYTES_PER_FLUSH, Staged},
};

/// A batch with a snapshot that is on its way.
pub(super) struct Spread {
    job: Job,
    /// Where the snapshot stands in the batch's steps.
    step: usize,
    key: Key,
    next_part: u32,
    /// Nobody else has touched the snapshot's keys since.
    intact: bool,
}

impl Spread {
    /// Begins with `job`, or gives it back where it must go in one flush.
    pub fn begin(
        engine: &dyn Engine,
        job: Job,
        changes: &mut Changes,
    ) -> Result<Result<Self, Job>, Failure> {
        let large = job.plan.steps.iter().enumerate().find_map(|(index, step)| {
            let Step::Put { key, record, .. } = step else { return None };
            let large = keys::is_snapshot(key) && record.len() > LOW_BYTES_PER_FLUSH;
            large.then(|| (index, key.clone()))
        });
        let Some((step, key)) = large else { return Ok(Err(job)) };
        let mut others = job.plan.steps.iter().enumerate().filter(|(index, _)| *index != step);
        if !others.all(|(_, other)| other.spares(&key)) {
            return Ok(Err(job));
        }
        let mut stage = Stage::new(engine, changes);
        // one that replaces a snapshot that can be seen has to be seen as a whole; one whose conditions do not hold
        // is refused before anything is written
        if stage.value(&key)?.is_some() || stage.check(&job.plan.checks).is_err() {
            return Ok(Err(job));
        }
        let left = stage.keys_in(&keys::snapshot_parts_of_group(&key));
        for part in left.map_err(|error| Failure(error.to_string()))? {
            let Some(record) = keys::record_of_part(&part) else { continue };
            if stage.value(record)?.is_none() {
                stage.forget(part.clone());
            }
        }
        let left = stage.done();
        changes.extend(left);
        Ok(Ok(Self { job, step, key, next_part: 1, intact: true }))
    }

    /// Another batch changes `own`. Where that touches the snapshot it is written as a whole in the end.
    pub fn meet(&mut self, own: &Changes) {
        let parts = keys::parts(&self.key);
        let touched =
            own.contains_key(&self.key) || own.range(parts.from..parts.until).next().is_some();
        self.intact &= !touched;
    }

    /// Adds the next parts, of about `bytes` in all; returns how many bytes it added.
    pub fn advance(&mut self, changes: &mut Changes, bytes: usize) -> usize {
        let mut added = 0;
        let mut parts = Vec::new();
        if self.intact {
            let skip = self.next_part as usize - 1;
            for (index, chunk) in keys::further_chunks(self.record()).skip(skip) {
                if added >= bytes {
                    break;
                }
                added += chunk.len();
                parts.push((keys::part(&self.key, index), chunk.to_vec()));
            }
        }
        self.next_part += u32::try_from(parts.len()).unwrap_or(u32::MAX);
        changes.extend(parts.into_iter().map(|(key, chunk)| (key, Some(chunk))));
        added
    }

    /// Nothing is left to go ahead.
    pub fn is_through(&self) -> bool {
        !self.intact || self.next_part > keys::part_count(self.record().len())
    }

    /// Makes the snapshot visible, with the rest of its batch; where a condition no longer holds it removes what
    /// went ahead.
    pub fn finish(self, engine: &dyn Engine, changes: &mut Changes) -> Result<Staged, Failure> {
        let Self { job, step: large, key, intact, .. } = self;
        let Job { plan: Plan { checks, steps, low_priority, writes, bytes }, answer, .. } = job;
        let mut stage = Stage::new(engine, changes);
        let result = stage.check(&checks).and_then(|()| {
            for (index, step) in steps.into_iter().enumerate() {
                if index == large && intact {
                    stage.run_without_parts(step)?;
                } else {
                    stage.run(step)?;
                }
            }
            Ok::<_, StoreError>(())
        });
        let own = match &result {
            Ok(()) => stage.done(),
            Err(_) => {
                let mut stage = Stage::new(engine, changes);
                if intact {
                    let removed = stage.remove_keys(&keys::parts(&key));
                    removed.map_err(|error| Failure(error.to_string()))?;
                }
                stage.done()
            }
        };
        changes.extend(own);
        Ok(Staged { answer, result, low_priority, bytes, writes })
    }

    /// Gives the batch up.
    pub fn into_job(self) -> Job {
        self.job
    }

    fn record(&self) -> &[u8] {
        match self.job.plan.steps.get(self.step) {
            Some(Step::Put { record, .. }) => record,
            _ => &[],
        }
    }
}
