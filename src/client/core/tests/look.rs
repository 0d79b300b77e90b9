//! Looking behind other members' commits: who looks, what is found, and who is blamed for it.

use super::super::look::{Followed, Look, looks_after};
use super::*;
use crate::{
    crypto::{SigningKey, sha256, verify_with_label},
    policy::{leaf::LeafIdentity, roster::Roster},
    wire::{
        client::Complain,
        codec::{append_vector, encode},
        ds::{CommitComplaint, ComplaintOutcome, ComplaintReason, ComplaintResponse},
        ids::LeafIndex,
    },
};

const MINUTE_MS: u64 = 60 * 1000;

/// alice, bob and carol, behind an update of alice's: both others look, in any order.
struct Three {
    alice: Member,
    bob: Member,
    carol: Member,
    wire: Wire,
    group: GroupId,
}

impl Three {
    fn new() -> Self {
        let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| member(name, "phone"));
        let mut wire = Wire::default();
        let group = create(&mut wire, &alice, SUITES[0]);
        add(&mut wire, &group, &alice, &bob);
        add(&mut wire, &group, &alice, &carol);
        wire.deliver(&group, &bob);
        operate(&mut wire, &alice, &group, update());
        let mut three = Self { alice, bob, carol, wire, group };
        three.follow();
        three
    }

    fn follow(&mut self) {
        for member in [&self.alice, &self.bob, &self.carol] {
            self.wire.deliver(&self.group, member);
        }
    }

    fn restart(&mut self) {
        let bob = std::mem::replace(&mut self.bob, member("nobody", "phone"));
        self.bob = Member::open(bob.into_home()).unwrap();
    }

    fn asks(&self, now: Timestamp) -> usize {
        let due = self.bob.looks_due(now).unwrap();
        for (group, question) in &due {
            assert_eq!(*group, self.group);
            assert!(matches!(question.message.request, DsRequest::ExternalCommitInfo(_)));
        }
        due.len()
    }

    fn complaints(&self, now: Timestamp) -> Vec<Complain> {
        self.bob.complaints_due(now).unwrap().into_iter().map(|(_, it)| it).collect()
    }

    fn told(&self, info: &DsResponse, now: Timestamp) {
        self.bob.looked(&self.group, Some(info), now).unwrap();
    }

    fn last_commit(&self) -> &MlsMessage {
        &self.wire.handshakes.last().unwrap().1
    }

    /// What alice's GroupInfo would be with another key in it, `by` its signature.
    fn wrong_info(&self, by: &Member) -> DsResponse {
        self.info_with(by, |_, extensions, _| *extensions.last_mut().unwrap() ^= 1)
    }

    fn info_with(
        &self,
        by: &Member,
        change: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>, &mut Vec<u8>),
    ) -> DsResponse {
        let mut response = info(&self.alice, &self.group);
        let Outcome::Ok(DsResponseBody::Info(info)) = &mut response.outcome else {
            panic!("an answer")
        };
        let bytes = info.group_info.as_slice();
        let parts = super::super::build::GroupInfoParts::of(bytes).unwrap();
        // a length of one byte stands in front of the extensions, and one in front of the tag
        let mut context = parts.context.to_vec();
        let mut extensions = encode(&parts.extensions)[1..].to_vec();
        let mut tag = parts.tag.as_slice().to_vec();
        change(&mut context, &mut extensions, &mut tag);
        let mut signed = context;
        append_vector(&mut signed, &extensions);
        append_vector(&mut signed, &tag);
        signed.extend(parts.signer.to_be_bytes());
        let mut labelled = Vec::new();
        append_vector(&mut labelled, b"MLS 1.0 GroupInfoTBS");
        append_vector(&mut labelled, &signed);
        let key: SigningKey = by.record(&self.group).unwrap().leaf_key.open().unwrap();
        let signature = openmls_traits::signatures::Signer::sign(&key, &labelled).unwrap();
        append_vector(&mut signed, &signature);
        info.group_info = Raw::new(signed).unwrap();
        response
    }

    fn looks(&self) -> usize {
        self.bob.home.list::<Look>(Kind::Look, &[], usize::MAX).unwrap().len()
    }

    fn updates(&self) -> usize {
        let pending = self.bob.pending().unwrap();
        assert!(pending.iter().all(|(.., operation)| *operation == update()), "{pending:?}");
        pending.len()
    }

    fn says(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        all(&self.bob).iter().filter(|event| wanted(event)).count()
    }

    fn blames(&self) -> usize {
        self.says(|event| matches!(event, Event::BadGroupInfo { .. }))
    }

    fn warns(&self) -> usize {
        self.says(|event| matches!(event, Event::Misbehaviour { .. }))
    }
}

fn update() -> Operation {
    Operation::UpdateClient { rotate_key: false }
}

fn resync_is_told() -> Heard {
    Heard::Answer(ComplaintResponse { outcome: ComplaintOutcome::Resync, wait_ms: 0 })
}

