//! Groups: each loaded as the node loads it, from either of its snapshots, its log gone through for holes, and what it is on its
//! way with.

use std::{panic::AssertUnwindSafe, sync::Arc};

use super::{
    FINE, GROUP, HARMLESS, Judged, Log, PEER, RESTORE, Verify, Wrong, at_its_key, hash_in, read,
    text, wrong,
};
use crate::{
    group::{
        GroupState,
        mls::from_record,
        record::{Change, Kind, Snapshot},
    },
    migration::{proof::follow_chain, source::Phase},
    store::{
        StoreError,
        engine::Failure,
        keys::{self, tag},
        links::Links,
        records::{Departure, Followed, FollowedMember, GroupHead, GroupStatus, LogRecord, Moves},
        stage,
    },
    wire::{
        codec::decode,
        ds::Info,
        ids::{Domain, Sequence},
        portability::Chain,
    },
};

impl Verify<'_> {
    pub(super) fn group_head(&mut self, key: &[u8], record: &[u8]) -> Judged {
        let head = match keys::any_group_head(record) {
            Ok(head) => head,
            Err(error) => return wrong(Wrong::new(text(error), GROUP)),
        };
        let mut judged = at_its_key(key, &keys::group_head(&head.group), &head.group)?;
        if head.first_sequence > head.next_sequence {
            let what = format!(
                "its log begins at {} and ends before {}",
                head.first_sequence, head.next_sequence
            );
            judged.push(Wrong::of(&head.group, what, GROUP));
            return Ok(judged);
        }
        // of one that was deleted long ago there is the head and nothing else
        let is_dropped = head.status == GroupStatus::Deleted && head.log_bytes == 0;
        if is_dropped {
            return Ok(judged);
        }
        if is_copy(&head) {
            judged.extend(self.log_of_copy(&head)?);
            return Ok(judged);
        }
        if head.status == GroupStatus::Migrating
            && !self.store.has(&keys::departure(&head.group))?
        {
            let what = "it is frozen, and nothing says where it goes";
            judged.push(Wrong::of(&head.group, what, GROUP));
        }
        if head.first_sequence < head.next_sequence {
            let last = Sequence(head.next_sequence.0 - 1);
            if !self.store.has(&keys::log_record(&head.group, last))? {
                let what = format!("record {last} of its log, the last, is not there");
                judged.push(Wrong::of(&head.group, what, GROUP));
                return Ok(judged);
            }
        }
        for epoch in &head.joiner_infos {
            if !self.store.has(&keys::joiner_info(&head.group, *epoch))? {
                let what = format!("what joiners of epoch {epoch} need is not there");
                judged.push(Wrong::of(
                    &head.group,
                    what,
                    "who was added then resyncs; nothing to do",
                ));
            }
        }
        judged.extend(self.load_both_ways(&head)?);
        Ok(judged)
    }

    /// A copy has what was read of its group here, so gaps say nothing; nothing at all does, where something is counted.
    fn log_of_copy(&self, head: &GroupHead) -> Judged {
        let (from, until) = (head.first_sequence, head.next_sequence);
        if from >= until || head.log_bytes == 0 {
            return Ok(FINE);
        }
        let mut is_there = false;
        let range = keys::log_from(&head.group, from);
        let until = keys::log_record(&head.group, until);
        self.store.0.scan(&range.from, &until, &mut |_, _| {
            is_there = true;
            std::ops::ControlFlow::Break(())
        })?;
        if is_there {
            return Ok(FINE);
        }
        let what = format!("its log has {} bytes, and no record is there", head.log_bytes);
        wrong(Wrong::of(&head.group, what, PEER))
    }

    /// From the newest snapshot and from the one before it: both lead to the same.
    fn load_both_ways(&self, head: &GroupHead) -> Judged {
        let group = &head.group;
        let newest = match self.load(head, head.snapshot)? {
            Ok(state) => state,
            Err(what) => return wrong(Wrong::of(group, what, GROUP)),
        };
        let mut judged = FINE;
        let mut say = |what: String| judged.push(Wrong::of(group, what, GROUP));
        if newest.next_sequence() != head.next_sequence {
            say(format!(
                "its log ends before {}, and its head says {}",
                newest.next_sequence(),
                head.next_sequence
            ));
        }
        if newest.epoch() != head.epoch {
            say(format!("it is in epoch {}, and its head says {}", newest.epoch(), head.epoch));
        }
        if newest.is_deleted() != (head.status == GroupStatus::Deleted) {
            say("its head and its log do not agree whether it is deleted".to_owned());
        }
        if !newest.is_deleted()
            && let Err(error) = newest.check_whole()
        {
            say(format!("its state is not what its members signed: {error}"));
        }
        if let Some(previous) = head.previous_snapshot {
            match self.load(head, previous)? {
                Err(what) => say(what),
                Ok(older) if stored(&older) != stored(&newest) => {
                    say(format!(
                        "its snapshots {previous} and {} lead to different states",
                        head.snapshot
                    ));
                }
                Ok(_) => {}
            }
        }
        let domain = self.hub.as_ref().map(|hub| hub.settings.hub.clone());
        for (_, member) in newest.members() {
            let is_own = Some(&member.config.domain) == domain.as_ref();
            let client = keys::hash(member.client.as_str().as_bytes());
            if is_own && !self.store.has_device(&client)? {
                let what = format!("its member {} has no device here", member.client);
                judged.push(Wrong::of(group, what, "remove that member"));
            }
        }
        Ok(judged)
    }

    /// The group by its snapshot `at` and the log behind it, or what is wrong.
    fn load(&self, head: &GroupHead, at: Sequence) -> Result<Result<GroupState, String>, Failure> {
        let Some(hub) = &self.hub else { return Ok(Err("its provider is not known".to_owned())) };
        let group = &head.group;
        let record = match stage::record(&self.store, &keys::snapshot(group, at)) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(Err(format!("snapshot {at} is not there"))),
            Err(StoreError::Unavailable(reason)) => return Err(Failure(reason)),
            Err(error) => return Ok(Err(format!("snapshot {at}: {error}"))),
        };
        let loaded = keys::versioned("snapshot", &record).map_err(text).and_then(|bytes| {
            // a damaged one may be anything
            let load = || GroupState::load(Arc::clone(hub), group.clone(), bytes);
            std::panic::catch_unwind(AssertUnwindSafe(load))
                .unwrap_or_else(|_| Err(crate::group::Reject::Broken("it panics".to_owned())))
                .map_err(text)
        });
        drop(record);
        let mut state = match loaded {
            Ok(state) => state,
            Err(error) => return Ok(Err(format!("snapshot {at}: {error}"))),
        };
        // what the log replaces of it may be wrong and seen nowhere else
        if !state.is_deleted()
            && let Err(error) = state.check_whole()
        {
            let what = format!("snapshot {at} is not what its members signed: {error}");
            return Ok(Err(what));
        }
        let mut broken = None;
        while broken.is_none() && state.next_sequence() < head.next_sequence {
            let from = keys::log_from(group, state.next_sequence());
            let mut page = Vec::new();
            self.store.0.scan(&from.from, &from.until, &mut |key, value| {
                page.push((key.to_vec(), value.to_vec()));
                match page.len() < LOG_PAGE {
                    true => std::ops::ControlFlow::Continue(()),
                    false => std::ops::ControlFlow::Break(()),
                }
            })?;
            if page.is_empty() {
                break;
            }
            for (key, value) in page {
                let record = stage::whole(&self.store, &key, &value).and_then(keys::decode_log);
                let replayed = match record {
                    Err(StoreError::Unavailable(reason)) => return Err(Failure(reason)),
                    Err(error) => Err(text(error)),
                    Ok(record) if record.feed.sequence >= head.next_sequence => break,
                    Ok(record) => replay(&mut state, &record),
                };
                if let Err(error) = replayed {
                    let at = state.next_sequence();
                    broken = Some(format!("its log cannot be gone through behind {at}: {error}"));
                    break;
                }
            }
        }
        Ok(broken.map_or(Ok(state), Err))
    }

    pub(super) fn log_record(&mut self, key: &[u8], record: &[u8]) -> Judged {
        let Some(group) = hash_in(key).copied() else {
            return wrong(Wrong::new("a short key", RESTORE));
        };
        if self.log.as_ref().is_none_or(|log| log.group != group) {
            self.end_log();
            let head = self.store.head(&group)?;
            let next = head.as_ref().map_or(Sequence(0), |head| head.first_sequence);
            self.log = Some(Log {
                group,
                head,
                next,
                is_said: false,
                links: Links::default(),
                has_unlinked: false,
                is_broken: false,
            });
        }
        let Some(log) = &mut self.log else { return Ok(FINE) };
        let Some(head) = &log.head else {
            if std::mem::replace(&mut log.is_said, true) {
                return Ok(FINE);
            }
            return wrong(Wrong::new("a log of a group that is not there", HARMLESS));
        };
        let followed = is_copy(head);
        let remedy = if followed { PEER } else { GROUP };
        let record = match keys::decode_log(record.to_vec()) {
            Ok(record) => record,
            Err(error) => return wrong(Wrong::of(&head.group, text(error), remedy)),
        };
        let sequence = record.feed.sequence;
        let mut judged = FINE;
        let mut say = |what: String| judged.push(Wrong::of(&head.group, what, remedy));
        if !key.ends_with(&sequence.0.to_be_bytes()) {
            say(format!("a record stands in its log that says it is {sequence}"));
        }
        if sequence < head.first_sequence || sequence >= head.next_sequence {
            say(format!(
                "record {sequence} is outside of its log, {} to {}",
                head.first_sequence, head.next_sequence
            ));
        }
        if !record.feed.event.is_empty()
            && let Err(error) = decode::<crate::wire::queueing::QueueEvent>(&record.feed.event)
        {
            say(format!("what record {sequence} delivers cannot be read: {error}"));
        }
        // what nobody here can read of a copy is not kept; what came before a group moved here is a copy, too
        let change = (!record.change.is_empty()).then(|| from_record::<Change>(&record.change));
        let leaps = match &change {
            None => true,
            Some(Ok(change)) => matches!(change.kind, Kind::Restored),
            Some(Err(_)) => false,
        };
        if let Some(Err(error)) = change.filter(|_| !followed) {
            say(format!("what record {sequence} changes cannot be read: {error}"));
        }
        if sequence > log.next && !leaps && !followed {
            say(format!("records {} to {} of its log are not there", log.next, sequence.0 - 1));
        }
        log.has_unlinked |= record.follows.is_none();
        if let Err(error) = log.links.follow(record.follows, &record.feed, &record.change) {
            say(format!("the chain breaks at record {sequence}: {error}"));
            log.is_broken = true;
            log.links = Links::default();
            // what it holds may be wrong, where it stands it is what is there
            let _ = log.links.follow(record.follows, &record.feed, &record.change);
        }
        log.next = sequence.next();
        Ok(judged)
    }

    pub(super) fn end_log(&mut self) {
        let Some(Log { head: Some(head), links, has_unlinked, is_broken, next, .. }) =
            self.log.take()
        else {
            return;
        };
        let ended = links.may_end(head.last);
        let chain = match (&ended, links) {
            _ if is_broken => "broken",
            (Err(_), _) => "broken",
            (Ok(()), Links::Fresh | Links::Without) => "none",
            (Ok(()), Links::At(_)) if has_unlinked => "begun",
            (Ok(()), Links::At(_)) => "whole",
        };
        *self.summary.chains.entry(chain).or_default() += 1;
        if let Err(error) = ended {
            let remedy = if is_copy(&head) { PEER } else { GROUP };
            let what = format!("the chain breaks before {next}: {error}");
            self.tell("log record", &[], Wrong::of(&head.group, what, remedy));
        }
    }

    pub(super) fn snapshot(&mut self, key: &[u8], record: &[u8]) -> Judged {
        let (Some(group), Some(at)) = (hash_in(key), key.last_chunk::<8>()) else {
            return wrong(Wrong::new("a short key", RESTORE));
        };
        let at = Sequence(u64::from_be_bytes(*at));
        if let Err(error) = keys::versioned("snapshot", record) {
            return wrong(Wrong::new(text(error), GROUP));
        }
        let Some(head) = self.store.head(group)? else {
            return wrong(Wrong::new("a snapshot of a group that is not there", HARMLESS));
        };
        let is_named = at == head.snapshot
            || Some(at) == head.previous_snapshot
            || at == Departure::PARCEL
            || at == Departure::CONTENT;
        if !is_named {
            // written, and the process ended before the head named it
            self.summary.leftovers += 1;
        }
        Ok(FINE)
    }

    pub(super) fn joiner_info(&mut self, key: &[u8], record: &[u8]) -> Judged {
        let read = keys::versioned("joiner info", record).map_err(text);
        let read = read.and_then(|bytes| decode::<Info>(bytes).map_err(text));
        match read {
            Ok(_) => {}
            Err(error) => {
                return wrong(Wrong::new(
                    error,
                    "who was added in that epoch resyncs; nothing to do",
                ));
            }
        }
        let head = match hash_in(key) {
            Some(group) => self.store.head(group)?,
            None => None,
        };
        if head.is_none() {
            return wrong(Wrong::new("it is of a group that is not there", HARMLESS));
        }
        Ok(FINE)
    }

    pub(super) fn followed(&mut self, key: &[u8], record: &[u8]) -> Judged {
        let (group, followed): (String, Followed) = read!("followed group", record, PEER);
        let Ok(group) = crate::wire::ids::GroupId::new(group) else {
            return wrong(Wrong::new("its group is none", PEER));
        };
        let mut judged = at_its_key(key, &keys::followed(&group), &group)?;
        match self.store.head(&keys::hash(group.as_bytes()))? {
            Some(head) if head.status == GroupStatus::Followed => {}
            Some(head) if head.status == GroupStatus::Deleted => {}
            Some(head) => {
                let what =
                    format!("it follows {}, and its head says {:?}", followed.hub, head.status);
                judged.push(Wrong::of(&group, what, GROUP));
            }
            None => {
                let what = format!("it follows {}, and has no head", followed.hub);
                judged.push(Wrong::of(&group, what, PEER));
            }
        }
        let members = keys::followed_members(&group);
        let mut found = 0;
        self.store.0.scan(&members.from, &members.until, &mut |_, _| {
            found += 1;
            std::ops::ControlFlow::Continue(())
        })?;
        if found != followed.members {
            let what = format!("it has {found} members here, and says {}", followed.members);
            judged.push(Wrong::of(&group, what, PEER));
        }
        Ok(judged)
    }

    pub(super) fn followed_member(&mut self, key: &[u8], record: &[u8]) -> Judged {
        let member: FollowedMember = read!("followed member", record, PEER);
        let mut judged = FINE;
        if !key.ends_with(&member.recipient.0.to_be_bytes()) {
            judged.push(Wrong::new(format!("it says that it is {}", member.recipient), PEER));
        }
        let followed = match hash_in(key) {
            Some(group) => self.store.has(&keys::key(tag::FOLLOWED, &[group]))?,
            None => false,
        };
        if !followed {
            judged.push(Wrong::new("it is in a group that is not followed", PEER));
        }
        if let Some(client) = member.client.filter(|_| !member.gone)
            && !self.store.has_device(&keys::hash(client.as_str().as_bytes()))?
        {
            judged.push(Wrong::of(
                &client,
                "it is in a group elsewhere, and has no device here",
                PEER,
            ));
        }
        Ok(judged)
    }

    pub(super) fn departure(&mut self, key: &[u8], record: &[u8]) -> Judged {
        let (group, departure): (String, Departure) = read!("departure", record, MOVE);
        let Ok(group) = crate::wire::ids::GroupId::new(group) else {
            return wrong(Wrong::new("its group is none", MOVE));
        };
        let mut judged = at_its_key(key, &keys::departure(&group), &group)?;
        let (status, kept) = match departure.phase {
            Phase::Frozen => (GroupStatus::Migrating, Some(Departure::PARCEL)),
            Phase::Sent { .. } => (GroupStatus::Migrating, Some(Departure::CONTENT)),
            Phase::Gone => (GroupStatus::Followed, None),
        };
        let head = self.store.head(&keys::hash(group.as_bytes()))?;
        let found = head.map(|head| head.status);
        let is_over = departure.phase == Phase::Gone && found != Some(GroupStatus::Migrating);
        if found != Some(status) && !is_over {
            let what =
                format!("it is on its way to {}, and its head says {found:?}", departure.target);
            judged.push(Wrong::of(&group, what, MOVE));
        }
        if let Some(at) = kept
            && !self.store.has(&keys::snapshot(&group, at))?
        {
            let what = format!("what goes to {} is not there", departure.target);
            judged.push(Wrong::of(&group, what, MOVE));
        }
        Ok(judged)
    }

    pub(super) fn moves(&mut self, key: &[u8], record: &[u8]) -> Judged {
        let (group, moves): (String, Moves) = read!("moves", record, MOVE);
        let Ok(group) = crate::wire::ids::GroupId::new(group) else {
            return wrong(Wrong::new("its group is none", MOVE));
        };
        let mut judged = at_its_key(key, &keys::moves(&group), &group)?;
        if moves.chain.is_empty() {
            return Ok(judged);
        }
        match decode::<Chain>(&moves.chain) {
            Err(error) => {
                let what = format!("its chain of moves cannot be read: {error}");
                judged.push(Wrong::of(&group, what, MOVE));
            }
            Ok(chain) => {
                let home: Domain = group.domain();
                let to = chain.iter().last().map_or(&home, |link| &link.domain_name);
                if let Err(error) = follow_chain(&group, &home, to, &chain) {
                    judged.push(Wrong::of(&group, text(error), MOVE));
                }
            }
        }
        Ok(judged)
    }
}

/// It is hosted elsewhere, or was and has ended: no snapshot was ever taken of it here.
fn is_copy(head: &GroupHead) -> bool {
    let never_hosted = head.status == GroupStatus::Deleted && head.snapshot == Sequence(0);
    head.status == GroupStatus::Followed || never_hosted
}

fn stored(state: &GroupState) -> Option<Snapshot> {
    state.to_snapshot().ok()
}

fn replay(state: &mut GroupState, record: &LogRecord) -> Result<(), String> {
    std::panic::catch_unwind(AssertUnwindSafe(|| state.replay(record)))
        .unwrap_or_else(|_| Err(crate::group::Reject::Broken("it panics".to_owned())))
        .map_err(text)
}

const MOVE: &str = "restore a backup, and see \"Groups that move\" in ops/README.md first";
/// Records that are in memory at a time.
const LOG_PAGE: usize = 64;
