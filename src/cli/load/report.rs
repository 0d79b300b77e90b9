//! `mimid load report`: what a recorded run says, as text, JSON or a page.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::ValueEnum;

use crate::load::{
    LoadError,
    report::{Comparison, Report, html, text},
    result::RunResult,
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
    /// Where the report goes; without it: to the terminal
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

/// Reads, and tells. Nothing is written where a file cannot be read.
pub(super) fn run(args: &Args) -> Result<(), LoadError> {
    give(args.output.as_deref(), &told(args)?)
}

fn told(args: &Args) -> Result<String, LoadError> {
    let format = args.format.unwrap_or_else(|| by_name(args.output.as_deref()));
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

fn by_name(output: Option<&Path>) -> Format {
    let ending = output.and_then(Path::extension).and_then(|ending| ending.to_str());
    match ending {
        Some("html" | "htm") => Format::Html,
        Some("json") => Format::Json,
        Some(_) | None => Format::Text,
    }
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
