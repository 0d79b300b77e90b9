//! Where a running node is found: `endpoints.json` in its data folder, for clients on the same machine and for scripts.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::keys::write_atomically;
use crate::wire::ids::Domain;

/// What a node is bound to, ports as it got them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// `https://127.0.0.1:8443`
    pub client: String,
    /// `http://127.0.0.1:9443`
    pub ops: String,
    /// `https://127.0.0.1:7443`, for other providers; none where this one does not federate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub federation: Option<String>,
    pub domain: Domain,
    /// The certificate that clients must trust; none where a public authority vouches for it.
    pub certificate: Option<PathBuf>,
    pub pid: u32,
}

/// The file's name in the data folder.
pub const FILE: &str = "endpoints.json";

/// Holds what who asks a running node for a backup must show; made anew at each start, for the folder's owner alone.
pub const BACKUP_KEY_FILE: &str = "backup.key";

/// Makes a new key and writes it into `data_dir`.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_backup_key(data_dir: &Path) -> io::Result<String> {
    let key = hex::encode(crate::crypto::random::<32>());
    write_atomically(&data_dir.join(BACKUP_KEY_FILE), key.as_bytes(), 0o600)?;
    Ok(key)
}

impl Endpoints {
    #[must_use]
    pub fn new(
        client: SocketAddr,
        ops: SocketAddr,
        federation: Option<SocketAddr>,
        domain: Domain,
        certificate: Option<PathBuf>,
    ) -> Self {
        Self {
            client: format!("https://{}", reachable(client)),
            ops: format!("http://{}", reachable(ops)),
            federation: federation.map(|address| format!("https://{}", reachable(address))),
            domain,
            certificate,
            pid: std::process::id(),
        }
    }

    /// Reads the file of the node in `data_dir`. It is there while that node runs, or after it was killed.
    ///
    /// # Errors
    /// Where the file is not there or not what it should be.
    pub fn read(data_dir: &Path) -> io::Result<Self> {
        let bytes = std::fs::read(data_dir.join(FILE))?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }

    /// # Errors
    /// Where the file cannot be written.
    pub fn write(&self, data_dir: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        write_atomically(&data_dir.join(FILE), &bytes, 0o644)
    }

    /// # Errors
    /// Where the file cannot be removed.
    pub fn remove(data_dir: &Path) -> io::Result<()> {
        // a key of a process that has ended opens nothing
        let _ = std::fs::remove_file(data_dir.join(BACKUP_KEY_FILE));
        std::fs::remove_file(data_dir.join(FILE))
    }
}

/// An address that a client on this machine can connect to: "any address" is none.
fn reachable(address: SocketAddr) -> SocketAddr {
    if !address.ip().is_unspecified() {
        return address;
    }
    match address {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::LOCALHOST, address.port()).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::LOCALHOST, address.port()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_any_address_becomes_one_that_connects() {
        let folder = tempfile::tempdir().unwrap();
        let endpoints = Endpoints::new(
            "0.0.0.0:4711".parse().unwrap(),
            "[::]:4712".parse().unwrap(),
            Some("[::1]:4713".parse().unwrap()),
            Domain::new("a.example").unwrap(),
            Some(folder.path().join("certificate.pem")),
        );
        assert_eq!(endpoints.client, "https://127.0.0.1:4711");
        assert_eq!(endpoints.ops, "http://[::1]:4712");
        assert_eq!(endpoints.federation.as_deref(), Some("https://[::1]:4713"));
        endpoints.write(folder.path()).unwrap();
        assert_eq!(Endpoints::read(folder.path()).unwrap(), endpoints);
        Endpoints::remove(folder.path()).unwrap();
        assert!(Endpoints::read(folder.path()).is_err());
    }
}
