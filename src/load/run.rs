//! `mimid load run`: replays a workload at its targets.
//!
//! One task has the clockwork ([`super::pace`]), the groups' order ([`super::lanes`]) and their scripts; it begins what is due, and takes
//! in what is over. Each operation is a task that signs and sends. So the generator spends on a message what reading a step, two
//! signatures and an HTTP/2 request cost; what it took in all is in the result.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior},
};

use super::{
    LoadError,
    alarm::Alarm,
    drain::{Drain, Drains},
    lanes::Lanes,
    ledger::Ledger,
    lines::{Lines, now},
    machine,
    pace::{Pace, Pacing, Spread},
    plan::Op,
    race::{self, Round},
    recorder::Recorder,
    result::{Load, Run, RunResult, Scrape, Scraped, Workload as Described},
    script::Script,
    send::{Sender, Told, Verdict, Work},
    view::View,
    workload::{Target, Workload},
};
use crate::{
    client::http::HttpError,
    wire::{
        client::{ProviderKeys, ProviderKeysAnswer},
        ds::DsError,
        encode,
    },
};

/// How a workload is replayed.
#[derive(Debug, Clone)]
pub struct Options {
    /// In place of the targets' URLs and certificates in the file, in its order; none: those.
    pub targets: Option<Vec<Target>>,
    pub load: Load,
    pub spread: Spread,
    pub seed: u64,
    pub warm_up: Duration,
    /// Of the measured time.
    pub length: Duration,
    pub count: Option<u64>,
    /// To each target.
    pub connections: usize,
    /// Operations that may wait for their group.
    pub waiting_max: usize,
    pub retries: bool,
    pub drain: Drain,
    /// Of those who are in a group, so many read their queues; none: all.
    pub drain_clients: Option<usize>,
    /// Behind the last operation, how long deliveries that are due are waited for.
    pub settle: Duration,
    /// The targets' operator listeners, to read `/metrics` before and after.
    pub ops: Vec<String>,
    pub is_quiet: bool,
    /// Options as they were given, for the result.
    pub said: BTreeMap<String, String>,
}

/// What a run came to, beside the result.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    pub result: RunResult,
    /// Groups in which nothing more could happen.
    pub groups_lost: usize,
    /// The processors' time that the generator used for each operation that was begun; none where none was.
    pub generator_us: Option<u64>,
    pub delivered: u64,
    pub interrupted: bool,
    /// What went wrong in the middle and ended it; all that was measured until then is there.
    pub broke: Option<String>,
}

