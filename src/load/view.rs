//! What one sees while a run goes on: a table that is drawn anew each second on a terminal, a line now and then elsewhere.

use std::{fmt::Write as _, io::IsTerminal as _, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{latencies::Latencies, recorder::Interval};

/// The live view.
pub struct View {
    bars: Option<Bars>,
    is_quiet: bool,
    /// Since a line was written.
    gathered: Gathered,
    length: Duration,
}

struct Bars {
    all: MultiProgress,
    head: ProgressBar,
    operations: Vec<(&'static str, ProgressBar)>,
}

#[derive(Default)]
struct Gathered {
    width: Duration,
    answered: u64,
    errors: u64,
    latencies: Latencies,
}

impl View {
    /// `length` is how long the run is at most.
    #[must_use]
    pub fn begin(length: Duration, is_quiet: bool) -> Self {
        let bars = (!is_quiet && std::io::stderr().is_terminal()).then(|| {
            let all = MultiProgress::new();
            let head = all.add(line());
            Bars { all, head, operations: Vec::new() }
        });
        Self { bars, is_quiet, gathered: Gathered::default(), length }
    }

    /// An interval is over. `waiting` operations are due and have not begun.
    pub fn show(&mut self, interval: &Interval, waiting: usize) {
        if self.is_quiet {
            return;
        }
        let at = interval.at + interval.width;
        match &mut self.bars {
            Some(bars) => bars.show(interval, waiting, at, self.length),
            None => {
                self.gathered.take(interval);
                if self.gathered.width >= LINE_EVERY {
                    let gathered = std::mem::take(&mut self.gathered);
                    eprintln!(
                        "{:>4} s: {} · {} in flight, {waiting} waiting",
                        at.as_secs(),
                        gathered.said(),
                        interval.in_flight
                    );
                }
            }
        }
    }

    pub fn end(&self) {
        if let Some(bars) = &self.bars {
            let _ = bars.all.clear();
        }
    }
}

impl Bars {
    fn show(&mut self, interval: &Interval, waiting: usize, at: Duration, length: Duration) {
        self.head.set_message(format!(
            "{} of {} s · {} in flight · {waiting} waiting",
            at.as_secs(),
            length.as_secs(),
            interval.in_flight
        ));
        for (name, of) in &interval.operations {
            let known = self.operations.iter().position(|(known, _)| known == name);
            let at = known.unwrap_or_else(|| {
                self.operations.push((name, self.all.add(line())));
                self.operations.len() - 1
            });
            let errors = of.refused + of.unanswered;
            let mut text = format!("{name:<22} {:>8.1}/s", rate(of.answered, interval.width));
            if let Some(latencies) = &of.latencies {
                let _ = write!(text, "  {}", quantiles(latencies));
            }
            if errors > 0 {
                let _ = write!(text, "  {errors} errors");
            }
            self.operations[at].1.set_message(text);
        }
    }
}

impl Gathered {
    fn take(&mut self, interval: &Interval) {
        self.width += interval.width;
        for of in interval.operations.values().filter(|of| !of.observed) {
            self.answered += of.answered;
            self.errors += of.refused + of.unanswered;
            if let Some(latencies) = &of.latencies {
                self.latencies.add(latencies);
            }
        }
    }

    fn said(&self) -> String {
        format!(
            "{:.1} answered/s, {}, {} errors",
            rate(self.answered, self.width),
            quantiles(&self.latencies),
            self.errors
        )
    }
}

fn line() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg}");
    ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn rate(count: u64, width: Duration) -> f64 {
    count as f64 / width.as_secs_f64().max(1e-3)
}

pub(super) fn quantiles(latencies: &Latencies) -> String {
    format!("p50 {} p99 {}", ms(latencies.quantile_us(0.5)), ms(latencies.quantile_us(0.99)))
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn ms(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1000.0)
}

const LINE_EVERY: Duration = Duration::from_secs(5);
