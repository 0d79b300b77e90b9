//! Whether a store that nobody has open is whole: `mimid verify`.
//!
//! One pass over all keys in their order. Each record is put together, decoded, and compared with its key and with those that it
//! names; a group is loaded from its snapshots and its log, in `group`. Nothing is changed. In memory is one piece of the
//! store and one group at a time; what is wrong is told as it is found.
//!
//! **What is not proved.** A record that was changed into another one that decodes and agrees with all the others. A log's records
//! cannot be: each says which one it follows ([`super::links`]), as far as they were written with links. For what is in no log, and for the
//! small feed of each client, the engines' own checksums stand.

mod group;

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;

use super::{
    StoreError,
    backup::{BackupError, engine_failed},
    copy::{PIECE_BYTES, PIECE_RECORDS, open},
    engine::{Engine, Failure},
    folder::engine_in,
    keys::{self, Key, tag},
    links::Links,
    records::{
        Account, Device, GroupHead, GroupNotice, InboxItem, InboxKey, Leaver, OutboundRoster,
        OwnEntry, QueueHead, StoredKeyPackage, Subscription, TokenRecord,
    },
    stage::{self, Source},
    tee::piece,
};
use crate::{
    group::Hub,
    wire::{
        codec::decode,
        ids::{ClientUri, Domain, FeedId, GroupId, Sequence, UserUri},
        mls::{Credential, KeyPackage},
        queueing::QueueEvent,
    },
};

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The group, client or user that it is of, or the key where that is not known.
    pub of: String,
    /// The kind of record.
    pub record: &'static str,
    pub wrong: String,
    pub remedy: &'static str,
}

/// What was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The last flush that the store holds.
    pub sequence: u64,
    /// Records by kind.
    pub records: BTreeMap<&'static str, u64>,
    /// What a write that was broken off has left; the node removes it by itself.
    pub leftovers: u64,
    /// Logs by what their hash chain is: `whole`, `begun` (its oldest records have no links), `none` yet, `broken`.
    pub chains: BTreeMap<&'static str, u64>,
    pub problems: u64,
}

/// Looks through the store in the folder `store`, and tells each problem to `told`.
///
/// # Errors
/// [`BackupError::NoStore`], [`BackupError::Open`]: in use by a running node, or damaged so that the engine does not open
/// it; [`BackupError::Engine`]: it cannot be read on.
pub fn verify(store: &Path, told: &mut dyn FnMut(Problem)) -> Result<Summary, BackupError> {
    let engine = engine_in(store).ok_or_else(|| BackupError::NoStore(store.to_owned()))?;
    let engine = open(engine, store)?;
    let done = Verify::new(&*engine, told).run().map_err(engine_failed(store))?;
    Ok(done)
}

/// What to do about it, in most cases.
const RESTORE: &str =
    "restore a backup from before, or remove what is named here with its owner's consent";
const GROUP: &str = "the group cannot go on: restore a backup, or have its members make a new one";
const CLIENT: &str =
    "this client may lack something: have it resync its groups, or restore a backup";
const HARMLESS: &str = "nothing is lost by it; restore a backup if there is more";

struct Verify<'a> {
    store: Stored<'a>,
    told: &'a mut dyn FnMut(Problem),
    summary: Summary,
    hub: Option<std::sync::Arc<Hub>>,
    /// The log that is being gone through: the group's hash, its head, and the sequence that comes next.
    log: Option<Log>,
    /// The own feed that is being gone through: the client's hash and the last sequence.
    own: Option<([u8; 16], u64)>,
}

struct Log {
    group: [u8; 16],
    head: Option<GroupHead>,
    next: Sequence,
    /// It was said that something is wrong with it.
    is_said: bool,
    /// Its hash chain, as far as it was gone through.
    links: Links,
    has_unlinked: bool,
    is_broken: bool,
}

/// The engine, as what records are read from.
struct Stored<'a>(&'a dyn Engine);

impl Source for Stored<'_> {
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        self.0.read(key)
    }
}

