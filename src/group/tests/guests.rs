//! Clients of other providers: what their providers are owed, and that they get on as the hub's own.

use super::scenario::{Scenario, Setup, propose, say, update};
use crate::{
    client::core::{NewProposal, Operation},
    group::Reject,
    store::records::GoneReason,
    wire::{
        codec::{List, Opaque},
        extensions::{JoinPolicy, Role, RoleEntry},
        ids::{Domain, UserKeyHash},
        queueing::RosterChange,
    },
};

fn b() -> Domain {
    Domain::new("b.example").unwrap()
}

fn open_group() -> Scenario {
    Setup::policy(|policy| {
        policy.join = JoinPolicy::Open;
        policy.may_remove = Role::Member;
    })
    .group_of(["alice/phone", "b:bob/phone", "c:carol/phone"])
}

/// The changes that `peer` is owed, with their sequence and whether they open its copy.
fn changes(scenario: &Scenario, peer: &str) -> Vec<(u64, bool, String)> {
    let owed = &scenario.owed[&Domain::new(format!("{peer}.example")).unwrap()];
    owed.iter()
        .filter(|owed| !owed.changes.is_empty())
        .map(|owed| {
            let of = |change: &RosterChange| match change {
                RosterChange::Add { recipient, welcome, .. } => {
                    format!("add {recipient}{}", if welcome.is_some() { " welcome" } else { "" })
                }
                RosterChange::Update { recipient, .. } => format!("update {recipient}"),
                RosterChange::Remove { recipient } => format!("remove {recipient}"),
            };
            let all: Vec<_> = owed.changes.iter().map(of).collect();
            (owed.sequence.0, owed.opens, all.join(", "))
        })
        .collect()
}

#[test]
fn members_of_three_providers_do_everything_together() {
    let mut scenario = open_group();
    scenario.agree();
    scenario.act("b:bob/phone", say("from b")).unwrap();
    scenario.act("c:carol/phone", say("from c")).unwrap();
    scenario.act("alice/phone", say("from a")).unwrap();
    scenario.add("b:bob/phone", "b:bob/laptop").unwrap();
    scenario.add("c:carol/phone", "d:dave/phone").unwrap();
    scenario.agree();
    assert_eq!(scenario.texts("b:bob/phone"), ["from c", "from a"]);
    assert_eq!(scenario.texts("alice/phone"), ["from b", "from c"]);
    scenario.act("b:bob/tablet", Operation::Join { code: None }).unwrap();
    scenario.act("c:carol/phone", propose(NewProposal::Leave)).unwrap();
    scenario.deliver_all();
    scenario.act("d:dave/phone", update()).unwrap();
    scenario.agree();
    let bob = super::scenario::uri("b:bob/phone").user();
    scenario.act("alice/phone", Operation::RemoveUsers { users: vec![bob] }).unwrap();
    scenario.agree();
    let there: Vec<_> = scenario.state.guests().map(ToString::to_string).collect();
    assert_eq!(there, ["d.example"]);
    assert!(!scenario.has("b:bob/tablet"));
}

#[test]
fn a_guest_is_owed_its_own_clients_changes_and_every_sequence_while_it_has_clients() {
    let mut scenario = open_group();
    let first = scenario.owed[&b()].first().unwrap().sequence.0;
    assert_eq!(changes(&scenario, "b"), [(first, true, "add 2 welcome".to_owned())]);
    scenario.act("alice/phone", say("one")).unwrap();
    scenario.add("alice/phone", "alice/laptop").unwrap();
    let muted =
        Operation::UpdateFanoutInfo { filter: crate::wire::ds::FanoutFilter::HandshakeOnly };
    scenario.act("b:bob/phone", muted).unwrap();
    scenario.add("c:carol/phone", "b:eve/phone").unwrap();
    let next = scenario.state.next_sequence().0;
    assert_eq!(
        changes(&scenario, "b")[1..],
        [(next - 2, false, "update 2".to_owned()), (next - 1, false, "add 5 welcome".to_owned())]
    );
    let all: Vec<_> = scenario.owed[&b()].iter().map(|owed| owed.sequence.0).collect();
    assert_eq!(all, (first..next).collect::<Vec<_>>(), "whoever sent and whomever it is about");
    assert!(changes(&scenario, "c").len() == 1, "nothing of b's clients");
    scenario.deliver_all();
    let users = ["b:bob/phone", "b:eve/phone"].map(|name| super::scenario::uri(name).user());
    scenario.act("alice/phone", Operation::RemoveUsers { users: users.to_vec() }).unwrap();
    let end = scenario.state.next_sequence().0 - 1;
    let (at, opens, mut both) = changes(&scenario, "b").pop().unwrap();
    if both == "remove 5, remove 2" {
        both = "remove 2, remove 5".to_owned();
    }
    assert_eq!((at, opens, both.as_str()), (end, false, "remove 2, remove 5"));
    scenario.act("alice/phone", say("without b")).unwrap();
    assert_eq!(scenario.owed[&b()].last().unwrap().sequence.0, end, "nobody is there any more");
    scenario.deliver_all();
    scenario.add("alice/phone", "b:bob/laptop").unwrap();
    let again = scenario.state.next_sequence().0 - 1;
    assert_eq!(changes(&scenario, "b").last().unwrap(), &(again, true, "add 6 welcome".to_owned()));
    scenario.agree();
}

