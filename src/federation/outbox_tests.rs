//! What a peer gets, whatever it answers and whenever one of the two forgets.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::wire::{
    codec::List,
    ids::Domain,
    queueing::{QueueEvent, RosterChange},
};

const LIMITS: OutboxLimits = OutboxLimits {
    batch_items_max: 8,
    batch_bytes_max: 800,
    batch_groups_max: 4,
    batches_max: 3,
    retry: Backoff { first_ms: 10, max_ms: 100 },
    stalls_max: 3,
    set_aside_retry_ms: 10_000,
};

fn group(seed: u8) -> GroupId {
    GroupId::of(&Domain::new("a.example").unwrap(), [seed; 16])
}

fn at(ms: u64) -> Timestamp {
    Timestamp(1_000_000 + ms)
}

fn standing(acknowledged: u64, until: u64) -> Standing {
    Standing {
        acknowledged: Sequence(acknowledged),
        acknowledged_at: at(0),
        until: Sequence(until),
        oldest_at: at(0),
        set_aside: None,
        needs_snapshot: false,
        opened: true,
    }
}

fn feed_item(group: &GroupId, sequence: u64) -> DeliveryItem {
    DeliveryItem::Feed {
        group_id: group.clone(),
        group_sequence: Sequence(sequence),
        accepted_at: at(sequence),
        except: None,
        event: QueueEvent::RosterOnly,
        roster: List::default(),
    }
}

fn snapshot(group: &GroupId, next: u64) -> DeliveryItem {
    DeliveryItem::Snapshot {
        group_id: group.clone(),
        next_sequence: Sequence(next),
        chain: List::default(),
        roster: List::new(vec![RosterChange::Remove { recipient: RecipientId(1) }]).unwrap(),
    }
}

fn loaded(item: DeliveryItem, bytes: usize, through: u64) -> Loaded {
    Loaded { item, bytes, through: Sequence(through), accepted_at: at(through) }
}

/// What the hub's log would give for a turn. Items have 100 bytes.
fn read(turn: &Turn, next: u64) -> Reading {
    if turn.need == Need::Snapshot {
        return Reading::Items(vec![loaded(snapshot(&turn.group, next), 100, next - 1)]);
    }
    let (mut items, mut bytes) = (Vec::new(), 0);
    for sequence in turn.acknowledged.0 + 1..=turn.until.0 {
        if items.len() >= turn.items_max || (bytes + 100 > turn.bytes_max && !items.is_empty()) {
            break;
        }
        bytes += 100;
        items.push(loaded(feed_item(&turn.group, sequence), 100, sequence));
    }
    Reading::Items(items)
}

fn fill(outbox: &mut Outbox, plan: &Plan, now: Timestamp) -> Option<Vec<DeliveryItem>> {
    let read = |turn: &Turn| (turn.group.clone(), read(turn, turn.until.0 + 1));
    outbox.fill(plan.batch, plan.turns.iter().map(read).collect(), now, 0)
}

fn next_batch(outbox: &mut Outbox, now: Timestamp) -> Option<(BatchId, Vec<DeliveryItem>)> {
    let plan = outbox.plan(usize::MAX, now)?;
    let items = fill(outbox, &plan, now)?;
    Some((plan.batch, items))
}

fn places(items: &[DeliveryItem]) -> Vec<(GroupId, u64)> {
    items
        .iter()
        .map(|item| match item {
            DeliveryItem::Feed { group_id, group_sequence, .. } => {
                (group_id.clone(), group_sequence.0)
            }
            DeliveryItem::Snapshot { group_id, .. } => (group_id.clone(), 0),
            DeliveryItem::Direct { .. } => panic!("an outbox sends feeds"),
        })
        .collect()
}

fn failure(item: u32, problem: DeliveryProblem, next: u64) -> DeliveryFailure {
    DeliveryFailure { item, problem, recipient: RecipientId(0), next_sequence: Sequence(next) }
}

fn answer(failures: Vec<DeliveryFailure>) -> DeliverBatchResponse {
    DeliverBatchResponse { failures: List::new(failures).unwrap() }
}

fn turns(verdicts: &[Verdict]) -> Vec<Turned> {
    verdicts.iter().map(|verdict| verdict.turn.clone()).collect()
}

