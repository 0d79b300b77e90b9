//! The network: who reaches whom, how late, how often, and whether at all.
//!
//! A request that is lost is one whose connection dies: whoever waits learns it by its own timeout. A provider that is down refuses
//! connections, one that crashes resets them. Nothing is lost for good: that is for whoever tries again.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::{BoxFuture, LocalBoxFuture};
use tokio::sync::{mpsc, oneshot};

use super::{
    Mutation, Time,
    bounds::Bounds,
    trace::{Chance, Trace},
};
use crate::{
    actors::Node,
    client::http::simulated,
    federation::{CallError, HttpAnswer, Transport},
    http::doors::Doors,
    wire::{
        client::{ClientMessage, ClientResponse, Dequeued},
        codec::{List, Opaque},
        decode,
        ds::{Accepted, DsError, DsMessage, DsRequest, DsResponse, DsResponseBody, Outcome},
        encode,
        ids::{ClientUri, Domain, GroupId, Sequence, Timestamp},
        queueing::{QueueEntry, QueueEvent},
    },
};

/// Something that is done inside of a provider's process.
pub(super) type Job = Box<dyn FnOnce(Rc<Inside>) -> LocalBoxFuture<'static, ()> + Send>;

/// What a process is asked by.
pub(super) struct Inside {
    pub doors: Doors,
    pub node: Node,
}

/// What clients were handed since somebody looked, in order.
#[derive(Clone, Default)]
pub(super) struct Handed(Arc<Mutex<Vec<Handful>>>);

/// What one client was handed by one answer.
pub(super) type Handful = (ClientUri, Vec<QueueEntry>);

impl Handed {
    pub fn take(&self) -> Vec<Handful> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

pub(super) struct Net {
    chance: Chance,
    trace: Trace,
    pub bounds: Bounds,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    processes: BTreeMap<Domain, mpsc::UnboundedSender<Job>>,
    /// From, to.
    cut: BTreeSet<(String, String)>,
    weather: Weather,
    mutation: Option<Mutation>,
    /// Groups whose hub has proposed a removal: for [`Mutation::RefusesCommits`].
    proposed: BTreeSet<GroupId>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    lost: u64,
    doubled: u64,
    delay_ms_max: u64,
}

#[derive(Clone)]
enum Knock {
    Client { path: String, body: Vec<u8> },
    Message { path: &'static str, body: Vec<u8> },
    Keys { path: &'static str },
}

impl Net {
    pub fn new(chance: Chance, trace: Trace, time: Time) -> Self {
        Self { chance, trace, bounds: Bounds::new(time), state: Mutex::default() }
    }

    pub fn enter(&self, domain: &Domain, jobs: mpsc::UnboundedSender<Job>) {
        self.bounds.disturbs_all(domain, true);
        self.state.lock().unwrap().processes.insert(domain.clone(), jobs);
    }

    pub fn leave(&self, domain: &Domain) {
        self.bounds.disturbs_all(domain, false);
        self.state.lock().unwrap().processes.remove(domain);
    }

    pub fn plant(&self, mutation: Option<Mutation>) {
        self.state.lock().unwrap().mutation = mutation;
    }

    fn has(&self, mutation: Mutation) -> bool {
        self.state.lock().unwrap().mutation == Some(mutation)
    }

    /// The hub of a group has proposed that somebody be removed.
    pub fn removal_proposed(&self, group: &GroupId) {
        self.state.lock().unwrap().proposed.insert(group.clone());
    }

    pub fn change_weather(&self) {
        let weather = match self.chance.below(4) {
            0 => Weather { lost: 0, doubled: 0, delay_ms_max: 50 },
            1 => Weather { lost: 10, doubled: 20, delay_ms_max: 400 },
            2 => Weather { lost: 60, doubled: 60, delay_ms_max: 3_000 },
            _ => Weather { lost: 300, doubled: 100, delay_ms_max: 20_000 },
        };
        self.trace.note(|| format!("{weather:?}"));
        self.state.lock().unwrap().weather = weather;
    }

    /// Nothing reaches `other` from `one`, or neither from the other.
    pub fn cut(&self, one: &Domain, other: &Domain, both: bool) {
        self.trace.note(|| format!("{one} is cut off from {other}; both ways: {both}"));
        self.trace.count(|counts| counts.partitions += 1);
        let mut state = self.state.lock().unwrap();
        state.cut.insert((one.to_string(), other.to_string()));
        if both {
            state.cut.insert((other.to_string(), one.to_string()));
        }
    }

    pub fn join(&self, one: &Domain, other: &Domain) {
        self.trace.note(|| format!("{one} and {other} are joined"));
        self.bounds.disturbed(one, other);
        self.bounds.disturbed(other, one);
        let mut state = self.state.lock().unwrap();
        state.cut.remove(&(one.to_string(), other.to_string()));
        state.cut.remove(&(other.to_string(), one.to_string()));
    }

    /// Everything gets through from now on.
    pub fn mend(&self) {
        self.bounds.disturbs_everything();
        let mut state = self.state.lock().unwrap();
        state.cut.clear();
        state.weather = Weather { lost: 0, doubled: 0, delay_ms_max: 50 };
    }

    /// Has something done inside of a process; none where it is down or ends meanwhile.
    pub async fn ask<T: Send + 'static>(
        &self,
        domain: &Domain,
        ask: impl FnOnce(Rc<Inside>) -> LocalBoxFuture<'static, T> + Send + 'static,
    ) -> Option<T> {
        let process = self.state.lock().unwrap().processes.get(domain).cloned()?;
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |inside| {
            Box::pin(async move {
                let _ = reply.send(ask(inside).await);
            })
        });
        process.send(job).ok()?;
        answer.await.ok()
    }

