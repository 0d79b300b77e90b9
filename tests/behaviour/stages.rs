//! From a spike to a request: where the time of requests goes in metrics and in the log, and what one request is known by.

use std::time::{Duration, Instant};

use mimid::wire::ids::GroupId;
use serde_json::Value;

use crate::providers::{PATIENCE, Player, Provider, Providers, accepted, agree, team};

/// Every request is slow.
const LOG: &str = "[log]\nformat = \"json\"\nslow_request = \"0ms\"\n";
const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const STAGES: [&str; 10] = [
    "read",
    "decode",
    "authenticate",
    "queue",
    "stage",
    "write",
    "flush",
    "work",
    "wait",
    "answer",
];

async fn scene() -> (Providers, Player, Player, GroupId) {
    let providers = Providers::start_with(&["a.example", "b.example"], 1, LOG, &[]).await;
    let (alice, bob, team) = team(&providers).await;
    (providers, alice, bob, team)
}

/// A line of `provider`'s log about a slow request of this endpoint and operation; ten a second are said, so `again` is done
/// until there is one.
async fn slow_line(
    provider: &Provider,
    endpoint: &str,
    operation: Option<&str>,
    mut again: impl AsyncFnMut(),
) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        again().await;
        let found = provider
            .log_lines()
            .filter_map(|line| serde_json::from_str::<Value>(&line).ok())
            .filter(|line| line["message"] == "slow request" && line["endpoint"] == endpoint)
            .find(|line| line["operation"].as_str() == operation);
        if let Some(line) = found {
            return line;
        }
        assert!(Instant::now() < deadline, "{endpoint} {operation:?}: {}", provider.log_tail());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Which stages the request of a line was in, and how long in all of them together.
