//! A series made narrow enough to draw: so many columns as a plot has room for.

use std::collections::BTreeMap;

use crate::load::result::Point;

/// What happened in a stretch of time, in seconds since the run's start.
pub(super) struct Column<'a> {
    pub(super) from: f64,
    pub(super) until: f64,
    /// At its end.
    pub(super) in_flight: u64,
    pub(super) operations: BTreeMap<&'a str, ColumnOf>,
}

#[derive(Default)]
pub(super) struct ColumnOf {
    pub(super) answered: u64,
    pub(super) errors: u64,
    /// The mean of its points', by answers.
    pub(super) p50_us: Option<f64>,
    /// The worst of its points'.
    pub(super) p99_us: Option<f64>,
    pub(super) max_us: Option<f64>,
}

impl Column<'_> {
    pub(super) fn width(&self) -> f64 {
        (self.until - self.from).max(0.001)
    }

    pub(super) fn middle(&self) -> f64 {
        (self.from + self.until) / 2.0
    }
}

/// Points in order of time as at most [`COLUMNS_MAX`] columns.
pub(super) fn columns(series: &[Point]) -> Vec<Column<'_>> {
    let each = series.len().div_ceil(COLUMNS_MAX).max(1);
    series.chunks(each).map(column).collect()
}

fn column(points: &[Point]) -> Column<'_> {
    let from = points.first().map_or(0, |point| point.at_ms) as f64 / 1e3;
    let until = points.last().map_or(0, |point| point.at_ms.saturating_add(point.width_ms));
    let in_flight = points.last().map_or(0, |point| point.in_flight);
    let mut operations: BTreeMap<&str, ColumnOf> = BTreeMap::new();
    for (name, of) in points.iter().flat_map(|point| &point.operations) {
        let sum = operations.entry(name).or_default();
        sum.errors = sum.errors.saturating_add(of.errors);
        if of.answered == 0 {
            continue;
        }
        let (had, more) = (sum.answered as f64, of.answered as f64);
        let p50 = (sum.p50_us.unwrap_or(0.0) * had + of.p50_us as f64 * more) / (had + more);
        let worst = |was: Option<f64>, now: u64| Some(was.unwrap_or(0.0).max(now as f64));
        sum.answered = sum.answered.saturating_add(of.answered);
        sum.p50_us = Some(p50);
        sum.p99_us = worst(sum.p99_us, of.p99_us);
        sum.max_us = worst(sum.max_us, of.max_us);
    }
    Column { from, until: until as f64 / 1e3, in_flight, operations }
}

const COLUMNS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::result::PointOf;

    #[test]
    fn a_long_series_becomes_columns_that_lose_no_count_and_no_peak() {
        let point = |second: u64| {
            let (p50_us, max_us) =
                (100 + second % 2 * 100, if second == 777 { 9_000 } else { 500 });
            let of = PointOf {
                answered: 10,
                errors: 1,
                p50_us,
                p99_us: 400,
                max_us,
                ..PointOf::default()
            };
            let operations = [("add".to_owned(), of)].into();
            Point { at_ms: second * 1000, width_ms: 1000, in_flight: second, operations }
        };
        let points: Vec<Point> = (0..1200).map(point).collect();
        let columns = columns(&points);
        assert_eq!(columns.len(), 300);
        let of = |it: &'_ Column<'_>| (it.operations["add"].answered, it.operations["add"].errors);
        assert!(columns.iter().all(|it| of(it) == (40, 4) && it.width() == 4.0));
        assert!(columns.iter().all(|it| it.operations["add"].p50_us == Some(150.0)));
        assert_eq!(
            columns.iter().filter(|it| it.operations["add"].max_us == Some(9000.0)).count(),
            1
        );
        assert_eq!((columns[299].until, columns[299].in_flight), (1200.0, 1199));
    }

    #[test]
    fn where_nothing_was_answered_there_is_no_latency() {
        let of = PointOf { errors: 3, ..PointOf::default() };
        let operations = [("add".to_owned(), of)].into();
        let points = [Point { at_ms: 0, width_ms: 1000, in_flight: 0, operations }];
        let column = &columns(&points)[0].operations["add"];
        assert_eq!((column.errors, column.p50_us, column.max_us), (3, None, None));
    }
}
