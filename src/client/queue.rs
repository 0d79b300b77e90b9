//! A client's queue: fetched or followed, taken in, and only then acknowledged. PROTOCOL.md §3.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Client, ClientError,
    core::{Event, Handled, KEY_PACKAGES_LOW, Refusal},
    http::{HttpError, Stream, retry_after_ms},
    requests::spread_ms,
};
use crate::wire::{
    client::{Dequeue, Dequeued},
    codec::List,
    ds::DsError,
    encode,
    queueing::{QueueEntry, QueueEvent},
};

/// Entries to ask for at a time.
const ENTRIES_MAX: u32 = 500;
/// Entries that are taken in with one transaction.
const ENTRIES_PER_STEP: usize = 100;
/// Rounds in which entries only wait for an answer before they are left for later.
const IDLE_ROUNDS_MAX: u32 = 5;
/// How long after a broken stream the next one is tried.
const RECONNECT_MIN: Duration = Duration::from_millis(200);
const RECONNECT_MAX: Duration = Duration::from_secs(10);

impl Client {
    /// Takes in what is in the queue, waiting up to `wait_ms` for something, and does what follows from it (takes up
    /// Welcomes, resyncs, publishes KeyPackages). Gives the number of new entries.
    ///
    /// # Errors
    /// [`ClientError::Http`], [`ClientError::Unanswered`]: what was taken in stays so.
    pub async fn receive(&self, wait_ms: u32) -> Result<usize, ClientError> {
        let now = self.now();
        self.member().revive(now)?;
        self.resume_in_passing().await?;
        let mut taken = 0;
        let mut wait_ms = wait_ms;
        let mut idle = 0;
        loop {
            let round = self.pull(wait_ms).await?;
            self.resume_in_passing().await?;
            self.keep_stock().await?;
            taken += round.taken;
            // what waited for an answer, and what a Welcome opened, comes with the next round
            idle = if round.taken > 0 { 0 } else { idle + 1 };
            let nothing = round.taken == 0 && round.again == 0 && !round.waits;
            if round.entries == 0 || nothing || idle > IDLE_ROUNDS_MAX {
                if round.entries == 0 {
                    // a doubt becomes a resync, and where that is refused, an end
                    while self.member().settle_doubts()? > 0 {
                        self.resume_in_passing().await?;
                    }
                }
                return Ok(taken);
            }
            wait_ms = 0;
        }
    }

    /// Takes in one answer of the long poll and nothing more.
    pub(super) async fn pull(&self, wait_ms: u32) -> Result<Round, ClientError> {
        self.pull_until(wait_ms, self.until()).await
    }

    /// As [`Self::pull`]; it tries no longer than `until`.
    pub(super) async fn pull_until(
        &self,
        wait_ms: u32,
        until: Instant,
    ) -> Result<Round, ClientError> {
        let acks = self.member().acks()?;
        let request = Dequeue {
            acks: List::new(acks.clone())
                .map_err(|_| ClientError::Invalid("too many feeds".to_owned()))?,
            max: ENTRIES_MAX,
            wait_ms,
        };
        let body = encode(&request);
        let dequeued: Dequeued = self
            .patiently_until(until, async || {
                let body = body.clone();
                let answer = self.as_caller(async |http, caller| {
                    http.call(caller, "/v1/dequeue", body, wait_ms).await
                });
                let wait = Duration::from_millis(wait_ms.into());
                self.attempt(until, wait, answer).await
            })
            .await?;
        self.member().acknowledged(&acks)?;
        let mut round = Round { entries: dequeued.entries.len(), ..Round::default() };
        for entries in dequeued.entries.chunks(ENTRIES_PER_STEP) {
            for handled in self.take_all(entries)? {
                match handled {
                    Handled::Taken => round.taken += 1,
                    Handled::Duplicate => round.again += 1,
                    Handled::Wait => round.waits = true,
                }
            }
        }
        if round.taken + round.again > 0 {
            // nothing is lost where this fails: acknowledging is repeated with the next call
            if let Err(error) = self.acknowledge(until).await {
                tracing::debug!(%error, "the queue was not acknowledged");
            }
        }
        Ok(round)
    }

    async fn acknowledge(&self, until: Instant) -> Result<(), ClientError> {
        let acks = self.member().acks()?;
        let request = Dequeue {
            acks: List::new(acks.clone())
                .map_err(|_| ClientError::Invalid("too many feeds".to_owned()))?,
            max: 0,
            wait_ms: 0,
        };
        let _: Dequeued = self.call_until(until, "/v1/dequeue", encode(&request)).await?;
        Ok(self.member().acknowledged(&acks)?)
    }

    fn take_all(&self, entries: &[QueueEntry]) -> Result<Vec<Handled>, ClientError> {
        let now = self.now();
        let member = self.member();
        let low = |entry: &QueueEntry| matches!(entry.event, QueueEvent::KeyPackagesLow { .. });
        if entries.iter().any(low) {
            member.set(KEY_PACKAGES_LOW, &true)?;
        }
        Ok(member.handle_all(entries, now)?)
    }

    fn take(&self, entry: &QueueEntry) -> Result<Handled, ClientError> {
        let handled = self.take_all(std::slice::from_ref(entry))?;
        Ok(handled.first().copied().unwrap_or(Handled::Duplicate))
    }

