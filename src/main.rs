//! The binary: what it was asked for on the command line is in `mimid::cli`.
fn main() {}
