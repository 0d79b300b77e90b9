//! Who comes into a group with a request, as far as that stands in the request itself: what a client's own provider can
//! read without the group's state. PROTOCOL.md §1, "Users inside a group".
//!
//! openmls shows a commit's path only to who has the group, so the few fields in front of it are read here (RFC 9420
//! §6, §7.2, §12.4). Deliberately absent: every check that takes the group, which is its hub's.

use tls_codec::DeserializeBytes;

use super::leaf::{LeafProblem, client_of, verify_user_key};
use crate::wire::{
    codec::{Opaque, decode},
    ds::REQUEST_BYTES_MAX,
    extensions::{PublicKey, USER_KEY, UserKey},
    ids::{ClientUri, UserKeyHash},
    mls::{Credential, KeyPackage, MlsMessage},
};

/// A leaf that a request brings in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    pub credential: Credential,
    pub leaf_key: PublicKey,
    pub user_key: UserKey,
}

impl Incoming {
    /// The client that it says to be.
    ///
    /// # Errors
    /// [`LeafProblem`]
    pub fn client(&self) -> Result<ClientUri, LeafProblem> {
        client_of(&self.credential.parse().map_err(|_| LeafProblem::BadCredential)?)
    }

    /// Its user, whose key vouches for it.
    ///
    /// # Errors
    /// [`LeafProblem::BadUserKey`]
    pub fn user(&self) -> Result<UserKeyHash, LeafProblem> {
        verify_user_key(&self.user_key, &self.leaf_key, &self.credential)
    }
}

/// The leaf in the path of `commit`; none where that is no commit with a path, or its leaf has not exactly one user key.
#[must_use]
pub fn of_commit(commit: &MlsMessage) -> Option<Incoming> {
    match path_of(commit)? {
        Some(path) => incoming(read_leaf(path)?.0),
        None => None,
    }
}

/// The UpdatePath of `commit` and what follows, if it has one; none where that is no commit.
pub(super) fn path_of(commit: &MlsMessage) -> Option<Option<&[u8]>> {
    let (content_type, rest) = framed(commit.as_slice())?;
    if content_type != COMMIT {
        return None;
    }
    let (_proposals, rest) = read::<Any>(rest)?;
    match read::<u8>(rest)? {
        (0, _) => Some(None),
        (1, rest) => Some(Some(rest)),
        _ => None,
    }
}

/// How many Adds `commit` has by value, up to its first proposal by value of another kind: beside Adds a hub takes none. They are
/// not checked.
#[must_use]
pub fn adds_by_value(commit: &MlsMessage) -> usize {
    let content = framed(commit.as_slice()).filter(|(content_type, _)| *content_type == COMMIT);
    let proposals = content.and_then(|(_, rest)| read::<Any>(rest));
    let Some((proposals, _)) = proposals else { return 0 };
    let mut rest = proposals.as_slice();
    let mut adds = 0;
    loop {
        let after = match read::<u8>(rest) {
            Some((BY_VALUE, after)) => read_add(after).inspect(|_| adds += 1),
            Some((BY_REFERENCE, after)) => read::<Any>(after).map(|(_reference, after)| after),
            _ => None,
        };
        let Some(after) = after else { return adds };
        rest = after;
    }
}

/// What follows the Add that `bytes` begin with.
fn read_add(bytes: &[u8]) -> Option<&[u8]> {
    let (proposal_type, rest) = read::<u16>(bytes)?;
    if proposal_type != ADD {
        return None;
    }
    let (_leaf, rest) = read_leaf(before_leaf(rest)?)?;
    let (_extensions, rest) = read::<Any>(rest)?;
    read::<Any>(rest).map(|(_signature, rest)| rest)
}

/// The KeyPackage in `proposal`; none where that is no Add.
#[must_use]
pub fn added(proposal: &MlsMessage) -> Option<KeyPackage> {
    let (content_type, rest) = framed(proposal.as_slice())?;
    let (proposal_type, rest) = read::<u16>(rest)?;
    if content_type != PROPOSAL || proposal_type != ADD {
        return None;
    }
    read::<KeyPackage>(rest).map(|(key_package, _)| key_package)
}

