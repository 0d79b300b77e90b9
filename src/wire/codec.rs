//! The building blocks of the wire: bounded vectors, text, and MLS structs kept as the bytes that came in.
//!
//! Here: every vector type with its limit, checked **before** anything is allocated, and `decode`, which
//! refuses trailing bytes. Not here: any struct of the protocol. PROTOCOL.md §1.

use std::{fmt, marker::PhantomData};

use serde::{Deserialize, Serialize};
use tls_codec::{DeserializeBytes, Error, Serialize as TlsSerialize, Size, TlsVarInt};

/// Why bytes are not the struct that they should be. Its text is for people; it holds nothing of the input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("{0} bytes follow the end of the {1}")]
    TrailingBytes(usize, &'static str),
    #[error("not a valid {0}: {1}")]
    Invalid(&'static str, String),
}

/// Decodes `bytes` as exactly one `T`: trailing bytes are refused.
///
/// # Errors
/// [`DecodeError`] where `bytes` are not one `T`, the whole `T` and nothing but a `T`.
pub fn decode<T: DeserializeBytes>(bytes: &[u8]) -> Result<T, DecodeError> {
    let name = short_name::<T>();
    let (value, rest) = T::tls_deserialize_bytes(bytes)
        .map_err(|error| DecodeError::Invalid(name, error.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(DecodeError::TrailingBytes(rest.len(), name)) }
}

/// Encodes `value`. The types of this module cannot hold a value that is beyond its limit, so this cannot fail.
#[must_use]
pub fn encode<T: TlsSerialize>(value: &T) -> Vec<u8> {
    #[expect(
        clippy::expect_used,
        reason = "writing to a Vec cannot fail and lengths are checked at construction"
    )]
    value.tls_serialize_detached().expect("bounded values encode")
}

fn short_name<T>() -> &'static str {
    let full = std::any::type_name::<T>();
    let head = full.split('<').next().unwrap_or(full);
    head.rsplit("::").next().unwrap_or(full)
}

/// A value that is longer than its limit or shorter than its minimum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes where {min} to {max} are allowed")]
pub struct LengthError {
    pub len: usize,
    pub min: usize,
    pub max: usize,
}

/// A list of more elements than its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than the {max} elements that are allowed")]
pub struct CountError {
    pub max: usize,
}

/// A list that is longer than its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    #[error(transparent)]
    Length(#[from] LengthError),
    #[error(transparent)]
    Count(#[from] CountError),
}

/// `opaque x<V>` of `MIN` to `MAX` bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Opaque<const MAX: usize, const MIN: usize = 0>(Vec<u8>);

impl<const MAX: usize, const MIN: usize> Opaque<MAX, MIN> {
    /// # Errors
    /// [`LengthError`] where `bytes` are outside `MIN..=MAX`.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, LengthError> {
        let bytes = bytes.into();
        if (MIN..=MAX).contains(&bytes.len()) {
            Ok(Self(bytes))
        } else {
            Err(LengthError { len: bytes.len(), min: MIN, max: MAX })
        }
    }

    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

impl<const MAX: usize, const MIN: usize> AsRef<[u8]> for Opaque<MAX, MIN> {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl<const MAX: usize, const MIN: usize> fmt::Debug for Opaque<MAX, MIN> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_bytes(f, &self.0)
    }
}

impl<const MAX: usize, const MIN: usize> Size for Opaque<MAX, MIN> {
    fn tls_serialized_len(&self) -> usize {
        vector_len(self.0.len())
    }
}

impl<const MAX: usize, const MIN: usize> TlsSerialize for Opaque<MAX, MIN> {
    fn tls_serialize<W: std::io::Write>(&self, writer: &mut W) -> Result<usize, Error> {
        write_vector(writer, &self.0)
    }
}

impl<const MAX: usize, const MIN: usize> DeserializeBytes for Opaque<MAX, MIN> {
    fn tls_deserialize_bytes(bytes: &[u8]) -> Result<(Self, &[u8]), Error> {
        let (body, rest) = read_vector(bytes, MIN, MAX)?;
        Ok((Self(body.to_vec()), rest))
    }
}

