//! Records to store, told apart by what is given.

use crate::{
    migration::source::Phase,
    store::{Batch, Page, Write, records::*},
    wire::{codec::Opaque, ids::*},
};

pub(in crate::store) fn group(name: &str) -> GroupId {
    GroupId::new(format!("mimi://a.example/g/{name:0>22}")).unwrap()
}

pub(in crate::store) fn domain(name: &str) -> Domain {
    Domain::new(format!("{name}.example")).unwrap()
}

pub(in crate::store) fn followed_member(at: u64) -> FollowedMember {
    FollowedMember {
        recipient: RecipientId(at),
        client: at.is_multiple_of(2).then(|| client("alice")),
        gone: at.is_multiple_of(3),
    }
}

pub(in crate::store) fn roster_row(at: u64, size: usize) -> OutboundRoster {
    OutboundRoster { sequence: Sequence(at), opens: at == 1, changes: noise(at, size) }
}

pub(in crate::store) fn replica(acknowledged: u64) -> Replica {
    Replica {
        acknowledged: Sequence(acknowledged),
        acknowledged_at: Timestamp(1_700_000_000_000),
        mode: ReplicaMode::Direct,
        copy: Some(Sequence(acknowledged / 2)),
        set_aside: Some(SetAside {
            since: Timestamp(1_700_000_000_000),
            item: Sequence(acknowledged + 1),
            problem: "invalid_item".to_owned(),
        }),
    }
}

pub(in crate::store) fn departure(name: &str, phase: Phase) -> Departure {
    Departure {
        group: group(name),
        request: RequestKey { sender: vec![0, 0, 0, 0, 3], request_id: RequestId([4; 16]) },
        response: noise(3, 300),
        target: domain("b"),
        frozen_at: Timestamp(1_700_000_000_000),
        phase,
    }
}

pub(in crate::store) fn moves() -> Moves {
    let request = RequestKey { sender: vec![0, 0, 0, 0, 3], request_id: RequestId([4; 16]) };
    let at = Timestamp(1_700_000_000_000);
    Moves {
        chain: noise(2, 200),
        arrived: Some(Arrival {
            nonce: [1; 32],
            hash: [2; 32],
            source: domain("a"),
            at,
            here: true,
            epoch: Epoch(7),
            next_sequence: Sequence(900),
            key: Some(KeyPrint([7; 16])),
            confirmed: false,
        }),
        left: Some(Left {
            request,
            at,
            guests: vec![domain("b"), domain("c")],
            key: KeyPrint([8; 16]),
        }),
    }
}

pub(in crate::store) fn client(name: &str) -> ClientUri {
    ClientUri::new(format!("mimi://a.example/d/{name}/phone")).unwrap()
}

pub(in crate::store) fn user(name: &str) -> UserUri {
    UserUri::new(format!("mimi://a.example/u/{name}")).unwrap()
}

pub(in crate::store) fn head(name: &str, next: u64, revision: u64) -> GroupHead {
    GroupHead {
        group: group(name),
        status: GroupStatus::Active,
        next_sequence: Sequence(next),
        first_sequence: Sequence(1),
        epoch: Epoch(next),
        revision,
        snapshot: Sequence(0),
        previous_snapshot: None,
        created_at: Timestamp(1),
        last_accepted_at: Timestamp(2),
        log_bytes: 3,
        joiner_infos: vec![Epoch(1)],
        wake_at: None,
        hub_key: None,
        last: None,
    }
}

pub(in crate::store) fn record(at: u64, event: usize, change: usize) -> LogRecord {
    LogRecord {
        feed: FeedEntry {
            sequence: Sequence(at),
            accepted_at: Timestamp(at * 10),
            except: Some(RecipientId(at)),
            origin: Some(domain("b")),
            handshake: at.is_multiple_of(2),
            event: noise(at, event),
        },
        change: noise(at + 1, change),
        follows: None,
    }
}

/// `len` bytes that differ from place to place, so that parts in the wrong order are seen.
pub(in crate::store) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

pub(in crate::store) fn own_entry(at: u64) -> OwnEntry {
    OwnEntry {
        sequence: OwnSequence(at),
        accepted_at: Timestamp(at),
        group: at.is_multiple_of(2).then(|| group("g")),
        opens: Some(FeedId(at)),
        event: noise(at, 100),
    }
}

pub(in crate::store) fn subscription(feed: u64) -> Subscription {
    Subscription {
        feed: FeedId(feed),
        group: group("g"),
        recipient: RecipientId(7),
        from: Sequence(3),
        last: Some(Sequence(9)),
        removed: true,
        filters: vec![(Sequence(3), false), (Sequence(5), true)],
        acknowledged: Sequence(2),
        previous: Sequence(1),
    }
}

/// As [`subscription`], each another membership.
pub(in crate::store) fn as_recipient(feed: u64) -> Subscription {
    Subscription { recipient: RecipientId(feed), ..subscription(feed) }
}

pub(in crate::store) fn key_package(name: u8, published_at: u64) -> StoredKeyPackage {
    StoredKeyPackage {
        reference: reference(name),
        connection: false,
        last_resort: name == 0,
        ciphersuite: 1,
        not_after_s: 99,
        published_at: Timestamp(published_at),
        bytes: noise(u64::from(name), 300),
    }
}

pub(in crate::store) fn reference(name: u8) -> KeyPackageRef {
    KeyPackageRef(Opaque::new(vec![name; 32]).unwrap())
}

pub(in crate::store) fn account(revision: u64) -> Account {
    Account {
        revision,
        user_key_scheme: 0x0807,
        user_key: vec![5; 32],
        created_at: Timestamp(1),
        deleted_at: None,
        devices: vec![client("alice")],
    }
}

pub(in crate::store) fn device(queue: u8) -> Device {
    Device {
        key_scheme: 0x0807,
        key: vec![6; 32],
        credential: vec![0, 1, 2],
        queue: [queue; 16],
        created_at: Timestamp(4),
        deleted_at: Some(Timestamp(5)),
    }
}

pub(in crate::store) fn token_record(revision: u64) -> TokenRecord {
    TokenRecord {
        revision,
        client: client("alice"),
        revoked: false,
        bound_to: vec![(Domain::new("b.example").unwrap(), group("g"))],
    }
}

pub(in crate::store) fn gone(name: &str) -> GroupNotice {
    GroupNotice::ClientGone { client: client(name), reason: GoneReason::DeviceDeleted }
}

pub(in crate::store) fn inbox_key(group_name: &str, sequence: u64, index: u32) -> InboxKey {
    InboxKey::Group { group: group(group_name), sequence: Sequence(sequence), index }
}

pub(in crate::store) fn inbox_item(at: u64) -> InboxItem {
    InboxItem::Event { group: None, event: noise(at, 20) }
}

pub(in crate::store) fn queue_head(revision: u64) -> QueueHead {
    QueueHead {
        revision,
        next_own: OwnSequence(4),
        acknowledged_own: OwnSequence(3),
        next_feed: FeedId(2),
        recent: vec![(Timestamp(1_700_000_000_000), [9; 16])],
    }
}

pub(in crate::store) fn log_write(name: &str, record: LogRecord) -> Write {
    Write::Log { group: group(name), record }
}

pub(in crate::store) fn drop_of<T>(key: T, write: impl FnOnce(T) -> Write) -> Batch {
    Batch::new().and(write(key))
}

pub(in crate::store) const ALL: Page = Page { items_max: usize::MAX, bytes_max: usize::MAX };
