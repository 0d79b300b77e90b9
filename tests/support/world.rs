//! A node without listeners, on a store that can be made to fail, and real MLS clients that speak with it directly.
//! For what a listener would hide: the order of writes and answers, crashes at a chosen write, the clock.

use std::sync::Arc;

use mimid::{
    account::Registration,
    actors::{
        GroupOptions, Limits, Metrics, Node, NodeParts, ProviderKey,
        arbiters::{ArbiterPool, ArbiterThreads},
        clock::ManualClock,
    },
    client::core::{
        Content, CoreError, Event, Home, Hub, Identity, Member, NewGroup, Operation, SUITES,
        Settled,
    },
    crypto::{BoxKey, SigningKey, random},
    federation::{DomainPattern, Federation, FederationLimits, FederationMetrics, FederationParts},
    group::{HubKey, RetiredKey},
    queue::token::TokenKeys,
    store::{
        SharedStore,
        memory::Disk,
        records::{GroupHead, KeyPrint},
    },
    wire::{
        client::{
            ClientMessage, ClientMessageTbs, Dequeue, Flag, PublishKeyPackages, QueueTokens,
            Register,
        },
        codec::{List, Opaque, Raw, Secret, Text, encode},
        ds::{Accepted, ProtocolVersion},
        extensions::{KeyPackageClass, SignatureScheme},
        ids::{ClientUri, Domain, GroupId, Timestamp},
        key_packages::GroupKeyPackageRequest,
    },
};

use prometheus::Registry;

use super::net::{Net, Road};

/// A provider in one process.
pub struct World {
    pub node: Node,
    pub disk: Disk,
    pub clock: Arc<ManualClock>,
    pub domain: Domain,
    pub federation: Option<Arc<Federation>>,
    /// The same provider, but its deliveries get through.
    pub by_hand: Option<Arc<Federation>>,
    pub store: SharedStore,
    pub arbiters: ArbiterPool,
    threads: ArbiterThreads,
    kept: Kept,
}

/// What a node is started with again.
struct Kept {
    token_key: [u8; 32],
    /// The newest first.
    senders: Vec<ProviderKey>,
    retired: Vec<RetiredKey>,
    s2s: SigningKey,
    options: GroupOptions,
    limits: Limits,
    net: Option<Arc<Net>>,
    deny: Vec<DomainPattern>,
    /// Whether the node brings others by itself what it owes them.
    delivers: bool,
}

pub fn domain() -> Domain {
    Domain::new("a.example").unwrap()
}

/// The real time, to begin with: openmls looks at that when it checks lifetimes.
pub fn clock_of_now() -> Arc<ManualClock> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Arc::new(ManualClock::at(Timestamp(u64::try_from(now.as_millis()).unwrap())))
}

impl Kept {
    fn new(options: GroupOptions, net: Option<Arc<Net>>) -> Self {
        let key = || SigningKey::generate(SignatureScheme::ED25519).unwrap();
        let (not_before, not_after) = (Timestamp(0), Timestamp(u64::MAX));
        let senders = vec![ProviderKey { key: key(), not_before, not_after }];
        let (token_key, s2s, limits, deny) = (random(), key(), Limits::default(), Vec::new());
        let retired = Vec::new();
        Self { token_key, senders, retired, s2s, options, limits, net, deny, delivers: false }
    }
}

impl World {
    pub fn new() -> Self {
        Self::with(|_| ())
    }

    /// `change` sets what is to be other than by default.
    pub fn with(change: impl FnOnce(&mut GroupOptions)) -> Self {
        let mut options = GroupOptions::new(domain());
        change(&mut options);
        Self::start(Disk::new(), clock_of_now(), domain(), Kept::new(options, None))
    }

    /// The provider of `domain` in a network, with the time of that.
    pub fn in_net(domain: &str, net: &Arc<Net>, clock: &Arc<ManualClock>) -> Self {
        Self::in_net_without(domain, net, clock, &[])
    }

    /// As [`World::in_net`], and it brings others by itself what it owes them.
    pub fn that_delivers(domain: &str, net: &Arc<Net>, clock: &Arc<ManualClock>) -> Self {
        let domain = Domain::new(domain).unwrap();
        let mut kept = Kept::new(GroupOptions::new(domain.clone()), Some(Arc::clone(net)));
        kept.delivers = true;
        Self::start(Disk::new(), Arc::clone(clock), domain, kept)
    }

    /// As [`World::in_net`], with what `change` sets; `delivers` as [`World::that_delivers`].
    pub fn in_net_with(
        domain: &str,
        net: &Arc<Net>,
        clock: &Arc<ManualClock>,
        delivers: bool,
        change: impl FnOnce(&mut Limits, &mut GroupOptions),
    ) -> Self {
        let domain = Domain::new(domain).unwrap();
        let mut kept = Kept::new(GroupOptions::new(domain.clone()), Some(Arc::clone(net)));
        kept.delivers = delivers;
        change(&mut kept.limits, &mut kept.options);
        Self::start(Disk::new(), Arc::clone(clock), domain, kept)
    }