#[test]
fn wrong_external_pub_is_complained_of_and_then_made_good_whenever_the_process_ends() {
    let mut three = Three::new();
    three.restart();
    assert_eq!(three.asks(*NOW), 1);
    three.restart();
    assert_eq!(three.asks(*NOW), 1, "the question is asked again until it is answered");
    assert!(three.complaints(*NOW).is_empty());
    let wrong = three.wrong_info(&three.alice);
    three.told(&wrong, *NOW);
    three.told(&wrong, *NOW);
    assert_eq!((three.blames(), three.warns()), (1, 0));
    assert_eq!(three.updates(), 0, "the complaint comes first");
    three.restart();
    assert_eq!(three.asks(*NOW), 0);
    let [Complain { hub_domain, complaint }] = &three.complaints(*NOW)[..] else {
        panic!("one complaint")
    };
    assert_eq!(*hub_domain, domain());
    assert_eq!(complaint.reason.reason(), ComplaintReason::ExternalPub);
    assert_eq!(complaint.epoch.0 + 1, three.wire.epoch);
    assert_eq!(complaint.commit_hash.as_slice(), sha256(three.last_commit().as_slice()));
    let bob = three.bob.record(&three.group).unwrap().leaf_key.open().unwrap();
    let (content, signature) = (complaint.to_be_signed(), complaint.signature.as_slice());
    let key = bob.public().as_slice();
    verify_with_label(bob.scheme(), key, CommitComplaint::LABEL, &content, signature).unwrap();
    three.bob.complaint_heard(&three.group, Heard::Nothing, *NOW).unwrap();
    assert!(three.complaints(*NOW).is_empty(), "not at once again");
    let later = NOW.plus_ms(MINUTE_MS);
    three.restart();
    assert_eq!(three.complaints(later).len(), 1);
    three.bob.complaint_heard(&three.group, resync_is_told(), later).unwrap();
    three.restart();
    assert_eq!((three.updates(), three.looks()), (1, 0));
    assert_eq!(three.bob.group(&three.group).unwrap().state, GroupState::Active, "no resync");
    let (request, ..) = three.bob.pending().unwrap().pop().unwrap();
    assert!(matches!(run(&mut three.wire, &three.bob, request), Settled::Done(_)));
    three.follow();
    agree(&three.group, &[&three.alice, &three.bob, &three.carol]);
}

#[test]
fn complaint_that_nobody_answers_does_not_keep_the_group_info_wrong() {
    let three = Three::new();
    three.asks(*NOW);
    three.told(&three.wrong_info(&three.alice), *NOW);
    for _ in 0..100 {
        three.bob.complaint_heard(&three.group, Heard::Nothing, *NOW).unwrap();
    }
    assert_eq!(three.complaints(NOW.plus_ms(MINUTE_MS)).len(), 1);
    assert!(three.complaints(NOW.plus_ms(3 * MINUTE_MS)).is_empty());
    assert_eq!((three.updates(), three.looks()), (1, 0));
}

#[test]
fn right_group_info_ends_the_look_without_a_word() {
    let three = Three::new();
    let before = three.bob.last_event().unwrap();
    three.asks(*NOW);
    three.told(&info(&three.alice, &three.group), *NOW);
    assert_eq!((three.looks(), three.updates()), (0, 0));
    assert!(three.complaints(*NOW).is_empty());
    assert_eq!(three.bob.last_event().unwrap(), before);
}

#[test]
fn committer_answers_for_nothing_but_what_it_has_signed() {
    let three = Three::new();
    // by another member's signature, of another context, with another tag, of an epoch that was taken back
    let shown = [
        three.wrong_info(&three.carol),
        info(&three.carol, &three.group),
        three.info_with(&three.alice, |context, _, _| *context.last_mut().unwrap() ^= 1),
        three.info_with(&three.alice, |_, _, tag| *tag.last_mut().unwrap() ^= 1),
    ];
    let mut now = *NOW;
    for (at, info) in shown.iter().cycle().take(6).enumerate() {
        assert_eq!(three.asks(now), 1, "{at}");
        assert_eq!(three.warns(), 0, "what is wrong in passing is no misbehaviour");
        three.told(info, now);
        assert!(three.complaints(now).is_empty());
        now = now.plus_ms(60 * MINUTE_MS);
    }
    assert_eq!((three.blames(), three.warns()), (0, 1));
    assert_eq!((three.looks(), three.updates()), (0, 0));
}

