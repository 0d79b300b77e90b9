//! Damage to what is stored: records that are not what was written, and flipped bits in the files of the database.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use mimid::{
    client::{ClientError, core::SUITES},
    crypto::sha256,
    wire::ids::GroupId,
};
use rand::{
    Rng,
    rngs::StdRng,
    seq::{IndexedRandom as _, SliceRandom as _},
};

use super::{
    UNREAD,
    node::{
        DATA, LOG, Node, complaints, copy_folder, passing, register, reopen, seeded, texts, timely,
        user_of,
    },
};
use crate::providers::free_address;

#[tokio::test]
async fn damaged_record_on_sled_is_told_and_isolated() {
    each_kind_is_damaged("sled").await;
}

#[tokio::test]
async fn damaged_record_on_fjall_is_told_and_isolated() {
    each_kind_is_damaged("fjall").await;
}

/// Of each kind one record is damaged while the node is down: it starts, whoever the record does not belong to is served, the
/// log names it once, a metric counts it; and where the record is put back all is as before.
async fn each_kind_is_damaged(engine: &'static str) {
    let (seed, mut random) = seeded();
    let rig = Pairs::new(engine).await;
    let database = rig.base().join(DATA).join("store").join(engine);
    let records = Records::open(engine, &database).all();
    let mut by_tag: BTreeMap<u8, Vec<Vec<u8>>> = BTreeMap::new();
    for key in records.into_iter().filter(|key| key[0] != COMMIT_SEQUENCE) {
        by_tag.entry(key[0]).or_default().push(key);
    }
    let mut tags: Vec<u8> = by_tag.keys().copied().collect();
    tags.shuffle(&mut random);
    if std::env::var("TEST_FAULTS").is_err() {
        tags.truncate(5);
        // a group's head, and a client's queue: their damage cannot go unseen
        tags.extend([0x10, 0x21].into_iter().filter(|tag| !tags.contains(tag)).collect::<Vec<_>>());
    }
    let mut seen = BTreeMap::new();
    for tag in tags {
        // of what belongs to groups, those that are talked in
        let short = rig.groups.each_ref().map(|group| sha256(group.as_bytes())[..16].to_vec());
        let keys = &by_tag[&tag];
        let met: Vec<_> =
            keys.iter().filter(|key| short.iter().any(|of| key[1..].starts_with(of))).collect();
        let key = met.choose(&mut random).copied().or_else(|| keys.choose(&mut random)).unwrap();
        let how = random.random_range(0..3);
        let when =
            format!("{engine}, TEST_SEED={seed}: record {} damaged, {how}", hex::encode(key));
        seen.insert(format!("{tag:02x}"), rig.damaged(key, how, &when).await);
    }
    println!(
        "{engine}, TEST_SEED={seed}: by tag, pairs that were refused and records met: {seen:?}"
    );
    assert_eq!(seen["10"], (1, 1.0), "{seen:?}");
    assert_eq!(seen["21"], (1, 1.0), "{seen:?}");
}

const COMMIT_SEQUENCE: u8 = 1;

/// Two pairs of users who have nothing to do with each other.
struct Pairs {
    engine: &'static str,
    folder: tempfile::TempDir,
    address: SocketAddr,
    groups: [GroupId; 2],
}

const PAIRS: [[&str; 2]; 2] = [["alice", "bob"], ["carol", "dave"]];

impl Pairs {
    async fn new(engine: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        fs::create_dir(&base).unwrap();
        let address = free_address();
        let node = Node::start(engine, &base, address, None).await.unwrap();
        let mut groups = Vec::new();
        for [one, other] in PAIRS {
            let one = register(&base, &node.server(), one).await.unwrap();
            let other = register(&base, &node.server(), other).await.unwrap();
            one.connect(&user_of(&other)).await.unwrap();
            other.receive(0).await.unwrap();
            other.accept(&user_of(&one)).await.unwrap();
            one.receive(0).await.unwrap();
            let group = one.create_group("pair", SUITES[0], None).await.unwrap();
            one.add_users(&group, &[user_of(&other)]).await.unwrap();
            other.receive(0).await.unwrap();
            one.send_text(&group, UNREAD).await.unwrap();
            groups.push(group);
        }
        node.stop().await;
        Self { engine, folder, address, groups: groups.try_into().unwrap() }
    }

    fn base(&self) -> PathBuf {
        self.folder.path().join("base")
    }

