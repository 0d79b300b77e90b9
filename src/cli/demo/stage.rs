//! What the demo stands on: its folder, its provider's process, the count of what was done.

use std::{
    fs::File,
    future::Future,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{client::ClientError, server::Endpoints};

/// What broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broke {
    #[error("{what}: {error}")]
    Client { what: String, error: ClientError },
    #[error("{0}")]
    Not(String),
    #[error("the provider: {0}")]
    Provider(String),
}

/// Where everything is, and whether it goes away.
pub(super) struct Folder {
    pub path: PathBuf,
    keep: bool,
}

impl Folder {
    pub fn make(keep: Option<&Path>) -> std::io::Result<Self> {
        let name = format!("mimid-demo-{}", hex::encode(crate::crypto::random::<6>()));
        let path = keep.map_or_else(|| std::env::temp_dir().join(name), Path::to_path_buf);
        std::fs::create_dir_all(&path)?;
        if keep.is_some() && std::fs::read_dir(&path)?.next().is_some() {
            return Err(std::io::Error::other(format!("{} is not empty", path.display())));
        }
        Ok(Self { path: path.canonicalize()?, keep: keep.is_some() })
    }

    pub fn end(self, worked: bool) {
        if self.keep {
            println!("Everything is kept in {}.", self.path.display());
        } else if worked {
            // what is left behind is a temporary folder
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// How often each operation was done, in the order in which they first were.
#[derive(Default)]
pub(super) struct Tally {
    rows: Vec<(&'static str, u32, u32)>,
}

impl Tally {
    pub fn row(&mut self, name: &'static str) -> &mut (&'static str, u32, u32) {
        let at = match self.rows.iter().position(|row| row.0 == name) {
            Some(at) => at,
            None => {
                self.rows.push((name, 0, 0));
                self.rows.len() - 1
            }
        };
        &mut self.rows[at]
    }

    pub fn print(&self) {
        println!("\n{:<44} {:>6} {:>6}", "operation", "count", "ok");
        println!("{}", "-".repeat(58));
        for (name, count, ok) in &self.rows {
            let mark = if count == ok { "" } else { "  <- broke" };
            println!("{name:<44} {count:>6} {ok:>6}{mark}");
        }
    }
}

/// The provider's process.
pub(super) struct Provider {
    child: Child,
    folder: PathBuf,
    pub endpoints: Endpoints,
}

impl Provider {
    pub async fn start(folder: &Path, listen: &str) -> Result<Self, Broke> {
        let provider = |error: std::io::Error| Broke::Provider(error.to_string());
        let log =
            File::options().create(true).append(true).open(folder.join(LOG)).map_err(provider)?;
        let data = folder.join("provider");
        let mut child = Command::new(std::env::current_exe().map_err(provider)?)
            .args(["serve", "--domain", DOMAIN, "--listen", listen, "--ops-listen", "127.0.0.1:0"])
            .arg("--data-dir")
            .arg(&data)
            .env_remove("MIMID_CONFIG")
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(provider)?)
            .stderr(log)
            .spawn()
            .map_err(provider)?;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Ok(endpoints) = Endpoints::read(&data)
                && endpoints.pid == child.id()
            {
                return Ok(Self { child, folder: folder.to_owned(), endpoints });
            }
            if let Some(status) = child.try_wait().map_err(provider)? {
                return Err(Broke::Provider(format!("it ended at once ({status})")));
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                return Err(Broke::Provider("it did not start in time".to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills it as a power cut of the process would (SIGKILL).
    pub fn kill(&mut self) -> Result<(), Broke> {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.map(|_| ()).map_err(|error| Broke::Provider(error.to_string()))
    }

    pub async fn start_again(&mut self) -> Result<(), Broke> {
        let listen = self.endpoints.client.trim_start_matches("https://").to_owned();
        *self = Self::start(&self.folder.clone(), &listen).await?;
        Ok(())
    }

    pub fn stop(&mut self) {
        // it is a child of this process and nobody else's
        let _ = self.kill();
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits for `act`, and counts it.
pub(super) async fn counted<T>(
    tally: &mut Tally,
    name: &'static str,
    who: &str,
    act: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, Broke> {
    let outcome = act.await;
    let row = tally.row(name);
    row.1 += 1;
    row.2 += u32::from(outcome.is_ok());
    outcome.map_err(|error| Broke::Client { what: format!("{who}, {name}"), error })
}

pub(super) const DOMAIN: &str = "localhost";
pub(super) const LOG: &str = "provider.log";
const START_TIMEOUT: Duration = Duration::from_secs(30);