/// As [`Opaque`], for what must be in no log and not stay in memory: it is wiped when it is dropped, and shows its length alone.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret<const MAX: usize, const MIN: usize = 0>(Opaque<MAX, MIN>);

impl<const MAX: usize, const MIN: usize> Secret<MAX, MIN> {
    /// # Errors
    /// As [`Opaque::new`].
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, LengthError> {
        Opaque::new(bytes).map(Self)
    }

    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl<const MAX: usize, const MIN: usize> Drop for Secret<MAX, MIN> {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0.0);
    }
}

impl<const MAX: usize, const MIN: usize> fmt::Debug for Secret<MAX, MIN> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a secret of {} bytes", self.as_slice().len())
    }
}

impl<const MAX: usize, const MIN: usize> Size for Secret<MAX, MIN> {
    fn tls_serialized_len(&self) -> usize {
        self.0.tls_serialized_len()
    }
}

impl<const MAX: usize, const MIN: usize> TlsSerialize for Secret<MAX, MIN> {
    fn tls_serialize<W: std::io::Write>(&self, writer: &mut W) -> Result<usize, Error> {
        self.0.tls_serialize(writer)
    }
}

impl<const MAX: usize, const MIN: usize> DeserializeBytes for Secret<MAX, MIN> {
    fn tls_deserialize_bytes(bytes: &[u8]) -> Result<(Self, &[u8]), Error> {
        Opaque::tls_deserialize_bytes(bytes).map(|(bytes, rest)| (Self(bytes), rest))
    }
}

/// `opaque x<0..255>`: the one vector of the drafts with a one-byte length (`DSMessage.signature`).
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ShortOpaque(Vec<u8>);

impl ShortOpaque {
    /// # Errors
    /// [`LengthError`] where `bytes` are more than 255.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, LengthError> {
        let bytes = bytes.into();
        if bytes.len() > 255 {
            return Err(LengthError { len: bytes.len(), min: 0, max: 255 });
        }
        Ok(Self(bytes))
    }

    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ShortOpaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_bytes(f, &self.0)
    }
}

impl Size for ShortOpaque {
    fn tls_serialized_len(&self) -> usize {
        1 + self.0.len()
    }
}

impl TlsSerialize for ShortOpaque {
    fn tls_serialize<W: std::io::Write>(&self, writer: &mut W) -> Result<usize, Error> {
        let len = u8::try_from(self.0.len()).map_err(|_| Error::InvalidVectorLength)?;
        writer.write_all(&[len])?;
        writer.write_all(&self.0)?;
        Ok(1 + self.0.len())
    }
}

impl DeserializeBytes for ShortOpaque {
    fn tls_deserialize_bytes(bytes: &[u8]) -> Result<(Self, &[u8]), Error> {
        let (len, rest) = u8::tls_deserialize_bytes(bytes)?;
        let (body, rest) = rest.split_at_checked(usize::from(len)).ok_or(Error::EndOfStream)?;
        Ok((Self(body.to_vec()), rest))
    }
}

