//! When a peer may be spoken to: backoff with jitter, what the peer itself asked for, and a circuit that keeps a dead
//! peer from being hammered.
//!
//! Pure: the time and the randomness are arguments. Deliberately absent: what is sent (`outbox`) and who sends it.

use crate::wire::ids::Timestamp;

/// Delays that grow. All in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Around the delay after the first failure.
    pub first_ms: u64,
    /// Delays do not grow beyond this.
    pub max_ms: u64,
}

impl Backoff {
    /// The delay after the `failures`-th failure in a row: it doubles up to the maximum, and `random` (all of its values
    /// alike) decides where between a half and the whole of that it lies, so that those who failed together do
    /// not come back together.
    #[must_use]
    pub fn delay_ms(&self, failures: u32, random: u64) -> u64 {
        let doublings = failures.saturating_sub(1).min(MAX_DOUBLINGS);
        let whole = self.first_ms.saturating_mul(1 << doublings).min(self.max_ms).max(1);
        let half = whole / 2;
        half + random % (whole - half + 1)
    }
}

/// Bounds of a [`Circuit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduleLimits {
    pub backoff: Backoff,
    /// What a peer asks for is honoured up to this.
    pub retry_after_ms_max: u64,
    /// So many transport failures in a row open the circuit.
    pub failures_to_open: u32,
}

/// How a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nobody there who could have answered: discovery, connection, TLS, time-out, an answer that cannot be read,
    /// a server error without a word on when to come back. These count: enough of them in a row open the circuit.
    Transport,
    /// The peer is there and takes nothing now. It says when to come back, or leaves that to us.
    Busy { retry_after_ms: Option<u64> },
    /// The peer is there and does not take this from us.
    Refused,
}

/// Whether a request may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// As many as the caller likes.
    Free,
    /// One, and no other before it is answered.
    Probe,
    /// Not before this.
    NotBefore(Timestamp),
    /// Not before the probe that is on its way is answered.
    Probing,
}

/// What operators see of a [`Circuit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CircuitState {
    Closed,
    Open,
    HalfOpen,
}

impl CircuitState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// One peer's: closed while it answers; open after [`ScheduleLimits::failures_to_open`] transport failures in a row; half
/// open while one request probes whether it is back. A peer that is busy is there: it is asked by one request at a time, at longer and
/// longer intervals, and only when it has said nothing else for an hour is it as good as dead.
#[derive(Debug, Clone)]
pub struct Circuit {
    limits: ScheduleLimits,
    /// Failures in a row, of any kind.
    failures: u32,
    /// Transport failures in a row.
    transport_failures: u32,
    /// Since when it has been busy and nothing else.
    busy_since: Option<Timestamp>,
    /// It has been so for too long.
    busy_for_long: bool,
    not_before: Timestamp,
    probing: bool,
    /// Requests that were sent before this and fail after it tell nothing new.
    failed_at: Option<Timestamp>,
}

impl Circuit {
    #[must_use]
    pub fn new(limits: ScheduleLimits) -> Self {
        Self {
            limits,
            failures: 0,
            transport_failures: 0,
            busy_since: None,
            busy_for_long: false,
            not_before: Timestamp(0),
            probing: false,
            failed_at: None,
        }
    }

    #[must_use]
    pub fn state(&self) -> CircuitState {
        match (self.is_open(), self.probing) {
            (false, _) => CircuitState::Closed,
            (true, false) => CircuitState::Open,
            (true, true) => CircuitState::HalfOpen,
        }
    }

    /// Whether a request may be sent now. Asking changes nothing: who sends says so with [`Self::sent`].
    #[must_use]
    pub fn permission(&self, now: Timestamp) -> Permission {
        if self.probing {
            Permission::Probing
        } else if now < self.not_before && !self.was_set_back(now) {
            Permission::NotBefore(self.not_before)
        } else if self.asks_one_by_one() {
            Permission::Probe
        } else {
            Permission::Free
        }
    }

