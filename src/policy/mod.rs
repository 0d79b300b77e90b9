//! What a change of a group may do, judged alike by the Delivery Service and by every member.
//!
//! Here: who a leaf is ([`leaf`]), who is in a group ([`roster`]), what a commit or a proposal does
//! ([`change`]), and [`judge`], which says whether the policy **before** it allows it. PROTOCOL.md §1 ("Users
//! inside a group") and §2 ("Policy"). Deliberately absent: what only the hub can see (time, expiry, limits,
//! uses); that is judged in `group`.

pub mod capabilities;
#[expect(clippy::wildcard_enum_match_arm, reason = "openmls' kinds of proposal and content grow")]
pub mod change;
pub mod incoming;
pub mod keys;
pub mod leaf;
pub mod pending;
pub mod roster;

use std::collections::{BTreeMap, BTreeSet};

use crate::wire::{
    codec::{List, Opaque, encode},
    extensions::{GroupPolicy, JoinPolicy, JoinProof, JoinProofTbs, PublicKey, Role, RoleEntry},
    ids::{GroupId, LeafIndex, UserKeyHash},
};
use change::{Act, Author, What};
use roster::Roster;

pub use leaf::{LeafIdentity, LeafProblem, identify};

/// Members that a group may have by default.
pub const MEMBERS_MAX_DEFAULT: u32 = 10_000;

/// Why the policy does not allow a change. The texts are for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("you are banned from this group")]
    Banned,
    #[error("{what} takes the role {needed:?} here and yours is {yours:?}; ask one who has it")]
    Role { what: &'static str, needed: Role, yours: Role },
    #[error(
        "leaf {0} belongs to a user of your own role or a higher one: only an admin may remove it"
    )]
    Rank(LeafIndex),
    #[error(
        "a role above your own cannot be given, nor the role of a user of your own role or a higher one changed"
    )]
    GivesRole,
    #[error("a threshold of the policy can be set only from and to roles up to your own")]
    Threshold,
    #[error("the group would be left without an admin: make somebody else an admin first")]
    NoAdminLeft,
    #[error("this group takes no one in without being added; ask a member to add you")]
    Closed,
    #[error("this group takes in only further clients of its members' users")]
    NotAMember,
    #[error("joining takes a code that the group's policy lists, with a valid proof")]
    BadJoinProof,
    #[error("a user is banned from this group and cannot be added; an admin can change the role")]
    AddsBanned,
    #[error("the group may have {max} members and would have {would_be}")]
    TooManyMembers { max: u32, would_be: usize },
    #[error("the policy is not well-formed: {0}")]
    BadPolicy(&'static str),
    #[error("a member may propose an Update or a SelfRemove only for itself")]
    NotItself,
    #[error("leaf {0} is not in the group")]
    NoSuchLeaf(LeafIndex),
    #[error("the Delivery Service may only remove clients and replace its own key")]
    NotTheHubs,
}

/// The policy that a creator starts with: itself admin, members add and send, moderators remove, own clients join.
#[must_use]
pub fn default_policy(creator: &UserKeyHash) -> GroupPolicy {
    let admin = RoleEntry { user_key_hash: creator.clone(), role: Role::Admin };
    GroupPolicy {
        roles: bounded(vec![admin]),
        may_add: Role::Member,
        may_remove: Role::Moderator,
        may_update: Role::Admin,
        may_delete: Role::Admin,
        may_migrate: Role::Admin,
        may_send: Role::Member,
        join: JoinPolicy::OwnClients,
        codes: List::default(),
        credential_types: bounded(vec![1]),
        members_max: MEMBERS_MAX_DEFAULT,
    }
}

