//! Queues.
use super::{accounts::skeleton, limits::Limits, node::Node};
use crate::{
    queue::token::TokenProblem,
    store::{Condition, StoreError, Write},
    wire::{
        client::{Dequeue, Dequeued},
        ds::DsError,
        extensions::ClientQueueConfig,
        ids::{ClientUri, Domain, GroupId, RecipientId, Sequence},
        queueing::{FeedAck, QueueEntry, QueueingServiceRequest, QueueingServiceResponse},
    },
};

#[derive(Debug)]
pub struct Queues;

impl Queues {
    #[must_use]
    pub fn new(_limits: &Limits) -> Self {
        Self
    }
}

/// A client's entries as they come.
#[derive(Debug)]
pub struct QueueStream {}

impl QueueStream {
    /// The next entries; `None` when the stream is over: the device is deleted, another stream took over, the node
    /// drains.
    pub async fn next(&mut self) -> Option<Vec<QueueEntry>> {
        None
    }

    /// Acknowledges. What was not delivered is not acknowledged by it.
    pub fn ack(&self, _ack: FeedAck) {}
}

/// What goes into the batch that uses a token, so that using it and binding it are one write.
#[derive(Debug, Default)]
pub struct TokenUse {
    pub conditions: Vec<Condition>,
    pub writes: Vec<Write>,
}

/// Why a token cannot be used now.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(transparent)]
    Token(#[from] TokenProblem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Node {
    pub async fn dequeue(&self, _from: &ClientUri, _dequeue: Dequeue) -> Result<Dequeued, DsError> {
        Err(skeleton())
    }

    pub async fn open_stream(
        &self,
        _from: &ClientUri,
        _window: u32,
    ) -> Result<QueueStream, DsError> {
        Err(skeleton())
    }

    /// Persists what is acknowledged and lets go of every queue; streams end.
    pub async fn drain_queues(&self) {}

    /// Whether `config` leads to a queue of `client`, for `group` at `hub`. What it returns goes into the batch that
    /// accepts the request; where a condition of it does not hold then, ask again.
    ///
    /// # Errors
    /// [`BindError`]
    pub async fn bind_token(
        &self,
        _config: &ClientQueueConfig,
        _client: &ClientUri,
        _hub: &Domain,
        _group: &GroupId,
    ) -> Result<TokenUse, BindError> {
        Err(TokenProblem::Unknown.into())
    }

    /// Up to where every one of `members` has acknowledged the group's feed, as far as that is persisted.
    /// Without members nothing is held: the highest sequence there is.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn slowest_cursor(
        &self,
        _group: &GroupId,
        _members: &[(ClientUri, RecipientId, Sequence)],
    ) -> Result<Sequence, StoreError> {
        Ok(Sequence(0))
    }

    /// DS §6.1: one message for one client. `from` is the provider whose Delivery Service sent it.
    pub async fn queueing_service_request(
        &self,
        _request: QueueingServiceRequest,
        _from: &Domain,
    ) -> Result<QueueingServiceResponse, DsError> {
        Err(skeleton())
    }
}
