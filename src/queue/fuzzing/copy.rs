//! What a hub sends of a group to a guest: an honest one's items lost, late and again, with snapshots between them, and what no
//! honest hub sends.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    queue::{
        followed::{self, Room, entry_bytes, follow, trimmed},
        followed_world::*,
    },
    store::records::InboxItem,
    wire::{
        codec::{decode, encode},
        ids::{Sequence, Timestamp},
        queueing::{DeliveryItem, DeliveryProblem, QueueEvent, RosterChange},
    },
};

const STEPS_MAX: usize = 64;

/// The first byte says what kind of hub it is. `measured` is given how many bytes of items and members there are, and the work
/// that they make.
///
/// # Panics
/// Where what is refused changes something, or the copy is not what was accepted.
pub fn copy_sequence(bytes: &[u8], measured: &dyn Fn(usize, &mut dyn FnMut())) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let mut bytes = bytes.iter().copied();
    match kind % 4 {
        0 => honest(&mut bytes),
        1 => repaired(&mut bytes),
        _ => forged(&mut bytes, measured),
    }
}

type Bytes<'a> = std::iter::Copied<std::slice::Iter<'a, u8>>;

fn a_hub(bytes: &mut Bytes<'_>) -> Hub {
    let steps = usize::from(bytes.next().unwrap_or(0) % 40) + 1;
    let step = |byte: u8| (byte & 1 == 1, (byte & 2 == 2).then_some(usize::from(byte >> 2) % 4));
    Hub::of(bytes.take(steps).map(step).chain([(false, None)]))
}

/// Whatever becomes of items on their way, the guest has the beginning of the hub's log.
fn honest(bytes: &mut Bytes<'_>) {
    let hub = a_hub(bytes);
    let mut guest = Guest::default();
    for byte in bytes.take(STEPS_MAX) {
        let (first, count) = (u64::from(byte % 45), usize::from(byte / 45) + 1);
        let there = (first..).take(count).filter(|at| *at <= hub.last());
        let batch =
            there.map(|at| if at < 5 { hub.opening.clone() } else { hub.at(at).clone() }).collect();
        let before = guest.next();
        for failure in guest.take(batch) {
            let expected = [DeliveryProblem::UnknownFeed, DeliveryProblem::Gap];
            assert!(expected.contains(&failure.problem), "{failure:?}");
        }
        assert!(guest.next() >= before);
    }
    guest.take(vec![hub.opening.clone()]);
    check(&guest, &hub);
    let rest = (guest.next()..=hub.last()).map(|at| hub.at(at).clone()).collect();
    assert_eq!(guest.take(rest), vec![]);
    assert_eq!(guest.next(), hub.last() + 1);
    check(&guest, &hub);
}

/// As [`honest`], with snapshots in between.
fn repaired(bytes: &mut Bytes<'_>) {
    let hub = a_hub(bytes);
    let mut guest = Guest::default();
    let mut holes = BTreeSet::new();
    guest.take(vec![hub.opening.clone()]);
    for byte in bytes.take(STEPS_MAX) {
        let at = u64::from(byte >> 1).clamp(5, hub.last());
        if byte & 1 == 0 {
            guest.take(vec![hub.at(at).clone()]);
            continue;
        }
        let number = |number: &u64| u8::try_from(*number).expect("there are few");
        let roster = hub.behind(at).keys().map(|of| add(*of, number(of))).collect();
        let before = guest.next();
        guest.take(vec![snapshot(at + 1, roster)]);
        holes.extend(before..guest.next());
    }
    is_told(&guest, &hub, &holes);
}

