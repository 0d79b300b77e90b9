//! All states that three providers can come to while a group moves between them ([`super::model`]): what may never be is in
//! none, and from each of them one provider will host the group, free to move on. Then the same with one rule after the other
//! broken: each time the explorer sees what the rule is there for.

use std::collections::{HashMap, VecDeque};

use super::{
    memory::{CLOCK_BACK_MS, CameAt, Keep, Memory},
    model::{Rules, Sights, TWO_HUBS, Words, World},
    source::{Heard, Next, Phase, Terms, Told, confirm_pause_ms},
    target::{Came, Fit, Known, Verdict, judge_confirmation, judge_content},
};
use crate::wire::{
    codec::{List, Opaque},
    ids::{Domain, Epoch, GroupId, Sequence, Timestamp},
    portability::{Chain, MigrationConfirmation},
};

/// All that was found.
#[derive(Debug)]
struct Explored {
    states: HashMap<u128, u32>,
    sights: Sights,
    problem: Option<Problem>,
}

#[derive(Debug)]
struct Problem {
    what: &'static str,
    /// The steps that lead there.
    way: Vec<World>,
}

const STUCK: &str = "a state from which it comes by itself to no hub that is free to move on";

/// Every state that can be come to from `start` with so many moves, up to the first in which is what may never be, or what is
/// sought of that.
fn explore(rules: &Rules, start: World, moves_max: usize, sought: Option<&str>) -> Explored {
    const NONE: u32 = u32::MAX;
    let words = Words::new();
    let mut ids: HashMap<u128, u32> = HashMap::from([(start.key(), 0)]);
    let mut worlds = vec![start];
    let mut came_from = vec![NONE];
    // of each state the fair steps that lead to it, as a list through `back`
    let mut last_back = vec![NONE];
    let mut back: Vec<(u32, u32)> = Vec::new();
    let mut sights = Sights::default();
    let mut todo = VecDeque::from([0_u32]);
    let mut steps = Vec::new();
    let way = |worlds: &[World], came_from: &[u32], to: u32| {
        let mut way = Vec::new();
        let mut at = to;
        while at != NONE {
            way.push(worlds[at as usize]);
            at = came_from[at as usize];
        }
        way.reverse();
        way
    };
    while let Some(id) = todo.pop_front() {
        let world = worlds[id as usize];
        let mut violations = world.violations().into_iter();
        if let Some(what) = violations.find(|what| sought.is_none_or(|sought| sought == *what)) {
            let problem = Some(Problem { what, way: way(&worlds, &came_from, id) });
            return Explored { states: ids, sights, problem };
        }
        sights.add(world.sights());
        world.steps(rules, &words, moves_max, &mut steps);
        for (next, fair) in &steps {
            let fresh = worlds.len() as u32;
            let next_id = *ids.entry(next.key()).or_insert(fresh);
            if next_id == fresh {
                worlds.push(*next);
                came_from.push(id);
                last_back.push(NONE);
                todo.push_back(next_id);
            }
            if *fair && next_id != id {
                back.push((id, last_back[next_id as usize]));
                last_back[next_id as usize] = back.len() as u32 - 1;
            }
        }
    }
    // from where it is settled back to all states that lead there by themselves
    let mut good: Vec<bool> = worlds.iter().map(World::is_settled).collect();
    let mut todo: Vec<u32> = (0..worlds.len() as u32).filter(|id| good[*id as usize]).collect();
    while let Some(id) = todo.pop() {
        let mut at = last_back[id as usize];
        while at != NONE {
            let (from, rest) = back[at as usize];
            if !std::mem::replace(&mut good[from as usize], true) {
                todo.push(from);
            }
            at = rest;
        }
    }
    let stuck = good.iter().position(|good| !good);
    let problem = stuck.map(|id| Problem { what: STUCK, way: way(&worlds, &came_from, id as u32) });
    Explored { states: ids, sights, problem }
}

/// Explores with the crate's rules: there is nothing wrong, and as many states as there were when this was written; a model
/// that is smaller has lost something.
fn holds(start: World, moves_max: usize, states_min: usize) -> Explored {
    let found = explore(&Rules::REAL, start, moves_max, None);
    let states = found.states.len();
    println!("{states} states with at most {moves_max} moves");
    assert!(found.problem.is_none(), "{:#?}", found.problem);
    assert!(states >= states_min, "{states} states are not all that there are");
    found
}

