//! What registered clients get from the client listener.

use std::time::{SystemTime, UNIX_EPOCH};

use mimid::{
    crypto::{self, SigningKey},
    wire::{
        client::{
            ClientMessage, ClientMessageTbs, ConnectionRequestTo, DeleteDevice, Dequeue, Dequeued,
            Flag, MintedTokens, OpenStream, ProviderKeys, ProviderKeysAnswer, QueueTokens,
            Register, Registered,
        },
        codec::{List, Opaque, Raw, Secret, ShortOpaque, Text},
        ds::{DsContext, DsMessage, DsRequest, DsSenderId, WelcomeInfo},
        encode,
        extensions::{KeyPackageClass, SignatureScheme, UserKey, UserKeyTbs},
        ids::{ClientUri, Domain, Epoch, GroupId, KeyPackageRef, RequestId, Timestamp},
        key_packages::{ConnectionRequest, SealedOffer},
        queueing::{FeedAck, QueueEntry, QueueEvent},
    },
};
use openmls::prelude::BasicCredential;

use super::*;

/// A client with its key, registered or not.
struct Device {
    client: ClientUri,
    key: SigningKey,
}

impl Device {
    fn new(name: &str) -> Self {
        Self {
            client: ClientUri::new(format!("mimi://localhost/d/{name}/phone")).unwrap(),
            key: SigningKey::generate(SignatureScheme::ED25519).unwrap(),
        }
    }

    fn registered(provider: &Provider, name: &str) -> Self {
        let device = Self::new(name);
        let identity = BasicCredential::new(device.client.as_str().as_bytes().to_vec());
        let credential = Raw::of(&openmls::prelude::Credential::from(identity));
        let user_key = SigningKey::generate(SignatureScheme::ED25519).unwrap();
        let tbs = UserKeyTbs {
            scheme: user_key.scheme(),
            user_public_key: user_key.public().clone(),
            leaf_key: device.key.public().clone(),
            credential: credential.clone(),
        };
        let register = Register {
            user: device.client.user(),
            device: Text::new("phone").unwrap(),
            credential,
            user_key: UserKey {
                scheme: user_key.scheme(),
                user_public_key: user_key.public().clone(),
                signature: user_key.sign_with_label("UserKeyTBS", &encode(&tbs)).unwrap(),
            },
            scheme: device.key.scheme(),
            client_key: device.key.public().clone(),
            token: Secret::default(),
            csr: Opaque::default(),
        };
        let registered: Registered = device.ask(provider, "/v1/register", &encode(&register));
        assert_eq!(registered.client, device.client);
        device
    }

    /// A signed ClientMessage, encoded.
    fn message(&self, endpoint: &str, body: &[u8]) -> Vec<u8> {
        let tbs = ClientMessageTbs {
            version: ProtocolVersion::MIMI10,
            client: self.client.clone(),
            endpoint: Text::new(endpoint).unwrap(),
            timestamp: now(),
            nonce: crypto::random(),
            body: Opaque::new(body).unwrap(),
        };
        let signature = self.key.sign_with_label("ClientMessageTBS", &encode(&tbs)).unwrap();
        let ClientMessageTbs { version, client, endpoint, timestamp, nonce, body } = tbs;
        encode(&ClientMessage { version, client, endpoint, timestamp, nonce, body, signature })
    }

    fn post(&self, provider: &Provider, endpoint: &str, body: &[u8]) -> Answer {
        provider.post(endpoint, OCTETS, &self.message(endpoint, body))
    }

    /// Posts what must be answered `ok`.
    fn ask<T: tls_codec::DeserializeBytes>(
        &self,
        provider: &Provider,
        endpoint: &str,
        body: &[u8],
    ) -> T {
        self.post(provider, endpoint, body).ok()
    }

    fn dequeue(&self, provider: &Provider) -> Vec<QueueEntry> {
        let body = Dequeue { acks: List::default(), max: 100, wait_ms: 0 };
        let answer: Dequeued = self.ask(provider, "/v1/dequeue", &encode(&body));
        answer.entries.into_vec()
    }
}

