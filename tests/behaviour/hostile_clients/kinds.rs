//! Every kind of request to the Delivery Service (PROTOCOL.md §2) from outside: each is made rightly by an honest client,
//! and then sent as it should not be, sent rightly, and sent again. Whatever comes of that, it is done once, and the group is to
//! everybody what it was.

use std::collections::BTreeSet;

use mimid::{
    client::{
        Authorization,
        core::{Content, NewGroup, NewProposal, Operation, PolicyChange, Settled},
    },
    wire::{
        client::{Dequeue, Dequeued},
        codec::List,
        ds::*,
        encode,
        extensions::{JoinPolicy, KeyPackageClass},
        ids::{Epoch, RequestId},
        portability::MigrationResponse,
    },
};

use super::{
    device::{Line, now},
    siege::{Siege, Tally, Witness, ask, hub_of, in_step, mint, of_epoch, outbound, send},
    *,
};
use crate::providers::{Providers, UNHURRIED, agree, team};

/// In how many wrong ways each kind is sent at the least.
const WAYS_LEAST: usize = 100;
/// A bound of handshake messages that is reached soon.
const HANDSHAKE_BYTES_MAX: usize = 64 << 10;

#[test]
fn every_kind_of_request_forged_replayed_cut_too_large_and_out_of_order_changes_nothing() {
    let mut tally = Tally::default();
    in_a_group(&mut tally);
    move_of_a_group(&mut tally);
    let all = tally.refused();
    println!(
        "{all} hostile requests of {} kinds, {:?} each: all refused, codes {:?}; of what was taken {:?} sent again: answered as before, done once",
        tally.kinds.len(),
        tally.kinds,
        tally.codes,
        tally.again,
    );
    assert_eq!(all, tally.codes.values().sum::<usize>());
    let every: BTreeSet<&str> = DsRequest::NAMES.into_iter().collect();
    assert_eq!(tally.kinds.keys().copied().collect::<BTreeSet<_>>(), every);
    assert_eq!(tally.again.keys().copied().collect::<BTreeSet<_>>(), every);
    for (kind, ways) in &tally.kinds {
        assert!(*ways >= WAYS_LEAST, "{kind}: {ways}");
    }
}

/// KeyPackages of `of`, which it has not published.
fn own_key_packages(line: &mut Line, of: &Client) -> Vec<Vec<u8>> {
    mint(line, of, KeyPackageClass::Group, false);
    let made = of.member().key_packages(KeyPackageClass::Group, SUITES[0], false, 1, now());
    made.unwrap().iter().map(|key_package| key_package.as_slice().to_vec()).collect()
}

fn user(client: &Client) -> UserUri {
    client.member().client().user()
}

