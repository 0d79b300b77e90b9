//! What a machine does not let a test do is said, and not passed over: printed, and written to the file that TEST_NOT_RUN names, which
//! `.ci/run` shows at its end.

use std::{fs::OpenOptions, io::Write as _};

pub fn not_run(what: &str, why: &str) {
    let line = format!("NOT RUN: {what} ({why})");
    println!("{line}");
    if let Ok(file) = std::env::var("TEST_NOT_RUN") {
        let mut file = OpenOptions::new().create(true).append(true).open(file).unwrap();
        writeln!(file, "{line}").unwrap();
    }
}
