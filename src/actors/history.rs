//! A group's log and snapshots: loading, the information of an epoch that is gone, and what may be dropped when
//! a new snapshot is durable.
//!
//! The newest snapshot and the one before it are kept, with the log since the older: an epoch can be undone. The log
//! is also the feed: it goes only behind the slowest cursor, or when it is too old or too large.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use super::{
    errors::{internal, is_damage, of_reject, of_store},
    group::{PAGE, record_bytes},
    moves::migrating,
    node::Node,
    peer::items::fed,
};
use crate::{
    group::{GroupState, Hub, Reject},
    store::{
        Batch, StoreError, Write,
        records::{GroupHead, GroupStatus},
    },
    wire::{
        codec::{decode, encode},
        ds::{Detail, DsError, Info},
        ids::{ClientUri, Domain, Epoch, GroupId, RecipientId, Sequence},
    },
};

/// Epochs whose information is kept for late joiners in records of their own.
const JOINER_EPOCHS_MAX: usize = 256;

/// A group as it was loaded.
pub(super) struct Found {
    pub(super) state: GroupState,
    pub(super) head: GroupHead,
    /// What was replayed on top of the snapshot, and how large that is.
    pub(super) records: u64,
    pub(super) change_bytes: usize,
    pub(super) snapshot_bytes: usize,
}

/// The group as the store has it; none where it was never here.
///
/// # Errors
/// unavailable, or internal where a record cannot be read.
pub(super) async fn load(
    node: &Node,
    hub: &Arc<Hub>,
    id: &GroupId,
) -> Result<Option<Found>, DsError> {
    let head = node.store.group_head(id).await.map_err(of_store)?;
    let Some(head) = head else { return Ok(None) };
    match head.status {
        GroupStatus::Active | GroupStatus::Deleted => {}
        GroupStatus::Migrating => return Err(migrating(0)),
        GroupStatus::Followed => {
            return node.moved_away(id).await.map_err(of_store)?.map_or(Ok(None), Err);
        }
    }
    let is_deleted = head.status == GroupStatus::Deleted;
    if is_deleted && let Some(moved) = node.moved_away(id).await.map_err(of_store)? {
        // the last provider that hosted it has the word on it
        return Err(moved);
    }
    let is_copy = is_deleted && !node.was_hosted_here(id).await.map_err(of_store)?;
    if is_copy || is_deleted && head.log_bytes == 0 {
        // there is no state, or everything but the head is dropped: only that the id is taken is known
        return Err(DsError::GroupNotFound {
            detail: Detail::truncated("this group was deleted; its id is not used again"),
        });
    }
    let found = match (load_at(node, hub, &head, head.snapshot, None).await, head.previous_snapshot)
    {
        (Err(error), Some(before)) if is_damage(&error) => {
            // the log since then is kept; where it is what is damaged this fails as well
            let found = load_at(node, hub, &head, before, None).await?;
            tracing::warn!(group = %id, %error, "the group's snapshot is damaged: it was loaded from the one before");
            found
        }
        (found, _) => found?,
    };
    let state = &found.state;
    if state.next_sequence() != head.next_sequence {
        return Err(internal(format!("the log of {id} ends at {}", state.next_sequence())));
    }
    Ok(Some(found))
}

/// A group that is frozen, as it was.
///
/// # Errors
/// unavailable, or internal where a record cannot be read.
pub(super) async fn load_frozen(
    node: &Node,
    hub: &Arc<Hub>,
    head: &GroupHead,
) -> Result<Found, DsError> {
    load_at(node, hub, head, head.snapshot, None).await
}

/// The group as it was right before the record at `sequence`; none where that is not kept.
///
/// # Errors
/// unavailable, or internal where a record cannot be read.
pub(super) async fn load_before(
    node: &Node,
    hub: &Arc<Hub>,
    head: &GroupHead,
    sequence: Sequence,
) -> Result<Option<GroupState>, DsError> {
    let snapshots = [Some(head.snapshot), head.previous_snapshot];
    let mut before = snapshots.into_iter().flatten().filter(|snapshot| *snapshot < sequence);
    let Some(newest) = before.next() else { return Ok(None) };
    let until = || Some(Until::Sequence(sequence));
    let found = match (load_at(node, hub, head, newest, until()).await, before.next()) {
        (Err(error), Some(before)) if is_damage(&error) => {
            let found = load_at(node, hub, head, before, until()).await?;
            tracing::warn!(group = %head.group, %error, "a snapshot of the group is damaged: the epoch before was read from the one before");
            found
        }
        (found, _) => found?,
    };
    let state = found.state;
    Ok((state.next_sequence() == sequence).then_some(state))
}

/// Where [`load_at`] stops.
enum Until {
    /// Right before the record.
    Sequence(Sequence),
    /// In the epoch, behind the record that began it.
    Epoch(Epoch, Sequence),
}