/// Replays a workload until its time or count is over, or `stop` comes: before it has begun that is [`LoadError::Interrupted`].
///
/// # Errors
/// [`LoadError`] where it cannot begin. What goes wrong later is told with the result.
pub async fn run(
    path: &std::path::Path,
    options: Options,
    stop: impl Future<Output = ()>,
) -> Result<Done, LoadError> {
    let mut stop = std::pin::pin!(stop);
    let ready = tokio::select! {
        ready = Ready::make(path, &options) => ready?,
        () = &mut stop => return Err(LoadError::Interrupted),
    };
    let Ready { workload, targets, lines, recorder, ledger, mut drains, mut machine } = ready;
    let before = machine::processor_time();
    let started_at_ms = now().0;
    let began = drains.begin();
    let first = tokio::spawn(scrape_at(began, options.warm_up, options.ops.clone()));
    let mut replay = Replay::new(workload, targets, lines, recorder, ledger, &options, began);
    let Went { interrupted, broke } = replay.go(stop).await;
    let (over_at, tail) = replay.over();
    let scrapes = if first.is_finished() || replay.elapsed() >= options.warm_up {
        first.await.unwrap_or_default()
    } else {
        // it was stopped before there was anything to measure
        first.abort();
        scrape_at(began, Duration::ZERO, options.ops.clone()).await
    };
    // before what follows: while clients still read what waits for them nothing is accepted that it could be divided by
    let lasts = scrape_at(began, Duration::ZERO, options.ops.clone()).await;
    let settle = if interrupted { options.settle.min(GRACE_STOPPED) } else { options.settle };
    let drained = drains.settle(settle).await;
    let measured = over_at.saturating_sub(options.warm_up);
    let both = options.ops.iter().cloned().zip(scrapes).zip(lasts);
    let scraped = both.map(|((target, before), after)| Scrape { target, before, after }).collect();
    replay.recorder.close_interval(replay.elapsed());
    let spent = machine::processor_time().saturating_sub(before);
    let spent_us = u64::try_from(spent.as_micros()).unwrap_or(u64::MAX);
    let generator_us = spent_us.checked_div(replay.begun);
    if let Some(us) = generator_us {
        let what =
            "processor time of the generator for each operation, its clients' reading included";
        machine.insert(what.to_owned(), format!("{us} µs"));
    }
    let measured_parts = replay.recorder.measured();
    let header = &replay.workload.header;
    let about = Run {
        mimid_version: env!("CARGO_PKG_VERSION").to_owned(),
        options: options.said,
        workload: Described {
            name: header.name.clone(),
            seed: header.shape.seed,
            description: header.shape.to_string(),
        },
        targets: replay.targets.iter().map(|target| target.url.clone()).collect(),
        started_at_ms,
        warm_up_ms: millis(options.warm_up),
        measured_ms: millis(measured),
        tail_ms: millis(tail),
        groups_lost: replay.lost as u64,
        drained,
        load: options.load,
        machine,
    };
    let result = RunResult::new(about, measured_parts.operations, measured_parts.series, scraped);
    let groups_lost = replay.lost;
    let delivered = drains.delivered();
    Ok(Done { result, groups_lost, generator_us, delivered, interrupted, broke })
}

/// All that a run begins with.
struct Ready {
    workload: Workload,
    targets: Vec<Target>,
    lines: Lines,
    recorder: Recorder,
    ledger: Arc<Ledger>,
    drains: Drains,
    machine: BTreeMap<String, String>,
}

impl Ready {
    async fn make(path: &std::path::Path, options: &Options) -> Result<Self, LoadError> {
        let workload = open(path.to_owned()).await?;
        let targets = targets(&workload, options.targets.clone())?;
        let lines = Lines::new(&targets, options.connections)?;
        let drained = drained(&workload, options)?;
        let streams = if options.drain == Drain::Stream { drained.len() } else { 0 };
        machine::files_for(streams + targets.len() * options.connections)?;
        greet(&workload, &targets, &lines).await?;
        for url in &options.ops {
            machine::is_operators(url).await?;
        }
        let machine = machine::facts();
        let recorder = Recorder::new(options.warm_up);
        recorder.ends_at(options.warm_up + options.length);
        let ledger = Ledger::new(&drained, workload.accounts.len(), options.warm_up);
        let ledger = Arc::new(ledger);
        let drains = Drains::open(
            options.drain,
            &drained,
            &targets,
            &workload.accounts,
            &recorder,
            &ledger,
            options.is_quiet,
        )
        .await?;
        // what waits in their queues from before is no part of the run
        drains.read_backlog(BACKLOG_MAX).await;
        Ok(Self { workload, targets, lines, recorder, ledger, drains, machine })
    }
}

/// The targets' metrics, `when` the run has gone on for so long.
async fn scrape_at(began: Instant, when: Duration, ops: Vec<String>) -> Vec<Scraped> {
    tokio::time::sleep_until(began + when).await;
    let mut scraped = Vec::new();
    for url in &ops {
        scraped.push(machine::scrape(url, millis(began.elapsed())).await);
    }
    scraped
}

async fn open(path: PathBuf) -> Result<Workload, LoadError> {
    let opened = tokio::task::spawn_blocking(move || Workload::open(&path)).await;
    opened.unwrap_or(Err(LoadError::Interrupted))
}

