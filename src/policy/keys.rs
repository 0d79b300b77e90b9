//! Keys that others encrypt to, in leaves, KeyPackages, paths and trees: whether anybody can.
//!
//! MLS takes any bytes there, and HPKE refuses some when something is encrypted to them. One such key in a tree and no member whose
//! path meets it could make a commit any more, nor anybody come in from outside. RFC 9180 §7.1.4; PROTOCOL.md §2.

use aws_lc_rs::agreement::{ECDH_P256, ParsedPublicKey, UnparsedPublicKey};
use openmls::prelude::{Ciphersuite, KeyPackage, LeafNode};
use openmls_traits::types::HpkeKemType;

use super::incoming::{path_of, read, read_leaf};
use crate::wire::{
    codec::{Opaque, decode, encode},
    ds::INFO_BYTES_MAX,
    mls::{MlsMessage, RatchetTree},
};

/// How much of its lifetime a group KeyPackage must have left where it is published, handed out or added, in milliseconds. MLS judges
/// lifetimes when a message is read: whoever reads the commit later than that cannot follow it, and comes in anew. PROTOCOL.md §5.
pub const LIFE_LEFT_MIN_MS: u64 = 14 * 24 * 3600 * 1000;

/// A message or tree with a key that nothing can be encrypted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("{0} has a key that nothing can be encrypted to; make a new one")]
    Key(&'static str),
    #[error("{0} cannot be read")]
    Unread(&'static str),
}

/// # Errors
/// [`Unusable`]
pub fn check_leaf(suite: Ciphersuite, leaf: &LeafNode) -> Result<(), Unusable> {
    let encoded = encode(leaf.encryption_key());
    let key: Bytes = decode(&encoded).map_err(|_| Unusable::Unread("a leaf"))?;
    check(suite, key.as_slice(), "a leaf")
}

/// Both of a KeyPackage's keys.
///
/// # Errors
/// [`Unusable`]
pub fn check_key_package(suite: Ciphersuite, key_package: &KeyPackage) -> Result<(), Unusable> {
    check(suite, key_package.hpke_init_key().as_slice(), "a KeyPackage")?;
    check_leaf(suite, key_package.leaf_node())
}

/// The keys on the path of `message`, if it is a commit that has one, with its leaf's.
///
/// # Errors
/// [`Unusable`], also of what cannot be read: openmls has read it before.
pub fn check_path(suite: Ciphersuite, message: &MlsMessage) -> Result<(), Unusable> {
    const WHAT: &str = "a commit's path";
    let unread = Unusable::Unread("the commit");
    let Some(path) = path_of(message).ok_or(unread)? else { return Ok(()) };
    let (leaf, rest) = read_leaf(path).ok_or(unread)?;
    check(suite, leaf.encryption_key.as_slice(), WHAT)?;
    let (nodes, _) = read::<Bytes>(rest).ok_or(unread)?;
    let mut rest = nodes.as_slice();
    while !rest.is_empty() {
        let (key, after) = read::<Bytes>(rest).ok_or(unread)?;
        let (_encrypted_path_secret, after) = read::<Bytes>(after).ok_or(unread)?;
        check(suite, key.as_slice(), WHAT)?;
        rest = after;
    }
    Ok(())
}

/// Every key in `tree`.
///
/// # Errors
/// As [`check_path`].
pub fn check_tree(suite: Ciphersuite, tree: &RatchetTree) -> Result<(), Unusable> {
    const WHAT: &str = "the tree";
    let unread = Unusable::Unread(WHAT);
    let (nodes, _) = read::<Bytes>(tree.as_slice()).ok_or(unread)?;
    let mut rest = nodes.as_slice();
    while !rest.is_empty() {
        let (is_there, after) = read::<u8>(rest).ok_or(unread)?;
        rest = after;
        if is_there == 0 {
            continue;
        }
        let (kind, after) = read::<u8>(rest).ok_or(unread)?;
        let (key, after) = match kind {
            LEAF => {
                let (leaf, after) = read_leaf(after).ok_or(unread)?;
                (leaf.encryption_key.into_vec(), after)
            }
            PARENT => {
                let (key, after) = read::<Bytes>(after).ok_or(unread)?;
                let (_parent_hash, after) = read::<Bytes>(after).ok_or(unread)?;
                let (_unmerged_leaves, after) = read::<Bytes>(after).ok_or(unread)?;
                (key.into_vec(), after)
            }
            _ => return Err(unread),
        };
        check(suite, &key, WHAT)?;
        rest = after;
    }
    Ok(())
}

/// Whether `tree` is a leaf and nothing else, which is seen without a signature being verified.
#[must_use]
pub fn is_one_leaf(tree: &RatchetTree) -> bool {
    let alone = || {
        let (nodes, _) = read::<Bytes>(tree.as_slice())?;
        let ((is_there, kind), leaf) = read::<(u8, u8)>(nodes.as_slice())?;
        let (_, rest) = read_leaf(leaf)?;
        Some(is_there == 1 && kind == LEAF && rest.is_empty())
    };
    alone().unwrap_or(false)
}

fn check(suite: Ciphersuite, key: &[u8], what: &'static str) -> Result<(), Unusable> {
    let usable = match suite.hpke_kem_algorithm() {
        HpkeKemType::DhKem25519 => key.try_into().is_ok_and(is_x25519),
        HpkeKemType::DhKemP256 => {
            key.len() == 65
                && key.first() == Some(&UNCOMPRESSED)
                && ParsedPublicKey::try_from(&UnparsedPublicKey::new(&ECDH_P256, key)).is_ok()
        }
        HpkeKemType::DhKemP384 | HpkeKemType::DhKemP521 | HpkeKemType::DhKem448 => false,
    };
    if usable { Ok(()) } else { Err(Unusable::Key(what)) }
}

/// All 32 bytes are a key but for the points of small order, with which every secret is zero. X25519 does not read the last bit.
fn is_x25519(mut key: [u8; 32]) -> bool {
    key[31] &= 0x7f;
    !SMALL_ORDER.contains(&key)
}

type Bytes = Opaque<INFO_BYTES_MAX>;

const LEAF: u8 = 1;
const PARENT: u8 = 2;
const UNCOMPRESSED: u8 = 4;

/// The points of small order of curve and twist, little-endian: 0, 1, two of order 8, p - 1, and p and p + 1, which are 0 and 1
/// not reduced.
const SMALL_ORDER: [[u8; 32]; 7] = [
    [
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00,
    ],
    [
        0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00,
    ],
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4,
        0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49,
        0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef,
        0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f,
        0x11, 0x57,
    ],
    [
        0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0x7f,
    ],
    [
        0xed, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0x7f,
    ],
    [
        0xee, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0x7f,
    ],
];