impl Stored<'_> {
    fn has(&self, key: &[u8]) -> Result<bool, Failure> {
        Ok(self.0.read(key)?.is_some())
    }

    /// The record under `key`, decoded; none where it is not there, or cannot be read (then that is told where it stands).
    fn get<T>(
        &self,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> Result<T, StoreError>,
    ) -> Result<Option<T>, Failure> {
        match stage::record(self, key) {
            Ok(record) => Ok(record.and_then(|record| decode(&record).ok())),
            Err(StoreError::Unavailable(reason)) => Err(Failure(reason)),
            Err(_) => Ok(None),
        }
    }

    fn head(&self, group: &[u8; 16]) -> Result<Option<GroupHead>, Failure> {
        self.get(&keys::key(tag::GROUP_HEAD, &[group]), keys::any_group_head)
    }

    fn has_device(&self, client: &[u8; 16]) -> Result<bool, Failure> {
        self.has(&keys::key(tag::DEVICE, &[client]))
    }

    fn queue_head(&self, client: &[u8; 16]) -> Result<Option<QueueHead>, Failure> {
        let key = keys::key(tag::QUEUE_HEAD, &[client]);
        let found: Option<(String, QueueHead)> =
            self.get(&key, |record| keys::decode("queue head", record))?;
        Ok(found.map(|(_, head)| head))
    }
}

/// What is wrong with a record, and what to do.
struct Wrong {
    of: Option<String>,
    what: String,
    remedy: &'static str,
}

impl Wrong {
    fn new(what: impl Into<String>, remedy: &'static str) -> Self {
        Self { of: None, what: what.into(), remedy }
    }

    fn of(of: &impl ToString, what: impl Into<String>, remedy: &'static str) -> Self {
        Self { of: Some(of.to_string()), what: what.into(), remedy }
    }
}

/// Either the record is as it should be, or not, or the store cannot be read.
type Judged = Result<Vec<Wrong>, Failure>;

const FINE: Vec<Wrong> = Vec::new();

fn wrong(wrong: Wrong) -> Judged {
    Ok(vec![wrong])
}

/// The record, decoded; where it cannot be, that is what is wrong.
macro_rules! read {
    ($what:expr, $record:expr, $remedy:expr) => {
        match keys::decode($what, $record) {
            Ok(value) => value,
            Err(error) => return wrong(Wrong::new(text(error), $remedy)),
        }
    };
}

use read;

impl<'a> Verify<'a> {
    fn new(engine: &'a dyn Engine, told: &'a mut dyn FnMut(Problem)) -> Self {
        Self {
            store: Stored(engine),
            told,
            summary: Summary::default(),
            hub: None,
            log: None,
            own: None,
        }
    }

    fn run(mut self) -> Result<Summary, Failure> {
        let sequence = self.store.value(&keys::commit_sequence())?;
        match keys::decode_commit_sequence(sequence.as_deref()) {
            Ok(sequence) => self.summary.sequence = sequence,
            Err(error) => {
                self.tell("commit sequence", &[], Wrong::new(text(error), RESTORE));
            }
        }
        self.hub = Some(std::sync::Arc::new(Hub::for_reading(self.domain()?)));
        let mut after = Vec::new();
        loop {
            let records = piece(self.store.0, &after, PIECE_BYTES, PIECE_RECORDS)?;
            let Some((last, _)) = records.last() else { break };
            after.clone_from(last);
            after.push(0);
            for (key, value) in records {
                self.see(&key, &value)?;
            }
        }
        self.end_log();
        Ok(self.summary)
    }

    /// Whose store it is: all its users bear that name. It does not matter where there are none.
    fn domain(&self) -> Result<Domain, Failure> {
        let mut user = None;
        let (from, until) = ([tag::ACCOUNT], [tag::ACCOUNT + 1]);
        self.store.0.scan(&from, &until, &mut |_, value| {
            let owner = keys::split_head(value).and_then(|(_, first)| keys::owner(first));
            user = owner.ok().and_then(|owner| UserUri::new(owner).ok());
            match user {
                Some(_) => std::ops::ControlFlow::Break(()),
                None => std::ops::ControlFlow::Continue(()),
            }
        })?;
        #[expect(clippy::expect_used, reason = "the text is a domain")]
        let nobody = || Domain::new("localhost").expect("a domain");
        Ok(user.map_or_else(nobody, |user| user.domain()))
    }

