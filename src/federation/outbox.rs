//! What one peer is still to get: whose turn it is, what stands in which batch, and what an answer means. PROTOCOL.md §3.
//!
//! A group's log is the content; here are only positions in it. Groups take turns (a batch holds items of many, each
//! its share), and a group is in one batch at a time, so its items stay in order while several batches are on their
//! way. A group that the peer does not take is set aside and is in nobody's way.
//!
//! Pure: time and randomness are arguments. Deliberately absent: reading items, sending, and when the peer may be spoken
//! to at all (`schedule`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::schedule::Backoff;
use crate::wire::{
    ds::REQUEST_BYTES_MAX,
    ids::{GroupId, RecipientId, Sequence, Timestamp},
    queueing::{DeliverBatchResponse, DeliveryFailure, DeliveryItem, DeliveryProblem},
};

/// Bounds of an [`Outbox`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxLimits {
    pub batch_items_max: usize,
    /// Bytes of the items in one batch; an item that is larger goes alone.
    pub batch_bytes_max: usize,
    pub batch_groups_max: usize,
    /// Batches on their way at a time.
    pub batches_max: usize,
    /// Of a group that gets nowhere.
    pub retry: Backoff,
    /// A group that got nowhere so often in a row is set aside.
    pub stalls_max: u32,
    /// A group that is set aside is tried again after this, by a snapshot; one whose batch was refused first with the same
    /// item once more.
    pub set_aside_retry_ms: u64,
}

/// Names a batch within one [`Outbox`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u64);

/// Why the peer gets nothing of a group for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    pub since: Timestamp,
    /// The item that the peer did not take.
    pub item: Sequence,
    pub problem: String,
}

/// What is known of a group when it comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The peer has everything up to here; 0: nothing yet.
    pub acknowledged: Sequence,
    pub acknowledged_at: Timestamp,
    /// There is something for the peer up to here.
    pub until: Sequence,
    /// When the oldest of what waits was accepted.
    pub oldest_at: Timestamp,
    pub set_aside: Option<SetAside>,
    /// Nothing but a snapshot helps.
    pub needs_snapshot: bool,
    /// The peer has a copy of the feed, or what is read opens one. Else (its clients got single messages) one is to be
    /// opened right behind what is acknowledged, so that nothing lies between.
    pub opened: bool,
}

/// What a group is to be read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The items behind what is acknowledged.
    Items,
    /// A snapshot of the peer's clients in the group as it is now.
    Snapshot,
    /// A snapshot of the peer's clients as they were behind what is acknowledged.
    Opening,
}

/// One group's part of a batch that is being made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    pub group: GroupId,
    pub acknowledged: Sequence,
    pub until: Sequence,
    pub need: Need,
    /// At most so many items, of about so many bytes; the first one always counts.
    pub items_max: usize,
    pub bytes_max: usize,
}

/// A batch that is to be filled: what to read for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub batch: BatchId,
    pub turns: Vec<Turn>,
}

/// An item as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub item: DeliveryItem,
    /// Of its encoding.
    pub bytes: usize,
    /// Who has this item has everything up to here.
    pub through: Sequence,
    pub accepted_at: Timestamp,
}

/// What reading for a turn gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// Consecutive items behind what is acknowledged, at least one; or one snapshot.
    Items(Vec<Loaded>),
    /// Nothing up to here is for the peer.
    Nothing { through: Sequence },
    /// It cannot be read now.
    Failed,
}

/// What an answer meant for one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub group: GroupId,
    /// Items that the peer has taken by this answer.
    pub taken: usize,
    /// Recipients whose queue the peer does not know (any more).
    pub gone: Vec<RecipientId>,
    pub turn: Turned,
}

/// How a group goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turned {
    /// With what follows.
    On,
    /// With a snapshot.
    Repair,
    /// Later, with the same again.
    Stalled,
    SetAside,
}

/// What is to be written down of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub group: GroupId,
    pub acknowledged: Sequence,
    pub acknowledged_at: Timestamp,
    pub until: Sequence,
    /// The peer has a copy that stands there; else its clients have got that much.
    pub opened: bool,
    pub set_aside: Option<SetAside>,
}