/// Sets the role of `user`, keeping the list sorted; `Member` takes the user off the list.
///
/// # Errors
/// [`Denied::BadPolicy`] where the list would be too long.
pub fn set_role(policy: &mut GroupPolicy, user: &UserKeyHash, role: Role) -> Result<(), Denied> {
    let mut roles: Vec<RoleEntry> =
        policy.roles.iter().filter(|entry| &entry.user_key_hash != user).cloned().collect();
    if role != Role::Member {
        roles.push(RoleEntry { user_key_hash: user.clone(), role });
        roles.sort_by(|a, b| a.user_key_hash.cmp(&b.user_key_hash));
    }
    policy.roles = List::new(roles).map_err(|_| Denied::BadPolicy("too many roles"))?;
    Ok(())
}

/// The role of `user` under `policy`.
#[must_use]
pub fn role_of(policy: &GroupPolicy, user: &UserKeyHash) -> Role {
    policy
        .roles
        .binary_search_by(|entry| entry.user_key_hash.cmp(user))
        .map_or(Role::Member, |at| policy.roles[at].role)
}

/// Whether `policy` is one that a group may have, whoever sets it.
///
/// # Errors
/// [`Denied::BadPolicy`]
pub fn check_form(policy: &GroupPolicy) -> Result<(), Denied> {
    if policy.roles.windows(2).any(|pair| pair[0].user_key_hash >= pair[1].user_key_hash) {
        return Err(Denied::BadPolicy("roles must be sorted by user key hash, each user once"));
    }
    if thresholds(policy).iter().any(|(_, role)| *role == Role::Banned) {
        return Err(Denied::BadPolicy("no right can be given to the banned"));
    }
    if policy.credential_types.is_empty() {
        return Err(Denied::BadPolicy("at least one credential type must be accepted"));
    }
    if policy.members_max == 0 {
        return Err(Denied::BadPolicy("members_max must be at least 1"));
    }
    Ok(())
}

/// Whether `user`, with `proof`, may come in without being added.
///
/// # Errors
/// [`Denied`] as the policy has it.
pub fn may_join(
    policy: &GroupPolicy,
    roster: &Roster,
    group: &GroupId,
    user: &UserKeyHash,
    leaf_key: &PublicKey,
    proof: Option<&JoinProof>,
) -> Result<(), Denied> {
    if role_of(policy, user) == Role::Banned {
        return Err(Denied::Banned);
    }
    if policy.join == JoinPolicy::Open {
        return Ok(());
    }
    if policy.join >= JoinPolicy::OwnClients && roster.has_user(user) {
        return Ok(());
    }
    match policy.join {
        JoinPolicy::Closed => Err(Denied::Closed),
        JoinPolicy::OwnClients => Err(Denied::NotAMember),
        JoinPolicy::Code | JoinPolicy::Open => {
            let proof = proof.ok_or(Denied::BadJoinProof)?;
            check_proof(policy, group, user, leaf_key, proof)
        }
    }
}

fn check_proof(
    policy: &GroupPolicy,
    group: &GroupId,
    user: &UserKeyHash,
    leaf_key: &PublicKey,
    proof: &JoinProof,
) -> Result<(), Denied> {
    let code = policy
        .codes
        .iter()
        .find(|code| code.public_key == proof.public_key)
        .ok_or(Denied::BadJoinProof)?;
    let content = encode(&JoinProofTbs {
        group_id: group.clone(),
        user_key_hash: user.clone(),
        leaf_key: leaf_key.clone(),
    });
    crate::crypto::verify_with_label(
        code.scheme,
        code.public_key.as_slice(),
        "JoinProofTBS",
        &content,
        proof.signature.as_slice(),
    )
    .map_err(|_| Denied::BadJoinProof)
}

/// Judges everything that one commit (or one proposal) does, by the policy before it.
///
/// `committer` is the leaf whose commit it is (none for an external commit of a newcomer and for a proposal,
/// whose author stands in its act).
///
/// # Errors
/// The first [`Denied`] in the order of `acts`.
pub fn judge(
    policy: &GroupPolicy,
    roster: &Roster,
    group: &GroupId,
    committer: Option<LeafIndex>,
    acts: &[Act],
) -> Result<(), Denied> {
    judge_with(policy, roster, group, committer, acts, true)
}

