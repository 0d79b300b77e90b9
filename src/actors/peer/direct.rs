//! The peer that takes no feeds: single requests, one per client and message (DS §6.1), and the way there and back.

use actix::prelude::*;

use super::{
    PeerActor, Trouble, items,
    items::{Stood, read_all_rows},
    random, trouble_of,
};
use crate::{
    actors::node::Node,
    crypto,
    federation::{
        CallError,
        direct::{Direct, DirectVerdict, Done, Entry, Handed, Job, What},
        outbox::Standing,
        roster::Row,
        schedule::Failure,
        way::NotFound,
    },
    store::{StoreError, records::ReplicaMode},
    wire::{
        codec::{decode, encode},
        ds::{DsError, FanoutFilter},
        federation::EventType,
        ids::{Domain, GroupId, RequestId, Sequence, Timestamp},
        queueing::{QueueingServiceRequest, QueueingServiceResponse},
    },
};

/// A group as it is read in for single requests.
pub(super) enum LoadedDirect {
    New(Entry),
    /// It is here already, and has grown.
    More {
        until: Sequence,
        rows: Vec<Row>,
    },
    /// Its clients have everything; only the peer's copy of its feed does not.
    Lags,
}

/// Reads a group in; `known` is up to where its roster is known, if it is here. A peer that `takes_feeds` has a copy of what
/// it was ever sent of, or is to get one from where it came in.
pub(super) async fn load(
    node: &Node,
    peer: &Domain,
    group: &GroupId,
    until: Sequence,
    known: Option<Sequence>,
    takes_feeds: bool,
) -> Result<LoadedDirect, StoreError> {
    if let Some(known) = known {
        let rows = read_all_rows(node, peer, group, known.next(), until.next()).await?;
        return Ok(LoadedDirect::More { until, rows });
    }
    let Stood { standing, singles: acknowledged, mode } =
        items::standing_of(node, peer, group, until).await?;
    let has_copy = match mode {
        ReplicaMode::Direct => standing.opened,
        ReplicaMode::Feed => takes_feeds && !standing.needs_snapshot,
    };
    let copy = has_copy.then_some(standing.acknowledged);
    if acknowledged >= until && copy.is_some_and(|copy| copy < until) {
        return Ok(LoadedDirect::Lags);
    }
    let (next, roster) = match node.group_roster_for(group, peer).await {
        Ok(Some(roster)) => (roster.next.max(until.next()), roster.adds),
        Ok(None) | Err(DsError::GroupNotFound { .. } | DsError::GroupMoved { .. }) => {
            (until.next(), Vec::new())
        }
        Err(error) => return Err(StoreError::Unavailable(error.to_string())),
    };
    let rows = read_all_rows(node, peer, group, acknowledged.next(), next).await?;
    Ok(LoadedDirect::New(Entry { acknowledged, copy, next, roster, rows }))
}

/// What became of a group that was read in.
pub(super) enum Applied {
    /// It has what was read.
    Here,
    /// Nothing is to be sent of it in this way.
    Lags,
    /// It was let go while more of it was read: what was read is not enough to send it.
    LetGo,
}

impl LoadedDirect {
    pub(super) fn apply(self, direct: &mut Direct, group: &GroupId, now: Timestamp) -> Applied {
        let is_here = direct.known(group).is_some();
        match self {
            Self::New(entry) if !is_here => direct.load(group, entry, now),
            Self::New(Entry { next, rows, .. }) => {
                direct.grow(group, Sequence(next.0.saturating_sub(1)), rows);
            }
            Self::More { .. } if !is_here => return Applied::LetGo,
            Self::More { until, rows } => direct.grow(group, until, rows),
            Self::Lags => return Applied::Lags,
        }
        Applied::Here
    }
}

impl PeerActor {
    /// Everything that waits goes message by message from now on.
    pub(super) fn go_direct(&mut self) {
        self.kept.clear();
        self.repeat.clear();
        self.leaving_clients.clear();
        for (group, standing) in self.outbox.hand_over() {
            self.want(group, standing.until);
        }
    }

