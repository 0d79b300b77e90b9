//! Headers of other providers' answers from arbitrary bytes, for the fuzz targets (`cfg(fuzzing)`): nothing else builds this.

use headers::HeaderMap;
use reqwest::header::{AGE, CACHE_CONTROL, HeaderName, HeaderValue, RETRY_AFTER};

use super::{discovery, https};

/// Reads `lines` as the values of headers that are read here, in turn; a line that may be no header's value is none.
///
/// # Panics
/// Where an answer is kept beyond its bounds.
pub fn headers(lines: &[u8]) {
    const NAMES: [HeaderName; 3] = [RETRY_AFTER, CACHE_CONTROL, AGE];
    let mut headers = HeaderMap::new();
    for (name, line) in NAMES.iter().cycle().zip(lines.split(|byte| *byte == b'\n').take(12)) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(name, value);
        }
    }
    if let Some(wait) = https::retry_after_ms(&headers) {
        assert!(wait <= u64::from(u32::MAX) * 1000, "{wait} ms");
    }
    let bounds = discovery::LIFETIME_MIN_MS..=discovery::LIFETIME_MAX_MS;
    assert!(bounds.contains(&discovery::lifetime_ms(&headers)));
}
