//! Whether work grows with what it is done to, or with its square: the processor time of this thread for some of it, and for
//! [`TIMES`] times as much. A ratio, with much room: how fast the machine is, and who else is at work on it, do not matter.

use std::{hint::black_box, time::Duration};

use rustix::time::{ClockId, clock_gettime};

/// How much more the second time.
pub const TIMES: usize = 32;
/// How much longer that may take: n · log n and caches that are too small have room, n² (TIMES² = 1,024) has not.
const LONGER_MAX: f64 = (TIMES * 8) as f64;
/// A measurement that was disturbed is made again; what is quadratic is too slow each time.
const TRIES: usize = 8;

/// What `prepare(n)` gives is done, for `n` and for [`TIMES`]` · n`. How many times longer the latter took.
///
/// # Panics
/// Where it took so much longer that the work grows faster than what it is done to.
pub fn grows_with<W: FnMut()>(what: &str, n: usize, mut prepare: impl FnMut(usize) -> W) -> f64 {
    let (mut few, mut many) = (prepare(n), prepare(n * TIMES));
    let mut least = (f64::MAX, f64::MAX);
    for _ in 0..TRIES {
        least = (least.0.min(seconds(&mut few)), least.1.min(seconds(&mut many)));
        if least.1 <= least.0 * LONGER_MAX {
            return least.1 / least.0;
        }
    }
    let longer = least.1 / least.0;
    panic!("{what}: of {TIMES} times {n} it takes {longer:.0} times as long ({least:?} s)");
}

/// What one call takes: the mean of as many as fill a millisecond.
fn seconds(work: &mut impl FnMut()) -> f64 {
    let start = used();
    let mut calls = 0;
    loop {
        black_box(&mut *work)();
        calls += 1;
        let taken = used().saturating_sub(start);
        if taken >= Duration::from_millis(1) {
            return taken.as_secs_f64() / f64::from(calls);
        }
    }
}

fn used() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().expect("a thread's time is not negative")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked_through(n: usize) -> impl FnMut() {
        let all: Vec<usize> = (0..n).collect();
        move || assert!(all.iter().all(|one| black_box(&all).contains(one)))
    }

    #[test]
    #[should_panic(expected = "as long")]
    fn a_square_is_found() {
        grows_with("each looked for among all", 64, looked_through);
    }

    #[test]
    fn what_is_sorted_and_looked_up_grows_with_it() {
        grows_with("sets", 64, |n| {
            let all: Vec<usize> = (0..n).rev().collect();
            move || {
                let set: std::collections::BTreeSet<usize> = all.iter().copied().collect();
                assert!(all.iter().all(|one| set.contains(black_box(one))));
            }
        });
    }
}
