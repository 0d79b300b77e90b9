//! `register` and what a user does with its devices.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::{
    home::{DATABASE, invalid, make_private, open, read_authorization, read_text, write_secret},
    names::own_device,
    show::Out,
};
use crate::{
    client::{
        Client, ClientError, Registration, Server, core::Home, http::HttpError, system_clock,
    },
    server::Endpoints,
    wire::ids::{ClientUri, UserUri},
};

#[derive(Debug, clap::Args)]
pub(super) struct Register {
    /// mimi://<domain>/u/<name>, or only the name where the provider's domain is known
    user: String,
    /// What to call this device
    #[arg(long, default_value = "cli")]
    device: String,
    /// The provider's address, e.g. https://127.0.0.1:8443
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The certificate to trust (PEM), where the system does not
    #[arg(long, alias = "certificate", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// endpoints.json of a provider on this machine, in place of --server and --ca
    #[arg(long, value_name = "FILE", conflicts_with_all = ["server", "ca"])]
    endpoints: Option<PathBuf>,
    /// What the operator gave you, where the provider asks for it
    #[arg(long, default_value = "")]
    token: String,
    /// A further device of a user: the file that `devices authorize` wrote on another one
    #[arg(long, value_name = "FILE", conflicts_with = "from_home")]
    authorization: Option<PathBuf>,
    /// A further device of the user whose device lives in this home folder
    #[arg(long, value_name = "DIR")]
    from_home: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Devices {
    /// Devices of this user as its groups know them
    List,
    /// Write the file that a further device registers with. It is the user's key: move it safely, delete it after use
    Authorize {
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Delete a device at the provider; its groups remove it
    Delete { device: String },
}

pub(super) async fn register_here(
    args: &Register,
    home: &Path,
    out: &Out,
) -> Result<(), ClientError> {
    let authorization = match (&args.authorization, &args.from_home) {
        (Some(file), _) => Some(read_authorization(file)?),
        (None, Some(from)) => Some(open(from)?.authorize_device()?),
        (None, None) => None,
    };
    let (server, domain) = match (&args.server, endpoints_file(args), &authorization) {
        (Some(url), ..) => {
            let certificate = args.ca.as_deref().map(read_text).transpose()?;
            (Server { url: url.clone(), certificate }, None)
        }
        (None, Some(file), _) if args.endpoints.is_some() || authorization.is_none() => {
            if !file.exists() {
                return Err(invalid(format!(
                    "{}: there is no such file; a provider writes it when it serves and removes it when it stops: \
                     is it running?",
                    file.display()
                )));
            }
            let endpoints: Endpoints = serde_json::from_str(&read_text(&file)?)
                .map_err(|error| invalid(format!("{}: {error}", file.display())))?;
            let certificate = endpoints.certificate.as_deref().map(read_text).transpose()?;
            (Server { url: endpoints.client, certificate }, Some(endpoints.domain))
        }
        (None, _, Some(authorization)) => (authorization.server.clone(), None),
        (None, _, None) => {
            return Err(invalid(
                "which provider? Say --server URL (and --ca FILE), or --endpoints FILE of one on this machine",
            ));
        }
    };
    let domain = domain.or_else(|| authorization.as_ref().map(|it| it.user.domain()));
    let user = if args.user.contains("://") {
        UserUri::new(&args.user)
    } else {
        let domain = domain.ok_or_else(|| {
            invalid(format!("say the whole of the user: mimi://<domain>/u/{}", args.user))
        })?;
        UserUri::of(&domain, &args.user)
    }
    .map_err(|error| invalid(error.to_string()))?;
    let client = ClientUri::of(&user, &args.device).map_err(|error| invalid(error.to_string()))?;
    let registration = Registration {
        client: client.clone(),
        server,
        token: args.token.as_bytes().to_vec(),
        authorization,
    };
    make_private(home)?;
    let database = home.join(DATABASE);
    let was_there = database.exists();
    let was_registered = was_there && open(home).is_ok();
    let registered = Client::register(Home::open(&database)?, registration, system_clock()).await;
    let registered = match registered {
        Ok(registered) => registered,
        Err(error) => {
            let nothing_sent = matches!(error, ClientError::Http(HttpError::Untrusted { .. }));
            let knows_nothing = matches!(error, ClientError::Refused(_)) || nothing_sent;
            if knows_nothing && !was_there {
                // the provider knows nothing of these keys: the next try begins from nothing
                for suffix in ["", "-wal", "-shm"] {
                    let _ = std::fs::remove_file(home.join(format!("{DATABASE}{suffix}")));
                }
            }
            if !database.exists() || matches!(error, ClientError::Invalid(_)) {
                return Err(error);
            }
            return Err(invalid(format!(
                "{error}; {} keeps the keys of this try: register again there, or delete it, or use another \
                 --home",
                home.display()
            )));
        }
    };
    let groups = registered.member().groups()?.len();
    let line = if was_registered {
        format!("{client} goes to its provider's new address from now on")
    } else if groups > 0 {
        format!("registered {client}; it joined {groups} groups of its user")
    } else {
        format!("registered {client}")
    };
    out.say(json!({ "client": client, "groups": groups }), line);
    Ok(())
}

pub(super) fn endpoints_file(args: &Register) -> Option<PathBuf> {
    let default = PathBuf::from("mimid-data/endpoints.json");
    args.endpoints.clone().or_else(|| default.exists().then_some(default))
}

pub(super) fn whoami(client: &Client, out: &Out) {
    let member = client.member();
    let uri = member.client();
    out.say(
        json!({ "client": uri, "user": uri.user(), "device": uri.device() }),
        format!("{} on device {}", uri.user(), uri.device()),
    );
}

pub(super) async fn devices(client: &Client, what: &Devices, out: &Out) -> Result<(), ClientError> {
    match what {
        Devices::List => {
            let member = client.member();
            let user = member.client().user();
            let mut devices = vec![member.client().clone()];
            for group in member.groups()? {
                devices.extend(
                    group.members.into_iter().filter(|it| it.user == user).map(|it| it.client),
                );
            }
            devices.sort();
            devices.dedup();
            for device in devices {
                let here = if &device == member.client() { "  (this one)" } else { "" };
                out.say(json!({ "client": device }), format!("{device}{here}"));
            }
        }
        Devices::Authorize { file } => {
            let authorization = client.authorize_device()?;
            let text = serde_json::to_string(&authorization)
                .map_err(|error| invalid(error.to_string()))?;
            write_secret(file, text.as_bytes())?;
            out.say(
                json!({ "file": file }),
                format!(
                    "{0} holds your user key. On the new device:\n  mimid client register {1} --device NAME --authorization {0}\nthen delete the file",
                    file.display(),
                    authorization.user
                ),
            );
        }
        Devices::Delete { device } => {
            let uri = own_device(client, device)?;
            client.delete_device(&uri).await?;
            out.say(
                json!({ "deleted": uri }),
                format!("{uri} is deleted; its groups remove it with their next change"),
            );
        }
    }
    Ok(())
}
