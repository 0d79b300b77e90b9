//! What all targets share: an allocator that counts, and what a decoder of N bytes may take.
//!
//! Everything that is allocated is added up, freed or not: a decoder that copies its input again and again shows as well as
//! one that believes a length. Of what was written here, and may lie on a disk, the most that is held at once is measured too.
//! Counts, unlike seconds, are the same on a busy machine.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// [`System`], counting.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);
/// What is allocated and not freed, and the most that it was since [`holding`] began.
static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn count(bytes: usize) {
    BYTES.fetch_add(bytes, Relaxed);
    CALLS.fetch_add(1, Relaxed);
    MOST.fetch_max(HELD.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

fn freed(bytes: usize) {
    HELD.fetch_sub(bytes, Relaxed);
}

// SAFETY: every call goes on to `System` as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        freed(layout.size());
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        freed(layout.size());
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What decoding may allocate in all: so many bytes for each byte of input, and so many whatever the input.
#[derive(Clone, Copy)]
pub struct Limit {
    pub per_byte: usize,
    pub fixed: usize,
    /// How often, for each byte of input (and once for each 64 of the fixed ones).
    pub calls_per_byte: usize,
}

/// Of structs of the wire and records. A small item in a list is some dozens of times as large in memory as on the wire,
/// and a list that grows is copied.
pub const DECODING: Limit = Limit { per_byte: 64, fixed: 64 * 1024, calls_per_byte: 4 };

/// Runs `decode` of `len` bytes.
///
/// # Panics
/// Where it allocates more than `limit` lets it.
pub fn within<T>(limit: Limit, len: usize, decode: impl FnOnce() -> T) -> T {
    let before = (BYTES.load(Relaxed), CALLS.load(Relaxed));
    let value = decode();
    let (bytes, calls) = (BYTES.load(Relaxed) - before.0, CALLS.load(Relaxed) - before.1);
    let allowed = limit.fixed + limit.per_byte * len;
    assert!(bytes <= allowed, "{len} bytes made it allocate {bytes} bytes, {allowed} are allowed");
    let allowed = limit.fixed / 64 + limit.calls_per_byte * len;
    assert!(calls <= allowed, "{len} bytes made it allocate {calls} times, {allowed} are allowed");
    value
}

/// What work on N bytes may hold at once: so many bytes for each of them, and so many whatever they are.
#[derive(Clone, Copy)]
pub struct Room {
    pub per_byte: usize,
    pub fixed: usize,
}

/// Runs `work` on `len` bytes.
///
/// # Panics
/// Where it holds more at once than there is `room`.
pub fn holding<T>(room: Room, len: usize, work: impl FnOnce() -> T) -> T {
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    let value = work();
    let (held, allowed) = (MOST.load(Relaxed).saturating_sub(before), room.fixed + room.per_byte * len);
    assert!(held <= allowed, "{len} bytes made it hold {held} bytes, {allowed} are allowed");
    value
}

/// Refused, or encoded again as they came; either within [`DECODING`].
///
/// # Panics
/// Where it is neither.
pub fn round_trip<T>(bytes: &[u8]) -> Option<T>
where
    T: tls_codec::DeserializeBytes + tls_codec::Serialize,
{
    let value = within(DECODING, bytes.len(), || mimid::wire::decode::<T>(bytes)).ok()?;
    assert_eq!(mimid::wire::encode(&value), bytes);
    Some(value)
}
