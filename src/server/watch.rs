//! Whether a whole node goes on: each of its threads, and the store's writer where something waits for it. What a service manager's
//! watchdog rests on.
//!
//! A thread is judged by nothing but its turning. A store that is read-only, a disk that is full, peers that are away: a restart mends
//! none of these, and who is told of them is the operator (`/readyz`, metrics).

use std::sync::Weak;

use crate::{actors::pulse::Pulse, store::Store};

/// Looks at a node, at its holder's pace.
#[derive(Clone)]
pub struct Watch {
    pulse: Pulse,
    /// Does not hold it: when the node has stopped, its store is free.
    store: Weak<dyn Store>,
    /// Where the store's writer was when all turned; see [`Store::turn`].
    writer: Option<u64>,
    /// Looks since then.
    looks: u32,
}

/// Looks that find the same round unfinished until the log says who is missing.
const SAID_AFTER: u32 = 2;

impl Watch {
    pub(super) fn new(pulse: Pulse, store: Weak<dyn Store>) -> Self {
        pulse.ask();
        Self { pulse, store, writer: None, looks: 0 }
    }

    /// Whether every thread has turned since the last look that found so. What hangs is in the log, once.
    pub fn look(&mut self) -> bool {
        let writer = self.store.upgrade().and_then(|store| store.turn());
        let mut silent = self.pulse.silent();
        if writer.is_some() && writer == self.writer {
            silent.push(WRITER.to_owned());
        }
        if silent.is_empty() {
            if self.looks >= SAID_AFTER {
                tracing::info!("every thread turns again");
            }
            (self.writer, self.looks) = (writer, 0);
            self.pulse.ask();
            return true;
        }
        self.looks = self.looks.saturating_add(1);
        if self.looks == SAID_AFTER {
            tracing::error!(
                threads = silent.join("; "),
                "threads of this node hang: where they do not go on soon, its service manager starts it again"
            );
        }
        false
    }
}

const WRITER: &str = "the store's writer";

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("silent", &self.pulse.silent()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        server::{Config, start},
        store::{Batch, StoreError, Write, faults::Fault, memory::Disk},
    };

    fn a_write() -> Batch {
        Batch::new().and(Write::Node { name: "n", bytes: vec![1] })
    }

    #[tokio::test]
    async fn a_writer_that_is_blocked_is_missed_until_it_goes_on() {
        let disk = Disk::new();
        let store = disk.open().unwrap();
        let mut watch = Watch::new(Pulse::default(), Arc::downgrade(&store));
        assert!(watch.look() && watch.look(), "nothing waits for it");
        disk.faults().hold();
        let written = store.write(a_write());
        while watch.look() {
            tokio::task::yield_now().await;
        }
        assert!(!watch.look() && !watch.look());
        disk.faults().release();
        written.await.unwrap();
        assert!(watch.look() && watch.look());
    }

    #[tokio::test]
    async fn a_store_that_is_full_or_read_only_is_no_reason_to_be_started_again() {
        let disk = Disk::new();
        let store = disk.open().unwrap();
        let mut watch = Watch::new(Pulse::default(), Arc::downgrade(&store));
        disk.faults().fail_flush(1, Fault::Lost);
        assert!(matches!(store.write(a_write()).await, Err(StoreError::Unavailable(_))));
        assert!(matches!(store.write(a_write()).await, Err(StoreError::ReadOnly(_))));
        assert!(watch.look() && watch.look() && watch.look());
        store.close().await.unwrap_err();
        drop(store);
        assert!(watch.look(), "and it holds no store open");
    }

    #[test]
    fn every_thread_of_a_node_is_asked_and_none_when_it_has_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let set = [
            ("MIMID_DATA_DIR", path),
            ("MIMID_STORE__ENGINE", "memory"),
            ("MIMID_CLIENT__LISTEN", "127.0.0.1:0"),
            ("MIMID_OPS__LISTEN", "127.0.0.1:0"),
            ("MIMID_FEDERATION__LISTEN", "127.0.0.1:0"),
            ("MIMID_LIMITS__ACTOR_THREADS", "2"),
            ("MIMID_LIMITS__WORKERS", "2"),
        ];
        let set = set.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let running = start(Config::load(None, set).unwrap()).unwrap();
        let mut watch = running.watch();
        let expected = [
            "actors 0, which decides",
            "actors 0, which delivers",
            "actors 1, which decides",
            "actors 1, which delivers",
            "the node's own",
            "worker of the client listener",
            "worker of the client listener",
            "worker of the federation listener",
            "worker of the federation listener",
            "worker of the ops listener",
        ];
        let asked = |watch: &Watch| {
            let mut threads = watch.pulse.threads();
            threads.sort();
            threads
        };
        // workers join while they start
        while asked(&watch) != expected {
            std::thread::yield_now();
        }
        for _ in 0..3 {
            while !watch.look() {
                std::thread::yield_now();
            }
        }
        running.stop().unwrap();
        watch.pulse.ask();
        assert!(!watch.look());
    }
}
