//! Hashing, signatures and boxes of the protocol, and what openmls uses for its own.
//!
//! Here: `SignWithLabel` of PROTOCOL.md §1, SHA-256, the AEAD box of queue tokens, and [`MlsCrypto`], which gives
//! openmls aws-lc-rs for what costs a server most (hashing and verification). Not here: what is signed, or when
//! a signature is asked for.

mod mls;
#[cfg(test)]
pub(crate) mod seeded;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    digest,
    rand::{SecureRandom, SystemRandom},
    signature::{self as alg, EcdsaKeyPair, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use openmls_traits::{signatures, types};
use zeroize::Zeroizing;

use crate::wire::{
    codec::{Opaque, encode},
    extensions::{PublicKey, Signature, SignatureScheme, UserKeyHashInput},
    ids::UserKeyHash,
};

pub use mls::{MlsCrypto, MlsProvider};

/// What cryptography refuses. None of its texts holds a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    #[error(
        "signature scheme {0:#06x} is not supported; use 0x0807 (Ed25519) or 0x0403 (ECDSA P-256)"
    )]
    UnsupportedScheme(u16),
    #[error("the private key is not a key of its scheme")]
    BadKey,
    #[error("the box does not open with this key")]
    BadBox,
    #[error("the cryptographic library failed")]
    Library,
}

/// A signature that does not verify, for whichever reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct BadSignature;

/// `N` bytes from the operating system's generator.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

/// As [`random`], of any length.
fn fill(bytes: &mut [u8]) {
    #[cfg(test)]
    if seeded::fill(bytes) {
        return;
    }
    #[expect(clippy::expect_used, reason = "a process without randomness must not go on")]
    SystemRandom::new().fill(bytes).expect("the operating system gives randomness");
}

/// SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

/// Compares in a time that says nothing of where they differ; only of how long they are.
#[must_use]
pub fn is_same_secret(one: &[u8], other: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(one, other).is_ok()
}

/// What stands for a user inside a group. PROTOCOL.md §1.
#[must_use]
pub fn user_key_hash(scheme: SignatureScheme, key: &PublicKey) -> UserKeyHash {
    let input = UserKeyHashInput { scheme, user_public_key: key.clone() };
    #[expect(clippy::expect_used, reason = "a SHA-256 hash has 32 bytes")]
    UserKeyHash(Opaque::new(sha256(&encode(&input))).expect("32 bytes"))
}

/// A private key of a client, a user, a leaf or a provider. Its bytes are wiped when it is dropped.
pub struct SigningKey {
    scheme: SignatureScheme,
    /// Ed25519: the seed. P-256: PKCS#8.
    private: Zeroizing<Vec<u8>>,
    public: PublicKey,
    pair: Pair,
}

enum Pair {
    Ed25519(Box<Ed25519KeyPair>),
    P256(Box<EcdsaKeyPair>),
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({:#06x}, public {:?})", self.scheme.0, self.public)
    }
}

impl Clone for SigningKey {
    fn clone(&self) -> Self {
        #[expect(clippy::expect_used, reason = "the same bytes made a key before")]
        Self::from_bytes(self.scheme, &self.private).expect("a key that was a key")
    }
}

impl SigningKey {
    /// # Errors
    /// [`CryptoError::UnsupportedScheme`]
    pub fn generate(scheme: SignatureScheme) -> Result<Self, CryptoError> {
        match scheme {
            SignatureScheme::ED25519 => Self::from_seed(random()),
            SignatureScheme::ECDSA_SECP256R1_SHA256 => {
                #[cfg(test)]
                if let Some(document) = seeded::p256_key() {
                    return Self::from_bytes(scheme, &document);
                }
                let rng = SystemRandom::new();
                let document =
                    EcdsaKeyPair::generate_pkcs8(&alg::ECDSA_P256_SHA256_ASN1_SIGNING, &rng)
                        .map_err(|_| CryptoError::Library)?;
                Self::from_bytes(scheme, document.as_ref())
            }
            other => Err(CryptoError::UnsupportedScheme(other.0)),
        }
    }

