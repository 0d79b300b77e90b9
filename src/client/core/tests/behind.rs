//! What the queue still holds from before a client went on without it: nothing of that is lost.

use super::*;
use crate::client::core::behind::{KEPT_MS, STATES_MAX};

/// alice and bob, who reads nothing; alice says "1", "2" and "3", each in another epoch.
fn unread() -> (Wire, GroupId, Member, Member) {
    let (alice, bob) = (member("alice", "phone"), member("bob", "phone"));
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    let open = vec![PolicyChange::Join(JoinPolicy::Open)];
    operate(&mut wire, &alice, &group, Operation::UpdateGroup { changes: open });
    add(&mut wire, &group, &alice, &bob);
    speak(&mut wire, &alice, &group, 1..=3);
    (wire, group, alice, bob)
}

fn speak(
    wire: &mut Wire,
    member: &Member,
    group: &GroupId,
    texts: std::ops::RangeInclusive<usize>,
) {
    for text in texts {
        say(wire, member, group, &text.to_string());
        operate(wire, member, group, update());
    }
}

fn update() -> Operation {
    Operation::UpdateClient { rotate_key: false }
}

/// Everything of the resync but its answer.
fn asks(
    wire: &mut Wire,
    group: &GroupId,
    who: &Member,
    inside: &Member,
    request: RequestId,
) -> DsResponse {
    loop {
        let outbound = who.outbound(request, *NOW).unwrap();
        if !matches!(outbound.message.request, DsRequest::ExternalCommitInfo(_)) {
            return wire.accept(&outbound.message, who.client());
        }
        let settled = who.settle(request, &info(inside, group), *NOW).unwrap();
        assert_eq!(settled, Settled::Again { after_ms: 0 });
    }
}

fn resync(wire: &mut Wire, group: &GroupId, who: &Member, inside: &Member) {
    let request = who.begin(group, Operation::Resync).unwrap();
    let answer = asks(wire, group, who, inside, request);
    assert!(matches!(who.settle(request, &answer, *NOW).unwrap(), Settled::Done(_)));
}

fn unreadable(member: &Member) -> usize {
    all(member).iter().filter(|event| matches!(event, Event::Unreadable { .. })).count()
}

fn numbers(range: std::ops::RangeInclusive<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

fn kept(member: &Member) -> usize {
    member.home.list::<home::LiftedGroup>(Kind::Behind, &[], usize::MAX).unwrap().len()
}

#[test]
fn who_comes_in_anew_reads_what_its_queue_holds_from_before() {
    let (mut wire, group, alice, bob) = unread();
    resync(&mut wire, &group, &bob, &alice);
    wire.deliver(&group, &alice);
    agree(&group, &[&alice, &bob]);
    let changes = |member: &Member| {
        all(member).iter().filter(|event| matches!(event, Event::Changed { .. })).count()
    };
    let before = changes(&bob);
    speak(&mut wire, &alice, &group, 4..=4);
    wire.deliver(&group, &bob);
    assert_eq!(texts(&bob), numbers(1..=4));
    assert_eq!((unreadable(&bob), kept(&bob)), (0, 0), "{:?}", all(&bob));
    assert_eq!(changes(&bob), before + 1, "what was before it came in anew is not told again");
    agree(&group, &[&alice, &bob]);
    say(&mut wire, &bob, &group, "back");
    wire.deliver(&group, &alice);
    assert_eq!(texts(&alice), ["back"]);
}

#[test]
fn a_state_that_was_left_survives_the_process_at_each_entry() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("home.sqlite");
    let open = || Member::open(Home::open(&path).unwrap()).unwrap();
    let identity = Identity::generate(client("bob", "phone")).unwrap();
    let bob = Member::new(Home::open(&path).unwrap(), identity).unwrap();
    for class in [KeyPackageClass::Group, KeyPackageClass::Connection] {
        let tokens: Vec<QueueToken> =
            (0..9).map(|_| Opaque::new(crypto::random::<32>()).unwrap()).collect();
        bob.store_tokens(class, false, &tokens).unwrap();
    }
    let alice = member("alice", "phone");
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    add(&mut wire, &group, &alice, &bob);
    speak(&mut wire, &alice, &group, 1..=3);
    resync(&mut wire, &group, &bob, &alice);
    wire.deliver(&group, &alice);
    speak(&mut wire, &alice, &group, 4..=4);
    drop(bob);
    let feed = std::mem::take(&mut wire.feed);
    for entry in feed {
        wire.feed.push(entry);
        let bob = open();
        wire.deliver(&group, &bob);
    }
    let bob = open();
    assert_eq!(texts(&bob), numbers(1..=4));
    assert_eq!((unreadable(&bob), kept(&bob)), (0, 0), "{:?}", all(&bob));
    agree(&group, &[&alice, &bob]);
}

