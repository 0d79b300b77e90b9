//! What must stay secret: it is in no log, shows in no `{:?}`, and nobody else on the machine can read it.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use ciborium::Value as Cbor;
use mimid::{
    client::{Registration, Server},
    crypto::{BoxKey, SigningKey},
    server::Endpoints,
    wire::{
        codec::Secret,
        ids::{ClientUri, Domain},
    },
};

use crate::serve::MIMID;

/// A secret and what it is.
struct Known {
    what: String,
    bytes: Vec<u8>,
    /// So many at the beginning are looked for.
    least: usize,
}

/// Eight bytes do not come by chance, and texts that are cut short begin with as many.
const ENOUGH: usize = 8;

impl Known {
    fn new(what: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        let known = Self { what: what.into(), bytes: bytes.into(), least: ENOUGH };
        assert!(known.bytes.len() >= ENOUGH, "{} is too short to look for", known.what);
        known
    }

    /// A text that begins with a word which others use, too.
    fn text(what: &str, text: &str) -> Self {
        Self { least: text.len(), ..Self::new(what, text) }
    }

    /// How its beginning may be written: as it is, hex, lists of numbers, escaped, base64 of both alphabets.
    fn forms(&self) -> Vec<Vec<u8>> {
        let begin = &self.bytes[..self.least];
        let numbers: Vec<_> = begin.iter().map(u8::to_string).collect();
        let lists = [
            format!("{begin:x?}"),
            format!("{begin:02x?}"),
            format!("{begin:#?}"),
            format!("{begin:#x?}"),
        ];
        // without the brackets, behind which a longer one goes on, and the comma of one on lines of its own
        let lists =
            lists.map(|list| list[1..list.len() - 1].trim_end_matches([',', '\n']).to_owned());
        // six bytes are eight whole digits
        let base64 = base64(&self.bytes[..self.bytes.len().min(9) / 3 * 3]);
        let url = base64.replace('+', "-").replace('/', "_");
        let hex = hex::encode(begin);
        let texts = [hex.to_uppercase(), hex, numbers.join(", "), numbers.join(","), base64, url];
        let escaped = [begin.escape_ascii().to_string()];
        let texts = texts.into_iter().chain(lists).chain(escaped);
        texts.map(String::into_bytes).chain([begin.to_vec()]).collect()
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |n: u32| char::from(DIGITS[(n & 63) as usize]);
    let three = |part: &[u8]| {
        let n = u32::from_be_bytes([0, part[0], part[1], part[2]]);
        [digit(n >> 18), digit(n >> 12), digit(n >> 6), digit(n)]
    };
    bytes.chunks_exact(3).flat_map(three).collect()
}

/// What of `secrets` stands in `text`, which may be hundreds of MB: it is looked through once.
fn found<'a>(text: &[u8], secrets: &'a [Known]) -> Vec<&'a str> {
    let mut may_begin = vec![false; 1 << 24];
    let first_three = |bytes: &[u8]| {
        usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2])
    };
    let forms: Vec<(Vec<u8>, &str)> = secrets
        .iter()
        .flat_map(|it| it.forms().into_iter().map(|form| (form, it.what.as_str())))
        .collect();
    let mut by_begin: HashMap<&[u8], Vec<(&[u8], &'a str)>> = HashMap::new();
    for (form, what) in &forms {
        may_begin[first_three(form)] = true;
        by_begin.entry(&form[..ENOUGH]).or_default().push((form, what));
    }
    let mut found = BTreeSet::new();
    for at in 0..text.len().saturating_sub(ENOUGH - 1) {
        let here = &text[at..];
        if !may_begin[first_three(here)] {
            continue;
        }
        for (form, what) in by_begin.get(&here[..ENOUGH]).into_iter().flatten() {
            if here.starts_with(form) {
                found.insert(*what);
            }
        }
    }
    found.into_iter().collect()
}

#[test]
fn a_secret_is_found_in_a_text_however_it_is_written() {
    let secret = [Known::new("it", *b"\xfb\xff\x01 a secret of some bytes")];
    for form in secret[0].forms() {
        let text = [b"before ", form.as_slice(), b" behind"].concat();
        assert_eq!(found(&text, &secret), ["it"], "{form:?}");
    }
    assert_eq!(base64(b"Many hands"), "TWFueSBoYW5k");
    let bytes = &secret[0].bytes;
    for whole in [
        format!("{bytes:?}"),
        format!("{bytes:x?}"),
        format!("{bytes:02x?}"),
        format!("{bytes:#?}"),
        format!("{bytes:#x?}"),
        format!("b\"{}\"", bytes.escape_ascii()),
    ] {
        assert_eq!(found(whole.as_bytes(), &secret), ["it"], "{whole}");
    }
    assert!(found(b"nothing of the kind", &secret).is_empty());
}