    fn see(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        let kind = kind_of(key);
        if key.first() != Some(&tag::LOG) {
            self.end_log();
        }
        if key.first() == Some(&tag::PART) {
            let judged = self.part(key)?;
            self.tell_all("part", key, judged);
            return Ok(());
        }
        *self.summary.records.entry(kind).or_default() += 1;
        if key.first() == Some(&tag::COMMIT_SEQUENCE) {
            return Ok(());
        }
        let judged = match self.judge_value(key, value) {
            Err(StoreError::Unavailable(reason)) => return Err(Failure(reason)),
            Err(error) => vec![Wrong::new(text(error), RESTORE)],
            Ok(record) => self.judge(key, &record)?,
        };
        self.tell_all(kind, key, judged);
        Ok(())
    }

    fn judge_value(&self, key: &[u8], value: &[u8]) -> Result<Vec<u8>, StoreError> {
        // consents hold nothing but their encoding, without parts
        if key.first() == Some(&tag::COMMIT_SEQUENCE) {
            return Ok(value.to_vec());
        }
        stage::whole(&self.store, key, value)
    }

    fn tell_all(&mut self, kind: &'static str, key: &[u8], judged: Vec<Wrong>) {
        for wrong in judged {
            self.tell(kind, key, wrong);
        }
    }

    fn tell(&mut self, record: &'static str, key: &[u8], wrong: Wrong) {
        self.summary.problems += 1;
        let of = wrong.of.unwrap_or_else(|| self.owner_by_key(key));
        (self.told)(Problem { of, record, wrong: wrong.what, remedy: wrong.remedy });
    }

    /// Who a key's hash is of, where the record that says so can be read.
    fn owner_by_key(&self, key: &[u8]) -> String {
        let unknown = format!("key {}", hex::encode(key));
        let Some(hash) = key.get(1..17) else { return unknown };
        let says = match key.first() {
            Some(&(tag::GROUP_HEAD..=tag::MOVES | tag::LEAVER)) => tag::GROUP_HEAD,
            Some(&(tag::INBOX..=tag::SUBSCRIPTION_INDEX)) => tag::DEVICE,
            Some(&(tag::DEVICE | tag::KEY_PACKAGE | tag::KEY_PACKAGE_INDEX)) => tag::DEVICE,
            Some(&tag::ACCOUNT | &tag::CONSENT) => tag::ACCOUNT,
            _ => return unknown,
        };
        let value = self.store.value(&keys::key(says, &[hash])).ok().flatten();
        let owner = value.as_deref().and_then(|value| {
            let (_, first) = keys::split_head(value).ok()?;
            keys::owner(first).ok().map(str::to_owned)
        });
        owner.unwrap_or(unknown)
    }

