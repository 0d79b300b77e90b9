//! Files under `tests/golden/store`: the keys and values of each record as the first release that had it wrote them.
//!
//! They are never changed. Where an encoding changes its version goes up, the old files must still read, and new ones
//! are added for the new version (`cargo test -- --ignored writes_golden_files_that_are_missing`).

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use super::samples::*;
use crate::{
    migration::source::Phase,
    store::{Batch, Condition, SharedStore, Write, links::Link, memory::Disk, records::*},
    wire::ids::*,
};

fn records() -> Vec<(&'static str, Write)> {
    let (g, alice) = (|| group("golden"), || client("alice"));
    let inbox = |key, item| Write::Inbox { client: alice(), key, item };
    let (recipient, from) = (RecipientId(300), Sequence(70_000));
    let open = InboxItem::Open {
        group: g(),
        recipient,
        from,
        handshake_only: true,
        event: Some(vec![1, 2, 3]),
    };
    let filter = InboxItem::Filter { group: g(), recipient, from, handshake_only: false };
    let close = InboxItem::Close { group: g(), recipient, last: from, removed: true };
    let mut deleted = head("golden", 7, 8);
    deleted.status = GroupStatus::Deleted;
    deleted.previous_snapshot = Some(Sequence(3));
    deleted.wake_at = Some(Timestamp(1_700_000_000_000));
    let mut hosted = head("golden", 300, 70_000);
    let proposed = Some(KeyPrint([7; 16]));
    hosted.hub_key = Some(KeyStand { key: KeyPrint([6; 16]), proposed });
    let mut followed = head("golden", 9, 2);
    followed.status = GroupStatus::Followed;
    followed.last = Some(Link([7; 16]));
    let linked = |record| LogRecord { follows: Some(Link([9; 16])), ..record };
    let b = || domain("b");
    let recipient_gone = GroupNotice::RecipientGone {
        peer: b(),
        recipient: RecipientId(300),
        reason: GoneReason::QueueGone,
    };
    vec![
        ("group_head3", Write::GroupHead(hosted)),
        ("group_head3_deleted", Write::GroupHead(deleted)),
        ("group_head3_followed", Write::GroupHead(followed)),
        ("log3", log_write("golden", linked(record(5, 40, 60)))),
        ("log3_in_parts", log_write("golden", linked(record(6, 3_000, 6_000)))),
        ("log2", log_write("golden", record(5, 40, 60))),
        ("log2_in_parts", log_write("golden", record(6, 3_000, 6_000))),
        ("snapshot", Write::Snapshot { group: g(), at: Sequence(9), bytes: noise(9, 4_100) }),
        ("joiner_info", Write::JoinerInfo { group: g(), epoch: Epoch(4), bytes: noise(4, 70) }),
        ("group_notice", Write::GroupNotice { group: g(), key: [8; 16], notice: gone("alice") }),
        (
            "group_notice_recipient",
            Write::GroupNotice { group: g(), key: [9; 16], notice: recipient_gone },
        ),
        ("followed", Write::Followed { group: g(), followed: Followed { hub: b(), members: 300 } }),
        ("followed_member", Write::FollowedMember { group: g(), member: followed_member(300) }),
        ("outbound", Write::Outbound { peer: b(), group: g(), until: from }),
        (
            "outbound_roster",
            Write::OutboundRoster { peer: b(), group: g(), row: roster_row(1, 300) },
        ),
        ("replica2", Write::Replica { peer: b(), group: g(), replica: replica(300) }),
        ("departure", Write::Departure(departure("golden", Phase::Sent { hash: [7; 32] }))),
        ("moves", Write::Moves { group: g(), moves: moves() }),
        ("refused_nonce2", Write::RefusedNonce { nonce: [5; 32], refused: refused_nonce() }),
        ("inbox_open", inbox(inbox_key("golden", 2, 1), open)),
        ("inbox_filter", inbox(inbox_key("golden", 3, 0), filter)),
        ("inbox_close2", inbox(InboxKey::Item([7; 16]), close)),
        ("inbox_event", inbox(InboxKey::Item([9; 16]), inbox_item(4))),
        ("inbox_from", inbox(InboxKey::From { provider: b(), id: [9; 16] }, inbox_item(4))),
        ("queue_head", Write::QueueHead { client: alice(), head: queue_head(300) }),
        ("own", Write::Own { client: alice(), entry: own_entry(2) }),
        ("subscription2", Write::Subscription { client: alice(), subscription: subscription(300) }),
        ("account", Write::Account { user: user("alice"), account: account(2) }),
        ("device", Write::Device { client: alice(), device: device(3) }),
        ("key_package", Write::KeyPackage { client: alice(), key_package: key_package(3, 300) }),
        ("token", Write::Token { token: TokenId([2; 16]), record: token_record(300) }),
        ("consent", Write::Consent { user: user("alice"), token: ConsentHash([6; 32]) }),
        ("node", Write::Node { name: "golden", bytes: vec![1, 2, 3] }),
    ]
}

