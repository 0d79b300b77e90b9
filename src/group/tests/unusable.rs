//! Keys that nobody can encrypt to: in a tree they would end every commit. PROTOCOL.md §2, checks 8 and 9.

use std::collections::BTreeMap;

use openmls::prelude::{KeyPackageIn, ProtocolVersion};
use tls_codec::DeserializeBytes;

use super::{
    crooked::{Crook, Crooked},
    rogue::Rogue,
    scenario::{Scenario, update},
};
use crate::{
    client::core::{Event, GroupState as ClientState, Operation},
    crypto::MlsCrypto,
    group::{Reject, mls::Tree},
    store::records::{FeedEntry, LogRecord},
    wire::{
        codec::{List, Raw, decode, encode},
        ds::{Add, DsRequest, DsResponseBody, GroupUpdate, Propose},
        mls::MlsMessage,
        queueing::QueueEvent,
    },
};

const ZERO: Option<[u8; 32]> = Some([0; 32]);
const PROPOSAL_ADD: u16 = 1;

fn scene() -> (Scenario, Rogue) {
    let mut scenario = Scenario::group_of(["alice/phone", "bob/phone", "b:carol/phone"]);
    let mallory = Rogue::member(&mut scenario, "alice/phone", "mallory/phone");
    scenario.deliver_all();
    (scenario, mallory)
}

fn is_told(answer: Result<DsResponseBody, Reject>, what: &str) {
    let text = answer.expect_err("it is refused").to_string();
    assert!(text.contains("nothing can be encrypted to"), "{what}: {text}");
}

#[test]
fn a_key_package_with_one_is_added_by_nobody() {
    let (mut scenario, mut mallory) = scene();
    let zoe = Rogue::new("zoe/phone");
    let good = zoe.key_package_with(None, None);
    for (what, key_package) in [
        ("the init key", zoe.key_package_with(ZERO, None)),
        ("the leaf's", zoe.key_package_with(None, ZERO)),
    ] {
        let proposal = [PROPOSAL_ADD.to_be_bytes().to_vec(), key_package.clone()].concat();
        let proposal = mallory.handmade_proposal(&scenario, &proposal);
        let request = Propose { proposals: List::new(vec![proposal]).unwrap() };
        let message = mallory.request(&scenario, DsRequest::Propose(request));
        is_told(scenario.submit(&message), what);
    }
    // whoever adds it without a look at it
    let provider = MlsCrypto::default();
    let bad = decode::<KeyPackageIn>(&zoe.key_package_with(None, ZERO)).unwrap();
    let bad = bad.validate(&provider, ProtocolVersion::Mls10).unwrap();
    let update = mallory.commit(|builder| builder.propose_adds([bad]));
    let add = Add {
        commit: update.commit,
        welcome: update.welcome.unwrap(),
        group_info: update.group_info,
    };
    let message = mallory.request(&scenario, DsRequest::AddUsers(add));
    is_told(scenario.submit(&message), "by value");
    // clients look
    let add = Operation::AddUsers { key_packages: vec![zoe.key_package_with(None, ZERO)] };
    let request = scenario.begin("alice/phone", add);
    let tried = scenario.try_drive("alice/phone", request).unwrap_err();
    assert!(tried.to_string().contains("nothing can be encrypted to"), "{tried}");
    // it is the keys alone
    scenario.act("alice/phone", Operation::AddUsers { key_packages: vec![good] }).unwrap();
    assert!(scenario.has("zoe/phone"));
}

#[test]
fn a_path_with_one_anywhere_is_refused() {
    let (mut scenario, mut mallory) = scene();
    let good: GroupUpdate = mallory.commit(|builder| builder);
    let send = |scenario: &mut Scenario, commit: MlsMessage| {
        let update = GroupUpdate { commit, ..good.clone() };
        let message = mallory.request(scenario, DsRequest::UpdateClient(update));
        scenario.submit(&message)
    };
    let mut seen = 0;
    for bad in with_zeros(&good.commit) {
        let refused = send(&mut scenario, bad).expect_err("it is another commit");
        seen += usize::from(refused.to_string().contains("nothing can be encrypted to"));
    }
    assert_eq!(seen, 1 + 2, "the leaf's, and those of the two nodes above one of four leaves");
    send(&mut scenario, good.commit.clone()).unwrap();
}

