//! `mimid keys`: the keys that others verify this provider with, and their rotation. It works on the data folder, whether
//! the provider runs or not; one that runs reads the folder again within a minute, or at SIGHUP.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Subcommand, ValueEnum};

use super::{FAILED, USAGE, serve};
use crate::{
    actors::{Clock, clock::SystemClock},
    crypto::sha256,
    federation::ProviderKey,
    server::{
        keys::KeysError,
        s2s_keys::{self, Urgency},
        sender_keys,
    },
    store::records::KeyPrint,
    wire::{extensions::SignatureScheme, ids::Timestamp},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show every key that others know or will know: purpose, scheme, fingerprint, times
    List(Folder),
    /// Make the next key. One for other providers signs in a bit more than an hour, when all of them know it; one for
    /// groups stands in new groups at once, and in each older one when a member has committed it
    Rotate(Rotate),
    /// Let go of a retired key of groups for good, by its fingerprint: for one that somebody else may have, or to make room.
    /// Groups that left while it signed can then be followed only by who follows them already
    Forget(Forget),
}

#[derive(Debug, clap::Args)]
struct Forget {
    /// As `mimid keys list` shows it
    fingerprint: String,
    #[command(flatten)]
    folder: Folder,
}

#[derive(Debug, clap::Args)]
struct Rotate {
    /// What the key is for
    #[arg(long, value_enum, default_value_t = Purpose::S2s)]
    purpose: Purpose,
    /// Sign with the new key at once and drop the old one: for a key that somebody else may have (s2s only: in a group
    /// only the old key can put the new one into its place)
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    folder: Folder,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Purpose {
    /// Signs the messages to other providers
    S2s,
    /// Signs what this provider proposes in the groups that it hosts
    ExternalSender,
}

/// Whose keys.
#[derive(Debug, clap::Args)]
struct Folder {
    /// The provider's configuration, which names its data folder
    #[arg(long, value_name = "FILE", env = "MIMID_CONFIG")]
    config: Option<PathBuf>,
    /// The provider's data folder
    #[arg(long, value_name = "DIR", env = "MIMID_DATA_DIR")]
    data_dir: Option<String>,
}

/// Prints to stdout; problems go to stderr.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let folder = match &args.command {
        Command::List(folder) => folder,
        Command::Rotate(rotate) => &rotate.folder,
        Command::Forget(forget) => &forget.folder,
    };
    let data_dir = match folder.path() {
        Ok(data_dir) => data_dir,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(USAGE);
        }
    };
    if !data_dir.join("keys").exists() {
        let folder = data_dir.display();
        eprintln!("mimid: no keys in {folder}: `mimid serve` makes them at its first start");
        return ExitCode::from(FAILED);
    }
    if let Command::Rotate(Rotate { purpose: Purpose::ExternalSender, now: true, .. }) =
        &args.command
    {
        eprintln!(
            "mimid: --now is for s2s keys: a key of groups is replaced by a proposal that the old one signs, so that one \
             stays until each group has committed it; new groups have the new key at once anyway"
        );
        return ExitCode::from(USAGE);
    }
    let now = SystemClock.now();
    let told = match &args.command {
        Command::List(_) => list(&data_dir, now),
        Command::Rotate(rotate) => turn(rotate, &data_dir, now),
        Command::Forget(which) => forget(&which.fingerprint, &data_dir),
    };
    match told {
        Ok(told) => {
            println!("{told}");
            ExitCode::SUCCESS
        }
        Err(KeysError::Rotating { signs_from }) => {
            let when = utc(signs_from);
            eprintln!(
                "mimid: a rotation is under way: the next key signs from {when}; --now would not wait for it"
            );
            ExitCode::from(FAILED)
        }
        Err(error) => {
            eprintln!("mimid: {error}");
            ExitCode::from(FAILED)
        }
    }
}

impl Folder {
    fn path(&self) -> Result<PathBuf, crate::server::ConfigError> {
        let args = serve::Args {
            config: self.config.clone(),
            domain: None,
            data_dir: self.data_dir.clone(),
            listen: None,
            ops_listen: None,
        };
        Ok(args.load()?.data_dir)
    }
}

