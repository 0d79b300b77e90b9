//! Writing down what a peer has answered for, and dropping the markers of what it has whole.
//!
//! Lazily: losing it repeats deliveries, and nothing else. A marker goes only where nothing was added to it meanwhile.

use std::{pin::Pin, time::Duration};

use actix::prelude::*;
use futures_util::future::join_all;

use super::PeerActor;
use crate::{
    actors::node::Node,
    federation::{direct::DirectProgress, outbox::Progress},
    store::{
        Batch, Condition, StoreError, Write,
        records::{Replica, ReplicaMode, SetAside},
    },
    wire::{
        ds::DsError,
        ids::{Domain, Sequence},
    },
};

impl PeerActor {
    pub(super) fn persist_later(&mut self, ctx: &mut Context<Self>) {
        if self.is_draining() {
            return self.persist(ctx);
        }
        let dirty = self.outbox.has_unpersisted() || !self.direct.unpersisted(1).is_empty();
        if !dirty || self.persist_armed || self.persisting {
            return;
        }
        self.persist_armed = true;
        ctx.run_later(Duration::from_millis(self.limits().persist_ms), |actor, ctx| {
            actor.persist_armed = false;
            actor.persist(ctx);
        });
    }

    /// Writes down what the peer has answered for, and drops markers of what it has whole.
    pub(super) fn persist(&mut self, ctx: &mut Context<Self>) {
        if self.persisting {
            return;
        }
        if self.loading {
            // what is read there would be older than what is written here, and begin where rows are gone
            self.persist_due = true;
            return;
        }
        self.persist_due = false;
        let feeds = self.outbox.unpersisted(PERSIST_PAGE);
        let single = self.direct.unpersisted(PERSIST_PAGE);
        if feeds.is_empty() && single.is_empty() {
            if self.is_draining() {
                self.drained();
                self.leaving = true;
                ctx.stop();
            }
            return;
        }
        self.persisting = true;
        let mut writes = Vec::new();
        for progress in feeds {
            let mode = match progress.opened {
                true => ReplicaMode::Feed,
                false => ReplicaMode::Direct,
            };
            let may_drop = progress.is_done() && self.left.contains(&progress.group);
            let written = write_down(
                self.node.clone(),
                self.peer.clone(),
                progress.clone(),
                (mode, None),
                may_drop,
            );
            writes.push(Box::pin(async move { (progress, true, written.await) })
                as Pin<Box<dyn Future<Output = _>>>);
        }
        for DirectProgress { group, acknowledged, acknowledged_at, copy, is_done } in single {
            let until = if is_done { acknowledged } else { acknowledged.next() };
            let (opened, set_aside) = (copy.is_some(), None);
            let progress =
                Progress { group, acknowledged, acknowledged_at, until, opened, set_aside };
            let (node, peer, written) = (self.node.clone(), self.peer.clone(), progress.clone());
            let way = (ReplicaMode::Direct, copy);
            let may_drop = is_done && !lags(&progress, copy);
            if is_done && !may_drop {
                self.lagging.get_or_insert((progress.group.clone(), until));
            }
            writes.push(Box::pin(async move {
                let written = write_down(node, peer, written, way, may_drop).await;
                (progress, false, written)
            }));
        }
        let done = join_all(writes).into_actor(self).map(|written, actor: &mut Self, ctx| {
            actor.persisting = false;
            for (progress, is_feed, outcome) in written {
                match outcome {
                    Ok(None) => {
                        if is_feed {
                            actor.outbox.persisted(&progress);
                            if actor.outbox.forget_if_done(&progress.group) {
                                actor.left.remove(&progress.group);
                                actor.leaving_clients.remove(&progress.group);
                                actor.given_up.remove(&progress.group);
                            }
                        } else {
                            let (group, done) = (&progress.group, progress.is_done());
                            actor.direct.persisted(group, progress.acknowledged, done);
                        }
                    }
                    // more came meanwhile, and the hint of it is on its way or lost
                    Ok(Some(until)) => {
                        let now = actor.now();
                        if !is_feed || !actor.outbox.grow(&progress.group, until, now) {
                            actor.want(progress.group, until);
                        }
                    }
                    // nothing was applied: it stays to be written down, and has its turn again
                    Err(StoreError::Busy | StoreError::Full(_)) => {}
                    Err(error) => return actor.fail(&error, ctx),
                }
            }
            if actor.is_draining() && !actor.outbox.has_unpersisted() {
                actor.drained();
                actor.leaving = true;
                return ctx.stop();
            }
            actor.work(ctx);
        });
        ctx.spawn(done);
    }

    /// Those who drain the node need not wait for this actor any longer.
    fn drained(&mut self) {
        for tell in self.draining.drain(..) {
            // who asked may be gone
            let _ = tell.send(());
        }
    }
}

/// Writes down where a peer stands in a group, and drops the marker where it has everything. Gives the marker where it
/// goes further by now; then only the progress is written down.
async fn write_down(
    node: Node,
    peer: Domain,
    progress: Progress,
    (mode, copy): (ReplicaMode, Option<Sequence>),
    may_drop: bool,
) -> Result<Option<Sequence>, StoreError> {
    let group = progress.group.clone();
    let set_aside = progress.set_aside.clone().map(|aside| SetAside {
        since: aside.since,
        item: aside.item,
        problem: aside.problem,
    });
    let replica = Replica {
        acknowledged: progress.acknowledged,
        acknowledged_at: progress.acknowledged_at,
        mode,
        copy,
        set_aside,
    };
    let is_over = match may_drop {
        // none of the peer's clients is left in it: nothing needs to be known of it any more
        true => match node.group_roster_for(&group, &peer).await {
            Ok(roster) => roster.is_none_or(|roster| roster.adds.is_empty()),
            Err(error) => {
                matches!(error, DsError::GroupNotFound { .. } | DsError::GroupMoved { .. })
            }
        },
        false => false,
    };
    let replica = match is_over {
        true => Write::DropReplica { peer: peer.clone(), group: group.clone() },
        false => Write::Replica { peer: peer.clone(), group: group.clone(), replica },
    };
    let lags = lags(&progress, copy);
    let until = copy.filter(|_| lags).unwrap_or(progress.acknowledged);
    let batch = Batch::new().and(replica).and(Write::TrimOutboundRoster {
        peer: peer.clone(),
        group: group.clone(),
        until,
    });
    if !progress.is_done() || lags {
        node.store.write(batch).await?;
        return Ok(None);
    }
    let marker = node.store.outbound_at(&peer, &group).await?;
    let batch = match marker {
        Some(marker) if marker > progress.acknowledged => {
            if !is_over {
                node.store.write(batch).await?;
            }
            return Ok(Some(marker));
        }
        Some(until) => batch
            .when(Condition::OutboundAt { peer: peer.clone(), group: group.clone(), until })
            .and(Write::OutboundDone { peer: peer.clone(), group: group.clone() }),
        None => batch,
    };
    match node.store.write(batch).await {
        Ok(()) => Ok(None),
        Err(StoreError::Conflict { .. }) => Ok(node.store.outbound_at(&peer, &group).await?),
        Err(error) => Err(error),
    }
}

/// Whether there is a copy that what the clients have got by single requests is still to be sent to: then marker and rows
/// stay until feeds are sent again.
fn lags(progress: &Progress, copy: Option<Sequence>) -> bool {
    copy.is_some_and(|copy| copy < progress.acknowledged)
}

const PERSIST_PAGE: usize = 256;