#[test]
fn a_busy_group_does_not_starve_the_others() {
    let mut outbox = Outbox::new(LIMITS);
    outbox.load(group(1), standing(0, 1_000), at(0));
    for seed in 2..=4 {
        outbox.load(group(seed), standing(0, 1), at(0));
    }
    let (batch, items) = next_batch(&mut outbox, at(1)).unwrap();
    let sent = places(&items);
    assert_eq!(
        sent,
        [(group(1), 1), (group(1), 2), (group(2), 1), (group(3), 1), (group(4), 1)],
        "each has its share of the batch"
    );
    assert!(next_batch(&mut outbox, at(1)).is_none(), "every group is on its way");
    outbox.answered(batch, &answer(vec![]), at(2), 0);
    let (_, items) = next_batch(&mut outbox, at(2)).unwrap();
    assert_eq!(places(&items).len(), 8, "alone it has the whole of it");
    assert_eq!(outbox.depth(), 1_000 - 2);
}

#[test]
fn several_batches_are_on_their_way_and_a_group_is_in_one() {
    let mut outbox = Outbox::new(OutboxLimits { batch_groups_max: 1, ..LIMITS });
    for seed in 1..=5 {
        outbox.load(group(seed), standing(0, 20), at(0));
    }
    let batches: Vec<_> = std::iter::from_fn(|| next_batch(&mut outbox, at(1))).collect();
    assert_eq!(batches.len(), LIMITS.batches_max);
    let groups: Vec<GroupId> =
        batches.iter().map(|(_, items)| places(items)[0].0.clone()).collect();
    assert_eq!(groups, [group(1), group(2), group(3)]);
    outbox.answered(batches[1].0, &answer(vec![]), at(2), 0);
    assert_eq!(places(&next_batch(&mut outbox, at(2)).unwrap().1)[0], (group(4), 1));
}

#[test]
fn one_item_always_fits_and_what_does_not_has_the_next_turn() {
    let mut outbox = Outbox::new(LIMITS);
    for seed in 1..=2 {
        outbox.load(group(seed), standing(0, 1), at(0));
    }
    let plan = outbox.plan(usize::MAX, at(1)).unwrap();
    let large =
        |seed| (group(seed), Reading::Items(vec![loaded(feed_item(&group(seed), 1), 100_000, 1)]));
    let items = outbox.fill(plan.batch, vec![large(1), large(2)], at(1), 0).unwrap();
    assert_eq!(places(&items), [(group(1), 1)]);
    let plan = outbox.plan(usize::MAX, at(1)).unwrap();
    assert_eq!(plan.turns.len(), 1);
    assert_eq!(plan.turns[0].group, group(2));
}

#[test]
fn an_item_that_no_batch_can_hold_sets_its_group_aside() {
    let mut outbox = Outbox::new(LIMITS);
    outbox.load(group(1), standing(0, 1), at(0));
    let plan = outbox.plan(usize::MAX, at(1)).unwrap();
    let item = loaded(feed_item(&group(1), 1), REQUEST_BYTES_MAX + 1, 1);
    let reading = vec![(group(1), Reading::Items(vec![item]))];
    assert!(outbox.fill(plan.batch, reading, at(1), 0).is_none());
    assert_eq!(outbox.set_aside().map(|(_, aside)| aside.item).collect::<Vec<_>>(), [Sequence(1)]);
}

#[test]
fn group_that_a_peer_has_no_room_for_waits_ever_longer_and_is_never_set_aside() {
    let mut outbox = Outbox::new(LIMITS);
    outbox.load(group(1), standing(0, 3), at(0));
    outbox.load(group(2), standing(0, 1), at(0));
    let (batch, items) = next_batch(&mut outbox, at(0)).unwrap();
    let second = places(&items).iter().position(|place| *place == (group(1), 2)).unwrap();
    let full = |item: usize| {
        let item = u32::try_from(item).unwrap();
        answer(vec![failure(item, DeliveryProblem::QueueFull, 2)])
    };
    let verdicts = outbox.answered(batch, &full(second), at(0), 0);
    assert_eq!(turns(&verdicts), [Turned::Stalled, Turned::On]);
    let mut now = 0;
    for _ in 0..4 * LIMITS.stalls_max {
        assert!(outbox.plan(usize::MAX, at(now)).is_none(), "not at once");
        now += LIMITS.retry.max_ms * 2;
        let (batch, items) = next_batch(&mut outbox, at(now)).unwrap();
        assert_eq!(places(&items), [(group(1), 2), (group(1), 3)], "what stood before was taken");
        assert_eq!(turns(&outbox.answered(batch, &full(0), at(now), 0)), [Turned::Stalled]);
        assert_eq!(outbox.set_aside().count(), 0);
    }
    now += LIMITS.retry.max_ms * 2;
    let (batch, _) = next_batch(&mut outbox, at(now)).unwrap();
    assert_eq!(turns(&outbox.answered(batch, &answer(Vec::new()), at(now), 0)), [Turned::On]);
    let progress = outbox.unpersisted(10);
    assert_eq!(progress[0].acknowledged, Sequence(3), "nothing is lost");
}