#[test]
fn what_holds_a_secret_does_not_show_it() {
    let seed = *b"a seed that is a secret, 32 byte";
    let secret = [Known::new("it", seed)];
    let client = ClientUri::new("mimi://a.example/d/alice/phone").unwrap();
    let server = Server { url: "https://a.example".into(), certificate: None };
    let registration = Registration { client, server, token: seed.to_vec(), authorization: None };
    let token = Secret::<255>::new(seed).unwrap();
    for shown in [
        format!("{:?}", SigningKey::from_seed(seed).unwrap()),
        format!("{:?}", BoxKey::from_bytes(seed).unwrap()),
        format!("{token:?} {:?}", Some(vec![token.clone()])),
        format!("{registration:?}"),
    ] {
        assert!(found(shown.as_bytes(), &secret).is_empty(), "{shown}");
    }
}

/// Runs with the umask that gives everything to everybody.
fn wide_open(folder: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "umask 000; exec \"$0\" \"$@\"", MIMID]).current_dir(folder);
    for name in ["MIMID_CONFIG", "MIMID_DATA_DIR", "MIMID_HOME"] {
        command.env_remove(name);
    }
    // of mimid and of every library
    command.env("RUST_LOG", "trace").env("MIMID_LOG__LEVEL", "trace,mimid=trace");
    command
}

/// Everything below `folder` that somebody else could read or write: what lies in a folder that is closed to them is not.
fn open_to_others(folder: &Path) -> Vec<PathBuf> {
    let mut open = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.permissions().mode() & 0o077 == 0 {
            continue;
        }
        if metadata.is_dir() {
            open.extend(open_to_others(&path));
        }
        open.push(path);
    }
    open
}

/// The secrets of a provider's keys folder.
fn of_provider(data: &Path) -> Vec<Known> {
    let mut secrets = Vec::new();
    for entry in fs::read_dir(data.join("keys")).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name == "tls.pem" {
            // the line in the middle is of the key itself
            let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('-')).collect();
            secrets.push(Known::new(name, lines[lines.len() / 2]));
        } else if name.ends_with(".json") {
            let file: serde_json::Value = serde_json::from_str(&text).unwrap();
            private_of_json(&name, &file, &mut secrets);
        }
    }
    secrets
}

fn private_of_json(name: &str, value: &serde_json::Value, secrets: &mut Vec<Known>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (field, value) in fields {
                match value.as_str() {
                    Some(text) if ["private", "key", "user_key"].contains(&field.as_str()) => {
                        let bytes = hex::decode(text).unwrap();
                        // PKCS#8 begins the same for all: its end is the key
                        let begin = if bytes.len() > 64 { 36 } else { 0 };
                        secrets.push(Known::new(format!("{name} {field}"), &bytes[begin..]));
                    }
                    _ => private_of_json(name, value, secrets),
                }
            }
        }
        serde_json::Value::Array(items) => {
            items.iter().for_each(|item| private_of_json(name, item, secrets));
        }
        _ => {}
    }
}

/// The secrets of a client's home: its keys, its queue tokens, what contacts gave each other.
fn of_client(database: &Path) -> Vec<Known> {
    const TOKEN: i64 = 6;
    let connection = rusqlite::Connection::open(database).unwrap();
    let mut rows = connection.prepare("SELECT kind, value FROM mimid_record").unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let name = database.file_name().unwrap().to_str().unwrap();
    let mut secrets = Vec::new();
    for row in rows {
        let (kind, bytes): (i64, Vec<u8>) = row.unwrap();
        let value: Cbor = ciborium::from_reader(bytes.as_slice()).unwrap();
        if kind == TOKEN {
            // a token begins with the number of its key
            let token = bytes_of(&value).unwrap();
            secrets.push(Known::new(format!("{name}: a queue token"), &token[8..]));
        }
        private_of_cbor(name, &value, &mut secrets);
    }
    secrets.extend(of_mls(name, &connection));
    secrets
}