/// Sixteen kinds, in a group that a node hosts.
fn in_a_group(tally: &mut Tally) {
    let handshake = format!("{}KiB", HANDSHAKE_BYTES_MAX >> 10);
    let node = Node::start(&[
        ("RATES__ADDRESS_PER_SECOND", "0"),
        ("RATES__MEMBER_PER_SECOND", "0"),
        ("RATES__GROUP_PER_SECOND", "0"),
        ("GROUPS__HANDSHAKE_BYTES_MAX", &handshake),
        // another hub that a request names is not looked for
        ("FEDERATION__ALLOW", "peer.example"),
    ]);
    let runtime = runtime();
    let (alice, bob, group) = runtime.block_on(node.group(["alice", "bob"]));
    let (carol, erin, dave, mallory) = runtime.block_on(async {
        let erin = node.client("erin").await;
        alice.connect(&user(&erin)).await.unwrap();
        erin.receive(0).await.unwrap();
        erin.accept(&user(&alice)).await.unwrap();
        alice.receive(0).await.unwrap();
        (node.client("carol").await, erin, node.client("dave").await, node.client("mallory").await)
    });
    // two more devices of alice's: one that is in the group, and one that is to come
    let device = async |name: &str, joins: bool| {
        let mut authorization = serde_json::to_value(alice.authorize_device().unwrap()).unwrap();
        if !joins {
            authorization["groups"] = serde_json::json!([]);
        }
        let authorization: Authorization = serde_json::from_value(authorization).unwrap();
        let registration = Registration {
            client: ClientUri::of(&user(&alice), name).unwrap(),
            server: node.server(),
            token: Vec::new(),
            authorization: Some(authorization),
        };
        let home = Home::in_memory().unwrap();
        Client::register(home, registration, system_clock()).await.unwrap()
    };
    let (laptop, tablet, code, spare) = runtime.block_on(async {
        let code = alice.add_code(&group, 1).await.unwrap();
        let laptop = device("laptop", false).await;
        let tablet = device("tablet", true).await;
        let spare = alice.create_group("to be deleted", SUITES[0], None).await.unwrap();
        (laptop, tablet, code, spare)
    });
    in_step(&runtime, &alice, &bob, &group);
    let mut siege = Siege {
        runtime: &runtime,
        line: Line::to(&node),
        accepted: Box::new(|| node.metric("mimid_group_accepted_total")),
        witness: Witness { one: &alice, other: &bob, group: &group },
        stranger: &mallory,
        handshake_bytes_max: HANDSHAKE_BYTES_MAX,
        tally,
    };
    let hub = hub_of(&mut siege.line, &mallory);
    let found = runtime.block_on(alice.group_key_packages(&group, &user(&erin))).unwrap();
    let key_packages: Vec<_> = found.into_iter().map(|(_, key_package)| key_package).collect();
    let own = own_key_packages(&mut siege.line, &laptop);
    let laptop_uri = laptop.member().client().clone();
    let open = vec![PolicyChange::Join(JoinPolicy::Open)];
    let by_alice = [
        Operation::Send { content: Content::text("hello").encode() },
        Operation::AddUsers { key_packages },
        Operation::AddClients { key_packages: own },
        Operation::RemoveUsers { users: vec![user(&bob)] },
        Operation::RemoveClients { clients: vec![tablet.member().client().clone()] },
        Operation::UpdateGroup { changes: open.clone() },
        Operation::Propose { proposals: vec![NewProposal::Remove(bob.member().client().clone())] },
        Operation::UpdateClient { rotate_key: false },
        Operation::Resync,
    ];

    // what was made in an epoch that is over by the time that it is sent
    let mut early = Vec::new();
    for operation in by_alice.clone() {
        let request = alice.member().begin(&group, operation).unwrap();
        early.push((&alice, built(&mut siege, &alice, request)));
        alice.member().give_up(request).unwrap();
    }
    let joins = || Operation::Join { code: Some(code) };
    let begin_join = |who: &Client, operation| {
        who.member().join(&group, &hub.domain, "group", operation, now()).unwrap()
    };
    let request = begin_join(&carol, joins());
    early.push((&carol, built(&mut siege, &carol, request)));
    carol.member().give_up(request).unwrap();
    runtime.block_on(bob.update(&group, false)).unwrap();
    let epoch = bob.member().group(&group).unwrap().epoch.unwrap();
    for (sender, message) in &early {
        in_another_epoch(&mut siege, sender, message, epoch);
    }
    siege.in_step();

    // each kind in every wrong way, then as it should be, then again
    for operation in by_alice {
        let operation = match operation {
            // bob stays: it is erin who goes, and later the laptop
            Operation::RemoveUsers { .. } => Operation::RemoveUsers { users: vec![user(&erin)] },
            Operation::Propose { .. } => {
                Operation::Propose { proposals: vec![NewProposal::Remove(laptop_uri.clone())] }
            }
            other => other,
        };
        if matches!(operation, Operation::RemoveUsers { .. }) {
            welcomed(&mut siege, &erin, &group);
        }
        let is_removal = matches!(operation, Operation::RemoveUsers { .. });
        let late = is_removal.then(|| {
            let content = Content::text("late").encode();
            let request = erin.member().begin(&group, Operation::Send { content }).unwrap();
            outbound(&mut siege.line, &erin, request)
        });
        if matches!(operation, Operation::UpdateGroup { .. }) {
            // by the code, as long as it takes one
            let request = begin_join(&carol, joins());
            let joined = goes_through(&mut siege, &carol, request);
            let error = siege.refused_anew(&carol, &joined);
            assert_eq!(error.name(), "wrong_epoch", "a join that comes again: {error}");
        }
        let request = alice.member().begin(&group, operation).unwrap();
        let message = goes_through(&mut siege, &alice, request);
        let kind = message.request.name();
        let again = match message.request {
            // the same ciphertext under another id is its sender's affair: who gets it drops it
            DsRequest::SendMessage(_) => None,
            DsRequest::Propose(_) => Some("invalid_proposal"),
            _ => Some("wrong_epoch"),
        };
        if let Some(code) = again {
            let error = siege.refused_anew(&alice, &message);
            assert_eq!(error.name(), code, "{kind} that comes again: {error}");
        }
        if let Some(late) = late {
            let error = siege.refused(&erin, &late);
            assert_eq!(error.name(), "unauthenticated", "a removed member: {error}");
        }
        if kind == "propose" {
            // or nobody may say anything
            runtime.block_on(alice.update(&group, false)).unwrap();
            siege.in_step();
        }
    }
    // of a key that is no leaf's any more
    let stale = alice.member().begin(&group, Operation::UpdateQueueInfo).unwrap();
    let stale_message = outbound(&mut siege.line, &alice, stale);
    alice.member().give_up(stale).unwrap();
    let rotation = Operation::UpdateClient { rotate_key: true };
    let request = alice.member().begin(&group, rotation).unwrap();
    let rotated = goes_through(&mut siege, &alice, request);
    let error = siege.refused_anew(&alice, &rotated);
    assert_eq!(error.name(), "unauthenticated", "{error}");
    let error = siege.refused(&alice, &stale_message);
    assert_eq!(error.name(), "unauthenticated", "{error}");
    for (sender, message) in early.iter().filter(|(sender, _)| std::ptr::eq(*sender, &alice)) {
        let error = siege.refused(sender, message);
        assert_eq!(error.name(), "unauthenticated", "{}: {error}", message.request.name());
    }

    // who asks to be added, now that the group is open
    let request = begin_join(&dave, Operation::AskToJoin);
    let asks = built(&mut siege, &dave, request);
    dave.member().give_up(request).unwrap();
    runtime.block_on(bob.update(&group, false)).unwrap();
    let epoch = bob.member().group(&group).unwrap().epoch.unwrap();
    in_another_epoch(&mut siege, &dave, &asks, epoch);
    siege.in_step();
    let request = begin_join(&dave, Operation::AskToJoin);
    let asked = goes_through(&mut siege, &dave, request);
    let error = siege.refused_anew(&dave, &asked);
    assert_eq!(error.name(), "invalid_proposal", "a newcomer's proposal that comes again: {error}");
    runtime.block_on(alice.update(&group, false)).unwrap();
    siege.in_step();
    let is_in = |who: &Client| {
        let members = bob.member().group(&group).unwrap().members;
        members.iter().any(|it| it.client == *who.member().client())
    };
    assert_eq!(
        [&carol, &dave, &erin, &laptop, &tablet].map(is_in),
        [true, true, false, false, false]
    );

    // neither of MLS nor of an epoch: of two the later one stands, and an older one is stale
    let queue = [
        Operation::UpdateQueueInfo,
        Operation::UpdateFanoutInfo { filter: FanoutFilter::HandshakeOnly },
    ];
    for operation in queue {
        let request = alice.member().begin(&group, operation.clone()).unwrap();
        let earlier = outbound(&mut siege.line, &alice, request);
        alice.member().give_up(request).unwrap();
        let request = alice.member().begin(&group, operation).unwrap();
        while now() <= earlier.context.timestamp {
            thread::yield_now();
        }
        goes_through(&mut siege, &alice, request);
        let error = siege.refused(&alice, &earlier);
        assert_eq!(error.name(), "stale_request", "{}: {error}", earlier.request.name());
    }

    // a group that is not there yet, and one that is not there any more
    let (_, request) = mallory.member().create_group(&hub, &NewGroup::default(), now()).unwrap();
    siege.stranger = &dave;
    let created = goes_through(&mut siege, &mallory, request);
    let error = siege.refused_anew(&mallory, &created);
    assert_eq!(error.name(), "invalid_group_id", "{error}");
    siege.stranger = &mallory;
    let request = alice.member().begin(&spare, Operation::DeleteGroup).unwrap();
    let deleted = goes_through(&mut siege, &alice, request);
    let error = siege.refused_anew(&alice, &deleted);
    assert_eq!(error.name(), "group_not_found", "{error}");

    // and all goes on
    runtime.block_on(async {
        alice.mute(&group, false).await.unwrap();
        bob.send_text(&group, "still here").await.unwrap();
        while alice.receive(1000).await.unwrap() == 0 {}
    });
    siege.in_step();
    let texts = |client: &Client| {
        let events = client.member().events(0, usize::MAX >> 1).unwrap();
        let text = |(_, event)| match event {
            Event::Message { text, .. } => text,
            _ => None,
        };
        events.into_iter().filter_map(text).collect::<Vec<_>>()
    };
    assert_eq!((texts(&alice), texts(&bob)), (vec!["still here".into()], vec!["hello".into()]));
}