#[test]
fn at_no_time_are_there_two_hubs_and_from_every_state_there_will_be_one_that_is_free() {
    holds(World::start(), 1, 60);
    let there_and_back = holds(World::start(), 2, 3_000);
    // where the next test goes on
    assert!(there_and_back.states.contains_key(&World::home_again().key()));
    let all = holds(World::start(), 3, 100_000);
    assert_eq!(all.sights, Sights::all());
}

#[test]
fn the_same_holds_for_a_group_that_came_home_and_goes_on_again() {
    holds(World::home_again(), 4, 100_000);
}

/// With `rules` the explorer finds `what`, and shows a way to it.
fn finds(what: &str, rules: Rules) {
    let from_start = (1..=3).map(|moves_max| (World::start(), moves_max));
    let found = from_start
        .chain([(World::home_again(), 4)])
        .find_map(|(start, moves_max)| explore(&rules, start, moves_max, Some(what)).problem);
    let problem = found.expect("the rule is not needed, or the model does not see what for");
    assert_eq!(problem.what, what, "{:#?}", problem.way);
    assert!(problem.way.len() > 1);
}

#[test]
fn a_source_that_takes_back_what_was_sent_makes_two_hubs() {
    finds(TWO_HUBS, Rules { may_thaw: |phase| *phase != Phase::Gone, ..Rules::REAL });
}

#[test]
fn a_source_that_hears_the_refusal_of_another_move_makes_two_hubs() {
    let heard = |phase: &Phase, terms: &Terms, hash: &[u8], refused: bool| {
        let hash = if refused { &terms.response } else { hash };
        phase.heard(terms, hash, refused)
    };
    finds(TWO_HUBS, Rules { heard, ..Rules::REAL });
}

#[test]
fn a_source_that_hears_the_word_on_another_content_leaves_no_hub() {
    let heard = |phase: &Phase, terms: &Terms, hash: &[u8], refused: bool| match phase {
        Phase::Sent { .. } if !refused => Heard::Gone,
        Phase::Frozen | Phase::Sent { .. } | Phase::Gone => phase.heard(terms, hash, refused),
    };
    finds(STUCK, Rules { heard, ..Rules::REAL });
}

#[test]
fn a_hub_that_moves_a_group_on_before_its_last_one_has_confirmed_makes_two_hubs() {
    let next = |phase: &Phase, terms: &Terms, now: Timestamp| {
        phase.next(&Terms { settled: true, ..*terms }, now)
    };
    finds(TWO_HUBS, Rules { next, ..Rules::REAL });
}

#[test]
fn a_late_answer_to_a_confirmation_that_ends_a_later_move_leaves_no_hub() {
    finds(STUCK, Rules { ends_its_own: false, ..Rules::REAL });
}

#[test]
fn a_source_that_gives_up_to_confirm_leaves_a_hub_that_never_moves_on() {
    finds(STUCK, Rules { is_enough: |_| true, ..Rules::REAL });
}

#[test]
fn a_source_that_does_not_hear_that_its_target_forgot_never_ends() {
    finds(STUCK, Rules { is_enough: |told| told == Told::Knows, ..Rules::REAL });
}

#[test]
fn a_source_that_forgets_the_proof_before_its_target_has_it_leaves_a_hub_that_never_moves_on() {
    let is_forgotten = |memory: &Memory, keep: &Keep, now: Timestamp| {
        Memory { confirms: false, ..*memory }.is_forgotten(keep, now)
    };
    finds(STUCK, Rules { is_forgotten, ..Rules::REAL });
}

#[test]
fn a_target_that_forgets_an_arrival_that_was_not_confirmed_makes_two_hubs() {
    let is_forgotten = |memory: &Memory, keep: &Keep, now: Timestamp| {
        let came = memory.came.map(|came| CameAt { confirmed: true, here: false, ..came });
        let left_at = Some(Timestamp(0));
        Memory { came, left_at, ..*memory }.is_forgotten(keep, now)
    };
    finds(TWO_HUBS, Rules { is_forgotten, ..Rules::REAL });
}

#[test]
fn a_target_that_forgets_an_arrival_before_its_nonce_has_expired_makes_two_hubs() {
    let is_forgotten = |memory: &Memory, keep: &Keep, now: Timestamp| {
        let came = memory.came.filter(|came| now.ms_since(came.at) < keep.forward_ms);
        Memory { came, ..*memory }.is_forgotten(keep, now)
    };
    finds(TWO_HUBS, Rules { is_forgotten, ..Rules::REAL });
}