    /// How many pairs were refused something while the record under `key` was damaged, and how many damaged records were met.
    async fn damaged(&self, key: &[u8], how: u8, when: &str) -> (usize, f64) {
        println!("{when}");
        let at = tempfile::tempdir_in(self.folder.path()).unwrap();
        copy_folder(&self.base(), at.path());
        fs::remove_file(at.path().join(LOG)).unwrap();
        let database = at.path().join(DATA).join("store").join(self.engine);
        let records = Records::open(self.engine, &database);
        let whole = records.get(key);
        let mut damaged = whole.clone();
        match how {
            // its length
            0 => damaged.truncate(whole.len() / 2),
            // the version of its encoding, or the first byte of a further part
            1 => damaged[4.min(whole.len() - 1)] ^= 0x80,
            _ => damaged = Vec::new(),
        }
        records.put(key, &damaged);
        drop(records);
        let node = Node::start(self.engine, at.path(), self.address, None).await;
        let node = node.unwrap_or_else(|why| panic!("{when}: it does not start: {why}"));
        let mut refused = BTreeSet::new();
        for round in 0..2 {
            for pair in 0..2 {
                if !self.talk(at.path(), pair, &format!("round {round}"), when).await {
                    refused.insert(pair);
                }
            }
        }
        assert!(refused.len() < 2, "{when}: nobody is served\n{}", node.log());
        let log = node.whole_log();
        assert!(!log.contains("panicked"), "{when}: {log}");
        let named: Vec<&str> =
            log.lines().filter(|line| line.contains("a stored record is damaged")).collect();
        let of_this = named.iter().filter(|line| line.contains(&hex::encode(key))).count();
        // an index names what it points to, and a part the record that it is a part of
        assert!(of_this <= 1 && named.len() <= 2, "{when}: {log}");
        let counted = node.sum("mimid_store_damaged_records").await;
        assert_eq!(counted, named.len() as f64, "{when}: {log}");
        if !refused.is_empty() {
            assert!(!named.is_empty(), "{when}: refused, and nobody is told why\n{log}");
        }
        assert_eq!(node.ops("/readyz").await.0, 200, "{when}");
        node.kill();

        let records = Records::open(self.engine, &database);
        records.put(key, &whole);
        drop(records);
        let node = Node::start(self.engine, at.path(), self.address, None).await.unwrap();
        for pair in 0..2 {
            let talk = self.talk(at.path(), pair, "restored", when).await;
            assert!(talk, "{when}: restored, and not well\n{}", node.log());
        }
        assert_eq!(node.sum("mimid_store_damaged_records").await, 0.0, "{when}");
        node.kill();
        (refused.len(), counted)
    }

    /// Says something and reads what the other has said. Whether all of it was done; what was not may be tried again.
    async fn talk(&self, at: &Path, pair: usize, text: &str, when: &str) -> bool {
        let [one, other] = PAIRS[pair].map(|user| reopen(at, user).with_patience(Duration::ZERO));
        let mut well = true;
        let mut judge = |what: &str, error: Option<ClientError>| {
            if let Some(error) = error {
                passing(&error, &format!("{when}: {what}"));
                well = false;
            }
        };
        judge("goes on", timely(one.resume(), when).await.err());
        judge("sends", timely(one.send_text(&self.groups[pair], text), when).await.err());
        judge("receives", timely(one.receive(0), when).await.err());
        judge("stocks up", timely(other.stock_up(), when).await.err());
        judge("receives", timely(other.receive(0), when).await.err());
        let heard = texts(&other, &self.groups[pair]);
        well && heard.iter().any(|it| it == text)
    }
}

/// What an engine holds, beside any node.
pub enum Records {
    Sled(sled::Db),
    Fjall(fjall::Database, fjall::Keyspace),
}

impl Records {
    pub fn open(engine: &str, at: &Path) -> Self {
        if engine == "sled" {
            return Self::Sled(sled::open(at).unwrap());
        }
        let database = fjall::Database::builder(at).open().unwrap();
        let keyspace = database.keyspace("mimid", Default::default).unwrap();
        Self::Fjall(database, keyspace)
    }

    pub fn all(&self) -> Vec<Vec<u8>> {
        match self {
            Self::Sled(db) => db.iter().map(|it| it.unwrap().0.to_vec()).collect(),
            Self::Fjall(_, keyspace) => {
                keyspace.iter().map(|it| it.into_inner().unwrap().0.to_vec()).collect()
            }
        }
    }

