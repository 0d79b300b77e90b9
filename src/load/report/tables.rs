//! The report's figures as tables of words, the same for a terminal and for a page: the first column names, the others hold numbers.

use super::{
    Comparison, OperationReport, QUANTILES, Quantile, Report, Summary,
    compare::{ComparedFigure, ComparedOperation},
    costs::{BeforeAfter, Costs, TargetCosts},
    units::{bytes, count, micros, rate, ratio, seconds},
};

pub(super) struct Table {
    pub(super) title: String,
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Table {
    fn new(title: &str, head: &[&str]) -> Self {
        let head = head.iter().map(|it| (*it).to_owned()).collect();
        Self { title: title.to_owned(), head, rows: Vec::new() }
    }
}

/// What is not known.
const NONE: &str = "–";

/// Latencies of requests, of what was observed, and of refusals: those that there are.
pub(super) fn latencies(report: &Report) -> Vec<Table> {
    let head = ["answered", "a second", "p50", "p90", "p99", "p99.9", "max"];
    let row = |of: &OperationReport, number: u64, a_second: Option<f64>, summary: &Summary| {
        let mut row = vec![of.name.clone(), count(number), a_second.map_or(NONE.into(), rate)];
        row.extend(summary.quantiles.iter().map(quantile));
        row.push(summary.max_us.map_or(NONE.into(), micros));
        row
    };
    let mut requests = Table::new("Latency of requests", &[&["request"], &head[..]].concat());
    let mut observed = Table::new("Observed beside them", &[&["observed"], &head[..]].concat());
    observed.head[1] = "times".to_owned();
    let mut refusals = Table::new("Latency of refusals", &[&["request"], &head[..]].concat());
    refusals.head[1] = "refused".to_owned();
    for of in &report.operations {
        let table = if of.observed { &mut observed } else { &mut requests };
        table.rows.push(row(of, of.answered, Some(of.answered_per_second), &of.latency));
        if of.refused > 0 {
            let a_second = of.refused_per_second;
            refusals.rows.push(row(of, of.refused, Some(a_second), &of.refusal_latency));
        }
    }
    let tables = [requests, observed, refusals];
    tables.into_iter().filter(|table| !table.rows.is_empty()).collect()
}

fn quantile(of: &Quantile) -> String {
    match of.us {
        Some(us) if of.thin => format!("~{}", micros(us)),
        Some(us) => micros(us),
        None => NONE.to_owned(),
    }
}

pub(super) fn errors(report: &Report) -> Table {
    let mut table = Table::new("Errors", &["request: code", "times", "of its requests"]);
    for of in &report.operations {
        let all = of.answered as f64 + of.refused as f64 + of.unanswered as f64;
        let mut errors: Vec<(&String, &u64)> = of.errors.iter().collect();
        errors.sort_by_key(|(_, times)| std::cmp::Reverse(**times));
        for (code, times) in errors {
            let share = super::units::percent(*times as f64 / all.max(1.0));
            table.rows.push(vec![format!("{}: {code}", of.name), count(*times), share]);
        }
    }
    table
}

/// One target's costs, or all of them together.
pub(super) fn costs(report: &Report) -> Vec<Table> {
    let known = |it: &TargetCosts| Some(of_costs(&it.target, it.costs.as_ref()?));
    let mut tables: Vec<Table> = report.targets.iter().filter_map(known).collect();
    if let Some(total) = report.total.as_ref().filter(|_| report.targets.len() > 1) {
        tables.push(of_costs("all targets", total));
    }
    tables
}

fn of_costs(target: &str, costs: &Costs) -> Table {
    let per = ["", "in all", "a second", "per accepted message", "per client request"];
    let mut table = Table::new(target, &per);
    let elapsed = (costs.elapsed_ms as f64 / 1e3).max(0.001);
    let mut row =
        |name: &str, all: Option<f64>, show: fn(f64) -> String, per: [Option<String>; 2]| {
            let mut row = vec![name.to_owned(), all.map_or(NONE.into(), show)];
            row.push(all.map_or(NONE.into(), |all| show(all / elapsed)));
            row.extend(per.map(|it| it.unwrap_or_else(|| NONE.to_owned())));
            table.rows.push(row);
        };
    let (accepted, request) = (&costs.per_accepted, &costs.per_request);
    let us = |it: f64| micros(it.max(0.0).round() as u64);
    let cpu = [accepted.cpu_us.map(us), request.cpu_us.map(us)];
    row("CPU time", costs.cpu_seconds, seconds, cpu);
    let written = [accepted.written_bytes.map(bytes), request.written_bytes.map(bytes)];
    row("bytes given to the store", costs.written_bytes, bytes, written);
    let disk = [accepted.disk_bytes.map(bytes), request.disk_bytes.map(bytes)];
    let growth = costs.disk_bytes.map(|it| it.after - it.before);
    row("growth of the store's files", growth, bytes, disk);
    let flushes = [accepted.flushes.map(rate), request.flushes.map(rate)];
    row("flushes", costs.flushes, rate, flushes);
    row("time in flushes", costs.flush_seconds, seconds, [None, None]);
    row("batches made durable", costs.batches, rate, [None, None]);
    row("accepted messages", costs.accepted, rate, [None, None]);
    row("client requests", costs.requests, rate, [None, None]);
    row("queue entries delivered", costs.delivered, rate, [None, None]);
    let mut gauge = |name: &str, of: Option<BeforeAfter>| {
        let change =
            of.map_or(NONE.into(), |it| format!("{} → {}", bytes(it.before), bytes(it.after)));
        let none = || NONE.to_owned();
        table.rows.push(vec![name.to_owned(), change, none(), none(), none()]);
    };
    gauge("resident memory", costs.resident_bytes);
    gauge("size of the store's files", costs.disk_bytes);
    table
}

/// Percentiles of both runs and their ratios, a table per operation would be long: one row each.
pub(super) fn compared_latencies(comparison: &Comparison) -> Table {
    let names = QUANTILES.iter().map(|(_, name)| *name).chain(["max"]);
    let head: Vec<&str> =
        ["", "answers A", "answers B", "a second"].into_iter().chain(names).collect();
    let mut table = Table::new("Ratios B / A", &head);
    for ComparedOperation { name, answered_a, answered_b, answered_per_second, latency, .. } in
        &comparison.operations
    {
        let number = |it: &Option<u64>| it.map_or(NONE.to_owned(), count);
        let mut row = vec![name.clone(), number(answered_a), number(answered_b)];
        row.push(in_words(answered_per_second));
        row.extend(latency.iter().map(in_words));
        table.rows.push(row);
    }
    table
}

/// What the ratios are made of.
pub(super) fn compared_values(comparison: &Comparison) -> Table {
    let names = QUANTILES.iter().map(|(_, name)| *name).chain(["max"]);
    let head: Vec<&str> = ["A → B", "a second"].into_iter().chain(names).collect();
    let mut table = Table::new("Both runs", &head);
    for ComparedOperation { name, answered_per_second, latency, .. } in &comparison.operations {
        let us = |it: f64| micros(it.round() as u64);
        let mut row = vec![name.clone(), both(answered_per_second, rate)];
        row.extend(latency.iter().map(|it| both(it, us)));
        table.rows.push(row);
    }
    table
}

pub(super) fn compared_costs(comparison: &Comparison) -> Option<Table> {
    let mut table = Table::new("Costs, by the targets' counters", &["", "A", "B", "B / A"]);
    for figure in &comparison.costs {
        let show: fn(f64) -> String = match figure.name {
            name if name.starts_with("CPU") => |us| micros(us.max(0.0).round() as u64),
            name if name.starts_with("bytes") || name.starts_with("resident") => bytes,
            _ => rate,
        };
        let value = |it: Option<f64>| it.map_or(NONE.to_owned(), show);
        let row = [figure.name.to_owned(), value(figure.a), value(figure.b), in_words(figure)];
        table.rows.push(row.into());
    }
    (!table.rows.is_empty()).then_some(table)
}

fn in_words(figure: &ComparedFigure) -> String {
    match figure.ratio {
        Some(it) if figure.within_noise => format!("≈{}", ratio(it)),
        Some(it) if figure.thin_a || figure.thin_b => format!("~{}", ratio(it)),
        Some(it) => ratio(it),
        None => NONE.to_owned(),
    }
}

fn both(figure: &ComparedFigure, show: fn(f64) -> String) -> String {
    let value = |it: Option<f64>, is_thin: bool| {
        let mark = if is_thin { "~" } else { "" };
        it.map_or(NONE.to_owned(), |it| format!("{mark}{}", show(it)))
    };
    format!("{} → {}", value(figure.a, figure.thin_a), value(figure.b, figure.thin_b))
}
