//! Speaking with a provider that runs, through its ops listener: for `mimid admin` and `mimid peers`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::server::{Config, Endpoints};

/// Which provider.
#[derive(Debug, clap::Args)]
pub struct NodeAt {
    /// The provider's data folder, where endpoints.json says how to reach it
    #[arg(long, value_name = "DIR", env = "MIMID_DATA_DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// The provider's configuration, which names its data folder
    #[arg(long, value_name = "FILE", env = "MIMID_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// The provider's ops listener, in place of a data folder
    #[arg(long, value_name = "URL", global = true)]
    ops: Option<String>,
}

impl NodeAt {
    /// What the provider answers at `path`.
    ///
    /// # Errors
    /// Why it does not, for people.
    pub fn get(&self, path: &str) -> Result<String, String> {
        let url = format!("{}{path}", self.ops()?);
        ask(|client| client.get(url))
    }

    /// The same, with something given.
    ///
    /// # Errors
    /// Why it does not, for people.
    pub fn post(&self, path: &str, content_type: &str, body: Vec<u8>) -> Result<String, String> {
        let url = format!("{}{path}", self.ops()?);
        ask(|client| client.post(url).header("content-type", content_type).body(body))
    }

    fn ops(&self) -> Result<String, String> {
        if let Some(ops) = &self.ops {
            return Ok(ops.trim_end_matches('/').to_owned());
        }
        let folder = match (&self.data_dir, &self.config) {
            (Some(folder), _) => folder.clone(),
            (None, None) => Config::default().data_dir,
            (None, Some(file)) => {
                let config = Config::load(Some(file), std::iter::empty());
                config.map_err(|error| error.to_string())?.data_dir
            }
        };
        let folder: &Path = &folder;
        let endpoints = Endpoints::read(folder).map_err(|error| {
            format!(
                "no provider runs in {}: endpoints.json cannot be read ({error}); name its folder with --data-dir \
                 or its listener with --ops",
                folder.display()
            )
        })?;
        Ok(endpoints.ops)
    }
}

fn ask(
    request: impl FnOnce(&reqwest::Client) -> reqwest::RequestBuilder,
) -> Result<String, String> {
    // an error says that the process has a provider already, which will do
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let failed = |error: reqwest::Error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        format!("{error}{}", cause.unwrap_or_default())
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("no runtime: {error}"))?;
    runtime.block_on(async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .timeout(TIMEOUT)
            .build()
            .map_err(failed)?;
        let response = request(&client).send().await.map_err(failed)?;
        let status = response.status();
        let told = response.text().await.map_err(failed)?.trim_end().to_owned();
        if status.is_success() { Ok(told) } else { Err(format!("{told} ({status})")) }
    })
}

/// A group of ten thousand takes seconds to check.
const TIMEOUT: Duration = Duration::from_secs(300);
