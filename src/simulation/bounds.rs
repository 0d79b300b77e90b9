//! Bounds that hold at any time: how often a peer that does not answer is tried, how soon one that can be reached again gets what it is
//! owed, how soon a group is looked at when its time has come, and how much waits.
//!
//! A way from one provider to another is *quiet* while nothing goes wrong on it: both run, nothing is cut, lost or refused, no clock
//! jumps and no disk fails. What is owed on a quiet way comes in bounded time: what the hub has written down that it owes, and what a
//! guest's copy lacks, whether anybody has written that down or not.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
    time::Duration,
};

use super::{
    Time, World,
    violation::{Invariant, Violation},
};
use crate::{
    store::{
        SharedStore, StoreError,
        records::{GroupHead, GroupStatus},
    },
    wire::ids::{Domain, GroupId, Sequence},
};

/// From, to.
pub(super) type Way = (Domain, Domain);

pub(super) struct Bounds {
    time: Time,
    ways: Mutex<BTreeMap<Way, Seen>>,
    /// When something went wrong with a provider itself last.
    disturbed: Mutex<BTreeMap<Domain, Duration>>,
}

#[derive(Default)]
struct Seen {
    /// Deliveries of the last hour, since the last that was answered.
    attempts: VecDeque<Duration>,
    attempts_most: usize,
    /// When something went wrong last.
    disturbed: Duration,
    answered: Duration,
    /// What is owed, and since when it has been seen so.
    owed: BTreeMap<GroupId, (Sequence, Duration)>,
}

impl Bounds {
    pub fn new(time: Time) -> Self {
        Self { time, ways: Mutex::default(), disturbed: Mutex::default() }
    }

    fn seen<T>(
        &self,
        from: &Domain,
        to: &Domain,
        look: impl FnOnce(&mut Seen, Duration) -> T,
    ) -> T {
        let mut ways = self.ways.lock().unwrap();
        let seen = ways.entry((from.clone(), to.clone())).or_default();
        look(seen, self.time.since_start())
    }

    /// Something is sent by a provider's own schedule.
    pub fn tries(&self, from: &Domain, to: &Domain) {
        self.seen(from, to, |seen, now| {
            seen.attempts.push_back(now);
            while seen.attempts.front().is_some_and(|at| *at + HOUR < now) {
                seen.attempts.pop_front();
            }
            seen.attempts_most = seen.attempts_most.max(seen.attempts.len());
        });
    }

    pub fn answered(&self, from: &Domain, to: &Domain) {
        self.seen(from, to, |seen, now| {
            seen.attempts.clear();
            seen.answered = now;
        });
    }

    /// Something went wrong on the way from one to the other.
    pub fn disturbed(&self, from: &Domain, to: &Domain) {
        self.seen(from, to, |seen, now| seen.disturbed = now);
    }

    /// It was bad weather until now.
    pub fn disturbs_everything(&self) {
        let now = self.time.since_start();
        self.ways.lock().unwrap().values_mut().for_each(|seen| seen.disturbed = now);
    }

    /// Something went wrong with a provider. One that starts knows nothing of who did not answer.
    pub fn disturbs_all(&self, domain: &Domain, starts: bool) {
        let now = self.time.since_start();
        self.disturbed.lock().unwrap().insert(domain.clone(), now);
        for ((from, to), seen) in self.ways.lock().unwrap().iter_mut() {
            if from == domain || to == domain {
                seen.disturbed = now;
            }
            if starts && from == domain {
                seen.attempts.clear();
            }
        }
    }

    /// Deliveries that were tried within an hour without an answer, at the most.
    pub fn attempts_most(&self) -> usize {
        self.ways.lock().unwrap().values().map(|seen| seen.attempts_most).max().unwrap_or_default()
    }

    /// Judges whether a provider looks at its groups when they have something to do.
    fn looks_after(&self, domain: &Domain, heads: &[GroupHead]) -> Option<Violation> {
        let disturbed = self.disturbed.lock().unwrap().get(domain).copied().unwrap_or_default();
        if self.time.since_start().saturating_sub(disturbed) < LOOKED_AT_WITHIN {
            return None;
        }
        let long_ago = self.time.now().0 - u64::try_from(LOOKED_AT_WITHIN.as_millis()).unwrap();
        let is_late = |head: &&GroupHead| head.wake_at.is_some_and(|at| at.0 < long_ago);
        let mut hosted = heads.iter().filter(|head| head.status == GroupStatus::Active);
        let late = hosted.find(is_late)?;
        let what = format!("{domain} has had something to do in {} for an hour", late.group);
        Some(Invariant::InTime.broken(what))
    }

