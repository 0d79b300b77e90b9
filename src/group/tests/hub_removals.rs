//! Removals that the hub starts, and what they block. DS §2.3; PROTOCOL.md §2.

use super::rogue::Rogue;
use super::scenario::{Scenario, Setup, policy, propose, say, update, uri, user};
use crate::{
    client::core::{Event, GroupState as ClientState, NewProposal, Operation, PolicyChange},
    group::Reject,
    store::records::GoneReason,
    wire::{
        codec::Raw,
        ds::{DsMessage, DsRequest, SendMessage},
        extensions::{JoinPolicy, Role},
    },
};

const REASONS: [GoneReason; 3] =
    [GoneReason::DeviceDeleted, GoneReason::AccountDeleted, GoneReason::QueueGone];

#[test]
fn gone_client_is_proposed_for_removal_and_the_next_commit_removes_it() {
    for reason in REASONS {
        let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
        assert!(scenario.hub_acts(&[("bob/phone", reason)]));
        assert!(!scenario.hub_acts(&[("bob/phone", reason)]), "once is enough");
        scenario.agree();
        scenario.act("carol/phone", update()).unwrap();
        scenario.agree();
        assert!(!scenario.has("bob/phone"));
        assert_eq!(scenario.state_of("bob/phone"), ClientState::Left);
        assert!(!scenario.hub_acts(&[]));
    }
}

#[test]
fn commit_that_does_not_cover_the_hubs_removal_is_refused_and_told_what_to_cover() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    let request = scenario.begin("alice/phone", update());
    let uncovering = scenario.message("alice/phone", request);
    scenario.hub_acts(&[("bob/phone", GoneReason::DeviceDeleted)]);
    let refused = scenario.submit(&uncovering);
    let Err(Reject::Pending { pending, .. }) = refused else { panic!("{refused:?}") };
    let expected: Vec<_> = scenario.state.pending_messages().cloned().collect();
    assert_eq!(pending, expected);
    // the answer is all that it takes
    scenario.drive("alice/phone", request).unwrap();
    scenario.agree();
    assert!(!scenario.has("bob/phone"));
}

#[test]
fn who_is_to_be_removed_neither_commits_nor_talks() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    let mut mallory = Rogue::member(&mut scenario, "alice/phone", "mallory/phone");
    let first = scenario.begin("carol/phone", say("free to talk"));
    let first = scenario.message("carol/phone", first);
    let talk = say_as(&mut mallory, &scenario);
    let commit = mallory.commit(|builder| builder);
    let commit = mallory.request(&scenario, DsRequest::UpdateClient(commit));
    scenario.hub_acts(&[("mallory/phone", GoneReason::DeviceDeleted)]);
    assert!(matches!(scenario.submit(&commit), Err(Reject::Pending { commit: true, .. })));
    assert!(matches!(scenario.submit(&talk), Err(Reject::Pending { commit: false, .. })));
    // others may, until the grace is over
    scenario.submit(&first).unwrap();
}

fn say_as(rogue: &mut Rogue, scenario: &Scenario) -> DsMessage {
    let group = rogue.group.as_mut().unwrap();
    let message = group.create_message(&rogue.provider, &rogue.leaf, b"hello").unwrap();
    let application_message = Raw::of(&message);
    rogue.request(scenario, DsRequest::SendMessage(SendMessage { application_message }))
}

