//! What application messages hold: MIMI content (draft-ietf-mimi-content-08), so that other clients read ours.
//!
//! Here: the container, the parts that we make (text, and the consent token of a connection), and a decoder for
//! everybody's, which takes nothing on trust. Not here: how a part is shown.

use ciborium::value::{Integer, Value};

use crate::{crypto, wire::ds::APPLICATION_BYTES_MAX};

/// The media type of a consent token that is handed over. PROTOCOL.md §5.
pub const CONSENT_TOKEN: &str = "application/vnd.mimid.consent-token";
const TEXT: &str = "text/plain;charset=utf-8";
/// Parts nested deeper than this are refused.
const DEPTH_MAX: usize = 4;

/// Why bytes are not MIMI content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the message is not MIMI content: {0}")]
pub struct ContentError(&'static str);

/// draft-ietf-mimi-content §4.1 `mimiContent`.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    pub salt: [u8; 16],
    pub replaces: Option<[u8; 32]>,
    pub topic: Vec<u8>,
    pub expires: Option<Expiration>,
    pub in_reply_to: Option<[u8; 32]>,
    /// By increasing key as deterministic CBOR has it; kept as they came.
    pub extensions: Vec<(Value, Value)>,
    pub part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiration {
    pub relative: bool,
    pub time_seconds: u32,
}

/// `NestedPart`
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    pub disposition: Disposition,
    pub language: String,
    pub body: Body,
}

/// `baseDispos`; others decode and are kept as their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disposition(pub u8);

impl Disposition {
    pub const RENDER: Self = Self(1);
    pub const SESSION: Self = Self(7);
}

#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    Null,
    Single {
        content_type: String,
        content: Vec<u8>,
    },
    /// Where the content is elsewhere; the fields that lead there stay as they came.
    External {
        content_type: String,
        url: String,
        rest: Vec<Value>,
    },
    Multi {
        semantics: u8,
        parts: Vec<Part>,
    },
}

impl Content {
    /// A message that shows `text`.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self::single(Disposition::RENDER, TEXT, text.as_bytes().to_vec())
    }

    /// Hands a consent token over: with it the receiver may fetch our group KeyPackages.
    #[must_use]
    pub fn consent_token(token: &[u8]) -> Self {
        Self::single(Disposition::SESSION, CONSENT_TOKEN, token.to_vec())
    }

    fn single(disposition: Disposition, content_type: &str, content: Vec<u8>) -> Self {
        Self {
            salt: crypto::random(),
            replaces: None,
            topic: Vec::new(),
            expires: None,
            in_reply_to: None,
            extensions: Vec::new(),
            part: Part {
                disposition,
                language: String::new(),
                body: Body::Single { content_type: content_type.to_owned(), content },
            },
        }
    }

    /// The text of the first part that is text, if there is one.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        self.part.find(&|content_type, content| {
            let kind = content_type.split(';').next().unwrap_or_default().trim();
            (kind.eq_ignore_ascii_case("text/plain") || kind.eq_ignore_ascii_case("text/markdown"))
                .then(|| std::str::from_utf8(content).ok())
                .flatten()
        })
    }

    /// The consent token, if the message hands one over.
    #[must_use]
    pub fn as_consent_token(&self) -> Option<&[u8]> {
        self.part.find(&|content_type, content| (content_type == CONSENT_TOKEN).then_some(content))
    }

    /// Deterministic CBOR.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let id = |id: &Option<[u8; 32]>| id.map_or(Value::Null, |id| Value::Bytes(id.to_vec()));
        let value = Value::Array(vec![
            Value::Bytes(self.salt.to_vec()),
            id(&self.replaces),
            Value::Bytes(self.topic.clone()),
            self.expires.map_or(Value::Null, |expires| {
                Value::Array(vec![Value::Bool(expires.relative), number(expires.time_seconds)])
            }),
            id(&self.in_reply_to),
            Value::Map(self.extensions.clone()),
            self.part.to_value(),
        ]);
        let mut bytes = Vec::new();
        #[expect(clippy::expect_used, reason = "writing to a Vec cannot fail")]
        ciborium::into_writer(&value, &mut bytes).expect("CBOR into memory");
        bytes
    }

    /// # Errors
    /// [`ContentError`], for whatever a sender may have made up.
    pub fn decode(bytes: &[u8]) -> Result<Self, ContentError> {
        if bytes.len() > APPLICATION_BYTES_MAX {
            return Err(ContentError("too long"));
        }
        let mut rest = bytes;
        let value: Value = ciborium::de::from_reader_with_recursion_limit(&mut rest, 32)
            .map_err(|_| ContentError("not CBOR"))?;
        if !rest.is_empty() {
            return Err(ContentError("bytes follow it"));
        }
        let fields: [Value; 7] = value
            .into_array()
            .ok()
            .and_then(|fields| fields.try_into().ok())
            .ok_or(ContentError("not a list of seven fields"))?;
        let [salt, replaces, topic, expires, in_reply_to, extensions, part] = fields;
        Ok(Self {
            salt: exactly(salt, "salt")?,
            replaces: optional(replaces, |value| exactly(value, "replaces"))?,
            topic: topic.into_bytes().map_err(|_| ContentError("topic"))?,
            expires: optional(expires, expiration)?,
            in_reply_to: optional(in_reply_to, |value| exactly(value, "inReplyTo"))?,
            extensions: extensions.into_map().map_err(|_| ContentError("extensions"))?,
            part: Part::from_value(part, DEPTH_MAX)?,
        })
    }
}