#[test]
fn what_stands_before_a_problem_is_taken() {
    let cases = [
        (DeliveryProblem::Gap, 3, Turned::On, Need::Items, 2),
        (DeliveryProblem::Gap, 2, Turned::On, Need::Items, 1),
        (DeliveryProblem::Gap, 4, Turned::On, Need::Items, 3),
        (DeliveryProblem::UnknownFeed, 0, Turned::Repair, Need::Snapshot, 2),
        (DeliveryProblem::InvalidItem, 0, Turned::SetAside, Need::Items, 2),
        (DeliveryProblem::Gap, 99, Turned::SetAside, Need::Items, 2),
    ];
    for (problem, next, turned, need, acknowledged) in cases {
        let mut outbox = Outbox::new(LIMITS);
        outbox.load(group(1), standing(0, 8), at(0));
        outbox.load(group(2), standing(0, 1), at(0));
        let (batch, items) = next_batch(&mut outbox, at(1)).unwrap();
        assert_eq!(places(&items)[2], (group(1), 3));
        let verdicts = outbox.answered(batch, &answer(vec![failure(2, problem, next)]), at(2), 0);
        assert_eq!(turns(&verdicts), [turned.clone(), Turned::On], "{problem:?} {next}");
        let progress = outbox.unpersisted(10);
        assert_eq!(progress[0].acknowledged, Sequence(acknowledged), "{problem:?} {next}");
        assert_eq!(progress[1].acknowledged, Sequence(1));
        let plan = outbox.plan(usize::MAX, at(2));
        if turned == Turned::SetAside {
            assert_eq!(plan, None);
            let plan = outbox.plan(usize::MAX, at(20_000)).unwrap();
            assert_eq!(plan.turns[0].need, Need::Snapshot, "it is tried again, by a snapshot");
        } else {
            let plan = plan.unwrap();
            assert_eq!(plan.turns[0].need, need);
            assert_eq!(plan.turns[0].acknowledged, Sequence(acknowledged));
        }
    }
}

#[test]
fn a_peer_that_has_not_heard_that_the_group_moved_here_hears_it_in_time_or_is_shown() {
    let mut outbox = Outbox::new(LIMITS);
    outbox.load(group(1), standing(5, 8), at(0));
    let mut now = 0;
    let mut refuse = |outbox: &mut Outbox| {
        now += 1_000_000;
        let (batch, items) = next_batch(outbox, at(now)).unwrap();
        let wrong = answer(vec![failure(0, DeliveryProblem::WrongHub, 0)]);
        (items, turns(&outbox.answered(batch, &wrong, at(now), 0)))
    };
    for _ in 0..LIMITS.stalls_max {
        let (items, turned) = refuse(&mut outbox);
        assert_eq!((places(&items)[0].clone(), turned), ((group(1), 6), vec![Turned::Stalled]));
    }
    // it is not told by who had the group before: a snapshot has the proof
    assert_eq!(refuse(&mut outbox).1, [Turned::SetAside]);
    let plan = outbox.plan(usize::MAX, at(now + 1_000_000)).unwrap();
    assert_eq!(plan.turns[0].need, Need::Snapshot);
}

