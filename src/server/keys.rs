//! The node's secrets, in `keys/` of the data folder: what boxes queue tokens, what signs as the hub, the TLS key. What
//! signs for other providers is in [`super::s2s_keys`], the hub's keys are in [`super::sender_keys`].
//!
//! Made at the first start, with mode 0600 in a folder of 0700, and never replaced by themselves (but for the
//! self-signed certificate): a lost token key makes every queue token void. A file that others can read is refused.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::{Zeroize, Zeroizing};

use super::sender_keys::{SenderKeyFile, Senders};
use crate::{
    crypto::{BoxKey, CryptoError},
    queue::token::TokenKeys,
    store::make_folder,
    wire::{
        extensions::SignatureScheme,
        ids::{Domain, Timestamp},
    },
};

/// Why the node has no keys to run with; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("{path} can be read by others (mode {mode:04o}): run `chmod {wanted:o} {path}`", path = path.display())]
    Permissions { path: PathBuf, mode: u32, wanted: u32 },
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(
        "{path} is not a key file of mimid ({what}): restore it from a backup; without it queue tokens and groups' \
         external senders are void",
        path = path.display()
    )]
    Damaged { path: PathBuf, what: String },
    #[error("a key cannot be made: {0}")]
    Crypto(#[from] CryptoError),
    #[error("the self-signed certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("a key file cannot be written: {0}")]
    Json(#[from] serde_json::Error),
    #[error(
        "there is no {path} yet: a provider that federates makes it at its first start",
        path = path.display()
    )]
    NeverMade { path: PathBuf },
    #[error(
        "there are {count} keys of one scheme already, each in groups that have not replaced it yet: wait until the oldest \
         is gone (`mimid keys list`), which takes a commit in each of those groups"
    )]
    TooMany { count: usize },
    #[error(
        "there are {count} retired keys of one scheme that others verify with where groups went: `mimid keys list` shows \
         them, `mimid keys forget FINGERPRINT` lets go of one for good"
    )]
    TooManyRetired { count: usize },
    #[error("there is no retired key with the fingerprint {print}: see `mimid keys list`")]
    NotRetired { print: String },
    #[error(
        "a rotation is under way: the next key signs from {signs_from} (milliseconds since 1970)"
    )]
    Rotating { signs_from: Timestamp },
}

/// What a node signs and boxes with.
#[derive(Debug)]
pub struct NodeKeys {
    pub token_keys: TokenKeys,
    /// The hub's keys: one or more in groups for each scheme of [`SCHEMES`].
    pub external_senders: Senders,
    /// Where those are from.
    pub sender_file: SenderKeyFile,
}

/// Certificate chain and key of the client listener.
pub struct TlsFiles {
    pub chain_pem: Vec<u8>,
    pub key_pem: Zeroizing<Vec<u8>>,
    /// The certificate that clients must be told to trust, where no public authority vouches for it.
    pub self_signed: Option<PathBuf>,
}

/// The schemes of the ciphersuites that groups have: 1 and 3, and 2.
pub const SCHEMES: [SignatureScheme; 2] =
    [SignatureScheme::ED25519, SignatureScheme::ECDSA_SECP256R1_SHA256];

