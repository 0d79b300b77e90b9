//! How many of something there are and how long the oldest has been there, for Prometheus: looked up when somebody collects, so
//! that ages are of that moment.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex},
};

use prometheus::{
    IntGaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::{clock::Clock, hints::locked};
use crate::wire::ids::Timestamp;

/// What there is in one state.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Aged {
    pub count: u64,
    /// 0 where there is none.
    pub oldest_ms: u64,
}

/// Two gauges: how many, and the oldest's age in seconds.
pub(super) struct AgesCollector<F> {
    count: IntGaugeVec,
    oldest: IntGaugeVec,
    find: F,
    /// Who collects has the gauges alone.
    collecting: Mutex<()>,
}

/// A gauge's name, and what it says.
pub(super) type Named = (&'static str, &'static str);

impl<F: Fn() -> Vec<(Option<&'static str>, Aged)>> AgesCollector<F> {
    /// `find` gives each value of `label`, where there is one, and what there is of it; always the same values.
    ///
    /// # Errors
    /// Where a name is not one of Prometheus'.
    pub fn new(
        count: Named,
        oldest: Named,
        label: Option<&str>,
        find: F,
    ) -> Result<Self, prometheus::Error> {
        let gauge = |(name, help): Named| IntGaugeVec::new(Opts::new(name, help), label.as_slice());
        Ok(Self { count: gauge(count)?, oldest: gauge(oldest)?, find, collecting: Mutex::new(()) })
    }
}

impl<F: Fn() -> Vec<(Option<&'static str>, Aged)> + Send + Sync> Collector for AgesCollector<F> {
    fn desc(&self) -> Vec<&Desc> {
        [&self.count, &self.oldest].into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let found = (self.find)();
        let _alone = locked(&self.collecting);
        let number = |it: u64| i64::try_from(it).unwrap_or(i64::MAX);
        for (state, Aged { count, oldest_ms }) in found {
            self.count.with_label_values(state.as_slice()).set(number(count));
            self.oldest.with_label_values(state.as_slice()).set(number(oldest_ms / 1000));
        }
        [&self.count, &self.oldest].into_iter().flat_map(Collector::collect).collect()
    }
}

/// Since when the oldest of what each of many has waits. As many at the most as there are of them.
#[derive(Debug)]
pub(super) struct Waiting<K>(Arc<Mutex<HashMap<K, Timestamp>>>);

impl<K> Default for Waiting<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Clone + Eq + Hash + Send + Sync + 'static> Waiting<K> {
    /// The oldest that `whose` has waits since then; none where nothing waits, or it is not active any more.
    pub fn note(&self, whose: &K, since: Option<Timestamp>) {
        let mut waiting = locked(&self.0);
        match since {
            None => {
                waiting.remove(whose);
            }
            Some(since) => match waiting.get_mut(whose) {
                Some(known) => *known = since,
                None => {
                    waiting.insert(whose.clone(), since);
                }
            },
        }
    }

    /// Of how many something waits, and for how long the oldest of it all has.
    ///
    /// # Errors
    /// Where a name is not one of Prometheus'.
    pub fn collector(
        &self,
        count: Named,
        oldest: Named,
        clock: Arc<dyn Clock>,
    ) -> Result<impl Collector + use<K>, prometheus::Error> {
        let waiting = Arc::clone(&self.0);
        AgesCollector::new(count, oldest, None, move || {
            let now = clock.now();
            let waiting = locked(&waiting);
            let oldest_ms = waiting.values().min().map_or(0, |since| now.ms_since(*since));
            vec![(None, Aged { count: waiting.len() as u64, oldest_ms })]
        })
    }
}