impl Progress {
    /// Whether the peer has everything that there was.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.acknowledged >= self.until
    }
}

/// Everything that one peer is still to get.
#[derive(Debug)]
pub struct Outbox {
    limits: OutboxLimits,
    groups: BTreeMap<GroupId, Lane>,
    /// Exactly those whose phase is [`Phase::Ready`], in the order of their turns.
    ready: VecDeque<GroupId>,
    /// Exactly those whose phase is [`Phase::Waiting`], by when their time comes.
    due: BTreeSet<(Timestamp, GroupId)>,
    dirty: BTreeSet<GroupId>,
    batches: BTreeMap<BatchId, Vec<Part>>,
    next_batch: u64,
    depth: u64,
    set_aside: usize,
}

/// One group's way to the peer.
#[derive(Debug)]
struct Lane {
    acknowledged: Sequence,
    acknowledged_at: Timestamp,
    until: Sequence,
    oldest_at: Timestamp,
    need: Need,
    /// See [`Standing::opened`].
    opened: bool,
    phase: Phase,
    set_aside: Option<SetAside>,
    /// Answers in a row that brought it nowhere.
    stalls: u32,
    /// Snapshots in a row that no item followed.
    repairs: u32,
    /// Up to here its items are sent one by one, in batches of their own: one of them made a whole batch fail.
    alone_until: Sequence,
    /// It was set aside for a batch that was refused, and had its item tried once more.
    tried_again: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The peer has everything.
    Idle,
    Ready,
    Sending,
    Waiting(Timestamp),
}

/// One group's items in a batch, which are consecutive there.
#[derive(Debug)]
struct Part {
    group: GroupId,
    items: Vec<Sent>,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    through: Sequence,
    accepted_at: Timestamp,
    is_snapshot: bool,
    /// A snapshot that only says that the peer has no client in the group.
    is_empty: bool,
}

impl Sent {
    fn of(loaded: &Loaded) -> Self {
        let (is_snapshot, is_empty) = match &loaded.item {
            DeliveryItem::Snapshot { roster, .. } => (true, roster.is_empty()),
            DeliveryItem::Feed { .. } | DeliveryItem::Direct { .. } => (false, false),
        };
        let Loaded { through, accepted_at, .. } = *loaded;
        Self { through, accepted_at, is_snapshot, is_empty }
    }
}

impl Outbox {
    #[must_use]
    pub fn new(mut limits: OutboxLimits) -> Self {
        limits.batch_items_max = limits.batch_items_max.max(1);
        limits.batch_groups_max = limits.batch_groups_max.max(1);
        limits.batch_bytes_max = limits.batch_bytes_max.clamp(1, REQUEST_BYTES_MAX);
        Self {
            limits,
            groups: BTreeMap::new(),
            ready: VecDeque::new(),
            due: BTreeSet::new(),
            dirty: BTreeSet::new(),
            batches: BTreeMap::new(),
            next_batch: 1,
            depth: 0,
            set_aside: 0,
        }
    }

    /// A group comes in from the store. One that is here already only grows.
    pub fn load(&mut self, group: GroupId, standing: Standing, now: Timestamp) {
        if self.grow(&group, standing.until, now) {
            return;
        }
        let lane = Lane {
            acknowledged: standing.acknowledged,
            acknowledged_at: standing.acknowledged_at,
            until: standing.until,
            oldest_at: standing.oldest_at,
            need: match (standing.opened, standing.needs_snapshot) {
                (false, _) => Need::Opening,
                (true, true) => Need::Snapshot,
                (true, false) => Need::Items,
            },
            opened: standing.opened,
            phase: Phase::Idle,
            stalls: 0,
            repairs: 0,
            alone_until: Sequence(0),
            tried_again: false,
            set_aside: None,
        };
        self.depth += lane.depth();
        self.groups.insert(group.clone(), lane);
        match standing.set_aside {
            Some(set_aside) => {
                let at = set_aside.since.plus_ms(self.limits.set_aside_retry_ms);
                self.put_aside(&group, set_aside, at);
                self.dirty.remove(&group);
            }
            None if standing.acknowledged < standing.until
                || standing.needs_snapshot
                || !standing.opened =>
            {
                self.make_ready(&group, false);
            }
            // its marker is still to be dropped
            None => {
                self.dirty.insert(group);
            }
        }
    }

