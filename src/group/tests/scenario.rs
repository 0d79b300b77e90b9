//! A hub, one group, and its clients: feeds and Welcomes are delivered as the queues would, the clock is set by hand.

#![cfg_attr(fuzzing, allow(dead_code, reason = "the tests use all of it"))]

use std::{
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    client::core::{
        Content, CoreError, Event, GroupState as ClientState, Handled, Home, Hub as ClientHub,
        Identity, Member, NewGroup, NewProposal, Operation, PolicyChange, SUITES, Settled,
    },
    crypto::{self, MlsCrypto, SigningKey},
    group::{
        Decision, Effects, GroupState, Heard, Hub, HubKey, HubKeys, Outbound, Reject, Request,
        Settings, record::Snapshot,
    },
    rate::GroupRates,
    store::records::{GoneReason, InboxItem, LogRecord},
    wire::{
        codec::{List, Opaque, decode, encode},
        ds::{
            Accepted, CommitComplaint, ComplaintResponse, Detail, DsError, DsMessage, DsResponse,
            DsResponseBody, FanoutFilter, Info, Outcome, ProtocolVersion,
        },
        extensions::{GroupPolicy, KeyPackageClass, QueueToken, SignatureScheme},
        ids::{
            ClientUri, Domain, Epoch, FeedId, GroupId, LeafIndex, RecipientId, RequestId, Sequence,
            Timestamp, UserUri,
        },
        mls::MlsMessage,
        queueing::{QueueEntry, QueueEvent, RosterChange},
    },
};

pub(super) fn domain() -> Domain {
    Domain::new("a.example").unwrap()
}

/// `bob/phone` is a client of the hub's provider, `b:bob/phone` one of b.example.
pub(super) fn uri(name: &str) -> ClientUri {
    let (domain, name) = name.split_once(':').unwrap_or(("a", name));
    ClientUri::new(format!("mimi://{domain}.example/d/{name}")).unwrap()
}

pub(super) fn user(name: &str) -> UserUri {
    uri(&format!("{name}/phone")).user()
}

pub(super) fn propose(proposal: NewProposal) -> Operation {
    Operation::Propose { proposals: vec![proposal] }
}

pub(super) fn update() -> Operation {
    Operation::UpdateClient { rotate_key: false }
}

pub(super) fn policy(change: PolicyChange) -> Operation {
    Operation::UpdateGroup { changes: vec![change] }
}

/// By a leaf's key.
pub(super) fn sign_complaint(complaint: &mut CommitComplaint, key: &SigningKey) {
    let signed = complaint.to_be_signed();
    complaint.signature = key.sign_with_label(CommitComplaint::LABEL, &signed).unwrap();
}

pub(super) fn say(text: &str) -> Operation {
    Operation::Send { content: Content::text(text).encode() }
}

/// A hub's key of either scheme.
pub(super) fn hub_keys(since: Timestamp) -> [HubKey; 2] {
    [SignatureScheme::ED25519, SignatureScheme::ECDSA_SECP256R1_SHA256]
        .map(|scheme| HubKey { key: SigningKey::generate(scheme).unwrap(), since })
}

/// One membership as its queue has it.
#[derive(Clone)]
struct Feed {
    id: FeedId,
    /// What its client was asked in by.
    welcome: Option<Vec<u8>>,
    recipient: RecipientId,
    next: Sequence,
    previous: Sequence,
    last: Option<Sequence>,
    removed: bool,
    filters: Vec<(Sequence, bool)>,
}

struct Client {
    member: Rc<Member>,
    /// It is another scenario's, until it is used.
    #[cfg(fuzzing)]
    is_shared: bool,
    own: Vec<QueueEvent>,
    own_delivered: usize,
    feeds: Vec<Feed>,
}

/// Does what it is given, and panics where that allocates more than a request and a group of so many bytes in all may.
pub type Bound = fn(usize, &mut dyn FnMut());

