//! What a group does by itself: notices, removals that the hub starts, snapshots, old logs, passivation.

use std::sync::Arc;

use super::{DEPARTS_AFTER, GroupActor, SinceSnapshot, Tick, Waiter, takes_more};
use crate::{
    actors::{groups::GroupOptions, history},
    group::GroupState,
    store::{
        Batch, Condition, StoreError, Write,
        records::{GroupHead, GroupNotice, GroupStatus},
    },
    wire::ids::{Sequence, Timestamp},
};
use actix::prelude::*;

/// A snapshot is taken at latest after so many records.
const SNAPSHOT_RECORDS_MAX: u64 = 1024;
/// A snapshot is not taken before so many bytes of state records.
const SNAPSHOT_BYTES_MIN: usize = 32 * 1024;
/// Bytes of messages after which the log is looked at, to be trimmed.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Notices that are taken at a time.
const NOTICES_MAX: usize = 256;

impl GroupActor {
    /// Takes what is left for the group and lets the hub do what it has to do by itself.
    pub(super) fn tick(&mut self, tick: Tick, ctx: &mut Context<Self>) {
        let (node, id) = (self.node.clone(), self.id.clone());
        let read = async move { node.store.group_notices(&id, None, NOTICES_MAX).await };
        let done = read.into_actor(self).map(move |notices, actor: &mut Self, ctx| {
            let notices = match notices {
                Ok(notices) => notices,
                Err(error) => {
                    tracing::warn!(group = %actor.id, %error, "notices cannot be read now");
                    return;
                }
            };
            actor.take_notices(notices, tick, ctx);
        });
        ctx.wait(done);
    }

    fn take_notices(
        &mut self,
        notices: Vec<([u8; 16], GroupNotice)>,
        tick: Tick,
        ctx: &mut Context<Self>,
    ) {
        let (more, address) = (notices.len() == NOTICES_MAX, ctx.address());
        let finish = move |outcome: Result<(), &StoreError>| match (outcome, tick.done) {
            // behind what takes these away, so that they are not read again
            (Ok(()), done) if more => address.do_send(Tick { done, lasts: tick.lasts }),
            (Ok(()), Some(done)) => {
                let _ = done.send(());
            }
            (Ok(()) | Err(_), _) => {}
        };
        if self.broken.is_some() {
            // it is not known what they are for: they stay until the group can be loaded
            return;
        }
        if self.loaded.is_none() {
            // the group is gone for good: so is what was left for it
            self.drop_notices(&notices, Box::new(finish), ctx);
            return;
        }
        self.hub_acts(&notices, Box::new(finish), ctx);
    }

    /// Lets the hub do what it has to do by itself now, `notices` among it, which are taken away in the same write.
    pub(super) fn hub_acts(
        &mut self,
        notices: &[([u8; 16], GroupNotice)],
        waiter: Waiter,
        ctx: &mut Context<Self>,
    ) {
        let now = self.node.clock.now();
        let gone: Vec<_> = notices.iter().filter_map(|(_, notice)| self.gone(notice)).collect();
        let Some(loaded) = self.loaded.as_mut() else { return };
        let Some(staged) = loaded.state.stage_hub(&gone, now) else {
            self.nothing_to_do(notices, waiter, ctx);
            return;
        };
        if let Err(error) = takes_more(&self.node) {
            // it is due again when the group is next looked after
            tracing::debug!(group = %self.id, %error, "what the hub has to do waits");
            return waiter(Err(&error));
        }
        let Some(loaded) = self.loaded.as_mut() else { return };
        let effects = match loaded.state.merge(staged) {
            Ok(effects) => effects,
            Err(reject) => {
                tracing::error!(group = %self.id, %reject, "the hub's own merge failed");
                self.fail(&StoreError::Unavailable("a merge failed".into()), ctx);
                return;
            }
        };
        let tell = self.tell(&effects);
        if let Some(loaded) = self.loaded.as_mut() {
            loaded.head.wake_at = wake_at(&self.node.groups.options, &loaded.state, &loaded.head);
        }
        let Some(mut batch) = self.batch(&effects, now) else { return };
        for (key, _) in notices {
            batch.push(Write::GroupNoticeTaken { group: self.id.clone(), key: *key });
        }
        let waiter: Waiter = Box::new(move |outcome| {
            if outcome.is_ok() {
                tell();
            }
            waiter(outcome);
        });
        self.write(batch, waiter, ctx);
    }

