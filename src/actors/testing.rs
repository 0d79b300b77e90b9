//! A node in memory, people with keys, and a hub that only numbers messages: what the services' tests stand on.

use std::sync::Arc;

use openmls::prelude::{self as mls, BasicCredential};
use openmls_rust_crypto::OpenMlsRustCrypto;

use super::{
    GroupOptions, Limits, Metrics, Node, NodeParts, ProviderKey,
    arbiters::{ArbiterPool, ArbiterThreads},
    clock::{Clock, ManualClock, SystemClock},
};
use crate::{
    account::Registration,
    crypto::{self, BoxKey, SigningKey},
    queue::token::TokenKeys,
    store::{Batch, Page, Write, memory::Disk, records::*},
    wire::{
        client::*,
        codec::{List, Opaque, Raw, Secret, Text, encode},
        ds::{DsError, ProtocolVersion},
        extensions::*,
        ids::*,
        key_packages::{GroupKeyPackageRequest, GroupKeyPackageResponse},
        mls::{Credential, KeyPackage},
        queueing::{FeedAck, QueueEntry, QueueEvent},
    },
};

pub const SUITE: u16 = 1;
pub const ALL: Page = Page { items_max: usize::MAX, bytes_max: usize::MAX };

pub struct World {
    pub disk: Disk,
    pub clock: Arc<ManualClock>,
    pub limits: Limits,
    pub registration: Registration,
    pub node: Node,
    arbiters: ArbiterPool,
    _threads: ArbiterThreads,
}

pub struct Person {
    pub user: UserUri,
    pub client: ClientUri,
    pub user_key: SigningKey,
    pub key: SigningKey,
}

pub fn domain() -> Domain {
    Domain::new("a.example").unwrap()
}

pub fn group(seed: u8) -> GroupId {
    GroupId::of(&domain(), [seed; 16])
}

pub fn event(number: u32) -> QueueEvent {
    QueueEvent::KeyPackagesLow { left: number }
}

impl World {
    pub fn new() -> Self {
        Self::with(Limits::default(), Registration::Open)
    }

    pub fn with(limits: Limits, registration: Registration) -> Self {
        let disk = Disk::new();
        // openmls looks at the real clock when it checks lifetimes
        let clock = Arc::new(ManualClock::at(SystemClock.now()));
        let (arbiters, threads) = ArbiterPool::start(1).unwrap();
        let node = node(&disk, &clock, &limits, &registration, &arbiters);
        Self { disk, clock, limits, registration, node, arbiters, _threads: threads }
    }

    /// The process ends, whatever it was doing, and another one begins.
    pub fn restart(&mut self) {
        let Self { disk, clock, limits, registration, arbiters, .. } = self;
        self.node = node(disk, clock, limits, registration, arbiters);
    }

    pub async fn register(&self, name: &str) -> Person {
        let person = Person::new(name, "phone", None);
        self.try_register(&person).await.unwrap();
        person
    }

    pub async fn try_register(&self, person: &Person) -> Result<Registered, DsError> {
        let register = person.registration();
        let message = self.sign(person, "/v1/register", &register);
        self.node.register(&message, register).await
    }

    pub fn sign<T: tls_codec::Serialize>(
        &self,
        person: &Person,
        endpoint: &str,
        body: &T,
    ) -> ClientMessage {
        person.sign(endpoint, encode(body), self.clock.now(), crypto::random())
    }

    pub async fn tokens(&self, person: &Person, class: TokenClass, count: u8) -> Vec<QueueToken> {
        let (class, last_resort) = match class {
            TokenClass::Group => (KeyPackageClass::Group, Flag::No),
            TokenClass::LastResort => (KeyPackageClass::Group, Flag::Yes),
            TokenClass::Connection => (KeyPackageClass::Connection, Flag::No),
        };
        let request = QueueTokens { class, last_resort, count, revoke: List::default() };
        let minted = self.node.queue_tokens(&person.client, request).await.unwrap();
        minted.tokens.into_vec()
    }

    pub async fn key_packages(
        &self,
        person: &Person,
        class: TokenClass,
        count: u8,
    ) -> Vec<KeyPackage> {
        let tokens = self.tokens(person, class, count).await;
        let now = self.clock.now();
        tokens.into_iter().map(|token| Mold::of(person, class, token, now).make()).collect()
    }

    pub async fn publish(
        &self,
        person: &Person,
        key_packages: Vec<KeyPackage>,
    ) -> Result<KeyPackagesLeft, DsError> {
        let key_packages = List::new(key_packages).unwrap();
        let publish = PublishKeyPackages { key_packages };
        self.node.publish_key_packages(&person.client, publish).await
    }

    pub async fn consent(&self, person: &Person, token: [u8; 32]) {
        let hash = Opaque::new(crypto::sha256(&token)).unwrap();
        let consent = Consent { add: List::new(vec![hash]).unwrap(), revoke: List::default() };
        self.node.consent(&person.client, consent).await.unwrap();
    }