fn refused_nonce() -> RefusedNonce {
    RefusedNonce { until: Timestamp(1_700_000_000_000), source: Some(domain("b")) }
}

/// What the store holds where `write` was written.
async fn read_back(store: &SharedStore, write: &Write) -> Write {
    let page = ALL;
    match write.clone() {
        Write::GroupHead(head) => {
            Write::GroupHead(store.group_head(&head.group).await.unwrap().unwrap())
        }
        Write::Log { group, record } => {
            let at = record.feed.sequence;
            let feed = store.feed(&group, at, page).await.unwrap();
            let record = store.log(&group, at, page).await.unwrap().remove(0);
            assert!(feed.iter().eq([&record.feed]));
            Write::Log { group, record }
        }
        Write::Snapshot { group, at, .. } => {
            let bytes = store.snapshot(&group, at).await.unwrap().unwrap();
            Write::Snapshot { group, at, bytes }
        }
        Write::JoinerInfo { group, epoch, .. } => {
            let bytes = store.joiner_info(&group, epoch).await.unwrap().unwrap();
            Write::JoinerInfo { group, epoch, bytes }
        }
        Write::GroupNotice { group, .. } => {
            let found = store.groups_with_notices(None, 9).await.unwrap();
            assert!(found.iter().eq([&group]));
            let (key, notice) = store.group_notices(&group, None, 9).await.unwrap().remove(0);
            Write::GroupNotice { group, key, notice }
        }
        Write::Inbox { client, .. } => {
            let (key, item) = store.inbox(&client, ALL).await.unwrap().items.remove(0);
            Write::Inbox { client, key, item }
        }
        Write::QueueHead { client, .. } => {
            let head = store.queue_head(&client).await.unwrap().unwrap();
            Write::QueueHead { client, head }
        }
        Write::Own { client, .. } => {
            let entry = store.own(&client, OwnSequence(0), page).await.unwrap().remove(0);
            Write::Own { client, entry }
        }
        Write::Subscription { client, .. } => {
            let subscription = store.subscriptions(&client).await.unwrap().remove(0);
            let (group, recipient) = (&subscription.group, subscription.recipient);
            let found = store.subscription_to(&client, group, recipient).await;
            assert_eq!(found, Ok(Some(subscription.clone())));
            Write::Subscription { client, subscription }
        }
        Write::Account { user, .. } => {
            let account = store.account(&user).await.unwrap().unwrap();
            Write::Account { user, account }
        }
        Write::Device { client, .. } => {
            let device = store.device(&client).await.unwrap().unwrap();
            let of_queue = store.client_of_queue(&device.queue).await.unwrap();
            assert_eq!(of_queue, Some(client.clone()));
            Write::Device { client, device }
        }
        Write::KeyPackage { client, .. } => {
            let key_package = store.key_packages(&client, 9).await.unwrap().remove(0);
            // found by its reference too
            let key = key_package.reference.clone();
            let held = crate::store::Condition::KeyPackageHeld {
                client: client.clone(),
                key_package: key,
            };
            store.write(Batch::new().when(held)).await.unwrap();
            Write::KeyPackage { client, key_package }
        }
        Write::Token { token, .. } => {
            let record = store.token(&token).await.unwrap().unwrap();
            Write::Token { token, record }
        }
        Write::Consent { user, token } => {
            assert_eq!(store.has_consent(&user, &token).await, Ok(true));
            assert_eq!(store.consent_count(&user, 9).await, Ok(1));
            Write::Consent { user, token }
        }
        Write::Node { name, .. } => {
            Write::Node { name, bytes: store.node(name).await.unwrap().unwrap() }
        }
        Write::Followed { group, .. } => {
            let followed = store.followed(&group).await.unwrap().unwrap();
            Write::Followed { group, followed }
        }
        Write::FollowedMember { group, member } => {
            let listed = store.followed_members(&group, None, 9).await.unwrap();
            let member = store.followed_member(&group, member.recipient).await.unwrap().unwrap();
            assert!(listed.iter().eq([&member]));
            Write::FollowedMember { group, member }
        }
        Write::Outbound { peer, group, .. } => {
            assert!(store.outbound_peers(None, 9).await.unwrap().iter().eq([&peer]));
            let until = store.outbound_at(&peer, &group).await.unwrap().unwrap();
            let listed = store.outbound(&peer, None, 9).await.unwrap();
            assert_eq!(listed, [(group.clone(), until)]);
            let at = crate::store::Condition::OutboundAt {
                peer: peer.clone(),
                group: group.clone(),
                until,
            };
            store.write(Batch::new().when(at)).await.unwrap();
            Write::Outbound { peer, group, until }
        }
        Write::OutboundRoster { peer, group, .. } => {
            let rows = store.outbound_roster(&peer, &group, Sequence(0), page).await;
            Write::OutboundRoster { peer, group, row: rows.unwrap().remove(0) }
        }
        Write::Replica { peer, group, .. } => {
            let replica = store.replica(&peer, &group).await.unwrap().unwrap();
            Write::Replica { peer, group, replica }
        }
        Write::Departure(departure) => {
            let group = departure.group;
            let found = store.departure(&group).await.unwrap().unwrap();
            assert_eq!(store.departures(None, 9).await, Ok(vec![found.clone()]));
            assert_eq!(store.departures(Some(&group), 9).await, Ok(vec![]));
            Write::Departure(found)
        }
        Write::Moves { group, .. } => {
            let moves = store.moves(&group).await.unwrap().unwrap();
            assert_eq!(store.all_moves(None, 9).await, Ok(vec![(group.clone(), moves.clone())]));
            assert_eq!(store.all_moves(Some(&group), 9).await, Ok(vec![]));
            Write::Moves { group, moves }
        }
        Write::RefusedNonce { nonce, .. } => {
            let refused = store.refused_nonce(&nonce).await.unwrap().unwrap();
            assert_eq!(store.refused_nonces(None, 9).await, Ok(vec![(nonce, refused.clone())]));
            assert_eq!(store.refused_nonces(Some(&nonce), 9).await, Ok(vec![]));
            Write::RefusedNonce { nonce, refused }
        }
        Write::DropDeparture(_)
        | Write::DropMoves(_)
        | Write::DropRefusedNonce(_)
        | Write::DropFollowed(_)
        | Write::DropFollowedMember { .. }
        | Write::OutboundDone { .. }
        | Write::TrimOutboundRoster { .. }
        | Write::DropReplica { .. }
        | Write::DropSnapshot { .. }
        | Write::DropJoinerInfo { .. }
        | Write::TrimLog { .. }
        | Write::DropGroup(_)
        | Write::DropGroupHead(_)
        | Write::GroupNoticeTaken { .. }
        | Write::InboxTaken { .. }
        | Write::TrimOwn { .. }
        | Write::DropSubscription { .. }
        | Write::DropLeaver { .. }
        | Write::DropQueue(_)
        | Write::DropKeyPackage { .. }
        | Write::DropConsent { .. } => panic!("{write:?} leaves no record"),
    }
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/store").join(format!("{name}.hex"))
}

