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