pub(super) struct Scenario {
    pub hub: Arc<Hub>,
    pub now: Timestamp,
    pub id: GroupId,
    pub state: GroupState,
    pub first: Vec<u8>,
    pub records: Vec<LogRecord>,
    /// What was left for clients that are not of the fixture.
    pub unclaimed: Vec<(ClientUri, InboxItem)>,
    /// What each guest provider is owed, and whom it knows by which number.
    pub owed: BTreeMap<Domain, Vec<Outbound>>,
    guests: BTreeMap<RecipientId, ClientUri>,
    users: BTreeMap<String, SigningKey>,
    clients: BTreeMap<String, Client>,
    /// Whether each step is followed by a look whether what is loaded from the log equals what is live.
    pub reloads: bool,
    /// What the hub does with each request is done in it.
    pub bound: Bound,
}

/// What a scenario begins with.
pub(super) struct Setup {
    pub settings: Settings,
    pub policy: Option<fn(&mut GroupPolicy)>,
    pub rates: GroupRates,
    pub suite: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            settings: Settings::new(domain()),
            policy: None,
            rates: GroupRates::default(),
            suite: 0,
        }
    }
}

impl Setup {
    pub(super) fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut setup = Self::default();
        change(&mut setup.settings);
        setup
    }

    pub(super) fn policy(change: fn(&mut GroupPolicy)) -> Self {
        Self { policy: Some(change), ..Self::default() }
    }

    /// The first of `names` creates the group and adds the others.
    pub(super) fn group_of<const N: usize>(self, names: [&str; N]) -> Scenario {
        let mut scenario = Scenario::create(self, names[0]);
        for name in &names[1..] {
            scenario.add(names[0], name).unwrap();
        }
        scenario.deliver_all();
        scenario
    }
}

impl Scenario {
    pub(super) fn group_of<const N: usize>(names: [&str; N]) -> Self {
        Setup::default().group_of(names)
    }

    fn create(setup: Setup, creator: &str) -> Self {
        // openmls compares lifetimes with the machine's clock
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = Timestamp(u64::try_from(since_1970.as_millis()).unwrap());
        let keys = HubKeys::new(hub_keys(Timestamp(0)));
        let hub = Arc::new(Hub {
            settings: setup.settings,
            crypto: MlsCrypto::default(),
            keys,
            rates: setup.rates,
        });
        let mut users = BTreeMap::new();
        let member = new_member(&mut users, creator);
        let suite = SUITES[setup.suite];
        let key = hub.key(crate::policy::leaf::scheme_of(suite)).unwrap();
        let client_hub = ClientHub { domain: domain(), external_sender: key.public().clone() };
        let policy = setup.policy.map(|change| {
            let mut policy = crate::policy::default_policy(&member.identity().user_key_hash());
            change(&mut policy);
            policy
        });
        let new = NewGroup { suite, policy, ..NewGroup::default() };
        let (id, request) = member.create_group(&client_hub, &new, now).unwrap();
        let message = member.outbound(request, now).unwrap().message;
        let asked = Request { message, relay: domain() };
        let creation = GroupState::create(&hub, &asked, now).unwrap();
        let answer = DsResponseBody::Accepted(creation.effects.accepted.unwrap());
        let settled = member.settle(request, &respond(&Ok(answer)), now).unwrap();
        assert!(matches!(settled, Settled::Done(_)));
        let mut scenario = Self {
            first: creation.state.snapshot().unwrap(),
            hub,
            now,
            id,
            state: creation.state,
            records: Vec::new(),
            unclaimed: Vec::new(),
            owed: BTreeMap::new(),
            guests: BTreeMap::new(),
            users,
            clients: BTreeMap::new(),
            reloads: true,
            bound: |_, work| work(),
        };
        scenario.clients.insert(creator.to_owned(), Client::new(member));
        scenario.leave_for_clients(creation.effects.inbox);
        scenario.leave_for_guests(creation.effects.outbound);
        scenario
    }

