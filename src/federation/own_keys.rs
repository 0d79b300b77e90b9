//! This provider's own keys: which one signs now, and what others are told of them. PROTOCOL.md §4, "Keys rotate".
//!
//! A key is published from when it is known until it ends, and signs from its `not_before` until a later one begins: so a
//! next key is published before it signs, and the last one stays listed until its `not_after`. Deliberately absent:
//! the file that holds them (`server::keys`).

use crate::{
    crypto::SigningKey,
    group::RetiredKey,
    wire::{
        client::{VerificationKey, VerificationKeyResponse},
        codec::{List, Opaque},
        ds::ProtocolVersion,
        ids::{Domain, Timestamp},
    },
};

/// A key of this provider that others verify with, and the time in which they may.
#[derive(Debug, Clone)]
pub struct ProviderKey {
    pub key: SigningKey,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

/// How long others may keep what they were told: a next key is published at least so long before it signs.
pub const PUBLISHED_FOR_MS: u64 = 60 * 60 * 1000;

/// The one of `keys` that signs at `now`: of those in force the one that began last.
#[must_use]
pub fn signing_at(keys: &[ProviderKey], now: Timestamp) -> Option<&ProviderKey> {
    keys.iter()
        .filter(|key| key.not_before <= now && now <= key.not_after)
        .max_by_key(|key| key.not_before)
}

/// What others are told: all of `keys` that have not ended, those that are yet to begin included.
#[must_use]
pub fn published(
    domain: &Domain,
    keys: &[ProviderKey],
    purpose: &[u8],
    now: Timestamp,
) -> VerificationKeyResponse {
    let told = keys.iter().filter(|key| now <= key.not_after).filter_map(|key| {
        Some(VerificationKey {
            scheme: key.key.scheme(),
            public_key: Opaque::new(key.key.public().as_slice()).ok()?,
            not_before: key.not_before,
            not_after: key.not_after,
            purpose: Opaque::new(purpose).ok()?,
        })
    });
    VerificationKeyResponse {
        version: ProtocolVersion::MIMI10,
        domain: domain.clone(),
        // a handful of keys of at most 256 bytes
        keys: List::new(told.collect()).unwrap_or_default(),
        cache_until: now.plus_ms(PUBLISHED_FOR_MS),
    }
}

/// `response` with `retired` behind the keys in it. They have ended: nothing new is verified with them.
#[must_use]
pub fn with_retired(
    response: VerificationKeyResponse,
    retired: &[RetiredKey],
    purpose: &[u8],
) -> VerificationKeyResponse {
    let retired = retired.iter().filter_map(|key| {
        Some(VerificationKey {
            scheme: key.scheme(),
            public_key: Opaque::new(key.public().as_slice()).ok()?,
            not_before: key.since(),
            not_after: key.retired_at(),
            purpose: Opaque::new(purpose).ok()?,
        })
    });
    let keys = response.keys.clone().into_vec().into_iter().chain(retired).collect();
    // some 64 of each scheme, of a hundred bytes
    let keys = List::new(keys).unwrap_or_else(|_| response.keys.clone());
    VerificationKeyResponse { keys, ..response }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        federation::message::{PURPOSE_EXTERNAL_SENDER, PURPOSE_S2S, is_in_force},
        wire::extensions::SignatureScheme,
    };

    fn key(not_before: u64, not_after: u64) -> ProviderKey {
        ProviderKey {
            key: SigningKey::generate(SignatureScheme::ED25519).unwrap(),
            not_before: Timestamp(not_before),
            not_after: Timestamp(not_after),
        }
    }

    #[test]
    fn the_next_key_is_told_before_it_signs_and_the_last_one_after() {
        let domain = Domain::new("a.example").unwrap();
        let keys = [key(0, 150), key(100, u64::MAX)];
        let signs = |now| signing_at(&keys, Timestamp(now)).map(|key| key.not_before.0);
        let told = |now| published(&domain, &keys, PURPOSE_S2S, Timestamp(now)).keys.len();
        assert_eq!((signs(99), told(99)), (Some(0), 2));
        assert_eq!((signs(100), told(100)), (Some(100), 2));
        assert_eq!((signs(150), told(150)), (Some(100), 2));
        assert_eq!((signs(151), told(151)), (Some(100), 1));
        assert_eq!(signing_at(&keys[..1], Timestamp(151)).map(|key| key.not_before), None);
    }

    #[test]
    fn a_retired_key_stays_listed_behind_the_others_and_is_not_in_force() {
        let domain = Domain::new("a.example").unwrap();
        let (old, purpose) = (key(0, u64::MAX).key, PURPOSE_EXTERNAL_SENDER);
        let retired =
            RetiredKey::erased(old.scheme(), old.public().clone(), Timestamp(3), Timestamp(100));
        let now = published(&domain, &[key(50, u64::MAX)], purpose, Timestamp(101));
        let told = with_retired(now.clone(), &[retired], purpose);
        assert_eq!((told.keys.len(), &told.keys[0]), (2, &now.keys[0]));
        let last = &told.keys[1];
        assert_eq!(last.public_key.as_slice(), old.public().as_slice());
        assert_eq!((last.not_before, last.not_after), (Timestamp(3), Timestamp(100)));
        assert!(is_in_force(&told.keys[0], purpose, Timestamp(101)));
        assert!(!is_in_force(last, purpose, Timestamp(101)));
    }
}
