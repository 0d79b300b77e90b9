//! How many nonces are remembered as refused to each source.
//!
//! Nothing here is more than a count of what is in the store; a sweep counts anew.

use std::{collections::HashMap, sync::Mutex};

use crate::{actors::hints::locked, wire::ids::Domain};

/// Refused nonces by source.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<RefusedCounts>);

pub type RefusedCounts = HashMap<Domain, usize>;

impl Refusals {
    pub fn counts(&self) -> RefusedCounts {
        locked(&self.0).clone()
    }

    /// As many as the store had, `before` being what was counted when it was looked at. What was refused meanwhile it may
    /// have held or not: it counts besides, until the next time.
    pub fn recount(&self, before: &RefusedCounts, found: RefusedCounts) {
        let mut refused = locked(&self.0);
        let meanwhile = std::mem::replace(&mut *refused, found);
        for (source, count) in meanwhile {
            let more = count.saturating_sub(before.get(&source).copied().unwrap_or_default());
            if more > 0 {
                *refused.entry(source).or_default() += more;
            }
        }
    }

    pub fn has_room(&self, source: &Domain, max: usize) -> bool {
        locked(&self.0).get(source).is_none_or(|count| *count < max)
    }

    /// Takes the place of one more, if there is one.
    pub fn take(&self, source: &Domain, max: usize) -> bool {
        let mut refused = locked(&self.0);
        let count = refused.entry(source.clone()).or_default();
        let has_room = *count < max;
        *count += usize::from(has_room);
        has_room
    }
}
