//! Every operation, end to end.

use super::rogue::Rogue;
use super::scenario::{Scenario, Setup, policy, propose, respond, say, update, user};
use crate::{
    client::core::{
        CoreError, Event, GroupState as ClientState, NewProposal, Operation, PolicyChange, Settled,
    },
    crypto::SigningKey,
    group::Reject,
    wire::{
        codec::encode,
        ds::{DsResponseBody, FanoutFilter},
        extensions::{JoinPolicy, Role},
        ids::{Epoch, Timestamp},
    },
};

fn open(scenario: &mut Scenario) {
    scenario.act("alice/phone", policy(PolicyChange::Join(JoinPolicy::Open))).unwrap();
    scenario.deliver_all();
}

#[test]
fn members_of_each_ciphersuite_read_each_other() {
    for suite in 0..3 {
        let mut scenario =
            Setup { suite, ..Setup::default() }.group_of(["alice/phone", "bob/phone"]);
        scenario.agree();
        scenario.act("alice/phone", say("from alice")).unwrap();
        scenario.act("bob/phone", say("from bob")).unwrap();
        scenario.deliver_all();
        assert_eq!(scenario.texts("alice/phone"), ["from bob"]);
        assert_eq!(scenario.texts("bob/phone"), ["from alice"]);
    }
}

#[test]
fn an_answer_that_comes_behind_the_commit_that_followed_still_counts() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let request = scenario.begin("bob/phone", say("hello"));
    let message = scenario.message("bob/phone", request);
    let answer = scenario.submit(&message);
    scenario.act("alice/phone", update()).unwrap();
    scenario.deliver("bob/phone");
    let now = scenario.now;
    let bob = scenario.client("bob/phone");
    let settled = bob.settle(request, &respond(&answer), now).unwrap();
    assert!(matches!(settled, Settled::Done(_)), "{settled:?}");
    assert!(bob.pending().unwrap().is_empty());
    scenario.agree();
    assert_eq!(scenario.texts("alice/phone"), ["hello"], "once");
}

#[test]
fn users_and_their_clients_are_added_and_removed() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    scenario.add("bob/phone", "bob/laptop").unwrap();
    scenario.agree();
    let clients = vec![super::scenario::uri("bob/phone")];
    scenario.act("bob/laptop", Operation::RemoveClients { clients }).unwrap();
    scenario.agree();
    scenario.add("bob/laptop", "bob/phone").unwrap();
    scenario.add("carol/phone", "dave/phone").unwrap();
    scenario.agree();
    let users = vec![user("bob"), user("carol")];
    scenario.act("alice/phone", Operation::RemoveUsers { users }).unwrap();
    scenario.agree();
    for name in ["bob/phone", "bob/laptop", "carol/phone"] {
        assert_eq!(scenario.state_of(name), ClientState::Left);
    }
    assert_eq!(scenario.state.members().count(), 2);
}

#[test]
fn several_users_come_with_one_commit_into_the_gaps_of_the_tree() {
    let mut scenario =
        Scenario::group_of(["alice/phone", "bob/phone", "carol/phone", "dave/phone"]);
    scenario
        .act("alice/phone", Operation::RemoveUsers { users: vec![user("bob"), user("dave")] })
        .unwrap();
    scenario.agree();
    let key_packages =
        ["erin/phone", "erin/laptop", "frank/phone"].map(|name| scenario.key_package(name));
    let key_packages = key_packages.to_vec();
    scenario.act("carol/phone", Operation::AddUsers { key_packages }).unwrap();
    scenario.agree();
    assert_eq!(scenario.state.members().count(), 5);
    scenario.act("frank/phone", say("hello")).unwrap();
    scenario.deliver_all();
    for name in ["alice/phone", "carol/phone", "erin/phone", "erin/laptop"] {
        assert_eq!(scenario.texts(name), ["hello"]);
    }
}

