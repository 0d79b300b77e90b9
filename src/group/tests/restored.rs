//! A group whose provider went back to a backup: it leaps ahead, and its members come anew before anything of them is taken.

use std::sync::Arc;

use super::scenario::{Scenario, say, update};
use crate::{
    client::core::Operation,
    group::{
        GroupState, Reject,
        mls::to_record,
        record::{Change, Kind},
    },
    store::records::{FeedEntry, LEAP, LogRecord},
    wire::ids::{LeafIndex, RecipientId, Sequence},
};

/// What a restore leaves in the group's log.
fn restored(scenario: &mut Scenario) -> Sequence {
    let sequence = Sequence(scenario.state.next_sequence().0 + LEAP);
    let feed = FeedEntry {
        sequence,
        accepted_at: scenario.now,
        except: None,
        origin: None,
        handshake: false,
        event: Vec::new(),
    };
    let change = Change { request: None, sender: None, kind: Kind::Restored };
    let record = LogRecord { feed, change: to_record(&change).unwrap(), follows: None };
    scenario.state.replay(&record).unwrap();
    scenario.records.push(record);
    sequence
}

#[test]
fn a_member_of_a_restored_group_comes_anew_before_anything_else_of_it_is_taken() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    let leapt = restored(&mut scenario);
    assert_eq!(scenario.state.next_sequence(), leapt.next());
    assert_eq!(scenario.reloaded().to_snapshot().unwrap(), scenario.snapshot());
    // the epoch bears the number of its own, and yet may be another
    for operation in [say("as before"), update()] {
        for who in ["alice/phone", "bob/phone"] {
            let request = scenario.begin(who, operation.clone());
            let message = scenario.message(who, request);
            let refused = scenario.submit(&message).unwrap_err();
            assert!(
                matches!(&refused, Reject::WrongEpoch { missed, .. } if missed.is_empty()),
                "{refused}"
            );
            scenario.client(who).give_up(request).unwrap();
        }
    }
    // it is remembered by the log, and by a snapshot
    scenario.restart_from_snapshot();
    let accepted = scenario.act("alice/phone", Operation::Resync).unwrap();
    assert_eq!(accepted.group_sequence, leapt.next());
    scenario.act("alice/phone", say("alice is here")).unwrap();
    let request = scenario.begin("bob/phone", say("not yet"));
    let message = scenario.message("bob/phone", request);
    assert!(matches!(scenario.submit(&message), Err(Reject::WrongEpoch { .. })));
    scenario.client("bob/phone").give_up(request).unwrap();
    scenario.act("bob/phone", Operation::Resync).unwrap();
    scenario.act("bob/phone", say("bob is here")).unwrap();
    assert!(scenario.snapshot().behind.is_empty());
    // who comes now has a number that nobody had
    scenario.act("alice/phone", Operation::Resync).unwrap();
    scenario.add("alice/phone", "carol/phone").unwrap();
    let leaf = scenario.leaf("carol/phone");
    let (_, carol) = scenario.state.members().find(|(at, _)| *at == leaf).unwrap();
    assert!(carol.recipient >= RecipientId(leapt.0), "{}", carol.recipient);
    scenario.state.check_whole().unwrap();
}

#[test]
fn a_log_has_no_other_holes_and_an_older_snapshot_still_loads() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone"]);
    scenario.act("alice/phone", say("one")).unwrap();
    scenario.act("alice/phone", say("two")).unwrap();
    let mut state =
        GroupState::load(Arc::clone(&scenario.hub), scenario.id.clone(), &scenario.first).unwrap();
    let last = scenario.records.last().unwrap();
    assert!(matches!(state.replay(last), Err(Reject::Broken(_))));
    // a snapshot from before there were tails: nobody is behind in it
    let older = to_record(&scenario.snapshot()).unwrap();
    let loaded = GroupState::load(Arc::clone(&scenario.hub), scenario.id.clone(), &older).unwrap();
    assert!(loaded.to_snapshot().unwrap().behind.is_empty());
    // and who is behind stays so over a snapshot
    let mut behind = scenario.snapshot();
    behind.behind = vec![LeafIndex(1)];
    let bytes = behind.to_bytes().unwrap();
    let loaded = GroupState::load(Arc::clone(&scenario.hub), scenario.id.clone(), &bytes).unwrap();
    assert_eq!(loaded.to_snapshot().unwrap(), behind);
}

#[test]
fn a_state_that_is_not_what_its_members_signed_is_not_whole() {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    scenario.act("bob/phone", update()).unwrap();
    scenario.state.check_whole().unwrap();
    let (info, bytes) = (scenario.state.info().unwrap(), scenario.state.snapshot().unwrap());
    let tree = scenario.state.tree.snapshot().unwrap();
    let at = bytes.windows(tree.len()).position(|window| window == tree).unwrap();
    // in front stands an id under which openmls keeps it, and which means nothing
    for flipped in (at + 60..at + tree.len()).step_by(41) {
        let mut bytes = bytes.clone();
        bytes[flipped] ^= 1;
        let hub = Arc::clone(&scenario.hub);
        let load = || GroupState::load(hub, scenario.id.clone(), &bytes);
        let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(load));
        let whole = loaded.ok().and_then(Result::ok).filter(|it| it.check_whole().is_ok());
        // openmls may write the same in two ways: what is signed is the same then
        let differs = whole.is_some_and(|it| it.info().unwrap() != info);
        assert!(!differs, "byte {} of {}", flipped - at, tree.len());
    }
}
