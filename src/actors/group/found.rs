//! How a group comes to be here, and the queues that come into it with a request.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use actix::prelude::*;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    GroupActor, Loaded, Reply, SinceSnapshot, Waiter, fill, record_bytes, upkeep::wake_at,
};
use crate::{
    actors::{
        errors::{internal, of_reject, of_store},
        node::Node,
        queue::BindError,
        stages::Stages,
    },
    group::{GroupState, Reject, Request, Staged},
    store::{
        Batch, Condition, StoreError, Write,
        records::{GoneReason, GroupHead, GroupNotice, GroupStatus},
    },
    wire::{
        ds::{Detail, DsError, DsRequest, DsResponseBody},
        ids::{GroupId, Sequence, Timestamp},
    },
};

impl GroupActor {
    pub(super) fn create_or_refuse(
        &mut self,
        request: Request,
        reply: oneshot::Sender<Reply>,
        permits: [OwnedSemaphorePermit; 2],
        now: Timestamp,
        ctx: &mut Context<Self>,
    ) {
        if !matches!(request.message.request, DsRequest::CreateGroup(_)) {
            let _ = reply.send(Err(DsError::GroupNotFound { detail: detail(&self.id) }));
            self.leave(ctx);
            return;
        }
        let hub = Arc::clone(&self.hub);
        let made = catch_unwind(AssertUnwindSafe(|| GroupState::create(&hub, &request, now)));
        match made {
            Ok(Ok(creation)) => self.found(creation, reply, Some(permits), now, ctx),
            Ok(Err(reject)) => {
                let _ = reply.send(Err(of_reject(reject)));
                self.leave(ctx);
            }
            Err(_) => {
                let _ = reply.send(Err(internal("a rule panicked")));
                self.leave(ctx);
            }
        }
    }

    /// Writes a new group: head, first record, first snapshot, in one batch.
    pub(super) fn found(
        &mut self,
        creation: crate::group::Creation,
        reply: oneshot::Sender<Reply>,
        permits: Option<[OwnedSemaphorePermit; 2]>,
        now: Timestamp,
        ctx: &mut Context<Self>,
    ) {
        let crate::group::Creation { state, effects, binds } = creation;
        let (node, id, stages) = (self.node.clone(), self.id.clone(), Stages::current());
        let bind = async move { bind_queues(&node, &id, &binds).await };
        let bound = bind.into_actor(self).map(move |bound, actor: &mut Self, ctx| {
            let (conditions, writes) = match bound {
                Ok(bound) => bound,
                Err(error) => {
                    // first: who tries again at once shall find another actor
                    actor.leave(ctx);
                    let _ = reply.send(Err(error));
                    return;
                }
            };
            let snapshot = match state.snapshot() {
                Ok(snapshot) => snapshot,
                Err(reject) => {
                    actor.leave(ctx);
                    let _ = reply.send(Err(of_reject(reject)));
                    return;
                }
            };
            let at = Sequence(state.next_sequence().0 - 1);
            let head = GroupHead {
                group: actor.id.clone(),
                status: GroupStatus::Active,
                next_sequence: state.next_sequence(),
                first_sequence: Sequence(1),
                epoch: state.epoch(),
                revision: 1,
                snapshot: at,
                previous_snapshot: None,
                created_at: now,
                last_accepted_at: now,
                log_bytes: effects.records.iter().map(record_bytes).sum(),
                wake_at: None,
                joiner_infos: Vec::new(),
                hub_key: state.key_stand(),
            };
            let wake_at = wake_at(&actor.node.groups.options, &state, &head);
            let head = GroupHead { wake_at, ..head };
            let mut batch = Batch::new()
                .when(Condition::GroupUnknown(actor.id.clone()))
                .and(Write::GroupHead(head.clone()));
            fill(&mut batch, &actor.id, &effects);
            let since = SinceSnapshot { snapshot_bytes: snapshot.len(), ..Default::default() };
            batch.push(Write::Snapshot { group: actor.id.clone(), at, bytes: snapshot });
            batch.conditions.extend(conditions);
            batch.writes.extend(writes);
            let accepted = effects.accepted;
            let tell = actor.tell(&effects);
            actor.loaded = Some(Loaded { state: Box::new(state), head, since_snapshot: since });
            let waiter: Waiter = Box::new(move |outcome| {
                let answer = match (outcome, accepted) {
                    (Ok(()), Some(accepted)) => {
                        tell();
                        Ok(DsResponseBody::Accepted(accepted))
                    }
                    (Ok(()), None) => Err(internal("a group without answer")),
                    (Err(StoreError::Conflict { condition: 0 }), _) => {
                        Err(of_reject(Reject::InvalidGroupId("the group id is taken")))
                    }
                    (Err(error), _) => Err(of_store(error.clone())),
                };
                let _ = reply.send(answer);
                drop(permits);
            });
            stages.within(|| actor.write(batch, waiter, ctx));
        });
        ctx.wait(bound);
    }
}

pub(super) type Bound = (Vec<Condition>, Vec<Write>);

pub(super) async fn bind_all(
    node: &Node,
    group: &GroupId,
    staged: &Staged,
) -> Result<Bound, DsError> {
    bind_queues(node, group, &staged.binds).await
}

/// Binds the queues of this provider's own clients to the group. Those of others are bound by their own providers,
/// when they get to know of them; who has none that is good is reported then, and removed.
async fn bind_queues(
    node: &Node,
    group: &GroupId,
    binds: &[crate::group::Bind],
) -> Result<Bound, DsError> {
    let (mut conditions, mut writes) = (Vec::new(), Vec::new());
    for bind in binds {
        if bind.config.domain != node.domain {
            if node.speaks_with(&bind.config.domain) {
                continue;
            }
            return Err(DsError::NotAuthorized {
                detail: Detail::truncated(&format!(
                    "{} is a client of {}, which this provider does not federate with",
                    bind.client, bind.config.domain
                )),
            });
        }
        let bound =
            node.bind_token(&bind.config, &bind.client, &bind.user, &node.domain, group).await;
        match bound {
            Ok(used) => {
                conditions.extend(used.conditions);
                writes.extend(used.writes);
            }
            Err(BindError::Store(error)) => return Err(of_store(error)),
            Err(BindError::Token(problem)) if bind.pending => {
                tracing::info!(client = %bind.client, %problem, "added by reference without a good queue: to be removed");
                let (client, reason) = (bind.client.clone(), GoneReason::QueueGone);
                let notice = GroupNotice::ClientGone { client, reason };
                let key = crate::crypto::random();
                writes.push(Write::GroupNotice { group: group.clone(), key, notice });
            }
            Err(BindError::Token(problem)) => {
                let detail = Detail::truncated(&format!(
                    "the queue token of {} is not good: {problem}; get a new one",
                    bind.client
                ));
                return Err(match bind.key_package {
                    Some(index) => DsError::InvalidKeyPackage { detail, index },
                    None => DsError::NotAuthorized { detail },
                });
            }
        }
    }
    Ok((conditions, writes))
}

fn detail(group: &GroupId) -> Detail {
    Detail::truncated(&format!("there is no group {group} here; check its id and hub"))
}