    /// There is something up to `until`. `false`: the group is not here, and is to be loaded.
    pub fn grow(&mut self, group: &GroupId, until: Sequence, now: Timestamp) -> bool {
        let Some(lane) = self.groups.get_mut(group) else { return false };
        if until <= lane.until {
            return true;
        }
        if lane.acknowledged >= lane.until {
            lane.oldest_at = now;
        }
        self.depth -= lane.depth();
        lane.until = until;
        self.depth += lane.depth();
        if lane.phase == Phase::Idle && lane.acknowledged < until {
            if !lane.opened {
                lane.need = Need::Opening;
            }
            self.make_ready(group, false);
        }
        true
    }

    /// Lets go of a group that has nothing to wait for and is written down.
    pub fn forget_if_done(&mut self, group: &GroupId) -> bool {
        let done = self.groups.get(group).is_some_and(|lane| lane.phase == Phase::Idle);
        if done && !self.dirty.contains(group) {
            self.groups.remove(group);
            return true;
        }
        false
    }

    /// The next batch to be read and sent, of at most `groups_max` groups; none while so many are on their way, or
    /// nothing is ready. It counts as on its way from now on.
    pub fn plan(&mut self, groups_max: usize, now: Timestamp) -> Option<Plan> {
        self.wake(now);
        let groups_max = groups_max.min(self.limits.batch_groups_max);
        if self.batches.len() >= self.limits.batches_max {
            return None;
        }
        let mut turns: Vec<Turn> = Vec::new();
        while turns.len() < groups_max.min(self.limits.batch_items_max) {
            let Some(group) = self.ready.front() else { break };
            let Some(lane) = self.groups.get_mut(group) else {
                self.ready.pop_front();
                continue;
            };
            let alone = lane.is_alone();
            if alone && !turns.is_empty() {
                break;
            }
            lane.phase = Phase::Sending;
            turns.push(Turn {
                group: group.clone(),
                acknowledged: lane.acknowledged,
                until: lane.until,
                need: lane.need,
                items_max: usize::from(alone),
                bytes_max: 0,
            });
            self.ready.pop_front();
            if alone {
                break;
            }
        }
        if turns.is_empty() {
            return None;
        }
        let groups = turns.len();
        for turn in &mut turns {
            if turn.items_max == 0 {
                turn.items_max = self.limits.batch_items_max / groups;
            }
            turn.bytes_max = self.limits.batch_bytes_max / groups;
        }
        let batch = BatchId(self.next_batch);
        self.next_batch += 1;
        let part = |turn: &Turn| Part { group: turn.group.clone(), items: Vec::new() };
        self.batches.insert(batch, turns.iter().map(part).collect());
        Some(Plan { batch, turns })
    }