    pub async fn fetch(
        &self,
        by: &Person,
        of: &UserUri,
        token: [u8; 32],
    ) -> GroupKeyPackageResponse {
        let request = GroupKeyPackageRequest {
            target_user: of.clone(),
            consent_token: Secret::new(token).unwrap(),
            ciphersuites: List::new(vec![SUITE]).unwrap(),
            required: None,
        };
        self.node.group_key_packages(&by.client, request).await.unwrap()
    }

    /// A hub's batch: one message, and what its members' queues are left.
    pub async fn accept(
        &self,
        seed: u8,
        except: Option<u64>,
        inbox: Vec<(ClientUri, InboxItem)>,
    ) -> u64 {
        let head = self.node.store.group_head(&group(seed)).await.unwrap();
        let (sequence, revision) =
            head.map_or((1, 0), |head| (head.next_sequence.0, head.revision));
        let mut batch = Batch::new()
            .and(Write::GroupHead(GroupHead {
                group: group(seed),
                status: GroupStatus::Active,
                next_sequence: Sequence(sequence + 1),
                first_sequence: Sequence(1),
                epoch: Epoch(0),
                revision: revision + 1,
                snapshot: Sequence(0),
                previous_snapshot: None,
                created_at: Timestamp(1),
                last_accepted_at: Timestamp(1),
                log_bytes: 1,
                joiner_infos: Vec::new(),
                wake_at: None,
                hub_key: None,
                last: None,
            }))
            .and(Write::Log {
                group: group(seed),
                record: LogRecord {
                    feed: FeedEntry {
                        sequence: Sequence(sequence),
                        accepted_at: self.clock.now(),
                        except: except.map(RecipientId),
                        origin: None,
                        handshake: false,
                        event: encode(&event(u32::try_from(sequence).unwrap())),
                    },
                    change: Vec::new(),
                    follows: None,
                },
            });
        let clients: Vec<ClientUri> = inbox.iter().map(|(client, _)| client.clone()).collect();
        for (index, (client, item)) in inbox.into_iter().enumerate() {
            let key = InboxKey::Group {
                group: group(seed),
                sequence: Sequence(sequence),
                index: u32::try_from(index).unwrap(),
            };
            batch.push(Write::Inbox { client, key, item });
        }
        self.node.store.write(batch).await.unwrap();
        clients.iter().for_each(|client| self.node.hints().inbox(client));
        self.node.hints().feed_grew(&group(seed));
        sequence
    }

    /// Brings `people` into the group with one message; they get what follows it.
    pub async fn add(&self, seed: u8, people: &[&Person], welcome: bool) {
        let head = self.node.store.group_head(&group(seed)).await.unwrap();
        let from = head.map_or(Sequence(1), |head| head.next_sequence).next();
        let open = |(index, person): (usize, &&Person)| {
            let recipient = RecipientId(from.0 * 1000 + index as u64);
            let event = welcome.then(|| encode(&event(0)));
            let group = group(seed);
            let item = InboxItem::Open { group, recipient, from, handshake_only: false, event };
            (person.client.clone(), item)
        };
        let items = people.iter().enumerate().map(open).collect();
        self.accept(seed, None, items).await;
    }

    pub async fn dequeue(
        &self,
        person: &Person,
        acks: &[(u64, u64)],
        wait_ms: u32,
    ) -> Vec<QueueEntry> {
        self.try_dequeue(person, acks, wait_ms).await.unwrap()
    }

    pub async fn try_dequeue(
        &self,
        person: &Person,
        acks: &[(u64, u64)],
        wait_ms: u32,
    ) -> Result<Vec<QueueEntry>, DsError> {
        let dequeue = Dequeue {
            acks: List::new(acks.iter().map(|ack| ack_of(*ack)).collect()).unwrap(),
            max: 100,
            wait_ms,
        };
        Ok(self.node.dequeue(&person.client, dequeue).await?.entries.into_vec())
    }
}

pub fn ack_of((feed, sequence): (u64, u64)) -> FeedAck {
    FeedAck { feed: FeedId(feed), sequence: Sequence(sequence) }
}

pub fn sequences(entries: &[QueueEntry]) -> Vec<(u64, u64)> {
    entries.iter().map(|entry| (entry.feed.0, entry.sequence.0)).collect()
}

fn node(
    disk: &Disk,
    clock: &Arc<ManualClock>,
    limits: &Limits,
    registration: &Registration,
    arbiters: &ArbiterPool,
) -> Node {
    let key = SigningKey::from_seed([3; 32]).unwrap();
    Node::new(NodeParts {
        domain: domain(),
        store: disk.open().unwrap(),
        clock: clock.clone(),
        limits: limits.clone(),
        groups: GroupOptions::new(domain()),
        registration: registration.clone(),
        token_keys: TokenKeys::new(vec![(1, BoxKey::from_bytes([1; 32]).unwrap())]).unwrap(),
        external_senders: vec![ProviderKey {
            key,
            not_before: Timestamp(0),
            not_after: Timestamp(u64::MAX),
        }],
        metrics: Metrics::new().unwrap(),
        arbiters: arbiters.clone(),
        federation: None,
    })
}

pub use crate::queue::token::TokenClass;

