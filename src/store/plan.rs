//! A batch as checks and steps on keys.
//!
//! Here: what each [`Write`] and each [`Condition`] means in keys. It is worked out on the caller's thread, so that the one that
//! writes does little. Keys and encodings are in [`keys`]; the steps are run in [`stage`](super::stage).

use std::sync::Arc;

use super::{
    Batch, Condition, StoreError, Write, WriteTimes,
    keys::{self, Key, Range, VERSION},
    records::{
        Account, Departure, Device, Followed, InboxItem, Leaver, Moves, OwnSequence, QueueHead,
        TokenRecord,
    },
};
use crate::wire::ids::{ClientUri, GroupId, Sequence, UserUri};

/// What a batch asks for, and what it does.
#[derive(Debug)]
pub(super) struct Plan {
    pub checks: Vec<Check>,
    pub steps: Vec<Step>,
    pub low_priority: bool,
    /// How many [`Write`]s it was made of.
    pub writes: u64,
    /// About what it takes in memory and to write.
    pub bytes: usize,
    pub times: Option<Arc<WriteTimes>>,
}

/// What must hold for the record under `key`.
#[derive(Debug)]
pub(super) struct Check {
    pub key: Key,
    expect: Expect,
}

#[derive(Debug)]
enum Expect {
    Absent,
    Present,
    Group { group: GroupId, next_sequence: Sequence, revision: u64 },
    Account { user: UserUri, revision: u64 },
    Queue { client: ClientUri, revision: u64 },
    Token { revision: u64 },
    Outbound { owner: String, until: Sequence },
}

/// One change of keys.
#[derive(Debug)]
pub(super) enum Step {
    Put {
        key: Key,
        record: Vec<u8>,
        owned: bool,
    },
    /// `record` under `key`, and `key` under `index`; what `index` pointed to before is removed.
    PutIndexed {
        index: Key,
        key: Key,
        record: Vec<u8>,
    },
    Remove {
        key: Key,
    },
    /// `index` and what it points to.
    RemoveIndexed {
        index: Key,
    },
    RemoveRange(Range),
}

impl Plan {
    /// # Errors
    /// [`StoreError::Corrupt`] for a record that cannot be encoded.
    pub fn of(batch: Batch) -> Result<Self, StoreError> {
        let Batch { conditions, writes, low_priority, times } = batch;
        let checks: Vec<_> = conditions.into_iter().map(Check::of).collect();
        let mut steps = Vec::with_capacity(writes.len());
        let count = writes.len() as u64;
        for write in writes {
            Step::of(write, &mut steps)?;
        }
        let bytes = checks.len() * 64 + steps.iter().map(Step::bytes).sum::<usize>();
        Ok(Self { checks, steps, low_priority, writes: count, bytes, times })
    }
}

impl Check {
    fn of(condition: Condition) -> Self {
        let (key, expect) = match condition {
            Condition::GroupUnknown(group) => (keys::group_head(&group), Expect::Absent),
            Condition::GroupAt { group, next_sequence, revision } => {
                (keys::group_head(&group), Expect::Group { group, next_sequence, revision })
            }
            Condition::AccountAbsent(user) => (keys::account(&user), Expect::Absent),
            Condition::DeviceAbsent(client) => (keys::device(&client), Expect::Absent),
            Condition::AccountAt { user, revision } => {
                (keys::account(&user), Expect::Account { user, revision })
            }
            Condition::KeyPackageHeld { client, key_package } => {
                (keys::key_package_index(&client, &key_package), Expect::Present)
            }
            Condition::QueueAt { client, revision } => {
                (keys::queue_head(&client), Expect::Queue { client, revision })
            }
            Condition::TokenAt { token: id, revision } => {
                (keys::token(&id), Expect::Token { revision })
            }
            Condition::OutboundAt { peer, group, until } => {
                let owner = keys::of_peer(&peer, &group);
                (keys::outbound(&peer, &group), Expect::Outbound { owner, until })
            }
        };
        Self { key, expect }
    }

    /// Whether it holds for what is stored under its key. Where another id's record is there it does not.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] where the record cannot be read.
    pub fn holds(&self, record: Option<&[u8]>) -> Result<bool, StoreError> {
        let Some(record) = record else {
            return Ok(match self.expect {
                Expect::Absent => true,
                Expect::Queue { revision, .. } | Expect::Token { revision } => revision == 0,
                Expect::Present
                | Expect::Group { .. }
                | Expect::Account { .. }
                | Expect::Outbound { .. } => false,
            });
        };
        Ok(match &self.expect {
            Expect::Absent => false,
            Expect::Present => true,
            Expect::Group { group, next_sequence, revision } => {
                keys::owner(record)? == group.as_str() && {
                    let head = keys::decode_group_head(group, record)?;
                    head.next_sequence == *next_sequence && head.revision == *revision
                }
            }
            Expect::Account { user, revision } => {
                keys::owner(record)? == user.as_str()
                    && keys::decode_owned::<Account>("account", user.as_str(), record)?.revision
                        == *revision
            }
            Expect::Queue { client, revision } => {
                keys::owner(record)? == client.as_str()
                    && keys::decode_owned::<QueueHead>("queue head", client.as_str(), record)?
                        .revision
                        == *revision
            }
            Expect::Token { revision } => {
                keys::decode::<TokenRecord>("token", record)?.revision == *revision
            }
            Expect::Outbound { owner, until } => {
                keys::owner(record)? == owner.as_str()
                    && keys::decode_owned::<Sequence>("outbound", owner, record)? == *until
            }
        })
    }
}