fn forged(bytes: &mut Bytes<'_>, measured: &dyn Fn(usize, &mut dyn FnMut())) {
    let mut guest = Guest::default();
    let mut now = NOW;
    let mut room = ROOMY;
    let mut sent: Vec<DeliveryItem> = Vec::new();
    for _ in 0..STEPS_MAX {
        let Some(what) = bytes.next() else { break };
        let mut next = || bytes.next().unwrap_or(0);
        match what % 16 {
            0 => now = now.plus_ms(u64::from(next()) << 12),
            1 => {
                let opens = next() & 1 == 1;
                room = Room { opens, bytes: u64::from(next()) << (next() % 16) };
            }
            2 => trim(&mut guest, usize::from(next() % 8), now),
            3 => {
                let count = usize::from(next() % 4);
                let items = (0..count).map(|_| item_of(&guest, &sent, &mut next)).collect();
                sends(&mut guest, room, items, now, measured);
            }
            _ => {
                let item = item_of(&guest, &sent, &mut next);
                if sent.len() < 16 {
                    sent.push(item.clone());
                }
                let before = guest.clone();
                let taken = sends(&mut guest, room, vec![item.clone()], now, measured);
                if taken {
                    is_within(room, &before, &guest);
                    fits(&item, &before, &guest);
                }
                if !taken {
                    assert_eq!(guest, before, "a refusal changes nothing");
                } else if matches!(item, DeliveryItem::Feed { .. }) {
                    let after = guest.clone();
                    assert!(sends(&mut guest, room, vec![item], now, measured));
                    assert_eq!(guest, after, "a repeat changes nothing");
                }
            }
        }
    }
    for number in 1..=6 {
        is_read(&guest, number);
    }
}

/// Whether all of `items` were taken.
fn sends(
    guest: &mut Guest,
    room: Room,
    items: Vec<DeliveryItem>,
    now: Timestamp,
    measured: &dyn Fn(usize, &mut dyn FnMut()),
) -> bool {
    let mut stored = Some(guest.stored(&items));
    let numbered: Vec<_> = (0..).zip(items.iter().cloned()).collect();
    let bytes: usize = items.iter().map(|item| encode(item).len()).sum();
    measured(bytes + MEMBER_BYTES * guest.members.len(), &mut || {
        let Some(stored) = stored.take() else { return };
        drop(follow(&hub(), &group(), stored, &numbered, tokens(), (&LIMITS, room), now));
    });
    let next = guest.next();
    let failures = guest.take_within(room, items, now);
    assert!(guest.next() >= next, "it never goes back");
    assert!(guest.log.keys().all(|at| at.0 < guest.next()));
    let told = DeliveryProblem::InvalidClientQueueInformation;
    failures.iter().all(|failure| failure.problem == told)
}

/// What was taken had room.
fn is_within(room: Room, before: &Guest, after: &Guest) {
    let bytes = |guest: &Guest| {
        let log = guest.head.as_ref().map_or(0, |head| head.log_bytes);
        log + followed::MEMBER_BYTES * guest.members.len() as u64
    };
    let grown = bytes(after).saturating_sub(bytes(before));
    assert!(grown <= room.bytes, "{grown} in {room:?}");
    let opens = before.head.is_none() && after.head.is_some();
    assert!(room.opens || !opens, "there is no room for one more copy");
}

/// A feed item that was taken is the next one, each of its changes is of one who can be changed so, and nobody is changed twice; or
/// it was known, and changed nothing.
fn fits(item: &DeliveryItem, before: &Guest, after: &Guest) {
    let DeliveryItem::Feed { group_sequence, roster, .. } = item else { return };
    if group_sequence.0 < before.next() {
        return assert_eq!(before, after, "it was known");
    }
    assert_eq!(group_sequence.0, before.next());
    let mut changed = BTreeSet::new();
    for change in roster.iter() {
        let (recipient, is_new) = match change {
            RosterChange::Add { recipient, .. } => (recipient, true),
            RosterChange::Update { recipient, .. } | RosterChange::Remove { recipient } => {
                (recipient, false)
            }
        };
        assert_ne!(before.members.contains_key(recipient), is_new, "{change:?}");
        assert!(changed.insert(*recipient), "{change:?}");
    }
    assert!(changed.len() <= LIMITS.changes_max);
}

/// The log begins behind its `count` oldest entries.
fn trim(guest: &mut Guest, count: usize, now: Timestamp) {
    let Some(head) = guest.head.take() else { return };
    let first = guest.log.keys().nth(count).copied().unwrap_or(head.next_sequence);
    let kept = guest.log.split_off(&first);
    let bytes = guest.log.values().map(entry_bytes).sum();
    guest.log = kept;
    guest.head = Some(trimmed(head, first, bytes, &LIMITS, now));
}