impl Person {
    /// A device of a user, who is new unless there is a key.
    pub fn new(name: &str, device: &str, user_key: Option<&SigningKey>) -> Self {
        let new = || SigningKey::generate(SignatureScheme::ED25519).unwrap();
        let user = UserUri::of(&domain(), name).unwrap();
        Self {
            client: ClientUri::of(&user, device).unwrap(),
            user,
            user_key: user_key.cloned().unwrap_or_else(new),
            key: new(),
        }
    }

    pub fn user_key_hash(&self) -> UserKeyHash {
        crypto::user_key_hash(self.user_key.scheme(), self.user_key.public())
    }

    pub fn credential(&self) -> mls::Credential {
        BasicCredential::new(self.client.as_str().as_bytes().to_vec()).into()
    }

    pub fn vouch(&self) -> UserKey {
        let credential: Credential = Raw::of(&self.credential());
        let tbs = UserKeyTbs {
            scheme: self.user_key.scheme(),
            user_public_key: self.user_key.public().clone(),
            leaf_key: self.key.public().clone(),
            credential,
        };
        UserKey {
            scheme: self.user_key.scheme(),
            user_public_key: self.user_key.public().clone(),
            signature: self.user_key.sign_with_label("UserKeyTBS", &encode(&tbs)).unwrap(),
        }
    }

    pub fn registration(&self) -> Register {
        Register {
            user: self.user.clone(),
            device: Text::new(self.client.device()).unwrap(),
            credential: Raw::of(&self.credential()),
            user_key: self.vouch(),
            scheme: self.key.scheme(),
            client_key: self.key.public().clone(),
            token: Secret::default(),
            csr: Opaque::default(),
        }
    }

    pub fn sign(
        &self,
        endpoint: &str,
        body: Vec<u8>,
        timestamp: Timestamp,
        nonce: [u8; 16],
    ) -> ClientMessage {
        let tbs = ClientMessageTbs {
            version: ProtocolVersion::MIMI10,
            client: self.client.clone(),
            endpoint: Text::new(endpoint).unwrap(),
            timestamp,
            nonce,
            body: Opaque::new(body).unwrap(),
        };
        let signature = self.key.sign_with_label("ClientMessageTBS", &encode(&tbs)).unwrap();
        let ClientMessageTbs { version, client, endpoint, timestamp, nonce, body } = tbs;
        ClientMessage { version, client, endpoint, timestamp, nonce, body, signature }
    }
}

/// What a KeyPackage is made of; tests spoil one part at a time.
pub struct Mold<'a> {
    pub person: &'a Person,
    pub credential: mls::Credential,
    pub user_key: UserKey,
    pub extensions: Vec<u16>,
    pub queue: Option<KeyPackageQueue>,
    pub last_resort: bool,
    pub not_before_s: u64,
    pub not_after_s: u64,
}

impl<'a> Mold<'a> {
    pub fn of(person: &'a Person, class: TokenClass, token: QueueToken, now: Timestamp) -> Self {
        let now_s = now.0 / 1000;
        let (class, last_resort) = match class {
            TokenClass::Group => (KeyPackageClass::Group, false),
            TokenClass::LastResort => (KeyPackageClass::Group, true),
            TokenClass::Connection => (KeyPackageClass::Connection, false),
        };
        Self {
            person,
            credential: person.credential(),
            user_key: person.vouch(),
            extensions: vec![USER_KEY, CLIENT_QUEUE_CONFIG, GROUP_POLICY, 0x000A],
            queue: Some(KeyPackageQueue {
                class,
                config: ClientQueueConfig { domain: domain(), queue_token: token },
            }),
            last_resort,
            not_before_s: now_s - 3600,
            not_after_s: now_s + 80 * 24 * 3600,
        }
    }

    pub fn make(self) -> KeyPackage {
        let unknown = |code, bytes| mls::Extension::Unknown(code, mls::UnknownExtension(bytes));
        let extensions: Vec<mls::ExtensionType> =
            self.extensions.iter().map(|code| mls::ExtensionType::from(*code)).collect();
        let mut builder = mls::KeyPackage::builder()
            .key_package_lifetime(mls::Lifetime::init(self.not_before_s, self.not_after_s))
            .leaf_node_capabilities(mls::Capabilities::new(
                None,
                None,
                Some(&extensions),
                None,
                None,
            ))
            .leaf_node_extensions(
                mls::Extensions::single(unknown(USER_KEY, encode(&self.user_key))).unwrap(),
            );
        if let Some(queue) = &self.queue {
            let extension = unknown(CLIENT_QUEUE_CONFIG, encode(queue));
            builder = builder.key_package_extensions(mls::Extensions::single(extension).unwrap());
        }
        if self.last_resort {
            builder = builder.mark_as_last_resort();
        }
        let with_key = mls::CredentialWithKey {
            credential: self.credential,
            signature_key: self.person.key.public().as_slice().into(),
        };
        let suite = mls::Ciphersuite::try_from(SUITE).unwrap();
        let provider = OpenMlsRustCrypto::default();
        let bundle = builder.build(suite, &provider, &self.person.key, with_key).unwrap();
        Raw::of(bundle.key_package())
    }
}