    /// Fills a planned batch with what was read. What does not fit any more has the next turn. None where nothing is
    /// to be sent: then the batch is over.
    pub fn fill(
        &mut self,
        batch: BatchId,
        readings: Vec<(GroupId, Reading)>,
        now: Timestamp,
        random: u64,
    ) -> Option<Vec<DeliveryItem>> {
        let planned = self.batches.remove(&batch)?;
        let mut readings: BTreeMap<GroupId, Reading> = readings.into_iter().collect();
        let (mut items, mut bytes, mut parts) = (Vec::new(), 0, Vec::new());
        let mut next_turn = Vec::new();
        for Part { group, .. } in planned {
            match readings.remove(&group).unwrap_or(Reading::Failed) {
                Reading::Failed => self.stall(&group, "it cannot be read", now, random),
                Reading::Nothing { through } => {
                    self.acknowledge(&group, through, now);
                    self.go_on(&group);
                }
                Reading::Items(loaded) if loaded.is_empty() => {
                    self.stall(&group, "there is nothing of it to be read", now, random);
                }
                Reading::Items(loaded) => {
                    let mut sent = Vec::new();
                    for one in loaded {
                        if one.bytes > REQUEST_BYTES_MAX {
                            if sent.is_empty() {
                                let problem = "the item is larger than any batch".to_owned();
                                self.set_aside_at(&group, one.through, problem, now);
                            }
                            break;
                        }
                        let fits = bytes + one.bytes <= self.limits.batch_bytes_max;
                        if items.len() >= self.limits.batch_items_max || !(fits || items.is_empty())
                        {
                            break;
                        }
                        bytes += one.bytes;
                        sent.push(Sent::of(&one));
                        items.push(one.item);
                    }
                    if let (Some(first), Some(lane)) = (sent.first(), self.groups.get_mut(&group)) {
                        lane.oldest_at = first.accepted_at;
                        parts.push(Part { group, items: sent });
                    } else if self.is_sending(&group) {
                        next_turn.push(group);
                    }
                }
            }
        }
        for group in next_turn.iter().rev() {
            self.make_ready(group, true);
        }
        if items.is_empty() {
            return None;
        }
        self.batches.insert(batch, parts);
        Some(items)
    }

    /// What the peer's answer to a batch means. Of several problems of one group the first counts: what stands before it
    /// was taken, what follows it comes again.
    pub fn answered(
        &mut self,
        batch: BatchId,
        response: &DeliverBatchResponse,
        now: Timestamp,
        random: u64,
    ) -> Vec<Verdict> {
        let Some(parts) = self.batches.remove(&batch) else { return Vec::new() };
        let sent: usize = parts.iter().map(|part| part.items.len()).sum();
        let mut failures: BTreeMap<usize, Vec<&DeliveryFailure>> = BTreeMap::new();
        let mut senseless = false;
        for failure in response.failures.iter() {
            match usize::try_from(failure.item) {
                Ok(item) if item < sent => failures.entry(item).or_default().push(failure),
                Ok(_) | Err(_) => senseless = true,
            }
        }
        let mut verdicts = Vec::with_capacity(parts.len());
        let mut first = 0;
        for part in parts {
            let end = first + part.items.len();
            let verdict = if senseless {
                self.stall(&part.group, "the answer names items that were not sent", now, random);
                Verdict { taken: 0, gone: Vec::new(), turn: Turned::Stalled, group: part.group }
            } else {
                let of_part = failures.range(first..end);
                let of_part = of_part.flat_map(|(item, all)| all.iter().map(|one| (*item, *one)));
                self.judge(part, first, &of_part.collect::<Vec<_>>(), now, random)
            };
            verdicts.push(verdict);
            first = end;
        }
        for verdict in &mut verdicts {
            // who stalls too often is set aside
            let lane = self.groups.get(&verdict.group);
            if verdict.turn == Turned::Stalled && lane.is_some_and(|lane| lane.set_aside.is_some())
            {
                verdict.turn = Turned::SetAside;
            }
        }
        verdicts
    }

