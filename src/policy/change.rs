//! What a commit or a proposal does, in the terms that [`super::judge`] speaks: read from openmls' staged commit
//! on the server and on the client alike.

use openmls::prelude::{
    Extension, Extensions, ExternalSender, GroupContext, LeafNode, Proposal, QueuedProposal,
    Sender, StagedCommit,
};
use tls_codec::DeserializeBytes;

use crate::wire::{
    codec::{Raw, decode, encode},
    extensions::{GROUP_POLICY, GroupPolicy, JoinProof, PublicKey},
    ids::LeafIndex,
};

use super::keys::{Unusable, check_key_package, check_leaf};
use super::leaf::{LeafIdentity, LeafProblem, identify, identify_again};
use super::roster::{Roster, RosterChange};

/// Whose act it is: the right to a proposal is its sender's, whoever commits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Author {
    Leaf(LeafIndex),
    /// By a proposal or an external commit of its own.
    Newcomer {
        proof: Option<JoinProof>,
    },
    /// The Delivery Service as external sender.
    Hub,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Add(Box<LeafIdentity>),
    /// By external commit.
    Join(Box<LeafIdentity>),
    /// By external commit that replaces the client's own leaf.
    Resync(Box<LeafIdentity>),
    Remove(LeafIndex),
    /// SelfRemove.
    Leave(LeafIndex),
    Update(LeafIndex),
    Policy(Box<GroupPolicy>),
    /// The hub's external sender is replaced, the policy stays.
    HubKey,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    pub author: Author,
    pub what: What,
}