impl Step {
    fn of(write: Write, steps: &mut Vec<Self>) -> Result<(), StoreError> {
        let put = |key, record| Self::Put { key, record, owned: false };
        let put_owned = |key, record| Self::Put { key, record, owned: true };
        let opaque = |mut bytes: Vec<u8>| {
            bytes.insert(0, VERSION);
            bytes
        };
        let last = match write {
            Write::GroupHead(head) => {
                put_owned(keys::group_head(&head.group), keys::encode_group_head(&head)?)
            }
            Write::Log { group, record } => {
                put(keys::log_record(&group, record.feed.sequence), keys::encode_log(&record)?)
            }
            Write::Snapshot { group, at, bytes } => put(keys::snapshot(&group, at), opaque(bytes)),
            Write::DropSnapshot { group, at } => Self::Remove { key: keys::snapshot(&group, at) },
            Write::JoinerInfo { group, epoch, bytes } => {
                put(keys::joiner_info(&group, epoch), opaque(bytes))
            }
            Write::DropJoinerInfo { group, epoch } => {
                Self::Remove { key: keys::joiner_info(&group, epoch) }
            }
            Write::TrimLog { group, from, until } => Self::RemoveRange(Range {
                from: keys::log_record(&group, from),
                until: keys::log_record(&group, until),
            }),
            Write::DropGroup(group) => {
                steps.push(Self::RemoveRange(keys::log(&group)));
                steps.push(Self::RemoveRange(keys::snapshots(&group)));
                steps.push(Self::RemoveRange(keys::joiner_infos(&group)));
                steps.push(Self::RemoveRange(keys::leavers(&group)));
                Self::RemoveRange(keys::group_notices(&group))
            }
            Write::DropGroupHead(group) => Self::Remove { key: keys::group_head(&group) },
            Write::GroupNotice { group, key, notice } => {
                put(keys::group_notice(&group, &key), keys::encode(&(&group, key, &notice))?)
            }
            Write::GroupNoticeTaken { group, key } => {
                Self::Remove { key: keys::group_notice(&group, &key) }
            }
            Write::Followed { group, followed } => put_owned(
                keys::followed(&group),
                keys::encode::<(&str, &Followed)>(&(group.as_str(), &followed))?,
            ),
            Write::DropFollowed(group) => {
                steps.push(Self::RemoveRange(keys::followed_members(&group)));
                Self::Remove { key: keys::followed(&group) }
            }
            Write::FollowedMember { group, member } => {
                put(keys::followed_member(&group, member.recipient), keys::encode(&member)?)
            }
            Write::DropFollowedMember { group, recipient } => {
                Self::Remove { key: keys::followed_member(&group, recipient) }
            }
            Write::Departure(departure) => {
                let key = keys::departure(&departure.group);
                let owned = (departure.group.as_str(), &departure);
                put_owned(key, keys::encode::<(&str, &Departure)>(&owned)?)
            }
            Write::DropDeparture(group) => Self::Remove { key: keys::departure(&group) },
            Write::Moves { group, moves } => put_owned(
                keys::moves(&group),
                keys::encode::<(&str, &Moves)>(&(group.as_str(), &moves))?,
            ),
            Write::DropMoves(group) => Self::Remove { key: keys::moves(&group) },
            Write::RefusedNonce { nonce, refused } => {
                put(keys::refused_nonce(&nonce), keys::encode_refused(&nonce, &refused)?)
            }
            Write::DropRefusedNonce(nonce) => Self::Remove { key: keys::refused_nonce(&nonce) },
            Write::Outbound { peer, group, until } => put_owned(
                keys::outbound(&peer, &group),
                keys::encode(&(keys::of_peer(&peer, &group), until))?,
            ),
            Write::OutboundDone { peer, group } => {
                Self::Remove { key: keys::outbound(&peer, &group) }
            }
            Write::OutboundRoster { peer, group, row } => {
                put(keys::outbound_roster_row(&peer, &group, row.sequence), keys::encode(&row)?)
            }
            Write::TrimOutboundRoster { peer, group, until } => {
                let Range { from, until: end } = keys::outbound_roster(&peer, &group);
                let next = until.0.checked_add(1).map(Sequence);
                let until = next.map(|next| keys::outbound_roster_row(&peer, &group, next));
                Self::RemoveRange(Range { from, until: until.unwrap_or(end) })
            }
            Write::Replica { peer, group, replica } => put_owned(
                keys::replica(&peer, &group),
                keys::encode_replica(&keys::of_peer(&peer, &group), &replica)?,
            ),
            Write::DropReplica { peer, group } => {
                Self::Remove { key: keys::replica(&peer, &group) }
            }
            Write::Inbox { client, key, item } => {
                if let InboxItem::Close { group, recipient, last, .. } = &item {
                    let (recipient, last) = (*recipient, *last);
                    let leaver = Leaver { recipient, client: client.clone(), last };
                    steps.push(put(keys::leaver(group, recipient), keys::encode(&leaver)?));
                }
                put(keys::inbox_item(&client, &key), keys::encode(&(&key, &item))?)
            }
            Write::InboxTaken { client, key } => {
                Self::Remove { key: keys::inbox_item(&client, &key) }
            }
            Write::QueueHead { client, head } => {
                put_owned(keys::queue_head(&client), keys::encode(&(client.as_str(), &head))?)
            }
            Write::Own { client, entry } => {
                put(keys::own_entry(&client, entry.sequence), keys::encode(&entry)?)
            }
            Write::TrimOwn { client, until } => {
                let Range { from, until: end } = keys::own(&client);
                let until =
                    until.0.checked_add(1).map(|next| keys::own_entry(&client, OwnSequence(next)));
                Self::RemoveRange(Range { from, until: until.unwrap_or(end) })
            }
            Write::Subscription { client, subscription: record } => {
                let index = keys::subscription_index(&client, &record.group, record.recipient);
                steps.push(put(index, keys::encode(&record.feed)?));
                put(keys::subscription(&client, record.feed), keys::encode(&record)?)
            }
            Write::DropSubscription { client, feed, group, recipient } => {
                let index = keys::subscription_index(&client, &group, recipient);
                steps.push(Self::Remove { key: index });
                steps.push(Self::Remove { key: keys::leaver(&group, recipient) });
                Self::Remove { key: keys::subscription(&client, feed) }
            }
            Write::DropLeaver { group, recipient } => {
                Self::Remove { key: keys::leaver(&group, recipient) }
            }
            Write::DropQueue(client) => {
                steps.push(Self::RemoveRange(keys::own(&client)));
                steps.push(Self::RemoveRange(keys::subscriptions(&client)));
                steps.push(Self::RemoveRange(keys::subscription_indices(&client)));
                steps.push(Self::RemoveRange(keys::inbox(&client)));
                steps.push(Self::RemoveRange(keys::key_packages(&client)));
                steps.push(Self::RemoveRange(keys::key_package_indices(&client)));
                Self::Remove { key: keys::queue_head(&client) }
            }
            Write::Account { user, account: record } => put_owned(
                keys::account(&user),
                keys::encode::<(&str, &Account)>(&(user.as_str(), &record))?,
            ),
            Write::Device { client, device: record } => {
                steps.push(put_owned(
                    keys::queue_index(&record.queue),
                    keys::encode(client.as_str())?,
                ));
                put_owned(
                    keys::device(&client),
                    keys::encode::<(&str, &Device)>(&(client.as_str(), &record))?,
                )
            }
            Write::KeyPackage { client, key_package: record } => Self::PutIndexed {
                index: keys::key_package_index(&client, &record.reference),
                key: keys::key_package(&client, record.published_at, &record.reference),
                record: keys::encode(&record)?,
            },
            Write::DropKeyPackage { client, key_package } => {
                Self::RemoveIndexed { index: keys::key_package_index(&client, &key_package) }
            }
            Write::Token { token: id, record } => put(keys::token(&id), keys::encode(&record)?),
            Write::Consent { user, token } => put(keys::consent(&user, &token), vec![VERSION]),
            Write::DropConsent { user, token } => {
                Self::Remove { key: keys::consent(&user, &token) }
            }
            Write::Node { name, bytes } => {
                put_owned(keys::node(name), keys::encode(&(name, &bytes))?)
            }
        };
        steps.push(last);
        Ok(())
    }

    /// Whether it leaves the record under `key` and its parts alone.
    pub fn spares(&self, key: &[u8]) -> bool {
        match self {
            Self::Put { key: at, .. }
            | Self::PutIndexed { key: at, .. }
            | Self::Remove { key: at } => at != key,
            // an index points to nothing that is written in any other way
            Self::RemoveIndexed { .. } => true,
            Self::RemoveRange(range) => !(&*range.from..&*range.until).contains(&key),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Put { key, record, .. } => key.len() + record.len() + 32,
            Self::PutIndexed { index, key, record } => {
                index.len() + 2 * key.len() + record.len() + 64
            }
            Self::Remove { key: at } | Self::RemoveIndexed { index: at } => at.len() + 32,
            Self::RemoveRange(range) => range.from.len() + range.until.len() + 32,
        }
    }
}
