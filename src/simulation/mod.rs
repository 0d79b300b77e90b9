//! Deterministic simulation: whole providers and real clients on one thread, under a clock, a network and disks that are made up,
//! of one seed.
//!
//! **What is real**: everything from the bodies of requests downward. Each provider is a `Node` with all of its actors, its
//! federation and its two listeners' handlers behind the sockets; each client a `Client` with its MLS groups. **What is made up**:
//! time (tokio's, paused: it goes on when nothing can be done), clocks (skewed, and jumping), the network ([`net`]: loss, delay,
//! doubling, reordering, partitions), disks ([`provider`]: slow, failing, and losing at a crash what was not synced), randomness (of
//! the seed), and what people do ([`agent`]). Providers and clients crash between any two events. There is one thread, so that one
//! seed is one run: `Report::hash` is that of everything that happened.
//!
//! [`oracle`] judges, from outside: what clients are handed, what they show, and what stands on the disks; [`bounds`] how often and how
//! soon something is tried, and how much waits.
//!
//! Deliberately absent: sockets, TLS, the engines of real disks, and the clients' stream (they poll).

mod agent;
mod bounds;
mod net;
mod oracle;
mod provider;
mod tests;
mod trace;
mod violation;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, task::LocalSet, time::Instant};

use crate::{
    client::http::simulated,
    crypto,
    wire::ids::{Domain, Timestamp},
};
use agent::{Agent, Door};
use net::Net;
use oracle::{Oracle, Probe};
use provider::Provider;
use trace::{Chance, Trace};
use violation::{Invariant, Violation};

/// What is simulated.
#[derive(Debug, Clone)]
struct Plan {
    seed: u64,
    /// Of faults and people; what follows until everything is at rest comes on top.
    hours: u64,
    providers: usize,
    users: usize,
    groups: usize,
    /// Whether groups move between providers.
    moves: bool,
    /// The simulation begins so many days before today. What happens must not hang on it.
    days_back: u64,
    /// Nobody does anything.
    silent: bool,
    /// Everybody has two devices, and soon deletes the second one. Else a few do, and seldom.
    deletes_devices: bool,
    /// Somebody lies now and then, and hubs remove nobody for silence: whose removal they propose has lied or is deleted.
    has_liar: bool,
    mutation: Option<Mutation>,
}

impl Plan {
    fn of(seed: u64) -> Self {
        let (providers, users, groups) = (3, 6, 3);
        Self {
            seed,
            hours: 48,
            providers,
            users,
            groups,
            moves: true,
            days_back: DAYS_BACK,
            silent: false,
            deletes_devices: false,
            has_liar: seed % SEEDS_A_LIAR == 2,
            mutation: None,
        }
    }

    /// So that what is planted matters in most of the runs.
    fn with(mutation: Mutation, seed: u64) -> Self {
        // hubs remove whoever is silent for ten hours all the same: only a device that was deleted late shows that nobody was told
        let deletes_devices = mutation == Mutation::ForgetsNotices;
        let has_liar = matches!(
            mutation,
            Mutation::LiesUntold | Mutation::ForgivesLiars | Mutation::VoidsUntold
        );
        Self { hours: 24, deletes_devices, has_liar, mutation: Some(mutation), ..Self::of(seed) }
    }

    fn has(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }
}

/// A fault that is planted where the simulation and what it simulates meet. Each must be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutation {
    /// The disk answers at every flush, and syncs at every tenth.
    AnswersBeforeSync,
    /// After a crash a provider stands on what its disk held some time before.
    OldDisk,
    /// No batch says that there is something for a peer.
    ForgetsOutbound,
    /// A membership that ends is not written down.
    ForgetsClose,
    /// Clients that are gone are not told to groups.
    ForgetsNotices,
    /// An entry is left out of what a client is handed.
    DropsEntry,
    /// Commits are refused in a group whose hub has proposed a removal.
    RefusesCommits,
    /// Nothing is looked after but by hints.
    NeverSweeps,
    /// A peer that does not answer is tried every half second.
    HammersDeadPeers,
    /// A peer that did not answer is left alone for hours.
    WaitsForHours,
    /// What a client had of a group that it has left stays when all of it is acknowledged.
    KeepsClosedFeeds,
    /// Who lost a race for an epoch is told that it has won.
    AcceptsBoth,
    /// A commit stands in the log of its group a second time.
    WritesTwice,
    /// Behind the word that it is removed a client is handed one more entry of that feed.
    HandsBehindRemoval,
    /// Somebody lies whom nobody knows for a liar.
    LiesUntold,
    /// Hubs propose the removal of somebody who is held to be honest.
    ForgivesLiars,
    /// A commit is taken back, and another one is named.
    VoidsUntold,
    /// Who is in a group that is deleted is not told.
    ForgetsDeletion,
    /// A move that the source has given up goes on at the target all the same, as hosted.
    ThawsWhatHasGone,
}