    /// While they are cut off from each other nothing is expected.
    pub fn look_at_cuts(&self, one: &Domain, other: &Domain) {
        if self.is_cut(one.as_str(), other.as_str()) || self.is_cut(other.as_str(), one.as_str()) {
            self.bounds.disturbed(one, other);
        }
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        self.state.lock().unwrap().cut.contains(&(from.to_owned(), to.to_owned()))
    }

    async fn pause(&self) {
        let most = self.state.lock().unwrap().weather.delay_ms_max;
        tokio::time::sleep(Duration::from_millis(self.chance.between(1, most + 2))).await;
    }

    fn is_lost(&self) -> bool {
        let lost = self.state.lock().unwrap().weather.lost;
        self.chance.of_thousand(lost)
    }

    async fn carry(&self, from: &str, to: &Domain, knock: Knock) -> Result<HttpAnswer, String> {
        let line = match &knock {
            Knock::Client { path, .. } => path.as_str(),
            Knock::Message { path, .. } | Knock::Keys { path } => path,
        };
        let line = line.to_owned();
        let number = self.trace.count(|counts| {
            counts.requests += 1;
            counts.requests
        });
        let note = |what: &str| self.trace.note(|| format!("{number} {what}"));
        note(&format!("{from} > {to} {line} of {} bytes", knock.bytes()));
        if self.is_cut(from, to.as_str()) {
            if self.chance.below(2) == 0 {
                note("finds no route");
                return Err("no route".to_owned());
            }
            note("is cut off");
            std::future::pending::<()>().await;
        }
        self.pause().await;
        if self.is_lost() {
            note("is lost");
            std::future::pending::<()>().await;
        }
        let process = self.state.lock().unwrap().processes.get(to).cloned();
        let Some(process) = process else {
            note("is refused");
            return Err("connection refused".to_owned());
        };
        let doubled = self.state.lock().unwrap().weather.doubled;
        if self.chance.of_thousand(doubled) {
            let late = Duration::from_millis(self.chance.between(1, 120_000));
            note("is doubled");
            let (again, trace) = (knock.clone(), self.trace.clone());
            let _ = process.send(Box::new(move |inside| {
                Box::pin(async move {
                    tokio::time::sleep(late).await;
                    let answer = again.at(&inside).await;
                    trace.note(|| format!("{number} comes again: {}", told(&answer)));
                })
            }));
        }
        let (mut reply, answer) = oneshot::channel();
        // a server may or may not go on with what nobody waits for any more
        let goes_on = self.chance.below(2) == 0;
        let trace = self.trace.clone();
        let sent = process.send(Box::new(move |inside| {
            Box::pin(async move {
                trace.note(|| format!("{number} arrives"));
                let answer = tokio::select! {
                    biased;
                    answer = knock.at(&inside) => answer,
                    () = reply.closed(), if !goes_on => return trace.note(|| format!("{number} is let go")),
                };
                trace.note(|| format!("{number} is answered: {}", told(&answer)));
                let _ = reply.send(answer);
            })
        }));
        sent.map_err(|_| "connection refused")?;
        let Ok(answer) = answer.await else {
            note("is reset");
            return Err("connection reset".to_owned());
        };
        if self.is_cut(to.as_str(), from) || self.is_lost() {
            note("has its answer lost");
            std::future::pending::<()>().await;
        }
        self.pause().await;
        note("has its answer");
        Ok(answer)
    }

