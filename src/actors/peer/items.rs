//! What one peer is owed of one group, read from the store: the log with the roster rows that go with it, as items.
//! PROTOCOL.md §3, "Between providers".
//!
//! Deliberately absent: when it is read and what becomes of it (`federation::outbox`).

use std::collections::BTreeMap;

use crate::{
    actors::node::Node,
    federation::{
        outbox::{self, Loaded, Need, Reading, Standing, Turn},
        roster::{Row, roster_before},
    },
    store::{
        Page, StoreError,
        records::{FeedEntry, GroupHead, GroupStatus, OutboundRoster, Replica, ReplicaMode},
    },
    wire::{
        codec::{List, decode},
        ds::{DsError, FanoutFilter, REQUEST_BYTES_MAX},
        ids::{Domain, GroupId, RecipientId, Sequence, Timestamp},
        mls::MlsMessage,
        portability::Chain,
        queueing::{DeliveryItem, QueueEvent, RosterChange, RosterChanges},
    },
};
use tls_codec::Size;

/// Where a peer stands in a group, as the store has it.
pub(in crate::actors) struct Stood {
    /// With the feed.
    pub standing: Standing,
    /// With single requests: all of its clients have everything up to here.
    pub singles: Sequence,
    pub mode: ReplicaMode,
}

/// Where `peer` stands in a group that something is left of up to `until`.
///
/// # Errors
/// [`StoreError`]
pub(in crate::actors) async fn standing_of(
    node: &Node,
    peer: &Domain,
    group: &GroupId,
    until: Sequence,
) -> Result<Stood, StoreError> {
    let replica = node.store.replica(peer, group).await?;
    let from = replica.as_ref().map_or(Sequence(1), |replica| fed(replica).next());
    let rows = node.store.outbound_roster(peer, group, from, ONE).await?;
    let now = node.clock.now();
    let before = |sequence: Sequence| Sequence(sequence.0.saturating_sub(1));
    let (acknowledged, singles, needs_snapshot) = match (&replica, rows.first()) {
        (Some(replica), _) => (fed(replica), replica.acknowledged, false),
        (None, Some(row)) => (before(row.sequence), before(row.sequence), false),
        // nothing says what it knows: a snapshot does
        (None, None) => (before(until), before(until), true),
    };
    let oldest = node.store.feed(group, acknowledged.next(), ONE).await?;
    let oldest_at = oldest.first().map_or(now, |entry| entry.accepted_at);
    let Replica { acknowledged_at, mode, copy, set_aside, .. } = replica.unwrap_or(Replica {
        acknowledged,
        acknowledged_at: oldest_at,
        mode: ReplicaMode::Feed,
        copy: None,
        set_aside: None,
    });
    let set_aside = set_aside.map(|aside| outbox::SetAside {
        since: aside.since,
        item: aside.item,
        problem: aside.problem,
    });
    let opened = mode == ReplicaMode::Feed || copy.is_some();
    let standing = Standing {
        acknowledged,
        acknowledged_at,
        until,
        oldest_at,
        set_aside,
        needs_snapshot,
        opened,
    };
    Ok(Stood { standing, singles, mode })
}

/// Where a peer's feed of a group goes on: behind what its copy has; without a copy, behind what its clients have.
pub(in crate::actors) fn fed(replica: &Replica) -> Sequence {
    match replica.mode {
        ReplicaMode::Feed => replica.acknowledged,
        ReplicaMode::Direct => replica.copy.unwrap_or(replica.acknowledged),
    }
}

/// What reading for a turn gives, and whether clients of the peer leave with it.
pub(super) struct ReadTurn {
    pub reading: Reading,
    pub removes: bool,
}

/// Reads what `turn` asks for. What cannot be read now is tried again later; what can never be sent as it is (the log
/// is gone, or a record is bad) is sent as a snapshot.
///
/// `leaving` are clients, as adds, that rows remove which the peer's clients have not all got.
pub(super) async fn read_turn(
    node: &Node,
    peer: &Domain,
    turn: &Turn,
    leaving: &[RosterChange],
) -> ReadTurn {
    let read = match turn.need {
        Need::Opening => read_opening(node, peer, turn, leaving).await,
        Need::Items => match read_items(node, peer, turn).await {
            Ok(None) => read_snapshot(node, peer, turn).await,
            Ok(Some(read)) => Ok(read),
            Err(error) => Err(error),
        },
        Need::Snapshot => read_snapshot(node, peer, turn).await,
    };
    read.unwrap_or_else(|error| {
        tracing::warn!(%peer, group = %turn.group, %error, "what is owed to a peer cannot be read now");
        ReadTurn { reading: Reading::Failed, removes: false }
    })
}

