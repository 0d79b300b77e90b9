//! Faults in the store of the real binary: each write and each flush of a scene in turn fails, is torn or is slow, below the
//! engine and under real clients over TLS.
//!
//! `tests/support/faults.c`, preloaded into the provider's process, is the disk that fails. A scene is played once to count its
//! calls, then once per call that is to go wrong: one for each way, by a seed that is printed (TEST_SEED repeats it). `TEST_FAULTS=all`
//! takes every call, `TEST_FAULTS=N` that many of each engine and way to fail.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use mimid::{
    client::{
        Client, ClientError,
        core::{Home, Member, SUITES},
        system_clock,
    },
    wire::ids::GroupId,
};
use rand::{Rng, seq::SliceRandom as _};

use self::{
    damage::Records,
    node::{
        DATA, LOG, Node, complaints, copy_folder, home, passing, register, reopen, seeded, texts,
        timely, user_of, was_met,
    },
};
use crate::{not_run::not_run, providers::free_address};

#[path = "faults/damage.rs"]
mod damage;
#[path = "faults/federated.rs"]
mod federated;
#[path = "faults/node.rs"]
mod node;

#[tokio::test]
async fn whatever_write_or_flush_fails_on_sled_nothing_that_was_answered_is_lost() {
    each_call_fails("sled").await;
}

#[tokio::test]
async fn whatever_write_or_flush_fails_on_fjall_nothing_that_was_answered_is_lost() {
    each_call_fails("fjall").await;
}

/// What a call does that goes wrong, or slowly.
const WAYS: [(&str, &str); 9] = [
    ("write", "eio"),
    ("write", "enospc"),
    ("write", "torn"),
    ("flush", "eio"),
    ("flush", "enospc"),
    ("write", LIES),
    ("flush", LIES),
    ("write", SLOW),
    ("flush", SLOW),
];
/// Half of it is done, and the disk says that all is.
const LIES: &str = "half";
/// It is done, later.
const SLOW: &str = "slow";
/// How much later.
const LATE: Duration = Duration::from_millis(700);

async fn each_call_fails(engine: &'static str) {
    let (seed, mut random) = seeded();
    let rig = Rig::new(engine).await;
    let asked = std::env::var("TEST_FAULTS").ok();
    let mut tried = 0;
    let (writes, flushes) = (rig.count("write").await, rig.count("flush").await);
    for (kind, how) in WAYS {
        let calls = if kind == "write" { writes } else { flushes };
        assert!(calls > 0, "the scene makes no {kind} on {engine}");
        // what the engine does at a time of its own comes in another order in each run, and some is behind the scene
        let mut all: Vec<u64> = (1..=calls + 2).collect();
        all.shuffle(&mut random);
        let some = match asked.as_deref() {
            Some("all") => all.len(),
            Some(number) => number.parse().unwrap(),
            None => 1,
        };
        let mut met = 0;
        for nth in all {
            if met == some {
                break;
            }
            let when = format!("{engine}, TEST_SEED={seed}: {kind} {nth} of {calls}: {how}");
            met += usize::from(rig.fails(kind, nth, how, random.random(), &when).await);
            tried += 1;
        }
        assert!(met > 0, "{engine}, TEST_SEED={seed}: no {kind} was met by {how}");
    }
    println!("{engine}, TEST_SEED={seed}: {tried} scenes");
}

/// Slow is not broken: answers wait for their flush, nothing is read-only, and when the disk is well all is as before.
async fn flushes_are_slow(engine: &'static str) {
    const PAUSE: Duration = Duration::from_millis(400);
    let rig = Rig::new(engine).await;
    let at = rig.copy();
    let mut node = rig.start(at.path()).await;
    let mut scene = Scene::open(at.path(), &rig.group);
    // the first request may be answered by what was durable before
    scene.sends(0, "alice at first").await;
    node.plan("flush", 1, 0, SLOW, PAUSE.as_millis() as u64);
    let started = Instant::now();
    let (alice, bob, carol) = (&scene.clients[0], &scene.clients[1], &scene.clients[2]);
    let (sent, said, read) = tokio::join!(
        timely(alice.send_text(&rig.group, "alice slowly"), engine),
        timely(bob.send_text(&rig.group, "bob slowly"), engine),
        timely(carol.receive(0), engine),
    );
    assert!(started.elapsed() >= PAUSE, "answered before it was durable");
    assert!(sent.is_ok() && said.is_ok(), "{sent:?} {said:?}\n{}", node.log());
    assert!(read.is_ok(), "{read:?}\n{}", node.log());
    assert!(node.trace().contains(" slow "), "no flush was slow");
    assert!(!node.is_read_only().await, "{}", node.log());
    assert_eq!(node.ops("/readyz").await.0, 200);
    node.plan("none", 0, 1, "none", 0);
    scene.said = [
        vec!["alice at first".to_owned(), "alice slowly".to_owned()],
        vec!["bob slowly".to_owned()],
    ];
    scene.clients.clear();
    scene.ends_well(engine, &node).await;
}