    /// The same again, apart from this one: what takes long to make is made once.
    #[cfg(fuzzing)]
    pub(super) fn copy(&self) -> Self {
        let hub = Arc::new(Hub {
            settings: self.hub.settings.clone(),
            crypto: MlsCrypto::default(),
            keys: HubKeys::new(self.hub.keys.all().to_vec()),
            rates: GroupRates::default(),
        });
        let mut state = GroupState::load(Arc::clone(&hub), self.id.clone(), &self.first).unwrap();
        for record in &self.records {
            state.replay(record).unwrap();
        }
        let clients = self.clients.iter().map(|(name, client)| (name.clone(), client.copy()));
        Self {
            hub,
            now: self.now,
            id: self.id.clone(),
            state,
            first: self.first.clone(),
            records: self.records.clone(),
            unclaimed: self.unclaimed.clone(),
            owed: self.owed.clone(),
            guests: self.guests.clone(),
            users: self.users.clone(),
            clients: clients.collect(),
            reloads: self.reloads,
            bound: self.bound,
        }
    }

    /// The client `name`, made at its first use.
    pub(super) fn client(&mut self, name: &str) -> Rc<Member> {
        let users = &mut self.users;
        let made = self
            .clients
            .entry(name.to_owned())
            .or_insert_with(|| Client::new(new_member(users, name)));
        #[cfg(fuzzing)]
        if std::mem::take(&mut made.is_shared) {
            made.member = Rc::new(made.member.copy().unwrap());
        }
        Rc::clone(&made.member)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.clients.keys().cloned().collect()
    }

    pub(super) fn key_package(&mut self, name: &str) -> Vec<u8> {
        let now = self.now;
        let suite = self.suite();
        let made = self.client(name).key_packages(KeyPackageClass::Group, suite, false, 1, now);
        made.unwrap().remove(0).into_vec()
    }

    pub(super) fn suite(&self) -> openmls::prelude::Ciphersuite {
        self.state.tree.ciphersuite()
    }

    pub(super) fn leaf(&self, name: &str) -> LeafIndex {
        self.state.roster.leaf_of(&uri(name)).expect("a member")
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.state.roster.leaf_of(&uri(name)).is_some()
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.state.to_snapshot().unwrap()
    }

    /// The group as the log has it.
    pub(super) fn reloaded(&self) -> GroupState {
        let hub = Arc::clone(&self.hub);
        let mut state = GroupState::load(hub, self.id.clone(), &self.first).unwrap();
        for record in &self.records {
            state.replay(record).unwrap();
        }
        state
    }

    /// The hub's process ends and begins again.
    pub(super) fn restart(&mut self) {
        self.state = self.reloaded();
    }

    /// As [`Scenario::restart`], from a snapshot of now.
    pub(super) fn restart_from_snapshot(&mut self) {
        self.first = self.state.snapshot().unwrap();
        self.records.clear();
        self.restart();
    }

    /// As [`Scenario::restart`], from a snapshot of now beside the log, which the clients still read.
    pub(super) fn restart_from_snapshot_for_all(&mut self) {
        let bytes = self.state.snapshot().unwrap();
        self.state = GroupState::load(Arc::clone(&self.hub), self.id.clone(), &bytes).unwrap();
    }

    pub(super) fn submit(&mut self, message: &DsMessage) -> Result<DsResponseBody, Reject> {
        self.submit_via(message, domain())
    }