/// What a member's record may count for where allocations are counted.
const MEMBER_BYTES: usize = 64;

fn item_of(guest: &Guest, sent: &[DeliveryItem], next: &mut impl FnMut() -> u8) -> DeliveryItem {
    let expected = guest.next().max(1);
    let sequence = match next() % 8 {
        0..=4 => expected,
        5 => expected + u64::from(next() % 3),
        6 => expected.saturating_sub(u64::from(next())),
        _ => u64::from(next()) << 56 | u64::from(next()),
    };
    let roster = |next: &mut dyn FnMut() -> u8| {
        let count = next() % 4;
        (0..count).map(|_| change(next)).collect::<Vec<_>>()
    };
    let kind = next() % 12;
    match kind {
        0 | 1 => said(sequence),
        2 | 3 => {
            let message = match next() % 5 {
                public @ 0..2 => framed(1, 1 + public, &group()),
                private => framed(2, private - 1, &group()),
            };
            item(sequence, QueueEvent::MlsMessage { message }, roster(next))
        }
        4 => quiet(sequence, roster(next)),
        5 | 6 => snapshot(sequence, roster(next)),
        7 => {
            let event = void(u64::from(next()), u64::from(next()), &group(), u64::from(next()));
            item(sequence, event, roster(next))
        }
        8 => {
            let event = match next() % 8 {
                0 => QueueEvent::GroupDeleted,
                1..=3 => QueueEvent::Removed,
                4 => QueueEvent::Gap { next_available: Sequence(u64::from(next())) },
                5 => QueueEvent::KeyPackagesLow { left: 1 },
                _ => QueueEvent::Welcome { hub_domain: hub(), welcome: welcome(1) },
            };
            item(sequence, event, roster(next))
        }
        _ => {
            // what was sent before, changed on its way
            let at = usize::from(next());
            let Some(old) = sent.get(at % sent.len().max(1)) else { return said(sequence) };
            let mut bytes = encode(old);
            for _ in 0..next() % 4 {
                let at = (usize::from(next()) << 8 | usize::from(next())) % bytes.len();
                bytes[at] ^= next();
            }
            decode(&bytes).unwrap_or_else(|_| old.clone())
        }
    }
}

fn change(next: &mut dyn FnMut() -> u8) -> RosterChange {
    let (recipient, of) = (u64::from(next() % 8), next() % 8);
    match next() % 6 {
        0 | 1 => add(recipient, of),
        2 => invite(recipient, of),
        3 => update(recipient, of),
        4 => remove(recipient),
        _ => {
            let RosterChange::Add { recipient, client_queue_information, filter, .. } =
                add(recipient, of)
            else {
                return remove(recipient);
            };
            let welcome = Some(welcome(usize::from(next() % 3)));
            RosterChange::Add { recipient, client_queue_information, filter, welcome }
        }
    }
}

/// A client gets what is in the log in its order, each feed chained, and nothing else.
fn is_read(guest: &Guest, number: u8) {
    let mut last: BTreeMap<u64, u64> = BTreeMap::new();
    for entry in guest.read(&client(number)) {
        let before = last.insert(entry.feed.0, entry.sequence.0).unwrap_or(0);
        assert_eq!(entry.previous.0, before, "{entry:?}");
        assert!(entry.sequence.0 > before, "{entry:?}");
        match entry.event {
            QueueEvent::Gap { .. } | QueueEvent::Removed | QueueEvent::GroupDeleted => {}
            event => {
                let kept = guest.log.get(&entry.sequence).expect("it was accepted");
                assert_eq!(decode::<QueueEvent>(&kept.event).ok(), Some(event));
            }
        }
    }
    // who is in it has had its feed opened
    let is_in = guest.members.values().any(|member| member.client == Some(client(number)));
    let opened = guest
        .inbox
        .iter()
        .any(|((of, _), item)| *of == client(number) && matches!(item, InboxItem::Open { .. }));
    assert!(!is_in || opened, "client {number}");
}
