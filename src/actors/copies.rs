//! The copies of feeds in memory: whose turn it is to change one, what of its roster need not be read for every item, and
//! what each hub has kept here.
//!
//! Nothing here is more than a cache: what hubs have kept is added up from the heads in the store before the first copy
//! changes, and followed from there. Deliberately absent: the rules (`queue::followed`), and what is done about a hub at
//! its bounds (`guest`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::{OnceCell, Semaphore};

use super::{hints::locked, turns::Turns};
use crate::{
    queue::followed::MEMBER_BYTES,
    store::{
        SharedStore, StoreError,
        records::{FollowedMember, GroupHead, GroupStatus},
        unless_damaged,
    },
    wire::ids::{Domain, GroupId},
};

/// What hubs may have kept here, each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubBounds {
    pub copies_max: usize,
    pub bytes_max: u64,
}

/// Who changes a copy now, what is known of it, and how much there is.
#[derive(Debug)]
pub struct Copies {
    turns: Turns<GroupId>,
    rosters: Mutex<Rosters>,
    held: OnceCell<Mutex<HashMap<Domain, Held>>>,
    /// Hubs that are told of clients that are gone, at a time.
    pub telling: Arc<Semaphore>,
    /// Groups all of whose members are in memory, at a time.
    pub large: Semaphore,
}

impl Default for Copies {
    fn default() -> Self {
        Self {
            turns: Turns::default(),
            rosters: Mutex::default(),
            held: OnceCell::new(),
            telling: Arc::new(Semaphore::new(TELLING_MAX)),
            large: Semaphore::new(LARGE_MAX),
        }
    }
}

/// What a copy's roster comes to for items that do not change it.
#[derive(Debug, Clone, Default)]
pub struct KnownRoster {
    /// Members whose queues are gone.
    pub gone: Vec<FollowedMember>,
    /// Members with a live queue.
    pub readers: usize,
}

#[derive(Debug, Default)]
struct Rosters {
    /// Each as of one revision of the group's head.
    known: HashMap<GroupId, (u64, KnownRoster)>,
    /// In all of them.
    members: usize,
}

/// What one hub has kept here.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    copies: usize,
    bytes: u64,
    /// Something was refused for want of bytes, or a copy, since the last sweep.
    lacked_bytes: bool,
    lacked_copies: bool,
}

/// How much more, or less, a hub has kept here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Grown {
    pub bytes: i64,
    pub members: i64,
}

impl Copies {
    pub fn turn(&self, group: &GroupId) -> Arc<tokio::sync::Mutex<()>> {
        self.turns.of(group)
    }

    pub fn roster_of(&self, group: &GroupId, revision: u64) -> Option<KnownRoster> {
        let rosters = locked(&self.rosters);
        let (at, roster) = rosters.known.get(group)?;
        (*at == revision).then(|| roster.clone())
    }

    /// Beyond [`ROSTERS_MAX`] groups, or [`GONE_MAX`] members in them, everything is forgotten, and read again as it is
    /// needed.
    pub fn remember(&self, group: &GroupId, revision: u64, roster: KnownRoster) {
        let mut rosters = locked(&self.rosters);
        rosters.forget(group);
        if rosters.known.len() >= ROSTERS_MAX || rosters.members + roster.gone.len() > GONE_MAX {
            *rosters = Rosters::default();
        }
        rosters.members += roster.gone.len();
        rosters.known.insert(group.clone(), (revision, roster));
    }

    /// Adds up what is here of hubs, once: to be called before a copy changes.
    ///
    /// # Errors
    /// [`StoreError`]: then the next call tries again.
    pub async fn load(&self, store: &SharedStore, own: &Domain) -> Result<(), StoreError> {
        self.held.get_or_try_init(|| add_up(store, own)).await.map(|_| ())
    }

