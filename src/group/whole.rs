//! Whether a group that was loaded is whole: what MLS says of its state by itself. For `mimid verify`, and whoever else doubts.

use super::{GroupState, Hub, Reject, broken, mls::Tree};
use crate::{
    crypto::MlsCrypto,
    group::{Settings, keys::HubKeys},
    rate::GroupRates,
    wire::ids::Domain,
};

impl Hub {
    /// One that reads groups and hosts none: it has no keys.
    #[must_use]
    pub fn for_reading(domain: Domain) -> Self {
        Self {
            settings: Settings::new(domain),
            crypto: MlsCrypto::default(),
            keys: HubKeys::new([]),
            rates: GroupRates::default(),
        }
    }
}

impl GroupState {
    /// Checks the tree against the tree hash of the group's context, with its parent hashes and each leaf's signature, and the
    /// context with the confirmation tag against the GroupInfo that the last committer signed. O(members) signatures.
    ///
    /// # Errors
    /// [`Reject::Broken`] with what is not so.
    pub fn check_whole(&self) -> Result<(), Reject> {
        if self.tree.context().group_id().as_slice() != self.id.as_bytes() {
            return Err(Reject::Broken("its context is another group's".into()));
        }
        if !self.tree.has_its_hash() {
            return Err(Reject::Broken("the tree's hash is not the one in its context".into()));
        }
        let info = self.info()?;
        let imported = Tree::import(&info.ratchet_tree, &info.group_info).map_err(broken)?;
        if imported.epoch() != self.epoch() {
            return Err(Reject::Broken("the GroupInfo is of another epoch".into()));
        }
        Ok(())
    }
}
