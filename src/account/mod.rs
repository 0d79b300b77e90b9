//! Who may register, and what for. PROTOCOL.md §3 ("A client and its own provider"), §7.
//!
//! Pure. Deliberately absent: the signature of the message that a registration comes in, and where accounts are kept.

use crate::crypto;

/// Who may open an account. A further device of a user is authorised by the user's key, whatever this says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registration {
    /// Anyone.
    Open,
    /// Who brings a token that the operator gave out: SHA-256 hashes of those.
    Token(Vec<[u8; 32]>),
    /// Nobody.
    Closed,
}

impl Registration {
    /// Registration by any of `tokens`.
    pub fn by_tokens<T: AsRef<[u8]>>(tokens: impl IntoIterator<Item = T>) -> Self {
        Self::Token(tokens.into_iter().map(|token| crypto::sha256(token.as_ref())).collect())
    }
}