    /// An Ed25519 key from its seed, as a joining code is one.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`], which no 32 bytes are.
    pub fn from_seed(seed: [u8; 32]) -> Result<Self, CryptoError> {
        Self::from_bytes(SignatureScheme::ED25519, &seed)
    }

    /// The inverse of [`SigningKey::to_bytes`].
    ///
    /// # Errors
    /// [`CryptoError::BadKey`], [`CryptoError::UnsupportedScheme`]
    pub fn from_bytes(scheme: SignatureScheme, private: &[u8]) -> Result<Self, CryptoError> {
        let (pair, public) = match scheme {
            SignatureScheme::ED25519 => {
                let pair = Ed25519KeyPair::from_seed_unchecked(private)
                    .map_err(|_| CryptoError::BadKey)?;
                let public = pair.public_key().as_ref().to_vec();
                (Pair::Ed25519(Box::new(pair)), public)
            }
            SignatureScheme::ECDSA_SECP256R1_SHA256 => {
                let pair = EcdsaKeyPair::from_pkcs8(&alg::ECDSA_P256_SHA256_ASN1_SIGNING, private)
                    .map_err(|_| CryptoError::BadKey)?;
                let public = pair.public_key().as_ref().to_vec();
                (Pair::P256(Box::new(pair)), public)
            }
            other => return Err(CryptoError::UnsupportedScheme(other.0)),
        };
        let public = Opaque::new(public).map_err(|_| CryptoError::Library)?;
        Ok(Self { scheme, private: Zeroizing::new(private.to_vec()), public, pair })
    }

    #[must_use]
    pub fn scheme(&self) -> SignatureScheme {
        self.scheme
    }

    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// For storage where only its owner reads.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        self.private.clone()
    }

    /// `SignWithLabel(key, label, content)`. `label` is the whole of it, e.g. "DSMessageTBS".
    ///
    /// # Errors
    /// [`CryptoError::Library`]
    pub fn sign_with_label(&self, label: &str, content: &[u8]) -> Result<Signature, CryptoError> {
        let signature = self.sign_raw(&labelled(label, content))?;
        Signature::new(signature).map_err(|_| CryptoError::Library)
    }

    fn sign_raw(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        #[cfg(test)]
        if let Pair::P256(pair) = &self.pair
            && let Some(signature) = seeded::p256_signature(pair, message)
        {
            return Ok(signature);
        }
        match &self.pair {
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::P256(pair) => pair
                .sign(&SystemRandom::new(), message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| CryptoError::Library),
        }
    }
}

impl signatures::Signer for SigningKey {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, signatures::SignerError> {
        self.sign_raw(payload).map_err(|_| signatures::SignerError::SigningError)
    }

    fn signature_scheme(&self) -> types::SignatureScheme {
        match self.pair {
            Pair::Ed25519(_) => types::SignatureScheme::ED25519,
            Pair::P256(_) => types::SignatureScheme::ECDSA_SECP256R1_SHA256,
        }
    }
}

/// Verifies `SignWithLabel(…, label, content)`.
///
/// # Errors
/// [`BadSignature`], also for a scheme that is not supported and for a key that is none.
pub fn verify_with_label(
    scheme: SignatureScheme,
    public: &[u8],
    label: &str,
    content: &[u8],
    signature: &[u8],
) -> Result<(), BadSignature> {
    verify_raw(scheme, public, &labelled(label, content), signature)
}

pub(crate) fn verify_raw(
    scheme: SignatureScheme,
    public: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Result<(), BadSignature> {
    let algorithm: &'static dyn alg::VerificationAlgorithm = match scheme {
        SignatureScheme::ED25519 => &alg::ED25519,
        SignatureScheme::ECDSA_SECP256R1_SHA256 => &alg::ECDSA_P256_SHA256_ASN1,
        SignatureScheme::ECDSA_SECP384R1_SHA384 => &alg::ECDSA_P384_SHA384_ASN1,
        _ => return Err(BadSignature),
    };
    UnparsedPublicKey::new(algorithm, public).verify(message, signature).map_err(|_| BadSignature)
}

