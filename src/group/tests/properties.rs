//! Random sequences of operations by random members.

use proptest::{prelude::*, sample::Index};

use super::scenario::{Scenario, Setup, policy, propose, say, update, uri};
use crate::{
    client::core::{GroupState as ClientState, NewProposal, Operation, PolicyChange},
    store::records::GoneReason,
    wire::extensions::{JoinPolicy, Role},
};

const NAMES: [&str; 6] =
    ["alice/phone", "b:bob/phone", "b:bob/laptop", "carol/phone", "c:dave/phone", "b:erin/phone"];

#[derive(Debug, Clone)]
enum Step {
    Say(Index),
    Update(Index, bool),
    Add(Index, Index),
    Remove(Index, Index),
    Join(Index),
    Ask(Index),
    Resync(Index),
    Leave(Index),
    ProposeUpdate(Index),
    ProposeRemove(Index, Index),
    ProposeAdd(Index, Index),
    Moderator(Index),
    Gone(Index),
    Deliver(Index),
    Restart(bool),
    /// Several prepare a commit on the same epoch, and send it one after the other.
    Race(Vec<Index>),
}

fn step() -> impl Strategy<Value = Step> {
    let who = any::<Index>;
    prop_oneof![
        2 => who().prop_map(Step::Say),
        3 => (who(), any::<bool>()).prop_map(|(a, b)| Step::Update(a, b)),
        3 => (who(), who()).prop_map(|(a, b)| Step::Add(a, b)),
        2 => (who(), who()).prop_map(|(a, b)| Step::Remove(a, b)),
        2 => who().prop_map(Step::Join),
        1 => who().prop_map(Step::Ask),
        2 => who().prop_map(Step::Resync),
        2 => who().prop_map(Step::Leave),
        3 => who().prop_map(Step::ProposeUpdate),
        2 => (who(), who()).prop_map(|(a, b)| Step::ProposeRemove(a, b)),
        2 => (who(), who()).prop_map(|(a, b)| Step::ProposeAdd(a, b)),
        1 => who().prop_map(Step::Moderator),
        1 => who().prop_map(Step::Gone),
        2 => who().prop_map(Step::Deliver),
        1 => any::<bool>().prop_map(Step::Restart),
        2 => prop::collection::vec(who(), 2..4).prop_map(Step::Race),
    ]
}

fn members(scenario: &mut Scenario) -> Vec<&'static str> {
    NAMES.into_iter().filter(|name| scenario.has(name) && scenario.is_active(name)).collect()
}

fn outsiders(scenario: &Scenario) -> Vec<&'static str> {
    NAMES.into_iter().filter(|name| !scenario.has(name)).collect()
}

/// An operation that may be refused, or that the client library itself sees to be pointless.
fn try_act(scenario: &mut Scenario, who: &str, operation: Operation) {
    let id = scenario.id.clone();
    let now = scenario.now;
    let begun = match operation {
        Operation::Join { .. } | Operation::AskToJoin => {
            scenario.client(who).join(&id, &super::scenario::domain(), "", operation, now)
        }
        _ => scenario.client(who).begin(&id, operation),
    };
    if let Ok(request) = begun {
        let _ = scenario.try_drive(who, request);
    }
}

