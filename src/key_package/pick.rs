//! Which of a client's KeyPackages is handed out next. PROTOCOL.md §5.

use crate::{
    policy::keys::LIFE_LEFT_MIN_MS,
    store::records::StoredKeyPackage,
    wire::{
        client::KeyPackagesLeft, extensions::KeyPackageClass, ids::Timestamp,
        key_packages::KeyPackageStatus,
    },
};

/// KeyPackages of `class` that may be handed out, the best first: by the order of `ciphersuites` (all, where that is
/// empty), the last-resort one of a ciphersuite behind its others, and the first to expire before the rest.
#[must_use]
pub fn candidates<'a>(
    held: &'a [StoredKeyPackage],
    class: KeyPackageClass,
    ciphersuites: &[u16],
    now: Timestamp,
) -> Vec<&'a StoredKeyPackage> {
    let rank = |key_package: &StoredKeyPackage| match ciphersuites {
        [] => Some(0),
        list => list.iter().position(|suite| *suite == key_package.ciphersuite),
    };
    let mut found: Vec<_> = held
        .iter()
        .filter(|key_package| is_of(key_package, class) && is_alive(key_package, now))
        .filter_map(|key_package| Some((rank(key_package)?, key_package)))
        .collect();
    found.sort_by_key(|(rank, key_package)| {
        (*rank, key_package.last_resort, key_package.not_after_s)
    });
    found.into_iter().map(|(_, key_package)| key_package).collect()
}

/// What to say where none of the candidates will do.
#[must_use]
pub fn status_without(
    held: &[StoredKeyPackage],
    class: KeyPackageClass,
    now: Timestamp,
) -> KeyPackageStatus {
    if held.iter().any(|key_package| is_of(key_package, class) && is_alive(key_package, now)) {
        KeyPackageStatus::Incompatible
    } else {
        KeyPackageStatus::NoneLeft
    }
}

/// KeyPackages that are handed out once, and live long enough to be.
#[must_use]
pub fn left(held: &[StoredKeyPackage], now: Timestamp) -> KeyPackagesLeft {
    let count = |class| {
        let single = |held: &&StoredKeyPackage| {
            is_of(held, class) && !held.last_resort && is_alive(held, now)
        };
        u32::try_from(held.iter().filter(single).count()).unwrap_or(u32::MAX)
    };
    KeyPackagesLeft {
        group_left: count(KeyPackageClass::Group),
        connection_left: count(KeyPackageClass::Connection),
    }
}

/// Whether the owner is to be told that group KeyPackages run out, when `left` are left of `before`.
#[must_use]
pub fn is_low(before: u32, left: u32, low_at: u32) -> bool {
    left == 0 || (before > low_at && left <= low_at)
}

fn is_of(key_package: &StoredKeyPackage, class: KeyPackageClass) -> bool {
    key_package.connection == (class == KeyPackageClass::Connection)
}

/// Whether it may still be handed out. One for first contact is read by one client, at once.
pub(super) fn is_alive(key_package: &StoredKeyPackage, now: Timestamp) -> bool {
    let left_ms = if key_package.connection { 0 } else { LIFE_LEFT_MIN_MS };
    key_package.not_after_s > now.plus_ms(left_ms).0 / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{codec::Opaque, ids::KeyPackageRef};

    const NOW: Timestamp = Timestamp(1_000_000);

    /// `left_s`: of its lifetime, behind what it must have.
    fn held(id: u8, ciphersuite: u16, left_s: u64, last_resort: bool) -> StoredKeyPackage {
        let not_after_s = left_s + LIFE_LEFT_MIN_MS / 1000;
        StoredKeyPackage {
            reference: KeyPackageRef(Opaque::new([id; 32]).unwrap()),
            connection: false,
            last_resort,
            ciphersuite,
            not_after_s,
            published_at: NOW,
            bytes: vec![id],
        }
    }

    fn ids(found: &[&StoredKeyPackage]) -> Vec<u8> {
        found.iter().map(|found| found.bytes[0]).collect()
    }

    #[test]
    fn order_is_ciphersuite_then_single_use_then_age() {
        let all = [
            held(1, 1, 9000, true),
            held(2, 1, 8000, false),
            held(3, 1, 7000, false),
            held(4, 2, 6000, false),
        ];
        let order = |suites: &[u16]| ids(&candidates(&all, KeyPackageClass::Group, suites, NOW));
        assert_eq!(order(&[1, 2]), [3, 2, 1, 4]);
        assert_eq!(order(&[2, 1]), [4, 3, 2, 1]);
        assert_eq!(order(&[3]), [0; 0]);
        assert_eq!(order(&[]), [4, 3, 2, 1]);
        assert!(candidates(&all, KeyPackageClass::Connection, &[], NOW).is_empty());
    }

    #[test]
    fn expired_ones_are_never_handed_out_nor_counted() {
        let all = [held(1, 1, 1000, false), held(2, 1, 1000, true), held(3, 1, 1001, false)];
        assert_eq!(ids(&candidates(&all, KeyPackageClass::Group, &[1], NOW)), [3]);
        assert_eq!(left(&all, NOW).group_left, 1);
    }

    #[test]
    fn none_left_and_incompatible_are_told_apart() {
        let expired = [held(1, 1, 1000, false)];
        let status = |held: &[_]| status_without(held, KeyPackageClass::Group, NOW);
        assert_eq!(status(&expired), KeyPackageStatus::NoneLeft);
        assert_eq!(status(&[held(1, 1, 9000, true)]), KeyPackageStatus::Incompatible);
    }

    #[test]
    fn owner_is_told_when_the_threshold_is_passed_and_at_the_end() {
        assert!(!is_low(12, 11, 10));
        assert!(is_low(11, 10, 10));
        assert!(!is_low(10, 9, 10));
        assert!(is_low(1, 0, 10));
        assert!(is_low(0, 0, 10), "the last-resort one was handed out");
    }
}
