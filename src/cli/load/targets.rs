//! Which providers a load goes to: endpoints.json of those on this machine, or their domains and URLs.

use std::path::{Path, PathBuf};

use crate::{
    load::{LoadError, workload::Target},
    server::Endpoints,
    wire::ids::Domain,
};

/// Where the providers are.
#[derive(Debug, clap::Args)]
pub(super) struct Targets {
    /// A provider's client listener, once for each: a.example=https://127.0.0.1:8443
    #[arg(long = "target", value_name = "DOMAIN=URL", conflicts_with = "endpoints")]
    targets: Vec<String>,
    /// The certificate to trust (PEM), where the system does not; one file for all, or one for each target in their order
    #[arg(long, value_name = "FILE", requires = "targets", conflicts_with = "endpoints")]
    ca: Vec<PathBuf>,
    /// endpoints.json of a provider on this machine, once for each, in place of --target and --ca
    #[arg(long, value_name = "FILE")]
    endpoints: Vec<PathBuf>,
}

impl Targets {
    /// Whether any are named.
    pub fn is_given(&self) -> bool {
        !self.targets.is_empty() || !self.endpoints.is_empty()
    }

    /// As [`Self::named`], for a workload of `prepared`: of one that has a single provider its URL suffices.
    pub fn of_workload(
        &self,
        prepared: impl FnOnce() -> Result<Vec<Target>, LoadError>,
    ) -> Result<Vec<Target>, LoadError> {
        if let [url] = &self.targets[..]
            && url.starts_with("https://")
            && let [only] = &prepared()?[..]
        {
            return self.certified(vec![(only.domain.clone(), url.clone())]);
        }
        self.named()
    }

    /// Those that are named; else the one whose endpoints.json is where `mimid serve` leaves it.
    pub fn named(&self) -> Result<Vec<Target>, LoadError> {
        if !self.targets.is_empty() {
            let split = |text: &String| {
                let (domain, url) = text.split_once('=').ok_or_else(|| {
                    usage(format!("--target {text}: which domain is that? DOMAIN=URL is meant, as a.example=https://127.0.0.1:8443"))
                })?;
                Ok((domain_of(domain)?, url.to_owned()))
            };
            let named = self.targets.iter().map(split).collect::<Result<Vec<_>, LoadError>>()?;
            return self.certified(named);
        }
        let default = PathBuf::from("mimid-data/endpoints.json");
        if !self.endpoints.is_empty() {
            return self.endpoints.iter().map(|file| of_endpoints(file)).collect();
        }
        if default.exists() {
            return Ok(vec![of_endpoints(&default)?]);
        }
        Err(usage("which providers? Say --target DOMAIN=URL (and --ca FILE), or --endpoints FILE of one on this machine".to_owned()))
    }

    fn certified(&self, named: Vec<(Domain, String)>) -> Result<Vec<Target>, LoadError> {
        if self.ca.len() > 1 && self.ca.len() != named.len() {
            return Err(usage(
                "--ca: one for all targets, or one for each in their order".to_owned(),
            ));
        }
        let made = named.into_iter().enumerate().map(|(at, (domain, url))| {
            let file = self.ca.get(at).or(self.ca.first());
            Ok(Target { domain, url, certificate: file.map(|file| text_of(file)).transpose()? })
        });
        made.collect()
    }
}

fn of_endpoints(file: &Path) -> Result<Target, LoadError> {
    if !file.exists() {
        return Err(unfit(format!(
            "{}: there is no such file; a provider writes it when it serves and removes it when it stops: is it running?",
            file.display()
        )));
    }
    let endpoints: Endpoints = serde_json::from_str(&text_of(file)?)
        .map_err(|error| unfit(format!("{}: {error}", file.display())))?;
    let certificate = endpoints.certificate.as_deref().map(text_of).transpose()?;
    Ok(Target { domain: endpoints.domain, url: endpoints.client, certificate })
}

fn domain_of(text: &str) -> Result<Domain, LoadError> {
    Domain::new(text).map_err(|error| usage(format!("{text}: {error}")))
}

fn text_of(file: &Path) -> Result<String, LoadError> {
    std::fs::read_to_string(file).map_err(|error| unfit(format!("{}: {error}", file.display())))
}

pub(super) fn usage(text: String) -> LoadError {
    LoadError::Usage(text)
}

pub(super) fn unfit(text: String) -> LoadError {
    LoadError::Unfit(text)
}