/// What came of a run.
#[derive(Debug, Default)]
struct Report {
    seed: u64,
    simulated: Duration,
    took: Duration,
    /// Of everything that happened.
    hash: u64,
    events: u64,
    counts: trace::Counts,
    failure: Option<Violation>,
    last: Vec<String>,
}

/// What is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Everything goes wrong.
    Faults,
    /// Nothing does any more; what is on its way ends.
    Settling,
    Over,
}

struct World {
    plan: Plan,
    chance: Chance,
    trace: Trace,
    net: Arc<Net>,
    oracle: RefCell<Oracle>,
    providers: RefCell<Vec<Provider>>,
    phase: Cell<Phase>,
    time: Time,
    texts: Cell<u64>,
    /// Calls everybody to look.
    bell: Notify,
    /// Groups that may be come into from outside.
    doors: RefCell<Vec<Door>>,
}

/// True time.
#[derive(Debug, Clone, Copy)]
struct Time {
    start: Instant,
    at_start: Timestamp,
}

impl Time {
    fn since_start(self) -> Duration {
        self.start.elapsed()
    }

    fn now(self) -> Timestamp {
        self.at_start.plus_ms(u64::try_from(self.since_start().as_millis()).unwrap())
    }
}

/// Runs one seed, on a thread of its own: what a thread has of a run is gone with it.
fn run(plan: Plan) -> Report {
    let thread = std::thread::Builder::new().stack_size(64 << 20).name(format!("{}", plan.seed));
    let running = thread.spawn(move || {
        crypto::seeded::seed(Some(plan.seed));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let began = std::time::Instant::now();
        let report = LocalSet::new().block_on(&runtime, simulate(plan));
        Report { took: began.elapsed(), ..report }
    });
    running.unwrap().join().unwrap()
}

async fn simulate(plan: Plan) -> Report {
    // openmls holds lifetimes against the real clock: what is made in the simulation must be good today
    let today = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let day_ms = 24 * 3600 * 1000;
    let at_start =
        Timestamp((u64::try_from(today.as_millis()).unwrap() / day_ms - plan.days_back) * day_ms);
    let time = Time { start: Instant::now(), at_start };
    let trace = Trace::new(time.start);
    let chance = Chance::of(plan.seed);
    let net = Arc::new(Net::new(chance.clone(), trace.clone(), time));
    let names = ["a.example", "b.example", "c.example"];
    let domains = names.iter().take(plan.providers).map(|name| Domain::new(*name).unwrap());
    let providers: Vec<Provider> = domains.map(|domain| Provider::new(domain, time)).collect();
    let handed = net::Handed::default();
    let world = Rc::new(World {
        phase: Cell::new(Phase::Settling),
        oracle: RefCell::new(Oracle::new(trace.clone(), handed.clone(), plan.has_liar)),
        providers: RefCell::new(providers),
        texts: Cell::new(0),
        bell: Notify::new(),
        doors: RefCell::default(),
        plan,
        chance,
        trace,
        net,
        time,
    });
    simulated::connect(world.net.for_clients(handed));
    for at in 0..world.plan.providers {
        world.start_provider(at);
    }
    let story = world.clone().story();
    // a run that does not end is a failure as well
    let most = Duration::from_secs((world.plan.hours + HOURS_TO_SETTLE * 4) * 3600);
    let told = tokio::time::timeout(most, story).await;
    let failure = match told {
        Ok(told) => told.err(),
        Err(_) => Some(Invariant::Ends.broken("the run does not come to an end")),
    };
    if let Some(failure) = &failure {
        world.trace.note(|| format!("FAILED: {failure}"));
    }
    let most = world.net.bounds.attempts_most();
    world.trace.count(|counts| counts.attempts_an_hour_most = most);
    let (hash, events, counts, last) = world.trace.end();
    let simulated = world.time.since_start();
    Report {
        seed: world.plan.seed,
        simulated,
        hash,
        events,
        counts,
        failure,
        last,
        ..Report::default()
    }
}