/// Where the workload's targets are now.
fn targets(workload: &Workload, named: Option<Vec<Target>>) -> Result<Vec<Target>, LoadError> {
    let kept = &workload.header.targets;
    let Some(named) = named else { return Ok(kept.clone()) };
    let said = |targets: &[Target]| {
        targets.iter().map(|target| target.domain.to_string()).collect::<Vec<_>>().join(", ")
    };
    let found: Option<Vec<Target>> = kept
        .iter()
        .map(|target| named.iter().find(|it| it.domain == target.domain).cloned())
        .collect();
    found.filter(|found| found.len() == named.len()).ok_or_else(|| {
        LoadError::Usage(format!(
            "the workload was prepared for {}, and the targets are {}: it is good for those alone",
            said(kept),
            said(&named)
        ))
    })
}

fn drained(workload: &Workload, options: &Options) -> Result<Vec<u32>, LoadError> {
    if options.drain == Drain::None {
        return Ok(Vec::new());
    }
    let most = options.drain_clients.unwrap_or(usize::MAX);
    let most = most.min(workload.accounts.len());
    let mut inside = std::collections::BTreeSet::new();
    for index in 0..workload.header.shape.groups as usize {
        // who came last has the fewest commits of the others' coming in before what is measured
        for member in workload.group(index)?.0.members.into_iter().rev() {
            if inside.len() == most {
                return Ok(inside.into_iter().collect());
            }
            inside.insert(member);
        }
    }
    Ok(inside.into_iter().collect())
}

/// Asks each target something as a client of its own, so that a wrong one is told of before the load begins.
async fn greet(workload: &Workload, targets: &[Target], lines: &Lines) -> Result<(), LoadError> {
    for (at, target) in targets.iter().enumerate() {
        let request = encode(&ProviderKeys { domain: target.domain.clone() });
        let asked: Result<ProviderKeysAnswer, HttpError> =
            lines.call(&workload.accounts[at], at, "/v1/provider_keys", request).await;
        match asked {
            Ok(_) => {}
            Err(HttpError::Refused(error @ DsError::Unauthenticated { .. })) => {
                return Err(LoadError::Unfit(format!(
                    "{} does not know the clients of this workload ({error}): it was prepared at another provider of {}, or with a data \
                     folder that is gone. Prepare it anew with `mimid load prepare`",
                    target.url, target.domain
                )));
            }
            Err(error) => return Err(LoadError::of(error, &target.url, "say what its keys are")),
        }
    }
    Ok(())
}

/// What a task says of an operation that is over.
enum Over {
    /// The group's part of it: others may begin there.
    Judged {
        group: usize,
        held: bool,
        verdict: Verdict,
    },
    /// All of it.
    Step,
    Live {
        group: usize,
        crew: Result<Box<super::crew::Crew>, LoadError>,
    },
}

/// How a replay ended.
struct Went {
    interrupted: bool,
    broke: Option<String>,
}

struct Replay {
    workload: Workload,
    targets: Vec<Target>,
    sender: Arc<Sender>,
    recorder: Recorder,
    pace: Pace,
    lanes: Lanes,
    scripts: Vec<Script>,
    view: View,
    losers_retry: bool,
    /// Operations that were begun, and that are not over.
    begun: u64,
    running: u64,
    running_max: u64,
    lost: usize,
    /// From when on nothing began.
    over_at: Option<Duration>,
    /// It was over before its time: by its count, or because no group was left.
    has_all: bool,
    /// When an operation was over last, while they were waited for.
    last_over: Duration,
    over: mpsc::UnboundedSender<Over>,
    /// As many as operations are begun, which has a bound.
    overs: mpsc::UnboundedReceiver<Over>,
    /// When those were due whose group is gone.
    homeless: Vec<Duration>,
    /// Tells whoever still waits for an answer that the run has ended.
    ended: watch::Sender<bool>,
}

