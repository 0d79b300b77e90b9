//! The provider that a group comes to. Agreeing costs it nothing: what it signed comes back with the content.

use crate::wire::ids::Timestamp;

/// What this provider has written down about a group and a nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Known {
    /// The group is hosted here, is on its way elsewhere, or was deleted: it cannot come in.
    pub taken: bool,
    /// The group came in by this nonce, by the content with this hash, whatever became of it since.
    pub arrived: Option<[u8; 32]>,
    /// The nonce was refused.
    pub refused: bool,
}

/// What is done with a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is written down, and then this provider is the hub.
    Take,
    /// It was taken before: the same answer.
    Taken { hash: [u8; 32] },
    /// Never: written down first, where the nonce has not expired by itself.
    Refuse,
}

/// Judges a content for a nonce of this provider's that ends at `expires_at`. `fits`: whether everything in it is good and
/// may come here.
#[must_use]
pub fn judge_content(known: &Known, expires_at: Timestamp, now: Timestamp, fits: bool) -> Verdict {
    match known.arrived {
        Some(hash) => Verdict::Taken { hash },
        None if known.refused || known.taken || now >= expires_at || !fits => Verdict::Refuse,
        None => Verdict::Take,
    }
}

/// Judges the source's wish to end it.
#[must_use]
pub fn judge_abort(known: &Known) -> Verdict {
    match known.arrived {
        Some(hash) => Verdict::Taken { hash },
        None => Verdict::Refuse,
    }
}
