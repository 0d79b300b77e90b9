//! Proposals that wait, and commits that must cover them. PROTOCOL.md §2, "Pending proposals".

use openmls::prelude as mls;

use super::rogue::Rogue;
use super::scenario::{Scenario, Setup, policy, propose, respond, say, update, uri};
use crate::{
    client::core::{Event, NewProposal, Operation, PolicyChange},
    group::Reject,
    policy::keys::LIFE_LEFT_MIN_MS,
    wire::{
        ds::DsRequest,
        extensions::{JoinPolicy, Role},
        ids::{RequestId, Timestamp},
    },
};

#[test]
fn each_member_has_one_proposal_for_a_target() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    scenario.act("bob/phone", propose(NewProposal::Update)).unwrap();
    let refused = scenario.act("bob/phone", propose(NewProposal::Update));
    assert!(matches!(refused, Err(Reject::InvalidProposal { .. })), "{refused:?}");
    scenario.deliver_all();
    let remove = || propose(NewProposal::Remove(uri("carol/phone")));
    scenario.act("alice/phone", remove()).unwrap();
    let refused = scenario.act("alice/phone", remove());
    assert!(matches!(refused, Err(Reject::InvalidProposal { .. })), "{refused:?}");
}

#[test]
fn second_add_of_a_client_is_refused() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let (one, two) = (scenario.key_package("dave/phone"), scenario.key_package("dave/phone"));
    scenario.act("alice/phone", propose(NewProposal::Add(one))).unwrap();
    scenario.deliver_all();
    let refused = scenario.act("bob/phone", propose(NewProposal::Add(two)));
    assert!(matches!(refused, Err(Reject::InvalidProposal { .. })), "{refused:?}");
    scenario.agree();
    scenario.act("bob/phone", update()).unwrap();
    scenario.agree();
    assert!(scenario.has("dave/phone"));
}

#[test]
fn leaving_displaces_ones_update_and_stands_against_removal() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    scenario.act("bob/phone", propose(NewProposal::Update)).unwrap();
    scenario.act("bob/phone", propose(NewProposal::Leave)).unwrap();
    assert_eq!(scenario.state.pending.len(), 1);
    scenario.deliver_all();
    let refused = scenario.act("alice/phone", propose(NewProposal::Remove(uri("bob/phone"))));
    assert!(matches!(refused, Err(Reject::InvalidProposal { .. })), "{refused:?}");
    scenario.agree();
    scenario.act("carol/phone", update()).unwrap();
    scenario.agree();
}

#[test]
fn somebody_is_left_to_commit() {
    let mut scenario = Setup::policy(|policy| {
        policy.may_remove = crate::wire::extensions::Role::Member;
    })
    .group_of(["alice/phone", "bob/phone"]);
    scenario.act("bob/phone", propose(NewProposal::Leave)).unwrap();
    scenario.deliver_all();
    let refused = scenario.act("alice/phone", propose(NewProposal::Leave));
    assert!(
        matches!(refused, Err(Reject::InvalidProposal { .. } | Reject::NotAuthorized(_))),
        "{refused:?}"
    );
}

#[test]
fn pending_set_is_capped() {
    let mut scenario = Setup::with(|settings| settings.pending_max = 1).group_of([
        "alice/phone",
        "bob/phone",
        "carol/phone",
    ]);
    scenario.act("bob/phone", propose(NewProposal::Update)).unwrap();
    scenario.deliver_all();
    let refused = scenario.act("carol/phone", propose(NewProposal::Update));
    assert!(matches!(refused, Err(Reject::InvalidProposal { .. })), "{refused:?}");
    // what takes the place of another adds none
    scenario.act("bob/phone", propose(NewProposal::Leave)).unwrap();
}

#[test]
fn pending_adds_leave_room_for_a_commit_of_all_of_them() {
    let capped: [fn(&mut crate::group::Settings); 2] =
        [|settings| settings.members_max = 3, |settings| settings.adds_per_commit_max = 1];
    for cap in capped {
        let mut scenario = Setup::with(cap).group_of(["alice/phone", "bob/phone"]);
        let (one, two) = (scenario.key_package("c/phone"), scenario.key_package("d/phone"));
        scenario.act("alice/phone", propose(NewProposal::Add(one))).unwrap();
        scenario.deliver_all();
        let refused = scenario.act("alice/phone", propose(NewProposal::Add(two)));
        assert!(
            matches!(refused, Err(Reject::NotAuthorized(_) | Reject::TooMany { .. })),
            "{refused:?}"
        );
        scenario.agree();
        scenario.act("bob/phone", update()).unwrap();
        scenario.agree();
    }
    let mut scenario =
        Setup::policy(|policy| policy.members_max = 3).group_of(["alice/phone", "bob/phone"]);
    scenario.act("alice/phone", policy(PolicyChange::Join(JoinPolicy::Open))).unwrap();
    scenario.deliver_all();
    scenario.act("c/phone", Operation::AskToJoin).unwrap();
    scenario.restart();
    let refused = scenario.act("d/phone", Operation::AskToJoin);
    assert!(matches!(refused, Err(Reject::NotAuthorized(_))), "{refused:?}");
}

