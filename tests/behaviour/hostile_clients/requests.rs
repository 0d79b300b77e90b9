//! Floods of requests that are good one by one: who asks too much is told to wait, by name and with a hint, and the others of
//! the same group and of other groups are heard.

use std::collections::BTreeMap;

use mimid::{
    client::core::{Content, Identity, NewProposal, Operation, PolicyChange, Settled},
    crypto::{self, SigningKey},
    wire::{
        client::{ClientResponse, Consent, Dequeue, Dequeued},
        codec::{List, Opaque, Raw, ShortOpaque},
        decode,
        ds::*,
        encode,
        extensions::JoinPolicy,
        ids::{Domain, RequestId},
    },
};

use super::{
    device::{Line, now},
    siege::{anew, ask, in_step, key_of, outbound, send, sign_as, signed_by},
    *,
};

/// What one member may ask of its group, and what all of a group may: five times as much, as by default.
const MEMBER_PER_SECOND: u64 = 10;
const MEMBER_BURST: u64 = 40;
const GROUP_PER_SECOND: u64 = 50;
const GROUP_BURST: u64 = 200;
/// Who speaks so seldom is never told to wait.
const PAUSE: Duration = Duration::from_millis(1000 / MEMBER_PER_SECOND);
/// How often who floods is told to wait before it stops.
const TOLD: usize = 100;

pub(super) fn node_with_rates() -> Node {
    Node::start(&[
        ("RATES__ADDRESS_PER_SECOND", "0"),
        ("RATES__MEMBER_PER_SECOND", &MEMBER_PER_SECOND.to_string()),
        ("RATES__MEMBER_BURST", &MEMBER_BURST.to_string()),
        ("RATES__GROUP_PER_SECOND", &GROUP_PER_SECOND.to_string()),
        ("RATES__GROUP_BURST", &GROUP_BURST.to_string()),
    ])
}

pub(super) fn paced(node: &Node) -> Honest {
    Honest::paced(node, PAUSE)
}

/// How long the hint says to wait, which is as long as the quota says at the most.
pub(super) fn is_told(status: u16, error: &DsError) -> bool {
    let DsError::RateLimited { retry_after_ms, .. } = error else { return false };
    assert_eq!(status, 429, "{error}");
    assert!((1..=1000 / MEMBER_PER_SECOND).contains(retry_after_ms), "{retry_after_ms} ms");
    true
}

/// Does something again and again until it was told to wait so often; what it was answered, by code. `once` says the status and
/// what was refused.
pub(super) fn until_told(
    mut once: impl FnMut() -> (u16, Option<DsError>),
) -> BTreeMap<&'static str, usize> {
    let started = Instant::now();
    let mut said = BTreeMap::new();
    let mut told = 0;
    while told < TOLD * factor() {
        assert!(started.elapsed() < PATIENCE * factor() as u32, "told {told} times only: {said:?}");
        let (status, refused) = once();
        let code = refused.as_ref().map_or("ok", DsError::name);
        told += usize::from(refused.is_some_and(|error| is_told(status, &error)));
        *said.entry(code).or_default() += 1;
    }
    let most = MEMBER_BURST + MEMBER_PER_SECOND * (started.elapsed().as_secs() + 1);
    let taken: usize =
        said.iter().filter(|(code, _)| **code != "rate_limited").map(|it| it.1).sum();
    assert!(taken as u64 <= most, "{taken} where {most} may be in that time: {said:?}");
    said
}

/// The same request as a new one each time; what was answered, and the first answer that was none to wait.
fn flood(
    line: &mut Line,
    client: &Client,
    message: &DsMessage,
) -> (BTreeMap<&'static str, usize>, DsResponse) {
    let key = key_of(client, message);
    let mut first = None;
    let said = until_told(|| {
        let (status, response) = send(line, client, &anew(&key, message));
        let refused = response.outcome.clone().into_result().err();
        first.get_or_insert(response);
        (status, refused)
    });
    (said, first.unwrap())
}

