//! A node's store: one engine with the [writer](super::writer) before it, and the reads.
//!
//! Here: [`NodeStore`]. A read runs in the future that it returns, as soon as that is polled. It sees the engine between two changes,
//! never within one; where it meets something that is not durable yet it waits until it is.

use std::{
    ops::{Bound, ControlFlow},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, PoisonError, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::mpsc;

use super::{
    Answer, Batch, DamagedByKind, InboxUse, Left, OpenError, Page, Piece, Store, StoreError,
    StoreStats,
    damage::Damages,
    engine::{Changes, Engine, Failure},
    histograms::Histograms,
    keys::{self, Key, Range},
    links::Links,
    records::{
        Account, ConsentHash, Departure, Device, FeedEntry, Followed, FollowedMember, GroupHead,
        GroupNotice, InboxKey, Leaver, LogRecord, Moves, OutboundRoster, OwnEntry, OwnSequence,
        QueueHead, RefusedNonce, Replica, StoredKeyPackage, Subscription, TokenId, TokenRecord,
    },
    reserve::Reserve,
    stage::{self, Source},
    writer::{self, Shared},
};
use crate::wire::ids::{ClientUri, Domain, Epoch, GroupId, RecipientId, Sequence, UserUri};

/// A store on one engine. When it is dropped it writes what is queued before it lets the engine go.
pub(super) struct NodeStore {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    reserve: Reserve,
}

impl NodeStore {
    /// Starts on `engine`; `path` is for errors.
    ///
    /// # Errors
    /// [`OpenError::Record`] where the engine holds something else.
    pub fn start(engine: Box<dyn Engine>, path: PathBuf) -> Result<Self, OpenError> {
        let value = engine.read(&keys::commit_sequence());
        let sequence = value
            .map_err(StoreError::from)
            .and_then(|value| keys::decode_commit_sequence(value.as_deref()))
            .map_err(|error| OpenError::Record { path: path.clone(), reason: error.to_string() })?;
        let reserve = Reserve::new(&path);
        let (shared, writer) = writer::start(engine, sequence)
            .map_err(|error| OpenError::Folder { what: "start the writer of", path, error })?;
        Ok(Self { shared, writer: Some(writer), reserve })
    }

    /// As [`Self::start`], without a thread: nothing is written but by the stepper.
    #[cfg(test)]
    pub fn start_stepped(
        engine: Box<dyn Engine>,
    ) -> Result<(Self, writer::stepped::Stepper), StoreError> {
        let value = engine.read(&keys::commit_sequence())?;
        let sequence = keys::decode_commit_sequence(value.as_deref())?;
        let (shared, stepper) = writer::stepped::start(engine, sequence);
        let reserve = Reserve::new(std::path::Path::new("."));
        Ok((Self { shared, writer: None, reserve }, stepper))
    }

    /// Reads with `read`, and waits until what it has seen is durable.
    async fn read<T, F>(&self, read: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Reader<'_>) -> Result<T, StoreError> + Send,
    {
        let (result, waits_for) = self.look(read);
        if let Some(sequence) = waits_for
            && !self.shared.durable.reaches(sequence).await
        {
            return Err(StoreError::Unavailable(self.shared.failure()));
        }
        result
    }

    fn look<T>(
        &self,
        read: impl FnOnce(&Reader<'_>) -> Result<T, StoreError>,
    ) -> (Result<T, StoreError>, Option<u64>) {
        let view = self.shared.view.read().unwrap_or_else(PoisonError::into_inner);
        let reader = Reader {
            engine: &*self.shared.engine,
            pending: &view.pending,
            damages: &self.shared.damages,
            touched: std::cell::Cell::new(false),
        };
        let result = catch_unwind(AssertUnwindSafe(|| read(&reader))).unwrap_or_else(|panic| {
            Err(StoreError::Unavailable(format!("a panic: {}", writer::text(&*panic))))
        });
        self.shared.counters.note_read(&result);
        (result, reader.touched.get().then_some(view.applied))
    }

    /// The record under `key`, decoded.
    fn one<T, F>(&self, key: Key, decode: F) -> Answer<'_, Option<T>>
    where
        T: Send + 'static,
        F: FnOnce(&[u8]) -> Result<T, StoreError> + Send + 'static,
    {
        Box::pin(self.read(move |reader| {
            let found = stage::record(reader, &key);
            found
                .and_then(|record| record.map(|record| decode(&record)).transpose())
                .map_err(|error| reader.damages.named(&key, error))
        }))
    }

    /// The records in `range`, decoded. They belong together: where one cannot be read there is no answer.
    fn many<T, F>(&self, range: Range, page: Page, decode: F) -> Answer<'_, Vec<T>>
    where
        T: Send + 'static,
        F: Fn(Vec<u8>) -> Result<T, StoreError> + Send + 'static,
    {
        Box::pin(self.read(move |reader| {
            let heads =
                reader.heads(&range, page, |value| keys::split_head(value).map(|(len, _)| len))?;
            let whole = |(key, head): &(Key, Vec<u8>)| {
                let record = stage::whole(reader, key, head).and_then(&decode);
                record.map_err(|error| reader.damages.named(key, error))
            };
            heads.iter().map(whole).collect()
        }))
    }

    /// At most `items_max` of the records in `range`, decoded. Each belongs to somebody else: those that cannot be read are
    /// left out, and others come in their place.
    fn readable<T, F>(&self, mut range: Range, items_max: usize, decode: F) -> Answer<'_, Vec<T>>
    where
        T: Send + 'static,
        F: Fn(Vec<u8>) -> Result<T, StoreError> + Send + 'static,
    {
        Box::pin(self.read(move |reader| {
            let mut found = Vec::new();
            while found.len() < items_max {
                let wanted = items_max - found.len();
                let heads = reader.heads(&range, items(wanted), |_| Ok(0))?;
                for (key, head) in &heads {
                    match stage::whole(reader, key, head).and_then(&decode) {
                        Ok(record) => found.push(record),
                        Err(error @ StoreError::Corrupt { .. }) => {
                            reader.damages.named(key, error);
                        }
                        Err(error) => return Err(error),
                    }
                }
                match heads.into_iter().next_back() {
                    Some((mut last, _)) => {
                        last.push(0);
                        range.from = last;
                    }
                    None => break,
                }
            }
            Ok(found)
        }))
    }

    /// The peers of the records in `range`, each once; `of` gives the records of one of them.
    fn peers_in(
        &self,
        mut range: Range,
        of: fn(&Domain) -> Range,
        after: Option<&Domain>,
        items_max: usize,
    ) -> Answer<'_, Vec<Domain>> {
        if let Some(after) = after {
            range.from = of(after).until;
        }
        Box::pin(self.read(move |reader| {
            let mut peers = Vec::new();
            while peers.len() < items_max {
                let first = reader.heads(&range, items(1), |_| Ok(0))?;
                let Some((key, head)) = first.first() else { break };
                let record = stage::whole(reader, key, head);
                let peer = record.and_then(|record| keys::peer_and_group(keys::owner(&record)?));
                match peer {
                    Ok((peer, _)) => {
                        range.from = of(&peer).until;
                        peers.push(peer);
                    }
                    Err(error) => range.from = reader.behind(key, error)?,
                }
            }
            Ok(peers)
        }))
    }
}

impl Drop for NodeStore {
    fn drop(&mut self) {
        // without one who waits for the answer
        drop(self.shared.close());
        self.shared.engine.abandoned();
        if let Some(writer) = self.writer.take() {
            // a panic of the writer was told to all that waited
            let _ = writer.join();
        }
    }
}

/// The engine between two changes.
struct Reader<'a> {
    engine: &'a dyn Engine,
    pending: &'a Changes,
    damages: &'a Damages,
    /// Whether something was seen that is not durable yet.
    touched: std::cell::Cell<bool>,
}

impl Source for Reader<'_> {
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        if self.pending.contains_key(key) {
            self.touched.set(true);
        }
        self.engine.read(key)
    }
}