fn list(data_dir: &Path, now: Timestamp) -> Result<String, KeysError> {
    let s2s = s2s_keys::list(data_dir)?;
    let mut lines = vec![line("PURPOSE", "SCHEME", "SHA-256 OF THE PUBLIC KEY", "WHEN")];
    for key in &s2s {
        let when = if s2s_keys::is_signing(&s2s, key, now) {
            format!("signs{}", until(key))
        } else if key.not_before > now {
            format!("published; signs from {}", utc(key.not_before))
        } else {
            format!("signed before; listed{}", until(key))
        };
        lines.push(line("s2s", &scheme(key), &fingerprint(key), &when));
    }
    let senders = sender_keys::list(data_dir)?;
    for key in &senders.held {
        let since = utc(key.not_before);
        let when = if sender_keys::is_newest(&senders.held, key) {
            format!("in new groups since {since}")
        } else {
            format!("replaced, of {since}; in groups that have not committed a newer one yet")
        };
        lines.push(line("external-sender", &scheme(key), &fingerprint(key), &when));
    }
    for key in &senders.retired {
        let answers = match key.answers() {
            Some((_, until)) if !key.is_over(now) => {
                format!("; answers for its promises until {}", utc(until))
            }
            Some(_) | None => String::new(),
        };
        let when = format!("retired {}; proves moves{answers}", utc(key.retired_at()));
        let print = hex::encode(key.print().0);
        lines.push(line("external-sender", &scheme_name(key.scheme()), &print, &when));
    }
    Ok(lines.join("\n"))
}

fn turn(rotate: &Rotate, data_dir: &Path, now: Timestamp) -> Result<String, KeysError> {
    match rotate.purpose {
        Purpose::S2s => {}
        Purpose::ExternalSender => {
            sender_keys::rotate(data_dir, now)?;
            return Ok("There is a new key for each signature scheme. A provider that runs takes them within a minute (or \
                       at SIGHUP):\nnew groups have them, and older ones are proposed them, some hundred a minute; a group \
                       has its own when a\nmember has committed the proposal. The old keys stay until no group has them; \
                       see `mimid keys list`, and the metric\nmimid_group_hub_keys_old."
                .to_owned());
        }
    }
    let urgency = if rotate.now { Urgency::AtOnce } else { Urgency::Orderly };
    let rotated = s2s_keys::rotate(data_dir, urgency, now)?;
    let told = match urgency {
        Urgency::Orderly => format!(
            "The next key signs from {} on; the present one stays listed until {}.\nA provider that runs publishes it \
             within a minute (or at SIGHUP); leave it running, or start it before the key signs.",
            utc(rotated.signs_from),
            utc(rotated.last_until)
        ),
        Urgency::AtOnce => "The new key signs from now on; every other is dropped.\nA provider that runs takes it within \
                            a minute: send it SIGHUP to have it do so now. Other providers may believe the old key for as \
                            long as they keep their copy of the list: an hour."
            .to_owned(),
    };
    Ok(told)
}

fn forget(fingerprint: &str, data_dir: &Path) -> Result<String, KeysError> {
    let bytes = hex::decode(fingerprint).ok().and_then(|bytes| bytes.try_into().ok());
    let unknown = || KeysError::NotRetired { print: fingerprint.to_owned() };
    sender_keys::forget(data_dir, KeyPrint(bytes.ok_or_else(unknown)?))?;
    Ok("The key proves and answers nothing any more. A provider that runs lets go of it within a minute (or at SIGHUP); others \
        may believe it for as long as they keep their copy of the list: an hour."
        .to_owned())
}

fn line(purpose: &str, scheme: &str, fingerprint: &str, when: &str) -> String {
    format!("{purpose:<16} {scheme:<8} {fingerprint:<33} {when}")
}

fn scheme(key: &ProviderKey) -> String {
    scheme_name(key.key.scheme())
}

fn scheme_name(scheme: SignatureScheme) -> String {
    match scheme {
        SignatureScheme::ED25519 => "ed25519".to_owned(),
        SignatureScheme::ECDSA_SECP256R1_SHA256 => "p256".to_owned(),
        other => format!("0x{:04x}", other.0),
    }
}

fn fingerprint(key: &ProviderKey) -> String {
    hex::encode(&sha256(key.key.public().as_slice())[..16])
}

fn until(key: &ProviderKey) -> String {
    if key.not_after.0 == u64::MAX {
        return String::new();
    }
    format!(" until {}", utc(key.not_after))
}

