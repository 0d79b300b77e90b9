//! Where messages of other providers wait until it is known whose they are, and how many of each are at work.
//!
//! A message says who sent it, and anybody can say that. Where the keys of that domain are in memory it is judged at once;
//! else it waits for them, and for how long is up to that domain. Such messages wait in two rooms that do not take each
//! other's places: one for providers that this one has dealings with, one for strangers. In both a domain has a share, so
//! whatever is invented, one name cannot fill a room, and invented names leave the acquainted theirs.
//!
//! Deliberately absent: who is acquainted (`federation`), and the limits of rate.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::SemaphorePermit;

use super::{front::busy, permits::Permits};
use crate::{
    federation::Familiarity,
    wire::{
        ds::{Detail, DsError},
        ids::Domain,
    },
};

/// How many requests of each provider are being worked on. Bounded by those in all.
#[derive(Debug)]
pub struct Places {
    taken: Arc<Mutex<HashMap<Domain, usize>>>,
    per_peer_max: AtomicUsize,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Place {
    of: Arc<Mutex<HashMap<Domain, usize>>>,
    peer: Domain,
}

impl Places {
    pub fn new(per_peer_max: usize) -> Self {
        Self { taken: Arc::default(), per_peer_max: AtomicUsize::new(per_peer_max) }
    }

    /// From now on each has so many, for what comes.
    pub fn resize(&self, per_peer_max: usize) {
        self.per_peer_max.store(per_peer_max, Ordering::Relaxed);
    }

    pub fn take(&self, peer: &Domain) -> Result<Place, DsError> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(peer.clone()).or_default();
        if *count >= self.per_peer_max.load(Ordering::Relaxed) {
            return Err(DsError::Unavailable {
                detail: Detail::truncated("too many requests of this provider at once; retry"),
                retry_after_ms: 500,
            });
        }
        *count += 1;
        Ok(Place { of: Arc::clone(&self.taken), peer: peer.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

/// Where a message waits until it is opened.
#[derive(Debug)]
pub struct Doors {
    known: Places,
    acquainted: Room,
    strangers: Room,
}

/// Places in all, and of each domain.
#[derive(Debug)]
struct Room {
    all: Permits,
    each: Places,
}

/// A place before the door, until it is dropped.
#[derive(Debug)]
pub struct Waits<'a> {
    _place: Option<Place>,
    _permit: Option<SemaphorePermit<'a>>,
}

impl Doors {
    /// For a listener of so many requests at work, in all and of one provider.
    pub fn new(requests_max: usize, per_peer_max: usize) -> Self {
        let room = || Room::new(room_of(requests_max));
        Self { known: Places::new(per_peer_max), acquainted: room(), strangers: room() }
    }

    /// From now on as if made for so many.
    pub fn resize(&self, requests_max: usize, per_peer_max: usize) {
        self.known.resize(per_peer_max);
        for room in [&self.acquainted, &self.strangers] {
            let places = room_of(requests_max);
            room.all.resize(places);
            room.each.resize(share_of(places));
        }
    }

    /// A place for a message by whom it says that it is from; none where it does not begin as one.
    pub fn enter(&self, sender: Option<(&Domain, Familiarity)>) -> Result<Waits<'_>, DsError> {
        match sender {
            Some((sender, Familiarity::Known)) => {
                let place = self.known.take(sender)?;
                Ok(Waits { _place: Some(place), _permit: None })
            }
            Some((sender, Familiarity::Acquainted)) => self.acquainted.enter(Some(sender)),
            Some((sender, Familiarity::Stranger)) => self.strangers.enter(Some(sender)),
            None => self.strangers.enter(None),
        }
    }
}

impl Room {
    fn new(places: usize) -> Self {
        Self { all: Permits::new(places), each: Places::new(share_of(places)) }
    }

    fn enter(&self, sender: Option<&Domain>) -> Result<Waits<'_>, DsError> {
        let place = sender.map(|sender| self.each.take(sender)).transpose()?;
        let permit = self.all.try_acquire().map_err(|_| busy())?;
        Ok(Waits { _place: place, _permit: Some(permit) })
    }
}

fn room_of(requests_max: usize) -> usize {
    (requests_max / ROOM_PART).max(1)
}

fn share_of(places: usize) -> usize {
    (places / SHARE_PART).max(1)
}

/// A room has one in so many of the places that requests are worked on in.
const ROOM_PART: usize = 4;
/// One domain has one in so many places of a room.
const SHARE_PART: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(name: &str) -> Domain {
        Domain::new(name).unwrap()
    }

    #[test]
    fn one_provider_at_its_bound_leaves_room_for_others_and_gets_its_places_back() {
        let places = Places::new(2);
        let (a, b) = (domain("a.example"), domain("b.example"));
        let first = places.take(&a).unwrap();
        let second = places.take(&a).unwrap();
        let error = places.take(&a).err().unwrap();
        assert!(matches!(error, DsError::Unavailable { retry_after_ms: 500, .. }));
        let other = places.take(&b).unwrap();
        drop(first);
        let again = places.take(&a).unwrap();
        drop((second, other, again));
        assert!(places.taken.lock().unwrap().is_empty(), "nobody is remembered for nothing");
    }

    #[test]
    fn invented_names_fill_the_room_of_strangers_and_no_other() {
        let doors = Doors::new(64, 8);
        let names: Vec<Domain> = (0..40).map(|n| domain(&format!("x{n}.example"))).collect();
        let flood: Vec<_> =
            names.iter().map(|name| doors.enter(Some((name, Familiarity::Stranger)))).collect();
        assert_eq!(flood.iter().filter(|place| place.is_ok()).count(), 16);
        let new = domain("new.example");
        let refused = doors.enter(Some((&new, Familiarity::Stranger))).unwrap_err();
        assert!(matches!(refused, DsError::Unavailable { .. }));
        assert!(doors.enter(None).is_err(), "what is nobody's is a stranger's");
        let (b, c) = (domain("b.example"), domain("c.example"));
        let acquainted = doors.enter(Some((&b, Familiarity::Acquainted))).unwrap();
        let known = doors.enter(Some((&c, Familiarity::Known))).unwrap();
        drop((flood, acquainted, known));
        assert!(doors.strangers.each.taken.lock().unwrap().is_empty());
        assert!(doors.enter(Some((&new, Familiarity::Stranger))).is_ok());
    }

    #[test]
    fn one_name_has_a_share_of_a_room() {
        let doors = Doors::new(64, 8);
        let (forged, other) = (domain("forged.example"), domain("other.example"));
        for familiarity in [Familiarity::Stranger, Familiarity::Acquainted] {
            let flood: Vec<_> =
                (0..40).map(|_| doors.enter(Some((&forged, familiarity)))).collect();
            assert_eq!(flood.iter().filter(|place| place.is_ok()).count(), 2, "{familiarity:?}");
            assert!(doors.enter(Some((&other, familiarity))).is_ok(), "{familiarity:?}");
        }
        // the smallest listener has one for each
        let doors = Doors::new(1, 1);
        let place = doors.enter(Some((&forged, Familiarity::Stranger))).unwrap();
        assert!(doors.enter(Some((&other, Familiarity::Stranger))).is_err());
        assert!(doors.enter(Some((&other, Familiarity::Acquainted))).is_ok());
        drop(place);
    }
}
