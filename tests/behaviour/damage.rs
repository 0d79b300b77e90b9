//! `mimid verify` finds whatever is wrong with a store: a backup of a provider at work is damaged in one place after the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use mimid::store::{
    OpenError,
    backup::{BackupError, Part, Reader, Writer, write_store},
    verify::{Problem, verify},
};

/// Keys and values as they are stored: a record under its own key, with its length (4 bytes) and its first part, the rest
/// of it under keys that begin with [`PART`].
pub type Records = BTreeMap<Vec<u8>, Vec<u8>>;

const GROUP_HEAD: u8 = 0x10;
const LOG: u8 = 0x11;
const SNAPSHOT: u8 = 0x12;
const FOLLOWED: u8 = 0x15;
const QUEUE_HEAD: u8 = 0x21;
const OWN: u8 = 0x22;
const SUBSCRIPTION: u8 = 0x23;
const ACCOUNT: u8 = 0x30;
const DEVICE: u8 = 0x31;
const KEY_PACKAGE: u8 = 0x32;
const KEY_PACKAGE_INDEX: u8 = 0x33;
const QUEUE_INDEX: u8 = 0x36;
const PART: u8 = 0xf0;

/// What `mimid verify` calls each kind, by the first byte of its keys.
const KINDS: [(u8, &str); 27] = [
    (0x02, "node record"),
    (GROUP_HEAD, "group"),
    (LOG, "log record"),
    (SNAPSHOT, "snapshot"),
    (0x13, "joiner info"),
    (0x14, "group notice"),
    (FOLLOWED, "followed group"),
    (0x16, "followed member"),
    (0x17, "departure"),
    (0x18, "moves"),
    (0x19, "refused nonce"),
    (0x1a, "leaver"),
    (0x20, "inbox item"),
    (QUEUE_HEAD, "queue"),
    (OWN, "own entry"),
    (SUBSCRIPTION, "subscription"),
    (0x24, "subscription index"),
    (ACCOUNT, "account"),
    (DEVICE, "device"),
    (KEY_PACKAGE, "KeyPackage"),
    (KEY_PACKAGE_INDEX, "KeyPackage index"),
    (0x34, "token"),
    (0x35, "consent"),
    (QUEUE_INDEX, "queue index"),
    (0x40, "outbound marker"),
    (0x41, "outbound roster"),
    (0x42, "replica"),
];

pub fn records_of(backup: &Path) -> Records {
    let mut reader = Reader::open(backup).unwrap();
    let mut records = Records::new();
    loop {
        match reader.next_part().unwrap() {
            Part::Records(piece) => {
                for (key, value) in piece {
                    match value {
                        Some(value) => records.insert(key, value),
                        None => records.remove(&key),
                    };
                }
            }
            Part::File(_) => {}
            Part::End(_) => return records,
        }
    }
}

/// What is wrong with a store of these records.
pub fn problems(backup: &Path, records: &Records) -> Vec<Problem> {
    let folder = tempfile::tempdir().unwrap();
    let (damaged, store) = (folder.path().join("backup"), folder.path().join("store"));
    let reader = Reader::open(backup).unwrap();
    let mut writer = Writer::create(&damaged, &reader.header).unwrap();
    let all: Vec<_> =
        records.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
    all.chunks(500).for_each(|piece| writer.records(piece).unwrap());
    let sequence = reader.check().unwrap().sequence;
    writer.finish(sequence).unwrap();
    once_free(|| {
        // of a try before this one
        let _ = std::fs::remove_dir_all(&store);
        write_store(&damaged, &store, "fjall", |_| Ok(())).map(drop)
    });
    let mut problems = Vec::new();
    once_free(|| {
        problems.clear();
        let summary = verify(&store, &mut |problem| problems.push(problem))?;
        assert_eq!(summary.problems, problems.len() as u64);
        Ok(())
    });
    problems
}

/// A process that another test of this one starts has a copy of the lock for a moment, until it is itself.
fn once_free(mut does: impl FnMut() -> Result<(), BackupError>) {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match does() {
            Err(BackupError::Open(OpenError::InUse { .. })) if Instant::now() < until => {
                std::thread::yield_now();
            }
            done => return done.unwrap(),
        }
    }
}

fn of_kind(records: &Records, tag: u8) -> Vec<Vec<u8>> {
    records.keys().filter(|key| key.first() == Some(&tag)).cloned().collect()
}

