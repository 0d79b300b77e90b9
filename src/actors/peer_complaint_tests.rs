//! Complaints that come from other providers: what their copies get of a void epoch, and crashes between the parts. The
//! rules are tested in `group`.

use super::*;
use crate::{
    actors::{
        errors::{self, DAMAGED_RETRY_MS},
        history,
    },
    federation::Opened,
    store::records::Departure,
    wire::{
        ds::{CommitComplaint, ComplaintOutcome, ComplaintReason, ComplaintResponse},
        extensions::Signature,
        ids::LeafIndex,
        queueing::RosterChanges,
    },
};

/// A group of bob and four others, and a commit of bob's that adds frank.
struct Told {
    world: World,
    group: GroupId,
    others: Vec<Client>,
    /// The commit's.
    sequence: Sequence,
    hash: [u8; 32],
    epoch: Epoch,
}

impl Told {
    async fn new() -> Self {
        let world = World::new(|_| ());
        let bob = Client::new("b:bob/phone");
        let group = bob.create(&world).await;
        let others = ["c:carol/phone", "b:dave/phone", "c:erin/phone", "b:gina/phone"];
        let others: Vec<Client> = others.map(Client::new).into_iter().collect();
        for other in &others {
            bob.add(&world, &group, other).await;
        }
        let epoch = world.node.store.group_head(&group).await.unwrap().unwrap().epoch;
        let sequence = bob.add(&world, &group, &Client::new("c:frank/phone")).await;
        let page = Page { items_max: 1, bytes_max: 1 << 20 };
        let entry = world.node.store.feed(&group, sequence, page).await.unwrap().remove(0);
        let QueueEvent::MlsMessage { message } = decode(&entry.event).unwrap() else {
            panic!("a commit")
        };
        let hash = crypto::sha256(message.as_slice());
        Self { world, group, others, sequence, hash, epoch }
    }

    async fn says(&self, who: usize) -> Result<ComplaintResponse, DsError> {
        self.says_through(who, self.others[who].uri.domain()).await
    }

    async fn says_through(&self, who: usize, relay: Domain) -> Result<ComplaintResponse, DsError> {
        let mut complaint = CommitComplaint {
            group_id: self.group.clone(),
            epoch: self.epoch,
            leaf_index: LeafIndex(u32::try_from(who).unwrap() + 1),
            commit_hash: Opaque::new(self.hash).unwrap(),
            reason: ComplaintReason::Path.into(),
            signature: Signature::default(),
        };
        let identity = self.others[who].member.identity();
        let key = identity.leaf_key(SUITES[0]).unwrap();
        let signed = complaint.to_be_signed();
        complaint.signature = key.sign_with_label(CommitComplaint::LABEL, &signed).unwrap();
        let (event, request_id) = (EventType::Complaint, RequestId(crypto::random()));
        let opened = Opened::unsigned(relay, event, request_id, encode(&complaint));
        let answer = self.world.node.federated(opened).await?;
        Ok(decode(&answer).unwrap())
    }

    async fn outcome(&self, who: usize) -> ComplaintOutcome {
        self.says(who).await.unwrap().outcome
    }

    async fn head(&self) -> GroupHead {
        self.world.node.store.group_head(&self.group).await.unwrap().unwrap()
    }

    async fn until_epoch(&self, epoch: Epoch) {
        while self.head().await.epoch != epoch {
            tokio::task::yield_now().await;
        }
    }

    /// The epoch before cannot be read, as long as this is out.
    async fn takes_snapshot(&self) -> Vec<u8> {
        let (store, group, at) = (&self.world.node.store, self.group.clone(), self.head().await);
        let bytes = store.snapshot(&group, at.snapshot).await.unwrap().unwrap();
        let drop = Write::DropSnapshot { group, at: at.snapshot };
        store.write(Batch::new().and(drop)).await.unwrap();
        bytes
    }