#[tokio::test]
async fn slow_flushes_on_sled_are_waited_for() {
    flushes_are_slow("sled").await;
}

#[tokio::test]
async fn slow_flushes_on_fjall_are_waited_for() {
    flushes_are_slow("fjall").await;
}

#[tokio::test]
async fn full_disk_below_sled_takes_nothing_new_until_there_is_room() {
    disk_is_full("sled").await;
}

#[tokio::test]
async fn full_disk_below_fjall_takes_nothing_new_until_there_is_room() {
    disk_is_full("fjall").await;
}

/// On a file system that is full in earnest: what is kept free holds it off, and passes by itself; without that the node is read-only,
/// and nothing that was answered is lost.
async fn disk_is_full(engine: &'static str) {
    let rig = Rig::new(engine).await;
    let at = rig.copy();
    let disk = match SmallDisk::mount(&at.path().join(DATA)) {
        Ok(disk) => disk,
        Err(why) => {
            assert!(std::env::var("TEST_FAULTS").is_err(), "nothing can be mounted here: {why}");
            not_run("a disk that is full", &why);
            return;
        }
    };
    copy_folder(&rig.folder.path().join("base").join(DATA), &at.path().join(DATA));
    let start = async |free: &str| {
        let settings = [("MIMID_STORE__FREE_BYTES_MIN", free)];
        Node::start_with(engine, at.path(), rig.address, None, &settings).await.unwrap()
    };
    let node = start("24MiB").await;
    let mut scene = Scene::open(at.path(), &rig.group);
    scene.sends(0, "alice has room").await;
    assert!(scene.unanswered.is_empty(), "{:?}", scene.unanswered);
    disk.fill(16 << 20);
    node.until("mimid_store_room", 0.0).await;
    scene.sends(0, "alice has none").await;
    assert_eq!(scene.unanswered.len(), 1, "{:?}", scene.answered);
    assert!(scene.unanswered[0].contains("nearly full"), "{:?}", scene.unanswered);
    // reading, acknowledging and taking away go on
    let bob = &scene.clients[1];
    timely(bob.receive(0), engine).await.unwrap();
    assert!(texts(bob, &rig.group).iter().any(|it| it == "alice has room"));
    let acks = node.metric("mimid_queue_acks_total").await;
    assert!(acks > 0.0, "nothing was acknowledged");
    timely(scene.clients[2].revoke(&user_of(&scene.clients[0])), engine).await.unwrap();
    let (status, reason) = node.ops("/readyz").await;
    assert!(status == 503 && reason.contains("takes nothing new"), "{status} {reason}");
    assert_eq!(node.metric("mimid_store_writable").await, 1.0);
    assert!(node.whole_log().contains("the disk is nearly full"), "{}", node.log());
    // by itself
    disk.empty();
    node.until("mimid_store_room", 1.0).await;
    assert_eq!(node.ops("/readyz").await.0, 200);
    let resumed = timely(scene.clients[0].resume(), engine).await;
    assert!(resumed.is_ok_and(|refused| refused.is_empty()), "{}", node.log());
    scene.sends(1, "bob has room").await;
    assert_eq!(scene.unanswered.len(), 1, "{:?}", scene.unanswered);
    scene.clients.clear();
    node.kill();

    let node = start("0B").await;
    let mut scene =
        Scene { said: scene.said, answered: scene.answered, ..Scene::open(at.path(), &rig.group) };
    disk.fill(3 << 20);
    let long = "x".repeat(30_000);
    for number in 0.. {
        assert!(number < 2_000, "the disk does not get full");
        scene.sends(0, &format!("alice {number} {long}")).await;
        if !scene.unanswered.is_empty() {
            break;
        }
    }
    scene.clients.clear();
    node.until("mimid_store_writable", 0.0).await;
    node.says_that_it_is_read_only(engine).await;
    node.kill();
    disk.empty();
    let node = start("24MiB").await;
    scene.ends_well(engine, &node).await;
    println!("{engine}: {} messages were answered before the disk was full", scene.answered.len());
}

