//! What a commit and a message cost their hub by the size of the group: `stage` and `merge`, without store and network.
//!
//! "bare openmls" is `PublicGroup` over a storage that keeps nothing and the same cryptography: parse, process, merge.
//! What mimid does more is to verify the request and its GroupInfo, to judge the commit, to make the log record, and
//! to keep its own view of the members.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{BatchSize, BenchmarkId, Criterion};
use mimid::{
    client::core::{Content, Member, Operation, SUITES},
    crypto::{MlsCrypto, SigningKey, verify_with_label},
    group::{
        Decision, Effects, GroupState, Hub, Request,
        mls::{InfoParts, Tree, confirmation_tag, verify_group_info},
    },
    wire::{
        ds::{
            Accepted, DsMessage, DsRequest, DsResponse, DsResponseBody, DsSenderId, Outcome,
            ProtocolVersion,
        },
        extensions::{KeyPackageClass, SignatureScheme},
        ids::{Domain, GroupId, Sequence, Timestamp, UserUri},
        mls::MlsMessage,
    },
};
use openmls::prelude::{MlsMessageBodyIn, ProcessedMessageContent, ProtocolMessage};

use crate::support::{
    hosted::{self, Hosted},
    synth::{Synth, any_token, system_now},
};

/// A group of so many members, the last of them real and ready to send.
struct Scene {
    hub: Arc<Hub>,
    id: GroupId,
    now: Timestamp,
    snapshot: Vec<u8>,
    tree: Vec<u8>,
    alice: Member,
    /// Of the same user, and not in the group.
    tablet: Member,
    /// Somebody else in the group.
    other: UserUri,
}

impl Scene {
    fn of(size: usize) -> Self {
        let domain = Domain::new("a.example").unwrap();
        let hub = hosted::hub(&domain, |_| {});
        let synth = Synth::new(&domain, hub.keys.all()[0].key.public(), size - 1);
        let now = system_now();
        let mut group = Hosted::import(&hub, &synth.import(any_token), now).unwrap();
        let first = &synth.members[0];
        let alice = hosted::device(&first.client, "laptop", &first.user_key);
        group.join(&alice);
        assert_eq!(group.state.members().count(), size);
        let snapshot = group.state.snapshot().unwrap();
        let tree = group.state.to_snapshot().unwrap().tree;
        let tablet = hosted::device(&first.client, "tablet", &first.user_key);
        let other = synth.members.last().unwrap().client.user();
        Self { hub, id: group.id(), now, snapshot, tree, alice, tablet, other }
    }

    fn state(&self) -> GroupState {
        GroupState::load(Arc::clone(&self.hub), self.id.clone(), &self.snapshot).unwrap()
    }

    /// What alice sends for `operation`; she has not got an answer yet.
    fn request(&self, operation: Operation) -> DsMessage {
        let request = self.alice.begin(&self.id, operation).unwrap();
        self.alice.outbound(request, self.now).unwrap().message
    }

    /// What somebody sends who comes in by an external commit.
    fn join(&self) -> DsMessage {
        let (hub, member) = (&self.hub.settings.hub, &self.tablet);
        let join = Operation::Join { code: None };
        let request = member.join(&self.id, hub, "", join, self.now).unwrap();
        let ask = member.outbound(request, self.now).unwrap().message;
        let ask = Request { relay: hub.clone(), message: ask };
        let Decision::Answer(info) = self.state().stage(&ask, self.now).unwrap() else {
            panic!("what it needs to know");
        };
        let response = DsResponse { version: ProtocolVersion::MIMI10, outcome: Outcome::Ok(info) };
        member.settle(request, &response, self.now).unwrap();
        member.outbound(request, self.now).unwrap().message
    }

    /// KeyPackages of so many who are not in the group.
    fn newcomers(&self, count: usize) -> Vec<Vec<u8>> {
        let domain = &self.hub.settings.hub;
        let key_package = |index: usize| {
            let newcomer = hosted::new_client(domain, &format!("newcomer{index}"), "phone");
            let (class, suite) = (KeyPackageClass::Group, SUITES[0]);
            let made = newcomer.key_packages(class, suite, false, 1, self.now).unwrap();
            made[0].as_slice().to_vec()
        };
        (0..count).map(key_package).collect()
    }

