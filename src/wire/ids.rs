//! Identifiers: providers, users, clients, groups, and the counters that must not be confused. PROTOCOL.md §1.
//!
//! All are parsed once, at the edge, and cannot be wrong afterwards. URIs are compared as bytes.

use std::fmt;

use serde::{Deserialize, Serialize};
use tls_codec::{DeserializeBytes, Error, Serialize as TlsSerialize, Size};

use super::codec::{Opaque, Text};

/// The longest domain, in bytes.
pub const DOMAIN_MAX: usize = 253;
/// The longest URI, in bytes.
pub const URI_MAX: usize = 512;
/// The longest group id, in bytes.
pub const GROUP_ID_MAX: usize = 255;

/// Why text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error(
        "a domain is lower-case letters, digits, '-' and '.', at most {DOMAIN_MAX} bytes, e.g. a.example"
    )]
    Domain,
    #[error("a user is mimi://<domain>/u/<name>, e.g. mimi://a.example/u/alice")]
    User,
    #[error("a client is mimi://<domain>/d/<user>/<device>, e.g. mimi://a.example/d/alice/phone")]
    Client,
    #[error(
        "a group id is mimi://<domain>/g/<at least 22 characters>, at most {GROUP_ID_MAX} bytes"
    )]
    Group,
    #[error(
        "a name is letters, digits, '.', '_', '~' and '-', at least one of them, and not '.' or '..'"
    )]
    Name,
}

/// A provider: FQDN, lower case, A-labels.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain(String);