    fn judge(&mut self, key: &[u8], record: &[u8]) -> Judged {
        match key.first().copied().unwrap_or_default() {
            tag::NODE => {
                let (name, _): (String, Vec<u8>) = read!("node record", record, RESTORE);
                at_its_key(key, &keys::node(&name), &name)
            }
            tag::GROUP_HEAD => self.group_head(key, record),
            tag::LOG => self.log_record(key, record),
            tag::SNAPSHOT => self.snapshot(key, record),
            tag::JOINER_INFO => self.joiner_info(key, record),
            tag::GROUP_NOTICE => {
                let (group, notice, _): (GroupId, [u8; 16], GroupNotice) =
                    read!("group notice", record, HARMLESS);
                at_its_key(key, &keys::group_notice(&group, &notice), &group)
            }
            tag::FOLLOWED => self.followed(key, record),
            tag::FOLLOWED_MEMBER => self.followed_member(key, record),
            tag::DEPARTURE => self.departure(key, record),
            tag::MOVES => self.moves(key, record),
            tag::REFUSED_NONCE => match keys::decode_refused(record) {
                Ok((nonce, _)) => at_its_key(key, &keys::refused_nonce(&nonce), &"a move"),
                Err(error) => wrong(Wrong::new(text(error), RESTORE)),
            },
            tag::LEAVER => {
                let leaver: Leaver = read!("leaver", record, HARMLESS);
                let recipient = leaver.recipient.0.to_be_bytes();
                if key.get(17..) == Some(&recipient[..]) {
                    return Ok(FINE);
                }
                wrong(Wrong::new("it stands under the key of another", HARMLESS))
            }
            tag::INBOX => {
                let (_, _): (InboxKey, InboxItem) = read!("inbox item", record, CLIENT);
                self.of_device(key)
            }
            tag::QUEUE_HEAD => self.queue_head(key, record),
            tag::OWN => self.own_entry(key, record),
            tag::SUBSCRIPTION => self.subscription(key, record),
            tag::SUBSCRIPTION_INDEX => self.subscription_index(key, record),
            tag::ACCOUNT => self.account(key, record),
            tag::DEVICE => self.device(key, record),
            tag::KEY_PACKAGE => self.key_package(key, record),
            tag::KEY_PACKAGE_INDEX => self.key_package_index(key, record),
            tag::TOKEN => {
                let token: TokenRecord = read!("token", record, CLIENT);
                let client = keys::hash(token.client.as_str().as_bytes());
                if self.store.has_device(&client)? {
                    return Ok(FINE);
                }
                wrong(Wrong::of(&token.client, "a token of a device that is not there", HARMLESS))
            }
            tag::CONSENT => {
                if keys::versioned("consent", record).is_ok_and(<[u8]>::is_empty) {
                    return Ok(FINE);
                }
                wrong(Wrong::new("a consent that holds something", HARMLESS))
            }
            tag::QUEUE_INDEX => self.queue_index(key, record),
            tag::OUTBOUND => self.outbound(key, record),
            tag::OUTBOUND_ROSTER => {
                let row: OutboundRoster = read!("outbound roster", record, PEER);
                if key.ends_with(&row.sequence.0.to_be_bytes()) {
                    return Ok(FINE);
                }
                wrong(Wrong::new(format!("it says that it is of {}", row.sequence), PEER))
            }
            tag::REPLICA => self.replica(key, record),
            _ => wrong(Wrong::new("a record of a kind that this mimid does not know", RESTORE)),
        }
    }

    /// A part belongs to a record that has so many.
    fn part(&mut self, key: &[u8]) -> Judged {
        let Some(of) = keys::record_of_part(key) else {
            return wrong(Wrong::new("a part of nothing", HARMLESS));
        };
        let index = key.last_chunk::<4>().map_or(0, |index| u32::from_be_bytes(*index));
        let head = self.store.value(of)?;
        let parts = head.and_then(|head| Some(keys::part_count(keys::split_head(&head).ok()?.0)));
        match parts {
            Some(parts) if index <= parts => Ok(FINE),
            // of one that was on its way when the process ended
            None if keys::is_snapshot(of) => {
                self.summary.leftovers += 1;
                Ok(FINE)
            }
            _ => wrong(Wrong::new(
                format!("part {index} of {}, which is not there", hex::encode(of)),
                HARMLESS,
            )),
        }
    }

    /// Something of a client that is here.
    fn of_device(&self, key: &[u8]) -> Judged {
        let Some(client) = hash_in(key) else { return wrong(Wrong::new("a short key", RESTORE)) };
        if self.store.has_device(client)? {
            return Ok(FINE);
        }
        wrong(Wrong::new("it is of a device that is not there", CLIENT))
    }

    fn queue_head(&self, key: &[u8], record: &[u8]) -> Judged {
        let (client, head): (String, QueueHead) = read!("queue head", record, CLIENT);
        let Ok(client) = ClientUri::new(client) else {
            return wrong(Wrong::new("its client is none", CLIENT));
        };
        let mut judged = at_its_key(key, &keys::queue_head(&client), &client)?;
        judged.extend(self.of_device(key)?);
        let next = head.next_own.0.max(1);
        if head.acknowledged_own.0 >= next {
            let what = format!(
                "{} is acknowledged in its own feed, which ends before {next}",
                head.acknowledged_own.0
            );
            judged.push(Wrong::of(&client, what, CLIENT));
        } else if head.acknowledged_own.0 + 1 < next {
            let last = super::records::OwnSequence(next - 1);
            if !self.store.has(&keys::own_entry(&client, last))? {
                let what = format!("entry {} of its own feed, the last, is not there", last.0);
                judged.push(Wrong::of(&client, what, CLIENT));
            }
        }
        Ok(judged)
    }