    /// Takes the notices away, and writes down when the group next has something to do, where that has changed.
    fn nothing_to_do(
        &mut self,
        notices: &[([u8; 16], GroupNotice)],
        waiter: Waiter,
        ctx: &mut Context<Self>,
    ) {
        let Some(loaded) = self.loaded.as_mut() else { return };
        let options = &self.node.groups.options;
        let wake_at = wake_at(options, &loaded.state, &loaded.head);
        let hub_key = loaded.state.key_stand();
        if has_old_log(options, &loaded.head, self.node.clock.now()) {
            self.rotate_log(ctx);
            let Some(loaded) = self.loaded.as_ref() else { return };
            if (wake_at, hub_key) == (loaded.head.wake_at, loaded.head.hub_key)
                && notices.is_empty()
            {
                self.when_durable(waiter);
                return;
            }
        }
        let Some(loaded) = self.loaded.as_mut() else { return };
        if (wake_at, hub_key) == (loaded.head.wake_at, loaded.head.hub_key) && notices.is_empty() {
            self.when_durable(waiter);
            return;
        }
        if let Err(reason) = self.node.store.writable() {
            return waiter(Err(&StoreError::ReadOnly(reason)));
        }
        let mut batch = Batch::new().when(Condition::GroupAt {
            group: self.id.clone(),
            next_sequence: loaded.head.next_sequence,
            revision: loaded.head.revision,
        });
        (loaded.head.wake_at, loaded.head.hub_key) = (wake_at, hub_key);
        loaded.head.revision += 1;
        batch.push(Write::GroupHead(loaded.head.clone()));
        for (key, _) in notices {
            batch.push(Write::GroupNoticeTaken { group: self.id.clone(), key: *key });
        }
        self.write(batch, waiter, ctx);
    }

    fn drop_notices(
        &mut self,
        notices: &[([u8; 16], GroupNotice)],
        waiter: Waiter,
        ctx: &mut Context<Self>,
    ) {
        let mut batch = Batch::new();
        for (key, _) in notices {
            batch.push(Write::GroupNoticeTaken { group: self.id.clone(), key: *key });
        }
        self.write(batch, waiter, ctx);
    }

    /// Takes a snapshot where enough has been logged since the last one. Bytes written so grow with the log, and
    /// the state is written once per its own size of log.
    pub(super) fn snapshot_if_due(&mut self, ctx: &mut Context<Self>) {
        let Some(loaded) = self.loaded.as_mut() else { return };
        let since = &mut loaded.since_snapshot;
        let bytes_due = since.bytes >= SNAPSHOT_BYTES_MIN.max(since.snapshot_bytes);
        let log_due = since.records >= SNAPSHOT_RECORDS_MAX || since.log_bytes >= LOG_BYTES_MAX;
        if bytes_due || log_due {
            self.rotate_log(ctx);
        }
    }