    /// A request was sent: to a peer that did not take the last one it is the probe.
    pub fn sent(&mut self, now: Timestamp) {
        if self.was_set_back(now) {
            // else this one, sent "before" what failed already, could fail and tell nothing: a probe without an end
            self.failed_at = Some(Timestamp(now.0.saturating_sub(1)));
            self.not_before = now;
        }
        self.probing |= self.asks_one_by_one();
    }

    /// What was announced by [`Self::sent`] was not sent after all.
    pub fn not_sent(&mut self) {
        self.probing = false;
    }

    /// The peer answered as it should.
    pub fn succeeded(&mut self) {
        *self = Self::new(self.limits);
    }

    /// A request that was sent at `sent_at` failed. Several that were on their way together count once.
    pub fn failed(&mut self, failure: Failure, sent_at: Timestamp, now: Timestamp, random: u64) {
        if self.was_set_back(now) {
            // by the clock that it was reckoned with
            self.not_before = now;
        } else if self.failed_at.is_some_and(|failed_at| sent_at <= failed_at) {
            // a probe is sent later than what opened the circuit failed: this is none
            return;
        }
        self.probing = false;
        self.failed_at = Some(now);
        self.failures = self.failures.saturating_add(1);
        let mut delay_ms = self.limits.backoff.delay_ms(self.failures, random);
        match failure {
            Failure::Transport => {
                self.transport_failures = self.transport_failures.saturating_add(1);
                self.busy_since = None;
            }
            Failure::Refused => (self.transport_failures, self.busy_since) = (0, None),
            Failure::Busy { retry_after_ms } => {
                self.transport_failures = 0;
                let since = *self.busy_since.get_or_insert(now);
                self.busy_for_long = now.ms_since(since) >= BUSY_TO_OPEN_MS;
                if let Some(asked_ms) = retry_after_ms {
                    // never less than asked (up to the bound), more where that did not help, and not all at the same moment
                    let asked_ms = asked_ms.min(self.limits.retry_after_ms_max);
                    let more_ms = delay_ms.min(asked_ms.saturating_mul(BUSY_TIMES_MAX));
                    delay_ms = asked_ms.max(more_ms) + random % (asked_ms / 4 + 1);
                }
            }
        }
        self.busy_for_long &= self.busy_since.is_some();
        self.not_before = self.not_before.max(now.plus_ms(delay_ms.max(1)));
    }

    /// An operator wants it tried at once.
    pub fn hasten(&mut self, now: Timestamp) {
        let earliest = self.failed_at.map_or(now, |failed_at| failed_at.plus_ms(1).max(now));
        self.not_before = self.not_before.min(earliest);
    }

    /// The clock was ahead when the last failure was noted: that the peer waits for it to come there again helps nobody.
    fn was_set_back(&self, now: Timestamp) -> bool {
        self.failed_at.is_some_and(|failed_at| now < failed_at)
    }

    fn is_open(&self) -> bool {
        self.transport_failures >= self.limits.failures_to_open || self.busy_for_long
    }

    fn asks_one_by_one(&self) -> bool {
        self.is_open() || self.busy_since.is_some()
    }
}

/// A peer that has said nothing but that it is busy for so long is left alone like one that is dead.
const BUSY_TO_OPEN_MS: u64 = 60 * 60 * 1000;
/// A peer that stays busy is asked after up to so many times what it asks for.
const BUSY_TIMES_MAX: u64 = 8;

