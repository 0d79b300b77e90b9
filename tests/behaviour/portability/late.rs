//! What is said of a move long after it: the source's confirmation has no end but that its target has it.

use super::*;

/// Longer than anything of a move is remembered for its own sake.
const LONG_MS: u64 = 33 * 24 * 60 * 60 * 1000;

/// Without it the group could never leave its new hub again.
#[actix::test]
async fn source_hands_over_its_confirmation_however_late_its_target_can_be_reached() {
    let two = Two::new().await;
    let gate = Gate::default();
    let opened = gate.clone();
    two.carry(move |letter, _| match letter.event {
        EventType::MigrationConfirmation if !opened.is_open() => Fate::Lost,
        _ => Fate::Arrives,
    });
    two.migrate(&two.b).await.unwrap();
    two.goes_on_at(&two.b).await;
    until_departure(&two.a.node, "confirming").await;
    two.clock.advance_ms(LONG_MS);
    for world in [&two.a, &two.b] {
        world.node.sweep_moves().await.unwrap();
        assert!(world.store.moves(&two.group).await.unwrap().is_some(), "{}", world.domain);
    }
    until_departure(&two.a.node, "confirming").await;
    gate.open();
    let Two { net, clock, a, b, group, alice, bob } = two;
    let two = Two { a: a.crash(), net, clock, b, group, alice, bob };
    two.a.node.resume_departures().await.unwrap();
    until_none_departs(&two.a.node).await;
    assert_eq!(chain_at(&two.b, &two.group).await.len(), 1);
    two.goes_on_at(&two.b).await;
    two.migrate(&two.a).await.unwrap();
    two.goes_on_at(&two.a).await;
    two.end();
}

#[actix::test]
async fn source_tells_no_more_when_its_target_has_moved_on_and_forgotten_what_it_was_told() {
    let two = Two::new().await;
    let c = provider("c.example", &two.net, &two.clock);
    let (gate, to) = (Gate::default(), two.b.domain.clone());
    let opened = gate.clone();
    two.carry(move |letter, _| match letter.event {
        EventType::MigrationConfirmation if letter.to == to && !opened.is_open() => {
            Fate::AnswerLost
        }
        _ => Fate::Arrives,
    });
    two.migrate(&two.b).await.unwrap();
    two.goes_on_at(&two.b).await;
    two.migrate(&c).await.unwrap();
    until_none_departs(&two.b.node).await;
    until_departure(&two.a.node, "confirming").await;
    // nothing of it is on its way when the time has come to look for its keys again, and it is not there for a moment
    let Two { net, clock, a, b, group, alice, bob } = two;
    let two = Two { a: a.crash(), net, clock, b, group, alice, bob };
    two.clock.advance_ms(LONG_MS);
    for (world, kept) in [(&two.a, true), (&two.b, false), (&c, true)] {
        world.node.sweep_moves().await.unwrap();
        let moves = world.store.moves(&two.group).await.unwrap();
        assert_eq!(moves.is_some(), kept, "{}", world.domain);
    }
    gate.open();
    two.a.node.resume_departures().await.unwrap();
    until_none_departs(&two.a.node).await;
    two.a.node.sweep_moves().await.unwrap();
    assert_eq!(two.a.store.moves(&two.group).await.unwrap(), None);
    c.end();
    two.end();
}

#[actix::test]
async fn group_that_comes_home_before_its_confirmation_was_answered_can_leave_again_at_once() {
    let two = Two::new().await;
    let to = two.b.domain.clone();
    two.carry(move |letter, before| match letter.event {
        EventType::MigrationConfirmation if letter.to == to && before < 1_000 => Fate::AnswerLost,
        _ => Fate::Arrives,
    });
    two.migrate(&two.b).await.unwrap();
    two.goes_on_at(&two.b).await;
    until_departure(&two.a.node, "confirming").await;
    assert!(!two.a.node.abort_departure(&two.group).await.unwrap(), "it has moved");
    // from now on it would be told once in hours
    two.clock.advance_ms(LONG_MS);
    two.migrate(&two.a).await.unwrap();
    two.goes_on_at(&two.a).await;
    // nothing is left of the first move, also of what an operator may have wanted of it
    until_none_departs(&two.a.node).await;
    two.migrate(&two.b).await.unwrap();
    two.goes_on_at(&two.b).await;
    two.end();
}

/// The answer is about the move that was: what the group has begun since goes on.
#[actix::test]
async fn late_answer_to_a_confirmation_ends_no_later_move_of_the_group() {
    let two = Two::new().await;
    let (door, to) = (Door::default(), two.b.domain.clone());
    let closed = door.clone();
    two.carry(move |letter, _| match letter.event {
        EventType::MigrationConfirmation if letter.to == to => Fate::AnswerBehind(closed.clone()),
        _ => Fate::Arrives,
    });
    two.migrate(&two.b).await.unwrap();
    two.goes_on_at(&two.b).await;
    until_departure(&two.a.node, "confirming").await;
    two.migrate(&two.a).await.unwrap();
    two.goes_on_at(&two.a).await;
    let answered = async {
        until_departure(&two.a.node, "frozen").await;
        door.open();
    };
    let (moved, ()) = tokio::join!(two.migrate(&two.b), answered);
    moved.unwrap();
    two.goes_on_at(&two.b).await;
    until_none_departs(&two.a.node).await;
    two.end();
}

/// What a list of keys that was fetched a moment ago does not hold may be of a moment later: that refuses nobody for good.
#[actix::test]
async fn key_that_is_newer_than_what_its_target_knows_is_waited_for() {
    let mut two = Two::new().await;
    two.b.node.provider_keys(&two.a.domain).await.unwrap();
    two.clock.advance_ms(1_000);
    two.a.rotate_hub_key();
    let group = two.alice.create(&two.a).await;
    let letters = two.carry(|letter, _| match letter.event {
        EventType::MigrationContent | EventType::MigrationAbort => Fate::Lost,
        _ => Fate::Arrives,
    });
    let response = promise(&two.a, &two.alice, &group, &two.b.domain).await.unwrap();
    let moves = two.alice.act(&two.a, &group, migrate(&response));
    let judged = async {
        comes_true("it is sent", async || !contents(&letters).is_empty()).await;
        let content = contents(&letters).remove(0).body;
        let answer = send(&two.a, &two.b, EventType::MigrationContent, content.clone()).await;
        assert_eq!(error_of(answer), "rate_limited");
        two.clock.advance_ms(60_000);
        assert_eq!(complete(&two.a, &two.b, content).await.refused, 0);
        two.net.carry(|_| Fate::Arrives);
    };
    let (moved, ()) = tokio::join!(moves, judged);
    moved.unwrap();
    assert_eq!(two.b.head(&group).await.status, GroupStatus::Active);
    two.end();
}

#[actix::test]
async fn key_of_a_target_that_is_newer_than_what_its_source_knows_is_asked_for_a_moment_later() {
    let mut two = Two::new().await;
    two.a.node.provider_keys(&two.b.domain).await.unwrap();
    two.clock.advance_ms(1_000);
    two.b.rotate_hub_key();
    let refused = two.migrate(&two.b).await.unwrap_err();
    assert!(refused.contains("try again in 59 s"), "{refused}");
    two.goes_on_at(&two.a).await;
    two.clock.advance_ms(60_000);
    two.migrate(&two.b).await.unwrap();
    two.goes_on_at(&two.b).await;
    two.end();
}
