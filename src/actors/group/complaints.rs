//! Complaints about a commit: written down, then judged, then answered. The rules are `group`'s. PROTOCOL.md §2, "When a
//! committer lies".

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use actix::prelude::*;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::Span;

use super::{GroupActor, Waiter, history, takes_more};
use crate::{
    actors::{
        arbiters::blocking,
        errors::{internal, of_reject, of_store},
        moves::step,
    },
    group::{Effects, GroupState, Heard, Reject, Staged},
    store::StoreError,
    wire::{
        ds::{CommitComplaint, ComplaintOutcome, ComplaintResponse, DsError},
        ids::{Domain, Timestamp},
    },
};

/// A complaint that came through `relay`, with the permits that let it in.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Complain {
    pub ask: Box<Asked>,
    pub relay: Domain,
    pub span: Span,
}

/// Who waits for what becomes of a complaint.
pub struct Asked {
    pub complaint: CommitComplaint,
    pub reply: oneshot::Sender<Result<ComplaintResponse, DsError>>,
    pub permits: [OwnedSemaphorePermit; 2],
}

/// What is written down may be enough to go back one epoch.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Judge {
    pub(super) ask: Option<Box<Asked>>,
}

impl Handler<Complain> for GroupActor {
    type Result = ();
    fn handle(&mut self, complain: Complain, ctx: &mut Context<Self>) {
        complain.span.clone().in_scope(|| self.complain(complain, ctx));
    }
}

impl Handler<Judge> for GroupActor {
    type Result = ();
    fn handle(&mut self, judge: Judge, ctx: &mut Context<Self>) {
        self.judge(judge.ask, ctx);
    }
}

impl GroupActor {
    fn complain(&mut self, complain: Complain, ctx: &mut Context<Self>) {
        let Complain { ask, relay, .. } = complain;
        let now = self.node.clock.now();
        if let Some(error) = &self.broken {
            let _ = ask.reply.send(Err(error.clone()));
            return;
        }
        let Some(loaded) = self.loaded.as_ref() else {
            let _ = ask.reply.send(Err(of_reject(Reject::NotFound)));
            self.leave(ctx);
            return;
        };
        let state = &loaded.state;
        let heard =
            catch_unwind(AssertUnwindSafe(|| state.stage_complaint(&ask.complaint, &relay, now)));
        match heard {
            Err(_) => {
                let _ = ask.reply.send(Err(internal("a rule panicked on a complaint")));
                self.fail(&StoreError::Unavailable("a rule panicked".into()), ctx);
            }
            Ok(Err(reject)) => self.tell_complainant(Err(of_reject(reject)), *ask),
            // the quorum may have been written down before a crash
            Ok(Ok(Heard::Answer(answer))) if answer.outcome == ComplaintOutcome::Wait => {
                self.judge(Some(ask), ctx);
            }
            Ok(Ok(Heard::Answer(answer))) => self.tell_complainant(Ok(answer), *ask),
            Ok(Ok(Heard::Write(staged))) => {
                // only now: whoever complains of nothing keeps no group in memory
                self.last_used = Some(now);
                tracing::info!(
                    group = %self.id,
                    epoch = %ask.complaint.epoch,
                    leaf = %ask.complaint.leaf_index,
                    reason = ask.complaint.reason.code(),
                    "a member complains of a commit"
                );
                let address = ctx.address();
                let waiter: Waiter = Box::new(move |outcome| match outcome {
                    Ok(()) => address.do_send(Judge { ask: Some(ask) }),
                    Err(error) => {
                        let _ = ask.reply.send(Err(of_store(error.clone())));
                    }
                });
                self.take_verdict(*staged, now, waiter, ctx);
            }
        }
    }

    /// Goes back one epoch where a quorum wants it, and answers.
    fn judge(&mut self, ask: Option<Box<Asked>>, ctx: &mut Context<Self>) {
        let now = self.node.clock.now();
        // where it is not loaded, whoever waits asks the next actor
        let Some(state) = self.loaded.as_ref().map(|loaded| &loaded.state) else { return };
        let Some(sequence) = state.back_to(now) else { return self.answer_complaint(ask, now) };
        let Some(mut loaded) = self.loaded.take() else { return };
        let (node, hub) = (self.node.clone(), Arc::clone(&self.hub));
        let judging = async move {
            step("complaints.quorum").await;
            let _turn = Arc::clone(&node.groups.cpu).acquire_owned().await;
            let past = history::load_before(&node, &hub, &loaded.head, sequence).await;
            let past = past.and_then(|past| takes_more(&node).map(|()| past).map_err(of_store));
            let past = match past {
                Ok(past) => past,
                Err(error) => return Ok((loaded, Verdict::NotNow(error))),
            };
            let now = node.clock.now();
            // all of the group is written and read: not on the thread that other groups wait for
            blocking(move || {
                let judge = AssertUnwindSafe(|| go_back(&mut loaded.state, past, now));
                let verdict = catch_unwind(judge).map_or(Verdict::Panic, |staged| match staged {
                    Ok(Some(effects)) => Verdict::Write(Box::new(effects), now),
                    Ok(None) => Verdict::Nothing(now),
                    Err(reject) => Verdict::Broken(reject),
                });
                (loaded, verdict)
            })
            .await
        };
        // nothing else may be staged before the group has gone back
        let judged = judging.into_actor(self).map(move |judged, actor: &mut Self, ctx| {
            let verdict = judged.map_or(Verdict::Panic, |(loaded, verdict)| {
                actor.loaded = Some(loaded);
                verdict
            });
            actor.judged(verdict, ask, ctx);
        });
        ctx.wait(judged);
    }