#[test]
fn all_messages_are_blocked_when_the_grace_is_over() {
    let mut scenario = Setup::with(|settings| settings.strict_after_ms = Some(5_000)).group_of([
        "alice/phone",
        "bob/phone",
        "carol/phone",
    ]);
    let request = scenario.begin("carol/phone", say("late"));
    let late = scenario.message("carol/phone", request);
    scenario.hub_acts(&[("bob/phone", GoneReason::DeviceDeleted)]);
    scenario.now = scenario.now.plus_ms(5_000);
    assert!(matches!(scenario.submit(&late), Err(Reject::Pending { commit: false, .. })));
    scenario.client("carol/phone").give_up(request).unwrap();
    scenario.deliver_all();
    scenario.act("alice/phone", update()).unwrap();
    scenario.deliver_all();
    scenario.act("carol/phone", say("again")).unwrap();

    let mut lenient = Setup::with(|settings| settings.strict_after_ms = None).group_of([
        "alice/phone",
        "bob/phone",
        "carol/phone",
    ]);
    let request = lenient.begin("carol/phone", say("late"));
    let late = lenient.message("carol/phone", request);
    lenient.hub_acts(&[("bob/phone", GoneReason::DeviceDeleted)]);
    lenient.now = lenient.now.plus_ms(100_000);
    lenient.submit(&late).unwrap();
}

#[test]
fn members_removal_does_not_take_the_place_of_the_hubs() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    scenario.hub_acts(&[("bob/phone", GoneReason::DeviceDeleted)]);
    scenario.deliver_all();
    let refused = scenario.act("alice/phone", propose(NewProposal::Remove(uri("bob/phone"))));
    assert!(matches!(refused, Err(Reject::InvalidProposal { .. })), "{refused:?}");
}

#[test]
fn hubs_removal_takes_the_place_of_a_members() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    scenario.act("bob/phone", propose(NewProposal::Update)).unwrap();
    scenario.deliver_all();
    scenario.act("alice/phone", propose(NewProposal::Remove(uri("bob/phone")))).unwrap();
    scenario.deliver_all();
    scenario.hub_acts(&[("bob/phone", GoneReason::DeviceDeleted)]);
    assert_eq!(scenario.state.pending.len(), 1);
    scenario.agree();
    scenario.act("carol/phone", update()).unwrap();
    scenario.agree();
    assert!(!scenario.has("bob/phone"));
}

#[test]
fn external_commit_voids_what_is_pending_and_the_hub_repeats_its_own_behind_it() {
    let mut scenario =
        Scenario::group_of(["alice/phone", "bob/phone", "carol/phone", "dave/phone"]);
    scenario.act("alice/phone", policy(PolicyChange::Join(JoinPolicy::Open))).unwrap();
    scenario.deliver_all();
    scenario.act("carol/phone", propose(NewProposal::Update)).unwrap();
    scenario.deliver_all();
    scenario.act("dave/phone", propose(NewProposal::Leave)).unwrap();
    scenario.hub_acts(&[("bob/phone", GoneReason::DeviceDeleted)]);
    scenario.deliver_all();
    let before = scenario.records.len();
    scenario.act("erin/phone", Operation::Join { code: None }).unwrap();
    // commit and the hub's proposal in one write; the Update is void and the SelfRemove covered
    assert_eq!(scenario.records.len(), before + 2);
    assert!(scenario.has("bob/phone") && !scenario.has("dave/phone"));
    assert_eq!(scenario.state.pending.len(), 1);
    scenario.agree();
    scenario.act("erin/phone", update()).unwrap();
    scenario.agree();
    assert!(!scenario.has("bob/phone"));
}

#[test]
fn deleted_client_cannot_resync_and_an_inactive_one_can() {
    let mut scenario = Setup::with(|settings| settings.inactive_after_ms = Some(60_000))
        .group_of(["alice/phone", "bob/phone", "carol/phone"]);
    scenario.now = scenario.now.plus_ms(60_000);
    scenario.act("alice/phone", say("here")).unwrap();
    scenario.act("carol/phone", say("here")).unwrap();
    assert!(scenario.hub_acts(&[]));
    assert_eq!(scenario.state.pending.len(), 1);
    scenario.agree();
    scenario.act("bob/phone", Operation::Resync).unwrap();
    scenario.agree();
    assert!(scenario.has("bob/phone") && scenario.state.pending.is_empty());

    // first inactive, then deleted as well
    scenario.now = scenario.now.plus_ms(60_000);
    for name in ["alice/phone", "carol/phone"] {
        scenario.act(name, say("still here")).unwrap();
    }
    assert!(scenario.hub_acts(&[]));
    assert!(scenario.hub_acts(&[("bob/phone", GoneReason::DeviceDeleted)]));
    scenario.deliver_all();
    let refused = scenario.act("bob/phone", Operation::Resync);
    assert!(matches!(refused, Err(Reject::NotAuthorized(_))), "{refused:?}");
}

