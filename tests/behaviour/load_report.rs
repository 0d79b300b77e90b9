//! `mimid load report` as people use it: the binary reads a recorded run and tells it as text, JSON and a page, which a browser
//! shows without a complaint and without asking anybody.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use mimid::load::{
    recorder::Recorder,
    result::{Load, Run, RunResult, Scrape, Scraped, Workload},
};
use serde_json::Value;

use crate::{monitoring::are_installed, serve::MIMID};

/// A name that would be a script, were it not shown as what it is.
const NAME: &str = "<script>document.title = 'no'</script><img src=x> & co";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A run of ten seconds whose `message`s took `ms` each.
    fn run(&self, name: &str, ms: u64) -> PathBuf {
        let recorder = Recorder::new(Duration::from_secs(1));
        for second in 0..11 {
            for _ in 0..100 {
                let due = Duration::from_secs(second);
                recorder.sent("message");
                recorder.answered("message", due, Duration::from_millis(ms));
            }
            recorder.sent("update");
            recorder.refused("update", "wrong_epoch", Duration::from_secs(second), Duration::ZERO);
            recorder.close_interval(Duration::from_secs(second + 1));
        }
        let measured = recorder.measured();
        let workload = Workload { name: NAME.into(), seed: 7, description: "2 groups".into() };
        let run = Run {
            mimid_version: "0.1.0".into(),
            options: BTreeMap::from([("--rate".into(), "101".into())]),
            workload,
            targets: vec!["https://a.example:8443".into()],
            started_at_ms: 1_795_750_805_000,
            warm_up_ms: 1000,
            measured_ms: 10_000,
            tail_ms: 0,
            groups_lost: 0,
            drained: None,
            load: Load::Open { per_second: 101.0 },
            machine: BTreeMap::new(),
        };
        let text = |at_ms, cpu: u64| Scraped::Text {
            at_ms,
            text: format!(
                "process_cpu_seconds_total {cpu}\nmimid_group_accepted_total {}\n",
                cpu * 500
            ),
        };
        let (before, after) = (text(1000, 1), text(11_000, 3));
        let scrape = Scrape { target: "https://a.example:8443".into(), before, after };
        let path = self.path(name);
        let result = RunResult::new(run, measured.operations, measured.series, vec![scrape]);
        result.write(&path).unwrap();
        path
    }
}