impl Answer {
    fn ok<T: tls_codec::DeserializeBytes>(&self) -> T {
        match decode::<ClientResponse>(&self.body).unwrap().outcome {
            Outcome::Ok(body) => decode(body.as_slice()).unwrap(),
            Outcome::Err(error) => panic!("{error}"),
        }
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(u64::try_from(since.as_millis()).unwrap())
}

#[test]
fn who_registers_is_served() {
    let provider = Provider::start();
    let alice = Device::registered(&provider, "alice");
    assert!(alice.dequeue(&provider).is_empty());
    let body = ProviderKeys { domain: Domain::new("localhost").unwrap() };
    let keys: ProviderKeysAnswer = alice.ask(&provider, "/v1/provider_keys", &encode(&body));
    assert_eq!(keys.signature.keys.len(), 2, "one external sender for each scheme");
    let stranger = Device::new("mallory");
    let refused = stranger.post(&provider, "/v1/provider_keys", &encode(&body));
    assert_eq!((refused.status, refused.client_error().name()), (401, "unauthenticated"));
}

#[test]
fn a_message_is_taken_once_and_only_where_it_was_sent_to() {
    let provider = Provider::start();
    let alice = Device::registered(&provider, "alice");
    let body = encode(&Dequeue { acks: List::default(), max: 1, wait_ms: 0 });
    let message = alice.message("/v1/dequeue", &body);
    let elsewhere = provider.post("/v1/account/delete", OCTETS, &message);
    assert_eq!((elsewhere.status, elsewhere.client_error().name()), (400, "malformed"));
    assert_eq!(provider.post("/v1/dequeue", OCTETS, &message).status, 200);
    let again = provider.post("/v1/dequeue", OCTETS, &message);
    assert_eq!((again.status, again.client_error().name()), (401, "unauthenticated"));
    let full = alice.post(&provider, "/v1/account/delete", b"x");
    assert_eq!((full.status, full.client_error().name()), (400, "malformed"), "its body is empty");
}

#[test]
fn an_operation_at_another_endpoint_is_told_where_it_goes() {
    let provider = Provider::start();
    let alice = Device::registered(&provider, "alice");
    let domain = Domain::new("localhost").unwrap();
    let group_id = GroupId::of(&domain, [7; 16]);
    let message = encode(&DsMessage {
        sender_id: DsSenderId::KeyPackageRef(KeyPackageRef(Opaque::new([1; 32]).unwrap())),
        request: DsRequest::WelcomeInfo(WelcomeInfo {
            group_id: group_id.clone(),
            sender: alice.key.public().clone(),
            epoch: Epoch(1),
        }),
        signature: ShortOpaque::new([0; 64]).unwrap(),
        context: DsContext {
            version: ProtocolVersion::MIMI10,
            hub_domain: domain,
            group_id,
            timestamp: now(),
            request_id: RequestId([1; 16]),
        },
    });
    let error = |endpoint: &str| {
        let answer = alice.post(&provider, endpoint, &message);
        let Outcome::Err(error) = decode::<DsResponse>(&answer.body).unwrap().outcome else {
            panic!("an ok")
        };
        (answer.status, error)
    };
    let (status, wrong) = error("/v1/group_operation");
    assert_eq!((status, wrong.name()), (400, "malformed"));
    assert!(wrong.detail().contains("/v1/welcome_information"), "{wrong}");
    let (status, right) = error("/v1/welcome_information");
    assert_eq!((status, right.name()), (404, "group_not_found"));
    for status in ["malformed", "group_not_found"] {
        until_metrics_say(
            &provider,
            &format!("mimid_ds_requests_total{{operation=\"welcome-info\",status=\"{status}\"}} 1"),
        );
    }
}

/// A stream that has been opened rightly.
async fn opened(
    provider: &Provider,
    device: &Device,
) -> tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>> {
    let mut stream = open_stream(provider).await;
    let first = device.message("/v1/stream", &encode(&OpenStream { window: 65536 }));
    stream.send(Message::binary(first)).await.unwrap();
    stream
}

#[test]
fn requests_above_the_bound_are_told_when_to_retry_and_strangers_take_no_place() {
    let provider = Provider::start_with(|config| config.limits.waiting_max = 1);
    let (alice, bob) =
        (Device::registered(&provider, "alice"), Device::registered(&provider, "bob"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // one that never sends its first frame, or one that is not authentic
        let _silent = open_stream(&provider).await;
        let mut stranger = opened(&provider, &Device::new("mallory")).await;
        assert_eq!(closing(&mut stranger).await.0, 4003);
        assert!(bob.dequeue(&provider).is_empty());

        let _held = opened(&provider, &alice).await;
        until_metrics_say(&provider, "mimid_queue_actors 2");
        let answer = provider.post("/v1/dequeue", OCTETS, b"x");
        assert_eq!(answer.status, 503);
        assert!(answer.has_header("retry-after: 1"), "{}", answer.head);
        assert_eq!(answer.client_error().name(), "unavailable");
        let mut second = opened(&provider, &bob).await;
        assert!(closing(&mut second).await.1.starts_with("unavailable"));
    });
}

#[test]
fn a_stream_delivers_takes_acknowledgements_and_ends_with_its_device() {
    let provider = Provider::start();
    let alice = Device::registered(&provider, "alice");
    let body = QueueTokens {
        class: KeyPackageClass::Connection,
        last_resort: Flag::No,
        count: 1,
        revoke: List::default(),
    };
    let tokens: MintedTokens = alice.ask(&provider, "/v1/queue_tokens", &encode(&body));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut stream = opened(&provider, &alice).await;
        let offer = SealedOffer {
            client_queue_information: tokens.tokens[0].clone(),
            key_package_ref: KeyPackageRef(Opaque::new([1; 32]).unwrap()),
            kem_output: Opaque::new([2; 32]).unwrap(),
            ciphertext: Opaque::new([3; 99]).unwrap(),
        };
        let request = ConnectionRequest { offers: List::new(vec![offer]).unwrap() };
        let recipient_domain = Domain::new("localhost").unwrap();
        let body = ConnectionRequestTo { recipient_domain, request };
        let bob = Device::registered(&provider, "bob");
        assert_eq!(bob.post(&provider, "/v1/connection_request", &encode(&body)).status, 200);
        let entry = loop {
            if let Message::Binary(frame) = stream.next().await.unwrap().unwrap() {
                break decode::<QueueEntry>(&frame).unwrap();
            }
        };
        assert!(matches!(entry.event, QueueEvent::ConnectionRequest { .. }), "{entry:?}");
        let ack = FeedAck { feed: entry.feed, sequence: entry.sequence };
        stream.send(Message::binary(encode(&ack))).await.unwrap();
        until_metrics_say(&provider, "mimid_queue_acks_total 1");
        let body = DeleteDevice { client: alice.client.clone() };
        assert_eq!(alice.post(&provider, "/v1/devices/delete", &encode(&body)).status, 200);
        let (code, reason) = closing(&mut stream).await;
        assert_eq!(code, 4018, "{reason}");
        let mut again = opened(&provider, &alice).await;
        let (code, reason) = closing(&mut again).await;
        assert_eq!(code, 4003, "who comes back learns that its device is gone: {reason}");
    });
}

