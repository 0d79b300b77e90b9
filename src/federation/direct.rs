//! Groups of a peer that does not take feeds: one request per client and message, as DS §6.1 has it. PROTOCOL.md §3.
//!
//! Each client has a lane of its own: the next message goes when the one before was answered, and a client whose queue is
//! full waits without holding up the others. A group stands where its slowest lane does.
//!
//! Pure: time and randomness are arguments. Deliberately absent: reading messages, sending, and the peer's circuit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{roster::Row, schedule::Backoff};
use crate::wire::{
    ds::FanoutFilter,
    extensions::QueueToken,
    ids::{GroupId, RecipientId, Sequence, Timestamp},
    mls::MlsMessage,
    queueing::{QueueingServiceResponse, RosterChange},
};

/// Bounds of a [`Direct`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectLimits {
    /// Requests on their way at a time.
    pub requests_max: usize,
    /// Of a client whose queue is full.
    pub retry: Backoff,
}

/// A client in a group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId {
    pub group: GroupId,
    pub recipient: RecipientId,
}

/// The next request of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub lane: LaneId,
    pub token: QueueToken,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Welcome(MlsMessage),
    /// The first message in `from..=until` that is for this client.
    Message {
        from: Sequence,
        until: Sequence,
        handshake_only: bool,
    },
}

/// How a [`Job`] went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// A message was sent; nothing up to and with it is still to be sent. Of a Welcome `through` says nothing.
    Answered { through: Sequence, response: QueueingServiceResponse },
    /// Nothing up to there is for this client, or the peer cannot take it and never will.
    Skipped { through: Sequence },
    /// It is to be tried again, now or when the peer can be reached.
    Again,
}

/// What an answer comes to, beside the lane's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectVerdict {
    Taken,
    /// The queue is not there (any more): the client is to be removed.
    Gone,
    Full,
    Nothing,
}

/// All groups of one peer that it gets message by message.
#[derive(Debug)]
pub struct Direct {
    limits: DirectLimits,
    groups: BTreeMap<GroupId, Members>,
    ready: VecDeque<LaneId>,
    due: BTreeSet<(Timestamp, LaneId)>,
    /// A queue may be known by one token in several groups: it gets one request at a time.
    busy: BTreeSet<Vec<u8>>,
    sending: usize,
}

#[derive(Debug)]
struct Members {
    until: Sequence,
    /// Rows of the roster are known up to here.
    known: Sequence,
    lanes: BTreeMap<RecipientId, Lane>,
    copy: Option<Sequence>,
    persisted: Sequence,
    acknowledged_at: Timestamp,
}

#[derive(Debug)]
struct Lane {
    token: QueueToken,
    handshake_only: bool,
    welcome: Option<MlsMessage>,
    next: Sequence,
    /// The client was removed by this one, which is its last.
    last: Option<Sequence>,
    phase: Phase,
    tries: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Ready,
    Sending,
    Waiting(Timestamp),
}

/// A group as it comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Every client has everything up to here.
    pub acknowledged: Sequence,
    /// Up to where the peer's copy of the feed has everything, where it may have one.
    pub copy: Option<Sequence>,
    /// `roster` is of the clients in the group before this.
    pub next: Sequence,
    pub roster: Vec<RosterChange>,
    /// Those behind `acknowledged`.
    pub rows: Vec<Row>,
}

/// What is to be written down of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectProgress {
    pub group: GroupId,
    pub acknowledged: Sequence,
    pub acknowledged_at: Timestamp,
    pub copy: Option<Sequence>,
    /// Every client has everything that there was.
    pub is_done: bool,
}

/// A group that was taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handed {
    pub acknowledged: Sequence,
    pub until: Sequence,
    pub copy: Option<Sequence>,
    /// Clients whose tokens are known, as adds: those that a row has removed meanwhile are known from nowhere else.
    pub clients: Vec<RosterChange>,
}

