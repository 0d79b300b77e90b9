//! Proposals that are pending at the hub and that no member can verify: their membership tags are wrong, which a hub cannot see.
//!
//! A commit of this client leaves them out and says so; one that leaves out what this client could read is refused
//! ([`super::judge`]). A SelfRemove is held all the same, for who comes in from outside has to cover it, and cannot see its tag either.
//! PROTOCOL.md §2, "A proposal that nobody can read".

use openmls::{prelude as mls, prelude::OpenMlsProvider};
use serde::{Deserialize, Serialize};

use super::{
    CoreError, Event, Member,
    build::{bounded, list},
    epoch_of,
    home::bytes,
    receive::{Followed, Unacceptable, Way},
    records::GroupRecord,
};
use crate::{
    policy::leaf::client_of,
    wire::{
        ds::{UNREADABLE_PROPOSALS_MAX, UnreadableProposals},
        ids::{Epoch, GroupId, ProposalRef},
    },
};

/// What a handshake message is to a state.
pub(super) enum Read {
    Whole(Box<mls::ProcessedMessage>),
    /// A member's proposal, signed by it, of which the membership tag alone is wrong.
    Untagged(Box<mls::QueuedProposal>),
}

impl Member {
    /// Processes a handshake message of the group's epoch.
    pub(super) fn read_handshake(
        &self,
        group: &mut mls::MlsGroup,
        message: mls::ProtocolMessage,
    ) -> Result<Read, mls::ProcessMessageError<rusqlite::Error>> {
        let provider = self.home.provider();
        let is_proposal = message.content_type() == mls::ContentType::Proposal;
        let again = is_proposal.then(|| message.clone());
        let error = match group.process_message(&provider, message) {
            Ok(processed) => return Ok(Read::Whole(Box::new(processed))),
            Err(error) => error,
        };
        if let (true, Some(message)) = (is_wrong_tag(&error), again)
            // as a hub does, without the epoch's secrets
            && let Ok(processed) = group.public_group().process_message(provider.crypto(), message)
            && let mls::ProcessedMessageContent::ProposalMessage(proposal) = processed.into_content()
        {
            return Ok(Read::Untagged(proposal));
        }
        Err(error)
    }

    /// Takes in a proposal whose membership tag is wrong: it is held where somebody outside will have to cover it, else noted
    /// until the epoch ends.
    pub(super) fn take_untagged(
        &self,
        id: &GroupId,
        group: &mut mls::MlsGroup,
        proposal: mls::QueuedProposal,
        way: Way,
    ) -> Result<Followed, Unacceptable> {
        let by = match proposal.sender() {
            mls::Sender::Member(leaf) => group.member_at(*leaf),
            mls::Sender::External(_)
            | mls::Sender::NewMemberProposal
            | mls::Sender::NewMemberCommit => None,
        };
        let by = by.and_then(|it| client_of(&it.credential).ok());
        let followed = if is_self_remove(&proposal) {
            self.take_proposal(id, group, proposal, &[], way)?
        } else {
            let reference = proposal.proposal_reference_ref().as_slice();
            self.note_unreadable(id, group, reference)?
        };
        if followed == Followed::Yes {
            let by = by.map_or_else(|| "somebody".to_owned(), |by| by.to_string());
            self.push(&Event::Misbehaviour {
                what: format!(
                    "{by} sent a proposal in {id} with a membership tag that does not verify: it makes proposals that nobody can \
                     commit, and could be removed for that"
                ),
            })?;
        }
        Ok(followed)
    }

    fn note_unreadable(
        &self,
        id: &GroupId,
        group: &mls::MlsGroup,
        reference: &[u8],
    ) -> Result<Followed, CoreError> {
        let mut record = self.record(id)?;
        let epoch = epoch_of(group);
        record.unreadable.retain(|it| it.epoch == epoch);
        let known = record.unreadable.iter().any(|it| it.reference == reference);
        if known || record.unreadable.len() >= UNREADABLE_PROPOSALS_MAX {
            return Ok(Followed::No);
        }
        record.unreadable.push(Unreadable { epoch, reference: reference.to_vec() });
        self.put_record(id, &record)?;
        Ok(Followed::Yes)
    }
}

/// A pending proposal of `epoch` that is left out of this client's commits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unreadable {
    epoch: Epoch,
    #[serde(with = "bytes")]
    reference: Vec<u8>,
}

impl GroupRecord {
    /// What is pending in `group`'s epoch and cannot be read.
    pub(super) fn unreadable_in(&self, group: &mls::MlsGroup) -> impl Iterator<Item = &[u8]> {
        let epoch = epoch_of(group);
        let of_epoch = self.unreadable.iter().filter(move |it| it.epoch == epoch);
        of_epoch.map(|it| it.reference.as_slice())
    }

    /// Whether anything of that is to be committed away first.
    pub(super) fn has_unreadable(&self, group: &mls::MlsGroup) -> bool {
        self.unreadable_in(group).next().is_some()
    }
}

/// What a commit says of what it leaves out, for its `authenticated_data`.
pub(super) fn left_out(
    record: &GroupRecord,
    group: &mls::MlsGroup,
) -> Result<UnreadableProposals, CoreError> {
    let references = record.unreadable_in(group);
    let proposals: Result<Vec<_>, _> =
        references.map(|it| bounded(it.to_vec()).map(ProposalRef)).collect();
    Ok(UnreadableProposals { proposals: list(proposals?)? })
}

pub(super) fn is_self_remove(proposal: &mls::QueuedProposal) -> bool {
    matches!(proposal.proposal(), mls::Proposal::SelfRemove)
}

fn is_wrong_tag<E>(error: &mls::ProcessMessageError<E>) -> bool {
    use mls::{ProcessMessageError, ValidationError};
    matches!(
        error,
        ProcessMessageError::ValidationError(
            ValidationError::InvalidMembershipTag | ValidationError::MissingMembershipTag
        )
    )
}
