//! How long the queue before one group is, in time. Pure.

use std::time::Duration;

/// What is known of one queue that is worked off one by one: how long each who stands in it takes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Line {
    each: Option<Duration>,
}

impl Line {
    /// Who had `ahead` others before it has waited for so long.
    pub fn took_up(&mut self, ahead: usize, waited: Duration) {
        // before a short queue it is others that a thread is busy with
        if ahead < AHEAD_MIN {
            return;
        }
        let each = waited / u32::try_from(ahead).unwrap_or(u32::MAX);
        self.each = Some(self.each.map_or(each, |before| (before * 7 + each) / 8));
    }

    /// How long one more would wait behind `in_hand` others.
    #[must_use]
    pub fn wait(&self, in_hand: usize) -> Duration {
        let count = u32::try_from(in_hand).unwrap_or(u32::MAX);
        self.each.unwrap_or_default().saturating_mul(count)
    }

    /// Whether one more would wait for longer than `max`; how long then. A short queue always has room.
    #[must_use]
    pub fn is_too_long(&self, in_hand: usize, max: Duration) -> Option<Duration> {
        let wait = self.wait(in_hand);
        (in_hand >= IN_HAND_MIN && wait > max).then_some(wait)
    }
}

/// Fewer before somebody say nothing of the queue.
const AHEAD_MIN: usize = 4;
/// So many may always wait.
const IN_HAND_MIN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_millis(250);

    #[test]
    fn a_queue_is_too_long_by_what_each_in_it_takes_and_a_short_one_never() {
        let mut line = Line::default();
        assert_eq!(line.is_too_long(10_000, MAX), None, "nothing is known yet");
        line.took_up(10, Duration::from_millis(50));
        assert_eq!(line.is_too_long(50, MAX), None);
        assert_eq!(line.is_too_long(51, MAX), Some(Duration::from_millis(255)));
        for _ in 0..100 {
            line.took_up(10, Duration::from_secs(10));
        }
        assert_eq!(line.is_too_long(7, MAX), None);
        assert!(line.is_too_long(8, MAX).is_some());
        for _ in 0..100 {
            line.took_up(10, Duration::from_millis(1));
        }
        assert_eq!(line.is_too_long(200, MAX), None, "it has become quick again");
    }

    #[test]
    fn a_thread_that_is_busy_with_others_does_not_make_a_group_look_slow() {
        let mut line = Line::default();
        for ahead in 0..AHEAD_MIN {
            line.took_up(ahead, Duration::from_secs(60));
        }
        assert_eq!(line.is_too_long(256, MAX), None);
    }
}
