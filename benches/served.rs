//! What a provider that runs costs, seen from outside: a process of the built binary, real clients over TLS on loopback.
//!
//! A provider's CPU time is its process' own, by the kernel's count, so that what the bench computes on the same cores is
//! not in it; messages a second are of both together. Requests are built before the clock runs and signed while it does,
//! for their time is a part of what is signed.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mimid::{
    client::{
        Client, Registration,
        core::Home,
        http::{Caller, Http},
        system_clock,
    },
    crypto::SigningKey,
    wire::{
        client::{ProviderKeys, ProviderKeysAnswer},
        ds::Outcome,
        encode,
        extensions::{JoinPolicy, PublicKey},
        ids::{ClientUri, Domain, GroupId},
        queueing::FeedAck,
    },
};
use tokio::runtime::Runtime;

use crate::{
    moving::{self, enrol},
    providers::Provider,
    support::synth::{Synth, member, system_now},
    writing,
};

/// Clients that send, each over a connection of its own.
const SENDERS: usize = 8;
/// Requests of one sender that are on their way at once.
const AT_ONCE: usize = 16;
/// Entries that one acknowledgement is for.
const ACK_EVERY: usize = 64;
/// Of a client that is put into many groups.
const TOKENS_AT_ONCE: u8 = 100;
const GROUP_OPERATION: &str = "/v1/group_operation";
/// No limits by rate: they are not what is measured.
const SETTINGS: &str = "[rates]\naddress_per_second = 0\ngroup_per_second = 0\nmember_per_second = 0\n\
     [limits]\nrequests_max = 4096\nconnections_max = 19000\nnonces_max = 4000000\n[log]\nlevel = \"warn\"";

/// A provider with groups that real clients write into.
pub struct Scene {
    pub provider: Provider,
    _folder: tempfile::TempDir,
    door: Http,
    hub_key: PublicKey,
    senders: Vec<Sender>,
}

/// A real client, and a connection of its own to send over.
struct Sender {
    client: Client,
    http: Http,
    key: SigningKey,
}

/// A message of `sender`'s, built.
struct Ready {
    sender: usize,
    body: Vec<u8>,
}

/// What a run of messages took.
struct Took {
    messages: usize,
    wall: Duration,
    cpu: Duration,
}

impl Took {
    fn each_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.messages as f64
    }

    fn per_second(&self) -> f64 {
        self.messages as f64 / self.wall.as_secs_f64()
    }
}

/// An application message that is taken: by the group's size, and across many groups.
pub fn accept() {
    let (sizes, messages): (&[usize], _) =
        if crate::is_test() { (&[10], 64) } else { (&[10, 1000, 5000], messages()) };
    let rows = sizes.iter().map(|&size| (1, size)).chain([(SENDERS * 8, 10)]);
    let rows: Vec<_> = rows
        .filter(|(groups, size)| crate::is_asked_for(&format!("served: accept/{groups} of {size}")))
        .collect();
    if rows.is_empty() {
        return;
    }
    let runtime = Runtime::new().unwrap();
    println!("\nserved: accept of an application message, durable");
    println!("groups  members  messages   a second   server's CPU, µs each");
    for (groups, size) in rows {
        let took = runtime.block_on(async {
            let scene = Scene::start().await;
            let mut ids = Vec::new();
            for _ in 0..groups {
                ids.push(scene.group(size).await);
            }
            let ready = scene.build(&ids, messages);
            scene.send(ready).await
        });
        println!(
            "{groups:>6}  {size:>7}  {:>8}  {:>9.0}  {:>10.1}",
            took.messages,
            took.per_second(),
            took.each_us()
        );
    }
}

/// How many are sent: `SERVED_MESSAGES`.
fn messages() -> usize {
    let asked = std::env::var("SERVED_MESSAGES").ok();
    asked.map_or(20_000, |count| count.parse().unwrap())
}