    /// As [`World::in_net`], but it does not speak with those of `deny`.
    pub fn in_net_without(
        domain: &str,
        net: &Arc<Net>,
        clock: &Arc<ManualClock>,
        deny: &[&str],
    ) -> Self {
        let domain = Domain::new(domain).unwrap();
        let mut kept = Kept::new(GroupOptions::new(domain.clone()), Some(Arc::clone(net)));
        kept.deny = deny.iter().map(|pattern| pattern.parse().unwrap()).collect();
        Self::start(Disk::new(), Arc::clone(clock), domain, kept)
    }

    fn start(disk: Disk, clock: Arc<ManualClock>, domain: Domain, kept: Kept) -> Self {
        let (arbiters, threads) = ArbiterPool::start(2).unwrap();
        let store = disk.open().unwrap();
        let metrics = Metrics::new().unwrap();
        let for_ever =
            |key| ProviderKey { key, not_before: Timestamp(0), not_after: Timestamp(u64::MAX) };
        let dealings = |net: &Arc<Net>, registry: &Registry, delivers, carried| {
            let clock = Arc::clone(&clock);
            Arc::new(Federation::new(FederationParts {
                domain: domain.clone(),
                signing: vec![for_ever(kept.s2s.clone())],
                external_senders: kept.senders.clone(),
                transport: Arc::new(Road { net: Arc::clone(net), delivers, carried }),
                allow: None,
                deny: kept.deny.clone(),
                limits: FederationLimits::default(),
                metrics: FederationMetrics::register(registry).unwrap(),
                clock: Arc::new(move || {
                    use mimid::actors::Clock as _;
                    clock.now()
                }),
            }))
        };
        let net = kept.net.as_ref();
        let federation = net.map(|net| dealings(net, &metrics.registry, kept.delivers, true));
        let by_hand = net.map(|net| dealings(net, &Registry::new(), true, false));
        let (token_key, senders, options) = (kept.token_key, &kept.senders, &kept.options);
        let node = Node::new(NodeParts {
            domain: domain.clone(),
            store: Arc::clone(&store),
            clock: clock.clone(),
            limits: kept.limits.clone(),
            groups: options.clone(),
            registration: Registration::Open,
            token_keys: TokenKeys::new(vec![(1, BoxKey::from_bytes(token_key).unwrap())]).unwrap(),
            external_senders: senders.clone(),
            metrics,
            arbiters: arbiters.clone(),
            federation: federation.clone(),
        });
        node.replace_retired_senders(kept.retired.clone());
        if let (Some(net), Some(federation)) = (&kept.net, &federation) {
            net.enter(&domain, &node, federation);
        }
        Self { node, disk, clock, domain, federation, by_hand, store, arbiters, threads, kept }
    }

    /// Ends the node as SIGKILL would, and starts another on what was durable.
    pub fn crash(self) -> Self {
        let Self { node, disk, clock, domain, federation, by_hand, store, threads, kept, .. } =
            self;
        disk.crash();
        if let Some(net) = &kept.net {
            net.leave(&domain);
        }
        drop((node, federation, by_hand, store));
        threads.stop_and_join();
        // signed before the new process started is refused: its clients sign anew, later
        clock.advance_ms(1);
        Self::start(disk, clock, domain, kept)
    }

    pub fn end(self) {
        if let Some(net) = &self.kept.net {
            net.leave(&self.domain);
        }
        drop((self.node, self.federation, self.by_hand));
        self.threads.stop_and_join();
    }

    /// The hub has a next key from now on, as `mimid keys rotate` makes one.
    pub fn rotate_hub_key(&mut self) {
        let key = SigningKey::generate(SignatureScheme::ED25519).unwrap();
        let (not_before, not_after) = (self.now(), Timestamp(u64::MAX));
        self.kept.senders.insert(0, ProviderKey { key, not_before, not_after });
        self.node.replace_external_senders(self.kept.senders.clone());
    }

    /// The hub has its newest key alone; the others are retired, and answer for their promises until then.
    pub fn retire_hub_keys(&mut self, answer_until: Timestamp) {
        let now = self.now();
        let old = self.kept.senders.split_off(1);
        self.kept.retired.extend(old.into_iter().map(|ProviderKey { key, not_before, .. }| {
            RetiredKey::new(HubKey { key, since: not_before }, now, answer_until)
        }));
        self.node.replace_retired_senders(self.kept.retired.clone());
        self.node.replace_external_senders(self.kept.senders.clone());
    }