/// `struct { opaque label<V> = "MIMI 1.0 " + Label; opaque content<V>; }`
fn labelled(label: &str, content: &[u8]) -> Vec<u8> {
    let label = format!("MIMI 1.0 {label}");
    let mut bytes = Vec::with_capacity(label.len() + content.len() + 8);
    for part in [label.as_bytes(), content] {
        crate::wire::codec::append_vector(&mut bytes, part);
    }
    bytes
}

/// A symmetric key that only this provider has. Boxes are AES-256-GCM with a random nonce before them.
pub struct BoxKey {
    bytes: Zeroizing<[u8; 32]>,
    key: RandomizedNonceKey,
}

impl std::fmt::Debug for BoxKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BoxKey")
    }
}

impl BoxKey {
    /// # Errors
    /// [`CryptoError::Library`]
    pub fn generate() -> Result<Self, CryptoError> {
        Self::from_bytes(random())
    }

    /// # Errors
    /// [`CryptoError::Library`]
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, CryptoError> {
        let key =
            RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| CryptoError::Library)?;
        Ok(Self { bytes: Zeroizing::new(bytes), key })
    }

    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        self.bytes.clone()
    }

    /// # Errors
    /// [`CryptoError::Library`]
    pub fn seal(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let mut sealed = plain.to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(aad), &mut sealed)
            .map_err(|_| CryptoError::Library)?;
        let mut boxed = nonce.as_ref().to_vec();
        boxed.append(&mut sealed);
        Ok(boxed)
    }

    /// # Errors
    /// [`CryptoError::BadBox`]
    pub fn open(&self, aad: &[u8], boxed: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let (nonce, sealed) = boxed.split_at_checked(NONCE_LEN).ok_or(CryptoError::BadBox)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| CryptoError::BadBox)?;
        let mut plain = Zeroizing::new(sealed.to_vec());
        let len = self
            .key
            .open_in_place(nonce, Aad::from(aad), &mut plain)
            .map_err(|_| CryptoError::BadBox)?
            .len();
        plain.truncate(len);
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMES: [SignatureScheme; 2] =
        [SignatureScheme::ED25519, SignatureScheme::ECDSA_SECP256R1_SHA256];

    #[test]
    fn signature_is_bound_to_key_label_and_content() {
        for scheme in SCHEMES {
            let key = SigningKey::generate(scheme).unwrap();
            let other = SigningKey::generate(scheme).unwrap();
            let signature = key.sign_with_label("DSMessageTBS", b"content").unwrap();
            let check = |public: &PublicKey, label: &str, content: &[u8]| {
                verify_with_label(scheme, public.as_slice(), label, content, signature.as_slice())
            };
            assert_eq!(check(key.public(), "DSMessageTBS", b"content"), Ok(()));
            assert_eq!(check(other.public(), "DSMessageTBS", b"content"), Err(BadSignature));
            assert_eq!(check(key.public(), "UserKeyTBS", b"content"), Err(BadSignature));
            assert_eq!(check(key.public(), "DSMessageTBS", b"contents"), Err(BadSignature));
        }
    }

    #[test]
    fn stored_key_signs_as_the_one_that_was_stored() {
        for scheme in SCHEMES {
            let key = SigningKey::generate(scheme).unwrap();
            let again = SigningKey::from_bytes(scheme, &key.to_bytes()).unwrap();
            assert_eq!(key.public(), again.public());
        }
    }

    #[test]
    fn box_opens_only_with_its_key_and_context() {
        let (key, other) = (BoxKey::generate().unwrap(), BoxKey::generate().unwrap());
        let mut boxed = key.seal(b"token", b"queue").unwrap();
        assert_eq!(key.open(b"token", &boxed).unwrap().as_slice(), b"queue");
        assert_eq!(key.open(b"other", &boxed).unwrap_err(), CryptoError::BadBox);
        assert_eq!(other.open(b"token", &boxed).unwrap_err(), CryptoError::BadBox);
        assert_eq!(key.open(b"token", &boxed[..5]).unwrap_err(), CryptoError::BadBox);
        boxed[14] ^= 1;
        assert_eq!(key.open(b"token", &boxed).unwrap_err(), CryptoError::BadBox);
    }
}