#[test]
fn a_flood_of_any_request_to_a_group_is_told_to_wait_and_the_others_are_heard() {
    let node = node_with_rates();
    let runtime = runtime();
    let (mallory, trent, group) = runtime.block_on(node.group(["mallory", "trent"]));
    let (oscar, peggy, erin) = runtime.block_on(async {
        let erin = node.client("erin").await;
        let open = PolicyChange::Join(JoinPolicy::Open);
        mallory.change_policy(&group, vec![open]).await.unwrap();
        let [a, it] = [&mallory, &erin].map(|client| client.member().client().user());
        erin.connect(&a).await.unwrap();
        mallory.receive(0).await.unwrap();
        mallory.accept(&it).await.unwrap();
        erin.receive(0).await.unwrap();
        mallory.receive(0).await.unwrap();
        mallory.add_users(&group, &[it]).await.unwrap();
        (node.client("oscar").await, node.client("peggy").await, erin)
    });
    in_step(&runtime, &mallory, &trent, &group);
    let honest = paced(&node);
    let mut line = Line::to(&node);
    let hub = Domain::new("localhost").unwrap();
    let join = |who: &Client| {
        let operation = Operation::Join { code: None };
        who.member().join(&group, &hub, "group", operation, now()).unwrap()
    };
    let codes = |said: &BTreeMap<&'static str, usize>| said.keys().copied().collect::<Vec<_>>();
    let heard = |number: usize| {
        let text = format!("number {number}");
        in_step(&runtime, &mallory, &trent, &group);
        runtime.block_on(trent.send_text(&group, &text)).unwrap();
        in_step(&runtime, &mallory, &trent, &group);
        let events = mallory.member().events(0, usize::MAX >> 1).unwrap();
        let is_it =
            |event: &Event| matches!(event, Event::Message { text: Some(it), .. } if *it == text);
        assert_eq!(events.iter().filter(|(_, event)| is_it(event)).count(), 1, "{text}");
    };

    // by who is not in the group: the information that whoever may come in may ask for
    let request = join(&oscar);
    let info = outbound(&mut line, &oscar, request);
    let (said, _) = honest.speak_through("a stranger asks for external_commit_info", || {
        flood(&mut line, &oscar, &info)
    });
    println!("external_commit_info of one stranger: {said:?}");
    assert_eq!(codes(&said), ["ok", "rate_limited"]);
    heard(0);

    // who is to come in asks for its Welcome's information, and others ask for it
    let body = Dequeue { acks: List::default(), max: 100, wait_ms: 0 };
    let entries: Dequeued = ask(&mut line, &erin, "/v1/dequeue", &encode(&body)).unwrap();
    for entry in entries.entries.iter() {
        erin.member().handle(entry, now()).unwrap();
    }
    let pending = erin.member().pending().unwrap();
    let is_welcome = |operation: &Operation| matches!(operation, Operation::Welcome { .. });
    let (request, ..) = pending.iter().find(|(_, _, it)| is_welcome(it)).unwrap();
    let welcome = outbound(&mut line, &erin, *request);
    let (said, _) = honest.speak_through("welcome_info", || {
        let strangers_key = oscar.member().identity().client_key.clone();
        for _ in 0..TOLD * factor() {
            let (status, response) = send(&mut line, &oscar, &anew(&strangers_key, &welcome));
            let error = response.outcome.into_result().unwrap_err();
            assert_eq!((status, error.name()), (401, "unauthenticated"), "{error}");
        }
        flood(&mut line, &erin, &welcome)
    });
    println!("welcome_info of one joiner: {said:?}");
    assert_eq!(codes(&said), ["ok", "rate_limited"]);
    heard(1);

    // a proposal, which is pending after the first
    let proposals = vec![NewProposal::Remove(erin.member().client().clone())];
    let request = mallory.member().begin(&group, Operation::Propose { proposals }).unwrap();
    let proposal = outbound(&mut line, &mallory, request);
    let (said, first) = honest.speak_through("propose", || flood(&mut line, &mallory, &proposal));
    println!("proposals of one member: {said:?}");
    assert_eq!((codes(&said), said["ok"]), (vec!["invalid_proposal", "ok", "rate_limited"], 1));
    mallory.member().settle(request, &first, now()).unwrap();
    runtime.block_on(async {
        while trent.receive(0).await.unwrap() > 0 {}
        trent.update(&group, false).await.unwrap();
    });
    heard(2);

    // where its messages go
    let request = mallory.member().begin(&group, Operation::UpdateQueueInfo).unwrap();
    let queue = outbound(&mut line, &mallory, request);
    let (said, first) =
        honest.speak_through("update_queue_info", || flood(&mut line, &mallory, &queue));
    println!("queue updates of one member: {said:?}");
    assert_eq!(codes(&said), ["ok", "rate_limited"]);
    mallory.member().settle(request, &first, now()).unwrap();
    heard(3);

    // into the group, again and again: the first is taken, and the epoch of the others is over, which costs nothing to see
    let request = join(&peggy);
    let entering = informed(&mut line, &peggy, request);
    let key = key_of(&peggy, &entering);
    let first = honest.speak_through("join_group", || {
        let started = Instant::now();
        let first = loop {
            let (status, first) = send(&mut line, &peggy, &anew(&key, &entering));
            match &first.outcome {
                Outcome::Ok(_) => break first,
                // strangers share what one member may ask, and others have asked before
                Outcome::Err(error) => assert!(is_told(status, error), "{error}"),
            }
            assert!(started.elapsed() < PATIENCE);
        };
        for _ in 0..TOLD * factor() {
            let (status, response) = send(&mut line, &peggy, &anew(&key, &entering));
            let error = response.outcome.into_result().unwrap_err();
            assert_eq!((status, error.name()), (409, "wrong_epoch"), "{error}");
        }
        first
    });
    peggy.member().settle(request, &first, now()).unwrap();
    heard(4);
    let request = mallory.member().begin(&group, Operation::Resync).unwrap();
    let again = informed(&mut line, &mallory, request);
    let (said, first) =
        honest.speak_through("resync_client", || flood(&mut line, &mallory, &again));
    println!("resyncs of one member: {said:?}");
    assert_eq!((codes(&said), said["ok"]), (vec!["ok", "rate_limited", "wrong_epoch"], 1));
    mallory.member().settle(request, &first, now()).unwrap();
    heard(5);
}