    async fn puts_back(&self, bytes: Vec<u8>) {
        let (group, at) = (self.group.clone(), self.head().await.snapshot);
        let write = Write::Snapshot { group, at, bytes };
        self.world.node.store.write(Batch::new().and(write)).await.unwrap();
    }

    /// As much of the disk is to be kept free as that is of what there is.
    fn keep_free(&self, times: u64) {
        let disk = rustix::fs::statvfs(".").unwrap();
        self.world.node.store.keep_free((disk.f_bavail * disk.f_frsize).saturating_mul(times));
    }

    /// What the feed says behind the commit.
    async fn behind(&self) -> Vec<QueueEvent> {
        let page = Page { items_max: 99, bytes_max: 1 << 20 };
        let feed = self.world.node.store.feed(&self.group, self.sequence.next(), page);
        let feed = feed.await.unwrap();
        let events = feed.iter().filter(|entry| !entry.event.is_empty());
        events.map(|entry| decode(&entry.event).unwrap()).collect()
    }
}

fn voids(item: &DeliveryItem) -> Option<&RosterChanges> {
    match item {
        DeliveryItem::Feed { event: QueueEvent::EpochVoid { .. }, roster, .. } => Some(roster),
        DeliveryItem::Feed { .. } | DeliveryItem::Snapshot { .. } | DeliveryItem::Direct { .. } => {
            None
        }
    }
}

#[actix_rt::test]
async fn a_void_reaches_every_copy_and_takes_out_whom_the_commit_brought_in() {
    let mut told = Told::new().await;
    let wrong = told.says_through(0, domain("b")).await.unwrap_err();
    assert_eq!(wrong.name(), "unauthenticated", "carol is a client of c's");
    let first = told.says(0).await.unwrap();
    assert_eq!(first, ComplaintResponse { outcome: ComplaintOutcome::Wait, wait_ms: 2_000 });
    assert_eq!(told.outcome(1).await, ComplaintOutcome::Wait);
    assert_eq!(told.head().await.epoch, told.epoch.next());
    assert_eq!(told.outcome(2).await, ComplaintOutcome::Void);
    let head = told.head().await;
    assert_eq!(head.epoch, told.epoch);
    for (name, leaves) in [("b", 0), ("c", 1)] {
        let last = Sequence(head.next_sequence.0 - 1);
        until_taken(&told.world, name, &told.group, last).await;
        let taken = items(&told.world, name, &told.group);
        let rosters: Vec<_> = taken.iter().filter_map(voids).collect();
        assert_eq!(rosters.len(), 1, "{name}");
        let removed = |change: &RosterChange| matches!(change, RosterChange::Remove { .. });
        assert!(rosters[0].len() == leaves && rosters[0].iter().all(removed), "{name}");
    }
    // the process ends: it is the same group, and a repeat is answered as before
    told.world.restart().await;
    assert_eq!(told.outcome(2).await, ComplaintOutcome::Void);
    assert_eq!(told.outcome(3).await, ComplaintOutcome::Void);
    let events = told.behind().await;
    assert!(
        matches!(&events[0], QueueEvent::EpochVoid { complaints, .. } if complaints.len() == 3)
    );
    assert!(
        matches!(&events[1..], [QueueEvent::MlsMessage { .. }]),
        "the liar's removal: {events:?}"
    );
    let complaints = &told.world.node.metrics.complaints;
    assert_eq!(complaints.with_label_values(&["void"]).get(), 2, "of this process");
}

#[actix_rt::test]
async fn a_quorum_that_was_written_down_before_a_crash_is_acted_upon_behind_it() {
    let mut told = Told::new().await;
    for who in [0, 1] {
        assert_eq!(told.outcome(who).await, ComplaintOutcome::Wait);
    }
    let snapshot = told.takes_snapshot().await;
    assert_eq!(told.says(2).await.unwrap_err().name(), "internal");
    assert!(told.behind().await.is_empty(), "nothing has come of it yet");
    told.puts_back(snapshot).await;
    told.world.restart().await;
    // nobody asks: whatever wakes the group is enough
    told.world.node.settle_group(&told.group).await;
    told.until_epoch(told.epoch).await;
    assert_eq!(told.outcome(2).await, ComplaintOutcome::Void);
    // told before that was answered
    assert_eq!(told.world.node.metrics.epochs_voided.get(), 1);
}