fn report(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Output {
    Command::new(MIMID).args(["load", "report"]).args(arguments).output().unwrap()
}

/// What a report that must succeed prints.
fn told(arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    let output = report(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_run_is_told_as_text_as_json_and_as_a_page() {
    let folder = Folder::new();
    let run = folder.run("run.json", 20);
    let text = told(&[&run]);
    assert!(text.starts_with(NAME), "{text}");
    assert!(text.contains("1,000 answered, 100 a second; 10 refused"), "{text}");
    assert!(text.contains("  message     1,000       100  20.0 ms  20.0 ms"), "{text}");
    assert!(text.contains("update: wrong_epoch     10"), "{text}");
    let json: Value = serde_json::from_str(&told(&[&run, &"--format", &"json"])).unwrap();
    assert_eq!(json["operations"][0]["latency"]["max_us"], 20_015);
    assert_eq!(json["total"]["per_accepted"]["cpu_us"], 2000.0);
    // the name of the output says the form, and nothing is printed
    let page = folder.path("run.html");
    assert_eq!(told(&[&run, &"--output", &page]), "");
    assert!(fs::read_to_string(&page).unwrap().starts_with("<!doctype html>"));
    let data = folder.path("report.json");
    told(&[&run, &"--output", &data]);
    assert_eq!(serde_json::from_str::<Value>(&fs::read_to_string(data).unwrap()).unwrap(), json);
}

#[test]
fn two_runs_are_compared_as_ratios_in_every_form() {
    let folder = Folder::new();
    let (a, b) = (folder.run("a.json", 20), folder.run("b.json", 50));
    let text = told(&[&"--compare", &a, &b]);
    assert!(text.contains("  message      1,000      1,000     1.00×  2.50×  2.50×"), "{text}");
    let json: Value =
        serde_json::from_str(&told(&[&"--compare", &a, &b, &"--format", &"json"])).unwrap();
    let median = &json["operations"][0]["latency"][0];
    assert_eq!((&median["name"], &median["within_noise"]), (&"p50".into(), &false.into()));
    assert!((2.49..2.51).contains(&median["ratio"].as_f64().unwrap()), "{median}");
    let page = told(&[&"--compare", &a, &b, &"--format", &"html"]);
    assert!(page.contains("<td>2.50×</td>"), "{page}");
}

#[test]
fn a_file_that_is_no_whole_run_is_refused_and_nothing_is_written() {
    let folder = Folder::new();
    let run = folder.run("run.json", 20);
    let whole = fs::read_to_string(&run).unwrap();
    let other = |name: &str, text: &str| {
        fs::write(folder.path(name), text).unwrap();
        folder.path(name)
    };
    let histogram = |text: &str| {
        let mut value: Value = serde_json::from_str(text).unwrap();
        // HdrHistogram's own encoding, of up to 2^63 µs with five digits: it would take much room
        value["operations"]["message"]["latencies"] =
            "HISTEwAAAAEAAAAAAAAABQAAAAAAAAABf/////////8/8AAAAAAAAAA=".into();
        value.to_string()
    };
    let cases = [
        (folder.path("none.json"), "No such file"),
        (other("cut.json", &whole[..whole.len() / 2]), "is cut off"),
        (other("text.json", "latency: 3"), "is no recorded run"),
        (other("later.json", &whole.replace("\"version\":1", "\"version\":2")), "of version 2"),
        (other("wide.json", &histogram(&whole)), "a histogram is beyond bounds"),
    ];
    let output = folder.path("report.html");
    for (file, says) in &cases {
        let refused = report(&[file, &"--output", &output]);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains(says) && said.contains(file.to_str().unwrap()), "{says}: {said}");
        assert!(!output.exists() && refused.stdout.is_empty());
        let compared = report(&[&"--compare", &run, file]);
        assert_eq!(compared.status.code(), Some(1));
    }
    let wrong: [&[&str]; 3] = [&[], &["a", "--compare", "a", "b"], &["--compare", "a"]];
    for wrong in wrong {
        let refused = Command::new(MIMID).args(["load", "report"]).args(wrong).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{wrong:?}");
    }
    let nowhere = report(&[&run, &"--output", &folder.path("no/where.html")]);
    let said = String::from_utf8(nowhere.stderr).unwrap();
    assert!(said.contains("cannot write the report to") && said.contains("where.html"), "{said}");
}

/// What a browser makes of a page, and what it has to say.
fn browse(page: &Path) -> (String, String) {
    let profile = tempfile::tempdir().unwrap();
    let shown = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--allow-file-access-from-files", "--enable-logging=stderr"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(["--virtual-time-budget=10000", "--dump-dom"])
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&shown.stderr).into_owned();
    (String::from_utf8(shown.stdout).unwrap(), said)
}

#[test]
fn a_browser_shows_the_page_without_a_complaint_and_a_small_screen_holds_it() {
    if !are_installed(&["chromium"]) {
        return;
    }
    let folder = Folder::new();
    let (a, b) = (folder.run("a.json", 20), folder.run("b.json", 50));
    told(&[&a, &"--output", &folder.path("one.html")]);
    told(&[&"--compare", &a, &b, &"--output", &folder.path("two.html")]);
    for (page, shows) in [
        ("one.html", ["<td>20.0 ms</td>", "<th scope=\"row\">update: wrong_epoch</th>"]),
        ("two.html", ["<td>2.50×</td>", "<td>20.0 ms → 50.0 ms</td>"]),
    ] {
        let (dom, said) = browse(&folder.path(page));
        for shows in shows {
            assert!(dom.contains(shows), "no {shows} in\n{dom}\n{said}");
        }
        assert!(dom.contains("<h1>&lt;script&gt;document.title"), "{dom}");
        assert!(dom.contains("<path class=\"line c0\""), "a plot has lines: {dom}");
        assert!(!said.contains("CONSOLE"), "{page}: {said}");
        let target = "https://a.example:8443";
        assert!(dom.contains(target) && !dom.replace(target, "").contains("://"), "{dom}");
        // as wide as a phone: what is too wide scrolls in its own place
        let frame = format!(
            "<!doctype html><iframe src=\"{page}\" width=\"420\" height=\"800\" style=\"border:0\"></iframe><p></p><script>\
             onload = () => {{ const root = document.querySelector('iframe').contentDocument.documentElement;\
             document.querySelector('p').textContent = root.scrollWidth <= root.clientWidth ? 'it fits' : root.scrollWidth; }}</script>"
        );
        fs::write(folder.path("phone.html"), frame).unwrap();
        let (dom, said) = browse(&folder.path("phone.html"));
        assert!(dom.contains("<p>it fits</p>"), "{page}: {dom}\n{said}");
    }
}
