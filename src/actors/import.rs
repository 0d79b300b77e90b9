//! An operator brings in a whole group. The rules are in [`crate::group::import`]; here they are given their thread,
//! and what they let through is written as any new group is.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use super::{
    errors::{internal, of_reject},
    node::Node,
};
use crate::{
    group::import,
    wire::{
        ds::DsError,
        ids::{Epoch, GroupId},
        import::GroupImport,
    },
};

/// A group that is here now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub group: GroupId,
    pub epoch: Epoch,
    pub members: usize,
}

impl Node {
    /// Judges a group and makes this node its hub. A group that is here already is refused and not changed, so after
    /// a lost answer the same call says whether it went through.
    ///
    /// # Errors
    /// What is wrong with the group (invalid_group_info, not_authorized, malformed, too_large), invalid_group_id where
    /// it is here already or not of this provider, unavailable.
    pub async fn bring_in(&self, import: GroupImport) -> Result<Imported, DsError> {
        let (hub, now) = (self.hub(), self.clock.now());
        // seconds of work for a group of ten thousand: beside the stagings of large groups, not before them
        let _permit = Arc::clone(&self.groups.cpu).acquire_owned().await;
        let judged = tokio::task::spawn_blocking(move || {
            catch_unwind(AssertUnwindSafe(|| import::judge(&hub, &import, now)))
        });
        let creation = match judged.await {
            Ok(Ok(judged)) => judged.map_err(of_reject)?,
            Ok(Err(_)) | Err(_) => return Err(internal("a rule panicked on an import")),
        };
        let imported = Imported {
            group: creation.state.id().clone(),
            epoch: creation.state.epoch(),
            members: creation.state.members().count(),
        };
        self.import_group(creation).await?;
        tracing::info!(group = %imported.group, members = imported.members, "a group was brought in");
        Ok(imported)
    }
}
