//! `mimid doctor DOMAIN`: walks the way to another provider (or to this one, as others see it) step by step, and says of
//! each what is wrong and what to do.
//!
//! It goes the way that a provider goes, with the same configuration, but stops nowhere that it could go on from: what a
//! provider only refuses is explained here. It signs nothing and leaves nothing.

mod certificate;
mod tls;

use std::{
    net::SocketAddr,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use headers::{Date, HeaderMapExt};
use serde::Serialize;

use super::{FAILED, USAGE, serve};
use crate::{
    federation::{
        address::is_global,
        discovery::{self, ServiceHost},
        message::{PURPOSE_EXTERNAL_SENDER, PURPOSE_S2S, is_in_force},
    },
    server::Config,
    wire::{
        client::VerificationKeyResponse,
        decode,
        federation::S2SEndpoint,
        ids::{Domain, Timestamp},
    },
};
use tls::{Target, Trust};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The provider's domain, as in its users' URIs
    domain: String,
    /// Print one JSON object per step
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    serve: serve::Args,
}

/// Examines, and says what it found. 0: everything is in order.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let usage = |why: &str| {
        eprintln!("mimid: {why}");
        ExitCode::from(USAGE)
    };
    let config = match args.serve.load() {
        Ok(config) => config,
        Err(error) => return usage(&error.to_string()),
    };
    let Ok(domain) = Domain::new(&args.domain) else {
        return usage(&format!("{:?} is not a domain in lower case, e.g. a.example", args.domain));
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return usage(&format!("no runtime: {error}")),
    };
    let mut findings = Findings { json: args.json, failed: 0, warned: 0 };
    runtime.block_on(examine(&domain, &config, &mut findings));
    findings.conclude(&domain)
}

/// What there was to say so far.
struct Findings {
    json: bool,
    failed: usize,
    warned: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

#[derive(Serialize)]
struct Finding<'a> {
    step: &'a str,
    verdict: Verdict,
    found: &'a str,
    /// What to do about it.
    #[serde(skip_serializing_if = "str::is_empty")]
    advice: &'a str,
}

impl Findings {
    fn ok(&mut self, step: &str, found: &str) {
        self.tell(Finding { step, verdict: Verdict::Ok, found, advice: "" });
    }

    fn warn(&mut self, step: &str, found: &str, advice: &str) {
        self.warned += 1;
        self.tell(Finding { step, verdict: Verdict::Warning, found, advice });
    }

    fn fail(&mut self, step: &str, found: &str, advice: &str) {
        self.failed += 1;
        self.tell(Finding { step, verdict: Verdict::Failed, found, advice });
    }

    fn tell(&self, finding: Finding<'_>) {
        if self.json {
            // of texts alone
            println!("{}", serde_json::to_string(&finding).unwrap_or_default());
            return;
        }
        let mark = match finding.verdict {
            Verdict::Ok => "ok     ",
            Verdict::Warning => "warning",
            Verdict::Failed => "FAILED ",
        };
        println!("{mark}  {:<11}{}", finding.step, finding.found);
        if !finding.advice.is_empty() {
            println!("{:20}{}", "", finding.advice);
        }
    }

    fn conclude(&self, domain: &Domain) -> ExitCode {
        if !self.json {
            match (self.failed, self.warned) {
                (0, 0) => println!("{domain} can be spoken with."),
                (0, _) => println!("{domain} can be spoken with; see the warnings."),
                _ => println!("{domain} cannot be spoken with as it is."),
            }
        }
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
    }
}

/// All steps, as far as they lead.
async fn examine(domain: &Domain, config: &Config, findings: &mut Findings) {
    lists(domain, config, findings);
    let trust = match Trust::new(&config.federation.roots) {
        Ok(trust) => trust,
        Err(why) => {
            return findings.fail("trust", &why, "mend federation.roots in the configuration");
        }
    };
    let Some(host) = discover(domain, config, &trust, findings).await else { return };
    let Some(client) = reach(&host, config, &trust, findings).await else { return };
    for endpoint in [S2SEndpoint::VerificationKey, S2SEndpoint::SignatureKey] {
        keys(domain, &host, endpoint, &client, findings).await;
    }
}