/// Checks that a whole store is found to be whole, and that each damage is named.
pub fn every_damage_is_named(backup: &Path, kinds_there: &[u8]) {
    let whole = records_of(backup);
    let found = problems(backup, &whole);
    assert!(found.is_empty(), "{found:#?}");
    let there: BTreeSet<u8> = whole.keys().filter_map(|key| key.first().copied()).collect();
    for kind in kinds_there {
        assert!(there.contains(kind), "{kind:#x} is in none of the records");
    }
    let damaged = |what: &str, damage: &dyn Fn(&mut Records)| {
        let mut records = whole.clone();
        damage(&mut records);
        assert!(records != whole, "{what}: nothing is damaged");
        let found = problems(backup, &records);
        assert!(!found.is_empty(), "{what}: nothing was found");
        found
    };
    let names = |what: &str, damage: &dyn Fn(&mut Records), record: &str, wrong: &str| {
        let found = damaged(what, damage);
        let named = |it: &Problem| it.record == record && it.wrong.contains(wrong);
        assert!(found.iter().any(named), "{what}: {found:#?}");
        assert!(found.iter().all(|it| !it.remedy.is_empty() && !it.of.is_empty()));
    };

    // an encoding that is not known, in a record of each kind; of kinds that this store has none of a record that is nonsense
    for (tag, kind) in KINDS {
        let damage = |records: &mut Records| match of_kind(records, tag).last() {
            Some(key) => records.get_mut(key).unwrap()[4] ^= 0x40,
            None => {
                records.insert(vec![tag; 50], [&[0, 0, 0, 3], [1, 0xff, 0xff].as_slice()].concat());
            }
        };
        let found = damaged(kind, &damage);
        assert!(found.iter().any(|it| it.record == kind), "{kind}: {found:#?}");
    }
    // cut short, and without its rest
    let first = |tag: u8| of_kind(&whole, tag).first().unwrap().clone();
    let shorter = |records: &mut Records| {
        records.get_mut(&first(DEVICE)).unwrap().pop();
    };
    names("a record is cut", &shorter, "device", "not as long as it says");
    let lost_part = damaged("a part is lost", &|it| drop(it.remove(&first(PART))));
    assert!(lost_part.iter().any(|it| it.wrong.contains("part 1 of")), "{lost_part:#?}");

    // records that are lost
    let logs = of_kind(&whole, GROUP_HEAD).into_iter().map(|head| {
        let mut log = of_kind(&whole, LOG);
        log.retain(|key| key[1..17] == head[1..17]);
        (head, log)
    });
    let (head, log) = logs.max_by_key(|(_, log)| log.len()).unwrap();
    assert!(log.len() > 4, "{} records", log.len());
    let lose = |key: &[u8]| {
        let key = key.to_vec();
        move |records: &mut Records| {
            records.remove(&key);
            let parts: Vec<_> = of_kind(records, PART)
                .into_iter()
                .filter(|part| part[1..].starts_with(&key))
                .collect();
            parts.iter().for_each(|part| drop(records.remove(part)));
        }
    };
    names("the log's last record", &lose(log.last().unwrap()), "group", "the last, is not there");
    names("one in its midst", &lose(&log[log.len() / 2]), "log record", "are not there");
    names("a group's head", &lose(&head), "log record", "a group that is not there");
    names("an account", &lose(&first(ACCOUNT)), "device", "its account does not have it");
    names("a device", &lose(&first(DEVICE)), "account", "is not there");
    names("the way to a queue", &lose(&first(QUEUE_INDEX)), "device", "not found by its id");
    names("a queue", &lose(&first(QUEUE_HEAD)), "subscription", "its queue is not there");
    names("a membership", &lose(&first(SUBSCRIPTION)), "subscription index", "points to feed");
    names("a KeyPackage", &lose(&first(KEY_PACKAGE)), "KeyPackage index", "not there");
    names("its index", &lose(&first(KEY_PACKAGE_INDEX)), "KeyPackage", "its index");
    let own = of_kind(&whole, OWN);
    names("an entry for one alone", &lose(own.last().unwrap()), "queue", "is not there");
    let snapshots = of_kind(&whole, SNAPSHOT);
    for snapshot in &snapshots {
        names("a snapshot", &lose(snapshot), "group", "is not there");
    }

    // records that are another's
    let heads = of_kind(&whole, GROUP_HEAD);
    let swapped = |records: &mut Records| {
        let (one, other) = (records[&heads[0]].clone(), records[&heads[1]].clone());
        records.insert(heads[0].clone(), other);
        records.insert(heads[1].clone(), one);
    };
    names("two heads change places", &swapped, "group", "the key of another");
    // two that stand whole under their own keys
    let mut pairs = log.windows(2);
    let pair = pairs.find(|pair| pair.iter().all(|key| whole[key].len() < 4_000)).unwrap();
    let doubled = |records: &mut Records| {
        let again = records[&pair[0]].clone();
        records.insert(pair[1].clone(), again);
    };
    names("a record of the log stands for another", &doubled, "log record", "that says it is");

    // what decodes, and is in its place, and is not what was written: only the log's chain tells
    let messages: Vec<_> = log
        .iter()
        .filter(|key| matches!(feed_of(&whole[*key]), Some(feed) if whole[*key][feed.start] < 0x80))
        .collect();
    let [.., one, other] = messages.as_slice() else { panic!("no messages") };
    let changed = |records: &mut Records| {
        let end = feed_of(&whole[*one]).unwrap().end;
        records.get_mut(*one).unwrap()[end - 1] ^= 1;
    };
    names("a message is another", &changed, "log record", "the chain breaks at record");
    let exchanged = |records: &mut Records| {
        records.insert((*one).clone(), in_place_of(&whole[*one], &whole[*other]));
        records.insert((*other).clone(), in_place_of(&whole[*other], &whole[*one]));
    };
    names("two messages change places", &exchanged, "log record", "the chain breaks at record");
    let of_before = |records: &mut Records| {
        let value = records.get_mut(*one).unwrap();
        // encoding 2 has no link
        value[4] = 2;
        value.drain(9..25);
        let len = (value.len() as u32 - 4).to_be_bytes();
        value[..4].copy_from_slice(&len);
    };
    names("one without a link", &of_before, "log record", "an older record stands for it");
    let last = |records: &mut Records| {
        let end = feed_of(&whole[log.last().unwrap()]).unwrap().end;
        records.get_mut(log.last().unwrap()).unwrap()[end - 1] ^= 1;
    };
    names("the last is another", &last, "log record", "it is not the log of this head");

    // what members signed: the tree and the context in a snapshot
    let snapshot = &snapshots[0];
    let len = whole[snapshot].len();
    // it begins with the tree, behind the group's id; a byte in it may say the same in another way
    let places: Vec<_> = (100..(len / 2).min(3_600)).step_by(67).collect();
    let named = places.iter().filter(|at| {
        let mut records = whole.clone();
        records.get_mut(snapshot).unwrap()[**at] ^= 1;
        problems(backup, &records).iter().any(|it| it.record == "group")
    });
    let named = named.count();
    assert!(named * 10 >= places.len() * 8, "{named} of {}", places.len());
}

