//! Writes on their way, and who waits for them: answers leave in the order of the writes.

use std::sync::Arc;

use actix::prelude::*;

use super::GroupActor;
use crate::{
    actors::stages::Stages,
    store::{Batch, StoreError},
};

/// A write on its way, with everybody who waits for it.
pub(super) struct Flight {
    number: u64,
    outcome: Option<Result<(), StoreError>>,
    pub(super) waiters: Vec<Waiter>,
}

/// What is to be done when a write is durable, or has failed.
pub(super) type Waiter = Box<dyn FnOnce(Result<(), &StoreError>)>;

impl GroupActor {
    /// Runs `waiter` when everything that is written so far is durable.
    pub(super) fn when_durable(&mut self, waiter: Waiter) {
        match self.flights.back_mut() {
            Some(flight) => flight.waiters.push(waiter),
            None => waiter(Ok(())),
        }
    }

    /// Hands `batch` to the store, in order, and runs `waiter` when it is durable.
    pub(super) fn write(&mut self, mut batch: Batch, waiter: Waiter, ctx: &mut Context<Self>) {
        let stages = Stages::current();
        let waiter = match stages.write_begins() {
            None => waiter,
            Some(times) => {
                batch.times = Some(Arc::clone(&times));
                Box::new(move |outcome: Result<(), &StoreError>| {
                    stages.write_is_there(&times);
                    waiter(outcome);
                }) as Waiter
            }
        };
        let number = self.next_flight;
        self.next_flight += 1;
        let answer = self.node.store.write(batch);
        self.flights.push_back(Flight { number, outcome: None, waiters: vec![waiter] });
        let landed = answer.into_actor(self).map(move |outcome, actor, ctx| {
            actor.landed(number, outcome, ctx);
        });
        ctx.spawn(landed);
    }

    /// A write is done; answers leave in the order of the writes.
    fn landed(&mut self, number: u64, outcome: Result<(), StoreError>, ctx: &mut Context<Self>) {
        if let Some(flight) = self.flights.iter_mut().find(|flight| flight.number == number) {
            flight.outcome = Some(outcome);
        }
        while let Some(flight) = self.flights.pop_front() {
            match flight.outcome {
                None => {
                    self.flights.push_front(flight);
                    return;
                }
                Some(Ok(())) => {
                    for waiter in flight.waiters {
                        waiter(Ok(()));
                    }
                }
                Some(Err(error)) => {
                    for waiter in flight.waiters {
                        waiter(Err(&error));
                    }
                    self.fail(&error, ctx);
                    return;
                }
            }
        }
    }
}