/// The leaf of `key_package`.
#[must_use]
pub fn of_key_package(key_package: &KeyPackage) -> Option<Incoming> {
    incoming(read_leaf(before_leaf(key_package.as_slice())?)?.0)
}

/// The KeyPackage that `bytes` begin with, from its leaf on.
fn before_leaf(bytes: &[u8]) -> Option<&[u8]> {
    let (_version, rest) = read::<u16>(bytes)?;
    let (_ciphersuite, rest) = read::<u16>(rest)?;
    read::<Any>(rest).map(|(_init_key, rest)| rest)
}

/// The content type of a PublicMessage, and the content.
fn framed(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let (_version, rest) = read::<u16>(bytes)?;
    let (wire_format, rest) = read::<u16>(rest)?;
    if wire_format != PUBLIC_MESSAGE {
        return None;
    }
    let (_group_id, rest) = read::<Any>(rest)?;
    let (_epoch, rest) = read::<u64>(rest)?;
    let (sender_type, rest) = read::<u8>(rest)?;
    let rest = match sender_type {
        MEMBER | EXTERNAL => read::<u32>(rest)?.1,
        NEW_MEMBER_PROPOSAL | NEW_MEMBER_COMMIT => rest,
        _ => return None,
    };
    let (_authenticated_data, rest) = read::<Any>(rest)?;
    read::<u8>(rest)
}

/// A LeafNode as far as it is read here.
pub(super) struct Leaf {
    pub encryption_key: Any,
    leaf_key: PublicKey,
    credential: Credential,
    extensions: Any,
}

/// The LeafNode that `bytes` begin with, and what follows.
pub(super) fn read_leaf(bytes: &[u8]) -> Option<(Leaf, &[u8])> {
    let (encryption_key, rest) = read::<Any>(bytes)?;
    let (leaf_key, rest) = read::<PublicKey>(rest)?;
    let (credential, mut rest) = read::<Credential>(rest)?;
    for _capabilities in 0..5 {
        rest = read::<Any>(rest)?.1;
    }
    let (source, rest) = read::<u8>(rest)?;
    let rest = match source {
        KEY_PACKAGE => read::<u64>(read::<u64>(rest)?.1)?.1,
        UPDATE => rest,
        IN_COMMIT => read::<Any>(rest)?.1,
        _ => return None,
    };
    let (extensions, rest) = read::<Any>(rest)?;
    let (_signature, rest) = read::<Any>(rest)?;
    Some((Leaf { encryption_key, leaf_key, credential, extensions }, rest))
}

fn incoming(leaf: Leaf) -> Option<Incoming> {
    let Leaf { encryption_key: _, leaf_key, credential, extensions } = leaf;
    let mut rest = extensions.as_slice();
    let mut user_key = None;
    while !rest.is_empty() {
        let (extension, after) = read::<u16>(rest)?;
        let (value, after) = read::<Any>(after)?;
        rest = after;
        if extension == USER_KEY {
            let first = user_key.replace(decode::<UserKey>(value.as_slice()).ok()?);
            if first.is_some() {
                return None;
            }
        }
    }
    Some(Incoming { credential, leaf_key, user_key: user_key? })
}

pub(super) fn read<T: DeserializeBytes>(bytes: &[u8]) -> Option<(T, &[u8])> {
    T::tls_deserialize_bytes(bytes).ok()
}

type Any = Opaque<REQUEST_BYTES_MAX>;

const PUBLIC_MESSAGE: u16 = 1;
// SenderType
const MEMBER: u8 = 1;
const EXTERNAL: u8 = 2;
const NEW_MEMBER_PROPOSAL: u8 = 3;
const NEW_MEMBER_COMMIT: u8 = 4;
// ContentType
const PROPOSAL: u8 = 2;
const COMMIT: u8 = 3;
// ProposalOrRefType
const BY_VALUE: u8 = 1;
const BY_REFERENCE: u8 = 2;
// ProposalType
const ADD: u16 = 1;
// LeafNodeSource
const KEY_PACKAGE: u8 = 1;
const UPDATE: u8 = 2;
const IN_COMMIT: u8 = 3;
