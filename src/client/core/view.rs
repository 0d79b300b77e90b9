//! What a client's state shows: its groups, their members and policies.

use openmls::prelude as mls;
use serde::Serialize;

use super::{CoreError, GroupState, Kind, Member, epoch_of, records::GroupRecord};
use crate::{
    policy::{self, LeafProblem, roster::Roster},
    wire::{
        ds::FanoutFilter,
        extensions::{GroupPolicy, Role},
        ids::{ClientUri, Domain, Epoch, GroupId, LeafIndex, UserKeyHash, UserUri},
    },
};

/// A group as this client knows it.
#[derive(Debug, Clone, Serialize)]
pub struct GroupView {
    pub id: GroupId,
    pub name: String,
    pub hub: Domain,
    pub state: GroupState,
    /// None where this client has no state of the group.
    pub epoch: Option<Epoch>,
    pub members: Vec<MemberView>,
    /// Pending proposals.
    pub pending: usize,
    pub muted: bool,
    #[serde(skip)]
    pub policy: Option<GroupPolicy>,
    /// Equal for all members of an epoch, and for nobody else.
    #[serde(skip)]
    pub authenticator: Vec<u8>,
}

#[derive(Debug, Clone, Serialize)]
pub struct MemberView {
    pub leaf: LeafIndex,
    pub client: ClientUri,
    pub user: UserUri,
    pub role: Role,
    #[serde(skip)]
    pub user_key_hash: UserKeyHash,
}

impl Member {
    /// All groups that this client is or was in.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn groups(&self) -> Result<Vec<GroupView>, CoreError> {
        self.home
            .list::<GroupRecord>(Kind::Group, &[], usize::MAX)?
            .into_iter()
            .filter_map(|(key, record)| Some((GroupId::from_bytes(&key).ok()?, record)))
            .map(|(id, record)| self.view(id, &record))
            .collect()
    }

    /// # Errors
    /// [`CoreError::NoSuchGroup`], [`CoreError::Store`]
    pub fn group(&self, id: &GroupId) -> Result<GroupView, CoreError> {
        self.view(id.clone(), &self.record(id)?)
    }

    /// Gives a group a name of this client's own.
    ///
    /// # Errors
    /// [`CoreError::NoSuchGroup`], [`CoreError::Store`]
    pub fn name_group(&self, id: &GroupId, name: &str) -> Result<(), CoreError> {
        self.home.step(|| {
            let mut record = self.record(id)?;
            name.clone_into(&mut record.name);
            self.put_record(id, &record)
        })
    }

    /// The ciphersuite of a group.
    ///
    /// # Errors
    /// [`CoreError::NoSuchGroup`], [`CoreError::Store`]
    pub fn suite_of(&self, id: &GroupId) -> Result<mls::Ciphersuite, CoreError> {
        Ok(self.load(id)?.ciphersuite())
    }

    fn view(&self, id: GroupId, record: &GroupRecord) -> Result<GroupView, CoreError> {
        let mut view = GroupView {
            id,
            name: record.name.clone(),
            hub: record.hub.clone(),
            state: record.state,
            epoch: None,
            members: Vec::new(),
            pending: 0,
            muted: record.filter == FanoutFilter::HandshakeOnly,
            policy: None,
            authenticator: Vec::new(),
        };
        let group = match self.load(&view.id) {
            Ok(group) => group,
            Err(CoreError::NoSuchGroup(_)) => return Ok(view),
            Err(error) => return Err(error),
        };
        view.epoch = Some(epoch_of(&group));
        view.pending = group.pending_proposals().count();
        let policy = policy_of(&group)?;
        view.authenticator = group.epoch_authenticator().as_slice().to_vec();
        view.members = roster_of(&group)?
            .iter()
            .map(|(leaf, identity)| MemberView {
                leaf,
                client: identity.client.clone(),
                user: identity.client.user(),
                role: policy::role_of(&policy, &identity.user),
                user_key_hash: identity.user.clone(),
            })
            .collect();
        view.policy = Some(policy);
        Ok(view)
    }
}

/// Everyone in the group, as the leaves say, which were checked when they came in.
pub(super) fn roster_of(group: &mls::MlsGroup) -> Result<Roster, CoreError> {
    let leaves = group
        .public_group()
        .treesync()
        .full_leaves()
        .map(|(index, leaf)| Ok((LeafIndex(index.u32()), policy::leaf::trusted(leaf)?)))
        .collect::<Result<Vec<_>, LeafProblem>>()
        .map_err(CoreError::mls)?;
    Roster::of(leaves).map_err(CoreError::mls)
}

pub(super) fn policy_of(group: &mls::MlsGroup) -> Result<GroupPolicy, CoreError> {
    policy::change::policy_of(group.extensions()).map_err(CoreError::mls)
}