impl Direct {
    #[must_use]
    pub fn new(limits: DirectLimits) -> Self {
        Self {
            limits,
            groups: BTreeMap::new(),
            ready: VecDeque::new(),
            due: BTreeSet::new(),
            busy: BTreeSet::new(),
            sending: 0,
        }
    }

    /// A group comes in. Who was added by a row begins behind it, who was removed by one ends with it (if its token is
    /// known from a row).
    pub fn load(&mut self, group: &GroupId, entry: Entry, now: Timestamp) {
        let Entry { acknowledged, copy, next, roster, rows } = entry;
        let mut members = Members {
            until: acknowledged,
            known: acknowledged,
            lanes: BTreeMap::new(),
            copy,
            persisted: acknowledged,
            acknowledged_at: now,
        };
        let mut current = BTreeMap::new();
        for change in roster {
            if let RosterChange::Add { recipient, client_queue_information, filter, .. } = change {
                let lane = Lane::new(client_queue_information, filter, None, acknowledged.next());
                members.lanes.insert(recipient, lane);
                let (token, filter) = lane_parts(members.lanes.get(&recipient));
                current.insert(recipient, (token, filter));
            }
        }
        self.groups.insert(group.clone(), members);
        self.grow(group, Sequence(next.0.saturating_sub(1)), rows);
        // what is known now is newer than what the rows said
        if let Some(members) = self.groups.get_mut(group) {
            for (recipient, (token, filter)) in current {
                if let (Some(lane), Some(token)) = (members.lanes.get_mut(&recipient), token) {
                    (lane.token, lane.handshake_only) = (token, filter);
                }
            }
        }
    }

    /// The group has more, up to `until`, and its roster changed by `rows` on the way.
    pub fn grow(&mut self, group: &GroupId, until: Sequence, rows: Vec<Row>) {
        let Some(members) = self.groups.get_mut(group) else { return };
        for Row { sequence, changes, .. } in rows {
            if sequence <= members.known || sequence > until {
                continue;
            }
            for change in changes {
                members.change(sequence, change);
            }
        }
        members.known = members.known.max(until);
        members.until = members.until.max(until);
        let recipients: Vec<RecipientId> = members.lanes.keys().copied().collect();
        for recipient in recipients {
            self.go_on(LaneId { group: group.clone(), recipient });
        }
    }

    /// The next request to be sent; none while so many are on their way, or nothing is ready.
    pub fn next(&mut self, now: Timestamp) -> Option<Job> {
        while let Some((at, lane)) = self.due.first().cloned() {
            if at > now {
                break;
            }
            self.due.remove(&(at, lane.clone()));
            self.set_ready(lane);
        }
        if self.sending >= self.limits.requests_max {
            return None;
        }
        for _ in 0..self.ready.len() {
            let id = self.ready.pop_front()?;
            let Some(members) = self.groups.get_mut(&id.group) else { continue };
            let until = members.until;
            let Some(lane) = members.lanes.get_mut(&id.recipient) else { continue };
            if lane.phase != Phase::Ready {
                continue;
            }
            if self.busy.contains(lane.token.as_slice()) {
                self.ready.push_back(id);
                continue;
            }
            lane.phase = Phase::Sending;
            self.busy.insert(lane.token.as_slice().to_vec());
            self.sending += 1;
            let what = match &lane.welcome {
                Some(welcome) => What::Welcome(welcome.clone()),
                None => What::Message {
                    from: lane.next,
                    until: lane.last.unwrap_or(until).min(until),
                    handshake_only: lane.handshake_only,
                },
            };
            return Some(Job { lane: id, token: lane.token.clone(), what });
        }
        None
    }

