//! Groups that wait a moment at the door: their feed still comes here from who hosted them before their source, which owes its
//! own guests what it accepted. A group that came in ahead of that would leave a hole in its clients' feeds for good.
//!
//! Only a moment, for the group stands still meanwhile, and a hub of before may be gone for good. Nothing of this lasts: after a
//! restart the moment begins anew.

use std::{collections::HashMap, sync::Mutex};

use crate::{
    actors::hints::locked,
    wire::ids::{GroupId, Timestamp},
};

/// What was put off last of each group, and since when.
#[derive(Debug, Default)]
pub struct PutOff(Mutex<HashMap<GroupId, PutOffOne>>);

#[derive(Debug)]
struct PutOffOne {
    nonce: [u8; 32],
    since: Timestamp,
}

impl PutOff {
    /// When what came of `group` with `nonce` is to come again; none where it waits no longer: `wait_ms` are over since it was
    /// put off first, it would come too late, or too many wait already.
    ///
    /// The pauses double, as those of a source do that gets no answer: one that was told to come again and again would take its
    /// target for one that never answers, and ask for the group back.
    pub fn again_ms(
        &self,
        group: &GroupId,
        nonce: [u8; 32],
        now: Timestamp,
        expires_at: Timestamp,
        wait_ms: u64,
    ) -> Option<u64> {
        let mut all = locked(&self.0);
        all.retain(|_, one| now.ms_since(one.since) <= wait_ms.max(KEPT_MS));
        if all.len() >= PUT_OFF_MAX && !all.contains_key(group) {
            return None;
        }
        let one = all.entry(group.clone()).or_insert(PutOffOne { nonce, since: now });
        if one.nonce != nonce {
            *one = PutOffOne { nonce, since: now };
        }
        let waited_ms = now.ms_since(one.since);
        let left_ms = wait_ms.saturating_sub(waited_ms);
        let again_ms = waited_ms.max(AGAIN_MS).min(left_ms);
        // it takes a while until it is here again
        let in_time = now.plus_ms(again_ms.saturating_mul(2)) < expires_at;
        (left_ms > 0 && in_time).then_some(again_ms)
    }
}

/// When its source is to try again for the first time.
const AGAIN_MS: u64 = 1_000;
/// How long it is remembered at the least that something was put off: longer than a source waits until it tries again.
const KEPT_MS: u64 = 10 * 60 * 1000;
/// So many groups wait, or did lately. Any other comes in as it is, and its clients are told what they lack.
const PUT_OFF_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        actors::{departures::asks_to_refuse, moves::MoveLimits, testing::group},
        wire::ids::Domain,
    };

    const LATER: Timestamp = Timestamp(1 << 40);

    #[test]
    fn each_waits_once_and_for_its_time() {
        let (put_off, at) = (PutOff::default(), |ms| Timestamp(1_000_000 + ms));
        let again = |seed: u8, nonce: u8, ms, wait_ms| {
            put_off.again_ms(&group(seed), [nonce; 32], at(ms), LATER, wait_ms)
        };
        assert_eq!(again(1, 1, 0, 100), Some(100));
        assert_eq!(again(2, 2, 60, 100), Some(100));
        assert_eq!(again(1, 1, 99, 100), Some(1));
        assert_eq!(again(1, 1, 100, 100), None);
        assert_eq!(again(2, 2, 120, 100), Some(40));
        assert_eq!(again(1, 1, 5_000, 100), None, "it does not begin to wait again");
        assert_eq!(again(3, 3, 5_000, 0), None);
        // the group's next move is another
        assert_eq!(again(1, 7, 5_000, 100), Some(100));
        assert_eq!(again(4, 4, 5_001 + KEPT_MS, 100), Some(100));
        assert_eq!(locked(&put_off.0).len(), 1, "what is over is forgotten");
    }

    #[test]
    fn nothing_is_put_off_until_its_word_is_over_and_so_many_wait_at_the_most() {
        let (put_off, now) = (PutOff::default(), Timestamp(1_000_000));
        let again = |group: &GroupId, expires_at| {
            put_off.again_ms(group, [1; 32], now, expires_at, 30_000).is_some()
        };
        assert!(!again(&group(1), now.plus_ms(2_000)));
        assert!(again(&group(1), now.plus_ms(2_001)));
        let own = Domain::new("a.example").unwrap();
        for number in 0..2 * PUT_OFF_MAX as u64 {
            let mut id = [9; 16];
            id[..8].copy_from_slice(&number.to_be_bytes());
            let fits = number + 1 < PUT_OFF_MAX as u64;
            assert_eq!(again(&GroupId::of(&own, id), LATER), fits, "{number}");
        }
        assert_eq!(locked(&put_off.0).len(), PUT_OFF_MAX);
        assert!(again(&group(1), LATER), "who waits already goes on");
    }

    /// Asked to refuse it, the target would, and the group could never leave a source that a hub of before is dead behind.
    #[test]
    fn source_does_not_ask_for_its_group_back_while_it_waits_at_the_door() {
        let MoveLimits { retry, feed_wait_ms, .. } = MoveLimits::default();
        for random in [0, 1, 77, 1 << 20, u64::MAX / 3, u64::MAX] {
            let (put_off, mut tries, mut ms) = (PutOff::default(), 0, 0);
            while let Some(again_ms) =
                put_off.again_ms(&group(1), [1; 32], Timestamp(ms + 1), LATER, feed_wait_ms)
            {
                tries += 1;
                // on the way there and back
                ms += retry.delay_ms(tries, random).max(again_ms) + 20;
                assert!(!asks_to_refuse(tries), "after {ms} ms");
            }
            assert!(
                (feed_wait_ms..feed_wait_ms + 1_000).contains(&ms),
                "it stood still for {ms} ms"
            );
        }
    }
}