/// What openmls keeps in a client's home: private keys of KeyPackages, leaves and paths, and the secrets of epochs. The ratchets of
/// messages are not among them: they are kept in another encoding, and go with each message.
fn of_mls(name: &str, connection: &rusqlite::Connection) -> Vec<Known> {
    const PRIVATE: [&str; 3] = [
        "SELECT key_pair FROM openmls_encryption_keys",
        "SELECT key_pairs FROM openmls_epoch_keys_pairs",
        "SELECT key_package FROM openmls_key_packages",
    ];
    const SECRET: &str = "SELECT group_data FROM openmls_group_data \
        WHERE data_type IN ('group_epoch_secrets', 'resumption_psk_store')";
    let values = |query: &str| {
        let mut rows = connection.prepare(query).unwrap();
        let rows = rows.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
        // a record may be of more than one value
        let values = rows.flat_map(|row| {
            let row = row.unwrap();
            let mut rest = row.as_slice();
            std::iter::from_fn(|| {
                (!rest.is_empty()).then(|| ciborium::from_reader(&mut rest).unwrap())
            })
            .collect::<Vec<Cbor>>()
        });
        values.collect::<Vec<_>>()
    };
    let mut secrets = Vec::new();
    for query in PRIVATE {
        values(query).iter().for_each(|value| lists_of_cbor(name, "", value, &mut secrets));
    }
    secrets.retain(|it| it.what.contains(" private"));
    let epochs = values(SECRET);
    epochs.iter().for_each(|value| lists_of_cbor(name, "", value, &mut secrets));
    // it is shown to users, who compare it
    secrets.retain(|it| !it.what.contains("epoch_authenticator"));
    secrets
}

/// Every list of bytes in `value` that is as long as a key, named by the fields above it.
fn lists_of_cbor(name: &str, above: &str, value: &Cbor, secrets: &mut Vec<Known>) {
    const KEY_BYTES: usize = 32;
    if let Some(bytes) = bytes_of(value) {
        if bytes.len() >= KEY_BYTES {
            secrets.push(Known::new(format!("{name}:{above}"), bytes));
        }
        return;
    }
    match value {
        Cbor::Map(fields) => {
            for (field, value) in fields {
                let above = format!("{above} {}", field.as_text().unwrap_or_default());
                lists_of_cbor(name, &above, value, secrets);
            }
        }
        Cbor::Array(items) => {
            items.iter().for_each(|item| lists_of_cbor(name, above, item, secrets));
        }
        _ => {}
    }
}

fn private_of_cbor(name: &str, value: &Cbor, secrets: &mut Vec<Known>) {
    match value {
        Cbor::Map(fields) => {
            for (field, value) in fields {
                let field = field.as_text().unwrap_or_default();
                let is_secret =
                    ["private", "their_token", "our_token", "join_code"].contains(&field);
                match bytes_of(value).filter(|_| is_secret) {
                    Some(bytes) => {
                        let begin = if bytes.len() > 64 { 36 } else { 0 };
                        secrets.push(Known::new(format!("{name} {field}"), &bytes[begin..]));
                    }
                    None => private_of_cbor(name, value, secrets),
                }
            }
        }
        Cbor::Array(items) => items.iter().for_each(|item| private_of_cbor(name, item, secrets)),
        _ => {}
    }
}

fn bytes_of(value: &Cbor) -> Option<Vec<u8>> {
    match value {
        Cbor::Bytes(bytes) => Some(bytes.clone()),
        Cbor::Array(items) if items.len() >= ENOUGH => {
            items.iter().map(|it| u8::try_from(it.as_integer()?).ok()).collect()
        }
        _ => None,
    }
}

#[test]
fn a_whole_play_at_trace_level_and_umask_000_tells_nobody_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("play");
    let played = wide_open(folder.path()).args(["demo", "--keep"]).arg(&kept).output().unwrap();
    let stderr = String::from_utf8_lossy(&played.stderr);
    assert!(played.status.success(), "{}", stderr.lines().rev().take(20).collect::<String>());

    assert_eq!(open_to_others(folder.path()), Vec::<PathBuf>::new());

    let mut secrets = vec![
        Known::text("a message", "message 1 of "),
        Known::new("a streamed message", *b"streamed 0"),
    ];
    let mut logs = vec![("the clients".to_owned(), played.stderr)];
    let mut homes = 0;
    for domain in ["a.example", "b.example"] {
        secrets.extend(of_provider(&kept.join(domain).join("data")));
        logs.push((domain.to_owned(), fs::read(kept.join(domain).join("log")).unwrap()));
    }
    for entry in fs::read_dir(&kept).unwrap().chain(sub_folders(&kept)) {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|it| it == "sqlite") {
            secrets.extend(of_client(&path));
            homes += 1;
        }
    }
    assert!(homes >= 4 && secrets.len() > 50, "{homes} homes, {} secrets", secrets.len());
    for kind in ["private_init_key", "private_encryption_key", "private_key", "init_secret", "psk"]
    {
        assert!(secrets.iter().any(|it| it.what.contains(kind)), "no {kind} to look for");
    }
    for (whose, log) in &logs {
        // the client library says nothing unless something goes wrong
        let speaks = |what: &[u8]| log.windows(what.len()).any(|part| part == what);
        // h2's, of all libraries
        let speaks = speaks(b"FramedRead");
        assert!(whose == "the clients" || speaks, "{whose} log at trace level, libraries' too");
        assert_eq!(found(log, &secrets), Vec::<&str>::new(), "in the log of {whose}");
    }
}