    /// A place for one more copy of `hub`; none where it has as many as it may.
    pub fn place(&self, hub: &Domain, bounds: HubBounds) -> Option<Place<'_>> {
        self.with(hub, |held| {
            let fits = held.copies < bounds.copies_max;
            held.copies += usize::from(fits);
            fits
        })
        .then(|| Place { of: self, hub: hub.clone(), kept: false })
    }

    pub fn bytes_left(&self, hub: &Domain, bounds: HubBounds) -> u64 {
        bounds.bytes_max.saturating_sub(self.with(hub, |held| held.bytes))
    }

    /// A copy was refused. Whether it was the first since the last sweep.
    pub fn lacks_copies(&self, hub: &Domain) -> bool {
        !self.with(hub, |held| std::mem::replace(&mut held.lacked_copies, true))
    }

    /// Something was refused for want of bytes. Whether it was the first since the last sweep.
    pub fn lacks_bytes(&self, hub: &Domain) -> bool {
        !self.with(hub, |held| std::mem::replace(&mut held.lacked_bytes, true))
    }

    /// What became of a copy that stays.
    pub fn grew(&self, hub: &Domain, grown: Grown) {
        let members = i64::try_from(MEMBER_BYTES).unwrap_or(i64::MAX).saturating_mul(grown.members);
        let by = grown.bytes.saturating_add(members);
        self.with(hub, |held| held.bytes = held.bytes.saturating_add_signed(by));
    }

    /// A copy with a log of `log_bytes` and so many members counts for another hub from now on.
    pub fn moved(&self, had: &Domain, has: &Domain, log_bytes: u64, members: u64) {
        if had == has {
            return;
        }
        let bytes = log_bytes.saturating_add(members.saturating_mul(MEMBER_BYTES));
        self.with(had, |held| {
            held.copies = held.copies.saturating_sub(1);
            held.bytes = held.bytes.saturating_sub(bytes);
        });
        self.with(has, |held| {
            held.copies += 1;
            held.bytes = held.bytes.saturating_add(bytes);
        });
    }

    /// A copy is gone, with all that it took.
    pub fn dropped(&self, hub: &Domain, group: &GroupId, grown: Grown) {
        self.grew(hub, grown);
        self.with(hub, |held| held.copies = held.copies.saturating_sub(1));
        locked(&self.rosters).forget(group);
    }

    /// What each copy of those hubs may keep that had no room since this was asked last: together they take half of what
    /// their hub may have kept here.
    pub fn shares(&self, bounds: HubBounds) -> HashMap<Domain, u64> {
        let Some(held) = self.held.get() else { return HashMap::new() };
        let mut held = locked(held);
        let mut shares = HashMap::new();
        held.retain(|hub, held| {
            if std::mem::take(&mut held.lacked_bytes) {
                let copies = u64::try_from(held.copies.max(1)).unwrap_or(u64::MAX);
                shares.insert(hub.clone(), bounds.bytes_max / 2 / copies);
            }
            held.lacked_copies = false;
            held.copies > 0
        });
        shares
    }

    /// Copies and their bytes, of all hubs.
    pub fn totals(&self) -> (usize, u64) {
        let Some(held) = self.held.get() else { return (0, 0) };
        let held = locked(held);
        held.values().fold((0, 0), |(copies, bytes), held| {
            (copies + held.copies, bytes.saturating_add(held.bytes))
        })
    }

    fn with<T>(&self, hub: &Domain, change: impl FnOnce(&mut Held) -> T) -> T {
        match self.held.get() {
            Some(held) => change(locked(held).entry(hub.clone()).or_default()),
            // nothing is counted before it was added up
            None => change(&mut Held::default()),
        }
    }
}

/// A place among a hub's copies; given back where the copy does not come to be.
#[derive(Debug)]
pub struct Place<'a> {
    of: &'a Copies,
    hub: Domain,
    kept: bool,
}

impl Place<'_> {
    /// The copy is there.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.of.with(&self.hub, |held| held.copies = held.copies.saturating_sub(1));
        }
    }
}

impl Rosters {
    fn forget(&mut self, group: &GroupId) {
        if let Some((_, roster)) = self.known.remove(group) {
            self.members -= roster.gone.len();
        }
    }
}

/// Whether `head` is what is here of a group that another provider hosts, one that has moved there included.
pub fn is_copy(head: &GroupHead, own: &Domain) -> bool {
    match head.status {
        GroupStatus::Followed => true,
        GroupStatus::Deleted => head.group.domain() != *own,
        GroupStatus::Active | GroupStatus::Migrating => false,
    }
}

async fn add_up(
    store: &SharedStore,
    own: &Domain,
) -> Result<Mutex<HashMap<Domain, Held>>, StoreError> {
    let mut held: HashMap<Domain, Held> = HashMap::new();
    let mut after: Option<GroupId> = None;
    loop {
        let heads = store.group_heads(after.as_ref(), HEADS_PAGE).await?;
        let Some(last) = heads.last() else { return Ok(Mutex::new(held)) };
        after = Some(last.group.clone());
        for head in heads.iter().filter(|head| is_copy(head, own)) {
            let followed = unless_damaged(store.followed(&head.group).await)?;
            let members = followed.as_ref().map_or(0, |followed| followed.members);
            let hub = followed.map_or_else(|| head.group.domain(), |followed| followed.hub);
            let of_hub = held.entry(hub).or_default();
            of_hub.copies += 1;
            of_hub.bytes = of_hub
                .bytes
                .saturating_add(head.log_bytes)
                .saturating_add(members.saturating_mul(MEMBER_BYTES));
        }
    }
}

/// Groups whose rosters are remembered, and members whose queues are gone in all of these.
const ROSTERS_MAX: usize = 100_000;
const GONE_MAX: usize = 200_000;
const TELLING_MAX: usize = 16;
const LARGE_MAX: usize = 8;
const HEADS_PAGE: usize = 512;
