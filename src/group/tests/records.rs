//! What is written: small records, and state that loads whatever the clock says.

use super::rogue::Rogue;
use super::scenario::{Scenario, say, update};
use crate::{client::core::Operation, group::GroupState, wire::codec::encode};

fn record_of_an_update(scenario: &mut Scenario) -> usize {
    scenario.act("alice/phone", update()).unwrap();
    scenario.records.last().unwrap().change.len()
}

#[test]
fn record_of_a_commit_grows_with_the_trees_height_only() {
    let mut scenario = Scenario::group_of(["alice/phone"]);
    let add = |scenario: &mut Scenario, from: usize, to: usize| {
        let key_packages = (from..to)
            .map(|index| encode(&Rogue::new(&format!("user{index}/phone")).key_package()))
            .collect();
        scenario.act("alice/phone", Operation::AddUsers { key_packages }).unwrap();
        // the first update fills the path of a tree of new leaves
        record_of_an_update(scenario);
    };
    add(&mut scenario, 1, 8);
    let small = record_of_an_update(&mut scenario);
    add(&mut scenario, 8, 128);
    let large = record_of_an_update(&mut scenario);
    assert_eq!(scenario.state.members().count(), 128);
    // sixteen times the members, four levels more
    assert!(large < small + 4 * 200, "{small} and {large} bytes");
    let before = scenario.records.len();
    scenario.act("alice/phone", say("hello")).unwrap();
    assert!(scenario.records[before].change.len() < 100);
}

/// The bytes of a postcard varint.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

#[test]
fn group_whose_leaves_have_long_expired_still_loads_and_replays() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    scenario.restart_from_snapshot();
    let old = |scenario: &Scenario| {
        let leaf = scenario.state.tree.leaf(scenario.leaf("bob/phone")).unwrap();
        match leaf.leaf_node_source() {
            openmls::treesync::LeafNodeSource::KeyPackage(lifetime) => *lifetime,
            other => panic!("{other:?}"),
        }
    };
    let lifetime = old(&scenario);
    let mut bytes = scenario.first.clone();
    let mut changed = 0;
    // the same lifetime in 2001: as if the snapshot had lain there since
    for (value, then) in
        [(lifetime.not_before(), 1_000_000_000), (lifetime.not_after(), 1_000_000_001)]
    {
        let (value, then) = (varint(value), varint(then));
        assert_eq!(value.len(), then.len());
        for at in 0..bytes.len() - value.len() {
            if bytes[at..at + value.len()] == value[..] {
                bytes[at..at + value.len()].copy_from_slice(&then);
                changed += 1;
            }
        }
    }
    assert!(changed >= 2);
    scenario.act("alice/phone", Operation::UpdateClient { rotate_key: true }).unwrap();
    scenario.act("alice/phone", say("hello")).unwrap();
    let expected = scenario.state.epoch();
    let mut state = GroupState::load(scenario.hub.clone(), scenario.id.clone(), &bytes).unwrap();
    for record in &scenario.records {
        state.replay(record).unwrap();
    }
    assert_eq!(state.epoch(), expected);
    scenario.state = state;
    let lifetime = old(&scenario);
    assert!(lifetime.not_after() < 1_100_000_000);
    scenario.deliver_all();
    // and its member still talks
    let request = scenario.begin("bob/phone", say("after all these years"));
    let message = scenario.message("bob/phone", request);
    let request = crate::group::Request { message, relay: super::scenario::domain() };
    assert!(scenario.state.stage(&request, scenario.now).is_ok());
}