impl Reader<'_> {
    /// Where a read goes on behind a record that cannot be read.
    fn behind(&self, key: &[u8], error: StoreError) -> Result<Key, StoreError> {
        let error = self.damages.named(key, error);
        if matches!(error, StoreError::Corrupt { .. }) {
            return Ok([key, &[0]].concat());
        }
        Err(error)
    }

    /// Keys and values of the records in `range`, as many as `page` has room for by what `size` tells of each value.
    fn heads(
        &self,
        range: &Range,
        page: Page,
        size: impl Fn(&[u8]) -> Result<usize, StoreError>,
    ) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
        let mut heads = Vec::new();
        let mut bytes = 0_usize;
        let mut until = Bound::Excluded(range.until.clone());
        let mut broken = None;
        if range.from >= range.until {
            return Ok(heads);
        }
        self.engine.scan(&range.from, &range.until, &mut |key, value| {
            let size = match size(value) {
                Ok(size) => size,
                Err(error) => {
                    broken = Some(self.damages.named(key, error));
                    until = Bound::Included(key.to_vec());
                    return ControlFlow::Break(());
                }
            };
            bytes = bytes.saturating_add(size);
            if !heads.is_empty() && bytes > page.bytes_max {
                until = Bound::Excluded(key.to_vec());
                return ControlFlow::Break(());
            }
            heads.push((key.to_vec(), value.to_vec()));
            if heads.len() >= page.items_max {
                until = Bound::Included(key.to_vec());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        let seen = (Bound::Included(range.from.clone()), until);
        if self.pending.range(seen).next().is_some() {
            self.touched.set(true);
        }
        match broken {
            Some(error) => Err(error),
            None => Ok(heads),
        }
    }
}

impl Reader<'_> {
    /// Shows `visit` the records in `range`, as their keys hold them, until it breaks. Whether it saw all.
    fn look_through(
        &self,
        range: &Range,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<bool, StoreError> {
        if range.from >= range.until {
            return Ok(true);
        }
        let mut until = Bound::Excluded(range.until.clone());
        let mut ended = Ok(true);
        self.engine.scan(&range.from, &range.until, &mut |key, value| {
            match visit(key, value) {
                Ok(ControlFlow::Continue(())) => return ControlFlow::Continue(()),
                Ok(ControlFlow::Break(())) => ended = Ok(false),
                Err(error) => ended = Err(self.damages.named(key, error)),
            }
            until = Bound::Included(key.to_vec());
            ControlFlow::Break(())
        })?;
        let seen = (Bound::Included(range.from.clone()), until);
        if self.pending.range(seen).next().is_some() {
            self.touched.set(true);
        }
        ended
    }
}

impl Reader<'_> {
    /// Whether what follows the record under `last`, which `links` has come to, is what follows it in the log: the next record,
    /// or the end that the group's head knows.
    fn goes_on(
        &self,
        group: &GroupId,
        range: &Range,
        last: &[u8],
        links: Links,
    ) -> Result<(), StoreError> {
        let behind = Range { from: [last, &[0]].concat(), until: range.until.clone() };
        let next = self.heads(&behind, items(1), |_| Ok(0))?;
        let (key, checked) = match next.first() {
            Some((key, head)) => {
                let follows = keys::split_head(head).and_then(|(_, first)| keys::follows(first));
                // a next one that cannot be read is damage of its own, told where that is read
                let Ok(follows) = follows else { return Ok(()) };
                (key.as_slice(), links.may_follow(follows))
            }
            None => {
                let key = keys::group_head(group);
                let Some(head) = stage::record(self, &key)
                    .and_then(|head| head.map(|it| keys::decode_group_head(group, &it)).transpose())
                    .map_err(|error| self.damages.named(&key, error))?
                else {
                    return Ok(());
                };
                (last, links.may_end(head.last))
            }
        };
        checked.map_err(|error| self.damages.named(key, keys::corrupt(error.to_string())))
    }
}

