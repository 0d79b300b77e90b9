//! Who is in a group: every leaf's identity, and what must be unique among them. PROTOCOL.md §1, checks 2 to 4.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::wire::ids::{ClientUri, LeafIndex, UserKeyHash, UserUri};

use super::leaf::{LeafIdentity, LeafProblem};

/// The identities of all leaves, with an index for each thing that must be unique.
#[derive(Debug, Clone, Default)]
pub struct Roster {
    leaves: BTreeMap<LeafIndex, LeafIdentity>,
    clients: HashMap<ClientUri, LeafIndex>,
    keys: HashMap<Vec<u8>, LeafIndex>,
    users: HashMap<UserKeyHash, (UserUri, BTreeSet<LeafIndex>)>,
    user_uris: HashMap<UserUri, UserKeyHash>,
}

/// What becomes of the leaves, in MLS's order: updates, removals, additions.
#[derive(Debug, Clone, Default)]
pub struct RosterChange {
    /// Leaves whose content changed (Update, path): same client, same user.
    pub updated: Vec<(LeafIndex, LeafIdentity)>,
    pub removed: Vec<LeafIndex>,
    pub added: Vec<(LeafIndex, LeafIdentity)>,
}

impl PartialEq for Roster {
    fn eq(&self, other: &Self) -> bool {
        self.leaves == other.leaves
    }
}

impl Roster {
    /// # Errors
    /// [`LeafProblem`] where two of the leaves exclude each other.
    pub fn of(
        leaves: impl IntoIterator<Item = (LeafIndex, LeafIdentity)>,
    ) -> Result<Self, LeafProblem> {
        let mut roster = Self::default();
        let change =
            RosterChange { added: leaves.into_iter().collect(), ..RosterChange::default() };
        roster.check(&change)?;
        roster.apply(change);
        Ok(roster)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.leaves.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leaves.is_empty()
    }

    #[must_use]
    pub fn get(&self, leaf: LeafIndex) -> Option<&LeafIdentity> {
        self.leaves.get(&leaf)
    }

    pub fn leaves(&self) -> impl Iterator<Item = LeafIndex> + '_ {
        self.leaves.keys().copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (LeafIndex, &LeafIdentity)> {
        self.leaves.iter().map(|(leaf, identity)| (*leaf, identity))
    }

    #[must_use]
    pub fn leaf_of(&self, client: &ClientUri) -> Option<LeafIndex> {
        self.clients.get(client).copied()
    }

    #[must_use]
    pub fn user_count(&self) -> usize {
        self.users.len()
    }

    #[must_use]
    pub fn has_user(&self, user: &UserKeyHash) -> bool {
        self.users.contains_key(user)
    }