/// Entries that waited, over a stream: to all senders, each reading its own queue from its beginning.
pub fn deliver() {
    if !crate::is_asked_for("served: deliver") {
        return;
    }
    let messages = if crate::is_test() { 64 } else { messages() };
    let took = Runtime::new().unwrap().block_on(async {
        let scene = Scene::start().await;
        let group = scene.group(10).await;
        let ready = scene.build(&[group], messages);
        scene.send(ready).await;
        scene.drain(messages).await
    });
    println!("\nserved: delivery of an entry that waited, over {SENDERS} streams");
    println!(
        "{} entries, {:.0} a second, {:.1} µs each",
        took.messages,
        took.per_second(),
        took.each_us()
    );
}

/// Members of a large group come back all at once and read what they missed, each over a stream of its own, while members of
/// small groups talk: what these wait for an answer, before and meanwhile. `STORM_CLIENTS` says how many come.
pub fn storm() {
    if !crate::is_asked_for("served: storm") {
        return;
    }
    let asked = std::env::var("STORM_CLIENTS").ok().and_then(|it| it.parse().ok());
    let clients = asked.unwrap_or(if crate::is_test() { 20 } else { 10_000 });
    let (missed, calm) = if crate::is_test() { (16, 32) } else { (64, 2_000) };
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let scene = Arc::new(Scene::start().await);
        let large = scene.group(clients).await;
        scene.send(scene.build(&[large], missed)).await;
        let mut small = Vec::new();
        for _ in 0..16 {
            small.push(scene.group(10).await);
        }
        println!("\nserved: {clients} clients come back, {missed} entries wait for each");
        println!("            messages   accepted in: median      p99      longest   p99 / median");
        let before = scene.clone().talk(scene.build(&small, calm), &Flag::default()).await;
        before.print("before");
        let ready = scene.build(&small, calm * 20);
        let over = Flag::default();
        let talk = tokio::spawn({
            let (scene, over) = (scene.clone(), over.clone());
            async move { scene.talk(ready, &over).await }
        });
        let began = Instant::now();
        let cpu = scene.provider.cpu();
        scene.come_back(clients - SENDERS, missed).await;
        let (took, cpu) = (began.elapsed(), scene.provider.cpu() - cpu);
        over.store(true, Ordering::Relaxed);
        talk.await.unwrap().print("meanwhile");
        println!(
            "all have read after {:.1} s, {:.1} s of the server's CPU",
            took.as_secs_f64(),
            cpu.as_secs_f64()
        );
    });
}

/// Raised when it is over.
type Flag = Arc<AtomicBool>;

/// Messages a second while others come back.
const TALK_PER_SECOND: u64 = 200;

/// What messages that are due one after the other waited for their answers, from when they were due.
struct Waits(Vec<Duration>);