    /// What clients are connected by.
    pub fn for_clients(self: &Arc<Self>, handed: Handed) -> simulated::Network {
        let net = Arc::clone(self);
        Arc::new(move |base, path, body| {
            let (net, handed, path) = (Arc::clone(&net), handed.clone(), path.to_owned());
            let to = Domain::new(base.trim_start_matches("sim://")).unwrap();
            Box::pin(async move { net.client(&handed, &to, path, body).await })
        })
    }

    async fn client(
        &self,
        handed: &Handed,
        to: &Domain,
        path: String,
        body: Vec<u8>,
    ) -> simulated::Answer {
        let message: ClientMessage = decode(&body).unwrap();
        let client = message.client.clone();
        let is_dequeue = path == "/v1/dequeue";
        let commits_in = (path == "/v1/group_operation")
            .then(|| decode::<DsMessage>(message.body.as_slice()).unwrap())
            .filter(|message| matches!(message.request, DsRequest::UpdateClient(_)))
            .map(|message| message.context.group_id);
        if let Some(group) = &commits_in
            && self.has(Mutation::RefusesCommits)
            && self.state.lock().unwrap().proposed.contains(group)
        {
            return Err("a planted fault".to_owned());
        }
        let answer = self.carry(client.as_str(), to, Knock::Client { path, body }).await?;
        let (status, mut body) = (answer.status, answer.body);
        if commits_in.is_some() && self.has(Mutation::AcceptsBoth) {
            body = won(body);
        }
        if is_dequeue && status == 200 {
            let response: ClientResponse = decode(&body).unwrap();
            if let Ok(answer) = response.outcome.into_result() {
                let dequeued: Dequeued = decode(answer.as_slice()).unwrap();
                let mut entries = dequeued.entries.into_vec();
                if self.has(Mutation::DropsEntry)
                    && !entries.is_empty()
                    && self.chance.of_thousand(20)
                {
                    entries.remove(0);
                    body = answer_with(&entries);
                }
                if self.has(Mutation::ForgetsDeletion) {
                    entries.retain(|it| it.event != QueueEvent::GroupDeleted);
                    body = answer_with(&entries);
                }
                let last = entries.last().filter(|it| it.event == QueueEvent::Removed).cloned();
                if let Some(mut more) = last
                    && self.has(Mutation::HandsBehindRemoval)
                {
                    (more.previous, more.sequence) = (more.sequence, more.sequence.next());
                    entries.push(more);
                    body = answer_with(&entries);
                }
                if !entries.is_empty() {
                    self.trace.note(|| format!("{client} gets {}", listed(&entries)));
                }
                handed.0.lock().unwrap().push((client, entries));
            }
        }
        Ok((status, body))
    }
}

fn listed(entries: &[QueueEntry]) -> String {
    let entry = |it: &QueueEntry| format!("{}:{}<{}", it.feed.0, it.previous.0, it.sequence.0);
    entries.iter().map(entry).collect::<Vec<_>>().join(" ")
}

/// What is said to who has lost a race for an epoch, as if it had won.
fn won(body: Vec<u8>) -> Vec<u8> {
    let mut response: DsResponse = decode(&body).unwrap();
    let Outcome::Err(DsError::WrongEpoch { current_epoch, .. }) = response.outcome else {
        return body;
    };
    response.outcome = Outcome::Ok(DsResponseBody::Accepted(Accepted {
        group_sequence: Sequence(u64::from(u32::MAX)),
        accepted_at: Timestamp(0),
        epoch: current_epoch,
    }));
    encode(&response)
}

fn answer_with(entries: &[QueueEntry]) -> Vec<u8> {
    let dequeued = Dequeued { entries: List::new(entries.to_vec()).unwrap() };
    let outcome = Outcome::Ok(Opaque::new(encode(&dequeued)).unwrap());
    encode(&ClientResponse { outcome })
}

/// How it is answered. Not what the bytes are: those of HPKE are by chance of the operating system.
fn told(answer: &HttpAnswer) -> String {
    format!("{}, {} bytes", answer.status, answer.body.len())
}

impl Knock {
    fn bytes(&self) -> usize {
        match self {
            Self::Client { body, .. } | Self::Message { body, .. } => body.len(),
            Self::Keys { .. } => 0,
        }
    }

