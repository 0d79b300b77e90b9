//! One recorded run, as a file: how it was made, what each operation took, how that went over time, and what the targets said of
//! themselves before and after. JSON with a version; every list in it has a bound, and a file beyond one is not read.
//!
//! What a reader may rely on: names are ours or the operator's, texts of scrapes are the targets' (not trusted), histograms have the bounds
//! of [`Latencies`] and hold as many durations as the counts beside them say.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::latencies::Latencies;

/// A run and what it measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    format: String,
    version: u32,
    pub run: Run,
    /// By name ("message", "update", "delivery"), of the measured time only: the warm-up is not in it.
    pub operations: BTreeMap<String, Operation>,
    /// In order of time, the warm-up included.
    pub series: Vec<Point>,
    /// One of each target, in the order of `run.targets`; empty where no target has `/metrics` that could be reached.
    pub scrapes: Vec<Scrape>,
}

/// How the run was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub mimid_version: String,
    /// Options of the command line that matter, as `name: value`, without secrets.
    pub options: BTreeMap<String, String>,
    pub workload: Workload,
    /// Where the load went: client URLs.
    pub targets: Vec<String>,
    /// Unix time.
    pub started_at_ms: u64,
    /// What came before the measured time and is in none of the totals.
    pub warm_up_ms: u64,
    /// The measured time, behind the warm-up.
    pub measured_ms: u64,
    /// So long behind the measured time the last operation of it was over. Runs of earlier versions do not say.
    #[serde(default)]
    pub tail_ms: u64,
    /// Groups in which nothing more could happen. Runs of earlier versions do not say.
    #[serde(default)]
    pub groups_lost: u64,
    /// What clients that read their queues were to get. None read, or it is a run of an earlier version, which does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<Drained>,
    pub load: Load,
    /// Facts about the machine that made the load ("cores": "2", "load average at start": "0.4").
    pub machine: BTreeMap<String, String>,
}

/// Deliveries of what hubs accepted in the measured time: one for each message and each client that reads its queue and was to get it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Who read.
    pub clients: u64,
    /// Of those: so many could not for a time, in the warm-up or later.
    pub interrupted: u64,
    pub due: u64,
    /// Of those due: so many came before nobody waited for them any more.
    pub delivered: u64,
    /// Beside those due: they came of messages whose requests had no answer, so that nobody knew that they would.
    pub untold: u64,
    /// So long they were waited for behind the run's last operation.
    pub settled_ms: u64,
}

/// What was done; equal ones make runs comparable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    pub name: String,
    pub seed: u64,
    /// For people: groups, members, the mix of operations.
    pub description: String,
}

/// Who decided when the next request began.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// The clock: so many a second, whether or not earlier ones were answered. Latency counts from when a request was due.
    Open { per_second: f64 },
    /// The answers: so many at a time, each beginning when the one before it was answered. While answers are slow
    /// fewer requests are made, so percentiles look better than what users at a steady rate would see (coordinated omission).
    Closed { concurrency: u64 },
}

/// All requests of one kind, by what became of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Measured beside the requests, not a request of its own: "delivery" (accepted → with the recipient), "send_lag" (all operations' together).
    pub observed: bool,
    /// The answer was what was asked for.
    pub answered: u64,
    /// There was an answer, and it was no.
    pub refused: u64,
    /// There was none: a time-out, a connection that broke, the run's end.
    pub unanswered: u64,
    /// Why, for those refused (the protocol's code) and unanswered ("timeout", "connect"). Adds up to both.
    pub errors: BTreeMap<String, u64>,
    /// Of those answered.
    pub latencies: Latencies,
    /// Of those refused: a refusal is quick, and would flatter the others.
    pub refusals: Latencies,
    /// Of those that began an operation, whatever became of them: how late the generator was. Runs of earlier versions do not say.
    #[serde(default, skip_serializing_if = "Latencies::is_empty")]
    pub lag: Latencies,
    /// What came in time, and what did not. Runs of earlier versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_time: Option<InTime>,
}

/// What came while the measured time lasted, whenever it was due: what was got done in that time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InTime {
    pub answered: u64,
    pub refused: u64,
    /// Of what was due in the measured time and answered: so many behind its end.
    pub late: u64,
}

impl Operation {
    /// Of a run that does not say: as if all that was due had come in time.
    #[must_use]
    pub fn in_time(&self) -> InTime {
        let Self { answered, refused, .. } = *self;
        self.in_time.unwrap_or(InTime { answered, refused, late: 0 })
    }
}

