//! Vectors of what a client says to its own provider, KeyPackages and connections among it.

use mimid::{
    crypto::sha256,
    wire::{
        client::*,
        codec::{List, Opaque, Secret, Text},
        ds::*,
        encode,
        extensions::*,
        federation::*,
        ids::*,
        key_packages::*,
        queueing::*,
    },
};

use super::{
    NOW, Samples, alice_user_key, client, complaint, domain, group_id, keys, mls, mls_struct,
    queue_config, sealed_offer, user,
};

pub fn clients(samples: &mut Samples) {
    let alice = keys()["alice_client"].clone();
    let bob_packages = || {
        List::new(vec![
            mls_struct("bob_key_package"),
            mls_struct("bob_last_resort_key_package"),
            mls_struct("bob_connection_key_package"),
        ])
        .unwrap()
    };
    let dequeue = Dequeue {
        acks: List::new(vec![FeedAck { feed: FeedId(4), sequence: Sequence(8) }]).unwrap(),
        max: 100,
        wait_ms: 20_000,
    };
    let tbs = ClientMessageTbs {
        version: ProtocolVersion::MIMI10,
        client: client("alice", "phone"),
        endpoint: Text::new("/v1/dequeue").unwrap(),
        timestamp: NOW,
        nonce: [0x11; 16],
        body: Opaque::new(encode(&dequeue)).unwrap(),
    };
    let signature = alice.sign_with_label("ClientMessageTBS", &encode(&tbs)).unwrap();
    samples.add(
        "",
        "what the signature of the ClientMessage vector is over, label ClientMessageTBS",
        &tbs,
    );
    samples.add(
        "",
        "alice's client acknowledges and waits for more",
        &ClientMessage {
            version: tbs.version,
            client: tbs.client.clone(),
            endpoint: tbs.endpoint.clone(),
            timestamp: tbs.timestamp,
            nonce: tbs.nonce,
            body: tbs.body.clone(),
            signature,
        },
    );
    samples.add("", "the body of /v1/dequeue", &dequeue);
    samples.add(
        "ok",
        "an answer of /v1/key_packages: its body is the KeyPackagesLeft vector",
        &ClientResponse {
            outcome: Outcome::Ok(
                Opaque::new(encode(&KeyPackagesLeft { group_left: 42, connection_left: 5 }))
                    .unwrap(),
            ),
        },
    );
    samples.add(
        "rate_limited",
        "an error",
        &ClientResponse {
            outcome: Outcome::Err(DsError::RateLimited {
                detail: Detail::new("60 KeyPackage requests an hour").unwrap(),
                retry_after_ms: 90_000,
            }),
        },
    );
    samples.add(
        "",
        "the body of /v1/register",
        &Register {
            user: user("alice"),
            device: Text::new("phone").unwrap(),
            credential: mls_struct("alice_credential"),
            user_key: mls::user_key(&keys()["alice_user"], &alice, &mls_struct("alice_credential")),
            scheme: alice.scheme(),
            client_key: alice.public().clone(),
            token: Secret::new(b"invitation".to_vec()).unwrap(),
            csr: Opaque::default(),
        },
    );
    samples.add(
        "",
        "its answer",
        &Registered {
            client: client("alice", "phone"),
            credential: mls_struct("alice_credential"),
            chain: Opaque::default(),
        },
    );
    samples.add(
        "",
        "the body of /v1/key_packages",
        &PublishKeyPackages { key_packages: bob_packages() },
    );
    samples.add("", "its answer", &KeyPackagesLeft { group_left: 42, connection_left: 5 });
    samples.add("", "the body of /v1/queue_tokens: a token for a last-resort KeyPackage, and an old one revoked", &QueueTokens { class: KeyPackageClass::Group, last_resort: Flag::Yes, count: 1, revoke: List::new(vec![queue_config("alice").queue_token]).unwrap() });
    samples.add(
        "connection",
        "three tokens for connection KeyPackages",
        &QueueTokens {
            class: KeyPackageClass::Connection,
            last_resort: Flag::No,
            count: 3,
            revoke: List::default(),
        },
    );
    samples.add(
        "",
        "its answer",
        &MintedTokens {
            tokens: List::new(vec![
                queue_config("alice").queue_token,
                queue_config("alice2").queue_token,
            ])
            .unwrap(),
        },
    );
    samples.add(
        "",
        "the answer of /v1/dequeue",
        &Dequeued {
            entries: List::new(vec![QueueEntry {
                feed: FeedId(4),
                sequence: Sequence(9),
                previous: Sequence(8),
                accepted_at: NOW,
                group_id: Opaque::new(group_id().as_bytes().to_vec()).unwrap(),
                event: QueueEvent::MlsMessage { message: mls_struct("application_message") },
            }])
            .unwrap(),
        },
    );
    samples.add("", "the body of a stream's first frame", &OpenStream { window: 1_048_576 });
    samples.add("", "the body of /v1/provider_keys", &ProviderKeys { domain: domain() });
    let key = |purpose: &str| VerificationKey {
        scheme: SignatureScheme::ED25519,
        public_key: Opaque::new(keys()["hub_external_sender"].public().as_slice().to_vec())
            .unwrap(),
        not_before: NOW,
        not_after: NOW.plus_ms(31_536_000_000),
        purpose: Opaque::new(purpose.as_bytes().to_vec()).unwrap(),
    };
    let answer = |keys: Vec<VerificationKey>| VerificationKeyResponse {
        version: ProtocolVersion::MIMI10,
        domain: domain(),
        keys: List::new(keys).unwrap(),
        cache_until: NOW.plus_ms(3_600_000),
    };
    samples.add(
        "",
        "its answer",
        &ProviderKeysAnswer {
            verification: answer(vec![]),
            signature: answer(vec![key("external-sender")]),
        },
    );
    let complain = Complain { hub_domain: domain(), complaint: complaint() };
    samples.add("", "the body of /v1/complaint", &complain);
    samples.add(
        "",
        "the body of /v1/devices/delete",
        &DeleteDevice { client: client("alice", "tablet") },
    );
    samples.add(
        "",
        "the body of /v1/consent: hashes of consent tokens",
        &Consent {
            add: List::new(vec![Opaque::new(sha256(&[0x77; 32])).unwrap()]).unwrap(),
            revoke: List::new(vec![Opaque::new(sha256(&[0x78; 32])).unwrap()]).unwrap(),
        },
    );
}

