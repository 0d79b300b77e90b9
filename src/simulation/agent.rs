//! Who uses all of this: clients, each with what its person does now and then.
//!
//! The client library is the real one, retries included; the only thing that is tried again here is what an application would: to look
//! into the queue once more.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use futures_util::future::FutureExt as _;

use super::{
    Mutation, World,
    oracle::{Probe, Shown},
    provider::SetClock,
};
use crate::{
    actors::Clock as _,
    client::{
        Authorization, Client, ClientError, Outcome, Registration, Server,
        core::{Event, GroupState, GroupView, Home, Member, Refusal, SUITES, lying::Lie},
    },
    crypto, policy,
    wire::{
        client::Consent,
        codec::{List, Opaque},
        ds::DsError,
        extensions::{JoinPolicy, Role},
        ids::{ClientUri, Domain, GroupId, UserUri},
    },
};

/// How to come into a group from outside.
#[derive(Clone)]
pub(super) struct Door {
    group: GroupId,
    /// Where it was when it was made.
    hub: Domain,
    /// None: it is open.
    code: Option<[u8; 32]>,
}

pub(super) struct Agent {
    pub uri: ClientUri,
    pub clock: Arc<SetClock>,
    client: RefCell<Option<Rc<Client>>>,
    /// The last event that was looked at.
    seen: Cell<u64>,
    /// Its device was deleted by another one of its user.
    pub deleted: Cell<bool>,
    /// Everybody's users and clients.
    everybody: RefCell<Vec<ClientUri>>,
    /// Its commits say now and then what is not so.
    is_liar: Cell<bool>,
}

/// Registers everybody, makes everybody known to everybody, and makes some groups. Nothing goes wrong meanwhile.
pub(super) async fn populate(world: &Rc<World>) -> Vec<Rc<Agent>> {
    let domains = world.domains();
    let mut agents: Vec<Rc<Agent>> = Vec::new();
    for user in 0..world.plan.users {
        let domain = &domains[user % domains.len()];
        let first = Agent::register(world, domain, &format!("user{user}"), "phone", None).await;
        if user % 3 == 0 || world.plan.deletes_devices {
            let authorization = first.client().authorize_device().unwrap();
            let name = format!("user{user}");
            let more = Agent::register(world, domain, &name, "desk", Some(authorization)).await;
            agents.push(more);
        }
        agents.push(first);
    }
    let everybody: Vec<ClientUri> = agents.iter().map(|agent| agent.uri.clone()).collect();
    for agent in &agents {
        agent.everybody.replace(everybody.clone());
        if agent.uri.device() != "phone" {
            continue;
        }
        let token: [u8; 32] = crypto::random();
        let hash = Opaque::new(crypto::sha256(&token)).unwrap();
        let consent = Consent { add: List::new(vec![hash]).unwrap(), revoke: List::default() };
        let uri = agent.uri.clone();
        let domain = uri.domain();
        let asked = world.net.ask(&domain, move |inside| {
            let uri = uri.clone();
            async move { inside.node.consent(&uri, consent).await }.boxed_local()
        });
        asked.await.unwrap().unwrap();
        let user = agent.uri.user();
        for other in agents.iter().filter(|other| other.uri.user() != user) {
            let client = other.client();
            let member = client.member();
            let mut contact = member.contact(&user).unwrap();
            contact.their_token = Some(token.to_vec());
            member.set_contact(&user, &contact).unwrap();
        }
    }
    if world.plan.has_liar {
        world.chance.pick(&agents).is_liar.set(true);
    }
    for at in 0..world.plan.groups {
        let creator = &agents[at % agents.len()];
        let users: Vec<UserUri> = agents
            .iter()
            .map(|agent| agent.uri.user())
            .filter(|user| *user != creator.uri.user() && world.chance.below(3) > 0)
            .collect();
        creator.create(world, &users).await.unwrap();
    }
    for agent in &agents {
        agent.catch_up(world).await;
    }
    agents
}