    /// Takes a snapshot, unless the last one is of this very state, and lets go of what is then not needed.
    fn rotate_log(&mut self, ctx: &mut Context<Self>) {
        let Some(loaded) = self.loaded.as_mut() else { return };
        let since = &mut loaded.since_snapshot;
        if since.writing {
            return;
        }
        let at = Sequence(loaded.state.next_sequence().0 - 1);
        let mut batch = Batch::low_priority();
        let mut snapshot_bytes = since.snapshot_bytes;
        if at != loaded.head.snapshot {
            let bytes = match loaded.state.snapshot() {
                Ok(bytes) => bytes,
                Err(reject) => {
                    tracing::error!(group = %self.id, %reject, "no snapshot can be taken");
                    return;
                }
            };
            snapshot_bytes = bytes.len();
            batch.push(Write::Snapshot { group: self.id.clone(), at, bytes });
        }
        *since = SinceSnapshot { writing: true, snapshot_bytes, ..Default::default() };
        let written = self.node.store.write(batch);
        let (node, hub, head) = (self.node.clone(), Arc::clone(&self.hub), loaded.head.clone());
        let kept = loaded.state.joiner_epochs();
        let members: Vec<_> = loaded
            .state
            .members()
            .filter(|(_, member)| member.config.domain == node.domain)
            .map(|(_, member)| (member.client.clone(), member.recipient, member.since))
            .collect();
        let guests: Vec<_> = loaded.state.guests().cloned().collect();
        let rotate = async move {
            written.await?;
            history::plan_rotation(&node, &hub, &head, at, &kept, &members, &guests).await
        };
        let rotated = rotate.into_actor(self).map(|plan, actor: &mut Self, ctx| match plan {
            Ok(plan) => actor.rotate(plan, ctx),
            Err(error) => {
                tracing::warn!(group = %actor.id, %error, "the snapshot was not written");
                if let Some(loaded) = actor.loaded.as_mut() {
                    loaded.since_snapshot.writing = false;
                }
            }
        });
        ctx.spawn(rotated);
    }

    /// The new snapshot is durable: the head names it, and what is no longer needed goes.
    fn rotate(&mut self, plan: history::Rotation, ctx: &mut Context<Self>) {
        let Some(loaded) = self.loaded.as_mut() else { return };
        loaded.since_snapshot.writing = false;
        let condition = Condition::GroupAt {
            group: self.id.clone(),
            next_sequence: loaded.head.next_sequence,
            revision: loaded.head.revision,
        };
        let head = &mut loaded.head;
        let mut batch = Batch::new().when(condition);
        plan.apply(head, &mut batch);
        head.revision += 1;
        head.wake_at = wake_at(&self.node.groups.options, &loaded.state, head);
        batch.push(Write::GroupHead(head.clone()));
        self.write(batch, Box::new(|_| ()), ctx);
    }

    pub(super) fn passivate_if_idle(&mut self, ctx: &mut Context<Self>) {
        let idle_ms = self.options().idle_ms;
        self.passivate_if_unused(idle_ms, "idle", ctx);
    }

    /// Ends this actor where nobody has asked for the group for so long; it comes back by itself.
    pub(super) fn passivate_if_unused(
        &mut self,
        idle_ms: u64,
        why: &'static str,
        ctx: &mut Context<Self>,
    ) {
        let now = self.node.clock.now();
        let idle = self.last_used.is_none_or(|at| now.ms_since(at) >= idle_ms);
        if idle && !self.is_busy() && self.node.groups.release(&self.id, &ctx.address(), false) {
            self.node.metrics.group_passivations.with_label_values(&[why]).inc();
            self.leave(ctx);
        }
    }

    fn is_busy(&self) -> bool {
        let writing = self.loaded.as_ref().is_some_and(|l| l.since_snapshot.writing);
        writing || !self.flights.is_empty()
    }

    /// Ends this actor where nobody but the node itself has asked for the group, once it has done what there was to do.
    pub(super) fn depart(&mut self, ctx: &mut Context<Self>) {
        if self.is_busy() {
            ctx.run_later(DEPARTS_AFTER, Self::depart);
            return;
        }
        self.departs = false;
        if self.node.groups.release(&self.id, &ctx.address(), true) {
            self.node.metrics.group_passivations.with_label_values(&["settled"]).inc();
            self.leave(ctx);
        }
    }
}

/// When the group next has something to do by itself: for its members, or because its log gets old.
pub(super) fn wake_at(
    options: &GroupOptions,
    state: &GroupState,
    head: &GroupHead,
) -> Option<Timestamp> {
    if state.is_deleted() {
        return head.wake_at;
    }
    let has_log = head.first_sequence < head.next_sequence;
    let old = has_log.then(|| head.last_accepted_at.plus_ms(options.retention_ms));
    state.wake_at().into_iter().chain(old).min()
}

/// Whether all of the log is older than anybody may want it.
fn has_old_log(options: &GroupOptions, head: &GroupHead, now: Timestamp) -> bool {
    head.status == GroupStatus::Active
        && head.first_sequence < head.next_sequence
        && now.ms_since(head.last_accepted_at) >= options.retention_ms
}
