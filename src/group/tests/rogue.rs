//! A client that is openmls and nothing else: it can say and sign what the client library would not.

use openmls::{
    group::PURE_PLAINTEXT_WIRE_FORMAT_POLICY,
    prelude::{
        self as mls, CommitBuilder, OpenMlsProvider as _, ProcessedMessageContent,
        tls_codec::{DeserializeBytes, Serialize as _},
    },
};
use openmls_memory_storage::MemoryStorage;

use super::scenario::{Scenario, domain, uri};
use crate::{
    client::core::{Operation, SUITES},
    crypto::{self, MlsCrypto, MlsProvider, SigningKey},
    group::mls::info_parts,
    store::records::{InboxItem, LogRecord},
    wire::{
        codec::{List, Opaque, Raw, ShortOpaque, append_vector, decode, encode},
        ds::{
            DsContext, DsMessage, DsRequest, DsSenderId, GroupUpdate, Info, JoinGroup, Propose,
            ProtocolVersion, ds_message_tbs,
        },
        extensions::{
            CLIENT_QUEUE_CONFIG, ClientQueueConfig, GROUP_POLICY, JoinProof, JoinProofTbs,
            KeyPackageClass, KeyPackageQueue, PublicKey, SignatureScheme, USER_KEY, UserKey,
            UserKeyTbs,
        },
        ids::{ClientUri, KeyPackageRef, LeafIndex, RequestId, UserKeyHash},
        mls::MlsMessage,
        queueing::QueueEvent,
    },
};

pub(super) type Builder<'a> = CommitBuilder<'a, mls::Initial>;

pub(super) struct Rogue {
    pub client: ClientUri,
    pub user: SigningKey,
    pub leaf: SigningKey,
    pub provider: MlsProvider<MemoryStorage>,
    pub group: Option<mls::MlsGroup>,
    /// What its leaf says of its user; none: the truth.
    pub user_key: Option<Option<UserKey>>,
    pub class: KeyPackageClass,
    pub queue: Option<ClientQueueConfig>,
    pub days: u64,
}

pub(super) fn ed25519() -> SigningKey {
    SigningKey::generate(SignatureScheme::ED25519).unwrap()
}

pub(super) fn unknown(kind: u16, value: Vec<u8>) -> mls::Extension {
    mls::Extension::Unknown(kind, mls::UnknownExtension(value))
}

pub(super) fn capabilities() -> mls::Capabilities {
    let extensions = [USER_KEY, CLIENT_QUEUE_CONFIG, GROUP_POLICY].map(mls::ExtensionType::Unknown);
    mls::Capabilities::new(
        None,
        Some(&SUITES),
        Some(&extensions),
        Some(&[mls::ProposalType::SelfRemove, mls::ProposalType::Custom(0xF777)]),
        Some(&[mls::CredentialType::Basic]),
    )
}

impl Rogue {
    pub(super) fn new(name: &str) -> Self {
        Self::of_user(name, ed25519())
    }

    pub(super) fn of_user(name: &str, user: SigningKey) -> Self {
        Self {
            client: uri(name),
            user,
            leaf: ed25519(),
            provider: MlsProvider::new(MemoryStorage::default()),
            group: None,
            user_key: None,
            class: KeyPackageClass::Group,
            queue: None,
            days: 30,
        }
    }

    /// A member beside `adder` and the others.
    pub(super) fn member(scenario: &mut Scenario, adder: &str, name: &str) -> Self {
        let mut rogue = Self::new(name);
        rogue.come_in(scenario, adder);
        rogue
    }

    pub(super) fn come_in(&mut self, scenario: &mut Scenario, adder: &str) {
        let key_packages = vec![encode(&self.key_package())];
        scenario.act(adder, Operation::AddUsers { key_packages }).unwrap();
        scenario.deliver_all();
        self.take_welcome(scenario);
    }

    pub(super) fn take_welcome(&mut self, scenario: &mut Scenario) {
        let at = scenario.unclaimed.iter().position(|(client, _)| *client == self.client);
        let (_, item) = scenario.unclaimed.remove(at.expect("something was left for it"));
        let InboxItem::Open { event: Some(event), .. } = item else { panic!("no Welcome") };
        let QueueEvent::Welcome { welcome, .. } = decode(&event).unwrap() else { panic!() };
        let mls::MlsMessageBodyIn::Welcome(welcome) = welcome.parse().unwrap().extract() else {
            panic!("no Welcome")
        };
        let info = scenario.state.joiner_info().unwrap();
        let group = mls::StagedWelcome::build_from_welcome(&self.provider, &join_config(), welcome)
            .unwrap()
            .with_ratchet_tree(info.ratchet_tree.parse().unwrap())
            .skip_lifetime_validation()
            .build()
            .unwrap()
            .into_group(&self.provider)
            .unwrap();
        self.group = Some(group);
    }