impl Until {
    fn is_at(&self, state: &GroupState) -> bool {
        match self {
            Self::Sequence(sequence) => state.next_sequence() >= *sequence,
            // the epoch of this number may have been void before
            Self::Epoch(epoch, since) => state.epoch() >= *epoch && state.next_sequence() > *since,
        }
    }
}

/// A snapshot brought up to `until` (to the end of the log where there is none).
async fn load_at(
    node: &Node,
    hub: &Arc<Hub>,
    head: &GroupHead,
    snapshot: Sequence,
    until: Option<Until>,
) -> Result<Found, DsError> {
    let stored = node.store.snapshot(&head.group, snapshot).await;
    let bytes = stored.map_err(of_store)?;
    let bytes =
        bytes.ok_or_else(|| internal(format!("snapshot {snapshot} of {} is gone", head.group)))?;
    let load = || GroupState::load(Arc::clone(hub), head.group.clone(), &bytes);
    let state = unless_it_panics(load)?.map_err(internal)?;
    let mut found = Found {
        state,
        head: head.clone(),
        records: 0,
        change_bytes: 0,
        snapshot_bytes: bytes.len(),
    };
    let state = &mut found.state;
    while state.next_sequence() < head.next_sequence {
        let page = node.store.log(&head.group, state.next_sequence(), PAGE).await;
        let page = page.map_err(of_store)?;
        if page.is_empty() {
            break;
        }
        for record in &page {
            let there = until.as_ref().is_some_and(|until| until.is_at(state));
            if there || record.feed.sequence >= head.next_sequence {
                return Ok(found);
            }
            unless_it_panics(|| state.replay(record))?.map_err(internal)?;
            found.records += 1;
            found.change_bytes += record.change.len();
        }
    }
    Ok(found)
}

/// What is stored is what was accepted, unless the disk has changed it.
fn unless_it_panics<T>(work: impl FnOnce() -> T) -> Result<T, DsError> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| internal("a rule panicked on what is stored of a group"))
}

/// [`joiner_info`] by the head that is stored now. A rotation may drop what a head names while it is read: then the
/// next head names what took its place.
///
/// # Errors
/// As [`joiner_info`]; group_not_found.
pub(super) async fn joiner_info_of(
    node: &Node,
    hub: &Arc<Hub>,
    group: &GroupId,
    (epoch, since): (Epoch, Sequence),
) -> Result<Info, DsError> {
    let mut last: Option<(Sequence, DsError)> = None;
    loop {
        let head = node.store.group_head(group).await.map_err(of_store)?;
        let head = head.ok_or_else(|| of_reject(Reject::NotFound))?;
        match (joiner_info(node, hub, &head, (epoch, since)).await, last) {
            (Err(_), Some((snapshot, error))) if snapshot == head.snapshot => return Err(error),
            (Err(error), _) => last = Some((head.snapshot, error)),
            (Ok(info), _) => return Ok(info),
        }
    }
}