    pub(super) fn submit_via(
        &mut self,
        message: &DsMessage,
        relay: Domain,
    ) -> Result<DsResponseBody, Reject> {
        let before = self.snapshot();
        let request = Request { message: message.clone(), relay };
        let mut staged = None;
        let len = encode(message).len() + before.to_bytes().unwrap().len();
        (self.bound)(len, &mut || staged = Some(self.state.stage(&request, self.now)));
        match staged.expect("it was done") {
            Err(reject) => {
                self.state.note_refusal(&reject, &message.sender_id);
                assert_eq!(self.snapshot(), before, "a refusal changes nothing");
                assert!(!matches!(reject, Reject::Broken(_)), "{reject}");
                Err(reject)
            }
            Ok(Decision::Answer(body)) => {
                assert_eq!(self.snapshot(), before, "an answer changes nothing");
                Ok(body)
            }
            Ok(Decision::Move(_)) => panic!("moves are staged by their own tests"),
            Ok(Decision::History(epoch, since)) => {
                Ok(DsResponseBody::Info(Box::new(self.history(epoch, since))))
            }
            Ok(Decision::Write(staged)) => {
                assert_eq!(self.snapshot(), before, "staging changes nothing");
                let (mut staged, mut effects) = (Some(*staged), None);
                (self.bound)(len, &mut || effects = staged.take().map(|it| self.state.merge(it)));
                let effects = effects.expect("it was done").unwrap();
                let accepted = effects.accepted.unwrap();
                self.take(effects);
                Ok(DsResponseBody::Accepted(accepted))
            }
        }
    }

    /// What the group's actor does with a complaint.
    pub(super) fn complain(
        &mut self,
        complaint: &CommitComplaint,
        relay: &Domain,
    ) -> Result<ComplaintResponse, Reject> {
        let before = self.snapshot();
        let now = self.now;
        let len = encode(complaint).len() + before.to_bytes().unwrap().len();
        let mut heard = None;
        (self.bound)(len, &mut || heard = Some(self.state.stage_complaint(complaint, relay, now)));
        let staged = match heard.expect("it was done") {
            Ok(Heard::Write(staged)) => staged,
            other => {
                assert_eq!(self.snapshot(), before, "an answer changes nothing");
                return other.map(|heard| match heard {
                    Heard::Answer(answer) => answer,
                    Heard::Write(_) => unreachable!(),
                });
            }
        };
        let effects = self.state.merge(*staged).unwrap();
        self.take(effects);
        if let Some(sequence) = self.state.back_to(now) {
            let past = self.past(sequence);
            let staged = self.state.stage_void(past, now).unwrap();
            let staged = staged.or_else(|| self.state.stage_forward(now)).unwrap();
            let effects = self.state.merge(staged).unwrap();
            self.take(effects);
        }
        Ok(self.state.complaint_answer(complaint, now))
    }

    /// The group as it was right before the record at `sequence`.
    pub(super) fn past(&self, sequence: Sequence) -> GroupState {
        let mut past =
            GroupState::load(Arc::clone(&self.hub), self.id.clone(), &self.first).unwrap();
        for record in self.records.iter().take_while(|record| record.feed.sequence < sequence) {
            past.replay(record).unwrap();
        }
        past
    }

    pub(super) fn history(&self, epoch: Epoch, since: Sequence) -> Info {
        let hub = Arc::clone(&self.hub);
        let mut past = GroupState::load(hub, self.id.clone(), &self.first).unwrap();
        for record in &self.records {
            if past.epoch() >= epoch && past.next_sequence > since {
                break;
            }
            past.replay(record).unwrap();
        }
        assert_eq!(past.epoch(), epoch);
        past.joiner_info().unwrap()
    }

    pub(super) fn take(&mut self, effects: Effects) {
        for record in &effects.records {
            let expected = self.records.last().map(|last| last.feed.sequence.next());
            assert!(expected.is_none_or(|expected| record.feed.sequence == expected));
            self.records.push(record.clone());
        }
        self.leave_for_clients(effects.inbox);
        self.leave_for_guests(effects.outbound);
        if self.reloads {
            self.is_reloaded();
        }
    }