/// Why what a commit does cannot be told, or is never allowed whatever the policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeProblem {
    #[error(transparent)]
    Leaf(#[from] LeafProblem),
    #[error(transparent)]
    Key(#[from] Unusable),
    #[error("proposals of type {0:#06x} are refused here: {1}")]
    Refused(u16, &'static str),
    #[error(
        "an external commit may remove only the leaf that it replaces, and must keep its client, user and key"
    )]
    BadResync,
    #[error("the new GroupContext {0}")]
    Context(&'static str),
    #[error("a proposal has a sender that cannot send it")]
    Sender,
}

/// What a commit does to the group.
#[derive(Debug, Clone)]
pub struct CommitChange {
    pub acts: Vec<Act>,
    /// For [`Roster::check`]; leaf indices of added leaves are filled in by who knows the tree.
    pub updated: Vec<(LeafIndex, LeafIdentity)>,
    pub removed: Vec<LeafIndex>,
    pub added: Vec<LeafIdentity>,
    /// The newcomer of an external commit.
    pub joined: Option<LeafIdentity>,
    /// The leaf that a resync replaces.
    pub resynced: Option<LeafIndex>,
    pub policy: Option<GroupPolicy>,
}

impl CommitChange {
    /// The change of the roster, where the tree is not at hand: added leaves get indices that no tree has.
    /// Good for [`Roster::check`], not for [`Roster::apply`].
    #[must_use]
    pub fn for_check(&self) -> RosterChange {
        let mut free = u32::MAX;
        let mut place = |identity: &LeafIdentity| {
            free -= 1;
            (LeafIndex(free), identity.clone())
        };
        RosterChange {
            updated: self.updated.clone(),
            removed: self.removed.clone(),
            added: self.added.iter().chain(self.joined.as_ref()).map(&mut place).collect(),
        }
    }
}

/// Reads what `staged` does. `sender` is the commit's, `proof` the newcomer's JoinProof from the commit's
/// `authenticated_data`, `context` and `policy` those before it.
///
/// # Errors
/// [`ChangeProblem`] for what is never allowed (ReInit, PSK, custom proposals, a GroupContext that loses what must
/// stay, a bad leaf).
pub fn of_commit(
    staged: &StagedCommit,
    sender: &Sender,
    proof: Option<JoinProof>,
    roster: &Roster,
    context: &GroupContext,
    policy: &GroupPolicy,
) -> Result<CommitChange, ChangeProblem> {
    let types = &policy.credential_types;
    let mut change = CommitChange {
        acts: Vec::new(),
        updated: Vec::new(),
        removed: Vec::new(),
        added: Vec::new(),
        joined: None,
        resynced: None,
        policy: None,
    };
    let external = matches!(sender, Sender::NewMemberCommit);
    // who commits several Removes with openmls has them in an order of chance: what comes of them must not hang on it
    let mut proposals: Vec<&QueuedProposal> = staged.queued_proposals().collect();
    proposals.sort_by_key(|queued| leaf_of(queued));
    for queued in proposals {
        let what = match queued.proposal() {
            // in an external commit this is the Remove of the leaf that the newcomer replaces
            Proposal::Remove(remove)
                if external && matches!(queued.sender(), Sender::NewMemberCommit) =>
            {
                if change.resynced.replace(LeafIndex(remove.removed().u32())).is_some() {
                    return Err(ChangeProblem::BadResync);
                }
                continue;
            }
            Proposal::ExternalInit(_) if external => continue,
            _ => of_proposal(queued, roster, context, policy)?,
        };
        match &what.what {
            What::Add(identity) => change.added.push(identity.as_ref().clone()),
            What::Remove(leaf) | What::Leave(leaf) => {
                if !change.removed.contains(leaf) {
                    change.removed.push(*leaf);
                }
            }
            What::Update(leaf) => {
                if let Proposal::Update(update) = queued.proposal() {
                    change
                        .updated
                        .push((*leaf, renewed(roster, *leaf, update.leaf_node(), types)?));
                }
            }
            What::Policy(new) => change.policy = Some(new.as_ref().clone()),
            What::Join(_) | What::Resync(_) | What::HubKey => {}
        }
        change.acts.push(what);
    }
    // an Update of a leaf that is removed as well does nothing
    let removed = change.removed.clone();
    change.updated.retain(|(leaf, _)| !removed.contains(leaf));
    if let Some(path) = staged.update_path_leaf_node() {
        match sender {
            Sender::Member(leaf) => {
                let leaf = LeafIndex(leaf.u32());
                change.updated.retain(|(updated, _)| *updated != leaf);
                change.updated.push((leaf, renewed(roster, leaf, path, types)?));
            }
            Sender::NewMemberCommit => {
                let identity = identify(path, types)?;
                joined(&mut change, identity, roster, proof)?;
            }
            Sender::External(_) | Sender::NewMemberProposal => return Err(ChangeProblem::Sender),
        }
    }
    Ok(change)
}

/// The leaf that is no more, or another one, behind a proposal.
fn leaf_of(queued: &QueuedProposal) -> Option<u32> {
    match (queued.proposal(), queued.sender()) {
        (Proposal::Remove(remove), _) => Some(remove.removed().u32()),
        (Proposal::Update(_) | Proposal::SelfRemove, Sender::Member(leaf)) => Some(leaf.u32()),
        _ => None,
    }
}

/// Reads what one proposal does.
///
/// # Errors
/// As [`of_commit`].
pub fn of_proposal(
    queued: &QueuedProposal,
    roster: &Roster,
    context: &GroupContext,
    policy: &GroupPolicy,
) -> Result<Act, ChangeProblem> {
    let types = &policy.credential_types;
    let author = match queued.sender() {
        Sender::Member(leaf) => Author::Leaf(LeafIndex(leaf.u32())),
        Sender::External(_) => Author::Hub,
        // the proof of a new_member_proposal stands in its authenticated_data; who has it puts it in
        Sender::NewMemberProposal | Sender::NewMemberCommit => Author::Newcomer { proof: None },
    };
    let what = match queued.proposal() {
        Proposal::Add(add) => {
            let identity = identify(add.key_package().leaf_node(), types)?;
            check_key_package(context.ciphersuite(), add.key_package())?;
            What::Add(Box::new(identity))
        }
        Proposal::Remove(remove) => {
            let leaf = LeafIndex(remove.removed().u32());
            if roster.get(leaf).is_none() {
                return Err(LeafProblem::NoSuchLeaf(leaf).into());
            }
            What::Remove(leaf)
        }
        Proposal::Update(update) => match author {
            Author::Leaf(leaf) => {
                renewed(roster, leaf, update.leaf_node(), types)?;
                check_leaf(context.ciphersuite(), update.leaf_node())?;
                What::Update(leaf)
            }
            Author::Newcomer { .. } | Author::Hub => return Err(ChangeProblem::Sender),
        },
        Proposal::SelfRemove => match author {
            Author::Leaf(leaf) => What::Leave(leaf),
            Author::Newcomer { .. } | Author::Hub => return Err(ChangeProblem::Sender),
        },
        Proposal::GroupContextExtensions(new) => {
            let after = policy_of(new.extensions())?;
            if author == Author::Hub && !is_only_a_new_key(context.extensions(), new.extensions()) {
                return Err(ChangeProblem::Context(
                    "is the hub's and does other things than replace its own key",
                ));
            }
            what_must_stay(context, new.extensions(), &after, policy)?
        }
        Proposal::PreSharedKey(_) => {
            return Err(ChangeProblem::Refused(4, "a pre-shared key locks out those who lack it"));
        }
        Proposal::ReInit(_) => {
            return Err(ChangeProblem::Refused(5, "create a new group and add its members"));
        }
        Proposal::ExternalInit(_) => {
            return Err(ChangeProblem::Refused(6, "it belongs into an external commit"));
        }
        Proposal::Custom(custom) => {
            return Err(ChangeProblem::Refused(custom.proposal_type(), "the type is unknown here"));
        }
    };
    Ok(Act { author, what })
}

/// The policy in a GroupContext's extensions.
///
/// # Errors
/// [`ChangeProblem::Context`]
pub fn policy_of(extensions: &Extensions<GroupContext>) -> Result<GroupPolicy, ChangeProblem> {
    let bytes = extensions
        .unknown(GROUP_POLICY)
        .ok_or(ChangeProblem::Context("lacks the group_policy extension (0xF1A3)"))?;
    decode(&bytes.0).map_err(|_| ChangeProblem::Context("has a malformed group_policy"))
}

/// What a GroupContextExtensions proposal must keep, and which of its two kinds it is.
fn what_must_stay(
    context: &GroupContext,
    new: &Extensions<GroupContext>,
    new_policy: &GroupPolicy,
    old_policy: &GroupPolicy,
) -> Result<What, ChangeProblem> {
    let (Some(old_required), Some(new_required)) =
        (context.extensions().required_capabilities(), new.required_capabilities())
    else {
        return Err(ChangeProblem::Context("lacks required_capabilities"));
    };
    let keeps = old_required
        .extension_types()
        .iter()
        .all(|t| new_required.extension_types().contains(t))
        && old_required.proposal_types().iter().all(|t| new_required.proposal_types().contains(t))
        && old_required
            .credential_types()
            .iter()
            .all(|t| new_required.credential_types().contains(t));
    if !keeps {
        return Err(ChangeProblem::Context(
            "drops some of required_capabilities, which may only grow",
        ));
    }
    let (Some(old_senders), Some(new_senders)) =
        (context.extensions().external_senders(), new.external_senders())
    else {
        return Err(ChangeProblem::Context("drops external_senders, which names the hub"));
    };
    if new_senders.len() != 1 {
        return Err(ChangeProblem::Context("must name exactly one external sender, the hub"));
    }
    if old_senders == new_senders {
        return Ok(What::Policy(Box::new(new_policy.clone())));
    }
    if new_policy != old_policy {
        return Err(ChangeProblem::Context("changes the hub and the policy at once"));
    }
    Ok(What::HubKey)
}

/// Whether `new` is `old` but for the key of the one external sender: all that a hub may propose of a GroupContext.
fn is_only_a_new_key(old: &Extensions<GroupContext>, new: &Extensions<GroupContext>) -> bool {
    let (Some(old_sender), Some(new_sender)) = (the_sender(old), the_sender(new)) else {
        return false;
    };
    let same = |(old, new): (&Extension, &Extension)| match (old, new) {
        (Extension::ExternalSenders(_), Extension::ExternalSenders(_)) => true,
        (old, new) => old == new,
    };
    old.iter().count() == new.iter().count()
        && old.iter().zip(new.iter()).all(same)
        && old_sender.credential == new_sender.credential
        && old_sender.key != new_sender.key
}

/// The key of the one external sender: the hub's. None where there is none, or more than one.
#[must_use]
pub fn sender_key(extensions: &Extensions<GroupContext>) -> Option<Vec<u8>> {
    the_sender(extensions).map(|sender| sender.key)
}

/// openmls does not show what is in an ExternalSender: a key, and a credential behind it (RFC 9420 §12.1.8.1).
struct OneSender {
    key: Vec<u8>,
    credential: Vec<u8>,
}

fn the_sender(extensions: &Extensions<GroupContext>) -> Option<OneSender> {
    let [sender] = extensions.external_senders()?.as_slice() else { return None };
    let bytes = encode(&Raw::<ExternalSender>::of(sender));
    let (key, credential) = PublicKey::tls_deserialize_bytes(&bytes).ok()?;
    Some(OneSender { key: key.as_slice().to_vec(), credential: credential.to_vec() })
}

fn renewed(
    roster: &Roster,
    leaf: LeafIndex,
    node: &LeafNode,
    types: &[u16],
) -> Result<LeafIdentity, ChangeProblem> {
    let known = roster.get(leaf).ok_or(LeafProblem::NoSuchLeaf(leaf))?;
    let identity = identify_again(node, types, known)?;
    if identity.client != known.client || identity.user != known.user {
        return Err(LeafProblem::IdentityChanged(leaf).into());
    }
    Ok(identity)
}

fn joined(
    change: &mut CommitChange,
    identity: LeafIdentity,
    roster: &Roster,
    proof: Option<JoinProof>,
) -> Result<(), ChangeProblem> {
    let what = match change.resynced {
        Some(leaf) => {
            let known = roster.get(leaf).ok_or(LeafProblem::NoSuchLeaf(leaf))?;
            let same = known.client == identity.client
                && known.user == identity.user
                && known.signature_key == identity.signature_key;
            if !same {
                return Err(ChangeProblem::BadResync);
            }
            if !change.removed.contains(&leaf) {
                change.removed.push(leaf);
            }
            What::Resync(Box::new(identity.clone()))
        }
        None => What::Join(Box::new(identity.clone())),
    };
    change.acts.push(Act { author: Author::Newcomer { proof }, what });
    change.joined = Some(identity);
    Ok(())
}
