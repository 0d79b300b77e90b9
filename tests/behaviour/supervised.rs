//! `mimid serve` under a service manager: what it says by sd_notify, and the unit in ops/.

use std::{
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{providers::PATIENCE, serve::MIMID};

/// Hears what a provider tells who supervises it.
struct Manager {
    socket: UnixDatagram,
    child: Child,
}

impl Manager {
    fn start(folder: &Path) -> Self {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = Command::new(MIMID)
            .args(["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"])
            .current_dir(folder)
            .env_remove("MIMID_CONFIG")
            .env_remove("MIMID_DATA_DIR")
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", Duration::from_secs(1).as_micros().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { socket, child }
    }

    fn hears(&self) -> String {
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_service_manager_hears_that_it_is_up_that_it_is_alive_and_that_it_stops() {
    let folder = tempfile::tempdir().unwrap();
    let mut manager = Manager::start(folder.path());
    let up = manager.hears();
    assert!(up.contains("READY=1") && up.contains("STATUS=serves localhost"), "{up}");
    assert!(folder.path().join("mimid-data/endpoints.json").exists(), "only once it serves");
    for _ in 0..3 {
        assert_eq!(manager.hears().trim(), "WATCHDOG=1");
    }
    manager.signal("-HUP");
    assert_eq!(manager.hears().trim(), "WATCHDOG=1", "it reads its files again and lives on");
    manager.signal("-TERM");
    while manager.hears().trim() != "STOPPING=1" {}
    assert!(manager.child.wait().unwrap().success());
}

#[test]
fn the_unit_is_one_that_systemd_takes() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("ops/mimid.service");
    let text = std::fs::read_to_string(&unit).unwrap();
    // systemd looks whether it is there
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("mimid.service");
    std::fs::write(&copy, text.replace("/usr/local/bin/mimid", MIMID)).unwrap();
    let verified =
        Command::new("systemd-analyze").arg("verify").arg("--man=no").arg(&copy).output();
    let Ok(verified) = verified else {
        println!("not run: there is no systemd here");
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && !said.contains("mimid.service"), "{said}");
}