#[test]
fn joiners_of_one_guest_whose_welcomes_do_not_fit_one_item_are_refused_and_fewer_are_not() {
    let mut scenario = Setup::policy(|policy| {
        let mut roles = policy.roles.clone().into_vec();
        roles.extend((0..6_000_u32).map(|n| RoleEntry {
            user_key_hash: UserKeyHash(
                Opaque::new(crate::crypto::sha256(&n.to_be_bytes())).unwrap(),
            ),
            role: Role::Banned,
        }));
        roles.sort_by(|a, b| a.user_key_hash.cmp(&b.user_key_hash));
        policy.roles = List::new(roles).unwrap();
    })
    .group_of(["alice/phone"]);
    let mut add = |providers: &[&str]| {
        let names = (0..22).map(|n| format!("{}:u{n}/phone", providers[n % providers.len()]));
        let names: Vec<String> = names.collect();
        let key_packages = names.iter().map(|name| scenario.key_package(name)).collect();
        scenario.act("alice/phone", Operation::AddUsers { key_packages })
    };
    let refused = add(&["b"]);
    assert!(matches!(refused, Err(Reject::TooLarge { .. })), "{refused:?}");
    add(&["b", "c"]).unwrap();
}

#[test]
fn an_entry_names_the_provider_of_its_sender() {
    let mut scenario = open_group();
    let origin = |scenario: &Scenario| scenario.records.last().unwrap().feed.origin.clone();
    scenario.act("b:bob/phone", say("hello")).unwrap();
    assert_eq!(origin(&scenario), Some(b()));
    scenario.act("alice/phone", say("hello")).unwrap();
    assert_eq!(origin(&scenario), Some(super::scenario::domain()));
    scenario.deliver_all();
    scenario.act("b:bob/phone", Operation::Resync).unwrap();
    let resync = scenario.records.iter().rev().find(|record| record.feed.except.is_some());
    assert_eq!(resync.unwrap().feed.origin, Some(b()));
    assert!(changes(&scenario, "b").last().unwrap().2.starts_with("update 2"));
    scenario.agree();
}

#[test]
fn a_group_s_end_is_owed_to_whom_its_last_commit_removed() {
    let mut scenario = open_group();
    scenario.act("alice/phone", Operation::DeleteGroup).unwrap();
    let end = scenario.state.next_sequence().0 - 1;
    for peer in ["b", "c"] {
        let last = changes(&scenario, peer).last().unwrap().clone();
        assert_eq!((last.0, last.2.starts_with("remove")), (end, true));
        let owed = &scenario.owed[&Domain::new(format!("{peer}.example")).unwrap()];
        assert_eq!(owed[owed.len() - 2].sequence.0, end - 1, "the commit too");
    }
    scenario.agree();
}

#[test]
fn a_request_of_another_provider_s_client_comes_through_that_provider() {
    let mut scenario = open_group();
    let request = scenario.begin("b:bob/phone", say("hello"));
    let message = scenario.message("b:bob/phone", request);
    for relay in ["a.example", "c.example"] {
        let refused = scenario.submit_via(&message, Domain::new(relay).unwrap());
        assert!(matches!(refused, Err(Reject::Unauthenticated(_))), "{refused:?}");
    }
    scenario.submit_via(&message, b()).unwrap();
}

#[test]
fn a_provider_speaks_for_its_own_clients_only() {
    let mut scenario = open_group();
    let bob = scenario.state.members().find(|(_, member)| member.client.domain() == b()).unwrap().1;
    let recipient = bob.recipient;
    assert!(scenario.state.client_of(&b(), recipient).is_some());
    let c = Domain::new("c.example").unwrap();
    assert_eq!(scenario.state.client_of(&c, recipient), None);
    assert_eq!(scenario.state.client_of(&super::scenario::domain(), recipient), None);
    assert!(scenario.hub_acts(&[("b:bob/phone", GoneReason::QueueGone)]));
    scenario.deliver_all();
    scenario.act("c:carol/phone", update()).unwrap();
    assert!(!scenario.has("b:bob/phone"));
    scenario.agree();
}

#[test]
fn a_snapshot_for_a_guest_holds_its_clients_as_they_are() {
    let mut scenario = open_group();
    scenario.add("alice/phone", "b:eve/phone").unwrap();
    let roster = scenario.state.roster_for(&b());
    assert_eq!(roster.len(), 2);
    assert!(roster.iter().all(|it| matches!(it, RosterChange::Add { welcome: None, .. })));
    assert!(scenario.state.roster_for(&Domain::new("z.example").unwrap()).is_empty());
}
