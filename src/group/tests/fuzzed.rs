//! Bytes as what is done to a group: steps of honest members, requests of theirs that were changed on the way and signed
//! anew, repeats, requests of another time, and the hub's clock.
//!
//! The fixture checks at every request that a refusal, an answer and staging change nothing. Here: one commit per epoch, an
//! admin in every group, the roster is the tree's; what is loaded from the log equals the live group, where the hub restarts
//! and in the end. Every run begins with a copy of one group and its clients, which are made once.

use super::{
    scenario::{Bound, Scenario, respond, say, uri},
    steps::{NAMES, Pick, Step, group, members, run, settle},
};
use crate::{
    client::core::{NewProposal, Operation},
    crypto::SigningKey,
    group::Reject,
    policy::role_of,
    store::records::GoneReason,
    wire::{
        codec::{ShortOpaque, decode, encode},
        ds::{DsMessage, DsRequest, DsResponseBody},
        extensions::Role,
        ids::{Domain, RequestId},
    },
};

#[derive(Debug, Clone, Copy)]
struct Byte(u8);

impl Pick for Byte {
    fn of<'a, T>(&self, all: &'a [T]) -> &'a T {
        &all[usize::from(self.0) % all.len()]
    }
}

/// A request that was sent, with what signs for its sender and who brought it.
struct Sent {
    message: DsMessage,
    signer: SigningKey,
    relay: Domain,
    accepted: Option<DsResponseBody>,
}

/// Steps of one sequence: a group's whole log is replayed at every step.
const STEPS_MAX: usize = 24;

/// What the hub does with each request is done in `bound`.
///
/// # Panics
/// Where the hub breaks a promise.
pub fn sequence(bytes: &[u8], bound: Bound) {
    let mut bytes = bytes.iter().copied();
    let mut scenario = START.with(Scenario::copy);
    scenario.reloads = false;
    scenario.bound = bound;
    let mut sent: Vec<Sent> = Vec::new();
    let mut honest = true;
    for _ in 0..STEPS_MAX {
        let Some(what) = bytes.next() else { break };
        if scenario.state.is_deleted() {
            break;
        }
        let epochs = scenario.state.epoch();
        let commits = scenario.records.len();
        let mut next = || Byte(bytes.next().unwrap_or(0));
        match what % 24 {
            0 => run(&mut scenario, &Step::Say(next())),
            1 => run(&mut scenario, &Step::Update(next(), next().0 % 2 == 0)),
            2 => run(&mut scenario, &Step::Add(next(), next())),
            3 => run(&mut scenario, &Step::Remove(next(), next())),
            4 => run(&mut scenario, &Step::Join(next())),
            5 => run(&mut scenario, &Step::Ask(next())),
            6 => run(&mut scenario, &Step::Resync(next())),
            7 => run(&mut scenario, &Step::Leave(next())),
            8 => run(&mut scenario, &Step::ProposeUpdate(next())),
            9 => run(&mut scenario, &Step::ProposeRemove(next(), next())),
            10 => run(&mut scenario, &Step::ProposeAdd(next(), next())),
            11 => run(&mut scenario, &Step::Moderator(next())),
            12 => run(&mut scenario, &Step::Gone(next())),
            13 => run(&mut scenario, &Step::Deliver(next())),
            14 => {
                scenario.is_reloaded();
                run(&mut scenario, &Step::<Byte>::Restart(next().0 % 2 == 0));
            }
            15 => run(&mut scenario, &Step::Race(vec![next(), next(), next()])),
            16 => {
                // up to eleven days at once; the hub does what is due
                let days = u64::from(next().0) / 23;
                scenario.now = scenario.now.plus_ms(days * 86_400_000 + u64::from(next().0));
                scenario.hub_acts(&[]);
            }
            17 => {
                scenario.hub_acts(&[("b:nobody/phone", GoneReason::AccountDeleted)]);
            }
            18 if honest => settle(&mut scenario),
            _ => {
                honest = false;
                forge(&mut scenario, &mut sent, &mut next);
            }
        }
        let new = scenario.records.get(commits..).unwrap_or_default().len();
        let moved = scenario.state.epoch().0 - epochs.0;
        assert!(moved <= u64::try_from(new).unwrap_or(u64::MAX), "an epoch needs a record");
        holds(&scenario);
    }
    scenario.is_reloaded();
}

thread_local! {
    static START: Scenario = start();
}

/// The group that every run begins with, and everybody who may come into it.
fn start() -> Scenario {
    let mut scenario = group();
    for name in NAMES {
        scenario.client(name);
    }
    scenario
}