impl Agent {
    async fn register(
        world: &World,
        domain: &Domain,
        user: &str,
        device: &str,
        authorization: Option<Authorization>,
    ) -> Rc<Self> {
        let user = UserUri::of(domain, user).unwrap();
        let uri = ClientUri::of(&user, device).unwrap();
        let clock = SetClock::new(world.time);
        let server = Server { url: format!("sim://{domain}"), certificate: None };
        let token = Vec::new();
        let registration = Registration { client: uri.clone(), server, token, authorization };
        let home = Home::in_memory().unwrap();
        let client = Client::register(home, registration, clock_of(&clock)).await.unwrap();
        Rc::new(Self {
            uri,
            clock,
            client: RefCell::new(Some(Rc::new(client))),
            seen: Cell::new(0),
            deleted: Cell::new(false),
            everybody: RefCell::default(),
            is_liar: Cell::new(false),
        })
    }

    pub fn client(&self) -> Rc<Client> {
        Rc::clone(self.client.borrow().as_ref().expect("it runs"))
    }

    /// Its process ends, between two of its transactions, and another one begins.
    fn crash(&self, world: &World) {
        world.trace.note(|| format!("{} crashes", self.uri));
        world.trace.count(|counts| counts.client_crashes += 1);
        self.start(world);
    }

    pub fn start(&self, _: &World) {
        let client = self.client.borrow_mut().take().expect("it ran");
        let client = Rc::into_inner(client).expect("nothing else goes on with it");
        let member = Member::open(client.into_home()).unwrap();
        let client = Client::open(member, clock_of(&self.clock)).unwrap();
        self.client.replace(Some(Rc::new(client)));
    }

    /// What it does while everything goes wrong.
    pub async fn live(self: Rc<Self>, world: Rc<World>) {
        if world.chance.below(8) == 0 {
            // long enough for hubs to find it inactive
            world.rest_ms(world.chance.between(3600 * 1000, 20 * 3600 * 1000)).await;
        }
        while !world.is_over() && !self.deleted.get() {
            let crash_ms = world.chance.between(100, 4_000_000);
            let crashed = {
                let session = self.session(&world);
                tokio::select! {
                    biased;
                    () = session => false,
                    () = world.sleep_ms(crash_ms), if crash_ms < 20_000 => true,
                }
            };
            self.look(&world);
            if crashed {
                self.crash(&world);
            }
            if world.chance.below(30) == 0 {
                let offset = i64::try_from(world.chance.below(600_000)).unwrap() - 300_000;
                self.clock.set_offset(offset);
            }
            // some come back at once, most do not
            let most_ms = if world.chance.below(4) == 0 { 60_000 } else { 8 * 3600 * 1000 };
            let rests =
                world.rest_ms(world.chance.between(1_000, most_ms) + world.chance.below(most_ms));
            let is_called = tokio::select! {
                biased;
                () = world.bell.notified() => true,
                () = rests => false,
            };
            if is_called {
                world.rest_ms(world.chance.between(1, CALLED_MS_MAX)).await;
            }
        }
    }

    /// Some time with the application open.
    async fn session(&self, world: &World) {
        let client = self.client();
        let rounds = world.chance.between(1, 5);
        let reading = async {
            for _ in 0..rounds {
                let wait_ms = u32::try_from(world.chance.between(1, 25_000)).unwrap();
                let received = client.receive(wait_ms).await;
                self.noted(world, "receives", &received.map(|_| ()));
                self.look(world);
                world.sleep_ms(world.chance.between(100, 10_000)).await;
            }
        };
        let writing = async {
            for _ in 0..world.chance.between(1, 4) {
                world.sleep_ms(world.chance.between(10, 20_000)).await;
                if !world.is_over() {
                    self.act(&client, world).await;
                    self.look(world);
                }
            }
        };
        futures_util::future::join(reading, writing).await;
    }

    /// Takes in what there is, and goes on with what was not answered.
    pub async fn catch_up(&self, world: &World) {
        if self.deleted.get() {
            return;
        }
        let client = self.client();
        for _ in 0..20 {
            let received = client.receive(0).await;
            self.noted(world, "catches up", &received.as_ref().map(|_| ()));
            if let Err(ClientError::Refused(Refusal(DsError::Unauthenticated { .. }))) = received
                && world.oracle.borrow_mut().is_gone(&self.uri)
            {
                self.deleted.set(true);
                return;
            }
            let resumed = client.resume().await;
            self.noted(world, "resumes", &resumed.map(|_| ()));
            if matches!(received, Ok(0)) {
                break;
            }
        }
        self.look(world);
    }

