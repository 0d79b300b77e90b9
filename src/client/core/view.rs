//! What a client's state shows: its groups, their members and policies.

use openmls::prelude as mls;
use serde::Serialize;

use super::{
    CoreError, GroupState, Kind, Member, epoch_of,
    identity::client_of,
    records::GroupRecord,
};
use crate::{
    crypto,
    wire::{
        decode,
        ds::FanoutFilter,
        extensions::{GROUP_POLICY, GroupPolicy, Role, USER_KEY, UserKey},
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
        view.policy = policy_of(group.extensions());
        view.authenticator = group.epoch_authenticator().as_slice().to_vec();
        view.members = roster(&group, view.policy.as_ref());
        Ok(view)
    }
}

/// The members of a group whose leaves say who they are, which the hub and every member checked.
pub(super) fn roster(group: &mls::MlsGroup, policy: Option<&GroupPolicy>) -> Vec<MemberView> {
    group
        .members()
        .filter_map(|member| {
            let client = client_of(&member.credential)?;
            let leaf = group.public_group().leaf(member.index)?;
            let user_key_hash = user_key_hash_of(leaf)?;
            Some(MemberView {
                leaf: LeafIndex(member.index.u32()),
                user: client.user(),
                client,
                role: policy.map_or(Role::Member, |policy| role_of(policy, &user_key_hash)),
                user_key_hash,
            })
        })
        .collect()
}

pub(super) fn policy_of(extensions: &mls::Extensions<mls::GroupContext>) -> Option<GroupPolicy> {
    decode(&extensions.unknown(GROUP_POLICY)?.0).ok()
}

pub(super) fn user_key_hash_of(leaf: &mls::LeafNode) -> Option<UserKeyHash> {
    let key: UserKey = decode(&leaf.extensions().unknown(USER_KEY)?.0).ok()?;
    Some(crypto::user_key_hash(key.scheme, &key.user_public_key))
}

pub(super) fn role_of(policy: &GroupPolicy, user: &UserKeyHash) -> Role {
    policy
        .roles
        .iter()
        .find(|entry| entry.user_key_hash == *user)
        .map_or(Role::Member, |entry| entry.role)
}
