//! A made-up run whose every number is known.

use std::time::Duration;

use super::super::{
    recorder::Recorder,
    result::{DELIVERY, Drained, Load, Run, RunResult, SEND_LAG, Scrape, Scraped, Workload},
};

/// Eighty seconds, twenty of them a warm-up: 200 requests a second whose latencies are those of a formula, times `slower`.
pub(super) fn run(slower: u64) -> RunResult {
    let recorder = Recorder::new(Duration::from_secs(20));
    // what was due last is answered as if there were time
    recorder.ends_at(Duration::from_secs(90));
    let us = Duration::from_micros;
    for second in 0..80_u64 {
        for it in 0..200_u64 {
            let due = Duration::from_millis(second * 1000 + it * 5);
            let (name, base) = match it % 10 {
                0 => ("update", 9_000),
                1 => ("add", 14_000),
                2..=4 => ("dequeue", 900),
                _ => ("message", 2_000),
            };
            // one second in twenty has a stall, and each second a slow one
            let stall = if second % 20 == 13 { 180_000 } else { 0 };
            let tail = if it == 77 { 40_000 } else { 0 };
            let latency = us((base + it * base / 200 + stall + tail) * slower);
            recorder.sent(name);
            match (second * 200 + it) % 1_000 {
                10 => recorder.refused(name, "wrong_epoch", due, us(700)),
                510 => recorder.unanswered(name, "timeout", due),
                _ => recorder.answered(name, due, latency),
            }
            recorder.observed(SEND_LAG, due, us(40 + it));
            if name == "message" {
                recorder.observed(DELIVERY, due, latency + us(3_000));
            }
        }
        recorder.close_interval(Duration::from_secs(second + 1));
    }
    recorder.missed(DELIVERY, 6);
    let measured = recorder.measured();
    let run = Run {
        mimid_version: "0.1.0".into(),
        options: [("--rate".into(), "200".into()), ("--duration".into(), "60s".into())].into(),
        workload: Workload {
            name: "chat".into(),
            seed: 7,
            description: "20 groups of 10 members, 5 messages to 1 update, 1 add and 3 dequeues"
                .into(),
        },
        targets: vec!["https://a.example:8443".into()],
        started_at_ms: 1_795_750_805_000,
        warm_up_ms: 20_000,
        measured_ms: 60_000,
        tail_ms: 0,
        groups_lost: 0,
        drained: Some(Drained {
            clients: 10,
            due: 6_006,
            delivered: 6_000,
            settled_ms: 15_000,
            ..Drained::default()
        }),
        load: Load::Open { per_second: 200.0 },
        machine: [("cores".into(), "2".into()), ("load average at start".into(), "0.41".into())]
            .into(),
    };
    let text = |at_ms, cpu: f64, of: u64| {
        let text = format!(
            "process_start_time_seconds 1000\nprocess_cpu_seconds_total {cpu}\nprocess_resident_memory_bytes {}\n\
             mimid_store_flushes_total {}\nmimid_store_flush_seconds_total {}\nmimid_store_batches_total {}\n\
             mimid_store_written_bytes_total {}\nmimid_store_disk_bytes {}\nmimid_group_accepted_total {of}\n\
             mimid_queue_entries_delivered_total {}\nmimid_http_requests_total{{listener=\"client\",endpoint=\"/v1/x\",status=\"200\"}} {}\n",
            40_000_000 + of * 1000,
            of / 4,
            of / 1000,
            of + of / 2,
            of * 1500,
            of * 2500,
            of * 9,
            of * 2
        );
        Scraped::Text { at_ms, text }
    };
    let scrape = Scrape {
        target: "https://a.example:8443".into(),
        before: text(20_000, 11.25, 2_000),
        after: text(80_000, 11.25 + 12.5 * slower as f64, 8_000),
    };
    RunResult::new(run, measured.operations, measured.series, vec![scrape])
}
