//! What the parties to a move sign, and how each of it is checked. PROTOCOL.md §6.
//!
//! Providers sign with their external-sender keys: the source with the one in the group before the Commit, the target with
//! the one that the Commit puts in its place. So a move is checked against the group itself.

use tls_codec::DeserializeBytes;

use crate::{
    crypto::{self, CryptoError, SigningKey, verify_with_label},
    wire::{
        codec::{Opaque, encode},
        ds::{ProtocolVersion, REQUEST_BYTES_MAX},
        extensions::{PublicKey, SignatureScheme},
        ids::{Domain, Epoch, GroupId, LeafIndex},
        mls::{ExternalSender, MlsMessage},
        portability::{
            Chain, MigrationCommitAad, MigrationConfirmation, MigrationContent, MigrationInit,
            MigrationRequest, MigrationResponse, TargetMigrationComplete,
        },
    },
};

/// Why a struct of a move proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    #[error("the signature of the {0} does not verify")]
    Signature(&'static str),
    #[error(
        "target_sender is not an external sender with a basic credential of the target's domain"
    )]
    Sender,
    #[error("the commit is not a PublicMessage of a member")]
    Commit,
    #[error("the chain of moves does not lead from {from} to {to}")]
    Chain { from: Domain, to: Domain },
}

/// The key and the domain of a hub's external sender.
///
/// # Errors
/// [`ProofError::Sender`]
pub fn hub_of_sender(sender: &ExternalSender) -> Result<(PublicKey, Domain), ProofError> {
    const BASIC: u16 = 1;
    let read = || {
        let (key, rest) = PublicKey::tls_deserialize_bytes(sender.as_slice()).ok()?;
        let (kind, rest) = u16::tls_deserialize_bytes(rest).ok()?;
        let (identity, rest) = Opaque::<1024>::tls_deserialize_bytes(rest).ok()?;
        let domain = Domain::new(std::str::from_utf8(identity.as_slice()).ok()?).ok()?;
        (kind == BASIC && rest.is_empty()).then_some((key, domain))
    };
    read().ok_or(ProofError::Sender)
}

/// The target agrees.
///
/// # Errors
/// [`CryptoError`]
pub fn respond(
    key: &SigningKey,
    migration_request: MigrationRequest,
    nonce: [u8; 32],
    expires_at: crate::wire::ids::Timestamp,
    target_sender: ExternalSender,
) -> Result<MigrationResponse, CryptoError> {
    let signature = Opaque::default();
    let mut response =
        MigrationResponse { migration_request, nonce, signature, expires_at, target_sender };
    response.signature = key.sign_with_label(MigrationResponse::LABEL, &response.to_be_signed())?;
    Ok(response)
}

/// Checks a response by the key that is in it, and gives that key: whether it is the target's is to be asked elsewhere.
///
/// # Errors
/// [`ProofError`]
pub fn check_response(
    scheme: SignatureScheme,
    response: &MigrationResponse,
) -> Result<PublicKey, ProofError> {
    let (key, domain) = hub_of_sender(&response.target_sender)?;
    if domain != response.migration_request.target_domain_name {
        return Err(ProofError::Sender);
    }
    let (label, content) = (MigrationResponse::LABEL, response.to_be_signed());
    verify_with_label(scheme, key.as_slice(), label, &content, response.signature.as_slice())
        .map_err(|_| ProofError::Signature("MigrationResponse"))?;
    Ok(key)
}

/// The initiator passes the target's word on.
///
/// # Errors
/// [`CryptoError`]
pub fn initiate(
    key: &SigningKey,
    migration_response: MigrationResponse,
) -> Result<MigrationInit, CryptoError> {
    let mut init = MigrationInit { migration_response, signature: Opaque::default() };
    init.signature = key.sign_with_label(MigrationInit::LABEL, &init.to_be_signed())?;
    Ok(init)
}

