//! Complaints about a commit: written down, then judged, then answered. The rules are `group`'s. PROTOCOL.md §2, "When a
//! committer lies".

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use actix::prelude::*;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::Span;

use super::{GroupActor, Waiter, history};
use crate::{
    actors::{
        errors::{internal, of_reject, of_store},
        moves::step,
    },
    group::{GroupState, Heard, Reject, Staged},
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
                    reason = ask.complaint.reason,
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
        let Some(loaded) = self.loaded.as_ref() else {
            // whoever waits asks the next actor
            return;
        };
        let Some(sequence) = loaded.state.back_to(now) else {
            return self.answer_complaint(ask, now);
        };
        let (node, hub, head) = (self.node.clone(), Arc::clone(&self.hub), loaded.head.clone());
        let past = async move {
            step("complaints.quorum").await;
            let _turn = Arc::clone(&node.groups.cpu).acquire_owned().await;
            history::load_before(&node, &hub, &head, sequence).await
        };
        // nothing else may be staged before the group has gone back
        let judged = past.into_actor(self).map(move |past, actor: &mut Self, ctx| match past {
            Ok(past) => actor.go_back(past, ask, ctx),
            Err(error) => {
                tracing::warn!(group = %actor.id, %error, "the epoch before cannot be read now");
                if let Some(ask) = ask {
                    let _ = ask.reply.send(Err(error));
                }
            }
        });
        ctx.wait(judged);
    }

    fn go_back(
        &mut self,
        past: Option<GroupState>,
        ask: Option<Box<Asked>>,
        ctx: &mut Context<Self>,
    ) {
        let now = self.node.clock.now();
        let Some(loaded) = self.loaded.as_mut() else { return };
        let state = &mut loaded.state;
        let staged = catch_unwind(AssertUnwindSafe(|| {
            let void = past.map(|past| state.stage_void(past, now)).transpose()?.flatten();
            let forward = |state: &mut GroupState| {
                state.stage_forward(now).or_else(|| state.stage_hub(&[], now))
            };
            Ok::<_, Reject>(void.or_else(|| forward(state)))
        }));
        match staged {
            Ok(Ok(Some(staged))) => {
                let address = ctx.address();
                let waiter: Waiter = Box::new(move |outcome| match (outcome, ask) {
                    (Ok(()), Some(ask)) => address.do_send(Judge { ask: Some(ask) }),
                    (Err(error), Some(ask)) => {
                        let _ = ask.reply.send(Err(of_store(error.clone())));
                    }
                    (_, None) => {}
                });
                self.take_verdict(staged, now, waiter, ctx);
            }
            Ok(Ok(None)) => self.answer_complaint(ask, now),
            Ok(Err(reject)) => {
                tracing::error!(group = %self.id, %reject, "the group cannot go back");
                self.fail(&StoreError::Unavailable("the group cannot go back".into()), ctx);
            }
            Err(_) => self.fail(&StoreError::Unavailable("a rule panicked".into()), ctx),
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
        let Some(loaded) = self.loaded.as_mut() else { return };
        let merged = catch_unwind(AssertUnwindSafe(|| loaded.state.merge(staged)));
        let effects = match merged {
            Ok(Ok(effects)) => effects,
            Ok(Err(reject)) => {
                tracing::error!(group = %self.id, %reject, "a merge failed");
                self.fail(&StoreError::Unavailable("a merge failed".into()), ctx);
                return;
            }
            Err(_) => {
                self.fail(&StoreError::Unavailable("a merge panicked".into()), ctx);
                return;
            }
        };
        let tell = self.tell(&effects);
        let Some(batch) = self.batch(&effects, now) else { return };
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