/// `string`: UTF-8 in an `opaque<V>` of at most `MAX` bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Text<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// # Errors
    /// [`LengthError`] where `text` is longer than `MAX` bytes.
    pub fn new(text: impl Into<String>) -> Result<Self, LengthError> {
        let text = text.into();
        if text.len() > MAX {
            return Err(LengthError { len: text.len(), min: 0, max: MAX });
        }
        Ok(Self(text))
    }

    /// As much of `text` as fits: for texts that people read.
    #[must_use]
    pub fn truncated(text: &str) -> Self {
        let mut end = text.len().min(MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self(text[..end].to_owned())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> fmt::Debug for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<const MAX: usize> Size for Text<MAX> {
    fn tls_serialized_len(&self) -> usize {
        vector_len(self.0.len())
    }
}

impl<const MAX: usize> TlsSerialize for Text<MAX> {
    fn tls_serialize<W: std::io::Write>(&self, writer: &mut W) -> Result<usize, Error> {
        write_vector(writer, self.0.as_bytes())
    }
}

impl<const MAX: usize> DeserializeBytes for Text<MAX> {
    fn tls_deserialize_bytes(bytes: &[u8]) -> Result<(Self, &[u8]), Error> {
        let (body, rest) = read_vector(bytes, 0, MAX)?;
        let text = std::str::from_utf8(body)
            .map_err(|_| Error::DecodingError("text is not UTF-8".into()))?;
        Ok((Self(text.to_owned()), rest))
    }
}

/// `T x<V>` of at most `COUNT` elements which take, encoded, at most `MAX` bytes together. A bound of the count keeps lists of
/// elements that are small on the wire from being large in memory.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct List<T, const MAX: usize, const COUNT: usize = { usize::MAX }>(Vec<T>);

impl<T, const MAX: usize, const COUNT: usize> Default for List<T, MAX, COUNT> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Size, const MAX: usize, const COUNT: usize> List<T, MAX, COUNT> {
    /// # Errors
    /// [`LengthError`] where the elements take more than `MAX` bytes, [`CountError`] where they are more than `COUNT`.
    pub fn new(items: Vec<T>) -> Result<Self, ListError> {
        let (len, count) = (items.iter().map(Size::tls_serialized_len).sum(), items.len());
        if len > MAX {
            return Err(LengthError { len, min: 0, max: MAX }.into());
        }
        if count > COUNT {
            return Err(CountError { max: COUNT }.into());
        }
        Ok(Self(items))
    }
}

impl<T, const MAX: usize, const COUNT: usize> List<T, MAX, COUNT> {
    #[must_use]
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }
}

impl<T, const MAX: usize, const COUNT: usize> std::ops::Deref for List<T, MAX, COUNT> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Size, const MAX: usize, const COUNT: usize> Size for List<T, MAX, COUNT> {
    fn tls_serialized_len(&self) -> usize {
        vector_len(self.0.iter().map(Size::tls_serialized_len).sum())
    }
}

impl<T: TlsSerialize, const MAX: usize, const COUNT: usize> TlsSerialize for List<T, MAX, COUNT> {
    fn tls_serialize<W: std::io::Write>(&self, writer: &mut W) -> Result<usize, Error> {
        let len: usize = self.0.iter().map(Size::tls_serialized_len).sum();
        let mut written = write_length(writer, len)?;
        for item in &self.0 {
            written += item.tls_serialize(writer)?;
        }
        Ok(written)
    }
}

impl<T: DeserializeBytes, const MAX: usize, const COUNT: usize> DeserializeBytes
    for List<T, MAX, COUNT>
{
    fn tls_deserialize_bytes(bytes: &[u8]) -> Result<(Self, &[u8]), Error> {
        let (mut body, rest) = read_vector(bytes, 0, MAX)?;
        let mut items = Vec::new();
        while !body.is_empty() {
            if items.len() == COUNT {
                return Err(Error::DecodingError(CountError { max: COUNT }.to_string()));
            }
            let (item, next) = T::tls_deserialize_bytes(body)?;
            if next.len() == body.len() {
                return Err(Error::DecodingError("an element of no bytes".into()));
            }
            items.push(item);
            body = next;
        }
        Ok((Self(items), rest))
    }
}

/// An MLS struct as the bytes that came in. Decoding finds where the struct ends (by parsing it as `T`) and
/// keeps its exact bytes, so that what is signed, hashed or passed on is what its author made.
pub struct Raw<T> {
    bytes: Vec<u8>,
    parsed_as: PhantomData<fn() -> T>,
}

impl<T> Raw<T> {
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        self.bytes
    }
}