impl World {
    async fn sleep_ms(&self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    fn new_text(&self) -> String {
        self.texts.set(self.texts.get() + 1);
        format!("text {}", self.texts.get())
    }

    fn domains(&self) -> Vec<Domain> {
        self.providers.borrow().iter().map(|it| it.domain.clone()).collect()
    }

    fn is_over(&self) -> bool {
        let ends = Duration::from_secs(self.plan.hours * 3600);
        self.phase.get() != Phase::Faults || self.time.since_start() >= ends
    }

    fn start_provider(&self, at: usize) {
        let mut providers = self.providers.borrow_mut();
        providers[at].start(&self.plan, &self.net, &self.chance, &self.trace);
    }

    fn crash_provider(&self, at: usize) {
        let mut providers = self.providers.borrow_mut();
        let domain = providers[at].domain.clone();
        self.trace.note(|| format!("{domain} crashes"));
        self.trace.count(|counts| counts.crashes += 1);
        providers[at].crash(&self.net);
    }

    /// Everything from the first client to the last check.
    async fn story(self: Rc<Self>) -> Result<(), Violation> {
        let agents = agent::populate(&self).await;
        self.oracle.borrow_mut().take_in()?;
        self.phase.set(Phase::Faults);
        self.net.plant(self.plan.mutation);
        let mut tasks = Vec::new();
        for agent in agents.iter().filter(|_| !self.plan.silent) {
            tasks.push(tokio::task::spawn_local(Rc::clone(agent).live(Rc::clone(&self))));
        }
        for at in 0..self.plan.providers {
            tasks.push(tokio::task::spawn_local(Rc::clone(&self).misfortunes_of(at)));
        }
        tasks.push(tokio::task::spawn_local(Rc::clone(&self).weather()));
        let ends = Duration::from_secs(self.plan.hours * 3600);
        while self.time.since_start() < ends {
            self.sleep_ms(self.chance.between(60_000, 1_200_000)).await;
            self.judge().await?;
        }
        self.settle(&agents, tasks).await
    }

    /// What can be judged at any time.
    async fn judge(&self) -> Result<(), Violation> {
        self.oracle.borrow_mut().take_in()?;
        bounds::look(self).await?;
        oracle::look_at_disks(self).await
    }

    /// Faults end. All that is owed comes in bounded time, and every group takes what its members say.
    async fn settle(
        &self,
        agents: &[Rc<Agent>],
        tasks: Vec<tokio::task::JoinHandle<()>>,
    ) -> Result<(), Violation> {
        self.trace.note(|| "faults end".to_owned());
        self.phase.set(Phase::Settling);
        self.net.mend();
        for task in tasks {
            task.await.map_err(|error| {
                Invariant::Ends.broken(format!("a part of the simulation panicked: {error}"))
            })?;
        }
        for at in 0..self.plan.providers {
            let (runs, failed) = {
                let providers = self.providers.borrow();
                providers[at].clock.set_offset(0);
                self.net.bounds.disturbs_all(&providers[at].domain, false);
                (providers[at].is_running(), providers[at].has_failed())
            };
            if runs && failed {
                self.crash_provider(at);
            }
            if !runs || failed {
                self.start_provider(at);
            }
        }
        for agent in agents {
            agent.clock.set_offset(0);
            agent.start(self);
        }
        let began = self.time.since_start();
        let bound = Duration::from_secs(HOURS_TO_SETTLE * 3600);
        let mut probes: Option<Vec<Probe>> = None;
        loop {
            for agent in agents {
                agent.catch_up(self).await;
            }
            for probe in probes.iter_mut().flatten().filter(|probe| !probe.is_said) {
                let agent = agents.iter().find(|agent| agent.uri == probe.by);
                agent.expect("it is one of them").say_probe(self, probe).await;
            }
            self.judge().await?;
            let mut left = oracle::what_is_left(self, agents).await;
            match &probes {
                Some(probes) => left.extend(self.oracle.borrow().unheard(agents, probes)),
                None if left.is_empty() => {
                    // at rest: every member says something, and all the others hear it
                    probes = Some(agents.iter().flat_map(|agent| agent.probes(self)).collect());
                    continue;
                }
                None => {}
            }
            if left.is_empty() {
                break;
            }
            if self.time.since_start() - began > bound {
                if let Some(broken) = self.oracle.borrow().in_what_is_deleted(agents) {
                    return Err(broken);
                }
                let left = left.join("; ");
                let what = format!("{HOURS_TO_SETTLE} hours after the last fault: {left}");
                return Err(Invariant::ComesToRest.broken(what));
            }
            self.sleep_ms(60_000).await;
        }
        self.judge().await?;
        self.phase.set(Phase::Over);
        self.oracle.borrow_mut().judge_the_end(agents, &self.trace)
    }

    /// Crashes, failing disks and clocks of a provider.
    async fn misfortunes_of(self: Rc<Self>, at: usize) {
        while !self.is_over() {
            let most_ms = 10 * 3600 * 1000;
            self.rest_ms(self.chance.between(1, most_ms) + self.chance.below(most_ms)).await;
            if self.is_over() {
                break;
            }
            match self.chance.below(10) {
                0..5 => self.crash_for(at).await,
                5 => {
                    {
                        let providers = self.providers.borrow();
                        providers[at].fail_next_flush(&self.chance, &self.trace);
                    }
                    // its operator sees it
                    self.rest_ms(self.chance.between(1_000, 15 * 60 * 1000)).await;
                    self.crash_for(at).await;
                }
                _ => {
                    let providers = self.providers.borrow();
                    let offset = self.chance.below(180_000);
                    let offset = i64::try_from(offset).unwrap() - 90_000;
                    providers[at].clock.set_offset(offset);
                    let domain = &providers[at].domain;
                    self.net.bounds.disturbs_all(domain, false);
                    self.trace.note(|| format!("the clock of {domain} is off by {offset} ms"));
                }
            }
        }
    }

    async fn crash_for(&self, at: usize) {
        self.crash_provider(at);
        let long = self.chance.below(10) == 0;
        let down_ms = self.chance.between(500, if long { 2 * 3600 * 1000 } else { 60_000 });
        self.rest_ms(down_ms).await;
        self.start_provider(at);
        let providers = self.providers.borrow();
        let domain = &providers[at].domain;
        self.trace.note(|| format!("{domain} starts again"));
    }

    /// Sleeps, and no longer than faults last.
    async fn rest_ms(&self, ms: u64) {
        let ends = self.time.start + Duration::from_secs(self.plan.hours * 3600);
        tokio::time::sleep_until(ends.min(Instant::now() + Duration::from_millis(ms))).await;
    }

    /// How the network is, and whom it parts.
    async fn weather(self: Rc<Self>) {
        let domains = self.domains();
        while !self.is_over() {
            self.net.change_weather();
            self.rest_ms(self.chance.between(60_000, 5 * 3600 * 1000)).await;
            if self.is_over() {
                break;
            }
            if domains.len() > 1 && self.chance.below(2) == 0 {
                let one = self.chance.pick(&domains).clone();
                let other = self.chance.pick(&domains).clone();
                if one != other {
                    let both = self.chance.below(3) > 0;
                    self.net.cut(&one, &other, both);
                    let long = self.chance.below(6) == 0;
                    let ms = self
                        .chance
                        .between(1_000, if long { 9 * 3600 * 1000 } else { 30 * 60 * 1000 });
                    self.rest_ms(ms).await;
                    self.net.join(&one, &other);
                }
            }
        }
    }
}

/// What is made in the simulation is good for longer.
const DAYS_BACK: u64 = 30;
/// Of so many seeds one has a liar. With nobody who lies more can be demanded.
const SEEDS_A_LIAR: u64 = 3;
/// In how many hours everything has come that was owed when the last fault ended: the longest pause of any schedule is one.
const HOURS_TO_SETTLE: u64 = 6;
