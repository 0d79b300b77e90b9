//! How far something long is: a bar on a terminal, a line now and then elsewhere. Both go to standard error.

use std::{
    fmt,
    io::IsTerminal as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

/// One stretch of work.
pub struct Progress {
    what: String,
    total: u64,
    done: AtomicU64,
    began: Instant,
    bar: Option<ProgressBar>,
    is_quiet: bool,
}

impl Progress {
    #[must_use]
    pub fn begin(what: &str, total: u64, is_quiet: bool) -> Self {
        let bar = (!is_quiet && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template(
                "{msg:<28} {wide_bar} {pos}/{len}  {rate}  {eta} left",
            );
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            let rate = |state: &ProgressState, out: &mut dyn fmt::Write| {
                let _ = write!(out, "{:.0}/s", state.per_sec());
            };
            let style = style.with_key("rate", rate);
            ProgressBar::new(total).with_style(style).with_message(what.to_owned())
        });
        Self {
            what: what.to_owned(),
            total,
            done: AtomicU64::new(0),
            began: Instant::now(),
            bar,
            is_quiet,
        }
    }

    /// One more is done.
    pub fn step(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(bar) = &self.bar {
            bar.inc(1);
        } else if !self.is_quiet && done * LINES / self.total > (done - 1) * LINES / self.total {
            self.say(done);
        }
    }

    /// It is as far as it comes.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }

    fn say(&self, done: u64) {
        let took = self.began.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let rate = done as f64 / took.max(0.001);
        eprintln!("{}: {done} of {} after {took:.1} s ({rate:.0}/s)", self.what, self.total);
    }
}

/// Lines that are written where there is no terminal.
const LINES: u64 = 5;
