//! A provider that means no good: with a domain, a certificate and keys of its own that are as valid as anybody's, and
//! no rule that it keeps to.
//!
//! It shows its keys, takes whatever it is sent and answers as the test wants; and it sends what the test makes up.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use mimid::{
    crypto::{SigningKey, random},
    wire::{
        client::{ClientResponse, VerificationKey, VerificationKeyResponse},
        codec::{List, Opaque, Text, decode, encode},
        ds::{DsError, DsMessage, DsResponse, ProtocolVersion},
        extensions::SignatureScheme,
        federation::{Event, EventType, S2SEndpoint, S2SMessage, S2SMessageTbs, S2SPayload},
        ids::{Domain, RequestId, Timestamp},
        queueing::{DeliverBatchRequest, DeliverBatchResponse, DeliveryFailure, DeliveryItem},
    },
};

use rustls::{
    ClientConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::providers::{CERTIFICATE, KEY, PATIENCE, Peer, Provider, certificate};

/// The provider that means no good.
pub struct Hostile {
    pub domain: Domain,
    /// What signs between providers.
    pub key: SigningKey,
    /// What would sign as its hub.
    pub sender: SigningKey,
    address: SocketAddr,
    folder: PathBuf,
    state: Arc<State>,
    stop: actix_web::dev::ServerHandle,
}

struct State {
    keys: [Vec<u8>; 2],
    received: Mutex<Vec<(String, Vec<u8>)>>,
    answer: Mutex<Answers>,
}

/// How it answers what is posted to it.
#[derive(Clone)]
pub enum Answers {
    /// As an honest provider that takes everything, but for these reports of each batch's items.
    Delivered(Vec<DeliveryFailure>),
    /// Bytes without an end.
    Endless,
    /// So many bytes that mean nothing.
    Nonsense(usize),
    /// Nothing, ever.
    Silence,
}

impl Hostile {
    /// Listens on loopback.
    pub fn start(domain: &str, folder: &Path) -> Self {
        let folder = folder.join(domain);
        std::fs::create_dir_all(&folder).unwrap();
        let domain = Domain::new(domain).unwrap();
        certificate(&domain, &folder);
        let [key, sender] =
            [(); 2].map(|()| SigningKey::generate(SignatureScheme::ED25519).unwrap());
        let state = Arc::new(State {
            keys: [published(&domain, &key, "s2s"), published(&domain, &sender, "external-sender")],
            received: Mutex::default(),
            answer: Mutex::new(Answers::Delivered(Vec::new())),
        });
        let tls = tls(&folder);
        let (tell, told) = std::sync::mpsc::channel();
        let served = Arc::clone(&state);
        std::thread::spawn(move || {
            actix_rt::System::new().block_on(async move {
                let server = HttpServer::new(move || {
                    App::new()
                        .app_data(web::Data::from(Arc::clone(&served)))
                        .app_data(web::PayloadConfig::new(64 * 1024 * 1024))
                        .default_service(web::to(answer))
                })
                .workers(1)
                .disable_signals()
                .bind_rustls_0_23("127.0.0.1:0", tls)
                .unwrap();
                let address = server.addrs()[0];
                let server = server.run();
                tell.send((address, server.handle())).unwrap();
                server.await.unwrap();
            });
        });
        let (address, stop) = told.recv().unwrap();
        Self { domain, key, sender, address, folder, state, stop }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What honest providers are told of it.
    pub fn peer(&self) -> Peer {
        Peer {
            domain: self.domain.clone(),
            address: self.address,
            root: self.folder.join(CERTIFICATE),
        }
    }

    pub fn answers(&self, how: Answers) {
        *self.state.answer.lock().unwrap() = how;
    }

    /// What items were delivered to it so far.
    pub fn items(&self) -> Vec<DeliveryItem> {
        let received = self.state.received.lock().unwrap();
        let delivered = received.iter().filter(|(path, _)| path == "/deliver_message");
        delivered.filter_map(|(_, bytes)| batch(bytes)).flatten().collect()
    }

    /// How often something was delivered to it, or tried to be.
    pub fn deliveries(&self) -> usize {
        let received = self.state.received.lock().unwrap();
        received.iter().filter(|(path, _)| path == "/deliver_message").count()
    }

    /// A message to `to` as it should be.
    pub fn message(&self, to: &Provider, event: EventType, body: Vec<u8>) -> Message {
        Message {
            endpoint: event.endpoint(),
            event: event.name(),
            sender: self.domain.clone(),
            recipient: to.domain.clone(),
            timestamp: now(),
            request_id: RequestId(random()),
            body,
            key: self.key.clone(),
        }
    }

    pub fn relayed(&self, to: &Provider, message: &DsMessage) -> Message {
        self.message(to, EventType::of(&message.request), encode(message))
    }

    pub fn batch(&self, to: &Provider, items: Vec<DeliveryItem>) -> Message {
        let request = DeliverBatchRequest { items: List::new(items).unwrap() };
        self.message(to, EventType::DeliverBatch, encode(&request))
    }

    /// Delivers items; gives what is reported of them, or the refusal.
    pub async fn deliver(
        &self,
        to: &Provider,
        items: Vec<DeliveryItem>,
    ) -> Result<Vec<DeliveryFailure>, DsError> {
        let answer = self.batch(to, items).send(to).await;
        let body = answer.into_result(S2SEndpoint::DeliverMessage)?;
        let response: DeliverBatchResponse = decode(&body).unwrap();
        Ok(response.failures.into_vec())
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        drop(self.stop.stop(false));
    }
}

fn tls(folder: &Path) -> rustls::ServerConfig {
    let chain = CertificateDer::from_pem_file(folder.join(CERTIFICATE)).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join(KEY)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap()
}

fn published(domain: &Domain, key: &SigningKey, purpose: &str) -> Vec<u8> {
    let key = VerificationKey {
        scheme: key.scheme(),
        public_key: Opaque::new(key.public().as_slice()).unwrap(),
        not_before: Timestamp(0),
        not_after: Timestamp(u64::MAX),
        purpose: Opaque::new(purpose.as_bytes()).unwrap(),
    };
    encode(&VerificationKeyResponse {
        version: ProtocolVersion::MIMI10,
        domain: domain.clone(),
        keys: List::new(vec![key]).unwrap(),
        cache_until: now().plus_ms(3_600_000),
    })
}

async fn answer(request: HttpRequest, body: web::Bytes, state: web::Data<State>) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    response.content_type("application/octet-stream");
    match request.path() {
        "/verification_key" => return response.body(state.keys[0].clone()),
        "/signature_key" => return response.body(state.keys[1].clone()),
        _ => {}
    }
    let seen = (request.path().to_owned(), body.to_vec());
    state.received.lock().unwrap().push(seen);
    let how = state.answer.lock().unwrap().clone();
    match how {
        Answers::Delivered(reports) => {
            let failures = List::new(reports).unwrap();
            response.body(encode(&DeliverBatchResponse { failures }))
        }
        Answers::Nonsense(len) => response.body(vec![0; len]),
        Answers::Endless => {
            let piece = || Some((Ok::<_, std::io::Error>(web::Bytes::from(vec![0; 65_536])), ()));
            response.streaming(futures_util::stream::unfold((), move |()| async move { piece() }))
        }
        Answers::Silence => response
            .streaming(futures_util::stream::pending::<Result<web::Bytes, std::io::Error>>()),
    }
}

fn batch(bytes: &[u8]) -> Option<Vec<DeliveryItem>> {
    let message: S2SMessage = decode(bytes).ok()?;
    let payload: S2SPayload = decode(message.event.event_payload.as_slice()).ok()?;
    Some(decode::<DeliverBatchRequest>(payload.body.as_slice()).ok()?.items.into_vec())
}

/// A message to a provider. Every part of it can be a lie.
#[derive(Clone)]
pub struct Message {
    pub endpoint: S2SEndpoint,
    pub event: String,
    pub sender: Domain,
    pub recipient: Domain,
    pub timestamp: Timestamp,
    pub request_id: RequestId,
    pub body: Vec<u8>,
    pub key: SigningKey,
}

impl Message {
    /// Signed, whatever is in it.
    pub fn bytes(&self) -> Vec<u8> {
        let payload = S2SPayload {
            timestamp: self.timestamp,
            request_id: self.request_id,
            body: Opaque::new(self.body.as_slice()).unwrap(),
        };
        let tbs = S2SMessageTbs {
            version: ProtocolVersion::MIMI10,
            sender_domain: self.sender.clone(),
            recipient_domain: self.recipient.clone(),
            event: Event {
                event_type: Text::new(self.event.as_str()).unwrap(),
                event_payload: Opaque::new(encode(&payload)).unwrap(),
            },
        };
        let signature = self.key.sign_with_label("S2SMessageTBS", &encode(&tbs)).unwrap();
        let S2SMessageTbs { version, sender_domain, recipient_domain, event } = tbs;
        encode(&S2SMessage { version, sender_domain, recipient_domain, event, signature })
    }

    /// Posts it to `to`.
    pub async fn send(&self, to: &Provider) -> Answer {
        post(to, self.endpoint, self.bytes()).await
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    /// The body, or the refusal that it is.
    pub fn into_result(self, endpoint: S2SEndpoint) -> Result<Vec<u8>, DsError> {
        if endpoint.answers_ds_response() {
            let response: DsResponse = decode(&self.body).unwrap();
            assert_eq!(response.outcome.clone().into_result().is_ok(), self.status == 200);
            return response.outcome.into_result().map(|_| self.body);
        }
        if self.status == 200 {
            return Ok(self.body);
        }
        let response: ClientResponse = decode(&self.body).unwrap();
        Err(response.outcome.into_result().expect_err("a refusal says why"))
    }
}

/// Posts bytes to an endpoint of `to`.
pub async fn post(to: &Provider, endpoint: S2SEndpoint, bytes: Vec<u8>) -> Answer {
    let url = format!("https://{}{}", to.federation, endpoint.path());
    let response = http(to)
        .post(url)
        .header("content-type", "application/octet-stream")
        .body(bytes)
        .send()
        .await
        .unwrap();
    let status = response.status().as_u16();
    Answer { status, body: response.bytes().await.unwrap().to_vec() }
}

/// A client of `to`'s federation listener, with one connection of its own.
pub fn http(to: &Provider) -> reqwest::Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let root = reqwest::Certificate::from_pem(&std::fs::read(to.root()).unwrap()).unwrap();
    reqwest::Client::builder().no_proxy().tls_certs_only([root]).timeout(PATIENCE).build().unwrap()
}

/// All that is still to be read from a connection on which nothing can be written any more. Reading as one always does
/// would try to write first.
pub fn came_before_its_end(tls: &mut StreamOwned<ClientConnection, TcpStream>) -> Vec<u8> {
    tls.sock.set_nonblocking(false).unwrap();
    tls.sock.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut came = Vec::new();
    loop {
        // what was decrypted, and then "later" or the end
        let _ = tls.conn.reader().read_to_end(&mut came);
        let read = tls.conn.read_tls(&mut tls.sock);
        if !matches!(read, Ok(1..)) || tls.conn.process_new_packets().is_err() {
            return came;
        }
    }
}

pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp(u64::try_from(since.as_millis()).unwrap())
}
