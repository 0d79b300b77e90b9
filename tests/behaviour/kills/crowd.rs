//! Users of two providers with clients that do everything at once, and write down what they were answered.

mod account;
mod proposing;
mod stock;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mimid::{
    client::{
        Authorization, Client, ClientError, Outcome, Registration,
        core::{
            Event, GroupState, Handled, Home, Member, NewProposal, PolicyChange, Refusal, Right,
            SUITES,
        },
        http::{Caller, Http},
        system_clock,
    },
    crypto,
    store::{self, StoreConfig, records::GroupStatus},
    wire::{
        client::{Dequeue, Dequeued, KeyPackagesLeft},
        codec::List,
        ds::DsError,
        encode,
        extensions::{JoinPolicy, Role},
        ids::{ClientUri, Domain, GroupId, UserUri},
        queueing::{FeedAck, QueueEntry, QueueEvent},
    },
};
use openmls::prelude as mls;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use tokio::sync::Notify;

use account::Accounts;
use stock::Publication;

use super::{
    Death,
    history::{Answer, Commit, History, Message, MessageKind, Said, Wire},
    links::{Link, Links},
    offers::{Answered, Offers},
    proposals::Wish,
};
use crate::providers::{PATIENCE, Player, Providers, accepted, connect};

/// The providers.
pub const DOMAINS: [&str; 3] = ["a.example", "b.example", "c.example"];
/// Who is there.
const PEOPLE: [&str; 7] = [
    "alice@a.example/phone",
    "ann@a.example/phone",
    "bob@b.example/phone",
    "ben@b.example/phone",
    "carol@c.example/phone",
    "alice@a.example/laptop",
    "bob@b.example/laptop",
];
/// So many of them have a user of their own and make groups; behind them come further devices.
pub const USERS: usize = 5;
/// How long a client tries before it goes on with something else.
const PATIENCE_OF_CLIENTS: Duration = Duration::from_millis(1_200);
/// How long it is until something is tried again that nobody keeps from it.
const AGAIN: Duration = Duration::from_millis(50);

/// One client, whose process may end at any time: its home stays.
pub struct Person {
    pub uri: ClientUri,
    user: UserUri,
    home: PathBuf,
    client: Mutex<Arc<Client>>,
    wire: Mutex<Vec<Wire>>,
    links: Mutex<Links>,
    /// The KeyPackages that it has published last, or tries to.
    publication: Mutex<Option<Publication>>,
    /// What was left on offer then.
    stock: Mutex<KeyPackagesLeft>,
    /// Groups that it has asked to leave.
    leaves: Mutex<HashSet<GroupId>>,
    http: Http,
    spoken: AtomicU64,
    /// Entries that came by a stream.
    streamed: AtomicU64,
    /// How often its provider was killed: counted before it is, and as far as its record says so.
    deaths: Arc<AtomicU64>,
    recorded_deaths: AtomicU64,
}

