//! How long members of a group wait while it moves: between two provider processes over TLS sockets on loopback, with stores on
//! disk, by size. Half of the members are at either provider. There and back, many times, with the client library as it is.
//!
//! The pause of a member is from its last message that the old hub accepted until its first one that the new hub accepted. It
//! writes one after the other all the while, and comes again when it is told to: it is not the one that moves the group. What the
//! mover takes is from before it asks the target until its first message at the new hub: its Commit is made in that time.

use std::{
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, SamplingMode};
use mimid::{
    client::{
        Client, Outcome, Registration,
        core::Home,
        http::{Caller, Http},
        system_clock,
    },
    wire::{
        client::{Flag, MintedTokens, ProviderKeys, ProviderKeysAnswer, QueueTokens, Registered},
        codec::List,
        ds::Accepted,
        encode,
        extensions::{JoinPolicy, KeyPackageClass, PublicKey, QueueToken, Role},
        ids::{ClientUri, Domain, GroupId},
    },
};
use tokio::runtime::Runtime;

use crate::{
    providers::{PATIENCE, Peer, Provider},
    support::synth::{Synth, SynthMember, member, system_now},
};

/// A group on two providers, and two real clients in it.
struct Scene {
    providers: [Provider; 2],
    _folder: tempfile::TempDir,
    group: GroupId,
    /// Of the first provider: it moves the group.
    mover: Client,
    /// Of the second one: it writes.
    writer: Client,
    hub: usize,
    said: u64,
}

/// One move.
struct Pause {
    writer: Duration,
    mover: Duration,
}

pub fn pauses(c: &mut Criterion) {
    let sizes: &[usize] = if crate::is_test() { &[10] } else { &[10, 100, 1000] };
    let runtime = Arc::new(Runtime::new().unwrap());
    let mut table = Vec::new();
    let mut group = c.benchmark_group("pause of a group on the move");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for &size in sizes {
        // made only where the filter asks for it
        let mut scene: Option<Scene> = None;
        let mut pauses = Vec::new();
        group.bench_with_input(BenchmarkId::new("members", size), &size, |b, &size| {
            let scene = scene.get_or_insert_with(|| runtime.block_on(Scene::of(size)));
            b.iter_custom(|rounds| {
                let mut sum = Duration::ZERO;
                for _ in 0..rounds {
                    let pause = scene.move_on(&runtime);
                    sum += pause.writer;
                    pauses.push(pause);
                }
                sum
            });
        });
        if !pauses.is_empty() {
            table.push((size, pauses));
        }
    }
    group.finish();
    if table.is_empty() {
        return;
    }
    println!("\npause of a group on the move, there and back: median and longest, in ms");
    println!("members  moves    pause of a member that writes    what the mover takes in all");
    for (size, pauses) in table {
        let of = |one: fn(&Pause) -> Duration| {
            let mut all: Vec<f64> = pauses.iter().map(|it| one(it).as_secs_f64() * 1e3).collect();
            all.sort_by(f64::total_cmp);
            (all[all.len() / 2], all[all.len() - 1])
        };
        let (writer, mover) = (of(|it| it.writer), of(|it| it.mover));
        println!(
            "{size:>7}  {:>5}    {:>14.0} {:>14.0}    {:>13.0} {:>13.0}",
            pauses.len(),
            writer.0,
            writer.1,
            mover.0,
            mover.1
        );
    }
}

impl Scene {
    async fn of(size: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let providers = start(folder.path()).await;
        let domains = providers.each_ref().map(|it| it.domain.clone());
        let register = async |at: usize, user: &str| {
            let registration = Registration {
                client: ClientUri::new(format!("mimi://{}/d/{user}/phone", domains[at])).unwrap(),
                server: providers[at].server(),
                token: Vec::new(),
                authorization: None,
            };
            let home = Home::in_memory().unwrap();
            Client::register(home, registration, system_clock()).await.unwrap()
        };
        let (mover, writer) = (register(0, "alice").await, register(1, "bob").await);
        let doors = providers.each_ref().map(|provider| {
            let server = provider.server();
            Http::new(&server.url, server.certificate.as_ref().map(String::as_bytes)).unwrap()
        });
        // everybody but the two
        let members: Vec<SynthMember> =
            (0..size - 2).map(|index| member(&domains[index % 2], index)).collect();
        let mut tokens = Vec::new();
        for (index, one) in members.iter().enumerate() {
            tokens.push(enrol(&doors[index % 2], one).await);
        }
        let caller =
            Caller { client: &members[0].client, key: &members[0].leaf_key, now: system_now() };
        let body = encode(&ProviderKeys { domain: domains[0].clone() });
        let keys: ProviderKeysAnswer =
            doors[0].call(&caller, "/v1/provider_keys", body, 0).await.unwrap();
        let scheme = members[0].leaf_key.scheme();
        let key = keys.signature.keys.iter().find(|key| key.scheme == scheme).unwrap();
        let hub_key = PublicKey::new(key.public_key.as_slice().to_vec()).unwrap();
        let mut synth = Synth::new(&domains[0], &hub_key, 1);
        synth.members = members;
        synth.policy.members_max = 10_000;
        (synth.policy.join, synth.policy.may_migrate) = (JoinPolicy::Open, Role::Member);
        let import = encode(&synth.import(|index| tokens[index].clone()));
        let imported = providers[0].ops_post("/v1/import_group", import).await;
        assert_eq!(imported.0, 200, "{imported:?}");
        for client in [&mover, &writer] {
            client.join(&synth.id, &domains[0], "", None).await.unwrap();
        }
        let (group, hub, said) = (synth.id, 0, 0);
        let scene = Self { providers, _folder: folder, group, mover, writer, hub, said };
        scene.rest().await;
        let view = scene.mover.member().group(&scene.group).unwrap();
        assert_eq!(view.members.len(), size);
        scene
    }

