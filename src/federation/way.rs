//! Which of the two ways a peer is sent to: feeds, or single requests where it says that it has no feeds (404). PROTOCOL.md
//! §3, "Replication of a group's feed".
//!
//! A 404 is also what a load balancer says while what is behind it is replaced. So a peer that has ever taken a feed is
//! believed only when it has said so several times in a row over a while; and who gets single requests is asked for
//! feeds again soon, less and less often while it goes on to say no.
//!
//! Pure: time and randomness are arguments. Deliberately absent: where a group's feed goes on (`outbox`, `direct`), and the
//! pauses between requests (`schedule`).

use super::schedule::Backoff;
use crate::wire::ids::Timestamp;

/// When a peer's word on feeds is taken, and when it is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WayLimits {
    /// A peer that has taken a feed is believed to take none after so many 404s in a row...
    pub not_found_max: u32,
    /// ...the last of which came at least this long after the first.
    pub not_found_ms: u64,
    /// How often feeds are tried with a peer that gets single requests.
    pub probe: Backoff,
}

/// What a 404 to a batch comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotFound {
    /// It is a failure like others: the batch is sent again.
    Again,
    /// Everything goes by single requests from now on.
    Singles,
}

/// One peer's way.
#[derive(Debug, Clone)]
pub struct Way {
    limits: WayLimits,
    /// It has taken a feed at some time, as far as is known.
    takes_feeds: bool,
    /// It has answered a batch since this was made, or said that it takes none.
    is_fresh: bool,
    /// 404s to batches in a row: their number, when the first one came, when the last one counted came.
    not_found: u32,
    not_found_since: Timestamp,
    not_found_at: Option<Timestamp>,
    /// Probes in a row that were answered with 404.
    probes: u32,
    /// Failures of the probe that is on, which are no answer.
    probe_failures: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Feeds,
    Singles {
        /// It has answered a single request: until then it may be that nothing is served there at all.
        answered: bool,
        probe_at: Timestamp,
        probing: bool,
    },
}

impl Way {
    #[must_use]
    pub fn new(limits: WayLimits) -> Self {
        Self {
            limits,
            takes_feeds: false,
            is_fresh: false,
            not_found: 0,
            not_found_since: Timestamp(0),
            not_found_at: None,
            probes: 0,
            probe_failures: 0,
            state: State::Feeds,
        }
    }

    #[must_use]
    pub fn is_direct(&self) -> bool {
        matches!(self.state, State::Singles { .. })
    }

    /// Whether the peer has ever taken a feed: then there are copies there.
    #[must_use]
    pub fn takes_feeds(&self) -> bool {
        self.takes_feeds
    }

    /// What the store says: it has taken feeds.
    pub fn took_feeds(&mut self) {
        self.takes_feeds = true;
    }

    /// What the store says of a group: it got single requests the last time. Counts as long as the peer has said nothing
    /// else. `true`: from now on this is its way.
    pub fn got_singles(&mut self, now: Timestamp, random: u64) -> bool {
        if self.is_fresh || self.is_direct() {
            return false;
        }
        // who had feeds before has them again, more likely than not
        let wait_ms = if self.takes_feeds { 0 } else { self.limits.probe.delay_ms(1, random) };
        self.probes = u32::from(!self.takes_feeds);
        let probe_at = now.plus_ms(wait_ms);
        self.state = State::Singles { answered: true, probe_at, probing: false };
        true
    }

    /// A batch was answered as one. `true`: the way is another one from now on.
    pub fn feeds_answered(&mut self) -> bool {
        let changes = self.is_direct();
        let limits = self.limits;
        *self = Self { takes_feeds: true, is_fresh: true, ..Self::new(limits) };
        changes
    }

    /// A batch that was sent at `sent_at` was answered with 404.
    pub fn feeds_not_found(&mut self, sent_at: Timestamp, now: Timestamp, random: u64) -> NotFound {
        match self.state {
            State::Singles { answered, .. } => {
                self.singles(answered, now, random);
                NotFound::Singles
            }
            State::Feeds if !self.takes_feeds => {
                self.singles(false, now, random);
                NotFound::Singles
            }
            State::Feeds => {
                if self.not_found_at.is_some_and(|counted_at| sent_at <= counted_at) {
                    // those that were on their way together are one
                    return NotFound::Again;
                }
                if self.not_found == 0 {
                    self.not_found_since = now;
                }
                self.not_found_at = Some(now);
                self.not_found = self.not_found.saturating_add(1);
                let lasts = now.ms_since(self.not_found_since) >= self.limits.not_found_ms;
                if !(lasts && self.not_found >= self.limits.not_found_max) {
                    return NotFound::Again;
                }
                self.singles(false, now, random);
                NotFound::Singles
            }
        }
    }

