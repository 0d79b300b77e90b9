//! Every kind of request to the Delivery Service (PROTOCOL.md §2) from outside: each is made rightly by an honest client,
//! and then sent as it should not be. Whatever comes of that, the group is to everybody what it was.

use std::collections::BTreeMap;

use mimid::{
    client::core::{
        Content, CoreError, NewGroup, NewProposal, Operation, PolicyChange, Right, Settled,
    },
    crypto::SigningKey,
    wire::{
        client::{
            ClientMessage, Dequeue, Dequeued, Flag, MintedTokens, ProviderKeys, ProviderKeysAnswer,
            QueueTokens,
        },
        codec::{List, Opaque, ShortOpaque},
        decode,
        ds::*,
        encode,
        extensions::{KeyPackageClass, Role, SignatureScheme},
        ids::{Domain, KeyPackageRef, LeafIndex, RequestId, Timestamp, UserKeyHash},
    },
};

use super::{
    device::{Line, now, signed},
    *,
};

/// What was sent and what came of it.
#[derive(Default)]
struct Tally {
    codes: BTreeMap<&'static str, usize>,
    kinds: BTreeMap<&'static str, usize>,
}

impl Tally {
    fn count(&mut self, kind: &'static str, code: &'static str) {
        *self.codes.entry(code).or_default() += 1;
        *self.kinds.entry(kind).or_default() += 1;
    }

    fn print(&self) {
        let all: usize = self.codes.values().sum();
        println!(
            "{all} hostile requests of {} kinds, {:?} each: all refused, codes {:?}",
            self.kinds.len(),
            self.kinds,
            self.codes
        );
    }
}

fn path_of(request: &DsRequest) -> &'static str {
    match request {
        DsRequest::WelcomeInfo(_) => "/v1/welcome_information",
        DsRequest::ExternalCommitInfo(_) => "/v1/external_commit_information",
        _ => "/v1/group_operation",
    }
}