/// Signed as it must be, in the part of the path that its reader does not derive: only a look at the key tells.
#[test]
fn a_path_with_one_that_a_hub_let_through_is_followed_by_no_client() {
    // by where in the commit the key is; which one of those that are derived that is openmls' threads decide anew each time
    let mut by_look = BTreeMap::new();
    for attempt in 0.. {
        assert!(attempt < 1000, "the keys of the path: {by_look:?}");
        let (mut scenario, mut mallory) = scene();
        let crooked = Crooked::new(MlsCrypto::default(), Crook::ZeroKey(attempt % 8));
        let update = mallory.commit_by(&crooked, None, |builder| builder);
        let place = update.commit.as_slice().windows(32).position(|key| key == [0; 32]);
        let record = LogRecord {
            feed: FeedEntry {
                sequence: scenario.state.next_sequence(),
                accepted_at: scenario.now,
                except: None,
                origin: None,
                handshake: true,
                event: encode(&QueueEvent::MlsMessage { message: update.commit.clone() }),
            },
            change: Vec::new(),
            follows: None,
        };
        let request = mallory.request(&scenario, DsRequest::UpdateClient(update));
        let answer = scenario.submit(&request);
        let Some(place) = place else {
            answer.expect("no key of its path: the one for who comes in from outside, or none");
            continue;
        };
        is_told(answer, "to the hub");
        let before = scenario.client("alice/phone").group(&scenario.id).unwrap();
        assert_eq!(before.state, ClientState::Active);
        scenario.records.push(record);
        scenario.deliver("alice/phone");
        let after = scenario.client("alice/phone").group(&scenario.id).unwrap();
        assert_eq!((after.state, after.epoch), (ClientState::Lost, before.epoch));
        let why = scenario.events("alice/phone").into_iter().find_map(|event| match event {
            Event::Unusable { by, why, .. } => Some((by, why)),
            _ => None,
        });
        let (by, why) = why.expect("its user hears of it");
        assert_eq!(by, Some(mallory.client.clone()));
        by_look.insert(place, why.contains("nothing can be encrypted to"));
        if by_look.len() == 3 {
            break;
        }
    }
    // the leaf's and that of the node above it; the root's alice derives herself
    let by_look: Vec<bool> = by_look.into_values().collect();
    assert_eq!(by_look, [true, true, false]);
}

/// `bytes` with each 32 bytes that are an `opaque<V>`, or look like one, made zeros in turn.
fn with_zeros<T: DeserializeBytes>(whole: &Raw<T>) -> Vec<Raw<T>> {
    let bytes = whole.as_slice();
    let at = (0..bytes.len() - 33).filter(|at| bytes[*at] == 32);
    at.filter_map(|at| {
        let mut bad = bytes.to_vec();
        bad[at + 1..at + 33].fill(0);
        Raw::new(bad).ok()
    })
    .collect()
}

#[test]
fn a_tree_with_one_anywhere_makes_no_group() {
    let (mut scenario, _) = scene();
    scenario.act("alice/phone", update()).unwrap();
    let info = scenario.state.info().unwrap();
    let mut seen = 0;
    for bad in with_zeros(&info.ratchet_tree) {
        let refused = Tree::import(&bad, &info.group_info).expect_err("it is another tree");
        seen += usize::from(refused.to_string().contains("nothing can be encrypted to"));
    }
    assert_eq!(seen, 4 + 2, "the leaves', and those on the path of who committed last");
    Tree::import(&info.ratchet_tree, &info.group_info).unwrap();
}
