//! Durations in a histogram: microseconds from 1 µs to [`MAX`], to three significant digits (two in the points of a series).
//!
//! As text they are HdrHistogram's V2 encoding in base64, which the tools of that family read. A text that was made with other
//! bounds is refused before anything is allocated for it.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hdrhistogram::{
    Histogram,
    serialization::{Deserializer, Serializer as _, V2Serializer},
};
use serde::{Deserialize, Serialize};

/// What is longer counts as this long.
pub const MAX: Duration = Duration::from_secs(600);
const US_MAX: u64 = 600_000_000;

/// How many durations there were of each length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Latencies(Histogram<u64>);

/// Why a text is no [`Latencies`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NoLatencies {
    #[error("a histogram is no base64")]
    Base64,
    #[error("a histogram is no V2 encoding of HdrHistogram, or is cut off")]
    Encoding,
    #[error(
        "a histogram is beyond bounds: this mimid reads those of 1 to {US_MAX} µs with {DIGITS} digits"
    )]
    Bounds,
}

impl Latencies {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self(histogram(DIGITS))
    }

    /// None yet; coarser and a tenth of the size: for an interval, of which only percentiles are kept.
    #[must_use]
    pub(super) fn coarse() -> Self {
        Self(histogram(DIGITS_COARSE))
    }

    /// One more. What is shorter than 1 µs counts as 1 µs, what is longer than [`MAX`] as that.
    pub fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(US_MAX);
        self.0.saturating_record(us.clamp(1, US_MAX));
    }

    /// All of another one's too, as exactly as this one is.
    pub fn add(&mut self, other: &Self) {
        // only a histogram of wider bounds does not fit into another one
        let added = self.0.add(&other.0);
        debug_assert!(added.is_ok(), "all have the same bounds");
    }

    /// Forgets all of them, and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.0.reset();
    }

    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Microseconds that a share of all durations (0.99 for the 99th percentile) did not exceed; 0 where there are none.
    #[must_use]
    pub fn quantile_us(&self, share: f64) -> u64 {
        self.0.value_at_quantile(share).min(US_MAX)
    }

    #[must_use]
    pub fn max_us(&self) -> u64 {
        self.0.max().min(US_MAX)
    }

    #[must_use]
    pub fn mean_us(&self) -> f64 {
        self.0.mean()
    }

    /// HdrHistogram's V2 encoding.
    #[must_use]
    pub(super) fn encoded(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let written = V2Serializer::new().serialize(&self.0, &mut bytes);
        debug_assert!(written.is_ok(), "memory takes it");
        bytes
    }

    /// Reads [`Latencies::encoded`].
    ///
    /// # Errors
    /// [`NoLatencies`], before anything is allocated for bounds that are not ours.
    pub(super) fn decoded(bytes: &[u8]) -> Result<Self, NoLatencies> {
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(u64::from(u32::from_be_bytes(bytes)))
        };
        let long = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let rest = bytes.len().checked_sub(HEADER_BYTES).ok_or(NoLatencies::Encoding)?;
        if word(0) != Some(V2_COOKIE) || word(4) != u64::try_from(rest).ok() {
            return Err(NoLatencies::Encoding);
        }
        let digits = [DIGITS, DIGITS_COARSE].map(|digits| Some(u64::from(digits)));
        if !digits.contains(&word(12)) || long(16) != Some(1) || long(24) != Some(US_MAX) {
            return Err(NoLatencies::Bounds);
        }
        let mut reader = bytes;
        let read = Deserializer::new().deserialize(&mut reader);
        read.map(Self).map_err(|_| NoLatencies::Encoding)
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

impl From<Latencies> for String {
    fn from(latencies: Latencies) -> Self {
        STANDARD.encode(latencies.encoded())
    }
}

impl TryFrom<String> for Latencies {
    type Error = NoLatencies;

    fn try_from(text: String) -> Result<Self, NoLatencies> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(NoLatencies::Bounds);
        }
        Self::decoded(&STANDARD.decode(text).map_err(|_| NoLatencies::Base64)?)
    }
}

#[expect(clippy::expect_used, reason = "the arguments are constants")]
fn histogram(digits: u8) -> Histogram<u64> {
    Histogram::new_with_bounds(1, US_MAX, digits).expect("1 to 600 s, with two or three digits")
}

const DIGITS: u8 = 3;
const DIGITS_COARSE: u8 = 2;
const V2_COOKIE: u64 = 0x1c84_9313;
const HEADER_BYTES: usize = 40;
/// Base64 of the largest encoding: every one of 20,480 counts there and nine bytes long.
const TEXT_BYTES_MAX: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(us: &[u64]) -> Latencies {
        let mut made = Latencies::new();
        us.iter().for_each(|us| made.record(Duration::from_micros(*us)));
        made
    }

    #[test]
    fn what_is_out_of_range_counts_as_the_nearest_that_is_not() {
        let made = of(&[0, u64::MAX]);
        assert_eq!((made.count(), made.quantile_us(0.5), made.max_us()), (2, 1, US_MAX));
    }

    #[test]
    fn the_largest_histogram_comes_back_from_its_text() {
        let mut made = Latencies::new();
        let mut us = 1;
        while us <= US_MAX {
            made.0.record_n(us, 1 << 40).unwrap();
            us = made.0.next_non_equivalent(us);
        }
        let text = String::from(made.clone());
        assert!(text.len() <= TEXT_BYTES_MAX, "{}", text.len());
        assert_eq!(Latencies::try_from(text).unwrap(), made);
    }

    #[test]
    fn a_text_that_is_cut_off_or_of_other_bounds_is_refused() {
        let whole = of(&[10, 20, 3000]).encoded();
        for length in 0..whole.len() {
            assert_eq!(Latencies::decoded(&whole[..length]), Err(NoLatencies::Encoding));
        }
        for (low, high, digits) in [(1, u64::MAX, 3), (1, US_MAX, 5), (2, US_MAX, 3)] {
            let mut wider = Vec::new();
            let other = Histogram::<u64>::new_with_bounds(low, high, digits).unwrap();
            V2Serializer::new().serialize(&other, &mut wider).unwrap();
            assert_eq!(Latencies::decoded(&wider), Err(NoLatencies::Bounds));
        }
        assert_eq!(Latencies::try_from("?".to_owned()), Err(NoLatencies::Base64));
        let long = "A".repeat(TEXT_BYTES_MAX + 1);
        assert_eq!(Latencies::try_from(long), Err(NoLatencies::Bounds));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(rest in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = of(&[]).encoded()[..HEADER_BYTES].to_vec();
            bytes[4..8].copy_from_slice(&u32::try_from(rest.len()).unwrap().to_be_bytes());
            bytes.extend(rest);
            if let Ok(read) = Latencies::decoded(&bytes) {
                prop_assert!(read.quantile_us(0.99) <= read.max_us());
            }
        }
    }
}