#[actix_rt::test]
async fn a_group_that_cannot_go_back_in_time_goes_forward() {
    let told = Told::new().await;
    for who in [0, 1] {
        told.outcome(who).await;
    }
    let snapshot = told.takes_snapshot().await;
    assert!(told.says(2).await.is_err());
    told.world.clock.advance_ms(60_000);
    told.world.node.settle_group(&told.group).await;
    assert_eq!(told.head().await.epoch, told.epoch.next());
    assert!(matches!(&told.behind().await[..], [QueueEvent::MlsMessage { .. }]), "its removal");
    assert_eq!(told.outcome(2).await, ComplaintOutcome::Resync);
    told.puts_back(snapshot).await;
}

#[actix_rt::test]
async fn a_complaint_is_written_down_before_it_is_answered() {
    let mut told = Told::new().await;
    // a process for each of them
    for (who, outcome) in
        [(0, ComplaintOutcome::Wait), (1, ComplaintOutcome::Wait), (2, ComplaintOutcome::Void)]
    {
        assert_eq!(told.outcome(who).await, outcome);
        told.world.restart().await;
    }
    assert_eq!(told.head().await.epoch, told.epoch);
}

#[actix_rt::test]
async fn complaints_about_a_group_that_cannot_be_read_do_not_have_it_read_again_and_again() {
    let mut told = Told::new().await;
    for name in ["b", "c"] {
        told.world.settled(name).await;
    }
    told.world.restart().await;
    while told.world.node.metrics.group_actors.get() > 0 {
        tokio::task::yield_now().await;
    }
    let snapshot = told.takes_snapshot().await;
    let refused = told.says(0).await.unwrap_err();
    told.puts_back(snapshot).await;
    assert_eq!(told.says(0).await.unwrap_err(), refused);
    told.world.clock.advance_ms(DAMAGED_RETRY_MS + 1);
    assert_eq!(told.outcome(0).await, ComplaintOutcome::Wait);
}

#[actix_rt::test]
async fn complaints_about_a_group_that_is_not_here_or_on_its_way_are_told_so() {
    let told = Told::new().await;
    let known = told.group.clone();
    let told = Told { group: group(9), ..told };
    assert_eq!(told.says(0).await.unwrap_err().name(), "group_not_found");
    let told = Told { group: known, ..told };
    let head = told.head().await;
    let frozen = GroupHead { status: GroupStatus::Migrating, revision: 99, ..head };
    let at = Departure::PARCEL;
    let parcel = Write::Snapshot { group: told.group.clone(), at, bytes: Vec::new() };
    told.world
        .node
        .store
        .write(Batch::new().and(Write::GroupHead(frozen)).and(parcel))
        .await
        .unwrap();
    let mut told = told;
    told.world.restart().await;
    assert_eq!(told.says(0).await.unwrap_err().name(), "group_migrating");
}

#[actix_rt::test]
async fn a_complaint_that_there_is_no_room_for_is_refused_and_the_group_stays_in_memory() {
    let told = Told::new().await;
    let started = told.world.node.metrics.group_activations.get();
    // nearly full, full
    for times in [2, 1_000] {
        told.keep_free(times);
        let refused = told.says(0).await.unwrap_err();
        assert_eq!(refused, errors::no_room(), "{times}");
    }
    told.keep_free(0);
    for who in [0, 1] {
        assert_eq!(told.outcome(who).await, ComplaintOutcome::Wait);
    }
    // nor is there room to go back
    let snapshot = told.takes_snapshot().await;
    assert_eq!(told.says(2).await.unwrap_err().name(), "internal");
    told.puts_back(snapshot).await;
    told.keep_free(2);
    assert_eq!(told.says(2).await.unwrap_err(), errors::no_room());
    told.keep_free(0);
    assert_eq!(told.outcome(2).await, ComplaintOutcome::Void);
    assert_eq!(told.world.node.metrics.group_activations.get(), started);
}

