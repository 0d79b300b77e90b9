//! Room in memory for groups: how many may be there, and for whom they came.
//!
//! A place is held by a group's actor for as long as it lives, so what is counted is what there is, also of those that are
//! leaving. Deliberately absent: who goes for another (`Groups::activate`).

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

use crate::actors::hints::locked;

/// Whose work brings a group into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::actors) enum Work {
    /// A client's or a peer's: where there is no room it is refused.
    Others,
    /// The node's own: where there is no room it waits, and its groups go as soon as they have done what there was to do.
    Own,
}

/// For `active_max` groups, and for as many again that come while others of them have yet to go. Of all these a quarter of
/// `active_max` is kept from others' work: so the node's own, of which there are no more at a time, goes on whatever others do.
#[derive(Debug, Default)]
pub(in crate::actors) struct Room {
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    own: usize,
}

/// Of one group.
#[derive(Debug)]
pub(in crate::actors) struct Place {
    room: Arc<Room>,
    is_own: Arc<AtomicBool>,
}

impl Room {
    /// A place for one more group, where there is one.
    pub fn take(self: &Arc<Self>, work: Work, active_max: usize) -> Option<Place> {
        let mut taken = locked(&self.taken);
        let (all_max, own_max) = (active_max.saturating_mul(2), own_max(active_max));
        let has_room = match work {
            Work::Others => taken.all < all_max.saturating_sub(own_max),
            Work::Own => taken.own < own_max && taken.all < all_max,
        };
        if !has_room {
            return None;
        }
        taken.all += 1;
        taken.own += usize::from(work == Work::Own);
        let is_own = Arc::new(AtomicBool::new(work == Work::Own));
        Some(Place { room: Arc::clone(self), is_own })
    }

    /// Whether some are to go for each that comes.
    pub fn is_tight(&self, active_max: usize) -> bool {
        locked(&self.taken).all >= active_max
    }

    /// Others have asked for a group that came for the node's own work, if it did.
    pub fn hand_over(&self, is_own: &AtomicBool) {
        let mut taken = locked(&self.taken);
        if is_own.swap(false, Ordering::SeqCst) {
            taken.own -= 1;
            self.freed.notify_one();
        }
    }

    /// Until a place may have got free. It may be told to nobody.
    pub async fn is_freed(&self) {
        self.freed.notified().await;
    }
}

impl Place {
    /// Whether nobody but the node itself has asked for the group.
    pub fn is_own(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_own)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = locked(&self.room.taken);
        taken.all -= 1;
        taken.own -= usize::from(self.is_own.swap(false, Ordering::SeqCst));
        self.room.freed.notify_one();
    }
}

/// Groups that are there for the node's own work at a time.
pub(super) fn own_max(active_max: usize) -> usize {
    (active_max / 4).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 16;

    fn fill(room: &Arc<Room>, work: Work) -> Vec<Place> {
        std::iter::from_fn(|| room.take(work, MAX)).collect()
    }

    #[test]
    fn others_leave_room_for_the_nodes_own_work_whoever_comes_first() {
        for own_first in [true, false] {
            let room = Arc::new(Room::default());
            let order =
                if own_first { [Work::Own, Work::Others] } else { [Work::Others, Work::Own] };
            let [first, second] = order.map(|work| fill(&room, work));
            let (own, others) = if own_first { (first, second) } else { (second, first) };
            assert_eq!(own.len(), 4);
            assert_eq!(others.len(), if own_first { 24 } else { 28 });
            drop(own);
            let most = fill(&room, Work::Others).len() + others.len();
            assert_eq!(most, 28);
        }
    }

    #[test]
    fn groups_that_others_have_asked_for_make_no_room_beyond_the_bound() {
        let room = Arc::new(Room::default());
        let others = fill(&room, Work::Others);
        let mut places = fill(&room, Work::Own);
        places.iter().for_each(|place| room.hand_over(&place.is_own()));
        places.iter().for_each(|place| room.hand_over(&place.is_own()));
        assert_eq!(fill(&room, Work::Own).len(), 0, "all is full");
        places.pop();
        assert!(room.take(Work::Others, MAX).is_none(), "what gets free is the node's first");
        assert_eq!(fill(&room, Work::Own).len(), 1);
        drop((others, places));
        assert!(!room.is_tight(1));
        assert_eq!(fill(&room, Work::Own).len(), 4, "and each was counted once");
    }
}
