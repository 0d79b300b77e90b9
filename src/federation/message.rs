//! Signing what goes to another provider, and judging what came from one. PROTOCOL.md §4; TR.
//!
//! Pure: the time and the keys are arguments. [`read`] checks all that needs no key, and only what passed it is worth
//! looking for the sender's keys. Deliberately absent: where keys come from (`keys`) and repeats (`replay`). An event
//! that is not its body's is refused by who decodes the body: `Opened::ds_message`.

use crate::{
    crypto::{self, SigningKey},
    wire::{
        DecodeError,
        client::VerificationKey,
        codec::{LengthError, List, Opaque, Text},
        decode,
        ds::{Detail, DsError, ProtocolVersion},
        encode,
        extensions::Signature,
        federation::{Event, EventType, S2SEndpoint, S2SMessage, S2SMessageTbs, S2SPayload},
        ids::{Domain, RequestId, Timestamp},
    },
};

use super::CallError;

/// How far the sender's clock may be from ours.
pub const FRESH_MS: u64 = 5 * 60 * 1000;
/// What a key is for that signs between providers.
pub const PURPOSE_S2S: &[u8] = b"s2s";
/// What a key is for that stands in groups' `external_senders`.
pub const PURPOSE_EXTERNAL_SENDER: &[u8] = b"external-sender";

/// What is to be sent.
pub struct Outgoing<'a> {
    pub sender: &'a Domain,
    pub recipient: &'a Domain,
    pub event: EventType,
    pub request_id: RequestId,
    pub body: Vec<u8>,
}

/// The bytes of a signed S2SMessage.
///
/// # Errors
/// [`CallError::TooLarge`], [`CallError::Signing`]
pub fn seal(
    outgoing: Outgoing<'_>,
    key: &SigningKey,
    now: Timestamp,
) -> Result<Vec<u8>, CallError> {
    let too_large = |_: LengthError| CallError::TooLarge;
    let Outgoing { sender, recipient, event, request_id, body } = outgoing;
    if body.len() > event.body_bytes_max() {
        return Err(CallError::TooLarge);
    }
    let body = Opaque::new(body).map_err(too_large)?;
    let payload = encode(&S2SPayload { timestamp: now, request_id, body });
    let tbs = S2SMessageTbs {
        version: ProtocolVersion::MIMI10,
        sender_domain: sender.clone(),
        recipient_domain: recipient.clone(),
        event: Event {
            event_type: Text::new(event.name()).map_err(too_large)?,
            event_payload: Opaque::new(payload).map_err(too_large)?,
        },
    };
    let signature = key
        .sign_with_label(LABEL, &encode(&tbs))
        .map_err(|error| CallError::Signing(error.to_string()))?;
    let S2SMessageTbs { version, sender_domain, recipient_domain, event } = tbs;
    Ok(encode(&S2SMessage { version, sender_domain, recipient_domain, event, signature }))
}

/// A message that says who sent it, when and for what, all of it in order; nothing of it is proven yet.
#[derive(Debug)]
pub struct Unverified {
    pub sender: Domain,
    pub event: EventType,
    pub payload: S2SPayload,
    signed: Vec<u8>,
    signature: Signature,
}

/// Decodes `bytes` that came to `endpoint` of provider `own`.
///
/// # Errors
/// [`MessageError`]
pub fn read(
    bytes: &[u8],
    endpoint: S2SEndpoint,
    own: &Domain,
    now: Timestamp,
) -> Result<Unverified, MessageError> {
    let message: S2SMessage = decode(bytes)?;
    let S2SMessage { version, sender_domain, recipient_domain, event, signature } = message;
    if version != ProtocolVersion::MIMI10 {
        return Err(MessageError::Version(version));
    }
    if recipient_domain != *own {
        return Err(MessageError::Recipient(recipient_domain));
    }
    let name = event.event_type.as_str();
    let Some(kind) = EventType::parse(name) else {
        return Err(MessageError::UnknownEvent(name.to_owned()));
    };
    if kind.endpoint() != endpoint {
        return Err(MessageError::Endpoint { event: kind, endpoint });
    }
    let payload: S2SPayload = decode(event.event_payload.as_slice())?;
    if payload.body.as_slice().len() > kind.body_bytes_max() {
        return Err(DecodeError::Invalid("S2SPayload", "the body is too large".to_owned()).into());
    }
    let sent = payload.timestamp;
    if now.ms_since(sent).max(sent.ms_since(now)) > FRESH_MS {
        return Err(MessageError::Stale { now });
    }
    let tbs = S2SMessageTbs { version, sender_domain, recipient_domain, event };
    let signed = encode(&tbs);
    Ok(Unverified { sender: tbs.sender_domain, event: kind, payload, signed, signature })
}

