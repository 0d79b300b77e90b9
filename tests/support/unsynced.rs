//! A folder whose changes are lost with the power, but for those that a sync has made last: `unsynced.c`, compiled and loaded into
//! a process. It takes a C compiler.

#![allow(dead_code, reason = "each binary uses a part of it")]

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
};

pub struct Unsynced {
    under: PathBuf,
    beside: PathBuf,
    lies: bool,
}

impl Unsynced {
    /// Of `under`; what the layer needs for itself is made in `beside`, a folder on the same disk that is not there yet. Where it
    /// `lies`, syncs say that they are done and nothing lasts.
    pub fn new(under: &Path, beside: &Path, lies: bool) -> Self {
        let layer = Self { under: under.to_owned(), beside: beside.to_owned(), lies };
        std::fs::create_dir_all(layer.grave()).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/unsynced.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-shared", "-fPIC", "-o"]).arg(layer.library()).arg(source);
        let said = compiler.args(["-ldl", "-lpthread"]).output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        layer
    }

    pub fn under(&self) -> &Path {
        &self.under
    }

    /// The power of this process goes with [`Unsynced::cut`].
    pub fn load_into(&self, process: &mut Command) {
        process
            .env("LD_PRELOAD", self.library())
            .env("UNSYNCED_UNDER", &self.under)
            .env("UNSYNCED_GRAVE", self.grave())
            .env("UNSYNCED_CUT", self.is_cut());
        if self.lies {
            process.env("UNSYNCED_LIES", "1");
        }
    }

    /// The power of this process goes when it has ended, whatever it says.
    pub fn load_until_the_end(&self, process: &mut Command) {
        self.load_into(process);
        process.env("UNSYNCED_END", "1");
    }

    pub fn power_on(&self) {
        let _ = std::fs::remove_file(self.is_cut());
    }

    /// The process that has it loaded loses everything that is not synced, and ends.
    pub fn cut(&self) -> io::Result<()> {
        std::fs::write(self.is_cut(), "")
    }

    /// Removes what the layer has kept, once nobody uses it.
    pub fn forget(&self) {
        std::fs::remove_dir_all(self.grave()).unwrap();
        std::fs::create_dir(self.grave()).unwrap();
    }

    fn library(&self) -> PathBuf {
        self.beside.join("unsynced.so")
    }

    fn grave(&self) -> PathBuf {
        self.beside.join("grave")
    }

    fn is_cut(&self) -> PathBuf {
        self.beside.join("cut")
    }
}