/// A hub that has handed the group on has no snapshot of it, and sends what it has had.
#[test]
fn who_was_set_aside_when_the_group_moved_on_gets_what_there_was_or_waits_for_the_next_hub() {
    use DeliveryProblem::{Gap, UnknownFeed, WrongHub};
    let set_aside = || {
        let mut outbox = Outbox::new(LIMITS);
        outbox.load(group(1), Standing { needs_snapshot: true, ..standing(5, 8) }, at(0));
        let plan = outbox.plan(usize::MAX, at(1)).unwrap();
        assert_eq!(plan.turns[0].need, Need::Snapshot);
        let item = |at| loaded(feed_item(&group(1), at), 100, at);
        let readings = vec![(group(1), Reading::Items((6..=8).map(item).collect()))];
        assert!(outbox.fill(plan.batch, readings, at(1), 0).is_some());
        (outbox, plan.batch)
    };
    for problem in [None, Some((UnknownFeed, 0)), Some((Gap, 4)), Some((WrongHub, 9))] {
        let (mut outbox, batch) = set_aside();
        let failures = problem.map(|(problem, next)| failure(0, problem, next));
        let answer = answer(failures.into_iter().collect());
        assert_eq!(turns(&outbox.answered(batch, &answer, at(2), 0)), [Turned::On], "{problem:?}");
        assert!(outbox.unpersisted(9)[0].is_done(), "{problem:?}");
    }
    // whereas one that has not heard yet who has the group now is asked again
    let (mut outbox, batch) = set_aside();
    let wrong = answer(vec![failure(0, WrongHub, 6)]);
    assert_eq!(turns(&outbox.answered(batch, &wrong, at(2), 0)), [Turned::Stalled]);
}

#[test]
fn who_follows_a_later_hub_and_is_past_all_that_is_here_has_it() {
    // what it took was not written down when this hub fell; nothing is known, or where it stood
    for needs_snapshot in [true, false] {
        let mut outbox = Outbox::new(LIMITS);
        outbox.load(group(1), Standing { needs_snapshot, ..standing(5, 8) }, at(0));
        let (batch, _) = next_batch(&mut outbox, at(1)).unwrap();
        let wrong = answer(vec![failure(0, DeliveryProblem::WrongHub, 9)]);
        assert_eq!(turns(&outbox.answered(batch, &wrong, at(1), 0)), [Turned::On]);
        assert_eq!(outbox.plan(usize::MAX, at(1_000_000)), None);
        let progress = outbox.unpersisted(9);
        assert!(progress[0].is_done() && progress[0].opened, "{progress:?}");
        // the group comes back: what is new goes out as ever
        assert!(outbox.grow(&group(1), Sequence(12), at(2)));
        let (_, items) = next_batch(&mut outbox, at(2)).unwrap();
        assert_eq!(places(&items)[0], (group(1), 9));
    }
}

#[test]
fn a_gap_before_what_was_acknowledged_needs_a_snapshot() {
    let mut outbox = Outbox::new(LIMITS);
    outbox.load(group(1), standing(5, 8), at(0));
    let (batch, items) = next_batch(&mut outbox, at(1)).unwrap();
    assert_eq!(places(&items)[0], (group(1), 6));
    let gap = answer(vec![failure(0, DeliveryProblem::Gap, 3)]);
    assert_eq!(turns(&outbox.answered(batch, &gap, at(2), 0)), [Turned::Repair]);
    let (batch, items) = next_batch(&mut outbox, at(2)).unwrap();
    assert_eq!(places(&items), [(group(1), 0)]);
    outbox.answered(batch, &answer(vec![]), at(3), 0);
    assert!(outbox.unpersisted(1)[0].is_done());
}

#[test]
fn a_peer_that_asks_for_what_it_is_sent_is_not_sent_it_for_ever() {
    for (problem, next) in [(DeliveryProblem::Gap, 1), (DeliveryProblem::UnknownFeed, 0)] {
        let mut outbox = Outbox::new(LIMITS);
        outbox.load(group(1), standing(0, 100), at(0));
        let mut now = at(1);
        let mut batches = 0;
        while outbox.set_aside_count() == 0 {
            if let Some((batch, items)) = next_batch(&mut outbox, now) {
                batches += 1;
                let is_snapshot = matches!(items[0], DeliveryItem::Snapshot { .. });
                let failures = if is_snapshot { vec![] } else { vec![failure(0, problem, next)] };
                outbox.answered(batch, &answer(failures), now, 0);
                let until = Sequence(100 + batches);
                outbox.grow(&group(1), until, now);
            }
            now = now.plus_ms(10);
            assert!(batches < 20, "{problem:?}");
        }
    }
}

