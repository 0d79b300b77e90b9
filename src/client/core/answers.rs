//! What came of a request that another process, or another task, of the same home got answered.
//!
//! Whoever asks for something waits for the answer to it; in the meantime anybody else in the home may have sent the
//! request on and been given it. It is kept here until the one who asked takes it.

use super::{
    CoreError, Kind, Member, Refusal,
    records::{AnswerRecord, StoredAnswer},
    settle::Settled,
};
use crate::wire::{
    codec::{List, decode, encode},
    ds::{Accepted, DsError, DsResponse},
    ids::{RequestId, Timestamp},
};

/// Answers that are kept; beyond, the oldest is forgotten. Who asked may have ended without waiting.
pub(super) const ANSWERS_MAX: u64 = 100;

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Accepted(Accepted),
    /// The group was found as was wanted.
    AlreadySo,
    Refused(Refusal),
    /// It was not gone on with, and why.
    GivenUp(String),
}

impl Member {
    /// As [`Member::settle`], for a request that somebody else may wait for: what came of it is kept for them.
    ///
    /// # Errors
    /// As [`Member::settle`].
    pub fn settle_for_another(
        &self,
        request: RequestId,
        response: &DsResponse,
        now: Timestamp,
    ) -> Result<Settled, CoreError> {
        self.home.step(|| {
            let asked = self.find_pending(request)?.is_some_and(|(_, pending)| pending.asked);
            let settled = self.settle_here(request, response, now)?;
            let answer = match &settled {
                Settled::Done(accepted) => Answer::Accepted(*accepted),
                Settled::Entered => Answer::AlreadySo,
                Settled::Refused(refusal) => Answer::Refused(refusal.clone()),
                Settled::Again { .. } => return Ok(settled),
            };
            if asked {
                self.keep_answer(request, answer)?;
            }
            Ok(settled)
        })
    }

    /// As [`Member::give_up`], for a request that somebody else may wait for: they are told `answer`.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn give_up_for_another(&self, request: RequestId, answer: Answer) -> Result<(), CoreError> {
        self.home.step(|| {
            let Some((key, pending)) = self.find_pending(request)? else { return Ok(()) };
            let asked = pending.asked;
            self.abandon(&key, pending)?;
            if asked { self.keep_answer(request, answer) } else { Ok(()) }
        })
    }

    /// What came of a request that was settled for whoever asked for it. It is forgotten with that. None: nobody has
    /// settled it, or that was too many answers ago.
    ///
    /// # Errors
    /// [`CoreError::Store`]
    pub fn take_answer(&self, request: RequestId) -> Result<Option<Answer>, CoreError> {
        self.home.step(|| {
            let all = self.home.list::<AnswerRecord>(Kind::Answer, &[], usize::MAX)?;
            let Some((key, record)) = all.into_iter().find(|(_, it)| it.request == request) else {
                return Ok(None);
            };
            self.home.remove(Kind::Answer, &key)?;
            let answer = match record.answer {
                StoredAnswer::Accepted(bytes) => Answer::Accepted(decode(&bytes)?),
                StoredAnswer::AlreadySo => Answer::AlreadySo,
                StoredAnswer::Refused(bytes) => Answer::Refused(Refusal(decode(&bytes)?)),
                StoredAnswer::GivenUp(why) => Answer::GivenUp(why),
            };
            Ok(Some(answer))
        })
    }

    /// Inside a step.
    pub(super) fn keep_answer(&self, request: RequestId, answer: Answer) -> Result<(), CoreError> {
        let answer = match answer {
            Answer::Accepted(accepted) => StoredAnswer::Accepted(encode(&accepted)),
            Answer::AlreadySo => StoredAnswer::AlreadySo,
            Answer::Refused(Refusal(error)) => StoredAnswer::Refused(encode(&without_news(error))),
            Answer::GivenUp(why) => StoredAnswer::GivenUp(why),
        };
        let number = self.home.next_number(Kind::Answer)?;
        let record = AnswerRecord { request, answer };
        self.home.put(Kind::Answer, &number.to_be_bytes(), &record)?;
        let forgotten = number.saturating_sub(ANSWERS_MAX);
        self.home.remove_until(Kind::Answer, &forgotten.to_be_bytes())
    }
}

/// A refusal without the group's messages in it, which were taken in already and may be large.
fn without_news(mut error: DsError) -> DsError {
    match &mut error {
        DsError::WrongEpoch { missed, .. } => *missed = List::default(),
        DsError::PendingProposals { pending, .. } => *pending = List::default(),
        DsError::GroupMoved { chain, .. } => *chain = List::default(),
        DsError::Malformed { .. }
        | DsError::UnsupportedVersion { .. }
        | DsError::Unauthenticated { .. }
        | DsError::NotAuthorized { .. }
        | DsError::GroupNotFound { .. }
        | DsError::InvalidGroupId { .. }
        | DsError::InvalidKeyPackage { .. }
        | DsError::InvalidGroupInfo { .. }
        | DsError::InvalidCommit { .. }
        | DsError::InvalidProposal { .. }
        | DsError::InvalidMessage { .. }
        | DsError::GroupMigrating { .. }
        | DsError::TooLarge { .. }
        | DsError::RateLimited { .. }
        | DsError::Unavailable { .. }
        | DsError::Internal { .. }
        | DsError::StaleRequest { .. } => {}
    }
    error
}