    /// So many messages of alice's, one behind the other.
    fn messages(&self, count: usize) -> Vec<DsMessage> {
        let content = Content::text("a message of ordinary length, as people send them").encode();
        let epoch = self.state().epoch();
        let send = |at: usize| {
            let operation = Operation::Send { content: content.clone() };
            let request = self.alice.begin(&self.id, operation).unwrap();
            let message = self.alice.outbound(request, self.now).unwrap().message;
            let accepted = Accepted {
                group_sequence: Sequence(1_000_000 + at as u64),
                accepted_at: self.now,
                epoch,
            };
            let outcome = Outcome::Ok(DsResponseBody::Accepted(accepted));
            let response = DsResponse { version: ProtocolVersion::MIMI10, outcome };
            self.alice.settle(request, &response, self.now).unwrap();
            message
        };
        (0..count).map(send).collect()
    }

    /// What the hub does with `message`. The state is given back so that dropping it is not measured.
    fn accept(&self, mut state: GroupState, message: DsMessage) -> (GroupState, Effects) {
        let request = Request { relay: self.hub.settings.hub.clone(), message };
        let Decision::Write(staged) = state.stage(&request, self.now).unwrap() else {
            panic!("nothing to write");
        };
        let effects = state.merge(*staged).unwrap();
        (state, effects)
    }
}

/// An update commit at a hub, beside openmls alone.
pub fn update_commit(c: &mut Criterion) {
    let mut group = c.benchmark_group("update commit");
    for size in [2, 10, 100, 1000] {
        let scene = Scene::of(size);
        let message = scene.request(Operation::UpdateClient { rotate_key: false });
        let DsRequest::UpdateClient(update) = &message.request else { panic!("an update") };
        let commit = update.commit.clone();
        group.bench_with_input(BenchmarkId::new("bare openmls", size), &size, |b, _| {
            let crypto = MlsCrypto::default();
            b.iter_batched(
                || Tree::load(&scene.tree).unwrap(),
                |tree| process_and_merge(&crypto, tree, black_box(&commit)),
                BatchSize::PerIteration,
            );
        });
        group.bench_with_input(BenchmarkId::new("stage and merge", size), &size, |b, _| {
            b.iter_batched(
                || (scene.state(), message.clone()),
                |(state, message)| scene.accept(state, black_box(message)),
                BatchSize::PerIteration,
            );
        });
    }
    // what mimid verifies beside openmls at any size: the request, and the GroupInfo of the new epoch
    let key = SigningKey::generate(SignatureScheme::ED25519).unwrap();
    let content = [7; 4096];
    let signature = key.sign_with_label("DSMessageTBS", &content).unwrap();
    group.bench_function("two signatures", |b| {
        b.iter(|| {
            for _ in 0..2 {
                let public = black_box(key.public().as_slice());
                let (label, signature) = ("DSMessageTBS", signature.as_slice());
                verify_with_label(key.scheme(), public, label, &content, signature).unwrap();
            }
        });
    });
    group.finish();
}

/// Application messages at a hub, in turns over groups of different size that take one message behind the other, as a group
/// at work does: a burst at a time into each. "first" is the one message that a group takes which has just been loaded,
/// whose memory no cache holds yet. Prints medians for one message.
pub fn send_message(_: &mut Criterion) {
    if !crate::is_asked_for("send message/in turns") {
        return;
    }
    const BURST: usize = 16;
    const SIZES: [usize; 3] = [10, 100, 1000];
    let turns = if crate::is_test() { 2 } else { 250 };
    let scenes = SIZES.map(Scene::of);
    let messages = scenes.each_ref().map(|scene| scene.messages(turns * BURST));
    let mut states = scenes.each_ref().map(|scene| Some(scene.state()));
    let (mut warm, mut first) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
    for turn in 0..turns {
        for at in 0..SIZES.len() {
            let burst = messages[at][turn * BURST..][..BURST].to_vec();
            let mut state = states[at].take().unwrap();
            let mut left = Vec::with_capacity(BURST);
            let began = Instant::now();
            for message in burst {
                let (next, effects) = scenes[at].accept(state, black_box(message));
                state = next;
                left.push(effects);
            }
            warm[at].push(began.elapsed() / BURST as u32);
            states[at] = Some(state);

            let (state, message) = (scenes[at].state(), messages[at][0].clone());
            timed(&mut first[at], || scenes[at].accept(state, black_box(message)));
        }
    }
    let micros = |all: &Vec<Duration>| median(all.iter().map(|one| one.as_secs_f64() * 1e6));
    let (warm, first) = (warm.each_ref().map(micros), first.each_ref().map(micros));
    println!("\nmessages, in turns: medians in µs");
    println!(
        "members  stage and merge  to 10 members  target: 1.3  the first after loading  to 10 members"
    );
    for (at, size) in SIZES.into_iter().enumerate() {
        let (ratio, cold) = (warm[at] / warm[0], first[at] / first[0]);
        let met = if ratio <= 1.3 { "met" } else { "missed" };
        println!(
            "{size:>7}  {:>15.1}  {ratio:>13.2}  {met:>11}  {:>23.1}  {cold:>13.2}",
            warm[at], first[at]
        );
    }
}

