//! The machine that makes the load, the targets' own metrics, and how many files a process may have open.

use std::{collections::BTreeMap, time::Duration};

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};

use super::{
    LoadError,
    result::{SCRAPE_BYTES_MAX, Scraped},
};

/// What a reader of a result wants to know of the machine before the run.
#[must_use]
pub(super) fn facts() -> BTreeMap<String, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut facts = BTreeMap::from([("cores".to_owned(), cores.to_string())]);
    // Linux tells; elsewhere it is left out
    if let Ok(load) = std::fs::read_to_string("/proc/loadavg")
        && let Some(one) = load.split(' ').next()
    {
        facts.insert("load average at start".to_owned(), one.to_owned());
    }
    if let Ok(info) = std::fs::read_to_string("/proc/cpuinfo")
        && let Some((_, model)) = info
            .lines()
            .find(|line| line.starts_with("model name"))
            .and_then(|line| line.split_once(':'))
    {
        facts.insert("processor".to_owned(), model.trim().to_owned());
    }
    facts
}

/// What this process has used of processors.
#[must_use]
pub(super) fn processor_time() -> Duration {
    // what a process has used is never negative
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap_or_default()
}

/// Makes sure that so many connections can be open.
///
/// # Errors
/// [`LoadError::Unfit`] where the system does not let it.
pub(super) fn files_for(connections: usize) -> Result<(), LoadError> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    // none means: as many as one likes
    let may = if raised { maximum } else { current }.unwrap_or(u64::MAX);
    if may < connections as u64 + FILES_KEPT {
        return Err(LoadError::Unfit(format!(
            "{connections} connections are to be open, and this process may have {may} files: raise `ulimit -n`, or drain fewer clients \
             (--drain-clients) or by --drain poll"
        )));
    }
    Ok(())
}

/// A target's `/metrics`, as it stands `at_ms` into the run.
pub(super) async fn scrape(url: &str, at_ms: u64) -> Scraped {
    match fetch(url).await {
        Ok(text) => Scraped::Text { at_ms, text },
        Err(error) => Scraped::Failed { at_ms, error },
    }
}

/// Makes sure that a target's metrics can be read: what a run cost cannot be asked for when it is over.
///
/// # Errors
/// [`LoadError::Unfit`], with what to do.
pub(super) async fn is_operators(url: &str) -> Result<(), LoadError> {
    let why = match fetch(url).await {
        Ok(text) if text.contains("\nmimid_") => return Ok(()),
        Ok(_) => "these are no provider's".to_owned(),
        Err(error) => error,
    };
    Err(LoadError::Unfit(format!(
        "--ops {url}: its metrics cannot be read ({why}): name a target's operator listener, as http://127.0.0.1:9443, or leave it out"
    )))
}

async fn fetch(url: &str) -> Result<String, String> {
    // an error says that the process has a provider already, which will do
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(SCRAPE_TIMEOUT)
        .build()
        .map_err(|error| error.to_string())?;
    let url = format!("{}/metrics", url.trim_end_matches('/'));
    let mut answer = client.get(url).send().await.map_err(|error| error.to_string())?;
    if !answer.status().is_success() {
        return Err(format!("HTTP status {}", answer.status().as_u16()));
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| error.to_string())? {
        if bytes.len() + chunk.len() > SCRAPE_BYTES_MAX {
            return Err(format!("more than {SCRAPE_BYTES_MAX} bytes"));
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| "it is no text".to_owned())
}

const FILES_KEPT: u64 = 128;
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);