#[actix_rt::test]
async fn what_the_hub_has_to_do_waits_for_room_and_the_group_stays_in_memory() {
    let told = Told::new().await;
    let (node, group) = (&told.world.node, &told.group);
    let started = node.metrics.group_activations.get();
    let leave = async |client: ClientUri| {
        let notice = GroupNotice::ClientGone { client, reason: GoneReason::DeviceDeleted };
        let notice = Write::GroupNotice { group: group.clone(), key: [1; 16], notice };
        node.store.write(Batch::new().and(notice)).await.unwrap();
    };
    let left = async || node.store.group_notices(group, None, 9).await.unwrap().len();
    // one that nothing is to be done about: to take it away needs no room, but a disk that takes anything
    leave(Client::new("a:nobody/phone").uri).await;
    for (times, expected) in [(1_000, 1), (2, 0)] {
        told.keep_free(times);
        node.settle_group(group).await;
        assert_eq!(left().await, expected);
    }
    told.keep_free(0);
    leave(told.others[1].uri.clone()).await;
    for times in [2, 1_000] {
        told.keep_free(times);
        node.settle_group(group).await;
        assert!(told.behind().await.is_empty());
        assert_eq!(left().await, 1);
    }
    told.keep_free(0);
    node.settle_group(group).await;
    assert!(matches!(&told.behind().await[..], [QueueEvent::MlsMessage { .. }]), "its removal");
    assert_eq!(left().await, 0);
    assert_eq!(node.metrics.group_activations.get(), started);
}

#[actix_rt::test]
async fn who_was_silent_for_long_when_there_was_no_room_is_removed_when_there_is() {
    let told = Told::new().await;
    let (node, group) = (&told.world.node, &told.group);
    let started = node.metrics.group_activations.get();
    let silent = node.hub().settings.inactive_after_ms.unwrap();
    told.world.clock.advance_ms(silent + 1);
    told.keep_free(2);
    node.settle_group(group).await;
    assert!(told.behind().await.is_empty());
    told.keep_free(0);
    node.settle_group(group).await;
    assert!(!told.behind().await.is_empty(), "their removals");
    assert_eq!(node.metrics.group_activations.get(), started);
}

#[actix_rt::test]
async fn the_epoch_before_is_read_from_the_older_snapshot_where_the_newer_is_damaged() {
    let mut told = Told::new().await;
    let head = told.head().await;
    let (group, at) = (told.group.clone(), Sequence(told.sequence.0 - 1));
    let damaged = Write::Snapshot { group, at, bytes: vec![7; 40] };
    let previous_snapshot = Some(head.snapshot);
    let head = GroupHead { snapshot: at, previous_snapshot, revision: head.revision + 1, ..head };
    let batch = Batch::new().and(damaged).and(Write::GroupHead(head));
    told.world.node.store.write(batch).await.unwrap();
    told.world.restart().await;
    // nor is what a late joiner asks for lost
    let (node, head) = (&told.world.node, told.head().await);
    let of = (told.epoch.next(), told.sequence);
    history::joiner_info(node, &node.hub(), &head, of).await.unwrap();
    let expected = [ComplaintOutcome::Wait, ComplaintOutcome::Wait, ComplaintOutcome::Void];
    for (who, outcome) in expected.into_iter().enumerate() {
        assert_eq!(told.outcome(who).await, outcome);
    }
    assert_eq!(told.head().await.epoch, told.epoch);
}
