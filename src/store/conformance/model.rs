//! The store as plain maps, and random batches for both.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use proptest::prelude::*;

use super::{
    Place,
    samples::{self, *},
};
use crate::{
    store::{Batch, Condition, SharedStore, StoreError, Write, records::*},
    wire::ids::*,
};

/// What happens to a store.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Batches that wait together, so that they share a flush.
    Together(Vec<Change>),
    /// One batch in the low-priority lane.
    Low(Change),
    Reopen,
}

#[derive(Debug, Clone)]
pub(super) struct Change {
    /// A group that must be at this revision.
    condition: Option<(u8, u64)>,
    ops: Vec<Op>,
}

#[derive(Debug, Clone)]
enum Op {
    Head { group: u8, revision: u64 },
    Log { group: u8, at: u64, size: usize },
    Trim { group: u8, from: u64, until: u64 },
    Snapshot { group: u8, at: u64, size: usize },
    DropSnapshot { group: u8, at: u64 },
    DropGroup { group: u8 },
    Own { client: u8, at: u64 },
    TrimOwn { client: u8, until: u64 },
    Inbox { client: u8, at: u64 },
    InboxTaken { client: u8, at: u64 },
    KeyPackage { client: u8, name: u8, published_at: u64 },
    DropKeyPackage { client: u8, name: u8 },
    DropQueue { client: u8 },
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => proptest::collection::vec(change(), 1..6).prop_map(Step::Together),
        2 => change().prop_map(Step::Low),
        1 => Just(Step::Reopen),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let condition = proptest::option::weighted(0.3, (0..2_u8, 0..4_u64));
    (condition, proptest::collection::vec(op(), 0..8))
        .prop_map(|(condition, ops)| Change { condition, ops })
}

fn op() -> impl Strategy<Value = Op> {
    let size = || {
        prop_oneof![
            4 => prop::sample::select(vec![0, 100, 4_100, 9_000]),
            1 => 0..20_000_usize,
        ]
    };
    let large = prop_oneof![8 => size(), 1 => Just(600_000_usize)];
    let (one, at) = (|| 0..2_u8, || 0..8_u64);
    prop_oneof![
        3 => (one(), 0..4_u64).prop_map(|(group, revision)| Op::Head { group, revision }),
        6 => (one(), at(), size()).prop_map(|(group, at, size)| Op::Log { group, at, size }),
        2 => (one(), at(), at()).prop_map(|(group, from, until)| Op::Trim { group, from, until }),
        3 => (one(), at(), large)
            .prop_map(|(group, at, size)| Op::Snapshot { group, at, size }),
        2 => (one(), at()).prop_map(|(group, at)| Op::DropSnapshot { group, at }),
        1 => one().prop_map(|group| Op::DropGroup { group }),
        3 => (one(), at()).prop_map(|(client, at)| Op::Own { client, at }),
        1 => (one(), at()).prop_map(|(client, until)| Op::TrimOwn { client, until }),
        3 => (one(), at()).prop_map(|(client, at)| Op::Inbox { client, at }),
        2 => (one(), at()).prop_map(|(client, at)| Op::InboxTaken { client, at }),
        3 => (one(), 0..4_u8, at()).prop_map(|(client, name, published_at)| {
            Op::KeyPackage { client, name, published_at }
        }),
        2 => (one(), 0..4_u8).prop_map(|(client, name)| Op::DropKeyPackage { client, name }),
        1 => one().prop_map(|client| Op::DropQueue { client }),
    ]
}

/// What a store must hold.
#[derive(Debug, Default)]
struct Model {
    heads: BTreeMap<u8, u64>,
    log: BTreeMap<(u8, u64), LogRecord>,
    snapshots: BTreeMap<(u8, u64), Vec<u8>>,
    own: BTreeMap<(u8, u64), OwnEntry>,
    inbox: BTreeMap<(u8, u64), InboxItem>,
    key_packages: BTreeMap<(u8, u8), u64>,
}

/// Names of their own for each case, since all share one place.
#[derive(Clone, Copy)]
struct Names(u64);

impl Names {
    fn new() -> Self {
        static CASES: AtomicU64 = AtomicU64::new(0);
        Self(CASES.fetch_add(1, Ordering::Relaxed))
    }

    fn group(self, group: u8) -> String {
        format!("{}-{group}", self.0)
    }

    fn client(self, client: u8) -> ClientUri {
        samples::client(&format!("c{}-{client}", self.0))
    }
}

pub(super) async fn check(place: &Place, steps: &[Step]) {
    let names = Names::new();
    let mut model = Model::default();
    let mut store = place.open();
    for step in steps {
        match step {
            Step::Together(changes) => {
                place.faults().hold();
                let answers: Vec<_> =
                    changes.iter().map(|change| store.write(change.batch(names, false))).collect();
                place.faults().release();
                for (change, answer) in changes.iter().zip(answers) {
                    assert_eq!(answer.await, model.apply(change));
                }
            }
            Step::Low(change) => {
                let answer = store.write(change.batch(names, true)).await;
                assert_eq!(answer, model.apply(change));
            }
            Step::Reopen => {
                drop(store);
                store = place.open();
            }
        }
        model.compare(&store, names).await;
    }
}

impl Change {
    fn batch(&self, names: Names, low_priority: bool) -> Batch {
        let conditions = self.condition.iter().map(|(of, revision)| Condition::GroupAt {
            group: group(&names.group(*of)),
            next_sequence: Sequence(1),
            revision: *revision,
        });
        let writes = self.ops.iter().map(|op| op.write(names));
        Batch {
            conditions: conditions.collect(),
            writes: writes.collect(),
            low_priority,
            times: None,
        }
    }
}