#[test]
fn user_who_came_in_meanwhile_by_one_client_is_not_added_again_by_the_other() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let [phone, laptop] = ["erin/phone", "erin/laptop"].map(|name| scenario.key_package(name));
    let add = Operation::AddUsers { key_packages: vec![phone, laptop] };
    let slow = scenario.begin("alice/phone", add);
    scenario.add("bob/phone", "erin/phone").unwrap();
    let tried = scenario.try_drive("alice/phone", slow);
    assert!(matches!(tried, Err(CoreError::NothingToDo(_))), "{tried:?}");
    let [laptop, frank] = ["erin/laptop", "frank/phone"].map(|name| scenario.key_package(name));
    let add = Operation::AddUsers { key_packages: vec![laptop, frank] };
    scenario.act("alice/phone", add).unwrap();
    scenario.agree();
    assert!(scenario.has("frank/phone") && !scenario.has("erin/laptop"));
    // the user's own clients are added one by one
    scenario.add("erin/phone", "erin/laptop").unwrap();
    scenario.agree();
    assert!(scenario.has("erin/laptop"));
}

#[test]
fn user_whose_key_package_ends_soon_is_neither_added_nor_proposed() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let mut zoe = Rogue::new("zoe/phone");
    zoe.days = 14;
    let key_package = || encode(&zoe.key_package());
    let operations = [
        Operation::AddUsers { key_packages: vec![key_package()] },
        propose(NewProposal::Add(key_package())),
    ];
    for operation in operations {
        let refused = scenario.act("alice/phone", operation);
        let Err(Reject::InvalidKeyPackage { index: 0, why }) = &refused else {
            panic!("{refused:?}");
        };
        assert!(why.contains("within 14 days"), "{why}");
    }
    zoe.days = 15;
    let key_packages = vec![encode(&zoe.key_package())];
    scenario.act("alice/phone", Operation::AddUsers { key_packages }).unwrap();
}

#[test]
fn signature_key_rotates_and_the_new_one_authenticates() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    scenario.act("bob/phone", Operation::UpdateClient { rotate_key: true }).unwrap();
    scenario.agree();
    scenario.act("bob/phone", say("with the new key")).unwrap();
    scenario.act("bob/phone", Operation::UpdateClient { rotate_key: true }).unwrap();
    scenario.agree();
    assert_eq!(scenario.texts("alice/phone"), ["with the new key"]);
    open(&mut scenario);
    scenario.outsider_can_join("carol/phone", "alice/phone");
}

#[test]
fn resync_replaces_the_senders_leaf_and_keeps_its_number() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    let recipient =
        |scenario: &Scenario, name: &str| scenario.state.members[&scenario.leaf(name)].recipient;
    let before = recipient(&scenario, "bob/phone");
    scenario.act("bob/phone", Operation::Resync).unwrap();
    scenario.agree();
    assert_eq!(recipient(&scenario, "bob/phone"), before);
    scenario.act("bob/phone", say("back")).unwrap();
    scenario.deliver_all();
    assert_eq!(scenario.texts("carol/phone"), ["back"]);
}

#[test]
fn resync_may_move_to_another_leaf() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    scenario.act("alice/phone", Operation::RemoveUsers { users: vec![user("bob")] }).unwrap();
    scenario.agree();
    let before = scenario.leaf("carol/phone");
    scenario.act("carol/phone", Operation::Resync).unwrap();
    scenario.agree();
    assert_ne!(scenario.leaf("carol/phone"), before);
    scenario.act("carol/phone", Operation::UpdateClient { rotate_key: true }).unwrap();
    scenario.agree();
}

/// Found by the simulation: the answer is lost, the client resyncs, and asks again by its new leaf.
#[test]
fn what_was_accepted_before_a_resync_to_another_leaf_is_answered_and_not_said_twice() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    scenario.act("alice/phone", Operation::RemoveUsers { users: vec![user("bob")] }).unwrap();
    scenario.agree();
    let said = scenario.begin("carol/phone", say("once"));
    let message = scenario.message("carol/phone", said);
    let Ok(DsResponseBody::Accepted(first)) = scenario.submit(&message) else { panic!("refused") };
    scenario.deliver("alice/phone");
    scenario.act("alice/phone", update()).unwrap();
    // what rested on the epoch before is to be made anew, when there is time
    scenario.deliver("carol/phone");
    let before = scenario.leaf("carol/phone");
    scenario.act("carol/phone", Operation::Resync).unwrap();
    assert_ne!(scenario.leaf("carol/phone"), before);
    scenario.restart();
    assert_eq!(scenario.drive("carol/phone", said).unwrap(), first);
    // and by its old one, which nobody has now
    assert_eq!(scenario.submit(&message).unwrap(), DsResponseBody::Accepted(first));
    scenario.agree();
    assert_eq!(scenario.texts("alice/phone"), ["once"]);
}

