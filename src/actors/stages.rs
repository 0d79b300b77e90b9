//! Where the time of one request goes. Each moment of it belongs to one [`Stage`], so that the stages add up to the whole.
//!
//! Like its span, a request's [`Stages`] are at hand wherever it is worked on: they go with its task ([`Stages::scope`]) and in
//! the message to an actor ([`Stages::within`]). Who asks where no request is worked on gets some that keep nothing.
//!
//! Deliberately absent: what is made of the times. Metrics and the log of slow requests are `http`'s.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use super::hints::locked;
use crate::store::WriteTimes;

/// What a request is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its body comes in.
    Read,
    /// Bytes become a message.
    Decode,
    /// Whose it is; a peer's keys may have to be fetched for that.
    Authenticate,
    /// It waits for its group: for what came before, for the group to be loaded, for a turn in the pool.
    Queue,
    /// The group's rules decide, and what they decided is merged.
    Stage,
    /// Its write waits for the store's writer.
    Write,
    /// What the answer rests on becomes durable.
    Flush,
    /// All else that is done for it: reads, other providers, writes that no group does.
    Work,
    /// A long poll waits for something to happen.
    Wait,
    /// From there to the answer's bytes.
    Answer,
}

impl Stage {
    pub const ALL: [Self; 10] = [
        Self::Read,
        Self::Decode,
        Self::Authenticate,
        Self::Queue,
        Self::Stage,
        Self::Write,
        Self::Flush,
        Self::Work,
        Self::Wait,
        Self::Answer,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Decode => "decode",
            Self::Authenticate => "authenticate",
            Self::Queue => "queue",
            Self::Stage => "stage",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Work => "work",
            Self::Wait => "wait",
            Self::Answer => "answer",
        }
    }
}

/// The stages of one request. Clones are the same request's.
#[derive(Debug, Clone, Default)]
pub struct Stages(Option<Arc<Mutex<Course>>>);

/// How long a request was in each stage so far.
#[derive(Debug, Clone, Default)]
pub struct Spent {
    /// By [`Stage::ALL`]; none where it never was.
    times: [Option<Duration>; Stage::ALL.len()],
    /// What was asked of a group.
    pub operation: Option<&'static str>,
}

#[derive(Debug)]
struct Course {
    at: Stage,
    since: Instant,
    spent: Spent,
}

tokio::task_local! {
    static CURRENT: Stages;
}

impl Stages {
    /// Those of a request that begins now, by [`Stage::Read`].
    #[must_use]
    pub fn begin() -> Self {
        let course = Course { at: Stage::Read, since: Instant::now(), spent: Spent::default() };
        Self(Some(Arc::new(Mutex::new(course))))
    }

    /// Those of nothing.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Those of the request that is being worked on.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.try_with(Self::clone).unwrap_or_default()
    }

    /// `work` with these at hand.
    pub async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self, work).await
    }

    /// The same for what does not wait.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self.clone(), work)
    }

    /// What came before ends now, and `stage` begins.
    pub fn enter(&self, stage: Stage) {
        if self.0.is_some() {
            self.enter_at(stage, Instant::now());
        }
    }

    /// What is asked of a group.
    pub fn name_operation(&self, operation: &'static str) {
        if let Some(course) = &self.0 {
            locked(course).spent.operation = Some(operation);
        }
    }

    /// How a write goes on its way, to be told when it is there.
    #[must_use]
    pub fn write_begins(&self) -> Option<Arc<WriteTimes>> {
        self.0.as_ref()?;
        self.enter(Stage::Write);
        Some(Arc::default())
    }

    /// The write that `times` are of is durable.
    pub fn write_is_there(&self, times: &WriteTimes) {
        if let Some(applied) = times.applied() {
            self.enter_at(Stage::Flush, applied);
        }
        self.enter_at(Stage::Answer, times.durable().unwrap_or_else(Instant::now));
    }

    /// How long it was in which stage, up to now.
    #[must_use]
    pub fn spent(&self) -> Spent {
        let Some(course) = &self.0 else { return Spent::default() };
        let mut course = locked(course);
        let at = course.at;
        course.enter(at, Instant::now());
        course.spent.clone()
    }

    fn enter_at(&self, stage: Stage, now: Instant) {
        if let Some(course) = &self.0 {
            locked(course).enter(stage, now);
        }
    }
}

impl Course {
    fn enter(&mut self, stage: Stage, now: Instant) {
        let spent = self.spent.times[self.at as usize].get_or_insert_default();
        // of two threads' moments the later one may be told first
        *spent += now.saturating_duration_since(self.since);
        (self.at, self.since) = (stage, now.max(self.since));
    }
}

impl Spent {
    /// In this stage; none where it never was.
    #[must_use]
    pub fn in_stage(&self, stage: Stage) -> Option<Duration> {
        self.times[stage as usize]
    }

    /// What it was in, in order, each with its time.
    pub fn stages(&self) -> impl Iterator<Item = (Stage, Duration)> + '_ {
        Stage::ALL.into_iter().filter_map(|stage| Some((stage, self.in_stage(stage)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_moment_is_in_one_stage_and_what_is_told_late_is_counted_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut course = Course { at: Stage::Read, since: start, spent: Spent::default() };
        course.enter(Stage::Decode, at(5));
        course.enter(Stage::Write, at(7));
        course.enter(Stage::Flush, at(20));
        // another thread's clock reading, told after a later one
        course.enter(Stage::Answer, at(18));
        course.enter(Stage::Decode, at(21));
        course.enter(Stage::Decode, at(24));
        let told: Vec<_> = course.spent.stages().map(|(s, t)| (s.name(), t.as_millis())).collect();
        assert_eq!(told, [("read", 5), ("decode", 5), ("write", 13), ("flush", 0), ("answer", 1)]);
        let sum: Duration = course.spent.stages().map(|(_, time)| time).sum();
        assert_eq!(sum, Duration::from_millis(24));
        assert_eq!(course.spent.in_stage(Stage::Wait), None);
    }

    #[tokio::test]
    async fn stages_go_with_their_request_and_with_nothing_else() {
        let mine = Stages::begin();
        let scoped = mine.clone().scope(async {
            Stages::current().name_operation("send_message");
            Stages::none().within(|| Stages::current().name_operation("of nobody"));
            tokio::spawn(async { Stages::current().0.is_none() }).await.unwrap()
        });
        assert!(scoped.await, "what is spawned is not the request");
        assert_eq!(mine.spent().operation, Some("send_message"));
        assert!(Stages::current().0.is_none());
        assert!(Stages::none().write_begins().is_none());
    }
}