impl NodeKeys {
    /// Reads the keys of `data_dir`, and makes those that were never made.
    ///
    /// # Errors
    /// [`KeysError`]
    pub fn open(data_dir: &Path, now: Timestamp) -> Result<Self, KeysError> {
        let folder = keys_folder(data_dir)?;
        let token_keys = token_keys(&folder.join("token.json"))?;
        let (sender_file, external_senders) = SenderKeyFile::open(data_dir, now)?;
        Ok(Self { token_keys, external_senders, sender_file })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenKeysFile {
    /// The one for new tokens first.
    keys: Vec<TokenKeyRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenKeyRecord {
    id: u32,
    key: String,
}

fn token_keys(path: &Path) -> Result<TokenKeys, KeysError> {
    let file = read_or_make(path, || {
        let key = hex::encode(*BoxKey::generate()?.to_bytes());
        Ok(TokenKeysFile { keys: vec![TokenKeyRecord { id: 1, key }] })
    })?;
    held(file, path)
}

/// The keys in `file`, which is at `path`.
pub(super) fn held(file: TokenKeysFile, path: &Path) -> Result<TokenKeys, KeysError> {
    let mut keys = Vec::new();
    for mut record in file.keys {
        let bytes =
            hex::decode(&record.key).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        record.key.zeroize();
        let bytes = bytes.ok_or_else(|| damaged(path, "a key is not 32 bytes in hex"))?;
        keys.push((record.id, BoxKey::from_bytes(bytes)?));
    }
    TokenKeys::new(keys).map_err(|_| damaged(path, "no key, or two of one id"))
}

/// The operator's own certificate and key.
///
/// # Errors
/// Where a file cannot be read, or the key can be read by everyone.
pub fn operators_tls(certificate: &Path, key: &Path) -> Result<TlsFiles, KeysError> {
    let mode = mode_of(key)?;
    // a group may read it, as Debian's ssl-cert does
    if mode & 0o007 != 0 {
        return Err(KeysError::Permissions { path: key.to_owned(), mode, wanted: 0o640 });
    }
    let (chain_pem, key_pem) = (read(certificate)?, Zeroizing::new(read(key)?));
    Ok(TlsFiles { chain_pem, key_pem, self_signed: None })
}

/// A self-signed certificate for `domain` and loopback: kept while a client that trusts it would take it for another
/// month, else made anew.
///
/// # Errors
/// [`KeysError`]
pub fn self_signed_tls(data_dir: &Path, domain: &Domain) -> Result<TlsFiles, KeysError> {
    let (certificate_path, key_path) =
        (data_dir.join("certificate.pem"), keys_folder(data_dir)?.join("tls.pem"));
    if certificate_path.exists() && key_path.exists() {
        check_private(&key_path, 0o600)?;
        let (chain_pem, key_pem) = (read(&certificate_path)?, Zeroizing::new(read(&key_path)?));
        if is_good_for(&chain_pem, &key_pem, domain, MONTH) {
            return Ok(TlsFiles { chain_pem, key_pem, self_signed: Some(certificate_path) });
        }
        tracing::info!(certificate = %certificate_path.display(), "the self-signed certificate is renewed");
    }
    let (chain_pem, key_pem) = make_self_signed(domain, SystemTime::now(), YEAR)?;
    let key_pem = Zeroizing::new(key_pem);
    // key first: a certificate without its key is made anew, and so is one with another key
    write_file(&key_path, &key_pem, 0o600)?;
    write_file(&certificate_path, &chain_pem, 0o644)?;
    Ok(TlsFiles { chain_pem, key_pem, self_signed: Some(certificate_path) })
}

fn make_self_signed(
    domain: &Domain,
    now: SystemTime,
    valid: Duration,
) -> Result<(Vec<u8>, Vec<u8>), KeysError> {
    let mut names = vec![domain.as_str().to_owned()];
    for name in ["localhost", "127.0.0.1", "::1"] {
        if name != domain.as_str() {
            names.push(name.to_owned());
        }
    }
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, format!("mimid {domain}"));
    // rustls takes no certificate that is marked as an authority for a server's
    params.is_ca = IsCa::ExplicitNoCa;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = epoch + since.saturating_sub(DAY);
    params.not_after = epoch + since + valid;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem().into_bytes(), key.serialize_pem().into_bytes()))
}

/// Whether the pair works, and a client that trusts the certificate would take it for `domain` in `ahead`.
fn is_good_for(chain_pem: &[u8], key_pem: &[u8], domain: &Domain, ahead: Duration) -> bool {
    let judge = || {
        crate::http::server_tls(chain_pem, key_pem).ok()?;
        let certificate = CertificateDer::from_pem_slice(chain_pem).ok()?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).ok()?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().ok()?;
        let name = ServerName::try_from(domain.as_str()).ok()?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        for at in [since, since + ahead] {
            let at = UnixTime::since_unix_epoch(at);
            verifier.verify_server_cert(&certificate, &[], &name, &[], at).ok()?;
        }
        Some(())
    };
    judge().is_some()
}

pub(super) fn keys_folder(data_dir: &Path) -> Result<PathBuf, KeysError> {
    let folder = data_dir.join("keys");
    make_folder(&folder).map_err(|source| KeysError::File { path: folder.clone(), source })?;
    check_private(&folder, 0o700)?;
    Ok(folder)
}

pub(super) fn read_or_make<T: Serialize + DeserializeOwned>(
    path: &Path,
    make: impl FnOnce() -> Result<T, KeysError>,
) -> Result<T, KeysError> {
    if path.exists() {
        check_private(path, 0o600)?;
        let mut bytes = read(path)?;
        let value = serde_json::from_slice(&bytes);
        bytes.zeroize();
        return value.map_err(|error| damaged(path, &error.to_string()));
    }
    let value = make()?;
    write_secret(path, &value)?;
    Ok(value)
}

pub(super) fn write_secret<T: Serialize>(path: &Path, value: &T) -> Result<(), KeysError> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    let written = write_file(path, &bytes, 0o600);
    bytes.zeroize();
    written
}

/// Refuses what anyone but its owner can read.
fn check_private(path: &Path, wanted: u32) -> Result<(), KeysError> {
    let mode = mode_of(path)?;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(KeysError::Permissions { path: path.to_owned(), mode, wanted })
}

fn mode_of(path: &Path) -> Result<u32, KeysError> {
    let metadata =
        fs::metadata(path).map_err(|source| KeysError::File { path: path.to_owned(), source })?;
    Ok(metadata.permissions().mode() & 0o7777)
}