/// Update commits, turn by turn in one loop: what else the machine does meets all alike. "openmls" parses, processes and merges;
/// "doing the same" verifies the request and the new GroupInfo besides, as any hub must that does what a commit asks of
/// it. Prints the medians, and the medians of ratio and difference to "doing the same".
pub fn overhead(_: &mut Criterion) {
    if !crate::is_asked_for("update commit/overhead") {
        return;
    }
    println!("\nupdate commit, in turns: medians in µs");
    println!(
        "members  openmls  doing the same  stage and merge  ratio to the same  beyond the same  target: 1.25 x + 30"
    );
    for (size, turns) in [(2, 400), (10, 400), (100, 200), (1000, 40)] {
        let turns = if crate::is_test() { 1 } else { turns };
        let scene = Scene::of(size);
        let message = scene.request(Operation::UpdateClient { rotate_key: false });
        let DsRequest::UpdateClient(update) = &message.request else { panic!("an update") };
        let crypto = MlsCrypto::default();
        let (mut bare, mut same, mut ours) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..turns {
            let tree = Tree::load(&scene.tree).unwrap();
            timed(&mut bare, || process_and_merge(&crypto, tree, black_box(&update.commit)));
            let tree = Tree::load(&scene.tree).unwrap();
            timed(&mut same, || do_the_same(&crypto, tree, black_box(&message)));
            let (state, message) = (scene.state(), message.clone());
            timed(&mut ours, || scene.accept(state, black_box(message)));
        }
        let micros = |one: &Duration| one.as_secs_f64() * 1e6;
        let ratio = median(ours.iter().zip(&same).map(|(ours, same)| micros(ours) / micros(same)));
        let beyond = median(ours.iter().zip(&same).map(|(ours, same)| micros(ours) - micros(same)));
        let [bare, same, ours] = [&bare, &same, &ours].map(|all| median(all.iter().map(micros)));
        let target = 1.25 * same + 30.0;
        let met = if ours <= target { "met" } else { "missed" };
        println!(
            "{size:>7}  {bare:>7.0}  {same:>14.0}  {ours:>15.0}  {ratio:>17.2}  {beyond:>15.0}  {target:>6.0}: {met}"
        );
    }
}