/// The honest client's request for `request`, not sent.
fn outbound(line: &mut Line<'_>, client: &Client, request: RequestId) -> DsMessage {
    loop {
        let built = client.member().outbound(request, now());
        match built {
            Ok(outbound) => return outbound.message,
            Err(CoreError::NoToken { class, last_resort }) => {
                let last_resort_flag = if last_resort { Flag::Yes } else { Flag::No };
                let body = QueueTokens {
                    class,
                    last_resort: last_resort_flag,
                    count: 8,
                    revoke: List::default(),
                };
                let minted: MintedTokens = ask(line, client, "/v1/queue_tokens", &encode(&body));
                client.member().store_tokens(class, last_resort, &minted.tokens).unwrap();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn sign_as(client: &Client, path: &str, body: &[u8]) -> Vec<u8> {
    let identity = client.member().identity().clone();
    signed(&identity.client, &identity.client_key, path, body)
}

fn ask<T: tls_codec::DeserializeBytes>(
    line: &mut Line<'_>,
    client: &Client,
    path: &str,
    body: &[u8],
) -> T {
    let (_, answer) = line.post(path, &sign_as(client, path, body));
    let answer: mimid::wire::client::ClientResponse = decode(&answer).unwrap();
    decode(answer.outcome.into_result().unwrap().as_slice()).unwrap()
}

fn send(line: &mut Line<'_>, client: &Client, path: &str, body: &[u8]) -> (u16, DsResponse) {
    let (status, answer) = line.post(path, &sign_as(client, path, body));
    (status, decode(&answer).unwrap())
}

/// `message` signed by another key, whatever it says.
fn signed_by(key: &SigningKey, message: &DsMessage) -> DsMessage {
    let tbs = ds_message_tbs(&message.sender_id, &message.request, &message.context);
    let signature = key.sign_with_label("DSMessageTBS", &tbs).unwrap();
    DsMessage { signature: ShortOpaque::new(signature.into_vec()).unwrap(), ..message.clone() }
}

/// The request as it should not be: what is wrong, and its bytes.
fn mutations(message: &DsMessage, stranger: &SigningKey) -> Vec<(String, Vec<u8>)> {
    let whole = encode(message);
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |name: &str, change: &dyn Fn(&mut DsMessage)| {
        let mut changed = message.clone();
        change(&mut changed);
        // as it is, and with a signature that is good but for the key
        all.push((format!("{name}, the signature left"), encode(&changed)));
        all.push((format!("{name}, signed by a stranger"), encode(&signed_by(stranger, &changed))));
    };
    add("another request_id", &|it| it.context.request_id = RequestId([7; 16]));
    add("another time", &|it| it.context.timestamp = Timestamp(it.context.timestamp.0 + 1));
    add("an old time", &|it| it.context.timestamp = Timestamp(it.context.timestamp.0 - 600_000));
    add("a time to come", &|it| it.context.timestamp = Timestamp(it.context.timestamp.0 + 600_000));
    add("the end of time", &|it| it.context.timestamp = Timestamp(u64::MAX));
    add("another hub", &|it| it.context.hub_domain = Domain::new("elsewhere.example").unwrap());
    add("another group", &|it| {
        it.context.group_id = GroupId::of(&Domain::new("localhost").unwrap(), [9; 16]);
    });
    add("another version", &|it| it.context.version = ProtocolVersion(2));
    for leaf in [0, 1, 2, 3, 10_000, u32::MAX] {
        if message.sender_id != DsSenderId::LeafIndex(LeafIndex(leaf)) {
            add(&format!("leaf {leaf} as its sender"), &|it| {
                it.sender_id = DsSenderId::LeafIndex(LeafIndex(leaf));
            });
        }
    }
    add("a user as its sender", &|it| {
        it.sender_id = DsSenderId::UserKeyHash(UserKeyHash(Opaque::new([3; 32]).unwrap()));
    });
    add("a KeyPackage as its sender", &|it| {
        it.sender_id = DsSenderId::KeyPackageRef(KeyPackageRef(Opaque::new([4; 32]).unwrap()));
    });
    let mut unsigned = message.clone();
    unsigned.signature = ShortOpaque::new([0; 0]).unwrap();
    all.push(("no signature".into(), encode(&unsigned)));
    all.push(("a stranger's signature".into(), encode(&signed_by(stranger, message))));
    for step in 0..24 {
        let at = step * whole.len() / 24;
        all.push((format!("cut at {at}"), whole[..at].to_vec()));
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (step % 8);
        all.push((format!("a bit of byte {at} flipped"), flipped));
    }
    for back in [1, 2, 20, 60, 90] {
        let at = whole.len() - back;
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        all.push((format!("a bit of byte {at} flipped"), flipped));
    }
    all.push(("one byte more".into(), [&whole[..], &[0]].concat()));
    all.push(("twice".into(), [&whole[..], &whole[..]].concat()));
    all.push(("nothing".into(), Vec::new()));
    all.push(("three megabytes of nothing".into(), vec![0; 3 << 20]));
    all.push(("three megabytes more".into(), [&whole[..], &vec![0; 3 << 20][..]].concat()));
    // the code of every other kind, in front of this one's body
    let at = encode(&message.sender_id).len();
    for code in 0..=20 {
        if code != whole[at] {
            let mut other = whole.clone();
            other[at] = code;
            all.push((format!("as kind {code}"), other));
        }
    }
    all
}

/// What must stay as it is.
struct Witness<'a> {
    node: &'a Node,
    one: &'a Client,
    other: &'a Client,
    group: &'a GroupId,
}

impl Witness<'_> {
    fn sees(&self, runtime: &tokio::runtime::Runtime) -> String {
        // who attacks has a request pending, which it would go on with
        assert_eq!(runtime.block_on(self.other.receive(0)).unwrap(), 0, "something came");
        let views = [self.one, self.other].map(|client| {
            let view = client.member().group(self.group).unwrap();
            let members: Vec<_> =
                view.members.iter().map(|it| (it.leaf, it.client.clone(), it.role)).collect();
            (view.epoch, view.state, members, view.pending, view.authenticator)
        });
        let accepted = self.node.metric("mimid_group_accepted_total");
        format!("{views:?}, {accepted} accepted")
    }
}

/// Sends `message` in every way that it must not be sent in.
fn attack(
    runtime: &tokio::runtime::Runtime,
    line: &mut Line<'_>,
    witness: &Witness<'_>,
    sender: &Client,
    message: &DsMessage,
    stranger: &Client,
    tally: &mut Tally,
) {
    let before = witness.sees(runtime);
    let (kind, path) = (message.request.name(), path_of(&message.request));
    let strangers_key = stranger.member().identity().client_key.clone();
    for (name, bytes) in mutations(message, &strangers_key) {
        let (status, response) = send(line, sender, path, &bytes);
        let Outcome::Err(error) = response.outcome else { panic!("{kind}, {name}: it was taken") };
        assert!((400..500).contains(&status), "{kind}, {name}: {status} {error}");
        tally.count(kind, error.name());
    }
    // and what is around it: signed by another, cut, flipped, at another endpoint, twice
    let whole = encode(message);
    let outer = sign_as(sender, path, &whole);
    let mut message: ClientMessage = decode(&outer).unwrap();
    message.client = stranger.member().client().clone();
    let mut wrong =
        vec![encode(&message), outer[..outer.len() / 2].to_vec(), [&outer[..], &[0]].concat()];
    for at in [0, 5, outer.len() / 3, outer.len() - 1] {
        let mut flipped = outer.clone();
        flipped[at] ^= 4;
        wrong.push(flipped);
    }
    let identity = stranger.member().identity().clone();
    wrong.push(signed(sender.member().client(), &identity.client_key, path, &whole));
    wrong.push(sign_as(sender, "/v1/dequeue", &whole));
    let elsewhere = if path == "/v1/group_operation" {
        "/v1/welcome_information"
    } else {
        "/v1/group_operation"
    };
    for (path, bytes) in wrong
        .iter()
        .map(|bytes| (path, bytes.clone()))
        .chain([(elsewhere, sign_as(sender, elsewhere, &whole))])
    {
        let (status, answer) = line.post(path, &bytes);
        let response: DsResponse = decode(&answer).unwrap();
        let Outcome::Err(error) = response.outcome else { panic!("{kind}: it was taken") };
        assert!((400..500).contains(&status), "{kind}: {status} {error}");
        tally.count(kind, error.name());
    }
    assert_eq!(witness.sees(runtime), before, "{kind}");
}

/// Both have taken in all that there is.
fn in_step(runtime: &tokio::runtime::Runtime, one: &Client, other: &Client, group: &GroupId) {
    let epoch = |client: &Client| client.member().group(group).unwrap().authenticator;
    loop {
        let new = runtime
            .block_on(async { one.receive(0).await.unwrap() + other.receive(100).await.unwrap() });
        if new == 0 && epoch(one) == epoch(other) {
            return;
        }
    }
}

#[test]
fn every_kind_of_request_forged_replayed_cut_and_out_of_order_changes_nothing() {
    let node = Node::start(&[
        ("RATES__MEMBER_PER_SECOND", "0"),
        ("RATES__GROUP_PER_SECOND", "0"),
        // another hub that a request names is not looked for
        ("FEDERATION__ALLOW", "peer.example"),
    ]);
    let runtime = runtime();
    let (alice, bob, group) = runtime.block_on(node.group(["alice", "bob"]));
    let (carol, erin, mallory) = runtime.block_on(async {
        let clients =
            [node.client("carol").await, node.client("erin").await, node.client("mallory").await];
        for client in &clients[..2] {
            let (a, it) = (alice.member().client().user(), client.member().client().user());
            alice.connect(&it).await.unwrap();
            client.receive(0).await.unwrap();
            client.accept(&a).await.unwrap();
            alice.receive(0).await.unwrap();
        }
        let [carol, erin, mallory] = clients;
        (carol, erin, mallory)
    });
    let user = |client: &Client| client.member().client().user();
    // two more devices of alice's: one that is in the group, and one that is to come
    let device = async |name: &str, joins: bool| {
        let mut authorization = serde_json::to_value(alice.authorize_device().unwrap()).unwrap();
        if !joins {
            authorization["groups"] = serde_json::json!([]);
        }
        let registration = Registration {
            client: ClientUri::of(&user(&alice), name).unwrap(),
            server: node.server(),
            token: Vec::new(),
            authorization: Some(serde_json::from_value(authorization).unwrap()),
        };
        let home = Home::in_memory().unwrap();
        Client::register(home, registration, system_clock()).await.unwrap()
    };
    let (laptop, tablet, code) = runtime.block_on(async {
        let code = alice.add_code(&group, 1).await.unwrap();
        let laptop = device("laptop", false).await;
        (laptop, device("tablet", true).await, code)
    });
    in_step(&runtime, &alice, &bob, &group);
    let witness = Witness { node: &node, one: &alice, other: &bob, group: &group };
    let mut line = Line::to(&node);
    let mut tally = Tally::default();
    let key_packages = |of: &Client| {
        let found = runtime.block_on(alice.group_key_packages(&group, &user(of))).unwrap();
        found.into_iter().map(|(_, key_package)| key_package).collect::<Vec<_>>()
    };
    // these are made by members, one after the other, and given up again
    let own = laptop.member().key_packages(KeyPackageClass::Group, SUITES[0], false, 1, now());
    let own = match own {
        Err(CoreError::NoToken { class, last_resort }) => {
            let flag = if last_resort { Flag::Yes } else { Flag::No };
            let body = QueueTokens { class, last_resort: flag, count: 8, revoke: List::default() };
            let minted: MintedTokens = ask(&mut line, &laptop, "/v1/queue_tokens", &encode(&body));
            laptop.member().store_tokens(class, last_resort, &minted.tokens).unwrap();
            laptop
                .member()
                .key_packages(KeyPackageClass::Group, SUITES[0], false, 1, now())
                .unwrap()
        }
        made => made.unwrap(),
    };
    let own: Vec<Vec<u8>> = own.iter().map(|key_package| key_package.as_slice().to_vec()).collect();
    let operations = [
        Operation::Send { content: Content::text("hello").encode() },
        Operation::UpdateClient { rotate_key: true },
        Operation::AddUsers { key_packages: key_packages(&carol) },
        Operation::AddClients { key_packages: own },
        Operation::RemoveUsers { users: vec![user(&bob)] },
        Operation::RemoveClients { clients: vec![tablet.member().client().clone()] },
        Operation::UpdateGroup {
            changes: vec![PolicyChange::May { what: Right::Send, role: Role::Moderator }],
        },
        Operation::Propose { proposals: vec![NewProposal::Remove(bob.member().client().clone())] },
        Operation::UpdateQueueInfo,
        Operation::UpdateFanoutInfo { filter: FanoutFilter::HandshakeOnly },
        Operation::DeleteGroup,
        Operation::Resync,
    ];
    let mut old = Vec::new();
    for operation in operations {
        let request = alice.member().begin(&group, operation.clone()).unwrap();
        let mut message = outbound(&mut line, &alice, request);
        attack(&runtime, &mut line, &witness, &alice, &message, &mallory, &mut tally);
        if matches!(message.request, DsRequest::ExternalCommitInfo(_)) {
            let (_, info) = send(&mut line, &alice, path_of(&message.request), &encode(&message));
            let settled = alice.member().settle(request, &info, now()).unwrap();
            assert!(matches!(settled, Settled::Again { .. }));
            message = outbound(&mut line, &alice, request);
            attack(&runtime, &mut line, &witness, &alice, &message, &mallory, &mut tally);
        }
        old.push(message);
        alice.member().give_up(request).unwrap();
    }
    // a group that is not there yet
    let keys: ProviderKeysAnswer = {
        let body = ProviderKeys { domain: Domain::new("localhost").unwrap() };
        ask(&mut line, &mallory, "/v1/provider_keys", &encode(&body))
    };
    let ed25519 =
        keys.signature.keys.iter().find(|key| key.scheme == SignatureScheme::ED25519).unwrap();
    let hub = mimid::client::core::Hub {
        domain: Domain::new("localhost").unwrap(),
        external_sender: Opaque::new(ed25519.public_key.as_slice()).unwrap(),
    };
    let (_, request) = mallory.member().create_group(&hub, &NewGroup::default(), now()).unwrap();
    let creation = outbound(&mut line, &mallory, request);
    attack(&runtime, &mut line, &witness, &mallory, &creation, &alice, &mut tally);
    // who comes from outside: with a code, and asking to be added
    for operation in [Operation::Join { code: Some(code) }, Operation::AskToJoin] {
        let request = carol.member().join(&group, &hub.domain, "group", operation, now()).unwrap();
        let info = outbound(&mut line, &carol, request);
        attack(&runtime, &mut line, &witness, &carol, &info, &mallory, &mut tally);
        let (_, answer) = send(&mut line, &carol, path_of(&info.request), &encode(&info));
        if answer.outcome.clone().into_result().is_ok() {
            carol.member().settle(request, &answer, now()).unwrap();
            let entering = outbound(&mut line, &carol, request);
            attack(&runtime, &mut line, &witness, &carol, &entering, &mallory, &mut tally);
            old.push(entering);
        }
        carol.member().give_up(request).unwrap();
    }
    // a Welcome that is not taken up yet
    runtime.block_on(async {
        alice.add_users(&group, &[user(&erin)]).await.unwrap();
    });
    in_step(&runtime, &alice, &bob, &group);
    let body = Dequeue { acks: List::default(), max: 100, wait_ms: 0 };
    let entries: Dequeued = ask(&mut line, &erin, "/v1/dequeue", &encode(&body));
    for entry in entries.entries.iter() {
        erin.member().handle(entry, now()).unwrap();
    }
    let pending = erin.member().pending().unwrap();
    let (request, ..) =
        pending.iter().find(|(_, _, it)| matches!(it, Operation::Welcome { .. })).unwrap();
    let welcome = outbound(&mut line, &erin, *request);
    attack(&runtime, &mut line, &witness, &erin, &welcome, &mallory, &mut tally);
    runtime.block_on(async {
        erin.resume().await.unwrap();
        erin.receive(0).await.unwrap();
    });

    // out of order: what was made in an epoch before this one
    let before = witness.sees(&runtime);
    let (mut late, mut reads) = (0, 0);
    for message in &old {
        let kind = message.request.name();
        let (status, response) =
            send(&mut line, &alice, path_of(&message.request), &encode(message));
        match response.outcome {
            Outcome::Err(error) => {
                assert!((400..500).contains(&status), "{kind}: {error}");
                tally.count(kind, error.name());
                late += 1;
            }
            // neither of MLS nor of an epoch: they are good as long as their time is
            Outcome::Ok(_) => {
                let of_queue = matches!(
                    message.request,
                    DsRequest::UpdateQueueInfo(_) | DsRequest::UpdateClientFanoutInfo(_)
                );
                assert!(of_queue, "{kind} of another epoch was taken");
                reads += 1;
            }
        }
    }
    assert!(late >= 10 && reads == 2, "{late} {reads}");
    let after = witness.sees(&runtime);
    let strip = |seen: &str| seen.rsplit_once(", ").unwrap().0.to_owned();
    assert_eq!(strip(&before), strip(&after));

    // a replay: the same id is the same answer, once and for all, whoever brings it
    let request = alice
        .member()
        .begin(&group, Operation::Send { content: Content::text("once").encode() })
        .unwrap();
    let message = encode(&outbound(&mut line, &alice, request));
    let path = "/v1/group_operation";
    let (_, first) = send(&mut line, &alice, path, &message);
    alice.member().settle(request, &first, now()).unwrap();
    for client in [&alice, &alice, &mallory] {
        assert_eq!(send(&mut line, client, path, &message).1, first);
    }
    assert!(matches!(first.outcome, Outcome::Ok(DsResponseBody::Accepted(_))));
    // a member that was removed
    let request = erin
        .member()
        .begin(&group, Operation::Send { content: Content::text("late").encode() })
        .unwrap();
    let message = outbound(&mut line, &erin, request);
    runtime.block_on(alice.remove_users(&group, vec![user(&erin)])).unwrap();
    let (status, response) = send(&mut line, &erin, path, &encode(&message));
    let Outcome::Err(error) = response.outcome else { panic!("a removed member was heard") };
    assert_eq!((status, error.name()), (401, "unauthenticated"), "{error}");
    tally.count(message.request.name(), error.name());
    // and all goes on
    in_step(&runtime, &alice, &bob, &group);
    runtime.block_on(async {
        // what it asked for by itself was taken late
        alice.mute(&group, false).await.unwrap();
        bob.send_text(&group, "still here").await.unwrap();
        while alice.receive(1000).await.unwrap() == 0 {}
    });
    let texts = |client: &Client| {
        let events = client.member().events(0, usize::MAX >> 1).unwrap();
        events
            .into_iter()
            .filter_map(|(_, event)| match event {
                Event::Message { text, .. } => text,
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (texts(&alice), texts(&bob)),
        (vec!["still here".to_owned()], vec!["once".to_owned()])
    );
    tally.print();
}

#[test]
fn a_member_that_floods_is_told_to_wait_and_the_others_are_heard() {
    let node = Node::start(&[("RATES__MEMBER_PER_SECOND", "5"), ("RATES__MEMBER_BURST", "20")]);
    let runtime = runtime();
    let (alice, bob, group) = runtime.block_on(node.group(["mallory", "trent"]));
    let mut line = Line::to(&node);
    let (mut taken, mut told) = (0, 0);
    for n in 0..200 * factor() {
        let content = Content::text(&format!("{n}")).encode();
        let request = alice.member().begin(&group, Operation::Send { content }).unwrap();
        let message = outbound(&mut line, &alice, request);
        let (status, response) = send(&mut line, &alice, "/v1/group_operation", &encode(&message));
        match &response.outcome {
            Outcome::Ok(_) => {
                alice.member().settle(request, &response, now()).unwrap();
                taken += 1;
            }
            Outcome::Err(DsError::RateLimited { retry_after_ms, .. }) => {
                assert!(
                    status == 429 && (1..=1000).contains(retry_after_ms),
                    "{status} {retry_after_ms}"
                );
                alice.member().give_up(request).unwrap();
                told += 1;
            }
            Outcome::Err(error) => panic!("{error}"),
        }
    }
    // another member of the same group
    in_step(&runtime, &alice, &bob, &group);
    runtime.block_on(bob.send_text(&group, "and I?")).unwrap();
    println!("a member's flood: {taken} taken, {told} told to wait");
    assert!(taken >= 20 && told > taken, "{taken} {told}");
}