#[test]
fn own_client_joins_by_itself() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    scenario.act("bob/laptop", Operation::Join { code: None }).unwrap();
    scenario.agree();
    scenario.act("bob/laptop", say("my own")).unwrap();
    scenario.deliver_all();
    assert_eq!(scenario.texts("bob/phone"), ["my own"]);
    let clients = vec![super::scenario::uri("bob/phone")];
    scenario.act("bob/laptop", Operation::RemoveClients { clients }).unwrap();
    scenario.agree();
    assert_eq!(scenario.state_of("bob/phone"), ClientState::Left);
    scenario.add("bob/laptop", "bob/phone").unwrap();
    scenario.agree();
    assert_eq!(scenario.state.members().count(), 3);
}

fn code(seed: u8, expires_at: Timestamp) -> Vec<PolicyChange> {
    let public = SigningKey::from_seed([seed; 32]).unwrap().public().as_slice().to_vec();
    vec![PolicyChange::Join(JoinPolicy::Code), PolicyChange::AddCode { public, expires_at }]
}

#[test]
fn stranger_joins_with_a_code_until_it_expires() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let expires_at = scenario.now.plus_ms(60_000);
    scenario.act("alice/phone", Operation::UpdateGroup { changes: code(7, expires_at) }).unwrap();
    scenario.deliver_all();
    scenario.act("carol/phone", Operation::Join { code: Some([7; 32]) }).unwrap();
    scenario.agree();
    let wrong = scenario.act("dave/phone", Operation::Join { code: Some([8; 32]) });
    assert!(matches!(wrong, Err(Reject::NotAuthorized(_))), "{wrong:?}");
    let none = scenario.act("erin/phone", Operation::Join { code: None });
    assert!(matches!(none, Err(Reject::NotAuthorized(_))), "{none:?}");

    // asked in time and joined too late
    let late = scenario.begin("frank/phone", Operation::Join { code: Some([7; 32]) });
    let message = scenario.message("frank/phone", late);
    let response = super::scenario::respond(&scenario.submit(&message));
    let now = scenario.now;
    scenario.client("frank/phone").settle(late, &response, now).unwrap();
    scenario.now = expires_at;
    let late = scenario.drive("frank/phone", late);
    assert!(matches!(late, Err(Reject::NotAuthorized(_))), "{late:?}");
    let expired = scenario.act("gus/phone", Operation::Join { code: Some([7; 32]) });
    assert!(matches!(expired, Err(Reject::NotAuthorized(_))), "{expired:?}");
    // a member's further client needs no code
    scenario.act("bob/laptop", Operation::Join { code: None }).unwrap();
    scenario.agree();
}

#[test]
fn newcomer_with_a_code_asks_and_any_member_commits_its_add() {
    for restart in [false, true] {
        let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
        let changes = code(7, scenario.now.plus_ms(60_000));
        scenario.act("alice/phone", Operation::UpdateGroup { changes }).unwrap();
        scenario.deliver_all();
        let carol = Rogue::new("carol/phone");
        for wrong in [None, Some(8)] {
            let asked = carol.ask_to_join(&scenario, wrong);
            let refused = scenario.submit(&asked);
            assert!(matches!(refused, Err(Reject::NotAuthorized(_))), "{refused:?}");
        }
        let asked = carol.ask_to_join(&scenario, Some(7));
        scenario.submit(&asked).unwrap();
        if restart {
            scenario.restart();
        }
        scenario.agree();
        // it was in time when it asked
        scenario.now = scenario.now.plus_ms(60_000);
        scenario.act("bob/phone", update()).unwrap();
        scenario.agree();
        assert!(scenario.has("carol/phone"));
    }
}

#[test]
fn newcomer_asks_to_be_let_in_and_any_member_commits_its_add() {
    for restart in [false, true] {
        let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
        open(&mut scenario);
        scenario.act("carol/phone", Operation::AskToJoin).unwrap();
        scenario.agree();
        if restart {
            scenario.restart();
        }
        scenario.act("bob/phone", update()).unwrap();
        scenario.agree();
        assert_eq!(scenario.state_of("carol/phone"), ClientState::Active);
        scenario.act("carol/phone", say("thanks")).unwrap();
        scenario.deliver_all();
        assert_eq!(scenario.texts("alice/phone"), ["thanks"]);
    }
}

