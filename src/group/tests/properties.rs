//! Random sequences of operations by random members.

use proptest::{prelude::*, sample::Index};

use super::steps::{self, Pick, group, run, settle};

type Step = steps::Step<Index>;

impl Pick for Index {
    fn of<'a, T>(&self, all: &'a [T]) -> &'a T {
        self.get(all)
    }
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
