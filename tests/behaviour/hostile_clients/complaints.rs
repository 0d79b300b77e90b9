//! Complaints of commits (PROTOCOL.md §2, "When a committer lies") from clients that mean no good: forged, cut, too large, sent
//! again, and in a flood. What they say of an honest commit counts once, and does nothing.

use std::collections::BTreeMap;

use mimid::{
    client::core::Operation,
    crypto::{SigningKey, sha256},
    wire::{
        client::{ClientMessage, ClientResponse, Complain},
        codec::Opaque,
        decode,
        ds::*,
        encode,
        extensions::Signature,
        ids::{Domain, Epoch, GroupId, LeafIndex},
    },
};

use super::{
    device::{Line, now, signed},
    requests::{node_with_rates, paced, until_told},
    siege::{body_bytes_max, in_step, outbound, send, sign_as},
    *,
};

const PATH: &str = "/v1/complaint";

/// How many complaints of each kind that nobody counts.
const UNCOUNTED: usize = 100;

/// An honest commit of `one`'s in a group of three users, and what may be said of it.
struct Scene<'a> {
    node: &'a Node,
    runtime: &'a tokio::runtime::Runtime,
    one: Client,
    other: Client,
    third: Client,
    group: GroupId,
    /// Before the commit.
    epoch: Epoch,
    hash: [u8; 32],
}

impl<'a> Scene<'a> {
    fn new(node: &'a Node, runtime: &'a tokio::runtime::Runtime) -> Self {
        let (one, other, group) = runtime.block_on(node.group(["trent", "victor"]));
        let third = runtime.block_on(async {
            let third = node.client("walter").await;
            let [a, it] = [&one, &third].map(|client| client.member().client().user());
            one.connect(&it).await.unwrap();
            third.receive(0).await.unwrap();
            third.accept(&a).await.unwrap();
            one.receive(0).await.unwrap();
            one.add_users(&group, &[it]).await.unwrap();
            third.receive(0).await.unwrap();
            third
        });
        in_step(runtime, &one, &other, &group);
        let mut line = Line::to(node);
        let epoch = one.member().group(&group).unwrap().epoch.unwrap();
        let operation = Operation::UpdateClient { rotate_key: false };
        let request = one.member().begin(&group, operation).unwrap();
        let message = outbound(&mut line, &one, request);
        let DsRequest::UpdateClient(update) = &message.request else { panic!("{message:?}") };
        let hash = sha256(update.commit.as_slice());
        let (_, response) = send(&mut line, &one, &message);
        one.member().settle(request, &response, now()).unwrap();
        in_step(runtime, &one, &other, &group);
        in_step(runtime, &one, &third, &group);
        Self { node, runtime, one, other, third, group, epoch, hash }
    }

    /// Of `by`, who has the leaf `leaf`; signed.
    fn complaint(&self, by: &Client, leaf: u32) -> CommitComplaint {
        let complaint = CommitComplaint {
            group_id: self.group.clone(),
            epoch: self.epoch,
            leaf_index: LeafIndex(leaf),
            commit_hash: Opaque::new(self.hash).unwrap(),
            // what takes nothing back has the same answer at any time
            reason: ComplaintReason::ExternalPub.into(),
            signature: Signature::default(),
        };
        resigned(by, complaint)
    }

    /// How many messages and complaints groups have taken.
    fn accepted(&self) -> u64 {
        self.node.metric("mimid_group_accepted_total")
    }

    /// What the group is to its members.
    fn sees(&self) -> String {
        let views = [&self.one, &self.other, &self.third].map(|client| {
            assert_eq!(self.runtime.block_on(client.receive(0)).unwrap(), 0, "something came");
            let view = client.member().group(&self.group).unwrap();
            let members: Vec<_> =
                view.members.iter().map(|it| (it.leaf, it.client.clone())).collect();
            (view.epoch, view.state, members, view.pending, view.authenticator)
        });
        format!("{views:?}")
    }
}

type Answer = (u16, Result<ComplaintResponse, DsError>);

fn post(line: &mut Line, bytes: &[u8]) -> Answer {
    said(line.post(PATH, bytes))
}

fn complain(line: &mut Line, through: &Client, complaint: &CommitComplaint) -> Answer {
    post(line, &sign_as(through, PATH, &body(complaint)))
}

fn body(complaint: &CommitComplaint) -> Vec<u8> {
    let hub_domain = Domain::new("localhost").unwrap();
    encode(&Complain { hub_domain, complaint: complaint.clone() })
}

fn said((status, answer): (u16, Vec<u8>)) -> Answer {
    let answer: ClientResponse = decode(&answer).unwrap();
    (status, answer.outcome.into_result().map(|body| decode(body.as_slice()).unwrap()))
}

fn resigned(by: &Client, mut complaint: CommitComplaint) -> CommitComplaint {
    let key: SigningKey = by.member().identity().leaf_key(SUITES[0]).unwrap().clone();
    let signed = key.sign_with_label(CommitComplaint::LABEL, &complaint.to_be_signed());
    complaint.signature = signed.unwrap();
    complaint
}