/// One Commit that adds many at once to a group of ten, turn by turn: what openmls alone takes of it, and what all that a hub does
/// takes. Prints the medians, and the longest of ours.
pub fn adds(_: &mut Criterion) {
    if !crate::is_asked_for("adds/one commit") {
        return;
    }
    println!("\none commit that adds many, in turns: medians in ms");
    println!("   adds  commit   openmls  stage and merge  longest  openmls' share   target");
    let sizes = if crate::is_test() { [(9, 1), (99, 1)] } else { [(99, 40), (999, 8)] };
    for ((count, turns), target) in sizes.into_iter().zip([50.0, 300.0]) {
        let scene = Scene::of(10);
        let key_packages = scene.newcomers(count);
        let message = scene.request(Operation::AddUsers { key_packages });
        let DsRequest::AddUsers(add) = &message.request else { panic!("adds") };
        let crypto = MlsCrypto::default();
        let (mut bare, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..turns {
            let tree = Tree::load(&scene.tree).unwrap();
            timed(&mut bare, || process_and_merge(&crypto, tree, black_box(&add.commit)));
            let (state, message) = (scene.state(), message.clone());
            timed(&mut ours, || scene.accept(state, black_box(message)));
        }
        let longest = ours.iter().max().unwrap().as_secs_f64() * 1e3;
        let millis = |all: &[Duration]| median(all.iter().map(|one| one.as_secs_f64() * 1e3));
        let (bare, ours) = (millis(&bare), millis(&ours));
        let met = if ours <= target { "met" } else { "missed" };
        println!(
            "{count:>7}  {:>3} KB  {bare:>8.1}  {ours:>15.1}  {longest:>7.1}  {:>13.0}%  {target:>5.0}: {met}",
            add.commit.as_slice().len() >> 10,
            bare / ours * 100.0,
        );
    }
}

/// What share of a Commit's cost at its hub is openmls itself (parse, process, merge), by what it does and how large the group is, turn
/// by turn. Prints the medians.
pub fn openmls_cost(_: &mut Criterion) {
    if !crate::is_asked_for("openmls cost") {
        return;
    }
    println!("\nopenmls cost, in turns: medians in µs");
    println!("members         commit  openmls  stage and merge  openmls' share");
    for (size, turns) in [(10, 200), (100, 100), (1000, 20)] {
        let turns = if crate::is_test() { 1 } else { turns };
        for kind in ["update", "add", "remove", "external join"] {
            // whoever has a commit under way begins no other
            let scene = Scene::of(size);
            let message = match kind {
                "update" => scene.request(Operation::UpdateClient { rotate_key: false }),
                "add" => scene.request(Operation::AddUsers { key_packages: scene.newcomers(1) }),
                "remove" => {
                    scene.request(Operation::RemoveUsers { users: vec![scene.other.clone()] })
                }
                _ => scene.join(),
            };
            let commit = commit_in(&message);
            let crypto = MlsCrypto::default();
            let (mut bare, mut ours) = (Vec::new(), Vec::new());
            for _ in 0..turns {
                let tree = Tree::load(&scene.tree).unwrap();
                timed(&mut bare, || process_and_merge(&crypto, tree, black_box(&commit)));
                let (state, message) = (scene.state(), message.clone());
                timed(&mut ours, || scene.accept(state, black_box(message)));
            }
            let micros = |all: &[Duration]| median(all.iter().map(|one| one.as_secs_f64() * 1e6));
            let (bare, ours) = (micros(&bare), micros(&ours));
            let share = bare / ours * 100.0;
            println!("{size:>7}  {kind:>13}  {bare:>7.0}  {ours:>15.0}  {share:>13.0}%");
        }
    }
}

fn commit_in(message: &DsMessage) -> MlsMessage {
    if let DsRequest::AddUsers(add) = &message.request {
        return add.commit.clone();
    }
    if let DsRequest::JoinGroup(join) = &message.request {
        return join.update.commit.clone();
    }
    let (DsRequest::UpdateClient(update) | DsRequest::RemoveUsers(update)) = &message.request
    else {
        panic!("no commit in {}", message.request.name());
    };
    update.commit.clone()
}

/// Adds how long `work` takes to `all`. What it leaves is dropped behind that.
fn timed<T>(all: &mut Vec<Duration>, work: impl FnOnce() -> T) {
    let began = Instant::now();
    let left = work();
    all.push(began.elapsed());
    drop(left);
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) / 2]
}

/// What a hub must do of an update commit, by openmls and the same cryptography alone: the request's signature, the
/// commit, the GroupInfo of its epoch.
fn do_the_same(crypto: &MlsCrypto, mut tree: Tree, message: &DsMessage) -> Tree {
    let DsRequest::UpdateClient(update) = &message.request else { panic!("an update") };
    let DsSenderId::LeafIndex(signer) = message.sender_id else { panic!("a member") };
    let key = tree.leaf(signer).unwrap().signature_key().as_slice().to_vec();
    let (label, content) = ("DSMessageTBS", message.to_be_signed());
    verify_with_label(tree.scheme(), &key, label, &content, message.signature.as_slice()).unwrap();
    let MlsMessageBodyIn::PublicMessage(public) = update.commit.parse().unwrap().extract() else {
        panic!("a public message");
    };
    let tag = confirmation_tag(&public).unwrap();
    let processed = tree.process(crypto, ProtocolMessage::PublicMessage(Box::new(public))).unwrap();
    let ProcessedMessageContent::StagedCommitMessage(staged) = processed.into_content() else {
        panic!("a commit");
    };
    let key = staged.update_path_leaf_node().unwrap().signature_key().as_slice().to_vec();
    let parts = InfoParts { partial: update.group_info.clone(), signer };
    verify_group_info(staged.group_context(), &tag, &parts, &key).unwrap();
    tree.merge(*staged).unwrap();
    tree
}

fn process_and_merge(crypto: &MlsCrypto, mut tree: Tree, commit: &MlsMessage) -> Tree {
    let MlsMessageBodyIn::PublicMessage(public) = commit.parse().unwrap().extract() else {
        panic!("a public message");
    };
    let processed = tree.process(crypto, ProtocolMessage::PublicMessage(Box::new(public))).unwrap();
    let ProcessedMessageContent::StagedCommitMessage(staged) = processed.into_content() else {
        panic!("a commit");
    };
    tree.merge(*staged).unwrap();
    tree
}