/// As [`judge`], of a commit that does not delete the group: that everyone else leaves frees it of no rule. Only the
/// hub knows which it is, so only the hub judges so.
///
/// # Errors
/// As [`judge`].
pub fn judge_staying(
    policy: &GroupPolicy,
    roster: &Roster,
    group: &GroupId,
    committer: Option<LeafIndex>,
    acts: &[Act],
) -> Result<(), Denied> {
    judge_with(policy, roster, group, committer, acts, false)
}

fn judge_with(
    policy: &GroupPolicy,
    roster: &Roster,
    group: &GroupId,
    committer: Option<LeafIndex>,
    acts: &[Act],
    may_dissolve: bool,
) -> Result<(), Denied> {
    if let Some(committer) = committer {
        let user = user_at(roster, committer)?;
        if role_of(policy, user) == Role::Banned {
            return Err(Denied::Banned);
        }
    }
    let dissolves = may_dissolve && dissolves(policy, roster, committer, acts);
    accepts_everyone(roster, acts)?;
    for act in acts {
        if !(dissolves && matches!(act.what, What::Remove(_))) {
            judge_act(policy, roster, group, act)?;
        }
    }
    let after = After::of(roster, acts);
    let max = acts
        .iter()
        .find_map(|act| match &act.what {
            What::Policy(new) => Some(new.members_max),
            What::Add(_)
            | What::Join(_)
            | What::Remove(_)
            | What::Leave(_)
            | What::Update(_)
            | What::Resync(_)
            | What::HubKey => None,
        })
        .unwrap_or(policy.members_max);
    let would_be = after.members();
    if would_be > roster.len() && would_be > usize::try_from(max).unwrap_or(usize::MAX) {
        return Err(Denied::TooManyMembers { max, would_be });
    }
    if dissolves { Ok(()) } else { keeps_an_admin(policy, roster, acts) }
}

/// A policy that does not accept a member's credential would let that member do nothing any more.
fn accepts_everyone(roster: &Roster, acts: &[Act]) -> Result<(), Denied> {
    for act in acts {
        let What::Policy(new) = &act.what else { continue };
        let come = acts.iter().filter_map(|act| {
            if let What::Add(identity) | What::Join(identity) = &act.what {
                Some(identity.as_ref())
            } else {
                None
            }
        });
        let mut all = roster.iter().map(|(_, identity)| identity).chain(come);
        if !all.all(|identity| new.credential_types.contains(&identity.credential_type)) {
            return Err(Denied::BadPolicy("it does not accept the credential of a member"));
        }
    }
    Ok(())
}