/// What happened in an interval, as the generator saw it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Since the run's start, warm-up included.
    pub at_ms: u64,
    /// A second, or more where the generator was late, or a long run's points were joined.
    pub width_ms: u64,
    /// Requests without an answer at the interval's end.
    pub in_flight: u64,
    pub operations: BTreeMap<String, PointOf>,
}

/// One operation in an interval. Durations are of what was answered in it, in microseconds, to two digits; 0 where nothing was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct PointOf {
    pub sent: u64,
    pub answered: u64,
    /// Refused and unanswered.
    pub errors: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

/// What one target's `/metrics` said, when the measured time began and when it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scrape {
    pub target: String,
    pub before: Scraped,
    pub after: Scraped,
}

/// A scrape, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scraped {
    /// Prometheus' text format, as it came; at most [`SCRAPE_BYTES_MAX`]. `at_ms` is since the run's start.
    Text {
        at_ms: u64,
        text: String,
    },
    Failed {
        at_ms: u64,
        error: String,
    },
}

/// The name of what is observed from a message's acceptance to its recipient having it.
pub const DELIVERY: &str = "delivery";
/// The name of what is observed from when a request was due to when the generator began it: its own lateness.
pub const SEND_LAG: &str = "send_lag";

/// Bounds of a file. A [`super::recorder::Recorder`] keeps within its own.
pub const OPERATIONS_MAX: usize = 64;
pub const ERRORS_MAX: usize = 64;
pub const POINTS_MAX: usize = 1200;
pub const TARGETS_MAX: usize = 64;
pub const SCRAPE_BYTES_MAX: usize = 1024 * 1024;
pub const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;
const TEXTS_MAX: usize = 256;

/// Why there is no result to read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("{0} is larger than any recorded run ({FILE_BYTES_MAX} bytes)")]
    Large(PathBuf),
    #[error("{path} is no recorded run of `mimid load run`, or is cut off: {error}")]
    Json { path: PathBuf, error: serde_json::Error },
    #[error(
        "{path} is of version {found}, and this mimid reads version {VERSION}: make the report with the mimid that made the run"
    )]
    Version { path: PathBuf, found: u32 },
    #[error("{path} is damaged, or made by hand: {what}")]
    Damaged { path: PathBuf, what: String },
}

impl RunResult {
    #[must_use]
    pub fn new(
        run: Run,
        operations: BTreeMap<String, Operation>,
        series: Vec<Point>,
        scrapes: Vec<Scrape>,
    ) -> Self {
        Self { format: FORMAT.to_owned(), version: VERSION, run, operations, series, scrapes }
    }

    /// Writes it to a file of its own; what was there is replaced only by a whole one.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        ResultFile::create(path)?.finish(self)
    }

    /// Reads what [`RunResult::write`] wrote.
    ///
    /// # Errors
    /// [`ReadError`]; nothing of a file that breaks a bound or contradicts itself is used.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let io = |error| ReadError::Io { path: path.to_owned(), error };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(io)?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(ReadError::Large(path.to_owned()));
        }
        Self::parse(&bytes, path)
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Self, ReadError> {
        let json = |error| ReadError::Json { path: path.to_owned(), error };
        // the version first: of another one nothing else need be as here
        let Head { format, version } = serde_json::from_slice(bytes).map_err(json)?;
        let damaged = |what: String| ReadError::Damaged { path: path.to_owned(), what };
        if format != FORMAT {
            return Err(damaged(format!("its format is {format:?}, not {FORMAT:?}")));
        }
        if version != VERSION {
            return Err(ReadError::Version { path: path.to_owned(), found: version });
        }
        let read: Self = serde_json::from_slice(bytes).map_err(json)?;
        read.check().map_err(damaged)?;
        Ok(read)
    }

    fn check(&self) -> Result<(), String> {
        let Self { run, operations, series, scrapes, .. } = self;
        let bounds = [
            ("operations", operations.len(), OPERATIONS_MAX),
            ("points in its series", series.len(), POINTS_MAX),
            ("targets", run.targets.len(), TARGETS_MAX),
            ("scrapes", scrapes.len(), TARGETS_MAX),
            ("options", run.options.len(), TEXTS_MAX),
            ("facts about its machine", run.machine.len(), TEXTS_MAX),
        ];
        if let Some((what, found, max)) = bounds.iter().find(|(_, found, max)| found > max) {
            return Err(format!("{found} {what}, at most {max} can be"));
        }
        if let Some(Drained { due, delivered, .. }) = run.drained
            && delivered > due
        {
            return Err(format!("{delivered} deliveries of {due} that were due"));
        }
        for (name, of) in operations {
            if of.errors.len() > ERRORS_MAX {
                return Err(format!("{name:?} has {} kinds of errors", of.errors.len()));
            }
            if of.latencies.count() != of.answered || of.refusals.count() != of.refused {
                return Err(format!(
                    "{name:?} has {} answers and {} refusals, and its histograms hold {} and {}",
                    of.answered,
                    of.refused,
                    of.latencies.count(),
                    of.refusals.count()
                ));
            }
            let errors = of.errors.values().try_fold(0_u64, |sum, count| sum.checked_add(*count));
            if errors.is_none() || errors != of.refused.checked_add(of.unanswered) {
                return Err(format!("the errors of {name:?} do not add up"));
            }
        }
        if series.iter().any(|point| point.operations.len() > OPERATIONS_MAX) {
            return Err("a point with too many operations".to_owned());
        }
        if series.windows(2).any(|pair| pair[0].at_ms > pair[1].at_ms) {
            return Err("its series is not in order of time".to_owned());
        }
        let too_long = |scraped: &Scraped| matches!(scraped, Scraped::Text { text, .. } if text.len() > SCRAPE_BYTES_MAX);
        if scrapes.iter().any(|it| too_long(&it.before) || too_long(&it.after)) {
            return Err(format!("a scrape of more than {SCRAPE_BYTES_MAX} bytes"));
        }
        Ok(())
    }
}

