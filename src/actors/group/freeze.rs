//! A group stops here because it is to move: one write, and its actor is gone. What follows is driven by
//! `actors::departures`.

use actix::prelude::*;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{Depart, GroupActor, Reply, Waiter};
use crate::{
    actors::{
        departures::departure_of,
        errors::{internal, of_reject, of_store},
        moves::migrating,
    },
    group::{GroupState, Request, Staged},
    store::{
        Batch, Condition, StoreError, Write,
        records::{Departure, GroupHead, GroupStatus},
    },
    wire::{ds::DsRequest, ids::Timestamp},
};

impl GroupActor {
    /// Writes down what the Commit in `staged` will do, and takes nothing more.
    pub(super) fn freeze(
        &mut self,
        staged: Staged,
        request: Request,
        reply: oneshot::Sender<Reply>,
        permits: [OwnedSemaphorePermit; 2],
        now: Timestamp,
        ctx: &mut Context<Self>,
    ) {
        let key = GroupState::key_of(&request.message);
        let DsRequest::StartMigration(start) = request.message.request else {
            let _ = reply.send(Err(internal("a move that nobody asked for")));
            return;
        };
        let Some(loaded) = self.loaded.take() else { return };
        let (node, request) = (self.node.clone(), key.clone());
        // O(members): it is done in the pool while this actor waits, and takes nothing else
        let pack = async move {
            let packed = node.groups.compute(move || {
                let parcel = loaded.state.pack(staged, &start, request);
                let bytes = parcel.and_then(|parcel| parcel.to_bytes());
                (loaded, bytes, start.init.migration_response)
            });
            packed.await
        };
        let packed = pack.into_actor(self).map(move |packed, actor: &mut Self, ctx| match packed {
            Ok((loaded, Ok(bytes), response)) => {
                let departure = departure_of(&actor.id, key, &response, now);
                actor.write_frozen(loaded.head, bytes, departure, reply, permits, ctx);
            }
            Ok((loaded, Err(reject), _)) => {
                let _ = reply.send(Err(of_reject(reject)));
                actor.loaded = Some(loaded);
            }
            Err(error) => {
                let _ = reply.send(Err(error));
                actor.fail(&StoreError::Unavailable("a rule panicked".into()), ctx);
            }
        });
        ctx.wait(packed);
    }

    fn write_frozen(
        &mut self,
        head: GroupHead,
        bytes: Vec<u8>,
        departure: Departure,
        reply: oneshot::Sender<Reply>,
        permits: [OwnedSemaphorePermit; 2],
        ctx: &mut Context<Self>,
    ) {
        let key = departure.request.clone();
        // behind what is written of the group already: the condition holds only then
        let mut batch = Batch::low_priority().when(Condition::GroupAt {
            group: self.id.clone(),
            next_sequence: head.next_sequence,
            revision: head.revision,
        });
        let (group, at) = (self.id.clone(), Departure::PARCEL);
        batch.push(Write::Snapshot { group, at, bytes });
        batch.push(Write::Departure(departure));
        let (revision, status) = (head.revision + 1, GroupStatus::Migrating);
        batch.push(Write::GroupHead(GroupHead { status, revision, ..head }));
        // what comes from now on is told to come again
        self.broken = Some(migrating(0));
        self.node.groups.waiting.note(&self.id, None);
        let (node, id, address) = (self.node.clone(), self.id.clone(), ctx.address());
        let waiter: Waiter = Box::new(move |outcome| {
            match outcome {
                Ok(()) => node.drive_departure(&id, &key, Some(reply)),
                Err(error) => {
                    let _ = reply.send(Err(of_store(error.clone())));
                }
            }
            drop(permits);
            node.groups.forget(&id, &address);
            address.do_send(Depart);
        });
        self.write(batch, waiter, ctx);
    }
}