/// GroupInfo and tree of `epoch`, in which a pending joiner was added, by the commit at `since`.
///
/// # Errors
/// unavailable; unauthenticated where nothing of that epoch is kept any more.
pub(super) async fn joiner_info(
    node: &Node,
    hub: &Arc<Hub>,
    head: &GroupHead,
    (epoch, since): (Epoch, Sequence),
) -> Result<Info, DsError> {
    let kept = node.store.joiner_info(&head.group, epoch).await;
    if let Some(bytes) = kept.map_err(of_store)? {
        return decode(&bytes).map_err(internal);
    }
    let mut damaged = None;
    for snapshot in [Some(head.snapshot), head.previous_snapshot].into_iter().flatten() {
        let until = Some(Until::Epoch(epoch, since));
        match load_at(node, hub, head, snapshot, until).await {
            Ok(found) if found.state.epoch() == epoch => {
                return found.state.joiner_info().map_err(of_reject);
            }
            Ok(_) => {}
            // the one before may have it
            Err(error) if is_damage(&error) => damaged = damaged.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    if let Some(error) = damaged {
        return Err(error);
    }
    Err(of_reject(Reject::Unauthenticated(
        "the epoch of this Welcome is no longer kept; resync or ask to be added again",
    )))
}

/// What changes when a new snapshot is durable.
pub(super) struct Rotation {
    at: Sequence,
    dropped_snapshot: Option<Sequence>,
    trim_until: Sequence,
    trimmed_bytes: u64,
    /// Who has left, and is owed nothing of the log any more.
    leavers_over: Vec<RecipientId>,
    new_infos: Vec<(Epoch, Vec<u8>)>,
    gone_infos: Vec<Epoch>,
}

/// Plans it: which epochs must be written out for their pending joiners before their snapshot goes, and how much of
/// the log nobody needs any more.
pub(super) async fn plan_rotation(
    node: &Node,
    hub: &Arc<Hub>,
    head: &GroupHead,
    at: Sequence,
    joiner_epochs: &BTreeMap<Epoch, Sequence>,
    members: &[(ClientUri, RecipientId, Sequence)],
    guests: &[Domain],
) -> Result<Rotation, StoreError> {
    // the snapshot that stays as the older of the two, and the epoch that it is of
    let oldest = head.snapshot;
    let mut new_infos = Vec::new();
    if !joiner_epochs.is_empty() {
        let base = node.store.snapshot(&head.group, oldest).await?;
        let base = base.map(|bytes| GroupState::load(Arc::clone(hub), head.group.clone(), &bytes));
        let base_epoch = base.and_then(Result::ok).map(|state| state.epoch());
        for (epoch, since) in joiner_epochs {
            let leaves = base_epoch.is_some_and(|base| *epoch < base);
            if !leaves || head.joiner_infos.contains(epoch) {
                continue;
            }
            match joiner_info(node, hub, head, (*epoch, *since)).await {
                Ok(info) => new_infos.push((*epoch, encode(&info))),
                // one joiner has to resync; the log of everybody else must not stand still for it
                Err(error) => {
                    tracing::error!(group = %head.group, %epoch, %error, "an epoch's information is lost");
                }
            }
        }
    }
    // beyond the bound the oldest go: their joiners resync
    let kept: Vec<Epoch> = joiner_epochs.keys().rev().copied().take(JOINER_EPOCHS_MAX).collect();
    new_infos.retain(|(epoch, _)| kept.contains(epoch));
    let gone_infos =
        head.joiner_infos.iter().copied().filter(|epoch| !kept.contains(epoch)).collect();
    let slowest = node.slowest_cursor(&head.group, members, head.first_sequence).await?;
    let (leaver, leavers_over) = node.slowest_leaver(&head.group, head.first_sequence).await?;
    let slowest = slowest.min(leaver).min(slowest_guest(node, head, guests).await?);
    let (trim_until, trimmed_bytes) = trim(node, head, oldest, slowest).await?;
    Ok(Rotation {
        at,
        dropped_snapshot: head.previous_snapshot,
        trim_until,
        trimmed_bytes,
        leavers_over,
        new_infos,
        gone_infos,
    })
}

/// Up to where every guest that is still owed something has it.
async fn slowest_guest(
    node: &Node,
    head: &GroupHead,
    guests: &[Domain],
) -> Result<Sequence, StoreError> {
    let mut slowest = Sequence(u64::MAX);
    for guest in guests {
        if node.store.outbound_at(guest, &head.group).await?.is_some() {
            let replica = node.store.replica(guest, &head.group).await?;
            slowest = slowest.min(replica.as_ref().map_or(Sequence(0), fed));
        }
    }
    Ok(slowest)
}

/// Up to where the log may go: never what replay from `oldest` needs; before that what everybody has
/// acknowledged, what is too old, and what is too much.
async fn trim(
    node: &Node,
    head: &GroupHead,
    oldest: Sequence,
    slowest: Sequence,
) -> Result<(Sequence, u64), StoreError> {
    let options = &node.groups.options;
    let now = node.clock.now();
    let limit = oldest.next();
    let (mut until, mut bytes) = (head.first_sequence, 0);
    while until < limit {
        let page = node.store.log(&head.group, until, PAGE).await?;
        if page.is_empty() {
            break;
        }
        for record in &page {
            let sequence = record.feed.sequence;
            let acknowledged = sequence <= slowest;
            let old = now.ms_since(record.feed.accepted_at) > options.retention_ms;
            let much = head.log_bytes.saturating_sub(bytes) > options.retention_bytes;
            if sequence >= limit || !(acknowledged || old || much) {
                return Ok((until, bytes));
            }
            until = sequence.next();
            bytes += record_bytes(record);
        }
    }
    Ok((until, bytes))
}

impl Rotation {
    /// Puts the plan into `head` and `batch`.
    pub(super) fn apply(self, head: &mut GroupHead, batch: &mut Batch) {
        let group = head.group.clone();
        for (epoch, bytes) in self.new_infos {
            batch.push(Write::JoinerInfo { group: group.clone(), epoch, bytes });
            head.joiner_infos.push(epoch);
        }
        for epoch in self.gone_infos {
            batch.push(Write::DropJoinerInfo { group: group.clone(), epoch });
            head.joiner_infos.retain(|kept| *kept != epoch);
        }
        for recipient in self.leavers_over {
            batch.push(Write::DropLeaver { group: group.clone(), recipient });
        }
        if let Some(at) = self.dropped_snapshot {
            batch.push(Write::DropSnapshot { group: group.clone(), at });
        }
        // with nothing behind the newest snapshot it stands alone
        head.previous_snapshot = (self.at != head.snapshot).then_some(head.snapshot);
        head.snapshot = self.at;
        if self.trim_until > head.first_sequence {
            let (from, until) = (head.first_sequence, self.trim_until);
            batch.push(Write::TrimLog { group, from, until });
            head.first_sequence = until;
            head.log_bytes = head.log_bytes.saturating_sub(self.trimmed_bytes);
        }
    }
}