/// A request of a member, changed and signed by it anew, or sent before; accepted as it came or not, the hub answers.
fn forge(scenario: &mut Scenario, sent: &mut Vec<Sent>, next: &mut impl FnMut() -> Byte) {
    let kind = next().0 % 4;
    if kind == 0 && !sent.is_empty() {
        // again, and whoever brings it
        let one = next().of(sent);
        let relay = if next().0 % 4 == 0 { uri("c:x/phone").domain() } else { one.relay.clone() };
        let same = relay == one.relay;
        let answer = scenario.submit_via(&one.message, relay);
        // what is no commit is forgotten after a day
        let remembered = |accepted: &DsResponseBody| {
            matches!(accepted, DsResponseBody::Accepted(it)
                if scenario.now.ms_since(it.accepted_at) <= scenario.hub.settings.remember_ms)
        };
        if let (Some(accepted), true) = (&one.accepted, same)
            && remembered(accepted)
        {
            assert_eq!(answer.as_ref().ok(), Some(accepted), "a repeat is answered the same");
        }
        return;
    }
    let inside = members(scenario);
    if inside.is_empty() {
        return;
    }
    let who = *next().of(&inside[..]);
    let other = uri(*next().of(&inside[..]));
    let operation = match next().0 % 10 {
        0 => Operation::UpdateClient { rotate_key: true },
        1 => Operation::UpdateClient { rotate_key: false },
        2 => say("x"),
        3 => Operation::RemoveUsers { users: vec![other.user()] },
        4 => Operation::RemoveClients { clients: vec![other] },
        5 => Operation::Propose { proposals: vec![NewProposal::Leave] },
        6 => Operation::Propose { proposals: vec![NewProposal::Remove(other)] },
        7 => Operation::UpdateQueueInfo,
        8 => Operation::DeleteGroup,
        _ => Operation::Propose { proposals: vec![NewProposal::Update] },
    };
    let member = scenario.client(who);
    let Ok(request) = member.begin(&scenario.id, operation) else { return };
    let Ok(outbound) = member.outbound(request, scenario.now) else {
        let _ = member.give_up(request);
        return;
    };
    let signer = member.signer_of(request).expect("it was built");
    let mut message = outbound.message;
    if next().0 % 4 == 0 {
        message.context.request_id = RequestId([next().0; 16]);
    }
    let changes = next().0 % 4;
    for _ in 0..changes {
        change(&mut message, sent, next);
    }
    if next().0 % 8 != 0 {
        let signature = signer.sign_with_label("DSMessageTBS", &message.to_be_signed()).unwrap();
        message.signature = ShortOpaque::new(signature.as_slice()).unwrap();
    }
    let relay = uri(who).domain();
    let answer = scenario.submit_via(&message, relay.clone());
    assert!(!matches!(answer, Err(Reject::Broken(_))), "{answer:?}");
    let _ = member.settle(request, &respond(&answer), scenario.now);
    let _ = member.give_up(request);
    let accepted = answer.ok().filter(|body| matches!(body, DsResponseBody::Accepted(_)));
    if sent.len() < 16 {
        sent.push(Sent { message, signer, relay, accepted });
    }
}

fn change(message: &mut DsMessage, sent: &[Sent], next: &mut impl FnMut() -> Byte) {
    match next().0 % 6 {
        0 => message.context.timestamp.0 ^= 1 << (next().0 % 64),
        1 if !sent.is_empty() => message.request = next().of(sent).message.request.clone(),
        2 if !sent.is_empty() => message.sender_id = next().of(sent).message.sender_id.clone(),
        3 => {
            // another operation with the same body, where the bodies are alike
            let mut bytes = encode(&message.request);
            bytes[0] = next().0 % 18;
            if let Ok(request) = decode::<DsRequest>(&bytes) {
                message.request = request;
            }
        }
        4 if !sent.is_empty() => {
            // signed by somebody else's key
            let other = next().of(sent);
            let tbs = message.to_be_signed();
            let signature = other.signer.sign_with_label("DSMessageTBS", &tbs).unwrap();
            message.signature = ShortOpaque::new(signature.as_slice()).unwrap();
        }
        _ => {
            let mut bytes = encode(&message.request);
            let at = (usize::from(next().0) * 256 + usize::from(next().0)) % bytes.len();
            bytes[at] ^= next().0;
            if let Ok(request) = decode::<DsRequest>(&bytes) {
                message.request = request;
            }
        }
    }
}

/// What holds of a group whatever was sent.
fn holds(scenario: &Scenario) {
    let state = &scenario.state;
    if state.is_deleted() {
        return;
    }
    let tree: Vec<_> = state.tree.leaves().map(|(leaf, _)| leaf).collect();
    let roster: Vec<_> = state.roster.iter().map(|(leaf, _)| leaf).collect();
    assert_eq!(tree, roster, "the roster is the tree's");
    let is_admin = |hash: &_| role_of(&state.policy, hash) == Role::Admin;
    assert!(
        state.roster.iter().any(|(_, it)| is_admin(&it.user)),
        "a group has an admin who is in it"
    );
}
