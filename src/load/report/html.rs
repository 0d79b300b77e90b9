//! A report as one page: no other file, no script, no network (its own policy forbids all of it). Every plot has its numbers in a
//! table; light and dark follow the reader's system; it is laid out for paper and small screens, too.

use std::fmt::Write as _;

use super::{
    Comparison, OperationReport, Report, Requests, compare,
    plot::{Axis, Plot, escaped, nines},
    series::{Column, columns},
    tables::{self, Table},
    units::{bytes, count, micros, percent, rate, span, utc},
};
use crate::load::{
    latencies::Latencies,
    result::{Load, Point, SEND_LAG},
};

/// One run. `series` is its result's.
#[must_use]
pub fn report(report: &Report, series: &[Point]) -> String {
    let run = &report.run;
    let mut page = head(&format!("{}: load report", run.workload.name));
    let _ = write!(
        page,
        "<header><p class=\"eyebrow\">mimid load report</p><h1>{}</h1><p class=\"lede\">{}</p>{}</header><main>",
        escaped(&run.workload.name),
        escaped(&run.workload.description),
        facts(report)
    );
    page.push_str(&cards(report));
    page.push_str(&notes("Before you believe the numbers", &report.notes));
    section(
        &mut page,
        "Latency",
        "Requests of the measured time that got what they asked for. Half of them took the p50 or less, one in a hundred took longer \
         than the p99. Percentiles are drawn so that each further nine, a tenth of the answers before it, has as much room.",
    );
    let mut latencies = tables::latencies(report).into_iter();
    let colours: Vec<&str> = report.operations.iter().map(|of| &*of.name).collect();
    page.push_str("<div class=\"stack\">");
    if let Some(requests) = latencies.next() {
        page.push_str(&table(&requests, &colours));
    }
    // the generator's lateness is another scale
    let of_provider = report.operations.iter().enumerate().filter(|(_, of)| of.name != SEND_LAG);
    let curves: Vec<Curve<'_>> = of_provider.map(Curve::of).collect();
    page.push_str(&percentiles("Percentiles", &curves));
    for other in latencies {
        page.push_str(&table(&other, &colours));
    }
    page.push_str("</div>");
    let columns = columns(series);
    if !columns.is_empty() {
        over_time(&mut page, report, &columns);
    }
    let errors = tables::errors(report);
    if !errors.rows.is_empty() {
        section(
            &mut page,
            "Errors",
            "What requests were refused with, and why others had no answer.",
        );
        page.push_str(&table(&errors, &[]));
    }
    let costs = tables::costs(report);
    if !costs.is_empty() {
        section(
            &mut page,
            "What it cost the provider",
            "By the target's own counters: what they said in the end less what they said in the beginning. \"A second\" is of the time between.",
        );
        page.push_str("<div class=\"stack\">");
        costs.iter().for_each(|of| page.push_str(&table(of, &[])));
        page.push_str("</div>");
    }
    section(&mut page, "The run", "How it was made, to make it again.");
    page.push_str(&made(report));
    reading(&mut page, run.load);
    foot(&mut page, &run.mimid_version);
    page
}