    fn judge(
        &mut self,
        part: Part,
        first: usize,
        failures: &[(usize, &DeliveryFailure)],
        now: Timestamp,
        random: u64,
    ) -> Verdict {
        let Part { group, items } = part;
        let of_item = |problem| problem != DeliveryProblem::InvalidClientQueueInformation;
        // who does not know a feed has no client in it either
        let agrees = |item: usize, problem| {
            problem == DeliveryProblem::UnknownFeed
                && items.get(item - first).is_some_and(|sent| sent.is_empty)
        };
        let bad = failures
            .iter()
            .find(|(item, failure)| of_item(failure.problem) && !agrees(*item, failure.problem));
        let taken = bad.map_or(items.len(), |(item, _)| item - first);
        let mut gone: Vec<RecipientId> = failures
            .iter()
            .filter(|(item, failure)| item - first < taken && !of_item(failure.problem))
            .map(|(_, failure)| failure.recipient)
            .collect();
        gone.dedup();
        let (before, until, need) = match self.groups.get(&group) {
            Some(lane) => (lane.acknowledged, lane.until, lane.need),
            None => (Sequence(0), Sequence(0), Need::Items),
        };
        // of a group that has moved there is none any more, but what was before
        let no_snapshot = |item: &Sent| need != Need::Items && !item.is_snapshot;
        if let Some(last) = taken.checked_sub(1).and_then(|last| items.get(last)) {
            self.took(&group, *last, items.iter().take(taken).any(|item| !item.is_snapshot), now);
        }
        let turn = match bad.and_then(|(item, failure)| Some((items.get(item - first)?, failure))) {
            None => {
                self.go_on(&group);
                Turned::On
            }
            Some((item, failure)) => {
                let next = failure.next_sequence;
                let verdict = match failure.problem {
                    // nor does what was before help: it waits for the snapshot of the group's hub
                    DeliveryProblem::UnknownFeed if no_snapshot(item) => Bad::Has,
                    DeliveryProblem::Gap if no_snapshot(item) && next <= before => Bad::Has,
                    DeliveryProblem::UnknownFeed if !item.is_snapshot => Bad::Repair,
                    DeliveryProblem::Gap if item.is_snapshot => {
                        Bad::Aside("a snapshot was answered with a gap")
                    }
                    DeliveryProblem::Gap if next <= before => Bad::Repair,
                    DeliveryProblem::Gap if next > until.next() => {
                        Bad::Aside("the peer expects what was never accepted")
                    }
                    DeliveryProblem::Gap => Bad::Resume(Sequence(next.0 - 1)),
                    DeliveryProblem::UnknownFeed => {
                        Bad::Aside("a snapshot was answered with unknown_feed")
                    }
                    // it follows who this group has gone to, and has all that there is here
                    DeliveryProblem::WrongHub if next > until => Bad::Has,
                    // a snapshot proves who the hub is, or nothing does
                    DeliveryProblem::WrongHub if item.is_snapshot => Bad::Aside("wrong_hub"),
                    // it has not heard yet that the group has moved here
                    DeliveryProblem::WrongHub => Bad::Stall("wrong_hub"),
                    DeliveryProblem::InvalidItem => Bad::Aside("invalid_item"),
                    DeliveryProblem::QueueFull => Bad::Wait,
                    // no problem of an item
                    DeliveryProblem::InvalidClientQueueInformation => Bad::Resume(before),
                };
                let at = item.through;
                match verdict {
                    Bad::Repair => self.repair(&group, at, now, random),
                    Bad::Resume(acknowledged) => {
                        self.resume(&group, before, acknowledged, now, random)
                    }
                    Bad::Stall(problem) => {
                        self.stall(&group, problem, now, random);
                        Turned::Stalled
                    }
                    Bad::Has => {
                        self.has_all(&group, until, now);
                        Turned::On
                    }
                    Bad::Wait => self.wait_for_room(&group, now, random),
                    Bad::Aside(problem) => {
                        self.set_aside_at(&group, at, problem.to_owned(), now);
                        Turned::SetAside
                    }
                }
            }
        };
        Verdict { group, taken, gone, turn }
    }

    /// A batch did not arrive, or it is not known whether it did. Its groups wait for their turns behind the others: it
    /// may have been one of them that the peer choked on.
    pub fn release(&mut self, batch: BatchId) {
        for part in self.batches.remove(&batch).into_iter().flatten() {
            self.make_ready(&part.group, false);
        }
    }

    /// The peer does not take the batch as a whole. One item of it may be to blame, so from now on they go one by one.
    /// An item that is refused alone sets its group aside: at once where the refusal is `for_good`, else when it was
    /// tried often enough.
    pub fn refused(
        &mut self,
        batch: BatchId,
        problem: &str,
        for_good: bool,
        now: Timestamp,
        random: u64,
    ) {
        let Some(parts) = self.batches.remove(&batch) else { return };
        let alone = parts.iter().map(|part| part.items.len()).sum::<usize>() <= 1;
        for Part { group, items } in parts {
            let Some(last) = items.last() else { continue };
            if alone && for_good {
                self.set_aside_at(&group, last.through, problem.to_owned(), now);
                continue;
            }
            if alone {
                self.stall(&group, problem, now, random);
                continue;
            }
            if let Some(lane) = self.groups.get_mut(&group) {
                lane.alone_until = lane.alone_until.max(last.through);
            }
            self.make_ready(&group, false);
        }
    }