/// None: only a snapshot helps.
async fn read_items(
    node: &Node,
    peer: &Domain,
    turn: &Turn,
) -> Result<Option<ReadTurn>, StoreError> {
    let store = &node.store;
    let Some(head) = store.group_head(&turn.group).await? else { return Ok(Some(nothing(turn))) };
    if is_dropped(&head) {
        return Ok(None);
    }
    let from = turn.acknowledged.next();
    let page = Page { items_max: turn.items_max, bytes_max: turn.bytes_max };
    let mut entries = store.feed(&turn.group, from, page).await?;
    entries.retain(|entry| entry.sequence <= turn.until);
    let end = entries.last().map_or(from, |last| last.sequence);
    let rows = read_rows(node, peer, &turn.group, from, end, turn.bytes_max).await?;
    let chain = node.chain_to_here(&turn.group).await?;
    let mut maker = Maker {
        chain,
        peer,
        group: &turn.group,
        bytes_max: turn.bytes_max,
        items: Vec::new(),
        bytes: 0,
        removes: false,
    };
    let stopped = maker.make(from, turn.until, entries, rows, head.last_accepted_at);
    let Maker { items, removes, .. } = maker;
    match (items.is_empty(), stopped) {
        (false, _) => Ok(Some(ReadTurn { reading: Reading::Items(items), removes })),
        (true, Stop::Unusable) => Ok(None),
        // a page without the next item although there should be one: the log does not have it
        (true, Stop::End) => Ok((from > turn.until).then(|| nothing(turn))),
    }
}

/// Rows from `from` on, at least up to the first one behind `end` (so that a row that opens the feed is seen in time), or
/// as many as fit.
struct Rows {
    rows: Vec<OutboundRoster>,
    /// Nothing is known of rows behind this.
    known: Option<Sequence>,
}

async fn read_rows(
    node: &Node,
    peer: &Domain,
    group: &GroupId,
    from: Sequence,
    end: Sequence,
    bytes_max: usize,
) -> Result<Rows, StoreError> {
    let (mut rows, mut next, mut bytes): (Vec<OutboundRoster>, _, _) = (Vec::new(), from, 0);
    loop {
        let page = Page { items_max: ROWS_PAGE, bytes_max: bytes_max.max(ROWS_BYTES_MIN) };
        let more = node.store.outbound_roster(peer, group, next, page).await?;
        let Some(last) = more.last() else { return Ok(Rows { rows, known: None }) };
        next = last.sequence.next();
        bytes += more.iter().map(|row| row.changes.len()).sum::<usize>();
        let known = last.sequence;
        rows.extend(more);
        if known > end {
            return Ok(Rows { rows, known: None });
        }
        if bytes > bytes_max {
            return Ok(Rows { rows, known: Some(known) });
        }
    }
}

struct Maker<'a> {
    /// The group's moves, for who opens a copy of it.
    chain: Chain,
    peer: &'a Domain,
    group: &'a GroupId,
    bytes_max: usize,
    items: Vec<Loaded>,
    bytes: usize,
    removes: bool,
}

enum Stop {
    /// There is no more, or no more room.
    End,
    /// The next item cannot be made.
    Unusable,
}

