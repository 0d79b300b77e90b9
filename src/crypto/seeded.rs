//! Randomness that a simulation can repeat, on one thread. Tests only.
//!
//! Not of the seed, for openmls' HPKE takes none: what is sealed to others' keys, and with it the secrets of epochs that somebody joins
//! by himself. Its lengths are always the same, those of P-256 signatures were not.

use std::cell::RefCell;

use aws_lc_rs::{
    encoding::{AsBigEndian as _, EcPrivateKeyBin},
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use openmls_traits::{
    crypto::OpenMlsCrypto as _,
    types::{HpkeAeadType, HpkeConfig, HpkeKdfType, HpkeKemType, SignatureScheme},
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

/// A signature as RFC 6979 has it, without chance. Those by chance are of 70 to 72 bytes.
pub(super) fn p256_signature(key: &EcdsaKeyPair, message: &[u8]) -> Option<Vec<u8>> {
    SEEDED.with_borrow(Option::is_some).then(|| {
        let private: EcPrivateKeyBin<'_> = key.private_key().as_be_bytes().unwrap();
        let scheme = SignatureScheme::ECDSA_SECP256R1_SHA256;
        MlsCrypto::default().sign(scheme, message, private.as_ref()).unwrap()
    })
}
