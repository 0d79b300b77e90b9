//! Complaints about a commit: who is believed, what becomes of the liar, and when the group goes back. PROTOCOL.md §2, "When
//! a committer lies". To the hub a lie looks as any commit does, so here the commits are good and the members say otherwise.

use std::collections::BTreeMap;

use super::rogue::{Builder, Rogue};
use super::scenario::{Scenario, Setup, domain, say, sign_complaint as sign, update, uri};
use crate::{
    client::core::Operation,
    crypto::sha256,
    group::{GroupState, Heard, Reject, record::Snapshot},
    policy::{leaf::LeafIdentity, roster::Roster},
    store::records::{GoneReason, InboxItem},
    wire::{
        codec::{Opaque, Raw, decode, encode},
        ds::{
            Add, CommitComplaint, ComplaintOutcome, ComplaintReason, ComplaintResponse, DsRequest,
            DsResponseBody, DsSenderId, Grounds, GroupUpdate, ResyncClient, SendMessage,
        },
        extensions::{JoinPolicy, Signature},
        ids::{Domain, Epoch, LeafIndex, Sequence, UserKeyHash},
        queueing::QueueEvent,
    },
};

const MINUTE_MS: u64 = 60 * 1000;

/// alice, whom nobody hears, and others who are openmls and nothing else.
struct Told {
    scenario: Scenario,
    rogues: BTreeMap<&'static str, Rogue>,
}

/// A commit that somebody complains of.
#[derive(Clone)]
struct Lie {
    epoch: Epoch,
    hash: [u8; 32],
    sequence: Sequence,
}

