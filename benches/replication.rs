//! What a message costs on its way from the hub to a guest provider, by how many of the guest's clients get it: read from
//! the hub's log, batched, signed, judged, and durable at the guest. It is stored there once, whoever gets it.
//!
//! Messages wait at the hub while they are made and go when the clock runs.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use mimid::{
    client::core::{Content, Home, Identity, Member, Operation, Settled},
    wire::{
        extensions::KeyPackageClass,
        ids::{ClientUri, GroupId, RequestId},
    },
};

use crate::{
    linked::Linked,
    support::synth::{Synth, member, system_now},
};

/// Messages that wait together.
const MESSAGES: u64 = 200;

/// What one link takes of a group with `guests` clients at the other provider, and one at the hub that writes.
struct Scene {
    linked: Linked,
    group: GroupId,
    alice: Member,
}

pub fn messages(c: &mut Criterion) {
    let runtime = actix_rt::System::new();
    let mut group = c.benchmark_group("replicated messages, hub to guest");
    group.throughput(Throughput::Elements(MESSAGES)).sample_size(10);
    group.sampling_mode(SamplingMode::Flat);
    for guests in [10, 1_000] {
        let scene = runtime.block_on(Scene::of(guests));
        group.bench_with_input(BenchmarkId::new("recipients", guests), &guests, |b, _| {
            b.iter_custom(|rounds| {
                (0..rounds).map(|_| runtime.block_on(scene.replicate(MESSAGES))).sum()
            });
        });
        scene.linked.end();
    }
    group.finish();
}

impl Scene {
    async fn of(guests: usize) -> Self {
        let linked = Linked::start();
        let (a, b) = (&linked.a, &linked.b);
        let mut synth = Synth::new(&a.domain, a.sender.public(), 1);
        synth.members.extend((1..=guests).map(|index| member(&b.domain, index)));
        synth.policy.members_max = 20_000;
        let mut tokens = Vec::new();
        for (index, one) in synth.members.iter().enumerate() {
            let side = if index == 0 { a } else { b };
            tokens.push(side.enrol(&one.client, &one.leaf_key, one.register()).await);
        }
        let import = synth.import(|index| tokens[index].clone());
        a.node.bring_in(import).await.unwrap();

        let first = &synth.members[0];
        let uri = ClientUri::of(&first.client.user(), "laptop").unwrap();
        let identity = Identity::with_user_key(uri.clone(), first.user_key.clone()).unwrap();
        let register = crate::linked::register_of(&identity);
        a.enrol(&uri, &identity.client_key, register).await;
        let alice = Member::new(Home::in_memory().unwrap(), identity).unwrap();
        let own = a.tokens(&uri, 8).await;
        alice.store_tokens(KeyPackageClass::Group, false, &own).unwrap();
        let scene = Self { linked, group: synth.id.clone(), alice };
        let join = Operation::Join { code: None };
        let now = system_now();
        let join = scene.alice.join(&scene.group, &scene.linked.a.domain, "", join, now).unwrap();
        scene.drive(join).await;
        scene.until_replicated().await;
        scene
    }

    async fn drive(&self, request: RequestId) {
        for _ in 0..10 {
            let outbound = self.alice.outbound(request, system_now()).unwrap();
            let node = &self.linked.a.node;
            let response = node.group_operation(self.alice.client(), outbound.message).await;
            match self.alice.settle(request, &response, system_now()).unwrap() {
                Settled::Done(_) | Settled::Entered => return,
                Settled::Again { .. } => {}
                Settled::Refused(refusal) => panic!("{refusal}"),
            }
        }
        panic!("not answered");
    }

    /// Replicates `count` messages; gives how long that took.
    async fn replicate(&self, count: u64) -> Duration {
        self.linked.open(false);
        for n in 0..count {
            let content = Content::text(&format!("message {n} of the bench")).encode();
            let send = self.alice.begin(&self.group, Operation::Send { content }).unwrap();
            self.drive(send).await;
        }
        let started = Instant::now();
        self.linked.open(true);
        self.until_replicated().await;
        started.elapsed()
    }

    /// Waits until the guest has what the hub has.
    async fn until_replicated(&self) {
        let (a, b) = (&self.linked.a.store, &self.linked.b.store);
        let next = a.group_head(&self.group).await.unwrap().unwrap().next_sequence;
        while b.group_head(&self.group).await.unwrap().map(|it| it.next_sequence) != Some(next) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