#[test]
fn own_update_is_replaced_by_the_path_of_ones_commit() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    scenario.act("bob/phone", propose(NewProposal::Update)).unwrap();
    scenario.agree();
    scenario.act("bob/phone", update()).unwrap();
    scenario.agree();
    assert!(scenario.state.pending.is_empty());
}

#[test]
fn update_of_a_leaf_that_the_commit_removes_need_not_be_covered() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    let mut mallory = Rogue::member(&mut scenario, "alice/phone", "mallory/phone");
    scenario.act("bob/phone", propose(NewProposal::Update)).unwrap();
    scenario.deliver_all();
    mallory.follow(&scenario);
    let change = PolicyChange::Role {
        user: mallory.client.user(),
        role: crate::wire::extensions::Role::Admin,
    };
    scenario.act("alice/phone", policy(change)).unwrap();
    scenario.deliver_all();
    mallory.follow(&scenario);
    scenario.act("bob/phone", propose(NewProposal::Update)).unwrap();
    let bob = mls::LeafNodeIndex::new(scenario.leaf("bob/phone").0);
    let update = mallory.commit(|builder| builder.propose_removals([bob]));
    let request = mallory.request(&scenario, DsRequest::RemoveUsers(update));
    scenario.submit(&request).unwrap();
    scenario.agree();
}

#[test]
fn removal_that_is_pending_is_not_repeated_by_value() {
    // who removes has the right to: only the repetition is wrong
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let mut mallory = Rogue::member(&mut scenario, "alice/phone", "mallory/phone");
    let change = PolicyChange::Role { user: mallory.client.user(), role: Role::Admin };
    scenario.act("alice/phone", policy(change)).unwrap();
    scenario.deliver_all();
    mallory.follow(&scenario);
    scenario.act("bob/phone", propose(NewProposal::Leave)).unwrap();
    let bob = mls::LeafNodeIndex::new(scenario.leaf("bob/phone").0);
    mallory.follow(&scenario);
    let update = mallory.commit(|builder| builder.propose_removals([bob]));
    let request = mallory.request(&scenario, DsRequest::RemoveUsers(update));
    let refused = scenario.submit(&request);
    assert!(matches!(refused, Err(Reject::Pending { .. })), "{refused:?}");
}

#[test]
fn sender_whose_proposals_made_commits_of_two_others_fail_waits_for_the_next_epoch() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    let request = scenario.begin("alice/phone", update());
    let uncovering = scenario.message("alice/phone", request);
    let request = scenario.begin("carol/phone", update());
    let another = scenario.message("carol/phone", request);
    scenario.client("carol/phone").give_up(request).unwrap();
    scenario.act("bob/phone", propose(NewProposal::Update)).unwrap();
    assert!(matches!(scenario.submit(&uncovering), Err(Reject::Pending { commit: true, .. })));
    let mut again = uncovering.clone();
    again.context.request_id = RequestId([1; 16]);
    assert!(matches!(scenario.submit(&again), Err(Reject::Unauthenticated(_))));
    assert!(matches!(scenario.submit(&uncovering), Err(Reject::Pending { commit: true, .. })));
    let bob = scenario.leaf("bob/phone");
    assert_eq!(scenario.state.blockers[&bob].len(), 1, "one sender alone silences nobody");
    assert!(matches!(scenario.submit(&another), Err(Reject::Pending { commit: true, .. })));
    let refused = scenario.act("bob/phone", propose(NewProposal::Leave));
    assert_eq!(refused, Err(Reject::Blocking));
    scenario.deliver_all();
    scenario.act("carol/phone", update()).unwrap();
    scenario.deliver_all();
    scenario.act("bob/phone", propose(NewProposal::Leave)).unwrap();
}