    /// Judges what `from` owes `to` now, and whether all of that is `aside`: then nothing need go that way for as long.
    fn owes(
        &self,
        from: &Domain,
        to: &Domain,
        owed: Vec<(GroupId, Sequence)>,
        aside: bool,
    ) -> Option<Violation> {
        self.seen(from, to, |seen, now| {
            if seen.attempts_most > ATTEMPTS_AN_HOUR_MAX {
                let most = seen.attempts_most;
                let what = format!("{from} tried {to} {most} times within an hour in vain");
                return Some(Invariant::Bounded.broken(what));
            }
            let before = std::mem::take(&mut seen.owed);
            for (group, until) in owed {
                let since = before.get(&group).filter(|(known, _)| *known == until);
                let since = since.map_or(now, |(_, since)| *since);
                seen.owed.insert(group, (until, since));
            }
            let (group, since) =
                seen.owed.iter().map(|(group, (_, since))| (group, *since)).min_by_key(|it| it.1)?;
            let quiet = now.saturating_sub(since.max(seen.disturbed));
            let resumed = seen.answered >= seen.disturbed;
            let bound = if resumed || aside { DELIVERED_WITHIN } else { RESUMES_WITHIN };
            (quiet > bound).then(|| {
                let minutes = quiet.as_secs() / 60;
                Invariant::InTime.broken(format!(
                    "nothing has been wrong between {from} and {to} for {minutes} minutes, and {group} is still owed (answered \
                     since: {resumed})"
                ))
            })
        })
    }
}

/// Looks at everything that has a bound.
pub(super) async fn look(world: &World) -> Result<(), Violation> {
    let providers: Vec<_> = {
        let providers = world.providers.borrow();
        let of = |it: &super::provider::Provider| (it.domain.clone(), it.store(), it.has_failed());
        providers.iter().map(of).collect()
    };
    for (domain, store, failed) in &providers {
        if store.is_none() || *failed {
            world.net.bounds.disturbs_all(domain, false);
        }
    }
    for (domain, store, failed) in &providers {
        let Some(store) = store.as_ref().filter(|_| !failed) else { continue };
        let waiting = store.stats().batches_waiting;
        if waiting > BATCHES_WAITING_MAX {
            let what = format!("{domain} has {waiting} batches waiting");
            return Err(Invariant::Bounded.broken(what));
        }
        let Ok(heads) = store.group_heads(None, OWED_MAX).await else { continue };
        if let Some(broken) = world.net.bounds.looks_after(domain, &heads) {
            return Err(broken);
        }
        for (peer, copies, peer_failed) in &providers {
            if peer == domain {
                continue;
            }
            world.net.look_at_cuts(domain, peer);
            // a disk that fails meanwhile is looked at the next time
            let Ok(mut owed) = store.outbound(peer, None, OWED_MAX).await else { continue };
            if owed.len() == OWED_MAX {
                let what = format!("{domain} owes {peer} {OWED_MAX} groups");
                return Err(Invariant::Bounded.broken(what));
            }
            if let Some(copies) = copies.as_ref().filter(|_| !peer_failed) {
                let lacking = lacking(domain, &heads, copies).await.unwrap_or_default();
                let is_told = |group: &GroupId| owed.iter().any(|(other, _)| other == group);
                let untold: Vec<_> = lacking.into_iter().filter(|it| !is_told(&it.0)).collect();
                owed.extend(untold);
            }
            let aside = all_set_aside(store, peer, &owed).await.unwrap_or_default();
            if let Some(broken) = world.net.bounds.owes(domain, peer, owed, aside) {
                return Err(broken);
            }
        }
    }
    Ok(())
}

/// Whether the peer did not take any of what it is owed, so that all of it is tried again in its time.
async fn all_set_aside(
    store: &SharedStore,
    peer: &Domain,
    owed: &[(GroupId, Sequence)],
) -> Result<bool, StoreError> {
    for (group, _) in owed {
        if store.replica(peer, group).await?.is_none_or(|replica| replica.set_aside.is_none()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Groups of `hub` that a guest's clients are in, and up to where its copies do not have them.
pub(super) async fn lacking(
    hub: &Domain,
    heads: &[GroupHead],
    copies: &SharedStore,
) -> Result<Vec<(GroupId, Sequence)>, StoreError> {
    let mut lacking = Vec::new();
    for head in heads.iter().filter(|head| head.status == GroupStatus::Active) {
        let followed = copies.followed(&head.group).await?;
        if followed.is_none_or(|followed| followed.hub != *hub || followed.members == 0) {
            continue;
        }
        let copy = copies.group_head(&head.group).await?;
        if copy.is_none_or(|copy| copy.next_sequence < head.next_sequence) {
            lacking.push((head.group.clone(), Sequence(head.next_sequence.0 - 1)));
        }
    }
    Ok(lacking)
}

const HOUR: Duration = Duration::from_secs(3600);
/// A pause doubles from half a second to five minutes, and is half of that at the least: ten until it is that long, 24 in an hour from
/// then on; and before the third failure in a row four may be on their way at a time.
const ATTEMPTS_AN_HOUR_MAX: usize = 48;
/// The longest pause of a peer is five minutes; then a request may take half a minute, and another one be the first that tells.
const RESUMES_WITHIN: Duration = Duration::from_secs(12 * 60);
/// A copy that cannot go on is set aside for an hour: by a hub that has handed the group on, and then by the one that has it now.
const DELIVERED_WITHIN: Duration = Duration::from_secs(140 * 60);
/// A provider looks at all of its groups every minute, and its clock may be off.
const LOOKED_AT_WITHIN: Duration = HOUR;
/// Groups that a provider hosts or owes another; there are fewer in all.
const OWED_MAX: usize = 200;
const BATCHES_WAITING_MAX: u64 = 2_000;