    /// The peer takes feeds after all: each group goes on where its copy stands, or gets one.
    pub(super) fn go_feed(&mut self, now: Timestamp) {
        let groups: Vec<GroupId> = self.direct.groups().cloned().collect();
        for group in groups {
            self.feed_again(&group, now);
        }
        // copies that lag are found in the store
        (self.lagging, self.rescan) = (None, true);
        tracing::info!(peer = %self.peer, "the peer takes feeds");
    }

    /// Changes one group back. What the peer's copy lacks comes as items, also what its clients have got meanwhile: they
    /// know it by its sequence or its content. Without a copy one is opened behind what the slowest client has.
    fn feed_again(&mut self, group: &GroupId, now: Timestamp) {
        let Some(handed) = self.direct.remove(group) else { return };
        let Handed { acknowledged, until, copy, clients } = handed;
        let standing = Standing {
            acknowledged: copy.unwrap_or(acknowledged),
            acknowledged_at: now,
            until,
            oldest_at: now,
            set_aside: None,
            needs_snapshot: false,
            opened: copy.is_some(),
        };
        if copy.is_none() {
            self.leaving_clients.insert(group.clone(), clients);
        }
        self.outbox.load(group.clone(), standing, now);
    }

    /// A batch was answered with 404. `true`: it is a failure like others.
    pub(super) fn feeds_not_found(&mut self, sent_at: Timestamp) -> bool {
        let was_direct = self.is_direct();
        match self.way.feeds_not_found(sent_at, self.now(), random()) {
            NotFound::Again => return true,
            NotFound::Singles if !was_direct => {
                tracing::info!(peer = %self.peer, "the peer takes no feeds: each of its clients gets each message by itself");
            }
            NotFound::Singles => {}
        }
        self.circuit.succeeded();
        self.go_direct();
        false
    }

    /// A probe of feeds failed otherwise than by a 404. `true`: it is over, and the group that it was tried with goes on by
    /// single requests.
    pub(super) fn probe_failed(&mut self, for_good: bool) -> bool {
        let is_over = self.way.probe_failed(for_good, self.now(), random());
        if is_over {
            self.go_direct();
        }
        is_over
    }

    pub(super) fn probe_due(&self) -> Option<Timestamp> {
        let can = self.lagging.is_some() || self.direct.to_probe().is_some();
        self.way.probe_at().filter(|_| can)
    }

    /// Tries feeds with one group when it is time.
    pub(super) fn probe_feeds(&mut self, now: Timestamp, ctx: &mut Context<Self>) {
        if self.probe_due().is_none_or(|due| now < due) {
            return;
        }
        if let Some(group) = self.direct.to_probe().cloned() {
            self.way.probe(true);
            return self.feed_again(&group, now);
        }
        if self.loading || self.persisting {
            // both say where a group stands: not while one is on its way
            return;
        }
        let Some((group, until)) = self.lagging.take() else { return };
        self.way.probe(true);
        let (node, peer) = (self.node.clone(), self.peer.clone());
        let read = async move {
            let stood = items::standing_of(&node, &peer, &group, until).await;
            (group, stood)
        };
        self.loading = true;
        let done = read.into_actor(self).map(|(group, stood), actor: &mut Self, ctx| {
            actor.loading = false;
            match stood {
                Ok(Stood { standing, .. }) if standing.acknowledged < standing.until => {
                    actor.outbox.load(group, standing, actor.now());
                }
                Ok(_) => actor.way.probe(false),
                Err(error) => return actor.fail(&error, ctx),
            }
            actor.work(ctx);
        });
        ctx.spawn(done);
    }