fn stages_of(line: &Value) -> (Vec<&'static str>, f64) {
    let ms = |stage: &&str| line[format!("{stage}_ms")].as_f64();
    let was_in: Vec<_> = STAGES.into_iter().filter(|stage| ms(stage).is_some()).collect();
    let sum = was_in.iter().filter_map(ms).sum();
    (was_in, sum)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_request_is_a_line_with_all_its_stages_and_who_it_is_of_stays_out() {
    let (providers, alice, bob, team) = scene().await;
    let [a, b] = &providers.all[..] else { panic!("two providers") };
    let mut count = 0;
    let own = slow_line(a, "/v1/group_operation", Some("send-message"), async || {
        count += 1;
        accepted(alice.client.send_text(&team, &format!("{count}")).await);
    });
    let own = own.await;
    let (was_in, sum) = stages_of(&own);
    let all_of_a_write =
        ["read", "decode", "authenticate", "queue", "stage", "write", "flush", "work", "answer"];
    assert_eq!(was_in, all_of_a_write, "{own}");
    let took = own["took_ms"].as_f64().unwrap();
    // each is cut to whole microseconds
    assert!(sum > took - 0.05, "{sum} of {took}: {own}");
    assert!(own["in_hand_ms"].as_f64().unwrap() <= took, "{own}");
    assert_eq!((&own["status"], &own["http"]), (&"ok".into(), &200.into()));
    assert_eq!(own["span"]["trace_id"].as_str().unwrap().len(), 32);

    // bob's provider brings his message to alice's, and says how long that took
    let relayed = slow_line(b, "/v1/group_operation", Some("send-message"), async || {
        count += 1;
        accepted(bob.client.send_text(&team, &format!("{count}")).await);
    });
    let (was_in, _) = stages_of(&relayed.await);
    assert_eq!(was_in, ["read", "decode", "authenticate", "work", "answer"]);
    let taken = slow_line(a, "/group_operation", Some("send-message"), async || {
        count += 1;
        accepted(bob.client.send_text(&team, &format!("{count}")).await);
    });
    let taken = taken.await;
    let (was_in, _) = stages_of(&taken);
    for stage in ["authenticate", "queue", "stage", "write", "flush", "answer"] {
        assert!(was_in.contains(&stage), "{stage}: {taken}");
    }
    // a long poll waits, and is not slow for that: the wait is not in hand
    let poll = slow_line(a, "/v1/dequeue", None, async || {
        let _ = alice.client.receive(50).await;
    });
    let poll = poll.await;
    let wait = poll["wait_ms"].as_f64().unwrap();
    let in_hand = poll["in_hand_ms"].as_f64().unwrap();
    assert!(in_hand + wait <= poll["took_ms"].as_f64().unwrap() + 0.01, "{poll}");
    for provider in [a, b] {
        for line in provider.log_lines().filter(|line| line.contains("slow request")) {
            assert!(!line.contains("alice") && !line.contains(&team.to_string()), "{line}");
        }
    }

    let of = |stage: &str, endpoint: &str| format!("endpoint=\"{endpoint}\",stage=\"{stage}\"");
    let count = "mimid_request_stage_seconds_count";
    let flushes = a.metric_with(count, &of("flush", "/v1/group_operation")).await;
    assert!(flushes >= 2.0, "{flushes}");
    assert_eq!(b.metric_with(count, &of("queue", "/v1/group_operation")).await, 0.0);
    assert!(a.metric("mimid_http_requests_slow_total").await >= flushes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_long_proposals_wait_for_a_commit_is_seen_and_is_over_with_it() {
    let (providers, alice, bob, team) = scene().await;
    let hub = &providers.all[0];
    let waiting = async || hub.metric("mimid_groups_with_pending_proposals").await;
    let committed = async || hub.metric("mimid_group_pending_seconds_count").await;
    // the hub may have proposed something of its own
    accepted(alice.client.update(&team, false).await);
    agree(&team, &[&alice, &bob]).await;
    let before = committed().await;
    assert_eq!(waiting().await, 0.0);
    accepted(bob.client.leave(&team).await);
    assert_eq!(waiting().await, 1.0);
    let deadline = Instant::now() + PATIENCE;
    while hub.metric("mimid_group_pending_oldest_seconds").await < 1.0 {
        assert!(Instant::now() < deadline, "it does not grow");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    alice.receive().await;
    accepted(alice.client.update(&team, false).await);
    assert_eq!(waiting().await, 0.0);
    assert_eq!(hub.metric("mimid_group_pending_oldest_seconds").await, 0.0);
    assert_eq!(committed().await, before + 1.0);
    let seconds = hub.metric("mimid_group_pending_seconds_sum").await;
    assert!(seconds >= 1.0, "{seconds}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_says_by_which_id_the_log_knows_its_request() {
    let providers = Providers::start_with(&["a.example"], 1, LOG, &[]).await;
    let a = &providers.all[0];
    // an error says that the process has one
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().danger_accept_invalid_certs(true);
    let http = http.build().unwrap();
    let ask = async |url: &str, headers: &[(&str, &str)]| {
        let mut request = http.post(url).header("content-type", "application/octet-stream");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.body("garbage").send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 400);
        answer.headers()["x-request-id"].to_str().unwrap().to_owned()
    };
    let client = format!("{}/v1/dequeue", a.server().url);
    let traceparent = format!("00-{TRACE_ID}-00f067aa0ba902b7-01");
    let other = "0123456789abcdef0123456789abcdef";
    assert_eq!(ask(&client, &[("traceparent", &traceparent)]).await, TRACE_ID);
    assert_eq!(ask(&client, &[("x-request-id", TRACE_ID)]).await, TRACE_ID);
    let both = [("x-request-id", other), ("traceparent", traceparent.as_str())];
    assert_eq!(ask(&client, &both).await, TRACE_ID);
    let new = ask(&client, &[]).await;
    assert!(new.len() == 32 && new.bytes().all(|byte| byte.is_ascii_hexdigit()), "{new}");
    let long = "7".repeat(4000);
    let zero = "0".repeat(32);
    for wrong in ["me\u{7f}", "ABCDEFABCDEFABCDEFABCDEFABCDEFAB", long.as_str(), zero.as_str()] {
        let Ok(value) = reqwest::header::HeaderValue::from_str(wrong) else { continue };
        let id = ask(&client, &[("x-request-id", value.to_str().unwrap())]).await;
        assert!(id.len() == 32 && id != wrong, "{wrong}: {id}");
    }
    let peer = format!("https://localhost:{}/deliver_message", a.federation.port());
    let at_the_border = ask(&peer, &[("traceparent", &traceparent), ("x-request-id", other)]).await;
    assert!(
        ![TRACE_ID, other].contains(&at_the_border.as_str()),
        "another provider's id is not taken"
    );
    let mut lines = a.log_lines().filter(|line| line.contains("slow request"));
    assert!(lines.any(|line| line.contains(&format!("\"trace_id\":\"{TRACE_ID}\""))));
}
