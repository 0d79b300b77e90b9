//! Proposals with membership tags that no member can verify, which a hub cannot see. PROTOCOL.md §2, "A proposal that nobody can
//! read".

use super::{
    rogue::Rogue,
    scenario::{Scenario, Setup, policy, propose, say, update, uri},
};
use crate::{
    client::core::{
        CoreError, Event, GroupState as ClientState, NewProposal, Operation, PolicyChange,
    },
    group::Reject,
    store::records::GoneReason,
    wire::{
        codec::{List, Opaque, encode},
        ds::{DsRequest, DsResponseBody, GroupUpdate, Propose, UnreadableProposals},
        extensions::{JoinPolicy, Role},
        ids::ProposalRef,
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

/// mallory proposes, signed as it must be, but for a tag that is no member's.
fn untagged(
    scenario: &mut Scenario,
    mallory: &Rogue,
    kind: u16,
    body: &[u8],
) -> Result<DsResponseBody, Reject> {
    let proposal =
        mallory.handmade_proposal(scenario, &[kind.to_be_bytes().as_slice(), body].concat());
    let request = Propose { proposals: List::new(vec![proposal]).unwrap() };
    let message = mallory.request(scenario, DsRequest::Propose(request));
    scenario.submit(&message)
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
fn a_commit_leaves_out_what_nobody_can_read_and_the_group_goes_on() {
    let (mut scenario, mallory) = scene();
    untagged_remove(&mut scenario, &mallory, "bob/phone");
    let epoch = scenario.state.epoch();
    // alice has not heard of it: the hub's answer says what is pending
    scenario.act("alice/phone", update()).unwrap();
    assert_eq!(scenario.state.epoch().0, epoch.0 + 1);
    assert!(scenario.state.pending.is_empty());
    assert!(scenario.has("bob/phone"), "what was left out has not happened");
    agree(&mut scenario);
    for name in HONEST {
        assert!(was_warned(&mut scenario, name), "{name}");
    }
    scenario.act("bob/phone", say("still here")).unwrap();
    // again, and this time all have heard of it before they do anything
    untagged_remove(&mut scenario, &mallory, "bob/phone");
    scenario.deliver_all();
    let text = scenario.begin("bob/phone", say("and again"));
    let bob = scenario.client("bob/phone");
    let tried = bob.outbound(text, scenario.now);
    assert!(matches!(tried, Err(CoreError::MustCommitFirst(_))), "as with any proposal");
    scenario.act("bob/phone", update()).unwrap();
    scenario.drive("bob/phone", text).unwrap();
    agree(&mut scenario);
    assert_eq!(scenario.texts("alice/phone"), ["still here", "and again"]);
}

#[test]
fn who_makes_them_is_removed_however_many_there_are() {
    let (mut scenario, mallory) = scene();
    // one of them names its own sender: a Remove by value of that leaf repeats nothing that can be committed
    for name in ["bob/phone", "b:carol/phone", "mallory/phone"] {
        untagged_remove(&mut scenario, &mallory, name);
    }
    scenario.deliver("alice/phone");
    let whom = vec![uri("mallory/phone").user()];
    scenario.act("alice/phone", Operation::RemoveUsers { users: whom }).unwrap();
    assert!(!scenario.has("mallory/phone"));
    assert!(HONEST.iter().all(|name| scenario.has(name)));
    agree(&mut scenario);
}

#[test]
fn a_good_proposal_that_one_of_them_has_displaced_is_let_go() {
    let (mut scenario, mallory) = scene();
    scenario.act("bob/phone", propose(NewProposal::Update)).unwrap();
    scenario.deliver_all();
    untagged_remove(&mut scenario, &mallory, "bob/phone");
    assert_eq!(scenario.state.pending.len(), 1, "a Remove displaces an Update of the same leaf");
    scenario.act("alice/phone", update()).unwrap();
    agree(&mut scenario);
    assert!(scenario.has("bob/phone"));
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

/// mallory's commit that covers nothing, with `aad`.
fn commits(
    scenario: &mut Scenario,
    mallory: &mut Rogue,
    aad: Vec<u8>,
) -> Result<DsResponseBody, Reject> {
    mallory.follow(scenario);
    mallory.group().set_aad(aad);
    let update: GroupUpdate = mallory.commit(|builder| builder);
    let message = mallory.request(scenario, DsRequest::UpdateClient(update));
    scenario.submit(&message)
}

fn says_of_pending(scenario: &Scenario) -> Vec<u8> {
    let pending = &scenario.state.pending;
    let all = pending.iter().map(|it| ProposalRef(Opaque::new(it.reference()).unwrap()));
    encode(&UnreadableProposals { proposals: List::new(all.collect()).unwrap() })
}

#[test]
fn who_leaves_out_what_can_be_read_is_not_followed() {
    let (mut scenario, mut mallory) = scene();
    scenario.act("bob/phone", propose(NewProposal::Leave)).unwrap();
    scenario.deliver_all();
    let said = says_of_pending(&scenario);
    let plain = commits(&mut scenario, &mut mallory, Vec::new());
    assert!(matches!(plain, Err(Reject::Pending { .. })), "{plain:?}");
    // to the hub it may be true
    commits(&mut scenario, &mut mallory, said).unwrap();
    for name in HONEST {
        scenario.deliver(name);
        assert_eq!(
            scenario.state_of(name),
            ClientState::Lost,
            "{name} complains, and comes in again"
        );
        let of_it =
            |event: &Event| matches!(event, Event::Unusable { why, .. } if why.contains("could"));
        assert!(scenario.events(name).iter().any(of_it), "{name}");
    }
}

#[test]
fn what_the_hub_proposes_is_left_out_by_nobody() {
    let (mut scenario, mut mallory) = scene();
    scenario.hub_acts(&[("bob/phone", GoneReason::AccountDeleted)]);
    let said = says_of_pending(&scenario);
    let refused = commits(&mut scenario, &mut mallory, said);
    assert!(matches!(refused, Err(Reject::Pending { .. })), "{refused:?}");
    scenario.deliver("alice/phone");
    scenario.act("alice/phone", update()).unwrap();
    assert!(!scenario.has("bob/phone"));
}

#[test]
fn what_a_commit_says_of_others_proposals_is_said_as_the_rules_have_it() {
    let (mut scenario, mut mallory) = scene();
    let refused = commits(&mut scenario, &mut mallory, b"x".to_vec());
    let says = |why: &str| why.contains("UnreadableProposals");
    assert!(matches!(&refused, Err(Reject::InvalidCommit(why)) if says(why)), "{refused:?}");
    // of what is not pending it may say what it likes
    let of_nothing = ProposalRef(Opaque::new([9; 32]).unwrap());
    let proposals = List::new(vec![of_nothing]).unwrap();
    commits(&mut scenario, &mut mallory, encode(&UnreadableProposals { proposals })).unwrap();
    agree(&mut scenario);
}
