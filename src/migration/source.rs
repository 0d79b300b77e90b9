//! The provider that a group leaves. What it has written down says what it may do; everything else can be lost.
//!
//! ```text
//! hosting ─ start ─> frozen ─ (durable) ─> sent ─ complete ─> gone ─ the target knows ─> over
//!    ^                 │                     │
//!    └── time, operator┘                     └─ the target's signed refusal ─> hosting
//! ```
//!
//! A frozen group takes nothing. Until `sent` is durable nothing has left this provider, so it may take the group back by
//! itself; from then on only what the target has signed ends it. A source that is `gone` tells its target so until that
//! knows, however long it takes: before, the group cannot move on.

use serde::{Deserialize, Serialize};

use crate::wire::ids::Timestamp;

/// Where a group that is leaving stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Nothing has been sent.
    Frozen,
    /// The content with this hash is written down here and may have been sent: it is never made anew.
    Sent { hash: [u8; 32] },
    /// The target is the hub. It is still to be told that the source knows.
    Gone,
}

/// What is fixed when the group is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Terms {
    /// SHA-256 of the target's response.
    pub response: [u8; 32],
    pub expires_at: Timestamp,
    pub frozen_at: Timestamp,
    /// So long is a target tried that nothing was sent to.
    pub freeze_ms: u64,
    /// Whoever the group came here from has confirmed that it knows, or it never came. Who may still ask about the group's
    /// last move must get its answer from here, whatever becomes of this one.
    pub settled: bool,
}

/// What a source does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The group's last hub has not confirmed that it knows: nothing is made or sent.
    Wait,
    /// Make sure that the target is there and its key its own; then make the content.
    Prepare,
    /// Give the group back to its members: nothing was sent, and the time is over.
    Thaw,
    /// Send the content (again).
    Send,
    /// Tell the target that the move is known here.
    Confirm,
}

/// What a signed word of the target means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The target is the hub.
    Gone,
    /// The target never takes this group by this nonce.
    Thaw,
    /// It is about something else: nothing changes.
    Nothing,
}

/// What came of telling the target that the move is known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Knows,
    /// It knows of no such move: it has had the word before, for else it does not forget one.
    Forgot,
    /// No answer, or one that says neither.
    Nothing,
}

impl Told {
    /// Whether the target needs to be told no more. Time alone never ends it.
    #[must_use]
    pub fn is_enough(self) -> bool {
        match self {
            Self::Knows | Self::Forgot => true,
            Self::Nothing => false,
        }
    }
}

/// How long a target that does not answer is left alone at least before it is told again that the move is known here since
/// `gone_at`: the longer it was tried, the longer, so that one that is away for good costs a request a day.
#[must_use]
pub fn confirm_pause_ms(gone_at: Timestamp, now: Timestamp) -> u64 {
    (now.ms_since(gone_at) / CONFIRM_PAUSE_SHARE).min(CONFIRM_PAUSE_MS_MAX)
}

impl Phase {
    #[must_use]
    pub fn next(&self, terms: &Terms, now: Timestamp) -> Next {
        match self {
            Self::Frozen => {
                let late = now.ms_since(terms.frozen_at) >= terms.freeze_ms;
                if late || now >= terms.expires_at {
                    Next::Thaw
                } else if terms.settled {
                    Next::Prepare
                } else {
                    Next::Wait
                }
            }
            Self::Sent { .. } => Next::Send,
            Self::Gone => Next::Confirm,
        }
    }

    /// The phase that must be durable, with the content, before the content is sent; none where one is already.
    #[must_use]
    pub fn sending(&self, hash: [u8; 32]) -> Option<Self> {
        (*self == Self::Frozen).then_some(Self::Sent { hash })
    }

    /// A word of the target whose signature is good.
    #[must_use]
    pub fn heard(&self, terms: &Terms, hash: &[u8], refused: bool) -> Heard {
        match self {
            Self::Sent { hash: sent } if !refused && sent == hash => Heard::Gone,
            Self::Sent { .. } | Self::Frozen if refused && terms.response == hash => Heard::Thaw,
            Self::Frozen | Self::Sent { .. } | Self::Gone => Heard::Nothing,
        }
    }

    /// Whether this side alone may end it. Else the target can be asked to refuse.
    #[must_use]
    pub fn may_thaw(&self) -> bool {
        *self == Self::Frozen
    }
}

/// A pause is this part of the time that has been tried.
const CONFIRM_PAUSE_SHARE: u64 = 8;
const CONFIRM_PAUSE_MS_MAX: u64 = 24 * 60 * 60 * 1000;
