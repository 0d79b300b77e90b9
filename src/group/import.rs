//! Bringing in a whole group at any epoch: everything is checked but the lifetimes of its leaves, which matter
//! when a leaf is added and not while it stays. PROTOCOL.md §6 has the same checks.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    policy::{self, leaf::identify},
    wire::{
        extensions::ClientQueueConfig,
        ids::{LeafIndex, Timestamp},
        import::GroupImport,
    },
};

use super::{
    Bind, Creation, GroupState, Hub, Reject, Staged, Step,
    hub::check_group,
    mls::{MlsProblem, Tree, info_parts},
    record::{Change, Kind},
};

/// Judges a group that an operator brings in; whoever writes it binds its queues as of a new group's.
///
/// # Errors
/// [`Reject`] with what is wrong.
pub fn judge(hub: &Arc<Hub>, import: &GroupImport, now: Timestamp) -> Result<Creation, Reject> {
    let id = &import.group_id;
    if id.domain() != hub.settings.hub {
        return Err(Reject::InvalidGroupId(
            "only groups that this provider created can be imported",
        ));
    }
    let invalid = |problem: MlsProblem| Reject::InvalidGroupInfo(problem.to_string());
    let info = info_parts(&import.group_info).map_err(invalid)?;
    let tree = Tree::import(&import.ratchet_tree, &import.group_info).map_err(invalid)?;
    if tree.context().group_id().as_slice() != id.as_bytes() {
        return Err(Reject::InvalidGroupInfo("the GroupInfo is of another group".into()));
    }
    let policy = check_group(hub, &tree, now)?;
    let mut configs: BTreeMap<LeafIndex, &ClientQueueConfig> = BTreeMap::new();
    for member in import.members.iter() {
        if configs.insert(member.leaf_index, &member.client_queue_config).is_some() {
            return Err(Reject::Malformed(format!("leaf {} is there twice", member.leaf_index)));
        }
    }
    let (mut members, mut binds) = (Vec::new(), Vec::new());
    let mut admins = 0;
    for (leaf, node) in tree.leaves() {
        let identity = identify(node, &policy.credential_types)
            .map_err(|problem| Reject::InvalidGroupInfo(problem.to_string()))?;
        let config = configs
            .remove(&leaf)
            .ok_or_else(|| Reject::Malformed(format!("leaf {leaf} has no queue")))?;
        if config.domain != identity.client.domain() {
            return Err(Reject::NotAuthorized(format!(
                "the queue of {} must be at its own provider",
                identity.client
            )));
        }
        let role = policy::role_of(&policy, &identity.user);
        admins += usize::from(role == crate::wire::extensions::Role::Admin);
        binds.push(Bind {
            client: identity.client.clone(),
            user: identity.user.clone(),
            config: config.clone(),
            key_package: None,
            pending: false,
        });
        members.push((leaf, identity.client, config.clone()));
    }
    if let Some(leaf) = configs.keys().next() {
        return Err(Reject::Malformed(format!("there is no leaf {leaf} in the tree")));
    }
    if admins == 0 {
        return Err(Reject::InvalidGroupInfo("no admin is in the group".into()));
    }
    if members.len() > hub.settings.members_max {
        return Err(Reject::TooMany { what: "members", limit: hub.settings.members_max });
    }
    let mut state = GroupState::found(hub, id.clone(), tree, info, members, now)?;
    let staged = Staged {
        at: now,
        steps: vec![Step::quiet(Change { request: None, sender: None, kind: Kind::Created })],
        binds: Vec::new(),
        renew_hub_proposals: false,
        answered: true,
    };
    let effects = state.merge(staged)?;
    Ok(Creation { state, effects, binds })
}