    pub fn get(&self, key: &[u8]) -> Vec<u8> {
        match self {
            Self::Sled(db) => db.get(key).unwrap().unwrap().to_vec(),
            Self::Fjall(_, keyspace) => keyspace.get(key).unwrap().unwrap().to_vec(),
        }
    }

    pub fn put(&self, key: &[u8], value: &[u8]) {
        match self {
            Self::Sled(db) => {
                db.insert(key, value).unwrap();
                db.flush().unwrap();
            }
            Self::Fjall(database, keyspace) => {
                keyspace.insert(key, value).unwrap();
                database.persist(fjall::PersistMode::SyncAll).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn flipped_bits_in_the_files_of_sled_make_no_wrong_answer() {
    bits_are_flipped("sled").await;
}

#[tokio::test]
async fn flipped_bits_in_the_files_of_fjall_make_no_wrong_answer() {
    bits_are_flipped("fjall").await;
}

/// Whatever bit of the database's files has changed: the node does not start and says why, or refuses what it cannot read, or answers
/// as before. It never ends by itself, hangs or answers anything else.
async fn bits_are_flipped(engine: &'static str) {
    let (seed, mut random) = seeded();
    let rig = Pairs::new(engine).await;
    let rounds = match std::env::var("TEST_FAULTS").ok().as_deref() {
        Some("all") => 200,
        Some(number) => number.parse().unwrap(),
        None => 3,
    };
    let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
    for round in 1..=rounds {
        let at = tempfile::tempdir_in(rig.folder.path()).unwrap();
        copy_folder(&rig.base(), at.path());
        fs::remove_file(at.path().join(LOG)).unwrap();
        let database = at.path().join(DATA).join("store").join(engine);
        if let (Records::Fjall(_, keyspace), true) =
            (Records::open(engine, &database), random.random())
        {
            // else all is in its journal
            keyspace.rotate_memtable_and_wait().unwrap();
        }
        let flipped = flip(&database, &mut random);
        let when = format!("{engine}, TEST_SEED={seed}, round {round}: {flipped}");
        println!("{when}");
        *ends.entry(rig.after_a_flip(at.path(), &when).await).or_default() += 1;
    }
    println!("{engine}, TEST_SEED={seed}: {rounds} flips: {ends:?}");
}

/// Flips a bit of one of the database's files, any byte as likely as another that is in use. Says where.
fn flip(database: &Path, random: &mut StdRng) -> String {
    let mut files = Vec::new();
    let mut folders = vec![database.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    // what was never written is not worth a round
    let mut used = Vec::new();
    for path in &files {
        let bytes = fs::read(path).unwrap();
        used.extend((0..bytes.len()).filter(|at| bytes[*at] != 0).map(|at| (path, at)));
    }
    // one time in two among all bytes, else in any file, however small
    let file = files.choose(random).unwrap();
    let (path, at) = loop {
        let (path, at) = *used.choose(random).unwrap();
        if path == file || random.random() {
            break (path, at);
        }
    };
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1 << random.random_range(0..8);
    fs::write(path, bytes).unwrap();
    format!("byte {at} of {}", path.strip_prefix(database).unwrap().display())
}

impl Pairs {
    /// How it ends.
    async fn after_a_flip(&self, at: &Path, when: &str) -> &'static str {
        let node = match Node::start(self.engine, at, self.address, None).await {
            Ok(node) => node,
            Err(why) => {
                assert!(why.contains("mimid: "), "{when}: it does not say why it ends: {why}");
                let advises = ["estore", "chmod", "newer mimid"].iter().any(|it| why.contains(it));
                assert!(advises, "{when}: it does not say what to do: {why}");
                return "not started";
            }
        };
        let mut end = "as before";
        for (pair, users) in PAIRS.into_iter().enumerate() {
            if !self.talk(at, pair, "after the flip", when).await {
                end = "refused something";
            }
            for user in users {
                let client = reopen(at, user);
                let heard = texts(&client, &self.groups[pair]);
                let known = |text: &String| text == UNREAD || text == "after the flip";
                assert!(heard.iter().all(known), "{when}: {user} hears {heard:?}");
                let wrong = complaints(&client);
                assert!(wrong.is_empty(), "{when}: {user}: {wrong:?}\n{}", node.log());
                let heard_all = pair == 0 && user == "alice"
                    || pair == 1 && user == "carol"
                    || heard.len() == 2;
                assert!(heard_all || end != "as before", "{when}: {user} hears only {heard:?}");
            }
        }
        // an answer, whatever it says
        node.ops("/readyz").await;
        node.kill();
        end
    }
}