    /// A batch failed in another way: 404s before it and after it are not in a row.
    pub fn feeds_failed(&mut self) {
        self.not_found = 0;
    }

    pub fn singles_answered(&mut self) {
        if let State::Singles { answered, .. } = &mut self.state {
            *answered = true;
        }
    }

    /// A single request was answered with 404. `true`: neither way is served, so it is not feeds that are missing but
    /// the peer, and feeds are its way again.
    pub fn singles_not_found(&mut self) -> bool {
        if !matches!(self.state, State::Singles { answered: false, .. }) {
            return false;
        }
        self.state = State::Feeds;
        (self.is_fresh, self.not_found, self.not_found_at) = (false, 0, None);
        true
    }

    /// When feeds are to be tried, if they are to be.
    #[must_use]
    pub fn probe_at(&self) -> Option<Timestamp> {
        match self.state {
            State::Singles { answered: true, probing: false, probe_at } => Some(probe_at),
            State::Singles { .. } | State::Feeds => None,
        }
    }

    /// A batch is about to be sent that tries them (or not, after all).
    pub fn probe(&mut self, is_on: bool) {
        if let State::Singles { probing, .. } = &mut self.state {
            *probing = is_on;
        }
    }

    /// The batch that tries feeds came to no answer, or to one that is no word on feeds (`for_good`: it would be the same
    /// again). `true`: the probe is over, and the next one has its time; what it tried goes by single requests meanwhile.
    pub fn probe_failed(&mut self, for_good: bool, now: Timestamp, random: u64) -> bool {
        let State::Singles { answered, probing: true, .. } = self.state else { return false };
        self.probe_failures = self.probe_failures.saturating_add(1);
        if !for_good && self.probe_failures < PROBE_FAILURES_MAX {
            return false;
        }
        if !for_good {
            // who says nothing has not said no once more
            self.probes = self.probes.saturating_sub(1);
        }
        self.singles(answered, now, random);
        true
    }

    fn singles(&mut self, answered: bool, now: Timestamp, random: u64) {
        self.probes = self.probes.saturating_add(1);
        self.probe_failures = 0;
        let probe_at = now.plus_ms(self.limits.probe.delay_ms(self.probes, random));
        self.state = State::Singles { answered, probe_at, probing: false };
        (self.is_fresh, self.not_found, self.not_found_at) = (true, 0, None);
    }
}