#[test]
fn each_state_that_was_left_reads_its_own_part() {
    let (mut wire, group, alice, bob) = unread();
    for first in [4, 7] {
        resync(&mut wire, &group, &bob, &alice);
        wire.deliver(&group, &alice);
        // an answer brings it further than its queue as well
        speak(&mut wire, &alice, &group, first..=first + 1);
        operate(&mut wire, &bob, &group, update());
        wire.deliver(&group, &alice);
        speak(&mut wire, &alice, &group, first + 2..=first + 2);
    }
    assert_eq!(kept(&bob), 2);
    wire.deliver(&group, &bob);
    assert_eq!(texts(&bob), numbers(1..=9));
    assert_eq!((unreadable(&bob), kept(&bob)), (0, 0), "{:?}", all(&bob));
    agree(&group, &[&alice, &bob]);
}

#[test]
fn states_that_were_left_are_few_and_what_only_the_oldest_could_read_is_said_to_be_unreadable() {
    let (mut wire, group, alice, bob) = unread();
    for text in 4..4 + STATES_MAX {
        resync(&mut wire, &group, &bob, &alice);
        wire.deliver(&group, &alice);
        speak(&mut wire, &alice, &group, text..=text);
    }
    resync(&mut wire, &group, &bob, &alice);
    wire.deliver(&group, &alice);
    assert_eq!(kept(&bob), STATES_MAX);
    wire.deliver(&group, &bob);
    assert_eq!(texts(&bob), numbers(4..=3 + STATES_MAX));
    assert_eq!(unreadable(&bob), 3, "{:?}", all(&bob));
    agree(&group, &[&alice, &bob]);
}

#[test]
fn a_state_that_was_left_long_ago_goes() {
    let (mut wire, group, alice, bob) = unread();
    resync(&mut wire, &group, &bob, &alice);
    bob.revive(NOW.plus_ms(KEPT_MS)).unwrap();
    assert_eq!(kept(&bob), 1);
    bob.revive(NOW.plus_ms(KEPT_MS + 1)).unwrap();
    assert_eq!(kept(&bob), 0);
}

#[test]
fn who_cannot_use_what_an_answer_shows_reads_what_is_in_front_of_it() {
    let (mut wire, group, alice, bob) = unread();
    let closed = vec![PolicyChange::Join(JoinPolicy::Closed)];
    operate(&mut wire, &alice, &group, Operation::UpdateGroup { changes: closed });
    speak(&mut wire, &alice, &group, 4..=4);
    let mallory = member("mallory", "phone");
    let request =
        mallory.join(&group, &domain(), "", Operation::Join { code: None }, *NOW).unwrap();
    enter(&mut wire, &group, &mallory, &alice, request);
    // bob hears of it by an answer, and comes in anew before he has read his queue
    let request = bob.begin(&group, update()).unwrap();
    let outbound = bob.outbound(request, *NOW).unwrap();
    let refused = wire.accept(&outbound.message, bob.client());
    bob.settle(request, &refused, *NOW).unwrap();
    assert_eq!(bob.group(&group).unwrap().state, GroupState::Lost);
    bob.complaints_due(*NOW).unwrap();
    let (resync, ..) = bob.pending().unwrap().pop().expect("a resync");
    // one half comes before it is in, the other behind that
    let late = wire.feed.split_off(wire.feed.len() / 2);
    wire.deliver(&group, &bob);
    assert_eq!(texts(&bob), numbers(1..=2));
    wire.feed.extend(late);
    let answer = asks(&mut wire, &group, &bob, &mallory, resync);
    assert!(matches!(bob.settle(resync, &answer, *NOW).unwrap(), Settled::Done(_)));
    wire.deliver(&group, &mallory);
    say(&mut wire, &mallory, &group, "hello");
    wire.deliver(&group, &bob);
    let mut expected = numbers(1..=4);
    expected.push("hello".to_owned());
    assert_eq!(texts(&bob), expected, "{:?}", all(&bob));
    assert_eq!((unreadable(&bob), kept(&bob)), (0, 0), "{:?}", all(&bob));
}

#[test]
fn what_is_behind_a_resync_without_an_answer_waits_for_that() {
    let (mut wire, group, alice, bob) = unread();
    bob.home.step(|| bob.lose(&group, "a test".to_owned())).unwrap();
    let (request, ..) = bob.pending().unwrap().pop().expect("a resync");
    let lost_answer = asks(&mut wire, &group, &bob, &alice, request);
    wire.deliver(&group, &alice);
    speak(&mut wire, &alice, &group, 4..=4);
    assert_eq!(wire.deliver(&group, &bob), Some(Handled::Wait));
    assert_eq!(texts(&bob), numbers(1..=3));
    assert!(matches!(bob.settle(request, &lost_answer, *NOW).unwrap(), Settled::Done(_)));
    assert_eq!(wire.deliver(&group, &bob), Some(Handled::Taken));
    assert_eq!(texts(&bob), numbers(1..=4));
    agree(&group, &[&alice, &bob]);
}