/// Where a result will be: opened before there is one, so that a run does not find at its end that there is no place for it.
pub struct ResultFile {
    path: PathBuf,
    part: PathBuf,
    file: File,
}

impl ResultFile {
    /// Makes the part beside `path` that [`ResultFile::finish`] fills. Dropped without it, the part is gone.
    ///
    /// # Errors
    /// The file system's; [`io::ErrorKind::AlreadyExists`] where somebody else writes there now, or was ended in the middle of it.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let part = path.with_file_name(name);
        let file = File::create_new(&part)?;
        Ok(Self { path: path.to_owned(), part, file })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `result`; what was at the path is replaced only by a whole one.
    ///
    /// # Errors
    /// The file system's.
    pub fn finish(mut self, result: &RunResult) -> io::Result<()> {
        let mut text = serde_json::to_vec(result)?;
        text.push(b'\n');
        self.file.write_all(&text)?;
        std::fs::rename(&self.part, &self.path)
    }
}

impl Drop for ResultFile {
    fn drop(&mut self) {
        // behind `finish` it has another name
        let _ = std::fs::remove_file(&self.part);
    }
}

/// Whether a file begins as a recorded run does.
pub(crate) fn begins_as_a_run(beginning: &[u8]) -> bool {
    beginning.starts_with(format!("{{\"format\":\"{FORMAT}\"").as_bytes())
}

#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

