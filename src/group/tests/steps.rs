//! What random members do to a group, one step after the other: for the properties here and for the fuzz target
//! `group_sequence`, which also sends what no client of ours would.

use super::scenario::{Scenario, Setup, policy, propose, say, update, uri};
use crate::{
    client::core::{GroupState as ClientState, NewProposal, Operation, PolicyChange},
    store::records::GoneReason,
    wire::extensions::{JoinPolicy, Role},
};

pub(super) const NAMES: [&str; 6] =
    ["alice/phone", "b:bob/phone", "b:bob/laptop", "carol/phone", "c:dave/phone", "b:erin/phone"];

/// One of those that there are.
pub(super) trait Pick {
    fn of<'a, T>(&self, all: &'a [T]) -> &'a T;
}

#[derive(Debug, Clone)]
pub(super) enum Step<P> {
    Say(P),
    Update(P, bool),
    Add(P, P),
    Remove(P, P),
    Join(P),
    Ask(P),
    Resync(P),
    Leave(P),
    ProposeUpdate(P),
    ProposeRemove(P, P),
    ProposeAdd(P, P),
    Moderator(P),
    Gone(P),
    Deliver(P),
    Restart(bool),
    /// Several prepare a commit on the same epoch, and send it one after the other.
    Race(Vec<P>),
}

pub(super) fn members(scenario: &mut Scenario) -> Vec<&'static str> {
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

pub(super) fn run<P: Pick>(scenario: &mut Scenario, step: &Step<P>) {
    let inside = members(scenario);
    let outside = outsiders(scenario);
    if inside.is_empty() {
        return;
    }
    let who = |index: &P| *index.of(&inside);
    let other = |index: &P| (!outside.is_empty()).then(|| *index.of(&outside));
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
pub(super) fn settle(scenario: &mut Scenario) {
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

pub(super) fn group() -> Scenario {
    Setup::policy(|policy| {
        policy.join = JoinPolicy::Open;
        policy.may_remove = Role::Member;
    })
    .group_of(["alice/phone", "b:bob/phone", "carol/phone"])
}
