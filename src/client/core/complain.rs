//! A commit that this client cannot use: it keeps the epoch before, complains, and does what comes of that.
//!
//! Here: the complaint, what the hub's answer makes of it, and when this client comes in again by itself. Not here:
//! sending ([`super::super::Client`]). PROTOCOL.md §2, "When a committer lies".

use openmls::{prelude as mls, prelude::OpenMlsProvider, prelude::tls_codec::Serialize as _};
use serde::{Deserialize, Serialize};

use super::{
    CoreError, Event, GroupState, Kind, Member,
    build::{GroupInfoParts, bounded},
    epoch_of,
    home::bytes,
    records::GroupRecord,
    view::roster_of,
};
use crate::{
    crypto,
    wire::{
        client::Complain,
        codec::{decode, encode},
        ds::{
            CommitComplaint, ComplaintOutcome, ComplaintReason, ComplaintResponse, ExternalPub,
            Grounds,
        },
        extensions::Signature,
        ids::{Domain, Epoch, GroupId, LeafIndex, Timestamp},
        mls::MlsMessage,
    },
};

/// How long a hub may have this client wait, and how long a complaint is tried; then it comes in again by itself.
const WAIT_MAX_MS: u64 = 2 * 60 * 1000;
const RETRY_MS: u64 = 2_000;
/// Resyncs of one group in [`RESYNCS_WITHIN_MS`] that begin at once; those behind them wait ever longer.
const RESYNCS_AT_ONCE: usize = 4;
/// Beyond so many the next one begins when the oldest of them is [`RESYNCS_WITHIN_MS`] ago.
const RESYNCS_MAX: usize = 8;
const RESYNCS_WITHIN_MS: u64 = 60 * 60 * 1000;

/// A group whose last commit this client cannot use; its state is the one before. The group is [`GroupState::Lost`].
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Doubt {
    /// The epoch that the commit was sent in, which this client is still in.
    epoch: Epoch,
    hub: Domain,
    /// The encoded `CommitComplaint`.
    #[serde(with = "bytes")]
    complaint: Vec<u8>,
    step: Step,
    /// When it was first tried.
    since: Option<Timestamp>,
    not_before: Timestamp,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    Complain,
    /// A resync is to begin, without a complaint or behind it.
    Resync,
    /// There were too many resyncs: the next one is far off, and the user has been told.
    GivenUp,
}

/// What came of sending a complaint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    Answer(ComplaintResponse),
    /// No answer yet.
    Nothing,
    /// It will not be taken.
    Refused,
}

