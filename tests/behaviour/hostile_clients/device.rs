//! A client that is a key and a name, and nothing else: what it takes to be many of them.

use mimid::{
    crypto::{self, SigningKey},
    wire::{
        client::{ClientMessage, ClientMessageTbs, Register},
        codec::{Opaque, Raw, Secret, Text},
        ds::ProtocolVersion,
        encode,
        extensions::{SignatureScheme, UserKey, UserKeyTbs},
        ids::{ClientUri, Timestamp},
    },
};
use openmls::prelude::BasicCredential;

use super::*;

pub(super) struct Device {
    pub client: ClientUri,
    pub key: SigningKey,
}

impl Device {
    pub fn new(user: &str) -> Self {
        Self {
            client: ClientUri::new(format!("mimi://localhost/d/{user}/phone")).unwrap(),
            key: SigningKey::generate(SignatureScheme::ED25519).unwrap(),
        }
    }

    /// The bytes of a request that registers it.
    pub fn registration(&self) -> Vec<u8> {
        let identity = BasicCredential::new(self.client.as_str().as_bytes().to_vec());
        let credential = Raw::of(&openmls::prelude::Credential::from(identity));
        let user_key = SigningKey::generate(SignatureScheme::ED25519).unwrap();
        let tbs = UserKeyTbs {
            scheme: user_key.scheme(),
            user_public_key: user_key.public().clone(),
            leaf_key: self.key.public().clone(),
            credential: credential.clone(),
        };
        let register = Register {
            user: self.client.user(),
            device: Text::new("phone").unwrap(),
            credential,
            user_key: UserKey {
                scheme: user_key.scheme(),
                user_public_key: user_key.public().clone(),
                signature: user_key.sign_with_label("UserKeyTBS", &encode(&tbs)).unwrap(),
            },
            scheme: self.key.scheme(),
            client_key: self.key.public().clone(),
            token: Secret::default(),
            csr: Opaque::default(),
        };
        self.message("/v1/register", &encode(&register))
    }

    /// A signed ClientMessage.
    pub fn message(&self, endpoint: &str, body: &[u8]) -> Vec<u8> {
        signed(&self.client, &self.key, endpoint, body)
    }
}

pub(super) fn signed(client: &ClientUri, key: &SigningKey, endpoint: &str, body: &[u8]) -> Vec<u8> {
    let tbs = ClientMessageTbs {
        version: ProtocolVersion::MIMI10,
        client: client.clone(),
        endpoint: Text::new(endpoint).unwrap(),
        timestamp: now(),
        nonce: crypto::random(),
        body: Opaque::new(body).unwrap(),
    };
    let signature = key.sign_with_label("ClientMessageTBS", &encode(&tbs)).unwrap();
    let ClientMessageTbs { version, client, endpoint, timestamp, nonce, body } = tbs;
    encode(&ClientMessage { version, client, endpoint, timestamp, nonce, body, signature })
}

pub(super) fn now() -> Timestamp {
    (system_clock())()
}

/// A connection that is asked one thing after the other, and made anew where an answer ended it.
pub(super) struct Line {
    pub tls: Tls,
    config: Arc<ClientConfig>,
    address: SocketAddr,
    has_ended: bool,
}

impl Line {
    pub fn to(node: &Node) -> Self {
        Self::at(node, node.client_address())
    }

    pub fn at(node: &Node, address: SocketAddr) -> Self {
        Self::with(node.tls(&[]), address)
    }

    pub fn with(config: Arc<ClientConfig>, address: SocketAddr) -> Self {
        let tls = connect_with(address, Arc::clone(&config)).unwrap();
        Self { tls, config, address, has_ended: false }
    }

    fn revive(&mut self) {
        if self.has_ended {
            *self = Self::with(Arc::clone(&self.config), self.address);
        }
    }

    /// Announces a body of so many bytes and sends only its beginning: what is refused for its length is refused at the head.
    pub fn announce(&mut self, path: &str, bytes: usize, beginning: &[u8]) -> (u16, Vec<u8>) {
        self.revive();
        let head = head(path, bytes);
        self.tls.write_all(&[head.as_bytes(), beginning].concat()).unwrap();
        let answer = self.answer();
        // whatever it says of itself, the rest of that body will not come
        self.has_ended = true;
        answer
    }

    pub fn post(&mut self, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        self.revive();
        let head = head(path, body.len());
        self.tls.write_all(&[head.as_bytes(), body].concat()).unwrap();
        self.answer()
    }

    pub fn answer(&mut self) -> (u16, Vec<u8>) {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            self.tls.read_exact(&mut byte).unwrap();
            head.extend_from_slice(&byte);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        self.has_ended = head.contains("connection: close");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        self.tls.read_exact(&mut body).unwrap();
        (status, body)
    }

    /// So many new clients.
    pub fn devices(&mut self, prefix: &str, count: usize) -> Vec<Device> {
        let devices = (0..count).map(|n| {
            let device = Device::new(&format!("{prefix}{n}"));
            let (status, _) = self.post("/v1/register", &device.registration());
            assert_eq!(status, 200);
            device
        });
        devices.collect()
    }
}

fn head(path: &str, bytes: usize) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{OCTETS}Content-Length: {bytes}\r\n\r\n")
}