impl Domain {
    /// # Errors
    /// [`IdError::Domain`]
    pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if text.len() <= DOMAIN_MAX && text.split('.').all(label) {
            Ok(Self(text))
        } else {
            Err(IdError::Domain)
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A user: `mimi://a.example/u/alice`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserUri(String);

impl UserUri {
    /// # Errors
    /// [`IdError::User`]
    pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        match segments(&text) {
            Some((_, ["u", user, ""])) if is_name(user) => Ok(Self(text)),
            _ => Err(IdError::User),
        }
    }

    /// # Errors
    /// [`IdError::Name`] where `name` cannot stand in a URI; [`IdError::User`] where the whole is too long.
    pub fn of(domain: &Domain, name: &str) -> Result<Self, IdError> {
        if !is_name(name) {
            return Err(IdError::Name);
        }
        Self::new(format!("mimi://{}/u/{name}", domain.0))
    }

    #[must_use]
    pub fn domain(&self) -> Domain {
        domain_of(&self.0)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A client: `mimi://a.example/d/alice/phone`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientUri(String);

impl ClientUri {
    /// # Errors
    /// [`IdError::Client`]
    pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        match segments(&text) {
            Some((_, ["d", user, device])) if is_name(user) && is_name(device) => Ok(Self(text)),
            _ => Err(IdError::Client),
        }
    }

    /// # Errors
    /// [`IdError::Name`] where `device` cannot stand in a URI; [`IdError::Client`] where the whole is too long.
    pub fn of(user: &UserUri, device: &str) -> Result<Self, IdError> {
        if !is_name(device) {
            return Err(IdError::Name);
        }
        Self::new(format!("mimi://{}/d/{}/{device}", user.domain().0, user.name()))
    }

    #[must_use]
    pub fn domain(&self) -> Domain {
        domain_of(&self.0)
    }

    /// The user whose client this is.
    #[must_use]
    pub fn user(&self) -> UserUri {
        let mut parts = self.0.rsplit('/');
        let (_device, user) = (parts.next(), parts.next().unwrap_or_default());
        UserUri(format!("mimi://{}/u/{user}", self.domain().0))
    }

    #[must_use]
    pub fn device(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A group: `mimi://a.example/g/6b0d…`. The domain names the provider that **created** it; it may be hosted elsewhere.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupId(String);

impl GroupId {
    /// # Errors
    /// [`IdError::Group`]
    pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        match segments(&text) {
            // 22 characters of the 66 that are allowed hold 128 random bits
            Some((_, ["g", name, ""]))
                if is_name(name) && name.len() >= 22 && text.len() <= GROUP_ID_MAX =>
            {
                Ok(Self(text))
            }
            _ => Err(IdError::Group),
        }
    }

    /// A new group of `domain`; `random` is 128 bits that nobody has used before.
    #[must_use]
    pub fn of(domain: &Domain, random: [u8; 16]) -> Self {
        Self(format!("mimi://{}/g/{}", domain.0, hex::encode(random)))
    }

    /// # Errors
    /// [`IdError::Group`]
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdError> {
        Self::new(std::str::from_utf8(bytes).map_err(|_| IdError::Group)?)
    }

    /// The provider that created the group.
    #[must_use]
    pub fn domain(&self) -> Domain {
        domain_of(&self.0)
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

macro_rules! text_ids {
    ($($id:ident: $max:expr, $error:expr;)*) => {$(
        impl TryFrom<String> for $id {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }
        impl std::str::FromStr for $id {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }
        impl From<$id> for String {
            fn from(id: $id) -> String {
                id.0
            }
        }
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl Size for $id {
            fn tls_serialized_len(&self) -> usize {
                if self.0.len() < 64 { 1 + self.0.len() } else { 2 + self.0.len() }
            }
        }
        impl TlsSerialize for $id {
            fn tls_serialize<W: std::io::Write>(&self, writer: &mut W) -> Result<usize, Error> {
                let text = Text::<{ $max }>::new(self.0.as_str()).map_err(|_| Error::InvalidVectorLength)?;
                text.tls_serialize(writer)
            }
        }
        impl DeserializeBytes for $id {
            fn tls_deserialize_bytes(bytes: &[u8]) -> Result<(Self, &[u8]), Error> {
                let (text, rest) = Text::<{ $max }>::tls_deserialize_bytes(bytes)?;
                let id = Self::new(text.as_str()).map_err(|error| Error::DecodingError(error.to_string()))?;
                Ok((id, rest))
            }
        }
    )*};
}

text_ids! {
    Domain: DOMAIN_MAX, IdError::Domain;
    UserUri: URI_MAX, IdError::User;
    ClientUri: URI_MAX, IdError::Client;
    GroupId: GROUP_ID_MAX, IdError::Group;
}

impl Sequence {
    /// No group gets this far; what says so is not a sequence.
    pub const END: Self = Self(1 << 62);
}

macro_rules! counters {
    ($($(#[$doc:meta])* $id:ident: $inner:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
            tls_codec::TlsSize, tls_codec::TlsSerialize, tls_codec::TlsDeserializeBytes)]
        #[serde(transparent)]
        pub struct $id(pub $inner);
        impl $id {
            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}

counters! {
    /// The hub's order within one group: 1, 2, 3, … without a gap.
    Sequence: u64;
    /// MLS's epoch of one group.
    Epoch: u64;
    /// MLS's leaf index in one group's tree.
    LeafIndex: u32;
    /// A number that the hub gives to a client once per group membership and never again.
    RecipientId: u64;
    /// The number that a client's provider gives to one membership; 0 is the client's own feed.
    FeedId: u64;
    /// Milliseconds since the Unix epoch.
    Timestamp: u64;
}

impl Timestamp {
    /// `self` moved on by `ms` milliseconds.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to `self`; 0 where `earlier` is later.
    #[must_use]
    pub fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// 16 random bytes that stay the same when one logical request is sent anew.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    tls_codec::TlsSize,
    tls_codec::TlsSerialize,
    tls_codec::TlsDeserializeBytes,
)]
#[serde(transparent)]
pub struct RequestId(pub [u8; 16]);

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// `SHA-256({ scheme, user_public_key })`: what stands for a user inside a group.
#[derive(
    Clone,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    Debug,
    tls_codec::TlsSize,
    tls_codec::TlsSerialize,
    tls_codec::TlsDeserializeBytes,
)]
#[serde(transparent)]
pub struct UserKeyHash(pub Opaque<32, 32>);

/// RFC 9420's KeyPackageRef.
#[derive(
    Clone,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    Debug,
    tls_codec::TlsSize,
    tls_codec::TlsSerialize,
    tls_codec::TlsDeserializeBytes,
)]
#[serde(transparent)]
pub struct KeyPackageRef(pub Opaque<255, 1>);

/// Path segments of `mimi://<domain>/<s0>/<s1>[/<s2>]`, the absent third as "".
fn segments(text: &str) -> Option<(&str, [&str; 3])> {
    if text.len() > URI_MAX {
        return None;
    }
    let (domain, path) = text.strip_prefix("mimi://")?.split_once('/')?;
    Domain::new(domain).ok()?;
    let mut parts = path.split('/');
    let found = [parts.next()?, parts.next()?, parts.next().unwrap_or("")];
    // "a/" has an empty third segment too: only a path without it is canonical
    (parts.next().is_none() && !path.ends_with('/')).then_some((domain, found))
}

fn is_name(segment: &str) -> bool {
    !segment.is_empty()
        && segment != "."
        && segment != ".."
        && segment
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'~' | b'-'))
}

fn domain_of(uri: &str) -> Domain {
    let rest = uri.strip_prefix("mimi://").unwrap_or(uri);
    Domain(rest.split('/').next().unwrap_or_default().to_owned())
}
