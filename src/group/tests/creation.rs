//! Groups that a hub must not let begin. PROTOCOL.md §2, "create_group".

use std::sync::Arc;

use openmls::prelude::tls_codec::Serialize as _;
use openmls::{group::PURE_PLAINTEXT_WIRE_FORMAT_POLICY, prelude as mls};
use openmls_traits::OpenMlsProvider as _;

use super::rogue::{Rogue, capabilities, ed25519, sign_in, unknown};
use super::scenario::{Scenario, domain};
use crate::{
    client::core::SUITES,
    crypto::{MlsCrypto, SigningKey},
    group::{GroupState, Hub, HubKeys, Reject, Request, Settings, hub::external_sender},
    rate::GroupRates,
    wire::{
        codec::{List, Raw, encode},
        ds::{CreateGroup, DsContext, DsRequest, DsSenderId, ProtocolVersion},
        extensions::{
            ClientQueueConfig, GROUP_POLICY, GroupPolicy, Role, SignatureScheme, USER_KEY,
        },
        ids::{Domain, GroupId, LeafIndex, RequestId},
        mls::RatchetTree,
    },
};

/// What a creator says, each part of which a test may change.
struct Founding {
    scenario: Scenario,
    rogue: Rogue,
    /// In the request, in its context, and in the GroupInfo.
    ids: [GroupId; 3],
    sender: DsSenderId,
    signer: SigningKey,
    /// That the hub takes.
    ciphersuites: Vec<u16>,
    policy: GroupPolicy,
    required: Vec<mls::ExtensionType>,
    capabilities: mls::Capabilities,
    senders: Option<Vec<mls::ExternalSender>>,
    queue: ClientQueueConfig,
    /// That the request is addressed to, and how far its clock is ahead.
    hub: Domain,
    ahead_ms: u64,
    key_package_of: Option<Rogue>,
    tree: Option<RatchetTree>,
    commits: usize,
}

impl Founding {
    fn new() -> Self {
        let scenario = Scenario::group_of(["alice/phone"]);
        let rogue = Rogue::new("mallory/phone");
        let id = GroupId::of(&domain(), crate::crypto::random());
        let key = scenario.hub.key(SignatureScheme::ED25519).unwrap();
        Self {
            ids: [id.clone(), id.clone(), id],
            sender: DsSenderId::LeafIndex(LeafIndex(0)),
            signer: rogue.leaf.clone(),
            ciphersuites: scenario.hub.settings.ciphersuites.clone(),
            policy: crate::policy::default_policy(&rogue.user_key_hash()),
            required: [USER_KEY, GROUP_POLICY].map(mls::ExtensionType::Unknown).to_vec(),
            capabilities: capabilities(),
            senders: Some(vec![external_sender(&domain(), &key)]),
            queue: rogue.config(),
            hub: domain(),
            ahead_ms: 0,
            key_package_of: None,
            tree: None,
            commits: 0,
            scenario,
            rogue,
        }
    }

    fn create(self) -> Result<(), Reject> {
        self.sent()()
    }

    /// What the hub makes of the request, as often as it is asked.
    fn sent(self) -> impl Fn() -> Result<(), Reject> {
        let Self { scenario, rogue, ids, .. } = self;
        let [in_request, in_context, in_info] = ids;
        let mut extensions = vec![
            mls::Extension::RequiredCapabilities(mls::RequiredCapabilitiesExtension::new(
                &self.required,
                &[],
                &[],
            )),
            unknown(GROUP_POLICY, encode(&self.policy)),
        ];
        extensions.extend(self.senders.map(mls::Extension::ExternalSenders));
        let provider = &rogue.provider;
        let mut group = mls::MlsGroup::builder()
            .with_group_id(mls::GroupId::from_slice(in_info.as_bytes()))
            .ciphersuite(SUITES[0])
            .with_wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY)
            .use_ratchet_tree_extension(false)
            .with_group_context_extensions(mls::Extensions::from_vec(extensions).unwrap())
            .with_capabilities(self.capabilities)
            .with_leaf_node_extensions(rogue.leaf_extensions(&rogue.leaf))
            .unwrap()
            .build(provider, &rogue.leaf, rogue.credential(&rogue.leaf))
            .unwrap();
        for _ in 0..self.commits {
            let parameters = mls::LeafNodeParameters::default();
            group.self_update(provider, &rogue.leaf, parameters).unwrap();
            group.merge_pending_commit(provider).unwrap();
        }
        let info = group.export_group_info(provider.crypto(), &rogue.leaf, false).unwrap();
        let info = info.tls_serialize_detached().unwrap();
        let key_package = self.key_package_of.as_ref().unwrap_or(&rogue).key_package();
        let request = DsRequest::CreateGroup(Box::new(CreateGroup {
            group_id: in_request,
            key_package: Raw::of(&key_package),
            client_queue_config: self.queue,
            group_info: Raw::new(&info[4..]).unwrap(),
            ratchet_tree: self.tree.unwrap_or_else(|| Raw::of(&group.export_ratchet_tree())),
        }));
        let context = DsContext {
            version: ProtocolVersion::MIMI10,
            hub_domain: self.hub,
            group_id: in_context,
            timestamp: scenario.now.plus_ms(self.ahead_ms),
            request_id: RequestId(crate::crypto::random()),
        };
        let message = sign_in(context, self.sender, request, &self.signer);
        let request = Request { message, relay: domain() };
        let hub = Hub {
            settings: Settings { ciphersuites: self.ciphersuites, ..Settings::new(domain()) },
            crypto: MlsCrypto::default(),
            keys: HubKeys::new(scenario.hub.keys.all().to_vec()),
            rates: GroupRates::default(),
        };
        let (hub, now) = (Arc::new(hub), scenario.now);
        move || GroupState::create(&hub, &request, now).map(|_| ())
    }
}