#[test]
fn an_answer_about_items_that_were_not_sent_counts_for_nothing() {
    let mut outbox = Outbox::new(LIMITS);
    outbox.load(group(1), standing(0, 2), at(0));
    let (batch, _) = next_batch(&mut outbox, at(1)).unwrap();
    let senseless = answer(vec![failure(2, DeliveryProblem::InvalidItem, 0)]);
    assert_eq!(turns(&outbox.answered(batch, &senseless, at(1), 0)), [Turned::Stalled]);
    assert_eq!(outbox.depth(), 2);
    assert!(outbox.plan(usize::MAX, at(1)).is_none());
    assert!(outbox.plan(usize::MAX, outbox.due_at().unwrap()).is_some());
}

#[test]
fn a_recipient_that_is_gone_fails_no_item() {
    let mut outbox = Outbox::new(LIMITS);
    outbox.load(group(1), standing(0, 3), at(0));
    let (batch, _) = next_batch(&mut outbox, at(1)).unwrap();
    let gone = |item, recipient| DeliveryFailure {
        recipient: RecipientId(recipient),
        ..failure(item, DeliveryProblem::InvalidClientQueueInformation, 0)
    };
    let verdicts = outbox.answered(batch, &answer(vec![gone(0, 7), gone(2, 9)]), at(2), 0);
    assert_eq!(verdicts[0].gone, [RecipientId(7), RecipientId(9)]);
    assert_eq!(verdicts[0].turn, Turned::On);
    assert!(outbox.unpersisted(1)[0].is_done());
}

#[test]
fn a_batch_that_cannot_be_read_is_taken_apart_until_the_item_is_found() {
    let mut outbox = Outbox::new(LIMITS);
    outbox.load(group(1), standing(0, 4), at(0));
    outbox.load(group(2), standing(0, 4), at(0));
    let poisoned = (group(1), 3);
    let mut taken = Vec::new();
    let mut batches = 0;
    while let Some((batch, items)) = next_batch(&mut outbox, at(batches)) {
        batches += 1;
        if places(&items).contains(&poisoned) {
            outbox.refused(batch, "malformed", true, at(batches), 0);
        } else {
            taken.extend(places(&items));
            outbox.answered(batch, &answer(vec![]), at(batches), 0);
        }
    }
    taken.sort();
    let whole = (1..=2).map(|n| (group(1), n)).chain((1..=4).map(|n| (group(2), n)));
    assert_eq!(taken, whole.collect::<Vec<_>>());
    let aside: Vec<_> =
        outbox.set_aside().map(|(group, aside)| (group.clone(), aside.item.0)).collect();
    assert_eq!(aside, [poisoned]);
    assert!(batches < 12);
}

#[test]
fn what_a_message_was_refused_for_is_tried_once_more_before_a_snapshot_leaves_it_out() {
    for recovers in [true, false] {
        let mut outbox = Outbox::new(LIMITS);
        outbox.load(group(1), standing(0, 2), at(0));
        let refuse = |outbox: &mut Outbox, now: Timestamp| {
            let (batch, items) = next_batch(outbox, now).unwrap();
            outbox.refused(batch, "malformed", false, now, u64::MAX);
            items
        };
        refuse(&mut outbox, at(0));
        let mut now = at(0);
        while outbox.set_aside_count() == 0 {
            assert_eq!(places(&refuse(&mut outbox, now)), [(group(1), 1)]);
            now = outbox.due_at().unwrap();
        }
        assert!(now >= at(0).plus_ms(LIMITS.set_aside_retry_ms));
        if recovers {
            let mut taken = Vec::new();
            while let Some((batch, items)) = next_batch(&mut outbox, now) {
                taken.extend(places(&items));
                outbox.answered(batch, &answer(vec![]), now, 0);
            }
            assert_eq!(taken, [(group(1), 1), (group(1), 2)], "nothing is left out");
            assert_eq!(outbox.set_aside_count(), 0);
        } else {
            assert_eq!(places(&refuse(&mut outbox, now)), [(group(1), 1)]);
            let due = outbox.due_at().unwrap();
            let (_, items) = next_batch(&mut outbox, due).unwrap();
            assert!(matches!(items[..], [DeliveryItem::Snapshot { .. }]), "{items:?}");
        }
    }
}