#[test]
fn a_target_that_takes_another_confirmation_for_its_own_makes_two_hubs() {
    let judge_confirmation =
        |own: &Domain, came: Option<&Came>, chain: &Chain, confirmation: &MigrationConfirmation| {
            let mut confirmation = confirmation.clone();
            if let Some(came) = came {
                confirmation.nonce = came.nonce;
                (confirmation.epoch, confirmation.next_sequence) = (came.epoch, came.next_sequence);
            }
            judge_confirmation(own, came, chain, &confirmation)
        };
    finds(TWO_HUBS, Rules { judge_confirmation, ..Rules::REAL });
}

#[test]
fn a_target_that_takes_what_it_refused_makes_two_hubs() {
    let judge_content = |known: &Known, expires_at: Timestamp, now: Timestamp, fits: bool| {
        judge_content(&Known { refused: false, ..*known }, expires_at, now, fits)
    };
    finds(TWO_HUBS, Rules { judge_content, ..Rules::REAL });
}

#[test]
fn a_target_that_says_a_refusal_before_it_is_written_down_makes_two_hubs() {
    finds(TWO_HUBS, Rules { refuses_durably: false, ..Rules::REAL });
}

#[test]
fn a_target_that_forgets_a_refusal_before_the_nonce_has_expired_makes_two_hubs() {
    finds(TWO_HUBS, Rules { is_refusal_forgotten: |_, _| true, ..Rules::REAL });
}

#[test]
fn a_target_that_takes_by_a_nonce_that_has_expired_makes_two_hubs() {
    let judge_content = |known: &Known, _, now: Timestamp, fits: bool| {
        judge_content(known, now.plus_ms(1), now, fits)
    };
    finds(TWO_HUBS, Rules { judge_content, ..Rules::REAL });
}

#[test]
fn a_target_that_refuses_what_it_took_makes_two_hubs() {
    let judge_abort = |_: &Known| Verdict::Refuse;
    finds(TWO_HUBS, Rules { judge_abort, ..Rules::REAL });
    let judge_content = |known: &Known, expires_at: Timestamp, now: Timestamp, fits: bool| {
        judge_content(&Known { arrived: None, ..*known }, expires_at, now, fits)
    };
    finds(TWO_HUBS, Rules { judge_content, ..Rules::REAL });
}

fn terms() -> Terms {
    Terms {
        response: [100; 32],
        expires_at: Timestamp(1_000),
        frozen_at: Timestamp(0),
        freeze_ms: 50,
        settled: true,
    }
}

#[test]
fn a_source_that_sent_something_does_not_take_the_group_back_by_itself() {
    let terms = terms();
    let sent = Phase::Frozen.sending([7; 32]).unwrap();
    assert!(!sent.may_thaw());
    assert_eq!(sent.next(&terms, Timestamp(1_000_000)), Next::Send);
    assert_eq!(sent.sending([8; 32]), None, "what was written down is not made anew");
    assert_eq!(sent.heard(&terms, &[8; 32], false), Heard::Nothing, "of another content");
    assert_eq!(sent.heard(&terms, &[7; 32], true), Heard::Nothing, "a refusal names the response");
    assert_eq!(sent.heard(&terms, &[7; 32], false), Heard::Gone);
    assert_eq!(sent.heard(&terms, &terms.response, true), Heard::Thaw);
}

#[test]
fn a_frozen_group_waits_for_its_last_hub_and_goes_on_here_when_the_time_is_over() {
    let (settled, waits) = (terms(), Terms { settled: false, ..terms() });
    let short = Terms { freeze_ms: 5_000, ..waits };
    assert_eq!(Phase::Frozen.next(&settled, Timestamp(49)), Next::Prepare);
    assert_eq!(Phase::Frozen.next(&waits, Timestamp(49)), Next::Wait);
    assert_eq!(Phase::Frozen.next(&waits, Timestamp(50)), Next::Thaw);
    assert_eq!(Phase::Frozen.next(&short, Timestamp(999)), Next::Wait);
    assert_eq!(Phase::Frozen.next(&short, Timestamp(1_000)), Next::Thaw, "the nonce has expired");
    // what was sent goes on by the same rule as always
    assert_eq!(Phase::Sent { hash: [1; 32] }.next(&waits, Timestamp(49)), Next::Send);
    assert_eq!(Phase::Gone.next(&waits, Timestamp(u64::MAX)), Next::Confirm, "for ever");
}

