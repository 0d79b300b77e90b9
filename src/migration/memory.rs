//! What a provider remembers of a group's moves, and for how long. Whoever may still ask about a move must get the answer that
//! it got before; what nobody can ask about any more is let go of.

use crate::wire::ids::Timestamp;

/// What is remembered of one group's moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// When the group left the last time; none while it is here.
    pub left_at: Option<Timestamp>,
    /// How it came the last time.
    pub came: Option<CameAt>,
    /// The target of the last move from here is still to be told that it is known here: the proof is in what is remembered.
    pub confirms: bool,
}

/// How a group came here, as far as it matters for how long that is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CameAt {
    pub at: Timestamp,
    pub here: bool,
    pub confirmed: bool,
}

/// For how long moves are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// It is told for so long where a group has gone.
    pub forward_ms: u64,
    /// So long are the nonces of this provider good, from when it gave them.
    pub response_ms: u64,
}

impl Memory {
    /// Whether nothing of it needs to be known any more: the group left long ago and its target knows that this is known,
    /// and whoever it came from before has confirmed that it knows. By then the nonce that it came by has expired, too: a
    /// content that comes late would else be taken once more.
    #[must_use]
    pub fn is_forgotten(&self, keep: &Keep, now: Timestamp) -> bool {
        let old = |at| now.ms_since(at) >= keep.forward_ms;
        let gone = self.left_at.is_some_and(old);
        let settled = self.came.is_none_or(|came| {
            let expired = now.ms_since(came.at) >= keep.response_ms.saturating_add(CLOCK_BACK_MS);
            came.confirmed && !came.here && old(came.at) && expired
        });
        gone && settled && !self.confirms
    }
}

/// Until when it is remembered that a nonce was refused which expires then.
#[must_use]
pub fn refused_until(expires_at: Timestamp) -> Timestamp {
    expires_at.plus_ms(CLOCK_BACK_MS)
}

/// Whether a refusal that is remembered `until` then needs to be known no more: the nonce is refused for its age.
#[must_use]
pub fn is_refusal_forgotten(until: Timestamp, now: Timestamp) -> bool {
    until < now
}

/// What became of a nonce is remembered so much longer than it could be used: a clock may be set back.
pub const CLOCK_BACK_MS: u64 = 24 * 60 * 60 * 1000;