/// The request that is not about information, not sent.
fn built(siege: &mut Siege<'_>, who: &Client, request: RequestId) -> DsMessage {
    let message = outbound(&mut siege.line, who, request);
    if !matches!(message.request, DsRequest::ExternalCommitInfo(_)) {
        return message;
    }
    let (_, info) = send(&mut siege.line, who, &message);
    let settled = who.member().settle(request, &info, now()).unwrap();
    assert!(matches!(settled, Settled::Again { .. }), "{info:?}");
    outbound(&mut siege.line, who, request)
}

/// Attacks each message of a request of `who`'s and has it done, once; gives the last.
fn goes_through(siege: &mut Siege<'_>, who: &Client, request: RequestId) -> DsMessage {
    let mut message = outbound(&mut siege.line, who, request);
    siege.attack(who, &message);
    siege.replay(who, request, &message);
    if matches!(message.request, DsRequest::ExternalCommitInfo(_)) {
        message = outbound(&mut siege.line, who, request);
        siege.attack(who, &message);
        siege.replay(who, request, &message);
    }
    message
}

/// `message` was made in the epoch before `epoch`, which is the group's: it is told so, and so is one of an epoch to come.
fn in_another_epoch(siege: &mut Siege<'_>, sender: &Client, message: &DsMessage, epoch: Epoch) {
    let kind = message.request.name();
    let before = (siege.accepted)();
    let is_member = matches!(message.sender_id, DsSenderId::LeafIndex(_));
    let error = siege.refused(sender, message);
    let DsError::WrongEpoch { current_epoch, missed, .. } = error else {
        panic!("{kind}: {error}")
    };
    // what it missed is told to whom is known to be in the group
    assert_eq!((current_epoch, missed.len()), (epoch, usize::from(is_member)), "{kind}");
    // a move names its epoch in the promise, too
    let is_move = matches!(message.request, DsRequest::StartMigration(_));
    let missed_ahead = usize::from(is_move);
    let ahead = of_epoch(message, epoch.next()).unwrap();
    let error = siege.refused_anew(sender, &ahead);
    let DsError::WrongEpoch { current_epoch, missed, .. } = error else {
        panic!("{kind}: {error}")
    };
    assert_eq!((current_epoch, missed.len()), (epoch, missed_ahead), "{kind}");
    assert_eq!((siege.accepted)(), before, "{kind}");
}