/// Two runs.
#[must_use]
pub fn comparison(comparison: &Comparison) -> String {
    let Comparison { a, b, .. } = comparison;
    let names = [&a.run.workload.name, &b.run.workload.name];
    let title = if names[0] == names[1] {
        names[0].clone()
    } else {
        names.map(String::as_str).join(" and ")
    };
    let mut page = head(&format!("{title}: two runs compared"));
    let _ = write!(
        page,
        "<header><p class=\"eyebrow\">mimid load report: B beside A</p><h1>{}</h1></header><main>\
         <div class=\"columns\">",
        escaped(&title)
    );
    for (name, of) in [("A", a), ("B", b)] {
        let _ = write!(
            page,
            "<section class=\"card pad\" aria-label=\"run {name}\"><h3>{name}</h3><p class=\"lede\">{}</p>{}<p class=\"what\">{}</p>",
            escaped(&of.run.workload.description),
            facts(of),
            escaped(&super::text::requests(&of.requests))
        );
        if let Some(drained) = &of.run.drained {
            let _ = write!(page, "<p class=\"what\">{}</p>", escaped(&super::delivered(drained)));
        }
        page.push_str("</section>");
    }
    page.push_str("</div>");
    let all = [comparison.notes.clone(), comparison.notes_of_runs()].concat();
    page.push_str(&notes("Before you believe the ratios", &all));
    section(
        &mut page,
        "Latency and throughput",
        "Ratios of B to A: 2.00× is twice as long, or twice as many a second. ≈ marks what the sample alone may have made, ~ what few answers decide.",
    );
    page.push_str("<div class=\"stack\">");
    page.push_str(&table(&tables::compared_latencies(comparison), &[]));
    page.push_str(&table(&tables::compared_values(comparison), &[]));
    page.push_str("</div><div class=\"columns small\" style=\"margin-top:1rem\">");
    for of in &comparison.operations {
        let find = |report: &'_ Report| report.operations.iter().position(|it| it.name == of.name);
        let mut curves = Vec::new();
        if let Some(at) = find(a) {
            curves.push(Curve {
                name: "A",
                class: "c7 dashed".into(),
                latencies: &a.operations[at].latencies,
            });
        }
        if let Some(at) = find(b) {
            curves.push(Curve {
                name: "B",
                class: "c0".into(),
                latencies: &b.operations[at].latencies,
            });
        }
        page.push_str(&percentiles(&of.name, &curves));
    }
    page.push_str("</div>");
    if let Some(costs) = tables::compared_costs(comparison) {
        section(
            &mut page,
            "What it cost the providers",
            "By the targets' own counters, all targets of a run together.",
        );
        page.push_str(&table(&costs, &[]));
    }
    reading(&mut page, b.run.load);
    foot(&mut page, &b.run.mimid_version);
    page
}

fn head(title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"content-security-policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n\
         <title>{}</title>\n<link rel=\"icon\" href=\"data:,\">\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        escaped(title)
    )
}

fn foot(page: &mut String, version: &str) {
    let _ = write!(
        page,
        "</main><footer>The run was made by mimid {}, this page by mimid {}. Other forms: <code>mimid load report --format text</code>, \
         <code>--format json</code>.</footer>\n</body>\n</html>\n",
        escaped(version),
        env!("CARGO_PKG_VERSION")
    );
}

fn section(page: &mut String, title: &str, what: &str) {
    let _ = write!(page, "\n<h2>{}</h2><p class=\"what\">{}</p>", escaped(title), escaped(what));
}

fn facts(report: &Report) -> String {
    let run = &report.run;
    let warm_up = match run.warm_up_ms {
        0 => "none".to_owned(),
        ms => span(ms),
    };
    let facts = [
        ("Started", utc(run.started_at_ms)),
        ("Measured", span(run.measured_ms)),
        ("Warm-up before it", warm_up),
        ("Load", compare::load(run.load)),
        ("Seed", run.workload.seed.to_string()),
        (if run.targets.len() == 1 { "Target" } else { "Targets" }, run.targets.join(", ")),
    ];
    listed("facts", facts)
}

