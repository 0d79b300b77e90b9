//! Permits whose number an operator may change while some are out.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, TryAcquireError};

/// So many places, of which nobody waits for one.
#[derive(Debug)]
pub struct Permits {
    free: Arc<Semaphore>,
    size: AtomicUsize,
    /// Of those that are out, how many do not come back into use.
    too_many: AtomicUsize,
}

impl Permits {
    pub fn new(size: usize) -> Self {
        let size = size.min(Semaphore::MAX_PERMITS);
        Self {
            free: Arc::new(Semaphore::new(size)),
            size: AtomicUsize::new(size),
            too_many: AtomicUsize::new(0),
        }
    }

    /// From now on there are so many. Where more are out they keep their places, and nobody gets one until enough have
    /// come back. For one caller at a time.
    pub fn resize(&self, size: usize) {
        let size = size.min(Semaphore::MAX_PERMITS);
        let before = self.size.swap(size, Ordering::AcqRel);
        if size < before {
            self.too_many.fetch_add(before - size, Ordering::AcqRel);
            return;
        }
        let mut more = size - before;
        // those that were to go can stay
        let _ = self.too_many.fetch_update(Ordering::AcqRel, Ordering::Acquire, |too_many| {
            more = (size - before).saturating_sub(too_many);
            Some(too_many.saturating_sub(size - before))
        });
        self.free.add_permits(more);
    }

    pub fn try_acquire(&self) -> Result<SemaphorePermit<'_>, TryAcquireError> {
        self.let_go();
        self.free.try_acquire()
    }

    pub fn try_acquire_owned(&self) -> Result<OwnedSemaphorePermit, TryAcquireError> {
        self.try_acquire_many_owned(1)
    }

    pub fn try_acquire_many_owned(
        &self,
        count: u32,
    ) -> Result<OwnedSemaphorePermit, TryAcquireError> {
        self.let_go();
        Arc::clone(&self.free).try_acquire_many_owned(count)
    }

    /// Takes what is free and too many out of use.
    fn let_go(&self) {
        let too_many = self.too_many.load(Ordering::Acquire);
        if too_many == 0 {
            return;
        }
        let claimed = self.too_many.fetch_update(Ordering::AcqRel, Ordering::Acquire, |_| Some(0));
        let claimed = claimed.unwrap_or_default();
        let gone = self.free.forget_permits(claimed);
        self.too_many.fetch_add(claimed - gone, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_are_there_once_those_that_are_out_come_back_and_more_at_once() {
        let permits = Permits::new(4);
        let out: Vec<_> = (0..3).map(|_| permits.try_acquire().unwrap()).collect();
        permits.resize(2);
        assert!(permits.try_acquire().is_err(), "three are out, of two");
        let mut out = out.into_iter();
        drop(out.next());
        assert!(permits.try_acquire().is_err(), "two are out, of two");
        drop(out.next());
        let one = permits.try_acquire().unwrap();
        assert!(permits.try_acquire().is_err());
        // more before those that are too many have come back
        permits.resize(1);
        permits.resize(3);
        let another = permits.try_acquire_owned().unwrap();
        assert!(permits.try_acquire().is_err(), "three are out, of three");
        drop((one, another, out));
        let all = permits.try_acquire_many_owned(3).unwrap();
        assert!(permits.try_acquire().is_err());
        drop(all);
        permits.resize(0);
        assert!(permits.try_acquire().is_err());
        permits.resize(usize::MAX);
        assert!(permits.try_acquire().is_ok());
    }
}