/// The request for what a Welcome needs, of a client that was added and has not come in yet; then it is in.
fn welcomed(siege: &mut Siege<'_>, who: &Client, group: &GroupId) {
    let body = Dequeue { acks: List::default(), max: 100, wait_ms: 0 };
    let entries: Dequeued = ask(&mut siege.line, who, "/v1/dequeue", &encode(&body)).unwrap();
    for entry in entries.entries.iter() {
        who.member().handle(entry, now()).unwrap();
    }
    let pending = who.member().pending().unwrap();
    let is_welcome = |operation: &Operation| matches!(operation, Operation::Welcome { .. });
    let (request, ..) = pending.iter().find(|(_, _, it)| is_welcome(it)).unwrap();
    let welcome = goes_through(siege, who, *request);
    // who has spoken as a member is no joiner any more
    siege.runtime.block_on(async {
        who.receive(0).await.unwrap();
        who.mute(group, false).await.unwrap();
    });
    let error = siege.refused_anew(who, &welcome);
    assert_eq!(error.name(), "unauthenticated", "a Welcome that was taken up: {error}");
}

/// The seventeenth, which takes two providers.
fn move_of_a_group(tally: &mut Tally) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let settings = format!(
        "allow = [\"a.example\", \"b.example\"]\n{UNHURRIED}\n\
         [rates]\nmember_per_second = 0\ngroup_per_second = 0\n\
         [groups]\nhandshake_bytes_max = \"{}KiB\"",
        HANDSHAKE_BYTES_MAX >> 10
    );
    let providers =
        runtime.block_on(Providers::start_with(&["a.example", "b.example"], 1, &settings, &[]));
    let (alice, bob, mallory, group) = runtime.block_on(async {
        let (alice, bob, group) = team(&providers).await;
        agree(&group, &[&alice, &bob]).await;
        (alice, bob, providers.client("mallory@a.example/phone").await, group)
    });
    let (hub, target) = (&providers.all[0], &providers.all[1].domain);
    let server = hub.server();
    let pem = server.certificate.unwrap();
    let address = server.url.strip_prefix("https://").unwrap().parse().unwrap();
    let mut line = Line::with(tls_that_trusts(pem.as_bytes(), &[]), address);
    let promised = |line: &mut Line| -> Operation {
        let wanted = alice.client.member().wish_to_move(&group, target).unwrap();
        let path = "/v1/migration_request";
        let response: MigrationResponse = ask(line, &alice.client, path, &encode(&wanted)).unwrap();
        Operation::Migrate { response: encode(&response) }
    };
    let promise = promised(&mut line);
    let mut siege = Siege {
        runtime: &runtime,
        line,
        accepted: Box::new(|| runtime.block_on(hub.metric("mimid_group_accepted_total")) as u64),
        witness: Witness { one: &alice.client, other: &bob.client, group: &group },
        stranger: &mallory.client,
        handshake_bytes_max: HANDSHAKE_BYTES_MAX,
        tally,
    };
    let request = alice.client.member().begin(&group, promise).unwrap();
    let early = outbound(&mut siege.line, &alice.client, request);
    alice.client.member().give_up(request).unwrap();
    runtime.block_on(async {
        bob.client.update(&group, false).await.unwrap();
    });
    let epoch = bob.view(&group).epoch.unwrap();
    in_another_epoch(&mut siege, &alice.client, &early, epoch);
    siege.in_step();
    // a promise is for one epoch, and so is what it goes with
    let promise = promised(&mut siege.line);
    let request = alice.client.member().begin(&group, promise).unwrap();
    let moved = goes_through(&mut siege, &alice.client, request);
    let error = siege.refused_anew(&alice.client, &moved);
    assert_eq!(error.name(), "group_moved", "{error}");
    let error = siege.refused(&alice.client, &early);
    assert_eq!(error.name(), "group_moved", "{error}");
    for player in [&alice, &bob] {
        assert_eq!(player.view(&group).hub, *target);
    }
    runtime.block_on(async {
        alice.client.send_text(&group, "at the new hub").await.unwrap();
        bob.until_hears(&group, "at the new hub").await;
    });
}