    /// Something to say in every group, which all the others are to hear.
    pub fn probes(&self, world: &World) -> Vec<Probe> {
        if self.deleted.get() {
            return Vec::new();
        }
        let client = self.client();
        let probe = |view: GroupView| {
            let text = world.new_text();
            world.oracle.borrow_mut().said(&text, &view.id, &self.uri);
            Probe { group: view.id, by: self.uri.clone(), text, is_said: false, left: None }
        };
        let oracle = world.oracle.borrow();
        let views = self.active(&client);
        let is_honest = |view: &GroupView| {
            !oracle.may_have_lied(&view.id, &self.uri) && !oracle.has_ended(&view.id)
        };
        let honest: Vec<GroupView> = views.into_iter().filter(is_honest).collect();
        drop(oracle);
        honest.into_iter().map(probe).collect()
    }

    /// Says it. It must be taken: whatever is pending, a member that stays can commit it, and then all that stay can speak.
    pub async fn say_probe(&self, world: &World, probe: &mut Probe) {
        let client = self.client();
        if self.deleted.get() || !is_in(&client, &probe.group) {
            (probe.is_said, probe.left) = (true, None);
            return;
        }
        let said = client.send_text(&probe.group, &probe.text).await;
        self.noted(world, &format!("probes {}", probe.group), &said.as_ref().map(|_| ()));
        match said {
            Ok(Outcome::Accepted(accepted)) => {
                world.oracle.borrow_mut().acknowledged(&probe.text, accepted.group_sequence);
                (probe.is_said, probe.left) = (true, None);
            }
            Ok(Outcome::AlreadySo) => {}
            Err(error) => {
                let (by, group) = (&self.uri, &probe.group);
                probe.left = Some(format!("{by} can say nothing in {group}: {error}"));
            }
        }
        self.look(world);
    }

    fn active(&self, client: &Client) -> Vec<GroupView> {
        let groups = client.member().groups().unwrap();
        groups.into_iter().filter(|group| group.state == GroupState::Active).collect()
    }

    /// Tells the oracle what the application shows.
    fn look(&self, world: &World) {
        let client = self.client();
        let member = client.member();
        let events = member.events(self.seen.get(), usize::MAX).unwrap();
        if let Some((last, _)) = events.last() {
            self.seen.set(*last);
        }
        for (_, event) in &events {
            if let Event::Proposed { by: None, group, .. } = event {
                world.net.removal_proposed(group);
            }
        }
        let views = if events.is_empty() && !world.plan.has(Mutation::AcceptsBoth) {
            Vec::new()
        } else {
            member.groups().unwrap()
        };
        let shown = Shown { by: self.uri.clone(), events, views };
        world.oracle.borrow_mut().shown(shown);
    }

    fn noted<E: std::fmt::Display>(&self, world: &World, what: &str, outcome: &Result<(), E>) {
        world.trace.note(|| match outcome {
            Ok(()) => format!("{} {what}", self.uri),
            Err(error) => {
                let mut why = error.to_string();
                let cut = why.char_indices().nth(160).map_or(why.len(), |(at, _)| at);
                why.truncate(cut);
                format!("{} {what}: {why}", self.uri)
            }
        });
    }

    async fn create(&self, world: &World, users: &[UserUri]) -> Result<GroupId, ClientError> {
        let client = self.client();
        let mut policy = policy::default_policy(&client.member().identity().user_key_hash());
        policy.may_remove = Role::Member;
        policy.may_migrate = Role::Member;
        let way_in = world.chance.below(3);
        if way_in == 0 {
            policy.join = JoinPolicy::Open;
        }
        let group = client.create_group("a group", SUITES[0], Some(policy)).await?;
        world.oracle.borrow_mut().created(&group, &self.uri);
        let added = client.add_users(&group, users).await;
        self.noted(world, "creates a group", &added.as_ref().map(|_| ()));
        let code = match way_in {
            0 => None,
            1 => match client.add_code(&group, CODE_DAYS).await {
                Ok(code) => Some(code),
                Err(error) => {
                    self.noted(world, "lists no code", &Err(error));
                    return Ok(group);
                }
            },
            _ => return Ok(group),
        };
        let door = Door { group: group.clone(), hub: self.uri.domain(), code };
        world.doors.borrow_mut().push(door);
        Ok(group)
    }

