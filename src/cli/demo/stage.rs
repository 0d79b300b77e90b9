//! What the demo stands on: its folder, its providers' processes, the count of what was done.

use std::{
    fs::{DirBuilder, File},
    future::Future,
    net::{SocketAddr, TcpListener},
    ops::Range,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    client::{ClientError, Server},
    crypto,
    http::migrations::Migrations,
    server::{Endpoints, keys},
    wire::ids::Domain,
};

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
        let name = format!("mimid-demo-{}", hex::encode(crypto::random::<6>()));
        let path = keep.map_or_else(|| std::env::temp_dir().join(name), Path::to_path_buf);
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
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

/// One operation of the table.
pub(super) struct Row {
    name: &'static str,
    /// How often it was done at the client's own provider, and how often it went to another one.
    pub own: u32,
    pub across: u32,
    pub ok: u32,
}

/// How often each operation was done, in the order in which they first were.
#[derive(Default)]
pub(super) struct Tally {
    rows: Vec<Row>,
}

impl Tally {
    pub fn count(&mut self, name: &'static str, across: bool, ok: bool) {
        let at = match self.rows.iter().position(|row| row.name == name) {
            Some(at) => at,
            None => {
                self.rows.push(Row { name, own: 0, across: 0, ok: 0 });
                self.rows.len() - 1
            }
        };
        let row = &mut self.rows[at];
        *(if across { &mut row.across } else { &mut row.own }) += 1;
        row.ok += u32::from(ok);
    }

    pub fn print(&self) {
        println!("\n{:<46} {:>8} {:>8} {:>6}", "operation", "own", "another", "ok");
        println!("{:<46} {:>8} {:>8}", "", "provider", "provider");
        println!("{}", "-".repeat(71));
        for Row { name, own, across, ok } in &self.rows {
            let mark = if own + across == *ok { "" } else { "  <- broke" };
            println!("{name:<46} {own:>8} {across:>8} {ok:>6}{mark}");
        }
    }
}

/// A provider's process.
pub(super) struct Provider {
    pub domain: Domain,
    folder: PathBuf,
    /// Where its clients, its operator and the other provider find it.
    addresses: [SocketAddr; 3],
    child: Option<Child>,
}

impl Provider {
    /// Makes its folder, its certificate and its addresses; nothing runs yet.
    pub fn prepare(folder: &Path, domain: &str) -> Result<Self, Broke> {
        let domain = Domain::new(domain).map_err(|error| Broke::Provider(error.to_string()))?;
        let folder = folder.join(domain.as_str());
        let data = folder.join(DATA);
        DirBuilder::new().recursive(true).mode(0o700).create(&data).map_err(provider)?;
        keys::self_signed_tls(&data, &domain)
            .map_err(|error| Broke::Provider(error.to_string()))?;
        let addresses = [free_address()?, free_address()?, free_address()?];
        Ok(Self { domain, folder, addresses, child: None })
    }

    /// Tells it where the other one is and which certificate to trust.
    pub fn introduce(&self, other: &Self) -> Result<(), Broke> {
        let [client, ops, federation] = self.addresses;
        let config = format!(
            "domain = \"{}\"\ndata_dir = {:?}\n[client]\nlisten = \"{client}\"\n[ops]\nlisten = \"{ops}\"\n\
             [federation]\nlisten = \"{federation}\"\nroots = [{:?}]\nallow_private_addresses = true\n\
             [federation.overrides]\n\"{}\" = \"{}\"\n",
            self.domain,
            self.folder.join(DATA),
            other.certificate(),
            other.domain,
            other.addresses[2],
        );
        std::fs::write(self.folder.join("mimid.toml"), config).map_err(provider)
    }

    /// Starts it, for the first time or again, and waits until it serves.
    pub async fn start(&mut self) -> Result<(), Broke> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(LOG))
            .map_err(provider)?;
        let mut child = Command::new(std::env::current_exe().map_err(provider)?)
            .args(["serve", "--config"])
            .arg(self.folder.join("mimid.toml"))
            .env_remove("MIMID_CONFIG")
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(provider)?)
            .stderr(log)
            .spawn()
            .map_err(provider)?;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Ok(endpoints) = Endpoints::read(&self.folder.join(DATA))
                && endpoints.pid == child.id()
            {
                self.child = Some(child);
                return Ok(());
            }
            if let Some(status) = child.try_wait().map_err(provider)? {
                return Err(Broke::Provider(format!("{} ended at once ({status})", self.domain)));
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                return Err(Broke::Provider(format!("{} did not start in time", self.domain)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills it as a power cut of the process would (SIGKILL).
    pub fn kill(&mut self) -> Result<(), Broke> {
        // it is a child of this process and nobody else's
        if let Some(mut child) = self.child.take() {
            child.kill().and_then(|()| child.wait()).map_err(provider)?;
        }
        Ok(())
    }

    /// Waits until a group is on its way from here to the other provider.
    pub async fn until_group_leaves(&self) -> Result<(), Broke> {
        // an error says that the process has one already
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let failed = |error: &dyn std::fmt::Display| Broke::Provider(error.to_string());
        let client = reqwest::Client::builder().no_proxy().build();
        let client = client.map_err(|error| failed(&error))?;
        let url = format!("http://{}/v1/migrations", self.addresses[1]);
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let asked = client.get(&url).send().await.map_err(|error| failed(&error))?;
            let told = asked.text().await.map_err(|error| failed(&error))?;
            let told: Migrations = serde_json::from_str(&told).map_err(|error| failed(&error))?;
            if !told.departures.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Broke::Provider(format!("no group leaves {} in time", self.domain)));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How its clients find it.
    pub fn server(&self) -> Result<Server, Broke> {
        let certificate = std::fs::read_to_string(self.certificate()).map_err(provider)?;
        Ok(Server { url: self.url(), certificate: Some(certificate) })
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.addresses[0])
    }

    /// Where other providers find it.
    pub fn federation_url(&self) -> String {
        format!("https://{}", self.addresses[2])
    }

    fn certificate(&self) -> PathBuf {
        self.folder.join(DATA).join("certificate.pem")
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn provider(error: std::io::Error) -> Broke {
    Broke::Provider(error.to_string())
}

/// An address on loopback that is free now and that this process has not given away already. Its port is below those
/// that the system gives to connections, so that it is still free when a provider that was killed comes back.
fn free_address() -> Result<SocketAddr, Broke> {
    static NEXT: LazyLock<AtomicUsize> =
        LazyLock::new(|| AtomicUsize::new(u16::from_be_bytes(crypto::random()).into()));
    let free = (0..PORTS.len()).find_map(|_| {
        let at = NEXT.fetch_add(1, Ordering::Relaxed) % PORTS.len();
        let port = PORTS.clone().nth(at)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        TcpListener::bind(address).is_ok().then_some(address)
    });
    free.ok_or_else(|| Broke::Provider("no port is free".to_owned()))
}

const PORTS: Range<u16> = 28_000..32_000;

/// Waits for `act`, and counts it.
pub(super) async fn counted<T>(
    tally: &mut Tally,
    name: &'static str,
    across: bool,
    who: &str,
    act: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, Broke> {
    let outcome = act.await;
    tally.count(name, across, outcome.is_ok());
    outcome.map_err(|error| Broke::Client { what: format!("{who}, {name}"), error })
}

/// What a provider says, in its folder.
pub(super) const LOG: &str = "log";
const DATA: &str = "data";
const START_TIMEOUT: Duration = Duration::from_secs(30);
