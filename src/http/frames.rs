//! The frames of a WebSocket (RFC 6455 §5.2) that come up, judged by their heads: one that says that it is larger than it may
//! be ends the stream there and then.
//!
//! actix-http's parser judges a frame once it has all of it, and keeps what comes of it until then, however much it is.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use actix_web::{error::PayloadError, web::Bytes};
use futures_util::Stream;

/// What comes up of a WebSocket. Ends with [`PayloadError::Overflow`] where a frame is too large.
pub(super) struct Frames<S> {
    bytes: S,
    heads: Heads,
}

impl<S> Frames<S> {
    /// Frames of at most `bytes_max` each.
    pub fn new(bytes: S, bytes_max: u64) -> Self {
        Self { bytes, heads: Heads::new(bytes_max) }
    }
}

impl<S: Stream<Item = Result<Bytes, PayloadError>> + Unpin> Stream for Frames<S> {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(Pin::new(&mut self.bytes).poll_next(cx));
        if let Some(Ok(bytes)) = &next
            && !self.heads.are_small_in(bytes)
        {
            return Poll::Ready(Some(Err(PayloadError::Overflow)));
        }
        Poll::Ready(next)
    }
}

/// Where in a frame the bytes that came so far end.
pub(super) struct Heads {
    /// The bytes of a head that is not whole yet.
    head: Vec<u8>,
    payload_left: u64,
    bytes_max: u64,
}

impl Heads {
    /// At the beginning of a frame, of which each may be `bytes_max` long.
    pub fn new(bytes_max: u64) -> Self {
        Self { head: Vec::new(), payload_left: 0, bytes_max }
    }

    /// Whether no frame that begins in `bytes`, which come next, says that it is larger.
    pub fn are_small_in(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            let skipped = usize::try_from(self.payload_left).unwrap_or(usize::MAX).min(bytes.len());
            self.payload_left -= skipped as u64;
            bytes = &bytes[skipped..];
            let Some((first, rest)) = bytes.split_first() else { return true };
            bytes = rest;
            self.head.push(*first);
            if let Some(payload) = payload_bytes(&self.head) {
                if payload > self.bytes_max {
                    return false;
                }
                self.head.clear();
                self.payload_left = payload;
            }
        }
    }
}

/// What the payload's length is by a frame's head; none where the head is not whole.
fn payload_bytes(head: &[u8]) -> Option<u64> {
    let second = *head.get(1)?;
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let (length, at) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes(*head.get(2..)?.first_chunk()?)), 4),
        127 => (u64::from_be_bytes(*head.get(2..)?.first_chunk()?), 10),
        short => (u64::from(short), 2),
    };
    (head.len() >= at + mask).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: &[u8], payload: usize) -> Vec<u8> {
        [&[0x82][..], length, &[9; 4], &vec![0xff; payload]].concat()
    }

    #[test]
    fn frames_are_measured_however_they_are_cut() {
        let small = [
            frame(&[0x80], 0),
            frame(&[0x80 | 125], 125),
            frame(&[0x80 | 126, 0, 126], 126),
            frame(&[0x80 | 126, 16, 0], 4096),
            frame(&[0x80 | 127, 0, 0, 0, 0, 0, 0, 16, 0], 4096),
            // without a mask, which others judge
            vec![0x82, 2, 1, 2],
        ]
        .concat();
        let large = frame(&[0x80 | 126, 16, 1], 0);
        for piece in [1, 2, 3, 7, 100, 5000, usize::MAX] {
            let piece = piece.min(small.len());
            let mut heads = Heads::new(4096);
            assert!(small.chunks(piece).all(|bytes| heads.are_small_in(bytes)), "{piece}");
            assert!(heads.head.is_empty() && heads.payload_left == 0, "{piece}");
            let judged: Vec<bool> =
                large.chunks(piece).map(|bytes| heads.are_small_in(bytes)).collect();
            assert!(judged.contains(&false), "{piece}");
        }
        let mut heads = Heads::new(4096);
        assert!(!heads.are_small_in(&frame(&[0xff; 9], 0)), "past all memory");
    }
}