/// Lines of a key and its value.
fn text(map: &BTreeMap<Vec<u8>, std::sync::Arc<[u8]>>) -> String {
    let mut text = String::new();
    for (key, value) in map {
        writeln!(text, "{} {}", hex::encode(key), hex::encode(value)).unwrap();
    }
    text
}

async fn written_today(write: &Write) -> String {
    let disk = Disk::new();
    let store = disk.open().unwrap();
    store.write(Batch::new().and(write.clone())).await.unwrap();
    drop(store);
    let mut today = String::new();
    disk.tamper(|map| today = text(map));
    today
}

#[tokio::test]
async fn records_of_every_release_still_read() {
    for (name, write) in records() {
        let golden = fs::read_to_string(file(name)).unwrap();
        let disk = Disk::new();
        disk.tamper(|map| {
            for line in golden.lines() {
                let (key, value) = line.split_once(' ').unwrap();
                map.insert(hex::decode(key).unwrap(), hex::decode(value).unwrap().into());
            }
        });
        let found = read_back(&disk.open().unwrap(), &write).await;
        assert_eq!(format!("{found:?}"), format!("{write:?}"), "{name}");
    }
}

/// The end of a membership was once written without its leaver: then nobody is known to have left.
#[tokio::test]
async fn end_of_a_membership_without_its_leaver_still_reads() {
    let disk = Disk::new();
    disk.tamper(|map| {
        for line in fs::read_to_string(file("inbox_close")).unwrap().lines() {
            let (key, value) = line.split_once(' ').unwrap();
            map.insert(hex::decode(key).unwrap(), hex::decode(value).unwrap().into());
        }
    });
    let store = disk.open().unwrap();
    let (key, item) = store.inbox(&client("alice"), ALL).await.unwrap().items.remove(0);
    assert!(matches!((key, item), (InboxKey::Item(_), InboxItem::Close { .. })));
    assert_eq!(store.leavers(&group("golden"), None, 9).await, Ok(vec![]));
}