impl Replay {
    fn new(
        workload: Workload,
        targets: Vec<Target>,
        lines: Lines,
        recorder: Recorder,
        ledger: Arc<Ledger>,
        options: &Options,
        began: Instant,
    ) -> Self {
        let groups = workload.header.shape.groups as usize;
        let until = options.warm_up + options.length;
        let pacing = Pacing {
            load: options.load,
            spread: options.spread,
            seed: options.seed,
            groups,
            warm_up: options.warm_up,
            until,
            count_max: options.count,
        };
        let (ended, is_ended) = watch::channel(false);
        // what has no place on a connection waits, and no more of that than of what waits for its group
        let running_max = lines.room().saturating_add(options.waiting_max) as u64;
        let sender = Sender {
            ended: is_ended,
            lines,
            accounts: Arc::clone(&workload.accounts),
            ledger,
            domains: targets.iter().map(|target| target.domain.clone()).collect(),
            began,
            retries: options.retries,
        };
        let (over, overs) = mpsc::unbounded_channel();
        Self {
            losers_retry: workload.header.shape.losers_retry,
            workload,
            targets,
            sender: Arc::new(sender),
            recorder,
            pace: Pace::new(pacing),
            lanes: Lanes::new(groups, options.waiting_max),
            scripts: std::iter::repeat_with(|| Script::Unopened).take(groups).collect(),
            view: View::begin(until, options.is_quiet),
            begun: 0,
            running: 0,
            running_max,
            lost: 0,
            over_at: None,
            has_all: false,
            last_over: Duration::ZERO,
            over,
            overs,
            homeless: Vec::new(),
            ended,
        }
    }

    fn elapsed(&self) -> Duration {
        self.sender.began.elapsed()
    }

    /// Runs until it is over, or told to stop, or cannot go on.
    async fn go(&mut self, stop: impl Future<Output = ()>) -> Went {
        let ran = self.replay(stop).await;
        if ran.is_err() {
            self.ends_early(self.elapsed());
            self.wait(GRACE_STOPPED).await;
        }
        self.view.end();
        self.end().await;
        let interrupted = matches!(ran, Ok(true));
        Went { interrupted, broke: ran.err().map(|error| error.to_string()) }
    }

    /// For what was begun; nothing new begins.
    async fn wait(&mut self, most: Duration) {
        let until = Instant::now() + most;
        while self.running > 0 {
            let Ok(Some(over)) = tokio::time::timeout_at(until, self.overs.recv()).await else {
                break;
            };
            // where nothing begins nothing is read that could be damaged
            let _ = self.took(over, true);
        }
    }

    /// Nothing begins any more, though there is time left; what comes from here on is not measured.
    fn ends_early(&mut self, at: Duration) {
        self.over_at.get_or_insert(at);
        self.recorder.ends_at(at);
    }

    /// Until when it was measured, and how much longer it took until all operations were over.
    fn over(&self) -> (Duration, Duration) {
        let nothing_began = self.over_at.unwrap_or_default();
        let last = self.last_over.max(nothing_began);
        // a count is done when the last one is over, where there is time for that
        let over_at = if self.has_all { last.min(self.pace.until()) } else { nothing_began };
        (over_at, last - over_at)
    }

