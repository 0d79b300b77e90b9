//! Arbitrary bytes as a message between providers: refused, or encoded again as they came; judged as each endpoint does, at the
//! time that they say; and what they say, signed as it should be, is taken, and no more once a byte of it is another.
#![no_main]

use std::cell::LazyCell;

use mimid::{
    crypto::SigningKey,
    federation::message::{self, Outgoing, PURPOSE_S2S},
    wire::{
        client::VerificationKey,
        codec::Opaque,
        decode,
        extensions::SignatureScheme,
        federation::{EventType, S2SEndpoint, S2SMessage, S2SPayload},
        ids::{Domain, Timestamp},
    },
};

const ENDPOINTS: [S2SEndpoint; 12] = [
    S2SEndpoint::SignatureKey,
    S2SEndpoint::GroupOperation,
    S2SEndpoint::WelcomeInformation,
    S2SEndpoint::ExternalCommitInformation,
    S2SEndpoint::VerificationKey,
    S2SEndpoint::ConnectionRequest,
    S2SEndpoint::DeliverMessage,
    S2SEndpoint::ConnectionKeyPackages,
    S2SEndpoint::GroupKeyPackages,
    S2SEndpoint::MigrationRequest,
    S2SEndpoint::MigrationContent,
    S2SEndpoint::Complaint,
];

thread_local! {
    static KEY: LazyCell<SigningKey> =
        LazyCell::new(|| SigningKey::generate(SignatureScheme::ED25519).unwrap());
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some(value) = mimid_fuzz::round_trip::<S2SMessage>(bytes) else { return };
    let own: Domain = value.recipient_domain.clone();
    let payload = decode::<S2SPayload>(value.event.event_payload.as_slice());
    let now = payload.as_ref().map_or(Timestamp(0), |payload| payload.timestamp);
    for endpoint in ENDPOINTS {
        if let Ok(message) = message::read(bytes, endpoint, &own, now) {
            KEY.with(|key| assert!(!message.is_signed_by([&published(key)]), "not by this key"));
        }
    }
    let (Some(event), Ok(payload)) = (EventType::parse(value.event.event_type.as_str()), payload)
    else {
        return;
    };
    KEY.with(|key| signed(&value, event, payload, key));
});

/// What was said, by somebody whose key is known.
fn signed(value: &S2SMessage, event: EventType, payload: S2SPayload, key: &SigningKey) {
    let (own, now) = (&value.recipient_domain, payload.timestamp);
    let outgoing = Outgoing {
        sender: &value.sender_domain,
        recipient: own,
        event,
        request_id: payload.request_id,
        body: payload.body.as_slice().to_vec(),
    };
    let Ok(mut sealed) = message::seal(outgoing, key, now) else { return };
    let read = message::read(&sealed, event.endpoint(), own, now).expect("it was sealed now");
    assert!(read.is_signed_by([&published(key)]) && read.payload == payload);
    let at = sealed.len() / 2;
    sealed[at] ^= 1;
    if let Ok(read) = message::read(&sealed, event.endpoint(), own, now) {
        assert!(!read.is_signed_by([&published(key)]), "byte {at} is another");
    }
}

fn published(key: &SigningKey) -> VerificationKey {
    VerificationKey {
        scheme: key.scheme(),
        public_key: Opaque::new(key.public().as_slice()).unwrap(),
        not_before: Timestamp(0),
        not_after: Timestamp(u64::MAX),
        purpose: Opaque::new(PURPOSE_S2S).unwrap(),
    }
}