/// A group by which feeds are tried waits for their answer, so it does not wait for many that do not come.
const PROBE_FAILURES_MAX: u32 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE_MS: u64 = 60_000;
    const LIMITS: WayLimits = WayLimits {
        not_found_max: 5,
        not_found_ms: 10 * MINUTE_MS,
        probe: Backoff { first_ms: 2 * MINUTE_MS, max_ms: 1_440 * MINUTE_MS },
    };

    fn at(ms: u64) -> Timestamp {
        Timestamp(1_000_000 + ms)
    }

    #[test]
    fn a_peer_that_never_took_a_feed_is_believed_at_once() {
        let mut way = Way::new(LIMITS);
        assert_eq!(way.feeds_not_found(at(0), at(1), 0), NotFound::Singles);
        assert!(way.is_direct());
        assert_eq!(way.probe_at(), None, "it may be that nothing is served there");
        way.singles_answered();
        assert_eq!(way.probe_at(), Some(at(1 + MINUTE_MS)));
    }

    #[test]
    fn one_that_took_feeds_is_believed_after_a_while_and_several_times() {
        for from_store in [true, false] {
            let mut way = Way::new(LIMITS);
            if from_store {
                way.took_feeds();
            } else {
                assert!(!way.feeds_answered());
            }
            // many at once, and many in a short time
            for ms in 0..60 {
                let is = way.feeds_not_found(at(ms), at(ms + 1), 0);
                assert_eq!(is, NotFound::Again);
            }
            assert_eq!(way.feeds_not_found(at(10), at(11 * MINUTE_MS), 0), NotFound::Again);
            let sent_at = at(11 * MINUTE_MS);
            assert_eq!(way.feeds_not_found(sent_at, at(12 * MINUTE_MS), 0), NotFound::Singles);
            assert!(way.is_direct());
        }
    }

    #[test]
    fn what_is_not_in_a_row_does_not_count_and_neither_does_one_late_one() {
        let mut way = Way::new(LIMITS);
        way.took_feeds();
        for turn in 0..100 {
            let now = at(turn * MINUTE_MS);
            if turn % 8 == 7 {
                way.feeds_failed();
            }
            let is = way.feeds_not_found(now, now.plus_ms(1), 0);
            assert_eq!(is, NotFound::Again, "{turn}");
        }
        way.feeds_answered();
        for turn in 0..4 {
            let now = at((200 + turn * 20) * MINUTE_MS);
            assert_eq!(way.feeds_not_found(now, now.plus_ms(1), 0), NotFound::Again);
        }
    }

    #[test]
    fn the_way_back_is_tried_soon_and_then_less_often() {
        let mut way = Way::new(LIMITS);
        let mut now = at(0);
        way.feeds_not_found(now, now, 0);
        way.singles_answered();
        let mut pauses = Vec::new();
        for _ in 0..14 {
            let probe_at = way.probe_at().unwrap();
            pauses.push(probe_at.ms_since(now) / MINUTE_MS);
            now = probe_at;
            way.probe(true);
            assert_eq!(way.probe_at(), None);
            assert_eq!(way.feeds_not_found(now, now, 0), NotFound::Singles);
        }
        assert_eq!(pauses[..4], [1, 2, 4, 8]);
        assert_eq!(pauses[13], 720);
        way.probe(true);
        assert!(way.feeds_answered());
        assert!(!way.is_direct() && way.takes_feeds());
    }

    #[test]
    fn a_probe_that_nobody_answers_is_given_up_and_is_not_a_no() {
        let mut way = Way::new(LIMITS);
        way.feeds_not_found(at(0), at(0), 0);
        way.singles_answered();
        assert!(!way.probe_failed(true, at(1), 0), "none is on");
        let mut now = at(0);
        for for_good in [false, false, true, true] {
            now = way.probe_at().unwrap();
            way.probe(true);
            if !for_good {
                assert!(!way.probe_failed(false, now, 0));
                assert!(!way.probe_failed(false, now, 0));
                assert_eq!(way.probe_at(), None, "it is still on");
            }
            assert!(way.probe_failed(for_good, now, 0));
            assert!(way.is_direct());
        }
        assert_eq!(way.probe_at(), Some(now.plus_ms(4 * MINUTE_MS)), "the third no");
    }

    #[test]
    fn what_the_store_says_counts_until_the_peer_says_something() {
        let mut way = Way::new(LIMITS);
        way.took_feeds();
        assert!(way.got_singles(at(5), 0));
        assert_eq!(way.probe_at(), Some(at(5)), "it had feeds before: it is asked at once");
        way.feeds_answered();
        assert!(!way.got_singles(at(6), 0));
        let mut other = Way::new(LIMITS);
        assert!(other.got_singles(at(5), 0));
        assert_eq!(other.probe_at(), Some(at(5 + MINUTE_MS)));
    }

    proptest! {
        /// Whatever comes in whatever order: one that took feeds changes only after 404s for as long as it takes, and
        /// who gets single requests and answers them is always to be asked again within a day.
        #[test]
        fn nobody_changes_too_early_or_stays_for_good(
            steps in proptest::collection::vec((0_u8..8, 0_u64..400_000, any::<u64>()), 1..120),
            took: bool,
        ) {
            let mut way = Way::new(LIMITS);
            if took {
                way.took_feeds();
            }
            let (mut now, mut row, mut since) = (at(0), 0_u32, at(0));
            for (step, pause_ms, random) in steps {
                let sent_at = now.plus_ms(1);
                now = sent_at.plus_ms(pause_ms);
                let (was_direct, took) = (way.is_direct(), way.takes_feeds());
                match step {
                    0 | 1 => {
                        if row == 0 {
                            since = now;
                        }
                        row += 1;
                        let is = way.feeds_not_found(sent_at, now, random);
                        let early = row < LIMITS.not_found_max
                            || now.ms_since(since) < LIMITS.not_found_ms;
                        prop_assert_eq!(
                            is == NotFound::Again,
                            !was_direct && took && early
                        );
                        if is == NotFound::Singles {
                            row = 0;
                        }
                    }
                    2 => {
                        way.feeds_answered();
                        row = 0;
                    }
                    3 => {
                        way.feeds_failed();
                        row = 0;
                    }
                    4 => way.singles_answered(),
                    5 => way.probe(true),
                    6 => {
                        let (was_on, is_over) = (
                            was_direct && way.probe_at().is_none(),
                            way.probe_failed(random % 2 == 0, now, random),
                        );
                        prop_assert!(!is_over || was_on);
                        prop_assert_eq!(was_direct, way.is_direct());
                    }
                    _ => {
                        if way.singles_not_found() {
                            row = 0;
                        }
                    }
                }
                prop_assert!(!took || way.takes_feeds());
                if let Some(probe_at) = way.probe_at() {
                    prop_assert!(way.is_direct());
                    prop_assert!(probe_at <= now.plus_ms(LIMITS.probe.max_ms));
                }
            }
        }
    }
}
