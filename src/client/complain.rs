//! Reporting commits that this client cannot use, and doing what comes of it. PROTOCOL.md §2, "When a committer lies".
//!
//! A complaint is kept with the group before it is sent ([`super::core`]), and repeated until the hub says how to go on.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Client, ClientError,
    core::{CoreError, Heard},
};
use crate::wire::{ds::ComplaintResponse, encode};

/// How long one complaint may hold up something else.
const IN_PASSING: Duration = Duration::from_secs(2);

impl Client {
    /// Looks behind other members' commits where it is this client's turn: what is found is complained of next. One hub that does
    /// not answer is enough for once, so that many do not hold up who calls this.
    pub(super) async fn look_in_passing(&self) -> Result<(), ClientError> {
        let now = self.now();
        let due = self.member().looks_due(now)?;
        let all_until = Instant::now() + IN_PASSING;
        for (group, question) in due {
            if Instant::now() >= all_until {
                return Ok(());
            }
            let body = encode(&question.message);
            let asked = self.as_caller(async |http, caller| {
                http.ds(caller, "/v1/external_commit_information", body).await
            });
            let answer = tokio::time::timeout_at(all_until, asked).await;
            let answer = answer.ok().and_then(|answer| {
                answer.inspect_err(|error| tracing::debug!(%error, "a look stays for later")).ok()
            });
            let now = self.now();
            self.member().looked(&group, answer.as_ref(), now)?;
        }
        Ok(())
    }

    /// Sends the complaints that are due; resyncs that follow from them are kept as requests.
    pub(super) async fn complain_in_passing(&self) -> Result<(), ClientError> {
        let now = self.now();
        let due = self.member().complaints_due(now)?;
        for (group, complain) in due {
            let until = Instant::now() + IN_PASSING;
            let answer: Result<ComplaintResponse, ClientError> =
                self.call_until(until, "/v1/complaint", encode(&complain)).await;
            let heard = match answer {
                Ok(response) => Heard::Answer(response),
                Err(error @ ClientError::Core(CoreError::Store(_))) => return Err(error),
                Err(error) if error.passes() => {
                    tracing::debug!(%error, "a complaint stays for later");
                    Heard::Nothing
                }
                Err(error) => {
                    tracing::warn!(%error, "a complaint was refused");
                    Heard::Refused
                }
            };
            let now = self.now();
            self.member().complaint_heard(&group, heard, now)?;
        }
        Ok(())
    }
}