#[test]
fn a_clock_that_is_set_back_keeps_no_group_waiting() {
    let mut outbox = Outbox::new(LIMITS);
    outbox.load(group(1), standing(0, 1), at(0));
    outbox.load(group(2), standing(0, 1), at(0));
    let ahead = at(86_400_000);
    let (batch, _) = next_batch(&mut outbox, ahead).unwrap();
    let problems = vec![
        failure(0, DeliveryProblem::QueueFull, 0),
        failure(1, DeliveryProblem::InvalidItem, 0),
    ];
    outbox.answered(batch, &answer(problems), ahead, 0);
    assert!(next_batch(&mut outbox, ahead).is_none());
    let (_, items) = next_batch(&mut outbox, at(1)).unwrap();
    assert_eq!(items.len(), 2, "{items:?}");
    // by a clock that goes on they wait as they should
    assert!(next_batch(&mut outbox, at(2)).is_none());
}

#[test]
fn a_peer_that_takes_small_batches_only_gets_small_batches() {
    let mut outbox = Outbox::new(LIMITS);
    outbox.load(group(1), standing(0, 20), at(0));
    let mut taken = 0;
    while let Some((batch, items)) = next_batch(&mut outbox, at(1)) {
        if items.len() > 2 {
            outbox.too_large(batch, at(1));
        } else {
            taken += items.len();
            outbox.answered(batch, &answer(vec![]), at(1), 0);
        }
    }
    assert_eq!(taken, 20);
}

#[test]
fn an_operator_sends_what_is_set_aside_again() {
    let mut outbox = Outbox::new(LIMITS);
    outbox.load(group(1), standing(0, 2), at(0));
    let (batch, _) = next_batch(&mut outbox, at(1)).unwrap();
    assert!(!outbox.requeue(&group(1)), "it is on its way");
    outbox.answered(batch, &answer(vec![failure(0, DeliveryProblem::InvalidItem, 0)]), at(1), 0);
    assert_eq!(outbox.set_aside_count(), 1);
    assert!(outbox.requeue(&group(1)));
    assert!(!outbox.requeue(&group(2)), "there is no such group");
    let (batch, items) = next_batch(&mut outbox, at(1)).unwrap();
    assert!(matches!(items[..], [DeliveryItem::Snapshot { .. }]));
    outbox.answered(batch, &answer(vec![]), at(1), 0);
    assert_eq!((outbox.set_aside_count(), outbox.depth()), (0, 0));
}

#[test]
fn what_is_written_down_and_done_is_let_go() {
    let mut outbox = Outbox::new(LIMITS);
    outbox.load(group(1), standing(0, 1), at(0));
    let (batch, _) = next_batch(&mut outbox, at(1)).unwrap();
    outbox.answered(batch, &answer(vec![]), at(1), 0);
    let progress = outbox.unpersisted(9).remove(0);
    assert!(progress.is_done() && !outbox.forget_if_done(&group(1)));
    outbox.grow(&group(1), Sequence(2), at(2));
    outbox.persisted(&progress);
    assert!(outbox.has_unpersisted(), "it has grown meanwhile");
    let (batch, _) = next_batch(&mut outbox, at(2)).unwrap();
    outbox.answered(batch, &answer(vec![]), at(2), 0);
    outbox.persisted(&outbox.unpersisted(9).remove(0));
    assert!(outbox.forget_if_done(&group(1)) && outbox.is_empty());
}