/// Addresses, TLS, and a client for the first address where both are good.
async fn reach(
    host: &Target,
    config: &Config,
    trust: &Trust,
    findings: &mut Findings,
) -> Option<reqwest::Client> {
    let addresses = addresses(host, config, findings).await?;
    let address = connect(host, &addresses, config, trust, findings)?;
    match tls::client(trust, host, address, config.federation.connect_timeout) {
        Ok(client) => Some(client),
        Err(why) => {
            findings.fail("tls", &format!("no HTTP client can be made: {why}"), "");
            None
        }
    }
}

/// Whether the configuration lets these two speak at all.
fn lists(domain: &Domain, config: &Config, findings: &mut Findings) {
    const STEP: &str = "lists";
    let federation = &config.federation;
    if *domain == config.domain {
        return findings.ok(STEP, "this provider itself, as others see it");
    }
    let on = |list: &[crate::federation::DomainPattern]| {
        list.iter().find(|pattern| pattern.matches(domain)).map(ToString::to_string)
    };
    if let Some(pattern) = on(&federation.deny) {
        let found = format!("{pattern} stands in federation.deny of this configuration");
        return findings.fail(STEP, &found, "take it out to speak with this provider");
    }
    if !federation.allow.is_empty() && on(&federation.allow).is_none() {
        let advice = "add it, or empty the list to speak with everyone";
        return findings.fail(STEP, "federation.allow does not name it", advice);
    }
    if federation.listen.is_none() {
        let advice = "set federation.listen: without it this provider speaks with no other";
        return findings.warn(STEP, "federation is off in this configuration", advice);
    }
    findings.ok(STEP, "this configuration admits it");
}

/// Where its Delivery Service is.
async fn discover(
    domain: &Domain,
    config: &Config,
    trust: &Trust,
    findings: &mut Findings,
) -> Option<Target> {
    const STEP: &str = "discovery";
    if let Some(host) = config.federation.overrides.get(domain) {
        findings.ok(STEP, &format!("{host}, by federation.overrides of this configuration"));
        return target(host);
    }
    let url = format!("https://{domain}{}", discovery::PATH);
    let own = Target { name: domain.as_str().to_owned(), port: 443 };
    let client = reach(&own, config, trust, findings).await?;
    let answer = match client.get(&url).send().await {
        Ok(answer) => answer,
        Err(error) => {
            let advice = "the web server of the domain must answer this path, with TLS 1.3";
            findings.fail(STEP, &format!("{url}: {}", causes(&error)), advice);
            return None;
        }
    };
    let status = answer.status();
    if status.is_redirection() {
        let to = answer.headers().get("location").and_then(|to| to.to_str().ok()).unwrap_or("?");
        let found = format!("{url} redirects to {to}, which no provider follows");
        findings.fail(STEP, &found, "answer the path itself, with 200 and the host as text");
        return None;
    }
    if !status.is_success() {
        let advice = "answer it with 200 and the host as text; mimid serves it on both listeners";
        findings.fail(STEP, &format!("{url} answers {status}"), advice);
        return None;
    }
    let kept_s = discovery::lifetime_ms(answer.headers()) / 1000;
    let body = match tls::body(answer, discovery::ANSWER_BYTES_MAX).await {
        Ok(body) => body,
        Err(why) => {
            let advice = "it is one line: a host name and perhaps a port";
            findings.fail(STEP, &format!("{url}: {why}"), advice);
            return None;
        }
    };
    match ServiceHost::from_answer(&body) {
        Ok(host) => {
            findings.ok(STEP, &format!("{url} says {host}, which is remembered for {kept_s} s"));
            target(&host)
        }
        Err(error) => {
            let shown: String = String::from_utf8_lossy(&body).chars().take(80).collect();
            findings.fail(STEP, &format!("{url} says {shown:?}"), &error.to_string());
            None
        }
    }
}