fn sub_folders(folder: &Path) -> impl Iterator<Item = std::io::Result<fs::DirEntry>> {
    let folders = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    folders.filter(|path| path.is_dir()).flat_map(|path| fs::read_dir(path).unwrap())
}

/// A provider at trace level that asks for a token.
struct Provider {
    child: Child,
    folder: tempfile::TempDir,
}

const TOKEN: &str = "swordfish-of-the-operator";

impl Provider {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = wide_open(folder.path())
            .args(["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"])
            .env("MIMID_REGISTRATION__MODE", "token")
            .env("MIMID_REGISTRATION_TOKEN", TOKEN)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut provider = Self { child, folder };
        while !String::from_utf8_lossy(&provider.log()).contains("Stop it") {
            assert!(provider.child.try_wait().unwrap().is_none(), "it ended");
            std::thread::yield_now();
        }
        provider
    }

    fn log(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("log")).unwrap()
    }

    /// What a command writes to stderr, whether it succeeds or not.
    fn client(&self, home: &str, args: &[&str], works: bool) -> Vec<u8> {
        let home_args = ["client", "--home", home];
        let output = wide_open(self.folder.path()).args(home_args).args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.success(), works, "{args:?}: {said}");
        output.stderr
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_users_are_given_and_say_is_in_no_log() {
    let provider = Provider::start();
    let data = provider.folder.path().join("mimid-data");
    let _ = Endpoints::read(&data).unwrap();
    let mut logs = Vec::new();
    let mut run = |home: &str, args: &[&str], works: bool| {
        logs.extend(provider.client(home, args, works));
    };
    let wrong = "guessed-by-a-stranger";
    run("c", &["register", "carol", "--token", wrong], false);
    run("a", &["register", "alice", "--token", TOKEN], true);
    run("b", &["register", "bob", "--token", TOKEN], true);
    run("a", &["devices", "authorize", "--file", "authorization.json"], true);
    run(
        "a2",
        &["register", "alice", "--device", "two", "--authorization", "authorization.json"],
        true,
    );
    run("a", &["connect", "bob"], true);
    run("b", &["accept", "alice"], true);
    run("a", &["create", "team"], true);
    run("a", &["add", "team", "bob"], true);
    run("a", &["send", "team", "the plan is secret"], true);
    run("b", &["receive"], true);
    run("b", &["send", "nowhere", "lost words of bob"], false);
    let mut operator = |args: &[&str]| {
        let output = wide_open(provider.folder.path()).args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {said}");
        logs.extend([output.stdout, output.stderr].concat());
    };
    let data_dir = data.to_str().unwrap();
    operator(&["keys", "rotate", "--purpose", "external-sender", "--data-dir", data_dir]);
    // who has it may ask the running provider for everything
    let backup_key = fs::read_to_string(data.join("backup.key")).unwrap();
    operator(&["backup", "--data-dir", data_dir, "backup"]);
    operator(&["verify", "backup"]);
    operator(&["restore", "backup", "restored"]);
    operator(&["store", "copy", "restored", "copied"]);
    operator(&["verify", "copied"]);
    logs.extend(provider.log());

    let mut secrets = of_provider(&data);
    for home in ["a", "a2", "b"] {
        for entry in fs::read_dir(provider.folder.path().join(home)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|it| it == "db" || it == "sqlite") {
                secrets.extend(of_client(&path));
            }
        }
    }
    let file = fs::read(provider.folder.path().join("authorization.json")).unwrap();
    private_of_json("authorization", &serde_json::from_slice(&file).unwrap(), &mut secrets);
    let clients = secrets.len();
    assert!(clients > 20, "{clients} secrets");
    for text in [TOKEN, wrong, "the plan is secret", "lost words of bob"] {
        secrets.push(Known::new(text, text));
    }
    secrets.push(Known::new("what opens a backup", backup_key.trim()));
    let [restored, copied] =
        ["restored", "copied"].map(|made| of_provider(&provider.folder.path().join(made)));
    let keys = of_provider(&data).len();
    assert!(restored.len() == keys && copied.len() == keys, "they have the same keys");
    assert_eq!(found(&logs, &secrets), Vec::<&str>::new());

    // only what is not secret is open: what the test itself and the client's shell made
    let open = open_to_others(provider.folder.path());
    assert_eq!(open, [provider.folder.path().join("log")]);
    let domain: Domain = Endpoints::read(&data).unwrap().domain;
    assert_eq!(domain.as_str(), "localhost");
}
