//! `mimid check-config`: the configuration that `serve` would run with, or all that is wrong with it.

use std::{path::PathBuf, process::ExitCode};

use super::{FAILED, USAGE, serve};
use crate::{http, server::keys};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file, as with --config
    file: Option<PathBuf>,
    #[command(flatten)]
    serve: serve::Args,
}

/// Prints every setting as TOML to stdout; problems go to stderr.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let mut serve = args.serve.clone();
    if let Some(file) = &args.file {
        serve.config = Some(file.clone());
    }
    let config = match serve.load() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(USAGE);
        }
    };
    print!("{}", config.show());
    let files = [
        ("client", &config.client.certificate, &config.client.key),
        ("federation", &config.federation.certificate, &config.federation.key),
    ];
    for (section, certificate, key) in files {
        let (Some(certificate), Some(key)) = (certificate, key) else { continue };
        let checked = keys::operators_tls(certificate, key)
            .map_err(|error| error.to_string())
            .and_then(|files| {
                http::server_tls(&files.chain_pem, &files.key_pem)
                    .map_err(|error| error.to_string())
            });
        if let Err(error) = checked {
            eprintln!("{section}.certificate, {section}.key: {error}");
            return ExitCode::from(FAILED);
        }
    }
    eprintln!("the configuration is good");
    ExitCode::SUCCESS
}
