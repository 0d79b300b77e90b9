//! Lies that a client can be made to tell by its commits: none that its server could see. Of tests only.
//!
//! The client itself believes what it says: its own state is that of an honest commit.

use openmls::prelude as mls;

use super::{CoreError, Member, build::GroupInfoParts};
use crate::{
    crypto::{MlsCrypto, SigningKey},
    group::tests::crooked::{Crook, Crooked},
    wire::{
        codec::{List, Raw, append_vector, decode, encode},
        ds::PartialGroupInfo,
        extensions::Signature,
        mls::MlsMessage,
    },
};

/// What is wrong with a commit. PROTOCOL.md §2, "When a committer lies".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    ConfirmationTag,
    MembershipTag,
    /// The secrets of its path, for everybody.
    Path,
    /// The key in the GroupInfo that who comes in from outside encrypts to.
    ExternalPub,
}

impl Member {
    /// From now on every commit that is made tells this lie; none: the truth.
    pub(crate) fn lie(&self, lie: Option<Lie>) {
        self.lie.set(lie);
    }

    pub(super) fn crypto_of_commits(&self) -> Crooked<MlsCrypto> {
        let crook = match self.lie.get() {
            Some(Lie::Path) => Crook::SecretsToAll,
            Some(Lie::ConfirmationTag | Lie::MembershipTag | Lie::ExternalPub) | None => Crook::Not,
        };
        Crooked::new(MlsCrypto::default(), crook)
    }

    /// The commit of a member, and what is said of its GroupInfo: as they go out.
    pub(super) fn as_told(
        &self,
        commit: MlsMessage,
        info: PartialGroupInfo,
        (whole, signer): (&mls::MlsMessageOut, &SigningKey),
    ) -> Result<(MlsMessage, PartialGroupInfo), CoreError> {
        let Some(lie) = self.lie.get().filter(|lie| *lie != Lie::Path) else {
            return Ok((commit, info));
        };
        let mut commit = commit.as_slice().to_vec();
        let whole = encode(whole);
        let parts = GroupInfoParts::of_message(&whole)?;
        let mut extensions = encode(&parts.extensions);
        let mut tag = parts.tag.as_slice().to_vec();
        // signature, confirmation_tag<V>, membership_tag<V>
        let (last, before) = (commit.len() - 1, commit.len() - 2 - tag.len());
        match lie {
            Lie::ConfirmationTag => {
                commit[before] ^= 1;
                *tag.last_mut().expect("a tag has bytes") ^= 1;
            }
            Lie::MembershipTag => commit[last] ^= 1,
            // an X25519 key whatever its bytes are
            Lie::ExternalPub => *extensions.last_mut().expect("it has external_pub") ^= 1,
            Lie::Path => {}
        }
        let mut signed = parts.context.to_vec();
        signed.extend(&extensions);
        append_vector(&mut signed, &tag);
        signed.extend(parts.signer.to_be_bytes());
        let mut labelled = Vec::new();
        append_vector(&mut labelled, b"MLS 1.0 GroupInfoTBS");
        append_vector(&mut labelled, &signed);
        let signature = openmls_traits::signatures::Signer::sign(signer, &labelled);
        let signature = signature.map_err(|error| CoreError::mls(format!("{error:?}")))?;
        let told = PartialGroupInfo {
            group_info_extensions: decode::<List<_, 1024>>(&extensions)?,
            signature: Signature::new(signature.as_slice())
                .map_err(|_| CoreError::Invalid("a signature is too long"))?,
        };
        let commit = Raw::new(commit).map_err(|_| CoreError::Invalid("a commit is too long"))?;
        Ok((commit, told))
    }
}