    /// What is loaded from the log equals what is live.
    pub(super) fn is_reloaded(&self) {
        let reloaded = self.reloaded();
        assert_eq!(reloaded.to_snapshot().unwrap(), self.snapshot(), "reloaded is live");
        assert!(reloaded.guests().eq(self.state.guests()), "reloaded is live");
    }

    /// What the hub does by itself now; whether it did anything.
    pub(super) fn hub_acts(&mut self, gone: &[(&str, GoneReason)]) -> bool {
        let gone: Vec<_> = gone.iter().map(|(name, why)| (uri(name), *why)).collect();
        let Some(staged) = self.state.stage_hub(&gone, self.now) else { return false };
        let effects = self.state.merge(staged).unwrap();
        assert!(effects.accepted.is_none());
        self.take(effects);
        true
    }

    /// What guests make of what they are owed: the same as the hub's own queues.
    fn leave_for_guests(&mut self, outbound: Vec<Outbound>) {
        let group = self.id.clone();
        for owed in outbound {
            let known = self.owed.entry(owed.peer.clone()).or_default();
            let next = known.last().map(|last| last.sequence.next());
            let in_order = next.is_none_or(|next| next == owed.sequence);
            assert!(owed.opens || in_order, "{} after {next:?}", owed.sequence);
            known.push(owed.clone());
            let ends = self.records.iter().any(|record| {
                record.feed.sequence == owed.sequence
                    && record.feed.event == encode(&QueueEvent::GroupDeleted)
            });
            for change in owed.changes {
                let from = owed.sequence.next();
                let is_muted = |filter| filter == FanoutFilter::HandshakeOnly;
                let (recipient, item) = match change {
                    RosterChange::Add { recipient, filter, welcome, .. } => {
                        let event = welcome
                            .map(|welcome| QueueEvent::Welcome { hub_domain: domain(), welcome });
                        let (group, handshake_only) = (group.clone(), is_muted(filter));
                        let event = event.map(|event| encode(&event));
                        let client = self.state.client_of(&owed.peer, recipient).unwrap();
                        self.guests.insert(recipient, client.clone());
                        (
                            recipient,
                            InboxItem::Open { group, recipient, from, handshake_only, event },
                        )
                    }
                    RosterChange::Update { recipient, filter, .. } => {
                        let (group, handshake_only) = (group.clone(), is_muted(filter));
                        (recipient, InboxItem::Filter { group, recipient, from, handshake_only })
                    }
                    RosterChange::Remove { recipient } => {
                        let (group, last, removed) = (group.clone(), owed.sequence, !ends);
                        (recipient, InboxItem::Close { group, recipient, last, removed })
                    }
                };
                let client = self.guests[&recipient].clone();
                assert_eq!(client.domain(), owed.peer, "its own clients alone");
                self.leave_for_clients(vec![(client, owed.sequence, item)]);
            }
        }
    }

    fn leave_for_clients(&mut self, inbox: Vec<(ClientUri, Sequence, InboxItem)>) {
        for (client, _, item) in inbox {
            let name = client.as_str().trim_start_matches("mimi://a.example/d/");
            let name = name
                .strip_prefix("mimi://")
                .map(|name| name.replace(".example/d/", ":"))
                .unwrap_or(name.to_owned());
            let name = name.as_str();
            match self.clients.get_mut(name) {
                Some(client) => client.leave(item),
                None => self.unclaimed.push((client, item)),
            }
        }
    }

    /// Begins `operation`; its request is on its way when it is first driven.
    pub(super) fn begin(&mut self, who: &str, operation: Operation) -> RequestId {
        let (id, now) = (self.id.clone(), self.now);
        let member = self.client(who);
        match operation {
            Operation::Join { .. } | Operation::AskToJoin => {
                member.join(&id, &domain(), "", operation, now).unwrap()
            }
            _ => member.begin(&id, operation).unwrap(),
        }
    }

    pub(super) fn message(&mut self, who: &str, request: RequestId) -> DsMessage {
        self.client(who).outbound(request, self.now).unwrap().message
    }