#[tokio::test]
async fn reads_that_fail_on_sled_are_told_and_pass() {
    reads_fail("sled").await;
}

#[tokio::test]
async fn reads_that_fail_on_fjall_are_told_and_pass() {
    reads_fail("fjall").await;
}

/// Nothing of it is in memory, and the disk cannot be read for a while: who asks is told to come again, and when it can be read
/// that goes well, without a restart.
async fn reads_fail(engine: &'static str) {
    let rig = Rig::new(engine).await;
    let at = rig.copy();
    if let Records::Fjall(_, keyspace) =
        Records::open(engine, &at.path().join(DATA).join("store").join(engine))
    {
        // what its journal holds it keeps in memory
        keyspace.rotate_memtable_and_wait().unwrap();
    }
    let mut node = rig.start(at.path()).await;
    node.plan("read", 1, 0, "eio", 0);
    let mut scene = Scene::open(at.path(), &rig.group);
    scene.play(&node).await;
    let met = node.trace().contains(" eio ");
    println!(
        "{engine}: reads failed: {met}; {} requests were told to come again",
        scene.unanswered.len()
    );
    node.plan("none", 0, 1, "none", 0);
    assert!(
        !node.is_read_only().await,
        "{engine}: a read that fails ends no writing\n{}",
        node.log()
    );
    scene.clients.clear();
    scene.dave = scene.dave.is_some().then(|| reopen(at.path(), "dave"));
    scene.ends_well(engine, &node).await;
    assert!(met, "{engine}: nothing was read");
}