impl Told {
    fn group_of<const N: usize>(names: [&'static str; N]) -> Self {
        Self::with(Setup::default(), names)
    }

    fn with<const N: usize>(setup: Setup, names: [&'static str; N]) -> Self {
        let mut told = Self { scenario: setup.group_of(["alice/phone"]), rogues: BTreeMap::new() };
        for name in names {
            told.add(name, Rogue::new(name));
        }
        told
    }

    fn add(&mut self, name: &'static str, mut rogue: Rogue) {
        rogue.come_in(&mut self.scenario, "alice/phone");
        self.rogues.insert(name, rogue);
        self.follow();
    }

    /// Another client of a user who is in the group already.
    fn enter(&mut self, name: &'static str, of: &str) {
        let mut rogue = Rogue::of_user(name, self.rogues[of].user.clone());
        let join = rogue.join(&self.scenario);
        self.scenario.submit(&join).unwrap();
        self.rogues.insert(name, rogue);
        self.scenario.deliver("alice/phone");
        self.follow();
    }

    /// What alice does is called a lie.
    fn alice(&mut self, operation: Operation) -> Lie {
        let (epoch, sequence) = (self.scenario.state.epoch(), self.scenario.state.next_sequence());
        self.scenario.act("alice/phone", operation).unwrap();
        let commit = self.scenario.records.iter().find(|it| it.feed.sequence == sequence).unwrap();
        let QueueEvent::MlsMessage { message } = decode(&commit.feed.event).unwrap() else {
            panic!("a commit")
        };
        Lie { epoch, hash: sha256(message.as_slice()), sequence }
    }

    fn follow(&mut self) {
        for rogue in self.rogues.values_mut() {
            rogue.follow(&self.scenario);
        }
    }

    fn commits(
        &mut self,
        who: &str,
        shape: impl for<'a> FnOnce(Builder<'a>) -> Builder<'a>,
    ) -> Lie {
        let update = self.rogues.get_mut(who).unwrap().commit(shape);
        self.sends(who, update)
    }

    fn sends(&mut self, who: &str, update: GroupUpdate) -> Lie {
        let (epoch, sequence) = (self.scenario.state.epoch(), self.scenario.state.next_sequence());
        let hash = sha256(update.commit.as_slice());
        let request = match update.welcome {
            Some(welcome) => DsRequest::AddUsers(Add {
                commit: update.commit,
                welcome,
                group_info: update.group_info,
            }),
            None => DsRequest::UpdateClient(update),
        };
        let message = self.rogues[who].request(&self.scenario, request);
        self.scenario.submit(&message).unwrap();
        Lie { epoch, hash, sequence }
    }

    /// mallory's update, which nobody follows.
    fn lie(&mut self) -> Lie {
        self.commits("mallory/phone", |builder| builder)
    }

    fn complaint(&self, who: &str, lie: &Lie, reason: ComplaintReason) -> CommitComplaint {
        let rogue = &self.rogues[who];
        let mut complaint = CommitComplaint {
            group_id: self.scenario.id.clone(),
            epoch: lie.epoch,
            leaf_index: rogue.leaf_index(),
            commit_hash: Opaque::new(lie.hash).unwrap(),
            reason: reason.into(),
            signature: Signature::default(),
        };
        sign(&mut complaint, &rogue.leaf);
        complaint
    }

    /// A complaint of who cannot process the commit from outside, for which `external_pub` is that epoch's key.
    fn complaint_of_outside(&self, who: &str, lie: &Lie, external_pub: &[u8]) -> CommitComplaint {
        let external_pub = Opaque::new(external_pub).unwrap();
        let mut complaint = CommitComplaint {
            reason: Grounds::outside(external_pub),
            ..self.complaint(who, lie, ComplaintReason::Other)
        };
        sign(&mut complaint, &self.rogues[who].leaf);
        complaint
    }

    fn complain_of_outside(&mut self, who: &str, lie: &Lie, key: &[u8]) -> ComplaintOutcome {
        let complaint = self.complaint_of_outside(who, lie, key);
        self.submit(&complaint, &domain()).unwrap().outcome
    }

    /// The key that who comes in from outside now is given.
    fn external_pub(&self) -> Vec<u8> {
        self.scenario.state.info.external_pub().unwrap()
    }

    /// `who` comes in again from outside, which nobody follows.
    fn resyncs(&mut self, who: &str) -> Lie {
        let (epoch, sequence) = (self.scenario.state.epoch(), self.scenario.state.next_sequence());
        let info = self.scenario.state.info().unwrap();
        let rogue = self.rogues.get_mut(who).unwrap();
        let sender = DsSenderId::LeafIndex(rogue.leaf_index());
        let update = rogue.external_commit(&info, Vec::new());
        let hash = sha256(update.commit.as_slice());
        let request = DsRequest::ResyncClient(ResyncClient {
            group_id: self.scenario.id.clone(),
            sender: rogue.leaf.public().clone(),
            update,
            client_queue_config: rogue.config(),
        });
        let message = super::rogue::sign(&self.scenario, sender, request, &rogue.leaf);
        self.scenario.submit(&message).unwrap();
        Lie { epoch, hash, sequence }
    }

    /// `who` comes in for the first time.
    fn joins(&mut self, who: &'static str) -> Lie {
        let (epoch, sequence) = (self.scenario.state.epoch(), self.scenario.state.next_sequence());
        let mut rogue = Rogue::new(who);
        let join = rogue.join(&self.scenario);
        let DsRequest::JoinGroup(joins) = &join.request else { panic!("a join") };
        let hash = sha256(joins.update.commit.as_slice());
        self.scenario.submit(&join).unwrap();
        self.rogues.insert(who, rogue);
        Lie { epoch, hash, sequence }
    }

    fn complain(&mut self, who: &str, lie: &Lie) -> ComplaintOutcome {
        self.complain_of(who, lie, ComplaintReason::ConfirmationTag)
    }

    fn complain_of(&mut self, who: &str, lie: &Lie, reason: ComplaintReason) -> ComplaintOutcome {
        let complaint = self.complaint(who, lie, reason);
        self.submit(&complaint, &domain()).unwrap().outcome
    }

    fn submit(
        &mut self,
        complaint: &CommitComplaint,
        relay: &Domain,
    ) -> Result<ComplaintResponse, Reject> {
        self.scenario.complain(complaint, relay)
    }

    fn says(&mut self, who: &str) -> Result<DsResponseBody, Reject> {
        let rogue = self.rogues.get_mut(who).unwrap();
        let group = rogue.group.as_mut().unwrap();
        let message = group.create_message(&rogue.provider, &rogue.leaf, b"hello").unwrap();
        let application_message = Raw::of(&message);
        let request = DsRequest::SendMessage(SendMessage { application_message });
        let message = self.rogues[who].request(&self.scenario, request);
        self.scenario.submit(&message)
    }

    /// Whether the hub wants mallory out for what it did.
    fn goes(&self, who: &str) -> bool {
        let leaf = self.scenario.state.roster.leaf_of(&uri(who)).unwrap();
        let going = &self.scenario.state.going;
        going.get(&leaf).is_some_and(|(reason, _)| *reason == GoneReason::Lied)
            && self.scenario.state.pending.iter().any(|pending| {
                pending.record.hub && pending.act.what == crate::policy::change::What::Remove(leaf)
            })
    }
}

use ComplaintOutcome::{None as Nothing, Resync, Void, Wait};

const SIX: [&str; 5] = ["bob/phone", "carol/phone", "dave/phone", "erin/phone", "mallory/phone"];

/// Somebody went on, so that there is no way back.
fn forward() -> (Told, Lie) {
    let mut told = Told::group_of(SIX);
    let lie = told.lie();
    told.scenario.deliver("alice/phone");
    told.scenario.act("alice/phone", say("I can read this")).unwrap();
    (told, lie)
}

#[test]
fn more_than_half_of_the_users_have_the_liar_removed() {
    let (mut told, lie) = forward();
    assert_eq!(told.complain("bob/phone", &lie), Resync);
    assert_eq!(told.complain("carol/phone", &lie), Resync);
    assert!(!told.goes("mallory/phone"), "two of five");
    assert_eq!(told.complain("dave/phone", &lie), Resync);
    assert!(told.goes("mallory/phone"));
    // who can still commit takes it out
    told.scenario.deliver("alice/phone");
    told.scenario.act("alice/phone", update()).unwrap();
    assert!(!told.scenario.has("mallory/phone"));
    // and it is not chased when it comes again
    assert_eq!(told.complain("erin/phone", &lie), Resync);
    let user = told.rogues["mallory/phone"].user.clone();
    told.scenario.unclaimed.retain(|(client, _)| *client != uri("mallory/phone"));
    told.scenario.deliver("alice/phone");
    Rogue::of_user("mallory/phone", user).come_in(&mut told.scenario, "alice/phone");
    assert!(!told.scenario.hub_acts(&[]) && !told.goes("mallory/phone"));
}

#[test]
fn complaint_is_counted_once_however_often_it_is_repeated_and_by_whichever_client() {
    let mut told = Told::group_of(SIX);
    for name in ["bob/tablet", "bob/desk", "bob/watch"] {
        told.enter(name, "bob/phone");
    }
    let lie = told.lie();
    told.scenario.deliver("alice/phone");
    told.scenario.act("alice/phone", say("I can read this")).unwrap();
    for _ in 0..2 {
        for name in ["bob/phone", "bob/tablet", "bob/desk", "bob/watch"] {
            assert_eq!(told.complain(name, &lie), Resync);
        }
    }
    assert!(!told.goes("mallory/phone"), "four clients are one user");
    let records = told.scenario.records.len();
    told.complain("bob/phone", &lie);
    assert_eq!(told.scenario.records.len(), records, "a repeat costs nothing");
    told.complain("carol/phone", &lie);
    assert!(!told.goes("mallory/phone"));
    told.complain("dave/phone", &lie);
    assert!(told.goes("mallory/phone"));
}

#[test]
fn one_false_complaint_removes_nobody_not_even_in_a_group_of_two() {
    for names in [&["bob/phone", "mallory/phone"][..], &["mallory/phone"]] {
        let mut told = Told::group_of([]);
        for name in names {
            told.add(name, Rogue::new(name));
        }
        let lie = told.alice(update());
        let epoch = lie.epoch;
        // alone it has nobody to wait for
        let first = if names.len() == 1 { Resync } else { Wait };
        assert_eq!(told.complain("mallory/phone", &lie), first);
        assert!(!told.goes("alice/phone"));
        told.scenario.now = told.scenario.now.plus_ms(MINUTE_MS);
        assert_eq!(told.complain("mallory/phone", &lie), Resync);
        assert!(!told.scenario.hub_acts(&[]));
        assert_eq!(told.scenario.state.epoch(), epoch.next());
    }
}

#[test]
fn committer_newcomers_and_who_is_removed_do_not_count() {
    let mut told = Told::group_of(SIX);
    told.enter("mallory/tablet", "mallory/phone");
    let lie = told.lie();
    assert_eq!(told.complain("mallory/phone", &lie), Nothing);
    assert_eq!(told.complain("mallory/tablet", &lie), Nothing);

    // of who is there before and behind it: bob, carol, dave, mallory
    let mut told = Told::group_of(SIX);
    let erin = told.rogues["erin/phone"].leaf_index();
    let lie = told.alice(Operation::RemoveUsers { users: vec![uri("erin/phone").user()] });
    assert_eq!(told.complain("erin/phone", &lie), Nothing);
    told.scenario.deliver("alice/phone");
    let mut frank = Rogue::new("frank/phone");
    frank.come_in(&mut told.scenario, "alice/phone");
    assert_eq!(frank.leaf_index(), erin, "the very leaf");
    told.rogues.insert("frank/phone", frank);
    // it had no leaf in that epoch, and the one that it has now was another's
    let refused = told.complaint("frank/phone", &lie, ComplaintReason::Path);
    let refused = told.submit(&refused, &domain());
    assert!(matches!(refused, Err(Reject::Unauthenticated(_))), "{refused:?}");
    // nor does erin for what it was, when it comes again
    let user = told.rogues["erin/phone"].user.clone();
    told.scenario.unclaimed.retain(|(client, _)| *client != uri("erin/phone"));
    Rogue::of_user("erin/phone", user).come_in(&mut told.scenario, "alice/phone");
    assert_eq!(told.complain("erin/phone", &lie), Nothing);
    told.complain("bob/phone", &lie);
    told.complain("carol/phone", &lie);
    assert!(!told.goes("alice/phone"), "half is not more than half");
    told.complain("dave/phone", &lie);
    assert!(told.goes("alice/phone"));
}

#[test]
fn who_was_removed_since_is_not_counted_any_more() {
    for restarts in [false, true] {
        let (mut told, lie) = forward();
        told.complain("bob/phone", &lie);
        told.complain("carol/phone", &lie);
        let users = vec![uri("bob/phone").user()];
        told.scenario.act("alice/phone", Operation::RemoveUsers { users }).unwrap();
        if restarts {
            told.scenario.restart_from_snapshot();
        }
        assert_eq!(told.complain("bob/phone", &lie), Nothing);
        told.complain("dave/phone", &lie);
        assert!(!told.goes("mallory/phone"), "two of those who are there");
        told.complain("erin/phone", &lie);
        assert!(told.goes("mallory/phone"));
    }
}

#[test]
fn complaint_is_its_complainants_own_or_it_is_refused() {
    let (mut told, lie) = forward();
    let good = told.complaint("bob/phone", &lie, ComplaintReason::Path);
    let elsewhere = Domain::new("b.example").unwrap();
    let unauthenticated = |answer| matches!(answer, Err(Reject::Unauthenticated(_)));
    assert!(unauthenticated(told.submit(&good, &elsewhere)), "bob's provider is the hub's");
    let mut forged = good.clone();
    sign(&mut forged, &told.rogues["mallory/phone"].leaf);
    assert!(unauthenticated(told.submit(&forged, &domain())));
    let changed = CommitComplaint { reason: ComplaintReason::Other.into(), ..good.clone() };
    assert!(unauthenticated(told.submit(&changed, &domain())));
    let other = CommitComplaint { leaf_index: told.scenario.leaf("carol/phone"), ..good.clone() };
    assert!(unauthenticated(told.submit(&other, &domain())));
    // of what the hub knows nothing there is nothing to be said
    let unknown = [
        CommitComplaint { leaf_index: LeafIndex(77), ..good.clone() },
        CommitComplaint { epoch: Epoch(lie.epoch.0 + 1), ..good.clone() },
        CommitComplaint { commit_hash: Opaque::new([7; 32]).unwrap(), ..good.clone() },
    ];
    for mut complaint in unknown {
        sign(&mut complaint, &told.rogues["bob/phone"].leaf);
        assert_eq!(told.submit(&complaint, &domain()).unwrap().outcome, Nothing);
    }
    assert_eq!(told.submit(&good, &domain()).unwrap().outcome, Resync);
}

#[test]
fn key_of_the_epoch_before_is_the_one_that_complains_whatever_came_since() {
    let (mut told, lie) = forward();
    let complaints: Vec<CommitComplaint> = ["bob/phone", "carol/phone", "dave/phone"]
        .map(|who| told.complaint(who, &lie, ComplaintReason::Path))
        .to_vec();
    // they are heard late, when each has another key
    for name in ["bob/phone", "carol/phone", "dave/phone"] {
        let rogue = told.rogues.get_mut(name).unwrap();
        rogue.follow(&told.scenario);
        let new = super::rogue::ed25519();
        let credential = rogue.credential(&new);
        let parameters = rogue.leaf_parameters(&new);
        let update = rogue.commit_with(Some((&new, credential)), |builder| {
            builder.leaf_node_parameters(parameters)
        });
        told.sends(name, update);
    }
    for complaint in &complaints {
        assert_eq!(told.submit(complaint, &domain()).unwrap().outcome, Resync);
    }
    assert!(told.goes("mallory/phone"));
}

#[test]
fn complaints_outlive_a_restart() {
    for from_snapshot in [false, true] {
        let (mut told, lie) = forward();
        told.complain("bob/phone", &lie);
        told.complain("carol/phone", &lie);
        if from_snapshot {
            told.scenario.restart_from_snapshot();
        } else {
            told.scenario.restart();
        }
        told.complain("carol/phone", &lie);
        assert!(!told.goes("mallory/phone"));
        told.complain("dave/phone", &lie);
        assert!(told.goes("mallory/phone"), "from a snapshot: {from_snapshot}");
    }
}

#[test]
fn liar_does_not_come_back_by_a_resync() {
    let (mut told, lie) = forward();
    for who in ["bob/phone", "carol/phone", "dave/phone"] {
        told.complain(who, &lie);
    }
    let rogue = told.rogues.get_mut("mallory/phone").unwrap();
    let leaf = rogue.leaf_index();
    let update = rogue.external_commit(&told.scenario.state.info().unwrap(), Vec::new());
    let request = DsRequest::ResyncClient(ResyncClient {
        group_id: told.scenario.id.clone(),
        sender: rogue.leaf.public().clone(),
        update,
        client_queue_config: rogue.config(),
    });
    let sender = crate::wire::ds::DsSenderId::LeafIndex(leaf);
    let message = super::rogue::sign(&told.scenario, sender, request, &rogue.leaf);
    assert!(matches!(told.scenario.submit(&message), Err(Reject::NotAuthorized(_))));
}

#[test]
fn commits_that_nobody_complains_of_are_forgotten_and_those_that_somebody_does_are_not() {
    let mut told = Told::group_of(SIX);
    let quiet = told.commits("bob/phone", |builder| builder);
    let lie = {
        told.scenario.deliver("alice/phone");
        told.follow_all_but("bob/phone");
        told.lie()
    };
    told.scenario.deliver("alice/phone");
    told.scenario.act("alice/phone", say("I can read this")).unwrap();
    told.complain("carol/phone", &lie);
    for _ in 0..20 {
        told.scenario.act("alice/phone", update()).unwrap();
    }
    assert_eq!(told.complain("dave/phone", &quiet), Nothing);
    told.complain("dave/phone", &lie);
    assert_eq!(told.scenario.state.lies.cases.len(), 21);
    // a day later nobody is removed for it
    told.scenario.now = told.scenario.now.plus_ms(24 * 60 * MINUTE_MS + 1000);
    told.scenario.act("alice/phone", update()).unwrap();
    assert_eq!(told.complain("erin/phone", &lie), Nothing);
    assert!(!told.goes("mallory/phone"));
}

#[test]
fn members_who_can_read_complain_of_the_group_info_and_nobody_comes_in_by_it() {
    let setup = || Setup::policy(|policy| policy.join = JoinPolicy::Open);
    let mut told = Told::with(setup(), SIX);
    let lie = told.lie();
    let of_info = ComplaintReason::ExternalPub;
    assert_eq!(
        told.complain_of("bob/phone", &lie, of_info),
        Resync,
        "there is nothing to wait for"
    );
    told.complain_of("carol/phone", &lie, of_info);
    let mut frank = Rogue::new("frank/phone");
    let join = frank.join(&told.scenario);
    told.complain_of("dave/phone", &lie, of_info);
    assert_eq!(told.scenario.state.epoch(), lie.epoch.next(), "it never goes back");
    assert!(told.goes("mallory/phone"));
    assert_eq!(told.scenario.submit(&join).unwrap_err(), Reject::BadInfo);
    let asks = super::outsiders::asks_info(&told.scenario, &frank, None);
    assert_eq!(told.scenario.submit(&asks).unwrap_err(), Reject::BadInfo);
    // the next commit brings another
    told.scenario.deliver("alice/phone");
    told.scenario.act("alice/phone", update()).unwrap();
    assert!(!told.scenario.has("mallory/phone"));
    let join = Rogue::new("frank/phone").join(&told.scenario);
    told.scenario.submit(&join).unwrap();
}

const HONEST: [&str; 4] = ["bob/phone", "carol/phone", "dave/phone", "erin/phone"];

fn open_to_all() -> Told {
    Told::with(Setup::policy(|policy| policy.join = JoinPolicy::Open), SIX)
}

#[test]
fn member_who_lies_from_outside_is_out_whatever_one_accomplice_says() {
    for restarts in [false, true] {
        let mut told = Told::group_of(SIX);
        told.commits("erin/phone", |builder| builder);
        told.scenario.deliver("alice/phone");
        told.follow_all_but("erin/phone");
        let given = told.external_pub();
        let lie = told.resyncs("mallory/phone");
        if restarts {
            told.scenario.restart_from_snapshot();
        }
        // that the GroupInfo was wrong helps nobody who is alone with it
        assert_eq!(told.complain_of_outside("dave/phone", &lie, &[7; 32]), Resync);
        assert_eq!(told.complain_of_outside("bob/phone", &lie, &given), Resync);
        // what does not say whose doing it is counts for nothing
        assert_eq!(told.complain("carol/phone", &lie), Resync);
        assert_eq!(told.complain("erin/phone", &lie), Resync);
        told.complain_of_outside("carol/phone", &lie, &given);
        assert!(!told.goes("mallory/phone"), "two of five");
        if restarts {
            told.scenario.restart_from_snapshot();
        }
        told.complain_of_outside("erin/phone", &lie, &given);
        assert!(told.goes("mallory/phone") && !told.goes("erin/phone"));
        assert_eq!(told.scenario.state.epoch(), lie.epoch.next(), "a resync is not taken back");
    }
}

#[test]
fn group_goes_back_behind_a_newcomer_who_lies_from_outside() {
    let mut told = open_to_all();
    told.lie();
    told.scenario.deliver("alice/phone");
    told.follow_all_but("mallory/phone");
    let given = told.external_pub();
    let lie = told.joins("frank/phone");
    // of six
    for who in &HONEST[..3] {
        assert_eq!(told.complain_of_outside(who, &lie, &given), Wait);
    }
    assert_eq!(told.complain_of_outside(HONEST[3], &lie, &given), Void);
    assert_eq!(told.scenario.state.epoch(), lie.epoch);
    assert!(!told.scenario.has("frank/phone"));
}

#[test]
fn complaint_that_an_earlier_build_wrote_down_and_nobody_can_read_counts_for_nothing() {
    let (mut told, lie) = forward();
    let complaint = told.complaint("bob/phone", &lie, ComplaintReason::Other);
    let mut bytes = encode(&complaint);
    // reason, signature<V>: it was said without a key
    let reason = bytes.len() - 2 - 64 - 1;
    assert_eq!(bytes[reason], 0);
    bytes[reason] = 4;
    assert!(decode::<CommitComplaint>(&bytes).is_err());
    let (before, user) = (told.scenario.snapshot(), told.rogues["bob/phone"].user_key_hash());
    let now = told.scenario.now;
    told.scenario.state.apply_complaint(&user, bytes, now);
    assert_eq!(told.scenario.snapshot(), before);
}

#[test]
fn who_was_misled_stays_and_who_misled_it_is_out() {
    let mut told = open_to_all();
    told.lie();
    // what the others have, mallory has not signed
    let (right, epoch) = (vec![9; 32], told.scenario.state.epoch());
    let misled = told.joins("frank/phone");
    // their leaves are what they were: nobody but mallory and frank changed theirs
    for who in &HONEST[..2] {
        assert_eq!(told.complain_of_outside(who, &misled, &right), Resync);
    }
    assert!(!told.goes("mallory/phone"), "two of five");
    // mallory's own word does not count, nor that of who was not there before
    for who in ["mallory/phone", "frank/phone"] {
        let complaint = told.complaint_of_outside(who, &misled, &right);
        let heard = told.submit(&complaint, &domain());
        assert!(!matches!(&heard, Ok(answer) if answer.outcome == Wait), "{heard:?}");
    }
    assert!(!told.goes("mallory/phone"));
    assert_eq!(told.complain_of_outside(HONEST[2], &misled, &right), Resync);
    assert!(told.goes("mallory/phone") && !told.goes("frank/phone"));
    assert_eq!(told.scenario.state.epoch(), epoch.next(), "nothing is taken back");
}

impl Told {
    fn follow_all_but(&mut self, who: &str) {
        for (name, rogue) in &mut self.rogues {
            if *name != who {
                rogue.follow(&self.scenario);
            }
        }
    }