fn read(path: &Path) -> Result<Vec<u8>, KeysError> {
    fs::read(path).map_err(|source| KeysError::File { path: path.to_owned(), source })
}

fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), KeysError> {
    write_atomically(path, bytes, mode)
        .map_err(|source| KeysError::File { path: path.to_owned(), source })
}

/// Writes beside `path`, syncs and renames: a crash leaves the old file or the new one.
pub(super) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
    // an old one of a crash may have another mode
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    fs::File::open(folder)?.sync_all()
}

pub(super) fn damaged(path: &Path, what: &str) -> KeysError {
    KeysError::Damaged { path: path.to_owned(), what: what.to_owned() }
}

const DAY: Duration = Duration::from_secs(24 * 3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
const YEAR: Duration = Duration::from_secs(397 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn domain() -> Domain {
        Domain::new("a.example").unwrap()
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn keys_are_made_once_for_their_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let first = NodeKeys::open(folder.path(), NOW).unwrap();
        let again = NodeKeys::open(folder.path(), NOW.plus_ms(1)).unwrap();
        let publics = |keys: &NodeKeys| {
            keys.external_senders
                .held
                .iter()
                .map(|key| (key.key.scheme(), key.key.public().clone(), key.not_before))
                .collect::<Vec<_>>()
        };
        assert_eq!(publics(&first), publics(&again));
        assert_eq!(publics(&first).iter().map(|key| key.0).collect::<Vec<_>>(), SCHEMES);
        let keys = folder.path().join("keys");
        assert_eq!(mode_of(&keys).unwrap(), 0o700);
        for file in ["token.json", "external-senders.json"] {
            assert_eq!(mode_of(&keys.join(file)).unwrap(), 0o600, "{file}");
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        NodeKeys::open(folder.path(), NOW).unwrap();
        let token = folder.path().join("keys/token.json");
        chmod(&token, 0o640);
        let refused = NodeKeys::open(folder.path(), NOW).unwrap_err().to_string();
        assert!(refused.contains("mode 0640"), "{refused}");
        assert!(refused.ends_with(&format!("`chmod 600 {}`", token.display())), "{refused}");
        chmod(&token, 0o600);
        chmod(&folder.path().join("keys"), 0o755);
        let refused = NodeKeys::open(folder.path(), NOW).unwrap_err().to_string();
        assert!(refused.contains("chmod 700"), "{refused}");
    }

    #[test]
    fn a_damaged_key_file_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        NodeKeys::open(folder.path(), NOW).unwrap();
        let token = folder.path().join("keys/token.json");
        for damage in ["", "{}", r#"{"keys":[]}"#, r#"{"keys":[{"id":1,"key":"00"}]}"#] {
            fs::write(&token, damage).unwrap();
            let refused = NodeKeys::open(folder.path(), NOW).unwrap_err();
            assert!(matches!(refused, KeysError::Damaged { .. }), "{damage}: {refused}");
            assert_eq!(fs::read_to_string(&token).unwrap(), damage);
        }
    }

    #[test]
    fn the_certificate_is_kept_until_its_domain_or_its_time_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let first = self_signed_tls(folder.path(), &domain()).unwrap();
        let again = self_signed_tls(folder.path(), &domain()).unwrap();
        assert_eq!(first.chain_pem, again.chain_pem);
        assert_eq!(mode_of(&folder.path().join("keys/tls.pem")).unwrap(), 0o600);

        let other = self_signed_tls(folder.path(), &Domain::new("b.example").unwrap()).unwrap();
        assert_ne!(first.chain_pem, other.chain_pem, "another domain needs another certificate");

        let (old, key) = make_self_signed(&domain(), SystemTime::now(), MONTH / 2).unwrap();
        assert!(is_good_for(&old, &key, &domain(), Duration::ZERO));
        assert!(!is_good_for(&old, &key, &domain(), MONTH));
        write_file(&folder.path().join("certificate.pem"), &old, 0o644).unwrap();
        write_file(&folder.path().join("keys/tls.pem"), &key, 0o600).unwrap();
        let renewed = self_signed_tls(folder.path(), &domain()).unwrap();
        assert!(is_good_for(&renewed.chain_pem, &renewed.key_pem, &domain(), MONTH));
    }

    #[test]
    fn an_operators_key_may_be_for_a_group_but_not_for_everyone() {
        let folder = tempfile::tempdir().unwrap();
        let (chain, key) = make_self_signed(&domain(), SystemTime::now(), YEAR).unwrap();
        let (chain_path, key_path) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        fs::write(&chain_path, chain).unwrap();
        fs::write(&key_path, key).unwrap();
        chmod(&key_path, 0o644);
        let refused = operators_tls(&chain_path, &key_path).err().unwrap().to_string();
        assert!(refused.contains("chmod 640"), "{refused}");
        chmod(&key_path, 0o640);
        assert!(operators_tls(&chain_path, &key_path).is_ok());
    }
}