    /// A job is over.
    pub fn done(&mut self, job: &Job, done: Done, now: Timestamp, random: u64) -> DirectVerdict {
        self.busy.remove(job.token.as_slice());
        self.sending = self.sending.saturating_sub(1);
        let retry = self.limits.retry;
        let Some(members) = self.groups.get_mut(&job.lane.group) else {
            return DirectVerdict::Nothing;
        };
        let Some(lane) = members.lanes.get_mut(&job.lane.recipient) else {
            return DirectVerdict::Nothing;
        };
        if lane.phase == Phase::Sending {
            lane.phase = Phase::Idle;
        }
        let is_welcome = matches!(job.what, What::Welcome(_));
        let verdict = match done {
            Done::Again => DirectVerdict::Nothing,
            Done::Skipped { through } => {
                lane.pass(is_welcome, through);
                DirectVerdict::Nothing
            }
            Done::Answered { through, response } => match response {
                // a user's own blocks are not ours to know of
                QueueingServiceResponse::Ok | QueueingServiceResponse::Blocked => {
                    members.acknowledged_at = now;
                    lane.pass(is_welcome, through);
                    DirectVerdict::Taken
                }
                QueueingServiceResponse::InvalidClientQueueInformation => {
                    members.acknowledged_at = now;
                    members.lanes.remove(&job.lane.recipient);
                    return DirectVerdict::Gone;
                }
                QueueingServiceResponse::QueueFull => {
                    lane.tries = lane.tries.saturating_add(1);
                    let at = now.plus_ms(retry.delay_ms(lane.tries, random));
                    lane.phase = Phase::Waiting(at);
                    self.due.insert((at, job.lane.clone()));
                    return DirectVerdict::Full;
                }
            },
        };
        if lane.last.is_some_and(|last| lane.welcome.is_none() && lane.next > last) {
            members.lanes.remove(&job.lane.recipient);
        } else {
            self.go_on(job.lane.clone());
        }
        verdict
    }

    /// Up to where every client of a group has everything, where that has changed since it was written down.
    #[must_use]
    pub fn unpersisted(&self, items_max: usize) -> Vec<DirectProgress> {
        let groups = self.groups.iter();
        groups
            .filter_map(|(group, members)| {
                let acknowledged = members.acknowledged();
                let is_done = acknowledged >= members.until;
                let changed = acknowledged > members.persisted || is_done;
                changed.then(|| DirectProgress {
                    group: group.clone(),
                    acknowledged,
                    acknowledged_at: members.acknowledged_at,
                    copy: members.copy,
                    is_done,
                })
            })
            .take(items_max)
            .collect()
    }

    /// Written down. A group that is done and was not given more meanwhile is let go where its marker is gone too.
    pub fn persisted(&mut self, group: &GroupId, acknowledged: Sequence, is_done: bool) {
        let Some(members) = self.groups.get_mut(group) else { return };
        members.persisted = members.persisted.max(acknowledged);
        if is_done && members.until <= acknowledged {
            self.remove(group);
        }
    }

    /// Takes a group out. What is on its way for it is answered in vain.
    pub fn remove(&mut self, group: &GroupId) -> Option<Handed> {
        let members = self.groups.remove(group)?;
        self.ready.retain(|lane| lane.group != *group);
        self.due.retain(|(_, lane)| lane.group != *group);
        let (acknowledged, until, copy) = (members.acknowledged(), members.until, members.copy);
        let client = |(recipient, lane): (RecipientId, Lane)| RosterChange::Add {
            recipient,
            client_queue_information: lane.token,
            filter: match lane.handshake_only {
                true => FanoutFilter::HandshakeOnly,
                false => FanoutFilter::All,
            },
            welcome: None,
        };
        let clients = members.lanes.into_iter().map(client).collect();
        Some(Handed { acknowledged, until, copy, clients })
    }

    /// Where a group's roster is known up to, if the group is here.
    #[must_use]
    pub fn known(&self, group: &GroupId) -> Option<Sequence> {
        self.groups.get(group).map(|members| members.known)
    }

    /// A group by which feeds can be tried: one that a batch would have something of, and that waits for nothing itself
    /// if there is one.
    #[must_use]
    pub fn to_probe(&self) -> Option<&GroupId> {
        let lacks = |members: &Members| members.copy.is_none_or(|copy| copy < members.until);
        let mut groups = self.groups.iter().filter(|(_, members)| lacks(members));
        let first = groups.next();
        let is_done = |members: &Members| members.acknowledged() >= members.until;
        let done = first.into_iter().chain(groups).find(|(_, members)| is_done(members));
        done.or(first).map(|(group, _)| group)
    }

