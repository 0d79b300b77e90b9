//! `mimid admin`: what an operator asks of a provider that runs, through its ops listener.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Subcommand;

use super::FAILED;
use crate::server::{Config, Endpoints};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring in a whole group from a file
    ///
    /// The file is a GroupImport (PROTOCOL.md): the group's GroupInfo and tree, and the queue of each member, all of
    /// them clients of this provider. Everything is checked but the lifetimes of leaves.
    ImportGroup(ImportGroup),
}

#[derive(Debug, clap::Args)]
struct ImportGroup {
    file: PathBuf,
    #[command(flatten)]
    node: NodeAt,
}

/// Which provider.
#[derive(Debug, clap::Args)]
struct NodeAt {
    /// The provider's data folder, where endpoints.json says how to reach it
    #[arg(long, value_name = "DIR", env = "MIMID_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// The provider's ops listener, in place of a data folder
    #[arg(long, value_name = "URL")]
    ops: Option<String>,
}

/// Asks, and says what came back.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let Command::ImportGroup(import) = &args.command;
    match import_group(import) {
        Ok(told) => {
            println!("{told}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("mimid: {why}");
            ExitCode::from(FAILED)
        }
    }
}

fn import_group(import: &ImportGroup) -> Result<String, String> {
    let file = &import.file;
    let body = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let ops = import.node.ops()?;
    post(&format!("{ops}/v1/import_group"), body)
}

impl NodeAt {
    fn ops(&self) -> Result<String, String> {
        if let Some(ops) = &self.ops {
            return Ok(ops.trim_end_matches('/').to_owned());
        }
        let default = Config::default().data_dir;
        let folder: &Path = self.data_dir.as_deref().unwrap_or(&default);
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

fn post(url: &str, body: Vec<u8>) -> Result<String, String> {
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
        let request = client.post(url).header("content-type", "application/octet-stream");
        let response = request.body(body).send().await.map_err(failed)?;
        let status = response.status();
        let told = response.text().await.map_err(failed)?.trim_end().to_owned();
        if status.is_success() { Ok(told) } else { Err(format!("{told} ({status})")) }
    })
}

/// A group of ten thousand takes seconds to check.
const TIMEOUT: Duration = Duration::from_secs(300);