    /// Comes into a group from outside, by the word of who made it: where it was then, and its code.
    async fn come_in(&self, client: &Client, world: &World) {
        let doors: Vec<Door> = {
            let doors = world.doors.borrow();
            let is_out = |door: &&Door| !is_in(client, &door.group);
            doors.iter().filter(is_out).cloned().collect()
        };
        if doors.is_empty() {
            return;
        }
        let Door { group, hub, code } = world.chance.pick(&doors);
        let joined = client.join(group, hub, "a group", *code).await;
        if matches!(joined, Ok(Outcome::Accepted(_))) {
            world.trace.count(|counts| counts.joins += 1);
        }
        let how = if code.is_some() { "by its code" } else { "by its open door" };
        self.noted(world, &format!("comes into {group} {how}"), &joined.map(|_| ()));
    }

    /// Deletes a group for everybody, if its policy lets it.
    async fn delete_group(&self, client: &Client, world: &World, group: &GroupId) {
        let deleted = client.delete_group(group).await;
        if matches!(deleted, Ok(Outcome::Accepted(_))) {
            world.trace.count(|counts| counts.deletions += 1);
            world.oracle.borrow_mut().is_over(group);
        }
        self.noted(world, &format!("deletes {group}"), &deleted.map(|_| ()));
    }

    /// Commits to new keys, and what it says of them is not so.
    async fn tell_lie(&self, client: &Client, world: &World, group: &GroupId) {
        let lie = *world.chance.pick(&LIES);
        if !world.plan.has(Mutation::LiesUntold) {
            world.oracle.borrow_mut().lies(group, &self.uri);
        }
        if world.plan.has(Mutation::ForgivesLiars) {
            world.oracle.borrow_mut().forgive(group, &self.uri);
        }
        client.member().lie(Some(lie));
        let told = client.update(group, false).await;
        // what was built and not answered is sent again as it is
        client.member().lie(None);
        if matches!(told, Ok(Outcome::Accepted(_))) {
            world.trace.count(|counts| counts.lies += 1);
            // some lies are seen by all at once, others by one after the other
            if world.chance.below(2) == 0 {
                world.bell.notify_waiters();
            }
        }
        self.noted(world, &format!("lies in {group}: {lie:?}"), &told.map(|_| ()));
    }

    async fn act(&self, client: &Rc<Client>, world: &World) {
        let chance = &world.chance;
        let groups = self.active(client);
        if chance.below(100) < 4 {
            return self.come_in(client, world).await;
        }
        if groups.is_empty() {
            if chance.below(10) == 0 {
                let users = self.users(world, |_| true);
                let _ = self.create(world, &users).await;
            }
            return;
        }
        let view = chance.pick(&groups);
        let group = &view.id;
        if self.is_liar.get() && chance.below(4) == 0 {
            return self.tell_lie(client, world, group).await;
        }
        let members: Vec<UserUri> = view.members.iter().map(|it| it.user.clone()).collect();
        let what = chance.below(100);
        let (name, outcome) = match what {
            0..10 => ("updates", client.update(group, chance.below(2) == 0).await),
            10..18 => {
                let users = self.users(world, |user| !members.contains(user));
                ("adds", client.add_users(group, &users).await)
            }
            18..21 => {
                let users = self.users(world, |user| members.contains(user));
                ("removes", client.remove_users(group, users).await)
            }
            21..23 => ("leaves", client.leave(group).await),
            23..25 => ("resyncs", client.resync(group).await),
            25..28 => ("gives a new queue token", client.update_queue_info(group).await),
            28..33 if world.plan.moves => {
                let target = chance.pick(&world.domains()).clone();
                ("moves", client.migrate(group, &target).await)
            }
            33..36 => ("adds its devices", client.add_own_clients(group, &[]).await),
            36..40 => return self.delete_another(client, world).await,
            40..60 if world.plan.deletes_devices => {
                return self.delete_another(client, world).await;
            }
            40 if chance.below(3) == 0 => {
                let providers = world.providers.borrow();
                let provider = chance.pick(&providers);
                world.trace.note(|| format!("{} has a new hub key", provider.domain));
                provider.rotate_hub_key();
                return;
            }
            41 => return self.abort_moves(world).await,
            42..44 => return self.delete_group(client, world, group).await,
            _ => return self.say(client, world, group).await,
        };
        if let (Ok(Outcome::Accepted(_)), "resyncs") = (&outcome, name) {
            world.trace.count(|counts| counts.resyncs += 1);
        }
        let outcome = outcome.map(|_| ());
        self.noted(world, name, &outcome);
    }

