//! W3C Trace Context, level 1: the `traceparent` of a request. Pure: randomness is given.
//!
//! A trace ends at the border: what is sent to another provider has an id of its own, so that no operator can follow
//! another's clients. The log of each side says which of its own ids belongs to the one on the wire.

use std::fmt;

/// The header's name.
pub const TRACEPARENT: &str = "traceparent";

/// One request's place in a trace.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    pub trace: TraceId,
    /// The caller's span; never zero.
    pub parent: [u8; 8],
    pub is_sampled: bool,
}

/// What all of one trace has in common; never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

impl TraceId {
    /// From random bytes.
    #[must_use]
    pub fn new(random: [u8; 16]) -> Self {
        // all zeroes mean "none" on the wire
        Self(if random == [0; 16] { [1; 16] } else { random })
    }

    /// What a text says; none where it is not 32 lower-case hex digits, or zero.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        digits::<16>(text).filter(|id| *id != [0; 16]).map(Self)
    }
}

impl TraceParent {
    /// The beginning of a trace.
    #[must_use]
    pub fn new(trace: [u8; 16], parent: [u8; 8]) -> Self {
        let parent = if parent == [0; 8] { [1; 8] } else { parent };
        Self { trace: TraceId::new(trace), parent, is_sampled: true }
    }

    /// What a header says; none where it is not one, which then counts as absent (§3.2.2).
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.trim_matches([' ', '\t']).split('-');
        let version = digits::<1>(parts.next()?)?[0];
        let trace = TraceId::parse(parts.next()?)?;
        let parent = digits::<8>(parts.next()?)?;
        let flags = digits::<1>(parts.next()?)?[0];
        // later versions may go on behind the flags, this one does not; 255 is no version
        let is_known = version < 255 && (version > 0 || parts.next().is_none());
        let is_good = is_known && parent != [0; 8];
        is_good.then_some(Self { trace, parent, is_sampled: flags & 1 == 1 })
    }
}

/// Lower-case hex of exactly `N` bytes.
fn digits<const N: usize>(text: &str) -> Option<[u8; N]> {
    let is_lower = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    hex::decode(text).ok().filter(|_| is_lower)?.try_into().ok()
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.is_sampled);
        write!(f, "00-{}-{}-{flags:02x}", self.trace, hex::encode(self.parent))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_header_is_read_and_written() {
        let parsed = TraceParent::parse(EXAMPLE).unwrap();
        assert_eq!(parsed.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((parsed.to_string().as_str(), parsed.is_sampled), (EXAMPLE, true));
        let unsampled = EXAMPLE.replace("-01", "-02");
        assert!(!TraceParent::parse(&unsampled).unwrap().is_sampled);
        let later = EXAMPLE.replacen("00", "cc", 1) + "-what-comes-next";
        assert_eq!(TraceParent::parse(&later), Some(parsed));
        let zeroes = TraceParent::new([0; 16], [0; 8]);
        assert_eq!(TraceParent::parse(&zeroes.to_string()), Some(zeroes));
    }

    #[test]
    fn what_is_no_header_counts_as_none() {
        for wrong in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b\u{e9}-01",
        ] {
            assert_eq!(TraceParent::parse(wrong), None, "{wrong}");
        }
    }
}
