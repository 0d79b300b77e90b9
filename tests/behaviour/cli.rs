//! The binary as people use it: `mimid serve`, `mimid client`, `mimid demo`, each a process.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::serve::{MIMID, Serve};

struct Provider {
    process: Serve,
    folder: tempfile::TempDir,
}

impl Provider {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { process: Serve::start(folder.path()), folder }
    }

    fn kill_and_restart(&mut self) {
        self.process.kill_and_restart();
    }

    fn run(&self, home: &str, args: &[&str]) -> Output {
        Command::new(MIMID)
            .args(["client", "--json", "--home", home])
            .args(args)
            .current_dir(self.folder.path())
            .env_remove("MIMID_HOME")
            .output()
            .unwrap()
    }

    /// What a command prints, which must succeed.
    fn client(&self, home: &str, args: &[&str]) -> Vec<Value> {
        let output = self.run(home, args);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success(),
            "{args:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn texts(&self, home: &str) -> Vec<String> {
        let events = self.client(home, &["receive"]);
        let text = |event: &Value| event["text"].as_str().map(str::to_owned);
        events.iter().filter(|event| event["event"] == "message").filter_map(text).collect()
    }
}

#[test]
fn two_users_get_to_chat_while_the_provider_is_killed_between_any_two_steps() {
    let mut provider = Provider::start();
    provider.client("a", &["register", "alice", "--device", "phone"]);
    provider.kill_and_restart();
    provider.client("b", &["register", "bob", "--device", "phone"]);
    provider.kill_and_restart();
    provider.client("a", &["connect", "bob"]);
    provider.kill_and_restart();
    let requests = provider.client("b", &["requests"]);
    assert_eq!(requests[0]["from"], "mimi://localhost/u/alice");
    provider.client("b", &["accept", "alice"]);
    provider.kill_and_restart();
    let group = provider.client("a", &["create", "team"])[0]["group"].as_str().unwrap().to_owned();
    provider.kill_and_restart();
    provider.client("a", &["add", "team", "bob"]);
    provider.kill_and_restart();
    provider.client("b", &["name", &group, "the team"]);
    provider.client("b", &["send", "the team", "hello", "alice"]);
    provider.kill_and_restart();
    assert_eq!(provider.texts("a"), ["hello alice"]);
    provider.client("a", &["send", "team", "hello bob"]);
    provider.kill_and_restart();
    assert_eq!(provider.texts("b"), ["hello bob"]);
    assert_eq!(provider.texts("b"), Vec::<String>::new());

    // a further device joins by itself
    let registered =
        provider.client("b2", &["register", "bob", "--device", "laptop", "--from-home", "b"]);
    assert_eq!(registered[0]["groups"], 2);
    provider.kill_and_restart();
    provider.client("b2", &["send", "the team", "from the laptop"]);
    assert_eq!(provider.texts("a"), ["from the laptop"]);
    assert_eq!(provider.texts("b"), ["from the laptop"]);
    provider.kill_and_restart();
    provider.client("a", &["policy", "team", "--role", "bob=moderator"]);
    provider.client("b", &["remove", "the team", "laptop"]);
    provider.kill_and_restart();
    let members = provider.client("a", &["members", "team"]);
    assert_eq!(members[0]["members"].as_array().unwrap().len(), 2);
    let groups = provider.client("b2", &["groups", "--all"]);
    let left = groups.iter().find(|it| it["id"] == group.as_str()).unwrap();
    assert_eq!(left["state"], "Left");
}

