//! Proposals with membership tags that no member can verify, which a hub cannot see. PROTOCOL.md §2, "Membership tags of proposals".

use openmls::prelude::LeafNodeIndex;

use super::{
    rogue::Rogue,
    scenario::{Scenario, Setup, policy, propose, say, update, uri},
};
use crate::{
    client::core::{
        CoreError, Event, GroupState as ClientState, NewProposal, Operation, PolicyChange,
    },
    group::Reject,
    wire::{
        codec::{List, Raw, encode},
        ds::{DsRequest, DsResponseBody, Propose},
        extensions::{JoinPolicy, Role},
        mls::MlsMessage,
        queueing::QueueEvent,
    },
};

const REMOVE: u16 = 3;
const SELF_REMOVE: u16 = 10;
const HONEST: [&str; 3] = ["alice/phone", "bob/phone", "b:carol/phone"];

/// Three who are honest and mallory, who may remove members; anybody may come in.
fn scene() -> (Scenario, Rogue) {
    let setup = Setup::policy(|policy| {
        policy.join = JoinPolicy::Open;
    });
    let mut scenario = setup.group_of(HONEST);
    let mut mallory = Rogue::member(&mut scenario, "alice/phone", "mallory/phone");
    let change = PolicyChange::Role { user: uri("mallory/phone").user(), role: Role::Moderator };
    scenario.act("alice/phone", policy(change)).unwrap();
    scenario.deliver_all();
    mallory.follow(&scenario);
    (scenario, mallory)
}

fn propose_raw(
    scenario: &mut Scenario,
    mallory: &Rogue,
    proposal: MlsMessage,
) -> Result<DsResponseBody, Reject> {
    let request = Propose { proposals: List::new(vec![proposal]).unwrap() };
    let message = mallory.request(scenario, DsRequest::Propose(request));
    scenario.submit(&message)
}

/// As openmls makes it, tag and all.
fn remove_of(scenario: &Scenario, mallory: &mut Rogue, whom: &str) -> MlsMessage {
    let leaf = LeafNodeIndex::new(scenario.leaf(whom).0);
    let group = mallory.group.as_mut().unwrap();
    let made = group.propose_remove_member(&mallory.provider, &mallory.leaf, leaf);
    Raw::of(&made.unwrap().0)
}

/// mallory proposes, signed as it must be, but for a tag that is no member's.
fn untagged(
    scenario: &mut Scenario,
    mallory: &Rogue,
    kind: u16,
    body: &[u8],
) -> Result<DsResponseBody, Reject> {
    let proposal =
        mallory.handmade_proposal(scenario, &[kind.to_be_bytes().as_slice(), body].concat());
    propose_raw(scenario, mallory, proposal)
}

fn untagged_remove(scenario: &mut Scenario, mallory: &Rogue, whom: &str) {
    let leaf = scenario.leaf(whom).0.to_be_bytes();
    untagged(scenario, mallory, REMOVE, &leaf).unwrap();
}