    /// As `mimid keys forget` does, with all that are retired.
    pub fn forget_hub_keys(&mut self) {
        self.kept.retired.clear();
        self.node.replace_retired_senders(Vec::new());
    }

    /// The hub's keys, the newest first.
    pub fn hub_keys(&self) -> Vec<KeyPrint> {
        let print = |sender: &ProviderKey| {
            HubKey { key: sender.key.clone(), since: sender.not_before }.print()
        };
        self.kept.senders.iter().map(print).collect()
    }

    pub async fn head(&self, group: &GroupId) -> GroupHead {
        self.store.group_head(group).await.unwrap().unwrap()
    }

    /// Whether there is, or ever was, a group of this id.
    pub async fn knows(&self, group: &GroupId) -> bool {
        self.store.group_head(group).await.unwrap().is_some()
    }

    pub fn now(&self) -> Timestamp {
        use mimid::actors::Clock as _;
        self.clock.now()
    }

    /// What signs as the hub of its groups.
    pub fn sender(&self) -> &SigningKey {
        &self.kept.senders[0].key
    }

    pub fn hub(&self) -> Hub {
        // the newest
        let external_sender = self.kept.senders[0].key.public().clone();
        Hub { domain: self.domain.clone(), external_sender }
    }

    /// A registered client with a few KeyPackages.
    pub async fn client(&self, user: &str, device: &str) -> TestClient {
        let uri = ClientUri::new(format!("mimi://{}/d/{user}/{device}", self.domain)).unwrap();
        self.register(Identity::generate(uri).unwrap()).await
    }

    /// A further client of `other`'s user.
    pub async fn further(&self, other: &TestClient, device: &str) -> TestClient {
        let uri = ClientUri::of(&other.uri.user(), device).unwrap();
        let user_key = other.member.identity().user_key.clone();
        self.register(Identity::with_user_key(uri, user_key).unwrap()).await
    }

    pub async fn register(&self, identity: Identity) -> TestClient {
        let uri = identity.client.clone();
        let register = Register {
            user: uri.user(),
            device: Text::new(uri.device()).unwrap(),
            credential: Raw::of(&identity.credential()),
            user_key: identity.vouch(identity.client_key.public()).unwrap(),
            scheme: identity.client_key.scheme(),
            client_key: identity.client_key.public().clone(),
            token: Secret::default(),
            csr: Opaque::default(),
        };
        self.enrol(&uri, &identity.client_key, register).await;
        let member = Member::new(Home::in_memory().unwrap(), identity).unwrap();
        let client = TestClient { member, uri };
        client.stock_up(self, 3).await;
        client
    }

    /// Registers a client that signs with `key`, and nothing more.
    pub async fn enrol(&self, uri: &ClientUri, key: &SigningKey, register: Register) {
        let body = Opaque::new(encode(&register)).unwrap();
        let content = ClientMessageTbs {
            version: ProtocolVersion::MIMI10,
            client: uri.clone(),
            endpoint: Text::new("/v1/register").unwrap(),
            timestamp: self.now(),
            nonce: random(),
            body,
        };
        let signature = key.sign_with_label("ClientMessageTBS", &encode(&content)).unwrap();
        let ClientMessageTbs { version, client, endpoint, timestamp, nonce, body } = content;
        let message =
            ClientMessage { version, client, endpoint, timestamp, nonce, body, signature };
        self.node.register(&message, register).await.unwrap();
    }
}

/// One MLS client.
pub struct TestClient {
    pub member: Member,
    pub uri: ClientUri,
}

impl TestClient {
    pub async fn tokens(&self, world: &World, class: KeyPackageClass, last_resort: bool) {
        let flag = if last_resort { Flag::Yes } else { Flag::No };
        let request = QueueTokens { class, last_resort: flag, count: 8, revoke: List::default() };
        let minted = world.node.queue_tokens(&self.uri, request).await.unwrap();
        self.member.store_tokens(class, last_resort, &minted.tokens).unwrap();
    }

    pub async fn stock_up(&self, world: &World, count: usize) {
        self.tokens(world, KeyPackageClass::Group, false).await;
        let made = self
            .member
            .key_packages(KeyPackageClass::Group, SUITES[0], false, count, world.now())
            .unwrap();
        let publish = PublishKeyPackages { key_packages: List::new(made).unwrap() };
        world.node.publish_key_packages(&self.uri, publish).await.unwrap();
    }

    /// KeyPackages of every client of this user, as one who has its consent gets them.
    pub async fn key_packages(&self, world: &World, by: &TestClient) -> Vec<Vec<u8>> {
        self.key_packages_through(world, world, by).await
    }