    async fn at(self, inside: &Inside) -> HttpAnswer {
        match self {
            Self::Client { path, body } => {
                let (status, body) = inside.doors.client(&path, &body).await;
                HttpAnswer { status, retry_after_ms: None, body }
            }
            Self::Message { path, body } => inside.doors.message(path, &body).await,
            Self::Keys { path } => inside.doors.keys(path),
        }
    }
}

/// What a provider sends to another by its own schedule; all else a client waits for.
const DELIVERIES: &str = "/deliver_message";

/// The way out of one provider.
pub(super) struct Road {
    pub from: Domain,
    pub net: Arc<Net>,
}

impl Road {
    async fn carry(
        &self,
        to: &Domain,
        knock: Knock,
        timeout: Duration,
    ) -> Result<HttpAnswer, CallError> {
        let is_delivery = matches!(knock, Knock::Message { path: DELIVERIES, .. });
        if is_delivery {
            self.net.bounds.tries(&self.from, to);
        }
        let carried = self.net.carry(self.from.as_str(), to, knock);
        let answer = tokio::time::timeout(timeout, carried).await;
        let answer = answer.map_err(|_| CallError::Timeout)?.map_err(CallError::Unreachable);
        match &answer {
            Ok(_) if is_delivery => self.net.bounds.answered(&self.from, to),
            Ok(_) => {}
            Err(_) => {
                // an answer may rest on something that is asked in the other direction
                self.net.bounds.disturbed(&self.from, to);
                self.net.bounds.disturbed(to, &self.from);
            }
        }
        answer
    }
}

impl Transport for Road {
    fn get<'a>(
        &'a self,
        peer: &'a Domain,
        path: &'static str,
        _: usize,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<HttpAnswer, CallError>> {
        Box::pin(self.carry(peer, Knock::Keys { path }, timeout))
    }

    fn post<'a>(
        &'a self,
        peer: &'a Domain,
        path: &'static str,
        body: Vec<u8>,
        _: usize,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<HttpAnswer, CallError>> {
        Box::pin(self.carry(peer, Knock::Message { path, body }, timeout))
    }
}
