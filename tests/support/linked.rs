//! Two nodes in one process that speak with each other as providers do, without sockets: messages are signed, carried
//! and judged, and how many bytes they have is counted. For what must be measured without a network.

#![allow(dead_code, reason = "each binary uses a part of it")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use mimid::{
    account::Registration,
    actors::{
        Clock, GroupOptions, Limits, Metrics, Node, NodeParts,
        arbiters::{ArbiterPool, ArbiterThreads},
        clock::SystemClock,
    },
    client::core::Identity,
    crypto::{BoxKey, SigningKey, random},
    federation::{
        CallError, Federation, FederationLimits, FederationMetrics, FederationParts, HttpAnswer,
        ProviderKey, Transport,
    },
    queue::token::TokenKeys,
    store::{SharedStore, memory::Disk},
    wire::{
        client::{ClientMessage, ClientMessageTbs, ClientResponse, Flag, QueueTokens, Register},
        codec::{List, Opaque, Raw, Secret, Text, encode},
        ds::{DsResponse, Outcome, ProtocolVersion},
        extensions::{KeyPackageClass, QueueToken, SignatureScheme},
        federation::S2SEndpoint,
        ids::{ClientUri, Domain, Timestamp},
    },
};
use tokio::sync::watch;

/// What a client of a new user registers with.
pub fn register_of(identity: &Identity) -> Register {
    Register {
        user: identity.client.user(),
        device: Text::new(identity.client.device()).unwrap(),
        credential: Raw::of(&identity.credential()),
        user_key: identity.vouch(identity.client_key.public()).unwrap(),
        scheme: identity.client_key.scheme(),
        client_key: identity.client_key.public().clone(),
        token: Secret::default(),
        csr: Opaque::default(),
    }
}

/// One provider.
pub struct Side {
    pub domain: Domain,
    pub node: Node,
    pub store: SharedStore,
    federation: Arc<Federation>,
    /// What signs for it as a hub.
    pub sender: SigningKey,
    threads: ArbiterThreads,
}

/// Two providers and the way between them.
pub struct Linked {
    pub a: Side,
    pub b: Side,
    ways: Arc<Ways>,
}

struct Ways {
    sides: BTreeMap<Domain, OnceLock<(Arc<Federation>, Node)>>,
    is_open: watch::Sender<bool>,
    bytes: AtomicU64,
}

impl Linked {
    /// a.example and b.example, each with a store in memory.
    pub fn start() -> Self {
        let domains = ["a.example", "b.example"].map(|domain| Domain::new(domain).unwrap());
        let sides = domains.iter().map(|domain| (domain.clone(), OnceLock::new())).collect();
        let (is_open, _) = watch::channel(true);
        let ways = Arc::new(Ways { sides, is_open, bytes: AtomicU64::new(0) });
        let [a, b] = domains.map(|domain| Side::start(domain, Disk::new().open().unwrap(), &ways));
        Self { a, b, ways }
    }

    /// Whether messages get through, or wait.
    pub fn open(&self, open: bool) {
        self.ways.is_open.send_replace(open);
    }

    /// Bytes of the bodies that went either way.
    pub fn bytes(&self) -> u64 {
        self.ways.bytes.load(Ordering::SeqCst)
    }

    pub fn end(self) {
        let Self { a, b, ways } = self;
        drop(ways);
        for side in [a, b] {
            let Side { node, store, federation, threads, .. } = side;
            drop((node, store, federation));
            threads.stop_and_join();
        }
    }
}

impl Side {
    fn start(domain: Domain, store: SharedStore, ways: &Arc<Ways>) -> Self {
        let (arbiters, threads) = ArbiterPool::start(2).unwrap();
        let metrics = Metrics::new().unwrap();
        let key = || SigningKey::generate(SignatureScheme::ED25519).unwrap();
        let (signing, sender) = (key(), key());
        let always = |key: &SigningKey| ProviderKey {
            key: key.clone(),
            not_before: Timestamp(0),
            not_after: Timestamp(u64::MAX),
        };
        let federation = Arc::new(Federation::new(FederationParts {
            domain: domain.clone(),
            signing: vec![always(&signing)],
            external_senders: vec![always(&sender)],
            transport: Arc::clone(ways) as Arc<dyn Transport>,
            allow: None,
            deny: Vec::new(),
            limits: FederationLimits::default(),
            metrics: FederationMetrics::register(&metrics.registry).unwrap(),
            clock: Arc::new(|| SystemClock.now()),
        }));
        let mut groups = GroupOptions::new(domain.clone());
        groups.settings.members_max = 20_000;
        let node = Node::new(NodeParts {
            domain: domain.clone(),
            store: Arc::clone(&store),
            clock: Arc::new(SystemClock),
            limits: Limits::default(),
            groups,
            registration: Registration::Open,
            token_keys: TokenKeys::new(vec![(1, BoxKey::from_bytes(random()).unwrap())]).unwrap(),
            external_senders: vec![always(&sender)],
            metrics,
            arbiters,
            federation: Some(Arc::clone(&federation)),
        });
        let known = ways.sides[&domain].set((Arc::clone(&federation), node.clone()));
        assert!(known.is_ok(), "each domain is started once");
        Self { domain, node, store, federation, sender, threads }
    }