impl Member {
    /// The complaints to send now. What needs none any more goes on by this: a resync that is due begins.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn complaints_due(&self, now: Timestamp) -> Result<Vec<(GroupId, Complain)>, CoreError> {
        self.home.step(|| {
            let mut due = self.info_complaints_due(now)?;
            for (key, mut doubt) in self.home.list::<Doubt>(Kind::Doubt, &[], usize::MAX)? {
                let Ok(id) = GroupId::from_bytes(&key) else { continue };
                if self.record(&id)?.state != GroupState::Lost {
                    // it was resynced, left or deleted meanwhile
                    self.home.remove(Kind::Doubt, &key)?;
                    continue;
                }
                let is_new = doubt.since.is_none();
                let since = *doubt.since.get_or_insert(now);
                // a clock that was set back must not make it wait longer than it says
                let wait_max = match doubt.step {
                    Step::Complain => WAIT_MAX_MS,
                    Step::Resync | Step::GivenUp => RESYNCS_WITHIN_MS,
                };
                let waits = doubt.not_before.0.min(since.0.saturating_add(wait_max));
                if now.0 < waits && now >= since {
                    continue;
                }
                match doubt.step {
                    Step::Complain if now.0.saturating_sub(since.0) > WAIT_MAX_MS => {
                        self.go_forward(&id, doubt, now)?;
                    }
                    Step::Complain => {
                        let complaint = decode(&doubt.complaint)?;
                        due.push((id, Complain { hub_domain: doubt.hub.clone(), complaint }));
                        self.home.put(Kind::Doubt, &key, &doubt)?;
                    }
                    Step::Resync if !is_new => {
                        self.home.remove(Kind::Doubt, &key)?;
                        self.keep_resync(&id)?;
                    }
                    // without a complaint, or not counted yet
                    Step::Resync | Step::GivenUp => self.go_forward(&id, doubt, now)?,
                }
            }
            Ok(due)
        })
    }

    /// Takes in what came of the complaint about `id`.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn complaint_heard(
        &self,
        id: &GroupId,
        heard: Heard,
        now: Timestamp,
    ) -> Result<(), CoreError> {
        self.home.step(|| {
            let Some(mut doubt) = self.doubt_of(id)? else {
                return self.info_complaint_heard(id, heard != Heard::Nothing, now);
            };
            if doubt.step != Step::Complain {
                return Ok(());
            }
            let wait_ms = match heard {
                Heard::Nothing => RETRY_MS,
                Heard::Answer(ComplaintResponse { outcome: ComplaintOutcome::Wait, wait_ms }) => {
                    u64::from(wait_ms).clamp(100, WAIT_MAX_MS)
                }
                // what is left of the void epoch is still in the queue, and ends with the feed's word for it
                Heard::Answer(ComplaintResponse { outcome: ComplaintOutcome::Void, .. }) => {
                    RETRY_MS
                }
                Heard::Refused
                | Heard::Answer(ComplaintResponse {
                    outcome: ComplaintOutcome::Resync | ComplaintOutcome::None,
                    ..
                }) => return self.go_forward(id, doubt, now),
            };
            doubt.not_before = now.plus_ms(wait_ms);
            self.home.put(Kind::Doubt, id.as_bytes(), &doubt)
        })
    }

    /// Whether anything is to be complained of, or waits for what comes of it.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn has_doubts(&self) -> Result<bool, CoreError> {
        Ok(!self.home.list::<Doubt>(Kind::Doubt, &[], 1)?.is_empty())
    }

    pub(super) fn doubt_of(&self, id: &GroupId) -> Result<Option<Doubt>, CoreError> {
        self.home.find(Kind::Doubt, id.as_bytes())
    }

    /// `message` is a commit of this epoch that cannot be used: this state stays as it is, and the commit is complained of, where
    /// there is a `reason` to.
    pub(super) fn doubt(
        &self,
        id: &GroupId,
        group: &mls::MlsGroup,
        message: &MlsMessage,
        reason: Option<ComplaintReason>,
        why: String,
    ) -> Result<(), CoreError> {
        let mut record = self.record(id)?;
        let committer = committer_of(message);
        let by = match committer {
            Some(leaf) => roster_of(group)?.get(leaf).map(|it| it.client.clone()),
            None => None,
        };
        let grounds = match (reason, committer) {
            // who came in from outside built on what the committer before it gave, and may know no better
            (Some(_), None) => self.external_pub_of(group, &record).ok().map(Grounds::outside),
            (reason, _) => reason.map(Grounds::from),
        };
        let step = if grounds.is_some() { Step::Complain } else { Step::Resync };
        let complaint = CommitComplaint {
            group_id: id.clone(),
            epoch: epoch_of(group),
            leaf_index: LeafIndex(group.own_leaf_index().u32()),
            commit_hash: bounded(crypto::sha256(message.as_slice()).to_vec())?,
            reason: grounds.unwrap_or(ComplaintReason::Other.into()),
            signature: Signature::default(),
        };
        let doubt = Doubt {
            epoch: complaint.epoch,
            hub: record.hub.clone(),
            complaint: signed(complaint, &record)?,
            step,
            since: None,
            not_before: Timestamp(0),
        };
        self.home.put(Kind::Doubt, id.as_bytes(), &doubt)?;
        record.state = GroupState::Lost;
        self.put_record(id, &record)?;
        self.push(&Event::Unusable { group: id.clone(), by, why })
    }

    /// The hub says that `epoch` is void. Whether this client never came to it and goes on where it is.
    pub(super) fn goes_on_before(&self, id: &GroupId, epoch: Epoch) -> Result<bool, CoreError> {
        let Some(doubt) = self.doubt_of(id)? else { return Ok(false) };
        if doubt.epoch.0.saturating_add(1) != epoch.0 || epoch_of(&self.load(id)?) != doubt.epoch {
            return Ok(false);
        }
        self.home.remove(Kind::Doubt, id.as_bytes())?;
        let mut record = self.record(id)?;
        record.state = GroupState::Active;
        self.put_record(id, &record)?;
        self.push(&Event::WentBack { group: id.clone(), epoch: doubt.epoch })?;
        Ok(true)
    }

    /// The key to which who comes in from outside is to encrypt in `group`'s epoch.
    fn external_pub_of(
        &self,
        group: &mls::MlsGroup,
        record: &GroupRecord,
    ) -> Result<ExternalPub, CoreError> {
        let (provider, signer) = (self.home.provider(), record.leaf_key.open()?);
        let info =
            group.export_group_info(provider.crypto(), &signer, false).map_err(CoreError::mls)?;
        let info = info.tls_serialize_detached().map_err(CoreError::mls)?;
        for extension in GroupInfoParts::of_message(&info)?.extensions.iter() {
            if let mls::Extension::ExternalPub(key) = extension.parse().map_err(CoreError::mls)? {
                return bounded(key.external_pub().as_slice().to_vec());
            }
        }
        Err(CoreError::Invalid("openmls made a GroupInfo without external_pub"))
    }

    fn go_forward(&self, id: &GroupId, mut doubt: Doubt, now: Timestamp) -> Result<(), CoreError> {
        let mut record = self.record(id)?;
        record.resyncs.retain(|at| now.0.abs_diff(at.0) < RESYNCS_WITHIN_MS);
        let before = record.resyncs.len();
        if before >= RESYNCS_MAX {
            // the first, but for clocks that were set back
            let oldest = record.resyncs.iter().min().copied().unwrap_or(now);
            doubt.step = Step::GivenUp;
            doubt.since = Some(now);
            doubt.not_before = oldest.plus_ms(RESYNCS_WITHIN_MS);
            self.push(&Event::GaveUp { group: id.clone() })?;
            return self.home.put(Kind::Doubt, id.as_bytes(), &doubt);
        }
        record.resyncs.push(now);
        self.put_record(id, &record)?;
        if before < RESYNCS_AT_ONCE {
            self.home.remove(Kind::Doubt, id.as_bytes())?;
            return self.keep_resync(id);
        }
        doubt.step = Step::Resync;
        doubt.since = Some(now);
        doubt.not_before = now.plus_ms(RETRY_MS << (before - RESYNCS_AT_ONCE));
        self.home.put(Kind::Doubt, id.as_bytes(), &doubt)
    }
}

