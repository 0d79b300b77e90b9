//! `mimid serve`: a provider until SIGTERM or SIGINT. SIGHUP has it read its configuration, certificates and keys again.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use tokio::signal::unix::{SignalKind, signal};

use super::{FAILED, USAGE, supervisor::Supervisor};
use crate::server::{self, Config, ConfigError, Endpoints, config::Place, telemetry};

/// Options that stand over the file and the variables.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// A TOML file; config/single.toml is an example with everything in it
    #[arg(long, value_name = "FILE", env = "MIMID_CONFIG")]
    pub config: Option<PathBuf>,
    /// The provider's domain, as in its users' URIs
    #[arg(long, value_name = "DOMAIN")]
    pub domain: Option<String>,
    /// Where everything is kept
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Where clients connect; port 0 takes any free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Where the operator's endpoints are
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub ops_listen: Option<String>,
}

impl Args {
    /// The configuration that these options make, with the environment below them.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let options = [
            ("MIMID_DOMAIN", "--domain", &self.domain),
            ("MIMID_DATA_DIR", "--data-dir", &self.data_dir),
            ("MIMID_CLIENT__LISTEN", "--listen", &self.listen),
            ("MIMID_OPS__LISTEN", "--ops-listen", &self.ops_listen),
        ];
        let option = |name: &str| {
            options.iter().find(|(key, _, value)| *key == name && value.is_some()).map(|it| it.1)
        };
        // variables that are not UTF-8 are none of ours
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| option(name).is_none())
            .chain(options.iter().filter_map(|(name, _, value)| {
                value.as_ref().map(|value| ((*name).to_owned(), value.clone()))
            }));
        let loaded = Config::load(self.config.as_deref(), variables.collect::<Vec<_>>());
        loaded.map_err(|mut error| {
            // they went in as variables, and who wrote an option looks for that
            for problem in &mut error.problems {
                if let Place::Variable(name) = &problem.place
                    && let Some(option) = option(name)
                {
                    problem.place = Place::Option(option);
                }
            }
            error
        })
    }
}

/// Serves, and says where.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let config = match args.load() {
        Ok(config) => config,
        Err(error) => return said(USAGE, &error.to_string()),
    };
    if let Err(error) = telemetry::start(&config.log) {
        return said(USAGE, &error);
    }
    // signals are caught before anything can be left half-done
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return said(FAILED, &format!("no runtime: {error}")),
    };
    let signals = runtime.block_on(async {
        Ok::<_, std::io::Error>((
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        ))
    });
    let (mut terminate, mut interrupt, mut hangup) = match signals {
        Ok(signals) => signals,
        Err(error) => return said(FAILED, &format!("signals cannot be caught: {error}")),
    };
    let (is_default, store) = (args.config.is_none(), config.store.engine);
    let data_dir = config.data_dir.clone();
    let running = match server::start(config) {
        Ok(running) => running,
        Err(error) => return said(FAILED, &error.to_string()),
    };
    // it is there: the node has just written into it
    let data_dir = data_dir.canonicalize().unwrap_or(data_dir);
    greet(running.endpoints(), &data_dir, &format!("{store:?}").to_lowercase(), is_default);
    runtime.block_on(async {
        let mut supervisor = Supervisor::of_environment();
        supervisor.ready(&format!("serves {}", running.endpoints().domain));
        let mut watch = running.watch();
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = running.ended() => break,
                _ = hangup.recv() => running.reload_with(args.load()),
                () = supervisor.is_due() => {
                    // of a node of which a thread hangs nothing is said, and it is started again
                    if watch.look() {
                        supervisor.alive();
                    }
                }
            }
        }
        supervisor.stopping();
    });
    match running.stop() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => said(FAILED, &error.to_string()),
    }
}

fn greet(endpoints: &Endpoints, data_dir: &Path, store: &str, is_default: bool) {
    let trust = endpoints
        .certificate
        .as_ref()
        .map_or_else(String::new, |path| format!(" --ca {}", path.display()));
    let file = data_dir.join(server::endpoints::FILE);
    println!("mimid {} serves {}", env!("CARGO_PKG_VERSION"), endpoints.domain);
    println!("  clients   {}", endpoints.client);
    if let Some(federation) = &endpoints.federation {
        println!("  providers {federation}");
    }
    println!("  operator  {} (status page, /readyz, /metrics)", endpoints.ops);
    println!("  data      {} ({store})", data_dir.display());
    if is_default {
        println!("  no file was given: these are the defaults (see `mimid check-config`)");
    }
    println!("To become its first user, in another terminal:");
    println!("  mimid client --home ./alice register alice --endpoints {}", file.display());
    println!("and from elsewhere, with a copy of the certificate:");
    println!(
        "  mimid client --home ./alice register mimi://{}/u/alice --server {}{trust}",
        endpoints.domain, endpoints.client
    );
    println!("Stop it with Ctrl-C.");
}

fn said(code: u8, message: &str) -> ExitCode {
    eprintln!("mimid: {message}");
    ExitCode::from(code)
}