const FORMAT: &str = "mimid load result";
const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::recorder::Recorder;

    fn made() -> RunResult {
        let recorder = Recorder::new(Duration::ZERO);
        recorder.sent("message");
        recorder.answered("message", Duration::ZERO, Duration::from_micros(1234));
        recorder.refused("message", "wrong_epoch", Duration::ZERO, Duration::from_micros(9));
        recorder.unanswered("message", "timeout", Duration::ZERO);
        recorder.close_interval(Duration::from_secs(1));
        let measured = recorder.measured();
        let run = Run {
            mimid_version: "0.1.0".into(),
            options: [("rate".into(), "10".into())].into(),
            workload: Workload { name: "chat".into(), seed: 7, description: "2 groups".into() },
            targets: vec!["https://127.0.0.1:8443".into()],
            started_at_ms: 1_790_000_000_000,
            warm_up_ms: 0,
            measured_ms: 1000,
            tail_ms: 0,
            groups_lost: 0,
            drained: Some(Drained { clients: 3, due: 7, delivered: 6, ..Drained::default() }),
            load: Load::Open { per_second: 10.0 },
            machine: [("cores".into(), "2".into())].into(),
        };
        let scrape = Scrape {
            target: "https://127.0.0.1:8443".into(),
            before: Scraped::Text { at_ms: 0, text: "process_cpu_seconds_total 1\n".into() },
            after: Scraped::Failed { at_ms: 1000, error: "connection refused".into() },
        };
        RunResult::new(run, measured.operations, measured.series, vec![scrape])
    }

    fn parse(bytes: &[u8]) -> Result<RunResult, String> {
        RunResult::parse(bytes, Path::new("run.json")).map_err(|error| error.to_string())
    }

    fn refusal(of: &RunResult) -> String {
        parse(&serde_json::to_vec(of).unwrap()).unwrap_err()
    }

    #[test]
    fn a_run_comes_back_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.json");
        std::fs::write(&path, "what was there").unwrap();
        made().write(&path).unwrap();
        assert_eq!(RunResult::read(&path).unwrap(), made());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no part is left");
        let missing = RunResult::read(&folder.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("none: No such file"), "{missing}");
    }

    #[test]
    fn a_run_of_before_deliveries_were_counted_is_read() {
        let mut value = serde_json::to_value(made()).unwrap();
        let run = value["run"].as_object_mut().unwrap();
        assert!(run.remove("drained").is_some());
        let read = parse(value.to_string().as_bytes()).unwrap();
        assert_eq!(read.run.drained, None);
        assert!(!serde_json::to_string(&read).unwrap().contains("drained"));
    }

    #[test]
    fn a_place_for_a_run_is_taken_once_and_left_as_it_was_where_there_is_no_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.json");
        std::fs::write(&path, "what was there").unwrap();
        let place = ResultFile::create(&path).unwrap();
        let second = ResultFile::create(&path).map(|_| ()).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AlreadyExists);
        drop(place);
        assert_eq!(std::fs::read(&path).unwrap(), b"what was there");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let nowhere = ResultFile::create(&folder.path().join("no/run.json")).map(|_| ());
        assert_eq!(nowhere.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(begins_as_a_run(&serde_json::to_vec(&made()).unwrap()));
        assert!(!begins_as_a_run(b"{\"format\":\"other"));
    }

    #[test]
    fn a_file_that_is_cut_off_anywhere_is_refused() {
        let whole = serde_json::to_vec(&made()).unwrap();
        for length in 0..whole.len() {
            let said = parse(&whole[..length]).unwrap_err();
            assert!(said.starts_with("run.json is no recorded run"), "{said}");
        }
    }

    #[test]
    fn another_version_is_refused_whatever_else_it_holds() {
        let text = r#"{"format": "mimid load result", "version": 2, "run": "anything"}"#;
        let said = parse(text.as_bytes()).unwrap_err();
        assert!(said.contains("of version 2, and this mimid reads version 1"), "{said}");
        let other = r#"{"format": "other", "version": 1}"#;
        assert!(parse(other.as_bytes()).unwrap_err().contains("its format is \"other\""));
    }

    #[test]
    fn a_file_beyond_a_bound_or_that_contradicts_itself_is_refused() {
        type Change = fn(&mut RunResult);
        let cases: [(Change, &str); 10] = [
            (
                |it| it.run.drained.as_mut().unwrap().delivered = 8,
                "8 deliveries of 7 that were due",
            ),
            (
                |it| it.series = vec![it.series[0].clone(); POINTS_MAX + 1],
                "1201 points in its series, at most 1200 can be",
            ),
            (|it| it.run.targets = vec!["x".into(); TARGETS_MAX + 1], "65 targets"),
            (
                |it| {
                    let one = Operation::default();
                    let names = (0..=OPERATIONS_MAX).map(|at| (at.to_string(), one.clone()));
                    it.operations.extend(names);
                },
                "66 operations",
            ),
            (
                |it| it.operations.get_mut("message").unwrap().answered += 1,
                "its histograms hold 1 and 1",
            ),
            (
                |it| {
                    let of = it.operations.get_mut("message").unwrap();
                    (of.refused, of.unanswered) = (of.refused + 1, of.unanswered - 1);
                },
                "1 answers and 2 refusals",
            ),
            (
                |it| it.operations.get_mut("message").unwrap().unanswered = u64::MAX,
                "the errors of \"message\" do not add up",
            ),
            (
                |it| {
                    let codes = (0..ERRORS_MAX).map(|at| (at.to_string(), 0));
                    it.operations.get_mut("message").unwrap().errors.extend(codes);
                },
                "66 kinds of errors",
            ),
            (
                |it| {
                    it.series.push(it.series[0].clone());
                    it.series[0].at_ms = 5;
                },
                "not in order of time",
            ),
            (
                |it| {
                    let text = "x".repeat(SCRAPE_BYTES_MAX + 1);
                    it.scrapes[0].after = Scraped::Text { at_ms: 0, text };
                },
                "a scrape of more than",
            ),
        ];
        for (change, says) in cases {
            let mut it = made();
            change(&mut it);
            let said = refusal(&it);
            assert!(said.contains(says), "{said}");
        }
    }
}