/// A complaint as it goes out: signed by the leaf key of its epoch, which is the one that the group has now.
pub(super) fn signed(
    mut complaint: CommitComplaint,
    record: &GroupRecord,
) -> Result<Vec<u8>, CoreError> {
    let signer = record.leaf_key.open()?;
    complaint.signature =
        signer.sign_with_label(CommitComplaint::LABEL, &complaint.to_be_signed())?;
    Ok(encode(&complaint))
}

/// The leaf that a commit is of; none: it comes from outside.
fn committer_of(message: &MlsMessage) -> Option<LeafIndex> {
    let mls::ProtocolMessage::PublicMessage(message) = super::receive::protocol_message(message)?
    else {
        return None;
    };
    match message.sender() {
        mls::Sender::Member(leaf) => Some(LeafIndex(leaf.u32())),
        mls::Sender::External(_)
        | mls::Sender::NewMemberProposal
        | mls::Sender::NewMemberCommit => None,
    }
}

/// What a complaint says of what openmls refuses a commit for. Only what the hub cannot see is its committer's doing: the tags, and what
/// the path encrypts. The rest the hub has judged as well, by another clock perhaps (a KeyPackage whose time is over by when
/// a commit is read): its committer is honest.
pub(super) fn accusation_in<E>(error: &mls::ProcessMessageError<E>) -> Option<ComplaintReason> {
    use mls::{ProcessMessageError as Refused, ValidationError as Invalid};
    use openmls::group::StageCommitError as Stage;
    let accuses = match error {
        Refused::InvalidCommit(Stage::ConfirmationTagMismatch | Stage::ConfirmationTagMissing) => {
            ComplaintReason::ConfirmationTag
        }
        Refused::InvalidCommit(
            Stage::UpdatePathError(_)
            | Stage::VerifiedUpdatePathError(_)
            | Stage::MissingDecryptionKey
            | Stage::PathLeafNodeVerificationFailure,
        ) => ComplaintReason::Path,
        // what it decrypts may be of no form that openmls foresees
        Refused::InvalidCommit(Stage::LibraryError(_))
        | Refused::LibraryError(_)
        | Refused::ValidationError(Invalid::InvalidMembershipTag | Invalid::MissingMembershipTag) => {
            ComplaintReason::Other
        }
        Refused::InvalidCommit(_)
        | Refused::ValidationError(_)
        | Refused::GroupStateError(_)
        | Refused::StorageError(_)
        | Refused::IncompatibleWireFormat
        | Refused::UnauthorizedExternalApplicationMessage
        | Refused::UnauthorizedExternalCommitMessage
        | Refused::UnsupportedProposalType => return None,
    };
    Some(accuses)
}