fn target(host: &ServiceHost) -> Option<Target> {
    let url = reqwest::Url::parse(&format!("https://{}", host.authority())).ok()?;
    let name = url.host_str()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    Some(Target { name, port: url.port_or_known_default()? })
}

/// Which addresses a host has, all of them and those that a provider would use.
async fn addresses(
    host: &Target,
    config: &Config,
    findings: &mut Findings,
) -> Option<Vec<SocketAddr>> {
    const STEP: &str = "addresses";
    let found: Vec<SocketAddr> = match host.address() {
        Some(address) => vec![SocketAddr::new(address, host.port)],
        None => match tokio::net::lookup_host((host.name.as_str(), host.port)).await {
            Ok(found) => found.collect(),
            Err(error) => {
                let advice = "its operator must publish an A or AAAA record for this name";
                let found = format!("{} has no address: {error}", host.name);
                findings.fail(STEP, &found, advice);
                return None;
            }
        },
    };
    let (global, private): (Vec<SocketAddr>, Vec<SocketAddr>) =
        found.into_iter().partition(|address| is_global(address.ip()));
    let show = |list: &[SocketAddr]| {
        let ips: Vec<String> = list.iter().map(|address| address.ip().to_string()).collect();
        ips.join(", ")
    };
    if config.federation.allow_private_addresses {
        let all = [global, private].concat();
        findings.ok(STEP, &format!("{host}: {}", show(&all)));
        return Some(all);
    }
    let private_advice = "such addresses are refused: publish public ones; between providers of one network set \
        federation.allow_private_addresses";
    if global.is_empty() {
        let found = format!("{host} has none of the public network: {}", show(&private));
        findings.fail(STEP, &found, private_advice);
        return None;
    }
    if !private.is_empty() {
        let found = format!("{host}: besides {} also {}", show(&global), show(&private));
        findings.warn(STEP, &found, private_advice);
    } else {
        findings.ok(STEP, &format!("{host}: {}", show(&global)));
    }
    Some(global)
}

/// Which of them answers with TLS as it must be. All are tried, since a provider may choose any.
fn connect(
    host: &Target,
    addresses: &[SocketAddr],
    config: &Config,
    trust: &Trust,
    findings: &mut Findings,
) -> Option<SocketAddr> {
    const STEP: &str = "tls";
    let mut good = None;
    for address in addresses {
        match tls::handshake(*address, host, trust, config.federation.connect_timeout) {
            Err(tls::Problem { found, advice }) => {
                findings.fail(STEP, &format!("{host} at {}: {found}", address.ip()), &advice);
            }
            Ok(session) => {
                let left = session.certificate.left(SystemTime::now());
                let found = format!(
                    "{host} at {}: {}, a certificate for {} that ends {}",
                    address.ip(),
                    session.version,
                    session.certificate.names.join(", "),
                    session.certificate.ends,
                );
                if left < EXPIRES_SOON {
                    let advice = "renew it: after that nobody can connect";
                    findings.warn(STEP, &found, advice);
                } else {
                    findings.ok(STEP, &found);
                }
                good = good.or(Some(*address));
            }
        }
    }
    good
}