impl Unverified {
    /// Whether one of `keys` that is for this purpose, and was in force when the sender says that it signed, made the
    /// signature.
    #[must_use]
    pub fn is_signed_by<'a>(&self, keys: impl IntoIterator<Item = &'a VerificationKey>) -> bool {
        let at = self.payload.timestamp;
        keys.into_iter().filter(|key| is_in_force(key, PURPOSE_S2S, at)).any(|key| {
            let (public, signature) = (key.public_key.as_slice(), self.signature.as_slice());
            crypto::verify_with_label(key.scheme, public, LABEL, &self.signed, signature).is_ok()
        })
    }
}

/// Whether `key` is for `purpose` and `at` is in its time.
#[must_use]
pub fn is_in_force(key: &VerificationKey, purpose: &[u8], at: Timestamp) -> bool {
    key.purpose.as_slice() == purpose && key.not_before <= at && at <= key.not_after
}

/// Why a message from another provider is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("{0}")]
    Malformed(#[from] DecodeError),
    #[error("this provider speaks mimi10 (1), not version {}", .0.0)]
    Version(ProtocolVersion),
    #[error("the message is for {0}")]
    Recipient(Domain),
    #[error("there is no event {0:?}")]
    UnknownEvent(String),
    #[error("{} belongs to {}, not to {}", .event.name(), .event.endpoint().path(), .endpoint.path())]
    Endpoint { event: EventType, endpoint: S2SEndpoint },
    #[error("this provider does not speak with {0}")]
    NotAdmitted(Domain),
    #[error(
        "the message was not signed within five minutes of this provider's clock; sign it anew"
    )]
    Stale { now: Timestamp },
    /// It may have been executed by the process before, whose memory is gone.
    #[error("the message was signed before this provider started; sign it anew")]
    BeforeStart { now: Timestamp },
    #[error("no s2s key that {0} publishes made the signature")]
    Signature(Domain),
    #[error("the keys of {domain} cannot be had now: {why}")]
    NoKeys { domain: Domain, why: String, retry_after_ms: u64 },
    /// Its keys are read at most once a minute: whether there is a newer one is not known yet.
    #[error("no s2s key known of {domain} made the signature; its keys are read again later")]
    KeysTooOld { domain: Domain, retry_after_ms: u64 },
    #[error("the request is being executed already; ask again for its answer")]
    Executing,
    #[error("the request id was used for another request")]
    IdReused,
    #[error("too many requests of this kind at once")]
    Full,
}

impl From<MessageError> for DsError {
    fn from(error: MessageError) -> Self {
        let detail = Detail::truncated(&error.to_string());
        match error {
            MessageError::Malformed(_)
            | MessageError::Recipient(_)
            | MessageError::UnknownEvent(_)
            | MessageError::Endpoint { .. }
            | MessageError::IdReused => Self::Malformed { detail },
            MessageError::Version(_) => Self::UnsupportedVersion {
                detail,
                versions: List::new(vec![ProtocolVersion::MIMI10]).unwrap_or_default(),
            },
            MessageError::NotAdmitted(_) => Self::NotAuthorized { detail },
            MessageError::Stale { now } | MessageError::BeforeStart { now } => {
                Self::StaleRequest { detail, server_time: now }
            }
            MessageError::Signature(_) => Self::Unauthenticated { detail },
            MessageError::NoKeys { retry_after_ms, .. } => {
                Self::Unavailable { detail, retry_after_ms }
            }
            MessageError::KeysTooOld { retry_after_ms, .. } => {
                Self::RateLimited { detail, retry_after_ms }
            }
            MessageError::Executing | MessageError::Full => {
                Self::Unavailable { detail, retry_after_ms: 1000 }
            }
        }
    }
}