impl Person {
    fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client.lock().unwrap())
    }

    /// What was in memory is gone, and what is in its home is opened anew.
    fn begins_anew(&self) {
        let member = Member::open(Home::open(&self.home).unwrap()).unwrap();
        let client = Client::open(member, system_clock()).unwrap();
        *self.client.lock().unwrap() = Arc::new(client.with_patience(PATIENCE_OF_CLIENTS));
    }

    /// Its client with all the time there is: nobody is killed now.
    fn at_peace(&self) -> Client {
        let member = Member::open(Home::open(&self.home).unwrap()).unwrap();
        Client::open(member, system_clock()).unwrap()
    }

    /// Takes in what is in its queue, and writes down what came and which acknowledgements were answered.
    async fn receives(&self) -> Result<usize, ClientError> {
        let client = self.client();
        client.member().revive(system_clock()())?;
        let (acks, key) = {
            let member = client.member();
            (member.acks()?, member.identity().client_key.clone())
        };
        let body =
            encode(&Dequeue { acks: List::new(acks.clone()).unwrap(), max: 200, wait_ms: 0 });
        let now = system_clock()();
        let caller = Caller { client: &self.uri, key: &key, now };
        let deaths = self.deaths.load(Ordering::SeqCst);
        let answer = self.http.call::<Dequeued>(&caller, "/v1/dequeue", body, 0);
        let Dequeued { entries } = answer.await.map_err(ClientError::from)?;
        // an answer may be read behind the death of who gave it
        let deaths_now = self.deaths.load(Ordering::SeqCst);
        let recorded = self.recorded_deaths.swap(deaths_now, Ordering::SeqCst);
        let mut wire = if recorded < deaths { vec![Wire::Killed] } else { Vec::new() };
        wire.extend(
            acks.iter()
                .map(|ack| Wire::Acknowledged { feed: ack.feed.0, sequence: ack.sequence.0 }),
        );
        client.member().acknowledged(&acks)?;
        self.links.lock().unwrap().answer(&entries.iter().map(link).collect::<Vec<_>>());
        wire.extend(entries.iter().map(delivered));
        if deaths < deaths_now {
            wire.push(Wire::Killed);
        }
        self.wire.lock().unwrap().extend(wire);
        restocks(&client, &entries)?;
        client.member().handle_all(&entries, now)?;
        Ok(entries.len())
    }

    /// Takes in what its stream brings within `span`; its acknowledgements have no answer. An entry that waits for an answer ends it.
    async fn follows(&self, span: Duration) -> Result<(), ClientError> {
        let client = self.client();
        client.member().revive(system_clock()())?;
        let key = client.member().identity().client_key.clone();
        let caller = Caller { client: &self.uri, key: &key, now: system_clock()() };
        let deaths = self.deaths.load(Ordering::SeqCst);
        let mut stream = self.http.stream(&caller).await?;
        if self.recorded_deaths.swap(deaths, Ordering::SeqCst) < deaths {
            self.wire.lock().unwrap().push(Wire::Killed);
        }
        let ends = tokio::time::Instant::now() + span;
        let mut links = Vec::new();
        let ended = loop {
            let entry = match tokio::time::timeout_at(ends, stream.next()).await {
                Ok(Ok(entry)) => entry,
                Ok(Err(error)) => break Err(error.into()),
                Err(_) => break Ok(()),
            };
            links.push(link(&entry));
            self.wire.lock().unwrap().push(delivered(&entry));
            restocks(&client, std::slice::from_ref(&entry))?;
            let handled = client.member().handle(&entry, system_clock()())?;
            if handled == Handled::Wait {
                break Ok(());
            }
            let acks = client.member().acks()?;
            let had_more = |ack: &FeedAck| ack.feed == entry.feed && ack.sequence > entry.sequence;
            if acks.iter().any(had_more) {
                // it had come before a kill, and so had what came behind it: the stream goes on behind all that
                self.links.lock().unwrap().answer(&std::mem::take(&mut links));
            }
            if let Err(error) = stream.acknowledge(&acks).await {
                break Err(error.into());
            }
            client.member().acknowledged(&acks)?;
            self.streamed.fetch_add(1, Ordering::Relaxed);
        };
        self.links.lock().unwrap().answer(&links);
        if deaths < self.deaths.load(Ordering::SeqCst) {
            self.wire.lock().unwrap().push(Wire::Killed);
        }
        stream.close().await;
        ended
    }

    fn state_in(&self, group: &GroupId) -> Option<GroupState> {
        self.client().member().group(group).ok().map(|view| view.state)
    }

    fn events(&self) -> Vec<Event> {
        let events = self.client().member().events(0, usize::MAX).unwrap();
        events.into_iter().map(|(_, event)| event).collect()
    }
}

/// What [`Client::receive`] notes when KeyPackages run out: its next call publishes new ones.
fn restocks(client: &Client, entries: &[QueueEntry]) -> Result<(), ClientError> {
    if entries.iter().any(|entry| matches!(entry.event, QueueEvent::KeyPackagesLow { .. })) {
        client.member().set("key_packages_low", &true)?;
    }
    Ok(())
}

fn link(entry: &QueueEntry) -> Link {
    Link {
        feed: entry.feed.0,
        sequence: entry.sequence.0,
        previous: entry.previous.0,
        gap: matches!(entry.event, QueueEvent::Gap { .. }),
    }
}

fn delivered(entry: &QueueEntry) -> Wire {
    let group = String::from_utf8(entry.group_id.as_slice().to_vec()).ok();
    let group = group.and_then(|id| GroupId::new(id).ok());
    let (feed, sequence, previous) = (entry.feed.0, entry.sequence.0, entry.previous.0);
    Wire::Delivered { feed, sequence, previous, group, message: message_in(entry) }
}