/// A file system in memory.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn mount(at: &Path) -> Result<Self, String> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=160m", "tmpfs"]).arg(at);
        let said = mount.output().map_err(|error| error.to_string())?;
        if said.status.success() {
            Ok(Self { at: at.to_owned() })
        } else {
            Err(String::from_utf8_lossy(&said.stderr).into_owned())
        }
    }

    /// Leaves `free` bytes.
    fn fill(&self, free: u64) {
        let all = rustix::fs::statvfs(&self.at).unwrap();
        let left = (all.f_bavail * all.f_frsize).saturating_sub(free);
        let ballast = fs::File::create(self.at.join("ballast")).unwrap();
        let mode = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(ballast, mode, 0, left).unwrap();
    }

    fn empty(&self) {
        fs::remove_file(self.at.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// A provider's data and its clients' homes, as every scene finds them.
struct Rig {
    engine: &'static str,
    folder: tempfile::TempDir,
    address: SocketAddr,
    group: GroupId,
    /// A group of Alice and Carol, which no scene touches.
    aside: GroupId,
}

const USERS: [&str; 3] = ["alice", "bob", "carol"];

impl Rig {
    /// Alice, Bob and Carol in a group; Carol has not read what Alice has told her aside.
    async fn new(engine: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join(LIBRARY);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/faults.c");
        let compiled = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .args(["-ldl", "-lpthread"])
            .output()
            .unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let base = folder.path().join("base");
        fs::create_dir(&base).unwrap();
        let address = free_address();
        let node = Node::start(engine, &base, address, None).await.unwrap();
        let mut clients = Vec::new();
        for user in USERS {
            clients.push(register(&base, &node.server(), user).await.unwrap());
        }
        let [alice, bob, carol] = &clients[..] else { unreachable!() };
        let mut aside = None;
        for other in [bob, carol] {
            aside = Some(alice.connect(&user_of(other)).await.unwrap());
            other.receive(0).await.unwrap();
            other.accept(&user_of(alice)).await.unwrap();
            alice.receive(0).await.unwrap();
        }
        let group = alice.create_group("team", SUITES[0], None).await.unwrap();
        alice.add_users(&group, &[user_of(bob), user_of(carol)]).await.unwrap();
        for other in [bob, carol] {
            other.receive(0).await.unwrap();
            other.receive(0).await.unwrap();
        }
        let aside = aside.unwrap();
        alice.send_text(&aside, UNREAD).await.unwrap();
        drop(clients);
        node.stop().await;
        Self { engine, folder, address, group, aside }
    }

    /// A copy of it to play a scene in.
    fn copy(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir_in(self.folder.path()).unwrap();
        copy_folder(&self.folder.path().join("base"), copy.path());
        fs::remove_file(copy.path().join(LOG)).unwrap();
        copy
    }

    async fn start(&self, at: &Path) -> Node {
        let library = self.folder.path().join(LIBRARY);
        Node::start(self.engine, at, self.address, Some(&library)).await.unwrap()
    }

    /// How many calls of `kind` the scene makes.
    async fn count(&self, kind: &str) -> u64 {
        let at = self.copy();
        let mut node = self.start(at.path()).await;
        node.plan(kind, 0, 1, "none", 0);
        let mut scene = Scene::open(at.path(), &self.group);
        scene.play(&node).await;
        assert!(scene.unanswered.is_empty(), "{:?}", scene.unanswered);
        let calls = node.trace().lines().count() as u64;
        drop(scene);
        node.stop().await;
        calls
    }

    /// Plays the scene while the `nth` call goes wrong, then starts the node on a disk that is well. Whether it was met.
    async fn fails(&self, kind: &str, nth: u64, how: &str, kill: bool, when: &str) -> bool {
        println!("{when}");
        let at = self.copy();
        let mut node = self.start(at.path()).await;
        let late = if how == SLOW { LATE } else { Duration::ZERO };
        node.plan(kind, nth, 1, how, late.as_millis() as u64);
        let mut scene = Scene::open(at.path(), &self.group);
        scene.play(&node).await;
        if how == SLOW {
            assert_eq!(scene.unanswered, [""; 0], "{when}: slow is not broken\n{}", node.log());
            assert!(!node.is_read_only().await, "{when}: slow is not broken\n{}", node.log());
        }
        let run = node.calm();
        let met = || was_met(at.path(), run, how);
        if node.is_read_only().await {
            assert!(met(), "{when}: read-only without a fault\n{}", node.log());
            node.says_that_it_is_read_only(when).await;
            // what is not in doubt is read as before
            let carol = &scene.clients[2];
            let read = timely(carol.receive(0), when).await;
            let heard = texts(carol, &self.aside).iter().any(|it| it == UNREAD);
            // sled reads nothing from the disk any more after a write of its own has failed
            let refused = self.engine == "sled" && read.as_ref().is_err_and(ClientError::passes);
            assert!(heard || refused, "{when}: the bystander reads {read:?}\n{}", node.log());
        }
        assert!(node.is_alive(), "{when}: it ended\n{}", node.log());
        // it waits for connections that are open
        scene.clients.clear();
        scene.dave = scene.dave.is_some().then(|| reopen(at.path(), "dave"));
        if kill {
            node.kill();
        } else {
            node.stop().await;
        }
        let node = match Node::start(self.engine, at.path(), self.address, None).await {
            Ok(node) => node,
            // of a disk that lies no database is whole, but it is seen
            Err(why) if how == LIES => {
                assert!(met() && why.contains("estore"), "{when}: {why}");
                println!("{when}: not started");
                return true;
            }
            Err(why) => panic!("{when}: it does not start again: {why}"),
        };
        scene.ends_well(when, &node).await;
        drop(scene);
        node.stop().await;
        met()
    }
}

const LIBRARY: &str = "faults.so";
const UNREAD: &str = "not read yet";

/// What real clients do while the disk fails.
struct Scene {
    clients: Vec<Client>,
    group: GroupId,
    /// What was said, in order, by Alice and by Bob.
    said: [Vec<String>; 2],
    /// Of that, what was answered.
    answered: Vec<String>,
    /// The rest, and why.
    unanswered: Vec<String>,
    folder: PathBuf,
    dave: Option<Client>,
}

impl Scene {
    fn open(folder: &Path, group: &GroupId) -> Self {
        let clients = USERS.map(|user| {
            let home = Home::open(&home(folder, user)).unwrap();
            let client = Client::open(Member::open(home).unwrap(), system_clock()).unwrap();
            client.with_patience(Duration::ZERO)
        });
        let (clients, group, folder) = (clients.into(), group.clone(), folder.to_owned());
        let (said, answered, unanswered) = Default::default();
        Self { clients, group, said, answered, unanswered, folder, dave: None }
    }

    /// Messages, a commit, an account, KeyPackages, queues that are read and acknowledged.
    async fn play(&mut self, node: &Node) {
        for round in 0..2 {
            for (who, user) in USERS.into_iter().take(2).enumerate() {
                self.sends(who, &format!("{user} {round}")).await;
                self.receives(1 - who).await;
            }
        }
        if self.unanswered.is_empty() {
            self.dave_registers(node).await;
        }
        if self.unanswered.is_empty() {
            let updated = timely(self.clients[0].update(&self.group, false), "a commit").await;
            if let Err(error) = updated {
                self.unanswered.push(passing(&error, "a commit"));
            }
        }
        self.receives(1).await;
        self.receives(0).await;
    }

    async fn dave_registers(&mut self, node: &Node) {
        // who registers tries for half a minute, which a node that is read-only says in vain
        let read_only = async {
            while !node.is_read_only().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let server = node.server();
        tokio::select! {
            biased;
            () = read_only => self.unanswered.push("dave registers".to_owned()),
            registered = timely(register(&self.folder, &server, "dave"), "dave") => {
                match registered {
                    Ok(dave) => self.dave = Some(dave),
                    Err(error) => self.unanswered.push(passing(&error, "dave registers")),
                }
            }
        }
    }

    /// After some that have no answer it is enough.
    async fn sends(&mut self, who: usize, text: &str) {
        if self.unanswered.len() > 2 {
            return;
        }
        self.said[who].push(text.to_owned());
        match timely(self.clients[who].send_text(&self.group, text), "a message").await {
            Ok(_) => self.answered.push(text.to_owned()),
            Err(error) => self.unanswered.push(passing(&error, text)),
        }
    }

    async fn receives(&mut self, who: usize) {
        if self.unanswered.len() > 2 {
            return;
        }
        if let Err(error) = timely(self.clients[who].receive(0), "receiving").await {
            self.unanswered.push(passing(&error, "receiving"));
        }
    }

    /// On a disk that is well: all that was answered is there, once and in order, and what was not goes on.
    async fn ends_well(&mut self, when: &str, node: &Node) {
        let failed = |what: &str, error: &dyn std::fmt::Display| -> ! {
            panic!("{when}: {what}: {error}\n{:?}\n{}", self.unanswered, node.log())
        };
        let calm: Vec<Client> = USERS.iter().map(|user| reopen(&self.folder, user)).collect();
        for client in &calm {
            if let Err(error) = timely(client.receive(0), when).await {
                failed("receives again", &error);
            }
            match timely(client.resume(), when).await {
                Ok(refused) if refused.is_empty() => {}
                Ok(refused) => failed("was refused", &format!("{refused:?}")),
                Err(error) => failed("goes on", &error),
            }
        }
        if self.dave.is_none() {
            let dave = timely(register(&self.folder, &node.server(), "dave"), when).await;
            self.dave = Some(dave.unwrap_or_else(|error| failed("dave registers again", &error)));
        }
        let dave = self.dave.as_ref().unwrap();
        timely(dave.receive(0), when).await.unwrap_or_else(|error| failed("dave", &error));
        let last = "after all of it";
        if let Err(error) = timely(calm[0].send_text(&self.group, last), when).await {
            failed("sends again", &error);
        }
        for client in &calm {
            for _ in 0..2 {
                if let Err(error) = timely(client.receive(0), when).await {
                    failed("receives at last", &error);
                }
            }
        }
        for (who, client) in calm.iter().enumerate() {
            let heard = texts(client, &self.group);
            for (other, said) in self.said.iter().enumerate().filter(|(other, _)| *other != who) {
                let of_them: Vec<_> =
                    heard.iter().filter(|it| it.starts_with(USERS[other])).collect();
                assert_eq!(of_them, said.iter().collect::<Vec<_>>(), "{when}\n{}", node.log());
            }
            let all = self.answered.iter().filter(|it| !it.starts_with(USERS[who]));
            for text in all {
                assert!(heard.contains(text), "{when}: {text:?} was answered and is lost");
            }
            assert!(who == 0 || heard.iter().any(|it| it == last), "{when}: {heard:?}");
            let complaints = complaints(client);
            assert!(complaints.is_empty(), "{when}: {complaints:?}");
        }
        let epochs: Vec<_> = calm.iter().map(|it| epoch(it, &self.group)).collect();
        assert!(epochs.iter().all(|it| *it == epochs[0]), "{when}: {epochs:?}");
    }
}

fn epoch(client: &Client, group: &GroupId) -> String {
    let view = client.member().group(group).unwrap();
    format!("{:?} {:?}", view.epoch, view.authenticator)
}