/// Encoding 1 of log records knew no origin; nothing writes it any more.
#[tokio::test]
async fn log_records_of_encoding_1_still_read() {
    for (name, mut expected) in
        [("log", record(5, 40, 60)), ("log_in_parts", record(6, 3_000, 6_000))]
    {
        expected.feed.origin = None;
        let golden = fs::read_to_string(file(name)).unwrap();
        let disk = Disk::new();
        disk.tamper(|map| {
            for line in golden.lines() {
                let (key, value) = line.split_once(' ').unwrap();
                map.insert(hex::decode(key).unwrap(), hex::decode(value).unwrap().into());
            }
        });
        let store = disk.open().unwrap();
        let found = store.log(&group("golden"), Sequence(0), ALL).await.unwrap();
        assert_eq!(found, [expected.clone()]);
        let found = store.feed(&group("golden"), Sequence(0), ALL).await.unwrap();
        assert_eq!(found, [expected.feed]);
    }
}

/// Encoding 2 of heads knew no link; nothing writes it any more.
#[tokio::test]
async fn group_heads_of_encoding_2_still_read() {
    let mut expected = head("golden", 300, 70_000);
    let proposed = Some(KeyPrint([7; 16]));
    expected.hub_key = Some(KeyStand { key: KeyPrint([6; 16]), proposed });
    let mut deleted = head("golden", 7, 8);
    deleted.status = GroupStatus::Deleted;
    deleted.previous_snapshot = Some(Sequence(3));
    deleted.wake_at = Some(Timestamp(1_700_000_000_000));
    let mut followed = head("golden", 9, 2);
    followed.status = GroupStatus::Followed;
    for (name, expected) in [
        ("group_head2", expected),
        ("group_head2_deleted", deleted),
        ("group_head2_followed", followed),
    ] {
        let disk = Disk::new();
        disk.tamper(|map| {
            for line in fs::read_to_string(file(name)).unwrap().lines() {
                let (key, value) = line.split_once(' ').unwrap();
                map.insert(hex::decode(key).unwrap(), hex::decode(value).unwrap().into());
            }
        });
        let found = disk.open().unwrap().group_head(&group("golden")).await;
        assert_eq!(found, Ok(Some(expected)), "{name}");
    }
}