    /// As [`TestClient::key_packages`]; `by` asks its own provider, `theirs`.
    pub async fn key_packages_through(
        &self,
        world: &World,
        theirs: &World,
        by: &TestClient,
    ) -> Vec<Vec<u8>> {
        let token: [u8; 32] = random();
        let hash = Opaque::new(mimid::crypto::sha256(&token)).unwrap();
        let consent = mimid::wire::client::Consent {
            add: List::new(vec![hash]).unwrap(),
            revoke: List::default(),
        };
        world.node.consent(&self.uri, consent).await.unwrap();
        let request = GroupKeyPackageRequest {
            target_user: self.uri.user(),
            consent_token: Secret::new(token).unwrap(),
            ciphersuites: List::new(vec![1]).unwrap(),
            required: None,
        };
        let answer = theirs.node.group_key_packages(&by.uri, request).await.unwrap();
        let packages = answer.clients.iter().filter_map(|client| client.key_package.as_ref());
        packages.map(|key_package| key_package.as_slice().to_vec()).collect()
    }

    pub async fn create(&self, world: &World) -> GroupId {
        let new = NewGroup { name: "test".into(), ..NewGroup::default() };
        let (group, request) = self.member.create_group(&world.hub(), &new, world.now()).unwrap();
        self.drive(world, request).await.unwrap();
        group
    }

    pub async fn act(
        &self,
        world: &World,
        group: &GroupId,
        operation: Operation,
    ) -> Result<Option<Accepted>, String> {
        let request = self.member.begin(group, operation).map_err(|error| error.to_string())?;
        self.drive(world, request).await
    }

    /// Sends a request until it is answered.
    pub async fn drive(
        &self,
        world: &World,
        request: mimid::wire::ids::RequestId,
    ) -> Result<Option<Accepted>, String> {
        for _ in 0..30 {
            world.clock.advance_ms(1);
            let outbound = match self.member.outbound(request, world.now()) {
                Ok(outbound) => outbound,
                Err(CoreError::NoToken { class, last_resort }) => {
                    self.tokens(world, class, last_resort).await;
                    continue;
                }
                Err(error) => return Err(error.to_string()),
            };
            let response = world.node.group_operation(&self.uri, outbound.message).await;
            match self.member.settle(request, &response, world.now()).map_err(|e| e.to_string())? {
                Settled::Done(accepted) => return Ok(Some(accepted)),
                Settled::Entered => return Ok(None),
                Settled::Again { .. } => {}
                Settled::Refused(refusal) => return Err(refusal.to_string()),
            }
        }
        Err("not answered after 30 tries".into())
    }

    /// Takes in everything that is there, Welcomes included.
    pub async fn receive(&self, world: &World) -> usize {
        self.receive_within(world, 0).await
    }

    /// As [`TestClient::receive`], once there is something.
    pub async fn wait(&self, world: &World) {
        assert!(self.receive_within(world, 50_000).await > 0, "nothing came");
    }

    async fn receive_within(&self, world: &World, wait_ms: u32) -> usize {
        let mut taken = 0;
        loop {
            let acks = self.member.acks().unwrap();
            let wait_ms = if taken == 0 { wait_ms } else { 0 };
            let dequeue = Dequeue { acks: List::new(acks.clone()).unwrap(), max: 100, wait_ms };
            let answer = world.node.dequeue(&self.uri, dequeue).await.unwrap();
            self.member.acknowledged(&acks).unwrap();
            if answer.entries.is_empty() {
                return taken;
            }
            for entry in answer.entries.iter() {
                loop {
                    match self.member.handle(entry, world.now()).unwrap() {
                        mimid::client::core::Handled::Wait => self.resume(world).await,
                        _ => break,
                    }
                }
                taken += 1;
            }
            self.resume(world).await;
        }
    }

    pub async fn resume(&self, world: &World) {
        for (request, _, _) in self.member.pending().unwrap() {
            self.drive(world, request).await.unwrap();
        }
    }

    pub async fn say(&self, world: &World, group: &GroupId, text: &str) -> Accepted {
        let content = Content::text(text).encode();
        self.act(world, group, Operation::Send { content }).await.unwrap().unwrap()
    }

    /// Adds every client of `other`'s user.
    pub async fn add(&self, world: &World, group: &GroupId, other: &TestClient) {
        let key_packages = other.key_packages(world, self).await;
        self.act(world, group, Operation::AddUsers { key_packages }).await.unwrap();
    }

    /// The texts that this client has received.
    pub fn texts(&self) -> Vec<String> {
        let events = self.member.events(0, usize::MAX >> 1).unwrap();
        events
            .into_iter()
            .filter_map(|(_, event)| match event {
                Event::Message { text, .. } => text,
                _ => None,
            })
            .collect()
    }
}