/// Refused with `why` in the reason.
fn refused(why: &str, change: impl FnOnce(&mut Founding)) -> Reject {
    let mut founding = Founding::new();
    change(&mut founding);
    let Err(reject) = founding.create() else { panic!("taken, though {why}") };
    assert!(reject.to_string().contains(why), "{why}: {reject:?}");
    reject
}

fn elsewhere() -> Domain {
    Domain::new("b.example").unwrap()
}

#[test]
fn new_group_has_one_id_which_names_this_provider() {
    Founding::new().create().unwrap();
    let other = || GroupId::of(&domain(), [9; 16]);
    let reject = refused("names two groups", |it| it.ids[0] = other());
    assert!(matches!(reject, Reject::Unauthenticated(_)));
    let reject = refused("names two groups", |it| it.ids[1] = other());
    assert!(matches!(reject, Reject::Unauthenticated(_)));
    let reject = refused("GroupInfo is of another group", |it| it.ids[2] = other());
    assert!(matches!(reject, Reject::InvalidGroupInfo(_)));
    let foreign = GroupId::of(&elsewhere(), [9; 16]);
    let reject = refused("names the provider that creates it", |it| {
        it.ids = [foreign.clone(), foreign.clone(), foreign];
    });
    assert!(matches!(reject, Reject::InvalidGroupId(_)));
}

#[test]
fn new_group_is_asked_for_by_its_one_leaf_in_epoch_0() {
    for sender in [
        DsSenderId::LeafIndex(LeafIndex(1)),
        DsSenderId::UserKeyHash(Rogue::new("mallory/phone").user_key_hash()),
    ] {
        let reject = refused("a creator is leaf 0", |it| it.sender = sender);
        assert!(matches!(reject, Reject::Unauthenticated(_)));
    }
    let reject = refused("signature does not verify", |it| it.signer = ed25519());
    assert!(matches!(reject, Reject::Unauthenticated(_)));
    let reject = refused("addressed to another hub", |it| it.hub = elsewhere());
    assert!(matches!(reject, Reject::Unauthenticated(_)));
    let reject = refused("", |it| it.ahead_ms = 5 * 60 * 1000 + 1);
    assert!(matches!(reject, Reject::Stale { .. }));
    let reject = refused("in epoch 0", |it| it.commits = 1);
    assert!(matches!(reject, Reject::InvalidGroupInfo(_)));
    // before anything of a large one is verified
    let three = Scenario::group_of(["alice/phone", "bob/phone", "carol/phone"]);
    let three = three.state.info().unwrap().ratchet_tree;
    let reject = refused("one leaf", |it| it.tree = Some(three));
    assert!(matches!(reject, Reject::InvalidGroupInfo(_)));
    let reject = refused("at its own provider", |it| it.queue.domain = elsewhere());
    assert!(matches!(reject, Reject::NotAuthorized(_)));
    let reject = refused("of another client than leaf 0", |it| {
        it.key_package_of = Some(Rogue::new("mallory/phone"));
    });
    assert!(matches!(reject, Reject::InvalidKeyPackage { index: 0, .. }));
}

#[test]
fn new_group_has_the_context_that_its_hub_needs() {
    type Change = fn(&mut Founding);
    let cases: Vec<(&str, Change)> = vec![
        ("must be an admin", |it| it.policy.roles = List::default()),
        ("no right can be given to the banned", |it| it.policy.may_send = Role::Banned),
        ("members_max must be", |it| it.policy.members_max = 0),
        ("ciphersuite is not one", |it| it.ciphersuites = vec![2, 3]),
        ("must list user_key and group_policy", |it| it.required = vec![]),
        ("must list user_key and group_policy", |it| it.required.truncate(1)),
        ("external_senders must name this hub", |it| it.senders = None),
        ("exactly one sender", |it| {
            let one = it.senders.clone().unwrap();
            it.senders = Some([one.clone(), one].concat());
        }),
        ("this hub's key and domain", |it| {
            it.senders = Some(vec![external_sender(&domain(), &ed25519())]);
        }),
        ("this hub's key and domain", |it| {
            let key = it.scenario.hub.key(SignatureScheme::ED25519).unwrap();
            it.senders = Some(vec![external_sender(&elsewhere(), &key)]);
        }),
    ];
    for (why, change) in cases {
        let reject = refused(why, change);
        assert!(matches!(reject, Reject::InvalidGroupInfo(_)), "{reject:?}");
    }
}

#[test]
fn requirements_and_capabilities_without_number_are_compared_in_time_that_grows_with_them() {
    crate::growth::grows_with("types that are required and listed", 1_000, |n| {
        let mut founding = Founding::new();
        let many = (0..n).map(|n| mls::ExtensionType::Unknown(u16::try_from(n).unwrap()));
        let many = many.filter(|it| u16::from(*it) > 5);
        founding.required.extend(many.clone());
        // the last to be found is the first to be asked for
        let mut listed: Vec<_> = many.collect();
        listed.extend(capabilities().extensions());
        listed.reverse();
        founding.capabilities = mls::Capabilities::builder()
            .ciphersuites(SUITES.to_vec())
            .extensions(listed)
            .proposals(capabilities().proposals().to_vec())
            .build();
        let sent = founding.sent();
        move || sent().unwrap()
    });
}