pub fn key_packages(samples: &mut Samples) {
    samples.add(
        "",
        "the body of /v1/connection_key_packages",
        &ConnectionKeyPackageRequest { target_user: user("bob"), requester: user("alice") },
    );
    samples.add(
        "",
        "its answer",
        &ConnectionKeyPackageResponse {
            key_packages: List::new(vec![mls_struct("bob_connection_key_package")]).unwrap(),
        },
    );
    let request = |required| GroupKeyPackageRequest {
        target_user: user("bob"),
        consent_token: Secret::new(vec![0x77; 32]).unwrap(),
        ciphersuites: List::new(vec![1, 2]).unwrap(),
        required,
    };
    samples.add(
        "",
        "the body of /v1/group_key_packages",
        &request(Some(mls_struct("required_capabilities"))),
    );
    samples.add("any", "whatever the clients support", &request(None));
    for (variant, status) in [
        ("ok", KeyPackageStatus::Ok),
        ("no_consent", KeyPackageStatus::NoConsent),
        ("incompatible", KeyPackageStatus::Incompatible),
        ("none_left", KeyPackageStatus::NoneLeft),
    ] {
        let known = !matches!(status, KeyPackageStatus::NoConsent);
        let one = ClientKeyPackage {
            client: client("bob", "laptop"),
            status,
            key_package: matches!(status, KeyPackageStatus::Ok)
                .then(|| mls_struct("bob_key_package")),
        };
        samples.add(
            variant,
            "its answer",
            &GroupKeyPackageResponse {
                status,
                clients: List::new(if known { vec![one] } else { vec![] }).unwrap(),
            },
        );
    }
    samples.add(
        "",
        "one sealed offer; its kem_output and ciphertext are placeholders",
        &ConnectionRequest { offers: List::new(vec![sealed_offer()]).unwrap() },
    );
    let leaf = keys()["alice_leaf"].clone();
    let tbs = ConnectionOfferTbs {
        sender_user: user("alice"),
        recipient_user: user("bob"),
        group_id: group_id(),
        hub_domain: domain(),
        join_code: Secret::new(vec![8; 32]).unwrap(),
        consent_token: Secret::new(vec![0x77; 32]).unwrap(),
        credential: mls_struct("alice_credential"),
        user_key: alice_user_key(),
        leaf_key: leaf.public().clone(),
    };
    let signature = leaf.sign_with_label("ConnectionOfferTBS", &encode(&tbs)).unwrap();
    samples.add(
        "",
        "what the signature of the ConnectionOffer vector is over, label ConnectionOfferTBS",
        &tbs,
    );
    samples.add(
        "",
        "alice offers bob a connection: what is inside a SealedOffer",
        &ConnectionOffer {
            sender_user: tbs.sender_user.clone(),
            recipient_user: tbs.recipient_user.clone(),
            group_id: tbs.group_id.clone(),
            hub_domain: tbs.hub_domain.clone(),
            join_code: tbs.join_code.clone(),
            consent_token: tbs.consent_token.clone(),
            credential: tbs.credential.clone(),
            user_key: tbs.user_key.clone(),
            leaf_key: tbs.leaf_key.clone(),
            signature,
        },
    );
}

pub fn federation(samples: &mut Samples) {
    samples.add(
        "",
        "the body of /v1/connection_request",
        &ConnectionRequestTo {
            recipient_domain: Domain::new("b.example").unwrap(),
            request: ConnectionRequest { offers: List::new(vec![sealed_offer()]).unwrap() },
        },
    );
    let asked = ConnectionKeyPackageRequest { target_user: user("bob"), requester: user("alice") };
    let payload = S2SPayload {
        timestamp: NOW,
        request_id: RequestId([0x22; 16]),
        body: Opaque::new(encode(&asked)).unwrap(),
    };
    samples.add("", "what is in the event of the S2SMessage vector", &payload);
    let tbs = S2SMessageTbs {
        version: ProtocolVersion::MIMI10,
        sender_domain: domain(),
        recipient_domain: Domain::new("b.example").unwrap(),
        event: Event {
            event_type: Text::new(EventType::ConnectionKeyPackages.name()).unwrap(),
            event_payload: Opaque::new(encode(&payload)).unwrap(),
        },
    };
    let signature = keys()["hub_s2s"].sign_with_label("S2SMessageTBS", &encode(&tbs)).unwrap();
    samples.add(
        "",
        "what the signature of the S2SMessage vector is over, label S2SMessageTBS",
        &tbs,
    );
    samples.add(
        "",
        "a.example asks b.example for a user's connection KeyPackages",
        &S2SMessage {
            version: tbs.version,
            sender_domain: tbs.sender_domain.clone(),
            recipient_domain: tbs.recipient_domain.clone(),
            event: tbs.event.clone(),
            signature,
        },
    );
}
