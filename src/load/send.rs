//! One operation on its way: its requests, one after the other, and what each came to.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{
    account::Account,
    crew::Accounts,
    lines::{Lines, now},
    recorder::Recorder,
    request::Request,
};
use crate::{
    client::http::HttpError,
    crypto,
    wire::{
        ds::DsError,
        ids::{Domain, GroupId, RequestId},
    },
};

/// What a task needs to send.
pub(super) struct Sender {
    pub lines: Lines,
    pub accounts: Accounts,
    /// By target.
    pub domains: Vec<Domain>,
    pub began: Instant,
    /// Whether what fails in passing is sent again, as long as [`PATIENCE`]; each attempt is counted.
    pub retries: bool,
    /// Whether nobody waits for answers any more.
    pub ended: watch::Receiver<bool>,
}

/// What the hub made of an operation, as its group's script needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Accepted,
    /// The group is in this epoch.
    WrongEpoch(u64),
    /// It may or may not have been accepted: the same request under the same id says which.
    Unknown,
    Refused,
}

impl Sender {
    /// Sends a request until it is answered for good, as `due`.
    pub async fn send(
        &self,
        recorder: &Recorder,
        request: &Request,
        hub: usize,
        group: &GroupId,
        id: RequestId,
        due: Duration,
    ) -> Verdict {
        let until = self.began.elapsed() + PATIENCE;
        let account = &self.accounts[request.account as usize];
        loop {
            let error = match self.attempt(recorder, request, account, hub, group, id, due).await {
                Ok(()) => return Verdict::Accepted,
                Err(error) => error,
            };
            let ended = *self.ended.borrow();
            if let Some(after_ms) = error.passes().filter(|_| self.retries && !ended) {
                let pause = Duration::from_millis(after_ms).max(PAUSE_MIN);
                if self.began.elapsed() + pause < until {
                    tokio::time::sleep(pause).await;
                    continue;
                }
            }
            return match error {
                HttpError::Refused(DsError::WrongEpoch { current_epoch, .. }) => {
                    Verdict::WrongEpoch(current_epoch.0)
                }
                // the group waits for a commit of others, or a clock is off: neither was accepted
                HttpError::Refused(
                    DsError::RateLimited { .. }
                    | DsError::Unavailable { .. }
                    | DsError::Internal { .. }
                    | DsError::GroupMigrating { .. }
                    | DsError::StaleRequest { .. }
                    | DsError::PendingProposals { .. },
                ) => Verdict::Unknown,
                HttpError::Refused(_) => Verdict::Refused,
                HttpError::Certificate(_)
                | HttpError::Unreachable { .. }
                | HttpError::Untrusted { .. }
                | HttpError::ClockOff(_)
                | HttpError::Answer(_)
                | HttpError::Status(_)
                | HttpError::TooLarge
                | HttpError::RequestTooLarge
                | HttpError::Signing(_)
                | HttpError::StreamEnded(_) => Verdict::Unknown,
            };
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a request, and all that is signed with it")]
    async fn attempt(
        &self,
        recorder: &Recorder,
        request: &Request,
        account: &Account,
        hub: usize,
        group: &GroupId,
        id: RequestId,
        due: Duration,
    ) -> Result<(), HttpError> {
        let name = request.kind.name();
        recorder.sent(name);
        let target = self.lines.target_of(request.account);
        let answer = async {
            let message = request.sign(account, &self.domains[hub], group, id, now())?;
            self.lines.ds(account, target, request.kind.endpoint(), message).await
        };
        let mut ended = self.ended.clone();
        let answer = tokio::select! {
            answer = answer => answer,
            _ = ended.wait_for(|ended| *ended) => {
                recorder.unanswered(name, "run_end", due);
                return Err(HttpError::StreamEnded("the run is over".to_owned()));
            }
        };
        let latency = self.began.elapsed().saturating_sub(due);
        match &answer {
            Ok(_) => recorder.answered(name, due, latency),
            Err(HttpError::Refused(error)) => recorder.refused(name, error.name(), due, latency),
            Err(error) => recorder.unanswered(name, why(error), due),
        }
        answer.map(|_| ())
    }

    /// Sends the requests of a step as `due`; those behind the first `holds` after `over` was told.
    pub async fn perform(
        self: Arc<Self>,
        recorder: Recorder,
        work: Work,
        over: impl FnOnce(Verdict) + Send,
    ) {
        let Work { requests, holds, hub, group, id, due } = work;
        let holds = usize::from(holds).clamp(1, requests.len());
        let mut over = Some(over);
        let mut due = due;
        for (at, request) in requests.iter().enumerate() {
            // the last of those that hold is what a script may have to repeat
            let id = if at + 1 == holds { id } else { RequestId(crypto::random()) };
            let verdict = self.send(&recorder, request, hub, &group, id, due).await;
            let is_over = at + 1 == holds || verdict != Verdict::Accepted;
            if is_over && let Some(over) = over.take() {
                over(verdict);
            }
            if verdict != Verdict::Accepted {
                return;
            }
            // what follows is asked for by who got this answer
            due = self.began.elapsed();
        }
    }
}

/// A step, and how it is sent.
pub(super) struct Work {
    pub requests: Vec<Request>,
    pub holds: u8,
    pub hub: usize,
    pub group: GroupId,
    pub id: RequestId,
    pub due: Duration,
}

/// In a word, for a table of errors.
fn why(error: &HttpError) -> &'static str {
    match error {
        HttpError::Unreachable { is_timeout: true, .. } => "timeout",
        HttpError::Unreachable { .. } => "connection",
        HttpError::Untrusted { .. } | HttpError::Certificate(_) => "tls",
        HttpError::Status(_) => "http_status",
        HttpError::Answer(_) | HttpError::TooLarge => "unreadable",
        HttpError::ClockOff(_) | HttpError::StreamEnded(_) => "stream",
        HttpError::RequestTooLarge | HttpError::Signing(_) | HttpError::Refused(_) => "generator",
    }
}

const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE_MIN: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        client::http::{Caller, Http},
        crypto::SigningKey,
        wire::{extensions::SignatureScheme, ids::ClientUri},
    };

    /// Time passes where nothing else happens.
    #[tokio::test(start_paused = true)]
    async fn who_never_answers_is_a_timeout_and_who_is_not_there_is_none() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = ClientUri::new("mimi://a.example/d/alice/phone").unwrap();
        let key = SigningKey::generate(SignatureScheme::ED25519).unwrap();
        let caller = || Caller { client: &client, key: &key, now: now() };
        let asked = async |address: std::net::SocketAddr| {
            let http = Http::new(&format!("https://{address}"), None).unwrap();
            let call = http.tell(&caller(), "/v1/acknowledge", Vec::new()).await.unwrap_err();
            let stream = http.stream(&caller()).await.map(|_| ()).unwrap_err();
            (why(&call), why(&stream))
        };
        let address = silent.local_addr().unwrap();
        assert_eq!(asked(address).await, ("timeout", "timeout"));
        drop(silent);
        assert_eq!(asked(address).await, ("connection", "connection"));
    }
}