    /// Sends what is asked for until the hub has accepted or refused it; the last refusal otherwise.
    pub(super) fn drive(&mut self, who: &str, request: RequestId) -> Result<Accepted, Reject> {
        self.try_drive(who, request).unwrap_or_else(|error| panic!("{who}: {error}"))
    }

    pub(super) fn try_drive(
        &mut self,
        who: &str,
        request: RequestId,
    ) -> Result<Result<Accepted, Reject>, CoreError> {
        let member = self.client(who);
        for _ in 0..12 {
            // a clock that moves: of two updates of a queue the later stands
            self.now = self.now.plus_ms(1);
            let message = match member.outbound(request, self.now) {
                Ok(outbound) => outbound.message,
                Err(error) => {
                    member.give_up(request)?;
                    return Err(error);
                }
            };
            let result = self.submit_via(&message, uri(who).domain());
            match member.settle(request, &respond(&result), self.now)? {
                Settled::Done(accepted) => return Ok(Ok(accepted)),
                Settled::Entered => {
                    let epoch = self.state.epoch();
                    let group_sequence = self.state.next_sequence();
                    return Ok(Ok(Accepted { group_sequence, accepted_at: self.now, epoch }));
                }
                Settled::Refused(_) => return Ok(Err(result.unwrap_err())),
                Settled::Again { after_ms } => {
                    if after_ms > 0 {
                        self.deliver(who);
                        // its epoch is void: a resync comes before all else
                        if member.group(&self.id)?.state == ClientState::Lost {
                            member.give_up(request)?;
                            return Ok(Err(result.unwrap_err()));
                        }
                    }
                }
            }
        }
        panic!("{who} never gets an answer to {request:?}");
    }

    pub(super) fn act(&mut self, who: &str, operation: Operation) -> Result<Accepted, Reject> {
        let request = self.begin(who, operation);
        self.drive(who, request)
    }

    /// `adder` adds `name`, as a user or as a client of its own.
    pub(super) fn add(&mut self, adder: &str, name: &str) -> Result<Accepted, Reject> {
        let key_packages = vec![self.key_package(name)];
        let own = uri(adder).user() == uri(name).user();
        let operation = if own {
            Operation::AddClients { key_packages }
        } else {
            Operation::AddUsers { key_packages }
        };
        self.act(adder, operation)
    }

    /// Hands over what the queue holds for `who`.
    pub(super) fn deliver(&mut self, who: &str) {
        let (id, now) = (self.id.clone(), self.now);
        let member = self.client(who);
        let client = self.clients.get_mut(who).unwrap();
        for (index, event) in client.own.iter().enumerate().skip(client.own_delivered) {
            let sequence = u64::try_from(index).unwrap() + 1;
            let entry = QueueEntry {
                feed: FeedId(0),
                sequence: Sequence(sequence),
                previous: Sequence(sequence - 1),
                accepted_at: now,
                group_id: Opaque::new(id.as_bytes()).unwrap(),
                event: event.clone(),
            };
            assert_eq!(member.handle(&entry, now).unwrap(), Handled::Taken);
        }
        client.own_delivered = client.own.len();
        for (request, _, operation) in member.pending().unwrap() {
            let Operation::Welcome { welcome, .. } = &operation else { continue };
            if let Err(reject) = self.drive(who, request) {
                // whoever is removed before it comes to its Welcome is not waited for any more
                let mut feeds = self.clients[who].feeds.iter();
                let opened = feeds.find(|feed| feed.welcome.as_ref() == Some(welcome)).unwrap();
                assert!(opened.last.is_some(), "{who} is in the group and kept out: {reject}");
            }
        }
        let client = self.clients.get_mut(who).unwrap();
        for feed in &mut client.feeds {
            let entry = |sequence, previous, accepted_at, event| QueueEntry {
                feed: feed.id,
                sequence,
                previous,
                accepted_at,
                group_id: Opaque::new(id.as_bytes()).unwrap(),
                event,
            };
            for record in &self.records {
                let sequence = record.feed.sequence;
                if sequence < feed.next || feed.last.is_some_and(|last| sequence > last) {
                    continue;
                }
                let muted = feed.filters.iter().rev().find(|(from, _)| *from <= sequence);
                let muted = muted.is_some_and(|(_, handshake_only)| *handshake_only);
                if record.feed.event.is_empty()
                    || record.feed.except == Some(feed.recipient)
                    || (muted && !record.feed.handshake)
                {
                    feed.next = sequence.next();
                    continue;
                }
                let event: QueueEvent = decode(&record.feed.event).unwrap();
                let entry = entry(sequence, feed.previous, record.feed.accepted_at, event);
                if member.handle(&entry, now).unwrap() == Handled::Wait {
                    return;
                }
                (feed.next, feed.previous) = (sequence.next(), sequence);
            }
            if let Some(last) = feed.last
                && feed.removed
                && feed.next > last
            {
                feed.removed = false;
                let entry = entry(last.next(), feed.previous, now, QueueEvent::Removed);
                member.handle(&entry, now).unwrap();
            }
        }
    }

