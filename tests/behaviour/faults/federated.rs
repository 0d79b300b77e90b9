//! Damage to what only providers with peers store: what a hub owes its guests, their copies, groups that have moved, and one that is
//! on its way. Whoever the record does not belong to talks on, nothing panics, and where it is put back all is as before.

use std::time::{Duration, Instant};

use mimid::{
    client::{ClientError, core::SUITES},
    crypto::sha256,
    wire::ids::GroupId,
};
use rand::{Rng, seq::SliceRandom as _};

use super::{
    damage::Records,
    node::{passing, seeded},
};
use crate::providers::{PATIENCE, Player, Provider, Providers, accepted, connect};

const A: usize = 0;
const B: usize = 1;

/// Where a record is damaged, the first byte of its key, and what it is.
const KINDS: [(usize, u8, &str); 12] = [
    (B, 0x10, "the head of a copy"),
    (B, 0x11, "a record of a copy's log"),
    (B, 0x15, "who hosts a copy"),
    (B, 0x16, "who is in a copy"),
    (A, 0x40, "up to where a guest is owed something"),
    (A, 0x41, "the change of a guest's clients"),
    (A, 0x42, "where a guest stands"),
    (A, 0x10, "the head of a group that has moved away"),
    (A, 0x18, "the moves of a group that has gone"),
    (B, 0x18, "the moves of a group that has come"),
    (B, 0x12, "the state of a group that has come"),
    (A, 0x17, "a group that is on its way"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_record_of_what_is_between_providers_is_isolated() {
    let (seed, mut random) = seeded();
    let scene = Scene::new(seed).await;
    let mut kinds = KINDS.to_vec();
    kinds.shuffle(&mut random);
    if std::env::var("TEST_FAULTS").is_err() {
        kinds.truncate(3);
    }
    let mut seen = Vec::new();
    for (at, tag, what) in kinds {
        let how = random.random_range(0..3);
        let when = format!("TEST_SEED={seed}: {what} is damaged, {how}");
        println!("{when}");
        seen.push((what, scene.damaged(at, tag, how, &when).await));
    }
    println!("TEST_SEED={seed}: refused, and records met: {seen:?}");
}

/// A hub a and a guest b. alice and bob, anna and ben talk in a group each, of which only the first is ever damaged.
struct Scene {
    providers: Providers,
    pairs: [[Player; 2]; 2],
    groups: [GroupId; 2],
    /// A client of b that alice asks in and sends away.
    cara: Player,
}

impl Scene {
    async fn new(seed: u64) -> Self {
        let providers = Providers::start(&["a.example", "b.example"], seed).await;
        let mut pairs = Vec::new();
        let mut groups = Vec::new();
        for [one, other] in [["alice", "bob"], ["anna", "ben"]] {
            let one = player(&providers, &format!("{one}@a.example/phone")).await;
            let other = player(&providers, &format!("{other}@b.example/phone")).await;
            connect(&one, &other).await;
            groups.push(together(&one, &other).await);
            pairs.push([one, other]);
        }
        let pairs: [[Player; 2]; 2] = pairs.try_into().ok().unwrap();
        let cara = player(&providers, "cara@b.example/phone").await;
        connect(&pairs[0][0], &cara).await;
        Self { providers, pairs, groups: groups.try_into().unwrap(), cara }
    }

    fn provider(&self, at: usize) -> &Provider {
        &self.providers.all[at]
    }

    /// Whether something was refused to those that the record belongs to, and how many damaged records were met.
    async fn damaged(&self, at: usize, tag: u8, how: u8, when: &str) -> (bool, f64) {
        let group = self.there_is(tag, when).await;
        self.provider(A).kill();
        self.provider(A).go_on();
        self.provider(B).kill();
        let database = self.provider(at).store().join("sled");
        let records = Records::open("sled", &database);
        let of = &sha256(group.as_bytes())[..16];
        let key = records.all().into_iter().rfind(|key| {
            let at = if tag >= 0x40 { 1 + 16 } else { 1 };
            key[0] == tag && key[at..].starts_with(of)
        });
        let key = key.unwrap_or_else(|| panic!("{when}: there is no such record"));
        let whole = records.get(&key);
        let damage = match how {
            0 => whole[..whole.len() / 2].to_vec(),
            1 => [&whole[..4], &[whole[4] ^ 0x80], &whole[5..]].concat(),
            _ => Vec::new(),
        };
        records.put(&key, &damage);
        drop(records);

        self.start(when).await;
        let refused = !self.try_to_talk(&group, when).await;
        self.talk(1, &self.groups[1], when).await;
        let until = Instant::now() + PATIENCE;
        let met = loop {
            match self.provider(at).metric("mimid_store_damaged_records").await {
                0.0 => assert!(Instant::now() < until, "{when}: its operator is not told"),
                met => break met,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert!(met <= 2.0, "{when}: {met}");
        self.are_well(when);

        self.provider(at).kill();
        let records = Records::open("sled", &database);
        records.put(&key, &whole);
        drop(records);
        self.provider(at).start().await;
        for (pair, of) in [(0, &group), (0, &self.groups[0]), (1, &self.groups[1])] {
            self.talk(pair, of, &format!("{when}, restored")).await;
        }
        assert_eq!(self.provider(at).metric("mimid_store_damaged_records").await, 0.0, "{when}");
        self.are_well(when);
        (refused, met)
    }

    /// Sees to it that there is such a record, and says of which group.
    async fn there_is(&self, tag: u8, when: &str) -> GroupId {
        let [alice, bob] = &self.pairs[0];
        match tag {
            0x10 if when.contains("moved away") => self.moved(alice, bob).await,
            0x12 | 0x18 => self.moved(alice, bob).await,
            0x17 => {
                let group = together(alice, bob).await;
                self.provider(A).stop_at("source.before-confirm");
                let target = self.provider(B).domain.clone();
                accepted(alice.client.migrate(&group, &target).await);
                let until = Instant::now() + PATIENCE;
                while !self.provider(A).has_stopped() {
                    assert!(Instant::now() < until, "{when}: it does not come so far");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                group
            }
            0x11 => {
                let group = self.with_cara(alice, bob).await;
                accepted(alice.client.send_text(&group, "what bob has not read yet").await);
                // it has come to b, which keeps it for bob
                self.cara.until_hears(&group, "what bob has not read yet").await;
                group
            }
            0x42 => {
                let group = together(alice, bob).await;
                self.talk(0, &group, "what b has answered for").await;
                // that is written down now and then, and at the end
                self.provider(A).stop().await;
                group
            }
            0x40 | 0x41 => {
                let group = self.with_cara(alice, bob).await;
                self.provider(B).kill();
                accepted(alice.client.send_text(&group, "while b is away").await);
                let cara = vec![self.cara.user.clone()];
                accepted(alice.client.remove_users(&group, cara).await);
                group
            }
            _ => self.groups[0].clone(),
        }
    }

    async fn with_cara(&self, alice: &Player, bob: &Player) -> GroupId {
        let group = together(alice, bob).await;
        let cara = std::slice::from_ref(&self.cara.user);
        accepted(alice.client.add_users(&group, cara).await);
        self.cara.until_in(&group).await;
        group
    }

    async fn moved(&self, alice: &Player, bob: &Player) -> GroupId {
        let group = together(alice, bob).await;
        let target = self.provider(B).domain.clone();
        accepted(alice.client.migrate(&group, &target).await);
        self.talk(0, &group, "it has moved").await;
        group
    }

    async fn start(&self, when: &str) {
        for provider in &self.providers.all {
            println!("{when}: {} starts", provider.domain);
            provider.start().await;
        }
    }

    fn are_well(&self, when: &str) {
        for provider in &self.providers.all {
            let panics = provider.panics();
            assert!(panics.is_empty(), "{when}: {panics:?}");
        }
        for player in self.pairs.iter().flatten() {
            let complaints = player.complaints();
            assert!(complaints.is_empty(), "{when}: {}: {complaints:?}", player.uri);
        }
    }

    /// Each says something, once, whatever comes of it. Whether both were answered, and heard.
    async fn try_to_talk(&self, group: &GroupId, when: &str) -> bool {
        let mut well = true;
        for player in &self.pairs[0] {
            let said = player.client.send_text(group, &format!("{} {when}", player.uri)).await;
            let heard = player.client.receive(0).await;
            for error in said.map(drop).err().into_iter().chain(heard.map(drop).err()) {
                passing(&error, when);
                well = false;
            }
        }
        well
    }

    /// Each says something that the other hears, however long it takes.
    async fn talk(&self, pair: usize, group: &GroupId, about: &str) {
        for (by, to) in [(0, 1), (1, 0)] {
            let (one, other) = (&self.pairs[pair][by], &self.pairs[pair][to]);
            let text = format!("{} to {}, {about}", one.uri, other.uri);
            says(one, group, &text).await;
            let until = Instant::now() + PATIENCE;
            while !other.said(group).iter().any(|(_, said)| *said == text) {
                assert!(Instant::now() < until, "{about}: {} hears nothing", other.uri);
                if let Err(error) = other.client.receive(200).await {
                    passing(&error, about);
                }
            }
        }
    }
}

/// A client that does not wait long for a provider that is not well.
async fn player(providers: &Providers, name: &str) -> Player {
    let Player { client, user, uri } = providers.client(name).await;
    Player { client: client.with_patience(Duration::from_secs(1)), user, uri }
}

/// A new group of the two.
async fn together(one: &Player, other: &Player) -> GroupId {
    let group = one.client.create_group("both", SUITES[0], None).await.unwrap();
    accepted(one.client.add_users(&group, std::slice::from_ref(&other.user)).await);
    other.until_in(&group).await;
    group
}

/// Says it, and tries again what was not answered.
async fn says(player: &Player, group: &GroupId, text: &str) {
    let until = Instant::now() + PATIENCE;
    let mut said: Result<(), ClientError> = player.client.send_text(group, text).await.map(drop);
    while let Err(error) = said {
        passing(&error, text);
        assert!(Instant::now() < until, "{}: {text}: {error}", player.uri);
        tokio::time::sleep(Duration::from_millis(50)).await;
        said = player.client.resume().await.map(drop);
    }
}