    async fn say(&self, client: &Client, world: &World, group: &GroupId) {
        let text = world.new_text();
        world.oracle.borrow_mut().said(&text, group, &self.uri);
        let said = client.send_text(group, &text).await;
        self.noted(world, &format!("says {text:?} in {group}"), &said.as_ref().map(|_| ()));
        if let Ok(Outcome::Accepted(accepted)) = said {
            world.trace.count(|counts| counts.messages += 1);
            world.oracle.borrow_mut().acknowledged(&text, accepted.group_sequence);
        }
    }

    /// Deletes another device of the own user.
    async fn delete_another(&self, client: &Client, world: &World) {
        let other = {
            let everybody = self.everybody.borrow();
            let of_user = |it: &&ClientUri| it.user() == self.uri.user() && **it != self.uri;
            everybody.iter().find(of_user).cloned()
        };
        let Some(other) = other.filter(|other| other.device() != "phone") else { return };
        world.oracle.borrow_mut().may_be_deleted(&other);
        let deleted = client.delete_device(&other).await;
        self.noted(world, "deletes another device", &deleted);
        if deleted.is_ok() {
            world.oracle.borrow_mut().deleted(&other);
        }
    }

    /// An operator of some provider wants groups to stay.
    async fn abort_moves(&self, world: &World) {
        let domain = world.chance.pick(&world.domains()).clone();
        let asked = world.net.ask(&domain, |inside| {
            async move {
                let departures = inside.node.departures().await.unwrap_or_default();
                let groups = departures.iter().filter_map(|it| GroupId::new(&it.group).ok());
                let mut aborted = 0;
                for group in groups {
                    aborted +=
                        usize::from(inside.node.abort_departure(&group).await.unwrap_or(false));
                }
                aborted
            }
            .boxed_local()
        });
        let aborted = asked.await.unwrap_or_default();
        world.trace.note(|| format!("{aborted} moves from {domain} are taken back"));
    }

    /// One to three users of whom `is_it`.
    fn users(&self, world: &World, is_it: impl Fn(&UserUri) -> bool) -> Vec<UserUri> {
        let everybody = self.everybody.borrow();
        let mut users: Vec<UserUri> = everybody.iter().map(ClientUri::user).collect();
        users.sort();
        users.dedup();
        users.retain(|user| *user != self.uri.user() && is_it(user));
        while users.len() > 1 && world.chance.below(3) > 0 {
            let at = world.chance.below(users.len() as u64);
            users.remove(usize::try_from(at).unwrap());
        }
        users
    }
}

fn is_in(client: &Client, group: &GroupId) -> bool {
    client.member().group(group).is_ok_and(|view| view.state == GroupState::Active)
}

const LIES: [Lie; 4] = [Lie::ConfirmationTag, Lie::MembershipTag, Lie::Path, Lie::ExternalPub];
/// Who is called by others looks within so long.
const CALLED_MS_MAX: u64 = 60_000;
/// Beyond every run.
const CODE_DAYS: u64 = 30;

fn clock_of(clock: &Arc<SetClock>) -> crate::client::Clock {
    let clock = Arc::clone(clock);
    Arc::new(move || clock.now())
}