    /// All leaves of `user`, in order.
    pub fn leaves_of(&self, user: &UserKeyHash) -> impl Iterator<Item = LeafIndex> + '_ {
        self.users.get(user).into_iter().flat_map(|(_, leaves)| leaves.iter().copied())
    }

    /// Whether the leaves behind `change` are such as may be in one group together. Changes nothing.
    ///
    /// # Errors
    /// The first [`LeafProblem`].
    pub fn check(&self, change: &RosterChange) -> Result<(), LeafProblem> {
        let gone: BTreeSet<LeafIndex> = change.removed.iter().copied().collect();
        let renewed: BTreeSet<LeafIndex> = change.updated.iter().map(|(leaf, _)| *leaf).collect();
        // what stands after removals, without the leaves that are replaced
        let stays = |leaf: &LeafIndex| !gone.contains(leaf);
        let mut keys: HashMap<&[u8], LeafIndex> = HashMap::new();
        for (leaf, identity) in &change.updated {
            let old = self.leaves.get(leaf).ok_or(LeafProblem::NoSuchLeaf(*leaf))?;
            if old.client != identity.client || old.user != identity.user {
                return Err(LeafProblem::IdentityChanged(*leaf));
            }
            self.check_key(identity, &gone, &renewed, &mut keys, *leaf)?;
        }
        let mut clients: BTreeSet<&ClientUri> = BTreeSet::new();
        let mut new_users: HashMap<UserUri, &UserKeyHash> = HashMap::new();
        let mut new_hashes: HashMap<&UserKeyHash, UserUri> = HashMap::new();
        for (leaf, identity) in &change.added {
            let there = self.clients.get(&identity.client).filter(|leaf| stays(leaf));
            if there.is_some() || !clients.insert(&identity.client) {
                return Err(LeafProblem::ClientTwice(identity.client.clone()));
            }
            let uri = identity.client.user();
            let standing = |hash: &UserKeyHash| {
                self.users.get(hash).is_some_and(|(_, leaves)| leaves.iter().any(stays))
            };
            let known_key = self.user_uris.get(&uri).filter(|hash| standing(hash));
            let known_key = known_key.or_else(|| new_users.get(&uri).copied());
            if known_key.is_some_and(|key| key != &identity.user) {
                return Err(LeafProblem::AnotherUserKey(identity.client.clone()));
            }
            let known_uri = self.users.get(&identity.user).map(|(uri, _)| uri);
            let known_uri = known_uri.filter(|_| standing(&identity.user));
            let known_uri = known_uri.or_else(|| new_hashes.get(&identity.user));
            if known_uri.is_some_and(|known| *known != uri) {
                return Err(LeafProblem::UserKeyOfAnother(identity.client.clone()));
            }
            new_hashes.insert(&identity.user, uri.clone());
            new_users.insert(uri, &identity.user);
            self.check_key(identity, &gone, &renewed, &mut keys, *leaf)?;
        }
        Ok(())
    }

    /// Applies a change that [`Roster::check`] passed.
    pub fn apply(&mut self, change: RosterChange) {
        // all old keys go before any new one comes: two leaves may swap nothing, but one may take what one left
        for (leaf, _) in &change.updated {
            if let Some(old) = self.leaves.get(leaf) {
                self.keys.remove(&old.signature_key);
            }
        }
        for leaf in &change.removed {
            self.remove(*leaf);
        }
        for (leaf, identity) in change.updated {
            if self.leaves.contains_key(&leaf) {
                self.keys.insert(identity.signature_key.clone(), leaf);
                self.leaves.insert(leaf, identity);
            }
        }
        for (leaf, identity) in change.added {
            self.insert(leaf, identity);
        }
    }

    fn check_key<'a>(
        &self,
        identity: &'a LeafIdentity,
        gone: &BTreeSet<LeafIndex>,
        renewed: &BTreeSet<LeafIndex>,
        new_keys: &mut HashMap<&'a [u8], LeafIndex>,
        leaf: LeafIndex,
    ) -> Result<(), LeafProblem> {
        let key = identity.signature_key.as_slice();
        let holder = self.keys.get(key).filter(|holder| {
            **holder != leaf && !gone.contains(holder) && !renewed.contains(holder)
        });
        if holder.is_some() || new_keys.insert(key, leaf).is_some_and(|other| other != leaf) {
            return Err(LeafProblem::KeyTwice(identity.client.clone()));
        }
        Ok(())
    }

    fn insert(&mut self, leaf: LeafIndex, identity: LeafIdentity) {
        let uri = identity.client.user();
        self.clients.insert(identity.client.clone(), leaf);
        self.keys.insert(identity.signature_key.clone(), leaf);
        self.user_uris.insert(uri.clone(), identity.user.clone());
        let entry = self.users.entry(identity.user.clone()).or_insert((uri, BTreeSet::new()));
        entry.1.insert(leaf);
        self.leaves.insert(leaf, identity);
    }

    fn remove(&mut self, leaf: LeafIndex) {
        let Some(identity) = self.leaves.remove(&leaf) else { return };
        self.clients.remove(&identity.client);
        if self.keys.get(&identity.signature_key) == Some(&leaf) {
            self.keys.remove(&identity.signature_key);
        }
        if let Some((uri, leaves)) = self.users.get_mut(&identity.user) {
            leaves.remove(&leaf);
            if leaves.is_empty() {
                self.user_uris.remove(uri);
                self.users.remove(&identity.user);
            }
        }
    }
}