    fn own_entry(&mut self, key: &[u8], record: &[u8]) -> Judged {
        let entry: OwnEntry = read!("own entry", record, CLIENT);
        let mut judged = self.of_device(key)?;
        let Some(client) = hash_in(key).copied() else { return Ok(judged) };
        if !key.ends_with(&entry.sequence.0.to_be_bytes()) {
            judged
                .push(Wrong::new(format!("it says that it is entry {}", entry.sequence.0), CLIENT));
        }
        let event = decode::<QueueEvent>(&entry.event);
        let is_gap = matches!(event, Ok(QueueEvent::Gap { .. }));
        if let Err(error) = event {
            judged.push(Wrong::new(format!("its event cannot be read: {error}"), CLIENT));
        }
        let head = self.store.queue_head(&client)?;
        match &head {
            None => judged.push(Wrong::new("it is of a queue that is not there", CLIENT)),
            Some(head) if entry.sequence >= head.next_own => {
                let what = format!("entry {} is behind the feed's end", entry.sequence.0);
                judged.push(Wrong::new(what, CLIENT));
            }
            Some(head) => {
                let before = match self.own {
                    Some((of, last)) if of == client => last,
                    _ => head.acknowledged_own.0.min(entry.sequence.0 - 1),
                };
                if before + 1 != entry.sequence.0 && !is_gap {
                    let what =
                        format!("entries {} to {} are not there", before + 1, entry.sequence.0 - 1);
                    judged.push(Wrong::new(what, CLIENT));
                }
            }
        }
        self.own = Some((client, entry.sequence.0));
        Ok(judged)
    }

    fn subscription(&self, key: &[u8], record: &[u8]) -> Judged {
        let subscription: Subscription = read!("subscription", record, CLIENT);
        let mut judged = self.of_device(key)?;
        let Some(client) = hash_in(key) else { return Ok(judged) };
        let (group, feed) = (&subscription.group, subscription.feed);
        let mut say = |what: String| {
            judged.push(Wrong::new(format!("feed {feed}, of {group}: {what}"), CLIENT));
        };
        if !key.ends_with(&feed.0.to_be_bytes()) {
            say("it stands under another feed".to_owned());
        }
        match self.store.queue_head(client)? {
            None => say("its queue is not there".to_owned()),
            Some(head) if feed >= head.next_feed => {
                say(format!("the queue gives {} next", head.next_feed));
            }
            Some(_) => {}
        }
        let head = self.store.head(&keys::hash(group.as_bytes()))?;
        // a copy that nobody is in may be forgotten, and what is left of its readers with their next look
        if let Some(head) = head {
            let end = head.next_sequence.0.saturating_sub(1);
            let last = subscription.last.map_or(end, |last| last.next().0.max(end));
            if subscription.acknowledged.0 > last {
                say(format!("{} is acknowledged, and it ends at {end}", subscription.acknowledged));
            }
            if subscription.from.0 > end + 1 {
                say(format!("it begins at {}, and the group ends at {end}", subscription.from));
            }
        }
        if subscription.filters.is_empty() {
            say("it has no filter".to_owned());
        }
        let pieces: [&[u8]; 3] =
            [client, &keys::hash(group.as_bytes()), &subscription.recipient.0.to_be_bytes()];
        let index = keys::key(tag::SUBSCRIPTION_INDEX, &pieces);
        let points: Option<FeedId> =
            self.store.get(&index, |record| keys::decode("subscription index", record))?;
        if points.is_some_and(|points| points != feed) {
            say("its index points to another feed".to_owned());
        }
        Ok(judged)
    }

    fn subscription_index(&self, key: &[u8], record: &[u8]) -> Judged {
        let feed: FeedId = read!("subscription index", record, CLIENT);
        let Some((client, rest)) = hash_in(key).zip(key.get(17..)) else {
            return wrong(Wrong::new("a short key", RESTORE));
        };
        let at = keys::key(tag::SUBSCRIPTION, &[client, &feed.0.to_be_bytes()]);
        let found: Option<Subscription> =
            self.store.get(&at, |record| keys::decode("subscription", record))?;
        let agrees = found.is_some_and(|found| {
            let group = keys::hash(found.group.as_bytes());
            rest == [group.as_slice(), &found.recipient.0.to_be_bytes()].concat()
        });
        if agrees {
            return Ok(FINE);
        }
        wrong(Wrong::new(format!("it points to feed {feed}, which is not this membership"), CLIENT))
    }