    fn judged(&mut self, verdict: Verdict, ask: Option<Box<Asked>>, ctx: &mut Context<Self>) {
        match verdict {
            Verdict::Write(effects, now) => {
                let address = ctx.address();
                let waiter: Waiter = Box::new(move |outcome| match (outcome, ask) {
                    (Ok(()), Some(ask)) => address.do_send(Judge { ask: Some(ask) }),
                    (Err(error), Some(ask)) => {
                        let _ = ask.reply.send(Err(of_store(error.clone())));
                    }
                    (_, None) => {}
                });
                self.write_verdict(&effects, now, waiter, ctx);
            }
            Verdict::Nothing(now) => self.answer_complaint(ask, now),
            Verdict::NotNow(error) => {
                tracing::warn!(group = %self.id, %error, "the group cannot go back now");
                if let Some(ask) = ask {
                    let _ = ask.reply.send(Err(error));
                }
            }
            Verdict::Broken(reject) => {
                tracing::error!(group = %self.id, %reject, "the group cannot go back");
                self.fail(&StoreError::Unavailable("the group cannot go back".into()), ctx);
            }
            Verdict::Panic => {
                self.fail(&StoreError::Unavailable("a rule panicked".into()), ctx);
            }
        }
    }

    /// Merges and writes what was decided about a complaint.
    fn take_verdict(
        &mut self,
        staged: Staged,
        now: Timestamp,
        waiter: Waiter,
        ctx: &mut Context<Self>,
    ) {
        if let Err(error) = takes_more(&self.node) {
            return waiter(Err(&error));
        }
        let Some(loaded) = self.loaded.as_mut() else { return };
        let merged = catch_unwind(AssertUnwindSafe(|| loaded.state.merge(staged)));
        match merged {
            Ok(Ok(effects)) => self.write_verdict(&effects, now, waiter, ctx),
            Ok(Err(reject)) => {
                tracing::error!(group = %self.id, %reject, "a merge failed");
                self.fail(&StoreError::Unavailable("a merge failed".into()), ctx);
            }
            Err(_) => self.fail(&StoreError::Unavailable("a merge panicked".into()), ctx),
        }
    }

    fn write_verdict(
        &mut self,
        effects: &Effects,
        now: Timestamp,
        waiter: Waiter,
        ctx: &mut Context<Self>,
    ) {
        let tell = self.tell(effects);
        let Some(batch) = self.batch(effects, now) else { return };
        let waiter: Waiter = Box::new(move |outcome| {
            if outcome.is_ok() {
                tell();
            }
            waiter(outcome);
        });
        self.write(batch, waiter, ctx);
        self.snapshot_if_due(ctx);
    }

    fn answer_complaint(&mut self, ask: Option<Box<Asked>>, now: Timestamp) {
        let (Some(ask), Some(loaded)) = (ask, self.loaded.as_ref()) else { return };
        let answer = loaded.state.complaint_answer(&ask.complaint, now);
        self.tell_complainant(Ok(answer), *ask);
    }

    fn tell_complainant(&mut self, answer: Result<ComplaintResponse, DsError>, ask: Asked) {
        self.when_durable(Box::new(move |outcome| {
            let _ = ask.reply.send(outcome.map_err(|error| of_store(error.clone())).and(answer));
            drop(ask.permits);
        }));
    }
}

/// What comes of complaints that are a quorum.
enum Verdict {
    /// It is merged, and to be written.
    Write(Box<Effects>, Timestamp),
    Nothing(Timestamp),
    /// Nothing has changed.
    NotNow(DsError),
    Broken(Reject),
    Panic,
}

/// Takes the last commit of `state` back, or goes forward; `past` is the group as it was right before it, where that is
/// kept.
fn go_back(
    state: &mut GroupState,
    past: Option<GroupState>,
    now: Timestamp,
) -> Result<Option<Effects>, Reject> {
    let void = past.map(|past| state.stage_void(past, now)).transpose()?.flatten();
    let staged = void.or_else(|| state.stage_forward(now)).or_else(|| state.stage_hub(&[], now));
    staged.map(|staged| state.merge(staged)).transpose()
}
