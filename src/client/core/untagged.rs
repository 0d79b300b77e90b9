//! Proposals whose membership tag is wrong, which a hub cannot see and wants committed.
//!
//! They are held as any other, for the signature of the leaf is right and covers the GroupContext, and with it group and epoch. A member
//! that refused one could follow neither a commit that covers it nor make one that the hub takes; who comes in from outside covers
//! such a SelfRemove without having seen its tag. PROTOCOL.md §2, "Membership tags of proposals".

use openmls::{prelude as mls, prelude::OpenMlsProvider};

use super::{CoreError, Event, Member};
use crate::{policy::leaf::client_of, wire::ids::GroupId};

impl Member {
    /// Processes a handshake message of the group's epoch, and says whether its membership tag, if it is to have one, is right: of a
    /// commit it is.
    pub(super) fn read_handshake(
        &self,
        group: &mut mls::MlsGroup,
        message: mls::ProtocolMessage,
    ) -> Result<(mls::ProcessedMessage, bool), mls::ProcessMessageError<rusqlite::Error>> {
        let provider = self.home.provider();
        let is_proposal = message.content_type() == mls::ContentType::Proposal;
        let again = is_proposal.then(|| message.clone());
        let error = match group.process_message(&provider, message) {
            Ok(processed) => return Ok((processed, true)),
            Err(error) => error,
        };
        if let (true, Some(message)) = (is_wrong_tag(&error), again)
            // as a hub does, without the epoch's secrets: all but the tag is verified
            && let Ok(processed) = group.public_group().process_message(provider.crypto(), message)
        {
            return Ok((processed, false));
        }
        Err(error)
    }

    /// Its user hears of a client that makes such proposals: no honest one does.
    pub(super) fn warn_of_tag(
        &self,
        id: &GroupId,
        group: &mls::MlsGroup,
        sender: &mls::Sender,
    ) -> Result<(), CoreError> {
        let by = match sender {
            mls::Sender::Member(leaf) => group.member_at(*leaf),
            mls::Sender::External(_)
            | mls::Sender::NewMemberProposal
            | mls::Sender::NewMemberCommit => None,
        };
        let by = by.and_then(|it| client_of(&it.credential).ok());
        let by = by.map_or_else(|| "somebody".to_owned(), |by| by.to_string());
        self.push(&Event::Misbehaviour {
            what: format!("{by} sent a proposal in {id} whose membership tag does not verify"),
        })
    }
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