    fn account(&self, key: &[u8], record: &[u8]) -> Judged {
        let (user, account): (String, Account) = read!("account", record, RESTORE);
        let Ok(user) = UserUri::new(user) else {
            return wrong(Wrong::new("its user is none", RESTORE));
        };
        let mut judged = at_its_key(key, &keys::account(&user), &user)?;
        for client in &account.devices {
            let device: Option<(String, Device)> =
                self.store.get(&keys::device(client), |record| keys::decode("device", record))?;
            let what = match device {
                Some((_, device)) if device.deleted_at.is_none() => continue,
                Some(_) => "is deleted",
                None => "is not there",
            };
            let what = format!("its device {client} {what}");
            judged.push(Wrong::of(&user, what, "delete the device anew, or restore a backup"));
        }
        Ok(judged)
    }

    fn device(&self, key: &[u8], record: &[u8]) -> Judged {
        let (client, device): (String, Device) = read!("device", record, CLIENT);
        let Ok(client) = ClientUri::new(client) else {
            return wrong(Wrong::new("its client is none", RESTORE));
        };
        let mut judged = at_its_key(key, &keys::device(&client), &client)?;
        let account: Option<(String, Account)> = self
            .store
            .get(&keys::account(&client.user()), |record| keys::decode("account", record))?;
        let listed = account.is_some_and(|(_, account)| account.devices.contains(&client));
        if device.deleted_at.is_none() && !listed {
            judged.push(Wrong::of(&client, "its account does not have it", RESTORE));
        }
        if Credential::new(device.credential).is_err() {
            judged.push(Wrong::of(&client, "its credential cannot be read", RESTORE));
        }
        let owner: Option<String> = self
            .store
            .get(&keys::queue_index(&device.queue), |record| keys::decode("queue index", record))?;
        if owner.as_deref() != Some(client.as_str()) {
            judged.push(Wrong::of(&client, "its queue is not found by its id", RESTORE));
        }
        Ok(judged)
    }

    fn queue_index(&self, key: &[u8], record: &[u8]) -> Judged {
        let client: String = read!("queue index", record, RESTORE);
        let found: Option<(String, Device)> = self
            .store
            .get(&keys::key(tag::DEVICE, &[&keys::hash(client.as_bytes())]), |record| {
                keys::decode("device", record)
            })?;
        match found {
            Some((_, device)) if key == keys::queue_index(&device.queue) => Ok(FINE),
            Some(_) => wrong(Wrong::of(&client, "its device has another queue", RESTORE)),
            None => wrong(Wrong::of(&client, "it is of a device that is not there", HARMLESS)),
        }
    }

    fn key_package(&self, key: &[u8], record: &[u8]) -> Judged {
        const STOCK: &str = "have the client publish new KeyPackages";
        let stored: StoredKeyPackage = read!("KeyPackage", record, STOCK);
        let mut judged = self.of_device(key)?;
        let reference = keys::hash(stored.reference.0.as_slice());
        if !key.ends_with(&[&stored.published_at.0.to_be_bytes(), reference.as_slice()].concat()) {
            judged.push(Wrong::new("it is another than its key says", STOCK));
        }
        if KeyPackage::new(stored.bytes).is_err() {
            judged.push(Wrong::new("the KeyPackage itself cannot be read", STOCK));
        }
        if let Some(client) = hash_in(key) {
            let index = keys::key(tag::KEY_PACKAGE_INDEX, &[client, &reference]);
            let points = self.store.get(&index, |record| {
                keys::versioned("KeyPackage index", record).map(<[u8]>::to_vec)
            })?;
            if points.as_deref() != Some(key) {
                judged.push(Wrong::new("its index does not point to it", STOCK));
            }
        }
        Ok(judged)
    }