#[test]
fn who_was_removed_while_lost_reads_what_is_in_front_of_that() {
    for by_queue in [true, false] {
        let (mut wire, group, alice, bob) = unread();
        bob.home.step(|| bob.lose(&group, "a test".to_owned())).unwrap();
        let users = vec![bob.client().user()];
        operate(&mut wire, &alice, &group, Operation::RemoveUsers { users });
        let (request, ..) = bob.pending().unwrap().pop().expect("a resync");
        bob.outbound(request, *NOW).unwrap();
        let refused = refuse(DsError::NotAuthorized { detail: Detail::truncated("no member") });
        bob.settle(request, &refused, *NOW).unwrap();
        bob.revive(*NOW).unwrap();
        assert_eq!(bob.pending().unwrap(), [], "asking again changes nothing");
        wire.deliver(&group, &bob);
        assert_eq!(texts(&bob), numbers(1..=3));
        if by_queue {
            let end = QueueEntry {
                feed: FeedId(wire.readers[bob.client()].0),
                sequence: Sequence(wire.sequence + 1),
                previous: Sequence(wire.sequence),
                accepted_at: *NOW,
                group_id: Opaque::new(group.as_bytes()).unwrap(),
                event: QueueEvent::Removed,
            };
            bob.handle(&end, *NOW).unwrap();
        } else {
            assert_eq!(bob.settle_doubts().unwrap(), 1);
        }
        assert_eq!(bob.group(&group).unwrap().state, GroupState::Left);
        assert_eq!(all(&bob).last(), Some(&Event::Removed { group: group.clone() }));
        assert_eq!(bob.settle_doubts().unwrap(), 0);
        assert!(bob.load(&group).is_err(), "its keys are gone");
    }
}

#[test]
fn who_commits_often_without_its_queue_reads_it_afterwards() {
    let (mut wire, group, alice, bob) = unread();
    let request = bob.begin(&group, update()).unwrap();
    assert!(matches!(run(&mut wire, &bob, request), Settled::Done(_)));
    for _ in 0..2 * build::PAST_EPOCHS_MAX {
        operate(&mut wire, &bob, &group, update());
    }
    wire.deliver(&group, &alice);
    speak(&mut wire, &alice, &group, 4..=4);
    wire.deliver(&group, &bob);
    assert_eq!(texts(&bob), numbers(1..=4));
    assert_eq!((unreadable(&bob), kept(&bob)), (0, 0), "{:?}", all(&bob));
    agree(&group, &[&alice, &bob]);
}

#[test]
fn a_commit_of_ones_own_proposal_is_usable_before_the_proposal_has_its_answer() {
    let (alice, bob) = (member("alice", "phone"), member("bob", "phone"));
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    add(&mut wire, &group, &alice, &bob);
    let proposes = Operation::Propose { proposals: vec![NewProposal::Update] };
    let request = bob.begin(&group, proposes).unwrap();
    let outbound = bob.outbound(request, *NOW).unwrap();
    let lost_answer = wire.accept(&outbound.message, bob.client());
    wire.deliver(&group, &alice);
    operate(&mut wire, &alice, &group, update());
    wire.deliver(&group, &bob);
    assert_eq!(bob.group(&group).unwrap().state, GroupState::Active, "{:?}", all(&bob));
    agree(&group, &[&alice, &bob]);
    // made anew under the same id it is answered as it was at first: the hub knows nothing of what was made anew
    bob.outbound(request, *NOW).unwrap();
    assert!(matches!(bob.settle(request, &lost_answer, *NOW).unwrap(), Settled::Done(_)));
    assert_eq!(bob.load(&group).unwrap().pending_proposals().count(), 0);
    say(&mut wire, &bob, &group, "on");
    wire.deliver(&group, &alice);
    assert_eq!(texts(&alice), ["on"]);
}

#[test]
fn a_commit_of_a_proposal_that_one_without_an_answer_would_displace_is_usable() {
    let (alice, bob) = (member("alice", "phone"), member("bob", "phone"));
    let carol = member("carol", "phone");
    let mut wire = Wire::default();
    let group = create(&mut wire, &alice, SUITES[0]);
    add(&mut wire, &group, &alice, &bob);
    add(&mut wire, &group, &alice, &carol);
    wire.deliver(&group, &bob);
    // bob wants to leave, which never gets to the hub
    let leave = Operation::Propose { proposals: vec![NewProposal::Leave] };
    let request = bob.begin(&group, leave).unwrap();
    bob.outbound(request, *NOW).unwrap();
    let remove = NewProposal::Remove(bob.client().clone());
    operate(&mut wire, &alice, &group, Operation::Propose { proposals: vec![remove] });
    wire.deliver(&group, &carol);
    operate(&mut wire, &carol, &group, update());
    wire.deliver(&group, &bob);
    assert_eq!(bob.group(&group).unwrap().state, GroupState::Left, "{:?}", all(&bob));
}
