//! Complaints that help and complaints that do not: when a client that cannot use a commit comes in again by itself, how it slows
//! down, and when it gives up.

use super::*;
use crate::wire::ds::{ComplaintOutcome, ComplaintResponse};

const SECOND_MS: u64 = 1000;
const MINUTE_MS: u64 = 60 * SECOND_MS;

/// alice, whose commits reach bob with another confirmation tag.
struct Two {
    alice: Member,
    bob: Member,
    wire: Wire,
    group: GroupId,
}

impl Two {
    fn new() -> Self {
        let [alice, bob] = ["alice", "bob"].map(|name| member(name, "phone"));
        let mut wire = Wire::default();
        let group = create(&mut wire, &alice, SUITES[0]);
        add(&mut wire, &group, &alice, &bob);
        Self { alice, bob, wire, group }
    }

    fn lie(&mut self) {
        let update = Operation::UpdateClient { rotate_key: false };
        operate(&mut self.wire, &self.alice, &self.group, update);
        let (.., event) = self.wire.feed.last_mut().unwrap();
        let QueueEvent::MlsMessage { message } = event else { panic!("a commit") };
        let mut bytes = message.as_slice().to_vec();
        // a tag of 32 bytes and its length stand behind the one that is forged
        let at = bytes.len() - 33 - 1;
        bytes[at] ^= 1;
        *message = Raw::new(bytes).unwrap();
        self.wire.deliver(&self.group, &self.bob);
        assert_eq!(self.state(), GroupState::Lost, "{:?}", all(&self.bob));
    }

    fn state(&self) -> GroupState {
        self.bob.group(&self.group).unwrap().state
    }

    fn complains(&self, now: Timestamp) -> bool {
        !self.bob.complaints_due(now).unwrap().is_empty()
    }

    fn hears(&self, outcome: ComplaintOutcome, wait_ms: u32, now: Timestamp) {
        let heard = Heard::Answer(ComplaintResponse { outcome, wait_ms });
        self.bob.complaint_heard(&self.group, heard, now).unwrap();
    }

    /// Whether a resync begins by `now`, in another process.
    fn begins(&mut self, now: Timestamp) -> bool {
        let bob = std::mem::replace(&mut self.bob, member("nobody", "phone"));
        self.bob = Member::open(bob.into_home()).unwrap();
        assert!(!self.complains(now));
        self.bob.revive(*NOW).unwrap();
        !self.bob.pending().unwrap().is_empty()
    }

    fn comes_in_again(&mut self) {
        let (request, _, operation) = self.bob.pending().unwrap().pop().unwrap();
        assert_eq!(operation, Operation::Resync);
        enter(&mut self.wire, &self.group, &self.bob, &self.alice, request);
        self.wire.deliver(&self.group, &self.alice);
        agree(&self.group, &[&self.alice, &self.bob]);
        assert!(!self.bob.has_doubts().unwrap());
    }

    fn gave_up(&self) -> usize {
        all(&self.bob).iter().filter(|it| matches!(it, Event::GaveUp { .. })).count()
    }
}

#[test]
fn who_is_lied_to_again_and_again_slows_down_and_rests_for_an_hour_or_until_it_is_told_to_resync() {
    let mut two = Two::new();
    let mut now = *NOW;
    for wait_ms in [0, 0, 0, 0, 2, 4, 8, 16].map(|seconds| seconds * SECOND_MS) {
        two.lie();
        assert!(two.complains(now));
        two.hears(ComplaintOutcome::Resync, 0, now);
        if wait_ms > 0 {
            assert!(!two.begins(now), "not at once");
            assert!(!two.begins(now.plus_ms(wait_ms - 1)));
        }
        now = now.plus_ms(wait_ms);
        assert!(two.begins(now), "after {wait_ms} ms");
        two.comes_in_again();
    }
    two.lie();
    assert!(two.complains(now));
    assert_eq!(two.gave_up(), 0);
    two.hears(ComplaintOutcome::Resync, 0, now);
    assert_eq!(two.gave_up(), 1);
    for later in [0, 1, 59] {
        assert!(!two.begins(now.plus_ms(later * MINUTE_MS)), "it rests");
    }
    assert_eq!((two.gave_up(), two.state()), (1, GroupState::Lost));
    two.bob.begin(&two.group, Operation::Resync).unwrap();
    two.comes_in_again();
    assert_eq!(two.state(), GroupState::Active);
    // nobody has to say so: the first five of the eight are an hour ago then
    two.lie();
    assert!(two.complains(now));
    two.hears(ComplaintOutcome::Resync, 0, now);
    assert_eq!(two.gave_up(), 2);
    let hour = NOW.plus_ms(60 * MINUTE_MS);
    assert!(!two.begins(NOW.plus_ms(60 * MINUTE_MS - 1)), "it rests");
    assert!(two.begins(hour));
    two.comes_in_again();
    assert_eq!(two.state(), GroupState::Active);
}