/// What is sent behind the information that it needs.
fn informed(line: &mut Line, who: &Client, request: RequestId) -> DsMessage {
    let question = outbound(line, who, request);
    let started = Instant::now();
    loop {
        let (status, response) = send(line, who, &question);
        match &response.outcome {
            Outcome::Ok(_) => {
                let settled = who.member().settle(request, &response, now()).unwrap();
                assert!(matches!(settled, Settled::Again { .. }), "{settled:?}");
                return outbound(line, who, request);
            }
            Outcome::Err(error) => assert!(is_told(status, error), "{error}"),
        }
        assert!(started.elapsed() < PATIENCE);
    }
}

/// A question of who has a key that it has just made, for a client that it is not asked to prove.
fn of_new_key(who: &Client, group: &GroupId) -> DsMessage {
    let client = who.member().client().clone();
    let identity = Identity::generate(client).unwrap();
    let leaf_key = SigningKey::generate(identity.user_key.scheme()).unwrap();
    let question = ExternalCommitInfo {
        group_id: group.clone(),
        sender: leaf_key.public().clone(),
        credential: Raw::of(&identity.credential()),
        user_key: Some(identity.vouch(leaf_key.public()).unwrap()),
        join_proof: None,
    };
    let unsigned = DsMessage {
        sender_id: DsSenderId::UserKeyHash(identity.user_key_hash()),
        request: DsRequest::ExternalCommitInfo(question),
        signature: ShortOpaque::new([0; 0]).unwrap(),
        context: DsContext {
            version: ProtocolVersion::MIMI10,
            hub_domain: Domain::new("localhost").unwrap(),
            group_id: group.clone(),
            timestamp: now(),
            request_id: RequestId(crypto::random()),
        },
    };
    signed_by(&identity.user_key, &unsigned)
}