    async fn keep_stock(&self) -> Result<(), ClientError> {
        let now = self.now();
        let is_low = self.member().setting(KEY_PACKAGES_LOW)? == Some(true);
        if !is_low && !self.member().may_renew_stock(now)? {
            return Ok(());
        }
        match self.stock_up().await {
            Ok(_) => Ok(self.member().set(KEY_PACKAGES_LOW, &false)?),
            Err(ClientError::Core(error)) => Err(error.into()),
            // there is time enough to try that again
            Err(error) if !is_low => {
                tracing::debug!(%error, "no new KeyPackages could be published");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Follows the queue over its stream until `on_event` says `false`, connecting again where the stream breaks.
    /// `on_event` gets each event with its number once in this call, beginning behind number `after`.
    ///
    /// # Errors
    /// [`ClientError::Refused`] where the provider will not have this client any more, [`ClientError::Core`]
    pub async fn follow(
        &self,
        mut after: u64,
        mut on_event: impl FnMut(u64, &Event) -> bool,
    ) -> Result<(), ClientError> {
        let mut delay = RECONNECT_MIN;
        let mut clock_corrected = false;
        let (mut said_broken, mut said_taken_over) = (false, false);
        loop {
            let mut came = false;
            let opened_at = Instant::now();
            let ended = match self.open_stream().await {
                Ok(mut stream) => {
                    let followed =
                        self.follow_stream(&mut stream, &mut after, &mut came, &mut on_event).await;
                    match followed {
                        Ok(()) => {
                            stream.close().await;
                            return Ok(());
                        }
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            if came || opened_at.elapsed() > RECONNECT_MAX {
                // one that only opens and breaks again is no reason to come back faster
                (delay, clock_corrected, said_broken) = (RECONNECT_MIN, false, false);
            }
            if matches!(&ended, ClientError::Http(HttpError::ClockOff(_))) && !clock_corrected {
                clock_corrected = true;
                // the answer to a call says what the time is, which a closed stream does not
                self.acknowledge(self.until()).await?;
                continue;
            }
            if !ended.passes() {
                return Err(ended);
            }
            // each is said once: every other command in the same home takes over for a moment
            let taken_over =
                matches!(&ended, ClientError::Refused(Refusal(DsError::Unavailable { .. })));
            let said = if taken_over { &mut said_taken_over } else { &mut said_broken };
            if std::mem::replace(said, true) {
                tracing::debug!(%ended, "the stream is opened again");
            } else {
                tracing::warn!(%ended, "the stream ended; it is opened again");
            }
            let mut asked_ms = 0;
            if let ClientError::Refused(Refusal(error)) = &ended {
                asked_ms = retry_after_ms(error).unwrap_or_default();
            }
            // those that lost their streams together do not come back together
            let wait = Duration::from_millis(asked_ms).max(delay);
            let wait_ms = spread_ms(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            delay = (delay * 2).min(RECONNECT_MAX);
        }
    }

    async fn open_stream(&self) -> Result<Stream, ClientError> {
        let now = self.now();
        self.member().revive(now)?;
        // what is unanswered comes first: entries may rest on it
        self.resume_in_passing().await?;
        let stream = self.as_caller(async |http, caller| http.stream(caller).await).await?;
        Ok(stream)
    }

    async fn follow_stream(
        &self,
        stream: &mut Stream,
        after: &mut u64,
        came: &mut bool,
        on_event: &mut impl FnMut(u64, &Event) -> bool,
    ) -> Result<(), ClientError> {
        loop {
            if !self.show(after, on_event)? {
                return Ok(());
            }
            let entry = tokio::select! {
                entry = stream.next() => entry?,
                // another task or process may have made something known
                () = tokio::time::sleep(LOOK_AROUND) => {
                    // nothing has come for a while: the queue is empty
                    let settled = self.member().settle_doubts()?;
                    let now = self.now();
                    let looks = self.member().has_looks(now)?;
                    if settled > 0 || looks || self.member().has_doubts()? {
                        self.resume_in_passing().await?;
                    }
                    continue;
                }
            };
            *came = true;
            let mut handled = self.take(&entry)?;
            if handled == Handled::Wait {
                self.resume_in_passing().await?;
                handled = self.take(&entry)?;
            }
            if handled == Handled::Wait {
                return Err(HttpError::StreamEnded(
                    "an entry rests on a request that has no answer yet".to_owned(),
                )
                .into());
            }
            let acks = self.member().acks()?;
            stream.acknowledge(&acks).await?;
            self.member().acknowledged(&acks)?;
            self.resume_in_passing().await?;
            self.keep_stock().await?;
        }
    }

    fn show(
        &self,
        after: &mut u64,
        on_event: &mut impl FnMut(u64, &Event) -> bool,
    ) -> Result<bool, ClientError> {
        let events = self.member().events(*after, 1000)?;
        for (number, event) in events {
            *after = number;
            if !on_event(number, &event) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What one answer of the long poll brought.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Round {
    pub entries: usize,
    pub taken: usize,
    /// Entries that came again: their acknowledgement was lost.
    pub again: usize,
    /// Some of it rests on a request that is on its way.
    pub waits: bool,
}

const LOOK_AROUND: Duration = Duration::from_millis(500);