#[test]
fn a_target_that_is_away_is_told_more_and_more_seldom_but_every_day() {
    const HOUR_MS: u64 = 3_600_000;
    let pause = |ms| confirm_pause_ms(Timestamp(7), Timestamp(7 + ms));
    assert_eq!(pause(0), 0);
    assert_eq!(pause(8_000), 1_000);
    assert_eq!(pause(8 * HOUR_MS), HOUR_MS);
    assert_eq!(pause(400 * 24 * HOUR_MS), 24 * HOUR_MS);
    assert_eq!(confirm_pause_ms(Timestamp(7), Timestamp(0)), 0, "a clock that was set back");
    // a year of it
    let (mut at, mut requests) = (0, 0);
    while at < 365 * 24 * HOUR_MS {
        at += pause(at).max(60_000);
        requests += 1;
    }
    assert!((365..500).contains(&requests), "{requests}");
}

#[test]
fn what_is_remembered_is_forgotten_when_nobody_can_ask_about_it() {
    let keep = Keep { forward_ms: 100, response_ms: 300 };
    let came = CameAt { at: Timestamp(0), here: false, confirmed: true };
    let gone = Memory { left_at: Some(Timestamp(50)), came: Some(came), confirms: false };
    let expired = 300 + CLOCK_BACK_MS;
    assert!(!gone.is_forgotten(&keep, Timestamp(expired - 1)));
    assert!(gone.is_forgotten(&keep, Timestamp(expired)));
    // who never came needs to have left only
    let from_here = Memory { came: None, ..gone };
    assert!(!from_here.is_forgotten(&keep, Timestamp(149)));
    assert!(from_here.is_forgotten(&keep, Timestamp(150)));
    for kept in [
        Memory { left_at: None, ..gone },
        Memory { left_at: Some(Timestamp(expired)), ..gone },
        Memory { confirms: true, ..gone },
        Memory { came: Some(CameAt { confirmed: false, ..came }), ..gone },
        Memory { came: Some(CameAt { here: true, ..came }), ..gone },
    ] {
        assert!(!kept.is_forgotten(&keep, Timestamp(expired)), "{kept:?}");
    }
}

#[test]
fn a_confirmation_is_taken_once_and_only_where_it_is_of_what_was_done() {
    let [home, second, here] =
        ["a.example", "b.example", "c.example"].map(|domain| Domain::new(domain).unwrap());
    let link = |from: &Domain, to: &Domain, at: u64| MigrationConfirmation {
        domain_name: to.clone(),
        nonce: [at as u8; 32],
        group_id: GroupId::of(&home, [7; 16]),
        signature: Opaque::default(),
        source_domain: from.clone(),
        epoch: Epoch(at),
        next_sequence: Sequence(at * 10),
    };
    let came_by = |link: &MigrationConfirmation| Came {
        nonce: link.nonce,
        source: link.source_domain.clone(),
        epoch: link.epoch,
        next_sequence: link.next_sequence,
        confirmed: false,
    };
    let chain = |links: &[&MigrationConfirmation]| -> Chain {
        List::new(links.iter().map(|link| (*link).clone()).collect()).unwrap()
    };
    let (first, last) = (link(&home, &second, 3), link(&second, &here, 5));
    let (came, before) = (came_by(&last), chain(&[&first]));
    let judge = |came: Option<&Came>, said: &MigrationConfirmation| {
        judge_confirmation(&here, came, &before, said)
    };
    assert_eq!(judge(Some(&came), &last), Fit::Take { chain: chain(&[&first, &last]) });
    assert_eq!(judge(Some(&Came { confirmed: true, ..came.clone() }), &last), Fit::Known);
    assert_eq!(judge(None, &last), Fit::Unknown);
    let other = MigrationConfirmation { nonce: [9; 32], ..last.clone() };
    assert_eq!(judge(Some(&came), &other), Fit::Unknown);
    let other = MigrationConfirmation { source_domain: home.clone(), ..last.clone() };
    assert_eq!(judge(Some(&came), &other), Fit::Unknown);
    for misfit in [
        MigrationConfirmation { epoch: Epoch(6), ..last.clone() },
        MigrationConfirmation { next_sequence: Sequence(51), ..last.clone() },
        MigrationConfirmation { domain_name: second.clone(), ..last.clone() },
        MigrationConfirmation { group_id: GroupId::of(&home, [8; 16]), ..last.clone() },
    ] {
        assert_eq!(judge(Some(&came), &misfit), Fit::Misfit, "{misfit:?}");
    }
    // moves that do not lead here prove nothing, save at home, where nothing needs to be proven
    let fit = judge_confirmation(&here, Some(&came), &chain(&[]), &last);
    assert_eq!(fit, Fit::Misfit);
    let back = link(&here, &home, 7);
    let fit = judge_confirmation(&home, Some(&came_by(&back)), &chain(&[]), &back);
    assert_eq!(fit, Fit::Take { chain: chain(&[]) });
}