#[test]
fn members_proposals_are_committed_by_another() {
    let mut scenario =
        Scenario::group_of(["alice/phone", "bob/phone", "carol/phone", "dave/phone"]);
    scenario.act("bob/phone", propose(NewProposal::Update)).unwrap();
    scenario.deliver_all();
    scenario.act("carol/phone", propose(NewProposal::Leave)).unwrap();
    scenario.deliver_all();
    let key_package = scenario.key_package("erin/phone");
    scenario.act("dave/phone", propose(NewProposal::Add(key_package))).unwrap();
    scenario.agree();
    scenario.act("alice/phone", update()).unwrap();
    scenario.agree();
    assert!(!scenario.has("carol/phone") && scenario.has("erin/phone"));
    assert_eq!(scenario.state_of("carol/phone"), ClientState::Left);
    scenario.act("bob/phone", say("updated")).unwrap();
    scenario.act("erin/phone", say("added")).unwrap();
    scenario.deliver_all();
    assert_eq!(scenario.texts("alice/phone"), ["updated", "added"]);
}

#[test]
fn policy_is_changed_and_holds_for_what_comes_after() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    let remove = || Operation::RemoveUsers { users: vec![user("carol")] };
    let refused = scenario.act("bob/phone", remove());
    assert!(matches!(refused, Err(Reject::NotAuthorized(_))), "{refused:?}");
    let change = PolicyChange::Role { user: user("bob"), role: Role::Moderator };
    scenario.act("alice/phone", policy(change)).unwrap();
    scenario.agree();
    scenario.act("bob/phone", remove()).unwrap();
    scenario.agree();
    let ban = PolicyChange::Role { user: user("bob"), role: Role::Banned };
    scenario.act("alice/phone", policy(ban)).unwrap();
    scenario.agree();
    for operation in [say("no"), update(), propose(NewProposal::Update)] {
        let refused = scenario.act("bob/phone", operation);
        assert!(matches!(refused, Err(Reject::NotAuthorized(_))), "{refused:?}");
    }
    scenario.act("bob/phone", propose(NewProposal::Leave)).unwrap();
    scenario.deliver_all();
    scenario.act("alice/phone", update()).unwrap();
    scenario.agree();
    let again = scenario.add("alice/phone", "bob/phone");
    assert!(matches!(again, Err(Reject::NotAuthorized(_))), "{again:?}");
}

#[test]
fn deleted_group_tells_everyone_and_answers_nobody() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    let refused = scenario.act("bob/phone", Operation::DeleteGroup);
    assert!(matches!(refused, Err(Reject::NotAuthorized(_))), "{refused:?}");
    let waiting = scenario.begin("bob/phone", say("too late"));
    scenario.act("alice/phone", Operation::DeleteGroup).unwrap();
    assert!(scenario.state.is_deleted());
    let refused = scenario.drive("bob/phone", waiting);
    assert_eq!(refused, Err(Reject::NotFound));
    scenario.deliver_all();
    for name in ["bob/phone", "carol/phone"] {
        let id = scenario.id.clone();
        assert_eq!(scenario.state_of(name), ClientState::Deleted, "{:?}", scenario.events(name));
        assert!(scenario.events(name).contains(&Event::Deleted { group: id }));
    }
    scenario.restart_from_snapshot();
    assert!(scenario.state.is_deleted());
    assert_eq!(scenario.state.wake_at(), None);
}

#[test]
fn last_member_without_the_role_does_not_delete_the_group() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    scenario.hub_acts(&[("alice/phone", crate::store::records::GoneReason::AccountDeleted)]);
    scenario.deliver_all();
    scenario.act("bob/phone", update()).unwrap();
    scenario.deliver_all();
    assert_eq!(scenario.state.roster.leaves().count(), 1);
    let refused = scenario.act("bob/phone", Operation::DeleteGroup);
    let why = "deleting the group takes the role Admin";
    assert_eq!(refused, Err(Reject::NotAuthorized(why.to_owned())));
    assert!(!scenario.state.is_deleted());
}

#[test]
fn last_member_deletes_its_group() {
    let mut scenario = Scenario::group_of(["alice/phone"]);
    scenario.act("alice/phone", Operation::DeleteGroup).unwrap();
    assert!(scenario.state.is_deleted());
}