    /// Moves the group to the other provider while the other member writes.
    fn move_on(&mut self, runtime: &Arc<Runtime>) -> Pause {
        let to: Domain = self.providers[1 - self.hub].domain.clone();
        let (scene, said) = (&*self, self.said);
        let (tell, told) = mpsc::channel();
        // each on a thread of its own: what one computes is not what the other waits for
        let (writer, mover, said) = std::thread::scope(|threads| {
            let writing = threads.spawn(move || {
                let (mut said, mut last) = (said, None::<(Instant, Accepted)>);
                loop {
                    said += 1;
                    let accepted = runtime.block_on(scene.say(&scene.writer, said));
                    let now = Instant::now();
                    if let Some((at, before)) = last.filter(|(_, it)| it.epoch != accepted.epoch) {
                        assert!(before.group_sequence < accepted.group_sequence);
                        return (now - at, said);
                    }
                    last = Some((now, accepted));
                    // the mover need not hear of it
                    let _ = tell.send(());
                    std::thread::sleep(BETWEEN_MESSAGES);
                }
            });
            let moving = threads.spawn(move || {
                told.recv().unwrap();
                let began = Instant::now();
                runtime.block_on(async {
                    scene.mover.migrate(&scene.group, &to).await.unwrap();
                    scene.say(&scene.mover, 0).await;
                });
                began.elapsed()
            });
            let (pause, said) = writing.join().unwrap();
            (pause, moving.join().unwrap(), said)
        });
        (self.said, self.hub) = (said, 1 - self.hub);
        runtime.block_on(self.rest());
        Pause { writer, mover }
    }

    async fn say(&self, by: &Client, count: u64) -> Accepted {
        match by.send_text(&self.group, &format!("message {count} of the bench")).await.unwrap() {
            Outcome::Accepted(accepted) => accepted,
            Outcome::AlreadySo => panic!("another process has sent it"),
        }
    }

    /// Waits until nothing of a move is left to do and both clients have all of the group.
    async fn rest(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut views = Vec::new();
            for client in [&self.mover, &self.writer] {
                client.receive(0).await.unwrap();
                let view = client.member().group(&self.group).unwrap();
                views.push((view.epoch, view.hub));
            }
            let hub = &self.providers[self.hub].domain;
            let mut settled = views[0] == views[1] && views[0].1 == *hub;
            for provider in &self.providers {
                settled &= provider.moves_nothing().await;
            }
            if settled {
                return;
            }
            assert!(Instant::now() < deadline, "{views:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// a.example and b.example, each a process that finds the other on loopback.
async fn start(folder: &Path) -> [Provider; 2] {
    let providers = ["a.example", "b.example"].map(|domain| Provider::new(domain, folder, ""));
    let peers = providers.each_ref().map(|it| Peer {
        domain: it.domain.clone(),
        address: it.federation,
        root: it.root(),
    });
    for (provider, peer) in providers.iter().zip(peers.iter().rev()) {
        provider.configure(std::slice::from_ref(peer));
        provider.start().await;
    }
    providers
}

/// Registers a client that nobody runs, and gives a queue token of its.
pub async fn enrol(http: &Http, one: &SynthMember) -> QueueToken {
    tokens(http, one, 1).await.remove(0)
}

/// As [`enrol`], with `count` tokens.
pub async fn tokens(http: &Http, one: &SynthMember, count: u8) -> Vec<QueueToken> {
    let caller = Caller { client: &one.client, key: &one.leaf_key, now: system_now() };
    let register = encode(&one.register());
    let _: Registered = http.call(&caller, "/v1/register", register, 0).await.unwrap();
    let request = QueueTokens {
        class: KeyPackageClass::Group,
        last_resort: Flag::No,
        count,
        revoke: List::default(),
    };
    let minted: MintedTokens =
        http.call(&caller, "/v1/queue_tokens", encode(&request), 0).await.unwrap();
    minted.tokens.into_vec()
}

const BETWEEN_MESSAGES: Duration = Duration::from_millis(5);
