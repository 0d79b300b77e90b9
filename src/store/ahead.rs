//! What a store that goes back to a backup does before it is started: it leaps ahead.
//!
//! Others have seen numbers that this store has not given yet: sequences of its groups and of its clients' own feeds, feeds,
//! recipients. Given again they would mean something else, and whoever has the first would never notice. So each counter leaps
//! past everything that may have been given since, by the time that has gone by, and what lies between is a hole: a `gap` for
//! clients, a snapshot for guests. Each group gets a record of it ([`Kind::Restored`]), which keeps its members from going on in
//! epochs that look alike. Each client finds in its own feed that something is missing there, and that its KeyPackages are used up:
//! those that may have been handed out since are gone.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use super::{
    Batch, StoreError, Write,
    backup::{BackupError, engine_failed},
    copy::open,
    engine::{Changes, Engine, Failure},
    folder::engine_in,
    keys::{self, tag},
    plan::Plan,
    records::{
        Departure, Device, FeedEntry, GroupHead, GroupStatus, LEAP, LogRecord, OwnEntry,
        OwnSequence, QueueHead, StoredKeyPackage,
    },
    stage::{self, Source, Stage},
};
use crate::{
    group::{
        mls::to_record,
        record::{Change, Kind},
    },
    migration::source::Phase,
    wire::{
        encode,
        ids::{ClientUri, FeedId, GroupId, Sequence, Timestamp},
        queueing::QueueEvent,
    },
};

/// What has leapt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leapt {
    pub groups: u64,
    pub clients: u64,
    /// KeyPackages that are gone, for they may have been handed out.
    pub key_packages: u64,
    /// Feeds at guests that a snapshot repairs.
    pub guests: u64,
}

/// Groups of the store in the folder `store` that were about to leave when its backup was made and had been sent nowhere by then,
/// with where to.
///
/// # Errors
/// [`BackupError::NoStore`], [`BackupError::Open`], [`BackupError::Engine`]
pub fn about_to_leave(store: &Path) -> Result<Vec<(GroupId, String)>, BackupError> {
    let ahead = Ahead::open(store)?;
    let mut leaving = Vec::new();
    ahead.each(tag::DEPARTURE, |_, record| {
        let (_, departure): (String, Departure) = keys::decode("departure", record)?;
        if departure.phase == Phase::Frozen {
            leaving.push((departure.group, departure.target.to_string()));
        }
        Ok(Batch::new())
    })?;
    Ok(leaving)
}

/// Lets the store in the folder `store` leap past all that it may have given out between `taken_at`, when its backup was begun,
/// and `now`. It is durable then.
///
/// # Errors
/// [`BackupError::Store`] where a record cannot be read; [`BackupError::Engine`]
pub fn leap(store: &Path, taken_at: Timestamp, now: Timestamp) -> Result<Leapt, BackupError> {
    let ahead = Ahead::open(store)?;
    // none of them counts up by more than this in a millisecond
    let by = now.ms_since(taken_at).saturating_add(1).saturating_mul(LEAP);
    let mut leapt = Leapt::default();
    ahead.each(tag::GROUP_HEAD, |_, record| {
        let head = keys::any_group_head(record)?;
        if head.status != GroupStatus::Active {
            return Ok(Batch::new());
        }
        leapt.groups += 1;
        group_leaps(head, by, now)
    })?;
    let leaps = |group: &GroupId| ahead.head(group);
    ahead.each(tag::REPLICA, |_, record| {
        let (owner, _) = keys::decode_replica(record)?;
        let (peer, group) = keys::peer_and_group(&owner)?;
        let Some(head) = leaps(&group)? else { return Ok(Batch::new()) };
        leapt.guests += 1;
        let until = Sequence(head.next_sequence.0.saturating_sub(1));
        Ok(Batch::new().and(Write::Outbound { peer, group, until }))
    })?;
    ahead.each(tag::OUTBOUND, |_, record| {
        let (owner, until): (String, Sequence) = keys::decode("outbound", record)?;
        let (peer, group) = keys::peer_and_group(&owner)?;
        let Some(head) = leaps(&group)? else { return Ok(Batch::new()) };
        let last = Sequence(head.next_sequence.0.saturating_sub(1));
        if until >= last {
            return Ok(Batch::new());
        }
        leapt.guests += 1;
        Ok(Batch::new().and(Write::Outbound { peer, group, until: last }))
    })?;
    ahead.each(tag::DEVICE, |_, record| {
        let (client, device): (String, Device) = keys::decode("device", record)?;
        if device.deleted_at.is_some() {
            return Ok(Batch::new());
        }
        let client =
            ClientUri::new(client).map_err(|_| keys::corrupt("a device whose client is none"))?;
        leapt.clients += 1;
        let (batch, gone) = ahead.client_leaps(&client, by, now)?;
        leapt.key_packages += gone;
        Ok(batch)
    })?;
    ahead.close()?;
    Ok(leapt)
}

