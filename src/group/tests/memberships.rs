//! A client that is in a group more than once, and reads of it late: what is left of one membership is not taken for the
//! next one's.

use super::scenario::{Scenario, Setup, say, update};
use crate::{
    client::core::{GroupState as ClientState, Operation},
    wire::extensions::JoinPolicy,
};

/// An open group that carol was added to and removed from, which she has not read of.
fn carol_was_in() -> Scenario {
    let mut scenario = Setup::policy(|policy| policy.join = JoinPolicy::Open)
        .group_of(["alice/phone", "b:bob/phone"]);
    scenario.add("alice/phone", "carol/phone").unwrap();
    remove_carol(&mut scenario);
    scenario
}

fn remove_carol(scenario: &mut Scenario) {
    let users = vec![super::scenario::user("carol")];
    scenario.act("alice/phone", Operation::RemoveUsers { users }).unwrap();
}

/// She is in the group and hears what is said.
fn carol_is_in(scenario: &mut Scenario) {
    scenario.agree();
    assert_eq!(scenario.state_of("carol/phone"), ClientState::Active);
    scenario.act("b:bob/phone", say("hello")).unwrap();
    scenario.act("carol/phone", say("here I am")).unwrap();
    scenario.agree();
    assert_eq!(scenario.texts("carol/phone"), ["hello"]);
    assert_eq!(scenario.texts("alice/phone"), ["hello", "here I am"]);
}

#[test]
fn a_client_that_was_removed_before_it_came_to_its_welcome_is_out() {
    let mut scenario = carol_was_in();
    scenario.agree();
    assert_eq!(scenario.state_of("carol/phone"), ClientState::Left);
}

#[test]
fn a_client_that_is_added_again_before_it_reads_of_its_removal_comes_in_and_stays_in() {
    let mut scenario = carol_was_in();
    scenario.add("alice/phone", "carol/phone").unwrap();
    carol_is_in(&mut scenario);
    // and once more, now that she reads
    remove_carol(&mut scenario);
    scenario.agree();
    assert_eq!(scenario.state_of("carol/phone"), ClientState::Left);
    scenario.act("carol/phone", Operation::Join { code: None }).unwrap();
    scenario.agree();
}

#[test]
fn a_client_that_joins_by_itself_before_it_reads_of_its_removal_stays_in() {
    let mut scenario = carol_was_in();
    scenario.act("carol/phone", Operation::Join { code: None }).unwrap();
    carol_is_in(&mut scenario);
}

#[test]
fn a_client_whose_queue_is_far_behind_reads_everything_in_it_though_it_acts_meanwhile() {
    let mut scenario = Scenario::group_of(["alice/phone", "b:bob/phone"]);
    let said: Vec<String> = (0..40).map(|at| format!("{at}")).collect();
    for text in &said {
        scenario.act("alice/phone", say(text)).unwrap();
        scenario.act("alice/phone", update()).unwrap();
    }
    // the hub shows it all forty commits
    scenario.act("b:bob/phone", say("late")).unwrap();
    scenario.agree();
    assert_eq!(scenario.texts("b:bob/phone"), said);
    assert_eq!(scenario.texts("alice/phone"), ["late"]);
}
