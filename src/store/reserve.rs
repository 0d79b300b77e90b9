//! Room that is left on the store's disk: below it nothing that grows is written, so that a full disk never tears a write.
//!
//! Here: how much is free, and which batches are taken then. What was refused has changed nothing, so this passes by itself
//! when there is room again. Deliberately absent: making room; and a write that fails all the same, which is as any
//! failure ([`writer`](super::writer)).
//!
//! **Rule.** Below `bytes_min` whatever adds messages, snapshots, KeyPackages or devices is refused; acknowledgements, cursors
//! and what drops something go on. Below a quarter of it, nothing is written. Each state ends when an eighth more than its
//! bound is free. It is looked at once in [`LOOK_EVERY`], which a disk must not be able to fill `bytes_min` in.

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{Batch, StoreError, Write, writer::locked};

const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) struct Reserve {
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// 0: nothing is kept free.
    bytes_min: u64,
    free: Option<u64>,
    looked_at: Option<Instant>,
    level: Level,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    #[default]
    Room,
    /// Nothing that grows.
    Low,
    /// Nothing at all.
    Full,
}

impl Reserve {
    /// Of the disk that `folder` is on; until [`Self::keep`] nothing is kept free.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), state: Mutex::default() }
    }

    pub fn keep(&self, bytes_min: u64) {
        *locked(&self.state) = State { bytes_min, ..State::default() };
    }

    /// # Errors
    /// [`StoreError::Full`]
    pub fn admits(&self, batch: &Batch) -> Result<(), StoreError> {
        match self.look() {
            (Level::Room, _) => Ok(()),
            (Level::Low, _) if !grows(batch) => Ok(()),
            (Level::Low | Level::Full, reason) => Err(StoreError::Full(reason)),
        }
    }

    /// Whether what grows is taken; the reason where it is not.
    pub fn room(&self) -> Result<(), String> {
        match self.look() {
            (Level::Room, _) => Ok(()),
            (Level::Low | Level::Full, reason) => Err(reason),
        }
    }

    /// Whether anything is taken.
    pub fn writable(&self) -> Result<(), String> {
        match self.look() {
            (Level::Room | Level::Low, _) => Ok(()),
            (Level::Full, reason) => Err(reason),
        }
    }

    /// Free on the disk, as far as that is known.
    pub fn free_bytes(&self) -> Option<u64> {
        self.look();
        locked(&self.state).free
    }

    fn look(&self) -> (Level, String) {
        let mut state = locked(&self.state);
        if state.bytes_min == 0 {
            return (Level::Room, String::new());
        }
        if state.looked_at.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            let free = rustix::fs::statvfs(&self.folder).ok();
            let free = free.map(|it| it.f_bavail.saturating_mul(it.f_frsize));
            let before = state.level;
            // a disk that does not say how much is free is written to until that fails
            state.level = free.map_or(Level::Room, |free| before.next(free, state.bytes_min));
            (state.free, state.looked_at) = (free, Some(Instant::now()));
            self.tell(before, &state);
        }
        // every write asks, and mostly there is room: nothing is put into words then
        let reason = if state.level == Level::Room { String::new() } else { reason(&state) };
        (state.level, reason)
    }

    fn tell(&self, before: Level, state: &State) {
        if state.level == before {
            return;
        }
        let (folder, free, bytes_min) = (self.folder.display(), state.free, state.bytes_min);
        match state.level {
            Level::Room => tracing::info!(%folder, free, "there is room on the disk again"),
            Level::Low => tracing::error!(
                %folder, free, bytes_min,
                "the disk is nearly full: nothing new is taken until something is freed or store.free_bytes_min is lower"
            ),
            Level::Full => tracing::error!(
                %folder, free, bytes_min,
                "the disk is full: nothing is written until something is freed"
            ),
        }
    }
}

impl Level {
    fn next(self, free: u64, bytes_min: u64) -> Self {
        let bound = |level: Self, bytes: u64| if self >= level { bytes + bytes / 8 } else { bytes };
        if free < bound(Self::Full, bytes_min / 4) {
            Self::Full
        } else if free < bound(Self::Low, bytes_min) {
            Self::Low
        } else {
            Self::Room
        }
    }
}

