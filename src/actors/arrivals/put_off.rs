//! Groups that wait a moment at the door: their feed still comes here from who hosted them before their source, which owes its
//! own guests what it accepted. A group that came in ahead of that would leave a hole in its clients' feeds for good.
//!
//! Only a moment, for the group stands still meanwhile, and a hub of before may be gone for good. Nothing of this lasts: after a
//! restart the moment begins anew.

use std::{collections::HashMap, sync::Mutex};

use crate::{actors::hints::locked, wire::ids::Timestamp};

/// What was put off, by nonce, and since when.
#[derive(Debug, Default)]
pub struct PutOff(Mutex<HashMap<[u8; 32], Timestamp>>);

impl PutOff {
    /// Whether what came with `nonce` waits: until `wait_ms` after it was put off first.
    pub fn waits(&self, nonce: [u8; 32], now: Timestamp, wait_ms: u64) -> bool {
        let mut since = locked(&self.0);
        since.retain(|_, since| now.ms_since(*since) <= wait_ms.max(KEPT_MS));
        let since = since.entry(nonce).or_insert(now);
        now.ms_since(*since) < wait_ms
    }
}

/// When its source is to try again.
pub const AGAIN_MS: u64 = 1_000;
/// How long it is remembered at the least that something was put off: longer than a source waits until it tries again.
const KEPT_MS: u64 = 10 * 60 * 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_waits_once_and_for_its_time() {
        let (put_off, at) = (PutOff::default(), |ms| Timestamp(1_000_000 + ms));
        assert!(put_off.waits([1; 32], at(0), 100));
        assert!(put_off.waits([2; 32], at(60), 100));
        assert!(put_off.waits([1; 32], at(99), 100));
        assert!(!put_off.waits([1; 32], at(100), 100));
        assert!(put_off.waits([2; 32], at(120), 100));
        assert!(!put_off.waits([1; 32], at(5_000), 100), "it does not begin to wait again");
        assert!(!put_off.waits([3; 32], at(5_000), 0));
        put_off.waits([4; 32], at(5_001 + KEPT_MS), 100);
        assert_eq!(locked(&put_off.0).len(), 1, "what is over is forgotten");
    }
}