/// Checks that a copy of a group elsewhere that has lost its whole log is named.
pub fn a_copy_without_its_log_is_named(backup: &Path) {
    let mut records = records_of(backup);
    let found = problems(backup, &records);
    assert!(found.is_empty(), "{found:#?}");
    let followed = of_kind(&records, FOLLOWED);
    let is_of_copy = |key: &[u8]| followed.iter().any(|copy| copy[1..17] == key[1..17]);
    let log: Vec<_> = of_kind(&records, LOG).into_iter().filter(|key| is_of_copy(key)).collect();
    assert!(log.len() > 1, "{} records", log.len());
    for key in &log {
        records.retain(|it, _| it != key && !(it[0] == PART && it[1..].starts_with(key)));
    }
    let found = problems(backup, &records);
    let named = |it: &Problem| it.record == "group" && it.wrong.contains("no record is there");
    assert!(found.iter().any(named), "{found:#?}");
}

/// Where the delivery part is in a log record of today's encoding that stands whole under its own key: length (4), version (1),
/// length of that part (4), link (16).
fn feed_of(value: &[u8]) -> Option<std::ops::Range<usize>> {
    let len = u32::from_be_bytes(*value.get(5..)?.first_chunk()?) as usize;
    let feed = 25..25 + len;
    (value.len() < 4_000 && value[4] == 3 && feed.end <= value.len()).then_some(feed)
}

/// The record `other` with the link and the sequence (a byte) of `own`.
fn in_place_of(own: &[u8], other: &[u8]) -> Vec<u8> {
    let mut value = other.to_vec();
    value[9..26].copy_from_slice(&own[9..26]);
    value
}