fn reason(state: &State) -> String {
    let free = state.free.unwrap_or_default();
    format!("the disk has {free} bytes free, and {} are kept", state.bytes_min)
}

/// Whether `batch` adds what stays.
fn grows(batch: &Batch) -> bool {
    batch.writes.iter().any(|write| match write {
        Write::Log { .. }
        | Write::Snapshot { .. }
        | Write::JoinerInfo { .. }
        | Write::Inbox { .. }
        | Write::OutboundRoster { .. }
        | Write::KeyPackage { .. }
        | Write::Consent { .. } => true,
        Write::Device { device, .. } => device.deleted_at.is_none(),
        // small, and most stand with one of the others, or with what they take away
        Write::GroupHead(_)
        | Write::DropSnapshot { .. }
        | Write::DropJoinerInfo { .. }
        | Write::TrimLog { .. }
        | Write::DropGroup(_)
        | Write::DropGroupHead(_)
        | Write::GroupNotice { .. }
        | Write::GroupNoticeTaken { .. }
        | Write::Followed { .. }
        | Write::DropFollowed(_)
        | Write::FollowedMember { .. }
        | Write::DropFollowedMember { .. }
        | Write::Departure(_)
        | Write::DropDeparture(_)
        | Write::Moves { .. }
        | Write::DropMoves(_)
        | Write::RefusedNonce { .. }
        | Write::DropRefusedNonce(_)
        | Write::Outbound { .. }
        | Write::OutboundDone { .. }
        | Write::TrimOutboundRoster { .. }
        | Write::Replica { .. }
        | Write::DropReplica { .. }
        | Write::InboxTaken { .. }
        | Write::QueueHead { .. }
        | Write::Own { .. }
        | Write::TrimOwn { .. }
        | Write::Subscription { .. }
        | Write::DropSubscription { .. }
        | Write::DropLeaver { .. }
        | Write::DropQueue(_)
        | Write::Account { .. }
        | Write::DropKeyPackage { .. }
        | Write::Token { .. }
        | Write::DropConsent { .. }
        | Write::Node { .. } => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_falls_at_its_bound_and_rises_an_eighth_above_it() {
        const MIN: u64 = 800;
        let mut level = Level::Room;
        let mut at = |free| {
            level = level.next(free, MIN);
            level
        };
        assert_eq!(at(800), Level::Room);
        assert_eq!(at(799), Level::Low);
        assert_eq!(at(899), Level::Low);
        assert_eq!(at(900), Level::Room);
        assert_eq!(at(199), Level::Full);
        assert_eq!(at(224), Level::Full);
        assert_eq!(at(225), Level::Low);
        assert_eq!(at(0), Level::Full);
        assert_eq!(at(2_000), Level::Room);
    }

    #[tokio::test]
    async fn what_a_disk_has_no_room_for_is_refused_and_what_frees_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let config = crate::store::StoreConfig {
            engine: "sled".to_owned(),
            folder: folder.path().to_owned(),
            cache_bytes: 1 << 20,
        };
        let store = crate::store::open(&config).unwrap();
        let grows = || {
            let client =
                crate::wire::ids::ClientUri::new("mimi://a.example/d/alice/phone").unwrap();
            let key = crate::store::records::InboxKey::Item([1; 16]);
            let item = crate::store::records::InboxItem::Event { group: None, event: vec![1] };
            Batch::new().and(Write::Inbox { client, key, item })
        };
        let small = || Batch::new().and(Write::Node { name: "n", bytes: vec![1] });
        store.write(grows()).await.unwrap();
        let free = store.stats().disk_free_bytes;
        assert_eq!(free, None, "nothing is kept free");
        // more than there is, but not four times as much
        let all = rustix::fs::statvfs(folder.path()).unwrap();
        store.keep_free(all.f_bavail * all.f_frsize * 2);
        assert!(matches!(store.write(grows()).await, Err(StoreError::Full(_))));
        assert!(store.room().is_err());
        store.write(small()).await.unwrap();
        store.writable().unwrap();
        store.keep_free(u64::MAX);
        assert!(matches!(store.write(small()).await, Err(StoreError::Full(_))));
        assert!(store.writable().is_err());
        store.keep_free(1);
        store.write(grows()).await.unwrap();
        store.room().unwrap();
    }
}