    pub(super) fn vouch(&self, leaf_key: &PublicKey) -> UserKey {
        vouch(&self.user, &self.client, leaf_key)
    }

    pub(super) fn user_key_hash(&self) -> UserKeyHash {
        crypto::user_key_hash(self.user.scheme(), self.user.public())
    }

    pub(super) fn credential(&self, key: &SigningKey) -> mls::CredentialWithKey {
        mls::CredentialWithKey {
            credential: mls::BasicCredential::new(self.client.as_str().as_bytes().to_vec()).into(),
            signature_key: key.public().as_slice().into(),
        }
    }

    pub(super) fn leaf_extensions(&self, key: &SigningKey) -> mls::Extensions<mls::LeafNode> {
        let user_key = match &self.user_key {
            None => Some(self.vouch(key.public())),
            Some(given) => given.clone(),
        };
        match user_key {
            Some(user_key) => {
                mls::Extensions::single(unknown(USER_KEY, encode(&user_key))).unwrap()
            }
            None => mls::Extensions::empty(),
        }
    }

    pub(super) fn leaf_parameters(&self, key: &SigningKey) -> mls::LeafNodeParameters {
        mls::LeafNodeParameters::builder()
            .with_capabilities(capabilities())
            .with_extensions(self.leaf_extensions(key))
            .build()
    }

    pub(super) fn config(&self) -> ClientQueueConfig {
        self.queue.clone().unwrap_or_else(|| ClientQueueConfig {
            domain: domain(),
            queue_token: Opaque::new(crypto::random::<32>()).unwrap(),
        })
    }

    pub(super) fn key_package(&self) -> mls::KeyPackage {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let queue = KeyPackageQueue { class: self.class, config: self.config() };
        mls::KeyPackage::builder()
            .key_package_lifetime(mls::Lifetime::init(
                now.as_secs() - 3600,
                now.as_secs() - 3600 + self.days * 86_400,
            ))
            .leaf_node_capabilities(capabilities())
            .leaf_node_extensions(self.leaf_extensions(&self.leaf))
            .key_package_extensions(
                mls::Extensions::single(unknown(CLIENT_QUEUE_CONFIG, encode(&queue))).unwrap(),
            )
            .build(SUITES[0], &self.provider, &self.leaf, self.credential(&self.leaf))
            .unwrap()
            .into_key_package()
    }

    /// Its KeyPackage with other keys to encrypt to, signed as it must be: what no MLS library makes.
    pub(super) fn key_package_with(
        &self,
        init_key: Option<[u8; 32]>,
        encryption_key: Option<[u8; 32]>,
    ) -> Vec<u8> {
        let made = self.key_package();
        let mut bytes = encode(&made);
        let mut put = |old: &[u8], new: Option<[u8; 32]>| {
            let at = bytes.windows(32).position(|it| it == old).unwrap();
            bytes[at..at + 32].copy_from_slice(&new.unwrap_or(old.try_into().unwrap()));
        };
        put(made.hpke_init_key().as_slice(), init_key);
        put(&encode(made.leaf_node().encryption_key())[1..], encryption_key);
        let head = 2 + 2 + 1 + 32;
        let signature = 2 + 64;
        let leaf_end = head + encode(made.leaf_node()).len();
        let signed = self.signature("LeafNodeTBS", &bytes[head..leaf_end - signature]);
        bytes[leaf_end - 64..leaf_end].copy_from_slice(&signed);
        let end = bytes.len();
        let signed = self.signature("KeyPackageTBS", &bytes[..end - signature]);
        bytes[end - 64..].copy_from_slice(&signed);
        bytes
    }

    fn signature(&self, label: &str, content: &[u8]) -> Vec<u8> {
        let mut labelled = Vec::new();
        append_vector(&mut labelled, format!("MLS 1.0 {label}").as_bytes());
        append_vector(&mut labelled, content);
        openmls_traits::signatures::Signer::sign(&self.leaf, &labelled).unwrap()
    }