    fn key_package_index(&self, key: &[u8], record: &[u8]) -> Judged {
        let Ok(at) = keys::versioned("KeyPackage index", record) else {
            return wrong(Wrong::new("it cannot be read", HARMLESS));
        };
        let same = at.get(1..17) == key.get(1..17) && at.ends_with(key.get(17..).unwrap_or(key));
        if same && self.store.has(at)? {
            return Ok(FINE);
        }
        wrong(Wrong::new("it points to a KeyPackage that is not there", HARMLESS))
    }

    fn outbound(&self, key: &[u8], record: &[u8]) -> Judged {
        let (owner, until): (String, Sequence) = read!("outbound", record, PEER);
        let Ok((peer, group)) = keys::peer_and_group(&owner) else {
            return wrong(Wrong::new("it names no peer and group", PEER));
        };
        let mut judged = at_its_key(key, &keys::outbound(&peer, &group), &owner)?;
        match self.store.head(&keys::hash(group.as_bytes()))? {
            None => judged.push(Wrong::of(
                &group,
                format!("{peer} is owed of a group that is not there"),
                PEER,
            )),
            Some(head) if until >= head.next_sequence => {
                let what = format!(
                    "{peer} is owed up to {until}, and the group ends before {}",
                    head.next_sequence
                );
                judged.push(Wrong::of(&group, what, PEER));
            }
            Some(_) => {}
        }
        Ok(judged)
    }

    fn replica(&self, key: &[u8], record: &[u8]) -> Judged {
        let (owner, replica) = match keys::decode_replica(record) {
            Ok(read) => read,
            Err(error) => return wrong(Wrong::new(text(error), PEER)),
        };
        let Ok((peer, group)) = keys::peer_and_group(&owner) else {
            return wrong(Wrong::new("it names no peer and group", PEER));
        };
        let mut judged = at_its_key(key, &keys::replica(&peer, &group), &owner)?;
        let head = self.store.head(&keys::hash(group.as_bytes()))?;
        if let Some(head) = head.filter(|head| replica.acknowledged >= head.next_sequence) {
            let what = format!(
                "{peer} has acknowledged {}, and the group ends before {}",
                replica.acknowledged, head.next_sequence
            );
            judged.push(Wrong::of(&group, what, PEER));
        }
        Ok(judged)
    }
}

const PEER: &str = "`mimid peers requeue` sends that peer a snapshot; else restore a backup";

/// The hash that a key has behind its tag.
fn hash_in(key: &[u8]) -> Option<&[u8; 16]> {
    key.get(1..)?.first_chunk::<16>()
}

fn at_its_key(key: &[u8], expected: &Key, of: &impl ToString) -> Judged {
    if key == expected {
        return Ok(FINE);
    }
    wrong(Wrong::of(of, "it stands under the key of another", RESTORE))
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

fn kind_of(key: &[u8]) -> &'static str {
    match key.first().copied().unwrap_or_default() {
        tag::COMMIT_SEQUENCE => "commit sequence",
        tag::NODE => "node record",
        tag::GROUP_HEAD => "group",
        tag::LOG => "log record",
        tag::SNAPSHOT => "snapshot",
        tag::JOINER_INFO => "joiner info",
        tag::GROUP_NOTICE => "group notice",
        tag::FOLLOWED => "followed group",
        tag::FOLLOWED_MEMBER => "followed member",
        tag::DEPARTURE => "departure",
        tag::MOVES => "moves",
        tag::REFUSED_NONCE => "refused nonce",
        tag::LEAVER => "leaver",
        tag::INBOX => "inbox item",
        tag::QUEUE_HEAD => "queue",
        tag::OWN => "own entry",
        tag::SUBSCRIPTION => "subscription",
        tag::SUBSCRIPTION_INDEX => "subscription index",
        tag::ACCOUNT => "account",
        tag::DEVICE => "device",
        tag::KEY_PACKAGE => "KeyPackage",
        tag::KEY_PACKAGE_INDEX => "KeyPackage index",
        tag::TOKEN => "token",
        tag::CONSENT => "consent",
        tag::QUEUE_INDEX => "queue index",
        tag::OUTBOUND => "outbound marker",
        tag::OUTBOUND_ROSTER => "outbound roster",
        tag::REPLICA => "replica",
        _ => "unknown record",
    }
}