fn listed(class: &str, facts: impl IntoIterator<Item = (impl AsRef<str>, String)>) -> String {
    let mut told = format!("<dl class=\"{class}\">");
    for (name, value) in facts {
        let (name, value) = (escaped(name.as_ref()), escaped(&value));
        let _ = write!(told, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    told + "</dl>"
}

/// What most ask first, each with what it is to be seen beside.
fn cards(report: &Report) -> String {
    let Requests { answered, answered_per_second, refused, unanswered, error_share } =
        report.requests;
    let mut cards = vec![
        (
            "Answered a second".to_owned(),
            rate(answered_per_second),
            format!("{} in all", count(answered)),
        ),
        (
            "Failed".to_owned(),
            percent(error_share),
            format!("{} refused, {} unanswered", count(refused), count(unanswered)),
        ),
    ];
    if let Some(drained) = &report.run.drained {
        cards.push((
            "Deliveries missing".to_owned(),
            count(drained.due.saturating_sub(drained.delivered)),
            format!("{} of {} due came", count(drained.delivered), count(drained.due)),
        ));
    }
    // messages are what a provider is there for; of a workload without any, what it has most of
    let requests = || report.operations.iter().filter(|of| !of.observed);
    let messages = requests().find(|of| of.name == "message" && of.answered > 0);
    let most = messages.or_else(|| requests().max_by_key(|of| of.answered));
    for (share, name) in [(0.5, "p50"), (0.99, "p99")] {
        if let Some(of) = most.filter(|of| of.answered > 0) {
            let beside = format!("of {}", units_of(of));
            cards.push((
                format!("{}: {name}", of.name),
                micros(of.latencies.quantile_us(share)),
                beside,
            ));
        }
    }
    if let Some(total) = &report.total {
        let per = &total.per_accepted;
        let cores = total.cores().map_or(String::new(), |it| format!("{} cores at work", rate(it)));
        let per_accepted = [
            ("CPU per message", per.cpu_us.map(|us| micros(us.max(0.0).round() as u64)), cores),
            (
                "Store bytes per message",
                per.written_bytes.map(bytes),
                "given to the engine".to_owned(),
            ),
            ("Flushes per message", per.flushes.map(rate), "accepted by groups".to_owned()),
        ];
        for (name, value, beside) in per_accepted {
            if let Some(value) = value {
                cards.push((name.to_owned(), value, beside));
            }
        }
    }
    let mut told = String::from("<dl class=\"cards\">");
    for (name, value, beside) in cards {
        let _ = write!(
            told,
            "<div><dt>{}</dt><dd>{}</dd><dd class=\"beside\">{}</dd></div>",
            escaped(&name),
            escaped(&value),
            escaped(&beside)
        );
    }
    told + "</dl>"
}

fn units_of(of: &OperationReport) -> String {
    super::units::counted(of.answered, "answer")
}

fn notes(title: &str, notes: &[String]) -> String {
    if notes.is_empty() {
        return String::new();
    }
    let items: String = notes.iter().map(|note| format!("<li>{}</li>", escaped(note))).collect();
    format!("<aside class=\"notes\"><h2>{title}</h2><ul>{items}</ul></aside>")
}

/// A table; the first cell of a row that has a line in a plot beside it begins with that line's colour.
fn table(of: &Table, colours: &[&str]) -> String {
    let mut told = format!(
        "<div class=\"card scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\"><table><caption>{0}</caption><thead><tr>",
        escaped(&of.title)
    );
    for cell in &of.head {
        let _ = write!(told, "<th scope=\"col\">{}</th>", escaped(cell));
    }
    told.push_str("</tr></thead><tbody>");
    for row in &of.rows {
        told.push_str("<tr>");
        for (at, cell) in row.iter().enumerate() {
            if at == 0 {
                let colour = colours.iter().position(|name| name == cell).map(swatch);
                let colour = colour.unwrap_or_default();
                let _ = write!(told, "<th scope=\"row\">{colour}{}</th>", escaped(cell));
            } else {
                let class = match cell.chars().next() {
                    Some('~') => " class=\"thin\"",
                    Some('≈') => " class=\"even\"",
                    Some(_) | None => "",
                };
                let _ = write!(told, "<td{class}>{}</td>", escaped(cell));
            }
        }
        told.push_str("</tr>");
    }
    told + "</tbody></table></div>"
}

fn colour(at: usize) -> String {
    // behind eight lines the colours come again, dashed
    format!("c{}{}", at % 8, if at / 8 % 2 == 1 { " dashed" } else { "" })
}

fn swatch(at: usize) -> String {
    format!("<span class=\"swatch {}\"></span>", colour(at))
}

struct Curve<'a> {
    name: &'a str,
    class: String,
    latencies: &'a Latencies,
}

impl<'a> Curve<'a> {
    fn of((at, of): (usize, &'a OperationReport)) -> Self {
        Self { name: &of.name, class: colour(at), latencies: &of.latencies }
    }
}

/// How long each share of the answers took.
fn percentiles(title: &str, curves: &[Curve<'_>]) -> String {
    let curves: Vec<&Curve<'_>> = curves.iter().filter(|it| it.latencies.count() > 0).collect();
    let shortest = curves.iter().map(|it| it.latencies.quantile_us(0.0)).min();
    let longest = curves.iter().map(|it| it.latencies.max_us()).max();
    let answers = curves.iter().map(|it| it.latencies.count()).max();
    let (Some(shortest), Some(longest), Some(answers)) = (shortest, longest, answers) else {
        return String::new();
    };
    let x = Axis::of_percentiles(answers);
    let mut plot = Plot::new(x, Axis::of_latencies(shortest as f64, longest as f64));
    let mut legend = String::new();
    for curve in curves {
        let nines_max = (curve.latencies.count() as f64).log10().max(0.0);
        let points = (0..=CURVE_POINTS).map(|at| {
            let nines = nines_max * f64::from(at) / f64::from(CURVE_POINTS);
            let share = 1.0 - 10_f64.powf(-nines);
            (nines, Some(curve.latencies.quantile_us(share) as f64))
        });
        // beyond the last one only the longest itself is known
        let last = (nines_max, Some(curve.latencies.max_us() as f64));
        plot.line(&curve.class, points.chain([last]));
        let name = escaped(curve.name);
        let _ = write!(legend, "<li><span class=\"swatch {}\"></span>{name}</li>", curve.class);
    }
    debug_assert!((nines(0.9) - 1.0).abs() < 1e-9, "an axis of nines");
    format!(
        "<figure class=\"card\"><figcaption>{}</figcaption>{}<ul class=\"legend\">{legend}</ul></figure>",
        escaped(title),
        plot.html("Latency by percentile, both on logarithmic scales. The numbers are in the tables beside.")
    )
}

/// How the run went: latencies of each operation, requests, errors, and what was in flight.
fn over_time(page: &mut String, report: &Report, columns: &[Column<'_>]) {
    section(
        page,
        "Over time",
        "As the generator saw it, warm-up included (shaded). Where a run is long a point holds several seconds: the worst p99 in them.",
    );
    let (Some(first), Some(last)) = (columns.first(), columns.last()) else { return };
    let seconds = || Axis::of_seconds(first.from, last.until);
    let warm_up = report.run.warm_up_ms as f64 / 1e3;
    let begin = |y: Axis| {
        let mut plot = Plot::new(seconds(), y);
        if warm_up > 0.0 {
            plot.shade(warm_up);
        }
        plot
    };
    page.push_str("<div class=\"columns small\">");
    let requests: Vec<(usize, &OperationReport)> =
        report.operations.iter().enumerate().filter(|(_, of)| !of.observed).collect();
    // answers by operation, one upon the other
    let answered = |column: &Column<'_>, name: &str| {
        column.operations.get(name).map_or(0.0, |of| of.answered as f64 / column.width())
    };
    let total = |column: &Column<'_>| -> f64 {
        requests.iter().map(|(_, of)| answered(column, &of.name)).sum()
    };
    let wanted = match report.run.load {
        Load::Open { per_second } => Some(per_second),
        Load::Closed { .. } => None,
    };
    let most = columns.iter().map(total).fold(wanted.unwrap_or(0.0), f64::max);
    let mut plot = begin(Axis::of_numbers(most));
    let mut below: Vec<f64> = vec![0.0; columns.len()];
    for (at, of) in &requests {
        let mut points = Vec::new();
        for (column, below) in columns.iter().zip(&mut below) {
            let upper = *below + answered(column, &of.name);
            points.push((column.middle(), *below, upper));
            *below = upper;
        }
        plot.area(&format!("stacked {}", colour(*at)), &points);
    }
    let mut legend: String = requests
        .iter()
        .map(|(at, of)| format!("<li>{}{}</li>", swatch(*at), escaped(&of.name)))
        .collect();
    if let Some(wanted) = wanted {
        plot.level("level", wanted);
        let _ = write!(legend, "<li>dotted: {} due a second</li>", rate(wanted));
    }
    let rows = |show: &dyn Fn(&Column<'_>) -> Vec<String>| -> Vec<Vec<String>> {
        let each = columns.len().div_ceil(ROWS_MAX);
        columns.iter().step_by(each.max(1)).map(show).collect()
    };
    let when = |column: &Column<'_>| format!("{:.0} s", column.from);
    let names: Vec<&str> = requests.iter().map(|(_, of)| &*of.name).collect();
    let numbers = rows(&|column| {
        let each = names.iter().map(|name| rate(answered(column, name)));
        [when(column)].into_iter().chain(each).collect()
    });
    figure(
        page,
        "Answered a second",
        "",
        &plot,
        &legend,
        &[&["from"], &names[..]].concat(),
        numbers,
    );

    let errors = |column: &Column<'_>| {
        let all = names.iter().filter_map(|name| column.operations.get(name));
        all.map(|of| of.errors as f64).sum::<f64>() / column.width()
    };
    let most = columns.iter().map(errors).fold(0.0, f64::max);
    let mut plot = begin(Axis::of_numbers(most));
    let points: Vec<(f64, f64, f64)> =
        columns.iter().map(|column| (column.middle(), 0.0, errors(column))).collect();
    plot.area("ce", &points);
    plot.line("ce", points.iter().map(|(x, _, y)| (*x, Some(*y))));
    let numbers = rows(&|column| vec![when(column), rate(errors(column))]);
    figure(
        page,
        "Errors a second",
        "Refused and unanswered",
        &plot,
        "",
        &["from", "errors"],
        numbers,
    );

    let most = columns.iter().map(|column| column.in_flight as f64).fold(0.0, f64::max);
    let mut plot = begin(Axis::of_numbers(most.max(4.0)));
    plot.line("c7", columns.iter().map(|it| (it.middle(), Some(it.in_flight as f64))));
    let numbers = rows(&|column| vec![when(column), count(column.in_flight)]);
    let what = "Requests without an answer: where it only rises, the provider does not keep up";
    figure(page, "In flight", what, &plot, "", &["from", "requests"], numbers);

    // one scale for all that the provider did, so that plots can be compared
    let range = |is_lag: bool| {
        let all = columns.iter().flat_map(|column| &column.operations);
        let all = all.filter(move |(name, _)| (**name == SEND_LAG) == is_lag);
        let (mut shortest, mut longest) = (f64::INFINITY, 0.0_f64);
        for (_, of) in all {
            shortest = of.p50_us.map_or(shortest, |us| shortest.min(us));
            longest = of.max_us.map_or(longest, |us| longest.max(us));
        }
        (shortest, longest)
    };
    for (at, of) in report.operations.iter().enumerate() {
        let (shortest, longest) = range(of.name == SEND_LAG);
        if longest == 0.0 {
            continue;
        }
        let mut plot = begin(Axis::of_latencies(shortest, longest));
        let points = |pick: fn(&super::series::ColumnOf) -> Option<f64>| {
            let of = |column: &Column<'_>| column.operations.get(&*of.name).and_then(pick);
            columns.iter().map(move |column| (column.middle(), of(column))).collect::<Vec<_>>()
        };
        let class = format!("c{}", at % 8);
        plot.line(&format!("{class} faint"), points(|of| of.max_us).into_iter());
        plot.line(&class, points(|of| of.p99_us).into_iter());
        plot.line(&format!("{class} thinner dashed"), points(|of| of.p50_us).into_iter());
        let numbers = rows(&|column| {
            let of = column.operations.get(&*of.name);
            let us = |us: Option<f64>| us.map_or("–".to_owned(), |us| micros(us.round() as u64));
            let three = [
                of.and_then(|it| it.p50_us),
                of.and_then(|it| it.p99_us),
                of.and_then(|it| it.max_us),
            ];
            [when(column)].into_iter().chain(three.map(us)).collect()
        });
        let what = "p99; dashed: p50; faint: longest";
        let title = format!("{}: latency", of.name);
        figure(page, &title, what, &plot, "", &["from", "p50", "p99", "max"], numbers);
    }
    page.push_str("</div>");
}

fn figure(
    page: &mut String,
    title: &str,
    what: &str,
    plot: &Plot,
    legend: &str,
    head: &[&str],
    rows: Vec<Vec<String>>,
) {
    let says = format!("{title} over time. The numbers are in the table below.");
    let small = if what.is_empty() { String::new() } else { format!("<small>{what}</small>") };
    let _ = write!(
        page,
        "<figure class=\"card\"><figcaption>{}{small}</figcaption>{}",
        escaped(title),
        plot.html(&says)
    );
    if !legend.is_empty() {
        let _ = write!(page, "<ul class=\"legend\">{legend}</ul>");
    }
    let head = head.iter().map(|it| (*it).to_owned()).collect();
    let numbers = Table { title: title.to_owned(), head, rows };
    let numbers = table(&numbers, &[]).replacen("card scroll", "scroll", 1);
    let _ = write!(page, "<details><summary>Numbers</summary>{numbers}</details></figure>");
}

/// Options and machine.
fn made(report: &Report) -> String {
    let run = &report.run;
    let version = [("mimid".to_owned(), run.mimid_version.clone())];
    let of = |map: &std::collections::BTreeMap<String, String>| {
        map.iter().map(|(name, value)| (name.clone(), value.clone())).collect::<Vec<_>>()
    };
    listed("facts", version.into_iter().chain(of(&run.options)).chain(of(&run.machine)))
}

fn reading(page: &mut String, load: Load) {
    section(page, "How to read it", "");
    let from = match load {
        Load::Open { .. } => {
            "This was an open loop: requests are due by the clock, and a latency begins when its request was due. What waits behind \
             a stall is measured with its wait, as its user would feel it."
        }
        Load::Closed { .. } => {
            "This was a closed loop: who waits for an answer asks nothing meanwhile. Throughput is what the provider gives to so \
             many patient clients; percentiles leave out all those who would have come during a stall."
        }
    };
    let _ = write!(
        page,
        "<div class=\"reading\"><p>{}</p><p>Histograms hold three digits of each duration, from 1 µs to 10 minutes. CPU, bytes and flushes \
         are of the whole process, background work included: with few operations most of it is not theirs. Bytes are those given \
         to the store's engine, which writes more of its own; the growth of its files comes in steps.</p><p>One run is one \
         observation. Compare what was measured on the same quiet machine, twice each.</p></div>",
        escaped(from)
    );
}

const STYLE: &str = include_str!("style.css");
/// Points of one curve of percentiles: more than a screen shows.
const CURVE_POINTS: u32 = 300;
/// Rows of a table that stands for a plot.
const ROWS_MAX: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{report::testing, result::RunResult};

    fn page(run: &RunResult) -> String {
        report(&Report::new(run), &run.series)
    }

    #[test]
    fn a_page_shows_every_number_of_the_text() {
        let run = testing::run(1);
        let (page, text) = (page(&run), super::super::text::report(&Report::new(&run)));
        let tables = &text[text.find("Latency of requests").unwrap()..];
        let cells = tables.lines().flat_map(|line| line.trim().split("  "));
        let cells: Vec<&str> = cells.map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert!(cells.len() > 100);
        for cell in cells {
            assert!(page.contains(&format!(">{}<", escaped(cell))), "no {cell:?}");
        }
    }

    #[test]
    fn what_a_file_names_is_text_in_the_page_wherever_it_stands() {
        let mut run = testing::run(1);
        let evil = "</style><script src='https://x.example'>\"&";
        let (name, of) = run.operations.pop_first().unwrap();
        let renamed = format!("{name}{evil}");
        for point in &mut run.series {
            let of = point.operations.remove(&name).unwrap();
            point.operations.insert(renamed.clone(), of);
        }
        run.operations.insert(renamed, of);
        let update = run.operations.get_mut("update").unwrap();
        update.errors = update.errors.iter().map(|(k, v)| (format!("{k}{evil}"), *v)).collect();
        run.run.workload.name = evil.into();
        run.run.workload.description = evil.into();
        run.run.mimid_version = evil.into();
        run.run.options.insert(evil.into(), evil.into());
        run.run.targets = vec![evil.into()];
        run.scrapes[0].target = evil.into();
        let other = testing::run(1);
        let two = Comparison::new(Report::new(&run), Report::new(&other));
        for page in [page(&run), comparison(&two)] {
            assert!(!page.contains("<script") && !page.contains("'https:"), "{page}");
            assert_eq!(page.matches("</style>").count(), 1);
            assert!(page.contains(
                "&lt;/style&gt;&lt;script src=&#39;https://x.example&#39;&gt;&quot;&amp;"
            ));
        }
    }

    #[test]
    fn a_run_without_anything_measured_is_still_a_page() {
        let mut run = testing::run(1);
        run.operations.clear();
        run.series.clear();
        run.scrapes.clear();
        let page = page(&run);
        assert!(page.contains("<h1>chat</h1>") && page.ends_with("</html>\n"));
        assert!(!page.contains("<figure") && !page.contains("NaN"));
    }

    #[test]
    fn numbers_that_are_no_numbers_are_in_no_page() {
        let mut run = testing::run(1);
        run.run.measured_ms = 0;
        run.run.load = Load::Open { per_second: 0.0 };
        for point in &mut run.series {
            (point.at_ms, point.width_ms, point.in_flight) = (u64::MAX, u64::MAX, u64::MAX);
            let of = point.operations.get_mut("add").unwrap();
            (of.answered, of.errors, of.max_us) = (u64::MAX, u64::MAX, u64::MAX);
        }
        let page = page(&run);
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }
}