/// Beyond these no maximum that anybody configures is reached later.
const MAX_DOUBLINGS: u32 = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: ScheduleLimits = ScheduleLimits {
        backoff: Backoff { first_ms: 1_000, max_ms: 60_000 },
        retry_after_ms_max: 600_000,
        failures_to_open: 3,
    };

    fn at(ms: u64) -> Timestamp {
        Timestamp(1_000_000 + ms)
    }

    #[test]
    fn a_circuit_opens_after_failures_in_a_row_and_closes_by_one_probe() {
        let mut circuit = Circuit::new(LIMITS);
        let mut now = at(0);
        for failure in 1..=3 {
            assert_eq!(circuit.permission(now), Permission::Free);
            assert_eq!(circuit.state(), CircuitState::Closed);
            circuit.sent(now);
            circuit.failed(Failure::Transport, now, now.plus_ms(5), 0);
            let Permission::NotBefore(next) = circuit.permission(now.plus_ms(5)) else {
                panic!("there is a pause after failure {failure}")
            };
            now = next;
        }
        assert_eq!(circuit.state(), CircuitState::Open);
        assert_eq!(circuit.permission(now), Permission::Probe);
        circuit.sent(now);
        assert_eq!(circuit.state(), CircuitState::HalfOpen);
        assert_eq!(circuit.permission(now), Permission::Probing);
        circuit.failed(Failure::Transport, now, now.plus_ms(5), 0);
        assert_eq!(circuit.state(), CircuitState::Open);
        let Permission::NotBefore(next) = circuit.permission(now.plus_ms(5)) else {
            panic!("there is a pause after a probe that failed")
        };
        circuit.sent(next);
        circuit.succeeded();
        assert_eq!(circuit.state(), CircuitState::Closed);
        assert_eq!(circuit.permission(next), Permission::Free);
    }

    #[test]
    fn what_was_on_its_way_together_fails_once() {
        let mut circuit = Circuit::new(LIMITS);
        for _ in 0..8 {
            circuit.failed(Failure::Transport, at(0), at(10), 0);
        }
        assert_eq!(circuit.state(), CircuitState::Closed);
    }

    #[test]
    fn a_peer_that_answers_does_not_open_the_circuit() {
        let mut circuit = Circuit::new(LIMITS);
        for turn in 0..20 {
            let failure = match turn % 2 {
                0 => Failure::Busy { retry_after_ms: None },
                _ => Failure::Refused,
            };
            circuit.failed(failure, at(turn * 100), at(turn * 100 + 1), 7);
            assert_eq!(circuit.state(), CircuitState::Closed);
        }
    }

    #[test]
    fn a_clock_that_is_set_back_keeps_nobody_waiting_and_a_pause_is_one_by_the_new_time() {
        for failures in [1, 3] {
            let mut circuit = Circuit::new(LIMITS);
            let ahead = at(86_400_000);
            for n in 0..failures {
                let failed_at = ahead.plus_ms(100 * n + 1);
                circuit.failed(Failure::Transport, ahead.plus_ms(100 * n), failed_at, 0);
            }
            assert!(matches!(circuit.permission(at(0)), Permission::Free | Permission::Probe));
            circuit.sent(at(0));
            circuit.failed(Failure::Transport, at(0), at(10), 0);
            let Permission::NotBefore(next) = circuit.permission(at(10)) else { panic!("a pause") };
            assert!(next > at(10) && next <= at(10).plus_ms(LIMITS.backoff.max_ms));
            // what was on its way beside it counts once, as ever
            circuit.failed(Failure::Transport, at(0), at(11), 0);
            assert_eq!(circuit.permission(at(11)), Permission::NotBefore(next));
        }
    }

    #[test]
    fn a_probe_that_began_on_a_clock_set_back_and_failed_behind_the_last_failure_is_over() {
        let mut circuit = Circuit::new(LIMITS);
        let mut now = at(60_000);
        for _ in 0..3 {
            circuit.sent(now);
            circuit.failed(Failure::Transport, now, now.plus_ms(5), 0);
            now = now.plus_ms(10_000);
        }
        // a little before the last failure by now
        let (sent_at, fails_at) = (at(79_000), at(109_000));
        assert_eq!(circuit.permission(sent_at), Permission::Probe);
        circuit.sent(sent_at);
        assert_eq!(circuit.permission(sent_at), Permission::Probing);
        circuit.failed(Failure::Transport, sent_at, fails_at, 0);
        let Permission::NotBefore(next) = circuit.permission(fails_at) else {
            panic!("there is a pause, and an end of it: {:?}", circuit.permission(fails_at))
        };
        assert!(next <= fails_at.plus_ms(LIMITS.backoff.max_ms));
    }

    #[test]
    fn a_busy_peer_is_asked_by_one_request_at_a_time_and_less_often_until_it_takes_one() {
        let mut circuit = Circuit::new(LIMITS);
        let busy = Failure::Busy { retry_after_ms: Some(1_000) };
        let (mut now, mut pauses) = (at(0), Vec::new());
        for _ in 0..6 {
            circuit.sent(now);
            circuit.failed(busy, now, now.plus_ms(1), 0);
            let Permission::NotBefore(next) = circuit.permission(now.plus_ms(1)) else {
                panic!("there is a pause")
            };
            pauses.push(next.ms_since(now.plus_ms(1)));
            now = next;
            assert_eq!(circuit.state(), CircuitState::Closed, "it is there");
            assert_eq!(circuit.permission(now), Permission::Probe);
            circuit.sent(now);
            assert_eq!(circuit.permission(now), Permission::Probing);
        }
        assert_eq!(pauses, [1_000, 1_000, 2_000, 4_000, 8_000, 8_000]);
        circuit.succeeded();
        assert_eq!(circuit.permission(now), Permission::Free);
    }

    #[test]
    fn a_peer_that_is_busy_for_an_hour_is_as_good_as_dead_until_it_says_something_else() {
        let busy = Failure::Busy { retry_after_ms: Some(1_000) };
        let dead = || {
            let mut circuit = Circuit::new(LIMITS);
            for minute in 0..60 {
                circuit.failed(busy, at(minute * 60_000), at(minute * 60_000 + 1), 0);
                assert_eq!(circuit.state(), CircuitState::Closed, "minute {minute}");
            }
            circuit.failed(busy, at(3_600_001), at(3_600_002), 0);
            assert_eq!(circuit.state(), CircuitState::Open);
            circuit
        };
        let mut back = dead();
        back.succeeded();
        assert_eq!(back.state(), CircuitState::Closed);
        let mut refuses = dead();
        refuses.failed(Failure::Refused, at(3_700_000), at(3_700_001), 0);
        assert_eq!(refuses.state(), CircuitState::Closed);
    }

    #[test]
    fn what_a_peer_asks_for_is_honoured_up_to_a_bound() {
        let asked = |retry_after_ms| {
            let mut circuit = Circuit::new(LIMITS);
            circuit.failed(Failure::Busy { retry_after_ms: Some(retry_after_ms) }, at(0), at(0), 0);
            circuit.permission(at(0))
        };
        assert_eq!(asked(30_000), Permission::NotBefore(at(30_000)));
        assert_eq!(asked(u64::MAX), Permission::NotBefore(at(600_000)));
    }

    proptest! {
        #[test]
        fn a_delay_is_within_its_bounds_and_grows(failures in 1_u32..200, random: u64) {
            let backoff = LIMITS.backoff;
            let delay = backoff.delay_ms(failures, random);
            prop_assert!((500..=60_000).contains(&delay));
            // the least of the next is no less than half of the most of this one
            prop_assert!(backoff.delay_ms(failures + 1, 0) * 2 >= delay.min(backoff.max_ms));
        }

        #[test]
        fn a_circuit_always_says_a_time_at_which_something_may_be_sent(
            steps in proptest::collection::vec((0_u8..5, any::<u64>(), 0_u64..100_000), 1..60),
        ) {
            let mut circuit = Circuit::new(LIMITS);
            let mut now = at(0);
            for (step, random, pause_ms) in steps {
                let sent_at = now;
                circuit.sent(now);
                now = now.plus_ms(pause_ms + 1);
                match step {
                    0 => circuit.succeeded(),
                    1 => circuit.failed(Failure::Refused, sent_at, now, random),
                    2 => {
                        let busy = Failure::Busy { retry_after_ms: Some(random) };
                        circuit.failed(busy, sent_at, now, random);
                    }
                    _ => circuit.failed(Failure::Transport, sent_at, now, random),
                }
                if let Permission::NotBefore(next) = circuit.permission(now) {
                    prop_assert!(next > now && next <= now.plus_ms(750_000));
                    now = next;
                }
                let permission = circuit.permission(now);
                prop_assert!(matches!(permission, Permission::Free | Permission::Probe));
            }
        }
    }
}
