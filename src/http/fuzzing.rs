//! What comes up of a WebSocket from arbitrary bytes, for the fuzz targets (`cfg(fuzzing)`): nothing else builds this.

use super::frames::Heads;

/// Measures the frames in `bytes`, cut into pieces of `piece` bytes and whole.
///
/// # Panics
/// Where it makes a difference how they are cut.
pub fn frames(bytes: &[u8], piece: u8) {
    const BYTES_MAX: u64 = 4096;
    let whole = Heads::new(BYTES_MAX).are_small_in(bytes);
    let mut heads = Heads::new(BYTES_MAX);
    let cut = bytes.chunks(usize::from(piece.max(1))).all(|piece| heads.are_small_in(piece));
    assert_eq!(cut, whole, "in pieces of {piece}");
}