#[test]
fn look_is_over_with_the_epoch_that_it_is_at() {
    let mut three = Three::new();
    three.asks(*NOW);
    let wrong = three.wrong_info(&three.alice);
    // bob's own commit: nobody looks behind one's own, and what was wrong is made good by it
    operate(&mut three.wire, &three.bob, &three.group, update());
    three.told(&wrong, *NOW);
    assert_eq!((three.looks(), three.updates(), three.blames()), (0, 0, 0));
    // a lie is seen, and carol commits before it is complained of
    three.follow();
    operate(&mut three.wire, &three.alice, &three.group, update());
    three.follow();
    three.asks(*NOW);
    three.told(&three.wrong_info(&three.alice), *NOW);
    assert_eq!(three.complaints(*NOW).len(), 1);
    operate(&mut three.wire, &three.carol, &three.group, update());
    three.wire.deliver(&three.group, &three.bob);
    three.bob.complaint_heard(&three.group, resync_is_told(), *NOW).unwrap();
    assert_eq!(three.updates(), 0, "it has been made good");
    assert_eq!((three.asks(*NOW), three.looks()), (1, 1), "there is something else to look at");
}

#[test]
fn hub_that_does_not_answer_is_asked_ever_less_and_then_no_more() {
    let three = Three::new();
    let mut now = *NOW;
    let mut asked = Vec::new();
    for _ in 0..10_000 {
        if three.asks(now) > 0 {
            asked.push(now.ms_since(*NOW) / 1000);
            three.bob.looked(&three.group, None, now).unwrap();
        }
        now = now.plus_ms(1000);
    }
    assert_eq!(asked, [0, 20, 60, 140, 300, 620]);
    assert_eq!(three.looks(), 0);
}

#[test]
fn hub_that_asks_to_wait_is_left_alone_for_so_long() {
    let three = Three::new();
    three.asks(*NOW);
    let detail = Detail::truncated("later");
    let wait = DsError::Unavailable { detail, retry_after_ms: 5 * MINUTE_MS };
    three.told(&refuse(wait), *NOW);
    assert_eq!(three.asks(NOW.plus_ms(5 * MINUTE_MS - 1)), 0);
    assert_eq!(three.asks(NOW.plus_ms(5 * MINUTE_MS)), 1);
    let detail = Detail::truncated("no such group");
    three.told(&refuse(DsError::GroupNotFound { detail }), *NOW);
    assert_eq!((three.looks(), three.updates(), three.warns()), (0, 0, 0));
}

/// `count` users, the first with two clients.
fn roster(count: u32) -> Roster {
    let leaf = |at: u32| {
        let user = format!("user{}", at.saturating_sub(1));
        let identity = LeafIdentity {
            client: client(&user, &format!("device{at}")),
            user: crate::wire::ids::UserKeyHash(Opaque::new(sha256(user.as_bytes())).unwrap()),
            signature_key: at.to_be_bytes().to_vec(),
            credential_type: 1,
            print: [0; 32],
        };
        (LeafIndex(at), identity)
    };
    Roster::of((0..=count).map(leaf)).unwrap()
}

#[test]
fn two_members_look_at_once_and_two_later_whoever_is_asked() {
    let group = GroupId::of(&domain(), [7; 16]);
    let commit = Three::new().last_commit().clone();
    let mut chosen = BTreeMap::<LeafIndex, usize>::new();
    for size in [2, 3, 10, 200] {
        let roster = roster(size);
        let by = roster.get(LeafIndex(0)).unwrap();
        let removed = [LeafIndex(2)];
        let commit = Followed {
            roster: &roster,
            removed: if size > 2 { &removed } else { &[] },
            message: &commit,
            by: Some(&by.client),
            by_user: Some(&by.user),
        };
        for epoch in 0..50 {
            let looks =
                |leaf: LeafIndex, chance| looks_after(&group, Epoch(epoch), leaf, &commit, chance);
            // nobody's chance
            let mut waits: Vec<(u64, LeafIndex)> = roster
                .leaves()
                .filter_map(|leaf| looks(leaf, 1).map(|wait_ms| (wait_ms, leaf)))
                .collect();
            waits.sort_unstable();
            let later = if size < 100 { 0 } else { 2_000 };
            let wanted = [0, 0, 10 * MINUTE_MS, 60 * MINUTE_MS].map(|wait_ms| wait_ms + later);
            // the committer's two clients and the removed one have no part in it
            let others = (size as usize - 1 - usize::from(size > 2)).min(wanted.len());
            let came: Vec<u64> = waits.iter().map(|(wait_ms, _)| *wait_ms).collect();
            assert_eq!(came, wanted[..others], "{size} in epoch {epoch}");
            for leaf in [0, 1].into_iter().chain((size > 2).then_some(2)).map(LeafIndex) {
                assert_eq!(looks(leaf, 0), None, "not even by chance");
            }
            assert_eq!(looks(LeafIndex(size), 0), Some(later), "by chance anybody else looks");
            if size == 10 {
                waits.iter().take(2).for_each(|(_, leaf)| *chosen.entry(*leaf).or_default() += 1);
            }
        }
    }
    assert_eq!(chosen.len(), 8, "everybody has a turn: {chosen:?}");
    assert!(chosen.values().all(|turns| *turns < 30), "{chosen:?}");
}