fn judge_act(
    policy: &GroupPolicy,
    roster: &Roster,
    group: &GroupId,
    act: &Act,
) -> Result<(), Denied> {
    let leaf = match &act.author {
        Author::Hub => {
            return match act.what {
                What::Remove(_) | What::HubKey => Ok(()),
                What::Add(_)
                | What::Join(_)
                | What::Leave(_)
                | What::Update(_)
                | What::Resync(_)
                | What::Policy(_) => Err(Denied::NotTheHubs),
            };
        }
        Author::Newcomer { proof } => {
            return match &act.what {
                What::Add(identity) | What::Join(identity) => {
                    let key = Opaque::new(identity.signature_key.clone())
                        .map_err(|_| Denied::BadJoinProof)?;
                    may_join(policy, roster, group, &identity.user, &key, proof.as_ref())
                }
                What::Resync(identity) if role_of(policy, &identity.user) == Role::Banned => {
                    Err(Denied::Banned)
                }
                What::Resync(_) => Ok(()),
                What::Remove(_)
                | What::Leave(_)
                | What::Update(_)
                | What::Policy(_)
                | What::HubKey => Err(Denied::NotItself),
            };
        }
        Author::Leaf(leaf) => *leaf,
    };
    let user = user_at(roster, leaf)?;
    let role = role_of(policy, user);
    let leaves_itself = matches!(&act.what, What::Leave(l) | What::Remove(l) if *l == leaf);
    if role == Role::Banned && !leaves_itself {
        return Err(Denied::Banned);
    }
    let needs = |needed: Role, what: &'static str| {
        if role >= needed { Ok(()) } else { Err(Denied::Role { what, needed, yours: role }) }
    };
    match &act.what {
        What::Add(added) if &added.user == user => Ok(()),
        What::Add(added) => {
            needs(policy.may_add, "adding users")?;
            if role_of(policy, &added.user) == Role::Banned {
                return Err(Denied::AddsBanned);
            }
            Ok(())
        }
        What::Remove(removed) => {
            let target = user_at(roster, *removed)?;
            if target == user {
                return Ok(());
            }
            needs(policy.may_remove, "removing users")?;
            let outranks = role == Role::Admin || role_of(policy, target) < role;
            if outranks { Ok(()) } else { Err(Denied::Rank(*removed)) }
        }
        What::Leave(left) | What::Update(left) if *left == leaf => Ok(()),
        What::Leave(_) | What::Update(_) | What::Join(_) | What::Resync(_) => {
            Err(Denied::NotItself)
        }
        What::Policy(new) => {
            needs(policy.may_update, "changing the group's policy")?;
            judge_policy(policy, new, role)
        }
        What::HubKey => needs(policy.may_migrate, "moving the group"),
    }
}

/// What a holder of `role` may make of `old`.
fn judge_policy(old: &GroupPolicy, new: &GroupPolicy, role: Role) -> Result<(), Denied> {
    check_form(new)?;
    let listed = |policy: &GroupPolicy| -> BTreeMap<UserKeyHash, Role> {
        policy.roles.iter().map(|entry| (entry.user_key_hash.clone(), entry.role)).collect()
    };
    let (before, after) = (listed(old), listed(new));
    let users: BTreeSet<&UserKeyHash> = before.keys().chain(after.keys()).collect();
    for user in users {
        let was = before.get(user).copied().unwrap_or(Role::Member);
        let is = after.get(user).copied().unwrap_or(Role::Member);
        let outranks = role == Role::Admin || was < role;
        if was != is && !(outranks && is <= role) {
            return Err(Denied::GivesRole);
        }
    }
    for ((_, was), (_, is)) in thresholds(old).iter().zip(thresholds(new).iter()) {
        if was != is && (*was > role || *is > role) {
            return Err(Denied::Threshold);
        }
    }
    Ok(())
}

/// The rights of a policy with the least role that has each.
#[must_use]
pub fn thresholds(policy: &GroupPolicy) -> [(&'static str, Role); 6] {
    [
        ("add", policy.may_add),
        ("remove", policy.may_remove),
        ("update", policy.may_update),
        ("delete", policy.may_delete),
        ("migrate", policy.may_migrate),
        ("send", policy.may_send),
    ]
}

/// Whether the commit ends the group: everyone but the committer leaves, and the committer may delete.
#[must_use]
pub fn dissolves(
    policy: &GroupPolicy,
    roster: &Roster,
    committer: Option<LeafIndex>,
    acts: &[Act],
) -> bool {
    let Some(committer) = committer else { return false };
    let removed: BTreeSet<LeafIndex> = acts
        .iter()
        .filter_map(|act| match act.what {
            What::Remove(leaf) | What::Leave(leaf) => Some(leaf),
            What::Add(_)
            | What::Join(_)
            | What::Update(_)
            | What::Resync(_)
            | What::Policy(_)
            | What::HubKey => None,
        })
        .collect();
    // the hub's own key, which every commit covers while it is pending, is nothing to a group that ends
    let only_removes = acts.iter().all(|act| match act.what {
        What::Remove(_) | What::Leave(_) => true,
        What::HubKey => act.author == Author::Hub,
        What::Add(_) | What::Join(_) | What::Update(_) | What::Resync(_) | What::Policy(_) => false,
    });
    let everyone_else = roster.leaves().all(|leaf| leaf == committer || removed.contains(&leaf));
    let may =
        user_at(roster, committer).is_ok_and(|user| role_of(policy, user) >= policy.may_delete);
    only_removes && everyone_else && may && !removed.contains(&committer)
}

/// Who is in the group behind the acts. To ask costs what the acts and the admins are, not what the members are.
struct After<'a> {
    roster: &'a Roster,
    gone: BTreeSet<LeafIndex>,
    comers: usize,
    users_of_comers: BTreeSet<&'a UserKeyHash>,
}