const RESYNC: ComplaintResponse =
    ComplaintResponse { outcome: ComplaintOutcome::Resync, wait_ms: 0 };
const NONE: ComplaintResponse = ComplaintResponse { outcome: ComplaintOutcome::None, wait_ms: 0 };

#[test]
fn a_complaint_that_is_forged_cut_too_large_or_sent_again_counts_for_nothing_or_once() {
    let node = Node::start(&[
        ("RATES__ADDRESS_PER_SECOND", "0"),
        ("RATES__MEMBER_PER_SECOND", "0"),
        // another hub that a complaint names is not looked for
        ("FEDERATION__ALLOW", "peer.example"),
    ]);
    let runtime = runtime();
    let scene = Scene::new(&node, &runtime);
    let mut line = Line::to(&node);
    let mallory = runtime.block_on(node.client("mallory"));
    let (before, accepted) = (scene.sees(), scene.accepted());
    let (victor, walter) = (1, 2);
    let right = scene.complaint(&scene.other, victor);
    let whole = body(&right);
    let mut codes = BTreeMap::<&str, usize>::new();
    let mut count = |name: &str, (status, answer): Answer| -> String {
        let code = match answer {
            // of a commit, epoch or leaf that there is not
            Ok(response) => {
                assert_eq!((status, response), (200, NONE), "{name}");
                "none"
            }
            Err(error) => {
                assert!((400..500).contains(&status), "{name}: {status} {error}");
                error.name()
            }
        };
        *codes.entry(code).or_default() += 1;
        code.to_owned()
    };

    // what it says: changed and signed by who may not, or left as it was
    let stranger = || Client::member(&mallory).identity().leaf_key(SUITES[0]).unwrap().clone();
    type Change = (&'static str, fn(&mut CommitComplaint), &'static str, &'static str);
    let changes: [Change; 7] = [
        ("nothing", |_| {}, "taken", "unauthenticated"),
        (
            "another group",
            |it| it.group_id = GroupId::of(&Domain::new("localhost").unwrap(), [9; 16]),
            "group_not_found",
            "group_not_found",
        ),
        ("the epoch before", |it| it.epoch = Epoch(it.epoch.0 - 1), "none", "none"),
        ("an epoch to come", |it| it.epoch = Epoch(it.epoch.0 + 1), "none", "none"),
        ("another commit", |it| it.commit_hash = Opaque::new([7; 32]).unwrap(), "none", "none"),
        ("another's leaf", |it| it.leaf_index = LeafIndex(2), "unauthenticated", "unauthenticated"),
        ("a leaf that there is not", |it| it.leaf_index = LeafIndex(u32::MAX), "none", "none"),
    ];
    for (name, change, as_it_was, by_a_stranger) in changes {
        let mut changed = right.clone();
        change(&mut changed);
        for through in [&scene.other, &mallory] {
            if as_it_was != "taken" {
                let code = count(name, complain(&mut line, through, &changed));
                assert_eq!(code, as_it_was, "{name}, the signature left");
            }
            let signature =
                stranger().sign_with_label(CommitComplaint::LABEL, &changed.to_be_signed());
            let forged = CommitComplaint { signature: signature.unwrap(), ..changed.clone() };
            let code = count(name, complain(&mut line, through, &forged));
            assert_eq!(code, by_a_stranger, "{name}, signed by a stranger");
        }
    }
    let mut other_reason = right.clone();
    other_reason.reason = ComplaintReason::Path.into();
    let unsigned = CommitComplaint { signature: Signature::default(), ..right.clone() };
    for (name, complaint) in [("another reason", &other_reason), ("no signature", &unsigned)] {
        let code = count(name, complain(&mut line, &mallory, complaint));
        assert_eq!(code, "unauthenticated", "{name}");
    }

    // its bytes
    for at in 0..whole.len() {
        let code = count(&format!("cut at {at}"), {
            let bytes = sign_as(&mallory, PATH, &whole[..at]);
            post(&mut line, &bytes)
        });
        assert_eq!(code, "malformed", "cut at {at}");
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        let bytes = sign_as(&mallory, PATH, &flipped);
        count(&format!("a bit of byte {at} flipped"), post(&mut line, &bytes));
    }
    for (name, bytes) in [
        ("one byte more", [&whole[..], &[0]].concat()),
        ("twice", [&whole[..], &whole[..]].concat()),
        ("nothing", Vec::new()),
    ] {
        let bytes = sign_as(&mallory, PATH, &bytes);
        assert_eq!(count(name, post(&mut line, &bytes)), "malformed", "{name}");
    }
    let limit = body_bytes_max(PATH);
    let mut outer = sign_as(&scene.other, PATH, &whole);
    let announced = said(line.announce(PATH, limit + 1, &outer));
    assert!(
        matches!(announced.1, Err(DsError::TooLarge { limit: told, .. }) if told == limit as u64),
        "{announced:?}"
    );
    count("one byte more than the limit", announced);
    outer.resize(limit, 0);
    assert_eq!(count("at the limit", post(&mut line, &outer)), "malformed");

    // what is around it
    let outer = sign_as(&scene.other, PATH, &whole);
    let mut named: ClientMessage = decode(&outer).unwrap();
    named.client = mallory.member().client().clone();
    let mallorys = mallory.member().identity().client_key.clone();
    let by = scene.other.member().client().clone();
    for (bytes, expected) in [
        (encode(&named), "unauthenticated"),
        (signed(&by, &mallorys, PATH, &whole), "unauthenticated"),
        (sign_as(&scene.other, "/v1/dequeue", &whole), "malformed"),
        (outer[..outer.len() / 2].to_vec(), "malformed"),
        ([&outer[..], &[0]].concat(), "malformed"),
    ] {
        assert_eq!(count("around it", post(&mut line, &bytes)), expected);
    }
    assert_eq!((scene.sees(), scene.accepted()), (before.clone(), accepted));

    // as it should be, and again: the same bytes, newly wrapped, through another client
    let first = post(&mut line, &outer);
    assert_eq!(first, (200, Ok(RESYNC)));
    assert_eq!(count("the same bytes again", post(&mut line, &outer)), "unauthenticated");
    let again = 20;
    for n in 0..again {
        let through = if n % 2 == 0 { &mallory } else { &scene.other };
        assert_eq!(complain(&mut line, through, &right), first);
        // for any reason it is the same user
        let other = resigned(&scene.other, other_reason.clone());
        let (status, answer) = complain(&mut line, through, &other);
        assert_eq!(status, 200, "{answer:?}");
        assert!(matches!(
            answer.unwrap().outcome,
            ComplaintOutcome::Wait | ComplaintOutcome::Resync
        ));
    }
    // the committer's own would make it two of three
    let own = scene.complaint(&scene.one, 0);
    assert_eq!(complain(&mut line, &mallory, &own), (200, Ok(NONE)));
    assert_eq!(scene.sees(), before, "one user's word is one");
    // that of the GroupInfo and that of the path, each once
    assert_eq!(scene.accepted(), accepted + 2);
    let all: usize = codes.values().sum();
    println!(
        "{all} hostile complaints: {codes:?}; one taken and sent again {} times: counted once",
        2 * again
    );
    assert!(all >= 2 * whole.len(), "{all}");
    // of two users it is a quorum: so it was the number that they lacked
    let second = scene.complaint(&scene.third, walter);
    assert_eq!(complain(&mut line, &mallory, &second), (200, Ok(RESYNC)));
    let started = Instant::now();
    while runtime.block_on(scene.third.receive(1000)).unwrap() == 0 {
        assert!(started.elapsed() < PATIENCE, "the hub proposes that the committer goes");
    }
}

#[test]
fn a_flood_of_complaints_is_told_to_wait_and_the_others_are_heard() {
    let node = node_with_rates();
    let runtime = runtime();
    let scene = Scene::new(&node, &runtime);
    let mut line = Line::to(&node);
    let mallory = runtime.block_on(node.client("mallory"));
    let honest = paced(&node);
    let right = scene.complaint(&scene.other, 1);
    let said = honest.speak_through("a member's complaints", || {
        until_told(|| {
            let (status, answer) = complain(&mut line, &scene.other, &right);
            if let Ok(answer) = &answer {
                assert_eq!(*answer, RESYNC);
            }
            (status, answer.err())
        })
    });
    println!("complaints of one member: {said:?}");
    assert_eq!(said.keys().copied().collect::<Vec<_>>(), ["ok", "rate_limited"]);
    // another user of the group is heard meanwhile, and what the same one has to say beside complaints
    let own = scene.complaint(&scene.one, 0);
    let (status, answer) = complain(&mut line, &scene.one, &own);
    assert_eq!((status, &answer), (200, &Ok(NONE)));
    runtime.block_on(scene.other.send_text(&scene.group, "and I?")).unwrap();

    // of nothing, of a group that there is not, and by who is not in it: nobody's quota, and nothing is done for them
    let nothing = resigned(
        &scene.other,
        CommitComplaint { commit_hash: Opaque::new([7; 32]).unwrap(), ..right.clone() },
    );
    let nowhere = resigned(
        &scene.other,
        CommitComplaint {
            group_id: GroupId::of(&Domain::new("localhost").unwrap(), [9; 16]),
            ..right.clone()
        },
    );
    let strange = resigned(&mallory, right.clone());
    honest.speak_through("complaints that nobody counts", || {
        for _ in 0..UNCOUNTED * factor() {
            assert_eq!(complain(&mut line, &mallory, &nothing), (200, Ok(NONE)));
            for (complaint, expected) in
                [(&nowhere, (404, "group_not_found")), (&strange, (401, "unauthenticated"))]
            {
                let (status, answer) = complain(&mut line, &mallory, complaint);
                assert_eq!((status, answer.unwrap_err().name()), expected);
            }
        }
    });
    let members = scene.one.member().group(&scene.group).unwrap().members.len();
    assert_eq!(members, 3);
    in_step(&runtime, &scene.one, &scene.other, &scene.group);
    runtime.block_on(scene.one.send_text(&scene.group, "still here")).unwrap();
}