    /// The peer does not take batches as large as this one: the next ones are smaller.
    pub fn too_large(&mut self, batch: BatchId, now: Timestamp) {
        const PROBLEM: &str = "the peer takes nothing as large as this item";
        let items = self.batches.get(&batch).into_iter().flatten().map(|part| part.items.len());
        if items.sum::<usize>() <= 1 {
            self.refused(batch, PROBLEM, true, now, 0);
            return;
        }
        self.limits.batch_items_max = (self.limits.batch_items_max / 2).max(1);
        self.limits.batch_bytes_max = (self.limits.batch_bytes_max / 2).max(1);
        self.release(batch);
    }

    /// Tries a group again at once, by a snapshot. `false`: it is not here, or on its way.
    pub fn requeue(&mut self, group: &GroupId) -> bool {
        let Some(lane) = self.groups.get_mut(group) else { return false };
        if lane.phase == Phase::Sending {
            return false;
        }
        lane.need = lane.repair();
        (lane.stalls, lane.repairs) = (0, 0);
        self.make_ready(group, true);
        true
    }

    /// Lets go of every group, as if none had been loaded: the peer is to get them in another way. What is on its way
    /// is answered in vain.
    pub fn hand_over(&mut self) -> Vec<(GroupId, Standing)> {
        self.ready.clear();
        self.due.clear();
        self.dirty.clear();
        self.batches.clear();
        (self.depth, self.set_aside) = (0, 0);
        let standing = |lane: Lane| Standing {
            acknowledged: lane.acknowledged,
            acknowledged_at: lane.acknowledged_at,
            until: lane.until,
            oldest_at: lane.oldest_at,
            set_aside: lane.set_aside,
            needs_snapshot: lane.need == Need::Snapshot,
            opened: lane.opened,
        };
        let groups = std::mem::take(&mut self.groups);
        groups.into_iter().map(|(group, lane)| (group, standing(lane))).collect()
    }

    /// What is to be written down, at most `items_max` groups.
    #[must_use]
    pub fn unpersisted(&self, items_max: usize) -> Vec<Progress> {
        let dirty = self.dirty.iter().take(items_max);
        dirty.filter_map(|group| Some(self.groups.get(group)?.progress(group))).collect()
    }

    /// `progress` is written down.
    pub fn persisted(&mut self, progress: &Progress) {
        let is = self.groups.get(&progress.group).map(|lane| lane.progress(&progress.group));
        if is.is_none_or(|is| is == *progress) {
            self.dirty.remove(&progress.group);
        }
    }

    #[must_use]
    pub fn has_unpersisted(&self) -> bool {
        !self.dirty.is_empty()
    }

    #[must_use]
    pub fn contains(&self, group: &GroupId) -> bool {
        self.groups.contains_key(group)
    }

    /// Groups that are here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Whether something waits for its turn now.
    #[must_use]
    pub fn has_ready(&self, now: Timestamp) -> bool {
        !self.ready.is_empty() || self.due.first().is_some_and(|(at, _)| *at <= now)
    }