const LABEL: &str = "S2SMessageTBS";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{extensions::SignatureScheme, federation::BODY_BYTES_MAX};

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn domain(name: &str) -> Domain {
        Domain::new(name).unwrap()
    }

    fn outgoing<'a>(from: &'a Domain, to: &'a Domain) -> Outgoing<'a> {
        Outgoing {
            sender: from,
            recipient: to,
            event: EventType::DeliverBatch,
            request_id: RequestId([7; 16]),
            body: b"batch".to_vec(),
        }
    }

    fn key() -> SigningKey {
        SigningKey::generate(SignatureScheme::ED25519).unwrap()
    }

    fn published(key: &SigningKey) -> VerificationKey {
        VerificationKey {
            scheme: key.scheme(),
            public_key: Opaque::new(key.public().as_slice()).unwrap(),
            not_before: NOW,
            not_after: NOW.plus_ms(1000),
            purpose: Opaque::new(PURPOSE_S2S).unwrap(),
        }
    }

    #[test]
    fn what_is_sealed_is_read_whole_and_verifies_by_its_key_only() {
        let (a, b, signer) = (domain("a.example"), domain("b.example"), key());
        let bytes = seal(outgoing(&a, &b), &signer, NOW).unwrap();
        let message = read(&bytes, S2SEndpoint::DeliverMessage, &b, NOW).unwrap();
        assert_eq!(message.sender, a);
        assert_eq!(message.event, EventType::DeliverBatch);
        assert_eq!(message.payload.request_id, RequestId([7; 16]));
        assert_eq!(message.payload.timestamp, NOW);
        assert_eq!(message.payload.body.as_slice(), b"batch");
        assert!(message.is_signed_by(&[published(&key()), published(&signer)]));
        assert!(!message.is_signed_by(&[published(&key())]));
        assert!(!message.is_signed_by(&[]));
    }

    #[test]
    fn a_key_of_another_purpose_or_time_proves_nothing() {
        let (a, b, signer) = (domain("a.example"), domain("b.example"), key());
        let bytes = seal(outgoing(&a, &b), &signer, NOW).unwrap();
        let message = read(&bytes, S2SEndpoint::DeliverMessage, &b, NOW).unwrap();
        let good = published(&signer);
        let purpose = Opaque::new(PURPOSE_EXTERNAL_SENDER).unwrap();
        for bad in [
            VerificationKey { purpose, ..good.clone() },
            VerificationKey { not_before: NOW.plus_ms(1), ..good.clone() },
            VerificationKey { not_after: Timestamp(NOW.0 - 1), ..good.clone() },
            VerificationKey { scheme: SignatureScheme::ECDSA_SECP256R1_SHA256, ..good.clone() },
            VerificationKey { scheme: SignatureScheme(0), ..good.clone() },
        ] {
            assert!(!message.is_signed_by([&bad]), "{bad:?}");
        }
        assert!(message.is_signed_by(&[good]));
    }

    #[test]
    fn every_signed_byte_counts() {
        let (a, b, signer) = (domain("a.example"), domain("b.example"), key());
        let bytes = seal(outgoing(&a, &b), &signer, NOW).unwrap();
        let keys = [published(&signer)];
        for at in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[at] ^= 1;
            let message = read(&bent, S2SEndpoint::DeliverMessage, &b, NOW);
            assert!(message.is_err() || !message.unwrap().is_signed_by(&keys), "byte {at}");
        }
    }

    #[test]
    fn what_needs_no_key_is_refused_without_one() {
        let (a, b, signer) = (domain("a.example"), domain("b.example"), key());
        let bytes = seal(outgoing(&a, &b), &signer, NOW).unwrap();
        let at = S2SEndpoint::DeliverMessage;
        let refused = |bytes: &[u8], endpoint, own: &Domain, now| {
            let error = read(bytes, endpoint, own, now).unwrap_err();
            (DsError::from(error.clone()).name(), error)
        };
        let (name, error) = refused(&bytes, at, &a, NOW);
        assert_eq!((name, error), ("malformed", MessageError::Recipient(b.clone())));
        let (name, _) = refused(&bytes, S2SEndpoint::GroupOperation, &b, NOW);
        assert_eq!(name, "malformed");
        let (name, _) = refused(&bytes[..bytes.len() - 1], at, &b, NOW);
        assert_eq!(name, "malformed");
        for late in [NOW.plus_ms(FRESH_MS + 1), Timestamp(NOW.0 - FRESH_MS - 1)] {
            let (name, error) = refused(&bytes, at, &b, late);
            assert_eq!((name, error), ("stale_request", MessageError::Stale { now: late }));
        }
        for fresh in [NOW.plus_ms(FRESH_MS), Timestamp(NOW.0 - FRESH_MS)] {
            assert!(read(&bytes, at, &b, fresh).is_ok());
        }
        let mut other: S2SMessage = decode(&bytes).unwrap();
        other.version = ProtocolVersion(2);
        assert_eq!(refused(&encode(&other), at, &b, NOW).0, "unsupported_version");
        let mut other: S2SMessage = decode(&bytes).unwrap();
        other.event.event_type = Text::new("mimi.queueing-service.flood").unwrap();
        assert_eq!(refused(&encode(&other), at, &b, NOW).0, "malformed");
    }

    #[test]
    fn a_body_beyond_its_bound_is_not_sent() {
        let (a, b) = (domain("a.example"), domain("b.example"));
        let body = vec![0; BODY_BYTES_MAX + 1];
        let large = Outgoing { body, ..outgoing(&a, &b) };
        assert_eq!(seal(large, &key(), NOW).unwrap_err(), CallError::TooLarge);
    }
}