impl Maker<'_> {
    /// Pairs entries and rows. A row that opens the feed stands for everything before it: what lies between it and the
    /// row before (which removed the peer's last client) is not the peer's.
    fn make(
        &mut self,
        from: Sequence,
        until: Sequence,
        entries: Vec<FeedEntry>,
        Rows { rows, known }: Rows,
        opened_at: Timestamp,
    ) -> Stop {
        let mut entries = entries.into_iter().peekable();
        let mut at = from;
        for row in rows.iter().filter(|row| row.sequence <= until) {
            if row.opens {
                while entries.next_if(|entry| entry.sequence < row.sequence).is_some() {}
                let entry = entries.next_if(|entry| entry.sequence == row.sequence);
                let Ok(roster) = changes_of(row) else { return Stop::Unusable };
                let item = DeliveryItem::Snapshot {
                    group_id: self.group.clone(),
                    next_sequence: row.sequence.next(),
                    chain: self.chain.clone(),
                    roster,
                };
                let accepted_at = entry.map_or(opened_at, |entry| entry.accepted_at);
                if !self.push(item, row.sequence, accepted_at) {
                    return Stop::End;
                }
                at = row.sequence.next();
                continue;
            }
            while at <= row.sequence {
                let Some(entry) = entries.next() else { return self.end_of_page(at, until) };
                let roster = match at == row.sequence {
                    true => changes_of(row),
                    false => Ok(List::default()),
                };
                let Ok(roster) = roster else { return Stop::Unusable };
                match self.feed_item(at, entry, roster) {
                    Ok(true) => at = at.next(),
                    Ok(false) => return Stop::End,
                    Err(stop) => return stop,
                }
            }
        }
        let end = known.unwrap_or(until).min(until);
        while at <= end {
            let Some(entry) = entries.next() else { return self.end_of_page(at, until) };
            match self.feed_item(at, entry, List::default()) {
                Ok(true) => at = at.next(),
                Ok(false) => return Stop::End,
                Err(stop) => return stop,
            }
        }
        Stop::End
    }

    /// The page of entries is read to its end; where that gave nothing the log does not have what is owed.
    fn end_of_page(&self, at: Sequence, until: Sequence) -> Stop {
        if self.items.is_empty() && at <= until { Stop::Unusable } else { Stop::End }
    }

    /// `Ok(false)`: there is no room for it.
    fn feed_item(
        &mut self,
        at: Sequence,
        entry: FeedEntry,
        roster: RosterChanges,
    ) -> Result<bool, Stop> {
        if entry.sequence != at {
            return Err(Stop::Unusable);
        }
        let event = match entry.event.is_empty() {
            true => QueueEvent::RosterOnly,
            false => decode(&entry.event).map_err(|error| {
                tracing::error!(group = %self.group, sequence = %at, %error, "a stored event cannot be read");
                Stop::Unusable
            })?,
        };
        let removes = roster.iter().any(|change| matches!(change, RosterChange::Remove { .. }));
        let item = DeliveryItem::Feed {
            group_id: self.group.clone(),
            group_sequence: at,
            accepted_at: entry.accepted_at,
            except: entry.except.filter(|_| entry.origin.as_ref() == Some(self.peer)),
            event,
            roster,
        };
        let is_in = self.push(item, at, entry.accepted_at);
        self.removes |= is_in && removes;
        Ok(is_in)
    }

    fn push(&mut self, item: DeliveryItem, through: Sequence, accepted_at: Timestamp) -> bool {
        let bytes = item.tls_serialized_len();
        if !self.items.is_empty() && self.bytes + bytes > self.bytes_max {
            return false;
        }
        self.bytes += bytes;
        self.items.push(Loaded { item, bytes, through, accepted_at });
        true
    }
}

/// A snapshot that opens the peer's copy right behind what its clients have got by single requests. What follows comes as
/// items, so that nothing lies between, whichever of them had got further.
async fn read_opening(
    node: &Node,
    peer: &Domain,
    turn: &Turn,
    leaving: &[RosterChange],
) -> Result<ReadTurn, StoreError> {
    let roster = match node.group_roster_for(&turn.group, peer).await {
        Ok(Some(roster)) => roster,
        Ok(None) | Err(DsError::GroupNotFound { .. }) => return read_end(node, turn).await,
        // a peer without a copy: it gets one of the group's hub
        Err(DsError::GroupMoved { .. }) => return Ok(nothing(turn)),
        Err(error) => return Err(StoreError::Unavailable(error.to_string())),
    };
    let from = turn.acknowledged.next();
    let rows = read_all_rows(node, peer, &turn.group, from, roster.next).await?;
    let oldest = node.store.feed(&turn.group, from, ONE).await?;
    let accepted_at = oldest.first().map_or(node.clock.now(), |entry| entry.accepted_at);
    let adds = roster_before(roster.adds, &rows, leaving);
    let through = turn.acknowledged;
    let chain = node.chain_to_here(&turn.group).await?;
    Ok(snapshot_of(&turn.group, through, adds, chain, accepted_at))
}

