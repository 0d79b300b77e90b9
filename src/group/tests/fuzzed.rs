//! Bytes as what is done to a group: steps of honest members, requests of theirs that were changed on the way and signed
//! anew, repeats, requests of another time, complaints of commits that nothing is wrong with, by one and by all, and the hub's clock.
//!
//! The fixture checks at every request that a refusal, an answer and staging change nothing. Here: one commit per epoch, an
//! admin in every group, the roster is the tree's; what is loaded from the log equals the live group, where the hub restarts
//! and in the end. Every run begins with a copy of one group and its clients, which are made once.

use super::{
    scenario::{Bound, Scenario, respond, say, sign_complaint, uri},
    steps::{NAMES, Pick, Step, group, members, run, settle},
};
use crate::{
    client::core::{NewProposal, Operation, SUITES},
    crypto::SigningKey,
    group::Reject,
    policy::role_of,
    store::records::GoneReason,
    wire::{
        codec::{Opaque, ShortOpaque, decode, encode},
        ds::{
            CommitComplaint, ComplaintOutcome, ComplaintReason, DsMessage, DsRequest,
            DsResponseBody, Grounds,
        },
        extensions::{Role, Signature},
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
    let mut is_blamed = false;
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
            19 => {
                (honest, is_blamed) = (false, true);
                complain(&mut scenario, &mut next);
            }
            _ => {
                honest = false;
                forge(&mut scenario, &mut sent, &mut next);
            }
        }
        let new = scenario.records.get(commits..).unwrap_or_default().len();
        // a commit that is void takes the group back by one
        let moved = scenario.state.epoch().0.saturating_sub(epochs.0);
        assert!(moved <= u64::try_from(new).unwrap_or(u64::MAX), "an epoch needs a record");
        holds(&scenario, is_blamed);
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

/// Some members say that they cannot process a commit, of whichever of the last ones, signed rightly or not.
fn complain(scenario: &mut Scenario, next: &mut impl FnMut() -> Byte) {
    let cases = &scenario.state.lies.cases;
    let Some(last) = cases.len().checked_sub(1) else { return };
    // mostly of the last one: it alone can be taken back
    let ago = (usize::from(next().0) % 8).saturating_sub(4);
    let case = &cases[last.saturating_sub(ago)];
    let (epoch, mut hash) = (case.epoch, case.hash);
    let (reason, how, who) = (next().0, next().0, next().0);
    hash[0] ^= u8::from(how % 32 == 0);
    let inside = members(scenario);
    for (at, name) in inside.iter().enumerate() {
        if who & (1 << at) == 0 {
            continue;
        }
        let Some(leaf_index) = scenario.state.roster.leaf_of(&uri(name)) else { continue };
        let key_of_epoch = scenario.state.info.external_pub().unwrap_or_default();
        let reason = match reason % 6 {
            0 => ComplaintReason::ConfirmationTag.into(),
            1 => ComplaintReason::Path.into(),
            2 => ComplaintReason::ExternalPub.into(),
            3 => Grounds::outside(Opaque::new(key_of_epoch).unwrap_or_default()),
            4 => Grounds::outside(Opaque::new([reason; 32]).unwrap()),
            _ => ComplaintReason::Other.into(),
        };
        let mut complaint = CommitComplaint {
            group_id: scenario.id.clone(),
            epoch,
            leaf_index,
            commit_hash: Opaque::new(hash).unwrap(),
            reason,
            signature: Signature::default(),
        };
        // one in eight by somebody else's key, or through somebody else's provider
        let signer = if how % 8 == 1 { inside[(at + 1) % inside.len()] } else { name };
        let relay = if how % 8 == 2 { uri("c:x/phone").domain() } else { uri(name).domain() };
        let identity = scenario.client(signer).identity().clone();
        sign_complaint(&mut complaint, identity.leaf_key(SUITES[0]).unwrap());
        let answer = scenario.complain(&complaint, &relay);
        let is_own = signer == *name && relay == uri(name).domain();
        assert!(
            is_own || !matches!(&answer, Ok(it) if it.outcome == ComplaintOutcome::Wait),
            "{answer:?}"
        );
        let again = scenario.complain(&complaint, &relay);
        assert_eq!(again.is_ok(), answer.is_ok(), "a repeat is answered alike");
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

/// What holds of a group whatever was sent; `is_blamed`: members have complained of somebody.
fn holds(scenario: &Scenario, is_blamed: bool) {
    let state = &scenario.state;
    if state.is_deleted() {
        return;
    }
    let tree: Vec<_> = state.tree.leaves().map(|(leaf, _)| leaf).collect();
    let roster: Vec<_> = state.roster.iter().map(|(leaf, _)| leaf).collect();
    assert_eq!(tree, roster, "the roster is the tree's");
    let is_admin = |hash: &_| role_of(&state.policy, hash) == Role::Admin;
    // who is blamed by more than half is removed by the hub, whoever it is
    assert!(
        is_blamed || state.roster.iter().any(|(_, it)| is_admin(&it.user)),
        "a group has an admin who is in it"
    );
}
