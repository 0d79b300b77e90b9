//! How long members of a group wait while it moves: between two providers of one process, their stores on disk, by
//! size. Half of the members are at either provider. There and back, many times.
//!
//! The pause is from when the mover's Commit is handed to its provider, before the freeze, until the first message is
//! accepted at the new hub: the group frozen, written down, sent, judged in full, taken; the answer; then the mover's own
//! merge of the Commit, and its message. Everybody else's is the longer by what their client waits before it asks anew.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode};
use mimid::{
    client::core::{Content, Home, Identity, Member, Operation, Settled},
    wire::{
        encode,
        extensions::KeyPackageClass,
        ids::{ClientUri, GroupId, RequestId},
    },
};

use crate::{
    linked::{Linked, register_of},
    support::synth::{Synth, member, system_now},
};

/// A group on two providers; one of its members moves it.
struct Scene {
    linked: Linked,
    _folder: tempfile::TempDir,
    group: GroupId,
    alice: Member,
    at_a: bool,
    said: u64,
}

/// One move as the mover saw it.
struct Pause {
    answered: Duration,
    accepted: Duration,
}

pub fn pauses(c: &mut Criterion) {
    let sizes: &[usize] = if crate::is_test() { &[10] } else { &[10, 100, 1000] };
    let runtime = actix_rt::System::new();
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
                    let pause = runtime.block_on(scene.move_on());
                    sum += pause.accepted;
                    pauses.push(pause);
                }
                sum
            });
        });
        if let Some(scene) = scene {
            scene.linked.end();
            table.push((size, pauses));
        }
    }
    group.finish();
    if table.is_empty() {
        return;
    }
    println!("\npause of a group on the move, there and back: median and longest, in ms");
    println!("members  moves    answered by the source    first message at the target");
    for (size, pauses) in table {
        let of = |one: fn(&Pause) -> Duration| {
            let mut all: Vec<f64> = pauses.iter().map(|it| one(it).as_secs_f64() * 1e3).collect();
            all.sort_by(f64::total_cmp);
            (all[all.len() / 2], all[all.len() - 1])
        };
        let (answered, accepted) = (of(|it| it.answered), of(|it| it.accepted));
        println!(
            "{size:>7}  {:>5}    {:>9.0} {:>12.0}    {:>14.0} {:>12.0}",
            pauses.len(),
            answered.0,
            answered.1,
            accepted.0,
            accepted.1
        );
    }
}

impl Scene {
    async fn of(size: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let linked = Linked::start_in(folder.path());
        let (a, b) = (&linked.a, &linked.b);
        let mut synth = Synth::new(&a.domain, a.sender.public(), 1);
        // alice's laptop is the last one
        synth.members.extend(
            (1..size - 1)
                .map(|index| member(if index % 2 == 0 { &a.domain } else { &b.domain }, index)),
        );
        synth.policy.members_max = 20_000;
        let mut tokens = Vec::new();
        for one in &synth.members {
            let side = if one.client.domain() == a.domain { a } else { b };
            tokens.push(side.enrol(&one.client, &one.leaf_key, one.register()).await);
        }
        a.node.bring_in(synth.import(|index| tokens[index].clone())).await.unwrap();

        let first = &synth.members[0];
        let uri = ClientUri::of(&first.client.user(), "laptop").unwrap();
        let identity = Identity::with_user_key(uri.clone(), first.user_key.clone()).unwrap();
        a.enrol(&uri, &identity.client_key, register_of(&identity)).await;
        let alice = Member::new(Home::in_memory().unwrap(), identity).unwrap();
        let own = a.tokens(&uri, 8).await;
        alice.store_tokens(KeyPackageClass::Group, false, &own).unwrap();
        let group = synth.id.clone();
        let scene = Self { linked, _folder: folder, group, alice, at_a: true, said: 0 };
        let (join, now) = (Operation::Join { code: None }, system_now());
        let join = scene.alice.join(&scene.group, &scene.linked.a.domain, "", join, now).unwrap();
        scene.drive(join).await;
        assert_eq!(scene.alice.group(&scene.group).unwrap().members.len(), size);
        scene.rest().await;
        scene
    }

    async fn drive(&self, request: RequestId) {
        for _ in 0..10 {
            let outbound = self.alice.outbound(request, system_now()).unwrap();
            let node = &self.linked.a.node;
            let response = node.group_operation(self.alice.client(), outbound.message).await;
            match self.alice.settle(request, &response, system_now()).unwrap() {
                Settled::Done(_) | Settled::Entered => return,
                Settled::Again { after_ms } => {
                    tokio::time::sleep(Duration::from_millis(after_ms)).await;
                }
                Settled::Refused(refusal) => panic!("{refusal}"),
            }
        }
        panic!("not answered");
    }

    /// Moves the group to the other provider and says something there.
    async fn move_on(&mut self) -> Pause {
        let to = if self.at_a { &self.linked.b } else { &self.linked.a };
        let wanted = self.alice.wish_to_move(&self.group, &to.domain).unwrap();
        let response = self.linked.a.node.request_migration(wanted).await.unwrap();
        let moving = Operation::Migrate { response: encode(&response) };
        let request = self.alice.begin(&self.group, moving).unwrap();
        // the Commit is made before its group stops
        let first = self.alice.outbound(request, system_now()).unwrap();
        let began = Instant::now();
        let node = &self.linked.a.node;
        let answer = node.group_operation(self.alice.client(), first.message).await;
        let answered = began.elapsed();
        let settled = self.alice.settle(request, &answer, system_now()).unwrap();
        assert!(matches!(settled, Settled::Done(_)), "{settled:?}");
        assert_eq!(self.alice.group(&self.group).unwrap().hub, to.domain);
        self.said += 1;
        let content = Content::text(&format!("message {} of the bench", self.said)).encode();
        let send = self.alice.begin(&self.group, Operation::Send { content }).unwrap();
        self.drive(send).await;
        let accepted = began.elapsed();
        self.at_a = !self.at_a;
        self.rest().await;
        Pause { answered, accepted }
    }

    /// Waits until nothing of a move is left to do and both providers have all of the group.
    async fn rest(&self) {
        let Linked { a, b, .. } = &self.linked;
        loop {
            let mut left = 0;
            for side in [a, b] {
                left += side.node.departures().await.unwrap().len();
            }
            let mut heads = Vec::new();
            for side in [a, b] {
                let head = side.store.group_head(&self.group).await.unwrap();
                heads.push(head.map(|head| head.next_sequence));
            }
            if left == 0 && heads[0] == heads[1] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