#[test]
fn a_second_session_ends_the_first_and_who_answers_no_pings_is_let_go() {
    let provider = Provider::start_with(|config| {
        config.limits.stream_ping = Duration::from_millis(100);
    });
    let alice = Device::registered(&provider, "alice");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut first = opened(&provider, &alice).await;
        // its first ping says that it is open
        while !matches!(first.next().await.unwrap().unwrap(), Message::Ping(_)) {}
        // both at once: the first one answers its pings as long as it is open
        let (_second, (code, reason)) =
            tokio::join!(opened(&provider, &alice), closing(&mut first));
        assert_eq!(code, 4018, "{reason}");
        // nobody reads the second one: its pings stay unanswered
        until_metrics_say(&provider, "mimid_stream_closes_total{reason=\"pings_unanswered\"} 1");
    });
}

#[test]
fn a_long_poll_is_answered_when_the_node_stops() {
    let mut provider = Provider::start();
    let alice = Device::registered(&provider, "alice");
    let body = encode(&Dequeue { acks: List::default(), max: 1, wait_ms: 60_000 });
    let message = alice.message("/v1/dequeue", &body);
    let mut waiting = provider.connect();
    let head = format!(
        "POST /v1/dequeue HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{OCTETS}Content-Length: {}\r\n\r\n",
        message.len()
    );
    waiting.write_all(head.as_bytes()).unwrap();
    waiting.write_all(&message).unwrap();
    until_metrics_say(&provider, "mimid_queue_actors 1");
    provider.running.take().unwrap().stop().unwrap();
    let answer = Answer::read(&mut waiting);
    assert_eq!(answer.status, 200);
    assert!(answer.ok::<Dequeued>().entries.is_empty());
}
