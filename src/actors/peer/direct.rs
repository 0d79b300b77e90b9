//! The peer that takes no feeds: single requests, one per client and message (DS §6.1), and the way there and back.

use actix::prelude::*;

use super::{Mode, PeerActor, Trouble, items, items::read_all_rows, random, trouble_of};
use crate::{
    actors::node::Node,
    crypto,
    federation::{
        CallError,
        direct::{Direct, DirectVerdict, Done, Job, Row, What},
        outbox::Standing,
        schedule::Failure,
    },
    store::StoreError,
    wire::{
        codec::{decode, encode},
        ds::{DsError, FanoutFilter},
        federation::EventType,
        ids::{Domain, GroupId, RequestId, Sequence, Timestamp},
        queueing::{QueueingServiceRequest, QueueingServiceResponse, RosterChange},
    },
};

/// A group as it is read in for single requests.
pub(super) enum LoadedDirect {
    New {
        acknowledged: Sequence,
        next: Sequence,
        roster: Vec<RosterChange>,
        rows: Vec<Row>,
    },
    /// It is here already, and has grown.
    More {
        until: Sequence,
        rows: Vec<Row>,
    },
}

/// Reads a group in; `known` is up to where its roster is known, if it is here.
pub(super) async fn load(
    node: &Node,
    peer: &Domain,
    group: &GroupId,
    until: Sequence,
    known: Option<Sequence>,
) -> Result<LoadedDirect, StoreError> {
    if let Some(known) = known {
        let rows = read_all_rows(node, peer, group, known.next(), until.next()).await?;
        return Ok(LoadedDirect::More { until, rows });
    }
    let (standing, _) = items::standing_of(node, peer, group, until).await?;
    let Standing { acknowledged, .. } = standing;
    let (next, roster) = match node.group_roster_for(group, peer).await {
        Ok(Some(roster)) => (roster.next.max(until.next()), roster.adds),
        Ok(None) | Err(DsError::GroupNotFound { .. }) => (until.next(), Vec::new()),
        Err(error) => return Err(StoreError::Unavailable(error.to_string())),
    };
    let rows = read_all_rows(node, peer, group, acknowledged.next(), next).await?;
    Ok(LoadedDirect::New { acknowledged, next, roster, rows })
}

impl LoadedDirect {
    pub(super) fn apply(self, direct: &mut Direct, group: &GroupId, now: Timestamp) {
        match self {
            Self::New { acknowledged, next, roster, rows } if direct.known(group).is_none() => {
                direct.load(group, acknowledged, next, roster, rows, now);
            }
            Self::New { next, rows, .. } => {
                direct.grow(group, Sequence(next.0.saturating_sub(1)), rows);
            }
            Self::More { until, rows } => direct.grow(group, until, rows),
        }
    }
}

impl PeerActor {
    /// Everything that waits goes message by message from now on.
    pub(super) fn go_direct(&mut self, proven: bool, probe_at: Timestamp) {
        self.mode = Mode::Direct { proven, probe_at, probing: false };
        self.kept.clear();
        self.repeat.clear();
        for (group, standing) in self.outbox.hand_over() {
            self.wanted.insert(group, standing.until);
        }
    }

    /// The peer takes feeds after all: each group changes back with a snapshot.
    pub(super) fn go_feed(&mut self, now: Timestamp) {
        let groups: Vec<GroupId> = self.direct.groups().cloned().collect();
        for group in groups {
            self.feed_again(group, now);
        }
        tracing::info!(peer = %self.peer, "the peer takes feeds by now");
    }

    /// Changes one group back, with a snapshot. Whether it is here.
    fn feed_again(&mut self, group: GroupId, now: Timestamp) -> bool {
        let Some(until) = self.direct.known(&group) else { return false };
        let Some(acknowledged) = self.direct.remove(&group) else { return false };
        let standing = Standing {
            acknowledged,
            acknowledged_at: now,
            until,
            oldest_at: now,
            set_aside: None,
            needs_snapshot: true,
        };
        self.outbox.load(group, standing, now);
        true
    }

    /// A batch was answered with 404.
    pub(super) fn feeds_not_found(&mut self, now: Timestamp) {
        self.circuit.succeeded();
        let probe_at = now.plus_ms(self.limits().direct_probe_ms);
        let proven = match self.mode {
            Mode::Feed { .. } => {
                tracing::info!(peer = %self.peer, "the peer takes no feeds: each of its clients gets each message by itself");
                false
            }
            Mode::Direct { proven, .. } => proven,
        };
        self.go_direct(proven, probe_at);
    }

    pub(super) fn probe_due(&self) -> Option<Timestamp> {
        match self.mode {
            Mode::Direct { proven: true, probing: false, probe_at } if !self.direct.is_empty() => {
                Some(probe_at)
            }
            Mode::Direct { .. } | Mode::Feed { .. } => None,
        }
    }

    /// Tries feeds with one group, by a snapshot, when it is time.
    pub(super) fn probe_feeds(&mut self, now: Timestamp) {
        if self.probe_due().is_none_or(|due| now < due) {
            return;
        }
        // one that has everything, if there is one
        let done = self.direct.unpersisted(usize::MAX).into_iter().find(|(.., is_done)| *is_done);
        let group = done.map(|(group, ..)| group).or_else(|| self.direct.groups().next().cloned());
        if !group.is_some_and(|group| self.feed_again(group, now)) {
            return;
        }
        if let Mode::Direct { probing, .. } = &mut self.mode {
            *probing = true;
        }
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
                if let Mode::Direct { proven, .. } = &mut self.mode {
                    *proven = true;
                }
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
        if let Mode::Direct { proven: false, .. } = self.mode {
            self.mode = Mode::Feed { proven: false };
            let groups: Vec<GroupId> = self.direct.groups().cloned().collect();
            for group in groups {
                if let Some(until) = self.direct.known(&group) {
                    self.direct.remove(&group);
                    self.wanted.insert(group, until);
                }
            }
        }
    }
}

enum Outcome {
    Store(StoreError),
    Call(Sequence, CallError),
}