/// Whether `entry`, whose record begins with `head`, follows those that were read before it, as far as that can be told of a
/// record that is read in part. What follows the last one is not looked at: who is given one entry pays for no hash.
fn linked(
    links: &mut Links,
    head: &[u8],
    entry: &FeedEntry,
    is_last: bool,
) -> Result<(), StoreError> {
    let (len, first) = keys::split_head(head)?;
    let follows = keys::follows(first)?;
    let change = first.get(keys::feed_bytes(first)?..).filter(|_| first.len() == len);
    let followed = match change.filter(|_| !is_last) {
        Some(change) => links.follow(follows, entry, change),
        None => links.may_follow(follows).map(|()| *links = Links::Fresh),
    };
    followed.map_err(|error| keys::corrupt(error.to_string()))
}

/// All that a read may return where only items are counted.
fn items(items_max: usize) -> Page {
    Page { items_max, bytes_max: usize::MAX }
}

fn none<'a, T: Send + 'a>() -> Answer<'a, Vec<T>> {
    Box::pin(async { Ok(Vec::new()) })
}

impl Store for NodeStore {
    fn write(&self, batch: Batch) -> Answer<'static, ()> {
        let queued = self.reserve.admits(&batch).and_then(|()| self.shared.queue(batch));
        Box::pin(async move {
            queued?.await.unwrap_or_else(|_| {
                Err(StoreError::Unavailable("the store's writer has ended".to_owned()))
            })
        })
    }

    fn group_head(&self, group: &GroupId) -> Answer<'_, Option<GroupHead>> {
        let group = group.clone();
        self.one(keys::group_head(&group), move |record| keys::decode_group_head(&group, record))
    }

    fn group_heads(&self, after: Option<&GroupId>, items_max: usize) -> Answer<'_, Vec<GroupHead>> {
        if items_max == 0 {
            return none();
        }
        let mut range = keys::group_heads();
        if let Some(after) = after {
            range.from = keys::group_head(after);
            range.from.push(0);
        }
        self.readable(range, items_max, |record| keys::any_group_head(&record))
    }

    fn log(&self, group: &GroupId, from: Sequence, page: Page) -> Answer<'_, Vec<LogRecord>> {
        let (range, group) = (keys::log_from(group, from), group.clone());
        Box::pin(self.read(move |reader| {
            let heads =
                reader.heads(&range, page, |value| keys::split_head(value).map(|(len, _)| len))?;
            let mut links = Links::default();
            let whole = |(key, head): &(Key, Vec<u8>)| {
                let record = stage::whole(reader, key, head).and_then(keys::decode_log);
                let linked = record.and_then(|record| {
                    let followed = links.follow(record.follows, &record.feed, &record.change);
                    followed.map(|()| record).map_err(|error| keys::corrupt(error.to_string()))
                });
                linked.map_err(|error| reader.damages.named(key, error))
            };
            let records: Vec<LogRecord> = heads.iter().map(whole).collect::<Result<_, _>>()?;
            if let Some((last, _)) = heads.last() {
                reader.goes_on(&group, &range, last, links)?;
            }
            Ok(records)
        }))
    }

    fn feed(&self, group: &GroupId, from: Sequence, page: Page) -> Answer<'_, Vec<FeedEntry>> {
        let range = keys::log_from(group, from);
        Box::pin(self.read(move |reader| {
            let feed_bytes = |value: &[u8]| {
                keys::split_head(value).and_then(|(_, first)| keys::feed_bytes(first))
            };
            let heads = reader.heads(&range, page, feed_bytes)?;
            let (mut links, mut left) = (Links::default(), heads.len());
            heads
                .iter()
                .map(|(key, head)| {
                    feed_bytes(head)
                        .and_then(|bytes| stage::beginning(reader, key, head, bytes))
                        .and_then(|record| keys::decode_feed(&record))
                        .and_then(|entry| {
                            left -= 1;
                            linked(&mut links, head, &entry, left == 0)?;
                            Ok(entry)
                        })
                        .map_err(|error| reader.damages.named(key, error))
                })
                .collect()
        }))
    }

    fn snapshot(&self, group: &GroupId, at: Sequence) -> Answer<'_, Option<Vec<u8>>> {
        self.one(keys::snapshot(group, at), |record| {
            keys::versioned("snapshot", record).map(<[u8]>::to_vec)
        })
    }

    fn joiner_info(&self, group: &GroupId, epoch: Epoch) -> Answer<'_, Option<Vec<u8>>> {
        self.one(keys::joiner_info(group, epoch), |record| {
            keys::versioned("joiner info", record).map(<[u8]>::to_vec)
        })
    }

    fn group_notices(
        &self,
        group: &GroupId,
        after: Option<&[u8; 16]>,
        items_max: usize,
    ) -> Answer<'_, Vec<([u8; 16], GroupNotice)>> {
        if items_max == 0 {
            return none();
        }
        let mut range = keys::group_notices(group);
        if let Some(after) = after {
            range.from = keys::group_notice(group, after);
            range.from.push(0);
        }
        self.many(range, items(items_max), |record| {
            let (_, key, notice): (GroupId, _, _) = keys::decode("group notice", &record)?;
            Ok((key, notice))
        })
    }

    fn groups_with_notices(
        &self,
        after: Option<&GroupId>,
        items_max: usize,
    ) -> Answer<'_, Vec<GroupId>> {
        let mut range = keys::all_group_notices();
        if let Some(after) = after {
            range.from = keys::group_notices(after).until;
        }
        Box::pin(self.read(move |reader| {
            let mut groups = Vec::new();
            while groups.len() < items_max {
                let first = reader.heads(&range, items(1), |_| Ok(0))?;
                let Some((key, head)) = first.first() else { break };
                let record = stage::whole(reader, key, head);
                let notice = record.and_then(|record| {
                    keys::decode::<(GroupId, [u8; 16], GroupNotice)>("group notice", &record)
                });
                match notice {
                    Ok((group, ..)) => {
                        range.from = keys::group_notices(&group).until;
                        groups.push(group);
                    }
                    Err(error) => range.from = reader.behind(key, error)?,
                }
            }
            Ok(groups)
        }))
    }

    fn followed(&self, group: &GroupId) -> Answer<'_, Option<Followed>> {
        let group = group.clone();
        self.one(keys::followed(&group), move |record| {
            keys::decode_owned("followed group", group.as_str(), record)
        })
    }

    fn followed_member(
        &self,
        group: &GroupId,
        recipient: RecipientId,
    ) -> Answer<'_, Option<FollowedMember>> {
        self.one(keys::followed_member(group, recipient), |record| {
            keys::decode("followed member", record)
        })
    }

    fn followed_members(
        &self,
        group: &GroupId,
        after: Option<RecipientId>,
        items_max: usize,
    ) -> Answer<'_, Vec<FollowedMember>> {
        if items_max == 0 {
            return none();
        }
        let mut range = keys::followed_members(group);
        if let Some(after) = after {
            range.from = keys::followed_member(group, after);
            range.from.push(0);
        }
        self.many(range, items(items_max), |record| keys::decode("followed member", &record))
    }

    fn leavers(
        &self,
        group: &GroupId,
        after: Option<RecipientId>,
        items_max: usize,
    ) -> Answer<'_, Vec<Leaver>> {
        if items_max == 0 {
            return none();
        }
        let mut range = keys::leavers(group);
        if let Some(after) = after {
            range.from = keys::leaver(group, after);
            range.from.push(0);
        }
        self.many(range, items(items_max), |record| keys::decode("leaver", &record))
    }

    fn departure(&self, group: &GroupId) -> Answer<'_, Option<Departure>> {
        let group = group.clone();
        self.one(keys::departure(&group), move |record| {
            keys::decode_owned("departure", group.as_str(), record)
        })
    }

    fn departures(&self, after: Option<&GroupId>, items_max: usize) -> Answer<'_, Vec<Departure>> {
        if items_max == 0 {
            return none();
        }
        let mut range = keys::departures();
        if let Some(after) = after {
            range.from = keys::departure(after);
            range.from.push(0);
        }
        self.readable(range, items_max, |record| {
            let (_, departure): (String, Departure) = keys::decode("departure", &record)?;
            Ok(departure)
        })
    }

    fn moves(&self, group: &GroupId) -> Answer<'_, Option<Moves>> {
        let group = group.clone();
        self.one(keys::moves(&group), move |record| {
            keys::decode_owned("moves", group.as_str(), record)
        })
    }

    fn all_moves(
        &self,
        after: Option<&GroupId>,
        items_max: usize,
    ) -> Answer<'_, Vec<(GroupId, Moves)>> {
        if items_max == 0 {
            return none();
        }
        let mut range = keys::all_moves();
        if let Some(after) = after {
            range.from = keys::moves(after);
            range.from.push(0);
        }
        self.readable(range, items_max, |record| keys::decode("moves", &record))
    }

    fn refused_nonce(&self, nonce: &[u8; 32]) -> Answer<'_, Option<RefusedNonce>> {
        self.one(keys::refused_nonce(nonce), |record| Ok(keys::decode_refused(record)?.1))
    }

    fn refused_nonces(
        &self,
        after: Option<&[u8; 32]>,
        items_max: usize,
    ) -> Answer<'_, Vec<([u8; 32], RefusedNonce)>> {
        if items_max == 0 {
            return none();
        }
        let mut range = keys::refused_nonces();
        if let Some(after) = after {
            range.from = keys::refused_nonce(after);
            range.from.push(0);
        }
        self.readable(range, items_max, |record| keys::decode_refused(&record))
    }

    fn outbound_peers(&self, after: Option<&Domain>, items_max: usize) -> Answer<'_, Vec<Domain>> {
        self.peers_in(keys::all_outbound(), keys::outbound_of, after, items_max)
    }

    fn outbound(
        &self,
        peer: &Domain,
        after: Option<&GroupId>,
        items_max: usize,
    ) -> Answer<'_, Vec<(GroupId, Sequence)>> {
        if items_max == 0 {
            return none();
        }
        let mut range = keys::outbound_of(peer);
        if let Some(after) = after {
            range.from = keys::outbound(peer, after);
            range.from.push(0);
        }
        self.readable(range, items_max, |record| {
            let (owner, until): (String, Sequence) = keys::decode("outbound", &record)?;
            Ok((keys::peer_and_group(&owner)?.1, until))
        })
    }

    fn outbound_at(&self, peer: &Domain, group: &GroupId) -> Answer<'_, Option<Sequence>> {
        let owner = keys::of_peer(peer, group);
        self.one(keys::outbound(peer, group), move |record| {
            keys::decode_owned("outbound", &owner, record)
        })
    }

    fn outbound_roster(
        &self,
        peer: &Domain,
        group: &GroupId,
        from: Sequence,
        page: Page,
    ) -> Answer<'_, Vec<OutboundRoster>> {
        let mut range = keys::outbound_roster(peer, group);
        range.from = keys::outbound_roster_row(peer, group, from);
        self.many(range, page, |record| keys::decode("outbound roster", &record))
    }

    fn replica(&self, peer: &Domain, group: &GroupId) -> Answer<'_, Option<Replica>> {
        let owner = keys::of_peer(peer, group);
        self.one(keys::replica(peer, group), move |record| {
            let (found, replica) = keys::decode_replica(record)?;
            match found == owner {
                true => Ok(replica),
                false => {
                    let what = format!("replica: {found} is where {owner} was looked for");
                    Err(StoreError::Corrupt { what })
                }
            }
        })
    }

    fn replicas(&self, peer: &Domain, items_max: usize) -> Answer<'_, Vec<Replica>> {
        if items_max == 0 {
            return none();
        }
        self.readable(keys::replicas_of(peer), items_max, |record| {
            Ok(keys::decode_replica(&record)?.1)
        })
    }

    fn replica_peers(&self, after: Option<&Domain>, items_max: usize) -> Answer<'_, Vec<Domain>> {
        self.peers_in(keys::all_replicas(), keys::replicas_of, after, items_max)
    }

    fn inbox(&self, client: &ClientUri, page: Page) -> Answer<'_, Left> {
        let mut range = keys::inbox(client);
        Box::pin(self.read(move |reader| {
            let heads =
                reader.heads(&range, page, |value| keys::split_head(value).map(|(len, _)| len))?;
            let whole = |(key, head): &(Key, Vec<u8>)| {
                let record = stage::whole(reader, key, head)
                    .and_then(|record| keys::decode("inbox item", &record));
                record.map_err(|error| reader.damages.named(key, error))
            };
            let left = heads.iter().map(whole).collect::<Result<Vec<_>, _>>()?;
            let Some((last, _)) = heads.into_iter().next_back() else {
                return Ok(Left::default());
            };
            range.from = [last.as_slice(), &[0]].concat();
            let more = !reader.heads(&range, items(1), |_| Ok(0))?.is_empty();
            Ok(Left { items: left, more })
        }))
    }

    fn inbox_use(&self, client: &ClientUri, most: Page) -> Answer<'_, Option<Vec<InboxUse>>> {
        let range = keys::inbox(client);
        Box::pin(self.read(move |reader| {
            let (mut uses, mut owner) = (Vec::<InboxUse>::new(), Vec::new());
            let (mut items, mut bytes) = (0_usize, 0_usize);
            let whole = reader.look_through(&range, |key, value| {
                let (len, first) = keys::split_head(value)?;
                (items, bytes) = (items + 1, bytes.saturating_add(len));
                if items >= most.items_max || bytes > most.bytes_max {
                    return Ok(ControlFlow::Break(()));
                }
                if keys::inbox_owner(key) != owner.as_slice() {
                    owner = keys::inbox_owner(key).to_vec();
                    uses.push(InboxUse { by: keys::left_by(first)?, items: 0, bytes: 0 });
                }
                if let Some(used) = uses.last_mut() {
                    (used.items, used.bytes) = (used.items + 1, used.bytes.saturating_add(len));
                }
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(whole.then_some(uses))
        }))
    }

    fn is_left(&self, client: &ClientUri, key: &InboxKey) -> Answer<'_, bool> {
        let key = keys::inbox_item(client, key);
        Box::pin(self.read(move |reader| Ok(reader.value(&key)?.is_some())))
    }

    fn queue_head(&self, client: &ClientUri) -> Answer<'_, Option<QueueHead>> {
        let key = keys::queue_head(client);
        let client = client.clone();
        self.one(key, move |record| keys::decode_owned("queue head", client.as_str(), record))
    }

    fn own(&self, client: &ClientUri, from: OwnSequence, page: Page) -> Answer<'_, Vec<OwnEntry>> {
        self.many(keys::own_from(client, from), page, |record| keys::decode("own entry", &record))
    }

    fn own_bytes(
        &self,
        client: &ClientUri,
        from: OwnSequence,
        bytes_max: usize,
    ) -> Answer<'_, Option<usize>> {
        let range = keys::own_from(client, from);
        Box::pin(self.read(move |reader| {
            let mut bytes = 0_usize;
            let whole = reader.look_through(&range, |_, value| {
                bytes = bytes.saturating_add(keys::split_head(value)?.0);
                Ok(if bytes > bytes_max {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                })
            })?;
            Ok(whole.then_some(bytes))
        }))
    }

    fn subscriptions(&self, client: &ClientUri) -> Answer<'_, Vec<Subscription>> {
        self.many(keys::subscriptions(client), items(usize::MAX), |record| {
            keys::decode("subscription", &record)
        })
    }

    fn subscription_to(
        &self,
        client: &ClientUri,
        group: &GroupId,
        recipient: RecipientId,
    ) -> Answer<'_, Option<Subscription>> {
        let index = keys::subscription_index(client, group, recipient);
        let (client, group) = (client.clone(), group.clone());
        Box::pin(self.read(move |reader| {
            let feed = stage::record(reader, &index)
                .and_then(|record| {
                    record.map(|it| keys::decode("subscription index", &it)).transpose()
                })
                .map_err(|error| reader.damages.named(&index, error))?;
            let Some(feed) = feed else { return Ok(None) };
            let key = keys::subscription(&client, feed);
            let found: Option<Subscription> = stage::record(reader, &key)
                .and_then(|record| record.map(|it| keys::decode("subscription", &it)).transpose())
                .map_err(|error| reader.damages.named(&key, error))?;
            Ok(found.filter(|it| it.group == group && it.recipient == recipient))
        }))
    }

    fn account(&self, user: &UserUri) -> Answer<'_, Option<Account>> {
        let key = keys::account(user);
        let user = user.clone();
        self.one(key, move |record| keys::decode_owned("account", user.as_str(), record))
    }

    fn device(&self, client: &ClientUri) -> Answer<'_, Option<Device>> {
        let key = keys::device(client);
        let client = client.clone();
        self.one(key, move |record| keys::decode_owned("device", client.as_str(), record))
    }

    fn client_of_queue(&self, queue: &[u8; 16]) -> Answer<'_, Option<ClientUri>> {
        self.one(keys::queue_index(queue), |record| keys::decode("queue index", record))
    }

    fn key_packages(
        &self,
        client: &ClientUri,
        items_max: usize,
    ) -> Answer<'_, Vec<StoredKeyPackage>> {
        if items_max == 0 {
            return none();
        }
        self.readable(keys::key_packages(client), items_max, |record| {
            keys::decode("KeyPackage", &record)
        })
    }

    fn token(&self, token: &TokenId) -> Answer<'_, Option<TokenRecord>> {
        self.one(keys::token(token), |record| keys::decode("token", record))
    }

    fn has_consent(&self, user: &UserUri, token: &ConsentHash) -> Answer<'_, bool> {
        let key = keys::consent(user, token);
        Box::pin(self.read(move |reader| Ok(reader.value(&key)?.is_some())))
    }

    fn consent_count(&self, user: &UserUri, items_max: usize) -> Answer<'_, usize> {
        let range = keys::consents(user);
        Box::pin(self.read(move |reader| {
            if items_max == 0 {
                return Ok(0);
            }
            Ok(reader.heads(&range, items(items_max), |_| Ok(0))?.len())
        }))
    }

    fn node(&self, name: &'static str) -> Answer<'_, Option<Vec<u8>>> {
        self.one(keys::node(name), move |record| keys::decode_owned("node record", name, record))
    }

    fn copy(&self) -> Result<mpsc::Receiver<Piece>, StoreError> {
        self.shared.copy()
    }

    fn stats(&self) -> StoreStats {
        let counters = &self.shared.counters;
        StoreStats {
            batches: counters.batches.load(Ordering::Relaxed),
            flushes: counters.flushes.load(Ordering::Relaxed),
            flush_us_total: counters.flush_us_total.load(Ordering::Relaxed),
            writes: counters.writes.load(Ordering::Relaxed),
            bytes_written: counters.bytes_written.load(Ordering::Relaxed),
            read_failures: counters.read_failures.load(Ordering::Relaxed),
            bytes_on_disk: self.shared.engine.bytes_on_disk(),
            disk_free_bytes: self.reserve.free_bytes(),
            batches_waiting: self.shared.batches_waiting(),
        }
    }

    fn histograms(&self) -> Histograms {
        self.shared.counters.histograms.clone()
    }

    fn damaged(&self) -> DamagedByKind {
        self.shared.damages.by_kind()
    }

    fn queue_delay(&self) -> Duration {
        self.shared.queue_delay()
    }

    fn turn(&self) -> Option<u64> {
        self.shared.turn()
    }

    fn writable(&self) -> Result<(), String> {
        self.shared.writable()?;
        self.reserve.writable()
    }

    fn room(&self) -> Result<(), String> {
        self.reserve.room()
    }

    fn keep_free(&self, bytes_min: u64) {
        self.reserve.keep(bytes_min);
    }

    fn close(&self) -> Answer<'static, ()> {
        let closed = self.shared.close();
        Box::pin(async move {
            closed.await.unwrap_or_else(|_| {
                Err(StoreError::Unavailable("the store's writer has ended".to_owned()))
            })
        })
    }
}
