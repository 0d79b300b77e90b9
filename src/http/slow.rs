//! The log of slow requests: one line with every stage's time, so that a spike on a panel leads to requests, and their trace
//! ids to all else that the log has of them.
//!
//! What a client takes to send its body, and what a long poll waits for, is not this provider's slowness. When everything is slow
//! a few lines say it: beyond [`LINES_PER_SECOND`] they are counted, and the next line says how many there were.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::actors::stages::{Spent, Stage};

/// Who may say a line about a slow request.
#[derive(Debug)]
pub struct SlowLog(Mutex<Second>);

#[derive(Debug)]
struct Second {
    since: Option<Instant>,
    said: u32,
    unsaid: u64,
}

/// A request that was answered.
pub struct Answered {
    pub listener: &'static str,
    pub endpoint: &'static str,
    pub status: &'static str,
    pub http: u16,
    pub bytes: usize,
    pub took: Duration,
    pub spent: Spent,
}

impl Answered {
    /// How long this provider has had it in hand.
    pub fn in_hand(&self) -> Duration {
        let theirs = [Stage::Read, Stage::Wait].map(|stage| self.spent.in_stage(stage));
        self.took.saturating_sub(theirs.into_iter().flatten().sum())
    }
}

impl SlowLog {
    pub const fn new() -> Self {
        Self(Mutex::new(Second { since: None, said: 0, unsaid: 0 }))
    }

    /// Says it, where there were not too many such lines of late.
    pub fn say(&self, slow: &Answered) {
        let Some(unsaid) = self.turn(Instant::now()) else { return };
        let ms = |stage| slow.spent.in_stage(stage).map(millis);
        tracing::warn!(
            listener = slow.listener,
            endpoint = slow.endpoint,
            operation = slow.spent.operation,
            status = slow.status,
            http = slow.http,
            bytes = slow.bytes,
            took_ms = millis(slow.took),
            in_hand_ms = millis(slow.in_hand()),
            read_ms = ms(Stage::Read),
            decode_ms = ms(Stage::Decode),
            authenticate_ms = ms(Stage::Authenticate),
            queue_ms = ms(Stage::Queue),
            stage_ms = ms(Stage::Stage),
            write_ms = ms(Stage::Write),
            flush_ms = ms(Stage::Flush),
            work_ms = ms(Stage::Work),
            wait_ms = ms(Stage::Wait),
            answer_ms = ms(Stage::Answer),
            unsaid,
            "slow request"
        );
    }

    /// How many were not said since the last line, where one may be said now.
    fn turn(&self, now: Instant) -> Option<u64> {
        let mut second = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over =
            second.since.is_none_or(|since| now.saturating_duration_since(since) >= SECOND);
        if is_over {
            (second.since, second.said) = (Some(now), 0);
        }
        if second.said == LINES_PER_SECOND {
            second.unsaid += 1;
            return None;
        }
        second.said += 1;
        Some(std::mem::take(&mut second.unsaid))
    }
}

/// To the microsecond: more is noise.
pub fn millis(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

const LINES_PER_SECOND: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_everything_is_slow_a_few_lines_say_so_and_how_many_more_there_were() {
        let (log, start) = (SlowLog::new(), Instant::now());
        let said = |at: Duration| log.turn(start + at);
        for _ in 0..LINES_PER_SECOND {
            assert_eq!(said(Duration::ZERO), Some(0));
        }
        for ms in 0..500 {
            assert_eq!(said(Duration::from_millis(ms)), None);
        }
        assert_eq!(said(SECOND), Some(500));
        assert_eq!(said(SECOND), Some(0));
    }
}