fn run(scenario: &mut Scenario, step: &Step) {
    let inside = members(scenario);
    let outside = outsiders(scenario);
    if inside.is_empty() {
        return;
    }
    let who = |index: &Index| *index.get(&inside);
    let other = |index: &Index| (!outside.is_empty()).then(|| *index.get(&outside));
    match step {
        Step::Say(by) => try_act(scenario, who(by), say("hello")),
        Step::Update(by, rotate_key) => {
            let operation = Operation::UpdateClient { rotate_key: *rotate_key };
            try_act(scenario, who(by), operation);
        }
        Step::Add(by, new) => {
            let Some(new) = other(new) else { return };
            let key_packages = vec![scenario.key_package(new)];
            let own = uri(who(by)).user() == uri(new).user();
            let operation = if own {
                Operation::AddClients { key_packages }
            } else {
                Operation::AddUsers { key_packages }
            };
            try_act(scenario, who(by), operation);
        }
        Step::Remove(by, whom) => {
            let users = vec![uri(who(whom)).user()];
            try_act(scenario, who(by), Operation::RemoveUsers { users });
        }
        Step::Join(new) => {
            if let Some(new) = other(new) {
                try_act(scenario, new, Operation::Join { code: None });
            }
        }
        Step::Ask(new) => {
            if let Some(new) = other(new) {
                try_act(scenario, new, Operation::AskToJoin);
            }
        }
        Step::Resync(by) => try_act(scenario, who(by), Operation::Resync),
        Step::Leave(by) => try_act(scenario, who(by), propose(NewProposal::Leave)),
        Step::ProposeUpdate(by) => try_act(scenario, who(by), propose(NewProposal::Update)),
        Step::ProposeRemove(by, whom) => {
            let whom = uri(who(whom));
            try_act(scenario, who(by), propose(NewProposal::Remove(whom)));
        }
        Step::ProposeAdd(by, new) => {
            let Some(new) = other(new) else { return };
            let key_package = scenario.key_package(new);
            try_act(scenario, who(by), propose(NewProposal::Add(key_package)));
        }
        Step::Moderator(whom) => {
            let user = uri(who(whom)).user();
            let change = PolicyChange::Role { user, role: Role::Moderator };
            try_act(scenario, "alice/phone", policy(change));
        }
        Step::Gone(whom) => {
            if who(whom) != "alice/phone" {
                scenario.hub_acts(&[(who(whom), GoneReason::QueueGone)]);
            }
        }
        Step::Deliver(whom) => scenario.deliver(who(whom)),
        Step::Restart(false) => scenario.restart(),
        Step::Restart(true) => scenario.restart_from_snapshot_for_all(),
        Step::Race(all) => {
            let begun: Vec<_> = all
                .iter()
                .filter_map(|index| {
                    let name = who(index);
                    let member = scenario.client(name);
                    let request = member.begin(&scenario.id, update()).ok()?;
                    member.outbound(request, scenario.now).ok()?;
                    Some((name, request))
                })
                .collect();
            for (name, request) in begun {
                let _ = scenario.try_drive(name, request);
            }
        }
    }
}

/// Everybody catches up; who lost the group resyncs; whatever is pending, one that stays commits all of it.
fn settle(scenario: &mut Scenario) {
    if scenario.state.is_deleted() {
        return;
    }
    scenario.deliver_all();
    for name in NAMES {
        if scenario.has(name) && scenario.state_of(name) == ClientState::Lost {
            panic!("{name}: {:?}", scenario.events(name));
        }
    }
    let going: Vec<_> = scenario
        .state
        .pending
        .iter()
        .filter_map(|pending| crate::policy::pending::goes(&pending.act))
        .collect();
    let stays =
        NAMES.into_iter().find(|name| scenario.has(name) && !going.contains(&scenario.leaf(name)));
    if let Some(stays) = stays {
        scenario.act(stays, update()).unwrap();
        assert!(scenario.state.pending.is_empty());
    }
    scenario.agree();
}

fn group() -> Scenario {
    Setup::policy(|policy| {
        policy.join = JoinPolicy::Open;
        policy.may_remove = Role::Member;
    })
    .group_of(["alice/phone", "b:bob/phone", "carol/phone"])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 60, failure_persistence: Some(Box::new(proptest::test_runner::FileFailurePersistence::WithSource("regressions"))), ..ProptestConfig::default() })]

    /// After every step the reloaded group equals the live one and refusals change nothing (the fixture sees to
    /// both); in the end, all members are in the hub's epoch together, and what is pending can be committed.
    #[test]
    fn members_and_hub_agree_whatever_is_done(steps in prop::collection::vec(step(), 10..40)) {
        let mut scenario = group();
        for (index, step) in steps.iter().enumerate() {
            run(&mut scenario, step);
            if index % 7 == 6 {
                settle(&mut scenario);
            }
        }
        settle(&mut scenario);
    }

    /// Proposals of all kinds in any order: whatever stands can be committed by whoever stays.
    #[test]
    fn what_is_pending_can_always_be_committed(
        rounds in prop::collection::vec(prop::collection::vec(proposal(), 1..7), 1..5),
    ) {
        let mut scenario = group();
        for proposals in &rounds {
            for step in proposals {
                run(&mut scenario, step);
                scenario.deliver_all();
            }
            settle(&mut scenario);
        }
    }
}

fn proposal() -> impl Strategy<Value = Step> {
    let who = any::<Index>;
    prop_oneof![
        2 => who().prop_map(Step::Leave),
        3 => who().prop_map(Step::ProposeUpdate),
        3 => (who(), who()).prop_map(|(a, b)| Step::ProposeRemove(a, b)),
        3 => (who(), who()).prop_map(|(a, b)| Step::ProposeAdd(a, b)),
        2 => who().prop_map(Step::Ask),
        1 => who().prop_map(Step::Gone),
    ]
}