#[test]
fn stream_shows_what_comes_while_other_commands_run_in_the_same_home() {
    let provider = Provider::start();
    provider.client("a", &["register", "alice"]);
    provider.client("b", &["register", "bob"]);
    provider.client("a", &["connect", "bob"]);
    provider.client("b", &["accept", "alice"]);
    let mut follows = Command::new(MIMID)
        .args(["client", "--json", "--home", "b", "receive", "--follow"])
        .current_dir(provider.folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(follows.stdout.take().unwrap()));
    let mut next_text = || loop {
        let event: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        if event["event"] == "message" {
            return event["text"].as_str().unwrap().to_owned();
        }
    };
    for round in 0..3 {
        provider.client("a", &["send", "bob", &format!("round {round}")]);
        assert_eq!(next_text(), format!("round {round}"));
        provider.client("b", &["send", "alice", &format!("answer {round}")]);
        assert_eq!(provider.texts("a"), [format!("answer {round}")]);
    }
    follows.kill().unwrap();
    follows.wait().unwrap();
}

#[test]
fn errors_say_what_to_do() {
    let provider = Provider::start();
    let says = |home: &str, args: &[&str]| {
        let output = provider.run(home, args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        said["error"].as_str().unwrap().to_owned()
    };
    assert!(says("nowhere", &["groups"]).contains("mimid client register"));
    provider.client("a", &["register", "alice"]);
    assert!(says("a", &["send", "team", "x"]).contains("`groups` lists them"));
    assert!(says("a", &["register", "alice"]).contains("registered already"));
    assert!(says("b", &["register", "alice"]).contains("user"));
    assert!(!Path::new(&provider.folder.path().join("b/client.sqlite")).exists());
    provider.client("a", &["create", "team"]);
    assert!(says("a", &["add", "team", "bob"]).contains("connect"));
    assert!(says("a", &["connect", "nobody"]).contains("no such user"));
    assert!(says("a", &["remove", "team", "alice/cli"]).contains("`leave`"));
    assert!(says("a", &["remove", "team", "cli"]).contains("`leave`"));
    assert!(says("a", &["remove", "team", "alice"]).contains("`leave`"));
    assert!(says("a", &["remove", "team", "bbo"]).contains("u/bbo is not in the group"));
    assert!(says("a", &["remove", "team", "bbo/phone"]).contains("is not in the group"));
    assert!(says("a", &["revoke", "nosuch"]).contains("nothing was revoked"));
    provider.client("a", &["create", "team"]);
    let ambiguous = says("a", &["send", "team", "x"]);
    assert!(ambiguous.contains("first digits"), "{ambiguous}");
    for group in provider.client("a", &["groups"]) {
        let id = group["id"].as_str().unwrap();
        let digits = &id.rsplit('/').next().unwrap()[..8];
        assert!(ambiguous.contains(&format!("{digits} ({id})")), "{ambiguous}");
        provider.client("a", &["send", digits, "to this one"]);
    }
    let gone = says("b", &["register", "bob", "--endpoints", "gone/endpoints.json"]);
    assert!(gone.contains("is it running?"), "{gone}");
}

#[test]
fn client_is_told_where_its_provider_is_now_and_believes_no_other() {
    let mut provider = Provider::start();
    provider.client("a", &["register", "alice"]);
    provider.client("a", &["create", "team"]);
    provider.process.kill_and_move();
    let failed = provider.run("a", &["send", "team", "kept"]);
    assert!(String::from_utf8_lossy(&failed.stdout).contains("`register` again"));
    let resumed = provider.run("a", &["resume"]);
    assert_eq!(resumed.status.code(), Some(1));
    let said = String::from_utf8_lossy(&resumed.stdout).into_owned();
    let said: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert!(said["error"].as_str().unwrap().starts_with("1 requests have no answer"), "{said}");

    let other = Provider::start();
    let elsewhere = other.folder.path().join("mimid-data/endpoints.json");
    let elsewhere = elsewhere.to_str().unwrap();
    let refused = provider.run("a", &["register", "alice", "--endpoints", elsewhere]);
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(!refused.status.success() && said.contains("nothing has changed"), "{said}");

    provider.client("a", &["register", "alice"]);
    assert_eq!(provider.client("a", &["resume"]).last().unwrap()["unanswered"], 0);
    provider.client("a", &["send", "team", "and on"]);
}

#[test]
fn requests_that_are_refused_are_so_for_every_command_that_made_one() {
    let provider = Provider::start();
    provider.client("a", &["register", "alice"]);
    provider.client("b", &["register", "bob"]);
    provider.client("a", &["connect", "bob"]);
    provider.client("b", &["accept", "alice"]);
    provider.client("a", &["create", "team"]);
    provider.client("a", &["add", "team", "bob"]);
    let groups = provider.client("b", &["groups"]);
    let named = |it: &&Value| it["name"] == "";
    let group = groups.iter().find(named).unwrap()["id"].as_str().unwrap().to_owned();
    provider.client("a", &["policy", "team", "--may", "send=moderator"]);
    let send = |n: usize| {
        Command::new(MIMID)
            .args(["client", "--json", "--home", "b", "send", &group, &format!("message {n}")])
            .current_dir(provider.folder.path())
            .env_remove("MIMID_HOME")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let at_once: Vec<_> = (0..6).map(send).collect();
    for command in at_once {
        let output = command.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("\"error\""), "{said}");
    }
    assert_eq!(provider.texts("a"), Vec::<String>::new());
    provider.client("a", &["policy", "team", "--may", "send=member"]);
    let at_once: Vec<_> = (0..6).map(send).collect();
    for command in at_once {
        let output = command.wait_with_output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(said["sequence"].is_u64() && said["already"].is_null(), "{said}");
    }
    assert_eq!(provider.texts("a").len(), 6);
}

#[test]
fn request_to_connect_that_was_accepted_is_not_shown_as_one_that_waits() {
    let provider = Provider::start();
    provider.client("a", &["register", "alice"]);
    provider.client("b", &["register", "bob"]);
    provider.client("a", &["connect", "bob"]);
    let lines = |args: &[&str]| {
        let output = Command::new(MIMID)
            .args(["client", "--home", "b"])
            .args(args)
            .current_dir(provider.folder.path())
            .env_remove("MIMID_HOME")
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    lines(&["accept", "alice"]);
    let shown = lines(&["receive"]);
    assert!(shown.contains("alice asked to connect\n"), "{shown}");
    assert!(!shown.contains("client accept"), "{shown}");
}

#[test]
fn option_that_is_wrong_is_named_and_no_variable() {
    let output = Command::new(MIMID).args(["serve", "--listen", "nonsense"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("option --listen: ") && !said.contains("MIMID_"), "{said}");
}

#[test]
fn demo_that_is_told_to_stop_leaves_no_provider_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let mut demo = Command::new(MIMID)
        .arg("demo")
        .env("TMPDIR", temporary.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // held to the end: who prints into a closed pipe ends by that
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(demo.stdout.take().unwrap()));
    let mut addresses = Vec::new();
    for line in lines.by_ref() {
        let line = line.unwrap();
        let Some((_, after)) = line.split_once("clients at https://") else { continue };
        addresses.push(after.split(',').next().unwrap().to_owned());
        if addresses.len() == 2 {
            break;
        }
    }
    let pid = demo.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(demo.wait().unwrap().code(), Some(1));
    for address in addresses {
        assert!(std::net::TcpStream::connect(&address).is_err(), "{address} is served");
    }
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
}

#[test]
fn demo_plays_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let kept: PathBuf = folder.path().join("demo");
    let output = Command::new(MIMID)
        .args(["demo", "--users", "4", "--messages", "2", "--seed", "7", "--keep"])
        .arg(&kept)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("Everything worked"), "{text}");
    assert!(!text.contains("broke"), "{text}");
    // groups moved and went on, by members of the hub's own provider and of the other
    for row in ["move a group", "go on at the new hub", "send-message: sent on", "move it home"] {
        let line = text.lines().find(|line| line.starts_with(row)).expect(row);
        let counts: Vec<u32> = line.split_whitespace().filter_map(|it| it.parse().ok()).collect();
        assert!(counts.len() == 3 && counts.iter().all(|count| *count > 0), "{line}");
    }
    assert!(kept.join("alice-phone.sqlite").exists());
}