    /// What the hub has in the feed of `who`'s client of this provider: whether it ends there.
    fn is_closed(&self, who: &str) -> bool {
        self.scenario.unclaimed.iter().any(|(client, item)| {
            *client == uri(who) && matches!(item, InboxItem::Close { removed: true, .. })
        })
    }
}

#[test]
fn quorum_that_could_not_process_a_commit_has_the_group_go_back() {
    let mut told = Told::group_of(SIX);
    // what is pending there is pending again
    let proposal = {
        let rogue = told.rogues.get_mut("erin/phone").unwrap();
        let (provider, leaf) = (&rogue.provider, &rogue.leaf);
        let group = rogue.group.as_mut().unwrap();
        let (message, _) = group
            .propose_self_update(provider, leaf, openmls::prelude::LeafNodeParameters::default())
            .unwrap();
        rogue.propose(&told.scenario, &message)
    };
    told.scenario.submit(&proposal).unwrap();
    told.follow_all_but("erin/phone");
    told.scenario.deliver("alice/phone");
    let before = told.scenario.snapshot();
    let lie = told.commits("mallory/phone", |builder| builder.consume_proposal_store(true));
    assert_ne!(told.scenario.snapshot().tree, before.tree);
    assert_eq!(told.complain("bob/phone", &lie), Wait);
    assert_eq!(told.complain("carol/phone", &lie), Wait);
    assert_eq!(told.scenario.state.epoch(), lie.epoch.next());
    assert_eq!(told.complain("dave/phone", &lie), Void);
    assert_eq!(told.complain("bob/phone", &lie), Void);
    assert_eq!(told.complain("erin/phone", &lie), Void);
    let after = told.scenario.snapshot();
    assert_eq!(
        (&after.tree, &after.partial, after.signer),
        (&before.tree, &before.partial, before.signer)
    );
    assert_eq!(after.pending[..1], before.pending);
    // who was waited for and has come since (it committed) is waited for no more; the others are
    let (leaf, waits) = (told.scenario.leaf("mallory/phone"), before.joiners.iter().cloned());
    let waits: Vec<_> = waits.filter(|(_, joiner)| joiner.leaf != leaf).collect();
    assert!(waits.len() < before.joiners.len());
    assert_eq!(after.joiners, waits);
    assert!(told.goes("mallory/phone"));
    // the feed says it to everybody, with what proves it
    let event = told.scenario.records.iter().find_map(|record| match decode(&record.feed.event) {
        Ok(QueueEvent::EpochVoid { epoch, group_sequence, complaints }) => {
            assert!(record.feed.handshake, "also to who takes handshakes only");
            Some((epoch, group_sequence, complaints))
        }
        _ => None,
    });
    let (epoch, group_sequence, complaints) = event.unwrap();
    assert_eq!((epoch, group_sequence), (lie.epoch.next(), lie.sequence));
    let by: Vec<LeafIndex> = complaints.iter().map(|one| one.leaf_index).collect();
    assert_eq!(by, ["bob/phone", "carol/phone", "dave/phone"].map(|who| told.scenario.leaf(who)));
    // who never left the epoch goes on in it, with everything that is pending
    told.follow_all_but("erin/phone");
    let next = told.commits("bob/phone", |builder| builder.consume_proposal_store(true));
    assert_eq!(next.epoch, lie.epoch);
    assert!(!told.scenario.has("mallory/phone"));
}

#[test]
fn what_a_member_missed_holds_nothing_that_is_void() {
    for tablet in [false, true] {
        let mut told = Told::group_of(SIX);
        told.enter("mallory/tablet", "mallory/phone");
        let slow = told.rogues.get_mut("carol/phone").unwrap().commit(|builder| builder);
        let slow =
            told.rogues["carol/phone"].request(&told.scenario, DsRequest::UpdateClient(slow));
        told.commits("erin/phone", |builder| builder);
        told.follow_all_but("erin/phone");
        let lie = told.lie();
        if tablet {
            // a proposal in the void epoch
            let rogue = told.rogues.get_mut("mallory/tablet").unwrap();
            rogue.follow(&told.scenario);
            let parameters = openmls::prelude::LeafNodeParameters::default();
            let group = rogue.group.as_mut().unwrap();
            let (message, _) =
                group.propose_self_update(&rogue.provider, &rogue.leaf, parameters).unwrap();
            let proposal = told.rogues["mallory/tablet"].propose(&told.scenario, &message);
            told.scenario.submit(&proposal).unwrap();
        }
        for who in ["bob/phone", "carol/phone", "dave/phone"] {
            told.complain(who, &lie);
        }
        let Err(Reject::WrongEpoch { current, missed }) = told.scenario.submit(&slow) else {
            panic!("it is an epoch late")
        };
        assert_eq!(current, lie.epoch);
        let removal = told.scenario.state.pending_messages().next().unwrap();
        assert_eq!(missed.len(), 2, "erin's commit and the hub's proposal");
        assert!(missed.iter().all(|message| sha256(message.as_slice()) != lie.hash));
        assert_eq!(missed.last(), Some(removal));
    }
}

#[test]
fn accepted_request_of_another_user_ends_the_way_back() {
    let (mut told, lie) = forward();
    for who in ["bob/phone", "carol/phone", "dave/phone"] {
        assert_eq!(told.complain(who, &lie), Resync);
    }
    assert_eq!(told.scenario.state.epoch(), lie.epoch.next());
}

#[test]
fn committers_own_requests_do_not_end_the_way_back() {
    let mut told = Told::group_of(SIX);
    told.enter("mallory/tablet", "mallory/phone");
    let lie = told.lie();
    told.rogues.get_mut("mallory/tablet").unwrap().follow(&told.scenario);
    told.says("mallory/tablet").unwrap();
    told.complain("bob/phone", &lie);
    told.complain("carol/phone", &lie);
    assert_eq!(told.complain("dave/phone", &lie), Void);
}

#[test]
fn group_goes_back_within_ten_minutes_of_the_commit_and_half_a_minute_of_the_first_complaint() {
    for (before, between, outcome) in [
        (10 * MINUTE_MS - 2_000, 1_000, Void),
        (10 * MINUTE_MS - 1_000, 1_000, Resync),
        (0, 29_000, Void),
        (0, 30_000, Resync),
    ] {
        let mut told = Told::group_of(SIX);
        let lie = told.lie();
        told.scenario.now = told.scenario.now.plus_ms(before);
        assert_eq!(told.complain("bob/phone", &lie), Wait);
        told.complain("carol/phone", &lie);
        told.scenario.now = told.scenario.now.plus_ms(between);
        assert_eq!(told.complain("dave/phone", &lie), outcome, "{before} {between}");
        // one way or the other the liar goes
        assert!(told.goes("mallory/phone"));
    }
}

#[test]
fn who_waits_is_told_for_how_long() {
    let mut told = Told::group_of(SIX);
    let lie = told.lie();
    let complaint = told.complaint("bob/phone", &lie, ComplaintReason::Path);
    let answer = told.submit(&complaint, &domain()).unwrap();
    assert_eq!((answer.outcome, answer.wait_ms), (Wait, 2_000));
    told.scenario.now = told.scenario.now.plus_ms(29_500);
    let answer = told.submit(&complaint, &domain()).unwrap();
    assert_eq!((answer.outcome, answer.wait_ms), (Wait, 500));
    told.scenario.now = told.scenario.now.plus_ms(500);
    let answer = told.submit(&complaint, &domain()).unwrap();
    assert_eq!((answer.outcome, answer.wait_ms), (Resync, 0));
}

#[test]
fn commit_that_removes_somebody_is_never_made_void() {
    let mut told = Told::group_of(SIX);
    let lie = told.alice(Operation::RemoveUsers { users: vec![uri("erin/phone").user()] });
    for who in ["bob/phone", "carol/phone", "dave/phone"] {
        assert_eq!(told.complain(who, &lie), Resync);
    }
    assert_eq!(told.scenario.state.epoch(), lie.epoch.next());
    assert!(!told.scenario.has("erin/phone") && told.goes("alice/phone"));
}

#[test]
fn group_goes_back_once_for_a_user_and_not_for_another_client_of_its() {
    let mut told = Told::group_of(SIX);
    told.enter("mallory/tablet", "mallory/phone");
    let lie = told.lie();
    for who in ["bob/phone", "carol/phone", "dave/phone"] {
        told.complain(who, &lie);
    }
    assert_eq!(told.scenario.state.epoch(), lie.epoch);
    // the next commit takes the phone out, and the tablet does as the phone did
    told.follow();
    told.commits("erin/phone", |builder| builder.consume_proposal_store(true));
    told.rogues.retain(|name, _| !["erin/phone", "mallory/phone"].contains(name));
    told.scenario.restart_from_snapshot_for_all();
    told.follow();
    let again = told.commits("mallory/tablet", |builder| builder);
    for who in ["bob/phone", "carol/phone", "dave/phone"] {
        let complaint = told.complaint(who, &again, ComplaintReason::Path);
        assert_eq!(told.submit(&complaint, &domain()).unwrap().outcome, Resync);
    }
    assert_eq!(told.scenario.state.epoch(), again.epoch.next());
    assert!(told.goes("mallory/tablet"));
}

#[test]
fn who_came_in_by_a_void_commit_is_out_and_its_queue_ends() {
    let mut told = Told::group_of(SIX);
    told.scenario.state.policy.may_add = crate::wire::extensions::Role::Member;
    let frank = Rogue::new("frank/phone");
    let key_package = frank.key_package();
    let guest = {
        let mut rogue = Rogue::new("b:gina/phone");
        rogue.queue = Some(crate::wire::extensions::ClientQueueConfig {
            domain: Domain::new("b.example").unwrap(),
            queue_token: Opaque::new([9; 32]).unwrap(),
        });
        rogue.key_package()
    };
    let next = told.scenario.state.next_recipient;
    let lie = told.commits("mallory/phone", |builder| {
        builder.propose_adds([key_package.clone(), guest.clone()])
    });
    assert!(told.scenario.has("frank/phone") && told.scenario.has("b:gina/phone"));
    assert!(told.scenario.state.joiner_epochs().contains_key(&lie.epoch.next()));
    // it had no leaf when the commit was sent
    let leaf = told.scenario.leaf("frank/phone");
    let mut complaint = told.complaint("bob/phone", &lie, ComplaintReason::Path);
    complaint.leaf_index = leaf;
    sign(&mut complaint, &frank.leaf);
    assert_eq!(told.submit(&complaint, &domain()).unwrap().outcome, Nothing);
    for who in ["bob/phone", "carol/phone", "dave/phone"] {
        told.complain(who, &lie);
    }
    assert!(!told.scenario.has("frank/phone") && !told.scenario.has("b:gina/phone"));
    assert!(told.is_closed("frank/phone"));
    let owed = &told.scenario.owed[&Domain::new("b.example").unwrap()];
    let removes = |owed: &&crate::group::Outbound| {
        owed.changes
            .iter()
            .any(|change| matches!(change, crate::wire::queueing::RosterChange::Remove { .. }))
    };
    assert_eq!(owed.iter().filter(removes).count(), 1);
    assert_eq!(told.scenario.state.guests().count(), 0);
    assert!(!told.scenario.state.joiner_epochs().contains_key(&lie.epoch.next()));
    // numbers are not given twice
    assert_eq!(told.scenario.state.next_recipient.0, next.0 + 2);
}

#[test]
fn information_of_an_epoch_is_of_the_one_that_stands_and_not_of_one_that_was_void() {
    let mut told = Told::group_of(SIX);
    let lie = told.lie();
    let void = told.scenario.state.joiner_info().unwrap();
    for who in ["bob/phone", "carol/phone", "dave/phone"] {
        told.complain(who, &lie);
    }
    // the hub's proposal is in the feed behind the event; the commit is skipped, as a client would
    let mut frank = Rogue::new("frank/phone");
    told.scenario.state.policy.may_add = crate::wire::extensions::Role::Member;
    let key_package = frank.key_package();
    let rogue = told.rogues.get_mut("bob/phone").unwrap();
    rogue.follow(&told.scenario);
    told.commits("bob/phone", |builder| {
        builder.consume_proposal_store(true).propose_adds([key_package.clone()])
    });
    let epoch = told.scenario.state.epoch();
    assert_eq!(epoch, lie.epoch.next(), "the number is given again");
    let truth = told.scenario.state.joiner_info().unwrap();
    assert_ne!(truth.group_info, void.group_info);
    let since = told.scenario.state.joiner_epochs()[&epoch];
    assert_eq!(told.scenario.history(epoch, since).group_info, truth.group_info);
    frank.take_welcome(&mut told.scenario);
}

#[test]
fn hub_that_has_let_go_of_the_key_of_the_epoch_before_goes_forward() {
    let mut told = Told::group_of(SIX);
    told.scenario.deliver("alice/phone");
    told.scenario.act("alice/phone", say("before")).unwrap();
    let lie = told.lie();
    told.complain("bob/phone", &lie);
    told.complain("carol/phone", &lie);
    let complaint = told.complaint("dave/phone", &lie, ComplaintReason::Path);
    let now = told.scenario.now;
    let Heard::Write(staged) =
        told.scenario.state.stage_complaint(&complaint, &domain(), now).unwrap()
    else {
        panic!("it counts")
    };
    let effects = told.scenario.state.merge(*staged).unwrap();
    told.scenario.take(effects);
    // another group's past, or one that is not right before the commit, is not gone back to
    let later = told.scenario.past(lie.sequence.next());
    assert!(told.scenario.state.stage_void(later, now).unwrap().is_none());
    let earlier = told.scenario.past(Sequence(lie.sequence.0 - 1));
    assert_eq!(earlier.epoch(), lie.epoch, "a message came between");
    assert!(told.scenario.state.stage_void(earlier, now).unwrap().is_none());
    // nor one in which the hub could not speak any more
    let keys = told.scenario.hub.keys.all().to_vec();
    told.scenario.hub.keys.replace(super::scenario::hub_keys(now).to_vec());
    let before = told.scenario.past(lie.sequence);
    assert!(told.scenario.state.stage_void(before, now).unwrap().is_none());
    told.scenario.hub.keys.replace(keys);
    let staged = told.scenario.state.stage_forward(now).unwrap();
    let effects = told.scenario.state.merge(staged).unwrap();
    told.scenario.take(effects);
    assert!(told.goes("mallory/phone"));
    assert_eq!(told.scenario.state.complaint_answer(&complaint, now).outcome, Resync);
}

#[test]
fn quorum_that_was_reached_before_a_crash_is_acted_upon_after_it() {
    let mut told = Told::group_of(SIX);
    let lie = told.lie();
    told.complain("bob/phone", &lie);
    told.complain("carol/phone", &lie);
    let complaint = told.complaint("dave/phone", &lie, ComplaintReason::Path);
    let now = told.scenario.now;
    let Heard::Write(staged) =
        told.scenario.state.stage_complaint(&complaint, &domain(), now).unwrap()
    else {
        panic!("it counts")
    };
    let effects = told.scenario.state.merge(*staged).unwrap();
    told.scenario.take(effects);
    told.scenario.restart();
    assert_eq!(told.scenario.state.back_to(now), Some(lie.sequence));
    assert!(!told.scenario.hub_acts(&[]), "the way back is still open");
    // too late for that: forward
    told.scenario.now = now.plus_ms(MINUTE_MS);
    assert_eq!(told.scenario.state.back_to(told.scenario.now), None);
    assert!(told.scenario.hub_acts(&[]));
    assert!(told.goes("mallory/phone"));
}

#[test]
fn snapshot_of_an_older_version_is_read_and_one_of_a_newer_is_not() {
    let (mut told, lie) = forward();
    told.complain("bob/phone", &lie);
    let snapshot = told.scenario.snapshot();
    assert!(!snapshot.lies.cases.is_empty());
    let bytes = snapshot.to_bytes().unwrap();
    assert_eq!(Snapshot::from_bytes(&bytes).unwrap(), snapshot);
    // what a version wrote that knew nothing of liars
    let older = crate::group::mls::to_record(&snapshot).unwrap();
    let read = Snapshot::from_bytes(&older).unwrap();
    assert_eq!(read, Snapshot { lies: crate::group::Lies::default(), ..snapshot });
    let newer = [older.as_slice(), &[2, 0, 0, 0]].concat();
    assert!(Snapshot::from_bytes(&newer).is_err());
    told.scenario.state =
        GroupState::load(told.scenario.hub.clone(), told.scenario.id.clone(), &older).unwrap();
    let now = told.scenario.now;
    let complaint = told.complaint("bob/phone", &lie, ComplaintReason::Path);
    assert_eq!(told.scenario.state.complaint_answer(&complaint, now).outcome, Nothing);
}

#[test]
fn complaints_cost_each_as_much_however_many_users_complain() {
    let mut told = Told::group_of(SIX);
    let lie = told.lie();
    let complaint = told.complaint("bob/phone", &lie, ComplaintReason::Path);
    let (state, now) = (told.scenario.state, told.scenario.now);
    let bytes = encode(&complaint);
    let index = state.lies.find(lie.epoch, &lie.hash).unwrap();
    crate::growth::grows_with("complaints of all users", 64, |n| {
        let of = |n: usize| {
            let hash = sha256(&n.to_be_bytes());
            let identity = LeafIdentity {
                client: uri(&format!("u{n}/phone")),
                user: UserKeyHash(Opaque::new(hash).unwrap()),
                signature_key: hash.to_vec(),
                credential_type: 1,
                print: hash,
            };
            (LeafIndex(u32::try_from(n).unwrap() + 10), identity)
        };
        let roster = Roster::of((0..n).map(of)).unwrap();
        let users = roster.iter().map(|(leaf, identity)| (leaf, identity.user.clone()));
        let users: Vec<(LeafIndex, UserKeyHash)> = users.collect();
        let hub = std::sync::Arc::clone(&told.scenario.hub);
        let mut state =
            GroupState::load(hub, told.scenario.id.clone(), &state.snapshot().unwrap()).unwrap();
        state.roster = roster;
        let before = state.lies.clone();
        let (bytes, complaint) = (bytes.clone(), complaint.clone());
        move || {
            state.lies = before.clone();
            // what each complaint is looked at for
            for (leaf, user) in &users {
                assert_eq!(state.lies.find(lie.epoch, &lie.hash), Some(index));
                assert_eq!(state.lies.leaf_in(index, *leaf, &state.roster).unwrap().user, *user);
                let case = &state.lies.cases[index];
                assert!(case.may_complain(user, &state.roster));
                assert!(!case.has_complaint(user, false));
                state.apply_complaint(user, bytes.clone(), now);
                let _ = state.wants_back(now);
                state.liars(now);
                state.info_is_bad();
                let _ = state.complaint_answer(&complaint, now);
            }
            assert!(state.wants_back(now), "a quorum");
        }
    });
}