/// Encoding 1 of heads knew no key of the hub; nothing writes it any more. What is written over it is of today's encoding.
#[tokio::test]
async fn group_heads_of_encoding_1_still_read_and_are_written_anew() {
    let disk = Disk::new();
    disk.tamper(|map| {
        for line in fs::read_to_string(file("group_head")).unwrap().lines() {
            let (key, value) = line.split_once(' ').unwrap();
            map.insert(hex::decode(key).unwrap(), hex::decode(value).unwrap().into());
        }
    });
    let store = disk.open().unwrap();
    let mut expected = head("golden", 300, 70_000);
    assert_eq!(store.group_head(&group("golden")).await, Ok(Some(expected.clone())));
    assert_eq!(store.group_heads(None, 9).await, Ok(vec![expected.clone()]));
    expected.revision += 1;
    expected.hub_key = Some(KeyStand { key: KeyPrint([6; 16]), proposed: None });
    let at = Condition::GroupAt {
        group: group("golden"),
        next_sequence: expected.next_sequence,
        revision: expected.revision - 1,
    };
    let write = Write::GroupHead(expected.clone());
    store.write(Batch::new().when(at).and(write)).await.unwrap();
    assert_eq!(store.group_head(&group("golden")).await, Ok(Some(expected)));
    for name in ["group_head_deleted", "group_head_followed"] {
        let disk = Disk::new();
        disk.tamper(|map| {
            for line in fs::read_to_string(file(name)).unwrap().lines() {
                let (key, value) = line.split_once(' ').unwrap();
                map.insert(hex::decode(key).unwrap(), hex::decode(value).unwrap().into());
            }
        });
        let head = disk.open().unwrap().group_head(&group("golden")).await.unwrap().unwrap();
        assert_eq!(head.hub_key, None, "{name}");
    }
}

/// Encoding 1 of replicas knew no copy beside single requests; nothing writes it any more.
#[tokio::test]
async fn replicas_of_encoding_1_still_read_and_are_replaced() {
    let disk = Disk::new();
    disk.tamper(|map| {
        for line in fs::read_to_string(file("replica")).unwrap().lines() {
            let (key, value) = line.split_once(' ').unwrap();
            map.insert(hex::decode(key).unwrap(), hex::decode(value).unwrap().into());
        }
    });
    let store = disk.open().unwrap();
    let (peer, of) = (domain("b"), group("golden"));
    let kept = crate::store::records::Replica { copy: None, ..replica(300) };
    assert_eq!(store.replica(&peer, &of).await, Ok(Some(kept)));
    let write = Write::Replica { peer: peer.clone(), group: of.clone(), replica: replica(301) };
    store.write(Batch::new().and(write)).await.unwrap();
    assert_eq!(store.replica(&peer, &of).await, Ok(Some(replica(301))));
}

/// Encoding 1 of refused nonces did not say whom they were refused to; nothing writes it any more.
#[tokio::test]
async fn refused_nonces_of_encoding_1_still_read() {
    let disk = Disk::new();
    disk.tamper(|map| {
        for line in fs::read_to_string(file("refused_nonce")).unwrap().lines() {
            let (key, value) = line.split_once(' ').unwrap();
            map.insert(hex::decode(key).unwrap(), hex::decode(value).unwrap().into());
        }
    });
    let store = disk.open().unwrap();
    let (nonce, old) = ([5; 32], RefusedNonce { source: None, ..refused_nonce() });
    assert_eq!(store.refused_nonce(&nonce).await, Ok(Some(old.clone())));
    assert_eq!(store.refused_nonces(None, 9).await, Ok(vec![(nonce, old)]));
}

#[tokio::test]
async fn an_encoding_does_not_change_without_a_new_version() {
    for (name, write) in records() {
        let golden = fs::read_to_string(file(name)).unwrap();
        assert!(written_today(&write).await == golden, "{name} is written differently");
    }
}

#[tokio::test]
#[ignore = "writes into the source tree"]
async fn writes_golden_files_that_are_missing() {
    for (name, write) in records() {
        let path = file(name);
        if !path.exists() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, written_today(&write).await).unwrap();
        }
    }
}
