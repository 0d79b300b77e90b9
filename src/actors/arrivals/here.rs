//! Which groups came from other providers and are here, so that neither all of these together nor one of them brings more
//! than it may.
//!
//! Nothing here is more than a cache: it is read from the store once, before anything is answered by it, and followed from
//! there. A sweep puts right what a failed write has left unknown.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use tokio::sync::OnceCell;

use super::{put_off::PutOff, refusals::Refusals};
use crate::{
    actors::{hints::locked, moves::MoveLimits},
    store::{
        SharedStore, StoreError,
        records::{Arrival, GroupStatus, Moves},
        unless_damaged,
    },
    wire::ids::{Domain, GroupId},
};

/// Groups that came from elsewhere and are here; not among them one that was deleted, or that came home.
#[derive(Debug, Default)]
pub struct Arrivals {
    here: OnceCell<Mutex<Here>>,
    pub(in crate::actors) refusals: Refusals,
    pub(super) put_off: PutOff,
}

#[derive(Debug)]
struct Here {
    /// This provider.
    own: Domain,
    /// And whom each came from.
    groups: HashMap<GroupId, Domain>,
    of_sources: HashMap<Domain, usize>,
}

/// Why one more may not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// There are as many as may be here.
    Of,
    /// There are as many from this source as may be.
    OfSource,
}

impl Full {
    /// What `source` is told.
    pub fn told(self, source: &Domain) -> String {
        match self {
            Self::Of => "this provider takes no more groups from elsewhere now".to_owned(),
            Self::OfSource => format!("this provider has as many groups from {source} as it takes"),
        }
    }
}

impl Arrivals {
    /// Reads from the store what is here, once.
    ///
    /// # Errors
    /// [`StoreError`]: then the next call tries again.
    pub async fn load(&self, store: &SharedStore, own: &Domain) -> Result<(), StoreError> {
        self.here.get_or_try_init(|| read(store, own)).await.map(|_| ())
    }

    /// Whether `group` could come from `source` now.
    pub fn room(&self, group: &GroupId, source: &Domain, limits: &MoveLimits) -> Result<(), Full> {
        self.here().map_or(Ok(()), |here| here.room(group, source, limits))
    }

    /// A place for `group`; to be asked for when it is loaded.
    pub fn place(
        &self,
        group: &GroupId,
        source: &Domain,
        limits: &MoveLimits,
    ) -> Result<Place<'_>, Full> {
        if let Some(mut here) = self.here() {
            here.room(group, source, limits)?;
            here.put(group, Some(source));
        }
        Ok(Place { of: self, group: group.clone(), kept: false })
    }

    /// The group has gone elsewhere, or was deleted. Of one that is not counted nothing.
    pub fn gone(&self, group: &GroupId) {
        self.put(group, None);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.here().map_or(0, |here| here.groups.len())
    }

    pub fn has(&self, group: &GroupId) -> bool {
        self.here().is_some_and(|here| here.groups.contains_key(group))
    }

    /// The group is here and came from that source, or is not.
    pub fn put(&self, group: &GroupId, source: Option<&Domain>) {
        if let Some(mut here) = self.here() {
            here.put(group, source);
        }
    }

    fn here(&self) -> Option<MutexGuard<'_, Here>> {
        self.here.get().map(locked)
    }
}

impl Here {
    fn room(&self, group: &GroupId, source: &Domain, limits: &MoveLimits) -> Result<(), Full> {
        if self.is_home(group) {
            return Ok(());
        }
        let of_source = self.of_sources.get(source).copied().unwrap_or_default();
        if self.groups.len() >= limits.groups_max {
            Err(Full::Of)
        } else if of_source >= limits.groups_per_source_max {
            Err(Full::OfSource)
        } else {
            Ok(())
        }
    }

    /// Whether it was made here: that one is not from elsewhere, wherever it has been.
    fn is_home(&self, group: &GroupId) -> bool {
        group.domain() == self.own
    }

    fn put(&mut self, group: &GroupId, source: Option<&Domain>) {
        let had = match source {
            Some(_) if self.is_home(group) => None,
            Some(source) => {
                *self.of_sources.entry(source.clone()).or_default() += 1;
                self.groups.insert(group.clone(), source.clone())
            }
            None => self.groups.remove(group),
        };
        let Some(had) = had else { return };
        if let Some(of_source) = self.of_sources.get_mut(&had) {
            *of_source -= 1;
            if *of_source == 0 {
                self.of_sources.remove(&had);
            }
        }
    }
}

/// A place for a group that comes; given back where it does not.
#[derive(Debug)]
pub struct Place<'a> {
    of: &'a Arrivals,
    group: GroupId,
    kept: bool,
}

impl Place<'_> {
    /// The group is here.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.of.gone(&self.group);
        }
    }
}

/// How the group came here, where it did and is here.
///
/// # Errors
/// [`StoreError`]
pub async fn arrival_here(
    store: &SharedStore,
    group: &GroupId,
    moves: Moves,
) -> Result<Option<Arrival>, StoreError> {
    let Some(arrived) = moves.arrived.filter(|arrived| arrived.here) else { return Ok(None) };
    let head = store.group_head(group).await?;
    let is_hosted = head.is_some_and(|head| match head.status {
        GroupStatus::Active | GroupStatus::Migrating => true,
        GroupStatus::Followed | GroupStatus::Deleted => false,
    });
    Ok(is_hosted.then_some(arrived))
}

async fn read(store: &SharedStore, own: &Domain) -> Result<Mutex<Here>, StoreError> {
    let (groups, of_sources) = (HashMap::new(), HashMap::new());
    let mut here = Here { own: own.clone(), groups, of_sources };
    let mut after: Option<GroupId> = None;
    loop {
        let page = store.all_moves(after.as_ref(), PAGE).await?;
        let Some((last, _)) = page.last() else { return Ok(Mutex::new(here)) };
        after = Some(last.clone());
        for (group, moves) in page {
            if let Some(arrived) = unless_damaged(arrival_here(store, &group, moves).await)? {
                here.put(&group, Some(&arrived.source));
            }
        }
    }
}

const PAGE: usize = 256;
