//! Decoding of the largest structs that a provider takes from strangers: what a request costs before any rule sees it.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use mimid::wire::{
    self,
    client::{ClientMessage, PublishKeyPackages},
    codec::{List, Opaque, Text},
    ds::{DsError, DsMessage, DsResponse, Outcome, ProtocolVersion},
    extensions::{GroupPolicy, RoleEntry},
    queueing::QueueEntry,
};

/// The vectors, grown to what the limits allow.
pub fn largest_structs(c: &mut Criterion) {
    bench(c, "DSMessage add_users", &vector("DSMessage.add_users"), decodes::<DsMessage>);
    bench(c, "DSMessage create_group", &vector("DSMessage.create_group"), decodes::<DsMessage>);
    bench(c, "QueueEntry mls_message", &vector("QueueEntry.mls_message"), decodes::<QueueEntry>);

    // a client publishes as many KeyPackages as fit
    let three: PublishKeyPackages = wire::decode(&vector("PublishKeyPackages")).unwrap();
    let size = wire::encode(&three).len() / 3;
    let many = (0..4 * 1024 * 1024 / size - 1).map(|_| three.key_packages[0].clone()).collect();
    let many = PublishKeyPackages { key_packages: List::new(many).unwrap() };
    bench(c, "PublishKeyPackages 4 MiB", &wire::encode(&many), decodes::<PublishKeyPackages>);

    let mut message: ClientMessage = wire::decode(&vector("ClientMessage")).unwrap();
    message.body = Opaque::new(vec![0; 4 * 1024 * 1024]).unwrap();
    bench(c, "ClientMessage 4 MiB", &wire::encode(&message), decodes::<ClientMessage>);

    let mut policy: GroupPolicy = wire::decode(&vector("GroupPolicy")).unwrap();
    let roles = (0..10_000u32).map(|n| RoleEntry {
        user_key_hash: wire::ids::UserKeyHash(
            Opaque::new([&n.to_be_bytes()[..], &[0; 28]].concat()).unwrap(),
        ),
        role: policy.roles[0].role,
    });
    policy.roles = List::new(roles.collect()).unwrap();
    bench(c, "GroupPolicy 10,000 roles", &wire::encode(&policy), decodes::<GroupPolicy>);

    let DsMessage { request, .. } = wire::decode(&vector("DSMessage.update_client")).unwrap();
    let wire::ds::DsRequest::UpdateClient(update) = request else { panic!("an update") };
    let missed = DsError::WrongEpoch {
        detail: Text::truncated("the group is further"),
        current_epoch: wire::ids::Epoch(64),
        missed: List::new(vec![update.commit; 64]).unwrap(),
    };
    let answer = DsResponse { version: ProtocolVersion::MIMI10, outcome: Outcome::Err(missed) };
    bench(c, "DSResponse wrong_epoch, 64 missed", &wire::encode(&answer), decodes::<DsResponse>);
}

fn bench(c: &mut Criterion, name: &str, bytes: &[u8], decode: fn(&[u8])) {
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_with_input(BenchmarkId::from_parameter(name), bytes, |b, bytes| {
        b.iter_batched(|| bytes, |bytes| decode(black_box(bytes)), BatchSize::SmallInput);
    });
    group.finish();
}

fn decodes<T: tls_codec::DeserializeBytes>(bytes: &[u8]) {
    black_box(wire::decode::<T>(bytes).unwrap());
}

fn vector(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let file: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    hex::decode(file["hex"].as_str().unwrap()).unwrap()
}