/// "2026-11-21 05:23:55 UTC". The calendar is Howard Hinnant's `civil_from_days`: years begin in March, so that the
/// leap day is a year's last.
fn utc(at: Timestamp) -> String {
    let seconds = at.0 / 1000;
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{keys::NodeKeys, s2s_keys::S2sKeyFile};

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    #[test]
    fn times_are_those_of_the_calendar() {
        for (at, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_799, "2000-02-29 23:59:59 UTC"),
            (1_700_000_000, "2023-11-14 22:13:20 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(Timestamp(at * 1000)), text);
        }
    }

    #[test]
    fn every_key_is_listed_with_what_it_does() {
        let folder = tempfile::tempdir().unwrap();
        NodeKeys::open(folder.path(), NOW).unwrap();
        S2sKeyFile::open(folder.path(), NOW).unwrap();
        let before = list(folder.path(), NOW).unwrap();
        assert_eq!(before.lines().filter(|line| line.ends_with(" signs")).count(), 1, "{before}");
        assert_eq!(before.matches("external-sender").count(), 2, "{before}");
        let purpose = Purpose::S2s;
        let folder_of = Folder { config: None, data_dir: None };
        let rotate = Rotate { purpose, now: false, folder: folder_of };
        let told = turn(&rotate, folder.path(), NOW).unwrap();
        assert!(told.contains("2023-11-14 23:23:20 UTC"), "{told}");
        let during = list(folder.path(), NOW).unwrap();
        assert!(during.contains("signs until 2023-11-14 23:33:20 UTC"), "{during}");
        assert!(during.contains("published; signs from 2023-11-14 23:23:20 UTC"), "{during}");
        let after = list(folder.path(), NOW.plus_ms(75 * 60 * 1000)).unwrap();
        assert!(after.contains("signed before; listed until"), "{after}");
    }

    #[test]
    fn a_key_of_groups_is_replaced_and_stays_listed() {
        let folder = tempfile::tempdir().unwrap();
        NodeKeys::open(folder.path(), NOW).unwrap();
        let folder_of = Folder { config: None, data_dir: None };
        let rotate = Rotate { purpose: Purpose::ExternalSender, now: false, folder: folder_of };
        let before = list(folder.path(), NOW).unwrap();
        let told = turn(&rotate, folder.path(), NOW.plus_ms(1000)).unwrap();
        assert!(told.contains("mimid_group_hub_keys_old"), "{told}");
        let after = list(folder.path(), NOW).unwrap();
        let of = |text: &str, what: &str| {
            let lines = text.lines().filter(|line| line.contains(what));
            lines.map(|line| line.split_whitespace().nth(2).unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(of(&after, "in new groups since 2023-11-14 22:13:21 UTC").len(), 2, "{after}");
        assert_eq!(
            of(&after, "replaced, of 2023-11-14 22:13:20 UTC"),
            of(&before, "in new groups")
        );
    }

    #[test]
    fn a_retired_key_is_listed_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let NodeKeys { mut sender_file, external_senders, .. } =
            NodeKeys::open(folder.path(), NOW).unwrap();
        let held = external_senders.held;
        sender_keys::rotate(folder.path(), NOW.plus_ms(1000)).unwrap();
        let prints: Vec<KeyPrint> = held
            .iter()
            .map(|key| crate::wire::extensions::PublicKey::as_slice(key.key.public()))
            .map(|public| KeyPrint(sha256(public)[..16].try_into().unwrap()))
            .collect();
        let (at, until) = (NOW.plus_ms(1000), NOW.plus_ms(2000));
        sender_file.retire(&prints, at, until).unwrap();
        let told = list(folder.path(), NOW).unwrap();
        let answers = "retired 2023-11-14 22:13:21 UTC; proves moves; answers for its promises until 2023-11-14 22:13:22 UTC";
        assert_eq!(told.matches(answers).count(), 2, "{told}");
        let later = list(folder.path(), until).unwrap();
        assert_eq!(later.lines().filter(|line| line.ends_with("proves moves")).count(), 2);
        let print = fingerprint(&held[0]);
        assert!(told.contains(&print), "{told}");
        forget(&print, folder.path()).unwrap();
        assert!(!list(folder.path(), NOW).unwrap().contains(&print));
        for unknown in [print.as_str(), "no hex", ""] {
            let error = forget(unknown, folder.path()).unwrap_err();
            assert!(matches!(error, KeysError::NotRetired { .. }), "{error}");
        }
    }
}