fn snapshot_of(
    group: &GroupId,
    through: Sequence,
    adds: Vec<RosterChange>,
    chain: Chain,
    accepted_at: Timestamp,
) -> ReadTurn {
    let removes = adds.is_empty();
    let (fits, roster) = match List::new(adds) {
        Ok(adds) => (true, adds),
        Err(_) => (false, List::default()),
    };
    let item = DeliveryItem::Snapshot {
        group_id: group.clone(),
        next_sequence: through.next(),
        chain,
        roster,
    };
    // more clients than one item can name: the outbox sets such a one aside
    let bytes = if fits { item.tls_serialized_len() } else { usize::MAX };
    let loaded = Loaded { item, bytes, through, accepted_at };
    ReadTurn { reading: Reading::Items(vec![loaded]), removes }
}

/// What can be said of a group that has moved: what happened here up to that, which no snapshot tells any more. Where the log does not
/// have it, nothing: its hub sends a snapshot with the proof that it is the hub. One that is at home again has no proof, so whoever
/// missed its move from here would follow nobody.
async fn read_gone(node: &Node, peer: &Domain, turn: &Turn) -> Result<ReadTurn, StoreError> {
    Ok(read_items(node, peer, turn).await?.unwrap_or_else(|| nothing(turn)))
}

fn nothing(turn: &Turn) -> ReadTurn {
    ReadTurn { reading: Reading::Nothing { through: turn.until }, removes: false }
}

/// What is left to say of a group whose log and roster are gone: that nobody is in it. Whoever still has a copy removes
/// its clients from it, behind a gap.
async fn read_end(node: &Node, turn: &Turn) -> Result<ReadTurn, StoreError> {
    let head = node.store.group_head(&turn.group).await?;
    let Some(head) = head.filter(is_dropped) else {
        // there never was such a group
        return Ok(nothing(turn));
    };
    let through = Sequence(head.next_sequence.0.saturating_sub(1)).max(turn.until);
    let chain = node.chain_to_here(&turn.group).await?;
    Ok(snapshot_of(&turn.group, through, Vec::new(), chain, head.last_accepted_at))
}

/// The peer's clients as they are now, with the Welcomes that they have not got yet.
async fn read_snapshot(node: &Node, peer: &Domain, turn: &Turn) -> Result<ReadTurn, StoreError> {
    let roster = match node.group_roster_for(&turn.group, peer).await {
        Ok(Some(roster)) => roster,
        Ok(None) | Err(DsError::GroupNotFound { .. }) => return read_end(node, turn).await,
        Err(DsError::GroupMoved { .. }) => return read_gone(node, peer, turn).await,
        Err(error) => return Err(StoreError::Unavailable(error.to_string())),
    };
    let from = turn.acknowledged.next();
    let adds = with_welcomes(node, peer, &turn.group, (from, roster.next), roster.adds).await?;
    let through = Sequence(roster.next.0.saturating_sub(1));
    let chain = node.chain_to_here(&turn.group).await?;
    Ok(snapshot_of(&turn.group, through, adds, chain, node.clock.now()))
}

/// `adds` with the Welcomes that `peer` has not got yet: those in roster rows of this range, whose end is not in it.
pub(in crate::actors) async fn with_welcomes(
    node: &Node,
    peer: &Domain,
    group: &GroupId,
    (from, before): (Sequence, Sequence),
    adds: Vec<RosterChange>,
) -> Result<Vec<RosterChange>, StoreError> {
    let mut welcomes: BTreeMap<RecipientId, MlsMessage> = BTreeMap::new();
    for row in read_all_rows(node, peer, group, from, before).await? {
        for change in row.changes {
            if let RosterChange::Add { recipient, welcome: Some(welcome), .. } = change {
                welcomes.insert(recipient, welcome);
            }
        }
    }
    let adds = adds.into_iter().map(|change| match change {
        RosterChange::Add { recipient, client_queue_information, filter, welcome } => {
            let welcome = welcome.or_else(|| welcomes.remove(&recipient));
            RosterChange::Add { recipient, client_queue_information, filter, welcome }
        }
        RosterChange::Remove { .. } | RosterChange::Update { .. } => change,
    });
    Ok(adds.collect())
}