    /// When the next group's time comes.
    #[must_use]
    pub fn due_at(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Items that the peer is still to get.
    #[must_use]
    pub fn depth(&self) -> u64 {
        self.depth
    }

    #[must_use]
    pub fn set_aside_count(&self) -> usize {
        self.set_aside
    }

    /// Groups that something waits of, with when the oldest of it was accepted.
    pub fn waiting(&self) -> impl Iterator<Item = (&GroupId, Timestamp)> {
        let waiting = self.groups.iter().filter(|(_, lane)| lane.acknowledged < lane.until);
        waiting.map(|(group, lane)| (group, lane.oldest_at))
    }

    pub fn set_aside(&self) -> impl Iterator<Item = (&GroupId, &SetAside)> {
        let groups = self.groups.iter();
        groups.filter_map(|(group, lane)| Some((group, lane.set_aside.as_ref()?)))
    }

    #[must_use]
    pub fn set_aside_of(&self, group: &GroupId) -> Option<&SetAside> {
        self.groups.get(group)?.set_aside.as_ref()
    }

    fn is_sending(&self, group: &GroupId) -> bool {
        self.groups.get(group).is_some_and(|lane| lane.phase == Phase::Sending)
    }

    fn wake(&mut self, now: Timestamp) {
        while let Some((_, group)) = self.due.first().filter(|(at, _)| *at <= now).cloned() {
            self.wake_up(&group);
        }
        // nobody is told to wait for longer: the clock was set back
        let most = now.plus_ms(self.limits.set_aside_retry_ms.max(self.limits.retry.max_ms));
        while let Some((_, group)) = self.due.last().filter(|(at, _)| *at > most).cloned() {
            self.wake_up(&group);
        }
    }

    fn wake_up(&mut self, group: &GroupId) {
        if let Some(lane) = self.groups.get_mut(group)
            && lane.set_aside.is_some()
        {
            // a snapshot leaves out what is still to be had, and it may not have been the item that was refused
            if lane.is_alone() && !lane.tried_again {
                lane.tried_again = true;
            } else {
                lane.need = lane.repair();
            }
        }
        self.make_ready(group, false);
    }

    fn make_ready(&mut self, group: &GroupId, first: bool) {
        let Some(lane) = self.groups.get_mut(group) else { return };
        match lane.phase {
            Phase::Ready => return,
            Phase::Waiting(at) => {
                self.due.remove(&(at, group.clone()));
            }
            Phase::Idle | Phase::Sending => {}
        }
        lane.phase = Phase::Ready;
        if first {
            self.ready.push_front(group.clone());
        } else {
            self.ready.push_back(group.clone());
        }
    }

    fn wait(&mut self, group: &GroupId, until: Timestamp) {
        let Some(lane) = self.groups.get_mut(group) else { return };
        if let Phase::Waiting(at) = lane.phase {
            self.due.remove(&(at, group.clone()));
        }
        lane.phase = Phase::Waiting(until);
        self.due.insert((until, group.clone()));
    }

    /// Behind an answer: its next turn, or none.
    fn go_on(&mut self, group: &GroupId) {
        let Some(lane) = self.groups.get_mut(group) else { return };
        lane.phase = Phase::Idle;
        if lane.acknowledged < lane.until || lane.need != Need::Items {
            self.make_ready(group, false);
        }
    }

    fn acknowledge(&mut self, group: &GroupId, through: Sequence, now: Timestamp) {
        let Some(lane) = self.groups.get_mut(group) else { return };
        self.depth -= lane.depth();
        lane.acknowledged = lane.acknowledged.max(through);
        self.depth += lane.depth();
        lane.acknowledged_at = now;
        if lane.set_aside.take().is_some() {
            self.set_aside -= 1;
        }
        lane.need = Need::Items;
        (lane.stalls, lane.tried_again) = (0, false);
        self.dirty.insert(group.clone());
    }

    /// The peer has taken items up to `last`, of the feed or a snapshot alone.
    fn took(&mut self, group: &GroupId, last: Sent, of_feed: bool, now: Timestamp) {
        self.acknowledge(group, last.through, now);
        if let Some(lane) = self.groups.get_mut(group) {
            lane.oldest_at = lane.oldest_at.max(last.accepted_at);
            lane.opened = true;
            if of_feed {
                lane.repairs = 0;
            }
        }
    }

    /// The peer has everything up to `until`, by whatever way.
    fn has_all(&mut self, group: &GroupId, until: Sequence, now: Timestamp) {
        self.acknowledge(group, until, now);
        if let Some(lane) = self.groups.get_mut(group) {
            lane.opened = true;
        }
        self.go_on(group);
    }

    fn resume(
        &mut self,
        group: &GroupId,
        before: Sequence,
        acknowledged: Sequence,
        now: Timestamp,
        random: u64,
    ) -> Turned {
        let Some(lane) = self.groups.get_mut(group) else { return Turned::On };
        // what it took in this batch it may take back
        self.depth -= lane.depth();
        lane.acknowledged = acknowledged;
        self.depth += lane.depth();
        if acknowledged <= before {
            self.stall(group, "the peer asks for what it was sent", now, random);
            return Turned::Stalled;
        }
        self.acknowledge(group, acknowledged, now);
        self.go_on(group);
        Turned::On
    }

    fn repair(&mut self, group: &GroupId, at: Sequence, now: Timestamp, random: u64) -> Turned {
        let (retry, most) = (self.limits.retry, self.limits.stalls_max);
        let Some(lane) = self.groups.get_mut(group) else { return Turned::On };
        lane.need = lane.repair();
        lane.repairs += 1;
        if lane.repairs > most {
            let problem = "the peer asks for one snapshot after the other".to_owned();
            self.set_aside_at(group, at, problem, now);
            return Turned::SetAside;
        }
        if lane.repairs == 1 {
            self.make_ready(group, false);
        } else {
            let delay_ms = retry.delay_ms(lane.repairs - 1, random);
            self.wait(group, now.plus_ms(delay_ms));
        }
        Turned::Repair
    }

    fn stall(&mut self, group: &GroupId, problem: &str, now: Timestamp, random: u64) {
        let (retry, most) = (self.limits.retry, self.limits.stalls_max);
        let Some(lane) = self.groups.get_mut(group) else { return };
        lane.stalls += 1;
        if lane.stalls > most {
            let at = lane.acknowledged.next();
            self.set_aside_at(group, at, problem.to_owned(), now);
        } else {
            let delay_ms = retry.delay_ms(lane.stalls, random);
            self.wait(group, now.plus_ms(delay_ms));
        }
    }

    /// The peer has no room for more of a group. It makes some in its own time: the item is kept and tried again, more
    /// and more rarely, for as long as the log has it.
    fn wait_for_room(&mut self, group: &GroupId, now: Timestamp, random: u64) -> Turned {
        let (retry, most) = (self.limits.retry, self.limits.stalls_max);
        if let Some(lane) = self.groups.get_mut(group) {
            lane.stalls = lane.stalls.saturating_add(1).min(most);
            let delay_ms = retry.delay_ms(lane.stalls, random);
            self.wait(group, now.plus_ms(delay_ms));
        }
        Turned::Stalled
    }

    fn set_aside_at(&mut self, group: &GroupId, item: Sequence, problem: String, now: Timestamp) {
        let before = self.groups.get(group).and_then(|lane| lane.set_aside.as_ref());
        let since = before.map_or(now, |before| before.since);
        let retry_at = now.plus_ms(self.limits.set_aside_retry_ms);
        self.put_aside(group, SetAside { since, item, problem }, retry_at);
    }

    fn put_aside(&mut self, group: &GroupId, set_aside: SetAside, retry_at: Timestamp) {
        let Some(lane) = self.groups.get_mut(group) else { return };
        if lane.set_aside.is_none() {
            self.set_aside += 1;
        }
        (lane.stalls, lane.repairs) = (0, 0);
        lane.set_aside = Some(set_aside);
        self.dirty.insert(group.clone());
        self.wait(group, retry_at);
    }
}

/// What a problem of an item comes to.
enum Bad {
    /// Later, with the same again; set aside where that does not help.
    Stall(&'static str),
    Repair,
    Resume(Sequence),
    /// Nothing is left to be sent.
    Has,
    /// The same again, later.
    Wait,
    Aside(&'static str),
}

impl Lane {
    fn depth(&self) -> u64 {
        self.until.0.saturating_sub(self.acknowledged.0)
    }

    fn is_alone(&self) -> bool {
        self.acknowledged < self.alone_until
    }

    /// The snapshot that helps.
    fn repair(&self) -> Need {
        if self.opened { Need::Snapshot } else { Need::Opening }
    }

    fn progress(&self, group: &GroupId) -> Progress {
        Progress {
            group: group.clone(),
            acknowledged: self.acknowledged,
            acknowledged_at: self.acknowledged_at,
            until: self.until,
            opened: self.opened,
            set_aside: self.set_aside.clone(),
        }
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