    /// Whether it was told to stop.
    async fn replay(&mut self, stop: impl Future<Output = ()>) -> Result<bool, LoadError> {
        let mut stop = std::pin::pin!(stop);
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut stopped = false;
        let (mut ends_by, mut stopped_at) = (None, None);
        let mut alarm = Alarm::new();
        loop {
            let now = self.elapsed();
            let mut batch = if stopped { 0 } else { BATCH_MAX };
            while batch > 0 {
                let Some(arrival) = self.pace.due(self.elapsed()) else { break };
                batch -= 1;
                self.arrive(arrival.group, arrival.due)?;
                self.rehouse()?;
            }
            let over = stopped || self.pace.is_over(now);
            if over && self.over_at.is_none() {
                if stopped {
                    self.ends_early(now);
                } else {
                    let at = self.pace.over_at(now).min(self.pace.until());
                    self.has_all = at < self.pace.until();
                    self.over_at = Some(at);
                }
            }
            if over && self.running == 0 && (stopped || self.lanes.waiting() == 0) {
                break;
            }
            if over {
                let most = self.pace.until().max(now) + GRACE;
                let ends_by = ends_by.get_or_insert(most);
                if stopped {
                    *ends_by = (*ends_by).min(*stopped_at.get_or_insert(now) + GRACE_STOPPED);
                }
                if now >= *ends_by {
                    break;
                }
            }
            // a closed loop has no next one, but may have more that are to begin at once
            let more = (batch == 0 && !stopped).then_some(now);
            let next = more.or_else(|| self.pace.next_at()).filter(|_| !over);
            alarm.set(self.sender.began + next.unwrap_or(now + GRACE));
            tokio::select! {
                biased;
                () = &mut stop, if !stopped => stopped = true,
                // before what is over: at a high rate something always is, and an interval is to be a second
                _ = ticks.tick() => {
                    let interval = self.recorder.close_interval(self.elapsed());
                    self.view.show(&interval, self.lanes.waiting());
                }
                Some(over) = self.overs.recv() => {
                    self.took(over, stopped)?;
                    // others may be there, too: what is due is looked at behind all of them
                    for _ in 0..BATCH_MAX {
                        let Ok(over) = self.overs.try_recv() else { break };
                        self.took(over, stopped)?;
                    }
                    self.last_over = self.elapsed();
                }
                () = alarm.rings() => {}
            }
        }
        Ok(stopped)
    }

    /// What was begun or due and will not be answered any more is counted as that.
    async fn end(&mut self) {
        let _ = self.ended.send(true);
        self.wait(END_MAX).await;
        for group in 0..self.scripts.len() {
            for due in self.lanes.abandon(group) {
                self.not_begun(due, "run_end");
            }
        }
        for due in std::mem::take(&mut self.homeless) {
            self.not_begun(due, "run_end");
        }
    }

    fn arrive(&mut self, group: usize, due: Duration) -> Result<(), LoadError> {
        if self.running < self.running_max && self.lanes.arrive(group, due) {
            return self.begin_in(group);
        }
        self.not_begun(due, "generator_full");
        Ok(())
    }

    /// Something that was due and will not be sent; it counts all the same.
    fn not_begun(&mut self, due: Duration, why: &'static str) {
        self.recorder.sent(NOT_BEGUN);
        self.recorder.unanswered(NOT_BEGUN, why, due);
        self.pace.ended();
    }

    fn begin_in(&mut self, group: usize) -> Result<(), LoadError> {
        loop {
            if matches!(self.scripts[group], Script::Unopened) {
                let (accounts, ledger) = (&self.workload.accounts, &self.sender.ledger);
                self.scripts[group] = Script::open(&self.workload, accounts, ledger, group)?;
            }
            let script = &mut self.scripts[group];
            let workload = &self.workload;
            let mut is_gone = false;
            let due = self.lanes.begin(group, || {
                let holds = script.holds(workload)?;
                is_gone = holds.is_none();
                // nothing begins in a group that is gone, as if something held it
                Ok::<_, LoadError>(holds.unwrap_or(true))
            })?;
            if is_gone {
                if due.is_some() {
                    self.lanes.end(group);
                }
                self.lose(group, due);
                return Ok(());
            }
            let Some(due) = due else { return Ok(()) };
            self.begin(group, due);
        }
    }