    pub fn groups(&self) -> impl Iterator<Item = &GroupId> {
        self.groups.keys()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    #[must_use]
    pub fn due_at(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Groups that not every client has everything of, with when one last took something.
    pub fn waiting_groups(&self) -> impl Iterator<Item = (&GroupId, Timestamp)> {
        let behind = |members: &Members| members.acknowledged() < members.until;
        let groups = self.groups.iter().filter(move |(_, members)| behind(members));
        groups.map(|(group, members)| (group, members.acknowledged_at))
    }

    /// When one of those last took something.
    pub fn waiting(&self) -> impl Iterator<Item = Timestamp> {
        self.waiting_groups().map(|(_, at)| at)
    }

    /// Messages of the feeds that not every client has.
    #[must_use]
    pub fn depth(&self) -> u64 {
        let behind = |members: &Members| members.until.0.saturating_sub(members.acknowledged().0);
        self.groups.values().map(behind).sum()
    }

    fn set_ready(&mut self, id: LaneId) {
        let members = self.groups.get_mut(&id.group);
        let Some(lane) = members.and_then(|members| members.lanes.get_mut(&id.recipient)) else {
            return;
        };
        lane.phase = Phase::Ready;
        self.ready.push_back(id);
    }

    fn go_on(&mut self, id: LaneId) {
        let Some(members) = self.groups.get(&id.group) else { return };
        let Some(lane) = members.lanes.get(&id.recipient) else { return };
        let end = lane.last.unwrap_or(members.until).min(members.until);
        if lane.phase == Phase::Idle && (lane.welcome.is_some() || lane.next <= end) {
            self.set_ready(id);
        }
    }
}

impl Members {
    fn acknowledged(&self) -> Sequence {
        let lanes = self.lanes.values().map(|lane| match lane.welcome {
            // the row that holds the Welcome is still needed
            Some(_) => lane.next.0.saturating_sub(2),
            None => lane.next.0.saturating_sub(1),
        });
        lanes.min().map_or(self.until, |slowest| Sequence(slowest).min(self.until))
    }

    fn change(&mut self, sequence: Sequence, change: RosterChange) {
        match change {
            RosterChange::Add { recipient, client_queue_information, filter, welcome } => {
                let lane = Lane::new(client_queue_information, filter, welcome, sequence.next());
                self.lanes.insert(recipient, lane);
            }
            RosterChange::Update { recipient, client_queue_information, filter } => {
                if let Some(lane) = self.lanes.get_mut(&recipient) {
                    lane.token = client_queue_information;
                    lane.handshake_only = filter == FanoutFilter::HandshakeOnly;
                }
            }
            RosterChange::Remove { recipient } => {
                let Some(lane) = self.lanes.get_mut(&recipient) else { return };
                lane.last = Some(sequence);
                if lane.welcome.is_none() && lane.next > sequence && lane.phase != Phase::Sending {
                    self.lanes.remove(&recipient);
                }
            }
        }
    }
}

impl Lane {
    fn new(
        token: QueueToken,
        filter: FanoutFilter,
        welcome: Option<MlsMessage>,
        next: Sequence,
    ) -> Self {
        let handshake_only = filter == FanoutFilter::HandshakeOnly;
        Self { token, handshake_only, welcome, next, last: None, phase: Phase::Idle, tries: 0 }
    }

    fn pass(&mut self, is_welcome: bool, through: Sequence) {
        self.tries = 0;
        if is_welcome {
            self.welcome = None;
        } else {
            self.next = self.next.max(through.next());
        }
    }
}

fn lane_parts(lane: Option<&Lane>) -> (Option<QueueToken>, bool) {
    lane.map_or((None, false), |lane| (Some(lane.token.clone()), lane.handshake_only))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{codec::Opaque, ids::Domain};

    fn group(seed: u8) -> GroupId {
        GroupId::of(&Domain::new("a.example").unwrap(), [seed; 16])
    }

    fn token(seed: u8) -> QueueToken {
        Opaque::new(vec![seed]).unwrap()
    }

    fn add(recipient: u64, seed: u8) -> RosterChange {
        RosterChange::Add {
            recipient: RecipientId(recipient),
            client_queue_information: token(seed),
            filter: FanoutFilter::All,
            welcome: None,
        }
    }

    const LIMITS: DirectLimits =
        DirectLimits { requests_max: 4, retry: Backoff { first_ms: 100, max_ms: 1_000 } };

    fn at(ms: u64) -> Timestamp {
        Timestamp(1_000_000 + ms)
    }

    fn answered(through: u64, response: QueueingServiceResponse) -> Done {
        Done::Answered { through: Sequence(through), response }
    }

    fn from(job: &Job) -> (u64, u64) {
        match &job.what {
            What::Message { from, .. } => (job.lane.recipient.0, from.0),
            What::Welcome(_) => (job.lane.recipient.0, 0),
        }
    }

    fn entry(next: u64, roster: Vec<RosterChange>, rows: Vec<Row>) -> Entry {
        Entry { acknowledged: Sequence(0), copy: None, next: Sequence(next), roster, rows }
    }

    fn loaded(next: u64, roster: Vec<RosterChange>, rows: Vec<Row>) -> Direct {
        let mut direct = Direct::new(LIMITS);
        direct.load(&group(1), entry(next, roster, rows), at(0));
        direct
    }

    #[test]
    fn a_client_gets_the_next_message_when_the_last_was_answered() {
        let mut direct = loaded(4, vec![add(1, 1), add(2, 2)], vec![]);
        let (first, second) = (direct.next(at(0)).unwrap(), direct.next(at(0)).unwrap());
        assert_eq!((from(&first), from(&second)), ((1, 1), (2, 1)));
        assert_eq!(direct.next(at(0)), None);
        direct.done(&second, answered(1, QueueingServiceResponse::Ok), at(0), 0);
        let third = direct.next(at(0)).unwrap();
        assert_eq!(from(&third), (2, 2));
        direct.done(&third, Done::Skipped { through: Sequence(3) }, at(0), 0);
        assert_eq!(direct.next(at(0)), None, "it has everything");
        direct.done(&first, Done::Again, at(0), 0);
        assert_eq!(from(&direct.next(at(0)).unwrap()), (1, 1));
        assert_eq!(direct.depth(), 3, "the group stands where the slowest of its clients does");
    }

    #[test]
    fn a_full_queue_waits_and_holds_up_nobody_else() {
        let mut direct = loaded(2, vec![add(1, 1), add(2, 2)], vec![]);
        let (first, second) = (direct.next(at(0)).unwrap(), direct.next(at(0)).unwrap());
        let full = answered(1, QueueingServiceResponse::QueueFull);
        assert_eq!(direct.done(&first, full, at(0), 0), DirectVerdict::Full);
        let taken = direct.done(&second, answered(1, QueueingServiceResponse::Blocked), at(0), 0);
        assert_eq!(taken, DirectVerdict::Taken);
        direct.grow(&group(1), Sequence(2), vec![]);
        let next = direct.next(at(0)).unwrap();
        assert_eq!(from(&next), (2, 2));
        assert_eq!(direct.next(at(0)), None);
        let due = direct.due_at().unwrap();
        assert_eq!(from(&direct.next(due).unwrap()), (1, 1));
    }

    #[test]
    fn a_queue_that_is_gone_ends_its_lane() {
        let mut direct = loaded(2, vec![add(1, 1)], vec![]);
        let job = direct.next(at(0)).unwrap();
        let gone = answered(1, QueueingServiceResponse::InvalidClientQueueInformation);
        assert_eq!(direct.done(&job, gone, at(1), 0), DirectVerdict::Gone);
        let done = DirectProgress {
            group: group(1),
            acknowledged: Sequence(1),
            acknowledged_at: at(1),
            copy: None,
            is_done: true,
        };
        assert_eq!(direct.unpersisted(9), [done]);
        direct.persisted(&group(1), Sequence(1), true);
        assert!(direct.is_empty());
    }

    #[test]
    fn one_queue_gets_one_request_at_a_time_whatever_group_it_is_for() {
        let mut direct = loaded(2, vec![add(1, 7)], vec![]);
        direct.load(&group(2), entry(2, vec![add(9, 7)], vec![]), at(0));
        let job = direct.next(at(0)).unwrap();
        assert_eq!(direct.next(at(0)), None);
        direct.done(&job, answered(1, QueueingServiceResponse::Ok), at(0), 0);
        assert_eq!(from(&direct.next(at(0)).unwrap()), (9, 1));
    }

    #[test]
    fn the_roster_changes_behind_its_items() {
        let row = |sequence, change| Row {
            sequence: Sequence(sequence),
            opens: false,
            changes: vec![change],
        };
        let remove = |recipient| RosterChange::Remove { recipient: RecipientId(recipient) };
        // 1 was there; 2 came with 2 and left with 4; 3 came with 5 and has another token by now
        let rows = vec![row(2, add(2, 2)), row(4, remove(2)), row(5, add(3, 3))];
        let mut direct = loaded(7, vec![add(1, 1), add(3, 30)], rows);
        let jobs: Vec<Job> = std::iter::from_fn(|| direct.next(at(0))).collect();
        assert_eq!(jobs.iter().map(from).collect::<Vec<_>>(), [(1, 1), (2, 3), (3, 6)]);
        assert_eq!(jobs[2].token, token(30));
        assert!(matches!(jobs[1].what, What::Message { until: Sequence(4), .. }));
        direct.done(&jobs[1], answered(4, QueueingServiceResponse::Ok), at(0), 0);
        assert_eq!(direct.next(at(0)), None, "its last one was answered");
        direct.grow(&group(1), Sequence(8), vec![row(8, remove(1))]);
        direct.done(&jobs[0], answered(8, QueueingServiceResponse::Ok), at(0), 0);
        direct.done(&jobs[2], answered(8, QueueingServiceResponse::Ok), at(0), 0);
        assert_eq!(direct.unpersisted(9)[0].acknowledged, Sequence(8));
        direct.persisted(&group(1), Sequence(8), false);
        assert_eq!(direct.next(at(0)), None);
    }

    #[test]
    fn a_group_that_is_taken_out_stands_where_its_slowest_client_does_and_keeps_its_copy() {
        let remove = |recipient| RosterChange::Remove { recipient: RecipientId(recipient) };
        let rows = vec![Row { sequence: Sequence(3), opens: false, changes: vec![remove(2)] }];
        let mut direct = Direct::new(LIMITS);
        let of = Entry { copy: Some(Sequence(0)), ..entry(2, vec![add(1, 1), add(2, 2)], vec![]) };
        direct.load(&group(1), of, at(0));
        direct.grow(&group(1), Sequence(4), rows);
        let (first, _) = (direct.next(at(0)).unwrap(), direct.next(at(0)).unwrap());
        direct.done(&first, answered(4, QueueingServiceResponse::Ok), at(0), 0);
        assert_eq!(direct.to_probe(), Some(&group(1)), "its copy lacks something");
        let handed = direct.remove(&group(1)).unwrap();
        let clients = vec![add(1, 1), add(2, 2)];
        let (acknowledged, until, copy) = (Sequence(0), Sequence(4), Some(Sequence(0)));
        assert_eq!(handed, Handed { acknowledged, until, copy, clients });
        assert_eq!(direct.to_probe(), None);
        // what comes late for it changes nothing, also where it is here again
        direct.load(&group(1), entry(5, vec![add(1, 1)], vec![]), at(0));
        direct.done(&first, Done::Again, at(0), 0);
        assert_eq!(from(&direct.next(at(0)).unwrap()), (1, 1));
        assert_eq!(direct.next(at(0)), None, "one request at a time");
    }
}
