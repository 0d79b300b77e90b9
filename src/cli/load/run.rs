//! `mimid load run`

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};

use super::targets::{Targets, unfit, usage};
use crate::load::{
    LoadError,
    drain::Drain,
    pace::Spread,
    report,
    result::{Load, Operation, ResultFile},
    run::{self, Done, Options},
    workload::Workload,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A workload of `mimid load prepare`
    file: PathBuf,
    #[command(flatten)]
    targets: Targets,
    /// Open loop: so many operations a second, whatever the answers do; a latency counts from when its operation was due
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "concurrency")]
    rate: Option<f64>,
    /// Closed loop: so many operations at a time; slow answers slow it down
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    concurrency: Option<u64>,
    /// Of an open loop: how arrivals are spread
    #[arg(long, value_enum, default_value_t = Arrivals::Even)]
    arrivals: Arrivals,
    /// How long is measured: 30s, 5m
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = some_time)]
    length: Duration,
    /// No more operations than this are measured
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// What goes before and is not measured
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time)]
    warmup: Duration,
    /// How the clients in the groups read their queues
    #[arg(long, value_enum, default_value_t = Draining::Stream)]
    drain: Draining,
    /// So many of them; else all
    #[arg(long, value_name = "N")]
    drain_clients: Option<usize>,
    /// How long deliveries that are due are waited for behind the last operation; what has not come then is missing
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = time)]
    settle: Duration,
    /// HTTP/2 connections to each target; each takes 128 requests at a time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// What a provider refuses for now (`unavailable`, `rate_limited`) or leaves unanswered: try again as it says, or not. Each attempt is
    /// counted in any case
    #[arg(long, value_enum, default_value_t = Retry::Never)]
    retry: Retry,
    /// Operations that may wait for their group; what is due beyond that is counted as not begun
    #[arg(long, default_value_t = 20_000)]
    waiting_max: usize,
    /// Which group is next, and the arrivals, come from this
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A target's operator listener, once for each: its /metrics are kept from before and after
    #[arg(long, value_name = "URL")]
    ops: Vec<String>,
    /// Where the result goes, a file that is not there yet; else beside the workload, as FILE.result.json, or FILE.result-2.json and so on
    #[arg(long, value_name = "FILE")]
    result: Option<PathBuf>,
    /// Show nothing while it runs
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Arrivals {
    Even,
    Poisson,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Draining {
    Stream,
    Poll,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Retry {
    Never,
    Hints,
}

pub(super) async fn run(args: &Args) -> Result<(), LoadError> {
    let load = match (args.rate, args.concurrency) {
        (Some(per_second), _) if per_second > 0.0 && per_second <= 1e6 => Load::Open { per_second },
        (Some(_), _) => return Err(usage("--rate: above 0 and up to a million".to_owned())),
        (None, Some(concurrency)) => Load::Closed { concurrency },
        (None, None) => {
            return Err(usage(
                "how much? --rate N for so many operations a second, --concurrency N for so many at a time"
                    .to_owned(),
            ));
        }
    };
    let targets = if args.targets.is_given() {
        Some(args.targets.of_workload(|| Workload::targets(&args.file))?)
    } else {
        None
    };
    let stop = stop();
    // before the load: a run that has nowhere to go would be lost, and what it spent of its workload, too
    let place = match &args.result {
        Some(path) => named(path)?,
        None => beside(&args.file)?,
    };
    let options = Options {
        targets,
        load,
        spread: match args.arrivals {
            Arrivals::Even => Spread::Even,
            Arrivals::Poisson => Spread::Poisson,
        },
        seed: args.seed,
        warm_up: args.warmup,
        length: args.length,
        count: args.count,
        connections: args.connections.into(),
        waiting_max: args.waiting_max,
        retries: args.retry == Retry::Hints,
        drain: match args.drain {
            Draining::Stream => Drain::Stream,
            Draining::Poll => Drain::Poll,
            Draining::None => Drain::None,
        },
        drain_clients: args.drain_clients,
        settle: args.settle,
        ops: args.ops.clone(),
        is_quiet: args.quiet,
        said: said(args),
    };
    let done = run::run(&args.file, options, stop).await?;
    print(&done);
    let path = place.path().to_owned();
    let kept = place.finish(&done.result);
    kept.map_err(|error| LoadError::Report { to: path.display().to_string(), error })?;
    println!("\n{} holds the result: `mimid load report {0}` shows it", path.display());
    done.broke.map_or(Ok(()), |error| Err(LoadError::Broke(error)))
}

/// Ctrl-C, or what `timeout` and a service manager end a process with. From here on neither ends it without a word; where one cannot be
/// caught it does.
pub(super) fn stop() -> impl Future<Output = ()> {
    let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
    async move {
        let [interrupted, terminated] = signals.map(async |signal| match signal {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        });
        tokio::select! {
            _ = interrupted => {}
            _ = terminated => {}
        }
    }
}

/// A place for the result where it was told to be.
fn named(path: &Path) -> Result<ResultFile, LoadError> {
    if path.exists() {
        return Err(unfit(format!(
            "{} is there already: name another file with --result, or delete it",
            path.display()
        )));
    }
    ResultFile::create(path).map_err(|error| no_place(path, &error))
}

/// A place for the result beside the workload, and beside the results that are there.
fn beside(workload: &Path) -> Result<ResultFile, LoadError> {
    for number in 1..=RESULTS_MAX {
        let mut name = workload.file_name().unwrap_or_default().to_owned();
        name.push(if number == 1 {
            ".result.json".to_owned()
        } else {
            format!(".result-{number}.json")
        });
        let path = workload.with_file_name(name);
        if path.exists() {
            continue;
        }
        match ResultFile::create(&path) {
            Ok(place) => return Ok(place),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(no_place(&path, &error)),
        }
    }
    Err(unfit(format!(
        "there are {RESULTS_MAX} results beside {}: name another file with --result",
        workload.display()
    )))
}

fn no_place(path: &Path, error: &io::Error) -> LoadError {
    if error.kind() == io::ErrorKind::AlreadyExists {
        return unfit(format!(
            "{0}.part is there already: another run writes to it, or was killed; name another file with --result, or delete it",
            path.display()
        ));
    }
    unfit(format!(
        "{} cannot be written ({error}): name another file with --result",
        path.display()
    ))
}

fn said(args: &Args) -> BTreeMap<String, String> {
    let mut said = BTreeMap::from([
        ("arrivals".to_owned(), format!("{:?}", args.arrivals).to_lowercase()),
        ("connections".to_owned(), args.connections.to_string()),
        ("drain".to_owned(), format!("{:?}", args.drain).to_lowercase()),
        ("for".to_owned(), format!("{}s", args.length.as_secs_f64())),
        ("retry".to_owned(), format!("{:?}", args.retry).to_lowercase()),
        ("seed".to_owned(), args.seed.to_string()),
        ("settle".to_owned(), format!("{}s", args.settle.as_secs_f64())),
        ("waiting-max".to_owned(), args.waiting_max.to_string()),
        ("warmup".to_owned(), format!("{}s", args.warmup.as_secs_f64())),
    ]);
    let given = [
        ("count", args.count.map(|it| it.to_string())),
        ("drain-clients", args.drain_clients.map(|it| it.to_string())),
        ("rate", args.rate.map(|it| it.to_string())),
        ("concurrency", args.concurrency.map(|it| it.to_string())),
    ];
    let given = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    said.extend(given);
    said
}

fn print(done: &Done) {
    let seconds = Duration::from_millis(done.result.run.measured_ms).as_secs_f64();
    if done.interrupted {
        println!("It was interrupted; this is what was measured until then.");
    }
    if done.broke.is_some() {
        println!("It could not go on; this is what was measured until then.");
    }
    println!(
        "{:<22} {:>9} {:>9} {:>9} {:>10} {:>9} {:>9} {:>9}",
        "", "answered", "a second", "errors", "p50 ms", "p90", "p99", "most"
    );
    for (name, of) in &done.result.operations {
        print_one(name, of, seconds);
    }
    if let Some(drained) = &done.result.run.drained {
        println!("{}", report::delivered(drained));
    }
    for note in report::short(&done.result.run) {
        println!("{note}");
    }
    if let Some(tail) = report::tail(&done.result) {
        println!("{tail}");
    }
    if done.groups_lost > 0 {
        println!("{}", report::lost(done.groups_lost as u64));
    }
    if let Some(us) = done.generator_us {
        println!("The generator used {us} µs of a processor for each operation.");
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn print_one(name: &str, of: &Operation, seconds: f64) {
    let ms = |share| of.latencies.quantile_us(share) as f64 / 1000.0;
    println!(
        "{name:<22} {:>9} {:>9.1} {:>9} {:>10.1} {:>9.1} {:>9.1} {:>9.1}",
        of.answered,
        of.in_time().answered as f64 / seconds.max(0.001),
        of.refused + of.unanswered,
        ms(0.5),
        ms(0.9),
        ms(0.99),
        of.latencies.max_us() as f64 / 1000.0
    );
    for (code, count) in &of.errors {
        println!("  {count} {code}");
    }
}

fn some_time(text: &str) -> Result<Duration, String> {
    let time = time(text)?;
    if time.is_zero() { Err("there is nothing to measure in no time".to_owned()) } else { Ok(time) }
}

fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: 500ms, 30s, 5m and 1h are");
    let digits = text.find(|it: char| !it.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(ms).filter(|ms| *ms <= DAY_MS).map(Duration::from_millis).ok_or_else(wrong)
}

const DAY_MS: u64 = 86_400_000;
/// Beside one workload.
const RESULTS_MAX: u32 = 1000;