#[test]
fn a_copy_that_is_to_be_opened_is_opened_before_anything_follows_whatever_comes_between() {
    let unopened = Standing { opened: false, ..standing(5, 8) };
    let mut outbox = Outbox::new(LIMITS);
    outbox.load(group(1), unopened.clone(), at(0));
    let open = |outbox: &mut Outbox, now| {
        let plan = outbox.plan(usize::MAX, now).unwrap();
        assert_eq!((plan.turns[0].need, plan.turns[0].acknowledged), (Need::Opening, Sequence(5)));
        let opening = Reading::Items(vec![loaded(snapshot(&group(1), 6), 100, 5)]);
        outbox.fill(plan.batch, vec![(group(1), opening)], now, 0).unwrap();
        plan.batch
    };
    // it is lost, refused, asked for by an operator: it is the opening all the same, and not one of later
    let batch = open(&mut outbox, at(1));
    outbox.release(batch);
    let batch = open(&mut outbox, at(2));
    outbox.answered(batch, &answer(vec![failure(0, DeliveryProblem::InvalidItem, 0)]), at(2), 0);
    let aside = outbox.unpersisted(9).remove(0);
    assert!(!aside.opened && aside.set_aside.is_some());
    let batch = open(&mut outbox, at(2 + LIMITS.set_aside_retry_ms));
    outbox.release(batch);
    assert!(outbox.requeue(&group(1)));
    let (_, handed) = outbox.hand_over().remove(0);
    assert!(!handed.opened);
    outbox.load(group(1), Standing { set_aside: None, ..handed }, at(3));
    let batch = open(&mut outbox, at(3));
    assert_eq!(turns(&outbox.answered(batch, &answer(vec![]), at(3), 0)), [Turned::On]);
    let progress = outbox.unpersisted(9).remove(0);
    assert_eq!((progress.opened, progress.acknowledged), (true, Sequence(5)));
    let (_, items) = next_batch(&mut outbox, at(4)).unwrap();
    assert_eq!(places(&items), [(group(1), 6), (group(1), 7), (group(1), 8)]);
}

#[test]
fn a_copy_that_nothing_was_to_be_opened_for_is_opened_when_the_group_grows() {
    let mut outbox = Outbox::new(LIMITS);
    outbox.load(group(1), Standing { opened: false, ..standing(5, 5) }, at(0));
    let plan = outbox.plan(usize::MAX, at(1)).unwrap();
    assert_eq!(plan.turns[0].need, Need::Opening);
    let nothing = Reading::Nothing { through: Sequence(5) };
    assert_eq!(outbox.fill(plan.batch, vec![(group(1), nothing)], at(1), 0), None);
    assert!(!outbox.has_ready(at(1)));
    outbox.grow(&group(1), Sequence(6), at(2));
    assert_eq!(outbox.plan(usize::MAX, at(2)).unwrap().turns[0].need, Need::Opening);
}

/// A peer that has its own mind.
#[derive(Default)]
struct Peer {
    /// The sequence that it expects of each group; none: it does not know the feed.
    expects: BTreeMap<GroupId, u64>,
    got: BTreeMap<GroupId, Vec<u64>>,
}

impl Peer {
    fn take(&mut self, items: &[DeliveryItem], poisoned: u8, mood: u8) -> DeliverBatchResponse {
        let mut failures = Vec::new();
        let places = places(items);
        for (index, item) in items.iter().enumerate() {
            // in one mood it takes the first of a group's items only
            let follows = index > 0 && places[index - 1].0 == places[index].0;
            let index = u32::try_from(index).unwrap();
            match item {
                DeliveryItem::Snapshot { group_id, next_sequence, .. } => {
                    self.expects.insert(group_id.clone(), next_sequence.0);
                }
                DeliveryItem::Feed { group_id, group_sequence, .. } => {
                    let expects = *self.expects.entry(group_id.clone()).or_insert(1);
                    if *group_id == group(poisoned) && group_sequence.0 == 3 {
                        failures.push(failure(index, DeliveryProblem::InvalidItem, 0));
                    } else if group_sequence.0 > expects || (mood == 1 && follows) {
                        failures.push(failure(index, DeliveryProblem::Gap, expects));
                    } else if group_sequence.0 == expects {
                        self.got.entry(group_id.clone()).or_default().push(expects);
                        self.expects.insert(group_id.clone(), expects + 1);
                    }
                }
                DeliveryItem::Direct { .. } => panic!("an outbox sends feeds"),
            }
        }
        answer(failures)
    }
}

#[derive(Debug, Clone)]
enum Step {
    Grow {
        seed: u8,
        by: u64,
    },
    Send,
    /// The `nth` batch on its way arrives and is answered.
    Answer {
        nth: usize,
        mood: u8,
    },
    /// It arrives, and the answer is lost.
    Lose {
        nth: usize,
    },
    /// It does not arrive.
    Drop {
        nth: usize,
    },
    Persist,
    /// The hub forgets what was not written down.
    Restart,
    Wait {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_u8..=GROUPS, 1_u64..6).prop_map(|(seed, by)| Step::Grow { seed, by }),
        6 => Just(Step::Send),
        5 => (0_usize..4, 0_u8..3).prop_map(|(nth, mood)| Step::Answer { nth, mood }),
        1 => (0_usize..4).prop_map(|nth| Step::Lose { nth }),
        1 => (0_usize..4).prop_map(|nth| Step::Drop { nth }),
        2 => Just(Step::Persist),
        1 => Just(Step::Restart),
        1 => (1_u64..500).prop_map(|ms| Step::Wait { ms }),
    ]
}

