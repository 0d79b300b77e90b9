//! `mimid serve` under a service manager: what it says by sd_notify, and the unit in ops/.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use mimid::server::Endpoints;

use crate::{
    not_run::not_run,
    providers::{PATIENCE, eventually_in_sync, free_address},
    serve::MIMID,
};

/// WatchdogSec: whoever is silent for longer is killed.
const WATCHDOG: Duration = Duration::from_secs(1);

/// Starts a provider as a service manager does, hears what it says, and ends it with this value.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
    child: Child,
}

impl Manager {
    fn start() -> Self {
        Self::start_with(&[], Stdio::null())
    }

    /// With these variables, and its log to `log`.
    fn start_with(set: &[(&str, &str)], log: Stdio) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        // nobody takes it while it is down
        let child = serve(folder.path(), &free_address().to_string(), set, log);
        let manager = Self { socket, folder, child };
        manager.hears_that_it_is_up();
        manager
    }

    /// In place of one that has ended: where that one was.
    fn start_again(&mut self, was: &Endpoints) {
        let listen = was.client.trim_start_matches("https://");
        self.child = serve(self.folder.path(), listen, &[], Stdio::null());
        self.hears_that_it_is_up();
    }

    fn hears_that_it_is_up(&self) {
        let up = self.hears();
        assert!(up.contains("READY=1") && up.contains("STATUS=serves localhost"), "{up}");
    }

    /// What is said next, within `limit`.
    fn hears_within(&self, limit: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(limit)).unwrap();
        let mut bytes = [0; 4096];
        match self.socket.recv(&mut bytes) {
            Ok(length) => Some(String::from_utf8(bytes[..length].to_vec()).unwrap()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn hears(&self) -> String {
        self.hears_within(PATIENCE).expect("it says something")
    }

    fn hears_that_it_is_alive(&self) {
        assert_eq!(self.hears().trim(), "WATCHDOG=1");
    }

    /// Whether nothing that was not said yet comes within so many times the watchdog's.
    fn is_silent_for(&self, times: u32) -> bool {
        self.hears_within(WATCHDOG * times).is_none()
    }

    /// Forgets what was said.
    fn forgets(&self) {
        self.socket.set_nonblocking(true).unwrap();
        while self.socket.recv(&mut [0; 4096]).is_ok() {}
        self.socket.set_nonblocking(false).unwrap();
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Whether each of its threads stands still.
    fn stands_still(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        threads.map(|it| fs::read_to_string(it.unwrap().path().join("stat"))).all(|stat| {
            // behind the name, which may hold anything, one letter, as proc(5) has it; or the thread has ended
            stat.is_err()
                || stat.is_ok_and(|stat| stat.rsplit_once(") ").unwrap().1.starts_with('T'))
        })
    }

    fn endpoints(&self) -> Endpoints {
        Endpoints::read(&self.folder.path().join("mimid-data")).unwrap()
    }

    fn readiness(&self) -> String {
        let ops = self.endpoints().ops;
        let mut socket = TcpStream::connect(ops.strip_prefix("http://").unwrap()).unwrap();
        write!(socket, "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }

    /// A client's command.
    fn client(&self, home: &str, args: &[&str]) -> Command {
        let mut command = Command::new(MIMID);
        command
            .args(["client", "--json", "--home", home])
            .args(args)
            .current_dir(self.folder.path())
            .env_remove("MIMID_HOME");
        command
    }

    /// What a client's command prints, which must succeed.
    fn does(&self, home: &str, args: &[&str]) -> String {
        let output = self.client(home, args).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{args:?}: {text}{error}");
        text
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(folder: &Path, listen: &str, set: &[(&str, &str)], log: Stdio) -> Child {
    // a file that may not grow is an error of the write then, and no end of the process
    Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", MIMID])
        .args(["serve", "--listen", listen, "--ops-listen", "127.0.0.1:0"])
        .current_dir(folder)
        .env_remove("MIMID_CONFIG")
        .env_remove("MIMID_DATA_DIR")
        .envs(set.iter().copied())
        .env("NOTIFY_SOCKET", folder.join("notify"))
        .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

#[test]
fn a_service_manager_hears_that_it_is_up_that_it_is_alive_and_that_it_stops() {
    let mut manager = Manager::start();
    let endpoints = manager.folder.path().join("mimid-data/endpoints.json");
    assert!(endpoints.exists(), "only once it serves");
    for _ in 0..3 {
        manager.hears_that_it_is_alive();
    }
    manager.signal("-HUP");
    // it reads its files again and lives on
    manager.hears_that_it_is_alive();
    manager.signal("-TERM");
    while manager.hears().trim() != "STOPPING=1" {}
    assert!(manager.child.wait().unwrap().success());
}

#[test]
fn who_hangs_is_silent_and_killed_for_it_serves_again_with_all_that_it_had_answered() {
    let mut manager = Manager::start();
    manager.does("a", &["register", "alice"]);
    manager.does("b", &["register", "bob"]);
    manager.does("a", &["connect", "bob"]);
    manager.does("b", &["accept", "alice"]);
    let made: serde_json::Value =
        serde_json::from_str(&manager.does("a", &["create", "team"])).unwrap();
    let group = made["group"].as_str().unwrap();
    manager.does("a", &["add", "team", "bob"]);
    manager.does("a", &["send", "team", "said before it hung"]);
    let was = manager.endpoints();

    let stop = || {
        manager.signal("-STOP");
        eventually_in_sync("it stands still", || manager.stands_still());
        manager.forgets();
        assert!(manager.is_silent_for(1), "a process that stands still says nothing");
    };
    stop();
    manager.signal("-CONT");
    // it goes on as if nothing had been
    manager.hears_that_it_is_alive();
    stop();
    // as ops/mimid.service has it
    manager.signal("-KILL");
    manager.child.wait().unwrap();
    manager.start_again(&was);
    manager.hears_that_it_is_alive();
    let told = manager.does("b", &["receive"]);
    assert!(told.contains("said before it hung"), "{told}");
    manager.does("b", &["send", group, "said behind it"]);
    let told = manager.does("a", &["receive"]);
    assert!(told.contains("said behind it"), "{told}");
}

/// Whoever takes the log stands still, so that each worker that writes a line hangs in that; all other threads go on.
#[test]
fn a_worker_that_hangs_silences_the_whole_node_until_it_goes_on() {
    let mut manager = Manager::start_with(&[("MIMID_LOG__LEVEL", "debug")], Stdio::piped());
    manager.hears_that_it_is_alive();
    let mut log = manager.child.stderr.take().unwrap();
    let client = manager.endpoints().client;
    let client: SocketAddr = client.strip_prefix("https://").unwrap().parse().unwrap();
    let deadline = Instant::now() + PATIENCE;
    // longer than a busy machine may let a node wait that hangs in nothing
    while !manager.is_silent_for(10) {
        assert!(Instant::now() < deadline, "it says that it is alive while its workers hang");
        for _ in 0..50 {
            // a handshake that fails is a line; who hangs takes no connections sooner or later
            let socket = TcpStream::connect_timeout(&client, Duration::from_millis(50));
            let _ = socket.and_then(|mut socket| socket.write_all(b"this is no handshake"));
        }
    }
    let (tell, told) = mpsc::channel();
    let reads = std::thread::spawn(move || {
        let (mut text, mut bytes) = (String::new(), [0; 4096]);
        let mut is_told = false;
        while let Ok(length @ 1..) = log.read(&mut bytes) {
            text.push_str(&String::from_utf8_lossy(&bytes[..length]));
            if !is_told && text.contains("every thread turns again") {
                is_told = true;
                tell.send(()).unwrap();
            }
        }
        text
    });
    manager.hears_that_it_is_alive();
    told.recv_timeout(PATIENCE).unwrap();
    manager.signal("-TERM");
    while manager.hears().trim() != "STOPPING=1" {}
    assert!(manager.child.wait().unwrap().success());
    let log = reads.join().unwrap();
    let line = log.lines().find(|line| line.contains("threads of this node hang")).unwrap();
    assert!(line.contains("worker of the client listener"), "{line}");
}

#[test]
fn who_has_no_room_or_can_write_no_more_says_so_and_is_not_killed_for_it() {
    let full = Manager::start_with(&[("MIMID_STORE__FREE_BYTES_MIN", "1000000GiB")], Stdio::null());
    let readiness = full.readiness();
    assert!(readiness.contains("bytes free, and"), "{readiness}");
    full.forgets();
    for _ in 0..10 {
        full.hears_that_it_is_alive();
    }
    drop(full);

    let read_only = Manager::start();
    let pid = read_only.child.id().to_string();
    let limited = Command::new("prlimit").args(["--pid", &pid, "--fsize=0"]).status();
    assert!(limited.unwrap().success());
    let register = || {
        let mut writes = read_only.client("a", &["register", "alice"]);
        writes.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    // it tries again and again, and gives up after a while
    let mut writes = register();
    eventually_in_sync("it says that it takes no writes", || {
        if writes.try_wait().unwrap().is_some() {
            writes = register();
        }
        read_only.readiness().contains("the store takes no writes")
    });
    writes.kill().unwrap();
    writes.wait().unwrap();
    read_only.forgets();
    for _ in 0..10 {
        read_only.hears_that_it_is_alive();
    }
}

#[test]
fn the_unit_is_one_that_systemd_takes() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("ops/mimid.service");
    let text = fs::read_to_string(&unit).unwrap();
    assert!(text.contains("\nStartLimitIntervalSec=0\n"), "five quick ends are not the last");
    // else systemd complains of the folder at each start
    let guide = unit.with_file_name("install.md");
    let made = fs::read_to_string(guide)
        .unwrap()
        .contains("install -d -m 0750 -o root -g mimid /etc/mimid");
    assert!(made && text.contains("\nConfigurationDirectoryMode=0750\n"));
    // systemd looks whether it is there
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("mimid.service");
    fs::write(&copy, text.replace("/usr/local/bin/mimid", MIMID)).unwrap();
    let verified =
        Command::new("systemd-analyze").arg("verify").arg("--man=no").arg(&copy).output();
    let Ok(verified) = verified else {
        not_run("systemd-analyze verify", "there is no systemd here");
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && !said.contains("mimid.service"), "{said}");
}