/// All that are honest and in the group are in the hub's epoch, with one another, and lost nothing on the way.
fn agree(scenario: &mut Scenario) {
    scenario.deliver_all();
    let mut seen = Vec::new();
    for name in HONEST {
        let events = scenario.events(name);
        let lost = |event: &&Event| matches!(event, Event::Lost { .. } | Event::Unusable { .. });
        assert_eq!(events.iter().find(lost), None, "{name}");
        if !scenario.has(name) {
            continue;
        }
        let view = scenario.client(name).group(&scenario.id).unwrap();
        assert_eq!(view.state, ClientState::Active, "{name}");
        assert_eq!(view.epoch, Some(scenario.state.epoch()), "{name}");
        seen.push(view.authenticator);
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
}

fn was_warned(scenario: &mut Scenario, name: &str) -> bool {
    let of_mallory =
        |event: &Event| matches!(event, Event::Misbehaviour { what } if what.contains("mallory"));
    scenario.events(name).iter().any(of_mallory)
}

#[test]
fn what_has_a_wrong_tag_is_committed_as_anything_else_and_the_group_goes_on() {
    let (mut scenario, mallory) = scene();
    untagged_remove(&mut scenario, &mallory, "bob/phone");
    // alice has not heard of it: the hub's answer says what is pending
    scenario.act("alice/phone", update()).unwrap();
    assert!(!scenario.has("bob/phone"), "who may remove has signed it");
    agree(&mut scenario);
    for name in HONEST {
        assert!(was_warned(&mut scenario, name), "{name}");
    }
    scenario.act("b:carol/phone", say("still here")).unwrap();
    // again, and this time all have heard of it before they do anything
    untagged_remove(&mut scenario, &mallory, "b:carol/phone");
    scenario.deliver_all();
    let text = scenario.begin("alice/phone", say("and again"));
    let alice = scenario.client("alice/phone");
    let tried = alice.outbound(text, scenario.now);
    assert!(matches!(tried, Err(CoreError::MustCommitFirst(_))), "as with any proposal");
    scenario.act("alice/phone", update()).unwrap();
    scenario.drive("alice/phone", text).unwrap();
    assert!(!scenario.has("b:carol/phone"));
    agree(&mut scenario);
}

#[test]
fn the_same_proposal_with_either_tag_is_one() {
    let (mut scenario, mut mallory) = scene();
    let good = remove_of(&scenario, &mut mallory, "bob/phone");
    let mut wrong = good.as_slice().to_vec();
    *wrong.last_mut().unwrap() ^= 1;
    propose_raw(&mut scenario, &mallory, Raw::new(wrong).unwrap()).unwrap();
    scenario.deliver_all();
    let again = propose_raw(&mut scenario, &mallory, good.clone());
    assert!(again.is_err(), "{again:?}");
    // a newer one of the same leaf displaces it, and it comes again as it should have been
    scenario.act("alice/phone", propose(NewProposal::Remove(uri("bob/phone")))).unwrap();
    propose_raw(&mut scenario, &mallory, good).unwrap();
    assert_eq!(scenario.state.pending.len(), 1);
    scenario.act("b:carol/phone", update()).unwrap();
    agree(&mut scenario);
    assert!(!scenario.has("bob/phone"));
}

#[test]
fn a_good_proposal_that_one_of_them_has_displaced_is_let_go() {
    let (mut scenario, mallory) = scene();
    scenario.act("bob/phone", propose(NewProposal::Update)).unwrap();
    scenario.deliver_all();
    untagged_remove(&mut scenario, &mallory, "bob/phone");
    assert_eq!(scenario.state.pending.len(), 1, "a Remove displaces an Update of the same leaf");
    scenario.act("alice/phone", update()).unwrap();
    assert!(!scenario.has("bob/phone"));
    agree(&mut scenario);
}

#[test]
fn who_leaves_with_a_wrong_tag_has_left_and_nobody_is_lost() {
    for outside in [false, true] {
        let (mut scenario, mallory) = scene();
        untagged(&mut scenario, &mallory, SELF_REMOVE, &[]).unwrap();
        if outside {
            // who comes in from outside covers it and cannot see the tag
            scenario.act("dave/phone", Operation::Join { code: None }).unwrap();
        } else {
            scenario.act("alice/phone", update()).unwrap();
        }
        assert!(!scenario.has("mallory/phone"), "{outside}");
        agree(&mut scenario);
        assert!(was_warned(&mut scenario, "bob/phone"), "{outside}");
    }
}

#[test]
fn what_nobody_signed_is_held_by_nobody() {
    let (mut scenario, mallory) = scene();
    let leaf = scenario.leaf("bob/phone").0.to_be_bytes();
    let proposal = [REMOVE.to_be_bytes().as_slice(), &leaf].concat();
    let good = mallory.handmade_proposal(&scenario, &proposal);
    let mut unsigned = good.as_slice().to_vec();
    // the signature stands in front of a tag of 32 bytes and its length
    let at = unsigned.len() - 34;
    unsigned[at] ^= 1;
    let unsigned: MlsMessage = Raw::new(unsigned).unwrap();
    let refused = propose_raw(&mut scenario, &mallory, unsigned.clone());
    assert!(matches!(refused, Err(Reject::InvalidProposal { .. })), "{refused:?}");
    // and where it comes to members in the place of the good one
    propose_raw(&mut scenario, &mallory, good).unwrap();
    let event = QueueEvent::MlsMessage { message: unsigned };
    scenario.records.last_mut().unwrap().feed.event = encode(&event);
    scenario.deliver("alice/phone");
    let view = scenario.client("alice/phone").group(&scenario.id).unwrap();
    assert_eq!((view.state, view.pending), (ClientState::Active, 0));
}

#[test]
fn so_many_bytes_may_be_pending_that_an_answer_holds_them() {
    let (mut scenario, mut mallory) = scene();
    let mut refused = Vec::new();
    for whom in ["bob/phone", "b:carol/phone"] {
        mallory.group().set_aad(vec![0; 600_000]);
        let message = remove_of(&scenario, &mut mallory, whom);
        refused.push(propose_raw(&mut scenario, &mallory, message).err());
    }
    assert_eq!(refused[0], None);
    assert!(refused[1].as_ref().unwrap().to_string().contains("bytes"), "{refused:?}");
    mallory.group().set_aad(vec![0; 1_100_000]);
    let message = remove_of(&scenario, &mut mallory, "b:carol/phone");
    let large = propose_raw(&mut scenario, &mallory, message);
    assert!(matches!(large, Err(Reject::TooLarge { .. })), "{large:?}");
    scenario.act("alice/phone", update()).unwrap();
    agree(&mut scenario);
}