    pub(super) fn deliver_all(&mut self) {
        for name in self.names() {
            self.deliver(&name);
        }
    }

    /// Delivers everything; then all members are in the hub's epoch with one another, and nobody else is.
    pub(super) fn agree(&mut self) {
        self.deliver_all();
        let mut authenticators = Vec::new();
        for name in self.names() {
            let member = self.client(&name);
            let events = self.events(&name);
            let misbehaved = |event: &&Event| matches!(event, Event::Misbehaviour { .. });
            assert_eq!(events.iter().find(misbehaved), None, "{name}: {events:?}");
            let Ok(view) = member.group(&self.id) else { continue };
            if !self.has(&name) || self.state.is_deleted() {
                assert_ne!(view.state, ClientState::Active, "{name}: {events:?}");
                continue;
            }
            assert_eq!(view.state, ClientState::Active, "{name}: {events:?}");
            assert_eq!(view.epoch, Some(self.state.epoch()), "{name}: {events:?}");
            assert_eq!(view.pending, self.state.pending.len(), "{name}: {events:?}");
            let theirs: Vec<_> =
                view.members.iter().map(|it| (it.leaf, it.client.clone())).collect();
            let ours: Vec<_> =
                self.state.roster.iter().map(|(leaf, it)| (leaf, it.client.clone())).collect();
            assert_eq!(theirs, ours);
            authenticators.push(view.authenticator);
        }
        assert!(authenticators.windows(2).all(|pair| pair[0] == pair[1]));
    }

    pub(super) fn events(&mut self, name: &str) -> Vec<Event> {
        let all = self.client(name).events(0, 10_000).unwrap();
        all.into_iter().map(|(_, event)| event).collect()
    }

    pub(super) fn texts(&mut self, name: &str) -> Vec<String> {
        let text = |event| match event {
            Event::Message { text, .. } => text,
            _ => None,
        };
        self.events(name).into_iter().filter_map(text).collect()
    }

    pub(super) fn state_of(&mut self, name: &str) -> ClientState {
        let id = self.id.clone();
        self.client(name).group(&id).unwrap().state
    }

    /// Whether `name` knows that it is a member.
    pub(super) fn is_active(&mut self, name: &str) -> bool {
        let id = self.id.clone();
        self.client(name).group(&id).is_ok_and(|view| view.state == ClientState::Active)
    }

    /// Somebody whom nobody knows joins the open group by what the hub shows, and what it says is read by `reader`.
    pub(super) fn outsider_can_join(&mut self, name: &str, reader: &str) {
        self.act(name, Operation::Join { code: None }).unwrap();
        self.agree();
        self.act(name, say(name)).unwrap();
        self.deliver(reader);
        assert_eq!(self.texts(reader).last().map(String::as_str), Some(name));
    }
}