    pub(super) fn reference(&self, key_package: &mls::KeyPackage) -> KeyPackageRef {
        let reference = key_package.hash_ref(&self.provider.crypto).unwrap();
        KeyPackageRef(Opaque::new(reference.as_slice()).unwrap())
    }

    pub(super) fn group(&mut self) -> &mut mls::MlsGroup {
        self.group.as_mut().expect("a member")
    }

    pub(super) fn leaf_index(&self) -> LeafIndex {
        LeafIndex(self.group.as_ref().expect("a member").own_leaf_index().u32())
    }

    /// Processes what it has not seen of the group's handshakes, and of what is void nothing.
    pub(super) fn follow(&mut self, scenario: &Scenario) {
        let provider = &self.provider;
        let group = self.group.as_mut().expect("a member");
        let void = scenario.records.iter().filter_map(|record| match decode(&record.feed.event) {
            Ok(QueueEvent::EpochVoid { group_sequence, .. }) => {
                Some(group_sequence..=record.feed.sequence)
            }
            _ => None,
        });
        let void: Vec<_> = void.collect();
        let stands = |record: &&LogRecord| {
            record.feed.handshake && !void.iter().any(|void| void.contains(&record.feed.sequence))
        };
        for record in scenario.records.iter().filter(stands) {
            let Ok(QueueEvent::MlsMessage { message }) = decode(&record.feed.event) else {
                continue;
            };
            let protocol = message.parse().unwrap().try_into_protocol_message().unwrap();
            if protocol.epoch() != group.epoch() {
                continue;
            }
            match group.process_message(provider, protocol).unwrap().into_content() {
                ProcessedMessageContent::ProposalMessage(proposal)
                | ProcessedMessageContent::ExternalJoinProposalMessage(proposal) => {
                    group.store_pending_proposal(provider.storage(), *proposal).unwrap();
                }
                ProcessedMessageContent::StagedCommitMessage(staged) => {
                    group.merge_staged_commit(provider, *staged).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// A commit as `shape` makes it, which this client forgets at once, of nothing that is pending unless that says so.
    pub(super) fn commit(
        &mut self,
        shape: impl for<'a> FnOnce(Builder<'a>) -> Builder<'a>,
    ) -> GroupUpdate {
        self.commit_with(None, shape)
    }

    /// As [`Rogue::commit`], with a new signature key.
    pub(super) fn commit_with(
        &mut self,
        new_key: Option<(&SigningKey, mls::CredentialWithKey)>,
        shape: impl for<'a> FnOnce(Builder<'a>) -> Builder<'a>,
    ) -> GroupUpdate {
        self.commit_by(&MlsCrypto::default(), new_key, shape)
    }

    /// As [`Rogue::commit_with`], with cryptography that may lie.
    pub(super) fn commit_by(
        &mut self,
        crypto: &impl mls::OpenMlsCrypto,
        new_key: Option<(&SigningKey, mls::CredentialWithKey)>,
        shape: impl for<'a> FnOnce(Builder<'a>) -> Builder<'a>,
    ) -> GroupUpdate {
        let (provider, leaf) = (&self.provider, &self.leaf);
        let group = self.group.as_mut().expect("a member");
        let builder =
            shape(group.commit_builder().consume_proposal_store(false).force_self_update(true));
        let builder = builder
            .load_psks(provider.storage())
            .unwrap()
            .create_group_info(true)
            .use_ratchet_tree_extension(false);
        let rand = provider.rand();
        let built = match new_key {
            None => builder.build(rand, crypto, leaf, |_| true),
            Some((signer, credential_with_key)) => builder.build_with_new_signer(
                rand,
                crypto,
                leaf,
                mls::NewSignerBundle { signer, credential_with_key },
                |_| true,
            ),
        };
        let bundle = built.unwrap().stage_commit(provider).unwrap();
        let (commit, welcome, info) = bundle.into_messages();
        group.clear_pending_commit(provider.storage()).unwrap();
        update_of(&commit, welcome.as_ref(), &info.unwrap())
    }

    /// An external commit of this client, which is not in the group, or is to replace its own leaf there.
    pub(super) fn external_commit(&mut self, info: &Info, aad: Vec<u8>) -> GroupUpdate {
        let provider = &self.provider;
        let proposals = info
            .pending
            .iter()
            .filter_map(|message| match message.parse().unwrap().extract() {
                mls::MlsMessageBodyIn::PublicMessage(message) => Some(message),
                _ => None,
            })
            .collect();
        let (group, bundle) = mls::MlsGroup::external_commit_builder()
            .with_proposals(proposals)
            .with_ratchet_tree(info.ratchet_tree.parse().unwrap())
            .with_config(join_config())
            .with_aad(aad)
            .skip_lifetime_validation()
            .build_group(provider, info.group_info.parse().unwrap(), self.credential(&self.leaf))
            .unwrap()
            .leaf_node_parameters(self.leaf_parameters(&self.leaf))
            .load_psks(provider.storage())
            .unwrap()
            .build(provider.rand(), provider.crypto(), &self.leaf, |_| true)
            .unwrap()
            .finalize(provider)
            .unwrap();
        let exported = group.export_group_info(provider.crypto(), &self.leaf, false).unwrap();
        self.group = Some(group);
        update_of(bundle.commit(), None, &exported)
    }

    pub(super) fn join(&mut self, scenario: &Scenario) -> DsMessage {
        let update = self.external_commit(&scenario.state.info().unwrap(), Vec::new());
        self.join_with(scenario, update)
    }

    pub(super) fn join_with(&self, scenario: &Scenario, update: GroupUpdate) -> DsMessage {
        let request = DsRequest::JoinGroup(JoinGroup {
            group_id: scenario.id.clone(),
            update,
            client_queue_config: self.config(),
        });
        let sender = DsSenderId::UserKeyHash(self.user_key_hash());
        sign(scenario, sender, request, &self.user)
    }

    /// A newcomer's Add, with the proof of a code in its authenticated_data, which openmls cannot put there.
    pub(super) fn ask_to_join(&self, scenario: &Scenario, code: Option<u8>) -> DsMessage {
        let key_package = self.key_package();
        let aad = code.map(|seed| encode(&self.proof(scenario, seed))).unwrap_or_default();
        let mut content = head(scenario, &[NEW_MEMBER_PROPOSAL]);
        append_vector(&mut content, &aad);
        content.push(PROPOSAL);
        content.extend(1_u16.to_be_bytes()); // add
        content.extend(encode(&key_package));
        let proposal = self.framed(&content, &[], &[]);
        let request = DsRequest::Propose(Propose { proposals: List::new(vec![proposal]).unwrap() });
        let sender = DsSenderId::KeyPackageRef(self.reference(&key_package));
        sign(scenario, sender, request, &self.leaf)
    }

    /// A proposal from its leaf as the bytes `proposal` have it: for what openmls does not make.
    pub(super) fn handmade_proposal(&self, scenario: &Scenario, proposal: &[u8]) -> MlsMessage {
        let mut content = head(scenario, &self.member_sender());
        append_vector(&mut content, &[]);
        content.push(PROPOSAL);
        content.extend(proposal);
        // a hub has no secret to verify the membership tag with
        let mut membership_tag = Vec::new();
        append_vector(&mut membership_tag, &[7; 32]);
        self.framed(&content, &encode(scenario.state.tree.context()), &membership_tag)
    }

    /// `commit` of its own, external or not, with `more` proposals by value behind those that it has, signed again. The
    /// path and what is made of secrets stay as they were.
    pub(super) fn with_proposals(
        &self,
        scenario: &Scenario,
        commit: &MlsMessage,
        more: &[Vec<u8>],
    ) -> MlsMessage {
        let bytes = commit.as_slice();
        let tag = 1 + 32;
        let signature = 2 + 64;
        let external = bytes[4 + head(scenario, &[]).len()] == NEW_MEMBER_COMMIT;
        let (sender, tags) = if external {
            (vec![NEW_MEMBER_COMMIT], tag)
        } else {
            (self.member_sender(), tag + tag)
        };
        let mut content = head(scenario, &sender);
        append_vector(&mut content, &[]);
        content.push(COMMIT);
        let (framed, rest) = bytes.split_at(4 + content.len());
        assert_eq!(&framed[4..], content, "a commit of this member without authenticated_data");
        let (proposals, path) =
            <Opaque<100_000> as DeserializeBytes>::tls_deserialize_bytes(rest).unwrap();
        let path = &path[..path.len() - signature - tags];
        append_vector(&mut content, &[proposals.as_slice(), &more.concat()].concat());
        content.extend(path);
        let context = encode(scenario.state.tree.context());
        self.framed(&content, &context, &bytes[bytes.len() - tags..])
    }

    fn member_sender(&self) -> Vec<u8> {
        [&[MEMBER], self.leaf_index().0.to_be_bytes().as_slice()].concat()
    }

    /// A PublicMessage: FramedContent, its signature, and what follows that. RFC 9420 §6.1, §6.2.
    fn framed(&self, content: &[u8], context: &[u8], rest: &[u8]) -> MlsMessage {
        let mut framed = 1_u16.to_be_bytes().to_vec(); // mls10
        framed.extend(1_u16.to_be_bytes()); // public_message
        framed.extend(content);
        let content = [framed.as_slice(), context].concat();
        let signature = self.signature("FramedContentTBS", &content);
        append_vector(&mut framed, &signature);
        framed.extend(rest);
        Raw::new(framed).unwrap()
    }

    pub(super) fn proof(&self, scenario: &Scenario, seed: u8) -> JoinProof {
        let code = SigningKey::from_seed([seed; 32]).unwrap();
        let tbs = JoinProofTbs {
            group_id: scenario.id.clone(),
            user_key_hash: self.user_key_hash(),
            leaf_key: self.leaf.public().clone(),
        };
        let signature = code.sign_with_label("JoinProofTBS", &encode(&tbs)).unwrap();
        JoinProof { public_key: code.public().clone(), signature }
    }

    /// `request` from its leaf.
    pub(super) fn request(&self, scenario: &Scenario, request: DsRequest) -> DsMessage {
        sign(scenario, DsSenderId::LeafIndex(self.leaf_index()), request, &self.leaf)
    }

    pub(super) fn propose(&self, scenario: &Scenario, message: &mls::MlsMessageOut) -> DsMessage {
        let proposals = List::new(vec![Raw::of(message)]).unwrap();
        self.request(scenario, DsRequest::Propose(Propose { proposals }))
    }
}

pub(super) fn vouch(user: &SigningKey, client: &ClientUri, leaf_key: &PublicKey) -> UserKey {
    let (scheme, user_public_key) = (user.scheme(), user.public().clone());
    let credential: mls::Credential =
        mls::BasicCredential::new(client.as_str().as_bytes().to_vec()).into();
    let tbs = UserKeyTbs {
        scheme,
        user_public_key: user_public_key.clone(),
        leaf_key: leaf_key.clone(),
        credential: Raw::of(&credential),
    };
    let signature = user.sign_with_label("UserKeyTBS", &encode(&tbs)).unwrap();
    UserKey { scheme, user_public_key, signature }
}

pub(super) fn context(scenario: &Scenario) -> DsContext {
    DsContext {
        version: ProtocolVersion::MIMI10,
        hub_domain: domain(),
        group_id: scenario.id.clone(),
        timestamp: scenario.now,
        request_id: RequestId(crypto::random()),
    }
}

pub(super) fn sign(
    scenario: &Scenario,
    sender_id: DsSenderId,
    request: DsRequest,
    signer: &SigningKey,
) -> DsMessage {
    sign_in(context(scenario), sender_id, request, signer)
}

pub(super) fn sign_in(
    context: DsContext,
    sender_id: DsSenderId,
    request: DsRequest,
    signer: &SigningKey,
) -> DsMessage {
    let tbs = ds_message_tbs(&sender_id, &request, &context);
    let signature = signer.sign_with_label("DSMessageTBS", &tbs).unwrap();
    DsMessage {
        sender_id,
        request,
        signature: ShortOpaque::new(signature.as_slice()).unwrap(),
        context,
    }
}

/// The head of a FramedContent of this epoch.
fn head(scenario: &Scenario, sender: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    append_vector(&mut content, scenario.id.as_bytes());
    content.extend(scenario.state.epoch().0.to_be_bytes());
    content.extend(sender);
    content
}

fn update_of(
    commit: &mls::MlsMessageOut,
    welcome: Option<&mls::MlsMessageOut>,
    info: &mls::MlsMessageOut,
) -> GroupUpdate {
    let bytes = info.tls_serialize_detached().unwrap();
    let group_info = info_parts(&Raw::new(&bytes[4..]).unwrap()).unwrap().partial;
    GroupUpdate { commit: Raw::of(commit), group_info, welcome: welcome.map(Raw::of) }
}

fn join_config() -> mls::MlsGroupJoinConfig {
    mls::MlsGroupJoinConfig::builder()
        .wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY)
        .use_ratchet_tree_extension(false)
        .build()
}

// SenderType and ContentType of RFC 9420 §6
const MEMBER: u8 = 1;
const NEW_MEMBER_PROPOSAL: u8 = 3;
const NEW_MEMBER_COMMIT: u8 = 4;
const PROPOSAL: u8 = 2;
const COMMIT: u8 = 3;