#[test]
fn add_that_expires_while_it_waits_is_voided_and_stands_in_nobodys_way() {
    for newcomer in [true, false] {
        let open = Setup::policy(|policy| policy.join = JoinPolicy::Open);
        let mut scenario = open.group_of(["alice/phone", "bob/phone", "carol/phone"]);
        let (add, too_late) =
            (scenario.key_package("dave/phone"), scenario.key_package("erin/phone"));
        if newcomer {
            scenario.act("dave/phone", Operation::AskToJoin).unwrap();
        } else {
            scenario.act("alice/phone", propose(NewProposal::Add(add))).unwrap();
        }
        scenario.deliver_all();
        scenario.act("bob/phone", propose(NewProposal::Update)).unwrap();
        scenario.agree();
        let added = scenario.state.pending[0].record.added.as_ref().unwrap();
        scenario.now = Timestamp(added.not_after.0 - LIFE_LEFT_MIN_MS / 2);
        assert!(!scenario.hub_acts(&[]), "who reads of it within a week can follow");

        scenario.now = scenario.now.plus_ms(1);
        assert!(scenario.state.has_late_adds(scenario.now));
        assert!(scenario.hub_acts(&[]));
        assert!(!scenario.hub_acts(&[]) && !scenario.state.has_late_adds(scenario.now));
        assert_eq!(scenario.state.pending.len(), 1, "the Update still waits");
        scenario.restart();
        assert_eq!(scenario.state.pending.len(), 1);
        scenario.restart_from_snapshot_for_all();
        // nor is another taken that no one could commit in time
        scenario.now = scenario.now.plus_ms(2_000);
        let refused = scenario.act("alice/phone", propose(NewProposal::Add(too_late)));
        assert!(matches!(refused, Err(Reject::InvalidKeyPackage { .. })), "{refused:?}");
        // carol has seen both: the answer says which of them she is to cover
        scenario.act("carol/phone", update()).unwrap();
        scenario.agree();
        assert!(!scenario.has("dave/phone") && scenario.state.pending.is_empty());
        scenario.act("alice/phone", say("it goes on")).unwrap();
        scenario.deliver_all();
        assert_eq!(scenario.texts("bob/phone"), ["it goes on"]);
    }
}

#[test]
fn resync_covers_those_who_leave_and_nothing_else() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    scenario.act("bob/phone", propose(NewProposal::Leave)).unwrap();
    scenario.deliver_all();
    let key_package = scenario.key_package("dave/phone");
    scenario.act("alice/phone", propose(NewProposal::Add(key_package))).unwrap();
    scenario.agree();
    scenario.act("carol/phone", Operation::Resync).unwrap();
    scenario.agree();
    assert!(!scenario.has("bob/phone") && !scenario.has("dave/phone"));
    assert!(scenario.state.pending.is_empty());
}

#[test]
fn who_has_proposed_to_leave_cannot_resync() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    scenario.act("bob/phone", propose(NewProposal::Leave)).unwrap();
    let refused = scenario.act("bob/phone", Operation::Resync);
    assert!(matches!(refused, Err(Reject::InvalidCommit(_))), "{refused:?}");
}

#[test]
fn a_removal_that_is_heard_of_behind_ones_own_and_came_before_it_gives_way() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    let remove = || propose(NewProposal::Remove(uri("carol/phone")));
    scenario.act("alice/phone", remove()).unwrap();
    // nothing of that has come to carol
    scenario.act("carol/phone", remove()).unwrap();
    assert_eq!(scenario.state.pending.len(), 1);
    scenario.agree();
    is_removed_by_a_commit_that_it_can_use(&mut scenario);
}

#[test]
fn ones_own_removal_takes_its_place_by_its_answer_whatever_comes_before_that() {
    for own_is_first in [false, true] {
        let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
        let remove = || propose(NewProposal::Remove(uri("carol/phone")));
        let own = scenario.begin("carol/phone", remove());
        let message = scenario.message("carol/phone", own);
        let result = if own_is_first {
            let result = scenario.submit(&message);
            scenario.act("alice/phone", remove()).unwrap();
            result
        } else {
            scenario.act("alice/phone", remove()).unwrap();
            scenario.submit(&message)
        };
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(scenario.state.pending.len(), 1);
        // alice's comes while carol waits for an answer
        scenario.deliver("carol/phone");
        let (carol, now) = (scenario.client("carol/phone"), scenario.now);
        carol.settle(own, &respond(&result), now).unwrap();
        scenario.agree();
        is_removed_by_a_commit_that_it_can_use(&mut scenario);
    }
}

/// Whoever goes must have what the commit covers, too: else it complains of a commit that is right.
fn is_removed_by_a_commit_that_it_can_use(scenario: &mut Scenario) {
    scenario.act("alice/phone", update()).unwrap();
    scenario.agree();
    assert!(!scenario.has("carol/phone"));
    let events = scenario.events("carol/phone");
    assert!(!events.iter().any(|event| matches!(event, Event::Unusable { .. })), "{events:?}");
}