impl Waits {
    fn print(mut self, when: &str) {
        self.0.sort_unstable();
        let at =
            |share: f64| self.0[((self.0.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        println!(
            "{when:<10}  {:>8}   {:>18.2} ms  {:>7.2} ms  {:>7.2} ms  {:>8.1}",
            self.0.len(),
            at(0.5),
            at(0.99),
            at(1.0),
            at(0.99) / at(0.5)
        );
    }
}

impl Scene {
    /// Sends `ready` at [`TALK_PER_SECOND`], whatever the answers do, until all are sent or it is `over`. From a thread of its own,
    /// so that it waits for no other client of this process.
    async fn talk(self: Arc<Self>, ready: Vec<Ready>, over: &Flag) -> Waits {
        let (over, every) = (over.clone(), Duration::from_micros(1_000_000 / TALK_PER_SECOND));
        let work = move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                // connections belong to a runtime
                let https: Vec<Http> =
                    self.senders.iter().map(|_| connect(&self.provider)).collect();
                let mut tasks = Vec::new();
                let mut due = Instant::now() + every;
                for one in ready {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    tokio::time::sleep_until(due.into()).await;
                    let sender = &self.senders[one.sender];
                    let (http, key) = (https[one.sender].clone(), sender.key.clone());
                    let uri = sender.client.member().client().clone();
                    tasks.push(tokio::spawn(async move {
                        let caller = Caller { client: &uri, key: &key, now: system_now() };
                        let answer = http.ds(&caller, GROUP_OPERATION, one.body).await.unwrap();
                        assert!(matches!(answer.outcome, Outcome::Ok(_)), "{answer:?}");
                        due.elapsed()
                    }));
                    due += every;
                }
                let mut waits = Vec::new();
                for task in tasks {
                    waits.push(task.await.unwrap());
                }
                Waits(waits)
            })
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    /// The members of the large group that nobody has heard of since, all at once: each reads `missed` entries over a stream of its own.
    async fn come_back(&self, clients: usize, missed: usize) {
        let domain = Domain::new("a.example").unwrap();
        let mut tasks = Vec::new();
        for index in 0..clients {
            let (one, http) = (member(&domain, index), self.door.clone());
            tasks.push(tokio::spawn(async move {
                // who is not let in comes again, as a client does
                let mut stream = loop {
                    let caller =
                        Caller { client: &one.client, key: &one.leaf_key, now: system_now() };
                    match http.stream(&caller).await {
                        Ok(stream) => break stream,
                        Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
                    }
                };
                let mut read = 0;
                while read < missed {
                    let entry = stream.next().await.unwrap();
                    read += 1;
                    if read == missed {
                        let ack = FeedAck { feed: entry.feed, sequence: entry.sequence };
                        stream.acknowledge(&[ack]).await.unwrap();
                    }
                }
                stream.close().await;
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    }

    async fn start() -> Self {
        Self::with("").await
    }

    /// With further settings of `[groups]`.
    pub async fn with(groups: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = format!("{SETTINGS}\n[groups]\n{groups}");
        let provider = Provider::new("a.example", folder.path(), &settings);
        provider.configure(&[]);
        provider.start().await;
        let door = connect(&provider);
        let mut senders = Vec::new();
        for index in 0..SENDERS {
            let uri = format!("mimi://a.example/d/sender{index}/phone");
            let registration = Registration {
                client: ClientUri::new(uri).unwrap(),
                server: provider.server(),
                token: Vec::new(),
                authorization: None,
            };
            let home = Home::in_memory().unwrap();
            let client = Client::register(home, registration, system_clock()).await.unwrap();
            let key = client.member().identity().client_key.clone();
            senders.push(Sender { client, http: connect(&provider), key });
        }
        let hub_key = hub_key(&door, &senders[0]).await;
        Self { provider, _folder: folder, door, hub_key, senders }
    }

    /// A new group of `size`, the senders among them.
    async fn group(&self, size: usize) -> GroupId {
        let domain = Domain::new("a.example").unwrap();
        let mut synth = Synth::new(&domain, &self.hub_key, size - self.senders.len());
        synth.policy.members_max = 20_000;
        synth.policy.join = JoinPolicy::Open;
        let mut tokens = Vec::new();
        for one in &synth.members {
            tokens.push(enrol(&self.door, one).await);
        }
        let import = encode(&synth.import(|index| tokens[index].clone()));
        let imported = self.provider.ops_post("/v1/import_group", import).await;
        assert_eq!(imported.0, 200, "{imported:?}");
        for sender in &self.senders {
            sender.client.join(&synth.id, &domain, "", None).await.unwrap();
        }
        for sender in &self.senders {
            sender.client.receive(0).await.unwrap();
        }
        synth.id
    }

    /// So many groups of `size` that nobody writes into.
    pub async fn idle_groups(&self, count: usize, size: usize) {
        let domain = Domain::new("a.example").unwrap();
        let mut synth = Synth::new(&domain, &self.hub_key, size);
        let mut left: Vec<Vec<_>> = vec![Vec::new(); size];
        for _ in 0..count {
            // a token is good for one group
            let mut tokens = Vec::new();
            for (one, left) in synth.members.iter().zip(&mut left) {
                if left.is_empty() {
                    *left = moving::tokens(&self.door, one, TOKENS_AT_ONCE).await;
                }
                tokens.push(left.pop().unwrap());
            }
            synth.id = GroupId::of(&domain, mimid::crypto::random());
            let import = encode(&synth.import(|index| tokens[index].clone()));
            let imported = self.provider.ops_post("/v1/import_group", import).await;
            assert_eq!(imported.0, 200, "{imported:?}");
        }
    }

    /// `count` messages of all senders to all of `groups`.
    fn build(&self, groups: &[GroupId], count: usize) -> Vec<Ready> {
        let mut first = HashMap::new();
        let mut ready = Vec::new();
        for at in 0..count {
            let (sender, group) =
                (at % self.senders.len(), &groups[at / self.senders.len() % groups.len()]);
            let client = &self.senders[sender].client;
            let message =
                first.entry((sender, group)).or_insert_with(|| writing::first(client, group));
            ready.push(Ready { sender, body: encode(&writing::again(client, message)) });
        }
        ready
    }

    /// Sends all of `ready`, so many at once, and sees that each is taken.
    async fn send(&self, ready: Vec<Ready>) -> Took {
        let messages = ready.len();
        let mut of: Vec<VecDeque<Vec<u8>>> = self.senders.iter().map(|_| VecDeque::new()).collect();
        for one in ready {
            of[one.sender].push_back(one.body);
        }
        let (began, before) = (Instant::now(), self.provider.cpu());
        let mut tasks = Vec::new();
        for (sender, queue) in self.senders.iter().zip(of) {
            let queue = Arc::new(Mutex::new(queue));
            for _ in 0..AT_ONCE {
                let (http, key, queue) = (sender.http.clone(), sender.key.clone(), queue.clone());
                let uri = sender.client.member().client().clone();
                tasks.push(tokio::spawn(async move {
                    loop {
                        let Some(body) = queue.lock().unwrap().pop_front() else { return };
                        let caller = Caller { client: &uri, key: &key, now: system_now() };
                        let answer = http.ds(&caller, GROUP_OPERATION, body).await.unwrap();
                        assert!(matches!(answer.outcome, Outcome::Ok(_)), "{answer:?}");
                    }
                }));
            }
        }
        for task in tasks {
            task.await.unwrap();
        }
        Took { messages, wall: began.elapsed(), cpu: self.provider.cpu() - before }
    }
}

impl Scene {
    /// Each sender reads what the others sent, `count` messages of all, over a stream.
    async fn drain(&self, count: usize) -> Took {
        let count = count - count / self.senders.len();
        let (began, before) = (Instant::now(), self.provider.cpu());
        let mut tasks = Vec::new();
        for sender in &self.senders {
            let (http, key) = (sender.http.clone(), sender.key.clone());
            let uri = sender.client.member().client().clone();
            tasks.push(tokio::spawn(async move {
                let caller = Caller { client: &uri, key: &key, now: system_now() };
                let mut stream = http.stream(&caller).await.unwrap();
                for at in 1..=count {
                    let entry = stream.next().await.unwrap();
                    if at % ACK_EVERY == 0 || at == count {
                        let ack = FeedAck { feed: entry.feed, sequence: entry.sequence };
                        stream.acknowledge(&[ack]).await.unwrap();
                    }
                }
                stream.close().await;
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let (wall, cpu) = (began.elapsed(), self.provider.cpu() - before);
        Took { messages: count * self.senders.len(), wall, cpu }
    }
}

fn connect(provider: &Provider) -> Http {
    let server = provider.server();
    Http::new(&server.url, server.certificate.as_ref().map(String::as_bytes)).unwrap()
}

/// What the hub signs with in groups.
async fn hub_key(door: &Http, sender: &Sender) -> PublicKey {
    let uri = sender.client.member().client().clone();
    let caller = Caller { client: &uri, key: &sender.key, now: system_now() };
    let body = encode(&ProviderKeys { domain: uri.domain().clone() });
    let keys: ProviderKeysAnswer = door.call(&caller, "/v1/provider_keys", body, 0).await.unwrap();
    let scheme = member(&uri.domain(), 0).leaf_key.scheme();
    let key = keys.signature.keys.iter().find(|key| key.scheme == scheme).unwrap();
    PublicKey::new(key.public_key.as_slice().to_vec()).unwrap()
}