impl Op {
    fn write(&self, names: Names) -> Write {
        let group_of = |of: u8| group(&names.group(of));
        match *self {
            Op::Head { group, revision } => {
                Write::GroupHead(head(&names.group(group), 1, revision))
            }
            Op::Log { group, at, size } => {
                Write::Log { group: group_of(group), record: record(at, size / 2, size) }
            }
            Op::Trim { group, from, until } => Write::TrimLog {
                group: group_of(group),
                from: Sequence(from),
                until: Sequence(until),
            },
            Op::Snapshot { group, at, size } => {
                Write::Snapshot { group: group_of(group), at: Sequence(at), bytes: noise(at, size) }
            }
            Op::DropSnapshot { group, at } => {
                Write::DropSnapshot { group: group_of(group), at: Sequence(at) }
            }
            Op::DropGroup { group } => Write::DropGroup(group_of(group)),
            Op::Own { client, at } => {
                Write::Own { client: names.client(client), entry: own_entry(at) }
            }
            Op::TrimOwn { client, until } => {
                Write::TrimOwn { client: names.client(client), until: OwnSequence(until) }
            }
            Op::Inbox { client, at } => Write::Inbox {
                client: names.client(client),
                key: inbox_key("g", at, 0),
                item: inbox_item(at),
            },
            Op::InboxTaken { client, at } => {
                Write::InboxTaken { client: names.client(client), key: inbox_key("g", at, 0) }
            }
            Op::KeyPackage { client, name, published_at } => Write::KeyPackage {
                client: names.client(client),
                key_package: key_package(name, published_at),
            },
            Op::DropKeyPackage { client, name } => {
                Write::DropKeyPackage { client: names.client(client), key_package: reference(name) }
            }
            Op::DropQueue { client } => Write::DropQueue(names.client(client)),
        }
    }
}

impl Model {
    fn apply(&mut self, change: &Change) -> Result<(), StoreError> {
        if let Some((group, revision)) = change.condition
            && self.heads.get(&group) != Some(&revision)
        {
            return Err(StoreError::Conflict { condition: 0 });
        }
        for op in &change.ops {
            self.run(op);
        }
        Ok(())
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Head { group, revision } => drop(self.heads.insert(group, revision)),
            Op::Log { group, at, size } => {
                self.log.insert((group, at), record(at, size / 2, size));
            }
            Op::Trim { group, from, until } => {
                self.log.retain(|(of, at), _| *of != group || !(from..until).contains(at));
            }
            Op::Snapshot { group, at, size } => {
                self.snapshots.insert((group, at), noise(at, size));
            }
            Op::DropSnapshot { group, at } => drop(self.snapshots.remove(&(group, at))),
            Op::DropGroup { group } => {
                self.log.retain(|(of, _), _| *of != group);
                self.snapshots.retain(|(of, _), _| *of != group);
            }
            Op::Own { client, at } => drop(self.own.insert((client, at), own_entry(at))),
            Op::TrimOwn { client, until } => {
                self.own.retain(|(of, at), _| *of != client || *at > until);
            }
            Op::Inbox { client, at } => drop(self.inbox.insert((client, at), inbox_item(at))),
            Op::InboxTaken { client, at } => drop(self.inbox.remove(&(client, at))),
            Op::KeyPackage { client, name, published_at } => {
                self.key_packages.insert((client, name), published_at);
            }
            Op::DropKeyPackage { client, name } => {
                self.key_packages.remove(&(client, name));
            }
            Op::DropQueue { client } => {
                self.own.retain(|(of, _), _| *of != client);
                self.inbox.retain(|(of, _), _| *of != client);
                self.key_packages.retain(|(of, _), _| *of != client);
            }
        }
    }

    async fn compare(&self, store: &SharedStore, names: Names) {
        for one in 0..2 {
            let (name, client) = (names.group(one), names.client(one));
            let id = group(&name);
            let revision = self.heads.get(&one);
            let expected = revision.map(|revision| head(&name, 1, *revision));
            assert_eq!(store.group_head(&id).await.unwrap(), expected);
            let log = of(&self.log, one);
            let feed: Vec<_> = log.iter().map(|record| record.feed.clone()).collect();
            assert!(store.log(&id, Sequence(0), ALL).await.unwrap() == log);
            assert!(store.feed(&id, Sequence(0), ALL).await.unwrap() == feed);
            for at in 0..8 {
                let found = store.snapshot(&id, Sequence(at)).await.unwrap();
                assert!(found.as_ref() == self.snapshots.get(&(one, at)), "snapshot {at}");
            }
            let own = store.own(&client, OwnSequence(0), ALL).await.unwrap();
            assert_eq!(own, of(&self.own, one));
            let inbox = store.inbox(&client, ALL).await.unwrap().items;
            let inbox: Vec<_> = inbox.into_iter().map(|(_, item)| item).collect();
            assert_eq!(inbox, of(&self.inbox, one));
            let mut found: Vec<_> = store
                .key_packages(&client, 100)
                .await
                .unwrap()
                .into_iter()
                .map(|found| (found.published_at.0, found))
                .collect();
            assert!(found.is_sorted_by_key(|(at, _)| *at));
            found.sort_by_key(|(at, found)| (*at, found.bytes.clone()));
            let mut expected: Vec<_> = self
                .key_packages
                .iter()
                .filter(|((of, _), _)| *of == one)
                .map(|((_, name), at)| (*at, key_package(*name, *at)))
                .collect();
            expected.sort_by_key(|(at, found)| (*at, found.bytes.clone()));
            assert_eq!(found, expected);
        }
    }
}

fn of<V: Clone>(map: &BTreeMap<(u8, u64), V>, one: u8) -> Vec<V> {
    map.range((one, 0)..=(one, u64::MAX)).map(|(_, value)| value.clone()).collect()
}
