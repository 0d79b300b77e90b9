//! What a batch does to keys, given what is stored and what the batches before it in the same flush do.
//!
//! Here: conditions, steps, and records in parts. Deliberately absent: when it is made durable ([`writer`](super::writer)).

use std::ops::{Bound, ControlFlow};

use super::{
    StoreError,
    damage::Damages,
    engine::{Changes, Engine, Failure},
    keys::{self, Key, Range},
    plan::{Check, Step},
};

/// Something to read values from.
pub(super) trait Source {
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure>;
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        Self::Unavailable(failure.0)
    }
}

/// The record under `key`, put together from its parts.
///
/// # Errors
/// [`StoreError::Corrupt`] where a part is missing.
pub(super) fn record(source: &impl Source, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
    match source.value(key)? {
        Some(value) => whole(source, key, &value).map(Some),
        None => Ok(None),
    }
}

/// The record whose own value is `head`.
pub(super) fn whole(source: &impl Source, key: &[u8], head: &[u8]) -> Result<Vec<u8>, StoreError> {
    let (len, _) = keys::split_head(head)?;
    beginning(source, key, head, len)
}

/// The first `bytes` of the record whose own value is `head`, or a little more.
pub(super) fn beginning(
    source: &impl Source,
    key: &[u8],
    head: &[u8],
    bytes: usize,
) -> Result<Vec<u8>, StoreError> {
    let (len, first) = keys::split_head(head)?;
    let bytes = bytes.min(len);
    let mut record = Vec::with_capacity(bytes.max(first.len()));
    record.extend_from_slice(first);
    for index in 1..=keys::part_count(bytes) {
        let expected = (len - record.len()).min(keys::CHUNK_BYTES);
        match source.value(&keys::part(key, index))? {
            Some(chunk) if chunk.len() == expected => record.extend_from_slice(&chunk),
            _ => return Err(keys::corrupt(format!("part {index} of {}", hex::encode(key)))),
        }
    }
    Ok(record)
}

/// The changes of one batch on top of those of the batches before it.
pub(super) struct Stage<'a> {
    engine: &'a dyn Engine,
    before: &'a Changes,
    own: Changes,
}

impl Source for Stage<'_> {
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        match self.own.get(key).or_else(|| self.before.get(key)) {
            Some(changed) => Ok(changed.clone()),
            None => self.engine.read(key),
        }
    }
}

impl<'a> Stage<'a> {
    pub fn new(engine: &'a dyn Engine, before: &'a Changes) -> Self {
        Self { engine, before, own: Changes::new() }
    }

    /// The changes, to be merged into those before.
    pub fn done(self) -> Changes {
        self.own
    }

    /// # Errors
    /// [`StoreError::Conflict`] with the first that does not hold. What cannot be read is noted in `damages`.
    pub fn check(&self, checks: &[Check], damages: &Damages) -> Result<(), StoreError> {
        for (condition, check) in checks.iter().enumerate() {
            let holds = record(self, &check.key).and_then(|record| check.holds(record.as_deref()));
            if !holds.map_err(|error| damages.named(&check.key, error))? {
                return Err(StoreError::Conflict { condition });
            }
        }
        Ok(())
    }

    pub fn run(&mut self, step: Step) -> Result<(), StoreError> {
        match step {
            Step::Put { key, record, owned } => self.put(key, &record, owned),
            Step::PutIndexed { index, key, record } => {
                if let Some(old) = self.indexed(&index)?.filter(|old| *old != key) {
                    self.remove(old)?;
                }
                let points_to = keys::index_record(&key);
                self.put(key, &record, false)?;
                self.put(index, &points_to, false)
            }
            Step::Remove { key } => self.remove(key),
            Step::RemoveIndexed { index } => {
                if let Some(key) = self.indexed(&index)? {
                    self.remove(key)?;
                }
                self.remove(index)
            }
            Step::RemoveRange(range) => {
                self.remove_keys(&range.parts())?;
                self.remove_keys(&range)
            }
        }
    }

    fn put(&mut self, key: Key, record: &[u8], owned: bool) -> Result<(), StoreError> {
        if let Some(old) = self.value(&key)? {
            let (len, first) = keys::split_head(&old)?;
            if owned && keys::owner(first)? != keys::owner(record)? {
                return Err(keys::corrupt(format!(
                    "{} and {} have one key",
                    keys::owner(first)?,
                    keys::owner(record)?
                )));
            }
            for index in keys::part_count(record.len())..keys::part_count(len) {
                self.own.insert(keys::part(&key, index + 1), None);
            }
        }
        for (index, chunk) in keys::further_chunks(record) {
            self.own.insert(keys::part(&key, index), Some(chunk.to_vec()));
        }
        self.own.insert(key, Some(keys::head_value(record)?));
        Ok(())
    }

    /// Puts a record whose parts are there already.
    pub fn run_without_parts(&mut self, step: Step) -> Result<(), StoreError> {
        if let Step::Put { key, record, .. } = step {
            self.own.insert(key, Some(keys::head_value(&record)?));
        }
        Ok(())
    }

    /// Removes one key, whatever it holds.
    pub fn forget(&mut self, key: Key) {
        self.own.insert(key, None);
    }

    fn remove(&mut self, key: Key) -> Result<(), StoreError> {
        let Some(old) = self.value(&key)? else { return Ok(()) };
        // a record that cannot be read can still be removed, with all of its parts
        match keys::split_head(&old) {
            Ok((len, _)) => {
                for index in 1..=keys::part_count(len) {
                    self.own.insert(keys::part(&key, index), None);
                }
            }
            Err(_) => self.remove_keys(&keys::parts(&key))?,
        }
        self.own.insert(key, None);
        Ok(())
    }

    /// Removes every key in `range` that is stored or was put by the batches before.
    pub fn remove_keys(&mut self, range: &Range) -> Result<(), StoreError> {
        for key in self.keys_in(range)? {
            self.own.insert(key, None);
        }
        Ok(())
    }

    /// The keys in `range` that are stored or were put by the batches before; some may have been removed since.
    pub fn keys_in(&self, range: &Range) -> Result<Vec<Key>, StoreError> {
        let mut keys = Vec::new();
        if range.from >= range.until {
            return Ok(keys);
        }
        self.engine.scan(&range.from, &range.until, &mut |key, _| {
            keys.push(key.to_vec());
            ControlFlow::Continue(())
        })?;
        let bounds =
            (Bound::Included(range.from.as_slice()), Bound::Excluded(range.until.as_slice()));
        for changes in [self.before, &self.own] {
            let put = changes.range::<[u8], _>(bounds).filter(|(_, value)| value.is_some());
            keys.extend(put.map(|(key, _)| key.clone()));
        }
        Ok(keys)
    }

    /// The key that `index` holds.
    fn indexed(&self, index: &[u8]) -> Result<Option<Key>, StoreError> {
        let record = record(self, index)?;
        record.map(|record| keys::versioned("index", &record).map(<[u8]>::to_vec)).transpose()
    }
}