impl<T: DeserializeBytes> Raw<T> {
    /// # Errors
    /// [`DecodeError`] where `bytes` are not exactly one `T`.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, DecodeError> {
        let bytes = bytes.into();
        decode::<T>(&bytes)?;
        Ok(Self { bytes, parsed_as: PhantomData })
    }

    /// The struct itself, parsed anew at each call.
    ///
    /// # Errors
    /// None for a value that was decoded or made with [`Raw::new`].
    pub fn parse(&self) -> Result<T, DecodeError> {
        decode(&self.bytes)
    }
}

impl<T> Raw<T> {
    /// Wraps what `value` encodes to. `value` is the sending side's type of the struct that `T` reads
    /// (openmls has a pair of types for each).
    #[must_use]
    pub fn of<S: TlsSerialize>(value: &S) -> Self {
        Self { bytes: encode(value), parsed_as: PhantomData }
    }
}

impl<T> Clone for Raw<T> {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), parsed_as: PhantomData }
    }
}

impl<T> PartialEq for Raw<T> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl<T> Eq for Raw<T> {}

impl<T> fmt::Debug for Raw<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_bytes(f, &self.bytes)
    }
}

impl<T> Size for Raw<T> {
    fn tls_serialized_len(&self) -> usize {
        self.bytes.len()
    }
}

impl<T> TlsSerialize for Raw<T> {
    fn tls_serialize<W: std::io::Write>(&self, writer: &mut W) -> Result<usize, Error> {
        writer.write_all(&self.bytes)?;
        Ok(self.bytes.len())
    }
}

impl<T: DeserializeBytes> DeserializeBytes for Raw<T> {
    fn tls_deserialize_bytes(bytes: &[u8]) -> Result<(Self, &[u8]), Error> {
        let (_, rest) = T::tls_deserialize_bytes(bytes)?;
        let own = &bytes[..bytes.len() - rest.len()];
        Ok((Self { bytes: own.to_vec(), parsed_as: PhantomData }, rest))
    }
}

pub(super) fn read_vector(bytes: &[u8], min: usize, max: usize) -> Result<(&[u8], &[u8]), Error> {
    let (len, rest) = TlsVarInt::tls_deserialize_bytes(bytes)?;
    let len = usize::try_from(len.value()).map_err(|_| Error::InvalidVectorLength)?;
    if !(min..=max).contains(&len) {
        return Err(Error::DecodingError(format!(
            "a vector of {len} bytes where {min} to {max} are allowed"
        )));
    }
    rest.split_at_checked(len).ok_or(Error::EndOfStream)
}

fn write_vector<W: std::io::Write>(writer: &mut W, body: &[u8]) -> Result<usize, Error> {
    let written = write_length(writer, body.len())?;
    writer.write_all(body)?;
    Ok(written + body.len())
}

/// Appends `body` to `bytes` as one `opaque<V>`: for what is signed and never decoded.
pub fn append_vector(bytes: &mut Vec<u8>, body: &[u8]) {
    #[expect(clippy::expect_used, reason = "a body is at most 64 MiB and a Vec takes every write")]
    write_vector(bytes, body).expect("below 2^30 bytes");
}

fn write_length<W: std::io::Write>(writer: &mut W, len: usize) -> Result<usize, Error> {
    let short = u16::try_from(len).map_err(|_| ());
    let long = u32::try_from(len).map_err(|_| Error::InvalidVectorLength)?;
    let prefix: &[u8] = match (len, short) {
        (0..=0x3f, Ok(short)) => &short.to_be_bytes()[1..],
        (0x40..=0x3fff, Ok(short)) => &(short | 0x4000).to_be_bytes(),
        (0x4000..=0x3fff_ffff, _) => &(long | 0x8000_0000).to_be_bytes(),
        _ => return Err(Error::InvalidVectorLength),
    };
    writer.write_all(prefix)?;
    Ok(prefix.len())
}

fn vector_len(len: usize) -> usize {
    let prefix = match len {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        _ => 4,
    };
    prefix + len
}

fn debug_bytes(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    match bytes {
        short if short.len() <= 20 => f.write_str(&hex::encode(short)),
        long => write!(f, "{}… ({} bytes)", hex::encode(&long[..16]), long.len()),
    }
}
