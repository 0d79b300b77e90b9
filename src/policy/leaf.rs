//! Who a leaf is: its client, its user and its key. PROTOCOL.md §1, checks 1 to 4.

use openmls::prelude::{BasicCredential, CredentialType, LeafNode};

use crate::{
    crypto,
    wire::{
        codec::{Opaque, Raw, decode, encode},
        extensions::{PublicKey, SignatureScheme, USER_KEY, UserKey, UserKeyTbs},
        ids::{ClientUri, LeafIndex, UserKeyHash},
        mls::Credential,
    },
};

/// What a leaf says of itself, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafIdentity {
    pub client: ClientUri,
    pub user: UserKeyHash,
    pub signature_key: Vec<u8>,
    pub credential_type: u16,
    /// Over credential, signature key and user key: the same print needs no second verification.
    pub print: [u8; 32],
}

/// Why a leaf cannot be in the group. The texts are for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeafProblem {
    #[error("a leaf lacks the user_key extension (0xF1A1)")]
    NoUserKey,
    #[error(
        "a leaf's user_key extension is malformed or does not verify over its key and credential"
    )]
    BadUserKey,
    #[error("a leaf's credential does not name a client URI")]
    BadCredential,
    #[error("a leaf has a credential of type {0}, which the group's policy does not accept")]
    CredentialType(u16),
    #[error("client {0} is in the group already")]
    ClientTwice(ClientUri),
    #[error(
        "client {0} comes with another user key than its user's other clients: remove those first"
    )]
    AnotherUserKey(ClientUri),
    #[error("client {0} comes with the user key of another user")]
    UserKeyOfAnother(ClientUri),
    #[error("the signature key of client {0} is somebody's in the group already")]
    KeyTwice(ClientUri),
    #[error("leaf {0} changes its client or its user key, which never change: remove and add it")]
    IdentityChanged(LeafIndex),
    #[error("leaf {0} is not in the group")]
    NoSuchLeaf(LeafIndex),
}

/// Verifies what `leaf` says of itself (check 1). `accepted` are the policy's credential types.
///
/// # Errors
/// [`LeafProblem`] of the leaf alone; what concerns others is [`super::roster::Roster`]'s.
pub fn identify(leaf: &LeafNode, accepted: &[u16]) -> Result<LeafIdentity, LeafProblem> {
    let (unverified, user_key) = read(leaf, accepted)?;
    let leaf_key: PublicKey =
        Opaque::new(unverified.signature_key.clone()).map_err(|_| LeafProblem::BadUserKey)?;
    verify_user_key(&user_key, &leaf_key, &Raw::of(leaf.credential()))?;
    Ok(unverified)
}

/// As [`identify`], but a leaf that says word for word what `known` said is not verified again.
///
/// # Errors
/// As [`identify`].
pub fn identify_again(
    leaf: &LeafNode,
    accepted: &[u16],
    known: &LeafIdentity,
) -> Result<LeafIdentity, LeafProblem> {
    let (unverified, _) = read(leaf, accepted)?;
    if unverified.print == known.print { Ok(unverified) } else { identify(leaf, accepted) }
}

/// The identity of a leaf that was verified before it got where it is (replay of the group's own log).
///
/// # Errors
/// [`LeafProblem`] where the leaf does not even parse.
pub fn trusted(leaf: &LeafNode) -> Result<LeafIdentity, LeafProblem> {
    let credential_type = leaf.credential().credential_type().into();
    read(leaf, &[credential_type]).map(|(identity, _)| identity)
}

/// The user key that a leaf carries, not verified.
///
/// # Errors
/// [`LeafProblem::NoUserKey`], [`LeafProblem::BadUserKey`]
pub fn user_key_of(leaf: &LeafNode) -> Result<UserKey, LeafProblem> {
    let extension = leaf.extensions().unknown(USER_KEY).ok_or(LeafProblem::NoUserKey)?;
    decode(&extension.0).map_err(|_| LeafProblem::BadUserKey)
}

/// Verifies that `user_key` vouches for `leaf_key` with `credential`, and gives the user's hash.
///
/// # Errors
/// [`LeafProblem::BadUserKey`]
pub fn verify_user_key(
    user_key: &UserKey,
    leaf_key: &PublicKey,
    credential: &Credential,
) -> Result<UserKeyHash, LeafProblem> {
    let content = encode(&UserKeyTbs {
        scheme: user_key.scheme,
        user_public_key: user_key.user_public_key.clone(),
        leaf_key: leaf_key.clone(),
        credential: credential.clone(),
    });
    crypto::verify_with_label(
        user_key.scheme,
        user_key.user_public_key.as_slice(),
        "UserKeyTBS",
        &content,
        user_key.signature.as_slice(),
    )
    .map_err(|_| LeafProblem::BadUserKey)?;
    Ok(crypto::user_key_hash(user_key.scheme, &user_key.user_public_key))
}

/// The client URI that a credential names.
///
/// # Errors
/// [`LeafProblem::BadCredential`], also for a type that this version does not know.
pub fn client_of(credential: &openmls::prelude::Credential) -> Result<ClientUri, LeafProblem> {
    if credential.credential_type() != CredentialType::Basic {
        return Err(LeafProblem::CredentialType(credential.credential_type().into()));
    }
    let basic =
        BasicCredential::try_from(credential.clone()).map_err(|_| LeafProblem::BadCredential)?;
    let text = std::str::from_utf8(basic.identity()).map_err(|_| LeafProblem::BadCredential)?;
    ClientUri::new(text).map_err(|_| LeafProblem::BadCredential)
}

/// The MLS signature scheme of a leaf's key, from its group's ciphersuite.
#[must_use]
pub fn scheme_of(ciphersuite: openmls::prelude::Ciphersuite) -> SignatureScheme {
    SignatureScheme(ciphersuite.signature_algorithm() as u16)
}

fn read(leaf: &LeafNode, accepted: &[u16]) -> Result<(LeafIdentity, UserKey), LeafProblem> {
    let credential_type = leaf.credential().credential_type().into();
    if !accepted.contains(&credential_type) {
        return Err(LeafProblem::CredentialType(credential_type));
    }
    let client = client_of(leaf.credential())?;
    let extension = leaf.extensions().unknown(USER_KEY).ok_or(LeafProblem::NoUserKey)?;
    let user_key: UserKey = decode(&extension.0).map_err(|_| LeafProblem::BadUserKey)?;
    let signature_key = leaf.signature_key().as_slice().to_vec();
    let mut said = encode(leaf.credential());
    crate::wire::codec::append_vector(&mut said, &signature_key);
    said.extend_from_slice(&extension.0);
    let identity = LeafIdentity {
        client,
        user: crypto::user_key_hash(user_key.scheme, &user_key.user_public_key),
        signature_key,
        credential_type,
        print: crypto::sha256(&said),
    };
    Ok((identity, user_key))
}
