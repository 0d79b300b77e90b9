//! A report for a terminal: plain text, no colour, columns under one another.

use std::fmt::Write as _;

use super::{
    Comparison, Report, Requests, compare, delivered,
    tables::{self, Table},
    units::{count, percent, rate, span, utc},
};

/// One run.
#[must_use]
pub fn report(report: &Report) -> String {
    let mut told = format!("{}\n", about(report));
    notes(&mut told, &report.notes);
    let _ = writeln!(told, "\n{}", requests(&report.requests));
    if let Some(drained) = &report.run.drained {
        let _ = writeln!(told, "{}", delivered(drained));
    }
    for of in tables::latencies(report) {
        table(&mut told, &of);
    }
    let errors = tables::errors(report);
    if !errors.rows.is_empty() {
        table(&mut told, &errors);
    }
    for of in tables::costs(report) {
        table(&mut told, &of);
    }
    printable(&told)
}

/// Two runs.
#[must_use]
pub fn comparison(comparison: &Comparison) -> String {
    let mut told = String::new();
    for (name, report) in [("A", &comparison.a), ("B", &comparison.b)] {
        let _ = writeln!(told, "{name}: {}", about(report).replace('\n', "\n   "));
        let _ = writeln!(told, "   {}", requests(&report.requests));
        if let Some(drained) = &report.run.drained {
            let _ = writeln!(told, "   {}", delivered(drained));
        }
    }
    notes(&mut told, &[comparison.notes.clone(), comparison.notes_of_runs()].concat());
    table(&mut told, &tables::compared_latencies(comparison));
    table(&mut told, &tables::compared_values(comparison));
    if let Some(costs) = tables::compared_costs(comparison) {
        table(&mut told, &costs);
    }
    printable(&told)
}

/// What was run, in three lines.
fn about(report: &Report) -> String {
    let run = &report.run;
    let warm_up = match run.warm_up_ms {
        0 => "without a warm-up".to_owned(),
        ms => format!("behind a warm-up of {}", span(ms)),
    };
    format!(
        "{}: {}\n{}, {} {warm_up}, {}, seed {}, mimid {}\nto {}",
        run.workload.name,
        run.workload.description,
        utc(run.started_at_ms),
        span(run.measured_ms),
        compare::load(run.load),
        run.workload.seed,
        run.mimid_version,
        run.targets.join(", ")
    )
}

pub(super) fn requests(of: &Requests) -> String {
    format!(
        "{} answered, {} a second; {} refused, {} without an answer ({} failed)",
        count(of.answered),
        rate(of.answered_per_second),
        count(of.refused),
        count(of.unanswered),
        percent(of.error_share)
    )
}

fn notes(told: &mut String, notes: &[String]) {
    if !notes.is_empty() {
        told.push_str("\nRead first\n");
    }
    for note in notes {
        let mut width = 0;
        told.push_str("  -");
        for word in note.split(' ') {
            let long = word.chars().count() + 1;
            if width > 0 && width + long > WIDTH - 4 {
                told.push_str("\n   ");
                width = 0;
            }
            told.push(' ');
            told.push_str(word);
            width += long;
        }
        told.push('\n');
    }
}

fn table(told: &mut String, table: &Table) {
    let rows: Vec<&Vec<String>> = [&table.head].into_iter().chain(&table.rows).collect();
    let wide = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..table.head.len()).map(wide).collect();
    let _ = writeln!(told, "\n{}", table.title);
    for row in rows {
        let mut line = String::from("  ");
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if at == 0 {
                let _ = write!(line, "{cell:<width$}");
            } else {
                let _ = write!(line, "  {cell:>width$}");
            }
        }
        told.push_str(line.trim_end());
        told.push('\n');
    }
}

/// Names in a file are its maker's: none of them commands a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

const WIDTH: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{report::testing, result::Load};

    #[test]
    fn a_run_reads_as_it_always_did() {
        let told = report(&Report::new(&testing::run(1)));
        assert_eq!(told, include_str!("../../../tests/golden/load/report.txt"), "\n{told}");
    }

    #[test]
    fn two_runs_read_as_they_always_did() {
        let (a, mut b) = (testing::run(1), testing::run(2));
        b.run.options.insert("--rate".into(), "201".into());
        b.run.workload.seed = 8;
        let told = comparison(&Comparison::new(Report::new(&a), Report::new(&b)));
        assert_eq!(told, include_str!("../../../tests/golden/load/compare.txt"), "\n{told}");
    }

    #[test]
    fn names_of_a_file_command_no_terminal() {
        let mut run = testing::run(1);
        run.run.workload.name = "a\u{1b}[31m\u{7}\rb".into();
        let told = report(&Report::new(&run));
        assert!(told.starts_with("a\u{fffd}[31m\u{fffd}\u{fffd}b: "), "{told}");
    }

    #[test]
    fn a_closed_loop_is_told_before_its_figures() {
        let mut run = testing::run(1);
        run.run.load = Load::Closed { concurrency: 8 };
        let told = report(&Report::new(&run));
        let note = told.find("A closed loop of 8").unwrap();
        assert!(note < told.find("Latency of requests").unwrap(), "{told}");
        assert!(!told.contains("were due came to an end"), "{told}");
    }
}