    /// Registers a client that signs with `key`, and gives a queue token of its.
    pub async fn enrol(&self, uri: &ClientUri, key: &SigningKey, register: Register) -> QueueToken {
        let tbs = ClientMessageTbs {
            version: ProtocolVersion::MIMI10,
            client: uri.clone(),
            endpoint: Text::new("/v1/register").unwrap(),
            timestamp: SystemClock.now(),
            nonce: random(),
            body: Opaque::new(encode(&register)).unwrap(),
        };
        let signature = key.sign_with_label("ClientMessageTBS", &encode(&tbs)).unwrap();
        let ClientMessageTbs { version, client, endpoint, timestamp, nonce, body } = tbs;
        let message =
            ClientMessage { version, client, endpoint, timestamp, nonce, body, signature };
        self.node.register(&message, register).await.unwrap();
        self.tokens(uri, 1).await.remove(0)
    }

    pub async fn tokens(&self, uri: &ClientUri, count: u8) -> Vec<QueueToken> {
        let request = QueueTokens {
            class: KeyPackageClass::Group,
            last_resort: Flag::No,
            count,
            revoke: List::default(),
        };
        self.node.queue_tokens(uri, request).await.unwrap().tokens.into_vec()
    }
}

impl Transport for Ways {
    fn get<'a>(
        &'a self,
        peer: &'a Domain,
        path: &'static str,
        _answer_bytes_max: usize,
        _timeout: Duration,
    ) -> BoxFuture<'a, Result<HttpAnswer, CallError>> {
        Box::pin(async move {
            let (federation, _) = self.side(peer).await?;
            let keys = match path {
                "/verification_key" => federation.verification_keys(),
                "/signature_key" => federation.signature_keys(),
                other => panic!("nobody gets {other}"),
            };
            Ok(HttpAnswer { status: 200, retry_after_ms: None, body: encode(&keys) })
        })
    }

    fn post<'a>(
        &'a self,
        peer: &'a Domain,
        path: &'static str,
        body: Vec<u8>,
        _answer_bytes_max: usize,
        _timeout: Duration,
    ) -> BoxFuture<'a, Result<HttpAnswer, CallError>> {
        Box::pin(async move {
            let (federation, node) = self.side(peer).await?;
            self.bytes.fetch_add(body.len() as u64, Ordering::SeqCst);
            let endpoint = ENDPOINTS.into_iter().find(|it| it.path() == path).unwrap();
            let answered = match federation.open(endpoint, &body).await {
                Ok(opened) => node.federated(opened).await,
                Err(error) => Err(error),
            };
            Ok(match answered {
                Ok(body) => HttpAnswer { status: 200, retry_after_ms: None, body },
                Err(error) if endpoint.answers_ds_response() => {
                    let version = ProtocolVersion::MIMI10;
                    let body = encode(&DsResponse { version, outcome: Outcome::Err(error) });
                    HttpAnswer { status: 400, retry_after_ms: None, body }
                }
                Err(error) => {
                    let body = encode(&ClientResponse { outcome: Outcome::Err(error) });
                    HttpAnswer { status: 400, retry_after_ms: None, body }
                }
            })
        })
    }
}

impl Ways {
    async fn side(&self, peer: &Domain) -> Result<(Arc<Federation>, Node), CallError> {
        // its sender is `self`
        let _ = self.is_open.subscribe().wait_for(|open| *open).await;
        let known = self.sides.get(peer).and_then(OnceLock::get);
        known.cloned().ok_or_else(|| CallError::Discovery("there is no such provider".to_owned()))
    }
}

const ENDPOINTS: [S2SEndpoint; 10] = [
    S2SEndpoint::GroupOperation,
    S2SEndpoint::WelcomeInformation,
    S2SEndpoint::ExternalCommitInformation,
    S2SEndpoint::ConnectionRequest,
    S2SEndpoint::DeliverMessage,
    S2SEndpoint::ConnectionKeyPackages,
    S2SEndpoint::GroupKeyPackages,
    S2SEndpoint::MigrationRequest,
    S2SEndpoint::MigrationContent,
    S2SEndpoint::Complaint,
];