fn message_in(entry: &QueueEntry) -> Option<Message> {
    let QueueEvent::MlsMessage { message } = &entry.event else { return None };
    let protocol = message.parse().ok()?.try_into_protocol_message().ok()?;
    let kind = match (protocol.content_type(), protocol.is_external()) {
        (mls::ContentType::Application, _) => MessageKind::Application,
        (mls::ContentType::Proposal, false) => MessageKind::Proposal,
        (mls::ContentType::Proposal, true) => MessageKind::ProposalFromOutside,
        (mls::ContentType::Commit, false) => MessageKind::Commit,
        (mls::ContentType::Commit, true) => MessageKind::CommitFromOutside,
    };
    let hash = crypto::sha256(&encode(&entry.event));
    Some(Message { hash, kind, epoch: protocol.epoch().as_u64() })
}

/// All of them, and what they know to have happened.
pub struct Crowd {
    pub providers: Providers,
    pub people: Vec<Person>,
    engines: [&'static str; DOMAINS.len()],
    /// Of each provider; its people know of it too.
    deaths: [Arc<AtomicU64>; DOMAINS.len()],
    pub groups: Mutex<Vec<GroupId>>,
    history: Mutex<History>,
    /// Errors that nothing explains.
    odd: Mutex<Vec<String>>,
    offers: Mutex<Offers>,
    accounts: Mutex<Accounts>,
    /// Somebody has just asked something.
    pub asked: Notify,
    pub counts: Counts,
}

/// What was answered.
#[derive(Default)]
pub struct Counts {
    pub messages: AtomicU64,
    pub commits: AtomicU64,
    pub moves: AtomicU64,
    pub joins: AtomicU64,
    pub additions: AtomicU64,
    pub removals: AtomicU64,
    pub leaves: AtomicU64,
    pub resyncs: AtomicU64,
    pub proposals: AtomicU64,
    /// Deliveries of those that were accepted, as far as the record saw them in groups that are over.
    pub proposals_seen: AtomicU64,
    pub consents: AtomicU64,
    /// Made and deleted, and groups of one member.
    pub accounts: AtomicU64,
    pub refused: AtomicU64,
    pub unanswered: AtomicU64,
}

fn counts_if<T>(outcome: &Result<T, ClientError>, counter: &AtomicU64) {
    if outcome.is_ok() {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Crowd {
    /// `engines`: of each provider.
    pub async fn gather(engines: [&'static str; DOMAINS.len()], seed: u64, death: Death) -> Self {
        let settings = engines.map(|engine| {
            format!(
                "[store]\nengine = \"{engine}\"\n[migration]\nfreeze_timeout = \"1h\"\nresponse_lifetime = \"1h\"\n\
                 [groups]\nstrict_after = \"never\""
            )
        });
        let each = DOMAINS.iter().zip(&settings).map(|(domain, it)| (*domain, it.as_str()));
        let providers = Providers::start_each(&each.collect::<Vec<_>>(), seed, &[]).await;
        if death == Death::ByPower {
            for provider in &providers.all {
                provider.kill();
                // the first start is one that may lose everything, too
                std::fs::remove_dir_all(provider.data()).unwrap();
                provider.lose_power_when_killed();
                provider.start().await;
            }
        }
        let homes = providers.folder().join("homes");
        std::fs::create_dir_all(&homes).unwrap();
        let mut players: Vec<(Player, PathBuf)> = Vec::new();
        for name in PEOPLE {
            let (user, device) = name.split_once('/').unwrap();
            let known = players
                .iter()
                .find(|(it, _)| format!("{}@{}", it.user.name(), it.user.domain()) == user);
            let authorization = known.map(|(it, _)| it.client.authorize_device().unwrap());
            let home = homes.join(name.replace(['/', '@'], "-"));
            players.push((register(&providers, user, device, &home, authorization).await, home));
        }
        // everyone knows everyone, but for further devices, which know what their user knows
        for one in 0..USERS {
            for other in 0..one {
                connect(&players[one].0, &players[other].0).await;
            }
        }
        let deaths: [Arc<AtomicU64>; DOMAINS.len()] = Default::default();
        let people = players.into_iter().map(|(player, home)| {
            let Player { client, user, uri } = player;
            let server = providers.of(&user.domain()).server();
            let at = providers.all.iter().position(|it| it.domain == user.domain()).unwrap();
            let http = Http::new(&server.url, server.certificate.as_deref().map(str::as_bytes));
            Person {
                uri,
                user,
                home,
                client: Mutex::new(Arc::new(client.with_patience(PATIENCE_OF_CLIENTS))),
                wire: Mutex::default(),
                links: Mutex::default(),
                publication: Mutex::default(),
                stock: Mutex::new(KeyPackagesLeft { group_left: 0, connection_left: 0 }),
                leaves: Mutex::default(),
                http: http.unwrap(),
                spoken: AtomicU64::new(0),
                streamed: AtomicU64::new(0),
                deaths: Arc::clone(&deaths[at]),
                recorded_deaths: AtomicU64::new(0),
            }
        });
        let people: Vec<Person> = people.collect();
        let crowd = Self {
            people,
            providers,
            engines,
            deaths: deaths.clone(),
            groups: Mutex::default(),
            history: Mutex::default(),
            odd: Mutex::default(),
            offers: Mutex::default(),
            accounts: Mutex::default(),
            asked: Notify::new(),
            counts: Counts::default(),
        };
        crowd.takes_stock().await.unwrap();
        crowd
    }

    /// SIGKILL, or a power cut.
    pub fn kill(&self, at: usize) {
        self.deaths[at].fetch_add(1, Ordering::SeqCst);
        self.providers.all[at].kill();
    }

    /// A new group of everyone, which anyone may enter and move.
    pub async fn new_group(&self, maker: usize) {
        let person = &self.people[maker];
        let client = person.at_peace();
        let group = client.create_group("crowd", SUITES[0], None).await.unwrap();
        self.history.lock().unwrap().makers.insert(group.clone(), person.uri.clone());
        let open = PolicyChange::Join(JoinPolicy::Open);
        let moves = PolicyChange::May { what: Right::Migrate, role: Role::Member };
        self.committed(
            person,
            &group,
            accepted(client.change_policy(&group, vec![open, moves]).await),
        );
        let users: HashSet<UserUri> = self.people.iter().map(|it| it.user.clone()).collect();
        let others: Vec<UserUri> = users.into_iter().filter(|it| *it != person.user).collect();
        // nobody is killed now: what has no answer yet is a moment away, and everybody can be added
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.adds_by(&client, person, &group, &others).await {
                Ok(outcome) => break self.committed(person, &group, outcome),
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", person.uri),
            }
            tokio::time::sleep(AGAIN).await;
        }
        let members = client.member().group(&group).unwrap().members;
        let is_added = |it: &&Person| it.uri == person.uri || it.user != person.user;
        let all: HashSet<&ClientUri> =
            self.people.iter().filter(is_added).map(|it| &it.uri).collect();
        assert_eq!(members.iter().map(|it| &it.client).collect::<HashSet<_>>(), all);
        self.groups.lock().unwrap().push(group);
    }

    fn committed(&self, person: &Person, group: &GroupId, outcome: Outcome) {
        let Outcome::Accepted(accepted) = outcome else { return };
        self.counts.commits.fetch_add(1, Ordering::Relaxed);
        self.history.lock().unwrap().commits.push(Commit {
            group: group.clone(),
            by: person.uri.clone(),
            sequence: accepted.group_sequence.0,
            epoch: accepted.epoch.0,
        });
    }

    /// One person does one thing after the other until it is over; now and then its process ends in the middle.
    pub async fn lives(&self, person: &Person, mut random: StdRng, over: &AtomicBool) {
        while !over.load(Ordering::SeqCst) {
            let ends = random.random_bool(0.03);
            let after = Duration::from_millis(random.random_range(0..60));
            let does = self.does_something(person, &mut random);
            if ends {
                let _ = tokio::time::timeout(after, does).await;
                person.begins_anew();
            } else {
                does.await;
            }
        }
    }

    async fn does_something(&self, person: &Person, random: &mut StdRng) {
        let group = self.groups.lock().unwrap().choose(random).cloned();
        let Some(group) = group else { return };
        let client = person.client();
        let is_in = person.state_in(&group) == Some(GroupState::Active);
        self.asked.notify_waiters();
        let what = random.random_range(0..100);
        if !is_in {
            match what {
                0..40 => {
                    let joined = client.join(&group, &group.domain(), "crowd", None).await;
                    // who is in by a join whose answer was lost is told that another one is none
                    let is_in_by_another = matches!(
                        &joined,
                        Err(ClientError::Refused(Refusal(DsError::InvalidCommit { .. })))
                    );
                    counts_if(&joined, &self.counts.joins);
                    if !is_in_by_another {
                        self.commit_ends(person, &group, joined);
                    }
                }
                40..60 => self.passes(client.receive(0).await.map(drop)),
                _ => self.passes(person.receives().await.map(drop)),
            }
            return;
        }
        match what {
            0..34 => self.says(person, &group).await,
            34..48 => self.passes(person.receives().await.map(drop)),
            48..56 => {
                let span = Duration::from_millis(random.random_range(50..500));
                self.passes(person.follows(span).await);
            }
            56..59 => self.fetches(person, &group, random).await,
            59..63 => self.publishes(person, random).await,
            63..64 => self.consents(person, random).await,
            64..69 => self.passes(client.receive(0).await.map(drop)),
            69..72 => self.passes(client.resume().await.map(drop)),
            72..83 => {
                let outcome = client.update(&group, random.random()).await;
                self.commit_ends(person, &group, outcome);
            }
            83..85 => {
                let outcome = client.resync(&group).await;
                counts_if(&outcome, &self.counts.resyncs);
                self.commit_ends(person, &group, outcome);
            }
            85..90 => self.proposes(person, &group, random).await,
            90..91 => {
                person.leaves.lock().unwrap().insert(group.clone());
                let outcome = self.proposed(person, &group, Wish::Leave, NewProposal::Leave).await;
                counts_if(&outcome, &self.counts.leaves);
                self.passes(outcome.map(drop));
            }
            91..92 => match random.random() {
                true => self.passes(client.update_queue_info(&group).await.map(drop)),
                false => self.makes_a_group(person).await,
            },
            92..94 => {
                let other = self.people.choose(random).map(|it| it.user.clone());
                let others = other.into_iter().filter(|it| *it != person.user).collect::<Vec<_>>();
                let outcome = client.remove_users(&group, others).await;
                counts_if(&outcome, &self.counts.removals);
                self.commit_ends(person, &group, outcome);
            }
            94..97 => {
                let others: Vec<UserUri> = self.people[..USERS]
                    .iter()
                    .filter(|it| it.user != person.user && person.state_in(&group).is_some())
                    .map(|it| it.user.clone())
                    .collect();
                if let Some(other) = others.choose(random) {
                    let outcome = self.adds(person, &group, std::slice::from_ref(other)).await;
                    counts_if(&outcome, &self.counts.additions);
                    self.commit_ends(person, &group, outcome);
                }
            }
            _ => {
                let target = self.providers.all.choose(random).map(|it| it.domain.clone());
                let outcome = client.migrate(&group, &target.unwrap()).await;
                counts_if(&outcome, &self.counts.moves);
                self.commit_ends(person, &group, outcome);
            }
        }
    }

    async fn says(&self, person: &Person, group: &GroupId) {
        let number = person.spoken.fetch_add(1, Ordering::Relaxed);
        let text = format!("{} {number}", person.uri);
        let said = Said {
            group: group.clone(),
            by: person.uri.clone(),
            text: text.clone(),
            answer: Answer::Unknown,
        };
        // written down first: whoever hears it before its answer is here is right
        let at = {
            let mut history = self.history.lock().unwrap();
            history.said.push(said);
            history.said.len() - 1
        };
        let outcome = person.client().send_text(group, &text).await;
        let answer = match &outcome {
            Ok(Outcome::Accepted(accepted)) => {
                self.counts.messages.fetch_add(1, Ordering::Relaxed);
                Answer::Accepted { sequence: accepted.group_sequence.0, epoch: accepted.epoch.0 }
            }
            Err(ClientError::Refused(_)) => Answer::Refused,
            Ok(Outcome::AlreadySo) | Err(_) => Answer::Unknown,
        };
        self.history.lock().unwrap().said[at].answer = answer;
        self.passes(outcome.map(drop));
    }

    fn commit_ends(&self, person: &Person, group: &GroupId, outcome: Result<Outcome, ClientError>) {
        match outcome {
            Ok(outcome) => self.committed(person, group, outcome),
            // who has proposed to leave cannot come in anew
            Err(ClientError::Refused(Refusal(DsError::InvalidCommit { .. })))
                if person.leaves.lock().unwrap().contains(group) =>
            {
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.passes(Err(error)),
        }
    }

    /// Errors that killed providers, races and the group's policy explain; others are kept.
    fn passes(&self, outcome: Result<(), ClientError>) {
        let Err(error) = outcome else { return };
        let is_odd = match &error {
            ClientError::Refused(Refusal(error)) => matches!(
                error,
                DsError::Internal { .. }
                    | DsError::Malformed { .. }
                    | DsError::InvalidCommit { .. }
                    | DsError::InvalidGroupInfo { .. }
                    | DsError::InvalidMessage { .. }
            ),
            ClientError::Invalid(_) => true,
            _ => false,
        };
        let counter = match &error {
            error if error.passes() => &self.counts.unanswered,
            _ => &self.counts.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if is_odd {
            self.odd.lock().unwrap().push(error.to_string());
        }
    }

    /// Everyone takes in what there is and goes on with what has no answer; gives what is still to be done.
    pub async fn goes_on(&self) -> Result<(), String> {
        for person in &self.people {
            let client = person.client();
            let told = |error: ClientError| format!("{}: {error}", person.uri);
            client.resume().await.map_err(told)?;
            // what came meanwhile, and the answers to what that had it ask
            while person.receives().await.map_err(told)? > 0 {
                client.resume().await.map_err(told)?;
            }
            client.receive(0).await.map_err(told)?;
            let pending = client.member().pending().unwrap();
            if !pending.is_empty() {
                return Err(format!("{} still asks {pending:?}", person.uri));
            }
        }
        Ok(())
    }

    /// Those who are in `group`, once everybody has taken in what there is; an error where they are not together.
    pub fn together(&self, group: &GroupId) -> Result<Vec<&Person>, String> {
        let is_in = |it: &&Person| it.state_in(group) == Some(GroupState::Active);
        let members: Vec<&Person> = self.people.iter().filter(is_in).collect();
        let views: Vec<_> =
            members.iter().map(|person| person.client().member().group(group).unwrap()).collect();
        for (person, view) in members.iter().zip(&views) {
            let first = &views[0];
            if (&view.authenticator, &view.hub) != (&first.authenticator, &first.hub) {
                return Err(format!(
                    "{} is at epoch {:?} of {group} at {}, {} at {:?} at {}",
                    members[0].uri, first.epoch, first.hub, person.uri, view.epoch, view.hub
                ));
            }
        }
        Ok(members)
    }

    /// Each member says a last word in each of its groups. Who is on its way out cannot, until another one has spoken: those who
    /// could not are named at the end.
    pub async fn last_words(&self) -> Result<(), String> {
        let groups = self.groups.lock().unwrap().clone();
        let mut silent = Vec::new();
        for group in groups {
            for person in self.together(&group)? {
                let before = self.counts.messages.load(Ordering::Relaxed);
                self.says(person, &group).await;
                if self.counts.messages.load(Ordering::Relaxed) == before {
                    silent.push(format!("{} could not speak in {group}", person.uri));
                }
            }
        }
        if silent.is_empty() { Ok(()) } else { Err(silent.join(", ")) }
    }

    /// What is wrong by the record, and what nothing explains.
    pub fn judge(&self) -> Vec<String> {
        let mut history = self.history.lock().unwrap();
        for person in &self.people {
            let client = history.clients.entry(person.uri.clone()).or_default();
            client.wire.clone_from(&person.wire.lock().unwrap());
            client.events = person.events();
        }
        let broken = history.judge();
        let mut found: Vec<String> =
            broken.into_iter().map(|it| format!("{:?}: {}", it.rule, it.what)).collect();
        found.extend(self.odd.lock().unwrap().iter().map(|odd| format!("unexplained: {odd}")));
        for person in &self.people {
            let links = person.links.lock().unwrap();
            found.extend(links.broken().iter().map(|what| format!("{}: {what}", person.uri)));
        }
        found.extend(self.offers.lock().unwrap().broken().iter().cloned());
        for provider in &self.providers.all {
            found.extend(provider.panics());
        }
        found
    }

    /// What is written down: each group has one hub, and it is the one that its members speak with (moves are over); KeyPackages and
    /// accounts are as was answered. Providers are killed for it and started again.
    pub async fn stores_are_right(&self) -> Vec<String> {
        for at in 0..self.providers.all.len() {
            self.kill(at);
        }
        let groups = self.groups.lock().unwrap().clone();
        let mut hubs: HashMap<&GroupId, Vec<Domain>> = HashMap::new();
        let (mut found, mut held) = (Vec::new(), Vec::new());
        for (provider, engine) in self.providers.all.iter().zip(self.engines) {
            let (engine, folder) = (engine.to_owned(), provider.store());
            let config = StoreConfig { engine, folder, cache_bytes: 16 * 1024 * 1024 };
            let store = store::open(&config).unwrap();
            for group in &groups {
                let head = store.group_head(group).await.unwrap();
                if head.is_some_and(|head| head.status == GroupStatus::Active) {
                    hubs.entry(group).or_default().push(provider.domain.clone());
                }
            }
            held.extend(self.held_by(&store, &provider.domain).await);
            found.extend(self.accounts_in(&store, &provider.domain).await);
        }
        found.extend(self.offers.lock().unwrap().held(&held));
        for provider in &self.providers.all {
            provider.start().await;
        }
        for group in &groups {
            let hosts = hubs.remove(group).unwrap_or_default();
            let taken_for = self.people.iter().filter_map(|person| {
                let view = person.client().member().group(group).ok()?;
                (view.state == GroupState::Active).then_some(view.hub)
            });
            let all: HashSet<Domain> = taken_for.chain(hosts.iter().cloned()).collect();
            if hosts.len() != 1 || all.len() != 1 {
                found.push(format!("{group} is hosted by {hosts:?}, and taken for one of {all:?}"));
            }
        }
        found
    }

    /// How many entries came by streams.
    pub fn streamed(&self) -> u64 {
        self.people.iter().map(|it| it.streamed.load(Ordering::Relaxed)).sum()
    }

    /// Of KeyPackages.
    pub fn answered_of_stock(&self) -> Answered {
        self.offers.lock().unwrap().counts()
    }

    /// Deliveries of accepted proposals that the record has seen.
    pub fn proposals_seen(&self) -> u64 {
        let of_past = self.counts.proposals_seen.load(Ordering::Relaxed);
        of_past + self.history.lock().unwrap().proposals_seen()
    }

    /// Whether every group is where it is to be.
    pub async fn moves_nothing(&self) -> bool {
        for provider in &self.providers.all {
            if !provider.moves_nothing().await {
                return false;
            }
        }
        true
    }

    /// Forgets groups that are over and what was said in them, so that a long run stays small.
    pub async fn leaves_groups(&self) {
        let seen = self.history.lock().unwrap().proposals_seen();
        self.counts.proposals_seen.fetch_add(seen, Ordering::Relaxed);
        let groups = std::mem::take(&mut *self.groups.lock().unwrap());
        let makers: HashMap<GroupId, ClientUri> = self.history.lock().unwrap().makers.clone();
        for group in groups {
            for person in &self.people {
                if makers.get(&group) == Some(&person.uri) {
                    let _ = person.client().delete_group(&group).await;
                }
            }
        }
        let _ = self.goes_on().await;
        for person in &self.people {
            let client = person.client();
            let last = client.member().last_event().unwrap();
            client.member().forget_events(last).unwrap();
            person.wire.lock().unwrap().clear();
            person.links.lock().unwrap().forget();
        }
        *self.history.lock().unwrap() = History::default();
    }
}

async fn register(
    providers: &Providers,
    user: &str,
    device: &str,
    home: &std::path::Path,
    authorization: Option<Authorization>,
) -> Player {
    let (name, domain) = user.split_once('@').unwrap();
    let domain = Domain::new(domain).unwrap();
    let user = UserUri::of(&domain, name).unwrap();
    let uri = ClientUri::of(&user, device).unwrap();
    let server = providers.of(&domain).server();
    let registration =
        Registration { client: uri.clone(), server, token: Vec::new(), authorization };
    let client = Client::register(Home::open(home).unwrap(), registration, system_clock()).await;
    Player { client: client.unwrap(), user, uri }
}
