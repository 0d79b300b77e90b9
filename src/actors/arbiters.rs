//! The threads that actors live on. They are not the HTTP workers: a commit to a large group costs
//! milliseconds, and must not stand between a socket and its TLS handshake.
//!
//! Who decides and who delivers live on different ones: when thousands of clients come back at once and read what they
//! missed, each of their queues wants its turn, and a group among them would answer nobody until all had it.
//!
//! Deliberately absent: who lives where beyond "the same key, the same thread", and any limit on how much a
//! thread is given (admission is a permit inside each command, see STYLE.md on actix).

use std::{io, sync::Arc};

use actix::{Actor, Addr, Context};
use actix_rt::{Arbiter, ArbiterHandle, task::JoinError};

use super::pulse::Pulse;

/// A fixed set of threads, each with its own event loop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ArbiterPool {
    deciding: Arc<[ArbiterHandle]>,
    delivering: Arc<[ArbiterHandle]>,
    pulse: Pulse,
}

/// What an actor does, and so which threads it may live on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// It says what becomes of a group.
    Decide,
    /// It brings what was decided to a client or to a peer.
    Deliver,
}

/// What [`ArbiterPool::start`] gives beside the pool: ends the threads.
#[derive(Debug)]
pub struct ArbiterThreads(Vec<Arbiter>);

impl ArbiterPool {
    /// Starts `threads` threads (at least one) for each [`Duty`]. Must be called inside an actix `System`.
    ///
    /// # Errors
    /// Where the operating system gives no more threads.
    pub fn start(threads: usize) -> io::Result<(Self, ArbiterThreads)> {
        let start =
            || (0..threads.max(1)).map(|_| Arbiter::try_new()).collect::<io::Result<Vec<_>>>();
        let (mut deciding, delivering) = (start()?, start()?);
        let handles = |of: &[Arbiter]| of.iter().map(Arbiter::handle).collect();
        let pulse = Pulse::default();
        for (does, arbiters) in [("decides", &deciding), ("delivers", &delivering)] {
            for (index, arbiter) in arbiters.iter().enumerate() {
                // one that takes nothing has ended already: it stays silent
                arbiter.spawn(pulse.of(format!("actors {index}, which {does}")));
            }
        }
        let pool = Self { deciding: handles(&deciding), delivering: handles(&delivering), pulse };
        deciding.extend(delivering);
        Ok((pool, ArbiterThreads(deciding)))
    }

    /// No threads: everything runs where it is asked for, in the order in which it is. What computes for long does so too, on this
    /// thread, from now on. For a simulation, in which nothing may depend on threads.
    #[cfg(test)]
    #[must_use]
    pub fn inline() -> Self {
        INLINE.set(true);
        Self { deciding: Arc::new([]), delivering: Arc::new([]), pulse: Pulse::default() }
    }

    /// Whether there are no threads.
    #[must_use]
    pub(super) fn is_inline(&self) -> bool {
        cfg!(test) && self.deciding.is_empty()
    }

    /// The thread of `hash` for `duty`: the same for as long as the process lives.
    fn on(&self, duty: Duty, hash: u64) -> &ArbiterHandle {
        let handles = match duty {
            Duty::Decide => &self.deciding,
            Duty::Deliver => &self.delivering,
        };
        // the remainder is below the number of threads, which is a usize
        &handles[usize::try_from(hash % handles.len() as u64).unwrap_or_default()]
    }

    /// Runs `future` on the thread of `hash`. `false` where that thread has ended: it will never run.
    pub fn spawn_on(
        &self,
        duty: Duty,
        hash: u64,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> bool {
        #[cfg(test)]
        if self.is_inline() {
            actix_rt::spawn(future);
            return true;
        }
        self.on(duty, hash).spawn(future)
    }

    /// Starts an actor on the thread of `hash`. `make` runs there, so the actor need not be `Send`.
    pub fn start_actor_on<A>(
        &self,
        duty: Duty,
        hash: u64,
        make: impl FnOnce(&mut Context<A>) -> A + Send + 'static,
    ) -> Addr<A>
    where
        A: Actor<Context = Context<A>>,
    {
        #[cfg(test)]
        if self.is_inline() {
            return A::create(make);
        }
        A::start_in_arbiter(self.on(duty, hash), make)
    }

    /// Which of these threads turn, and which others of the node that have joined.
    #[must_use]
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Of each duty.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.deciding.len()
    }
}

/// Computes what takes long where it is in no actor's way.
///
/// # Errors
/// Where `work` panicked.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    #[cfg(test)]
    if INLINE.get() {
        return tokio::spawn(async move { work() }).await;
    }
    actix_rt::task::spawn_blocking(work).await
}

#[cfg(test)]
thread_local! {
    static INLINE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

impl ArbiterThreads {
    /// Ends every thread; what still runs on them is dropped at its next await. Blocks until they are gone.
    pub fn stop_and_join(self) {
        for arbiter in &self.0 {
            arbiter.stop();
        }
        for arbiter in self.0 {
            // a panic on an actor's thread was logged where it happened
            let _ = arbiter.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Duty::*, *};

    #[test]
    fn one_hash_is_one_thread_and_different_hashes_share_the_pool() {
        actix_rt::System::new().block_on(async {
            let (pool, threads) = ArbiterPool::start(2).unwrap();
            let thread_for = async |duty: Duty, hash: u64| {
                let (tell, told) = tokio::sync::oneshot::channel();
                assert!(pool.spawn_on(duty, hash, async move {
                    let _ = tell.send(std::thread::current().id());
                }));
                told.await.unwrap()
            };
            let (even, odd) = (thread_for(Decide, 4).await, thread_for(Decide, 7).await);
            assert_ne!(even, odd);
            assert_eq!(thread_for(Decide, 4).await, even);
            assert_ne!(even, std::thread::current().id());
            let delivering = thread_for(Deliver, 4).await;
            assert!(![even, odd].contains(&delivering), "who delivers holds up nobody who decides");
            threads.stop_and_join();
            assert!(!pool.spawn_on(Decide, 4, async {}), "a thread that has ended takes nothing");
        });
    }

    #[test]
    fn a_thread_that_is_blocked_is_silent_until_it_goes_on_and_all_others_turn() {
        actix_rt::System::new().block_on(async {
            let (pool, threads) = ArbiterPool::start(2).unwrap();
            for (duty, name) in
                [(Decide, "actors 1, which decides"), (Deliver, "actors 1, which delivers")]
            {
                let (tell_blocked, blocked) = tokio::sync::oneshot::channel();
                let (release, released) = std::sync::mpsc::channel::<()>();
                assert!(pool.spawn_on(duty, 1, async move {
                    let _ = tell_blocked.send(());
                    let _ = released.recv();
                }));
                blocked.await.unwrap();
                pool.pulse().ask();
                while pool.pulse().silent() != [name] {
                    tokio::task::yield_now().await;
                }
                release.send(()).unwrap();
                while !pool.pulse().silent().is_empty() {
                    tokio::task::yield_now().await;
                }
            }
            assert_eq!(pool.pulse().threads().len(), 4);
            threads.stop_and_join();
            pool.pulse().ask();
            assert_eq!(pool.pulse().silent().len(), 4, "what has ended turns no more");
        });
    }
}