/// # Errors
/// [`ProofError::Signature`]
pub fn check_init(
    scheme: SignatureScheme,
    leaf_key: &[u8],
    init: &MigrationInit,
) -> Result<(), ProofError> {
    let (label, content) = (MigrationInit::LABEL, init.to_be_signed());
    verify_with_label(scheme, leaf_key, label, &content, init.signature.as_slice())
        .map_err(|_| ProofError::Signature("MigrationInit"))
}

/// The source sends the group.
///
/// # Errors
/// [`CryptoError`]
pub fn sign_content(
    key: &SigningKey,
    migration_response: MigrationResponse,
    group_state: Vec<u8>,
) -> Result<MigrationContent, CryptoError> {
    let content = MigrationContent::to_be_signed(&migration_response, &group_state);
    let signature = key.sign_with_label(MigrationContent::LABEL, &content)?;
    let group_state = Opaque::new(group_state).map_err(|_| CryptoError::Library)?;
    Ok(MigrationContent { migration_response, group_state, signature })
}

/// # Errors
/// [`ProofError::Signature`]
pub fn check_content<'a>(
    scheme: SignatureScheme,
    keys: impl IntoIterator<Item = &'a [u8]>,
    content: &MigrationContent,
) -> Result<(), ProofError> {
    let response = &content.migration_response;
    let signed = MigrationContent::to_be_signed(response, content.group_state.as_slice());
    let (label, signature) = (MigrationContent::LABEL, content.signature.as_slice());
    let is_by = |key: &[u8]| verify_with_label(scheme, key, label, &signed, signature).is_ok();
    if keys.into_iter().any(is_by) {
        Ok(())
    } else {
        Err(ProofError::Signature("MigrationContent"))
    }
}

/// What a content is known by, and what a refusal names: the response whose nonce is never taken.
#[must_use]
pub fn hash_of_content(content: &MigrationContent) -> [u8; 32] {
    crypto::sha256(&encode(content))
}

/// See [`hash_of_content`].
#[must_use]
pub fn hash_of_response(response: &MigrationResponse) -> [u8; 32] {
    crypto::sha256(&encode(response))
}

/// The target's word: it took what has this hash, or refuses the response that has it.
///
/// # Errors
/// [`CryptoError`]
pub fn complete(
    key: &SigningKey,
    hash: [u8; 32],
    refused: bool,
) -> Result<TargetMigrationComplete, CryptoError> {
    let mut complete = TargetMigrationComplete {
        migration_content_hash: Opaque::new(hash).map_err(|_| CryptoError::Library)?,
        signature: Opaque::default(),
        refused: u8::from(refused),
    };
    let label = TargetMigrationComplete::LABEL;
    complete.signature = key.sign_with_label(label, &complete.to_be_signed())?;
    Ok(complete)
}

/// The key of a promise, which signs the answers to it and nothing else.
#[derive(Debug, Clone)]
pub struct AnswerKey {
    key: SigningKey,
    takes: bool,
}

impl AnswerKey {
    /// `takes`: whether it still signs in groups. One that is retired says what became of a group, and takes none.
    #[must_use]
    pub fn new(key: SigningKey, takes: bool) -> Self {
        Self { key, takes }
    }

    #[must_use]
    pub fn takes(&self) -> bool {
        self.takes
    }

    /// See [`complete`].
    ///
    /// # Errors
    /// [`CryptoError`]
    pub fn complete(
        &self,
        hash: [u8; 32],
        refused: bool,
    ) -> Result<TargetMigrationComplete, CryptoError> {
        complete(&self.key, hash, refused)
    }
}

/// # Errors
/// [`ProofError::Signature`]
pub fn check_complete(
    scheme: SignatureScheme,
    key: &[u8],
    complete: &TargetMigrationComplete,
) -> Result<(), ProofError> {
    let (label, content) = (TargetMigrationComplete::LABEL, complete.to_be_signed());
    verify_with_label(scheme, key, label, &content, complete.signature.as_slice())
        .map_err(|_| ProofError::Signature("TargetMigrationComplete"))
}

