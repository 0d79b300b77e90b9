//! A snapshot that is too large for one flush.
//!
//! Its parts go ahead over several flushes: nobody sees them, since a record is found by its own key, which is
//! written last, together with the rest of the batch. What a process that ends in between leaves behind
//! is removed when the next large snapshot of the group begins, or with the group; so is what cannot be removed for a read that
//! fails. Such a read refuses the batch of that snapshot and nothing else.

use super::{
    StoreError,
    damage::Damages,
    engine::{Changes, Engine},
    keys::{self, Key},
    plan::{Plan, Step},
    stage::{Source, Stage},
    writer::{Job, LOW_BYTES_PER_FLUSH, Staged, judged},
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

/// What [`Spread::begin`] makes of a batch.
pub(super) enum Begun {
    Spread(Spread),
    /// It must go in one flush.
    Whole(Job),
    /// It cannot be judged: this is its answer.
    Refused(Staged),
}

impl Spread {
    /// Begins with `job`.
    pub fn begin(engine: &dyn Engine, damages: &Damages, job: Job, changes: &mut Changes) -> Begun {
        let large = job.plan.steps.iter().enumerate().find_map(|(index, step)| {
            let Step::Put { key, record, .. } = step else { return None };
            let large = keys::is_snapshot(key) && record.len() > LOW_BYTES_PER_FLUSH;
            large.then(|| (index, key.clone()))
        });
        let Some((step, key)) = large else { return Begun::Whole(job) };
        let mut others = job.plan.steps.iter().enumerate().filter(|(index, _)| *index != step);
        if !others.all(|(_, other)| other.spares(&key)) {
            return Begun::Whole(job);
        }
        let left = judged(|| {
            let stage = Stage::new(engine, changes);
            // one that replaces a snapshot that can be seen has to be seen as a whole; one whose conditions do not hold
            // is refused before anything is written
            if stage.value(&key)?.is_some() {
                return Ok(None);
            }
            match stage.check(&job.plan.checks, damages) {
                Err(StoreError::Conflict { .. }) => Ok(None),
                checked => checked.and_then(|()| left_over(stage, &key)).map(Some),
            }
        });
        match left {
            Ok(Some(left)) => {
                changes.extend(left);
                Begun::Spread(Self { job, step, key, next_part: 1, intact: true })
            }
            Ok(None) => Begun::Whole(job),
            Err(error) => Begun::Refused(job.refused(error)),
        }
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
    pub fn finish(self, engine: &dyn Engine, damages: &Damages, changes: &mut Changes) -> Staged {
        let Self { job, step: large, key, intact, .. } = self;
        let Job { plan, answer, queued } = job;
        let Plan { checks, steps, low_priority, writes, bytes, times } = plan;
        let own = judged(|| {
            let mut stage = Stage::new(engine, changes);
            stage.check(&checks, damages)?;
            for (index, step) in steps.into_iter().enumerate() {
                if index == large && intact {
                    stage.run_without_parts(step)?;
                } else {
                    stage.run(step)?;
                }
            }
            Ok(stage.done())
        });
        let removed = || {
            let mut stage = Stage::new(engine, changes);
            if intact {
                stage.remove_keys(&keys::parts(&key))?;
            }
            Ok(stage.done())
        };
        let (own, result) = match own {
            Ok(own) => (own, Ok(())),
            // what cannot be removed now is left over
            Err(error) => (judged(removed).unwrap_or_default(), Err(error)),
        };
        changes.extend(own);
        Staged { answer, result, low_priority, bytes, writes, queued, times }
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

/// Removes the parts of snapshots of `key`'s group that never became visible.
fn left_over(mut stage: Stage<'_>, key: &Key) -> Result<Changes, StoreError> {
    for part in stage.keys_in(&keys::snapshot_parts_of_group(key))? {
        let Some(record) = keys::record_of_part(&part) else { continue };
        if stage.value(record)?.is_none() {
            stage.forget(part.clone());
        }
    }
    Ok(stage.done())
}