impl Client {
    fn new(member: Rc<Member>) -> Self {
        Self {
            member,
            #[cfg(fuzzing)]
            is_shared: false,
            own: Vec::new(),
            own_delivered: 0,
            feeds: Vec::new(),
        }
    }

    #[cfg(fuzzing)]
    fn copy(&self) -> Self {
        Self {
            member: Rc::clone(&self.member),
            is_shared: true,
            own: self.own.clone(),
            own_delivered: self.own_delivered,
            feeds: self.feeds.clone(),
        }
    }

    fn leave(&mut self, item: InboxItem) {
        match item {
            InboxItem::Open { recipient, from, handshake_only, event, .. } => {
                let event: Option<QueueEvent> = event.map(|event| decode(&event).unwrap());
                let welcome = event.as_ref().map(|event| match event {
                    QueueEvent::Welcome { welcome, .. } => welcome.as_slice().to_vec(),
                    other => panic!("{other:?} opens no feed"),
                });
                self.own.extend(event);
                let id = FeedId(u64::try_from(self.feeds.len()).unwrap() + 1);
                self.feeds.push(Feed {
                    id,
                    welcome,
                    recipient,
                    next: from,
                    previous: Sequence(0),
                    last: None,
                    removed: false,
                    filters: vec![(from, handshake_only)],
                });
            }
            InboxItem::Filter { recipient, from, handshake_only, .. } => {
                self.feed(recipient).filters.push((from, handshake_only));
            }
            InboxItem::Close { recipient, last, removed, .. } => {
                let feed = self.feed(recipient);
                (feed.last, feed.removed) = (Some(last), removed);
            }
            InboxItem::Event { .. } => panic!("a group leaves no such item"),
        }
    }

    fn feed(&mut self, recipient: RecipientId) -> &mut Feed {
        self.feeds.iter_mut().find(|feed| feed.recipient == recipient).expect("an open feed")
    }
}

fn new_member(users: &mut BTreeMap<String, SigningKey>, name: &str) -> Rc<Member> {
    let client = uri(name);
    let user_key = users
        .entry(client.user().as_str().to_owned())
        .or_insert_with(|| SigningKey::generate(SignatureScheme::ED25519).unwrap());
    let identity = Identity::with_user_key(client, user_key.clone()).unwrap();
    let member = Member::new(Home::in_memory().unwrap(), identity).unwrap();
    let tokens: Vec<QueueToken> =
        (0..60).map(|_| Opaque::new(crypto::random::<32>()).unwrap()).collect();
    member.store_tokens(KeyPackageClass::Group, false, &tokens).unwrap();
    Rc::new(member)
}

/// The hub's answer as it travels, as far as the client library tells errors apart.
pub(super) fn respond(result: &Result<DsResponseBody, Reject>) -> DsResponse {
    let detail = |reject: &Reject| Detail::truncated(&reject.to_string());
    let list = |messages: &[MlsMessage]| messages.to_vec();
    let outcome = match result {
        Ok(body) => Outcome::Ok(body.clone()),
        Err(reject) => Outcome::Err(match reject {
            Reject::WrongEpoch { current, missed } => DsError::WrongEpoch {
                detail: detail(reject),
                current_epoch: *current,
                missed: List::new(list(missed)).unwrap(),
            },
            Reject::Pending { pending, .. } => DsError::PendingProposals {
                detail: detail(reject),
                pending: List::new(list(pending)).unwrap(),
            },
            Reject::NotFound => DsError::GroupNotFound { detail: detail(reject) },
            Reject::Unauthenticated(_) => DsError::Unauthenticated { detail: detail(reject) },
            other => DsError::NotAuthorized { detail: detail(other) },
        }),
    };
    DsResponse { version: ProtocolVersion::MIMI10, outcome }
}
