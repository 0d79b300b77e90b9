//! `mimid load report`: what a recorded run says, as text, JSON or a page.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use clap::ValueEnum;

use super::targets::{unfit, usage};
use crate::load::{
    LoadError,
    report::{Comparison, Report, html, text},
    result::{RunResult, begins_as_a_run},
    workload::begins_as_a_workload,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What `mimid load run` has written
    #[arg(required_unless_present = "compare")]
    file: Option<PathBuf>,
    /// Two recorded runs beside one another: ratios of B to A
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with = "file")]
    compare: Option<Vec<PathBuf>>,
    /// Without it: what the name of --output ends with, otherwise text
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Where the report goes, over an earlier one if need be; without it: to the terminal
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For a terminal
    Text,
    /// For programs
    Json,
    /// One page with plots that needs no other file and no network
    Html,
}

/// Reads, and tells. Nothing is written where a file cannot be read, nor over what cannot be made again.
pub(super) fn run(args: &Args) -> Result<(), LoadError> {
    let format = match (args.format, &args.output) {
        (Some(format), _) => format,
        (None, Some(output)) => by_name(output)?,
        (None, None) => Format::Text,
    };
    if let Some(output) = &args.output {
        is_free(output)?;
    }
    give(args.output.as_deref(), &told(args, format)?)
}

fn told(args: &Args, format: Format) -> Result<String, LoadError> {
    let read = |path: &Path| RunResult::read(path);
    if let Some([a, b]) = args.compare.as_deref() {
        let (a, b) = (read(a)?, read(b)?);
        let comparison = Comparison::new(Report::new(&a), Report::new(&b));
        return Ok(match format {
            Format::Text => text::comparison(&comparison),
            Format::Json => json(&comparison),
            Format::Html => html::comparison(&comparison),
        });
    }
    // clap asks for one of the two
    let result = read(args.file.as_deref().unwrap_or(Path::new("")))?;
    let report = Report::new(&result);
    Ok(match format {
        Format::Text => text::report(&report),
        Format::Json => json(&report),
        Format::Html => html::report(&report, &result.series),
    })
}

fn by_name(output: &Path) -> Result<Format, LoadError> {
    let Some(ending) = output.extension() else { return Ok(Format::Text) };
    match ending.to_str() {
        Some("html" | "htm") => Ok(Format::Html),
        Some("json") => Ok(Format::Json),
        Some("txt" | "text") => Ok(Format::Text),
        Some(_) | None => Err(usage(format!(
            "--output {}: a report is .txt, .json or .html, or what --format says",
            output.display()
        ))),
    }
}

/// A report may stand in place of an earlier one, and in no other file's: not a run's that was recorded, least of all its own, nor a
/// workload's.
fn is_free(output: &Path) -> Result<(), LoadError> {
    let mut beginning = Vec::new();
    let Ok(file) = fs::File::open(output) else { return Ok(()) };
    // a device is no file that could be lost
    if !file.metadata().is_ok_and(|it| it.is_file()) {
        return Ok(());
    }
    let _ = file.take(BEGINNING_BYTES).read_to_end(&mut beginning);
    let what = match &beginning[..] {
        it if begins_as_a_run(it) => "a recorded run",
        it if begins_as_a_workload(it) => "a workload",
        _ => return Ok(()),
    };
    Err(unfit(format!("--output {} is {what}: name another file", output.display())))
}

fn json<T: serde::Serialize>(of: &T) -> String {
    // names, texts and numbers: nothing that JSON cannot hold
    serde_json::to_string_pretty(of).unwrap_or_default() + "\n"
}

fn give(output: Option<&Path>, told: &str) -> Result<(), LoadError> {
    match output {
        Some(path) => fs::write(path, told)
            .map_err(|error| LoadError::Report { to: path.display().to_string(), error }),
        None => match io::stdout().write_all(told.as_bytes()) {
            // whoever reads may have seen enough
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(LoadError::Report { to: "stdout".to_owned(), error })
            }
            Ok(()) | Err(_) => Ok(()),
        },
    }
}

/// What says of a file what it is.
const BEGINNING_BYTES: u64 = 64;