fn group_leaps(mut head: GroupHead, by: u64, now: Timestamp) -> Result<Batch, StoreError> {
    let sequence = Sequence(head.next_sequence.0.saturating_add(by));
    if sequence >= Sequence::END {
        return Err(keys::corrupt(format!("{} has no sequences left", head.group)));
    }
    let feed = FeedEntry {
        sequence,
        accepted_at: now,
        except: None,
        origin: None,
        handshake: false,
        event: Vec::new(),
    };
    let change = Change { request: None, sender: None, kind: Kind::Restored };
    let change = to_record(&change).map_err(|error| keys::corrupt(error.to_string()))?;
    head.next_sequence = sequence.next();
    head.revision += 1;
    head.log_bytes += (change.len() + 64) as u64;
    head.last_accepted_at = head.last_accepted_at.max(now);
    let group = head.group.clone();
    let record = head.append(LogRecord { feed, change, follows: None });
    Ok(Batch::new().and(Write::Log { group, record }).and(Write::GroupHead(head)))
}

struct Ahead {
    engine: Box<dyn Engine>,
    path: PathBuf,
    sequence: std::cell::Cell<u64>,
}

impl Source for Ahead {
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        self.engine.read(key)
    }
}

impl Ahead {
    fn open(store: &Path) -> Result<Self, BackupError> {
        let engine = engine_in(store).ok_or_else(|| BackupError::NoStore(store.to_owned()))?;
        let engine = open(engine, store)?;
        let sequence = engine.read(&keys::commit_sequence()).map_err(engine_failed(store))?;
        let sequence = keys::decode_commit_sequence(sequence.as_deref())?;
        Ok(Self { engine, path: store.to_owned(), sequence: sequence.into() })
    }

    /// Gives `see` each record with this tag, and writes what it answers.
    fn each(
        &self,
        tag: u8,
        mut see: impl FnMut(&[u8], &[u8]) -> Result<Batch, StoreError>,
    ) -> Result<(), BackupError> {
        let mut after = vec![tag];
        loop {
            let mut page = Vec::new();
            let scanned = self.engine.scan(&after, &[tag + 1], &mut |key, value| {
                page.push((key.to_vec(), value.to_vec()));
                match page.len() < PAGE {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            });
            scanned.map_err(engine_failed(&self.path))?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after.clone_from(last);
            after.push(0);
            let mut changes = Changes::new();
            for (key, value) in page {
                let batch = see(&key, &stage::whole(self, &key, &value)?)?;
                for step in Plan::of(batch)?.steps {
                    let mut stage = Stage::new(&*self.engine, &changes);
                    stage.run(step)?;
                    let own = stage.done();
                    changes.extend(own);
                }
            }
            self.write(changes)?;
        }
    }

    fn write(&self, mut changes: Changes) -> Result<(), BackupError> {
        if changes.is_empty() {
            return Ok(());
        }
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        changes.insert(keys::commit_sequence(), Some(keys::encode_commit_sequence(sequence)));
        self.engine
            .apply(&changes)
            .and_then(|()| self.engine.sync(sequence))
            .map_err(engine_failed(&self.path))
    }

    fn close(&self) -> Result<(), BackupError> {
        self.engine.close().map_err(engine_failed(&self.path))
    }

    /// The head of a group that has leapt.
    fn head(&self, group: &GroupId) -> Result<Option<GroupHead>, StoreError> {
        let record = stage::record(self, &keys::group_head(group))?;
        let head = record.map(|record| keys::decode_group_head(group, &record)).transpose()?;
        Ok(head.filter(|head| head.status == GroupStatus::Active))
    }

    fn client_leaps(
        &self,
        client: &ClientUri,
        by: u64,
        now: Timestamp,
    ) -> Result<(Batch, u64), StoreError> {
        let head = stage::record(self, &keys::queue_head(client))?;
        let head = head
            .map(|head| keys::decode_owned::<QueueHead>("queue head", client.as_str(), &head))
            .transpose()?;
        let mut head = head.unwrap_or_default();
        let at = OwnSequence(head.next_own.0.max(1).saturating_add(by));
        let next_available = Sequence(at.0 + 1);
        let mut batch = Batch::new();
        for (sequence, event) in [
            (at, QueueEvent::Gap { next_available }),
            (OwnSequence(at.0 + 1), QueueEvent::KeyPackagesLow { left: 0 }),
        ] {
            let event = encode(&event);
            let entry = OwnEntry { sequence, accepted_at: now, group: None, opens: None, event };
            batch.push(Write::Own { client: client.clone(), entry });
        }
        head.next_own = OwnSequence(at.0 + 2);
        head.next_feed = FeedId(head.next_feed.0.max(1).saturating_add(by));
        head.revision += 1;
        batch.push(Write::QueueHead { client: client.clone(), head });
        let mut gone = 0;
        let range = keys::key_packages(client);
        let mut found = Vec::new();
        self.engine.scan(&range.from, &range.until, &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        for (key, value) in found {
            let record = stage::whole(self, &key, &value)?;
            let stored: StoredKeyPackage = keys::decode("KeyPackage", &record)?;
            if !stored.last_resort {
                gone += 1;
                let key_package = stored.reference;
                batch.push(Write::DropKeyPackage { client: client.clone(), key_package });
            }
        }
        Ok((batch, gone))
    }
}

/// Records that are changed at once. A client has some hundred KeyPackages.
const PAGE: usize = 64;