/// Keys are made for nothing: however many somebody has, a group's members do not wait for it.
#[test]
fn a_stranger_with_a_new_key_for_each_question_takes_nothing_from_a_groups_members() {
    let node = node_with_rates();
    let runtime = runtime();
    let (alice, bob, group) = runtime.block_on(node.group(["trent", "victor"]));
    let mallory = runtime.block_on(node.client("mallory"));
    let honest = paced(&node);
    let mut line = Line::to(&node);
    for (policy, code) in [(JoinPolicy::Closed, "not_authorized"), (JoinPolicy::Open, "ok")] {
        runtime.block_on(alice.change_policy(&group, vec![PolicyChange::Join(policy)])).unwrap();
        in_step(&runtime, &alice, &bob, &group);
        let name = format!("a stranger with new keys asks a group that is {policy:?}");
        let said = honest.speak_through(&name, || {
            until_told(|| {
                let (status, response) = send(&mut line, &mallory, &of_new_key(&mallory, &group));
                (status, response.outcome.into_result().err())
            })
        });
        println!("external_commit_info of new keys: {said:?}");
        assert_eq!(said.keys().copied().collect::<Vec<_>>(), [code, "rate_limited"]);
        let content = Content::text("at once").encode();
        let request = alice.member().begin(&group, Operation::Send { content }).unwrap();
        let message = outbound(&mut line, &alice, request);
        let (status, response) = send(&mut line, &alice, &message);
        assert_eq!(status, 200, "{response:?}");
        alice.member().settle(request, &response, now()).unwrap();
    }
}

/// Hashes in one request, as many as its body holds.
const HASHES: usize = 65_536 / 33;
/// `consents_per_user_max`.
const CONSENTS_MAX: usize = 10_000;

#[test]
fn a_user_that_adds_consents_without_end_is_told_their_limit_and_the_others_are_heard() {
    let node = Node::start(&[]);
    let runtime = runtime();
    let mallory = runtime.block_on(node.client("mallory"));
    let honest = Honest::start(&node);
    let mut line = Line::to(&node);
    let path = "/v1/consent";
    let change = |line: &mut Line, add: Vec<Hash>, revoke: Vec<Hash>| {
        let body = Consent { add: List::new(add).unwrap(), revoke: List::new(revoke).unwrap() };
        let (status, answer) = line.post(path, &sign_as(&mallory, path, &encode(&body)));
        let answer: ClientResponse = decode(&answer).unwrap();
        (status, answer.outcome.into_result().err())
    };
    let is_full = |(status, error): (u16, Option<DsError>)| {
        let limit = CONSENTS_MAX as u64;
        assert!(
            matches!(error, Some(DsError::TooLarge { limit: told, .. }) if told == limit),
            "{error:?}"
        );
        assert_eq!(status, 413);
    };
    let first = hashes(HASHES);
    honest.speak_through("consents without end", || {
        assert_eq!(change(&mut line, first.clone(), vec![]), (200, None));
        let mut left = CONSENTS_MAX - HASHES;
        while left > 0 {
            let count = left.min(HASHES);
            assert_eq!(change(&mut line, hashes(count), vec![]), (200, None), "{left} left");
            left -= count;
        }
        for _ in 0..10 * factor() {
            is_full(change(&mut line, hashes(HASHES), vec![]));
            is_full(change(&mut line, hashes(1), vec![]));
            // what is there is no more
            assert_eq!(change(&mut line, first.clone(), vec![]), (200, None));
        }
    });
    let (gone, stays) = first.split_at(1);
    assert_eq!(change(&mut line, vec![], gone.to_vec()), (200, None));
    assert_eq!(change(&mut line, hashes(1), vec![]), (200, None));
    is_full(change(&mut line, gone.to_vec(), vec![]));
    assert_eq!(change(&mut line, vec![], stays.to_vec()), (200, None));
    assert_eq!(change(&mut line, hashes(stays.len()), vec![]), (200, None));
    is_full(change(&mut line, hashes(1), vec![]));
}

type Hash = Opaque<32, 32>;

fn hashes(count: usize) -> Vec<Hash> {
    (0..count).map(|_| Opaque::new(crypto::random::<32>()).unwrap()).collect()
}
