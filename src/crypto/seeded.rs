//! Randomness that a simulation can repeat, on one thread. Tests only.
//!
//! Not of the seed, for openmls' HPKE and aws-lc-rs take none: what is sealed to others' keys, with it the secrets of epochs, and the
//! bytes of P-256 signatures. Their lengths are always the same.

use std::cell::RefCell;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use openmls_traits::{
    crypto::OpenMlsCrypto as _,
    types::{HpkeAeadType, HpkeConfig, HpkeKdfType, HpkeKemType},
};
use rand::{RngCore, SeedableRng, rngs::StdRng};

use super::MlsCrypto;

thread_local! {
    static SEEDED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// From now on this thread's randomness comes of `seed`; none: of the operating system again.
pub(crate) fn seed(seed: Option<u64>) {
    SEEDED.set(seed.map(StdRng::seed_from_u64));
}

/// False where this thread has no seed.
pub(super) fn fill(bytes: &mut [u8]) -> bool {
    SEEDED
        .with_borrow_mut(|seeded| seeded.as_mut().map(|random| random.fill_bytes(bytes)).is_some())
}

/// A P-256 key in PKCS #8; aws-lc-rs would ask the operating system.
pub(super) fn p256_key() -> Option<Vec<u8>> {
    let mut of = [0; 32];
    if !fill(&mut of) {
        return None;
    }
    let config =
        HpkeConfig(HpkeKemType::DhKemP256, HpkeKdfType::HkdfSha256, HpkeAeadType::AesGcm128);
    let made = MlsCrypto::default().derive_hpke_keypair(config, &of).unwrap();
    let key = EcdsaKeyPair::from_private_key_and_public_key(
        &ECDSA_P256_SHA256_ASN1_SIGNING,
        &made.private,
        &made.public,
    );
    Some(key.unwrap().to_pkcs8v1().unwrap().as_ref().to_vec())
}

/// A signature of 71 bytes. There are some of 70 and of 72, by chance or by what is signed, and who counts bytes would see it.
pub(super) fn p256_signature(key: &EcdsaKeyPair, message: &[u8]) -> Option<Vec<u8>> {
    let is_seeded = SEEDED.with_borrow(Option::is_some);
    let mut tries = std::iter::repeat_with(|| key.sign(&SystemRandom::new(), message).unwrap());
    is_seeded.then(|| tries.find(|it| it.as_ref().len() == 71).unwrap().as_ref().to_vec())
}