#[test]
fn what_is_long_ago_slows_nobody_down() {
    let mut two = Two::new();
    let mut now = *NOW;
    for _ in 0..3 {
        for _ in 0..4 {
            two.lie();
            assert!(two.complains(now));
            two.hears(ComplaintOutcome::None, 0, now);
            assert!(two.begins(now));
            two.comes_in_again();
        }
        now = now.plus_ms(60 * MINUTE_MS);
    }
    assert_eq!(two.gave_up(), 0);
}

#[test]
fn hub_that_has_a_complainant_wait_for_ever_is_not_waited_for() {
    for (outcome, wait_ms) in [
        (ComplaintOutcome::Wait, 2_000),
        (ComplaintOutcome::Wait, u32::MAX),
        (ComplaintOutcome::Wait, 0),
        // what the feed is to say does not come
        (ComplaintOutcome::Void, 0),
    ] {
        let mut two = Two::new();
        two.lie();
        let mut asked = 0;
        for tick in 0..=120 * 10 {
            let now = NOW.plus_ms(tick * 100);
            if two.complains(now) {
                asked += 1;
                two.hears(outcome, wait_ms, now);
            }
            assert!(two.bob.pending().unwrap().is_empty(), "{outcome:?} {wait_ms} at {tick}");
        }
        assert!(asked >= 1, "{outcome:?} {wait_ms}");
        assert!(two.begins(NOW.plus_ms(2 * MINUTE_MS + 1)), "{outcome:?} {wait_ms}");
        two.comes_in_again();
    }
}

#[test]
fn complaint_that_nobody_answers_is_repeated_for_two_minutes_and_then_done_without() {
    let mut two = Two::new();
    two.lie();
    let mut asked = Vec::new();
    for second in 0..=120 {
        let now = NOW.plus_ms(second * SECOND_MS);
        if two.complains(now) {
            asked.push(second);
            two.bob.complaint_heard(&two.group, Heard::Nothing, now).unwrap();
        }
    }
    assert_eq!(asked, (0..=120).step_by(2).collect::<Vec<_>>());
    assert!(two.begins(NOW.plus_ms(2 * MINUTE_MS + 1)));
    two.comes_in_again();
}

/// The hub took it while that was true, and each reader judges it by the clock when it reads.
#[test]
fn commit_that_is_read_when_a_key_package_in_it_is_over_accuses_nobody() {
    let mut two = Two::new();
    let carol = member("carol", "phone");
    let real = || {
        let since = std::time::UNIX_EPOCH.elapsed().unwrap();
        Timestamp(u64::try_from(since.as_millis()).unwrap())
    };
    // longer where this machine is too slow to add her in time
    for seconds in [1_u64, 2, 4, 8, 16, 32, 64] {
        let made_at = Timestamp(real().0 + seconds * SECOND_MS - 84 * 24 * 60 * MINUTE_MS);
        let class = KeyPackageClass::Group;
        let mut made = carol.key_packages(class, SUITES[0], false, 1, made_at).unwrap();
        let key_packages = vec![made.remove(0).into_vec()];
        let request = two.alice.begin(&two.group, Operation::AddUsers { key_packages }).unwrap();
        let Ok(outbound) = two.alice.outbound(request, *NOW) else {
            two.alice.give_up(request).unwrap();
            continue;
        };
        let response = two.wire.accept(&outbound.message, two.alice.client());
        assert!(matches!(two.alice.settle(request, &response, *NOW).unwrap(), Settled::Done(_)));
        std::thread::sleep(std::time::Duration::from_secs(seconds + 1));
        break;
    }
    two.wire.deliver(&two.group, &two.bob);
    let why = all(&two.bob).into_iter().find_map(|event| match event {
        Event::Unusable { why, .. } => Some(why),
        _ => None,
    });
    assert!(why.as_ref().is_some_and(|why| why.contains("ifetime")), "{why:?}");
    assert_eq!(two.state(), GroupState::Lost);
    assert!(!two.complains(*NOW), "of an honest committer");
    assert!(two.begins(*NOW), "it comes in again");
    two.comes_in_again();
    assert_eq!(two.state(), GroupState::Active);
}
