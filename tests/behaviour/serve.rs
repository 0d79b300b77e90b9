//! The built binary as a provider: `mimid serve` in a process of its own, which a test may kill and start again.

use std::{
    io::BufRead as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use mimid::server::Endpoints;

use crate::providers::free_address;

pub const MIMID: &str = env!("CARGO_BIN_EXE_mimid");

/// A provider's process; it ends with this value.
pub struct Serve {
    child: Child,
    folder: PathBuf,
    engine: &'static str,
    pub endpoints: Endpoints,
}

impl Serve {
    /// A provider without configuration, run in `folder`. Its address stays free while it is down.
    pub fn start(folder: &Path) -> Self {
        Self::start_on("sled", folder)
    }

    /// As [`Self::start`], with a store of `engine`.
    pub fn start_on(engine: &'static str, folder: &Path) -> Self {
        let (child, endpoints) = serve(folder, engine, free_address());
        Self { child, folder: folder.to_owned(), engine, endpoints }
    }

    /// kill -9, and a new process in its place, which clients find where the old one was.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.start_again();
    }

    /// kill -9, and nothing in its place.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Behind [`Self::kill`]: a new process in its place, on what its data folder holds now.
    pub fn start_again(&mut self) {
        let address = self.endpoints.client.trim_start_matches("https://").parse().unwrap();
        (self.child, self.endpoints) = serve(&self.folder, self.engine, address);
    }

    /// Behind [`Self::kill`]: as [`Self::start_again`], where the data folder holds a store of `engine` by now.
    pub fn start_again_on(&mut self, engine: &'static str) {
        self.engine = engine;
        self.start_again();
    }

    /// kill -9, and a new process in its place at another address.
    pub fn kill_and_move(&mut self) {
        self.kill();
        (self.child, self.endpoints) = serve(&self.folder, self.engine, free_address());
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.join(DATA)
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const DATA: &str = "mimid-data";

fn serve(folder: &Path, engine: &str, listen: SocketAddr) -> (Child, Endpoints) {
    let mut child = Command::new(MIMID)
        .args(["serve", "--listen", &listen.to_string(), "--ops-listen", "127.0.0.1:0"])
        .current_dir(folder)
        .env_remove("MIMID_CONFIG")
        .env_remove("MIMID_DATA_DIR")
        .env("MIMID_STORE__ENGINE", engine)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // the greeting's last line says that everything is there
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("Stop it") {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "it ended");
    }
    (child, Endpoints::read(&folder.join(DATA)).unwrap())
}