const GROUPS: u8 = 6;
const POISONED: u8 = 1;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn each_group_comes_in_order_and_whole_whatever_happens(
        steps in proptest::collection::vec(step(), 1..150),
    ) {
        let mut outbox = Outbox::new(LIMITS);
        let mut peer = Peer::default();
        let mut until: BTreeMap<GroupId, u64> = BTreeMap::new();
        let mut durable: BTreeMap<GroupId, Progress> = BTreeMap::new();
        let mut on_the_way: Vec<(BatchId, Vec<DeliveryItem>)> = Vec::new();
        let mut now = at(0);
        // in the end everything is sent and answered
        let end = (0..600).flat_map(|_| {
            [Step::Send, Step::Send, Step::Answer { nth: 0, mood: 0 }, Step::Wait { ms: 60 }]
        });
        for step in steps.into_iter().chain(end) {
            match step {
                Step::Grow { seed, by } => {
                    let until = until.entry(group(seed)).or_default();
                    *until += by;
                    if !outbox.grow(&group(seed), Sequence(*until), now) {
                        outbox.load(group(seed), standing(0, *until), now);
                    }
                }
                Step::Send => {
                    let Some(plan) = outbox.plan(usize::MAX, now) else { continue };
                    for turn in &plan.turns {
                        let twice = on_the_way.iter().flat_map(|(_, items)| places(items));
                        prop_assert!(twice.into_iter().all(|(group, _)| group != turn.group));
                    }
                    let items = fill(&mut outbox, &plan, now).unwrap();
                    prop_assert!(items.len() <= LIMITS.batch_items_max);
                    on_the_way.push((plan.batch, items));
                    prop_assert!(on_the_way.len() <= LIMITS.batches_max);
                }
                Step::Answer { nth, mood } => {
                    if nth < on_the_way.len() {
                        let (batch, items) = on_the_way.remove(nth);
                        let answer = peer.take(&items, POISONED, mood);
                        outbox.answered(batch, &answer, now, now.0);
                    }
                }
                Step::Lose { nth } | Step::Drop { nth } if nth < on_the_way.len() => {
                    let (batch, items) = on_the_way.remove(nth);
                    if matches!(step, Step::Lose { .. }) {
                        peer.take(&items, POISONED, 0);
                    }
                    outbox.release(batch);
                }
                Step::Lose { .. } | Step::Drop { .. } => {}
                Step::Persist => {
                    for progress in outbox.unpersisted(usize::MAX) {
                        outbox.persisted(&progress);
                        outbox.forget_if_done(&progress.group);
                        durable.insert(progress.group.clone(), progress);
                    }
                }
                Step::Restart => {
                    outbox = Outbox::new(LIMITS);
                    on_the_way.clear();
                    for (group, until) in &until {
                        let known = durable.get(group);
                        let acknowledged = known.map_or(0, |known| known.acknowledged.0);
                        let set_aside = known.and_then(|known| known.set_aside.clone());
                        let standing = Standing { set_aside, ..standing(acknowledged, *until) };
                        outbox.load(group.clone(), standing, now);
                    }
                }
                Step::Wait { ms } => now = now.plus_ms(ms),
            }
            let depth: u64 = outbox.groups.values().map(Lane::depth).sum();
            prop_assert_eq!(outbox.depth(), depth);
        }
        for (group_id, until) in &until {
            let got = peer.got.get(group_id).cloned().unwrap_or_default();
            if *group_id == group(POISONED) && *until >= 3 {
                prop_assert_eq!(&got[..2.min(got.len())], &[1, 2][..2.min(got.len())]);
                prop_assert!(got.windows(2).all(|two| two[0] < two[1]));
                prop_assert!(!got.contains(&3));
            } else {
                // nothing but the poisoned group ever needs a snapshot: the rest is whole
                prop_assert_eq!(got, (1..=*until).collect::<Vec<_>>());
            }
        }
        prop_assert!(outbox.set_aside_count() <= 1);
    }
}