/// The source's word that the group has moved, but for its signature.
#[must_use]
pub fn unsigned_confirmation(
    request: &MigrationRequest,
    nonce: [u8; 32],
    next_sequence: crate::wire::ids::Sequence,
) -> MigrationConfirmation {
    MigrationConfirmation {
        domain_name: request.target_domain_name.clone(),
        nonce,
        group_id: request.group_id.clone(),
        signature: Opaque::default(),
        source_domain: request.source_domain_name.clone(),
        epoch: Epoch(request.epoch.0.saturating_add(1)),
        next_sequence,
    }
}

/// # Errors
/// [`CryptoError`]
pub fn sign_confirmation(
    key: &SigningKey,
    confirmation: MigrationConfirmation,
) -> Result<MigrationConfirmation, CryptoError> {
    let content = confirmation.to_be_signed();
    let signature = key.sign_with_label(MigrationConfirmation::LABEL, &content)?;
    Ok(MigrationConfirmation { signature, ..confirmation })
}

/// # Errors
/// [`ProofError::Signature`]
pub fn check_confirmation(
    scheme: SignatureScheme,
    key: &[u8],
    confirmation: &MigrationConfirmation,
) -> Result<(), ProofError> {
    let (label, content) = (MigrationConfirmation::LABEL, confirmation.to_be_signed());
    verify_with_label(scheme, key, label, &content, confirmation.signature.as_slice())
        .map_err(|_| ProofError::Signature("MigrationConfirmation"))
}

/// Whether `chain` leads, move by move and epoch by epoch, from `from` to `to`. Signatures are checked apart.
///
/// # Errors
/// [`ProofError::Chain`]
pub fn follow_chain(
    group: &GroupId,
    from: &Domain,
    to: &Domain,
    chain: &Chain,
) -> Result<(), ProofError> {
    let (mut at, mut epoch) = (from, None);
    for link in chain.iter() {
        let later = epoch.is_none_or(|epoch| link.epoch > epoch);
        if link.group_id != *group || link.source_domain != *at || !later {
            return Err(ProofError::Chain { from: from.clone(), to: to.clone() });
        }
        (at, epoch) = (&link.domain_name, Some(link.epoch));
    }
    if at == to {
        return Ok(());
    }
    Err(ProofError::Chain { from: from.clone(), to: to.clone() })
}

/// What stands in front of a member's Commit, which openmls shows only to who has the group of its epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitHead {
    pub group: Vec<u8>,
    pub epoch: Epoch,
    pub sender: LeafIndex,
    pub aad: Vec<u8>,
}

/// Reads the head of a member's Commit. RFC 9420 §6.
///
/// # Errors
/// [`ProofError::Commit`]
pub fn commit_head(commit: &MlsMessage) -> Result<CommitHead, ProofError> {
    const PUBLIC_MESSAGE: u16 = 1;
    const MEMBER: u8 = 1;
    const COMMIT: u8 = 3;
    let read = || {
        let (_version, rest) = ProtocolVersion::tls_deserialize_bytes(commit.as_slice()).ok()?;
        let (format, rest) = u16::tls_deserialize_bytes(rest).ok()?;
        let (group, rest) = Opaque::<255>::tls_deserialize_bytes(rest).ok()?;
        let (epoch, rest) = Epoch::tls_deserialize_bytes(rest).ok()?;
        let (sender_type, rest) = u8::tls_deserialize_bytes(rest).ok()?;
        let (sender, rest) = LeafIndex::tls_deserialize_bytes(rest).ok()?;
        let (aad, rest) = Opaque::<REQUEST_BYTES_MAX>::tls_deserialize_bytes(rest).ok()?;
        let (content, _) = u8::tls_deserialize_bytes(rest).ok()?;
        let fits = format == PUBLIC_MESSAGE && sender_type == MEMBER && content == COMMIT;
        fits.then(|| CommitHead { group: group.into_vec(), epoch, sender, aad: aad.into_vec() })
    };
    read().ok_or(ProofError::Commit)
}

/// Whether `aad` names `target` as where the group goes.
#[must_use]
pub fn names_target(aad: &[u8], target: &Domain) -> bool {
    let read = crate::wire::codec::decode::<MigrationCommitAad>(aad);
    read.is_ok_and(|aad| aad.target_ds_domain == *target)
}