impl<'a> After<'a> {
    fn of(roster: &'a Roster, acts: impl IntoIterator<Item = &'a Act>) -> Self {
        let (mut gone, mut comers, mut users_of_comers) = (BTreeSet::new(), 0, BTreeSet::new());
        for act in acts {
            match &act.what {
                What::Add(id) | What::Join(id) => {
                    comers += 1;
                    users_of_comers.insert(&id.user);
                }
                What::Remove(leaf) | What::Leave(leaf) => {
                    if roster.get(*leaf).is_some() {
                        gone.insert(*leaf);
                    }
                }
                What::Update(_) | What::Resync(_) | What::Policy(_) | What::HubKey => {}
            }
        }
        Self { roster, gone, comers, users_of_comers }
    }

    fn members(&self) -> usize {
        self.roster.len() - self.gone.len() + self.comers
    }

    fn has_admin(&self, policy: &GroupPolicy) -> bool {
        let admins = policy.roles.iter().filter(|entry| entry.role == Role::Admin);
        admins.map(|entry| &entry.user_key_hash).any(|user| {
            self.users_of_comers.contains(&user)
                || self.roster.leaves_of(user).any(|leaf| !self.gone.contains(&leaf))
        })
    }
}

/// No one leaves the group without an admin who is in it; what the hub removes is nobody's doing.
fn keeps_an_admin(policy: &GroupPolicy, roster: &Roster, acts: &[Act]) -> Result<(), Denied> {
    let new_policy = new_policy(acts);
    let removes_somebody =
        acts.iter().any(|act| matches!(act.what, What::Remove(_) | What::Leave(_)));
    if new_policy.is_none() && !removes_somebody {
        return Ok(());
    }
    // a set of proposals that stands must be committable whatever the hub's own removals come to, in any order
    let members = acts.iter().filter(|act| act.author != Author::Hub);
    let by_members = After::of(roster, members).has_admin(new_policy.unwrap_or(policy));
    if by_members || an_admin_stays(policy, roster, acts) {
        Ok(())
    } else {
        Err(Denied::NoAdminLeft)
    }
}

/// Whether an admin is left behind `acts`, or the hub's own removals alone leave none: that is nobody's doing. Stricter
/// than [`judge`], which lets pass that each of the two would leave one.
#[must_use]
pub fn an_admin_stays(policy: &GroupPolicy, roster: &Roster, acts: &[Act]) -> bool {
    let hubs = acts.iter().filter(|act| act.author == Author::Hub);
    let had_one = After::of(roster, hubs).has_admin(policy);
    !had_one || After::of(roster, acts).has_admin(new_policy(acts).unwrap_or(policy))
}

fn new_policy(acts: &[Act]) -> Option<&GroupPolicy> {
    acts.iter()
        .rev()
        .find_map(|act| if let What::Policy(new) = &act.what { Some(new.as_ref()) } else { None })
}

fn user_at(roster: &Roster, leaf: LeafIndex) -> Result<&UserKeyHash, Denied> {
    roster.get(leaf).map(|identity| &identity.user).ok_or(Denied::NoSuchLeaf(leaf))
}

fn bounded<T: tls_codec::Size, const MAX: usize>(items: Vec<T>) -> List<T, MAX> {
    #[expect(clippy::expect_used, reason = "a list of one item of fixed size is within its bound")]
    List::new(items).expect("one small item")
}

#[cfg(test)]
mod tests;
