//! The folder that `mimid client` lives in, and the files that it is given: private to their owner.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use crate::{
    client::{
        Authorization, Client, ClientError,
        core::{Home, Member},
        system_clock,
    },
    store::make_folder,
};

pub(super) fn open(home: &Path) -> Result<Client, ClientError> {
    let database = home.join(DATABASE);
    if !database.exists() {
        return Err(invalid(format!(
            "{} holds no client yet: `mimid client register` makes one",
            home.display()
        )));
    }
    // made by others than this program, or before it was strict
    make_private(home)?;
    Client::open(Member::open(Home::open(&database)?)?, system_clock())
}

pub(super) fn home_dir(given: Option<&Path>) -> Result<PathBuf, ClientError> {
    match given {
        Some(home) => Ok(home.to_owned()),
        None => std::env::home_dir()
            .map(|home| home.join(".mimid"))
            .ok_or_else(|| invalid("where? Say --home DIR or set MIMID_HOME")),
    }
}

pub(super) fn make_private(home: &Path) -> Result<(), ClientError> {
    use std::os::unix::fs::PermissionsExt;
    make_folder(home)
        .and_then(|()| std::fs::set_permissions(home, std::fs::Permissions::from_mode(0o700)))
        .map_err(|error| invalid(format!("{}: {error}", home.display())))
}

pub(super) fn write_secret(file: &Path, bytes: &[u8]) -> Result<(), ClientError> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(|error| invalid(format!("{}: {error}", file.display())))
}

pub(super) fn read_text(file: &Path) -> Result<String, ClientError> {
    std::fs::read_to_string(file).map_err(|error| invalid(format!("{}: {error}", file.display())))
}

pub(super) fn read_authorization(file: &Path) -> Result<Authorization, ClientError> {
    serde_json::from_str(&read_text(file)?)
        .map_err(|_| invalid(format!("{} is not what `devices authorize` writes", file.display())))
}

pub(super) fn invalid(text: impl Into<String>) -> ClientError {
    ClientError::Invalid(text.into())
}

pub(super) const DATABASE: &str = "client.sqlite";
