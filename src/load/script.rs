//! How far a group's script is, and what comes next in it.
//!
//! What was made ahead is good in one epoch. Where the hub says that the group is further (the workload was replayed before), the script goes
//! on where it fits; where that is nowhere, the group is spent. A commit whose outcome is unknown stays next, under the same id.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    LoadError,
    crew::{Accounts, Crew},
    ledger::Ledger,
    plan::{Change, Op},
    send::Verdict,
    workload::{Group, Step, Workload},
};
use crate::{
    crypto,
    wire::{
        extensions::QueueToken,
        ids::{GroupId, RequestId},
    },
};

/// One group of a workload at replay.
pub(super) enum Script {
    /// Nothing was due in it yet.
    Unopened,
    Ahead(Box<Ahead>),
    Live(Box<LiveScript>),
    /// Nothing more can happen in it.
    Gone,
}

/// A script that was made ahead.
pub(super) struct Ahead {
    pub id: GroupId,
    pub hub: usize,
    steps: u32,
    tail: u32,
    /// Of the step that comes next, and where it is.
    index: u32,
    at: u64,
    tail_at: Option<u64>,
    /// The step that comes next, once it was read, and where the one behind it is.
    next: Option<(Step, u64)>,
    /// Under which the commit that comes next was sent.
    request: Option<RequestId>,
    attempts: u32,
    /// The group's epoch, as the hub said last.
    epoch: u64,
    ledger: Arc<Ledger>,
    /// Members who read their queues.
    pub readers: u32,
}

/// A group whose members race: made when it is replayed.
pub(super) struct LiveScript {
    pub hub: usize,
    /// None: it is at work.
    pub crew: Option<Crew>,
    /// What reading it took, until its first operation is told of it.
    pub opening: Duration,
    ops: Vec<Op>,
    at: usize,
    tokens: VecDeque<QueueToken>,
}

impl Script {
    /// Reads a group's beginning.
    pub fn open(
        workload: &Workload,
        accounts: &Accounts,
        ledger: &Arc<Ledger>,
        index: usize,
    ) -> Result<Self, LoadError> {
        let (group, at) = workload.group(index)?;
        let Group { id, hub, members, epoch, steps, tail, live } = group;
        let hub = hub as usize;
        let Some(live) = live else {
            let readers = members.iter().filter(|account| ledger.reads(**account)).count();
            return Ok(Self::Ahead(Box::new(Ahead {
                id,
                hub,
                steps,
                tail: tail.min(steps),
                index: 0,
                at,
                tail_at: None,
                next: None,
                request: None,
                attempts: 0,
                epoch,
                ledger: Arc::clone(ledger),
                readers: u32::try_from(readers).unwrap_or(u32::MAX),
            })));
        };
        let began = Instant::now();
        let message_bytes = workload.header.shape.message_bytes;
        let crew = Crew::open(id, accounts, live.crew, message_bytes)?;
        Ok(Self::Live(Box::new(LiveScript {
            hub,
            crew: Some(crew),
            opening: began.elapsed(),
            ops: live.ops,
            at: 0,
            tokens: live.tokens.into(),
        })))
    }

    /// Whether what comes next goes alone; none where nothing does.
    pub fn holds(&mut self, workload: &Workload) -> Result<Option<bool>, LoadError> {
        match self {
            Self::Ahead(ahead) => Ok(ahead.peek(workload)?.map(|step| step.holds > 0)),
            Self::Live(_) => Ok(Some(true)),
            Self::Unopened | Self::Gone => Ok(None),
        }
    }
}

impl Ahead {
    fn peek(&mut self, workload: &Workload) -> Result<Option<&Step>, LoadError> {
        loop {
            if self.next.is_none() {
                if self.index == self.steps {
                    let Some(at) = self.tail_at.filter(|_| self.tail > 0) else { return Ok(None) };
                    self.index = self.steps - self.tail;
                    self.at = at;
                }
                if self.index == self.steps - self.tail {
                    self.tail_at = Some(self.at);
                }
                self.next = Some(workload.step(self.at)?);
            }
            let epoch = self.next.as_ref().map_or(0, |(step, _)| step.epoch);
            if epoch >= self.epoch {
                // a script that the group has not come to is of another group's past
                return Ok(self
                    .next
                    .as_ref()
                    .map(|(step, _)| step)
                    .filter(|_| epoch == self.epoch));
            }
            if self.index >= self.steps - self.tail {
                return Ok(None);
            }
            self.pass();
        }
    }

    fn pass(&mut self) {
        if let Some((step, next)) = self.next.take() {
            match step.change {
                Change::In(who) => {
                    let more = u32::from(self.ledger.reads(who));
                    self.readers = self.readers.saturating_add(more);
                }
                Change::Out(who) => {
                    let less = u32::from(self.ledger.reads(who));
                    self.readers = self.readers.saturating_sub(less);
                }
                Change::Nobody => {}
            }
            self.past(next);
        }
    }

    /// The step that came next is past; the one behind it is at `next`.
    fn past(&mut self, next: u64) {
        self.at = next;
        self.index += 1;
        self.request = None;
        self.attempts = 0;
    }

    /// The step that [`Script::holds`] has looked at, and the id to send it under. A message is past by that, a commit when it was judged.
    pub fn take(&mut self) -> Option<(Step, RequestId)> {
        let id = *self.request.get_or_insert_with(|| RequestId(crypto::random()));
        let (step, next) = self.next.take()?;
        if step.holds == 0 {
            self.past(next);
            return Some((step, id));
        }
        // it may have to be sent again
        let again = Step { requests: step.requests.clone(), ..step };
        self.next = Some((again, next));
        Some((step, id))
    }

    /// What the hub made of a step that was `held`, or of a message. `false`: nothing more can happen in the group.
    pub fn judged(&mut self, held: bool, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Accepted if held => {
                self.epoch += 1;
                self.pass();
                true
            }
            Verdict::WrongEpoch(current) => {
                let is_further = current > self.epoch;
                if held || is_further {
                    self.epoch = current;
                }
                // a hub that is behind has forgotten, or is another
                is_further || !held
            }
            Verdict::Unknown if held => {
                self.attempts += 1;
                self.attempts < ATTEMPTS_MAX
            }
            Verdict::Refused if held => false,
            Verdict::Accepted | Verdict::Unknown | Verdict::Refused => true,
        }
    }
}

impl LiveScript {
    /// What comes next. At the end it begins again with what can be done again.
    pub fn next(&mut self) -> Option<Op> {
        let repeats =
            |op: &Op| matches!(op, Op::Message { .. } | Op::Update { .. } | Op::Race { .. });
        let length = self.ops.len();
        for _ in 0..length * 2 {
            let is_again = self.at >= length;
            let op = self.ops.get(self.at % length.max(1))?.clone();
            self.at += 1;
            // whoever was removed speaks no more: the first driver never is
            if is_again && let Op::Message { .. } = op {
                let Some(Op::Message { by }) =
                    self.ops.iter().rev().find(|op| matches!(op, Op::Message { .. }))
                else {
                    continue;
                };
                return Some(Op::Message { by: *by });
            }
            if !is_again || repeats(&op) {
                return Some(op);
            }
        }
        None
    }

    /// A token of who comes in next.
    pub fn token(&mut self) -> Option<QueueToken> {
        self.tokens.pop_front()
    }
}

const ATTEMPTS_MAX: u32 = 5;