#[cfg(test)]
mod tests {
    use openmls_traits::{crypto::OpenMlsCrypto, types::HpkeConfig};

    use super::*;
    use crate::{client::core::SUITES, crypto::MlsCrypto};

    /// Whether HPKE itself encrypts something to `key`.
    fn seals(suite: Ciphersuite, key: &[u8]) -> bool {
        let config: HpkeConfig = suite.hpke_config();
        MlsCrypto::default().hpke_seal(config, key, b"", b"", b"secret").is_ok()
    }

    fn made(suite: Ciphersuite) -> Vec<u8> {
        let ikm = crate::crypto::random::<32>();
        MlsCrypto::default().derive_hpke_keypair(suite.hpke_config(), &ikm).unwrap().public
    }

    fn is_usable(suite: Ciphersuite, key: &[u8]) -> bool {
        check(suite, key, "it").is_ok()
    }

    #[test]
    fn a_key_is_usable_exactly_where_hpke_encrypts_to_it() {
        for suite in SUITES {
            let mut keys: Vec<Vec<u8>> = (0..20).map(|_| made(suite)).collect();
            assert!(keys.iter().all(|key| is_usable(suite, key)), "{suite:?}");
            for small in SMALL_ORDER {
                keys.push(small.to_vec());
                let mut with_last_bit = small;
                with_last_bit[31] |= 0x80;
                keys.push(with_last_bit.to_vec());
                let mut beside = small;
                beside[0] ^= 4;
                keys.push(beside.to_vec());
            }
            let good = made(suite);
            keys.extend([good[..good.len() - 1].to_vec(), [good.as_slice(), &[0]].concat()]);
            for at in 0..good.len() {
                let mut changed = good.clone();
                changed[at] ^= 0x10;
                keys.push(changed);
            }
            keys.extend([vec![], vec![0], vec![0; 65], vec![0xff; 65], vec![0xff; 32]]);
            for key in keys {
                assert_eq!(is_usable(suite, &key), seals(suite, &key), "{suite:?} {key:02x?}");
            }
        }
    }

    #[test]
    fn a_point_in_another_form_than_hpkes_is_refused() {
        let suite = SUITES[1];
        let good = made(suite);
        let compressed = [&[2 | (good[64] & 1)], &good[1..33]].concat();
        assert!(!is_usable(suite, &compressed), "RFC 9180 §7.1.1 has it uncompressed");
    }
}
