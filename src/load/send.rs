//! One operation on its way: its requests, one after the other, and what each came to.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{
    crew::Accounts,
    ledger::Ledger,
    lines::{Lines, now},
    recorder::Recorder,
    request::{Kind, Request},
    result::SEND_LAG,
};
use crate::{
    client::http::HttpError,
    crypto,
    wire::{
        ds::{DsError, DsResponseBody},
        ids::{Domain, GroupId, RequestId},
    },
};

/// What a task needs to send.
pub(super) struct Sender {
    pub lines: Lines,
    pub accounts: Accounts,
    pub ledger: Arc<Ledger>,
    /// By target.
    pub domains: Vec<Domain>,
    pub began: Instant,
    /// Whether what fails in passing is sent again, as long as [`PATIENCE`]; each attempt is counted.
    pub retries: bool,
    /// Whether nobody waits for answers any more.
    pub ended: watch::Receiver<bool>,
}

/// One request of an operation.
#[derive(Clone, Copy)]
pub(super) struct One<'a> {
    pub request: &'a Request,
    pub hub: usize,
    pub group: &'a GroupId,
    pub id: RequestId,
    pub due: Duration,
    /// Members of the group who read their queues.
    pub readers: u32,
    /// Its operation begins with it, and how late that is to be told.
    pub begins: bool,
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
    pub async fn send(&self, recorder: &Recorder, one: One<'_>) -> Verdict {
        let until = self.began.elapsed() + PATIENCE;
        let mut attempt = 0;
        loop {
            let begins = one.begins && attempt == 0;
            let error = match self.attempt(recorder, One { begins, ..one }).await {
                Ok(()) => return Verdict::Accepted,
                Err(error) => error,
            };
            let ended = *self.ended.borrow();
            if let Some(after_ms) = error.passes().filter(|_| self.retries && !ended) {
                let pause = pause(attempt, Duration::from_millis(after_ms), rand::random());
                if self.began.elapsed() + pause < until {
                    tokio::time::sleep(pause).await;
                    attempt += 1;
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

    async fn attempt(&self, recorder: &Recorder, one: One<'_>) -> Result<(), HttpError> {
        let One { request, hub, group, id, due, readers, begins } = one;
        let account = &self.accounts[request.account as usize];
        let name = request.kind.name();
        let mut ended = self.ended.clone();
        let given_up = || {
            recorder.unanswered(name, "run_end", due);
            Err(HttpError::StreamEnded("the run is over".to_owned()))
        };
        let turn = tokio::select! {
            turn = self.lines.turn(self.lines.target_of(request.account)) => turn,
            _ = ended.wait_for(|ended| *ended) => {
                recorder.sent(name);
                return given_up();
            }
        };
        recorder.sent(name);
        if begins {
            // what waited for a place until now was the generator's, and not the provider's
            let late = self.began.elapsed().saturating_sub(due);
            recorder.observed(SEND_LAG, due, late);
            recorder.began(name, due, late);
        }
        let answer = async {
            let message = request.sign(account, &self.domains[hub], group, id, now())?;
            turn.ds(account, request.kind.endpoint(), message).await
        };
        let answer = tokio::select! {
            answer = answer => answer,
            _ = ended.wait_for(|ended| *ended) => return given_up(),
        };
        let latency = self.began.elapsed().saturating_sub(due);
        match &answer {
            Ok(body) => {
                recorder.answered(name, due, latency);
                if let DsResponseBody::Accepted(accepted) = body {
                    // who comes in by it is no member yet, and nobody gets what it sent itself
                    let own = request.kind != Kind::Join && self.ledger.reads(request.account);
                    let readers = readers.saturating_sub(own.into());
                    let (sequence, at) = (accepted.group_sequence, accepted.accepted_at);
                    self.ledger.accepted(group.as_bytes(), sequence, at, readers);
                }
            }
            Err(HttpError::Refused(error)) => recorder.refused(name, error.name(), due, latency),
            Err(error) => recorder.unanswered(name, why(error), due),
        }
        answer.map(|_| ())
    }

    /// Sends the requests of a step as `due`. What the hub made of the first `holds` is told as soon as it is known, and at the end that
    /// all are over.
    pub async fn perform(
        self: Arc<Self>,
        recorder: Recorder,
        work: Work,
        tell: impl Fn(Told) + Send,
    ) {
        let Work { requests, holds, hub, group, id, due, readers } = work;
        let holds = usize::from(holds).clamp(1, requests.len());
        let mut due = due;
        for (at, request) in requests.iter().enumerate() {
            // the last of those that hold is what a script may have to repeat
            let id = if at + 1 == holds { id } else { RequestId(crypto::random()) };
            let begins = at == 0;
            let one = One { request, hub, group: &group, id, due, readers, begins };
            let verdict = self.send(&recorder, one).await;
            let accepted = verdict == Verdict::Accepted;
            if at + 1 == holds || at < holds && !accepted {
                tell(Told::Judged(verdict));
            }
            if !accepted {
                break;
            }
            // what follows is asked for by who got this answer
            due = self.began.elapsed();
        }
        tell(Told::Over);
    }
}

/// What is told of a step on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// Its group can go on.
    Judged(Verdict),
    /// Its last request is over.
    Over,
}

/// How long to wait behind this many attempts that failed: what the provider asks for, and each time about twice as long. `chance` (0 to 1)
/// spreads those who failed together.
fn pause(attempt: u32, asked: Duration, chance: f64) -> Duration {
    let grown = PAUSE_MIN.saturating_mul(1 << attempt.min(16)).min(PAUSE_MAX);
    asked.max(grown.mul_f64(0.5 + chance))
}

/// A step, and how it is sent.
pub(super) struct Work {
    pub requests: Vec<Request>,
    pub holds: u8,
    pub hub: usize,
    pub group: GroupId,
    pub id: RequestId,
    pub due: Duration,
    /// Members of the group who read their queues.
    pub readers: u32,
}

/// In a word, for a table of errors.
pub(super) fn why(error: &HttpError) -> &'static str {
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
const PAUSE_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        client::http::{Caller, Http},
        crypto::SigningKey,
        load::{
            account::Account,
            request::{Kind, Signer},
            workload::Target,
        },
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

    /// Time passes where nothing else happens.
    #[tokio::test(start_paused = true)]
    async fn who_is_away_is_asked_ever_less_often_and_not_for_ever() {
        let away = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", away.local_addr().unwrap());
        drop(away);
        let domain = Domain::new("a.example").unwrap();
        let target = Target { domain: domain.clone(), url, certificate: None };
        let client = ClientUri::new("mimi://a.example/d/alice/phone").unwrap();
        let (_goes_on, is_ended) = watch::channel(false);
        let sender = Sender {
            lines: Lines::new(&[target], 1).unwrap(),
            accounts: Arc::new(vec![Account::generate(client).unwrap()]),
            ledger: Arc::default(),
            domains: vec![domain.clone()],
            began: Instant::now(),
            retries: true,
            ended: is_ended,
        };
        let (kind, signer) = (Kind::Message, Signer::Leaf);
        let request = Request { kind, account: 0, signer, sender: vec![], body: vec![] };
        let (group, id) = (GroupId::of(&domain, [1; 16]), RequestId(crypto::random()));
        let recorder = Recorder::new(Duration::ZERO);
        let due = Duration::ZERO;
        let (hub, readers) = (0, 0);
        let one = One { request: &request, hub, group: &group, id, due, readers, begins: true };
        assert_eq!(sender.send(&recorder, one).await, Verdict::Unknown);
        let operations = recorder.measured().operations;
        let attempts = operations["message"].errors.get("connection").copied().unwrap_or_default();
        assert!((6..30).contains(&attempts), "{:?}", operations["message"].errors);
        assert_eq!(operations[SEND_LAG].answered, 1, "however often it is tried");
        let tried_for = sender.began.elapsed();
        assert!(tried_for > PATIENCE / 2 && tried_for <= PATIENCE, "{tried_for:?}");
    }

    #[test]
    fn pauses_grow_are_not_the_same_for_all_and_are_as_long_as_is_asked() {
        let none = Duration::ZERO;
        assert_eq!(pause(0, none, 0.5), PAUSE_MIN);
        assert_eq!(pause(3, none, 0.5), PAUSE_MIN * 8);
        assert_eq!(pause(u32::MAX, none, 0.5), PAUSE_MAX);
        assert!(pause(3, none, 0.0) < pause(3, none, 0.9));
        let asked = Duration::from_secs(7);
        assert_eq!(pause(0, asked, 0.9), asked);
        assert!(pause(9, Duration::from_millis(1), 0.5) > asked / 2);
    }
}
