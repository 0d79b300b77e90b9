//! Which threads of a node still turn: each is asked at times, and says so when it comes to it.
//!
//! A thread that is stuck (a lock, a system call, a loop without end) cannot say so itself, and all others go on: what it serves
//! waits for ever. Here: the question and the answers. Deliberately absent: who asks, how often, and what follows.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::watch;

/// The threads that were named to it, as many as the node has; nothing is done where nobody asks. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Grows with each question.
    question: watch::Sender<u64>,
    threads: Mutex<Vec<Arc<Turner>>>,
}

#[derive(Debug)]
struct Turner {
    thread: String,
    /// The last question that it heard.
    heard: AtomicU64,
}

impl Pulse {
    /// From now on `thread` must turn: to be run on it. Where it ends, however that comes, it turns no more.
    pub fn of(&self, thread: String) -> impl Future<Output = ()> + Send + 'static {
        self.answers(self.join(thread))
    }

    /// The same for a thread that is replaced where it ends, by one that is named anew.
    pub fn of_replaceable(&self, thread: String) -> impl Future<Output = ()> + Send + 'static {
        let turner = self.join(thread);
        let leaves = Leaves { inner: Arc::downgrade(&self.0), turner: Arc::clone(&turner) };
        let answers = self.answers(turner);
        async move {
            let _leaves = leaves;
            answers.await;
        }
    }

    /// Asks every thread whether it turns.
    pub fn ask(&self) {
        self.0.question.send_modify(|question| *question += 1);
    }

    /// The threads that have not turned since they were asked last.
    #[must_use]
    pub fn silent(&self) -> Vec<String> {
        let question = *self.0.question.borrow();
        let threads = self.0.threads();
        let silent = threads.iter().filter(|it| it.heard.load(Ordering::Acquire) < question);
        silent.map(|it| it.thread.clone()).collect()
    }

    /// All threads that are asked.
    #[must_use]
    pub fn threads(&self) -> Vec<String> {
        self.0.threads().iter().map(|it| it.thread.clone()).collect()
    }

    fn join(&self, thread: String) -> Arc<Turner> {
        let heard = AtomicU64::new(*self.0.question.borrow());
        let turner = Arc::new(Turner { thread, heard });
        self.0.threads().push(Arc::clone(&turner));
        turner
    }

    fn answers(&self, turner: Arc<Turner>) -> impl Future<Output = ()> + Send + 'static {
        let mut question = self.0.question.subscribe();
        async move {
            loop {
                turner.heard.store(*question.borrow_and_update(), Ordering::Release);
                if question.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

impl Inner {
    fn threads(&self) -> MutexGuard<'_, Vec<Arc<Turner>>> {
        // it changes in single steps
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a thread off the list when what runs on it is dropped.
struct Leaves {
    inner: Weak<Inner>,
    turner: Arc<Turner>,
}

impl Drop for Leaves {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.threads().retain(|it| !Arc::ptr_eq(it, &self.turner));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_that_ends_is_silent_for_ever_unless_another_takes_its_place() {
        let pulse = Pulse::default();
        let lasting = tokio::spawn(pulse.of("lasting".to_owned()));
        let replaced = tokio::spawn(pulse.of_replaceable("replaced".to_owned()));
        assert_eq!(pulse.threads(), ["lasting", "replaced"]);
        assert!(pulse.silent().is_empty(), "nobody has asked");
        pulse.ask();
        assert_eq!(pulse.silent(), ["lasting", "replaced"], "neither has had its turn");
        while !pulse.silent().is_empty() {
            tokio::task::yield_now().await;
        }
        for task in [lasting, replaced] {
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
        }
        assert_eq!(pulse.threads(), ["lasting"]);
        pulse.ask();
        let again = tokio::spawn(pulse.of_replaceable("replaced".to_owned()));
        again.abort();
        assert!(again.await.unwrap_err().is_cancelled());
        assert_eq!(pulse.silent(), ["lasting"]);
    }
}