impl Part {
    fn find<'a, T>(&'a self, wanted: &impl Fn(&'a str, &'a [u8]) -> Option<T>) -> Option<T> {
        match &self.body {
            Body::Single { content_type, content } => wanted(content_type, content),
            Body::Multi { parts, .. } => parts.iter().find_map(|part| part.find(wanted)),
            Body::Null | Body::External { .. } => None,
        }
    }

    fn to_value(&self) -> Value {
        let mut fields = vec![number(self.disposition.0), Value::Text(self.language.clone())];
        match &self.body {
            Body::Null => fields.push(number(0u8)),
            Body::Single { content_type, content } => fields.extend([
                number(1u8),
                Value::Text(content_type.clone()),
                Value::Bytes(content.clone()),
            ]),
            Body::External { content_type, url, rest } => {
                fields.extend([
                    number(2u8),
                    Value::Text(content_type.clone()),
                    Value::Text(url.clone()),
                ]);
                fields.extend(rest.iter().cloned());
            }
            Body::Multi { semantics, parts } => fields.extend([
                number(3u8),
                number(*semantics),
                Value::Array(parts.iter().map(Self::to_value).collect()),
            ]),
        }
        Value::Array(fields)
    }

    fn from_value(value: Value, depth: usize) -> Result<Self, ContentError> {
        if depth == 0 {
            return Err(ContentError("parts are nested too deeply"));
        }
        let mut fields =
            value.into_array().map_err(|_| ContentError("a part is not a list"))?.into_iter();
        let mut next = || fields.next().ok_or(ContentError("a part is too short"));
        let disposition = Disposition(small(next()?, "disposition")?);
        let language = next()?.into_text().map_err(|_| ContentError("language"))?;
        let text = |value: Value| value.into_text().map_err(|_| ContentError("a text field"));
        let body = match small::<u8>(next()?, "cardinality")? {
            0 => Body::Null,
            1 => Body::Single {
                content_type: text(next()?)?,
                content: next()?.into_bytes().map_err(|_| ContentError("content"))?,
            },
            2 => Body::External {
                content_type: text(next()?)?,
                url: text(next()?)?,
                rest: fields.by_ref().collect(),
            },
            3 => Body::Multi {
                semantics: small(next()?, "partSemantics")?,
                parts: next()?
                    .into_array()
                    .map_err(|_| ContentError("parts"))?
                    .into_iter()
                    .map(|part| Self::from_value(part, depth - 1))
                    .collect::<Result<_, _>>()?,
            },
            _ => return Err(ContentError("an unknown cardinality")),
        };
        if fields.next().is_some() {
            return Err(ContentError("a part is too long"));
        }
        Ok(Self { disposition, language, body })
    }
}

fn number(number: impl Into<Integer>) -> Value {
    Value::Integer(number.into())
}

fn small<T: TryFrom<Integer>>(value: Value, what: &'static str) -> Result<T, ContentError> {
    let number = value.into_integer().map_err(|_| ContentError(what))?;
    T::try_from(number).map_err(|_| ContentError(what))
}

fn exactly<const N: usize>(value: Value, what: &'static str) -> Result<[u8; N], ContentError> {
    value.into_bytes().ok().and_then(|bytes| bytes.try_into().ok()).ok_or(ContentError(what))
}

fn optional<T>(
    value: Value,
    read: impl FnOnce(Value) -> Result<T, ContentError>,
) -> Result<Option<T>, ContentError> {
    if value.is_null() { Ok(None) } else { read(value).map(Some) }
}

fn expiration(value: Value) -> Result<Expiration, ContentError> {
    let fields = value.into_array().map_err(|_| ContentError("expires"))?;
    let [relative, time]: [Value; 2] = fields.try_into().map_err(|_| ContentError("expires"))?;
    Ok(Expiration {
        relative: relative.into_bool().map_err(|_| ContentError("expires"))?,
        time_seconds: small(time, "expires")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_back_from_its_encoding() {
        let content = Content::text("Grüße");
        let decoded = Content::decode(&content.encode()).unwrap();
        assert_eq!(decoded, content);
        assert_eq!(decoded.as_text(), Some("Grüße"));
        assert_eq!(decoded.as_consent_token(), None);
    }

    #[test]
    fn encoding_is_the_one_of_the_draft() {
        let mut content = Content::text("hi");
        content.salt = [7; 16];
        let mut expected = vec![0x87, 0x50];
        expected.extend([7; 16]);
        expected.extend([0xf6, 0x40, 0xf6, 0xf6, 0xa0, 0x85, 0x01, 0x60, 0x01, 0x78, 0x18]);
        expected.extend(b"text/plain;charset=utf-8");
        expected.extend([0x42, b'h', b'i']);
        assert_eq!(content.encode(), expected);
    }

    #[test]
    fn text_is_found_inside_of_parts() {
        let mut content = Content::text("deep");
        let text = content.part.clone();
        content.part = Part {
            disposition: Disposition::RENDER,
            language: "en".into(),
            body: Body::Multi {
                semantics: 0,
                parts: vec![
                    Part {
                        body: Body::Single { content_type: "image/png".into(), content: vec![1] },
                        ..text.clone()
                    },
                    text,
                ],
            },
        };
        let decoded = Content::decode(&content.encode()).unwrap();
        assert_eq!(decoded, content);
        assert_eq!(decoded.as_text(), Some("deep"));
    }

    #[test]
    fn nothing_made_up_decodes() {
        let bytes = Content::text("x").encode();
        for len in 0..bytes.len() {
            assert!(Content::decode(&bytes[..len]).is_err(), "{len} bytes of it");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(Content::decode(&longer).is_err());
        assert!(Content::decode(&[0x81; 4000]).is_err(), "a deep list");
        assert!(Content::decode(b"plain text").is_err());
    }
}
