//! Cryptography that lies while a commit is made: of outer tests, and of the library's own.

#![allow(dead_code, reason = "each of those tests uses a part of it")]

use std::sync::atomic::{AtomicUsize, Ordering};

use openmls::prelude::OpenMlsCrypto;
use openmls_traits::types::{
    AeadType, Ciphersuite, CryptoError, ExporterSecret, HashType, HpkeCiphertext, HpkeConfig,
    HpkeKeyPair, KemOutput, SignatureScheme,
};
use tls_codec::SecretVLBytes;

/// What it does otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Crook {
    Not,
    /// Encrypts other secrets than it is told to, to everybody.
    SecretsToAll,
    /// The same, to who has this key.
    SecretsTo(Vec<u8>),
    /// The same, to all who have not.
    SecretsToAllBut(Vec<u8>),
    /// Of the pairs that are derived this one, counted from 0, has a public key of zeros: nothing can be encrypted to it. openmls
    /// derives those of a path in several threads.
    ZeroKey(usize),
}

/// The cryptography that lies, on that which does not.
#[derive(Debug)]
pub struct Crooked<C> {
    crypto: C,
    crook: Crook,
    derived: AtomicUsize,
}

impl<C> Crooked<C> {
    pub fn new(crypto: C, crook: Crook) -> Self {
        Self { crypto, crook, derived: AtomicUsize::new(0) }
    }
}

impl<C: OpenMlsCrypto> OpenMlsCrypto for Crooked<C> {
    fn hpke_seal(
        &self,
        config: HpkeConfig,
        pk_r: &[u8],
        info: &[u8],
        aad: &[u8],
        ptxt: &[u8],
    ) -> Result<HpkeCiphertext, CryptoError> {
        let lies = match &self.crook {
            Crook::Not | Crook::ZeroKey(_) => false,
            Crook::SecretsToAll => true,
            Crook::SecretsTo(victim) => victim == pk_r,
            Crook::SecretsToAllBut(friend) => friend != pk_r,
        };
        let other: Vec<u8> = ptxt.iter().map(|byte| byte ^ u8::from(lies)).collect();
        self.crypto.hpke_seal(config, pk_r, info, aad, &other)
    }
    fn derive_hpke_keypair(
        &self,
        config: HpkeConfig,
        ikm: &[u8],
    ) -> Result<HpkeKeyPair, CryptoError> {
        let mut pair = self.crypto.derive_hpke_keypair(config, ikm)?;
        let at = self.derived.fetch_add(1, Ordering::Relaxed);
        if self.crook == Crook::ZeroKey(at) {
            pair.public.fill(0);
        }
        Ok(pair)
    }

    fn supports(&self, suite: Ciphersuite) -> Result<(), CryptoError> {
        self.crypto.supports(suite)
    }
    fn supported_ciphersuites(&self) -> Vec<Ciphersuite> {
        self.crypto.supported_ciphersuites()
    }
    fn hkdf_extract(&self, t: HashType, s: &[u8], i: &[u8]) -> Result<SecretVLBytes, CryptoError> {
        self.crypto.hkdf_extract(t, s, i)
    }
    fn hmac(&self, t: HashType, k: &[u8], m: &[u8]) -> Result<SecretVLBytes, CryptoError> {
        self.crypto.hmac(t, k, m)
    }
    fn hkdf_expand(
        &self,
        t: HashType,
        prk: &[u8],
        info: &[u8],
        len: usize,
    ) -> Result<SecretVLBytes, CryptoError> {
        self.crypto.hkdf_expand(t, prk, info, len)
    }
    fn hash(&self, t: HashType, data: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.crypto.hash(t, data)
    }
    fn aead_encrypt(
        &self,
        alg: AeadType,
        key: &[u8],
        data: &[u8],
        nonce: &[u8],
        aad: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        self.crypto.aead_encrypt(alg, key, data, nonce, aad)
    }
    fn aead_decrypt(
        &self,
        alg: AeadType,
        key: &[u8],
        data: &[u8],
        nonce: &[u8],
        aad: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        self.crypto.aead_decrypt(alg, key, data, nonce, aad)
    }
    fn signature_key_gen(&self, alg: SignatureScheme) -> Result<(Vec<u8>, Vec<u8>), CryptoError> {
        self.crypto.signature_key_gen(alg)
    }
    fn verify_signature(
        &self,
        alg: SignatureScheme,
        data: &[u8],
        pk: &[u8],
        signature: &[u8],
    ) -> Result<(), CryptoError> {
        self.crypto.verify_signature(alg, data, pk, signature)
    }
    fn sign(&self, alg: SignatureScheme, data: &[u8], key: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.crypto.sign(alg, data, key)
    }
    fn hpke_open(
        &self,
        config: HpkeConfig,
        input: &HpkeCiphertext,
        sk_r: &[u8],
        info: &[u8],
        aad: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        self.crypto.hpke_open(config, input, sk_r, info, aad)
    }
    fn hpke_setup_sender_and_export(
        &self,
        config: HpkeConfig,
        pk_r: &[u8],
        info: &[u8],
        context: &[u8],
        len: usize,
    ) -> Result<(KemOutput, ExporterSecret), CryptoError> {
        self.crypto.hpke_setup_sender_and_export(config, pk_r, info, context, len)
    }
    fn hpke_setup_receiver_and_export(
        &self,
        config: HpkeConfig,
        enc: &[u8],
        sk_r: &[u8],
        info: &[u8],
        context: &[u8],
        len: usize,
    ) -> Result<ExporterSecret, CryptoError> {
        self.crypto.hpke_setup_receiver_and_export(config, enc, sk_r, info, context, len)
    }
}
