//! A store in memory: for tests, and for a node that may forget.
//!
//! Here: [`Disk`], which outlives the stores that are opened on it, keeps what they have flushed, and breaks as its
//! [`Faults`] say. Conditions, order and group commit are the writer's, the same as for a real disk.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    OpenError, SharedStore,
    engine::{Changes, Engine, Failure, Visit},
    faults::{Faults, Faulty},
    reader::NodeStore,
    writer::locked,
};

/// What would be on a disk. Clones are one disk.
#[derive(Debug, Clone)]
pub struct Disk {
    durable: Arc<Mutex<Map>>,
    /// Whether the store that was opened last may still use the disk.
    mounted: Arc<Mutex<Arc<AtomicBool>>>,
    faults: Faults,
}

/// Values are shared between what is visible and what is durable.
type Map = BTreeMap<Vec<u8>, Arc<[u8]>>;

/// Keys with their new values, as they were applied.
type Applied = Vec<(Vec<u8>, Option<Arc<[u8]>>)>;

impl Disk {
    #[must_use]
    pub fn new() -> Self {
        Self {
            durable: Arc::new(Mutex::new(Map::new())),
            mounted: Arc::new(Mutex::new(Arc::new(AtomicBool::new(false)))),
            faults: Faults::new(),
        }
    }

    /// How this disk fails and waits.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Opens a store on what the disk holds. One that was opened earlier loses it, as in [`Self::crash`].
    ///
    /// # Errors
    /// [`OpenError::Record`] where the disk holds something else.
    pub fn open(&self) -> Result<SharedStore, OpenError> {
        // a test may ask what is free on some disk; otherwise there is none
        let folder = if cfg!(test) { "." } else { "memory" };
        Ok(Arc::new(NodeStore::start(self.engine(), folder.into())?))
    }

    /// As [`Self::open`], without a thread: nothing is written but by the stepper.
    #[cfg(test)]
    pub(crate) fn open_stepped(
        &self,
    ) -> Result<(SharedStore, super::writer::stepped::Stepper), super::StoreError> {
        let (store, stepper) = NodeStore::start_stepped(self.engine())?;
        Ok((Arc::new(store), stepper))
    }

    /// A disk that holds what this one does.
    #[cfg(test)]
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new();
        locked(&copy.durable).clone_from(&locked(&self.durable));
        copy
    }

    fn engine(&self) -> Box<dyn Engine> {
        self.crash();
        self.faults.reset();
        let mounted = Arc::new(AtomicBool::new(true));
        *locked(&self.mounted) = Arc::clone(&mounted);
        let visible = locked(&self.durable).clone();
        let engine = Memory {
            state: Mutex::new(State { visible, unsynced: Vec::new() }),
            durable: Arc::clone(&self.durable),
            mounted,
        };
        Box::new(Faulty::new(engine, self.faults.clone()))
    }

    /// Power is lost: the store that is open can do nothing any more, and only what was flushed is kept.
    pub fn crash(&self) {
        locked(&self.mounted).store(false, Ordering::SeqCst);
    }

    /// Changes what the disk holds behind the store's back; seen by the next store that is opened.
    #[cfg(test)]
    pub(crate) fn tamper(&self, tamper: impl FnOnce(&mut BTreeMap<Vec<u8>, Arc<[u8]>>)) {
        tamper(&mut locked(&self.durable));
    }

    /// No record of this kind can be read any more, from the next store that is opened on. Gives what was there.
    #[cfg(test)]
    pub(crate) fn damage(&self, kind: &str) -> BTreeMap<Vec<u8>, Arc<[u8]>> {
        let mut before = BTreeMap::new();
        self.tamper(|map| {
            for (key, value) in map.iter_mut().filter(|(key, _)| super::keys::kind(key) == kind) {
                before.insert(key.clone(), std::mem::replace(value, [0, 0, 0, 1, 99].into()));
            }
        });
        before
    }
}

impl Default for Disk {
    fn default() -> Self {
        Self::new()
    }
}

struct Memory {
    state: Mutex<State>,
    durable: Arc<Mutex<Map>>,
    mounted: Arc<AtomicBool>,
}

struct State {
    visible: Map,
    unsynced: Vec<Applied>,
}

impl Memory {
    fn usable(&self) -> Result<(), Failure> {
        if self.mounted.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(Failure("the machine has lost power".to_owned()))
    }
}

impl Engine for Memory {
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        self.usable()?;
        Ok(locked(&self.state).visible.get(key).map(|value| value.to_vec()))
    }

    fn scan(&self, from: &[u8], until: &[u8], visit: Visit<'_>) -> Result<(), Failure> {
        self.usable()?;
        if from >= until {
            return Ok(());
        }
        for (key, value) in locked(&self.state).visible.range(from.to_vec()..until.to_vec()) {
            if let ControlFlow::Break(()) = visit(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn apply(&self, changes: &Changes) -> Result<(), Failure> {
        self.usable()?;
        let changes: Applied = changes
            .iter()
            .map(|(key, value)| (key.clone(), value.as_deref().map(Arc::<[u8]>::from)))
            .collect();
        let mut state = locked(&self.state);
        put(&mut state.visible, &changes);
        state.unsynced.push(changes);
        Ok(())
    }

    fn sync(&self, _sequence: u64) -> Result<(), Failure> {
        let mut durable = locked(&self.durable);
        // behind the lock, so that a crash and the store that is opened after it see one order
        self.usable()?;
        let mut state = locked(&self.state);
        for changes in std::mem::take(&mut state.unsynced) {
            put(&mut durable, &changes);
        }
        Ok(())
    }

    fn bytes_on_disk(&self) -> u64 {
        locked(&self.durable).iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}

fn put(map: &mut Map, changes: &Applied) {
    for (key, value) in changes {
        match value {
            Some(value) => map.insert(key.clone(), Arc::clone(value)),
            None => map.remove(key),
        };
    }
}