    pub(super) fn send_one(&mut self, job: Job, ctx: &mut Context<Self>) {
        let (node, peer) = (self.node.clone(), self.peer.clone());
        let federation = std::sync::Arc::clone(&self.federation);
        let (timeout, sent_at) = (self.timeout(), self.now());
        let request = async move {
            let (through, message) = match &job.what {
                What::Welcome(welcome) => (Sequence(0), Some(welcome.clone())),
                What::Message { from, until, handshake_only } => {
                    let filter = match handshake_only {
                        true => FanoutFilter::HandshakeOnly,
                        false => FanoutFilter::All,
                    };
                    let (group, recipient) = (&job.lane.group, job.lane.recipient);
                    let span = (*from, *until);
                    let read = items::read_message(&node, &peer, group, span, recipient, filter);
                    match read.await {
                        Ok(read) => read,
                        Err(error) => return (job, Err(Outcome::Store(error))),
                    }
                }
            };
            let Some(message) = message else {
                return (job, Ok(Done::Skipped { through }));
            };
            let client_queue_information = job.token.clone();
            let body = encode(&QueueingServiceRequest { client_queue_information, message });
            // the same for a repeat, also by the next process
            let mut id = [0; 16];
            id.copy_from_slice(&crypto::sha256(&body)[..16]);
            let sent = federation.request(&peer, EventType::Deliver, RequestId(id), body, timeout);
            let answer = sent.await.and_then(|bytes| {
                decode::<QueueingServiceResponse>(&bytes)
                    .map_err(|error| CallError::BadAnswer(error.to_string()))
            });
            match answer {
                Ok(response) => (job, Ok(Done::Answered { through, response })),
                Err(error) => (job, Err(Outcome::Call(through, error))),
            }
        };
        let done = request.into_actor(self).map(move |(job, outcome), actor: &mut Self, ctx| {
            actor.sending -= 1;
            actor.one_done(&job, outcome, sent_at, ctx);
            actor.work(ctx);
        });
        ctx.spawn(done);
    }

    fn one_done(
        &mut self,
        job: &Job,
        outcome: Result<Done, Outcome>,
        sent_at: Timestamp,
        ctx: &mut Context<Self>,
    ) {
        let now = self.now();
        let done = match outcome {
            Ok(done @ Done::Answered { .. }) => {
                self.succeeded();
                self.way.singles_answered();
                done
            }
            Ok(done) => {
                self.circuit.not_sent();
                done
            }
            Err(Outcome::Store(error)) => {
                self.circuit.not_sent();
                self.direct.done(job, Done::Again, now, random());
                return self.fail(&error, ctx);
            }
            Err(Outcome::Call(through, error)) => {
                self.note(&error);
                match trouble_of(&error) {
                    Trouble::Refused { for_good: true } | Trouble::TooLarge => {
                        self.circuit.succeeded();
                        tracing::warn!(peer = %self.peer, group = %job.lane.group, sequence = %through, %error, "the peer does not take a message for one of its clients");
                        Done::Skipped { through }
                    }
                    Trouble::NotFound => {
                        self.failed(Failure::Refused, sent_at);
                        self.deliveries_not_found();
                        Done::Again
                    }
                    Trouble::Refused { for_good: false } => {
                        self.failed(Failure::Transport, sent_at);
                        Done::Again
                    }
                    Trouble::Later(failure) => {
                        self.failed(failure, sent_at);
                        Done::Again
                    }
                }
            }
        };
        match self.direct.done(job, done, now, random()) {
            DirectVerdict::Taken => {
                self.taken_at = now;
                self.given_up.remove(&job.lane.group);
                self.node.peers.board.update(&self.peer, |state| state.items_delivered += 1);
            }
            DirectVerdict::Gone => {
                self.taken_at = now;
                self.report_gone(&job.lane.group, vec![job.lane.recipient], ctx);
            }
            DirectVerdict::Full => self.count("queue_full"),
            DirectVerdict::Nothing => {}
        }
    }

    /// Neither feeds nor single messages: it is not a way to deliver that is missing, it is the peer.
    fn deliveries_not_found(&mut self) {
        if self.way.singles_not_found() {
            let groups: Vec<GroupId> = self.direct.groups().cloned().collect();
            for group in groups {
                if let Some(until) = self.direct.known(&group) {
                    self.direct.remove(&group);
                    self.want(group, until);
                }
            }
        }
    }
}

enum Outcome {
    Store(StoreError),
    Call(Sequence, CallError),
}