/// Everything that `peer` has not got of a group up to `last`; none where only a snapshot of its clients helps, or it is more
/// than a move can carry.
pub(in crate::actors) async fn owed_before(
    node: &Node,
    peer: &Domain,
    group: &GroupId,
    last: Sequence,
) -> Result<Option<Vec<DeliveryItem>>, StoreError> {
    let Stood { standing, mode, .. } = standing_of(node, peer, group, last).await?;
    if standing.needs_snapshot || mode == ReplicaMode::Direct {
        return Ok(None);
    }
    let (mut acknowledged, mut items, mut bytes) = (standing.acknowledged, Vec::new(), 0);
    while acknowledged < last {
        let turn = Turn {
            group: group.clone(),
            acknowledged,
            until: last,
            need: Need::Items,
            items_max: OWED_PAGE,
            bytes_max: REQUEST_BYTES_MAX,
        };
        let Some(ReadTurn { reading: Reading::Items(page), .. }) =
            read_items(node, peer, &turn).await?
        else {
            return Ok(None);
        };
        for loaded in page {
            bytes += loaded.bytes;
            acknowledged = loaded.through;
            items.push(loaded.item);
        }
        if bytes > OWED_BYTES_MAX {
            return Ok(None);
        }
    }
    Ok(Some(items))
}

/// All rows in `from..before` that can be read.
pub(super) async fn read_all_rows(
    node: &Node,
    peer: &Domain,
    group: &GroupId,
    from: Sequence,
    before: Sequence,
) -> Result<Vec<Row>, StoreError> {
    let (mut rows, mut next) = (Vec::new(), from);
    loop {
        let page = Page { items_max: ROWS_PAGE, bytes_max: REQUEST_BYTES_MAX };
        let more = node.store.outbound_roster(peer, group, next, page).await?;
        let Some(last) = more.last() else { return Ok(rows) };
        next = last.sequence.next();
        for row in more {
            if row.sequence >= before {
                return Ok(rows);
            }
            if let Ok(changes) = changes_of(&row) {
                let OutboundRoster { sequence, opens, .. } = row;
                rows.push(Row { sequence, opens, changes: changes.into_vec() });
            }
        }
    }
}

pub(in crate::actors) fn changes_of(row: &OutboundRoster) -> Result<RosterChanges, ()> {
    decode(&row.changes).map_err(|error| {
        tracing::warn!(sequence = %row.sequence, %error, "a roster row cannot be read");
    })
}

/// Everything but the head of the group is gone.
pub(in crate::actors) fn is_dropped(head: &GroupHead) -> bool {
    head.status == GroupStatus::Deleted && head.log_bytes == 0
}

/// The first message in `from..=until` for `recipient` of `peer`, with its sequence; none where there is none in as much
/// as was read: then with the last sequence of that.
///
/// # Errors
/// [`StoreError`]
pub(super) async fn read_message(
    node: &Node,
    peer: &Domain,
    group: &GroupId,
    (from, until): (Sequence, Sequence),
    recipient: RecipientId,
    filter: FanoutFilter,
) -> Result<(Sequence, Option<MlsMessage>), StoreError> {
    let page = Page { items_max: MESSAGES_PAGE, bytes_max: REQUEST_BYTES_MAX };
    let entries = node.store.feed(group, from, page).await?;
    let mut through = from;
    for entry in &entries {
        if entry.sequence > until {
            break;
        }
        through = entry.sequence;
        let own = entry.except == Some(recipient) && entry.origin.as_ref() == Some(peer);
        let muted = filter == FanoutFilter::HandshakeOnly && !entry.handshake;
        if own || muted || entry.event.is_empty() {
            continue;
        }
        match decode(&entry.event) {
            Ok(QueueEvent::MlsMessage { message }) => return Ok((entry.sequence, Some(message))),
            // DS §6.1 has nothing to say the others with
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%group, sequence = %entry.sequence, %error, "a stored event cannot be read");
            }
        }
    }
    if entries.is_empty() {
        through = until;
    }
    Ok((through, None))
}

const ONE: Page = Page { items_max: 1, bytes_max: 1 };
const ROWS_PAGE: usize = 64;
const ROWS_BYTES_MIN: usize = 64 * 1024;
const MESSAGES_PAGE: usize = 8;

const OWED_PAGE: usize = 1_000;
/// What a group takes along for one guest.
const OWED_BYTES_MAX: usize = 24 * 1024 * 1024;