#[test]
fn muted_client_receives_handshakes_only() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let mute = |filter| Operation::UpdateFanoutInfo { filter };
    scenario.act("bob/phone", mute(FanoutFilter::HandshakeOnly)).unwrap();
    scenario.act("alice/phone", say("unheard")).unwrap();
    scenario.act("alice/phone", update()).unwrap();
    scenario.agree();
    scenario.act("bob/phone", mute(FanoutFilter::All)).unwrap();
    scenario.act("alice/phone", say("heard")).unwrap();
    scenario.deliver_all();
    assert_eq!(scenario.texts("bob/phone"), ["heard"]);
}

#[test]
fn queue_update_is_the_latest_that_was_signed() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let config =
        |scenario: &Scenario| scenario.state.members[&scenario.leaf("bob/phone")].config.clone();
    let first = config(&scenario);
    let held_back = scenario.begin("bob/phone", Operation::UpdateQueueInfo);
    let message = scenario.message("bob/phone", held_back);
    scenario.client("bob/phone").give_up(held_back).unwrap();
    scenario.act("bob/phone", Operation::UpdateQueueInfo).unwrap();
    let second = config(&scenario);
    assert_ne!(first, second);
    assert!(matches!(scenario.submit(&message), Err(Reject::Stale { .. })));
    // nor may one that was signed before a resync bring an old token back
    let held_back = scenario.begin("bob/phone", Operation::UpdateQueueInfo);
    let message = scenario.message("bob/phone", held_back);
    scenario.client("bob/phone").give_up(held_back).unwrap();
    scenario.act("bob/phone", Operation::Resync).unwrap();
    assert_ne!(config(&scenario), second);
    assert!(matches!(scenario.submit(&message), Err(Reject::Stale { .. })));
}

#[test]
fn welcome_is_taken_up_thirty_epochs_late() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    scenario.add("alice/phone", "carol/phone").unwrap();
    let added_in = scenario.state.epoch();
    for round in 0..30 {
        let who = ["alice/phone", "bob/phone"][round % 2];
        scenario.deliver(who);
        scenario.act(who, Operation::UpdateClient { rotate_key: round % 7 == 0 }).unwrap();
    }
    assert!(scenario.state.joiner_epochs().keys().eq([&added_in]));
    assert_eq!(scenario.state.epoch(), Epoch(added_in.0 + 30));
    scenario.agree();
    scenario.act("carol/phone", say("at last")).unwrap();
    assert!(scenario.state.joiner_epochs().is_empty());
    scenario.deliver_all();
    assert_eq!(scenario.texts("alice/phone"), ["at last"]);
}

#[test]
fn outsider_can_join_after_any_operation() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    open(&mut scenario);
    scenario.outsider_can_join("o1/phone", "alice/phone");
    scenario.act("bob/phone", Operation::UpdateClient { rotate_key: true }).unwrap();
    scenario.outsider_can_join("o2/phone", "alice/phone");
    scenario.act("alice/phone", Operation::RemoveUsers { users: vec![user("o1")] }).unwrap();
    scenario.outsider_can_join("o3/phone", "alice/phone");
    scenario.act("carol/phone", Operation::Resync).unwrap();
    scenario.outsider_can_join("o4/phone", "alice/phone");
    scenario.add("bob/phone", "o5/phone").unwrap();
    scenario.outsider_can_join("o6/phone", "alice/phone");
    scenario.act("carol/phone", propose(NewProposal::Leave)).unwrap();
    scenario.deliver_all();
    scenario.outsider_can_join("o7/phone", "alice/phone");
    assert!(!scenario.has("carol/phone"));
}

#[test]
fn who_could_not_use_a_commit_and_is_added_anew_follows_what_comes_behind_its_welcome() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    scenario.act("alice/phone", update()).unwrap();
    // its end is the membership tag
    let event = &mut scenario.records.last_mut().unwrap().feed.event;
    let whole = event.clone();
    *event.last_mut().unwrap() ^= 1;
    scenario.deliver("bob/phone");
    scenario.records.last_mut().unwrap().feed.event = whole;
    let events = scenario.events("bob/phone");
    assert!(events.iter().any(|event| matches!(event, Event::Unusable { .. })), "{events:?}");

    scenario.act("alice/phone", Operation::RemoveUsers { users: vec![user("bob")] }).unwrap();
    scenario.add("alice/phone", "bob/phone").unwrap();
    // that it was removed, and then what it is welcomed with
    scenario.deliver_all();
    scenario.deliver_all();
    assert!(scenario.is_active("bob/phone"));
    scenario.act("alice/phone", update()).unwrap();
    scenario.agree();
}