/// What a key endpoint shows, and by its answer's date how far the clocks are apart.
async fn keys(
    domain: &Domain,
    host: &Target,
    endpoint: S2SEndpoint,
    client: &reqwest::Client,
    findings: &mut Findings,
) {
    const STEP: &str = "keys";
    let url = format!("https://{host}{}", endpoint.path());
    let asked_at = SystemTime::now();
    let answer = match client.get(&url).send().await {
        Ok(answer) => answer,
        Err(error) => {
            let advice = "this is where its federation listener must answer";
            return findings.fail(STEP, &format!("{url}: {}", causes(&error)), advice);
        }
    };
    if !answer.status().is_success() {
        let found = format!("{url} answers {}", answer.status());
        let advice =
            "what answers there is no federation listener of a MIMI provider, or not a healthy one";
        return findings.fail(STEP, &found, advice);
    }
    if endpoint == S2SEndpoint::VerificationKey {
        clock(&answer, asked_at, findings);
    }
    let response = match tls::body(answer, KEYS_BYTES_MAX).await {
        Ok(body) => decode::<VerificationKeyResponse>(&body).map_err(|error| error.to_string()),
        Err(why) => Err(why),
    };
    let response = match response {
        Ok(response) => response,
        Err(why) => {
            let advice = "it speaks another version of the protocol, or something is in between";
            return findings.fail(STEP, &format!("{url}: {why}"), advice);
        }
    };
    if response.domain != *domain {
        let found = format!("{url} holds the keys of {}, not of {domain}", response.domain);
        let advice = "discovery of the domain leads to another provider";
        return findings.fail(STEP, &found, advice);
    }
    judge_keys(&response, endpoint, now(), &url, findings);
}

/// Whether one of the keys can be used, and until when.
fn judge_keys(
    response: &VerificationKeyResponse,
    endpoint: S2SEndpoint,
    now: Timestamp,
    url: &str,
    findings: &mut Findings,
) {
    const STEP: &str = "keys";
    let purpose = if endpoint == S2SEndpoint::VerificationKey {
        PURPOSE_S2S
    } else {
        PURPOSE_EXTERNAL_SENDER
    };
    let name = String::from_utf8_lossy(purpose);
    let of_purpose = || response.keys.iter().filter(|key| key.purpose.as_slice() == purpose);
    if !of_purpose().any(|key| is_in_force(key, purpose, now)) {
        let found = format!("{url}: {} {name} keys, none of them in force", of_purpose().count());
        let advice =
            "its operator runs `mimid keys list` and `mimid keys rotate`; or a clock is wrong";
        return findings.fail(STEP, &found, advice);
    }
    // a next key that is published already counts
    let ends = of_purpose().map(|key| key.not_after).max().unwrap_or(now);
    let left_s = ends.ms_since(now) / 1000;
    let lasts =
        if ends.0 == u64::MAX { "without end".to_owned() } else { format!("for {}", span(left_s)) };
    let found = format!("{url}: {} {name} keys, in force {lasts}", of_purpose().count());
    if left_s < EXPIRES_SOON.as_secs() / 7 {
        findings.warn(STEP, &found, "its operator should rotate it now: `mimid keys rotate`");
    } else {
        findings.ok(STEP, &found);
    }
}

/// The clocks' difference, by the second: more than five minutes and nothing that is signed is taken.
fn clock(answer: &reqwest::Response, asked_at: SystemTime, findings: &mut Findings) {
    const STEP: &str = "clock";
    let Some(theirs) = answer.headers().typed_get::<Date>().map(SystemTime::from) else {
        return findings.warn(STEP, "its answers have no Date", "nothing to be done from here");
    };
    // what the answer took to come back is no difference
    let late = theirs.duration_since(SystemTime::now()).unwrap_or_default();
    let early = asked_at.duration_since(theirs).unwrap_or_default();
    // dates are cut to the second
    let apart = late.max(early.saturating_sub(Duration::from_secs(1)));
    let ahead = if late > Duration::ZERO { "ahead" } else { "behind" };
    let found = format!("its clock is {} s {ahead} of this machine's", apart.as_secs());
    let advice = "set both by NTP: beyond 5 minutes every message is refused as stale";
    if apart >= Duration::from_secs(5 * 60) {
        findings.fail(STEP, &found, advice);
    } else if apart >= Duration::from_secs(30) {
        findings.warn(STEP, &found, advice);
    } else {
        findings.ok(STEP, "within a few seconds of this machine's");
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Seconds in the largest unit that fits.
fn span(seconds: u64) -> String {
    match seconds {
        0..=7199 => format!("{} minutes", seconds / 60),
        7200..=172_799 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// An error with what is below it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(cause) = below {
        text = format!("{text}: {cause}");
        below = cause.source();
    }
    text
}

const KEYS_BYTES_MAX: usize = 512 * 1024;
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);
