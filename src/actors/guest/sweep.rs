//! What becomes of copies while nothing comes for them: clients that are gone, logs that get old or too large, copies that
//! nobody here is in any more.

use std::{sync::Arc, time::Duration};

use super::{MEMBERS_PAGE, grown, known_roster};
use crate::{
    actors::{copies::Grown, group::PAGE, node::Node},
    crypto,
    queue::followed,
    store::{
        Batch, Condition, StoreError, Write,
        records::{FollowedMember, GroupHead, GroupNotice, GroupStatus},
    },
    wire::{
        codec::{List, encode},
        federation::EventType,
        ids::{Domain, GroupId, RecipientId, RequestId, Sequence},
        queueing::RecipientsGone,
    },
};

impl Node {
    /// Whether anybody here can read the copy of `group`.
    pub(in crate::actors) async fn has_readers(&self, group: &GroupId) -> Result<bool, StoreError> {
        let mut after = None;
        loop {
            let page = self.store.followed_members(group, after, MEMBERS_PAGE).await?;
            if page.iter().any(followed::is_reader) {
                return Ok(true);
            }
            match page.last() {
                Some(last) if page.len() == MEMBERS_PAGE => after = Some(last.recipient),
                Some(_) | None => return Ok(false),
            }
        }
    }

    /// Takes what is left for a group that is not hosted here: clients whose queues are gone. Its hub is told at once,
    /// and where that does not reach it, by the answer to its next delivery.
    pub(in crate::actors) async fn take_copy_notices(
        &self,
        group: &GroupId,
    ) -> Result<(), StoreError> {
        let turn = self.copies.turn(group);
        let _turn = turn.lock().await;
        loop {
            let notices = self.store.group_notices(group, None, NOTICES_PAGE).await?;
            if notices.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new();
            let head = self.store.group_head(group).await?;
            let head = head.filter(|head| head.status == GroupStatus::Followed);
            let mut known = None;
            if let Some(head) = head {
                let mut members = self.copy_members(group).await?;
                for member in &mut members {
                    let is_named = |notice: &GroupNotice| match notice {
                        GroupNotice::ClientGone { client, .. } => {
                            member.client.as_ref() == Some(client)
                        }
                        // of groups that are hosted here
                        GroupNotice::RecipientGone { .. } => false,
                    };
                    if !member.gone && notices.iter().any(|(_, notice)| is_named(notice)) {
                        member.gone = true;
                        let (group, member) = (group.clone(), member.clone());
                        batch.push(Write::FollowedMember { group, member });
                    }
                }
                batch = batch.when(Condition::GroupAt {
                    group: group.clone(),
                    next_sequence: head.next_sequence,
                    revision: head.revision,
                });
                let head = GroupHead { revision: head.revision + 1, ..head };
                known = Some((head.revision, known_roster(members)));
                batch.push(Write::GroupHead(head));
            }
            for (key, _) in notices {
                batch.push(Write::GroupNoticeTaken { group: group.clone(), key });
            }
            match self.store.write(batch).await {
                Ok(()) => {
                    if let Some((revision, roster)) = known {
                        self.tell_hub_of_gone(group, &roster.gone);
                        self.copies.remember(group, revision, roster);
                    }
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Tells a group's hub that these members' queues are gone, a few times: what does not arrive is said again with
    /// the answer to the next delivery.
    fn tell_hub_of_gone(&self, group: &GroupId, members: &[FollowedMember]) {
        let Some(federation) = self.federation.clone() else { return };
        let recipients = members.iter().map(|member| member.recipient).take(GONE_TOLD_MAX);
        let Ok(recipients) = List::new(recipients.collect()) else { return };
        let timeout = Duration::from_millis(self.limits.relay_timeout_ms);
        let (node, of) = (self.clone(), group.clone());
        let gone = RecipientsGone { group_id: group.clone(), recipients };
        let turns = Arc::clone(&self.copies.telling);
        actix_rt::spawn(async move {
            let Ok(_turn) = turns.acquire_owned().await else { return };
            let Ok(hub) = node.hub_of_copy(&of).await else { return };
            let (id, body) = (RequestId(crypto::random()), encode(&gone));
            for left in (0..TELL_TRIES).rev() {
                let event = EventType::RecipientsGone;
                let Err(error) = federation.request(&hub, event, id, body.clone(), timeout).await
                else {
                    return;
                };
                tracing::info!(group = %gone.group_id, %hub, %error, left, "the hub is not told that clients are gone");
                let wait = error.retry_after_ms().unwrap_or(TELL_AGAIN_MS).min(TELL_AGAIN_MS);
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
        });
    }

    /// Lets go of what nobody needs of a copy: of its log where `due`, or where its hub has no room and each of its copies
    /// may keep `share`; of all of it, its head too, where nobody here reads it and it is old. A hub that sends something
    /// of it later is asked for a snapshot, as with any group that was never here. Whether there was anything to do.
    pub(in crate::actors) async fn settle_copy(
        &self,
        head: GroupHead,
        due: bool,
        share: Option<u64>,
    ) -> Result<bool, StoreError> {
        self.copies.load(&self.store, &self.domain).await?;
        let retention_ms = self.groups.options.retention_ms;
        let is_quiet = self.clock.now().ms_since(head.last_accepted_at) >= retention_ms;
        let is_over = is_quiet
            && (head.status == GroupStatus::Deleted || !self.has_readers(&head.group).await?);
        if is_over {
            self.drop_copy(head).await?;
            return Ok(true);
        }
        let is_large = share.is_some_and(|share| head.log_bytes > share);
        if head.status == GroupStatus::Followed && (due || is_large) {
            self.trim_copy(head, share).await?;
            return Ok(true);
        }
        Ok(false)
    }

    async fn drop_copy(&self, head: GroupHead) -> Result<(), StoreError> {
        let rest = head.clone();
        let (group, log_bytes) = (head.group, head.log_bytes);
        if log_bytes == 0
            && group.domain() == self.domain
            && head.first_sequence >= head.next_sequence
        {
            return Ok(());
        }
        let followed = self.store.followed(&group).await?;
        let members = followed.as_ref().map_or(0, |followed| followed.members);
        let hub = followed.map_or_else(|| group.domain(), |followed| followed.hub);
        tracing::info!(%group, "dropping the copy of a group that nobody here is in any more");
        // whoever comes in meanwhile changes the head
        let batch = Batch::new()
            .when(Condition::GroupAt {
                group: group.clone(),
                next_sequence: head.next_sequence,
                revision: head.revision,
            })
            .and(Write::DropGroup(group.clone()))
            .and(Write::DropFollowed(group.clone()))
            // an id that was given here is not given again, wherever its group has gone
            .and(if group.domain() == self.domain {
                let (revision, first_sequence) = (head.revision + 1, head.next_sequence);
                let (log_bytes, wake_at) = (0, None);
                let group = group.clone();
                Write::GroupHead(GroupHead {
                    group,
                    revision,
                    first_sequence,
                    log_bytes,
                    wake_at,
                    ..rest
                })
            } else {
                Write::DropGroupHead(group.clone())
            });
        match self.store.write(batch).await {
            Ok(()) => {
                let members = 0_i64.saturating_sub_unsigned(members);
                let bytes = 0_i64.saturating_sub_unsigned(log_bytes);
                self.copies.dropped(&hub, &group, Grown { bytes, members });
                Ok(())
            }
            Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Drops what every member here has acknowledged, what is too old, what is too much.
    async fn trim_copy(&self, head: GroupHead, share: Option<u64>) -> Result<(), StoreError> {
        let group = head.group.clone();
        let limits = self.copy_limits();
        let members = self.copy_members(&group).await?;
        let hub = self.hub_of_copy(&group).await?;
        // what is planned stays true while messages come: only this makes a log shorter
        let Cut { until, bytes, leavers_over } = self.plan_copy(&head, &members, share).await?;
        let turn = self.copies.turn(&group);
        let _turn = turn.lock().await;
        let head = self.store.group_head(&group).await?;
        let Some(head) = head.filter(|head| head.status == GroupStatus::Followed) else {
            return Ok(());
        };
        let mut batch = Batch::new().when(Condition::GroupAt {
            group: group.clone(),
            next_sequence: head.next_sequence,
            revision: head.revision,
        });
        if until > head.first_sequence {
            let from = head.first_sequence;
            batch.push(Write::TrimLog { group: group.clone(), from, until });
        }
        for recipient in leavers_over {
            batch.push(Write::DropLeaver { group: group.clone(), recipient });
        }
        let (revision, log_bytes) = (head.revision, head.log_bytes);
        let until = until.max(head.first_sequence);
        let settled = followed::trimmed(head, until, bytes, &limits, self.clock.now());
        let bytes = grown(log_bytes, settled.log_bytes);
        batch.push(Write::GroupHead(settled));
        match self.store.write(batch).await {
            Ok(()) => {
                self.copies.grew(&hub, Grown { bytes, members: 0 });
                if let Some(roster) = self.copies.roster_of(&group, revision) {
                    self.copies.remember(&group, revision + 1, roster);
                }
                Ok(())
            }
            // it was changed from elsewhere: the next sweep looks again
            Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Who hosts a group that is followed here.
    pub(in crate::actors) async fn hub_of_copy(
        &self,
        group: &GroupId,
    ) -> Result<Domain, StoreError> {
        let followed = self.store.followed(group).await?;
        Ok(followed.map_or_else(|| group.domain(), |followed| followed.hub))
    }

    /// Up to where those guests have a group's feed that still get what was accepted while it was hosted here.
    async fn slowest_guest_left(&self, group: &GroupId) -> Result<Sequence, StoreError> {
        let mut slowest = Sequence(u64::MAX);
        let left = self.store.moves(group).await?.and_then(|moves| moves.left);
        for guest in left.map(|left| left.guests).unwrap_or_default() {
            if self.store.outbound_at(&guest, group).await?.is_some() {
                let replica = self.store.replica(&guest, group).await?;
                slowest = slowest.min(replica.map_or(Sequence(0), |it| it.acknowledged));
            }
        }
        Ok(slowest)
    }

    /// Up to where a copy's log may go.
    async fn plan_copy(
        &self,
        head: &GroupHead,
        members: &[FollowedMember],
        share: Option<u64>,
    ) -> Result<Cut, StoreError> {
        let readers: Vec<_> = members
            .iter()
            .filter(|member| followed::is_reader(member))
            .filter_map(|member| {
                let client = member.client.clone()?;
                Some((client, member.recipient, head.first_sequence))
            })
            .collect();
        let (group, first) = (&head.group, head.first_sequence);
        let slowest = self.slowest_cursor(group, &readers, first).await?;
        // who has left may still have to read how
        let (leaver, leavers_over) = self.slowest_leaver(group, first).await?;
        let slowest = slowest.min(leaver).min(self.slowest_guest_left(group).await?);
        let (options, now) = (&self.groups.options, self.clock.now());
        let bytes_max = options.retention_bytes.min(share.unwrap_or(u64::MAX));
        let (mut until, mut bytes) = (first, 0);
        while until < head.next_sequence {
            let page = self.store.feed(&head.group, until, PAGE).await?;
            if page.is_empty() {
                // what came while nobody read it was not kept
                until = head.next_sequence;
                break;
            }
            for entry in &page {
                let acknowledged = entry.sequence <= slowest;
                let old = now.ms_since(entry.accepted_at) > options.retention_ms;
                let much = head.log_bytes.saturating_sub(bytes) > bytes_max;
                if entry.sequence >= head.next_sequence || !(acknowledged || old || much) {
                    return Ok(Cut { until, bytes, leavers_over });
                }
                until = entry.sequence.next();
                bytes += followed::entry_bytes(entry);
            }
        }
        // all of it: what counted otherwise while the group was hosted here goes, too
        if until >= head.next_sequence {
            bytes = head.log_bytes;
        }
        Ok(Cut { until, bytes, leavers_over })
    }
}

/// What of a copy may go.
struct Cut {
    /// Entries before it.
    until: Sequence,
    bytes: u64,
    /// Who has left, and is owed nothing of them any more.
    leavers_over: Vec<RecipientId>,
}

const NOTICES_PAGE: usize = 256;
/// Members that one message to the hub names.
const GONE_TOLD_MAX: usize = 500;
const TELL_TRIES: u32 = 3;
const TELL_AGAIN_MS: u64 = 5_000;