    fn begin(&mut self, group: usize, due: Duration) {
        self.begun += 1;
        self.running += 1;
        let (sender, recorder, over) =
            (Arc::clone(&self.sender), self.recorder.clone(), self.over.clone());
        match &mut self.scripts[group] {
            Script::Ahead(ahead) => {
                let Some((step, id)) = ahead.take() else {
                    refused_at_once(&over, group);
                    return;
                };
                let held = step.holds > 0;
                let work = Work {
                    requests: step.requests,
                    holds: step.holds,
                    hub: ahead.hub,
                    group: ahead.id.clone(),
                    id,
                    due,
                    readers: ahead.readers,
                };
                // a receiver that is gone belongs to a run that is over
                let told = move |told| {
                    let _ = over.send(match told {
                        Told::Judged(verdict) => Over::Judged { group, held, verdict },
                        Told::Over => Over::Step,
                    });
                };
                tokio::spawn(sender.perform(recorder, work, told));
            }
            Script::Live(live) => {
                let (op, crew) = (live.next(), live.crew.take());
                let (Some(op), Some(crew)) = (op, crew) else {
                    let crew = Err(LoadError::Mls("nothing follows".to_owned()));
                    let _ = over.send(Over::Live { group, crew });
                    return;
                };
                let comes_in = matches!(op, Op::Add { .. } | Op::Join { .. });
                let token = if comes_in { live.token() } else { None };
                let losers_retry = self.losers_retry;
                let opening = std::mem::take(&mut live.opening);
                let round = Round { crew, hub: live.hub, op, token, due, opening, losers_retry };
                tokio::spawn(async move {
                    let crew = race::play(sender, recorder, round).await.map(Box::new);
                    let _ = over.send(Over::Live { group, crew });
                });
            }
            Script::Unopened | Script::Gone => refused_at_once(&over, group),
        }
    }

    fn took(&mut self, over: Over, stopped: bool) -> Result<(), LoadError> {
        if matches!(over, Over::Step | Over::Live { .. }) {
            self.running -= 1;
            self.pace.ended();
        }
        let (group, goes_on) = match over {
            Over::Step => return Ok(()),
            Over::Judged { group, held, verdict } => {
                let script = &mut self.scripts[group];
                let goes_on = match script {
                    Script::Ahead(ahead) => ahead.judged(held, verdict),
                    Script::Unopened | Script::Live(_) | Script::Gone => false,
                };
                (group, goes_on)
            }
            Over::Live { group, crew } => {
                let goes_on = crew.is_ok();
                match (&mut self.scripts[group], crew) {
                    (Script::Live(live), Ok(crew)) => live.crew = Some(*crew),
                    (_, Err(error)) => tracing::info!(group, %error, "a group is given up"),
                    (_, Ok(_)) => {}
                }
                (group, goes_on)
            }
        };
        self.lanes.end(group);
        if !goes_on {
            self.lose(group, None);
        } else if !stopped {
            self.begin_in(group)?;
        }
        if stopped { Ok(()) } else { self.rehouse() }
    }

    /// Nothing more happens in a group.
    fn lose(&mut self, group: usize, due: Option<Duration>) {
        if !matches!(self.scripts[group], Script::Gone) {
            self.scripts[group] = Script::Gone;
            self.lost += 1;
            self.pace.lose(group);
        }
        self.homeless.extend(self.lanes.abandon(group));
        self.homeless.extend(due);
    }

    /// What was due in a group that is gone goes to others, with the time that it was due.
    fn rehouse(&mut self) -> Result<(), LoadError> {
        while let Some(due) = self.homeless.pop() {
            match self.pace.group() {
                Some(other) => self.arrive(other, due)?,
                None => self.not_begun(due, "no_group_left"),
            }
        }
        Ok(())
    }
}

/// As of an operation that is over at once: what is counted as running must end.
fn refused_at_once(over: &mpsc::UnboundedSender<Over>, group: usize) {
    let _ = over.send(Over::Judged { group, held: true, verdict: Verdict::Refused });
    let _ = over.send(Over::Step);
}

impl Drop for Replay {
    fn drop(&mut self) {
        // a table that stays on the terminal is in the way of an error
        self.view.end();
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The name of what was due and not sent.
pub const NOT_BEGUN: &str = "not_begun";
/// How long what was begun may take behind the run's end.
const GRACE: Duration = Duration::from_secs(45);
const GRACE_STOPPED: Duration = Duration::from_secs(10);
const END_MAX: Duration = Duration::from_secs(5);
/// How long what waited in the queues before may take to be read.
const BACKLOG_MAX: Duration = Duration::from_secs(120);
/// What is due or over is looked at so often in a row before there is a look at the clock and at who wants an end: where the generator is
/// behind there is always more of it.
const BATCH_MAX: usize = 256;