#[test]
fn inactive_client_is_found_when_it_is_time_and_not_before() {
    let mut scenario = Setup::with(|settings| settings.inactive_after_ms = Some(60_000))
        .group_of(["alice/phone", "bob/phone"]);
    let bob_since = scenario.state.members[&scenario.leaf("bob/phone")].last_active;
    scenario.now = bob_since.plus_ms(30_000);
    scenario.act("alice/phone", say("here")).unwrap();
    assert_eq!(scenario.state.wake_at(), Some(bob_since.plus_ms(60_000)));
    scenario.now = bob_since.plus_ms(59_999);
    assert!(!scenario.hub_acts(&[]));
    scenario.now = bob_since.plus_ms(60_000);
    let staged = scenario.state.stage_hub(&[], scenario.now);
    assert!(staged.is_some(), "what is staged and comes to nothing is staged again");
    assert!(scenario.hub_acts(&[]));
    assert!(!scenario.hub_acts(&[]));
    scenario.restart();
    assert!(!scenario.hub_acts(&[]), "nor again after a restart");
    scenario.agree();
}

#[test]
fn group_that_nobody_is_to_stay_in_is_deleted_in_time() {
    let mut scenario = Setup::with(|settings| settings.delete_after_ms = 10_000)
        .group_of(["alice/phone", "bob/phone"]);
    scenario.hub_acts(&[("bob/phone", GoneReason::AccountDeleted)]);
    scenario.now = scenario.now.plus_ms(1_000);
    scenario.hub_acts(&[("alice/phone", GoneReason::DeviceDeleted)]);
    assert_eq!(scenario.state.wake_at(), Some(scenario.now.plus_ms(10_000)));
    scenario.now = scenario.now.plus_ms(9_999);
    assert!(!scenario.hub_acts(&[]));
    scenario.now = scenario.now.plus_ms(1);
    assert!(scenario.hub_acts(&[]));
    assert!(scenario.state.is_deleted());
    scenario.deliver_all();
    let id = scenario.id.clone();
    assert!(scenario.events("bob/phone").contains(&Event::Deleted { group: id }));
    assert!(!scenario.hub_acts(&[]));
}

#[test]
fn admin_who_leaves_and_admin_whom_the_hub_removes_can_be_committed_in_one() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    let admin = PolicyChange::Role { user: user("bob"), role: Role::Admin };
    scenario.act("alice/phone", policy(admin)).unwrap();
    scenario.deliver_all();
    scenario.act("alice/phone", propose(NewProposal::Leave)).unwrap();
    scenario.deliver_all();
    scenario.hub_acts(&[("bob/phone", GoneReason::DeviceDeleted)]);
    scenario.deliver_all();
    scenario.act("carol/phone", update()).unwrap();
    scenario.agree();
    assert!(!scenario.has("alice/phone") && !scenario.has("bob/phone"));
}

#[test]
fn last_admin_cannot_leave_behind_the_hubs_removal_of_the_other() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    let admin = PolicyChange::Role { user: user("bob"), role: Role::Admin };
    scenario.act("alice/phone", policy(admin)).unwrap();
    scenario.deliver_all();
    scenario.hub_acts(&[("bob/phone", GoneReason::DeviceDeleted)]);
    scenario.deliver_all();
    let refused = scenario.act("alice/phone", propose(NewProposal::Leave));
    assert!(matches!(refused, Err(Reject::NotAuthorized(_))), "{refused:?}");
    let demoted = PolicyChange::Role { user: user("alice"), role: Role::Member };
    let refused = scenario.act("alice/phone", policy(demoted));
    assert!(matches!(refused, Err(Reject::NotAuthorized(_))), "{refused:?}");
}
